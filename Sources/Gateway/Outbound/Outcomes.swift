// What a batch job reads: returned/<agreement>/NAME.outcome.json, and for a refused original NAME.reason.json and .txt.
//
// These files are a view of the ledger: written by rename, so never half, and written again at start for what changed last.

import Foundation
import Glibc
import Logging
import Policies
import Records
import Sealing
import Store

/// Writes outcome and reason files. Never values of records.
struct Outcomes: Sendable {
  let context: GatewayContext

  /// Records where a transfer is now. What cannot be written now is owed, and holds up nothing.
  ///
  /// - Throws: DiskError of a disk whose state is unknown.
  func write(_ transfer: Transfer) throws {
    do {
      // Who looks whose outcome a name is must be the one that takes it.
      try context.outcomeLock.withLock { try put(transfer) }
    } catch let error as DiskError where !error.isFatal {
      if context.owedOutcomes.withLockedValue({ $0.updateValue(transfer, forKey: transfer.id) == nil }) {
        context.logger.error("the outcome file of \(transfer.id) is written later: \(error)")
      }
    }
  }

  /// Writes what is owed, until it is cancelled.
  ///
  /// - Throws: `FatalFailure`.
  func writeOwed() async throws {
    while !Task.isCancelled {
      for (id, transfer) in context.owedOutcomes.withLockedValue({ $0 }) {
        do {
          try await context.pool.run { try refresh(transfer) }
          context.owedOutcomes.withLockedValue { $0[id] = nil }
        } catch {
          _ = try Disposition.survived(error)
        }
      }
      await Signal().wait(after: 0, for: .seconds(Self.owedSeconds))
    }
  }

  private static let owedSeconds = 5

  /// The same for one that may have moved on since `transfer` was read.
  func refresh(_ transfer: Transfer) throws {
    try context.outcomeLock.withLock {
      if let now = try context.ledger.readNow({ try $0.transfer(transfer.sender, transfer.id) }) { try put(now) }
    }
  }

  private func put(_ transfer: Transfer) throws {
    guard transfer.direction == .out else { return }
    let directory = context.home.returned(transfer.agreement)
    try Directory.make(directory)
    var path = path(transfer)
    let name = Self.fileName(transfer.name, transfer.id)
    let older = { (id: String) in "\(directory)/\(Self.older(name, id)).outcome.json" }
    if transfer.replacedBy != nil {
      // The name belongs to what took its place.
      path = older(transfer.id.text)
    } else if let other = try holder(of: path), other.id != transfer.id.text {
      // The same name twice: the older one's outcome goes by its id.
      if (other.claimed, other.id) < (Self.claimed(transfer), transfer.id.text) {
        try Directory.rename(path, older(other.id))
      } else {
        path = older(transfer.id.text)
      }
    }
    try replace("\(directory)/.\(transfer.id).outcome", path, Self.document(transfer).canonical + [10])
  }

  /// Writes again what a power cut may have taken: an outcome that its file does not tell.
  func restore(_ transfer: Transfer) throws {
    if case .object(let due) = Self.document(transfer), let told = try contents(path(transfer)),
      ["id", "outcome", "code"].allSatisfy({ told[$0] == due[$0] })
    {
      return
    }
    try write(transfer)
  }

  private func path(_ transfer: Transfer) -> String {
    "\(context.home.returned(transfer.agreement))/\(Self.fileName(transfer.name, transfer.id)).outcome.json"
  }

  /// A name that may not travel is not used for our files either.
  private static func fileName(_ name: String, _ id: TransferID) -> String {
    FileName.fault(name) == nil ? name : id.text
  }

