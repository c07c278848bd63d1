// Follows a compiled schema over a record's nodes. One evaluator says yes or no at full speed; asked to explain, it goes on after
// a failure and writes down each.

import Glibc

/// A keyword that was not kept, at a value of the record.
struct SchemaFailure {
  let keyword: String
  let schema: Int32
  let node: Int
  /// Pointer from the schema's root through references (`keywordLocation` of 2020-12 §12.3).
  let trail: String
}

/// One per thread. The record's bytes and nodes are lent for the time of one call.
///
/// Bounds: node indexes come from the parser's own links; table indexes from the compiler. Both are checked in debug builds only.
struct SchemaEvaluator: ~Copyable {
  /// Schemas within schemas, all levels of the record together: bounds the thread's stack.
  static let depthMax = 2_000
  /// Schemas applied to values of one record: a schema can ask for exponential work.
  static let stepsMax = 2_000_000

  private let program: SchemaProgram
  private let rules: UnsafePointer<SchemaRule>
  private let objects: UnsafePointer<ObjectRule>
  private let properties: UnsafePointer<PropertyRule>
  private let slots: UnsafePointer<Int32>
  private let keys: UnsafePointer<UInt8>
  /// By property: the one of the same object that came behind it last time. Members mostly come in one order.
  private let following: UnsafeMutablePointer<Int32>
  private let arrays: UnsafePointer<ArrayRule>
  private let strings: UnsafePointer<StringRule>
  private let numberRules: UnsafePointer<NumberRule>
  private let logics: UnsafePointer<LogicRule>
  private let quick: UnsafePointer<QuickRule>
  private let tracksScope: Bool

  private var base: UnsafePointer<UInt8>
  private var nodes: UnsafeMutablePointer<JSONNode>
  private var depth = 0
  private var scope: [Int32] = []
  private var scratch: [UInt8] = []
  private var explaining = false
  /// Above zero inside an applicator whose parts may fail.
  private var quiet = 0
  private var trail: [String] = []
  private(set) var failures: [SchemaFailure] = []
  /// The record asked for more than `depthMax` or `stepsMax`: the verdict is none.
  private(set) var isExhausted = false
  /// Objects with more than one member that were seen to have distinct keys.
  private(set) var distinct = 0
  private var steps = 0

  init(_ program: SchemaProgram) {
    self.program = program
    rules = program.rules
    objects = program.objects
    properties = program.properties
    slots = program.slots
    keys = program.keys
    arrays = program.arrays
    strings = program.strings
    numberRules = program.numberRules
    logics = program.logic
    quick = UnsafePointer(program.quick)
    tracksScope = program.tracksScope
    base = keys
    nodes = UnsafeMutablePointer(bitPattern: 16)!
    following = .allocate(capacity: program.propertyCount)
    following.initialize(repeating: -1, count: program.propertyCount)
  }

  deinit { following.deallocate() }

  /// Whether the value at node 0 satisfies the schema. Objects whose keys are seen to differ on the way are marked so in their
  /// nodes, and counted in `distinct`.
  mutating func isValid(_ base: UnsafePointer<UInt8>, _ nodes: UnsafeMutablePointer<JSONNode>) -> Bool {
    self.base = base
    self.nodes = nodes
    depth = 0
    isExhausted = false
    steps = 0
    distinct = 0
    return check(program.root, 0, nil)
  }

  /// All failures of the value at node 0, at most `countMax`.
  mutating func explain(
    _ base: UnsafePointer<UInt8>, _ nodes: UnsafeMutablePointer<JSONNode>, countMax: Int
  ) -> [SchemaFailure] {
    explaining = true
    failures = []
    trail = []
    quiet = 0
    defer { explaining = false }
    _ = isValid(base, nodes)
    return Array(failures.prefix(countMax))
  }

  // MARK: failures

