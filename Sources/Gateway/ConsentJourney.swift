// What a person's choice sets going: the event in the ledger, packages that are stopped, notices about those that are gone, and
// the acknowledgement that says all of it.
//
//   COMMIT event (from here on no release begins that it forbids)  →  memory  →  packages not released that hold the person:
//   taken back  →  open leases that hold the person: waited for  →  COMMIT notices + acknowledgement
//
// A crash on the way repeats nothing and loses nothing: the event stands, the release rule looks at it, and `consent audit` finds
// what was not acknowledged.

import Foundation
import Logging
import Policies
import Sealing
import Store
import Transport

/// What a withdrawal came to. Promise 3: whoever is not listed here as disclosed cannot read the record, ever.
package struct ConsentAcknowledgement: Equatable, Sendable {
  package let sequence: Int64
  package let stopped: [TransferID]
  package let disclosed: [PackageRow]
  package let notices: [TransferID]
  package let recordedAt: Date
  package let acknowledgedAt: Date
}

struct ConsentJourney: Sendable {
  /// More people at once are looked for by reading an index through.
  private static let searchesMax = 200

  let context: GatewayContext

  func key(_ agreement: Agreement) -> SubjectKey {
    SubjectKey(master: context.keys.subjectMaster, .ledger, context: agreement.id)
  }

  /// An agreement of ours that asks for consent.
  ///
  /// - Throws: `AdminError` refused, when nobody is asked under it; failed, when it is not here.
  func agreement(_ id: String) throws -> Agreement {
    guard let agreement = context.policies.current(id, at: context.now()) else {
      throw AdminError(.failed, "no agreement \(id) in \(context.home.policies)")
    }
    guard agreement.consent.model != .none else {
      throw AdminError(.refused, "under \(id) nobody is asked: its consent model is none")
    }
    return agreement
  }

  /// One event by hand or by a portal.
  func record(_ event: ConsentEvent, _ row: ConsentEventRow, _ agreement: Agreement) async throws
    -> ConsentAcknowledgement
  {
    let recordedAt = context.now()
    let isNegative = event.state.isNegative
    let consents = context.consents
    let (sequence, word) = try await context.ledger.write { tx in
      guard try !tx.knows(source: row.source, event: row.sourceEvent) else {
        throw LedgerError.illegal("recording event \(row.sourceEvent) of \(row.source) twice")
      }
      let sequence = try tx.append(
        AuditEvent(
          "consent.event",
          [
            "agreement": .string(row.agreement), "subject": .string(row.subject.description),
            "event": .string(row.event),
            "sha256": .string(Digest(of: row.line).hex),
          ]))
      _ = try tx.add(consentEvent: row, sequence: sequence, ordinal: 0)
      try tx.heard(row.agreement, source: row.source, at: tx.at)
      let word = try Self.apply(row, event, tx)
      if isNegative { consents.set(row.agreement, row.subject, word) }
      return (sequence, word)
    }
    context.consents.set(row.agreement, row.subject, word)
    guard isNegative else {
      return ConsentAcknowledgement(
        sequence: sequence, stopped: [], disclosed: [], notices: [], recordedAt: recordedAt,
        acknowledgedAt: context.now())
    }
    return try await settle([row.subject], agreement, because: event, sequence: sequence, recordedAt: recordedAt)
  }

  /// The state after an event, stored. Returns its word.
  static func apply(_ row: ConsentEventRow, _ event: ConsentEvent, _ tx: Transaction) throws -> UInt64 {
    // A withdrawal counts from its recording, whatever its date.
    let at = event.state.isNegative ? min(row.at, tx.at) : row.at
    let next = ConsentRecord(state: event.state, at: at, validUntil: row.validUntil)
    let present = try tx.consentWord(row.agreement, row.subject).flatMap { ConsentRecord(word: $0) }
    let word = ConsentRecord.merged(present, next).word
    try tx.setConsent(row.agreement, row.subject, word: word)
    return word
  }

