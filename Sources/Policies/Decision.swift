// May it go? A pure and total function from agreements, a draft and an instant to a decision; anything unclear refuses.

import Foundation
import Sealing

/// Stable reason codes. Closed: scripts and partners branch on them.
package enum ReasonCode: String, Sendable, CaseIterable {
  case matchNone = "match.none"
  case agreementNotYet = "agreement.not-yet"
  case agreementExpired = "agreement.expired"
  case agreementUnknown = "agreement.unknown"
  case inputName = "input.name"
  case inputMediaType = "input.media-type"
  case inputEmpty = "input.empty"
  case inputDigest = "input.whole-file-digest"
  case inputSchema = "input.schema"
  case limitBytes = "limit.bytes"
  case limitRate = "limit.rate"
  case limitTimeToLive = "limit.time-to-live"
  case keyMissing = "key.missing"
  case keyWeak = "key.weak"
  case partnerUnknown = "partner.unknown"
  case partnerPending = "partner.pending"
  case partnerSuspended = "partner.suspended"
  case deliveryMode = "delivery.mode"

  /// What to do next, for the person who dropped the file or runs the gateway.
  package var nextStep: String {
    switch self {
    case .matchNone, .agreementUnknown:
      "Ask your data officer which agreement covers this exchange: sallyport agreements list"
    case .agreementNotYet: "Wait until the agreement begins: sallyport agreements show"
    case .agreementExpired: "Ask your data officer for a new version of the agreement."
    case .inputName: "Rename the file to fit the agreement's namePattern and drop it again."
    case .inputMediaType: "Send the media type that the agreement names."
    case .inputEmpty: "Check the job that wrote the file: an empty file is never sent."
    case .inputDigest: "Ask the sender to seal the package again."
    case .inputSchema: "Correct the records that are named, see: sallyport schemas check; then drop the file again."
    case .limitBytes: "Split the file, or ask for a higher maxBytes in the agreement."
    case .limitRate: "It goes by itself tomorrow (UTC), or ask for a higher maxPackagesPerDay."
    case .limitTimeToLive: "Ask the sender to respect the agreement's timeToLive."
    case .keyMissing: "Ask the partner for a current card: sallyport partners show"
    case .keyWeak: "Ask the partner for a card with a key of a kind that the agreement allows."
    case .partnerUnknown: "Add the partner's card: sallyport partners add CARD"
    case .partnerPending: "Compare fingerprints by telephone, then: sallyport partners approve"
    case .partnerSuspended: "Resume the partner: sallyport partners resume"
    case .deliveryMode: "Use an agreement whose delivery mode is relay."
    }
  }
}

/// What is asked: one file to one partner, before it is sealed or after it arrived.
package struct Draft: Equatable, Sendable {
  package let sender: AgencyID
  package let recipient: AgencyID
  package let name: String
  package let mediaType: String
  package let payloadBytes: Int64

  package init(sender: AgencyID, recipient: AgencyID, name: String, mediaType: String, payloadBytes: Int64) {
    self.sender = sender
    self.recipient = recipient
    self.name = name
    self.mediaType = mediaType
    self.payloadBytes = payloadBytes
  }
}

/// What the decision may know of the world, passed in by the gateway.
package struct Circumstances: Equatable, Sendable {
  package enum PartnerState: String, Sendable, CaseIterable { case unknown, pending, active, suspended }

  package let instant: Date
  package let partner: PartnerState
  /// Kinds of the keys that the recipient's card offers for sealing now.
  package let recipientKinds: Set<RecipientKind>
  /// Packages already permitted under this agreement and pair since midnight UTC.
  package let packagesToday: Int64

  package init(instant: Date, partner: PartnerState, recipientKinds: Set<RecipientKind>, packagesToday: Int64) {
    self.instant = instant
    self.partner = partner
    self.recipientKinds = recipientKinds
    self.packagesToday = packagesToday
  }
}

