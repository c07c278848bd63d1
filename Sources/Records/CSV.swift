// CSV by RFC 4180, strictly: a quote only around a whole field or doubled inside one, as many fields as the header has, LF or
// CRLF throughout. Rows are cut by the parity of quotes, fields by a scan of 64 bytes at once.

import CKernels
import CSimdjson
import Glibc

/// How a CSV file is written.
package struct CSVDialect: Sendable {
  package enum Encoding: String, Sendable, CaseIterable {
    case utf8 = "utf-8"
    case windows1252 = "windows-1252"
    case utf16le = "utf-16le"
    case utf16be = "utf-16be"
  }

  package var delimiter: UInt8 = 44
  package var encoding = Encoding.utf8
  package static let fieldsMax = 4096

  package init(delimiter: UInt8 = 44, encoding: Encoding = .utf8) {
    self.delimiter = delimiter
    self.encoding = encoding
  }

  /// The input as UTF-8.
  func decoded(_ input: @escaping RecordInput) throws -> RecordInput {
    guard encoding != .utf8 else { return input }
    let transcoder = Transcoder(input, encoding)
    return { try transcoder.read(into: $0) }
  }
}

/// Cuts at line ends outside quotes.
struct RowCutter: BatchCutter {
  private var remainder: Remainder
  private var isFirst = true
  private var isOver = false

  init(_ input: @escaping RecordInput, _ dialect: CSVDialect) { remainder = Remainder(input) }

  mutating func next(_ batch: inout RecordBatch) throws -> Bool {
    guard !isOver else { return false }
    remainder.begin(&batch)
    var end = 0
    var quotes: Int32 = 0
    var searched = 0
    while true {
      _ = try remainder.fill(&batch)
      // A batch begins at a row, so outside quotes.
      let last = sp_csv_last_line(batch.bytes + searched, batch.count - searched, &quotes)
      if last >= 0 { end = searched + Int(last) + 1 }
      searched = batch.count
      if remainder.isAtEnd {
        isOver = true
        end = batch.count
        if quotes == 1 {
          batch.faults.append(
            Finding(
              fault: "csv.quote", expected: "a closing quote", record: 0, line: batch.line(of: batch.count),
              byteOffset: Int64(batch.count)))
        }
        break
      }
      if end > 0 { break }
      guard batch.count <= RecordLimits.recordBytesMax else {
        isOver = true
        batch.faults.append(
          Finding(
            fault: "record.size", expected: "a row of at most \(RecordLimits.recordBytesMax) bytes", record: 1, line: 1,
            byteOffset: 0))
        return true
      }
    }
    remainder.keep(&batch, from: end)
    if isFirst {
      isFirst = false
      if batch.count == 0 {
        batch.faults.append(Finding(fault: "csv.header", expected: "a header", record: 0, line: 1, byteOffset: 0))
        return true
      }
      return true
    }
    return batch.count > 0
  }
}

/// Checks rows: header first, then each field by its column.
struct RowChecker: ~Copyable, RecordChecker {
  private let schema: TableSchema
  private let dialect: CSVDialect
  private var offsets: UnsafeMutablePointer<UInt32>
  private var capacity = 1 << 16
  /// Those of one row.
  private let fields: UnsafeMutablePointer<FieldSpan>
  private var fieldCount = 0
  private var scratch: [UInt8] = []
  private var lines = LineCounter()
  private var filter: CSVFilter?
  private var writer: BatchWriter
  private let keepsInvalid: Bool

  struct FieldSpan {
    var start: Int
    var end: Int
    var isQuoted: Bool
  }

  init(_ schema: TableSchema, _ dialect: CSVDialect, _ filter: CompiledFilter? = nil) {
    self.schema = schema
    self.dialect = dialect
    offsets = .allocate(capacity: capacity)
    fields = .allocate(capacity: CSVDialect.fieldsMax)
    writer = BatchWriter(filter?.gate)
    keepsInvalid = filter?.filter.plan.onInvalid == .setAside
    if let filter, let columns = filter.filter.csvColumns {
      self.filter = CSVFilter(filter, columns, dialect.delimiter)
    }
  }

  deinit {
    offsets.deallocate()
    fields.deallocate()
  }

