// Collecting while the line is cut and while the sender changes its mind.

import Foundation
import NIOConcurrencyHelpers
import NIOCore
import Sealing
import Store
import TestSupport
import Testing
import Transport

@testable import Gateway

@Suite struct CollectFaultTests {
  /// What the recipient says while an administrator holds the package counts once it goes on.
  @Test func aReceiptThatCameWhileItWasHeldCounts() async throws {
    let agencies = try TestAgencies()
    let context = try OwnGateway(of: agencies.sender).context
    let home = Home(agencies.recipient.home)
    let recipient = try KeyRing(home, passphrase: PassphraseFile.read(home.passphrase))
    var row = Transfer(
      direction: .out, sender: context.agency, id: TransferID(), peer: recipient.card.card.agency, agreement: "a",
      state: .held, name: "n", createdAt: Date())
    (row.heldFrom, row.isCollected, row.manifestDigest) = (.queued, true, Digest(of: []).hex)
    let held = row
    try await context.ledger.write { try $0.insert(held) }
    let receipt = Receipt(
      kind: .received, id: held.id, sender: held.sender, recipient: held.peer, manifest: Digest(of: []), code: "ok",
      at: Date(), previous: nil, head: LedgerHead(epoch: "e", size: 1, root: Digest(of: [])))
    let envelope = recipient.sign(receipt.document, as: .receipt, at: Date())
    let after = try #require(try await ReceiptBook(context: context).apply([envelope.bytes], to: held))
    #expect(after.state == .held)
    let resumed = try await context.ledger.write { try $0.advance(after, to: .queued) }
    try await Mailbox.rest(resumed, context)
    let state = try await context.ledger.read { try $0.transfer(held.sender, held.id)?.state }
    #expect(state == .custody)
    try await context.close()
  }

  /// However often it is cut, each cut costs at most 8 MiB sent again.
  @Test func aCutCostsAtMostEightMebibytes() async throws {
    var options = TestAgencies.Options()
    options.delivery = "collect"
    let agencies = try TestAgencies(options)
    let size = 96 << 20
    let bytes = Data((0..<(size / 8)).flatMap { withUnsafeBytes(of: UInt64($0) &* 0x9E37_79B9_7F4A_7C15, Array.init) })
    try agencies.sender.startSending()
    try agencies.sender.drop("long.bin", bytes)
    #expect(try eventually(60) { try agencies.sender.sallyport("queue", "--json").text.contains(#""state":"queued""#) })
    agencies.sender.stop()
    let own = try OwnGateway(of: agencies.sender)
    let port = own.port
    let (sent, cuts) = (NIOLockedValueBox<Int64>(0), NIOLockedValueBox<Int64>(0))
    try await serving(as: agencies.sender, to: [agencies.recipient]) { request in
      var reply = await port.answer(request)
      if let stream = reply.stream {
        // Somewhere in each request, but for the last few.
        let cutAt = cuts.withLockedValue { $0 < 12 } ? Int64.random(in: 0..<(5 << 20)) : .max
        reply.stream = BodyStream(bytes: stream.bytes) { offset, count in
          guard offset + Int64(count) <= cutAt else {
            cuts.withLockedValue { $0 += 1 }
            throw TestFailure("cut")
          }
          sent.withLockedValue { $0 += Int64(count) }
          return try await stream.read(offset, count)
        }
      }
      return reply
    } body: {
      try agencies.recipient.start()
      #expect(eventually(90) { agencies.recipient.inbox(from: agencies.sender, "long.bin") == bytes })
    }
    let (all, number) = (sent.withLockedValue { $0 }, cuts.withLockedValue { $0 })
    #expect(number >= 12)
    #expect(all <= Int64(size + (1 << 20)) + number * (8 << 20), "\(all) bytes for \(size), \(number) cuts")
    try await own.context.close()
    #expect(agencies.recipient.stop() == 0)
  }

  /// The sender ends a package whose body its recipient has: the recipient signs that it never had the key.
  @Test func whatIsTakenBackWhileItIsCollectedIsAnswered() async throws {
    var options = TestAgencies.Options()
    options.delivery = "collect"
    let agencies = try TestAgencies(options)
    try agencies.sender.startSending()
    try agencies.sender.drop("stop.txt", Data("stop".utf8))
    #expect(try eventually { try agencies.sender.sallyport("queue", "--json").text.contains(#""state":"queued""#) })
    let id = try #require(agencies.sender.outcome("stop.txt", "id").flatMap { TransferID($0) })
    agencies.sender.stop()
    let own = try OwnGateway(of: agencies.sender)
    let port = own.port
    // No key while it is told not to.
    let givesKeys = NIOLockedValueBox(false)
    try await serving(as: agencies.sender, to: [agencies.recipient]) { request in
      guard givesKeys.withLockedValue({ $0 }) || !request.target.hasSuffix("/key") else { return HTTPReply(503) }
      return await port.answer(request)
    } body: {
      try agencies.recipient.start()
      try Self.awaitState("received", id, agencies.recipient)
    }
    let sent = try await own.context.ledger.read { try $0.transfer(own.context.agency, id) }
    _ = try await Ending(context: own.context).end(sent!, .cancelled, code: "cancelled", note: "by the test")
    givesKeys.withLockedValue { $0 = true }
    try await serving(as: agencies.sender, to: [agencies.recipient]) { request in
      await port.answer(request)
    } body: {
      try Self.awaitState("cancelled", id, agencies.recipient)
      _ = eventually(2) { false }
    }
    let answer = try await own.context.ledger.read { try $0.document(own.context.agency, id, .acknowledgement) }
    #expect(try TakeBackAnswer(#require(answer).unverified()).outcome == .neverHadKey)
    try await own.context.close()
    #expect(agencies.recipient.stop() == 0)
    #expect(agencies.recipient.inboxNames(from: agencies.sender) == [])
  }

  private static func awaitState(_ state: String, _ id: TransferID, _ agency: TestAgency) throws {
    #expect(
      try eventually(30) {
        try agency.sallyport("queue", "--all", "--json").lines.contains {
          $0.contains(id.text) && $0.contains("\"state\":\"\(state)\"")
        }
      }, "\(state): \(agency.log)")
  }
}
