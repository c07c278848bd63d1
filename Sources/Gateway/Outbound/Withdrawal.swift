// What happens to a sealed package whose key has not gone when somebody in it may no longer be told about: it is taken back, and
// sealed again without them under a new id, or cancelled, as the agreement says.
//
//   open the old body with the retained key → leave the records out → seal under a new id → spool (durable)
//   → COMMIT old cancelled + take-back, new sealed (replaces the old) → the old body goes

import Foundation
import Glibc
import Logging
import Policies
import Records
import Sealing
import Store

struct Withdrawal: Sendable {
  let context: GatewayContext

  /// - Parameter ordinals: of the records that may not go.
  func stop(_ transfer: Transfer, _ ordinals: [Int64], code: String) async throws {
    let manifest = try transfer.readManifest()
    let agreement = context.policies.agreement(manifest.agreement.sha256)
    // What was added up cannot be taken apart again: its original is gone.
    let isAddedUp = agreement?.aggregate != nil
    let package = try await context.ledger.read { try $0.package(transfer.id) }
    // Sealed again, the others' records might arrive twice; and that it was not delivered, nobody can sign.
    let isPerhapsDisclosed = package?.isPerhapsDisclosed ?? false
    var note =
      isAddedUp
      ? "\(ordinals.count) of the records that were added up may no longer count: drop the file again"
      : "\(ordinals.count) of \(manifest.records ?? 0) records may no longer go"
    if isPerhapsDisclosed {
      note =
        "\(ordinals.count) records may no longer go; whether it went before the ledger was restored, ask \(transfer.peer)"
    }
    guard transfer.state != .releasing else {
      return try await Release(context: context).leave(transfer, code: code, note: note)
    }
    var next: (SealedPackage, Transfer)?
    if let agreement, let package, !isAddedUp, !isPerhapsDisclosed, agreement.consent.onWithdrawal == .reseal,
      Int64(ordinals.count) < manifest.records ?? 0
    {
      next = try await resealed(transfer, package, manifest, agreement, Set(ordinals))
    }
    let (replacement, cause) = (next, note)
    let report = TakeBack(
      id: transfer.id, sender: transfer.sender, recipient: transfer.peer,
      manifest: Digest(hex: transfer.manifestDigest)!,
      reason: code, at: context.now())
    let (old, new) = try await context.commitSealed(replacement?.1.id) { tx in
      var detail: [String: JSON] = ["withheld": .integer(Int64(ordinals.count))]
      if let replacement { detail["replacedBy"] = .string(replacement.1.id.text) }
      let old = try tx.advance(transfer, to: .cancelled, detail) {
        $0.code = code
        $0.note = replacement.map { "\(cause); sealed again without them as \($0.1.id)" } ?? cause
        $0.replacedBy = replacement?.1.id
        $0.nextAt = tx.at
      }
      for kind in isPerhapsDisclosed ? [DocumentKind.takeBack] : [.nonDelivery, .takeBack] {
        try tx.add(document: context.sign(report.document, as: kind), sender: old.sender, id: old.id)
      }
      try tx.forgetRetained(old.id)
      guard let (sealed, fresh) = replacement else { return (old, nil as Transfer?) }
      var row = fresh
      // The stage looks only after what a crash leaves.
      row.nextAt = tx.at + 5
      if transfer.state == .held {
        // An administrator's hold holds what takes its place.
        row.state = .held
        row.heldFrom = .sealed
        row.nextAt = nil
        row.code = "held"
      }
      try tx.insert(row, ["replaces": .string(old.id.text), "manifest": .string(row.manifestDigest)])
      if let package = sealed.package { try tx.put(package) }
      return (old, row)
    }
    try await context.pool.run {
      if let new { try Outcomes(context: context).write(new) }
      try Outcomes(context: context).write(old)
      try context.spool.remove(old.place)
    }
    context.news.lane(of: old.peer).takeBacks.notify()
    if let new, new.state == .sealed {
      do { try await Seal(context: context).queue(new) } catch LedgerError.stale {
        // The stage was first.
      }
    }
    context.logger.notice("transfer \(old.id) is taken back: \(old.note) [\(code)]")
  }

