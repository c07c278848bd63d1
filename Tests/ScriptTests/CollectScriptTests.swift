// Packages that wait: collected by a gateway, by a stopped home's command, and by curl, openssl and age as docs/COLLECT.md says.

import Foundation
import Gateway
import Policies
import Sealing
import Store
import TestSupport
import Testing

@Suite struct CollectScriptTests {
  static func options(_ more: String = "") -> TestAgencies.Options {
    var options = TestAgencies.Options()
    options.delivery = "collect\(more)"
    return options
  }

  static func random(_ count: Int) -> Data {
    var bytes = [UInt8](repeating: 0, count: count)
    bytes.withUnsafeMutableBytes {
      $0.withMemoryRebound(to: UInt64.self) { for i in $0.indices { $0[i] = .random(in: .min ... .max) } }
    }
    return Data(bytes)
  }

  @Test func whatWaitsIsCollectedOnceAndSignedFor() throws {
    let agencies = try TestAgencies(Self.options())
    try agencies.start()
    let large = Self.random(5 << 20)
    let files = ["small.txt": Data("hello".utf8), "large.bin": large, "segment.bin": large.prefix(1 << 20)]
    for (name, bytes) in files { try agencies.sender.drop(name, bytes) }
    for (name, bytes) in files {
      #expect(eventually { agencies.recipient.inbox(from: agencies.sender, name) == bytes }, "\(name)")
      #expect(eventually { agencies.sender.outcome(name) == "delivered" }, "\(name)")
    }
    #expect(
      try eventually {
        try agencies.recipient.sallyport("queue", "--all", "--json").lines.allSatisfy {
          $0.contains(#""state":"acknowledged""#)
        }
      })
    // Each step is in the sender's ledger, and each receipt is signed by the recipient.
    let id = try #require(try agencies.sender.sallyport("queue", "--all", "--json").lines.first.flatMap(Self.id))
    let trace = try agencies.sender.sallyport("trace", id)
    for step in [
      "sealed", "queued", "custody", "releasing", "released", "confirmed", "receipt  received", "receipt  delivered",
    ] {
      #expect(trace.text.contains(step), "\(step)")
    }
    try agencies.stop()
    #expect(try agencies.findings() == [])
    #expect(try FileManager.default.contentsOfDirectory(atPath: "\(agencies.sender.home)/spool/out") == [])
  }

