// init, run, status, check, doctor: a home and its health.

import ArgumentParser
import CLinux
import Foundation
import Gateway
import Glibc
import Logging
import Sealing
import ServiceLifecycle
import Store

struct InitCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "init", abstract: "Make a new home: keys, card and configuration.")

  @OptionGroup var options: HomeOptions
  @Option(help: "The agency's id, shaped like a domain: tax.example.gov.")
  var agency: String
  @Option(help: "Where the gateway listens for partners, HOST:PORT.")
  var listen = "127.0.0.1:8443"
  @Option(help: "Where partners reach it, https://HOST:PORT; left out for an agency that only calls out.")
  var endpoint: String?
  @Flag(help: "Seal to this agency with X25519 alone, which stock age before 1.3 can open.")
  var classical = false
  @Flag(help: "Sign with ML-DSA-65 beside Ed25519.")
  var postQuantumSignatures = false
  @Option(help: "How long the keys are valid, 1 to 3650 days.")
  var validDays = KeyRing.validityDays

  func run() async throws {
    guard let id = AgencyID(agency) else { throw ValidationError("--agency: expected something like tax.example.gov") }
    guard (1...3650).contains(validDays) else { throw ValidationError("--valid-days: expected 1 to 3650") }
    let home = options.home
    guard !Directory.exists(home.keyring) else {
      throw ConfigurationError("\(home.path) is a home already", remedy: "sallyport status --home \(home.path)")
    }
    let yaml = "agency: \(id)\nlisten: \"\(listen)\"\n"
    _ = try Configuration(yaml: yaml)
    let passphrase: Secret
    try home.make()
    if let file = options.passphraseFile {
      passphrase = try HomeOptions.read(file)
    } else {
      passphrase = try PassphraseFile.create(home.passphrase)
      Output.note(
        "note: the passphrase is in \(home.passphrase); move it to a credential store before real use (docs/OPERATIONS.md)"
      )
    }
    var keyOptions = KeyRing.Options()
    keyOptions.postQuantumSealing = !classical
    keyOptions.postQuantumSigning = postQuantumSignatures
    keyOptions.endpoint = endpoint
    keyOptions.validDays = validDays
    let keys = try KeyRing(agency: id, options: keyOptions, at: Date())
    // Every reader refuses a card that breaks the rules; so does its maker.
    _ = try SignedCard(selfSigned: keys.card.envelope.bytes, at: Date())
    try DurableFile.write(Array(yaml.utf8), to: home.configuration)
    try keys.save(home, passphrase: passphrase)
    let fingerprint = Fingerprint(keys.card.card).description
    options.output.row(
      [
        "agency": .string(id.text), "home": .string(home.path), "fingerprint": .string(fingerprint),
        "card": .string(home.card),
      ],
      human: """
        \(id) is ready in \(home.path)
        card         \(home.card)
        fingerprint  \(fingerprint)
        Next: put agreements into \(home.policies), exchange cards (sallyport partners add), then: sallyport run --home \(home.path)
        """)
  }
}

struct RunCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "run", abstract: "Run the gateway of a home until SIGTERM.")

  @OptionGroup var options: HomeOptions
  @Option(help: "Force one chunk cipher: openssl or sodium. The faster one is used otherwise.")
  var cipher: CipherEngine?
  @Flag(help: "Allow the published demo keys. Never for real data.")
  var demo = false
  @Flag(help: .hidden)
  var endWithInput = false

  func run() async throws {
    if sp_raise_descriptor_limit() != 0 { Output.note("note: the limit of open files cannot be raised") }
    sp_return_large_memory()
    let home = options.home
    let configuration = try Configuration.load(home)
    let file = options.passphraseFile
    let unlock: @Sendable () throws -> Secret = { try HomeOptions.passphrase(home, file: file) }
    let keys = try KeyRing(home, passphrase: unlock())
    if !demo, DemoKeys.areIn(keys.card.card) {
      throw ConfigurationError(
        "these are the published demo keys; anybody has them", remedy: "sallyport init --agency ID --home DIR")
    }
    let fastest = try CipherEngine.selfTest()
    let asJSON = options.json
    var logger = Logger(label: "sallyport") { label -> any LogHandler in
      asJSON ? JSONLog() : StreamLogHandler.standardError(label: label)
    }
    logger.logLevel = Logger.Level(rawValue: configuration.logLevel) ?? .info
    let context = try GatewayContext(
      home: home, configuration: configuration, keys: keys, engine: cipher ?? fastest,
      workers: ProcessInfo.processInfo.activeProcessorCount, logger: logger, now: { Date() }, passphrase: unlock)
    let output = options.output
    let gateway = RunningGateway(context: context) { port in
      output.row(
        ["listening": .integer(Int64(port)), "agency": .string(configuration.agency.text)],
        human: "\(configuration.agency) listens on \(configuration.host):\(port)")
    }
    if endWithInput {
      Thread.detachNewThread {
        var byte: UInt8 = 0
        while read(STDIN_FILENO, &byte, 1) > 0 {}
        kill(getpid(), SIGTERM)
      }
    }
    let group = ServiceGroup(
      configuration: .init(
        services: [
          .init(
            service: gateway, successTerminationBehavior: .gracefullyShutdownGroup,
            failureTerminationBehavior: .cancelGroup)
        ],
        gracefulShutdownSignals: [.sigterm, .sigint], logger: logger))
    do {
      try await group.run()
      try await context.close()
    } catch {
      // After a failure of the disk nothing more is written, not even by closing: the process ends where it stands.
      Output.failure(error, asJSON: options.json)
      fflush(nil)
      _exit(ExitStatus(error).rawValue)
    }
  }
}

