// A plan on CSV rows: kept columns in the file's order, as they are spelled; the header written anew.

import Glibc

/// The columns that a plan mentions. Immutable.
final class CSVColumns: Sendable {
  /// What goes, in the order of the file.
  let outputs: [(place: Int, action: RecordPlan.Action)]
  /// By capture: the column.
  let captured: [Int]
  let outputNames: [String]

  init(_ plan: RecordPlan, _ table: TableSchema, _ tree: FieldTree) throws(SchemaError) {
    func place(_ name: String) throws(SchemaError) -> Int {
      guard let place = table.columns.firstIndex(where: { $0.name.utf8.elementsEqual(name.utf8) }) else {
        throw SchemaError(location: name, reason: "the schema has no such column")
      }
      return place
    }
    var captured: [Int] = []
    for name in tree.captures { captured.append(try place(name)) }
    let compared = plan.include + plan.exclude + plan.forbid.map(\.condition)
    let measures = [plan.aggregate].compactMap { $0 }.filter { $0.function != .count }.map(\.measure)
    for name in compared.filter({ ![.exists, .absent].contains($0.comparison) }).map(\.field) + measures
    where table.columns[try place(name)].hasOwnSpelling {
      throw SchemaError(
        location: name, reason: "a column with groupChar or decimalChar is neither compared nor added up")
    }
    self.captured = captured
    if let aggregate = plan.aggregate {
      outputs = []
      outputNames = aggregate.by + [aggregate.measure] + [aggregate.distinctAs].compactMap { $0 }
      return
    }
    var outputs: [(place: Int, action: RecordPlan.Action)] = []
    for field in plan.fields where field.action != .drop { outputs.append((try place(field.name), field.action)) }
    if plan.fields.isEmpty { outputs = table.columns.indices.map { ($0, .pass) } }
    self.outputs = outputs.sorted { $0.place < $1.place }
    outputNames = self.outputs.map { table.columns[$0.place].name }
  }

  static func header(_ names: [String], _ delimiter: UInt8) -> [UInt8] {
    Array(names.map { quoted(Array($0.utf8), delimiter) }.joined(separator: [delimiter])) + [10]
  }

  /// RFC 4180 §2.5–2.7.
  static func quoted(_ text: [UInt8], _ delimiter: UInt8) -> [UInt8] {
    guard text.contains(where: { $0 == delimiter || $0 == 34 || $0 == 10 || $0 == 13 }) else { return text }
    return [34] + text.flatMap { $0 == 34 ? [34, 34] : [$0] } + [34]
  }
}

/// Applies a plan to rows that are valid. One per worker.
struct CSVFilter: ~Copyable {
  private let filter: CompiledFilter
  private let columns: CSVColumns
  private let delimiter: UInt8
  private var coarse: [UInt8] = []
  private var id: [UInt8] = []

  init(_ filter: CompiledFilter, _ columns: CSVColumns, _ delimiter: UInt8) {
    self.filter = filter
    self.columns = columns
    self.delimiter = delimiter
  }

  mutating func take(
    _ bytes: UnsafePointer<UInt8>, _ fields: UnsafePointer<RowChecker.FieldSpan>, _ schema: TableSchema,
    _ output: inout BatchWriter, _ outcome: inout BatchOutcome
  ) {
    let columns = columns
    let fate = filter.decide { slot, visit in
      let place = columns.captured[Int(slot)]
      let text = fields[place].text(bytes)
      text.withUnsafeBufferPointer { if !schema.columns[place].isMissing($0) { _ = visit(.untyped($0)) } }
    }
    switch fate {
    case .forbidden(let rule):
      outcome.forbidden = rule
      outcome.isFatal = true
      return
    case .withheld(let code):
      outcome.withheld[code, default: 0] += 1
      return
    case .goes: break
    }
    if !filter.extracted.isEmpty {
      outcome.rows.append(
        filter.extracted.map { slot in
          let place = columns.captured[Int(slot)]
          let text = fields[place].text(bytes)
          return text.withUnsafeBufferPointer { schema.columns[place].isMissing($0) }
            ? nil : String(decoding: text, as: UTF8.self)
        })
      return
    }
    if let subject = filter.subject {
      let place = columns.captured[Int(subject)]
      let isID = fields[place].text(bytes).withUnsafeBufferPointer {
        !schema.columns[place].isMissing($0)
          && SubjectID.canonical($0, isNumber: schema.columns[place].isNumeric, into: &id)
      }
      guard isID else { return outcome.withheld[WithheldCode.error, default: 0] += 1 }
    }
    let mark = output.mark
    var entry: GroupEntry?
    if let aggregate = filter.aggregate {
      entry = groupEntry(aggregate, bytes, fields, schema)
      guard entry != nil else { return outcome.withheld[WithheldCode.error, default: 0] += 1 }
    } else {
      guard write(bytes, fields, schema, &output) else {
        output.drop(to: mark)
        return outcome.withheld[WithheldCode.error, default: 0] += 1
      }
      output.buffer.append(10)
    }
    output.end(from: mark, id: filter.subject == nil ? nil : id, entry: entry)
  }

