// The HTTPS server of the partner port: HTTP/1.1 over TLS 1.3, mutual, partners known by pinned key.
//
// Each connection runs on its own event loop (a TaskExecutor), so that a fast producer never runs ahead of a slow
// socket and memory stays flat. Handlers must not block: file work goes to a BlockingPool.

import Foundation
import HTTPTypes
import HummingbirdCore
import Logging
import NIOConcurrencyHelpers
import NIOCore
import NIOHTTPTypes
import NIOPosix
import NIOSSL
import NIOTLS
import Sealing
import ServiceLifecycle

/// A request of a known partner.
package struct PartnerRequest: Sendable {
  package let partner: AgencyID
  package let method: String
  package let target: String
  /// The loop of the connection. A task that drains the body runs there: elsewhere each piece would change threads.
  package let executor: (any TaskExecutor)?
  private let fields: HTTPFields
  private let stream: RequestBody

  init(partner: AgencyID, _ request: Request, on executor: (any TaskExecutor)?) {
    self.partner = partner
    self.executor = executor
    method = request.method.rawValue
    target = request.head.path ?? ""
    fields = request.headers
    stream = request.body
  }

  /// The value of a header; nil when it is absent or stands twice.
  package func header(_ name: String) -> String? {
    guard let field = HTTPField.Name(name) else { return nil }
    let values = fields[values: field]
    return values.count == 1 ? values[0] : nil
  }

  /// The whole body.
  ///
  /// - Throws: `Problem` too-large over `bytesMax`.
  package func collect(bytesMax: Int) async throws -> [UInt8] {
    var bytes: [UInt8] = []
    for try await part in stream {
      guard bytes.count + part.readableBytes <= bytesMax else {
        throw Problem(.tooLarge, "at most \(bytesMax) bytes are taken here")
      }
      bytes += part.readableBytesView
    }
    return bytes
  }

  /// Feeds the body to `sink` as it comes; `sink` sets the pace.
  package func drain(to sink: some BodySink) async throws {
    for try await var part in stream {
      while part.readableBytes > 0 {
        let taken = part.withUnsafeReadableBytes { sink.append($0) }
        part.moveReaderIndex(forwardBy: taken)
        if sink.isFull { try await sink.flush() }
      }
    }
  }
}

/// Takes a body in pieces.
package protocol BodySink: Sendable {
  /// Copies as much as there is room for; how much.
  func append(_ bytes: UnsafeRawBufferPointer) -> Int
  var isFull: Bool { get }
  /// Makes room again. Suspends while the disk is behind.
  func flush() async throws
}

/// Limits of the partner port. Every one is tested.
package struct PartnerServerLimits: Sendable {
  package var handshakeSeconds: Int64 = 5
  /// Above the longest long poll.
  package var idleSeconds: Int64 = 75
  /// A reader that takes less than a piece of a body in this time is cut off; it may resume.
  package var pieceSeconds: Int64 = 60
  /// How long a connection may go on while the gateway stops.
  package var drainSeconds: Int64 = 5
  package var headerBytes = 16384
  package var headerCount = 64
  package var connections = 2048
  package var connectionsPerPartner = 128
  /// Of one partner; as many again may come at once after a pause.
  package var requestsPerSecond = 2000

  package init() {}
}

/// The address cannot be listened on.
package struct ListenError: Error, CustomStringConvertible {
  let address: String
  /// errno, where the system gave one.
  let reason: CInt?
  let detail: String

  package var description: String {
    "cannot listen on \(address): \(reason.map { String(cString: strerror($0)) } ?? detail). See listen in sallyport.yaml"
  }
}

