// Kills, full and failing disks, on both sides of a transfer. CI runs a seeded sample; scripts/faults runs every point.

import Foundation
import TestSupport
import Testing

@Suite(.serialized) struct FaultTests {
  /// Both, or the one that FAULT_SIDE names: a sweep of all points is quicker side by side.
  static var sides: [(String, KeyPath<TestAgencies, TestAgency>)] {
    let wanted = ProcessInfo.processInfo.environment["FAULT_SIDE"]
    return [("sender", \TestAgencies.sender), ("recipient", \TestAgencies.recipient)]
      .filter { wanted == nil || wanted == $0.0 }
  }

  /// "all", or how many points of each side are tried.
  static var sample: Int {
    let text = ProcessInfo.processInfo.environment["FAULT_POINTS"] ?? "4"
    return text == "all" ? .max : Int(text) ?? 4
  }

  /// Another one tries other points.
  static var seed: Int { max(1, Int(ProcessInfo.processInfo.environment["FAULT_SEED_NUMBER"] ?? "1") ?? 1) }

  /// "2/4" is the second of four parts of all points: a sweep mostly waits, so that its parts run side by side.
  static var part: (number: Int, of: Int) {
    let text = ProcessInfo.processInfo.environment["FAULT_PART"] ?? "1/1"
    let numbers = text.split(separator: "/").compactMap { Int($0) }
    guard numbers.count == 2, numbers[0] > 0, numbers[0] <= numbers[1] else {
      fatalError("FAULT_PART: expected K/N, not \(text)")
    }
    return (numbers[0], numbers[1])
  }

  /// Points spread over the run, the same for the same seed.
  static func points(_ count: Int) -> [Int] {
    let all =
      sample < count ? (0..<sample).map { 1 + ($0 * count / sample + seed * 7919) % count }.sorted() : Array(1...count)
    return stride(from: part.number - 1, to: all.count, by: part.of).map { all[$0] }
  }

  /// What takes an hour says how far it is.
  static func note(_ what: String, _ isSound: Bool) {
    guard sample == .max else { return }
    FileHandle.standardError.write(Data("\(isSound ? "ok  " : "FAIL")  \(what)\n".utf8))
  }

  @Test func nothingIsLostDoubledOrHalfWhenTheProcessIsKilledAtAnyCall() throws {
    let bench = try FaultBench.shared.get()
    for (name, side) in Self.sides {
      let calls = try bench.calls(side)
      #expect(calls.count > 40, "the shim sees the calls of the \(name)")
      for (index, point) in Self.points(calls.count).enumerated() {
        let whens = Self.sample == .max ? ["before", "after", "torn"] : [["before", "after", "torn"][index % 3]]
        for when in whens where when != "torn" || calls[point - 1].contains(" write ") {
          let (verdict, _, _) = try bench.experiment(side, ["FAULT_AT": "\(point)", "FAULT_WHEN": when])
          #expect(verdict.isSound, "\(name) killed \(when) call \(calls[point - 1]): \(verdict)")
          Self.note("\(name) \(point) of \(calls.count), killed \(when)", verdict.isSound)
        }
      }
    }
  }

  @Test(arguments: [ENOSPC, EIO])
  func aFailingDiskLosesNothing(errno: Int32) throws {
    let bench = try FaultBench.shared.get()
    for (name, side) in Self.sides {
      let calls = try bench.calls(side)
      let writes = calls.indices.filter { calls[$0].contains(" write ") || calls[$0].contains(" sync ") }
      let step = max(1, writes.count / max(2, min(Self.sample, writes.count) / 2))
      for index in stride(from: step / 2, to: writes.count, by: step) {
        let point = writes[index] + 1
        let fault = ["FAULT_AT": "\(point)", "FAULT_ERRNO": "\(errno)", "FAULT_STICKY": "1"]
        let (verdict, ended, log) = try bench.experiment(side, fault)
        #expect(verdict.isSound, "\(name), errno \(errno) from call \(calls[point - 1]): \(verdict)")
        Self.note("\(name) \(point) of \(calls.count), errno \(errno)", verdict.isSound)
        if errno == EIO {
          #expect(ended == nil || ended == 74, "\(name), EIO from call \(calls[point - 1]): exit \(ended ?? 0): \(log)")
        }
      }
    }
  }

