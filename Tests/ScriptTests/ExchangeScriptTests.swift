// Two gateways, as users run them: files, folders, commands, exit codes.

import Foundation
import Gateway
import Sealing
import Store
import TestSupport
import Testing

@Suite struct ExchangeScriptTests {
  @Test(arguments: [false, true])
  func aFileDroppedInTheOutboxArrivesOnceWithReceipts(postQuantum: Bool) throws {
    var options = TestAgencies.Options()
    options.postQuantum = postQuantum
    options.wholeFile = postQuantum
    let agencies = try TestAgencies(options)
    try agencies.start()
    let payload = Data((0..<3_000_000).map { UInt8(truncatingIfNeeded: $0 &* 31) })
    try agencies.sender.drop("big.bin", payload)
    try agencies.sender.drop("small.txt", Data("hello".utf8))
    #expect(
      eventually {
        agencies.sender.outcome("big.bin") == "delivered" && agencies.sender.outcome("small.txt") == "delivered"
      })
    #expect(agencies.recipient.inbox(from: agencies.sender, "big.bin") == payload)
    #expect(agencies.recipient.inbox(from: agencies.sender, "small.txt") == Data("hello".utf8))
    #expect(agencies.recipient.inboxNames(from: agencies.sender) == ["big.bin", "small.txt"])
    let id = try #require(agencies.sender.outcome("big.bin", "id"))
    let trace = try agencies.sender.sallyport("trace", id)
    #expect(trace.text.contains("received") && trace.text.contains("delivered") && trace.text.contains("confirmed"))
    #expect(eventually { (try? agencies.recipient.sallyport("trace", id).text.contains("acknowledged")) == true })
    try agencies.stop()
    #expect(try agencies.findings() == [])
    for agency in [agencies.sender, agencies.recipient] {
      #expect(try agency.sallyport("ledger", "verify").status == 0)
    }
  }

  @Test func sendWaitsForTheReceipt() throws {
    let agencies = try TestAgencies()
    try agencies.start()
    let file = try agencies.scratch.file("report.csv", Data("a,b\n".utf8))
    let sent = try agencies.sender.sallyport("send", file, "--agreement", TestAgencies.agreement, "--wait", "--json")
    #expect(sent.status == 0, "\(sent.errors)")
    #expect(sent.text.contains("\"state\":\"confirmed\""))
    #expect(agencies.recipient.inbox(from: agencies.sender, "report.csv") == Data("a,b\n".utf8))
    #expect(try agencies.sender.sallyport("send", file, "--agreement", "no-such", "--wait").status == 77)
  }

  @Test func theSameNameTwiceArrivesTwice() throws {
    let agencies = try TestAgencies()
    try agencies.start()
    for text in ["first", "second"] {
      let file = try agencies.scratch.file("same.txt", Data(text.utf8))
      #expect(try agencies.sender.sallyport("send", file, "--agreement", TestAgencies.agreement, "--wait").status == 0)
    }
    let names = agencies.recipient.inboxNames(from: agencies.sender)
    #expect(names.count == 2 && names.allSatisfy { $0.hasPrefix("same") && $0.hasSuffix(".txt") })
    let texts = names.compactMap { agencies.recipient.inbox(from: agencies.sender, $0) }.map {
      String(decoding: $0, as: UTF8.self)
    }
    #expect(Set(texts) == ["first", "second"])
  }

  /// Whichever ends first, NAME.outcome.json is about the later file.
  @Test func theSameNameTwiceHasTwoOutcomes() throws {
    let agencies = try TestAgencies()
    try agencies.sender.start()
    try agencies.sender.drop("a.txt", Data("first".utf8))
    #expect(eventually { agencies.sender.outcome("a.txt") == "accepted" })
    let first = agencies.sender.outcome("a.txt", "id") ?? ""
    #expect(try agencies.sender.sallyport("hold", first).status == 0)
    try agencies.sender.drop("a.txt", Data("second".utf8))
    #expect(eventually { agencies.sender.outcome("a.txt", "id") ?? first != first })
    try agencies.recipient.start()
    #expect(eventually { agencies.sender.outcome("a.txt") == "delivered" })
    #expect(try agencies.sender.sallyport("resume", first).status == 0)
    #expect(eventually { agencies.sender.outcome("a.txt~\(first.prefix(8))") == "delivered" })
    #expect(agencies.sender.outcome("a.txt", "id") != first && agencies.sender.outcome("a.txt") == "delivered")
    try agencies.stop()
    #expect(try agencies.findings() == [])
  }

  /// Outcome files are not synced: a power cut may take the last ones.
  @Test func outcomesThatAPowerCutTookAreWrittenAgain() throws {
    let agencies = try TestAgencies()
    let (sender, names) = (agencies.sender, ["kept.txt", "lost.txt", "empty.txt", "other.txt"])
    try sender.startSending()
    // The first is claimed before the others: of two files of one name the later one keeps the name.
    for some in [names[...0], names[1...]] {
      for name in some { try sender.drop(name, Data(name.utf8)) }
      #expect(eventually { some.allSatisfy { sender.outcome($0) == "accepted" } })
    }
    #expect(sender.stop() == 0)
    let path = { (name: String) in "\(sender.home)/returned/\(TestAgencies.agreement)/\(name).outcome.json" }
    let file = { (name: String) in
      try FileManager.default.attributesOfItem(atPath: path(name))[.systemFileNumber] as? Int
    }
    let kept = try file("kept.txt")
    try FileManager.default.removeItem(atPath: path("lost.txt"))
    try Data().write(to: URL(fileURLWithPath: path("empty.txt")))
    try Data(contentsOf: URL(fileURLWithPath: path("kept.txt"))).write(to: URL(fileURLWithPath: path("other.txt")))
    let ids = names.map { sender.outcome($0, "id") }
    try sender.start()
    #expect(eventually { names.allSatisfy { sender.outcome($0) == "accepted" } })
    #expect(eventually { sender.outcome("other.txt", "id") != ids[0] })
    #expect(try file("kept.txt") == kept)
    try agencies.recipient.start()
    #expect(eventually { names.allSatisfy { sender.outcome($0) == "delivered" } })
    try agencies.stop()
    #expect(try agencies.findings() == [])
  }

  @Test func whatIsNotAPayloadIsReturnedWithAReason() throws {
    var options = TestAgencies.Options()
    options.namePattern = "*.csv"
    options.bytesMax = 100
    let agencies = try TestAgencies(options)
    try agencies.start()
    let outbox = "\(agencies.sender.home)/outbox/\(TestAgencies.agreement)"
    let returned = "\(agencies.sender.home)/returned/\(TestAgencies.agreement)"
    try FileManager.default.createSymbolicLink(atPath: "\(outbox)/link.csv", withDestinationPath: "/etc/passwd")
    #expect(mkfifo("\(outbox)/fifo.csv", 0o600) == 0)
    let hard = try agencies.scratch.file("hard", Data("x".utf8))
    try FileManager.default.linkItem(atPath: hard, toPath: "\(outbox)/hard.csv")
    try agencies.sender.drop("empty.csv", Data())
    try agencies.sender.drop("name.txt", Data("x".utf8))
    try agencies.sender.drop("large.csv", Data(count: 101))
    for (name, code) in [
      ("link.csv", "input.special-file"), ("fifo.csv", "input.special-file"), ("hard.csv", "input.special-file"),
      ("empty.csv", "input.empty"), ("name.txt", "input.name"), ("large.csv", "limit.bytes"),
    ] {
      #expect(
        eventually {
          FileManager.default.contents(atPath: "\(returned)/\(name).reason.json").map {
            String(decoding: $0, as: UTF8.self).contains(code)
          } == true
        },
        "\(name)")
      #expect(FileManager.default.fileExists(atPath: "\(returned)/\(name).reason.txt"))
    }
    // The link was moved, never followed; the original behind the hard link is untouched.
    #expect(try FileManager.default.destinationOfSymbolicLink(atPath: "\(returned)/link.csv") == "/etc/passwd")
    #expect(FileManager.default.contents(atPath: hard) == Data("x".utf8))
    #expect(agencies.recipient.inboxNames(from: agencies.sender) == [])
    try agencies.stop()
    #expect(try agencies.findings() == [])
  }

  /// It cannot be returned with a reason, or named in a manifest: the log and `doctor` tell of it.
  /// What looks like one of the gateway's own files in returned/ keeps nothing from being told, or from being done.
  @Test func namesOfOurOwnFilesAreNotTakenForThem() throws {
    let agencies = try TestAgencies()
    try agencies.start()
    let sender = agencies.sender
    let (outbox, returned) = (
      "\(sender.home)/outbox/\(TestAgencies.agreement)", "\(sender.home)/returned/\(TestAgencies.agreement)"
    )
    for name in ["a.txt.outcome.json", "b.txt.reason.json"] {
      try FileManager.default.createDirectory(atPath: "\(outbox)/\(name)", withIntermediateDirectories: false)
    }
    // A link is not followed, wherever it leads.
    symlink("/etc/hostname", "\(outbox)/c.txt.outcome.json")
    #expect(
      eventually {
        ["a.txt.outcome.json", "b.txt.reason.json", "c.txt.outcome.json"].allSatisfy {
          !FileManager.default.fileExists(atPath: "\(outbox)/\($0)")
        }
      })
    // As a careless administrator leaves them.
    mkdir("\(returned)/d.txt.outcome.json", 0o700)
    let forged = URL(fileURLWithPath: "\(returned)/e.txt.outcome.json")
    try Data(#"{"claimed":"","id":"x/../../../y"}"#.utf8).write(to: forged)
    for name in ["a", "b", "c", "d", "e"] { try sender.drop("\(name).txt", Data(name.utf8)) }
    #expect(eventually { agencies.recipient.inboxNames(from: sender).count == 5 })
    for name in ["a", "b", "c", "e"] { #expect(eventually { sender.outcome("\(name).txt") == "delivered" }, "\(name)") }
    // Nothing is left behind for the name.
    let left = { try FileManager.default.contentsOfDirectory(atPath: "\(sender.home)/spool/out") }
    #expect(try eventually { try left() == [] })
    #expect(try FileManager.default.contentsOfDirectory(atPath: "\(outbox)/.claimed") == [])
    try agencies.stop()
    #expect(try agencies.findings() == [])
  }

  /// Who may move `.claimed` could put a link to another agreement's in its place.
  @Test func aFolderInWhichOthersMayMoveFilesIsDown() throws {
    let agencies = try TestAgencies()
    let sender = agencies.sender
    try agencies.start()
    let outbox = "\(sender.home)/outbox/\(TestAgencies.agreement)"
    chmod(outbox, 0o770)
    #expect(eventually { sender.log.contains("chmod +t \(outbox)") })
    try sender.drop("waits.txt", Data("waits".utf8))
    #expect(try sender.sallyport("doctor").text.contains("chmod +t"))
    let file = try agencies.scratch.file("sent.txt", Data("sent".utf8))
    #expect(try sender.sallyport("send", file, "--agreement", TestAgencies.agreement).status == 78)
    #expect(FileManager.default.fileExists(atPath: "\(outbox)/waits.txt"))
    chmod(outbox, 0o3770)
    #expect(eventually { sender.outcome("waits.txt") == "delivered" }, "\(sender.log)")
    // A link in the place of the claims.
    rename("\(outbox)/.claimed", "\(outbox)/.away")
    symlink("/tmp", "\(outbox)/.claimed")
    #expect(eventually { sender.log.contains("is not the directory that the gateway made") })
    try sender.drop("later.txt", Data("later".utf8))
    unlink("\(outbox)/.claimed")
    rename("\(outbox)/.away", "\(outbox)/.claimed")
    #expect(eventually { sender.outcome("later.txt") == "delivered" }, "\(sender.log)")
    try agencies.stop()
  }

  @Test func aNameThatIsNotUTF8StaysAndIsToldOf() throws {
    let agencies = try TestAgencies()
    try agencies.sender.startSending()
    try agencies.recipient.start()
    let path =
      "\(agencies.sender.home)/outbox/\(TestAgencies.agreement)/f".utf8.map { CChar(bitPattern: $0) } + [-1, 0]
    let descriptor = open(path, O_WRONLY | O_CREAT, 0o644)
    #expect(descriptor >= 0)
    close(descriptor)
    try agencies.sender.drop("good.txt", Data("x".utf8))
    #expect(eventually { agencies.sender.outcome("good.txt") == "delivered" })
    let told = "names that are not UTF-8: 1"
    #expect(eventually { agencies.sender.log.contains(told) })
    #expect(try Command.sallyport(["doctor", "--home", agencies.sender.home]).text.contains(told))
    #expect(access(path, F_OK) == 0)
  }

  @Test func hiddenAndTemporaryNamesStayAndWhyTells() throws {
    let agencies = try TestAgencies()
    try agencies.start()
    let outbox = "\(agencies.sender.home)/outbox/\(TestAgencies.agreement)"
    for name in [".hidden", "x.tmp", "x.part", "x.filepart", "x~"] {
      try Data("x".utf8).write(to: URL(fileURLWithPath: "\(outbox)/\(name)"))
    }
    try agencies.sender.drop("ready.txt", Data("x".utf8))
    #expect(eventually { agencies.sender.outcome("ready.txt") == "delivered" })
    for name in [".hidden", "x.tmp", "x.part", "x.filepart", "x~"] {
      #expect(FileManager.default.fileExists(atPath: "\(outbox)/\(name)"))
      let why = try agencies.sender.sallyport("why", "\(outbox)/\(name)")
      #expect(why.status == 75, "\(name): \(why.text)\(why.errors)")
    }
  }

  /// Dates of distant centuries, names that begin with an accent, a place for outcomes that is not there.
  @Test func whatIsStrangeAboutAFileHoldsUpNothing() throws {
    var options = TestAgencies.Options()
    options.configuration = "folders: { \(TestAgencies.agreement): { readiness: stable, stableSeconds: 1 } }"
    let agencies = try TestAgencies(options)
    let sender = agencies.sender
    try agencies.start()
    try sender.drop("distant.txt", Data("x".utf8))
    let outbox = "\(sender.home)/outbox/\(TestAgencies.agreement)"
    try Command.run("/usr/bin/touch", ["-d", "2300-01-01", "\(outbox)/distant.txt"])
    #expect(eventually { sender.outcome("distant.txt") == "delivered" }, "\(sender.log)")
    let file = try agencies.scratch.file("\u{301}x.csv", Data("x".utf8))
    let sent = try sender.sallyport("send", file, "--agreement", TestAgencies.agreement, "--wait", "--seconds", "60")
    #expect(sent.status == 0, "\(sent.errors)\(sender.log)")
    let returned = "\(sender.home)/returned/\(TestAgencies.agreement)"
    try FileManager.default.removeItem(atPath: returned)
    try Data().write(to: URL(fileURLWithPath: returned))
    try sender.drop("late.txt", Data("x".utf8))
    #expect(
      try eventually {
        try sender.sallyport("queue", "--all", "--name", "late.txt", "--json").text.contains(#""state":"confirmed""#)
      }, "\(sender.log)")
    try FileManager.default.removeItem(atPath: returned)
    #expect(eventually { sender.outcome("late.txt") == "delivered" }, "\(sender.log)")
    try agencies.stop()
    #expect(try agencies.findings() == [])
  }

  /// Many are sealed at once, and no more of them go than the agreement has it.
  @Test func theLimitOfADayHoldsForFilesThatComeTogether() throws {
    var options = TestAgencies.Options()
    options.packagesPerDay = 2
    let agencies = try TestAgencies(options)
    let sender = agencies.sender
    try sender.startSending()
    sender.stop()
    for number in 0..<30 { try sender.drop("\(number).txt", Data(repeating: 65, count: 1 << 18)) }
    try agencies.start()
    func queue() throws -> [String] { try sender.sallyport("queue", "--all", "--json").lines }
    #expect(
      try eventually {
        let rows = try queue()
        return rows.count { $0.contains(#""state":"confirmed""#) } == 2
          && rows.count { $0.contains(#""code":"limit.rate""#) && $0.contains(#""state":"claimed""#) } == 28
      }, "\((try? queue()) ?? [])\(sender.log)")
    // Of what had its seal and was not to go nothing is left.
    #expect(
      eventually {
        try! FileManager.default.contentsOfDirectory(atPath: "\(sender.home)/spool/out").allSatisfy {
          !$0.hasSuffix(".body")
        }
      })
    try agencies.stop()
    #expect(try agencies.findings() == [])
  }

  @Test func triggerAndStableFoldersWaitUntilAFileIsComplete() throws {
    var options = TestAgencies.Options()
    options.configuration = "folders: { \(TestAgencies.agreement): { readiness: trigger, triggerSuffix: \".ok\" } }"
    let agencies = try TestAgencies(options)
    try agencies.start()
    let outbox = "\(agencies.sender.home)/outbox/\(TestAgencies.agreement)"
    try agencies.sender.drop("a.bin", Data("a".utf8))
    try agencies.sender.drop("b.bin", Data("b".utf8))
    try agencies.sender.drop("b.bin.ok", Data())
    #expect(eventually { agencies.sender.outcome("b.bin") == "delivered" })
    #expect(FileManager.default.fileExists(atPath: "\(outbox)/a.bin"))
    #expect(try agencies.sender.sallyport("why", "\(outbox)/a.bin").text.contains("trigger"))
    #expect(!FileManager.default.fileExists(atPath: "\(outbox)/b.bin.ok"))
    // What only has a trigger's name is none, and holds up nothing.
    try FileManager.default.createDirectory(atPath: "\(outbox)/a.bin.ok", withIntermediateDirectories: false)
    try agencies.sender.drop("c.bin", Data("c".utf8))
    try agencies.sender.drop("c.bin.ok", Data())
    #expect(eventually { agencies.sender.outcome("c.bin") == "delivered" }, "\(agencies.sender.log)")
    #expect(FileManager.default.fileExists(atPath: "\(outbox)/a.bin"))

    var stable = TestAgencies.Options()
    stable.configuration = "folders: { \(TestAgencies.agreement): { readiness: stable, stableSeconds: 2 } }"
    let others = try TestAgencies(stable)
    try others.start()
    let folder = "\(others.sender.home)/outbox/\(TestAgencies.agreement)"
    #expect(FileManager.default.createFile(atPath: "\(folder)/slow.bin", contents: nil))
    let handle = try #require(FileHandle(forWritingAtPath: "\(folder)/slow.bin"))
    for index in 0..<8 {
      try handle.write(contentsOf: Data("part \(index)\n".utf8))
      usleep(500_000)
    }
    try handle.close()
    #expect(eventually { others.sender.outcome("slow.bin") == "delivered" })
    #expect(others.recipient.inbox(from: others.sender, "slow.bin")?.count == 8 * 7)
  }

  @Test func anotherAgreementsFaultyFileStopsNoSending() throws {
    let agencies = try TestAgencies()
    try agencies.start()
    let policies = "\(agencies.sender.home)/policies"
    try Data("agreement: [".utf8).write(to: URL(fileURLWithPath: "\(policies)/other.yaml"))
    let file = try agencies.scratch.file("sent.txt", Data("x".utf8))
    let sent = try agencies.sender.sallyport("send", file, "--agreement", TestAgencies.agreement)
    #expect(sent.status == 0, "\(sent.errors)")
    #expect(eventually { agencies.sender.outcome("sent.txt") == "delivered" })
    let why = try agencies.sender.sallyport("why", "\(agencies.sender.home)/outbox/\(TestAgencies.agreement)/absent")
    #expect(!(why.text + why.errors).contains("other.yaml"))
    // Of an agreement that is nowhere else it may be the file.
    #expect(try agencies.sender.sallyport("send", file, "--agreement", "absent").errors.contains("other.yaml"))
    let doctor = try agencies.sender.sallyport("doctor")
    #expect(doctor.status != 0 && doctor.text.contains("other.yaml"))
  }

  @Test func aVanishedMountIsAFaultAndNotAnEmptyFolder() throws {
    let agencies = try TestAgencies()
    try agencies.start()
    let outbox = "\(agencies.sender.home)/outbox/\(TestAgencies.agreement)"
    try FileManager.default.moveItem(atPath: outbox, toPath: "\(outbox).away")
    try FileManager.default.createDirectory(atPath: outbox, withIntermediateDirectories: false)
    #expect(eventually { agencies.sender.log.contains("is down") })
    #expect(try agencies.sender.sallyport("doctor").text.contains("mounted"))
    try FileManager.default.removeItem(atPath: outbox)
    try FileManager.default.moveItem(atPath: "\(outbox).away", toPath: outbox)
    try agencies.sender.drop("back.txt", Data("x".utf8))
    #expect(eventually { agencies.sender.outcome("back.txt") == "delivered" })
    // The log names what changes, not every look.
    #expect(agencies.sender.log.contains("is back"))
    #expect(agencies.sender.log.components(separatedBy: "is down").count <= 3)
  }

  @Test func holdResumeAndCancelBeforeTheKeyGoes() throws {
    let agencies = try TestAgencies()
    try agencies.sender.startSending()  // the recipient is down
    try agencies.sender.drop("held.txt", Data("held".utf8))
    try agencies.sender.drop("gone.txt", Data("gone".utf8))
    #expect(
      eventually {
        agencies.sender.outcome("held.txt") == "accepted" && agencies.sender.outcome("gone.txt") == "accepted"
      })
    let held = try #require(agencies.sender.outcome("held.txt", "id"))
    let gone = try #require(agencies.sender.outcome("gone.txt", "id"))
    #expect(try eventually { try agencies.sender.sallyport("hold", held).status == 0 })
    #expect(agencies.sender.outcome("held.txt", "next")?.contains("resume \(held)") == true)
    #expect(try agencies.sender.sallyport("doctor").text.contains("1 packages are held"))
    #expect(try eventually { try agencies.sender.sallyport("cancel", gone).status == 0 })
    #expect(agencies.sender.outcome("gone.txt") == "cancelled")
    try agencies.recipient.start()
    try agencies.sender.drop("later.txt", Data("later".utf8))
    #expect(eventually { agencies.sender.outcome("later.txt") == "delivered" })
    #expect(agencies.recipient.inboxNames(from: agencies.sender) == ["later.txt"])
    #expect(try agencies.sender.sallyport("resume", held).status == 0)
    #expect(eventually { agencies.sender.outcome("held.txt") == "delivered" })
    #expect(try agencies.sender.sallyport("cancel", held).status == 1)
    #expect(try agencies.sender.sallyport("hold", held, gone).status == 1)
    try agencies.stop()
    #expect(try agencies.findings() == [])
  }

  @Test func whatIsNotHandedOverInTimeExpiresWithAReport() throws {
    var options = TestAgencies.Options()
    options.timeToLive = "PT3S"
    let agencies = try TestAgencies(options)
    try agencies.sender.startSending()
    try agencies.sender.drop("late.txt", Data("late".utf8))
    #expect(eventually { agencies.sender.outcome("late.txt") == "expired" })
    try agencies.recipient.start()
    let id = try #require(agencies.sender.outcome("late.txt", "id"))
    #expect(try eventually { try agencies.sender.sallyport("trace", id).text.contains("taken-back") })
    #expect(agencies.recipient.inboxNames(from: agencies.sender) == [])
  }

  /// More packages for a partner that accepts connections and says nothing than go out at once, beside one that works.
  @Test func aPartnerThatHangsDelaysNoOther() throws {
    var options = TestAgencies.Options()
    options.hasHub = true
    options.isSigned = false
    let agencies = try TestAgencies(options)
    let (sender, live, hung) = (agencies.sender, agencies.recipient, agencies.hub!)
    options.hasHub = false
    for (id, partner) in [("live-files", live), ("hung-files", hung)] {
      try agencies.agree(TestAgencies.yaml(options, sender.id, partner.id, id: id))
    }
    for partner in [live, hung] { try partner.start() }
    try sender.startSending("hung-files")
    func areDelivered(_ count: Int, _ agreement: String) -> Bool {
      (0..<count).allSatisfy { sender.outcome("\($0).txt", agreement: agreement) == "delivered" }
    }
    // On connections that are open already a request hangs for as long as it may; a new one would fail sooner.
    for number in 0..<50 { try sender.drop("\(number).txt", Data("open".utf8), agreement: "hung-files") }
    #expect(eventually(30) { areDelivered(50, "hung-files") }, "\(sender.log)")
    hung.freeze(true)
    for number in 50..<150 { try sender.drop("\(number).txt", Data("hung".utf8), agreement: "hung-files") }
    #expect(try eventually { try sender.sallyport("queue", "--json").text.contains(#""state":"sending""#) })
    for number in 0..<20 { try sender.drop("\(number).txt", Data("live".utf8), agreement: "live-files") }
    #expect(eventually(20) { areDelivered(20, "live-files") }, "\(sender.log)")
    #expect(try sender.sallyport("queue", "--json").text.contains(#""state":"sending""#))
    #expect(hung.inboxNames(from: sender, agreement: "hung-files").count == 50)
    hung.freeze(false)
    #expect(eventually(60) { areDelivered(150, "hung-files") }, "\(sender.log)")
    try agencies.stop()
    #expect(try agencies.findings() == [])
  }

  @Test func aStrangerAndASuspendedPartnerGetNothing() throws {
    var options = TestAgencies.Options()
    options.introduces = false
    let agencies = try TestAgencies(options)
    try agencies.start()
    try agencies.sender.drop("early.txt", Data("early".utf8))
    let file = try agencies.scratch.file("x", Data())
    _ = file
    // Unknown partner: refused by policy before anything is sealed.
    #expect(eventually { agencies.sender.outcome("early.txt") == "refused" })
    #expect(agencies.sender.outcome("early.txt", "code") == "partner.unknown")
    // Pending: held until the fingerprint is approved.
    #expect(try agencies.sender.sallyport("partners", "add", "\(agencies.recipient.home)/keys/card.json").status == 0)
    try agencies.sender.drop("pending.txt", Data("pending".utf8))
    #expect(
      try eventually {
        try agencies.sender.sallyport("queue").text.contains("partner.pending")
          || agencies.sender.sallyport("queue").text.contains("approved")
      })
    let fingerprint = try agencies.recipient.sallyport("keys", "fingerprint").lines[0]
    let wrong = try agencies.sender.sallyport("keys", "fingerprint").lines[0]
    #expect(
      try agencies.sender.sallyport("partners", "approve", agencies.recipient.id, "--fingerprint", wrong).status == 65)
    #expect(
      try agencies.sender.sallyport("partners", "approve", agencies.recipient.id, "--fingerprint", fingerprint).status
        == 0)
    // The recipient does not know the sender: the handshake fails, and the file waits.
    #expect(try eventually { try agencies.sender.sallyport("status").text.contains("unreachable") })
    #expect(try agencies.recipient.sallyport("partners", "add", "\(agencies.sender.home)/keys/card.json").status == 0)
    #expect(
      try agencies.recipient.sallyport("partners", "approve", agencies.sender.id, "--fingerprint", wrong).status == 0)
    #expect(eventually { agencies.sender.outcome("pending.txt") == "delivered" })
  }

  @Test func keysRotateWhileFilesFlow() throws {
    let agencies = try TestAgencies()
    try agencies.start()
    for (index, use) in ["seal", "sign", "seal"].enumerated() {
      // Neither side has the other's new card yet: it is fetched within the hour.
      for agency in [agencies.recipient, agencies.sender] {
        let changed = try agency.sallyport("keys", "rotate", "--use", use)
        #expect(changed.status == 0, "\(changed.errors)")
      }
      let file = try agencies.scratch.file("after-\(index).txt", Data("x".utf8))
      let sent = try agencies.sender.sallyport(
        "send", file, "--agreement", TestAgencies.agreement, "--wait", "--seconds", "60")
      #expect(sent.status == 0, "\(use): \(sent.text)\(sent.errors)\(agencies.recipient.log)")
    }
  }

  @Test func successorCardsAreTakenAndManyRotationsLeaveRoom() throws {
    let agencies = try TestAgencies()
    try agencies.start()
    for round in 0..<18 {
      let changed = try agencies.recipient.sallyport("keys", "rotate", "--use", round % 2 == 0 ? "sign" : "seal")
      #expect(changed.status == 0, "\(round): \(changed.errors)")
      let offered = try agencies.sender.sallyport("partners", "add", "\(agencies.recipient.home)/keys/card.json")
      #expect(offered.status == 0 && offered.text.contains("accepted"), "\(round): \(offered.text)\(offered.errors)")
    }
    let file = try agencies.scratch.file("after.txt", Data("x".utf8))
    let sent = try agencies.sender.sallyport(
      "send", file, "--agreement", TestAgencies.agreement, "--wait", "--seconds", "60")
    #expect(sent.status == 0, "\(sent.text)\(sent.errors)\(agencies.recipient.log)")
  }

  /// A theft while the partner is down: it never sees the cards between.
  @Test func cardsThatWereMissedDoNotCutAPartnerOff() throws {
    let agencies = try TestAgencies()
    let recipient = agencies.recipient
    let stolen = try KeyRing.loadCard(Home(recipient.home)).card.recipients[0].key.description
    for words in [["rotate", "--use", "seal"], ["rotate", "--use", "sign"], ["revoke", stolen]] {
      let changed = try Command.sallyport(["keys"] + words + ["--home", recipient.home])
      #expect(changed.status == 0, "\(changed.errors)")
    }
    try agencies.start()
    #expect(
      try eventually {
        try agencies.sender.sallyport("partners", "list", "--json").lines.contains { $0.contains(#""serial":4"#) }
      }, "\(agencies.sender.log)")
    // Suspended, it stays so whatever card of it is approved.
    #expect(try agencies.sender.sallyport("partners", "suspend", recipient.id).status == 0)
    agencies.sender.stop()
    let first = try KeyRing.loadCard(Home(recipient.home)).card.signingKeys[0].key.id
    #expect(try recipient.sallyport("keys", "revoke", first).status == 0)
    let offered = try agencies.sender.sallyport("partners", "add", "\(recipient.home)/keys/card.json")
    #expect(offered.text.contains("needs approval"), "\(offered.text)\(offered.errors)")
    let fingerprint = try recipient.sallyport("keys", "fingerprint").lines[0]
    let approved = try agencies.sender.sallyport("partners", "approve", recipient.id, "--fingerprint", fingerprint)
    #expect(approved.status == 0 && approved.text.contains("suspended"), "\(approved.text)\(approved.errors)")
  }

  /// What was sealed to it before its partner knew is opened, and said.
  @Test func aPackageToARevokedKeyIsOpenedAndToldOf() throws {
    let agencies = try TestAgencies()
    let recipient = agencies.recipient
    try agencies.sender.startSending()
    try agencies.sender.drop("late.txt", Data("late".utf8))
    #expect(eventually { agencies.sender.outcome("late.txt") == "accepted" })
    let stolen = try KeyRing.loadCard(Home(recipient.home)).card.recipients[0].key.description
    #expect(try recipient.sallyport("keys", "rotate", "--use", "seal").status == 0)
    #expect(try recipient.sallyport("keys", "revoke", stolen).status == 0)
    try recipient.start()
    #expect(eventually { agencies.sender.outcome("late.txt") == "delivered" }, "\(agencies.sender.log)")
    #expect(recipient.log.contains("sealed it to a key that was revoked"))
  }

  @Test func twoChangesOfTheKeysDoNotUndoEachOther() throws {
    let agencies = try TestAgencies()
    let home = agencies.recipient.home
    let rotate = ["keys", "rotate", "--use", "seal", "--home", home]
    let both = try [Command.start(rotate), Command.start(rotate)].map { $0.wait() }
    let done = both.filter { $0.status == 0 }.count
    #expect(done >= 1 && both.allSatisfy { [0, 75].contains($0.status) }, "\(both.map(\.errors))")
    let card = try KeyRing.loadCard(Home(home)).card
    #expect(card.serial == 1 + Int64(done) && card.recipients.count == 1 + done)
    // While somebody else has the home, nothing is changed.
    let lock = try HomeLock(home)
    #expect(try Command.sallyport(rotate).status == 75)
    #expect(try KeyRing.loadCard(Home(home)).card == card)
    withExtendedLifetime(lock) {}
  }

  @Test func aPortThatIsTakenIsNamed() throws {
    let agencies = try TestAgencies()
    try agencies.recipient.start()
    func listen(_ agency: TestAgency) throws -> (text: String, address: String) {
      let text = try String(contentsOfFile: "\(agency.home)/sallyport.yaml", encoding: .utf8)
      return (text, String(try #require(text.firstMatch(of: /listen: "(.*)"/)?.1)))
    }
    let (text, own) = try listen(agencies.sender)
    let other = try listen(agencies.recipient).address
    let file = "\(agencies.sender.home)/sallyport.yaml"
    try text.replacingOccurrences(of: own, with: other).write(toFile: file, atomically: true, encoding: .utf8)
    chmod(file, 0o600)
    let process = try agencies.sender.start()
    process.waitUntilExit(atMost: 60)
    #expect(process.terminationStatus == 78, "\(agencies.sender.log)")
    #expect(agencies.sender.log.contains("cannot listen on \(other): Address already in use. See listen"))
  }

  /// Two shares mounted in each other's places.
  @Test func aFolderOfAnotherAgreementIsDown() throws {
    let agencies = try TestAgencies()
    try agencies.start()
    let outbox = "\(agencies.sender.home)/outbox/\(TestAgencies.agreement)"
    try Data("other\n".utf8).write(to: URL(fileURLWithPath: "\(outbox)/.sallyport-folder"))
    try agencies.sender.drop("waits.txt", Data("waits".utf8))
    #expect(eventually { agencies.sender.log.contains("marked as the folder of other") })
    #expect(try agencies.sender.sallyport("doctor").text.contains("marked as the folder of other"))
    let file = try agencies.scratch.file("sent.txt", Data("sent".utf8))
    #expect(try agencies.sender.sallyport("send", file, "--agreement", TestAgencies.agreement).status == 78)
    #expect(FileManager.default.fileExists(atPath: "\(outbox)/waits.txt"))
    try Data("\(TestAgencies.agreement)\n".utf8).write(to: URL(fileURLWithPath: "\(outbox)/.sallyport-folder"))
    #expect(eventually { agencies.sender.outcome("waits.txt") == "delivered" }, "\(agencies.sender.log)")
    // Opening a file for writing while it is looked at sends SIGIO; it ends nothing.
    kill(agencies.sender.process!.processIdentifier, SIGIO)
    try agencies.stop()
  }

  @Test func anotherAgencysLedgerIsRefused() throws {
    let agencies = try TestAgencies()
    let backup = "\(agencies.scratch.path)/backup.sqlite"
    #expect(try agencies.recipient.sallyport("ledger", "backup", backup).status == 0)
    let foreign = try agencies.sender.sallyport("ledger", "restore", backup)
    #expect(foreign.status == 65 && foreign.errors.contains(agencies.recipient.id), "\(foreign.errors)")
    let text = try agencies.scratch.file("no.sqlite", Data("no ledger".utf8))
    let none = try agencies.sender.sallyport("ledger", "restore", text)
    #expect(none.status == 65 && none.errors.contains("no.sqlite"), "\(none.errors)")
    // What each restore kept stays.
    for _ in 0..<2 { #expect(try agencies.recipient.sallyport("ledger", "restore", backup).status == 0) }
    let kept = try FileManager.default.contentsOfDirectory(atPath: agencies.recipient.home).filter {
      $0.hasPrefix("ledger.sqlite.before-") && !$0.hasSuffix("-wal") && !$0.hasSuffix("-shm")
    }
    #expect(kept.count == 2)
  }

  @Test func whatIsSentBeforeTheFirstStartGoesWithIt() throws {
    let agencies = try TestAgencies()
    for name in ["one.txt", "two.txt"] {
      let file = try agencies.scratch.file(name, Data("x".utf8))
      let sent = try agencies.sender.sallyport("send", file, "--agreement", TestAgencies.agreement)
      #expect(sent.status == 0, "\(name): \(sent.text)\(sent.errors)")
    }
    try agencies.start()
    for name in ["one.txt", "two.txt"] {
      #expect(eventually { agencies.sender.outcome(name) == "delivered" }, "\(agencies.sender.log)")
    }
  }

  @Test func nothingIsSentToAFolderWhoseMountIsGone() throws {
    let agencies = try TestAgencies()
    try agencies.start()
    let folder = "\(agencies.sender.home)/outbox/\(TestAgencies.agreement)"
    #expect(eventually { FileManager.default.fileExists(atPath: "\(folder)/.sallyport-folder") })
    try FileManager.default.moveItem(atPath: folder, toPath: "\(folder).away")
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: false)
    let file = try agencies.scratch.file("lost.txt", Data("x".utf8))
    let sent = try agencies.sender.sallyport("send", file, "--agreement", TestAgencies.agreement)
    #expect(sent.status != 0 && sent.errors.contains("mount"), "\(sent.text)\(sent.errors)")
    #expect(try FileManager.default.contentsOfDirectory(atPath: folder).isEmpty)
  }

  @Test func looseKeyFilesAndDemoKeysAreRefused() throws {
    let agencies = try TestAgencies()
    chmod("\(agencies.sender.home)/keys/keyring", 0o644)
    let process = try agencies.sender.start()
    process.waitUntilExit(atMost: 120)
    #expect(process.terminationStatus == 78)
    #expect(agencies.sender.log.contains("chmod"))
    let demo = "\(Command.root.path)/keys-example/registry.demo.example"
    let home = "\(agencies.scratch.path)/demo"
    try FileManager.default.createDirectory(atPath: "\(home)/keys", withIntermediateDirectories: true)
    for name in ["keyring", "card.json", "passphrase"] {
      try FileManager.default.copyItem(atPath: "\(demo)/\(name)", toPath: "\(home)/keys/\(name)")
      chmod("\(home)/keys/\(name)", 0o600)
    }
    chmod("\(home)/keys", 0o700)
    try Data("agency: registry.demo.example\n".utf8).write(to: URL(fileURLWithPath: "\(home)/sallyport.yaml"))
    try FileManager.default.createDirectory(atPath: "\(home)/policies", withIntermediateDirectories: true)
    let refused = try Command.sallyport(["run", "--home", home])
    #expect(refused.status == 78)
    #expect(refused.errors.contains("demo keys"))
  }

  @Test func twoGatewaysDoNotShareAHome() throws {
    let agencies = try TestAgencies()
    try agencies.sender.start()
    let second = try Command.sallyport(["run", "--home", agencies.sender.home])
    #expect(second.status == 75)
    #expect(second.errors.contains("in use"))
  }

  @Test func aLedgerBehindAHeadThatAPartnerHoldsStops() throws {
    let agencies = try TestAgencies()
    try agencies.start()
    let kept = "\(agencies.scratch.path)/kept"
    let file = try agencies.scratch.file("first.txt", Data("first".utf8))
    #expect(try agencies.sender.sallyport("send", file, "--agreement", TestAgencies.agreement, "--wait").status == 0)
    agencies.sender.stop()
    // Both the ledger and its own heads are put back: only the partner knows better.
    let names = ["ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm", "heads.log"]
    try FileManager.default.createDirectory(atPath: kept, withIntermediateDirectories: true)
    for name in names {
      try? FileManager.default.copyItem(atPath: "\(agencies.sender.home)/\(name)", toPath: "\(kept)/\(name)")
    }
    try agencies.sender.start()
    let second = try agencies.scratch.file("second.txt", Data("second".utf8))
    #expect(try agencies.sender.sallyport("send", second, "--agreement", TestAgencies.agreement, "--wait").status == 0)
    agencies.sender.stop()
    for name in names {
      try? FileManager.default.removeItem(atPath: "\(agencies.sender.home)/\(name)")
      try? FileManager.default.copyItem(atPath: "\(kept)/\(name)", toPath: "\(agencies.sender.home)/\(name)")
    }
    let process = try agencies.sender.start()
    process.waitUntilExit(atMost: 120)
    #expect(process.terminationStatus == 74)
    #expect(agencies.sender.log.contains("holds a head that we signed"))
  }

  @Test func aBackupIsRestoredAndOldPackagesAreNotDeliveredTwice() throws {
    let agencies = try TestAgencies()
    try agencies.start()
    let backup = "\(agencies.scratch.path)/backup.sqlite"
    #expect(try agencies.recipient.sallyport("ledger", "backup", backup).status == 0)
    let file = try agencies.scratch.file("once.txt", Data("once".utf8))
    #expect(try agencies.sender.sallyport("send", file, "--agreement", TestAgencies.agreement, "--wait").status == 0)
    agencies.recipient.stop()

    // A ledger put back by hand is behind its own heads: it refuses to start.
    try FileManager.default.copyItem(
      atPath: "\(agencies.recipient.home)/ledger.sqlite", toPath: "\(agencies.scratch.path)/newest")
    for suffix in ["", "-wal", "-shm"] {
      try? FileManager.default.removeItem(atPath: "\(agencies.recipient.home)/ledger.sqlite\(suffix)")
    }
    try FileManager.default.copyItem(atPath: backup, toPath: "\(agencies.recipient.home)/ledger.sqlite")
    let process = try agencies.recipient.start()
    process.waitUntilExit(atMost: 120)
    #expect(process.terminationStatus == 74)
    #expect(agencies.recipient.log.contains("rolled back"))

    #expect(try agencies.recipient.sallyport("ledger", "restore", backup).status == 0)
    try agencies.recipient.start()
    // A package of the very second of the restore counts as older.
    let restored = Int(Date().timeIntervalSince1970)
    #expect(eventually { Int(Date().timeIntervalSince1970) > restored })
    let again = try agencies.scratch.file("again.txt", Data("again".utf8))
    let sent = try agencies.sender.sallyport(
      "send", again, "--agreement", TestAgencies.agreement, "--wait", "--seconds", "60")
    #expect(sent.status == 0, "\(sent.text)\(sent.errors)\(agencies.sender.log)\(agencies.recipient.log)")
    #expect(agencies.recipient.inboxNames(from: agencies.sender) == ["again.txt", "once.txt"])
    try agencies.stop()
    #expect(try agencies.findings() == [])
  }

  /// Before a gateway knows it, and after it has forgotten all but that it was.
  @Test func aFileIsFoundBeforeItIsTakenOnAndAfterItIsPurged() throws {
    var options = TestAgencies.Options()
    options.configuration = "retentionSeconds: 0"
    let agencies = try TestAgencies(options)
    let sender = agencies.sender
    let file = try agencies.scratch.file("early.txt", Data("early".utf8))
    let sent = try sender.sallyport("send", file, "--agreement", TestAgencies.agreement, "--json")
    let id = try #require(sent.text.firstMatch(of: /"id":"([a-z2-7]{26})"/).map { String($0.1) })
    let early = try sender.sallyport("trace", id)
    #expect(early.status == 75 && early.errors.contains("early.txt is taken when the gateway runs"), "\(early.errors)")
    try agencies.start()
    #expect(eventually { sender.outcome("early.txt") == "delivered" }, "\(sender.log)")
    // Housekeeping is once a minute, and at a start.
    sender.stop()
    try sender.start()
    #expect(try eventually { try sender.sallyport("trace", id).text.contains("purged") }, "\(sender.log)")
    let why = try sender.sallyport("why", "\(sender.home)/outbox/\(TestAgencies.agreement)/early.txt")
    #expect(why.status == 0 && why.text.contains("\(id), which is purged"), "\(why.text)\(why.errors)")
    try agencies.stop()
    #expect(try agencies.findings() == [])
  }

  /// What `scripts/demo` shows, to scripts; it fails where a step did not go as it tells.
  @Test func theDemonstrationEnds() throws {
    let demo = try Command.run(
      Command.sallyport, ["demo", "--json"], directory: Command.root.path)
    #expect(demo.status == 0, "\(demo.errors)")
    let steps = try demo.lines.map { try JSONSerialization.jsonObject(with: Data($0.utf8)) as? [String: Any] }
    #expect(Set(steps.compactMap { $0?["step"] as? Int }) == Set(1...12))
  }

  /// One's own keys and the partners', in `status`, the log and `doctor`.
  @Test func keysThatSoonExpireAreAnnounced() throws {
    var options = TestAgencies.Options()
    options.keysValidDays = 20
    let agencies = try TestAgencies(options)
    try agencies.start()
    let status = try agencies.sender.sallyport("status").text
    let doctor = try Command.sallyport(["doctor", "--home", agencies.sender.home])
    #expect(doctor.status == 2)
    for agency in [agencies.sender, agencies.recipient] {
      #expect(status.contains("of \(agency.id) expires in 19 days"), "\(status)")
      #expect(
        eventually { agencies.sender.log.contains("of \(agency.id) expires in 19 days") }, "\(agencies.sender.log)")
    }
    let lines = doctor.lines.filter { $0.contains("expires in 19 days") }
    #expect(
      lines.count == 4 && lines.filter { $0.contains("of \(agencies.recipient.id)") }.count == 2, "\(doctor.text)")
    try agencies.stop()
    // The log, too, can be JSON Lines.
    let run = try Command.run(
      "/bin/sh",
      ["-c", "sleep 3 | '\(Command.sallyport)' run --home '\(agencies.sender.home)' --end-with-input --json"])
    #expect(run.status == 0, "\(run.errors)")
    let logged = try run.errors.split(separator: "\n").map {
      try JSONSerialization.jsonObject(with: Data($0.utf8)) as? [String: String]
    }
    #expect(
      logged.contains { $0?["level"] == "warning" && $0?["message"]?.contains("expires in 19 days") == true },
      "\(run.errors)")
  }

  @Test func everyCommandSpeaksJSONLines() throws {
    let agencies = try TestAgencies()
    try agencies.start()
    let file = try agencies.scratch.file("j.txt", Data("x".utf8))
    #expect(try agencies.sender.sallyport("send", file, "--agreement", TestAgencies.agreement, "--wait").status == 0)
    let id = try #require(agencies.sender.outcome("j.txt", "id"))
    let commands = [
      ["status"], ["queue", "--all"], ["trace", id], ["check"], ["doctor"], ["keys", "list"], ["keys", "fingerprint"],
      ["card", "show"], ["card", "signing-key"], ["partners", "list"], ["partners", "show", agencies.recipient.id],
      ["agreements", "list"],
      ["agreements", "show", TestAgencies.agreement], ["ledger", "show"], ["ledger", "verify"],
      ["agreements", "explain", file, "--agreement", TestAgencies.agreement],
    ]
    for command in commands {
      let result = try Command.sallyport(command + ["--home", agencies.sender.home, "--json"])
      #expect([0, 2].contains(result.status), "\(command): \(result.errors)")
      #expect(!result.lines.isEmpty, "\(command)")
      for line in result.lines {
        #expect(throws: Never.self, "\(command): \(line)") { try JSONSerialization.jsonObject(with: Data(line.utf8)) }
      }
    }
    let failure = try Command.sallyport([
      "trace", "aaaaaaaaaaaaaaaaaaaaaaaaaa", "--home", agencies.sender.home, "--json",
    ])
    #expect(failure.status == 1 && failure.errors.contains("\"exit\":1"))
  }
}
