// Consent in the ledger: events for ever, the state they leave, the feeds they come from, and the packages they are about.
//
// Events and releases are in one order: that of the audit sequence. An import is one audit entry, its events are numbered within.

import Foundation
import GRDB
import Sealing

/// One event as it is kept. `word` and `event` mean nothing to the store.
package struct ConsentEventRow: Equatable, Sendable {
  package let agreement: String
  package let subject: SubjectReference
  package let event: String
  package let at: Date
  package let validUntil: Date?
  package let source: String
  /// The event's id at its source: the same one twice is one event.
  package let sourceEvent: String
  package let detail: JSON
  /// The place in the ledger's order; 0 before it has one.
  package internal(set) var sequence: Int64 = 0

  package init(
    agreement: String, subject: SubjectReference, event: String, at: Date, validUntil: Date?, source: String,
    sourceEvent: String, detail: JSON
  ) {
    self.agreement = agreement
    self.subject = subject
    self.event = event
    // Whole seconds, as they are written and hashed.
    self.at = Date(timeIntervalSince1970: at.timeIntervalSince1970.rounded(.down))
    self.validUntil = validUntil.map { Date(timeIntervalSince1970: $0.timeIntervalSince1970.rounded(.down)) }
    self.source = source
    self.sourceEvent = sourceEvent
    self.detail = detail
  }

  init(_ row: Row) throws {
    guard let subject = SubjectReference(bytes: row["subject"] as Data) else {
      throw LedgerError.damaged("a row of consent_events cannot be read")
    }
    self.init(
      agreement: row["agreement"], subject: subject, event: row["event"], at: Transfer.date(row["event_at"]),
      validUntil: (row["valid_until"] as Int64?).map(Transfer.date), source: row["source"],
      sourceEvent: row["source_event"], detail: try JSON(canonical: Array(row["detail"] as Data), bytesMax: 65536))
    sequence = row["sequence"]
  }

  /// What an import's audit entry vouches for.
  package var line: [UInt8] {
    JSON.object([
      "agreement": .string(agreement), "subject": .string(subject.description), "event": .string(event),
      "at": .string(Timestamp.format(at)), "validUntil": .string(validUntil.map(Timestamp.format) ?? ""),
      "source": .string(source), "sourceEvent": .string(sourceEvent), "detail": detail,
    ]).canonical
  }
}

/// What the sender knows about one of its packages beside the transfer: who decided what, and when it was disclosed.
package struct PackageRow: Equatable, Sendable {
  package let id: TransferID
  package let agreement: String
  package let agreementDigest: String
  package let recipient: AgencyID
  /// The ledger's sequence that consent was looked at.
  package var judged: Int64
  /// From then on it must be judged again.
  package var horizon: Date?
  package let records: Int64?
  /// The decision's canonical document.
  package let decision: [UInt8]
  /// The key that opens the body for its sender, until it is released or ended.
  package var retained: [UInt8]?
  /// The sequence of the first release; nil: none is known.
  package var released: Int64?
  /// When that was; without it, since when the package counts as disclosed: the ledger was restored, or its recipient says that it
  /// has the key.
  package var releasedAt: Date?

  /// Promise 3 goes by this.
  package var countsAsDisclosed: Bool { releasedAt != nil }
  /// Nobody here knows whether the key has gone.
  package var isPerhapsDisclosed: Bool { released == nil && releasedAt != nil }

  package init(
    id: TransferID, agreement: String, agreementDigest: String, recipient: AgencyID, judged: Int64, horizon: Date?,
    records: Int64?, decision: [UInt8], retained: [UInt8]?
  ) {
    self.id = id
    self.agreement = agreement
    self.agreementDigest = agreementDigest
    self.recipient = recipient
    self.judged = judged
    self.horizon = horizon
    self.records = records
    self.decision = decision
    self.retained = retained
  }

  init(_ row: Row) throws {
    guard let id = TransferID(row["id"]), let recipient = AgencyID(row["recipient"]) else {
      throw LedgerError.damaged("a row of packages cannot be read")
    }
    self.init(
      id: id, agreement: row["agreement"], agreementDigest: row["agreement_sha256"], recipient: recipient,
      judged: row["judged"], horizon: (row["horizon"] as Int64?).map(Transfer.date), records: row["records"],
      decision: Array(row["decision"] as Data), retained: (row["retained"] as Data?).map { Array($0) })
    released = row["released"]
    releasedAt = (row["released_at"] as Int64?).map(Transfer.date)
  }
}

