// Frictionless Table Schema (v1, specs.frictionlessdata.io/table-schema): types, formats, constraints, keys.

import Glibc

/// The columns of a table, compiled. Immutable.
package final class TableSchema: @unchecked Sendable {
  // Proof for @unchecked: constants after `init`; what `quick` names is never written again.
  let location: String
  let columns: [TableColumn]
  /// By column.
  let quick: UnsafeMutablePointer<QuickColumn>
  let unique: [UniqueConstraint]
  /// Places of the columns of each unique constraint.
  let uniqueColumns: [[Int]]

  /// - Parameter tables: what foreign keys refer to, by resource name: bundled CSV files in UTF-8.
  /// - Throws: why it cannot be enforced.
  package init(_ bytes: [UInt8], uri: String = "schema:/", tables: [String: [UInt8]] = [:]) throws(SchemaError) {
    location = uri
    let root = try SchemaBundle.parse(bytes, uri).root
    guard root.kind == .object, let fields = root["fields"], fields.kind == .array, !fields.items.isEmpty else {
      throw SchemaError(location: uri, reason: "a Table Schema is an object with fields")
    }
    let missing = root["missingValues"]?.items.compactMap(\.stringBytes) ?? [[]]
    let names = fields.items.map { $0["name"]?.string ?? "" }
    guard Set(names).count == names.count else { throw SchemaError(location: uri, reason: "two fields have one name") }
    func places(_ value: JSONElement, _ what: String) throws(SchemaError) -> [Int] {
      var places: [Int] = []
      for name in value.kind == .array ? value.items.compactMap(\.string) : [value.string ?? ""] {
        guard let place = names.firstIndex(of: name) else {
          throw SchemaError(location: "\(uri)#/\(what)", reason: "no field is named \(name)")
        }
        places.append(place)
      }
      return places
    }
    let primary = try root["primaryKey"].map { key throws(SchemaError) in try places(key, "primaryKey") } ?? []
    var foreign: [Int: Set<[UInt8]>] = [:]
    for key in root["foreignKeys"]?.items ?? [] {
      let own = try places(key["fields"] ?? key, "foreignKeys")
      guard own.count == 1, let reference = key["reference"], let resource = reference["resource"]?.string,
        let theirs = reference["fields"].map({ $0.kind == .array ? $0.items.compactMap(\.string) : [$0.string ?? ""] }),
        theirs.count == 1
      else { throw SchemaError(location: "\(uri)#/foreignKeys", reason: "only keys of one field are supported") }
      guard let table = tables[resource] else {
        throw SchemaError(location: "\(uri)#/foreignKeys", reason: "the table \(resource) is not in the bundle")
      }
      guard let values = Self.column(theirs[0], of: table) else {
        throw SchemaError(location: "\(uri)#/foreignKeys", reason: "the table \(resource) has no column \(theirs[0])")
      }
      foreign[own[0]] = foreign[own[0]].map { $0.intersection(values) } ?? values
    }
    var columns: [TableColumn] = []
    for (place, field) in fields.items.enumerated() {
      columns.append(
        try TableColumn(
          field, missing: missing, isKey: primary.contains(place), foreign: foreign[place],
          location: "\(uri)#/fields/\(place)"))
    }
    var unique: [UniqueConstraint] = []
    var uniqueColumns: [[Int]] = []
    if !primary.isEmpty {
      uniqueColumns.append(primary)
      unique.append(UniqueConstraint(keyword: "primaryKey", location: "/primaryKey"))
    }
    for (place, column) in columns.enumerated() where column.isUnique && primary != [place] {
      uniqueColumns.append([place])
      unique.append(UniqueConstraint(keyword: "unique", location: "/fields/\(place)/constraints/unique"))
    }
    self.columns = columns
    quick = .allocate(capacity: columns.count)
    for (place, column) in columns.enumerated() { (quick + place).initialize(to: column.makeQuick()) }
    self.unique = unique
    self.uniqueColumns = uniqueColumns
  }

  deinit {
    for place in columns.indices { quick[place].deallocate() }
    quick.deallocate()
  }

  /// Whether the text looks like a Table Schema and not like a JSON Schema.
  package static func isOne(_ bytes: [UInt8]) -> Bool {
    do throws(JSONFault) { return try JSONDocument(bytes).root["fields"]?.kind == .array } catch { return false }
  }

  /// The values of a bundled table's column: small tables, no quoted line ends.
  private static func column(_ name: String, of table: [UInt8]) -> Set<[UInt8]>? {
    let rows = table.split(separator: 10).map { $0.last == 13 ? $0.dropLast() : $0 }
    func fields(_ row: ArraySlice<UInt8>) -> [ArraySlice<UInt8>] {
      row.split(separator: 44, omittingEmptySubsequences: false).map {
        $0.first == 34 && $0.last == 34 && $0.count >= 2 ? $0.dropFirst().dropLast() : $0
      }
    }
    guard let header = rows.first, let place = fields(header).firstIndex(where: { $0.elementsEqual(name.utf8) }) else {
      return nil
    }
    return Set(
      rows.dropFirst().compactMap { row in fields(row).indices.contains(place) ? Array(fields(row)[place]) : nil })
  }

  /// nil when the header names just the fields, in their order.
  func checkHeader(_ names: [String]) -> Finding? {
    guard !names.elementsEqual(columns, by: { $0.utf8.elementsEqual($1.name.utf8) }) else { return nil }
    let missing = columns.map(\.name).filter { !names.contains($0) }
    let expected =
      missing.isEmpty
      ? "the \(columns.count) fields of the schema in their order" : "the field \(missing.joined(separator: ", "))"
    return Finding(
      record: 0, line: 1, byteOffset: 0, at: "", keyword: "csv.header", keywordLocation: "/fields",
      absolute: "\(location)#/fields",
      expected: JSONDescriber.cut(expected), actual: "\(names.count) fields")
  }
}

