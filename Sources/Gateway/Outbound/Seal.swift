// Check, Authorize, Seal: from a claimed original to a durable body and a signed manifest.
//
//   open .claimed/ID-NAME (O_NOFOLLOW|O_NONBLOCK)  fstat  →  decide  →  check the records  →  pass into spool/out/ID.part  →  fstat again
//   →  fdatasync  rename  fsync(spool/out)  →  sign  →  COMMIT sealed  →  COMMIT queued  →  unlink the original

import CLinux
import Foundation
import Glibc
import Logging
import Policies
import Records
import Sealing
import Store

/// Works on transfers in state claimed, and on sealed ones that a crash left there.
struct Seal: Sendable {
  let context: GatewayContext
  private let outcomes: Outcomes

  init(context: GatewayContext) {
    self.context = context
    outcomes = Outcomes(context: context)
  }

  func seal(_ transfer: Transfer) async throws {
    context.useClaim(of: transfer, 1)
    defer { context.useClaim(of: transfer, -1) }
    let claim = "\(context.home.claims(transfer.agreement))/\(Claim(of: transfer).fileName)"
    let original: Original
    do {
      original = try await context.pool.run { try Original(claim) }
    } catch let error as DiskError where error.errno == ENOENT {
      try await end(transfer, .cancelled, code: "input.vanished", note: "the claimed file was taken away")
      return
    } catch let error as DiskError where [EACCES, EPERM].contains(error.errno) {
      try await refuse(
        transfer, claim, code: "input.unreadable", detail: "the gateway may not read the file",
        next: "Let the gateway's user read it, then drop it again.")
      return
    } catch let error as Original.Unfit {
      try await refuse(
        transfer, claim, code: "input.special-file", detail: error.why, next: "Drop a plain file with one name.")
      return
    }
    let instant = context.now()
    guard !original.mayBeWritten(at: instant) else {
      try await postpone(
        transfer, code: "input.still-written",
        note: original.hasWriter == nil
          ? "it was written a moment ago" : "a program still has the file open for writing")
      return
    }
    let agreement = context.current(transfer.agreement, at: instant)
    let draft = Draft(
      sender: context.agency, recipient: transfer.peer, name: transfer.name,
      mediaType: agreement?.mediaType ?? "application/octet-stream", payloadBytes: original.bytes)
    let decision = Evaluation.outbound(
      draft, under: agreement, try await context.circumstances(transfer.peer, agreement))
    switch decision.outcome {
    case .refuse:
      let code = decision.codes.first ?? .matchNone
      try await refuse(transfer, claim, code: code.rawValue, detail: decision.sentence, next: code.nextStep)
    case .hold:
      let code = decision.codes.first ?? .partnerPending
      try await postpone(transfer, code: code.rawValue, note: decision.sentence)
    case .permit:
      guard try context.hasRoom(for: original.bytes) else {
        throw DiskError("reserve", context.spool.path, errno: ENOSPC)
      }
      let judged = try await context.ledger.read { try $0.auditSize() }
      let work = SealingPass(
        context: context, transfer: transfer, agreement: agreement!, draft: draft, instant: instant)
      switch try await context.threads(for: original.bytes).run({
        try work.run(original, decision, judged: judged)
      }) {
      case .changed: try await postpone(transfer, code: "input.changed", note: "the file changed while it was read")
      case .invalid(let report):
        let code = ReasonCode.inputSchema
        try await refuse(
          transfer, claim, code: code.rawValue,
          detail: report.sentence + (agreement?.records.map { " (schema \($0.schema))" } ?? ""),
          next: code.nextStep, report: report)
      case .refused(let decision):
        let code = decision.codes.first ?? .recordsNone
        try await refuse(transfer, claim, code: code.rawValue, detail: decision.sentence, next: code.nextStep)
      case .sealed(let sealed):
        try await commit(sealed, transfer, claim, agreement!)
      }
    }
  }

  private func commit(
    _ sealed: SealedPackage, _ transfer: Transfer, _ claim: String, _ agreement: Agreement
  ) async throws {
    if !sealed.setAside.isEmpty {
      // Before the commit: after it the original may go.
      try await context.pool.run {
        try outcomes.setAside(
          sealed.setAside, name: "\(transfer.name)~\(transfer.id.text.prefix(8))", agreement: transfer.agreement)
      }
    }
    let row: Transfer
    do {
      row = try await record(sealed, transfer, agreement)
    } catch let full as DayIsFull {
      return try await postpone(transfer, code: ReasonCode.limitRate.rawValue, note: full.note)
    }
    try await queue(row, under: agreement)
    try await context.pool.run { try Directory.remove(claim) }
  }

  /// Others were sealed meanwhile, as many as may go today.
  private struct DayIsFull: Error { let note: String }

  private func record(_ sealed: SealedPackage, _ transfer: Transfer, _ agreement: Agreement) async throws -> Transfer {
    try await context.commitSealed(transfer.id) { tx in
      let today = try tx.reader.packages(agreement: transfer.agreement, peer: transfer.peer, onDayOf: tx.at)
      guard today < agreement.packagesPerDayMax else {
        throw DayIsFull(note: "\(today) of \(agreement.packagesPerDayMax) packages today")
      }
      let row = try tx.advance(
        transfer, to: .sealed,
        [
          "manifest": .string(sealed.envelope.payloadDigest.hex),
          "payloadBytes": .integer(sealed.manifest.payloadBytes),
          "decision": sealed.decision.document, "agreementSha256": .string(sealed.manifest.agreement.sha256.hex),
        ]
      ) { next in
        next.payloadBytes = sealed.manifest.payloadBytes
        next.bodyBytes = sealed.manifest.bodyBytes
        next.manifest = sealed.envelope.bytes
        next.manifestDigest = sealed.envelope.payloadDigest.hex
        next.key = sealed.key
        next.sealedTo = sealed.sealedTo
        next.expiresAt = sealed.manifest.expiresAt
        next.isCollected = agreement.waitsAtSender
        next.via = agreement.via
        next.nextAt = tx.at + 5
      }
      if let package = sealed.package { try tx.put(package) }
      try tx.countPackage(agreement: transfer.agreement, peer: transfer.peer, onDayOf: tx.at)
      return row
    }
  }

