// Check: the records of a payload against the schema of its agreement, on the way out and again on the way in.

import Foundation
import NIOConcurrencyHelpers
import Records
import Sealing
import Store

enum PayloadCheck {
  /// Reads the whole of an open file. Blocks.
  ///
  /// - Throws: DiskError.
  static func run(_ file: borrowing File, _ format: RecordFormat, workers: Int) throws -> RecordReport {
    let (descriptor, path) = (file.descriptor, file.path)
    let offset = NIOLockedValueBox(0)
    return try RecordCheck(format, workers: workers).run { buffer in
      let got = try File.read(descriptor, path, into: buffer, at: Int64(offset.withLockedValue { $0 }))
      offset.withLockedValue { $0 += got }
      return got
    }
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
  /// The report without its findings.
  package var summary: JSON {
    [
      "valid": .bool(isValid), "records": .integer(records), "invalidRecords": .integer(invalidRecords),
      "bytes": .integer(bytes),
      "findings": .integer(findingCount), "countsByRule": .object(countsByRule.mapValues { .integer($0) }),
    ]
  }

  /// One sentence for a person.
  package var sentence: String {
    isValid
      ? "\(records) records, all valid"
      : "\(invalidRecords) of \(records) records invalid, \(findingCount) findings"
  }
}
