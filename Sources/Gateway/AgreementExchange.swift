// Agreements and acts between gateways: offered by one, looked at by people, accepted by the other. What is offered is in force
// for nobody; what is signed counts by its signature.
//
//   policies/offered/PARTNER/SHA256.yaml           an agreement that a partner offered: canonical JSON, which is YAML too
//   PUT /v1/agreements/{sha256}                    the agreement
//   PUT /v1/agreements/{sha256}/signatures/{sha256}   one act over it
//   GET the same, and GET /v1/agreements for which there are: for whoever calls out only, and behind a hub

import Foundation
import Logging
import Policies
import Sealing
import Store
import Transport

struct AgreementExchange: Sendable {
  /// Of one partner.
  static let offersMax = 50
  static let actsOfPartyMax = PolicyFolder.actsMax / Agreement.partiesMax
  static let listMax = 500

  let context: GatewayContext

  // MARK: taking

  /// A partner puts an agreement. Held ones are answered as known; new ones wait for people.
  func take(_ digest: Digest, _ bytes: [UInt8], from partner: AgencyID) async throws {
    guard context.policies.agreement(digest) == nil else { return }
    let agreement: Agreement
    do {
      _ = try JSON(canonical: bytes, bytesMax: StrictYAML.bytesMax)
      // From here on it is read as YAML.
      agreement = try PolicyFolder.agreement(bytes, of: "it")
    } catch {
      throw Problem(.malformed, "\(error)")
    }
    guard agreement.digest == digest, agreement.parties.contains(where: { $0.id == partner }),
      agreement.parties.contains(where: { $0.id == context.agency })
    else { throw Problem(.refused, code: "agreement.parties", "not an agreement between us") }
    let folder = context.home.offered(by: partner)
    let path = "\(folder)/\(PolicyFolder.offerName(digest))"
    try await context.changes.run { [context] in
      try Directory.make(context.home.offered)
      try Directory.make(folder)
      guard !Directory.exists(path) else { return }
      guard try Directory.names(folder, countMax: Self.offersMax + 1).count < Self.offersMax else { throw Self.tooMany }
      try DurableFile.write(bytes + [10], to: path)
    }
    context.logger.notice(
      "\(partner) offers the agreement \(agreement.id) version \(agreement.version): sallyport agreements show \(digest.hex)"
    )
  }

  /// Without Retry-After: it is about agreements, and holds up nothing else of the partner's.
  static let tooMany = Problem(.unavailable, code: "agreement.offers", "too many agreements wait here")

  /// Stores a party's act over an agreement held or offered here. Its signature must hold.
  func take(act bytes: [UInt8]) async throws -> Agreement {
    let envelope = try Envelope(parsing: bytes.last == 10 ? Array(bytes.dropLast()) : bytes, as: .agreementAct)
    let claimed = try AgreementAct(envelope.unverified())
    guard claimed.signer.isOneLine, claimed.reason?.isOneLine ?? true, claimed.evidence?.isOneLine ?? true else {
      throw SealingError(.documentInvalid, "act: its signer, reason or evidence has control characters")
    }
    guard let agreement = context.policies.agreement(claimed.agreement.sha256) else {
      throw AdminError(.failed, "the agreement \(claimed.agreement.id) of this act is not held here: accept it first")
    }
    guard ActBook.verified(envelope, agreement, context.partners.cards, own: context.keys.card.card) != nil else {
      throw SealingError(.documentSignature, "the act is not signed by \(claimed.party), or in no role of theirs")
    }
    guard !context.acts.all(of: agreement).contains(claimed) else { return agreement }
    try await keep(claimed, envelope, of: agreement)
    return agreement
  }

