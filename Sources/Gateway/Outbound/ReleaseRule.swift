// The release rule: may the key be handed over now? Checked and recorded in one transaction, so that nothing comes between.
//
// It re-checks: the body is with the recipient (its signed receipt is in the ledger), the agreement is in force, the
// package has not expired (clocks may differ by 5 minutes), the partner is active, a key that it was sealed to is
// unrevoked, and our clock is not behind the ledger. Consent joins here. Anything unclear refuses or waits: fail closed.

import Foundation
import Policies
import Sealing
import Store

struct ReleaseRule: Sendable {
  enum Outcome: Sendable {
    /// The lease is open until the row's `nextAt`; the key may go.
    case opened(Transfer)
    case refused(Decision)
    case waits(code: String, note: String)
  }

  let context: GatewayContext

  func open(_ transfer: Transfer) async throws -> Outcome {
    let policies = context.policies
    let partner = context.partners[transfer.peer]
    return try await context.ledger.write { tx in
      if let last = try tx.reader.lastInstant(), tx.at < last - GatewayContext.skewSeconds {
        return .waits(code: "clock.behind", note: "this machine's clock is behind the ledger's last entry")
      }
      let manifest = try Manifest(Envelope(parsing: transfer.manifest, as: .manifest).unverified())
      if tx.at >= manifest.expiresAt + GatewayContext.skewSeconds {
        return .waits(code: "expired", note: "the package has expired")
      }
      let held = try tx.reader.receipts(transfer.sender, transfer.id)
      guard !held.isEmpty else { return .waits(code: "receipt.missing", note: "no received receipt is held") }
      let kinds = partner?.card.map { Set($0.card.sealingRecipients(at: tx.at).map(\.kind)) } ?? []
      let decision = Evaluation.outbound(
        Draft(
          sender: manifest.sender, recipient: manifest.recipient, name: manifest.name, mediaType: manifest.mediaType,
          payloadBytes: manifest.payloadBytes),
        under: policies.agreement(manifest.agreement.sha256),
        // Today's count was checked when it was sealed; counting it again would stop the last package of a day.
        Circumstances(instant: tx.at, partner: partner?.state ?? .unknown, recipientKinds: kinds, packagesToday: 0))
      guard decision.outcome == .permit else {
        return decision.outcome == .refuse
          ? .refused(decision) : .waits(code: decision.codes.first?.rawValue ?? "hold", note: decision.sentence)
      }
      let revoked = Set(
        (partner?.card?.card.recipients ?? []).filter { $0.state == .revoked }.map {
          Digest(of: Array($0.key.description.utf8)).hex
        })
      guard transfer.sealedTo.split(separator: ",").allSatisfy({ !revoked.contains(String($0)) }) else {
        return .waits(
          code: "key.revoked",
          note: "the key that the package is sealed to was revoked; cancel it and drop the file again")
      }
      return .opened(
        try tx.advance(
          transfer, to: .releasing, ["decision": decision.document, "policies": .string(policies.digest.hex)]
        ) {
          $0.nextAt = tx.at + GatewayContext.leaseSeconds
        })
    }
  }
}
