// The release rule's model (ReleaseModelTests) against real gateways. Between them stands a wire that holds the receipt, and then the
// key or its answer, until a schedule says go on; two people withdraw at every place of it, and the sender is killed at every place.

import Foundation
import NIOConcurrencyHelpers
import Policies
import Sealing
import Store
import TestSupport
import Testing
import Transport

@testable import Gateway

@Suite(.serialized) struct ReleaseScheduleTests {
  enum Step: Hashable {
    /// The sender gets the recipient's receipt: it may look at the rule, and the key comes as far as the wire.
    case release
    /// The key goes on to the recipient, or gets lost.
    case hand, lose
    /// The sender hears that the key arrived.
    case close
    case withdraw(String)
    /// SIGKILL to the sender, and a start.
    case kill
  }

  /// Two withdrawals at every two places, with the key handed over or lost, and one kill behind each step or none.
  static let schedules: [[Step]] = [Step.hand, .lose].flatMap { fate in
    (0..<16).flatMap { places -> [[Step]] in
      var steps: [Step] = []
      for (place, step) in [Step.release, fate, .close, nil].enumerated() {
        if places % 4 == place { steps.append(.withdraw("P1")) }
        if places / 4 == place { steps.append(.withdraw("P2")) }
        if let step { steps.append(step) }
      }
      return [steps] + steps.indices.map { Array(steps[...$0]) + [.kill] + steps[($0 + 1)...] }
    }
  }

  /// What the wire does with the requests that pass.
  private final class Wire: Sendable {
    struct Key {
      var goes: Bool?
      var isThrough = false
      var mayBeAnswered = false
    }

    private struct State {
      var holdsReceipts = true
      var isFree = false
      var keys: [Key] = []
    }

    private let state = NIOLockedValueBox(State())

    /// Keys that wait for a word.
    var waiting: Int { state.withLockedValue { $0.keys.filter { $0.goes == nil }.count } }
    var under: Int { state.withLockedValue { $0.keys.filter { $0.goes == true && !$0.isThrough }.count } }

    func letReceiptsGo() { state.withLockedValue { $0.holdsReceipts = false } }
    func decide(goes: Bool) {
      state.withLockedValue { state in
        for place in state.keys.indices where state.keys[place].goes == nil { state.keys[place].goes = goes }
      }
    }
    func answer() {
      state.withLockedValue { state in
        for place in state.keys.indices { state.keys[place].mayBeAnswered = true }
      }
    }
    /// Nothing is held any more.
    func free() {
      state.withLockedValue {
        $0.isFree = true
        $0.holdsReceipts = false
      }
      decide(goes: true)
      answer()
    }

    private func until(_ holds: @Sendable (State) -> Bool) async {
      while !state.withLockedValue({ holds($0) }) { try? await Task.sleep(for: .milliseconds(2)) }
    }

    func receipt() async { await until { !$0.holdsReceipts } }

    /// Waits for the word about one more key; false: it is lost.
    func key(_ forward: () async -> HTTPReply) async -> HTTPReply {
      let place = state.withLockedValue { state in
        state.keys.append(state.isFree ? Key(goes: true, mayBeAnswered: true) : Key())
        return state.keys.count - 1
      }
      await until { $0.keys[place].goes != nil }
      guard state.withLockedValue({ $0.keys[place].goes == true }) else {
        return .problem(Problem(.unavailable, code: "wire.lost", "the key got lost"))
      }
      let reply = await forward()
      state.withLockedValue { $0.keys[place].isThrough = true }
      await until { $0.keys[place].mayBeAnswered }
      return reply
    }
  }

  /// Two gateways in which three people agreed, stopped; copied for each schedule. The recipient listens behind the wire.
  private final class Bench {
    let agencies: TestAgencies
    private let kept: String
    private let behind: ReservedPort

