// One walk over a record's nodes: the fields that conditions and the subject's id ask for are noted, those that the plan keeps
// are copied as they are spelled, and neighbours that both stay are copied in one piece.

import Glibc

/// The names that a plan mentions, as a tree over member names. Immutable; raw tables, as the walk is hot.
final class JSONFields: @unchecked Sendable {
  // Proof for @unchecked: constants after `init`; what the pointers name is never written again.
  struct Node {
    var firstChild: Int32 = 0
    var children: Int32 = 0
    var slots: Int32 = 0
    var slotMask: Int32 = -1
    /// Something of it goes into the output.
    var isKept = false
    /// Index into `actions`; -1: it only leads to others.
    var action: Int32 = -1
    /// The action is to pass: asked for every field, so not looked up.
    var passes = false
    /// Index of the value for conditions and the subject; -1: nobody asks.
    var capture: Int32 = -1
    /// Something of it is captured.
    var isAsked = false
    var keyStart: Int32 = 0
    var keyCount: Int32 = 0

    /// Goes as it stands, without a look into it.
    var isWhole: Bool { passes && !isAsked }
  }

  let nodes: UnsafePointer<Node>
  let nodeCount: Int
  let slots: UnsafePointer<Int32>
  /// Unescaped.
  let keys: UnsafePointer<UInt8>
  let actions: [RecordPlan.Action]

  init(_ tree: FieldTree) {
    var (nodes, slots, keys, actions): ([Node], [Int32], [UInt8], [RecordPlan.Action]) = ([Node()], [], [], [])
    var waiting = [(tree.root, 0)]
    while !waiting.isEmpty {
      let (source, place) = waiting.removeFirst()
      nodes[place].isKept = source.isKept
      nodes[place].capture = Int32(source.capture ?? -1)
      if let action = source.action {
        nodes[place].action = Int32(actions.count)
        nodes[place].passes = action == .pass
        actions.append(action)
      }
      nodes[place].firstChild = Int32(nodes.count)
      nodes[place].children = Int32(source.children.count)
      guard !source.children.isEmpty else { continue }
      var size = 4
      while size < source.children.count * 2 { size *= 2 }
      nodes[place].slots = Int32(slots.count)
      nodes[place].slotMask = Int32(size - 1)
      let start = slots.count
      slots.append(contentsOf: repeatElement(-1, count: size))
      for (name, child) in source.children {
        let key = Array(name.utf8)
        var node = Node()
        node.keyStart = Int32(keys.count)
        node.keyCount = Int32(key.count)
        keys += key
        var slot = key.withUnsafeBufferPointer { propertySlot(keyWord($0.baseAddress!, $0.count)) } & (size - 1)
        while slots[start + slot] >= 0 { slot = (slot + 1) & (size - 1) }
        slots[start + slot] = Int32(nodes.count)
        waiting.append((child, nodes.count))
        nodes.append(node)
      }
    }
    // Children stand behind their parents.
    for place in nodes.indices.reversed() {
      let children = Int(nodes[place].firstChild)..<Int(nodes[place].firstChild + nodes[place].children)
      nodes[place].isAsked = nodes[place].capture >= 0 || nodes[children].contains(where: \.isAsked)
    }
    nodeCount = nodes.count
    self.nodes = rawTable(nodes)
    self.slots = rawTable(slots)
    self.keys = rawTable(keys)
    self.actions = actions
  }

  deinit {
    nodes.deallocate()
    slots.deallocate()
    keys.deallocate()
  }
}

/// Applies a plan to JSON records. One per worker.
///
/// Mutating throughout, as in `SchemaEvaluator`: a method that only reads would be handed a copy.
struct JSONFilter: ~Copyable {
  private let filter: CompiledFilter
  private let fields: JSONFields
  private let writer: UnsafePointer<JSONFields.Node>
  /// By field: the one that came behind it last time, among its siblings. Records mostly have their members in one order.
  private let following: UnsafeMutablePointer<Int32>
  private let isArray: Bool
  private var captured: [(slot: Int32, node: Int32)] = []
  private var pending = 0..<0
  private var unescaped: [UInt8] = []
  private var id: [UInt8] = []
  private var failed = false

  init(_ filter: CompiledFilter, _ fields: JSONFields, isArray: Bool) {
    self.filter = filter
    self.fields = fields
    self.isArray = isArray
    writer = fields.nodes
    following = .allocate(capacity: fields.nodeCount)
    following.initialize(repeating: -1, count: fields.nodeCount)
  }