/// The server as a service: listens until the graceful shutdown.
package struct PartnerServer: Service {
  package typealias Handler = @Sendable (PartnerRequest) async -> HTTPReply

  let host: String
  let port: Int
  let identity: TLSIdentity
  let limits: PartnerServerLimits
  let partner: @Sendable (Sealing.Digest) -> AgencyID?
  let handler: Handler
  let loops: ServerLoops
  let logger: Logger
  let onListening: @Sendable (Int) async -> Void

  /// - Parameters:
  ///   - port: 0 lets the system choose; `onListening` gets the real one.
  ///   - partner: the partner whose card has this pin, or nil; called with each request, must not block.
  ///   - handler: answers one request; must not block its thread.
  package init(
    host: String, port: Int, identity: TLSIdentity, limits: PartnerServerLimits = .init(),
    partner: @escaping @Sendable (Sealing.Digest) -> AgencyID?, handler: @escaping Handler,
    loops: ServerLoops, logger: Logger, onListening: @escaping @Sendable (Int) async -> Void
  ) {
    self.host = host
    self.port = port
    self.identity = identity
    self.limits = limits
    self.partner = partner
    self.handler = handler
    self.loops = loops
    self.logger = logger
    self.onListening = onListening
  }

  package func run() async throws {
    let shares = PartnerShares(limits)
    let isListening = NIOLockedValueBox(false)
    let handler = handler
    let connections = PartnerConnection(
      context: try identity.serverContext(), limits: limits, partner: partner, shares: shares,
      handler: { request in
        guard shares.mayAsk(request.partner) else {
          return .problem(
            Problem(.busy, code: "limit.requests", "too many requests at once", retryAfterSeconds: 1))
        }
        return await handler(request)
      }, loops: loops)
    let server = ServedChannel { await connections.serve($0, logger: $1) }.server(
      configuration: .init(
        address: .hostname(host, port: port),
        availableConnectionsDelegate: MaximumAvailableConnections(limits.connections)),
      onServerRunning: {
        isListening.withLockedValue { $0 = true }
        await onListening($0.localAddress?.port ?? 0)
      }, eventLoopGroup: loops.group, logger: logger)
    do {
      try await server.run()
    } catch  where !(error is CancellationError) && !isListening.withLockedValue({ $0 }) {
      throw ListenError(address: "\(host):\(port)", reason: (error as? IOError)?.errnoCode, detail: "\(error)")
    }
  }
}

/// One connection: TLS with our verification, then HTTP/1.1 bound to the partner that the pin names.
private struct PartnerConnection {
  let context: NIOSSLContext
  let limits: PartnerServerLimits
  let partner: @Sendable (Sealing.Digest) -> AgencyID?
  let shares: PartnerShares
  let handler: PartnerServer.Handler
  let loops: ServerLoops

  func serve(_ channel: any Channel, logger: Logger) async {
    // By which key the peer is known; whose it is is asked with each request, for a key may be replaced meanwhile.
    let known = NIOLockedValueBox<Sealing.Digest?>(nil)
    let http = HTTP1Channel(
      responder: { request, writer, _ in
        guard let partner = known.withLockedValue({ $0 }).flatMap(partner) else {
          channel.close(promise: nil)
          return
        }
        try await answer(
          PartnerRequest(partner: partner, request, on: loops.executor(of: channel)), isHead: request.method == .head,
          writer, on: channel)
      },
      configuration: .init(
        additionalChannelHandlers: [ContinueHandler()], idleTimeout: .seconds(limits.idleSeconds),
        httpDecoderConfiguration: .init(
          maxHeaderFieldSize: limits.headerBytes, maxHeaderListSize: limits.headerBytes,
          maxHeaderFieldCount: limits.headerCount)))
    await withTaskExecutorPreference(loops.executor(of: channel)) {
      await withGracefulShutdownHandler {
        guard (try? await secure(channel, known).get()) != nil else { return }
        await http.serve(channel, logger: logger)
      } onGracefulShutdown: {
        // Whoever is cut off goes on later from where it was.
        channel.eventLoop.scheduleTask(in: .seconds(limits.drainSeconds)) { channel.close(promise: nil) }
      }
    }
  }

  private func secure(
    _ channel: any Channel, _ known: NIOLockedValueBox<Sealing.Digest?>
  ) -> EventLoopFuture<Void> {
    channel.eventLoop.submit {
      let tls = NIOSSLServerHandler(context: context) { certificates, promise in
        // One answer for every unknown peer: the handshake fails, whatever the reason.
        guard let leaf = certificates.first, let pin = try? TLSIdentity.pin(of: leaf), let agency = partner(pin) else {
          promise.succeed(.failed)
          return
        }
        guard shares.open(agency, until: channel.closeFuture) else {
          promise.succeed(.failed)
          return
        }
        known.withLockedValue { $0 = pin }
        promise.succeed(.certificateVerified)
      }
      try channel.pipeline.syncOperations.addHandler(tls)
      try channel.pipeline.syncOperations.addHandler(
        HandshakeTimeout(.seconds(limits.handshakeSeconds)) { self.judgeResumed(channel, known) })
    }
  }

