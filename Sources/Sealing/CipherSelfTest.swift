// At start, both chunk ciphers seal and open the same bytes, and the faster one is chosen.

import Foundation

extension CipherEngine {
  /// Compares the two ciphers and the SHA-256 kernels with each other, and names the faster cipher.
  ///
  /// Takes some three milliseconds. Run once, before the first seal.
  /// - Throws: `self-test` when the two differ: nothing on this machine may be sealed then.
  public static func selfTest() throws(SealingError) -> CipherEngine {
    let key = Secret(count: 32) { $0.copyBytes(from: 0..<32) }
    let plainBytes = 2 * BodyGeometry.chunkBytes - 100
    let buffer = SegmentBuffer(sealedBytesMax: plainBytes + 2 * BodyGeometry.tagBytes)
    var sealed = [[UInt8]](repeating: [], count: allCases.count)
    var seconds = [Double](repeating: .infinity, count: allCases.count)
    // In turns, so that a slow moment of the machine is no cipher's own.
    for _ in 0..<4 {
      for (place, engine) in allCases.enumerated() {
        let cipher = SegmentCipher(payloadKey: key, engine: engine)
        buffer.bytes.initializeMemory(as: UInt8.self, repeating: 0x5a)
        let start = ContinuousClock.now
        let result = cipher.seal(buffer, segment: 3, plainBytes: plainBytes, isLast: true)
        seconds[place] = min(seconds[place], (ContinuousClock.now - start) / .seconds(1))
        sealed[place] = Array(buffer.bytes[..<result.sealedBytes])
        let opened = try cipher.open(buffer, segment: 3, sealedBytes: result.sealedBytes, isLast: true)
        guard opened == plainBytes, buffer.plainRanges(plainBytes).allSatisfy({ $0.first == 0x5a && $0.last == 0x5a })
        else {
          throw SealingError(.selfTest, "\(engine.rawValue) does not open what it sealed")
        }
      }
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
    return allCases[seconds.firstIndex(of: seconds.min()!)!]
  }
}
