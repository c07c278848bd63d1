// Records of NDJSON and JSON against a schema: one batch at a time, one checker per worker.

/// Checks batches of records. Conformers hold a worker's state; what spans batches is done by `RecordCheck` in order.
protocol RecordChecker: ~Copyable, SendableMetatype {
  mutating func check(_ batch: borrowing RecordBatch, findingsMax: Int) -> BatchOutcome
}

/// What one batch came to, counted from its own start.
struct BatchOutcome {
  var report = RecordReport()
  var lines: Int64 = 0
  /// Nothing behind it can be read.
  var isFatal = false
  /// Keys that may come once only, in order; kept with the records that are invalid already.
  var keys: [UniqueKey] = []
  var invalidRecords: Set<Int64> = []
  /// One of them came before, whether or not there was room for a finding.
  var hasDuplicateKey = false

  // What a filter made of it.
  var output: OutputPiece?
  var kept: Int64 = 0
  var withheld: [String: Int64] = [:]
  /// Of the records in `output`, in their order; empty when the plan has no subject.
  var subjects: [SubjectDigest] = []
  /// The `forbid` that holds, "" when one could not be decided.
  var forbidden: String?
  var entries: [GroupEntry] = []
  /// Extracted values of each record; nil where there is none.
  var rows: [[String?]] = []
  var envelope: JSONDocument?
  /// Invalid records as they are spelled, each with its line end.
  var setAside: [UInt8] = []
}

/// One value that may occur once only.
struct UniqueKey {
  var constraint: Int
  var record: Int64
  var line: Int64
  var byteOffset: Int64
  var digest: UInt64
  var digest2: UInt64
}

struct JSONRecordChecker: ~Copyable, RecordChecker {
  private let program: SchemaProgram
  private var parser = JSONParser()
  private var evaluator: SchemaEvaluator
  private var filter: JSONFilter?
  private var writer: BatchWriter
  private let keepsInvalid: Bool

  init(_ program: SchemaProgram, _ filter: CompiledFilter? = nil, isArray: Bool = false) {
    self.program = program
    evaluator = SchemaEvaluator(program)
    writer = BatchWriter(filter?.gate)
    keepsInvalid = filter?.filter.plan.onInvalid == .setAside
    if let filter, let fields = filter.filter.jsonFields { self.filter = JSONFilter(filter, fields, isArray: isArray) }
  }

  mutating func check(_ batch: borrowing RecordBatch, findingsMax: Int) -> BatchOutcome {
    var outcome = BatchOutcome()
    var lines = LineCounter()
    outcome.report.bytes = Int64(batch.count)
    let whole = UnsafeBufferPointer(start: UnsafePointer(batch.bytes), count: batch.count)
    // One broken line spoils the scan of its batch: then each record is scanned alone.
    var scannedTogether = true
    do throws(JSONFault) { try parser.scan(whole) } catch { scannedTogether = false }
    for span in batch.spans {
      guard span.end - span.start <= RecordLimits.recordBytesMax else {
        outcome.report.records += 1
        outcome.report.invalidRecords += 1
        outcome.report.add(
          Finding(
            fault: "record.size", expected: "at most \(RecordLimits.recordBytesMax) bytes",
            record: outcome.report.records,
            line: lines.line(of: span.start, in: batch), byteOffset: Int64(span.start)),
          findingsMax: findingsMax)
        setAside(span, batch, &outcome)
        continue
      }
      do throws(JSONFault) {
        let isRecord: Bool
        if scannedTogether {
          isRecord = try parser.parse(from: span.start, limit: span.end)
        } else {
          isRecord = try parseAlone(UnsafeBufferPointer(rebasing: whole[span.start..<span.end]))
        }
        guard isRecord else { continue }
        let isValid = evaluator.isValid(parser.base, parser.nodes)
        if evaluator.distinct < parser.objects { try parser.checkKeys() }
        outcome.report.records += 1
        // Cut short, a verdict is none: inside a `not` it would be the wrong one.
        if isValid, !evaluator.isExhausted {
          filter?.take(parser.base, parser.nodes, &writer, &outcome)
          if outcome.isFatal { break }
          continue
        }
        setAside(span, batch, &outcome)
        explain(span, lines.line(of: span.start, in: batch), findingsMax, &outcome)
      } catch {
        outcome.report.records += 1
        outcome.report.invalidRecords += 1
        setAside(span, batch, &outcome)
        let offset = scannedTogether ? error.offset : span.start + error.offset
        outcome.report.add(
          Finding(
            fault: error.code.rawValue, expected: error.code.expectation, record: outcome.report.records,
            line: lines.line(of: offset, in: batch), byteOffset: Int64(offset)),
          findingsMax: findingsMax)
        if scannedTogether { parser.skip(to: span.end) }
      }
    }
    outcome.lines = batch.lines
    if filter != nil { writer.finish(into: &outcome) }
    return outcome
  }

  private func setAside(_ span: RecordSpan, _ batch: borrowing RecordBatch, _ outcome: inout BatchOutcome) {
    guard keepsInvalid else { return }
    outcome.setAside.append(
      contentsOf: UnsafeBufferPointer(start: batch.bytes + span.start, count: span.end - span.start))
    outcome.setAside.append(10)
  }

