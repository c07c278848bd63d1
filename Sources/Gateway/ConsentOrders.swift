// Administration of consent: what people choose, what is known about them, and the proof that it was respected.

import Foundation
import Policies
import Sealing
import Store

extension Administration {
  /// consent grant, withdraw and the other events by hand.
  func recordConsent(_ arguments: inout DocumentReader) async throws -> [JSON] {
    let journey = ConsentJourney(context: context)
    let agreement = try journey.agreement(try arguments.string("agreement"))
    let event = try arguments.choice("event", ConsentEvent.self)
    let subject = try reference(try arguments.string("subject"), agreement)
    let now = context.now()
    let at = try arguments.optional("at") { (r, n) throws(SealingError) in try r.date(n) } ?? now
    let until = try arguments.optional("until") { (r, n) throws(SealingError) in try r.date(n) }
    var detail: [String: JSON] = [:]
    for name in ["method", "indicatedBy", "relation", "notice"] {
      detail[name] = try arguments.optional(name) { (r, n) throws(SealingError) in .string(try r.line(n)) }
    }
    func told(_ name: String) -> String? { if case .string(let text)? = detail[name] { text } else { nil } }
    guard event.state.isNegative || told("indicatedBy") == nil || told("relation") != nil else {
      let known = (["self"] + agreement.consent.representatives).joined(separator: ", ")
      throw AdminError(.usage, "who is that to the person? --relation, one of: \(known)")
    }
    if let reason = agreement.consent.objection(to: event, relation: told("relation"), notice: told("notice")) {
      throw AdminError(.badData, reason)
    }
    let sourceEvent =
      try arguments.optional("eventId") { (r, n) throws(SealingError) in try r.line(n) } ?? TransferID().text
    try arguments.finish()
    let row = ConsentEventRow(
      agreement: agreement.id, subject: subject, event: event.rawValue, at: at, validUntil: until,
      source: Reader.byHand, sourceEvent: sourceEvent, detail: .object(detail))
    return [Self.document(try await journey.record(event, row, agreement))]
  }

  private func reference(_ id: String, _ agreement: Agreement) throws -> SubjectReference {
    guard let subject = Subject.reference(id, ConsentJourney(context: context).key(agreement)) else {
      throw AdminError(.badData, "that is no id: 1 to 100 printable ASCII characters")
    }
    return subject
  }

  /// The acknowledgement, with one plain sentence.
  private static func document(_ ack: ConsentAcknowledgement) -> JSON {
    let stopped = "\(ack.stopped.count) package\(ack.stopped.count == 1 ? " was" : "s were") stopped"
    let gone =
      "\(ack.disclosed.count) had gone before and \(ack.notices.count) notice\(ack.notices.count == 1 ? " goes" : "s go") after them"
      + (ack.notices.isEmpty && !ack.disclosed.isEmpty ? ", about which there is a notice already" : "")
      + (ack.isKnown ? "" : ". Nothing was known about this person: is it the id that records have?")
    return [
      "ack": "final", "sequence": .integer(ack.sequence), "recorded": .string(Timestamp.format(ack.recordedAt)),
      "acknowledged": .string(Timestamp.format(ack.acknowledgedAt)),
      "milliseconds": .integer(Int64(ack.acknowledgedAt.timeIntervalSince(ack.recordedAt) * 1000)),
      "stopped": .array(ack.stopped.map { .string($0.text) }),
      "alreadyDisclosed": .array(
        ack.disclosed.map {
          [
            "package": .string($0.id.text), "recipient": .string($0.recipient.text),
            "disclosed": .string($0.releasedAt.map(Timestamp.format) ?? ""),
          ]
        }), "notices": .array(ack.notices.map { .string($0.text) }),
      "effect": .bool(ack.hasEffect), "known": .bool(ack.isKnown),
      "plain": .string(
        ack.people == 0
          ? "Recorded, and nothing is stopped by it: what is newer stands for everybody in it."
          : ack.hasEffect
            ? "Recorded. From now on nothing about \(ack.people == 1 ? "this person" : "these \(ack.people) people") goes under this agreement: \(stopped); \(gone)\(ack.isKnown ? "." : "")"
            : "Recorded, and without effect: something else stands against it. See: sallyport consent show"),
    ]
  }

