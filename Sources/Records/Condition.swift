// Comparisons of a field with constants: twelve operators, no expressions, no code. Three answers: yes, no, and "cannot be
// decided" (a value is missing or of another kind), which withholds a record and makes a `forbid` refuse.

import Foundation

/// One comparison.
package struct Condition: Sendable, Equatable {
  package enum Operator: String, Sendable, CaseIterable {
    case eq, ne, `in`, notIn = "not-in", lt, le, gt, ge, exists, absent, within, hasAny = "has-any"
  }

  package enum Value: Sendable, Equatable {
    case text(String)
    case integer(Int64)
    case bool(Bool)
    /// For `within`.
    case span(CalendarSpan)
  }

  package let field: String
  package let comparison: Operator
  package let values: [Value]

  /// - Throws: why the operator cannot have these values.
  package init(field: String, _ comparison: Operator, _ values: [Value]) throws(SchemaError) {
    func refused(_ reason: String) -> SchemaError { SchemaError(location: field, reason: reason) }
    switch comparison {
    case .exists, .absent:
      guard values.isEmpty else { throw refused("\(comparison.rawValue) has no value") }
    case .in, .notIn, .hasAny:
      guard (1...1000).contains(values.count) else { throw refused("\(comparison.rawValue) wants a list of values") }
    case .within:
      guard values.count == 1, case .span = values[0] else {
        throw refused("within wants a duration such as P8D or P24M")
      }
    case .eq, .ne: guard values.count == 1 else { throw refused("\(comparison.rawValue) wants one value") }
    case .lt, .le, .gt, .ge:
      guard values.count == 1 else { throw refused("\(comparison.rawValue) wants one value") }
      switch values[0] {
      case .integer: break
      case .text(let text) where Instant.parse(Array(text.utf8)) != nil: break
      default: throw refused("\(comparison.rawValue) wants a whole number, a date or an instant")
      }
    }
    self.field = field
    self.comparison = comparison
    self.values = values
  }
}

/// What a condition came to.
enum Verdict { case yes, no, undecided }

/// A condition ready to be asked.
struct CompiledCondition: Sendable {
  /// Whether several values (elements of an array) must all fulfil it, or one of them is enough.
  let wantsAll: Bool
  let comparison: Condition.Operator
  private let texts: [[UInt8]]
  private let numbers: [ExactNumber]
  private let bools: [Bool]
  private let instants: [Double]
  private let earliest: Double
  private let latest: Double

  init(_ condition: Condition, wantsAll: Bool, now: Date) {
    self.wantsAll = wantsAll
    comparison = condition.comparison
    var (texts, numbers, bools, instants): ([[UInt8]], [ExactNumber], [Bool], [Double]) = ([], [], [], [])
    for value in condition.values {
      switch value {
      case .text(let text):
        texts.append(Array(text.utf8))
        if let instant = Instant.parse(Array(text.utf8)) { instants.append(instant) }
      case .integer(let number): numbers.append(Array("\(number)".utf8).withUnsafeBufferPointer { ExactNumber($0) })
      case .bool(let bool): bools.append(bool)
      case .span: break
      }
    }
    self.texts = texts
    (self.numbers, self.bools, self.instants) = (numbers, bools, instants)
    if case .span(let span)? = condition.values.first {
      earliest = span.before(now).timeIntervalSince1970
      latest = now.timeIntervalSince1970
    } else {
      (earliest, latest) = (0, 0)
    }
  }

  /// A value as a format gives it.
  enum Operand {
    case text(UnsafeBufferPointer<UInt8>)
    case number(UnsafeBufferPointer<UInt8>)
    /// CSV and XML: the text may be compared as any of them.
    case untyped(UnsafeBufferPointer<UInt8>)
    /// XML: blanks within may count or not, as the schema's type has it.
    case spaced(UnsafeBufferPointer<UInt8>)
    case bool(Bool)
    /// An object.
    case other
  }

  /// The answer for no value at all.
  var ofNothing: Verdict {
    switch comparison {
    case .exists, .hasAny: .no
    case .absent: .yes
    default: .undecided
    }
  }

  func test(_ operand: Operand) -> Verdict {
    if case .spaced(let text) = operand {
      let asWritten = test(.untyped(text))
      guard let collapsed = Spaces.collapsed(text) else { return asWritten }
      return collapsed.withUnsafeBufferPointer { test(.untyped($0)) } == asWritten ? asWritten : .undecided
    }
    switch comparison {
    case .exists: return .yes
    case .absent: return .no
    case .eq, .in, .hasAny: return isOneOf(operand)
    case .ne, .notIn:
      switch isOneOf(operand) {
      case .yes: return .no
      case .no: return .yes
      case .undecided: return .undecided
      }
    case .lt: return order(operand) { $0 < 0 }
    case .le: return order(operand) { $0 <= 0 }
    case .gt: return order(operand) { $0 > 0 }
    case .ge: return order(operand) { $0 >= 0 }
    case .within:
      guard case .text(let text) = operand.asText, let instant = Instant.parse(text) else { return .undecided }
      // A day counts to its end, in whatever zone it was written.
      let room: Double = text.count == 10 ? 86400 : 0
      return instant + room >= earliest && instant <= latest + 86400 ? .yes : .no
    }
  }

