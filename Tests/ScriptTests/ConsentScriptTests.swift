// Consent between two gateways, as administrators and citizens see it: filtered, withdrawn, sealed again, told, proved.

import Foundation
import Sealing
import TestSupport
import Testing

@Suite struct ConsentScriptTests {
  private static let header =
    "source_event_id,subject_id_type,subject_id,agreement,purpose,event,event_time,valid_until,indicated_by,relation,notice_id,language,method,scope\n"

  private static func row(
    _ id: Int, _ person: String, _ event: String, purpose: String = "claims", at: String = "2026-01-01T00:00:00Z",
    by relation: String = "", notice: String = ""
  ) -> String {
    "\(id),health-number,\(person),\(TestAgencies.agreement),\(purpose),\(event),\(at),,,\(relation),\(notice),,,\n"
  }

  private func grant(_ agencies: TestAgencies, _ people: [String]) throws {
    for person in people {
      let result = try agencies.sender.sallyport("consent", "grant", person, "--agreement", TestAgencies.agreement)
      #expect(result.status == 0, "\(result.errors)")
    }
  }

  @Test func onlyWhoAgreedGoesAndEverybodyCanSeeIt() throws {
    let agencies = try TestAgencies(TestAgencies.Options.optIn())
    try agencies.start()
    let agreement = TestAgencies.agreement
    // Nothing was heard of the registry yet: the file waits.
    try agencies.sender.drop("first.ndjson", TestRecords.of(["P1", "P2"]))
    #expect(agencies.sender.outcome("first.ndjson") != "delivered")
    try grant(agencies, ["P1"])
    #expect(eventually { agencies.sender.outcome("first.ndjson") == "delivered" })
    let arrived = agencies.recipient.inbox(from: agencies.sender, "first.ndjson")
    #expect(TestRecords.claims(arrived) == ["P1"])
    let text = String(decoding: arrived ?? Data(), as: UTF8.self)
    #expect(
      !text.contains("SECRET") && !text.contains("\"P1\"") && text.firstMatch(of: /"person":"[a-z2-7]{26}"/) != nil)

    let id = agencies.sender.outcome("first.ndjson", "id") ?? ""
    let why = try agencies.sender.sallyport("agreements", "explain", id)
    #expect(why.status == 0 && why.text.contains("1 stay: consent.missing"), "\(why.text)")
    let report = try agencies.sender.sallyport("report", "P1", "--json")
    #expect(report.status == 0 && report.lines.count == 2 && report.text.contains("\"receiverName\":\"Recipient\""))
    #expect(try agencies.sender.sallyport("report", "P2", "--json").lines.count == 1)
    #expect(try agencies.sender.sallyport("report", "P1").text.contains("Looked up"))

