// Durations as agreements write them: ISO 8601, `P13M`, `P5D`, `PT48H`, `P1DT12H`.

import Foundation

/// Months and days have a length only on a calendar; the calendar is the Gregorian one in UTC.
package struct CalendarDuration: Equatable, Sendable, CustomStringConvertible {
  package let months: Int
  package let days: Int
  package let seconds: Int
  package let description: String

  /// nil when the text is no duration, is empty, or has a part over 10,000.
  package init?(_ text: String) {
    let pattern = /P(?:(\d+)Y)?(?:(\d+)M)?(?:(\d+)W)?(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)S)?)?/
      .asciiOnlyDigits()
    guard text.utf8.count <= 32, let match = text.wholeMatch(of: pattern), text.last != "T" else { return nil }
    let parts = [match.1, match.2, match.3, match.4, match.5, match.6, match.7].map { $0.map { Int($0) ?? -1 } ?? 0 }
    guard parts.allSatisfy({ (0...10_000).contains($0) }), parts.contains(where: { $0 > 0 }) else { return nil }
    months = parts[0] * 12 + parts[1]
    days = parts[2] * 7 + parts[3]
    seconds = parts[4] * 3600 + parts[5] * 60 + parts[6]
    description = text
  }

  private static let calendar = {
    var calendar = Calendar(identifier: .gregorian)
    calendar.timeZone = TimeZone(secondsFromGMT: 0)!
    return calendar
  }()
  private static let day = 86400.0

  /// The instant that lies this long after another.
  package func after(_ instant: Date) -> Date {
    let moved = Self.calendar.date(byAdding: DateComponents(month: months, day: days), to: instant)
    return (moved ?? instant) + Double(seconds)
  }

  /// When what began at `instant` is over. As `after`, but where a month lacks the days of another, nothing lasts longer than what began
  /// later: of the 30th at 23:00 and the 31st at 1:00 both end with the second.
  package func end(from instant: Date) -> Date {
    let midnight = Self.calendar.startOfDay(for: instant)
    return [instant, midnight + Self.day, midnight + 2 * Self.day, midnight + 3 * Self.day].map(after).min()!
  }

  /// The latest beginning, in whole seconds, of what is over at `instant`: just what began until then has its `end` until then.
  package func latestBeginning(overAt instant: Date) -> Date {
    let moved = instant - Double(seconds) - Double(days) * Self.day
    let calendar = Self.calendar
    guard let month = calendar.dateInterval(of: .month, for: moved),
      let start = calendar.date(byAdding: .month, value: -months, to: month.start),
      let length = calendar.dateInterval(of: .month, for: start)?.duration
    else { return .distantPast }
    let offset = moved.timeIntervalSince(month.start)
    let time = offset.truncatingRemainder(dividingBy: Self.day)
    // Days that the later month lacks end on its last one.
    let isLast = offset >= month.duration - Self.day
    let day = isLast ? max(offset - time, length - Self.day) : offset - time
    return start + (day >= length ? length - 1 : (day + time).rounded(.down))
  }
}
