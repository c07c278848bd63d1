// Strict YAML, agreements, and decisions as case tables.

import Foundation
import Sealing
import TestSupport
import Testing

@testable import Policies

private let yaml = """
  kind: DataSharingAgreement
  schemaVersion: 1
  id: deaths-to-benefits
  version: 2
  title: "Deaths"
  parties:
    - { id: a.gov, name: "A", role: provider, signatories: { required: 2, roles: [officer, delegate, lawyer] } }
    - { id: b.gov, name: "B", role: recipient, contact: "x@b.gov", signatories: { required: 1, roles: [officer] } }
  purpose: { id: stop, text: "Stop payments." }
  legalBasis: { type: "dpv:LegalObligation", citations: [ { text: "An Act" } ] }
  subjects: { classes: [people], impetus: public-body, frequency: ongoing }
  consent: { model: none }
  validity: { notBefore: "2026-01-01T00:00:00Z", notAfter: "2027-01-01T00:00:00Z", reviewBy: "2026-12-30" }
  dataset: { namePattern: "deaths-*.csv", mediaType: "text/csv" }
  delivery: { mode: relay, maxBytes: 1000, maxPackagesPerDay: 2, timeToLive: "PT48H" }
  security: { recipients: [mlkem768x25519] }
  retention: { recipientDeleteAfter: "P60D" }
  onwardTransfer: { allowed: false }
  transparency: { action: "Told B of it", subjectReport: per-record, privacyNoticeUrl: "https://a.gov", complaintTo: "C" }
  approval: { mode: automatic }
  """

@Suite struct StrictYAMLTests {
  static let accepted: [(String, JSON)] = [
    ("a: 1", ["a": 1]), ("a: \"1\"", ["a": "1"]), ("a: true", ["a": true]), ("a: plain text", ["a": "plain text"]),
    ("a: [x, 2]", ["a": ["x", 2]]), ("a: { b: c }", ["a": ["b": "c"]]), ("a: 'null'", ["a": "null"]),
    ("a: 2026-01-01T00:00:00Z", ["a": "2026-01-01T00:00:00Z"]), ("# note\na: b # note", ["a": "b"]),
  ]

  @Test(arguments: accepted) func theSubsetIsRead(text: String, value: JSON) throws {
    #expect(try StrictYAML.parse(text) == value)
  }

  static let refused = [
    "", "a: &x 1\nb: *x", "a: &x 1", "a: !!str 1", "a: !thing {}", "<<: { a: 1 }", "a: 1\na: 2", "a:", "a: null",
    "a: ~",
    "a: 1.5", "a: -1", "a: 1e3", "a: yes", "a: Off", "a: 9007199254740992", "--- 1\n--- 2", "[1, 2", "{ a: 1",
    "? [x]\n: y",
    "a: [[[[[[[[1]]]]]]]]", "\ta: 1", "a: \"\\u{0}\"",
  ]

  @Test(arguments: refused) func everythingElseIsRefused(text: String) {
    #expect(throws: PolicyError.self, "\(text)") { try StrictYAML.parse(text) }
  }

  @Test func aBillionLaughsAreRefusedAtOnce() {
    var text = "a0: &a0 [x]\n"
    for level in 1..<30 { text += "a\(level): &a\(level) [*a\(level - 1), *a\(level - 1)]\n" }
    #expect(throws: PolicyError.self) { try StrictYAML.parse(text) }
  }

  @Test func theSizeLimitHolds() throws {
    let line = "a: b\n#"
    let fits = line + String(repeating: "x", count: StrictYAML.bytesMax - line.utf8.count)
    #expect(try StrictYAML.parse(fits) == ["a": "b"])
    #expect(throws: PolicyError.self) { try StrictYAML.parse(fits + "x") }
  }
}

@Suite struct AgreementTests {
  @Test func anAgreementIsReadAndItsLayoutDoesNotCount() throws {
    let agreement = try Agreement(yaml: yaml)
    #expect(agreement.version == 2 && agreement.timeToLive == .seconds(48 * 3600))
    let commented =
      "# a comment\n"
      + yaml.replacing(
        "purpose: { id: stop, text: \"Stop payments.\" }", with: "purpose:\n  text: 'Stop payments.'\n  id: stop")
    #expect(try Agreement(yaml: commented).digest == agreement.digest)
    #expect(try Agreement(yaml: yaml.replacing("maxBytes: 1000", with: "maxBytes: 1001")).digest != agreement.digest)
  }