  /// A resumed TLS session brings no certificate to the callback above; the session remembers it, and it is judged, and counted, again.
  private func judgeResumed(_ channel: any Channel, _ known: NIOLockedValueBox<Sealing.Digest?>) {
    guard known.withLockedValue({ $0 == nil }) else { return }
    channel.nioSSL_peerCertificate().whenComplete { result in
      guard let leaf = try? result.get(), let pin = try? TLSIdentity.pin(of: leaf), let resumed = partner(pin),
        shares.open(resumed, until: channel.closeFuture)
      else { return channel.close(promise: nil) }
      known.withLockedValue { $0 = pin }
    }
  }

  private func answer(
    _ request: PartnerRequest, isHead: Bool, _ writer: consuming ResponseWriter, on channel: any Channel
  ) async throws {
    let reply = await handler(request)
    let streamed = NIOLockedValueBox<Int64>(0)
    let bodies = reply.stream == nil ? 0 : 1
    loops.bodies(bodies, on: channel)
    defer { loops.bodies(-bodies, on: channel) }
    do {
      try await Self.write(
        reply, isHead: isHead, to: writer, cutting: (channel, afterSeconds: limits.pieceSeconds), streamed
      ) { await loops.turn(of: channel) }
    } catch {
      await reply.onEnd?(streamed.withLockedValue { $0 })
      throw error
    }
    await reply.onEnd?(streamed.withLockedValue { $0 })
  }

  static func write(
    _ reply: HTTPReply, isHead: Bool, to writer: consuming ResponseWriter,
    cutting slow: (channel: any Channel, afterSeconds: Int64)? = nil, _ streamed: NIOLockedValueBox<Int64> = .init(0),
    turn: @escaping @Sendable () async -> Int = { ServerLoops.pieceBytesMax }
  ) async throws {
    var head = HTTPResponse(status: .init(code: reply.status))
    for (name, value) in reply.headers {
      if let field = HTTPField.Name(name) { head.headerFields[field] = value }
    }
    head.headerFields[.cacheControl] = "no-store"
    head.headerFields[.contentLength] = String(Int64(reply.body.count) + (reply.stream?.bytes ?? 0))
    let stall = slow.map { StallTimer($0.channel, seconds: $0.afterSeconds) }
    defer { stall?.stop() }
    stall?.restart()
    if isHead || (reply.body.isEmpty && reply.stream == nil) {
      try await writer.writeResponse(head)
    } else {
      try await writer.write(response: head, body: body(reply, stall, streamed, turn))
    }
  }

  private static func body(
    _ reply: HTTPReply, _ stall: StallTimer?, _ streamed: NIOLockedValueBox<Int64>,
    _ turn: @escaping @Sendable () async -> Int
  ) -> ResponseBody {
    ResponseBody { writer in
      var rest = reply.body[...]
      while !rest.isEmpty {
        let piece = rest.prefix(ServerLoops.pieceBytesMax)
        rest = rest.dropFirst(piece.count)
        stall?.restart()
        try await writer.write(ByteBuffer(bytes: piece))
      }
      guard let stream = reply.stream else {
        try await writer.finish(nil)
        await reply.onWritten?()
        return
      }
      stall?.stop()
      if !reply.body.isEmpty { await reply.onWritten?() }
      var sent: Int64 = 0
      while sent < stream.bytes {
        let piece = try await stream.read(sent, min(await turn(), Int(stream.bytes - sent)))
        sent += Int64(piece.readableBytes)
        stall?.restart()
        try await writer.write(piece)
        stall?.stop()
        streamed.withLockedValue { [sent] in $0 = sent }
      }
      try await writer.finish(nil)
    }
  }
}

/// Closes the connection of a reader that takes nothing for too long. One task uses it.
private final class StallTimer: Sendable {
  private let channel: any Channel
  private let limit: TimeAmount
  private let pending = NIOLockedValueBox<Scheduled<Void>?>(nil)

  init(_ channel: any Channel, seconds: Int64) {
    self.channel = channel
    limit = .seconds(seconds)
  }

  /// A piece is to be written from now on.
  func restart() {
    set(channel.eventLoop.scheduleTask(in: limit) { [channel] in channel.close(promise: nil) })
  }

  func stop() { set(nil) }

  private func set(_ next: Scheduled<Void>?) {
    pending.withLockedValue { present in
      present?.cancel()
      present = next
    }
  }
}

/// What one partner may take of the server, so that none takes it from the others. Callable concurrently.
private final class PartnerShares: Sendable {
  private struct Share {
    var connections = 0
    /// Requests that may come at once: refilled as time goes, at most one second's worth.
    var allowance: Double
    var at: ContinuousClock.Instant
  }

  private let limits: PartnerServerLimits
  private let shares = NIOLockedValueBox<[AgencyID: Share]>([:])

