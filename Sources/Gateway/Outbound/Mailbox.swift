// Mailbox: a package that waits for its recipient to come for it, with a gateway of its own or with curl.
//
//   GET  manifest, body (ranges), tree    ciphertext: as often as it likes
//   PUT  receipts      `received`         queued → custody
//   POST key           the release rule   custody → releasing → (the reply went out) → released
//   PUT  receipts      `delivered`        → confirmed
//   GET  package.age   key and body in one request, only under agreements without consent: all of the above at once
//
// A partner without a gateway signs nothing. It says `received` and `delivered` in a plain statement, or, where the agreement
// counts downloads, the bytes that went out say it; either way the record is ours, and is called `collected`.

import Foundation
import Logging
import NIOConcurrencyHelpers
import NIOCore
import Policies
import Sealing
import Store
import Transport

/// The sender's side of collecting, and a hub's for what waits there. Callable concurrently.
struct Mailbox: Sendable {
  let context: GatewayContext
  /// Called when the disk's state is unknown: the process must stop.
  let onFatal: @Sendable (any Error) -> Void
  /// Transfers whose release is being decided: one at a time each, however often it is asked for.
  private let deciding = NIOLockedValueBox<Set<TransferID>>([])

  init(context: GatewayContext, onFatal: @escaping @Sendable (any Error) -> Void) {
    self.context = context
    self.onFatal = onFatal
  }

  static let states: Set<TransferState> = [.queued, .custody, .releasing, .released, .unconfirmed]

  /// A package that waits for `partner`. Everybody else's does not exist.
  private func waiting(_ id: TransferID, for partner: AgencyID, body: Bool = false) async throws -> Transfer {
    try open(try await own(id, for: partner), body: body)
  }

  private func open(_ transfer: Transfer, body: Bool = false) throws -> Transfer {
    if body, transfer.direction == .hub, Self.states.contains(transfer.state),
      !transfer.state.needsBody(transfer.direction)
    {
      throw Problem(.gone, code: "body.received", "the body is not kept here once it is said to be received")
    }
    if Self.states.contains(transfer.state) { return transfer }
    if transfer.state.isEnd {
      throw Problem(.gone, code: "transfer.\(transfer.state.rawValue)", "this transfer has ended")
    }
    throw Problem(.unavailable, code: "transfer.held", "this transfer is held here")
  }

  private func own(_ id: TransferID, for partner: AgencyID) async throws -> Transfer {
    guard let transfer = try await found(id, for: partner) else {
      throw Problem(.notFound, "there is no such transfer")
    }
    return transfer
  }

  private func found(_ id: TransferID, for partner: AgencyID) async throws -> Transfer? {
    try await context.ledger.read { [context] in try $0.transfers(called: id, of: context.agency) }.first {
      $0.peer == partner && $0.isCollected && ($0.direction == .out || $0.direction == .hub)
    }
  }

  /// Whether `id` names a package of ours that the partner collects; else it may be one of its own to us.
  func holds(_ id: TransferID, for partner: AgencyID) async throws -> Bool { try await found(id, for: partner) != nil }

  // MARK: ciphertext

  func manifest(_ id: TransferID, _ request: PartnerRequest) async throws -> HTTPReply {
    let transfer = try await waiting(id, for: request.partner)
    return HTTPReply(
      200, headers: ["content-type": "application/json", "etag": "\"\(transfer.manifestDigest)\""],
      body: transfer.manifest)
  }

  func tree(_ id: TransferID, _ request: PartnerRequest) async throws -> HTTPReply {
    let transfer = try await waiting(id, for: request.partner, body: true)
    let roots = try await side(transfer) { try $0.segmentRoots($1, segments: $2) }
    return HTTPReply(200, headers: ["content-type": "application/octet-stream"], body: roots)
  }

  /// Something of the body's side file.
  private func side<Value: Sendable>(
    _ transfer: Transfer, _ read: @escaping @Sendable (Spool, Spool.Place, Int64) throws -> Value?
  ) async throws -> Value {
    let segments = try BodyGeometry(sealedBytes: transfer.bodyBytes).segments
    guard let value = try await context.pool.run({ [context] in try read(context.spool, transfer.place, segments) })
    else { throw try await damaged(transfer, SpoolDamage(detail: "the body's side file is missing")) }
    return value
  }

