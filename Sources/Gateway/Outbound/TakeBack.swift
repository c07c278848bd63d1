// Expiry, cancelling and taking back: how a transfer ends before its key was handed over.

import Foundation
import Logging
import Sealing
import ServiceLifecycle
import Store
import Transport

/// Ends transfers that are out of time, and tells recipients that hold their bodies.
struct TakeBackStage: Sendable {
  static let reasonStates: [TransferState] = [.cancelled, .expired, .refused]

  let context: GatewayContext
  let links: PartnerLinks

  /// Looks for what is out of time, every few seconds.
  func expire() async throws {
    while !Task.isCancelled {
      let instant = context.now()
      let overdue = try await context.ledger.read { try $0.overdue(at: instant, limit: 200) }
      for transfer in overdue { try await expire(transfer, at: instant) }
      await Signal().wait(after: 0, for: .seconds(overdue.isEmpty ? 5 : 1))
    }
  }

  private func expire(_ transfer: Transfer, at instant: Date) async throws {
    // Once released there is nothing to expire; a recipient that has the key goes on too.
    guard transfer.state.mayBecome(.expired, transfer.direction), transfer.direction == .out || transfer.key == nil
    else { return }
    do {
      switch transfer.direction {
      case .out:
        _ = try await Ending(context: context).end(transfer, .expired, code: "expired", note: "not handed over in time")
      case .in:
        _ = try await context.ledger.write { tx in
          try tx.advance(transfer, to: .expired) {
            $0.code = "expired"
            $0.nextAt = nil
          }
        }
        try await context.pool.run { try context.spool.remove(transfer.place) }
      }
    } catch LedgerError.stale {
      return
    }
  }

  /// Work of the stages `cancelled`, `expired` and `refused`: DELETE at the recipient until it answers.
  func takeBack(_ transfer: Transfer) async throws {
    guard !transfer.isCollected else {
      context.downloads.forget(transfer)
      return try await Mailbox.rest(transfer, context)
    }
    var document = try await context.ledger.read { try $0.document(transfer.sender, transfer.id, .takeBack) }
    if document == nil {
      let takeBack = TakeBack(
        id: transfer.id, sender: transfer.sender, recipient: transfer.peer,
        manifest: Digest(hex: transfer.manifestDigest) ?? Digest(of: []), reason: transfer.code, at: context.now())
      let fresh = context.sign(takeBack.document, as: .takeBack)
      try await context.ledger.write { try $0.add(document: fresh, sender: transfer.sender, id: transfer.id) }
      document = fresh
    }
    guard let document else { return }
    let reply = try await links.send(transfer.peer, "DELETE", "/v1/transfers/\(transfer.id)") {
      $0.body = .bytes(document.bytes)
    }
    guard [200, 404, 410].contains(reply.status) else {
      throw Problem(.unavailable, code: "partner.status", "the take-back is answered \(reply.status)")
    }
    var answer: Envelope?
    var outcome = "unknown-there"
    if reply.status == 200, let card = context.partners[transfer.peer]?.card?.card {
      let envelope = try Envelope(parsing: reply.body, as: .acknowledgement)
      let signed = try TakeBackAnswer(try envelope.verify(card.signers(at: context.now())))
      guard signed.takeBack == document.payloadDigest else {
        throw SealingError(.documentInvalid, "the answer is about another take-back")
      }
      answer = envelope
      outcome = signed.outcome.rawValue
    }
    let (kept, result) = (answer, outcome)
    try await context.ledger.write { tx in
      if let kept { try tx.add(document: kept, sender: transfer.sender, id: transfer.id) }
      try tx.append(AuditEvent("taken-back", sender: transfer.sender, id: transfer.id, ["outcome": .string(result)]))
      _ = try tx.amend(transfer) { $0.nextAt = nil }
    }
  }
}

/// How a transfer of ours ends before its key was handed over.
struct Ending: Sendable {
  let context: GatewayContext

  /// Ends a transfer of ours before release, with its signed non-delivery report, and lets the recipient know.
  func end(_ transfer: Transfer, _ state: TransferState, code: String, note: String) async throws -> Transfer {
    let hasManifest = !transfer.manifest.isEmpty
    let report = TakeBack(
      id: transfer.id, sender: transfer.sender, recipient: transfer.peer,
      manifest: Digest(hex: transfer.manifestDigest) ?? Digest(of: []), reason: code, at: context.now())
    let row = try await context.ledger.write { tx in
      let row = try tx.advance(transfer, to: state) {
        $0.code = code
        $0.note = note
        $0.nextAt = hasManifest ? tx.at : nil
      }
      if hasManifest {
        try tx.add(document: context.sign(report.document, as: .nonDelivery), sender: transfer.sender, id: transfer.id)
        try tx.add(document: context.sign(report.document, as: .takeBack), sender: transfer.sender, id: transfer.id)
      }
      return row
    }
    try await context.pool.run {
      try Outcomes(context: context).write(row)
      try context.spool.remove(row.place)
    }
    context.news.lane(of: row.peer).takeBacks.notify()
    // A claimed original goes back to the folder `returned/` with the next scan.
    context.news.folders.notify()
    return row
  }
}
