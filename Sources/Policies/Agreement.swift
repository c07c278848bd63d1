// An agreement: one file, one version, one purpose. Who may send what about whom to whom, why, when, how and how much; and what
// the recipient may do with it. Every key with its meaning: docs/AGREEMENTS.md.
//
// Its identity is the SHA-256 of its canonical JSON (RFC 8785), so comments and layout are free. Unknown keys are
// refused: a rule that nobody evaluates would be a promise that nobody keeps. There are no expressions and no code.

import Foundation
import Sealing

/// A data-sharing agreement as loaded. Immutable; a change is a new version.
package struct Agreement: Equatable, Sendable {
  package enum Delivery: String, Sendable, CaseIterable {
    /// The sender's gateway pushes.
    case relay
    /// The recipient pulls.
    case collect
  }

  /// How the payload's records are written, and the schema that each of them keeps.
  package struct Records: Equatable, Sendable {
    package enum Format: String, Sendable, CaseIterable { case csv, ndjson, json, xml }
    package enum OnInvalid: String, Sendable, CaseIterable {
      case refuse
      case setAside = "set-aside"
    }

    package let format: Format
    /// In `policies/schemas/`; never a path.
    package let schema: String
    package let sha256: Digest
    /// JSON: pointer to the array of records. XML: path of a record.
    package let at: String
    package let delimiter: UInt8
    package let encoding: String
    /// What one record is, in words.
    package let unit: String?
    package let onInvalid: OnInvalid
    package let totals: [Total]
  }

  package static let partiesMax = 64
  package static let fieldsMax = 1000
  package static let predicatesMax = 100

  package let id: String
  package let version: Int64
  package let supersedes: Digest?
  package let title: String
  package let parties: [Party]
  package let purpose: Purpose
  package let legalBasis: LegalBasis
  package let subjects: Subjects
  package let consent: Consent
  package let notBefore: Date
  package let notAfter: Date
  /// When people must have looked at it again.
  package let reviewBy: Date
  /// `*` stands for any run of characters, everything else for itself.
  package let namePattern: String
  package let mediaType: String
  /// nil: the payload is opaque.
  package let records: Records?
  /// The allow-list. Empty only for opaque payloads.
  package let fields: [Field]
  package let include: [Predicate]
  package let exclude: [Predicate]
  package let aggregate: Aggregate?
  package let forbid: [Forbidden]
  package let labels: Labels?
  package let delivery: Delivery
  /// The hub that holds packages on their way and can open none of them; nil: the parties' gateways meet.
  package let via: AgencyID?
  package let windows: [DeliveryWindow]
  package let timeZone: String
  package let recordsMax: Int64
  package let bytesMax: Int64
  package let packagesPerDayMax: Int64
  package let timeToLive: Duration
  /// Kinds of key that a package may be sealed to.
  package let recipientKinds: [RecipientKind]
  package let wholeFileSHA256: Bool
  /// For a partner without a gateway: the download of all bytes counts as its receipt.
  package let downloadCounts: Bool
  package let retention: Retention
  package let onward: Onward
  package let transparency: Transparency
  package let approval: Approval
  /// The reference of the impact assessment.
  package let impactAssessment: String?
  /// SHA-256 of the canonical form: the agreement's identity.
  package let digest: Digest
  /// The canonical form.
  package let document: JSON

  /// Reads one agreement.
  ///
  /// - Throws: `PolicyError` naming line or key.
  package init(yaml: String) throws(PolicyError) {
    let document = try StrictYAML.parse(yaml)
    do {
      try self.init(document)
    } catch {
      throw PolicyError(error.detail)
    }
  }

  /// Nothing in an agreement may hide or move what stands beside it when people read it.
  private static func requirePrintable(_ value: JSON, at place: String) throws(SealingError) {
    switch value {
    case .string(let text):
      guard text.isPrintable else {
        throw SealingError(.documentInvalid, "\(place): control characters, or ones that change the direction of text")
      }
    case .array(let items): for item in items { try requirePrintable(item, at: place) }
    case .object(let members): for (name, member) in members { try requirePrintable(member, at: "\(place).\(name)") }
    default: break
    }
  }

  /// - Throws: `document.invalid` naming the key.
  package init(_ document: JSON) throws(SealingError) {
    try Self.requirePrintable(document, at: "agreement")
    var reader = try DocumentReader(document, at: "agreement")
    guard try reader.string("kind") == "DataSharingAgreement" else {
      throw reader.invalid("kind", "expected DataSharingAgreement")
    }
    guard try reader.integer("schemaVersion", 1...1_000_000) == 1 else {
      throw reader.invalid("schemaVersion", "only version 1 is understood")
    }
    id = try reader.string("id", bytesMax: 64)
    guard Self.isID(id) else { throw reader.invalid("id", "expected a-z, 0-9 and single dashes") }
    version = try reader.integer("version", 1...1_000_000)
    supersedes = try reader.sha256("supersedes")
    title = try reader.string("title", bytesMax: 512)
    let parties = try reader.each("parties", countMax: Self.partiesMax) { (r) throws(SealingError) in try Party(&r) }
    self.parties = parties
    guard Set(parties.map(\.id)).count == parties.count else {
      throw reader.invalid("parties", "an agency stands twice")
    }
    for role in [Role.provider, .recipient] where !parties.contains(where: { $0.role == role }) {
      throw reader.invalid("parties", "no \(role.rawValue)")
    }
    guard parties.count(where: { $0.role == .recipient }) == 1 else {
      throw reader.invalid(
        "parties", "several recipients: write an agreement for each, so that each has its own folder")
    }
    var purpose = try reader.object("purpose")
    self.purpose = try Purpose(&purpose)
    var legalBasis = try reader.object("legalBasis")
    self.legalBasis = try LegalBasis(&legalBasis)
    var subjects = try reader.object("subjects")
    self.subjects = try Subjects(&subjects)
    var consent = try reader.object("consent")
    self.consent = try Consent(&consent)

    var validity = try reader.object("validity")
    notBefore = try validity.date("notBefore")
    notAfter = try validity.date("notAfter")
    let review = try validity.string("reviewBy")
    guard let reviewBy = Timestamp.parse("\(review)T00:00:00Z") else {
      throw validity.invalid("reviewBy", "expected a date such as 2027-12-01")
    }
    self.reviewBy = reviewBy
    try validity.finish()
    guard notBefore < notAfter else { throw reader.invalid("validity", "notAfter is not after notBefore") }

    var dataset = try reader.object("dataset")
    namePattern = try dataset.string("namePattern")
    mediaType = try dataset.string("mediaType", bytesMax: 128)
    records = try Self.records(&dataset)
    try dataset.finish()

    fields = try reader.each("fields", countMax: Self.fieldsMax) { (r) throws(SealingError) in try Field(&r) }
    let filter = try reader.part("records") { (r) throws(SealingError) in
      (
        include: try r.each("include", countMax: Self.predicatesMax) { (p) throws(SealingError) in try Predicate(&p) },
        exclude: try r.each("exclude", countMax: Self.predicatesMax) { (p) throws(SealingError) in try Predicate(&p) },
        aggregate: try r.optional("aggregate") { (r, n) throws(SealingError) in
          var inner = try r.object(n)
          return try Aggregate(&inner)
        }
      )
    }
    (include, exclude, aggregate) = (filter?.include ?? [], filter?.exclude ?? [], filter?.aggregate)
    forbid = try reader.each("forbid", countMax: Self.predicatesMax) { (r) throws(SealingError) in try Forbidden(&r) }
    labels = try reader.optional("labels") { (r, n) throws(SealingError) in
      var inner = try r.object(n)
      return try Labels(&inner)
    }

    var delivery = try reader.object("delivery")
    self.delivery = try delivery.choice("mode")
    via = try delivery.optional("via") { (r, n) throws(SealingError) in try r.agency(n) }
    windows = try delivery.list("windows").map { (text) throws(SealingError) in
      guard let window = DeliveryWindow(text) else {
        throw delivery.invalid("windows", "expected such as \"mon 01:00-05:00\" or \"mon-fri 08:00-18:00\"")
      }
      return window
    }
    timeZone = try delivery.text("timeZone") ?? "UTC"
    guard TimeZone(identifier: timeZone) != nil else { throw delivery.invalid("timeZone", "expected an IANA zone") }
    recordsMax =
      try delivery.optional("maxRecords") { (r, n) throws(SealingError) in try r.integer(n, 1...JSON.integerMax) }
      ?? JSON.integerMax
    bytesMax = try delivery.integer("maxBytes", 1...BodyGeometry.plainBytesMax)
    packagesPerDayMax = try delivery.integer("maxPackagesPerDay", 1...100_000_000)
    guard let span = CalendarDuration(try delivery.string("timeToLive")), span.months == 0 else {
      throw delivery.invalid("timeToLive", "expected a duration such as PT48H or P5D")
    }
    timeToLive = .seconds(span.days * 86400 + span.seconds)
    wholeFileSHA256 = try delivery.flag("wholeFileSha256")
    downloadCounts = try delivery.flag("downloadCounts")
    guard !downloadCounts || self.delivery == .collect else {
      throw delivery.invalid("downloadCounts", "only for mode: collect")
    }
    guard !downloadCounts || via == nil else {
      throw delivery.invalid("downloadCounts", "a hub's word is no proof: not with via")
    }
    try delivery.finish()

    var kinds: [RecipientKind] = []
    var security = try reader.object("security")
    for name in try security.strings("recipients", countMax: 2) {
      guard let kind = RecipientKind(rawValue: name), !kinds.contains(kind) else {
        throw security.invalid("recipients", "expected x25519, mlkem768x25519 or both")
      }
      kinds.append(kind)
    }
    guard !kinds.isEmpty else { throw security.invalid("recipients", "at least one kind of key") }
    recipientKinds = kinds
    try security.finish()

    var retention = try reader.object("retention")
    self.retention = try Retention(&retention)
    var onward = try reader.object("onwardTransfer")
    self.onward = try Onward(&onward)
    var transparency = try reader.object("transparency")
    self.transparency = try Transparency(&transparency)
    var approval = try reader.object("approval")
    self.approval = try Approval(&approval)
    impactAssessment = try reader.part("impactAssessment") { (r) throws(SealingError) in
      let reference = try r.string("reference")
      _ = try (r.sha256("sha256"), r.string("completed"), r.text("summary", bytesMax: 2048))
      return reference
    }
    try reader.finish()
    self.document = document
    digest = Digest(of: document.canonical)
    try checkCrossRules(reader)
  }

  /// What no key can say alone.
  private func checkCrossRules(_ reader: DocumentReader) throws(SealingError) {
    if let via, party(via, as: .processor) == nil {
      throw reader.invalid("delivery.via", "the hub is a party with role processor")
    }
    if legalBasis.kind == .consent, consent.model != .optIn {
      throw reader.invalid("consent.model", "the legal basis is consent, so it is opt-in")
    }
    if consent.model != .none, subjects.identifier == nil {
      throw reader.invalid("subjects.identifier", "consent is looked up by it")
    }
    if records == nil {
      guard fields.isEmpty, include.isEmpty, exclude.isEmpty, forbid.isEmpty, aggregate == nil, consent.model == .none
      else { throw reader.invalid("dataset.format", "an opaque payload has no fields, records or consent to look at") }
    } else if fields.isEmpty {
      throw reader.invalid("fields", "missing: what is not named is dropped")
    }
    guard Set(fields.map(\.name)).count == fields.count else { throw reader.invalid("fields", "a field stands twice") }
    if fields.contains(where: \.isSpecial) {
      guard legalBasis.specialCategoryCondition != nil else {
        throw reader.invalid("legalBasis.specialCategoryCondition", "missing: a field is of a special category")
      }
      guard impactAssessment != nil else {
        throw reader.invalid("impactAssessment", "missing: a field is of a special category")
      }
      guard recipientKinds == [.mlkem768x25519] else {
        throw reader.invalid("security.recipients", "a field is of a special category, so only mlkem768x25519")
      }
    }
    if let aggregate {
      let output = Set(aggregate.by + [aggregate.measure] + [aggregate.distinctAs].compactMap { $0 })
      guard Set(fields.filter { $0.action != .drop }.map(\.name)) == output else {
        throw reader.invalid(
          "records.aggregate",
          "fields are exactly those of by, the measure, and countAs: \(output.sorted().joined(separator: ", "))")
      }
      guard fields.first(where: { $0.name == aggregate.measure })?.action == .pass,
        aggregate.by.allSatisfy({ name in
          let action = fields.first { $0.name == name }?.action
          return action == .pass || action == .generalise
        })
      else { throw reader.invalid("records.aggregate", "the measure passes, and fields of by pass or are generalised") }
    }
    if let labels, let package = labels.rank(labels.package), let ceiling = labels.rank(labels.ceiling) {
      guard package <= ceiling else { throw reader.invalid("labels.package", "above the ceiling") }
      // Added up, records lose the label of each.
      for field in fields where aggregate == nil {
        guard let label = field.label, field.action != .drop else { continue }
        guard let rank = labels.rank(label), rank <= package else {
          throw reader.invalid("labels.package", "below the label of \(field.name)")
        }
      }
    }
  }

  private static func records(_ dataset: inout DocumentReader) throws(SealingError) -> Records? {
    let name = try dataset.text("format") ?? "opaque"
    guard name != "opaque" else { return nil }
    guard let format = Records.Format(rawValue: name) else {
      throw dataset.invalid("format", "expected csv, ndjson, json, xml or opaque")
    }
    let path = try dataset.string("schema")
    let file = path.hasPrefix("schemas/") ? String(path.dropFirst("schemas/".count)) : ""
    guard FileName.fault(file) == nil else { throw dataset.invalid("schema", "expected schemas/NAME") }
    guard let sha256 = try dataset.sha256("schemaSha256") else { throw dataset.invalid("schemaSha256", "missing") }
    let at = try dataset.text("recordsAt") ?? ""
    guard at.isEmpty || at.hasPrefix("/"), at.isEmpty || format == .json || format == .xml else {
      throw dataset.invalid("recordsAt", "expected a JSON pointer or the path of an XML element, beginning with /")
    }
    let delimiter = try dataset.text("delimiter") ?? ","
    guard [",", ";", "|", "\t"].contains(delimiter), let byte = delimiter.utf8.first else {
      throw dataset.invalid("delimiter", "expected a comma, a semicolon, a bar or a tab")
    }
    let encoding = try dataset.text("encoding") ?? "utf-8"
    guard ["utf-8", "windows-1252", "utf-16le", "utf-16be"].contains(encoding) else {
      throw dataset.invalid("encoding", "expected utf-8, windows-1252, utf-16le or utf-16be")
    }
    return Records(
      format: format, schema: file, sha256: sha256, at: at, delimiter: byte, encoding: encoding,
      unit: try dataset.text("recordUnit"), onInvalid: try dataset.option("onInvalid") ?? .refuse,
      totals: try dataset.each("totals", countMax: 16) { (r) throws(SealingError) in try Total(&r) })
  }

  /// Lower-case letters, digits and single dashes: also a directory name.
  package static func isID(_ text: String) -> Bool {
    (1...64).contains(text.utf8.count)
      && text.utf8.split(separator: 45, omittingEmptySubsequences: false).allSatisfy { part in
        !part.isEmpty && part.allSatisfy { (97...122).contains($0) || (48...57).contains($0) }
      }
  }

  /// Whether packages wait at their sender's own gateway until the recipient comes.
  package var waitsAtSender: Bool { delivery == .collect && via == nil }

  package func party(_ id: AgencyID, as role: Role) -> Party? {
    parties.first { $0.id == id && $0.role == role }
  }

  /// Whether `name` fits `namePattern`. Linear in both, whatever the number of stars.
  package func allows(name: String) -> Bool {
    let pattern = Array(namePattern.unicodeScalars)
    let text = Array(name.unicodeScalars)
    var (p, t, star, mark) = (0, 0, -1, 0)
    while t < text.count {
      if p < pattern.count, pattern[p] == "*" {
        (star, mark) = (p, t)
        p += 1
      } else if p < pattern.count, pattern[p] == text[t] {
        (p, t) = (p + 1, t + 1)
      } else if star >= 0 {
        mark += 1
        (p, t) = (star + 1, mark)
      } else {
        return false
      }
    }
    return pattern[p...].allSatisfy { $0 == "*" }
  }
}

