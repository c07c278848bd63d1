// A stage: one loop over the transfers in one state. Start-up recovery is nothing else than this loop's first round.

import Foundation
import Logging
import NIOConcurrencyHelpers
import Sealing
import ServiceLifecycle
import Store

/// Loads what is in `state` and due, does the work on a bounded number at once, and waits for news.
struct Stage: Service {
  let context: GatewayContext
  let direction: Direction
  let state: TransferState
  /// Only transfers with this peer; nil for all.
  var peer: AgencyID?
  /// Only transfers with a key, or without one; nil for both.
  var hasKey: Bool?
  let concurrency: Int
  let news: Signal
  /// Moves the transfer along; what it throws is sorted by `Disposition`.
  let work: @Sendable (Transfer) async throws -> Void
  /// Nothing is taken on before this instant: a partner that is down.
  var notBefore: @Sendable () -> Date? = { nil }

  /// At most so long without a look at the ledger.
  static let idle = Duration.seconds(2)
  /// The same for a partner's own stages: there may be hundreds of partners, and whatever changes a row tells its lane.
  static let idleOfLanes = Duration.seconds(30)

  func run() async throws {
    try await untilShutdown { try await loop() }
  }

  func loop() async throws {
    let failure = NIOLockedValueBox<(any Error)?>(nil)
    try await withThrowingDiscardingTaskGroup { group in
      let busy = NIOLockedValueBox<Set<Spool.Place>>([])
      let freed = Signal()
      while !Task.isCancelled {
        if let error = failure.withLockedValue({ $0 }) { throw error }
        let seen = news.generation
        let instant = context.now()
        if let pause = notBefore(), pause > instant {
          await news.wait(after: seen, for: .seconds(min(2, pause.timeIntervalSince(instant))))
          continue
        }
        // What was under way before the look may have moved on since: its row is old.
        let underWay = busy.withLockedValue { $0 }
        let limit = concurrency * 2 + underWay.count
        let (all, next) = try await context.ledger.read { reader in
          let due = try reader.due(direction, state, peer: peer, hasKey: hasKey, at: instant, limit: limit)
          let isIdle = due.allSatisfy { underWay.contains($0.place) }
          return (
            due,
            isIdle ? try reader.nextDue(direction, state, peer: peer, hasKey: hasKey, after: instant) : nil
          )
        }
        let due = all.filter { transfer in
          !underWay.contains(transfer.place) && !busy.withLockedValue { $0.contains(transfer.place) }
        }
        for transfer in due {
          while true {
            let before = freed.generation
            if busy.withLockedValue({ $0.count < concurrency }) || Task.isCancelled { break }
            await freed.wait(after: before, for: Self.idle)
          }
          if Task.isCancelled || notBefore().map({ $0 > context.now() }) == true { break }
          busy.withLockedValue { _ = $0.insert(transfer.place) }
          group.addTask(executorPreference: context.pool) {
            do {
              try await perform(transfer)
            } catch {
              failure.withLockedValue { $0 = $0 ?? error }
            }
            busy.withLockedValue { _ = $0.remove(transfer.place) }
            freed.notify()
            // It may be due again at a time that an idle loop does not know of yet.
            news.notify()
          }
        }
        if due.isEmpty {
          let idle = next.map { Duration.seconds(max(0.01, $0.timeIntervalSince(instant))) } ?? longest
          await news.wait(after: seen, for: min(longest, idle))
        }
      }
    }
    if let error = failure.withLockedValue({ $0 }) { throw error }
  }

  private var longest: Duration { peer == nil ? Self.idle : Self.idleOfLanes }

  private func perform(_ transfer: Transfer) async throws {
    do {
      try await work(transfer)
    } catch {
      let failure = error
      // Until the ledger takes it, which a full disk above all may keep it from: in `sending` nobody else looks at the row.
      while !Task.isCancelled {
        do {
          return try await settle(transfer, after: failure)
        } catch {
          guard let trouble = try Disposition.survived(error) else { return }
          context.logger.error("transfer \(transfer.id): \(trouble.note) [\(trouble.code)], after: \(failure)")
          await Signal().wait(after: 0, for: Self.idle)
          guard [.full, .busy].contains(StoreFailure(error)) else { return }
        }
      }
    }
  }