  private func file(_ transfer: Transfer) async throws -> OpenFile {
    do {
      return try await context.pool.run { [context] in try context.body(of: transfer) }
    } catch let damage as SpoolDamage {
      throw try await damaged(transfer, damage)
    }
  }

  /// What can never be handed over any more ends, where it may: no stage comes upon it.
  private func damaged(_ transfer: Transfer, _ damage: SpoolDamage) async throws -> Problem {
    context.logger.error("transfer \(transfer.id): \(damage)")
    if transfer.direction == .hub {
      try await Hub(context: context).lost(transfer)
      return Problem(.unavailable, code: "hub.lost", "the body was damaged here; its sender sends it again")
    }
    if transfer.state.mayBecome(.corrupt, .out) {
      let row = try await context.ledger.write { tx in
        let row = try tx.advance(transfer, to: .corrupt) {
          $0.code = "spool.damaged"
          $0.note = damage.detail
          $0.nextAt = nil
        }
        try tx.offer(row)
        return row
      }
      context.downloads.forget(row)
      try await context.pool.run { [context] in try Outcomes(context: context).write(row) }
    }
    return Problem(.gone, code: "transfer.corrupt", "this package was damaged here and cannot be handed over")
  }

  func body(_ id: TransferID, _ request: PartnerRequest) async throws -> HTTPReply {
    let transfer = try await waiting(id, for: request.partner, body: true)
    let digest = try await side(transfer) { try $0.bodyDigest($1, segments: $2) }
    let etag = "\"\(digest.hex)\""
    var headers = ["etag": etag]
    // At a hub it is the tree's root.
    if transfer.direction == .out { headers["repr-digest"] = ContentDigest.header(digest) }
    let range = try ByteRange(
      request.header("range"), ifRange: request.header("if-range"), etag: etag, bytes: transfer.bodyBytes)
    return try reply(
      transfer, range, of: try await file(transfer), key: [],
      headers: headers, isHead: request.method == "HEAD")
  }

  /// Bytes of `key` and the body after it.
  private func reply(
    _ transfer: Transfer, _ range: ByteRange, of file: OpenFile, key: [UInt8], headers: [String: String], isHead: Bool
  ) throws -> HTTPReply {
    let all = Int64(key.count) + transfer.bodyBytes
    var reply = HTTPReply(200, headers: headers)
    var part = 0..<all
    if case .part(let wanted) = range {
      part = wanted
      reply.status = 206
      reply.headers["content-range"] = "bytes \(part.lowerBound)-\(part.upperBound - 1)/\(all)"
    }
    reply.headers["accept-ranges"] = "bytes"
    reply.headers["content-type"] = "application/octet-stream"
    let head = Int64(key.count)
    if part.lowerBound < head { reply.body = Array(key[Int(part.lowerBound)..<Int(min(head, part.upperBound))]) }
    let body = max(0, part.lowerBound - head)..<max(0, part.upperBound - head)
    let context = context
    reply.stream = BodyStream(bytes: Int64(body.count)) { offset, count in
      try await context.pool.run {
        var piece = ByteBufferAllocator().buffer(capacity: count)
        try piece.writeWithUnsafeMutableBytes(minimumWritableBytes: count) { room in
          let target = UnsafeMutableRawBufferPointer(rebasing: room[..<count])
          guard try file.file.read(into: target, at: body.lowerBound + offset) == count else {
            throw DiskError("read", file.file.path, errno: ENODATA)
          }
          return count
        }
        return piece
      }
    }
    if !isHead, try downloadCounts(transfer) {
      // What a cut reply brought counts too: whoever resumes asks only for the rest.
      reply.onEnd = { [self] streamed in
        let sent = body.lowerBound..<body.lowerBound + streamed
        if context.downloads.add(sent, of: transfer) { await downloaded(transfer) }
      }
    }
    return reply
  }

  // MARK: the key

  /// The recipient asks for the key. Every answer that carries it is a release of its own.
  func askKey(_ id: TransferID, _ request: PartnerRequest) async throws -> HTTPReply {
    let transfer = try await waiting(id, for: request.partner)
    if transfer.direction == .hub { return try await Hub(context: context).askKey(transfer, request) }
    guard transfer.state != .queued else {
      throw Problem(.conflict, code: "key.early", "say `received` first: PUT \(Self.path(id))/receipts")
    }
    _ = try await file(transfer)
    let row = try await release(transfer)
    let head = context.sign(context.ledger.head.document, as: .head)
    var reply = HTTPReply(
      200, headers: ["content-type": "application/octet-stream", "sallyport-head": Base64.encode(head.bytes)],
      body: row.key ?? [])
    reply.onWritten = { [self] in await handedOver(row) }
    return reply
  }

