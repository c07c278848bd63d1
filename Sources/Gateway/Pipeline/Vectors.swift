// The scattered places of one preadv(2) or pwritev(2), and what is left of them after a short one.

import Glibc

extension [iovec] {
  init(_ ranges: [UnsafeMutableRawBufferPointer]) {
    self = ranges.map { iovec(iov_base: $0.baseAddress, iov_len: $0.count) }
  }

  /// The first `bytes` bytes, or all.
  func prefix(bytes: Int) -> [iovec] {
    var (piece, room): ([iovec], Int) = ([], bytes)
    for vector in self where room > 0 {
      piece.append(iovec(iov_base: vector.iov_base, iov_len: Swift.min(vector.iov_len, room)))
      room -= piece[piece.count - 1].iov_len
    }
    return piece
  }

  /// Drops the first `bytes` bytes, which are done. At most as many as are left.
  mutating func drop(_ bytes: Int) {
    var skip = bytes
    while let first, skip >= first.iov_len {
      skip -= first.iov_len
      removeFirst()
    }
    if skip > 0 {
      self[0].iov_base += skip
      self[0].iov_len -= skip
    }
  }
}