  /// Keeps a verified act: as a file, in force, in the ledger. Then tells the parties.
  func keep(
    _ act: AgreementAct, _ envelope: Envelope, of agreement: Agreement, _ more: [String: JSON] = [:]
  ) async throws {
    let context = context
    try await context.changes.run {
      // Of all that lie there: those whose key is gone count for nothing else, and are read at each start.
      guard context.envelopes(of: agreement, by: act.party).count < Self.actsOfPartyMax else {
        throw AdminError(.refused, "\(act.party) acted \(Self.actsOfPartyMax) times on this agreement")
      }
      try PolicyFolder.store(envelope, of: agreement, in: context.home.policies)
      // As after a restart: what lies there counts, even if the ledger's disk fails now.
      context.take(envelope, of: agreement)
    }
    let detail: [String: JSON] = [
      "agreement": .string(agreement.id), "sha256": .string(agreement.digest.hex), "party": .string(act.party.text),
      "role": .string(act.role), "act": .string(envelope.payloadDigest.hex),
    ].merging(more) { _, new in new }
    try await context.ledger.write { tx in
      _ = try tx.append(AuditEvent("agreement.\(act.kind.rawValue)", detail))
      try tx.wake(agreement: agreement.id)
    }
    context.news.claimed.notify()
    context.news.notifyLanes()
    // Whoever acts holds the agreement now, and may have missed what we said before.
    context.news.notifyActs()
  }

  /// An offered agreement, named by its digest; nil when none is offered under that name.
  func offered(_ name: String) throws -> Agreement? {
    try Digest(named: name).flatMap { try PolicyFolder.offered($0, context.home) }
  }

  /// Those that wait for people here. What is held already waits for nobody; one that cannot be read keeps no other back.
  func offers() throws -> [Agreement] {
    var seen: Set<Digest> = []
    return try PolicyFolder.offers(context.home)
      .filter { context.policies.agreement($0.digest) == nil && seen.insert($0.digest).inserted }
      .sorted { $0.digest.hex < $1.digest.hex }
      .compactMap { offer in (try? offer.agreement()).flatMap { $0 } }
  }

  /// Makes an offered agreement one of ours, once it is seen to fit in; on `changes`. Replaces nothing.
  func adopt(_ agreement: Agreement) throws {
    let prepared = try PolicyFolder.prepare(agreement, in: context.home.policies)
    do {
      try context.take(prepared) {
        let offers = try PolicyFolder.offers(of: agreement.digest, context.home)
        guard let first = offers.first else { throw LedgerError.stale("the offer of \(agreement.id)") }
        try Directory.renameExclusively(
          first.path, "\(context.home.policies)/\(agreement.id).v\(agreement.version).yaml")
        try Directory.sync(context.home.policies)
        for other in offers.dropFirst() { try Directory.remove(other.path) }
      }
    } catch let error as PolicyError {
      throw AdminError(.refused, "\(error)")
    }
  }

  // MARK: telling

  /// Keeps one partner informed of our acts, and ourselves of what it has: at start, and whenever there is something new.
  func run(_ partner: AgencyID, _ links: PartnerLinks) async throws {
    let lane = context.news.lane(of: partner)
    var told: Set<Digest> = []
    var asked: Digest?
    while !Task.isCancelled {
      let seen = lane.agreements.generation
      var pause = 3600.0
      do {
        for agreement in context.policies.agreements where agreement.parties.contains(where: { $0.id == partner }) {
          do {
            try await tell(agreement, to: partner, links, &told)
          } catch let problem as Problem where problem.kind == .refused || problem.code == Self.tooMany.code {
            // One that the partner does not want keeps nothing else back.
            if problem.kind != .refused { pause = 60 }
            context.logger.notice("agreement \(agreement.id) to \(partner): \(problem)")
          }
        }
      } catch {
        if let trouble = try Disposition.survived(error) {
          context.logger.notice("agreements to \(partner): \(trouble.note)")
          pause = 10
        }
      }
      // What cannot be taken from the partner is no reason to tell it nothing.
      do {
        if let tag = lane.listedAgreements, tag != asked, try await ask(partner, links) { asked = tag }
      } catch {
        if let trouble = try Disposition.survived(error) {
          context.logger.notice("agreements at \(partner): \(trouble.note)")
          pause = min(pause, 60)
        }
      }
      await lane.agreements.wait(after: seen, for: .seconds(pause))
    }
  }

