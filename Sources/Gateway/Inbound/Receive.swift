// Receive: manifest, body and key from a sender's gateway. Ciphertext only; nothing is opened here.
//
//   PUT manifest  verify signature, parties, agreement, limits  →  COMMIT receiving
//   PATCH body    append, digest                                →  complete: root checked, body durable, COMMIT received + receipt
//   PUT key       digest of the manifest                        →  COMMIT the key; Open takes over
//   DELETE        signed take-back                              →  COMMIT cancelled; later parts get 410
//
// Every part may be repeated: the same document is answered with the receipts that stand, as success.

import Foundation
import Logging
import NIOConcurrencyHelpers
import Policies
import Sealing
import Store
import Transport

struct Receive: Sendable {
  let context: GatewayContext
  let sessions: Sessions

  // MARK: manifest

  func putManifest(_ id: TransferID, _ request: PartnerRequest) async throws -> HTTPReply {
    let bytes = try await request.collect(bytesMax: Envelope.bytesMax)
    let (manifest, envelope) = try verified(bytes, id, from: request.partner)
    if let known = try await context.ledger.read({ try $0.transfer(manifest.sender, id) }) {
      guard known.manifestDigest == envelope.payloadDigest.hex else {
        throw Problem(.conflict, "another manifest was sent under this id")
      }
      return try await standing(known)
    }
    if let (code, sentence, receipt) = try await admit(manifest, envelope, by: .relay) {
      return Self.refusal(code, sentence, receipt)
    }
    return HTTPReply.json(201, .object(ReceiptList.document([])), headers: ["upload-offset": "0"])
  }

  /// Takes a verified manifest on, or refuses it by policy: then nothing more of the transfer comes, and the refusal is signed.
  ///
  /// - Returns: the refusal's code, sentence and receipt; nil when the transfer was begun.
  /// - Throws: `Problem` for one that cannot be taken now, or at all.
  func admit(_ manifest: Manifest, _ envelope: Envelope, by delivery: Agreement.Delivery) async throws -> (
    String, String, Envelope
  )? {
    let instant = context.now()
    guard instant < manifest.expiresAt + GatewayContext.skewSeconds else {
      throw Problem(.refused, code: "manifest.expired", "the package has expired")
    }
    guard manifest.createdAt <= instant + GatewayContext.skewSeconds else {
      throw Problem(.refused, code: "manifest.clock", "the package comes from the future: compare clocks")
    }
    // After a restore the ledger may have forgotten what it delivered: nothing older is taken again.
    if let mark = try await context.ledger.read({ try $0.restoredAt() }), manifest.createdAt < mark {
      throw Problem(.refused, code: "manifest.before-restore", "the package is older than this gateway's last restore")
    }
    var transfer = transfer(manifest, envelope, at: instant)
    transfer.isCollected = delivery == .collect
    let agreement = context.policies.agreement(manifest.agreement.sha256)
    let decision = Evaluation.inbound(
      manifest, under: agreement, try await context.circumstances(manifest.sender, agreement), by: delivery)
    switch decision.outcome {
    case .permit: break
    case .hold: throw Problem(.unavailable, code: decision.codes[0].rawValue, decision.sentence, retryAfterSeconds: 60)
    case .refuse: return try await refuse(transfer, code: decision.codes[0].rawValue, decision)
    }
    try await requireRoom(for: manifest)
    // A relayed body comes by itself.
    transfer.nextAt = transfer.isCollected ? instant : nil
    let begun = transfer
    try await context.ledger.write { tx in
      try tx.insert(begun, ["manifest": .string(begun.manifestDigest), "decision": decision.document])
    }
    return nil
  }

