// policies/: agreements, their schemas, and what their parties signed.
//
//   policies/*.yaml                     one agreement each
//   policies/schemas/NAME               schemas, named by the agreements with their digest
//   policies/ID.vN.sigs/*.json          signed acts over the agreement's digest, of every party
//
// A file in .sigs starts nothing by lying there: its signature counts, by the key on the party's card (`ActBook`).

import Foundation
import Policies
import Records
import Sealing
import Store

/// How an agreement's payloads are read, filtered and judged.
struct Enforcement: Sendable {
  /// What the sender's file is checked against.
  let input: RecordFormat
  let filter: RecordFilter
  /// What the recipient's file is checked against: the schema derived from the filter.
  let output: RecordFormat
}

/// Reads the folder.
package enum PolicyFolder {
  package static let agreementsMax = 1000
  package static let actsMax = 6400

  /// - Throws: `ConfigurationError` naming the file.
  package static func load(_ home: Home) throws -> PolicySet { try load(folder: home.policies) }

  /// - Throws: `ConfigurationError` naming the file.
  package static func load(folder: String) throws -> PolicySet {
    let agreements = try paths(folder).map(agreement)
    do {
      return try PolicySet(agreements)
    } catch {
      throw ConfigurationError("\(folder): \(error)")
    }
  }

  /// The version of one agreement that is current, for a command that is about no other: a file at fault elsewhere in the folder is
  /// not its business. The gateway reads all of them or none.
  ///
  /// - Returns: the current one of the versions that can be read; nil when there is none.
  /// - Throws: `ConfigurationError` naming the file that cannot be read, when the agreement is found in no other, or saying why its
  ///   versions do not go together.
  package static func current(_ id: String, _ home: Home, at instant: Date) throws -> Agreement? {
    var versions: [Agreement] = []
    var failure: (any Error)?
    for path in try paths(home.policies) {
      do {
        let read = try agreement(path)
        if read.id == id { versions.append(read) }
      } catch {
        failure = failure ?? error
      }
    }
    do {
      if let found = try PolicySet(versions).current(id, at: instant) { return found }
    } catch {
      throw ConfigurationError("\(home.policies): \(error)")
    }
    if let failure { throw failure }
    return nil
  }

  /// Agreements with their schemas compiled and their acts, by the agreement's digest.
  struct Enforceable: Sendable {
    private(set) var set: PolicySet
    private(set) var enforcements: [Digest: Enforcement]
    /// Not verified yet: that takes the parties' cards.
    private(set) var acts: [Digest: [Envelope]]

    /// In the place of one that says the same and may be signed by nobody.
    mutating func add(_ act: Envelope, of agreement: Agreement) {
      let others = (acts[agreement.digest] ?? []).filter { $0.payloadDigest != act.payloadDigest }
      acts[agreement.digest] = others + [act]
    }

    /// - Throws: `PolicyError` when it does not fit beside the others.
    mutating func add(_ prepared: Prepared) throws {
      guard set.agreement(prepared.agreement.digest) == nil else { return }
      set = try PolicySet(set.agreements + [prepared.agreement])
      enforcements[prepared.agreement.digest] = prepared.enforcement
      acts[prepared.agreement.digest] = prepared.acts
    }
  }

  /// An agreement that can be enforced, with the acts that lie there already.
  struct Prepared: Sendable {
    let agreement: Agreement
    let enforcement: Enforcement?
    let acts: [Envelope]
  }

  /// - Throws: `ConfigurationError` saying why it cannot be enforced.
  static func prepare(_ agreement: Agreement, in folder: String) throws -> Prepared {
    Prepared(
      agreement: agreement, enforcement: try enforcement(of: agreement, in: folder),
      acts: try envelopes(of: agreement, in: folder))
  }

  /// - Throws: `ConfigurationError` naming the agreement whose schema cannot be used.
  static func enforceable(_ home: Home) throws -> Enforceable {
    let set = try load(home)
    var enforcements: [Digest: Enforcement] = [:]
    var acts: [Digest: [Envelope]] = [:]
    for agreement in set.agreements {
      let prepared = try prepare(agreement, in: home.policies)
      enforcements[agreement.digest] = prepared.enforcement
      acts[agreement.digest] = prepared.acts
    }
    return Enforceable(set: set, enforcements: enforcements, acts: acts)
  }

  /// Sees whether an agreement in `folder` can be enforced.
  ///
  /// - Throws: `ConfigurationError` saying why not.
  package static func check(_ agreement: Agreement, in folder: String) throws {
    _ = try enforcement(of: agreement, in: folder)
  }

  /// nil when its payload is opaque.
  static func enforcement(of agreement: Agreement, in folder: String) throws -> Enforcement? {
    guard let records = agreement.records else { return nil }
    let path = "\(folder)/schemas/\(records.schema)"
    guard Directory.exists(path) else {
      throw ConfigurationError(
        "\(agreement.id) needs its schema \(path), which is not there. Ask whoever wrote the agreement for the file with the SHA-256 \(records.sha256.hex)"
      )
    }
    do {
      let folder = SchemaFolder(path)
      let bytes = try folder.contents()
      guard Digest(of: bytes) == records.sha256 else {
        throw ConfigurationError(
          "\(path) is not the schema of \(agreement.id): its SHA-256 is sha256:\(Digest(of: bytes).hex)")
      }
      let options = PayloadOptions(records)
      let input = try folder.compile(bytes, records.format, options)
      let filter = try RecordFilter(RecordPlan(agreement), input, schema: bytes)
      // What goes is UTF-8, whatever came.
      var written = options
      written.dialect.encoding = .utf8
      return Enforcement(
        input: input, filter: filter, output: try folder.compile(filter.derivedSchema, records.format, written))
    } catch let error as SchemaError {
      throw ConfigurationError(
        "\(agreement.id) with \(path) cannot be enforced: \(error)", remedy: "sallyport schemas lint \(path)")
    }
  }

  private static func paths(_ folder: String) throws -> [String] {
    let names = try Directory.names(folder).sorted().filter { $0.hasSuffix(".yaml") && !$0.hasPrefix(".") }
    guard names.count <= agreementsMax else {
      throw ConfigurationError("\(folder) holds over \(agreementsMax) agreements")
    }
    return names.map { "\(folder)/\($0)" }
  }

  package static func agreement(_ path: String) throws -> Agreement {
    try agreement(File.contents(path, bytesMax: StrictYAML.bytesMax), of: path)
  }

  static func offerName(_ agreement: Digest) -> String { "\(agreement.hex).yaml" }

  /// What a partner offers: the digest that a file's name says, and the file.
  struct Offer: Sendable {
    let digest: Digest
    let path: String

    /// nil when the file is not what its name says.
    func agreement() throws -> Agreement? {
      let agreement = try PolicyFolder.agreement(path)
      return agreement.digest == digest ? agreement : nil
    }
  }

  static func offers(_ home: Home) throws -> [Offer] {
    guard Directory.exists(home.offered) else { return [] }
    return try Directory.names(home.offered).compactMap(AgencyID.init).sorted().flatMap { partner -> [Offer] in
      let folder = home.offered(by: partner)
      guard try Directory.status(folder).st_mode & S_IFMT == S_IFDIR else { return [] }
      return try Directory.names(folder).sorted().compactMap { name in
        guard let digest = Digest(hex: String(name.prefix { $0 != "." })), name == offerName(digest) else { return nil }
        return Offer(digest: digest, path: "\(folder)/\(name)")
      }
    }
  }

  /// The offers of one agreement.
  static func offers(of digest: Digest, _ home: Home) throws -> [Offer] {
    try offers(home).filter { $0.digest == digest }
  }

  /// One that a partner offered, by its digest; nil when none is offered under it.
  package static func offered(_ digest: Digest, _ home: Home) throws -> Agreement? {
    try offers(of: digest, home).first?.agreement()
  }

  static func agreement(_ bytes: [UInt8], of path: String) throws -> Agreement {
    guard let text = String(validating: bytes, as: UTF8.self) else { throw ConfigurationError("\(path) is not UTF-8") }
    do {
      return try Agreement(yaml: text)
    } catch {
      throw ConfigurationError("\(path): \(error)", remedy: "sallyport agreements lint \(path)")
    }
  }

  // MARK: acts

  package static func actFolder(_ agreement: Agreement, in folder: String) -> String {
    "\(folder)/\(agreement.id).v\(agreement.version).sigs"
  }

  package static func envelopes(of agreement: Agreement, in folder: String) throws -> [Envelope] {
    let path = actFolder(agreement, in: folder)
    guard Directory.exists(path) else { return [] }
    let names = try Directory.names(path, countMax: actsMax + 1)
    // A file left out might be the one that stops it.
    guard names.count <= actsMax else { throw ConfigurationError("\(path) holds over \(actsMax) files") }
    return try names.sorted().filter { $0.hasSuffix(".json") && !$0.hasPrefix(".") }
      .map { name in
        let bytes = try File.contents("\(path)/\(name)", bytesMax: Envelope.bytesMax)
        do {
          return try Envelope(parsing: bytes.last == 10 ? Array(bytes.dropLast()) : bytes, as: .agreementAct)
        } catch {
          throw ConfigurationError("\(path)/\(name): \(error)")
        }
      }
  }

  /// Stores an act durably. The same act twice is one file.
  package static func store(_ envelope: Envelope, of agreement: Agreement, in folder: String) throws {
    let act = try AgreementAct(envelope.unverified())
    let name = "\(act.party)-\(act.role)-\(act.kind.rawValue)-\(envelope.payloadDigest.hex.prefix(32)).json"
    try Directory.make(actFolder(agreement, in: folder))
    try DurableFile.write(envelope.bytes + [10], to: "\(actFolder(agreement, in: folder))/\(name)", mode: 0o644)
  }
}