  private func settle(_ transfer: Transfer, after error: any Error) async throws {
    switch Disposition(error) {
    case .ignore: break
    case .stop:
      context.logger.critical("\(error)")
      throw error
    case .retry(let code, let note): try await postpone(transfer, code, note)
    case .halt where error is SpoolDamage && direction == .hub:
      try await Hub(context: context).lost(transfer)
    case .halt(let code, let note):
      // A key that may be with the recipient already is not sent again by itself: `unconfirmed`.
      try await setAside(transfer, code, note, error is SpoolDamage ? [.corrupt] : [.held, .quarantined, .unconfirmed])
    }
  }

  /// The row as it is now: the work may have moved it before it failed.
  private func current(_ transfer: Transfer) async throws -> Transfer? {
    try await context.ledger.read { try $0.transfer(transfer.sender, transfer.id) }
  }

  private func postpone(_ transfer: Transfer, _ code: String, _ note: String) async throws {
    let limit = context.configuration.retrySecondsMax
    // The row as it is now: the work may have moved it before it failed, and others may have changed it.
    let next = try await context.ledger.write { tx -> Date? in
      guard let row = try tx.reader.transfer(transfer.sender, transfer.id), row.state != .held,
        !row.state.isEnd || row.nextAt != nil
      else { return nil }
      let attempts = row.attempts + 1
      let next = tx.at + Backoff.seconds(attempts, max: limit)
      let mark: (inout Transfer) -> Void = {
        $0.nextAt = next
        $0.attempts = attempts
        // How it ended says more than why the partner has not been told yet.
        guard !$0.state.isEnd else { return }
        $0.code = code
        $0.note = note
      }
      if row.state == .sending {
        _ = try tx.advance(row, to: .queued, ["code": .string(code)], change: mark)
      } else {
        _ = try tx.amend(row, change: mark)
      }
      return next
    }
    guard let next else { return }
    context.logger.notice("transfer \(transfer.id): \(note); next try at \(Timestamp.format(next))")
    // The work may have moved the row on before it failed: it is another stage's now.
    context.news.lane(of: transfer.peer).notify()
  }

  /// - Parameter targets: the first of these states that the transfer may enter; in none of them it stays where it is.
  private func setAside(_ transfer: Transfer, _ code: String, _ note: String, _ targets: [TransferState]) async throws {
    guard let row = try await current(transfer), !row.state.isEnd || row.nextAt != nil else { return }
    context.logger.error("transfer \(row.id) is set aside: \(note)")
    guard !row.state.isEnd else {
      _ = try await context.ledger.write { try $0.amend(row) { $0.nextAt = nil } }
      return
    }
    let target = targets.first { row.state.mayBecome($0, direction) }
    do {
      let moved = try await context.ledger.write { tx in
        if let target {
          return try tx.advance(row, to: target) { next in
            if target == .held { next.heldFrom = row.state == .sending ? .queued : row.state }
            next.nextAt = nil
            next.code = code
            next.note = note
          }
        } else {
          return try tx.amend(row) { next in
            next.nextAt = nil
            next.code = code
            next.note = note
          }
        }
      }
      try await context.pool.run { [context] in try Outcomes(context: context).write(moved) }
    } catch LedgerError.stale {
      return
    }
  }
}

/// Runs `body` until the gateway shuts down; being stopped is how it ends, and no failure.
func untilShutdown(_ body: @escaping @Sendable () async throws -> Void) async throws {
  do {
    try await cancelWhenGracefulShutdown(body)
  } catch is CancellationError {
    return
  }
}

/// Answers a partner's long poll: looks, and looks again with each piece of news, at most for `seconds` and no longer than the gateway
/// runs.
///
/// - Parameter look: the answer; nil while there is none. Told that it is the last look, it has one.
func longPoll<Answer>(
  _ news: Signal, seconds: TimeInterval, now: @Sendable () -> Date,
  _ look: (_ isLast: Bool) async throws -> Answer?
) async throws -> Answer {
  let deadline = now() + seconds
  var isStopping = false
  while true {
    let seen = news.generation
    let isLast = isStopping || deadline.timeIntervalSince(now()) <= 0
    if let answer = try await look(isLast) { return answer }
    precondition(!isLast, "the last look at a long poll has no answer")
    let left = max(0, deadline.timeIntervalSince(now()))
    await cancelWhenGracefulShutdown { await news.wait(after: seen, for: .seconds(left)) }
    isStopping = Task.isShuttingDownGracefully || Task.isCancelled
  }
}
