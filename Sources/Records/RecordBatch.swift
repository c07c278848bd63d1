// Bytes cut into batches of whole records: what workers take one after another.

import CKernels
import Glibc

/// Bytes of the input that hold whole records, and where those are. Reused: one per worker.
///
/// Bounds: `spans` lie within `count`, `count` within `capacity`; only cutters write them.
package struct RecordBatch: ~Copyable {
  private(set) var bytes: UnsafeMutablePointer<UInt8>
  private(set) var capacity: Int
  /// Bytes that belong to the batch.
  var count = 0
  var spans: [RecordSpan] = []
  /// Position among the batches, from 0.
  var index: Int64 = 0
  /// Records that are no records: the envelope, a cut end.
  var faults: [Finding] = []
  /// In the last batch of a JSON array: what stands around it, the array left empty.
  var envelope: JSONDocument?

  package init(capacity: Int = RecordLimits.batchBytes) {
    self.capacity = capacity
    bytes = .allocate(capacity: capacity)
  }

  deinit {
    // Records are personal data.
    bytes.update(repeating: 0, count: count)
    bytes.deallocate()
  }

  mutating func reserve(_ wanted: Int) {
    guard wanted > capacity else { return }
    let room = UnsafeMutablePointer<UInt8>.allocate(capacity: wanted)
    room.update(from: bytes, count: count)
    bytes.update(repeating: 0, count: count)
    bytes.deallocate()
    (bytes, capacity) = (room, wanted)
  }

  /// The batch's line ends, where whoever cut it has counted them.
  var linesCounted: Int64?
  /// The batch's line ends.
  var lines: Int64 { linesCounted ?? Int64(sp_count_byte(bytes, count, 10)) }

  /// Line of an offset, from 1 within the batch.
  func line(of offset: Int) -> Int64 { 1 + Int64(sp_count_byte(bytes, offset, 10)) }
}

/// Lines of ascending offsets of a batch, each byte looked at once.
struct LineCounter {
  private var offset = 0
  private var line: Int64 = 1

  mutating func line(of wanted: Int, in batch: borrowing RecordBatch) -> Int64 {
    if wanted >= offset {
      line += Int64(sp_count_byte(batch.bytes + offset, wanted - offset, 10))
    } else {
      line -= Int64(sp_count_byte(batch.bytes + wanted, offset - wanted, 10))
    }
    offset = wanted
    return line
  }
}

/// One record's bytes in a batch.
struct RecordSpan {
  var start: Int
  var end: Int
}

/// Every limit of reading records.
package enum RecordLimits {
  /// Read at once: with what is made of it, it stays in a core's cache.
  package static let batchBytes = 1 << 18
  /// The largest record.
  package static let recordBytesMax = 16 << 20
  /// All of a JSON file that is not in its array of records.
  package static let envelopeBytesMax = 1 << 20
  /// Findings that are kept in full.
  package static let findingsMax = 100
  /// Findings of one record.
  static let findingsOfRecordMax = 20
  /// Invalid records that are kept for the sender.
  package static let setAsideBytesMax = 16 << 20
}

/// Cuts a stream into batches. Called by one worker at a time, in turns.
protocol BatchCutter: SendableMetatype {
  /// Fills `batch`; false after the last.
  mutating func next(_ batch: inout RecordBatch) throws -> Bool
}

/// Reads bytes into a buffer; 0 at the end.
package typealias RecordInput = @Sendable (UnsafeMutableRawBufferPointer) throws -> Int

/// Bytes that came after the last whole record, kept for the next batch.
struct Remainder {
  private let input: RecordInput
  private var rest: [UInt8] = []
  private(set) var isAtEnd = false
  private var nextIndex: Int64 = 0

  init(_ input: @escaping RecordInput) { self.input = input }

  /// Begins a batch with what was left over.
  mutating func begin(_ batch: inout RecordBatch) {
    batch.spans.removeAll(keepingCapacity: true)
    batch.faults.removeAll()
    batch.linesCounted = nil
    batch.count = 0
    batch.reserve(rest.count + RecordLimits.batchBytes)
    rest.withUnsafeBufferPointer { kept in
      if let start = kept.baseAddress { batch.bytes.update(from: start, count: kept.count) }
    }
    batch.count = rest.count
    rest.removeAll(keepingCapacity: true)
    batch.index = nextIndex
    nextIndex += 1
  }

  /// Reads until at least half of `batchBytes` more are there, or the input ends; how many came.
  mutating func fill(_ batch: inout RecordBatch) throws -> Int {
    batch.reserve(batch.count + RecordLimits.batchBytes)
    let start = batch.count
    while !isAtEnd, batch.count - start < RecordLimits.batchBytes / 2 {
      let room = UnsafeMutableRawBufferPointer(start: batch.bytes + batch.count, count: batch.capacity - batch.count)
      let got = try input(room)
      isAtEnd = got == 0
      batch.count += got
    }
    return batch.count - start
  }

  /// What lies behind `end` waits for the next batch.
  mutating func keep(_ batch: inout RecordBatch, from end: Int) {
    rest.append(contentsOf: UnsafeBufferPointer(start: batch.bytes + end, count: batch.count - end))
    batch.count = end
  }
}

/// NDJSON: a record a line. Blank lines are no records.
struct LineCutter: BatchCutter {
  private var remainder: Remainder
  private var isOver = false

  init(_ input: @escaping RecordInput) { remainder = Remainder(input) }

  mutating func next(_ batch: inout RecordBatch) throws -> Bool {
    guard !isOver else { return false }
    remainder.begin(&batch)
    var end = 0
    while true {
      let searched = batch.count
      _ = try remainder.fill(&batch)
      if remainder.isAtEnd {
        isOver = true
        end = batch.count
        break
      }
      if let last = lastLineEnd(batch, after: searched) {
        end = last + 1
        break
      }
      guard batch.count <= RecordLimits.recordBytesMax else {
        isOver = true
        batch.faults.append(
          Finding(
            fault: "record.size", expected: "a line of at most \(RecordLimits.recordBytesMax) bytes", record: 1,
            line: 1,
            byteOffset: 0))
        return true
      }
    }
    if batch.count == 0 { return false }
    remainder.keep(&batch, from: end)
    var start = 0
    while start < end {
      let stop = memchr(batch.bytes + start, 10, end - start).map { $0 - UnsafeMutableRawPointer(batch.bytes) } ?? end
      batch.spans.append(RecordSpan(start: start, end: stop))
      start = stop + 1
    }
    // The last line may have no end.
    batch.linesCounted = Int64(batch.spans.count) - (batch.bytes[end - 1] == 10 ? 0 : 1)
    return true
  }

  private func lastLineEnd(_ batch: borrowing RecordBatch, after: Int) -> Int? {
    let place = sp_last_byte(batch.bytes + after, batch.count - after, 10)
    return place < 0 ? nil : after + Int(place)
  }
}
