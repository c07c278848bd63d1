// Withdrawal notices between gateways: each goes to its recipient, or is come for, until its last signed answer is here.
//
//   PUT /v1/notices/{id}            the issuer, to the recipient or the hub before it: the newest answer, or 202 while there is none
//   GET /v1/notices/{id}            the recipient, where its list names one
//   PUT /v1/notices/{id}/receipt    its signed answer; again when that changes. Without a gateway: its word, `{"state":"actioned"}`

import Foundation
import Logging
import Policies
import Sealing
import Store
import Transport

/// The side that has sent notices, its own or as a hub others', and waits for answers.
struct Notices: Sendable {
  /// How often a recipient is asked again that has received one and not done it yet.
  static let askAgainSeconds: TimeInterval = 3600
  /// The same for a hub whose recipient has not come for it.
  static let askHubSeconds: TimeInterval = 30
  /// How many a partner is told of at once.
  static let listMax = 50
  /// How many a recipient keeps open of one partner, and a hub for one partner under one agreement.
  static let openMax = 10_000

  let context: GatewayContext

  /// Sends one partner's notices until each has its last answer.
  func run(_ partner: AgencyID, _ links: PartnerLinks) async throws {
    while !Task.isCancelled {
      let seen = context.news.notices.generation
      let due = try await context.ledger.read { [now = context.now()] in
        try $0.noticesDue(to: partner, at: now, limit: Self.listMax)
      }
      for row in due {
        do {
          try await send(row, links)
        } catch {
          if let trouble = try Disposition.survived(error) {
            context.logger.notice("notice \(row.id) to \(partner): \(trouble.note)")
            // It stays due where the ledger cannot take even that.
            let seconds = trouble.code == Self.tooMany.code ? Self.askAgainSeconds : 5
            do { try await later(row, seconds: seconds) } catch { _ = try Disposition.survived(error) }
          }
        }
      }
      await context.news.notices.wait(after: seen, for: .seconds(due.isEmpty ? 30 : 1))
    }
  }

  private func send(_ row: NoticeRow, _ links: PartnerLinks) async throws {
    let link = try row.direction == .out ? self.link(of: row) : row.peer
    // Whoever calls out only comes for it.
    guard links.canReach(link) else { return try await later(row, seconds: Self.askAgainSeconds) }
    let reply = try await links.send(link, "PUT", "/v1/notices/\(row.id)") {
      $0.body = .bytes(row.envelope)
      $0.headers = ["Content-Type: application/json"]
    }
    if reply.status == 202, link != row.peer { return try await later(row, seconds: Self.askHubSeconds) }
    guard reply.status == 200 else {
      throw Problem(reply) ?? Problem(.unavailable, code: "partner.status", "the notice is answered \(reply.status)")
    }
    try await take(answer: reply.body, to: row)
  }

  private func link(of row: NoticeRow) throws -> AgencyID {
    let notice = try WithdrawalNotice(Envelope(parsing: row.envelope, as: .notice).unverified())
    return context.policies.agreement(notice.agreement.sha256)?.via ?? row.peer
  }

  /// The recipient's signed answer, however it came.
  ///
  /// - Throws: SealingError unless the recipient signed it about this notice.
  func take(answer bytes: [UInt8], to row: NoticeRow) async throws {
    let (document, envelope) = try context.verified(bytes, as: .noticeReceipt, by: row.peer)
    let answer = try NoticeAnswer(document)
    guard answer.id == row.id, answer.evidence == nil,
      answer.notice == (try Envelope(parsing: row.envelope, as: .notice)).payloadDigest
    else { throw SealingError(.documentInvalid, "the answer is about another notice") }
    try await keep(answer, envelope, to: row)
  }

  /// What a partner without a gateway said, which nobody but us can sign; nil when more was said before.
  ///
  /// - Parameter evidence: how it said so: a paper, or the connection that it has with us.
  func take(
    word state: NoticeAnswer.State, because: String?, evidence: String, to row: NoticeRow
  ) async throws -> NoticeAnswer? {
    // The same word again is no new entry in the ledger.
    if let held = try row.answer.map({ try NoticeAnswer(Envelope(parsing: $0, as: .noticeReceipt).unverified()) }),
      held.state == state, held.retainedBecause == because, held.evidence == evidence
    {
      return held
    }
    let answer = NoticeAnswer(
      notice: try Envelope(parsing: row.envelope, as: .notice).payloadDigest, id: row.id, from: row.peer, state: state,
      stopped: [], retainedBecause: because, evidence: evidence, at: context.now())
    return try await keep(answer, context.sign(answer.document, as: .noticeReceipt), to: row) ? answer : nil
  }

