// Collect: what waits for us at a partner, fetched. From `received` on it is a package like every other.
//
//   the list names it  →  GET manifest: verified, decided  →  COMMIT receiving
//   GET tree, GET body in ranges, several at once: verified while they come  →  durable, COMMIT received + receipt
//   PUT receipts (received)  →  POST key: the sender's release  →  COMMIT the key; Open takes over
//   delivered, quarantined or refused  →  PUT receipts
//   410  →  GET take-back, signed by the sender  →  COMMIT cancelled  →  PUT take-back: our signed answer
//
// The same through a hub, which holds what the sender gave it; there the request for the key is signed.

import Foundation
import Logging
import NIOConcurrencyHelpers
import Sealing
import Store
import Transport

/// The recipient's side of collecting. Callable concurrently.
struct Collect: Sendable {
  /// Connections for one large body.
  static let connections = 4
  /// Tries in a row of one range that brings nothing before the whole transfer waits.
  static let triesMax = 3

  /// How seldom at last a hub is asked again for a key that its list has not announced. The announcement may come while it is asked.
  static let keyAgainSecondsMax: Int64 = 300

  let context: GatewayContext
  let links: PartnerLinks

  private var admission: Admission { Admission(context: context) }
  private var open: OpenPackage { OpenPackage(context: context) }

  /// Packages fetched from one partner at once. A large body has several connections of its own.
  static let concurrency = 8

  /// From a partner's list to `received` with its key, and the receipts that we owe.
  func stages(of partner: AgencyID) -> [Stage] {
    func stage(
      _ state: TransferState, hasKey: Bool? = nil, _ work: @escaping @Sendable (Transfer) async throws -> Void
    ) -> Stage {
      Stage(
        context: context, direction: .in, state: state, peer: partner, hasKey: hasKey, concurrency: Self.concurrency,
        news: context.news.lane(of: partner).collected,
        work: { [links] transfer in try await links.step(transfer, work) },
        notBefore: { [links] in links.holdsBack(partner) })
    }
    return [
      stage(.receiving) { try await fetch($0) },
      stage(.received, hasKey: false) { try await askKey($0) },
      stage(.cancelled) { try await answerTakeBack($0) },
    ] + [TransferState.delivered, .quarantined, .refused].map { state in stage(state) { try await report($0) } }
  }

  // MARK: taking note

  /// One package that a list names: taken on, or, known already, looked after at once where the list says more than before.
  ///
  /// - Parameter partner: whose list it is: the sender's, or a hub's.
  /// - Throws: `Problem` busy or full when there is no room for it now; RelayError.
  func heed(_ item: ListItem, from partner: AgencyID) async throws {
    let (id, sender, isWaiting) = (item.id, item.sender, item.state == ListItem.waiting)
    guard let known = try await known(id, sender) else {
      if isWaiting { try await accept(id, of: sender, from: partner) }
      return
    }
    guard !isWaiting || item.hasKey, known.isCollected, known.link == partner, known.key == nil,
      [.receiving, .received].contains(known.state), known.nextAt != nil
    else { return }
    try await context.ledger.write { tx in
      // As it is by now: a key may have come since.
      guard let row = try tx.reader.transfer(sender, id), row.state == known.state, row.key == nil else { return }
      _ = try tx.amend(row) { $0.nextAt = tx.at }
    }
    context.news.lane(of: sender).collected.notify()
  }

  private func accept(_ id: TransferID, of sender: AgencyID, from partner: AgencyID) async throws {
    guard !context.refusals.isSpent(sender, at: context.now()) else {
      throw Problem(.busy, code: "limit.refusals", "too many packages of \(sender) are refused")
    }
    let reply = try await links.send(partner, "GET", "\(Mailbox.path(id))/manifest") {
      $0.replyBytesMax = Envelope.bytesMax
    }
    guard reply.status == 200 else {
      if reply.status == 410 { return }
      throw Self.unexpected(reply, partner)
    }
    do {
      let (manifest, envelope) = try await verified(reply.body, id, of: sender, from: partner)
      if let (code, sentence, _) = try await admission.admit(manifest, envelope, from: partner, by: .collect) {
        context.logger.error("transfer \(id) of \(partner) is refused: \(sentence) [\(code)]")
      }
    } catch let problem as Problem where problem.code == "manifest.clock" {
      throw Problem(.unavailable, code: problem.code, problem.detail, retryAfterSeconds: 60)
    } catch let problem as Problem where partner != sender && Self.isAltered(problem) {
      throw Problem(.unavailable, code: Hub.altered, "the manifest of \(id) at the hub \(partner): \(problem.detail)")
    } catch let problem as Problem where [.refused, .malformed, .tooLarge].contains(problem.kind) {
      // Nobody's signature is on it, or its time is over: there is nothing to keep, and nothing to answer.
      context.logger.error("transfer \(id) waits at \(partner) and is not taken: \(problem)")
    } catch {
      // Another look at the list may have taken it on meanwhile.
      guard try await known(id, sender) != nil else { throw error }
    }
    context.news.lane(of: sender).collected.notify()
  }

