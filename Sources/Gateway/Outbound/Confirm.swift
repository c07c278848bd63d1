// Confirm: one long poll per partner that owes us receipts, or at which packages, notices, agreements, or what recipients signed may wait
// for us.

import Foundation
import Logging
import NIOConcurrencyHelpers
import Sealing
import ServiceLifecycle
import Store
import Transport

/// Polls one partner's `GET /v1/transfers` while transfers to it wait for their receipts, and for as long as things may wait for us
/// there.
struct Confirm: Sendable {
  static let waitSeconds = 20
  /// How often a partner is looked in at where nothing is known to wait: an agreement may be offered.
  static let lookSeconds: TimeInterval = 300
  /// Lists that are looked at behind one that could not be taken whole.
  static let aheadMax = 20

  let context: GatewayContext
  let links: PartnerLinks
  let receipts: ReceiptBook
  let collect: Collect

  func run(_ partner: AgencyID) async throws {
    let news = context.news.lane(of: partner).released
    var isHeadChecked = false
    // The cursor of the last request; asking with a newer one is what acknowledges.
    var asked: Int64 = -1
    var lookedAt = Date.distantPast
    while !Task.isCancelled {
      let seen = news.generation
      let (owes, cursor) = try await context.ledger.read { reader in
        (try reader.owesReceipts(partner), try reader.partner(partner)?.cursor ?? 0)
      }
      let pause = links.pausedUntil(partner).map { max(0, $0.timeIntervalSince(context.now())) } ?? 0
      let visits = context.visits(partner)
      let isDue = !isHeadChecked || context.now() >= lookedAt + Self.lookSeconds
      guard owes || visits || isDue || (asked >= 0 && cursor > asked), pause == 0 else {
        await news.wait(
          after: seen, for: owes || visits || isDue ? .seconds(min(2, max(0.05, pause))) : Stage.idleOfLanes)
        continue
      }
      do {
        try await poll(
          partner, after: cursor, waitSeconds: owes || visits ? Self.waitSeconds : 0, checkHead: !isHeadChecked)
        isHeadChecked = true
        lookedAt = context.now()
        asked = cursor
      } catch {
        if let trouble = try Disposition.survived(error) {
          context.logger.notice("receipts of \(partner): \(trouble.note) [\(trouble.code)]")
          await news.wait(after: news.generation, for: .seconds(2))
        }
      }
    }
  }

  /// One look at the partner's list: its receipts applied, its packages for us taken on, then the cursor moved.
  ///
  /// - Parameter ahead: how many lists were looked at already behind one that could not be taken whole: the place is kept then.
  /// - Returns: where the list goes on.
  /// - Throws: `Problem` busy, full or unavailable when something could not be taken now; RelayError.
  @discardableResult
  func poll(
    _ partner: AgencyID, after cursor: Int64, waitSeconds: Int, checkHead: Bool, ahead: Int = 0
  ) async throws -> Int64 {
    let lane = context.news.lane(of: partner)
    let reply = try await links.send(
      partner, "GET",
      "/v1/transfers?after=\(cursor)&limit=\(ReceiptList.receiptsMax)&wait=\(waitSeconds)&agreements=\(lane.listedAgreements?.hex ?? "")"
    ) {
      $0.replyBytesMax = ReceiptList.bytesMax
      $0.stallSeconds = Self.waitSeconds + 15
    }
    guard reply.status == 200 else { throw Problem(reply) ?? Problem(.unavailable, "the list answers \(reply.status)") }
    var (envelopes, reader) = try ReceiptList.parse(reply)
    let next = try reader.integer("cursor", 0...JSON.integerMax)
    let proof = try reader.optional("yourHead") { (r, n) throws(SealingError) in
      try r.string(n, bytesMax: 2 * Envelope.bytesMax)
    }
    if let proof, let head = ownHead(proof, from: partner) {
      do {
        try await context.ledger.requireHead(head, thorough: checkHead)
      } catch LedgerError.rolledBack(let what) {
        // We signed it, so it is no lie of the partner's: this ledger lost what others were told.
        throw LedgerError.rolledBack("\(partner) holds a head that we signed: \(what)")
      }
    }
    try await withThrowingDiscardingTaskGroup { group in
      // One transfer's receipts in their order, different transfers side by side.
      for chain in chains(envelopes, from: partner) {
        group.addTask(executorPreference: context.pool) {
          for (claimed, bytes) in chain { try await take(claimed, bytes, from: partner) }
        }
      }
    }
    // One that cannot be taken now keeps none of the others back; but it is asked for again.
    var waits: Problem?
    for var object in try reader.objects("transfers", countMax: ReceiptList.receiptsMax) {
      let item = try ListItem(&object)
      do {
        if item.sender == context.agency {
          try await heed(item, from: partner)
        } else {
          try await collect.heed(item, from: partner)
        }
      } catch let problem as Problem where [.busy, .full].contains(problem.kind) {
        waits = problem
      } catch let error as RelayError {
        throw error
      } catch {
        guard let trouble = Disposition(error).trouble else { throw error }
        waits = Problem(.unavailable, code: trouble.code, trouble.note)
      }
    }
    let tag = try reader.optional("agreements") { (r, n) throws(SealingError) in try r.digest(n) }
    lane.sawAgreements(tag)
    // Notices stand under no cursor: one that cannot be taken keeps nothing else back, and nothing else keeps them back.
    var bad: (any Error)?
    for var notice in ahead > 0 ? [] : try reader.objects("notices", countMax: Notices.listMax) {
      do {
        try await NoticeDesk(context: context).heed(&notice, from: partner, links)
      } catch let error as SealingError {
        bad = Problem(.unavailable, code: error.code.rawValue, "a notice at \(partner): \(error.detail)")
      } catch let problem as Problem {
        bad = Problem(.unavailable, code: problem.code, "a notice at \(partner): \(problem.detail)")
      } catch let error as RelayError {
        bad = error
      }
    }
    if waits != nil || ahead > 0 {
      // What stands behind it is not to wait for it.
      if next > cursor, ahead < Self.aheadMax {
        try await poll(partner, after: next, waitSeconds: 0, checkHead: false, ahead: ahead + 1)
      }
      if let waits { throw waits }
      return next
    }
    if next > cursor {
      try await context.ledger.write { tx in
        // Somebody may have set it back meanwhile.
        guard var record = try tx.reader.partner(partner), next > record.cursor, record.cursor >= cursor else { return }
        record.cursor = next
        record.lastSeen = tx.at
        try tx.put(record)
      }
    }
    if let bad { throw bad }
    return next
  }

