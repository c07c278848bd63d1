// JSON Schema (draft 2020-12 core and validation; draft-07) into a `SchemaProgram`.
//
// Identifiers first: every resource that a document embeds is registered with its anchors. Then schemas are compiled as they
// are reached; a reference compiles what it names, from the bundle and never from the network.

/// Why a schema cannot be enforced.
package struct SchemaError: Error, Equatable, CustomStringConvertible {
  /// Absolute location of the schema.
  package let location: String
  package let reason: String

  package init(location: String, reason: String) {
    self.location = location
    self.reason = reason
  }

  package var description: String { location.isEmpty ? reason : "\(location): \(reason)" }
}

/// The versions of JSON Schema that are understood.
package enum SchemaDialect: Sendable {
  case draft202012, draft07
}

/// Schema documents by URI: what references may name.
package struct SchemaBundle: Sendable {
  private var documents: [String: JSONDocument] = [:]

  /// The meta-schemas are always there.
  package init() {
    for text in Metaschemas.texts {
      do throws(JSONFault) {
        let document = try JSONDocument(Array(text.utf8))
        documents[Self.key(document.root["$id"]!.string!)] = document
      } catch {
        preconditionFailure("a bundled meta-schema is broken")
      }
    }
  }

  /// Adds a document under the URI that references use, and under its own `$id`.
  ///
  /// - Throws: that it is not JSON.
  package mutating func add(_ bytes: [UInt8], uri: String) throws(SchemaError) {
    let document = try Self.parse(bytes, uri)
    documents[Self.key(uri)] = document
    if let id = document.root["$id"]?.string, URIReference(id).scheme != nil { documents[Self.key(id)] = document }
  }

  static func parse(_ bytes: [UInt8], _ uri: String) throws(SchemaError) -> JSONDocument {
    guard bytes.count <= JSONDocument.bytesMax else {
      throw SchemaError(location: uri, reason: "over \(JSONDocument.bytesMax) bytes")
    }
    do throws(JSONFault) {
      return try JSONDocument(bytes)
    } catch {
      throw SchemaError(location: uri, reason: "not JSON: \(error.code.rawValue) at byte \(error.offset)")
    }
  }

  fileprivate static func key(_ uri: String) -> String {
    uri.hasSuffix("#") ? String(uri.dropLast()) : uri
  }

  fileprivate func document(_ uri: String) -> JSONDocument? { documents[uri] }
}

extension SchemaProgram {
  /// Compiles the schema in `bytes`.
  ///
  /// - Parameters:
  ///   - uri: where it stands; its `$id`, where it has one, wins.
  ///   - assertsFormat: `format` is checked (the drafts leave it to the reader; here it is on unless asked otherwise).
  /// - Throws: why it cannot be enforced.
  package static func compile(
    _ bytes: [UInt8], uri: String = "schema:/", bundle: SchemaBundle = SchemaBundle(),
    fallback: SchemaDialect = .draft202012, assertsFormat: Bool = true
  ) throws(SchemaError) -> SchemaProgram {
    let document = try SchemaBundle.parse(bytes, uri)
    var compiler = SchemaCompiler(bundle: bundle, assertsFormat: assertsFormat)
    return try compiler.program(of: document, uri: uri, fallback: fallback)
  }
}

struct SchemaCompiler {
  static let rulesMax = 100_000
  static let depthMax = 200
  static let locationBytesMax = 8192

  private struct Place: Hashable {
    let document: ObjectIdentifier
    let index: Int

    init(_ element: JSONElement) {
      document = ObjectIdentifier(element.document)
      index = element.index
    }
  }

  private struct Resource {
    let base: URIReference
    let root: JSONElement
    let dialect: SchemaDialect
    let validates: Bool
    let assertsFormat: Bool
    var anchors: [String: (element: JSONElement, pointer: String)] = [:]
    var dynamicAnchors: [String: (element: JSONElement, pointer: String)] = [:]
  }

