import Foundation
import NIOConcurrencyHelpers
import TestSupport
import Testing

@testable import Records

/// A filter over one text, and all that came out of it.
private struct Filtered {
  var report: RecordReport
  var text: String
  var subjects: [SubjectDigest]
  var setAside: String
  var derived: RecordFormat
}

/// A digest that tests can foresee: the text's own bytes.
private func digest(_ text: [UInt8]) -> SubjectDigest {
  SubjectDigest(high: UInt64(text.count), low: text.reduce(UInt64(7)) { $0 &* 31 &+ UInt64($1) })
}

private func digests(_ list: TextList) -> [SubjectDigest] {
  var start = 0
  return list.ends.map { end in
    defer { start = end }
    return digest(Array(list.bytes[start..<end]))
  }
}

private let gate = RecordGate(subjects: digests, pseudonyms: digests)

private func gate(withholding: Set<SubjectDigest>) -> RecordGate {
  RecordGate(
    subjects: digests, pseudonyms: digests, withhold: { $0.map { withholding.contains($0) ? 1 : 0 } },
    reasons: ["consent.withdrawn"])
}

private enum Language {
  case ndjson
  case json(String)
  case csv
  case xml(String)

  func compile(_ schema: [UInt8]) throws -> RecordFormat {
    switch self {
    case .ndjson: .ndjson(try SchemaProgram.compile(schema))
    case .json(let pointer): .json(try SchemaProgram.compile(schema), pointer: pointer)
    case .csv: .csv(try TableSchema(schema), CSVDialect())
    case .xml(let path): .xml(try XMLSchema(schema, recordPath: path))
    }
  }
}

private func filter(
  _ language: Language, _ schema: String, _ plan: RecordPlan, _ text: String, gate: RecordGate = gate, workers: Int = 1,
  now: Date = Date(timeIntervalSince1970: 1_790_000_000)
) throws -> Filtered {
  let bytes = Array(schema.utf8)
  let format = try language.compile(bytes)
  let filter = try RecordFilter(plan, format, schema: bytes)
  let output = NIOLockedValueBox(
    Filtered(
      report: RecordReport(), text: "", subjects: [], setAside: "", derived: try language.compile(filter.derivedSchema))
  )
  let collected = NIOLockedValueBox<[UInt8]>([])
  let report = try RecordCheck(format, workers: workers).run(
    input(Array(text.utf8)), through: filter, gate, now: now,
    to: RecordSink(
      write: { piece in collected.withLockedValue { $0 += Array(piece.bytes) } },
      subjects: { found in output.withLockedValue { $0.subjects += found } },
      setAside: { bytes in output.withLockedValue { $0.setAside += String(decoding: bytes, as: UTF8.self) } }))
  return output.withLockedValue {
    $0.report = report
    $0.text = String(decoding: collected.withLockedValue { $0 }, as: UTF8.self)
    return $0
  }
}

private let visit = """
  {"type":"object","required":["id","name","visit"],"additionalProperties":false,"properties":{
   "id":{"type":"string"},"name":{"type":"string"},"born":{"type":"string","format":"date"},"flag":{"type":"boolean"},
   "age":{"type":["integer","null"]},"tags":{"type":"array","items":{"type":"string"}},
   "visit":{"$ref":"#/$defs/visit"}},
   "$defs":{"visit":{"type":"object","required":["at"],"properties":{"at":{"type":"string"},"ward":{"type":"string"},
     "notes":{"type":"array","items":{"type":"object","properties":{"by":{"type":"string"},"text":{"type":"string"}}}}}}}}
  """

private func plan(
  _ fields: [(String, RecordPlan.Action)], subject: String? = nil, include: [Condition] = [], exclude: [Condition] = [],
  forbid: [RecordPlan.Forbidden] = [], required: Set<String> = []
) -> RecordPlan {
  RecordPlan(
    fields: fields.map { .init(name: $0.0, action: $0.1, isRequired: required.contains($0.0)) }, subject: subject,
    include: include, exclude: exclude, forbid: forbid)
}