  /// Notes a failure; true when the evaluation goes on to find more.
  @inline(never)
  private mutating func fail(_ keyword: StaticString, _ schema: Int32, _ node: Int) -> Bool {
    guard explaining, quiet == 0, failures.count < 10_000 else { return false }
    let steps = trail.isEmpty ? "" : "/" + trail.joined(separator: "/")
    failures.append(
      SchemaFailure(
        keyword: "\(keyword)", schema: schema, node: node,
        trail: keyword.utf8CodeUnitCount == 0 ? steps : "\(steps)/\(keyword)"))
    return true
  }

  /// A schema inside another; the step is only spelled when explaining.
  @inline(__always)
  private mutating func enter(
    _ schema: Int32, _ node: Int, _ marks: Marks?, _ step: Step
  ) -> Bool {
    guard explaining else { return check(schema, node, marks) }
    trail.append(spell(step))
    defer { trail.removeLast() }
    return check(schema, node, marks)
  }

  /// How a schema was reached from another.
  private enum Step {
    case keyword(StaticString)
    case place(StaticString, Int)
    /// By the key at this node.
    case member(Int)
    case pattern(Int32)
  }

  @inline(never)
  private func spell(_ step: Step) -> String {
    switch step {
    case .keyword(let keyword): "\(keyword)"
    case .place(let keyword, let place): "\(keyword)/\(place)"
    case .member(let key): "properties/\(JSONPointer.escape(name(nodes[key])))"
    case .pattern(let pattern): "patternProperties/\(JSONPointer.escape(program.patterns[Int(pattern)].source))"
    }
  }

  private mutating func enterQuietly(_ schema: Int32, _ node: Int, _ marks: Marks?) -> Bool {
    quiet += 1
    defer { quiet -= 1 }
    return check(schema, node, marks)
  }

  // MARK: one schema

  /// Which children of a value a schema has looked at: one bit each (2020-12 core §11.2, §11.3).
  private typealias Marks = UnsafeMutablePointer<UInt64>

  private mutating func check(_ schema: Int32, _ index: Int, _ outer: Marks?) -> Bool {
    let rule = rules[Int(schema)]
    let node = nodes[index]
    var isValid = true
    if rule.types & SchemaRule.bit(node.kindBits) == 0 {
      let isInteger =
        rule.types & SchemaRule.integerBit != 0 && node.kindBits == JSONKind.number.rawValue && isWhole(node)
      if !isInteger {
        isValid = false
        if !fail("type", schema, index) { return false }
      }
    }
    if rule.isPlain { return isValid }
    if rule.isNever {
      _ = fail("", schema, index)
      return false
    }
    // A scalar under plain rules: no scope, no marks, no depth.
    if rule.logic < 0, node.kindBits < JSONKind.array.rawValue {
      return checkKind(rule, schema, index, node, nil) && isValid
    }
    steps += 1
    guard depth < Self.depthMax, steps < Self.stepsMax else {
      isExhausted = true
      return false
    }
    depth += 1
    defer { depth -= 1 }
    if tracksScope { scope.append(rule.resource) }
    defer { if tracksScope { scope.removeLast() } }

    var marks: Marks?
    let words = (node.count + 63) / 64
    if (outer != nil || rule.hasUnevaluated) && node.kindBits >= JSONKind.array.rawValue && words > 0 {
      marks = .allocate(capacity: words)
      marks!.initialize(repeating: 0, count: words)
    }
    defer {
      if let marks {
        if isValid, let outer { for word in 0..<words { outer[word] |= marks[word] } }
        marks.deallocate()
      }
    }

    if !checkKind(rule, schema, index, node, marks) {
      isValid = false
      if !explaining { return false }
    }
    if rule.logic >= 0, !checkLogic(logics[Int(rule.logic)], schema, index, marks) {
      isValid = false
      if !explaining { return false }
    }
    if rule.hasUnevaluated, let marks, !checkUnevaluated(rule, schema, index, node, marks) { isValid = false }
    return isValid
  }