  mutating func check(_ batch: borrowing RecordBatch, findingsMax: Int) -> BatchOutcome {
    var outcome = BatchOutcome()
    outcome.report.bytes = Int64(batch.count)
    outcome.lines = batch.lines
    lines = LineCounter()
    guard sp_is_utf8(batch.bytes, batch.count) == 1 else {
      return fatal(&outcome, "csv.encoding", "the encoding \(dialect.encoding.rawValue)", batch, 0, findingsMax)
    }
    if let nul = memchr(batch.bytes, 0, batch.count) {
      return fatal(&outcome, "csv.nul", "no NUL byte", batch, nul - UnsafeMutableRawPointer(batch.bytes), findingsMax)
    }
    if batch.count > capacity {
      offsets.deallocate()
      capacity = batch.count
      offsets = .allocate(capacity: capacity)
    }
    var quotes: Int32 = 0
    let found = sp_csv_scan(batch.bytes, batch.count, dialect.delimiter, &quotes, offsets)
    var at = 0
    var start = 0
    var isHeader = batch.index == 0
    if isHeader, batch.count >= 3, batch.bytes[0] == 0xEF, batch.bytes[1] == 0xBB, batch.bytes[2] == 0xBF { start = 3 }
    while start < batch.count {
      let rowStart = start
      fieldCount = 0
      var isRowOver = false
      while !isRowOver {
        let mark = at < found ? offsets[at] : UInt32(batch.count) | SP_CSV_NOT_PLAIN
        let stop = Int(mark & ~SP_CSV_NOT_PLAIN)
        isRowOver = at >= found || batch.bytes[stop] == 10
        at += 1
        guard fieldCount < CSVDialect.fieldsMax else {
          return fatal(
            &outcome, "csv.fields", "at most \(CSVDialect.fieldsMax) fields", batch, start, findingsMax,
            isRecord: !isHeader)
        }
        if mark & SP_CSV_NOT_PLAIN == 0 {
          fields[fieldCount] = FieldSpan(start: start, end: stop, isQuoted: false)
        } else {
          let end = isRowOver && stop > start && batch.bytes[stop - 1] == 13 ? stop - 1 : stop
          guard let field = field(batch, start, end) else {
            return fatal(
              &outcome, "csv.quote", "quotes around a whole field, doubled inside it, and around line ends", batch,
              start, findingsMax, isRecord: !isHeader)
          }
          fields[fieldCount] = field
        }
        fieldCount += 1
        start = stop + 1
      }
      // A line with nothing on it is no row.
      if !isHeader, fieldCount == 1, fields[0].start == fields[0].end, !fields[0].isQuoted, schema.columns.count > 1 {
        continue
      }
      if isHeader {
        isHeader = false
        if let finding = schema.checkHeader((0..<fieldCount).map { text(fields[$0], batch) }) {
          outcome.report.add(finding, findingsMax: findingsMax)
          outcome.isFatal = true
          return outcome
        }
        continue
      }
      outcome.report.records += 1
      let isValid = checkRow(batch, rowStart, findingsMax, &outcome)
      if isValid {
        filter?.take(batch.bytes, UnsafePointer(fields), schema, &writer, &outcome)
        if outcome.isFatal { break }
      } else if keepsInvalid {
        outcome.setAside.append(
          contentsOf: UnsafeBufferPointer(start: batch.bytes + rowStart, count: min(start, batch.count) - rowStart))
      }
    }
    if filter != nil { writer.finish(into: &outcome) }
    return outcome
  }

  /// nil when its quotes are not RFC 4180's.
  private func field(_ batch: borrowing RecordBatch, _ start: Int, _ end: Int) -> FieldSpan? {
    let bytes = batch.bytes
    guard start < end, bytes[start] == 34 else {
      if start < end, memchr(bytes + start, 34, end - start) != nil { return nil }
      // A bare CR is a line end to some readers.
      if start < end, memchr(bytes + start, 13, end - start) != nil { return nil }
      return FieldSpan(start: start, end: end, isQuoted: false)
    }
    guard end - start >= 2, bytes[end - 1] == 34 else { return nil }
    var index = start + 1
    while index < end - 1, let next = memchr(bytes + index, 34, end - 1 - index) {
      let place = next - UnsafeMutableRawPointer(bytes)
      guard place + 1 < end - 1, bytes[place + 1] == 34 else { return nil }
      index = place + 2
    }
    return FieldSpan(start: start + 1, end: end - 1, isQuoted: true)
  }

  private func text(_ field: FieldSpan, _ batch: borrowing RecordBatch) -> String {
    let raw = String(
      decoding: UnsafeBufferPointer(start: batch.bytes + field.start, count: field.end - field.start), as: UTF8.self)
    return field.isQuoted ? raw.replacing("\"\"", with: "\"") : raw
  }

