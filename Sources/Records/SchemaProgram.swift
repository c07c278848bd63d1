// A JSON Schema compiled to flat tables. The evaluator follows indexes into them; nothing is looked up by name but members.
//
// Everything here is plain data without references: a class in the hot loop costs three times its work (exclusivity checks
// and counting; measured).

/// One schema. Absent parts are -1.
struct SchemaRule {
  /// Bits by `JSONKind`, bit 7 for integer; all ones: any type.
  var types: UInt8 = .max
  /// Nothing but `types` is to be looked at.
  var isPlain = true
  /// `false` as a schema.
  var isNever = false
  var hasUnevaluated = false
  var object: Int32 = -1
  var array: Int32 = -1
  var string: Int32 = -1
  var number: Int32 = -1
  var logic: Int32 = -1
  /// The enclosing resource, for `$dynamicRef`.
  var resource: Int32 = 0

  static let integerBit: UInt8 = 128
  @inline(__always) static func bit(_ kind: UInt32) -> UInt8 { 1 &<< UInt8(truncatingIfNeeded: kind) }
}

/// A range in a side table.
struct TableRange {
  var start: Int32 = 0
  var count: Int32 = 0
  var indices: Range<Int> { Int(start)..<Int(start + count) }
}

struct ObjectRule {
  var membersMin: UInt32 = 0
  var membersMax: UInt32 = .max
  var properties = TableRange()
  /// Slots of the hash table over the properties: `slotMask + 1` of them from `slots` on.
  var slots: Int32 = 0
  var slotMask: Int32 = -1
  var requiredCount: Int32 = 0
  /// (pattern, schema) pairs.
  var patterns = TableRange()
  var additional: Int32 = -1
  var propertyNames: Int32 = -1
  /// (trigger, names…) in `dependents`.
  var dependentRequired = TableRange()
  /// (property, schema) pairs.
  var dependentSchemas = TableRange()
  var unevaluated: Int32 = -1
}

struct PropertyRule {
  var word: UInt64
  /// The unescaped key in `keys`.
  var keyStart: Int32
  var keyCount: Int32
  /// -1: only required.
  var schema: Int32
  var isRequired: Bool
}

struct ArrayRule {
  var itemsMin: UInt32 = 0
  var itemsMax: UInt32 = .max
  /// Schemas of the first items, in `lists`.
  var prefix = TableRange()
  /// Of all items after the prefix.
  var items: Int32 = -1
  var contains: Int32 = -1
  var containsMin: UInt32 = 1
  var containsMax: UInt32 = .max
  /// 2020-12: what `contains` accepts counts as evaluated.
  var containsMarks = true
  var isUnique = false
  var unevaluated: Int32 = -1
}

struct StringRule {
  var scalarsMin: UInt32 = 0
  var scalarsMax: UInt32 = .max
  var pattern: Int32 = -1
  var format: Int32 = -1
}

/// Indexes into `numbers`.
struct NumberRule {
  var minimum: Int32 = -1
  var maximum: Int32 = -1
  var exclusiveMinimum: Int32 = -1
  var exclusiveMaximum: Int32 = -1
  var multipleOf: Int32 = -1
}

struct LogicRule {
  var ref: Int32 = -1
  /// Index into `dynamicNames`, with what it means where no outer resource says otherwise.
  var dynamicName: Int32 = -1
  var dynamicDefault: Int32 = -1
  var allOf = TableRange()
  var anyOf = TableRange()
  var oneOf = TableRange()
  var not: Int32 = -1
  var condition: Int32 = -1
  var then: Int32 = -1
  var otherwise: Int32 = -1
  /// In `constants`; `const` is an enum of one.
  var constants = TableRange()
  var hasConstants = false
  var isConst = false

  /// Nothing but a `$ref`.
  var isReference: Bool { ref >= 0 && !hasConstants && !hasOthers }
  /// Nothing but constants.
  var isConstants: Bool { hasConstants && ref < 0 && !hasOthers }

