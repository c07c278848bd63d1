// Drives a check: workers take batches in turns, check and filter them side by side, and what they made is put together in order.

import Foundation

/// Checks a stream of records against a schema, and writes what a filter lets through. Blocks the caller; memory is bounded
/// whatever the size.
package struct RecordCheck: Sendable {
  package let format: RecordFormat
  package let workers: Int
  package var findingsMax = RecordLimits.findingsMax

  package init(_ format: RecordFormat, workers: Int) {
    self.format = format
    self.workers = max(1, workers)
  }

  /// Reads everything, writes nothing.
  ///
  /// - Parameters:
  ///   - input: called by one worker at a time; 0 bytes end it.
  ///   - onProgress: bytes checked so far, in order.
  /// - Throws: what `input` throws. What is wrong with the records is in the report.
  package func run(_ input: @escaping RecordInput, onProgress: (@Sendable (Int64) -> Void)? = nil) throws
    -> RecordReport
  {
    try run(input, nil, onProgress)
  }

  /// Reads everything, and hands the records that go to `sink`, in order. What the sink got means nothing before the report
  /// says that the input was sound to its end.
  ///
  /// - Parameters:
  ///   - gate: needed when the plan has a subject or pseudonyms.
  ///   - now: for conditions about time.
  /// - Throws: what `input` or `sink` throws.
  package func run(
    _ input: @escaping RecordInput, through filter: RecordFilter, _ gate: RecordGate?, now: Date, to sink: RecordSink,
    onProgress: (@Sendable (Int64) -> Void)? = nil
  ) throws -> RecordReport {
    try run(input, Filtering(filter: CompiledFilter(filter, gate, now: now), sink: sink), onProgress)
  }

  private func run(
    _ input: @escaping RecordInput, _ filtering: Filtering?, _ onProgress: (@Sendable (Int64) -> Void)?
  ) throws -> RecordReport {
    let filter = filtering?.filter
    switch format {
    case .ndjson(let program):
      return try run(LineCutter(input), filtering, onProgress) { JSONRecordChecker(program, filter) }
    case .json(let program, let pointer):
      let cutter = ArrayCutter(input, pointer: pointer, wholeIsRecord: filter == nil)
      return try run(cutter, filtering, onProgress) { JSONRecordChecker(program, filter, isArray: true) }
    case .csv(let schema, let dialect):
      let input = try dialect.decoded(input)
      return try run(RowCutter(input, dialect), filtering, onProgress, unique: schema.unique) {
        RowChecker(schema, dialect, filter)
      }
    case .xml(let schema):
      return try schema.check(input, findingsMax: findingsMax, filtering, onProgress: onProgress)
    }
  }

  private func run<Cutter: BatchCutter, Checker: RecordChecker & ~Copyable>(
    _ cutter: Cutter, _ filtering: Filtering?, _ onProgress: (@Sendable (Int64) -> Void)?,
    unique: [UniqueConstraint] = [], _ makeChecker: @Sendable @escaping () -> Checker
  ) throws -> RecordReport {
    let state = CheckState(
      cutter, filtering, findingsMax: findingsMax, unique: unique, batchesMax: Int64(workers) + 2,
      onProgress: onProgress)
    let group = DispatchGroup()
    for _ in 0..<workers {
      group.enter()
      // A thread of its own: schemas within schemas want a deep stack.
      let thread = Thread {
        defer { group.leave() }
        var checker = makeChecker()
        var batch = RecordBatch()
        while state.next(&batch) {
          var outcome = checker.check(batch, findingsMax: findingsMax)
          outcome.envelope = batch.envelope
          if !outcome.isFatal, !batch.faults.isEmpty {
            for fault in batch.faults { outcome.report.add(fault, findingsMax: findingsMax) }
            outcome.isFatal = true
          }
          state.put(outcome, batch.index)
        }
      }
      thread.stackSize = 16 << 20
      thread.start()
    }
    group.wait()
    return try state.finish()
  }
}

