// Text encodings of bytes, each strict in decoding: one text per value, so that a digest of the text means the value.

/// Lower-case hexadecimal (RFC 4648 §8, lower case).
public enum Hex {
  private static let digits = Array("0123456789abcdef".utf8)

  public static func encode(_ bytes: some Sequence<UInt8>) -> String {
    String(decoding: letters(bytes), as: UTF8.self)
  }

  /// The same as bytes, for what must not be in a String.
  public static func letters(_ bytes: some Sequence<UInt8>) -> [UInt8] {
    var text: [UInt8] = []
    text.reserveCapacity(bytes.underestimatedCount * 2)
    for byte in bytes {
      text.append(digits[Int(byte >> 4)])
      text.append(digits[Int(byte & 15)])
    }
    return text
  }

  /// nil unless `text` is lower-case hexadecimal of even length.
  public static func decode(_ text: String) -> [UInt8]? {
    let input = Array(text.utf8)
    guard input.count.isMultiple(of: 2) else { return nil }
    var bytes: [UInt8] = []
    for index in stride(from: 0, to: input.count, by: 2) {
      guard let high = value(input[index]), let low = value(input[index + 1]) else { return nil }
      bytes.append(high << 4 | low)
    }
    return bytes
  }

  private static func value(_ digit: UInt8) -> UInt8? {
    switch digit {
    case 48...57: digit - 48
    case 97...102: digit - 87
    default: nil
    }
  }
}

/// Groups of bits as letters of an alphabet, without padding; shared by base 32 and base 64.
private struct BitAlphabet: Sendable {
  let letters: [UInt8]
  let bits: Int
  let values: [UInt8]

  init(_ letters: String, bits: Int) {
    self.letters = Array(letters.utf8)
    self.bits = bits
    var values = [UInt8](repeating: 255, count: 256)
    for (value, letter) in self.letters.enumerated() { values[Int(letter)] = UInt8(value) }
    self.values = values
  }

  func encode(_ bytes: some Sequence<UInt8>) -> [UInt8] {
    var text: [UInt8] = []
    text.reserveCapacity(bytes.underestimatedCount * 8 / bits + 4)
    var pending: UInt32 = 0
    var held = 0
    for byte in bytes {
      pending = pending << 8 | UInt32(byte)
      held += 8
      while held >= bits {
        held -= bits
        text.append(letters[Int(pending >> UInt32(held)) & (1 << bits - 1)])
      }
    }
    if held > 0 { text.append(letters[Int(pending << UInt32(bits - held)) & (1 << bits - 1)]) }
    return text
  }

  /// nil for a foreign letter, a length that no value has, or unused bits that are not zero.
  func decode(_ text: some Collection<UInt8>) -> [UInt8]? {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(text.count * bits / 8)
    var pending: UInt32 = 0
    var held = 0
    for letter in text {
      let value = values[Int(letter)]
      guard value != 255 else { return nil }
      pending = (pending << UInt32(bits) | UInt32(value)) & 0xffff
      held += bits
      if held >= 8 {
        held -= 8
        bytes.append(UInt8(truncatingIfNeeded: pending >> UInt32(held)))
      }
    }
    guard held < bits, pending & (1 << UInt32(held) - 1) == 0 else { return nil }
    return bytes
  }
}

/// Base 64 (RFC 4648 §4). Unpadded as age writes it, or padded as DSSE does; non-canonical text is refused.
public enum Base64 {
  private static let alphabet = BitAlphabet(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", bits: 6)

  public static func encodeUnpadded(_ bytes: some Sequence<UInt8>) -> [UInt8] {
    alphabet.encode(bytes)
  }

  public static func decodeUnpadded(_ text: some Collection<UInt8>) -> [UInt8]? {
    alphabet.decode(text)
  }

  public static func encode(_ bytes: some Sequence<UInt8>) -> String {
    var text = alphabet.encode(bytes)
    while !text.count.isMultiple(of: 4) { text.append(61) }
    return String(decoding: text, as: UTF8.self)
  }

  public static func decode(_ text: String) -> [UInt8]? {
    let letters = Array(text.utf8)
    guard letters.count.isMultiple(of: 4) else { return nil }
    let padding = letters.suffix(2).reversed().prefix { $0 == 61 }.count
    return alphabet.decode(letters.dropLast(padding))
  }
}

/// Lower-case base 32 (RFC 4648 §6, lower case, unpadded): transfer ids and fingerprints.
public enum Base32 {
  private static let alphabet = BitAlphabet("abcdefghijklmnopqrstuvwxyz234567", bits: 5)

  public static func encode(_ bytes: some Sequence<UInt8>) -> String {
    String(decoding: alphabet.encode(bytes), as: UTF8.self)
  }

  public static func decode(_ text: String) -> [UInt8]? { alphabet.decode(Array(text.utf8)) }
}
