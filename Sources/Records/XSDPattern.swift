// Whether libxml2, which tries one reading of a text after another, may take exponential time for a pattern of XSD 1.0 part 2
// appendix F. It does not where a pattern is one-unambiguous (Brüggemann-Klein and Wood, 1998): each next character then has one
// place in the pattern at most. Others are taken where nothing that repeats, or has a choice in it, is itself repeated: their time is
// a power of the text's length.

/// A pattern, as places in it and what may follow each.
struct XSDPattern {
  /// Characters that a place takes: of ASCII exactly, or more than that; all others together.
  private struct Characters {
    var low: UInt64 = 0
    var high: UInt64 = 0
    var others = false

    static let all = Characters(low: .max, high: .max, others: true)

    init(low: UInt64 = 0, high: UInt64 = 0, others: Bool = false) {
      (self.low, self.high, self.others) = (low, high, others)
    }

    init(_ text: String) {
      for scalar in text.unicodeScalars { insert(scalar.value...scalar.value) }
    }

    mutating func insert(_ range: ClosedRange<UInt32>) {
      for value in range.lowerBound...max(range.lowerBound, min(range.upperBound, 127)) where value < 128 {
        if value < 64 { low |= 1 << UInt64(value) } else { high |= 1 << UInt64(value - 64) }
      }
      if range.upperBound > 127 { others = true }
    }

    func union(_ other: Characters) -> Characters {
      Characters(low: low | other.low, high: high | other.high, others: others || other.others)
    }

    /// Of what is beyond ASCII nobody knows what is left.
    var inverted: Characters { Characters(low: ~low, high: ~high, others: true) }

    func meets(_ other: Characters) -> Bool { low & other.low != 0 || high & other.high != 0 || others && other.others }
  }

  /// A part of the pattern: where it may begin and end, and whether it may be nothing.
  private struct Part {
    var first: Set<Int> = []
    var last: Set<Int> = []
    var isEmpty = true
    /// It repeats, or has a choice in it.
    var isLoose = false
  }

  private static let placesMax = 1000
  /// Copies of nothing within copies of nothing take no place.
  private static let atomsMax = 20_000
  private static let copiesMax = 64
  private static let depthMax = 50

  private var text: [Unicode.Scalar]
  private var at = 0
  private var atoms = 0
  private var places: [Characters] = []
  private var follow: [Set<Int>] = []
  private var repeatsLoose = false
  private var isBeyond = false

  static func mayExplode(_ pattern: String) -> Bool {
    var reader = XSDPattern(text: Array(pattern.unicodeScalars))
    let whole = reader.choice(0)
    guard reader.repeatsLoose || reader.isBeyond else { return false }
    return reader.isBeyond || ([whole.first] + reader.follow).contains { !reader.isClear($0) }
  }

  private init(text: [Unicode.Scalar]) { self.text = text }

  private func isClear(_ next: Set<Int>) -> Bool {
    let all = Array(next)
    for (index, place) in all.enumerated() {
      for other in all[(index + 1)...] where places[place].meets(places[other]) { return false }
    }
    return true
  }

  private var peek: Unicode.Scalar? { at < text.count ? text[at] : nil }

  private mutating func take() -> Unicode.Scalar? {
    guard at < text.count else { return nil }
    at += 1
    return text[at - 1]
  }

  private mutating func choice(_ depth: Int) -> Part {
    guard depth <= Self.depthMax else {
      isBeyond = true
      at = text.count
      return Part()
    }
    var part = sequence(depth)
    while peek == "|" {
      at += 1
      let other = sequence(depth)
      part = Part(
        first: part.first.union(other.first), last: part.last.union(other.last),
        isEmpty: part.isEmpty || other.isEmpty, isLoose: true)
    }
    return part
  }

  private mutating func sequence(_ depth: Int) -> Part {
    var part = Part()
    while let next = peek, next != "|", next != ")", !isBeyond { part = joined(part, quantified(depth)) }
    return part
  }

  private mutating func joined(_ a: Part, _ b: Part) -> Part {
    for place in a.last { follow[place].formUnion(b.first) }
    return Part(
      first: a.isEmpty ? a.first.union(b.first) : a.first, last: b.isEmpty ? a.last.union(b.last) : b.last,
      isEmpty: a.isEmpty && b.isEmpty, isLoose: a.isLoose || b.isLoose)
  }

