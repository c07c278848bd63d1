// consent import: a registry's events, all or nothing. Read twice: once to see that every row is sound, once to take them.
//
// Raw ids are made into pseudonyms on the way and never stored. The same event of the same source twice is one event.

import Foundation
import NIOConcurrencyHelpers
import Policies
import Records
import Sealing
import Store

struct ConsentImport: Sendable {
  package enum Format: String, Sendable, CaseIterable { case csv, ndjson, fhir }

  /// What an import came to.
  struct Result: Sendable {
    var rows: Int64 = 0
    var accepted: Int64 = 0
    var duplicates: Int64 = 0
    /// People whom a snapshot does not name any more.
    var absent: Int64 = 0
    /// Events that say no, those without effect too.
    var negatives: Int64 = 0
    var sequence: Int64 = 0
    /// The registry was never heard of before.
    var isNewSource = false
  }

  struct Options: Sendable {
    let file: String
    let format: Format
    let agreement: String
    let source: String
    /// Whoever the file does not name has withdrawn.
    let isSnapshot: Bool
    /// A snapshot that changes more of the known people than this share is refused.
    let changePercentMax: Int64
    /// Two different people let a larger change through.
    let confirmedBy: [String]
  }

  /// From here on the transaction has room in memory.
  private static let manyRecords: Int64 = 100_000

  private static let columns = [
    "source_event_id", "subject_id_type", "subject_id", "agreement", "purpose", "event", "event_time", "valid_until",
    "indicated_by", "relation", "notice_id", "language", "method", "scope",
  ]
  private static let places = Dictionary(uniqueKeysWithValues: zip(columns, columns.indices))
  private static let events = ConsentEvent.allCases.map { "\"\($0.rawValue)\"" }.joined(separator: ",")
  private static let requiredColumns: Set<String> = [
    "source_event_id", "subject_id", "agreement", "purpose", "event", "event_time",
  ]

  static let csvSchema: String = {
    let fields = columns.map { name in
      let required = "\"constraints\":{\"required\":\(requiredColumns.contains(name))"
      switch name {
      case "event": return "{\"name\":\"\(name)\",\(required),\"enum\":[\(events)]}}"
      case "event_time", "valid_until": return "{\"name\":\"\(name)\",\"type\":\"datetime\",\(required)}}"
      case "source_event_id": return "{\"name\":\"\(name)\",\(required),\"unique\":true,\"maxLength\":200}}"
      default: return "{\"name\":\"\(name)\",\(required),\"maxLength\":200}}"
      }
    }
    return "{\"fields\":[\(fields.joined(separator: ","))]}"
  }()