  private mutating func write(
    _ bytes: UnsafePointer<UInt8>, _ fields: UnsafePointer<RowChecker.FieldSpan>, _ schema: TableSchema,
    _ output: inout BatchWriter
  ) -> Bool {
    var index = 0
    while index < columns.outputs.count {
      if index > 0 { output.buffer.append(delimiter) }
      let (place, action) = columns.outputs[index]
      let field = fields[place]
      if action == .pass {
        // Neighbours that pass go in one piece.
        var last = index
        while last + 1 < columns.outputs.count, columns.outputs[last + 1].place == columns.outputs[last].place + 1,
          columns.outputs[last + 1].action == .pass
        {
          last += 1
        }
        let (start, end) = (field.rawStart, fields[columns.outputs[last].place].rawEnd)
        output.buffer.append(bytes + start, end - start)
        index = last + 1
        continue
      }
      index += 1
      let text = field.text(bytes)
      if case .constant(let constant) = action {
        output.buffer.append(CSVColumns.quoted(Array(constant.utf8), delimiter))
        continue
      }
      // A missing value stays one.
      if text.withUnsafeBufferPointer({ schema.columns[place].isMissing($0) }) {
        output.buffer.append(bytes + field.rawStart, field.rawEnd - field.rawStart)
        continue
      }
      switch action {
      case .pass, .drop, .constant: break
      case .mask: output.buffer.append(Transform.mask)
      case .pseudonymise: text.withUnsafeBufferPointer { output.pseudonym(of: $0) }
      case .generalise(let granularity):
        guard text.withUnsafeBufferPointer({ Transform.generalise($0, to: granularity, into: &coarse) }) else {
          return false
        }
        output.buffer.append(CSVColumns.quoted(coarse, delimiter))
      }
    }
    return true
  }

  private mutating func groupEntry(
    _ aggregate: CompiledFilter.CompiledAggregate, _ bytes: UnsafePointer<UInt8>,
    _ fields: UnsafePointer<RowChecker.FieldSpan>,
    _ schema: TableSchema
  ) -> GroupEntry? {
    func value(_ slot: Int32) -> [UInt8]? {
      let place = columns.captured[Int(slot)]
      let text = fields[place].text(bytes)
      return text.withUnsafeBufferPointer { schema.columns[place].isMissing($0) } ? nil : text
    }
    var parts: [[UInt8]] = []
    for (_, slot, action) in aggregate.by {
      guard let text = value(slot) else { return nil }
      if case .generalise(let granularity) = action {
        guard text.withUnsafeBufferPointer({ Transform.generalise($0, to: granularity, into: &coarse) }) else {
          return nil
        }
        parts.append(CSVColumns.quoted(coarse, delimiter))
      } else {
        parts.append(CSVColumns.quoted(text, delimiter))
      }
    }
    var measure: [UInt8] = []
    if aggregate.function != .count {
      guard let text = value(aggregate.measure), DecimalSum(text) != nil else { return nil }
      measure = text
    }
    // As people are told apart, so that one is not counted twice for a blank or a letter's case.
    var distinct: [UInt8] = []
    let isNumber = schema.columns[columns.captured[Int(aggregate.distinct)]].isNumeric
    guard let text = value(aggregate.distinct),
      text.withUnsafeBufferPointer({ SubjectID.canonical($0, isNumber: isNumber, into: &distinct) })
    else { return nil }
    return GroupEntry(key: Array(parts.joined(separator: [delimiter])), measure: measure, distinct: distinct)
  }
}

extension RowChecker.FieldSpan {
  /// With its quotes.
  var rawStart: Int { isQuoted ? start - 1 : start }
  var rawEnd: Int { isQuoted ? end + 1 : end }

  /// Without quotes, doubled ones undone.
  func text(_ bytes: UnsafePointer<UInt8>) -> [UInt8] {
    let raw = UnsafeBufferPointer(start: bytes + start, count: end - start)
    guard isQuoted, raw.contains(34) else { return Array(raw) }
    var output: [UInt8] = []
    var index = 0
    while index < raw.count {
      output.append(raw[index])
      index += raw[index] == 34 ? 2 : 1
    }
    return output
  }
}