  private let bundle: SchemaBundle
  private let assertsFormat: Bool
  private var resources: [Resource] = []
  private var byURI: [String: Int] = [:]
  private var resourceRoots: [Place: Int] = [:]
  private var compiled: [Place: Int32] = [:]
  // By bytes: Swift holds canonically equivalent strings to be equal.
  private var patternNumbers: [[UInt8]: Int32] = [:]
  private var depth = 0
  private var dynamicNumbers: [String: Int32] = [:]
  private var dynamicNames: [String] = []

  var rules: [SchemaRule] = []
  var objects: [ObjectRule] = []
  var properties: [PropertyRule] = []
  var slots: [Int32] = []
  var keys: [UInt8] = []
  var pairs: [(Int32, Int32)] = []
  var lists: [Int32] = []
  var arrays: [ArrayRule] = []
  var strings: [StringRule] = []
  var numberRules: [NumberRule] = []
  var logic: [LogicRule] = []
  var numbers: [ExactNumber] = []
  var patterns: [Pattern] = []
  var formats: [Format] = []
  var constants: [JSONElement] = []
  var dependents: [[[UInt8]]] = []
  var dynamicTargets: [[Int32: Int32]] = []
  var locations: [String] = []
  var sources: [JSONElement] = []
  var knownNames: Set<String> = []

  init(bundle: SchemaBundle, assertsFormat: Bool) {
    self.bundle = bundle
    self.assertsFormat = assertsFormat
  }

  mutating func program(of document: JSONDocument, uri: String, fallback: SchemaDialect) throws(SchemaError)
    -> SchemaProgram
  {
    let resource = try register(document.root, uri: URIReference(uri), fallback: fallback)
    let root = try compile(document.root, resource, "")
    try compileDynamicTargets()
    try refuseEndlessReferences()
    return SchemaProgram(self, root: root)
  }

  // MARK: identifiers

  /// Makes a resource of a document's root, and of every schema in it that has an identifier of its own.
  private mutating func register(_ root: JSONElement, uri: URIReference, fallback: SchemaDialect) throws(SchemaError)
    -> Int
  {
    var base = uri
    base.fragment = nil
    let resource = try newResource(root, base: base, fallback: (fallback, true, assertsFormat))
    byURI[base.base] = resource
    try walk(root, resource, "", isRoot: true)
    return resourceRoots[Place(root)]!
  }

  private mutating func newResource(
    _ root: JSONElement, base: URIReference, fallback: (SchemaDialect, Bool, Bool)
  ) throws(SchemaError) -> Int {
    var (dialect, validates, asserts) = fallback
    if let named = root["$schema"]?.string { (dialect, validates, asserts) = try self.dialect(named, at: base.base) }
    resources.append(
      Resource(base: base, root: root, dialect: dialect, validates: validates, assertsFormat: asserts))
    resourceRoots[Place(root)] = resources.count - 1
    return resources.count - 1
  }

  private func dialect(_ uri: String, at location: String, depth: Int = 0) throws(SchemaError) -> (
    SchemaDialect, Bool, Bool
  ) {
    let key = SchemaBundle.key(uri)
    switch key {
    case "https://json-schema.org/draft/2020-12/schema": return (.draft202012, true, assertsFormat)
    case "http://json-schema.org/draft-07/schema", "https://json-schema.org/draft-07/schema":
      return (.draft07, true, assertsFormat)
    default: break
    }
    guard depth < 8, let meta = bundle.document(key)?.root else {
      throw SchemaError(location: location, reason: "$schema is \(uri): only draft 2020-12 and draft-07 are understood")
    }
    var (dialect, validates, asserts) =
      try meta["$schema"]?.string.map { text throws(SchemaError) in
        try self.dialect(text, at: location, depth: depth + 1)
      } ?? (.draft202012, true, assertsFormat)
    let prefix = "https://json-schema.org/draft/2020-12/vocab/"
    if let vocabularies = meta["$vocabulary"] {
      let known: Set = [
        "core", "applicator", "unevaluated", "validation", "meta-data", "format-annotation", "format-assertion",
        "content",
      ]
      validates = false
      for (name, isRequired) in vocabularies.members {
        let isKnown = name.hasPrefix(prefix) && known.contains(String(name.dropFirst(prefix.count)))
        guard isKnown || isRequired.bool == false else {
          throw SchemaError(location: location, reason: "the vocabulary \(name) is required and unknown")
        }
        if name == prefix + "validation" { validates = true }
        if name == prefix + "format-assertion" { asserts = true }
      }
    }
    return (dialect, validates, asserts)
  }

