// demo: agencies on this machine exchange a file, refuse one, and respect a withdrawal; every piece of evidence is shown.

import ArgumentParser
import Foundation
import Gateway
import Glibc
import Policies
import Sealing
import Store
import Transport

struct DemoCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "demo", abstract: "Two agencies' gateways on loopback exchange a file; nothing is left running.")

  @Argument(help: "The file to exchange; the shipped example otherwise.", completion: .file())
  var file: String?
  @Option(help: "The folder with the demo agencies' keys.", completion: .directory)
  var keysExample = "keys-example"
  @Option(help: "The folder with the demo agreement.", completion: .directory)
  var policies = "policies"
  @Flag(help: "Keep the two homes and print where they are.")
  var keep = false
  @Flag(help: "Print JSON Lines.")
  var json = false

  func run() async throws {
    let root = FileManager.default.temporaryDirectory.appendingPathComponent("sallyport-demo-\(getpid())").path
    let demo = Demo(root: root, keysExample: keysExample, policies: policies, keep: keep, asJSON: json)
    demo.cleanUpAtExit()
    do {
      // The shipped examples keep schemas; a file of yours goes as it is.
      if let file {
        try await demo.exchange(file, "demo-files")
      } else {
        let example = "\(policies)/examples/deaths-2026-11.csv"
        try await demo.exchange(example, "deaths-to-benefits")
        try await demo.showRefusal(example, "deaths-to-benefits")
        try await demo.showWithdrawal("\(policies)/examples/injuries-2026-11.ndjson", "injuries-to-cover")
      }
    } catch {
      demo.cleanUp()
      throw error
    }
    demo.cleanUp()
    if keep { Output.note("the homes are in \(root)") }
  }
}

private final class Demo {
  private let root: String
  private let keysExample: String
  private let policies: String
  private var processes: [Process] = []
  /// The sender's and the recipient's.
  private var homes: [Home] = []
  private var agencies: [String] = []
  private let out: Output
  private var number = 0
  private let keep: Bool
  /// Kept from everybody else, so that a gateway finds its own free.
  private var ports: [ReservedPort] = []
  /// The children end with their standard input, so also when this process dies without a word.
  private var lifelines: [Pipe] = []
  private var signals: [any DispatchSourceSignal] = []
  /// For atexit(3), which takes no context; set once, before anything is started.
  nonisolated(unsafe) private static var current: Demo?

  init(root: String, keysExample: String, policies: String, keep: Bool, asJSON: Bool) {
    out = Output(asJSON: asJSON)
    self.keep = keep
    self.root = root
    self.keysExample = keysExample
    self.policies = policies
  }

  /// The next step.
  private func step(_ text: String) {
    number += 1
    out.row(["step": .integer(Int64(number)), "text": .string(text)], human: "\(number). \(text)")
  }

  /// What the step shows.
  private func detail(_ text: String) {
    out.row(["step": .integer(Int64(number)), "text": .string(text)], human: "     \(text)")
  }

  /// Two agencies' gateways, introduced to each other, under an agreement that both signed.
  private func begin(_ sender: String, _ recipient: String, _ agreement: String) async throws {
    agencies = [sender, recipient]
    homes = try agencies.map { try makeHome($0) }
    for home in homes { try start(home) }
    for home in homes { try await waitUntilRunning(home) }
    try await introduce(homes[0], to: homes[1])
    try await introduce(homes[1], to: homes[0])
    for (home, agency) in zip(homes, agencies) { try await sign(agreement, home, agency) }
    for _ in 0..<600 {
      let states = try await homes.asyncMap { home in
        try await session(home).perform(.agreementsList).first { $0.text("id") == agreement }?.text("state")
      }
      if states == ["valid", "valid"] { return }
      try await Task.sleep(for: .milliseconds(20))
    }
    throw AdminError(.failed, "the agreement did not come into force")
  }

  /// What people in their roles would do, after reading `agreements show`.
  private func sign(_ agreement: String, _ home: Home, _ agency: String) async throws {
    let party = try AgreementFile.find(agreement, home).parties.first { $0.id.text == agency }
    for (place, role) in (party?.roles ?? []).enumerated() {
      _ = try await session(home).perform(
        .agreementsAct,
        [
          "agreement": .string(agreement), "act": "accept", "role": .string(role),
          "signer": .string(["Ana Example", "Bo Example", "Chidi Example"][place % 3]),
        ])
    }
  }

