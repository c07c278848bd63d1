// Fingerprints that two people compare by telephone: SHA-256 in base 32, in groups, each half with a check digit.

/// A card's fingerprint: 52 base 32 letters of the SHA-256 of its keys, cut into four parts of 13, each part followed by
/// a check letter (Luhn mod 32), written in eight groups of seven: `mfzwi3d-bonsgyc-…`.
public struct Fingerprint: Hashable, Sendable, CustomStringConvertible {
  /// What the letters stand for.
  public let digest: Digest

  public init(_ digest: Digest) { self.digest = digest }

  /// The fingerprint of what a person vouches for on a card: the agency's name and its unrevoked signing keys.
  ///
  /// Other keys and pins may change under those signatures; so a successor of a card keeps its fingerprint while its
  /// signing keys stay. Where there are none, the partner has no gateway: then it is of the recipients and TLS pins.
  public init(_ card: Card) {
    func strings(_ values: [String]) -> JSON { .array(values.sorted().map { .string($0) }) }
    var document: [String: JSON] = [
      "agency": .string(card.agency.text),
      "signingKeys": strings(card.signingKeys.filter { $0.state != .revoked }.map(\.key.id)),
    ]
    if !card.hasGateway {
      document["recipients"] = strings(card.recipients.filter { $0.state != .revoked }.map(\.key.description))
      document["tlsPins"] = strings(card.tlsPins.map(\.hex))
    }
    digest = Digest(of: JSON.object(document).canonical)
  }

  public var description: String {
    let letters = Array(Base32.encode(digest.bytes).utf8)
    var checked: [UInt8] = []
    for start in stride(from: 0, to: 52, by: 13) {
      let part = letters[start..<(start + 13)]
      checked += part
      checked.append(Self.checkLetter(part))
    }
    let groups = stride(from: 0, to: checked.count, by: 7).map {
      String(decoding: checked[$0..<($0 + 7)], as: UTF8.self)
    }
    return groups.joined(separator: "-")
  }

  /// Reads what a person typed: case, spaces and dashes are free. Also the 64 digits that `sha256sum` prints.
  ///
  /// - Throws: `key.invalid`, naming the group in which a check letter does not fit.
  public init(_ text: String) throws(SealingError) {
    let letters = Array(text.lowercased().utf8).filter { $0 != 45 && $0 != 32 }
    if letters.count == 64, let digits = Digest(hex: String(decoding: letters, as: UTF8.self)) {
      digest = digits
      return
    }
    guard letters.count == 56 else {
      throw SealingError(.keyInvalid, "a fingerprint has eight groups of seven letters, or 64 hexadecimal digits")
    }
    var plain: [UInt8] = []
    for part in 0..<4 {
      let run = letters[(part * 14)..<(part * 14 + 14)]
      guard Self.checkLetter(run.dropLast()) == run.last else {
        throw SealingError(
          .keyInvalid, "the fingerprint has a mistake in group \(part * 2 + 1) or \(part * 2 + 2)")
      }
      plain += run.dropLast()
    }
    guard let bytes = Base32.decode(String(decoding: plain, as: UTF8.self)), bytes.count == 32 else {
      throw SealingError(.keyInvalid, "not a fingerprint")
    }
    digest = Digest(bytes)
  }

  /// Luhn's algorithm in base 32 (ISO/IEC 7812-1 annex B, generalised): finds every single wrong letter and most swaps.
  private static func checkLetter(_ letters: ArraySlice<UInt8>) -> UInt8 {
    let alphabet = Array("abcdefghijklmnopqrstuvwxyz234567".utf8)
    var sum = 0
    for (place, letter) in letters.reversed().enumerated() {
      let value = (alphabet.firstIndex(of: letter) ?? 0) * (place.isMultiple(of: 2) ? 2 : 1)
      sum += value / 32 + value % 32
    }
    return alphabet[(32 - sum % 32) % 32]
  }
}
