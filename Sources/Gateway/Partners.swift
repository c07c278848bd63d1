// Partners and their cards: added as pending, approved by fingerprint, followed through successions.

import Foundation
import Logging
import Sealing
import Store
import Transport

/// What a person did or must do about a card.
package enum CardOutcome: Equatable, Sendable {
  case pending
  case unchanged
  case accepted
  case needsApproval(String)
}

/// Changes to the partners of a home.
package struct Partners: Sendable {
  let context: GatewayContext

  /// Takes a card from a file or a partner's gateway.
  ///
  /// - Throws: `document.*`, `card.succession`; `key.invalid` when one of its TLS keys is on another partner's card.
  package func offer(_ bytes: [UInt8]) async throws -> (agency: AgencyID, outcome: CardOutcome) {
    try await offer(SignedCard(selfSigned: bytes, at: context.now()))
  }

  /// How long what we say of a partner without a gateway holds.
  static let descriptionSeconds: TimeInterval = 366 * 86400

  /// Takes note of a partner that has no gateway, by the certificate of its TLS client and its age recipient.
  ///
  /// - Throws: `key.invalid` when the key is on another partner's card.
  package func describe(_ agency: AgencyID, pin: Digest, recipient: Recipient) async throws -> CardOutcome {
    let instant = context.now()
    let held = try await context.ledger.read { try $0.partner(agency) }
    if let held = try held.map({ try SignedCard(own: $0.pendingCard ?? $0.card).card }), !held.hasGateway,
      held.tlsPins == [pin], held.sealingRecipients(at: instant) == [recipient]
    {
      return .unchanged
    }
    let serial = try held.map { try SignedCard(own: $0.card).card.serial + 1 } ?? 1
    let card = Card(
      agency: agency, serial: serial, previous: nil, issuedAt: instant, signingKeys: [],
      recipients: [CardKey(key: recipient, notBefore: instant, notAfter: instant + Self.descriptionSeconds)],
      tlsPins: [pin], endpoint: nil)
    return try await offer(SignedCard(describing: card, with: context.keys.signers(at: instant))).outcome
  }

  private func offer(_ card: SignedCard) async throws -> (agency: AgencyID, outcome: CardOutcome) {
    let agency = card.card.agency
    guard agency != context.agency else { throw SealingError(.cardSuccession, "that is this agency's own card") }
    let outcome = try await context.ledger.write { tx -> CardOutcome in
      guard var record = try tx.reader.partner(agency) else {
        try requireOwnPins(card.card, tx)
        try tx.put(PartnerRecord(agency: agency, state: .pending, card: card.envelope.bytes))
        try tx.append(AuditEvent("partner-added", ["partner": .string(agency.text), "card": .string(card.digest.hex)]))
        return .pending
      }
      guard record.state != .pending else {
        try requireOwnPins(card.card, tx)
        // Nothing was trusted yet: the newest offer is the one to compare.
        record.card = card.envelope.bytes
        try tx.put(record)
        return .pending
      }
      let held = try SignedCard(own: record.card)
      var succession: SignedCard.Succession =
        held.card.hasGateway && card.card.hasGateway
        ? try held.succession(of: card, at: tx.at)
        // Nobody's key says that this follows what is held: a person does.
        : .needsApproval(reason: "it is described anew by an administrator")
      // Which of the two has the key is for a person to find out.
      if succession != .same, let other = try holder(ofPinsOf: card.card, tx) {
        var reasons = ["a TLS key of it is on the card of \(other) too: ask both by telephone"]
        if case .needsApproval(let reason) = succession { reasons.append(reason) }
        succession = .needsApproval(reason: reasons.joined(separator: "; "))
      }
      switch succession {
      case .same: return .unchanged
      case .accepted:
        record.card = card.envelope.bytes
        record.pendingCard = nil
        record.pendingReason = nil
        try tx.put(record)
        try lookAgain(tx)
        try tx.append(
          AuditEvent(
            "card-accepted",
            ["partner": .string(agency.text), "card": .string(card.digest.hex), "serial": .integer(card.card.serial)]))
        return .accepted
      case .needsApproval(let reason):
        guard record.pendingCard != card.envelope.bytes || record.pendingReason != reason else {
          return .needsApproval(reason)
        }
        record.pendingCard = card.envelope.bytes
        record.pendingReason = reason
        try tx.put(record)
        try tx.append(
          AuditEvent(
            "card-waits",
            ["partner": .string(agency.text), "card": .string(card.digest.hex), "reason": .string(reason)]))
        return .needsApproval(reason)
      }
    }
    try await context.reloadPartners()
    return (agency, outcome)
  }

  /// By a TLS key one partner is known, and no other.
  ///
  /// - Throws: `key.invalid` for one that stands on another partner's card.
  private func requireOwnPins(_ card: Card, _ tx: Transaction) throws {
    if let other = try holder(ofPinsOf: card, tx) {
      throw SealingError(.keyInvalid, "a TLS key of this card is on the card of \(other) too")
    }
  }

  /// The other partner whose card has a TLS key of `card`. What nobody approved says nothing: no stranger bars a partner's own key.
  private func holder(ofPinsOf card: Card, _ tx: Transaction) throws -> AgencyID? {
    try tx.reader.partners().first { other in
      try other.agency != card.agency && other.state != .pending
        && !Set(SignedCard(own: other.card).card.tlsPins).isDisjoint(with: card.tlsPins)
    }?.agency
  }

  /// Activates the pending card whose fingerprint a person compared.
  ///
  /// - Throws: `key.invalid` when it is another fingerprint; `LedgerError.notFound`, `illegal`.
  /// - Returns: the partner's state now.
  package func approve(_ agency: AgencyID, _ fingerprint: Fingerprint) async throws -> PartnerRecord.State {
    let state = try await context.ledger.write { tx in
      guard var record = try tx.reader.partner(agency) else { throw LedgerError.notFound(agency.text) }
      let waiting = record.pendingCard ?? record.card
      guard record.state == .pending || record.pendingCard != nil else {
        throw LedgerError.illegal("approving \(agency), which has no card waiting,")
      }
      let card = try SignedCard(own: waiting)
      guard Fingerprint(card.card) == fingerprint else {
        throw SealingError(
          .keyInvalid, "the fingerprint of \(agency) is another: do not approve it, ask again by telephone")
      }
      try requireOwnPins(card.card, tx)
      record.card = waiting
      record.pendingCard = nil
      record.pendingReason = nil
      // Whom somebody suspended stays suspended.
      if record.state == .pending { record.state = .active }
      try tx.put(record)
      try lookAgain(tx)
      try tx.append(
        AuditEvent("partner-approved", ["partner": .string(agency.text), "card": .string(card.digest.hex)]))
      return record.state
    }
    try await context.reloadPartners()
    return state
  }

  /// What a hub passed on and the card before could not verify is read again.
  private func lookAgain(_ tx: Transaction) throws {
    for hub in Set(context.policies.agreements.compactMap(\.via)) {
      guard var record = try tx.reader.partner(hub) else { continue }
      record.cursor = 0
      try tx.put(record)
    }
  }

  /// Suspends, resumes or removes a partner.
  package func set(_ agency: AgencyID, _ state: PartnerRecord.State?) async throws {
    try await context.ledger.write { tx in
      guard var record = try tx.reader.partner(agency) else { throw LedgerError.notFound(agency.text) }
      guard record.state != .pending || state == nil else {
        throw LedgerError.illegal("\(agency) waits for approval; that")
      }
      if let state {
        record.state = state
        try tx.put(record)
      } else {
        try tx.remove(partner: agency)
      }
      try tx.append(AuditEvent("partner-\(state?.rawValue ?? "removed")", ["partner": .string(agency.text)]))
    }
    try await context.reloadPartners()
  }
}

/// Asks a partner's gateway for its card once an hour, so that rotations arrive by themselves.
struct CardExchange: Sendable {
  static let everySeconds = 3600

  let context: GatewayContext
  let links: PartnerLinks

  func run(_ partner: AgencyID) async throws {
    while !Task.isCancelled {
      do {
        try await fetch(partner)
      } catch {
        if let trouble = try Disposition.survived(error) {
          context.logger.notice("card of \(partner): \(trouble.note)")
        }
      }
      await Signal().wait(after: 0, for: .seconds(Self.everySeconds))
    }
  }

  func fetch(_ partner: AgencyID) async throws {
    let reply = try await links.send(partner, "GET", "/v1/card")
    // A partner speaks for itself alone.
    guard reply.status == 200, try SignedCard(own: reply.body).card.agency == partner else { return }
    let (agency, outcome) = try await Partners(context: context).offer(reply.body)
    if case .needsApproval(let reason) = outcome {
      context.logger.warning(
        "the new card of \(agency) waits: \(reason). Compare fingerprints: sallyport partners show \(agency)")
    }
  }
}