  func exchange(_ file: String, _ agreement: String) async throws {
    guard FileManager.default.isReadableFile(atPath: file) else { throw DiskError("read", file, errno: ENOENT) }
    try await begin("registry.demo.example", "benefits.demo.example", agreement)
    step("\(agencies[0]) drops \(URL(fileURLWithPath: file).lastPathComponent) for \(agencies[1])")
    let size = Int64(try File(file, O_RDONLY).status().st_size)
    let start = ContinuousClock.now
    let (id, trace) = try await drop(file, agreement)
    let seconds = (ContinuousClock.now - start) / .seconds(1)
    guard trace.first?.text("state") == "confirmed" else {
      throw AdminError(
        .failed, "the exchange ended as \(trace.first?.text("state") ?? "unknown"): \(trace.first?.text("note") ?? "")")
    }
    try await show(agreement, id, trace, original: file)
    let rate = Int64(Double(size) / max(seconds, 0.001))
    step("\(Progress.bytes(size)) in \(Int(seconds * 1000)) ms, outbox to signed receipt: \(Progress.bytes(rate))/s")
  }

  private func drop(_ file: String, _ agreement: String) async throws -> (TransferID, [JSON]) {
    let id = try Dropping.drop(file, into: homes[0], agreement: agreement)
    _ = try await session(homes[0]).perform(.poke)
    return (id, try await waitForEnd(homes[0], id))
  }

  private func show(_ agreement: String, _ id: TransferID, _ trace: [JSON], original: String) async throws {
    let there = try await session(homes[1]).perform(.trace, ["id": .string(id.text)])
    let name = there.first?.text("inboxName") ?? ""
    let inbox = "\(homes[1].inbox(AgencyID(agencies[0])!, agreement))/\(name)"
    step("it arrived: inbox/\(agencies[0])/\(agreement)/\(name)")
    let why = try await session(homes[0]).perform(.agreementsExplain, ["id": .string(id.text)])
    if why.first?.member("records") == nil {
      guard FileManager.default.contentsEqual(atPath: original, andPath: inbox) else {
        throw AdminError(.failed, "what arrived is not what was sent")
      }
      detail("the same bytes")
    } else {
      detail(why.first?.text("sentence") ?? "")
      for (what, path) in [("dropped", original), ("arrived", inbox)] {
        let text = String(decoding: try File.contents(path, bytesMax: 1 << 24), as: UTF8.self)
        detail("\(what)  \(text.split(separator: "\n").first ?? "")")
      }
    }
    step("receipts, signed by \(agencies[1]) and verified by \(agencies[0]):")
    for row in trace {
      if let receipt = row.member("receipt") {
        detail(
          "\(receipt.text("kind"))  at \(receipt.text("at"))  manifest \(receipt.text("manifest").prefix(16))…")
      }
    }
    step("the sender's ledger:")
    for row in trace {
      if let entry = row.member("entry") {
        detail("#\(entry.text("sequence"))  \(entry.text("at"))  \(entry.text("kind"))")
      }
    }
    for home in homes {
      let verified = try await session(home).perform(.ledgerVerify)
      guard verified.first?.member("faults") == .array([]) else {
        throw AdminError(.failed, "a ledger does not verify")
      }
    }
    detail("both ledgers verify.")
  }

  /// The same file with one date that cannot be: it comes back with the place and the rule.
  func showRefusal(_ file: String, _ agreement: String) async throws {
    let text = String(decoding: try File.contents(file, bytesMax: 1 << 20), as: UTF8.self)
    let broken = "\(root)/deaths-broken.csv"
    try DurableFile.write(
      Array(text.replacing(/\d\d\d\d-\d\d-\d\d/, with: "1933-02-30", maxReplacements: 1).utf8), to: broken)
    step("\(agencies[0]) drops it again, with a date that cannot be")
    let (_, trace) = try await drop(broken, agreement)
    let reason = "\(homes[0].returned(agreement))/deaths-broken.csv.reason.txt"
    guard trace.first?.text("state") == "refused", let lines = FileManager.default.contents(atPath: reason) else {
      throw AdminError(.failed, "a broken file was not refused")
    }
    step("it stays here, and its job finds returned/\(agreement)/deaths-broken.csv.reason.txt:")
    for line in String(decoding: lines, as: UTF8.self).split(separator: "\n") { detail(String(line)) }
  }

