// What is not wrong, but what the parties should look at; and what laws ask agreements to say.

import Foundation
import Sealing

/// Check-lists of laws and guidance. Engineering notes, not legal advice: docs/AGREEMENTS.md names the clauses.
package enum LegalProfile: String, Sendable, CaseIterable {
  /// Data Sharing and Governance Act 2019 (Ireland), s 19(1)(a)–(n).
  case ieDSGA = "ie-dsga"
  /// Digital Economy Act 2017 (UK), the register's columns.
  case ukDEA = "uk-dea"
  /// Approved information sharing agreements (New Zealand), Privacy Act.
  case nzAISA = "nz-aisa"
  /// Data Availability and Transparency Act 2022 (Australia).
  case auData = "au-data"
  /// The Information Commissioner's data sharing code (UK).
  case ico
}

package enum AgreementLint {
  package struct Finding: Equatable, Sendable {
    package let key: String
    package let text: String
  }

  /// GDPR Art 9(1) and 10, in the words of DPV-PD.
  private static let specialCategories: Set<String> = [
    "pd:Biometric", "pd:CriminalCharge", "pd:CriminalConviction", "pd:CriminalOffense", "pd:Disability", "pd:Ethnicity",
    "pd:EthnicOrigin", "pd:Genetic", "pd:Health", "pd:HealthRecord", "pd:MedicalHealth", "pd:MentalHealth",
    "pd:PhysicalHealth", "pd:PoliticalAffiliation", "pd:PoliticalOpinion", "pd:Race", "pd:RacialOrigin", "pd:Religion",
    "pd:ReligiousBelief", "pd:PhilosophicalBelief", "pd:Sexual", "pd:SexualPreference", "pd:TradeUnionMembership",
  ]

  package static func findings(_ a: Agreement, profiles: [LegalProfile], at now: Date) -> [Finding] {
    var found: [Finding] = []
    func warn(_ key: String, _ text: String, unless holds: Bool) {
      if !holds { found.append(Finding(key: key, text: text)) }
    }
    warn(
      "validity.reviewBy", "the review comes after the end, or before the beginning",
      unless: a.notBefore < a.reviewBy && a.reviewBy < a.notAfter)
    warn("validity.notAfter", "the agreement has ended", unless: now < a.notAfter)
    warn("validity.reviewBy", "the review is overdue: packages are held", unless: now < a.reviewBy + 86400)
    warn("purpose.text", "say more about the purpose: a person reads it", unless: a.purpose.text.utf8.count >= 30)
    if let actWithin = a.consent.actWithin {
      warn(
        "consent.onWithdrawal.actWithin", "longer than the recipient keeps the records",
        unless: actWithin.after(now) <= a.retention.recipientDeleteAfter.after(now))
    }
    if a.consent.model == .optIn, let id = a.subjects.identifier {
      warn(
        "fields", "\(id) goes as it is: a pseudonym would do for joining records",
        unless: a.fields.first { $0.name == id }?.action != .pass)
    }
    for field in a.fields where field.action != .drop && specialCategories.contains(field.category) {
      warn(
        "fields.\(field.name).special", "\(field.category) is a special category of data: say special: true",
        unless: field.isSpecial)
    }
    if let aggregate = a.aggregate {
      warn(
        "records.aggregate.minGroupSize", "groups of fewer than 5 tell a lot about each",
        unless: aggregate.groupSizeMin >= 5)
    }
    warn(
      "transparency.subjectReport", "exempt: people will not see these disclosures",
      unless: a.transparency.report != .exempt)
    for (party, role) in a.parties.map({ ($0, $0.role) }) where role == .provider || role == .recipient {
      warn("parties.\(party.id).contact", "nobody to ask", unless: party.contact != nil)
    }
    if a.onward.isAllowed {
      warn("onwardTransfer.underAgreements", "passed on under no agreement", unless: !a.onward.underAgreements.isEmpty)
    }
    for profile in profiles { found += missing(a, profile) }
    return found
  }

  /// What a law lists and the agreement does not say.
  private static func missing(_ a: Agreement, _ profile: LegalProfile) -> [Finding] {
    let hasAssessment = a.impactAssessment != nil
    let rules: [(String, String, Bool)] =
      switch profile {
      case .ieDSGA:
        [
          ("purpose.publicFunction", "s 19(1)(d): the function of the public body", a.purpose.publicFunction != nil),
          ("legalBasis.citations", "s 19(1)(e): the legal basis", !a.legalBasis.citations.isEmpty),
          ("impactAssessment", "s 19(1)(l): a summary of the data protection impact assessment", hasAssessment),
          (
            "retention.derivedDeleteAfter", "s 19(1)(n): how long results of processing are kept",
            a.retention.derivedDeleteAfter != nil
          ),
          ("retention.disposalMethod", "s 19(1)(n): how it is destroyed", a.retention.disposalMethod != nil),
        ]
      case .ukDEA:
        [
          ("purpose.benefits", "register: Information sharing benefits", a.purpose.benefits != nil),
          ("legalBasis.citations", "register: Legal power disclosure", !a.legalBasis.citations.isEmpty),
          ("parties.contact", "register: Contact", a.parties.allSatisfy { $0.contact != nil }),
          (
            "transparency.register", "register: uk-dea-register is not named",
            a.transparency.registers.contains("uk-dea-register")
          ),
        ]
      case .nzAISA:
        [
          (
            "legalBasis.adverseActionNotice", "Privacy Act 2020 ss 152–153: notice of adverse action",
            a.legalBasis.adverseActionDays != nil
          ),
          ("retention.disposalMethod", "safeguards: how it is destroyed", a.retention.disposalMethod != nil),
          ("transparency.register", "nz-aisa is not named", a.transparency.registers.contains("nz-aisa")),
        ]
      case .auData:
        [
          (
            "parties.registrar", "s 18: not to be relied on before it is registered",
            a.parties.contains { $0.role == .registrar }
          ),
          ("impactAssessment", "data principle: an assessment", hasAssessment),
        ]
      case .ico:
        [
          ("impactAssessment", "the code: decide whether an assessment is needed, and record it", hasAssessment),
          (
            "consent.withdrawalMethod", "individual rights: how to object or withdraw",
            a.consent.withdrawalMethod != nil || a.consent.model == .none
          ),
          ("retention.disposalMethod", "retention: how it is destroyed", a.retention.disposalMethod != nil),
        ]
      }
    return rules.filter { !$0.2 }.map { Finding(key: $0.0, text: "\(profile.rawValue): \($0.1)") }
  }
}

