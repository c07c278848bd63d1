// Partners that hang, cut, lie about offsets, send another body, or repeat what they sent.

import Foundation
import Logging
import NIOPosix
import Policies
import Sealing
import ServiceLifecycle
import Store
import TestSupport
import Testing

@testable import Gateway
@testable import Transport

@Suite struct BadPeerTests {
  /// A malicious sender: it has the sender's keys and says what it likes.
  struct Attacker {
    let keys: KeyRing
    let relay: RelayClient
    let url: String
    let pins: [Digest]
    let recipients: [Recipient]
    let agreement: NamedDigest

    init(_ agencies: TestAgencies) throws {
      let home = Home(agencies.sender.home)
      keys = try KeyRing(home, passphrase: PassphraseFile.read(home.passphrase))
      relay = RelayClient(identity: keys.tlsInUse)
      let card = try KeyRing.loadCard(Home(agencies.recipient.home)).card
      url = card.endpoint!
      pins = card.tlsPins
      recipients = card.sealingRecipients(at: Date())
      let held = try PolicyFolder.load(home).agreements[0]
      agreement = NamedDigest(id: held.id, sha256: held.digest)
    }

    func send(_ method: String, _ path: String, _ body: [UInt8], _ headers: [String] = []) async throws -> HTTPReply {
      try await relay.send(
        RelayRequest(method, url + path, headers: headers, body: body.isEmpty ? .none : .bytes(body), pins: pins))
    }

    /// A package of `plain`, and its manifest changed by `lie`.
    func package(_ plain: [UInt8], id: TransferID = TransferID(), lie: (inout [String: JSON]) -> Void = { _ in }) throws
      -> (
        manifest: Envelope, body: [UInt8], key: [UInt8]
      )
    {
      let binding = Binding(
        agreement: agreement.sha256.hex, id: id, recipient: AgencyID("recipient.example.gov")!,
        sender: keys.card.card.agency)
      let (key, payloadKey) = try PackageKey.create(for: recipients, binding: binding)
      let buffer = SegmentBuffer()
      let cipher = SegmentCipher(payloadKey: payloadKey, engine: .sodium)
      var (body, roots): ([UInt8], [Digest]) = ([], [])
      for start in stride(from: 0, to: plain.count, by: BodyGeometry.segmentBytes) {
        var piece = plain[start..<min(start + BodyGeometry.segmentBytes, plain.count)]
        let isLast = piece.endIndex == plain.count
        let count = piece.count
        for place in buffer.plainRanges(count) {
          place.copyBytes(from: piece.prefix(place.count))
          piece = piece.dropFirst(place.count)
        }
        let sealed = cipher.seal(buffer, segment: Int64(roots.count), plainBytes: count, isLast: isLast)
        body += buffer.bytes[..<sealed.sealedBytes]
        roots.append(sealed.root)
      }
      let now = Date()
      let manifest = Manifest(
        id: id, sender: keys.card.card.agency, recipient: AgencyID("recipient.example.gov")!, agreement: agreement,
        agreementVersion: 1, name: "attack.bin", mediaType: "application/octet-stream",
        payloadBytes: Int64(plain.count),
        bodyBytes: Int64(body.count), bodyTreeRoot: MerkleTree.root(roots), keySHA256: Digest(of: key.bytes),
        createdAt: now,
        expiresAt: now + 3600, decision: Digest(of: []))
      guard case .object(var members) = manifest.document else { throw TestFailure("no object") }
      lie(&members)
      let envelope = Envelope(signing: .object(members), as: .manifest, with: keys.signers(at: now))
      return (envelope, body, key.bytes)
    }
  }

  @Test func aLyingSenderGetsNothingIntoTheInbox() async throws {
    let agencies = try TestAgencies()
    try agencies.recipient.start()
    let attacker = try Attacker(agencies)
    defer { attacker.relay.stop() }
    let plain = [UInt8](repeating: 65, count: 100)
    func path(_ id: TransferID, _ part: String) -> String { "/v1/transfers/\(id)\(part)" }

    // Another body under a signed manifest.
    var id = TransferID()
    var package = try attacker.package(plain, id: id)
    #expect(try await attacker.send("PUT", path(id, "/manifest"), package.manifest.bytes).status == 201)
    let other = try attacker.package([UInt8](repeating: 66, count: 100))
    var reply = try await attacker.send("PATCH", path(id, "/body"), other.body, ["Upload-Offset: 0"])
    #expect(reply.status == 403 && Problem(reply)?.code == "body.root")
    let spool = "\(agencies.recipient.home)/spool/in/\(agencies.sender.id)"
    #expect(try FileManager.default.contentsOfDirectory(atPath: spool) == [])
    reply = try await attacker.send("PUT", path(id, "/key"), package.key)
    #expect(reply.status == 403)

    // Another manifest under the same id; the same one again.
    id = TransferID()
    package = try attacker.package(plain, id: id)
    #expect(try await attacker.send("PUT", path(id, "/manifest"), package.manifest.bytes).status == 201)
    #expect(try await attacker.send("PUT", path(id, "/manifest"), package.manifest.bytes).status == 200)
    #expect(
      try await attacker.send("PUT", path(id, "/manifest"), attacker.package(plain, id: id).manifest.bytes).status
        == 409)

