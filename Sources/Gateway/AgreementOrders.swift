// Administration of agreements: where they stand, what parties do about them, four eyes.

import Foundation
import Policies
import Sealing
import Store

extension Administration {
  /// The routing table: which file goes where, under what, filtered how.
  func agreements() async throws -> [JSON] {
    let instant = context.now()
    let context = context
    let offers = try await context.pool.run { try AgreementExchange(context: context).offers() }
    var rows: [JSON] = []
    for (agreement, isOffered) in context.policies.agreements.map({ ($0, false) }) + offers.map({ ($0, true) }) {
      for provider in agreement.parties where provider.role == .provider {
        for recipient in agreement.parties where recipient.role == .recipient {
          let standing = context.acts.standing(of: agreement, between: provider.id, recipient.id, at: instant)
          let peer = provider.id == context.agency ? recipient.id : provider.id
          let dropped = agreement.fields.filter { $0.action == .drop }.count
          let fields =
            agreement.records == nil
            ? "the whole file" : "\(agreement.fields.count - dropped) go, \(dropped) named to stay"
          let known = try await context.ledger.read { try $0.consentCount(agreement.id) }
          let heard = try await context.ledger.read { try $0.consentHeard(agreement.id) }
          var members: [String: JSON] = [
            "id": .string(agreement.id), "version": .integer(agreement.version),
            "state": .string(isOffered ? "offered" : standing.state.rawValue),
            "detail": .string(
              isOffered
                ? "read it: sallyport agreements show \(agreement.digest.hex); then: sallyport agreements accept \(agreement.digest.hex) --role ROLE --signer NAME"
                : standing.detail), "from": .string(provider.id.text), "to": .string(recipient.id.text),
            "files": .string(agreement.namePattern), "delivery": .string(agreement.delivery.rawValue),
            "partner": .string(context.partners[peer]?.state.rawValue ?? "unknown"),
            "consent": .string(agreement.consent.model.rawValue), "people": .integer(Int64(known)),
            "fields": .string(fields),
            "conditions": .array(
              agreement.include.map { .string("only \($0.text)") } + agreement.exclude.map { .string("not \($0.text)") }
                + agreement.forbid.map { .string("forbid \($0.predicate.text)") }),
            "sha256": .string(agreement.digest.hex),
          ]
          members["via"] = agreement.via.map { .string($0.text) }
          members["consentHeard"] = heard.map { .string(Timestamp.format($0)) }
          rows.append(.object(members))
        }
      }
    }
    return rows
  }

