// Admission: what is the same however a package comes to us, relayed or collected, straight or through a hub. What is asked of a manifest
// before there is a row (its signature, its time, room for it) a hub asks here too.
//
//   manifest: signature, parties, agreement, limits  →  COMMIT receiving
//   body: whole, verified, durable                   →  COMMIT received + receipt
//   key: digest of the manifest                      →  COMMIT the key; Open takes over
//   take-back: signed by the sender                  →  COMMIT cancelled + our signed answer

import Foundation
import Logging
import NIOConcurrencyHelpers
import Policies
import Sealing
import Store
import Transport

struct Admission: Sendable {
  let context: GatewayContext

  // MARK: manifest

  /// The manifest that a partner puts or keeps for us: as its sender, or as the hub that its agreement names.
  ///
  /// One answer for every cause that is about who signed what.
  func verified(_ bytes: [UInt8], _ id: TransferID, from partner: AgencyID) throws -> (Manifest, Envelope) {
    let untrusted = Problem(
      .refused, code: "document.signature", "the manifest is not signed as the sender's card demands")
    do {
      let envelope = try Envelope(parsing: bytes, as: .manifest)
      let sender = try Manifest(envelope.unverified()).sender
      guard let card = context.partners[sender]?.card?.card else { throw untrusted }
      let manifest = try Manifest(try envelope.verify(card.signers(at: context.now())))
      let hub = context.policies.agreement(manifest.agreement.sha256)?.via
      guard sender == partner || hub == partner, manifest.id == id else { throw untrusted }
      return (manifest, envelope)
    } catch let error as SealingError where error.code != .documentSignature {
      throw Problem(.malformed, code: error.code.rawValue, error.detail)
    } catch is SealingError {
      throw untrusted
    }
  }

  func requireOurs(_ manifest: Manifest) throws {
    guard manifest.recipient == context.agency else {
      throw Problem(.refused, code: "manifest.recipient", "the package is for another agency")
    }
  }

  /// Takes a verified manifest on, or refuses it by policy: then nothing more of the transfer comes, and the refusal is signed.
  ///
  /// - Parameter partner: who brought it, the sender or a hub.
  /// - Returns: the refusal's code, sentence and receipt; nil when the transfer was begun.
  /// - Throws: `Problem` for one that cannot be taken now, or at all.
  func admit(
    _ manifest: Manifest, _ envelope: Envelope, from partner: AgencyID, by delivery: Agreement.Delivery
  ) async throws -> (String, String, Envelope)? {
    try await requireTimely(manifest)
    var transfer = Self.transfer(.in, manifest, envelope, peer: manifest.sender, at: context.now())
    transfer.isCollected = delivery == .collect
    if partner != manifest.sender { transfer.via = partner }
    let agreement = context.policies.agreement(manifest.agreement.sha256)
    let counted = Self.counted(manifest, context.now())
    let decision = Evaluation.inbound(
      manifest, under: agreement, try await context.circumstances(manifest.sender, agreement, counting: counted),
      by: delivery, via: transfer.via)
    switch decision.outcome {
    case .permit: break
    // About this agreement alone: nothing else is to wait for it, so no Retry-After.
    case .hold: throw Problem(.unavailable, code: decision.codes[0].rawValue, decision.sentence)
    case .refuse:
      // The wrong way is a hub's doing: nothing is signed about it that would end the sender's transfer.
      if transfer.isThroughHub, decision.codes.contains(.deliveryMode) {
        throw Problem(.refused, code: ReasonCode.deliveryMode.rawValue, decision.sentence)
      }
      return try await refuse(transfer, code: decision.codes[0].rawValue, decision)
    }
    try await requireRoom(for: manifest)
    // A relayed body comes by itself.
    transfer.nextAt = transfer.isCollected ? context.now() : nil
    let begun = transfer
    try await context.ledger.write { tx in
      let count = try tx.reader.packages(agreement: counted.agreement, peer: begun.sender, onDayOf: counted.day)
      // Others may have come since the decision.
      guard let agreement, Evaluation.takesMore(than: count, under: agreement) else {
        throw Problem(.unavailable, code: ReasonCode.limitRate.rawValue, "too many packages of that day")
      }
      try tx.insert(begun, ["manifest": .string(begun.manifestDigest), "decision": decision.document])
      try tx.countPackage(agreement: counted.agreement, peer: begun.sender, onDayOf: counted.day)
    }
    return nil
  }

  /// What a package counts as, and on which day: the sender's. What takes another's place counts for itself and on the day that it comes,
  /// for a withdrawal may replace what is left of many days.
  private static func counted(_ manifest: Manifest, _ now: Date) -> (agreement: String, day: Date) {
    manifest.replaces == nil
      ? (manifest.agreement.id, manifest.createdAt) : ("\(manifest.agreement.id) replacing", now)
  }