  static let broken: [(String, String, String)] = [
    ("version: 2", "version: 2\nextra: 1", "extra"), ("kind: DataSharingAgreement", "kind: Other", "kind"),
    ("schemaVersion: 1", "schemaVersion: 2", "schemaVersion"), ("id: deaths-to-benefits", "id: ../x", "id"),
    ("role: provider", "role: king", "role"), ("role: provider", "role: recipient", "provider"),
    ("a.gov", "b.gov", "twice"),
    (
      "purpose: {", "  - { id: c.gov, name: C, role: recipient, signatories: { required: 1, roles: [o] } }\npurpose: {",
      "several"
    ),
    ("2027-01-01T00:00:00Z", "2025-01-01T00:00:00Z", "validity"),
    ("2027-01-01T00:00:00Z", "2027-13-01T00:00:00Z", "notAfter"),
    ("mode: relay", "mode: pigeon", "mode"), ("maxBytes: 1000", "maxBytes: 0", "maxBytes"),
    ("PT48H", "P1M", "timeToLive"), ("\"Deaths\"", "\"Deaths\\e[8m\"", "agreement.title: control"),
    ("\"Told B of it\"", "\"Told \\u202Efo B\"", "agreement.transparency.action: control"),
    ("PT48H", "PT", "timeToLive"), ("[mlkem768x25519]", "[rsa]", "recipients"),
    ("[mlkem768x25519]", "[]", "recipients"),
    ("mode: relay,", "mode: relay, onWithdrawal: reseal,", "onWithdrawal"), ("title: \"Deaths\"\n", "", "title"),
  ]

  @Test(arguments: broken) func aBrokenAgreementIsRefusedByName(from: String, to: String, word: String) {
    #expect("\(from) → \(to)") { try Agreement(yaml: yaml.replacing(from, with: to)) } throws: {
      "\($0)".contains(word)
    }
  }

  @Test func namePatternsMatchWithoutBacktrackingBlowUp() throws {
    let agreement = try Agreement(yaml: yaml)
    for good in ["deaths-1.csv", "deaths-.csv", "deaths-a-b.csv.csv"] { #expect(agreement.allows(name: good)) }
    for bad in ["deaths.csv", "deaths-1.csv.exe", "xdeaths-1.csv", "Deaths-1.csv", ""] {
      #expect(!agreement.allows(name: bad))
    }
    let stars = try Agreement(yaml: yaml.replacing("deaths-*.csv", with: String(repeating: "*a", count: 100) + "b"))
    #expect(!stars.allows(name: String(repeating: "a", count: 200)))
  }

  @Test func durationsAreReadOnACalendar() {
    let start = Timestamp.parse("2026-01-31T00:00:00Z")!
    for (text, end) in [
      ("PT1S", "2026-01-31T00:00:01Z"), ("PT48H", "2026-02-02T00:00:00Z"), ("P5D", "2026-02-05T00:00:00Z"),
      ("P1DT12H", "2026-02-01T12:00:00Z"), ("P1M", "2026-02-28T00:00:00Z"), ("P13M", "2027-02-28T00:00:00Z"),
      ("P1Y", "2027-01-31T00:00:00Z"), ("P2W", "2026-02-14T00:00:00Z"),
    ] {
      #expect(CalendarDuration(text)?.after(start) == Timestamp.parse(end), "\(text)")
    }
    for text in ["", "P", "PT", "5D", "PT1.5H", "P-1D", "PT1H2D", "PT1M1H", "P1D1D", "PT99999999999S", "P0D", "P٣D"] {
      #expect(CalendarDuration(text) == nil, "\(text)")
    }
  }

  @Test func oneNameAndVersionIsOneAgreement() throws {
    let first = try Agreement(yaml: yaml)
    let other = try Agreement(yaml: yaml.replacing("Deaths", with: "Other"))
    #expect(throws: PolicyError.self) { try PolicySet([first, other]) }
    #expect(try PolicySet([first, first]).agreement(first.digest) == first)
    let next = try Agreement(
      yaml: yaml.replacing("version: 2", with: "version: 3").replacing("2026-01-01", with: "2026-12-01"))
    let set = try PolicySet([next, first])
    #expect(set.current("deaths-to-benefits", at: Timestamp.parse("2026-06-01T00:00:00Z")!)?.version == 2)
    #expect(set.current("deaths-to-benefits", at: Timestamp.parse("2026-12-02T00:00:00Z")!)?.version == 3)
    #expect(set.current("other", at: Date()) == nil)
  }

  @Test func theShippedAgreementIsSound() throws {
    let folder = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent()
      .appendingPathComponent("policies")
    for file in try FileManager.default.contentsOfDirectory(atPath: folder.path) where file.hasSuffix(".yaml") {
      #expect(throws: Never.self, "\(file)") {
        try Agreement(yaml: String(contentsOf: folder.appendingPathComponent(file), encoding: .utf8))
      }
    }
  }
}

/// What it takes to begin.
private func accepted(_ agreement: Agreement) -> [AgreementAct] {
  [("a.gov", "officer", "X"), ("a.gov", "lawyer", "Y"), ("b.gov", "officer", "Z")].map {
    AgreementAct(
      .accept, agreement, party: AgencyID($0.0)!, role: $0.1, signer: $0.2, reason: nil,
      at: Timestamp.parse("2026-01-01T00:00:00Z")!)
  }
}

@Suite struct StandingTests {
  let agreement = try! Agreement(yaml: yaml)
  let instant = Timestamp.parse("2026-06-01T00:00:00Z")!

  func state(_ acts: [AgreementAct], at now: Date? = nil, superseded: Set<Digest> = []) -> AgreementStanding.State {
    AgreementStanding(
      agreement, acts, between: AgencyID("a.gov")!, AgencyID("b.gov")!, at: now ?? instant, superseded: superseded
    ).state
  }

