// What a person's choice sets going: the event in the ledger, packages that are stopped, notices about those that are gone, and
// the acknowledgement that says all of it.
//
//   COMMIT event (from here on no release begins that it forbids)  →  memory  →  packages not released that hold the person:
//   taken back  →  open leases that hold the person: waited for  →  COMMIT notices + acknowledgement
//
// A crash on the way repeats nothing and loses nothing: the event stands, the release rule looks at it, and `consent audit` finds
// what was not acknowledged.

import Foundation
import Logging
import Policies
import Sealing
import Store
import Transport

/// What a withdrawal came to. Promise 3: whoever is not listed here as disclosed cannot read the record, ever.
package struct ConsentAcknowledgement: Equatable, Sendable {
  package let sequence: Int64
  /// False when a later act of the person stands against the event, or a grant is over already.
  package let hasEffect: Bool
  /// Whether anything had been recorded or sent about the person.
  package let isKnown: Bool
  /// How many it is about.
  package let people: Int
  package let stopped: [TransferID]
  package let disclosed: [PackageRow]
  package let notices: [TransferID]
  package let recordedAt: Date
  package let acknowledgedAt: Date
}

struct ConsentJourney: Sendable {
  /// More people at once are looked for by reading an index through.
  private static let searchesMax = 200

  let context: GatewayContext

  func key(_ agreement: Agreement) -> SubjectKey {
    SubjectKey(master: context.keys.subjectMaster, .ledger, context: agreement.id)
  }

  /// An agreement of ours that asks for consent.
  ///
  /// - Throws: `AdminError` refused, when nobody is asked under it, or not here; failed, when it is not here.
  func agreement(_ id: String) throws -> Agreement {
    guard let agreement = context.current(id, at: context.now()) else {
      throw AdminError(.failed, "no agreement \(id) in \(context.home.policies)")
    }
    guard agreement.consent.model != .none else {
      throw AdminError(.refused, "under \(id) nobody is asked: its consent model is none")
    }
    // What is recorded elsewhere stops nothing.
    guard agreement.party(context.agency, as: .provider) != nil else {
      let providers = agreement.parties.filter { $0.role == .provider }.map(\.id.text).joined(separator: ", ")
      throw AdminError(.refused, "consent under \(id) is kept where records are sent from: at \(providers)")
    }
    return agreement
  }

  /// One event by hand or by a portal.
  func record(_ event: ConsentEvent, _ row: ConsentEventRow, _ agreement: Agreement) async throws
    -> ConsentAcknowledgement
  {
    let recordedAt = context.now()
    let isNegative = event.state.isNegative
    let consents = context.consents
    let (sequence, word, before) = try await undoing([row.subject], row.agreement) { tx in
      let before = try tx.consentWord(row.agreement, row.subject)
      guard try !tx.knows(row.agreement, source: row.source, event: row.sourceEvent) else {
        throw LedgerError.illegal("recording event \(row.sourceEvent) of \(row.source) twice")
      }
      let sequence = try tx.append(
        AuditEvent(
          "consent.event",
          [
            "agreement": .string(row.agreement), "subject": .string(row.subject.description),
            "event": .string(row.event),
            "sha256": .string(Digest(of: row.line).hex),
          ]))
      _ = try tx.add(consentEvent: row, sequence: sequence, ordinal: 0)
      try tx.heard(row.agreement, source: row.source, at: tx.at)
      let word = try Self.apply(row, event, tx)
      if isNegative {
        consents.set(row.agreement, row.subject, word)
        // Nothing follows from an act that a later one stands against.
        if Self.isNegative(word) {
          try tx.owe(acknowledgementOf: sequence)
        } else {
          try tx.append(AuditEvent("consent.acknowledged", ["for": .integer(sequence), "effect": false]))
        }
      }
      return (sequence, word, before)
    }
    context.consents.set(row.agreement, row.subject, word)
    // A withdrawal dated before a newer grant changes nothing: it must not be acknowledged as if it did.
    let isStopped = Self.isNegative(word)
    guard isNegative, isStopped else {
      return ConsentAcknowledgement(
        sequence: sequence,
        hasEffect: !isNegative && ConsentRule(agreement.consent, at: context.now()).verdict(word) == 0, isKnown: true,
        people: 1, stopped: [], disclosed: [], notices: [],
        recordedAt: recordedAt, acknowledgedAt: context.now())
    }
    return try await settle(
      [row.subject], agreement, because: event, sequence: sequence, recordedAt: recordedAt, isKnown: before != nil)
  }