  /// What may be a hub's doing, or come before the card of its sender.
  private static func isAltered(_ problem: Problem) -> Bool {
    problem.kind == .malformed || problem.code == SealingError.Code.documentSignature.rawValue
  }

  /// A signature that does not hold may be of a key that came after the card held here.
  private func verified(
    _ bytes: [UInt8], _ id: TransferID, of sender: AgencyID, from partner: AgencyID
  ) async throws -> (Manifest, Envelope) {
    func verify() throws -> (Manifest, Envelope) {
      let (manifest, envelope) = try admission.verified(bytes, id, from: partner)
      try admission.requireOurs(manifest)
      guard manifest.sender == sender else { throw Problem(.refused, "the list names another sender") }
      return (manifest, envelope)
    }
    do {
      return try verify()
    } catch let problem as Problem where problem.code == SealingError.Code.documentSignature.rawValue {
      guard links.canReach(sender), context.cardLooks.take(sender, at: context.now()) else { throw problem }
      do {
        try await CardExchange(context: context, links: links).fetch(sender)
      } catch is SealingError {
        throw problem
      } catch is RelayError {
        throw problem
      }
      return try verify()
    }
  }

  private func known(_ id: TransferID, _ sender: AgencyID) async throws -> Transfer? {
    try await context.ledger.read { try $0.transfer(sender, id) }
  }

  private static func unexpected(_ reply: HTTPReply, _ partner: AgencyID) -> Problem {
    let problem = Problem(reply)
    return Problem(
      .unavailable, code: problem?.code ?? "partner.status", problem?.detail ?? "\(partner) answers \(reply.status)",
      retryAfterSeconds: problem?.retryAfterSeconds)
  }

  /// A relayed one that an administrator let go on: what is left of it comes by itself.
  private func rest(_ transfer: Transfer) async throws {
    try await context.ledger.write { tx in
      // As it is now: its key may have come.
      guard let row = try tx.reader.transfer(transfer.sender, transfer.id), row.state == transfer.state, row.key == nil
      else { return }
      _ = try tx.amend(row) { $0.nextAt = nil }
    }
  }

  // MARK: the body

  /// Work of the stage `receiving`.
  func fetch(_ transfer: Transfer) async throws {
    guard transfer.isCollected else { return try await rest(transfer) }
    do {
      let manifest = try transfer.readManifest()
      let roots = try await roots(of: transfer, manifest)
      let context = context
      let open: @Sendable () throws -> CollectedBody = {
        try CollectedBody(context.spool, transfer, roots: roots, create: context.createPart) {
          context.arriving.set(transfer, $0)
        }
      }
      let body =
        if context.spool.hasPart(transfer.place) {
          try await context.rereads.run(of: transfer.link, on: context.passes, open)
        } else {
          try await context.pool.run(open)
        }
      defer { context.arriving.forget(transfer) }
      let large = body.geometry.segments > 1
      try await withThrowingTaskGroup { group in
        for _ in 0..<(large ? Self.connections : 1) {
          group.addTask { try await fetch(transfer, body, onItsOwn: large) }
        }
        try await group.waitForAll()
      }
      guard body.isComplete else { throw Problem(.unavailable, code: "partner.cut", "the body has not come whole yet") }
      try await context.pool.run { try body.sync() }
    } catch let error as SealingError where [.bodyRoot, .bodyLength].contains(error.code) {
      try Self.requireSender(transfer, error.code.rawValue, error.detail)
      try await open.quarantine(transfer, code: error.code.rawValue, note: error.detail)
      return
    } catch let gone as Gone {
      return try await cancel(transfer, gone)
    }
    let (row, _) = try await admission.received(transfer)
    try await askKey(row)
  }