extension Transaction {
  package func consentWord(_ agreement: String, _ subject: SubjectReference) throws -> UInt64? {
    try Int64.fetchOne(
      db.cachedStatement(sql: "SELECT word FROM consents WHERE agreement = ? AND subject = ?"),
      arguments: [agreement, Data(subject.bytes)]
    ).map { UInt64(bitPattern: $0) }
  }

  /// The first word about somebody; false when there is one.
  package func addConsent(_ agreement: String, _ subject: SubjectReference, word: UInt64) throws -> Bool {
    try execute(
      "INSERT INTO consents (agreement, subject, word) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
      [agreement, Data(subject.bytes), Int64(bitPattern: word)])
    return db.changesCount == 1
  }

  package func setConsent(_ agreement: String, _ subject: SubjectReference, word: UInt64) throws {
    try execute(
      "INSERT INTO consents (agreement, subject, word) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET word = excluded.word",
      [agreement, Data(subject.bytes), Int64(bitPattern: word)])
  }

  /// Stores an event under an audit entry; false when its source told it before.
  package func add(consentEvent row: ConsentEventRow, sequence: Int64, ordinal: Int64) throws -> Bool {
    try execute(
      """
      INSERT INTO consent_events (sequence, ordinal, agreement, subject, event, event_at, valid_until, source, source_event,
        detail)
      VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING
      """,
      [
        sequence, ordinal, row.agreement, Data(row.subject.bytes), row.event, Transfer.milliseconds(row.at),
        row.validUntil.map(Transfer.milliseconds), row.source, row.sourceEvent, Data(row.detail.canonical),
      ])
    return db.changesCount == 1
  }

  /// Whether a source told just this event before.
  package func holds(consentEvent row: ConsentEventRow) throws -> Bool {
    let held = try Row.fetchOne(
      db.cachedStatement(sql: "SELECT * FROM consent_events WHERE agreement = ? AND source = ? AND source_event = ?"),
      arguments: [row.agreement, row.source, row.sourceEvent])
    return try held.map { try ConsentEventRow($0).line == row.line } ?? false
  }

  /// Whether a source told an event of this id before.
  package func knows(_ agreement: String, source: String, event: String) throws -> Bool {
    try Bool.fetchOne(
      db.cachedStatement(sql: "SELECT 1 FROM consent_events WHERE agreement = ? AND source = ? AND source_event = ?"),
      arguments: [agreement, source, event]) ?? false
  }

  /// A sign of life of a consent registry; never moved back.
  ///
  /// - Returns: whether it is the first one.
  @discardableResult
  package func heard(_ agreement: String, source: String, at instant: Date) throws -> Bool {
    let isNew = try !reader.consentSources(agreement).contains { $0.source == source }
    try execute(
      """
      INSERT INTO consent_feeds (agreement, source, heard_at) VALUES (?, ?, ?)
      ON CONFLICT DO UPDATE SET heard_at = max(heard_at, excluded.heard_at)
      """, [agreement, source, Transfer.milliseconds(instant)])
    return isNew
  }

  /// A registry is not waited for any more; what it said stands.
  ///
  /// - Returns: false when it was never heard of.
  package func retire(_ agreement: String, source: String) throws -> Bool {
    guard try reader.consentSources(agreement).contains(where: { $0.source == source }) else { return false }
    try execute("DELETE FROM consent_feeds WHERE agreement = ? AND source = ?", [agreement, source])
    return true
  }

  /// The events of an entry say no: an acknowledgement is owed.
  package func owe(acknowledgementOf sequence: Int64) throws {
    try execute("INSERT INTO owed_acknowledgements (sequence) VALUES (?)", [sequence])
  }