  func act(_ kind: AgreementAct.Kind, _ party: String, _ role: String, _ signer: String, day: Int) -> AgreementAct {
    AgreementAct(
      kind, agreement, party: AgencyID(party)!, role: role, signer: signer, reason: nil,
      at: instant - 86400 * Double(30 - day),
      number: Int64(day))
  }

  @Test func toStartTakesEverybodyInDifferentRolesByDifferentPeople() throws {
    let all = accepted(agreement)
    #expect(state(all) == .valid)
    for index in all.indices {
      var fewer = all
      fewer.remove(at: index)
      #expect(state(fewer) == .proposed)
    }
    let onePerson = [
      act(.accept, "a.gov", "officer", "X", day: 1), act(.accept, "a.gov", "lawyer", "X", day: 1), all[2],
    ]
    #expect(state(onePerson) == .proposed)
    for other in ["x", "X ", " X", "x\n", "Ｘ"] {
      let again = [
        act(.accept, "a.gov", "officer", "X", day: 1), act(.accept, "a.gov", "lawyer", other, day: 1), all[2],
      ]
      #expect(state(again) == .proposed, "\(other)")
    }
    let oneRole = [
      act(.accept, "a.gov", "officer", "X", day: 1), act(.accept, "a.gov", "officer", "Y", day: 1), all[2],
    ]
    #expect(state(oneRole) == .proposed)
    #expect(
      state(
        all.map {
          AgreementAct($0.kind, agreement, party: $0.party, role: "king", signer: $0.signer, reason: nil, at: $0.at)
        }) == .proposed)
    let other = try Agreement(yaml: yaml.replacing("Stop payments", with: "Other"))
    #expect(state(accepted(other)) == .proposed)
    #expect(state(all, at: Timestamp.parse("2025-01-01T00:00:00Z")!) == .notYet)
    #expect(state(all, at: Timestamp.parse("2027-01-01T00:00:00Z")!) == .expired)
    #expect(state(all, superseded: [agreement.digest]) == .superseded)
  }

  /// Three roles take three people, however the acts are spread over them.
  @Test func eachRoleTakesAPersonOfItsOwn() throws {
    let three = try Agreement(yaml: yaml.replacing("required: 2, roles", with: "required: 3, roles"))
    func state(_ signed: [(String, String)]) -> AgreementStanding.State {
      let acts = (signed.map { ("a.gov", $0.0, $0.1) } + [("b.gov", "officer", "Z")]).map {
        AgreementAct(.accept, three, party: AgencyID($0.0)!, role: $0.1, signer: $0.2, reason: nil, at: instant)
      }
      return AgreementStanding(three, acts, between: AgencyID("a.gov")!, AgencyID("b.gov")!, at: instant).state
    }
    let ana = [("officer", "Ana"), ("delegate", "Ana"), ("lawyer", "Ana")]
    #expect(state(ana + [("officer", "Bo"), ("officer", "Cy")]) == .proposed)
    #expect(state(ana + [("officer", "Bo"), ("delegate", "Bo"), ("officer", "Cy")]) == .valid)
    #expect(state(ana + [("officer", "Bo"), ("delegate", "Cy")]) == .valid)
  }

  /// What it supersedes stays away, however it is stopped.
  @Test func whatHasBegunHasBegun() {
    func hasBegun(_ acts: [AgreementAct], at now: Date? = nil) -> Bool {
      AgreementStanding(agreement, acts, between: AgencyID("a.gov")!, AgencyID("b.gov")!, at: now ?? instant).hasBegun
    }
    let all = accepted(agreement)
    #expect(hasBegun(all) && !hasBegun(Array(all.dropLast())))
    #expect(!hasBegun(all, at: Timestamp.parse("2025-01-01T00:00:00Z")!))
    #expect(hasBegun(all, at: Timestamp.parse("2027-01-01T00:00:00Z")!))
    for kind in [AgreementAct.Kind.suspend, .revoke, .reject] {
      #expect(hasBegun(all + [act(kind, "a.gov", "officer", "X", day: 2)]), "\(kind)")
    }
    // The key that signed it was revoked since.
    #expect(
      AgreementStanding(
        agreement, [], past: all, between: AgencyID("a.gov")!, AgencyID("b.gov")!, at: instant
      ).hasBegun)
  }

  /// Nothing is superseded by what never was in force.
  @Test func whatWasStoppedBeforeItBeganHasNotBegun() {
    func hasBegun(_ acts: [AgreementAct]) -> Bool {
      AgreementStanding(agreement, acts, between: AgencyID("a.gov")!, AgencyID("b.gov")!, at: instant).hasBegun
    }
    let all = [
      act(.accept, "a.gov", "officer", "X", day: 1), act(.accept, "a.gov", "lawyer", "Y", day: 1),
      act(.accept, "b.gov", "officer", "Z", day: 5),
    ]
    #expect(hasBegun(all))
    for kind in [AgreementAct.Kind.suspend, .revoke, .reject] {
      let stopped = all + [act(kind, "a.gov", "officer", "X", day: 3)]
      #expect(!hasBegun(stopped), "\(kind)")
      let resumed = stopped + [act(.resume, "a.gov", "officer", "X", day: 7)]
      #expect(hasBegun(resumed) == (kind == .suspend), "\(kind)")
    }
  }

  @Test func toStopTakesOneAndOnlyWhoSuspendedResumes() {
    let all = accepted(agreement)
    let suspended = all + [act(.suspend, "b.gov", "officer", "Z", day: 2)]
    #expect(state(suspended) == .suspended)
    #expect(state(suspended + [act(.resume, "a.gov", "officer", "X", day: 3)]) == .suspended)
    #expect(state(suspended + [act(.resume, "b.gov", "officer", "Z", day: 3)]) == .valid)
    #expect(state(all + [act(.revoke, "a.gov", "officer", "X", day: 2)]) == .revoked)
    #expect(state(all + [act(.reject, "b.gov", "officer", "Z", day: 2)]) == .rejected)
  }

  @Test func anActIsReadBackAsItWasWritten() throws {
    for kind in AgreementAct.Kind.allCases {
      let one = AgreementAct(
        kind, agreement, party: AgencyID("a.gov")!, role: "officer", signer: "X Y", reason: "why", at: instant)
      #expect(try AgreementAct(one.document) == one)
    }
  }
}

