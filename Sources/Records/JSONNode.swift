// A parsed JSON text as a flat table of 16-byte nodes over the bytes it was read from. No value is copied.
//
// A container is followed by its children; in an object each key is a string node followed by its value. `next` is the
// node after the whole value, so a subtree is skipped in one step.

/// What a node is.
enum JSONKind: UInt32 {
  case null, `false`, `true`, number, string, array, object
}

/// One value, or one key.
struct JSONNode {
  /// Offsets of the first byte and of the one after the last; of a string, with its quotes.
  var start: UInt32
  var end: UInt32
  /// Index of the node after this value and all that is in it.
  var next: UInt32
  /// Bits 0-2 the kind; bit 3: a string with escapes, a number with a fraction or exponent, an object whose keys are known to
  /// differ; bits 4-31 the count of children.
  var word: UInt32

  init(_ kind: JSONKind, start: UInt32, end: UInt32 = 0, next: UInt32 = 0, flag: Bool = false) {
    self.start = start
    self.end = end
    self.next = next
    word = kind.rawValue | (flag ? 8 : 0)
  }

  var kindBits: UInt32 { word & 7 }
  var kind: JSONKind { JSONKind(rawValue: word & 7)! }
  /// Elements of an array, members of an object.
  var count: Int { Int(word >> 4) }
  var isEscaped: Bool { word & 8 != 0 }
  var isIntegerLiteral: Bool { word & 8 == 0 }
  var hasDistinctKeys: Bool {
    get { word & 8 != 0 }
    set { word = newValue ? word | 8 : word & ~8 }
  }
}

/// Why a text is not JSON.
struct JSONFault: Error, Equatable {
  enum Code: String {
    case utf8 = "json.utf8"
    case unclosedString = "json.string"
    case controlCharacter = "json.control-character"
    case escape = "json.escape"
    case surrogate = "json.surrogate"
    case syntax = "json.syntax"
    case number = "json.number"
    case depth = "json.depth"
    case duplicateKey = "json.duplicate-key"
    case empty = "json.empty"
  }
  let code: Code
  /// Byte offset in the text.
  let offset: Int
}

/// Undoes the escapes of a string's content (RFC 8259 §7), which were proved well-formed when it was parsed.
func unescapeJSON(_ content: UnsafeBufferPointer<UInt8>, into output: inout [UInt8]) {
  output.removeAll(keepingCapacity: true)
  var index = 0
  func hex4(_ at: Int) -> UInt32 {
    var value: UInt32 = 0
    for digit in content[at..<(at + 4)] { value = value << 4 | UInt32(hexValue(digit)!) }
    return value
  }
  while index < content.count {
    guard content[index] == 92 else {
      output.append(content[index])
      index += 1
      continue
    }
    let escape = content[index + 1]
    index += 2
    switch escape {
    case 98: output.append(8)
    case 102: output.append(12)
    case 110: output.append(10)
    case 114: output.append(13)
    case 116: output.append(9)
    case 117:
      var scalar = hex4(index)
      index += 4
      if (0xD800..<0xDC00).contains(scalar) {
        scalar = 0x10000 + (scalar - 0xD800) << 10 + (hex4(index + 2) - 0xDC00)
        index += 6
      }
      output.append(contentsOf: UTF8.encode(Unicode.Scalar(scalar)!)!)
    default: output.append(escape)
    }
  }
}

/// Unicode scalars of UTF-8: all bytes but those that continue one.
func scalarCount(_ text: some Sequence<UInt8>) -> Int { text.reduce(0) { $0 + ($1 & 0xC0 != 0x80 ? 1 : 0) } }

@inline(__always) func hexValue(_ digit: UInt8) -> UInt8? {
  switch digit {
  case 48...57: digit - 48
  case 65...70: digit - 55
  case 97...102: digit - 87
  default: nil
  }
}
