// The parts of an agreement, each with its reader. Names and meanings: docs/AGREEMENTS.md.

import Foundation
import Sealing

extension Agreement {
  package enum Role: String, Sendable, CaseIterable { case provider, recipient, processor, registrar }

  package struct Party: Equatable, Sendable {
    package let id: AgencyID
    package let name: String
    package let role: Role
    package let registryCode: String?
    /// The system behind the gateway, as the person's report names it.
    package let system: String?
    package let contact: String?
    /// How many different people must accept, in different roles of these.
    package let acceptancesRequired: Int
    package let roles: [String]

    init(_ reader: inout DocumentReader) throws(SealingError) {
      id = try reader.agency("id")
      name = try reader.string("name")
      role = try reader.choice("role")
      registryCode = try reader.text("registryCode")
      system = try reader.text("system")
      contact = try reader.text("contact")
      var signatories = try reader.object("signatories")
      roles = try signatories.strings("roles", countMax: 16)
      guard !roles.isEmpty, Set(roles).count == roles.count, roles.allSatisfy(Agreement.isID) else {
        throw signatories.invalid("roles", "expected different names of a-z, 0-9 and single dashes")
      }
      acceptancesRequired = Int(try signatories.integer("required", 1...Int64(roles.count)))
      try signatories.finish()
      try reader.finish()
    }
  }

  package struct Purpose: Equatable, Sendable {
    package let id: String
    package let text: String
    package let dpvPurpose: String?
    package let publicFunction: String?
    package let benefits: String?
    package let notFor: [String]

    init(_ reader: inout DocumentReader) throws(SealingError) {
      id = try reader.string("id", bytesMax: 64)
      guard Agreement.isID(id) else { throw reader.invalid("id", "expected a-z, 0-9 and single dashes") }
      text = try reader.string("text", bytesMax: 2048)
      dpvPurpose = try reader.text("dpvPurpose")
      publicFunction = try reader.text("publicFunction")
      benefits = try reader.text("benefits", bytesMax: 2048)
      notFor = try reader.list("notFor")
      try reader.finish()
    }
  }

  package struct LegalBasis: Equatable, Sendable {
    package enum Kind: String, Sendable, CaseIterable {
      case legalObligation = "dpv:LegalObligation"
      case officialAuthority = "dpv:OfficialAuthorityOfController"
      case publicInterest = "dpv:PublicInterest"
      case consent = "dpv:Consent"
      case vitalInterest = "dpv:VitalInterest"
      case contract = "dpv:ContractPerformance"
      case legitimateInterest = "dpv:LegitimateInterest"
    }
    package let kind: Kind
    package let specialCategoryCondition: String?
    package let citations: [String]
    /// Working days that the recipient must give a person before acting against them; nil: no such duty.
    package let adverseActionDays: Int64?

    init(_ reader: inout DocumentReader) throws(SealingError) {
      kind = try reader.choice("type")
      specialCategoryCondition = try reader.text("specialCategoryCondition", bytesMax: 2048)
      var citations: [String] = []
      for var citation in try reader.objects("citations", countMax: 64) {
        citations.append(try citation.string("text", bytesMax: 2048))
        _ = try citation.text("url", bytesMax: 2048)
        try citation.finish()
      }
      guard !citations.isEmpty else { throw reader.invalid("citations", "at least one") }
      self.citations = citations
      adverseActionDays =
        try reader.part("adverseActionNotice") { (r) throws(SealingError) in
          let isRequired = try r.bool("required")
          let days = try r.optional("workingDays") { (r, n) throws(SealingError) in try r.integer(n, 0...365) }
          return isRequired ? days ?? 0 : nil
        } ?? nil
      try reader.finish()
    }
  }

  package struct Subjects: Equatable, Sendable {
    package enum Impetus: String, Sendable, CaseIterable {
      case dataSubject = "data-subject"
      case publicBody = "public-body"
    }
    package enum Frequency: String, Sendable, CaseIterable {
      case once = "once-off"
      case ongoing
    }
    package let classes: [String]
    package let impetus: Impetus
    package let frequency: Frequency
    /// The field that names the person a record is about.
    package let identifier: String?
    /// What kind of number that is.
    package let identifierType: String?
    package let includesChildren: Bool

    init(_ reader: inout DocumentReader) throws(SealingError) {
      classes = try reader.strings("classes", countMax: 64)
      impetus = try reader.choice("impetus")
      frequency = try reader.choice("frequency")
      let identifier = try reader.part("identifier") { (r) throws(SealingError) in
        (field: try r.string("field"), type: try r.string("type", bytesMax: 64))
      }
      (self.identifier, identifierType) = (identifier?.field, identifier?.type)
      includesChildren = try reader.flag("includesChildren")
      try reader.finish()
    }
  }

