// The wire: live mutual TLS on loopback, pins, routes, limits.

import Foundation
import Logging
import NIOConcurrencyHelpers
import NIOCore
import NIOPosix
import Sealing
import ServiceLifecycle
import TestSupport
import Testing

@testable import Transport

private let peer = AgencyID("peer.example.gov")!

/// Whether the partner's card is still the one with its pins.
private final class Held: @unchecked Sendable {
  // Proof for @unchecked: touched only under `lock`.
  private let lock = NSLock()
  private var value = true

  var isHeld: Bool {
    get { lock.withLock { value } }
    set { lock.withLock { value = newValue } }
  }
}

/// A server on a free port, while `body` runs.
private func serving(
  pins: [Digest], limits: PartnerServerLimits = .init(), card: Held = Held(),
  _ handler: @escaping PartnerServer.Handler, _ body: @escaping @Sendable (Int, TLSIdentity) async throws -> Void
) async throws {
  let identity = try TLSIdentity(key: TLSIdentity.generateKey(), name: "server.example.gov")
  // Never shut down, as the gateway's own.
  let loops = ServerLoops(threads: 1)
  let (ports, listening) = AsyncStream<Int>.makeStream()
  let server = PartnerServer(
    host: "127.0.0.1", port: 0, identity: identity, limits: limits,
    partner: { card.isHeld && pins.contains($0) ? peer : nil },
    handler: handler,
    loops: loops, logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }, onListening: { listening.yield($0) })
  // Stopped as the gateway is: gracefully.
  let services = ServiceGroup(services: [server], logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() })
  try await withThrowingTaskGroup { tasks in
    tasks.addTask { try await services.run() }
    for await port in ports {
      do {
        try await body(port, identity)
      } catch {
        await services.triggerGracefulShutdown()
        throw error
      }
      break
    }
    await services.triggerGracefulShutdown()
    try await tasks.waitForAll()
  }
}

@Suite struct WireTests {
  let client = try! TLSIdentity(key: TLSIdentity.generateKey(), name: "client.example.gov")

  @Test func aKnownPartnerIsServedAndNamed() async throws {
    let relay = RelayClient(identity: client)
    defer { relay.stop() }
    try await serving(pins: [client.pin]) { request in
      let body = (try? await request.collect(bytesMax: 100)) ?? []
      return HTTPReply(
        200, headers: ["x-partner": request.partner.text, "x-method": request.method], body: body + [33])
    } _: { port, server in
      let reply = try await relay.send(
        RelayRequest("PUT", "https://127.0.0.1:\(port)/x", body: .bytes([104, 105]), pins: [server.pin]))
      #expect(reply.status == 200 && reply.body == [104, 105, 33])
      #expect(reply.headers["x-partner"] == peer.text && reply.headers["x-method"] == "PUT")
    }
  }

  @Test func strangersWrongPinsAndOldTLSGetTheSameNothing() async throws {
    let stranger = RelayClient(identity: try TLSIdentity(key: TLSIdentity.generateKey(), name: "x.y"))
    let anonymous = RelayClient(identity: nil)
    let known = RelayClient(identity: client)
    defer { for relay in [stranger, anonymous, known] { relay.stop() } }
    try await serving(pins: [client.pin]) { _ in
      HTTPReply(200)
    } _: { port, server in
      let url = "https://127.0.0.1:\(port)/v1/card"
      for relay in [stranger, anonymous] {
        await #expect(throws: RelayError.self) { try await relay.send(RelayRequest("GET", url, pins: [server.pin])) }
      }
      do {
        _ = try await known.send(RelayRequest("GET", url, pins: [Digest(of: [1])]))
        Issue.record("a wrong pin was accepted")
      } catch let error as RelayError {
        #expect(error.code == 90 && error.isIdentity)
      }
      // An empty list of pins pins nobody, not everybody.
      await #expect(throws: RelayError.self) { try await known.send(RelayRequest("GET", url, pins: [])) }
      let openssl = try #require(Command.find("openssl"))
      let old = try Command.run(openssl, ["s_client", "-connect", "127.0.0.1:\(port)", "-tls1_2"])
      #expect(old.status != 0)
    }
  }