  package func settle(acknowledgementOf sequence: Int64) throws {
    try execute("DELETE FROM owed_acknowledgements WHERE sequence = ?", [sequence])
  }

  package func put(_ package: PackageRow) throws {
    try execute(
      """
      INSERT OR REPLACE INTO packages (id, agreement, agreement_sha256, recipient, judged, horizon, records, decision, retained,
        released, released_at)
      VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
      """,
      [
        package.id.text, package.agreement, package.agreementDigest, package.recipient.text, package.judged,
        package.horizon.map(Transfer.milliseconds), package.records, Data(package.decision),
        package.retained.map { Data($0) }, package.released, package.releasedAt.map(Transfer.milliseconds),
      ])
  }

  /// Packages that wait for their release count as disclosed from now on: they may have been.
  func countAsDisclosed() throws {
    try execute(
      """
      UPDATE packages SET released_at = ? WHERE released_at IS NULL AND id IN
        (SELECT id FROM transfers WHERE direction = 'out' AND state IN ('sealed', 'queued', 'sending', 'custody', 'held'))
      """, [Transfer.milliseconds(at)])
  }

  /// A package counts as disclosed from now on, unless it did before.
  ///
  /// - Returns: whether that is new.
  package func countAsDisclosed(_ id: TransferID) throws -> Bool {
    try execute(
      "UPDATE packages SET released_at = ? WHERE released_at IS NULL AND id = ?", [Transfer.milliseconds(at), id.text])
    return db.changesCount == 1
  }

  /// Forgets the sender's own way into a package that will not be sealed again.
  package func forgetRetained(_ id: TransferID) throws {
    try execute("UPDATE packages SET retained = NULL WHERE id = ? AND retained IS NOT NULL", [id.text])
  }

  /// Forgets what was known about a package. Who was in it the caller removes from the spool.
  package func remove(package id: TransferID) throws {
    try execute("DELETE FROM packages WHERE id = ?", [id.text])
    try execute("DELETE FROM noticed WHERE package = ?", [id.text])
  }

  /// An approval; the same person twice is one.
  package func approve(_ id: TransferID, decision: String, by approver: String, agreementDigest: String) throws {
    try execute(
      """
      INSERT INTO approvals (id, decision, approver, approved_at, agreement_sha256) VALUES (?, ?, ?, ?, ?)
      ON CONFLICT DO NOTHING
      """, [id.text, decision, approver, Transfer.milliseconds(at), agreementDigest])
  }
}

extension Reader {
  package func package(_ id: TransferID) throws -> PackageRow? {
    try fetchOne("SELECT * FROM packages WHERE id = ?", [id.text]).map(PackageRow.init)
  }

  /// Packages under an agreement, in order of their ids after `id`.
  package func packages(agreement: String, after id: TransferID?, limit: Int) throws -> [PackageRow] {
    try fetchAll(
      "SELECT * FROM packages WHERE agreement = ? AND id > ? ORDER BY id LIMIT ?", [agreement, id?.text ?? "", limit]
    ).map(PackageRow.init)
  }

  /// Packages of `sender`, this agency, that were released before `instant`, or never, and are purged: nothing of them goes any more.
  package func packages(of sender: AgencyID, overBefore instant: Date, limit: Int) throws -> [TransferID] {
    try fetchAll(
      """
      SELECT id FROM packages WHERE (released_at < ?1 OR released_at IS NULL) AND EXISTS
        (SELECT 1 FROM transfers AS t WHERE t.sender = ?2 AND t.id = packages.id AND t.state = 'purged') LIMIT ?3
      """, [Transfer.milliseconds(instant), sender.text, limit]
    ).compactMap { TransferID($0["id"]) }
  }

  /// Everything that a person did about an agreement, in the ledger's order.
  package func consentEvents(_ agreement: String, _ subject: SubjectReference) throws -> [ConsentEventRow] {
    try fetchAll(
      "SELECT * FROM consent_events WHERE agreement = ? AND subject = ? ORDER BY sequence, ordinal",
      [agreement, Data(subject.bytes)]
    ).map(ConsentEventRow.init)
  }

