// One body as it arrives: appended to its part, digested segment by segment, resumable from what is durable.
//
// Buffers take turns: one fills from the socket while others are hashed and written by the pool. What was written is made
// durable meanwhile, so that little is left of it at the end.

import Foundation
import Glibc
import NIOConcurrencyHelpers
import NIOCore
import Sealing
import Store
import Transport

/// The receiving side of one PATCH after another. One request at a time uses it; `Sessions` sees to that.
final class ReceivingBody: BodySink, @unchecked Sendable {
  // Proof for @unchecked: used by one request at a time; within it, `append` and `flush` are called in turn, and the
  // pool's work touches nothing but the buffer that it owns until it was awaited, and the file.
  private let sender: AgencyID
  private let id: TransferID
  private let context: GatewayContext
  private let geometry: BodyGeometry
  private let file: OpenFile
  private let isReopened: Bool
  private var filling: SealedBuffer
  private var filled = 0
  private var spare: SealedBuffer?
  /// Segments that are being hashed and written, in order. One that failed stays, and fails all that comes.
  private var writing: [(offset: Int64, buffer: SealedBuffer, root: EventLoopFuture<Digest>)] = []
  /// An fdatasync under way, and the bytes that it covers. One that failed stays: the next one would succeed, and bytes be lost.
  private var syncing: (end: EventLoopFuture<Void>, bytes: Int64)?
  private var roots: [Digest] = []
  /// Bytes handed to the pool or written; a multiple of a segment but at the end or after a cut.
  private var writtenBytes: Int64 = 0
  private let durable = NIOLockedValueBox<Int64>(0)
  /// What the ledger knows of that.
  private var rememberedBytes: Int64 = 0
  private var requestDigest: RunningDigest?

  /// So much is written before it is made durable; up to twice as much waits for it.
  static let syncBytes: Int64 = 16 << 20

  /// Segments that are hashed and written while the next one fills.
  static let writesMax = 3

  /// So much of a body is durable before the ledger is told: what a crash costs at most, beside what was not durable.
  static let rememberBytes: Int64 = 128 << 20

  /// Opens or makes the part. Bytes beyond `durableBytes` in it are forgotten; those before are digested again, which takes as long as
  /// they are many.
  static func open(_ context: GatewayContext, _ transfer: Transfer) async throws -> ReceivingBody {
    guard transfer.durableBytes > 0 else {
      return try await context.pool.run { try ReceivingBody(context, transfer) }
    }
    // At a hub the link is the recipient's; the body comes from the sender.
    let partner = transfer.direction == .hub ? transfer.sender : transfer.link
    return try await context.rereads.run(of: partner, on: context.passes) {
      let body = try ReceivingBody(context, transfer)
      // A part that is not there any more (its rename came before a crash, its commit did not) begins anew at zero.
      if body.isReopened { try body.digestAgain(upTo: transfer.durableBytes) }
      return body
    }
  }

  private init(_ context: GatewayContext, _ transfer: Transfer) throws {
    self.context = context
    sender = transfer.sender
    id = transfer.id
    rememberedBytes = transfer.durableBytes
    geometry = try BodyGeometry(sealedBytes: transfer.bodyBytes)
    if transfer.durableBytes > 0, let part = try context.spool.reopen(transfer.place) {
      file = OpenFile(part)
      isReopened = true
    } else {
      isReopened = false
      file = OpenFile(try context.createPart(of: transfer))
    }
    filling = SealedBuffer(geometry.sealedSegmentBytesMax)
    if geometry.segments > 1 { spare = SealedBuffer(geometry.sealedSegmentBytesMax) }
  }

  private func digestAgain(upTo bytes: Int64) throws {
    let size = Int64(BodyGeometry.sealedSegmentBytes)
    while writtenBytes + size <= bytes {
      guard try file.file.read(into: filling.storage.bytes, at: writtenBytes) == Int(size) else {
        return try startOver()
      }
      roots.append(SegmentDigest.root(filling.storage, sealedBytes: Int(size)))
      writtenBytes += size
    }
    try readRest(upTo: bytes)
  }

  /// What came after `bytes` is forgotten. The segment that they end in was written with the rest of it: its beginning is there.
  private func goBack(to bytes: Int64) throws {
    let segments = bytes / Int64(BodyGeometry.sealedSegmentBytes)
    roots.removeLast(roots.count - Int(segments))
    writtenBytes = segments * Int64(BodyGeometry.sealedSegmentBytes)
    filled = 0
    try readRest(upTo: bytes)
  }

  private func readRest(upTo bytes: Int64) throws {
    let rest = Int(bytes - writtenBytes)
    if rest > 0 {
      let target = UnsafeMutableRawBufferPointer(rebasing: filling.storage.bytes[..<rest])
      guard try file.file.read(into: target, at: writtenBytes) == rest else { return try startOver() }
      filled = rest
    }
    durableBytes = bytes
  }

