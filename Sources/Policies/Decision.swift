// May it go? A pure and total function from agreements, a draft and an instant to a decision; anything unclear refuses.

import Foundation
import Sealing

/// Stable reason codes. Closed: scripts and partners branch on them.
package enum ReasonCode: String, Sendable, CaseIterable {
  case matchNone = "match.none"
  case agreementNotYet = "agreement.not-yet"
  case agreementExpired = "agreement.expired"
  case agreementUnknown = "agreement.unknown"
  case agreementUnsigned = "agreement.unsigned"
  case agreementRejected = "agreement.rejected"
  case agreementSuspended = "agreement.suspended"
  case agreementRevoked = "agreement.revoked"
  case agreementSuperseded = "agreement.superseded"
  case agreementReviewOverdue = "agreement.review-overdue"
  case forbid = "forbid"
  case forbidError = "forbid.error"
  case inputName = "input.name"
  case inputMediaType = "input.media-type"
  case inputEmpty = "input.empty"
  case inputDigest = "input.whole-file-digest"
  case inputSchema = "input.schema"
  case limitBytes = "limit.bytes"
  case limitRecords = "limit.records"
  case limitWindow = "limit.window"
  case limitRate = "limit.rate"
  case limitTimeToLive = "limit.time-to-live"
  case keyMissing = "key.missing"
  case keyWeak = "key.weak"
  case partnerUnknown = "partner.unknown"
  case partnerPending = "partner.pending"
  case partnerSuspended = "partner.suspended"
  case deliveryMode = "delivery.mode"
  case hubInactive = "hub.inactive"
  case consentStale = "consent.source-stale"
  case consentMissing = "consent.missing"
  case recordsNone = "records.none"
  case approvalPending = "approval.pending"
  case approvalExpired = "approval.expired"

  /// What to do next, for the person who dropped the file or runs the gateway.
  package func nextStep(_ id: TransferID) -> String { nextStep.replacingOccurrences(of: " ID", with: " \(id)") }

  /// What to do about it, with ID for the transfer's.
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
    case .agreementUnsigned:
      "Ask for the missing signatures: sallyport agreements list; then: sallyport agreements sign"
    case .agreementRejected, .agreementRevoked: "It ends here. Ask your data officer: sallyport agreements show"
    case .agreementSuspended: "It goes by itself when whoever suspended the agreement resumes it."
    case .agreementSuperseded: "Use the version that replaces it: sallyport agreements list"
    case .agreementReviewOverdue: "Ask your data officer to review the agreement and sign a new version."
    case .forbid, .forbidError: "Take the records out that the agreement forbids, see: sallyport agreements explain"
    case .limitRecords: "Split the file, or ask for a higher maxRecords in the agreement."
    case .limitWindow: "It goes by itself in the next delivery window of the agreement."
    case .consentStale:
      "Bring the registry's feed back: consent import, or consent heartbeat; which one is quiet: sallyport consent sources"
    case .consentMissing: "Take out the people who have not agreed, or ask them: sallyport consent show"
    case .recordsNone: "Nothing: no record of this file may go. Why is counted: sallyport agreements explain"
    case .approvalPending:
      "People look at it (sallyport agreements explain ID), and each says so: sallyport agreements approve ID --by NAME"
    case .approvalExpired: "Drop the file again and have it approved in time."
    case .limitBytes: "Split the file, or ask for a higher maxBytes in the agreement."
    case .limitRate: "It goes by itself tomorrow (UTC), or ask for a higher maxPackagesPerDay."
    case .limitTimeToLive: "Ask the sender to respect the agreement's timeToLive."
    case .keyMissing: "Ask the partner for a current card: sallyport partners show"
    case .keyWeak: "Ask the partner for a card with a key of a kind that the agreement allows."
    case .partnerUnknown: "Add the partner's card: sallyport partners add CARD"
    case .partnerPending: "Compare fingerprints by telephone, then: sallyport partners approve"
    case .partnerSuspended: "Resume the partner: sallyport partners resume"
    case .deliveryMode: "Deliver it as the agreement says: relay or collect, through its hub or without one."
    case .hubInactive: "See what the hub lacks, approval or a card with an endpoint: sallyport partners list"
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
  /// Where the agreement stands; nil refuses.
  package let standing: AgreementStanding?
  /// When the consent registry last gave a sign of life; nil for never.
  package let consentHeard: Date?
  /// Whether the card of whom packages are handed to says where it listens: the partner, or the hub before it.
  package let isReachable: Bool
  /// nil where the agreement names no hub.
  package let hub: PartnerState?
  /// Whether the partner signs what it receives.
  package let hasGateway: Bool

  package init(
    instant: Date, partner: PartnerState, recipientKinds: Set<RecipientKind>, packagesToday: Int64,
    standing: AgreementStanding?, consentHeard: Date? = nil, isReachable: Bool = true, hub: PartnerState? = nil,
    hasGateway: Bool = true
  ) {
    self.hub = hub
    self.hasGateway = hasGateway
    self.isReachable = isReachable
    self.instant = instant
    self.partner = partner
    self.recipientKinds = recipientKinds
    self.packagesToday = packagesToday
    self.standing = standing
    self.consentHeard = consentHeard
  }
}