  /// A change of people's states, which counts in memory from before its commit; whatever fails, memory says what the ledger does.
  func undoing<Value: Sendable>(
    _ subjects: @autoclosure () -> [SubjectReference], _ agreement: String,
    _ body: @escaping @Sendable (Transaction) throws -> Value
  ) async throws -> Value {
    do {
      return try await context.ledger.write(body)
    } catch {
      let (failure, touched, consents) = (error, subjects(), context.consents)
      do {
        // Where every state is set before its commit: none of another is overlooked.
        try await context.ledger.write { tx in
          for subject in touched { consents.reset(agreement, subject, try tx.consentWord(agreement, subject) ?? 0) }
        }
      } catch {
        // What is left is negative: nothing goes that may not.
        context.logger.error("consents under \(agreement) are behind until the next start: \(error)")
      }
      throw failure
    }
  }

  /// How far in the future a grant may be dated: clocks differ.
  static let futureSecondsMax: TimeInterval = 300

  /// The state after an event, stored. Returns its word.
  ///
  /// - Throws: `document.invalid` for a grant from the future: it would outlast a withdrawal of today.
  static func apply(_ row: ConsentEventRow, _ event: ConsentEvent, _ tx: Transaction) throws -> UInt64 {
    guard event.state.isNegative || row.at <= tx.at + futureSecondsMax else {
      throw SealingError(.documentInvalid, "a \(event.rawValue) is dated in the future: \(Timestamp.format(row.at))")
    }
    func word(after present: ConsentRecord?) -> UInt64 {
      ConsentRecord.applied(event, at: row.at, validUntil: row.validUntil, recordedAt: tx.at, to: present).word
    }
    // Most of an import is about people who are new.
    let first = word(after: nil)
    if try tx.addConsent(row.agreement, row.subject, word: first) { return first }
    let next = word(after: try tx.consentWord(row.agreement, row.subject).flatMap { ConsentRecord(word: $0) })
    try tx.setConsent(row.agreement, row.subject, word: next)
    return next
  }

  static func isNegative(_ word: UInt64) -> Bool { ConsentRecord(word: word)?.state.isNegative ?? false }

  /// What a crash left without its acknowledgement. Before any stage runs.
  ///
  /// - Throws: `FatalFailure`.
  func settleAfterCrash() async throws {
    for sequence in try await context.ledger.read({ try $0.owedAcknowledgements() }) { try await settleAgain(sequence) }
  }

  private static let againSeconds = 60

  /// Goes on, until it is cancelled, with what could not be settled: a disk was full, a file could not be read.
  ///
  /// - Throws: `FatalFailure`.
  func settleLater() async throws {
    var owedBefore: [Int64] = []
    while !Task.isCancelled {
      await Signal().wait(after: 0, for: .seconds(Self.againSeconds))
      if Task.isCancelled { return }
      do {
        let owed = try await context.ledger.read { try $0.owedAcknowledgements() }
        // What began a moment ago is somebody's who waits for it.
        for sequence in owed
        where owedBefore.contains(sequence) && !context.settling.withLockedValue({ $0.contains(sequence) }) {
          try await settleAgain(sequence)
        }
        owedBefore = owed
      } catch {
        if let (code, note) = try Disposition.survived(error) { context.logger.error("consents: \(note) [\(code)]") }
      }
    }
  }

  /// One that cannot be settled now is tried again later: its events stand, and nobody's data goes against them.
  private func settleAgain(_ sequence: Int64) async throws {
    do {
      try await settle(owed: sequence)
    } catch {
      guard let (code, note) = try Disposition.survived(error) else { return }
      context.logger.error("the consent events of entry \(sequence) have no acknowledgement yet: \(note) [\(code)]")
    }
  }

