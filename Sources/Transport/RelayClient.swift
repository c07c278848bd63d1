// The relay: many transfers at once over libcurl's multi interface, driven by one thread of its own.
//
// All libcurl state belongs to that thread. Callers hand over a request, wake the thread (curl_multi_wakeup, the one
// call that any thread may make), and suspend. Connections are reused; a dead peer holds only its own requests.

import CCurl
import Foundation
import Sealing

/// One request to a partner.
package struct RelayRequest: Sendable {
  package enum Body: Sendable {
    case none
    case bytes([UInt8])
    /// `length` bytes of a file from `offset`: `read` fills a buffer from there on, and says with how many bytes. It runs
    /// on the client's own thread: all requests wait for it. What it throws ends the request, and is what the caller gets.
    case file(offset: Int64, length: Int64, read: @Sendable (UnsafeMutableRawBufferPointer, Int64) throws -> Int)
  }

  package var method: String
  /// `https://host:port` from a signed card, and a path of ours.
  package var url: String
  package var headers: [String]
  package var body: Body
  /// The peer's TLS key must be one of these (SHA-256 of the SPKI); nothing else about its certificate counts.
  package var pins: [Digest]
  package var connectSeconds: Int = 10
  /// Below 1 KiB/s for so long, the request fails.
  package var stallSeconds: Int = 30
  /// The whole exchange fails after so long; 0 for no limit.
  package var totalSeconds: Int = 0
  package var replyBytesMax: Int = 1 << 20
  /// Takes the body of a reply 200 or 206 as it comes, on the client's own thread, in place of `HTTPReply.body`; false ends the
  /// exchange (curl 23). It may block, and holds up the other requests of this client while it does.
  package var take: (@Sendable (UnsafeRawBufferPointer) -> Bool)?
  /// A Unix socket instead of TCP and TLS: commands on this machine.
  package var socket: String?

  package init(_ method: String, _ url: String, headers: [String] = [], body: Body = .none, pins: [Digest]) {
    self.method = method
    self.url = url
    self.headers = headers
    self.body = body
    self.pins = pins
  }
}

/// The exchange failed below HTTP. Always worth another try, later.
package struct RelayError: Error, Equatable, Sendable, CustomStringConvertible {
  package let code: Int
  package let detail: String
  /// The peer answered TLS with a key that is not pinned, or refused ours.
  package var isIdentity: Bool { [35, 58, 60, 90].contains(code) }
  package var description: String { "\(detail) [curl \(code)]" }
}