  /// The keywords for the kind of value that this is.
  @inline(__always)
  private mutating func checkKind(
    _ rule: SchemaRule, _ schema: Int32, _ index: Int, _ node: JSONNode, _ marks: Marks?
  ) -> Bool {
    switch node.kindBits {
    case JSONKind.string.rawValue:
      rule.string < 0 || checkString(strings[Int(rule.string)], schema, index, node)
    case JSONKind.number.rawValue:
      rule.number < 0 || checkNumber(numberRules[Int(rule.number)], schema, index, node)
    case JSONKind.object.rawValue:
      rule.object < 0 || checkObject(objects[Int(rule.object)], schema, index, node, marks)
    case JSONKind.array.rawValue:
      rule.array < 0 || checkArray(arrays[Int(rule.array)], schema, index, node, marks)
    default: true
    }
  }

  // MARK: strings and numbers

  @inline(__always)
  private mutating func withContent<Result>(_ node: JSONNode, _ body: (UnsafeBufferPointer<UInt8>) -> Result) -> Result
  {
    let raw = UnsafeBufferPointer(start: base + Int(node.start) + 1, count: Int(node.end - node.start) - 2)
    guard node.isEscaped else { return body(raw) }
    unescapeJSON(raw, into: &scratch)
    return scratch.withUnsafeBufferPointer(body)
  }

  private mutating func checkString(_ rule: StringRule, _ schema: Int32, _ index: Int, _ node: JSONNode) -> Bool {
    var isValid = true
    let program = program
    if rule.scalarsMin > 0 || rule.scalarsMax < .max {
      let bytes = node.end - node.start - 2
      // No scalar has more than four bytes, escaped ones more than twelve: often the bytes decide.
      if node.isEscaped || bytes > rule.scalarsMax || bytes < UInt32(clamping: UInt64(rule.scalarsMin) * 4) {
        let scalars = UInt32(withContent(node) { scalarCount($0) })
        if scalars < rule.scalarsMin {
          isValid = false
          if !fail("minLength", schema, index) { return false }
        }
        if scalars > rule.scalarsMax {
          isValid = false
          if !fail("maxLength", schema, index) { return false }
        }
      }
    }
    if rule.pattern >= 0, !withContent(node, { program.patterns[Int(rule.pattern)].matches($0) }) {
      isValid = false
      if !fail("pattern", schema, index) { return false }
    }
    if rule.format >= 0, !withContent(node, { program.formats[Int(rule.format)].matches($0) }) {
      isValid = false
      if !fail("format", schema, index) { return false }
    }
    return isValid
  }

  private mutating func text(_ node: JSONNode) -> UnsafeBufferPointer<UInt8> {
    UnsafeBufferPointer(start: base + Int(node.start), count: Int(node.end - node.start))
  }

  private mutating func isWhole(_ node: JSONNode) -> Bool { node.isIntegerLiteral || ExactNumber(text(node)).isInteger }

  private mutating func checkNumber(_ rule: NumberRule, _ schema: Int32, _ index: Int, _ node: JSONNode) -> Bool {
    let value = ExactNumber(text(node))
    var isValid = true
    if rule.minimum >= 0, ExactNumber.compare(value, program.numbers[Int(rule.minimum)]) < 0 {
      isValid = false
      if !fail("minimum", schema, index) { return false }
    }
    if rule.maximum >= 0, ExactNumber.compare(value, program.numbers[Int(rule.maximum)]) > 0 {
      isValid = false
      if !fail("maximum", schema, index) { return false }
    }
    if rule.exclusiveMinimum >= 0, ExactNumber.compare(value, program.numbers[Int(rule.exclusiveMinimum)]) <= 0 {
      isValid = false
      if !fail("exclusiveMinimum", schema, index) { return false }
    }
    if rule.exclusiveMaximum >= 0, ExactNumber.compare(value, program.numbers[Int(rule.exclusiveMaximum)]) >= 0 {
      isValid = false
      if !fail("exclusiveMaximum", schema, index) { return false }
    }
    if rule.multipleOf >= 0, !value.isMultiple(of: program.numbers[Int(rule.multipleOf)]) {
      isValid = false
      if !fail("multipleOf", schema, index) { return false }
    }
    return isValid
  }

  // MARK: objects

