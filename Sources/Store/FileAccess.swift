// Positional reads and writes of an open file, by any number of workers at once.
//
// A body is written once and read soon after: by the relay, or when its key comes. What of each fits into a share of the memory stays in
// the page cache for that, and goes on its way to the disk as soon as a long piece is written. What follows need not push out of
// the cache what the machine keeps there: long pieces of it are read and written with RWF_DONTCACHE where kernel and file system have it.

import CLinux
import Glibc

/// What an open file is read and written by. It does not keep the file open.
package struct FileAccess: Sendable {
  package let descriptor: Int32
  package let path: String
  /// How many bytes of the beginning may stay in the page cache, for a body or a payload; nil for any other file.
  let keptBytes: Int64?

  /// Shorter pieces are read and written as those of any other file.
  static let passingBytesMin = 256 << 10
  /// An eighth of the machine's memory, of each file.
  package static let keptBytesMax = Int64(sysconf(Int32(_SC_PHYS_PAGES)) / 8 * sysconf(Int32(_SC_PAGESIZE)))

  /// What stays in the cache is written up to a multiple of this in the file. Longer writes are held up by each other at the lock of the
  /// inode, and get large new pages; those that cross a multiple get many small ones (two threads, 2 GiB: 5.5 s with 1 MiB; 1.4 s
  /// with 32 KiB anywhere, 0.7 s with these).
  static let pieceBytes = 32 << 10

  /// Whether a long piece that is written at `offset` is not to stay in the page cache.
  func isPassing(_ offset: Int64) -> Bool { keptBytes.map { offset >= $0 } ?? false }

  /// preadv(2) until `parts` are full or the file ends; how many bytes came.
  package func read(into parts: [UnsafeMutableRawBufferPointer], at offset: Int64) throws(DiskError) -> Int {
    var left = Vectors(parts)
    // What is in the cache already stays there.
    var passes = keptBytes != nil && left.bytes >= Self.passingBytesMin
    var done: Int64 = 0
    while left.bytes > 0 {
      let (first, count) = left.first(left.bytes)
      let got =
        passes
        ? Int(sp_preadv_passing(descriptor, first, count, offset + done))
        : preadv(descriptor, first, count, Int(offset + done))
      if got < 0, errno == EINTR { continue }
      if got < 0, passes, errno == EOPNOTSUPP {
        passes = false
        continue
      }
      guard got >= 0 else { throw DiskError("read", path) }
      if got == 0 { break }
      done += Int64(got)
      left.drop(got)
    }
    return Int(done)
  }

  /// pwritev(2) until all of `parts` is written.
  package func write(_ parts: [UnsafeMutableRawBufferPointer], at offset: Int64) throws(DiskError) {
    var left = Vectors(parts)
    let isLong = left.bytes >= Self.passingBytesMin
    var passes = isLong && isPassing(offset)
    var done: Int64 = 0
    while left.bytes > 0 {
      let (first, count) = left.first(
        passes ? left.bytes : Self.pieceBytes - Int((offset + done) % Int64(Self.pieceBytes)))
      let put =
        passes
        ? Int(sp_pwritev_passing(descriptor, first, count, offset + done))
        : pwritev(descriptor, first, count, Int(offset + done))
      if put < 0, errno == EINTR { continue }
      if put < 0, passes, errno == EOPNOTSUPP {
        passes = false
        continue
      }
      guard put > 0 else { throw DiskError("write", path) }
      done += Int64(put)
      left.drop(put)
    }
    if keptBytes != nil, isLong, !passes { sp_start_writing(descriptor, offset, done) }
  }
}

/// The scattered places of one call, and what is left of them after a short one.
private struct Vectors {
  private var all: [iovec]
  private(set) var bytes: Int

  init(_ parts: [UnsafeMutableRawBufferPointer]) {
    all = parts.compactMap { $0.isEmpty ? nil : iovec(iov_base: $0.baseAddress, iov_len: $0.count) }
    bytes = parts.reduce(0) { $0 + $1.count }
  }

  /// The first `bytesMax` bytes, or all.
  func first(_ bytesMax: Int) -> ([iovec], Int32) {
    guard bytesMax < bytes else { return (all, Int32(all.count)) }
    var (piece, room): ([iovec], Int) = ([], bytesMax)
    for vector in all where room > 0 {
      piece.append(iovec(iov_base: vector.iov_base, iov_len: min(vector.iov_len, room)))
      room -= piece[piece.count - 1].iov_len
    }
    return (piece, Int32(piece.count))
  }

  /// Drops the first `count` bytes, which are done. At most as many as are left.
  mutating func drop(_ count: Int) {
    bytes -= count
    var skip = count
    while let first = all.first, skip >= first.iov_len {
      skip -= first.iov_len
      all.removeFirst()
    }
    if skip > 0 {
      all[0].iov_base += skip
      all[0].iov_len -= skip
    }
  }
}
