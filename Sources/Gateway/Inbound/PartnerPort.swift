// The partner port: each request of the API to its journey, each failure to its problem document.

import Foundation
import Logging
import Policies
import Sealing
import Store
import Transport

/// Answers partners. Callable concurrently; never blocks its thread.
struct PartnerPort: Sendable {
  let context: GatewayContext
  let receive: Receive
  let mailbox: Mailbox
  /// Called when the disk's state is unknown: the process must stop.
  let onFatal: @Sendable (any Error) -> Void

  func answer(_ request: PartnerRequest) async -> HTTPReply {
    do {
      return try await route(request)
    } catch let problem as Problem {
      return .problem(problem)
    } catch LedgerError.stale {
      return .problem(Problem(.superseded, "the transfer changed meanwhile"))
    } catch {
      switch StoreFailure(error) {
      case .full: return .problem(Problem(.full, code: "disk.full", "there is no room", retryAfterSeconds: 60))
      case .unknown:
        onFatal(error)
        return .problem(Problem(.unavailable, "this gateway is stopping", retryAfterSeconds: 10))
      case .busy: return .problem(Problem(.unavailable, "the ledger is busy", retryAfterSeconds: 10))
      case .other:
        if !(error is CancellationError) { context.logger.error("a request of \(request.partner) failed: \(error)") }
        return .problem(Problem(.unavailable, "this cannot be answered now"))
      }
    }
  }

  private func route(_ request: PartnerRequest) async throws -> HTTPReply {
    // A connection may outlive the partnership.
    guard context.partners[request.partner]?.state == .active else { throw Problem(.notFound, "there is nothing here") }
    switch try PartnerRoute(method: request.method, target: request.target) {
    case .card:
      return HTTPReply(200, headers: ["content-type": "application/json"], body: context.keys.card.envelope.bytes)
    case .list(let after, let limit, let wait, let agreements):
      return try await list(request.partner, after, limit, wait, knowing: agreements)
    case .page: return try await PartnerPage(context: context).answer(request.partner)
    case .openAPI:
      return HTTPReply(200, headers: ["content-type": "application/json"], body: PackageResources.openapi_json)
    case .manifest(let id): return try await mailbox.manifest(id, request)
    case .body(let id): return try await mailbox.body(id, request)
    case .tree(let id): return try await mailbox.tree(id, request)
    case .askKey(let id): return try await mailbox.askKey(id, request)
    case .package(let id): return try await mailbox.package(id, request)
    case .putReceipts(let id): return try await mailbox.putReceipts(id, request)
    case .putManifest(let id): return try await receive.putManifest(id, request)
    case .bodyOffset(let id):
      return try await mailbox.holds(id, for: request.partner)
        ? mailbox.body(id, request) : receive.bodyOffset(id, request)
    case .appendBody(let id): return try await receive.appendBody(id, request)
    case .putKey(let id): return try await receive.putKey(id, request)
    case .receipts(let id, let after, let wait):
      return try await receive.receipts(id, after: after, waitSeconds: wait, request)
    case .takeBack(let id): return try await receive.takeBack(id, request)
    case .getTakeBack(let id): return try await mailbox.takeBack(id, request)
    case .putTakeBackAnswer(let id): return try await mailbox.putTakeBackAnswer(id, request)
    case .agreements: return AgreementExchange(context: context).list(for: request.partner)
    case .getAgreement(let digest): return try AgreementExchange(context: context).get(digest, for: request.partner)
    case .getAct(let digest, let act):
      return try AgreementExchange(context: context).get(act, over: digest, for: request.partner)
    case .putAgreement(let digest):
      let exchange = AgreementExchange(context: context)
      try await exchange.take(digest, try await request.collect(bytesMax: StrictYAML.bytesMax), from: request.partner)
      return .json(200, ["sha256": .string(digest.hex)])
    case .putAct(let digest):
      guard context.policies.agreement(digest) != nil else { throw Problem(.notFound, "there is nothing here") }
      do {
        _ = try await AgreementExchange(context: context).take(
          act: try await request.collect(bytesMax: Envelope.bytesMax))
      } catch let error as SealingError {
        throw Problem(.malformed, error.detail)
      }
      return .json(200, ["sha256": .string(digest.hex)])
    case .putNotice(let id):
      let bytes = try await request.collect(bytesMax: Envelope.bytesMax)
      do {
        guard let answer = try await NoticeDesk(context: context).take(id, bytes, from: request.partner) else {
          return HTTPReply(202)
        }
        return HTTPReply(200, headers: ["content-type": "application/json"], body: answer.bytes)
      } catch let error as SealingError {
        throw Problem(.malformed, error.detail)
      }
    case .getNotice(let id): return try await Notices(context: context).get(id, for: request.partner)
    case .putNoticeAnswer(let id):
      let bytes = try await request.collect(bytesMax: Envelope.bytesMax)
      do {
        return try await Notices(context: context).putAnswer(id, bytes, from: request.partner)
      } catch let error as SealingError {
        throw Problem(.malformed, error.detail)
      }
    }
  }