  private func settle(owed sequence: Int64) async throws {
    let rows = try await context.ledger.read { try $0.consentEvents(of: sequence) }.filter {
      ConsentEvent(rawValue: $0.event)?.state.isNegative ?? false
    }
    guard let first = rows.first else { return }
    guard let agreement = context.current(first.agreement, at: context.now()) else {
      throw AdminError(.failed, "the agreement \(first.agreement) is not in \(context.home.policies)")
    }
    let words = try await context.ledger.read { reader in
      try rows.map { try reader.consentWord(first.agreement, $0.subject) ?? 0 }
    }
    let stopped = zip(rows, words).filter { Self.isNegative($0.1) }.map(\.0.subject)
    let because = ConsentEvent(rawValue: first.event) ?? .withdrawn
    _ = try await settle(stopped, agreement, because: because, sequence: sequence, recordedAt: context.now())
  }

  // MARK: stopping

  /// Stops what can be stopped, waits for what is on its way, tells those who have it.
  func settle(
    _ people: [SubjectReference], _ agreement: Agreement, because: ConsentEvent, sequence: Int64, recordedAt: Date,
    isKnown: Bool = true
  ) async throws -> ConsentAcknowledgement {
    context.settling.withLockedValue { _ = $0.insert(sequence) }
    defer { context.settling.withLockedValue { _ = $0.remove(sequence) } }
    let subjects = Set(people)
    let deadline = context.now() + GatewayContext.leaseSeconds
    var stopped: [TransferID] = []
    var disclosed: [PackageRow] = []
    var untold: [(package: PackageRow, ordinals: [Int64])] = []
    var isKnown = isKnown
    try await forEachPackage(agreement.id) { package in
      let isIndexed = (context.agreement(of: package) ?? agreement).subjects.identifier != nil
      let looked = try await context.pool.run { [context] in
        try Self.ordinals(of: subjects, in: package, isIndexed: isIndexed, context.spool)
      }
      guard let ordinals = looked else {
        // Anybody may be in it. What has not gone does not go: the release rule wants to look too.
        if package.countsAsDisclosed {
          context.logger.error("the index of who is in \(package.id) is missing or damaged: it counts as disclosed")
          disclosed.append(package)
        }
        return
      }
      guard !ordinals.isEmpty else { return }
      isKnown = true
      switch try await stop(package.id, ordinals, deadline: deadline) {
      case .stopped:
        stopped.append(package.id)
        guard package.isPerhapsDisclosed else { return }
        try await disclose(package, ordinals)
      case .disclosed(let now): try await disclose(now, ordinals)
      case .over: return
      }
    }
    func disclose(_ package: PackageRow, _ ordinals: [Int64]) async throws {
      // Added up and handed over, nobody's record is in it.
      guard (context.agreement(of: package) ?? agreement).aggregate == nil else { return }
      disclosed.append(package)
      // Who withdraws twice is told of once.
      let told = try await context.ledger.read { try $0.noticed(ordinals, of: package.id) }
      if told.count < ordinals.count { untold.append((package, ordinals.filter { !told.contains($0) })) }
    }
    let notices = noticesFor(untold, agreement, because, sequence)
    let (ended, gone, told) = (stopped, disclosed.map(\.id), untold)
    try await context.ledger.write { tx in
      for notice in notices { try tx.put(notice) }
      for (package, ordinals) in told { try tx.notice(ordinals, of: package.id) }
      try tx.settle(acknowledgementOf: sequence)
      try tx.append(
        AuditEvent(
          "consent.acknowledged",
          [
            "for": .integer(sequence), "stopped": Self.list(ended), "disclosed": Self.list(gone),
            "notices": Self.list(notices.map(\.id)),
          ]))
    }
    for notice in notices { context.news.notify(noticeTo: notice.peer) }
    return ConsentAcknowledgement(
      sequence: sequence, hasEffect: true, isKnown: isKnown, people: subjects.count, stopped: stopped,
      disclosed: disclosed, notices: notices.map(\.id),
      recordedAt: recordedAt, acknowledgedAt: context.now())
  }

  private static let packagesPage = 500

