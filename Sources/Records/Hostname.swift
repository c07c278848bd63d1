// Host names: RFC 1123 §2.1, and internationalised ones by RFC 5890 ff. (IDNA 2008).
//
// Which code points a label may have is approximated by general categories (RFC 5892 §2, without its tables of exceptions
// beyond those in `exceptions`); the contextual rules of appendix A are whole.

enum Hostname {
  /// Letters, digits and hyphens; A-labels must be Punycode of a valid U-label.
  static func isASCII(_ text: UnsafeBufferPointer<UInt8>) -> Bool {
    guard (1...253).contains(text.count) else { return false }
    var start = 0
    for place in 0..<text.count {
      let byte = text[place]
      if (byte | 32) &- 97 < 26 || byte &- 48 <= 9 || byte == 45 { continue }
      guard byte == 46, isLabel(text, start, place) else { return false }
      start = place + 1
    }
    return isLabel(text, start, text.count)
  }

  /// Whether letters, digits and hyphens are a label.
  @inline(__always)
  private static func isLabel(_ text: UnsafeBufferPointer<UInt8>, _ start: Int, _ end: Int) -> Bool {
    guard (1...63).contains(end - start), text[start] != 45, text[end - 1] != 45 else { return false }
    guard end - start >= 4, text[start + 2] == 45, text[start + 3] == 45 else { return true }
    return isALabel(text[start..<end])
  }

  private static func isALabel(_ label: Slice<UnsafeBufferPointer<UInt8>>) -> Bool {
    guard label.prefix(2).elementsEqual("xn".utf8) || label.prefix(2).elementsEqual("XN".utf8),
      let scalars = Punycode.decode(Array(label.dropFirst(4))), scalars.contains(where: { $0 >= 128 })
    else { return false }
    return isULabel(scalars) && keepsBidiRule([scalars])
  }

  /// U-labels and A-labels, between full stops or their look-alikes (RFC 3490 §3.1).
  static func isInternational(_ text: UnsafeBufferPointer<UInt8>) -> Bool {
    guard (1...1000).contains(text.count) else { return false }
    let scalars = String(decoding: text, as: UTF8.self).unicodeScalars.map(\.value)
    var ascii = 0
    let labels = scalars.split(
      omittingEmptySubsequences: false, whereSeparator: { [0x2E, 0x3002, 0xFF0E, 0xFF61].contains($0) })
    for label in labels {
      if label.allSatisfy({ $0 < 128 }) {
        let bytes = label.map { UInt8($0) }
        let isValid = bytes.withUnsafeBufferPointer { isASCII($0) }
        guard isValid, label.count <= 63 else { return false }
        ascii += label.count + 1
      } else {
        let scalars = Array(label)
        guard isULabel(scalars), let encoded = Punycode.encodedCount(scalars), encoded + 4 <= 63 else { return false }
        ascii += encoded + 5
      }
    }
    return ascii <= 254 && keepsBidiRule(labels.map(Array.init))
  }

  private enum Direction { case left, right, arabicNumber, europeanNumber, mark, other }

  /// Bidi_Class by blocks (Unicode annex 9): the standard library has no table of it.
  private static func direction(_ value: UInt32) -> Direction {
    switch value {
    case 0x660...0x669, 0x66B...0x66C, 0x6DD: return .arabicNumber
    case 0x30...0x39, 0x6F0...0x6F9: return .europeanNumber
    default: break
    }
    guard let scalar = Unicode.Scalar(value) else { return .other }
    switch scalar.properties.generalCategory {
    case .nonspacingMark, .enclosingMark: return .mark
    case .uppercaseLetter, .lowercaseLetter, .titlecaseLetter, .modifierLetter, .otherLetter, .spacingMark,
      .decimalNumber:
      let isRight = [0x590...0x8FF, 0xFB1D...0xFDFF, 0xFE70...0xFEFF, 0x10800...0x10FFF, 0x1E800...0x1EFFF]
        .contains { (range: ClosedRange<UInt32>) in range.contains(value) }
      return isRight ? .right : .left
    default: return .other
    }
  }