/// A libcurl engine. Callable concurrently.
package final class RelayClient: @unchecked Sendable {
  // Proof for @unchecked: `inbox` and `isStopping` are touched only under `lock`; `multi` is used by the thread alone,
  // but for curl_multi_wakeup.
  private let lock = NSLock()
  private var inbox: [Message] = []
  private var isStopping = false
  private var hasEnded = false
  private let multi: OpaquePointer
  private let identity: TLSIdentity?

  /// Connections to one origin for bulk: uploads of `bulkBytesMin` and more, and replies that are taken as they come.
  package static let bulkConnectionsPerHostMax = 16
  /// And for all else: a key or a take-back waits behind no body.
  package static let smallConnectionsPerHostMax = 24
  package static let bulkBytesMin: Int64 = 1 << 16
  /// To all origins: of fifty that hang at once, none holds up another.
  package static let connectionsMax = 2048
  /// libcurl may still be closing so many beyond ours.
  private static let closingMax = 8

  private enum Message {
    case start(Exchange)
    case cancel(UInt64)
  }

  /// - Parameter identity: our TLS key; nil for a client of the admin socket.
  package init(identity: TLSIdentity?) {
    curl_global_init(Int(CURL_GLOBAL_DEFAULT))
    multi = OpaquePointer(curl_multi_init())
    self.identity = identity
    sp_curl_multi_set_long(
      handle, CURLMOPT_MAX_HOST_CONNECTIONS,
      Self.smallConnectionsPerHostMax + Self.bulkConnectionsPerHostMax + Self.closingMax)
    sp_curl_multi_set_long(handle, CURLMOPT_MAX_TOTAL_CONNECTIONS, Self.connectionsMax)
    let thread = Thread { [self] in serve() }
    thread.name = "relay"
    thread.start()
  }

  private var handle: UnsafeMutableRawPointer { UnsafeMutableRawPointer(multi) }

  /// Sends one request and collects its reply.
  ///
  /// - Throws: `RelayError`; CancellationError when the task was cancelled or the client stopped.
  package func send(_ request: RelayRequest) async throws -> HTTPReply {
    let id = UInt64.random(in: .min ... .max)
    return try await withTaskCancellationHandler {
      try await withCheckedThrowingContinuation { continuation in
        post(.start(Exchange(id: id, request: request, continuation: continuation)))
        // Cancelled before: its handler ran when there was nothing to cancel.
        if Task.isCancelled { post(.cancel(id)) }
      }
    } onCancel: {
      post(.cancel(id))
    }
  }

  /// Ends the thread; requests under way fail with CancellationError.
  package func stop() {
    lock.withLock {
      isStopping = true
      if !hasEnded { curl_multi_wakeup(handle) }
    }
  }

  private func post(_ message: Message) {
    let isLate = lock.withLock {
      guard !hasEnded else { return true }
      inbox.append(message)
      curl_multi_wakeup(handle)
      return false
    }
    if isLate { refuse([message]) }
  }

  private func refuse(_ messages: [Message]) {
    for case .start(let exchange) in messages { exchange.continuation.resume(throwing: CancellationError()) }
  }

  // MARK: the relay thread

  /// libcurl starts a new request before one that waits for a connection, so it is never given more than it has
  /// connections for: what waits, waits here, in order.
  private struct Lanes {
    var running: [UnsafeMutableRawPointer: Exchange] = [:]
    var pool: [UnsafeMutableRawPointer] = []
    var active: [Exchange.Line: Int] = [:]
    var waiting: [Exchange.Line: [Exchange]] = [:]

    func hasRoom(_ line: Exchange.Line) -> Bool {
      active[line, default: 0] < (line.isBulk ? bulkConnectionsPerHostMax : smallConnectionsPerHostMax)
    }
  }

  private func serve() {
    var lanes = Lanes()
    while true {
      let (messages, stop) = lock.withLock {
        defer { inbox.removeAll(keepingCapacity: true) }
        return (inbox, isStopping)
      }
      for message in messages {
        switch message {
        case .start(let exchange): begin(exchange, &lanes)
        case .cancel(let id): cancel(id, &lanes)
        }
      }
      if stop { break }
      var active: Int32 = 0
      curl_multi_perform(handle, &active)
      var left: Int32 = 0
      while let message = curl_multi_info_read(handle, &left) {
        guard message.pointee.msg == CURLMSG_DONE, let easy = message.pointee.easy_handle,
          let exchange = lanes.running[easy]
        else { continue }
        finish(easy, exchange, exchange.outcome(easy, message.pointee.data.result), &lanes)
      }
      curl_multi_poll(handle, nil, 0, 1000, nil)
    }
    for (easy, exchange) in lanes.running { finish(easy, exchange, .failure(CancellationError()), &lanes, next: false) }
    for exchange in lanes.waiting.values.joined() { exchange.continuation.resume(throwing: CancellationError()) }
    for easy in lanes.pool { curl_easy_cleanup(easy) }
    // From here nobody wakes the handle.
    refuse(
      lock.withLock {
        hasEnded = true
        return inbox
      })
    curl_multi_cleanup(handle)
  }

  private func begin(_ exchange: Exchange, _ lanes: inout Lanes) {
    // Time spent waiting counts: what may only be sent within a lease is not sent after it.
    guard exchange.secondsLeft != 0 else {
      exchange.continuation.resume(throwing: RelayError(code: 28, detail: "no connection was free in time"))
      beginNext(exchange.line, &lanes)
      return
    }
    guard lanes.hasRoom(exchange.line) else {
      lanes.waiting[exchange.line, default: []].append(exchange)
      return
    }
    lanes.active[exchange.line, default: 0] += 1
    let easy = lanes.pool.popLast() ?? curl_easy_init()!
    exchange.prepare(easy, identity: identity)
    lanes.running[easy] = exchange
    curl_multi_add_handle(handle, easy)
  }

  private func cancel(_ id: UInt64, _ lanes: inout Lanes) {
    if let (easy, exchange) = lanes.running.first(where: { $0.value.id == id }) {
      finish(easy, exchange, .failure(CancellationError()), &lanes)
      return
    }
    for (line, queue) in lanes.waiting {
      guard let place = queue.firstIndex(where: { $0.id == id }) else { continue }
      lanes.waiting[line]?.remove(at: place).continuation.resume(throwing: CancellationError())
    }
  }

  private func finish(
    _ easy: UnsafeMutableRawPointer, _ exchange: Exchange, _ outcome: Result<HTTPReply, any Error>,
    _ lanes: inout Lanes,
    next: Bool = true
  ) {
    curl_multi_remove_handle(handle, easy)
    lanes.running[easy] = nil
    lanes.active[exchange.line, default: 1] -= 1
    // Drops every pointer into the finished exchange before the handle is used again.
    curl_easy_reset(easy)
    exchange.release()
    lanes.pool.append(easy)
    exchange.continuation.resume(with: outcome)
    if next { beginNext(exchange.line, &lanes) }
  }

  private func beginNext(_ line: Exchange.Line, _ lanes: inout Lanes) {
    guard lanes.hasRoom(line), lanes.waiting[line]?.isEmpty == false,
      let first = lanes.waiting[line]?.removeFirst()
    else { return }
    begin(first, &lanes)
  }
}

