// Housekeeping: what a crash left in the spool, outcome files, retention, and warnings before keys expire.

import Foundation
import Logging
import Sealing
import ServiceLifecycle
import Store

struct Maintenance: Service {
  static let everySeconds = 60

  let context: GatewayContext

  func run() async throws {
    try await sweep()
    try await rewriteOutcomes()
    try await untilShutdown {
      var warned: [String: Int] = [:]
      while !Task.isCancelled {
        try await purge()
        warn(&warned)
        await Signal().wait(after: 0, for: .seconds(Self.everySeconds))
      }
    }
  }

  /// Removes files of the spool that no row needs: unlinks that a crash lost, parts that were never promised.
  private func sweep() async throws {
    let found = try await context.pool.run { try context.spool.inventory() }
    for (place, isBody) in found {
      let (sender, id, direction): (AgencyID, TransferID, Direction) =
        switch place {
        case .out(let id): (context.agency, id, .out)
        case .incoming(let sender, let id): (sender, id, .in)
        }
      let row = try await context.ledger.read { try $0.transfer(sender, id) }
      // A body is written before its row says so; its claim or its part is worked on again and replaces it.
      let isNeeded =
        row.map { row in
          if row.state == .quarantined || row.state == .corrupt { return true }
          let state = row.state == .held ? row.heldFrom ?? row.state : row.state
          return isBody ? state.needsBody(direction) || state == .receiving : state == .receiving
        } ?? false
      if !isNeeded {
        try await context.pool.run {
          try Directory.remove(isBody ? context.spool.body(place) : context.spool.part(place))
        }
      }
    }
  }

  /// Outcome files are not synced when they are written; those of the last minutes before a stop are written again.
  private func rewriteOutcomes() async throws {
    guard let last = try await context.ledger.read({ try $0.lastInstant() }) else { return }
    let recent = try await context.ledger.read { try $0.changed(.out, since: last - 60) }
    let outcomes = Outcomes(context: context)
    for transfer in recent where transfer.state != .claimed && transfer.state != .purged {
      try await context.pool.run { try outcomes.write(transfer) }
    }
  }

  private func purge() async throws {
    let before = context.now() - Double(context.configuration.retentionSeconds)
    while !Task.isCancelled {
      let ended = try await context.ledger.read { try $0.ended(before: before, limit: 500) }
      guard !ended.isEmpty else { return }
      for transfer in ended {
        try await context.ledger.write { tx in
          _ = try tx.advance(transfer, to: .purged, ["was": .string(transfer.state.rawValue)]) {
            // The tombstone keeps who, what digest and when; documents and key go.
            $0.manifest = []
            $0.key = nil
            $0.nextAt = nil
          }
        }
        try await context.pool.run { try context.spool.remove(transfer.place) }
      }
    }
  }

  /// One log line per key and warning day.
  private func warn(_ warned: inout [String: Int]) {
    let instant = context.now()
    let cards = [context.keys.card.card] + context.partners.all.compactMap(\.card?.card)
    for expiry in cards.flatMap({ KeyExpiry.due($0, at: instant) }) {
      let days = expiry.daysLeft(at: instant)
      let step = KeyExpiry.warningDays.last { days <= $0 } ?? KeyExpiry.warningDays[0]
      guard warned[expiry.key] != step else { continue }
      warned[expiry.key] = step
      context.logger.warning("key \(expiry.key) of \(expiry.agency) expires in \(days) days: sallyport keys rotate")
    }
  }
}
