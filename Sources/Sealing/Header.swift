// The age v1 header (C2SP age.md, "Header"): what opens a body, and nothing of the body.
//
//   age-encryption.org/v1 LF
//   -> TYPE SP ARGUMENT... LF            one or more stanzas
//   base64(body), 64 columns a line LF   the last line is shorter than 64, and may be empty
//   --- SP base64(HMAC-SHA-256) LF       over everything up to and including "---"
//
// Parsing is strict: exactly one text per header, every limit named, and the authenticated bytes kept as they came.

import CSodium

/// One recipient stanza.
public struct Stanza: Equatable, Sendable {
  public static let argumentsMax = 16

  public let type: String
  public let arguments: [String]
  public let body: [UInt8]

  public init(type: String, arguments: [String] = [], body: [UInt8] = []) {
    self.type = type
    self.arguments = arguments
    self.body = body
  }

  var encoded: [UInt8] {
    var text = Array("-> ".utf8) + Array(([type] + arguments).joined(separator: " ").utf8) + [10]
    let letters = Base64.encodeUnpadded(body)
    for start in stride(from: 0, through: letters.count, by: 64) {
      text += letters[start..<min(start + 64, letters.count)] + [10]
    }
    return text
  }
}

/// A header as parsed. Nothing in it is trusted before `verify(fileKey:)`.
public struct Header: Equatable, Sendable {
  public static let bytesMax = 65536
  public static let stanzasMax = 64
  public static let versionLine = "age-encryption.org/v1"

  public let stanzas: [Stanza]
  /// The header's bytes, from the version line through the MAC line.
  public let bytes: [UInt8]
  private let mac: [UInt8]
  private let authenticatedBytes: Int

  /// A new header over `stanzas`, authenticated by the file key.
  public init(stanzas: [Stanza], fileKey: Secret) {
    precondition(!stanzas.isEmpty && stanzas.count <= Self.stanzasMax)
    let text =
      Array("\(Self.versionLine)\n".utf8) + stanzas.flatMap(\.encoded) + Array("---".utf8)
    self.stanzas = stanzas
    authenticatedBytes = text.count
    mac = Self.mac(of: text[...], fileKey: fileKey)
    bytes = text + [32] + Base64.encodeUnpadded(mac) + [10]
  }

  /// Parses the header at the start of `input`; `input` may go on after it (see `bytes.count`).
  ///
  /// - Throws: `header.malformed` with the line at fault.
  public init(parsing input: some Collection<UInt8>) throws(SealingError) {
    var reader = LineReader(input: Array(input.prefix(Self.bytesMax)))
    guard try reader.next() == Array(Self.versionLine.utf8)[...] else {
      throw reader.malformed("not an \(Self.versionLine) header")
    }
    var stanzas: [Stanza] = []
    while true {
      let line = try reader.next()
      if line.starts(with: "---".utf8) {
        guard line.count == 47, line.dropFirst(3).first == 32,
          let mac = Base64.decodeUnpadded(line.dropFirst(4)), mac.count == 32
        else { throw reader.malformed("the MAC line is not canonical") }
        guard !stanzas.isEmpty else { throw reader.malformed("no recipient stanza") }
        self.mac = mac
        self.stanzas = stanzas
        authenticatedBytes = reader.offset - 45
        bytes = Array(reader.input[..<reader.offset])
        return
      }
      guard stanzas.count < Self.stanzasMax else { throw reader.malformed("too many stanzas") }
      stanzas.append(try Self.stanza(opening: line, from: &reader))
    }
  }

  private static func stanza(
    opening line: ArraySlice<UInt8>, from reader: inout LineReader
  ) throws(SealingError) -> Stanza {
    guard line.starts(with: "-> ".utf8) else { throw reader.malformed("a stanza begins with \"-> \"") }
    let words = line.dropFirst(3).split(separator: 32, omittingEmptySubsequences: false)
    guard words.count <= Stanza.argumentsMax + 1,
      words.allSatisfy({ !$0.isEmpty && $0.allSatisfy { (33...126).contains($0) } })
    else { throw reader.malformed("a stanza argument is empty or not visible ASCII") }
    var letters: [UInt8] = []
    while true {
      let bodyLine = try reader.next()
      guard bodyLine.count <= 64 else { throw reader.malformed("a body line is over 64 columns") }
      letters += bodyLine
      if bodyLine.count < 64 { break }
    }
    guard let body = Base64.decodeUnpadded(letters) else {
      throw reader.malformed("a stanza body is not canonical base64")
    }
    let texts = words.map { String(decoding: $0, as: UTF8.self) }
    return Stanza(type: texts[0], arguments: Array(texts.dropFirst()), body: body)
  }

  /// - Throws: `header.mac` when the header was not made with this file key, or was changed.
  public func verify(fileKey: Secret) throws(SealingError) {
    let expected = Self.mac(of: bytes[..<authenticatedBytes], fileKey: fileKey)
    guard sodium_memcmp(expected, mac, 32) == 0 else {
      throw SealingError(.headerMAC, "the header's MAC does not match: it was changed after sealing")
    }
  }

  private static func mac(of text: ArraySlice<UInt8>, fileKey: Secret) -> [UInt8] {
    let key = deriveKey(from: fileKey, salt: [], info: "header")
    var output = [UInt8](repeating: 0, count: 32)
    text.withUnsafeBytes { text in
      key.withBytes { key in
        output.withUnsafeMutableBytes {
          HMAC.authenticate(key: key, [text], into: $0.baseAddress!)
        }
      }
    }
    return output
  }
}

/// Lines of a header, LF only, with the place for error texts.
private struct LineReader {
  let input: [UInt8]
  var offset = 0
  var line = 0

  func malformed(_ what: String) -> SealingError {
    SealingError(.headerMalformed, "age header line \(line): \(what)")
  }

  mutating func next() throws(SealingError) -> ArraySlice<UInt8> {
    line += 1
    guard let end = input[offset...].firstIndex(of: 10) else {
      throw malformed("the header is cut, or over \(Header.bytesMax) bytes")
    }
    defer { offset = end + 1 }
    return input[offset..<end]
  }
}
