// The release rule: may the key be handed over now? Checked and recorded in one transaction, so that nothing comes between.
//
// It re-checks: the body is with the recipient (its signed receipt is in the ledger), the agreement is in force, the
// package has not expired (clocks may differ by 5 minutes), the partner is active, a key that it was sealed to is
// unrevoked, our clock is not behind the ledger, and the consent of everybody in it, against the ledger as it is in this
// transaction. Anything unclear refuses or waits: fail closed.

import Foundation
import Policies
import Sealing
import Store

struct ReleaseRule: Sendable {
  enum Outcome: Sendable {
    /// The lease is open until the row's `nextAt`; the key may go.
    case opened(Transfer)
    case refused(Decision)
    /// People in the package have withdrawn, or their grant has ended: these records may not go.
    case withdrawn([Int64], code: String)
    case waits(code: String, note: String)
  }

  let context: GatewayContext

  func open(_ transfer: Transfer) async throws -> Outcome {
    if let stopped = try await judgedAgain(transfer) { return stopped }
    let policies = context.policies
    let partner = context.partners[transfer.peer]
    let context = context
    return try await context.ledger.write { tx in
      if let last = try tx.reader.lastInstant(), tx.at < last - GatewayContext.skewSeconds {
        return .waits(code: "clock.behind", note: "this machine's clock is behind the ledger's last entry")
      }
      let manifest = try transfer.readManifest()
      if tx.at >= manifest.expiresAt + GatewayContext.skewSeconds {
        return .waits(code: "expired", note: "the package has expired")
      }
      let receipts = try tx.reader.receipts(transfer.sender, transfer.id)
      guard !receipts.isEmpty || partner?.card?.card.hasGateway == false else {
        return .waits(code: "receipt.missing", note: "no received receipt is held")
      }
      let agreement = policies.agreement(manifest.agreement.sha256)
      let heard = try tx.reader.consentHeard(manifest.agreement.id)
      let decision = Evaluation.outbound(
        Draft(
          sender: manifest.sender, recipient: manifest.recipient, name: manifest.name, mediaType: manifest.mediaType,
          payloadBytes: manifest.payloadBytes),
        under: agreement,
        // Today's count was checked when it was sealed; counting it again would stop the last package of a day.
        context.circumstances(transfer.peer, agreement, packagesToday: 0, consentHeard: heard, at: tx.at))
      guard decision.outcome == .permit else {
        return decision.outcome == .refuse
          ? .refused(decision) : .waits(code: decision.codes.first?.rawValue ?? "hold", note: decision.sentence)
      }
      // A key that is not on the card any more is as good as revoked.
      let held = Set(
        (partner?.card?.card.recipients ?? []).filter { $0.state != .revoked }.map { SealingPass.digest($0.key) })
      guard transfer.sealedTo.split(separator: ",").allSatisfy({ held.contains(String($0)) }) else {
        return .waits(
          code: "key.revoked",
          note: "the key that the package is sealed to was revoked or replaced; cancel it and drop the file again")
      }
      var package = try tx.reader.package(transfer.id)
      if let agreement, agreement.consent.model != .none {
        guard let package else {
          return .waits(code: "consent.unknown", note: "what consent was looked at is not known")
        }
        if let stopped = try Self.withdrawn(package, agreement, tx, context.spool) { return stopped }
      }
      let row = try tx.advance(
        transfer, to: .releasing, ["decision": decision.document, "policies": .string(policies.digest.hex)]
      ) {
        $0.nextAt = tx.at + GatewayContext.leaseSeconds
      }
      if package != nil, package?.released == nil {
        package!.released = tx.sequence
        package!.releasedAt = tx.at
        package!.retained = nil
        try tx.put(package!)
      }
      return .opened(row)
    }
  }

  /// More people than these are not looked up one by one: the whole package is judged again.
  static let changesMax = 10_000

  /// Looks once more at everybody in a package whose horizon has passed, or since whose judgement too many changed: before the
  /// transaction, as when it was sealed, for the gateway waits for no more than the few who change meanwhile.
  ///
  /// - Returns: what stops it; nil when nothing does, until its new horizon.
  private func judgedAgain(_ transfer: Transfer) async throws -> Outcome? {
    let context = context
    let instant = context.now() + GatewayContext.skewSeconds
    let (package, sequence, isFar) = try await context.ledger.read { reader in
      let package = try reader.package(transfer.id)
      return (package, try reader.auditSize(), try package.map { try Self.changed($0, reader) == nil } ?? false)
    }
    guard let package, isFar || Self.isOver(package, at: instant), let agreement = context.agreement(of: package),
      agreement.consent.model != .none
    else { return nil }
    let gate = ConsentGate(
      agreement, package.id, master: context.keys.subjectMaster, book: context.consents, at: instant)
    let stopped = try await context.passes.run { () -> Outcome? in
      guard let index = try context.spool.subjects(of: package.id) else { return Self.unknown }
      return try Self.withdrawn { stop in
        try index.forEach { entries in
          for (entry, verdict) in zip(entries, gate.verdicts(of: entries.map(\.subject))) where verdict != 0 {
            stop(verdict, [entry.ordinal])
          }
        }
      }
    }
    if let stopped { return stopped }
    try await context.ledger.write { tx in
      guard var row = try tx.reader.package(package.id) else { return }
      row.judged = sequence
      row.horizon = gate.horizon
      try tx.put(row)
    }
    return nil
  }