  /// One answer for every cause that is about who signed what.
  func verified(_ bytes: [UInt8], _ id: TransferID, from partner: AgencyID) throws -> (Manifest, Envelope) {
    let untrusted = Problem(
      .refused, code: "document.signature", "the manifest is not signed as the sender's card demands")
    do {
      let envelope = try Envelope(parsing: bytes, as: .manifest)
      guard let card = context.partners[partner]?.card?.card else { throw untrusted }
      let manifest = try Manifest(try envelope.verify(card.signers(at: context.now())))
      guard manifest.sender == partner, manifest.id == id else { throw untrusted }
      guard manifest.recipient == context.agency else {
        throw Problem(.refused, code: "manifest.recipient", "the package is for another agency")
      }
      return (manifest, envelope)
    } catch let error as SealingError where error.code != .documentSignature {
      throw Problem(.malformed, code: error.code.rawValue, error.detail)
    } catch is SealingError {
      throw untrusted
    }
  }

  private func transfer(_ manifest: Manifest, _ envelope: Envelope, at instant: Date) -> Transfer {
    var transfer = Transfer(
      direction: .in, sender: manifest.sender, id: manifest.id, peer: manifest.sender, agreement: manifest.agreement.id,
      state: .receiving, name: manifest.name, payloadBytes: manifest.payloadBytes, bodyBytes: manifest.bodyBytes,
      manifest: envelope.bytes, manifestDigest: envelope.payloadDigest.hex, createdAt: instant,
      expiresAt: manifest.expiresAt)
    transfer.nextAt = nil
    return transfer
  }

  /// A refusal by policy is recorded and signed, so that the sender holds evidence.
  private func refuse(_ transfer: Transfer, code: String, _ decision: Decision) async throws -> (
    String, String, Envelope
  ) {
    let (receipt, envelope) = context.receipt(.refused, for: transfer, code: code, previous: nil)
    try await context.ledger.write { tx in
      try tx.insert(transfer)
      try tx.advance(transfer, to: .refused, ["decision": decision.document]) {
        $0.code = code
        // The sender of a collected one has yet to be told.
        $0.nextAt = $0.isCollected ? tx.at : nil
      }
      try tx.add(receipt: receipt, envelope: envelope)
    }
    return (code, decision.sentence, envelope)
  }

  private static func refusal(_ code: String, _ detail: String, _ receipt: Envelope?) -> HTTPReply {
    var reply = HTTPReply.problem(Problem(.refused, code: code, detail))
    guard let receipt, case .object(var members) = Problem(.refused, code: code, detail).document else { return reply }
    members["receipt"] = .string(String(decoding: receipt.bytes, as: UTF8.self))
    reply.body = JSON.object(members).canonical
    return reply
  }

  private func requireRoom(for manifest: Manifest) async throws {
    let load = try await context.ledger.read { try $0.load(of: manifest.sender) }
    guard load.packages < context.configuration.packagesPerPartner else {
      throw Problem(.busy, code: "limit.packages", "too many packages are under way", retryAfterSeconds: 2)
    }
    guard load.bytes + manifest.bodyBytes <= context.configuration.bytesPerPartnerMax else {
      throw Problem(.busy, code: "limit.bytes-per-partner", "too many bytes are under way", retryAfterSeconds: 30)
    }
    guard try context.hasRoom(for: manifest.bodyBytes + manifest.payloadBytes) else {
      throw Problem(.full, code: "disk.full", "there is no room for this package", retryAfterSeconds: 60)
    }
  }

  /// What stands about a known transfer: its receipts, or where to go on, or that it is gone.
  private func standing(_ transfer: Transfer) async throws -> HTTPReply {
    let receipts = try await context.ledger.read { try $0.receipts(transfer.sender, transfer.id) }
    switch transfer.state {
    case .cancelled, .expired:
      throw Problem(.gone, code: "transfer.\(transfer.state.rawValue)", "this transfer was ended")
    case .held: throw Problem(.unavailable, code: "transfer.held", "this transfer is held here", retryAfterSeconds: 60)
    case .refused, .quarantined:
      return Self.refusal(transfer.code, "this package was refused", receipts.last)
    default:
      let offset = transfer.state == .receiving ? durable(transfer) : transfer.bodyBytes
      return HTTPReply.json(
        200, .object(ReceiptList.document(receipts.map(\.bytes))), headers: ["upload-offset": String(offset)])
    }
  }