  /// - Returns: false when what was said before stands: an older answer, shown once more, undoes nothing.
  @discardableResult
  private func keep(_ answer: NoticeAnswer, _ envelope: Envelope, to row: NoticeRow) async throws -> Bool {
    try await context.ledger.write { tx in
      guard var current = try tx.reader.notice(row.id) else { return false }
      let held = try current.answer.map { try NoticeAnswer(Envelope(parsing: $0, as: .noticeReceipt).unverified()) }
      guard held.map({ $0.at <= answer.at && ($0.state == .received || answer.state != .received) }) ?? true else {
        return false
      }
      let isNew = current.answer != envelope.bytes
      current.answer = envelope.bytes
      // Received is not done: it is asked again until it is.
      current.nextAt = answer.state == .received ? tx.at + Self.askAgainSeconds : nil
      try tx.put(current)
      if isNew {
        try tx.append(
          AuditEvent(
            "notice.answered",
            [
              "notice": .string(row.id.text), "state": .string(answer.state.rawValue),
              "sha256": .string(envelope.payloadDigest.hex),
            ]))
      }
      return true
    }
  }

  private func later(_ row: NoticeRow, seconds: TimeInterval) async throws {
    try await context.ledger.write { tx in
      guard var current = try tx.reader.notice(row.id), current.nextAt == row.nextAt else { return }
      current.nextAt = tx.at + seconds
      try tx.put(current)
    }
  }

  // MARK: for whoever comes

  /// What a list says about them: `{"id", "answer"?}`, the answer's digest.
  static func items(_ rows: [NoticeRow]) throws -> JSON {
    .array(
      try rows.map { row in
        var members: [String: JSON] = ["id": .string(row.id.text)]
        members["answer"] = try row.answer.map {
          .string(try Envelope(parsing: $0, as: .noticeReceipt).payloadDigest.hex)
        }
        return .object(members)
      })
  }

  /// `GET /v1/notices/{id}`.
  func get(_ id: TransferID, for partner: AgencyID) async throws -> HTTPReply {
    HTTPReply(
      200, headers: ["content-type": "application/json"], body: try await row(id, for: partner).envelope)
  }

