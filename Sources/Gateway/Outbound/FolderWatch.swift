// inotify as a hint that a folder is worth a scan. Scans are the truth: a missed event costs `scanSeconds`, no more.

import Foundation
import Glibc
import Logging

/// Watches directories and notifies a signal. Owns one thread.
final class FolderWatch: @unchecked Sendable {
  // Proof for @unchecked: `descriptor` is set in init and closed by the thread alone; `isStopping` is under `lock`.
  private let descriptor: Int32
  private let news: Signal
  private let lock = NSLock()
  private var isStopping = false

  /// nil where the system has no inotify to give (limits); scans then find everything, later.
  init?(_ news: Signal) {
    descriptor = inotify_init1(Int32(IN_NONBLOCK) | Int32(IN_CLOEXEC))
    guard descriptor >= 0 else { return nil }
    self.news = news
    let thread = Thread { [self] in serve() }
    thread.name = "folders"
    thread.start()
  }

  /// Adds a directory; false when it cannot be watched (and is only scanned).
  func add(_ path: String) -> Bool {
    inotify_add_watch(
      descriptor, path, UInt32(IN_CLOSE_WRITE | IN_MOVED_TO | IN_MOVE_SELF | IN_DELETE_SELF | IN_ONLYDIR)) >= 0
  }

  func stop() { lock.withLock { isStopping = true } }

  private func serve() {
    var buffer = [UInt8](repeating: 0, count: 65536)
    while !lock.withLock({ isStopping }) {
      var waiting = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
      guard poll(&waiting, 1, 500) > 0 else { continue }
      // What happened does not matter, not even an overflow: the scan finds it.
      while read(descriptor, &buffer, buffer.count) > 0 {}
      news.notify()
    }
    close(descriptor)
  }
}
