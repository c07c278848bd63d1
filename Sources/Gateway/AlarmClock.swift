// One thread for every wait with a time limit.
//
// A task that sleeps and is cancelled leaves its timer with the system until it would have gone off: thousands of waits that end
// early, each second, would hold hundreds of megabytes. Here a wait that ends early leaves 24 bytes, and those not for long.

import CLinux
import Foundation
import Glibc
import HeapModule

/// Calls back after a while, unless it is cancelled first. Callable concurrently; callbacks run on the clock's thread and must not block.
final class AlarmClock: @unchecked Sendable {
  // One for the process, as the system's timers are: it holds no state of the gateway's.
  // Proof for @unchecked: what changes is touched only under `lock`.
  static let shared = AlarmClock()

  private struct Entry: Comparable {
    let at: ContinuousClock.Instant
    let id: UInt64

    static func < (a: Entry, b: Entry) -> Bool { a.at < b.at }
  }

  private let lock = NSLock()
  /// An eventfd that says the first entry has changed: poll(2) counts by the monotonic clock, as Foundation's conditions do not.
  private let news = sp_eventfd()
  private var entries = Heap<Entry>()
  private var bodies: [UInt64: @Sendable () -> Void] = [:]
  private var nextID: UInt64 = 0

  private init() {
    precondition(news >= 0, "no descriptor is left for the clock")
    let thread = Thread { [self] in serve() }
    thread.name = "alarm clock"
    thread.start()
  }

  func set(after wait: Duration, _ body: @escaping @Sendable () -> Void) -> UInt64 {
    lock.withLock {
      nextID += 1
      let entry = Entry(at: .now + wait, id: nextID)
      let isFirst = entries.min.map { entry < $0 } ?? true
      entries.insert(entry)
      bodies[nextID] = body
      if isFirst {
        var one: UInt64 = 1
        _ = write(news, &one, 8)
      }
      return nextID
    }
  }

  func cancel(_ id: UInt64) {
    lock.withLock {
      bodies[id] = nil
      // Most waits end early: what they left is swept before it outgrows what is alive.
      if entries.count > 2 * bodies.count + 1024 {
        entries = Heap(entries.unordered.filter { bodies[$0.id] != nil })
      }
    }
  }

  private func serve() {
    while true {
      let (due, pause) = lock.withLock {
        var due: [@Sendable () -> Void] = []
        let now = ContinuousClock.now
        while let first = entries.min, first.at <= now {
          entries.removeMin()
          if let body = bodies.removeValue(forKey: first.id) { due.append(body) }
        }
        // Rounded up: a wait that ends too early would only come back.
        let pause = entries.min.map { min(60_000, ($0.at - now) / .milliseconds(1) + 1) }
        return (due, pause.map { Int32($0) } ?? -1)
      }
      for body in due { body() }
      guard due.isEmpty else { continue }
      var waiting = pollfd(fd: news, events: Int16(POLLIN), revents: 0)
      if poll(&waiting, 1, pause) > 0 {
        var count: UInt64 = 0
        _ = read(news, &count, 8)
      }
    }
  }
}
