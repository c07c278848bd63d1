// Hub: a gateway between two others. It holds bodies, parks what the two have signed for each other, and can open none of it.
//
//   sender                          hub                                        recipient
//   PUT manifest, PATCH body   →    receiving → queued                    →    relayed to it, or collected by it
//   (list) receipt             ←    custody      `received`, parked       ←    in the reply, or PUT receipts
//   (list) key request         ←    parked                                ←    POST key (collected only)
//   release rule, PUT key      →    released     the key, parked          →    relayed, or the answer of POST key
//   (list) receipt             ←    confirmed    `delivered`, parked      ←    its list, or PUT receipts
//
// Nothing that a hub says moves a transfer: only what the sender or the recipient signed does, and both verify it themselves. Its
// own word is worth no more than a cut line: something did not arrive yet.

import Foundation
import Logging
import Policies
import Sealing
import Store
import Transport

/// The hub's own steps. What it does as any gateway does (bodies, ranges, receipts) stands where the others do it.
struct Hub: Sendable {
  /// How long a request for a key waits for the sender, before the recipient is told to ask again.
  static let keyWaitSeconds: TimeInterval = 15

  let context: GatewayContext

  /// Whether a manifest is for somebody else, under an agreement that names us as the hub.
  func isBetween(_ manifest: Manifest) -> Bool {
    manifest.recipient != context.agency && context.policies.agreement(manifest.agreement.sha256)?.via == context.agency
  }

  // MARK: the sender's side

  /// Takes on a package for others. What cannot be taken is refused without a receipt: only the recipient signs those.
  func admit(_ manifest: Manifest, _ envelope: Envelope) async throws {
    let admission = Admission(context: context)
    try await admission.requireTimely(manifest)
    let agreement = context.policies.agreement(manifest.agreement.sha256)
    let decision = Evaluation.through(
      context.agency, manifest, under: agreement, circumstances(manifest, agreement))
    switch decision.outcome {
    case .permit: break
    case .hold, .refuse:
      // The parties' gateways decide; here it waits until this one holds what they hold.
      throw Problem(.unavailable, code: decision.codes.first?.rawValue ?? "hold", "the hub: \(decision.sentence)")
    }
    try await admission.requireRoom(for: manifest)
    var transfer = Admission.transfer(.hub, manifest, envelope, peer: manifest.recipient, at: context.now())
    transfer.via = context.agency
    transfer.isCollected = agreement?.delivery == .collect
    let begun = transfer
    try await context.ledger.write { tx in
      guard try tx.reader.transfers(called: begun.id, of: begun.sender).isEmpty else {
        throw Problem(.conflict, "another package has this id here")
      }
      try tx.insert(begun, ["manifest": .string(begun.manifestDigest), "decision": decision.document])
    }
  }

  private func circumstances(_ manifest: Manifest, _ agreement: Agreement?) -> Circumstances {
    let states = [manifest.sender, manifest.recipient].map { context.partners[$0]?.state ?? .unknown }
    let instant = context.now()
    return Circumstances(
      instant: instant, partner: states.first { $0 != .active } ?? .active, recipientKinds: [], packagesToday: 0,
      standing: agreement.map {
        context.acts.standing(of: $0, between: manifest.sender, manifest.recipient, at: instant)
      })
  }

  /// The body is whole and has the signed root: it goes on, or waits.
  func keep(_ transfer: Transfer, roots: [Digest]) async throws -> Transfer {
    let context = context
    try await context.pool.run {
      if transfer.isCollected {
        try context.spool.putTree(transfer.place, digest: MerkleTree.root(roots), roots: roots)
      }
      try context.spool.finish(transfer.place)
    }
    let row = try await context.ledger.write { tx in
      let row = try tx.advance(transfer, to: .queued) {
        $0.durableBytes = $0.bodyBytes
        $0.nextAt = $0.isCollected ? nil : tx.at
      }
      if row.isCollected { try tx.offer(row) }
      return row
    }
    let lane = context.news.lane(of: row.peer)
    (row.isCollected ? lane.mail : lane.sealed).notify()
    return row
  }

  /// The sender released it: from here on it counts as disclosed, whatever becomes of it here.
  func take(_ key: [UInt8], _ head: Admission.SenderHead?, for transfer: Transfer) async throws -> Transfer {
    switch transfer.state {
    case .custody: break
    case .receiving, .queued, .sending:
      throw Problem(.conflict, code: "key.early", "the recipient has not said `received`")
    default: return transfer
    }
    let row = try await context.ledger.write { tx in
      let row = try tx.advance(transfer, to: .released) {
        $0.key = key
        $0.nextAt = $0.isCollected ? nil : tx.at
      }
      if let head { try tx.add(document: head.proof, sender: row.sender, id: row.id) }
      if row.isCollected { try tx.offer(row) }
      return row
    }
    let lane = context.news.lane(of: row.peer)
    (row.isCollected ? lane.mail : lane.custody).notify()
    return row
  }