  /// Visits the packages under an agreement, a page in memory at a time.
  func forEachPackage(_ agreement: String, _ body: (PackageRow) async throws -> Void) async throws {
    var last: TransferID?
    while true {
      let page = try await context.ledger.read { [last] in
        try $0.packages(agreement: agreement, after: last, limit: Self.packagesPage)
      }
      guard let end = page.last else { return }
      for package in page { try await body(package) }
      last = end.id
    }
  }

  /// The records of `subjects` in a package; nil when nobody can say.
  static func ordinals(
    of subjects: Set<SubjectReference>, in package: PackageRow, isIndexed: Bool, _ spool: Spool
  ) throws -> [Int64]? {
    do {
      guard let index = try spool.subjects(of: package.id) else { return isIndexed ? nil : [] }
      var found: [Int64] = []
      if subjects.count > searchesMax {
        try index.forEach { found += $0.filter { subjects.contains($0.subject) }.map(\.ordinal) }
      } else {
        for subject in subjects { found += try index.ordinals(of: subject) }
      }
      return found.sorted()
    } catch let error as DiskError where [EINVAL, ENOENT].contains(error.errno) {
      return nil
    }
  }

  /// Ids as an entry can hold them: the first ones, how many there are, and the digest of all.
  private static func list(_ ids: [TransferID]) -> JSON {
    let all = JSON.array(ids.map { .string($0.text) })
    guard ids.count > listedMax else { return all }
    return [
      "first": .array(ids.prefix(listedMax).map { .string($0.text) }), "count": .integer(Int64(ids.count)),
      "sha256": .string(Digest(of: all.canonical).hex),
    ]
  }

  private static let listedMax = 500

  private enum Stop: Sendable {
    case stopped
    case disclosed(PackageRow)
    /// It ended before, unread.
    case over
  }

  /// Stops a package before its key goes. A lease that is open is waited for, until `deadline` at most: then it counts as disclosed.
  private func stop(_ id: TransferID, _ ordinals: [Int64], deadline: Date) async throws -> Stop {
    while true {
      let agency = context.agency
      let (found, row) = try await context.ledger.read { (try $0.package(id), try $0.transfer(agency, id)) }
      guard let package = found, let transfer = row else { return .over }
      let state = transfer.state == .held ? transfer.heldFrom ?? .held : transfer.state
      if [.sealed, .queued, .sending, .custody].contains(state) {
        do {
          try await Withdrawal(context: context).stop(transfer, ordinals, code: "consent.withdrawn")
          return .stopped
        } catch LedgerError.stale {
          continue
        }
      }
      guard package.countsAsDisclosed else { return .over }
      // Whatever its state says: the key may be with the recipient.
      guard transfer.state == .releasing, let lease = transfer.nextAt, min(lease, deadline) > context.now() else {
        return .disclosed(package)
      }
      try await Task.sleep(for: .milliseconds(5))
    }
  }

  private func noticesFor(
    _ disclosed: [(package: PackageRow, ordinals: [Int64])], _ agreement: Agreement, _ because: ConsentEvent,
    _ sequence: Int64
  ) -> [NoticeRow] {
    let now = context.now()
    let actBy = agreement.consent.actWithin?.after(now) ?? now + 10 * 86400
    return Dictionary(grouping: disclosed, by: { $0.package.recipient }).sorted { $0.key < $1.key }.flatMap {
      recipient, packages in
      let items = packages.flatMap { package, ordinals in
        stride(from: 0, to: ordinals.count, by: WithdrawalNotice.ordinalsMax).map { start in
          WithdrawalNotice.Item(
            package: package.id,
            ordinals: Array(ordinals[start..<min(start + WithdrawalNotice.ordinalsMax, ordinals.count)]))
        }
      }
      return WithdrawalNotice.batches(items).map { items in
        let notice = WithdrawalNotice(
          id: TransferID(), issuer: context.agency, to: recipient,
          agreement: NamedDigest(id: agreement.id, sha256: agreement.digest), items: items,
          asked: agreement.consent.asked,
          because: because.rawValue, sequence: sequence, issuedAt: now, actBy: actBy)
        return NoticeRow(
          id: notice.id, direction: .out, peer: recipient, agreement: agreement.id,
          envelope: context.sign(notice.document, as: .notice).bytes, nextAt: now, actBy: notice.actBy,
          sequence: sequence)
      }
    }
  }
}
