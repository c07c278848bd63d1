// The consent tables in one file, so that a start reads it in one go instead of looking up pages all over the ledger:
//
//   rows:     subject (16) || word (8, big-endian)  …      an agreement's together
//   trailer:  canonical JSON, which says what of the ledger the rows show || its length (8, big-endian) || MAC (32)
//
//   open(.part, O_EXCL)  (write  fdatasync) …  rename(.part, consents.table)  fsync(home)
//
// The ledger stays the truth. What changed after the entry that the trailer names is read from the ledger, and a file that is of
// another ledger, or not ours, or damaged is not used. Losing it loses nothing.

import Foundation
import Glibc
import Policies
import Sealing
import Store

struct ConsentTableFile {
  /// How many of the rows are an agreement's.
  private typealias Share = (agreement: String, count: Int)

  /// The tables as they were at a place of the ledger.
  struct Tables {
    let place: LedgerPlace
    fileprivate(set) var byAgreement: [String: ConsentTable] = [:]
  }

  private static let rowBytes = 24
  private static let chunkRows = 1 << 16
  private static let footerBytes = 8 + Digest.byteCount
  private static let trailerBytesMax = 1 << 20

  let path: String
  let master: Secret

  private func code(_ digest: Digest) -> Digest {
    authenticationCode(of: digest, master: master, use: "sallyport/consent-table/v1")
  }

  // MARK: writing

  /// Replaces the file by what `reader` shows. Blocks; asks now and then whether it is to go on.
  ///
  /// - Returns: the sequence of the ledger's entry that it shows; nil for a ledger without entries, which needs no file.
  /// - Throws: CancellationError when it is not; DiskError. The file before stays.
  func write(_ reader: Reader, while goesOn: () throws -> Bool) throws -> Int64? {
    guard let place = try reader.place() else { return nil }
    let temporary = "\(path).part"
    try Directory.remove(temporary)
    do {
      let file = try File(temporary, O_WRONLY | O_CREAT | O_EXCL)
      var output = Output(file: file)
      var shares: [JSON] = []
      for agreement in try reader.consentAgreements() {
        var count: Int64 = 0
        try reader.forEachConsent(agreement) { subject, word in
          try output.add(subject, word)
          count += 1
          if count % Int64(Self.chunkRows) == 0, try !goesOn() { throw CancellationError() }
        }
        shares.append(["agreement": .string(agreement), "count": .integer(count)])
      }
      let trailer = JSON.object([
        "version": 1, "epoch": .string(place.epoch), "sequence": .integer(place.sequence),
        "leaf": .string(place.leaf.hex), "agreements": .array(shares),
      ]).canonical
      try output.add(trailer + Self.bytes(UInt64(trailer.count)))
      try output.finish(code)
      try Directory.rename(temporary, path)
      try Directory.sync(Directory.parent(of: path))
      return place.sequence
    } catch {
      unlink(temporary)
      throw error
    }
  }

  private static func bytes(_ word: UInt64) -> [UInt8] { withUnsafeBytes(of: word.bigEndian) { Array($0) } }

  /// Bytes on their way to the file, digested.
  private struct Output: ~Copyable {
    let file: File
    private var hash = StreamingSHA256()
    private var pending: [UInt8] = []
    private var offset: Int64 = 0

    init(file: consuming File) {
      self.file = file
      pending.reserveCapacity(chunkRows * rowBytes)
    }

    mutating func add(_ subject: SubjectReference, _ word: UInt64) throws {
      let row = (subject.high.bigEndian, subject.low.bigEndian, word.bigEndian)
      withUnsafeBytes(of: row) { pending.append(contentsOf: $0) }
      if pending.count >= chunkRows * rowBytes { try flush() }
    }

    mutating func add(_ bytes: [UInt8]) throws {
      pending += bytes
      try flush()
    }

    private mutating func flush() throws {
      pending.withUnsafeBytes { hash.update($0) }
      try file.write(pending, at: offset)
      offset += Int64(pending.count)
      pending.removeAll(keepingCapacity: true)
      // Little by little: a withdrawal's commit would wait behind all that is not on disk yet.
      try file.syncData()
    }

