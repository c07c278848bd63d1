// At start, both chunk ciphers seal and open the same bytes, and the faster one is chosen.

import Foundation

extension CipherEngine {
  /// Compares the two ciphers and the SHA-256 kernels with each other, and names the faster cipher.
  ///
  /// Takes about a millisecond. Run once, before the first seal.
  /// - Throws: `self-test` when the two differ: nothing on this machine may be sealed then.
  public static func selfTest() throws(SealingError) -> CipherEngine {
    let key = Secret(count: 32) { $0.copyBytes(from: 0..<32) }
    var sealed: [[UInt8]] = []
    var fastest = CipherEngine.openssl
    var bestSeconds = Double.infinity
    for engine in allCases {
      let cipher = SegmentCipher(payloadKey: key, engine: engine)
      let plainBytes = 2 * BodyGeometry.chunkBytes - 100
      let buffer = SegmentBuffer(sealedBytesMax: plainBytes + 2 * BodyGeometry.tagBytes)
      var seconds = Double.infinity
      for _ in 0..<3 {
        buffer.bytes.initializeMemory(as: UInt8.self, repeating: 0x5a)
        let start = ContinuousClock.now
        let result = cipher.seal(buffer, segment: 3, plainBytes: plainBytes, isLast: true)
        seconds = min(seconds, (ContinuousClock.now - start) / .seconds(1))
        if sealed.count <= allCases.firstIndex(of: engine)! {
          sealed.append(Array(buffer.bytes[..<result.sealedBytes]))
        }
      }
      let opened = try cipher.open(
        buffer, segment: 3, sealedBytes: sealed.last!.count, isLast: true)
      guard opened == plainBytes, buffer.plainRanges(plainBytes).allSatisfy({ $0.first == 0x5a }) else {
        throw SealingError(.selfTest, "\(engine.rawValue) does not open what it sealed")
      }
      if seconds < bestSeconds { (fastest, bestSeconds) = (engine, seconds) }
    }
    guard sealed[0] == sealed[1] else {
      throw SealingError(.selfTest, "libsodium and OpenSSL seal the same bytes differently")
    }
    let leaves = [1, 2, 16].map { count in
      [Int32(1), MerkleTree.kernel].map { kernel in
        var digests: [Digest] = []
        sealed[0].withUnsafeBytes {
          MerkleTree.leaves(at: $0.baseAddress!, count: count, stride: 4096, bytes: 1000, kernel: kernel) {
            digests.append($0)
          }
        }
        return digests
      }
    }
    guard leaves.allSatisfy({ $0[0] == $0[1] }) else {
      throw SealingError(.selfTest, "the SHA-256 kernels of this machine disagree")
    }
    return fastest
  }
}
