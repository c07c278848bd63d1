// Records as reports, and files as their input.

import Foundation
import NIOConcurrencyHelpers
import Policies
import Records
import Sealing
import Store

extension File {
  /// The whole file as the input of a check; it must stay open until that is over.
  var input: RecordInput {
    let access = access
    let offset = NIOLockedValueBox(0)
    return { buffer in
      let got = try access.read(into: [buffer], at: Int64(offset.withLockedValue { $0 }))
      offset.withLockedValue { $0 += got }
      return got
    }
  }

  /// What is wrong with a payload that nobody looks into; nil when nothing is.
  func opaqueReport(mediaType: String, bytes: Int64) throws -> RecordReport? {
    let access = access
    let check = OpaqueCheck(mediaType: mediaType, bytes: bytes) { try access.read(into: [$0], at: $1) }
    return try check.fault().map { RecordReport(fault: $0, bytes: bytes) }
  }
}

extension Finding {
  /// A unit of the "basic" output of JSON Schema 2020-12 core §12.4.2, with where its record stands.
  package var document: JSON {
    [
      "valid": false, "record": .integer(record), "line": .integer(line), "byteOffset": .integer(byteOffset),
      "instanceLocation": .string(instanceLocation), "keyword": .string(keyword),
      "keywordLocation": .string(keywordLocation),
      "absoluteKeywordLocation": .string(absoluteKeywordLocation), "expected": .string(expected),
      "actual": .string(actual),
      "error": .string(text),
    ]
  }
}

extension RecordReport {
  /// What the pass came to, for the decision on the whole file; nil when its findings refuse the file under `agreement`. A
  /// rule that forbids the file comes before any finding.
  func counts(under agreement: Agreement) -> RecordCounts? {
    let kept = filtered ?? FilterReport()
    guard kept.forbidden != nil || (!isCutShort && (isValid || agreement.records?.onInvalid == .setAside)) else {
      return nil
    }
    return RecordCounts(read: records, kept: kept.kept, withheld: kept.withheld, forbidden: kept.forbidden)
  }

  /// The report without its findings.
  package var summary: JSON {
    var members: [String: JSON] = [
      "valid": .bool(isValid), "records": .integer(records), "invalidRecords": .integer(invalidRecords),
      "bytes": .integer(bytes),
      "findings": .integer(findingCount), "countsByRule": .object(countsByRule.mapValues { .integer($0) }),
    ]
    members["kept"] = filtered.map { .integer($0.kept) }
    members["withheld"] = filtered.map { .object($0.withheld.mapValues { .integer($0) }) }
    return .object(members)
  }

  /// One sentence for a person.
  package var sentence: String {
    if records == 0, let first = findings.first, isCutShort { return "expected \(first.expected) (\(first.keyword))" }
    return isValid
      ? "\(records) records, all valid"
      : "\(invalidRecords) of \(records) records invalid, \(findingCount) findings"
  }
}