  static let jsonSchema: String = {
    let properties = columns.map { name in
      switch name {
      case "event": return "\"\(name)\":{\"enum\":[\(events)]}"
      case "event_time", "valid_until": return "\"\(name)\":{\"type\":\"string\",\"format\":\"date-time\"}"
      default: return "\"\(name)\":{\"type\":\"string\",\"maxLength\":200}"
      }
    }
    return
      "{\"type\":\"object\",\"additionalProperties\":false,\"required\":[\(requiredColumns.sorted().map { "\"\($0)\"" }.joined(separator: ","))],\"properties\":{\(properties.joined(separator: ","))}}"
  }()

  /// FHIR R4 Consent, as far as it can be mapped without guessing: no provisions within provisions, no exceptions, no modifiers. A
  /// grant says that it permits; by nobody else, unverified, of another scope or under another rule than opting in it is none.
  static let fhirSchema = """
    {"type":"object","required":["resourceType","id","status","patient","dateTime"],"properties":{
    "resourceType":{"const":"Consent"},"id":{"type":"string","maxLength":64},"implicitRules":false,"modifierExtension":false,
    "meta":{"type":"object","properties":{"versionId":{"type":"string","maxLength":64},"lastUpdated":{"type":"string","format":"date-time"}}},
    "status":{"enum":["active","inactive","rejected","entered-in-error"]},
    "patient":{"type":"object","required":["identifier"],"properties":{"identifier":{"type":"object","required":["value"],"properties":{"value":{"type":"string","maxLength":100}}}}},
    "dateTime":{"type":"string","format":"date-time"},
    "provision":{"type":"object","properties":{"type":{"enum":["permit","deny"]},"modifierExtension":false,
      "period":{"type":"object","properties":{"start":{"type":"string","format":"date-time"},"end":{"type":"string","format":"date-time"}}},
      "provision":false,"actor":false,"action":false,"securityLabel":false,"purpose":false,"class":false,"code":false,"data":false,"dataPeriod":false}}},
    "allOf":[
    {"if":{"properties":{"status":{"const":"inactive"}}},"then":{"required":["meta"],"properties":{"meta":{"required":["lastUpdated"]}}}},
    {"if":{"properties":{"status":{"const":"active"}}},"then":{"required":["provision"],"properties":{"provision":{"required":["type"]}}}},
    {"if":{"required":["provision"],"properties":{"status":{"const":"active"},"provision":{"properties":{"type":{"const":"permit"}}}}},"then":{"properties":{
      "performer":false,"verification":{"items":{"required":["verified"],"properties":{"verified":{"const":true}}}},
      "scope":{"properties":{"coding":{"items":{"properties":{"code":{"const":"patient-privacy"}}}}}},
      "policyRule":{"properties":{"coding":{"items":{"properties":{"code":{"const":"OPTIN"}}}}}}}}}]}
    """
  private static let fhirFields = [
    "id", "meta.versionId", "status", "patient.identifier.value", "dateTime", "meta.lastUpdated", "provision.type",
    "provision.period.end", "provision.period.start",
  ]

  let context: GatewayContext
  let options: Options

  func run() async throws -> (result: Result, acknowledgement: ConsentAcknowledgement?) {
    let journey = ConsentJourney(context: context)
    let agreement = try journey.agreement(options.agreement)
    let (format, filter) = try reading()
    let check = RecordCheck(format, workers: context.workers)
    let file = OpenFile(try File(options.file, O_RDONLY | O_NONBLOCK))
    let report = try await context.passes.run { try check.run(file.file.input) }
    guard report.isValid else {
      let first = report.findings.prefix(5).map(\.text).joined(separator: "; ")
      throw SealingError(.documentInvalid, "\(options.file): \(report.sentence); nothing was taken. First: \(first)")
    }
    // A feed that broke gives empty files: those are no sign of life.
    guard report.records > 0 || options.isSnapshot else {
      throw SealingError(
        .documentInvalid,
        "\(options.file) holds no events; a registry that has nothing new says so: sallyport consent heartbeat")
    }
    let recordedAt = context.now()
    let (options, key, consents) = (options, journey.key(agreement), context.consents)
    let changes = NIOLockedValueBox<[(SubjectReference, UInt64, isNegative: Bool)]>([])
    let result = try await journey.undoing(changes.withLockedValue { $0.map(\.0) }, agreement.id) { tx in
      if report.records > Self.manyRecords { try tx.makeRoom() }
      var result = Result()
      let failure = NIOLockedValueBox<(any Error)?>(nil)
      var changed: [(SubjectReference, UInt64, isNegative: Bool)] = []
      var named: Set<SubjectReference> = []
      /// Known people who said yes before and say no now, or the other way round.
      var turned: Set<SubjectReference> = []
      let digest = StreamingDigest()
      result.sequence = tx.sequence + 1
      let knownBefore = try tx.reader.consentCount(agreement.id)
      func take(_ event: ConsentEvent, _ row: ConsentEventRow) throws {
        guard try tx.add(consentEvent: row, sequence: result.sequence, ordinal: result.accepted) else {
          guard try tx.holds(consentEvent: row) else {
            throw SealingError(
              .documentInvalid, "row \(result.rows): another event has its id at this source; nothing was taken")
          }
          result.duplicates += 1
          return
        }
        digest.add(row.line)
        let before = options.isSnapshot ? try tx.consentWord(row.agreement, row.subject) : nil
        let word = try ConsentJourney.apply(row, event, tx)
        if let before, ConsentJourney.isNegative(before) != ConsentJourney.isNegative(word) {
          turned.insert(row.subject)
        }
        // What counts is what is left, not what was said: an older withdrawal may stand behind a newer grant.
        changed.append((row.subject, word, ConsentJourney.isNegative(word)))
        if event.state.isNegative { result.negatives += 1 }
        result.accepted += 1
      }
      // The reader runs on a thread of its own and hands batches over; the transaction stays on this one.
      let batches = RowQueue()
      let thread = Thread {
        let end = Swift.Result {
          let again = try RecordCheck(format, workers: 1).run(
            file.file.input, through: filter, nil, now: recordedAt, to: RecordSink(rows: { try batches.put($0) }))
          guard again.isValid, again.records == report.records, again.bytes == report.bytes else {
            throw SealingError(.documentInvalid, "\(options.file) changed while it was read; nothing was taken")
          }
        }
        if case .failure(let error) = end { failure.withLockedValue { $0 = error } }
        batches.close()
      }
      thread.stackSize = 16 << 20
      thread.start()
      do {
        while let rows = batches.next() {
          for values in rows {
            result.rows += 1
            let (event, row) = try Self.event(values, options, agreement, key, place: result.rows, now: tx.at)
            if options.isSnapshot { named.insert(row.subject) }
            try take(event, row)
          }
        }
      } catch {
        batches.abandon()
        throw error
      }
      if let error = failure.withLockedValue({ $0 }) { throw error }
      if options.isSnapshot {
        let absent = try Self.absent(named, options, agreement, tx, changed: turned.count, knownBefore: knownBefore)
        let event = agreement.consent.model == .optOut ? ConsentEvent.objected : .withdrawn
        for subject in absent {
          try take(
            event,
            ConsentEventRow(
              agreement: agreement.id, subject: subject, event: event.rawValue, at: tx.at, validUntil: nil,
              source: options.source, sourceEvent: "snapshot \(result.sequence) \(subject)",
              detail: ["method": "absent from a snapshot"]))
        }
        result.absent = Int64(absent.count)
        result.accepted -= result.absent
      }
      try tx.append(
        AuditEvent(
          "consent.import",
          [
            "agreement": .string(agreement.id), "source": .string(options.source), "rows": .integer(result.rows),
            "accepted": .integer(result.accepted), "duplicates": .integer(result.duplicates),
            "absent": .integer(result.absent), "sha256": .string(digest.finish().hex),
            "confirmedBy": .array(options.confirmedBy.map { .string($0) }),
          ]))
      if result.negatives > 0 { try tx.owe(acknowledgementOf: result.sequence) }
      result.isNewSource = try tx.heard(agreement.id, source: options.source, at: tx.at)
      // Nothing can fail any more: what is negative counts from here.
      for (subject, word, isNegative) in changed where isNegative { consents.set(agreement.id, subject, word) }
      changes.withLockedValue { $0 = changed }
      return result
    }
    let changed = changes.withLockedValue { $0 }
    for (subject, word, _) in changed { context.consents.set(agreement.id, subject, word) }
    context.news.consents.notify()
    let negatives = changed.filter(\.isNegative).map(\.0)
    let acknowledgement =
      result.negatives == 0
      ? nil
      : try await journey.settle(
        negatives, agreement, because: .withdrawn, sequence: result.sequence, recordedAt: recordedAt)
    return (result, acknowledgement)
  }

  private func reading() throws -> (RecordFormat, RecordFilter) {
    var plan = RecordPlan()
    let (format, schema): (RecordFormat, String)
    switch options.format {
    case .csv:
      schema = Self.csvSchema
      plan.extracted = Self.columns
      format = .csv(try TableSchema(Array(schema.utf8)), CSVDialect())
    case .ndjson:
      schema = Self.jsonSchema
      plan.extracted = Self.columns
      format = .ndjson(try SchemaProgram.compile(Array(schema.utf8)))
    case .fhir:
      schema = Self.fhirSchema
      plan.extracted = Self.fhirFields
      format = .ndjson(try SchemaProgram.compile(Array(schema.utf8)))
    }
    return (format, try RecordFilter(plan, format, schema: Array(schema.utf8)))
  }

  // MARK: rows

  private static func event(
    _ values: [String?], _ options: Options, _ agreement: Agreement, _ key: SubjectKey, place: Int64, now: Date
  ) throws -> (ConsentEvent, ConsentEventRow) {
    func refused(_ reason: String) -> SealingError {
      SealingError(.documentInvalid, "row \(place): \(reason); nothing was taken")
    }
    let event: ConsentEvent
    let (id, sourceEvent, at, until): (String, String, String, String?)
    var detail: [String: JSON] = [:]
    if options.format == .fhir {
      // A version is one event; without a number its state and time tell it apart.
      (id, sourceEvent) = (
        values[3] ?? "", "\(values[0] ?? "")/\(values[1] ?? "\(values[2] ?? "") \(values[5] ?? values[4] ?? "")")"
      )
      switch (values[2], values[6]) {
      case ("active", "permit"): event = .given
      case ("active", _): event = .refused
      case ("inactive", _): event = .withdrawn
      case ("rejected", _): event = .refused
      default: event = .invalidated
      }
      // A grant is as old as the person's act; what says no counts from the latest time it names, above the grant that it corrects.
      at = (event == .given ? values[4] : Self.latest([values[4], values[5], values[8]])) ?? ""
      if event == .given, let start = values[8].flatMap(Subject.instant), start > now + ConsentJourney.futureSecondsMax
      {
        throw refused("the consent begins only on \(Timestamp.format(start)): import it then")
      }
      until = event == .given ? values[7] : nil
      detail["method"] = "fhir"
    } else {
      func value(_ name: String) -> String? { values[places[name]!] }
      guard value("agreement") == agreement.id else { throw refused("it is about another agreement") }
      guard value("purpose") == agreement.consent.purposeRef else { throw refused("it is about another purpose") }
      if let type = value("subject_id_type"), type != agreement.subjects.identifierType {
        throw refused("ids are of the type \(agreement.subjects.identifierType ?? "")")
      }
      guard let known = ConsentEvent(rawValue: value("event") ?? "") else { throw refused("the event is not known") }
      event = known
      (id, sourceEvent) = (value("subject_id") ?? "", value("source_event_id") ?? "")
      (at, until) = (value("event_time") ?? "", value("valid_until"))
      if let reason = agreement.consent.objection(to: event, relation: value("relation"), notice: value("notice_id")) {
        throw refused(reason)
      }
      guard value("scope") == nil || event.state.isNegative else {
        throw refused("a consent of limited scope is not one to the whole record")
      }
      for name in ["indicated_by", "relation", "notice_id", "language", "method", "scope"] {
        detail[name] = value(name).map { .string($0) }
      }
    }
    guard let subject = Subject.reference(id, key) else { throw refused("the subject's id is no id") }
    guard sourceEvent.isOneLine else { throw refused("the event's id holds control characters") }
    guard let instant = Subject.instant(at), until == nil || Subject.instant(until!) != nil else {
      throw refused("a time cannot be read")
    }
    guard event.state.isNegative || instant <= now + ConsentJourney.futureSecondsMax else {
      throw refused("a \(event.rawValue) is dated in the future: \(Timestamp.format(instant))")
    }
    return (
      event,
      ConsentEventRow(
        agreement: agreement.id, subject: subject, event: event.rawValue, at: instant,
        validUntil: until.flatMap(Subject.instant), source: options.source, sourceEvent: sourceEvent,
        detail: .object(detail))
    )
  }

  private static func latest(_ times: [String?]) -> String? {
    times.compactMap { $0 }.max { (Subject.instant($0) ?? .distantPast) < (Subject.instant($1) ?? .distantPast) }
  }

  /// A snapshot withdraws for whoever it does not name; but a cut file must not withdraw for everybody.
  private static func absent(
    _ named: Set<SubjectReference>, _ options: Options, _ agreement: Agreement, _ tx: Transaction, changed: Int,
    knownBefore: Int
  ) throws -> [SubjectReference] {
    var absent: [SubjectReference] = []
    try tx.reader.forEachConsent(agreement.id) { subject, word in
      guard let record = ConsentRecord(word: word), !record.state.isNegative, !named.contains(subject) else { return }
      absent.append(subject)
    }
    // Of those who were known before: who is new changes nobody, and neither does who says the same once more.
    let change = knownBefore == 0 ? 0 : Int64(absent.count + changed) * 100 / Int64(knownBefore)
    guard change <= options.changePercentMax || Set(options.confirmedBy.map(PersonName.key)).count >= 2 else {
      throw AdminError(
        .refused,
        "this snapshot changes \(change) % of the people known, over \(options.changePercentMax) %; nothing was taken. If that is right, two people confirm it: --confirmed-by NAME --confirmed-by NAME"
      )
    }
    return absent
  }
}

