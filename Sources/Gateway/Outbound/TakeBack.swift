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
      for transfer in overdue {
        do {
          try await expire(transfer)
        } catch {
          // It is looked at again in a few seconds.
          if let trouble = try Disposition.survived(error) {
            context.logger.error("transfer \(transfer.id) cannot be expired: \(trouble.note) [\(trouble.code)]")
          }
        }
      }
      await Signal().wait(after: 0, for: .seconds(overdue.isEmpty ? 5 : 1))
    }
  }

  private func expire(_ transfer: Transfer) async throws {
    switch transfer.direction {
    case .out:
      // Once released there is nothing to expire.
      guard transfer.state.mayBecome(.expired, .out) else { return }
      _ = try await Ending(context: context).end(transfer, .expired, code: "expired", note: "not handed over in time")
    case .in, .hub:
      let hasExpired = try await context.ledger.write { tx in
        // As it is now: a recipient that was given the key meanwhile goes on.
        guard let row = try tx.reader.transfer(transfer.sender, transfer.id), row.state == transfer.state,
          row.state.mayBecome(.expired, row.direction), row.direction != .in || row.key == nil
        else { return false }
        try tx.advance(row, to: .expired) {
          $0.code = "expired"
          $0.nextAt = nil
        }
        return true
      }
      if hasExpired { try await context.discardBody(of: transfer) }
    }
  }

  /// Work of the stages `cancelled`, `expired` and `refused`: DELETE at the recipient, or at the hub before it, until it answers. Who
  /// collects comes for it.
  func takeBack(_ transfer: Transfer) async throws {
    var document = try await context.ledger.read { try $0.document(transfer.sender, transfer.id, .takeBack) }
    if document == nil, transfer.direction == .out {
      let takeBack = TakeBack(
        id: transfer.id, sender: transfer.sender, recipient: transfer.peer,
        manifest: Digest(hex: transfer.manifestDigest) ?? Digest(of: []), reason: transfer.code, at: context.now())
      let fresh = context.sign(takeBack.document, as: .takeBack)
      try await context.ledger.write { try $0.add(document: fresh, sender: transfer.sender, id: transfer.id) }
      document = fresh
    }
    guard !transfer.isCollected else {
      context.downloads.forget(transfer)
      return try await Mailbox.rest(transfer, context)
    }
    let book = TakeBackBook(context: context)
    guard let document else { return try await book.finish(transfer, nil) }
    let reply = try await links.send(transfer.link, "DELETE", Mailbox.path(transfer.id)) {
      $0.body = .bytes(document.bytes)
    }
    switch reply.status {
    case 200: try await book.take(reply.body, about: transfer)
    case 202,
      404 where transfer.isThroughHub, 410 where transfer.isThroughHub:
      // The recipient's answer comes with the hub's list, or it never will.
      try await context.ledger.write { tx in
        guard let row = try tx.reader.transfer(transfer.sender, transfer.id), row.state == transfer.state else {
          return
        }
        let isOver = tx.at >= (row.expiresAt ?? tx.at) + GatewayContext.skewSeconds
        let isAnswered = try tx.reader.document(row.sender, row.id, .acknowledgement) != nil
        _ = try tx.amend(row) { $0.nextAt = isOver || isAnswered ? nil : tx.at + Relay.hubLookSeconds }
      }
    case 404, 410: try await book.finish(transfer, nil)
    default: throw Problem(.unavailable, code: "partner.status", "the take-back is answered \(reply.status)")
    }
  }
}

/// What recipients answer to take-backs.
struct TakeBackBook: Sendable {
  let context: GatewayContext

  /// The recipient's signed answer, however it came.
  ///
  /// - Throws: SealingError when the recipient did not sign it, or about another take-back.
  func take(_ bytes: [UInt8], about transfer: Transfer) async throws {
    guard let taken = try await context.ledger.read({ try $0.document(transfer.sender, transfer.id, .takeBack) })
    else { throw SealingError(.documentInvalid, "nothing was taken back") }
    let (document, envelope) = try context.verified(bytes, as: .acknowledgement, by: transfer.peer)
    let signed = try TakeBackAnswer(document)
    guard signed.takeBack == taken.payloadDigest else {
      throw SealingError(.documentInvalid, "the answer is about another take-back")
    }
    try await finish(transfer, (envelope, signed.outcome))
  }

  func finish(_ transfer: Transfer, _ answer: (envelope: Envelope, outcome: TakeBackAnswer.Outcome)?)
    async throws
  {
    try await context.ledger.write { tx in
      // The reply and the list may bring the same answer.
      if try tx.reader.document(transfer.sender, transfer.id, .acknowledgement) == nil {
        if let answer {
          try tx.add(document: answer.envelope, sender: transfer.sender, id: transfer.id)
          if transfer.direction == .hub { try tx.offer(transfer, to: transfer.sender) }
        }
        try tx.append(
          AuditEvent(
            "taken-back", sender: transfer.sender, id: transfer.id,
            ["outcome": .string(answer?.outcome.rawValue ?? "unknown-there")]))
        // It has the key, whatever this ledger says of a release.
        if answer?.outcome == .hadKey, transfer.direction == .out, try tx.countAsDisclosed(transfer.id) {
          context.logger.error("\(transfer.peer) has the key of \(transfer.id), of which no release is known")
        }
      }
      guard let row = try tx.reader.transfer(transfer.sender, transfer.id), row.state != .purged else { return }
      _ = try tx.amend(row) { $0.nextAt = nil }
    }
    if transfer.direction == .hub { context.news.lane(of: transfer.sender).mail.notify() }
  }
}

/// How a transfer of ours ends before its key was handed over.
struct Ending: Sendable {
  let context: GatewayContext

  /// Ends a transfer of ours before release, with its signed non-delivery report, and lets the recipient know.
  func end(_ transfer: Transfer, _ state: TransferState, code: String, note: String) async throws -> Transfer {
    context.useClaim(of: transfer, 1)
    defer { context.useClaim(of: transfer, -1) }
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
      let outcomes = Outcomes(context: context)
      try outcomes.write(row)
      try context.spool.remove(row.place)
      if !hasManifest { try outcomes.giveBackClaim(of: row) }
    }
    context.news.lane(of: row.peer).takeBacks.notify()
    return row
  }
}