  /// Of what stands under the cursor, before it is written as strings in JSON: half of what is read of an answer.
  static let listBytesMax = ReceiptList.bytesMax / 2

  /// Where a list ends: after `limit` items or before `listBytesMax` bytes, but with one at least; `after` when there is none.
  static func end(of items: [(sequence: Int64, bytes: Int)], after: Int64, limit: Int) -> Int64 {
    var (end, bytes) = (after, 0)
    for item in items.sorted(by: { $0.sequence < $1.sequence }).prefix(limit) {
      bytes += item.bytes
      if bytes > listBytesMax, end > after { break }
      end = item.sequence
    }
    return end
  }

  /// What concerns the caller after its cursor: our receipts about its transfers, and packages that wait for it or have ended.
  /// Asking with a cursor says that everything up to it was read, which acknowledges delivered transfers.
  ///
  /// - Parameter agreements: the tag that the caller saw last; another one now is news. Without one they are none.
  private func list(
    _ partner: AgencyID, _ after: Int64, _ limit: Int, _ wait: Int, knowing agreements: String?
  ) async throws -> HTTPReply {
    try await acknowledge(partner, upTo: after)
    let news = context.news.lane(of: partner).mail
    return try await longPoll(news, seconds: Double(wait), now: context.now) { isLast in
      let (receipts, offers, notices, head) = try await context.ledger.read { reader in
        (
          try reader.receipts(about: partner, after: after, limit: max(1, limit)),
          try reader.offers(to: partner, after: after, limit: max(1, limit)).map { offer in
            let isOwn = offer.transfer.sender == partner
            return (
              sequence: offer.sequence,
              item: isOwn ? try Hub.item(offer.transfer, reader) : Mailbox.item(offer.transfer)
            )
          },
          try reader.openNotices(to: partner, limit: Notices.listMax),
          try reader.partner(partner)?.headProof
        )
      }
      // One list under one cursor: where either was cut, both end.
      let sizes =
        receipts.map { ($0.sequence, $0.envelope.count) } + offers.map { ($0.sequence, $0.item.canonical.count) }
      let end = Self.end(of: sizes, after: after, limit: max(1, limit))
      let tag = context.acts.tag(for: partner)?.hex
      let isNews =
        end > after || notices.contains { $0.answer == nil } || agreements.map { $0 != tag ?? "" } ?? false
      guard isNews || isLast else { return nil }
      var members = ReceiptList.document(receipts.filter { $0.sequence <= end }.map(\.envelope))
      members["transfers"] = .array(offers.filter { $0.sequence <= end }.map(\.item))
      members["notices"] = try Notices.items(notices)
      members["agreements"] = tag.map { .string($0) }
      members["cursor"] = .integer(end)
      members["yourHead"] = head.map { .string(Base64.encode($0)) }
      return .json(200, .object(members))
    }
  }

  private func acknowledge(_ partner: AgencyID, upTo cursor: Int64) async throws {
    guard cursor > 0 else { return }
    let read = try await context.ledger.read { try $0.delivered(to: partner, receiptsUpTo: cursor, limit: 500) }
    guard !read.isEmpty else { return }
    try await context.ledger.write { tx in
      for transfer in read { try tx.advance(transfer, to: .acknowledged) { $0.nextAt = nil } }
    }
  }
}
