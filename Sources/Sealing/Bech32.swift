// Bech32 (BIP 173) without its length limit, as age uses it for recipients and identities. What it writes down on the way is wiped: it
// may be an identity's.

enum Bech32 {
  private static let letters = Array("qpzry9x8gf2tvdw0s3jn54khce6mua7l".utf8)
  private static let generator: [UInt32] = [
    0x3b6a_57b2, 0x2650_8e6d, 0x1ea1_19fa, 0x3d42_33dd, 0x2a14_62b3,
  ]

  private static func checksum(_ values: some Sequence<UInt8>, after start: UInt32 = 1) -> UInt32 {
    var sum = start
    for value in values {
      let top = sum >> 25
      sum = (sum & 0x1ff_ffff) << 5 ^ UInt32(value)
      for bit in 0..<5 where top >> UInt32(bit) & 1 == 1 { sum ^= generator[bit] }
    }
    return sum
  }

  private static func expand(_ prefix: [UInt8]) -> [UInt8] {
    prefix.map { $0 >> 5 } + [0] + prefix.map { $0 & 31 }
  }

  /// Regroups bits; nil when padding is needed but not allowed, or is not zero.
  private static func regroup(_ input: some Collection<UInt8>, from: Int, to: Int, pad: Bool) -> [UInt8]? {
    var output: [UInt8] = []
    // An array that grows leaves copies behind.
    output.reserveCapacity(input.count * from / to + 1)
    var pending: UInt32 = 0
    var held = 0
    for value in input {
      pending = (pending << UInt32(from) | UInt32(value)) & 0xfff
      held += from
      while held >= to {
        held -= to
        output.append(UInt8(pending >> UInt32(held) & (1 << UInt32(to) - 1)))
      }
    }
    if pad {
      if held > 0 { output.append(UInt8(pending << UInt32(to - held) & (1 << UInt32(to) - 1))) }
    } else if held >= from || pending & (1 << UInt32(held) - 1) != 0 {
      output.wipe()
      return nil
    }
    return output
  }

  /// The text as bytes, all lower case: the caller of a secret one wipes it.
  static func encode(prefix: String, _ bytes: UnsafeRawBufferPointer) -> [UInt8] {
    let human = Array(prefix.utf8)
    var values = regroup(bytes, from: 8, to: 5, pad: true)!
    defer { values.wipe() }
    let sum = checksum([0, 0, 0, 0, 0, 0], after: checksum(values, after: checksum(expand(human)))) ^ 1
    var text: [UInt8] = []
    text.reserveCapacity(human.count + 1 + values.count + 6)
    text += human
    text.append(49)
    for value in values { text.append(letters[Int(value)]) }
    for place in 0..<6 { text.append(letters[Int(sum >> UInt32(5 * (5 - place)) & 31)]) }
    return text
  }

  /// nil for mixed case, a foreign letter, or a wrong checksum. `text` may be all upper case; the prefix comes back lower.
  static func decode(_ text: some Collection<UInt8>) -> (prefix: String, bytes: [UInt8])? {
    let hasLower = text.contains { (97...122).contains($0) }
    let hasUpper = text.contains { (65...90).contains($0) }
    guard !(hasLower && hasUpper), text.allSatisfy({ (33...126).contains($0) }) else { return nil }
    var lower = text.map { (65...90).contains($0) ? $0 + 32 : $0 }
    defer { lower.wipe() }
    guard let separator = lower.lastIndex(of: 49), separator >= 1, lower.count - separator >= 7
    else { return nil }
    var values: [UInt8] = []
    values.reserveCapacity(lower.count)
    defer { values.wipe() }
    for letter in lower[(separator + 1)...] {
      guard let value = letters.firstIndex(of: letter) else { return nil }
      values.append(UInt8(value))
    }
    let human = Array(lower[..<separator])
    guard checksum(values, after: checksum(expand(human))) == 1,
      let bytes = regroup(values.dropLast(6), from: 5, to: 8, pad: false)
    else { return nil }
    return (String(decoding: human, as: UTF8.self), bytes)
  }
}
