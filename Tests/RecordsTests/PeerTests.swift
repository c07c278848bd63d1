// Our readers beside others' on generated hostile input: CSV beside Python's csv module, XML beside xmllint and a public schema.

import Foundation
import NIOConcurrencyHelpers
import TestSupport
import Testing

@testable import Records

@Suite struct PeerTests {
  // MARK: CSV

  private static let columns = ["a", "b", "c"]

  /// A file of rows that are mostly right, in which everything that has to do with CSV may stand anywhere; and whether it is right
  /// by how it was made.
  private static func hostileTable(_ random: inout SeededGenerator) -> (text: String, isSound: Bool) {
    let lineEnd = ["\n", "\r\n"].randomElement(using: &random)!
    var text = columns.joined(separator: ",") + lineEnd
    var isSound = true
    for _ in 0..<Int.random(in: 0...4, using: &random) {
      let count = Int.random(in: 0..<20, using: &random) == 0 ? Int.random(in: 1...4, using: &random) : columns.count
      if count != columns.count { isSound = false }
      text +=
        (0..<count).map { _ in
          let content = (0..<Int.random(in: 0...4, using: &random)).map { _ in
            [
              "x", "é", "😀", " ", ",", "\"", "\n", "\r\n", "\r", ";", "=1",
              "long enough to cross a block of 64 bytes in the scan",
            ].randomElement(using: &random)!
          }.joined()
          let quoted = "\"\(content.replacing("\"", with: "\"\""))\""
          switch Int.random(in: 0..<20, using: &random) {
          case 0, 1, 2:
            isSound = false
            return [content, "\"\(content)\"", quoted + "x"].randomElement(using: &random)!
          case 3..<10: return content.filter { !",\"\n\r".contains($0) && $0 != "\r\n" }
          default: return quoted
          }
        }.joined(separator: ",") + lineEnd
    }
    // The last line may have no end.
    if Bool.random(using: &random), text.hasSuffix(lineEnd) { text.removeLast() }
    return (text, isSound)
  }

  private struct TableCase: Codable {
    let text: Data
    let isSound: Bool
    let isValid: Bool
    let records: Int64
    /// The columns a and c.
    let output: Data
  }

  private static let reader = """
    import base64, csv, io, json, sys

    def rows(data):
        # A line with nothing on it is no row.
        return [row for row in csv.reader(io.StringIO(base64.b64decode(data).decode(), newline=""), strict=True) if row]

    accepted = refused = 0
    for number, case in enumerate(json.load(sys.stdin)):
        text = base64.b64decode(case["text"]).decode()
        try:
            table = rows(case["text"])
            sound = all(len(row) == 3 for row in table)
        except csv.Error:
            sound = False
        if case["isValid"]:
            accepted += 1
            assert sound, (number, text)
            assert len(table) - 1 == case["records"], (number, text)
            assert rows(case["output"]) == [[row[0], row[2]] for row in table], (number, text, base64.b64decode(case["output"]))
        else:
            refused += 1
            assert not case["isSound"], (number, text)
    print(accepted, refused)
    """

  @Test func tablesAreReadAsPythonReadsThem() throws {
    let schema = Array(#"{"fields":[{"name":"a"},{"name":"b"},{"name":"c"}]}"#.utf8)
    let format = RecordFormat.csv(try TableSchema(schema), CSVDialect())
    var plan = RecordPlan()
    plan.fields = ["a", "c"].map { RecordPlan.Field(name: $0, action: .pass, isRequired: false) }
    let filter = try RecordFilter(plan, format, schema: schema)
    var random = SeededGenerator(seed: 7)
    let cases = try (0..<4000).map { _ in
      let table = Self.hostileTable(&random)
      let text = Array(table.text.utf8)
      let output = NIOLockedValueBox(Data())
      let report = try RecordCheck(format, workers: 1).run(
        input(text, piece: Int.random(in: 1...200, using: &random)), through: filter, nil, now: Date(),
        to: RecordSink(write: { piece in output.withLockedValue { $0 += Data(piece.bytes) } }))
      return TableCase(
        text: Data(text), isSound: table.isSound, isValid: report.isValid, records: report.records,
        output: output.withLockedValue { $0 })
    }
    let result = try Command.run(
      try #require(Command.find("python3")), ["-c", Self.reader], input: try JSONEncoder().encode(cases))
    #expect(result.status == 0, "\(result.errors)")
    let counts = String(decoding: result.output, as: UTF8.self).split(separator: " ").compactMap {
      Int($0.trimmingCharacters(in: .whitespacesAndNewlines))
    }
    #expect(counts.count == 2 && counts.allSatisfy { $0 > 400 }, "\(counts)")
  }

  // MARK: XML

  /// DocBook 5.0, from Debian's docbook5-xml.
  private static let schemas = "/usr/share/xml/docbook/schema/xsd/5.0"

  private static let article = """
    <article xmlns="http://docbook.org/ns/docbook" xmlns:xlink="http://www.w3.org/1999/xlink" version="5.0" xml:lang="en">
    <info><title>A title</title><author><personname><firstname>Ann</firstname><surname>Example</surname></personname></author>
    <pubdate>2026-01-01</pubdate></info>
    <section xml:id="s1"><title>One</title><para>Text with <emphasis role="bold">weight</emphasis> and a
    <link xlink:href="https://example.org/">link</link>.</para>
    <itemizedlist><listitem><para>a</para></listitem><listitem><para>b</para></listitem></itemizedlist></section>
    <section xml:id="s2"><title>Two</title><informaltable><tgroup cols="2"><tbody><row><entry>1</entry><entry>2</entry></row></tbody>
    </tgroup></informaltable><programlisting language="c"><![CDATA[a < b]]></programlisting></section>
    </article>
    """

  private static func mutated(_ random: inout SeededGenerator) -> [UInt8] {
    var text = article
    for _ in 0..<Int.random(in: 0...2, using: &random) {
      let names = ["para", "title", "section", "listitem", "entry", "emphasis", "surname", "row", "nothing"]
      let (old, new) = (names.randomElement(using: &random)!, names.randomElement(using: &random)!)
      let index = text.index(text.startIndex, offsetBy: Int.random(in: 0..<text.count, using: &random))
      switch Int.random(in: 0..<6, using: &random) {
      case 0: text = text.replacing("<\(old)>", with: "<\(new)>").replacing("</\(old)>", with: "</\(new)>")
      case 1:
        text = text.replacing("<\(old)>", with: "", maxReplacements: 1).replacing(
          "</\(old)>", with: "", maxReplacements: 1)
      case 2:
        text = text.replacing(
          "<\(old)>", with: "<\(old) \(["role", "xml:id", "cols", "wrong"].randomElement(using: &random)!)=\"1\">",
          maxReplacements: 1)
      case 3:
        text.insert(
          contentsOf: ["<", "&", "&amp;", "x", "]]>", "<para/>", "<!-- c -->"].randomElement(using: &random)!, at: index
        )
      case 4: text.remove(at: index)
      default:
        text = text.replacing("cols=\"2\"", with: "cols=\"\(["0", "x", "", "3"].randomElement(using: &random)!)\"")
      }
    }
    return Array(text.utf8)
  }

  @Test func aPublicSchemaGivesTheVerdictsOfXmllint() throws {
    func file(_ name: String) throws -> [UInt8] {
      try Array(Data(contentsOf: URL(fileURLWithPath: "\(Self.schemas)/\(name)")))
    }
    let schema = try XMLSchema(
      file("docbook.xsd"), documents: ["xlink.xsd": file("xlink.xsd"), "xml.xsd": file("xml.xsd")])
    let scratch = try Scratch()
    var random = SeededGenerator(seed: 11)
    var verdicts: [String: Bool] = [:]
    for number in 0..<300 {
      let bytes = Self.mutated(&random)
      let path = try scratch.file("\(number).xml", Data(bytes))
      let report = try RecordCheck(.xml(schema), workers: 1).run(
        input(bytes, piece: Int.random(in: 1...500, using: &random)))
      verdicts[path] = report.isValid
    }
    // One process for all. It may say that a file validates, and then that it cannot be read to its end.
    let result = try Command.run(
      try #require(Command.find("xmllint")),
      ["--stream", "--noout", "--nonet", "--schema", "\(Self.schemas)/docbook.xsd"] + verdicts.keys.sorted())
    func files(_ end: String) -> Set<Substring> {
      Set(result.errors.split(separator: "\n").filter { $0.hasSuffix(end) }.map { $0.dropLast(end.count) })
    }
    let valid = files(" validates").subtracting(files(" : failed to parse"))
    for (path, isValid) in verdicts {
      #expect(
        isValid == valid.contains(path[...]),
        "\((try? String(contentsOfFile: path, encoding: .utf8)) ?? path): ours says \(isValid)")
    }
    #expect(verdicts.values.contains(true) && verdicts.values.filter { !$0 }.count > 50)
  }
}