extension CipherEngine: ExpressibleByArgument {}

struct StatusCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "status", abstract: "What the gateway holds, and what needs attention.")

  @OptionGroup var options: HomeOptions

  func run() async throws {
    let rows = try await Session(options).perform(.status)
    options.output.rows(rows) { row in
      switch row.text("kind") {
      case "gateway":
        "\(row.text("agency"))  running: \(row.text("running"))  agreements: \(row.text("agreements"))  ledger: \(row.member("head")?.text("size") ?? "") entries"
          + (row.text("room") == "no" ? "\nBELOW THE LOW-WATER MARK: nothing new is taken" : "")
      case "transfers":
        "  \(["out": "sent    ", "hub": "passing "][row.text("direction")] ?? "received")  \(row.text("state"))  \(row.text("count"))  oldest \(row.text("oldest"))"
      case "partner":
        "  partner   \(row.text("agency"))  \(row.text("state"))"
          + (row.text("pausedUntil").isEmpty ? "" : "  unreachable, next try \(row.text("pausedUntil"))")
          + (row.text("pendingReason").isEmpty ? "" : "  a new card waits: \(row.text("pendingReason"))")
      case "waiting": "  WAITING   \(row.text("count")) for \(row.text("code")): \(row.text("next"))"
      case "agreement-offered":
        "  OFFER     agreement \(row.text("agreement")) version \(row.text("version")): sallyport agreements show \(row.text("sha256"))"
      case "notice-overdue":
        "  WARNING   \(row.text("partner")) has not answered the withdrawal notice \(row.text("notice"))"
      case "expires-uncollected":
        "  WARNING   \(row.text("partner")) has not come for \(row.text("name")) (\(row.text("id"))); it expires \(row.text("expiresAt"))"
      default: "  WARNING   \(row.text("text"))"
      }
    }
  }
}

struct CheckCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "check", abstract: "Verify that the ledger, the spool and every receipt still hold together.")

  @OptionGroup var options: HomeOptions
  @Flag(help: "Read every body again and compare its tree root.")
  var deep = false

  func run() async throws {
    let rows = try await Session(options).perform(.check, ["deep": .bool(deep)])
    options.output.rows(rows) { row in
      if row.member("findings") == nil {
        return "\(row.text("invariant")): \(row.text("subject")): \(row.text("detail"))"
      }
      return row.text("findings") == "0"
        ? "ok: \(row.text("transfers")) transfers"
        : "\(row.text("findings")) findings in \(row.text("transfers")) transfers"
    }
    if rows.last?.text("findings") != "0" { throw ExitCode(.failed) }
  }
}

struct DoctorCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "doctor", abstract: "Look for what will go wrong soon: permissions, disk, keys, folders, partners.")

  @OptionGroup var options: HomeOptions

  func run() async throws {
    let findings = try await Doctor(options: options).examine()
    options.output.rows(findings) {
      "\($0.text("severity"))  \($0.text("what"))\($0.text("remedy").isEmpty ? "" : "\n       \($0.text("remedy"))")"
    }
    if findings.contains(where: { $0.text("severity") == "fault" }) { throw ExitCode(.configuration) }
    if findings.contains(where: { $0.text("severity") == "warning" }) { throw ExitCode(.partlyDone) }
  }
}
