// Relay: manifest, then body, then — after the recipient's signed `received` and the release rule — the key.
//
//   queued → sending    PUT manifest   (201, or 200 with an offset: everything here may be repeated)
//                       PATCH body     from the offset that the peer reports
//   sending → custody   the `received` receipt, verified, in the same commit
//   custody → releasing the release rule: checked and recorded in one transaction, with a lease
//   releasing → released  PUT key
//
// A cut anywhere goes back to queued (or stays in releasing) and begins again with the peer's word on what it holds.
//
// Through a hub the same goes to the hub, and the receipts come with its list: until then the transfer rests in queued. Whoever
// relays as the hub does the same with the manifest and body that it was given, and the key once the sender has put it.

import Foundation
import Logging
import Policies
import Sealing
import Store
import Transport

/// Drives transfers of the sender's side from queued to released, and those that a hub passes on.
struct Relay: Sendable {
  /// How often the sender looks whether the hub still has what it was given.
  static let hubLookSeconds: TimeInterval = 3600

  /// What is left of a body is sent with its digest up to this: the bytes wait in memory for their turn.
  static let digestedBytesMax: Int64 = 256 << 10

  let context: GatewayContext
  let links: PartnerLinks
  let receipts: ReceiptBook

  /// Work of the stage `queued`. While it is under way the row is nobody else's: it has no next time.
  func send(_ transfer: Transfer) async throws {
    guard !transfer.isCollected else { return try await Mailbox.rest(transfer, context) }
    let row = try await context.ledger.write { tx in try tx.advance(transfer, to: .sending) { $0.nextAt = nil } }
    try await transmit(row)
  }

  private func transmit(_ transfer: Transfer) async throws {
    let path = Mailbox.path(transfer.id)
    let reply = try await links.send(transfer.link, "PUT", "\(path)/manifest") {
      $0.body = .bytes(transfer.manifest)
      $0.headers = ["Content-Type: application/json"]
    }
    guard reply.status == 200 || reply.status == 201 else { return try await refused(transfer, reply) }
    var (held, _) = try ReceiptList.parse(reply)
    if held.isEmpty {
      guard let offset = reply.headers["upload-offset"].flatMap(Int64.init), (0...transfer.bodyBytes).contains(offset)
      else {
        throw Problem(.unavailable, code: "partner.protocol", "\(transfer.link) names no offset to go on from")
      }
      held = try await sendBody(transfer, path, from: offset)
    }
    var applied = try await receipts.apply(held, to: transfer)
    if applied == nil { applied = try await context.ledger.read { try $0.transfer(transfer.sender, transfer.id) } }
    guard var row = applied else { return }
    if row.state == .sending {
      // The receipt may have come while an administrator held the transfer.
      let known = try await context.ledger.read { try $0.receiptBytes(transfer.sender, transfer.id) }
      guard !known.isEmpty else {
        guard !transfer.isThroughHub else { return try await rest(row) }
        throw Problem(.unavailable, code: "partner.no-receipt", "\(transfer.peer) has the body and gives no receipt")
      }
      let sending = row
      row = try await context.ledger.write { tx in
        try tx.advance(sending, to: .custody) { $0.nextAt = tx.at + GatewayContext.leaseSeconds }
      }
    }
    if row.state == .custody, row.direction == .out { try await release(row) }
  }

  /// The hub has it; its recipient has still to come for it.
  private func rest(_ transfer: Transfer) async throws {
    _ = try await context.ledger.write { tx in
      try tx.advance(transfer, to: .queued, ["at": .string(transfer.link.text)]) {
        $0.nextAt = tx.at + Self.hubLookSeconds
        $0.note = "at the hub \(transfer.link); waits for \(transfer.peer)"
      }
    }
  }

  private func sendBody(_ transfer: Transfer, _ path: String, from start: Int64) async throws -> [[UInt8]] {
    let file = try await context.pool.run { [context] in try context.body(of: transfer) }
    var offset = start
    // A peer that lies about offsets costs a few rounds, not an endless loop.
    for _ in 0..<4 {
      let (from, length) = (offset, transfer.bodyBytes - offset)
      var headers = ["Upload-Offset: \(from)", "Content-Type: application/octet-stream"]
      let body: RelayRequest.Body
      // A small body carries its digest; a large one is covered by the tree root, and hashing it first would cost a pass.
      if length > 0, length <= Self.digestedBytesMax {
        let bytes = try await context.pool.run { try file.file.bytes(at: from, count: Int(length)) }
        headers.append("Content-Digest: \(ContentDigest.header(Digest(of: bytes)))")
        body = .bytes(bytes)
      } else {
        body = .file(offset: from, length: length) { try file.file.read(into: $0, at: $1) }
      }
      let fields = headers
      let reply = try await links.send(transfer.link, "PATCH", "\(path)/body") {
        $0.headers = fields
        $0.body = body
        $0.stallSeconds = 60
      }
      switch reply.status {
      case 200: return try ReceiptList.parse(reply).receipts
      case 409:
        guard let problem = Problem(reply), problem.kind == .offset,
          let next = reply.headers["upload-offset"].flatMap(Int64.init), (0...transfer.bodyBytes).contains(next),
          next != offset
        else {
          throw Problem(reply)
            ?? Problem(.unavailable, code: "partner.protocol", "the peer refuses the body without a reason")
        }
        offset = next
      default:
        try await refused(transfer, reply)
        return []
      }
    }
    throw Problem(.unavailable, code: "partner.protocol", "\(transfer.link) keeps changing its offset")
  }