  init(_ limits: PartnerServerLimits) { self.limits = limits }

  private var fresh: Share { Share(allowance: Double(limits.requestsPerSecond), at: .now) }

  /// Counts a connection until it closes; false when the partner has its number.
  func open(_ partner: AgencyID, until closed: EventLoopFuture<Void>) -> Bool {
    let isOpen = shares.withLockedValue { all in
      var share = all[partner] ?? fresh
      guard share.connections < limits.connectionsPerPartner else { return false }
      share.connections += 1
      all[partner] = share
      return true
    }
    if isOpen { closed.whenComplete { [self] _ in shares.withLockedValue { $0[partner]?.connections -= 1 } } }
    return isOpen
  }

  func mayAsk(_ partner: AgencyID) -> Bool {
    shares.withLockedValue { all in
      var share = all[partner] ?? fresh
      let now = ContinuousClock.now
      let rate = Double(limits.requestsPerSecond)
      share.allowance = min(rate, share.allowance + (now - share.at) / .seconds(1) * rate)
      share.at = now
      defer { all[partner] = share }
      guard share.allowance >= 1 else { return false }
      share.allowance -= 1
      return true
    }
  }
}

/// Plain HTTP/1.1 over a Unix socket, for commands on this machine: whoever may open the socket is the administrator.
package struct AdminServer: Service {
  let path: String
  let handler: @Sendable (_ method: String, _ target: String, _ body: [UInt8]) async -> HTTPReply
  let loops: ServerLoops
  let logger: Logger
  package static let requestBytesMax = 1 << 20

  /// The socket file must not exist; the directory that holds it must be the gateway's alone.
  package init(
    path: String, loops: ServerLoops, logger: Logger,
    handler: @escaping @Sendable (_ method: String, _ target: String, _ body: [UInt8]) async -> HTTPReply
  ) {
    self.path = path
    self.loops = loops
    self.logger = logger
    self.handler = handler
  }

  package func run() async throws {
    let handler = handler
    let http = HTTP1Channel(
      responder: { request, writer, _ in
        var request = request
        let body = try await request.collectBody(upTo: Self.requestBytesMax)
        let (method, target) = (request.method.rawValue, request.head.path ?? "")
        // What waits for lanes would wait for ever: they stop first.
        let reply = await cancelWhenGracefulShutdown { await handler(method, target, Array(body.readableBytesView)) }
        try await PartnerConnection.write(reply, isHead: false, to: writer)
      }, configuration: .init(idleTimeout: .seconds(600)))
    try await ServedChannel { await http.serve($0, logger: $1) }.server(
      configuration: .init(address: .unixDomainSocket(path: path)), eventLoopGroup: loops.group, logger: logger
    ).run()
  }
}

/// Closes a connection whose TLS handshake does not end in time; without it such a client would also block a shutdown. Tells when it
/// ended.
private final class HandshakeTimeout: ChannelInboundHandler, RemovableChannelHandler {
  typealias InboundIn = NIOAny
  private let limit: TimeAmount
  private let onCompleted: () -> Void
  private var timer: Scheduled<Void>?

  init(_ limit: TimeAmount, onCompleted: @escaping () -> Void) {
    self.limit = limit
    self.onCompleted = onCompleted
  }

  func handlerAdded(context: ChannelHandlerContext) {
    let channel = context.channel
    timer = context.eventLoop.scheduleTask(in: limit) { channel.close(promise: nil) }
  }

  func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
    if case .handshakeCompleted? = event as? TLSUserEvent {
      timer?.cancel()
      onCompleted()
      context.fireUserInboundEventTriggered(event)
      context.pipeline.syncOperations.removeHandler(self, promise: nil)
    } else {
      context.fireUserInboundEventTriggered(event)
    }
  }

  func channelInactive(context: ChannelHandlerContext) {
    timer?.cancel()
    context.fireChannelInactive()
  }
}

/// Answers `Expect: 100-continue`, which Hummingbird does not; curl would wait a second before each upload.
private final class ContinueHandler: ChannelInboundHandler, RemovableChannelHandler {
  typealias InboundIn = HTTPRequestPart
  typealias OutboundOut = HTTPResponsePart

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    if case .head(let head) = unwrapInboundIn(data), head.headerFields[.expect]?.lowercased() == "100-continue" {
      context.writeAndFlush(wrapOutboundOut(.head(HTTPResponse(status: .continue))), promise: nil)
    }
    context.fireChannelRead(data)
  }
}
