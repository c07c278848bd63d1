// An agreement: one file, one purpose, in its first form. Who may send what to whom, when, how and how much.
//
// Its identity is the SHA-256 of its canonical JSON (RFC 8785), so comments and layout are free. Unknown keys are
// refused: a rule that nobody evaluates would be a promise that nobody keeps.

import Foundation
import Sealing

/// A data-sharing agreement as loaded. Immutable; a change is a new version.
package struct Agreement: Equatable, Sendable {
  package enum Role: String, Sendable, CaseIterable { case provider, recipient }

  package struct Party: Equatable, Sendable {
    package let id: AgencyID
    package let name: String
    package let role: Role
    package let contact: String?
  }

  package enum Delivery: String, Sendable, CaseIterable {
    /// The sender's gateway pushes.
    case relay
    /// The recipient pulls.
    case collect
  }

  /// How the payload's records are written, and the schema that each of them keeps.
  package struct Records: Equatable, Sendable {
    package enum Format: String, Sendable, CaseIterable { case csv, ndjson, json, xml }

    package let format: Format
    /// In `policies/schemas/`; never a path.
    package let schema: String
    package let sha256: Digest
    /// JSON: pointer to the array of records. XML: path of a record.
    package let at: String
    package let delimiter: UInt8
    package let encoding: String
  }

  package static let partiesMax = 64

  package let id: String
  package let version: Int64
  package let title: String
  package let parties: [Party]
  package let purpose: String
  package let notBefore: Date
  package let notAfter: Date
  /// `*` stands for any run of characters, everything else for itself.
  package let namePattern: String
  package let mediaType: String
  /// nil: the payload is opaque.
  package let records: Records?
  package let delivery: Delivery
  package let bytesMax: Int64
  package let packagesPerDayMax: Int64
  package let timeToLive: Duration
  /// Kinds of key that a package may be sealed to.
  package let recipientKinds: [RecipientKind]
  package let wholeFileSHA256: Bool
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

  private init(_ document: JSON) throws(SealingError) {
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
    title = try reader.string("title", bytesMax: 512)
    var parties: [Party] = []
    for var party in try reader.objects("parties", countMax: Self.partiesMax) {
      parties.append(
        Party(
          id: try party.agency("id"), name: try party.string("name"), role: try party.choice("role"),
          contact: try party.optional("contact") { (r, n) throws(SealingError) in try r.string(n) }))
      try party.finish()
    }
    self.parties = parties
    guard Set(parties.map(\.id)).count == parties.count else {
      throw reader.invalid("parties", "an agency stands twice")
    }
    for role in Role.allCases where !parties.contains(where: { $0.role == role }) {
      throw reader.invalid("parties", "no \(role.rawValue)")
    }

    var purpose = try reader.object("purpose")
    _ = try purpose.string("id")
    self.purpose = try purpose.string("text", bytesMax: 2048)
    try purpose.finish()

    var validity = try reader.object("validity")
    notBefore = try validity.date("notBefore")
    notAfter = try validity.date("notAfter")
    try validity.finish()
    guard notBefore < notAfter else { throw reader.invalid("validity", "notAfter is not after notBefore") }

    var dataset = try reader.object("dataset")
    namePattern = try dataset.string("namePattern")
    mediaType = try dataset.string("mediaType", bytesMax: 128)
    records = try Self.records(&dataset)
    try dataset.finish()

    var delivery = try reader.object("delivery")
    self.delivery = try delivery.choice("mode")
    bytesMax = try delivery.integer("maxBytes", 1...BodyGeometry.plainBytesMax)
    packagesPerDayMax = try delivery.integer("maxPackagesPerDay", 1...100_000_000)
    guard let timeToLive = ISODuration.parse(try delivery.string("timeToLive")), timeToLive >= .seconds(1) else {
      throw delivery.invalid("timeToLive", "expected a duration such as PT48H or P5D")
    }
    self.timeToLive = timeToLive
    wholeFileSHA256 = try delivery.optional("wholeFileSha256") { (r, n) throws(SealingError) in try r.bool(n) } ?? false
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
    try reader.finish()
    self.document = document
    digest = Digest(of: document.canonical)
  }

  private static func records(_ dataset: inout DocumentReader) throws(SealingError) -> Records? {
    let name = try dataset.optional("format") { (r, n) throws(SealingError) in try r.string(n) } ?? "opaque"
    guard name != "opaque" else { return nil }
    guard let format = Records.Format(rawValue: name) else {
      throw dataset.invalid("format", "expected csv, ndjson, json, xml or opaque")
    }
    let path = try dataset.string("schema")
    let file = path.hasPrefix("schemas/") ? String(path.dropFirst("schemas/".count)) : ""
    guard FileName.fault(file) == nil else { throw dataset.invalid("schema", "expected schemas/NAME") }
    let sum = try dataset.string("schemaSha256")
    guard sum.hasPrefix("sha256:"), let sha256 = Digest(hex: String(sum.dropFirst("sha256:".count))) else {
      throw dataset.invalid("schemaSha256", "expected sha256: and 64 hexadecimal digits")
    }
    let at = try dataset.optional("recordsAt") { (r, n) throws(SealingError) in try r.string(n) } ?? ""
    guard at.isEmpty || at.hasPrefix("/"), at.isEmpty || format == .json || format == .xml else {
      throw dataset.invalid("recordsAt", "expected a JSON pointer or the path of an XML element, beginning with /")
    }
    let delimiter = try dataset.optional("delimiter") { (r, n) throws(SealingError) in try r.string(n) } ?? ","
    guard delimiter.utf8.count == 1, let byte = delimiter.utf8.first, byte == 9 || (32..<127).contains(byte), byte != 34
    else {
      throw dataset.invalid("delimiter", "expected one ASCII character")
    }
    let encoding = try dataset.optional("encoding") { (r, n) throws(SealingError) in try r.string(n) } ?? "utf-8"
    guard ["utf-8", "windows-1252", "utf-16le", "utf-16be"].contains(encoding) else {
      throw dataset.invalid("encoding", "expected utf-8, windows-1252, utf-16le or utf-16be")
    }
    return Records(format: format, schema: file, sha256: sha256, at: at, delimiter: byte, encoding: encoding)
  }

  /// Lower-case letters, digits and single dashes: also a directory name.
  package static func isID(_ text: String) -> Bool {
    (1...64).contains(text.utf8.count)
      && text.utf8.split(separator: 45, omittingEmptySubsequences: false).allSatisfy { part in
        !part.isEmpty && part.allSatisfy { (97...122).contains($0) || (48...57).contains($0) }
      }
  }

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

/// ISO 8601 durations of days, hours, minutes and seconds: `P5D`, `PT48H`, `P1DT12H`. Months and years have no fixed length.
package enum ISODuration {
  package static func parse(_ text: String) -> Duration? {
    guard text.utf8.count <= 32, text.hasPrefix("P") else { return nil }
    var seconds: Int64 = 0
    var number = ""
    var inTime = false
    var units = Array("DHMS")
    for letter in text.dropFirst() {
      if letter == "T", !inTime, number.isEmpty {
        inTime = true
        if units.first == "D" { units.removeFirst() }
      } else if letter.isASCII, letter.isNumber {
        number.append(letter)
      } else {
        guard let value = Int64(number), value <= 10_000_000, let place = units.firstIndex(of: letter),
          (letter == "D") != inTime
        else { return nil }
        seconds += value * ["D": 86400, "H": 3600, "M": 60, "S": 1][letter]!
        units.removeFirst(place + 1)
        number = ""
      }
    }
    return number.isEmpty && seconds > 0 && text.last != "T" ? .seconds(seconds) : nil
  }
}