  /// Whether a package comes to wait at `agency`.
  static func waits(_ agency: TestAgency) throws -> Bool {
    try eventually { try agency.sallyport("queue", "--json").text.contains(#""state":"queued""#) }
  }

  static func id(_ line: String) -> String? {
    line.firstMatch(of: /"id":"([a-z2-7]{26})"/).map { String($0.1) }
  }

  @Test func aStoppedHomeCollectsByCommandAndSaysHow() throws {
    let agencies = try TestAgencies(Self.options())
    try agencies.sender.start()
    let bytes = Self.random(3 << 20)
    try agencies.sender.drop("waits.bin", bytes)
    #expect(try Self.waits(agencies.sender))
    var result = try agencies.recipient.sallyport("collect", "--json")
    #expect(result.status == 0 && result.text.contains(#""state":"acknowledged""#), "\(result.text) \(result.errors)")
    #expect(agencies.recipient.inbox(from: agencies.sender, "waits.bin") == bytes)
    #expect(eventually { agencies.sender.outcome("waits.bin") == "delivered" })
    result = try agencies.recipient.sallyport("collect", agencies.sender.id)
    #expect(result.status == 0 && result.errors.contains("nothing waits"))
    // Nobody to collect from; nobody there.
    #expect(try agencies.recipient.sallyport("collect", "other.example.gov").status == 78)
    agencies.sender.stop()
    result = try agencies.recipient.sallyport("collect")
    #expect(result.status == 69 && result.text.contains("unreachable"), "\(result.text)")
    #expect(try agencies.findings() == [])
  }

  @Test func whatIsCancelledIsGoneAndWhatIsHeldWaits() throws {
    let agencies = try TestAgencies(Self.options())
    try agencies.sender.start()
    for name in ["a.txt", "b.txt"] {
      try agencies.sender.drop(name, Data(name.utf8))
      #expect(
        try eventually {
          try agencies.sender.sallyport("queue", "--json").lines.contains {
            $0.contains(name) && $0.contains(#""queued""#)
          }
        })
    }
    let rows = try agencies.sender.sallyport("queue", "--json").lines
    let a = try #require(rows.first { $0.contains("a.txt") }.flatMap(Self.id))
    let b = try #require(rows.first { $0.contains("b.txt") }.flatMap(Self.id))
    #expect(try agencies.sender.sallyport("cancel", a).status == 0)
    #expect(try agencies.sender.sallyport("hold", b).status == 0)
    #expect(try agencies.recipient.sallyport("collect").errors.contains("nothing waits"))
    #expect(try agencies.sender.sallyport("resume", b).status == 0)
    #expect(try eventually { try agencies.recipient.sallyport("collect").text.contains("b.txt") })
    #expect(agencies.recipient.inboxNames(from: agencies.sender) == ["b.txt"])
    agencies.sender.stop()
    #expect(try agencies.findings() == [])
  }

  // MARK: stock tools

  /// A partner without a gateway: a folder with its keys, known to the sender, and the agreement signed.
  struct Partner {
    let agencies: TestAgencies
    let folder: String
    let environment: [String: String]

    init(_ options: TestAgencies.Options) throws {
      var options = options
      options.introduces = false
      options.isSigned = false
      agencies = try TestAgencies(options)
      folder = "\(agencies.scratch.path)/partner"
      try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
      let sender = agencies.sender
      // `sallyport` as the administrator types it: on the sender's home.
      try Data("#!/bin/sh\nexec \(Command.sallyport) \"$@\" --home \(sender.home)\n".utf8)
        .write(to: URL(fileURLWithPath: "\(folder)/sallyport"))
      chmod("\(folder)/sallyport", 0o755)
      let card = try sender.sallyport("card", "show").text
      let path = ProcessInfo.processInfo.environment["PATH"] ?? ""
      let known: [String: String] = [
        "PATH": "\(folder):\(path)", "PARTNER": agencies.recipient.id, "AGREEMENT": TestAgencies.agreement,
        "GATEWAY": Self.line("endpoint", card), "PIN": Self.line("tls pin", card),
      ]
      environment = known
      try sender.start()
    }

    static func line(_ name: String, _ card: String) -> String {
      card.split(separator: "\n").first { $0.hasPrefix(name) }?.dropFirst(name.count).trimmingCharacters(
        in: .whitespaces)
        ?? ""
    }

    func shell(_ script: String, _ more: [String: String] = [:]) throws -> CommandResult {
      try Command.run(
        "/bin/bash", ["-euo", "pipefail", "-c", script], environment: environment.merging(more) { _, new in new },
        directory: folder)
    }

    /// The page's commands of one kind, as written.
    static func blocks(_ kind: String) throws -> [String] {
      let page = try String(contentsOf: Command.root.appendingPathComponent("docs/COLLECT.md"), encoding: .utf8)
      return page.components(separatedBy: "```sh").dropFirst().compactMap { rest in
        let end = rest.range(of: "```")!.lowerBound
        let head = rest.prefix { $0 != "\n" }.trimmingCharacters(in: .whitespaces)
        return head == kind ? String(rest[rest.firstIndex(of: "\n")!..<end]) : nil
      }
    }

    /// Steps 1 and 2 of the page.
    func introduce() throws {
      let own = try Self.blocks("")
      let keys = try shell(own[0])
      #expect(keys.status == 0, "\(keys.errors)")
      let computed = try shell(own[1]).text.prefix(64)
      let administrator = try Self.blocks("administrator")
      // What `add` prints is what both sides compare, and what the partner computes from its own files.
      let added = try shell(administrator[0].components(separatedBy: "\n").first { $0.contains("partners add") }!)
      let fingerprint = Self.line("fingerprint", added.text)
      #expect(
        try agencies.sender.sallyport("partners", "list", "--json").text.contains(computed) && computed.count == 64)
      for step in administrator {
        let result = try shell(step, ["FINGERPRINT": fingerprint])
        #expect(result.status == 0, "\(step) \(result.errors)")
      }
      let signed = try agencies.sender.sallyport(
        "agreements", "sign", TestAgencies.agreement, "--role", "data-officer", "--signer", "Officer")
      #expect(signed.status == 0 && signed.text.contains("valid"), "\(signed.text)\(signed.errors)")
    }

    func drop(_ name: String, _ bytes: Data) throws {
      try agencies.sender.drop(name, bytes)
      #expect(try CollectScriptTests.waits(agencies.sender))
    }

    func file(_ name: String) -> Data? { FileManager.default.contents(atPath: "\(folder)/\(name)") }
  }

  @Test func aPartnerWithStockToolsDoesWhatThePageSays() throws {
    var options = Self.options()
    options.wholeFile = true
    let partner = try Partner(options)
    try partner.introduce()
    let bytes = Self.random(3 << 20)
    try partner.drop("for-you.bin", bytes)
    let steps = try Partner.blocks("")
    // Asking for the key before saying `received` is out of order.
    let early = try partner.shell(
      steps[2]
        + "curl -s --cert partner.pem --key partner.key -k --pinnedpubkey $PIN -X POST $GATEWAY/v1/transfers/$ID/key")
    #expect(early.status == 0 && early.text.contains("key.early"), "\(early.text) \(early.errors)")
    let all = try partner.shell(steps[2...].joined(separator: "\n") + "\nsha256sum $ID.age; cp $ID.payload payload")
    #expect(all.status == 0 && all.text.contains("Signature Verified Successfully"), "\(all.text)\(all.errors)")
    #expect(partner.file("payload") == bytes)
    let digest = all.lines.last?.prefix(64) ?? ""
    #expect(partner.file("manifest.json").map { String(decoding: $0, as: UTF8.self).contains(digest) } == true)
    #expect(eventually { partner.agencies.sender.outcome("for-you.bin") == "delivered" })
    // Its answer may have got lost.
    let again = try partner.shell(
      """
      ID=$(ls *.age | cut -d. -f1)
      curl -s --fail --cert partner.pem --key partner.key -k --pinnedpubkey $PIN -X PUT -d '{"statement":"delivered"}' \
        $GATEWAY/v1/transfers/$ID/receipts
      """)
    #expect(again.status == 0, "\(again.text)")
    // A changed manifest does not verify.
    let forged = try partner.shell(
      "sed -i s/for-you/for-me_/ signed; openssl pkeyutl -verify -pubin -inkey sender.pem -rawin -in signed -sigfile signature"
    )
    #expect(forged.status != 0)
    #expect(partner.agencies.sender.stop() == 0)
  }

  @Test func keyAndBodyInOneRequestCountAsCollectedWhenTheAgreementSaysSo() throws {
    let partner = try Partner(Self.options(", downloadCounts: true"))
    try partner.introduce()
    let bytes = Self.random(2 << 20)
    try partner.drop("whole.bin", bytes)
    let page = try partner.shell("curl -s --cert partner.pem --key partner.key -k --pinnedpubkey $PIN $GATEWAY/")
    #expect(page.text.contains("whole.bin") && page.text.contains("Packages for \(partner.agencies.recipient.id)"))
    let result = try partner.shell(Partner.blocks("whole")[0] + "\ncp $ID.payload payload")
    #expect(result.status == 0, "\(result.errors)")
    #expect(partner.file("payload") == bytes)
    #expect(eventually { partner.agencies.sender.outcome("whole.bin") == "delivered" })
    let id = try #require(
      try partner.agencies.sender.sallyport("queue", "--all", "--json").lines.first.flatMap(Self.id))
    let gone = try partner.shell(
      "curl -s --cert partner.pem --key partner.key -k --pinnedpubkey $PIN $GATEWAY/v1/transfers/\(id)/body")
    #expect(gone.text.contains(#""status":410"#))
    #expect(partner.agencies.sender.stop() == 0)
  }

