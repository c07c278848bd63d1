// Records added up into groups. A group goes only when enough different subjects are in it: nobody is told alone.

/// A sum of decimal numbers, exact: units of 10^-scale.
struct DecimalSum: Sendable {
  static let digitsMax = 18
  private var units: Int128 = 0
  private var scale = 0

  init() {}

  /// nil for what is no decimal of at most 18 digits on either side of its point, with no exponent.
  init?(_ text: some RandomAccessCollection<UInt8>) {
    var digits = text[...]
    let isNegative = digits.first == 45
    if isNegative || digits.first == 43 { digits = digits.dropFirst() }
    let parts = digits.split(separator: 46, maxSplits: 1, omittingEmptySubsequences: false)
    guard !parts.isEmpty,
      parts.allSatisfy({ (1...Self.digitsMax).contains($0.count) && $0.allSatisfy { $0 &- 48 <= 9 } })
    else { return nil }
    for byte in parts.joined() { units = units * 10 + Int128(byte - 48) }
    scale = parts.count == 2 ? parts[1].count : 0
    if isNegative { units = -units }
  }

  /// nil beyond 127 bits.
  static func sum(_ a: DecimalSum, _ b: DecimalSum) -> DecimalSum? {
    guard var left = a.rescaled(max(a.scale, b.scale)), let right = b.rescaled(left.scale) else { return nil }
    let (units, overflow) = left.units.addingReportingOverflow(right.units)
    left.units = units
    return overflow ? nil : left
  }

  private func rescaled(_ wanted: Int) -> DecimalSum? {
    var result = self
    while result.scale < wanted {
      let (units, overflow) = result.units.multipliedReportingOverflow(by: 10)
      guard !overflow else { return nil }
      (result.units, result.scale) = (units, result.scale + 1)
    }
    return result
  }

  /// The mean of `count` numbers, to six places more where there is room, half away from zero.
  func divided(by count: Int) -> DecimalSum {
    var result = rescaled(scale + 6) ?? self
    let half = Int128(count) / 2
    result.units = (result.units + (result.units < 0 ? -half : half)) / Int128(count)
    return result
  }

  /// Without zeros at the end.
  var text: String {
    var digits = String(units.magnitude)
    if digits.count <= scale { digits = String(repeating: "0", count: scale - digits.count + 1) + digits }
    var (whole, fraction) = (String(digits.dropLast(scale)), String(digits.suffix(scale)))
    while fraction.last == "0" { fraction.removeLast() }
    if whole.isEmpty { whole = "0" }
    return (units < 0 ? "-" : "") + whole + (fraction.isEmpty ? "" : ".\(fraction)")
  }
}

/// All groups of a file.
struct GroupTable {
  /// Beyond these the file is refused: the table would have no bound.
  static let groupsMax = 1_000_000
  static let distinctMax = 20_000_000

  struct Group {
    var sum = DecimalSum()
    var count = 0
    var distinct: Set<[UInt8]> = []
  }

  private var groups: [[UInt8]: Group] = [:]
  private var distinctCount = 0

  /// False when a limit is reached.
  mutating func add(_ entry: GroupEntry) -> Bool {
    guard distinctCount < Self.distinctMax else { return false }
    var group = groups.removeValue(forKey: entry.key) ?? Group()
    guard group.count > 0 || groups.count < Self.groupsMax else { return false }
    if let value = DecimalSum(entry.measure) {
      guard let sum = DecimalSum.sum(group.sum, value) else { return false }
      group.sum = sum
    }
    group.count += 1
    if group.distinct.insert(entry.distinct).inserted { distinctCount += 1 }
    groups[entry.key] = group
    return true
  }

  /// Rows in the order of their keys, for groups that are large enough; and how many records the others had.
  func rows(_ aggregate: RecordPlan.Aggregate) -> (
    rows: [(key: [UInt8], measure: String, distinct: Int)], withheld: Int64
  ) {
    var rows: [(key: [UInt8], measure: String, distinct: Int)] = []
    var withheld: Int64 = 0
    for (key, group) in groups.sorted(by: { $0.key.lexicographicallyPrecedes($1.key) }) {
      guard group.distinct.count >= aggregate.groupSizeMin else {
        withheld += Int64(group.count)
        continue
      }
      let measure =
        switch aggregate.function {
        case .sum: group.sum.text
        case .mean: group.sum.divided(by: group.count).text
        case .count: "\(group.count)"
        }
      rows.append((key, measure, group.distinct.count))
    }
    return (rows, withheld)
  }
}
