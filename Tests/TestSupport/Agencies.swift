// Two agencies on this machine, with real homes, real keys and real gateways in processes of their own.

import Foundation
import Gateway
import Logging
import Policies
import Sealing
import Store
import Transport

/// One agency's home, and its gateway while it runs.
public final class TestAgency {
  public let id: String
  public let home: String
  public private(set) var process: Process?
  public var environment: [String: String] = [:]
  package let port: ReservedPort
  let place: Place

  /// Where a gateway listens: on this machine's loopback, or in a network namespace of its own.
  struct Place {
    var address = "127.0.0.1"
    var namespace: String?
  }

  init(id: String, home: String, port: ReservedPort, place: Place = Place()) {
    self.id = id
    self.home = home
    self.port = port
    self.place = place
  }

  deinit { kill() }

  /// Starts the gateway; returns once it listens, or has ended.
  @discardableResult
  public func start(wait: Bool = true) throws -> Process {
    let process = Process()
    let run = [Command.sallyport, "run", "--home", home]
    let words = place.namespace.map { ["/usr/sbin/ip", "netns", "exec", $0] + run } ?? run
    process.executableURL = URL(fileURLWithPath: words[0])
    process.arguments = Array(words.dropFirst())
    var environment = ProcessInfo.processInfo.environment.merging(self.environment) { _, new in new }
    environment["SWIFT_BACKTRACE"] = "enable=no"
    process.environment = environment
    _ = FileManager.default.createFile(atPath: "\(home).out", contents: nil)
    _ = FileManager.default.createFile(atPath: "\(home).log", contents: nil)
    process.standardOutput = try FileHandle(forWritingTo: URL(fileURLWithPath: "\(home).out"))
    process.standardError = try FileHandle(forWritingTo: URL(fileURLWithPath: "\(home).log"))
    process.standardInput = FileHandle.nullDevice
    try process.run()
    self.process = process
    Children.add(process.processIdentifier, home)
    if wait {
      _ = eventually { !process.isRunning || FileManager.default.contents(atPath: "\(home).out")?.isEmpty == false }
    }
    return process
  }

  /// Starts the gateway; returns once files can be dropped in its outbox.
  public func startSending(_ agreement: String = TestAgencies.agreement) throws {
    try start()
    let folder = "\(home)/outbox/\(agreement)/.sallyport-folder"
    guard eventually(30, { FileManager.default.fileExists(atPath: folder) }) else {
      throw TestFailure("\(id) did not start: \(log)")
    }
  }

  /// SIGTERM, and the exit status; 9 for a gateway that does not stop within a minute.
  @discardableResult
  public func stop() -> Int32 {
    guard let process else { return 0 }
    if process.isRunning { process.terminate() }
    process.waitUntilExit(atMost: 60)
    Children.remove(process.processIdentifier)
    self.process = nil
    return process.terminationStatus
  }

  /// SIGSTOP: it holds its connections and answers nothing, until SIGCONT.
  public func freeze(_ isFrozen: Bool) {
    if let process { Foundation.kill(process.processIdentifier, isFrozen ? SIGSTOP : SIGCONT) }
  }

  /// SIGKILL.
  public func kill() {
    guard let process else { return }
    if process.isRunning { Foundation.kill(process.processIdentifier, SIGKILL) }
    process.waitUntilExit()
    Children.remove(process.processIdentifier)
    self.process = nil
  }

  public var log: String {
    String(decoding: FileManager.default.contents(atPath: "\(home).log") ?? Data(), as: UTF8.self)
  }

  /// Renames a file into the outbox, as a batch job does.
  public func drop(_ name: String, _ bytes: Data, agreement: String = TestAgencies.agreement) throws {
    let outbox = "\(home)/outbox/\(agreement)"
    let temporary = "\(outbox)/.\(name).writing"
    try bytes.write(to: URL(fileURLWithPath: temporary))
    try FileManager.default.moveItem(atPath: temporary, toPath: "\(outbox)/\(name)")
  }

  public func inbox(from sender: TestAgency, _ name: String, agreement: String = TestAgencies.agreement) -> Data? {
    FileManager.default.contents(atPath: "\(home)/inbox/\(sender.id)/\(agreement)/\(name)")
  }

  public func inboxNames(from sender: TestAgency, agreement: String = TestAgencies.agreement) -> [String] {
    ((try? FileManager.default.contentsOfDirectory(atPath: "\(home)/inbox/\(sender.id)/\(agreement)")) ?? []).sorted()
  }

