// Open, Admit, Deliver, Acknowledge: from a received body and its key to a file in the inbox, exactly once.
//
//   key bound to the manifest?  decide again  →  open into staging/SENDER,ID (verified chunk by chunk)
//   →  fdatasync  fsync(staging)  →  COMMIT opened  →  COMMIT delivering (with the inbox name)
//   →  renameat2(staging/…, inbox/<sender>/<agreement>/NAME, NOREPLACE)  fsync(inbox)  fsync(staging)
//   →  COMMIT delivered + receipt  →  unlink the body
//
// Recovery of delivering: source present → rename it; absent → it was renamed. The inbox is never looked into: the
// consumer may have taken the file already.

import Foundation
import Glibc
import Logging
import Policies
import Records
import Sealing
import Store

struct OpenPackage: Sendable {
  let context: GatewayContext

  private func staged(_ transfer: Transfer) -> String { "\(context.home.staging)/\(transfer.sender),\(transfer.id)" }

  private func removeStaged(_ transfer: Transfer) throws { try Directory.remove(staged(transfer)) }

  /// From a received key to the inbox.
  var stages: [Stage] {
    func stage(
      _ state: TransferState, _ concurrency: Int, hasKey: Bool? = nil,
      _ work: @escaping @Sendable (Transfer) async throws -> Void
    ) -> Stage {
      Stage(
        context: context, direction: .in, state: state, hasKey: hasKey, concurrency: concurrency,
        news: context.news.keys, work: work)
    }
    return [
      stage(.received, 24, hasKey: true) { try await open($0) },
      stage(.opened, 4) { try await deliver($0) },
      stage(.delivering, 4) { try await finish($0) },
    ]
  }

  // MARK: open

  /// Work of the stage `received`: rows that have their key.
  func open(_ transfer: Transfer) async throws {
    guard let bytes = transfer.key else { return }
    let manifest = try transfer.readManifest()
    let agreement = context.policies.agreement(manifest.agreement.sha256)
    let decision = Evaluation.inbound(
      manifest, under: agreement, try await context.circumstances(transfer.sender, agreement).countingNone,
      by: transfer.isCollected ? .collect : .relay, via: transfer.via)
    guard decision.outcome != .refuse else {
      try await quarantine(transfer, code: decision.codes[0].rawValue, note: decision.sentence)
      return
    }
    guard decision.outcome == .permit else {
      _ = try await context.ledger.write { tx in
        try tx.amend(transfer) {
          $0.attempts += 1
          $0.nextAt = tx.at + Backoff.seconds($0.attempts, max: context.configuration.retrySecondsMax)
          $0.code = decision.codes[0].rawValue
          $0.note = decision.sentence
        }
      }
      return
    }
    do {
      let format = try agreement.flatMap { try context.enforcement(of: $0)?.output }
      let report = try await context.threads(for: manifest.payloadBytes).run {
        try unseal(transfer, manifest, bytes, format)
      }
      guard report?.isValid ?? true, format == nil || report?.records == manifest.records else {
        try await quarantine(
          transfer, code: ReasonCode.inputSchema.rawValue,
          note: "\(report?.sentence ?? "no records"), the manifest says \(manifest.records.map(String.init) ?? "none")")
        return
      }
    } catch {
      // No plaintext stays of what was not opened whole.
      try await context.pool.run { try removeStaged(transfer) }
      guard let error = error as? SealingError else { throw error }
      // A chunk that does not open may be the sender's lie, or what our disk made of it: the root tells.
      if error.code == .bodyChunk, try await !isWhole(transfer, manifest) {
        throw SpoolDamage(detail: "the body in the spool is not the one that was received")
      }
      try await quarantine(transfer, code: error.code.rawValue, note: error.detail)
      return
    }
    let row: Transfer
    do {
      row = try await context.ledger.write { tx in
        // The same task goes on; the stage looks only after what a crash left.
        try tx.advance(transfer, to: .opened, ["decision": decision.document]) { $0.nextAt = tx.at + 5 }
      }
    } catch LedgerError.stale {
      // It was stopped while it was opened.
      return try await context.pool.run { try removeStaged(transfer) }
    }
    try await deliver(row)
  }

  private func open(_ key: PackageKey, of transfer: Transfer, _ manifest: Manifest) throws -> Secret {
    let (inUse, former) = context.keys.identitiesByTrust
    do {
      return try key.open(with: inUse, binding: manifest.binding)
    } catch {
      guard error.code == .headerNoMatch, !former.isEmpty else { throw error }
      let payloadKey = try key.open(with: former, binding: manifest.binding)
      context.logger.warning(
        "transfer \(transfer.id): \(transfer.sender) sealed it to a key that was revoked or let go of: it does not have our new card yet"
      )
      return payloadKey
    }
  }

