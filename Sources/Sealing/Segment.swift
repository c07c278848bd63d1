// Seals and opens numbered segments in place: the streaming core. No files, no threads; a pipeline drives it.
//
// A segment's buffer has the layout of the wire: sealed chunks side by side, so plain chunk i sits at i * 65,552 with
// room for its tag behind it. A caller reads plain bytes into `plainRanges` (one preadv), seals, and writes
// `sealed` (one pwrite); opening is the mirror.

/// One worker's buffer of 16 chunks. Reused for every segment; zeroed when it goes.
public struct SegmentBuffer: ~Copyable {
  public let bytes: UnsafeMutableRawBufferPointer

  /// - Parameter sealedBytesMax: room for a smaller segment, where no larger one will come.
  public init(sealedBytesMax: Int = BodyGeometry.sealedSegmentBytes) {
    precondition((1...BodyGeometry.sealedSegmentBytes).contains(sealedBytesMax))
    bytes = .allocate(byteCount: sealedBytesMax, alignment: 4096)
  }

  deinit {
    // Opened segments are plain text.
    bytes.initializeMemory(as: UInt8.self, repeating: 0)
    bytes.deallocate()
  }

  /// The places of `plainBytes` plain bytes, in order, at most 16.
  public func plainRanges(_ plainBytes: Int) -> [UnsafeMutableRawBufferPointer] {
    stride(from: 0, to: plainBytes, by: BodyGeometry.chunkBytes).map { start in
      let place = start / BodyGeometry.chunkBytes * BodyGeometry.sealedChunkBytes
      let count = min(BodyGeometry.chunkBytes, plainBytes - start)
      return UnsafeMutableRawBufferPointer(rebasing: bytes[place..<(place + count)])
    }
  }
}

/// Seals and opens segments of one body. One per thread.
public struct SegmentCipher: ~Copyable {
  private let cipher: ChunkCipher

  /// - Parameter payloadKey: 32 bytes, from `PackageKey`.
  public init(payloadKey: Secret, engine: CipherEngine) {
    cipher = ChunkCipher(key: payloadKey, engine: engine)
  }

  /// Seals segment `index`, whose plain bytes stand in their places.
  ///
  /// - Returns: the RFC 6962 root of the segment's chunks, and how many bytes of the buffer are now sealed.
  public func seal(
    _ buffer: borrowing SegmentBuffer, segment index: Int64, plainBytes: Int, isLast: Bool
  ) -> (root: Digest, sealedBytes: Int) {
    precondition((0...BodyGeometry.segmentBytes).contains(plainBytes))
    precondition(isLast || plainBytes == BodyGeometry.segmentBytes)
    let chunks = max(1, (plainBytes + BodyGeometry.chunkBytes - 1) / BodyGeometry.chunkBytes)
    for chunk in 0..<chunks {
      cipher.seal(
        buffer.bytes.baseAddress! + chunk * BodyGeometry.sealedChunkBytes,
        plainBytes: min(BodyGeometry.chunkBytes, plainBytes - chunk * BodyGeometry.chunkBytes),
        index: index * Int64(BodyGeometry.chunksPerSegment) + Int64(chunk),
        isLast: isLast && chunk == chunks - 1)
    }
    let sealedBytes = plainBytes + chunks * BodyGeometry.tagBytes
    return (SegmentDigest.root(buffer, sealedBytes: sealedBytes), sealedBytes)
  }

  /// Opens segment `index`, whose `sealedBytes` fill the buffer from its start.
  ///
  /// - Returns: the plain bytes, now in their places.
  /// - Throws: `body.chunk` with the chunk's number; the buffer then holds no plain text of this segment.
  public func open(
    _ buffer: borrowing SegmentBuffer, segment index: Int64, sealedBytes: Int, isLast: Bool
  ) throws(SealingError) -> Int {
    let chunks = (sealedBytes + BodyGeometry.sealedChunkBytes - 1) / BodyGeometry.sealedChunkBytes
    var plainBytes = 0
    for chunk in 0..<chunks {
      let start = chunk * BodyGeometry.sealedChunkBytes
      let count = min(BodyGeometry.sealedChunkBytes, sealedBytes - start) - BodyGeometry.tagBytes
      let number = index * Int64(BodyGeometry.chunksPerSegment) + Int64(chunk)
      let lastOfAll = isLast && chunk == chunks - 1
      guard count > 0 || (count == 0 && number == 0 && lastOfAll),
        cipher.open(
          buffer.bytes.baseAddress! + start, plainBytes: count, index: number, isLast: lastOfAll)
      else {
        buffer.bytes.initializeMemory(as: UInt8.self, repeating: 0)
        throw SealingError(.bodyChunk, "chunk \(number) of the body is not authentic")
      }
      plainBytes += count
    }
    return plainBytes
  }
}

/// The digest of a sealed segment, which needs no key: a receiving gateway checks it as bytes arrive.
public enum SegmentDigest {
  /// RFC 6962 root over the chunks in the first `sealedBytes` (17 … 1,048,832, or 16 for an empty body).
  public static func root(_ buffer: borrowing SegmentBuffer, sealedBytes: Int) -> Digest {
    root(at: UnsafeRawPointer(buffer.bytes.baseAddress!), sealedBytes: sealedBytes)
  }

  static func root(
    at base: UnsafeRawPointer, sealedBytes: Int, kernel: Int32 = MerkleTree.kernel
  ) -> Digest {
    precondition((1...BodyGeometry.sealedSegmentBytes).contains(sealedBytes))
    let whole = sealedBytes / BodyGeometry.sealedChunkBytes
    let rest = sealedBytes % BodyGeometry.sealedChunkBytes
    var frontier = MerkleFrontier()
    if whole > 0 {
      MerkleTree.leaves(
        at: base, count: whole, stride: BodyGeometry.sealedChunkBytes,
        bytes: BodyGeometry.sealedChunkBytes, kernel: kernel
      ) { frontier.append($0) }
    }
    if rest > 0 {
      MerkleTree.leaves(
        at: base + whole * BodyGeometry.sealedChunkBytes, count: 1, stride: 0, bytes: rest,
        kernel: kernel
      ) { frontier.append($0) }
    }
    return frontier.root
  }
}
