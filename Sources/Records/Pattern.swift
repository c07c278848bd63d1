// A compiled regular expression: a deterministic automaton over UTF-8 bytes, linear in the text whatever the pattern.
//
// Scalars' ranges become byte sequences, those a non-deterministic automaton, its sets of states the table. A pattern
// whose table would grow too large is refused.

/// Says whether a pattern matches anywhere in a text (ECMA-262 `RegExp.prototype.test`, unicode mode). Immutable.
final class Pattern: @unchecked Sendable {
  // Proof for @unchecked: constants after `init`; what the pointers name is never written again.
  /// Limits of what is compiled; a pattern beyond `statesMax` is refused.
  static let statesMax = 20_000
  static let tableStatesMax = 10_000

  let source: String
  let automaton: UnsafePointer<Automaton>

  /// - Throws: why the pattern cannot be enforced.
  init(_ source: String) throws(PatternError) {
    self.source = source
    var parser = PatternParser(source)
    let machine = try Machine(try parser.parse())
    let (columns, width) = machine.byteClasses()
    let states = machine.determinize(columns, width, statesMax: Self.tableStatesMax)
    guard !states.isEmpty else { throw PatternError(reason: "its automaton has over \(Self.tableStatesMax) states") }
    let prefix = Self.prefix(states, width)
    automaton = rawTable([
      Automaton(
        classes: rawTable(columns), table: rawTable(states.map { UInt32($0) * UInt32(width) }), width: width,
        prefix: rawTable(prefix.sets), prefixCount: prefix.sets.count, prefixEnd: UInt32(prefix.end * width))
    ])
  }

  deinit {
    automaton.pointee.classes.deallocate()
    automaton.pointee.table.deallocate()
    automaton.pointee.prefix.deallocate()
    automaton.deallocate()
  }

  /// The sets of columns that every match begins with: from the start, as long as there is one way on and no end.
  private static func prefix(_ states: [UInt16], _ width: Int) -> (sets: [UInt64], end: Int) {
    var (sets, state): ([UInt64], Int) = ([], 2)
    var seen: Set<Int> = [state]
    guard width <= 64 else { return (sets, state) }
    while states[state * width + width - 1] == 0 {
      var (set, next) = (UInt64(0), 0)
      for column in 0..<(width - 1) {
        let target = Int(states[state * width + column])
        guard target != 0 else { continue }
        guard next == 0 || next == target else { return (sets, state) }
        next = target
        set |= 1 << UInt64(column)
      }
      guard next > 1, seen.insert(next).inserted else { break }
      sets.append(set)
      state = next
    }
    return (sets, state)
  }

  func matches(_ text: UnsafeBufferPointer<UInt8>) -> Bool {
    // Of an empty text nothing is read.
    automaton.pointee.matches(text.baseAddress ?? automaton.pointee.classes, text.count)
  }

  /// For the few places outside the hot path.
  func matches(_ text: String) -> Bool {
    var text = text
    return text.withUTF8 { matches($0) }
  }
}

/// The table of a pattern. Valid while its `Pattern` is.
struct Automaton: BitwiseCopyable {
  /// classes[byte] → column; table[row + column] → the next state's row. Row 0 is dead, row `width` accepts; the last column of a
  /// row is the end of the text.
  let classes: UnsafePointer<UInt8>
  let table: UnsafePointer<UInt32>
  let width: Int
  /// Every match begins with a byte of each of these sets of columns (bit: column). They are looked at side by side, where
  /// the table has to be followed step by step.
  let prefix: UnsafePointer<UInt64>
  let prefixCount: Int
  /// The row behind the prefix.
  let prefixEnd: UInt32

  /// Bounds: a row is below the table's count by construction, a column below `width`.
  @inline(__always)
  func matches(_ text: UnsafePointer<UInt8>, _ count: Int) -> Bool {
    let accepting = UInt32(truncatingIfNeeded: width)
    guard count >= prefixCount else { return false }
    var isIn: UInt64 = 1
    for place in 0..<prefixCount { isIn &= prefix[place] &>> UInt64(classes[Int(text[place])]) }
    guard isIn & 1 == 1 else { return false }
    var row = prefixEnd
    var place = prefixCount
    while place < count {
      row = table[Int(row) &+ Int(classes[Int(text[place])])]
      if row <= accepting { return row == accepting }
      place &+= 1
    }
    return table[Int(row) &+ width &- 1] == accepting
  }
}