  private func durable(_ transfer: Transfer) -> Int64 { sessions.durableBytes(transfer) ?? transfer.durableBytes }

  /// The transfer of `request`'s partner, as its sender; anybody else's does not exist.
  private func own(_ id: TransferID, _ request: PartnerRequest) async throws -> Transfer {
    guard let transfer = try await context.ledger.read({ try $0.transfer(request.partner, id) }),
      transfer.direction == .in
    else { throw Problem(.notFound, "there is no such transfer") }
    return transfer
  }

  /// The same, of those whose parts its sender puts.
  private func relayed(_ id: TransferID, _ request: PartnerRequest) async throws -> Transfer {
    let transfer = try await own(id, request)
    guard !transfer.isCollected else { throw Problem(.conflict, code: "delivery.mode", "this one is collected") }
    return transfer
  }

  // MARK: body

  func bodyOffset(_ id: TransferID, _ request: PartnerRequest) async throws -> HTTPReply {
    let transfer = try await own(id, request)
    let offset = transfer.state == .receiving ? durable(transfer) : transfer.bodyBytes
    return HTTPReply(200, headers: ["upload-offset": String(offset), "upload-length": String(transfer.bodyBytes)])
  }

  func appendBody(_ id: TransferID, _ request: PartnerRequest) async throws -> HTTPReply {
    guard let offset = request.header("upload-offset").flatMap(Int64.init), offset >= 0 else {
      throw Problem(.malformed, "Upload-Offset: expected a whole number")
    }
    var digest: Digest?
    if let header = request.header("content-digest") {
      guard let parsed = ContentDigest.parse(header) else {
        throw Problem(.malformed, "Content-Digest: expected one sha-256")
      }
      digest = parsed
    }
    let first = try await relayed(id, request)
    guard first.state == .receiving else { return try await standing(first) }
    let expected = digest
    // The request itself runs in a task of its own, so that a newer one can stop it.
    let work = Work()
    let (ticket, open) = await sessions.take(first) { work.cancel() }
    let task = Task { () async throws -> HTTPReply in
      try await append(first, request, offset, expected, ticket, open)
    }
    work.set(task)
    return try await withTaskCancellationHandler {
      try await task.value
    } onCancel: {
      task.cancel()
    }
  }

  private func append(
    _ known: Transfer, _ request: PartnerRequest, _ offset: Int64, _ digest: Digest?, _ ticket: UInt64,
    _ open: ReceivingBody?
  ) async throws -> HTTPReply {
    var keep: ReceivingBody?
    defer { sessions.leave(known, ticket, keeping: keep) }
    let transfer = try await own(known.id, request)
    guard transfer.state == .receiving else { return try await standing(transfer) }
    let context = context
    let body = if let open { open } else { try await context.pool.run { try ReceivingBody.open(context, transfer) } }
    keep = body
    guard offset == body.durableBytes else {
      return HTTPReply.problem(
        Problem(.offset, "this body goes on at \(body.durableBytes)"),
        headers: ["upload-offset": String(body.durableBytes)])
    }
    body.begin(expecting: digest)
    do {
      try await request.drain(to: body)
      try await body.settle(from: offset)
    } catch {
      // The connection was cut, or a newer request came: what is here is made durable for the next one.
      let cause = error
      if !(cause is Problem) { try await Task { try await body.settle(from: offset) }.value }
      try await remember(transfer, body)
      throw Task.isCancelled ? Problem(.superseded, "a newer request took over") : cause
    }
    guard body.isComplete else {
      try await remember(transfer, body)
      return HTTPReply(204, headers: ["upload-offset": String(body.durableBytes)])
    }
    let reply = try await complete(transfer, body)
    keep = nil
    return reply
  }

