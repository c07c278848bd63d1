// The bench of the fault tests: a template of two agencies, copied for every experiment; the shim; the verdict.

import Foundation
import TestSupport

/// What must hold after any fault, once the faults are off and everything has run to its end.
struct Verdict: CustomStringConvertible {
  var faults: [String] = []
  var isSound: Bool { faults.isEmpty }
  var description: String { faults.joined(separator: "; ") }
}

/// Two stopped agencies that are copied for each experiment: setting up keys and cards once is enough.
final class FaultBench {
  /// That of the usual payloads. The tests of faults run one after the other.
  nonisolated(unsafe) static let shared = Result {
    let bench = try FaultBench()
    Shared.removeAtExit(bench.template.scratch.path)
    return bench
  }

  static let canary = "CANARY-b9d1f0c27a-personal-record"
  static let shim: String = {
    let library = "/tmp/sallyport-faultpoint-\(getpid()).so"
    let source = Command.root.appendingPathComponent("Tests/FaultTests/Shim/faultpoint.c").path
    let built = try! Command.run("/usr/bin/gcc", ["-O2", "-fPIC", "-shared", "-o", library, source, "-ldl"])
    precondition(built.status == 0, built.errors)
    Shared.removeAtExit(library)
    return library
  }()

  let template: TestAgencies
  private let payloads: [String: Data]
  private var counted: [KeyPath<TestAgencies, TestAgency>: [String]] = [:]

  init(payloads: [String: Data] = FaultBench.payloads) throws {
    self.payloads = payloads
    template = try TestAgencies()
    // One start makes folders and databases, so that each experiment counts a transfer and not a first start.
    try template.start()
    try template.stop()
  }

  /// Payloads of one experiment: one chunk, and more than one segment.
  static let payloads = ["small.txt": payload(of: 1), "large.txt": payload(of: 1_200_000)]

  /// Lines with the canary, of at least `bytes`.
  static func payload(of bytes: Int) -> Data {
    let line = Data("\(canary)\n".utf8)
    var payload = line
    while payload.count < bytes { payload.append(payload.prefix(bytes - payload.count + line.count)) }
    return payload
  }

  /// Runs one experiment on fresh copies: drop, run with the fault on one side, restart without, let it finish.
  ///
  /// - Parameter restartLog: where the shim logs the restarted side's calls.
  func experiment(
    _ side: KeyPath<TestAgencies, TestAgency>, _ fault: [String: String], restartLog: String? = nil
  ) throws -> (verdict: Verdict, ended: Int32?, log: String) {
    let agencies = try reset()
    defer {
      agencies.sender.kill()
      agencies.recipient.kill()
    }
    let faulty = agencies[keyPath: side]
    let healthy = side == \TestAgencies.sender ? agencies.recipient : agencies.sender
    let shim = ["LD_PRELOAD": Self.shim, "FAULT_PREFIX": "\(faulty.home)/"]
    faulty.environment = shim.merging(fault) { _, new in new }
    for (name, bytes) in payloads { try agencies.sender.drop(name, bytes) }
    try healthy.start()
    let process = try faulty.start()
    var taken: [Data] = []
    // What fails for good retries for ever; anything else ends, or kills, or stops once its connections had their time to drain.
    _ = eventually(fault["FAULT_STICKY"] == nil ? 20 : 4) { !process.isRunning || isFinished(agencies) }
    let ended: Int32? = process.isRunning ? nil : process.terminationStatus
    // Long enough for the stack of a crash.
    let log = String(faulty.log.suffix(8000))
    // A consumer takes whatever is in the inbox right after the fault.
    taken += try takeInbox(agencies)
    faulty.kill()
    faulty.environment = restartLog.map { shim.merging(["FAULT_LOG": $0]) { $1 } } ?? [:]
    try faulty.start()
    let isLive = eventually(40) { isFinished(agencies) }
    taken += try takeInbox(agencies)
    var verdict = Verdict()
    if !isLive { verdict.faults.append("not everything ends: \(faulty.log.suffix(400)) | \(healthy.log.suffix(400))") }
    // Let the last acknowledgement through before the homes are looked at.
    _ = eventually(5) {
      FileManager.default.subpaths(atPath: "\(agencies.recipient.home)/spool/in")?.contains { $0.hasSuffix(".body") }
        != true
    }
    for agency in [agencies.sender, agencies.recipient] where agency.stop() != 0 {
      verdict.faults.append("\(agency.id) does not stop well: \(agency.log.suffix(400))")
    }
    verdict.faults += try agencies.findings()
    for (name, bytes) in payloads {
      let count = taken.filter { $0 == bytes }.count
      if count != 1 { verdict.faults.append("\(name) arrived \(count) times") }
    }
    let halves = taken.filter { bytes in !payloads.values.contains(bytes) }
    if !halves.isEmpty { verdict.faults.append("\(halves.count) files arrived that nobody sent") }
    verdict.faults += try plaintext(agencies)
    return (verdict, ended, log)
  }

  /// The calls that an undisturbed run makes on one side.
  func calls(_ side: KeyPath<TestAgencies, TestAgency>) throws -> [String] {
    if let known = counted[side] { return known }
    let log = "\(template.scratch.path)/calls"
    try? FileManager.default.removeItem(atPath: log)
    let (verdict, _, _) = try experiment(side, ["FAULT_LOG": log])
    guard verdict.isSound else { throw TestFailure("the undisturbed run does not hold: \(verdict)") }
    let text = String(decoding: FileManager.default.contents(atPath: log) ?? Data(), as: UTF8.self)
    let calls = text.split(separator: "\n").map(String.init)
    counted[side] = calls
    return calls
  }

  private func isFinished(_ agencies: TestAgencies) -> Bool {
    payloads.keys.allSatisfy { agencies.sender.outcome($0) == "delivered" }
  }

  /// Puts the template's homes back to how they were first.
  private func reset() throws -> TestAgencies {
    let kept = "\(template.scratch.path)/kept"
    if !FileManager.default.fileExists(atPath: kept) {
      try Command.run("/bin/mkdir", [kept])
      try Command.run("/bin/cp", ["-a", template.sender.home, template.recipient.home, kept])
    }
    for agency in [template.sender, template.recipient] {
      try Command.run("/bin/rm", ["-rf", agency.home])
      try Command.run("/bin/cp", ["-a", "\(kept)/\(URL(fileURLWithPath: agency.home).lastPathComponent)", agency.home])
    }
    return template
  }

  private func takeInbox(_ agencies: TestAgencies) throws -> [Data] {
    try agencies.recipient.inboxNames(from: agencies.sender).map { name in
      let path = "\(agencies.recipient.home)/inbox/\(agencies.sender.id)/\(TestAgencies.agreement)/\(name)"
      let bytes = try Data(contentsOf: URL(fileURLWithPath: path))
      try FileManager.default.removeItem(atPath: path)
      return bytes
    }
  }

  /// The canary may be in no file of either home: originals and inbox are empty by now.
  private func plaintext(_ agencies: TestAgencies) throws -> [String] {
    let found = try Command.run("/bin/grep", ["-rlF", Self.canary, agencies.sender.home, agencies.recipient.home])
    return found.lines.map { "plaintext is left in \($0)" }
  }
}
