// What a change may do. Every arrow of the state machine goes through `advance`, with its audit entry, in one transaction.

import Foundation
import GRDB
import Sealing

/// The writing side of one job in a group commit. Valid only during the job.
package final class Transaction {
  let db: Database
  fileprivate(set) var frontier: MerkleFrontier
  /// The commit's instant: the same for all entries of the group.
  package let at: Date
  /// The head of the last commit: what a receipt written now can name.
  package let head: LedgerHead
  private(set) var hasRoom = false

  init(db: Database, frontier: MerkleFrontier, at: Date, head: LedgerHead) {
    self.db = db
    self.frontier = frontier
    self.at = at
    self.head = head
  }

  package var reader: Reader { Reader(db: db) }

  /// What SQLite keeps of the ledger in memory, in KiB: always, and in a transaction that asked for room.
  static let cacheKiB = 2000
  static let roomKiB = 1 << 20

  /// For a transaction that touches millions of rows in no order: without room, each page goes out to the log and comes back for
  /// the next row (measured with a million: 43 s instead of 28). The memory is used as far as needed, and given back after
  /// the commit.
  package func makeRoom() throws {
    hasRoom = true
    try db.execute(sql: "PRAGMA cache_size = -\(Self.roomKiB)")
  }

  /// That of the last entry appended.
  package var sequence: Int64 { Int64(frontier.size) }

  private static let insertTransfer: String = {
    let places = Transfer.ownColumns.split(separator: ",").map { _ in "?" }.joined(separator: ", ")
    return "INSERT INTO transfers (\(Transfer.ownColumns)) VALUES (\(places))"
  }()

  /// Appends to the audit log.
  @discardableResult
  package func append(_ event: AuditEvent) throws -> Int64 {
    let sequence = Int64(frontier.size) + 1
    let entry = event.entry(sequence: sequence, at: at).canonical
    guard entry.count <= AuditEntry.bytesMax else {
      throw LedgerError.illegal("an audit entry of \(entry.count) bytes")
    }
    let leaf = MerkleTree.leaf(entry)
    try execute(
      "INSERT INTO audit (sequence, transfer, leaf, entry) VALUES (?, ?, ?, ?)",
      [sequence, event.id?.text, Data(leaf.bytes), Data(entry)])
    frontier.append(leaf)
    return sequence
  }

  /// Begins a transfer in its first state.
  ///
  /// - Throws: DatabaseError (constraint) when (sender, id) is known already.
  package func insert(_ transfer: Transfer, _ detail: [String: JSON] = [:]) throws {
    var transfer = transfer
    transfer.updatedAt = at
    try execute(Self.insertTransfer, transfer.arguments)
    if !transfer.manifest.isEmpty || transfer.key != nil { try putParts(of: transfer) }
    try append(AuditEvent(transfer.state.rawValue, sender: transfer.sender, id: transfer.id, detail))
  }

  /// Moves a transfer along one arrow, from the state that `transfer` has, and changes it by `change` on the way.
  ///
  /// - Returns: the row as it is now.
  /// - Throws: `LedgerError.illegal` for an arrow that does not exist, `stale` when the row's state is another by now.
  @discardableResult
  package func advance(
    _ transfer: Transfer, to state: TransferState, _ detail: [String: JSON] = [:],
    change: (inout Transfer) -> Void = { _ in }
  ) throws -> Transfer {
    guard transfer.state.mayBecome(state, transfer.direction) else {
      throw LedgerError.illegal("\(transfer.id): \(transfer.state.rawValue) to \(state.rawValue)")
    }
    var next = transfer
    next.state = state
    next.nextAt = at
    next.attempts = 0
    next.code = ""
    next.note = ""
    change(&next)
    next.updatedAt = at
    // What will never be sealed again leaves its sender no way into it.
    if next.direction == .out, next.state.isEnd || next.state == .releasing { try forgetRetained(next.id) }
    // A hub has no more use for it.
    if next.direction == .hub, next.state.isEnd { next.key = nil }
    try update(next, from: transfer)
    if next.state == .purged {
      try execute("DELETE FROM offers WHERE sender = ? AND id = ?", [next.sender.text, next.id.text])
    }
    var detail = detail
    detail["from"] = .string(transfer.state.rawValue)
    if !next.code.isEmpty { detail["code"] = .string(next.code) }
    try append(AuditEvent(state.rawValue, sender: next.sender, id: next.id, detail))
    return next
  }

  /// Changes a row without moving it: the next try, its reason, an offset. No audit entry.
  @discardableResult
  package func amend(_ transfer: Transfer, change: (inout Transfer) -> Void) throws -> Transfer {
    var next = transfer
    change(&next)
    next.updatedAt = at
    precondition(next.state == transfer.state)
    try update(next, from: transfer)
    return next
  }

  /// What an agreement held up is due now: something about it has changed.
  package func wake(agreement id: String) throws {
    let now = Transfer.milliseconds(at)
    try execute(
      "UPDATE transfers SET next_at = ?, attempts = 0 WHERE agreement = ? AND code LIKE 'agreement.%' AND next_at > ?",
      [now, id, now])
  }

  private func update(_ next: Transfer, from transfer: Transfer) throws {
    try execute(
      """
      UPDATE transfers SET state = ?, name = ?, payload_bytes = ?, body_bytes = ?, manifest_sha256 = ?, durable_bytes = ?,
        expires_at = ?, next_at = ?, attempts = ?, code = ?, note = ?, held_from = ?, sealed_to = ?,
        inbox_name = ?, collected = ?, via = ?, replaced_by = ?, updated_at = ?
      WHERE sender = ? AND id = ? AND state = ?
      """,
      [
        next.state.rawValue, next.name, next.payloadBytes, next.bodyBytes, next.manifestDigest,
        next.durableBytes, next.expiresAt.map(Transfer.milliseconds),
        next.nextAt.map(Transfer.milliseconds), next.attempts, next.code, next.note, next.heldFrom?.rawValue,
        next.sealedTo,
        next.inboxName, next.isCollected, next.via?.text, next.replacedBy?.text, Transfer.milliseconds(next.updatedAt),
        next.sender.text, next.id.text, transfer.state.rawValue,
      ])
    guard db.changesCount == 1 else { throw LedgerError.stale("transfer \(next.id)") }
    if next.manifest != transfer.manifest || next.key != transfer.key { try putParts(of: next) }
  }

  private func putParts(of transfer: Transfer) throws {
    guard !transfer.manifest.isEmpty || transfer.key != nil else {
      return try execute("DELETE FROM parts WHERE sender = ? AND id = ?", [transfer.sender.text, transfer.id.text])
    }
    try execute(
      """
      INSERT INTO parts (sender, id, manifest, key) VALUES (?, ?, ?, ?)
      ON CONFLICT DO UPDATE SET manifest = excluded.manifest, key = excluded.key
      """,
      [transfer.sender.text, transfer.id.text, Data(transfer.manifest), transfer.key.map { Data($0) }])
  }

  /// Stores a receipt; the same kind twice is refused by the table.
  ///
  /// - Parameter told: whose list it stands in: the sender's, unless a hub is before it.
  package func add(receipt: Receipt, envelope: Envelope, told: AgencyID? = nil) throws {
    try execute(
      "INSERT INTO receipts (sender, id, kind, envelope, told) VALUES (?, ?, ?, ?, ?)",
      [
        receipt.sender.text, receipt.id.text, receipt.kind.rawValue, Data(envelope.bytes),
        (told ?? receipt.sender).text,
      ])
  }

  /// Puts a transfer at the end of what a partner is told about, its peer unless another is named: that it waits, how it ended, or
  /// what a hub holds about it.
  package func offer(_ transfer: Transfer, to partner: AgencyID? = nil) throws {
    try execute(
      """
      INSERT INTO offers (sender, id, peer, sequence) VALUES (?, ?, ?, ?)
      ON CONFLICT DO UPDATE SET sequence = excluded.sequence
      """,
      [transfer.sender.text, transfer.id.text, (partner ?? transfer.peer).text, try MailSequence.advance(db, by: 1)])
  }

  /// Stores another signed document about a transfer (take-back, its answer, non-delivery report); the first one stays.
  package func add(document envelope: Envelope, sender: AgencyID, id: TransferID) throws {
    try execute(
      "INSERT INTO documents (sender, id, kind, envelope) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
      [sender.text, id.text, envelope.kind.rawValue, Data(envelope.bytes)])
  }

  /// Stores such a document in place of the one before it.
  package func replace(document envelope: Envelope, sender: AgencyID, id: TransferID) throws {
    try execute(
      "INSERT OR REPLACE INTO documents (sender, id, kind, envelope) VALUES (?, ?, ?, ?)",
      [sender.text, id.text, envelope.kind.rawValue, Data(envelope.bytes)])
  }

  /// Stores or replaces a partner.
  package func put(_ partner: PartnerRecord) throws {
    try execute(
      """
      INSERT INTO partners (agency, state, card, pending_card, pending_reason, head_epoch, head_size, head_root, head_proof,
        cursor, last_seen)
      VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
      ON CONFLICT DO UPDATE SET state = excluded.state, card = excluded.card, pending_card = excluded.pending_card,
        pending_reason = excluded.pending_reason, head_epoch = excluded.head_epoch, head_size = excluded.head_size,
        head_root = excluded.head_root, head_proof = excluded.head_proof, cursor = excluded.cursor, last_seen = excluded.last_seen
      """,
      [
        partner.agency.text, partner.state.rawValue, Data(partner.card), partner.pendingCard.map { Data($0) },
        partner.pendingReason, partner.head?.epoch, partner.head?.size, partner.head?.root.hex,
        partner.headProof.map { Data($0) },
        partner.cursor, partner.lastSeen.map(Transfer.milliseconds),
      ])
  }

  package func remove(partner: AgencyID) throws {
    try execute("DELETE FROM partners WHERE agency = ?", [partner.text])
  }

  /// Remembers a fact for ever.
  package func setFlag(_ name: String) throws {
    try execute("INSERT INTO meta (name, value) VALUES (?, '') ON CONFLICT DO NOTHING", ["flag:\(name)"])
  }

  /// Counts one more package of a day under an agreement, for `maxPackagesPerDay`.
  package func countPackage(agreement: String, peer: AgencyID, onDayOf instant: Date) throws {
    try execute(
      """
      INSERT INTO daily (day, agreement, peer, packages) VALUES (?, ?, ?, 1)
      ON CONFLICT DO UPDATE SET packages = packages + 1
      """, [String(Timestamp.format(instant).prefix(10)), agreement, peer.text])
  }

  func execute(_ sql: String, _ arguments: StatementArguments) throws {
    try db.cachedStatement(sql: sql).execute(arguments: arguments)
  }
}

