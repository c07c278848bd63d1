// The formats of JSON Schema validation §7.3, asserted. Each is the grammar of the RFC it names, over the unescaped UTF-8 bytes.

/// A named format; `init` gives nil for names that the draft does not know, which assert nothing.
enum Format: String, Sendable {
  case dateTime = "date-time"
  case date, time, duration, email, hostname, ipv4, ipv6, uri, iri, uuid, regex
  case idnEmail = "idn-email"
  case idnHostname = "idn-hostname"
  case uriReference = "uri-reference"
  case iriReference = "iri-reference"
  case uriTemplate = "uri-template"
  case jsonPointer = "json-pointer"
  case relativeJSONPointer = "relative-json-pointer"

  init?(_ name: String, _ dialect: SchemaDialect) {
    self.init(rawValue: name)
    if dialect == .draft07, self == .uuid || self == .duration { return nil }
  }

  func matches(_ text: UnsafeBufferPointer<UInt8>) -> Bool {
    var reader = FormatReader(text)
    switch self {
    case .date: return reader.date() && reader.isAtEnd
    case .time: return reader.time() && reader.isAtEnd
    case .dateTime: return reader.date() && (reader.take(84) || reader.take(116)) && reader.time() && reader.isAtEnd
    case .duration: return reader.duration()
    case .uuid: return reader.uuid()
    case .ipv4: return reader.ipv4() && reader.isAtEnd
    case .ipv6: return FormatReader.ipv6(text[...])
    case .hostname: return Hostname.isASCII(text)
    case .idnHostname: return Hostname.isInternational(text)
    case .email: return FormatReader.email(text, international: false)
    case .idnEmail: return FormatReader.email(text, international: true)
    case .uri: return FormatReader.uri(text, international: false, relative: false)
    case .uriReference: return FormatReader.uri(text, international: false, relative: true)
    case .iri: return FormatReader.uri(text, international: true, relative: false)
    case .iriReference: return FormatReader.uri(text, international: true, relative: true)
    case .uriTemplate: return FormatReader.uriTemplate(text)
    case .jsonPointer: return FormatReader.jsonPointer(text[...])
    case .relativeJSONPointer: return FormatReader.relativeJSONPointer(text)
    case .regex:
      var parser = PatternParser(String(decoding: text, as: UTF8.self), isSyntaxOnly: true)
      do throws(PatternError) {
        _ = try parser.parse()
        return true
      } catch {
        // Look-around and back-references are regular expressions of ECMA-262 all the same.
        return error.reason.hasSuffix("no linear-time form") || error.reason.hasPrefix("the Unicode property")
      }
    }
  }
}

/// Reads a text from its start.
struct FormatReader {
  private let text: UnsafeBufferPointer<UInt8>
  private var index = 0

  init(_ text: UnsafeBufferPointer<UInt8>) { self.text = text }

  var isAtEnd: Bool { index == text.count }

  @inline(__always)
  mutating func take(_ byte: UInt8) -> Bool {
    guard index < text.count, text[index] == byte else { return false }
    index += 1
    return true
  }

  /// Just `count` digits.
  @inline(__always)
  private mutating func digits(_ count: Int) -> Int? {
    guard index + count <= text.count else { return nil }
    var value = 0
    for _ in 0..<count {
      let digit = text[index] &- 48
      guard digit <= 9 else { return nil }
      value = value * 10 + Int(digit)
      index += 1
    }
    return value
  }

  /// RFC 3339 full-date.
  mutating func date() -> Bool {
    guard index + 10 <= text.count else { return false }
    let start = UnsafeRawPointer(text.baseAddress!) + index
    // `dddd-dd-` at once: what should be there is taken off, so that digits leave 0 to 9 and hyphens 0; a byte above that
    // reaches its highest bit when the rest of 127 is added.
    let front = UInt64(littleEndian: start.loadUnaligned(as: UInt64.self)) ^ 0x2D30_302D_3030_3030
    guard ((front &+ 0x7F76_767F_7676_7676) | front) & 0x8080_8080_8080_8080 == 0 else { return false }
    func digit(_ place: UInt64) -> Int { Int(front &>> (place &* 8) & 15) }
    index += 8
    guard let day = digits(2) else { return false }
    let month = digit(5) &* 10 &+ digit(6)
    guard (1...12).contains(month), day > 0 else { return false }
    if day <= 28 { return true }
    let year = digit(0) &* 1000 &+ digit(1) &* 100 &+ digit(2) &* 10 &+ digit(3)
    let isLeap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
    return day <= (month == 2 ? (isLeap ? 29 : 28) : [4, 6, 9, 11].contains(month) ? 30 : 31)
  }