  /// What is not as it was signed is the sender's doing only when it comes from the sender. From a hub it has not come yet.
  private static func requireSender(_ transfer: Transfer, _ code: String, _ detail: String) throws {
    guard !transfer.isThroughHub else {
      throw Problem(.unavailable, code: Hub.altered, "from the hub \(transfer.link): \(detail) [\(code)]")
    }
  }

  /// The segments' roots. Those of one segment is the signed root itself.
  private func roots(of transfer: Transfer, _ manifest: Manifest) async throws -> [Digest] {
    let segments = try BodyGeometry(sealedBytes: transfer.bodyBytes).segments
    guard segments > 1 else { return [manifest.bodyTreeRoot] }
    let reply = try await links.send(transfer.link, "GET", "\(Mailbox.path(transfer.id))/tree") {
      $0.replyBytesMax = Int(32 * segments)
    }
    try requirePart(reply, transfer, [200])
    guard reply.body.count == 32 * segments else { throw SealingError(.bodyRoot, "the tree has another size") }
    let roots = stride(from: 0, to: reply.body.count, by: 32).map { Digest(reply.body[$0..<($0 + 32)]) }
    guard MerkleTree.root(roots) == manifest.bodyTreeRoot else {
      throw SealingError(.bodyRoot, "the tree does not have the root that was signed")
    }
    return roots
  }

  /// One connection's share of the body. A large one has a client of its own, which may block while it digests and writes.
  private func fetch(_ transfer: Transfer, _ body: CollectedBody, onItsOwn: Bool) async throws {
    let client = onItsOwn ? RelayClient(identity: context.keys.tlsInUse) : nil
    defer { client?.stop() }
    var tries = 0
    while let claim = body.claim() {
      defer { claim.end() }
      let range = claim.bytes
      do {
        let reply = try await links.send(transfer.link, "GET", "\(Mailbox.path(transfer.id))/body", through: client) {
          $0.headers = ["Range: bytes=\(range.lowerBound)-\(range.upperBound - 1)"]
          $0.take = { claim.take($0) }
        }
        try requirePart(reply, transfer, range == 0..<transfer.bodyBytes ? [200, 206] : [206])
        guard !claim.isWhole else {
          tries = 0
          continue
        }
        tries += 1
        guard tries < Self.triesMax else {
          throw Problem(.unavailable, code: "partner.cut", "the body comes in pieces")
        }
      } catch let error as RelayError {
        if let failure = claim.failure { throw failure }
        tries += 1
        // A cut in the middle of a good connection is gone on from at once.
        guard tries < Self.triesMax, !error.isIdentity else { throw error }
        try await Task.sleep(for: .milliseconds(200 * tries))
      }
    }
  }

  private struct Gone: Error {
    let code: String
    let detail: String
  }

  private func requirePart(_ reply: HTTPReply, _ transfer: Transfer, _ statuses: [Int]) throws {
    if statuses.contains(reply.status) { return }
    // 404 may be all that a suspended partner hears; 410 is about this transfer.
    if reply.status == 410 {
      throw Gone(
        code: "taken-back", detail: Problem(reply)?.detail ?? "\(transfer.link) has this transfer no longer")
    }
    throw Self.unexpected(reply, transfer.link)
  }

  /// The sender ended it, and its key was never handed over. What it signed about that is answered.
  private func cancel(_ transfer: Transfer, _ gone: Gone) async throws {
    let reply = try await links.send(transfer.link, "GET", "\(Mailbox.path(transfer.id))/take-back") {
      $0.replyBytesMax = Envelope.bytesMax
    }
    if reply.status == 200 {
      do {
        let (takeBack, envelope) = try admission.takeBack(reply.body, of: transfer)
        _ = try await admission.stop(transfer, takeBack, envelope)
      } catch let problem as Problem {
        try Self.requireSender(transfer, problem.code, problem.detail)
        throw problem
      }
      context.news.lane(of: transfer.sender).collected.notify()
      return
    }
    try Self.requireSender(transfer, gone.code, gone.detail)
    let row = try await context.ledger.write { tx in
      try tx.advance(transfer, to: .cancelled) {
        $0.code = gone.code
        $0.note = gone.detail
        $0.nextAt = nil
      }
    }
    try await context.pool.run { [context] in try context.spool.remove(row.place) }
  }

