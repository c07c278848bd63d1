// RFC 6962 §2.1 Merkle trees over SHA-256, used for bodies and for the audit log alike.
//
//   leaf = SHA-256(0x00 || data)     node = SHA-256(0x01 || left || right)     empty tree = SHA-256()
//
// Leaves of equal length are hashed up to sixteen at a time by CKernels.

import CKernels
import Crypto

/// One SHA-256 value.
public struct Digest: Hashable, Sendable, CustomStringConvertible {
  public static let byteCount = 32
  // Four words instead of an array: a million of them cost 32 MB and no reference counting.
  private let words: (UInt64, UInt64, UInt64, UInt64)

  public init(_ bytes: some Collection<UInt8>) {
    precondition(bytes.count == Self.byteCount)
    var words: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
    withUnsafeMutableBytes(of: &words) { $0.copyBytes(from: bytes) }
    self.words = words
  }

  /// nil unless `hex` is 64 lower-case hexadecimal digits.
  public init?(hex: String) {
    guard let bytes = Hex.decode(hex), bytes.count == Self.byteCount else { return nil }
    self.init(bytes)
  }

  /// SHA-256 of `data`.
  public init(of data: [UInt8]) { self.init(Array(SHA256.hash(data: data))) }

  public var bytes: [UInt8] { withUnsafeBytes(of: words) { Array($0) } }
  public var hex: String { withUnsafeBytes(of: words) { Hex.encode($0) } }
  public var description: String { hex }

  public static func == (a: Digest, b: Digest) -> Bool { a.words == b.words }
  public func hash(into hasher: inout Hasher) { hasher.combine(words.0) }
}

/// The tree's hashes and roots.
public enum MerkleTree {
  /// The widest kernel of this processor; tests force narrower ones.
  static let kernel = sp_sha256_kernel()

  public static let emptyRoot = Digest(of: [])

  public static func leaf(_ data: [UInt8]) -> Digest {
    data.withUnsafeBytes { data in
      var output: [Digest] = []
      // An empty array has no base address, and the kernel reads nothing of it.
      let base = data.baseAddress ?? UnsafeRawPointer(bitPattern: 1)!
      leaves(at: base, count: 1, stride: 0, bytes: data.count) { output.append($0) }
      return output[0]
    }
  }

  /// Hashes `count` (1 ... 16) leaves of `bytes` bytes each, which begin `stride` bytes apart, in order.
  static func leaves(
    at base: UnsafeRawPointer, count: Int, stride: Int, bytes: Int, kernel: Int32 = kernel,
    each: (Digest) -> Void
  ) {
    precondition((1...16).contains(count))
    withUnsafeTemporaryAllocation(of: UnsafePointer<UInt8>?.self, capacity: count) { messages in
      withUnsafeTemporaryAllocation(byteCount: 32 * count, alignment: 8) { output in
        for index in 0..<count {
          messages[index] = (base + index * stride).assumingMemoryBound(to: UInt8.self)
        }
        sp_sha256_prefixed(kernel, 0, messages.baseAddress, count, bytes, output.bytePointer)
        for index in 0..<count {
          each(Digest(UnsafeRawBufferPointer(rebasing: output[(32 * index)..<(32 * index + 32)])))
        }
      }
    }
  }

  static func node(_ left: Digest, _ right: Digest) -> Digest {
    withUnsafeTemporaryAllocation(byteCount: 96, alignment: 8) { buffer in
      buffer.copyBytes(from: left.bytes)
      UnsafeMutableRawBufferPointer(rebasing: buffer[32..<64]).copyBytes(from: right.bytes)
      var message: UnsafePointer<UInt8>? = UnsafePointer(buffer.bytePointer)
      sp_sha256_prefixed(kernel, 1, &message, 1, 64, buffer.bytePointer! + 64)
      return Digest(UnsafeRawBufferPointer(rebasing: buffer[64..<96]))
    }
  }

  /// The root over leaf hashes, or over roots of complete subtrees of one size (the last may be smaller).
  public static func root(_ hashes: some Sequence<Digest>) -> Digest {
    var frontier = MerkleFrontier()
    for hash in hashes { frontier.append(hash) }
    return frontier.root
  }
}

/// An append-only tree reduced to its right edge: at most 64 hashes, whatever the size.
public struct MerkleFrontier: Equatable, Sendable {
  public private(set) var size: UInt64 = 0
  /// Roots of complete subtrees, largest first: one for each one-bit of `size`.
  public private(set) var peaks: [Digest] = []

  public init() {}

  /// - Parameter peaks: as another frontier of `size` had them.
  public init?(size: UInt64, peaks: [Digest]) {
    guard peaks.count == size.nonzeroBitCount else { return nil }
    self.size = size
    self.peaks = peaks
  }

  public mutating func append(_ leaf: Digest) {
    var hash = leaf
    var level = size
    while level & 1 == 1 {
      hash = MerkleTree.node(peaks.removeLast(), hash)
      level >>= 1
    }
    peaks.append(hash)
    size += 1
  }

  public var root: Digest {
    guard var hash = peaks.last else { return MerkleTree.emptyRoot }
    for peak in peaks.dropLast().reversed() { hash = MerkleTree.node(peak, hash) }
    return hash
  }
}