  /// Consent: who agreed goes, and who withdraws while the package waits for its four eyes does not.
  func showWithdrawal(_ file: String, _ agreement: String) async throws {
    try await begin("hospital.demo.example", "cover.demo.example", agreement)
    let own = session(homes[0])
    step(
      "at \(agencies[0]) three of five patients have agreed; it drops \(URL(fileURLWithPath: file).lastPathComponent)"
    )
    for person in ["ABC1000", "ABC1001", "ABC1002"] {
      _ = try await own.perform(
        .consentRecord,
        ["subject": .string(person), "agreement": .string(agreement), "event": .string(ConsentEvent.given.rawValue)])
    }
    let id = try Dropping.drop(file, into: homes[0], agreement: agreement)
    _ = try await own.perform(.poke)
    let sealed = try await waiting(for: id.text)
    let why = try await own.perform(.agreementsExplain, ["id": .string(id.text)])
    detail(why.first?.text("sentence") ?? "")
    detail("it is sealed, and waits: \(sealed.text("note"))")
    step("ABC1001 withdraws at the front desk")
    let ack = try await own.perform(
      .consentRecord,
      ["subject": "ABC1001", "agreement": .string(agreement), "event": .string(ConsentEvent.withdrawn.rawValue)])
    detail("acknowledged after \(ack.first?.text("milliseconds") ?? "") ms: \(ack.first?.text("plain") ?? "")")
    let rest = try await own.perform(.queue, ["all": false, "limit": 10]).first { $0.text("agreement") == agreement }
    let next = rest?.text("id") ?? ""
    step("it was sealed again without that record, as \(next); two people approve it")
    for person in ["Ana Example", "Bo Example"] {
      _ = try await own.perform(.agreementsApprove, ["id": .string(next), "by": .string(person)])
    }
    guard let fresh = TransferID(next), try await waitForEnd(homes[0], fresh).first?.text("state") == "confirmed" else {
      throw AdminError(.failed, "the package that was sealed again did not arrive")
    }
    let inbox = homes[1].inbox(AgencyID(agencies[0])!, agreement)
    let arrived = try Directory.names(inbox).map { try File.contents("\(inbox)/\($0)", bytesMax: 1 << 20) }
    for line in arrived.flatMap({ $0.split(separator: 10) }) {
      detail("arrived  \(String(decoding: line, as: UTF8.self))")
    }
    step("two of them ask who got their data")
    for person in ["ABC1000", "ABC1001"] {
      let report = try await own.perform(.report, ["subject": .string(person)])
      let told = report.first { !$0.text("receiverName").isEmpty }.map {
        "\($0.text("action")), to \($0.text("receiverName"))"
      }
      detail("report \(person): \(told ?? "nobody got data about this person")")
    }
    let audit = try await own.perform(.consentAudit)
    guard audit.last?.text("faults") == "0" else { throw AdminError(.failed, "the release rule did not hold") }
    step(
      "consent audit: \(audit.last?.text("events") ?? "") events and \(audit.last?.text("releases") ?? "") release replayed, the release rule held."
    )
  }

  private func waiting(for id: String) async throws -> JSON {
    for _ in 0..<3000 {
      let row = try await session(homes[0]).perform(.queue, ["all": false, "limit": 100]).first { $0.text("id") == id }
      if let row, row.text("code") == "approval.pending" { return row }
      try await Task.sleep(for: .milliseconds(20))
    }
    throw AdminError(.waiting, "the package was not sealed")
  }

