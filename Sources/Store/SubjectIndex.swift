// Who is in a package: pairs of a subject's reference and the ordinal of a record, 24 bytes each, beside the spool.
//
//   runs, each sorted:  reference (16) || ordinal (8, big-endian)  …        at most `entriesOfRunMax` a run
//   footer:             entries of each run (8 each) || number of runs (8) || "SPSUBJ01"
//
//   open(ID.part, O_EXCL)  write runs  write footer  fdatasync  rename(ID.part, ID.index)  fsync(directory)
//
// A search is a binary search in each run: memory stays bounded whatever the number of records.

import Foundation
import Glibc
import Sealing

/// Writes one index. Used by one thread at a time.
package final class SubjectIndexWriter: @unchecked Sendable {
  // Proof for @unchecked: the records' sink calls it from one thread at a time, and `finish` comes after the last.
  package static let entryBytes = 24
  static let entriesOfRunMax = 1 << 18
  static let magic = Array("SPSUBJ01".utf8)

  private let file: File
  private let path: String
  private var entries: [(subject: SubjectReference, ordinal: UInt64)] = []
  private var runs: [UInt64] = []
  private var offset: Int64 = 0
  private var nextOrdinal: UInt64 = 0

  fileprivate init(_ path: String) throws(DiskError) {
    self.path = path
    try Directory.remove(path)
    file = try File(path, O_RDWR | O_CREAT | O_EXCL)
  }

  /// Subjects of the next records, in order.
  package func append(_ subjects: [SubjectReference]) throws {
    for subject in subjects {
      entries.append((subject, nextOrdinal))
      nextOrdinal += 1
      if entries.count == Self.entriesOfRunMax { try flush() }
    }
  }

  /// One record's subject, in any order.
  package func append(_ subject: SubjectReference, ordinal: Int64) throws {
    entries.append((subject, UInt64(ordinal)))
    if entries.count == Self.entriesOfRunMax { try flush() }
  }

  private func flush() throws {
    guard !entries.isEmpty else { return }
    // Word by word: tuples are compared through witness tables, which took 7 % of a whole pass.
    entries.sort { a, b in
      if a.subject.high != b.subject.high { return a.subject.high < b.subject.high }
      if a.subject.low != b.subject.low { return a.subject.low < b.subject.low }
      return a.ordinal < b.ordinal
    }
    let bytes = [UInt8](unsafeUninitializedCapacity: entries.count * Self.entryBytes) { output, count in
      let raw = UnsafeMutableRawBufferPointer(output)
      for (place, entry) in entries.enumerated() {
        raw.storeBytes(of: entry.subject.high.bigEndian, toByteOffset: place * 24, as: UInt64.self)
        raw.storeBytes(of: entry.subject.low.bigEndian, toByteOffset: place * 24 + 8, as: UInt64.self)
        raw.storeBytes(of: entry.ordinal.bigEndian, toByteOffset: place * 24 + 16, as: UInt64.self)
      }
      count = entries.count * Self.entryBytes
    }
    try file.write(bytes, at: offset)
    offset += Int64(bytes.count)
    runs.append(UInt64(entries.count))
    entries.removeAll(keepingCapacity: true)
  }

  /// Makes the index durable under its final name.
  fileprivate func finish(as final: String) throws {
    try flush()
    let footer = (runs + [UInt64(runs.count)]).flatMap { word in
      (0..<8).map { UInt8(truncatingIfNeeded: word >> UInt64(56 - 8 * $0)) }
    }
    try file.write(footer + Self.magic, at: offset)
    try file.syncData()
    try Directory.rename(path, final)
    try Directory.sync(Directory.parent(of: final))
  }
}