  /// The sender takes it back: nothing goes on from here, and the recipient is told.
  func stop(_ transfer: Transfer, _ takeBack: TakeBack, _ envelope: Envelope) async throws {
    let stops = transfer.state.mayBecome(.cancelled, .hub)
    let row = try await context.ledger.write { tx in
      try tx.add(document: envelope, sender: transfer.sender, id: transfer.id)
      guard stops else { return transfer }
      let row = try tx.advance(transfer, to: .cancelled, ["reason": .string(takeBack.reason)]) {
        $0.code = "taken-back"
        $0.nextAt = $0.isCollected ? nil : tx.at
      }
      try tx.offer(row)
      return row
    }
    guard stops else { return }
    try await context.pool.run { [context] in try context.spool.remove(row.place) }
    let lane = context.news.lane(of: row.peer)
    (row.isCollected ? lane.mail : lane.takeBacks).notify()
  }

  // MARK: the recipient's side

  /// `POST key`: the answer is the key, once the sender has put it; until then the signed request is parked for the sender.
  func askKey(_ transfer: Transfer, _ request: PartnerRequest) async throws -> HTTPReply {
    let bytes = try await request.collect(bytesMax: Envelope.bytesMax)
    guard transfer.state == .custody || transfer.state == .released else {
      throw Problem(.conflict, code: "key.early", "say `received` first: PUT \(Mailbox.path(transfer.id))/receipts")
    }
    if transfer.state == .custody { try await park(Self.verified(bytes, transfer, context), of: transfer) }
    let deadline = context.now() + Self.keyWaitSeconds
    let news = context.news.lane(of: transfer.peer).mail
    var isLast = false
    while true {
      let seen = news.generation
      let (row, head) = try await context.ledger.read {
        (
          try $0.transfer(transfer.sender, transfer.id), try $0.document(transfer.sender, transfer.id, .head)
        )
      }
      if let row, row.state == .released, let key = row.key {
        var headers = ["content-type": "application/octet-stream"]
        headers["sallyport-head"] = head.map { Base64.encode($0.bytes) }
        return HTTPReply(200, headers: headers, body: key)
      }
      let left = deadline.timeIntervalSince(context.now())
      guard row?.state == .custody, left > 0, !isLast else { return HTTPReply(202) }
      isLast = await !waitForNews(news, after: seen, for: .seconds(left))
    }
  }

  /// - Throws: `Problem` unless the recipient of `transfer` signed it.
  static func verified(_ bytes: [UInt8], _ transfer: Transfer, _ context: GatewayContext) throws -> Envelope {
    do {
      let envelope = try Envelope(parsing: bytes, as: .keyRequest)
      guard let card = context.partners[transfer.peer]?.card?.card else {
        throw SealingError(.documentSignature, "no card")
      }
      let request = try KeyRequest(try envelope.verify(card.signers(at: context.now())))
      guard request.id == transfer.id, request.sender == transfer.sender, request.recipient == transfer.peer,
        request.manifest.hex == transfer.manifestDigest
      else { throw SealingError(.documentInvalid, "the key request is about another transfer") }
      return envelope
    } catch let error as SealingError {
      throw Problem(.malformed, code: error.code.rawValue, "a signed key request: \(error.detail)")
    }
  }

  private func park(_ request: Envelope, of transfer: Transfer) async throws {
    let isNew = try await context.ledger.write { tx in
      guard try tx.reader.document(transfer.sender, transfer.id, .keyRequest) == nil else { return false }
      try tx.add(document: request, sender: transfer.sender, id: transfer.id)
      try tx.offer(transfer, to: transfer.sender)
      return true
    }
    if isNew { context.news.lane(of: transfer.sender).mail.notify() }
  }

  /// What a sender is told about its own transfer.
  static func item(_ transfer: Transfer, _ reader: Reader) throws -> JSON {
    var members: [String: JSON] = [
      "id": .string(transfer.id.text), "sender": .string(transfer.sender.text),
      "recipient": .string(transfer.peer.text), "state": .string(transfer.state.rawValue),
    ]
    for (name, kind) in [("keyRequest", DocumentKind.keyRequest), ("acknowledgement", .acknowledgement)] {
      members[name] = try reader.document(transfer.sender, transfer.id, kind).map {
        .string(String(decoding: $0.bytes, as: UTF8.self))
      }
    }
    return .object(members)
  }

  /// The body is not what was kept: its sender has it still, and sends it again.
  func lost(_ transfer: Transfer) async throws {
    let row = try await context.ledger.write { tx in
      let row = try tx.advance(transfer, to: .receiving, ["cause": "spool.damaged"]) {
        $0.durableBytes = 0
        $0.nextAt = nil
      }
      try tx.offer(row, to: row.sender)
      return row
    }
    try await context.pool.run { [context] in try context.spool.remove(row.place) }
    context.news.lane(of: row.sender).mail.notify()
  }
}
