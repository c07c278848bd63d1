// A hub that lies. It is a hub's real gateway with its real keys, whose answers are changed on the way out: it can hold things up, and
// nothing else.

import Foundation
import Logging
import NIOConcurrencyHelpers
import NIOCore
import Policies
import Sealing
import Store
import TestSupport
import Testing
import Transport

@testable import Gateway

@Suite struct MaliciousHubTests {
  /// What the hub does to an answer. `recipient` tells who asked.
  struct Lie: Sendable {
    let name: String
    let change: @Sendable (inout HTTPReply, _ request: PartnerRequest, _ hub: OwnGateway) async throws -> Void
    /// Whether the recipient gets as far as having the body.
    var bodyArrives = true
    /// Whether the sender may release while the hub lies: what it is told is true, what the recipient is told is not.
    var mayRelease = false
    var changesStreams = false
    /// False: only once the hub has the body.
    var fromTheStart = true
    /// False: what the recipient asks is not parked, as if it had not come.
    var parksRequests = true

    /// Changes an answer; whether it did.
    func tell(_ reply: inout HTTPReply, _ request: PartnerRequest, _ hub: OwnGateway) async -> Bool {
      let before = reply
      do {
        if !fromTheStart {
          guard let row = try await MaliciousHubTests.row(hub), row.state != .receiving else { return false }
        }
        try await change(&reply, request, hub)
      } catch {
        Issue.record(error)
      }
      return reply.status != before.status || reply.body != before.body
        || changesStreams && reply.stream != nil && request.target.hasSuffix("/body")
    }
  }

  private static func isRecipient(_ request: PartnerRequest) -> Bool { request.partner.text.hasPrefix("recipient") }
  private static func isSender(_ request: PartnerRequest) -> Bool { request.partner.text.hasPrefix("sender") }

  /// The one transfer, as the hub has it.
  fileprivate static func row(_ hub: OwnGateway) async throws -> Transfer? {
    try await hub.context.ledger.read { try $0.queue(limit: 1) }.first
  }

  /// The list's object, changed.
  private static func list(_ reply: inout HTTPReply, _ change: (inout [String: JSON]) throws -> Void) throws {
    guard reply.status == 200, case .object(var members) = try JSON(canonical: reply.body, bytesMax: 1 << 24) else {
      return
    }
    try change(&members)
    reply.body = JSON.object(members).canonical
  }

  private static func items(_ members: [String: JSON]) -> [[String: JSON]] {
    guard case .array(let items)? = members["transfers"] else { return [] }
    return items.compactMap { if case .object(let item) = $0 { item } else { nil } }
  }