@Suite struct ConsentTests {
  static let now = Timestamp.parse("2026-06-01T00:00:00Z")!

  private func consent(_ text: String) throws -> Agreement.Consent {
    try Agreement(
      yaml: yaml.replacing("consent: { model: none }", with: "consent: \(text)").replacing(
        "frequency: ongoing }", with: "frequency: ongoing, identifier: { field: id, type: x } }"
      )
      .replacing(
        "mediaType: \"text/csv\" }",
        with:
          "mediaType: \"text/csv\", format: csv, schema: \"schemas/x\", schemaSha256: \"sha256:\(String(repeating: "0", count: 64))\" }"
      )
        + "\nfields: [ { name: id, category: \"pd:OfficialID\", action: pass } ]"
    ).consent
  }

  private static let optIn =
    "{ model: opt-in, purposeRef: p, noticeId: n, maxValidity: P365D, maxStaleness: PT15M, onStale: hold, onMissing: withhold-record, withdrawalMethod: \"by phone\", onWithdrawal: { spooled: reseal, delivered: restrict } }"
  private static let optOut =
    "{ model: opt-out, purposeRef: p, maxStaleness: P1D, onStale: deny, withdrawalMethod: \"by phone\", onWithdrawal: { spooled: cancel-package, delivered: inform } }"

  @Test func whatARecordMeansDependsOnTheModel() throws {
    let (rule, lax) = (
      ConsentRule(try consent(Self.optIn), at: Self.now), ConsentRule(try consent(Self.optOut), at: Self.now)
    )
    func word(_ state: ConsentState, _ days: Double, until: Double? = nil) -> UInt64 {
      ConsentRecord(state: state, at: Self.now + days * 86400, validUntil: until.map { Self.now + $0 * 86400 }).word
    }
    let cases: [(UInt64, String, String)] = [
      (0, "consent.missing", ""), (word(.granted, -1), "", ""), (word(.granted, 1), "consent.missing", ""),
      (word(.granted, -10, until: -1), "consent.expired", ""), (word(.granted, -10, until: 0), "consent.expired", ""),
      (word(.granted, -10, until: 1), "", ""), (word(.granted, -365), "consent.expired", ""),
      (word(.granted, -364), "", ""),
      (word(.refused, -1), "consent.refused", "consent.refused"),
      (word(.withdrawn, -1), "consent.withdrawn", "consent.withdrawn"),
      (word(.revoked, -1), "consent.revoked", "consent.revoked"),
      (word(.invalidated, -1), "consent.invalidated", "consent.invalidated"),
      (word(.objected, -1), "consent.objected", "consent.objected"), (word(.lifted, -1), "consent.missing", ""),
    ]
    for (word, strict, loose) in cases {
      for (rule, wanted) in [(rule, strict), (lax, loose)] {
        let verdict = rule.verdict(word)
        #expect((verdict == 0 ? "" : ConsentRule.reasons[Int(verdict) - 1]) == wanted, "\(word)")
      }
    }
    #expect(rule.end(word(.granted, -1)) == CalendarDuration("P365D")!.after(Self.now - 86400))
    #expect(rule.end(word(.granted, -1, until: 3)) == Self.now + 3 * 86400)
  }