  static func path(_ id: TransferID) -> String { "/v1/transfers/\(id)" }

  /// Every repeat is written down for ever, so there may not be many: the pause before one is doubled each time.
  static let repeatSeconds: TimeInterval = 5
  static let repeatSecondsMax: TimeInterval = 3600

  private func release(_ transfer: Transfer) async throws -> Transfer {
    let pause = min(Self.repeatSecondsMax, Self.repeatSeconds * pow(2, Double(min(transfer.attempts, 20))))
    guard transfer.state == .custody || context.now() >= transfer.updatedAt + pause,
      deciding.withLockedValue({ $0.insert(transfer.id).inserted })
    else {
      // Without Retry-After: it is about this transfer alone.
      throw Problem(
        .unavailable, code: "limit.releases", "the key was given already, and is given again \(Int(pause)) s after that"
      )
    }
    defer { deciding.withLockedValue { _ = $0.remove(transfer.id) } }
    switch try await Release(context: context).open(transfer) {
    case .opened(let row): return row
    case .refused(let decision):
      throw Problem(.refused, code: decision.codes.first?.rawValue ?? "release.refused", decision.sentence)
    case .withdrawn(_, let code):
      throw Problem(.gone, code: code, "this package was taken back; ask for the list again")
    case .waits(let code, let note): throw Problem(.unavailable, code: code, note)
    }
  }

  /// Key and body in one file, as stock age reads it.
  func package(_ id: TransferID, _ request: PartnerRequest) async throws -> HTTPReply {
    var transfer = try await waiting(id, for: request.partner)
    let manifest = try transfer.readManifest()
    guard transfer.direction == .out else {
      throw Problem(.conflict, code: "package.hub", "at a hub the key comes after the body")
    }
    guard context.policies.agreement(manifest.agreement.sha256)?.consent.model == Agreement.Consent.Model.none else {
      throw Problem(
        .conflict, code: "package.consent",
        "under an agreement with consent the key comes after the body: docs/COLLECT.md")
    }
    let key = transfer.key ?? []
    let etag = "\"\(transfer.manifestDigest)\""
    let range = try ByteRange(
      request.header("range"), ifRange: request.header("if-range"), etag: etag,
      bytes: Int64(key.count) + transfer.bodyBytes)
    var headers = ["etag": etag]
    headers["repr-digest"] = manifest.wholeFileSHA256.map(ContentDigest.header)
    // Only bytes of the key are a release.
    let isHead = request.method == "HEAD"
    let file = try await file(transfer)
    if case .part(let part) = range, part.lowerBound >= key.count {
      return try reply(transfer, range, of: file, key: key, headers: headers, isHead: isHead)
    }
    guard !isHead else { return try reply(transfer, range, of: file, key: key, headers: headers, isHead: true) }
    if transfer.state == .queued {
      guard !context.partners.hasGateway(request.partner) else {
        throw Problem(.conflict, code: "receipt.order", "a gateway signs `received` first")
      }
      let queued = transfer
      transfer = try await context.ledger.write { tx in
        try tx.advance(queued, to: .custody, ["evidence": "package.age"]) { $0.nextAt = nil }
      }
    }
    let row = try await release(transfer)
    var reply = try reply(row, range, of: file, key: row.key ?? [], headers: headers, isHead: false)
    reply.onWritten = { [self] in await handedOver(row) }
    return reply
  }

  /// The reply with the key went out.
  private func handedOver(_ row: Transfer) async {
    await noting(row) {
      let released = try await Release(context: context).close(row)
      if context.downloads.isWhole(released) { try await settleDownload(released) }
    }
  }

  // MARK: receipts