  /// What a crash left without its acknowledgement. Before any stage runs.
  func settleAfterCrash() async throws {
    let open = try await context.ledger.read { try $0.negativesWithoutAcknowledgement(ConsentEvent.negativeNames) }
    for (sequence, rows) in Dictionary(grouping: open, by: \.sequence).sorted(by: { $0.key < $1.key }) {
      guard let id = rows.first?.agreement, let agreement = context.policies.current(id, at: context.now()) else { continue }
      let because = rows.first.flatMap { ConsentEvent(rawValue: $0.event) } ?? .withdrawn
      _ = try await settle(rows.map(\.subject), agreement, because: because, sequence: sequence, recordedAt: context.now())
    }
  }

  // MARK: stopping

  /// Stops what can be stopped, waits for what is on its way, tells those who have it.
  func settle(
    _ subjects: [SubjectReference], _ agreement: Agreement, because: ConsentEvent, sequence: Int64, recordedAt: Date
  ) async throws -> ConsentAcknowledgement {
    var stopped: [TransferID] = []
    var disclosed: [(package: PackageRow, ordinals: [Int64])] = []
    for package in try await context.ledger.read({ try $0.packages(agreement: agreement.id) }) {
      let ordinals = try await context.pool.run { [context] () -> [Int64] in
        guard let index = try context.spool.subjects(of: package.id) else { return [] }
        var found: [Int64] = []
        if subjects.count > Self.searchesMax {
          let wanted = Set(subjects)
          try index.forEach { found += $0.filter { wanted.contains($0.subject) }.map(\.ordinal) }
        } else {
          for subject in subjects { found += try index.ordinals(of: subject) }
        }
        return found.sorted()
      }
      guard !ordinals.isEmpty else { continue }
      if try await stop(package.id, ordinals) {
        stopped.append(package.id)
      } else if let now = try await context.ledger.read({ try $0.package(package.id) }), now.released != nil {
        disclosed.append((now, ordinals))
      }
    }
    let notices = agreement.aggregate == nil ? noticesFor(disclosed, agreement, because, sequence) : []
    let (ended, gone) = (stopped, disclosed.map(\.package))
    try await context.ledger.write { tx in
      for notice in notices { try tx.put(notice) }
      try tx.append(
        AuditEvent(
          "consent.acknowledged",
          [
            "for": .integer(sequence), "stopped": .array(ended.map { .string($0.text) }),
            "disclosed": .array(gone.map { .string($0.id.text) }),
            "notices": .array(notices.map { .string($0.id.text) }),
          ]))
    }
    if !notices.isEmpty { context.news.notices.notify() }
    return ConsentAcknowledgement(
      sequence: sequence, stopped: stopped, disclosed: gone, notices: notices.map(\.id),
      recordedAt: recordedAt, acknowledgedAt: context.now())
  }

  /// True when the package was stopped before its key went. A lease that is open is waited for: at most `leaseSeconds`.
  private func stop(_ id: TransferID, _ ordinals: [Int64]) async throws -> Bool {
    while true {
      guard let transfer = try await context.ledger.read({ try $0.transfer(context.agency, id) }) else { return false }
      let state = transfer.state == .held ? transfer.heldFrom ?? .held : transfer.state
      switch state {
      case .sealed, .queued, .sending, .custody:
        do {
          try await Withdrawal(context: context).stop(transfer, ordinals, code: "consent.withdrawn")
          return true
        } catch LedgerError.stale {
          continue
        }
      case .releasing:
        guard let lease = transfer.nextAt, lease > context.now() else { return false }
        try await Task.sleep(for: .milliseconds(5))
      case .cancelled, .expired, .refused: return true
      default: return false
      }
    }
  }