extension RecordPlan {
  /// What an agreement asks of its records.
  ///
  /// - Throws: SchemaError naming the field whose condition cannot be.
  init(_ agreement: Agreement) throws {
    func condition(_ predicate: Agreement.Predicate) throws -> Condition {
      let values: [Condition.Value] = try predicate.values.map { value in
        switch value {
        case .integer(let number): return .integer(number)
        case .bool(let bool): return .bool(bool)
        case .string(let text):
          guard predicate.comparison == "within" else { return .text(text) }
          guard let span = CalendarDuration(text) else {
            throw SchemaError(location: predicate.field, reason: "within wants a duration such as P8D or P24M")
          }
          return .span(CalendarSpan(months: span.months, days: span.days, seconds: span.seconds))
        default: throw SchemaError(location: predicate.field, reason: "a value of another kind")
        }
      }
      guard let comparison = Condition.Operator(rawValue: predicate.comparison) else {
        throw SchemaError(location: predicate.field, reason: "no operator \(predicate.comparison)")
      }
      return try Condition(field: predicate.field, comparison, values)
    }
    self.init(
      fields: agreement.fields.map { field in
        let action: RecordPlan.Action =
          switch field.action {
          case .pass: .pass
          case .drop: .drop
          case .mask: .mask
          case .constant: .constant(field.value ?? "")
          case .pseudonymise: .pseudonymise
          case .generalise: .generalise(Granularity(rawValue: field.granularity ?? "") ?? .year)
          }
        // What an aggregate makes need not be in each record.
        return Field(
          name: field.name, action: action, isRequired: field.necessity == .required && agreement.aggregate == nil)
      },
      subject: agreement.subjects.identifier, include: try agreement.include.map(condition),
      exclude: try agreement.exclude.map(condition),
      forbid: try agreement.forbid.map { Forbidden(id: $0.id, condition: try condition($0.predicate)) },
      aggregate: agreement.aggregate.map {
        Aggregate(
          by: $0.by, measure: $0.measure, function: .init(rawValue: $0.function.rawValue) ?? .count,
          groupSizeMin: Int($0.groupSizeMin), distinct: $0.distinct, distinctAs: $0.distinctAs)
      },
      totals: (agreement.records?.totals ?? []).map {
        Total(member: $0.member, field: $0.field, rule: .init(rawValue: $0.rule.rawValue) ?? .refuse)
      }, onInvalid: agreement.records?.onInvalid == .setAside ? .setAside : .refuse)
    guard Set(agreement.fields.filter { $0.action == .pseudonymise }.map(\.pseudonymScope)).count <= 1 else {
      throw SchemaError(location: "fields", reason: "pseudonyms of one agreement have one scope")
    }
  }
}

extension Digest {
  /// As people write it: hexadecimal, with or without `sha256:` before it.
  package init?(named name: String) { self.init(hex: name.hasPrefix("sha256:") ? String(name.dropFirst(7)) : name) }
}
