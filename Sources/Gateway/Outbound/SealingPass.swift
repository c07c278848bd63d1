// The one pass over a claimed file: read, check, filter, seal, digest, write. Then the decision is completed, and only a body
// that may go is kept.
//
//   original → [records: check, filter, gate] → segments → seal → spool/out/ID.part        subjects → spool/subjects/ID.part
//   → the original has not changed?  the records are sound?  the decision permits what is left?
//   → fdatasync  rename  fsync(spool/out)  (the index likewise)  → sign the manifest

import Foundation
import Glibc
import NIOConcurrencyHelpers
import Policies
import Records
import Sealing
import Store

/// A package that is durable in the spool, and not yet in the ledger.
struct SealedPackage: Sendable {
  let manifest: Manifest
  let envelope: Envelope
  let key: [UInt8]
  /// SHA-256 of each recipient that it is sealed to.
  let sealedTo: String
  let decision: Decision
  /// nil for opaque payloads.
  let package: PackageRow?
  /// Invalid records that the agreement sets aside.
  let setAside: [UInt8]
}

/// One file's pass. Blocks.
struct SealingPass: Sendable {
  enum Outcome: Sendable {
    case sealed(SealedPackage)
    /// The file changed while it was read.
    case changed
    case invalid(RecordReport)
    case refused(Decision)
  }

  let context: GatewayContext
  let transfer: Transfer
  let agreement: Agreement
  let draft: Draft
  let instant: Date

  /// - Parameter judged: the ledger's sequence before consent is looked at.
  func run(_ original: Original, _ decision: Decision, judged: Int64) throws -> Outcome {
    let outcome = Result { try pass(original, decision, judged: judged) }
    if case .success(.sealed) = outcome { return try outcome.get() }
    // Nothing stays of what does not go: half a body keeps the disk full, which may be why it is half.
    try context.spool.discard(transfer.id)
    return try outcome.get()
  }

  private func pass(_ original: Original, _ decision: Decision, judged: Int64) throws -> Outcome {
    let enforcement = try context.enforcement(of: agreement)
    if enforcement == nil,
      let report = try original.file.opaqueReport(mediaType: agreement.mediaType, bytes: original.bytes)
    {
      return try original.isUnchanged() ? .invalid(report) : .changed
    }
    let (recipients, (key, payloadKey, retained)) = try freshKey()
    let place = Spool.Place.out(transfer.id)
    let geometry = try BodyGeometry(plainBytes: original.bytes)
    // What is filtered may become shorter: only what goes as it is has its room reserved.
    let part = try context.spool.create(place, bytes: enforcement == nil ? geometry.sealedBytes : 0)
    // Small files gain nothing from a second thread, and many of them run at once.
    let pass = Pass(engine: context.engine, workers: geometry.segments > 1 ? context.workers : 1)
    let prefixes = wholePrefixes(key)
    let result: PassResult
    var final = decision
    var filtered: FilteredPass?
    if let enforcement {
      let records = try FilteredPass(self, enforcement, original, workers: pass.workers)
      filtered = records
      do {
        result = try pass.seal(records.source, to: FileSink(part), payloadKey: payloadKey, wholePrefixes: prefixes)
      } catch {
        records.source.abandon()
        // The check then ends because nobody takes its records; what it threw by itself is the cause.
        do { _ = try records.source.report() } catch let cause where !(cause is RecordSource.Abandoned) {
          throw cause
        } catch {}
        throw error
      }
      let report = try records.source.report()
      guard let counts = report.counts(under: agreement) else {
        return try original.isUnchanged() ? .invalid(report) : .changed
      }
      final = Evaluation.completed(decision, draft, under: agreement, counts)
      records.counts = report.filtered ?? FilterReport()
    } else {
      result = try pass.seal(
        FileSource(original.file, bytes: original.bytes, layout: .plain), to: FileSink(part), payloadKey: payloadKey,
        wholePrefixes: prefixes)
    }
    guard try original.isUnchanged() else { return .changed }
    guard final.outcome == .permit else { return .refused(final) }
    try part.syncData()
    try keepTree(result)
    try context.spool.finish(place)
    try filtered?.finishIndex(context.spool, transfer.id)
    let manifest = manifest(result, key, records: filtered?.counts.kept, final)
    return .sealed(
      SealedPackage(
        manifest: manifest, envelope: context.sign(manifest.document, as: .manifest), key: key.bytes,
        sealedTo: Self.digests(recipients), decision: final,
        package: filtered.map {
          PackageRow(
            id: transfer.id, agreement: agreement.id, agreementDigest: agreement.digest.hex, recipient: transfer.peer,
            judged: judged, horizon: $0.gate.horizon, records: $0.counts.kept,
            decision: final.document.canonical, retained: retained?.bytes)
        }, setAside: filtered?.setAside ?? []))
  }

