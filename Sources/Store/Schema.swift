// The ledger's tables. Migrations are ordered, named, and never edited once released.

import Foundation
import GRDB
import Sealing

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
    migrator.registerMigration("3 consent") { db in
      try db.execute(
        sql: """
          CREATE TABLE consents (
            agreement TEXT NOT NULL, subject BLOB NOT NULL, word INTEGER NOT NULL,
            PRIMARY KEY (agreement, subject)) WITHOUT ROWID;

          CREATE TABLE consent_events (
            sequence INTEGER NOT NULL, ordinal INTEGER NOT NULL, agreement TEXT NOT NULL, subject BLOB NOT NULL,
            event TEXT NOT NULL, event_at INTEGER NOT NULL, valid_until INTEGER, source TEXT NOT NULL,
            source_event TEXT NOT NULL, detail BLOB NOT NULL, PRIMARY KEY (sequence, ordinal)) WITHOUT ROWID;
          CREATE UNIQUE INDEX consent_source ON consent_events (agreement, source, source_event);
          CREATE INDEX consent_subject ON consent_events (agreement, subject);
          CREATE INDEX consent_order ON consent_events (agreement, sequence);

          CREATE TABLE consent_feeds (
            agreement TEXT NOT NULL, source TEXT NOT NULL, heard_at INTEGER NOT NULL,
            PRIMARY KEY (agreement, source)) WITHOUT ROWID;

          CREATE TABLE packages (
            id TEXT PRIMARY KEY, agreement TEXT NOT NULL, agreement_sha256 TEXT NOT NULL, recipient TEXT NOT NULL,
            judged INTEGER NOT NULL, horizon INTEGER, records INTEGER, decision BLOB NOT NULL, retained BLOB,
            released INTEGER, released_at INTEGER) WITHOUT ROWID;
          CREATE INDEX packages_agreement ON packages (agreement, released);

          CREATE TABLE approvals (
            id TEXT NOT NULL, decision TEXT NOT NULL, approver TEXT NOT NULL, approved_at INTEGER NOT NULL,
            PRIMARY KEY (id, decision, approver)) WITHOUT ROWID;

          CREATE TABLE notices (
            id TEXT PRIMARY KEY, direction TEXT NOT NULL, peer TEXT NOT NULL, agreement TEXT NOT NULL,
            envelope BLOB NOT NULL, answer BLOB, next_at INTEGER, act_by INTEGER, sequence INTEGER NOT NULL) WITHOUT ROWID;
          """)
    }
    migrator.registerMigration("4 collecting") { db in
      // An offer takes its number from the counter of the receipts: both stand in one list under one cursor.
      try db.execute(
        sql: """
          ALTER TABLE transfers ADD COLUMN collected INTEGER NOT NULL DEFAULT 0;

          CREATE TABLE offers (
            sender TEXT NOT NULL, id TEXT NOT NULL, peer TEXT NOT NULL, sequence INTEGER NOT NULL,
            PRIMARY KEY (sender, id)) WITHOUT ROWID;
          CREATE INDEX offers_peer ON offers (peer, sequence);
          """)
    }
    migrator.registerMigration("5 hubs") { db in
      try db.execute(
        sql: """
          ALTER TABLE transfers ADD COLUMN via TEXT;
          CREATE INDEX transfers_between ON transfers (id) WHERE via IS NOT NULL;
          CREATE INDEX transfers_via ON transfers (via, direction, state) WHERE via IS NOT NULL;

          -- Who is told of a receipt: the sender, or the hub before it.
          ALTER TABLE receipts ADD COLUMN told TEXT NOT NULL DEFAULT '';
          UPDATE receipts SET told = sender;
          CREATE INDEX receipts_told ON receipts (told, sequence);

          -- A hub tells both sides of one transfer.
          CREATE TABLE mail (
            sender TEXT NOT NULL, id TEXT NOT NULL, peer TEXT NOT NULL, sequence INTEGER NOT NULL,
            PRIMARY KEY (sender, id, peer)) WITHOUT ROWID;
          INSERT INTO mail SELECT sender, id, peer, sequence FROM offers;
          DROP TABLE offers;
          ALTER TABLE mail RENAME TO offers;
          CREATE INDEX offers_peer ON offers (peer, sequence);

          CREATE INDEX notices_open ON notices (peer, next_at) WHERE next_at IS NOT NULL;
          """)
    }
    migrator.registerMigration("6 what is owed, and for how long") { db in
      try db.execute(
        sql: """
          CREATE INDEX packages_age ON packages (released_at);

          -- An approval outlives what is known of its package.
          ALTER TABLE approvals ADD COLUMN agreement_sha256 TEXT NOT NULL DEFAULT '';
          UPDATE approvals SET agreement_sha256 =
            coalesce((SELECT agreement_sha256 FROM packages WHERE packages.id = approvals.id), '');
          CREATE INDEX approvals_agreement ON approvals (agreement_sha256);

          -- Events that say no, until they have their acknowledgement.
          CREATE TABLE owed_acknowledgements (sequence INTEGER PRIMARY KEY);
          INSERT INTO owed_acknowledgements SELECT DISTINCT sequence FROM consent_events
            WHERE sequence > coalesce((SELECT value FROM meta WHERE name = 'consent-settled'), 0)
            AND event IN ('ConsentRefused', 'ConsentWithdrawn', 'ConsentRevoked', 'ConsentInvalidated', 'ObjectionRegistered')
            AND sequence NOT IN (SELECT json_extract(CAST(entry AS TEXT), '$.detail.for') FROM audit
              WHERE transfer IS NULL AND json_extract(CAST(entry AS TEXT), '$.kind') = 'consent.acknowledged'
              AND json_extract(CAST(entry AS TEXT), '$.detail.for') IS NOT NULL);
          DELETE FROM meta WHERE name = 'consent-settled';
          """)
    }
    migrator.registerMigration("7 what takes a package's place, and who was told") { db in
      try db.execute(
        sql: """
          ALTER TABLE transfers ADD COLUMN replaced_by TEXT;

          -- Records that a recipient was told of: once is enough.
          CREATE TABLE noticed (
            package TEXT NOT NULL, ordinal INTEGER NOT NULL, PRIMARY KEY (package, ordinal)) WITHOUT ROWID;
          """)
      for row in try Row.fetchAll(db, sql: "SELECT envelope FROM notices WHERE direction = 'out'") {
        let notice = try Envelope(parsing: Array(row["envelope"] as Data), as: .notice).unverified()
        guard case .object(let members) = notice, case .array(let items)? = members["items"] else { continue }
        for case .object(let item) in items {
          guard case .string(let package)? = item["package"], case .array(let ordinals)? = item["records"] else {
            continue
          }
          for case .integer(let ordinal) in ordinals {
            try db.execute(sql: "INSERT OR IGNORE INTO noticed VALUES (?, ?)", arguments: [package, ordinal])
          }
        }
      }
    }
    migrator.registerMigration("8 what is to be purged") { db in
      try db.execute(
        sql: """
          CREATE INDEX transfers_ended ON transfers (updated_at) WHERE state IN
            ('confirmed', 'acknowledged', 'refused', 'expired', 'cancelled', 'quarantined');
          """)
    }
    // An update writes the whole row again, and the manifest and the key are nearly all of it: they have a table of their own.
    migrator.registerMigration("9 what a step does not touch") { db in
      try db.execute(
        sql: """
          CREATE TABLE parts (
            sender TEXT NOT NULL, id TEXT NOT NULL, manifest BLOB NOT NULL, key BLOB, PRIMARY KEY (sender, id));
          INSERT INTO parts SELECT sender, id, manifest, key FROM transfers WHERE length(manifest) > 0 OR key IS NOT NULL;
          ALTER TABLE transfers DROP COLUMN manifest;
          ALTER TABLE transfers DROP COLUMN key;
          CREATE VIEW whole_transfers AS
            SELECT t.*, coalesce(p.manifest, x'') AS manifest, p.key AS key
            FROM transfers AS t LEFT JOIN parts AS p ON p.sender = t.sender AND p.id = t.id;

          -- With the bytes, what a partner has under way is counted without its rows.
          DROP INDEX transfers_due;
          CREATE INDEX transfers_due ON transfers (direction, state, peer, next_at, body_bytes);
          -- For the stages of no one partner: without it each look sorts all that waits.
          CREATE INDEX transfers_next ON transfers (direction, state, next_at) WHERE state IN
            ('claimed', 'sealed', 'received', 'opened', 'delivering');
          """)
    }
    migrator.registerMigration("10 what nothing wrote") { db in
      try db.execute(sql: "ALTER TABLE partners DROP COLUMN last_error")
    }
    migrator.registerMigration("11 what of the notices for us is open") { db in
      try db.execute(
        sql: """
          CREATE INDEX notices_peer ON notices (peer, direction);

          -- In the order of their ids, in which they are read; nothing looks for them by their release.
          DROP INDEX packages_agreement;
          CREATE INDEX packages_agreement ON packages (agreement);
          """)
      for row in try Row.fetchAll(db, sql: "SELECT id, answer FROM notices WHERE direction = 'in'") {
        let answer = try Envelope(parsing: Array(row["answer"] as Data), as: .noticeReceipt).unverified()
        guard case .object(let members) = answer, members["state"] == "received" else { continue }
        try db.execute(sql: "UPDATE notices SET next_at = act_by WHERE id = ?", arguments: [row["id"] as String])
      }
    }
    return migrator
  }
}