  /// Whether the row is valid, keys that must be unique aside.
  private mutating func checkRow(
    _ batch: borrowing RecordBatch, _ rowStart: Int, _ findingsMax: Int, _ outcome: inout BatchOutcome
  ) -> Bool {
    let record = outcome.report.records
    guard fieldCount == schema.columns.count else {
      outcome.report.invalidRecords += 1
      outcome.report.add(
        Finding(
          record: record, line: lines.line(of: rowStart, in: batch), byteOffset: Int64(rowStart), at: "",
          keyword: "csv.field-count",
          keywordLocation: "/fields", absolute: "\(schema.location)#/fields",
          expected: "\(schema.columns.count) fields",
          actual: "\(fieldCount) fields"),
        findingsMax: findingsMax)
      return false
    }
    var isValid = true
    var findings = 0
    for place in 0..<fieldCount {
      let field = fields[place]
      var content = UnsafeBufferPointer(start: UnsafePointer(batch.bytes + field.start), count: field.end - field.start)
      let quick = schema.quick + place
      let isDoubled = field.isQuoted && memchr(content.baseAddress!, 34, content.count) != nil
      if !isDoubled || quick.pointee.isOfAnySpelling, quick.pointee.vouches(content.baseAddress!, content.count) {
        continue
      }
      if isDoubled {
        undouble(content)
        scratch.withUnsafeBufferPointer { content = $0 }
      }
      let column = schema.columns[place]
      let broken = withExtendedLifetime(scratch) { column.check(content) }
      guard let broken else { continue }
      isValid = false
      findings += 1
      guard findings <= RecordLimits.findingsOfRecordMax else { continue }
      outcome.report.add(
        Finding(
          record: record, line: lines.line(of: field.start, in: batch), byteOffset: Int64(field.start), at: column.name,
          keyword: broken.keyword,
          keywordLocation: "/fields/\(place)/\(broken.path)",
          absolute: "\(schema.location)#/fields/\(place)/\(broken.path)",
          expected: JSONDescriber.cut(broken.expected),
          actual: broken.isMissing ? "a missing value" : "a field of \(scalarCount(content)) characters"),
        findingsMax: findingsMax)
    }
    if !isValid {
      outcome.report.invalidRecords += 1
      if !schema.unique.isEmpty { outcome.invalidRecords.insert(record) }
    }
    for (number, constraint) in schema.uniqueColumns.enumerated() {
      var low = UniqueDigest()
      var isWhole = true
      for place in constraint {
        let field = fields[place]
        let content = UnsafeBufferPointer(
          start: UnsafePointer(batch.bytes + field.start), count: field.end - field.start)
        if schema.columns[place].isMissing(content) { isWhole = false }
        low.add(content)
      }
      guard isWhole else { continue }
      outcome.keys.append(
        UniqueKey(
          constraint: number, record: record, line: lines.line(of: rowStart, in: batch), byteOffset: Int64(rowStart),
          digest: low.value.0,
          digest2: low.value.1))
    }
    return isValid
  }

  private mutating func undouble(_ content: UnsafeBufferPointer<UInt8>) {
    scratch.removeAll(keepingCapacity: true)
    var index = 0
    while index < content.count {
      scratch.append(content[index])
      index += content[index] == 34 ? 2 : 1
    }
  }

  private func fatal(
    _ outcome: inout BatchOutcome, _ code: String, _ expected: String, _ batch: borrowing RecordBatch, _ offset: Int,
    _ findingsMax: Int, isRecord: Bool = false
  ) -> BatchOutcome {
    if isRecord {
      outcome.report.records += 1
      outcome.report.invalidRecords += 1
    }
    outcome.report.add(
      Finding(
        fault: code, expected: expected, record: isRecord ? outcome.report.records : 0, line: batch.line(of: offset),
        byteOffset: Int64(offset)),
      findingsMax: findingsMax)
    outcome.isFatal = true
    return outcome
  }
}

/// Two independent 64-bit hashes of a key's fields, seeded per process: enough to tell keys apart, not to find them out.
struct UniqueDigest {
  private var first = Hasher()
  private var second = Hasher()

  init() { second.combine(UInt8(1)) }

  mutating func add(_ content: UnsafeBufferPointer<UInt8>) {
    first.combine(bytes: UnsafeRawBufferPointer(content))
    first.combine(content.count)
    second.combine(bytes: UnsafeRawBufferPointer(content))
    second.combine(content.count)
  }

  var value: (UInt64, UInt64) {
    (UInt64(bitPattern: Int64(first.finalize())), UInt64(bitPattern: Int64(second.finalize())))
  }
}

/// Keys that were seen, in the order of the records.
struct UniqueKeys {
  /// Beyond this the file is refused: the memory for its keys would have no bound.
  static let keysMax = 20_000_000
  private struct Digest: Hashable {
    let a, b: UInt64
  }
  private let constraints: [UniqueConstraint]
  private var seen: [Set<Digest>]

  init(_ constraints: [UniqueConstraint]) {
    self.constraints = constraints
    seen = constraints.map { _ in [] }
  }