  /// Visits the schemas below `element`: their identifiers and anchors.
  private mutating func walk(_ element: JSONElement, _ enclosing: Int, _ at: String, isRoot: Bool = false)
    throws(SchemaError)
  {
    guard element.kind == .object else { return }
    var (resource, pointer) = (enclosing, at)
    let members = element.members
    let dialect = resources[resource].dialect
    let isPlainReference = dialect == .draft07 && members.contains { $0.key == "$ref" }
    if let id = element["$id"]?.string, !isPlainReference {
      let reference = URIReference(id)
      if dialect == .draft07, id.hasPrefix("#") {
        resources[resource].anchors[String(id.dropFirst())] = (element, pointer)
      } else {
        var base = reference.resolved(against: resources[resource].base)
        base.fragment = nil
        if isRoot {
          let old = resources[resource]
          resources[resource] = Resource(
            base: base, root: old.root, dialect: old.dialect, validates: old.validates, assertsFormat: old.assertsFormat
          )
        } else {
          let old = resources[resource]
          resource = try newResource(element, base: base, fallback: (old.dialect, old.validates, old.assertsFormat))
          pointer = ""
        }
        byURI[base.base] = resource
      }
    }
    if resources[resource].dialect == .draft202012 {
      if let name = element["$anchor"]?.string { resources[resource].anchors[name] = (element, pointer) }
      if let name = element["$dynamicAnchor"]?.string {
        resources[resource].anchors[name] = (element, pointer)
        resources[resource].dynamicAnchors[name] = (element, pointer)
      }
    }
    for (key, value) in members {
      let next = "\(pointer)/\(JSONPointer.escape(key))"
      switch Self.holds(key, resources[resource].dialect) {
      case .schema:
        if value.kind == .array, key == "items" {
          for (place, item) in value.items.enumerated() { try walk(item, resource, "\(next)/\(place)") }
        } else {
          try walk(value, resource, next)
        }
      case .list: for (place, item) in value.items.enumerated() { try walk(item, resource, "\(next)/\(place)") }
      case .map: for (name, item) in value.members { try walk(item, resource, "\(next)/\(JSONPointer.escape(name))") }
      case nil: break
      }
    }
  }

  private enum Holds { case schema, list, map }

  private static func holds(_ keyword: String, _ dialect: SchemaDialect) -> Holds? {
    switch keyword {
    case "additionalProperties", "items", "contains", "propertyNames", "not", "if", "then", "else": .schema
    case "unevaluatedItems", "unevaluatedProperties", "contentSchema": dialect == .draft202012 ? .schema : nil
    case "additionalItems": dialect == .draft07 ? .schema : nil
    case "allOf", "anyOf", "oneOf": .list
    case "prefixItems": dialect == .draft202012 ? .list : nil
    case "properties", "patternProperties", "definitions", "dependencies": .map
    case "$defs", "dependentSchemas": dialect == .draft202012 ? .map : nil
    default: nil
    }
  }

  // MARK: references

  private struct Target {
    let element: JSONElement
    let resource: Int
    let pointer: String
    /// The name, when an anchor that is dynamic was named.
    let dynamicName: String?
  }