  package struct Consent: Equatable, Sendable {
    package enum Model: String, Sendable, CaseIterable {
      /// Nobody is asked.
      case none
      /// Silence is no.
      case optIn = "opt-in"
      /// Silence is yes.
      case optOut = "opt-out"
    }
    package enum OnStale: String, Sendable, CaseIterable { case hold, deny }
    package enum OnMissing: String, Sendable, CaseIterable {
      case withhold = "withhold-record"
      case deny = "deny-package"
    }
    package enum OnWithdrawal: String, Sendable, CaseIterable {
      case reseal
      case cancel = "cancel-package"
    }
    /// What a recipient is asked to do with what it has.
    package enum Asked: String, Sendable, CaseIterable {
      case inform, restrict, delete
      case stopUse = "stop-use"
    }

    package let model: Model
    package let purposeRef: String?
    package let noticeID: String?
    /// How long a grant holds at most.
    package let validityMax: CalendarDuration?
    /// The age of the last sign of life of the consent registry beyond which nothing is guessed.
    package let stalenessMax: CalendarDuration?
    package let onStale: OnStale
    package let onMissing: OnMissing
    package let withdrawalMethod: String?
    package let onWithdrawal: OnWithdrawal
    package let asked: Asked
    package let actWithin: CalendarDuration?
    package let representatives: [String]

    init(_ reader: inout DocumentReader) throws(SealingError) {
      model = try reader.choice("model")
      purposeRef = try reader.text("purposeRef", bytesMax: 64)
      noticeID = try reader.text("noticeId")
      _ = try reader.sha256("noticeSha256")
      validityMax = try reader.span("maxValidity")
      stalenessMax = try reader.span("maxStaleness")
      onStale = try reader.option("onStale") ?? .hold
      let onMissing: OnMissing? = try reader.option("onMissing")
      self.onMissing = onMissing ?? .withhold
      withdrawalMethod = try reader.text("withdrawalMethod", bytesMax: 1024)
      let withdrawal = try reader.part("onWithdrawal") { (r) throws(SealingError) in
        (
          spooled: try r.choice("spooled", OnWithdrawal.self), asked: try r.choice("delivered", Asked.self),
          within: try r.span("actWithin")
        )
      }
      onWithdrawal = withdrawal?.spooled ?? .cancel
      asked = withdrawal?.asked ?? .inform
      actWithin = withdrawal?.within
      representatives = try reader.list("representatives")
      let known = ["parent", "guardian", "attorney"]
      guard representatives.allSatisfy({ known.contains($0) }) else {
        throw reader.invalid("representatives", "expected \(known.joined(separator: ", "))")
      }
      switch model {
      case .none:
        guard purposeRef == nil, withdrawal == nil, stalenessMax == nil, validityMax == nil else {
          throw reader.invalid("model", "none has no further keys: nobody is asked")
        }
      case .optIn, .optOut:
        guard purposeRef != nil, stalenessMax != nil, withdrawalMethod != nil, withdrawal != nil else {
          throw reader.invalid(
            "model", "\(model.rawValue) needs purposeRef, maxStaleness, withdrawalMethod and onWithdrawal")
        }
        if model == .optIn, noticeID == nil || validityMax == nil || onMissing == nil {
          throw reader.invalid("model", "opt-in needs noticeId, maxValidity and onMissing")
        }
        if model == .optOut, onMissing != nil { throw reader.invalid("onMissing", "opt-out: silence is yes") }
      }
      try reader.finish()
    }
  }

