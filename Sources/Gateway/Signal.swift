// Wakes whoever waits for news. A signal given while nobody waits is kept for the next who does.

import Foundation
import NIOConcurrencyHelpers

/// A latch with a time limit: hints that there may be work; the ledger is the truth.
package final class Signal: Sendable {
  private struct State {
    var generation: UInt64 = 0
    var waiting: [UInt64: CheckedContinuation<Void, Never>] = [:]
    var nextTicket: UInt64 = 0
  }

  private let state = NIOLockedValueBox(State())

  package init() {}

  /// Changes with every `notify`. Read it before looking for work, and give it to `wait`.
  package var generation: UInt64 { state.withLockedValue { $0.generation } }

  package func notify() {
    let waiting = state.withLockedValue { state in
      state.generation += 1
      defer { state.waiting.removeAll() }
      return state.waiting.values
    }
    for continuation in waiting { continuation.resume() }
  }

  /// Returns once `notify` was called after `seen` was read, the time is over, or the task is cancelled.
  package func wait(after seen: UInt64, for limit: Duration) async {
    let ticket = state.withLockedValue { state in
      defer { state.nextTicket += 1 }
      return state.nextTicket
    }
    let alarm = NIOLockedValueBox<UInt64?>(nil)
    await withTaskCancellationHandler {
      await withCheckedContinuation { continuation in
        let isOver = state.withLockedValue { state in
          if state.generation != seen || Task.isCancelled { return true }
          state.waiting[ticket] = continuation
          return false
        }
        if isOver {
          continuation.resume()
        } else {
          let set = AlarmClock.shared.set(after: limit) { [self] in resume(ticket) }
          alarm.withLockedValue { $0 = set }
        }
      }
    } onCancel: {
      resume(ticket)
    }
    if let set = alarm.withLockedValue({ $0 }) { AlarmClock.shared.cancel(set) }
  }

  private func resume(_ ticket: UInt64) {
    state.withLockedValue { $0.waiting.removeValue(forKey: ticket) }?.resume()
  }
}