  /// `PUT /v1/notices/{id}/receipt`.
  func putAnswer(_ id: TransferID, _ bytes: [UInt8], from partner: AgencyID) async throws -> HTTPReply {
    let row = try await row(id, for: partner)
    guard row.direction == .out, !context.partners.hasGateway(partner) else {
      try await take(answer: bytes, to: row)
      return HTTPReply(200)
    }
    let state: NoticeAnswer.State
    do {
      var reader = try DocumentReader(JSON(canonical: Mailbox.typed(bytes), bytesMax: 1024), at: "answer")
      state = try reader.choice("state")
      try reader.finish()
    } catch {
      throw Problem(.malformed, #"expected {"state":"actioned"}, or "received", "partly", "refused""#)
    }
    guard try await take(word: state, because: nil, evidence: "said over mutual TLS", to: row) != nil else {
      throw Problem(.conflict, "the notice is answered already")
    }
    return HTTPReply(200)
  }

  /// `consent answer --for`: what a paper says.
  ///
  /// - Throws: `AdminError` failed, unless a notice of ours to this partner has the id; refused, when it signs for itself.
  func answer(
    _ id: TransferID, _ state: NoticeAnswer.State, because: String?, for partner: AgencyID, evidence: String
  ) async throws -> NoticeAnswer {
    guard let row = try await context.ledger.read({ try $0.notice(id) }), row.direction == .out, row.peer == partner
    else { throw LedgerError.notFound("notice \(id) to \(partner)") }
    guard !context.partners.hasGateway(partner) else { throw AdminError.signsForItself(partner) }
    guard let answer = try await take(word: state, because: because, evidence: evidence, to: row) else {
      throw AdminError(.refused, "the notice \(id) is answered already: sallyport consent notices")
    }
    return answer
  }

  private func row(_ id: TransferID, for partner: AgencyID) async throws -> NoticeRow {
    guard let row = try await context.ledger.read({ try $0.notice(id) }), row.direction != .in, row.peer == partner
    else { throw Problem(.notFound, "there is nothing here") }
    return row
  }

  /// Without Retry-After: it is about notices, and holds up nothing else of the partner's.
  static let tooMany = Problem(.unavailable, code: "limit.notices", "too many notices wait for an answer here")

  /// A hub keeps a notice for its recipient.
  ///
  /// - Returns: the recipient's newest answer; nil while there is none.
  func park(_ notice: WithdrawalNotice, _ envelope: Envelope) async throws -> Envelope? {
    guard let agreement = context.policies.agreement(notice.agreement.sha256), agreement.via == context.agency,
      agreement.party(notice.issuer, as: .provider) != nil, agreement.party(notice.to, as: .recipient) != nil,
      context.partners[notice.to]?.state == .active
    else { throw Problem(.malformed, "the notice is not for this place") }
    let (held, isNew) = try await context.ledger.write { tx -> (NoticeRow, Bool) in
      if let held = try tx.reader.notice(notice.id) { return (held, false) }
      let count = try tx.reader.countParkedNotices(for: notice.to, under: notice.agreement.id)
      guard count < Self.openMax else { throw Self.tooMany }
      let sequence = try tx.append(
        AuditEvent(
          "notice.parked",
          [
            "notice": .string(notice.id.text), "from": .string(notice.issuer.text), "to": .string(notice.to.text),
          ]))
      let row = NoticeRow(
        id: notice.id, direction: .hub, peer: notice.to, agreement: notice.agreement.id, envelope: envelope.bytes,
        nextAt: tx.at, actBy: notice.actBy, sequence: sequence)
      try tx.put(row)
      return (row, true)
    }
    guard held.direction == .hub, held.envelope == envelope.bytes else {
      throw Problem(.conflict, "another notice has this id")
    }
    if isNew { context.news.notify(noticeTo: notice.to) }
    return try held.answer.map { try Envelope(parsing: $0, as: .noticeReceipt) }
  }
}

/// The recipient's side: takes notices and answers them.
struct NoticeDesk: Sendable {
  let context: GatewayContext

  /// `PUT /v1/notices/{id}`: for us, or for somebody behind us.
  ///
  /// - Returns: the newest answer; nil while a hub has none.
  func take(_ id: TransferID, _ bytes: [UInt8], from partner: AgencyID) async throws -> Envelope? {
    let (notice, envelope) = try verified(id, bytes)
    guard notice.to != context.agency else { return try await take(notice, envelope, from: partner) }
    guard notice.issuer == partner else { throw Problem(.malformed, "the notice is not for this place") }
    return try await Notices(context: context).park(notice, envelope)
  }

  private func verified(_ id: TransferID, _ bytes: [UInt8]) throws -> (WithdrawalNotice, Envelope) {
    let envelope = try Envelope(parsing: bytes, as: .notice)
    let issuer = try WithdrawalNotice(envelope.unverified()).issuer
    guard let card = context.partners[issuer]?.card?.card else { throw Problem(.notFound, "there is nothing here") }
    let notice = try WithdrawalNotice(try envelope.verify(card.signers(at: context.now())))
    guard notice.id == id else { throw Problem(.malformed, "the notice is not for this place") }
    return (notice, envelope)
  }

  /// One for us: stores it, stops what has not reached the inbox, and gives the newest answer.
  ///
  /// - Parameter partner: the issuer, or the hub that the agreement names.
  private func take(_ notice: WithdrawalNotice, _ envelope: Envelope, from partner: AgencyID) async throws -> Envelope {
    let (id, issuer) = (notice.id, notice.issuer)
    guard issuer == partner || context.policies.agreement(notice.agreement.sha256)?.via == partner else {
      throw Problem(.malformed, "the notice is not for this place")
    }
    if let held = try await context.ledger.read({ try $0.notice(id) }) {
      guard held.peer == issuer, held.direction == .in, held.envelope == envelope.bytes, let answer = held.answer else {
        throw Problem(.conflict, "another notice has this id")
      }
      return try Envelope(parsing: answer, as: .noticeReceipt)
    }
    var stopped: [TransferID] = []
    for item in notice.items where try await stop(item.package, of: issuer) { stopped.append(item.package) }
    let answer = answer(.received, to: notice, envelope, stopped: stopped, because: nil)
    try await context.ledger.write { tx in
      guard try tx.reader.countOpenNotices(from: issuer) < Notices.openMax else { throw Notices.tooMany }
      let sequence = try tx.append(
        AuditEvent(
          "notice.received",
          ["notice": .string(id.text), "from": .string(issuer.text), "asked": .string(notice.asked.rawValue)]))
      try tx.put(
        NoticeRow(
          id: id, direction: .in, peer: issuer, agreement: notice.agreement.id, envelope: envelope.bytes,
          answer: answer.bytes, nextAt: notice.actBy, actBy: notice.actBy, sequence: sequence))
    }
    context.logger.notice(
      "\(issuer) asks to \(notice.asked.rawValue) records by \(Timestamp.format(notice.actBy)): sallyport consent notices"
    )
    return answer
  }

