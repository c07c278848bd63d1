// Consent in memory, one table for each agreement that asks for it: filled at start from their copy and the ledger, and after each
// commit.
// Sealing looks people up here; the release rule asks the ledger itself.

import Foundation
import Logging
import Policies
import Records
import Sealing
import Store

/// Callable concurrently.
final class ConsentBook: @unchecked Sendable {
  // Proof for @unchecked: `tables` and `inFile` are touched only under `lock`.
  private let lock = NSLock()
  private var tables: [String: ConsentTable] = [:]
  /// The sequence of the ledger's entry that the file on disk shows; 0 without one.
  private var inFile: Int64 = 0

  private func replace(_ agreement: String, with table: ConsentTable) { lock.withLock { tables[agreement] = table } }

  /// Fills the book at start: from the file what it shows, the rest from the ledger. Blocks.
  func load(_ reader: Reader, _ file: ConsentTableFile, _ logger: Logger) throws {
    var kept: ConsentTableFile.Tables?
    do {
      kept = try file.read(reader)
    } catch {
      logger.warning("\(file.path) is not used, the ledger is read instead: \(error)")
    }
    for agreement in try reader.consentAgreements() {
      if let kept, let table = kept.byAgreement[agreement] {
        let most = Self.changesMax + table.count / 4
        if try reader.consentChanges(agreement, after: kept.place.sequence, limit: most) < most {
          try reader.forEachConsent(agreement, changedAfter: kept.place.sequence) { table.set($0, $1) }
          replace(agreement, with: table)
          continue
        }
      }
      let table = ConsentTable(room: try reader.consentCount(agreement))
      try reader.forEachConsent(agreement) { table.set($0, $1) }
      replace(agreement, with: table)
    }
    lock.withLock { inFile = kept?.place.sequence ?? 0 }
  }

  /// Changes that the next start reads from the ledger without being slow.
  static let changesMax = 20_000

  /// Writes the file again once it is `changesMax` behind. Blocks.
  ///
  /// - Returns: whether it was.
  func keep(_ reader: Reader, _ file: ConsentTableFile, while goesOn: () throws -> Bool) throws -> Bool {
    let old = lock.withLock { inFile }
    let isBehind = try reader.consentAgreements().contains {
      try reader.consentChanges($0, after: old, limit: Self.changesMax) == Self.changesMax
    }
    guard isBehind, try goesOn(), let sequence = try file.write(reader, while: goesOn) else { return false }
    lock.withLock { inFile = sequence }
    return true
  }

  /// Takes a state up. Whatever order they come in, the same one is left as in the ledger: the later act, the negative one of two.
  ///
  /// A negative state is set before its commit, so that no sealing that counts itself after it can overlook it; a positive one
  /// after, so that nobody goes by a grant that was never recorded.
  func set(_ agreement: String, _ subject: SubjectReference, _ word: UInt64) {
    guard let next = ConsentRecord(word: word) else { return }
    lock.withLock {
      let table = tables[agreement] ?? ConsentTable()
      let present = ConsentRecord(word: table.words([subject])[0])
      table.set(subject, ConsentRecord.merged(present, next).word)
      tables[agreement] = table
    }
  }

  /// What the ledger says of somebody, after a commit that failed: what was set for it is no one's act.
  func reset(_ agreement: String, _ subject: SubjectReference, _ word: UInt64) {
    lock.withLock {
      let table = tables[agreement] ?? ConsentTable()
      table.set(subject, word == 0 ? ConsentRecord.nothing : word)
      tables[agreement] = table
    }
  }

  func words(_ agreement: String, _ subjects: [SubjectReference]) -> [UInt64] {
    lock.withLock { tables[agreement]?.words(subjects) } ?? [UInt64](repeating: 0, count: subjects.count)
  }

  /// The same people in another book.
  func copy(_ agreement: String, to other: ConsentBook) {
    let table = ConsentTable()
    lock.withLock { tables[agreement]?.forEach { table.set($0, $1) } }
    other.replace(agreement, with: table)
  }

  func count(_ agreement: String) -> Int { lock.withLock { tables[agreement]?.count ?? 0 } }
}

/// The gate of one sealing: asks the book, and remembers until when its answers hold.
final class ConsentGate: @unchecked Sendable {
  // Proof for @unchecked: `earliest` is touched only under `lock`.
  private let lock = NSLock()
  /// Of the grants that were let through.
  private var earliest = EarliestGrant()
  private let rule: ConsentRule
  private let consent: Agreement.Consent
  private let subjectKey: SubjectKey
  private let pseudonymKey: SubjectKey
  private let book: ConsentBook
  private let agreement: String

  init(_ agreement: Agreement, _ id: TransferID, master: Secret, book: ConsentBook, at now: Date) {
    let scope = agreement.fields.first { $0.action == .pseudonymise }?.pseudonymScope ?? .agreement
    subjectKey = SubjectKey(master: master, .ledger, context: agreement.id)
    pseudonymKey = SubjectKey(
      master: master, .pseudonym, context: scope == .package ? "\(agreement.id)/\(id)" : agreement.id)
    rule = ConsentRule(agreement.consent, at: now)
    consent = agreement.consent
    self.book = book
    self.agreement = agreement.id
  }

  var gate: RecordGate {
    var withhold: (@Sendable ([SubjectDigest]) -> [UInt8])?
    if consent.model != .none { withhold = { subjects in self.verdicts(subjects.map { SubjectReference($0) }) } }
    return RecordGate(
      subjects: { texts in Self.digests(texts, self.subjectKey) },
      pseudonyms: { texts in Self.digests(texts, self.pseudonymKey) }, withhold: withhold, reasons: ConsentRule.reasons)
  }

  private static func digests(_ texts: TextList, _ key: SubjectKey) -> [SubjectDigest] {
    key.references(texts.bytes, ends: texts.ends).map { SubjectDigest(high: $0.high, low: $0.low) }
  }

  private func verdicts(_ subjects: [SubjectReference]) -> [UInt8] {
    let words = book.words(agreement, subjects)
    var batch = EarliestGrant()
    let verdicts = words.map { word in
      let verdict = rule.verdict(word)
      if verdict == 0 { batch.add(word) }
      return verdict
    }
    lock.withLock { earliest.add(batch) }
    return verdicts
  }

  /// When the first of those let through may go no more.
  var horizon: Date? { lock.withLock { earliest }.end(by: rule) }
}

extension SubjectReference {
  init(_ digest: SubjectDigest) { self.init(high: digest.high, low: digest.low) }
}
