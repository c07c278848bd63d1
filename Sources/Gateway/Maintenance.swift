// Housekeeping: what a crash left in the spool, outcome files, retention and the report period, the copy of the consent tables, and
// warnings before keys expire.

import Foundation
import Logging
import NIOConcurrencyHelpers
import Sealing
import ServiceLifecycle
import Store

struct Maintenance: Service {
  static let everySeconds = 60

  let context: GatewayContext

  func run() async throws {
    try await untilShutdown {
      var warned: [String: Int] = [:]
      var told: [TransferID: Double] = [:]
      var kept: Date?
      while !Task.isCancelled {
        let seen = context.news.consents.generation
        do {
          try await purge()
          try await forgetPeople()
          try await forgetParked()
          try await leaveReleased()
          warn(&warned)
          try await warnOfWaiting(&told)
          try await keepConsents(&kept)
        } catch {
          if let trouble = try Disposition.survived(error) { context.logger.warning("housekeeping: \(trouble.note)") }
        }
        await context.news.consents.wait(after: seen, for: .seconds(Self.everySeconds))
      }
    }
  }

  /// Removes files of the spool that no row needs: unlinks that a crash lost, parts that were never promised.
  ///
  /// Before any stage runs: a body is in the spool before its row says so.
  func sweep() async throws {
    let (context, agency) = (context, context.agency)
    let found = try await context.pool.run { try context.spool.inventory() }
    let garbage = try await context.ledger.read { reader in
      try found.filter { place, isBody in
        let row: Transfer? =
          switch place {
          case .out(let id): try reader.transfer(agency, id)
          case .incoming(let sender, let id): try reader.transfer(sender, id)
          }
        guard let row else { return true }
        // What is there stays as evidence.
        if row.state == .corrupt { return false }
        let state = row.state == .held ? row.heldFrom ?? row.state : row.state
        return isBody ? !state.needsBody(row.direction) && state != .receiving : state != .receiving
      }
    }
    try await context.pool.run {
      for (place, isBody) in garbage {
        if isBody || !context.spool.has(place) { try Directory.remove(context.spool.tree(place)) }
        try Directory.remove(isBody ? context.spool.body(place) : context.spool.part(place))
      }
    }
    let indexed = try await context.pool.run { try context.spool.indexed() }
    let (strays, restored) = try await context.ledger.read { reader in
      (try indexed.filter { try reader.package($0) == nil }, try reader.restoredAt())
    }
    let reported = context.now() - Double(context.configuration.reportSeconds)
    try await context.pool.run {
      for id in strays {
        // A restored ledger does not know all packages that went; who was in them must stay to be found.
        if let restored, let made = try context.spool.subjectsTime(id), reported < made, made <= restored { continue }
        try context.spool.removeSubjects(id)
      }
    }
  }

  /// Outcome files are not synced when they are written; those of the last minute before a stop are seen to.
  ///
  /// Before any stage runs: what a stage writes meanwhile would be newer.
  func restoreOutcomes() async throws {
    guard let last = try await context.ledger.read({ try $0.lastInstant() }) else { return }
    let outcomes = Outcomes(context: context)
    let page = { @Sendable [context] (id: TransferID?) in
      try await context.ledger.read {
        try $0.changed(by: context.agency, since: last - 60, after: id, limit: Self.outcomesPage)
      }
    }
    do {
      var recent = try await page(nil)
      while let end = recent.last {
        async let next = page(end.id)
        try await context.pool.run { [recent] in
          for transfer in recent where transfer.state != .claimed { try outcomes.restore(transfer) }
        }
        recent = try await next
      }
    } catch {
      if let trouble = try Disposition.survived(error) { context.logger.warning("outcome files: \(trouble.note)") }
    }
  }

  /// Rows of a page while outcome files are seen to; two pages are in memory at once.
  private static let outcomesPage = 500