  /// What a partner's list names: fetched when it is new, and answered when the answer there is not ours.
  func heed(_ item: inout DocumentReader, from partner: AgencyID, _ links: PartnerLinks) async throws {
    let id = try item.transfer("id")
    let listed = try item.optional("answer") { (r, n) throws(SealingError) in try r.digest(n) }
    let path = "/v1/notices/\(id)"
    let answer: Envelope
    if let held = try await context.ledger.read({ try $0.notice(id) }) {
      guard held.direction == .in, let bytes = held.answer else {
        throw Problem(.conflict, "another notice has this id")
      }
      answer = try Envelope(parsing: bytes, as: .noticeReceipt)
    } else {
      guard try await context.ledger.read({ try $0.countOpenNotices(from: partner) }) < Notices.openMax else {
        throw Notices.tooMany
      }
      let reply = try await links.send(partner, "GET", path) { $0.replyBytesMax = Envelope.bytesMax }
      guard reply.status == 200 else { throw Problem(reply) ?? Problem(.unavailable, "the notice is not given") }
      let (notice, envelope) = try verified(id, reply.body)
      guard notice.to == context.agency else { throw Problem(.malformed, "the notice is not for this place") }
      answer = try await take(notice, envelope, from: partner)
    }
    guard answer.payloadDigest != listed else { return }
    let reply = try await links.send(partner, "PUT", "\(path)/receipt") {
      $0.body = .bytes(answer.bytes)
      $0.headers = ["Content-Type: application/json"]
    }
    guard reply.status == 200 else { throw Problem(reply) ?? Problem(.unavailable, "the answer is not taken") }
  }

  /// A package that has not been delivered yet is stopped here.
  private func stop(_ id: TransferID, of sender: AgencyID) async throws -> Bool {
    while true {
      guard let transfer = try await context.ledger.read({ try $0.transfer(sender, id) }), transfer.direction == .in,
        [.received, .opened].contains(transfer.state == .held ? transfer.heldFrom ?? .held : transfer.state)
      else { return false }
      do {
        try await OpenPackage(context: context).quarantine(
          transfer, code: "consent.withdrawn", note: "a person in it has withdrawn: ask the sender for the rest")
        return true
      } catch LedgerError.stale {
        // It has gone on; it may still be stopped.
        continue
      }
    }
  }

  /// What the administrator did about it.
  func answer(_ id: TransferID, _ state: NoticeAnswer.State, because: String?) async throws -> NoticeAnswer {
    guard let held = try await context.ledger.read({ try $0.notice(id) }) else {
      throw LedgerError.notFound("notice \(id)")
    }
    guard held.direction == .in else {
      throw AdminError(
        .refused,
        "\(id) went from here: its recipient answers. What one without a gateway said: --for PARTNER --evidence PAPER")
    }
    let envelope = try Envelope(parsing: held.envelope, as: .notice)
    let notice = try WithdrawalNotice(envelope.unverified())
    let earlier = try held.answer.map { try NoticeAnswer(Envelope(parsing: $0, as: .noticeReceipt).unverified()) }
    guard state != .received || earlier?.state == .received else {
      throw AdminError(.refused, "it is answered already: \(earlier?.state.rawValue ?? "")")
    }
    let signed = answer(state, to: notice, envelope, stopped: earlier?.stopped ?? [], because: because)
    try await context.ledger.write { tx in
      var row = held
      row.answer = signed.bytes
      if state != .received { row.nextAt = nil }
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