  private mutating func checkObject(
    _ rule: ObjectRule, _ schema: Int32, _ index: Int, _ node: JSONNode, _ marks: Marks?
  ) -> Bool {
    // Of its own: a call could change those of `self`.
    let (base, nodes, properties, keys, quick, following) = (base, nodes, properties, keys, quick, following)
    var isValid = true
    let count = node.count
    if count < rule.membersMin {
      isValid = false
      if !fail("minProperties", schema, index) { return false }
    }
    if count > rule.membersMax {
      isValid = false
      if !fail("maxProperties", schema, index) { return false }
    }
    var missing = rule.requiredCount
    var predicted = rule.properties.start
    var last: Int32 = -1
    // Bit: a property's place, modulo 64. As many bits as members: all are properties, and no two the same.
    var seen: UInt64 = 0
    var child = index &+ 1
    for ordinal in 0..<count {
      let key = nodes[child]
      let value = child &+ 1
      var isSeen = false
      if rule.slotMask >= 0 {
        let keyBytes = Int(key.end &- key.start) &- 2
        var found = predicted
        if found < 0 || Int(properties[Int(found)].keyCount) != keyBytes || key.isEscaped
          || !isEqual(keys + Int(properties[Int(found)].keyStart), base + (Int(key.start) &+ 1), keyBytes)
        {
          found = property(rule, key)
          if found >= 0, last >= 0 { following[Int(last)] = found }
        }
        if found >= 0 {
          last = found
          seen |= 1 &<< UInt64(truncatingIfNeeded: found)
          predicted = following[Int(found)]
          let entry = properties + Int(found)
          if entry.pointee.isRequired { missing &-= 1 }
          let schema = entry.pointee.schema
          if schema >= 0 {
            isSeen = true
            if !QuickRule.vouches(quick + Int(schema), nodes[value], base),
              !enter(schema, value, nil, .member(child))
            {
              isValid = false
              if !explaining { return false }
            }
          }
        }
      }
      if rule.patterns.count > 0 {
        for place in rule.patterns.indices {
          let (pattern, inner) = program.pairs[place]
          let program = program
          guard withContent(key, { program.patterns[Int(pattern)].matches($0) }) else { continue }
          isSeen = true
          if !enter(inner, value, nil, .pattern(pattern)) {
            isValid = false
            if !explaining { return false }
          }
        }
      }
      if !isSeen, rule.additional >= 0 {
        isSeen = true
        if !enter(rule.additional, value, nil, .keyword("additionalProperties")) {
          isValid = false
          if !explaining { return false }
        }
      }
      if rule.propertyNames >= 0, !enter(rule.propertyNames, child, nil, .keyword("propertyNames")) {
        isValid = false
        if !explaining { return false }
      }
      if isSeen, let marks { marks[ordinal >> 6] |= 1 << UInt64(ordinal & 63) }
      child = Int(nodes[value].next)
    }
    if count > 1, seen.nonzeroBitCount == count, !node.hasDistinctKeys {
      nodes[index].hasDistinctKeys = true
      distinct &+= 1
    }
    if missing > 0 {
      isValid = false
      if !fail("required", schema, index) { return false }
    }
    for place in rule.dependentRequired.indices {
      let names = program.dependents[place]
      guard hasMember(index, names[0]) else { continue }
      if !names.dropFirst().allSatisfy({ hasMember(index, $0) }) {
        isValid = false
        if !fail("dependentRequired", schema, index) { return false }
      }
    }
    for place in rule.dependentSchemas.indices {
      let (trigger, inner) = program.pairs[place]
      guard hasMember(index, program.dependents[Int(trigger)][0]) else { continue }
      if !enter(inner, index, marks, .keyword("dependentSchemas")) {
        isValid = false
        if !explaining { return false }
      }
    }
    return isValid
  }

  /// The property that a key names, or -1.
  ///
  /// Mutating like all of the hot path, though it changes nothing: a method that only reads is handed a copy of this struct.
  private mutating func property(_ rule: ObjectRule, _ key: JSONNode) -> Int32 {
    guard !key.isEscaped else { return escapedProperty(rule, key) }
    return Self.property(rule, base + Int(key.start) + 1, Int(key.end - key.start) - 2, properties, slots, keys)
  }

