// After delivery: what a sender asks of a recipient when a person withdraws, and the recipient's signed answer. Records are named
// by package and ordinal: that needs no shared key, and identifies nobody to a third party.

import Foundation
import Sealing

/// A signed request about records that were disclosed.
package struct WithdrawalNotice: Equatable, Sendable {
  package struct Item: Equatable, Sendable {
    package let package: TransferID
    /// Of the records in it, from 0.
    package let ordinals: [Int64]

    package init(package: TransferID, ordinals: [Int64]) {
      self.package = package
      self.ordinals = ordinals
    }
  }

  package static let itemsMax = 500
  package static let ordinalsMax = 1000
  /// Of a notice's items as they are written: what is left of a signed document's 64 KiB is for the rest.
  static let itemBytesMax = 48 << 10

  /// Cuts items so that each batch fits one notice.
  package static func batches(_ items: [Item]) -> [[Item]] {
    var batches: [[Item]] = []
    var (batch, bytes): ([Item], Int) = ([], 0)
    for item in items {
      let size = 64 + item.ordinals.reduce(0) { $0 + String($1).utf8.count + 1 }
      if !batch.isEmpty, batch.count == itemsMax || bytes + size > itemBytesMax {
        batches.append(batch)
        (batch, bytes) = ([], 0)
      }
      batch.append(item)
      bytes += size
    }
    return batch.isEmpty ? batches : batches + [batch]
  }

  package let id: TransferID
  package let issuer: AgencyID
  package let to: AgencyID
  package let agreement: NamedDigest
  package let items: [Item]
  package let asked: Agreement.Consent.Asked
  package let because: String
  package let sequence: Int64
  package let issuedAt: Date
  package let actBy: Date

  package init(
    id: TransferID, issuer: AgencyID, to: AgencyID, agreement: NamedDigest, items: [Item],
    asked: Agreement.Consent.Asked, because: String, sequence: Int64, issuedAt: Date, actBy: Date
  ) {
    self.id = id
    self.issuer = issuer
    self.to = to
    self.agreement = agreement
    self.items = items
    self.asked = asked
    self.because = because
    self.sequence = sequence
    self.issuedAt = issuedAt
    self.actBy = actBy
  }

  package var document: JSON {
    [
      "version": 1, "notice": .string(id.text), "issuer": .string(issuer.text), "to": .string(to.text),
      "agreement": ["id": .string(agreement.id), "sha256": .string(agreement.sha256.hex)],
      "items": .array(
        items.map { ["package": .string($0.package.text), "records": .array($0.ordinals.map { .integer($0) })] }),
      "asked": .string(asked.rawValue), "because": .string(because), "sequence": .integer(sequence),
      "issuedAt": .string(Timestamp.format(issuedAt)), "actBy": .string(Timestamp.format(actBy)),
    ]
  }

  /// - Throws: `document.invalid` with the member at fault.
  package init(_ document: JSON) throws(SealingError) {
    var reader = try DocumentReader(document, at: "notice")
    try reader.version(1)
    id = try reader.transfer("notice")
    issuer = try reader.agency("issuer")
    to = try reader.agency("to")
    var named = try reader.object("agreement")
    agreement = NamedDigest(id: try named.string("id"), sha256: try named.digest("sha256"))
    try named.finish()
    var items: [Item] = []
    for var item in try reader.objects("items", countMax: Self.itemsMax) {
      let package = try item.transfer("package")
      var ordinals: [Int64] = []
      for value in try item.array("records", countMax: Self.ordinalsMax) {
        guard case .integer(let ordinal) = value, ordinal >= 0 else {
          throw item.invalid("records", "expected ordinals")
        }
        ordinals.append(ordinal)
      }
      try item.finish()
      items.append(Item(package: package, ordinals: ordinals))
    }
    self.items = items
    asked = try reader.choice("asked")
    because = try reader.string("because")
    sequence = try reader.integer("sequence", 0...JSON.integerMax)
    issuedAt = try reader.date("issuedAt")
    actBy = try reader.date("actBy")
    try reader.finish()
  }
}

/// What the recipient did about a notice. The last one counts.
package struct NoticeAnswer: Equatable, Sendable {
  package enum State: String, Sendable, CaseIterable { case received, actioned, partly, refused }

  /// SHA-256 of the notice's payload.
  package let notice: Digest
  package let id: TransferID
  package let from: AgencyID
  package let state: State
  /// Packages that had not reached anybody yet.
  package let stopped: [TransferID]
  /// The law that says so, where records are kept.
  package let retainedBecause: String?
  /// Of a partner without a gateway, for whom the issuer signs: how it said so.
  package let evidence: String?
  package let at: Date

  package init(
    notice: Digest, id: TransferID, from: AgencyID, state: State, stopped: [TransferID], retainedBecause: String?,
    evidence: String? = nil, at: Date
  ) {
    self.notice = notice
    self.id = id
    self.from = from
    self.state = state
    self.stopped = stopped
    self.retainedBecause = retainedBecause
    self.evidence = evidence
    self.at = at
  }

  package var document: JSON {
    var members: [String: JSON] = [
      "version": 1, "notice": .string(id.text), "noticeSha256": .string(notice.hex), "from": .string(from.text),
      "state": .string(state.rawValue), "stopped": .array(stopped.map { .string($0.text) }),
      "at": .string(Timestamp.format(at)),
    ]
    members["retainedBecause"] = retainedBecause.map { .string($0) }
    members["evidence"] = evidence.map { .string($0) }
    return .object(members)
  }

  /// - Throws: `document.invalid` with the member at fault.
  package init(_ document: JSON) throws(SealingError) {
    var reader = try DocumentReader(document, at: "notice answer")
    try reader.version(1)
    id = try reader.transfer("notice")
    notice = try reader.digest("noticeSha256")
    from = try reader.agency("from")
    state = try reader.choice("state")
    var stopped: [TransferID] = []
    for value in try reader.array("stopped", countMax: WithdrawalNotice.itemsMax) {
      guard case .string(let text) = value, let id = TransferID(text) else {
        throw reader.invalid("stopped", "expected transfer ids")
      }
      stopped.append(id)
    }
    self.stopped = stopped
    retainedBecause = try reader.text("retainedBecause", bytesMax: 1024)
    evidence = try reader.text("evidence", bytesMax: 1024)
    at = try reader.date("at")
    try reader.finish()
  }
}