  func importConsent(_ arguments: inout DocumentReader) async throws -> [JSON] {
    let options = ConsentImport.Options(
      file: try arguments.string("file", bytesMax: 4096), format: try arguments.choice("format"),
      agreement: try arguments.string("agreement"), source: try arguments.line("source"),
      isSnapshot: try arguments.bool("snapshot"), changePercentMax: try arguments.integer("maxChange", 0...100),
      confirmedBy: try arguments.strings("confirmedBy", countMax: 8))
    try arguments.finish()
    let (result, ack) = try await ConsentImport(context: context, options: options).run()
    var members: [String: JSON] = [
      "rows": .integer(result.rows), "accepted": .integer(result.accepted), "duplicates": .integer(result.duplicates),
      "absent": .integer(result.absent), "sequence": .integer(result.sequence),
      "known": .integer(Int64(context.consents.count(options.agreement))), "head": context.ledger.head.document,
      "newSource": .bool(result.isNewSource),
    ]
    members["acknowledgement"] = ack.map(Self.document)
    return [.object(members)]
  }

  func heartbeat(_ arguments: inout DocumentReader) async throws -> [JSON] {
    let agreement = try ConsentJourney(context: context).agreement(try arguments.string("agreement"))
    let source = try arguments.line("source")
    try arguments.finish()
    let context = context
    let (at, isNew) = try await context.ledger.write { tx in
      let isNew = try tx.heard(agreement.id, source: source, at: tx.at)
      try tx.append(AuditEvent("consent.heartbeat", ["agreement": .string(agreement.id), "source": .string(source)]))
      return (tx.at, isNew)
    }
    context.news.claimed.notify()
    context.news.notifyLanes()
    return [
      [
        "agreement": .string(agreement.id), "source": .string(source), "heard": .string(Timestamp.format(at)),
        "newSource": .bool(isNew),
      ]
    ]
  }

  /// The registries that an agreement waits for; one of them is let go where the arguments say so.
  func sources(_ arguments: inout DocumentReader) async throws -> [JSON] {
    let agreement = try ConsentJourney(context: context).agreement(try arguments.string("agreement"))
    let retired = try arguments.optional("retire") { (r, n) throws(SealingError) in try r.line(n) }
    try arguments.finish()
    if let retired {
      try await context.ledger.write { tx in
        guard try tx.retire(agreement.id, source: retired) else {
          throw AdminError(.failed, "no registry \(retired) was heard of for \(agreement.id)")
        }
        try tx.append(
          AuditEvent("consent.source-retired", ["agreement": .string(agreement.id), "source": .string(retired)]))
      }
      context.news.claimed.notify()
      context.news.notifyLanes()
    }
    let (now, age) = (context.now(), agreement.consent.stalenessMax)
    let sources = try await context.ledger.read { try $0.consentSources(agreement.id) }
    // What is entered by hand keeps nobody waiting, but where there is nothing else.
    let registries = sources.filter { $0.source != Reader.byHand }
    let awaited = registries.isEmpty ? sources : registries
    return sources.map { source, heard in
      [
        "agreement": .string(agreement.id), "source": .string(source), "heard": .string(Timestamp.format(heard)),
        "quiet": .bool(awaited.contains { $0.source == source } && age.map { now >= $0.after(heard) } ?? false),
      ]
    }
  }

  /// What is known about one person, event by event.
  func showConsent(_ arguments: inout DocumentReader) async throws -> [JSON] {
    let agreement = try ConsentJourney(context: context).agreement(try arguments.string("agreement"))
    let subject = try reference(try arguments.string("subject"), agreement)
    try arguments.finish()
    let (events, word) = try await context.ledger.read {
      (try $0.consentEvents(agreement.id, subject), try $0.consentWord(agreement.id, subject) ?? 0)
    }
    let rule = ConsentRule(agreement.consent, at: context.now())
    let verdict = rule.verdict(word)
    let record = ConsentRecord(word: word)
    var state: [String: JSON] = [
      "agreement": .string(agreement.id), "subject": .string(subject.description),
      "state": .string(record?.state.name ?? "unknown"), "goes": .bool(verdict == 0),
      "code": .string(verdict == 0 ? "" : ConsentRule.reasons[Int(verdict) - 1]),
    ]
    state["since"] = record.map { .string(Timestamp.format($0.at)) }
    // The earlier of what the person said and what the agreement allows.
    state["until"] = rule.end(word).map { .string(Timestamp.format($0)) }
    return [.object(state)]
      + events.map {
        [
          "sequence": .integer($0.sequence), "event": .string($0.event), "at": .string(Timestamp.format($0.at)),
          "source": .string($0.source), "sourceEvent": .string($0.sourceEvent), "detail": $0.detail,
        ]
      }
  }