    init() throws {
      agencies = try TestAgencies(.optIn())
      kept = "\(agencies.scratch.path)/kept"
      behind = try ReservedPort()
      try agencies.start()
      for person in ["P1", "P2", "P3"] {
        guard
          try agencies.sender.sallyport("consent", "grant", person, "--agreement", TestAgencies.agreement).status == 0
        else { throw TestFailure(agencies.sender.log) }
      }
      try agencies.stop()
      let configuration = URL(fileURLWithPath: "\(agencies.recipient.home)/sallyport.yaml")
      let text = try String(contentsOf: configuration, encoding: .utf8)
      try Data(text.replacing(":\(agencies.recipient.port.number)\"", with: ":\(behind.number)\"").utf8)
        .write(to: configuration)
      try Command.run("/bin/mkdir", [kept])
      try Command.run("/bin/cp", ["-a", agencies.sender.home, agencies.recipient.home, kept])
    }

    private func reset() throws {
      for agency in [agencies.sender, agencies.recipient] {
        agency.kill()
        try Command.run("/bin/rm", ["-rf", agency.home])
        try Command.run(
          "/bin/cp", ["-a", "\(kept)/\(URL(fileURLWithPath: agency.home).lastPathComponent)", agency.home])
      }
    }

    /// What went wrong in one schedule; empty when nothing did.
    ///
    /// - Parameter seed: SQL run on the sender's ledger before it starts: a system that is wrong.
    func run(_ steps: [Step], seed: String? = nil) async throws -> [String] {
      try reset()
      if let seed {
        let script = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).executescript(sys.argv[2])"
        let seeded = try Command.run("/usr/bin/python3", ["-c", script, "\(agencies.sender.home)/ledger.sqlite", seed])
        guard seeded.status == 0 else { throw TestFailure(seeded.errors) }
      }
      let home = Home(agencies.sender.home)
      let client = RelayClient(identity: try KeyRing(home, passphrase: PassphraseFile.read(home.passphrase)).tlsInUse)
      defer { client.stop() }
      let pins = try KeyRing.loadCard(Home(agencies.recipient.home)).card.tlsPins
      let origin = "https://127.0.0.1:\(behind.number)"
      let wire = Wire()
      let found = NIOLockedValueBox<[String]>([])
      try await serving(as: agencies.recipient, to: [agencies.sender]) { request in
        do {
          let body = try await request.collect(bytesMax: 1 << 20)
          let headers = ["Upload-Offset", "Content-Digest", "Content-Type"].compactMap { name in
            request.header(name).map { "\(name): \($0)" }
          }
          let onward = RelayRequest(
            request.method, origin + request.target, headers: headers, body: body.isEmpty ? .none : .bytes(body),
            pins: pins)
          @Sendable func forward() async -> HTTPReply {
            do {
              var reply = try await client.send(onward)
              reply.headers = reply.headers.filter {
                ["upload-offset", "content-type", "retry-after"].contains($0.key)
              }
              return reply
            } catch {
              return .problem(Problem(.unavailable, "\(error)"))
            }
          }
          if request.method == "PUT", request.target.hasSuffix("/key") { return await wire.key(forward) }
          let reply = await forward()
          if request.method == "PATCH" { await wire.receipt() }
          return reply
        } catch {
          return .problem(Problem(.malformed, "\(error)"))
        }
      } body: {
        let result = try Drive(agencies, wire).run(steps)
        found.withLockedValue { $0 = result }
      }
      return try found.withLockedValue { $0 } + agencies.findings()
    }
  }

  /// One schedule on its way.
  private final class Drive {
    private let sender: TestAgency
    private let recipient: TestAgency
    private let wire: Wire
    private var faults: [String] = []
    private var asked: [(person: String, process: Process, output: String)] = []

    init(_ agencies: TestAgencies, _ wire: Wire) {
      (sender, recipient, self.wire) = (agencies.sender, agencies.recipient, wire)
    }

    func run(_ steps: [Step]) throws -> [String] {
      try recipient.start()
      try sender.startSending()
      try sender.drop("a.ndjson", TestRecords.of(["P1", "P2", "P3"]))
      if !eventually(30, { recipient.holdsABody }) { faults.append("the body does not arrive: \(sender.log)") }
      for (place, step) in steps.enumerated() { try take(step, wasKilled: steps[..<place].contains(.kill)) }
      wire.free()
      for ask in asked { ask.process.waitUntilExit(atMost: 60) }
      // A key that was on its way counts as disclosed: once somebody in the package has withdrawn it is not sent again, and the
      // recipient, told by a notice, refuses what has not reached its inbox.
      let ends =
        steps.contains(.lose) || steps.contains(.kill) ? ["delivered", "unconfirmed", "refused"] : ["delivered"]
      if !eventually(60, { ends.contains(sender.outcome("a.ndjson") ?? "") }) {
        let end = ["outcome", "code", "detail"].map { sender.outcome("a.ndjson", $0) ?? "" }
        faults.append("the rest ends as \(end): \(sender.log.suffix(800))")
      }
      try judge()
      for agency in [sender, recipient] where agency.stop() != 0 { faults.append("\(agency.id): \(agency.log)") }
      return faults
    }

    private func take(_ step: Step, wasKilled: Bool) throws {
      switch step {
      case .release:
        wire.letReceiptsGo()
        if !eventually(wasKilled ? 2 : 20, { wire.waiting > 0 }), !wasKilled {
          faults.append("no key comes: \(sender.log.suffix(800))")
        }
      case .hand:
        wire.decide(goes: true)
        if !eventually(20, { wire.under == 0 }) { faults.append("the recipient takes no key: \(recipient.log)") }
      case .lose: wire.decide(goes: false)
      case .close: wire.answer()
      case .withdraw(let person):
        try withdraw(person)
        let isRecorded = try eventually(20) {
          try sender.sallyport("consent", "show", person, "--agreement", TestAgencies.agreement, "--json").text
            .contains(#""state":"withdrawn""#)
        }
        if !isRecorded { faults.append("\(person)'s withdrawal is not recorded: \(sender.log)") }
      case .kill:
        sender.kill()
        wire.decide(goes: false)
        wire.answer()
        try sender.start()
        // Whoever got no answer asks again.
        for ask in asked {
          ask.process.waitUntilExit(atMost: 20)
          if ask.process.terminationStatus != 0 { try withdraw(ask.person) }
        }
      }
    }

    private func withdraw(_ person: String) throws {
      let output = "\(sender.home)-ack-\(asked.count)"
      _ = FileManager.default.createFile(atPath: output, contents: nil)
      let process = Process()
      process.executableURL = URL(fileURLWithPath: Command.sallyport)
      process.arguments = [
        "consent", "withdraw", person, "--agreement", TestAgencies.agreement, "--json", "--home", sender.home,
      ]
      process.standardOutput = try FileHandle(forWritingTo: URL(fileURLWithPath: output))
      process.standardError = FileHandle.nullDevice
      try process.run()
      asked.append((person, process, output))
    }

    /// Nobody is readable whom an acknowledgement does not tell so; everybody else is; the ledger says the same.
    private func judge() throws {
      let claims = recipient.inboxNames(from: sender).flatMap { TestRecords.claims(recipient.inbox(from: sender, $0)) }
      let isWhole = sender.outcome("a.ndjson") == "delivered"
      if claims.contains("P3") != isWhole || Set(claims).count != claims.count { faults.append("\(claims) arrived") }
      let withdrawn = Set(asked.map(\.person))
      for ask in asked where ask.process.terminationStatus == 0 {
        let text = String(decoding: FileManager.default.contents(atPath: ask.output) ?? Data(), as: UTF8.self)
        if claims.contains(ask.person), !text.contains(#""alreadyDisclosed":[{"#) {
          faults.append("\(ask.person) is readable, and was told: \(text)")
        }
      }
      for person in withdrawn where !asked.contains(where: { $0.person == person && $0.process.terminationStatus == 0 })
      {
        faults.append("\(person)'s withdrawal is never acknowledged: \(sender.log.suffix(800))")
      }
      let audit = try sender.sallyport("consent", "audit")
      if audit.status != 0 { faults.append("consent audit: \(audit.text)") }
    }
  }

  @Test func noScheduleDisclosesAfterAnAcknowledgement() async throws {
    let bench = try Bench()
    let count = Self.schedules.count
    #expect(count == 192)
    let sample = min(FaultTests.sample, count)
    for number in 0..<sample {
      // A stride that visits all of them: seeds 1 to count / sample try each once.
      let steps = Self.schedules[((FaultTests.seed - 1) * sample + number) * 73 % count]
      let faults = try await bench.run(steps)
      #expect(faults.isEmpty, "\(steps): \(faults)")
      FaultTests.note("schedule \(number + 1) of \(sample)", faults.isEmpty)
    }
  }

  /// A sender that forgets the lease acknowledges before the drain: the schedule that shows it is found to.
  @Test func acknowledgingBeforeTheDrainIsFound() async throws {
    let faults = try await Bench().run(
      [.release, .withdraw("P1"), .hand, .close],
      seed: """
        CREATE TRIGGER forget AFTER INSERT ON packages WHEN NEW.released IS NOT NULL
        BEGIN UPDATE packages SET released = NULL, released_at = NULL WHERE id = NEW.id; END
        """)
    #expect(faults.contains { $0.hasPrefix("P1 is readable, and was told") }, "\(faults)")
  }
}

