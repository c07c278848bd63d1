// What a worker makes of one batch: bytes for the output, with what has to be asked about them (whose they are, which
// pseudonyms stand in them), and then the answer applied: placeholders filled, withheld records cut out.

import Glibc

/// Bytes that grow. Wiped when they go: they are records.
struct ByteBuffer: ~Copyable {
  private(set) var bytes: UnsafeMutablePointer<UInt8>
  private var capacity: Int
  private(set) var count = 0

  init(capacity: Int) {
    self.capacity = capacity
    bytes = .allocate(capacity: max(1, capacity))
  }

  deinit {
    bytes.update(repeating: 0, count: count)
    bytes.deallocate()
  }

  @inline(__always) mutating func append(_ source: UnsafePointer<UInt8>, _ length: Int) {
    if count + length > capacity { grow(length) }
    memcpy(bytes + count, source, length)
    count += length
  }

  @inline(__always) mutating func append(_ byte: UInt8) {
    if count == capacity { grow(1) }
    bytes[count] = byte
    count += 1
  }

  mutating func append(_ text: [UInt8]) {
    text.withUnsafeBufferPointer { if let start = $0.baseAddress { append(start, $0.count) } }
  }

  /// Forgets what was written from `mark` on.
  mutating func cut(to mark: Int) { count = mark }

  /// Moves a range down over a gap.
  mutating func move(_ range: Range<Int>, to target: Int) {
    memmove(bytes + target, bytes + range.lowerBound, range.count)
  }

  @inline(never) private mutating func grow(_ length: Int) {
    let wanted = max(capacity * 2, count + length)
    let room = UnsafeMutablePointer<UInt8>.allocate(capacity: wanted)
    memcpy(room, bytes, count)
    bytes.update(repeating: 0, count: count)
    bytes.deallocate()
    (bytes, capacity) = (room, wanted)
  }
}

/// A finished piece of output, handed on in order.
package final class OutputPiece: @unchecked Sendable {
  // Proof for @unchecked: filled by one worker before it is handed on, only read afterwards, by one owner at a time.
  private var buffer: ByteBuffer

  /// Bytes at the front that do not count.
  private var skipped = 0

  init(_ buffer: consuming ByteBuffer) { self.buffer = buffer }

  package convenience init(_ text: [UInt8]) {
    var buffer = ByteBuffer(capacity: text.count)
    buffer.append(text)
    self.init(buffer)
  }

  package var count: Int { buffer.count - skipped }
  package var bytes: UnsafeRawBufferPointer { UnsafeRawBufferPointer(start: buffer.bytes + skipped, count: count) }

  func skip(_ count: Int) { skipped = count }
}

/// One kept record's share in a group.
struct GroupEntry {
  var key: [UInt8]
  var measure: [UInt8]
  var distinct: [UInt8]
}

/// Gathers one batch's output.
struct BatchWriter: ~Copyable {
  struct Mark {
    fileprivate let bytes: Int
    fileprivate let values: Int
  }

  private let gate: RecordGate?
  var buffer = ByteBuffer(capacity: RecordLimits.batchBytes)
  private var candidates: [Range<Int>] = []
  private var entries: [GroupEntry] = []
  private var ids = TextList()
  private var values = TextList()
  /// Records that this writer was given, over all its batches.
  private var seen: Int64 = 0
  /// Where the placeholders of `values` stand.
  private var patches: [Int] = []

  init(_ gate: RecordGate?) { self.gate = gate }

  /// Where the next record begins.
  var mark: Mark { Mark(bytes: buffer.count, values: values.count) }

  /// Forgets a record that does not go after all.
  mutating func drop(to mark: Mark) {
    buffer.cut(to: mark.bytes)
    values.cut(to: mark.values)
    patches.removeSubrange(mark.values...)
  }

  /// 26 characters that are filled in when the batch ends.
  mutating func pseudonym(of value: UnsafeBufferPointer<UInt8>) {
    patches.append(buffer.count)
    values.append(value)
    for _ in 0..<Transform.pseudonymBytes { buffer.append(UInt8(ascii: "a")) }
  }

  /// The record from `mark` on is whole.
  ///
  /// - Parameter id: its subject, canonical; given for every record or for none.
  mutating func end(from mark: Mark, id: [UInt8]?, entry: GroupEntry? = nil) {
    candidates.append(mark.bytes..<buffer.count)
    if let entry { entries.append(entry) }
    if let id { id.withUnsafeBufferPointer { ids.append($0) } }
  }

  /// Asks the gate, applies its answers, and hands the output over.
  mutating func finish(into outcome: inout BatchOutcome) {
    if let gate, !patches.isEmpty {
      for (place, digest) in zip(patches, gate.pseudonyms(values)) { Transform.write(digest, at: buffer.bytes + place) }
    }
    let subjects = ids.count > 0 ? gate?.subjects(ids) ?? [] : []
    let verdicts = subjects.isEmpty ? nil : gate?.withhold?(subjects)
    var end = 0
    outcome.subjects.reserveCapacity(subjects.count)
    for (place, range) in candidates.enumerated() {
      defer { seen += 1 }
      if let gate, gate.dropping.contains(seen) {
        outcome.withheld[gate.droppingCode, default: 0] += 1
        continue
      }
      if let verdict = verdicts?[place], verdict != 0, let gate {
        outcome.withheld[gate.reasons[Int(verdict) - 1], default: 0] += 1
        continue
      }
      if range.lowerBound != end { buffer.move(range, to: end) }
      end += range.count
      outcome.kept += 1
      if !subjects.isEmpty { outcome.subjects.append(subjects[place]) }
      if !entries.isEmpty { outcome.entries.append(entries[place]) }
    }
    buffer.cut(to: end)
    candidates.removeAll(keepingCapacity: true)
    entries.removeAll(keepingCapacity: true)
    ids.cut(to: 0)
    values.cut(to: 0)
    patches.removeAll(keepingCapacity: true)
    var full = ByteBuffer(capacity: RecordLimits.batchBytes)
    swap(&full, &buffer)
    outcome.output = OutputPiece(full)
  }
}