  /// An atom as often as it may stand.
  private mutating func quantified(_ depth: Int) -> Part {
    let start = at
    var part = atom(depth)
    var (least, most): (Int, Int?) = (1, 1)
    switch peek {
    case "?": (least, most) = (0, 1)
    case "*": (least, most) = (0, nil)
    case "+": (least, most) = (1, nil)
    case "{": (least, most) = counts()
    default: return part
    }
    if peek == "?" || peek == "*" || peek == "+" { at += 1 }
    let end = at
    let isRepeated = most == nil || most! > 1
    if isRepeated, part.isLoose, least != most { repeatsLoose = true }
    // Each copy has places of its own; the first one is there. Of very many it is as if there were no end of them.
    if max(least, most ?? 0) > Self.copiesMax { (least, most) = (min(least, 1), nil) }
    let copies = max(least, most ?? least)
    var before = part
    for number in 1..<max(1, copies) where !isBeyond {
      at = start
      let copy = atom(depth)
      if number < least {
        part = joined(part, copy)
      } else {
        // One more may stand behind the one before it.
        for place in before.isEmpty ? part.last : before.last { follow[place].formUnion(copy.first) }
        if part.isEmpty { part.first.formUnion(copy.first) }
        part.last.formUnion(copy.last)
      }
      before = copy
    }
    at = end
    if most == nil { for place in part.last { follow[place].formUnion(part.first) } }
    if least == 0 { part.isEmpty = true }
    if least != most { part.isLoose = true }
    return part
  }

  /// `{n}`, `{n,}` or `{n,m}`.
  private mutating func counts() -> (Int, Int?) {
    at += 1
    var numbers: [Int?] = [0]
    while let next = take(), next != "}" {
      if next == "," {
        numbers.append(nil)
      } else if let digit = Int(String(next)) {
        numbers[numbers.count - 1] = min(1_000_000, (numbers[numbers.count - 1] ?? 0) * 10 + digit)
      }
    }
    return (numbers[0] ?? 0, numbers.count == 1 ? numbers[0] : numbers[1])
  }

  private mutating func atom(_ depth: Int) -> Part {
    atoms += 1
    if atoms > Self.atomsMax {
      isBeyond = true
      at = text.count
    }
    switch take() {
    case "(":
      let part = choice(depth + 1)
      if peek == ")" { at += 1 }
      return part
    case "[": return place(bracket(depth))
    case ".": return place(Characters("\n\r").inverted)
    case "\\": return place(escape())
    case let other?: return place(Characters(String(other)))
    case nil: return Part()
    }
  }

  private mutating func place(_ characters: Characters) -> Part {
    guard places.count < Self.placesMax else {
      isBeyond = true
      at = text.count
      return Part()
    }
    places.append(characters)
    follow.append([])
    return Part(first: [places.count - 1], last: [places.count - 1], isEmpty: false)
  }

  /// What is subtracted stays in: more than what a place takes is on the safe side.
  private mutating func bracket(_ depth: Int) -> Characters {
    var found = Characters()
    let isInverted = peek == "^"
    if isInverted { at += 1 }
    var previous: Unicode.Scalar?
    while let next = take(), next != "]" {
      if next == "-", peek == "[" {
        at += 1
        _ = bracket(depth + 1)
        previous = nil
      } else if next == "-", let low = previous, let high = peek, high != "]" {
        at += 1
        var bound = high
        if high == "\\" { bound = take() ?? high }
        if low.value <= bound.value { found.insert(low.value...bound.value) }
        previous = nil
      } else if next == "\\" {
        let literal = peek.flatMap {
          "nrt\\|.?*+(){}-[]^".unicodeScalars.contains($0) && !"nrt".unicodeScalars.contains($0) ? $0 : nil
        }
        found = found.union(escape())
        previous = literal
      } else {
        found.insert(next.value...next.value)
        previous = next
      }
    }
    // Inverted, what was subtracted would be less: nobody knows.
    return isInverted ? found.inverted : found
  }

  /// Behind a backslash.
  private mutating func escape() -> Characters {
    let digits = Characters("0123456789")
    let letters = Characters("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
    let others = Characters(others: true)
    let initial = letters.union(Characters("_:")).union(others)
    switch take() {
    case "n": return Characters("\n")
    case "r": return Characters("\r")
    case "t": return Characters("\t")
    case "s": return Characters(" \t\n\r")
    case "S": return Characters(" \t\n\r").inverted
    case "d": return digits.union(others)
    case "D": return digits.inverted
    case "w": return letters.union(digits).union(Characters("$+<=>^`|~")).union(others)
    case "W": return letters.union(digits).union(Characters("$+<=>^`|~")).inverted
    case "i": return initial
    case "I": return initial.inverted
    case "c": return initial.union(digits).union(Characters("-."))
    case "C": return initial.union(digits).union(Characters("-.")).inverted
    case "p", "P":
      while let next = take(), next != "}" {}
      return .all
    case let other?: return Characters(String(other))
    case nil: return Characters()
    }
  }
}
