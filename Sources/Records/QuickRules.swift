// What tells by little work that a value is as a schema wants it. Most values of most records are, and end here.
//
// These rules vouch or say nothing: whatever they do not vouch for is judged by the schema's own rules, which alone know why a
// value is wrong. All of it is plain data without references: nothing is counted in a hot loop.

import Glibc

/// A few byte strings side by side, or none given.
struct WordList: BitwiseCopyable {
  private let bytes: UnsafePointer<UInt8>
  private let ends: UnsafePointer<Int32>
  private let count: Int
  let isGiven: Bool

  init(_ words: [[UInt8]]?) {
    isGiven = words != nil
    count = words?.count ?? 0
    guard let words else {
      (bytes, ends) = (UnsafePointer(bitPattern: 16)!, UnsafePointer(bitPattern: 16)!)
      return
    }
    bytes = rawTable(words.flatMap { $0 })
    var end: Int32 = 0
    ends = rawTable(
      words.map { word in
        end += Int32(word.count)
        return end
      })
  }

  func deallocate() {
    guard isGiven else { return }
    bytes.deallocate()
    ends.deallocate()
  }

  @inline(__always)
  func contains(_ text: UnsafePointer<UInt8>, _ length: Int) -> Bool {
    var start = 0
    for place in 0..<count {
      let end = Int(ends[place])
      if end - start == length, isEqual(bytes + start, text, length) { return true }
      start = end
    }
    return false
  }
}

/// Vouches for texts.
struct QuickText: BitwiseCopyable {
  private let scalarsMin: Int
  /// From so many bytes on there are `scalarsMin` scalars, whatever they are.
  private let bytesMin: Int
  private let bytesMax: Int
  // No optional of a structure: each look at it would copy it.
  private let automaton: UnsafePointer<Automaton>?
  private let format: Format?
  private let words: WordList

  init(scalarsMin: Int, scalarsMax: Int, pattern: Pattern?, format: Format?, words: [[UInt8]]?) {
    self.scalarsMin = scalarsMin
    // No scalar has more than four bytes, and none has less than one.
    bytesMin = max(scalarsMin, min(scalarsMin, .max / 4) * 4 - 3)
    bytesMax = scalarsMax
    automaton = pattern?.automaton
    self.format = format
    self.words = WordList(words)
  }

  /// Vouches for nothing.
  init() { self.init(scalarsMin: 0, scalarsMax: -1, pattern: nil, format: nil, words: nil) }

  func deallocate() { words.deallocate() }

  /// Whether quotes that are doubled, in CSV, change nothing.
  var isOfAnySpelling: Bool { automaton == nil && format == nil && !words.isGiven && scalarsMin <= 1 }

  @inline(__always)
  func vouches(_ text: UnsafePointer<UInt8>, _ count: Int) -> Bool {
    guard count <= bytesMax, count >= bytesMin || (count >= scalarsMin && Self.isASCII(text, count)) else {
      return false
    }
    if let automaton, !automaton.pointee.matches(text, count) { return false }
    if let format, !format.matches(UnsafeBufferPointer(start: text, count: count)) { return false }
    if words.isGiven, !words.contains(text, count) { return false }
    return true
  }

  @inline(__always)
  private static func isASCII(_ text: UnsafePointer<UInt8>, _ count: Int) -> Bool {
    var all: UInt8 = 0
    for place in 0..<count { all |= text[place] }
    return all < 128
  }
}

/// Vouches for numbers spelled as in JSON, without an exponent and with at most 18 digits before the point.
struct QuickNumber: BitwiseCopyable {
  private let minimum: Int64
  private let maximum: Int64
  private let isIntegral: Bool

  /// Bounds are inclusive. It vouches for nothing when one of them is no whole number.
  init(minimum: ExactNumber?, maximum: ExactNumber?, isIntegral: Bool) {
    let (low, high) = (minimum.map(\.whole) ?? .min, maximum.map(\.whole) ?? .max)
    self.minimum = high == nil ? .max : low ?? .max
    self.maximum = low == nil ? .min : high ?? .min
    self.isIntegral = isIntegral
  }

  /// Vouches for nothing.
  init() { (minimum, maximum, isIntegral) = (.max, .min, true) }

  @inline(__always)
  func vouches(_ text: UnsafePointer<UInt8>, _ count: Int) -> Bool {
    var place = 0
    let isNegative = count > 0 && text[0] == 45
    if isNegative { place = 1 }
    let first = place
    var value: Int64 = 0
    while place < count, text[place] &- 48 <= 9 {
      value = value &* 10 &+ Int64(text[place] &- 48)
      place &+= 1
    }
    guard place > first, place - first <= 18 else { return false }
    if isNegative { value = -value }
    guard value >= minimum, value <= maximum else { return false }
    if place == count { return true }
    guard !isIntegral, !isNegative, text[place] == 46, value < maximum else { return false }
    place &+= 1
    let fraction = place
    while place < count, text[place] &- 48 <= 9 { place &+= 1 }
    return place == count && place > fraction
  }
}

/// Vouches for scalars under one JSON Schema.
struct QuickRule: BitwiseCopyable {
  /// Kinds (bits by `JSONKind`) that are right whatever the value.
  private var free: UInt8 = 0
  private var text = QuickText()
  private var number = QuickNumber()

