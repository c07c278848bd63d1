// JSON texts into nodes: simdjson finds the structure of a whole batch, this checks the grammar (RFC 8259) value by value.
//
// Stricter than the RFC where two readers could disagree: no duplicate keys, no lone surrogates, depth and exponents bounded.

import CSimdjson
import Glibc

/// Parses one batch after another; one per thread, reusing its memory.
///
/// Bounds: every offset comes from the scanner and is below `count`; a token's end is the next offset or the value's limit,
/// cut back over blanks; nodes are written below `capacity`, which grows to the batch's count of structural offsets.
struct JSONParser: ~Copyable {
  static let depthMax = 100
  /// Beyond this exponents are refused: arithmetic stays exact and bounded.
  static let exponentMax = 999_999_999

  private let scanner: OpaquePointer
  private(set) var nodes: UnsafeMutablePointer<JSONNode>
  private var capacity = 1 << 12
  private(set) var base: UnsafePointer<UInt8>
  /// Objects of the last value with more than one member.
  private(set) var objects = 0
  private var offsets: UnsafePointer<UInt32>
  private var offsetCount = 0
  private var cursor = 0
  private var hasEscapes = false
  private var keyA: [UInt8] = []
  private var keyB: [UInt8] = []
  private let open: UnsafeMutablePointer<OpenContainer>

  init() {
    guard let scanner = sp_json_scanner_new() else { fatalError("no memory for a JSON scanner") }
    self.scanner = scanner
    nodes = .allocate(capacity: capacity)
    open = .allocate(capacity: Self.depthMax)
    base = UnsafePointer(nodes).withMemoryRebound(to: UInt8.self, capacity: 1) { $0 }
    offsets = base.withMemoryRebound(to: UInt32.self, capacity: 1) { $0 }
  }

  deinit {
    sp_json_scanner_free(scanner)
    nodes.deallocate()
    open.deallocate()
  }

  /// Finds the structure of a batch, at most 256 MiB less one. The bytes must stay where they are while values are parsed.
  mutating func scan(_ bytes: UnsafeBufferPointer<UInt8>) throws(JSONFault) {
    precondition(bytes.count < 1 << 28)
    guard bytes.count > 0 else { throw JSONFault(code: .empty, offset: 0) }
    base = bytes.baseAddress!
    cursor = 0
    var found: UnsafePointer<UInt32>?
    let status = sp_json_scan(scanner, base, bytes.count, &found, &offsetCount)
    switch status {
    case 0:
      offsets = found!
      precondition(offsets[offsetCount] >= bytes.count, "the scanner says where the batch ends")
    case 1: throw JSONFault(code: .utf8, offset: 0)
    case 2: throw JSONFault(code: .unclosedString, offset: 0)
    case 3: throw JSONFault(code: .controlCharacter, offset: 0)
    default: throw JSONFault(code: .empty, offset: 0)
    }
    hasEscapes = memchr(base, 92, bytes.count) != nil
    // Each structural offset makes at most one node.
    if offsetCount + 1 > capacity {
      nodes.deallocate()
      capacity = offsetCount + 1
      nodes = .allocate(capacity: capacity)
    }
  }

  /// Leaves out what is left of the value that ends at `limit`.
  mutating func skip(to limit: Int) {
    while cursor < offsetCount, offsets[cursor] < limit { cursor += 1 }
  }

