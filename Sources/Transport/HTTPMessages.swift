// What both ends of the wire speak of: replies, problems (RFC 9457), header names, and the routes of the partner API.

import Foundation
import NIOCore
import Sealing

/// A reply, on either side.
package struct HTTPReply: Sendable {
  package var status: Int
  /// Names in lower case.
  package var headers: [String: String]
  package var body: [UInt8]
  /// What follows `body`, read while it is sent. Only on the serving side.
  package var stream: BodyStream?
  /// Called once `body` went out, before anything of `stream`; not when the connection ended before. Only on the serving side.
  package var onWritten: (@Sendable () async -> Void)?
  /// Called once, however the reply ended, with how much of `stream` went out. Only on the serving side.
  package var onEnd: (@Sendable (Int64) async -> Void)?

  package init(_ status: Int, headers: [String: String] = [:], body: [UInt8] = []) {
    self.status = status
    self.headers = headers
    self.body = body
  }

  package static func json(_ status: Int, _ document: JSON, headers: [String: String] = [:]) -> HTTPReply {
    HTTPReply(
      status, headers: headers.merging(["content-type": "application/json"]) { a, _ in a }, body: document.canonical)
  }

  package static func problem(_ problem: Problem, headers: [String: String] = [:]) -> HTTPReply {
    var headers = headers
    headers["content-type"] = "application/problem+json"
    if let seconds = problem.retryAfterSeconds { headers["retry-after"] = String(seconds) }
    if !problem.allowed.isEmpty { headers["allow"] = problem.allowed.joined(separator: ", ") }
    return HTTPReply(problem.kind.status, headers: headers, body: problem.document.canonical)
  }
}

/// A body that is read piece by piece at the pace of its reader's connection.
package struct BodyStream: Sendable {
  package let bytes: Int64
  /// `count` bytes from `offset` on, counted from the stream's beginning; suspends, and never blocks its thread.
  package let read: @Sendable (_ offset: Int64, _ count: Int) async throws -> ByteBuffer

  package init(bytes: Int64, read: @escaping @Sendable (Int64, Int) async throws -> ByteBuffer) {
    self.bytes = bytes
    self.read = read
  }
}

/// A refusal on the wire. `kind` is stable; `code` is a reason code where one applies.
package struct Problem: Error, Equatable, Sendable, CustomStringConvertible {
  package enum Kind: String, Sendable, CaseIterable {
    case malformed, digest, refused, notFound = "not-found", conflict, offset, gone, tooLarge = "too-large"
    case method, range, busy, full, unavailable, superseded

    package var status: Int {
      switch self {
      case .malformed, .digest: 400
      case .refused: 403
      case .notFound: 404
      case .method: 405
      case .conflict, .offset, .superseded: 409
      case .gone: 410
      case .tooLarge: 413
      case .range: 416
      case .busy: 429
      case .unavailable: 503
      case .full: 507
      }
    }
  }

  package static let typePrefix = "urn:sallyport:problem:"

  package let kind: Kind
  package let code: String
  package let detail: String
  package let retryAfterSeconds: Int?
  /// With `method`: what is possible in its place (RFC 9110 §15.5.6).
  package let allowed: [String]

  /// The resource is there, and takes only these methods.
  package init(allowing allowed: [String]) {
    kind = .method
    code = ""
    detail = "only \(allowed.joined(separator: ", "))"
    retryAfterSeconds = nil
    self.allowed = allowed
  }

  package init(_ kind: Kind, code: String = "", _ detail: String, retryAfterSeconds: Int? = nil) {
    self.kind = kind
    self.code = code
    self.detail = detail
    self.retryAfterSeconds = retryAfterSeconds
    allowed = []
  }

  package var document: JSON {
    var members: [String: JSON] = [
      "type": .string(Self.typePrefix + kind.rawValue), "status": .integer(Int64(kind.status)),
      "detail": .string(detail),
    ]
    if !code.isEmpty { members["code"] = .string(code) }
    return .object(members)
  }

  /// The problem in a reply of a peer; nil when it has none that is understood.
  package init?(_ reply: HTTPReply) {
    guard reply.headers["content-type"] == "application/problem+json",
      let document = try? JSON(canonical: reply.body, bytesMax: 65536), case .object(let members) = document,
      case .string(let type)? = members["type"], type.hasPrefix(Self.typePrefix),
      let kind = Kind(rawValue: String(type.dropFirst(Self.typePrefix.count)))
    else { return nil }
    var code = ""
    if case .string(let text)? = members["code"], text.utf8.count <= 64, text.isOneLine { code = text }
    var detail = ""
    if case .string(let text)? = members["detail"] {
      detail = String(decoding: text.utf8.prefix(512), as: UTF8.self).onOneLine
    }
    self.init(kind, code: code, detail, retryAfterSeconds: reply.headers["retry-after"].flatMap(Int.init))
  }

  package var description: String { "\(detail) [\(code.isEmpty ? kind.rawValue : code)]" }
}