  @Test func aClientThatNeverShakesHandsIsCutOff() async throws {
    var limits = PartnerServerLimits()
    limits.handshakeSeconds = 1
    try await serving(pins: [client.pin], limits: limits) { _ in
      HTTPReply(200)
    } _: { port, _ in
      let start = ContinuousClock.now
      let result = try await Task.detached {
        try Command.run("/bin/bash", ["-c", "exec 3<>/dev/tcp/127.0.0.1/\(port); timeout 10 cat <&3"])
      }.value
      #expect(result.status == 0 && ContinuousClock.now - start < .seconds(9))
    }
  }

  /// As when another part of the gateway fails: what is accepted at that moment is dropped, and no trap.
  @Test func connectionsThatComeAsTheServerIsCancelledAreDropped() async throws {
    let quiet = Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }
    let identity = try TLSIdentity(key: TLSIdentity.generateKey(), name: "server.example.gov")
    for _ in 0..<40 {
      let (ports, listening) = AsyncStream<Int>.makeStream()
      let server = PartnerServer(
        host: "127.0.0.1", port: 0, identity: identity, partner: { _ in nil }, handler: { _ in HTTPReply(200) },
        loops: .shared, logger: quiet, onListening: { listening.yield($0) })
      let running = Task { try? await server.run() }
      let port = await ports.first { _ in true }!
      let clients = Task.detached { try await Self.connect(to: port, times: 200) }
      try await Task.sleep(for: .milliseconds(.random(in: 1...8)))
      running.cancel()
      await running.value
      for client in try await clients.value { close(client) }
    }
  }

  private static func connect(to port: Int, times: Int) async throws -> [Int32] {
    (0..<times).compactMap { _ in
      let client = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
      var address = sockaddr_in()
      address.sin_family = sa_family_t(AF_INET)
      address.sin_port = in_port_t(port).bigEndian
      address.sin_addr.s_addr = in_addr_t(0x7F00_0001).bigEndian
      let isOpen = withUnsafePointer(to: &address) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
          Glibc.connect(client, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) == 0
        }
      }
      guard isOpen else {
        close(client)
        return nil
      }
      return client
    }
  }

  @Test func manyRequestsShareFewConnectionsAndCancelling() async throws {
    let relay = RelayClient(identity: client)
    defer { relay.stop() }
    try await serving(pins: [client.pin]) { request in
      if request.target == "/slow" { try? await Task.sleep(for: .seconds(2)) }
      return HTTPReply(200, body: Array(request.target.utf8))
    } _: { port, server in
      try await withThrowingTaskGroup { group in
        for index in 0..<100 {
          group.addTask {
            let reply = try await relay.send(
              RelayRequest("GET", "https://127.0.0.1:\(port)/\(index)", pins: [server.pin]))
            #expect(reply.body == Array("/\(index)".utf8))
          }
        }
        try await group.waitForAll()
      }
      let slow = Task {
        try await relay.send(RelayRequest("GET", "https://127.0.0.1:\(port)/slow", pins: [server.pin]))
      }
      try await Task.sleep(for: .milliseconds(200))
      slow.cancel()
      await #expect(throws: CancellationError.self) { try await slow.value }
    }
  }

  @Test func aKeyWaitsBehindNoBody() async throws {
    let relay = RelayClient(identity: client)
    defer { relay.stop() }
    let stuck = NIOLockedValueBox(0)
    try await serving(pins: [client.pin]) { [most = RelayClient.bulkConnectionsPerHostMax] request in
      guard request.target == "/bulk" else { return HTTPReply(200) }
      stuck.withLockedValue { $0 += 1 }
      while stuck.withLockedValue({ 0 < $0 && $0 <= most }) { try? await Task.sleep(for: .milliseconds(10)) }
      return HTTPReply(500)
    } _: { port, server in
      try await withThrowingTaskGroup { tasks in
        for _ in 0..<(RelayClient.smallConnectionsPerHostMax * 2) {
          tasks.addTask {
            let body = RelayRequest.Body.file(offset: 0, length: RelayClient.bulkBytesMin) { zeros, _ in
              zeros.initializeMemory(as: UInt8.self, repeating: 0)
              return zeros.count
            }
            _ = try? await relay.send(
              RelayRequest("PUT", "https://127.0.0.1:\(port)/bulk", body: body, pins: [server.pin]))
          }
        }
        while stuck.withLockedValue({ $0 < RelayClient.bulkConnectionsPerHostMax }) {
          try await Task.sleep(for: .milliseconds(10))
        }
        var key = RelayRequest("PUT", "https://127.0.0.1:\(port)/key", body: .bytes([1]), pins: [server.pin])
        key.totalSeconds = 20
        #expect(try await relay.send(key).status == 200)
        // No more bodies than connections for them.
        #expect(stuck.withLockedValue { $0 } == RelayClient.bulkConnectionsPerHostMax)
        stuck.withLockedValue { $0 = -1000 }
        tasks.cancelAll()
      }
    }
  }

  @Test func aKeyThatIsReplacedIsUnknownOnOpenConnectionsToo() async throws {
    let relay = RelayClient(identity: client)
    defer { relay.stop() }
    let card = Held()
    try await serving(pins: [client.pin], card: card) { _ in
      HTTPReply(200)
    } _: { port, server in
      let request = RelayRequest("GET", "https://127.0.0.1:\(port)/", pins: [server.pin])
      let before = try await relay.send(request)
      #expect(before.status == 200)
      card.isHeld = false
      await #expect(throws: RelayError.self) { try await relay.send(request) }
    }
  }

  @Test func onePartnerHasItsShareOfConnectionsAndRequests() async throws {
    var limits = PartnerServerLimits()
    limits.requestsPerSecond = 20
    try await serving(pins: [client.pin], limits: limits) { _ in
      HTTPReply(200)
    } _: { [client] port, server in
      let relay = RelayClient(identity: client)
      defer { relay.stop() }
      var statuses: [Int] = []
      for _ in 0..<30 {
        statuses.append(
          try await relay.send(RelayRequest("GET", "https://127.0.0.1:\(port)/", pins: [server.pin])).status)
      }
      // So many at once, and what a second brings anew; never all of them.
      #expect(statuses.prefix(20).allSatisfy { $0 == 200 } && statuses.contains(429), "\(statuses)")
    }
    limits.requestsPerSecond = 1000
    limits.connectionsPerPartner = 2
    try await serving(pins: [client.pin], limits: limits) { _ in
      HTTPReply(200)
    } _: { [client] port, server in
      let request = RelayRequest("GET", "https://127.0.0.1:\(port)/", pins: [server.pin])
      // A client each, so a connection each; they stay open.
      let relays = (0..<3).map { _ in RelayClient(identity: client) }
      defer { for relay in relays { relay.stop() } }
      #expect(try await relays[0].send(request).status == 200)
      #expect(try await relays[1].send(request).status == 200)
      await #expect(throws: RelayError.self) { try await relays[2].send(request) }
      relays[0].stop()
      let isServed = try await Self.isAnswered(relays[2], request, tries: 100)
      #expect(isServed)
    }
  }

  /// Asks until it is answered, so many times at most.
  private static func isAnswered(_ relay: RelayClient, _ request: RelayRequest, tries: Int) async throws -> Bool {
    for _ in 0..<tries {
      do {
        if try await relay.send(request).status == 200 { return true }
      } catch {
        try await Task.sleep(for: .milliseconds(20))
      }
    }
    return false
  }

  @Test func anIdleConnectionIsClosed() async throws {
    var limits = PartnerServerLimits()
    limits.idleSeconds = 5
    limits.connectionsPerPartner = 1
    try await serving(pins: [client.pin], limits: limits) { _ in
      HTTPReply(200)
    } _: { [client] port, server in
      let request = RelayRequest("GET", "https://127.0.0.1:\(port)/", pins: [server.pin])
      let (first, second) = (RelayClient(identity: client), RelayClient(identity: client))
      defer { for relay in [first, second] { relay.stop() } }
      #expect(try await first.send(request).status == 200)
      // The first keeps the one connection that the partner has, and asks nothing.
      await #expect(throws: RelayError.self) { try await second.send(request) }
      let isServed = try await Self.isAnswered(second, request, tries: 1000)
      #expect(isServed)
    }
  }

  @Test func moreConnectionsThanTheServerTakesWait() async throws {
    var limits = PartnerServerLimits()
    limits.connections = 4
    limits.handshakeSeconds = 1
    try await serving(pins: [client.pin], limits: limits) { _ in
      HTTPReply(200)
    } _: { [client] port, server in
      // NIO accepts up to four at once: so many may be over the limit.
      let strangers = try await Self.connect(to: port, times: 16)
      let relay = RelayClient(identity: client)
      defer { relay.stop() }
      var request = RelayRequest("GET", "https://127.0.0.1:\(port)/", pins: [server.pin])
      request.connectSeconds = 1
      await #expect(throws: RelayError.self) { try await relay.send(request) }
      for stranger in strangers { close(stranger) }
      // Those that were closed before they were accepted may be seen only when their handshake does not come.
      request.connectSeconds = 20
      #expect(try await relay.send(request).status == 200)
    }
  }

  @Test func whatIsUnderWayIsCutOffWhenTheGatewayStops() async throws {
    var limits = PartnerServerLimits()
    limits.drainSeconds = 1
    let relay = RelayClient(identity: client)
    defer { relay.stop() }
    let (requests, coming) = AsyncStream<Void>.makeStream()
    let start = ContinuousClock.now
    let cut = NIOLockedValueBox<Task<Void, Never>?>(nil)
    try await serving(pins: [client.pin], limits: limits) { request in
      coming.yield()
      do { _ = try await request.collect(bytesMax: 1 << 30) } catch {}
      return HTTPReply(200)
    } _: { port, server in
      // Two minutes long.
      let body = RelayRequest.Body.file(offset: 0, length: 120 << 12) { room, _ in
        sleep(1)
        return min(room.count, 1 << 12)
      }
      let request = RelayRequest("PUT", "https://127.0.0.1:\(port)/", body: body, pins: [server.pin])
      cut.withLockedValue { task in
        task = Task { _ = await #expect(throws: RelayError.self) { try await relay.send(request) } }
      }
      for await _ in requests { break }
    }
    await cut.withLockedValue { $0 }?.value
    #expect(ContinuousClock.now - start < .seconds(60))
  }

  /// Begins to read what the server answers, and takes nothing more for longer than it may.
  private func expectCutOff(_ port: Int, _ server: TLSIdentity) async {
    let relay = RelayClient(identity: client)
    defer { relay.stop() }
    var request = RelayRequest("GET", "https://127.0.0.1:\(port)/", pins: [server.pin])
    let calls = NIOLockedValueBox(0)
    request.take = { _ in
      if calls.withLockedValue({ calls in (calls += 1, calls == 1).1 }) { sleep(5) }
      return true
    }
    await #expect(throws: RelayError.self) { try await relay.send(request) }
  }

  @Test func aReaderThatTakesNothingIsCutOff() async throws {
    var limits = PartnerServerLimits()
    limits.pieceSeconds = 1
    let bytes: Int64 = 256 << 20
    let (ends, ended) = AsyncStream<Int64>.makeStream()
    try await serving(pins: [client.pin], limits: limits) { _ in
      var reply = HTTPReply(200)
      reply.stream = BodyStream(bytes: bytes) { _, count in ByteBuffer(repeating: 7, count: count) }
      reply.onEnd = { ended.yield($0) }
      return reply
    } _: { port, server in
      await expectCutOff(port, server)
      let streamed = await ends.first { _ in true }
      #expect(streamed! < bytes)
    }
  }

  /// Whatever kind of reply it is that nobody takes.
  @Test func aReaderThatTakesNoAnswerIsCutOff() async throws {
    var limits = PartnerServerLimits()
    limits.pieceSeconds = 1
    try await serving(pins: [client.pin], limits: limits) { _ in
      HTTPReply(200, body: [UInt8](repeating: 7, count: 64 << 20))
    } _: { port, server in
      await expectCutOff(port, server)
    }
  }

  @Test func aPeerThatHangsEndsOnlyItsOwnRequests() async throws {
    let relay = RelayClient(identity: client)
    defer { relay.stop() }
    // Accepts, and never shakes hands.
    let silent = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    defer { close(silent) }
    try #require(listen(silent, 5) == 0)
    var address = sockaddr_in()
    var size = socklen_t(MemoryLayout<sockaddr_in>.size)
    _ = withUnsafeMutablePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { getsockname(silent, $0, &size) }
    }
    let silentPort = UInt16(bigEndian: address.sin_port)
    try await serving(pins: [client.pin]) { request in
      if request.target == "/hangs" { do { try await Task.sleep(for: .seconds(12)) } catch {} }
      return HTTPReply(200)
    } _: { port, server in
      let timedOut = 28
      let ended = NIOLockedValueBox(0)
      func fails(_ url: String, _ limit: (inout RelayRequest) -> Void) async {
        var request = RelayRequest("GET", url, pins: [server.pin])
        limit(&request)
        await #expect { try await relay.send(request) } throws: { ($0 as? RelayError)?.code == timedOut }
        ended.withLockedValue { $0 += 1 }
      }
      async let connecting: Void = fails("https://127.0.0.1:\(silentPort)/") { $0.connectSeconds = 5 }
      async let stalled: Void = fails("https://127.0.0.1:\(port)/hangs") { $0.stallSeconds = 5 }
      async let over: Void = fails("https://127.0.0.1:\(port)/hangs") { $0.totalSeconds = 5 }
      for _ in 0..<100 {
        let reply = try await relay.send(RelayRequest("GET", "https://127.0.0.1:\(port)/", pins: [server.pin]))
        #expect(reply.status == 200)
      }
      #expect(ended.withLockedValue { $0 } == 0)
      _ = await (connecting, stalled, over)
    }
  }

  @Test func aResumedSessionIsTheSamePartnerAndANewConnectionOfAStrangerIsNot() async throws {
    let relay = RelayClient(identity: client)
    defer { relay.stop() }
    try await serving(pins: [client.pin]) { request in
      // Slow enough that each request needs a connection of its own; all but the first resume its TLS session.
      do { try await Task.sleep(for: .milliseconds(300)) } catch {}
      return HTTPReply(200, body: Array(request.partner.text.utf8))
    } _: { port, server in
      let request = RelayRequest("GET", "https://127.0.0.1:\(port)/", pins: [server.pin])
      _ = try await relay.send(request)
      try await withThrowingTaskGroup { group in
        for _ in 0..<10 {
          group.addTask {
            var timed = request
            timed.totalSeconds = 10
            let reply = try await relay.send(timed)
            #expect(reply.body == Array(peer.text.utf8))
          }
        }
        try await group.waitForAll()
      }
    }
  }

  /// A resumed session is counted when it is there, and not with its first request.
  @Test func resumedConnectionsThatAskNothingCountToo() async throws {
    var limits = PartnerServerLimits()
    limits.connectionsPerPartner = 4
    let folder = try Scratch()
    let (certificate, key) = (try folder.file("c.pem", Data(client.certificatePEM.utf8)), "\(folder.path)/k.der")
    try client.keyDER.withBytes { try Data($0).write(to: URL(fileURLWithPath: key)) }
    try await serving(pins: [client.pin], limits: limits) { _ in
      HTTPReply(200)
    } _: { port, _ in
      let result = try await Task.detached {
        try Command.run(
          "/bin/bash",
          [
            "-c",
            """
            s="openssl s_client -connect 127.0.0.1:\(port) -cert \(certificate) -key \(key) -keyform DER -quiet -no_ign_eof"
            (printf 'GET / HTTP/1.1\r\nHost: x\r\n\r\n'; sleep 1) | $s -sess_out \(folder.path)/s >/dev/null 2>&1
            count() { ss -tnH state established "( sport = :\(port) )" | wc -l; }
            until_is() { for i in $(seq 50); do [ $(count) = $1 ] && break; sleep 0.1; done; }
            until_is 0
            for i in 1 2 3 4 5 6 7 8; do (sleep 8 | timeout 9 $s -sess_in \(folder.path)/s >/dev/null 2>&1) & done
            sleep 2
            until_is 4
            sleep 1
            count
            wait
            """,
          ])
      }.value
      #expect(result.lines.last == "4", "\(result.text) \(result.errors)")
    }
  }

  @Test func aPartnersWordsArePrintedAsOneLine() {
    let lie: JSON = [
      "type": .string("\(Problem.typePrefix)unavailable"), "status": 503, "detail": "\u{1b}[2K\rFORGED\nLINE\u{2028}x",
      "code": "a\nb",
    ]
    let problem = Problem(HTTPReply(503, headers: ["content-type": "application/problem+json"], body: lie.canonical))
    #expect(problem?.detail == "?[2K?FORGED?LINE?x" && problem?.code == "")
  }

  @Test func repliesAndRequestsHaveLimits() async throws {
    let relay = RelayClient(identity: client)
    defer { relay.stop() }
    try await serving(pins: [client.pin]) { request in
      do {
        return HTTPReply(200, body: [UInt8](repeating: 1, count: try await request.collect(bytesMax: 10).count * 100))
      } catch {
        return .problem(error as? Problem ?? Problem(.malformed, "\(error)"))
      }
    } _: { port, server in
      func send(_ bytes: Int, replyMax: Int = 1000) async throws -> HTTPReply {
        var request = RelayRequest(
          "PUT", "https://127.0.0.1:\(port)/", body: .bytes([UInt8](repeating: 0, count: bytes)), pins: [server.pin])
        request.replyBytesMax = replyMax
        return try await relay.send(request)
      }
      let whole = try await send(10)
      #expect(whole.body.count == 1000)
      let over = try await send(11)
      #expect(over.status == 413)
      await #expect(throws: RelayError.self) { try await send(10, replyMax: 999) }
    }
  }

  @Test func headersHaveLimits() async throws {
    let relay = RelayClient(identity: client)
    defer { relay.stop() }
    var limits = PartnerServerLimits()
    limits.headerBytes = 2048
    limits.headerCount = 16
    try await serving(pins: [client.pin], limits: limits) { _ in
      HTTPReply(200)
    } _: { port, server in
      func isServed(_ headers: [String]) async -> Bool {
        do {
          return try await relay.send(
            RelayRequest("GET", "https://127.0.0.1:\(port)/x", headers: headers, pins: [server.pin])
          ).status == 200
        } catch { return false }
      }
      let (some, many) = ((1...8).map { "X-\($0): a" }, (1...16).map { "X-\($0): a" })
      #expect(await isServed(["X-Long: \(String(repeating: "a", count: 1500))"]))
      #expect(await !isServed(["X-Long: \(String(repeating: "a", count: 2100))"]))
      #expect(await isServed(some))
      #expect(await !isServed(many))
    }
  }
}

