// collect: what waits for us at partners, now.

import ArgumentParser
import Foundation
import Gateway
import Sealing
import Store

struct CollectCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "collect",
    abstract: "Fetch what waits for us at partners, now: verified while it comes, opened, delivered, receipted.",
    discussion: "A running gateway collects by itself, too. Works on a stopped home as well.")

  @OptionGroup var options: HomeOptions
  @Argument(help: "Only from this partner.") var partner: String?
  @Flag(help: "No progress bar.") var quiet = false

  func run() async throws {
    let partner = partner
    let rows = try await Session(options).holding { [quiet] perform in
      try await withThrowingTaskGroup(of: [JSON]?.self) { group in
        group.addTask { try await perform(.collect, partner.map { ["partner": .string($0)] } ?? [:]) }
        group.addTask {
          // The bar may fail; what it shows goes on.
          do { try await Self.show(perform, partner, quiet: quiet) } catch {}
          return nil
        }
        defer { group.cancelAll() }
        while let rows = try await group.next() {
          if let rows { return rows }
        }
        return []
      }
    }
    options.output.table(
      rows,
      [
        ("ID", "id"), ("PARTNER", "peer"), ("STATE", "state"), ("BYTES", "bytes"), ("NAME", "inboxName"),
        ("NOTE", "note"),
      ])
    if rows.isEmpty, !options.json { Output.note("nothing waits") }
    let good = rows.filter { ["delivered", "acknowledged", "cancelled", "expired"].contains($0.text("state")) }.count
    guard good < rows.count else { return }
    func has(_ states: String...) -> Bool { rows.contains { states.contains($0.text("state")) } }
    let isUnreachable = has("unreachable") || rows.contains { $0.text("code") == "partner.unreachable" }
    throw ExitCode(
      good > 0
        ? .partlyDone
        : isUnreachable ? .unreachable : has("corrupt") ? .failed : has("quarantined", "refused") ? .refused : .waiting)
  }

  /// Draws how much has come until it is cancelled.
  private static func show(_ perform: Session.Perform, _ partner: String?, quiet: Bool) async throws {
    guard !quiet, isatty(STDERR_FILENO) == 1 else { return }
    var bar: Progress?
    while !Task.isCancelled {
      var arguments: [String: JSON] = ["all": false, "limit": 1000, "state": "receiving"]
      arguments["partner"] = partner.map { .string($0) }
      let arriving = try await perform(.queue, arguments).filter { $0.member("arrivedBytes") != nil }
      func sum(_ name: String) -> Int64 { arriving.reduce(0) { $0 + (Int64($1.text(name)) ?? 0) } }
      if !arriving.isEmpty {
        let shown = bar ?? Progress(total: nil, quiet: quiet)
        bar = shown
        shown.update(sum("arrivedBytes"), ofTotal: sum("bodyBytes"))
      }
      do { try await Task.sleep(for: .milliseconds(200)) } catch { break }
    }
    bar?.finish()
  }
}
