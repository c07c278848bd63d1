// The official JSON-Schema-Test-Suite, where it is at hand, and committed cases in its form.
//
// JSON_SCHEMA_TEST_SUITE names its folder (with tests/ and remotes/); beside the package it is found by itself.

import Foundation
import Testing

@testable import Records

private let package = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
  .deletingLastPathComponent()

private let suite: URL? = {
  let named = ProcessInfo.processInfo.environment["JSON_SCHEMA_TEST_SUITE"].map { URL(fileURLWithPath: $0) }
  let folder = named ?? package.deletingLastPathComponent().appendingPathComponent("shared/suites/json-schema")
  return FileManager.default.fileExists(atPath: folder.appendingPathComponent("tests").path) ? folder : nil
}()

private func files(_ folder: URL) throws -> [URL] {
  try FileManager.default.contentsOfDirectory(at: folder, includingPropertiesForKeys: nil)
    .filter { $0.pathExtension == "json" }.sorted { $0.path < $1.path }
}

/// What the suite serves under http://localhost:1234/.
private func remotes(_ folder: URL) throws -> SchemaBundle {
  var bundle = SchemaBundle()
  let root = folder.appendingPathComponent("remotes").standardizedFileURL.path + "/"
  for case let file as URL in FileManager.default.enumerator(
    at: folder.appendingPathComponent("remotes"), includingPropertiesForKeys: nil)!
  where file.pathExtension == "json" {
    let path = file.standardizedFileURL.path
    try bundle.add(Array(Data(contentsOf: file)), uri: "http://localhost:1234/" + path.dropFirst(root.count))
  }
  return bundle
}

/// Runs one file of the suite; the failures, and how many tests there were.
private func run(
  _ file: URL, _ bundle: SchemaBundle, _ dialect: SchemaDialect, assertsFormat: Bool
) throws -> (failures: [String], count: Int) {
  let groups = try JSONDocument(Array(Data(contentsOf: file))).root.items
  var failures: [String] = []
  var count = 0
  for group in groups {
    let title = "\(file.lastPathComponent): \(group["description"]!.string!)"
    let tests = group["tests"]!.items
    count += tests.count
    let program: SchemaProgram
    do {
      program = try SchemaProgram.compile(
        Array(group["schema"]!.text.utf8), bundle: bundle, fallback: dialect, assertsFormat: assertsFormat)
    } catch {
      failures += tests.map { "\(title): \($0["description"]!.string!): \(error)" }
      continue
    }
    var evaluator = SchemaEvaluator(program)
    for test in tests {
      let text = Array(test["data"]!.text.utf8)
      let document = try JSONDocument(text)
      var nodes = document.nodes
      let (isValid, explained) = document.bytes.withUnsafeBufferPointer { bytes in
        nodes.withUnsafeMutableBufferPointer { nodes in
          (
            evaluator.isValid(bytes.baseAddress!, nodes.baseAddress!),
            evaluator.explain(bytes.baseAddress!, nodes.baseAddress!, countMax: 100)
          )
        }
      }
      let expected = test["valid"]!.bool!
      if isValid != expected { failures.append("\(title): \(test["description"]!.string!)") }
      if isValid != explained.isEmpty {
        failures.append("\(title): \(test["description"]!.string!): explains otherwise")
      }
    }
  }
  return (failures, count)
}

@Suite struct SchemaSuiteTests {
  @Test func ourOwnCasesHold() throws {
    let cases = try files(package.appendingPathComponent("Tests/RecordsTests/Cases"))
    #expect(!cases.isEmpty)
    for file in cases {
      #expect(
        try run(file, SchemaBundle(), .draft202012, assertsFormat: true).failures == [], "\(file.lastPathComponent)")
    }
  }

  @Test(.enabled(if: suite != nil), arguments: ["draft2020-12", "draft7"])
  func everyRequiredTestOfTheOfficialSuitePasses(draft: String) throws {
    let (failures, count) = try runAll("tests/\(draft)", draft, assertsFormat: false)
    #expect(failures.isEmpty, "\(failures.count) of \(count):\n\(failures.joined(separator: "\n"))")
    #expect(count == (draft == "draft7" ? 927 : 1299))
  }

  @Test(.enabled(if: suite != nil), arguments: ["draft2020-12", "draft7"])
  func everyAssertedFormatPasses(draft: String) throws {
    let (failures, count) = try runAll("tests/\(draft)/optional/format", draft, assertsFormat: true)
    #expect(failures.isEmpty, "\(failures.count) of \(count):\n\(failures.joined(separator: "\n"))")
  }

  private func runAll(_ folder: String, _ draft: String, assertsFormat: Bool) throws -> (failures: [String], count: Int)
  {
    let bundle = try remotes(suite!)
    return try files(suite!.appendingPathComponent(folder)).reduce(into: ([], 0)) { all, file in
      let result = try run(file, bundle, draft == "draft7" ? .draft07 : .draft202012, assertsFormat: assertsFormat)
      all.failures += result.failures
      all.count += result.count
    }
  }
}