  /// A member of NAME.outcome.json, or nil.
  public func outcome(_ name: String, _ member: String = "outcome", agreement: String = TestAgencies.agreement)
    -> String?
  {
    guard let bytes = FileManager.default.contents(atPath: "\(home)/returned/\(agreement)/\(name).outcome.json"),
      let document = try? JSON(canonical: Array(bytes.dropLast()), bytesMax: 65536),
      case .object(let members) = document,
      case .string(let text)? = members[member]
    else { return nil }
    return text
  }

  public func sallyport(_ arguments: String...) throws -> CommandResult {
    try Command.sallyport(arguments + ["--home", home])
  }
}

/// A sender and a recipient who hold each other's cards and one agreement, and a hub between them where that is wanted.
public final class TestAgencies {
  public static let agreement = "test-files"

  public let scratch: Scratch
  public let sender: TestAgency
  public let recipient: TestAgency
  /// nil unless the options ask for one.
  public let hub: TestAgency?
  var all: [TestAgency] { [sender, recipient] + (hub.map { [$0] } ?? []) }

  public struct Options {
    /// A third agency that the agreement's delivery goes through.
    public var hasHub = false
    /// Network namespaces NAME-sender, NAME-recipient and NAME-hub, at 10.99.0.1, .2 and .3; nil for the loopback.
    public var network: String?
    /// The recipient calls out only, and with a hub the sender too: their cards do not say where they listen.
    public var callsOutOnly = false
    public var configuration = ""
    public var namePattern = "*"
    public var timeToLive = "P1D"
    public var packagesPerDay = 1_000_000
    public var bytesMax = 1 << 40
    public var wholeFile = false
    public var postQuantum = false
    public var keysValidDays: Int?
    public var introduces = true
    /// Members of the agreement beside the usual ones: fields, records; and what stands for subjects and consent.
    public var terms = ""
    public var subjects = "{ classes: [nobody], impetus: public-body, frequency: ongoing }"
    public var consent = "{ model: none }"
    public var approval = "{ mode: automatic }"
    public var isSigned = true
    /// `relay` or `collect`, and further members of `delivery` behind it.
    public var delivery = "relay"
    /// Further members of `dataset`, and the schema's text in schemas/test.schema; SHA256 stands for its digest.
    public var dataset = ""
    public var schema = ""

    public init() {}

    /// With a hub between the two.
    public static func throughHub(_ delivery: String, callsOutOnly: Bool = false) -> Options {
      var options = Options()
      options.delivery = delivery
      options.hasHub = true
      options.callsOutOnly = callsOutOnly
      return options
    }
  }

  public init(_ options: Options = Options()) throws {
    scratch = try Scratch()
    let path = scratch.path
    func agency(_ name: String, _ number: Int) throws -> TestAgency {
      let place =
        options.network.map { TestAgency.Place(address: "10.99.0.\(number)", namespace: "\($0)-\(name)") }
        ?? TestAgency.Place()
      return TestAgency(
        id: "\(name).example.gov", home: "\(path)/\(name.prefix(1))", port: try ReservedPort(), place: place)
    }
    sender = try agency("sender", 1)
    recipient = try agency("recipient", 2)
    hub = options.hasHub ? try agency("hub", 3) : nil
    let yaml = Self.yaml(options, sender.id, recipient.id)
    for agency in all {
      let home = Home(agency.home)
      try home.make()
      let passphrase = try PassphraseFile.create(home.passphrase)
      var keyOptions = KeyRing.Options()
      keyOptions.postQuantumSealing = options.postQuantum
      keyOptions.postQuantumSigning = options.postQuantum
      if !options.callsOutOnly || agency === hub || agency === sender && hub == nil {
        keyOptions.endpoint = "https://\(agency.place.address):\(agency.port.number)"
      }
      if let days = options.keysValidDays { keyOptions.validDays = days }
      let keys = try KeyRing(agency: AgencyID(agency.id)!, options: keyOptions, at: Date())
      try keys.save(home, passphrase: passphrase, cost: .minimal)
      let configuration = """
        agency: \(agency.id)
        listen: "\(agency.place.address):\(agency.port.number)"
        scanSeconds: 1
        lowWaterBytes: 1048576
        retrySecondsMax: 2
        \(options.configuration)
        """
      try DurableFile.write(Array(configuration.utf8), to: home.configuration)
      if !options.schema.isEmpty {
        try Directory.make("\(home.policies)/schemas")
        try DurableFile.write(Array(options.schema.utf8), to: "\(home.policies)/schemas/test.schema")
      }
      try DurableFile.write(Array(yaml.utf8), to: "\(home.policies)/\(Self.agreement).yaml")
    }
    if options.isSigned { try sign(Agreement(yaml: yaml)) }
    if options.introduces { try introduce() }
  }