  /// One package that cannot be sealed again must not keep the others from being stopped: it is cancelled.
  private func resealed(
    _ transfer: Transfer, _ package: PackageRow, _ manifest: Manifest, _ agreement: Agreement, _ dropped: Set<Int64>
  ) async throws -> (SealedPackage, Transfer)? {
    do {
      return try await reseal(transfer, package, manifest, agreement, dropped)
    } catch is CancellationError {
      throw CancellationError()
    } catch  where StoreFailure(error) != .unknown {
      context.logger.error("transfer \(transfer.id) cannot be sealed again and is cancelled: \(error)")
      return nil
    }
  }

  /// nil when there is no way back to the payload, or when it would not be permitted.
  private func reseal(
    _ transfer: Transfer, _ package: PackageRow, _ manifest: Manifest, _ agreement: Agreement, _ dropped: Set<Int64>
  ) async throws -> (SealedPackage, Transfer)? {
    guard let retained = package.retained, let enforcement = try context.enforcement(of: agreement) else { return nil }
    let instant = context.now()
    let row = Transfer(
      direction: .out, sender: context.agency, id: TransferID(), peer: transfer.peer, agreement: transfer.agreement,
      state: .sealed, name: transfer.name, createdAt: instant)
    let draft = Draft(
      sender: context.agency, recipient: transfer.peer, name: transfer.name, mediaType: agreement.mediaType,
      payloadBytes: transfer.payloadBytes)
    // What holds is looked at when it is released; today's count has it already.
    let now = try await context.circumstances(transfer.peer, agreement)
    let decision = Evaluation.outbound(draft, under: agreement, now.countingNone).unlessRefused
    guard decision.outcome == .permit else { return nil }
    let work = SealingPass(context: context, transfer: row, agreement: agreement, draft: draft, instant: instant)
    return try await context.passes.run {
      let outcome = Result { try pass() }
      if case .success(_?) = outcome { return try outcome.get() }
      try context.spool.discard(row.id)
      return try outcome.get()
    }
    @Sendable func pass() throws -> (SealedPackage, Transfer)? {
      let payloadKey = try PackageKey(parsing: retained).open(with: context.keys.identities, binding: manifest.binding)
      let body = try OpenedBody(context.spool.open(transfer.place), manifest, payloadKey, context.engine)
      let (recipients, made) = try work.freshKey()
      let place = Spool.Place.out(row.id)
      let part = try context.spool.create(place, bytes: 0)
      var plan = RecordPlan()
      // Totals were judged when the records were first read; now they follow what is left.
      plan.totals = enforcement.filter.plan.totals.map {
        .init(member: $0.member, field: $0.field, rule: $0.rule == .leave ? .leave : .recompute)
      }
      let filter = try RecordFilter(plan, enforcement.output, schema: enforcement.filter.derivedSchema)
      let droppingCode = "consent.withdrawn"
      var gate = RecordGate(subjects: { _ in [] }, pseudonyms: { _ in [] })
      gate.dropping = dropped
      gate.droppingCode = droppingCode
      let dropping = gate
      let source = RecordSource.start { source in
        try RecordCheck(enforcement.output, workers: 1).run(
          body.input, through: filter, dropping, now: instant, to: RecordSink(write: { try source.put($0) }))
      }
      let result: PassResult
      do {
        result = try Pass(engine: context.engine, workers: context.workers).seal(
          source, to: FileSink(part), payloadKey: made.payloadKey, wholePrefixes: work.wholePrefixes(made.key))
      } catch {
        source.abandon()
        throw error
      }
      let report = try source.report()
      guard report.isValid, let kept = report.filtered?.kept, kept > 0,
        kept == (manifest.records ?? 0) - Int64(dropped.count)
      else { return nil }
      try part.syncData()
      try work.keepTree(result)
      try context.spool.finish(place)
      try copyIndex(from: transfer.id, to: row.id, without: dropped.sorted())
      let final = Evaluation.completed(
        decision, draft, under: agreement,
        RecordCounts(
          read: report.records, kept: kept, withheld: [droppingCode: Int64(dropped.count)], forbidden: nil),
        isResealed: true)
      guard final.outcome == .permit else { return nil }
      let fresh = work.manifest(result, made.key, records: kept, final, replaces: transfer.id)
      let envelope = context.sign(fresh.document, as: .manifest)
      var next = row
      next.payloadBytes = fresh.payloadBytes
      next.bodyBytes = fresh.bodyBytes
      next.manifest = envelope.bytes
      next.manifestDigest = envelope.payloadDigest.hex
      next.key = made.key.bytes
      next.sealedTo = SealingPass.digests(recipients)
      next.expiresAt = fresh.expiresAt
      next.isCollected = transfer.isCollected
      next.via = transfer.via
      let sealed = SealedPackage(
        manifest: fresh, envelope: envelope, key: made.key.bytes, sealedTo: next.sealedTo, decision: final,
        package: PackageRow(
          id: row.id, agreement: agreement.id, agreementDigest: agreement.digest.hex, recipient: transfer.peer,
          // Nobody was looked up anew: everything since the first judgement still counts.
          judged: package.judged, horizon: package.horizon, records: kept, decision: final.document.canonical,
          retained: made.retained?.bytes), setAside: [])
      return (sealed, next)
    }
  }