  static func document(_ transfer: Transfer) -> JSON {
    let (outcome, next): (String, String) =
      switch transfer.state {
      case .cancelled where transfer.replacedBy != nil:
        ("replaced", "Nothing: the file goes on without some records, under the id replacedBy.")
      case .confirmed: ("delivered", "Nothing: the recipient has it.")
      case .refused:
        (
          "refused",
          ReasonCode(rawValue: transfer.code)?.nextStep(transfer.id)
            ?? "Ask your gateway's administrator: sallyport trace \(transfer.id)"
        )
      case .unconfirmed:
        (
          "unconfirmed",
          "The partner may have it, and has not said so. Ask it: where it has not, drop the file again."
        )
      case .expired: ("expired", "It was not handed over in time. Drop the file again when the partner can take it.")
      case .cancelled: ("cancelled", "It was cancelled here before it was handed over.")
      case .held: ("accepted", "An administrator lets it go on: sallyport resume \(transfer.id)")
      case .corrupt: ("failed", "Ask your gateway's administrator: sallyport trace \(transfer.id)")
      default:
        (
          "accepted",
          ReasonCode(rawValue: transfer.code)?.nextStep(transfer.id)
            ?? (transfer.isCollected ? "Nothing: the recipient comes for it." : "Nothing: it goes by itself.")
        )
      }
    var members: [String: JSON] = [
      "version": 1, "id": .string(transfer.id.text), "name": .string(transfer.name),
      "agreement": .string(transfer.agreement),
      "recipient": .string(transfer.peer.text), "outcome": .string(outcome), "state": .string(transfer.state.rawValue),
      "code": .string(transfer.code), "detail": .string(transfer.note), "next": .string(next),
      "claimed": .string(claimed(transfer)), "at": .string(Timestamp.format(transfer.updatedAt)),
    ]
    members["replacedBy"] = transfer.replacedBy.map { .string($0.text) }
    return .object(members)
  }

  /// To the millisecond: a name may be there again within a second.
  private static func claimed(_ transfer: Transfer) -> String {
    let milliseconds = Transfer.milliseconds(transfer.createdAt)
    return Timestamp.format(Date(timeIntervalSince1970: Double(milliseconds / 1000))).dropLast()
      + ".\(String(milliseconds % 1000 + 1000).dropFirst())Z"
  }

  private static func older(_ name: String, _ id: String) -> String { "\(name)~\(id.prefix(8))" }

  /// What an outcome file of ours says; nil when there is none: a batch job takes its outcomes when it likes. What is no small file is
  /// nothing of ours.
  private func contents(_ path: String) throws -> [String: JSON]? {
    do {
      let text = try File.contents(path, bytesMax: 65536).dropLast()
      guard case .object(let members)? = try? JSON(canonical: Array(text), bytesMax: 65536) else { return nil }
      return members
    } catch {
      guard [ENOENT, EINVAL, ELOOP, EFBIG, ENXIO].contains(error.errno) else { throw error }
      return nil
    }
  }

  /// Whose outcome lies under a name, and since when its file is known; nil when nothing of ours does.
  private func holder(of path: String) throws -> (id: String, claimed: String)? {
    guard let members = try contents(path), case .string(let id)? = members["id"], TransferID(id) != nil
    else { return nil }
    guard case .string(let claimed)? = members["claimed"] else { return (id, "") }
    return (id, claimed)
  }

  private func replace(_ temporary: String, _ path: String, _ text: [UInt8]) throws {
    try Directory.remove(temporary)
    let file = try File(temporary, O_WRONLY | O_CREAT | O_EXCL, mode: 0o640)
    try file.write(text, at: 0)
    do {
      try Directory.rename(temporary, path)
    } catch {
      guard error.errno == EISDIR else { throw error }
      // It is a view of the ledger: whoever put a directory in its place holds up nothing else.
      context.logger.error("\(path) cannot be written: a directory has its name")
      try Directory.remove(temporary)
    }
  }

  /// What this gateway calls its own files in `returned/`.
  private static let suffixes = [".outcome.json", ".reason.json", ".reason.txt", ".set-aside.age"]