@Suite struct RouteTests {
  static let id = TransferID().text
  static let digest = Digest(of: [1])

  @Test func theAPIIsRouted() throws {
    let id = TransferID(Self.id)!
    let routes: [(String, String, PartnerRoute)] = [
      ("GET", "/v1/card", .card),
      ("GET", "/v1/transfers", .list(after: 0, limit: 100, waitSeconds: 0, agreements: nil)),
      (
        "GET", "/v1/transfers?after=7&limit=9999&wait=99", .list(after: 7, limit: 500, waitSeconds: 30, agreements: nil)
      ),
      ("PUT", "/v1/transfers/\(Self.id)/manifest", .putManifest(id)),
      ("HEAD", "/v1/transfers/\(Self.id)/body", .bodyOffset(id)),
      ("PATCH", "/v1/transfers/\(Self.id)/body", .appendBody(id)), ("PUT", "/v1/transfers/\(Self.id)/key", .putKey(id)),
      (
        "GET", "/v1/transfers/\(Self.id)/receipts?after=received&wait=5",
        .receipts(id, after: "received", waitSeconds: 5)
      ),
      ("DELETE", "/v1/transfers/\(Self.id)", .takeBack(id)),
      ("GET", "/v1/transfers/\(Self.id)/manifest", .manifest(id)),
      ("GET", "/v1/transfers/\(Self.id)/body", .body(id)), ("GET", "/v1/transfers/\(Self.id)/tree", .tree(id)),
      ("POST", "/v1/transfers/\(Self.id)/key", .askKey(id)),
      ("GET", "/v1/transfers/\(Self.id)/package.age", .package(id)),
      ("PUT", "/v1/transfers/\(Self.id)/receipts", .putReceipts(id)), ("GET", "/", .page),
      ("GET", "/v1/openapi.json", .openAPI),
      (
        "GET", "/v1/transfers?agreements=ab",
        .list(after: 0, limit: 100, waitSeconds: 0, agreements: "ab")
      ),
      ("GET", "/v1/transfers/\(Self.id)/take-back", .getTakeBack(id)),
      ("PUT", "/v1/transfers/\(Self.id)/take-back", .putTakeBackAnswer(id)),
      ("PUT", "/v1/notices/\(Self.id)", .putNotice(id)), ("GET", "/v1/notices/\(Self.id)", .getNotice(id)),
      ("PUT", "/v1/notices/\(Self.id)/receipt", .putNoticeAnswer(id)), ("GET", "/v1/agreements", .agreements),
      ("GET", "/v1/agreements/\(Self.digest.hex)", .getAgreement(Self.digest)),
      (
        "GET", "/v1/agreements/\(Self.digest.hex)/signatures/\(Self.digest.hex)", .getAct(Self.digest, Self.digest)
      ),
    ]
    for (method, target, route) in routes { #expect(try PartnerRoute(method: method, target: target) == route) }
  }

  static let refused: [(String, String, Problem.Kind)] = [
    ("GET", "/x", .notFound), ("GET", "", .notFound), ("POST", "/", .method), ("GET", "/v1", .notFound),
    ("GET", "/v2/card", .notFound), ("GET", "/v1/admin", .notFound),
    ("GET", "/v1/transfers/x/manifest", .notFound), ("PUT", "/v1/transfers/\(id)/../card", .notFound),
    ("PUT", "/v1/transfers/\(id)/manifest/x", .notFound), ("PUT", "/v1/card", .method),
    ("POST", "/v1/transfers/\(id)/body", .method),
    ("GET", "/v1/transfers?after=-1", .malformed), ("GET", "/v1/transfers?after=1&after=2", .malformed),
    ("GET", "/v1/transfers?after", .malformed), ("GET", "/v1/transfers/\(id)", .method),
  ]

  @Test(arguments: refused) func everythingElseIsRefused(method: String, target: String, kind: Problem.Kind) {
    #expect { try PartnerRoute(method: method, target: target) } throws: { ($0 as? Problem)?.kind == kind }
  }

  @Test func problemsKeepTheirMembers() {
    for kind in Problem.Kind.allCases {
      let problem = Problem(kind, code: "some.code", "a detail")
      #expect(Problem(.problem(problem)) == problem)
    }
    #expect(Problem(HTTPReply(400, headers: ["content-type": "text/html"])) == nil)
  }

  @Test func contentDigestsAreStrict() {
    let digest = Digest(of: [1])
    #expect(ContentDigest.parse(ContentDigest.header(digest)) == digest)
    for text in ["", "sha-256=::", "sha-256=:AA==:", "md5=:AA==:", ContentDigest.header(digest) + ",x"] {
      #expect(ContentDigest.parse(text) == nil)
    }
  }
}