  /// The part is not what the ledger thinks: begin at zero, which a peer may be told at any time.
  private func startOver() throws {
    roots = []
    writtenBytes = 0
    filled = 0
    durableBytes = 0
  }

  /// Bytes that an fdatasync covered. Callable at any time.
  private(set) var durableBytes: Int64 {
    get { durable.withLockedValue { $0 } }
    set { durable.withLockedValue { $0 = newValue } }
  }

  var isComplete: Bool { writtenBytes + Int64(filled) == geometry.sealedBytes }

  /// Expects RFC 9530 `digest` over the bytes of this request.
  func begin(expecting digest: Digest?) {
    requestDigest = digest.map(RunningDigest.init)
    isOverlong = false
  }

  // MARK: BodySink

  func append(_ bytes: UnsafeRawBufferPointer) -> Int {
    let room = geometry.sealedBytes - writtenBytes - Int64(filled)
    let count = min(bytes.count, filling.storage.bytes.count - filled, Int(min(room, Int64(Int.max))))
    // More than was signed: swallowed here, refused by `settle`.
    guard count > 0 else {
      isOverlong = true
      return bytes.count
    }
    let piece = UnsafeRawBufferPointer(rebasing: bytes[..<count])
    requestDigest?.update(piece)
    UnsafeMutableRawBufferPointer(rebasing: filling.storage.bytes[filled..<(filled + count)]).copyMemory(from: piece)
    filled += count
    return count
  }

  private var isOverlong = false

  var isFull: Bool { filled == filling.storage.bytes.count && filled == BodyGeometry.sealedSegmentBytes }

  func flush() async throws {
    try await rotate()
    // Everything before the oldest segment under way.
    let written = writing[0].offset
    guard written - (syncing?.bytes ?? durableBytes) >= Self.syncBytes else { return }
    try await synced()
    // What a digest covers counts only when all of it came.
    if requestDigest == nil, durableBytes - rememberedBytes >= Self.rememberBytes { try await remember() }
    startSync(covering: written)
  }

  /// Tells the ledger what is durable.
  ///
  /// - Throws: `LedgerError.stale` when the transfer is not being received any more.
  func remember() async throws {
    let (sender, id, bytes) = (sender, id, durableBytes)
    try await context.ledger.write { tx in
      guard let row = try tx.reader.transfer(sender, id), row.state == .receiving else {
        throw LedgerError.stale("transfer \(id)")
      }
      try tx.amend(row) { $0.durableBytes = bytes }
    }
    rememberedBytes = bytes
  }

  private func startSync(covering bytes: Int64) {
    let file = file
    syncing = (context.pool.start { try file.file.syncData() }, bytes)
  }

  /// Waits for the fdatasync that is under way.
  private func synced() async throws {
    guard let (end, bytes) = syncing else { return }
    try await end.get()
    syncing = nil
    durableBytes = bytes
  }

  /// Hands the full buffer to the pool and takes a free one.
  private func rotate() async throws {
    let next =
      if writing.count == Self.writesMax { try await written() } else {
        spare ?? SealedBuffer(geometry.sealedSegmentBytesMax)
      }
    spare = nil
    let (file, full, count, offset) = (file, filling, filled, writtenBytes)
    let root = context.pool.start {
      let root = SegmentDigest.root(full.storage, sealedBytes: count)
      try file.file.write(UnsafeRawBufferPointer(rebasing: full.storage.bytes[..<count]), at: offset)
      return root
    }
    writing.append((offset, full, root))
    filling = next
    filled = 0
    writtenBytes += Int64(count)
  }

  /// Waits for the oldest segment under way; its buffer is free then.
  private func written() async throws -> SealedBuffer {
    roots.append(try await writing[0].root.get())
    return writing.removeFirst().buffer
  }

  private func drain() async throws {
    while !writing.isEmpty { spare = try await written() }
  }

  private func sync(covering bytes: Int64) async throws {
    try await synced()
    startSync(covering: bytes)
    try await synced()
  }

  /// Waits until nobody writes to the part any more, whatever came of it.
  func abandon() async {
    for (_, _, root) in writing {
      await withCheckedContinuation { ended in root.whenComplete { _ in ended.resume() } }
    }
  }

  // MARK: the end of a request