extension Circumstances {
  /// The same on a day without packages.
  package var countingNone: Circumstances {
    Circumstances(
      instant: instant, partner: partner, recipientKinds: recipientKinds, packagesToday: 0, standing: standing,
      consentHeard: consentHeard, isReachable: isReachable, hub: hub, hasGateway: hasGateway)
  }
}

/// What the pass over the records came to.
package struct RecordCounts: Equatable, Sendable {
  package let read: Int64
  package let kept: Int64
  /// By reason code.
  package let withheld: [String: Int64]
  /// The `forbid` that holds; "" when one could not be decided.
  package let forbidden: String?

  package init(read: Int64, kept: Int64, withheld: [String: Int64], forbidden: String?) {
    self.read = read
    self.kept = kept
    self.withheld = withheld
    self.forbidden = forbidden
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
  package var records: RecordCounts?
  /// Fields by treatment, obligations of both sides.
  package var terms: JSON?
  /// The last moment that this decision holds without being made again.
  package var horizon: Date?

  package var document: JSON {
    var members: [String: JSON] = [
      "outcome": .string(outcome.rawValue),
      "codes": .array(codes.map { .string($0.rawValue) }),
      "sentence": .string(sentence),
      "trace": .array(
        trace.map { ["rule": .string($0.rule), "passed": .bool($0.passed), "detail": .string($0.detail)] }),
    ]
    members["agreement"] = agreement.map { ["id": .string($0.id), "sha256": .string($0.sha256.hex)] }
    members["records"] = records.map {
      [
        "read": .integer($0.read), "kept": .integer($0.kept),
        "withheld": .object($0.withheld.mapValues { .integer($0) }),
      ]
    }
    members["terms"] = terms
    members["horizon"] = horizon.map { .string(Timestamp.format($0)) }
    return .object(members)
  }

  /// The same, refused for one more reason that was found later.
  package func refused(_ code: ReasonCode, _ sentence: String) -> Decision {
    Decision(
      outcome: .refuse, codes: [code], agreement: agreement,
      trace: trace + [Step(rule: code.rawValue, passed: false, detail: sentence)], sentence: "Refused: \(sentence).")
  }

  /// A hold is no reason not to seal again what was sealed before: it holds at the release.
  package var unlessRefused: Decision {
    guard outcome == .hold else { return self }
    var decision = Decision(outcome: .permit, codes: [], agreement: agreement, trace: trace, sentence: sentence)
    (decision.records, decision.terms, decision.horizon) = (records, terms, horizon)
    return decision
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
    rules.append(
      Rule(
        .deliveryMode,
        passed: agreement.delivery == .collect || agreement.via != nil || now.isReachable || now.partner == .unknown,
        "what is relayed needs a partner that listens"))
    if let hub = agreement.via {
      rules.append(
        Rule(
          .hubInactive, holds: true, passed: now.hub == .active && now.isReachable,
          "the hub \(hub) is an active partner that listens"))
      rules.append(
        Rule(
          .deliveryMode, passed: now.hasGateway || now.partner == .unknown,
          "a partner behind a hub signs its receipts itself"))
    }
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
    if !agreement.windows.isEmpty {
      rules.append(
        Rule(
          .limitWindow, holds: true,
          passed: agreement.windows.contains { $0.contains(now.instant, in: agreement.timeZone) },
          "inside \(agreement.windows.map(\.description).joined(separator: ", ")) \(agreement.timeZone)"))
    }
    if let age = agreement.consent.stalenessMax {
      rules.append(
        Rule(
          .consentStale, holds: agreement.consent.onStale == .hold,
          passed: now.consentHeard.map { now.instant < age.after($0) } ?? false,
          "the consent registry was heard of within \(age)"))
    }
    var decision = decide(rules, draft, agreement)
    decision.terms = terms(agreement)
    decision.horizon = [
      agreement.notAfter, agreement.consent.stalenessMax.flatMap { age in now.consentHeard.map(age.after) },
    ]
    .compactMap { $0 }.min()
    return decision
  }

  /// The decision once the records were read: what was permitted may still come to nothing.
  ///
  /// - Parameter isResealed: people were taken out because they withdrew: the agreement says so, whatever it says of who never agreed.
  package static func completed(
    _ decision: Decision, _ draft: Draft, under agreement: Agreement, _ records: RecordCounts, isResealed: Bool = false
  ) -> Decision {
    guard decision.outcome == .permit else { return decision }
    let missing = records.withheld.filter { $0.key.hasPrefix("consent.") }.values.reduce(0, +)
    let rule = records.forbidden.map { id in agreement.forbid.first { $0.id == id } } ?? nil
    var rules = [
      Rule(
        records.forbidden == "" ? .forbidError : .forbid, passed: records.forbidden == nil,
        rule.map { "no record is forbidden by \($0.id): \($0.because)" } ?? "no record is forbidden"),
      Rule(
        .consentMissing, passed: isResealed || agreement.consent.onMissing == .withhold || missing == 0,
        missing > 0 && (isResealed || agreement.consent.onMissing == .withhold)
          ? "people without consent are left out (\(missing))" : "every person in the file may be told about"),
      Rule(
        .limitRecords, passed: records.kept <= agreement.recordsMax,
        "\(records.kept) of at most \(agreement.recordsMax) records"),
    ]
    if rules.allSatisfy(\.passed) {
      rules.append(Rule(.recordsNone, passed: records.kept > 0, "a record is left to send"))
    }
    var result = decide(rules, draft, agreement, records)
    result = Decision(
      outcome: result.outcome, codes: result.codes, agreement: result.agreement, trace: decision.trace + result.trace,
      sentence: result.sentence)
    result.records = records
    result.terms = decision.terms
    result.horizon = decision.horizon
    return result
  }

  /// What both sides have to do, and what happens to each field.
  private static func terms(_ agreement: Agreement) -> JSON {
    func names(_ wanted: (Agreement.Field.Action) -> Bool) -> JSON {
      .array(agreement.fields.filter { wanted($0.action) }.map { .string($0.name) })
    }
    var recipient = ["delete-after:\(agreement.retention.recipientDeleteAfter)"]
    if agreement.retention.confirmsDeletion { recipient.append("confirm-deletion") }
    recipient +=
      agreement.onward.isAllowed
      ? agreement.onward.underAgreements.map { "onward-only-under:\($0)" } : ["no-onward-transfer"]
    if let days = agreement.legalBasis.adverseActionDays {
      recipient.append("adverse-action-notice:\(days)-working-days")
    }
    let gateway =
      ["seal:\(agreement.recipientKinds.map(\.rawValue).joined(separator: "|"))", "key-last"]
      + (agreement.subjects.identifier == nil ? [] : ["index-for-subject-report"])
    return [
      "fields": [
        "passed": names { $0 == .pass }, "dropped": names { $0 == .drop },
        "changed": .object(
          Dictionary(
            uniqueKeysWithValues: agreement.fields.filter { $0.action != .pass && $0.action != .drop }.map {
              ($0.name, .string($0.treatment))
            })),
      ],
      "obligations": [
        "gateway": .array(gateway.map { .string($0) }), "recipient": .array(recipient.map { .string($0) }),
      ],
    ]
  }

  /// Decides for the recipient, or for the hub before it, about a manifest that names `agreement`.
  package static func inbound(
    _ manifest: Manifest, under agreement: Agreement?, _ now: Circumstances, by delivery: Agreement.Delivery,
    via hub: AgencyID? = nil
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
    let way = "\(delivery.rawValue)\(hub.map { " through \($0)" } ?? "")"
    rules.append(
      Rule(
        .deliveryMode, passed: agreement.delivery == delivery && agreement.via == hub,
        "the agreement's delivery is \(way)"))
    let lifetime = Duration.seconds(manifest.expiresAt.timeIntervalSince(manifest.createdAt))
    rules.append(
      Rule(
        .limitRate, holds: true, passed: takesMore(than: now.packagesToday, under: agreement),
        "\(now.packagesToday) of twice \(agreement.packagesPerDayMax) packages of that day"))
    rules.append(
      Rule(
        .limitRecords, passed: manifest.records ?? 0 <= agreement.recordsMax,
        "\(manifest.records ?? 0) records, at most \(agreement.recordsMax)"))
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

  /// Whether a recipient takes another package of a day. The sender counts by the day of its commit, and not what takes another's place:
  /// this is for one that does not count.
  package static func takesMore(than packages: Int64, under agreement: Agreement) -> Bool {
    packages / 2 < agreement.packagesPerDayMax
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
    let standing = now.standing
    let isValid = standing?.state == .valid
    // A stranger's signatures cannot be judged yet.
    let isKnown = now.partner == .active || now.partner == .suspended
    let stopped: ReasonCode =
      switch standing?.state {
      case .valid, .proposed, nil: .agreementUnsigned
      case .suspended: .agreementSuspended
      case .rejected: .agreementRejected
      case .revoked: .agreementRevoked
      case .expired: .agreementExpired
      case .notYet: .agreementNotYet
      case .superseded: .agreementSuperseded
      }
    return [
      Rule(.matchNone, passed: parties, "\(draft.sender) provides and \(draft.recipient) receives"),
      Rule(
        .agreementReviewOverdue, holds: true, passed: now.instant < agreement.reviewBy + 86400,
        "reviewed by \(Timestamp.format(agreement.reviewBy).prefix(10))"),
      Rule(.partnerUnknown, passed: now.partner != .unknown, "the partner's card is held"),
      Rule(.partnerPending, holds: true, passed: now.partner != .pending, "the partner's fingerprint is approved"),
      Rule(.partnerSuspended, holds: true, passed: now.partner != .suspended, "the partner is not suspended"),
      Rule(
        stopped, holds: standing?.state == .suspended || !isKnown, passed: isValid,
        "the agreement is in force (\(standing?.detail ?? "nobody signed it"))"),
      Rule(
        .inputName, passed: FileName.fault(draft.name) == nil && agreement.allows(name: draft.name),
        FileName.fault(draft.name).map { "the name is safe: \($0)" } ?? "the name fits \(agreement.namePattern)"),
      Rule(.inputMediaType, passed: draft.mediaType == agreement.mediaType, "the media type is \(agreement.mediaType)"),
      Rule(.inputEmpty, passed: draft.payloadBytes > 0, "the payload is not empty"),
      Rule(
        .limitBytes, passed: draft.payloadBytes <= agreement.bytesMax,
        "\(draft.payloadBytes) of at most \(agreement.bytesMax) bytes"),
    ]
  }

  private static func decide(
    _ rules: [Rule], _ draft: Draft, _ agreement: Agreement, _ records: RecordCounts? = nil
  ) -> Decision {
    let failed = rules.filter { !$0.passed }
    let outcome: Decision.Outcome =
      failed.isEmpty ? .permit : failed.allSatisfy(\.holds) ? .hold : .refuse
    let codes = failed.filter { outcome != .refuse || !$0.holds }.map(\.code)
    let sentence =
      switch outcome {
      case .permit:
        records.map { told($0, draft, agreement) }
          ?? "Permitted: \"\(agreement.title)\" covers this file from \(draft.sender) to \(draft.recipient)."
      case .hold: "Held; what does not hold yet: \(list(failed))."
      case .refuse:
        "Refused under \"\(agreement.title)\"; what does not hold: \(list(failed.filter { !$0.holds }))."
      }
    return Decision(
      outcome: outcome, codes: codes, agreement: NamedDigest(id: agreement.id, sha256: agreement.digest),
      trace: rules.map { .init(rule: $0.code.rawValue, passed: $0.passed, detail: $0.detail) }, sentence: sentence)
  }

  private static func list(_ rules: [Rule]) -> String { rules.map(\.detail).joined(separator: "; ") }

  private static func told(_ records: RecordCounts, _ draft: Draft, _ agreement: Agreement) -> String {
    let name = agreement.parties.first { $0.id == draft.recipient }?.name ?? draft.recipient.text
    let what =
      agreement.aggregate == nil
      ? "\(records.kept) of \(records.read) records" : "\(records.kept) groups of \(records.read) records"
    let left = records.withheld.sorted { ($1.value, $0.key) < ($0.value, $1.key) }.map { "\($0.value) \($0.key)" }
    let gone = agreement.fields.filter { $0.action == .drop }.map { $0.title ?? $0.name }
    return "Permitted: \(what) may go to \(name) under \"\(agreement.title)\"."
      + (left.isEmpty ? "" : " Left out: \(left.joined(separator: ", ")).")
      + (gone.isEmpty ? "" : " Never sent: \(gone.joined(separator: ", ")).")
  }

  private static func noAgreement(_ draft: Draft) -> Decision {
    Decision(
      outcome: .refuse, codes: [.matchNone], agreement: nil,
      trace: [.init(rule: ReasonCode.matchNone.rawValue, passed: false, detail: "no agreement of this name is held")],
      sentence: "Refused: no agreement covers a file from \(draft.sender) to \(draft.recipient).")
  }
}