  /// At this pace the download would take an hour.
  @Test func stoppingDoesNotWaitForASlowReaderWhoGoesOnLater() throws {
    let partner = try Partner(Self.options())
    try partner.introduce()
    let bytes = Self.random(36 << 20)
    try partner.drop("slow.bin", bytes)
    let curl = "curl -s --fail --cert partner.pem --key partner.key -k --pinnedpubkey $PIN"
    let body = #"ID=$(\#(curl) $GATEWAY/v1/transfers | sed 's/.*"id":"\([a-z2-7]*\)".*/\1/'); \#(curl) -o body -C -"#
    let slow = Process()
    slow.executableURL = URL(fileURLWithPath: "/bin/bash")
    slow.arguments = [
      "-c", "\(body.replacing("; curl", with: "; exec curl")) --limit-rate 10K $GATEWAY/v1/transfers/$ID/body",
    ]
    slow.environment = partner.environment
    slow.currentDirectoryURL = URL(fileURLWithPath: partner.folder)
    try slow.run()
    #expect(eventually { (partner.file("body")?.count ?? 0) > 0 })
    #expect(partner.agencies.sender.stop() == 0)
    kill(slow.processIdentifier, SIGKILL)
    slow.waitUntilExit()
    #expect(try #require(partner.file("body")).count < bytes.count)
    try partner.agencies.sender.start()
    let rest = try partner.shell("\(body) $GATEWAY/v1/transfers/$ID/body")
    #expect(rest.status == 0 && (partner.file("body")?.count ?? 0) > bytes.count, "\(rest.errors)")
    #expect(partner.agencies.sender.stop() == 0)
  }