  deinit { following.deallocate() }

  /// Decides about a valid record, and writes what goes.
  mutating func take(
    _ base: UnsafePointer<UInt8>, _ nodes: UnsafePointer<JSONNode>, _ output: inout BatchWriter,
    _ outcome: inout BatchOutcome
  ) {
    captured.removeAll(keepingCapacity: true)
    let mark = output.mark
    failed = false
    let writes = filter.aggregate == nil
    if isArray, writes { output.buffer.append(Self.separator) }
    if filter.keepsAll {
      emit(Int(nodes[0].start), Int(nodes[0].end), base, &output)
      walk(0, 0, emits: false, base, nodes, &output)
    } else {
      walk(0, 0, emits: writes, base, nodes, &output)
    }
    flush(base, &output)
    if !isArray, writes { output.buffer.append(10) }
    let verdict = decide(base, nodes)
    if case .goes = verdict, !filter.extracted.isEmpty {
      outcome.rows.append(
        filter.extracted.map { slot in
          guard let node = single(slot, nodes) else { return nil }
          return withText(node, base) { String(decoding: $0, as: UTF8.self) }
        })
      return output.drop(to: mark)
    }
    switch verdict {
    case .goes:
      var entry: GroupEntry?
      if filter.aggregate != nil || !filter.sums.isEmpty {
        entry = filter.aggregate.map { groupEntry($0, base, nodes) } ?? sums(base, nodes)
        guard entry != nil else { return withhold(WithheldCode.error, mark, &output, &outcome) }
      }
      output.end(from: mark, id: filter.subject == nil ? nil : id, entry: entry)
    case .withheld(let code): withhold(code, mark, &output, &outcome)
    case .forbidden(let rule):
      output.drop(to: mark)
      outcome.forbidden = rule
      outcome.isFatal = true
    }
  }

  static let separator = Array(",\n".utf8)

  private func withhold(
    _ code: String, _ mark: BatchWriter.Mark, _ output: inout BatchWriter, _ outcome: inout BatchOutcome
  ) {
    output.drop(to: mark)
    outcome.withheld[code, default: 0] += 1
  }

  // MARK: decisions

  private mutating func decide(_ base: UnsafePointer<UInt8>, _ nodes: UnsafePointer<JSONNode>) -> CompiledFilter.Fate {
    if filter.hasConditions {
      let captured = captured
      let fate = filter.decide { slot, visit in
        for found in captured where found.slot == slot {
          let node = nodes[Int(found.node)]
          if node.kindBits == JSONKind.null.rawValue { continue }
          if !Self.operand(node, base, visit) { return }
        }
      }
      guard case .goes = fate else { return fate }
    }
    if failed { return .withheld(WithheldCode.error) }
    guard let subject = filter.subject else { return .goes }
    // Exactly one id, whatever the record looks like.
    guard let found = only(subject) else { return .withheld(WithheldCode.error) }
    let node = nodes[Int(found)]
    guard
      node.kindBits == JSONKind.string.rawValue || (node.kindBits == JSONKind.number.rawValue && node.isIntegerLiteral)
    else { return .withheld(WithheldCode.error) }
    var canonical: [UInt8] = []
    swap(&canonical, &id)
    let isNumber = node.kindBits == JSONKind.number.rawValue
    let isID = withText(node, base) { SubjectID.canonical($0, isNumber: isNumber, into: &canonical) }
    id = canonical
    return isID ? .goes : .withheld(WithheldCode.error)
  }

  private static func operand(
    _ node: JSONNode, _ base: UnsafePointer<UInt8>, _ visit: (CompiledCondition.Operand) -> Bool
  ) -> Bool {
    let raw = UnsafeBufferPointer(start: base + Int(node.start), count: Int(node.end - node.start))
    switch node.kind {
    case .null: return true
    case .true: return visit(.bool(true))
    case .false: return visit(.bool(false))
    case .number: return visit(.number(raw))
    case .object, .array: return visit(.other)
    case .string:
      let content = UnsafeBufferPointer(rebasing: raw[1..<(raw.count - 1)])
      guard node.isEscaped else { return visit(.text(content)) }
      var text: [UInt8] = []
      unescapeJSON(content, into: &text)
      return text.withUnsafeBufferPointer { visit(.text($0)) }
    }
  }