  mutating func check(_ outcome: inout BatchOutcome, findingsMax: Int) {
    for key in outcome.keys {
      let constraint = constraints[key.constraint]
      if seen[key.constraint].count >= Self.keysMax {
        outcome.report.add(
          Finding(
            fault: "csv.unique-limit", expected: "at most \(Self.keysMax) different keys", record: key.record,
            line: key.line, byteOffset: key.byteOffset),
          findingsMax: findingsMax)
        outcome.isFatal = true
        return
      }
      guard !seen[key.constraint].insert(Digest(a: key.digest, b: key.digest2)).inserted else { continue }
      outcome.hasDuplicateKey = true
      if outcome.invalidRecords.insert(key.record).inserted { outcome.report.invalidRecords += 1 }
      outcome.report.add(
        Finding(
          record: key.record, line: key.line, byteOffset: key.byteOffset, at: "", keyword: constraint.keyword,
          keywordLocation: constraint.location, absolute: "#\(constraint.location)", expected: "each key once",
          actual: ""),
        findingsMax: findingsMax)
    }
    guard !outcome.keys.isEmpty else { return }
    outcome.keys = []
    outcome.report.findings.sort { ($0.record, $0.byteOffset) < ($1.record, $1.byteOffset) }
  }
}

/// Other encodings to UTF-8 as they are read; what has no meaning in them becomes a NUL, which a check refuses.
private final class Transcoder: @unchecked Sendable {
  // Proof for @unchecked: only called by one worker at a time (see RecordInput).
  private let input: RecordInput
  private let encoding: CSVDialect.Encoding
  private var raw = [UInt8](repeating: 0, count: 1 << 18)
  private var output: [UInt8] = []
  private var taken = 0
  private var half: [UInt8] = []
  private var isFirst = true

  init(_ input: @escaping RecordInput, _ encoding: CSVDialect.Encoding) {
    self.input = input
    self.encoding = encoding
  }

  func read(into buffer: UnsafeMutableRawBufferPointer) throws -> Int {
    while taken == output.count {
      output.removeAll(keepingCapacity: true)
      taken = 0
      let got = try raw.withUnsafeMutableBytes { try input($0) }
      if got == 0 {
        // A unit that is cut in half is no text.
        if !half.isEmpty { output.append(0) }
        half = []
        if output.isEmpty { return 0 }
        break
      }
      switch encoding {
      case .utf8: output += raw[..<got]
      case .windows1252: for byte in raw[..<got] { output.append(contentsOf: Self.windows1252[Int(byte)]) }
      case .utf16le, .utf16be: decode16(half + raw[..<got])
      }
    }
    let count = min(buffer.count, output.count - taken)
    output.withUnsafeBytes { buffer.copyMemory(from: UnsafeRawBufferPointer(rebasing: $0[taken..<(taken + count)])) }
    taken += count
    return count
  }

  private func decode16(_ bytes: [UInt8]) {
    func unit(_ index: Int) -> UInt32 {
      encoding == .utf16le
        ? UInt32(bytes[index]) | UInt32(bytes[index + 1]) << 8 : UInt32(bytes[index]) << 8 | UInt32(bytes[index + 1])
    }
    var index = 0
    while index + 1 < bytes.count {
      var scalar = unit(index)
      var used = 2
      if (0xD800..<0xDC00).contains(scalar) {
        guard index + 3 < bytes.count else { break }
        let low = unit(index + 2)
        if (0xDC00..<0xE000).contains(low) {
          scalar = 0x10000 + (scalar - 0xD800) << 10 + (low - 0xDC00)
          used = 4
        }
      }
      index += used
      if isFirst, scalar == 0xFEFF {
        isFirst = false
        continue
      }
      isFirst = false
      if let value = Unicode.Scalar(scalar) { output.append(contentsOf: UTF8.encode(value)!) } else { output.append(0) }
    }
    half = Array(bytes[index...])
  }

  /// The WHATWG index, its five holes as NUL.
  private static let windows1252: [[UInt8]] = {
    let upper: [UInt32] = [
      0x20AC, 0, 0x201A, 0x0192, 0x201E, 0x2026, 0x2020, 0x2021, 0x02C6, 0x2030, 0x0160, 0x2039, 0x0152, 0, 0x017D, 0,
      0, 0x2018,
      0x2019, 0x201C, 0x201D, 0x2022, 0x2013, 0x2014, 0x02DC, 0x2122, 0x0161, 0x203A, 0x0153, 0, 0x017E, 0x0178,
    ]
    return (0..<256).map { byte in
      let scalar = (0x80..<0xA0).contains(byte) ? upper[byte - 0x80] : UInt32(byte)
      return Array(UTF8.encode(Unicode.Scalar(scalar)!)!)
    }
  }()
}
