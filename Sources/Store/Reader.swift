// What can be asked of the ledger. Each answer is one consistent snapshot.

import Foundation
import GRDB
import Sealing

/// The reading side: inside a transaction, or over a snapshot.
package struct Reader {
  let db: Database

  package func transfer(_ sender: AgencyID, _ id: TransferID) throws -> Transfer? {
    try fetchOne("SELECT \(Transfer.columns) FROM whole_transfers WHERE sender = ? AND id = ?", [sender.text, id.text])
      .map { try Transfer($0) }
  }

  /// Transfers called `id`, by whichever sender.
  package func transfers(called id: TransferID) throws -> [Transfer] {
    try fetchAll("SELECT \(Transfer.columns) FROM whole_transfers WHERE id = ?", [id.text]).map { try Transfer($0) }
  }

  /// The transfer called `id` that `sender` sends, and any that passes through a hub under that id.
  package func transfers(called id: TransferID, of sender: AgencyID) throws -> [Transfer] {
    try fetchAll(
      """
      SELECT \(Transfer.columns) FROM whole_transfers WHERE sender = ? AND id = ? AND via IS NULL
      UNION ALL SELECT \(Transfer.columns) FROM whole_transfers WHERE id = ? AND via IS NOT NULL
      """, [sender.text, id.text, id.text]
    ).map { try Transfer($0) }
  }

  /// Transfers in `state` that are due, oldest first, at most `limit`; of one peer, and with or without a key, where that is given.
  package func due(
    _ direction: Direction, _ state: TransferState, peer: AgencyID? = nil, hasKey: Bool? = nil, at instant: Date,
    limit: Int
  ) throws -> [Transfer] {
    try fetchAll(
      """
      SELECT \(Transfer.columns) FROM whole_transfers
      WHERE direction = ? AND state = ? \(Self.peer(peer)) AND next_at <= ?
        \(Self.key(hasKey))
      ORDER BY next_at LIMIT ?
      """,
      StatementArguments([direction.rawValue, state.rawValue]) + (peer.map { [$0.text] } ?? [])
        + [Transfer.milliseconds(instant), limit]
    ).map { try Transfer($0) }
  }

  /// Of all peers: the states say nothing more, and let SQLite use the index transfers_next, whose condition they repeat.
  private static func peer(_ one: AgencyID?) -> String {
    one == nil ? "AND state IN ('claimed', 'sealed', 'received', 'opened', 'delivering')" : "AND peer = ?"
  }

  private static func key(_ isThere: Bool?) -> String {
    isThere.map { "AND key IS \($0 ? "NOT NULL" : "NULL")" } ?? ""
  }

  /// When, after `instant`, the next transfer that `due` would name is due; nil when none has such a time.
  package func nextDue(
    _ direction: Direction, _ state: TransferState, peer: AgencyID? = nil, hasKey: Bool? = nil, after instant: Date
  ) throws -> Date? {
    try fetchOne(
      """
      SELECT min(next_at) AS at FROM whole_transfers
      WHERE direction = ? AND state = ? \(Self.peer(peer)) AND next_at > ?
        \(Self.key(hasKey))
      """,
      StatementArguments([direction.rawValue, state.rawValue]) + (peer.map { [$0.text] } ?? [])
        + [Transfer.milliseconds(instant)]
    ).flatMap { ($0["at"] as Int64?).map(Transfer.date) }
  }

  /// Transfers whose bodies were on their way to `peer`, for ourselves or as a hub.
  package func sending(to peer: AgencyID) throws -> [Transfer] {
    try fetchAll(
      """
      SELECT \(Transfer.columns) FROM whole_transfers WHERE direction IN ('out', 'hub') AND state = 'sending' AND peer = ?
      """, [peer.text]
    ).map { try Transfer($0) }
  }

  /// Whom packages of ours are being released to, or were.
  package func releasePeers() throws -> [AgencyID] {
    try fetchAll(
      "SELECT DISTINCT peer FROM transfers WHERE direction = 'out' AND state IN ('releasing', 'released')", []
    ).compactMap { AgencyID($0["peer"]) }
  }

  /// Whether `partner` owes receipts that nothing but its list brings: about what was relayed to it, for ourselves or as a hub.
  package func owesReceipts(_ partner: AgencyID) throws -> Bool {
    try [("out", "releasing"), ("out", "released"), ("out", "unconfirmed"), ("hub", "released")].contains {
      try fetchOne(
        """
        SELECT 1 FROM transfers WHERE direction = ? AND state = ? AND peer = ? AND collected = 0
          AND (via IS NULL OR direction = 'hub') LIMIT 1
        """, [$0.0, $0.1, partner.text]) != nil
    }
  }

  /// Transfers whose time is over and whose journey is not.
  ///
  /// The second list of states says nothing that the first does not; it lets SQLite use the index transfers_expiry, whose
  /// condition it repeats.
  package func overdue(at instant: Date, limit: Int) throws -> [Transfer] {
    try fetchAll(
      """
      SELECT \(Transfer.columns) FROM whole_transfers WHERE expires_at <= ?
        AND (state IN ('sealed', 'queued', 'sending', 'custody', 'held', 'receiving', 'received')
          AND (direction = 'out' OR key IS NULL)
          OR direction = 'hub' AND state = 'released' AND expires_at <= ?)
        AND state NOT IN
        ('confirmed', 'acknowledged', 'refused', 'expired', 'cancelled', 'quarantined', 'corrupt', 'purged')
      ORDER BY expires_at LIMIT ?
      """, [Transfer.milliseconds(instant), Transfer.milliseconds(instant - Self.releasedSeconds), limit]
    ).map { try Transfer($0) }
  }

  /// How long after a package's time `delivered` is waited for once its key has gone: by its sender, and by a hub that passed it on.
  package static let releasedSeconds: TimeInterval = 30 * 86400

  /// Transfers to be purged: ended ones last touched before `instant`, and those of which nobody will say any more, at `now`, that they
  /// arrived, or has read that they did.
  package func over(endedBefore instant: Date, at now: Date, limit: Int) throws -> [Transfer] {
    try fetchAll(
      """
      SELECT \(Transfer.columns) FROM whole_transfers WHERE updated_at < ?1 AND state IN
        ('confirmed', 'acknowledged', 'refused', 'expired', 'cancelled', 'quarantined')
      UNION ALL SELECT \(Transfer.columns) FROM whole_transfers
        WHERE (direction = 'out' AND state = 'unconfirmed' OR direction = 'in' AND state = 'delivered')
        AND updated_at < ?1 AND expires_at <= ?2
      LIMIT ?3
      """, [Transfer.milliseconds(instant), Transfer.milliseconds(now - Self.releasedSeconds), limit]
    ).map { try Transfer($0) }
  }

  /// Transfers that `sender` sends and that were touched since `instant`, without the purged ones, in order of their ids after `id`.
  package func changed(
    by sender: AgencyID, since instant: Date, after id: TransferID?, limit: Int
  ) throws -> [Transfer] {
    try fetchAll(
      """
      SELECT \(Transfer.columns) FROM whole_transfers
      WHERE sender = ? AND id > ? AND direction = 'out' AND state <> 'purged' AND updated_at >= ? ORDER BY id LIMIT ?
      """, [sender.text, id?.text ?? "", Transfer.milliseconds(instant), limit]
    ).map { try Transfer($0) }
  }

  /// Transfers that have not ended and say why, counted by the code that they say; the first id of each.
  package func waitingCodes() throws -> [(code: String, count: Int64, first: TransferID)] {
    try fetchAll(
      "SELECT code, count(*) AS n, min(id) AS first FROM transfers WHERE code <> '' AND state NOT IN (\(Self.ends)) GROUP BY code",
      []
    ).compactMap { row in TransferID(row["first"]).map { (row["code"], row["n"], $0) } }
  }

  private static let ends = TransferState.allCases.filter(\.isEnd).map { "'\($0.rawValue)'" }.joined(separator: ", ")

  /// The queue: transfers not purged, newest last, filtered.
  package func queue(
    state: TransferState? = nil, peer: AgencyID? = nil, agreement: String? = nil, name: String? = nil,
    openOnly: Bool = false, limit: Int
  ) throws -> [Transfer] {
    var conditions = ["state <> 'purged'"]
    var arguments = StatementArguments()
    if let state {
      conditions = ["state = ?"]
      arguments += [state.rawValue]
    }
    if let peer {
      conditions.append("(peer = ? OR via = ?)")
      arguments += [peer.text, peer.text]
    }
    if let agreement {
      conditions.append("agreement = ?")
      arguments += [agreement]
    }
    if let name {
      conditions.append("name = ?")
      arguments += [name]
    }
    if openOnly {
      conditions.append("state NOT IN (\(Self.ends))")
    }
    return try fetchAll(
      """
      SELECT \(Transfer.columns) FROM whole_transfers WHERE \(conditions.joined(separator: " AND "))
      ORDER BY created_at, id LIMIT ?
      """, arguments + [limit]
    ).map { try Transfer($0) }
  }

  /// Packages of ours that wait to be collected, those that expire first first.
  package func waiting(limit: Int) throws -> [Transfer] {
    try fetchAll(
      """
      SELECT \(Transfer.columns) FROM whole_transfers WHERE direction = 'out' AND collected = 1
        AND state IN ('queued', 'custody') ORDER BY expires_at LIMIT ?
      """, [limit]
    ).map { try Transfer($0) }
  }

  /// Transfers that we collect from `peer`, under way or ended after `instant`.
  package func collecting(from peer: AgencyID, since instant: Date) throws -> [Transfer] {
    try fetchAll(
      """
      SELECT \(Transfer.columns) FROM whole_transfers WHERE direction = 'in' AND collected = 1
        AND (peer = ? AND via IS NULL OR via = ?) AND (updated_at >= ? OR next_at IS NOT NULL) ORDER BY created_at, id
      """, [peer.text, peer.text, Transfer.milliseconds(instant)]
    ).map { try Transfer($0) }
  }

  package func counts() throws -> [(direction: Direction, state: TransferState, count: Int64, oldest: Date)] {
    try fetchAll(
      "SELECT direction, state, count(*) AS n, min(updated_at) AS oldest FROM transfers GROUP BY direction, state", []
    ).compactMap { row in
      guard let direction = Direction(rawValue: row["direction"]), let state = TransferState(rawValue: row["state"])
      else { return nil }
      return (direction, state, row["n"], Transfer.date(row["oldest"]))
    }
  }

  /// Calls `body` for every transfer, in order of sender and id.
  package func forEachTransfer(_ body: (Transfer) throws -> Void) throws {
    let rows = try Row.fetchCursor(db, sql: "SELECT \(Transfer.columns) FROM whole_transfers ORDER BY sender, id")
    while let row = try rows.next() { try body(Transfer(row)) }
  }

  /// Receipts of a transfer in the order in which they were signed.
  package func receipts(_ sender: AgencyID, _ id: TransferID) throws -> [Envelope] {
    try receiptBytes(sender, id).map { try Envelope(parsing: $0, as: .receipt) }
  }

  /// The same, not parsed.
  package func receiptBytes(_ sender: AgencyID, _ id: TransferID) throws -> [[UInt8]] {
    try fetchAll("SELECT envelope FROM receipts WHERE sender = ? AND id = ? ORDER BY sequence", [sender.text, id.text])
      .map { Array($0["envelope"] as Data) }
  }

  /// Receipts of which `partner` is told after `cursor`: about its transfers, and about those that came through it.
  package func receipts(about partner: AgencyID, after cursor: Int64, limit: Int) throws -> [(
    sequence: Int64, envelope: [UInt8]
  )] {
    try fetchAll(
      "SELECT sequence, envelope FROM receipts WHERE told = ? AND sequence > ? ORDER BY sequence LIMIT ?",
      [partner.text, cursor, limit]
    ).map { ($0["sequence"], Array($0["envelope"] as Data)) }
  }

  /// Transfers of which `peer` is told after `cursor`, in the state they are in now: what waits for it, and at a hub its own.
  package func offers(to peer: AgencyID, after cursor: Int64, waitingOnly: Bool = false, limit: Int) throws -> [(
    sequence: Int64, transfer: Transfer
  )] {
    let columns = Transfer.columns(of: "t")
    return try fetchAll(
      """
      SELECT o.sequence AS sequence, \(columns) FROM offers AS o JOIN whole_transfers AS t ON t.sender = o.sender AND t.id = o.id
      WHERE o.peer = ? AND o.sequence > ? AND \(waitingOnly
        ? "t.peer = o.peer AND t.state IN ('queued', 'custody', 'releasing', 'released', 'unconfirmed')"
        : "(t.sender = o.peer OR t.peer = o.peer AND t.state NOT IN ('receiving', 'confirmed', 'purged', 'held', 'sealed'))")
      ORDER BY o.sequence LIMIT ?
      """, [peer.text, cursor, limit]
    ).map { ($0["sequence"], try Transfer($0, from: 1)) }
  }

  /// Delivered transfers of `sender`, or of those behind it, whose delivered receipt stands at or before `cursor`.
  package func delivered(to sender: AgencyID, receiptsUpTo cursor: Int64, limit: Int) throws -> [Transfer] {
    let columns = Transfer.columns(of: "t")
    return try fetchAll(
      """
      SELECT \(columns) FROM whole_transfers AS t JOIN receipts AS r ON r.sender = t.sender AND r.id = t.id AND r.kind = 'delivered'
      WHERE t.direction = 'in' AND t.state = 'delivered' AND t.peer = ? AND t.via IS NULL AND r.sequence <= ?
      UNION ALL
      SELECT \(columns) FROM whole_transfers AS t JOIN receipts AS r ON r.sender = t.sender AND r.id = t.id AND r.kind = 'delivered'
      WHERE t.direction = 'in' AND t.state = 'delivered' AND t.via = ? AND r.sequence <= ?
      LIMIT ?
      """, [sender.text, cursor, sender.text, cursor, limit]
    ).map { try Transfer($0) }
  }

  package func document(_ sender: AgencyID, _ id: TransferID, _ kind: DocumentKind) throws -> Envelope? {
    try fetchOne(
      "SELECT envelope FROM documents WHERE sender = ? AND id = ? AND kind = ?", [sender.text, id.text, kind.rawValue]
    ).map { try Envelope(parsing: Array($0["envelope"] as Data), as: kind) }
  }

  /// All that were signed about a transfer beside its receipts.
  package func documents(_ sender: AgencyID, _ id: TransferID) throws -> [(kind: DocumentKind, envelope: Envelope)] {
    try fetchAll(
      "SELECT kind, envelope FROM documents WHERE sender = ? AND id = ? ORDER BY kind", [sender.text, id.text]
    )
    .compactMap { row in
      try DocumentKind(rawValue: row["kind"]).map {
        ($0, try Envelope(parsing: Array(row["envelope"] as Data), as: $0))
      }
    }
  }

  package func partner(_ agency: AgencyID) throws -> PartnerRecord? {
    try fetchOne("SELECT * FROM partners WHERE agency = ?", [agency.text]).map(PartnerRecord.init)
  }

  package func partners() throws -> [PartnerRecord] {
    try fetchAll("SELECT * FROM partners ORDER BY agency", []).map(PartnerRecord.init)
  }

  /// Packages of a sender that are being received, and bytes of those, of what waits for its key and of what is held.
  package func load(of sender: AgencyID) throws -> (packages: Int64, bytes: Int64) {
    let row = try fetchOne(
      """
      SELECT count(*) FILTER (WHERE state = 'receiving') AS n, coalesce(sum(body_bytes), 0) AS bytes FROM transfers
      WHERE direction = 'in' AND state IN ('receiving', 'received', 'opened', 'held') AND peer = ?
      """, [sender.text])
    return (row?["n"] ?? 0, row?["bytes"] ?? 0)
  }

  /// Packages of a sender whose bodies a hub takes or keeps, and their bytes.
  package func load(through hub: AgencyID, of sender: AgencyID) throws -> (packages: Int64, bytes: Int64) {
    let row = try fetchOne(
      """
      SELECT count(*) AS n, coalesce(sum(body_bytes), 0) AS bytes FROM transfers
      WHERE via = ? AND direction = 'hub' AND state IN ('receiving', 'queued', 'sending') AND +sender = ?
      """, [hub.text, sender.text])
    return (row?["n"] ?? 0, row?["bytes"] ?? 0)
  }

  /// When this ledger was last restored from a backup; nil for never.
  package func restoredAt() throws -> Date? {
    try fetchOne("SELECT value FROM meta WHERE name = 'restored-at'", []).map { Transfer.date($0["value"]) }
  }

  /// The last entry of this snapshot; nil in an empty ledger.
  package func place() throws -> LedgerPlace? {
    try fetchOne(
      """
      SELECT sequence, leaf, (SELECT value FROM meta WHERE name = 'epoch') AS epoch FROM audit
      ORDER BY sequence DESC LIMIT 1
      """, []
    ).map { LedgerPlace(epoch: $0["epoch"], sequence: $0["sequence"], leaf: Digest($0["leaf"] as Data)) }
  }

  /// Whether this ledger, since it was last restored, came by that entry.
  package func has(_ place: LedgerPlace) throws -> Bool {
    try fetchOne(
      """
      SELECT 1 FROM audit WHERE sequence = ? AND leaf = ?
      AND (SELECT value FROM meta WHERE name = 'epoch') = ?
      """, [place.sequence, Data(place.leaf.bytes), place.epoch]) != nil
  }

  /// Whether this ledger had `epoch` before it was restored.
  package func isEarlier(epoch: String) throws -> Bool {
    try fetchOne("SELECT 1 FROM meta WHERE name = ?", ["epoch:\(epoch)"]) != nil
  }

  /// Whether `setFlag` was called with this name.
  package func flag(_ name: String) throws -> Bool {
    try fetchOne("SELECT 1 FROM meta WHERE name = ?", ["flag:\(name)"]) != nil
  }

  package func packages(agreement: String, peer: AgencyID, onDayOf instant: Date) throws -> Int64 {
    try fetchOne(
      "SELECT packages FROM daily WHERE day = ? AND agreement = ? AND peer = ?",
      [String(Timestamp.format(instant).prefix(10)), agreement, peer.text])?["packages"] ?? 0
  }

  /// Audit entries of one transfer, or of all, after `sequence`.
  package func audit(id: TransferID? = nil, after sequence: Int64 = 0, limit: Int) throws -> [AuditEntry] {
    let rows =
      if let id {
        try fetchAll(
          "SELECT sequence, entry FROM audit WHERE transfer = ? AND sequence > ? ORDER BY sequence LIMIT ?",
          [id.text, sequence, limit])
      } else {
        try fetchAll(
          "SELECT sequence, entry FROM audit WHERE sequence > ? ORDER BY sequence LIMIT ?", [sequence, limit])
      }
    return rows.map { AuditEntry(sequence: $0["sequence"], bytes: Array($0["entry"] as Data)) }
  }

  /// Audit entries of one kind. Reads the whole log.
  package func audit(kind: String, naming text: String = "") throws -> [AuditEntry] {
    try fetchAll(
      "SELECT sequence, entry FROM audit WHERE transfer IS NULL AND instr(entry, ?) > 0 AND instr(entry, ?) > 0 ORDER BY sequence DESC",
      [Data("\"kind\":\"\(kind)\"".utf8), Data(text.utf8)]
    ).map { AuditEntry(sequence: $0["sequence"], bytes: Array($0["entry"] as Data)) }
  }

  package func auditSize() throws -> Int64 {
    try fetchOne("SELECT coalesce(max(sequence), 0) AS n FROM audit", [])?["n"] ?? 0
  }

  /// The latest instant in the ledger: a clock behind it stops releases.
  package func lastInstant() throws -> Date? {
    guard let row = try fetchOne("SELECT entry FROM audit ORDER BY sequence DESC LIMIT 1", []) else { return nil }
    let entry = try JSON(canonical: Array(row["entry"] as Data), bytesMax: AuditEntry.bytesMax)
    guard case .object(let members) = entry, case .string(let at)? = members["at"] else { return nil }
    return Timestamp.parse(at)
  }

  func fetchAll(_ sql: String, _ arguments: StatementArguments) throws -> [Row] {
    try Row.fetchAll(db.cachedStatement(sql: sql), arguments: arguments)
  }

  func fetchOne(_ sql: String, _ arguments: StatementArguments) throws -> Row? {
    try Row.fetchOne(db.cachedStatement(sql: sql), arguments: arguments)
  }
}
