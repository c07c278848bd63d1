// Open files and directories over system calls. Each function names its call, retries EINTR, and throws DiskError.

import CLinux
import Glibc

/// An open file descriptor, closed when it goes. Owned by one task at a time; positional calls may run concurrently.
package struct File: ~Copyable, Sendable {
  package let access: FileAccess
  package var descriptor: Int32 { access.descriptor }
  package var path: String { access.path }

  /// open(2) with O_CLOEXEC and O_NOFOLLOW. A new file (O_EXCL) has just `mode`, whatever the umask.
  ///
  /// - Parameter keptBytes: of a body or payload, how many bytes of its beginning may stay in the page cache.
  package init(_ path: String, _ flags: Int32, mode: mode_t = 0o600, keptBytes: Int64? = nil) throws(DiskError) {
    access = FileAccess(
      descriptor: Glibc.open(path, flags | O_CLOEXEC | O_NOFOLLOW, mode), path: path, keptBytes: keptBytes)
    if descriptor < 0 { throw DiskError("open", path) }
    if flags & O_EXCL != 0, mode & 0o077 != 0, fchmod(descriptor, mode) != 0 { throw DiskError("fchmod", path) }
  }

  /// Takes over a descriptor.
  package init(owning descriptor: Int32, path: String) {
    access = FileAccess(descriptor: descriptor, path: path, keptBytes: nil)
  }

  deinit { Glibc.close(descriptor) }

  /// fstat(2)
  package func status() throws(DiskError) -> stat {
    var info = stat()
    guard fstat(descriptor, &info) == 0 else { throw DiskError("fstat", path) }
    return info
  }

  /// fdatasync(2). Never called again on a file after it failed.
  package func syncData() throws(DiskError) {
    guard fdatasync(descriptor) == 0 else { throw DiskError("fdatasync", path) }
  }

  /// fallocate(2) where the file system has it, so that ENOSPC comes before the work.
  package func reserve(_ bytes: Int64) throws(DiskError) {
    guard bytes > 0, sp_fallocate(descriptor, 0, bytes) != 0, errno != EOPNOTSUPP, errno != ENOSYS else { return }
    throw DiskError("fallocate", path)
  }

  /// Fills `buffer` unless the file ends before; how many bytes came.
  package func read(into buffer: UnsafeMutableRawBufferPointer, at offset: Int64) throws(DiskError) -> Int {
    try access.read(into: [buffer], at: offset)
  }

  /// Just `count` bytes from `offset` on; ENODATA where the file ends before.
  package func bytes(at offset: Int64, count: Int) throws(DiskError) -> [UInt8] {
    let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: count, alignment: 16)
    defer { buffer.deallocate() }
    guard try read(into: buffer, at: offset) == count else { throw DiskError("read", path, errno: ENODATA) }
    return Array(buffer)
  }

  /// Writes all of `buffer`.
  package func write(_ buffer: UnsafeRawBufferPointer, at offset: Int64) throws(DiskError) {
    try access.write([UnsafeMutableRawBufferPointer(mutating: buffer)], at: offset)
  }

  /// Writes all of `bytes`.
  package func write(_ bytes: [UInt8], at offset: Int64) throws(DiskError) {
    // withUnsafeBytes has untyped throws, hence the detour.
    var failure: DiskError?
    bytes.withUnsafeBytes { buffer in
      do throws(DiskError) { try write(buffer, at: offset) } catch { failure = error }
    }
    if let failure { throw failure }
  }

  /// The whole file, which must have at most `bytesMax` bytes (EFBIG otherwise).
  package static func contents(_ path: String, bytesMax: Int) throws(DiskError) -> [UInt8] {
    let file = try File(path, O_RDONLY | O_NONBLOCK)
    let info = try file.status()
    guard info.st_mode & S_IFMT == S_IFREG else { throw DiskError("read", path, errno: EINVAL) }
    guard info.st_size <= bytesMax else { throw DiskError("read", path, errno: EFBIG) }
    var bytes = [UInt8](repeating: 0, count: Int(info.st_size) + 1)
    var failure: DiskError?
    var count = 0
    bytes.withUnsafeMutableBytes { buffer in
      do throws(DiskError) { count = try file.read(into: buffer, at: 0) } catch { failure = error }
    }
    if let failure { throw failure }
    guard count <= bytesMax else { throw DiskError("read", path, errno: EFBIG) }
    // In place: what it holds may be secret, and a copy would be left behind.
    bytes.removeSubrange(count...)
    return bytes
  }
}