  /// Opens into the staging directory, checks the records on the way, and makes both durable.
  private func unseal(
    _ transfer: Transfer, _ manifest: Manifest, _ keyBytes: [UInt8], _ format: RecordFormat?
  ) throws -> RecordReport? {
    let key = try PackageKey(parsing: keyBytes)
    guard key.bytes == keyBytes else { throw SealingError(.headerMalformed, "bytes after the key's nonce") }
    let payloadKey = try open(key, of: transfer, manifest)
    let body = try context.body(of: transfer)
    let path = staged(transfer)
    try Directory.remove(path)
    let payload = try File(path, O_RDWR | O_CREAT | O_EXCL, keptBytes: FileAccess.keptBytesMax)
    try payload.reserve(manifest.payloadBytes)
    let isLarge = manifest.bodyBytes > Int64(BodyGeometry.sealedSegmentBytes)
    let workers = isLarge ? context.workers : 1
    let tap = format.map { format in
      RecordTap(FileSink(payload)) { try RecordCheck(format, workers: workers).run($0) }
    }
    defer { tap?.abandon() }
    let sink: any SegmentSink = tap ?? FileSink(payload)
    let result = try Pass(engine: context.engine, workers: workers).open(
      FileSource(body.file, bytes: manifest.bodyBytes, layout: .sealed), to: sink, payloadKey: payloadKey,
      wholePrefixes: manifest.wholeFileSHA256 == nil ? [] : [keyBytes])
    guard result.plainBytes == manifest.payloadBytes else {
      throw SealingError(
        .bodyLength, "the payload has \(result.plainBytes) bytes, the manifest says \(manifest.payloadBytes)")
    }
    guard result.treeRoot == manifest.bodyTreeRoot else {
      throw SpoolDamage(detail: "the body in the spool is not the one that was received")
    }
    guard result.wholeSHA256.first == manifest.wholeFileSHA256 else {
      throw SealingError(.bodyRoot, "key and body do not have the signed SHA-256")
    }
    guard fchmod(payload.descriptor, mode_t(context.configuration.inboxFileMode)) == 0 else {
      throw DiskError("fchmod", path)
    }
    let report =
      try tap?.report()
      ?? payload.opaqueReport(mediaType: manifest.mediaType, bytes: manifest.payloadBytes)
    try payload.syncData()
    try context.stagingSync.sync()
    return report
  }

  private func isWhole(_ transfer: Transfer, _ manifest: Manifest) async throws -> Bool {
    try await context.passes.run { [context] in
      try BodyCheck.treeRoot(of: context.body(of: transfer)) == manifest.bodyTreeRoot
    }
  }

  @discardableResult
  func quarantine(_ transfer: Transfer, code: String, note: String) async throws -> Envelope {
    let previous = try await context.ledger.read { try $0.receipts(transfer.sender, transfer.id).last }
    let (receipt, envelope) = context.receipt(.refused, for: transfer, code: code, previous: previous)
    try await context.ledger.write { tx in
      try tx.advance(transfer, to: .quarantined, ["receipt": .string(envelope.payloadDigest.hex)]) {
        $0.code = code
        $0.note = note
        $0.nextAt = $0.isCollected ? tx.at : nil
      }
      try tx.add(receipt: receipt, envelope: envelope, told: transfer.link)
    }
    // Nobody opens it any more: what was signed about it says why.
    try await context.pool.run {
      try removeStaged(transfer)
      try context.spool.remove(transfer.place)
    }
    tell(transfer)
    context.logger.error("transfer \(transfer.id) of \(transfer.sender) is quarantined: \(note)")
    return envelope
  }

  /// There is a receipt for the sender: it asks for it, or we bring it.
  private func tell(_ transfer: Transfer) {
    if transfer.isCollected {
      context.news.lane(of: transfer.sender).collected.notify()
    } else {
      context.news.lane(of: transfer.link).mail.notify()
    }
  }

  // MARK: deliver

  /// Work of the stage `opened`.
  func deliver(_ transfer: Transfer) async throws {
    let directory = context.home.inbox(transfer.sender, transfer.agreement)
    let name = try await context.pool.run { () -> String in
      try Directory.make(directory)
      return Directory.exists("\(directory)/\(transfer.name)") ? Self.besides(transfer) : transfer.name
    }
    let row = try await context.ledger.write { tx in
      try tx.advance(transfer, to: .delivering) {
        $0.inboxName = name
        $0.nextAt = tx.at + 5
      }
    }
    try await finish(row)
  }

  /// A free name beside one that is taken: `NAME~1234abcd.csv`.
  private static func besides(_ transfer: Transfer) -> String {
    let mark = "~\(transfer.id.text.prefix(8))"
    guard let dot = transfer.name.lastIndex(of: "."), dot != transfer.name.startIndex else {
      return transfer.name + mark
    }
    return transfer.name[..<dot] + mark + transfer.name[dot...]
  }

  /// Work of the stage `delivering`: what a crash left there, too.
  func finish(_ transfer: Transfer) async throws {
    let directory = context.home.inbox(transfer.sender, transfer.agreement)
    let source = staged(transfer)
    let isTaken = try await context.pool.run { () -> Bool in
      do throws(DiskError) {
        try Directory.renameExclusively(source, "\(directory)/\(transfer.inboxName)")
      } catch {
        switch error.errno {
        case EEXIST: return true
        // Only this gateway can touch the source: that it is gone is the proof that it was renamed. While it is here, the
        // inbox is what is missing.
        case ENOENT where !Directory.exists(source): break
        default: throw error
        }
      }
      try context.inboxSyncs[directory].sync()
      try context.stagingSync.sync()
      return false
    }
    guard !isTaken else {
      // The whole id is in the name already: no further name is tried at once.
      guard !transfer.inboxName.hasPrefix("\(transfer.id)~") else {
        throw DiskError("rename into", directory, errno: EEXIST)
      }
      // Somebody took the name in between; the intent is recorded anew before the next try.
      let row = try await context.ledger.write { tx in
        try tx.advance(transfer, to: .delivering) { $0.inboxName = "\(transfer.id)~\(transfer.name)" }
      }
      return try await finish(row)
    }
    let previous = try await context.ledger.read { try $0.receipts(transfer.sender, transfer.id).last }
    let (receipt, envelope) = context.receipt(.delivered, for: transfer, previous: previous)
    try await context.ledger.write { tx in
      try tx.advance(transfer, to: .delivered, ["receipt": .string(envelope.payloadDigest.hex)]) {
        $0.nextAt = $0.isCollected ? tx.at : nil
      }
      try tx.add(receipt: receipt, envelope: envelope, told: transfer.link)
    }
    tell(transfer)
    try await context.pool.run { try context.spool.remove(transfer.place) }
  }
}