/// The non-deterministic automaton (Thompson's construction).
private struct Machine {
  enum Step {
    case byte(UInt8, UInt8, next: Int32)
    case split(Int32, Int32)
    case start(Int32), end(Int32)
    case wordBoundary(Bool, Int32)
    case match
  }

  /// What stands around a place in the text.
  struct Context: Hashable {
    var atStart: Bool
    var afterWord: Bool
  }

  private var steps: [Step] = [.match]
  private var entry: Int32 = 0
  private var usesWords = false
  private var work = 0
  /// Every way through begins with ^: nothing is searched for later.
  private let isAnchored: Bool

  init(_ node: PatternNode) throws(PatternError) {
    isAnchored = Self.isAnchored(node)
    entry = try add(node, next: 0)
  }

  private static func isAnchored(_ node: PatternNode) -> Bool {
    switch node {
    case .start: true
    case .sequence(let parts): parts.first.map(isAnchored) ?? false
    case .choice(let branches): branches.allSatisfy(isAnchored)
    case .repeated(let inner, let min, _): min > 0 && isAnchored(inner)
    default: false
    }
  }

  private mutating func push(_ step: Step) throws(PatternError) -> Int32 {
    guard steps.count < Pattern.statesMax else {
      throw PatternError(reason: "it is too large (over \(Pattern.statesMax) states)")
    }
    steps.append(step)
    return Int32(steps.count - 1)
  }

  /// Builds backwards: `next` is where to go on.
  private mutating func add(_ node: PatternNode, next: Int32) throws(PatternError) -> Int32 {
    // Repeated nothings add no state and would go on for ever.
    work += 1
    guard work <= 20 * Pattern.statesMax else { throw PatternError(reason: "it repeats too much") }
    switch node {
    case .empty: return next
    case .set(let set): return try add(set, next: next)
    case .start: return try push(.start(next))
    case .end: return try push(.end(next))
    case .wordBoundary(let wanted):
      usesWords = true
      return try push(.wordBoundary(wanted, next))
    case .sequence(let parts):
      var place = next
      for part in parts.reversed() { place = try add(part, next: place) }
      return place
    case .choice(let branches):
      var place = try add(branches.last!, next: next)
      for branch in branches.dropLast().reversed() { place = try push(.split(try add(branch, next: next), place)) }
      return place
    case .repeated(let inner, let min, let max):
      var place = next
      if let max {
        for _ in min..<max { place = try push(.split(try add(inner, next: place), next)) }
      } else {
        let loop = try push(.split(0, next))
        steps[Int(loop)] = .split(try add(inner, next: loop), next)
        place = loop
      }
      for _ in 0..<min { place = try add(inner, next: place) }
      return place
    }
  }

  /// A set of scalars as alternatives of byte sequences.
  private mutating func add(_ set: ScalarSet, next: Int32) throws(PatternError) -> Int32 {
    var alternatives: [Int32] = []
    for range in set.ranges {
      for sequence in UTF8Ranges.split(range) {
        var place = next
        for bytes in sequence.reversed() { place = try push(.byte(bytes.lowerBound, bytes.upperBound, next: place)) }
        alternatives.append(place)
      }
    }
    guard var place = alternatives.popLast() else {
      // An empty class never matches.
      return try push(.byte(1, 0, next: 0))
    }
    while let other = alternatives.popLast() { place = try push(.split(other, place)) }
    return place
  }

  func byteClasses() -> (classes: [UInt8], width: Int) {
    var cuts = [Bool](repeating: false, count: 257)
    cuts[0] = true
    func cut(_ low: Int, _ high: Int) {
      cuts[low] = true
      cuts[high + 1] = true
    }
    for case .byte(let low, let high, _) in steps where low <= high { cut(Int(low), Int(high)) }
    if usesWords { for range in ScalarSet.word.ranges { cut(Int(range.lowerBound), Int(range.upperBound)) } }
    var classes = [UInt8](repeating: 0, count: 256)
    var column = -1
    for byte in 0..<256 {
      if cuts[byte] { column += 1 }
      classes[byte] = UInt8(column)
    }
    return (classes, column + 2)
  }

  /// All states reachable without a byte; nil when the match is among them.
  private func closure(_ kernel: [Int32], _ context: Context, nextIsWord: Bool, atEnd: Bool, seen: inout [Bool])
    -> [Int32]?
  {
    var stack = kernel
    var result: [Int32] = []
    var visited: [Int32] = []
    defer { for state in visited { seen[Int(state)] = false } }
    while let state = stack.popLast() {
      if seen[Int(state)] { continue }
      seen[Int(state)] = true
      visited.append(state)
      switch steps[Int(state)] {
      case .byte: result.append(state)
      case .split(let a, let b): stack += [a, b]
      case .start(let next): if context.atStart { stack.append(next) }
      case .end(let next): if atEnd { stack.append(next) }
      case .wordBoundary(let wanted, let next): if (context.afterWord != nextIsWord) == wanted { stack.append(next) }
      case .match: return nil
      }
    }
    return result
  }

