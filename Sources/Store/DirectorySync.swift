// One fsync of a directory for everybody who asked meanwhile.

import Foundation

/// Coalesces fsync calls on one directory: a caller returns after an fsync that began after it called.
///
/// Callable concurrently. Blocks.
package final class DirectorySync: @unchecked Sendable {
  // Proof for @unchecked: the counters are touched only under `condition`.
  private let path: String
  private let condition = NSCondition()
  private var requested = 0
  private var completed = 0
  private var isSyncing = false
  private var failure: DiskError?

  package init(_ path: String) { self.path = path }

  /// - Throws: DiskError. After a sync that failed every later call fails the same way, since what it covered is unknown; a directory
  ///   that could not be opened is tried again.
  package func sync() throws(DiskError) {
    condition.lock()
    defer { condition.unlock() }
    requested += 1
    let ticket = requested
    while completed < ticket {
      if let failure { throw failure }
      if isSyncing {
        condition.wait()
        continue
      }
      isSyncing = true
      let covered = requested
      condition.unlock()
      var outcome: DiskError?
      do throws(DiskError) { try Directory.sync(path) } catch { outcome = error }
      condition.lock()
      isSyncing = false
      if outcome == nil { completed = covered }
      if let outcome, outcome.operation == Directory.syncOperation { failure = outcome }
      condition.broadcast()
      if let outcome { throw outcome }
    }
  }
}
