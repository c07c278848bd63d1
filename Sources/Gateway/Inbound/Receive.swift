// Receive: manifest, body and key as a sender's gateway, or a hub before it, puts them. Ciphertext only; nothing is opened here.
//
//   PUT manifest   Admission, or as a hub Hub
//   PATCH body     from the durable offset on; the newest request wins; whole: the root is checked, then the body is received, or kept
//   PUT key        after the whole body
//   DELETE         a signed take-back; later parts get 410
//
// Every part may be repeated: the same document is answered with the receipts that stand, as success.

import Foundation
import Logging
import NIOConcurrencyHelpers
import Policies
import Sealing
import Store
import Transport

struct Receive: Sendable {
  let context: GatewayContext

  private var sessions: Sessions { context.sessions }
  private var hub: Hub { Hub(context: context) }
  private var admission: Admission { Admission(context: context) }

  // MARK: manifest

  func putManifest(_ id: TransferID, _ request: PartnerRequest) async throws -> HTTPReply {
    let bytes = try await request.collect(bytesMax: Envelope.bytesMax)
    let (manifest, envelope) = try admission.verified(bytes, id, from: request.partner)
    let between = hub.agreement(for: manifest)
    if between == nil { try admission.requireOurs(manifest) }
    if let known = try await context.ledger.read({ try $0.transfer(manifest.sender, id) }) {
      guard known.manifestDigest == envelope.payloadDigest.hex else {
        throw Problem(.conflict, "another manifest was sent under this id")
      }
      return try await standing(known)
    }
    if let between {
      try await hub.admit(manifest, envelope, under: between)
    } else if let (code, sentence, receipt) = try await admission.admit(
      manifest, envelope, from: request.partner, by: .relay)
    {
      return Self.refusal(code, sentence, receipt)
    }
    return HTTPReply.json(201, .object(ReceiptList.document([])), headers: ["upload-offset": "0"])
  }

  private static func refusal(_ code: String, _ detail: String, _ receipt: Envelope?) -> HTTPReply {
    var reply = HTTPReply.problem(Problem(.refused, code: code, detail))
    guard let receipt, case .object(var members) = Problem(.refused, code: code, detail).document else { return reply }
    members["receipt"] = .string(String(decoding: receipt.bytes, as: UTF8.self))
    reply.body = JSON.object(members).canonical
    return reply
  }

  /// What stands about a known transfer: its receipts, or where to go on, or that it is gone.
  private func standing(_ transfer: Transfer) async throws -> HTTPReply {
    let receipts = try await context.ledger.read { try $0.receipts(transfer.sender, transfer.id) }
    switch transfer.state {
    case .cancelled, .expired:
      throw Problem(.gone, code: "transfer.\(transfer.state.rawValue)", "this transfer was ended")
    case .held: throw Problem(.unavailable, code: "transfer.held", "this transfer is held here")
    case .refused, .quarantined:
      return Self.refusal(transfer.code, "this package was refused", receipts.last)
    default:
      let offset = transfer.state == .receiving ? durable(transfer) : transfer.bodyBytes
      return HTTPReply.json(
        200, .object(ReceiptList.document(receipts.map(\.bytes))), headers: ["upload-offset": String(offset)])
    }
  }

  private func durable(_ transfer: Transfer) -> Int64 { sessions.durableBytes(transfer) ?? transfer.durableBytes }

  /// The transfer that `request`'s partner sends, or brings as a hub; anybody else's does not exist.
  private func own(_ id: TransferID, _ request: PartnerRequest) async throws -> Transfer {
    let partner = request.partner
    let found = try await context.ledger.read { try $0.transfers(called: id, of: partner) }.first {
      $0.direction == .in && $0.link == partner || $0.direction == .hub && $0.sender == partner
    }
    guard let found else { throw Problem(.notFound, "there is no such transfer") }
    return found
  }

  /// The same, of those whose parts are put.
  private func relayed(_ id: TransferID, _ request: PartnerRequest) async throws -> Transfer {
    let transfer = try await own(id, request)
    guard !transfer.isCollected || transfer.direction == .hub else {
      throw Problem(.conflict, code: "delivery.mode", "this one is collected")
    }
    return transfer
  }

  // MARK: body

  func bodyOffset(_ id: TransferID, _ request: PartnerRequest) async throws -> HTTPReply {
    let transfer = try await own(id, request)
    let offset = transfer.state == .receiving ? durable(transfer) : transfer.bodyBytes
    return HTTPReply(200, headers: ["upload-offset": String(offset), "upload-length": String(transfer.bodyBytes)])
  }

  func appendBody(_ id: TransferID, _ request: PartnerRequest) async throws -> HTTPReply {
    guard let offset = request.header("upload-offset").flatMap(Int64.init), offset >= 0 else {
      throw Problem(.malformed, "Upload-Offset: expected a whole number")
    }
    var digest: Digest?
    if let header = request.header("content-digest") {
      guard let parsed = ContentDigest.parse(header) else {
        throw Problem(.malformed, "Content-Digest: expected one sha-256")
      }
      digest = parsed
    }
    let first = try await relayed(id, request)
    guard first.state == .receiving else { return try await standing(first) }
    let expected = digest
    // The request itself runs in a task of its own, so that a newer one can stop it.
    let work = Work()
    let (ticket, open) = try await sessions.take(first) { work.cancel() }
    let task = Task(executorPreference: request.executor) { () async throws -> HTTPReply in
      do {
        return try await append(first, request, offset, expected, ticket, open)
      } catch LedgerError.stale(let what) {
        try await context.discardBodyIfEnded(of: first)
        throw LedgerError.stale(what)
      }
    }
    work.set(task)
    return try await withTaskCancellationHandler {
      try await task.value
    } onCancel: {
      task.cancel()
    }
  }