  /// `field op value`: the only expression there is.
  package struct Predicate: Equatable, Sendable {
    package static let operators = [
      "eq", "ne", "in", "not-in", "lt", "le", "gt", "ge", "exists", "absent", "within", "has-any",
    ]
    package let field: String
    package let comparison: String
    /// Strings, integers, booleans.
    package let values: [JSON]

    init(_ reader: inout DocumentReader) throws(SealingError) {
      field = try reader.string("field")
      comparison = try reader.string("op")
      guard Self.operators.contains(comparison) else {
        throw reader.invalid("op", "expected one of \(Self.operators.joined(separator: ", "))")
      }
      switch try reader.any("value") {
      case nil: values = []
      case .array(let items)?: values = items
      case let value?: values = [value]
      }
      for value in values {
        switch value {
        case .string, .integer, .bool: continue
        default: throw reader.invalid("value", "expected strings, whole numbers, true or false")
        }
      }
      try reader.finish()
    }

    /// Whether it holds for all that another one of the same field holds for, and for more; nil when that cannot be told.
    package func isWider(than other: Predicate) -> Bool? {
      guard field == other.field, comparison == other.comparison, self != other else { return nil }
      func either(_ mine: Bool, _ theirs: Bool) -> Bool? { mine == theirs ? nil : mine }
      let contains = { (all: [JSON], some: [JSON]) in some.allSatisfy { all.contains($0) } }
      switch (comparison, values.first, other.values.first) {
      case ("within", .string(let mine)?, .string(let theirs)?):
        guard let mine = CalendarDuration(mine), let theirs = CalendarDuration(theirs) else { return nil }
        let epoch = Date(timeIntervalSince1970: 0)
        return either(mine.after(epoch) > theirs.after(epoch), mine.after(epoch) < theirs.after(epoch))
      case ("lt", .integer(let mine)?, .integer(let theirs)?), ("le", .integer(let mine)?, .integer(let theirs)?):
        return either(mine > theirs, mine < theirs)
      case ("gt", .integer(let mine)?, .integer(let theirs)?), ("ge", .integer(let mine)?, .integer(let theirs)?):
        return either(mine < theirs, mine > theirs)
      case ("in", _, _), ("has-any", _, _):
        return either(contains(values, other.values), contains(other.values, values))
      case ("not-in", _, _): return either(contains(other.values, values), contains(values, other.values))
      default: return nil
      }
    }

    package var text: String {
      let words = values.map { value in
        switch value {
        case .string(let text): text
        case .integer(let number): "\(number)"
        case .bool(let bool): "\(bool)"
        default: ""
        }
      }
      return ([field, comparison] + (words.isEmpty ? [] : [words.joined(separator: ", ")])).joined(separator: " ")
    }
  }

  package struct Field: Equatable, Sendable {
    package enum Action: String, Sendable, CaseIterable { case pass, drop, mask, generalise, pseudonymise, constant }
    package enum Necessity: String, Sendable, CaseIterable { case required, optional }
    package enum PseudonymScope: String, Sendable, CaseIterable { case agreement, package }
    package static let granularities = ["year", "month", "date", "hour", "postcode-outward", "age-band-5"]

    package let name: String
    package let title: String?
    package let category: String
    package let isSpecial: Bool
    package let necessity: Necessity
    package let action: Action
    /// For generalise.
    package let granularity: String?
    package let pseudonymScope: PseudonymScope
    /// For constant.
    package let value: String?
    package let label: String?

    init(_ reader: inout DocumentReader) throws(SealingError) {
      name = try reader.string("name")
      title = try reader.text("title")
      category = try reader.string("category", bytesMax: 64)
      let parts = category.split(separator: ":", omittingEmptySubsequences: false)
      guard parts.count == 2, ["pd", "dpv", "ext"].contains(parts[0]), !parts[1].isEmpty,
        parts[1].utf8.allSatisfy({ (65...90).contains($0 & 0xDF) })
      else {
        throw reader.invalid("category", "expected pd:…, dpv:… or ext:…")
      }
      isSpecial = try reader.flag("special")
      necessity = try reader.option("necessity") ?? .optional
      action = try reader.choice("action")
      granularity = try reader.text("to")
      pseudonymScope = try reader.option("pseudonymScope") ?? .agreement
      value = try reader.text("value")
      label = try reader.text("label")
      guard (action == .generalise) == (granularity != nil) else {
        throw reader.invalid("to", "stands with generalise, and only there")
      }
      if let granularity, !Self.granularities.contains(granularity) {
        throw reader.invalid("to", "expected one of \(Self.granularities.joined(separator: ", "))")
      }
      guard (action == .constant) == (value != nil) else {
        throw reader.invalid("value", "stands with constant, and only there")
      }
      try reader.finish()
    }

    /// How it goes, in words.
    package var treatment: String {
      switch action {
      case .pass: "as it is"
      case .drop: "not at all"
      case .mask: "masked"
      case .generalise: "only its \(granularity ?? "")"
      case .pseudonymise: "as a pseudonym, the same within one \(pseudonymScope.rawValue)"
      case .constant: "always \"\(value ?? "")\""
      }
    }
  }

