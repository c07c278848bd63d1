// Reads the members of a document by name and type; what nobody asked for is refused at the end.

import Foundation

/// A cursor over one JSON object. `finish()` refuses members that no reader took.
package struct DocumentReader {
  private var members: [String: JSON]
  private let path: String

  package init(_ value: JSON, at path: String) throws(SealingError) {
    guard case .object(let members) = value else {
      throw SealingError(.documentInvalid, "\(path): expected an object")
    }
    self.members = members
    self.path = path
  }

  package func invalid(_ name: String, _ what: String) -> SealingError {
    SealingError(.documentInvalid, "\(path).\(name): \(what)")
  }

  private mutating func required(_ name: String) throws(SealingError) -> JSON {
    guard let value = members.removeValue(forKey: name) else { throw invalid(name, "missing") }
    return value
  }

  package mutating func optional<Value>(
    _ name: String, _ read: (inout DocumentReader, String) throws(SealingError) -> Value
  ) throws(SealingError) -> Value? {
    members[name] == nil ? nil : try read(&self, name)
  }

  package mutating func string(_ name: String, bytesMax: Int = 256) throws(SealingError) -> String {
    guard case .string(let value) = try required(name), (1...bytesMax).contains(value.utf8.count)
    else { throw invalid(name, "expected a string of 1 to \(bytesMax) bytes") }
    return value
  }

  /// A string that prints as one line: no control characters.
  package mutating func line(_ name: String, bytesMax: Int = 256) throws(SealingError) -> String {
    let value = try string(name, bytesMax: bytesMax)
    guard value.isOneLine else { throw invalid(name, "expected one line, without control characters") }
    return value
  }

  package mutating func integer(_ name: String, _ range: ClosedRange<Int64>) throws(SealingError) -> Int64 {
    guard case .integer(let value) = try required(name), range.contains(value) else {
      throw invalid(name, "expected a number from \(range.lowerBound) to \(range.upperBound)")
    }
    return value
  }

  package mutating func bool(_ name: String) throws(SealingError) -> Bool {
    guard case .bool(let value) = try required(name) else { throw invalid(name, "expected true or false") }
    return value
  }

  /// Whatever stands there; nil when nothing does.
  package mutating func any(_ name: String) throws(SealingError) -> JSON? { members.removeValue(forKey: name) }

  /// Names that no reader took yet, in order.
  package var names: [String] { members.keys.sorted() }

  package mutating func object(_ name: String) throws(SealingError) -> DocumentReader {
    try DocumentReader(required(name), at: "\(path).\(name)")
  }

  package mutating func array(_ name: String, countMax: Int) throws(SealingError) -> [JSON] {
    guard case .array(let values) = try required(name), values.count <= countMax else {
      throw invalid(name, "expected an array of at most \(countMax)")
    }
    return values
  }

  package mutating func objects(_ name: String, countMax: Int) throws(SealingError) -> [DocumentReader] {
    var readers: [DocumentReader] = []
    for (index, value) in try array(name, countMax: countMax).enumerated() {
      readers.append(try DocumentReader(value, at: "\(path).\(name)[\(index)]"))
    }
    return readers
  }

  /// Strings that print as one line each.
  package mutating func strings(_ name: String, countMax: Int) throws(SealingError) -> [String] {
    var strings: [String] = []
    for value in try array(name, countMax: countMax) {
      guard case .string(let string) = value, (1...256).contains(string.utf8.count), string.isOneLine else {
        throw invalid(name, "expected lines of 1 to 256 bytes, without control characters")
      }
      strings.append(string)
    }
    return strings
  }

  package mutating func choice<Value: RawRepresentable & CaseIterable>(
    _ name: String, _ type: Value.Type = Value.self
  ) throws(SealingError) -> Value where Value.RawValue == String {
    guard let value = Value(rawValue: try string(name)) else {
      let known = Value.allCases.map(\.rawValue).joined(separator: ", ")
      throw invalid(name, "expected one of: \(known)")
    }
    return value
  }

  package mutating func date(_ name: String) throws(SealingError) -> Date {
    guard let date = Timestamp.parse(try string(name)) else {
      throw invalid(name, "expected a time such as 2026-11-21T10:00:00Z")
    }
    return date
  }

  package mutating func digest(_ name: String) throws(SealingError) -> Digest {
    guard let digest = Digest(hex: try string(name)) else {
      throw invalid(name, "expected 64 lower-case hexadecimal digits")
    }
    return digest
  }

  package mutating func agency(_ name: String) throws(SealingError) -> AgencyID {
    guard let id = AgencyID(try string(name)) else { throw invalid(name, "not an agency id") }
    return id
  }

  package mutating func transfer(_ name: String) throws(SealingError) -> TransferID {
    guard let id = TransferID(try string(name)) else { throw invalid(name, "not a transfer id") }
    return id
  }

  package mutating func version(_ supported: Int64) throws(SealingError) {
    guard case .integer(supported)? = members.removeValue(forKey: "version") else {
      throw invalid("version", "only version \(supported) is understood")
    }
  }

  package func finish() throws(SealingError) {
    if let name = members.keys.min() { throw invalid(name, "unknown member") }
  }
}

extension String {
  /// Neither control characters nor line ends: it cannot be taken for more than it is where it is printed.
  package var isOneLine: Bool {
    !unicodeScalars.contains(where: \.isLineBreaking)
  }

  /// Lines of text, none of which can hide or move another: no control characters but line feeds, and none that turn the direction.
  package var isPrintable: Bool {
    !unicodeScalars.contains { $0 != "\n" && $0.isLineBreaking || $0.turnsText }
  }

  /// The same text with a question mark for what would make it more than one line.
  package var onOneLine: String {
    var text = String.UnicodeScalarView()
    text.append(contentsOf: unicodeScalars.map { $0.isLineBreaking ? "?" : $0 })
    return String(text)
  }
}

extension Unicode.Scalar {
  fileprivate var isLineBreaking: Bool {
    [.control, .lineSeparator, .paragraphSeparator].contains(properties.generalCategory)
  }

  /// Embeddings, overrides and isolates (UAX #9).
  fileprivate var turnsText: Bool { 0x202A...0x202E ~= value || 0x2066...0x2069 ~= value }
}