/// Directory operations that are durable when they return.
package enum Directory {
  /// Makes `path` and its parents with `mode`, durably, whatever the umask. An existing directory is kept as it is.
  package static func make(_ path: String, mode: mode_t = 0o700) throws(DiskError) {
    if mkdir(path, mode) == 0 {
      guard chmod(path, mode) == 0 else { throw DiskError("chmod", path) }
      try sync(parent(of: path))
      return
    }
    switch errno {
    case EEXIST:
      var info = stat()
      guard stat(path, &info) == 0, info.st_mode & S_IFMT == S_IFDIR else {
        throw DiskError("mkdir", path, errno: ENOTDIR)
      }
    case ENOENT where parent(of: path) != path:
      try make(parent(of: path), mode: mode)
      try make(path, mode: mode)
    default: throw DiskError("mkdir", path)
    }
  }

  package static func parent(of path: String) -> String {
    guard let slash = path.lastIndex(of: "/") else { return "." }
    return slash == path.startIndex ? "/" : String(path[..<slash])
  }

  /// The `operation` of a DiskError when fsync(2) itself failed, and not the opening before it.
  static let syncOperation = "fsync"

  /// fsync(2) of the directory itself: names in it are durable afterwards.
  package static func sync(_ path: String) throws(DiskError) {
    let directory = try File(path, O_RDONLY | O_DIRECTORY)
    guard fsync(directory.descriptor) == 0 else { throw DiskError(syncOperation, path) }
  }

  /// rename(2), replacing.
  package static func rename(_ old: String, _ new: String) throws(DiskError) {
    guard Glibc.rename(old, new) == 0 else { throw DiskError("rename", "\(old) to \(new)") }
  }

  /// renameat2(2) RENAME_NOREPLACE; EEXIST when `new` is taken.
  package static func renameExclusively(_ old: String, _ new: String) throws(DiskError) {
    guard sp_rename_noreplace(AT_FDCWD, old, AT_FDCWD, new) == 0 else {
      throw DiskError("rename", "\(old) to \(new)")
    }
  }

  /// unlink(2); a name that is not there is as good as removed.
  package static func remove(_ path: String) throws(DiskError) {
    guard unlink(path) == 0 || errno == ENOENT else { throw DiskError("unlink", path) }
  }

  /// lstat(2)
  package static func status(_ path: String) throws(DiskError) -> stat {
    var info = stat()
    guard lstat(path, &info) == 0 else { throw DiskError("lstat", path) }
    return info
  }

  package static func exists(_ path: String) -> Bool {
    var info = stat()
    return lstat(path, &info) == 0
  }

  /// Names in `path` but "." and "..", unordered, at most `countMax`; without those that are not UTF-8.
  package static func names(_ path: String, countMax: Int = .max) throws(DiskError) -> [String] {
    try list(path, countMax: countMax).names
  }

  /// As `names`; and how many names are not UTF-8, but for hidden ones.
  package static func list(_ path: String, countMax: Int = .max) throws(DiskError) -> (names: [String], illegible: Int)
  {
    guard let stream = opendir(path) else { throw DiskError("opendir", path) }
    defer { closedir(stream) }
    var names: [String] = []
    var illegible = 0
    errno = 0
    while names.count < countMax, let entry = readdir(stream) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) {
        $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(validatingCString: $0) }
      }
      guard let name else {
        if entry.pointee.d_name.0 != 46 { illegible += 1 }
        continue
      }
      if name != ".", name != ".." { names.append(name) }
    }
    guard errno == 0 || names.count >= countMax else { throw DiskError("readdir", path) }
    return (names, illegible)
  }

  /// Free bytes and inodes for unprivileged users (statvfs(3)).
  package static func free(_ path: String) throws(DiskError) -> (bytes: Int64, inodes: Int64) {
    var info = statvfs()
    guard statvfs(path, &info) == 0 else { throw DiskError("statvfs", path) }
    let (bytes, overflow) = Int64(clamping: info.f_bavail).multipliedReportingOverflow(
      by: Int64(clamping: info.f_frsize))
    // Where inodes are not counted there is no end of them.
    return (overflow ? .max : bytes, info.f_files == 0 ? .max : Int64(clamping: info.f_favail))
  }
}