  /// Signs an act of this agency, stores it, and lets partners know.
  func act(_ arguments: inout DocumentReader) async throws -> [JSON] {
    let name = try arguments.string("agreement")
    let kind = try arguments.choice("act", AgreementAct.Kind.self)
    let role = try arguments.string("role", bytesMax: 64)
    let signer = try arguments.line("signer")
    let reason = try arguments.optional("reason") { (r, n) throws(SealingError) in try r.line(n, bytesMax: 1024) }
    let absent = try arguments.optional("for") { (r, n) throws(SealingError) in try r.agency(n) }
    let evidence = try arguments.optional("evidence") { (r, n) throws(SealingError) in try r.line(n, bytesMax: 1024) }
    try arguments.finish()
    if let absent {
      guard let card = context.partners[absent]?.card?.card else {
        throw AdminError(.failed, "\(absent) is not known here: sallyport partners add --agency \(absent) …")
      }
      guard !card.hasGateway else {
        throw AdminError.signsForItself(absent)
      }
    }
    guard (absent == nil) == (evidence == nil) else { throw AdminError.forAndEvidence }
    let context = context
    let exchange = AgreementExchange(context: context)
    let offered = try await context.pool.run { try exchange.offered(name) }
    guard let agreement = offered ?? held(name, for: kind) else {
      if let offer = try await context.pool.run({ try exchange.offers() }).first(where: { $0.id == name }) {
        throw AdminError(
          .failed, "\(name) is offered: it is accepted by the SHA-256 that was compared, \(offer.digest.hex)")
      }
      throw AdminError(
        .failed,
        "no agreement \(name) is loaded, and no partner offers one; a new file in \(context.home.policies) is read by: sallyport agreements reload"
      )
    }
    let signing = absent ?? context.agency
    guard let party = agreement.parties.first(where: { $0.id == signing }) else {
      throw AdminError(.refused, "\(signing) is no party to \(agreement.id)")
    }
    guard party.roles.contains(role) else {
      throw AdminError(.refused, "\(party.id) signs in the roles \(party.roles.joined(separator: ", ")), not \(role)")
    }
    guard (kind == .register) == (party.role == .registrar) || (kind != .accept && kind != .register) else {
      throw AdminError(.refused, party.role == .registrar ? "a registrar registers" : "only a registrar registers")
    }
    if offered != nil { try await context.changes.run { try exchange.adopt(agreement) } }
    let act = AgreementAct(
      kind, agreement, party: party.id, role: role, signer: signer, reason: reason, at: context.now(),
      number: 1 + (context.acts.all(of: agreement).filter { $0.party == party.id }.map(\.number).max() ?? 0),
      evidence: evidence)
    let envelope = context.sign(act.document, as: .agreementAct)
    try await exchange.keep(act, envelope, of: agreement, ["signer": .string(signer)])
    let earlier = context.acts.all(of: agreement).contains {
      $0 != act && $0.party == party.id && $0.kind == kind
        && ($0.person == PersonName.key(signer) || $0.role == role)
    }
    var members: [String: JSON] = [
      "agreement": .string(agreement.id), "sha256": .string(agreement.digest.hex), "act": act.document,
    ]
    let standing = context.acts.standing(of: agreement, between: party.id, party.id, at: context.now()).state
    if standing == .revoked, kind != .revoke {
      members["hint"] = "without effect: what is revoked stays revoked, and takes a new version"
    } else if standing == .suspended, kind == .resume {
      members["hint"] = "without effect yet: whoever suspended it resumes it"
    } else if earlier, party.acceptancesRequired > 1, !kind.stops, kind != .resume {
      members["hint"] = "different people sign in different roles: the same name, or the same role, counts once"
    } else if offered != nil {
      members["hint"] =
        "what the others have signed comes with the next contact: sallyport agreements list"
    }
    return [.object(members)] + standings(agreement)
  }

  /// Takes a party's act that came as a file.
  func takeAct(_ arguments: inout DocumentReader) async throws -> [JSON] {
    let text = try arguments.string("envelope", bytesMax: Envelope.bytesMax)
    try arguments.finish()
    let agreement = try await AgreementExchange(context: context).take(act: Array(text.utf8))
    return standings(agreement)
  }

  private func standings(_ agreement: Agreement) -> [JSON] {
    agreement.parties.filter { $0.role == .provider }.flatMap { provider in
      agreement.parties.filter { $0.role == .recipient }.map { recipient in
        let standing = context.acts.standing(of: agreement, between: provider.id, recipient.id, at: context.now())
        return [
          "from": .string(provider.id.text), "to": .string(recipient.id.text),
          "state": .string(standing.state.rawValue),
          "detail": .string(standing.detail),
        ]
      }
    }
  }

  /// By id (the version in force, else the highest), or by digest.
  private func held(_ name: String, for kind: AgreementAct.Kind) -> Agreement? {
    if let digest = Digest(named: name) { return context.policies.agreement(digest) }
    // To sign is to look ahead, to stop is to look at what is in force.
    let versions = context.policies.agreements.filter { $0.id == name }
    return kind == .accept || kind == .register || kind == .reject
      ? versions.last : context.current(name, at: context.now())
  }

  func approve(_ arguments: inout DocumentReader) async throws -> [JSON] {
    let id = try arguments.transfer("id")
    let person = try arguments.line("by")
    try arguments.finish()
    guard let transfer = try await context.ledger.read({ try $0.transfer(context.agency, id) }) else {
      throw LedgerError.notFound("transfer \(id)")
    }
    try await Approvals(context: context).approve(transfer, by: person)
    guard let row = try await context.ledger.read({ try $0.transfer(context.agency, id) }) else { return [] }
    return [Self.row(row)]
  }
}