  /// At the ends of months too: who may go now has an end that is yet to come, and nobody else has.
  @Test func aGrantIsOverAtItsEnd() throws {
    var generator = SeededGenerator(seed: 7)
    let starts = ["2023-01-31", "2024-02-29", "2024-01-30", "2026-10-30", "2026-10-31", "2026-11-30"].map {
      Timestamp.parse("\($0)T10:00:00Z")!
    }
    for text in ["P1M", "P13M", "P1Y", "P365D", "P1M3D", "PT48H", "P1MT5H"] {
      let terms = try consent(Self.optIn.replacingOccurrences(of: "P365D", with: text))
      let span = CalendarDuration(text)!
      for _ in 0..<3000 {
        func about(_ date: Date) -> Date { date + Double(Int.random(in: -200_000...200_000, using: &generator)) }
        let grant = about(starts.randomElement(using: &generator)!)
        let now = max(grant, about(span.after(grant)))
        let rule = ConsentRule(terms, at: now)
        let word = ConsentRecord(state: .granted, at: grant, validUntil: nil).word
        let end = try #require(rule.end(word))
        #expect((rule.verdict(word) == 0) == (end > now), "\(text) from \(grant) at \(now)")
        #expect(end <= span.after(grant) && span.after(grant) <= end + 86400)
      }
      #expect(span.end(from: starts[0] + 1) >= span.end(from: starts[0]))
    }
    // It must last a little longer than now.
    let terms = try consent(Self.optIn)
    let word = ConsentRecord(state: .granted, at: Self.now - 364 * 86400, validUntil: nil).word
    #expect(ConsentRule(terms, at: Self.now, skew: 86399).verdict(word) == 0)
    #expect(ConsentRule(terms, at: Self.now, skew: 86400).verdict(word) == 7)
    let tomorrow = ConsentRecord(state: .granted, at: Self.now + 10, validUntil: nil).word
    #expect(ConsentRule(terms, at: Self.now, skew: 300).verdict(tomorrow) == 1)
  }

  @Test func theLatestActCountsAndOfTwoAtOnceTheNegativeOne() {
    func record(_ state: ConsentState, _ seconds: Double) -> ConsentRecord {
      .init(state: state, at: Self.now + seconds, validUntil: nil)
    }
    #expect(ConsentRecord.merged(nil, record(.granted, 0)).state == .granted)
    #expect(ConsentRecord.merged(record(.granted, 0), record(.withdrawn, 1)).state == .withdrawn)
    #expect(ConsentRecord.merged(record(.granted, 2), record(.withdrawn, 1)).state == .granted)
    #expect(ConsentRecord.merged(record(.granted, 1), record(.withdrawn, 1)).state == .withdrawn)
    #expect(ConsentRecord.merged(record(.withdrawn, 1), record(.granted, 1)).state == .withdrawn)
    #expect(ConsentRecord.merged(record(.withdrawn, 1), record(.granted, 2)).state == .granted)
  }

  @Test func aRecordSurvivesItsWord() {
    for state in ConsentState.allCases {
      for until in [nil, Self.now + 90, Self.now + 86400 * 3650] {
        let record = ConsentRecord(state: state, at: Self.now, validUntil: until)
        #expect(ConsentRecord(word: record.word) == record && record.word != 0)
      }
    }
    // A grant never outlives what was said: minutes are cut.
    #expect(ConsentRecord(state: .granted, at: Self.now, validUntil: Self.now + 119).validUntil == Self.now + 60)
  }

  @Test func theTableFindsEverybodyAndNobodyElse() {
    let table = ConsentTable()
    func subject(_ number: UInt64) -> SubjectReference {
      SubjectReference(high: number &* 0x9E37_79B9_7F4A_7C15, low: ~number &* 0xBF58_476D_1CE4_E5B9)
    }
    for number in 0..<20_000 as Range<UInt64> { table.set(subject(number), number << 3 | 1) }
    for number in 0..<20_000 as Range<UInt64> where number % 3 == 0 { table.set(subject(number), number << 3 | 3) }
    #expect(table.count == 20_000)
    let words = table.words((0..<40_000).map { subject(UInt64($0)) })
    for number in 0..<40_000 {
      #expect(words[number] == (number >= 20_000 ? 0 : UInt64(number) << 3 | (number % 3 == 0 ? 3 : 1)))
    }
    #expect(ConsentTable(expecting: 1_000_000).bytes <= 31_000_000)
  }

  @Test(arguments: [
    (Self.optIn, "model: opt-in", "model: opt-out"), (Self.optIn, "noticeId: n, ", ""),
    (Self.optIn, "maxStaleness: PT15M, ", ""),
    (Self.optIn, "maxValidity: P365D, ", ""), (Self.optIn, "onMissing: withhold-record, ", ""),
    (Self.optOut, "model: opt-out", "model: none"),
  ])
  func aModelHasAllItsKeysAndNoOthers(text: String, from: String, to: String) throws {
    #expect(throws: PolicyError.self) { try consent(text.replacing(from, with: to)) }
  }
}

@Suite struct NoticeTests {
  /// A signed document has at most 64 KiB.
  @Test func noticesAreCutSoThatEachCanBeSigned() throws {
    let items =
      (0..<40).map { _ in
        WithdrawalNotice.Item(package: TransferID(), ordinals: Array(1_000_000_000_000..<1_000_000_001_000))
      } + (0..<2000).map { WithdrawalNotice.Item(package: TransferID(), ordinals: [Int64($0)]) }
    let batches = WithdrawalNotice.batches(items)
    #expect(batches.flatMap { $0 } == items)
    for batch in batches {
      let notice = WithdrawalNotice(
        id: TransferID(), issuer: AgencyID("a.gov")!, to: AgencyID("b.gov")!,
        agreement: NamedDigest(id: String(repeating: "x", count: 64), sha256: Digest(of: [])), items: batch,
        asked: .delete,
        because: "ConsentWithdrawn", sequence: 1, issuedAt: Date(timeIntervalSince1970: 0),
        actBy: Date(timeIntervalSince1970: 0))
      #expect(notice.document.canonical.count <= Envelope.payloadBytesMax)
      #expect(try WithdrawalNotice(notice.document) == notice)
    }
    #expect(WithdrawalNotice.batches([]).isEmpty)
  }
}

