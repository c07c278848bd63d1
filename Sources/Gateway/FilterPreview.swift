// What an agreement would leave of a file, without a home: for people who write agreements, and for their jobs' tests.

import Foundation
import Glibc
import Policies
import Records
import Sealing
import Store

package struct FilterPreview: Sendable {
  private let agreement: Agreement
  private let enforcement: Enforcement

  /// - Parameter file: the agreement's; its schema stands beside it in `schemas/`.
  /// - Throws: `ConfigurationError`, also for an agreement whose payloads nobody looks into.
  package init(_ file: String) throws {
    agreement = try PolicyFolder.agreement(file)
    guard let enforcement = try PolicyFolder.enforcement(of: agreement, in: Directory.parent(of: file)) else {
      throw ConfigurationError("\(file): its payloads are opaque: nobody looks inside")
    }
    self.enforcement = enforcement
  }

  package var format: RecordFormat { enforcement.input }

  /// - Parameter output: a file that is written anew, "-" for standard output, nil for nowhere. It appears only when the input is
  ///   sound to its end.
  package func run(
    _ check: RecordCheck, _ input: @escaping RecordInput, to output: String?,
    onProgress: @escaping @Sendable (Int64) -> Void
  ) throws -> RecordReport {
    let key = SubjectKey(master: Secret(count: 32) { _ in }, .pseudonym, context: "preview")
    let digests: @Sendable (TextList) -> [SubjectDigest] = { list in
      key.references(list.bytes, ends: list.ends).map { SubjectDigest(high: $0.high, low: $0.low) }
    }
    // Nobody is asked for consent, so nobody is looked up.
    let gate = RecordGate(subjects: { _ in [] }, pseudonyms: digests)
    var descriptor: Int32 = -1
    if let output {
      descriptor =
        output == "-" ? dup(STDOUT_FILENO) : open("\(output).part", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
      guard descriptor >= 0 else { throw DiskError("open", output) }
    }
    var isSound = false
    defer { if let output, output != "-", !isSound { unlink("\(output).part") } }
    let target = descriptor
    defer { if target >= 0 { close(target) } }
    let report = try check.run(
      input, through: enforcement.filter, gate, now: Date(),
      to: RecordSink(write: { if target >= 0 { try StreamSink.writeAll(target, $0.bytes) } }), onProgress: onProgress)
    isSound = !report.isCutShort && report.isValid && report.filtered?.forbidden == nil
    if let output, output != "-", isSound { try Directory.rename("\(output).part", output) }
    return report
  }
}