  /// The text of a string or number.
  private mutating func withText<Result>(
    _ node: JSONNode, _ base: UnsafePointer<UInt8>, _ body: (UnsafeBufferPointer<UInt8>) -> Result
  ) -> Result {
    let raw = UnsafeBufferPointer(start: base + Int(node.start), count: Int(node.end - node.start))
    guard node.kindBits == JSONKind.string.rawValue else { return body(raw) }
    let content = UnsafeBufferPointer(rebasing: raw[1..<(raw.count - 1)])
    guard node.isEscaped else { return body(content) }
    unescapeJSON(content, into: &unescaped)
    return unescaped.withUnsafeBufferPointer { body($0) }
  }

  private mutating func groupEntry(
    _ aggregate: CompiledFilter.CompiledAggregate, _ base: UnsafePointer<UInt8>, _ nodes: UnsafePointer<JSONNode>
  ) -> GroupEntry? {
    var key: [UInt8] = []
    for (name, slot, action) in aggregate.by {
      guard let node = single(slot, nodes), let value = transformed(node, action, base) else { return nil }
      key += (key.isEmpty ? [] : [44]) + JSONText.quoted(Array(name.utf8)) + [58] + value
    }
    var measure: [UInt8] = []
    if aggregate.function != .count {
      guard let node = single(aggregate.measure, nodes), node.kindBits == JSONKind.number.rawValue else { return nil }
      measure = Array(UnsafeBufferPointer(start: base + Int(node.start), count: Int(node.end - node.start)))
      guard DecimalSum(measure) != nil else { return nil }
    }
    // As people are told apart, so that one is not counted twice for a blank, a letter's case or a number's spelling.
    var distinct: [UInt8] = []
    guard let node = single(aggregate.distinct, nodes), node.kind == .string || node.isIntegerLiteral,
      withText(node, base, { SubjectID.canonical($0, isNumber: node.kind == .number, into: &distinct) })
    else { return nil }
    return GroupEntry(key: key, measure: measure, distinct: distinct)
  }

  /// The numbers that totals add up, with commas between.
  private func sums(_ base: UnsafePointer<UInt8>, _ nodes: UnsafePointer<JSONNode>) -> GroupEntry? {
    var texts: [[UInt8]] = []
    for slot in filter.sums {
      guard let node = single(slot, nodes), node.kind == .number else { return nil }
      texts.append(Array(UnsafeBufferPointer(start: base + Int(node.start), count: Int(node.end - node.start))))
      guard DecimalSum(texts[texts.count - 1]) != nil else { return nil }
    }
    return GroupEntry(key: [], measure: Array(texts.joined(separator: [44])), distinct: [])
  }

  /// The node of a field that the record has once; nil when it has none, or several.
  private func only(_ slot: Int32) -> Int32? {
    var node: Int32?
    for found in captured where found.slot == slot {
      guard node == nil else { return nil }
      node = found.node
    }
    return node
  }

  private func single(_ slot: Int32, _ nodes: UnsafePointer<JSONNode>) -> JSONNode? {
    guard let found = only(slot) else { return nil }
    let node = nodes[Int(found)]
    return node.kind == .string || node.kind == .number ? node : nil
  }

  /// A value as its action leaves it, spelled as JSON.
  private mutating func transformed(
    _ node: JSONNode, _ action: RecordPlan.Action, _ base: UnsafePointer<UInt8>
  ) -> [UInt8]? {
    guard case .generalise(let granularity) = action else {
      guard action == .pass else { return nil }
      // Escapes are undone: one value has one spelling.
      if node.kind == .string { return JSONText.quoted(withText(node, base) { Array($0) }) }
      return Array(UnsafeBufferPointer(start: base + Int(node.start), count: Int(node.end - node.start)))
    }
    var coarse: [UInt8] = []
    guard withText(node, base, { Transform.generalise($0, to: granularity, into: &coarse) }) else { return nil }
    return node.kind == .number && granularity == .hour ? coarse : JSONText.quoted(coarse)
  }

  // MARK: the walk

