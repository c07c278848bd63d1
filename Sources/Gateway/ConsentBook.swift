// Consent in memory, one table for each agreement that asks for it: filled from the ledger at start, and after each commit.
// Sealing looks people up here; the release rule asks the ledger itself.

import Foundation
import Policies
import Records
import Sealing

/// Callable concurrently.
final class ConsentBook: @unchecked Sendable {
  // Proof for @unchecked: `tables` is touched only under `lock`.
  private let lock = NSLock()
  private var tables: [String: ConsentTable] = [:]

  func replace(_ agreement: String, with table: ConsentTable) { lock.withLock { tables[agreement] = table } }

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
  // Proof for @unchecked: `earliestEnd` and `earliestGrant` are touched only under `lock`.
  private let lock = NSLock()
  /// Minutes, and seconds, of the grants that were let through; .max for none.
  private var earliestEnd = UInt64.max
  private var earliestGrant = UInt64.max
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
    var (end, grant) = (UInt64.max, UInt64.max)
    let verdicts = words.map { word in
      let verdict = rule.verdict(word)
      if verdict == 0, word != 0 {
        end = min(end, word >> 3 & ((1 << 29) - 1))
        grant = min(grant, word >> 32)
      }
      return verdict
    }
    lock.withLock {
      earliestEnd = min(earliestEnd, end)
      earliestGrant = min(earliestGrant, grant)
    }
    return verdicts
  }

  /// When the first of those let through may go no more.
  var horizon: Date? {
    let (end, grant) = lock.withLock { (earliestEnd, earliestGrant) }
    guard grant != .max else { return nil }
    // The earliest of both make a record that ends no later than any.
    return rule.end(UInt64(ConsentState.granted.rawValue) | end << 3 | grant << 32)
  }
}

extension SubjectReference {
  init(_ digest: SubjectDigest) { self.init(high: digest.high, low: digest.low) }
}
