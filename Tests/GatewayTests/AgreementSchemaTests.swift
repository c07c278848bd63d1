// The JSON Schema for editors and the gateway's own reader: both take and refuse the same agreements.

import Foundation
import NIOConcurrencyHelpers
import Policies
import Records
import TestSupport
import Testing

@Suite struct AgreementSchemaTests {
  private static let policies = Command.root.appendingPathComponent("policies")

  private static func yaml(_ name: String) throws -> String {
    try String(contentsOf: policies.appendingPathComponent(name), encoding: .utf8)
  }

  private static let schema = try! SchemaProgram.compile(
    Array(Data(contentsOf: policies.appendingPathComponent("agreement.schema.json"))))

  private static func isValid(_ yaml: String) throws -> Bool {
    let bytes = try StrictYAML.parse(yaml).canonical
    let done = NIOLockedValueBox(0)
    return try RecordCheck(.ndjson(schema), workers: 1).run { room in
      done.withLockedValue { start in
        let count = min(room.count, bytes.count - start)
        room.copyBytes(from: bytes[start..<(start + count)])
        start += count
        return count
      }
    }.isValid
  }

  @Test(arguments: [
    "deaths-to-benefits.v2.yaml", "injuries-to-cover.v1.yaml", "water-to-drought-plan.v2.yaml", "demo-files.v1.yaml",
  ])
  func theExamplesAreTakenByBoth(name: String) throws {
    #expect(try Self.isValid(Self.yaml(name)))
    #expect(throws: Never.self) { try Agreement(yaml: Self.yaml(name)) }
  }

  static let broken: [(String, String, String)] = [
    ("injuries-to-cover.v1.yaml", "model: opt-in", "model: opt-out"),
    ("injuries-to-cover.v1.yaml", "  noticeId: \"AC-63-2026-en\"\n", ""),
    ("injuries-to-cover.v1.yaml", "  maxStaleness: \"PT24H\"\n", ""),
    ("injuries-to-cover.v1.yaml", "spooled: reseal", "spooled: redact"),
    ("injuries-to-cover.v1.yaml", "  identifier: { field: subject.identifier, type: national-health-index }\n", ""),
    ("injuries-to-cover.v1.yaml", "[mlkem768x25519]", "[x25519]"),
    ("injuries-to-cover.v1.yaml", "specialCategoryCondition:", "specialCategory:"),
    ("injuries-to-cover.v1.yaml", "impactAssessment:", "assessment:"),
    ("injuries-to-cover.v1.yaml", "to: year", "to: decade"),
    ("injuries-to-cover.v1.yaml", "action: generalise, to: year", "action: generalise"),
    ("injuries-to-cover.v1.yaml", "action: mask,", "action: redact,"),
    ("injuries-to-cover.v1.yaml", "op: within", "op: matches"),
    ("injuries-to-cover.v1.yaml", "expiresAfter: \"P5D\"", "thresholdRecords: 5"),
    ("injuries-to-cover.v1.yaml", "role: recipient", "role: reader"),
    ("injuries-to-cover.v1.yaml", "required: 2,", "required: 0,"),
    ("injuries-to-cover.v1.yaml", "timeToLive: \"PT48H\"", "timeToLive: \"P2M\""),
    ("injuries-to-cover.v1.yaml", "scheme: hl7-hcs", "scheme: nz-pspr"),
    ("injuries-to-cover.v1.yaml", "allowed: false", "allowed: false, to: [x.gov]"),
    ("injuries-to-cover.v1.yaml", "dpv:Consent", "dpv:Wish"),
    ("injuries-to-cover.v1.yaml", "subjectReport: per-record", "subjectReport: exempt"),
    ("injuries-to-cover.v1.yaml", "reviewBy: \"2031-03-01\"", "reviewBy: \"soon\""),
    ("injuries-to-cover.v1.yaml", "sha256:", "sha512:"),
    ("injuries-to-cover.v1.yaml", "category: \"pd:Name\"", "category: \"name\""),
    (
      "injuries-to-cover.v1.yaml", "because: \"Free text cannot be minimised by field; it needs its own agreement.\"",
      "since: \"x\""
    ),
    ("water-to-drought-plan.v2.yaml", "minGroupSize: 10", "minGroupSize: 1"),
    ("water-to-drought-plan.v2.yaml", "countDistinct: icp, ", ""),
    ("deaths-to-benefits.v2.yaml", "consent: { model: none }", "consent: { model: none, purposeRef: x }"),
    ("deaths-to-benefits.v2.yaml", "mode: relay", "modes: [relay]"),
    ("deaths-to-benefits.v2.yaml", "format: csv", "format: excel"),
    ("deaths-to-benefits.v2.yaml", "  format: csv\n", ""),
    ("demo-files.v1.yaml", "approval: { mode: automatic }", "approval: { mode: automatic }\nnotify: []"),
    ("demo-files.v1.yaml", "id: demo-files", "id: Demo--files"), ("demo-files.v1.yaml", "version: 1", "version: 0"),
    ("demo-files.v1.yaml", "recipients: [mlkem768x25519, x25519]", "recipients: [x25519, x25519]"),
  ]

  @Test(arguments: broken) func whatIsBrokenIsRefusedByBoth(name: String, from: String, to: String) throws {
    let text = try Self.yaml(name)
    #expect(text.contains(from))
    let changed = text.replacing(
      from, with: to, maxReplacements: name.hasPrefix("demo") && from.hasPrefix("version") ? 2 : 1)
    #expect(try !Self.isValid(changed), "the schema takes it")
    #expect(throws: PolicyError.self, "the reader takes it") { try Agreement(yaml: changed) }
  }
}
