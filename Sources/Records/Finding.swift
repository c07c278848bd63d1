// What is wrong with a record, told without a value of it: where, which rule, what the schema expects, and of the actual value
// only its type and length.

/// One broken rule at one place.
package struct Finding: Sendable, Equatable {
  /// From 1; 0 for the file as a whole.
  package var record: Int64
  /// From 1.
  package var line: Int64
  /// Of the record's first byte, or of the fault itself where it is known.
  package var byteOffset: Int64
  /// JSON pointer, column name, or path of elements. Names that the schema does not know are "#k": the k-th member.
  package var instanceLocation: String
  /// A keyword of the schema language, or a code such as `json.syntax`.
  package var keyword: String
  package var keywordLocation: String
  package var absoluteKeywordLocation: String
  /// From the schema, cut at `expectedBytesMax`.
  package var expected: String
  /// Such as "string of 12 characters"; empty when there is no value.
  package var actual: String

  package static let expectedBytesMax = 200

  /// A fault of the text itself.
  init(fault: String, expected: String, record: Int64, line: Int64, byteOffset: Int64) {
    self.record = record
    self.line = line
    self.byteOffset = byteOffset
    instanceLocation = ""
    keyword = fault
    keywordLocation = ""
    absoluteKeywordLocation = ""
    self.expected = expected
    actual = ""
  }

  init(
    record: Int64, line: Int64, byteOffset: Int64, at instanceLocation: String, keyword: String,
    keywordLocation: String,
    absolute: String, expected: String, actual: String
  ) {
    self.record = record
    self.line = line
    self.byteOffset = byteOffset
    self.instanceLocation = instanceLocation
    self.keyword = keyword
    self.keywordLocation = keywordLocation
    absoluteKeywordLocation = absolute
    self.expected = expected
    self.actual = actual
  }

  /// The rule that counts are kept by: a place of the schema, so there are only so many.
  var rule: String { absoluteKeywordLocation.isEmpty ? keyword : absoluteKeywordLocation }

  /// One line for a person.
  package var text: String {
    let place = record > 0 ? "record \(record), line \(line)" : "line \(line)"
    let value = instanceLocation.isEmpty ? "" : ", \(instanceLocation)"
    let rest = [expected.isEmpty ? "" : "expected \(expected)", actual.isEmpty ? "" : "found \(actual)"]
      .filter { !$0.isEmpty }.joined(separator: ", ")
    return "\(place)\(value): \(keyword)\(rest.isEmpty ? "" : ": \(rest)")"
  }
}

/// What a check found out.
package struct RecordReport: Sendable, Equatable {
  package var records: Int64 = 0
  package var invalidRecords: Int64 = 0
  package var bytes: Int64 = 0
  /// The first ones, in order.
  package var findings: [Finding] = []
  /// Findings by rule, all of them.
  package var countsByRule: [String: Int64] = [:]
  /// The text could not be read to its end, or a limit was reached.
  package var isCutShort = false
  /// What a filter made of the valid records.
  package var filtered: FilterReport?

  package init() {}

  /// Of a file that is wrong as a whole.
  package init(fault: Finding, bytes: Int64) {
    self.bytes = bytes
    isCutShort = true
    add(fault, findingsMax: 1)
  }

  package var isValid: Bool { countsByRule.isEmpty }
  package var findingCount: Int64 { countsByRule.values.reduce(0, +) }

  /// Adds what comes after. `next` counts its records and lines from its own start.
  mutating func append(_ next: RecordReport, lines: Int64, findingsMax: Int) {
    for var finding in next.findings.prefix(max(0, findingsMax - findings.count)) {
      if finding.record > 0 { finding.record += records }
      finding.line += lines
      finding.byteOffset += bytes
      findings.append(finding)
    }
    records += next.records
    invalidRecords += next.invalidRecords
    bytes += next.bytes
    countsByRule.merge(next.countsByRule, uniquingKeysWith: +)
  }

  mutating func add(_ finding: Finding, findingsMax: Int) {
    if findings.count < findingsMax { findings.append(finding) }
    countsByRule[finding.rule, default: 0] += 1
  }
}

/// What went, and why the rest did not.
package struct FilterReport: Sendable, Equatable {
  /// Records of the output; for an aggregate, groups.
  package var kept: Int64 = 0
  /// By reason code.
  package var withheld: [String: Int64] = [:]
  /// The rule that forbids the whole file; "" when one could not be decided.
  package var forbidden: String?

  package init() {}
}
