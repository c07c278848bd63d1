// What parties signed about agreements, once their signatures were seen to hold.

import Foundation
import Policies
import Sealing

/// Verified acts by agreement. A value.
package struct ActBook: Sendable {
  private var acts: [Digest: [AgreementAct]] = [:]
  /// Payload digests of the acts, in the order of `acts`.
  private var names: [Digest: [Digest]] = [:]
  private var policies: [Agreement] = []
  private var own: AgencyID?
  /// Made once: every list has one.
  private var tags: [AgencyID: Digest] = [:]

  init() {}

  /// - Parameters:
  ///   - cards: of partners whose fingerprint was approved. Acts of others count for nothing.
  ///   - own: our card; it signs for partners without a gateway too.
  init(_ set: PolicySet, _ envelopes: [Digest: [Envelope]], cards: [Card], own: Card) {
    policies = set.agreements
    for agreement in set.agreements {
      for envelope in envelopes[agreement.digest] ?? [] {
        guard let act = Self.verified(envelope, agreement, cards, own: own) else { continue }
        acts[agreement.digest, default: []].append(act)
        names[agreement.digest, default: []].append(envelope.payloadDigest)
      }
    }
    self.own = own.agency
    for party in Set(policies.flatMap { $0.parties.map(\.id) }) {
      let told = told(to: party).flatMap { $0.agreement.digest.bytes + $0.acts.flatMap(\.bytes) }
      if !told.isEmpty { tags[party] = Digest(of: told) }
    }
  }

  func digests(of agreement: Agreement) -> [Digest] { names[agreement.digest] ?? [] }

  /// Agreements that a partner is a party to and that we acted on, each with the digests of everybody's acts.
  func told(to partner: AgencyID) -> [(agreement: Agreement, acts: [Digest])] {
    policies.filter { agreement in
      agreement.parties.contains { $0.id == partner } && all(of: agreement).contains { $0.party == own }
    }.map { ($0, digests(of: $0)) }
  }

  /// Changes whenever `told` does; nil when that is nothing.
  func tag(for partner: AgencyID) -> Digest? { tags[partner] }

  /// nil unless its party signed it with a key that was valid when it says it was signed; for a party without a gateway we did.
  static func verified(_ envelope: Envelope, _ agreement: Agreement, _ cards: [Card], own: Card) -> AgreementAct? {
    do {
      let act = try AgreementAct(envelope.unverified())
      guard act.agreement.sha256 == agreement.digest,
        let party = agreement.parties.first(where: { $0.id == act.party }),
        party.roles.contains(act.role), let card = (cards + [own]).first(where: { $0.agency == act.party }),
        card.hasGateway == (act.evidence == nil)
      else { return nil }
      _ = try envelope.verify((card.hasGateway ? card : own).signers(at: act.at))
      return act
    } catch {
      return nil
    }
  }

  package func all(of agreement: Agreement) -> [AgreementAct] { acts[agreement.digest] ?? [] }

  /// Where an agreement stands between two agencies, whichever provides.
  package func standing(of agreement: Agreement, between a: AgencyID, _ b: AgencyID, at instant: Date)
    -> AgreementStanding
  {
    func standing(_ agreement: Agreement, superseded: Set<Digest>) -> AgreementStanding {
      AgreementStanding(agreement, all(of: agreement), between: a, b, at: instant, superseded: superseded)
    }
    // A version is replaced once one that names it is in force itself.
    let superseded = Set(
      policies.filter { $0.id == agreement.id && $0.supersedes != nil && standing($0, superseded: []).state == .valid }
        .compactMap(\.supersedes))
    return standing(agreement, superseded: superseded)
  }
}
