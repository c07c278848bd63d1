// Four eyes: where the agreement asks for it, people approve a sealed package before it may leave. What they approve is the
// decision, by its digest.

import Foundation
import Policies
import Sealing
import Store

struct Approvals: Sendable {
  let context: GatewayContext

  /// What a package still waits for, in words; nil when it may leave.
  ///
  /// - Parameter known: the agreement that its manifest names, where that was just written.
  func missing(for transfer: Transfer, under known: Agreement? = nil) async throws -> String? {
    if known?.approval.mode == .automatic { return nil }
    let manifest = try transfer.readManifest()
    guard let agreement = context.policies.agreement(manifest.agreement.sha256) else {
      return "its agreement, which says who approves it, is not in \(context.home.policies)"
    }
    guard agreement.approval.mode != .automatic else { return nil }
    let approval = agreement.approval
    let (approvers, isFirst) = try await context.ledger.read { reader in
      (
        Set(try reader.approvers(transfer.id, decision: manifest.decision.hex).map(PersonName.key)),
        try !reader.hasApproved(agreement: agreement.digest.hex, by: approval.approvers)
      )
    }
    let isAsked =
      switch approval.mode {
      case .automatic: false
      // Who approved this very package made it the one that was approved before.
      case .first: isFirst || !approvers.isEmpty
      case .every: true
      case .overThreshold: (manifest.records ?? .max) > approval.threshold
      }
    guard isAsked, approvers.count < approval.approvers else { return nil }
    return "\(approvers.count) of \(approval.approvers) people have approved it (agreements approve)"
  }

  /// Whether nobody may approve a package any more.
  func hasExpired(_ transfer: Transfer) throws -> Bool {
    let manifest = try transfer.readManifest()
    let span = context.policies.agreement(manifest.agreement.sha256)?.approval.expiresAfter
    return span.map { context.now() >= $0.after(manifest.createdAt) } ?? false
  }

  /// Records one person's approval.
  ///
  /// - Throws: `LedgerError.illegal` when nothing waits for one, or it waited too long; `AdminError` when this person has given theirs.
  func approve(_ transfer: Transfer, by person: String) async throws {
    if let next = transfer.replacedBy {
      throw AdminError(
        .failed, "\(transfer.id) was replaced after a withdrawal, by \(next): look at that one, and approve it")
    }
    guard transfer.state == .sealed, try await missing(for: transfer) != nil else {
      throw LedgerError.illegal("approving \(transfer.id), which waits for no approval")
    }
    let manifest = try transfer.readManifest()
    guard try !hasExpired(transfer) else {
      throw LedgerError.illegal("approving \(transfer.id): it waited too long; drop the file again")
    }
    let decision = manifest.decision.hex
    try await context.ledger.write { tx in
      let given = try tx.reader.approvers(transfer.id, decision: decision)
      guard !given.contains(where: { PersonName.key($0) == PersonName.key(person) }) else {
        throw AdminError(.failed, "\(person) has approved it already, which counts once: another person is needed")
      }
      try tx.approve(
        transfer.id, decision: decision, by: person, agreementDigest: manifest.agreement.sha256.hex)
      try tx.append(
        AuditEvent(
          "approved", sender: transfer.sender, id: transfer.id, ["by": .string(person), "decision": .string(decision)]))
    }
    try await Seal(context: context).queue(transfer)
  }
}
