// demo: two agencies on this machine exchange one file, and every piece of evidence is shown.

import ArgumentParser
import Foundation
import Gateway
import Glibc
import Sealing
import Store

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

  func run() async throws {
    let root = FileManager.default.temporaryDirectory.appendingPathComponent("sallyport-demo-\(getpid())").path
    let demo = Demo(root: root, keysExample: keysExample, policies: policies, keep: keep)
    demo.cleanUpAtExit()
    do {
      // The shipped example keeps a schema; a file of yours goes as it is.
      if let file {
        try await demo.run(file, "demo-files")
      } else {
        let example = "\(policies)/examples/deaths-2026-11.csv"
        try await demo.run(example, "deaths-to-benefits")
        try await demo.showRefusal(example, "deaths-to-benefits")
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
  private static let sender = "registry.demo.example"
  private static let recipient = "benefits.demo.example"

  private let root: String
  private let keysExample: String
  private let policies: String
  private var processes: [Process] = []
  private var homes: [Home] = []
  private let out = Output(asJSON: false)
  private let keep: Bool
  /// The children end with their standard input, so also when this process dies without a word.
  private var lifelines: [Pipe] = []
  private var signals: [any DispatchSourceSignal] = []
  /// For atexit(3), which takes no context; set once, before anything is started.
  nonisolated(unsafe) private static var current: Demo?

  init(root: String, keysExample: String, policies: String, keep: Bool) {
    self.keep = keep
    self.root = root
    self.keysExample = keysExample
    self.policies = policies
  }

  func run(_ file: String, _ agreement: String) async throws {
    guard FileManager.default.isReadableFile(atPath: file) else { throw DiskError("read", file, errno: ENOENT) }
    let homes = try [Self.sender, Self.recipient].map { try makeHome($0) }
    self.homes = homes
    for home in homes { try start(home) }
    for home in homes { try await waitUntilRunning(home) }
    try await introduce(homes[0], to: homes[1])
    try await introduce(homes[1], to: homes[0])

    out.line("1. \(Self.sender) drops \(URL(fileURLWithPath: file).lastPathComponent) for \(Self.recipient)")
    let size = Int64(try File(file, O_RDONLY).status().st_size)
    let start = ContinuousClock.now
    let id = try Dropping.drop(file, into: homes[0], agreement: agreement)
    _ = try await session(homes[0]).perform(.poke)
    let trace = try await waitForEnd(homes[0], id)
    let seconds = (ContinuousClock.now - start) / .seconds(1)
    guard trace.first?.text("state") == "confirmed" else {
      throw AdminError(
        .failed, "the exchange ended as \(trace.first?.text("state") ?? "unknown"): \(trace.first?.text("note") ?? "")")
    }
    try await show(agreement, id, trace, original: file)
    let rate = Int64(Double(size) / max(seconds, 0.001))
    out.line(
      "5. \(Progress.bytes(size)) in \(Int(seconds * 1000)) ms, outbox to signed receipt: \(Progress.bytes(rate))/s")
  }

  private func show(_ agreement: String, _ id: TransferID, _ trace: [JSON], original: String) async throws {
    let there = try await session(homes[1]).perform(.trace, ["id": .string(id.text)])
    let inbox = "\(homes[1].inbox(AgencyID(Self.sender)!, agreement))/\(there.first?.text("inboxName") ?? "")"
    guard FileManager.default.contentsEqual(atPath: original, andPath: inbox) else {
      throw AdminError(.failed, "what arrived is not what was sent")
    }
    out.line(
      "2. it arrived, the same bytes: inbox/\(Self.sender)/\(agreement)/\(there.first?.text("inboxName") ?? "")")
    out.line("3. receipts, signed by \(Self.recipient) and verified by \(Self.sender):")
    for row in trace {
      if let receipt = row.member("receipt") {
        out.line(
          "     \(receipt.text("kind"))  at \(receipt.text("at"))  manifest \(receipt.text("manifest").prefix(16))…")
      }
    }
    out.line("4. the sender's ledger:")
    for row in trace {
      if let entry = row.member("entry") {
        out.line("     #\(entry.text("sequence"))  \(entry.text("at"))  \(entry.text("kind"))")
      }
    }
    for home in homes {
      let verified = try await session(home).perform(.ledgerVerify)
      guard verified.first?.member("faults") == .array([]) else {
        throw AdminError(.failed, "a ledger does not verify")
      }
    }
    out.line("   both ledgers verify.")
  }

  /// The same file with one date that cannot be: it comes back with the place and the rule.
  func showRefusal(_ file: String, _ agreement: String) async throws {
    let text = String(decoding: try File.contents(file, bytesMax: 1 << 20), as: UTF8.self)
    let broken = "\(root)/deaths-broken.csv"
    try DurableFile.write(
      Array(text.replacing(/\d\d\d\d-\d\d-\d\d/, with: "1933-02-30", maxReplacements: 1).utf8), to: broken)
    out.line("6. \(Self.sender) drops it again, with a date that cannot be")
    let id = try Dropping.drop(broken, into: homes[0], agreement: agreement)
    _ = try await session(homes[0]).perform(.poke)
    let trace = try await waitForEnd(homes[0], id)
    let reason = "\(homes[0].returned(agreement))/deaths-broken.csv.reason.txt"
    guard trace.first?.text("state") == "refused", let lines = FileManager.default.contents(atPath: reason) else {
      throw AdminError(.failed, "a broken file was not refused")
    }
    out.line("7. it stays here, and its job finds returned/\(agreement)/deaths-broken.csv.reason.txt:")
    for line in String(decoding: lines, as: UTF8.self).split(separator: "\n") { out.line("     \(line)") }
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
    let port = try FreePort.find()
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
      } catch let error as AdminError where error.exitCode == .failed {
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

/// A TCP port on loopback that is free now.
enum FreePort {
  static func find() throws -> Int {
    let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    guard descriptor >= 0 else { throw DiskError("socket", "127.0.0.1") }
    defer { close(descriptor) }
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    var size = socklen_t(MemoryLayout<sockaddr_in>.size)
    let bound = withUnsafeMutablePointer(to: &address) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        bind(descriptor, $0, size) == 0 && getsockname(descriptor, $0, &size) == 0
      }
    }
    guard bound else { throw DiskError("bind", "127.0.0.1") }
    return Int(UInt16(bigEndian: address.sin_port))
  }
}
