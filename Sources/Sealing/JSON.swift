// Canonical JSON: RFC 8785 (JCS) over a subset that has one text per value.
//
// Values are strings, booleans, integers 0 … 2^53−1, arrays and objects. No null, no negative or fractional numbers, no
// duplicate names, no byte-order mark, no white space. The parser accepts a text only if it equals its own re-encoding,
// so a digest of the text is a digest of the meaning and no two parsers can read it differently.

/// A canonical JSON value.
public enum JSON: Hashable, Sendable {
  case string(String)
  case bool(Bool)
  case integer(Int64)
  case array([JSON])
  case object([String: JSON])

  public static let integerMax: Int64 = 1 << 53 - 1
  public static let depthMax = 8

  /// The JCS text.
  public var canonical: [UInt8] {
    var text: [UInt8] = []
    write(to: &text)
    return text
  }

  private func write(to text: inout [UInt8]) {
    switch self {
    case .string(let value): Self.write(value, to: &text)
    case .bool(let value): text += (value ? "true" : "false").utf8
    case .integer(let value):
      precondition((0...Self.integerMax).contains(value), "outside RFC 8785's exact integers")
      text += String(value).utf8
    case .array(let values):
      text.append(91)
      for (index, value) in values.enumerated() {
        if index > 0 { text.append(44) }
        value.write(to: &text)
      }
      text.append(93)
    case .object(let members):
      text.append(123)
      // RFC 8785 §3.2.3: names sorted by UTF-16 code units.
      let names = members.keys.sorted { $0.utf16.lexicographicallyPrecedes($1.utf16) }
      for (index, name) in names.enumerated() {
        if index > 0 { text.append(44) }
        Self.write(name, to: &text)
        text.append(58)
        members[name]!.write(to: &text)
      }
      text.append(125)
    }
  }

  /// RFC 8785 §3.2.2.2: two-letter escapes where JSON has them, \u00xx for other controls, all else as it is.
  private static func write(_ string: String, to text: inout [UInt8]) {
    text.append(34)
    defer { text.append(34) }
    // Almost every string needs no escape, and is copied whole.
    let isCopied = string.utf8.withContiguousStorageIfAvailable { bytes in
      var escapes = false
      for byte in bytes { escapes = escapes || byte < 32 || byte == 34 || byte == 92 }
      if !escapes { text.append(contentsOf: bytes) }
      return !escapes
    }
    if isCopied == true { return }
    for byte in string.utf8 {
      switch byte {
      case 34: text += [92, 34]
      case 92: text += [92, 92]
      case 8: text += [92, 98]
      case 9: text += [92, 116]
      case 10: text += [92, 110]
      case 12: text += [92, 102]
      case 13: text += [92, 114]
      case 0..<32: text += "\\u00\(Hex.encode([byte]))".utf8
      default: text.append(byte)
      }
    }
  }

  /// Parses canonical text.
  ///
  /// - Throws: `document.json` with the byte offset: over `bytesMax`, deeper than `depthMax`, outside the subset, or not canonical.
  public init(canonical text: [UInt8], bytesMax: Int) throws(SealingError) {
    guard text.count <= bytesMax else {
      throw SealingError(.documentJSON, "JSON of \(text.count) bytes is over the limit of \(bytesMax)")
    }
    var parser = CanonicalParser(text: text)
    let value = try parser.value(depth: 1)
    guard parser.offset == text.count else { throw parser.refused("bytes after the value") }
    guard value.canonical == text else { throw parser.refused("the text is not canonical (RFC 8785)") }
    self = value
  }
}

extension JSON: ExpressibleByDictionaryLiteral, ExpressibleByStringLiteral,
  ExpressibleByIntegerLiteral, ExpressibleByBooleanLiteral, ExpressibleByArrayLiteral
{
  public init(dictionaryLiteral members: (String, JSON)...) {
    self = .object(Dictionary(uniqueKeysWithValues: members))
  }
  public init(stringLiteral value: String) { self = .string(value) }
  public init(integerLiteral value: Int64) { self = .integer(value) }
  public init(booleanLiteral value: Bool) { self = .bool(value) }
  public init(arrayLiteral values: JSON...) { self = .array(values) }
}