  private mutating func resolve(_ text: String, from resource: Int, at location: String) throws(SchemaError) -> Target {
    let reference = URIReference(text).resolved(against: resources[resource].base)
    let uri = reference.base
    var number = byURI[uri]
    if number == nil, let document = bundle.document(uri) {
      number = try register(document.root, uri: URIReference(uri), fallback: resources[resource].dialect)
      byURI[uri] = number
    }
    guard let start = number else {
      throw SchemaError(location: location, reason: "\(uri) is not in the bundle; nothing is fetched")
    }
    guard let fragment = reference.decodedFragment, !fragment.isEmpty else {
      return Target(element: resources[start].root, resource: start, pointer: "", dynamicName: nil)
    }
    guard fragment.hasPrefix("/") else {
      if let anchor = resources[start].anchors[fragment] {
        let isDynamic = resources[start].dynamicAnchors[fragment] != nil
        return Target(
          element: anchor.element, resource: start, pointer: anchor.pointer, dynamicName: isDynamic ? fragment : nil)
      }
      throw SchemaError(location: location, reason: "\(uri) has no anchor \(fragment)")
    }
    guard let tokens = JSONPointer.parse(fragment) else {
      throw SchemaError(location: location, reason: "#\(fragment) is malformed")
    }
    var (element, home, pointer) = (resources[start].root, start, "")
    for token in tokens {
      let child =
        element.kind == .array
        ? Int(token).flatMap { $0 < element.items.count ? element.items[$0] : nil } : element[token]
      guard let child else { throw SchemaError(location: location, reason: "\(uri) has nothing at #\(fragment)") }
      element = child
      pointer += "/\(JSONPointer.escape(token))"
      if let own = resourceRoots[Place(element)] { (home, pointer) = (own, "") }
    }
    return Target(element: element, resource: home, pointer: pointer, dynamicName: nil)
  }

  /// For every name that some `$dynamicRef` uses: what each resource means by it.
  private mutating func compileDynamicTargets() throws(SchemaError) {
    var isStable = false
    while !isStable {
      isStable = true
      for (number, name) in dynamicNames.enumerated() {
        if dynamicTargets.count <= number { dynamicTargets.append([:]) }
        for resource in resources.indices {
          guard let anchor = resources[resource].dynamicAnchors[name], dynamicTargets[number][Int32(resource)] == nil
          else { continue }
          dynamicTargets[number][Int32(resource)] = try compile(anchor.element, resource, anchor.pointer)
          isStable = false
        }
      }
      if dynamicTargets.count < dynamicNames.count { isStable = false }
    }
  }

  /// A schema that reaches itself without going into the instance would never end.
  private func refuseEndlessReferences() throws(SchemaError) {
    var state = [UInt8](repeating: 0, count: rules.count)
    for start in rules.indices where state[start] == 0 {
      var stack: [(node: Int, edges: [Int32])] = [(start, inPlace(start))]
      state[start] = 1
      while let top = stack.last {
        guard let next = top.edges.last else {
          state[top.node] = 2
          stack.removeLast()
          continue
        }
        stack[stack.count - 1].edges.removeLast()
        switch state[Int(next)] {
        case 0:
          state[Int(next)] = 1
          stack.append((Int(next), inPlace(Int(next))))
        case 1: throw SchemaError(location: locations[Int(next)], reason: "it refers to itself without end")
        default: break
        }
      }
    }
  }

  private func inPlace(_ index: Int) -> [Int32] {
    let rule = rules[index]
    var edges: [Int32] = []
    if rule.object >= 0 { edges += pairs[objects[Int(rule.object)].dependentSchemas.indices].map(\.1) }
    if rule.logic >= 0 {
      let logic = logic[Int(rule.logic)]
      edges += [logic.ref, logic.dynamicDefault, logic.not, logic.condition, logic.then, logic.otherwise]
      for range in [logic.allOf, logic.anyOf, logic.oneOf] { edges += lists[range.indices] }
    }
    return edges.filter { $0 >= 0 }
  }

  // MARK: schemas