  func notices() async throws -> [JSON] {
    try rows(of: try await context.ledger.read { try $0.notices(limit: Self.rowsMax) })
  }

  func overdueNotices() async throws -> [JSON] {
    let now = context.now()
    return try rows(of: try await context.ledger.read { try $0.notices(overdueAt: now, limit: Self.rowsMax) })
  }

  private func rows(of notices: [NoticeRow]) throws -> [JSON] {
    let now = context.now()
    return try notices.map { row in
      let notice = try WithdrawalNotice(Envelope(parsing: row.envelope, as: .notice).unverified())
      let answer = try row.answer.map { try NoticeAnswer(Envelope(parsing: $0, as: .noticeReceipt).unverified()) }
      return [
        "notice": .string(row.id.text), "direction": .string(row.direction.rawValue), "partner": .string(row.peer.text),
        "agreement": .string(row.agreement), "asked": .string(notice.asked.rawValue),
        "records": .integer(notice.items.reduce(0) { $0 + Int64($1.ordinals.count) }),
        "items": notice.document.items, "state": .string(answer?.state.rawValue ?? "unanswered"),
        "actBy": .string(Timestamp.format(row.actBy)), "overdue": .bool(row.nextAt != nil && now > row.actBy),
      ]
    }
  }

  func answerNotice(_ arguments: inout DocumentReader) async throws -> [JSON] {
    let id = try arguments.transfer("notice")
    let state = try arguments.choice("state", NoticeAnswer.State.self)
    let because = try arguments.optional("because") { (r, n) throws(SealingError) in try r.line(n, bytesMax: 1024) }
    let absent = try arguments.optional("for") { (r, n) throws(SealingError) in try r.agency(n) }
    let evidence = try arguments.optional("evidence") { (r, n) throws(SealingError) in try r.line(n, bytesMax: 1024) }
    try arguments.finish()
    guard let absent, let evidence else {
      guard absent == nil, evidence == nil else { throw AdminError.forAndEvidence }
      return [try await NoticeDesk(context: context).answer(id, state, because: because).document]
    }
    return [
      try await Notices(context: context).answer(id, state, because: because, for: absent, evidence: evidence).document
    ]
  }

  // MARK: proof

  /// Replays the ledger and every release, and proves that nobody who had withdrawn was told about.
  func auditConsent() async throws -> [JSON] {
    let context = context
    return try await context.passes.run { try ConsentAudit(context: context).run() }
  }
}

extension JSON {
  fileprivate var items: JSON {
    guard case .object(let members) = self else { return .array([]) }
    return members["items"] ?? .array([])
  }
}

/// The replay behind `consent audit`. Blocks.
struct ConsentAudit: Sendable {
  let context: GatewayContext

