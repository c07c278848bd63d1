// ECMA-262 regular expressions (unicode mode) into a syntax tree of sets of scalars. What has no linear-time automaton,
// look-around and back-references, is refused by name.

import Foundation

/// A regular expression that cannot be enforced, and why.
struct PatternError: Error {
  let reason: String
}

/// Sorted, disjoint ranges of Unicode scalars.
struct ScalarSet: Sendable, Equatable {
  private(set) var ranges: [ClosedRange<UInt32>]

  init(_ ranges: [ClosedRange<UInt32>]) {
    var merged: [ClosedRange<UInt32>] = []
    for range in ranges.sorted(by: { $0.lowerBound < $1.lowerBound }) {
      if let last = merged.last, range.lowerBound <= last.upperBound + 1 {
        merged[merged.count - 1] = last.lowerBound...max(last.upperBound, range.upperBound)
      } else {
        merged.append(range)
      }
    }
    self.ranges = merged
  }

  init(_ scalar: UInt32) { ranges = [scalar...scalar] }

  static let all = ScalarSet([0...0x10FFFF])
  static let digits = ScalarSet([48...57])
  static let word = ScalarSet([48...57, 65...90, 95...95, 97...122])
  /// WhiteSpace and LineTerminator of ECMA-262 §12.2, §12.3.
  static let space = ScalarSet([
    9...13, 32...32, 0xA0...0xA0, 0x1680...0x1680, 0x2000...0x200A, 0x2028...0x2029, 0x202F...0x202F, 0x205F...0x205F,
    0x3000...0x3000, 0xFEFF...0xFEFF,
  ])
  static let lineEnds = ScalarSet([10...10, 13...13, 0x2028...0x2029])

  var inverted: ScalarSet {
    var result: [ClosedRange<UInt32>] = []
    var next: UInt32 = 0
    for range in ranges {
      if range.lowerBound > next { result.append(next...(range.lowerBound - 1)) }
      next = range.upperBound + 1
    }
    if next <= 0x10FFFF { result.append(next...0x10FFFF) }
    return ScalarSet(result)
  }

  func union(_ other: ScalarSet) -> ScalarSet { ScalarSet(ranges + other.ranges) }

  /// A set of all scalars with a property.
  init(where holds: (Unicode.Scalar) -> Bool) {
    var found: [ClosedRange<UInt32>] = []
    var start: UInt32?
    for value in UInt32(0)...0x110000 {
      let isIn = Unicode.Scalar(value).map(holds) ?? false
      if isIn, start == nil { start = value }
      if !isIn, let first = start {
        found.append(first...(value - 1))
        start = nil
      }
    }
    self.init(found)
  }
}

indirect enum PatternNode {
  case empty
  case set(ScalarSet)
  case sequence([PatternNode])
  case choice([PatternNode])
  /// At least `min` times; at most `max`, or without end.
  case repeated(PatternNode, min: Int, max: Int?)
  case start, end
  case wordBoundary(Bool)
}

struct PatternParser {
  static let repeatMax = 1000
  private static let depthMax = 50
  private let text: [UInt32]
  private var index = 0
  private var depth = 0

  private let isSyntaxOnly: Bool

  /// - Parameter isSyntaxOnly: sets of Unicode properties are not made; for who only asks whether it is an expression.
  init(_ pattern: String, isSyntaxOnly: Bool = false) {
    text = pattern.unicodeScalars.map(\.value)
    self.isSyntaxOnly = isSyntaxOnly
  }

  mutating func parse() throws(PatternError) -> PatternNode {
    let node = try choice()
    guard index == text.count else { throw PatternError(reason: "unmatched )") }
    return node
  }

  private func at(_ offset: Int = 0) -> Character? {
    guard index + offset < text.count, let scalar = Unicode.Scalar(text[index + offset]) else { return nil }
    return Character(scalar)
  }

  private mutating func take(_ character: Character) -> Bool {
    guard at() == character else { return false }
    index += 1
    return true
  }

  private mutating func choice() throws(PatternError) -> PatternNode {
    depth += 1
    defer { depth -= 1 }
    guard depth <= Self.depthMax else { throw PatternError(reason: "groups nested deeper than \(Self.depthMax)") }
    var branches = [try sequence()]
    while take("|") { branches.append(try sequence()) }
    return branches.count == 1 ? branches[0] : .choice(branches)
  }