  /// Makes what came durable. A partial segment is written too, and kept in the buffer for its continuation.
  ///
  /// - Parameter isCut: the request did not come to its end, and what it announced does not hold by that alone.
  /// - Throws: `Problem` digest when the request's bytes are not those it announced; they are forgotten then.
  func settle(from start: Int64, isCut: Bool = false) async throws {
    try await drain()
    try await synced()
    if let digest = requestDigest, !digest.matches {
      try await context.pool.run { [self] in try goBack(to: start) }
      if isCut { return }
      throw Problem(.digest, "the body of this request does not have the Content-Digest that it announces")
    }
    if isComplete, filled > 0 {
      // rotate's root goes to its place; the buffer is not needed again.
      try await rotate()
      try await drain()
      try await sync(covering: writtenBytes)
    } else if filled > 0 {
      let (file, buffer, count, offset) = (file, filling, filled, writtenBytes)
      try await context.pool.run {
        try file.file.write(UnsafeRawBufferPointer(rebasing: buffer.storage.bytes[..<count]), at: offset)
      }
      try await sync(covering: offset + Int64(count))
    } else if durableBytes < writtenBytes {
      try await sync(covering: writtenBytes)
    }
    if isOverlong, !isCut { throw Problem(.tooLarge, "more bytes came than the manifest names") }
  }

  /// The roots of what came, segment by segment; only after everything did.
  var segmentRoots: [Digest] { roots }
  var treeRoot: Digest { MerkleTree.root(roots) }
}

/// A segment's buffer that may travel between the loop and the pool.
final class SealedBuffer: @unchecked Sendable {
  // Proof for @unchecked: one owner at a time, ReceivingBody or the task that writes it.
  let storage: SegmentBuffer

  init(_ bytes: Int) { storage = SegmentBuffer(sealedBytesMax: bytes) }
}

/// SHA-256 of one request's bytes, beside what it announced.
private struct RunningDigest {
  private let expected: Digest
  private var hash = StreamingSHA256()

  init(_ expected: Digest) { self.expected = expected }

  mutating func update(_ bytes: UnsafeRawBufferPointer) { hash.update(bytes) }
  var matches: Bool { hash.finish() == expected }
}

/// Who receives what: one request a transfer at a time, the newest wins.
final class Sessions: Sendable {
  private struct Entry {
    var body: ReceivingBody?
    var holder: UInt64
    /// The newest request that wants it.
    var wanted: UInt64 = 0
    /// Ends the request that holds the session now.
    var stop: (@Sendable () -> Void)?
    let freed: Signal
  }

  private let entries = NIOLockedValueBox<[Spool.Place: Entry]>([:])
  private let tickets = NIOLockedValueBox<UInt64>(0)

  /// Bodies that are kept open between the requests of their transfers, each with up to 2 MiB and a descriptor. Others are opened anew.
  static let idleMax = 16

  /// Takes the session for a new request: stops the request that has it and waits until that let go.
  ///
  /// - Throws: `Problem` superseded when a still newer request wants it.
  /// - Parameter stop: called when a newer request wants the session.
  func take(
    _ transfer: Transfer, stop: @escaping @Sendable () -> Void
  ) async throws -> (ticket: UInt64, body: ReceivingBody?) {
    let ticket = tickets.withLockedValue { value in
      value += 1
      return value
    }
    let key = transfer.place
    while true {
      let (older, freed, seen): ((@Sendable () -> Void)?, Signal, UInt64) = try entries.withLockedValue { all in
        var entry = all[key] ?? Entry(body: nil, holder: 0, stop: nil, freed: Signal())
        guard ticket >= entry.wanted else { throw Problem(.superseded, "a newer request took over") }
        entry.wanted = ticket
        defer { all[key] = entry }
        if entry.holder == 0 {
          entry.holder = ticket
          entry.stop = stop
          return (nil, entry.freed, 0)
        }
        return (entry.stop, entry.freed, entry.freed.generation)
      }
      guard let older else { return (ticket, entries.withLockedValue { $0[key]?.body }) }
      older()
      await freed.wait(after: seen, for: .seconds(1))
    }
  }

  /// Gives the session back, with the body for the next request; nil forgets it.
  func leave(_ transfer: Transfer, _ ticket: UInt64, keeping body: ReceivingBody?) {
    let key = transfer.place
    let freed = entries.withLockedValue { all -> Signal? in
      guard var entry = all[key], entry.holder == ticket else { return nil }
      entry.body = all.values.count { $0.holder == 0 && $0.body != nil } < Self.idleMax ? body : nil
      entry.holder = 0
      entry.stop = nil
      // Who waits for it still finds it.
      all[key] = entry.body == nil && entry.wanted == ticket ? nil : entry
      return entry.freed
    }
    freed?.notify()
  }

  /// Forgets a transfer whose body is not wanted any more: its request is stopped, its part closed.
  func end(_ transfer: Transfer) {
    let key = transfer.place
    let stop = entries.withLockedValue { all -> (@Sendable () -> Void)? in
      guard let entry = all[key] else { return nil }
      if entry.holder == 0 { all[key] = nil }
      return entry.stop
    }
    stop?()
  }

  /// The durable offset, when a session is open.
  func durableBytes(_ transfer: Transfer) -> Int64? {
    entries.withLockedValue { $0[transfer.place]?.body?.durableBytes }
  }
}