/// The answer, as a value that can be stored and explained.
package struct Decision: Equatable, Sendable {
  package enum Outcome: String, Sendable, CaseIterable { case permit, hold, refuse }

  package struct Step: Equatable, Sendable {
    package let rule: String
    package let passed: Bool
    package let detail: String
  }

  package let outcome: Outcome
  /// Empty exactly when the outcome is permit.
  package let codes: [ReasonCode]
  package let agreement: NamedDigest?
  package let trace: [Step]
  package let sentence: String

  package var document: JSON {
    var members: [String: JSON] = [
      "outcome": .string(outcome.rawValue),
      "codes": .array(codes.map { .string($0.rawValue) }),
      "sentence": .string(sentence),
      "trace": .array(
        trace.map { ["rule": .string($0.rule), "passed": .bool($0.passed), "detail": .string($0.detail)] }),
    ]
    members["agreement"] = agreement.map { ["id": .string($0.id), "sha256": .string($0.sha256.hex)] }
    return .object(members)
  }

  /// Digest that a manifest carries: salted, so that nobody guesses a decision from it.
  package func digest(salt: [UInt8]) -> Digest { Digest(of: salt + document.canonical) }
}

/// The agreements that a gateway holds. Never merged: one package is judged by one agreement.
package struct PolicySet: Equatable, Sendable {
  package let agreements: [Agreement]

  /// - Throws: `PolicyError` when two different agreements carry one id and version.
  package init(_ agreements: [Agreement]) throws(PolicyError) {
    var seen: [String: Digest] = [:]
    for agreement in agreements {
      let name = "\(agreement.id) version \(agreement.version)"
      if let other = seen.updateValue(agreement.digest, forKey: name), other != agreement.digest {
        throw PolicyError("two different agreements are called \(name)")
      }
    }
    self.agreements = agreements.sorted { ($0.id, $0.version) < ($1.id, $1.version) }
  }

  /// The set's identity: SHA-256 over the agreements' digests in order.
  package var digest: Digest { Digest(of: agreements.flatMap(\.digest.bytes)) }

  package func agreement(_ digest: Digest) -> Agreement? { agreements.first { $0.digest == digest } }

  /// The version of `id` in force at `instant`: the highest whose validity holds; else the highest there is.
  package func current(_ id: String, at instant: Date) -> Agreement? {
    let versions = agreements.filter { $0.id == id }
    return versions.last { instant >= $0.notBefore && instant < $0.notAfter } ?? versions.last
  }
}

