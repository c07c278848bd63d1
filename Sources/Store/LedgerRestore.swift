// Restoring a ledger: an old database in place of a newer one is a roll-back, and is made to be seen as one.
//
// The backup gets a new epoch, so heads that were signed from the lost part do not bind it; the instant of the restore is
// kept, and packages made before it that it does not know are refused: their delivery may have been forgotten. So may the
// release of what it knows and had not released: that counts as disclosed from the restore's entry on.

import Foundation
import GRDB
import Glibc
import Sealing

extension Ledger {
  /// Puts `backup` in place of the stopped home's ledger. The caller holds the home's lock.
  ///
  /// - Returns: the new epoch.
  /// - Throws: `LedgerError.foreign` for what is no backup of `agency`'s ledger, `damaged` when it does not verify; DiskError. Nothing is
  ///   changed then.
  package static func restore(
    _ backup: String, of agency: AgencyID, to path: String, heads: String, at instant: Date, epoch: String
  ) throws {
    let fresh = "\(path).restoring"
    for suffix in ["", "-wal", "-shm"] { try Directory.remove(fresh + suffix) }
    guard Directory.exists(backup) else { throw DiskError("read", backup, errno: ENOENT) }
    let target = try DatabaseQueue(path: fresh)
    do {
      let source = try DatabaseQueue(path: backup, configuration: readOnly)
      if let owner = try source.read(owner), owner != agency.text {
        throw LedgerError.foreign("\(backup) is of the ledger of \(owner), not of \(agency)")
      }
      try source.backup(to: target)
      try source.close()
    } catch let error as DatabaseError where [.SQLITE_NOTADB, .SQLITE_ERROR].contains(error.resultCode) {
      throw LedgerError.foreign("\(backup) is no backup of a ledger")
    }
    guard try target.read({ try String.fetchOne($0, sql: "PRAGMA integrity_check(1)") }) == "ok" else {
      throw LedgerError.damaged("the backup \(backup) is not whole")
    }
    guard try !target.read(Schema.migrator.hasBeenSuperseded) else { throw LedgerError.newer }
    try Schema.migrator.migrate(target)
    try target.write { db in
      let put = "INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value"
      // Partners hold heads of the old epoch; that is known from now on, and no sign of a roll-back.
      let old = try String.fetchOne(db, sql: "SELECT value FROM meta WHERE name = 'epoch'")
      if let old { try db.execute(sql: put, arguments: ["epoch:\(old)", ""]) }
      try db.execute(sql: put, arguments: ["epoch", epoch])
      try db.execute(sql: put, arguments: ["restored-at", Transfer.milliseconds(instant)])
      // Partners' cursors into our receipts went on after the backup; new receipts must come after all of them.
      _ = try MailSequence.advance(db, by: 1 << 32)
      let edge = try AuditTree.frontier(db)
      let head = LedgerHead(epoch: epoch, size: Int64(edge.size), root: edge.root)
      let transaction = Transaction(db: db, frontier: edge, at: instant, head: head)
      try transaction.append(AuditEvent("restored", ["epoch": .string(epoch), "before": .string(old ?? "")]))
      try transaction.countAsDisclosed()
      try AuditTree.save(transaction.frontier, db)
    }
    try target.close()
    try File(fresh, O_RDWR).syncData()
    for suffix in ["", "-wal", "-shm"] where Directory.exists(path + suffix) {
      try Directory.rename(path + suffix, "\(kept(path, epoch))\(suffix)")
    }
    try Directory.rename(fresh, path)
    // Last: until then a start refuses what the old heads do not fit.
    if Directory.exists(heads) { try Directory.rename(heads, kept(heads, epoch)) }
    try DurableFile.write([], to: heads)
    try Directory.sync(Directory.parent(of: path))
  }

  /// Where the restore that begins `epoch` keeps what was there.
  package static func kept(_ path: String, _ epoch: String) -> String { "\(path).before-\(epoch)" }

  private static var readOnly: GRDB.Configuration {
    var configuration = GRDB.Configuration()
    configuration.readonly = true
    return configuration
  }
}