  private mutating func walk(
    _ index: Int, _ place: Int32, emits: Bool, _ base: UnsafePointer<UInt8>, _ nodes: UnsafePointer<JSONNode>,
    _ output: inout BatchWriter
  ) {
    let node = nodes[index]
    let rule = writer[Int(place)]
    if node.kindBits == JSONKind.array.rawValue {
      if emits, rule.passes {
        emit(Int(node.start), Int(node.end), base, &output)
        if rule.capture >= 0 || rule.children > 0 {
          elements(index, place, emits: false, base, nodes, &output)
        }
        return
      }
      return elements(index, place, emits: emits, base, nodes, &output)
    }
    if rule.capture >= 0 { captured.append((rule.capture, Int32(index))) }
    if rule.action >= 0, emits {
      if rule.passes {
        emit(Int(node.start), Int(node.end), base, &output)
      } else {
        write(node, fields.actions[Int(rule.action)], base, &output)
      }
      if rule.children > 0 { walkMembers(index, rule, emits: false, base, nodes, &output) }
      return
    }
    guard node.kindBits == JSONKind.object.rawValue else {
      // Where an object is expected the schema allows nothing else but null.
      if emits {
        if node.kindBits == JSONKind.null.rawValue {
          emit(Int(node.start), Int(node.end), base, &output)
        } else {
          failed = true
        }
      }
      return
    }
    if rule.children > 0 {
      walkMembers(index, rule, emits: emits, base, nodes, &output)
    } else if emits {
      literal(Self.emptyObject, base, &output)
    }
  }

  private static let emptyObject = Array("{}".utf8)

  private mutating func elements(
    _ index: Int, _ place: Int32, emits: Bool, _ base: UnsafePointer<UInt8>, _ nodes: UnsafePointer<JSONNode>,
    _ output: inout BatchWriter
  ) {
    let node = nodes[index]
    if emits { emit(Int(node.start), Int(node.start) + 1, base, &output) }
    var child = index + 1
    for ordinal in 0..<node.count {
      if emits, ordinal > 0 { literal(byte: 44, base, &output) }
      walk(child, place, emits: emits, base, nodes, &output)
      child = Int(nodes[child].next)
    }
    if emits { emit(Int(node.end) - 1, Int(node.end), base, &output) }
  }

  private mutating func walkMembers(
    _ index: Int, _ rule: JSONFields.Node, emits: Bool, _ base: UnsafePointer<UInt8>,
    _ nodes: UnsafePointer<JSONNode>, _ output: inout BatchWriter
  ) {
    let (writer, keys, following) = (writer, fields.keys, following)
    let node = nodes[index]
    // What is copied along and not yet emitted: while kept members are neighbours, what stands between them belongs to it.
    var run = Int(node.start)
    var runEnd = run &+ 1
    var isFirst = true
    var gap = false
    var child = index &+ 1
    var predicted = rule.firstChild
    var last: Int32 = -1
    for _ in 0..<node.count {
      let key = nodes[child]
      let value = child &+ 1
      child = Int(nodes[value].next)
      let name = base + (Int(key.start) &+ 1)
      let count = Int(key.end &- key.start) &- 2
      var found = predicted
      if found < 0 || Int(writer[Int(found)].keyCount) != count || key.isEscaped
        || !isEqual(keys + Int(writer[Int(found)].keyStart), name, count)
      {
        found = member(rule, key, base)
        if found >= 0, last >= 0 { following[Int(last)] = found }
      }
      if found >= 0 {
        last = found
        predicted = following[Int(found)]
      }
      let field = writer + max(0, Int(found))
      guard emits, found >= 0, field.pointee.isKept else {
        if emits, !gap {
          emit(run, runEnd, base, &output)
          gap = true
        }
        if found >= 0, field.pointee.isAsked { walk(value, found, emits: false, base, nodes, &output) }
        continue
      }
      if gap || key.isEscaped {
        if !gap { emit(run, runEnd, base, &output) }
        if !isFirst { literal(byte: 44, base, &output) }
        run = Int(key.start)
        if key.isEscaped {
          let name = UnsafeBufferPointer(start: keys + Int(field.pointee.keyStart), count: Int(field.pointee.keyCount))
          literal(JSONText.quoted(Array(name)) + [58], base, &output)
          run = Int(nodes[value].start)
        }
        gap = false
      }
      isFirst = false
      // The most frequent case, without a call: a whole value that nobody asks about.
      if !field.pointee.isWhole {
        if run < Int(nodes[value].start) { emit(run, Int(nodes[value].start), base, &output) }
        walk(value, found, emits: true, base, nodes, &output)
        run = Int(nodes[value].end)
      }
      runEnd = Int(nodes[value].end)
    }
    guard emits else { return }
    if gap || isFirst {
      if !gap { emit(run, runEnd, base, &output) }
      literal(byte: 125, base, &output)
    } else {
      emit(run, Int(node.end), base, &output)
    }
  }

