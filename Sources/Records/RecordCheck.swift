// Drives a check: workers take batches in turns, check them side by side, and their outcomes are put together in order.

import Foundation

/// Checks a stream of records against a schema. Blocks the caller; memory is bounded whatever the size.
package struct RecordCheck: Sendable {
  package let format: RecordFormat
  package let workers: Int
  package var findingsMax = RecordLimits.findingsMax

  package init(_ format: RecordFormat, workers: Int) {
    self.format = format
    self.workers = max(1, workers)
  }

  /// Reads everything.
  ///
  /// - Parameters:
  ///   - input: called by one worker at a time; 0 bytes end it.
  ///   - onProgress: bytes checked so far, in order.
  /// - Throws: what `input` throws. What is wrong with the records is in the report.
  package func run(_ input: @escaping RecordInput, onProgress: (@Sendable (Int64) -> Void)? = nil) throws
    -> RecordReport
  {
    switch format {
    case .ndjson(let program):
      return try run(LineCutter(input), onProgress) { JSONRecordChecker(program) }
    case .json(let program, let pointer):
      return try run(ArrayCutter(input, pointer: pointer), onProgress) { JSONRecordChecker(program) }
    case .csv(let schema, let dialect):
      let input = try dialect.decoded(input)
      return try run(RowCutter(input, dialect), onProgress, unique: schema.unique) { RowChecker(schema, dialect) }
    case .xml(let schema):
      return try schema.check(input, findingsMax: findingsMax, onProgress: onProgress)
    }
  }

  private func run<Cutter: BatchCutter, Checker: RecordChecker & ~Copyable>(
    _ cutter: Cutter, _ onProgress: (@Sendable (Int64) -> Void)?, unique: [UniqueConstraint] = [],
    _ makeChecker: @Sendable @escaping () -> Checker
  ) throws -> RecordReport {
    let state = CheckState(cutter, findingsMax: findingsMax, unique: unique, onProgress: onProgress)
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

/// What the workers share.
private final class CheckState<Cutter: BatchCutter>: @unchecked Sendable {
  // Proof for @unchecked: the cutter is touched only under `reading`, everything else only under `joining`.
  private let reading = NSLock()
  private let joining = NSLock()
  private var cutter: Cutter
  private var isOver = false
  private var failure: (any Error)?
  private let findingsMax: Int
  private let onProgress: (@Sendable (Int64) -> Void)?
  private var report = RecordReport()
  private var lines: Int64 = 0
  private var waiting: [Int64: BatchOutcome] = [:]
  private var nextIndex: Int64 = 0
  private var unique: UniqueKeys

  init(_ cutter: Cutter, findingsMax: Int, unique: [UniqueConstraint], onProgress: (@Sendable (Int64) -> Void)?) {
    self.cutter = cutter
    self.findingsMax = findingsMax
    self.onProgress = onProgress
    self.unique = UniqueKeys(unique)
  }

  func next(_ batch: inout RecordBatch) -> Bool {
    reading.lock()
    defer { reading.unlock() }
    guard !isOver else { return false }
    do {
      guard try cutter.next(&batch) else {
        isOver = true
        return false
      }
      return true
    } catch {
      isOver = true
      failure = error
      return false
    }
  }

  /// Outcomes wait until all before them have come: at most one for each other worker.
  func put(_ outcome: BatchOutcome, _ index: Int64) {
    joining.lock()
    waiting[index] = outcome
    while var next = waiting.removeValue(forKey: nextIndex) {
      nextIndex += 1
      unique.check(&next, findingsMax: findingsMax)
      report.append(next.report, lines: lines, findingsMax: findingsMax)
      lines += next.lines
      if next.isFatal {
        stop()
        waiting.removeAll()
        nextIndex = .max
      }
    }
    let done = report.bytes
    joining.unlock()
    onProgress?(done)
  }

  private func stop() {
    reading.lock()
    isOver = true
    reading.unlock()
  }

  func finish() throws -> RecordReport {
    if let failure { throw failure }
    return report
  }
}