/// Where filtered records go. Called in the order of the records, by one thread at a time; may block.
package struct RecordSink: Sendable {
  package let write: @Sendable (OutputPiece) throws -> Void
  /// Subjects of the records in the next piece.
  package let subjects: @Sendable ([SubjectDigest]) throws -> Void
  /// Invalid records as they are spelled, when the plan sets them aside.
  package let setAside: @Sendable ([UInt8]) throws -> Void
  /// Extracted values, when the plan extracts fields.
  package let rows: @Sendable ([[String?]]) throws -> Void

  package init(
    write: @escaping @Sendable (OutputPiece) throws -> Void = { _ in },
    subjects: @escaping @Sendable ([SubjectDigest]) throws -> Void = { _ in },
    setAside: @escaping @Sendable ([UInt8]) throws -> Void = { _ in },
    rows: @escaping @Sendable ([[String?]]) throws -> Void = { _ in }
  ) {
    self.rows = rows
    self.write = write
    self.subjects = subjects
    self.setAside = setAside
  }
}

/// What is to be checked, and against what.
package enum RecordFormat: Sendable {
  /// One JSON value a line.
  case ndjson(SchemaProgram)
  /// The elements of the array at a JSON pointer, "" for the whole file.
  case json(SchemaProgram, pointer: String)
  /// RFC 4180.
  case csv(TableSchema, CSVDialect)
  /// An XSD for the whole document.
  case xml(XMLSchema)
}

/// A set of values of which none may come twice.
package struct UniqueConstraint: Sendable {
  /// For findings: `unique` or `primaryKey`.
  let keyword: String
  let location: String
}

/// A filter with the sink behind it.
struct Filtering: Sendable {
  let filter: CompiledFilter
  let sink: RecordSink
}

/// What the workers share.
private final class CheckState<Cutter: BatchCutter>: @unchecked Sendable {
  // Proof for @unchecked: the cutter is touched only under `reading`, everything else only under `joining`.
  private let reading = NSLock()
  private let joining = NSCondition()
  private var cutter: Cutter
  private var isOver = false
  private var failure: (any Error)?
  private let findingsMax: Int
  private let onProgress: (@Sendable (Int64) -> Void)?
  private var report = RecordReport()
  private var lines: Int64 = 0
  private var waiting: [Int64: BatchOutcome] = [:]
  private var nextIndex: Int64 = 0
  private var taken: Int64 = 0
  private let batchesMax: Int64
  private var unique: UniqueKeys
  private var joiner: FilterJoiner?

  init(
    _ cutter: Cutter, _ filtering: Filtering?, findingsMax: Int, unique: [UniqueConstraint], batchesMax: Int64,
    onProgress: (@Sendable (Int64) -> Void)?
  ) {
    self.cutter = cutter
    self.findingsMax = findingsMax
    self.onProgress = onProgress
    self.batchesMax = batchesMax
    self.unique = UniqueKeys(unique)
    joiner = filtering.map { FilterJoiner($0, findingsMax: findingsMax) }
  }

  func next(_ batch: inout RecordBatch) -> Bool {
    // Nobody runs far ahead of a batch that takes its time: what is finished waits in memory.
    joining.lock()
    while taken - nextIndex >= batchesMax, !isOver { joining.wait() }
    taken += 1
    joining.unlock()
    reading.lock()
    defer { reading.unlock() }
    guard !joining.withLock({ isOver }) else { return false }
    do {
      guard try cutter.next(&batch) else {
        stop(nil)
        return false
      }
      return true
    } catch {
      stop(error)
      return false
    }
  }

  private func stop(_ error: (any Error)?) {
    joining.withLock {
      isOver = true
      if failure == nil { failure = error }
      joining.broadcast()
    }
  }

