// Strict YAML, agreements, and decisions as case tables.

import Foundation
import Sealing
import Testing

@testable import Policies

private let yaml = """
  kind: DataSharingAgreement
  schemaVersion: 1
  id: deaths-to-benefits
  version: 2
  title: "Deaths"
  parties:
    - { id: a.gov, name: "A", role: provider }
    - { id: b.gov, name: "B", role: recipient, contact: "x@b.gov" }
  purpose: { id: stop, text: "Stop payments." }
  validity: { notBefore: "2026-01-01T00:00:00Z", notAfter: "2027-01-01T00:00:00Z" }
  dataset: { namePattern: "deaths-*.csv", mediaType: "text/csv" }
  delivery: { mode: relay, maxBytes: 1000, maxPackagesPerDay: 2, timeToLive: "PT48H" }
  security: { recipients: [mlkem768x25519] }
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
    ("2027-01-01T00:00:00Z", "2025-01-01T00:00:00Z", "validity"),
    ("2027-01-01T00:00:00Z", "2027-13-01T00:00:00Z", "notAfter"),
    ("mode: relay", "mode: pigeon", "mode"), ("maxBytes: 1000", "maxBytes: 0", "maxBytes"),
    ("PT48H", "P1M", "timeToLive"),
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

  @Test func durationsOfFixedLengthAreRead() {
    for (text, seconds) in [("PT1S", 1), ("PT2M", 120), ("PT48H", 172_800), ("P5D", 432_000), ("P1DT12H", 129_600)] {
      #expect(ISODuration.parse(text) == .seconds(seconds))
    }
    for text in ["", "P", "PT", "5D", "P1Y", "P1M", "PT1.5H", "P-1D", "PT1H2D", "PT1M1H", "P1D1D", "PT99999999999S"] {
      #expect(ISODuration.parse(text) == nil, "\(text)")
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
    today: Int64 = 0
  ) -> Circumstances {
    Circumstances(instant: instant, partner: partner, recipientKinds: kinds, packagesToday: today)
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
    ]
    for (draft, now, outcome, code) in cases {
      let decision = Evaluation.outbound(draft, under: agreement, now)
      #expect(decision.outcome == outcome && decision.codes == [code], "\(code): \(decision)")
    }
    #expect(Evaluation.outbound(draft(bytes: 1000), under: agreement, now(today: 1)).outcome == .permit)
    #expect(Evaluation.outbound(draft(), under: nil, now()).outcome == .refuse)
  }

  @Test func collectingIsRefusedUntilItIsThere() throws {
    let collected = try Agreement(yaml: yaml.replacing("mode: relay", with: "mode: collect"))
    #expect(Evaluation.outbound(draft(), under: collected, now()).codes == [.deliveryMode])
  }

  @Test func aRefusalOutweighsAHold() {
    let decision = Evaluation.outbound(draft(bytes: 0), under: agreement, now(Self.instant, .suspended))
    #expect(decision.outcome == .refuse && decision.codes == [.inputEmpty])
  }

  @Test func theRecipientDecidesByTheAgreementThatTheManifestNames() throws {
    func manifest(agreement digest: Digest, version: Int64 = 2, life: TimeInterval = 3600) -> Manifest {
      Manifest(
        id: TransferID(), sender: AgencyID("a.gov")!, recipient: AgencyID("b.gov")!,
        agreement: NamedDigest(id: "deaths-to-benefits", sha256: digest), agreementVersion: version,
        name: "deaths-1.csv",
        mediaType: "text/csv", payloadBytes: 3, bodyBytes: 19, bodyTreeRoot: digest, keySHA256: digest,
        createdAt: Self.instant, expiresAt: Self.instant + life, decision: digest)
    }
    #expect(Evaluation.inbound(manifest(agreement: agreement.digest), under: agreement, now()).outcome == .permit)
    #expect(Evaluation.inbound(manifest(agreement: agreement.digest), under: nil, now()).codes == [.agreementUnknown])
    #expect(
      Evaluation.inbound(manifest(agreement: agreement.digest, version: 1), under: agreement, now()).codes == [
        .agreementUnknown
      ])
    #expect(
      Evaluation.inbound(manifest(agreement: agreement.digest, life: 49 * 3600), under: agreement, now()).codes == [
        .limitTimeToLive
      ])
    let strict = try Agreement(
      yaml: yaml.replacing("timeToLive: \"PT48H\"", with: "timeToLive: \"PT48H\", wholeFileSha256: true"))
    #expect(Evaluation.inbound(manifest(agreement: strict.digest), under: strict, now()).codes == [.inputDigest])
  }

  @Test func decisionsAreDeterministicAndSalted() {
    let one = Evaluation.outbound(draft(), under: agreement, now())
    #expect(one == Evaluation.outbound(draft(), under: agreement, now()))
    #expect(one.digest(salt: [1]) != one.digest(salt: [2]))
  }
}