  private mutating func compile(_ element: JSONElement, _ enclosing: Int, _ at: String) throws(SchemaError) -> Int32 {
    let place = Place(element)
    if let known = compiled[place] { return known }
    let own = resourceRoots[place]
    let (resource, pointer) = own.map { ($0, "") } ?? (enclosing, at)
    let location = "\(resources[resource].base.base)#\(pointer)"
    guard rules.count < Self.rulesMax else {
      throw SchemaError(location: location, reason: "over \(Self.rulesMax) schemas")
    }
    guard depth < Self.depthMax else {
      throw SchemaError(location: location, reason: "schemas nested deeper than \(Self.depthMax)")
    }
    guard location.utf8.count <= Self.locationBytesMax else {
      throw SchemaError(location: "", reason: "names that add up to over \(Self.locationBytesMax) bytes")
    }
    depth += 1
    defer { depth -= 1 }
    let index = rules.count
    compiled[place] = Int32(index)
    rules.append(SchemaRule())
    locations.append(location)
    sources.append(element)
    var rule = SchemaRule()
    rule.resource = Int32(resource)
    switch element.kind {
    case .true: break
    case .false:
      rule.isNever = true
      rule.isPlain = false
    case .object: try fill(&rule, element, resource, pointer, location)
    default: throw SchemaError(location: location, reason: "a schema is an object, true or false")
    }
    rules[index] = rule
    return Int32(index)
  }