  /// The peer said no. A refusal is evidence only when it is signed.
  private func refused(_ transfer: Transfer, _ reply: HTTPReply) async throws {
    let problem = Problem(reply)
    if let document = try? JSON(canonical: reply.body, bytesMax: 65536), case .object(let members) = document,
      case .string(let receipt)? = members["receipt"],
      try await receipts.apply([Array(receipt.utf8)], to: transfer) != nil
    {
      return
    }
    switch reply.status {
    case 429, 500...599:
      throw problem ?? Problem(.unavailable, code: "partner.status", "\(transfer.link) answers \(reply.status)")
    case 404:
      // Not known there (any more), or not ours to know: begin again from the manifest, later.
      throw Problem(.unavailable, code: "partner.not-found", "\(transfer.link) does not know this transfer")
    case _ where transfer.isThroughHub:
      // A hub's word ends nothing.
      throw Problem(
        .unavailable, code: problem?.code ?? "hub.status", problem?.detail ?? "the hub answers \(reply.status)")
    default:
      throw problem ?? Problem(.conflict, code: "partner.status", "\(transfer.link) answers \(reply.status)")
    }
  }

  // MARK: release

  /// Work of the stages `custody` and `releasing`: the one moment of disclosure.
  func release(_ transfer: Transfer) async throws {
    guard !transfer.isCollected else { return try await Mailbox.rest(transfer, context) }
    guard try await isAskedFor(transfer) else { return }
    if case .opened(let row) = try await Release(context: context).open(transfer) { try await handOver(row) }
  }

  /// Whoever collects from a hub asks for the key; to all others it goes once they have the body.
  private func isAskedFor(_ transfer: Transfer) async throws -> Bool {
    guard transfer.isThroughHub,
      try context.policies.agreement(transfer.readManifest().agreement.sha256)?.delivery == .collect
    else { return true }
    return try await context.ledger.write { tx in
      // The request may come while this is looked at: whichever commits last sees the other.
      if try tx.reader.document(transfer.sender, transfer.id, .keyRequest) != nil { return true }
      _ = try tx.amend(transfer) {
        $0.nextAt = nil
        $0.note = "\(transfer.peer) has the body, and has yet to ask for the key"
      }
      return false
    }
  }

  private func handOver(_ transfer: Transfer) async throws {
    let head = context.sign(context.ledger.head.document, as: .head)
    guard let reply = try await putKey(of: transfer, head) else { return }
    let row = try await Release(context: context).close(transfer)
    context.news.lane(of: row.link).released.notify()
    let held = try ReceiptList.parse(reply).receipts
    if !held.isEmpty { _ = try await receipts.apply(held, to: row) }
  }

  /// nil when it was refused, and that is settled.
  private func putKey(of transfer: Transfer, _ head: Envelope?) async throws -> HTTPReply? {
    guard let key = transfer.key else { throw SealingError(.keyInvalid, "the key of the package is missing") }
    let reply = try await links.send(transfer.link, "PUT", "\(Mailbox.path(transfer.id))/key") {
      $0.body = .bytes(key)
      $0.headers = ["Content-Type: application/octet-stream"]
      if let head { $0.headers.append("Sallyport-Head: \(Base64.encode(head.bytes))") }
      // The lease ends whatever the peer does.
      $0.totalSeconds = Int(GatewayContext.leaseSeconds) - 5
    }
    if reply.status == 200 { return reply }
    try await refused(transfer, reply)
    return nil
  }

  /// Work of a hub's stage `released`: the sender released it, and it is passed on. What is left is the recipient's receipt.
  func passKey(_ transfer: Transfer) async throws {
    let head = try await context.ledger.read { try $0.document(transfer.sender, transfer.id, .head) }
    guard let reply = try await putKey(of: transfer, head) else { return }
    let held = try ReceiptList.parse(reply).receipts
    let row = try await receipts.apply(held, to: transfer)
    guard row == nil || row?.state == .released else { return }
    try await context.ledger.write { tx in
      guard let current = try tx.reader.transfer(transfer.sender, transfer.id), current.state == .released else {
        return
      }
      _ = try tx.amend(current) { $0.nextAt = nil }
    }
    context.news.lane(of: transfer.peer).released.notify()
  }
}

/// An open file that several closures may use.
final class OpenFile: Sendable {
  let file: File

  init(_ file: consuming File) { self.file = file }
}
