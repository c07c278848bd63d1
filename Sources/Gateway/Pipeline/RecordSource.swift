// Records as a source of segments: a check reads and filters them on threads of its own, and the pass that seals takes what it
// made, in order, while it goes on. One pass over the input; what is ahead is bounded.

import Foundation
import Records
import Sealing

/// Hands checked records to a pass. Made by `start`.
final class RecordSource: SegmentSource, @unchecked Sendable {
  // Proof for @unchecked: all mutable state is touched only under `condition`.
  private static let aheadBytesMax = 4 << 20

  struct Abandoned: Error {}

  private let condition = NSCondition()
  private var pieces: [OutputPiece] = []
  /// Bytes of the first piece that are gone.
  private var taken = 0
  private var ready = 0
  private var isOver = false
  private var isAbandoned = false
  private var index: Int64 = 0
  private var outcome: Result<RecordReport, any Error>?

  var sealedSegmentBytesMax: Int { BodyGeometry.sealedSegmentBytes }

  /// Starts `check` in a thread; it writes into the sink that it is given.
  static func start(_ check: @escaping @Sendable (RecordSource) throws -> RecordReport) -> RecordSource {
    let source = RecordSource()
    Thread.detachNewThread {
      let outcome = Result { try check(source) }
      source.condition.withLock {
        source.outcome = outcome
        source.isOver = true
        source.condition.broadcast()
      }
    }
    return source
  }

  /// Takes the next piece; waits while too much is ahead.
  func put(_ piece: OutputPiece) throws {
    condition.lock()
    defer { condition.unlock() }
    while ready > Self.aheadBytesMax, !isAbandoned { condition.wait() }
    if isAbandoned { throw Abandoned() }
    pieces.append(piece)
    ready += piece.count
    condition.broadcast()
  }

  func next(into buffer: borrowing SegmentBuffer) throws -> ReadSegment? {
    condition.lock()
    defer { condition.unlock() }
    // One byte more than a segment tells that it is not the last.
    while ready <= BodyGeometry.segmentBytes, !isOver { condition.wait() }
    guard index == 0 || ready > 0 else { return nil }
    let count = min(ready, BodyGeometry.segmentBytes)
    for range in SegmentLayout.plain.ranges(buffer, count) { copy(into: range) }
    ready -= count
    condition.broadcast()
    defer { index += 1 }
    return ReadSegment(index: index, bytes: count, isLast: ready == 0)
  }

  private func copy(into range: UnsafeMutableRawBufferPointer) {
    var done = 0
    while done < range.count {
      let rest = UnsafeRawBufferPointer(rebasing: pieces[0].bytes[taken...])
      let count = min(rest.count, range.count - done)
      UnsafeMutableRawBufferPointer(rebasing: range[done...]).copyMemory(
        from: UnsafeRawBufferPointer(rebasing: rest[..<count]))
      done += count
      taken += count
      if taken == pieces[0].count {
        pieces.removeFirst()
        taken = 0
      }
    }
  }

  /// Nobody will take any more: the check stops at its next piece.
  func abandon() {
    condition.withLock {
      isAbandoned = true
      condition.broadcast()
    }
  }

  /// Waits for the check to end.
  ///
  /// - Throws: what it threw.
  func report() throws -> RecordReport {
    condition.lock()
    defer { condition.unlock() }
    while outcome == nil { condition.wait() }
    return try outcome!.get()
  }
}