/// A broken rule of a column.
struct BrokenColumn {
  var keyword: String
  var path: String
  var expected: String
  var isMissing = false
}

extension [[UInt8]] {
  func contains(_ content: UnsafeBufferPointer<UInt8>) -> Bool { contains { content.elementsEqual($0) } }
}

/// One field of a Table Schema. Immutable; a class, so that a row's check copies no column.
final class TableColumn: Sendable {
  enum Kind: Sendable {
    case string, email, uri, uuid, binary
    case integer, number(decimal: UInt8)
    case boolean([[UInt8]])
    case date, time, datetime, year, yearmonth, duration
    case pattern(TimePattern)
    case object, array, geojson, geopoint, any
  }

  let name: String
  private let kind: Kind
  private let typeName: String
  private let groupCharacter: UInt8?
  private let missing: [[UInt8]]
  let isRequired: Bool
  let isUnique: Bool
  private let scalarsMin: Int
  private let scalarsMax: Int
  private let minimum: Bound?
  private let maximum: Bound?
  private let pattern: Pattern?
  private let values: [[UInt8]]?
  private let numbers: [ExactNumber]
  private let valuesText: String
  private let foreign: Set<[UInt8]>?

  private struct Bound: Sendable {
    let number: ExactNumber?
    let text: [UInt8]
    var spelled: String { String(decoding: text, as: UTF8.self) }
  }