  /// sealed → queued once nobody has to approve it any more, with the outcome file that tells the batch job that its file was
  /// taken.
  func queue(_ transfer: Transfer, under agreement: Agreement? = nil) async throws {
    let waits = try await Approvals(context: context).missing(for: transfer, under: agreement)
    guard waits == nil else {
      if try Approvals(context: context).hasExpired(transfer) {
        let code = ReasonCode.approvalExpired
        _ = try await Ending(context: context).end(
          transfer, .cancelled, code: code.rawValue, note: "nobody approved it in time. \(code.nextStep)")
        return
      }
      let row = try await context.ledger.write { tx in
        try tx.amend(transfer) {
          $0.nextAt = tx.at + 60
          $0.code = ReasonCode.approvalPending.rawValue
          $0.note = waits!
        }
      }
      return try await context.pool.run { try outcomes.write(row) }
    }
    let row = try await context.ledger.write { tx in
      let row = try tx.advance(transfer, to: .queued) { if $0.isCollected { $0.nextAt = nil } }
      if row.isCollected { try tx.offer(row) }
      return row
    }
    let lane = context.news.lane(of: row.peer)
    (row.isCollected ? lane.mail : lane.sealed).notify()
    try await context.pool.run { try outcomes.write(row) }
  }

  private func refuse(
    _ transfer: Transfer, _ claim: String, code: String, detail: String, next: String, report: RecordReport? = nil
  ) async throws {
    // The original first: a crash after this finds the row still claimed, and the file vanished from the claims.
    let row = try await context.ledger.write { tx in
      try tx.advance(transfer, to: .refused) {
        $0.code = code
        $0.note = detail
        $0.nextAt = nil
      }
    }
    try await context.pool.run {
      try outcomes.giveBack(
        claim, name: transfer.name, agreement: transfer.agreement, id: transfer.id, code: code, detail: detail,
        next: next, report: report)
      try outcomes.write(row)
    }
    context.logger.notice("transfer \(transfer.id) is refused: \(code)")
  }

  private func end(_ transfer: Transfer, _ state: TransferState, code: String, note: String) async throws {
    let row = try await context.ledger.write { tx in
      try tx.advance(transfer, to: state) {
        $0.code = code
        $0.note = note
        $0.nextAt = nil
      }
    }
    try await context.pool.run { try outcomes.write(row) }
  }

  private func postpone(_ transfer: Transfer, code: String, note: String) async throws {
    let attempts = transfer.attempts + 1
    let next = context.now() + Backoff.seconds(attempts, max: min(60, context.configuration.retrySecondsMax))
    let row = try await context.ledger.write { tx in
      try tx.amend(transfer) {
        $0.attempts = attempts
        $0.nextAt = next
        $0.code = code
        $0.note = note
      }
    }
    try await context.tell(row, waitedFor: transfer.code)
  }
}

/// A claimed file, open, and as it was when it was opened.
final class Original: Sendable {
  struct Unfit: Error { let why: String }

  let file: File
  let bytes: Int64
  /// nil where nobody says: that takes the file's owner, or CAP_LEASE.
  let hasWriter: Bool?
  private let inode: UInt
  private let modified: [Int]

  init(_ path: String) throws {
    let file = try Self.open(path)
    let info = try file.status()
    guard info.st_mode & S_IFMT == S_IFREG else { throw Unfit(why: "not a plain file") }
    guard info.st_nlink == 1 else { throw Unfit(why: "the file has another name (hard link)") }
    bytes = Int64(info.st_size)
    inode = info.st_ino
    modified = Self.times(info)
    hasWriter =
      switch sp_no_writer(file.descriptor) {
      case 0: true
      case 1: false
      default: nil
      }
    self.file = file
  }

  private static func open(_ path: String) throws -> File {
    do {
      return try File(path, O_RDONLY | O_NONBLOCK)
    } catch {
      guard error.errno == ELOOP || error.errno == ENXIO else { throw error }
      throw Unfit(why: "a symbolic link or device is not a payload")
    }
  }

  /// How long a file must have been left alone where nobody says whether it is open.
  static let quietSeconds: TimeInterval = 5

  func mayBeWritten(at instant: Date) -> Bool {
    if let hasWriter { return hasWriter }
    let age = instant.timeIntervalSince1970 - Double(modified[0])
    // One that is dated in the future says nothing.
    return (0..<Self.quietSeconds).contains(age)
  }

  /// Whether the bytes that were read are those of one moment.
  func isUnchanged() throws -> Bool {
    let info = try file.status()
    return Int64(info.st_size) == bytes && info.st_ino == inode && Self.times(info) == modified
  }

  private static func times(_ info: stat) -> [Int] {
    [info.st_mtim.tv_sec, info.st_mtim.tv_nsec]
  }
}
