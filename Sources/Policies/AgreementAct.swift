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
  /// What the spellings of the signer's name have in common.
  package let person: String
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
    person = PersonName.key(signer)
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
    person = PersonName.key(signer)
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
  ///   - past: those too that counted once, before the key of who signed them was revoked; else `acts`.
  ///   - superseded: digests that a valid later version replaces.
  package init(
    _ agreement: Agreement, _ acts: [AgreementAct], past: [AgreementAct]? = nil, between provider: AgencyID,
    _ recipient: AgencyID, at instant: Date, superseded: Set<Digest> = []
  ) {
    let concerned = agreement.parties.filter {
      $0.id == provider || $0.id == recipient || $0.role == .registrar || $0.id == agreement.via
    }
    let own = Self.own(acts, agreement)
    hasBegun =
      Self.begin(agreement, past.map { Self.own($0, agreement) } ?? own, concerned).map { $0 <= instant } ?? false
    if let stop = Self.stop(own) {
      (state, detail) = (stop.state, Self.told(stop.act))
      return
    }
    let missing = concerned.compactMap { party -> String? in
      let given = Self.given(own, party)
      return given.count < party.acceptancesRequired
        ? "\(party.id): \(given.count) of \(party.acceptancesRequired) (\(party.roles.joined(separator: ", ")))" : nil
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

  private static func own(_ acts: [AgreementAct], _ agreement: Agreement) -> [AgreementAct] {
    acts.filter { $0.agreement.sha256 == agreement.digest }.sorted { ($0.number, $0.at) < ($1.number, $1.at) }
  }

  /// When each signature came by which a party's count of different people in different roles grew.
  private static func given(_ own: [AgreementAct], _ party: Agreement.Party) -> [Date] {
    let wanted: AgreementAct.Kind = party.role == .registrar ? .register : .accept
    var signers: [String: Set<String>] = [:]
    var dates: [Date] = []
    for act in own.sorted(by: { $0.at < $1.at })
    where act.party == party.id && act.kind == wanted && party.roles.contains(act.role) {
      signers[act.role, default: []].insert(act.person)
      if rolesFilled(signers) > dates.count { dates.append(act.at) }
    }
    return dates
  }

  /// How many roles can each be given to a person who signed in it and stands for no other: a maximum matching, by augmenting paths.
  private static func rolesFilled(_ signers: [String: Set<String>]) -> Int {
    var roleOf: [String: String] = [:]
    func fill(_ role: String, _ asked: inout Set<String>) -> Bool {
      for person in signers[role] ?? [] where asked.insert(person).inserted {
        if let other = roleOf[person], !fill(other, &asked) { continue }
        roleOf[person] = role
        return true
      }
      return false
    }
    return signers.keys.count { role in
      var asked: Set<String> = []
      return fill(role, &asked)
    }
  }

  /// What stops an agreement, whoever signed it. Only who suspended may resume.
  private static func stop(_ own: [AgreementAct]) -> (state: State, act: AgreementAct)? {
    if let act = own.first(where: { $0.kind == .revoke }) { return (.revoked, act) }
    for party in Set(own.map(\.party)) {
      let last = own.last { $0.party == party && ($0.kind == .suspend || $0.kind == .resume) }
      if let last, last.kind == .suspend { return (.suspended, last) }
    }
    return own.first { $0.kind == .reject }.map { (.rejected, $0) }
  }

  /// When it came into force first: signed by all, begun, and not stopped before that. nil: it never did.
  private static func begin(_ agreement: Agreement, _ own: [AgreementAct], _ concerned: [Agreement.Party]) -> Date? {
    var begin = agreement.notBefore
    for party in concerned where party.acceptancesRequired > 0 {
      let given = given(own, party)
      guard given.count >= party.acceptancesRequired else { return nil }
      begin = max(begin, given[Int(party.acceptancesRequired) - 1])
    }
    let resumed = own.filter { $0.kind == .resume && $0.at > begin }.map(\.at).sorted()
    return ([begin] + resumed).first { instant in
      // Acts are told to the second: what stops it within this one came after it.
      instant < agreement.notAfter
        && stop(own.filter { $0.kind.stops ? $0.at < instant : $0.at <= instant }) == nil
    }
  }

  private static func told(_ act: AgreementAct) -> String {
    "\(act.kind.rawValue) by \(act.party), \(act.role), \(Timestamp.format(act.at))"
      + (act.reason.map { ": \($0.onOneLine)" } ?? "")
  }
}
