// The ledger's tables. Migrations are ordered, named, and never edited once released.

import GRDB

enum Schema {
  static var migrator: DatabaseMigrator {
    var migrator = DatabaseMigrator()
    migrator.registerMigration("1 the spine") { db in
      try db.execute(
        sql: """
          CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;

          CREATE TABLE transfers (
            direction TEXT NOT NULL, sender TEXT NOT NULL, id TEXT NOT NULL, peer TEXT NOT NULL,
            agreement TEXT NOT NULL, state TEXT NOT NULL, name TEXT NOT NULL,
            payload_bytes INTEGER NOT NULL, body_bytes INTEGER NOT NULL,
            manifest BLOB NOT NULL, manifest_sha256 TEXT NOT NULL, key BLOB, durable_bytes INTEGER NOT NULL,
            created_at INTEGER NOT NULL, expires_at INTEGER, next_at INTEGER, attempts INTEGER NOT NULL,
            code TEXT NOT NULL, note TEXT NOT NULL, held_from TEXT, sealed_to TEXT NOT NULL, inbox_name TEXT NOT NULL,
            updated_at INTEGER NOT NULL,
            PRIMARY KEY (sender, id));
          CREATE INDEX transfers_due ON transfers (direction, state, peer, next_at);
          CREATE INDEX transfers_expiry ON transfers (expires_at) WHERE state NOT IN
            ('confirmed', 'acknowledged', 'refused', 'expired', 'cancelled', 'quarantined', 'corrupt', 'purged');

          CREATE TABLE receipts (
            sequence INTEGER PRIMARY KEY AUTOINCREMENT, sender TEXT NOT NULL, id TEXT NOT NULL,
            kind TEXT NOT NULL, envelope BLOB NOT NULL, UNIQUE (sender, id, kind));

          CREATE TABLE documents (
            sender TEXT NOT NULL, id TEXT NOT NULL, kind TEXT NOT NULL, envelope BLOB NOT NULL,
            PRIMARY KEY (sender, id, kind)) WITHOUT ROWID;

          CREATE TABLE partners (
            agency TEXT PRIMARY KEY, state TEXT NOT NULL, card BLOB NOT NULL, pending_card BLOB,
            pending_reason TEXT, head_epoch TEXT, head_size INTEGER, head_root TEXT, cursor INTEGER NOT NULL,
            last_seen INTEGER, last_error TEXT NOT NULL) WITHOUT ROWID;

          CREATE TABLE daily (
            day TEXT NOT NULL, agreement TEXT NOT NULL, peer TEXT NOT NULL, packages INTEGER NOT NULL,
            PRIMARY KEY (day, agreement, peer)) WITHOUT ROWID;

          CREATE TABLE audit (sequence INTEGER PRIMARY KEY, transfer TEXT, leaf BLOB NOT NULL, entry BLOB NOT NULL);
          CREATE INDEX audit_transfer ON audit (transfer) WHERE transfer IS NOT NULL;
          """)
    }
    migrator.registerMigration("2 what proves a partner's head") { db in
      try db.execute(sql: "ALTER TABLE partners ADD COLUMN head_proof BLOB")
    }
    return migrator
  }
}