@Suite struct DiffTests {
  @Test(arguments: [
    ("maxBytes: 1000", "maxBytes: 2000", "more permissive"), ("maxBytes: 1000", "maxBytes: 500", "less permissive"),
    ("P60D", "P90D", "more permissive"), ("[mlkem768x25519]", "[mlkem768x25519, x25519]", "incomparable"),
    ("Stop payments", "Begin payments", "incomparable"),
    ("2027-01-01T00:00:00Z", "2026-12-31T00:00:00Z", "less permissive"),
    ("title: \"Deaths\"", "title: \"Death\"", "equivalent"),
    ("allowed: false", "allowed: true, to: [c.gov]", "more permissive"),
  ])
  func aChangeIsToldInWordsAndJudged(from: String, to: String, verdict: String) throws {
    let changes = AgreementDiff.changes(
      from: try Agreement(yaml: yaml), to: try Agreement(yaml: yaml.replacing(from, with: to)))
    #expect(AgreementDiff.verdict(changes) == verdict, "\(changes)")
    let back = AgreementDiff.changes(
      from: try Agreement(yaml: yaml.replacing(from, with: to)), to: try Agreement(yaml: yaml))
    let mirrored = ["more permissive": "less permissive", "less permissive": "more permissive"][verdict] ?? verdict
    #expect(AgreementDiff.verdict(back) == mirrored)
  }

  @Test(arguments: [
    (#""P24M""#, #""P36M""#, "more permissive"), (#""P24M""#, #""P1Y""#, "less permissive"),
    ("op: within", "op: ge", "incomparable"),
  ])
  func conditionsAreComparedWhereTheyCanBe(from: String, to: String, verdict: String) throws {
    let path = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent().appendingPathComponent("policies/injuries-to-cover.v1.yaml")
    let text = try String(contentsOf: path, encoding: .utf8)
    let line = try #require(text.split(separator: "\n").first { $0.contains("op: within") })
    let other = try Agreement(yaml: text.replacing(line, with: line.replacing(from, with: to)))
    let changes = AgreementDiff.changes(from: try Agreement(yaml: text), to: other)
    #expect(AgreementDiff.verdict(changes) == verdict, "\(changes)")
  }

  /// Values of a document that differ by one change each.
  private static func mutations(_ value: JSON) -> [JSON] {
    switch value {
    case .object(let members):
      members.flatMap { name, inner in
        mutations(inner).map { changed in .object(members.merging([name: changed]) { $1 }) }
          + [.object(members.filter { $0.key != name })]
      }
    case .array(let items):
      items.indices.flatMap { place in
        mutations(items[place]).map { changed in
          var changedItems = items
          changedItems[place] = changed
          return .array(changedItems)
        }
      }
    case .string(let text):
      [.string(text + "x")]
        + ["P9D", "opt-out", "restrict", "2", "automatic", "cancel-package", "x25519"].map { .string($0) }
    case .integer(let number): [.integer(number + 1)] + (number > 1 ? [.integer(number - 1)] : [])
    case .bool(let flag): [.bool(!flag)]
    }
  }

  @Test(arguments: [
    "deaths-to-benefits.v2", "demo-files.v1", "injuries-to-cover.v1", "water-to-drought-plan.v2",
  ])
  func noChangeOfAnExampleIsPassedOver(file: String) throws {
    let folder = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent("../../policies")
    let text = try String(contentsOf: folder.appendingPathComponent("\(file).yaml"), encoding: .utf8)
    let agreement = try Agreement(yaml: text)
    var judged = 0
    for document in Self.mutations(agreement.document) {
      guard let other = try? Agreement(document) else { continue }
      // These name a version and say nothing of what it does.
      guard other.id == agreement.id, other.version == agreement.version, other.supersedes == agreement.supersedes,
        other.title == agreement.title, other.digest != agreement.digest
      else { continue }
      judged += 1
      let changes = AgreementDiff.changes(from: agreement, to: other)
      let (x, y) = (AgreementDiff.members(agreement.document), AgreementDiff.members(document))
      let differing = Set(x.keys).union(y.keys).filter { x[$0] != y[$0] }
      // What stands there by default may be said or left out.
      if differing.allSatisfy({ $0.last == "pseudonymScope" }) { continue }
      #expect(!changes.isEmpty, "\(differing)")
      // What people read before they sign hides nothing either.
      func page(_ agreement: Agreement) -> String {
        AgreementText.page(agreement).replacing("sha256 \(agreement.digest)", with: "")
      }
      #expect(page(agreement) != page(other), "\(differing)")
    }
    #expect(judged > 50)
  }

  @Test(arguments: [
    ("required: 2, roles: [officer, delegate", "required: 1, roles: [officer, delegate", "more permissive"),
    ("{ mode: automatic }", "{ mode: every-package, approvers: 2, expiresAfter: P1D }", "less permissive"),
  ])
  func signaturesAndApprovalsAreJudged(from: String, to: String, verdict: String) throws {
    let text = yaml.replacing(from, with: to)
    try #require(text != yaml)
    let changes = AgreementDiff.changes(from: try Agreement(yaml: yaml), to: try Agreement(yaml: text))
    #expect(AgreementDiff.verdict(changes) == verdict, "\(changes)")
  }
}

@Suite struct DecisionTests {
  static let instant = Timestamp.parse("2026-06-01T00:00:00Z")!
  let agreement = try! Agreement(yaml: yaml)