  /// The field that a key names, or -1.
  private mutating func member(_ rule: JSONFields.Node, _ key: JSONNode, _ base: UnsafePointer<UInt8>) -> Int32 {
    let (bytes, count) = (base + Int(key.start) + 1, Int(key.end - key.start) - 2)
    guard key.isEscaped else { return Self.lookUp(fields, rule, bytes, count) }
    unescapeJSON(UnsafeBufferPointer(start: bytes, count: count), into: &unescaped)
    let (fields, rule) = (fields, rule)
    return unescaped.withUnsafeBufferPointer { Self.lookUp(fields, rule, $0.baseAddress ?? bytes, $0.count) }
  }

  private static func lookUp(
    _ fields: JSONFields, _ rule: JSONFields.Node, _ bytes: UnsafePointer<UInt8>, _ count: Int
  ) -> Int32 {
    guard rule.slotMask >= 0 else { return -1 }
    var slot = propertySlot(keyWord(bytes, count)) & Int(rule.slotMask)
    while true {
      let candidate = fields.slots[Int(rule.slots) + slot]
      if candidate < 0 { return -1 }
      let node = fields.nodes[Int(candidate)]
      if Int(node.keyCount) == count, isEqual(fields.keys + Int(node.keyStart), bytes, count) { return candidate }
      slot = (slot + 1) & Int(rule.slotMask)
    }
  }

  /// A leaf.
  private mutating func write(
    _ node: JSONNode, _ action: RecordPlan.Action, _ base: UnsafePointer<UInt8>, _ output: inout BatchWriter
  ) {
    if node.kindBits == JSONKind.null.rawValue {
      return emit(Int(node.start), Int(node.end), base, &output)
    }
    // What is made coarser is one value; a whole object would come through in parts.
    guard node.kindBits != JSONKind.object.rawValue else {
      failed = true
      return
    }
    switch action {
    case .pass, .drop: break
    case .mask: literal(JSONText.quoted(Transform.mask), base, &output)
    case .constant(let text): literal(JSONText.quoted(Array(text.utf8)), base, &output)
    case .pseudonymise:
      flush(base, &output)
      output.buffer.append(34)
      withText(node, base) { output.pseudonym(of: $0) }
      output.buffer.append(34)
    case .generalise:
      guard node.kindBits == JSONKind.string.rawValue || node.kindBits == JSONKind.number.rawValue,
        let coarse = transformed(node, action, base)
      else {
        failed = true
        return
      }
      literal(coarse, base, &output)
    }
  }

  /// Source bytes; joined with those before when they follow on.
  @inline(__always)
  private mutating func emit(
    _ start: Int, _ end: Int, _ base: UnsafePointer<UInt8>, _ output: inout BatchWriter
  ) {
    if pending.upperBound == start, !pending.isEmpty {
      pending = pending.lowerBound..<end
    } else {
      flush(base, &output)
      pending = start..<end
    }
  }

  private mutating func flush(_ base: UnsafePointer<UInt8>, _ output: inout BatchWriter) {
    if !pending.isEmpty { output.buffer.append(base + pending.lowerBound, pending.count) }
    pending = 0..<0
  }

  private mutating func literal(_ text: [UInt8], _ base: UnsafePointer<UInt8>, _ output: inout BatchWriter) {
    flush(base, &output)
    output.buffer.append(text)
  }

  private mutating func literal(byte: UInt8, _ base: UnsafePointer<UInt8>, _ output: inout BatchWriter) {
    flush(base, &output)
    output.buffer.append(byte)
  }
}

/// JSON spelled.
enum JSONText {
  /// A string literal (RFC 8259 §7).
  static func quoted(_ text: [UInt8]) -> [UInt8] {
    var output: [UInt8] = [34]
    for byte in text {
      switch byte {
      case 34, 92: output += [92, byte]
      case 0..<32:
        output += Array("\\u00".utf8) + [byte < 16 ? 48 : 49, Array("0123456789abcdef".utf8)[Int(byte & 15)]]
      default: output.append(byte)
      }
    }
    return output + [34]
  }
}
