// Verifies what recipients sign, and moves transfers by it; at a hub, parks it for the sender.

import Foundation
import Logging
import Policies
import Sealing
import Store
import Transport

/// The sender's side of receipts, and the hub's, which parks them for the sender.
struct ReceiptBook: Sendable {
  let context: GatewayContext

  /// A receipt that is the partner's, about this transfer, in its place in the chain.
  struct Verified: Sendable {
    let receipt: Receipt
    let envelope: Envelope
  }

  /// Verifies `envelopes` in order and applies those that are new.
  ///
  /// - Returns: the row as it is then; nil when nothing was new.
  /// - Throws: `document.*` when one does not verify; nothing after it is applied.
  func apply(_ envelopes: [[UInt8]], to transfer: Transfer) async throws -> Transfer? {
    var row: Transfer?
    var known = try await context.ledger.read { try $0.receiptBytes(transfer.sender, transfer.id) }
    for bytes in envelopes where !known.contains(bytes) {
      let verified = try verify(bytes, of: row ?? transfer, after: Self.digest(known.last))
      row = try await store(verified, row ?? transfer)
      known.append(bytes)
    }
    return row
  }

  private static func digest(_ receipt: [UInt8]?) throws -> Digest? {
    try receipt.map { try Envelope(parsing: $0, as: .receipt).payloadDigest }
  }

  private func verify(_ bytes: [UInt8], of transfer: Transfer, after previous: Digest?) throws -> Verified {
    guard let card = context.partners[transfer.peer]?.card?.card else { throw LedgerError.notFound(transfer.peer.text) }
    let envelope = try Envelope(parsing: bytes, as: .receipt)
    let receipt = try Receipt(try envelope.verify(card.signers(at: context.now())))
    guard receipt.id == transfer.id, receipt.sender == transfer.sender, receipt.recipient == transfer.peer,
      receipt.manifest.hex == transfer.manifestDigest, receipt.previous == previous
    else {
      throw SealingError(
        .documentInvalid, "the receipt of \(transfer.peer) is not about this transfer, or out of order")
    }
    return Verified(receipt: receipt, envelope: envelope)
  }

  private func store(_ verified: Verified, _ transfer: Transfer) async throws -> Transfer {
    let receipt = verified.receipt
    let detail: [String: JSON] = [
      "receipt": .string(verified.envelope.payloadDigest.hex), "head": receipt.head.document,
    ]
    let row = try await context.ledger.write { tx in
      // The reply to a request and the long poll may bring the same receipt at once.
      let known = try tx.reader.receiptBytes(transfer.sender, transfer.id)
      if known.contains(verified.envelope.bytes) {
        return try tx.reader.transfer(transfer.sender, transfer.id) ?? transfer
      }
      guard receipt.previous == (try Self.digest(known.last)) else {
        throw SealingError(.documentInvalid, "the receipt of \(transfer.peer) is out of order")
      }
      // The row may have moved since it was read: a receipt counts whatever our own last step was.
      guard let current = try tx.reader.transfer(transfer.sender, transfer.id) else {
        throw LedgerError.notFound(transfer.id.text)
      }
      if receipt.kind == .delivered, current.state == .custody, let restored = try tx.reader.restoredAt(),
        current.createdAt <= restored
      {
        // The release is forgotten. It is made again, and brings this receipt again.
        return current
      }
      try tx.add(receipt: receipt, envelope: verified.envelope)
      try Self.keepHead(receipt.head, in: verified.envelope, of: transfer.peer, tx)
      switch receipt.kind {
      case .received:
        guard current.state == .sending || current.state == .queued else {
          // A hub that cannot go on from it now is told again.
          guard current.direction != .hub || ![.held, .receiving].contains(current.state) else {
            throw LedgerError.illegal("\(transfer.id): received while it is \(current.state.rawValue)")
          }
          return current
        }
        return try tx.advance(current, to: .custody, detail) {
          // Who collects comes by itself. From a hub's list the stage goes on at once; else whoever applied the receipt does, and the
          // stage looks only after what was left.
          if $0.isCollected || $0.direction == .hub {
            $0.nextAt = nil
          } else if !$0.isThroughHub {
            $0.nextAt = tx.at + GatewayContext.leaseSeconds
          }
        }
      case .delivered:
        // It came after all, too late to change anything but what can be proved.
        if current.state == .purged { return current }
        guard current.state.mayBecome(.confirmed, current.direction) else {
          throw LedgerError.illegal("\(transfer.id): delivered without a release")
        }
        return try tx.advance(current, to: .confirmed, detail) { $0.nextAt = nil }
      case .refused:
        guard current.state.mayBecome(.refused, current.direction) else { return current }
        return try tx.advance(current, to: .refused, detail) {
          $0.code = receipt.code
          $0.note = "\(transfer.peer) refused it"
          $0.nextAt = nil
        }
      }
    }
    if row.state.isEnd || row.direction == .hub && row.state == .custody { try await settle(row) }
    if row.direction == .hub { context.news.lane(of: row.sender).mail.notify() }
    return row
  }

  /// After the last receipt, at a hub after the first: the outcome for the batch job, and the body goes.
  func settle(_ row: Transfer) async throws {
    let context = context
    try await context.pool.run {
      try context.spool.remove(row.place)
      try Outcomes(context: context).write(row)
    }
  }

  /// Keeps a partner's highest head, with the envelope that proves it.
  static func keepHead(_ head: LedgerHead, in proof: Envelope, of partner: AgencyID, _ tx: Transaction) throws {
    guard var record = try tx.reader.partner(partner) else { return }
    if let held = record.head, held.epoch == head.epoch, held.size >= head.size {
      guard held.size > head.size || held.root == head.root else {
        throw RecordedRefusal(
          AuditEvent(
            "partner-head-conflict",
            [
              "partner": .string(partner.text), "size": .integer(head.size), "root": .string(head.root.hex),
              "heldRoot": .string(held.root.hex),
            ]), once: "head-conflict:\(partner):\(held.epoch):\(held.size)",
          SealingError(.documentInvalid, "two ledgers of \(partner) claim the same size"))
      }
      return
    }
    record.head = head
    record.headProof = proof.bytes
    record.lastSeen = tx.at
    try tx.put(record)
  }
}