  private func isOneOf(_ operand: Operand) -> Verdict {
    switch operand {
    case .text(let text):
      guard !texts.isEmpty else { return .undecided }
      return texts.contains(text) ? .yes : .no
    case .number(let text):
      guard !numbers.isEmpty else { return .undecided }
      let number = ExactNumber(text)
      return numbers.contains { ExactNumber.compare($0, number) == 0 } ? .yes : .no
    case .bool(let bool):
      guard !bools.isEmpty else { return .undecided }
      return bools.contains(bool) ? .yes : .no
    case .untyped(let text):
      if texts.contains(text) { return .yes }
      if !numbers.isEmpty {
        guard let number = Self.number(text) else { return .undecided }
        if numbers.contains(where: { ExactNumber.compare($0, number) == 0 }) { return .yes }
      }
      if !bools.isEmpty {
        guard let bool = Self.bool(text) else { return .undecided }
        if bools.contains(bool) { return .yes }
      }
      return .no
    case .other, .spaced: return .undecided
    }
  }

  private func order(_ operand: Operand, _ holds: (Int) -> Bool) -> Verdict {
    if let wanted = numbers.first {
      let number: ExactNumber? =
        switch operand {
        case .number(let text): ExactNumber(text)
        case .untyped(let text): Self.number(text)
        default: nil
        }
      guard let number else { return .undecided }
      return holds(ExactNumber.compare(number, wanted)) ? .yes : .no
    }
    guard case .text(let text) = operand.asText, let instant = Instant.parse(text), let wanted = instants.first else {
      return .undecided
    }
    return holds(instant < wanted ? -1 : instant == wanted ? 0 : 1) ? .yes : .no
  }

  /// A JSON number, with a sign and zeros in front as people write them.
  private static func number(_ text: UnsafeBufferPointer<UInt8>) -> ExactNumber? {
    guard (1...100).contains(text.count) else { return nil }
    let digits = text[0] == 45 || text[0] == 43 ? text.dropFirst() : text[...]
    let parts = digits.split(separator: 46, maxSplits: 1, omittingEmptySubsequences: false)
    guard parts.allSatisfy({ !$0.isEmpty && $0.allSatisfy { $0 &- 48 <= 9 } }) else { return nil }
    return text[0] == 43 ? ExactNumber(UnsafeBufferPointer(rebasing: digits)) : ExactNumber(text)
  }

  private static func bool(_ text: UnsafeBufferPointer<UInt8>) -> Bool? {
    switch String(decoding: text, as: UTF8.self) {
    case "true", "True", "TRUE", "1": true
    case "false", "False", "FALSE", "0": false
    default: nil
    }
  }
}

/// XSD 1.0 part 2 §4.3.6, whiteSpace = collapse.
enum Spaces {
  /// nil for what has no other blanks than single spaces within.
  static func collapsed(_ text: some Collection<UInt8>) -> [UInt8]? {
    var output: [UInt8] = []
    var isChanged = false
    for byte in text {
      guard byte == 32 || byte == 9 || byte == 10 || byte == 13 else {
        output.append(byte)
        continue
      }
      if byte != 32 || output.last == 32 { isChanged = true }
      if output.last != 32 { output.append(32) }
    }
    return isChanged ? output : nil
  }
}

extension CompiledCondition.Operand {
  var asText: Self {
    if case .untyped(let text) = self { .text(text) } else { self }
  }
}

/// Dates and instants of ISO 8601 as they stand in records: `2026-11-22`, `2026-11-22T10:00:00Z`, with a fraction or an offset.
enum Instant {
  /// Seconds since 1970; a date is its first second in UTC. nil when it is none of these.
  static func parse(_ text: some RandomAccessCollection<UInt8>) -> Double? {
    let bytes = Array(text)
    guard bytes.count == 10 || (20...35).contains(bytes.count) else { return nil }
    let isValid = bytes.withUnsafeBufferPointer {
      bytes.count == 10 ? Format.date.matches($0) : Format.dateTime.matches($0)
    }
    guard isValid else { return nil }
    func digits(_ start: Int, _ count: Int) -> Int {
      bytes[start..<(start + count)].reduce(0) { $0 * 10 + Int($1 - 48) }
    }
    var seconds = Double(days(digits(0, 4), digits(5, 2), digits(8, 2)) * 86400)
    guard bytes.count > 10 else { return seconds }
    seconds += Double(digits(11, 2) * 3600 + digits(14, 2) * 60 + digits(17, 2))
    var index = 19
    if bytes[index] == 46 {
      var scale = 0.1
      index += 1
      while bytes[index] &- 48 <= 9 {
        seconds += Double(bytes[index] - 48) * scale
        scale /= 10
        index += 1
      }
    }
    if bytes[index] | 32 != 122 {
      let offset = Double(digits(index + 1, 2) * 3600 + digits(index + 4, 2) * 60)
      seconds += bytes[index] == 43 ? -offset : offset
    }
    return seconds
  }

  /// Days since 1970-01-01 in the Gregorian calendar.
  private static func days(_ year: Int, _ month: Int, _ day: Int) -> Int {
    let y = month <= 2 ? year - 1 : year
    let era = (y >= 0 ? y : y - 399) / 400
    let yearOfEra = y - era * 400
    let dayOfYear = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1
    return era * 146_097 + yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear - 719_468
  }
}

/// A length of time; months and days have one only on a calendar.
package struct CalendarSpan: Sendable, Equatable {
  package let months: Int
  package let days: Int
  package let seconds: Int

  package init(months: Int, days: Int, seconds: Int) {
    self.months = months
    self.days = days
    self.seconds = seconds
  }

  /// The instant that lies this long before another, in UTC.
  func before(_ instant: Date) -> Date {
    var calendar = Calendar(identifier: .gregorian)
    calendar.timeZone = TimeZone(secondsFromGMT: 0)!
    let moved = calendar.date(byAdding: DateComponents(month: -months, day: -days), to: instant)
    return (moved ?? instant) - Double(seconds)
  }
}
