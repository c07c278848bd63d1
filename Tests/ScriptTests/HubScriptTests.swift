// Exchanges through a hub: relayed and collected, by agencies that only call out, with a hub that stops, loses, or lies.

import Foundation
import Gateway
import Policies
import Sealing
import Store
import TestSupport
import Testing

@Suite struct HubScriptTests {
  static func options(_ delivery: String, callsOutOnly: Bool = false) -> TestAgencies.Options {
    var options = TestAgencies.Options()
    options.delivery = delivery
    options.hasHub = true
    options.callsOutOnly = callsOutOnly
    return options
  }

  /// Whether everything is over at all three.
  static func isSettled(_ agencies: TestAgencies) throws -> Bool {
    try eventually(30) {
      try ["acknowledged", "confirmed", "confirmed"].elementsEqual(
        [agencies.recipient, agencies.sender, agencies.hub!].map { agency in
          let rows = try agency.sallyport("queue", "--all", "--json").lines
          return Set(rows.compactMap { $0.firstMatch(of: /"state":"([a-z]+)"/).map { String($0.1) } }).sorted().joined()
        })
    }
  }

  @Test(arguments: [("relay", false), ("collect", false), ("collect", true)])
  func whatGoesThroughAHubArrivesOnceAndSignedFor(delivery: String, callsOutOnly: Bool) throws {
    let agencies = try TestAgencies(Self.options(delivery, callsOutOnly: callsOutOnly))
    let hub = agencies.hub!
    try agencies.start()
    let files = [
      "small.txt": Data("hello".utf8), "large.bin": CollectScriptTests.random(5 << 20),
      "segment.bin": CollectScriptTests.random(1 << 20),
    ]
    for (name, bytes) in files { try agencies.sender.drop(name, bytes) }
    for (name, bytes) in files {
      #expect(eventually(30) { agencies.recipient.inbox(from: agencies.sender, name) == bytes }, "\(name)")
      #expect(eventually(30) { agencies.sender.outcome(name) == "delivered" }, "\(name)")
    }
    #expect(try Self.isSettled(agencies))
    // The sender holds what the recipient signed, and released only after it had.
    let id = try #require(
      try agencies.sender.sallyport("queue", "--all", "--json").lines.first.flatMap(CollectScriptTests.id))
    let trace = try agencies.sender.sallyport("trace", id).text
    for step in ["queued", "custody", "releasing", "released", "confirmed", "receipt  received", "receipt  delivered"] {
      #expect(trace.contains(step), "\(step)")
    }
    #expect(trace.contains("key-requested") == (delivery == "collect"))
    try agencies.stop()
    #expect(try agencies.findings() == [])
    // Nothing is left at the hub, and nothing it had was ever opened.
    #expect(try FileManager.default.contentsOfDirectory(atPath: "\(hub.home)/spool/in/\(agencies.sender.id)") == [])
    #expect(try FileManager.default.contentsOfDirectory(atPath: "\(hub.home)/inbox") == [])
  }
}