  private mutating func fill(
    _ rule: inout SchemaRule, _ element: JSONElement, _ resource: Int, _ pointer: String, _ location: String
  ) throws(SchemaError) {
    let members = Dictionary(element.members, uniquingKeysWith: { first, _ in first })
    let dialect = resources[resource].dialect
    let validates = resources[resource].validates
    var logic = LogicRule()
    var object = ObjectRule()
    var array = ArrayRule()
    var string = StringRule()
    var number = NumberRule()
    var (hasLogic, hasObject, hasArray, hasString, hasNumber) = (false, false, false, false, false)

    if let text = members["$ref"] {
      guard let text = text.string else { throw SchemaError(location: location, reason: "$ref is not a string") }
      let target = try resolve(text, from: resource, at: location)
      logic.ref = try compile(target.element, target.resource, target.pointer)
      hasLogic = true
    }
    // Draft-07: whatever stands beside a $ref is ignored.
    if dialect == .draft07, hasLogic {
      rule.logic = push(&self.logic, logic)
      rule.isPlain = false
      return
    }
    if dialect == .draft202012, let text = members["$dynamicRef"] {
      guard let text = text.string else { throw SchemaError(location: location, reason: "$dynamicRef is not a string") }
      let target = try resolve(text, from: resource, at: location)
      let schema = try compile(target.element, target.resource, target.pointer)
      hasLogic = true
      if let name = target.dynamicName {
        logic.dynamicDefault = schema
        if let known = dynamicNumbers[name] {
          logic.dynamicName = known
        } else {
          logic.dynamicName = Int32(dynamicNames.count)
          dynamicNumbers[name] = logic.dynamicName
          dynamicNames.append(name)
        }
      } else if logic.ref < 0 {
        logic.ref = schema
      } else {
        lists += [schema]
        logic.allOf = TableRange(start: Int32(lists.count - 1), count: 1)
      }
    }

    func malformed(_ keyword: String) -> SchemaError {
      SchemaError(location: "\(location)/\(keyword)", reason: "the value of \(keyword) is malformed")
    }
    func count(_ keyword: String) throws(SchemaError) -> UInt32? {
      guard validates, let value = members[keyword] else { return nil }
      guard let count = value.count else { throw malformed(keyword) }
      return count
    }
    func child(_ keyword: String, _ this: inout SchemaCompiler) throws(SchemaError) -> Int32? {
      guard let value = members[keyword] else { return nil }
      return try this.compile(value, resource, "\(pointer)/\(keyword)")
    }
    func children(_ keyword: String, _ this: inout SchemaCompiler) throws(SchemaError) -> TableRange? {
      guard let value = members[keyword] else { return nil }
      guard value.kind == .array, !value.items.isEmpty else { throw malformed(keyword) }
      var compiled: [Int32] = []
      for (place, item) in value.items.enumerated() {
        compiled.append(try this.compile(item, resource, "\(pointer)/\(keyword)/\(place)"))
      }
      defer { this.lists += compiled }
      return TableRange(start: Int32(this.lists.count), count: Int32(compiled.count))
    }
    func named(_ keyword: String) throws(SchemaError) -> [(key: String, value: JSONElement)] {
      guard let value = members[keyword] else { return [] }
      guard value.kind == .object else { throw malformed(keyword) }
      return value.members
    }
    func names(_ value: JSONElement, _ keyword: String) throws(SchemaError) -> [[UInt8]] {
      guard value.kind == .array else { throw malformed(keyword) }
      var names: [[UInt8]] = []
      for item in value.items {
        guard let name = item.stringBytes else { throw malformed(keyword) }
        names.append(name)
      }
      return names
    }

    // Any type.
    if validates, let value = members["type"] { rule.types = try Self.types(value, malformed("type")) }
    if validates, let value = members["const"] {
      logic.constants = TableRange(start: Int32(constants.count), count: 1)
      (logic.hasConstants, logic.isConst) = (true, true)
      constants.append(value)
      hasLogic = true
    }
    if validates, let value = members["enum"] {
      guard value.kind == .array else { throw malformed("enum") }
      if logic.isConst {
        // Both: the enum moves to a schema of its own.
        var inner = LogicRule()
        inner.hasConstants = true
        inner.constants = TableRange(start: Int32(constants.count), count: Int32(value.items.count))
        constants += value.items
        var innerRule = SchemaRule()
        innerRule.isPlain = false
        innerRule.resource = Int32(resource)
        innerRule.logic = push(&self.logic, inner)
        rules.append(innerRule)
        locations.append(location)
        sources.append(element)
        lists += lists[logic.allOf.indices] + [Int32(rules.count - 1)]
        logic.allOf = TableRange(start: Int32(lists.count) - logic.allOf.count - 1, count: logic.allOf.count + 1)
      } else {
        logic.hasConstants = true
        logic.constants = TableRange(start: Int32(constants.count), count: Int32(value.items.count))
        constants += value.items
      }
      hasLogic = true
    }

    // Numbers.
    for (keyword, path) in [
      ("minimum", \NumberRule.minimum), ("maximum", \.maximum), ("exclusiveMinimum", \.exclusiveMinimum),
      ("exclusiveMaximum", \.exclusiveMaximum), ("multipleOf", \.multipleOf),
    ] as [(String, WritableKeyPath<NumberRule, Int32>)] {
      guard validates, let value = members[keyword] else { continue }
      guard let exact = value.number, keyword != "multipleOf" || exact.isDivisor else { throw malformed(keyword) }
      number[keyPath: path] = push(&numbers, exact)
      hasNumber = true
    }

    // Strings.
    if let value = try count("minLength") { (string.scalarsMin, hasString) = (value, true) }
    if let value = try count("maxLength") { (string.scalarsMax, hasString) = (value, true) }
    if validates, let value = members["pattern"] {
      guard let text = value.string else { throw malformed("pattern") }
      string.pattern = try pattern(text, "\(location)/pattern")
      hasString = true
    }
    if resources[resource].assertsFormat, let name = members["format"]?.string, let format = Format(name, dialect) {
      string.format = push(&formats, format)
      hasString = true
    }

    // Arrays.
    if let value = try count("minItems") { (array.itemsMin, hasArray) = (value, true) }
    if let value = try count("maxItems") { (array.itemsMax, hasArray) = (value, true) }
    if validates, let unique = members["uniqueItems"] {
      guard let isUnique = unique.bool else {
        throw SchemaError(location: "\(pointer)/uniqueItems", reason: "uniqueItems is true or false")
      }
      if isUnique { (array.isUnique, hasArray) = (true, true) }
    }
    let prefixKeyword = dialect == .draft07 ? "items" : "prefixItems"
    let restKeyword = dialect == .draft07 ? "additionalItems" : "items"
    if dialect == .draft07, let items = members["items"], items.kind != .array {
      array.items = try compile(items, resource, "\(pointer)/items")
      hasArray = true
    } else {
      if let items = members[prefixKeyword], items.kind == .array, items.items.isEmpty {
        hasArray = true
      } else if let range = try children(prefixKeyword, &self) {
        (array.prefix, hasArray) = (range, true)
      }
      if dialect == .draft202012 || members["items"] != nil, let rest = try child(restKeyword, &self) {
        (array.items, hasArray) = (rest, true)
      }
    }
    if let contains = try child("contains", &self) {
      (array.contains, hasArray) = (contains, true)
      array.containsMarks = dialect == .draft202012
      if dialect == .draft202012 {
        array.containsMin = try count("minContains") ?? 1
        array.containsMax = try count("maxContains") ?? .max
      }
    }

    // Objects.
    if let value = try count("minProperties") { (object.membersMin, hasObject) = (value, true) }
    if let value = try count("maxProperties") { (object.membersMax, hasObject) = (value, true) }
    var table: [(name: [UInt8], schema: Int32, isRequired: Bool)] = []
    for (name, value) in try named("properties") {
      knownNames.insert(name)
      table.append(
        (Array(name.utf8), try compile(value, resource, "\(pointer)/properties/\(JSONPointer.escape(name))"), false))
    }
    if validates, let required = members["required"] {
      for name in try names(required, "required") {
        knownNames.insert(String(decoding: name, as: UTF8.self))
        if let place = table.firstIndex(where: { $0.name == name }) {
          table[place].isRequired = true
        } else {
          table.append((name, -1, true))
        }
      }
    }
    if !table.isEmpty {
      addProperties(table, to: &object)
      hasObject = true
    }
    var found: [(Int32, Int32)] = []
    for (text, value) in try named("patternProperties") {
      let pattern = try pattern(text, "\(location)/patternProperties")
      found.append((pattern, try compile(value, resource, "\(pointer)/patternProperties/\(JSONPointer.escape(text))")))
    }
    if !found.isEmpty { (object.patterns, hasObject) = (add(found), true) }
    if let schema = try child("additionalProperties", &self) { (object.additional, hasObject) = (schema, true) }
    if let schema = try child("propertyNames", &self) { (object.propertyNames, hasObject) = (schema, true) }
    try fillDependents(&object, members, dialect, validates, resource, pointer, malformed)
    hasObject = hasObject || object.dependentRequired.count > 0 || object.dependentSchemas.count > 0

    // Applicators in place.
    if let range = try children("allOf", &self) {
      // Schemas of other keywords may stand there already.
      let all = Array(lists[logic.allOf.indices] + lists[range.indices])
      logic.allOf = TableRange(start: Int32(lists.count), count: Int32(all.count))
      lists += all
      hasLogic = true
    }
    if let range = try children("anyOf", &self) { (logic.anyOf, hasLogic) = (range, true) }
    if let range = try children("oneOf", &self) { (logic.oneOf, hasLogic) = (range, true) }
    if let schema = try child("not", &self) { (logic.not, hasLogic) = (schema, true) }
    if let schema = try child("if", &self) {
      (logic.condition, hasLogic) = (schema, true)
      logic.then = try child("then", &self) ?? -1
      logic.otherwise = try child("else", &self) ?? -1
    }
    if dialect == .draft202012 {
      if let schema = try child("unevaluatedItems", &self) {
        (array.unevaluated, hasArray, rule.hasUnevaluated) = (schema, true, true)
      }
      if let schema = try child("unevaluatedProperties", &self) {
        (object.unevaluated, hasObject, rule.hasUnevaluated) = (schema, true, true)
      }
    }

    if hasLogic { rule.logic = push(&self.logic, logic) }
    if hasObject { rule.object = push(&objects, object) }
    if hasArray { rule.array = push(&arrays, array) }
    if hasString { rule.string = push(&strings, string) }
    if hasNumber { rule.number = push(&numberRules, number) }
    rule.isPlain = !(hasLogic || hasObject || hasArray || hasString || hasNumber)
  }