  /// - Parameter isKey: a part of the primary key, so required.
  init(
    _ field: JSONElement, missing: [[UInt8]], isKey: Bool, foreign: Set<[UInt8]>?, location: String
  ) throws(SchemaError) {
    func refused(_ reason: String) -> SchemaError { SchemaError(location: location, reason: reason) }
    guard let name = field["name"]?.string, !name.isEmpty else { throw refused("a field needs a name") }
    self.name = name
    self.missing = missing
    self.foreign = foreign
    let type = field["type"]?.string ?? "string"
    let format = field["format"]?.string ?? "default"
    typeName = format == "default" ? type : "\(type) (\(format))"
    groupCharacter = field["groupChar"]?.stringBytes?.first
    let decimal = field["decimalChar"]?.stringBytes?.first ?? 46
    if field["bareNumber"]?.bool == false { throw refused("bareNumber: false is not supported") }
    switch (type, format) {
    case ("string", "default"): kind = .string
    case ("string", "email"): kind = .email
    case ("string", "uri"): kind = .uri
    case ("string", "uuid"): kind = .uuid
    case ("string", "binary"): kind = .binary
    case ("integer", "default"): kind = .integer
    case ("number", "default"): kind = .number(decimal: decimal)
    case ("boolean", "default"):
      func words(_ member: String, _ usual: [String]) -> [[UInt8]] {
        field[member]?.items.compactMap(\.stringBytes) ?? usual.map { Array($0.utf8) }
      }
      kind = .boolean(
        words("trueValues", ["true", "True", "TRUE", "1"]) + words("falseValues", ["false", "False", "FALSE", "0"]))
    case ("date", "default"): kind = .date
    case ("time", "default"): kind = .time
    case ("datetime", "default"): kind = .datetime
    case ("date", _), ("time", _), ("datetime", _):
      guard let pattern = TimePattern(format) else {
        throw refused("the format \(format) is not supported: %Y %y %m %d %H %M %S %f %z and text")
      }
      kind = .pattern(pattern)
    case ("year", "default"): kind = .year
    case ("yearmonth", "default"): kind = .yearmonth
    case ("duration", "default"): kind = .duration
    case ("object", "default"): kind = .object
    case ("array", "default"): kind = .array
    case ("geojson", "default"), ("geojson", "topojson"): kind = .geojson
    case ("geopoint", "default"): kind = .geopoint
    case ("any", "default"): kind = .any
    default: throw refused("the type \(type) with format \(format) is not known")
    }

    let constraints = field["constraints"]
    for keyword in ["required", "unique"] {
      if let value = constraints?[keyword], value.bool == nil { throw refused("\(keyword) is true or false") }
    }
    isRequired = isKey || constraints?["required"]?.bool ?? false
    isUnique = constraints?["unique"]?.bool ?? false
    var (scalars, bounds): (ClosedRange<Int>, [Bound?]) = (0...Int.max, [nil, nil])
    var (pattern, values, numbers, valuesText): (Pattern?, [[UInt8]]?, [ExactNumber], String) = (nil, nil, [], "")
    for (keyword, value) in constraints?.members ?? [] {
      switch keyword {
      case "required", "unique": break
      case "minLength", "maxLength":
        guard let count = value.count.map(Int.init) else { throw refused("\(keyword) is malformed") }
        scalars =
          keyword == "minLength" ? count...max(count, scalars.upperBound) : min(count, scalars.lowerBound)...count
      case "minimum", "maximum":
        let text = value.stringBytes ?? Array(value.text.utf8)
        var number: ExactNumber?
        switch kind {
        case .integer, .number, .year:
          number = Self.number(text, decimal: 46, group: nil)
          if number == nil { throw refused("\(keyword) is no number") }
        case .date, .time, .yearmonth, .datetime: break
        default: throw refused("\(keyword) has no meaning for \(typeName)")
        }
        bounds[keyword == "minimum" ? 0 : 1] = Bound(number: number, text: text)
      case "pattern":
        guard let text = value.string else { throw refused("pattern is malformed") }
        do throws(PatternError) {
          // Frictionless patterns match whole values.
          pattern = try Pattern("^(?:\(text))$")
        } catch {
          throw refused("the pattern cannot be enforced: \(error.reason)")
        }
      case "enum":
        valuesText = value.text
        let texts = value.items.map { $0.stringBytes ?? Array($0.text.utf8) }
        values = texts
        if Self.isNumeric(kind) { numbers = texts.compactMap { Self.number($0, decimal: 46, group: nil) } }
      default: throw refused("the constraint \(keyword) is not known")
      }
    }
    (scalarsMin, scalarsMax) = (scalars.lowerBound, scalars.upperBound)
    (minimum, maximum) = (bounds[0], bounds[1])
    (self.pattern, self.values, self.numbers, self.valuesText) = (pattern, values, numbers, valuesText)
  }

  var isNumeric: Bool { Self.isNumeric(kind) }

  /// Its numbers are not spelled as in JSON.
  var hasOwnSpelling: Bool {
    if case .number(let decimal) = kind, decimal != 46 { return true }
    return isNumeric && groupCharacter != nil
  }

  private static func isNumeric(_ kind: Kind) -> Bool {
    switch kind {
    case .integer, .number, .year: true
    default: false
    }
  }