  package struct Aggregate: Equatable, Sendable {
    package enum Function: String, Sendable, CaseIterable { case sum, mean, count }
    package let by: [String]
    package let measure: String
    package let function: Function
    package let groupSizeMin: Int64
    package let distinct: String
    package let distinctAs: String?

    init(_ reader: inout DocumentReader) throws(SealingError) {
      by = try reader.strings("by", countMax: 16)
      guard !by.isEmpty else { throw reader.invalid("by", "at least one field") }
      measure = try reader.string("measure")
      function = try reader.choice("function")
      groupSizeMin = try reader.integer("minGroupSize", 2...1_000_000)
      distinct = try reader.string("countDistinct")
      distinctAs = try reader.text("countAs")
      try reader.finish()
    }
  }

  package struct Forbidden: Equatable, Sendable {
    package let id: String
    package let predicate: Predicate
    package let because: String

    init(_ reader: inout DocumentReader) throws(SealingError) {
      id = try reader.string("id", bytesMax: 64)
      guard Agreement.isID(id) else { throw reader.invalid("id", "expected a-z, 0-9 and single dashes") }
      var when = try reader.object("when")
      predicate = try Predicate(&when)
      because = try reader.string("because", bytesMax: 1024)
      try reader.finish()
    }
  }

  package struct Total: Equatable, Sendable {
    package enum Rule: String, Sendable, CaseIterable { case recompute, refuse, leave }
    package let member: String
    package let field: String?
    package let rule: Rule

    init(_ reader: inout DocumentReader) throws(SealingError) {
      member = try reader.string("member")
      field = try reader.text("sumOf")
      rule = try reader.choice("rule")
      try reader.finish()
    }
  }

  package struct Labels: Equatable, Sendable {
    /// Levels from the lowest. They compare only within a scheme.
    package static let schemes: [String: [String]] = [
      "nz-pspr": ["UNCLASSIFIED", "IN-CONFIDENCE", "SENSITIVE", "RESTRICTED", "CONFIDENTIAL", "SECRET", "TOP SECRET"],
      "uk-gsc": ["OFFICIAL", "OFFICIAL-SENSITIVE", "SECRET", "TOP SECRET"],
      "au-pspf": ["UNOFFICIAL", "OFFICIAL", "OFFICIAL: Sensitive", "PROTECTED", "SECRET", "TOP SECRET"],
      "hl7-hcs": ["U", "L", "M", "N", "R", "V"],
    ]
    package let scheme: String
    package let package: String
    package let ceiling: String
    package let caveats: [String]

    init(_ reader: inout DocumentReader) throws(SealingError) {
      scheme = try reader.string("scheme")
      guard let levels = Self.schemes[scheme] else {
        throw reader.invalid("scheme", "expected one of \(Self.schemes.keys.sorted().joined(separator: ", "))")
      }
      package = try reader.string("package")
      ceiling = try reader.string("ceiling")
      for (name, level) in [("package", package), ("ceiling", ceiling)] where !levels.contains(level) {
        throw reader.invalid(name, "expected one of \(levels.joined(separator: ", "))")
      }
      caveats = try reader.list("caveats")
      for name in ["equivalence", "dtpr"] { _ = try reader.any(name) }
      try reader.finish()
    }

    /// The level's place in its scheme; nil when the scheme has no such level.
    package func rank(_ level: String) -> Int? { Self.schemes[scheme]?.firstIndex(of: level) }
  }

  package struct Retention: Equatable, Sendable {
    package let recipientDeleteAfter: CalendarDuration
    package let derivedDeleteAfter: CalendarDuration?
    package let confirmsDeletion: Bool
    package let disposalMethod: String?

    init(_ reader: inout DocumentReader) throws(SealingError) {
      guard let after = try reader.span("recipientDeleteAfter") else {
        throw reader.invalid("recipientDeleteAfter", "missing")
      }
      recipientDeleteAfter = after
      derivedDeleteAfter = try reader.span("derivedDeleteAfter")
      confirmsDeletion = try reader.flag("confirmDeletion")
      disposalMethod = try reader.text("disposalMethod")
      try reader.finish()
    }
  }

  package struct Onward: Equatable, Sendable {
    package let isAllowed: Bool
    package let to: [String]
    package let underAgreements: [String]

    init(_ reader: inout DocumentReader) throws(SealingError) {
      isAllowed = try reader.bool("allowed")
      to = try reader.list("to")
      underAgreements = try reader.list("underAgreements")
      guard isAllowed || (to.isEmpty && underAgreements.isEmpty) else {
        throw reader.invalid("allowed", "false, yet there are agencies or agreements")
      }
      try reader.finish()
    }
  }