extension TestAgency {
  /// Whether a body that came in waits in the spool.
  fileprivate var holdsABody: Bool {
    FileManager.default.subpaths(atPath: "\(home)/spool/in")?.contains { $0.hasSuffix(".body") } == true
  }
}

/// The rule on a package whose body is with its recipient, its gateway in this process.
@Suite struct ReleaseRuleTests {
  @Test func aPackageIsJudgedAgainBeforeTheTransaction() async throws {
    let agencies = try TestAgencies(.optIn())
    let sender = agencies.sender
    try sender.startSending()
    func grant(_ person: String) throws {
      #expect(try sender.sallyport("consent", "grant", person, "--agreement", TestAgencies.agreement).status == 0)
    }
    for person in ["P1", "P2"] { try grant(person) }
    try sender.drop("a.ndjson", TestRecords.of(["P1", "P2"]))
    #expect(try eventually { try sender.sallyport("queue", "--json").text.contains(#""code":"partner.unreachable""#) })
    // Somebody else, since it was judged.
    try grant("P3")
    sender.stop()
    let context = try OwnGateway(of: sender).context
    let queued = try context.ledger.readNow {
      try $0.queue(state: .queued, peer: AgencyID(agencies.recipient.id)!, limit: 1)
    }
    let custody = try await context.ledger.write { tx in
      let row = try tx.advance(tx.advance(queued[0], to: .sending), to: .custody)
      let (receipt, envelope) = context.receipt(.received, for: row, previous: nil)
      try tx.add(receipt: receipt, envelope: envelope)
      return row
    }
    func package() throws -> PackageRow? { try context.ledger.readNow { try $0.package(custody.id) } }
    // One who changed is too many each time: it ends all the same.
    let endless = try await ReleaseRule(context: context, changesMax: -1).open(custody)
    guard case .waits("consent.unknown", _) = endless else { throw TestFailure("\(endless)") }
    // Too many once: everybody is looked at in the ledger, whatever the table in memory says.
    let judged = try #require(try package()).judged
    let agreement = try #require(context.current(TestAgencies.agreement, at: Date()))
    let subject = try #require(Subject.reference("P2", ConsentJourney(context: context).key(agreement)))
    let granted = try #require(try context.ledger.readNow { try $0.consentWord(agreement.id, subject) })
    let withdrawn = ConsentRecord(state: .withdrawn, at: Date(), validUntil: nil).word
    try await context.ledger.write { tx in
      try tx.setConsent(agreement.id, subject, word: withdrawn)
      var row = try tx.reader.package(custody.id)!
      row.judged = 0
      try tx.put(row)
    }
    let stopped = try await ReleaseRule(context: context, changesMax: 0).open(custody)
    guard case .withdrawn([1], code: "consent.withdrawn") = stopped else { throw TestFailure("\(stopped)") }
    #expect(try package()?.judged == 0)
    try await context.ledger.write { try $0.setConsent(agreement.id, subject, word: granted) }
    let opened = try await ReleaseRule(context: context, changesMax: 0).open(custody)
    guard case .opened = opened else { throw TestFailure("\(opened)") }
    #expect(try package()?.judged ?? 0 >= judged)
    try await context.close()
  }
}