  private mutating func fillDependents(
    _ object: inout ObjectRule, _ members: [String: JSONElement], _ dialect: SchemaDialect, _ validates: Bool,
    _ resource: Int, _ pointer: String, _ malformed: (String) -> SchemaError
  ) throws(SchemaError) {
    var required: [[[UInt8]]] = []
    var schemas: [(Int32, Int32)] = []
    for keyword in ["dependentRequired", "dependentSchemas", "dependencies"] {
      // 2020-12 split `dependencies` in two and knows it no more.
      guard (keyword == "dependencies") == (dialect == .draft07), let value = members[keyword] else { continue }
      guard value.kind == .object else { throw malformed(keyword) }
      for (name, dependency) in value.members {
        knownNames.insert(name)
        if dependency.kind == .array, keyword != "dependentSchemas" {
          guard validates else { continue }
          var names = [Array(name.utf8)]
          for item in dependency.items {
            guard let other = item.stringBytes else { throw malformed(keyword) }
            names.append(other)
          }
          required.append(names)
        } else {
          let schema = try compile(dependency, resource, "\(pointer)/\(keyword)/\(JSONPointer.escape(name))")
          schemas.append((Int32(dependents.count), schema))
          dependents.append([Array(name.utf8)])
        }
      }
    }
    object.dependentRequired = TableRange(start: Int32(dependents.count), count: Int32(required.count))
    dependents += required
    if !schemas.isEmpty { object.dependentSchemas = add(schemas) }
  }

