// What is to happen to records that keep their schema: which go, which of their fields, and in what form. Made from an
// agreement by the gateway; this module knows neither agreements nor consent, only plans and closures.
//
// Fields are an allow-list: what no field names is dropped. A record goes when every `include` holds, no `exclude` does, and
// the gate lets its subject through; a `forbid` that holds, or cannot be decided, refuses the file.

import Foundation

/// A field by its name: in JSON the member names joined by dots, or a JSON pointer; in CSV the column; in XML element names
/// joined by dots or slashes, the last perhaps an attribute (`@id`). Arrays are transparent: a name goes into each element.
package struct FieldPath: Hashable, Sendable {
  package let name: String
  /// From the record's root.
  package let steps: [String]
  package static let stepsMax = 16

  /// - Throws: `SchemaError` when the name means nothing in this format.
  init(_ name: String, in layout: RecordLayout) throws(SchemaError) {
    self.name = name
    switch layout {
    case .csv: steps = [name]
    case .json: steps = name.hasPrefix("/") ? JSONPointer.parse(name) ?? [] : name.components(separatedBy: ".")
    case .xml: steps = name.split(whereSeparator: { $0 == "/" || $0 == "." }).map(String.init)
    }
    guard (1...Self.stepsMax).contains(steps.count), steps.allSatisfy({ !$0.isEmpty }) else {
      throw SchemaError(location: "fields", reason: "\(name) names no field")
    }
  }
}

/// The shapes that field names differ by.
package enum RecordLayout: Sendable { case json, csv, xml }

/// See above. A value; `RecordFilter` compiles it.
package struct RecordPlan: Sendable, Equatable {
  package enum Action: Sendable, Equatable {
    case pass
    /// Named only to say so.
    case drop
    /// `***`; nothing of the value is left.
    case mask
    case constant(String)
    case generalise(Granularity)
    /// 26 characters, the same for the same value under the same key.
    case pseudonymise
  }

  package enum Granularity: String, Sendable, CaseIterable {
    /// `2026`, `2026-11`, `2026-11-22` of an ISO 8601 date or instant.
    case year, month, date
    /// An instant cut to its hour, with its offset; of a number, seconds cut to 3,600.
    case hour
    /// A postcode up to its first space.
    case postcodeOutward = "postcode-outward"
    /// Years in fives: `40-44`.
    case ageBand5 = "age-band-5"
  }

  package struct Field: Sendable, Equatable {
    package let name: String
    package let action: Action
    /// A record without it is withheld.
    package let isRequired: Bool

    package init(name: String, action: Action, isRequired: Bool = false) {
      self.name = name
      self.action = action
      self.isRequired = isRequired
    }
  }

  package struct Forbidden: Sendable, Equatable {
    package let id: String
    package let condition: Condition

    package init(id: String, condition: Condition) {
      self.id = id
      self.condition = condition
    }
  }

  package struct Aggregate: Sendable, Equatable {
    package enum Function: String, Sendable, CaseIterable { case sum, mean, count }
    /// Output fields that make a group, as they are after their action.
    package let by: [String]
    package let measure: String
    package let function: Function
    /// Groups of fewer different `distinct` are withheld.
    package let groupSizeMin: Int
    /// The field whose different values make a group's size.
    package let distinct: String
    /// The output field with that size; nil: it is not told.
    package let distinctAs: String?

    package init(
      by: [String], measure: String, function: Function, groupSizeMin: Int, distinct: String, distinctAs: String?
    ) {
      self.by = by
      self.measure = measure
      self.function = function
      self.groupSizeMin = groupSizeMin
      self.distinct = distinct
      self.distinctAs = distinctAs
    }
  }

  /// A number in the envelope that counts or adds up the records. Only for JSON files.
  package struct Total: Sendable, Equatable {
    package enum Rule: String, Sendable, CaseIterable {
      /// Written anew, after the records.
      case recompute
      /// The file is refused when it is not right for what is left.
      case refuse
      /// As it is.
      case leave
    }
    /// The member, beside the array of records.
    package let member: String
    /// nil: the number of records; else the sum of this field.
    package let field: String?
    package let rule: Rule

    package init(member: String, field: String?, rule: Rule) {
      self.member = member
      self.field = field
      self.rule = rule
    }
  }

  package enum OnInvalid: String, Sendable, CaseIterable {
    /// One record that breaks its schema keeps the file here.
    case refuse
    /// It is left out, and kept for the sender.
    case setAside = "set-aside"
  }

  /// Empty: whole records pass.
  package var fields: [Field]
  /// The field with the subject's id.
  package var subject: String?
  package var include: [Condition]
  package var exclude: [Condition]
  package var forbid: [Forbidden]
  package var aggregate: Aggregate?
  package var totals: [Total]
  package var onInvalid: OnInvalid
  /// Fields whose values go to the sink's `rows` instead of any output.
  package var extracted: [String] = []

  package static let fieldsMax = 1000
  package static let conditionsMax = 100

  package init(
    fields: [Field] = [], subject: String? = nil, include: [Condition] = [], exclude: [Condition] = [],
    forbid: [Forbidden] = [], aggregate: Aggregate? = nil, totals: [Total] = [], onInvalid: OnInvalid = .refuse
  ) {
    self.fields = fields
    self.subject = subject
    self.include = include
    self.exclude = exclude
    self.forbid = forbid
    self.aggregate = aggregate
    self.totals = totals
    self.onInvalid = onInvalid
  }
}