  private func remember(_ transfer: Transfer, _ body: ReceivingBody) async throws {
    _ = try await context.ledger.write { try $0.amend(transfer) { $0.durableBytes = body.durableBytes } }
  }

  private func complete(_ transfer: Transfer, _ body: ReceivingBody) async throws -> HTTPReply {
    let manifest = try transfer.readManifest()
    guard body.treeRoot == manifest.bodyTreeRoot else {
      let (code, note) = (SealingError.Code.bodyRoot.rawValue, "the body is not the one that was signed")
      return Self.refusal(
        code, note, try await OpenPackage(context: context).quarantine(transfer, code: code, note: note))
    }
    let (_, envelope) = try await received(transfer)
    return HTTPReply.json(200, .object(ReceiptList.document([envelope.bytes])))
  }

  /// The whole body is here, synced, and has the signed root.
  func received(_ transfer: Transfer) async throws -> (Transfer, Envelope) {
    let context = context
    try await context.pool.run { try context.spool.finish(transfer.place) }
    let (receipt, envelope) = context.receipt(.received, for: transfer, previous: nil)
    let row = try await context.ledger.write { tx in
      let row = try tx.advance(transfer, to: .received, ["receipt": .string(envelope.payloadDigest.hex)]) {
        $0.durableBytes = $0.bodyBytes
        // A relayed key comes by itself; who collects goes on to ask for it, and the stage looks only after what was left.
        $0.nextAt = $0.isCollected ? tx.at + 5 : nil
      }
      try tx.add(receipt: receipt, envelope: envelope)
      return row
    }
    return (row, envelope)
  }

  // MARK: key

  func putKey(_ id: TransferID, _ request: PartnerRequest) async throws -> HTTPReply {
    let key = try await request.collect(bytesMax: PackageKey.bytesMax)
    let transfer = try await relayed(id, request)
    try requireKey(key, of: transfer)
    let head = try senderHead(request.header("sallyport-head"), of: request.partner)
    guard transfer.state == .received, transfer.key == nil else {
      guard transfer.state != .receiving else {
        throw Problem(.conflict, code: "key.early", "the body is not complete")
      }
      return try await standing(transfer)
    }
    try await take(key, head, for: transfer)
    return try await standing(transfer)
  }

  func requireKey(_ key: [UInt8], of transfer: Transfer) throws {
    let manifest = try transfer.readManifest()
    guard Digest(of: key) == manifest.keySHA256 else {
      throw Problem(.conflict, code: "key.digest", "the key is not the one that the manifest names")
    }
  }

  /// The key of a received body, with the sender's head that came beside it.
  func take(_ key: [UInt8], _ head: SenderHead?, for transfer: Transfer) async throws {
    try await context.ledger.write { tx in
      // Nothing may have come between the look and this: a take-back that was answered never-had-key stays true.
      guard let current = try tx.reader.transfer(transfer.sender, transfer.id), current.state == .received,
        current.key == nil
      else { throw LedgerError.stale("transfer \(transfer.id)") }
      _ = try tx.amend(current) {
        $0.key = key
        $0.nextAt = tx.at
      }
      var detail: [String: JSON] = [:]
      if let head {
        try ReceiptBook.keepHead(head.head, in: head.proof, of: transfer.sender, tx)
        detail["head"] = head.head.document
      }
      try tx.append(AuditEvent("key-received", sender: transfer.sender, id: transfer.id, detail))
    }
    context.news.keys.notify()
  }

  typealias SenderHead = (head: LedgerHead, proof: Envelope)

  /// The sender's signed ledger head that travels with a release.
  func senderHead(_ header: String?, of partner: AgencyID) throws -> SenderHead? {
    guard let header else { return nil }
    guard let bytes = Base64.decode(header), let card = context.partners[partner]?.card?.card else {
      throw Problem(.malformed, "Sallyport-Head: expected base64 of a signed head")
    }
    do {
      let proof = try Envelope(parsing: bytes, as: .head)
      return (try LedgerHead(proof.verify(card.signers(at: context.now()))), proof)
    } catch {
      throw Problem(.malformed, code: error.code.rawValue, "Sallyport-Head: \(error.detail)")
    }
  }