  private static func isWord(_ byte: UInt8) -> Bool {
    switch byte {
    case 48...57, 65...90, 95, 97...122: true
    default: false
    }
  }

  /// The kernel after `byte`; nil when it matched before it.
  private func advance(_ kernel: [Int32], _ context: Context, _ byte: UInt8, seen: inout [Bool]) -> [Int32]? {
    let nextIsWord = usesWords && Self.isWord(byte)
    guard let states = closure(kernel, context, nextIsWord: nextIsWord, atEnd: false, seen: &seen) else { return nil }
    var next = Set<Int32>()
    for state in states {
      if case .byte(let low, let high, let target) = steps[Int(state)], low <= byte, byte <= high {
        next.insert(target)
      }
    }
    if !isAnchored { next.insert(entry) }
    return next.sorted()
  }

  /// Empty when there would be too many states.
  func determinize(_ classes: [UInt8], _ width: Int, statesMax: Int) -> [UInt16] {
    struct Key: Hashable {
      let kernel: [Int32]
      let context: Context
    }
    var representatives = [UInt8](repeating: 0, count: width - 1)
    for byte in (0..<256).reversed() { representatives[Int(classes[byte])] = UInt8(byte) }
    var seen = [Bool](repeating: false, count: steps.count)
    let first = Key(kernel: [entry], context: Context(atStart: true, afterWord: false))
    var numbers: [Key: UInt16] = [first: 2]
    var queue = [first]
    var table = [UInt16](repeating: 0, count: 3 * width)
    for column in 0..<width { table[width + column] = 1 }
    var done = 0
    // A bound on the work, too: kernels of wide patterns are large.
    var work = 0
    while done < queue.count {
      let key = queue[done]
      let row = (done + 2) * width
      done += 1
      for column in 0..<(width - 1) {
        work += key.kernel.count
        let byte = representatives[column]
        guard let kernel = advance(key.kernel, key.context, byte, seen: &seen) else {
          table[row + column] = 1
          continue
        }
        if kernel.isEmpty { continue }
        let next = Key(kernel: kernel, context: Context(atStart: false, afterWord: usesWords && Self.isWord(byte)))
        if let number = numbers[next] {
          table[row + column] = number
        } else {
          guard queue.count < statesMax, work < 4_000_000 else { return [] }
          let number = UInt16(queue.count + 2)
          numbers[next] = number
          queue.append(next)
          table += [UInt16](repeating: 0, count: width)
          table[row + column] = number
        }
      }
      let isMatch = closure(key.kernel, key.context, nextIsWord: false, atEnd: true, seen: &seen) == nil
      table[row + width - 1] = isMatch ? 1 : 0
    }
    return table
  }
}

/// Splits a range of scalars into sequences of byte ranges that are its UTF-8 encodings (RFC 3629).
enum UTF8Ranges {
  static func split(_ range: ClosedRange<UInt32>) -> [[ClosedRange<UInt8>]] {
    var output: [[ClosedRange<UInt8>]] = []
    // Surrogates have no encoding.
    for (low, high) in [
      (UInt32(0), UInt32(0x7F)), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF),
    ] {
      let (first, last) = (max(low, range.lowerBound), min(high, range.upperBound))
      if first <= last { add(first, last, &output) }
    }
    return output
  }

  private static func encode(_ value: UInt32) -> [UInt8] { Array(UTF8.encode(Unicode.Scalar(value)!)!) }

  /// Both ends have encodings of one length.
  private static func add(_ low: UInt32, _ high: UInt32, _ output: inout [[ClosedRange<UInt8>]]) {
    let count = encode(low).count
    for tail in stride(from: 1, to: count, by: 1) {
      let mask = UInt32(1) << UInt32(6 * tail) - 1
      if low & ~mask != high & ~mask {
        if low & mask != 0 {
          add(low, low | mask, &output)
          add((low | mask) + 1, high, &output)
          return
        }
        if high & mask != mask {
          add(low, (high & ~mask) - 1, &output)
          add(high & ~mask, high, &output)
          return
        }
      }
    }
    output.append(zip(encode(low), encode(high)).map { $0...$1 })
  }
}