  private mutating func sequence() throws(PatternError) -> PatternNode {
    var parts: [PatternNode] = []
    while let next = at(), next != "|", next != ")" { parts.append(try quantified()) }
    return parts.count == 1 ? parts[0] : parts.isEmpty ? .empty : .sequence(parts)
  }

  private mutating func quantified() throws(PatternError) -> PatternNode {
    let (node, isAssertion) = try atom()
    var range: (Int, Int?)?
    switch at() {
    case "*": (range, index) = ((0, nil), index + 1)
    case "+": (range, index) = ((1, nil), index + 1)
    case "?": (range, index) = ((0, 1), index + 1)
    case "{": range = try braces()
    default: return node
    }
    guard let (min, max) = range else { throw PatternError(reason: "a { that is no quantifier: write \\{") }
    if isAssertion { throw PatternError(reason: "an assertion cannot be repeated") }
    // Lazy or greedy: whether it matches is the same.
    _ = take("?")
    if let next = at(), next == "*" || next == "+" || next == "?" { throw PatternError(reason: "nothing to repeat") }
    return .repeated(node, min: min, max: max)
  }

  private mutating func braces() throws(PatternError) -> (Int, Int?)? {
    let start = index
    index += 1
    let low = number()
    var high: Int? = low
    if take(",") { high = at() == "}" ? nil : number() ?? -1 }
    guard let low, high ?? 0 >= 0, take("}") else {
      index = start
      return nil
    }
    guard low <= Self.repeatMax, high ?? 0 <= Self.repeatMax else {
      throw PatternError(reason: "a repetition of more than \(Self.repeatMax)")
    }
    if let high, high < low { throw PatternError(reason: "a repetition with its numbers out of order") }
    return (low, high)
  }

  private mutating func number() -> Int? {
    var value: Int?
    while let digit = at()?.wholeNumberValue, at()!.isASCII {
      value = min((value ?? 0) * 10 + digit, 1_000_000)
      index += 1
    }
    return value
  }

  private mutating func atom() throws(PatternError) -> (PatternNode, isAssertion: Bool) {
    let character = at()!
    switch character {
    case "^":
      index += 1
      return (.start, true)
    case "$":
      index += 1
      return (.end, true)
    case "(": return (try group(), false)
    case "[": return (.set(try characterClass()), false)
    case ".":
      index += 1
      return (.set(ScalarSet.lineEnds.inverted), false)
    case "\\":
      if at(1) == "b" || at(1) == "B" {
        defer { index += 2 }
        return (.wordBoundary(at(1) == "b"), true)
      }
      return (.set(try escape(inClass: false)), false)
    case "*", "+", "?": throw PatternError(reason: "nothing to repeat")
    case "{", "}", "]": throw PatternError(reason: "a bare \(character): write \\\(character)")
    default:
      index += 1
      return (.set(ScalarSet(text[index - 1])), false)
    }
  }

  private mutating func group() throws(PatternError) -> PatternNode {
    index += 1
    if take("?") {
      if at() == "=" || at() == "!" || (at() == "<" && (at(1) == "=" || at(1) == "!")) {
        throw PatternError(reason: "look-around has no linear-time form")
      }
      if take("<") {
        while let next = at(), next != ">" {
          index += next.isLetter || next.isNumber || next == "_" || next == "$" ? 1 : text.count
        }
        guard take(">") else { throw PatternError(reason: "a group's name is malformed") }
      } else if !take(":") {
        throw PatternError(reason: "an unknown kind of group")
      }
    }
    let inner = try choice()
    guard take(")") else { throw PatternError(reason: "an unclosed group") }
    return inner
  }

  private mutating func characterClass() throws(PatternError) -> ScalarSet {
    index += 1
    let isNegated = take("^")
    var ranges: [ClosedRange<UInt32>] = []
    while let next = at(), next != "]" {
      let first = try classAtom()
      if at() == "-", at(1) != "]", at(1) != nil {
        index += 1
        let last = try classAtom()
        guard let low = first.single, let high = last.single, low <= high else {
          throw PatternError(reason: "a range in a class is out of order")
        }
        ranges.append(low...high)
      } else {
        ranges += first.ranges
      }
    }
    guard take("]") else { throw PatternError(reason: "an unclosed class") }
    let set = ScalarSet(ranges)
    return isNegated ? set.inverted : set
  }