/// A partner as the ledger knows it.
package struct PartnerRecord: Equatable, Sendable {
  package enum State: String, Sendable, CaseIterable { case pending, active, suspended }

  package let agency: AgencyID
  package var state: State
  /// The held card's envelope. A pending partner's is trusted for nothing.
  package var card: [UInt8]
  /// A successor that waits for approval.
  package var pendingCard: [UInt8]?
  package var pendingReason: String?
  /// The highest head that this partner signed.
  package var head: LedgerHead?
  /// The envelope that carried it, a receipt or a head: with its own signature it convinces the partner itself.
  package var headProof: [UInt8]?
  /// How far its list of what concerns us was read.
  package var cursor: Int64
  package var lastSeen: Date?

  package init(agency: AgencyID, state: State, card: [UInt8]) {
    self.agency = agency
    self.state = state
    self.card = card
    cursor = 0
  }

  init(_ row: Row) throws {
    guard let agency = AgencyID(row["agency"]), let state = State(rawValue: row["state"]) else {
      throw LedgerError.damaged("a row of partners cannot be read")
    }
    self.init(agency: agency, state: state, card: Array(row["card"] as Data))
    pendingCard = (row["pending_card"] as Data?).map { Array($0) }
    pendingReason = row["pending_reason"]
    if let epoch = row["head_epoch"] as String?, let root = Digest(hex: row["head_root"] ?? "") {
      head = LedgerHead(epoch: epoch, size: row["head_size"], root: root)
    }
    headProof = (row["head_proof"] as Data?).map { Array($0) }
    cursor = row["cursor"]
    lastSeen = (row["last_seen"] as Int64?).map(Transfer.date)
  }
}
