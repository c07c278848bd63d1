// One body as it is fetched in ranges, several at once: each segment is verified as it comes and written at its place.
//
//   part: segments in any order, holes between them   →  all verified  →  fdatasync  (then the journey renames it)
//
// Nothing says which segments are there but they themselves: after a cut, or a crash, the part is digested again and what does
// not verify is fetched again. So a cut costs at most one segment of each connection.

import Foundation
import NIOConcurrencyHelpers
import Sealing
import Store

/// Hands out ranges to fetch, and takes their bytes. Callable by several connections at once; blocks.
final class CollectedBody: Sendable {
  /// Segments in one request: long enough that asking costs nothing, short enough that the last connections end together.
  static let segmentsPerRange: Int64 = 32

  let geometry: BodyGeometry
  private let file: OpenFile
  private let roots: [Digest]
  private let state: NIOLockedValueBox<State>
  private let onProgress: @Sendable (Int64) -> Void

  private struct State {
    var isDone: [Bool]
    var isClaimed: [Bool]
    var doneBytes: Int64 = 0
    /// Everything before it is done or claimed.
    var next = 0
  }

  /// Opens or makes the part of `transfer`, and sees what is in it already.
  ///
  /// - Parameter roots: of its segments, already seen to have the signed root together.
  /// - Parameter create: makes the part when there is none.
  init(
    _ spool: Spool, _ transfer: Transfer, roots: [Digest], create: (Transfer) throws -> File,
    onProgress: @escaping @Sendable (Int64) -> Void
  ) throws {
    geometry = try BodyGeometry(sealedBytes: transfer.bodyBytes)
    self.roots = roots
    self.onProgress = onProgress
    state = NIOLockedValueBox(
      State(isDone: .init(repeating: false, count: roots.count), isClaimed: .init(repeating: false, count: roots.count))
    )
    if let part = try spool.reopen(transfer.place) {
      file = OpenFile(part)
      try look()
    } else {
      file = OpenFile(try create(transfer))
    }
  }

  /// What is there is written again: after a sync that failed the page cache may hold what the disk does not, and no sync to come
  /// would tell.
  private func look() throws {
    let buffer = SegmentBuffer(sealedBytesMax: geometry.sealedSegmentBytesMax)
    for index in roots.indices {
      let bytes = geometry.sealedBytes(ofSegment: Int64(index))
      let room = UnsafeMutableRawBufferPointer(rebasing: buffer.bytes[..<bytes])
      guard try file.file.read(into: room, at: Self.offset(index)) == bytes,
        SegmentDigest.root(buffer, sealedBytes: bytes) == roots[index]
      else { continue }
      try file.file.write(UnsafeRawBufferPointer(room), at: Self.offset(index))
      done(index, bytes)
    }
  }

  private static func offset(_ segment: Int) -> Int64 { Int64(segment) * Int64(BodyGeometry.sealedSegmentBytes) }

  private func done(_ segment: Int, _ bytes: Int) {
    let total = state.withLockedValue { state in
      state.isDone[segment] = true
      state.isClaimed[segment] = true
      state.doneBytes += Int64(bytes)
      return state.doneBytes
    }
    onProgress(total)
  }

  var isComplete: Bool { state.withLockedValue { $0.isDone.allSatisfy { $0 } } }

  /// Segments that nobody fetches yet, in a row; nil when there are none.
  func claim() -> Claim? {
    let run = state.withLockedValue { state -> Range<Int>? in
      while state.next < state.isClaimed.count, state.isClaimed[state.next] { state.next += 1 }
      let first = state.next
      var end = first
      while end < state.isClaimed.count, !state.isClaimed[end], end - first < Int(Self.segmentsPerRange) {
        state.isClaimed[end] = true
        end += 1
      }
      return first < end ? first..<end : nil
    }
    return run.map { Claim(self, $0) }
  }

  func sync() throws { try file.file.syncData() }

  /// One range under way. Used by one connection at a time.
  final class Claim: @unchecked Sendable {
    // Proof for @unchecked: the connection's thread calls `take`; the task that sent the request reads the rest after its end.
    private let body: CollectedBody
    private let segments: Range<Int>
    private var at: Int
    private var filled = 0
    private let buffer: SegmentBuffer
    private(set) var failure: (any Error)?

    fileprivate init(_ body: CollectedBody, _ segments: Range<Int>) {
      self.body = body
      self.segments = segments
      at = segments.lowerBound
      buffer = SegmentBuffer(sealedBytesMax: body.geometry.sealedSegmentBytesMax)
    }

    /// For the request's Range header.
    var bytes: Range<Int64> {
      let last = segments.upperBound - 1
      return CollectedBody.offset(segments.lowerBound)..<CollectedBody.offset(last)
        + Int64(body.geometry.sealedBytes(ofSegment: Int64(last)))
    }

    /// Bytes as they come, in order; false when they are not what was signed, or cannot be written.
    func take(_ bytes: UnsafeRawBufferPointer) -> Bool {
      var rest = bytes[...]
      do {
        while !rest.isEmpty {
          guard at < segments.upperBound else { throw SealingError(.bodyLength, "more bytes came than were asked for") }
          let want = body.geometry.sealedBytes(ofSegment: Int64(at))
          let count = min(rest.count, want - filled)
          UnsafeMutableRawBufferPointer(rebasing: buffer.bytes[filled..<(filled + count)])
            .copyMemory(from: UnsafeRawBufferPointer(rebasing: rest.prefix(count)))
          filled += count
          rest = rest.dropFirst(count)
          if filled == want { try finishSegment(want) }
        }
        return true
      } catch {
        failure = error
        return false
      }
    }

    private func finishSegment(_ bytes: Int) throws {
      guard SegmentDigest.root(buffer, sealedBytes: bytes) == body.roots[at] else {
        throw SealingError(.bodyRoot, "the body is not the one that was signed")
      }
      try body.file.file.write(UnsafeRawBufferPointer(rebasing: buffer.bytes[..<bytes]), at: CollectedBody.offset(at))
      body.done(at, bytes)
      at += 1
      filled = 0
    }

    var isWhole: Bool { at == segments.upperBound }

    /// Gives back what did not come.
    func end() {
      body.state.withLockedValue { state in
        for segment in at..<segments.upperBound { state.isClaimed[segment] = false }
        state.next = min(state.next, at)
      }
    }
  }
}
