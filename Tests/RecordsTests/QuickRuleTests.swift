// What is vouched for by little work is what the full rules accept.

import Foundation
import TestSupport
import Testing

@testable import Records

@Suite struct QuickRuleTests {
  private static let schemas = [
    "true", #"{"type":"string"}"#, #"{"type":"integer"}"#, #"{"type":["number","null"]}"#, #"{"type":"boolean"}"#,
    #"{"minLength":2,"maxLength":3}"#, #"{"minLength":1}"#, #"{"type":"string","minLength":9223372036854775807}"#,
    #"{"minimum":-1,"maximum":10}"#, #"{"type":"integer","maximum":9223372036854775807}"#, #"{"maximum":10.5}"#,
    #"{"exclusiveMinimum":0}"#, #"{"multipleOf":0.5}"#, #"{"enum":["a","é",1,null]}"#,
    #"{"type":"string","enum":["ab","abc"]}"#,
    #"{"const":"a"}"#, #"{"pattern":"^[a-c]+$"}"#, #"{"pattern":"^a(b|c)?$"}"#, #"{"pattern":"b$"}"#,
    #"{"pattern":"^$"}"#,
    ##"{"pattern":"^[0-9]{4}-[0-9]{2}$"}"##, #"{"format":"date"}"#,
    #"{"type":"string","format":"email","maxLength":9}"#,
    ##"{"$ref":"#/$defs/name"}"##, ##"{"$ref":"#/$defs/name","maxLength":2}"##, ##"{"$ref":"#/$defs/words"}"##,
    ##"{"$ref":"#/$defs/loop"}"##, #"{"not":{"type":"string"}}"#, "false",
  ]

  private static let values = [
    "null", "true", "false", #""""#, #""a""#, #""\u0061""#, #""ab""#, #""abc""#, #""abcd""#, #""é""#, #""éé""#, #""😀""#,
    #""😀😀""#, #""ac""#, #""b""#, #""2026-01""#, #""2026-011""#, #""2026-01-31""#, #""2026-02-30""#, #""a@b.example""#,
    #""a@b.cd""#, "0", "-0", "-1", "-1.5", "1", "1.0", "1e0", "10", "10.0", "10.25", "10.75", "11", "0.5", "100e-1",
    "999999999999999999", "9223372036854775807", "9223372036854775808", "1e400", "[]", "{}", #"["a"]"#,
  ]

  @Test(arguments: schemas) func vouchingAcceptsWhatTheRulesAccept(schema: String) throws {
    func compiled(_ property: String) throws -> RecordFormat {
      let text =
        ##"{"$defs":{"name":{"type":"string","minLength":2},"words":{"enum":["a","b"]},"loop":{"$ref":"#/$defs/words"}},"properties":{"v":\##(property)}}"##
      return .ndjson(try SchemaProgram.compile(Array(text.utf8)))
    }
    let (plain, full) = (try compiled(schema), try compiled(#"{"allOf":[\#(schema),{}]}"#))
    for value in Self.values {
      let line = Array("{\"v\":\(value)}\n".utf8)
      let verdicts = try [plain, full].map { try RecordCheck($0, workers: 1).run(input(line)).isValid }
      #expect(verdicts[0] == verdicts[1], "\(schema) of \(value)")
    }
  }

  @Test(arguments: [("1.234", 1), ("+1.234", 1), ("1.234e0", 1), ("999", 0)])
  func aGroupCharacterIsDroppedBeforeANumberIsJudged(value: String, invalid: Int64) throws {
    let schema =
      #"{"fields":[{"name":"a","type":"number","groupChar":".","constraints":{"maximum":1000}},{"name":"b"}]}"#
    let format = RecordFormat.csv(try TableSchema(Array(schema.utf8)), CSVDialect())
    let report = try RecordCheck(format, workers: 1).run(input(Array("a,b\n\(value),x\n".utf8)))
    #expect(report.invalidRecords == invalid)
  }
}