/// The requests of the partner API that exist (docs/PROTOCOL.md).
package enum PartnerRoute: Equatable, Sendable {
  case card
  /// `agreements`: the tag that the last list had.
  case list(after: Int64, limit: Int, waitSeconds: Int, agreements: String?)
  case page
  case openAPI
  case manifest(TransferID)
  case putManifest(TransferID)
  case bodyOffset(TransferID)
  case appendBody(TransferID)
  case body(TransferID)
  case tree(TransferID)
  case putKey(TransferID)
  case askKey(TransferID)
  case package(TransferID)
  case receipts(TransferID, after: String, waitSeconds: Int)
  case putReceipts(TransferID)
  case takeBack(TransferID)
  case getTakeBack(TransferID)
  case putTakeBackAnswer(TransferID)
  case agreements
  case getAgreement(Digest)
  case putAgreement(Digest)
  /// An agreement, and one act over it.
  case getAct(Digest, Digest)
  case putAct(Digest)
  case putNotice(TransferID)
  case getNotice(TransferID)
  case putNoticeAnswer(TransferID)

  package static let waitSecondsMax = 30
  package static let listLimitMax = 500

  /// The route of a method and a target such as `/v1/transfers/ID/body?x=y`.
  ///
  /// - Throws: `Problem` not-found or method; malformed for a query that cannot be read.
  package init(method: String, target: String) throws(Problem) {
    let halves = target.split(separator: "?", maxSplits: 1, omittingEmptySubsequences: false)
    let parts = halves[0].split(separator: "/", omittingEmptySubsequences: false).dropFirst().map(String.init)
    let query = try Self.query(halves.count > 1 ? halves[1] : "")
    func number(_ name: String, _ fallback: Int64, max: Int64) throws(Problem) -> Int64 {
      guard let text = query[name] else { return fallback }
      guard let value = Int64(text), value >= 0 else { throw Problem(.malformed, "\(name): expected a whole number") }
      return min(value, max)
    }
    let unknown = Problem(.notFound, "there is nothing here")
    func choose(_ routes: KeyValuePairs<String, PartnerRoute>) throws(Problem) -> PartnerRoute {
      guard let route = routes.first(where: { $0.key == method }) else { throw Problem(allowing: routes.map(\.key)) }
      return route.value
    }
    if parts == [""] {
      self = try choose(["GET": .page, "HEAD": .page])
      return
    }
    guard parts.first == "v1", parts.count >= 2 else { throw unknown }
    switch (parts[1], parts.count) {
    case ("openapi.json", 2): self = try choose(["GET": .openAPI])
    case ("card", 2): self = try choose(["GET": .card])
    case ("transfers", 2):
      let list = PartnerRoute.list(
        after: try number("after", 0, max: JSON.integerMax),
        limit: Int(try number("limit", 100, max: Int64(Self.listLimitMax))),
        waitSeconds: Int(try number("wait", 0, max: Int64(Self.waitSecondsMax))), agreements: query["agreements"])
      self = try choose(["GET": list])
    case ("transfers", 3...4):
      guard let id = TransferID(parts[2]) else { throw unknown }
      switch parts.count == 4 ? parts[3] : "" {
      case "" where parts.count == 3: self = try choose(["DELETE": .takeBack(id)])
      case "manifest": self = try choose(["GET": .manifest(id), "PUT": .putManifest(id)])
      case "body": self = try choose(["HEAD": .bodyOffset(id), "GET": .body(id), "PATCH": .appendBody(id)])
      case "tree": self = try choose(["GET": .tree(id)])
      case "key": self = try choose(["PUT": .putKey(id), "POST": .askKey(id)])
      case "take-back": self = try choose(["GET": .getTakeBack(id), "PUT": .putTakeBackAnswer(id)])
      case "package.age": self = try choose(["GET": .package(id), "HEAD": .package(id)])
      case "receipts":
        let wait = Int(try number("wait", 0, max: Int64(Self.waitSecondsMax)))
        self = try choose([
          "GET": .receipts(id, after: query["after"] ?? "", waitSeconds: wait), "PUT": .putReceipts(id),
        ])
      default: throw unknown
      }
    case ("agreements", 2): self = try choose(["GET": .agreements])
    case ("agreements", 3):
      guard let digest = Digest(hex: parts[2]) else { throw unknown }
      self = try choose(["GET": .getAgreement(digest), "PUT": .putAgreement(digest)])
    case ("agreements", 5):
      guard let digest = Digest(hex: parts[2]), parts[3] == "signatures", let act = Digest(hex: parts[4]) else {
        throw unknown
      }
      self = try choose(["GET": .getAct(digest, act), "PUT": .putAct(digest)])
    case ("notices", 3):
      guard let id = TransferID(parts[2]) else { throw unknown }
      self = try choose(["GET": .getNotice(id), "PUT": .putNotice(id)])
    case ("notices", 4):
      guard let id = TransferID(parts[2]), parts[3] == "receipt" else { throw unknown }
      self = try choose(["PUT": .putNoticeAnswer(id)])
    default: throw unknown
    }
  }

  private static func query(_ text: Substring) throws(Problem) -> [String: String] {
    var query: [String: String] = [:]
    for pair in text.split(separator: "&") {
      let sides = pair.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
      guard sides.count == 2, query.updateValue(String(sides[1]), forKey: String(sides[0])) == nil else {
        throw Problem(.malformed, "the query cannot be read")
      }
    }
    return query
  }
}

/// RFC 9530 Content-Digest with sha-256.
package enum ContentDigest {
  package static func header(_ digest: Digest) -> String { "sha-256=:\(Base64.encode(digest.bytes)):" }

  /// nil unless the header is exactly one sha-256 member.
  package static func parse(_ header: String) -> Digest? {
    guard header.hasPrefix("sha-256=:"), header.hasSuffix(":"),
      let bytes = Base64.decode(String(header.dropFirst(9).dropLast())), bytes.count == Digest.byteCount
    else { return nil }
    return Digest(bytes)
  }
}
