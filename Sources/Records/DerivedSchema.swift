// The schema that filtered records keep, derived from the schema of the input and the plan.
//
// The proof is by construction: on the way from a record's root to the plan's fields the schema may use only plain objects and
// arrays (properties, required, additionalProperties, items, local references). There, leaving members out keeps all that the
// derived schema still asks. Fields that pass keep their own schema, whatever it says. Everything else is refused.

import Foundation

enum DerivedSchema {
  private static let annotations: Set<String> = [
    "$schema", "$id", "$comment", "title", "description", "examples", "default", "deprecated", "readOnly", "writeOnly",
    "$defs", "definitions", "$anchor",
  ]
  private static let depthMax = 64

  // MARK: JSON

  static func json(_ bytes: [UInt8], _ plan: RecordPlan, _ tree: FieldTree) throws(SchemaError) -> [UInt8] {
    guard !plan.fields.isEmpty else { return bytes }
    let root = try SchemaBundle.parse(bytes, "schema").root
    let resolver = Spine(root: root)
    guard root.kind == .object else { throw SchemaError(location: "schema", reason: "is no object") }
    var parts: [String] = []
    for keyword in ["$schema", "$id"] {
      if let value = root[keyword] { parts.append("\(quoted(keyword)):\(value.text)") }
    }
    if let aggregate = plan.aggregate {
      parts += try resolver.aggregate(aggregate, plan, tree)
    } else {
      parts += try resolver.derive(root, tree.root, at: "", depth: 0)
    }
    for keyword in ["$defs", "definitions"] {
      if let value = root[keyword] { parts.append("\(quoted(keyword)):\(value.text)") }
    }
    return Array("{\(parts.joined(separator: ","))}".utf8)
  }

  static func quoted(_ text: String) -> String { String(decoding: JSONText.quoted(Array(text.utf8)), as: UTF8.self) }

  private struct Spine {
    let root: JSONElement

    /// Keywords of the derived schema of one place.
    func derive(_ element: JSONElement, _ node: FieldTree.Node, at place: String, depth: Int) throws(SchemaError)
      -> [String]
    {
      let element = try plain(element, at: place)
      guard depth < DerivedSchema.depthMax else { throw refused(place, "nested too deep") }
      if let action = node.action { return try leaf(element, action, at: place) }
      let types = try self.types(element, at: place)
      guard types.isSubset(of: ["object", "array", "null"]) else {
        throw refused(place, "fields within it are named, but it may be a \(types.sorted().joined(separator: " or "))")
      }
      var parts = ["\"type\":[\(types.sorted().map { quoted($0) }.joined(separator: ","))]"]
      if types.contains("object") {
        var properties: [String] = []
        var kept: Set<String> = []
        for (name, child) in node.children where child.isKept {
          let inner = "\(place)/\(name)"
          guard let schema = element["properties"]?[name] else {
            throw refused(inner, "the schema has no such property")
          }
          properties.append(
            "\(quoted(name)):{\(try derive(schema, child, at: inner, depth: depth + 1).joined(separator: ","))}")
          kept.insert(name)
        }
        parts.append("\"properties\":{\(properties.joined(separator: ","))}")
        let required = (element["required"]?.items ?? []).compactMap(\.string).filter { kept.contains($0) }
        if !required.isEmpty { parts.append("\"required\":[\(required.map { quoted($0) }.joined(separator: ","))]") }
        parts.append("\"additionalProperties\":false")
      }
      if types.contains("array") {
        guard let items = element["items"], items.kind == .object else {
          throw refused(place, "its items have no one schema")
        }
        parts.append("\"items\":{\(try derive(items, node, at: place, depth: depth + 1).joined(separator: ","))}")
        parts += ["minItems", "maxItems"].compactMap { keyword in
          element[keyword].map { "\(quoted(keyword)):\($0.text)" }
        }
      }
      return parts
    }

