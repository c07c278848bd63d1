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

  /// More people than these are not looked up one by one: the whole package is judged again.
  static let changesMax = 10_000

  let context: GatewayContext
  var changesMax = Self.changesMax

  /// What one transaction came to.
  private enum Look {
    case settled(Outcome)
    /// Everything else holds, but a grant in the package may be over, or too many people changed.
    case judgeAgain(PackageRow, Agreement)
  }

  func open(_ transfer: Transfer) async throws -> Outcome {
    // Once is enough, but for ten thousand changes in between.
    for _ in 0..<3 {
      switch try await look(transfer) {
      case .settled(let outcome): return outcome
      case .judgeAgain(let package, let agreement):
        if let stopped = try await judgeAgain(transfer, package, agreement) { return stopped }
      }
    }
    return .waits(code: "consent.unknown", note: "too many people's consent changes")
  }

  private func look(_ transfer: Transfer) async throws -> Look {
    let policies = context.policies
    let partner = context.partners[transfer.peer]
    let (context, changesMax) = (context, changesMax)
    return try await context.ledger.write { tx in
      func waits(_ code: String, _ note: String) -> Look { .settled(.waits(code: code, note: note)) }
      if let last = try tx.reader.lastInstant(), tx.at < last - GatewayContext.skewSeconds {
        return waits("clock.behind", "this machine's clock is behind the ledger's last entry")
      }
      let manifest = try transfer.readManifest()
      if tx.at >= manifest.expiresAt + GatewayContext.skewSeconds {
        return waits("expired", "the package has expired")
      }
      let receipts = try tx.reader.receiptBytes(transfer.sender, transfer.id)
      guard !receipts.isEmpty || partner?.card?.card.hasGateway == false else {
        return waits("receipt.missing", "no received receipt is held")
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
          ? .settled(.refused(decision)) : waits(decision.codes.first?.rawValue ?? "hold", decision.sentence)
      }
      // A key that is not on the card any more is as good as revoked.
      let held = Set(
        (partner?.card?.card.recipients ?? []).filter { $0.state != .revoked }.map { SealingPass.digest($0.key) })
      guard transfer.sealedTo.split(separator: ",").allSatisfy({ held.contains(String($0)) }) else {
        return waits(
          "key.revoked",
          "the key that the package is sealed to was revoked or replaced; cancel it and drop the file again")
      }
      var package = try tx.reader.package(transfer.id)
      if let agreement, agreement.consent.model != .none {
        guard let package else { return waits("consent.unknown", "what consent was looked at is not known") }
        let isOver = package.horizon.map { tx.at + GatewayContext.skewSeconds >= $0 } ?? false
        guard !isOver,
          let changed = try tx.reader.subjectsChanged(agreement.id, after: package.judged, limit: changesMax)
        else { return .judgeAgain(package, agreement) }
        if let stopped = try Self.stopping(changed, package, agreement, tx, context.spool) { return .settled(stopped) }
      }
      let row = try tx.advance(
        transfer, to: .releasing, ["decision": decision.document, "policies": .string(policies.digest.hex)]
      ) {
        $0.nextAt = tx.at + GatewayContext.leaseSeconds
        // Who collects waits longer for each repeat.
        if $0.isCollected, transfer.state != .custody { $0.attempts = transfer.attempts + 1 }
      }
      if package != nil, package?.released == nil {
        package!.released = tx.sequence
        package!.releasedAt = tx.at
        package!.retained = nil
        try tx.put(package!)
      }
      return .settled(.opened(row))
    }
  }

  private static let noIndex = Outcome.waits(
    code: "consent.unknown", note: "the index of the package's subjects is missing")

  /// Those of the people who changed since the package was judged who stop it.
  private static func stopping(
    _ changed: [SubjectReference], _ package: PackageRow, _ agreement: Agreement, _ tx: Transaction, _ spool: Spool
  ) throws -> Outcome? {
    if changed.isEmpty { return nil }
    guard let index = try spool.subjects(of: package.id) else { return noIndex }
    let rule = ConsentRule(agreement.consent, at: tx.at, skew: GatewayContext.skewSeconds)
    var stopped = Stopped()
    for subject in changed {
      let verdict = rule.verdict(try tx.consentWord(agreement.id, subject) ?? 0)
      if verdict != 0 { stopped.add(try index.ordinals(of: subject), verdict) }
    }
    return stopped.outcome
  }

  /// Looks once more at everybody in a package, and remembers until when that holds. In no transaction of the writer, which would keep
  /// the gateway waiting: what changes meanwhile is looked at in the next one.
  ///
  /// - Returns: what stops it.
  private func judgeAgain(_ transfer: Transfer, _ package: PackageRow, _ agreement: Agreement) async throws -> Outcome?
  {
    let context = context
    let rule = ConsentRule(agreement.consent, at: context.now(), skew: GatewayContext.skewSeconds)
    let judged = try await context.ledger.read { try $0.auditSize() }
    let (outcome, horizon) = try await context.threads(for: transfer.payloadBytes).run { () -> (Outcome?, Date?) in
      guard let index = try context.spool.subjects(of: package.id) else { return (Self.noIndex, nil) }
      var (stopped, earliest) = (Stopped(), EarliestGrant())
      try index.forEach { entries in
        // A batch a snapshot: a long one would keep the log of the database from being emptied.
        let words = try context.ledger.readNow { reader in
          try entries.map { try reader.consentWord(agreement.id, $0.subject) ?? 0 }
        }
        for (entry, word) in zip(entries, words) {
          let verdict = rule.verdict(word)
          if verdict == 0 { earliest.add(word) } else { stopped.add([entry.ordinal], verdict) }
        }
      }
      return (stopped.outcome, earliest.end(by: rule))
    }
    if let outcome { return outcome }
    try await context.ledger.write { tx in
      guard var row = try tx.reader.package(package.id) else { return }
      (row.judged, row.horizon) = (judged, horizon)
      try tx.put(row)
    }
    return nil
  }

  /// Records that may not go.
  private struct Stopped {
    private var ordinals: [Int64] = []
    private var code = ""

    mutating func add(_ found: [Int64], _ verdict: UInt8) {
      guard !found.isEmpty else { return }
      ordinals += found
      code = ConsentRule.reasons[Int(verdict) - 1]
    }

    var outcome: Outcome? { ordinals.isEmpty ? nil : .withdrawn(ordinals.sorted(), code: code) }
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
      try tx.advance(transfer, to: .released) {
        $0.nextAt = tx.at + Double(context.configuration.receiptSeconds)
        $0.attempts = transfer.attempts
      }
    }
  }

  /// Perhaps disclosed, and not sent again by itself: what is left is to ask for receipts.
  func leave(_ transfer: Transfer, code: String, note: String) async throws {
    let row = try await context.ledger.write { tx in
      try tx.advance(transfer, to: .unconfirmed) {
        $0.nextAt = nil
        $0.attempts = transfer.attempts
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
