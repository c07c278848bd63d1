// What is there of a body already is read again when its part is opened: after a restart, a cut, or when too many others were open.

import NIOConcurrencyHelpers
import Sealing

/// Long reading, one part of each partner at a time: however much of its bodies a partner makes us read again, others have their turns.
final class Rereads: Sendable {
  private let busy = NIOLockedValueBox<Set<AgencyID>>([])
  private let freed = Signal()

  /// Runs `body` on `pool` when it is `partner`'s turn. Once begun it goes to its end: whoever asked again meanwhile goes on from it.
  ///
  /// - Throws: what `body` throws; CancellationError when cancelled before its turn.
  func run<Value: Sendable>(
    of partner: AgencyID, on pool: BlockingPool, _ body: @escaping @Sendable () throws -> Value
  ) async throws -> Value {
    while true {
      let seen = freed.generation
      if busy.withLockedValue({ $0.insert(partner).inserted }) { break }
      await freed.wait(after: seen, for: .seconds(1))
      try Task.checkCancellation()
    }
    defer {
      busy.withLockedValue { _ = $0.remove(partner) }
      freed.notify()
    }
    return try await pool.run(body)
  }
}
