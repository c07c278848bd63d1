// What people and scripts read. Rows go to standard output; warnings, progress and errors to standard error.

import Foundation
import Gateway
import Glibc
import Logging
import Sealing

struct Output: Sendable {
  let asJSON: Bool
  private let descriptor: Int32

  init(asJSON: Bool, to descriptor: Int32 = STDOUT_FILENO) {
    self.asJSON = asJSON
    self.descriptor = descriptor
  }

  /// One JSON object a line, or what `human` makes of it.
  func rows(_ rows: [JSON], human: (JSON) -> String) {
    for row in rows { line(asJSON ? String(decoding: row.canonical, as: UTF8.self) : human(row)) }
  }

  func row(_ row: JSON, human: String) { rows([row]) { _ in human } }

  /// A table with a heading, columns as wide as they need; JSON Lines for scripts.
  func table(_ rows: [JSON], _ columns: [(title: String, member: String)]) {
    guard !asJSON else { return self.rows(rows) { _ in "" } }
    let cells = [columns.map(\.title)] + rows.map { row in columns.map { row.text($0.member).onOneLine } }
    let widths = columns.indices.map { column in cells.map { $0[column].count }.max() ?? 0 }
    for row in cells {
      let padded = zip(row, widths).map { $0 + String(repeating: " ", count: $1 - $0.count) }
      line(padded.joined(separator: "  ").replacing(/\ +$/, with: ""))
    }
  }

  /// A reader that went away (a closed pipe), or a full disk behind a redirection, ends the command.
  func line(_ text: String) {
    guard Self.write("\(text)\n", to: descriptor) else { Glibc.exit(ExitStatus.disk.rawValue) }
  }

  /// Standard error may be closed or full; that is no reason to stop.
  static func note(_ text: String) { _ = write("\(text)\n", to: STDERR_FILENO) }

  /// FileHandle's own write traps when the descriptor fails.
  static func write(_ text: String, to descriptor: Int32) -> Bool {
    var bytes = Array(text.utf8)[...]
    while !bytes.isEmpty {
      let count = bytes.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
      if count < 0, errno == EINTR { continue }
      guard count > 0 else { return false }
      bytes = bytes.dropFirst(count)
    }
    return true
  }

  static func failure(_ error: any Error, asJSON: Bool) {
    failure(String(describing: error), ExitStatus(error), asJSON: asJSON)
  }

  static func failure(_ text: String, _ exit: ExitStatus, asJSON: Bool) {
    if asJSON {
      let object: JSON = ["error": .string(text), "exit": .integer(Int64(exit.rawValue))]
      note(String(decoding: object.canonical, as: UTF8.self))
    } else {
      note("sallyport: \(text)")
    }
  }
}

extension JSON {
  /// A member as text for people; empty when it is not there.
  func text(_ name: String) -> String {
    guard case .object(let members) = self, let value = members[name] else { return "" }
    switch value {
    // Names come from anybody: none of them writes to a terminal what it likes.
    case .string(let text):
      return text.split(separator: "\n", omittingEmptySubsequences: false).map { String($0).onOneLine }.joined(
        separator: "\n")
    case .integer(let number): return String(number)
    case .bool(let flag): return flag ? "yes" : "no"
    default: return String(decoding: value.canonical, as: UTF8.self)
    }
  }

  func member(_ name: String) -> JSON? {
    guard case .object(let members) = self else { return nil }
    return members[name]
  }
}

/// The log as JSON Lines on standard error: `{"at", "level", "message", "metadata"?}`.
struct JSONLog: LogHandler {
  var logLevel = Logger.Level.info
  var metadata: Logger.Metadata = [:]

  subscript(metadataKey key: String) -> Logger.Metadata.Value? {
    get { metadata[key] }
    set { metadata[key] = newValue }
  }

  func log(event: LogEvent) {
    var line: [String: JSON] = [
      "at": .string(Timestamp.format(Date())), "level": .string(event.level.rawValue),
      "message": .string("\(event.message)"),
    ]
    let more = metadata.merging(event.metadata ?? [:]) { _, new in new }
    if !more.isEmpty { line["metadata"] = .object(more.mapValues { .string("\($0)") }) }
    Output.note(String(decoding: JSON.object(line).canonical, as: UTF8.self))
  }
}

/// A bar on standard error while something long runs, or words where nobody knows its end; nothing when standard error is not a
/// terminal.
final class Progress: @unchecked Sendable {
  // Proof for @unchecked: `lastDrawn` and `total` are touched only under `lock`.
  private let lock = NSLock()
  private var total: Int64?
  private let start = ContinuousClock.now
  private var lastDrawn: ContinuousClock.Instant
  private let isShown: Bool

  /// - Parameter total: bytes; nil when it is not known.
  init(total: Int64?, quiet: Bool) {
    self.total = total
    lastDrawn = start
    isShown = !quiet && isatty(STDERR_FILENO) == 1
  }

  /// - Parameter ofTotal: when it is another than before.
  func update(_ done: Int64, ofTotal: Int64? = nil) {
    draw { [self] seconds in
      total = ofTotal ?? total
      let rate = Int64(Double(done) / max(seconds, 0.001))
      var text = Self.bytes(done)
      if let total, total > 0 {
        // A file may grow while it is read.
        let share = min(1, Double(done) / Double(total))
        let filled = Int(30 * share)
        text =
          "[\(String(repeating: "#", count: filled))\(String(repeating: "-", count: 30 - filled))] \(Int(100 * share))%"
      }
      return "\(text)  \(Self.bytes(rate))/s"
    }
  }

  /// What is going on, and for how long; nothing in the first second.
  func update(_ words: String) {
    draw { seconds in seconds < 1 ? nil : "\(words)  \(Int(seconds)) s" }
  }

  /// - Parameter text: made of the seconds since the beginning.
  private func draw(_ text: (Double) -> String?) {
    guard isShown else { return }
    lock.lock()
    defer { lock.unlock() }
    let now = ContinuousClock.now
    guard now - lastDrawn >= .milliseconds(100), let text = text((now - start) / .seconds(1)) else { return }
    lastDrawn = now
    _ = Output.write("\r\(text)\u{1b}[K", to: STDERR_FILENO)
  }

  /// Shows words while `body` runs.
  static func during<Value>(_ words: String, _ body: () async throws -> Value) async throws -> Value {
    let progress = Progress(total: nil, quiet: false)
    guard progress.isShown else { return try await body() }
    let drawing = Task {
      while !Task.isCancelled {
        progress.update(words)
        try? await Task.sleep(for: .milliseconds(200))
      }
    }
    let result: Result<Value, any Error>
    do { result = .success(try await body()) } catch { result = .failure(error) }
    drawing.cancel()
    await drawing.value
    progress.finish()
    return try result.get()
  }

  func finish() {
    guard isShown else { return }
    lock.lock()
    defer { lock.unlock() }
    guard lastDrawn > start else { return }
    _ = Output.write("\r\u{1b}[K", to: STDERR_FILENO)
  }

  static func bytes(_ count: Int64) -> String {
    var value = count
    var rest: Int64 = 0
    for unit in ["B", "KiB", "MiB", "GiB"] {
      if value < 1024 { return unit == "B" ? "\(value) B" : "\(value).\(rest * 10 / 1024) \(unit)" }
      rest = value % 1024
      value /= 1024
    }
    return "\(value).\(rest * 10 / 1024) TiB"
  }
}
