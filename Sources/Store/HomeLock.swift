// One writer per home: an open-file-description lock on HOME/lock, held as long as the process lives.

import CLinux
import Glibc

/// Holds a home. Releases it when it goes, or when the process dies, however it dies.
package final class HomeLock: Sendable {
  private let file: File

  /// - Throws: `LedgerError.locked` when another process holds it; DiskError.
  package init(_ directory: String) throws {
    file = try File("\(directory)/lock", O_RDWR | O_CREAT)
    guard sp_lock_exclusive(file.descriptor) == 0 else {
      guard errno == EAGAIN || errno == EACCES else { throw DiskError("lock", directory) }
      throw LedgerError.locked(directory)
    }
  }
}