  private static func property(
    _ rule: ObjectRule, _ bytes: UnsafePointer<UInt8>, _ count: Int, _ properties: UnsafePointer<PropertyRule>,
    _ slots: UnsafePointer<Int32>, _ keys: UnsafePointer<UInt8>
  ) -> Int32 {
    let word = keyWord(bytes, count)
    var slot = propertySlot(word) & Int(rule.slotMask)
    while true {
      let candidate = slots[Int(rule.slots) + slot]
      if candidate < 0 { return -1 }
      let entry = properties[Int(candidate)]
      if entry.word == word, Int(entry.keyCount) == count, isEqual(keys + Int(entry.keyStart), bytes, count) {
        return candidate
      }
      slot = (slot + 1) & Int(rule.slotMask)
    }
  }

  private func escapedProperty(_ rule: ObjectRule, _ key: JSONNode) -> Int32 {
    var unescaped: [UInt8] = []
    unescapeJSON(
      UnsafeBufferPointer(start: base + Int(key.start) + 1, count: Int(key.end - key.start) - 2), into: &unescaped)
    return unescaped.withUnsafeBufferPointer { content in
      Self.property(rule, content.baseAddress ?? base, content.count, properties, slots, keys)
    }
  }

  private mutating func hasMember(_ index: Int, _ wanted: [UInt8]) -> Bool {
    var child = index + 1
    for _ in 0..<nodes[index].count {
      if withContent(nodes[child], { $0.elementsEqual(wanted) }) { return true }
      child = Int(nodes[child + 1].next)
    }
    return false
  }

  private func name(_ key: JSONNode) -> String {
    let raw = UnsafeBufferPointer(start: base + Int(key.start) + 1, count: Int(key.end - key.start) - 2)
    guard key.isEscaped else { return String(decoding: raw, as: UTF8.self) }
    var output: [UInt8] = []
    unescapeJSON(raw, into: &output)
    return String(decoding: output, as: UTF8.self)
  }

  // MARK: arrays

  private mutating func checkArray(
    _ rule: ArrayRule, _ schema: Int32, _ index: Int, _ node: JSONNode, _ marks: Marks?
  ) -> Bool {
    var isValid = true
    let count = node.count
    if count < rule.itemsMin {
      isValid = false
      if !fail("minItems", schema, index) { return false }
    }
    if count > rule.itemsMax {
      isValid = false
      if !fail("maxItems", schema, index) { return false }
    }
    var contained: UInt32 = 0
    var child = index + 1
    for ordinal in 0..<count {
      var isSeen = false
      if ordinal < Int(rule.prefix.count) {
        isSeen = true
        if !enter(program.lists[Int(rule.prefix.start) + ordinal], child, nil, .place("prefixItems", ordinal)) {
          isValid = false
          if !explaining { return false }
        }
      } else if rule.items >= 0 {
        isSeen = true
        if !QuickRule.vouches(quick + Int(rule.items), nodes[child], base),
          !enter(rule.items, child, nil, .keyword("items"))
        {
          isValid = false
          if !explaining { return false }
        }
      }
      if rule.contains >= 0, enterQuietly(rule.contains, child, nil) {
        contained += 1
        isSeen = isSeen || rule.containsMarks
      }
      if isSeen, let marks { marks[ordinal >> 6] |= 1 << UInt64(ordinal & 63) }
      child = Int(nodes[child].next)
    }
    if rule.contains >= 0 {
      if contained < rule.containsMin {
        isValid = false
        if !fail("contains", schema, index) { return false }
      }
      if contained > rule.containsMax {
        isValid = false
        if !fail("maxContains", schema, index) { return false }
      }
    }
    if rule.isUnique, count > 1, !isUnique(index, count) {
      isValid = false
      if !fail("uniqueItems", schema, index) { return false }
    }
    return isValid
  }

