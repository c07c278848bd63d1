// A small JSON text held whole: a schema, a constant of one. Data records never pass through here.

/// Parsed bytes and nodes, immutable.
final class JSONDocument: Sendable {
  /// Schemas and bundled documents.
  static let bytesMax = 16 << 20
  let bytes: [UInt8]
  let nodes: [JSONNode]

  /// - Throws: why it is not JSON; a byte order mark is not.
  init(_ bytes: [UInt8]) throws(JSONFault) {
    var parser = JSONParser()
    var nodes: [JSONNode] = []
    var failure: JSONFault?
    bytes.withUnsafeBufferPointer { buffer in
      do throws(JSONFault) {
        try parser.scan(buffer)
        guard try parser.parse(from: 0, limit: buffer.count) else { throw JSONFault(code: .empty, offset: 0) }
        try parser.checkKeys()
        nodes = Array(UnsafeBufferPointer(start: parser.nodes, count: Int(parser.nodes[0].next)))
      } catch {
        failure = error
      }
    }
    if let failure { throw failure }
    self.bytes = bytes
    self.nodes = nodes
  }

  var root: JSONElement { JSONElement(document: self, index: 0) }
}

/// A value in a document.
struct JSONElement: Sendable {
  let document: JSONDocument
  let index: Int

  private var node: JSONNode { document.nodes[index] }
  var kind: JSONKind { node.kind }

  var bool: Bool? {
    switch kind {
    case .true: true
    case .false: false
    default: nil
    }
  }

  /// A string's content, unescaped.
  var stringBytes: [UInt8]? {
    guard kind == .string else { return nil }
    let content = document.bytes[(Int(node.start) + 1)..<(Int(node.end) - 1)]
    guard node.isEscaped else { return Array(content) }
    var output: [UInt8] = []
    content.withUnsafeBufferPointer { unescapeJSON($0, into: &output) }
    return output
  }

  var string: String? { stringBytes.map { String(decoding: $0, as: UTF8.self) } }

  var number: ExactNumber? {
    guard kind == .number else { return nil }
    return document.bytes[Int(node.start)..<Int(node.end)].withUnsafeBufferPointer { ExactNumber($0) }
  }

  /// A whole number that is not negative, 2.0 included; saturated at what a count can reach.
  var count: UInt32? {
    guard let number, number.isInteger, let value = Double(text), value >= 0 else { return nil }
    return value >= Double(UInt32.max) ? UInt32.max : UInt32(value)
  }

  /// As it is spelled.
  var text: String { String(decoding: document.bytes[Int(node.start)..<Int(node.end)], as: UTF8.self) }

  /// Empty unless it is an array.
  var items: [JSONElement] {
    guard kind == .array else { return [] }
    var child = index + 1
    return (0..<node.count).map { _ in
      defer { child = Int(document.nodes[child].next) }
      return JSONElement(document: document, index: child)
    }
  }

  /// In their order; empty unless it is an object.
  var members: [(key: String, value: JSONElement)] {
    guard kind == .object else { return [] }
    var child = index + 1
    return (0..<node.count).map { _ in
      let key = JSONElement(document: document, index: child)
      defer { child = Int(document.nodes[child + 1].next) }
      return (key.string!, JSONElement(document: document, index: child + 1))
    }
  }

  /// By the key's bytes: Swift holds canonically equivalent strings to be equal.
  subscript(_ key: String) -> JSONElement? { members.first { $0.key.utf8.elementsEqual(key.utf8) }?.value }
}

/// RFC 6901.
enum JSONPointer {
  static func escape(_ token: String) -> String {
    token.contains { $0 == "~" || $0 == "/" } ? token.replacing("~", with: "~0").replacing("/", with: "~1") : token
  }

  /// nil when it is malformed.
  static func parse(_ text: String) -> [String]? {
    guard !text.isEmpty else { return [] }
    guard text.hasPrefix("/") else { return nil }
    var tokens: [String] = []
    for token in text.dropFirst().split(separator: "/", omittingEmptySubsequences: false) {
      var output = ""
      var characters = token.unicodeScalars.makeIterator()
      while let scalar = characters.next() {
        guard scalar == "~" else {
          output.unicodeScalars.append(scalar)
          continue
        }
        switch characters.next() {
        case "0": output.append("~")
        case "1": output.append("/")
        default: return nil
        }
      }
      tokens.append(output)
    }
    return tokens
  }
}
