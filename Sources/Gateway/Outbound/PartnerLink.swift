// How to reach one partner: its endpoint and pins from the held card, and whether it is worth trying now.

import Foundation
import NIOConcurrencyHelpers
import Policies
import Sealing
import Store
import Transport

/// Sends requests to partners and remembers which of them are down, so that one dead partner delays nobody and is not
/// tried once per package. Callable concurrently.
final class PartnerLinks: Sendable {
  private struct Health {
    var failures = 0
    var notBefore: Date?
  }

  private let context: GatewayContext
  private let client: RelayClient
  private let health = NIOLockedValueBox<[AgencyID: Health]>([:])

  init(context: GatewayContext, client: RelayClient) {
    self.context = context
    self.client = client
  }

  /// Before this instant the partner is left alone; nil when it may be tried.
  func pausedUntil(_ partner: AgencyID) -> Date? { health.withLockedValue { $0[partner]?.notBefore } }

  /// Before this instant nothing goes to the partner; nil when something may. Through a hub it may at any time: `step` looks at the hub.
  func holdsBack(_ partner: AgencyID) -> Date? {
    guard let until = pausedUntil(partner) else { return nil }
    let hasHub = context.policies.agreements.contains { $0.via != nil && $0.parties.contains { $0.id == partner } }
    return hasHub ? nil : until
  }

  /// One step of a transfer. It waits while whom we speak with is down; and what a hub says wrong is what has not come yet.
  func step(_ transfer: Transfer, _ work: (Transfer) async throws -> Void) async throws {
    if let until = pausedUntil(transfer.link), until > context.now() {
      return try await context.ledger.write { tx in
        guard let row = try tx.reader.transfer(transfer.sender, transfer.id), row.state == transfer.state,
          row.updatedAt == transfer.updatedAt
        else { return }
        _ = try tx.amend(row) { $0.nextAt = until }
      }
    }
    do {
      try await work(transfer)
    } catch let error as SealingError where transfer.isThroughHub {
      throw Problem(.unavailable, code: Hub.altered, "from the hub \(transfer.link): \(error)")
    }
  }

  /// Whether the partner listens anywhere.
  func canReach(_ partner: AgencyID) -> Bool { context.partners[partner]?.card?.card.endpoint != nil }

  /// One request to `partner`. `path` begins with `/v1/`.
  ///
  /// - Parameter own: a client of the caller's alone, for long downloads.
  /// - Throws: `RelayError`, having noted that the partner is down; `Problem` unavailable when it has no endpoint here.
  func send(
    _ partner: AgencyID, _ method: String, _ path: String, through own: RelayClient? = nil,
    _ fill: (inout RelayRequest) -> Void = { _ in }
  ) async throws -> HTTPReply {
    guard let known = context.partners[partner], known.state == .active, let card = known.card?.card else {
      throw Problem(.unavailable, code: "partner.inactive", "\(partner) is not an active partner")
    }
    guard let endpoint = card.endpoint else {
      throw Problem(.unavailable, code: "partner.no-endpoint", "the card of \(partner) has no endpoint")
    }
    var request = RelayRequest(method, endpoint + path, pins: card.tlsPins)
    fill(&request)
    do {
      let reply = try await (own ?? client).send(request)
      let wait = reply.headers["retry-after"].flatMap(Int.init)
      // Without Retry-After it is about one transfer.
      if let wait, [429, 503, 507].contains(reply.status) {
        pause(partner, seconds: min(Double(wait), Double(context.configuration.retrySecondsMax)))
      } else {
        recover(partner)
      }
      return reply
    } catch let error as RelayError {
      pause(partner, seconds: nil)
      throw error
    }
  }

  private func pause(_ partner: AgencyID, seconds: Double?) {
    let limit = context.configuration.retrySecondsMax
    let now = context.now()
    health.withLockedValue { all in
      var one = all[partner] ?? Health()
      // Many requests fail together when a partner goes; that is one failure.
      if let until = one.notBefore, until > now { return }
      one.failures += 1
      one.notBefore = now + (seconds ?? Backoff.seconds(one.failures, max: limit))
      all[partner] = one
    }
  }

  private func recover(_ partner: AgencyID) { health.withLockedValue { $0[partner] = nil } }

  /// An operator's `retry`: try at once.
  func retryNow() { health.withLockedValue { $0.removeAll() } }
}

/// The body of replies that carry receipts: `{"receipts":[…]}`, envelopes as strings.
enum ReceiptList {
  static let receiptsMax = 500
  static let bytesMax = 8 << 20

  static func document(_ envelopes: [[UInt8]]) -> [String: JSON] {
    ["receipts": .array(envelopes.map { .string(String(decoding: $0, as: UTF8.self)) })]
  }

  static func parse(_ reply: HTTPReply) throws(SealingError) -> (receipts: [[UInt8]], reader: DocumentReader) {
    var reader = try DocumentReader(JSON(canonical: reply.body, bytesMax: bytesMax), at: "reply")
    return (try take(&reader, countMax: receiptsMax), reader)
  }

  static func take(_ reader: inout DocumentReader, countMax: Int) throws(SealingError) -> [[UInt8]] {
    var receipts: [[UInt8]] = []
    for item in try reader.array("receipts", countMax: countMax) {
      guard case .string(let text) = item else { throw reader.invalid("receipts", "expected strings") }
      receipts.append(Array(text.utf8))
    }
    return receipts
  }
}

/// What a partner's list says about one transfer: the members that a gateway goes by.
struct ListItem: Sendable {
  static let waiting = "waiting"

  let id: TransferID
  let sender: AgencyID
  /// `waiting`, or how it ended; to its sender, the state at the hub.
  let state: String
  /// The key is at the hub.
  let hasKey: Bool
  /// Envelopes that its recipient signed, parked at a hub for the sender.
  let keyRequest: [UInt8]?
  let acknowledgement: [UInt8]?

  init(_ reader: inout DocumentReader) throws(SealingError) {
    func envelope(_ name: String) throws(SealingError) -> [UInt8]? {
      try reader.optional(name) { (r, n) throws(SealingError) in try r.string(n, bytesMax: Envelope.bytesMax) }
        .map { Array($0.utf8) }
    }
    id = try reader.transfer("id")
    sender = try reader.agency("sender")
    state = try reader.string("state")
    hasKey = try reader.optional("key") { (r, n) throws(SealingError) in try r.bool(n) } ?? false
    keyRequest = try envelope("keyRequest")
    acknowledgement = try envelope("acknowledgement")
  }
}