  private mutating func addProperties(
    _ table: [(name: [UInt8], schema: Int32, isRequired: Bool)], to object: inout ObjectRule
  ) {
    object.properties = TableRange(start: Int32(properties.count), count: Int32(table.count))
    var size = 4
    while size < 2 * table.count { size *= 2 }
    object.slots = Int32(slots.count)
    object.slotMask = Int32(size - 1)
    slots += [Int32](repeating: -1, count: size)
    for (place, (name, schema, isRequired)) in table.enumerated() {
      let word = name.withUnsafeBufferPointer { keyWord($0.baseAddress ?? UnsafePointer(bitPattern: 1)!, $0.count) }
      properties.append(
        PropertyRule(
          word: word, keyStart: Int32(keys.count), keyCount: Int32(name.count), schema: schema, isRequired: isRequired))
      keys += name
      if isRequired { object.requiredCount += 1 }
      var slot = propertySlot(word) & (size - 1)
      while slots[Int(object.slots) + slot] >= 0 { slot = (slot + 1) & (size - 1) }
      slots[Int(object.slots) + slot] = object.properties.start + Int32(place)
    }
  }

  private static func types(_ value: JSONElement, _ error: SchemaError) throws(SchemaError) -> UInt8 {
    let names = value.kind == .array ? value.items.map(\.string) : [value.string]
    var types: UInt8 = 0
    for name in names {
      switch name {
      case "null": types |= SchemaRule.bit(JSONKind.null.rawValue)
      case "boolean": types |= SchemaRule.bit(JSONKind.true.rawValue) | SchemaRule.bit(JSONKind.false.rawValue)
      case "number": types |= SchemaRule.bit(JSONKind.number.rawValue)
      case "integer": types |= SchemaRule.integerBit
      case "string": types |= SchemaRule.bit(JSONKind.string.rawValue)
      case "array": types |= SchemaRule.bit(JSONKind.array.rawValue)
      case "object": types |= SchemaRule.bit(JSONKind.object.rawValue)
      default: throw error
      }
    }
    return types
  }

  private mutating func pattern(_ text: String, _ location: String) throws(SchemaError) -> Int32 {
    if let known = patternNumbers[Array(text.utf8)] { return known }
    do throws(PatternError) {
      let number = push(&patterns, try Pattern(text))
      patternNumbers[Array(text.utf8)] = number
      return number
    } catch {
      throw SchemaError(location: location, reason: "the pattern cannot be enforced: \(error.reason)")
    }
  }

  private mutating func add(_ found: [(Int32, Int32)]) -> TableRange {
    pairs += found
    return TableRange(start: Int32(pairs.count - found.count), count: Int32(found.count))
  }
}

/// Appends; the item's index.
private func push<Item>(_ table: inout [Item], _ item: Item) -> Int32 {
  table.append(item)
  return Int32(table.count - 1)
}

@inline(__always) func propertySlot(_ word: UInt64) -> Int {
  Int(truncatingIfNeeded: (word &* 0x9E37_79B9_7F4A_7C15) >> 40)
}
