// YAML as a strict subset: one document of mappings, sequences and scalars, turned into canonical JSON values.
//
// Refused: anchors, aliases, tags, merge keys, duplicate keys, several documents, null, fractional and negative numbers.
// A quoted scalar is a string; a plain one is true, false, a whole number, or a string. Dates are quoted strings.

import Sealing
import Yams

/// Why a YAML file was not accepted: the place and what is wrong there.
package struct PolicyError: Error, Equatable, Sendable, CustomStringConvertible {
  package let description: String

  package init(_ description: String) { self.description = description }
}

/// Reads YAML in the strict subset.
package enum StrictYAML {
  /// Agreements and configurations are a few kilobytes; more is a mistake.
  package static let bytesMax = 262_144

  /// The value of `text`.
  ///
  /// - Throws: `PolicyError` with line and column.
  package static func parse(_ text: String) throws(PolicyError) -> JSON {
    guard text.utf8.count <= bytesMax else { throw PolicyError("over the limit of \(bytesMax) bytes") }
    let parser: Parser
    let node: Node?
    do {
      // What plain scalars mean is said below; the parser's own rules would compile a regular expression each.
      parser = try Parser(yaml: text, resolver: .basic)
      // Refuses a second document and duplicate keys.
      node = try parser.singleRoot()
    } catch {
      // Without the file itself, which the parser puts behind what is wrong with it.
      throw PolicyError("not YAML: \("\(error)".components(separatedBy: "\nContext:")[0])")
    }
    guard let node else { throw PolicyError("the file is empty") }
    // A node's anchor is a weak reference into the parser.
    defer { withExtendedLifetime(parser) {} }
    return try value(node, depth: 1)
  }

  private static func value(_ node: Node, depth: Int) throws(PolicyError) -> JSON {
    guard depth <= JSON.depthMax else { throw fault(node, "nested deeper than \(JSON.depthMax)") }
    switch node {
    case .scalar(let scalar):
      // Yams gives a quoted scalar the tag of strings.
      try refuse(
        tag: scalar.style == .plain || scalar.tag != Tag(.str, .basic) ? scalar.tag : nil, anchor: scalar.anchor, node)
      return try plain(scalar, node)
    case .sequence(let sequence):
      try refuse(tag: sequence.tag, anchor: sequence.anchor, node)
      var values: [JSON] = []
      for item in sequence { values.append(try value(item, depth: depth + 1)) }
      return .array(values)
    case .mapping(let mapping):
      try refuse(tag: mapping.tag, anchor: mapping.anchor, node)
      var members: [String: JSON] = [:]
      for (key, item) in mapping {
        guard case .scalar(let name) = key, name.string != "<<" else {
          throw fault(key, "a key is a plain name")
        }
        guard members.updateValue(try value(item, depth: depth + 1), forKey: name.string) == nil else {
          throw fault(key, "the key '\(name.string)' stands twice")
        }
      }
      return .object(members)
    case .alias: throw fault(node, "anchors and aliases are not allowed")
    }
  }

  /// An alias stands for a node with an anchor, so refusing anchors refuses both.
  private static func refuse(tag: Tag?, anchor: Anchor?, _ node: Node) throws(PolicyError) {
    guard anchor == nil else { throw fault(node, "anchors and aliases are not allowed") }
    guard tag == nil || tag!.description.isEmpty || tag!.description == "!" else {
      throw fault(node, "tags are not allowed")
    }
  }

  private static func plain(_ scalar: Node.Scalar, _ node: Node) throws(PolicyError) -> JSON {
    guard scalar.style == .plain else { return .string(scalar.string) }
    switch scalar.string {
    case "true": return .bool(true)
    case "false": return .bool(false)
    case "", "~", "null", "Null", "NULL": throw fault(node, "a value is missing")
    case "yes", "no", "on", "off", "True", "False", "Yes", "No", "On", "Off":
      throw fault(node, "write true or false, or quote the word")
    default: break
    }
    if let number = Int64(scalar.string), String(number) == scalar.string {
      guard (0...JSON.integerMax).contains(number) else { throw fault(node, "a number outside 0 … 2^53-1") }
      return .integer(number)
    }
    if let first = scalar.string.utf8.first, (48...57).contains(first) || first == 45 || first == 43 || first == 46,
      Double(scalar.string) != nil
    {
      throw fault(node, "only whole numbers; quote it if it is text")
    }
    return .string(scalar.string)
  }

  private static func fault(_ node: Node, _ what: String) -> PolicyError {
    let place = node.mark.map { "line \($0.line), column \($0.column): " } ?? ""
    return PolicyError(place + what)
  }
}