/// Why a record does not go. The closed list of codes that counts are kept by; `record.excluded:` has the condition's field
/// behind it, and the gate adds its own codes.
enum WithheldCode {
  static let excluded = "record.excluded:"
  /// A condition or a subject's id that could not be decided.
  static let error = "record.error"
  static let requiredMissing = "field.required-missing"
  static let invalid = "record.invalid"
  static let groupTooSmall = "group.too-small"
}

/// A keyed pseudonym: 16 bytes.
package struct SubjectDigest: Hashable, Sendable, BitwiseCopyable {
  package var high: UInt64
  package var low: UInt64

  package init(high: UInt64, low: UInt64) {
    self.high = high
    self.low = low
  }

  package static let zero = SubjectDigest(high: 0, low: 0)
}

/// Texts one behind the other: the ids of a batch.
package struct TextList {
  package private(set) var bytes: [UInt8] = []
  /// Where each text ends; it begins where the one before ends.
  package private(set) var ends: [Int] = []
  package var count: Int { ends.count }

  mutating func append(_ text: UnsafeBufferPointer<UInt8>) {
    bytes.append(contentsOf: text)
    ends.append(bytes.count)
  }

  /// Forgets all texts from the `count`-th on.
  mutating func cut(to count: Int) {
    guard count < ends.count else { return }
    bytes.removeSubrange((count == 0 ? 0 : ends[count - 1])...)
    ends.removeSubrange(count...)
  }
}

/// What the caller knows about subjects, asked once a batch. Called by several workers at once.
package struct RecordGate: Sendable {
  /// The ledger's pseudonyms of ids.
  package let subjects: @Sendable (TextList) -> [SubjectDigest]
  /// The recipient's pseudonyms of values: another key.
  package let pseudonyms: @Sendable (TextList) -> [SubjectDigest]
  /// For each subject 0 when its record may go, else 1 + the place of the reason in `reasons`. nil: all go.
  package let withhold: (@Sendable ([SubjectDigest]) -> [UInt8])?
  package let reasons: [String]
  /// Records by their place among those that the plan lets through, from 0; left out. Only with one worker.
  package var dropping: Set<Int64> = []
  /// The code that they are counted by.
  package var droppingCode = ""

  package init(
    subjects: @escaping @Sendable (TextList) -> [SubjectDigest],
    pseudonyms: @escaping @Sendable (TextList) -> [SubjectDigest],
    withhold: (@Sendable ([SubjectDigest]) -> [UInt8])? = nil, reasons: [String] = []
  ) {
    self.subjects = subjects
    self.pseudonyms = pseudonyms
    self.withhold = withhold
    self.reasons = reasons
  }
}

/// The same for who has an id in words.
package enum SubjectName {
  /// nil when it is no id.
  package static func canonical(_ text: String) -> [UInt8]? {
    var output: [UInt8] = []
    return Array(text.utf8).withUnsafeBufferPointer { SubjectID.canonical($0, into: &output) } ? output : nil
  }

  package static func isID(_ text: String) -> Bool { canonical(text) != nil }
}

/// Subject ids as they are told apart: printable ASCII of 1 to 100 bytes, blanks around it cut, lower case as upper case.
enum SubjectID {
  static let bytesMax = 100

  /// False when it is none.
  ///
  /// - Parameter isNumber: its field holds numbers, which may be spelled in many ways: only the plainest is an id.
  static func canonical(
    _ text: UnsafeBufferPointer<UInt8>, isNumber: Bool = false, into output: inout [UInt8]
  ) -> Bool {
    var (start, end) = (0, text.count)
    while start < end, text[start] == 32 { start += 1 }
    while end > start, text[end - 1] == 32 { end -= 1 }
    guard (1...bytesMax).contains(end - start) else { return false }
    output.removeAll(keepingCapacity: true)
    output.append(contentsOf: UnsafeBufferPointer(rebasing: text[start..<end]))
    // What is no number is none of a field of numbers, whose name another field may have.
    if isNumber, output.allSatisfy({ $0 &- 48 <= 9 || [43, 45, 46, 69, 101].contains($0) }) {
      guard output.allSatisfy({ $0 &- 48 <= 9 }), output.count == 1 || output[0] != 48 else { return false }
    }
    return output.withUnsafeMutableBufferPointer { id in
      for place in id.indices {
        guard id[place] &- 32 < 95 else { return false }
        if id[place] &- 97 < 26 { id[place] -= 32 }
      }
      return true
    }
  }
}