    private func leaf(_ element: JSONElement, _ action: RecordPlan.Action, at place: String) throws(SchemaError)
      -> [String]
    {
      if action == .pass {
        return element.members.filter { $0.key != "$schema" && $0.key != "$id" }.map {
          "\(quoted($0.key)):\($0.value.text)"
        }
      }
      let types = try self.types(element, at: place)
      guard !types.contains("object") else {
        throw refused(place, "only single values and lists of them can be transformed")
      }
      var parts: [String] = []
      var output = types.isDisjoint(with: ["array", "null"]) ? [] : types.intersection(["array", "null"])
      output.insert("string")
      if case .generalise(.hour) = action, !types.isDisjoint(with: ["number", "integer"]) { output.insert("integer") }
      parts.append("\"type\":[\(output.sorted().map { quoted($0) }.joined(separator: ","))]")
      if let pattern = Transform.pattern(action) { parts.append("\"pattern\":\(quoted(pattern))") }
      if case .constant(let text) = action, !types.contains("array") {
        let values = [quoted(text)] + (types.contains("null") ? ["null"] : [])
        parts.append("\"enum\":[\(values.joined(separator: ","))]")
      }
      if types.contains("array") {
        guard let items = element["items"], items.kind == .object else {
          throw refused(place, "its items have no one schema")
        }
        parts.append("\"items\":{\(try leaf(try plain(items, at: place), action, at: place).joined(separator: ","))}")
      }
      return parts
    }

    func aggregate(
      _ aggregate: RecordPlan.Aggregate, _ plan: RecordPlan, _ tree: FieldTree
    ) throws(SchemaError) -> [String] {
      var properties: [String] = []
      var names: [String] = []
      for name in aggregate.by {
        var (element, node) = (root, tree.root)
        for step in try FieldPath(name, in: .json).steps {
          guard let next = try plain(element, at: name)["properties"]?[step],
            let child = node.children.first(where: { $0.name == step })
          else { throw refused(name, "the schema has no such property") }
          (element, node) = (next, child.node)
        }
        let action = plan.fields.first { $0.name == name }?.action ?? .pass
        properties.append(
          "\(quoted(name)):{\(try leaf(try plain(element, at: name), action, at: name).joined(separator: ","))}")
        names.append(name)
      }
      properties.append(
        "\(quoted(aggregate.measure)):{\"type\":\"\(aggregate.function == .count ? "integer" : "number")\"}")
      names.append(aggregate.measure)
      if let size = aggregate.distinctAs {
        properties.append("\(quoted(size)):{\"type\":\"integer\",\"minimum\":\(aggregate.groupSizeMin)}")
        names.append(size)
      }
      return [
        "\"type\":\"object\"", "\"properties\":{\(properties.joined(separator: ","))}",
        "\"required\":[\(names.map { quoted($0) }.joined(separator: ","))]", "\"additionalProperties\":false",
      ]
    }

    /// Follows local references, and refuses keywords that leaving members out could break.
    private func plain(_ element: JSONElement, at place: String) throws(SchemaError) -> JSONElement {
      var element = element
      for _ in 0..<DerivedSchema.depthMax {
        guard element.kind == .object else { throw refused(place, "its schema is no object") }
        guard let reference = element["$ref"]?.string else { return element }
        guard element.members.allSatisfy({ $0.key == "$ref" || DerivedSchema.annotations.contains($0.key) }),
          reference.hasPrefix("#"), let steps = JSONPointer.parse(String(reference.dropFirst()))
        else { throw refused(place, "$ref \(reference): only a plain reference within the file can be filtered") }
        element = root
        for step in steps {
          guard let next = element[step] else { throw refused(place, "$ref \(reference) leads nowhere") }
          element = next
        }
      }
      throw refused(place, "a chain of references without end")
    }