  static let schemathesis = ProcessInfo.processInfo.environment["SALLYPORT_SCHEMATHESIS"]

  /// Run by scripts/api. What is well-formed by the description may still be signed by nobody: that a server then refuses is no finding.
  @Test(.enabled(if: schemathesis != nil, "scripts/api brings schemathesis"))
  func theDescriptionHoldsOnTheRunningServer() throws {
    let partner = try Partner(Self.options())
    try partner.introduce()
    try partner.drop("waits.bin", Self.random(100_000))
    try Data("[parameters]\nwait = 0\n".utf8).write(to: URL(fileURLWithPath: "\(partner.folder)/schemathesis.toml"))
    let result = try partner.shell(
      """
      cat partner.pem partner.key > both.pem
      curl -s --cert both.pem -k --pinnedpubkey "$PIN" "$GATEWAY/v1/openapi.json" -o openapi.json
      \(Self.schemathesis!) run openapi.json --url "$GATEWAY" --request-cert both.pem --tls-verify=false \
        --max-examples 100 --seed 1 --exclude-checks positive_data_acceptance --no-color
      """)
    #expect(result.status == 0, "\(result.text.suffix(4000))\(result.errors)")
    print(result.lines.suffix(5).joined(separator: "\n"))
    #expect(partner.agencies.sender.stop() == 0)
  }

  // MARK: consent

  @Test func whoWithdrawsBeforeTheKeyIsAskedForIsNotInWhatIsCollected() throws {
    var options = TestAgencies.Options.optIn()
    options.delivery = "collect"
    let agencies = try TestAgencies(options)
    try agencies.sender.start()
    let agreement = TestAgencies.agreement
    for person in ["P1", "P2"] {
      #expect(try agencies.sender.sallyport("consent", "grant", person, "--agreement", agreement).status == 0)
    }
    try agencies.sender.drop("people.ndjson", TestRecords.of(["P1", "P2"]))
    #expect(try Self.waits(agencies.sender))
    let before = try #require(try agencies.sender.sallyport("queue", "--json").lines.first.flatMap(Self.id))
    #expect(try agencies.sender.sallyport("consent", "withdraw", "P1", "--agreement", agreement).status == 0)
    let collected = try agencies.recipient.sallyport("collect", "--json")
    #expect(collected.status == 0 && !collected.text.contains(before), "\(collected.text)\(collected.errors)")
    #expect(TestRecords.claims(agencies.recipient.inbox(from: agencies.sender, "people.ndjson")) == ["P2"])
    let audit = try agencies.sender.sallyport("consent", "audit")
    #expect(audit.status == 0 && audit.text.contains("the release rule held"), "\(audit.text)")
    agencies.sender.stop()
    #expect(try agencies.findings() == [])
  }

