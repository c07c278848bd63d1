// Values made coarser, on their text.

/// What a field's action makes of one value.
enum Transform {
  static let mask = Array("***".utf8)
  static let pseudonymBytes = 26
  private static let alphabet = Array("abcdefghijklmnopqrstuvwxyz234567".utf8)

  /// RFC 4648 base32 in lower case, without padding: 26 characters for 16 bytes.
  static func write(_ pseudonym: SubjectDigest, at output: UnsafeMutablePointer<UInt8>) {
    var rest = UInt128(pseudonym.high) << 64 | UInt128(pseudonym.low)
    // 130 bits: two zeros at the end.
    output[25] = alphabet[Int(truncatingIfNeeded: rest & 7) << 2]
    rest >>= 3
    for place in (0..<25).reversed() {
      output[place] = alphabet[Int(truncatingIfNeeded: rest & 31)]
      rest >>= 5
    }
  }

  /// Writes the coarser text; false when the value is not of the kind that the granularity is about.
  static func generalise(
    _ text: UnsafeBufferPointer<UInt8>, to granularity: RecordPlan.Granularity, into output: inout [UInt8]
  ) -> Bool {
    output.removeAll(keepingCapacity: true)
    switch granularity {
    case .year, .month, .date:
      guard Instant.parse(text) != nil else { return false }
      output.append(contentsOf: text.prefix(granularity == .year ? 4 : granularity == .month ? 7 : 10))
    case .hour:
      if let whole = wholeSeconds(text) {
        output.append(contentsOf: "\(whole - ((whole % 3600) + 3600) % 3600)".utf8)
        return true
      }
      guard text.count > 10, Instant.parse(text) != nil else { return false }
      let zone = text.indices.dropFirst(19).first { text[$0] | 32 == 122 || text[$0] == 43 || text[$0] == 45 }
      output.append(contentsOf: text.prefix(13))
      output.append(contentsOf: ":00:00".utf8)
      output.append(contentsOf: text[(zone ?? text.count)...])
    case .postcodeOutward:
      guard let space = text.firstIndex(of: 32), space > 0 else { return false }
      output.append(contentsOf: text[..<space])
    case .ageBand5:
      guard (1...3).contains(text.count), text.allSatisfy({ $0 &- 48 <= 9 }) else { return false }
      let years = text.reduce(0) { $0 * 10 + Int($1 - 48) }
      output.append(contentsOf: "\(years / 5 * 5)-\(years / 5 * 5 + 4)".utf8)
    }
    return true
  }

  /// The integer part, downwards, of a number without exponent.
  private static func wholeSeconds(_ text: UnsafeBufferPointer<UInt8>) -> Int64? {
    guard (1...40).contains(text.count) else { return nil }
    let digits = text.first == 45 ? text.dropFirst() : text[...]
    let parts = digits.split(separator: 46, maxSplits: 1, omittingEmptySubsequences: false)
    guard parts.allSatisfy({ !$0.isEmpty && $0.allSatisfy { $0 &- 48 <= 9 } }), parts[0].count <= 15 else { return nil }
    let whole = parts[0].reduce(Int64(0)) { $0 * 10 + Int64($1 - 48) }
    guard text.first == 45 else { return whole }
    let hasFraction = parts.count == 2 && parts[1].contains { $0 != 48 }
    return -whole - (hasFraction ? 1 : 0)
  }

  /// What the derived schema says of the coarser value: a pattern that each fulfils.
  static func pattern(_ action: RecordPlan.Action) -> String? {
    switch action {
    case .pass, .drop, .constant: nil
    case .mask: "^\\*\\*\\*$"
    case .pseudonymise: "^[a-z2-7]{26}$"
    case .generalise(.year): "^[0-9]{4}$"
    case .generalise(.month): "^[0-9]{4}-[0-9]{2}$"
    case .generalise(.date): "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"
    case .generalise(.hour):
      "^([0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:00:00([Zz]|[+-][0-9]{2}:[0-9]{2})|-?[0-9]+)$"
    case .generalise(.postcodeOutward): "^[^ ]+$"
    case .generalise(.ageBand5): "^[0-9]{1,3}-[0-9]{1,3}$"
    }
  }
}