  // MARK: the key and the receipts

  /// Work of the stage `received`, for rows without a key.
  func askKey(_ transfer: Transfer) async throws {
    guard transfer.isCollected else { return try await rest(transfer) }
    try await putReceipts(transfer)
    let request = KeyRequest(
      id: transfer.id, sender: transfer.sender, recipient: context.agency,
      manifest: Digest(hex: transfer.manifestDigest)!, at: context.now())
    let signed = !transfer.isThroughHub ? [] : context.sign(request.document, as: .keyRequest).bytes
    let reply = try await links.send(transfer.link, "POST", "\(Mailbox.path(transfer.id))/key") {
      $0.body = .bytes(signed)
      $0.replyBytesMax = PackageKey.bytesMax
      $0.totalSeconds = Int(GatewayContext.leaseSeconds) - 5
    }
    if reply.status == 202, transfer.isThroughHub {
      // The hub says so in its list when the key is there.
      return try await context.ledger.write { tx in
        guard let row = try tx.reader.transfer(transfer.sender, transfer.id), row.state == .received, row.key == nil
        else { return }
        _ = try tx.amend(row) {
          $0.attempts += 1
          $0.nextAt = tx.at + Backoff.seconds($0.attempts, max: Self.keyAgainSecondsMax)
          $0.note = "\(transfer.sender) has yet to put the key at the hub \(transfer.link)"
        }
      }
    }
    do {
      try requirePart(reply, transfer, [200])
    } catch let gone as Gone {
      return try await cancel(transfer, gone)
    }
    do {
      try admission.requireKey(reply.body, of: transfer)
    } catch let problem as Problem {
      try Self.requireSender(transfer, problem.code, problem.detail)
      try await open.quarantine(transfer, code: problem.code, note: problem.detail)
      return
    }
    try await admission.take(
      reply.body, admission.senderHead(reply.headers["sallyport-head"], for: transfer), for: transfer)
  }

  /// Work of the stages `delivered`, `quarantined` and `refused`.
  func report(_ transfer: Transfer) async throws {
    try await putReceipts(transfer)
    _ = try await context.ledger.write { tx in
      if transfer.state == .delivered {
        try tx.advance(transfer, to: .acknowledged) { $0.nextAt = nil }
      } else {
        try tx.amend(transfer) { $0.nextAt = nil }
      }
    }
  }

  /// Work of the stage `cancelled`: our answer to a take-back goes to whom it came from.
  private func answerTakeBack(_ transfer: Transfer) async throws {
    if let answer = try await context.ledger.read({ try $0.document(transfer.sender, transfer.id, .acknowledgement) }) {
      let reply = try await links.send(transfer.link, "PUT", "\(Mailbox.path(transfer.id))/take-back") {
        $0.headers = ["Content-Type: application/json"]
        $0.body = .bytes(answer.bytes)
      }
      guard [200, 404, 410].contains(reply.status) else { throw Self.unexpected(reply, transfer.link) }
    }
    _ = try await context.ledger.write { try $0.amend(transfer) { $0.nextAt = nil } }
  }

  private func putReceipts(_ transfer: Transfer) async throws {
    let held = try await context.ledger.read { try $0.receipts(transfer.sender, transfer.id) }
    let reply = try await links.send(transfer.link, "PUT", "\(Mailbox.path(transfer.id))/receipts") {
      $0.headers = ["Content-Type: application/json"]
      $0.body = .bytes(JSON.object(ReceiptList.document(held.map(\.bytes))).canonical)
    }
    // One that ended there needs no receipt any more.
    guard [200, 410].contains(reply.status) else { throw Self.unexpected(reply, transfer.link) }
  }
}

/// How much of each body has come, while this process fetches it. For people to look at.
final class Arriving: Sendable {
  private let bytes = NIOLockedValueBox<[Spool.Place: Int64]>([:])

  func set(_ transfer: Transfer, _ count: Int64) { bytes.withLockedValue { $0[transfer.place] = count } }
  func forget(_ transfer: Transfer) { bytes.withLockedValue { $0[transfer.place] = nil } }
  func of(_ transfer: Transfer) -> Int64? { bytes.withLockedValue { $0[transfer.place] } }
}