  func requireTimely(_ manifest: Manifest) async throws {
    let instant = context.now()
    guard instant < manifest.expiresAt + GatewayContext.skewSeconds else {
      throw Problem(.refused, code: "manifest.expired", "the package has expired")
    }
    guard manifest.createdAt <= instant + GatewayContext.skewSeconds else {
      throw Problem(.refused, code: "manifest.clock", "the package comes from the future: compare clocks")
    }
    // After a restore the ledger may have forgotten what it delivered: nothing older is taken again.
    if let mark = try await context.ledger.read({ try $0.restoredAt() }), manifest.createdAt < mark {
      throw Problem(.refused, code: "manifest.before-restore", "the package is older than this gateway's last restore")
    }
  }

  /// A row for a package that others sealed. Nothing is due.
  static func transfer(
    _ direction: Direction, _ manifest: Manifest, _ envelope: Envelope, peer: AgencyID, at instant: Date
  ) -> Transfer {
    var transfer = Transfer(
      direction: direction, sender: manifest.sender, id: manifest.id, peer: peer, agreement: manifest.agreement.id,
      state: .receiving, name: manifest.name, payloadBytes: manifest.payloadBytes, bodyBytes: manifest.bodyBytes,
      manifest: envelope.bytes, manifestDigest: envelope.payloadDigest.hex, createdAt: instant,
      expiresAt: manifest.expiresAt)
    transfer.nextAt = nil
    return transfer
  }

  /// A refusal by policy is recorded and signed, so that the sender holds evidence.
  private func refuse(_ transfer: Transfer, code: String, _ decision: Decision) async throws -> (
    String, String, Envelope
  ) {
    // Each stays in the ledger.
    guard try context.hasRoom() else { throw Problem.noRoom }
    guard context.refusals.take(transfer.sender, at: context.now()) else {
      // Without Retry-After: what would be taken does not wait for it.
      throw Problem(.busy, code: "limit.refusals", "too many packages are refused: \(decision.sentence)")
    }
    let (receipt, envelope) = context.receipt(.refused, for: transfer, code: code, previous: nil)
    try await context.ledger.write { tx in
      try tx.insert(transfer)
      try tx.advance(transfer, to: .refused, ["decision": decision.document]) {
        $0.code = code
        // The sender of a collected one has yet to be told.
        $0.nextAt = $0.isCollected ? tx.at : nil
      }
      try tx.add(receipt: receipt, envelope: envelope, told: transfer.link)
    }
    return (code, decision.sentence, envelope)
  }

  func requireRoom(for manifest: Manifest) async throws {
    let isOurs = manifest.recipient == context.agency
    let load = try await context.ledger.read { [context] in
      try isOurs ? $0.load(of: manifest.sender) : $0.load(through: context.agency, of: manifest.sender)
    }
    guard load.packages < (isOurs ? context.configuration.packagesPerPartner : Hub.packagesMax) else {
      throw Problem(.busy, code: "limit.packages", "too many packages are under way", retryAfterSeconds: 2)
    }
    guard manifest.bodyBytes <= context.configuration.bytesPerPartnerMax else {
      throw Problem(
        .tooLarge, code: "limit.bytes-per-partner", "the body is larger than all that one partner may have here")
    }
    guard load.bytes + manifest.bodyBytes <= context.configuration.bytesPerPartnerMax else {
      throw Problem(.busy, code: "limit.bytes-per-partner", "too many bytes are under way", retryAfterSeconds: 60)
    }
    guard try context.hasRoom(for: manifest.bodyBytes + (isOurs ? manifest.payloadBytes : 0)) else {
      throw Problem.noRoom
    }
  }

  // MARK: body and key

  /// The whole body is here, synced, and has the signed root.
  func received(_ transfer: Transfer) async throws -> (Transfer, Envelope) {
    let (receipt, envelope) = context.receipt(.received, for: transfer, previous: nil)
    let row = try await context.finishBody(of: transfer) { tx in
      let row = try tx.advance(transfer, to: .received, ["receipt": .string(envelope.payloadDigest.hex)]) {
        $0.durableBytes = $0.bodyBytes
        // A relayed key comes by itself; who collects goes on to ask for it, and the stage looks only after what was left.
        $0.nextAt = $0.isCollected ? tx.at + 5 : nil
      }
      try tx.add(receipt: receipt, envelope: envelope, told: transfer.link)
      return row
    }
    return (row, envelope)
  }

  func requireKey(_ key: [UInt8], of transfer: Transfer) throws {
    let manifest = try transfer.readManifest()
    guard Digest(of: key) == manifest.keySHA256 else {
      throw Problem(.conflict, code: "key.digest", "the key is not the one that the manifest names")
    }
  }