  private var hasOthers: Bool {
    max(dynamicDefault, not, condition, then, otherwise) >= 0 || allOf.count + anyOf.count + oneOf.count > 0
  }
}

/// Immutable once compiled; shared by all threads.
package final class SchemaProgram: @unchecked Sendable {
  // Proof for @unchecked: every stored property is a constant after `init`, and what the pointers name is never written again.
  //
  // The hot tables are raw: no counting and no exclusivity checks on the way. All of them hold plain data.
  let rules: UnsafePointer<SchemaRule>
  let objects: UnsafePointer<ObjectRule>
  let properties: UnsafePointer<PropertyRule>
  let propertyCount: Int
  let slots: UnsafePointer<Int32>
  let keys: UnsafePointer<UInt8>
  let arrays: UnsafePointer<ArrayRule>
  let strings: UnsafePointer<StringRule>
  let numberRules: UnsafePointer<NumberRule>
  let logic: UnsafePointer<LogicRule>
  /// By schema. What leads to another has that one's.
  let quick: UnsafeMutablePointer<QuickRule>
  private let ruleCount: Int
  let pairs: [(Int32, Int32)]
  let lists: [Int32]
  let numbers: [ExactNumber]
  let patterns: [Pattern]
  let formats: [Format]
  let constants: [JSONElement]
  /// Unescaped content of constants that are strings, else nil.
  let constantStrings: [[UInt8]?]
  /// `dependentRequired`: the trigger, then the names it asks for.
  let dependents: [[[UInt8]]]
  /// For each dynamic name: resource → schema.
  let dynamicTargets: [[Int32: Int32]]
  /// Absolute location of each schema, for findings.
  let locations: [String]
  /// The schema as an element, for what a finding expects.
  let sources: [JSONElement]
  let root: Int32
  /// All member names of the schema: only these may appear in a finding.
  let knownNames: Set<String>
  var tracksScope: Bool { !dynamicTargets.isEmpty }

  init(_ builder: SchemaCompiler, root: Int32) {
    rules = rawTable(builder.rules)
    objects = rawTable(builder.objects)
    properties = rawTable(builder.properties)
    propertyCount = builder.properties.count
    slots = rawTable(builder.slots)
    keys = rawTable(builder.keys)
    arrays = rawTable(builder.arrays)
    strings = rawTable(builder.strings)
    numberRules = rawTable(builder.numberRules)
    logic = rawTable(builder.logic)
    pairs = builder.pairs
    lists = builder.lists
    numbers = builder.numbers
    patterns = builder.patterns
    formats = builder.formats
    constants = builder.constants
    constantStrings = builder.constants.map(\.stringBytes)
    dependents = builder.dependents
    dynamicTargets = builder.dynamicTargets
    locations = builder.locations
    sources = builder.sources
    knownNames = builder.knownNames
    self.root = root
    ruleCount = builder.rules.count
    quick = .allocate(capacity: ruleCount)
    quick.initialize(repeating: QuickRule(), count: ruleCount)
    for place in 0..<ruleCount where ownsQuick(place) { quick[place] = QuickRule(Int32(place), self) }
    for place in 0..<ruleCount where !ownsQuick(place) {
      if let target = QuickRule.meant(Int32(place), self) { quick[place] = quick[Int(target)] }
    }
  }

  private func ownsQuick(_ place: Int) -> Bool { QuickRule.meant(Int32(place), self) == Int32(place) }

  deinit {
    for place in 0..<ruleCount where ownsQuick(place) { quick[place].deallocate() }
    quick.deallocate()
    rules.deallocate()
    objects.deallocate()
    properties.deallocate()
    slots.deallocate()
    keys.deallocate()
    arrays.deallocate()
    strings.deallocate()
    numberRules.deallocate()
    logic.deallocate()
  }
}