  /// What vouches for most of the fields that `check` finds nothing wrong with. The caller deallocates it.
  func makeQuick() -> QuickColumn {
    var (format, words): (Format?, [[UInt8]]?) = (nil, values)
    var number: QuickNumber?
    var isKnown = foreign == nil
    switch kind {
    case .string, .any: isKnown = isKnown && minimum == nil && maximum == nil
    case .email: format = .email
    case .uri: format = .uri
    case .uuid: format = .uuid
    case .duration: format = .duration
    case .date: format = .date
    case .datetime: format = .dateTime
    case .boolean(let all):
      isKnown = isKnown && values == nil
      words = all
    case .integer, .number(decimal: 46):
      // A group character may be any, and is dropped before the number is read.
      isKnown = isKnown && groupCharacter == nil
      var isIntegral = false
      if case .integer = kind { isIntegral = true }
      number = QuickNumber(minimum: minimum?.number, maximum: maximum?.number, isIntegral: isIntegral)
    default: isKnown = false
    }
    if format != nil, minimum != nil || maximum != nil { isKnown = false }
    return QuickColumn(
      isKnown
        ? QuickText(
          scalarsMin: scalarsMin, scalarsMax: scalarsMax, pattern: pattern, format: format, words: words)
        : QuickText(),
      number: number, missing: missing, isRequired: isRequired)
  }

  func isMissing(_ content: UnsafeBufferPointer<UInt8>) -> Bool {
    missing.contains(content)
  }

  /// nil when the field is as the column wants it.
  func check(_ content: UnsafeBufferPointer<UInt8>) -> BrokenColumn? {
    if isMissing(content) {
      return isRequired
        ? BrokenColumn(keyword: "required", path: "constraints/required", expected: "a value", isMissing: true) : nil
    }
    guard isOfType(content) else { return BrokenColumn(keyword: "type", path: "type", expected: typeName) }
    if scalarsMin > 0 || scalarsMax < .max {
      let scalars = scalarCount(content)
      if scalars < scalarsMin {
        return BrokenColumn(keyword: "minLength", path: "constraints/minLength", expected: "\(scalarsMin)")
      }
      if scalars > scalarsMax {
        return BrokenColumn(keyword: "maxLength", path: "constraints/maxLength", expected: "\(scalarsMax)")
      }
    }
    if let minimum, compare(content, minimum, outside: -1) < 0 {
      return BrokenColumn(keyword: "minimum", path: "constraints/minimum", expected: minimum.spelled)
    }
    if let maximum, compare(content, maximum, outside: 1) > 0 {
      return BrokenColumn(keyword: "maximum", path: "constraints/maximum", expected: maximum.spelled)
    }
    if let pattern, !pattern.matches(content) {
      return BrokenColumn(
        keyword: "pattern", path: "constraints/pattern", expected: String(pattern.source.dropFirst(4).dropLast(2)))
    }
    if let values, !values.contains(content), !isOneOfNumbers(content) {
      return BrokenColumn(keyword: "enum", path: "constraints/enum", expected: valuesText)
    }
    if let foreign, !foreign.contains(Array(content)) {
      return BrokenColumn(keyword: "foreignKey", path: "foreignKeys", expected: "a value of the referenced table")
    }
    return nil
  }

  private func isOneOfNumbers(_ content: UnsafeBufferPointer<UInt8>) -> Bool {
    guard !numbers.isEmpty, let number = number(content) else { return false }
    return numbers.contains { ExactNumber.compare($0, number) == 0 }
  }

  private func number(_ content: UnsafeBufferPointer<UInt8>) -> ExactNumber? {
    if case .number(let decimal) = kind, decimal != 46 || groupCharacter != nil {
      return Self.number(Array(content), decimal: decimal, group: groupCharacter)
    }
    // What is spelled as in JSON is read where it stands.
    if isPlainNumber(content, 46) { return ExactNumber(content) }
    return Self.number(Array(content), decimal: 46, group: groupCharacter)
  }