/// What people and files call a subject.
enum Subject {
  static func reference(_ id: String, _ key: SubjectKey) -> SubjectReference? {
    SubjectName.canonical(id).map { key.reference($0) }
  }

  /// An RFC 3339 instant.
  static func instant(_ text: String) -> Date? {
    if let exact = Timestamp.parse(text) { return exact }
    return try? Date(text, strategy: .iso8601)
  }
}

/// Batches of rows from one thread to another; a few at a time.
private final class RowQueue: @unchecked Sendable {
  // Proof for @unchecked: touched only under `condition`.
  private let condition = NSCondition()
  private var batches: [[[String?]]] = []
  private var isClosed = false
  private var isAbandoned = false

  struct Abandoned: Error {}

  func put(_ rows: [[String?]]) throws {
    condition.lock()
    defer { condition.unlock() }
    while batches.count >= 4, !isAbandoned { condition.wait() }
    if isAbandoned { throw Abandoned() }
    batches.append(rows)
    condition.broadcast()
  }

  func next() -> [[String?]]? {
    condition.lock()
    defer { condition.unlock() }
    while batches.isEmpty, !isClosed { condition.wait() }
    defer { condition.broadcast() }
    return batches.isEmpty ? nil : batches.removeFirst()
  }

  func close() {
    condition.withLock {
      isClosed = true
      condition.broadcast()
    }
  }

  func abandon() {
    condition.withLock {
      isAbandoned = true
      condition.broadcast()
    }
  }
}

/// SHA-256 over lines.
private final class StreamingDigest {
  private var hash = StreamingSHA256()

  func add(_ line: [UInt8]) {
    line.withUnsafeBytes { hash.update($0) }
    [UInt8(10)].withUnsafeBytes { hash.update($0) }
  }

  func finish() -> Digest { hash.finish() }
}