/// What changes between two versions, judged by what the recipient learns and may do.
package enum AgreementDiff {
  package enum Direction: String, Sendable { case more, less, other }

  package struct Change: Equatable, Sendable {
    package let direction: Direction
    package let text: String
  }

  package static func changes(from a: Agreement, to b: Agreement) -> [Change] {
    var changes: [Change] = []
    func add(_ direction: Direction, _ text: String) { changes.append(Change(direction: direction, text: text)) }
    func number(_ what: String, _ x: Int64, _ y: Int64) {
      if x != y { add(y > x ? .more : .less, "\(what): \(x) → \(y)") }
    }
    func date(_ what: String, _ x: Date, _ y: Date, later: Direction) {
      guard x != y else { return }
      let direction: Direction = y > x ? later : later == .more ? .less : .more
      add(direction, "\(what): \(Timestamp.format(x)) → \(Timestamp.format(y))")
    }
    func span(_ what: String, _ x: CalendarDuration?, _ y: CalendarDuration?) {
      let epoch = Date(timeIntervalSince1970: 0)
      // Where one of them says nothing of it, that is told below.
      if let x, let y, x != y { add(y.after(epoch) > x.after(epoch) ? .more : .less, "\(what): \(x) → \(y)") }
    }
    func list(_ what: String, _ x: [String], _ y: [String], added: Direction) {
      let reverse: Direction = added == .more ? .less : added == .less ? .more : .other
      for item in y where !x.contains(item) { add(added, "\(what): adds \(item)") }
      for item in x where !y.contains(item) { add(reverse, "\(what): drops \(item)") }
    }
    func conditions(
      _ what: String, _ x: [Agreement.Predicate], _ y: [Agreement.Predicate], wider: Direction
    ) {
      var old = x.filter { !y.contains($0) }
      var new: [Agreement.Predicate] = []
      for predicate in y where !x.contains(predicate) {
        guard let place = old.firstIndex(where: { predicate.isWider(than: $0) != nil }) else {
          new.append(predicate)
          continue
        }
        let before = old.remove(at: place)
        let narrower: Direction = wider == .more ? .less : .more
        add(predicate.isWider(than: before)! ? wider : narrower, "\(what): \(before.text) → \(predicate.text)")
      }
      list(what, old.map(\.text), new.map(\.text), added: .less)
    }
    list(
      "parties", a.parties.map { "\($0.role.rawValue) \($0.id)" }, b.parties.map { "\($0.role.rawValue) \($0.id)" },
      added: .more)
    if a.purpose != b.purpose { add(.other, "the purpose reads otherwise") }
    for party in b.parties {
      guard let old = a.parties.first(where: { $0.id == party.id }) else { continue }
      let (x, y) = (old.acceptancesRequired, party.acceptancesRequired)
      if x != y { add(y < x ? .more : .less, "\(party.id): \(x) → \(y) people must sign") }
    }
    if a.consent.model != b.consent.model {
      let order: [Agreement.Consent.Model] = [.optIn, .optOut, .none]
      let (x, y) = (order.firstIndex(of: a.consent.model)!, order.firstIndex(of: b.consent.model)!)
      add(y > x ? .more : .less, "consent: \(a.consent.model.rawValue) → \(b.consent.model.rawValue)")
    }
    span("a consent holds at most", a.consent.validityMax, b.consent.validityMax)
    span("the consent registry is believed for", a.consent.stalenessMax, b.consent.stalenessMax)
    span("after a withdrawal the recipient acts within", a.consent.actWithin, b.consent.actWithin)
    list("may consent for a person", a.consent.representatives, b.consent.representatives, added: .more)
    date("begins", a.notBefore, b.notBefore, later: .less)
    date("ends", a.notAfter, b.notAfter, later: .more)
    if a.namePattern != b.namePattern { add(.other, "files: \(a.namePattern) → \(b.namePattern)") }
    if a.records?.sha256 != b.records?.sha256 { add(.other, "the schema is another") }
    for field in b.fields where field.action != .drop {
      let old = a.fields.first { $0.name == field.name && $0.action != .drop }
      if old == nil {
        add(.more, "field \(field.name): now goes, \(field.treatment)")
      } else if let old, old.treatment != field.treatment {
        add(
          old.action == .pass ? .less : field.action == .pass ? .more : .other,
          "field \(field.name): \(old.treatment) → \(field.treatment)")
      }
    }
    for field in a.fields
    where field.action != .drop && !b.fields.contains(where: { $0.name == field.name && $0.action != .drop }) {
      add(.less, "field \(field.name): goes no more")
    }
    conditions("only records where", a.include, b.include, wider: .more)
    conditions("no records where", a.exclude, b.exclude, wider: .less)
    func named(_ rule: Agreement.Forbidden) -> String { "\(rule.predicate.text) (\(rule.id))" }
    list("forbids", a.forbid.map(named), b.forbid.map(named), added: .less)
    func staying(_ agreement: Agreement) -> [String] { agreement.fields.filter { $0.action == .drop }.map(\.name) }
    list("named to stay", staying(a), staying(b), added: .other)
    if a.aggregate != b.aggregate {
      add(a.aggregate == nil ? .less : b.aggregate == nil ? .more : .other, "aggregation changes")
    }
    number("records a file", a.recordsMax, b.recordsMax)
    number("bytes a file", a.bytesMax, b.bytesMax)
    number("files a day", a.packagesPerDayMax, b.packagesPerDayMax)
    if a.delivery != b.delivery { add(.other, "delivery: \(a.delivery.rawValue) → \(b.delivery.rawValue)") }
    if a.via != b.via { add(.other, "hub: \(a.via?.text ?? "none") → \(b.via?.text ?? "none")") }
    list("delivery windows", a.windows.map(\.description), b.windows.map(\.description), added: .other)
    list("kinds of key", a.recipientKinds.map(\.rawValue), b.recipientKinds.map(\.rawValue), added: .other)
    span("the recipient may keep it", a.retention.recipientDeleteAfter, b.retention.recipientDeleteAfter)
    list("passed on to", a.onward.to, b.onward.to, added: .more)
    if a.onward.isAllowed != b.onward.isAllowed {
      add(b.onward.isAllowed ? .more : .less, "passing on: \(b.onward.isAllowed ? "allowed" : "not allowed any more")")
    }
    if a.approval.mode != b.approval.mode {
      add(
        b.approval.mode == .automatic || a.approval.mode == .every
          ? .more : a.approval.mode == .automatic || b.approval.mode == .every ? .less : .other,
        "approval: \(a.approval.mode.rawValue) → \(b.approval.mode.rawValue)")
    }
    if a.approval.approvers != b.approval.approvers {
      add(
        b.approval.approvers < a.approval.approvers ? .more : .less,
        "\(a.approval.approvers) → \(b.approval.approvers) people must approve")
    }
    return changes + others(a, b)
  }

  /// What is said above, or changes nothing: `*` is any one name.
  private static let told: Set<String> = [
    "kind", "schemaVersion", "id", "version", "supersedes", "title", "parties.*.role", "parties.*.signatories.required",
    "purpose", "consent.model", "consent.representatives", "validity.notBefore", "validity.notAfter",
    "dataset.namePattern", "dataset.schemaSha256", "fields.*.action", "fields.*.to", "fields.*.value",
    "fields.*.pseudonymScope", "records.include", "records.exclude", "records.aggregate", "forbid.*.when",
    "delivery.maxRecords", "delivery.maxBytes", "delivery.maxPackagesPerDay", "delivery.mode", "delivery.via",
    "delivery.windows", "security.recipients", "retention.recipientDeleteAfter", "onwardTransfer.allowed",
    "onwardTransfer.to", "approval.mode", "approval.approvers",
  ]

  /// Lists whose items have names of their own.
  private static let listed: Set<String> = ["parties", "fields", "forbid"]

  /// Durations: told when both versions have one.
  private static let toldInBoth: Set<String> = [
    "consent.maxValidity", "consent.maxStaleness", "consent.onWithdrawal.actWithin",
  ]

  /// Every other member that differs, so that no change is passed over.
  private static func others(_ a: Agreement, _ b: Agreement) -> [Change] {
    let (x, y) = (members(a.document), members(b.document))
    // Of a party, a field or a rule that only one of them has it was said that it came or went.
    func isShared(_ path: [String]) -> Bool {
      guard path.count > 2, listed.contains(path[0]) else { return true }
      let prefix = Array(path[..<2])
      return x.keys.contains { $0.starts(with: prefix) } && y.keys.contains { $0.starts(with: prefix) }
    }
    func isTold(_ path: [String]) -> Bool {
      // Another mode brings its own settings.
      if path[0] == "approval", a.approval.mode != b.approval.mode { return true }
      var name = path
      if listed.contains(path[0]), name.count > 1 { name[1] = "*" }
      return name.indices.contains { told.contains(name[...$0].joined(separator: ".")) }
        || (x[path] != nil && y[path] != nil && toldInBoth.contains(name.joined(separator: ".")))
    }
    return Set(x.keys).union(y.keys).sorted { $0.lexicographicallyPrecedes($1) }
      .filter { x[$0] != y[$0] && isShared($0) && !isTold($0) }
      .map {
        Change(direction: .other, text: "\($0.joined(separator: ".")): \(x[$0] ?? "nothing") → \(y[$0] ?? "nothing")")
      }
  }

  /// The values of a document by the way to them; those of lists by their id, name or place.
  static func members(_ document: JSON) -> [[String]: String] {
    var found: [[String]: String] = [:]
    func walk(_ value: JSON, _ path: [String]) {
      switch value {
      case .object(let members): for (name, inner) in members { walk(inner, path + [name]) }
      case .array(let items):
        for (place, item) in items.enumerated() {
          var name = "\(place + 1)"
          if case .object(let members) = item, case .string(let own)? = members["id"] ?? members["name"] { name = own }
          walk(item, path + [name])
        }
      default: found[path] = String(decoding: value.canonical, as: UTF8.self)
      }
    }
    walk(document, [])
    return found
  }

  /// Cedar's four words: equivalent, more permissive, less permissive, incomparable.
  package static func verdict(_ changes: [Change]) -> String {
    let directions = Set(changes.map(\.direction))
    if directions.isEmpty { return "equivalent" }
    if directions == [.more] { return "more permissive" }
    if directions == [.less] { return "less permissive" }
    return "incomparable"
  }
}

