// JSON numbers without rounding: compared, tested for integers and for multiples on their decimal digits.

/// A decimal number: mantissa · 10^exponent, with the digits at hand when they do not fit 18 places.
struct ExactNumber: Sendable {
  /// Up to 18 digits, normalised: no trailing zero. Only when `digits` is nil.
  private var mantissa: Int64
  private var exponent: Int
  /// More than 18 significant digits, without leading or trailing zeros.
  private var digits: [UInt8]?
  private let isNegative: Bool

  /// `text` is a number by RFC 8259 §6.
  init(_ text: UnsafeBufferPointer<UInt8>) {
    var index = 0
    var negative = false
    if text[0] == 45 {
      negative = true
      index = 1
    }
    var value: Int64 = 0
    var significant = 0
    var scale = 0
    var trailingZeros = 0
    var afterPoint = false
    var all: [UInt8]?
    let start = index
    while index < text.count {
      let byte = text[index]
      if byte == 46 {
        afterPoint = true
      } else if byte | 32 == 101 {
        break
      } else {
        if afterPoint { scale -= 1 }
        let digit = byte - 48
        if significant > 0 || digit != 0 {
          significant += 1
          if digit == 0 {
            trailingZeros += 1
          } else {
            trailingZeros = 0
          }
          if significant <= 18 {
            value = value &* 10 &+ Int64(digit)
          } else if all == nil {
            all = text[start..<index].filter { $0 != 46 }.map { $0 - 48 }.drop { $0 == 0 } + [digit]
          } else {
            all!.append(digit)
          }
        }
      }
      index += 1
    }
    var power = 0
    if index < text.count {
      index += 1
      let isMinus = text[index] == 45
      if isMinus || text[index] == 43 { index += 1 }
      while index < text.count {
        power = power * 10 + Int(text[index] - 48)
        index += 1
      }
      if isMinus { power = -power }
    }
    exponent = power + scale
    if var all {
      all.removeLast(trailingZeros)
      exponent += trailingZeros
      if all.count <= 18 {
        value = all.reduce(0) { $0 * 10 + Int64($1) }
        digits = nil
      } else {
        digits = all
      }
    } else {
      for _ in 0..<trailingZeros { value /= 10 }
      exponent += trailingZeros
      digits = nil
    }
    if value == 0, digits == nil { exponent = 0 }
    mantissa = negative ? -value : value
    isNegative = negative && (value != 0 || digits != nil)
  }

  private var isZero: Bool { digits == nil && mantissa == 0 }

  /// Its value where that is a whole number of few digits.
  var whole: Int64? {
    guard digits == nil, (0...18).contains(exponent) else { return nil }
    var value = mantissa
    for _ in 0..<exponent {
      let (product, isOver) = value.multipliedReportingOverflow(by: 10)
      guard !isOver else { return nil }
      value = product
    }
    return value
  }

  /// Whether it is a whole number: 1.0 and 2e0 are (JSON Schema §6.1.1).
  var isInteger: Bool { exponent >= 0 }

  /// Significant digits, most significant first.
  private var allDigits: [UInt8] {
    if let digits { return digits }
    var rest = mantissa.magnitude
    var output: [UInt8] = []
    while rest > 0 {
      output.append(UInt8(rest % 10))
      rest /= 10
    }
    return output.reversed()
  }

  static func compare(_ a: ExactNumber, _ b: ExactNumber) -> Int {
    if a.digits == nil, b.digits == nil {
      if a.exponent == b.exponent { return a.mantissa < b.mantissa ? -1 : a.mantissa == b.mantissa ? 0 : 1 }
      let shift = a.exponent - b.exponent
      if abs(shift) <= 19 {
        let left = shift > 0 ? Int128(a.mantissa) * powerOfTen(shift) : Int128(a.mantissa)
        let right = shift < 0 ? Int128(b.mantissa) * powerOfTen(-shift) : Int128(b.mantissa)
        return left < right ? -1 : left == right ? 0 : 1
      }
    }
    if a.isZero || b.isZero || a.isNegative != b.isNegative {
      func sign(_ number: ExactNumber) -> Int { number.isZero ? 0 : number.isNegative ? -1 : 1 }
      return sign(a) < sign(b) ? -1 : sign(a) == sign(b) ? 0 : 1
    }
    let size = magnitude(a, b)
    return a.isNegative ? -size : size
  }

  private static func magnitude(_ a: ExactNumber, _ b: ExactNumber) -> Int {
    let (left, right) = (a.allDigits, b.allDigits)
    let (top, other) = (left.count + a.exponent, right.count + b.exponent)
    if top != other { return top < other ? -1 : 1 }
    for place in 0..<max(left.count, right.count) {
      let (x, y) = (place < left.count ? left[place] : 0, place < right.count ? right[place] : 0)
      if x != y { return x < y ? -1 : 1 }
    }
    return 0
  }

  private static func powerOfTen(_ power: Int) -> Int128 {
    var value: Int128 = 1
    for _ in 0..<power { value *= 10 }
    return value
  }

  /// Whether it can divide: above zero, at most 18 significant digits.
  var isDivisor: Bool { digits == nil && mantissa > 0 }

  /// Whether it is a whole number of `divisor`s, exactly.
  func isMultiple(of divisor: ExactNumber) -> Bool {
    precondition(divisor.isDivisor)
    if isZero { return true }
    let shift = exponent - divisor.exponent
    // Digits have no trailing zero, so they cannot be divided by ten once more.
    guard shift >= 0 else { return false }
    let modulus = UInt128(divisor.mantissa.magnitude)
    var rest: UInt128 = 0
    if let digits {
      for digit in digits { rest = (rest * 10 + UInt128(digit)) % modulus }
    } else {
      rest = UInt128(mantissa.magnitude) % modulus
    }
    var (base, power) = (UInt128(10) % modulus, shift)
    while power > 0 {
      if power & 1 == 1 { rest = rest * base % modulus }
      base = base * base % modulus
      power >>= 1
    }
    return rest == 0
  }

  /// Equal numbers have equal hashes.
  func hash(into hasher: inout Hasher) {
    hasher.combine(exponent)
    if let digits {
      hasher.combine(digits)
      hasher.combine(isNegative)
    } else {
      hasher.combine(mantissa)
    }
  }
}
