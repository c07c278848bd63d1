// Segments as an input of records: while a pass opens a body into a file, a check reads along on threads of its own. One pass over
// the body; what is ahead of the check is bounded.

import Foundation
import Records
import Sealing

/// A file that a pass writes, and the check of what is written, in order. The counterpart of `RecordSource`.
final class RecordTap: SegmentSink, @unchecked Sendable {
  // Proof for @unchecked: all mutable state is touched only under `condition`.
  private static let aheadBytesMax = 4 << 20

  private let file: FileSink
  private let order = Turnstile()
  private let condition = NSCondition()
  private var pieces: [[UInt8]] = []
  /// Bytes of the first piece that are gone.
  private var taken = 0
  private var ready = 0
  private var isWhole = false
  private var isAbandoned = false
  private var outcome: Result<RecordReport, any Error>?

  /// Starts `check` in a thread; it reads the input that it is given. `report` or `abandon` ends it.
  init(_ file: FileSink, _ check: @escaping @Sendable (@escaping RecordInput) throws -> RecordReport) {
    self.file = file
    Thread.detachNewThread { [self] in
      let outcome = Result { try check { try self.read(into: $0) } }
      condition.withLock {
        self.outcome = outcome
        condition.broadcast()
      }
    }
  }

  func write(_ ranges: [UnsafeMutableRawBufferPointer], segment index: Int64, at offset: Int64) throws {
    try file.write(ranges, segment: index, at: offset)
    try order.pass(index) {
      condition.lock()
      defer { condition.unlock() }
      while ready > Self.aheadBytesMax, outcome == nil, !isAbandoned { condition.wait() }
      // A check that is over reads no more; the file is still made.
      guard outcome == nil else { return }
      var piece: [UInt8] = []
      piece.reserveCapacity(ranges.reduce(0) { $0 + $1.count })
      for range in ranges { piece += range }
      pieces.append(piece)
      ready += piece.count
      condition.broadcast()
    }
  }

  private func read(into room: UnsafeMutableRawBufferPointer) throws -> Int {
    condition.lock()
    defer { condition.unlock() }
    while ready == 0, !isWhole, !isAbandoned { condition.wait() }
    if isAbandoned { throw Turnstile.Abandoned() }
    // Of an empty body there is one empty segment.
    while let first = pieces.first, taken == first.count {
      pieces.removeFirst()
      taken = 0
    }
    guard let first = pieces.first else { return 0 }
    let count = min(first.count - taken, room.count)
    first.withUnsafeBytes { room.copyMemory(from: UnsafeRawBufferPointer(rebasing: $0[taken..<taken + count])) }
    taken += count
    ready -= count
    condition.broadcast()
    return count
  }

  /// The pass failed, or its result is not wanted: nobody may wait for a segment any more.
  func abandon() {
    file.abandon()
    order.abandon()
    condition.withLock {
      isAbandoned = true
      condition.broadcast()
    }
  }

  /// Once the pass is over: waits for the check to end.
  ///
  /// - Throws: what it threw.
  func report() throws -> RecordReport {
    condition.lock()
    defer { condition.unlock() }
    isWhole = true
    condition.broadcast()
    while outcome == nil { condition.wait() }
    return try outcome!.get()
  }
}