  /// Gives the claimed original of a transfer that ended before it was sealed back, unless it is not there any more.
  func giveBackClaim(of transfer: Transfer) throws {
    let claim = "\(context.home.claims(transfer.agreement))/\(Claim(of: transfer).fileName)"
    guard Directory.exists(claim) else { return }
    try giveBack(
      claim, name: transfer.name, agreement: transfer.agreement, id: transfer.id, code: transfer.code,
      detail: transfer.note, next: ReasonCode(rawValue: transfer.code)?.nextStep ?? "Drop the file again.")
  }

  /// Moves an original that will not go to `returned/`, with its reason. `source` may be anything; it is never followed.
  func giveBack(
    _ source: String, name: String, agreement: String, id: TransferID, code: String, detail: String, next: String,
    report: RecordReport? = nil
  ) throws {
    let directory = context.home.returned(agreement)
    try Directory.make(directory)
    // Nor is one that would be taken for one of ours.
    let safe = Self.suffixes.contains { name.hasSuffix($0) } ? id.text : Self.fileName(name, id)
    var kept = "\(directory)/\(safe)"
    if Directory.exists(kept) { kept = "\(directory)/\(safe)~\(id.text.prefix(8))" }
    do {
      try Directory.renameExclusively(source, kept)
      try Directory.sync(directory)
    } catch {
      switch error.errno {
      // A crash came between this rename and what followed: the reason is still to be written.
      case ENOENT: break
      case EXDEV: try moveAcross(source, to: kept)
      default: throw error
      }
    }
    var reason: [String: JSON] = [
      "version": 1, "id": .string(id.text), "name": .string(name), "agreement": .string(agreement),
      "code": .string(code), "detail": .string(detail), "next": .string(next), "kept": .string(kept),
      "at": .string(Timestamp.format(context.now())),
    ]
    var findings = ""
    if let report {
      reason["records"] = report.summary
      reason["findings"] = .array(report.findings.map(\.document))
      let more = report.findingCount - Int64(report.findings.count)
      findings = "\n" + report.findings.map { "  \($0.text)\n" }.joined() + (more > 0 ? "  and \(more) more\n" : "")
    }
    let text =
      "\(name.onOneLine) was not sent.\n\nWhy:        \(detail) [\(code)]\nNext step:  \(next)\nReference:  \(id)\n\(findings)"
    try DurableFile.write(Array(text.utf8), to: "\(kept).reason.txt", mode: 0o640)
    // Last: whoever sees it finds everything else.
    try DurableFile.write(JSON.object(reason).canonical + [10], to: "\(kept).reason.json", mode: 0o640)
  }

  /// Keeps invalid records that the agreement sets aside, sealed to this agency: NAME.set-aside.age, for `sallyport open`.
  func setAside(_ records: [UInt8], name: String, agreement: String) throws {
    let directory = context.home.returned(agreement)
    try Directory.make(directory)
    let recipients = context.keys.card.card.sealingRecipients(at: context.now())
    let (key, payloadKey) = try PackageKey.create(for: recipients)
    let source = RecordSource.start { source in
      try source.put(OutputPiece(records))
      return RecordReport()
    }
    let temporary = "\(directory)/.\(name).set-aside"
    try Directory.remove(temporary)
    let file = try File(temporary, O_RDWR | O_CREAT | O_EXCL, mode: 0o640)
    try file.write(key.bytes, at: 0)
    _ = try Pass(engine: context.engine, workers: 1).seal(
      source, to: FileSink(file, offset: Int64(key.bytes.count)), payloadKey: payloadKey)
    try file.syncData()
    try Directory.rename(temporary, "\(directory)/\(name).set-aside.age")
    try Directory.sync(directory)
  }

  /// The outbox is on another file system: copy, sync, and only then remove.
  private func moveAcross(_ source: String, to target: String) throws {
    let temporary = "\(target).moving"
    try Directory.remove(temporary)
    try DurableFile.copy(source, to: temporary, mode: 0o640)
    try Directory.renameExclusively(temporary, target)
    try Directory.sync(Directory.parent(of: target))
    try Directory.remove(source)
  }
}
