// RFC 6962 trees, against a naive implementation and known roots; every SHA-256 kernel of this machine.

import CKernels
import struct Crypto.SHA256
import TestSupport
import Testing

@testable import Sealing

@Suite struct TreeTests {
  /// RFC 6962 §2.1, as written there.
  static func naive(_ leaves: [[UInt8]]) -> [UInt8] {
    if leaves.isEmpty { return Array(SHA256.hash(data: [UInt8]())) }
    if leaves.count == 1 { return Array(SHA256.hash(data: [0] + leaves[0])) }
    var split = 1
    while split * 2 < leaves.count { split *= 2 }
    return Array(
      SHA256.hash(data: [1] + naive(Array(leaves[..<split])) + naive(Array(leaves[split...]))))
  }

  @Test func rootsEqualTheDefinition() {
    var random = SeededGenerator(seed: 1)
    for count in 0..<70 {
      let leaves = (0..<count).map { _ in random.bytes(Int.random(in: 0...100, using: &random)) }
      #expect(MerkleTree.root(leaves.map(MerkleTree.leaf)).bytes == Self.naive(leaves), "\(count) leaves")
    }
  }

  @Test func aBodyRootEqualsTheDefinitionOverItsChunks() throws {
    var random = SeededGenerator(seed: 2)
    let identity = try Identity(generating: .x25519)
    for size in [0, 1, 65536, 17 * 65536, 33 * 65536 + 5] {
      let sealed = try InMemory.seal(random.bytes(size), to: [identity.recipient])
      #expect(sealed.root.bytes == Self.naive(InMemory.chunks(of: sealed.body)), "\(size) bytes")
    }
  }

  @Test func everyKernelHashesAsSHA256() {
    var random = SeededGenerator(seed: 4)
    let widest = sp_sha256_kernel()
    for kernel in [SP_SHA256_PORTABLE, SP_SHA256_SHANI, SP_SHA256_AVX512].map(Int32.init) where kernel <= widest {
      for length in Array(0...130) + [1000, 65535, 65536, 65552] {
        let count = Int.random(in: 1...16, using: &random)
        let data = random.bytes(length * count)
        var digests: [Sealing.Digest] = []
        data.withUnsafeBytes {
          MerkleTree.leaves(
            at: $0.baseAddress ?? UnsafeRawPointer(bitPattern: 1)!, count: count, stride: length,
            bytes: length, kernel: kernel
          ) { digests.append($0) }
        }
        for lane in 0..<count {
          let leaf = [0] + data[(lane * length)..<((lane + 1) * length)]
          #expect(
            digests[lane].bytes == Array(SHA256.hash(data: leaf)),
            "kernel \(kernel), \(length) bytes, lane \(lane) of \(count)")
        }
      }
    }
  }

  @Test func aFrontierGoesOnFromItsPeaks() throws {
    var whole = MerkleFrontier()
    for index in 0..<100 {
      var resumed = try #require(MerkleFrontier(size: whole.size, peaks: whole.peaks))
      whole.append(Digest(of: [UInt8(index)]))
      resumed.append(Digest(of: [UInt8(index)]))
      #expect(resumed == whole)
    }
    #expect(MerkleFrontier(size: 3, peaks: []) == nil)
  }

  @Test func geometryGoesBothWays() throws {
    for plain: Int64 in [0, 1, 65535, 65536, 65537, 1 << 20, (1 << 20) + 1, 100 << 30] {
      let geometry = try BodyGeometry(plainBytes: plain)
      #expect(try BodyGeometry(sealedBytes: geometry.sealedBytes) == geometry)
      let total = (0..<min(geometry.segments, 3)).reduce(Int64(0)) { $0 + Int64(geometry.plainBytes(ofSegment: $1)) }
      #expect(geometry.segments > 3 || total == plain)
    }
    for sealed: Int64 in [-1, 0, 15, 65552 + 1, 65552 + 16] {
      #expect(errorCode { try BodyGeometry(sealedBytes: sealed) } == .bodyLength)
    }
    for plain in [-1, BodyGeometry.plainBytesMax + 1] {
      #expect(errorCode { try BodyGeometry(plainBytes: plain) } == .bodyLength)
    }
  }
}