  /// The key of a received body, with the sender's head that came beside it.
  func take(_ key: [UInt8], _ head: SenderHead?, for transfer: Transfer) async throws {
    try await context.ledger.write { tx in
      // Nothing may have come between the look and this: a take-back that was answered never-had-key stays true.
      guard let current = try tx.reader.transfer(transfer.sender, transfer.id), current.state == .received,
        current.key == nil
      else { throw LedgerError.stale("transfer \(transfer.id)") }
      _ = try tx.amend(current) {
        $0.key = key
        $0.nextAt = tx.at
      }
      var detail: [String: JSON] = [:]
      if let head {
        try ReceiptBook.keepHead(head.head, in: head.proof, of: transfer.sender, tx)
        detail["head"] = head.head.document
      }
      try tx.append(AuditEvent("key-received", sender: transfer.sender, id: transfer.id, detail))
    }
    context.news.keys.notify()
  }

  typealias SenderHead = (head: LedgerHead, proof: Envelope)

  /// The sender's signed ledger head that travels with a release. One that a hub brings and that does not verify did not come.
  func senderHead(_ header: String?, for transfer: Transfer) throws -> SenderHead? {
    do {
      return try senderHead(header, of: transfer.sender)
    } catch let problem as Problem {
      guard transfer.isThroughHub else { throw problem }
      context.logger.notice("transfer \(transfer.id): \(problem)")
      return nil
    }
  }

  private func senderHead(_ header: String?, of sender: AgencyID) throws -> SenderHead? {
    guard let header else { return nil }
    guard let bytes = Base64.decode(header), let card = context.partners[sender]?.card?.card else {
      throw Problem(.malformed, "Sallyport-Head: expected base64 of a signed head")
    }
    do {
      let proof = try Envelope(parsing: bytes, as: .head)
      return (try LedgerHead(proof.verify(card.signers(at: context.now()))), proof)
    } catch {
      throw Problem(.malformed, code: error.code.rawValue, "Sallyport-Head: \(error.detail)")
    }
  }

  // MARK: take-back

  /// The sender's order to stop a transfer, whoever brought it.
  ///
  /// - Throws: `Problem` refused when the sender did not sign it about this transfer.
  func takeBack(_ bytes: [UInt8], of transfer: Transfer) throws -> (TakeBack, Envelope) {
    do {
      let (document, envelope) = try context.verified(bytes, as: .takeBack, by: transfer.sender)
      let takeBack = try TakeBack(document)
      guard takeBack.id == transfer.id, takeBack.sender == transfer.sender,
        takeBack.manifest.hex == transfer.manifestDigest
      else {
        throw SealingError(.documentSignature, "about another transfer")
      }
      return (takeBack, envelope)
    } catch is SealingError {
      throw Problem(.refused, code: "document.signature", "the take-back is not signed as the sender's card demands")
    }
  }

  /// Stops a transfer whose key has not come, for ever, and signs which of the two it was.
  func stop(_ transfer: Transfer, _ takeBack: TakeBack, _ envelope: Envelope) async throws -> Envelope {
    let stops = transfer.key == nil && transfer.state.mayBecome(.cancelled, .in)
    let answer = TakeBackAnswer(
      takeBack: envelope.payloadDigest, outcome: transfer.key == nil ? .neverHadKey : .hadKey, at: context.now())
    let signed = context.sign(answer.document, as: .acknowledgement)
    try await context.ledger.write { tx in
      guard try tx.reader.transfer(transfer.sender, transfer.id) == transfer else {
        throw LedgerError.stale("transfer \(transfer.id)")
      }
      if stops {
        _ = try tx.advance(transfer, to: .cancelled, ["reason": .string(takeBack.reason)]) {
          $0.code = "taken-back"
          // Who collects brings the answer; else it is the reply.
          $0.nextAt = $0.isCollected ? tx.at : nil
        }
      }
      try tx.add(document: envelope, sender: transfer.sender, id: transfer.id)
      try tx.add(document: signed, sender: transfer.sender, id: transfer.id)
    }
    if stops { try await context.discardBody(of: transfer) }
    return signed
  }
}

extension Problem {
  static let noRoom = Problem(.full, code: "disk.full", "there is no room for this package", retryAfterSeconds: 60)
}

/// How often a minute something is done at one partner's instance. Callable concurrently.
final class PartnerBudget: Sendable {
  private let perMinute: Int
  private let counts = NIOLockedValueBox<[AgencyID: (minute: Int, count: Int)]>([:])

  init(perMinute: Int) { self.perMinute = perMinute }

  /// Counts one more; false when there were as many as there may be.
  func take(_ partner: AgencyID, at instant: Date) -> Bool { use(partner, at: instant, count: 1) }

  func isSpent(_ partner: AgencyID, at instant: Date) -> Bool { !use(partner, at: instant, count: 0) }

  private func use(_ partner: AgencyID, at instant: Date, count more: Int) -> Bool {
    let minute = Int(instant.timeIntervalSince1970 / 60)
    return counts.withLockedValue { all in
      let count = all[partner].map { $0.minute == minute ? $0.count : 0 } ?? 0
      all[partner] = (minute, min(count + more, perMinute))
      return count < perMinute
    }
  }
}
