// One thread for every wait with a time limit.
//
// A task that sleeps and is cancelled leaves its timer with the system until it would have gone off: thousands of waits that end
// early, each second, would hold hundreds of megabytes. Here a wait that ends early leaves 24 bytes, and those not for long.

import Foundation
import HeapModule

/// Calls back after a while, unless it is cancelled first. Callable concurrently; callbacks run on the clock's thread and must not block.
final class AlarmClock: @unchecked Sendable {
  // One for the process, as the system's timers are: it holds no state of the gateway's.
  // Proof for @unchecked: everything is touched only under `condition`.
  static let shared = AlarmClock()

  private struct Entry: Comparable {
    let at: ContinuousClock.Instant
    let id: UInt64

    static func < (a: Entry, b: Entry) -> Bool { a.at < b.at }
  }

  private let condition = NSCondition()
  private var entries = Heap<Entry>()
  private var bodies: [UInt64: @Sendable () -> Void] = [:]
  private var nextID: UInt64 = 0

  private init() {
    let thread = Thread { [self] in serve() }
    thread.name = "alarm clock"
    thread.start()
  }

  func set(after wait: Duration, _ body: @escaping @Sendable () -> Void) -> UInt64 {
    condition.withLock {
      nextID += 1
      let entry = Entry(at: .now + wait, id: nextID)
      let isFirst = entries.min.map { entry < $0 } ?? true
      entries.insert(entry)
      bodies[nextID] = body
      if isFirst { condition.signal() }
      return nextID
    }
  }

  func cancel(_ id: UInt64) {
    condition.withLock {
      bodies[id] = nil
      // Most waits end early: what they left is swept before it outgrows what is alive.
      if entries.count > 2 * bodies.count + 1024 {
        entries = Heap(entries.unordered.filter { bodies[$0.id] != nil })
      }
    }
  }

  private func serve() {
    condition.lock()
    while true {
      var due: [@Sendable () -> Void] = []
      let now = ContinuousClock.now
      while let first = entries.min, first.at <= now {
        entries.removeMin()
        if let body = bodies.removeValue(forKey: first.id) { due.append(body) }
      }
      if due.isEmpty {
        // The system's clock may jump: no wait is longer than a second.
        let pause = entries.min.map { min(1, ($0.at - now) / .seconds(1)) } ?? 1
        _ = condition.wait(until: Date(timeIntervalSinceNow: pause))
        continue
      }
      condition.unlock()
      for body in due { body() }
      condition.lock()
    }
  }
}