  private mutating func isUnique(_ index: Int, _ count: Int) -> Bool {
    let side = JSONSide(base: base, nodes: nodes)
    var child = index + 1
    if count <= 8 {
      for place in 0..<count {
        var earlier = index + 1
        for _ in 0..<place {
          if JSONSide.equal(side, earlier, side, child) { return false }
          earlier = Int(nodes[earlier].next)
        }
        child = Int(nodes[child].next)
      }
      return true
    }
    var seen: [Int: [Int]] = Dictionary(minimumCapacity: count)
    for _ in 0..<count {
      defer { child = Int(nodes[child].next) }
      var hasher = Hasher()
      side.hash(child, into: &hasher)
      let hash = hasher.finalize()
      if let others = seen[hash], others.contains(where: { JSONSide.equal(side, $0, side, child) }) { return false }
      seen[hash, default: []].append(child)
    }
    return true
  }

  // MARK: logic

  private mutating func checkLogic(_ rule: LogicRule, _ schema: Int32, _ index: Int, _ marks: Marks?) -> Bool {
    var isValid = true
    if rule.hasConstants {
      if !matchesConstant(rule, index) {
        isValid = false
        if !(rule.isConst ? fail("const", schema, index) : fail("enum", schema, index)) { return false }
      }
    }
    if rule.ref >= 0, !enter(rule.ref, index, marks, .keyword("$ref")) {
      isValid = false
      if !explaining { return false }
    }
    if rule.dynamicDefault >= 0, !enter(dynamicTarget(rule), index, marks, .keyword("$dynamicRef")) {
      isValid = false
      if !explaining { return false }
    }
    if rule.allOf.count > 0 {
      for (ordinal, place) in rule.allOf.indices.enumerated() {
        if !enter(program.lists[place], index, marks, .place("allOf", ordinal)) {
          isValid = false
          if !explaining { return false }
        }
      }
    }
    if rule.anyOf.count > 0 {
      var isAny = false
      for place in rule.anyOf.indices {
        if enterQuietly(program.lists[place], index, marks) {
          isAny = true
          // Every branch that holds says what it has looked at.
          if marks == nil { break }
        }
      }
      if !isAny {
        isValid = false
        if !fail("anyOf", schema, index) { return false }
      }
    }
    if rule.oneOf.count > 0 {
      var matches = 0
      for place in rule.oneOf.indices where enterQuietly(program.lists[place], index, marks) { matches += 1 }
      if matches != 1 {
        isValid = false
        if !fail("oneOf", schema, index) { return false }
      }
    }
    if rule.not >= 0, enterQuietly(rule.not, index, nil) {
      isValid = false
      if !fail("not", schema, index) { return false }
    }
    if rule.condition >= 0 {
      let holds = enterQuietly(rule.condition, index, marks)
      let next = holds ? rule.then : rule.otherwise
      if next >= 0, !enter(next, index, marks, .keyword(holds ? "then" : "else")) {
        isValid = false
        if !explaining { return false }
      }
    }
    return isValid
  }

  private mutating func matchesConstant(_ rule: LogicRule, _ index: Int) -> Bool {
    let node = nodes[index]
    let program = program
    if node.kindBits == JSONKind.string.rawValue {
      return withContent(node) { content in
        for place in rule.constants.indices {
          guard let constant = program.constantStrings[place], constant.count == content.count else { continue }
          if constant.withUnsafeBufferPointer({
            memcmp($0.baseAddress ?? content.baseAddress!, content.baseAddress!, content.count) == 0
          }) {
            return true
          }
        }
        return false
      }
    }
    let side = JSONSide(base: base, nodes: nodes)
    for place in rule.constants.indices {
      let constant = program.constants[place]
      let isEqual = constant.document.bytes.withUnsafeBufferPointer { bytes in
        constant.document.nodes.withUnsafeBufferPointer { constants in
          JSONSide.equal(side, index, JSONSide(base: bytes.baseAddress!, nodes: constants.baseAddress!), constant.index)
        }
      }
      if isEqual { return true }
    }
    return false
  }

  /// The outermost resource of the dynamic scope that has the anchor (2020-12 core §8.2.3.2).
  private mutating func dynamicTarget(_ rule: LogicRule) -> Int32 {
    guard rule.dynamicName >= 0 else { return rule.dynamicDefault }
    let targets = program.dynamicTargets[Int(rule.dynamicName)]
    for resource in scope {
      if let target = targets[resource] { return target }
    }
    return rule.dynamicDefault
  }