  /// Parses the value between `start` and `limit` of the scanned batch; false when there is none. Its root is node 0.
  ///
  /// It is no value yet: `checkKeys` has to follow, unless something else shows that the keys of its `objects` differ.
  ///
  /// - Throws: why it is not one JSON value.
  mutating func parse(from start: Int, limit: Int) throws(JSONFault) -> Bool {
    let end = UInt32(limit)
    var objects = 0
    defer { self.objects = objects }
    skip(to: start)
    guard cursor < offsetCount, offsets[cursor] < end else { return false }
    var tokens = JSONTokens(
      base: base, offsets: offsets, end: end, hasEscapes: hasEscapes, nodes: nodes, cursor: cursor)
    defer { cursor = tokens.cursor }
    // The innermost open container, and how many are open.
    var top = OpenContainer(node: 0, count: 0, isObject: false)
    var depth = 0
    while true {
      // A value begins.
      if top.isObject { try tokens.key() }
      guard let at = tokens.next() else { throw JSONFault(code: .syntax, offset: limit) }
      let byte = base[Int(at)]
      switch byte {
      case 34: try tokens.string(at)
      case 45, 48...57: try tokens.number(at)
      case 123, 91:
        guard depth < Self.depthMax else { throw JSONFault(code: .depth, offset: Int(at)) }
        open[depth] = top
        depth &+= 1
        let isObject = byte == 123
        top = OpenContainer(node: tokens.used, count: 0, isObject: isObject)
        tokens.put(JSONNode(isObject ? .object : .array, start: at))
        guard let first = tokens.peek() else { throw JSONFault(code: .syntax, offset: limit) }
        // "[" and "]" are two apart, as "{" and "}" are.
        guard base[Int(first)] == byte &+ 2 else { continue }
        top.count = 0 &- 1
      case 116: try tokens.word(at, "true", .true)
      case 102: try tokens.word(at, "false", .false)
      case 110: try tokens.word(at, "null", .null)
      default: throw JSONFault(code: .syntax, offset: Int(at))
      }
      // A value has ended, or an empty container ends: separators and ends of containers follow.
      while true {
        top.count &+= 1
        guard depth > 0 else {
          if let extra = tokens.peek() { throw JSONFault(code: .syntax, offset: Int(extra)) }
          return true
        }
        guard let next = tokens.next() else { throw JSONFault(code: .syntax, offset: limit) }
        let byte = base[Int(next)]
        if byte == 44 { break }
        guard byte == (top.isObject ? 125 : 93) else { throw JSONFault(code: .syntax, offset: Int(next)) }
        let node = nodes + Int(top.node)
        node.pointee.end = next &+ 1
        node.pointee.next = tokens.used
        node.pointee.word |= top.count << 4
        if top.isObject, top.count > 1 { objects &+= 1 }
        depth &-= 1
        top = open[depth]
      }
    }
  }

  // MARK: keys

  /// No two keys of an object may say the same once unescaped; objects that are known to keep this are left out.
  mutating func checkKeys() throws(JSONFault) {
    guard objects > 0 else { return }
    for place in 0..<Int(nodes[0].next) {
      let node = nodes[place]
      if node.kindBits == JSONKind.object.rawValue, node.count > 1, !node.hasDistinctKeys {
        try checkKeys(place, node.count)
      }
    }
  }

  /// A filter of 4,096 bits finds the pairs worth comparing; most objects have none.
  private mutating func checkKeys(_ object: Int, _ count: Int) throws(JSONFault) {
    guard count > 2 else { return try checkFewKeys(object, count) }
    var filter = InlineArray<64, UInt64>(repeating: 0)
    let (base, nodes) = (base, nodes)
    var child = object + 1
    for _ in 0..<count {
      let key = nodes[child]
      let hash = Self.keyHash(base, key) >> 52
      let bit = UInt64(1) << (hash & 63)
      if key.isEscaped || filter[Int(hash >> 6)] & bit != 0 {
        return count > 24 ? try checkManyKeys(object, count) : try checkFewKeys(object, count)
      }
      filter[Int(hash >> 6)] |= bit
      child = Int(nodes[child + 1].next)
    }
  }

  private mutating func checkFewKeys(_ object: Int, _ count: Int) throws(JSONFault) {
    var child = object + 1
    for place in 1..<count {
      child = Int(nodes[child + 1].next)
      let key = nodes[child]
      var earlier = object + 1
      for _ in 0..<place {
        if sameKey(nodes[earlier], key) { throw JSONFault(code: .duplicateKey, offset: Int(key.start)) }
        earlier = Int(nodes[earlier + 1].next)
      }
    }
  }

  private mutating func sameKey(_ a: JSONNode, _ b: JSONNode) -> Bool {
    if !a.isEscaped, !b.isEscaped {
      return a.end - a.start == b.end - b.start
        && isEqual(base + Int(a.start) + 1, base + Int(b.start) + 1, Int(a.end - a.start) - 2)
    }
    unescapeJSON(content(a), into: &keyA)
    unescapeJSON(content(b), into: &keyB)
    return keyA == keyB
  }

  private mutating func checkManyKeys(_ object: Int, _ count: Int) throws(JSONFault) {
    var seen = Set<[UInt8]>(minimumCapacity: count)
    var child = object + 1
    for _ in 0..<count {
      unescapeJSON(content(nodes[child]), into: &keyA)
      guard seen.insert(keyA).inserted else { throw JSONFault(code: .duplicateKey, offset: Int(nodes[child].start)) }
      child = Int(nodes[child + 1].next)
    }
  }