  /// Outcomes wait until all before them have come.
  func put(_ outcome: BatchOutcome, _ index: Int64) {
    joining.lock()
    waiting[index] = outcome
    while var next = waiting.removeValue(forKey: nextIndex) {
      nextIndex += 1
      unique.check(&next, findingsMax: findingsMax)
      report.append(next.report, lines: lines, findingsMax: findingsMax)
      lines += next.lines
      do {
        if failure == nil { try joiner?.add(&next, &report) }
      } catch {
        failure = error
        isOver = true
      }
      if next.isFatal {
        isOver = true
        report.isCutShort = true
        waiting.removeAll()
        nextIndex = .max
      }
    }
    let done = report.bytes
    joining.broadcast()
    joining.unlock()
    onProgress?(done)
  }

  func finish() throws -> RecordReport {
    if let failure { throw failure }
    try joiner?.finish(&report)
    return report
  }
}

/// Puts filtered batches together: head, records, groups, totals, tail.
struct FilterJoiner {
  private let filter: CompiledFilter
  private let sink: RecordSink
  private let findingsMax: Int
  private var result = FilterReport()
  private var groups = GroupTable()
  private var sums: [DecimalSum]
  private var hasBegun = false
  private var setAsideBytes = 0
  private var envelope: JSONDocument?
  private var plan: RecordPlan { filter.filter.plan }
  private var isArray: Bool { !filter.filter.tail.isEmpty }

  init(_ filtering: Filtering, findingsMax: Int) {
    filter = filtering.filter
    sink = filtering.sink
    self.findingsMax = findingsMax
    sums = filter.sums.map { _ in DecimalSum() }
  }

  /// A file that will not go is read to its end for its findings, and written no further.
  private func goesOn(_ report: RecordReport) -> Bool {
    result.forbidden == nil && !report.isCutShort && (report.isValid || plan.onInvalid == .setAside)
  }

  mutating func add(_ outcome: inout BatchOutcome, _ report: inout RecordReport) throws {
    result.withheld.merge(outcome.withheld, uniquingKeysWith: +)
    if let rule = outcome.forbidden { result.forbidden = rule }
    if let found = outcome.envelope { envelope = found }
    defer { report.filtered = result }
    guard goesOn(report), !outcome.isFatal else { return }
    if !outcome.setAside.isEmpty {
      setAsideBytes += outcome.setAside.count
      guard setAsideBytes <= RecordLimits.setAsideBytesMax else {
        report.add(
          Finding(
            fault: "record.set-aside-limit",
            expected: "at most \(RecordLimits.setAsideBytesMax) bytes of invalid records",
            record: 0, line: 1, byteOffset: report.bytes), findingsMax: findingsMax)
        outcome.isFatal = true
        return
      }
      result.withheld[WithheldCode.invalid, default: 0] += outcome.report.invalidRecords
      try sink.setAside(outcome.setAside)
    }
    // A key that came twice was found when its record was written already.
    if plan.onInvalid == .setAside, outcome.hasDuplicateKey {
      outcome.isFatal = true
      return
    }
    for entry in outcome.entries {
      if plan.aggregate != nil {
        guard groups.add(entry) else {
          report.add(
            Finding(
              fault: "group.limit",
              expected:
                "at most \(GroupTable.groupsMax) groups with \(GroupTable.distinctMax) subjects, and sums of at most 38 digits",
              record: 0,
              line: 1,
              byteOffset: report.bytes), findingsMax: findingsMax)
          outcome.isFatal = true
          return
        }
      } else {
        for (place, text) in entry.measure.split(separator: 44).enumerated() {
          guard let value = DecimalSum(text), let sum = DecimalSum.sum(sums[place], value) else {
            report.add(
              Finding(
                fault: "totals.range", expected: "a total of at most 38 digits", record: 0, line: 1,
                byteOffset: report.bytes), findingsMax: findingsMax)
            outcome.isFatal = true
            return
          }
          sums[place] = sum
        }
      }
    }
    if !outcome.rows.isEmpty { try sink.rows(outcome.rows) }
    if plan.aggregate == nil { result.kept += outcome.kept }
    if !outcome.subjects.isEmpty { try sink.subjects(outcome.subjects) }
    if let output = outcome.output, output.count > 0 { try write(output) }
  }