  private func purge() async throws {
    let now = context.now()
    let before = now - Double(context.configuration.retentionSeconds)
    while !Task.isCancelled {
      let over = try await context.ledger.read { try $0.over(endedBefore: before, at: now, limit: 500) }
      guard !over.isEmpty else { return }
      for transfer in over {
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

  /// Removes who was in a purged package once the report period is over, or when it was never released.
  private func forgetPeople() async throws {
    let context = context
    let before = context.now() - Double(context.configuration.reportSeconds)
    while !Task.isCancelled {
      let over = try await context.ledger.read {
        try $0.packages(of: context.agency, overBefore: before, limit: 500)
      }
      guard !over.isEmpty else { return }
      try await context.ledger.write { tx in
        for id in over {
          try tx.remove(package: id)
          try tx.append(AuditEvent(Self.forgotten, ["package": .string(id.text)]))
        }
      }
      // An index without its row goes with the next start.
      try await context.pool.run { for id in over { try context.spool.removeSubjects(id) } }
    }
  }

  /// Removes notices that this hub keeps and that nobody will come for any more.
  private func forgetParked() async throws {
    let before = context.now() - Reader.releasedSeconds
    guard try await context.ledger.read({ try $0.hasParkedNotices(overdueAt: before) }) else { return }
    try await context.ledger.write { try $0.removeParkedNotices(overdueAt: before) }
  }

  /// Time-outs of what was released to partners that have no lane: they were suspended or removed.
  private func leaveReleased() async throws {
    let (context, now) = (context, context.now())
    for peer in try await context.ledger.read({ try $0.releasePeers() })
    where context.partners[peer]?.state != .active {
      for state in [TransferState.releasing, .released] {
        for transfer in try await context.ledger.read({
          try $0.due(.out, state, peer: peer, at: now, limit: 500)
        })
        // A release goes on when its partner is active again, while there is time.
        where state == .released || context.partners[peer] == nil
          || transfer.expiresAt.map({ $0 + GatewayContext.skewSeconds <= now }) ?? true
        {
          do {
            try await Release(context: context).leave(
              transfer, code: "receipt.late", note: "the key may have gone, and \(peer) is no active partner any more")
          } catch LedgerError.stale {
            // It has gone on.
          }
        }
      }
    }
  }

  /// Entry of a package of which it is not known any more who was in it.
  static let forgotten = "package.forgotten"

  /// Between two copies of the consent tables.
  static let consentSeconds: TimeInterval = 600

  /// Copies the consent tables for the next start, after `consentSeconds` at the earliest. Without the copy it is only slower.
  private func keepConsents(_ kept: inout Date?) async throws {
    let (context, now) = (context, context.now())
    guard kept.map({ now.timeIntervalSince($0) >= Self.consentSeconds }) ?? true else { return }
    let isCancelled = NIOLockedValueBox(false)
    let isNew = try await withTaskCancellationHandler {
      try await context.pool.run {
        try context.ledger.readNow { reader in
          try context.consents.keep(reader, context.consentTables) {
            try context.hasRoom() && !isCancelled.withLockedValue { $0 }
          }
        }
      }
    } onCancel: {
      isCancelled.withLockedValue { $0 = true }
    }
    if isNew { kept = now }
  }

  /// Shares of a package's time after which its sender is warned that nobody has come for it.
  static let waitingShares = [0.5, 0.8]
  static let waitingMax = 10_000

  /// One log line per package that waits to be collected and share of its time.
  private func warnOfWaiting(_ told: inout [TransferID: Double]) async throws {
    let instant = context.now()
    let waiting = try await context.ledger.read { try $0.waiting(limit: Self.waitingMax) }
    var kept: [TransferID: Double] = [:]
    for transfer in waiting {
      guard let share = transfer.shareOfTime(at: instant), let step = Self.waitingShares.last(where: { share >= $0 })
      else { continue }
      kept[transfer.id] = step
      guard told[transfer.id] != step else { continue }
      context.logger.warning(
        "transfer \(transfer.id) waits for \(transfer.peer), \(Int(share * 100)) % of its time is over; it expires \(transfer.expiresAt.map(Timestamp.format) ?? "")"
      )
    }
    told = kept
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
      let remedy = expiry.agency == context.agency ? "sallyport keys rotate" : "ask the partner for a new card"
      context.logger.warning("\(expiry.sentence(at: instant)): \(remedy)")
    }
  }
}