  /// Vouches for nothing.
  init() {}

  /// A schema's rules, where they are all there is to say: nothing in it reaches beyond the value, or notes what was looked at.
  ///
  /// - Parameter schema: one that `meant` gives.
  init(_ schema: Int32, _ program: SchemaProgram) {
    let rule = program.rules[Int(schema)]
    func allows(_ kind: JSONKind) -> Bool { rule.types & SchemaRule.bit(kind.rawValue) != 0 }
    var words: [[UInt8]]?
    if rule.logic >= 0 {
      // An enum of nothing but texts vouches for those.
      guard let found = Self.words(program.logic[Int(rule.logic)], program) else { return }
      words = found
    }
    let isPlain = rule.logic < 0
    for kind in [JSONKind.null, .false, .true] where isPlain && allows(kind) { free |= SchemaRule.bit(kind.rawValue) }
    if allows(.string) {
      if isPlain, rule.string < 0 {
        free |= SchemaRule.bit(JSONKind.string.rawValue)
      } else {
        let string = rule.string < 0 ? StringRule() : program.strings[Int(rule.string)]
        text = QuickText(
          scalarsMin: Int(string.scalarsMin), scalarsMax: Int(string.scalarsMax),
          pattern: string.pattern < 0 ? nil : program.patterns[Int(string.pattern)],
          format: string.format < 0 ? nil : program.formats[Int(string.format)], words: words)
      }
    }
    let isIntegral = !allows(.number)
    if isPlain, !isIntegral || rule.types & SchemaRule.integerBit != 0 {
      let bounds = rule.number < 0 ? NumberRule() : program.numberRules[Int(rule.number)]
      guard bounds.multipleOf < 0, bounds.exclusiveMinimum < 0, bounds.exclusiveMaximum < 0 else { return }
      if !isIntegral, rule.number < 0 {
        free |= SchemaRule.bit(JSONKind.number.rawValue)
      } else {
        number = QuickNumber(
          minimum: bounds.minimum < 0 ? nil : program.numbers[Int(bounds.minimum)],
          maximum: bounds.maximum < 0 ? nil : program.numbers[Int(bounds.maximum)], isIntegral: isIntegral)
      }
    }
  }

  func deallocate() { text.deallocate() }

  /// Where schemas that are nothing but a reference lead to; nil when that is more than a scalar's rules.
  static func meant(_ schema: Int32, _ program: SchemaProgram) -> Int32? {
    var schema = schema
    for _ in 0..<16 {
      let rule = program.rules[Int(schema)]
      guard !rule.isNever, !rule.hasUnevaluated else { return nil }
      guard rule.logic >= 0, program.logic[Int(rule.logic)].isReference else { return schema }
      guard rule.types == .max, max(rule.object, rule.array, rule.string, rule.number) < 0 else { return nil }
      schema = program.logic[Int(rule.logic)].ref
    }
    return nil
  }

  private static func words(_ logic: LogicRule, _ program: SchemaProgram) -> [[UInt8]]? {
    guard logic.isConstants else { return nil }
    return logic.constants.indices.compactMap { program.constantStrings[$0] }
  }

  /// By a pointer: a method would be handed a copy of all rules.
  @inline(__always)
  static func vouches(_ rule: UnsafePointer<QuickRule>, _ node: JSONNode, _ base: UnsafePointer<UInt8>) -> Bool {
    if rule.pointee.free &>> UInt8(truncatingIfNeeded: node.kindBits) & 1 != 0 { return true }
    let start = base + Int(node.start)
    let count = Int(node.end &- node.start)
    switch node.kindBits {
    case JSONKind.string.rawValue: return !node.isEscaped && rule.pointee.text.vouches(start + 1, count &- 2)
    case JSONKind.number.rawValue: return rule.pointee.number.vouches(start, count)
    default: return false
    }
  }
}

/// Vouches for fields of one column.
struct QuickColumn: BitwiseCopyable {
  private let text: QuickText
  private let number: QuickNumber
  private let isNumber: Bool
  /// Bit: length of a word for nothing; the last bit for all longer ones.
  private let missingLengths: UInt64
  private let mayBeEmpty: Bool
  /// Whether doubled quotes change nothing.
  let isOfAnySpelling: Bool

  /// - Parameters:
  ///   - number: for columns of numbers.
  ///   - missing: words that stand for nothing.
  init(_ text: QuickText, number: QuickNumber?, missing: [[UInt8]], isRequired: Bool) {
    self.text = text
    isNumber = number != nil
    self.number = number ?? QuickNumber()
    missingLengths = missing.reduce(0) { $0 | 1 << UInt64(min($1.count, 63)) }
    mayBeEmpty = missing.contains([]) && !isRequired
    isOfAnySpelling = text.isOfAnySpelling && number == nil && missingLengths <= 1
  }

  func deallocate() { text.deallocate() }

  @inline(__always)
  func vouches(_ field: UnsafePointer<UInt8>, _ count: Int) -> Bool {
    guard missingLengths &>> UInt64(min(count, 63)) & 1 == 0 else { return count == 0 && mayBeEmpty }
    guard text.vouches(field, count) else { return false }
    return !isNumber || number.vouches(field, count)
  }
}