private struct CanonicalParser {
  let text: [UInt8]
  var offset = 0

  func refused(_ what: String) -> SealingError {
    SealingError(.documentJSON, "JSON at byte \(offset): \(what)")
  }

  private var byte: UInt8? { offset < text.count ? text[offset] : nil }

  private mutating func expect(_ expected: UInt8, _ what: String) throws(SealingError) {
    guard byte == expected else { throw refused("expected \(what)") }
    offset += 1
  }

  mutating func value(depth: Int) throws(SealingError) -> JSON {
    guard depth <= JSON.depthMax else { throw refused("nested deeper than \(JSON.depthMax)") }
    switch byte {
    case 34: return .string(try string())
    case 123: return .object(try object(depth: depth))
    case 91: return .array(try array(depth: depth))
    case (48...57)?: return .integer(try integer())
    default:
      for (word, value) in [("true", true), ("false", false)]
      where text[offset...].starts(with: word.utf8) {
        offset += word.utf8.count
        return .bool(value)
      }
      throw refused("expected a string, true, false, a whole number, an array or an object")
    }
  }

  private mutating func object(depth: Int) throws(SealingError) -> [String: JSON] {
    var members: [String: JSON] = [:]
    offset += 1
    while byte != 125 {
      if !members.isEmpty { try expect(44, "',' or '}'") }
      let name = try string()
      try expect(58, "':'")
      let member = try value(depth: depth + 1)
      guard members.updateValue(member, forKey: name) == nil else { throw refused("a name twice") }
    }
    offset += 1
    return members
  }

  private mutating func array(depth: Int) throws(SealingError) -> [JSON] {
    var values: [JSON] = []
    offset += 1
    while byte != 93 {
      if !values.isEmpty { try expect(44, "',' or ']'") }
      values.append(try value(depth: depth + 1))
    }
    offset += 1
    return values
  }

  private mutating func integer() throws(SealingError) -> Int64 {
    var number: Int64 = 0
    while let digit = byte, (48...57).contains(digit) {
      number = number * 10 + Int64(digit - 48)
      guard number <= JSON.integerMax else { throw refused("a number over 2^53-1") }
      offset += 1
    }
    return number
  }

  private mutating func string() throws(SealingError) -> String {
    try expect(34, "'\"'")
    var bytes: [UInt8] = []
    while true {
      let run = text[offset...].prefix { $0 >= 32 && $0 != 34 && $0 != 92 }
      bytes.append(contentsOf: run)
      offset = run.endIndex
      guard byte == 92 else { break }
      offset += 1
      bytes.append(try escape())
    }
    guard byte.map({ $0 >= 32 }) != false else { throw refused("a control byte in a string") }
    try expect(34, "'\"'")
    guard let string = String(validating: bytes, as: UTF8.self) else {
      throw refused("a string is not UTF-8")
    }
    return string
  }

  /// Only the escapes that canonical text has; each stands for one byte.
  private mutating func escape() throws(SealingError) -> UInt8 {
    let letter = byte
    offset += 1
    switch letter {
    case 34, 92: return letter!
    case 98: return 8
    case 116: return 9
    case 110: return 10
    case 102: return 12
    case 114: return 13
    case 117:
      let digits = text[min(offset, text.count)..<min(offset + 4, text.count)]
      guard digits.count == 4, digits.starts(with: "00".utf8),
        let bytes = Hex.decode(String(decoding: digits.dropFirst(2), as: UTF8.self)), bytes[0] < 32
      else { throw refused("an escape that canonical JSON does not have") }
      offset += 4
      return bytes[0]
    default: throw refused("an escape that canonical JSON does not have")
    }
  }
}