  private mutating func parseAlone(_ text: UnsafeBufferPointer<UInt8>) throws(JSONFault) -> Bool {
    guard text.contains(where: { $0 != 32 && $0 != 9 && $0 != 13 && $0 != 10 }) else { return false }
    try parser.scan(text)
    return try parser.parse(from: 0, limit: text.count)
  }

  private mutating func explain(
    _ span: RecordSpan, _ line: Int64, _ findingsMax: Int, _ outcome: inout BatchOutcome
  ) {
    outcome.report.invalidRecords += 1
    if evaluator.isExhausted {
      outcome.report.add(
        Finding(
          fault: "schema.work",
          expected: "at most \(SchemaEvaluator.depthMax) schemas within schemas and \(SchemaEvaluator.stepsMax) steps",
          record: outcome.report.records, line: line, byteOffset: Int64(span.start)),
        findingsMax: findingsMax)
      return
    }
    let describer = JSONDescriber(program: program, base: parser.base, nodes: parser.nodes)
    let failures = evaluator.explain(parser.base, parser.nodes, countMax: RecordLimits.findingsOfRecordMax)
    for failure in failures {
      let source = program.sources[Int(failure.schema)]
      // `false` as a schema is told by the keyword that holds it: additionalProperties and its like.
      let keyword =
        failure.keyword.isEmpty ? failure.trail.split(separator: "/").last.map(String.init) ?? "false" : failure.keyword
      outcome.report.add(
        Finding(
          record: outcome.report.records, line: line, byteOffset: Int64(span.start),
          at: describer.pointer(to: failure.node), keyword: keyword,
          keywordLocation: failure.trail,
          absolute: program.locations[Int(failure.schema)] + (failure.keyword.isEmpty ? "" : "/\(failure.keyword)"),
          expected: describer.expected(failure, source), actual: describer.describe(failure.node)),
        findingsMax: findingsMax)
    }
  }
}

extension JSONFault.Code {
  /// What a well-formed text has instead.
  var expectation: String {
    switch self {
    case .utf8: "UTF-8"
    case .unclosedString: "a closing quote"
    case .controlCharacter: "no control character in a string: write it as \\u00…"
    case .escape: "an escape of RFC 8259"
    case .surrogate: "surrogates in pairs"
    case .syntax: "one JSON value"
    case .number: "a number of RFC 8259 with an exponent of at most \(JSONParser.exponentMax)"
    case .depth: "at most \(JSONParser.depthMax) levels"
    case .duplicateKey: "each key once"
    case .empty: "a value"
    }
  }
}

/// Tells about a record's nodes without telling their values.
struct JSONDescriber {
  let program: SchemaProgram
  let base: UnsafePointer<UInt8>
  let nodes: UnsafePointer<JSONNode>

  /// JSON pointer from the record's root. A member's name is data: it is told only when the schema knows it.
  func pointer(to wanted: Int) -> String {
    var pointer = ""
    var at = 0
    while at != wanted {
      let node = nodes[at]
      var child = at + 1
      var step: String?
      for ordinal in 0..<node.count {
        let value = node.kind == .object ? child + 1 : child
        let next = Int(nodes[value].next)
        if wanted < next {
          step = node.kind == .object ? name(nodes[child], ordinal) : "\(ordinal)"
          // A finding about a key itself is told at its member.
          at = wanted == child ? wanted : value
          break
        }
        child = next
      }
      guard let step else { break }
      pointer += "/\(step)"
    }
    return pointer
  }

  private func name(_ key: JSONNode, _ ordinal: Int) -> String {
    let text = String(decoding: content(key), as: UTF8.self)
    return program.knownNames.contains(text) ? JSONPointer.escape(text) : "#\(ordinal + 1)"
  }

  private func content(_ node: JSONNode) -> [UInt8] {
    let raw = UnsafeBufferPointer(start: base + Int(node.start) + 1, count: Int(node.end - node.start) - 2)
    var output: [UInt8] = []
    unescapeJSON(raw, into: &output)
    return output
  }

  func describe(_ index: Int) -> String {
    let node = nodes[index]
    switch node.kind {
    case .null: return "null"
    case .true, .false: return "a boolean"
    case .number: return "a number of \(node.end - node.start) characters"
    case .string:
      return "a string of \(scalarCount(content(node))) characters"
    case .array: return "an array of \(node.count) items"
    case .object: return "an object of \(node.count) members"
    }
  }

  func expected(_ failure: SchemaFailure, _ source: JSONElement) -> String {
    guard source.kind == .object else { return "nothing here" }
    if failure.keyword == "required", let required = source["required"] {
      let present = Set(
        (0..<nodes[failure.node].count).reduce(into: (names: [[UInt8]](), child: failure.node + 1)) { found, _ in
          found.names.append(content(nodes[found.child]))
          found.child = Int(nodes[found.child + 1].next)
        }.names)
      let missing = required.items.compactMap(\.stringBytes).filter { !present.contains($0) }.map {
        String(decoding: $0, as: UTF8.self)
      }
      return Self.cut("member \(missing.joined(separator: ", "))")
    }
    return Self.cut(source[failure.keyword]?.text ?? "")
  }

  static func cut(_ text: String) -> String {
    // A schema's own line ends would break the one line of a finding.
    let flat = text.split(whereSeparator: \.isNewline).map { $0.trimmingPrefix { $0 == " " } }.joined(separator: " ")
    return flat.utf8.count <= Finding.expectedBytesMax ? flat : String(flat.prefix(Finding.expectedBytesMax)) + "…"
  }
}