  /// People about whom something was told after `sequence`; nil when they are more than `limit`.
  package func subjectsChanged(_ agreement: String, after sequence: Int64, limit: Int) throws -> [SubjectReference]? {
    let rows = try fetchAll(
      "SELECT DISTINCT subject FROM consent_events WHERE agreement = ? AND sequence > ? LIMIT ?",
      [agreement, sequence, limit + 1])
    return rows.count > limit ? nil : rows.compactMap { SubjectReference(bytes: $0["subject"] as Data) }
  }

  package func consentWord(_ agreement: String, _ subject: SubjectReference) throws -> UInt64? {
    try fetchOne("SELECT word FROM consents WHERE agreement = ? AND subject = ?", [agreement, Data(subject.bytes)])
      .map { UInt64(bitPattern: $0["word"]) }
  }

  /// Events that were told after `sequence`; counts `limit` at most.
  package func consentChanges(_ agreement: String, after sequence: Int64, limit: Int) throws -> Int {
    try fetchOne(
      "SELECT count(*) AS n FROM (SELECT 1 FROM consent_events WHERE agreement = ? AND sequence > ? LIMIT ?)",
      [agreement, sequence, limit])?["n"] ?? 0
  }

  package func consentCount(_ agreement: String) throws -> Int {
    try fetchOne("SELECT count(*) AS n FROM consents WHERE agreement = ?", [agreement])?["n"] ?? 0
  }

  /// Visits everybody's state under an agreement.
  package func forEachConsent(_ agreement: String, _ body: (SubjectReference, UInt64) throws -> Void) throws {
    try forEachConsent("SELECT subject, word FROM consents WHERE agreement = ?", [agreement], body)
  }

  /// Visits the state of those about whom something was told after `sequence`.
  package func forEachConsent(
    _ agreement: String, changedAfter sequence: Int64, _ body: (SubjectReference, UInt64) throws -> Void
  ) throws {
    try forEachConsent(
      """
      SELECT subject, word FROM consents WHERE agreement = ?1
      AND subject IN (SELECT subject FROM consent_events WHERE agreement = ?1 AND sequence > ?2)
      """, [agreement, sequence], body)
  }

  private func forEachConsent(
    _ sql: String, _ arguments: StatementArguments, _ body: (SubjectReference, UInt64) throws -> Void
  ) throws {
    let rows = try Row.fetchCursor(db.cachedStatement(sql: sql), arguments: arguments)
    while let row = try rows.next() {
      let subject = try row.withUnsafeData(atIndex: 0) { $0?.withUnsafeBytes { SubjectReference(raw: $0) } ?? nil }
      guard let subject else { throw LedgerError.damaged("a row of consents cannot be read") }
      try body(subject, UInt64(bitPattern: row[1]))
    }
  }

  /// Entries whose events are owed an acknowledgement, in order.
  package func owedAcknowledgements() throws -> [Int64] {
    try fetchAll("SELECT sequence FROM owed_acknowledgements ORDER BY sequence", []).map { $0["sequence"] }
  }

  /// The events of one entry.
  package func consentEvents(of sequence: Int64) throws -> [ConsentEventRow] {
    try fetchAll("SELECT * FROM consent_events WHERE sequence = ? ORDER BY ordinal", [sequence]).map(
      ConsentEventRow.init)
  }

  /// All events in order, for an audit.
  package func forEachConsentEvent(_ body: (ConsentEventRow) throws -> Void) throws {
    let rows = try Row.fetchCursor(db, sql: "SELECT * FROM consent_events ORDER BY sequence, ordinal")
    while let row = try rows.next() { try body(ConsentEventRow(row)) }
  }

  /// The source of events that people enter by hand: it is not expected to speak regularly.
  package static let byHand = "command"

