// A plan compiled for one format: the fields' places, and the schema that the output keeps.

import Foundation

/// A plan that was proved to be possible. Immutable.
package final class RecordFilter: Sendable {
  package let plan: RecordPlan
  /// What each record of the output is valid against: the input's schema without the fields that are dropped, and with those
  /// that are transformed as they become. XML keeps its schema; there the output is validated as it is written.
  package let derivedSchema: [UInt8]
  let layout: RecordLayout
  let tree: FieldTree
  let jsonFields: JSONFields?
  let csvColumns: CSVColumns?
  /// What stands before and after the records.
  let head: [UInt8]
  let tail: [UInt8]
  /// Members between the records' array and the end of the object that holds it.
  var totals: [RecordPlan.Total] { plan.totals }
  /// Where the records stand.
  let place: Place
  let delimiter: UInt8

  enum Place: Sendable {
    case file
    /// At a JSON pointer.
    case json(String)
  }

  /// - Parameters:
  ///   - schema: the text that `format` was compiled from.
  /// - Throws: `SchemaError` naming the field or the place of the schema that makes it impossible.
  package init(_ plan: RecordPlan, _ format: RecordFormat, schema: [UInt8]) throws(SchemaError) {
    self.plan = plan
    guard plan.fields.count <= RecordPlan.fieldsMax else {
      throw SchemaError(location: "fields", reason: "over \(RecordPlan.fieldsMax) fields")
    }
    guard plan.include.count + plan.exclude.count + plan.forbid.count <= RecordPlan.conditionsMax else {
      throw SchemaError(location: "records", reason: "over \(RecordPlan.conditionsMax) conditions")
    }
    let layout: RecordLayout =
      switch format {
      case .ndjson, .json: .json
      case .csv: .csv
      case .xml: .xml
      }
    self.layout = layout
    tree = try FieldTree(plan, layout)
    guard plan.aggregate == nil || plan.totals.isEmpty else {
      throw SchemaError(location: "totals", reason: "totals are of records, and records that are added up do not go")
    }
    if plan.aggregate != nil || !plan.totals.isEmpty {
      guard layout == .json || (layout == .csv && plan.totals.isEmpty) else {
        throw SchemaError(location: "records", reason: "aggregates are for csv, ndjson and json, totals for json")
      }
    }
    switch format {
    case .ndjson, .json:
      jsonFields = JSONFields(tree)
      csvColumns = nil
      derivedSchema = try DerivedSchema.json(schema, plan, tree)
      var (head, tail) = ("", "")
      if case .json(_, let pointer) = format {
        for step in JSONPointer.parse(pointer) ?? [] {
          guard Int(step) == nil else {
            throw SchemaError(location: pointer, reason: "an array within an array cannot be filtered")
          }
          head += "{" + String(decoding: JSONText.quoted(Array(step.utf8)), as: UTF8.self) + ":"
          tail = "}" + tail
        }
        guard plan.totals.isEmpty || !tail.isEmpty else {
          throw SchemaError(location: "totals", reason: "a top-level array has nothing beside it")
        }
        head += "[\n"
        tail = "\n]" + tail + "\n"
      } else if !plan.totals.isEmpty {
        throw SchemaError(location: "totals", reason: "NDJSON has nothing beside its records")
      }
      (self.head, self.tail) = (Array(head.utf8), Array(tail.utf8))
      if case .json(_, let pointer) = format { place = .json(pointer) } else { place = .file }
      delimiter = 0
    case .csv(let table, let dialect):
      let columns = try CSVColumns(plan, table, tree)
      csvColumns = columns
      jsonFields = nil
      derivedSchema = try DerivedSchema.csv(schema, plan, table)
      head = CSVColumns.header(columns.outputNames, dialect.delimiter)
      tail = []
      place = .file
      delimiter = dialect.delimiter
    case .xml:
      (jsonFields, csvColumns) = (nil, nil)
      guard plan.onInvalid == .refuse else {
        throw SchemaError(location: "onInvalid", reason: "XML records cannot be set aside")
      }
      derivedSchema = schema
      (head, tail) = ([], [])
      place = .file
      delimiter = 0
    }
  }

  /// Whether the output is the input.
  package var keepsAll: Bool { plan.fields.isEmpty && plan.aggregate == nil }
}

/// The fields that a plan mentions, as a tree of names.
final class FieldTree: Sendable {
  final class Node: @unchecked Sendable {
    // Proof for @unchecked: changed only while its tree is built.
    fileprivate(set) var children: [(name: String, node: Node)] = []
    fileprivate(set) var action: RecordPlan.Action?
    fileprivate(set) var isKept = false
    fileprivate(set) var capture: Int?

    func child(named name: String) -> Node? {
      children.first { $0.name.utf8.elementsEqual(name.utf8) }?.node
    }

    fileprivate func child(_ name: String) -> Node {
      if let found = child(named: name) { return found }
      let node = Node()
      children.append((name, node))
      return node
    }
  }

  let root = Node()
  /// Names by capture.
  let captures: [String]
  /// XML: paths from the document's root that go beside the records, `/visits/sent` or `/visits/@version`.
  let outside: Set<String>