/// A stretch of every week in local time: `mon 01:00-05:00`, `mon-fri 08:00-18:00`. Half-open.
package struct DeliveryWindow: Equatable, Sendable, CustomStringConvertible {
  private static let names = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
  private let days: Set<Int>
  private let minutes: Range<Int>
  package let description: String

  init?(_ text: String) {
    let pattern = /([a-z]{3})(?:-([a-z]{3}))? ([0-2][0-9]):([0-5][0-9])-([0-2][0-9]):([0-5][0-9])/
    guard let match = text.wholeMatch(of: pattern), let first = Self.names.firstIndex(of: String(match.1)),
      let last = Self.names.firstIndex(of: String(match.2 ?? match.1)), let h1 = Int(match.3), let m1 = Int(match.4),
      let h2 = Int(match.5), let m2 = Int(match.6), h1 * 60 + m1 < h2 * 60 + m2, h2 * 60 + m2 <= 1440
    else { return nil }
    var days: Set<Int> = [first]
    var day = first
    while day != last {
      day = (day + 1) % 7
      days.insert(day)
    }
    self.days = days
    minutes = h1 * 60 + m1..<h2 * 60 + m2
    description = text
  }

  package func contains(_ instant: Date, in zone: String) -> Bool {
    var calendar = Calendar(identifier: .gregorian)
    calendar.timeZone = TimeZone(identifier: zone) ?? TimeZone(secondsFromGMT: 0)!
    let parts = calendar.dateComponents([.weekday, .hour, .minute], from: instant)
    return days.contains((parts.weekday ?? 1) - 1) && minutes.contains((parts.hour ?? 0) * 60 + (parts.minute ?? 0))
  }
}