  /// RFC 3339 full-time; 60 seconds only where a leap second can be.
  mutating func time() -> Bool {
    guard let hour = digits(2), take(58), let minute = digits(2), take(58), let second = digits(2) else { return false }
    guard hour <= 23, minute <= 59, second <= 60 else { return false }
    if take(46) {
      let start = index
      while index < text.count, text[index] &- 48 <= 9 { index += 1 }
      guard index > start else { return false }
    }
    var offset = 0
    if !take(90), !take(122) {
      let isMinus = take(45)
      guard isMinus || take(43) else { return false }
      guard let hours = digits(2), take(58), let minutes = digits(2), hours <= 23, minutes <= 59 else { return false }
      offset = (isMinus ? -1 : 1) * (hours * 60 + minutes)
    }
    guard second == 60 else { return true }
    return (hour * 60 + minute - offset + 2 * 1440) % 1440 == 1439
  }

  /// RFC 3339 appendix A.
  mutating func duration() -> Bool {
    guard take(80), index < text.count else { return false }
    func part(_ units: [UInt8], _ reader: inout FormatReader) -> Bool? {
      // Units in their order, none left out between two.
      var place: Int?
      var count = 0
      while reader.index < reader.text.count, reader.text[reader.index] != 84 {
        let start = reader.index
        while reader.index < reader.text.count, reader.text[reader.index] &- 48 <= 9 { reader.index += 1 }
        guard reader.index > start, reader.index < reader.text.count,
          let unit = units.firstIndex(of: reader.text[reader.index])
        else { return nil }
        if let place, unit != place + 1 { return nil }
        place = unit
        reader.index += 1
        count += 1
      }
      return count > 0
    }
    if text[text.count - 1] == 87 {
      // Weeks stand alone.
      let start = index
      while index < text.count - 1, text[index] &- 48 <= 9 { index += 1 }
      return index > start && index == text.count - 1
    }
    guard let hasDate = part(Array("YMD".utf8), &self) else { return false }
    guard take(84) else { return hasDate && isAtEnd }
    guard let hasTime = part(Array("HMS".utf8), &self) else { return false }
    return hasTime && isAtEnd
  }

  /// RFC 9562 §4.
  func uuid() -> Bool {
    guard text.count == 36 else { return false }
    for place in 0..<36 {
      switch place {
      case 8, 13, 18, 23: guard text[place] == 45 else { return false }
      default: guard hexValue(text[place]) != nil else { return false }
      }
    }
    return true
  }

  /// RFC 2673 §3.2: four decimal numbers without leading zeros.
  mutating func ipv4() -> Bool {
    for part in 0..<4 {
      if part > 0, !take(46) { return false }
      let start = index
      var value = 0
      while index < text.count, text[index] &- 48 <= 9, index - start < 3 {
        value = value * 10 + Int(text[index] - 48)
        index += 1
      }
      guard index > start, value <= 255, index - start == 1 || text[start] != 48 else { return false }
    }
    return true
  }

  /// RFC 4291 §2.2.
  static func ipv6(_ text: Slice<UnsafeBufferPointer<UInt8>>) -> Bool {
    var groups = 0
    var isShortened = false
    var index = text.startIndex
    if text.starts(with: [58, 58]) {
      isShortened = true
      index += 2
    } else if text.first == 58 {
      return false
    }
    while index < text.endIndex {
      let start = index
      while index < text.endIndex, hexValue(text[index]) != nil { index += 1 }
      if index < text.endIndex, text[index] == 46 {
        var reader = FormatReader(UnsafeBufferPointer(rebasing: text[start...]))
        return reader.ipv4() && reader.isAtEnd && (isShortened ? groups <= 5 : groups == 6)
      }
      guard (1...4).contains(index - start) else { return false }
      groups += 1
      guard index < text.endIndex else { break }
      guard text[index] == 58 else { return false }
      index += 1
      if index < text.endIndex, text[index] == 58 {
        guard !isShortened else { return false }
        isShortened = true
        index += 1
      } else if index == text.endIndex {
        return false
      }
    }
    return isShortened ? groups <= 7 : groups == 8
  }