  private mutating func classAtom() throws(PatternError) -> ScalarSet {
    if at() == "\\" { return try escape(inClass: true) }
    index += 1
    return ScalarSet(text[index - 1])
  }

  private mutating func escape(inClass: Bool) throws(PatternError) -> ScalarSet {
    index += 1
    guard let character = at() else { throw PatternError(reason: "a \\ at the end") }
    index += 1
    switch character {
    case "d": return .digits
    case "D": return ScalarSet.digits.inverted
    case "w": return .word
    case "W": return ScalarSet.word.inverted
    case "s": return .space
    case "S": return ScalarSet.space.inverted
    case "t": return ScalarSet(9)
    case "n": return ScalarSet(10)
    case "v": return ScalarSet(11)
    case "f": return ScalarSet(12)
    case "r": return ScalarSet(13)
    case "b" where inClass: return ScalarSet(8)
    case "-" where inClass: return ScalarSet(45)
    case "0" where !(at()?.isASCII == true && at()?.isNumber == true): return ScalarSet(0)
    case "c":
      guard let letter = at(), letter.isASCII, letter.isLetter else { throw PatternError(reason: "\\c needs a letter") }
      index += 1
      return ScalarSet(text[index - 1] % 32)
    case "x": return ScalarSet(try hexadecimal(2))
    case "u":
      if take("{") {
        var value: UInt32 = 0
        var count = 0
        while let digit = at()?.hexDigitValue, count < 6 {
          value = value << 4 | UInt32(digit)
          index += 1
          count += 1
        }
        guard count > 0, value <= 0x10FFFF, take("}") else { throw PatternError(reason: "\\u{…} is malformed") }
        return ScalarSet(value)
      }
      let high = try hexadecimal(4)
      guard (0xD800..<0xDC00).contains(high), at() == "\\", at(1) == "u" else { return ScalarSet(high) }
      index += 2
      let low = try hexadecimal(4)
      guard (0xDC00..<0xE000).contains(low) else { throw PatternError(reason: "half of a surrogate pair") }
      return ScalarSet(0x10000 + (high - 0xD800) << 10 + (low - 0xDC00))
    case "p", "P":
      guard take("{") else { throw PatternError(reason: "\\p needs {…}") }
      var name = ""
      while let next = at(), next != "}" {
        name.append(next)
        index += 1
      }
      guard take("}") else { throw PatternError(reason: "\\p{ is not closed") }
      guard let set = isSyntaxOnly ? .all : UnicodeProperty.cached(name) else {
        throw PatternError(reason: "the Unicode property \(name) is not supported")
      }
      return character == "p" ? set : set.inverted
    case "k", "1"..."9": throw PatternError(reason: "a back-reference has no linear-time form")
    case "^", "$", "\\", ".", "*", "+", "?", "(", ")", "[", "]", "{", "}", "|", "/":
      return ScalarSet(character.unicodeScalars.first!.value)
    default: throw PatternError(reason: "\\\(character) is no escape of ECMA-262")
    }
  }

  private mutating func hexadecimal(_ count: Int) throws(PatternError) -> UInt32 {
    var value: UInt32 = 0
    for _ in 0..<count {
      guard let digit = at()?.hexDigitValue else { throw PatternError(reason: "a hexadecimal escape is cut") }
      value = value << 4 | UInt32(digit)
      index += 1
    }
    return value
  }
}

extension ScalarSet {
  fileprivate var single: UInt32? {
    ranges.count == 1 && ranges[0].count == 1 ? ranges[0].lowerBound : nil
  }
}

/// General categories and binary properties that Swift's standard library knows. Scripts are not among them.
enum UnicodeProperty {
  // Proof for nonisolated(unsafe): touched only under `lock`.
  private static let lock = NSLock()
  nonisolated(unsafe) private static var sets: [String: ScalarSet] = [:]

  /// A set takes a look at every scalar: it is made once.
  static func cached(_ name: String) -> ScalarSet? {
    lock.lock()
    defer { lock.unlock() }
    if let known = sets[name] { return known }
    guard let made = set(name) else { return nil }
    sets[name] = made
    return made
  }