  package struct Transparency: Equatable, Sendable {
    package enum Report: String, Sendable, CaseIterable {
      case perRecord = "per-record"
      case aggregateOnly = "aggregate-only"
      case exempt
    }
    /// One plain sentence for the person.
    package let action: String
    package let report: Report
    package let exemption: String?
    package let privacyNotice: String
    package let complaintTo: String
    package let registers: [String]

    init(_ reader: inout DocumentReader) throws(SealingError) {
      action = try reader.string("action", bytesMax: 512)
      report = try reader.choice("subjectReport")
      exemption = try reader.part("exemption") { (r) throws(SealingError) in
        let citation = try r.string("citation", bytesMax: 1024)
        _ = try r.text("until")
        return citation
      }
      privacyNotice = try reader.string("privacyNoticeUrl", bytesMax: 1024)
      complaintTo = try reader.string("complaintTo")
      registers = try reader.list("register")
      guard report != .exempt || exemption != nil else {
        throw reader.invalid("exemption", "exempt needs the law that says so")
      }
      try reader.finish()
    }
  }

  package struct Approval: Equatable, Sendable {
    package enum Mode: String, Sendable, CaseIterable {
      case automatic
      case first = "first-package"
      case every = "every-package"
      case overThreshold = "over-threshold"
    }
    package let mode: Mode
    package let approvers: Int64
    package let threshold: Int64
    package let expiresAfter: CalendarDuration?

    init(_ reader: inout DocumentReader) throws(SealingError) {
      mode = try reader.choice("mode")
      approvers = try reader.optional("approvers") { (r, n) throws(SealingError) in try r.integer(n, 1...5) } ?? 1
      let threshold = try reader.optional("thresholdRecords") { (r, n) throws(SealingError) in
        try r.integer(n, 1...JSON.integerMax)
      }
      self.threshold = threshold ?? 0
      expiresAfter = try reader.span("expiresAfter")
      guard mode == .automatic || expiresAfter != nil else { throw reader.invalid("expiresAfter", "missing") }
      guard (mode == .overThreshold) == (threshold != nil) else {
        throw reader.invalid("thresholdRecords", "stands with over-threshold, and only there")
      }
      try reader.finish()
    }
  }
}

extension DocumentReader {
  /// An optional string.
  mutating func text(_ name: String, bytesMax: Int = 256) throws(SealingError) -> String? {
    try optional(name) { (r, n) throws(SealingError) in try r.string(n, bytesMax: bytesMax) }
  }

  /// true where it stands and says so.
  mutating func flag(_ name: String) throws(SealingError) -> Bool {
    try optional(name) { (r, n) throws(SealingError) in try r.bool(n) } ?? false
  }

  mutating func list(_ name: String) throws(SealingError) -> [String] {
    try optional(name) { (r, n) throws(SealingError) in try r.strings(n, countMax: 64) } ?? []
  }

  mutating func option<Value: RawRepresentable & CaseIterable>(_ name: String) throws(SealingError) -> Value?
  where Value.RawValue == String {
    try optional(name) { (r, n) throws(SealingError) in try r.choice(n, Value.self) }
  }

  /// An object, read to its end.
  mutating func part<Value>(
    _ name: String, _ read: (inout DocumentReader) throws(SealingError) -> Value
  ) throws(SealingError) -> Value? {
    try optional(name) { (r, n) throws(SealingError) in
      var inner = try r.object(n)
      let value = try read(&inner)
      try inner.finish()
      return value
    }
  }

  mutating func span(_ name: String) throws(SealingError) -> CalendarDuration? {
    try optional(name) { (r, n) throws(SealingError) in
      guard let span = CalendarDuration(try r.string(n)) else {
        throw r.invalid(n, "expected a duration such as P60D, P13M or PT15M")
      }
      return span
    }
  }

  mutating func sha256(_ name: String) throws(SealingError) -> Digest? {
    try optional(name) { (r, n) throws(SealingError) in
      let sum = try r.string(n)
      guard sum.hasPrefix("sha256:"), let digest = Digest(hex: String(sum.dropFirst("sha256:".count))) else {
        throw r.invalid(n, "expected sha256: and 64 hexadecimal digits")
      }
      return digest
    }
  }

  /// Takes objects of a list, each read to its end by `read`.
  mutating func each<Value>(
    _ name: String, countMax: Int, _ read: (inout DocumentReader) throws(SealingError) -> Value
  ) throws(SealingError) -> [Value] {
    try optional(name) { (r, n) throws(SealingError) in
      var values: [Value] = []
      for var item in try r.objects(n, countMax: countMax) { values.append(try read(&item)) }
      return values
    } ?? []
  }
}
