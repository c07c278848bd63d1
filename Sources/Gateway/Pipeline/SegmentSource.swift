// Where a pass reads from: a file at offsets, by all workers at once; or a stream of unknown length, in turns.

import Foundation
import Glibc
import NIOConcurrencyHelpers
import Sealing
import Store

/// How a segment's bytes stand in the buffer.
package enum SegmentLayout: Sendable {
  /// Plain bytes, to be sealed: chunk by chunk with room for the tags.
  case plain
  /// Sealed bytes, to be opened: as on the wire.
  case sealed

  var segmentBytes: Int { self == .plain ? BodyGeometry.segmentBytes : BodyGeometry.sealedSegmentBytes }

  func ranges(_ buffer: borrowing SegmentBuffer, _ bytes: Int) -> [UnsafeMutableRawBufferPointer] {
    switch self {
    case .plain: buffer.plainRanges(bytes)
    case .sealed: [UnsafeMutableRawBufferPointer(rebasing: buffer.bytes[..<bytes])]
    }
  }
}

/// One segment as it was read.
package struct ReadSegment: Sendable {
  let index: Int64
  let bytes: Int
  let isLast: Bool
}

/// Hands out segments in order, each to one worker. Called by many workers at once.
package protocol SegmentSource: Sendable {
  /// Room that a buffer needs, sealed.
  var sealedSegmentBytesMax: Int { get }

  /// Reads the next segment into `buffer`; nil after the last.
  func next(into buffer: borrowing SegmentBuffer) throws -> ReadSegment?
}

/// A file of known size. Workers claim numbers and read at offsets, without waiting for each other.
package final class FileSource: SegmentSource {
  private let file: FileAccess
  private let offset: Int64
  private let bytes: Int64
  private let layout: SegmentLayout
  private let claimed = NIOLockedValueBox<Int64>(0)
  private let segments: Int64
  package let sealedSegmentBytesMax: Int

  /// `bytes` bytes of `file` from `offset`; the file stays open, and the caller's, until the pass is over.
  package init(_ file: borrowing File, offset: Int64 = 0, bytes: Int64, layout: SegmentLayout) throws(SealingError) {
    self.file = file.access
    self.offset = offset
    self.bytes = bytes
    self.layout = layout
    let geometry =
      switch layout {
      case .plain: try BodyGeometry(plainBytes: bytes)
      case .sealed: try BodyGeometry(sealedBytes: bytes)
      }
    segments = geometry.segments
    sealedSegmentBytesMax = geometry.sealedSegmentBytesMax
  }

  package func next(into buffer: borrowing SegmentBuffer) throws -> ReadSegment? {
    let index = claimed.withLockedValue { value in
      defer { value += 1 }
      return value
    }
    guard index < segments else { return nil }
    let start = index * Int64(layout.segmentBytes)
    let count = Int(min(Int64(layout.segmentBytes), bytes - start))
    // A file that shrank while it was read is not the file that was accepted.
    guard try file.read(into: layout.ranges(buffer, count), at: offset + start) == count else {
      throw DiskError("read", file.path, errno: ENODATA)
    }
    return ReadSegment(index: index, bytes: count, isLast: index == segments - 1)
  }
}

/// A pipe, a terminal, anything that ends when it ends. Workers read in turns; one byte ahead tells which segment is last.
package final class StreamSource: SegmentSource, @unchecked Sendable {
  // Proof for @unchecked: all mutable state is touched only under `lock`.
  private let lock = NSLock()
  private let descriptor: Int32
  private let layout: SegmentLayout
  private var ahead: [UInt8]
  private var index: Int64 = 0
  private var isOver = false

  package var sealedSegmentBytesMax: Int { BodyGeometry.sealedSegmentBytes }

  /// - Parameter prefix: bytes that were read from the descriptor already and belong to the stream.
  package init(descriptor: Int32, prefix: [UInt8] = [], layout: SegmentLayout) {
    self.descriptor = descriptor
    self.layout = layout
    ahead = prefix
  }

  package func next(into buffer: borrowing SegmentBuffer) throws -> ReadSegment? {
    lock.lock()
    defer { lock.unlock() }
    guard !isOver else { return nil }
    var count = 0
    for range in layout.ranges(buffer, layout.segmentBytes) {
      let got = try fill(range)
      count += got
      if got < range.count {
        isOver = true
        break
      }
    }
    if !isOver, ahead.isEmpty {
      ahead = try readSome(1)
      isOver = ahead.isEmpty
    }
    defer { index += 1 }
    return ReadSegment(index: index, bytes: count, isLast: isOver)
  }

  private func fill(_ range: UnsafeMutableRawBufferPointer) throws -> Int {
    var done = min(ahead.count, range.count)
    range.copyBytes(from: ahead[..<done])
    ahead.removeFirst(done)
    while done < range.count {
      let got = read(descriptor, range.baseAddress! + done, range.count - done)
      if got < 0, errno == EINTR { continue }
      guard got >= 0 else { throw DiskError("read", "the input stream") }
      if got == 0 { break }
      done += got
    }
    return done
  }

  private func readSome(_ count: Int) throws -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    let got = try bytes.withUnsafeMutableBytes { try fill($0) }
    return Array(bytes[..<got])
  }
}