  // MARK: receipts, take-back

  func receipts(_ id: TransferID, after kind: String, waitSeconds: Int, _ request: PartnerRequest) async throws
    -> HTTPReply
  {
    let deadline = context.now() + Double(waitSeconds)
    let news = context.news.lane(of: request.partner).mail
    var isLast = waitSeconds == 0
    while true {
      let seen = news.generation
      let transfer = try await own(id, request)
      let all = try await context.ledger.read { try $0.receipts(transfer.sender, transfer.id) }
      let kinds = try all.map { try Receipt($0.unverified()).kind.rawValue }
      let fresh = kinds.firstIndex(of: kind).map { all.dropFirst($0 + 1) } ?? all[...]
      let left = deadline.timeIntervalSince(context.now())
      if !fresh.isEmpty || left <= 0 || isLast {
        return HTTPReply.json(200, .object(ReceiptList.document(fresh.map(\.bytes))))
      }
      isLast = await !waitForNews(news, after: seen, for: .seconds(left))
    }
  }

  func takeBack(_ id: TransferID, _ request: PartnerRequest) async throws -> HTTPReply {
    let bytes = try await request.collect(bytesMax: Envelope.bytesMax)
    let transfer = try await own(id, request)
    if let stored = try await context.ledger.read({ try $0.document(transfer.sender, transfer.id, .acknowledgement) }) {
      return HTTPReply(200, headers: ["content-type": "application/json"], body: stored.bytes)
    }
    let takeBack: TakeBack
    let envelope: Envelope
    do {
      guard let card = context.partners[request.partner]?.card?.card else {
        throw SealingError(.documentSignature, "no card")
      }
      envelope = try Envelope(parsing: bytes, as: .takeBack)
      takeBack = try TakeBack(try envelope.verify(card.signers(at: context.now())))
      guard takeBack.id == id, takeBack.sender == request.partner, takeBack.manifest.hex == transfer.manifestDigest
      else {
        throw SealingError(.documentSignature, "about another transfer")
      }
    } catch {
      throw Problem(.refused, code: "document.signature", "the take-back is not signed as the sender's card demands")
    }
    let stops = transfer.key == nil && transfer.state.mayBecome(.cancelled, .in)
    let answer = TakeBackAnswer(
      takeBack: envelope.payloadDigest, outcome: transfer.key == nil ? .neverHadKey : .hadKey, at: context.now())
    let signed = context.sign(answer.document, as: .acknowledgement)
    try await context.ledger.write { tx in
      guard try tx.reader.transfer(transfer.sender, transfer.id) == transfer else {
        throw LedgerError.stale("transfer \(id)")
      }
      if stops {
        _ = try tx.advance(transfer, to: .cancelled, ["reason": .string(takeBack.reason)]) {
          $0.code = "taken-back"
          $0.nextAt = nil
        }
      }
      try tx.add(document: envelope, sender: transfer.sender, id: transfer.id)
      try tx.add(document: signed, sender: transfer.sender, id: transfer.id)
    }
    if stops {
      sessions.end(transfer)
      try await context.pool.run { try context.spool.remove(transfer.place) }
    }
    return HTTPReply(200, headers: ["content-type": "application/json"], body: signed.bytes)
  }
}

/// A task that may be cancelled before it is known.
private final class Work: Sendable {
  private struct State {
    var task: Task<HTTPReply, any Error>?
    var isCancelled = false
  }

  private let state = NIOLockedValueBox(State())

  func set(_ task: Task<HTTPReply, any Error>) {
    let cancel = state.withLockedValue { state in
      state.task = task
      return state.isCancelled
    }
    if cancel { task.cancel() }
  }

  func cancel() {
    let task = state.withLockedValue { state in
      state.isCancelled = true
      return state.task
    }
    task?.cancel()
  }
}
