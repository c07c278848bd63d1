// Kills at each durability call of a withdrawal, while a sealed package that holds the person waits for its approval: whatever was
// recorded holds after the restart, and nobody else's record is lost.

import Foundation
import TestSupport
import Testing

@Suite(.serialized) struct ConsentFaultTests {
  /// A home in which three people agreed and their package waits, stopped; copied for each experiment.
  private final class Bench {
    let agencies: TestAgencies
    private let kept: String

    init() throws {
      agencies = try TestAgencies(.optIn(approval: "{ mode: every-package, approvers: 2, expiresAfter: P5D }"))
      kept = "\(agencies.scratch.path)/kept"
      try agencies.start()
      for person in ["P1", "P2", "P3"] {
        #expect(
          try agencies.sender.sallyport("consent", "grant", person, "--agreement", TestAgencies.agreement).status == 0)
      }
      try agencies.sender.drop("a.ndjson", TestRecords.of(["P1", "P2", "P3"]))
      #expect(eventually { agencies.sender.outcome("a.ndjson", "code") == "approval.pending" })
      try agencies.stop()
      try Command.run("/bin/mkdir", [kept])
      try Command.run("/bin/cp", ["-a", agencies.sender.home, agencies.recipient.home, kept])
    }

    func reset() throws {
      for agency in [agencies.sender, agencies.recipient] {
        agency.kill()
        try Command.run("/bin/rm", ["-rf", agency.home])
        try Command.run(
          "/bin/cp", ["-a", "\(kept)/\(URL(fileURLWithPath: agency.home).lastPathComponent)", agency.home])
      }
    }

    func withdraw() throws -> CommandResult {
      try agencies.sender.sallyport("consent", "withdraw", "P2", "--agreement", TestAgencies.agreement, "--json")
    }

    /// The calls of a withdrawal, from which on and up to which they count.
    func calls() throws -> Range<Int> {
      try reset()
      let log = "\(agencies.scratch.path)/calls"
      try? FileManager.default.removeItem(atPath: log)
      agencies.sender.environment = [
        "LD_PRELOAD": FaultBench.shim, "FAULT_PREFIX": "\(agencies.sender.home)/", "FAULT_LOG": log,
      ]
      try agencies.sender.start()
      func count() -> Int { (FileManager.default.contents(atPath: log) ?? Data()).split(separator: 10).count }
      let before = count()
      #expect(try withdraw().status == 0)
      let after = count()
      agencies.sender.kill()
      return before + 1..<after + 1
    }

    /// What went wrong; empty when nothing did.
    func experiment(_ fault: [String: String]) throws -> [String] {
      try reset()
      let sender = agencies.sender
      sender.environment = ["LD_PRELOAD": FaultBench.shim, "FAULT_PREFIX": "\(sender.home)/"].merging(fault) { _, new in
        new
      }
      try sender.start()
      let isAcknowledged = try withdraw().status == 0
      sender.kill()
      sender.environment = [:]
      try agencies.start()
      let state = try sender.sallyport("consent", "show", "P2", "--agreement", TestAgencies.agreement, "--json").text
      let isWithdrawn = state.contains("\"state\":\"withdrawn\"")
      var faults: [String] = []
      if isAcknowledged, !isWithdrawn { faults.append("acknowledged and not recorded") }
      let isDone = eventually(40) {
        for line in (try? sender.sallyport("queue", "--json").lines) ?? [] {
          guard line.contains("approval.pending"), let id = line.firstMatch(of: /"id":"([a-z2-7]{26})"/)?.1 else {
            continue
          }
          for person in ["Ana", "Bo"] { _ = try? sender.sallyport("agreements", "approve", String(id), "--by", person) }
        }
        return sender.outcome("a.ndjson") == "delivered"
      }
      if !isDone { faults.append("the rest does not arrive: \(sender.log.suffix(500))") }
      let names = agencies.recipient.inboxNames(from: sender)
      let claims = names.flatMap { TestRecords.claims(agencies.recipient.inbox(from: sender, $0)) }
      if claims != (isWithdrawn ? ["P1", "P3"] : ["P1", "P2", "P3"]) {
        faults.append("\(claims) arrived, withdrawn: \(isWithdrawn)")
      }
      let audit = try sender.sallyport("consent", "audit")
      if audit.status != 0 { faults.append(audit.text) }
      try agencies.stop()
      return faults + (try agencies.findings())
    }
  }

  @Test func aWithdrawalThatIsKilledAtAnyCallHoldsOrNeverWas() throws {
    let bench = try Bench()
    let calls = try bench.calls()
    #expect(calls.count >= 4, "the shim sees the calls of a withdrawal: \(calls)")
    let points = FaultTests.points(calls.count).map { calls.lowerBound + $0 - 1 }
    for (index, point) in points.enumerated() {
      for when in FaultTests.sample == .max ? ["before", "after"] : [["before", "after"][index % 2]] {
        let faults = try bench.experiment(["FAULT_AT": "\(point)", "FAULT_WHEN": when])
        #expect(faults.isEmpty, "killed \(when) call \(point) of \(calls): \(faults)")
        FaultTests.note("withdrawal, killed \(when) call \(point)", faults.isEmpty)
      }
    }
  }
}
