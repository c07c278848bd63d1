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
  static let keyWaitSeconds: TimeInterval = 5
  /// Packages of one sender that wait here.
  static let packagesMax: Int64 = 10_000
  /// The code of what a hub hands on and nobody signed.
  static let altered = "hub.altered"

  let context: GatewayContext

  /// The agreement that names us as the hub of a manifest for somebody else; nil when there is none.
  func agreement(for manifest: Manifest) -> Agreement? {
    guard manifest.recipient != context.agency, let held = context.policies.agreement(manifest.agreement.sha256),
      held.via == context.agency
    else { return nil }
    return held
  }

  // MARK: the sender's side

  /// Takes on a package for others. What cannot be taken is refused without a receipt: only the recipient signs those.
  func admit(_ manifest: Manifest, _ envelope: Envelope, under agreement: Agreement) async throws {
    let admission = Admission(context: context)
    try await admission.requireTimely(manifest)
    let decision = Evaluation.inbound(
      manifest, under: agreement, circumstances(manifest, agreement), by: agreement.delivery, via: context.agency)
    switch decision.outcome {
    case .permit: break
    case .hold, .refuse:
      // The parties' gateways decide; here it waits until this one holds what they hold.
      throw Problem(.unavailable, code: decision.codes.first?.rawValue ?? "hold", "the hub: \(decision.sentence)")
    }
    try await admission.requireRoom(for: manifest)
    var transfer = Admission.transfer(.hub, manifest, envelope, peer: manifest.recipient, at: context.now())
    transfer.via = context.agency
    transfer.isCollected = agreement.delivery == .collect
    let begun = transfer
    try await context.ledger.write { tx in
      if let known = try tx.reader.transfers(called: begun.id, of: begun.sender).first {
        // The same request twice at once is one.
        guard known.sender == begun.sender, known.manifestDigest == begun.manifestDigest else {
          throw Problem(.conflict, "another package has this id here")
        }
        return
      }
      try tx.insert(begun, ["manifest": .string(begun.manifestDigest), "decision": decision.document])
    }
  }

  private func circumstances(_ manifest: Manifest, _ agreement: Agreement) -> Circumstances {
    let states = [manifest.sender, manifest.recipient].map { context.partners[$0]?.state ?? .unknown }
    let instant = context.now()
    return Circumstances(
      instant: instant, partner: states.first { $0 != .active } ?? .active, recipientKinds: [], packagesToday: 0,
      standing: context.acts.standing(of: agreement, between: manifest.sender, manifest.recipient, at: instant))
  }

  /// The body that came to a hub, or from it, is not the one that was signed. Nothing is said about it that anybody could take for the
  /// recipient's word; whoever sends it begins again.
  func reject(_ transfer: Transfer) async throws -> Problem {
    try await context.pool.run { [context] in try context.spool.remove(transfer.place) }
    _ = try await context.ledger.write { try $0.amend(transfer) { $0.durableBytes = 0 } }
    return Problem(.unavailable, code: "body.root", "the body that came is not the one that was signed")
  }

  /// The body is whole and has the signed root: it goes on, or waits.
  func keep(_ transfer: Transfer, roots: [Digest]) async throws -> Transfer {
    if transfer.isCollected {
      try await context.pool.run { [context] in
        try context.spool.putTree(transfer.place, digest: MerkleTree.root(roots), roots: roots)
      }
    }
    let row = try await context.finishBody(of: transfer) { tx in
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
  ///
  /// - Throws: `Problem` gone when there is nothing left to take back.
  func stop(_ transfer: Transfer, _ takeBack: TakeBack, _ envelope: Envelope) async throws {
    if transfer.state == .cancelled { return }
    guard transfer.state.mayBecome(.cancelled, .hub) else {
      throw Problem(.gone, code: "transfer.\(transfer.state.rawValue)", "this transfer has ended, or its key is here")
    }
    let row = try await context.ledger.write { tx in
      try tx.add(document: envelope, sender: transfer.sender, id: transfer.id)
      let row = try tx.advance(transfer, to: .cancelled, ["reason": .string(takeBack.reason)]) {
        $0.code = "taken-back"
        $0.nextAt = $0.isCollected ? nil : tx.at
      }
      try tx.offer(row)
      return row
    }
    try await context.discardBody(of: row)
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
    var isNew = false
    if transfer.state == .custody { isNew = try await park(Self.verified(bytes, transfer, context), of: transfer) }
    // Asked again, it is the list that says when the key is here.
    let news = context.news.lane(of: transfer.peer).mail
    return try await longPoll(news, seconds: isNew ? Self.keyWaitSeconds : 0, now: context.now) { isLast in
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
      return row?.state == .custody && !isLast ? nil : HTTPReply(202)
    }
  }

  /// - Throws: `Problem` unless the recipient of `transfer` signed it.
  static func verified(_ bytes: [UInt8], _ transfer: Transfer, _ context: GatewayContext) throws -> Envelope {
    do {
      let (document, envelope) = try context.verified(bytes, as: .keyRequest, by: transfer.peer)
      let request = try KeyRequest(document)
      guard request.id == transfer.id, request.sender == transfer.sender, request.recipient == transfer.peer,
        request.manifest.hex == transfer.manifestDigest
      else { throw SealingError(.documentInvalid, "the key request is about another transfer") }
      return envelope
    } catch let error as SealingError {
      throw Problem(.malformed, code: error.code.rawValue, "a signed key request: \(error.detail)")
    }
  }

  private func park(_ request: Envelope, of transfer: Transfer) async throws -> Bool {
    let isNew = try await context.ledger.write { tx in
      let isNew = try tx.reader.document(transfer.sender, transfer.id, .keyRequest) == nil
      // Asked again: the sender may not have been able to verify the one before.
      try tx.replace(document: request, sender: transfer.sender, id: transfer.id)
      try tx.offer(transfer, to: transfer.sender)
      return isNew
    }
    context.news.lane(of: transfer.sender).mail.notify()
    return isNew
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
    let row = try await context.ledger.write { tx -> Transfer? in
      // It may have ended meanwhile, and its body gone for that.
      guard let current = try tx.reader.transfer(transfer.sender, transfer.id),
        current.state.mayBecome(.receiving, .hub)
      else { return nil }
      let row = try tx.advance(current, to: .receiving, ["cause": "spool.damaged"]) {
        $0.durableBytes = 0
        $0.nextAt = nil
      }
      try tx.offer(row, to: row.sender)
      return row
    }
    guard let row else { return }
    try await context.pool.run { [context] in try context.spool.remove(row.place) }
    context.news.lane(of: row.sender).mail.notify()
  }
}