  /// RFC 5893 §2: it binds every label once one is written from right to left.
  private static func keepsBidiRule(_ labels: [[UInt32]]) -> Bool {
    let classes = labels.map { $0.map(direction) }
    guard classes.contains(where: { $0.contains(.right) || $0.contains(.arabicNumber) }) else { return true }
    return classes.allSatisfy { label in
      let last = label.last { $0 != .mark }
      switch label.first {
      case .right:
        return !label.contains(.left) && (last == .right || last == .europeanNumber || last == .arabicNumber)
          && !(label.contains(.europeanNumber) && label.contains(.arabicNumber))
      case .left:
        return !label.contains(.right) && !label.contains(.arabicNumber) && (last == .left || last == .europeanNumber)
      default: return false
      }
    }
  }

  /// RFC 5891 §4.2 and RFC 5893 left to the registry but for what a label shows on its own.
  private static func isULabel(_ label: [UInt32]) -> Bool {
    guard let first = label.first, first != 45, label.last != 45 else { return false }
    if label.count >= 4, label[2] == 45, label[3] == 45 { return false }
    guard let start = Unicode.Scalar(first), !isMark(start) else { return false }
    let text = String(String.UnicodeScalarView(label.compactMap(Unicode.Scalar.init)))
    guard isNormalized(text) else { return false }
    for (place, value) in label.enumerated() {
      if let rule = contextual(label, place, value) {
        guard rule else { return false }
        continue
      }
      guard let scalar = Unicode.Scalar(value), isAllowed(scalar) else { return false }
    }
    return true
  }

  private static func isMark(_ scalar: Unicode.Scalar) -> Bool {
    [.nonspacingMark, .spacingMark, .enclosingMark].contains(scalar.properties.generalCategory)
  }

  /// Normalization form C: composed text equals itself scalar by scalar.
  private static func isNormalized(_ text: String) -> Bool {
    let scalars = Array(text.unicodeScalars)
    return zip(scalars, scalars.dropFirst()).allSatisfy {
      $0.properties.canonicalCombiningClass <= $1.properties.canonicalCombiningClass
        || $1.properties.canonicalCombiningClass.rawValue == 0
    }
  }

  private static let exceptions: [UInt32: Bool] = [
    0xDF: true, 0x3C2: true, 0x6FD: true, 0x6FE: true, 0xF0B: true, 0x3007: true, 0x640: false, 0x7FA: false,
    0x302E: false,
    0x302F: false, 0x3031: false, 0x3032: false, 0x3033: false, 0x3034: false, 0x3035: false, 0x303B: false,
  ]

  private static func isAllowed(_ scalar: Unicode.Scalar) -> Bool {
    if let known = exceptions[scalar.value] { return known }
    switch scalar.properties.generalCategory {
    case .lowercaseLetter, .otherLetter, .modifierLetter, .nonspacingMark, .spacingMark, .decimalNumber:
      return !scalar.properties.changesWhenNFKCCaseFolded
    default: return scalar.value == 45
    }
  }

