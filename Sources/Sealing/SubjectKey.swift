// People in the ledger: keyed pseudonyms, one key for each agreement, so that two agreements' records cannot be joined without
// the keys. Identity numbers are few enough to try them all: only the key keeps them secret.
//
//   key    = HKDF-SHA-256(master, info = "sallyport/subject/v1/" USE "/" CONTEXT)
//   digest = BLAKE2b-128, keyed (RFC 7693 §2.9), of the canonical id

import CKernels

/// 16 bytes that stand for a person, or for a value.
package struct SubjectReference: Hashable, Sendable, BitwiseCopyable, CustomStringConvertible, Comparable {
  package let high: UInt64
  package let low: UInt64

  package init(high: UInt64, low: UInt64) {
    self.high = high
    self.low = low
  }

  package init?(bytes: some Collection<UInt8>) {
    guard let reference = Array(bytes).withUnsafeBytes({ SubjectReference(raw: $0) }) else { return nil }
    self = reference
  }

  /// The same without a collection's price, for millions of rows.
  package init?(raw bytes: UnsafeRawBufferPointer) {
    guard bytes.count == 16 else { return nil }
    high = UInt64(bigEndian: bytes.loadUnaligned(as: UInt64.self))
    low = UInt64(bigEndian: bytes.loadUnaligned(fromByteOffset: 8, as: UInt64.self))
  }

  /// nil unless `text` is what `description` writes.
  package init?(_ text: String) {
    guard text.hasPrefix("k1:"), let bytes = Base32.decode(String(text.dropFirst(3))) else { return nil }
    self.init(bytes: bytes)
  }

  package var bytes: [UInt8] {
    (0..<16).map { UInt8(truncatingIfNeeded: ($0 < 8 ? high : low) >> UInt64(56 - 8 * ($0 & 7))) }
  }

  /// The version of the key, and base32.
  package var description: String { "k1:" + Base32.encode(bytes) }

  package static func < (a: SubjectReference, b: SubjectReference) -> Bool { (a.high, a.low) < (b.high, b.low) }
}

/// Makes references under one key. Callable concurrently.
package struct SubjectKey: Sendable {
  package static let textBytesMax = Int(SP_BLAKE2B_TEXT_MAX)

  package enum Use: String, Sendable {
    /// For the ledger, by agreement.
    case ledger
    /// For the recipient, by agreement or by package.
    case pseudonym
  }

  private let state: InlineArray<8, UInt64>

  package init(master: Secret, _ use: Use, context: String) {
    self.init(key: deriveKey(from: master, salt: [], info: "sallyport/subject/v1/\(use.rawValue)/\(context)"))
  }

  /// - Parameter key: 32 bytes.
  init(key: Secret) {
    var state = InlineArray<8, UInt64>(repeating: 0)
    var words = [UInt64](repeating: 0, count: 8)
    key.withBytes { sp_blake2b128_key($0.bytePointer!, &words) }
    for index in 0..<8 { state[index] = words[index] }
    self.state = state
  }

  /// References of texts that stand one behind the other, the i-th ending at `ends[i]`.
  ///
  /// Texts longer than `textBytesMax`, and empty ones, get a reference too; ids of subjects are neither.
  package func references(_ bytes: [UInt8], ends: [Int]) -> [SubjectReference] {
    guard !ends.isEmpty else { return [] }
    var (bytes, ends) = (bytes, ends)
    if zip(ends, [0] + ends).contains(where: { $0 - $1 > Self.textBytesMax || $0 == $1 }) { Self.fit(&bytes, &ends) }
    let words = [UInt64](unsafeUninitializedCapacity: ends.count * 2) { output, count in
      var state = state
      withUnsafeBytes(of: &state) { state in
        sp_blake2b128_many(
          state.baseAddress!.assumingMemoryBound(to: UInt64.self), bytes, ends, ends.count, output.baseAddress!)
      }
      count = ends.count * 2
    }
    return (0..<ends.count).map {
      SubjectReference(high: words[2 * $0].byteSwapped, low: words[2 * $0 + 1].byteSwapped)
    }
  }

  package func reference(_ text: [UInt8]) -> SubjectReference { references(text, ends: [text.count])[0] }

  /// A long text is stood for by its SHA-256 in hexadecimal, an empty one by a NUL.
  private static func fit(_ bytes: inout [UInt8], _ ends: inout [Int]) {
    var output: [UInt8] = []
    var start = 0
    ends = ends.map { end in
      let text = bytes[start..<end]
      start = end
      output += text.isEmpty ? [0] : text.count <= textBytesMax ? Array(text) : Array(Digest(of: Array(text)).hex.utf8)
      return output.count
    }
    bytes = output
  }
}