  private static let unknown = Outcome.waits(
    code: "consent.unknown", note: "the index of the package's subjects is missing")

  private static func isOver(_ package: PackageRow, at instant: Date) -> Bool {
    package.horizon.map { instant >= $0 } ?? false
  }

  /// nil: too many.
  private static func changed(_ package: PackageRow, _ reader: Reader) throws -> [SubjectReference]? {
    try reader.subjectsChanged(package.agreement, after: package.judged, limit: changesMax)
  }

  private static func withdrawn(
    _ look: (_ stop: (_ verdict: UInt8, _ ordinals: [Int64]) -> Void) throws -> Void
  ) rethrows -> Outcome? {
    var (all, code): ([Int64], String) = ([], "")
    try look { verdict, ordinals in
      guard !ordinals.isEmpty else { return }
      code = ConsentRule.reasons[Int(verdict) - 1]
      all += ordinals
    }
    return all.isEmpty ? nil : .withdrawn(all.sorted(), code: code)
  }

  /// Asks the ledger about everybody who changed since the package was judged.
  private static func withdrawn(
    _ package: PackageRow, _ agreement: Agreement, _ tx: Transaction, _ spool: Spool
  ) throws -> Outcome? {
    guard !isOver(package, at: tx.at + GatewayContext.skewSeconds), let changed = try changed(package, tx.reader) else {
      return .waits(code: "consent.unknown", note: "who is in the package must be looked at again")
    }
    if changed.isEmpty { return nil }
    guard let index = try spool.subjects(of: package.id) else { return unknown }
    let rule = ConsentRule(agreement.consent, at: tx.at)
    return try withdrawn { stop in
      for subject in changed {
        let verdict = rule.verdict(try tx.consentWord(agreement.id, subject) ?? 0)
        if verdict != 0 { stop(verdict, try index.ordinals(of: subject)) }
      }
    }
  }
}

/// A release from its rule to its end. Relaying and collecting differ only in who carries the key.
///
/// Every try, repeats included, is a new release: a fresh check, a fresh lease, an entry in the ledger.
struct Release: Sendable {
  let context: GatewayContext

  /// Opens the lease, or does what follows from not being allowed to.
  func open(_ transfer: Transfer) async throws -> ReleaseRule.Outcome {
    let outcome = try await ReleaseRule(context: context).open(transfer)
    // Released before: a repeat that may not be changes nothing.
    guard transfer.state == .custody || transfer.state == .releasing else { return outcome }
    switch outcome {
    case .opened: break
    case .refused(let decision): try await end(transfer, decision)
    case .withdrawn(let ordinals, let code):
      try await Withdrawal(context: context).stop(transfer, ordinals, code: code)
    case .waits(let code, let note): try await wait(transfer, code, note)
    }
    return outcome
  }

  /// The key is with the recipient: what is left is its receipt.
  func close(_ transfer: Transfer) async throws -> Transfer {
    try await context.ledger.write { [context] tx in
      try tx.advance(transfer, to: .released) { $0.nextAt = tx.at + Double(context.configuration.receiptSeconds) }
    }
  }

  /// Perhaps disclosed, and not sent again by itself: what is left is to ask for receipts.
  func leave(_ transfer: Transfer, code: String, note: String) async throws {
    let row = try await context.ledger.write { tx in
      try tx.advance(transfer, to: .unconfirmed) {
        $0.nextAt = nil
        $0.code = code
        $0.note = note
      }
    }
    try await context.pool.run { [context] in try Outcomes(context: context).write(row) }
  }

  private func end(_ transfer: Transfer, _ decision: Decision) async throws {
    let code = decision.codes.first?.rawValue ?? "release.refused"
    guard transfer.state == .custody else {
      // It counts as disclosed already; it is only not sent again.
      return try await wait(transfer, code, decision.sentence)
    }
    let row = try await context.ledger.write { tx in
      try tx.advance(transfer, to: .refused, ["decision": decision.document]) {
        $0.code = code
        $0.note = decision.sentence
        // The recipient still holds the body: it is taken back.
        $0.nextAt = tx.at
      }
    }
    context.news.lane(of: row.peer).takeBacks.notify()
    try await context.pool.run { try Outcomes(context: context).write(row) }
  }

  private func wait(_ transfer: Transfer, _ code: String, _ note: String) async throws {
    if transfer.state == .releasing, code == "expired" { return try await leave(transfer, code: code, note: note) }
    let row = try await context.ledger.write { [context] tx in
      try tx.amend(transfer) {
        $0.attempts += 1
        // Who collects asks again by itself.
        $0.nextAt =
          $0.isCollected ? nil : tx.at + Backoff.seconds($0.attempts, max: context.configuration.retrySecondsMax)
        $0.code = code
        $0.note = note
      }
    }
    // Whoever tried may have been no stage of custody.
    context.news.lane(of: transfer.peer).custody.notify()
    try await context.tell(row, waitedFor: transfer.code)
  }
}