  private mutating func write(_ piece: OutputPiece) throws {
    if !hasBegun {
      hasBegun = true
      if !filter.filter.head.isEmpty { try sink.write(OutputPiece(filter.filter.head)) }
      // Each record of an array brings the separator that stands before it. In a table the same bytes are a row.
      if isArray, piece.bytes.starts(with: JSONFilter.separator) { piece.skip(JSONFilter.separator.count) }
    }
    if piece.count > 0 { try sink.write(piece) }
  }

  mutating func finish(_ report: inout RecordReport) throws {
    defer { report.filtered = result }
    guard goesOn(report) else { return }
    if let aggregate = plan.aggregate { try writeGroups(aggregate) }
    if !hasBegun { try write(OutputPiece([])) }
    var tail = filter.filter.tail
    if !filter.filter.totals.isEmpty {
      guard let totals = totals(&report) else { return }
      // Behind the array's end, before its object's.
      tail.insert(contentsOf: totals, at: 2)
    }
    if !tail.isEmpty { try sink.write(OutputPiece(tail)) }
  }

  private mutating func writeGroups(_ aggregate: RecordPlan.Aggregate) throws {
    let (rows, withheld) = groups.rows(aggregate)
    if withheld > 0 { result.withheld[WithheldCode.groupTooSmall, default: 0] += withheld }
    let isCSV = filter.filter.layout == .csv
    var text: [UInt8] = []
    for (key, measure, distinct) in rows {
      let size = aggregate.distinctAs == nil ? nil : "\(distinct)"
      if isCSV {
        text +=
          key + [filter.filter.delimiter] + Array(measure.utf8)
          + (size.map { [filter.filter.delimiter] + Array($0.utf8) } ?? [])
      } else {
        if isArray { text += JSONFilter.separator }
        text += [123] + key + Array(",\(DerivedSchema.quoted(aggregate.measure)):\(measure)".utf8)
        if let name = aggregate.distinctAs, let size { text += Array(",\(DerivedSchema.quoted(name)):\(size)".utf8) }
        text.append(125)
      }
      if !isArray { text.append(10) }
      result.kept += 1
      if text.count >= RecordLimits.batchBytes {
        try write(OutputPiece(text))
        text = []
      }
    }
    if !text.isEmpty { try write(OutputPiece(text)) }
  }

  /// The members behind the array; nil when one of them refuses the file.
  private func totals(_ report: inout RecordReport) -> [UInt8]? {
    guard case .json(let pointer) = filter.filter.place, var object = envelope?.root else { return [] }
    for step in (JSONPointer.parse(pointer) ?? []).dropLast() {
      guard let next = object[step] else { return [] }
      object = next
    }
    var text: [UInt8] = []
    var fieldPlace = 0
    for total in plan.totals {
      var value = "\(result.kept)"
      if total.field != nil {
        value = sums[fieldPlace].text
        fieldPlace += 1
      }
      guard let found = object[total.member] else { continue }
      switch total.rule {
      case .leave:
        // Nothing but a number was declared.
        guard found.kind == .number else { continue }
        value = found.text
      case .recompute: break
      case .refuse:
        let wanted = Array(value.utf8).withUnsafeBufferPointer { ExactNumber($0) }
        guard let number = found.number, ExactNumber.compare(number, wanted) == 0 else {
          report.add(
            Finding(
              fault: "totals.mismatch", expected: "\(total.member) to be right for the records that go", record: 0,
              line: 1, byteOffset: report.bytes), findingsMax: findingsMax)
          report.isCutShort = true
          return nil
        }
      }
      text += Array(",\(DerivedSchema.quoted(total.member)):\(value)".utf8)
    }
    return text
  }
}
