// Who got my data: every disclosure about one person, in words, with the field names of the Estonian data tracker (logtime,
// action, receiverCode, receiverName, receiverSystem). Never a value. The look-up is logged, and is in the next report.

import Foundation
import Policies
import Records
import Sealing
import Store

struct SubjectReport: Sendable {
  let context: GatewayContext

  func run(_ id: String) async throws -> [JSON] {
    guard SubjectName.isID(id) else { throw AdminError(.badData, "that is no id: 1 to 100 printable ASCII characters") }
    var rows: [(at: Date, row: JSON)] = []
    let journey = ConsentJourney(context: context)
    var seen: Set<String> = []
    var events: [AuditEvent] = []
    var lookedUp: Set<Date> = []
    for agreement in context.policies.agreements where agreement.party(context.agency, as: .provider) != nil {
      // Another version may have been opaque.
      guard agreement.subjects.identifier != nil, seen.insert(agreement.id).inserted,
        let subject = Subject.reference(id, journey.key(agreement))
      else { continue }
      /// Without ordinals nobody can say whether the person is in it.
      var released: [(package: PackageRow, ordinals: [Int64]?)] = []
      try await journey.forEachPackage(agreement.id) { package in
        guard package.countsAsDisclosed else { return }
        let isIndexed = (context.agreement(of: package) ?? agreement).subjects.identifier != nil
        let ordinals = try await context.pool.run { [context] in
          try ConsentJourney.ordinals(of: [subject], in: package, isIndexed: isIndexed, context.spool)
        }
        if ordinals != [] { released.append((package, ordinals)) }
      }
      var told: Set<Digest> = []
      for (package, ordinals) in released.sorted(by: { $0.package.releasedAt! < $1.package.releasedAt! }) {
        let version = context.agreement(of: package) ?? agreement
        let isOnce = version.aggregate != nil || version.transparency.report == .aggregateOnly
        guard version.transparency.report != .exempt, !isOnce || told.insert(version.digest).inserted else { continue }
        rows.append(
          (
            package.releasedAt ?? .distantPast,
            try await entry(version, package, at: package.releasedAt, isOnce: isOnce, records: ordinals)
          )
        )
      }
      // One look-up has an entry under each agreement.
      let more = try await lookUps(agreement, subject).filter { !lookedUp.contains($0.at) }
      lookedUp.formUnion(more.map(\.at))
      rows += more
      events.append(
        AuditEvent("report", ["agreement": .string(agreement.id), "subject": .string(subject.description)]))
    }
    // An entry for each agreement, under its own pseudonym: the log must not join what the keys keep apart.
    let entries = events
    try await context.ledger.write { tx in for event in entries { _ = try tx.append(event) } }
    let sorted = rows.sorted { $0.at > $1.at }.map(\.row)
    return sorted + [
      ["totalUsages": .integer(Int64(sorted.count)), "heartbeat": .string(Timestamp.format(context.now()))]
    ]
  }

  private func entry(_ agreement: Agreement, _ package: PackageRow, at: Date?, isOnce: Bool, records: [Int64]?)
    async throws -> JSON
  {
    let recipient = agreement.parties.first { $0.id == package.recipient }
    let state = try await state(of: package)
    let notice = try await notice(records ?? [], of: package)
    var proof: [String: JSON] = ["package": .string(package.id.text)]
    proof["sequence"] = package.released.map { .integer($0) }
    let sent = agreement.fields.filter { $0.action != .drop }
    var members: [String: JSON] = [
      "logtime": .string(at.map(Timestamp.format) ?? ""), "action": .string(agreement.transparency.action),
      "receiverCode": .string(recipient?.registryCode ?? package.recipient.text),
      "receiverName": .string(recipient?.name ?? package.recipient.text),
      "receiverSystem": .string(recipient?.system ?? ""),
      "sender": .string(agreement.parties.first { $0.id == context.agency }?.name ?? context.agency.text),
      "purpose": .string(agreement.purpose.text),
      "legalBasis": .string(agreement.legalBasis.citations.joined(separator: "; ")),
      "agreement": .string("\(agreement.id) v\(agreement.version)"),
      "data": .array(sent.map { .string($0.title ?? $0.name) }),
      "keptUntil": .string(at.map { Timestamp.format(agreement.retention.recipientDeleteAfter.after($0)) } ?? ""),
      "onward": .string(agreement.onward.isAllowed ? agreement.onward.to.joined(separator: ", ") : "none"),
      "state": .string(
        records == nil
          ? "perhaps: who was in this package is not known any more" : isOnce ? "added up with others" : state + notice
      ),
      "yourChoices": [
        "withdraw": .string(agreement.consent.withdrawalMethod ?? "not possible: the law asks for it"),
        "complain": .string(agreement.transparency.complaintTo),
        "notice": .string(agreement.transparency.privacyNotice),
      ],
      "proof": .object(proof),
    ]
    members["label"] = agreement.labels.map { .string($0.package) }
    return .object(members)
  }

  /// What became of a package, by what was signed about it: that outlives the transfer.
  private func state(of package: PackageRow) async throws -> String {
    let agency = context.agency
    let (receipts, collected) = try await context.ledger.read { reader in
      (try reader.receipts(agency, package.id), try reader.document(agency, package.id, .collected))
    }
    let kinds = try receipts.map { try Receipt($0.unverified()).kind }
    if kinds.contains(.delivered) || collected != nil { return "delivered" }
    if package.isPerhapsDisclosed { return "perhaps handed over: the record of it is lost" }
    return kinds.contains(.refused) ? "refused by the recipient" : "handed over"
  }

  /// What the recipient knows of a withdrawal, in words.
  private func notice(_ records: [Int64], of package: PackageRow) async throws -> String {
    let notices: [NoticeRow] = try await context.ledger.read { reader in
      try reader.noticed(records, of: package.id).isEmpty
        ? [] : reader.notices(to: package.recipient)
    }
    let about = try notices.filter {
      try WithdrawalNotice(Envelope(parsing: $0.envelope, as: .notice).unverified()).items.contains { item in
        item.package == package.id && !Set(records).isDisjoint(with: item.ordinals)
      }
    }
    if about.isEmpty { return "" }
    return about.allSatisfy { $0.answer != nil }
      ? "; the recipient was told of the withdrawal" : "; a notice of the withdrawal waits for the recipient's answer"
  }

  /// Who looked before.
  private func lookUps(_ agreement: Agreement, _ subject: SubjectReference) async throws -> [(at: Date, row: JSON)] {
    try await context.ledger.read { reader in
      var found: [(at: Date, row: JSON)] = []
      for entry in try reader.audit(kind: "report", naming: subject.description) {
        guard case .object(let members) = try entry.document(), case .object(let detail)? = members["detail"],
          detail["subject"] == .string(subject.description), case .string(let text)? = members["at"],
          let at = Timestamp.parse(text)
        else { continue }
        found.append(
          (
            at,
            [
              "logtime": .string(text), "action": "Looked up who received data about this person",
              "receiverCode": "", "receiverName": "", "receiverSystem": "", "agreement": .string(agreement.id),
              "proof": ["sequence": .integer(entry.sequence)],
            ]
          ))
      }
      return found
    }
  }
}
