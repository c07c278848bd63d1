// Each rule of each example, removed or inverted, must fail one of its cases: a rule that no case protects protects nobody.

import Foundation
import Gateway
import Policies
import Sealing
import TestSupport
import Testing

@Suite struct PolicyMutationTests {
  private static let policies = Command.root.appendingPathComponent("policies")

  /// A change of an agreement's document, by where it is.
  private struct Mutant {
    let name: String
    let document: JSON
  }

  private static func replacing(_ document: JSON, _ path: [String], _ change: (JSON?) -> JSON?) -> JSON {
    guard case .object(var members) = document, let first = path.first else { return document }
    members[first] =
      path.count == 1 ? change(members[first]) : members[first].map { replacing($0, Array(path.dropFirst()), change) }
    return .object(members)
  }

  private static func list(_ document: JSON, _ path: [String]) -> [JSON] {
    var value: JSON? = document
    for step in path {
      guard case .object(let members)? = value else { return [] }
      value = members[step]
    }
    guard case .array(let items)? = value else { return [] }
    return items
  }

  private static func mutants(_ document: JSON) -> [Mutant] {
    var mutants: [Mutant] = []
    for path in [["forbid"], ["records", "include"], ["records", "exclude"]] {
      for index in list(document, path).indices {
        mutants.append(
          Mutant(
            name: "without \(path.joined(separator: ".")) \(index)",
            document: replacing(document, path) { value in
              guard case .array(var items)? = value else { return value }
              items.remove(at: index)
              return .array(items)
            }))
      }
    }
    for (index, field) in list(document, ["fields"]).enumerated() {
      guard case .object(let members) = field, case .string(let action)? = members["action"],
        case .string(let name)? = members["name"]
      else { continue }
      for other in action == "pass" ? ["drop"] : ["pass"] {
        mutants.append(
          Mutant(
            name: "\(name) \(action) → \(other)",
            document: replacing(document, ["fields"]) { value in
              guard case .array(var items)? = value else { return value }
              var changed = members
              changed["action"] = .string(other)
              for key in ["to", "value"] { changed[key] = nil }
              items[index] = .object(changed)
              return .array(items)
            }))
      }
    }
    for (path, wide) in [(["consent", "maxStaleness"], "P3650D"), (["consent", "maxValidity"], "P3650D")] {
      mutants.append(
        Mutant(
          name: "wide \(path.joined(separator: "."))",
          document: replacing(document, path) { $0 == nil ? nil : .string(wide) }))
    }
    mutants.append(
      Mutant(
        name: "small groups",
        document: replacing(document, ["records", "aggregate", "minGroupSize"]) { $0 == nil ? nil : 2 }))
    return mutants.filter { $0.document != document }
  }

  @Test(arguments: ["deaths-to-benefits.v2", "injuries-to-cover.v1", "water-to-drought-plan.v2"])
  func everyRuleIsProtectedByACase(name: String) throws {
    let scratch = try Scratch()
    let folder = "\(scratch.path)/p"
    let files = FileManager.default
    try files.createDirectory(atPath: "\(folder)/cases", withIntermediateDirectories: true)
    for part in ["schemas", "examples"] {
      try files.copyItem(at: Self.policies.appendingPathComponent(part), to: URL(fileURLWithPath: "\(folder)/\(part)"))
    }
    let suite = "\(name.prefix { $0 != "." }).yaml"
    try files.copyItem(
      at: Self.policies.appendingPathComponent("cases/\(suite)"), to: URL(fileURLWithPath: "\(folder)/cases/\(suite)"))
    let yaml = try String(contentsOf: Self.policies.appendingPathComponent("\(name).yaml"), encoding: .utf8)
    let original = try StrictYAML.parse(yaml)
    func failures(_ document: JSON) throws -> Int? {
      do throws(SealingError) { _ = try Agreement(document) } catch { return nil }
      try Data(document.canonical).write(to: URL(fileURLWithPath: "\(folder)/\(name).yaml"))
      do {
        return try CaseFiles.run(folder).filter { !$0.passed }.count
      } catch is ConfigurationError {
        return nil
      }
    }
    #expect(try failures(original) == 0)
    var tried = 0
    for mutant in Self.mutants(original) {
      // What no gateway would load harms nobody.
      guard let failed = try failures(mutant.document) else { continue }
      tried += 1
      #expect(failed > 0, "no case notices: \(mutant.name)")
    }
    #expect(tried >= 5)
  }
}
