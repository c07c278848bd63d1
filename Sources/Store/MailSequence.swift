// The one counter behind what partners are told: receipts take their number from it by AUTOINCREMENT, offers by hand.

import GRDB

enum MailSequence {
  /// Moves the counter on; where it is then.
  static func advance(_ db: Database, by count: Int64) throws -> Int64 {
    try db.execute(
      sql: """
        INSERT INTO sqlite_sequence (name, seq)
        SELECT 'receipts', 0 WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'receipts')
        """)
    try db.execute(sql: "UPDATE sqlite_sequence SET seq = seq + ? WHERE name = 'receipts'", arguments: [count])
    return try Int64.fetchOne(db, sql: "SELECT seq FROM sqlite_sequence WHERE name = 'receipts'") ?? count
  }
}
