// Where each byte of a body is: pure arithmetic between plain and sealed sizes (C2SP age.md, "Payload").
//
//   body    = chunk 0 || chunk 1 || … ; a chunk is 65,536 plain bytes and a 16-byte tag, the last one 0 … 65,536
//   an empty payload is one empty chunk; otherwise the last chunk is never empty
//   segment = 16 chunks = the unit of work: 1 MiB plain, 1,048,832 B sealed
//
// It is the reason why segments can be sealed, opened and verified in any order.

/// The layout of one body of known plain size.
public struct BodyGeometry: Equatable, Sendable {
  public static let chunkBytes = 65536
  public static let tagBytes = 16
  public static let sealedChunkBytes = chunkBytes + tagBytes
  public static let chunksPerSegment = 16
  public static let segmentBytes = chunkBytes * chunksPerSegment
  public static let sealedSegmentBytes = sealedChunkBytes * chunksPerSegment
  /// Above this, offsets would leave the range of signed 64-bit file offsets.
  public static let plainBytesMax: Int64 = 1 << 50

  public let plainBytes: Int64

  /// - Throws: `body.length` over `plainBytesMax` or below zero.
  public init(plainBytes: Int64) throws(SealingError) {
    guard (0...Self.plainBytesMax).contains(plainBytes) else {
      throw SealingError(.bodyLength, "a payload has 0 to \(Self.plainBytesMax) bytes")
    }
    self.plainBytes = plainBytes
  }

  /// - Throws: `body.length` for a size that no payload seals to.
  public init(sealedBytes: Int64) throws(SealingError) {
    let whole = sealedBytes / Int64(Self.sealedChunkBytes)
    let rest = sealedBytes % Int64(Self.sealedChunkBytes)
    // A rest of only a tag would be an empty last chunk, allowed for an empty payload alone.
    guard sealedBytes >= Int64(Self.tagBytes), rest == 0 || rest > 16 || sealedBytes == 16 else {
      throw SealingError(.bodyLength, "no payload seals to \(sealedBytes) bytes")
    }
    let last = rest == 0 ? 0 : rest - Int64(Self.tagBytes)
    try self.init(plainBytes: whole * Int64(Self.chunkBytes) + last)
  }

  public var chunks: Int64 {
    max(1, (plainBytes + Int64(Self.chunkBytes) - 1) / Int64(Self.chunkBytes))
  }
  public var sealedBytes: Int64 { plainBytes + chunks * Int64(Self.tagBytes) }
  public var segments: Int64 {
    (chunks + Int64(Self.chunksPerSegment) - 1) / Int64(Self.chunksPerSegment)
  }

  /// Plain bytes of segment `index`: `segmentBytes` but for the last.
  public func plainBytes(ofSegment index: Int64) -> Int {
    Int(min(Int64(Self.segmentBytes), plainBytes - index * Int64(Self.segmentBytes)))
  }

  /// Sealed bytes of segment `index`.
  public func sealedBytes(ofSegment index: Int64) -> Int {
    Self.sealedBytes(ofPlain: plainBytes(ofSegment: index))
  }

  public func isLast(segment index: Int64) -> Bool { index == segments - 1 }

  /// Room that the largest segment of this body needs.
  public var sealedSegmentBytesMax: Int { sealedBytes(ofSegment: 0) }

  static func sealedBytes(ofPlain bytes: Int) -> Int {
    bytes + max(1, (bytes + chunkBytes - 1) / chunkBytes) * tagBytes
  }
}