  /// The head in what a partner gives back to us, when we signed it: a receipt of ours, or a head that went with a release.
  /// What we did not sign proves nothing, and stops nothing.
  private func ownHead(_ text: String, from partner: AgencyID) -> LedgerHead? {
    do {
      guard let bytes = Base64.decode(text) else { throw SealingError(.documentInvalid, "yourHead is not base64") }
      let signers = context.keys.everSigned
      if let head = try? Envelope(parsing: bytes, as: .head) { return try LedgerHead(head.verify(signers)) }
      return try Receipt(Envelope(parsing: bytes, as: .receipt).verify(signers)).head
    } catch {
      context.logger.notice("\(partner) gives back a head that we did not sign: \(error)")
      return nil
    }
  }

  /// What a hub tells about a transfer of ours. Only what its recipient signed counts.
  private func heed(_ item: ListItem, from hub: AgencyID) async throws {
    guard let transfer = try await context.ledger.read({ try $0.transfer(item.sender, item.id) }),
      transfer.direction == .out, transfer.link == hub
    else { return }
    do {
      if let answer = item.acknowledgement { try await TakeBackBook(context: context).take(answer, about: transfer) }
      if let request = item.keyRequest { try await keep(Hub.verified(request, transfer, context), for: transfer) }
    } catch {
      guard error is SealingError || (error as? Problem)?.kind == .malformed else { throw error }
      context.logger.error("the hub \(hub) passes on what is not accepted, about transfer \(item.id): \(error)")
    }
    if item.state == TransferState.receiving.rawValue, transfer.state == .queued {
      // It lost the body, which is still here.
      try await context.ledger.write { tx in
        guard let row = try tx.reader.transfer(item.sender, item.id), row.state == .queued else { return }
        _ = try tx.amend(row) { $0.nextAt = tx.at }
      }
      context.news.lane(of: transfer.peer).sealed.notify()
    }
  }

  /// The recipient asks for the key: the release rule is what comes next.
  private func keep(_ request: Envelope, for transfer: Transfer) async throws {
    try await context.ledger.write { tx in
      guard try tx.reader.document(transfer.sender, transfer.id, .keyRequest) == nil else { return }
      try tx.add(document: request, sender: transfer.sender, id: transfer.id)
      try tx.append(AuditEvent("key-requested", sender: transfer.sender, id: transfer.id))
      guard let row = try tx.reader.transfer(transfer.sender, transfer.id), row.state == .custody else { return }
      _ = try tx.amend(row) { $0.nextAt = tx.at }
    }
    context.news.lane(of: transfer.peer).custody.notify()
  }

  /// Receipts of one transfer each. One that cannot be read keeps no other back.
  private func chains(_ envelopes: [[UInt8]], from partner: AgencyID) -> [[(claimed: Receipt, bytes: [UInt8])]] {
    var chains: [TransferID: [(Receipt, [UInt8])]] = [:]
    for bytes in envelopes {
      do {
        let claimed = try Receipt(Envelope(parsing: bytes, as: .receipt).unverified())
        chains[claimed.id, default: []].append((claimed, bytes))
      } catch {
        context.logger.error("a receipt in the list of \(partner) cannot be read: \(error)")
      }
    }
    return Array(chains.values)
  }

  /// One receipt from the list. What does not verify is logged and passed over: the partner's list must not block it.
  private func take(_ claimed: Receipt, _ bytes: [UInt8], from partner: AgencyID) async throws {
    do {
      // Most came before, in the reply to a request.
      let found = try await context.ledger.read { reader in
        try reader.receiptBytes(claimed.sender, claimed.id).contains(bytes)
          ? nil : try reader.transfer(claimed.sender, claimed.id)
      }
      guard let transfer = found, transfer.link == partner, transfer.direction != .in else { return }
      // Nobody goes on with one that came this way but the stages.
      if try await receipts.apply([bytes], to: transfer) != nil {
        context.news.lane(of: transfer.peer).custody.notify()
      }
    } catch let error as SealingError {
      context.logger.error("a receipt of \(partner) is not accepted: \(error)")
    } catch LedgerError.illegal(let what), LedgerError.notFound(let what) {
      context.logger.error("a receipt of \(partner) is not accepted: \(what)")
    }
  }
}