  func draft(
    sender: String = "a.gov", recipient: String = "b.gov", name: String = "deaths-1.csv",
    mediaType: String = "text/csv", bytes: Int64 = 10
  ) -> Draft {
    Draft(
      sender: AgencyID(sender)!, recipient: AgencyID(recipient)!, name: name, mediaType: mediaType, payloadBytes: bytes)
  }

  func now(
    _ instant: Date = instant, _ partner: Circumstances.PartnerState = .active,
    _ kinds: Set<RecipientKind> = [.mlkem768x25519],
    today: Int64 = 0, standing: AgreementStanding.State = .valid
  ) -> Circumstances {
    var acts = accepted(agreement)
    if standing == .proposed { acts.removeLast() }
    for (state, kind) in [
      (AgreementStanding.State.suspended, AgreementAct.Kind.suspend), (.revoked, .revoke), (.rejected, .reject),
    ] where state == standing {
      acts.append(
        AgreementAct(
          kind, agreement, party: AgencyID("b.gov")!, role: "officer", signer: "Z", reason: nil, at: Self.instant))
    }
    return Circumstances(
      instant: instant, partner: partner, recipientKinds: kinds, packagesToday: today,
      standing: AgreementStanding(agreement, acts, between: AgencyID("a.gov")!, AgencyID("b.gov")!, at: instant))
  }

  @Test func theCoveredFileIsPermitted() {
    let decision = Evaluation.outbound(draft(), under: agreement, now())
    #expect(decision.outcome == .permit && decision.codes.isEmpty && decision.trace.allSatisfy(\.passed))
  }

  @Test func eachRuleRefusesOrHoldsAlone() {
    let year: TimeInterval = 366 * 86400
    let cases: [(Draft, Circumstances, Decision.Outcome, ReasonCode)] = [
      (draft(sender: "b.gov"), now(), .refuse, .matchNone), (draft(recipient: "c.gov"), now(), .refuse, .matchNone),
      (draft(), now(Self.instant - year), .refuse, .agreementNotYet),
      (draft(), now(Self.instant + year), .refuse, .agreementExpired),
      (draft(name: "x.csv"), now(), .refuse, .inputName),
      (draft(mediaType: "text/xml"), now(), .refuse, .inputMediaType),
      (draft(bytes: 0), now(), .refuse, .inputEmpty), (draft(bytes: 1001), now(), .refuse, .limitBytes),
      (draft(), now(Self.instant, .unknown), .refuse, .partnerUnknown),
      (draft(), now(Self.instant, .pending), .hold, .partnerPending),
      (draft(), now(Self.instant, .suspended), .hold, .partnerSuspended),
      (draft(), now(Self.instant, .active, []), .hold, .keyMissing),
      (draft(), now(Self.instant, .active, [.x25519]), .refuse, .keyWeak), (draft(), now(today: 2), .hold, .limitRate),
      (draft(), now(standing: .proposed), .refuse, .agreementUnsigned),
      (draft(), now(standing: .suspended), .hold, .agreementSuspended),
      (draft(), now(standing: .revoked), .refuse, .agreementRevoked),
      (draft(), now(standing: .rejected), .refuse, .agreementRejected),
      (draft(), now(Timestamp.parse("2026-12-31T12:00:00Z")!), .hold, .agreementReviewOverdue),
    ]
    for (draft, now, outcome, code) in cases {
      let decision = Evaluation.outbound(draft, under: agreement, now)
      #expect(decision.outcome == outcome && decision.codes == [code], "\(code): \(decision)")
    }
    #expect(Evaluation.outbound(draft(bytes: 1000), under: agreement, now(today: 1)).outcome == .permit)
    #expect(Evaluation.outbound(draft(), under: nil, now()).outcome == .refuse)
  }

  @Test func aRefusalOutweighsAHold() {
    let decision = Evaluation.outbound(draft(bytes: 0), under: agreement, now(Self.instant, .suspended))
    #expect(decision.outcome == .refuse && decision.codes == [.inputEmpty])
  }