  @Test func underConsentThereIsNoPackageInOneRequest() throws {
    var options = TestAgencies.Options.optIn()
    options.delivery = "collect, downloadCounts: true"
    let partner = try Partner(options)
    try partner.introduce()
    #expect(
      try partner.agencies.sender.sallyport("consent", "grant", "P1", "--agreement", TestAgencies.agreement).status == 0
    )
    try partner.drop("people.ndjson", TestRecords.of(["P1"]))
    let get =
      "get() { curl -s --cert partner.pem --key partner.key -k --pinnedpubkey $PIN $GATEWAY/v1/transfers\"$@\"; };"
    let id = try #require(Self.id(try partner.shell("\(get) get").text))
    #expect(try partner.shell("\(get) get /\(id)/package.age").text.contains("package.consent"))
    // All bytes of the body count as `received`; then the key; and that counts as `delivered`.
    #expect(try partner.shell("\(get) get /\(id)/key -X POST").text.contains("key.early"))
    #expect(try partner.shell("\(get) get /\(id)/body -r 0-9 -o body; get /\(id)/body -r 10- >> body").status == 0)
    #expect(
      try eventually {
        try partner.shell(
          "\(get) get /\(id)/key -X POST -o key; cat key body | age -d -i identity.txt -o payload && cat payload"
        ).text.contains("C-P1")
      })
    #expect(eventually { partner.agencies.sender.outcome("people.ndjson") == "delivered" })
    #expect(try partner.agencies.sender.sallyport("trace", id).text.contains("evidence download"))
    try answersNotices(partner, id)
    #expect(partner.agencies.sender.stop() == 0)
    #expect(try partner.agencies.sender.sallyport("check", "--deep").status == 0)
  }

  /// A withdrawal after delivery: by the page's commands, and on paper.
  private func answersNotices(_ partner: Partner, _ package: String) throws {
    let sender = partner.agencies.sender
    let withdrawn = try sender.sallyport("consent", "withdraw", "P1", "--agreement", TestAgencies.agreement)
    #expect(withdrawn.status == 0, "\(withdrawn.errors)")
    let page = try partner.shell("curl -s --cert partner.pem --key partner.key -k --pinnedpubkey $PIN $GATEWAY/")
    #expect(page.text.contains("People who have withdrawn") && page.text.contains("restrict"), "\(page.text)")
    let steps = try Partner.blocks("notice")
    let asked = try partner.shell(steps[0] + "\necho $NOTICE; cat $NOTICE.json")
    #expect(asked.status == 0 && asked.text.contains(#"{"package":"\#(package)","records":[0]}"#), "\(asked.errors)")
    let notice = asked.lines.first ?? ""
    func answer(_ more: String...) throws -> CommandResult {
      try Command.sallyport(["consent", "answer", notice, "--home", sender.home] + more)
    }
    func state() throws -> Substring? {
      try sender.sallyport("consent", "notices", "--json").text.firstMatch(of: /"state":"([a-z]*)"/)?.1
    }
    #expect(try state() == "unanswered")
    let get = "curl -s --cert partner.pem --key partner.key -k --pinnedpubkey $PIN -X PUT"
    #expect(
      try partner.shell("\(get) -d '{\"state\":\"done\"}' $GATEWAY/v1/notices/\(notice)/receipt").text.contains("400"))
    // Not about a notice that we have from somebody; not for somebody who is not there; a paper is named.
    #expect(try answer("--state", "actioned").status == 77)
    #expect(try answer("--state", "actioned", "--for", partner.agencies.recipient.id).status == 64)
    #expect(try answer("--state", "actioned", "--for", "nobody.gov", "--evidence", "letter").status == 1)
    let paper = try answer("--state", "received", "--for", partner.agencies.recipient.id, "--evidence", "letter 4711")
    #expect(paper.status == 0, "\(paper.errors)")
    #expect(try state() == "received")
    let said = try partner.shell(steps.joined())
    #expect(said.status == 0, "\(said.errors)")
    #expect(try state() == "actioned")
    #expect(try partner.shell(steps[0]).text.contains("no notice"))
  }

  @Test func aDownloadThatWasCutAndResumedCountsToo() throws {
    let partner = try Partner(Self.options(", downloadCounts: true"))
    try partner.introduce()
    let bytes = Self.random(24 << 20)
    try partner.drop("cut.bin", bytes)
    let result = try partner.shell(
      """
      get() { curl -s --cert partner.pem --key partner.key -k --pinnedpubkey $PIN $GATEWAY/v1/transfers"$@"; }
      ID=$(get "" | sed 's/.*"id":"\\([a-z2-7]*\\)".*/\\1/')
      get /$ID/body -o body --limit-rate 4M --max-time 1 || true
      get /$ID/body -o body --continue-at -
      for try in 1 2 3 4 5 6 7 8 9 10; do get /$ID/key -X POST -o key --fail && break; sleep 0.2; done
      cat key body | age -d -i identity.txt -o payload
      """)
    #expect(result.status == 0, "\(result.errors)")
    #expect(partner.file("payload") == bytes)
    #expect(eventually { partner.agencies.sender.outcome("cut.bin") == "delivered" })
    #expect(partner.agencies.sender.stop() == 0)
  }

  @Test func aPackageSealedToAReplacedIdentityIsNotReleased() throws {
    let partner = try Partner(Self.options())
    try partner.introduce()
    try partner.drop("\u{d4e}<h1>.bin", Self.random(1000))
    let again = try partner.shell(
      """
      age-keygen -o new.txt 2>/dev/null
      sallyport partners add --agency $PARTNER --certificate partner.pem --recipient $(age-keygen -y new.txt)
      """)
    let fingerprint = Partner.line("fingerprint", again.text)
    #expect(try partner.shell("sallyport partners approve $PARTNER --fingerprint \(fingerprint)").status == 0)
    let get = "get() { curl -s --cert partner.pem --key partner.key -k --pinnedpubkey $PIN $GATEWAY\"$@\"; };"
    let id = try #require(Self.id(try partner.shell("\(get) get /v1/transfers").text))
    let key = try partner.shell(
      "\(get) get /v1/transfers/\(id)/receipts -X PUT -d '{ \"statement\" : \"received\" }' -o /dev/null; get /v1/transfers/\(id)/key -X POST"
    )
    #expect(key.text.contains("key.revoked"), "\(key.text)")
    // Nor does a name become a part of the page.
    let page = try partner.shell("\(get) get /").text
    #expect(page.contains("&lt;h1&gt;") && page.components(separatedBy: "<h1>").count == 2)
    #expect(partner.agencies.sender.stop() == 0)
  }

  // MARK: crashes and damage

  @Test func aFetchThatWasKilledGoesOnAndDeliversOnce() throws {
    let agencies = try TestAgencies(Self.options())
    try agencies.sender.start()
    let bytes = Self.random(48 << 20)
    try agencies.sender.drop("large.bin", bytes)
    #expect(try Self.waits(agencies.sender))
    let spool = "\(agencies.recipient.home)/spool/in/\(agencies.sender.id)"
    try agencies.recipient.start()
    #expect(
      eventually {
        (try? FileManager.default.contentsOfDirectory(atPath: spool))?.contains { $0.hasSuffix(".part") } ?? false
      })
    agencies.recipient.kill()
    try agencies.recipient.start()
    #expect(eventually(60) { agencies.sender.outcome("large.bin") == "delivered" })
    #expect(agencies.recipient.inboxNames(from: agencies.sender) == ["large.bin"])
    #expect(agencies.recipient.inbox(from: agencies.sender, "large.bin") == bytes)
    try agencies.stop()
    #expect(try agencies.findings() == [])
  }

  @Test func whatAnAdministratorWaitsForEndsWhenTheGatewayStops() throws {
    let agencies = try TestAgencies(Self.options())
    try agencies.sender.start()
    let bytes = Self.random(48 << 20)
    try agencies.sender.drop("large.bin", bytes)
    #expect(try Self.waits(agencies.sender))
    let spool = "\(agencies.recipient.home)/spool/in/\(agencies.sender.id)"
    try agencies.recipient.start()
    #expect(
      eventually {
        (try? FileManager.default.contentsOfDirectory(atPath: spool))?.contains { $0.hasSuffix(".part") } ?? false
      })
    agencies.sender.freeze(true)
    let collect = Process()
    collect.executableURL = URL(fileURLWithPath: Command.sallyport)
    collect.arguments = ["collect", "--home", agencies.recipient.home]
    (collect.standardOutput, collect.standardError) = (FileHandle.nullDevice, FileHandle.nullDevice)
    try collect.run()
    _ = eventually(1) { false }
    #expect(collect.isRunning)
    #expect(agencies.recipient.stop() == 0)
    collect.waitUntilExit(atMost: 10)
    #expect(collect.terminationStatus == 75)
    agencies.sender.freeze(false)
    try agencies.recipient.start()
    #expect(eventually(60) { agencies.sender.outcome("large.bin") == "delivered" })
    try agencies.stop()
    #expect(try agencies.findings() == [])
  }

  @Test(arguments: ["relay", "collect"])
  func aDamagedSpoolIsEvidenceAndIsNotTriedForEver(delivery: String) throws {
    var options = TestAgencies.Options()
    options.delivery = delivery
    let agencies = try TestAgencies(options)
    try agencies.sender.start()
    try agencies.sender.drop("damaged.bin", Self.random(100_000))
    #expect(try Self.waits(agencies.sender))
    let spool = "\(agencies.sender.home)/spool/out"
    let body = try #require(
      try FileManager.default.contentsOfDirectory(atPath: spool).first { $0.hasSuffix(".body") })
    truncate("\(spool)/\(body)", 50_000)
    try agencies.recipient.start()
    #expect(eventually { agencies.sender.outcome("damaged.bin") == "failed" })
    #expect(try agencies.sender.sallyport("queue", "--all", "--json").text.contains(#""code":"spool.damaged""#))
    // Evidence stays, also over a start.
    #expect(agencies.sender.stop() == 0)
    try agencies.sender.start()
    #expect(FileManager.default.fileExists(atPath: "\(spool)/\(body)"))
    #expect(agencies.recipient.inboxNames(from: agencies.sender) == [])
    try agencies.stop()
  }

  // MARK: hostile and greedy clients

  @Test func rangesAndPathsAndMethodsAreHeldToTheirLetters() throws {
    let partner = try Partner(Self.options())
    try partner.introduce()
    try partner.drop("a.bin", Self.random(200_000))
    let get =
      "get() { curl -s --path-as-is --cert partner.pem --key partner.key -k --pinnedpubkey $PIN $GATEWAY\"$@\"; };"
    let id = try #require(Self.id(try partner.shell("\(get) get /v1/transfers").text))
    let body = "/v1/transfers/\(id)/body"
    let etag = try #require(
      try partner.shell("\(get) get \(body) -I").text.firstMatch(of: /(?i)etag: ("[0-9a-f]{64}")/).map { String($0.1) })
    let bytes = 200_000 + 4 * 16
    let many = (0..<1000).map { "\($0)-\($0)" }.joined(separator: ",")
    for (arguments, status, size) in [
      ("-r 0-0", 206, 1), ("-r 10-19", 206, 10), ("-r -5", 206, 5), ("-r \(bytes - 1)-", 206, 1),
      ("-r 5-99999999", 206, bytes - 5), ("-r \(bytes)-", 416, nil), ("-r 0-0,2-2", 416, nil), ("-r \(many)", 416, nil),
      ("-H 'Range: bytes=5-2'", 200, bytes), ("-H 'Range: lines=1-2'", 200, bytes),
      ("-H 'Range: bytes=a-b'", 200, bytes),
      ("-r 0-9 -H 'If-Range: \(etag)'", 206, 10), (#"-r 0-9 -H 'If-Range: "0"'"#, 200, bytes),
      ("-r 99999999999999999999-", 416, nil), ("-r -0", 416, nil),
    ] as [(String, Int, Int?)] {
      let result = try partner.shell("\(get) get \(body) \(arguments) -o part -w '%{http_code}'")
      #expect(result.text == "\(status)", "\(arguments.prefix(40)): \(result.text)")
      if let size { #expect(partner.file("part")?.count == size, "\(arguments.prefix(40))") }
    }
    for path in [
      "/v1/transfers/../transfers/\(id)/body", "/v1/transfers/\(id)/body/", "/v1//transfers",
      "/v1/transfers/%2e%2e/card",
      "/v1/transfers/\(id.uppercased())/body", "/v1/transfers/\(TransferID())/body", "/v1/transfers/\(id)/body%00",
      "/etc/passwd",
      "/v1/transfers/\(id)/../../../../etc/passwd",
    ] {
      #expect(try partner.shell("\(get) get '\(path)' -o /dev/null -w '%{http_code}'").text == "404", "\(path)")
    }
    let post = try partner.shell("\(get) get \(body) -X POST -i")
    #expect(post.text.contains(" 405 ") && post.text.lowercased().contains("allow: head, get, patch"), "\(post.text)")
    // What only a sender does is not there for one who collects.
    for (method, part) in [("PATCH", "body"), ("PUT", "key"), ("DELETE", "")] {
      let path = "/v1/transfers/\(id)\(part.isEmpty ? "" : "/\(part)")"
      let result = try partner.shell(
        "\(get) get \(path) -X \(method) -H 'Upload-Offset: 0' -d x -o /dev/null -w '%{http_code}'")
      #expect(result.text == "404", "\(method) \(part): \(result.text)")
    }
    #expect(partner.agencies.sender.stop() == 0)
  }
}