  /// When the quietest of an agreement's registries was heard last; without one, when somebody entered something by hand; nil for
  /// never.
  package func consentHeard(_ agreement: String) throws -> Date? {
    try fetchOne(
      "SELECT coalesce(min(CASE WHEN source <> ? THEN heard_at END), max(heard_at)) AS at FROM consent_feeds WHERE agreement = ?",
      [Self.byHand, agreement]
    )
    .flatMap { ($0["at"] as Int64?).map(Transfer.date) }
  }

  /// An agreement's registries and when each was heard last, the quietest first.
  package func consentSources(_ agreement: String) throws -> [(source: String, heard: Date)] {
    try fetchAll(
      "SELECT source, heard_at FROM consent_feeds WHERE agreement = ? ORDER BY heard_at, source", [agreement]
    ).map { ($0["source"], Transfer.date($0["heard_at"])) }
  }

  /// Agreements under which anything is known about anybody.
  package func consentAgreements() throws -> [String] {
    // SQLite would visit everybody for a DISTINCT.
    try fetchAll(
      """
      WITH RECURSIVE found (agreement) AS (SELECT min(agreement) FROM consents UNION ALL
        SELECT (SELECT min(agreement) FROM consents WHERE agreement > found.agreement) FROM found WHERE agreement IS NOT NULL)
      SELECT agreement FROM found WHERE agreement IS NOT NULL
      """, []
    ).map { $0["agreement"] }
  }

  package func approvers(_ id: TransferID, decision: String) throws -> [String] {
    try fetchAll("SELECT approver FROM approvals WHERE id = ? AND decision = ? ORDER BY approver", [id.text, decision])
      .map { $0["approver"] }
  }

  /// Whether `count` people approved a package of this agreement before.
  package func hasApproved(agreement: String, by count: Int64) throws -> Bool {
    try fetchOne(
      "SELECT 1 FROM approvals WHERE agreement_sha256 = ? GROUP BY id HAVING count(*) >= ? LIMIT 1", [agreement, count])
      != nil
  }
}

/// A notice that we sent or got, with its newest answer.
package struct NoticeRow: Equatable, Sendable {
  package let id: TransferID
  package let direction: Direction
  package let peer: AgencyID
  package let agreement: String
  package let envelope: [UInt8]
  package var answer: [UInt8]?
  /// While it is open: when it is to be sent or asked about again, or done, where it is for us; nil once it has its last answer.
  package var nextAt: Date?
  package let actBy: Date
  package let sequence: Int64

  package init(
    id: TransferID, direction: Direction, peer: AgencyID, agreement: String, envelope: [UInt8], answer: [UInt8]? = nil,
    nextAt: Date?, actBy: Date, sequence: Int64
  ) {
    self.id = id
    self.direction = direction
    self.peer = peer
    self.agreement = agreement
    self.envelope = envelope
    self.answer = answer
    self.nextAt = nextAt
    self.actBy = actBy
    self.sequence = sequence
  }

  init(_ row: Row) throws {
    guard let id = TransferID(row["id"]), let peer = AgencyID(row["peer"]),
      let direction = Direction(rawValue: row["direction"])
    else { throw LedgerError.damaged("a row of notices cannot be read") }
    self.init(
      id: id, direction: direction, peer: peer, agreement: row["agreement"], envelope: Array(row["envelope"] as Data),
      answer: (row["answer"] as Data?).map { Array($0) }, nextAt: (row["next_at"] as Int64?).map(Transfer.date),
      actBy: Transfer.date(row["act_by"]), sequence: row["sequence"])
  }
}

extension Transaction {
  package func put(_ notice: NoticeRow) throws {
    try execute(
      """
      INSERT OR REPLACE INTO notices (id, direction, peer, agreement, envelope, answer, next_at, act_by, sequence)
      VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
      """,
      [
        notice.id.text, notice.direction.rawValue, notice.peer.text, notice.agreement, Data(notice.envelope),
        notice.answer.map { Data($0) }, notice.nextAt.map(Transfer.milliseconds), Transfer.milliseconds(notice.actBy),
        notice.sequence,
      ])
  }
}