  private func noticesFor(
    _ disclosed: [(package: PackageRow, ordinals: [Int64])], _ agreement: Agreement, _ because: ConsentEvent,
    _ sequence: Int64
  ) -> [NoticeRow] {
    let now = context.now()
    return Dictionary(grouping: disclosed, by: { $0.package.recipient }).sorted { $0.key < $1.key }.flatMap {
      recipient, packages in
      stride(from: 0, to: packages.count, by: WithdrawalNotice.itemsMax).map { start in
        let notice = WithdrawalNotice(
          id: TransferID(), issuer: context.agency, to: recipient,
          agreement: NamedDigest(id: agreement.id, sha256: agreement.digest),
          items: packages[start..<min(start + WithdrawalNotice.itemsMax, packages.count)].map {
            .init(package: $0.package.id, ordinals: Array($0.ordinals.prefix(WithdrawalNotice.ordinalsMax)))
          }, asked: agreement.consent.asked, because: because.rawValue, sequence: sequence, issuedAt: now,
          actBy: agreement.consent.actWithin?.after(now) ?? now + 10 * 86400)
        return NoticeRow(
          id: notice.id, direction: .out, peer: recipient, agreement: agreement.id,
          envelope: context.sign(notice.document, as: .notice).bytes, nextAt: now, actBy: notice.actBy,
          sequence: sequence)
      }
    }
  }
}

/// Sends one partner's notices until each has its last answer.
struct Notices: Sendable {
  static let askAgainSeconds: TimeInterval = 3600

  let context: GatewayContext
  let links: PartnerLinks

  func run(_ partner: AgencyID) async throws {
    while !Task.isCancelled {
      let seen = context.news.notices.generation
      let due = try await context.ledger.read { [now = context.now()] in
        try $0.noticesDue(to: partner, at: now, limit: 50)
      }
      for notice in due {
        do {
          try await send(notice)
        } catch {
          switch Disposition(error) {
          case .stop: throw FatalFailure(cause: error)
          case .ignore: break
          case .retry(_, let note), .halt(_, let note):
            context.logger.notice("notice \(notice.id) to \(partner): \(note)")
            try await later(notice, seconds: 5)
          }
        }
      }
      await context.news.notices.wait(after: seen, for: .seconds(due.isEmpty ? 30 : 1))
    }
  }

  private func send(_ notice: NoticeRow) async throws {
    let reply = try await links.send(notice.peer, "PUT", "/v1/notices/\(notice.id)") {
      $0.body = .bytes(notice.envelope)
      $0.headers = ["Content-Type: application/json"]
    }
    guard reply.status == 200, let card = context.partners[notice.peer]?.card?.card else {
      throw Problem(reply) ?? Problem(.unavailable, code: "partner.status", "the notice is answered \(reply.status)")
    }
    let envelope = try Envelope(parsing: reply.body, as: .noticeReceipt)
    let answer = try NoticeAnswer(try envelope.verify(card.signers(at: context.now())))
    guard answer.id == notice.id, answer.notice == (try Envelope(parsing: notice.envelope, as: .notice)).payloadDigest
    else {
      throw SealingError(.documentInvalid, "the answer is about another notice")
    }
    let isNew = notice.answer != envelope.bytes
    try await context.ledger.write { tx in
      var row = notice
      row.answer = envelope.bytes
      // Received is not done: it is asked again until it is.
      row.nextAt = answer.state == .received ? tx.at + Self.askAgainSeconds : nil
      try tx.put(row)
      if isNew {
        try tx.append(
          AuditEvent(
            "notice.answered",
            [
              "notice": .string(notice.id.text), "state": .string(answer.state.rawValue),
              "sha256": .string(envelope.payloadDigest.hex),
            ]))
      }
    }
  }

  private func later(_ notice: NoticeRow, seconds: TimeInterval) async throws {
    try await context.ledger.write { tx in
      var row = notice
      row.nextAt = tx.at + seconds
      try tx.put(row)
    }
  }
}