  /// All parties accept; each holds the others' signatures.
  func sign(_ agreement: Agreement) throws {
    for agency in all {
      let home = Home(agency.home)
      let keys = try KeyRing(home, passphrase: PassphraseFile.read(home.passphrase))
      guard let party = agreement.parties.first(where: { $0.id.text == agency.id }) else { continue }
      for role in party.roles {
        let act = AgreementAct(
          .accept, agreement, party: party.id, role: role, signer: "\(role) of \(party.id)", reason: nil, at: Date())
        for other in all {
          try PolicyFolder.store(
            keys.sign(act.document, as: .agreementAct, at: Date()), of: agreement, in: Home(other.home).policies)
        }
      }
    }
  }

  public static func yaml(_ options: Options, _ sender: String, _ recipient: String, id: String = agreement) -> String {
    """
    kind: DataSharingAgreement
    schemaVersion: 1
    id: \(id)
    version: 1
    title: "Test files"
    parties:
      - { id: \(sender), name: "Sender", role: provider, signatories: { required: 1, roles: [data-officer] } }
      - { id: \(recipient), name: "Recipient", role: recipient, signatories: { required: 1, roles: [data-officer] } }\(options.hasHub ? "\n  - { id: hub.example.gov, name: \"Hub\", role: processor, signatories: { required: 1, roles: [operations] } }" : "")
    purpose: { id: testing, text: "Testing." }
    legalBasis: { type: "\(options.consent.contains("opt-in") ? "dpv:Consent" : "dpv:PublicInterest")", citations: [ { text: "None" } ] }
    subjects: \(options.subjects)
    consent: \(options.consent)
    validity: { notBefore: "2020-01-01T00:00:00Z", notAfter: "2099-01-01T00:00:00Z", reviewBy: "2098-01-01" }
    dataset: { namePattern: "\(options.namePattern)", mediaType: "application/octet-stream"\(options.dataset.replacingOccurrences(of: "SHA256", with: Digest(of: Array(options.schema.utf8)).hex)) }
    delivery: { mode: \(options.delivery)\(options.hasHub ? ", via: hub.example.gov" : ""), maxBytes: \(options.bytesMax), maxPackagesPerDay: \(options.packagesPerDay), timeToLive: "\(options.timeToLive)", wholeFileSha256: \(options.wholeFile) }
    security: { recipients: [x25519, mlkem768x25519] }
    retention: { recipientDeleteAfter: "P90D" }
    onwardTransfer: { allowed: false }
    transparency: { action: "Sent test files", subjectReport: per-record, privacyNoticeUrl: "https://example.gov/privacy", complaintTo: "Nobody" }
    approval: \(options.approval)
    \(options.terms)
    """
  }

  /// One more agreement, in all homes and signed.
  public func agree(_ yaml: String) throws {
    let agreement = try Agreement(yaml: yaml)
    for agency in all {
      try DurableFile.write(Array(yaml.utf8), to: "\(Home(agency.home).policies)/\(agreement.id).yaml")
    }
    try sign(agreement)
  }

  /// After the agreement's file was changed in both homes.
  public func signAgain() throws {
    try sign(Agreement(yaml: String(contentsOfFile: "\(sender.home)/policies/\(Self.agreement).yaml", encoding: .utf8)))
  }

  /// Cards exchanged and approved, on the stopped homes.
  private func introduce() throws {
    for agency in all {
      for other in all where other !== agency { try introduce(other, to: agency) }
    }
  }

  private func introduce(_ other: TestAgency, to agency: TestAgency) throws {
    let added = try agency.sallyport("partners", "add", "\(other.home)/keys/card.json")
    let fingerprint = try other.sallyport("keys", "fingerprint").lines.first ?? ""
    let approved = try agency.sallyport("partners", "approve", other.id, "--fingerprint", fingerprint)
    guard added.status == 0, approved.status == 0 else {
      throw TestFailure("introducing failed: \(added.errors) \(approved.errors)")
    }
  }

  public func start() throws {
    try hub?.start()
    try recipient.start()
    try sender.startSending()
  }

  /// Stops both; throws unless both ended well.
  public func stop() throws {
    let statuses = all.map { $0.stop() }
    guard statuses.allSatisfy({ $0 == 0 }) else {
      throw TestFailure("exit statuses \(statuses): \(all.map(\.log))")
    }
  }

  /// `check` on the stopped homes; what it found.
  public func findings() throws -> [String] {
    try all.flatMap { agency -> [String] in
      let result = try agency.sallyport("check", "--deep")
      return result.status == 0 ? [] : ["\(agency.id): \(result.text)\(result.errors)"]
    }
  }
}

public struct TestFailure: Error, CustomStringConvertible {
  public let description: String
  public init(_ description: String) { self.description = description }
}
