import Foundation
import NIOConcurrencyHelpers
import Testing

@testable import Records

/// Bytes handed out in pieces.
func input(_ bytes: [UInt8], piece: Int = 1 << 16) -> RecordInput {
  let done = NIOLockedValueBox(0)
  return { buffer in
    done.withLockedValue { start in
      let count = min(piece, buffer.count, bytes.count - start)
      buffer.copyBytes(from: bytes[start..<(start + count)])
      start += count
      return count
    }
  }
}

private func check(_ format: RecordFormat, _ text: String, workers: Int = 1, piece: Int = 1 << 16) throws
  -> RecordReport
{
  try RecordCheck(format, workers: workers).run(input(Array(text.utf8), piece: piece))
}

private func schema(_ text: String) throws -> SchemaProgram { try SchemaProgram.compile(Array(text.utf8)) }

private let person = """
  {"type":"object","required":["id"],"additionalProperties":false,"properties":{"id":{"type":"string","pattern":"^[0-9]+$"},
  "name":{"type":"string","maxLength":5}}}
  """

@Suite struct NDJSONTests {
  @Test func findingsTellPlaceAndRuleButNeverAValue() throws {
    let text = """
      {"id":"1","name":"Ann"}
      {"id":"SECRET","name":"TOOLONGSECRET","SECRETKEY":1}

      {"name":"x"}
      """
    let report = try check(.ndjson(schema(person)), text)
    #expect(report.records == 3 && report.invalidRecords == 2)
    #expect(
      report.findings.map { "\($0.record) \($0.line) \($0.instanceLocation) \($0.keyword)" } == [
        "2 2 /id pattern", "2 2 /name maxLength", "2 2 /#3 additionalProperties", "3 4  required",
      ])
    #expect(!report.findings.contains { "\($0)".contains("SECRET") })
    #expect(report.findings[3].expected == "member id")
  }

  @Test(arguments: [
    (#"{"id":"1","id":"2"}"#, "json.duplicate-key"), (#"{"\u0069d":"1","id":"2"}"#, "json.duplicate-key"),
    (#"{"id":"\ud800"}"#, "json.surrogate"), (#"{"id":"\udc00\ud800"}"#, "json.surrogate"),
    (#"{"id":"\x"}"#, "json.escape"),
    (#"{"id":"1""#, "json.syntax"), (#"{"id":"1"} 2"#, "json.syntax"), (#"{"id":"1",}"#, "json.syntax"),
    (#"{"id":01}"#, "json.number"), (#"{"id":1e9999999999}"#, "json.number"), (#"{"id":.5}"#, "json.syntax"),
    (#"{"id":"1}"#, "json.string"), (#"{"id":nul}"#, "json.syntax"), (#"[[1]"#, "json.syntax"),
    ("\u{FEFF}{}", "json.syntax"),
    ("{\"id\":\"a\u{1}b\"}", "json.control-character"), ("{\"id\":\u{1}1}", "json.syntax"),
    (String(repeating: "[", count: 101) + String(repeating: "]", count: 101), "json.depth"),
  ])
  func aBrokenLineIsNamedAndItsNeighboursAreStillRead(line: String, code: String) throws {
    let report = try check(.ndjson(schema(person)), "{\"id\":\"1\"}\n\(line)\n{\"id\":\"2\"}\n")
    #expect(report.findings.map(\.keyword) == [code], "\(line)")
    #expect(report.records == 3 && report.invalidRecords == 1)
    #expect(report.findings.first?.line == 2)
  }

  /// Members that are properties tell by themselves that keys differ; whatever else an object has, its keys are compared.
  @Test func twoKeysThatSayTheSameAreFoundWhateverTheSchemaLooksAt() throws {
    let many = (0..<70).map { "\"p\($0)\":{}" }.joined(separator: ",")
    let schema = try schema(
      """
      {"properties":{\(many),"deep":{"allOf":[{"properties":{"a":{},"b":{}}},{"properties":{"b":{},"c":{}}}]},
      "other":{"not":{"required":["x"]}}},"anyOf":[{"required":["p0"]},{"properties":{"p1":{"type":"integer"}}}]}
      """)
    let sound = [
      #"{"p0":1,"p64":2}"#, #"{"p5":1,"new":2,"p69":3}"#, #"{"deep":{"a":1,"b":2,"c":3}}"#,
      #"{"other":{"y":1,"z":{"v":1,"w":2}}}"#,
      "{" + (0..<70).map { "\"p\($0)\":1" }.joined(separator: ",") + "}",
    ]
    let broken = [
      #"{"p1":1,"p1":2}"#, #"{"p1":1,"p2":2,"\u00701":3}"#, #"{"new":1,"p1":2,"new":3}"#, #"{"p69":1,"p5":2,"p69":1}"#,
      #"{"deep":{"a":1,"b":2,"a":3}}"#, #"{"deep":{"b":1,"b":2}}"#, #"{"other":{"z":{"v":1,"v":2}}}"#,
      #"{"p1":{"k":1,"k":2}}"#,
      #"{"p0":[{"k":1},{"k":1,"l":[{"m":1,"m":2}]}],"p1":1}"#, #"{"p1":"none","p1":"none"}"#,
      "{" + (0..<70).map { "\"p\($0)\":1" }.joined(separator: ",") + ",\"p3\":1}",
    ]
    #expect(try check(.ndjson(schema), sound.joined(separator: "\n")).invalidRecords == 0)
    let report = try check(.ndjson(schema), broken.joined(separator: "\n"))
    #expect(report.records == Int64(broken.count))
    #expect(report.findings.map { "\($0.line) \($0.keyword)" } == broken.indices.map { "\($0 + 1) json.duplicate-key" })
  }

  @Test func aLineThatIsNoUTF8IsNamed() throws {
    let bytes = Array("{\"id\":\"1\"}\n{\"id\":\"".utf8) + [0xC3, 0x28] + Array("\"}\n{\"id\":\"3\"}".utf8)
    let report = try RecordCheck(.ndjson(schema(person)), workers: 1).run(input(bytes))
    #expect(report.findings.map(\.keyword) == ["json.utf8"] && report.records == 3)
  }

  @Test(arguments: [1, 2, 3]) func theReportIsTheSameHoweverTheInputIsCut(workers: Int) throws {
    var text = ""
    for place in 0..<60_000 {
      text += place % 997 == 0 ? "{\"id\":\"x\(place)\"}\n" : "{\"id\":\"\(place)\",\"name\":\"n\(place % 10)\"}\n"
    }
    let whole = try check(.ndjson(schema(person)), text)
    #expect(whole.records == 60_000 && whole.invalidRecords == 61)
    #expect(try check(.ndjson(schema(person)), text, workers: workers, piece: 7919) == whole)
  }

  @Test func aLineWithoutAnEndIsRefusedAtItsLimit() throws {
    let endless = "\"" + String(repeating: "x", count: RecordLimits.recordBytesMax + (2 << 20))
    let report = try check(.ndjson(schema(person)), endless)
    #expect(report.findings.map(\.keyword) == ["record.size"])
  }

  @Test func anEmptyFileHasNoRecordsAndNoFindings() throws {
    #expect(try check(.ndjson(schema(person)), "") == RecordReport())
  }

  @Test(arguments: [
    // Exponential in the depth of the data; and one whose work is cut short inside a `not`.
    (
      ##"{"oneOf":[{"properties":{"op":{"const":"x"},"c":{"$ref":"#"}},"required":["c"]},{"type":"object","properties":{"c":{"$ref":"#"},"op":{"const":"y"}},"required":["c","op"]},{"type":"integer"}]}"##,
      String(repeating: "{\"c\":", count: 60) + "1" + String(repeating: ",\"op\":\"y\"}", count: 60)
    ),
    (
      ##"{"not":{"$ref":"#/$defs/a0"},"$defs":{"##
        + (0..<40).map {
          "\"a\($0)\":{\"allOf\":[{\"$ref\":\"#/$defs/a\($0 + 1)\"},{\"$ref\":\"#/$defs/a\($0 + 1)\"}]}"
        }.joined(separator: ",")
        + ##","a40":{"type":"integer"}}}"##, "1"
    ),
  ])
  func aRecordThatAsksForTooMuchWorkIsRefused(text: String, record: String) throws {
    let report = try check(.ndjson(schema(text)), record)
    #expect(report.findings.map(\.keyword) == ["schema.work"])
  }

  @Test func schemasNestedTooDeepAreRefusedAndDoNotOverflow() throws {
    let chain = (0..<9000).map { "\"d\($0)\":{\"$anchor\":\"x\($0)\",\"$ref\":\"#x\($0 + 1)\"}" }.joined(separator: ",")
    #expect(throws: SchemaError.self) {
      try schema("{\"$defs\":{\(chain),\"d9000\":{\"$anchor\":\"x9000\"}},\"$ref\":\"#x0\"}")
    }
  }

  @Test func canonicallyEquivalentTextsAreDifferentTexts() throws {
    let both = try schema("{\"anyOf\":[{\"pattern\":\"^\u{e9}$\"},{\"pattern\":\"^e\u{301}$\"}]}")
    #expect(try check(.ndjson(both), "\"e\u{301}\"\n\"\u{e9}\"").isValid)
  }

  @Test func manyInvalidLinesAreNotCountedFromTheStartEachTime() throws {
    let report = try check(.ndjson(schema(#"{"type":"string"}"#)), String(repeating: "1\n", count: 300_000))
    #expect(report.invalidRecords == 300_000 && report.findings.last?.line == 100)
  }

  @Test func schemasWithinSchemasEndAtALimitAndNotInTheStack() throws {
    let deep = try schema(
      ##"{"$defs":{"a":{"allOf":[{"allOf":[{"allOf":[{"items":{"$ref":"#/$defs/a"}}]}]}]}},"$ref":"#/$defs/a"}"##)
    let value = String(repeating: "[", count: 99) + String(repeating: "]", count: 99)
    #expect(try check(.ndjson(deep), value).isValid)
  }
}

@Suite struct JSONFileTests {
  @Test(arguments: [
    (#"[{"id":"1"} , {"id":"2"}]"#, "", 2, []), ("[]", "", 0, []), ("  [ ]\n", "", 0, []),
    (#"{"id":"1"}"#, "", 1, []), (#"[{"id":"1"},]"#, "", 1, ["json.syntax"]),
    (#"[,{"id":"1"}]"#, "", 1, ["json.syntax"]),
    (#"[{"id":"1"}"#, "", 0, ["json.syntax"]), (#"[{"id":"1"}] x"#, "", 1, ["json.syntax"]),
    (#"{"a":[1],"b":{"c":[{"id":"1"},{"id":"],\"}"}]},"z":2}"#, "/b/c", 2, ["pattern"]),
    (#"{"a":{"c":[1]},"b":{"c":[{"id":"1"}]}}"#, "/b/c", 1, []), (#"{"a":1}"#, "/b", 0, ["json.no-array"]),
    (#"{"b":[{"id":"1"}],}"#, "/b", 1, ["json.syntax"]), (#"[[{"id":"1"}],[{"id":"2"},{"id":"3"}]]"#, "/1", 2, []),
    (#"{"\u0062":[{"id":"1"}]}"#, "/b", 1, []), (#"{"b":[{"id":"1"}],"b":2}"#, "/b", 1, ["json.duplicate-key"]),
  ])
  func theArrayAtThePointerHoldsTheRecords(text: String, pointer: String, records: Int64, findings: [String]) throws {
    for piece in [1 << 16, 3] {
      let report = try check(.json(schema(person), pointer: pointer), text, piece: piece)
      #expect(report.records == records, "\(text)")
      #expect(report.findings.map(\.keyword) == findings, "\(text)")
    }
  }

  @Test func aLargeArrayIsReadInBatches() throws {
    let text = "[" + (0..<40_000).map { "{\"id\":\"\($0)\", \"name\":\"[{\"}" }.joined(separator: ",\n") + "]"
    let report = try check(.json(schema(person), pointer: ""), text, workers: 2)
    #expect(report.records == 40_000 && report.isValid)
  }
}

@Suite struct CSVTests {
  private let table = """
    {"fields":[{"name":"id","type":"integer","constraints":{"unique":true,"required":true}},{"name":"name"},
    {"name":"born","type":"date"}]}
    """
  private func run(_ text: String, _ dialect: CSVDialect = CSVDialect(), workers: Int = 1, piece: Int = 1 << 16) throws
    -> RecordReport
  {
    try check(.csv(TableSchema(Array(table.utf8)), dialect), text, workers: workers, piece: piece)
  }

  @Test(arguments: [
    ("1,Ann,2020-01-02\r\n", []), ("1,\"A,\"\"\r\nn\",2020-01-02", []), ("1,Ann,\n", []),
    ("x,Ann,2020-02-30\n", ["type", "type"]),
    (",Ann,\n", ["required"]), ("1,a,\n1,b,\n", ["unique"]), ("1,a\n", ["csv.field-count"]),
    ("1,a,,\n", ["csv.field-count"]),
    ("1,a\"b,\n", ["csv.quote"]), ("1,\"a\"b,\n", ["csv.quote"]), ("1,\"a,\n", ["csv.quote"]),
    ("1,a\u{0}b,\n", ["csv.nul"]), ("1,a\rb,\n", ["csv.quote"]),
    ("\n1,a,\n\n", []),
  ])
  func rowsAreReadStrictly(rows: String, findings: [String]) throws {
    for piece in [1 << 16, 5] {
      #expect(try run("id,name,born\n\(rows)", piece: piece).findings.map(\.keyword) == findings, "\(rows)")
    }
  }

  @Test(arguments: [
    ("", "csv.header"), ("id,born,name\n", "csv.header"), ("id,name\n", "csv.header"),
    ("\nid,name,born\n", "csv.header"),
  ])
  func theHeaderMustBeTheSchemas(text: String, code: String) throws {
    #expect(try run(text).findings.map(\.keyword) == [code])
  }

  @Test func encodingsAreReadAsDeclared() throws {
    let text = "id;name;born\n1;Mél€;\n"
    let latin = text.unicodeScalars.map { $0 == "€" ? 0x80 : UInt8($0.value) }
    let wide: [UInt8] = [0xFF, 0xFE] + text.utf16.flatMap { unit -> [UInt8] in [UInt8(unit & 255), UInt8(unit >> 8)] }
    for (bytes, encoding) in [(latin, CSVDialect.Encoding.windows1252), (wide, .utf16le), (Array(text.utf8), .utf8)] {
      let format = RecordFormat.csv(try TableSchema(Array(table.utf8)), CSVDialect(delimiter: 59, encoding: encoding))
      for piece in [1 << 16, 1] {
        let report = try RecordCheck(format, workers: 1).run(input(bytes, piece: piece))
        #expect(report.isValid && report.records == 1, "\(encoding)")
      }
    }
    #expect(
      try RecordCheck(.csv(TableSchema(Array(table.utf8)), CSVDialect(delimiter: 59)), workers: 1).run(input(latin))
        .findings.map(\.keyword) == ["csv.encoding"])
  }

  @Test func theReportIsTheSameHoweverTheInputIsCut() throws {
    var text = "id,name,born\n"
    for place in 0..<60_000 {
      text += "\(place % 59_999),\"a\n\"\"\(place)\",\(place % 1000 == 0 ? "never" : "2020-01-01")\n"
    }
    let whole = try run(text)
    #expect(whole.records == 60_000 && whole.invalidRecords == 61 && whole.countsByRule.count == 2)
    #expect(try run(text, workers: 3, piece: 4099) == whole)
  }
}

@Suite struct XMLTests {
  private let xsd = """
    <xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema"><xs:element name="visits"><xs:complexType><xs:sequence>
    <xs:element name="visit" minOccurs="0" maxOccurs="unbounded"><xs:complexType><xs:sequence>
    <xs:element name="id"><xs:simpleType><xs:restriction base="xs:string"><xs:pattern value="[0-9]+"/></xs:restriction></xs:simpleType></xs:element>
    </xs:sequence><xs:attribute name="kind" type="xs:int"/></xs:complexType></xs:element></xs:sequence></xs:complexType></xs:element></xs:schema>
    """
  private func run(_ text: String, piece: Int = 1 << 16) throws -> RecordReport {
    try check(.xml(XMLSchema(Array(xsd.utf8))), text, piece: piece)
  }

  @Test func findingsTellPlaceAndRuleButNeverAValue() throws {
    let report = try run(
      "<visits>\n<visit><id>1</id></visit>\n<visit kind='SECRET'><id>SECRET</id><SECRET/></visit>\n<visit/></visits>")
    #expect(report.records == 3 && report.invalidRecords == 2)
    #expect(
      report.findings.map { "\($0.record) \($0.line) \($0.instanceLocation) \($0.keyword)" } == [
        "2 3 /visits/visit/@kind cvc-datatype-valid", "2 3 /visits/visit/id pattern",
        "2 3 /visits/visit/# cvc-complex-type.2.4",
        "3 4 /visits/visit cvc-complex-type.2.4",
      ])
    #expect(!report.findings.contains { "\($0)".contains("SECRET") })
  }

  @Test func aValueThatLooksLikeAMessageIsNotRepeated() throws {
    for mark in [
      "[facet 'SECRET'", "the pattern 'SECRET", "is not accepted by the pattern 'SECRET", "Expected is SECRET",
      "is not a valid value of the SECRET",
    ] {
      let report = try run("<visits><visit><id>\(mark)</id></visit><visit kind=\"\(mark)\"><id>1</id></visit></visits>")
      #expect(report.findings.map(\.keyword) == ["pattern", "cvc-datatype-valid"] && report.invalidRecords == 2)
      #expect(!"\(report)".contains("SECRET"), "\(report)")
    }
  }

  @Test(arguments: [
    ("<?xml version='1.0' encoding='UTF-16'?><visits/>", "xml.encoding"),
    ("<?xml version='1.0' encoding='UTF-7'?><visits/>", "xml.encoding"),
    ("<visits><visit><id>" + String(repeating: "1\n", count: 9 << 20) + "</id></visit></visits>", "record.size"),
    ("<visits><visit>", "xml.syntax"), ("<visits></visit>", "xml.syntax"), ("", "xml.syntax"),
    ("<visits/><visits/>", "xml.syntax"),
    ("<!DOCTYPE v [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><visits>&a;</visits>", "xml.doctype"),
    ("<!DOCTYPE v [<!ENTITY a 'x'><!ENTITY b '&a;&a;&a;'>]><visits>&b;</visits>", "xml.doctype"),
    ("<visits a='\(String(repeating: ">", count: 70_000))'/>", "xml.start-tag"),
    ("<visits \((0..<300).map { "a\($0)='1'" }.joined(separator: " "))/>", "xml.attributes"),
    ("\u{FEFF}<?xml version='1.0' encoding='UTF-7'?><visits/>", "xml.encoding"),
    ("<?xml version='1.0'\(String(repeating: " ", count: 1100))encoding='UTF-7'?><visits/>", "xml.encoding"),
    ("<\0v\0/\0>\0", "xml.encoding"),
    // libxml2 must not lose what its validator, which comes after us, still points into.
    (
      "<?xml version='1.0'?><visits><!--\(String(repeating: "c", count: 20_000))--><visit "
        + (0..<290).map { "a\($0)='\(String(repeating: "x", count: 215))'" }.joined(separator: " ")
        + "/></visits>\(String(repeating: " ", count: 200_000))", "xml.attributes"
    ),
    (String(repeating: "<visits>", count: 200), "xml.depth"), ("<visits>\u{1}</visits>", "xml.syntax"),
  ])
  func hostileDocumentsAreStopped(text: String, code: String) throws {
    for piece in text.utf8.count > 1 << 20 || text.hasPrefix("<?xml") ? [1 << 16] : [1 << 16, 3] {
      let report = try run(text, piece: piece)
      #expect(report.findings.contains { $0.keyword == code }, "\(text.prefix(80)): \(report.findings.map(\.keyword))")
    }
  }

  @Test(arguments: [
    "<xs:schema/>", "<!DOCTYPE x []><a/>", "nonsense",
    "<xs:schema xmlns:xs='http://www.w3.org/2001/XMLSchema'><xs:import namespace='x' schemaLocation='http://127.0.0.1:1/x.xsd'/><xs:element name='a' type='y:z' xmlns:y='x'/></xs:schema>",
    "<xs:schema xmlns:xs='http://www.w3.org/2001/XMLSchema'><xs:element name='a'><xs:unique name='u'><xs:selector xpath='b'/><xs:field xpath='@c'/></xs:unique></xs:element></xs:schema>",
    "<xs:schema xmlns:xs='http://www.w3.org/2001/XMLSchema'><xs:element name='a'><xs:complexType><xs:sequence><xs:element name='b' maxOccurs='999999999'/></xs:sequence></xs:complexType></xs:element></xs:schema>",
  ])
  func aSchemaThatCannotBeEnforcedIsRefused(text: String) throws {
    #expect(throws: SchemaError.self) { try XMLSchema(Array(text.utf8)) }
  }

  /// libxml2 tries every way to read a value.
  @Test(arguments: [
    ("((a|b)*(a|c)*)*d", false), ("(a|aa)+b", false), ("([a-z]+[ ]?[a-z]*)+x", false), ("(x+x+)+y", false),
    ("[A-Z]{2}[0-9]{1,6}", true), ("([0-9A-F]{2}:){5}[0-9A-F]{2}", true), ("([0-9A-F]{2}:)+", true), (".*@.*", true),
    ("([0-9]{1,3},)*[0-9]{1,3}", false), ("(ab|cd)+", true),
    (String(repeating: "(", count: 30) + String(repeating: "){64}", count: 30), false), ("(a?a?)+", false),
    ("(a*a)*", false), ("(a+)+", true), ("(a{1,8})*", false), (".{1,5000}", true),
    ("[A-Z0-9]{4,4}[A-Z]{2,2}[A-Z0-9]{2,2}([A-Z0-9]{3,3}){0,1}", true), ("[^\\s]+( [^\\s]+)*", true),
    ("urn:oid:[0-2](\\.(0|[1-9][0-9]*))+", true), ("[a-zA-Z]{1,8}(-[a-zA-Z0-9]{1,8})*", true),
    ("([a-z-[aeiou]]+x)*", false), ("(\\p{L}+ )*", false), ("((a|b)|(c|d))*", true),
    ("[(|*]+x", true), ("\\(a*\\)+", true),
  ])
  func aPatternThatMayTakeForEverIsRefused(pattern: String, isTaken: Bool) {
    let text = """
      <xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema"><xs:element name="a"><xs:simpleType><xs:restriction
      base="xs:string"><xs:pattern value="\(pattern)"/></xs:restriction></xs:simpleType></xs:element></xs:schema>
      """
    #expect(((try? XMLSchema(Array(text.utf8))) != nil) == isTaken)
  }
}