  /// A home with the demo agency's keys, a free port, and the demo agreement.
  private func makeHome(_ agency: String) throws -> Home {
    let home = Home("\(root)/\(agency.prefix { $0 != "." })")
    try home.make()
    for name in ["keyring", "card.json", "passphrase"] {
      var bytes = try File.contents("\(keysExample)/\(agency)/\(name)", bytesMax: 1 << 20)
      if name == "card.json", bytes.last != 10 { bytes.append(10) }
      try DurableFile.write(bytes, to: "\(home.keys)/\(name)", mode: name == "card.json" ? 0o644 : 0o600)
    }
    let reserved = try ReservedPort()
    ports.append(reserved)
    let port = reserved.number
    try DurableFile.write(
      Array("agency: \(agency)\nlisten: \"127.0.0.1:\(port)\"\nscanSeconds: 1\nlogLevel: error\n".utf8),
      to: home.configuration)
    for folder in ["", "/schemas"] {
      try Directory.make(home.policies + folder)
      for name in try Directory.names(policies + folder) where name.hasSuffix(".yaml") || name.hasSuffix(".json") {
        let bytes = try File.contents("\(policies)\(folder)/\(name)", bytesMax: 1 << 20)
        try DurableFile.write(bytes, to: "\(home.policies)\(folder)/\(name)", mode: 0o644)
      }
    }
    let passphrase = try PassphraseFile.read(home.passphrase)
    var keys = try KeyRing(home, passphrase: passphrase)
    try keys.setEndpoint("https://127.0.0.1:\(port)", at: Date())
    try keys.save(home, passphrase: passphrase, cost: .minimal)
    return home
  }

  private func start(_ home: Home) throws {
    let process = Process()
    process.executableURL = URL(
      fileURLWithPath: try FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe"))
    process.arguments = ["run", "--demo", "--end-with-input", "--home", home.path]
    let lifeline = Pipe()
    lifelines.append(lifeline)
    process.standardInput = lifeline
    process.standardOutput = FileHandle.nullDevice
    try process.run()
    processes.append(process)
  }

  /// However this command ends, a closed pipe, Ctrl-C or a failure, it leaves nothing behind.
  func cleanUpAtExit() {
    Self.current = self
    atexit { Demo.current?.cleanUp() }
    for number in [SIGINT, SIGTERM, SIGHUP] {
      signal(number, SIG_IGN)
      let source = DispatchSource.makeSignalSource(signal: number)
      source.setEventHandler { exit(128 + number) }
      source.resume()
      signals.append(source)
    }
  }

  /// Ends the gateways that this command started, and removes their homes.
  func cleanUp() {
    Self.current = nil
    for process in processes where process.isRunning { process.terminate() }
    for process in processes { process.waitUntilExit() }
    if !keep { try? FileManager.default.removeItem(atPath: root) }
  }

  private func waitUntilRunning(_ home: Home) async throws {
    for _ in 0..<600 {
      if try await session(home).isRunning() { return }
      guard processes.allSatisfy(\.isRunning) else { break }
      try await Task.sleep(for: .milliseconds(50))
    }
    throw AdminError(.failed, "the gateway of \(home.path) did not start")
  }

  /// What two people would do by exchanging cards and reading fingerprints to each other.
  private func introduce(_ home: Home, to other: Home) async throws {
    let card = try KeyRing.loadCard(home)
    let session = session(other)
    _ = try await session.perform(.partnersAdd, ["card": .string(String(decoding: card.envelope.bytes, as: UTF8.self))])
    _ = try await session.perform(
      .partnersApprove,
      ["agency": .string(card.card.agency.text), "fingerprint": .string(Fingerprint(card.card).description)])
  }

  private func waitForEnd(_ home: Home, _ id: TransferID) async throws -> [JSON] {
    for _ in 0..<36000 {
      do {
        let trace = try await session(home).perform(.trace, ["id": .string(id.text)])
        if let state = TransferState(rawValue: trace.first?.text("state") ?? ""), state.isEnd || state == .held {
          return trace
        }
      } catch let error as AdminError where [.failed, .waiting].contains(error.exitCode) {
        // not claimed yet
      }
      try await Task.sleep(for: .milliseconds(20))
    }
    throw AdminError(.waiting, "no receipt came")
  }

  private func session(_ home: Home) -> Session {
    var options = HomeOptions()
    options.path = home.path
    options.json = false
    options.passphraseFile = nil
    return Session(options)
  }
}

extension Sequence where Self: Sendable, Element: Sendable {
  /// One after the other.
  fileprivate func asyncMap<Value: Sendable>(_ body: (Element) async throws -> Value) async rethrows -> [Value] {
    var values: [Value] = []
    for element in self { values.append(try await body(element)) }
    return values
  }
}
