// Where a pass writes to: a file at offsets, or a stream in order.

import Foundation
import Glibc
import Sealing
import Store

/// Takes finished segments, from many workers at once.
package protocol SegmentSink: Sendable {
  /// Writes the ranges, which are segment `index` of the output and begin at `offset` of it.
  func write(_ ranges: [UnsafeMutableRawBufferPointer], segment index: Int64, at offset: Int64) throws
  /// Another worker failed: nobody may wait for its segment.
  func abandon()
}

/// A file; workers write at offsets, without waiting for each other.
package final class FileSink: SegmentSink {
  private let file: FileAccess
  private let base: Int64

  /// Writes from `offset` on; the file stays open, and the caller's, until the pass is over.
  package init(_ file: borrowing File, offset: Int64 = 0) {
    self.file = file.access
    base = offset
  }

  package func write(_ ranges: [UnsafeMutableRawBufferPointer], segment index: Int64, at offset: Int64) throws {
    try file.write(ranges, at: base + offset)
  }

  package func abandon() {}
}

/// Lets workers through one by one, in the order of their segments.
final class Turnstile: @unchecked Sendable {
  // Proof for @unchecked: the fields are touched only under `condition`.
  private let condition = NSCondition()
  private var turn: Int64 = 0
  private var isAbandoned = false

  struct Abandoned: Error {}

  func pass(_ index: Int64, _ body: () throws -> Void) throws {
    condition.lock()
    while turn != index, !isAbandoned { condition.wait() }
    let stop = isAbandoned
    condition.unlock()
    if stop { throw Abandoned() }
    // Only the holder of the turn is here, so `body` needs no lock.
    try body()
    condition.lock()
    turn += 1
    condition.broadcast()
    condition.unlock()
  }

  func abandon() {
    condition.lock()
    isAbandoned = true
    condition.broadcast()
    condition.unlock()
  }
}

/// A pipe or a terminal: segments go out in order.
package final class StreamSink: SegmentSink {
  private let descriptor: Int32
  private let order = Turnstile()

  package init(descriptor: Int32) { self.descriptor = descriptor }

  package func write(_ ranges: [UnsafeMutableRawBufferPointer], segment index: Int64, at offset: Int64) throws {
    try order.pass(index) {
      for range in ranges { try Self.writeAll(descriptor, UnsafeRawBufferPointer(range)) }
    }
  }

  package func abandon() { order.abandon() }

  /// write(2) until all is out.
  package static func writeAll(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer) throws {
    var done = 0
    while done < bytes.count {
      let put = Glibc.write(descriptor, bytes.baseAddress! + done, bytes.count - done)
      if put < 0, errno == EINTR { continue }
      guard put > 0 else { throw DiskError("write", "the output stream") }
      done += put
    }
  }
}
