// Records checked on the way out and on the way in, as a batch job sees it; `schemas` as an administrator does.

import Foundation
import TestSupport
import Testing

@Suite struct RecordsScriptTests {
  private static var options: TestAgencies.Options {
    var options = TestAgencies.Options()
    options.dataset = #", format: ndjson, schema: "schemas/test.schema", schemaSha256: "sha256:SHA256""#
    options.schema = #"{"type":"object","required":["id"],"properties":{"id":{"type":"string","pattern":"^[0-9]+$"}}}"#
    options.terms = #"fields: [ { name: id, category: "pd:OfficialID", action: pass } ]"#
    return options
  }

  @Test func whatKeepsItsSchemaGoesAndTheRestComesBackWithPlacesAndRules() throws {
    let agencies = try TestAgencies(Self.options)
    try agencies.start()
    let good = (0..<5000).map { "{\"id\":\"\($0)\"}\n" }.joined()
    try agencies.sender.drop("good.ndjson", Data(good.utf8))
    try agencies.sender.drop("bad.ndjson", Data((good + "{\"id\":\"SECRET\"}\n{\"name\":\"SECRET\"}\n").utf8))
    #expect(
      eventually {
        agencies.sender.outcome("good.ndjson") == "delivered" && agencies.sender.outcome("bad.ndjson") == "refused"
      })
    #expect(agencies.recipient.inbox(from: agencies.sender, "good.ndjson") == Data(good.utf8))
    #expect(agencies.recipient.inboxNames(from: agencies.sender) == ["good.ndjson"])
    #expect(agencies.sender.outcome("bad.ndjson", "code") == "input.schema")
    let returned = "\(agencies.sender.home)/returned/\(TestAgencies.agreement)/bad.ndjson"
    let text = String(decoding: FileManager.default.contents(atPath: "\(returned).reason.txt") ?? Data(), as: UTF8.self)
    #expect(text.contains("record 5001, line 5001, /id: pattern") && text.contains("record 5002, line 5002: required"))
    let json = String(
      decoding: FileManager.default.contents(atPath: "\(returned).reason.json") ?? Data(), as: UTF8.self)
    #expect(json.contains("\"keywordLocation\":\"/properties/id/pattern\"") && json.contains("\"invalidRecords\":2"))
    #expect(!(text + json + agencies.sender.log).contains("SECRET"))
    try agencies.stop()
    #expect(try agencies.findings() == [])
  }

  @Test func invalidRecordsAreSetAsideForTheSenderAlone() throws {
    var options = Self.options
    options.dataset += ", onInvalid: set-aside"
    let agencies = try TestAgencies(options)
    try agencies.start()
    try agencies.sender.drop("a.ndjson", Data("{\"id\":\"1\"}\n{\"id\":\"SECRET\"}\n{\"id\":\"2\"}\n".utf8))
    #expect(eventually { agencies.sender.outcome("a.ndjson") == "delivered" })
    #expect(
      agencies.recipient.inbox(from: agencies.sender, "a.ndjson") == Data("{\"id\":\"1\"}\n{\"id\":\"2\"}\n".utf8))
    let returned = "\(agencies.sender.home)/returned/\(TestAgencies.agreement)"
    let kept = try FileManager.default.contentsOfDirectory(atPath: returned).filter { $0.hasSuffix(".set-aside.age") }
    #expect(kept.count == 1)
    let sealed = try Data(contentsOf: URL(fileURLWithPath: "\(returned)/\(kept.first ?? "")"))
    #expect(sealed.range(of: Data("SECRET".utf8)) == nil)
    let identity = "\(agencies.scratch.path)/identity"
    #expect(try agencies.sender.sallyport("keys", "export", "--output", identity).status == 0)
    let opened = try Command.sallyport(["open", "\(returned)/\(kept.first ?? "")", "-i", identity, "-o", "-"])
    #expect(opened.text == "{\"id\":\"SECRET\"}\n", "\(opened.errors)")
    try agencies.stop()
    #expect(try agencies.findings() == [])
  }

  @Test func aFileThatIsNotItsMediaTypeComesBack() throws {
    let agencies = try TestAgencies()
    for agency in [agencies.sender, agencies.recipient] {
      let path = "\(agency.home)/policies/\(TestAgencies.agreement).yaml"
      let text = try String(contentsOfFile: path, encoding: .utf8)
      try text.replacing("application/octet-stream", with: "application/pdf").write(
        toFile: path, atomically: true, encoding: .utf8)
    }
    try agencies.signAgain()
    try agencies.start()
    try agencies.sender.drop("a.pdf", Data("MZ not a document".utf8))
    try agencies.sender.drop("b.pdf", Data("%PDF-1.7\n".utf8))
    #expect(
      eventually { agencies.sender.outcome("b.pdf") == "delivered" && agencies.sender.outcome("a.pdf") == "refused" })
    #expect(agencies.sender.outcome("a.pdf", "code") == "input.schema")
    #expect(agencies.sender.outcome("a.pdf", "detail")?.contains("opaque.media-type") ?? false)
    try agencies.stop()
  }

  @Test func aSchemaThatIsNotTheAgreedOneKeepsTheGatewayFromStarting() throws {
    let agencies = try TestAgencies(Self.options)
    try Data("{}".utf8).write(to: URL(fileURLWithPath: "\(agencies.sender.home)/policies/schemas/test.schema"))
    let process = try agencies.sender.start()
    process.waitUntilExit(atMost: 120)
    #expect(process.terminationStatus == 78)
    #expect(agencies.sender.log.contains("is not the schema of test-files"))
  }

  @Test(arguments: [
    ("a.ndjson", "{\"id\":\"1\"}\n", 0), ("a.ndjson", "{\"id\":1}\n", 65), ("a.json", "[{\"id\":\"1\"}]", 0),
    ("a.json", "[{\"id\":1}]", 65),
    ("a.csv", "id\n1\n", 0), ("a.csv", "id\nx\n", 65), ("a.xml", "<ids><id>1</id></ids>", 0),
    ("a.xml", "<ids><id>x</id></ids>", 65),
    ("a.txt", "x", 64), ("a.ndjson", "", 0), ("a.json", "", 65), ("a.csv", "", 65), ("a.xml", "", 65),
  ])
  func schemasCheckHasItsExitCodes(name: String, text: String, status: Int32) throws {
    let scratch = try Scratch()
    let file = try scratch.file(name, Data(text.utf8))
    let schema =
      switch name.suffix(3) {
      case "csv": #"{"fields":[{"name":"id","type":"integer"}]}"#
      case "xml":
        #"<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema"><xs:element name="ids"><xs:complexType><xs:sequence><xs:element name="id" type="xs:int" maxOccurs="9"/></xs:sequence></xs:complexType></xs:element></xs:schema>"#
      default: #"{"properties":{"id":{"type":"string"}}}"#
      }
    let schemaFile = try scratch.file("the.schema", Data(schema.utf8))
    let result = try Command.sallyport(["schemas", "check", file, "--schema", schemaFile])
    #expect(result.status == status, "\(result.text)\(result.errors)")
    let json = try Command.sallyport(["schemas", "check", file, "--schema", schemaFile, "--json"])
    #expect(json.status == status)
    for line in json.lines { #expect(throws: Never.self) { try JSONSerialization.jsonObject(with: Data(line.utf8)) } }
  }

  @Test(arguments: [
    (#"{"type":"strin"}"#, 65), (#"{"pattern":"(?=x)"}"#, 65), (#"{"$ref":"https://example.com/x.json"}"#, 65),
    ("{", 65),
    (##"{"$ref":"#"}"##, 65), ("{}", 0), (#"{"$schema":"http://json-schema.org/draft-04/schema#"}"#, 65),
    (#"{"fields":[{"name":"a","type":"nope"}]}"#, 65), (#"{"fields":[{"name":"a"}]}"#, 0),
  ])
  func schemasLintSaysWhetherASchemaCanBeEnforced(schema: String, status: Int32) throws {
    let scratch = try Scratch()
    let result = try Command.sallyport(["schemas", "lint", try scratch.file("s.json", Data(schema.utf8))])
    #expect(result.status == status, "\(result.text)\(result.errors)")
  }
}