  /// Numbers as numbers; times as text, which orders them in ISO 8601.
  private func compare(_ content: UnsafeBufferPointer<UInt8>, _ bound: Bound, outside: Int) -> Int {
    if let wanted = bound.number {
      // NaN and the infinities are within no bounds.
      guard let number = number(content) else { return outside }
      return ExactNumber.compare(number, wanted)
    }
    return content.lexicographicallyPrecedes(bound.text) ? -1 : content.elementsEqual(bound.text) ? 0 : 1
  }

  /// A number as a JSON number is spelled, once its sign, zeros, decimal and group characters are; nil for what is none.
  private static func number(_ text: [UInt8], decimal: UInt8, group: UInt8?) -> ExactNumber? {
    var spelled = text.filter { $0 != group }.map { $0 == decimal ? 46 : $0 }
    if spelled.first == 43 {
      spelled.removeFirst()
      guard spelled.first != 45 else { return nil }
    }
    let isNegative = spelled.first == 45
    var digits = Array(spelled.drop { $0 == 45 })
    guard spelled.count - digits.count <= 1, digits.count <= 1000 else { return nil }
    if digits.first == 46 { digits.insert(48, at: 0) }
    guard spelledNumber(digits) else { return nil }
    return ((isNegative ? [45] : []) + digits).withUnsafeBufferPointer { ExactNumber($0) }
  }

  /// digits [. digits] [e [+-] digits]
  private static func spelledNumber(_ text: [UInt8]) -> Bool {
    var index = 0
    func digits() -> Bool {
      let start = index
      while index < text.count, text[index] &- 48 <= 9 { index += 1 }
      return index > start
    }
    guard digits() else { return false }
    if index < text.count, text[index] == 46 {
      index += 1
      _ = digits()
    }
    if index < text.count, text[index] | 32 == 101 {
      index += 1
      if index < text.count, text[index] == 43 || text[index] == 45 { index += 1 }
      let start = index
      guard digits(), index - start <= 9 else { return false }
    }
    return index == text.count
  }

  private func isOfType(_ content: UnsafeBufferPointer<UInt8>) -> Bool {
    switch kind {
    case .string, .any: return true
    case .email: return Format.email.matches(content)
    case .uri: return Format.uri.matches(content)
    case .uuid: return Format.uuid.matches(content)
    case .binary:
      return content.count % 4 == 0
        && content.allSatisfy { ($0 | 32) &- 97 < 26 || $0 &- 48 <= 9 || $0 == 43 || $0 == 47 || $0 == 61 }
    case .integer:
      var index = content.first == 45 || content.first == 43 ? 1 : 0
      var digits = 0
      while index < content.count, content[index] &- 48 <= 9 || content[index] == groupCharacter {
        if content[index] &- 48 <= 9 { digits += 1 }
        index += 1
      }
      return index == content.count && digits > 0
    case .number(let decimal):
      if isPlainNumber(content, decimal) { return true }
      let isWord = [Array("NaN".utf8), Array("INF".utf8), Array("-INF".utf8)].contains { content.elementsEqual($0) }
      return isWord || number(content) != nil
    case .boolean(let words): return words.contains(content)
    case .date: return Format.date.matches(content)
    case .time: return Self.clock(content)
    case .datetime: return Format.dateTime.matches(content)
    case .year: return content.count == 4 && content.allSatisfy { $0 &- 48 <= 9 }
    case .yearmonth:
      guard content.count == 7, content[4] == 45, content[..<4].allSatisfy({ $0 &- 48 <= 9 }) else { return false }
      guard content[5] &- 48 <= 1, content[6] &- 48 <= 9 else { return false }
      return (1...12).contains((content[5] - 48) * 10 + content[6] - 48)
    case .duration: return Format.duration.matches(content)
    case .pattern(let pattern): return pattern.matches(content)
    case .object, .array, .geojson:
      do throws(JSONFault) {
        let root = try JSONDocument(Array(content)).root
        if case .array = kind { return root.kind == .array }
        if case .geojson = kind { return root.kind == .object && root["type"]?.string != nil }
        return root.kind == .object
      } catch {
        return false
      }
    case .geopoint:
      let parts = content.split(separator: 44, omittingEmptySubsequences: false).map { Array($0.drop { $0 == 32 }) }
      let numbers = parts.compactMap {
        Self.number($0, decimal: 46, group: nil) == nil ? nil : Double(String(decoding: $0, as: UTF8.self))
      }
      return parts.count == 2 && numbers.count == 2 && abs(numbers[0]) <= 180 && abs(numbers[1]) <= 90
    }
  }