  /// Those who are left, at their new places.
  private func copyIndex(from old: TransferID, to new: TransferID, without dropped: [Int64]) throws {
    guard let index = try context.spool.subjects(of: old) else { return }
    let writer = try context.spool.createSubjects(new)
    try index.forEach { entries in
      for entry in entries {
        let before = dropped.partitioningIndex { $0 >= entry.ordinal }
        guard before == dropped.count || dropped[before] != entry.ordinal else { continue }
        try writer.append(entry.subject, ordinal: entry.ordinal - Int64(before))
      }
    }
    try context.spool.finishSubjects(writer, new)
  }
}

extension [Int64] {
  /// The first place from which on `belongs` holds; the array is sorted so that it holds for a tail.
  fileprivate func partitioningIndex(_ belongs: (Int64) -> Bool) -> Int {
    var (low, high) = (0, count)
    while low < high {
      let middle = (low + high) / 2
      if belongs(self[middle]) { high = middle } else { low = middle + 1 }
    }
    return low
  }
}

/// A sealed body as an input of plain bytes, segment after segment. One reader at a time.
private final class OpenedBody: @unchecked Sendable {
  // Proof for @unchecked: a RecordInput is called by one worker at a time.
  private let source: FileSource
  private let file: OpenFile
  private let cipher: SegmentCipher
  private let buffer = SegmentBuffer()
  private var ranges: [UnsafeMutableRawBufferPointer] = []

  init(_ file: consuming File, _ manifest: Manifest, _ payloadKey: Secret, _ engine: CipherEngine) throws {
    let open = OpenFile(file)
    self.file = open
    source = try FileSource(open.file, bytes: manifest.bodyBytes, layout: .sealed)
    cipher = SegmentCipher(payloadKey: payloadKey, engine: engine)
  }

  var input: RecordInput {
    { room in
      if self.ranges.isEmpty {
        guard let segment = try self.source.next(into: self.buffer), segment.bytes > 0 else { return 0 }
        let plain = try self.cipher.open(
          self.buffer, segment: segment.index, sealedBytes: segment.bytes, isLast: segment.isLast)
        self.ranges = SegmentLayout.plain.ranges(self.buffer, plain)
      }
      guard let first = self.ranges.first else { return 0 }
      let count = min(first.count, room.count)
      room.copyMemory(from: UnsafeRawBufferPointer(rebasing: first[..<count]))
      if count == first.count {
        self.ranges.removeFirst()
      } else {
        self.ranges[0] = UnsafeMutableRawBufferPointer(rebasing: first[count...])
      }
      return count
    }
  }
}