    // After delivery: a notice, and its answer.
    let ack = try agencies.sender.sallyport("consent", "withdraw", "P1", "--agreement", agreement, "--json")
    #expect(ack.status == 0 && ack.text.contains(id), "\(ack.text)\(ack.errors)")
    #expect(
      eventually {
        (try? agencies.recipient.sallyport("consent", "notices", "--json").text.contains("restrict")) ?? false
      })
    let notice = try agencies.recipient.sallyport("consent", "notices", "--json").text.firstMatch(
      of: /"notice":"([a-z2-7]{26})"/)
    let answer = try agencies.recipient.sallyport(
      "consent", "answer", String(notice?.1 ?? ""), "--state", "actioned")
    #expect(answer.status == 0, "\(answer.errors)")
    // Who withdraws twice is told of once; whom nobody knows is asked about.
    let twice = try agencies.sender.sallyport("consent", "withdraw", "P1", "--agreement", agreement)
    #expect(twice.text.contains("a notice already"), "\(twice.text)")
    #expect(try agencies.sender.sallyport("consent", "notices", "--json").lines.count == 1)
    let stranger = try agencies.sender.sallyport("consent", "withdraw", "P99", "--agreement", agreement)
    #expect(stranger.status == 0 && stranger.text.contains("Nothing was known"), "\(stranger.text)")
    try grant(agencies, ["p3"])
    try agencies.sender.drop("second.ndjson", TestRecords.of(["P1", "P3"]))
    #expect(eventually { agencies.sender.outcome("second.ndjson") == "delivered" })
    #expect(TestRecords.claims(agencies.recipient.inbox(from: agencies.sender, "second.ndjson")) == ["P3"])
    let audit = try agencies.sender.sallyport("consent", "audit")
    #expect(audit.status == 0 && audit.text.contains("the release rule held"), "\(audit.text)")
    try agencies.stop()
    #expect(try agencies.findings() == [])
  }

  @Test(arguments: ["reseal", "cancel-package"])
  func aWithdrawalBetweenSealingAndReleaseIsRespected(spooled: String) throws {
    let agencies = try TestAgencies(
      TestAgencies.Options.optIn(approval: "{ mode: every-package, approvers: 2, expiresAfter: P5D }", spooled: spooled)
    )
    try agencies.start()
    try grant(agencies, ["P1", "P2", "P3"])
    // As a batch job does that waits for the end.
    let file = try agencies.scratch.file("a.ndjson", TestRecords.of(["P1", "P2", "P3"]))
    let job = try Command.start(
      ["send", file, "--agreement", TestAgencies.agreement, "--wait", "--home", agencies.sender.home])
    #expect(eventually { agencies.sender.outcome("a.ndjson", "code") == "approval.pending" })
    #expect(agencies.sender.outcome("a.ndjson", "next")?.contains("agreements approve") == true)
    let id = agencies.sender.outcome("a.ndjson", "id") ?? ""
    let ack = try agencies.sender.sallyport(
      "consent", "withdraw", "P2", "--agreement", TestAgencies.agreement, "--json")
    #expect(
      ack.text.contains("\"stopped\":[\"\(id)\"]") && ack.text.contains("\"alreadyDisclosed\":[]"),
      "\(ack.text)\(ack.errors)")
    let queue = try agencies.sender.sallyport("queue", "--json")
    if spooled == "reseal" {
      let next = String(queue.text.firstMatch(of: /"id":"([a-z2-7]{26})"/)?.1 ?? "")
      #expect(next != id && !next.isEmpty)
      #expect(agencies.sender.outcome("a.ndjson", "id") == next)
      let replaced = "a.ndjson~\(id.prefix(8))"
      #expect(agencies.sender.outcome(replaced) == "replaced")
      #expect(agencies.sender.outcome(replaced, "replacedBy") == next)
      let first = try agencies.sender.sallyport("agreements", "approve", next, "--by", "Ana")
      #expect(first.status == 0 && first.text.contains("1 of 2"), "\(first.text)\(first.errors)")
      for name in ["Ana", "ana", "Ana "] {
        let again = try agencies.sender.sallyport("agreements", "approve", next, "--by", name)
        #expect(again.status == 1 && again.errors.contains("counts once"), "\(name)")
      }
      #expect(agencies.recipient.inboxNames(from: agencies.sender).isEmpty)
      #expect(try agencies.sender.sallyport("agreements", "approve", next, "--by", "Bo").status == 0)
      #expect(eventually { agencies.sender.outcome("a.ndjson") == "delivered" })
      #expect(TestRecords.claims(agencies.recipient.inbox(from: agencies.sender, "a.ndjson")) == ["P1", "P3"])
      #expect(try agencies.sender.sallyport("report", "P2", "--json").lines.count == 1)
      #expect(try agencies.sender.sallyport("report", "P3", "--json").lines.count == 2)
      let told = job.wait()
      #expect(told.status == 0 && told.text.contains("\(next)  confirmed"), "\(told.text)\(told.errors)")
      let why = try agencies.sender.sallyport(
        "why", "\(agencies.sender.home)/outbox/\(TestAgencies.agreement)/a.ndjson")
      #expect(why.status == 0 && why.text.contains("taken as \(next), which is confirmed"), "\(why.text)\(why.errors)")
    } else {
      #expect(queue.lines.isEmpty, "\(queue.text)")
      #expect(agencies.sender.outcome("a.ndjson") == "cancelled")
      #expect(job.wait().status == 1)
    }
    #expect(try agencies.sender.sallyport("consent", "audit").status == 0)
    try agencies.stop()
    #expect(try agencies.findings() == [])
  }

  @Test func aRegistryIsImportedWholeOrNotAtAll() throws {
    let agencies = try TestAgencies(TestAgencies.Options.optIn())
    let agreement = TestAgencies.agreement
    let header = Self.header
    func take(_ name: String, _ text: String, _ more: String...) throws -> CommandResult {
      let file = try agencies.scratch.file(name, Data(text.utf8))
      return try Command.sallyport(
        [
          "consent", "import", file, "--agreement", agreement, "--source", "portal", "--json", "--home",
          agencies.sender.home,
        ] + more)
    }
    let many = header + (0..<200).map { Self.row($0, "Q\($0)", "ConsentGiven") }.joined()
    let first = try take("a.csv", many)
    #expect(first.status == 0 && first.text.contains("\"accepted\":200"), "\(first.text)\(first.errors)")
    let again = try take("a.csv", many + Self.row(1000, "Q1", "ConsentWithdrawn", at: "2026-02-01T00:00:00Z"))
    #expect(again.text.contains("\"accepted\":1") && again.text.contains("\"duplicates\":200"), "\(again.text)")
    for broken in [
      Self.row(2000, "Q2", "ConsentWithdrawn") + Self.row(2001, "", "ConsentGiven"),
      Self.row(2000, "Q2", "ConsentWithdrawn", purpose: "other"),
      Self.row(2000, "Q2", "Maybe"), Self.row(2000, "Q2", "ConsentWithdrawn", at: "yesterday"),
      Self.row(2000, "Q2", "ConsentWithdrawn") + "2001,\n",
      Self.row(2000, "Q2", "ConsentWithdrawn") + Self.row(2000, "Q3", "ConsentWithdrawn"),
      Self.row(2000, "Q2", "ConsentGiven", by: "guardian"), Self.row(2000, "Q2", "RenewedConsentGiven", by: "parent"),
      Self.row(2000, "Q2", "ConsentGiven", notice: "another"),
      Self.row(2000, "Q2", "ConsentGiven").replacing(",,,\n", with: ",,,only my left arm\n"),
    ] {
      #expect(try take("b.csv", header + broken).status == 65, "\(broken)")
    }
    // Who may represent is said in the agreement; to say no, anybody may.
    let represented =
      Self.row(2500, "R1", "ConsentGiven", by: "parent", notice: "n1")
      + Self.row(2501, "R2", "ConsentGiven", by: "self")
      + Self.row(2502, "R3", "ConsentWithdrawn", by: "guardian", notice: "another")
    #expect(try take("r.csv", header + represented).status == 0)
    func state(_ person: String) throws -> String {
      String(
        try agencies.sender.sallyport("consent", "show", person, "--agreement", agreement, "--json").text.firstMatch(
          of: /"state":"([^"]*)"/)?.1 ?? "")
    }
    #expect(try state("Q1") == "withdrawn" && state("q2") == "granted" && state("Nobody") == "unknown")
    // A cut snapshot must not withdraw for everybody.
    let cut = header + Self.row(3000, "Q5", "ConsentGiven")
    #expect(try take("c.csv", cut, "--snapshot").status == 77)
    #expect(try state("Q7") == "granted")
    #expect(try take("c.csv", cut, "--snapshot", "--confirmed-by", "Ana", "--confirmed-by", "Bo").status == 0)
    #expect(try state("Q7") == "withdrawn" && state("Q5") == "granted")
    // The same said once more, by events with other names, changes nobody; neither do people who are new.
    func snapshot(_ first: Int, _ people: [String]) -> String {
      header + people.enumerated().map { Self.row(first + $0.offset, $0.element, "ConsentGiven") }.joined()
    }
    #expect(try take("s1.csv", snapshot(4000, ["Q5"]), "--snapshot").status == 0)
    #expect(try take("s3.csv", snapshot(6000, ["Q5"]), "--snapshot").status == 0)
    #expect(try take("s4.csv", header + Self.row(7000, "Nobody2", "ConsentGiven"), "--snapshot").status == 0)
    let fhir =
      #"{"resourceType":"Consent","id":"f1","meta":{"versionId":"1"},"status":"active","patient":{"identifier":{"value":"Q7"}},"dateTime":"2099-01-01T00:00:00Z","provision":{"type":"permit"}}"#
      + "\n"
    #expect(try take("d.ndjson", fhir.replacing("2099", with: "2026"), "--format", "fhir").status == 0)
    #expect(
      try take(
        "e.ndjson",
        fhir.replacing("\"f1\"", with: "\"f2\"").replacing(
          #""type":"permit""#, with: #""type":"permit","provision":[]"#), "--format", "fhir"
      ).status == 65)
    for other in [
      #""provision":{}"#, #""provision":{"type":"permit","period":{"start":"2096-01-01T00:00:00Z"}}"#,
      #""provision":{"type":"permit"},"modifierExtension":[]"#,
      #""provision":{"type":"permit","modifierExtension":[]}"#,
      #""provision":{"type":"permit"},"implicitRules":"x""#, #""provision":{"type":"permit"},"performer":[{}]"#,
      #""provision":{"type":"permit"},"scope":{"coding":[{"code":"adr"}]}"#,
      #""provision":{"type":"permit"},"policyRule":{"coding":[{"code":"OPTOUT"}]}"#,
      #""provision":{"type":"permit"},"verification":[{"verified":false}]"#,
    ] {
      let text = fhir.replacing("2099", with: "2026").replacing("\"f1\"", with: "\"f3\"")
        .replacing(#""provision":{"type":"permit"}"#, with: other)
      #expect(try take("f.ndjson", text, "--format", "fhir").status == 65, "\(other)")
    }
    // What corrects a grant stands above it, whatever the grant's period; and a period makes no act younger.
    func resource(_ person: String, _ version: Int, _ status: String, _ provision: String, _ acted: String) -> String {
      #"{"resourceType":"Consent","id":"\#(person)","meta":{"versionId":"\#(version)","lastUpdated":"2026-0\#(version)-20T00:00:00Z"},"#
        + #""status":"\#(status)","patient":{"identifier":{"value":"\#(person)"}},"dateTime":"\#(acted)","provision":\#(provision)}"#
        + "\n"
    }
    let permit = #"{"type":"permit","period":{"start":"2026-01-10T00:00:00Z"}}"#
    for (person, status, provision) in [
      ("F1", "entered-in-error", permit), ("F2", "rejected", permit), ("F3", "active", #"{"type":"deny"}"#),
      ("F4", "inactive", permit),
    ] {
      let acted = "2026-01-05T00:00:00Z"
      for text in [resource(person, 1, "active", permit, acted), resource(person, 2, status, provision, acted)] {
        #expect(try take("\(person).ndjson", text, "--format", "fhir").status == 0)
      }
      #expect(try !["granted", "unknown", ""].contains(state(person)), "\(person): \(status)")
    }
    let between = Self.row(8000, "F5", "ConsentWithdrawn", at: "2026-01-08T00:00:00Z")
    #expect(try take("between.csv", header + between).status == 0)
    #expect(
      try take("F5.ndjson", resource("F5", 1, "active", permit, "2026-01-05T00:00:00Z"), "--format", "fhir").status == 0
    )
    #expect(try state("F5") == "withdrawn")
    // Nothing is no sign of life.
    for (name, text) in [("empty.csv", header), ("empty.ndjson", ""), ("blank.ndjson", "\n\n")] {
      #expect(try take(name, text).status == 65, "\(name)")
    }
    #expect(try agencies.sender.sallyport("consent", "audit").status == 0)
    // Raw ids are nowhere.
    let ledger = try Data(contentsOf: URL(fileURLWithPath: "\(agencies.sender.home)/ledger.sqlite"))
    #expect(ledger.range(of: Data("Q150".utf8)) == nil)
  }

  /// A restore without spool/subjects, or a damaged file: nobody can say who was in it.
  @Test func aPackageWhoseIndexIsGoneCountsAsDisclosed() throws {
    let agencies = try TestAgencies(TestAgencies.Options.optIn())
    let sender = agencies.sender
    try agencies.start()
    try grant(agencies, ["P1", "P2"])
    try sender.drop("gone.ndjson", TestRecords.of(["P1"]))
    #expect(eventually { sender.outcome("gone.ndjson") == "delivered" })
    let id = try #require(sender.outcome("gone.ndjson", "id"))
    func withdraw(_ person: String) throws -> CommandResult {
      try sender.sallyport("consent", "withdraw", person, "--agreement", TestAgencies.agreement, "--json")
    }
    let index = "\(sender.home)/spool/subjects/\(id).index"
    try Data("damaged".utf8).write(to: URL(fileURLWithPath: index))
    let damaged = try withdraw("P2")
    #expect(damaged.status == 0 && damaged.text.contains(id), "\(damaged.text)\(damaged.errors)")
    try FileManager.default.removeItem(atPath: index)
    let missing = try withdraw("P1")
    #expect(missing.status == 0 && missing.text.contains(id), "\(missing.text)\(missing.errors)")
    #expect(sender.log.contains("counts as disclosed"))
    try agencies.stop()
  }

  /// A restored ledger does not know what went after the backup: what had not gone by then counts as disclosed, and is stopped too. What
  /// it never heard of keeps its index.
  @Test func whatARestoredLedgerHadNotReleasedCountsAsDisclosed() throws {
    let agencies = try TestAgencies(TestAgencies.Options.optIn())
    let sender = agencies.sender
    let backup = "\(agencies.scratch.path)/backup.sqlite"
    try sender.start()
    try grant(agencies, ["P1", "P2"])
    func drop(_ name: String, _ people: [String] = ["P1", "P2"]) throws -> String {
      try sender.drop(name, TestRecords.of(people))
      #expect(eventually { sender.outcome(name) == "accepted" }, "\(sender.log)")
      return try #require(sender.outcome(name, "id"))
    }
    let known = try drop("known.ndjson")
    let other = try drop("other.ndjson", ["P2"])
    #expect(try sender.sallyport("ledger", "backup", backup).status == 0)
    let unknown = try drop("unknown.ndjson")
    try agencies.recipient.start()
    for name in ["known.ndjson", "unknown.ndjson", "other.ndjson"] {
      #expect(eventually { sender.outcome(name) == "delivered" }, "\(sender.log)")
    }
    try agencies.stop()
    #expect(try sender.sallyport("ledger", "restore", backup).status == 0)
    #expect(try sender.sallyport("ledger", "show", "--json").text.contains(#""kind":"restored""#))
    try sender.start()
    let withdrawn = try sender.sallyport("consent", "withdraw", "P1", "--agreement", TestAgencies.agreement, "--json")
    #expect(withdrawn.status == 0 && withdrawn.text.contains(#""package":"\#(known)""#), "\(withdrawn.text)")
    #expect(withdrawn.text.contains(#""stopped":["\#(known)"]"#), "\(withdrawn.text)")
    let report = try sender.sallyport("report", "P1", "--json").text
    #expect(report.contains(known) && report.contains("perhaps handed over"), "\(report)")
    #expect(
      Set(try FileManager.default.contentsOfDirectory(atPath: "\(sender.home)/spool/subjects")).isSuperset(
        of: [known, unknown].map { "\($0).index" }))
    // The recipient, which has it, says so. What nobody stopped is released again, and has its receipts again.
    try agencies.recipient.start()
    #expect(try eventually { try sender.sallyport("trace", known).text.contains("had-key") }, "\(sender.log)")
    #expect(sender.outcome("known.ndjson") == "cancelled", "\(sender.log)")
    #expect(try eventually { try sender.sallyport("trace", other).text.contains("confirmed") }, "\(sender.log)")
    #expect(agencies.recipient.inboxNames(from: sender).count == 3)
    let later = try sender.sallyport("report", "P2", "--json").lines
    #expect(later.contains { $0.contains(other) && $0.contains(#""state":"delivered""#) }, "\(later)")
    try agencies.stop()
    #expect(try agencies.findings() == [])
  }

  /// Once people have approved a package of an agreement, the next ones go by themselves, opaque ones too.
  @Test func theFirstPackageIsApprovedAndTheOthersGo() throws {
    var options = TestAgencies.Options()
    options.approval = "{ mode: first-package, approvers: 1, expiresAfter: P5D }"
    let agencies = try TestAgencies(options)
    let sender = agencies.sender
    try agencies.start()
    try sender.drop("a.txt", Data("a".utf8))
    #expect(eventually { sender.outcome("a.txt", "code") == "approval.pending" }, "\(sender.log)")
    let id = try #require(sender.outcome("a.txt", "id"))
    #expect(try sender.sallyport("agreements", "approve", id, "--by", "Ana").status == 0)
    #expect(eventually { sender.outcome("a.txt") == "delivered" }, "\(sender.log)")
    try sender.drop("b.txt", Data("b".utf8))
    #expect(eventually { sender.outcome("b.txt") == "delivered" }, "\(sender.log)")
    try agencies.stop()
    #expect(try agencies.findings() == [])
  }

  /// After the report period nobody can tell any more who was in a package, and the ledger says so.
  @Test func whoWasInAPackageIsForgottenAfterTheReportPeriod() throws {
    let agencies = try TestAgencies(TestAgencies.Options.optIn())
    let sender = agencies.sender
    try agencies.start()
    try grant(agencies, ["P1", "P2"])
    try sender.drop("a.ndjson", TestRecords.of(["P1", "P2"]))
    #expect(eventually { sender.outcome("a.ndjson") == "delivered" }, "\(sender.log)")
    func report() throws -> String { try sender.sallyport("report", "P1", "--json").text }
    func indexes() throws -> [String] {
      try FileManager.default.contentsOfDirectory(atPath: "\(sender.home)/spool/subjects")
    }
    #expect(try report().contains("Sent test files") && indexes().count == 1)
    try agencies.stop()
    let configuration = URL(fileURLWithPath: "\(sender.home)/sallyport.yaml")
    try Data((String(contentsOf: configuration, encoding: .utf8) + "\nreportSeconds: 0\nretentionSeconds: 0\n").utf8)
      .write(
        to: configuration)
    try agencies.start()
    #expect(try eventually { try indexes().isEmpty })
    #expect(try !report().contains("Sent test files"))
    let audit = try sender.sallyport("consent", "audit", "--json")
    #expect(audit.status == 0, "\(audit.text)")
    #expect(try sender.sallyport("ledger", "show", "--json").text.contains("package.forgotten"))
    try agencies.stop()
    #expect(try agencies.findings() == [])
  }

  /// The tables are copied for the next start: it goes on from there, and a copy that is not whole is not believed.
  @Test func aStartReadsTheCopyOfTheTablesAndTheRestFromTheLedger() throws {
    let agencies = try TestAgencies(TestAgencies.Options.optIn())
    let sender = agencies.sender
    try agencies.start()
    let people = (0..<20_000).map { Self.row($0, "Q\($0)", "ConsentGiven") }
    let file = try agencies.scratch.file("a.csv", Data((Self.header + people.joined()).utf8))
    let taken = try sender.sallyport(
      "consent", "import", file, "--agreement", TestAgencies.agreement, "--source", "portal")
    #expect(taken.status == 0, "\(taken.errors)")
    let copy = URL(fileURLWithPath: "\(sender.home)/consents.table")
    #expect(eventually { FileManager.default.fileExists(atPath: copy.path) })
    let whole = try Data(contentsOf: copy)
    #expect(whole.count > 20_000 * 24 && whole.count < 20_000 * 24 + 1000)
    #expect(try sender.sallyport("consent", "withdraw", "Q1", "--agreement", TestAgencies.agreement).status == 0)
    try grant(agencies, ["NEW"])
    sender.kill()
    func startsAndFilters(_ name: String, isUsed: Bool) throws {
      try sender.startSending()
      try sender.drop(name, TestRecords.of(["Q0", "Q1", "NEW", "NOBODY", "Q19999"]))
      #expect(eventually { sender.outcome(name) == "delivered" }, "\(name) \(sender.log)")
      #expect(TestRecords.claims(agencies.recipient.inbox(from: sender, name)) == ["Q0", "NEW", "Q19999"])
      #expect(sender.log.contains("is not used") != isUsed, "\(name) \(sender.log)")
      #expect(sender.stop() == 0)
    }
    try startsAndFilters("whole", isUsed: true)
    // A word, the trailer, its length, the code.
    for place in [23, whole.count - 100, whole.count - 33, whole.count - 1] {
      var damaged = whole
      damaged[place] ^= 1
      try damaged.write(to: copy)
      try startsAndFilters("damaged-\(place)", isUsed: false)
    }
    try whole.prefix(100_000).write(to: copy)
    try startsAndFilters("cut", isUsed: false)
    try FileManager.default.removeItem(at: copy)
    try startsAndFilters("none", isUsed: true)
    try agencies.stop()
  }

  @Test func anActThatChangesNothingIsNotAcknowledgedAsIfItDid() throws {
    let agencies = try TestAgencies(TestAgencies.Options.optIn())
    func consent(_ verb: String, _ person: String, _ more: String...) throws -> CommandResult {
      try Command.sallyport(
        ["consent", verb, person, "--agreement", TestAgencies.agreement, "--json", "--home", agencies.sender.home]
          + more)
    }
    #expect(try consent("grant", "P1", "--at", "2026-02-01T00:00:00Z").status == 0)
    #expect(try consent("withdraw", "P1", "--at", "2026-01-01T00:00:00Z").text.contains("\"effect\":false"))
    #expect(try consent("show", "P1").text.contains("\"goes\":true"))
    // A grant from the future would outlast a withdrawal of today.
    #expect(try consent("grant", "P2", "--at", "2096-01-01T00:00:00Z").status == 65)
    // A withdrawal counts from now at the latest.
    #expect(try consent("withdraw", "P1", "--at", "2096-01-01T00:00:00Z").text.contains("\"effect\":true"))
    #expect(try consent("show", "P1").text.contains("\"goes\":false"))
    #expect(try consent("withdraw", "P3", "--event-id", "e1").status == 0)
    #expect(try consent("withdraw", "P4", "--event-id", "e1").status == 1)
    #expect(try agencies.sender.sallyport("consent", "audit").status == 0)
  }

  /// A grant that is over when the key would go is none; one that was given anew meanwhile is.
  @Test func aGrantThatEndsBetweenSealingAndReleaseIsOver() throws {
    let agencies = try TestAgencies(
      TestAgencies.Options.optIn(approval: "{ mode: every-package, approvers: 1, expiresAfter: P5D }"))
    let sender = agencies.sender
    try agencies.start()
    // Not over when it is sealed; to be released it must hold for as long as clocks may differ, five minutes.
    let soon = Timestamp.format(Date() + 200)
    for person in ["P1", "P2"] {
      #expect(
        try sender.sallyport("consent", "grant", person, "--agreement", TestAgencies.agreement, "--until", soon).status
          == 0)
    }
    try grant(agencies, ["P3"])
    func id(_ name: String) throws -> String {
      #expect(eventually { sender.outcome(name, "code") == "approval.pending" })
      return try #require(sender.outcome(name, "id"))
    }
    try sender.drop("ends.ndjson", TestRecords.of(["P1", "P3"]))
    let ends = try id("ends.ndjson")
    try sender.drop("renewed.ndjson", TestRecords.of(["P2", "P3"]))
    let renewed = try id("renewed.ndjson")
    try grant(agencies, ["P2"])
    for package in [renewed, ends] {
      #expect(try sender.sallyport("agreements", "approve", package, "--by", "Ana").status == 0)
    }
    #expect(eventually { sender.outcome("renewed.ndjson") == "delivered" }, "\(sender.log)")
    #expect(sender.outcome("renewed.ndjson", "id") == renewed)
    // What is left goes under a new id, and is approved anew.
    #expect(eventually { sender.outcome("ends.ndjson", "id") != ends })
    #expect(eventually { sender.outcome("ends.ndjson~\(ends.prefix(8))") == "replaced" })
    #expect(try sender.sallyport("agreements", "approve", id("ends.ndjson"), "--by", "Ana").status == 0)
    #expect(eventually { sender.outcome("ends.ndjson") == "delivered" }, "\(sender.log)")
    #expect(TestRecords.claims(agencies.recipient.inbox(from: sender, "ends.ndjson")) == ["P3"])
    #expect(TestRecords.claims(agencies.recipient.inbox(from: sender, "renewed.ndjson")) == ["P2", "P3"])
    #expect(try sender.sallyport("consent", "audit").status == 0)
    try agencies.stop()
    #expect(try agencies.findings() == [])
  }

  /// Whoever acts for a person is one that the agreement names; what is recorded at the recipient would stop nothing.
  @Test func whoActsForAPersonAndWhere() throws {
    let agencies = try TestAgencies(TestAgencies.Options.optIn())
    func grant(_ more: String...) throws -> Int32 {
      try Command.sallyport(
        ["consent", "grant", "P1", "--agreement", TestAgencies.agreement, "--home", agencies.sender.home] + more
      ).status
    }
    #expect(try grant("--indicated-by", "a neighbour") == 64)
    #expect(try grant("--indicated-by", "a neighbour", "--relation", "neighbour") == 65)
    #expect(try grant("--indicated-by", "P1's mother", "--relation", "parent") == 0)
    let late = try agencies.sender.sallyport(
      "consent", "grant", "P2", "--agreement", TestAgencies.agreement, "--until", "2020-01-01T00:00:00Z")
    #expect(late.status == 0 && late.text.contains("without effect"), "\(late.text)")
    let elsewhere = try agencies.recipient.sallyport("consent", "withdraw", "P1", "--agreement", TestAgencies.agreement)
    #expect(elsewhere.status == 77 && elsewhere.errors.contains(agencies.sender.id), "\(elsewhere.errors)")
  }

  /// A sum that was not handed over yet does not go with somebody in it who objects.
  @Test func anObjectionStopsASumThatHasNotGone() throws {
    var options = TestAgencies.Options.optIn(approval: "{ mode: every-package, approvers: 1, expiresAfter: P5D }")
    options.schema =
      #"{"type":"object","required":["meter","street","litres"],"properties":{"meter":{"type":"string"},"street":{"type":"string"},"litres":{"type":"number"}}}"#
    options.terms =
      #"fields: [ { name: street, category: "pd:Location", action: pass }, { name: litres, category: "ext:X", action: pass } ]"#
      + "\nrecords: { aggregate: { by: [street], measure: litres, function: sum, minGroupSize: 2, countDistinct: meter } }"
    options.subjects =
      "{ classes: [households], impetus: public-body, frequency: ongoing, identifier: { field: meter, type: point } }"
    options.consent =
      "{ model: opt-out, purposeRef: water, maxStaleness: PT24H, onStale: hold, withdrawalMethod: \"by phone\", onWithdrawal: { spooled: reseal, delivered: inform, actWithin: P10D } }"
    let agencies = try TestAgencies(options)
    try agencies.start()
    let (sender, agreement) = (agencies.sender, TestAgencies.agreement)
    let meters = Data(
      (1...4).map { #"{"meter":"M\#($0)","street":"Long Street","litres":\#($0)}"# + "\n" }.joined().utf8)
    try sender.drop("a.ndjson", meters)
    // Held, and said so, until the registry is heard of.
    #expect(eventually { sender.outcome("a.ndjson", "code") == "consent.source-stale" })
    #expect(try sender.sallyport("status").text.contains("WAITING   1 for consent.source-stale"))
    let heard = try sender.sallyport("consent", "heartbeat", "--agreement", agreement, "--source", "portal")
    #expect(heard.status == 0 && heard.text.contains("portal is new here"), "\(heard.text)\(heard.errors)")
    #expect(eventually { sender.outcome("a.ndjson", "code") == "approval.pending" })
    let known = try sender.sallyport("consent", "sources", "--agreement", agreement)
    #expect(known.status == 0 && known.text.contains("portal"), "\(known.text)\(known.errors)")
    for (name, status) in [("another", Int32(1)), ("portal", 0), ("portal", 1)] {
      #expect(try sender.sallyport("consent", "sources", "--agreement", agreement, "--retire", name).status == status)
    }
    for name in ["portal", "por\ntal"] {
      let heard = try sender.sallyport("consent", "heartbeat", "--agreement", agreement, "--source", name)
      #expect(heard.status == (name == "portal" ? 0 : 65), "\(heard.errors)")
    }
    let objected = try sender.sallyport("consent", "withdraw", "M4", "--object", "--agreement", agreement)
    #expect(objected.text.contains("1 package was stopped"), "\(objected.text)\(objected.errors)")
    #expect(sender.outcome("a.ndjson") == "cancelled")
    try sender.drop("b.ndjson", meters)
    #expect(eventually { sender.outcome("b.ndjson", "code") == "approval.pending" })
    let id = sender.outcome("b.ndjson", "id") ?? ""
    #expect(try sender.sallyport("agreements", "approve", id, "--by", "Ana").status == 0)
    #expect(eventually { sender.outcome("b.ndjson") == "delivered" })
    let arrived = agencies.recipient.inbox(from: sender, "b.ndjson").map { String(decoding: $0, as: UTF8.self) }
    #expect(arrived?.contains("6") == true && arrived?.contains("10") == false, "\(arrived ?? "")")
    // Handed over, a sum is about nobody: nobody is told. People who are in it see it, others do not.
    let later = try sender.sallyport("consent", "withdraw", "M3", "--object", "--agreement", agreement, "--json")
    #expect(later.text.contains("\"alreadyDisclosed\":[]") && later.text.contains("\"notices\":[]"), "\(later.text)")
    #expect(try sender.sallyport("report", "M1", "--json").lines.count == 2)
    #expect(try sender.sallyport("report", "M4", "--json").lines.count == 1)
    let audit = try sender.sallyport("consent", "audit")
    #expect(audit.status == 0 && audit.text.contains("with 3 records: the release rule held"), "\(audit.text)")
    try agencies.stop()
    #expect(try agencies.findings() == [])
  }

  /// Whoever stops the version in force has stopped the exchange: the version before does not come back.
  @Test(arguments: ["suspend", "revoke"])
  func stoppingAVersionBringsNoOtherBack(act: String) throws {
    let agencies = try TestAgencies()
    let agreement = TestAgencies.agreement
    let text = try String(contentsOfFile: "\(agencies.sender.home)/policies/\(agreement).yaml", encoding: .utf8)
    let first = try agencies.sender.sallyport("agreements", "show", agreement, "--json").text.firstMatch(
      of: /"sha256":"([0-9a-f]{64})"/)
    let second = text.replacing("version: 1\n", with: "version: 2\nsupersedes: \"sha256:\(first?.1 ?? "")\"\n")
    for agency in [agencies.sender, agencies.recipient] {
      try Data(second.utf8).write(to: URL(fileURLWithPath: "\(agency.home)/policies/\(agreement).v2.yaml"))
    }
    try agencies.start()
    for agency in [agencies.sender, agencies.recipient] {
      let signed = try agency.sallyport("agreements", "sign", agreement, "--role", "data-officer", "--signer", "Ana")
      #expect(signed.status == 0, "\(signed.errors)")
    }
    func states(_ agency: TestAgency) throws -> [String] {
      try agency.sallyport("agreements", "list", "--json").lines.compactMap {
        $0.firstMatch(of: /"state":"([^"]*)"/).map { String($0.1) }
      }
    }
    for agency in [agencies.sender, agencies.recipient] {
      #expect(try eventually { try states(agency) == ["superseded", "valid"] })
    }
    try agencies.sender.drop("a.txt", Data("x".utf8))
    #expect(eventually { agencies.sender.outcome("a.txt") == "delivered" })
    let stop = try agencies.sender.sallyport(
      "agreements", "sign", agreement, "--act", act, "--role", "data-officer", "--signer", "Ana")
    #expect(stop.status == 0, "\(stop.errors)")
    let stopped = act == "suspend" ? "suspended" : "revoked"
    for agency in [agencies.sender, agencies.recipient] {
      #expect(try eventually { try states(agency) == ["superseded", stopped] })
    }
    try agencies.sender.drop("b.txt", Data("x".utf8))
    #expect(eventually { agencies.sender.outcome("b.txt", "code") == "agreement.\(stopped)" })
    #expect(agencies.recipient.inboxNames(from: agencies.sender) == ["a.txt"])
  }

  /// With a recipient that can be told, with one that only calls out, and with two that only call out and a hub between them.
  @Test(arguments: [("relay", false), ("collect", false), ("collect", true)])
  func anAgreementIsOfferedAcceptedSuspendedAndResumed(delivery: String, hasHub: Bool) throws {
    var options = TestAgencies.Options()
    options.isSigned = false
    options.delivery = delivery
    options.callsOutOnly = delivery == "collect"
    options.hasHub = hasHub
    let agencies = try TestAgencies(options)
    let agreement = TestAgencies.agreement
    try FileManager.default.removeItem(atPath: "\(agencies.recipient.home)/policies/\(agreement).yaml")
    if let hub = agencies.hub {
      let signed = try hub.sallyport("agreements", "sign", agreement, "--role", "operations", "--signer", "Op")
      #expect(signed.status == 0, "\(signed.errors)")
    }
    try agencies.start()
    try agencies.sender.drop("a.txt", Data("x".utf8))
    #expect(eventually { agencies.sender.outcome("a.txt", "code") == "agreement.unsigned" })
    func act(_ agency: TestAgency, _ name: String, _ act: String) throws -> CommandResult {
      try agency.sallyport("agreements", "sign", name, "--act", act, "--role", "data-officer", "--signer", "Ana")
    }
    #expect(
      try agencies.sender.sallyport("agreements", "sign", agreement, "--role", "king", "--signer", "Ana").status == 77)
    #expect(try act(agencies.sender, agreement, "accept").text.contains("signatures are missing"))
    if options.callsOutOnly {
      // It looks in every five minutes, and when it starts.
      agencies.recipient.stop()
      try agencies.recipient.start()
    }
    let offers = "\(agencies.recipient.home)/policies/offered"
    // Not the name of one that is being written, which begins with a dot.
    func offered() -> String? {
      let files = FileManager.default.enumerator(atPath: offers)?.compactMap { ($0 as? String)?.split(separator: "/") }
      return files?.first { $0.count == 2 && !$0[1].hasPrefix(".") }.map { String($0[1]) }
    }
    #expect(eventually { offered() != nil })
    let digest = String(try #require(offered()).prefix(64))
    for command in [["agreements", "list"], ["status"], ["doctor"]] {
      let told = try Command.sallyport(command + ["--home", agencies.recipient.home])
      #expect(told.text.contains(digest), "\(command): \(told.text)\(told.errors)")
    }
    #expect(try agencies.recipient.sallyport("agreements", "show", digest).text.contains("Test files"))
    // One that cannot be read keeps nothing else back.
    let partner = try FileManager.default.contentsOfDirectory(atPath: offers)[0]
    let unreadable = "\(offers)/\(partner)/\(String(repeating: "0", count: 64)).yaml"
    try Data("\u{7F}: [".utf8).write(to: URL(fileURLWithPath: unreadable))
    #expect(try agencies.recipient.sallyport("agreements", "list").text.contains(digest))
    try FileManager.default.removeItem(atPath: unreadable)
    // A file that cannot be read is beside the acts, and keeps none of them from counting.
    let broken = [agencies.sender, agencies.recipient].map { "\($0.home)/policies/broken.yaml" }
    for path in broken { try Data("id: [".utf8).write(to: URL(fileURLWithPath: path)) }
    let accepted = try agencies.recipient.sallyport(
      "agreements", "accept", digest, "--role", "data-officer", "--signer", "Bo")
    #expect(accepted.status == 0, "\(accepted.errors)")
    func state(_ agency: TestAgency) -> String {
      let list = try? agency.sallyport("agreements", "list", "--json").text
      return String(list?.firstMatch(of: /"state":"([^"]*)"/)?.1 ?? "")
    }
    #expect(eventually { state(agencies.sender) == "valid" && state(agencies.recipient) == "valid" })
    try agencies.sender.drop("b.txt", Data("x".utf8))
    #expect(eventually { agencies.sender.outcome("b.txt") == "delivered" })
    #expect(try act(agencies.recipient, agreement, "suspend").status == 0)
    #expect(eventually { state(agencies.sender) == "suspended" })
    #expect(try act(agencies.sender, agreement, "resume").text.contains("whoever suspended it resumes it"))
    #expect(state(agencies.sender) == "suspended")
    try agencies.sender.drop("c.txt", Data("x".utf8))
    #expect(try act(agencies.recipient, agreement, "resume").status == 0)
    #expect(eventually { agencies.sender.outcome("c.txt") == "delivered" })
    #expect(try act(agencies.sender, agreement, "revoke").status == 0)
    #expect(eventually { state(agencies.recipient) == "revoked" })
    try agencies.sender.drop("d.txt", Data("x".utf8))
    #expect(eventually { agencies.sender.outcome("d.txt", "code") == "agreement.revoked" })
    for path in broken { try FileManager.default.removeItem(atPath: path) }
    try agencies.stop()
    #expect(try agencies.findings() == [])
  }

  /// The key that signed a suspension is revoked: what was accepted with it counts no more, what was stopped stays stopped.
  @Test func aStopOutlivesTheKeyThatSignedIt() throws {
    let agencies = try TestAgencies()
    let (sender, recipient) = (agencies.sender, agencies.recipient)
    try agencies.start()
    func act(_ act: String) throws -> Int32 {
      try recipient.sallyport(
        "agreements", "sign", TestAgencies.agreement, "--act", act, "--role", "data-officer", "--signer", "Ana"
      ).status
    }
    func state() throws -> String {
      let list = try sender.sallyport("agreements", "list", "--json").text
      return String(list.firstMatch(of: /"state":"([^"]*)"/)?.1 ?? "")
    }
    func keys(_ arguments: String...) throws {
      let changed = try Command.sallyport(["keys"] + arguments + ["--home", recipient.home])
      #expect(changed.status == 0, "\(changed.errors)")
      _ = try sender.sallyport("partners", "add", "\(recipient.home)/keys/card.json")
      let fingerprint = try recipient.sallyport("keys", "fingerprint").lines[0]
      let approved = try sender.sallyport("partners", "approve", recipient.id, "--fingerprint", fingerprint)
      #expect((approved.status == 0) == (arguments[0] == "revoke"), "\(approved.errors)")
    }
    #expect(try state() == "valid")
    try keys("rotate", "--use", "sign")
    let lines = try recipient.sallyport("keys", "list", "--json").lines
    let active = lines.first { $0.contains("ed25519:") && $0.contains("\"active\"") }
    let key = try #require(active?.firstMatch(of: /ed25519:[0-9a-f]+/)?.0)
    #expect(try act("suspend") == 0)
    #expect(try eventually { try state() == "suspended" })
    try keys("rotate", "--use", "sign")
    try keys("revoke", String(key))
    #expect(try state() == "suspended")
    sender.stop()
    try sender.start()
    #expect(try state() == "suspended")
    #expect(try act("resume") == 0)
    #expect(try eventually { try state() == "valid" })
    try agencies.stop()
    #expect(try agencies.findings() == [])
  }

  @Test func theShippedExamplesPassTheirCases() throws {
    let result = try Command.sallyport(["agreements", "test", Command.root.appendingPathComponent("policies").path])
    #expect(result.status == 0, "\(result.text)\(result.errors)")
  }

  @Test func aFieldIsFollowedThroughOnwardAgreements() throws {
    func ask(_ field: String, _ agency: String) throws -> Int32 {
      try Command.sallyport(
        [
          "agreements", "ask", "--field", field, "--reach", agency, "--folder",
          Command.root.appendingPathComponent("policies").path,
        ]
      ).status
    }
    #expect(try ask("condition.code", "cover.demo.example") == 0)
    #expect(try ask("subject.name", "cover.demo.example") == 77)
    #expect(try ask("pd:MedicalHealth", "council.demo.example") == 77)
    #expect(try ask("street", "council.demo.example") == 0)
    #expect(try ask("/condition/code", "cover.demo.example") == 0)
    #expect(try ask("condition/code", "cover.demo.example") == 77)
  }
}