  func run() throws -> [JSON] {
    var faults: [JSON] = []
    var overdue: [JSON] = []
    var (events, releases, subjects, unknown): (Int64, Int64, Int64, Int64) = (0, 0, 0, 0)
    func fault(_ what: String, _ members: [String: JSON]) {
      faults.append(.object(members.merging(["fault": .string(what)]) { _, new in new }))
    }
    try context.ledger.readNow { reader in
      // Events and releases in the one order that the ledger gave them.
      var waiting: [ConsentEventRow] = []
      try reader.forEachConsentEvent { waiting.append($0) }
      var next = 0
      var tables: [String: ConsentTable] = [:]
      var digests: [Int64: [UInt8]] = [:]
      func replay(upTo sequence: Int64, recordedAt: Date) {
        while next < waiting.count, waiting[next].sequence <= sequence {
          let row = waiting[next]
          next += 1
          events += 1
          digests[row.sequence, default: []] += row.line + [10]
          guard let event = ConsentEvent(rawValue: row.event) else { continue }
          let table = tables[row.agreement] ?? ConsentTable()
          let present = ConsentRecord(word: table.words([row.subject])[0])
          table.set(
            row.subject,
            ConsentRecord.applied(
              event, at: row.at, validUntil: row.validUntil, recordedAt: recordedAt, to: present
            ).word)
          tables[row.agreement] = table
        }
      }
      let forgotten = try Self.forgotten(reader)
      var acknowledged: Set<Int64> = []
      var negatives: Set<Int64> = Set(
        waiting.filter { ConsentEvent(rawValue: $0.event)?.state.isNegative ?? false }.map(\.sequence))
      var after: Int64 = 0
      while true {
        let entries = try reader.audit(after: after, limit: 1000)
        guard let last = entries.last else { break }
        after = last.sequence
        for entry in entries {
          guard case .object(let members) = try entry.document(), case .string(let kind)? = members["kind"],
            case .object(let detail)? = members["detail"], case .string(let at)? = members["at"],
            let instant = Timestamp.parse(at)
          else { continue }
          switch kind {
          case "consent.event", "consent.import":
            replay(upTo: entry.sequence, recordedAt: instant)
            let line = digests.removeValue(forKey: entry.sequence) ?? []
            let sum = Digest(of: kind == "consent.event" ? Array(line.dropLast()) : line).hex
            if case .string(let wanted)? = detail["sha256"], wanted != sum {
              fault("an event is not the one that was recorded", ["sequence": .integer(entry.sequence)])
            }
          case "consent.acknowledged":
            if case .integer(let sequence)? = detail["for"] { acknowledged.insert(sequence) }
          case "releasing":
            replay(upTo: entry.sequence, recordedAt: instant)
            guard case .string(let text)? = members["id"], let id = TransferID(text) else { continue }
            releases += 1
            if forgotten.contains(id) {
              unknown += 1
              continue
            }
            let found = try judge(id, tables, under: Self.agreement(of: detail), at: instant, reader)
            subjects += found.subjects
            for code in found.codes {
              fault(
                "released although somebody in it had not consented",
                ["transfer": .string(text), "code": .string(code)])
            }
          default: continue
          }
        }
      }
      negatives.subtract(acknowledged)
      for sequence in negatives.sorted() {
        fault("a withdrawal was not acknowledged: run consent withdraw again", ["sequence": .integer(sequence)])
      }
      overdue = try reader.notices(overdueAt: context.now(), .out).map {
        ["overdue": .string($0.id.text), "partner": .string($0.peer.text)]
      }
    }
    return faults + overdue + [
      [
        "events": .integer(events), "releases": .integer(releases), "subjects": .integer(subjects),
        "forgotten": .integer(unknown),
        "faults": .integer(Int64(faults.count)), "head": context.ledger.head.document,
      ]
    ]
  }

  /// The agreement in the decision of a release.
  private static func agreement(of detail: [String: JSON]) -> Digest? {
    guard case .object(let decision)? = detail["decision"], case .object(let agreement)? = decision["agreement"],
      case .string(let hex)? = agreement["sha256"]
    else { return nil }
    return Digest(hex: hex)
  }

  /// Packages whose report period is over.
  private static func forgotten(_ reader: Reader) throws -> Set<TransferID> {
    Set(
      try reader.audit(kind: Maintenance.forgotten).compactMap { entry in
        guard case .object(let members) = try entry.document(), case .object(let detail)? = members["detail"],
          case .string(let id)? = detail["package"]
        else { return nil }
        return TransferID(id)
      })
  }

  /// Codes of people in a package who had not consented at `instant`.
  private func judge(
    _ id: TransferID, _ tables: [String: ConsentTable], under released: Digest?, at instant: Date, _ reader: Reader
  ) throws -> (codes: [String], subjects: Int64) {
    guard let package = try reader.package(id) else {
      // Opaque payloads have no row: nobody was looked up for them.
      let isOpaque = released.flatMap { context.policies.agreement($0) }.map { $0.consent.model == .none } ?? false
      return (isOpaque ? [] : ["what consent was looked at is missing: it cannot be proved"], 0)
    }
    guard let digest = Digest(hex: package.agreementDigest),
      let agreement = context.policies.agreement(digest) ?? context.policies.current(package.agreement, at: instant)
    else { return (["the agreement is not here any more: it cannot be proved"], 0) }
    guard agreement.consent.model != .none else { return ([], 0) }
    guard let index = try context.spool.subjects(of: id) else {
      return (["the index of its subjects is missing: it cannot be proved"], 0)
    }
    let rule = ConsentRule(agreement.consent, at: instant)
    var codes: [String] = []
    var count: Int64 = 0
    try index.forEach { entries in
      count += Int64(entries.count)
      let words = tables[agreement.id]?.words(entries.map(\.subject)) ?? [UInt64](repeating: 0, count: entries.count)
      for word in words {
        let verdict = rule.verdict(word)
        if verdict != 0 { codes.append(ConsentRule.reasons[Int(verdict) - 1]) }
      }
    }
    return (codes, count)
  }
}
