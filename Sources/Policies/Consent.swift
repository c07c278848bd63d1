// Consent as events and as the state they leave, and the answer it gives for one person now.
//
// Event-sourced and bitemporal: the state is that of the latest event by the time at which the person acted; of two at one
// instant the negative one. A withdrawal counts from its recording, whatever its date; a grant not before its own.

import CKernels
import Foundation
import Sealing

/// What can happen to a person's consent. Names of DPV 2.3.
package enum ConsentEvent: String, Sendable, CaseIterable {
  case given = "ConsentGiven"
  case renewed = "RenewedConsentGiven"
  case refused = "ConsentRefused"
  case withdrawn = "ConsentWithdrawn"
  case revoked = "ConsentRevoked"
  case invalidated = "ConsentInvalidated"
  case objected = "ObjectionRegistered"
  case lifted = "ObjectionLifted"

  package var state: ConsentState {
    switch self {
    case .given, .renewed: .granted
    case .refused: .refused
    case .withdrawn: .withdrawn
    case .revoked: .revoked
    case .invalidated: .invalidated
    case .objected: .objected
    case .lifted: .lifted
    }
  }
}

extension Agreement.Consent {
  /// Why an event cannot be taken: who acted for the person, or on which notice. Anybody's no is taken.
  ///
  /// - Parameters:
  ///   - relation: of who acted to the person; nil or "self" for the person.
  ///   - notice: the id of the notice that was read; nil when it is not told.
  package func objection(to event: ConsentEvent, relation: String?, notice: String?) -> String? {
    guard !event.state.isNegative else { return nil }
    if let relation, relation != "self" {
      guard representatives.contains(relation) else { return "a \(relation) does not consent under this agreement" }
      // A representative may withdraw, and not extend.
      guard event != .renewed else { return "a \(relation) does not extend a consent" }
    }
    if let notice, let noticeID, notice != noticeID {
      return "the consent is to the notice \(notice), not to \(noticeID)"
    }
    return nil
  }
}

/// Raw values are stored: never change them.
package enum ConsentState: UInt8, Sendable, CaseIterable {
  case granted = 1
  case refused, withdrawn, revoked, invalidated, objected, lifted

  package var isNegative: Bool { self != .granted && self != .lifted }

  package var name: String {
    switch self {
    case .granted: "granted"
    case .refused: "refused"
    case .withdrawn: "withdrawn"
    case .revoked: "revoked"
    case .invalidated: "invalidated"
    case .objected: "objected"
    case .lifted: "objection lifted"
    }
  }
}

/// One person's consent under one agreement, in a word.
package struct ConsentRecord: Equatable, Sendable {
  package let state: ConsentState
  /// When the person acted.
  package let at: Date
  /// Whole minutes; nil: no end of its own.
  package let validUntil: Date?

  package init(state: ConsentState, at: Date, validUntil: Date?) {
    self.state = state
    self.at = Date(timeIntervalSince1970: Double(Self.seconds(at)))
    self.validUntil = validUntil.map { Date(timeIntervalSince1970: Double(Self.minutes($0) * 60)) }
  }

  // Bits 0-2 the state, 3-31 minutes of the end (all ones: none), 32-63 seconds of the event. Never 0.
  fileprivate static let noEnd: UInt64 = (1 << 29) - 1
  private static func seconds(_ date: Date) -> UInt64 {
    UInt64(min(max(0, date.timeIntervalSince1970), Double(UInt32.max)))
  }
  /// Rounded down: a grant never outlives its word.
  private static func minutes(_ date: Date) -> UInt64 {
    UInt64(min(max(0, date.timeIntervalSince1970 / 60), Double(noEnd - 1)))
  }

  /// Of somebody of whom nothing is known, in a table, where 0 is an empty place.
  package static let nothing: UInt64 = 1 << 3

  package var word: UInt64 {
    UInt64(state.rawValue) | (validUntil.map { Self.minutes($0) } ?? Self.noEnd) << 3 | Self.seconds(at) << 32
  }

  /// nil for 0 and for what no record leaves.
  package init?(word: UInt64) {
    guard let state = ConsentState(rawValue: UInt8(word & 7)) else { return nil }
    self.state = state
    at = Date(timeIntervalSince1970: Double(word >> 32))
    let end = word >> 3 & Self.noEnd
    validUntil = end == Self.noEnd ? nil : Date(timeIntervalSince1970: Double(end * 60))
  }

  /// The state after an event: the one rule for journey, audit and case files. A negative event counts from its recording at the
  /// latest; a positive one dated later than its recording is refused before it comes here.
  package static func applied(
    _ event: ConsentEvent, at: Date, validUntil: Date?, recordedAt: Date, to present: ConsentRecord?
  ) -> ConsentRecord {
    merged(present, ConsentRecord(state: event.state, at: min(at, recordedAt), validUntil: validUntil))
  }

  /// The later act; of two at one instant the negative one. Whatever their order, the same is left.
  package static func merged(_ present: ConsentRecord?, _ next: ConsentRecord) -> ConsentRecord {
    guard let present else { return next }
    if next.at != present.at { return next.at > present.at ? next : present }
    return next.state.isNegative || !present.state.isNegative ? next : present
  }
}

