// The audit tree's edge in the database: loading, saving, and proving that heads handed out earlier are prefixes of it.

import Foundation
import GRDB
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
      let size = try UInt64.fetchOne(db, sql: "SELECT coalesce(max(sequence), 0) FROM audit") ?? 0
      guard let saved = try Data.fetchOne(db, sql: "SELECT value FROM meta WHERE name = 'frontier'") else {
        guard size == 0 else { throw LedgerError.damaged("the audit tree's edge is missing") }
        return (epoch, MerkleFrontier())
      }
      let peaks = stride(from: 0, to: saved.count, by: Digest.byteCount).map {
        Digest(Array(saved.dropFirst($0).prefix(Digest.byteCount)))
      }
      guard let frontier = MerkleFrontier(size: size, peaks: peaks) else {
        throw LedgerError.damaged("the audit tree's edge does not fit its \(size) entries")
      }
      return (epoch, frontier)
    }
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
      ? frontier.root : try pool.read { try root(at: head.size, $0) }
    guard actual == head.root else {
      throw LedgerError.rolledBack("its first \(head.size) entries are not those whose head was signed")
    }
  }

  /// The root over the first `size` leaves, from their stored hashes.
  static func root(at size: Int64, _ db: Database) throws -> Digest {
    var frontier = MerkleFrontier()
    let leaves = try Data.fetchCursor(
      db, sql: "SELECT leaf FROM audit WHERE sequence <= ? ORDER BY sequence", arguments: [size])
    while let leaf = try leaves.next() { frontier.append(Digest(Array(leaf))) }
    return frontier.root
  }
}

/// What `ledger verify` found.
package struct AuditVerification: Equatable, Sendable {
  package let entries: Int64
  package let root: Digest
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
    guard try await read({ try AuditTree.root(at: head.size, $0.db) }) == head.root else {
      throw LedgerError.rolledBack("a partner holds another head over the first \(head.size) entries")
    }
  }

  /// Recomputes the whole tree from the entries and compares it with the stored leaves, edge and `heads`.
  package func verify(heads: [LedgerHead]) throws -> AuditVerification {
    let (epoch, stored) = try AuditTree.load(pool)
    var wanted: [Int64: [LedgerHead]] = [:]
    var faults: [String] = []
    for head in heads where head.epoch == epoch { wanted[head.size, default: []].append(head) }
    var frontier = MerkleFrontier()
    try pool.read { db in
      func compare() {
        for head in wanted.removeValue(forKey: Int64(frontier.size)) ?? [] where head.root != frontier.root {
          faults.append("the head over \(head.size) entries that was signed earlier does not match")
        }
      }
      compare()
      let rows = try Row.fetchCursor(db, sql: "SELECT sequence, leaf, entry FROM audit ORDER BY sequence")
      while let row = try rows.next() {
        let sequence: Int64 = row["sequence"]
        let leaf = MerkleTree.leaf(Array(row["entry"] as Data))
        if sequence != Int64(frontier.size) + 1 {
          faults.append("entry \(frontier.size + 1) is missing")
          return
        }
        if leaf.bytes != Array(row["leaf"] as Data) { faults.append("entry \(sequence) was changed") }
        frontier.append(leaf)
        compare()
      }
    }
    for size in wanted.keys.sorted() { faults.append("a head over \(size) entries was signed, but they are not there") }
    if frontier != stored { faults.append("the tree's stored edge does not match its entries") }
    return AuditVerification(entries: Int64(frontier.size), root: frontier.root, faults: faults)
  }

  /// SQLite's own check (PRAGMA integrity_check), and that the settings are durable.
  package func integrityFaults() throws -> [String] {
    try Self.assertDurable(pool)
    return try pool.read { try String.fetchAll($0, sql: "PRAGMA integrity_check(20)") }.filter { $0 != "ok" }
  }
}
