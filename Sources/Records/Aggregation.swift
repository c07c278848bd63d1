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

  static func + (a: DecimalSum, b: DecimalSum) -> DecimalSum {
    var (a, b) = (a, b)
    a.rescale(max(a.scale, b.scale))
    b.rescale(a.scale)
    a.units += b.units
    return a
  }

  private mutating func rescale(_ wanted: Int) {
    while scale < wanted {
      units *= 10
      scale += 1
    }
  }

  /// The mean of `count` numbers, to six places more, half away from zero.
  func divided(by count: Int) -> DecimalSum {
    var result = self
    result.rescale(scale + 6)
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
    guard groups.count < Self.groupsMax, distinctCount < Self.distinctMax else { return false }
    var group = groups.removeValue(forKey: entry.key) ?? Group()
    if let value = DecimalSum(entry.measure) { group.sum = group.sum + value }
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