/// Can a field reach an agency? Agreements are finite lists without code, so the answer is exact.
package enum RouteQuestion {
  package struct Route: Equatable, Sendable {
    /// Agreements in order, each with how the field goes under it.
    package let steps: [(agreement: String, from: String, to: String, treatment: String)]

    package static func == (a: Route, b: Route) -> Bool { a.text == b.text }

    package var text: String {
      steps.map { "\($0.from) → \($0.to) under \($0.agreement), \($0.treatment)" }.joined(separator: "; then ")
    }

    package var document: JSON {
      [
        "reaches": true, "text": .string(text),
        "steps": .array(
          steps.map {
            [
              "agreement": .string($0.agreement), "from": .string($0.from), "to": .string($0.to),
              "treatment": .string($0.treatment),
            ]
          }),
      ]
    }
  }

  /// Whether any agreement speaks of the field, and any of the agency.
  package static func knows(_ field: String, _ agency: String, in set: PolicySet) -> Bool {
    set.agreements.contains { agreement in
      let asked = steps(field, agreement)
      return agreement.fields.contains { named in
        let own = steps(named.name, agreement)
        return named.category == field || own.starts(with: asked) || asked.starts(with: own)
      }
    } && set.agreements.contains { $0.parties.contains { $0.id.text == agency } }
  }

  /// A field's name as the records' format has it: columns are flat, a pointer begins with /, elements are divided by / or a dot.
  private static func steps(_ name: String, _ agreement: Agreement) -> [String] {
    switch agreement.records?.format {
    case .csv, nil: [name]
    case .xml: name.split { $0 == "/" || $0 == "." }.map(String.init)
    case .ndjson, .json:
      name.hasPrefix("/")
        ? name.split(separator: "/").map { String($0).replacing("~1", with: "/").replacing("~0", with: "~") }
        : name.split(separator: ".").map(String.init)
    }
  }

  /// Every way without a circle. An opaque payload may hold anything.
  package static func routes(of field: String, to agency: String, from id: String?, in set: PolicySet) -> [Route] {
    var found: [Route] = []
    func treatment(_ agreement: Agreement) -> String? {
      guard agreement.records != nil else { return "inside a payload that nobody looks into" }
      // A part of what goes goes; of what is asked about whole, a part is enough. Unless the part is named for itself.
      let asked = steps(field, agreement)
      let isNamed = agreement.fields.contains { steps($0.name, agreement) == asked }
      func carries(_ name: String) -> Bool {
        let own = steps(name, agreement)
        return own.starts(with: asked) || asked.starts(with: own) && !isNamed
      }
      let carrying = agreement.fields.filter { (carries($0.name) || $0.category == field) && $0.action != .drop }
      return carrying.isEmpty
        ? nil : carrying.map { $0.name == field ? $0.treatment : "\($0.name) \($0.treatment)" }.joined(separator: ", ")
    }
    func follow(_ agreement: Agreement, _ holders: Set<String>, _ path: Route) {
      guard let how = treatment(agreement) else { return }
      for recipient in agreement.parties where recipient.role == .recipient {
        for provider in agreement.parties
        where provider.role == .provider && (path.steps.isEmpty || path.steps.last!.to == provider.id.text) {
          let next = Route(
            steps: path.steps + [("\(agreement.id) v\(agreement.version)", provider.id.text, recipient.id.text, how)])
          if recipient.id.text == agency { found.append(next) }
          guard agreement.onward.isAllowed, !holders.contains(recipient.id.text) else { continue }
          for onward in set.agreements where agreement.onward.underAgreements.contains(onward.id) {
            follow(onward, holders.union([provider.id.text, recipient.id.text]), next)
          }
        }
      }
    }
    for agreement in set.agreements where id == nil || agreement.id == id { follow(agreement, [], Route(steps: [])) }
    return found
  }
}
