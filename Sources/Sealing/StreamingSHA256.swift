// Whole-file digests, for partners whose tools know no trees.

import Crypto

/// SHA-256 (FIPS 180-4) over bytes that come in pieces.
public struct StreamingSHA256: Sendable {
  private var hash = SHA256()

  public init() {}
  public mutating func update(_ bytes: UnsafeRawBufferPointer) { hash.update(bufferPointer: bytes) }
  public func finish() -> Digest { Digest(Array(hash.finalize())) }
}
