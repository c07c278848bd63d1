// The audit tree's edge in the database: loading, saving, and proving that heads handed out earlier are prefixes of it.

import Foundation
import GRDB
import Glibc
import Sealing

enum AuditTree {
  /// The epoch and the frontier, made anew in an empty database.
  static func load(_ pool: DatabasePool) throws -> (epoch: String, frontier: MerkleFrontier) {
    try pool.write { db in
      let epoch: String
      if let known = try String.fetchOne(db, sql: "SELECT value FROM meta WHERE name = 'epoch'") {
        epoch = known
      } else {
        epoch = TransferID().text
        try db.execute(sql: "INSERT INTO meta (name, value) VALUES ('epoch', ?)", arguments: [epoch])
      }
      return (epoch, try frontier(db))
    }
  }

  /// The edge as it is stored.
  ///
  /// - Throws: `LedgerError.damaged` when it is none of a tree with so many entries.
  static func frontier(_ db: Database) throws -> MerkleFrontier {
    let size = try UInt64.fetchOne(db, sql: "SELECT coalesce(max(sequence), 0) FROM audit") ?? 0
    guard let saved = try Data.fetchOne(db, sql: "SELECT value FROM meta WHERE name = 'frontier'") else {
      guard size == 0 else { throw LedgerError.damaged("the audit tree's edge is missing") }
      return MerkleFrontier()
    }
    let peaks = stride(from: 0, to: saved.count, by: Digest.byteCount).map {
      Digest(Array(saved.dropFirst($0).prefix(Digest.byteCount)))
    }
    guard let frontier = MerkleFrontier(size: size, peaks: peaks) else {
      throw LedgerError.damaged("the audit tree's edge does not fit its \(size) entries")
    }
    return frontier
  }

  static func save(_ frontier: MerkleFrontier, _ db: Database) throws {
    let peaks = Data(frontier.peaks.flatMap(\.bytes))
    try db.cachedStatement(
      sql: "INSERT INTO meta (name, value) VALUES ('frontier', ?) ON CONFLICT DO UPDATE SET value = excluded.value"
    )
    .execute(arguments: [peaks])
  }

  /// Requires that `head`, signed earlier from this ledger, is the tree as it was at that size.
  static func require(_ head: LedgerHead, in pool: DatabasePool, epoch: String, frontier: MerkleFrontier) throws {
    guard head.epoch == epoch else {
      throw LedgerError.rolledBack("a head of another epoch was signed (\(head.epoch))")
    }
    guard head.size <= Int64(frontier.size) else {
      throw LedgerError.rolledBack("it has \(frontier.size) entries, but a head over \(head.size) was signed")
    }
    let actual =
      head.size == Int64(frontier.size)
      ? frontier.root : try pool.read { try root(at: head.size, $0, TreeEdges()) }
    guard actual == head.root else {
      throw LedgerError.rolledBack("its first \(head.size) entries are not those whose head was signed")
    }
  }

  /// The root over the first `size` leaves, from their stored hashes.
  static func root(at size: Int64, _ db: Database, _ edges: TreeEdges) throws -> Digest {
    var frontier = edges.edge(atMost: size)
    let leaves = try Data.fetchCursor(
      db, sql: "SELECT leaf FROM audit WHERE sequence > ? AND sequence <= ? ORDER BY sequence",
      arguments: [Int64(frontier.size), size])
    while let leaf = try leaves.next() {
      frontier.append(Digest(Array(leaf)))
      edges.keep(frontier)
    }
    return frontier.root
  }
}

/// Edges of the tree on the way to its end: the heads that many partners hold cost one look at the log. Callable concurrently.
final class TreeEdges: @unchecked Sendable {
  // Proof for @unchecked: `edges` is touched only under `lock`.
  static let spacing: UInt64 = 1 << 14
  private let lock = NSLock()
  /// Of the tree over `spacing` leaves, twice as many, and so on.
  private var edges: [MerkleFrontier] = []

  func edge(atMost size: Int64) -> MerkleFrontier {
    lock.withLock { edges.prefix(Int(UInt64(size) / Self.spacing)).last } ?? MerkleFrontier()
  }

  func keep(_ edge: MerkleFrontier) {
    guard edge.size.isMultiple(of: Self.spacing) else { return }
    lock.withLock { if edge.size == UInt64(edges.count + 1) * Self.spacing { edges.append(edge) } }
  }
}

/// What `ledger verify` found.
package struct AuditVerification: Equatable, Sendable {
  package let entries: Int64
  package let root: Digest
  /// Of heads.log, that were compared.
  package let heads: Int64
  /// Sentences, one per fault; empty when all holds.
  package let faults: [String]
}