/// One request under way; used by the relay thread alone.
private final class Exchange: @unchecked Sendable {
  // Proof for @unchecked: made by a caller, then handed to the relay thread, which alone touches it.
  let id: UInt64
  let continuation: CheckedContinuation<HTTPReply, any Error>
  private let request: RelayRequest
  private let asked = ContinuousClock.now
  private var headerList: UnsafeMutablePointer<curl_slist>?
  fileprivate var sent = 0
  private var reply = HTTPReply(0)
  /// From the status line: known before the body comes.
  private var status = 0
  /// A signed ledger head with a post-quantum signature has some 5 KB.
  private static let headerBytesMax = 8192
  private var isOverLimit = false
  /// Why the body could not be read.
  private var failure: (any Error)?

  /// What shares connections.
  struct Line: Hashable {
    /// `https://host:port`.
    let origin: String
    let isBulk: Bool
  }
  let line: Line

  init(id: UInt64, request: RelayRequest, continuation: CheckedContinuation<HTTPReply, any Error>) {
    self.id = id
    self.request = request
    self.continuation = continuation
    let isBulk =
      switch request.body {
      case .bytes(let bytes): bytes.count >= RelayClient.bulkBytesMin
      case .file(_, let length, _): length >= RelayClient.bulkBytesMin
      case .none: request.take != nil
      }
    line = Line(
      origin: request.url.split(separator: "/", maxSplits: 3).prefix(2).joined(separator: "//"), isBulk: isBulk)
  }

  /// What is left of `totalSeconds`, at least 1; 0 when it is over; nil without a limit.
  var secondsLeft: Int? {
    guard request.totalSeconds > 0 else { return nil }
    let left = Double(request.totalSeconds) - (ContinuousClock.now - asked) / .seconds(1)
    return left <= 0 ? 0 : max(1, Int(left))
  }

