// What parties signed about agreements, once their signatures were seen to hold.
//
// To start an agreement its signatures must hold now. To stop it, it is enough that they held once: an act comes into `policies/` only
// verified, and when the key that signed a stop is revoked later, the stop stands. What was suspended and resumed with such a key is
// resumed: whoever had it could do both.

import Foundation
import Policies
import Sealing

/// Acts that count, by agreement. A value.
package struct ActBook: Sendable {
  private struct Held {
    let act: AgreementAct
    /// The payload's digest: its name.
    let name: Digest
    /// Its signature holds by the cards of now.
    let isVerified: Bool
  }

  private var acts: [Digest: [Held]] = [:]
  /// Those too that counted once: what they began has begun.
  private var past: [Digest: [AgreementAct]] = [:]
  private var policies: [Agreement] = []
  private var own: AgencyID?
  /// Made once: every list has one.
  private var tags: [AgencyID: Digest] = [:]

  init() {}

  /// - Parameters:
  ///   - cards: of partners whose fingerprint was approved. What others accept counts for nothing.
  ///   - own: our card; it signs for partners without a gateway too.
  init(_ set: PolicySet, _ envelopes: [Digest: [Envelope]], cards: [Card], own: Card) {
    policies = set.agreements
    for agreement in set.agreements {
      let held = (envelopes[agreement.digest] ?? []).compactMap { envelope in
        Self.claimed(envelope, agreement).map {
          Held(
            act: $0, name: envelope.payloadDigest,
            isVerified: Self.verified(envelope, agreement, cards, own: own) != nil)
        }
      }
      acts[agreement.digest] = held.filter { $0.isVerified || Self.outlives($0, held) }
      past[agreement.digest] = held.map(\.act)
    }
    self.own = own.agency
    for party in Set(policies.flatMap { $0.parties.map(\.id) }) {
      let told = told(to: party).flatMap { $0.agreement.digest.bytes + $0.acts.flatMap(\.bytes) }
      if !told.isEmpty { tags[party] = Digest(of: told) }
    }
  }

  /// Names of the acts that are held here.
  func names(of agreement: Agreement) -> [Digest] { acts[agreement.digest]?.map(\.name) ?? [] }

  /// Agreements that a partner is a party to and that we acted on, each with the names of everybody's acts that it can verify too.
  func told(to partner: AgencyID) -> [(agreement: Agreement, acts: [Digest])] {
    policies.filter { agreement in
      agreement.parties.contains { $0.id == partner } && all(of: agreement).contains { $0.party == own }
    }.map { ($0, acts[$0.digest]?.filter(\.isVerified).map(\.name) ?? []) }
  }

  /// Changes whenever `told` does; nil when that is nothing.
  func tag(for partner: AgencyID) -> Digest? { tags[partner] }

  /// nil unless its party signed it with a key that was valid when it says it was signed; for a party without a gateway we did.
  static func verified(_ envelope: Envelope, _ agreement: Agreement, _ cards: [Card], own: Card) -> AgreementAct? {
    do {
      guard let act = claimed(envelope, agreement),
        let card = (cards + [own]).first(where: { $0.agency == act.party }), card.hasGateway == (act.evidence == nil)
      else { return nil }
      _ = try envelope.verify((card.hasGateway ? card : own).signers(at: act.at))
      return act
    } catch {
      return nil
    }
  }

  /// An act by one of the agreement's parties in one of its roles, signed or not.
  private static func claimed(_ envelope: Envelope, _ agreement: Agreement) -> AgreementAct? {
    do {
      let act = try AgreementAct(envelope.unverified())
      let party = agreement.parties.first { $0.id == act.party }
      return act.agreement.sha256 == agreement.digest && party?.roles.contains(act.role) == true ? act : nil
    } catch {
      return nil
    }
  }

  /// Whether an act counts whose signature does not hold any more.
  private static func outlives(_ one: Held, _ held: [Held]) -> Bool {
    if one.act.kind.stops { return true }
    guard one.act.kind == .resume else { return false }
    let suspended = held.filter {
      $0.act.party == one.act.party && $0.act.kind == .suspend && $0.act.number < one.act.number
    }
    return suspended.max { $0.act.number < $1.act.number }.map { !$0.isVerified } ?? false
  }

  package func all(of agreement: Agreement) -> [AgreementAct] { acts[agreement.digest]?.map(\.act) ?? [] }

  /// Where an agreement stands between two agencies, whichever provides.
  package func standing(of agreement: Agreement, between a: AgencyID, _ b: AgencyID, at instant: Date)
    -> AgreementStanding
  {
    func standing(_ agreement: Agreement, superseded: Set<Digest>) -> AgreementStanding {
      AgreementStanding(
        agreement, all(of: agreement), past: past[agreement.digest], between: a, b, at: instant, superseded: superseded)
    }
    // A version is replaced once one that names it was in force itself: when that one is stopped, nothing comes back.
    let superseded = Set(
      policies.filter { $0.id == agreement.id && $0.supersedes != nil && standing($0, superseded: []).hasBegun }
        .compactMap(\.supersedes))
    return standing(agreement, superseded: superseded)
  }
}