  private func content(_ node: JSONNode) -> UnsafeBufferPointer<UInt8> {
    UnsafeBufferPointer(start: base + Int(node.start) + 1, count: Int(node.end - node.start) - 2)
  }

  @inline(__always) private static func keyHash(_ base: UnsafePointer<UInt8>, _ key: JSONNode) -> UInt64 {
    keyWord(base + Int(key.start) + 1, Int(key.end - key.start) - 2) &* 0x9E37_79B9_7F4A_7C15
  }
}

/// The tokens of one value, and the nodes that they make. A value of its own, whose parts stay in registers: a store through
/// a parser's pointers could be to the parser.
private struct JSONTokens {
  let base: UnsafePointer<UInt8>
  /// Behind the last one stands the length of the batch: an offset at or beyond `end` ends each look.
  let offsets: UnsafePointer<UInt32>
  let end: UInt32
  let hasEscapes: Bool
  let nodes: UnsafeMutablePointer<JSONNode>
  var cursor: Int
  private(set) var used: UInt32 = 0

  @inline(__always) mutating func put(_ node: JSONNode) {
    nodes[Int(used)] = node
    used &+= 1
  }

  @inline(__always) func peek() -> UInt32? { offsets[cursor] < end ? offsets[cursor] : nil }

  @inline(__always) mutating func next() -> UInt32? {
    let offset = offsets[cursor]
    guard offset < end else { return nil }
    cursor &+= 1
    return offset
  }

  /// Where the scalar before the cursor ends.
  @inline(__always) private func scalarEnd() -> UInt32 {
    var stop = min(offsets[cursor], end)
    while Self.isBlank(base[Int(stop) &- 1]) { stop &-= 1 }
    return stop
  }

  @inline(__always) private static func isBlank(_ byte: UInt8) -> Bool {
    byte == 32 || byte == 10 || byte == 13 || byte == 9
  }

  private var following: UInt32 { used &+ 1 }

  @inline(__always) mutating func key() throws(JSONFault) {
    guard let at = next() else { throw JSONFault(code: .syntax, offset: Int(end)) }
    guard base[Int(at)] == 34 else { throw JSONFault(code: .syntax, offset: Int(at)) }
    try string(at)
    guard let colon = next(), base[Int(colon)] == 58 else { throw JSONFault(code: .syntax, offset: Int(at)) }
  }

  @inline(__always) mutating func string(_ at: UInt32) throws(JSONFault) {
    let stop = scalarEnd()
    guard stop > at &+ 1, base[Int(stop) &- 1] == 34 else { throw JSONFault(code: .unclosedString, offset: Int(at)) }
    var isEscaped = false
    if hasEscapes, memchr(base + Int(at) + 1, 92, Int(stop - at) - 2) != nil {
      isEscaped = true
      try Self.checkEscapes(base, Int(at) + 1, Int(stop) - 1)
    }
    put(JSONNode(.string, start: at, end: stop, next: following, flag: isEscaped))
  }

  @inline(never)
  private static func checkEscapes(_ base: UnsafePointer<UInt8>, _ start: Int, _ end: Int) throws(JSONFault) {
    func fault(_ code: JSONFault.Code, _ offset: Int) -> JSONFault { JSONFault(code: code, offset: offset) }
    var index = start
    func unit(_ at: Int) throws(JSONFault) -> UInt32 {
      guard at + 4 <= end else { throw fault(.escape, at) }
      var value: UInt32 = 0
      for place in at..<(at + 4) {
        guard let digit = hexValue(base[place]) else { throw fault(.escape, at) }
        value = value << 4 | UInt32(digit)
      }
      return value
    }
    while index < end {
      guard base[index] == 92 else {
        index += 1
        continue
      }
      guard index + 1 < end else { throw fault(.escape, index) }
      switch base[index + 1] {
      case 34, 92, 47, 98, 102, 110, 114, 116: index += 2
      case 117:
        let high = try unit(index + 2)
        if (0xDC00..<0xE000).contains(high) { throw fault(.surrogate, index) }
        if (0xD800..<0xDC00).contains(high) {
          guard index + 7 < end, base[index + 6] == 92, base[index + 7] == 117,
            (0xDC00..<0xE000).contains(try unit(index + 8))
          else { throw fault(.surrogate, index) }
          index += 12
        } else {
          index += 6
        }
      default: throw fault(.escape, index)
      }
    }
  }