  /// The common case of a number without allocating.
  private func isPlainNumber(_ content: UnsafeBufferPointer<UInt8>, _ decimal: UInt8) -> Bool {
    var index = content.first == 45 ? 1 : 0
    let start = index
    while index < content.count, content[index] &- 48 <= 9 { index += 1 }
    guard index > start else { return false }
    guard index < content.count else { return true }
    guard content[index] == decimal else { return false }
    index += 1
    let fraction = index
    while index < content.count, content[index] &- 48 <= 9 { index += 1 }
    return index == content.count && index > fraction
  }

  private static func clock(_ content: UnsafeBufferPointer<UInt8>) -> Bool {
    guard content.count == 8, content[2] == 58, content[5] == 58 else { return false }
    func two(_ at: Int) -> Int? {
      let (a, b) = (content[at] &- 48, content[at + 1] &- 48)
      return a <= 9 && b <= 9 ? Int(a) * 10 + Int(b) : nil
    }
    guard let hour = two(0), let minute = two(3), let second = two(6) else { return false }
    return hour <= 23 && minute <= 59 && second <= 59
  }
}

/// A strptime pattern of numbers and plain text.
struct TimePattern: Sendable {
  private enum Part: Sendable {
    case text(UInt8)
    case digits(ClosedRange<Int>, ClosedRange<Int>, Field = .other)
    case zone
  }
  private enum Field: Sendable { case year, month, day, other }
  private let parts: [Part]

  init?(_ format: String) {
    var parts: [Part] = []
    var iterator = format.utf8.makeIterator()
    while let byte = iterator.next() {
      guard byte == 37 else {
        guard byte < 128 else { return nil }
        parts.append(.text(byte))
        continue
      }
      switch iterator.next().map({ Character(Unicode.Scalar($0)) }) {
      case "Y": parts.append(.digits(4...4, 0...9999, .year))
      case "y": parts.append(.digits(2...2, 0...99, .year))
      case "m": parts.append(.digits(1...2, 1...12, .month))
      case "d": parts.append(.digits(1...2, 1...31, .day))
      case "H": parts.append(.digits(1...2, 0...23))
      case "M": parts.append(.digits(1...2, 0...59))
      case "S": parts.append(.digits(1...2, 0...61))
      case "f": parts.append(.digits(1...6, 0...999_999))
      case "z": parts.append(.zone)
      case "%": parts.append(.text(37))
      default: return nil
      }
    }
    // "any" and words would say nothing of a date.
    guard parts.contains(where: { if case .digits = $0 { true } else { false } }) else { return nil }
    self.parts = parts
  }

  func matches(_ content: UnsafeBufferPointer<UInt8>) -> Bool {
    var index = 0
    // 2000 had a day more, and so has 00.
    var (year, month, day) = (2000, 1, 1)
    for part in parts {
      switch part {
      case .text(let byte):
        guard index < content.count, content[index] == byte else { return false }
        index += 1
      case .digits(let count, let range, let field):
        var value = 0
        let start = index
        while index < content.count, index - start < count.upperBound, content[index] &- 48 <= 9 {
          value = value * 10 + Int(content[index] - 48)
          index += 1
        }
        guard index - start >= count.lowerBound, range.contains(value) else { return false }
        switch field {
        case .year: year = value
        case .month: month = value
        case .day: day = value
        case .other: break
        }
      case .zone:
        if index < content.count, content[index] == 90 {
          index += 1
          continue
        }
        guard index < content.count, content[index] == 43 || content[index] == 45 else { return false }
        index += 1
        for place in 0..<4 {
          if place == 2, index < content.count, content[index] == 58 { index += 1 }
          guard index < content.count, content[index] &- 48 <= 9 else { return false }
          index += 1
        }
      }
    }
    let isLeap = year.isMultiple(of: 4) && (!year.isMultiple(of: 100) || year.isMultiple(of: 400))
    let days = month == 2 ? (isLeap ? 29 : 28) : [4, 6, 9, 11].contains(month) ? 30 : 31
    return index == content.count && day <= days
  }
}