  private func tell(
    _ agreement: Agreement, to partner: AgencyID, _ links: PartnerLinks, _ told: inout Set<Digest>
  ) async throws {
    let own = context.envelopes(of: agreement, by: context.agency).filter { !told.contains($0.payloadDigest) }
    guard !own.isEmpty else { return }
    let path = "/v1/agreements/\(agreement.digest.hex)"
    if !told.contains(agreement.digest) {
      try await put(path, agreement.document.canonical, to: partner, links)
      told.insert(agreement.digest)
    }
    for envelope in own {
      // 404: they have not accepted it yet, and learn of the act when they do.
      let status = try await put("\(path)/signatures/\(envelope.payloadDigest.hex)", envelope.bytes, to: partner, links)
      if status == 200 { told.insert(envelope.payloadDigest) }
    }
  }

  @discardableResult
  private func put(_ path: String, _ body: [UInt8], to partner: AgencyID, _ links: PartnerLinks) async throws -> Int {
    let reply = try await links.send(partner, "PUT", path) {
      $0.body = .bytes(body)
      $0.headers = ["Content-Type: application/json"]
    }
    guard [200, 404].contains(reply.status) else {
      throw Problem(reply) ?? Problem(.unavailable, code: "partner.status", "\(path) is answered \(reply.status)")
    }
    return reply.status
  }

  // MARK: for whoever comes

  /// `GET /v1/agreements`: those that the caller is a party to, and who has signed what over them.
  func list(for partner: AgencyID) -> HTTPReply {
    let rows: [JSON] = context.acts.told(to: partner).prefix(Self.listMax).map { agreement, acts in
      [
        "id": .string(agreement.id), "version": .integer(agreement.version), "sha256": .string(agreement.digest.hex),
        "signatures": .array(acts.map { .string($0.hex) }),
      ]
    }
    return .json(200, ["agreements": .array(rows)])
  }

  func get(_ digest: Digest, for partner: AgencyID) throws -> HTTPReply {
    .json(200, try told(digest, to: partner).document)
  }

  func get(_ act: Digest, over digest: Digest, for partner: AgencyID) throws -> HTTPReply {
    let agreement = try told(digest, to: partner)
    guard let envelope = context.envelopes(of: agreement).first(where: { $0.payloadDigest == act }) else {
      throw Problem(.notFound, "there is nothing here")
    }
    return HTTPReply(200, headers: ["content-type": "application/json"], body: envelope.bytes)
  }

  private func told(_ digest: Digest, to partner: AgencyID) throws -> Agreement {
    guard let found = context.acts.told(to: partner).first(where: { $0.agreement.digest == digest }) else {
      throw Problem(.notFound, "there is nothing here")
    }
    return found.agreement
  }

  /// Fetches what a partner has for us and we do not have.
  ///
  /// - Returns: whether everything was taken; else it is asked again with the next look.
  private func ask(_ partner: AgencyID, _ links: PartnerLinks) async throws -> Bool {
    func get(_ path: String, bytesMax: Int) async throws -> [UInt8] {
      let reply = try await links.send(partner, "GET", path) { $0.replyBytesMax = bytesMax }
      guard reply.status == 200 else {
        throw Problem(reply) ?? Problem(.unavailable, code: "partner.status", "\(path) is answered \(reply.status)")
      }
      return reply.body
    }
    let list = try await get("/v1/agreements", bytesMax: ReceiptList.bytesMax)
    var reader = try DocumentReader(JSON(canonical: list, bytesMax: ReceiptList.bytesMax), at: "agreements")
    var isWhole = true
    for var item in try reader.objects("agreements", countMax: Self.listMax) {
      let digest = try item.digest("sha256")
      let path = "/v1/agreements/\(digest.hex)"
      guard let agreement = context.policies.agreement(digest) else {
        if try offered(digest.hex) == nil {
          try await take(digest, get(path, bytesMax: StrictYAML.bytesMax), from: partner)
        }
        // Its acts are of use once it was accepted here; that is told to the partner, and looked at again.
        isWhole = false
        continue
      }
      let held = context.acts.names(of: agreement)
      for name in try item.strings("signatures", countMax: PolicyFolder.actsMax) {
        guard let act = Digest(hex: name), !held.contains(act) else { continue }
        do {
          _ = try await take(act: get("\(path)/signatures/\(name)", bytesMax: Envelope.bytesMax))
        } catch let error as SealingError {
          // Of a party whose card is not held here, yet.
          isWhole = false
          context.logger.notice("an act over \(agreement.id) at \(partner) is not taken: \(error.detail)")
        }
      }
    }
    return isWhole
  }
}