extension Ledger {
  /// Requires that `head`, which somebody else kept of this ledger, is a prefix of it.
  ///
  /// - Parameter thorough: compares the root too, which reads every leaf up to it.
  /// - Throws: `LedgerError.rolledBack`.
  package func requireHead(_ head: LedgerHead, thorough: Bool) async throws {
    let now = self.head
    if now.epoch != head.epoch {
      // A head from before a restore that an administrator made.
      let isKnown = try await read { try $0.isEarlier(epoch: head.epoch) }
      if isKnown { return }
      throw LedgerError.rolledBack("a partner holds a head of another epoch (\(head.epoch))")
    }
    guard head.size <= now.size else {
      throw LedgerError.rolledBack("a partner holds a head over \(head.size) entries, this ledger has \(now.size)")
    }
    guard thorough else { return }
    let edges = edges
    guard try await read({ try AuditTree.root(at: head.size, $0.db, edges) }) == head.root else {
      throw LedgerError.rolledBack("a partner holds another head over the first \(head.size) entries")
    }
  }

  /// Recomputes the whole tree from the entries and compares it with the stored leaves and edge, with heads.log, and with what this
  /// process committed.
  ///
  /// - Parameter signers: this agency, at any time.
  /// - Throws: DiskError; DatabaseError. What does not hold is a fault.
  package func verify(signedBy signers: SignerPolicy) throws -> AuditVerification {
    // The heads first: what is committed meanwhile is in none of them.
    let committed = head
    var signed = try SignedHeads(HeadsReader(heads), epoch: committed.epoch, signers)
    var frontier = MerkleFrontier()
    var faults: [String] = []
    func compare() throws {
      try signed.compare(frontier)
      if Int64(frontier.size) == committed.size, frontier.root != committed.root {
        faults.append("the first \(committed.size) entries are not those that this gateway committed")
      }
    }
    try compare()
    var isOver = false
    while !isOver {
      // A page a snapshot: a long one would keep the log of the database from being emptied.
      try pool.read { db in
        let rows = try Row.fetchAll(
          db, sql: "SELECT sequence, leaf, entry FROM audit WHERE sequence > ? ORDER BY sequence LIMIT ?",
          arguments: [Int64(frontier.size), Self.verifyPage])
        isOver = rows.count < Self.verifyPage
        for row in rows {
          let sequence: Int64 = row["sequence"]
          let leaf = MerkleTree.leaf(Array(row["entry"] as Data))
          guard sequence == Int64(frontier.size) + 1 else {
            faults.append("entry \(frontier.size + 1) is missing")
            isOver = true
            break
          }
          if leaf.bytes != Array(row["leaf"] as Data) { faults.append("entry \(sequence) was changed") }
          frontier.append(leaf)
          try compare()
        }
        guard isOver else { return }
        do {
          guard try frontier != AuditTree.frontier(db) else { return }
          faults.append("the tree's stored edge does not match its entries")
        } catch LedgerError.damaged(let what) {
          faults.append(what)
        }
      }
    }
    if Int64(frontier.size) < committed.size {
      faults.append("this gateway committed \(committed.size) entries, but they are not there")
    }
    faults += signed.end()
    return AuditVerification(
      entries: Int64(frontier.size), root: frontier.root, heads: signed.compared, faults: faults)
  }

  /// Entries that are in memory at once.
  private static let verifyPage = 1000

  /// SQLite's own check (PRAGMA integrity_check), and that the settings are durable.
  package func integrityFaults() throws -> [String] {
    try Self.assertDurable(pool)
    return try pool.read { try String.fetchAll($0, sql: "PRAGMA integrity_check(20)") }.filter { $0 != "ok" }
  }
}

/// The heads of heads.log beside the tree as it grows: both are in order, so that neither is held in memory.
private struct SignedHeads {
  private let lines: HeadsReader
  private var isOver = false
  private let epoch: String
  private let signers: SignerPolicy
  private var next: LedgerHead?
  private(set) var compared: Int64 = 0
  private var faults: [String] = []
  private var hasForeign = false

  /// - Parameter epoch: of the ledger; heads of others are passed over.
  init(_ lines: HeadsReader, epoch: String, _ signers: SignerPolicy) throws(DiskError) {
    self.lines = lines
    self.epoch = epoch
    self.signers = signers
    try advance()
  }

  private mutating func line() throws(DiskError) -> [UInt8]? {
    do {
      return try lines.next()
    } catch  where error.errno == EFBIG {
      faults.append("heads.log has a line that is longer than any head")
      return nil
    }
  }

  private mutating func advance() throws(DiskError) {
    next = nil
    while next == nil, !isOver, let line = try line() {
      guard let (envelope, head) = HeadsLog.head(in: line), head.epoch == epoch else { continue }
      if (try? envelope.verify(signers)) != nil {
        next = head
      } else if !hasForeign {
        hasForeign = true
        faults.append("heads.log has a head over \(head.size) entries that this agency did not sign")
      }
    }
  }

  /// Compares the heads over as many entries as `frontier` has. Called with each size, in order.
  mutating func compare(_ frontier: MerkleFrontier) throws(DiskError) {
    while let head = next, head.size <= Int64(frontier.size) {
      guard head.size == Int64(frontier.size), head.root == frontier.root else {
        faults.append("the head over \(head.size) entries that was signed earlier does not match")
        // Nor do those that come after it.
        isOver = true
        return next = nil
      }
      compared += 1
      try advance()
    }
  }

  /// After the last entry: what does not hold.
  mutating func end() -> [String] {
    if let next { faults.append("a head over \(next.size) entries was signed, but they are not there") }
    return faults
  }
}
