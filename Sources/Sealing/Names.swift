// The names that travel: agency ids, transfer ids, file names, times. Each has one spelling and is safe where it is used.

import Foundation

/// An agency's name, shaped like a domain: `tax.example.gov`.
///
/// Two or more labels of `a-z 0-9 -`, at most 253 bytes, so it is also a safe directory name.
public struct AgencyID: Hashable, Sendable, Comparable, CustomStringConvertible {
  public let text: String

  public init?(_ text: String) {
    let labels = text.utf8.split(separator: 46, omittingEmptySubsequences: false)
    guard text.utf8.count <= 253, labels.count >= 2 else { return nil }
    for label in labels {
      guard (1...63).contains(label.count), label.first != 45, label.last != 45,
        label.allSatisfy({ (97...122).contains($0) || (48...57).contains($0) || $0 == 45 })
      else { return nil }
    }
    self.text = text
  }

  public var description: String { text }
  public static func < (a: AgencyID, b: AgencyID) -> Bool { a.text < b.text }
}

/// 128 random bits as 26 lower-case base 32 characters, chosen by the sender.
public struct TransferID: Hashable, Sendable, CustomStringConvertible {
  public let text: String

  /// nil unless `text` is the one spelling of 16 bytes.
  public init?(_ text: String) {
    guard text.utf8.count == 26, Base32.decode(text)?.count == 16 else { return nil }
    self.text = text
  }

  public init(random: RandomSource = systemRandom) {
    var bytes = [UInt8](repeating: 0, count: 16)
    bytes.withUnsafeMutableBytes { random($0) }
    text = Base32.encode(bytes)
  }

  public var description: String { text }
}

/// File names as data: what a manifest may call a payload. Never joined to a path unchecked.
public enum FileName {
  public static let bytesMax = 200

  /// Why `name` may not travel, or nil.
  public static func fault(_ name: String) -> String? {
    if !(1...bytesMax).contains(name.utf8.count) { return "a name has 1 to \(bytesMax) bytes" }
    // By its bytes, as file systems and programs see it: with an accent behind it, '.' is another Character.
    if [46, 45, 126].contains(name.utf8.first) { return "a name does not begin with '.', '-' or '~'" }
    if !name.utf8.elementsEqual(name.precomposedStringWithCanonicalMapping.utf8) {
      return "a name is in Unicode normal form C"
    }
    for scalar in name.unicodeScalars {
      if scalar == "/" || scalar == "\\" { return "a name has no slash" }
      switch scalar.properties.generalCategory {
      case .control, .format, .surrogate, .privateUse, .unassigned, .lineSeparator,
        .paragraphSeparator:
        return "a name has no control, invisible or unassigned characters"
      default: continue
      }
    }
    return nil
  }
}

/// Times as `YYYY-MM-DDTHH:MM:SSZ`, years 1970 to 9999, whole seconds, no leap second.
public enum Timestamp {
  public static func format(_ date: Date) -> String {
    let seconds = Int64(date.timeIntervalSince1970.rounded(.down))
    let (year, month, day) = civil(fromDays: seconds.flooredDivision(by: 86400))
    let time = seconds - seconds.flooredDivision(by: 86400) * 86400
    return pad(year, 4) + "-" + pad(month, 2) + "-" + pad(day, 2) + "T" + pad(time / 3600, 2) + ":"
      + pad(time / 60 % 60, 2) + ":" + pad(time % 60, 2) + "Z"
  }

  /// nil unless `text` is exactly what `format` writes.
  public static func parse(_ text: String) -> Date? {
    let bytes = Array(text.utf8)
    guard bytes.count == 20 else { return nil }
    func number(_ range: Range<Int>) -> Int64? {
      var value: Int64 = 0
      for byte in bytes[range] {
        guard (48...57).contains(byte) else { return nil }
        value = value * 10 + Int64(byte - 48)
      }
      return value
    }
    guard let year = number(0..<4), let month = number(5..<7), let day = number(8..<10),
      let hour = number(11..<13), let minute = number(14..<16), let second = number(17..<19),
      year >= 1970
    else { return nil }
    let date = Date(
      timeIntervalSince1970: Double(
        days(year, month, day) * 86400 + hour * 3600 + minute * 60 + second))
    return format(date) == text ? date : nil
  }

  private static func pad(_ value: Int64, _ width: Int) -> String {
    let digits = String(value)
    return String(repeating: "0", count: max(0, width - digits.count)) + digits
  }

  // Howard Hinnant's civil calendar, days since 1970-01-01.
  private static func days(_ year: Int64, _ month: Int64, _ day: Int64) -> Int64 {
    let y = month <= 2 ? year - 1 : year
    let era = y.flooredDivision(by: 400)
    let yearOfEra = y - era * 400
    let dayOfYear = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1
    return era * 146_097 + yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear - 719_468
  }

  private static func civil(fromDays days: Int64) -> (Int64, Int64, Int64) {
    let z = days + 719_468
    let era = z.flooredDivision(by: 146_097)
    let doe = z - era * 146_097
    let yoe = (doe - doe / 1460 + doe / 36524 - doe / 146_096) / 365
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100)
    let mp = (5 * doy + 2) / 153
    let month = mp < 10 ? mp + 3 : mp - 9
    return (yoe + era * 400 + (month <= 2 ? 1 : 0), month, doy - (153 * mp + 2) / 5 + 1)
  }
}

extension Int64 {
  fileprivate func flooredDivision(by divisor: Int64) -> Int64 {
    let (quotient, remainder) = quotientAndRemainder(dividingBy: divisor)
    return remainder < 0 ? quotient - 1 : quotient
  }
}