extension Transaction {
  /// Forgets what a hub keeps and should have been done before `instant`.
  package func removeParkedNotices(overdueAt instant: Date) throws {
    try execute("DELETE FROM notices WHERE direction = 'hub' AND act_by < ?", [Transfer.milliseconds(instant)])
  }

  /// The recipient of a package is told of these records of it.
  package func notice(_ ordinals: [Int64], of package: TransferID) throws {
    for ordinal in ordinals { try execute("INSERT OR IGNORE INTO noticed VALUES (?, ?)", [package.text, ordinal]) }
  }
}

extension Reader {
  /// Those of a package's records that its recipient was told of.
  package func noticed(_ ordinals: [Int64], of package: TransferID) throws -> Set<Int64> {
    try Set(
      ordinals.filter {
        try fetchOne("SELECT 1 FROM noticed WHERE package = ? AND ordinal = ?", [package.text, $0]) != nil
      })
  }

  package func notice(_ id: TransferID) throws -> NoticeRow? {
    try fetchOne("SELECT * FROM notices WHERE id = ?", [id.text]).map(NoticeRow.init)
  }

  /// Open ones first.
  package func notices(limit: Int) throws -> [NoticeRow] {
    try fetchAll("SELECT * FROM notices ORDER BY next_at IS NULL, sequence LIMIT ?", [limit]).map(NoticeRow.init)
  }

  /// Those that we sent to `peer`.
  package func notices(to peer: AgencyID) throws -> [NoticeRow] {
    try fetchAll("SELECT * FROM notices WHERE peer = ? AND direction = 'out'", [peer.text]).map(NoticeRow.init)
  }

  /// Open ones that should have been done before `instant`; of one direction where that is given.
  package func notices(overdueAt instant: Date, _ direction: Direction? = nil, limit: Int = .max) throws -> [NoticeRow]
  {
    try fetchAll(
      """
      SELECT * FROM notices WHERE next_at IS NOT NULL AND act_by < ?1 AND coalesce(direction = ?2, true)
      ORDER BY act_by LIMIT ?3
      """, [Transfer.milliseconds(instant), direction?.rawValue, limit]
    ).map(NoticeRow.init)
  }

  /// To `peer`, ours and those that we keep as a hub, that wait for an answer, or for a later one.
  package func openNotices(to peer: AgencyID, limit: Int) throws -> [NoticeRow] {
    try fetchAll(
      """
      SELECT * FROM notices WHERE peer = ? AND direction <> 'in' AND next_at IS NOT NULL
      ORDER BY answer IS NOT NULL, sequence LIMIT ?
      """,
      [peer.text, limit]
    ).map(NoticeRow.init)
  }

  /// Open notices of `peer` for us.
  package func countOpenNotices(from peer: AgencyID) throws -> Int {
    try fetchOne(
      "SELECT count(*) AS n FROM notices WHERE peer = ? AND direction = 'in' AND next_at IS NOT NULL", [peer.text])?[
        "n"] ?? 0
  }

  /// Open notices under one agreement that a hub keeps for `peer`.
  package func countParkedNotices(for peer: AgencyID, under agreement: String) throws -> Int {
    try fetchOne(
      """
      SELECT count(*) AS n FROM notices WHERE peer = ? AND direction = 'hub' AND next_at IS NOT NULL AND agreement = ?
      """, [peer.text, agreement])?["n"] ?? 0
  }

  /// Whether a hub keeps notices that should have been done before `instant`.
  package func hasParkedNotices(overdueAt instant: Date) throws -> Bool {
    try fetchOne(
      "SELECT 1 FROM notices WHERE direction = 'hub' AND act_by < ? LIMIT 1", [Transfer.milliseconds(instant)]) != nil
  }

  /// Those of them that are to be sent or asked about.
  package func noticesDue(to peer: AgencyID, at instant: Date, limit: Int) throws -> [NoticeRow] {
    try fetchAll(
      "SELECT * FROM notices WHERE peer = ? AND direction <> 'in' AND next_at <= ? LIMIT ?",
      [peer.text, Transfer.milliseconds(instant), limit]
    ).map(NoticeRow.init)
  }
}
