// `sallyport check`: does everything that was promised still hold? Reads only; may run beside a working gateway.

import Foundation
import Policies
import Sealing
import Store

/// One thing that does not hold, or is left over.
package struct CheckFinding: Equatable, Sendable {
  package let invariant: String
  package let subject: String
  package let detail: String

  package var document: JSON {
    ["invariant": .string(invariant), "subject": .string(subject), "detail": .string(detail)]
  }
}

/// Verifies the invariants of a home (docs/OPERATIONS.md, Check).
package struct Check: Sendable {
  let context: GatewayContext
  /// Reads every body again and compares its tree root, instead of its size alone.
  let isDeep: Bool

  package init(context: GatewayContext, isDeep: Bool) {
    self.context = context
    self.isDeep = isDeep
  }

  package func run() throws -> (transfers: Int64, findings: [CheckFinding]) {
    var findings: [CheckFinding] = []
    for fault in try context.ledger.integrityFaults() {
      findings.append(.init(invariant: "database", subject: "ledger.sqlite", detail: fault))
    }
    for fault in try context.ledger.verify(signedBy: context.keys.everSigned).faults {
      findings.append(.init(invariant: "audit", subject: "ledger", detail: fault))
    }
    var transfers: Int64 = 0
    var staged = Set(try Directory.names(context.home.staging))
    try context.ledger.readNow { reader in
      try reader.forEachTransfer { transfer in
        transfers += 1
        staged.remove("\(transfer.sender),\(transfer.id)")
        findings += try faults(transfer, reader).map {
          CheckFinding(invariant: $0.0, subject: "\(transfer.sender)/\(transfer.id)", detail: $0.1)
        }
      }
    }
    for name in staged.sorted() {
      findings.append(.init(invariant: "plaintext", subject: "staging", detail: "a file without a transfer: \(name)"))
    }
    return (transfers, findings)
  }

  private func faults(_ transfer: Transfer, _ reader: Reader) throws -> [(String, String)] {
    var faults = try history(transfer, reader)
    let state = transfer.state == .held ? transfer.heldFrom ?? .held : transfer.state
    if state.needsBody(transfer.direction) { faults += body(transfer) }
    if state.needsBody(transfer.direction) || transfer.state == .confirmed, !transfer.manifest.isEmpty {
      faults += manifest(transfer)
    }
    faults += try receipts(transfer, reader)
    let isStaged = Directory.exists("\(context.home.staging)/\(transfer.sender),\(transfer.id)")
    if isStaged, ![.received, .opened, .delivering, .held].contains(transfer.state) {
      faults.append(("plaintext", "a staged payload is left in state \(transfer.state.rawValue)"))
    }
    return faults
  }

  /// The audit entries of a transfer are a legal walk that ends where the row is.
  private func history(_ transfer: Transfer, _ reader: Reader) throws -> [(String, String)] {
    var state: TransferState?
    for entry in try reader.audit(id: transfer.id, limit: .max) {
      guard case .object(let members) = try entry.document(), case .string(transfer.sender.text)? = members["sender"],
        case .string(let kind)? = members["kind"], let next = TransferState(rawValue: kind)
      else { continue }
      if let state, !state.mayBecome(next, transfer.direction) {
        return [("states", "entry \(entry.sequence): \(state.rawValue) to \(next.rawValue) is no arrow")]
      }
      state = next
    }
    return state == transfer.state
      ? [] : [("states", "the row says \(transfer.state.rawValue), the log \(state?.rawValue ?? "nothing")")]
  }

  private func body(_ transfer: Transfer) -> [(String, String)] {
    do {
      let file = try context.body(of: transfer)
      if transfer.direction != .in, transfer.isCollected {
        let segments = try BodyGeometry(sealedBytes: transfer.bodyBytes).segments
        guard try context.spool.bodyDigest(transfer.place, segments: segments) != nil else {
          return [("spool", "the body's side file is missing")]
        }
      }
      guard isDeep else { return [] }
      let manifest = try transfer.readManifest()
      return try BodyCheck.treeRoot(of: file) == manifest.bodyTreeRoot
        ? [] : [("spool", "the body does not have the signed tree root")]
    } catch {
      return [("spool", "\(error)")]
    }
  }

  private func manifest(_ transfer: Transfer) -> [(String, String)] {
    do {
      let envelope = try Envelope(parsing: transfer.manifest, as: .manifest)
      guard envelope.payloadDigest.hex == transfer.manifestDigest else {
        return [("manifest", "its digest is not the recorded one")]
      }
      let manifest = try Manifest(envelope.unverified())
      if let key = transfer.key, Digest(of: key) != manifest.keySHA256 {
        return [("manifest", "the key is not the one it names")]
      }
      return []
    } catch {
      return [("manifest", "\(error)")]
    }
  }

  /// Receipts form a chain about this manifest, and states that need one have it.
  private func receipts(_ transfer: Transfer, _ reader: Reader) throws -> [(String, String)] {
    var previous: Envelope?
    var kinds: [Receipt.Kind] = []
    for envelope in try reader.receipts(transfer.sender, transfer.id) {
      let receipt = try Receipt(envelope.unverified())
      guard receipt.previous == previous?.payloadDigest, receipt.manifest.hex == transfer.manifestDigest else {
        return [("receipts", "the \(receipt.kind.rawValue) receipt is out of its chain")]
      }
      kinds.append(receipt.kind)
      previous = envelope
    }
    if transfer.isCollected, transfer.direction == .out, kinds.isEmpty {
      // Who has no gateway signs nothing: there stands our own record.
      let isTold = try transfer.state != .confirmed || reader.document(transfer.sender, transfer.id, .collected) != nil
      return isTold ? [] : [("receipts", "state confirmed needs receipts, or a record that it was collected")]
    }
    let needed: [Receipt.Kind] =
      switch transfer.state {
      case .custody, .releasing, .released, .unconfirmed, .received, .opened, .delivering: [.received]
      case .confirmed, .delivered, .acknowledged: [.received, .delivered]
      default: []
      }
    return Array(kinds.prefix(needed.count)) == needed
      ? []
      : [("receipts", "state \(transfer.state.rawValue) needs \(needed.map(\.rawValue).joined(separator: " and "))")]
  }
}

/// A body read once more.
enum BodyCheck {
  /// The root of what is in `file`. Blocks.
  static func treeRoot(of file: OpenFile) throws -> Digest {
    let buffer = SegmentBuffer()
    var roots: [Digest] = []
    var offset: Int64 = 0
    while true {
      let count = try file.file.read(
        into: UnsafeMutableRawBufferPointer(rebasing: buffer.bytes[..<BodyGeometry.sealedSegmentBytes]), at: offset)
      guard count > 0 else { return MerkleTree.root(roots) }
      roots.append(SegmentDigest.root(buffer, sealedBytes: count))
      offset += Int64(count)
    }
  }
}