  @inline(__always)
  mutating func word(_ at: UInt32, _ text: StaticString, _ kind: JSONKind) throws(JSONFault) {
    let stop = scalarEnd()
    guard Int(stop &- at) == text.utf8CodeUnitCount, memcmp(base + Int(at), text.utf8Start, Int(stop &- at)) == 0 else {
      throw JSONFault(code: .syntax, offset: Int(at))
    }
    put(JSONNode(kind, start: at, end: stop, next: following))
  }

  @inline(__always)
  mutating func number(_ at: UInt32) throws(JSONFault) {
    let stop = scalarEnd()
    guard let isInteger = Self.isInteger(base, Int(at), Int(stop)) else {
      throw JSONFault(code: .number, offset: Int(at))
    }
    put(JSONNode(.number, start: at, end: stop, next: following, flag: !isInteger))
  }

  /// Whether a number has neither fraction nor exponent; nil when it is none (RFC 8259 §6).
  private static func isInteger(_ base: UnsafePointer<UInt8>, _ at: Int, _ stop: Int) -> Bool? {
    var index = at
    func isDigit() -> Bool { index < stop && base[index] >= 48 && base[index] <= 57 }
    if base[index] == 45 { index += 1 }
    guard isDigit() else { return nil }
    if base[index] == 48 { index += 1 } else { while isDigit() { index += 1 } }
    var isInteger = true
    if index < stop, base[index] == 46 {
      isInteger = false
      index += 1
      guard isDigit() else { return nil }
      while isDigit() { index += 1 }
    }
    if index < stop, base[index] | 32 == 101 {
      isInteger = false
      index += 1
      if index < stop, base[index] == 43 || base[index] == 45 { index += 1 }
      guard isDigit() else { return nil }
      var exponent = 0
      while isDigit() {
        exponent = min(exponent * 10 + Int(base[index] - 48), JSONParser.exponentMax + 1)
        index += 1
      }
      guard exponent <= JSONParser.exponentMax else { return nil }
    }
    return index == stop ? isInteger : nil
  }
}

/// The first and last bytes of a key and its length, in one word: equal keys have equal words, most others do not.
@inline(__always) func keyWord(_ bytes: UnsafePointer<UInt8>, _ count: Int) -> UInt64 {
  let raw = UnsafeRawPointer(bytes)
  let mix = UInt64(truncatingIfNeeded: count) &* 0xD6E8_FEB8_6659_FD93
  if count >= 8 {
    return raw.loadUnaligned(as: UInt64.self) ^ raw.loadUnaligned(fromByteOffset: count - 8, as: UInt64.self)
      &* 0xFF51_AFD7_ED55_8CCD
      ^ mix
  }
  if count >= 4 {
    return UInt64(raw.loadUnaligned(as: UInt32.self)) << 32
      | UInt64(raw.loadUnaligned(fromByteOffset: count - 4, as: UInt32.self)) ^ mix
  }
  guard count > 0 else { return mix }
  return UInt64(bytes[0]) << 16 | UInt64(bytes[count >> 1]) << 8 | UInt64(bytes[count - 1]) ^ mix
}

/// Whether two texts of `count` bytes are equal.
@inline(__always)
func isEqual(_ a: UnsafePointer<UInt8>, _ b: UnsafePointer<UInt8>, _ count: Int) -> Bool {
  count <= 16 ? shortEqual(a, b, count) : memcmp(a, b, count) == 0
}

/// Whether two texts of `count` bytes, at most 16, are equal: overlapping words, no call.
@inline(__always) private func shortEqual(_ a: UnsafePointer<UInt8>, _ b: UnsafePointer<UInt8>, _ count: Int) -> Bool {
  let (x, y) = (UnsafeRawPointer(a), UnsafeRawPointer(b))
  if count >= 8 {
    return x.loadUnaligned(as: UInt64.self) == y.loadUnaligned(as: UInt64.self)
      && x.loadUnaligned(fromByteOffset: count - 8, as: UInt64.self)
        == y.loadUnaligned(fromByteOffset: count - 8, as: UInt64.self)
  }
  if count >= 4 {
    return x.loadUnaligned(as: UInt32.self) == y.loadUnaligned(as: UInt32.self)
      && x.loadUnaligned(fromByteOffset: count - 4, as: UInt32.self)
        == y.loadUnaligned(fromByteOffset: count - 4, as: UInt32.self)
  }
  return count == 0 || (a[0] == b[0] && a[count >> 1] == b[count >> 1] && a[count - 1] == b[count - 1])
}

/// A container that has begun and not ended: its node, and how many children it has so far.
private struct OpenContainer {
  let node: UInt32
  var count: UInt32
  let isObject: Bool
}
