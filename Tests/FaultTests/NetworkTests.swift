// Two agencies and a hub, each in a network namespace of its own, on a network that loses packets, goes silent, and resets connections
// in the middle of transfers.

import Foundation
import TestSupport
import Testing

@Suite(.enabled(if: BadNetwork.canBeMade, "needs root, ip and /dev/net/tun"))
struct NetworkTests {
  @Test(arguments: [("relay", false), ("collect", true)])
  func whatIsCutInTheMiddleArrivesOnce(delivery: String, callsOutOnly: Bool) throws {
    let network = try BadNetwork(["sender", "recipient", "hub"])
    defer { network.end() }
    var options = TestAgencies.Options.throughHub(delivery, callsOutOnly: callsOutOnly)
    options.network = network.name
    let agencies = try TestAgencies(options)
    try agencies.start()
    network.say("loss 2")
    var files: [String: Data] = [:]
    for index in 0..<4 { files["large-\(index).bin"] = Self.random(8 << 20) }
    for index in 0..<20 { files["small-\(index).txt"] = Data("small \(index)".utf8) }
    for (name, bytes) in files { try agencies.sender.drop(name, bytes) }
    // Each of the three is torn off and goes silent in turn, for as long as anything is under way.
    var round = 0
    let isOver = { files.keys.allSatisfy { agencies.sender.outcome($0) == "delivered" } }
    while round < 9, !isOver() {
      let name = ["hub", "sender", "recipient"][round % 3]
      _ = eventually(1.5) { false }
      network.say("\(round < 6 ? "reset" : "cut") \(name)")
      _ = eventually(round < 6 ? 0.5 : 2) { false }
      network.say("heal \(name)")
      round += 1
    }
    #expect(round >= 1, "everything was there before the network was cut")
    _ = eventually(180, isOver)
    for (name, bytes) in files {
      #expect(
        eventually(1) { agencies.sender.outcome(name) == "delivered" },
        "\(name): \(agencies.sender.log.suffix(2000)) \(agencies.hub!.log.suffix(2000)) \(agencies.recipient.log.suffix(2000))"
      )
      #expect(agencies.recipient.inbox(from: agencies.sender, name) == bytes, "\(name)")
    }
    #expect(agencies.recipient.inboxNames(from: agencies.sender) == files.keys.sorted())
    try agencies.stop()
    #expect(try agencies.findings() == [])
  }

  private static func random(_ count: Int) -> Data {
    var generator = SystemRandomNumberGenerator()
    var data = Data(capacity: count)
    while data.count < count { withUnsafeBytes(of: generator.next() as UInt64) { data.append(contentsOf: $0) } }
    return data
  }
}

/// `Network/router.py` while it runs.
final class BadNetwork {
  static var canBeMade: Bool {
    getuid() == 0 && FileManager.default.fileExists(atPath: "/dev/net/tun") && Command.find("ip") != nil
      && Command.find("python3") != nil
  }

  let name = "sp\(UInt32.random(in: 0...0xffff))"
  private let process = Process()
  private let commands = Pipe()

  init(_ places: [String]) throws {
    let script = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent("Network/router.py")
    let answers = Pipe()
    process.executableURL = URL(fileURLWithPath: Command.find("python3")!)
    process.arguments = [script.path, name] + places
    process.standardInput = commands
    process.standardOutput = answers
    try process.run()
    guard String(decoding: answers.fileHandleForReading.availableData, as: UTF8.self).hasPrefix("ready") else {
      throw TestFailure("the network was not made")
    }
  }

  func say(_ command: String) { commands.fileHandleForWriting.write(Data("\(command)\n".utf8)) }

  /// Removes the namespaces.
  func end() {
    try? commands.fileHandleForWriting.close()
    process.waitUntilExit(atMost: 120)
  }
}