  /// It may empty again: what cannot be written is tried again, and the gateway goes on.
  @Test(arguments: [10, 25, 40])
  func aFullDiskStopsNoGateway(write: Int) throws {
    let bench = try FaultBench.shared.get()
    for (name, side) in Self.sides {
      let (verdict, ended, log) = try bench.experiment(
        side,
        [
          "FAULT_OPS": "write", "FAULT_MATCH": ".sqlite-wal", "FAULT_AT": "\(write)", "FAULT_ERRNO": "\(ENOSPC)",
          "FAULT_STICKY": "1",
        ])
      #expect(verdict.isSound, "\(name): \(verdict)")
      #expect(ended == nil, "\(name), exit \(ended ?? 0): \(log)")
      // The recipient says it to its partner.
      #expect(name == "recipient" || log.contains("full"), "\(log)")
    }
  }

  /// The kernel tells of a failed writeback once: a second fdatasync succeeds, and what it covers may be lost.
  @Test func aBodyIsNotDurableAfterASyncThatFailedOnce() throws {
    let bench = try FaultBench.shared.get()
    let (verdict, ended, log) = try bench.experiment(
      \TestAgencies.recipient,
      ["FAULT_OPS": "sync", "FAULT_MATCH": ".part", "FAULT_AT": "1", "FAULT_ERRNO": "\(EIO)"])
    #expect(ended == 74, "\(log)")
    #expect(verdict.isSound, "\(verdict)")
  }

  /// 1,048,832 bytes in pieces of 32 KiB.
  private static let writesOfSegment = 33

  /// Three segments are under way when one of them cannot be written.
  @Test func aWriteThatFailsAmidALargeBodyStopsTheGateway() throws {
    let bench = try FaultBench(payloads: ["large.txt": FaultBench.payload(of: 40 << 20)])
    let (verdict, ended, log) = try bench.experiment(
      \TestAgencies.recipient,
      [
        "FAULT_OPS": "write", "FAULT_MATCH": ".part", "FAULT_AT": "\(20 * Self.writesOfSegment)",
        "FAULT_ERRNO": "\(EIO)",
      ])
    #expect(ended == 74, "\(log)")
    #expect(verdict.isSound, "\(verdict)")
  }

  @Test func afterACrashALargeBodyGoesOnWhereTheLedgerWasTold() throws {
    let bench = try FaultBench(payloads: ["large.txt": FaultBench.payload(of: 200 << 20)])
    let calls = "\(bench.template.scratch.path)/restarted"
    let (verdict, _, log) = try bench.experiment(
      \TestAgencies.recipient, ["FAULT_OPS": "sync", "FAULT_MATCH": ".part", "FAULT_AT": "11"], restartLog: calls)
    #expect(verdict.isSound, "\(verdict): \(log)")
    let written = try String(contentsOfFile: calls, encoding: .utf8).split(separator: "\n").filter {
      $0.contains(" write ") && $0.hasSuffix(".part")
    }
    // Of its 201 segments, the first 128 were durable and known to be.
    let segments = written.count / Self.writesOfSegment
    #expect((40...80).contains(segments), "\(segments) segments came again")
  }

  /// A sweep that cannot fail shows nothing: two seeded faults must be found.
  @Test func seededFaultsAreFound() throws {
    let bench = try FaultBench.shared.get()
    let lost = try bench.experiment(\TestAgencies.recipient, ["FAULT_SEED": "lose-body"])
    #expect(!lost.verdict.isSound, "a body that was never renamed was not missed")
    // The rename that leaves its proof behind: killed right after it, recovery delivers a second time.
    let doubled = try bench.experiment(
      \TestAgencies.recipient,
      [
        "FAULT_SEED": "keep-source", "FAULT_OPS": "rename", "FAULT_MATCH": "/inbox/", "FAULT_AT": "1",
        "FAULT_WHEN": "after",
      ])
    #expect(!doubled.verdict.isSound, "a double delivery was not found")
  }
}