  init(_ plan: RecordPlan, _ layout: RecordLayout) throws(SchemaError) {
    var captures: [String] = []
    var outside: Set<String> = []
    for field in plan.fields {
      if layout == .xml, field.name.hasPrefix("/") {
        guard field.action == .pass || field.action == .drop else {
          throw SchemaError(location: "fields", reason: "\(field.name): outside of records values pass or stay")
        }
        if field.action == .pass { outside.insert(field.name) }
        continue
      }
      let path = try FieldPath(field.name, in: layout)
      var node = root
      for step in path.steps {
        guard node.action == nil else {
          throw SchemaError(location: "fields", reason: "\(field.name) lies in a field that is named as a whole")
        }
        if field.action != .drop { node.isKept = true }
        node = node.child(step)
      }
      guard node.action == nil, node.children.isEmpty else {
        throw SchemaError(location: "fields", reason: "\(field.name) stands twice, or names fields within it stand too")
      }
      node.action = field.action
      node.isKept = field.action != .drop
    }
    var asked = plan.include.map(\.field) + plan.exclude.map(\.field) + plan.forbid.map(\.condition.field)
    asked += plan.fields.filter { $0.isRequired && $0.action != .drop }.map(\.name)
    asked += [plan.subject].compactMap { $0 } + plan.totals.compactMap(\.field) + plan.extracted
    if let aggregate = plan.aggregate { asked += aggregate.by + [aggregate.measure, aggregate.distinct] }
    for name in asked where !captures.contains(name) {
      var node = root
      for step in try FieldPath(name, in: layout).steps { node = node.child(step) }
      // "a.b" and "/a/b" may be the same place; the first name keeps it.
      if node.capture == nil {
        node.capture = captures.count
        captures.append(name)
      } else {
        throw SchemaError(
          location: name, reason: "the field has two spellings: use \(captures[node.capture!]) throughout")
      }
    }
    self.captures = captures
    self.outside = outside
  }

  func slot(_ name: String) -> Int32 { Int32(captures.firstIndex(of: name) ?? -1) }
}

/// A filter at one instant: what workers ask for every record.
final class CompiledFilter: Sendable {
  enum Fate {
    case goes
    case withheld(String)
    case forbidden(String)
  }

  struct CompiledAggregate: Sendable {
    let by: [(name: String, slot: Int32, action: RecordPlan.Action)]
    let measure: Int32
    let function: RecordPlan.Aggregate.Function
    let distinct: Int32
  }

  private enum Purpose: Sendable {
    case include(String)
    case exclude(String)
    case forbid(String)
  }

  let filter: RecordFilter
  let gate: RecordGate?
  let keepsAll: Bool
  let subject: Int32?
  let aggregate: CompiledAggregate?
  let sums: [Int32]
  let extracted: [Int32]
  private let conditions: [(slot: Int32, condition: CompiledCondition, purpose: Purpose)]
  private let required: [(slot: Int32, condition: CompiledCondition)]

  init(_ filter: RecordFilter, _ gate: RecordGate?, now: Date) {
    self.filter = filter
    self.gate = gate
    let (plan, tree) = (filter.plan, filter.tree)
    keepsAll = filter.keepsAll
    subject = plan.subject.map { tree.slot($0) }
    sums = plan.totals.compactMap(\.field).map { tree.slot($0) }
    extracted = plan.extracted.map { tree.slot($0) }
    aggregate = plan.aggregate.map { aggregate in
      CompiledAggregate(
        by: aggregate.by.map { name in
          (name, tree.slot(name), plan.fields.first { $0.name == name }?.action ?? .pass)
        }, measure: tree.slot(aggregate.measure), function: aggregate.function, distinct: tree.slot(aggregate.distinct))
    }
    func compiled(_ condition: Condition, all: Bool) -> CompiledCondition {
      CompiledCondition(condition, wantsAll: all, now: now)
    }
    conditions =
      plan.forbid.map {
        (tree.slot($0.condition.field), compiled($0.condition, all: false), .forbid($0.id))
      }
      + plan.include.map { (tree.slot($0.field), compiled($0, all: $0.comparison != .hasAny), .include($0.field)) }
      + plan.exclude.map { (tree.slot($0.field), compiled($0, all: false), .exclude($0.field)) }
    required = plan.fields.filter { $0.isRequired && $0.action != .drop }.compactMap { field in
      // `exists` takes no values, so it cannot be refused.
      guard let exists = try? Condition(field: field.name, .exists, []) else { return nil }
      return (tree.slot(field.name), compiled(exists, all: false))
    }
  }

  var hasConditions: Bool { !conditions.isEmpty || !required.isEmpty }

  /// - Parameter values: visits the values of a slot until told to stop.
  func decide(_ values: (Int32, (CompiledCondition.Operand) -> Bool) -> Void) -> Fate {
    for (slot, condition, purpose) in conditions {
      let verdict = verdict(slot, condition, values)
      switch (purpose, verdict) {
      case (.forbid(let id), .yes): return .forbidden(id)
      case (.forbid, .undecided): return .forbidden("")
      case (.include, .yes), (.exclude, .no), (.forbid, .no): continue
      case (.include, .undecided), (.exclude, .undecided): return .withheld(WithheldCode.error)
      case (.include(let field), .no), (.exclude(let field), .yes): return .withheld(WithheldCode.excluded + field)
      }
    }
    for (slot, condition) in required where verdict(slot, condition, values) != .yes {
      return .withheld(WithheldCode.requiredMissing)
    }
    return .goes
  }

  private func verdict(
    _ slot: Int32, _ condition: CompiledCondition, _ values: (Int32, (CompiledCondition.Operand) -> Bool) -> Void
  ) -> Verdict {
    var count = 0
    var answer: Verdict?
    values(slot) { operand in
      count += 1
      let one = condition.test(operand)
      if one == .undecided {
        answer = .undecided
        return false
      }
      // One that decides is enough: for "all" a no, for "any" a yes; but a value that cannot be judged outweighs it.
      if answer == nil || one == (condition.wantsAll ? .no : .yes) { answer = one }
      return true
    }
    return count == 0 ? condition.ofNothing : answer ?? condition.ofNothing
  }
}