@Suite struct RecordFilterTests {
  @Test func onlyNamedFieldsGoAndTheyGoAsTheyAreSpelled() throws {
    let text = #"""
      {"id":"1", "name":"A\u006en", "age": 1.50e1 ,"visit":{"at":"x","ward":"W","notes":[{"by":"b","text":"t"},{"by":"c"}]}}
      {"visit":{"ward":"W","at":"y"},"name":"\u0042","\u0069d":"2","tags":["a" , "b"],"age":null}

      """#
    let result = try filter(
      .ndjson, visit,
      plan([("id", .pass), ("age", .pass), ("visit.at", .pass), ("visit.notes.by", .pass), ("tags", .pass)]), text)
    #expect(
      result.text == #"""
        {"id":"1","age": 1.50e1 ,"visit":{"at":"x","notes":[{"by":"b"},{"by":"c"}]}}
        {"visit":{"at":"y"},"id":"2","tags":["a" , "b"],"age":null}

        """#)
    #expect(result.report.filtered?.kept == 2 && result.report.isValid)
    #expect(try RecordCheck(result.derived, workers: 1).run(input(Array(result.text.utf8))).isValid)
  }

  @Test func valuesAreTransformed() throws {
    let text = #"""
      {"id":"1","name":"Ann","born":"1980-04-03","age":42,"tags":["x","y"],"visit":{"at":"2026-01-02T10:59:59.5+01:00","ward":"AB1 2CD"}}

      """#
    let result = try filter(
      .ndjson, visit.replacing(#""age":{"type":["integer","null"]}"#, with: #""age":{"type":"integer"}"#),
      plan([
        ("id", .pseudonymise), ("name", .mask), ("born", .generalise(.year)), ("age", .generalise(.ageBand5)),
        ("visit.at", .generalise(.hour)), ("visit.ward", .generalise(.postcodeOutward)), ("tags", .constant("q\"")),
      ]), text)
    var pseudonym = [UInt8](repeating: 0, count: 26)
    pseudonym.withUnsafeMutableBufferPointer { Transform.write(digest(Array("1".utf8)), at: $0.baseAddress!) }
    #expect(
      result.text == #"""
        {"id":"\#(String(decoding: pseudonym, as: UTF8.self))","name":"***","born":"1980","age":"40-44","tags":["q\"","q\""],"visit":{"at":"2026-01-02T10:00:00+01:00","ward":"AB1"}}

        """#)
    #expect(try RecordCheck(result.derived, workers: 1).run(input(Array(result.text.utf8))).isValid)
  }

  @Test func recordsAreChosenAndTheRestIsCounted() throws {
    func record(_ id: String, _ rest: String) -> String {
      #"{"id":"\#(id)","name":"n","visit":{"at":"x"}\#(rest)}"# + "\n"
    }
    let text =
      record("a", #","age":5"#) + record("b", #","age":50,"tags":["secret","x"]"#) + record("c", #","age":50"#)
      + record("d", "") + record("e", #","age":50,"born":"2026-09-20""#)
      + record("f f", #","age":50,"born":"2020-01-01""#)
    let fields: [(String, RecordPlan.Action)] = [("id", .pass), ("born", .pass)]
    let result = try filter(
      .ndjson, visit,
      plan(
        fields, subject: "id", include: [Condition(field: "age", .ge, [.integer(18)])],
        exclude: [Condition(field: "tags", .hasAny, [.text("secret")])]), text,
      gate: gate(withholding: [digest(Array("C".utf8))]))
    #expect(
      result.report.filtered?.withheld == [
        "record.excluded:age": 1, "record.excluded:tags": 1, "record.error": 1, "consent.withdrawn": 1,
      ])
    #expect(result.text == "{\"id\":\"e\",\"born\":\"2026-09-20\"}\n{\"id\":\"f f\",\"born\":\"2020-01-01\"}\n")
    #expect(result.subjects == [digest(Array("E".utf8)), digest(Array("F F".utf8))])
    let recent = try filter(
      .ndjson, visit,
      plan(
        fields, include: [Condition(field: "born", .within, [.span(CalendarSpan(months: 24, days: 0, seconds: 0))])],
        required: ["born"]),
      text)
    #expect(recent.report.filtered?.withheld == ["record.excluded:born": 1, "record.error": 4])
    let required = try filter(.ndjson, visit, plan(fields, required: ["born"]), text)
    #expect(required.report.filtered?.withheld == ["field.required-missing": 4])
  }

  @Test func aForbiddenRecordKeepsTheFileHereAndSoDoesOneThatCannotBeJudged() throws {
    let rule = RecordPlan.Forbidden(id: "no-coroner", condition: try Condition(field: "flag", .eq, [.bool(true)]))
    func run(_ flag: String) throws -> String? {
      try filter(
        .ndjson, visit, plan([("id", .pass)], forbid: [rule]), #"{"id":"1","name":"n","visit":{"at":"x"}\#(flag)}"#
      ).report.filtered?.forbidden
    }
    #expect(try run(#","flag":true"#) == "no-coroner")
    #expect(try run(#","flag":false"#) == nil)
    #expect(try run("") == "")
  }

  /// Ways to carry a subject or a field past a filter.
  @Test func aSubjectIsExactlyOneId() throws {
    for (record, isKept) in [
      (#"{"id":"1","name":"n","visit":{"at":"x"}}"#, false), (#"{"id":" 1 ","name":"n","visit":{"at":"x"}}"#, false),
      (#"{"\u0069d":"\u0031","name":"n","visit":{"at":"x"}}"#, false),
      (#"{"id":"","name":"n","visit":{"at":"x"}}"#, false), (#"{"id":"1\u0000","name":"n","visit":{"at":"x"}}"#, false),
      (#"{"id":"\uff11","name":"n","visit":{"at":"x"}}"#, false), (#"{"id":"2","name":"n","visit":{"at":"x"}}"#, true),
    ] {
      let result = try filter(
        .ndjson, visit, plan([("id", .pass)], subject: "id"), record, gate: gate(withholding: [digest(Array("1".utf8))])
      )
      #expect((result.report.filtered?.kept == 1) == isKept, "\(record)")
      #expect(result.text.isEmpty != isKept)
    }
  }

  @Test(arguments: [
    (#"{"type":"object","properties":{"a":{"anyOf":[{"type":"object"}]}}}"#, "a.b"),
    (#"{"type":"object","properties":{"a":{"type":"object"}}}"#, "a.b"),
    (#"{"type":"object","properties":{"a":{"type":["object","string"],"properties":{"b":{}}}}}"#, "a.b"),
    (#"{"type":"object","minProperties":2,"properties":{"a":{}}}"#, "a"),
    (#"{"type":"object","if":{},"then":{},"properties":{"a":{}}}"#, "a"),
    (#"{"properties":{"a":{}}}"#, "a"), (#"{"type":"object","properties":{"a":{}}}"#, "b"),
  ])
  func aSchemaThatCouldBreakWhenFieldsAreLeftOutIsRefused(schema: String, field: String) throws {
    #expect(throws: SchemaError.self) {
      try RecordFilter(
        plan([(field, .pass)]), .ndjson(SchemaProgram.compile(Array(schema.utf8))), schema: Array(schema.utf8))
    }
  }

  @Test func groupsBelowTheMinimumAreWithheld() throws {
    let schema = """
      {"type":"object","properties":{"street":{"type":"string"},"t":{"type":"integer"},"v":{"type":"number"},"icp":{"type":"string"}}}
      """
    var text = ""
    for meter in 0..<5 {
      for second in [0, 1800] {
        text += #"{"street":"Long, \"1\"","t":\#(3600 + second),"v":0.1,"icp":"m\#(meter)"}"# + "\n"
      }
    }
    text += #"{"street":"Short","t":0,"v":7,"icp":"m9"}"# + "\n"
    var plan = plan([("street", .pass), ("t", .generalise(.hour)), ("v", .pass), ("meters", .pass)], subject: "icp")
    plan.aggregate = .init(
      by: ["street", "t"], measure: "v", function: .sum, groupSizeMin: 5, distinct: "icp", distinctAs: "meters")
    let result = try filter(.ndjson, schema, plan, text, workers: 2)
    #expect(result.text == #"{"street":"Long, \"1\"","t":3600,"v":1,"meters":5}"# + "\n")
    #expect(result.report.filtered?.withheld == ["group.too-small": 1] && result.report.filtered?.kept == 1)
    #expect(try RecordCheck(result.derived, workers: 1).run(input(Array(result.text.utf8))).isValid)
    plan.aggregate = .init(
      by: ["street"], measure: "v", function: .mean, groupSizeMin: 1, distinct: "icp", distinctAs: nil)
    #expect(
      try filter(.json(""), schema, plan, "[" + text.split(separator: "\n").joined(separator: ",") + "]").text
        == "[\n{\"street\":\"Long, \\\"1\\\"\",\"v\":0.1},\n{\"street\":\"Short\",\"v\":7}\n]\n")
  }

  @Test func onePersonSpelledInSeveralWaysIsOnePersonOfAGroup() throws {
    let schema =
      #"{"type":"object","properties":{"s":{"type":"string"},"v":{"type":"number"},"id":{"type":["string","integer"]}}}"#
    var plan = plan([("s", .pass), ("v", .pass)])
    plan.aggregate = .init(by: ["s"], measure: "v", function: .sum, groupSizeMin: 2, distinct: "id", distinctAs: nil)
    for ids in [[#""ab1""#, #""AB1""#, #"" ab1""#], [#""1""#, "1"], [#""\u0041""#, #""a""#]] {
      let text = ids.map { #"{"s":"x","v":1,"id":\#($0)}"# }.joined(separator: "\n")
      #expect(try filter(.ndjson, schema, plan, text).report.filtered?.kept == 0, "\(ids)")
    }
    // Two spellings of one group's name are one group.
    let text = #"{"s":"x","v":1,"id":"1"}"# + "\n" + #"{"s":"\u0078","v":1,"id":"2"}"#
    #expect(try filter(.ndjson, schema, plan, text).text == "{\"s\":\"x\",\"v\":2}\n")
  }

  @Test func sumsThatHaveNoRoomRefuseTheFile() throws {
    let schema = #"{"type":"object","properties":{"s":{"type":"string"},"v":{"type":"number"},"id":{"type":"string"}}}"#
    var plan = plan([("s", .pass), ("v", .pass)])
    let large = "999999999999999999.999999999999999999"
    for function in RecordPlan.Aggregate.Function.allCases {
      plan.aggregate = .init(
        by: ["s"], measure: "v", function: function, groupSizeMin: 1, distinct: "id", distinctAs: nil)
      let text = (0..<400).map { #"{"s":"x","v":\#(large),"id":"\#($0)"}"# }.joined(separator: "\n")
      let result = try filter(.ndjson, schema, plan, text)
      #expect(result.report.findings.map(\.keyword) == (function == .count ? [] : ["group.limit"]))
    }
    plan.aggregate = .init(by: ["s"], measure: "v", function: .mean, groupSizeMin: 1, distinct: "id", distinctAs: nil)
    #expect(
      try filter(.ndjson, schema, plan, #"{"s":"x","v":\#(large),"id":"1"}"#).text.hasPrefix(
        "{\"s\":\"x\",\"v\":99999999"))
  }

  @Test func anIncludeWithHasAnyWantsOneOfTheValues() throws {
    let text =
      #"{"id":"1","name":"n","visit":{"at":"x"},"tags":["a","b"]}"# + "\n"
      + #"{"id":"2","name":"n","visit":{"at":"x"},"tags":["c"]}"#
    let result = try filter(
      .ndjson, visit, plan([("id", .pass)], include: [Condition(field: "tags", .hasAny, [.text("a")])]), text)
    #expect(result.text == "{\"id\":\"1\"}\n")
  }

  @Test func totalsAreRecomputedLeftOrRefuse() throws {
    let schema = #"{"type":"object","properties":{"id":{"type":"string"},"sum":{"type":"number"}}}"#
    let text =
      #"{"n":3,"x":"private","out":{"count":3,"rows":[{"id":"1","sum":0.1},{"id":"2","sum":5},{"id":"3","sum":0.20}],"total":5.3}}"#
    func run(_ rule: RecordPlan.Total.Rule) throws -> Filtered {
      var plan = plan([("id", .pass), ("sum", .pass)], exclude: [try Condition(field: "id", .eq, [.text("2")])])
      plan.totals = [.init(member: "count", field: nil, rule: rule), .init(member: "total", field: "sum", rule: rule)]
      return try filter(.json("/out/rows"), schema, plan, text)
    }
    #expect(
      try run(.recompute).text == """
        {"out":{"rows":[
        {"id":"1","sum":0.1},
        {"id":"3","sum":0.20}
        ],"count":2,"total":0.3}}

        """)
    #expect(try run(.leave).text.contains(#","count":3,"total":5.3}}"#))
    #expect(try run(.refuse).report.findings.map(\.keyword) == ["totals.mismatch"])
  }

  @Test func invalidRecordsAreSetAsideWhereThePlanSaysSo() throws {
    var plan = plan([("id", .pass)])
    let text =
      "{\"id\":\"1\",\"name\":\"n\",\"visit\":{\"at\":\"x\"}}\n{\"id\":7}\nbroken\n{\"id\":\"2\",\"name\":\"n\",\"visit\":{\"at\":\"x\"}}\n"
    plan.onInvalid = .setAside
    let result = try filter(.ndjson, visit, plan, text)
    #expect(result.text == "{\"id\":\"1\"}\n{\"id\":\"2\"}\n" && result.setAside == "{\"id\":7}\nbroken\n")
    #expect(result.report.filtered?.withheld == ["record.invalid": 2] && !result.report.isCutShort)
    plan.onInvalid = .refuse
    #expect(try !filter(.ndjson, visit, plan, text).report.isValid)
  }
}

@Suite struct CSVFilterTests {
  private let schema = """
    {"fields":[{"name":"id","type":"string","constraints":{"required":true,"unique":true}},{"name":"name"},
    {"name":"born","type":"date"},{"name":"n","type":"integer"},{"name":"note"}],"primaryKey":"id"}
    """

  @Test func columnsAreKeptAsTheyAreSpelledUnderANewHeader() throws {
    let text = "\u{FEFF}id,name,born,n,note\r\n1,\"A, \"\"B\"\"\",1980-04-03,5,x\r\n2,,,,\"two\r\nlines\"\r\n"
    let result = try filter(
      .csv, schema, plan([("id", .pass), ("name", .pass), ("born", .generalise(.month)), ("note", .mask)]), text)
    #expect(result.text == "id,name,born,note\n1,\"A, \"\"B\"\"\",1980-04,***\n2,,,***\n")
    #expect(try RecordCheck(result.derived, workers: 1).run(input(Array(result.text.utf8))).isValid)
  }

  @Test func aMissingValueIsNobody() throws {
    let text = "id,name,born,n,note\nNA,x,,,\nb,x,,,\n"
    let marked = schema.replacing("\"primaryKey\":\"id\"", with: "\"missingValues\":[\"\",\"NA\"]").replacing(
      "\"required\":true,", with: "")
    let result = try filter(.csv, marked, plan([("id", .pass)], subject: "id"), text)
    #expect(result.text == "id\nb\n" && result.report.filtered?.withheld == ["record.error": 1])
  }

  @Test func rowsAreChosenByColumn() throws {
    let text = "id,name,born,n,note\na,x,1980-04-03,5,\nb,x,,50,\nc,y,2001-01-01,007,\n"
    let result = try filter(
      .csv, schema,
      plan(
        [("id", .pass)], subject: "id", include: [Condition(field: "n", .lt, [.integer(10)])],
        exclude: [Condition(field: "name", .eq, [.text("z")])]), text,
      gate: gate(withholding: [digest(Array("C".utf8))]))
    #expect(result.text == "id\na\n")
    #expect(result.report.filtered?.withheld == ["record.excluded:n": 1, "consent.withdrawn": 1])
  }
}

/// What is one value to the schema must not be two to the filter, nor another.
@Suite struct SpellingTests {
  private let table = #"{"fields":[{"name":"id","type":"integer"},{"name":"st","type":"string"}]}"#
  private func fields(_ names: String...) -> [RecordPlan.Field] { names.map { .init(name: $0, action: .pass) } }

  @Test func aNumberIsAnIdInOneSpelling() throws {
    let plan = RecordPlan(fields: fields("id", "st"), subject: "id")
    let csv = try filter(.csv, table, plan, "id,st\n7,a\n07,b\n+7,c\n0,d\n-0,e\n")
    #expect(csv.text == "id,st\n7,a\n0,d\n" && csv.report.filtered?.withheld == ["record.error": 3])
    let xsd = """
      <xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema"><xs:element name="vs"><xs:complexType><xs:sequence>
      <xs:element name="v" maxOccurs="unbounded"><xs:complexType><xs:sequence><xs:element name="id" type="N"/>
      </xs:sequence></xs:complexType></xs:element></xs:sequence></xs:complexType></xs:element>
      <xs:simpleType name="N"><xs:restriction base="xs:int"/></xs:simpleType></xs:schema>
      """
    let xml = try filter(
      .xml("/vs/v"), xsd, RecordPlan(fields: fields("id"), subject: "id"),
      "<vs><v><id>7</id></v><v><id>07</id></v><v><id>+7</id></v></vs>")
    #expect(xml.report.filtered?.kept == 1 && xml.report.filtered?.withheld == ["record.error": 2], "\(xml.text)")
    let json = try filter(
      .ndjson, #"{"type":"object","properties":{"id":{"type":"integer"}},"additionalProperties":false}"#,
      RecordPlan(fields: fields("id"), subject: "id"), "{\"id\":0}\n{\"id\":-0}\n")
    #expect(json.report.filtered?.kept == 1)
  }

  @Test func aGroupIsNotFilledByOnePersonInManySpellings() throws {
    let aggregate = RecordPlan.Aggregate(
      by: ["st"], measure: "id", function: .count, groupSizeMin: 2, distinct: "id", distinctAs: nil)
    let plan = RecordPlan(fields: fields("st", "id"), aggregate: aggregate)
    let groups = try filter(.csv, table, plan, "id,st\n7,a\n07,a\n+7,a\n8,b\n9,b\n")
    #expect(!groups.text.contains("a,") && groups.text.contains("b,2"), "\(groups.text)")
  }

  @Test func numbersWithCharactersOfTheirOwnAreNeitherComparedNorAddedUp() throws {
    for spelled in [#""type":"integer","groupChar":".""#, #""type":"number","decimalChar":",""#] {
      let schema = "{\"fields\":[{\"name\":\"id\",\"type\":\"string\"},{\"name\":\"n\",\(spelled)}]}"
      let plan = try RecordPlan(fields: fields("id", "n"), exclude: [Condition(field: "n", .gt, [.integer(1000)])])
      #expect(throws: SchemaError.self) { try filter(.csv, schema, plan, "id,n\n") }
      #expect(throws: Never.self) { try filter(.csv, schema, RecordPlan(fields: fields("id", "n")), "id,n\n") }
    }
  }

  @Test func blanksThatTheSchemaPassesOverHideNothing() throws {
    let xsd = """
      <xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema"><xs:element name="vs"><xs:complexType><xs:sequence>
      <xs:element name="v" maxOccurs="unbounded"><xs:complexType><xs:sequence><xs:element name="st" type="xs:token"/>
      </xs:sequence><xs:attribute name="s" type="xs:token"/></xs:complexType></xs:element></xs:sequence></xs:complexType>
      </xs:element></xs:schema>
      """
    let plan = try RecordPlan(
      fields: fields("st", "@s"),
      exclude: ["st", "@s"].map { try Condition(field: $0, .eq, [.text("do not")]) })
    let out = try filter(
      .xml("/vs/v"), xsd, plan,
      "<vs><v s=' do not'><st>a</st></v><v s='a'><st>do  not</st></v><v s='a'><st>\n do\tnot </st></v><v s='a'><st> b </st></v></vs>"
    )
    #expect(out.report.filtered?.kept == 1 && out.text.contains("<st> b </st>"), "\(out.text)")
  }

  /// What a schema judges a value by goes by its namespace, whatever its prefix; what only looks like it does not.
  @Test func attributesOfTheInstanceNamespaceGoByTheirNamespace() throws {
    func xsd(_ more: String) -> String {
      """
      <xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema" \(more)><xs:element name="vs"><xs:complexType><xs:sequence>
      <xs:element name="v" maxOccurs="unbounded"><xs:complexType><xs:sequence>
      <xs:element name="st" type="xs:string" nillable="true"/></xs:sequence><xs:attribute name="type" type="xs:string"/>
      </xs:complexType></xs:element></xs:sequence></xs:complexType></xs:element></xs:schema>
      """
    }
    let nothing = try filter(
      .xml("/vs/v"), xsd(""), RecordPlan(fields: fields("st")),
      "<vs xmlns:i='http://www.w3.org/2001/XMLSchema-instance'><v><st i:nil='true'/></v></vs>")
    #expect(nothing.text.contains("i:nil=\"true\""), "\(nothing.text)")
    let looks = try filter(
      .xml("/vs/v"),
      xsd(#"targetNamespace="urn:v" elementFormDefault="qualified" attributeFormDefault="qualified""#),
      RecordPlan(fields: fields("st")), "<vs xmlns='urn:v' xmlns:xsi='urn:v'><v xsi:type='SECRET'><st>a</st></v></vs>")
    #expect(
      looks.report.isValid && !looks.text.contains("SECRET") && looks.text.contains("<st>a</st>"), "\(looks.text)")
  }

  @Test func aKeyThatComesTwiceRefusesTheFileHoweverMuchElseIsWrong() throws {
    let schema = #"{"fields":[{"name":"id","type":"string"},{"name":"n","type":"integer"}],"primaryKey":"id"}"#
    let broken = (0..<120).map { "B\($0),x\n" }.joined()
    let plan = RecordPlan(fields: fields("id", "n"), onInvalid: .setAside)
    #expect(try filter(.csv, schema, plan, "id,n\n\(broken)K1,1\nK2,3\n").text == "id,n\nK1,1\nK2,3\n")
    #expect(try !filter(.csv, schema, plan, "id,n\n\(broken)K1,1\nK1,2\n").text.contains("K1"))
  }

  @Test func totalsHaveNoPlaceBesideGroups() {
    let plan = RecordPlan(
      fields: fields("s", "v"),
      aggregate: .init(by: ["s"], measure: "v", function: .sum, groupSizeMin: 1, distinct: "s", distinctAs: nil),
      totals: [.init(member: "total", field: "v", rule: .recompute)])
    #expect(throws: SchemaError.self) { try filter(.json("/data"), "{}", plan, "{}") }
  }

  /// Constraints of the wrong kind are no constraints; values that look right are not.
  @Test(arguments: [
    (#""type":"integer","groupChar":" ""#, " ", false), (#""type":"number""#, "+-5", false),
    (#""type":"geopoint""#, "\"0x10,0x1p2\"", false), (#""type":"geopoint""#, "\"1.5,-2\"", true),
    (#""type":"date","format":"%d/%m/%Y""#, "31/02/2026", false),
    (#""type":"date","format":"%d/%m/%Y""#, "28/02/2026", true),
    (#""type":"datetime","format":"%Y-%m-%d %z rest""#, "2026-01-01 Z", false),
    (#""type":"datetime","format":"%Y-%m-%d %z rest""#, "2026-01-01 +01:00 rest", true),
  ])
  func aTypeIsWhatItSays(type: String, value: String, isValid: Bool) throws {
    let schema = "{\"fields\":[{\"name\":\"a\",\(type)}]}"
    #expect(try filter(.csv, schema, RecordPlan(), "a\n\(value)\n").report.isValid == isValid)
    let mistaken = #"{"fields":[{"name":"a","constraints":{"required":"true"}}]}"#
    #expect(throws: SchemaError.self) { try TableSchema(Array(mistaken.utf8)) }
    #expect(throws: SchemaError.self) { try SchemaProgram.compile(Array(#"{"uniqueItems":"true"}"#.utf8)) }
  }
}

@Suite struct XMLFilterTests {
  private let schema = """
    <xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema" targetNamespace="urn:v" elementFormDefault="qualified" xmlns:v="urn:v">
    <xs:element name="visits"><xs:complexType><xs:sequence><xs:element name="sent" type="xs:string"/>
    <xs:element name="visit" maxOccurs="unbounded" minOccurs="0"><xs:complexType><xs:sequence>
      <xs:element name="id" type="xs:string"/><xs:element name="name" type="xs:string" minOccurs="0"/>
      <xs:element name="born" type="xs:string" minOccurs="0"/>
      <xs:any namespace="##other" processContents="skip" minOccurs="0"/>
    </xs:sequence><xs:attribute name="ward" type="xs:string"/><xs:attribute name="no"/></xs:complexType></xs:element>
    </xs:sequence></xs:complexType></xs:element></xs:schema>
    """

  @Test func elementsAreKeptAndValuesEscapedAgain() throws {
    let text = """
      <v:visits xmlns:v="urn:v" xmlns:s="urn:SECRET"><v:sent>a &amp; b</v:sent>
      <v:visit xmlns:t="urn:SECRET" ward="A&amp;&lt;&quot;&#10;" no="1"><v:id>1</v:id><v:name>S&lt;ECRET</v:name><v:born>1980-04-03</v:born></v:visit>
      <v:visit ward="B"><v:id> c </v:id></v:visit><v:visit><v:id><![CDATA[2&]]></v:id><x:name xmlns:x="urn:x">S</x:name></v:visit>
      </v:visits>
      """
    let result = try filter(
      .xml("/visits/visit"), schema,
      plan(
        [("id", .pass), ("@ward", .pass), ("born", .generalise(.year)), ("name", .drop), ("/visits/sent", .pass)],
        subject: "id"), text,
      gate: gate(withholding: [digest(Array("C".utf8))]))
    #expect(
      result.text == """
        <?xml version="1.0" encoding="UTF-8"?>
        <v:visits xmlns:v="urn:v"><v:sent>a &amp; b</v:sent>
        <v:visit ward="A&amp;&lt;&quot;&#10;"><v:id>1</v:id><v:born>1980</v:born></v:visit>
        <v:visit><v:id>2&amp;</v:id></v:visit>
        </v:visits>

        """)
    #expect(result.report.filtered?.kept == 2 && result.report.filtered?.withheld == ["consent.withdrawn": 1])
  }

  @Test func leavingOutWhatTheSchemaRequiresRefusesTheFile() throws {
    let result = try filter(
      .xml("/visits/visit"), schema, plan([("name", .pass)]),
      "<visits xmlns=\"urn:v\"><sent/><visit><id>1</id></visit></visits>")
    #expect(result.report.findings.map(\.keyword) == ["xml.filtered"])
  }
}

/// The same work, done naively over Foundation's values.
@Suite struct FilterPropertyTests {
  @Test(arguments: 0..<40) func ndjsonEqualsTheNaiveFilter(seed: UInt64) throws {
    var random = SeededGenerator(seed: seed &* 977 &+ 5)
    let names = ["a", "b", "c", "d e", "ü", "long-member-name-that-is-long"]
    func value(_ depth: Int) -> Any {
      switch Int.random(in: 0..<(depth > 2 ? 4 : 6), using: &random) {
      case 0: return Int.random(in: -1000...1000, using: &random)
      case 1: return ["", "x", "q\"\\\n", "süß", "long text with spaces", "/"].randomElement(using: &random)!
      case 2: return Bool.random(using: &random)
      case 3: return NSNull()
      case 4: return (0..<Int.random(in: 0..<4, using: &random)).map { _ in value(depth + 1) }
      default: return object(depth + 1)
      }
    }
    func object(_ depth: Int) -> [String: Any] {
      Dictionary(
        uniqueKeysWithValues: names.shuffled(using: &random).prefix(Int.random(in: 0...6, using: &random)).map {
          ($0, value(depth))
        })
    }
    // A schema that says nothing about the leaves, and is plain on the way to them.
    let chosen = names.shuffled(using: &random).prefix(Int.random(in: 1...4, using: &random))
    let nested = chosen.first!
    var fields: [String] = Array(chosen.dropFirst())
    let inner = names.shuffled(using: &random).prefix(2)
    fields += inner.map { "\(nested).\($0)" }
    let members = names.map { name in
      name == nested
        ? "\"\(name)\":{\"type\":[\"object\",\"array\",\"null\"],\"items\":{\"type\":[\"object\",\"null\"],\"properties\":{\(inner.map { "\"\($0)\":{}" }.joined(separator: ","))}},\"properties\":{\(inner.map { "\"\($0)\":{}" }.joined(separator: ","))}}"
        : "\"\(name)\":{}"
    }
    let schema = "{\"type\":\"object\",\"properties\":{\(members.joined(separator: ","))}}"
    var records: [[String: Any]] = []
    for _ in 0..<200 {
      var record = object(0)
      if record[nested] != nil {
        record[nested] = [object(1), NSNull(), [object(1), object(1)]].randomElement(using: &random)!
      }
      records.append(record)
    }
    let text = try records.map { String(decoding: try JSONSerialization.data(withJSONObject: $0), as: UTF8.self) }
      .joined(separator: "\n")
    func keep(_ value: Any, _ paths: [[String]]) -> Any {
      if paths.contains(where: \.isEmpty) { return value }
      if let list = value as? [Any] { return list.map { keep($0, paths) } }
      guard let object = value as? [String: Any] else { return value }
      var output: [String: Any] = [:]
      for (name, inner) in object {
        let below = paths.filter { $0.first == name }.map { Array($0.dropFirst()) }
        if !below.isEmpty { output[name] = keep(inner, below) }
      }
      return output
    }
    let result = try filter(.ndjson, schema, plan(fields.map { ($0, .pass) }), text, workers: 2)
    let lines = result.text.split(separator: "\n")
    #expect(lines.count == 200)
    for (line, record) in zip(lines, records) {
      let found = try JSONSerialization.jsonObject(with: Data(line.utf8)) as! NSDictionary
      let wanted = keep(record, fields.map { $0.components(separatedBy: ".") }) as! NSDictionary
      #expect(found == wanted, "\(fields)")
    }
  }

  @Test(arguments: 0..<40) func csvEqualsTheNaiveFilter(seed: UInt64) throws {
    var random = SeededGenerator(seed: seed &* 31 &+ 9)
    let columns = (0..<Int.random(in: 2...9, using: &random)).map { "c\($0)" }
    let values = ["", "x", "a,b", "q\"q", "l1\nl2", "r\r\nn", "ü", " "]
    let rows = (0..<300).map { _ in columns.map { _ in values.randomElement(using: &random)! } }
    func spelled(_ text: String) -> String {
      text.contains(where: { ",\"\n".contains($0) || $0 == "\r\n" }) || Bool.random(using: &random)
        ? "\"\(text.replacing("\"", with: "\"\""))\"" : text
    }
    let text = ([columns] + rows).map { $0.map(spelled).joined(separator: ",") }.joined(separator: "\n") + "\n"
    let kept = columns.filter { _ in Bool.random(using: &random) }
    guard !kept.isEmpty else { return }
    let schema = "{\"fields\":[\(columns.map { "{\"name\":\"\($0)\"}" }.joined(separator: ","))]}"
    let result = try filter(.csv, schema, plan(kept.map { ($0, .pass) }), text, workers: 2)
    // Read again by keeping everything: each field's text is seen through a mask of its own.
    let places = kept.map { columns.firstIndex(of: $0)! }
    #expect(CSVText.parse(result.text) == [kept] + rows.map { row in places.map { row[$0] } })
  }
}

/// A reader of RFC 4180 that is slow and plain.
private enum CSVText {
  static func parse(_ text: String) -> [[String]] {
    var rows: [[String]] = []
    var (row, field, quoted) = ([String](), [UInt8](), false)
    let bytes = Array(text.utf8)
    var index = 0
    while index < bytes.count {
      let byte = bytes[index]
      index += 1
      if quoted {
        if byte == 34, index < bytes.count, bytes[index] == 34 {
          field.append(34)
          index += 1
        } else if byte == 34 {
          quoted = false
        } else {
          field.append(byte)
        }
      } else if byte == 34 {
        quoted = true
      } else if byte == 44 || byte == 10 {
        row.append(String(decoding: field, as: UTF8.self))
        field = []
        if byte == 10 {
          rows.append(row)
          row = []
        }
      } else {
        field.append(byte)
      }
    }
    return rows
  }
}
