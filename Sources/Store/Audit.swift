// The audit log: canonical JSON entries that form an RFC 6962 tree, so that none is rewritten unnoticed.
//
//   leaf = SHA-256(0x00 || entry)      entry = {"at":…,"detail":{…},"id":…,"kind":…,"sender":…,"sequence":…}
//
// The signed head of the tree goes to heads.log outside SQLite and, with every receipt, to a partner.

import Foundation
import Glibc
import Sealing

/// What happened, before it has its place in the log.
package struct AuditEvent: Equatable, Sendable {
  package let kind: String
  package let sender: AgencyID?
  package let id: TransferID?
  /// Never a payload, a key or a subject.
  package let detail: [String: JSON]

  package init(_ kind: String, sender: AgencyID? = nil, id: TransferID? = nil, _ detail: [String: JSON] = [:]) {
    self.kind = kind
    self.sender = sender
    self.id = id
    self.detail = detail
  }

  func entry(sequence: Int64, at: Date) -> JSON {
    var members: [String: JSON] = [
      "sequence": .integer(sequence), "at": .string(Timestamp.format(at)), "kind": .string(kind),
      "detail": .object(detail),
    ]
    members["sender"] = sender.map { .string($0.text) }
    members["id"] = id.map { .string($0.text) }
    return .object(members)
  }
}

/// An entry as it stands in the log.
package struct AuditEntry: Equatable, Sendable {
  package let sequence: Int64
  package let bytes: [UInt8]

  /// A decision names each field of its agreement.
  package static let bytesMax = 1 << 19

  package func document() throws(SealingError) -> JSON { try JSON(canonical: bytes, bytesMax: Self.bytesMax) }
}

/// An entry of one ledger: nothing else has its leaf.
package struct LedgerPlace: Equatable, Sendable {
  package let epoch: String
  package let sequence: Int64
  package let leaf: Digest

  package init(epoch: String, sequence: Int64, leaf: Digest) {
    self.epoch = epoch
    self.sequence = sequence
    self.leaf = leaf
  }
}

/// Signs a head. Given by the gateway, which has the keys.
package typealias HeadSigner = @Sendable (LedgerHead) -> Envelope

/// heads.log: one signed head a line, appended outside SQLite. A ledger behind its last line was rolled back.
///
/// At most one line a second and one at closing, so at most about 35 MB a day under constant load.
struct HeadsLog: ~Copyable {
  static let lineBytesMax = Envelope.bytesMax
  private let file: File
  private var lastSeconds: Int64 = 0
  private(set) var lastWritten: LedgerHead?

  init(_ path: String) throws(DiskError) {
    let file = try File(path, O_RDWR | O_CREAT | O_APPEND)
    let tail = try Self.tail(of: file)
    // A torn last line was never complete; the next one begins on a line of its own.
    if let last = tail.last, last != 10 { try Self.append([10], to: file) }
    lastWritten = Self.heads(in: tail).last
    self.file = file
  }

  private static func tail(of file: borrowing File) throws(DiskError) -> [UInt8] {
    let size = try file.status().st_size
    let start = max(0, size - 4 * lineBytesMax)
    var tail = [UInt8](repeating: 0, count: size - start)
    var failure: DiskError?
    tail.withUnsafeMutableBytes { buffer in
      do throws(DiskError) { _ = try file.read(into: buffer, at: Int64(start)) } catch { failure = error }
    }
    if let failure { throw failure }
    return tail
  }

  /// Every head in the file's bytes, in order; lines that are not whole envelopes are passed over.
  private static func heads(in bytes: [UInt8]) -> [LedgerHead] {
    let complete = bytes.lastIndex(of: 10).map { bytes[..<$0] } ?? []
    return complete.split(separator: 10).compactMap { head(in: Array($0))?.head }
  }

  /// nil for what is no whole head: a crash may have torn it.
  static func head(in line: [UInt8]) -> (envelope: Envelope, head: LedgerHead)? {
    guard let envelope = try? Envelope(parsing: line, as: .head), let head = try? LedgerHead(envelope.unverified())
    else { return nil }
    return (envelope, head)
  }

  private static func append(_ bytes: [UInt8], to file: borrowing File) throws(DiskError) {
    // O_APPEND: pwrite appends whatever the offset (pwrite(2), BUGS).
    try file.write(bytes, at: 0)
  }

  /// Appends `head` when a second has passed since the last line, or `always`.
  mutating func write(_ head: LedgerHead, at instant: Date, always: Bool, sign: HeadSigner) throws(DiskError) {
    let seconds = Int64(instant.timeIntervalSince1970)
    guard head != lastWritten, always || seconds != lastSeconds else { return }
    try Self.append(sign(head).bytes + [10], to: file)
    if always { try file.syncData() }
    lastSeconds = seconds
    lastWritten = head
  }
}

/// The lines of heads.log as it was when the reader was made: it grows with the years, and a gateway may be writing it.
final class HeadsReader {
  private let file: File
  private let size: Int64
  private var offset: Int64 = 0
  private var bytes: [UInt8] = []
  /// Where the next line begins in `bytes`.
  private var start = 0

  init(_ path: String) throws(DiskError) {
    let file = try File(path, O_RDONLY)
    size = Int64(try file.status().st_size)
    self.file = file
  }

  /// The next line without its end; nil after the last whole one.
  ///
  /// - Throws: DiskError EFBIG for a line that is longer than any head.
  func next() throws(DiskError) -> [UInt8]? {
    while true {
      if let end = bytes[start...].firstIndex(of: 10) {
        defer { start = end + 1 }
        return Array(bytes[start..<end])
      }
      let count = min(size - offset, Int64(HeadsLog.lineBytesMax))
      guard count > 0 else { return nil }
      guard bytes.count - start <= HeadsLog.lineBytesMax else { throw DiskError("read", file.path, errno: EFBIG) }
      bytes = try bytes[start...] + file.bytes(at: offset, count: Int(count))
      start = 0
      offset += count
    }
  }
}