/// The evaluation, in a fixed order; every rule is tried so that the trace is whole.
package enum Evaluation {
  /// Decides for the sender, before sealing and again at release.
  package static func outbound(
    _ draft: Draft, under agreement: Agreement?, _ now: Circumstances
  ) -> Decision {
    guard let agreement else { return noAgreement(draft) }
    var rules = common(draft, agreement, now)
    let offered = now.recipientKinds
    let allowed = Set(agreement.recipientKinds)
    rules.append(
      Rule(.keyMissing, holds: true, passed: !offered.isEmpty, "the partner's card offers a key in its time"))
    rules.append(
      Rule(
        .keyWeak, passed: offered.isEmpty || !offered.isDisjoint(with: allowed),
        "the key is of a kind that the agreement allows"))
    rules.append(
      Rule(
        .limitRate, holds: true, passed: now.packagesToday < agreement.packagesPerDayMax,
        "\(now.packagesToday) of \(agreement.packagesPerDayMax) packages today"))
    return decide(rules, draft, agreement)
  }

  /// Decides for the recipient, about a manifest that names `agreement`.
  package static func inbound(
    _ manifest: Manifest, under agreement: Agreement?, _ now: Circumstances
  ) -> Decision {
    let draft = Draft(
      sender: manifest.sender, recipient: manifest.recipient, name: manifest.name,
      mediaType: manifest.mediaType, payloadBytes: manifest.payloadBytes)
    guard let agreement, agreement.id == manifest.agreement.id, agreement.version == manifest.agreementVersion else {
      return Decision(
        outcome: .refuse, codes: [.agreementUnknown], agreement: manifest.agreement,
        trace: [.init(rule: ReasonCode.agreementUnknown.rawValue, passed: false, detail: "not an agreement held here")],
        sentence: "Refused: this gateway does not hold the agreement that the manifest names.")
    }
    var rules = common(draft, agreement, now)
    let lifetime = Duration.seconds(manifest.expiresAt.timeIntervalSince(manifest.createdAt))
    rules.append(
      Rule(.limitTimeToLive, passed: lifetime <= agreement.timeToLive, "the package lives no longer than agreed"))
    rules.append(
      Rule(
        .inputDigest, passed: !agreement.wholeFileSHA256 || manifest.wholeFileSHA256 != nil,
        "the manifest has the digests that the agreement asks for"))
    rules.append(
      Rule(
        .inputSchema, passed: manifest.schema?.sha256 == agreement.records?.sha256,
        "the payload was checked against the schema that the agreement names"))
    return decide(rules, draft, agreement)
  }

  private struct Rule {
    let code: ReasonCode
    let holds: Bool
    let passed: Bool
    let detail: String

    init(_ code: ReasonCode, holds: Bool = false, passed: Bool, _ detail: String) {
      self.code = code
      self.holds = holds
      self.passed = passed
      self.detail = detail
    }
  }

  private static func common(_ draft: Draft, _ agreement: Agreement, _ now: Circumstances) -> [Rule] {
    let parties =
      agreement.party(draft.sender, as: .provider) != nil && agreement.party(draft.recipient, as: .recipient) != nil
    return [
      Rule(.matchNone, passed: parties, "\(draft.sender) provides and \(draft.recipient) receives"),
      Rule(
        .agreementNotYet, passed: now.instant >= agreement.notBefore, "begins \(Timestamp.format(agreement.notBefore))"),
      Rule(.agreementExpired, passed: now.instant < agreement.notAfter, "ends \(Timestamp.format(agreement.notAfter))"),
      Rule(.partnerUnknown, passed: now.partner != .unknown, "the partner's card is held"),
      Rule(.partnerPending, holds: true, passed: now.partner != .pending, "the partner's fingerprint is approved"),
      Rule(.partnerSuspended, holds: true, passed: now.partner != .suspended, "the partner is not suspended"),
      Rule(
        .inputName, passed: FileName.fault(draft.name) == nil && agreement.allows(name: draft.name),
        "the name is safe and fits \(agreement.namePattern)"),
      Rule(.inputMediaType, passed: draft.mediaType == agreement.mediaType, "the media type is \(agreement.mediaType)"),
      Rule(.deliveryMode, passed: agreement.delivery == .relay, "the agreement's delivery is relay"),
      Rule(.inputEmpty, passed: draft.payloadBytes > 0, "the payload is not empty"),
      Rule(
        .limitBytes, passed: draft.payloadBytes <= agreement.bytesMax,
        "\(draft.payloadBytes) of at most \(agreement.bytesMax) bytes"),
    ]
  }

  private static func decide(_ rules: [Rule], _ draft: Draft, _ agreement: Agreement) -> Decision {
    let failed = rules.filter { !$0.passed }
    let outcome: Decision.Outcome =
      failed.isEmpty ? .permit : failed.allSatisfy(\.holds) ? .hold : .refuse
    let codes = failed.filter { outcome != .refuse || !$0.holds }.map(\.code)
    let sentence =
      switch outcome {
      case .permit: "Permitted: \"\(agreement.title)\" covers this file from \(draft.sender) to \(draft.recipient)."
      case .hold: "Held: \(failed.map(\.detail).joined(separator: "; ")) does not hold yet."
      case .refuse:
        "Refused under \"\(agreement.title)\": \(failed.filter { !$0.holds }.map(\.detail).joined(separator: "; ")) does not hold."
      }
    return Decision(
      outcome: outcome, codes: codes, agreement: NamedDigest(id: agreement.id, sha256: agreement.digest),
      trace: rules.map { .init(rule: $0.code.rawValue, passed: $0.passed, detail: $0.detail) }, sentence: sentence)
  }

  private static func noAgreement(_ draft: Draft) -> Decision {
    Decision(
      outcome: .refuse, codes: [.matchNone], agreement: nil,
      trace: [.init(rule: ReasonCode.matchNone.rawValue, passed: false, detail: "no agreement of this name is held")],
      sentence: "Refused: no agreement covers a file from \(draft.sender) to \(draft.recipient).")
  }
}
