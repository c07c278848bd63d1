// What parties do about an agreement, signed: accept, reject, suspend, resume, revoke, register. To start it takes everybody, to
// stop it takes one.
//
//   proposed → valid → (suspended ⇄ valid) → revoked | expired | superseded        proposed → rejected

import Foundation
import Sealing

/// One signed statement about one agreement, known by its digest.
package struct AgreementAct: Equatable, Sendable {
  package enum Kind: String, Sendable, CaseIterable {
    case accept, reject, suspend, resume, revoke
    /// A registrar's acceptance.
    case register

    /// Of these one is enough, whoever else agrees.
    package var stops: Bool { self == .reject || self == .suspend || self == .revoke }
  }

  package let kind: Kind
  package let agreement: NamedDigest
  package let version: Int64
  package let party: AgencyID
  /// In which role the person acts, and who they are: the agency vouches for both with its key.
  package let role: String
  package let signer: String
  package let reason: String?
  package let at: Date
  /// Counts the party's acts over this agreement: seconds are too coarse to order them.
  package let number: Int64
  /// Where the party has no gateway and so no key: which paper this agency vouches for with its own.
  package let evidence: String?

  package init(
    _ kind: Kind, _ agreement: Agreement, party: AgencyID, role: String, signer: String, reason: String?, at: Date,
    number: Int64 = 1, evidence: String? = nil
  ) {
    self.number = number
    self.evidence = evidence
    self.kind = kind
    self.agreement = NamedDigest(id: agreement.id, sha256: agreement.digest)
    version = agreement.version
    self.party = party
    self.role = role
    self.signer = signer
    self.reason = reason
    self.at = at
  }

  package var document: JSON {
    var members: [String: JSON] = [
      "version": 1, "act": .string(kind.rawValue),
      "agreement": [
        "id": .string(agreement.id), "version": .integer(version), "sha256": .string(agreement.sha256.hex),
      ],
      "party": .string(party.text), "role": .string(role), "signer": .string(signer),
      "at": .string(Timestamp.format(at)), "number": .integer(number),
    ]
    members["reason"] = reason.map { .string($0) }
    members["evidence"] = evidence.map { .string($0) }
    return .object(members)
  }

  /// - Throws: `document.invalid` with the member at fault.
  package init(_ document: JSON) throws(SealingError) {
    var reader = try DocumentReader(document, at: "act")
    try reader.version(1)
    kind = try reader.choice("act")
    var named = try reader.object("agreement")
    agreement = NamedDigest(id: try named.string("id"), sha256: try named.digest("sha256"))
    version = try named.integer("version", 1...1_000_000)
    try named.finish()
    party = try reader.agency("party")
    role = try reader.string("role", bytesMax: 64)
    signer = try reader.string("signer")
    reason = try reader.text("reason", bytesMax: 1024)
    at = try reader.date("at")
    number = try reader.integer("number", 1...1_000_000)
    evidence = try reader.text("evidence", bytesMax: 1024)
    try reader.finish()
  }
}

/// Where an agreement stands between two of its parties.
package struct AgreementStanding: Equatable, Sendable {
  package enum State: String, Sendable, CaseIterable {
    case proposed, valid, suspended, rejected, revoked, expired, superseded
    case notYet = "not-yet"
  }

  package let state: State
  /// What is missing or was said, for a person.
  package let detail: String
  /// It came into force once, wherever it stands now: what it supersedes never comes back.
  package let hasBegun: Bool

  /// - Parameters:
  ///   - acts: those that count, over this agreement's digest, in any order.
  ///   - superseded: digests that a valid later version replaces.
  package init(
    _ agreement: Agreement, _ acts: [AgreementAct], between provider: AgencyID, _ recipient: AgencyID, at instant: Date,
    superseded: Set<Digest> = []
  ) {
    let own = acts.filter { $0.agreement.sha256 == agreement.digest }.sorted { ($0.number, $0.at) < ($1.number, $1.at) }
    let concerned = agreement.parties.filter {
      $0.id == provider || $0.id == recipient || $0.role == .registrar || $0.id == agreement.via
    }
    var missing: [String] = []
    for party in concerned {
      let wanted: AgreementAct.Kind = party.role == .registrar ? .register : .accept
      let given = own.filter { $0.party == party.id && $0.kind == wanted && party.roles.contains($0.role) }
      // Different people in different roles.
      let count = min(Set(given.map(\.role)).count, Set(given.map { PersonName.key($0.signer) }).count)
      if count < party.acceptancesRequired {
        missing.append("\(party.id): \(count) of \(party.acceptancesRequired) (\(party.roles.joined(separator: ", ")))")
      }
    }
    hasBegun = missing.isEmpty && instant >= agreement.notBefore
    if let act = own.first(where: { $0.kind == .revoke }) {
      (state, detail) = (.revoked, Self.told(act))
      return
    }
    // Only who suspended may resume.
    for party in Set(own.map(\.party)) {
      let last = own.last { $0.party == party && ($0.kind == .suspend || $0.kind == .resume) }
      if let last, last.kind == .suspend {
        (state, detail) = (.suspended, Self.told(last))
        return
      }
    }
    if let act = own.first(where: { $0.kind == .reject }) {
      (state, detail) = (.rejected, Self.told(act))
      return
    }
    if !missing.isEmpty {
      (state, detail) = (.proposed, "signatures are missing: \(missing.joined(separator: "; "))")
    } else if instant < agreement.notBefore {
      (state, detail) = (.notYet, "begins \(Timestamp.format(agreement.notBefore))")
    } else if instant >= agreement.notAfter {
      (state, detail) = (.expired, "ended \(Timestamp.format(agreement.notAfter))")
    } else if superseded.contains(agreement.digest) {
      (state, detail) = (.superseded, "a later version is in force")
    } else {
      (state, detail) = (.valid, "signed by every party")
    }
  }

  private static func told(_ act: AgreementAct) -> String {
    "\(act.kind.rawValue) by \(act.party), \(act.role), \(Timestamp.format(act.at))"
      + (act.reason.map { ": \($0)" } ?? "")
  }
}
