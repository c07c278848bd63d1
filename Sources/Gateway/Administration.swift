// What administrators ask and order. One code path: the running gateway answers on admin.sock, and a command on a stopped
// home calls the same functions itself.

import Foundation
import Logging
import Policies
import Sealing
import Store
import Transport

/// The verbs of administration. Each returns rows: JSON objects, one per line on the wire.
package struct Administration: Sendable {
  package enum Verb: String, Sendable, CaseIterable {
    case status, queue, trace, hold, resume, retry, cancel, check, poke, reload, collect
    case partnersList = "partners.list"
    case partnersAdd = "partners.add"
    case partnersDescribe = "partners.describe"
    case partnersApprove = "partners.approve"
    case partnersSet = "partners.set"
    case ledgerShow = "ledger.show"
    case ledgerVerify = "ledger.verify"
    case ledgerBackup = "ledger.backup"
    case record, report
    case agreementsList = "agreements.list"
    case agreementsAct = "agreements.act"
    case agreementsTake = "agreements.take"
    case agreementsApprove = "agreements.approve"
    case agreementsExplain = "agreements.explain"
    case agreementsSimulate = "agreements.simulate"
    case consentRecord = "consent.record"
    case consentImport = "consent.import"
    case consentHeartbeat = "consent.heartbeat"
    case consentSources = "consent.sources"
    case consentShow = "consent.show"
    case consentAudit = "consent.audit"
    case consentNotices = "consent.notices"
    case consentAnswer = "consent.answer"
  }

  package static let rowsMax = 100_000

  let context: GatewayContext
  let links: PartnerLinks?

  /// For a home that no gateway runs on.
  package init(context: GatewayContext) {
    self.context = context
    links = nil
  }

  init(context: GatewayContext, links: PartnerLinks) {
    self.context = context
    self.links = links
  }

  /// The HTTP form: `POST /v1/VERB` with an object; rows as JSON Lines, or an error object with its exit code.
  func answer(_ method: String, _ target: String, _ body: [UInt8]) async -> HTTPReply {
    do {
      guard method == "POST", target.hasPrefix("/v1/"), let verb = Verb(rawValue: String(target.dropFirst(4))) else {
        return .problem(Problem(.notFound, "no such order"))
      }
      let arguments = try DocumentReader(
        JSON(canonical: body, bytesMax: AdminServer.requestBytesMax), at: verb.rawValue)
      let rows = try await perform(verb, arguments)
      return HTTPReply(
        200, headers: ["content-type": "application/x-ndjson"], body: Array(rows.flatMap { $0.canonical + [10] }))
    } catch {
      let isStopping = error is CancellationError
      let text = isStopping ? "the gateway is stopping; ask again when it runs" : String(describing: error)
      let failure: JSON = [
        "error": .string(text), "exit": .integer(Int64(ExitStatus(error).rawValue)),
      ]
      return .json(500, failure)
    }
  }

  /// Performs one verb.
  package func perform(_ verb: Verb, _ given: DocumentReader) async throws -> [JSON] {
    var arguments = given
    switch verb {
    case .status:
      try arguments.finish()
      return try await status()
    case .queue: return try await queue(&arguments)
    case .trace: return try await trace(try arguments.transfer("id"))
    case .hold, .resume, .retry, .cancel: return [try await order(verb, try arguments.transfer("id"))]
    case .collect:
      let partner = try arguments.optional("partner") { (r, n) throws(SealingError) in try r.agency(n) }
      try arguments.finish()
      return try await CollectRound(context: context, links: links).run(partner)
    case .check:
      let isDeep = try arguments.bool("deep")
      return try await check(isDeep: isDeep)
    case .poke:
      context.news.folders.notify()
      return []
    case .reload:
      try await context.reload()
      return [["reloaded": true, "agreements": .integer(Int64(context.policies.agreements.count))]]
    case .partnersList: return try await partners()
    case .partnersAdd: return [try await addPartner(try arguments.string("card", bytesMax: Envelope.bytesMax))]
    case .partnersDescribe:
      let agency = try arguments.agency("agency")
      let pin = try arguments.digest("pin")
      let recipient = try Recipient(try arguments.string("recipient", bytesMax: 4096))
      return [try await shown(agency, Partners(context: context).describe(agency, pin: pin, recipient: recipient))]
    case .partnersApprove:
      let agency = try arguments.agency("agency")
      let fingerprint = try Fingerprint(try arguments.string("fingerprint"))
      let state = try await Partners(context: context).approve(agency, fingerprint)
      return [["agency": .string(agency.text), "state": .string(state.rawValue)]]
    case .partnersSet:
      let agency = try arguments.agency("agency")
      let word = try arguments.string("state")
      try await Partners(context: context).set(agency, word == "removed" ? nil : PartnerRecord.State(rawValue: word))
      return [["agency": .string(agency.text), "state": .string(word)]]
    case .ledgerShow:
      let after = try arguments.integer("after", 0...JSON.integerMax)
      let limit = try arguments.integer("limit", 1...Int64(Self.rowsMax))
      return try await context.ledger.read { try $0.audit(after: after, limit: Int(limit)) }.map { try $0.document() }
    case .ledgerVerify: return [try await verify()]
    case .ledgerBackup:
      let path = try arguments.string("path", bytesMax: 4096)
      try await context.passes.run { [context] in try context.ledger.backup(to: path) }
      return [["backup": .string(path), "head": context.ledger.head.document]]
    case .agreementsList: return try await agreements()
    case .agreementsAct: return try await act(&arguments)
    case .agreementsTake: return try await takeAct(&arguments)
    case .agreementsApprove: return try await approve(&arguments)
    case .agreementsExplain: return [try await explain(&arguments)]
    case .agreementsSimulate: return try await simulate(try arguments.string("file", bytesMax: 4096))
    case .consentRecord: return try await recordConsent(&arguments)
    case .consentImport: return try await importConsent(&arguments)
    case .consentHeartbeat: return try await heartbeat(&arguments)
    case .consentSources: return try await sources(&arguments)
    case .consentShow: return try await showConsent(&arguments)
    case .consentAudit: return try await auditConsent()
    case .consentNotices: return try await notices()
    case .consentAnswer: return try await answerNotice(&arguments)
    case .report: return try await SubjectReport(context: context).run(try arguments.string("subject"))
    case .record:
      let kind = try arguments.string("kind")
      let detail = try arguments.string("detail", bytesMax: 4096)
      try await context.ledger.write { _ = try $0.append(AuditEvent(kind, ["detail": .string(detail)])) }
      return []
    }
  }

  // MARK: looking

  /// A transfer as a row.
  static func row(_ transfer: Transfer) -> JSON {
    var members: [String: JSON] = [
      "id": .string(transfer.id.text), "direction": .string(transfer.direction.rawValue),
      "sender": .string(transfer.sender.text), "peer": .string(transfer.peer.text),
      "agreement": .string(transfer.agreement),
      "state": .string(transfer.state.rawValue), "name": .string(transfer.name),
      "bytes": .integer(transfer.payloadBytes), "bodyBytes": .integer(transfer.bodyBytes),
      "createdAt": .string(Timestamp.format(transfer.createdAt)),
      "updatedAt": .string(Timestamp.format(transfer.updatedAt)),
      "attempts": .integer(Int64(transfer.attempts)), "code": .string(transfer.code), "note": .string(transfer.note),
    ]
    if transfer.note.isEmpty, transfer.state == .queued, transfer.isCollected {
      members["note"] = .string(
        "waits for \(transfer.peer)\(transfer.expiresAt.map { " until \(Timestamp.format($0))" } ?? "")")
    }
    members["via"] = transfer.via.map { .string($0.text) }
    members["next"] = ReasonCode(rawValue: transfer.code).map { .string($0.nextStep(transfer.id)) }
    members["replacedBy"] = transfer.replacedBy.map { .string($0.text) }
    members["expiresAt"] = transfer.expiresAt.map { .string(Timestamp.format($0)) }
    members["nextAt"] = transfer.nextAt.map { .string(Timestamp.format($0)) }
    members["inboxName"] = transfer.inboxName.isEmpty ? nil : .string(transfer.inboxName)
    return .object(members)
  }

  private func status() async throws -> [JSON] {
    let instant = context.now()
    var rows: [JSON] = [
      [
        "kind": "gateway", "agency": .string(context.agency.text), "running": .bool(links != nil),
        "head": context.ledger.head.document, "cipher": .string(context.engine.rawValue),
        "agreements": .integer(Int64(context.policies.agreements.count)), "room": .bool(try context.hasRoom()),
        "at": .string(Timestamp.format(instant)),
      ]
    ]
    for count in try await context.ledger.read({ try $0.counts() }) where count.state != .purged {
      rows.append([
        "kind": "transfers", "direction": .string(count.direction.rawValue), "state": .string(count.state.rawValue),
        "count": .integer(count.count), "oldest": .string(Timestamp.format(count.oldest)),
      ])
    }
    rows += try await partners().map { $0.adding("kind", "partner") }
    rows += try await overdueNotices().map { $0.adding("kind", "notice-overdue") }
    for (code, count, first) in try await context.ledger.read({ try $0.waitingCodes() }) {
      guard let reason = ReasonCode(rawValue: code) else { continue }
      rows.append([
        "kind": "waiting", "code": .string(code), "count": .integer(count), "next": .string(reason.nextStep(first)),
      ])
    }
    let context = context
    for offer in try await context.pool.run({ try AgreementExchange(context: context).offers() }) {
      rows.append([
        "kind": "agreement-offered", "agreement": .string(offer.id), "version": .integer(offer.version),
        "sha256": .string(offer.digest.hex),
      ])
    }
    let waiting = try await context.ledger.read { try $0.waiting(limit: Maintenance.waitingMax) }
    for transfer in waiting {
      guard let share = transfer.shareOfTime(at: instant), share >= Maintenance.waitingShares.last! else { continue }
      rows.append([
        "kind": "expires-uncollected", "id": .string(transfer.id.text), "partner": .string(transfer.peer.text),
        "name": .string(transfer.name), "expiresAt": .string(transfer.expiresAt.map(Timestamp.format) ?? ""),
      ])
    }
    let cards = [context.keys.card.card] + context.partners.all.compactMap(\.card?.card)
    for expiry in cards.flatMap({ KeyExpiry.due($0, at: instant) }) {
      rows.append([
        "kind": "key-expiry", "agency": .string(expiry.agency.text), "key": .string(expiry.key),
        "days": .integer(Int64(max(0, expiry.daysLeft(at: instant)))), "text": .string(expiry.sentence(at: instant)),
      ])
    }
    return rows
  }

  private func queue(_ arguments: inout DocumentReader) async throws -> [JSON] {
    let state = try arguments.optional("state") { (r, n) throws(SealingError) in try r.choice(n, TransferState.self) }
    let peer = try arguments.optional("partner") { (r, n) throws(SealingError) in try r.agency(n) }
    let agreement = try arguments.optional("agreement") { (r, n) throws(SealingError) in try r.string(n) }
    let name = try arguments.optional("name") { (r, n) throws(SealingError) in try r.string(n) }
    let all = try arguments.bool("all")
    let limit = Int(try arguments.integer("limit", 1...Int64(Self.rowsMax)))
    return try await context.ledger.read {
      try $0.queue(
        state: state, peer: peer, agreement: agreement, name: name, openOnly: !all && state == nil, limit: limit)
    }.map { transfer in
      let row = Self.row(transfer)
      return context.arriving.of(transfer).map { row.adding("arrivedBytes", .integer($0)) } ?? row
    }
  }

  private func trace(_ id: TransferID) async throws -> [JSON] {
    let transfers = try await context.ledger.read { try $0.transfers(called: id) }
    guard !transfers.isEmpty else {
      if let file = try await context.pool.run({ [context] in try Dropping.waiting(id, in: context.home) }) {
        throw AdminError(.waiting, "transfer \(id) has not begun: \(file) is taken when the gateway runs")
      }
      throw LedgerError.notFound("transfer \(id)")
    }
    var rows = transfers.map(Self.row)
    for entry in try await context.ledger.read({ try $0.audit(id: id, limit: Self.rowsMax) }) {
      rows.append(["entry": try entry.document()])
    }
    for transfer in transfers {
      for envelope in try await context.ledger.read({ try $0.receipts(transfer.sender, transfer.id) }) {
        rows.append([
          "receipt": try Receipt(envelope.unverified()).document,
          "envelope": .string(String(decoding: envelope.bytes, as: UTF8.self)),
        ])
      }
      for (kind, envelope) in try await context.ledger.read({ try $0.documents(transfer.sender, transfer.id) }) {
        rows.append([
          "kind": .string(kind.rawValue), "document": try envelope.unverified(),
          "envelope": .string(String(decoding: envelope.bytes, as: UTF8.self)),
        ])
      }
    }
    return rows
  }

  private func partners() async throws -> [JSON] {
    let records = try await context.ledger.read { try $0.partners() }
    let instant = context.now()
    var rows: [JSON] = []
    for record in records {
      let card = try SignedCard(own: record.card).card
      var members: [String: JSON] = [
        "agency": .string(record.agency.text), "state": .string(record.state.rawValue), "serial": .integer(card.serial),
        "fingerprint": .string(Fingerprint(card).description),
        "fingerprintSha256": .string(Fingerprint(card).digest.hex), "gateway": .bool(card.hasGateway),
        "endpoint": .string(card.endpoint ?? ""),
        "sealing": .string(card.sealingRecipients(at: instant).first?.kind.rawValue ?? "none"),
      ]
      if let pending = record.pendingCard {
        members["pendingFingerprint"] = .string(Fingerprint(try SignedCard(own: pending).card).description)
        members["pendingReason"] = .string(record.pendingReason ?? "")
      }
      members["lastSeen"] = record.lastSeen.map { .string(Timestamp.format($0)) }
      members["pausedUntil"] = links?.pausedUntil(record.agency).map { .string(Timestamp.format($0)) }
      members["head"] = record.head.map(\.document)
      rows.append(.object(members))
    }
    return rows
  }

  private func check(isDeep: Bool) async throws -> [JSON] {
    let context = context
    let (transfers, findings) = try await context.passes.run { try Check(context: context, isDeep: isDeep).run() }
    return findings.map(\.document) + [["transfers": .integer(transfers), "findings": .integer(Int64(findings.count))]]
  }

  private func verify() async throws -> JSON {
    let context = context
    let result = try await context.passes.run {
      try context.ledger.verify(signedBy: context.keys.everSigned)
    }
    return [
      "entries": .integer(result.entries), "root": .string(result.root.hex), "heads": .integer(result.heads),
      "faults": .array(result.faults.map { .string($0) }),
    ]
  }

  // MARK: ordering

  private func order(_ verb: Verb, _ id: TransferID) async throws -> JSON {
    let found = try await context.ledger.read { try $0.transfers(called: id) }
    guard let transfer = found.first(where: { $0.direction == .out }) ?? found.first else {
      throw LedgerError.notFound("transfer \(id)")
    }
    let row: Transfer
    switch verb {
    case .hold:
      row = try await context.ledger.write { tx in
        try tx.advance(transfer, to: .held, ["by": "administrator"]) {
          $0.heldFrom = transfer.state == .sending ? .queued : transfer.state
          $0.nextAt = nil
          $0.code = "held"
          $0.note = "held by an administrator"
        }
      }
    case .resume:
      guard transfer.state == .held, let from = transfer.heldFrom else { throw LedgerError.illegal("resuming \(id)") }
      row = try await context.ledger.write {
        try $0.advance(transfer, to: from, ["by": "administrator"]) { $0.heldFrom = nil }
      }
    case .retry:
      row = try await context.ledger.write { tx in
        guard let now = try tx.reader.transfer(transfer.sender, transfer.id), !now.state.isEnd,
          ![.held, .sending].contains(now.state)
        else { throw LedgerError.illegal("trying \(id) again") }
        guard now.direction != .out || ![.released, .unconfirmed].contains(now.state),
          now.state != .releasing || !now.isCollected
        else {
          throw AdminError(.refused, "the key of \(id) has gone, or may have: its receipt is asked for already")
        }
        try tx.append(AuditEvent("retry", sender: now.sender, id: now.id, ["by": "administrator"]))
        return try tx.amend(now) {
          $0.nextAt = tx.at
          $0.attempts = 0
        }
      }
      links?.retryNow()
    default:
      guard transfer.direction == .out, transfer.state.mayBecome(.cancelled, .out) else {
        throw LedgerError.illegal("cancelling \(id)")
      }
      row = try await Ending(context: context).end(
        transfer, .cancelled, code: "cancelled", note: "cancelled by an administrator")
    }
    for signal in [context.news.claimed, context.news.keys] { signal.notify() }
    context.news.lane(of: row.peer).notify()
    let (context, moved) = (context, row)
    do {
      try await context.pool.run { try Outcomes(context: context).refresh(moved) }
    } catch {
      // The order stands.
      context.logger.error("the outcome of \(id) cannot be written: \(error)")
    }
    return Self.row(row)
  }

  private func addPartner(_ card: String) async throws -> JSON {
    let (agency, outcome) = try await Partners(context: context).offer(Array(card.utf8))
    return try await shown(agency, outcome)
  }

  private func shown(_ agency: AgencyID, _ outcome: CardOutcome) async throws -> JSON {
    let record = try await context.ledger.read { try $0.partner(agency) }
    guard let record else { throw LedgerError.notFound(agency.text) }
    let shown = try SignedCard(own: record.pendingCard ?? record.card).card
    let word =
      switch outcome {
      case .pending: "pending"
      case .unchanged: "unchanged"
      case .accepted: "accepted"
      case .needsApproval(let reason): "needs approval: \(reason)"
      }
    return [
      "agency": .string(agency.text), "state": .string(record.state.rawValue), "outcome": .string(word),
      "fingerprint": .string(Fingerprint(shown).description),
    ]
  }
}

extension JSON {
  /// An object with one more member.
  fileprivate func adding(_ name: String, _ value: JSON) -> JSON {
    guard case .object(var members) = self else { return self }
    members[name] = value
    return .object(members)
  }
}
