// Small files, written so that a reader sees the old or the new one, whole:
//
//   open(.NAME.tmp-PID, O_CREAT|O_EXCL|O_NOFOLLOW, mode)  write  fdatasync  close  rename(.NAME.tmp-PID, NAME)  fsync(directory)
//
// A failure before the rename removes the temporary file and leaves the old one; after it, which of the two a power cut leaves is unknown.

import CLinux
import Glibc

package enum DurableFile {
  /// Replaces the file at `path`. Durable when it returns. Blocks.
  package static func write(_ bytes: [UInt8], to path: String, mode: mode_t = 0o600) throws(DiskError) {
    let parent = Directory.parent(of: path)
    let name = path.split(separator: "/").last ?? ""
    let temporary = "\(parent)/.\(name).tmp-\(getpid())"
    try Directory.remove(temporary)
    do throws(DiskError) {
      try writeNew(bytes, to: temporary, mode: mode)
      try Directory.rename(temporary, path)
      try Directory.sync(parent)
    } catch {
      unlink(temporary)
      throw error
    }
  }

  /// Copies the regular file `source` to `path`, which must not exist. Its bytes are durable when it returns, its name is not. Blocks.
  package static func copy(_ source: String, to path: String, mode: mode_t = 0o600) throws(DiskError) {
    let from = try File(source, O_RDONLY | O_NONBLOCK)
    guard try from.status().st_mode & S_IFMT == S_IFREG else { throw DiskError("read", source, errno: EINVAL) }
    let into = try File(path, O_WRONLY | O_CREAT | O_EXCL, mode: mode)
    guard sp_copy(from.descriptor, into.descriptor) == 0 else { throw DiskError("copy", source) }
    try into.syncData()
  }

  private static func writeNew(_ bytes: [UInt8], to path: String, mode: mode_t) throws(DiskError) {
    let file = try File(path, O_WRONLY | O_CREAT | O_EXCL, mode: mode)
    try file.write(bytes, at: 0)
    try file.syncData()
  }
}