  static let lies: [Lie] = [
    Lie(
      name: "another manifest",
      change: { reply, request, _ in
        guard request.target.hasSuffix("/manifest"), isRecipient(request), reply.status == 200 else { return }
        reply.body = Array(
          String(decoding: reply.body, as: UTF8.self).replacing("a", with: "b", maxReplacements: 3).utf8)
      }, bodyArrives: false),
    Lie(
      name: "its own manifest",
      change: { reply, request, hub in
        guard request.target.hasSuffix("/manifest"), isRecipient(request), reply.status == 200 else { return }
        let payload = try Envelope(parsing: reply.body, as: .manifest).unverified()
        reply.body = Envelope(signing: payload, as: .manifest, with: hub.keys.signers(at: Date())).bytes
      }, bodyArrives: false),
    Lie(
      name: "another body",
      change: { reply, request, _ in
        guard request.target.hasSuffix("/body"), let stream = reply.stream else { return }
        reply.stream = BodyStream(bytes: stream.bytes) { offset, count in
          var piece = try await stream.read(offset, count)
          piece.setInteger(piece.getInteger(at: piece.readerIndex, as: UInt8.self)! ^ 1, at: piece.readerIndex)
          return piece
        }
      }, bodyArrives: false, changesStreams: true),
    Lie(
      name: "another tree",
      change: { reply, request, _ in
        guard request.target.hasSuffix("/tree"), reply.status == 200 else { return }
        reply.body[0] ^= 1
      }, bodyArrives: false),
    Lie(
      name: "another key",
      change: { reply, request, _ in
        guard request.target.hasSuffix("/key"), isRecipient(request) else { return }
        reply = HTTPReply(200, body: Array("age-encryption.org/v1\n".utf8) + [UInt8](repeating: 7, count: 300))
      }, mayRelease: true),
    Lie(
      name: "it has ended",
      change: { reply, request, _ in
        guard request.target.contains("/transfers/") else { return }
        // The recipient hears it once it knows the transfer, and then sees nothing that the sender signed.
        if isRecipient(request), request.target.hasSuffix("/manifest") { return }
        reply =
          request.target.hasSuffix("/take-back")
          ? .problem(Problem(.notFound, "there is nothing here")) : .problem(Problem(.gone, "it has ended"))
        // The body has to get here before it can have ended.
        if isSender(request) { reply = .problem(Problem(.gone, "it has ended")) }
      }, bodyArrives: false, fromTheStart: false),
    Lie(
      name: "it was taken back, signed by the hub",
      change: { reply, request, hub in
        guard isRecipient(request), request.target.contains("/transfers/"), !request.target.hasSuffix("/manifest")
        else {
          return
        }
        reply = .problem(Problem(.gone, "it was taken back"))
        guard request.target.hasSuffix("/take-back"), let row = try await row(hub) else { return }
        let document = TakeBack(
          id: row.id, sender: row.sender, recipient: row.peer, manifest: Digest(hex: row.manifestDigest)!,
          reason: "hub", at: Date()
        ).document
        reply = HTTPReply(
          200, body: Envelope(signing: document, as: .takeBack, with: hub.keys.signers(at: Date())).bytes)
      }, bodyArrives: false),
    Lie(
      name: "the recipient received it, signed by the hub",
      change: { reply, request, hub in
        if isRecipient(request) { reply = HTTPReply(503) }
        guard isSender(request), request.target.hasPrefix("/v1/transfers/"), request.method != "GET",
          reply.status == 200, let row = try await row(hub)
        else { return }
        let receipt = Receipt(
          kind: .received, id: row.id, sender: row.sender, recipient: row.peer,
          manifest: Digest(hex: row.manifestDigest)!, code: "ok", at: Date(), previous: nil,
          head: LedgerHead(epoch: "e", size: 1, root: Digest(of: [])))
        let envelope = Envelope(signing: receipt.document, as: .receipt, with: hub.keys.signers(at: Date()))
        reply = .json(200, .object(ReceiptList.document([envelope.bytes])))
      }, bodyArrives: false),
    Lie(
      name: "the recipient asks for the key, signed by the hub",
      change: { reply, request, hub in
        // It has the body, and its own request does not come through.
        if isRecipient(request), request.target.hasSuffix("/key") { reply = HTTPReply(503) }
        guard isSender(request), request.target.hasPrefix("/v1/transfers?"), let row = try await row(hub),
          row.state == .custody
        else { return }
        let asked = KeyRequest(
          id: row.id, sender: row.sender, recipient: row.peer, manifest: Digest(hex: row.manifestDigest)!, at: Date())
        let envelope = Envelope(signing: asked.document, as: .keyRequest, with: hub.keys.signers(at: Date()))
        try list(&reply) { members in
          members["transfers"] = [
            [
              "id": .string(row.id.text), "sender": .string(row.sender.text), "recipient": .string(row.peer.text),
              "state": "custody", "keyRequest": .string(String(decoding: envelope.bytes, as: UTF8.self)),
            ]
          ]
        }
      }, parksRequests: false),
    Lie(
      name: "nothing at all",
      change: { reply, request, _ in
        if request.target.hasPrefix("/v1/transfers?") {
          reply = .json(200, ["receipts": [], "transfers": [], "cursor": 0])
        }
      }, bodyArrives: false),
  ]