  /// RFC 5321 §4.1.2 Mailbox; RFC 6531 with `international`.
  static func email(_ text: UnsafeBufferPointer<UInt8>, international: Bool) -> Bool {
    let isQuoted = text.first == 34
    guard let at = isQuoted ? text.lastIndex(of: 64) : dotAtomEnd(text, international: international) else {
      return false
    }
    let domain = UnsafeBufferPointer(rebasing: text[(at + 1)...])
    if isQuoted {
      guard at >= 2, text[at - 1] == 34 else { return false }
      var index = 1
      while index < at - 1 {
        if text[index] == 92 { index += 1 }
        guard index < at - 1, text[index] >= 32, text[index] != 127, international || text[index] < 128 else {
          return false
        }
        if text[index] == 34, text[index - 1] != 92 { return false }
        index += 1
      }
    }
    if domain.first == 91 {
      guard domain.last == 93 else { return false }
      let inner = domain[1..<(domain.count - 1)]
      if inner.starts(with: "IPv6:".utf8) { return ipv6(inner.dropFirst(5)) }
      var reader = FormatReader(UnsafeBufferPointer(rebasing: inner))
      return reader.ipv4() && reader.isAtEnd
    }
    return international ? Hostname.isInternational(domain) : Hostname.isASCII(domain)
  }

  /// Where the Dot-string ends that a mailbox begins with: at its "@".
  private static func dotAtomEnd(_ text: UnsafeBufferPointer<UInt8>, international: Bool) -> Int? {
    var wasDot = true
    for place in 0..<text.count {
      let byte = text[place]
      if isLetter(byte) || byte &- 48 <= 9 {
        wasDot = false
        continue
      }
      if byte == 64 { return wasDot ? nil : place }
      if byte == 46 {
        if wasDot { return nil }
        wasDot = true
        continue
      }
      wasDot = false
      guard "!#$%&'*+-/=?^_`{|}~".utf8.contains(byte) || (international && byte >= 128) else { return nil }
    }
    return nil
  }

  /// RFC 3986, RFC 3987 with `international`.
  static func uri(_ text: UnsafeBufferPointer<UInt8>, international: Bool, relative: Bool) -> Bool {
    var rest = text[...]
    func isOther(_ byte: UInt8) -> Bool { international && byte >= 128 }
    // Every byte, and every percent-encoding.
    var index = 0
    while index < text.count {
      let byte = text[index]
      if byte == 37 {
        guard index + 2 < text.count, hexValue(text[index + 1]) != nil, hexValue(text[index + 2]) != nil else {
          return false
        }
        index += 3
        continue
      }
      guard isUnreserved(byte) || isSubDelimiter(byte) || ":/?#[]@".utf8.contains(byte) || isOther(byte) else {
        return false
      }
      index += 1
    }
    var hasScheme = false
    if let colon = rest.firstIndex(where: { ":/?#".utf8.contains($0) }), text[colon] == 58 {
      let scheme = rest[..<colon]
      if let first = scheme.first, isLetter(first),
        scheme.allSatisfy({ isLetter($0) || $0 &- 48 <= 9 || "+-.".utf8.contains($0) })
      {
        hasScheme = true
        rest = rest[(colon + 1)...]
      } else {
        return false
      }
    }
    guard hasScheme || relative else { return false }
    if let hash = rest.firstIndex(of: 35) {
      guard !rest[(hash + 1)...].contains(where: { "#[]".utf8.contains($0) }) else { return false }
      rest = rest[..<hash]
    }
    if let mark = rest.firstIndex(of: 63) {
      guard !rest[(mark + 1)...].contains(where: { "[]".utf8.contains($0) }) else { return false }
      rest = rest[..<mark]
    }
    if rest.starts(with: [47, 47]) {
      let tail = rest.dropFirst(2)
      let slash = tail.firstIndex(of: 47) ?? tail.endIndex
      guard authority(tail[..<slash]) else { return false }
      rest = tail[slash...]
    }
    return !rest.contains { "[]".utf8.contains($0) }
  }

