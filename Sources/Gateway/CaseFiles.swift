// agreements test: case files that stand beside agreements. Each says what is known, what is dropped, and what must come of it.
//
//   suite, agreement (a file in the folder), clock
//   given:  consent [{subject, event, at, validUntil?}], heard (when the registry was heard of), packagesToday, standing
//   cases:  name, file | text, then?: [{withdraw: SUBJECT}], given?, clock?, as? (the file's name), to? (the recipient)
//           expect: outcome, codes, kept, withheld {code: n}, output, lacks [text], release (opened | withdrawn)

import Foundation
import NIOConcurrencyHelpers
import Policies
import Records
import Sealing
import Store

package struct CaseResult: Sendable {
  package let suite: String
  package let name: String
  /// What was otherwise than expected; empty when nothing was.
  package let faults: [String]
  package var passed: Bool { faults.isEmpty }

  package var document: JSON {
    [
      "suite": .string(suite), "name": .string(name), "passed": .bool(passed),
      "detail": .string(faults.joined(separator: "; ")),
    ]
  }
}

package enum CaseFiles {
  package static let bytesMax = 16 << 20

  /// Runs all of `folder/cases/*.yaml`.
  ///
  /// - Throws: `ConfigurationError` for a case file that cannot be read: it proves nothing.
  package static func run(_ folder: String) throws -> [CaseResult] {
    let cases = "\(folder)/cases"
    guard Directory.exists(cases) else { throw ConfigurationError("there is no folder \(cases)") }
    var results: [CaseResult] = []
    for name in try Directory.names(cases).sorted() where name.hasSuffix(".yaml") {
      let path = "\(cases)/\(name)"
      do {
        let text = String(decoding: try File.contents(path, bytesMax: StrictYAML.bytesMax), as: UTF8.self)
        results += try suite(StrictYAML.parse(text), folder)
      } catch let error as PolicyError {
        throw ConfigurationError("\(path): \(error)")
      } catch let error as SealingError {
        throw ConfigurationError("\(path): \(error.detail)")
      }
    }
    return results
  }

  private static func suite(_ document: JSON, _ folder: String) throws -> [CaseResult] {
    var reader = try DocumentReader(document, at: "cases")
    let suite = try reader.string("suite")
    let agreement = try PolicyFolder.agreement("\(folder)/\(try reader.string("agreement"))")
    let enforcement = try PolicyFolder.enforcement(of: agreement, in: folder)
    let clock = try reader.date("clock")
    var world = World(agreement: agreement, enforcement: enforcement, folder: folder, clock: clock)
    if var given = try reader.optional("given", { (r, n) throws(SealingError) in try r.object(n) }) {
      try world.take(&given)
    }
    var results: [CaseResult] = []
    for var one in try reader.objects("cases", countMax: 1000) { results.append(try world.run(&one, suite)) }
    try reader.finish()
    return results
  }
}

/// What a case knows.
private struct World {
  let agreement: Agreement
  let enforcement: Enforcement?
  let folder: String
  var clock: Date
  var heard: Date?
  var packagesToday: Int64 = 0
  var standing = AgreementStanding.State.valid
  let book = ConsentBook()
  /// Any key will do: pseudonyms of a case mean nothing elsewhere.
  private let master = Secret(count: 32) { _ in }

  init(agreement: Agreement, enforcement: Enforcement?, folder: String, clock: Date) {
    self.agreement = agreement
    self.enforcement = enforcement
    self.folder = folder
    self.clock = clock
    heard = clock
  }