  @Test(arguments: lies.map(\.name))
  func aHubThatLiesHoldsUpAndNothingElse(name: String) async throws {
    let lie = Self.lies.first { $0.name == name }!
    let agencies = try TestAgencies(.throughHub("collect", callsOutOnly: true))
    let hub = agencies.hub!
    let isLying = NIOLockedValueBox(true)
    let keysPut = NIOLockedValueBox(0)
    let secret = Data("the patient's name, ".utf8) + Data(repeating: 88, count: 3 << 20)

    let own = try OwnGateway(of: hub)
    let port = own.port
    let told = NIOLockedValueBox(0)
    try await serving(as: hub, to: [agencies.sender, agencies.recipient]) { request in
      if request.method == "PUT", request.target.hasSuffix("/key") { keysPut.withLockedValue { $0 += 1 } }
      if !lie.parksRequests, request.method == "POST", isLying.withLockedValue({ $0 }) { return HTTPReply(503) }
      var reply = await port.answer(request)
      if isLying.withLockedValue({ $0 }), await lie.tell(&reply, request, own) { told.withLockedValue { $0 += 1 } }
      return reply
    } body: {
      try agencies.recipient.start()
      try agencies.sender.startSending()
      try agencies.sender.drop("secret.txt", secret)
      #expect(eventually(60) { told.withLockedValue { $0 } >= 3 }, "\(name): nothing was changed")
      // Long enough for what follows from it.
      _ = eventually(3) { false }
      #expect(agencies.recipient.inboxNames(from: agencies.sender) == [], "\(name)")
      #expect(agencies.sender.outcome("secret.txt") == "accepted", "\(name)")
      #expect(keysPut.withLockedValue { $0 } == 0 || lie.mayRelease, "\(name)")
      let rows = try agencies.recipient.sallyport("queue", "--all", "--json").text
      #expect(!rows.contains("quarantined") && !rows.contains("cancelled"), "\(name): \(rows)")
      #expect(rows.contains(#""state":"received""#) == lie.bodyArrives, "\(name): \(rows)")
      // What the hub has is ciphertext, and none of its keys opens it.
      let plain = Array(secret.prefix(20))
      for case let file as String in FileManager.default.enumerator(atPath: hub.home)! {
        let bytes = FileManager.default.contents(atPath: "\(hub.home)/\(file)")
        #expect(bytes?.range(of: Data(plain)) == nil, "\(file)")
      }

      // An honest hub again: it arrives, once.
      isLying.withLockedValue { $0 = false }
      for agency in [agencies.sender, agencies.recipient] {
        for row in try agency.sallyport("queue", "--json").lines {
          guard let id = row.firstMatch(of: /"id":"([a-z2-7]{26})"/).map({ String($0.1) }) else { continue }
          _ = try agency.sallyport("retry", id)
        }
      }
      #expect(
        eventually(60) { agencies.recipient.inbox(from: agencies.sender, "secret.txt") == secret },
        "\(name): \(agencies.recipient.log) \(agencies.sender.log)")
      #expect(eventually(60) { agencies.sender.outcome("secret.txt") == "delivered" }, "\(name)")
    }
    try await own.context.close()
    agencies.sender.stop()
    agencies.recipient.stop()
    #expect(agencies.recipient.inboxNames(from: agencies.sender) == ["secret.txt"])
    #expect(try Self.findings(agencies) == [])
  }

  /// A hub that shows what it held before, once more: as a new package, and another's parts under a known one.
  @Test func aHubThatReplaysDeliversNothingTwice() async throws {
    let agencies = try TestAgencies(.throughHub("collect", callsOutOnly: true))
    let hub = agencies.hub!
    /// Answers to the recipient, as they were given once: by what was asked.
    let kept = NIOLockedValueBox<[String: HTTPReply]>([:])
    let isReplaying = NIOLockedValueBox(false)
    let own = try OwnGateway(of: hub)
    let port = own.port
    try await serving(as: hub, to: [agencies.sender, agencies.recipient]) { request in
      let asked = "\(request.method) \(request.target.prefix { $0 != "?" }) \(request.header("range") ?? "")"
      if isReplaying.withLockedValue({ $0 }), Self.isRecipient(request),
        let reply = kept.withLockedValue({ $0[asked] })
      {
        return reply
      }
      var reply = await port.answer(request)
      if Self.isRecipient(request), reply.status < 300, !request.target.hasPrefix("/v1/transfers?"),
        reply.stream == nil
      {
        kept.withLockedValue { $0[asked] = reply }
      }
      if isReplaying.withLockedValue({ $0 }), Self.isRecipient(request), request.target.hasPrefix("/v1/transfers?") {
        let ids = Set(
          kept.withLockedValue { $0.keys }.compactMap {
            TransferID(String($0.split(separator: "/").dropFirst(3).first ?? ""))
          })
        do {
          try Self.list(&reply) { members in
            members["transfers"] = .array(
              ids.map { ["id": .string($0.text), "sender": "sender.example.gov", "state": "waiting"] })
            members["cursor"] = .integer(Int64.random(in: 1_000...2_000_000))
          }
        } catch { Issue.record(error) }
      }
      return reply
    } body: {
      try Self.deliverTwoThenReplay(agencies, isReplaying)
    }
    try await own.context.close()
    agencies.sender.stop()
    agencies.recipient.stop()
    #expect(try Self.findings(agencies) == [])
  }

  /// The hub's home is still held by this process.
  private static func findings(_ agencies: TestAgencies) throws -> [String] {
    try agencies.findings().filter { !$0.hasPrefix(agencies.hub!.id) }
  }

  private static func deliverTwoThenReplay(_ agencies: TestAgencies, _ isReplaying: NIOLockedValueBox<Bool>) throws {
    try agencies.recipient.start()
    try agencies.sender.startSending()
    for name in ["a.txt", "b.txt"] { try agencies.sender.drop(name, Data(name.utf8)) }
    for name in ["a.txt", "b.txt"] {
      #expect(eventually(60) { agencies.sender.outcome(name) == "delivered" }, "\(name)")
    }
    // The consumer takes the files away: nothing in the inbox tells any more that they came.
    let inbox = "\(agencies.recipient.home)/inbox/\(agencies.sender.id)/\(TestAgencies.agreement)"
    for name in ["a.txt", "b.txt"] { try FileManager.default.removeItem(atPath: "\(inbox)/\(name)") }
    isReplaying.withLockedValue { $0 = true }
    _ = eventually(6) { false }
    #expect(agencies.recipient.inboxNames(from: agencies.sender) == [])
  }
}