  func prepare(_ easy: UnsafeMutableRawPointer, identity: TLSIdentity?) {
    let me = Unmanaged.passUnretained(self).toOpaque()
    sp_curl_set_string(easy, CURLOPT_URL, request.url)
    sp_curl_set_long(easy, CURLOPT_NOSIGNAL, 1)
    // A name that nobody answers for must not hold up the thread when its request ends.
    sp_curl_set_long(easy, CURLOPT_QUICK_EXIT, 1)
    sp_curl_set_long(easy, CURLOPT_FOLLOWLOCATION, 0)
    sp_curl_set_string(easy, CURLOPT_PROXY, "")
    sp_curl_set_long(easy, CURLOPT_HTTP_VERSION, 2)  // CURL_HTTP_VERSION_1_1
    sp_curl_set_long(easy, CURLOPT_CONNECTTIMEOUT, request.connectSeconds)
    sp_curl_set_long(easy, CURLOPT_LOW_SPEED_LIMIT, 1024)
    sp_curl_set_long(easy, CURLOPT_LOW_SPEED_TIME, request.stallSeconds)
    sp_curl_set_long(easy, CURLOPT_TIMEOUT, secondsLeft ?? 0)
    if line.isBulk { sp_curl_set_long(easy, CURLOPT_UPLOAD_BUFFERSIZE, 1 << 20) }
    if let socket = request.socket {
      sp_curl_set_string(easy, CURLOPT_PROTOCOLS_STR, "http")
      sp_curl_set_string(easy, CURLOPT_UNIX_SOCKET_PATH, socket)
    } else {
      sp_curl_set_string(easy, CURLOPT_PROTOCOLS_STR, "https")
      prepareTLS(easy, identity)
    }
    headerList = curl_slist_append(nil, "Expect:")
    for header in request.headers { headerList = curl_slist_append(headerList, header) }
    sp_curl_set_list(easy, CURLOPT_HTTPHEADER, headerList)
    if request.method == "HEAD" {
      sp_curl_set_long(easy, CURLOPT_NOBODY, 1)
    } else {
      sp_curl_set_string(easy, CURLOPT_CUSTOMREQUEST, request.method)
    }
    switch request.body {
    case .none: break
    case .bytes(let bytes): prepareUpload(easy, me, Int64(bytes.count))
    case .file(_, let length, _): prepareUpload(easy, me, length)
    }
    sp_curl_set_io(easy, CURLOPT_WRITEFUNCTION) { data, size, count, me in
      Unmanaged<Exchange>.fromOpaque(me!).takeUnretainedValue().take(
        UnsafeRawBufferPointer(start: data, count: size * count))
    }
    sp_curl_set_pointer(easy, CURLOPT_WRITEDATA, me)
    sp_curl_set_io(easy, CURLOPT_HEADERFUNCTION) { data, size, count, me in
      Unmanaged<Exchange>.fromOpaque(me!).takeUnretainedValue().takeHeader(
        UnsafeRawBufferPointer(start: data, count: size * count))
      return size * count
    }
    sp_curl_set_pointer(easy, CURLOPT_HEADERDATA, me)
  }

  private func prepareTLS(_ easy: UnsafeMutableRawPointer, _ identity: TLSIdentity?) {
    sp_curl_set_long(easy, CURLOPT_SSLVERSION, 7)  // CURL_SSLVERSION_TLSv1_3
    // The pin is the whole judgement; libcurl checks it with the chain's verification off.
    sp_curl_set_long(easy, CURLOPT_SSL_VERIFYPEER, 0)
    sp_curl_set_long(easy, CURLOPT_SSL_VERIFYHOST, 0)
    // An empty list would pin nothing, so it becomes a pin that no key has.
    let pins = request.pins.isEmpty ? [Digest(of: [])] : request.pins
    let text = pins.map { "sha256//\(Base64.encode($0.bytes))" }.joined(separator: ";")
    // The only judgement there is: a libcurl that cannot pin must not connect.
    precondition(sp_curl_set_string(easy, CURLOPT_PINNEDPUBLICKEY, text) == CURLE_OK, "libcurl cannot pin public keys")
    guard let identity else { return }
    let certificate = Array(identity.certificatePEM.utf8)
    sp_curl_set_string(easy, CURLOPT_SSLCERTTYPE, "PEM")
    sp_curl_set_blob(easy, CURLOPT_SSLCERT_BLOB, certificate, certificate.count)
    sp_curl_set_string(easy, CURLOPT_SSLKEYTYPE, "DER")
    identity.keyDER.withBytes { _ = sp_curl_set_blob(easy, CURLOPT_SSLKEY_BLOB, $0.baseAddress, $0.count) }
  }