    private func types(_ element: JSONElement, at place: String) throws(SchemaError) -> Set<String> {
      guard let type = element["type"] else { throw refused(place, "its schema names no type") }
      let types = Set(type.kind == .array ? type.items.compactMap(\.string) : [type.string ?? ""])
      if types.isDisjoint(with: ["object", "array"]) { return types }
      let known = DerivedSchema.annotations.union([
        "type", "properties", "required", "additionalProperties", "items", "minItems", "maxItems",
      ])
      let scalars: Set<String> = ["string", "number", "integer", "boolean"]
      guard types.isDisjoint(with: scalars) else { return types }
      for (keyword, value) in element.members where !known.contains(keyword) {
        // What is closed stays closed: the derived schema says additionalProperties: false.
        if keyword == "unevaluatedProperties", value.bool == false { continue }
        throw refused(place, "\(keyword) on the way to a field cannot be kept when members are left out")
      }
      return types
    }

    private func refused(_ place: String, _ reason: String) -> SchemaError {
      SchemaError(location: place.isEmpty ? "schema" : place, reason: reason)
    }
  }

  // MARK: CSV

  static func csv(_ bytes: [UInt8], _ plan: RecordPlan, _ table: TableSchema) throws(SchemaError) -> [UInt8] {
    guard !plan.fields.isEmpty else { return bytes }
    let root = try SchemaBundle.parse(bytes, "schema").root
    let columns = Dictionary(
      (root["fields"]?.items ?? []).map { ($0["name"]?.string ?? "", $0) }, uniquingKeysWith: { first, _ in first })
    var fields: [String] = []
    var passed: Set<String> = []
    func field(_ name: String, _ action: RecordPlan.Action) throws(SchemaError) -> String {
      guard let column = columns[name] else {
        throw SchemaError(location: name, reason: "the schema has no such column")
      }
      if action == .pass {
        passed.insert(name)
        return column.text
      }
      var constraints = ["\"required\":\(column["constraints"]?["required"]?.bool ?? false)"]
      if case .constant(let text) = action { constraints.append("\"enum\":[\(quoted(text))]") }
      if let pattern = Transform.pattern(action) { constraints.append("\"pattern\":\(quoted(pattern))") }
      return "{\"name\":\(quoted(name)),\"type\":\"string\",\"constraints\":{\(constraints.joined(separator: ","))}}"
    }
    if let aggregate = plan.aggregate {
      for name in aggregate.by {
        fields.append(try field(name, plan.fields.first { $0.name == name }?.action ?? .pass))
      }
      fields.append("{\"name\":\(quoted(aggregate.measure)),\"type\":\"number\",\"constraints\":{\"required\":true}}")
      if let size = aggregate.distinctAs {
        fields.append(
          "{\"name\":\(quoted(size)),\"type\":\"integer\",\"constraints\":{\"required\":true,\"minimum\":\(aggregate.groupSizeMin)}}"
        )
      }
      passed = []
    } else {
      // In the order of the file.
      for column in table.columns {
        guard let wanted = plan.fields.first(where: { $0.name == column.name }), wanted.action != .drop else {
          continue
        }
        fields.append(try field(column.name, wanted.action))
      }
    }
    var parts = ["\"fields\":[\(fields.joined(separator: ","))]"]
    if let missing = root["missingValues"] { parts.append("\"missingValues\":\(missing.text)") }
    if let key = root["primaryKey"] {
      let names = key.kind == .array ? key.items.compactMap(\.string) : [key.string ?? ""]
      if Set(names).isSubset(of: passed) { parts.append("\"primaryKey\":\(key.text)") }
    }
    let foreign = (root["foreignKeys"]?.items ?? []).filter { key in
      let own = key["fields"].map { $0.kind == .array ? $0.items.compactMap(\.string) : [$0.string ?? ""] } ?? []
      return Set(own).isSubset(of: passed)
    }
    if !foreign.isEmpty { parts.append("\"foreignKeys\":[\(foreign.map(\.text).joined(separator: ","))]") }
    return Array("{\(parts.joined(separator: ","))}".utf8)
  }
}