  private func append(
    _ known: Transfer, _ request: PartnerRequest, _ offset: Int64, _ digest: Digest?, _ ticket: UInt64,
    _ open: ReceivingBody?
  ) async throws -> HTTPReply {
    var keep: ReceivingBody?
    defer { sessions.leave(known, ticket, keeping: keep) }
    let transfer = try await own(known.id, request)
    guard transfer.state == .receiving else { return try await standing(transfer) }
    let body = if let open { open } else { try await ReceivingBody.open(context, transfer) }
    guard offset == body.durableBytes else {
      keep = body
      return HTTPReply.problem(
        Problem(.offset, "this body goes on at \(body.durableBytes)"),
        headers: ["upload-offset": String(body.durableBytes)])
    }
    body.begin(expecting: digest)
    do {
      try await request.drain(to: body)
      try await body.settle(from: offset)
    } catch {
      // The connection was cut, or a newer request came: what is here is made durable for the next one.
      let cause = error
      do {
        if !(cause is Problem) { try await Task { try await body.settle(from: offset, isCut: true) }.value }
        try await body.remember()
      } catch {
        // The disk failed, or the transfer has ended meanwhile: what comes next opens the part anew.
        await body.abandon()
        throw error
      }
      keep = body
      throw Task.isCancelled ? Problem(.superseded, "a newer request took over") : cause
    }
    guard body.isComplete else {
      try await body.remember()
      keep = body
      return HTTPReply(204, headers: ["upload-offset": String(body.durableBytes)])
    }
    // Whole: nothing goes on from it, whatever it is.
    return try await complete(transfer, body)
  }

  private func complete(_ transfer: Transfer, _ body: ReceivingBody) async throws -> HTTPReply {
    let manifest = try transfer.readManifest()
    guard body.treeRoot == manifest.bodyTreeRoot else {
      let (code, note) = (SealingError.Code.bodyRoot.rawValue, "the body is not the one that was signed")
      // Between us and the sender a hub may have changed it; and a hub signs nothing.
      if transfer.via != nil { throw try await hub.reject(transfer) }
      return Self.refusal(
        code, note, try await OpenPackage(context: context).quarantine(transfer, code: code, note: note))
    }
    if transfer.direction == .hub {
      return try await standing(hub.keep(transfer, roots: body.segmentRoots))
    }
    let (_, envelope) = try await admission.received(transfer)
    return HTTPReply.json(200, .object(ReceiptList.document([envelope.bytes])))
  }

  // MARK: key

  func putKey(_ id: TransferID, _ request: PartnerRequest) async throws -> HTTPReply {
    let key = try await request.collect(bytesMax: PackageKey.bytesMax)
    let transfer = try await relayed(id, request)
    try admission.requireKey(key, of: transfer)
    let head = try admission.senderHead(request.header("sallyport-head"), for: transfer)
    if transfer.direction == .hub { return try await standing(hub.take(key, head, for: transfer)) }
    guard transfer.state == .received, transfer.key == nil else {
      guard transfer.state != .receiving else {
        throw Problem(.conflict, code: "key.early", "the body is not complete")
      }
      return try await standing(transfer)
    }
    try await admission.take(key, head, for: transfer)
    return try await standing(transfer)
  }

  // MARK: receipts, take-back

  func receipts(_ id: TransferID, after kind: String, waitSeconds: Int, _ request: PartnerRequest) async throws
    -> HTTPReply
  {
    let news = context.news.lane(of: request.partner).mail
    return try await longPoll(news, seconds: Double(waitSeconds), now: context.now) { isLast in
      let transfer = try await own(id, request)
      let all = try await context.ledger.read { try $0.receipts(transfer.sender, transfer.id) }
      let kinds = try all.map { try Receipt($0.unverified()).kind.rawValue }
      let fresh = kinds.firstIndex(of: kind).map { all.dropFirst($0 + 1) } ?? all[...]
      guard !fresh.isEmpty || isLast else { return nil }
      return HTTPReply.json(200, .object(ReceiptList.document(fresh.map(\.bytes))))
    }
  }

  func takeBack(_ id: TransferID, _ request: PartnerRequest) async throws -> HTTPReply {
    let bytes = try await request.collect(bytesMax: Envelope.bytesMax)
    let transfer = try await own(id, request)
    if let stored = try await context.ledger.read({ try $0.document(transfer.sender, transfer.id, .acknowledgement) }) {
      return HTTPReply(200, headers: ["content-type": "application/json"], body: stored.bytes)
    }
    let (takeBack, envelope) = try admission.takeBack(bytes, of: transfer)
    // Whether it had the key is not known any more.
    guard transfer.state != .purged else { throw Problem(.gone, code: "transfer.purged", "this transfer was purged") }
    guard transfer.direction == .in else {
      try await hub.stop(transfer, takeBack, envelope)
      // Only the recipient can answer it: its answer comes with the list.
      return HTTPReply(202)
    }
    let signed = try await admission.stop(transfer, takeBack, envelope)
    return HTTPReply(200, headers: ["content-type": "application/json"], body: signed.bytes)
  }
}

/// A task that may be cancelled before it is known.
private final class Work: Sendable {
  private struct State {
    var task: Task<HTTPReply, any Error>?
    var isCancelled = false
  }

  private let state = NIOLockedValueBox(State())

  func set(_ task: Task<HTTPReply, any Error>) {
    let cancel = state.withLockedValue { state in
      state.task = task
      return state.isCancelled
    }
    if cancel { task.cancel() }
  }

  func cancel() {
    let task = state.withLockedValue { state in
      state.isCancelled = true
      return state.task
    }
    task?.cancel()
  }
}