    // Offsets that are not where the body is; a digest that is not the bytes'; too many bytes; the key too early.
    reply = try await attacker.send("PATCH", path(id, "/body"), package.body, ["Upload-Offset: 7"])
    #expect(reply.status == 409 && reply.headers["upload-offset"] == "0")
    #expect(try await attacker.send("PATCH", path(id, "/body"), package.body, ["Upload-Offset: -1"]).status == 400)
    #expect(try await attacker.send("PATCH", path(id, "/body"), package.body).status == 400)
    let wrong = ContentDigest.header(Digest(of: [1]))
    reply = try await attacker.send(
      "PATCH", path(id, "/body"), package.body, ["Upload-Offset: 0", "Content-Digest: \(wrong)"])
    #expect(reply.status == 400)
    #expect(try await attacker.send("HEAD", path(id, "/body"), []).headers["upload-offset"] == "0")
    #expect(try await attacker.send("PUT", path(id, "/key"), package.key).status == 409)
    reply = try await attacker.send("PATCH", path(id, "/body"), Array(package.body.prefix(50)), ["Upload-Offset: 0"])
    #expect(reply.status == 204 && reply.headers["upload-offset"] == "50")
    reply = try await attacker.send(
      "PATCH", path(id, "/body"), Array(package.body.dropFirst(50)), ["Upload-Offset: 50"])
    #expect(reply.status == 200)
    #expect(try await attacker.send("PUT", path(id, "/key"), Array(package.key.reversed())).status == 409)

    // Of a body of three segments: back to where the request began, and no further.
    id = TransferID()
    package = try attacker.package([UInt8](repeating: 67, count: 3_000_000), id: id)
    #expect(try await attacker.send("PUT", path(id, "/manifest"), package.manifest.bytes).status == 201)
    let half = 1_500_000
    reply = try await attacker.send("PATCH", path(id, "/body"), Array(package.body.prefix(half)), ["Upload-Offset: 0"])
    #expect(reply.status == 204 && reply.headers["upload-offset"] == "\(half)")
    let rest = Array(package.body.dropFirst(half))
    reply = try await attacker.send(
      "PATCH", path(id, "/body"), rest, ["Upload-Offset: \(half)", "Content-Digest: \(wrong)"])
    #expect(reply.status == 400)
    #expect(try await attacker.send("HEAD", path(id, "/body"), []).headers["upload-offset"] == "\(half)")
    reply = try await attacker.send("PATCH", path(id, "/body"), rest, ["Upload-Offset: \(half)"])
    #expect(reply.status == 200, "its root is the signed one")