/// Reads one index. Callable concurrently.
package struct SubjectIndex: ~Copyable, Sendable {
  private let file: File
  /// Where each run begins, in entries, and where the last ends.
  private let bounds: [Int64]

  fileprivate init(_ path: String) throws {
    let file = try File(path, O_RDONLY)
    let size = Int64(try file.status().st_size)
    let end = try Self.words(file, 2, at: size - 16)
    guard end[1] == SubjectIndexWriter.magic.reduce(0, { $0 << 8 | UInt64($1) }), end[0] < 1 << 24 else {
      throw DiskError("read", path, errno: EINVAL)
    }
    let runs = try Self.words(file, Int64(end[0]), at: size - 16 - Int64(end[0]) * 8)
    var bounds: [Int64] = [0]
    for run in runs {
      guard run < size else { throw DiskError("read", path, errno: EINVAL) }
      bounds.append(bounds[bounds.count - 1] + Int64(run))
    }
    guard bounds.last! * 24 + Int64(runs.count) * 8 + 16 == size else { throw DiskError("read", path, errno: EINVAL) }
    self.file = file
    self.bounds = bounds
  }

  private static func words(_ file: borrowing File, _ count: Int64, at offset: Int64) throws -> [UInt64] {
    guard offset >= 0, count < 1 << 24 else { throw DiskError("read", file.path, errno: EINVAL) }
    var bytes = [UInt8](repeating: 0, count: Int(count) * 8)
    var got = 0
    try bytes.withUnsafeMutableBytes { got = try file.read(into: $0, at: offset) }
    guard got == bytes.count else { throw DiskError("read", file.path, errno: ENODATA) }
    return (0..<Int(count)).map { word in bytes[(word * 8)..<(word * 8 + 8)].reduce(0) { $0 << 8 | UInt64($1) } }
  }

  package var records: Int64 { bounds.last! }

  /// Ordinals of the records about `subject`, ascending.
  package func ordinals(of subject: SubjectReference) throws -> [Int64] {
    var found: [Int64] = []
    for run in 0..<(bounds.count - 1) {
      var (low, high) = (bounds[run], bounds[run + 1])
      while low < high {
        let middle = (low + high) / 2
        if try entry(middle).subject < subject { low = middle + 1 } else { high = middle }
      }
      while low < bounds[run + 1] {
        let next = try entry(low)
        guard next.subject == subject else { break }
        found.append(next.ordinal)
        low += 1
      }
    }
    return found.sorted()
  }

  private func entry(_ place: Int64) throws -> (subject: SubjectReference, ordinal: Int64) {
    try entries(from: place, count: 1)[0]
  }

  private func entries(from place: Int64, count: Int) throws -> [(subject: SubjectReference, ordinal: Int64)] {
    var bytes = [UInt8](repeating: 0, count: count * 24)
    var got = 0
    try bytes.withUnsafeMutableBytes { got = try file.read(into: $0, at: place * 24) }
    guard got == bytes.count else { throw DiskError("read", file.path, errno: ENODATA) }
    return (0..<count).map { index in
      let entry = bytes[(index * 24)..<(index * 24 + 24)]
      return (
        SubjectReference(bytes: entry.prefix(16))!, Int64(entry.suffix(8).reduce(UInt64(0)) { $0 << 8 | UInt64($1) })
      )
    }
  }

  /// All entries, in batches.
  package func forEach(_ body: ([(subject: SubjectReference, ordinal: Int64)]) throws -> Void) throws {
    var place: Int64 = 0
    while place < records {
      let count = Int(min(records - place, 4096))
      try body(try entries(from: place, count: count))
      place += Int64(count)
    }
  }
}

extension Spool {
  private var subjects: String { "\(path)/subjects" }

  /// Begins the index of a package.
  package func createSubjects(_ id: TransferID) throws -> SubjectIndexWriter {
    try Directory.make(subjects)
    return try SubjectIndexWriter("\(subjects)/\(id.text).part")
  }

  package func finishSubjects(_ writer: SubjectIndexWriter, _ id: TransferID) throws {
    try writer.finish(as: "\(subjects)/\(id.text).index")
  }

  /// nil when the package has none.
  package func subjects(of id: TransferID) throws -> SubjectIndex? {
    let file = "\(subjects)/\(id.text).index"
    guard Directory.exists(file) else { return nil }
    return try SubjectIndex(file)
  }

  /// Packages that have an index, or the beginning of one.
  package func indexed() throws(DiskError) -> [TransferID] {
    guard Directory.exists(subjects) else { return [] }
    return try Directory.names(subjects).compactMap { TransferID(String($0.prefix { $0 != "." })) }
  }

  /// When an index was finished; nil when it was not.
  package func subjectsTime(_ id: TransferID) throws -> Date? {
    let file = "\(subjects)/\(id.text).index"
    guard Directory.exists(file) else { return nil }
    return Date(timeIntervalSince1970: Double(try Directory.status(file).st_mtim.tv_sec))
  }

  /// Removes an index, and what was begun of it.
  package func removeSubjects(_ id: TransferID) throws {
    try Directory.remove("\(subjects)/\(id.text).part")
    try Directory.remove("\(subjects)/\(id.text).index")
  }
}