  @Test func theRecipientDecidesByTheAgreementThatTheManifestNames() throws {
    func manifest(
      agreement digest: Digest, version: Int64 = 2, life: TimeInterval = 3600, records: Int64? = nil
    ) -> Manifest {
      Manifest(
        id: TransferID(), sender: AgencyID("a.gov")!, recipient: AgencyID("b.gov")!,
        agreement: NamedDigest(id: "deaths-to-benefits", sha256: digest), agreementVersion: version,
        name: "deaths-1.csv",
        mediaType: "text/csv", records: records, payloadBytes: 3, bodyBytes: 19, bodyTreeRoot: digest,
        keySHA256: digest, createdAt: Self.instant, expiresAt: Self.instant + life, decision: digest)
    }
    let few = try Agreement(yaml: yaml.replacing("maxBytes: 1000", with: "maxBytes: 1000, maxRecords: 5"))
    for (records, codes) in [(Int64(5), [ReasonCode]()), (6, [.limitRecords])] {
      let decision = Evaluation.inbound(
        manifest(agreement: few.digest, records: records), under: few, now(), by: .relay)
      #expect(decision.codes == codes)
    }
    // Two a day are agreed; days begin differently, and what takes another's place does not count at its sender.
    for (today, codes) in [(Int64(3), [ReasonCode]()), (4, [.limitRate])] {
      let decision = Evaluation.inbound(
        manifest(agreement: agreement.digest), under: agreement, now(today: today), by: .relay)
      #expect(decision.codes == codes && decision.outcome == (codes.isEmpty ? .permit : .hold))
    }
    #expect(
      Evaluation.inbound(manifest(agreement: agreement.digest), under: agreement, now(), by: .relay).outcome == .permit)
    #expect(
      Evaluation.inbound(manifest(agreement: agreement.digest), under: nil, now(), by: .relay).codes == [
        .agreementUnknown
      ])
    #expect(
      Evaluation.inbound(manifest(agreement: agreement.digest, version: 1), under: agreement, now(), by: .relay).codes
        == [
          .agreementUnknown
        ])
    #expect(
      Evaluation.inbound(manifest(agreement: agreement.digest, life: 49 * 3600), under: agreement, now(), by: .relay)
        .codes == [
          .limitTimeToLive
        ])
    // What is to be collected is not taken when it is pushed, nor the other way round.
    let collected = try Agreement(yaml: yaml.replacing("mode: relay", with: "mode: collect"))
    for (asked, by, outcome) in [
      (agreement, Agreement.Delivery.collect, Decision.Outcome.refuse), (collected, .relay, .refuse),
      (collected, .collect, .permit),
    ] {
      let decision = Evaluation.inbound(manifest(agreement: asked.digest), under: asked, now(), by: by)
      #expect(decision.outcome == outcome && decision.codes == (outcome == .refuse ? [.deliveryMode] : []))
    }
    let strict = try Agreement(
      yaml: yaml.replacing("timeToLive: \"PT48H\"", with: "timeToLive: \"PT48H\", wholeFileSha256: true"))
    #expect(
      Evaluation.inbound(manifest(agreement: strict.digest), under: strict, now(), by: .relay).codes == [.inputDigest])
  }

  /// The hub is a party with a role of its own, signs like all others, and is the one way.
  @Test func whatGoesThroughAHubNeedsItsSignatureAndIt() throws {
    let hub = AgencyID("h.gov")!
    let via = "mode: relay, via: h.gov"
    #expect(throws: PolicyError.self) { try Agreement(yaml: yaml.replacing("mode: relay", with: via)) }
    let party = #"  - { id: h.gov, name: "H", role: processor, signatories: { required: 1, roles: [operations] } }"#
    let text = yaml.replacing("mode: relay", with: via).replacing("purpose: {", with: "\(party)\npurpose: {")
    let through = try Agreement(yaml: text)
    #expect(through.via == hub && !through.waitsAtSender)
    #expect(throws: PolicyError.self) {
      try Agreement(yaml: text.replacing("mode: relay,", with: "mode: collect, downloadCounts: true,"))
    }
    // Without the hub's signature it is proposed; with it in force.
    func standing(_ acts: [AgreementAct]) -> AgreementStanding {
      AgreementStanding(through, acts, between: AgencyID("a.gov")!, AgencyID("b.gov")!, at: Self.instant)
    }
    let own = accepted(through)
    let signed = own.filter { $0.party != hub }
    #expect(standing(signed).state == .proposed && standing(signed).detail.contains("h.gov"))
    let act = AgreementAct(
      .accept, through, party: hub, role: "operations", signer: "Op", reason: nil, at: Self.instant)
    #expect(standing(signed + [act]).state == .valid)
    // The sender's gateway waits for the hub, and wants a recipient that signs.
    for (state, listens, signs, outcome, code) in [
      (Circumstances.PartnerState.active, true, true, Decision.Outcome.permit, nil),
      (.active, false, true, .hold, ReasonCode.hubInactive), (.suspended, true, true, .hold, .hubInactive),
      (.unknown, false, true, .hold, .hubInactive), (.active, true, false, .refuse, .deliveryMode),
    ] {
      let now = Circumstances(
        instant: Self.instant, partner: .active, recipientKinds: [.mlkem768x25519], packagesToday: 0,
        standing: standing(signed + [act]), isReachable: listens, hub: state, hasGateway: signs)
      let decision = Evaluation.outbound(draft(), under: through, now)
      #expect(decision.outcome == outcome && decision.codes == (code.map { [$0] } ?? []), "\(decision.sentence)")
    }
    let changes = AgreementDiff.changes(from: agreement, to: through)
    #expect(changes.contains { $0.text.contains("hub: none → h.gov") }, "\(changes)")
  }

  @Test func decisionsAreDeterministicAndSalted() {
    let one = Evaluation.outbound(draft(), under: agreement, now())
    #expect(one == Evaluation.outbound(draft(), under: agreement, now()))
    #expect(one.digest(salt: [1]) != one.digest(salt: [2]))
  }
}