  mutating func take(_ given: inout DocumentReader) throws(SealingError) {
    for var event in try given.objectsOrNone("consent") {
      let subject = try event.string("subject")
      let kind = try event.choice("event", ConsentEvent.self)
      let at = try event.date("at")
      let until = try event.optional("validUntil") { (r, n) throws(SealingError) in try r.date(n) }
      try event.finish()
      try apply(subject, ConsentRecord(state: kind.state, at: at, validUntil: until))
    }
    if let at = try given.optional("heard", { (r, n) throws(SealingError) in try r.date(n) }) { heard = at }
    if let count = try given.optional(
      "packagesToday", { (r, n) throws(SealingError) in try r.integer(n, 0...JSON.integerMax) })
    {
      packagesToday = count
    }
    if let state = try given.optional(
      "standing", { (r, n) throws(SealingError) in try r.choice(n, AgreementStanding.State.self) })
    {
      standing = state
    }
    try given.finish()
  }

  private func apply(_ subject: String, _ record: ConsentRecord) throws(SealingError) {
    guard let reference = Subject.reference(subject, key) else {
      throw SealingError(.documentInvalid, "\(subject) is no subject's id")
    }
    book.set(agreement.id, reference, record.word)
  }

  private var key: SubjectKey { SubjectKey(master: master, .ledger, context: agreement.id) }

  func run(_ given: inout DocumentReader, _ suite: String) throws -> CaseResult {
    var world = World(agreement: agreement, enforcement: enforcement, folder: folder, clock: clock)
    world.heard = heard
    world.packagesToday = packagesToday
    world.standing = standing
    book.copy(agreement.id, to: world.book)
    return try world.perform(&given, suite)
  }

  private mutating func perform(_ one: inout DocumentReader, _ suite: String) throws -> CaseResult {
    let name = try one.string("name", bytesMax: 1024)
    if let instant = try one.optional("clock", { (r, n) throws(SealingError) in try r.date(n) }) {
      // The registry was heard of at the suite's clock; a case that moves it says so.
      clock = instant
    }
    if var more = try one.optional("given", { (r, n) throws(SealingError) in try r.object(n) }) { try take(&more) }
    let file = try one.optional("file") { (r, n) throws(SealingError) in try r.string(n) }
    let text = try one.optional("text") { (r, n) throws(SealingError) in try r.string(n, bytesMax: StrictYAML.bytesMax)
    }
    let alias = try one.optional("as") { (r, n) throws(SealingError) in try r.string(n) }
    let recipient = try one.optional("to") { (r, n) throws(SealingError) in try r.agency(n) }
    let then = try one.objectsOrNone("then")
    var expect = try one.object("expect")
    let path = file.map { "\(folder)/\($0)" }
    let bytes = try path.map { try File.contents($0, bytesMax: CaseFiles.bytesMax) } ?? Array((text ?? "").utf8)
    try one.finish()
    let fallback =
      file.map { URL(fileURLWithPath: $0).lastPathComponent } ?? agreement.namePattern.replacing("*", with: "case")
    let (decision, output, subjects) = try decide(bytes, alias ?? fallback, recipient)
    var faults: [String] = []
    func compare(_ what: String, _ found: String, _ wanted: String) {
      if found != wanted { faults.append("\(what) is \(found), not \(wanted)") }
    }
    if let wanted = try expect.optional(
      "outcome", { (r, n) throws(SealingError) in try r.choice(n, Decision.Outcome.self) })
    {
      compare("the outcome", decision.outcome.rawValue, wanted.rawValue)
    }
    if let wanted = try expect.optional("codes", { (r, n) throws(SealingError) in try r.strings(n, countMax: 20) }) {
      compare("the codes", decision.codes.map(\.rawValue).joined(separator: " "), wanted.joined(separator: " "))
    }
    if let wanted = try expect.optional(
      "kept", { (r, n) throws(SealingError) in try r.integer(n, 0...JSON.integerMax) })
    {
      compare("kept", "\(decision.records?.kept ?? 0)", "\(wanted)")
    }
    if let wanted = try expect.any("withheld") {
      let found = JSON.object((decision.records?.withheld ?? [:]).mapValues { .integer($0) })
      compare(
        "withheld", String(decoding: found.canonical, as: UTF8.self), String(decoding: wanted.canonical, as: UTF8.self))
    }
    if let wanted = try expect.optional(
      "output", { (r, n) throws(SealingError) in try r.string(n, bytesMax: StrictYAML.bytesMax) })
    {
      compare("the output", output, wanted)
    }
    for wanted in try expect.optional("lacks", { (r, n) throws(SealingError) in try r.strings(n, countMax: 100) }) ?? []
    where output.contains(wanted) {
      faults.append("the output holds \"\(wanted)\"")
    }
    for var step in then {
      try apply(try step.string("withdraw"), ConsentRecord(state: .withdrawn, at: clock, validUntil: nil))
      try step.finish()
    }
    if let wanted = try expect.optional("release", { (r, n) throws(SealingError) in try r.string(n) }) {
      let rule = ConsentRule(agreement.consent, at: clock)
      let isStopped =
        agreement.consent.model != .none && book.words(agreement.id, subjects).contains { rule.verdict($0) != 0 }
      compare("the release", isStopped ? "withdrawn" : "opened", wanted)
    }
    try expect.finish()
    return CaseResult(suite: suite, name: name, faults: faults)
  }

