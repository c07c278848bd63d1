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

  static func id(_ line: String) -> String? {
    line.firstMatch(of: /"id":"([a-z2-7]{26})"/).map { String($0.1) }
  }

  @Test func aStoppedHomeCollectsByCommandAndSaysHow() throws {
    let agencies = try TestAgencies(Self.options())
    try agencies.sender.start()
    let bytes = Self.random(3 << 20)
    try agencies.sender.drop("waits.bin", bytes)
    #expect(try eventually { try agencies.sender.sallyport("queue", "--json").text.contains(#""state":"queued""#) })
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
      let keys = try shell(Self.blocks("")[0])
      #expect(keys.status == 0, "\(keys.errors)")
      let administrator = try Self.blocks("administrator")
      // The fingerprint is what `add` prints and both sides compare.
      let added = try shell(administrator[0].components(separatedBy: "\n").first { $0.contains("partners add") }!)
      let fingerprint =
        added.lines.first { $0.hasPrefix("fingerprint") }?.split(separator: " ").last.map(String.init) ?? ""
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
      #expect(try eventually { try agencies.sender.sallyport("queue", "--json").text.contains(#""state":"queued""#) })
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
      steps[1]
        + "curl -s --cert partner.pem --key partner.key -k --pinnedpubkey $PIN -X POST $GATEWAY/v1/transfers/$ID/key")
    #expect(early.status == 0 && early.text.contains("key.early"), "\(early.text) \(early.errors)")
    let all = try partner.shell(steps[1...].joined(separator: "\n") + "\nsha256sum package.age")
    #expect(all.status == 0 && all.text.contains("Signature Verified Successfully"), "\(all.text)\(all.errors)")
    #expect(partner.file("payload") == bytes)
    let digest = all.lines.last?.prefix(64) ?? ""
    #expect(partner.file("manifest.json").map { String(decoding: $0, as: UTF8.self).contains(digest) } == true)
    #expect(eventually { partner.agencies.sender.outcome("for-you.bin") == "delivered" })
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
    let result = try partner.shell(Partner.blocks("whole")[0])
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
}