  /// Whose SHA-256 with the body after it is wanted: that of `package.age` where the agreement asks, and that of the body alone for
  /// who collects it (Repr-Digest).
  func wholePrefixes(_ key: PackageKey) -> [[UInt8]] {
    (agreement.wholeFileSHA256 ? [key.bytes] : []) + (agreement.waitsAtSender ? [[]] : [])
  }

  /// Who collects gets the segments' roots, and verifies any range with them as it comes.
  func keepTree(_ result: PassResult) throws {
    guard agreement.waitsAtSender, let body = result.wholeSHA256.last else { return }
    try context.spool.putTree(.out(transfer.id), digest: body, roots: result.segmentRoots)
  }

  /// Only a package that may be sealed again, which a sum never is, leaves its sender a way back to the payload.
  func freshKey() throws -> (
    recipients: [Recipient], made: (key: PackageKey, payloadKey: Secret, retained: PackageKey?)
  ) {
    let recipients =
      context.partners[transfer.peer]?.card?.card.sealingRecipients(at: instant).filter {
        agreement.recipientKinds.contains($0.kind)
      } ?? []
    let retains =
      agreement.consent.model != .none && agreement.consent.onWithdrawal == .reseal && agreement.aggregate == nil
    return (
      recipients,
      try PackageKey.create(
        for: recipients, retainedBy: retains ? context.keys.card.card.sealingRecipients(at: instant).first : nil,
        binding: Binding(
          agreement: agreement.digest.hex, id: transfer.id, recipient: transfer.peer, sender: context.agency))
    )
  }

  static func digests(_ recipients: [Recipient]) -> String {
    recipients.map(digest).joined(separator: ",")
  }

  /// By which a row remembers a recipient, hexadecimal.
  static func digest(_ recipient: Recipient) -> String { Digest(of: Array(recipient.description.utf8)).hex }

  func manifest(
    _ result: PassResult, _ key: PackageKey, records: Int64?, _ decision: Decision, replaces: TransferID? = nil
  ) -> Manifest {
    var salt = [UInt8](repeating: 0, count: 16)
    salt.withUnsafeMutableBytes { systemRandom($0) }
    return Manifest(
      id: transfer.id, sender: context.agency, recipient: transfer.peer,
      agreement: NamedDigest(id: agreement.id, sha256: agreement.digest), agreementVersion: agreement.version,
      schema: agreement.records.map { NamedDigest(id: $0.schema, sha256: $0.sha256) }, name: transfer.name,
      mediaType: agreement.mediaType, records: records, labels: agreement.labels.map { [$0.package] },
      payloadBytes: result.plainBytes, bodyBytes: result.sealedBytes, bodyTreeRoot: result.treeRoot,
      keySHA256: Digest(of: key.bytes), wholeFileSHA256: agreement.wholeFileSHA256 ? result.wholeSHA256.first : nil,
      createdAt: instant,
      expiresAt: instant + Double(agreement.timeToLive.components.seconds), replaces: replaces,
      decision: decision.digest(salt: salt))
  }
}

/// Records on their way from the original to the pass that seals them.
private final class FilteredPass: @unchecked Sendable {
  // Proof for @unchecked: `setAside` is written by the check's sink, one thread at a time, and read after `report()`; `counts` is
  // used by the caller alone.
  let gate: ConsentGate
  private(set) var source: RecordSource!
  private let index: SubjectIndexWriter?
  private(set) var setAside: [UInt8] = []
  var counts = FilterReport()

  init(_ sealing: SealingPass, _ enforcement: Enforcement, _ original: Original, workers: Int) throws {
    let (context, agreement) = (sealing.context, sealing.agreement)
    gate = ConsentGate(
      agreement, sealing.transfer.id, master: context.keys.subjectMaster, book: context.consents, at: sealing.instant)
    // Who was added up too: until it is handed over, what they say counts.
    let isIndexed = agreement.subjects.identifier != nil
    index = isIndexed ? try context.spool.createSubjects(sealing.transfer.id) : nil
    let input = original.file.input
    let (gate, index, instant) = (gate.gate, index, sealing.instant)
    source = RecordSource.start { [self] source in
      try RecordCheck(enforcement.input, workers: workers).run(
        input, through: enforcement.filter, gate, now: instant,
        to: RecordSink(
          write: { try source.put($0) },
          subjects: { try index?.append($0.map(SubjectReference.init)) },
          setAside: { self.setAside += $0 }))
    }
  }

  func finishIndex(_ spool: Spool, _ id: TransferID) throws {
    if let index { try spool.finishSubjects(index, id) }
  }
}