  /// The recipient's receipts, or, from a partner without a gateway, what it says: `{"statement": "received" | "delivered"}`.
  func putReceipts(_ id: TransferID, _ request: PartnerRequest) async throws -> HTTPReply {
    let bytes = try await request.collect(bytesMax: Self.receiptsBytesMax)
    let known = try await own(id, for: request.partner)
    if !context.partners.hasGateway(request.partner) {
      try await take(statement: bytes, of: known)
    } else {
      do {
        var reader = try DocumentReader(JSON(canonical: bytes, bytesMax: Self.receiptsBytesMax), at: "receipts")
        let envelopes = try ReceiptList.take(&reader, countMax: 3)
        try reader.finish()
        _ = try await ReceiptBook(context: context).apply(envelopes, to: known)
      } catch let error as SealingError {
        throw Problem(.malformed, code: error.code.rawValue, error.detail)
      } catch LedgerError.illegal {
        throw Problem(.conflict, code: "receipt.order", "this receipt does not fit where the transfer is")
      }
    }
    let held = try await context.ledger.read { try $0.receipts(known.sender, id) }
    return .json(200, .object(ReceiptList.document(held.map(\.bytes))))
  }

  static let receiptsBytesMax = 4 * Envelope.bytesMax

  private func take(statement bytes: [UInt8], of known: Transfer) async throws {
    let statement: Statement
    do {
      var reader = try DocumentReader(JSON(canonical: Self.typed(bytes), bytesMax: 1024), at: "statement")
      statement = try reader.choice("statement")
      try reader.finish()
    } catch {
      throw Problem(.malformed, #"expected {"statement":"received"} or {"statement":"delivered"}"#)
    }
    // Its answer may have got lost.
    if known.state == .confirmed { return }
    let transfer = try open(known)
    switch (statement, transfer.state) {
    case (.received, .queued): try await received(transfer, by: .statement)
    case (.received, _): break
    case (.delivered, .queued), (.delivered, .custody):
      throw Problem(.conflict, code: "receipt.order", "the key was not handed over yet")
    case (.delivered, _): try await confirm(transfer, by: .statement)
    }
  }

  /// People type it: spaces and line ends are free. No word in it has one.
  static func typed(_ bytes: [UInt8]) -> [UInt8] { bytes.filter { ![9, 10, 13, 32].contains($0) } }

  private enum Statement: String, CaseIterable { case received, delivered }

  private func received(_ transfer: Transfer, by evidence: Collected.Evidence) async throws {
    _ = try await context.ledger.write { tx in
      try tx.advance(transfer, to: .custody, ["evidence": .string(evidence.rawValue)]) { $0.nextAt = nil }
    }
  }

  private func confirm(_ transfer: Transfer, by evidence: Collected.Evidence) async throws {
    let context = context
    let row = try await context.ledger.write { tx in
      let record = Collected(
        id: transfer.id, sender: transfer.sender, recipient: transfer.peer,
        manifest: Digest(hex: transfer.manifestDigest)!, evidence: evidence, at: tx.at, head: tx.head)
      let envelope = context.sign(record.document, as: .collected)
      try tx.add(document: envelope, sender: transfer.sender, id: transfer.id)
      return try tx.advance(
        transfer, to: .confirmed,
        ["evidence": .string(evidence.rawValue), "collected": .string(envelope.payloadDigest.hex)]
      ) { $0.nextAt = nil }
    }
    context.downloads.forget(row)
    try await ReceiptBook(context: context).settle(row)
  }

  // MARK: take-back

  /// What the sender signed when it ended the transfer.
  func takeBack(_ id: TransferID, _ request: PartnerRequest) async throws -> HTTPReply {
    let transfer = try await own(id, for: request.partner)
    let document = try await context.ledger.read { try $0.document(transfer.sender, id, .takeBack) }
    guard transfer.state.isEnd, let document else { throw Problem(.notFound, "this transfer was not taken back") }
    return HTTPReply(200, headers: ["content-type": "application/json"], body: document.bytes)
  }

  /// The recipient's signed answer to it.
  func putTakeBackAnswer(_ id: TransferID, _ request: PartnerRequest) async throws -> HTTPReply {
    let bytes = try await request.collect(bytesMax: Envelope.bytesMax)
    let transfer = try await own(id, for: request.partner)
    do {
      try await TakeBackBook(context: context).take(bytes, about: transfer)
    } catch let error as SealingError {
      throw Problem(.malformed, code: error.code.rawValue, error.detail)
    }
    return HTTPReply(200)
  }

  // MARK: downloads that count

  /// Every byte of the body went out to the partner.
  private func downloaded(_ transfer: Transfer) async {
    await noting(transfer) {
      guard let row = try await context.ledger.read({ try $0.transfer(transfer.sender, transfer.id) }) else { return }
      try await settleDownload(row)
    }
  }

  /// Whether what goes out to the partner is all that it says of the package.
  private func downloadCounts(_ transfer: Transfer) throws -> Bool {
    guard !context.partners.hasGateway(transfer.peer) else { return false }
    return try context.policies.agreement(transfer.readManifest().agreement.sha256)?.downloadCounts ?? false
  }

  private func settleDownload(_ row: Transfer) async throws {
    guard try downloadCounts(row) else { return }
    switch row.state {
    case .queued: try await received(row, by: .download)
    // Only where the key is known to have gone out whole: `unconfirmed` may be what a cut left.
    case .released: try await confirm(row, by: .download)
    default: break
    }
  }

  /// What follows a reply that went out already can tell its failure to nobody but the log; the ledger says where it stands.
  private func noting(_ transfer: Transfer, _ body: () async throws -> Void) async {
    do {
      try await body()
    } catch LedgerError.stale {
    } catch is CancellationError {
    } catch {
      if StoreFailure(error) == .unknown { onFatal(error) }
      context.logger.error("after a download of transfer \(transfer.id): \(error)")
    }
  }

  // MARK: what the stages find

  /// A collected transfer that a stage came upon: after it was resumed, after a lease that a crash left open, or at its end.
  static func rest(_ transfer: Transfer, _ context: GatewayContext) async throws {
    guard transfer.state != .releasing else {
      // The key may have gone with a reply that was cut: the partner may ask again.
      return try await Release(context: context).leave(
        transfer, code: "receipt.late", note: "the key may have gone; the partner has not said so yet")
    }
    try await context.ledger.write { tx in
      // `received` may have come while it was held.
      let isReceived =
        try transfer.state == .queued
        && tx.reader.receipts(transfer.sender, transfer.id).contains { try Receipt($0.unverified()).kind == .received }
      if isReceived {
        try tx.advance(transfer, to: .custody) { $0.nextAt = nil }
      } else {
        try tx.amend(transfer) { $0.nextAt = nil }
      }
      try tx.offer(transfer)
    }
    context.news.lane(of: transfer.peer).mail.notify()
  }

  // MARK: the list

  /// What a partner is told about one of its packages.
  static func item(_ transfer: Transfer) -> JSON {
    var members: [String: JSON] = [
      "id": .string(transfer.id.text), "sender": .string(transfer.sender.text),
      "agreement": .string(transfer.agreement), "name": .string(transfer.name),
      "state": .string(transfer.state.isEnd ? transfer.state.rawValue : ListItem.waiting),
      "payloadBytes": .integer(transfer.payloadBytes), "bodyBytes": .integer(transfer.bodyBytes),
      "manifest": .string(transfer.manifestDigest), "since": .string(Timestamp.format(transfer.createdAt)),
    ]
    members["expiresAt"] = transfer.expiresAt.map { .string(Timestamp.format($0)) }
    if transfer.direction == .hub, transfer.key != nil { members["key"] = true }
    if transfer.state.isEnd, !transfer.code.isEmpty { members["code"] = .string(transfer.code) }
    return .object(members)
  }
}

/// Which bytes of which bodies went out, while this process runs. After a restart a download begins to count anew.
final class Downloads: Sendable {
  static let piecesMax = 1000
  private let sent = NIOLockedValueBox<[Spool.Place: RangeSet<Int64>]>([:])

  /// Adds what went out; true once it is all of the body.
  func add(_ range: Range<Int64>, of transfer: Transfer) -> Bool {
    sent.withLockedValue { all in
      var set = all[transfer.place] ?? RangeSet()
      set.insert(contentsOf: range)
      // Whoever fetches single bytes begins to count anew.
      if set.ranges.count > Self.piecesMax { set = RangeSet() }
      all[transfer.place] = set
      return set.ranges.first == 0..<transfer.bodyBytes
    }
  }

  func isWhole(_ transfer: Transfer) -> Bool {
    sent.withLockedValue { $0[transfer.place]?.ranges.first == 0..<transfer.bodyBytes }
  }

  func forget(_ transfer: Transfer) {
    sent.withLockedValue { $0[transfer.place] = nil }
  }
}