    // A manifest that the keys do not fit: another recipient's key, bound to another id.
    let foreign = TransferID()
    let bound = try attacker.package(plain, id: foreign)
    id = TransferID()
    guard case .object(var members) = try bound.manifest.unverified() else { throw TestFailure("no object") }
    members["id"] = .string(id.text)
    let stolen = Envelope(signing: .object(members), as: .manifest, with: attacker.keys.signers(at: Date()))
    #expect(try await attacker.send("PUT", path(id, "/manifest"), stolen.bytes).status == 201)
    #expect(try await attacker.send("PATCH", path(id, "/body"), bound.body, ["Upload-Offset: 0"]).status == 200)
    #expect(try await attacker.send("PUT", path(id, "/key"), bound.key).status == 200)
    let receipts = try await attacker.send("GET", path(id, "/receipts?after=received&wait=10"), [])
    #expect(String(decoding: receipts.body, as: UTF8.self).contains("receipts"))
    #expect(try eventually { try agencies.recipient.sallyport("trace", id.text).text.contains("quarantined") })
    #expect(agencies.recipient.inboxNames(from: agencies.sender) == [])
  }

  /// A body that never comes to its end keeps no file open, and no room on the disk.
  @Test func anExpiredBodyIsLetGoOf() async throws {
    let agencies = try TestAgencies()
    let gateway = try agencies.recipient.start()
    let attacker = try Attacker(agencies)
    defer { attacker.relay.stop() }
    let id = TransferID()
    let package = try attacker.package([UInt8](repeating: 65, count: 100), id: id) {
      $0["expiresAt"] = .string(Timestamp.format(Date() + 4))
    }
    #expect(try await attacker.send("PUT", "/v1/transfers/\(id)/manifest", package.manifest.bytes).status == 201)
    let reply = try await attacker.send(
      "PATCH", "/v1/transfers/\(id)/body", Array(package.body.prefix(50)), ["Upload-Offset: 0"])
    #expect(reply.status == 204)
    func isHeld() throws -> Bool {
      let open = "/proc/\(gateway.processIdentifier)/fd"
      return try FileManager.default.contentsOfDirectory(atPath: open).contains {
        (try? FileManager.default.destinationOfSymbolicLink(atPath: "\(open)/\($0)"))?.contains("\(id).part") == true
      }
    }
    #expect(try isHeld())
    #expect(try eventually { try agencies.recipient.sallyport("trace", id.text).text.contains("expired") })
    #expect(try eventually { try !isHeld() })
  }

  /// The body is whole, and before that is recorded the transfer is over.
  @Test func aBodyThatComesTooLateIsRemoved() async throws {
    let agencies = try TestAgencies()
    let gateway = try OwnGateway(of: agencies.recipient)
    let context = gateway.context
    var late = Transfer(
      direction: .in, sender: AgencyID(agencies.sender.id)!, id: TransferID(), peer: AgencyID(agencies.sender.id)!,
      agreement: TestAgencies.agreement, state: .receiving, name: "late.txt", createdAt: Date())
    late.manifestDigest = Digest(of: []).hex
    let receiving = late
    _ = try await context.ledger.write { tx in
      try tx.insert(receiving)
      return try tx.advance(receiving, to: .expired)
    }
    let part = try context.spool.create(receiving.place, bytes: 1)
    try part.write([65], at: 0)
    await #expect(throws: LedgerError.self) { try await Admission(context: context).received(receiving) }
    #expect(try context.spool.inventory().isEmpty)
    // The same for a request that was stopped when it had just begun.
    _ = try context.spool.create(receiving.place, bytes: 1)
    try await Task {
      withUnsafeCurrentTask { $0?.cancel() }
      try await context.discardBodyIfEnded(of: receiving)
    }.value
    #expect(try context.spool.inventory().isEmpty)
    try await context.close()
  }

  /// What a manifest may not say, and the code of the answer.
  static let lies: [(String, String, JSON, Int, String)] = [
    ("another recipient", "recipient", "other.example.gov", 403, "manifest.recipient"),
    ("another sender", "sender", "other.example.gov", 403, "document.signature"),
    (
      "an unknown agreement", "agreement", ["id": "x", "version": 1, "sha256": .string(Digest(of: [1]).hex)], 403,
      "agreement.unknown"
    ),
    ("expired", "expiresAt", "2020-01-02T00:00:00Z", 400, "document.invalid"),
    ("from the future", "createdAt", "2090-01-01T00:00:00Z", 400, "document.invalid"),
    ("too long a life", "expiresAt", "2090-01-01T00:00:00Z", 403, "limit.time-to-live"),
    ("a path for a name", "name", "../../etc/passwd", 400, "document.invalid"),
    ("another media type", "mediaType", "text/html", 403, "input.media-type"),
    ("an impossible size", "payloadBytes", 7, 400, "document.invalid"),
    ("an unknown member", "surprise", 1, 400, "document.invalid"),
  ]

  @Test func everyLieInAManifestIsRefusedByItsCode() async throws {
    let agencies = try TestAgencies()
    try agencies.recipient.start()
    let attacker = try Attacker(agencies)
    defer { attacker.relay.stop() }
    for (what, member, value, status, code) in Self.lies {
      let id = TransferID()
      let package = try attacker.package([1, 2, 3], id: id) { $0[member] = value }
      let reply = try await attacker.send("PUT", "/v1/transfers/\(id)/manifest", package.manifest.bytes)
      #expect(
        reply.status == status && Problem(reply)?.code == code,
        "\(what): \(String(decoding: reply.body, as: UTF8.self))")
    }
    // Bytes that are no envelope at all, cut and flipped.
    let id = TransferID()
    let good = try attacker.package([1], id: id).manifest.bytes
    for cut in stride(from: 0, to: good.count, by: 97) {
      #expect(try await attacker.send("PUT", "/v1/transfers/\(id)/manifest", Array(good[..<cut])).status >= 400)
    }
    #expect(
      try await attacker.send("PUT", "/v1/transfers/\(id)/manifest", [UInt8](repeating: 91, count: 200_000)).status
        == 413)
    #expect(agencies.recipient.inboxNames(from: agencies.sender) == [])
    #expect(agencies.recipient.stop() == 0)
  }

  /// The sender's gateway checks records; one that does not is found out by the recipient's, before the inbox.
  @Test func recordsThatBreakTheSchemaAreRefusedByTheRecipientToo() async throws {
    var options = TestAgencies.Options()
    options.dataset = #", format: ndjson, schema: "schemas/test.schema", schemaSha256: "sha256:SHA256""#
    options.schema = #"{"type":"object","required":["id"],"properties":{"id":{}}}"#
    options.terms = #"fields: [ { name: id, category: "ext:Id", action: pass } ]"#
    let agencies = try TestAgencies(options)
    try agencies.recipient.start()
    let attacker = try Attacker(agencies)
    defer { attacker.relay.stop() }
    let schema: JSON = ["id": "test.schema", "sha256": .string(Digest(of: Array(options.schema.utf8)).hex)]
    // A manifest without the schema is refused at once.
    let unchecked = TransferID()
    let reply = try await attacker.send(
      "PUT", "/v1/transfers/\(unchecked)/manifest", attacker.package([1], id: unchecked).manifest.bytes)
    #expect(reply.status == 403 && Problem(reply)?.code == "input.schema")
    for (text, records, state) in [
      ("{\"id\":1}\n", 1, "acknowledged"), ("{\"no\":\"SECRET\"}\n", 1, "quarantined"),
      ("{\"id\":1}\n", 2, "quarantined"),
    ] as [(String, Int64, String)] {
      let id = TransferID()
      let package = try attacker.package(Array(text.utf8), id: id) {
        $0["schema"] = schema
        $0["records"] = .integer(records)
      }
      #expect(try await attacker.send("PUT", "/v1/transfers/\(id)/manifest", package.manifest.bytes).status == 201)
      #expect(
        try await attacker.send("PATCH", "/v1/transfers/\(id)/body", package.body, ["Upload-Offset: 0"]).status == 200)
      #expect(try await attacker.send("PUT", "/v1/transfers/\(id)/key", package.key).status == 200)
      let states = state == "quarantined" ? [state] : ["delivered", state]
      #expect(
        try eventually {
          let trace = try agencies.recipient.sallyport("trace", id.text).text
          return states.contains { trace.contains($0) }
        }, "\(text) \(records)")
    }
    #expect(agencies.recipient.inboxNames(from: agencies.sender) == ["attack.bin"])
    #expect(!agencies.recipient.log.contains("SECRET"))
  }

  /// At the limit two go; over it the third waits, and is told how long.
  @Test(arguments: [
    ("packagesPerPartner: 2", "limit.packages"), ("bytesPerPartnerMax: 232", "limit.bytes-per-partner"),
  ])
  func whatOnePartnerHasUnderWayIsBounded(setting: String, code: String) async throws {
    var options = TestAgencies.Options()
    options.configuration = setting
    let agencies = try TestAgencies(options)
    try agencies.recipient.start()
    let attacker = try Attacker(agencies)
    defer { attacker.relay.stop() }
    for number in 1...3 {
      let id = TransferID()
      // 116 bytes sealed.
      let package = try attacker.package([UInt8](repeating: 65, count: 100), id: id)
      let reply = try await attacker.send("PUT", "/v1/transfers/\(id)/manifest", package.manifest.bytes)
      #expect(reply.status == (number < 3 ? 201 : 429), "\(number)")
      #expect(number < 3 || Problem(reply)?.code == code && reply.headers["retry-after"] != nil)
    }
  }

  /// Each notice stays until people have answered it.
  @Test func openNoticesOfAPartnerAreBounded() async throws {
    let agencies = try TestAgencies()
    let attacker = try Attacker(agencies)
    let gateway = try OwnGateway(of: agencies.recipient)
    let actBy = Date() + 86400
    func notice() -> WithdrawalNotice {
      WithdrawalNotice(
        id: TransferID(), issuer: attacker.keys.card.card.agency, to: gateway.context.agency,
        agreement: attacker.agreement, items: [.init(package: TransferID(), ordinals: [1])], asked: .restrict,
        because: "ConsentWithdrawn", sequence: 1, issuedAt: Date(), actBy: actBy)
    }
    func take(_ notice: WithdrawalNotice) async throws -> Envelope? {
      let envelope = attacker.keys.sign(notice.document, as: .notice, at: Date())
      return try await NoticeDesk(context: gateway.context).take(notice.id, envelope.bytes, from: notice.issuer)
    }
    let first = notice()
    #expect(try await take(first) != nil)
    let ledger = gateway.context.ledger
    try await ledger.write { tx in
      for number in 1..<Notices.openMax {
        try tx.put(
          NoticeRow(
            id: TransferID(), direction: .in, peer: first.issuer, agreement: "a", envelope: [], nextAt: actBy,
            actBy: actBy, sequence: Int64(number)))
      }
    }
    await #expect {
      try await take(notice())
    } throws: { ($0 as? Problem)?.code == "limit.notices" }
    // The same again is answered as before; one that was done makes room.
    #expect(try await take(first) != nil)
    _ = try await NoticeDesk(context: gateway.context).answer(first.id, .actioned, because: nil)
    #expect(try await take(notice()) != nil)
    #expect(try await ledger.read { try $0.notices(overdueAt: Date(), limit: 1) }.isEmpty)
    #expect(try await ledger.read { try $0.notices(overdueAt: actBy + 1, .in, limit: 2) }.count == 2)
    #expect(try await ledger.read { try $0.notices(overdueAt: actBy + 1, .out, limit: 2) }.isEmpty)
    try await gateway.context.close()
  }

  /// A recipient that says that it has a key of which no release is known counts as one that was told.
  @Test func whatARecipientSaysAgainstItselfCounts() async throws {
    let agencies = try TestAgencies()
    let gateway = try OwnGateway(of: agencies.sender)
    let home = Home(agencies.recipient.home)
    let recipient = try KeyRing(home, passphrase: PassphraseFile.read(home.passphrase))
    let context = gateway.context
    var row = Transfer(
      direction: .out, sender: context.agency, id: TransferID(), peer: recipient.card.card.agency, agreement: "a",
      state: .cancelled, name: "n", createdAt: Date())
    row.manifestDigest = Digest(of: []).hex
    let transfer = row
    let takeBack = TakeBack(
      id: transfer.id, sender: transfer.sender, recipient: transfer.peer, manifest: Digest(of: []), reason: "cancelled",
      at: Date())
    let taken = context.sign(takeBack.document, as: .takeBack)
    try await context.ledger.write { tx in
      try tx.insert(transfer)
      try tx.add(document: taken, sender: transfer.sender, id: transfer.id)
      try tx.put(
        PackageRow(
          id: transfer.id, agreement: "a", agreementDigest: Digest(of: []).hex, recipient: transfer.peer, judged: 0,
          horizon: nil, records: 1, decision: [], retained: nil))
    }
    let answer = TakeBackAnswer(takeBack: taken.payloadDigest, outcome: .hadKey, at: Date())
    try await TakeBackBook(context: context).take(
      recipient.sign(answer.document, as: .acknowledgement, at: Date()).bytes, about: transfer)
    #expect(try await context.ledger.read { try $0.package(transfer.id) }?.isPerhapsDisclosed == true)
    try await context.close()
  }

  /// Admitted one by one, there is room for each; together there is not.
  @Test func roomIsLookedAtAgainWhenABodyBegins() async throws {
    let agencies = try TestAgencies()
    let free = try Directory.free(agencies.recipient.home).bytes
    // Of a body and its payload there is room for two and a half bodies.
    let bytes: Int64 = 1 << 30
    let settings = "\(agencies.recipient.home)/sallyport.yaml"
    try String(contentsOfFile: settings, encoding: .utf8)
      .replacingOccurrences(of: "lowWaterBytes: 1048576", with: "lowWaterBytes: \(free - bytes * 5 / 2)")
      .write(toFile: settings, atomically: false, encoding: .utf8)
    try agencies.recipient.start()
    let attacker = try Attacker(agencies)
    defer { attacker.relay.stop() }
    var statuses: [Int] = []
    let ids = (0..<4).map { _ in TransferID() }
    for id in ids {
      let body = try BodyGeometry(plainBytes: bytes).sealedBytes
      let package = try attacker.package([1], id: id) {
        $0["payloadBytes"] = .integer(bytes)
        $0["body"] = ["bytes": .integer(body), "treeRoot": .string(Digest(of: []).hex)]
      }
      #expect(try await attacker.send("PUT", "/v1/transfers/\(id)/manifest", package.manifest.bytes).status == 201)
    }
    // Forgotten, for its digest is wrong; but the room is taken.
    let headers = ["Upload-Offset: 0", "Content-Digest: \(ContentDigest.header(Digest(of: [2])))"]
    for id in ids {
      statuses.append(try await attacker.send("PATCH", "/v1/transfers/\(id)/body", [1], headers).status)
    }
    #expect(statuses == [400, 400, 507, 507])
    // What a transfer reserved is not asked for twice when it begins anew.
    agencies.recipient.kill()
    try agencies.recipient.start()
    for id in ids.prefix(2) {
      let offset = try await attacker.send("HEAD", "/v1/transfers/\(id)/body", []).headers["upload-offset"] ?? ""
      let reply = try await attacker.send("PATCH", "/v1/transfers/\(id)/body", [1], ["Upload-Offset: \(offset)"])
      #expect(reply.status == 204, "\(offset) \(reply.status)")
    }
  }

  /// Each refusal stays in the ledger: at the limit the next one is told to wait, and nothing is stored.
  @Test func refusalsOfOnePartnerAreBounded() async throws {
    let agencies = try TestAgencies()
    try agencies.recipient.start()
    let attacker = try Attacker(agencies)
    defer { attacker.relay.stop() }
    var statuses: [Int: Int] = [:]
    for _ in 0..<200 {
      let id = TransferID()
      let package = try attacker.package([1], id: id) { $0["mediaType"] = "text/html" }
      let reply = try await attacker.send("PUT", "/v1/transfers/\(id)/manifest", package.manifest.bytes)
      statuses[reply.status, default: 0] += 1
      #expect(reply.status != 429 || Problem(reply)?.code == "limit.refusals")
    }
    // A minute may end meanwhile.
    #expect((60...120).contains(statuses[403] ?? 0) && statuses[403]! + (statuses[429] ?? 0) == 200, "\(statuses)")
    let rows = try agencies.recipient.sallyport("queue", "--all", "--json").lines
    #expect(rows.count { $0.contains(#""state":"refused""#) } == statuses[403], "\(rows.first ?? "")")
  }

  /// Receipts with signatures nobody asked for must not make a list that its reader refuses.
  @Test func aListEndsBeforeItIsTooLong() {
    let half = PartnerPort.listBytesMax / 2
    func end(_ bytes: [Int], limit: Int = 500) -> Int64 {
      PartnerPort.end(of: bytes.enumerated().map { (Int64(7 + $0.offset), $0.element) }, after: 3, limit: limit)
    }
    #expect(end([]) == 3 && end([4 * half]) == 7 && end([half, half, 1]) == 8 && end([1, 4 * half]) == 7)
    #expect(end([1, 1, 1], limit: 2) == 8)
  }

  @Test func aPartnersBudgetIsForAMinute() throws {
    let budget = PartnerBudget(perMinute: 2)
    let (one, other) = (AgencyID("a.example.gov")!, AgencyID("b.example.gov")!)
    let minute = Date(timeIntervalSince1970: 600)
    for isThere in [true, true, false] {
      #expect(budget.isSpent(one, at: minute) == !isThere)
      #expect(budget.take(one, at: minute) == isThere)
    }
    #expect(budget.take(other, at: minute) && budget.take(one, at: minute + 60))
  }

  /// A body that can never fit is no reason to wait.
  @Test func aBodyLargerThanAPartnerMayHaveIsRefused() async throws {
    var options = TestAgencies.Options()
    options.configuration = "bytesPerPartnerMax: 100"
    let agencies = try TestAgencies(options)
    try agencies.recipient.start()
    let attacker = try Attacker(agencies)
    defer { attacker.relay.stop() }
    let id = TransferID()
    let package = try attacker.package([UInt8](repeating: 65, count: 100), id: id)
    let reply = try await attacker.send("PUT", "/v1/transfers/\(id)/manifest", package.manifest.bytes)
    #expect(reply.status == 413 && Problem(reply)?.code == "limit.bytes-per-partner")
  }

  /// Offers and acts lie in `policies/`, and are read at each start.
  @Test func offersAndActsOfAPartnerAreBounded() async throws {
    let agencies = try TestAgencies()
    let attacker = try Attacker(agencies)
    let gateway = try OwnGateway(of: agencies.recipient)
    let context = gateway.context
    let exchange = AgreementExchange(context: context)
    let partner = attacker.keys.card.card.agency
    let yaml = TestAgencies.yaml(.init(), partner.text, context.agency.text)
    func offer(_ version: Int) async throws {
      let agreement = try Agreement(yaml: yaml.replacingOccurrences(of: "version: 1\n", with: "version: \(version)\n"))
      try await exchange.take(agreement.digest, agreement.document.canonical, from: partner)
    }
    for version in 2..<2 + AgreementExchange.offersMax { try await offer(version) }
    await #expect {
      try await offer(1000)
    } throws: {
      let problem = $0 as? Problem
      // With Retry-After all that goes to the partner would wait.
      return problem?.code == "agreement.offers" && problem?.retryAfterSeconds == nil
    }
    #expect(try exchange.offers().count == AgreementExchange.offersMax)

    let agreement = try #require(context.policies.agreements.first)
    func act(_ number: Int) async throws {
      let act = AgreementAct(
        .suspend, agreement, party: partner, role: "data-officer", signer: "Eve", reason: nil, at: Date(),
        number: Int64(number))
      _ = try await exchange.take(act: attacker.keys.sign(act.document, as: .agreementAct, at: Date()).bytes)
    }
    // One is there: that of the agreement's own signing.
    for number in 2...AgreementExchange.actsOfPartyMax { try await act(number) }
    await #expect {
      try await act(101)
    } throws: {
      ($0 as? AdminError)?.exitCode == .refused
    }
    // Its signer cannot write to whoever reads it.
    let loud = AgreementAct(
      .suspend, agreement, party: partner, role: "data-officer", signer: "Eve\u{1b}[8m", reason: nil, at: Date(),
      number: 200)
    await #expect(throws: SealingError.self) {
      _ = try await exchange.take(act: attacker.keys.sign(loud.document, as: .agreementAct, at: Date()).bytes)
    }
    try await context.close()
  }

  /// Records must not pass for opaque because their agreement was taken away meanwhile.
  @Test func anAgreementThatIsTakenAwayLetsNothingPass() async throws {
    let agencies = try TestAgencies(.optIn())
    let gateway = try OwnGateway(of: agencies.sender)
    let context = gateway.context
    let agreement = try #require(context.policies.agreements.first)
    let attacker = try Attacker(agencies)
    var transfer = Transfer(
      direction: .out, sender: context.agency, id: TransferID(), peer: AgencyID(agencies.recipient.id)!,
      agreement: agreement.id, state: .sealed, name: "n", createdAt: Date())
    transfer.manifest = try attacker.package([1], id: transfer.id).manifest.bytes
    #expect(try context.enforcement(of: agreement) != nil)
    #expect(try await Approvals(context: context).missing(for: transfer) == nil)
    try FileManager.default.removeItem(atPath: "\(agencies.sender.home)/policies/\(agreement.id).yaml")
    try await context.reload()
    #expect(throws: Problem.self) { try context.enforcement(of: agreement) }
    #expect(try await Approvals(context: context).missing(for: transfer)?.contains("is not in") == true)
    try await context.close()
  }

  /// A state counts from before its commit, and not when that fails.
  @Test func aConsentThatCouldNotBeRecordedCountsForNothing() async throws {
    let agencies = try TestAgencies(.optIn())
    let context = try OwnGateway(of: agencies.sender).context
    let agreement = TestAgencies.agreement
    let key = SubjectKey(master: context.keys.subjectMaster, .ledger, context: agreement)
    let subject = try #require(Subject.reference("P1", key))
    let word = ConsentRecord.applied(.withdrawn, at: Date(), validUntil: nil, recordedAt: Date(), to: nil).word
    await #expect(throws: CancellationError.self) {
      try await ConsentJourney(context: context).undoing([subject], agreement) { _ in
        context.consents.set(agreement, subject, word)
        throw CancellationError()
      }
    }
    let left = context.consents.words(agreement, [subject])
    #expect(left.count == 1 && ConsentRecord(word: left[0]) == nil)
    let consent = try #require(context.policies.agreements.first).consent
    #expect(ConsentRule(consent, at: Date()).verdict(left[0]) == 1)
    try await context.close()
  }

  @Test func belowTheLowWaterMarkNothingNewIsTaken() async throws {
    var options = TestAgencies.Options()
    options.configuration = "lowWaterInodes: 1000000000000"
    let agencies = try TestAgencies(options)
    try agencies.start()
    let attacker = try Attacker(agencies)
    defer { attacker.relay.stop() }
    let id = TransferID()
    let reply = try await attacker.send(
      "PUT", "/v1/transfers/\(id)/manifest", attacker.package([1], id: id).manifest.bytes)
    #expect(reply.status == 507 && Problem(reply)?.code == "disk.full" && reply.headers["retry-after"] != nil)
    try agencies.sender.drop("waits.txt", Data("x".utf8))
    // Said once, and not with every scan.
    #expect(eventually { agencies.sender.log.contains("low-water") })
    _ = eventually(3) { false }
    #expect(agencies.sender.log.components(separatedBy: "low-water").count == 2, "\(agencies.sender.log)")
    let outbox = "\(agencies.sender.home)/outbox/\(TestAgencies.agreement)"
    #expect(FileManager.default.fileExists(atPath: "\(outbox)/waits.txt"))
    let sent = try agencies.sender.sallyport("send", "/etc/hostname", "--agreement", TestAgencies.agreement)
    #expect(sent.status == 75 && sent.errors.contains("low-water"), "\(sent.errors)")
    try agencies.stop()
  }

  /// A recipient that misbehaves: it has the recipient's TLS key and answers as `handler` says.
  private func impostor(
    _ agencies: TestAgencies, _ handler: @escaping PartnerServer.Handler, _ body: () throws -> Void
  ) async throws {
    try await serving(as: agencies.recipient, to: [agencies.sender], handler: handler, body: body)
  }

  static let misbehaviours: [(String, PartnerServer.Handler)] = [
    (
      "hangs",
      { _ in
        do { try await Task.sleep(for: .seconds(6)) } catch {}
        return HTTPReply(500)
      }
    ),
    ("answers nonsense", { _ in HTTPReply(200, headers: ["content-type": "text/html"], body: Array("<html>".utf8)) }),
    ("fails", { _ in HTTPReply(500) }),
    (
      "lies about offsets",
      { request in
        if request.method == "PUT" {
          return .json(200, ["receipts": []], headers: ["upload-offset": "999999999"])
        }
        return .problem(Problem(.offset, "elsewhere"), headers: ["upload-offset": "1"])
      }
    ),
    (
      "keeps moving the offset",
      { request in
        if request.method == "PUT" { return .json(201, ["receipts": []], headers: ["upload-offset": "0"]) }
        return .problem(Problem(.offset, "elsewhere"), headers: ["upload-offset": String(Int.random(in: 1...5))])
      }
    ),
    ("sends receipts that it did not sign", { _ in .json(200, ["receipts": ["{}"]], headers: ["upload-offset": "0"]) }),
  ]

  @Test(arguments: misbehaviours.map(\.0))
  func aBadRecipientNeverGetsTheKeyAndLosesNothing(name: String) async throws {
    let agencies = try TestAgencies()
    let handler = Self.misbehaviours.first { $0.0 == name }!.1
    let keys = Counter()
    try await impostor(
      agencies,
      { request in
        if request.target.hasSuffix("/key") { keys.increment() }
        return await handler(request)
      }
    ) {
      try agencies.sender.startSending()
      try agencies.sender.drop("safe.txt", Data("safe".utf8))
      _ = eventually(30) { agencies.sender.outcome("safe.txt") == "accepted" }
      // Long enough for several tries.
      _ = eventually(3) { false }
    }
    #expect(keys.value == 0)
    agencies.sender.stop()
    // The real recipient comes back; what was set aside is resumed by its administrator.
    try agencies.recipient.start()
    try agencies.sender.start()
    let id = try #require(agencies.sender.outcome("safe.txt", "id"))
    _ = try agencies.sender.sallyport("resume", id)
    _ = try agencies.sender.sallyport("retry", id)
    #expect(eventually(60) { agencies.sender.outcome("safe.txt") == "delivered" }, "\(name): \(agencies.sender.log)")
    #expect(agencies.recipient.inboxNames(from: agencies.sender) == ["safe.txt"])
    try agencies.stop()
    #expect(try agencies.findings() == [])
  }
}

final class Counter: @unchecked Sendable {
  // Proof for @unchecked: `count` is touched only under `lock`.
  private let lock = NSLock()
  private var count = 0
  func increment() { lock.withLock { count += 1 } }
  var value: Int { lock.withLock { count } }
}