  /// RFC 5892 appendix A; nil where no rule speaks.
  private static func contextual(_ label: [UInt32], _ place: Int, _ value: UInt32) -> Bool? {
    func script(_ value: UInt32, _ ranges: ClosedRange<UInt32>...) -> Bool { ranges.contains { $0.contains(value) } }
    let before = place > 0 ? label[place - 1] : nil
    let after = place + 1 < label.count ? label[place + 1] : nil
    let isAfterVirama = before.flatMap(Unicode.Scalar.init)?.properties.canonicalCombiningClass == .virama
    switch value {
    case 0x200C: return isAfterVirama || isJoining(label, place)
    case 0x200D: return isAfterVirama
    case 0xB7: return before == 0x6C && after == 0x6C
    case 0x375: return after.map { script($0, 0x370...0x3FF, 0x1F00...0x1FFF) } ?? false
    case 0x5F3, 0x5F4: return before.map { script($0, 0x591...0x5F4, 0xFB1D...0xFB4F) } ?? false
    case 0x30FB:
      return label.contains {
        script(
          $0, 0x3041...0x3096, 0x30A1...0x30FA, 0x30FC...0x30FF, 0x3400...0x4DBF, 0x4E00...0x9FFF, 0x3005...0x3007,
          0x20000...0x3FFFF)
      }
    case 0x660...0x669: return !label.contains { (0x6F0...0x6F9).contains($0) }
    case 0x6F0...0x6F9: return !label.contains { (0x660...0x669).contains($0) }
    default: return nil
    }
  }

  /// Zero width non-joiner between letters that join: Arabic script stands in for the joining types.
  private static func isJoining(_ label: [UInt32], _ place: Int) -> Bool {
    guard place > 0, place + 1 < label.count else { return false }
    return (0x620...0x6FF).contains(label[place - 1]) && (0x620...0x6FF).contains(label[place + 1])
  }
}

/// RFC 3492 with the parameters of §5.
enum Punycode {
  private static func adapt(_ delta: Int, _ points: Int, first: Bool) -> Int {
    var delta = first ? delta / 700 : delta / 2
    delta += delta / points
    var k = 0
    while delta > 455 {
      delta /= 35
      k += 36
    }
    return k + 36 * delta / (delta + 38)
  }

  static func decode(_ text: [UInt8]) -> [UInt32]? {
    var output: [UInt32] = []
    var index = 0
    if let hyphen = text.lastIndex(of: 45) {
      output = text[..<hyphen].map { UInt32($0) }
      index = hyphen + 1
      if hyphen == 0 { return nil }
    }
    guard index < text.count else { return nil }
    var (n, i, bias) = (128, 0, 72)
    while index < text.count {
      let start = i
      var (weight, k) = (1, 36)
      while true {
        guard index < text.count else { return nil }
        let digit: Int
        switch text[index] {
        case 48...57: digit = Int(text[index]) - 22
        case 65...90: digit = Int(text[index]) - 65
        case 97...122: digit = Int(text[index]) - 97
        default: return nil
        }
        index += 1
        i += digit * weight
        guard i < 1 << 40 else { return nil }
        let threshold = k <= bias ? 1 : k >= bias + 26 ? 26 : k - bias
        if digit < threshold { break }
        weight *= 36 - threshold
        k += 36
      }
      bias = adapt(i - start, output.count + 1, first: start == 0)
      n += i / (output.count + 1)
      i %= output.count + 1
      guard n <= 0x10FFFF, Unicode.Scalar(UInt32(n)) != nil else { return nil }
      output.insert(UInt32(n), at: i)
      i += 1
    }
    return output
  }

  /// How many letters the encoding has, without the prefix.
  static func encodedCount(_ scalars: [UInt32]) -> Int? {
    let basic = scalars.filter { $0 < 128 }.count
    var count = basic + (basic > 0 ? 1 : 0)
    var (n, delta, bias, handled) = (128, 0, 72, basic)
    while handled < scalars.count {
      let next = Int(scalars.filter { $0 >= n }.min()!)
      delta += (next - n) * (handled + 1)
      n = next
      for scalar in scalars {
        if scalar < n { delta += 1 }
        if scalar == n {
          var (q, k) = (delta, 36)
          while true {
            let threshold = k <= bias ? 1 : k >= bias + 26 ? 26 : k - bias
            count += 1
            if q < threshold { break }
            q = (q - threshold) / (36 - threshold)
            k += 36
          }
          bias = adapt(delta, handled + 1, first: handled == basic)
          delta = 0
          handled += 1
        }
      }
      delta += 1
      n += 1
    }
    return count
  }
}