  private mutating func checkUnevaluated(
    _ rule: SchemaRule, _ schema: Int32, _ index: Int, _ node: JSONNode, _ marks: Marks
  ) -> Bool {
    let isObject = node.kindBits == JSONKind.object.rawValue
    let inner =
      isObject
      ? (rule.object >= 0 ? objects[Int(rule.object)].unevaluated : -1)
      : (rule.array >= 0 ? arrays[Int(rule.array)].unevaluated : -1)
    guard inner >= 0 else { return true }
    var isValid = true
    var child = index + 1
    for ordinal in 0..<node.count {
      let value = isObject ? child + 1 : child
      if marks[ordinal >> 6] >> UInt64(ordinal & 63) & 1 == 0 {
        marks[ordinal >> 6] |= 1 << UInt64(ordinal & 63)
        if !enter(inner, value, nil, .keyword(isObject ? "unevaluatedProperties" : "unevaluatedItems")) {
          isValid = false
          if !explaining { return false }
        }
      }
      child = Int(nodes[value].next)
    }
    return isValid
  }
}

/// One of two texts whose values are compared: numbers by value, objects without regard to order (2020-12 core §4.2.2).
struct JSONSide {
  let base: UnsafePointer<UInt8>
  let nodes: UnsafePointer<JSONNode>

  private func content(_ node: JSONNode) -> [UInt8] {
    let raw = UnsafeBufferPointer(start: base + Int(node.start) + 1, count: Int(node.end - node.start) - 2)
    guard node.isEscaped else { return Array(raw) }
    var output: [UInt8] = []
    unescapeJSON(raw, into: &output)
    return output
  }

  private func number(_ node: JSONNode) -> ExactNumber {
    ExactNumber(UnsafeBufferPointer(start: base + Int(node.start), count: Int(node.end - node.start)))
  }

  static func equal(_ a: JSONSide, _ i: Int, _ b: JSONSide, _ j: Int) -> Bool {
    let (x, y) = (a.nodes[i], b.nodes[j])
    guard x.kindBits == y.kindBits, x.count == y.count else { return false }
    switch x.kind {
    case .null, .true, .false: return true
    case .number: return ExactNumber.compare(a.number(x), b.number(y)) == 0
    case .string:
      if !x.isEscaped, !y.isEscaped {
        return x.end - x.start == y.end - y.start
          && memcmp(a.base + Int(x.start), b.base + Int(y.start), Int(x.end - x.start)) == 0
      }
      return a.content(x) == b.content(y)
    case .array:
      var (p, q) = (i + 1, j + 1)
      for _ in 0..<x.count {
        guard equal(a, p, b, q) else { return false }
        (p, q) = (Int(a.nodes[p].next), Int(b.nodes[q].next))
      }
      return true
    case .object:
      var values: [[UInt8]: Int] = [:]
      var q = j + 1
      for _ in 0..<y.count {
        values[b.content(b.nodes[q])] = q + 1
        q = Int(b.nodes[q + 1].next)
      }
      var p = i + 1
      for _ in 0..<x.count {
        guard let other = values[a.content(a.nodes[p])], equal(a, p + 1, b, other) else { return false }
        p = Int(a.nodes[p + 1].next)
      }
      return true
    }
  }

  func hash(_ index: Int, into hasher: inout Hasher) {
    let node = nodes[index]
    hasher.combine(node.kindBits)
    switch node.kind {
    case .null, .true, .false: break
    case .number: number(node).hash(into: &hasher)
    case .string: hasher.combine(content(node))
    case .array:
      var child = index + 1
      for _ in 0..<node.count {
        hash(child, into: &hasher)
        child = Int(nodes[child].next)
      }
    case .object:
      // Order does not count: the members' hashes are added.
      var sum = 0
      var child = index + 1
      for _ in 0..<node.count {
        var member = Hasher()
        member.combine(content(nodes[child]))
        hash(child + 1, into: &member)
        sum &+= member.finalize()
        child = Int(nodes[child + 1].next)
      }
      hasher.combine(sum)
    }
  }
}