  static func set(_ name: String) -> ScalarSet? {
    var value = name
    for prefix in ["General_Category=", "gc="] where value.hasPrefix(prefix) { value.removeFirst(prefix.count) }
    if let categories = categories[value] { return ScalarSet { categories.contains($0.properties.generalCategory) } }
    switch name {
    case "Any": return .all
    case "ASCII": return ScalarSet([0...127])
    case "Assigned": return ScalarSet { $0.properties.generalCategory != .unassigned }
    case "Alphabetic", "Alpha": return ScalarSet { $0.properties.isAlphabetic }
    case "Lowercase", "Lower": return ScalarSet { $0.properties.isLowercase }
    case "Uppercase", "Upper": return ScalarSet { $0.properties.isUppercase }
    case "White_Space", "space": return ScalarSet { $0.properties.isWhitespace }
    case "ID_Start", "IDS": return ScalarSet { $0.properties.isIDStart }
    case "ID_Continue", "IDC": return ScalarSet { $0.properties.isIDContinue }
    case "Ideographic", "Ideo": return ScalarSet { $0.properties.isIdeographic }
    case "Emoji": return ScalarSet { $0.properties.isEmoji }
    case "Hex_Digit", "Hex": return ScalarSet { $0.properties.isHexDigit }
    case "ASCII_Hex_Digit", "AHex": return ScalarSet { $0.properties.isASCIIHexDigit }
    case "Dash": return ScalarSet { $0.properties.isDash }
    default: return nil
    }
  }

  private static let categories: [String: Set<Unicode.GeneralCategory>] = {
    let single: [(String, String, Unicode.GeneralCategory)] = [
      ("Lu", "Uppercase_Letter", .uppercaseLetter), ("Ll", "Lowercase_Letter", .lowercaseLetter),
      ("Lt", "Titlecase_Letter", .titlecaseLetter), ("Lm", "Modifier_Letter", .modifierLetter),
      ("Lo", "Other_Letter", .otherLetter), ("Mn", "Nonspacing_Mark", .nonspacingMark),
      ("Mc", "Spacing_Mark", .spacingMark), ("Me", "Enclosing_Mark", .enclosingMark),
      ("Nd", "Decimal_Number", .decimalNumber), ("Nl", "Letter_Number", .letterNumber),
      ("No", "Other_Number", .otherNumber), ("Pc", "Connector_Punctuation", .connectorPunctuation),
      ("Pd", "Dash_Punctuation", .dashPunctuation), ("Ps", "Open_Punctuation", .openPunctuation),
      ("Pe", "Close_Punctuation", .closePunctuation), ("Pi", "Initial_Punctuation", .initialPunctuation),
      ("Pf", "Final_Punctuation", .finalPunctuation), ("Po", "Other_Punctuation", .otherPunctuation),
      ("Sm", "Math_Symbol", .mathSymbol), ("Sc", "Currency_Symbol", .currencySymbol),
      ("Sk", "Modifier_Symbol", .modifierSymbol), ("So", "Other_Symbol", .otherSymbol),
      ("Zs", "Space_Separator", .spaceSeparator), ("Zl", "Line_Separator", .lineSeparator),
      ("Zp", "Paragraph_Separator", .paragraphSeparator), ("Cc", "Control", .control), ("Cf", "Format", .format),
      ("Cs", "Surrogate", .surrogate), ("Co", "Private_Use", .privateUse), ("Cn", "Unassigned", .unassigned),
    ]
    let groups = [
      "L": "Letter", "M": "Mark", "N": "Number", "P": "Punctuation", "S": "Symbol", "Z": "Separator", "C": "Other",
    ]
    var table: [String: Set<Unicode.GeneralCategory>] = [:]
    for (short, long, category) in single {
      let group = String(short.first!)
      for name in [short, long, group, groups[group]!] { table[name, default: []].insert(category) }
    }
    table["digit"] = [.decimalNumber]
    table["punct"] = table["P"]
    table["cntrl"] = [.control]
    table["Combining_Mark"] = table["M"]
    table["LC"] = [.uppercaseLetter, .lowercaseLetter, .titlecaseLetter]
    table["Cased_Letter"] = table["LC"]
    return table
  }()
}