/// The recipient's side: takes notices and answers them.
struct NoticeDesk: Sendable {
  let context: GatewayContext

  /// `PUT /v1/notices/{id}`: stores it, stops what has not reached the inbox, and gives the newest answer.
  func take(_ id: TransferID, _ bytes: [UInt8], from partner: AgencyID) async throws -> Envelope {
    guard let card = context.partners[partner]?.card?.card else { throw Problem(.notFound, "there is nothing here") }
    let envelope = try Envelope(parsing: bytes, as: .notice)
    let notice = try WithdrawalNotice(try envelope.verify(card.signers(at: context.now())))
    guard notice.id == id, notice.issuer == partner, notice.to == context.agency else {
      throw Problem(.malformed, "the notice is not for this place")
    }
    if let held = try await context.ledger.read({ try $0.notice(id) }) {
      guard held.peer == partner, held.direction == .in, held.envelope == bytes, let answer = held.answer else {
        throw Problem(.conflict, "another notice has this id")
      }
      return try Envelope(parsing: answer, as: .noticeReceipt)
    }
    var stopped: [TransferID] = []
    for item in notice.items where try await stop(item.package, of: partner) { stopped.append(item.package) }
    let answer = answer(.received, to: notice, envelope, stopped: stopped, because: nil)
    try await context.ledger.write { tx in
      let sequence = try tx.append(
        AuditEvent(
          "notice.received",
          ["notice": .string(id.text), "from": .string(partner.text), "asked": .string(notice.asked.rawValue)]))
      try tx.put(
        NoticeRow(
          id: id, direction: .in, peer: partner, agreement: notice.agreement.id, envelope: bytes, answer: answer.bytes,
          nextAt: nil, actBy: notice.actBy, sequence: sequence))
    }
    context.logger.notice(
      "\(partner) asks to \(notice.asked.rawValue) records by \(Timestamp.format(notice.actBy)): sallyport consent notices"
    )
    return answer
  }

  /// A package that has not been delivered yet is stopped here.
  private func stop(_ id: TransferID, of sender: AgencyID) async throws -> Bool {
    guard let transfer = try await context.ledger.read({ try $0.transfer(sender, id) }), transfer.direction == .in,
      [.received, .opened].contains(transfer.state)
    else { return false }
    do {
      try await OpenPackage(context: context).quarantine(
        transfer, code: "consent.withdrawn",
        note: "a person in it has withdrawn; the sender will send it again without them")
      return true
    } catch LedgerError.stale {
      return false
    }
  }

  /// What the administrator did about it.
  func answer(_ id: TransferID, _ state: NoticeAnswer.State, because: String?) async throws -> NoticeAnswer {
    guard let held = try await context.ledger.read({ try $0.notice(id) }), held.direction == .in else {
      throw LedgerError.notFound("notice \(id)")
    }
    let envelope = try Envelope(parsing: held.envelope, as: .notice)
    let notice = try WithdrawalNotice(envelope.unverified())
    let earlier = try held.answer.map { try NoticeAnswer(Envelope(parsing: $0, as: .noticeReceipt).unverified()) }
    let signed = answer(state, to: notice, envelope, stopped: earlier?.stopped ?? [], because: because)
    try await context.ledger.write { tx in
      var row = held
      row.answer = signed.bytes
      try tx.put(row)
      try tx.append(AuditEvent("notice.answer", ["notice": .string(id.text), "state": .string(state.rawValue)]))
    }
    return try NoticeAnswer(signed.unverified())
  }

  private func answer(
    _ state: NoticeAnswer.State, to notice: WithdrawalNotice, _ envelope: Envelope, stopped: [TransferID],
    because: String?
  ) -> Envelope {
    context.sign(
      NoticeAnswer(
        notice: envelope.payloadDigest, id: notice.id, from: context.agency, state: state, stopped: stopped,
        retainedBecause: because, at: context.now()
      ).document, as: .noticeReceipt)
  }
}
