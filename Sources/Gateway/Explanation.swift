// Why: the decision about a package that was made, about a file that was not dropped yet, and about past traffic under an
// agreement that is not in force yet.

import Foundation
import Policies
import Records
import Sealing
import Store

extension Administration {
  func explain(_ arguments: inout DocumentReader) async throws -> JSON {
    if let id = try arguments.optional("id", { (r, n) throws(SealingError) in try r.transfer(n) }) {
      try arguments.finish()
      return try await explain(id)
    }
    let file = try arguments.string("file", bytesMax: 4096)
    let id = try arguments.string("agreement")
    try arguments.finish()
    return try await explain(file, under: id)
  }

  /// The decision as it was made.
  private func explain(_ id: TransferID) async throws -> JSON {
    guard let transfer = try await context.ledger.read({ try $0.transfers(called: id) }).first else {
      throw LedgerError.notFound("transfer \(id)")
    }
    if let package = try await context.ledger.read({ try $0.package(id) }) {
      return try JSON(canonical: package.decision, bytesMax: AuditEntry.bytesMax)
    }
    for entry in try await context.ledger.read({ try $0.audit(id: id, limit: 100) }).reversed() {
      guard case .object(let members) = try entry.document(), case .object(let detail)? = members["detail"],
        let decision = detail["decision"]
      else { continue }
      return decision
    }
    let outcome = transfer.state == .refused ? "refuse" : "hold"
    return [
      "outcome": .string(outcome), "codes": .array([.string(transfer.code)]), "sentence": .string(transfer.note),
      "trace": .array([]),
    ]
  }

  /// The decision that would be made now, records and consent included. Nothing is sealed, nothing is recorded.
  private func explain(_ file: String, under id: String) async throws -> JSON {
    let instant = context.now()
    let agreement = context.current(id, at: instant)
    let original = try await context.pool.run { try Original(file) }
    let recipient = agreement?.parties.first { $0.role == .recipient }?.id ?? context.agency
    let draft = Draft(
      sender: context.agency, recipient: recipient, name: URL(fileURLWithPath: file).lastPathComponent,
      mediaType: agreement?.mediaType ?? "application/octet-stream", payloadBytes: original.bytes)
    let decision = Evaluation.outbound(draft, under: agreement, try await context.circumstances(recipient, agreement))
    guard decision.outcome == .permit, let agreement, let enforcement = try context.enforcement(of: agreement) else {
      return nearest(decision, draft)
    }
    let gate = ConsentGate(
      agreement, TransferID(), master: context.keys.subjectMaster, book: context.consents, at: instant)
    let report = try await context.pool.run { [context] in
      try RecordCheck(enforcement.input, workers: context.workers).run(
        original.file.input, through: enforcement.filter, gate.gate, now: instant, to: RecordSink())
    }
    guard let counts = report.counts(under: agreement) else {
      return decision.refused(.inputSchema, "\(report.sentence) (schema \(agreement.records?.schema ?? ""))").document
    }
    return Evaluation.completed(decision, draft, under: agreement, counts).document
  }

  /// For a refusal because nothing matches: the agreement that would come next, and what it fails on.
  private func nearest(_ decision: Decision, _ draft: Draft) -> JSON {
    guard decision.codes.contains(.matchNone), case .object(var members) = decision.document else {
      return decision.document
    }
    let candidates = context.policies.agreements.filter { $0.party(draft.sender, as: .provider) != nil }
    let scored = candidates.map { agreement -> (Agreement, [String]) in
      var failed: [String] = []
      if agreement.party(draft.recipient, as: .recipient) == nil { failed.append("recipient") }
      if !agreement.allows(name: draft.name) { failed.append("file name") }
      if draft.payloadBytes > agreement.bytesMax { failed.append("size") }
      return (agreement, failed)
    }
    if let best = scored.min(by: { $0.1.count < $1.1.count }) {
      members["nearest"] = .string(
        "\(best.0.id)\(best.1.isEmpty ? "" : " would match but for: \(best.1.joined(separator: ", "))")")
    }
    return .object(members)
  }

  /// Replays what was sent under an agreement's id against another version of it.
  func simulate(_ file: String) async throws -> [JSON] {
    let agreement = try PolicyFolder.agreement(file)
    let known = try await context.ledger.read {
      try $0.queue(state: nil, peer: nil, agreement: agreement.id, openOnly: false, limit: Self.rowsMax)
    }
    var rows: [JSON] = []
    var (same, refused, held): (Int64, Int64, Int64) = (0, 0, 0)
    var perDay: [String: Int64] = [:]
    for transfer in known.filter({ $0.direction == .out }).sorted(by: { $0.createdAt < $1.createdAt }) {
      let draft = Draft(
        sender: context.agency, recipient: transfer.peer, name: transfer.name, mediaType: agreement.mediaType,
        payloadBytes: transfer.payloadBytes)
      let day = "\(Timestamp.format(transfer.createdAt).prefix(10)) \(transfer.peer)"
      let instant = transfer.createdAt
      let valid = AgreementStanding(
        agreement,
        agreement.parties.flatMap { party in
          party.roles.map {
            AgreementAct(
              party.role == .registrar ? .register : .accept, agreement, party: party.id, role: $0, signer: $0,
              reason: nil, at: instant)
          }
        }, between: context.agency, transfer.peer, at: instant)
      var decision = Evaluation.outbound(
        draft, under: agreement,
        Circumstances(
          instant: instant, partner: .active, recipientKinds: Set(agreement.recipientKinds),
          packagesToday: perDay[day] ?? 0,
          standing: valid, consentHeard: instant, hub: agreement.via.map { _ in .active }))
      if let package = try await context.ledger.read({ try $0.package(transfer.id) }), let records = package.records {
        decision = Evaluation.completed(
          decision, draft, under: agreement, RecordCounts(read: records, kept: records, withheld: [:], forbidden: nil))
      }
      perDay[day, default: 0] += 1
      let before = transfer.state == .refused ? "refuse" : "permit"
      switch decision.outcome {
      case .refuse: refused += 1
      case .hold: held += 1
      case .permit: break
      }
      if before == decision.outcome.rawValue {
        same += 1
      } else {
        rows.append([
          "id": .string(transfer.id.text), "before": .string(before), "after": .string(decision.outcome.rawValue),
          "codes": .string(decision.codes.map(\.rawValue).joined(separator: ", ")),
        ])
      }
    }
    return rows + [
      [
        "packages": .integer(Int64(known.count)), "same": .integer(same), "refused": .integer(refused),
        "held": .integer(held),
      ]
    ]
  }
}