    consuming func finish(_ code: (Digest) -> Digest) throws {
      try file.write(code(hash.finish()).bytes, at: offset)
      try file.syncData()
    }
  }

  // MARK: reading

  /// The file's tables; nil when there is none. Blocks.
  ///
  /// - Throws: `document.*` for a damaged or foreign file, `LedgerError.damaged` for one that shows another ledger than `reader`; DiskError.
  func read(_ reader: Reader) throws -> Tables? {
    guard Directory.exists(path) else { return nil }
    let file = try File(path, O_RDONLY)
    let size = Int64(try file.status().st_size)
    guard size >= Self.footerBytes else { throw SealingError(.documentInvalid, "it is cut short") }
    let footer = try file.bytes(at: size - Int64(Self.footerBytes), count: Self.footerBytes)
    let length = footer.prefix(8).reduce(0) { $0 << 8 | UInt64($1) }
    let end = size - Int64(Self.footerBytes) - Int64(clamping: length)
    guard length <= Self.trailerBytesMax, end >= 0 else { throw SealingError(.documentInvalid, "its end is damaged") }
    let trailer = try file.bytes(at: end, count: Int(length))
    let (place, shares) = try Self.parse(trailer)
    guard shares.reduce(0, { $0 + Int64($1.count) }) * Int64(Self.rowBytes) == end else {
      throw SealingError(.documentInvalid, "its length is not what it says")
    }
    guard try reader.has(place) else { throw LedgerError.damaged("it shows another ledger") }
    var tables = Tables(place: place)
    var hash = StreamingSHA256()
    var offset: Int64 = 0
    for (agreement, count) in shares {
      tables.byAgreement[agreement] = try Self.rows(file, count, from: &offset, &hash)
    }
    (trailer + footer.prefix(8)).withUnsafeBytes { hash.update($0) }
    guard code(hash.finish()).bytes == Array(footer.dropFirst(8)) else {
      throw SealingError(.documentSignature, "its code does not fit")
    }
    return tables
  }

  private static func parse(_ trailer: [UInt8]) throws -> (LedgerPlace, [Share]) {
    var document = try DocumentReader(JSON(canonical: trailer, bytesMax: trailerBytesMax), at: "trailer")
    try document.version(1)
    let range: ClosedRange<Int64> = 0...JSON.integerMax
    let place = LedgerPlace(
      epoch: try document.string("epoch"), sequence: try document.integer("sequence", range),
      leaf: try document.digest("leaf"))
    var shares: [Share] = []
    for var share in try document.objects("agreements", countMax: 100_000) {
      shares.append((try share.string("agreement"), Int(try share.integer("count", 0...1 << 40))))
      try share.finish()
    }
    try document.finish()
    return (place, shares)
  }

  private static func rows(
    _ file: borrowing File, _ count: Int, from offset: inout Int64, _ hash: inout StreamingSHA256
  )
    throws -> ConsentTable
  {
    let table = ConsentTable(room: count)
    let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: chunkRows * rowBytes, alignment: 8)
    defer { buffer.deallocate() }
    var left = count
    while left > 0 {
      let piece = UnsafeMutableRawBufferPointer(rebasing: buffer[..<(min(left, chunkRows) * rowBytes)])
      guard try file.read(into: piece, at: offset) == piece.count else {
        throw SealingError(.documentInvalid, "it is cut short")
      }
      hash.update(UnsafeRawBufferPointer(piece))
      for row in stride(from: 0, to: piece.count, by: rowBytes) {
        func word(_ place: Int) -> UInt64 {
          UInt64(bigEndian: piece.load(fromByteOffset: row + 8 * place, as: UInt64.self))
        }
        // Zero would be nobody; the ledger has none.
        guard word(2) != 0 else { throw SealingError(.documentInvalid, "a row says nothing") }
        table.set(SubjectReference(high: word(0), low: word(1)), word(2))
      }
      offset += Int64(piece.count)
      left -= piece.count / rowBytes
    }
    return table
  }
}