/// What an agreement's consent model makes of a record.
package struct ConsentRule: Sendable {
  /// Reason codes; a verdict is 0 or 1 + a place here.
  package static let reasons = [
    "consent.missing", "consent.refused", "consent.withdrawn", "consent.revoked", "consent.invalidated",
    "consent.objected", "consent.expired",
  ]

  private let model: Agreement.Consent.Model
  private let validityMax: CalendarDuration?
  /// Seconds since 1970.
  private let (now, later): (UInt64, UInt64)
  /// Grants from then or before are over, whatever they say.
  private let oldest: UInt64

  /// - Parameter skew: so many seconds longer a grant must last: clocks differ.
  package init(_ consent: Agreement.Consent, at instant: Date, skew: TimeInterval = 0) {
    func seconds(_ date: Date) -> UInt64 { UInt64(max(0, date.timeIntervalSince1970)) }
    model = consent.model
    validityMax = consent.validityMax
    (now, later) = (seconds(instant), seconds(instant + skew))
    // The calendar backwards: found once, not for each record.
    oldest = validityMax.map { seconds($0.latestBeginning(overAt: instant + skew)) } ?? 0
  }

  package func verdict(_ word: UInt64) -> UInt8 {
    guard let state = ConsentState(rawValue: UInt8(word & 7)) else { return model == .optIn ? 1 : 0 }
    switch state {
    case .granted:
      let end = word >> 3 & ConsentRecord.noEnd
      // Not yet given is not given.
      if word >> 32 > now { return model == .optIn ? 1 : 0 }
      if model == .optIn, end != ConsentRecord.noEnd, end * 60 <= later { return 7 }
      return model == .optIn && word >> 32 <= oldest ? 7 : 0
    case .lifted: return model == .optIn ? 1 : 0
    case .refused: return 2
    case .withdrawn: return 3
    case .revoked: return 4
    case .invalidated: return 5
    case .objected: return 6
    }
  }

  /// When a record that may go now may go no more by itself; nil: never.
  package func end(_ word: UInt64) -> Date? {
    guard model == .optIn, let record = ConsentRecord(word: word), record.state == .granted else { return nil }
    return [record.validUntil, validityMax?.end(from: record.at)].compactMap { $0 }.min()
  }
}

/// When the first of many records that may go may go no more.
package struct EarliestGrant: Sendable {
  /// Minutes, and seconds, as in a word; .max for none.
  private var end = UInt64.max
  private var grant = UInt64.max

  package init() {}

  package mutating func add(_ word: UInt64) {
    guard word != 0 else { return }
    end = min(end, word >> 3 & ConsentRecord.noEnd)
    grant = min(grant, word >> 32)
  }

  package mutating func add(_ other: EarliestGrant) {
    end = min(end, other.end)
    grant = min(grant, other.grant)
  }

  package func end(by rule: ConsentRule) -> Date? {
    guard grant != .max else { return nil }
    // The earliest of both make a record that ends no later than any.
    return rule.end(UInt64(ConsentState.granted.rawValue) | end << 3 | grant << 32)
  }
}

/// All people of one agreement, for look-ups at memory speed. The ledger stays the truth. Not for several threads at once.
package final class ConsentTable {
  private var slots: UnsafeMutablePointer<sp_slot>
  private var capacity: Int
  package private(set) var count = 0
  /// Filled to four fifths: 30 bytes a person.
  private static let fullTenths = 8

  /// - Parameter expected: how many people there will be; more make it grow.
  package init(expecting expected: Int = 0) {
    capacity = max(64, expected * 10 / Self.fullTenths + 1)
    slots = Self.empty(capacity)
  }

  /// For people who are known, and a twentieth more: a table that is full is copied when the next person comes.
  package convenience init(room people: Int) { self.init(expecting: people * 21 / 20) }

  deinit { free(slots) }

  package var bytes: Int { capacity * MemoryLayout<sp_slot>.stride }

  private static func empty(_ capacity: Int) -> UnsafeMutablePointer<sp_slot> {
    // Zeroed by the system page by page: an empty table costs no memory.
    guard let room = calloc(capacity, MemoryLayout<sp_slot>.stride) else { fatalError("no memory for consent") }
    return room.bindMemory(to: sp_slot.self, capacity: capacity)
  }

  package func set(_ subject: SubjectReference, _ word: UInt64) {
    precondition(word != 0)
    var at = sp_table_slot(slots, capacity, subject.high, subject.low)
    if slots[at].word == 0 {
      count += 1
      if count * 10 > capacity * Self.fullTenths {
        grow()
        at = sp_table_slot(slots, capacity, subject.high, subject.low)
      }
    }
    slots[at] = sp_slot(high: subject.high, low: subject.low, word: word)
  }

  private func grow() {
    let (old, oldCapacity) = (slots, capacity)
    capacity = capacity * 3 / 2
    slots = Self.empty(capacity)
    for place in 0..<oldCapacity where old[place].word != 0 {
      slots[sp_table_slot(slots, capacity, old[place].high, old[place].low)] = old[place]
    }
    free(old)
  }

  package func forEach(_ body: (SubjectReference, UInt64) -> Void) {
    for place in 0..<capacity where slots[place].word != 0 {
      body(SubjectReference(high: slots[place].high, low: slots[place].low), slots[place].word)
    }
  }

  /// The word of each subject; 0 when nothing is known.
  package func words(_ subjects: [SubjectReference]) -> [UInt64] {
    [UInt64](unsafeUninitializedCapacity: subjects.count) { output, count in
      count = subjects.count
      guard count > 0, let start = output.baseAddress else { return }
      subjects.withUnsafeBytes { keys in
        // Two words, high first: as a SubjectReference lies in memory.
        sp_table_find(slots, capacity, keys.baseAddress!.assumingMemoryBound(to: UInt64.self), subjects.count, start)
      }
    }
  }
}