  private func prepareUpload(_ easy: UnsafeMutableRawPointer, _ me: UnsafeMutableRawPointer, _ length: Int64) {
    sp_curl_set_long(easy, CURLOPT_UPLOAD, 1)
    sp_curl_set_off(easy, CURLOPT_INFILESIZE_LARGE, Int(length))
    sp_curl_set_io(easy, CURLOPT_READFUNCTION) { buffer, size, count, me in
      Unmanaged<Exchange>.fromOpaque(me!).takeUnretainedValue().give(
        UnsafeMutableRawBufferPointer(start: buffer, count: size * count))
    }
    sp_curl_set_pointer(easy, CURLOPT_READDATA, me)
    // A kept connection may turn out to be dead after some bytes went; libcurl then begins again on a new one.
    sp_curl_set_seek(easy) { me, offset, origin in
      guard origin == SEEK_SET else { return CURL_SEEKFUNC_CANTSEEK }
      Unmanaged<Exchange>.fromOpaque(me!).takeUnretainedValue().sent = Int(offset)
      return CURL_SEEKFUNC_OK
    }
    sp_curl_set_pointer(easy, CURLOPT_SEEKDATA, me)
  }

  func release() {
    curl_slist_free_all(headerList)
    headerList = nil
  }

  private func take(_ data: UnsafeRawBufferPointer) -> Int {
    if let take = request.take, status == 200 || status == 206 { return take(data) ? data.count : 0 }
    guard reply.body.count + data.count <= request.replyBytesMax else {
      isOverLimit = true
      return 0
    }
    reply.body += data
    return data.count
  }

  private func takeHeader(_ data: UnsafeRawBufferPointer) {
    if data.starts(with: "HTTP/".utf8) {
      reply.headers = [:]  // an interim reply (100) came before
      status = Int(String(decoding: data.dropFirst(9).prefix(3), as: UTF8.self)) ?? 0
    } else if let colon = data.firstIndex(of: UInt8(ascii: ":")), reply.headers.count < 64 {
      // RFC 9110 §5.1: names are ASCII, in any case; §5.5: white space around a value is no part of it.
      let name = data[..<colon].map { (65...90).contains($0) ? $0 | 32 : $0 }
      let isSpace: (UInt8) -> Bool = { $0 == 32 || (9...13).contains($0) }
      let value = data[(colon + 1)...].drop(while: isSpace).reversed().drop(while: isSpace).reversed()
      reply.headers[String(decoding: name, as: UTF8.self)] = String(
        decoding: value.prefix(Self.headerBytesMax), as: UTF8.self)
    }
  }

  private func give(_ buffer: UnsafeMutableRawBufferPointer) -> Int {
    switch request.body {
    case .none: return 0
    case .bytes(let bytes):
      let count = min(buffer.count, bytes.count - sent)
      buffer.copyBytes(from: bytes[sent..<(sent + count)])
      sent += count
      return count
    case .file(let offset, let length, let read):
      let count = min(buffer.count, Int(length) - sent)
      guard count > 0 else { return 0 }
      let room = UnsafeMutableRawBufferPointer(rebasing: buffer[..<count])
      // A short file would end the request early and lie about its length.
      do {
        let got = try read(room, offset + Int64(sent))
        guard got > 0 else { return Int(CURL_READFUNC_ABORT) }
        sent += got
        return got
      } catch {
        failure = error
        return Int(CURL_READFUNC_ABORT)
      }
    }
  }

  func outcome(_ easy: UnsafeMutableRawPointer, _ result: CURLcode) -> Result<HTTPReply, any Error> {
    guard result == CURLE_OK else {
      if let failure { return .failure(failure) }
      let detail =
        isOverLimit ? "the reply is over \(request.replyBytesMax) bytes" : String(cString: curl_easy_strerror(result))
      return .failure(RelayError(code: Int(result.rawValue), detail: detail))
    }
    var status = 0
    sp_curl_get_long(easy, CURLINFO_RESPONSE_CODE, &status)
    reply.status = status
    return .success(reply)
  }
}