  /// The same functions that a gateway calls, over the same bytes.
  private func decide(
    _ bytes: [UInt8], _ name: String, _ to: AgencyID?
  ) throws -> (Decision, output: String, subjects: [SubjectReference]) {
    let sender = agreement.parties.first { $0.role == .provider }!.id
    let recipient = to ?? agreement.parties.first { $0.role == .recipient }!.id
    let draft = Draft(
      sender: sender, recipient: recipient, name: name, mediaType: agreement.mediaType, payloadBytes: Int64(bytes.count)
    )
    let acts =
      standing == .valid
      ? agreement.parties.flatMap { party in
        party.roles.map {
          AgreementAct(
            party.role == .registrar ? .register : .accept, agreement, party: party.id, role: $0, signer: $0,
            reason: nil,
            at: clock)
        }
      } : []
    let stand = AgreementStanding(agreement, acts, between: sender, recipient, at: clock)
    let decision = Evaluation.outbound(
      draft, under: agreement,
      Circumstances(
        instant: clock, partner: .active, recipientKinds: Set(agreement.recipientKinds), packagesToday: packagesToday,
        standing: stand, consentHeard: heard, hub: agreement.via.map { _ in .active }))
    guard decision.outcome == .permit, let enforcement else { return (decision, "", []) }
    let gate = ConsentGate(agreement, TransferID(), master: master, book: book, at: clock)
    let found = NIOLockedValueBox<(text: [UInt8], subjects: [SubjectReference])>(([], []))
    let offset = NIOLockedValueBox(0)
    let report = try RecordCheck(enforcement.input, workers: 1).run(
      { room in
        offset.withLockedValue { start in
          let count = min(room.count, bytes.count - start)
          room.copyBytes(from: bytes[start..<(start + count)])
          start += count
          return count
        }
      }, through: enforcement.filter, gate.gate, now: clock,
      to: RecordSink(
        write: { piece in found.withLockedValue { $0.text += Array(piece.bytes) } },
        subjects: { list in found.withLockedValue { $0.subjects += list.map { SubjectReference($0) } } }))
    guard let counts = report.counts(under: agreement) else {
      let refused = decision.refused(.inputSchema, "\(report.sentence); \(report.findings.first?.text ?? "")")
      return (refused, "", [])
    }
    let final = Evaluation.completed(decision, draft, under: agreement, counts)
    let (text, subjects) = found.withLockedValue { $0 }
    return (final, final.outcome == .permit ? String(decoding: text, as: UTF8.self) : "", subjects)
  }
}

extension DocumentReader {
  fileprivate mutating func objectsOrNone(_ name: String) throws(SealingError) -> [DocumentReader] {
    try optional(name) { (r, n) throws(SealingError) in try r.objects(n, countMax: 10_000) } ?? []
  }
}
