// Exchanges through a hub: relayed and collected, by agencies that only call out, with a hub that stops, loses, or lies.

import Foundation
import Gateway
import Policies
import Sealing
import Store
import TestSupport
import Testing

@Suite struct HubScriptTests {
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
    let agencies = try TestAgencies(.throughHub(delivery, callsOutOnly: callsOutOnly))
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

  /// The sender changes its mind while the recipient waits for the key: the hub passes on both words, and neither is its own.
  @Test func whatIsTakenBackAtAHubIsAnsweredByTheRecipient() throws {
    let agencies = try TestAgencies(.throughHub("collect", callsOutOnly: true))
    let hub = agencies.hub!
    try hub.start()
    try agencies.sender.startSending()
    try agencies.sender.drop("stop.txt", Data("stop".utf8))
    #expect(try eventually { try hub.sallyport("queue", "--json").text.contains(#""state":"queued""#) })
    agencies.sender.stop()
    try agencies.recipient.start()
    #expect(try eventually { try hub.sallyport("queue", "--json").text.contains(#""state":"custody""#) })
    #expect(try agencies.recipient.sallyport("queue", "--json").text.contains(#""state":"received""#))
    let id = try #require(agencies.sender.outcome("stop.txt", "id"))
    #expect(try agencies.sender.sallyport("cancel", id).status == 0)
    try agencies.sender.start()
    #expect(
      try eventually(30) { try agencies.sender.sallyport("trace", id).text.contains("never-had-key") },
      "\(agencies.recipient.log) \(agencies.sender.log)")
    for agency in [hub, agencies.recipient] {
      #expect(try agency.sallyport("queue", "--all", "--json").text.contains(#""state":"cancelled""#))
    }
    try agencies.stop()
    #expect(try agencies.findings() == [])
    #expect(agencies.recipient.inboxNames(from: agencies.sender) == [])
  }

  /// Its disk loses what it holds, and it is killed in the middle of everything: the sender has it still.
  @Test(arguments: ["relay", "collect"])
  func aHubThatLosesWhatItHoldsGetsItAgain(delivery: String) throws {
    let agencies = try TestAgencies(.throughHub(delivery))
    let hub = agencies.hub!
    try hub.start()
    try agencies.sender.startSending()
    let bytes = CollectScriptTests.random(3 << 20)
    for name in ["a.bin", "b.bin"] { try agencies.sender.drop(name, bytes) }
    #expect(
      try eventually(30) {
        try hub.sallyport("queue", "--json").lines.filter { $0.contains(#""state":"queued""#) }.count == 2
      })
    hub.kill()
    let spool = "\(hub.home)/spool/in/\(agencies.sender.id)"
    let bodies = try FileManager.default.contentsOfDirectory(atPath: spool).filter { $0.hasSuffix(".body") }
    #expect(bodies.count == 2)
    try FileManager.default.removeItem(atPath: "\(spool)/\(bodies[0])")
    try hub.start()
    try agencies.recipient.start()
    for name in ["a.bin", "b.bin"] {
      #expect(
        eventually(60) { agencies.sender.outcome(name) == "delivered" }, "\(name) \(hub.log) \(agencies.sender.log)")
      #expect(agencies.recipient.inbox(from: agencies.sender, name) == bytes)
    }
    #expect(try Self.isSettled(agencies))
    try agencies.stop()
    #expect(try agencies.findings() == [])
  }

  /// A recipient that only calls out learns of a withdrawal all the same, and its answers come back: straight, and through a hub.
  @Test(arguments: [false, true])
  func aNoticeReachesWhoOnlyCallsOut(hasHub: Bool) throws {
    var options = TestAgencies.Options.optIn()
    options.delivery = "collect"
    options.callsOutOnly = true
    options.hasHub = hasHub
    let agencies = try TestAgencies(options)
    let (sender, recipient) = (agencies.sender, agencies.recipient)
    try agencies.start()
    for person in ["P1", "P2"] {
      #expect(try sender.sallyport("consent", "grant", person, "--agreement", TestAgencies.agreement).status == 0)
    }
    try sender.drop("a.ndjson", TestRecords.of(["P1", "P2", "P3"]))
    #expect(eventually(30) { sender.outcome("a.ndjson") == "delivered" }, "\(sender.log)")
    #expect(TestRecords.claims(recipient.inbox(from: sender, "a.ndjson")) == ["P1", "P2"])
    let ack = try sender.sallyport("consent", "withdraw", "P1", "--agreement", TestAgencies.agreement, "--json")
    #expect(ack.status == 0 && ack.text.contains(sender.outcome("a.ndjson", "id")!), "\(ack.text)\(ack.errors)")
    func notices(_ agency: TestAgency) throws -> String { try agency.sallyport("consent", "notices", "--json").text }
    #expect(try eventually(40) { try notices(recipient).contains("restrict") }, "\(recipient.log)")
    #expect(try eventually(60) { try notices(sender).contains(#""state":"received""#) }, "\(sender.log)")
    let id = try #require(notices(recipient).firstMatch(of: /"notice":"([a-z2-7]{26})"/)).1
    #expect(try recipient.sallyport("consent", "answer", String(id), "--state", "actioned").status == 0)
    if let hub = agencies.hub {
      // The sender asks the hub again within the hour: here at once.
      #expect(try eventually(40) { try notices(hub).contains(#""state":"actioned""#) }, "\(hub.log)")
    } else {
      #expect(try eventually(40) { try notices(sender).contains(#""state":"actioned""#) }, "\(sender.log)")
    }
    try agencies.stop()
    #expect(try agencies.findings() == [])
  }
}