  private static func authority(_ text: Slice<UnsafeBufferPointer<UInt8>>) -> Bool {
    var host = text
    if let at = text.lastIndex(of: 64) {
      guard !text[..<at].contains(where: { "@[]".utf8.contains($0) }) else { return false }
      host = text[(at + 1)...]
    }
    if host.first == 91 {
      guard let close = host.firstIndex(of: 93) else { return false }
      let inside = host[(host.startIndex + 1)..<close]
      let port = host[(close + 1)...]
      guard port.isEmpty || (port.first == 58 && port.dropFirst().allSatisfy { $0 &- 48 <= 9 }) else { return false }
      if let first = inside.first, first | 32 == 118 {
        let parts = inside.dropFirst().split(separator: 46, maxSplits: 1)
        return parts.count == 2 && parts[0].allSatisfy { hexValue($0) != nil }
      }
      return ipv6(inside)
    }
    let parts = host.split(separator: 58, maxSplits: 1, omittingEmptySubsequences: false)
    if parts.count == 2, !parts[1].allSatisfy({ $0 &- 48 <= 9 }) { return false }
    return !host.contains { "[]".utf8.contains($0) }
  }

  private static func isLetter(_ byte: UInt8) -> Bool { (byte | 32) &- 97 < 26 }
  private static func isUnreserved(_ byte: UInt8) -> Bool {
    isLetter(byte) || byte &- 48 <= 9 || "-._~".utf8.contains(byte)
  }
  private static func isSubDelimiter(_ byte: UInt8) -> Bool { "!$&'()*+,;=".utf8.contains(byte) }

  /// RFC 6570 §2.
  static func uriTemplate(_ text: UnsafeBufferPointer<UInt8>) -> Bool {
    var index = 0
    func isPercent(_ at: Int) -> Bool {
      at + 2 < text.count && text[at] == 37 && hexValue(text[at + 1]) != nil && hexValue(text[at + 2]) != nil
    }
    while index < text.count {
      let byte = text[index]
      if byte == 37 {
        guard isPercent(index) else { return false }
        index += 3
        continue
      }
      guard byte == 123 else {
        guard byte > 32, byte != 127, !"\"<>\\^`|}".utf8.contains(byte) else { return false }
        index += 1
        continue
      }
      guard let close = text[index...].firstIndex(of: 125) else { return false }
      var inner = text[(index + 1)..<close]
      if let first = inner.first, "+#./;?&=,!@|".utf8.contains(first) { inner = inner.dropFirst() }
      for specifier in inner.split(separator: 44, omittingEmptySubsequences: false) {
        var name = specifier
        if name.last == 42 { name = name.dropLast() }
        if let colon = name.firstIndex(of: 58) {
          let length = name[(colon + 1)...]
          guard (1...4).contains(length.count), length.first != 48, length.allSatisfy({ $0 &- 48 <= 9 }) else {
            return false
          }
          name = name[..<colon]
        }
        guard !name.isEmpty, name.first != 46, name.last != 46 else { return false }
        var place = name.startIndex
        while place < name.endIndex {
          if text[place] == 46, text[place + 1] == 46 { return false }
          if isPercent(place) {
            place += 3
            continue
          }
          guard isLetter(text[place]) || text[place] &- 48 <= 9 || text[place] == 95 || text[place] == 46 else {
            return false
          }
          place += 1
        }
      }
      index = close + 1
    }
    return true
  }

  /// RFC 6901 §5.
  static func jsonPointer(_ text: Slice<UnsafeBufferPointer<UInt8>>) -> Bool {
    guard !text.isEmpty else { return true }
    guard text.first == 47 else { return false }
    var index = text.startIndex
    while index < text.endIndex {
      if text[index] == 126 {
        guard index + 1 < text.endIndex, text[index + 1] == 48 || text[index + 1] == 49 else { return false }
      }
      index += 1
    }
    return true
  }

  /// draft-handrews-relative-json-pointer-01 §3.
  static func relativeJSONPointer(_ text: UnsafeBufferPointer<UInt8>) -> Bool {
    let digits = text.prefix { $0 &- 48 <= 9 }
    guard !digits.isEmpty, digits.count == 1 || digits.first != 48 else { return false }
    let rest = text[digits.endIndex...]
    return rest.count == 1 && rest.first == 35 || jsonPointer(rest)
  }
}
