// Ledger, spool, durable files: what is promised when they return, and what is refused.

import Foundation
import GRDB
import Glibc
import NIOConcurrencyHelpers
import Sealing
import Synchronization
import TestSupport
import Testing

@testable import Store

private let sender = AgencyID("tax.example.gov")!
private let peer = AgencyID("pensions.example.gov")!
private let key = try! SigningKey(generating: .ed25519)

private func open(_ home: String, at date: Date = Date()) throws -> Ledger {
  try Ledger(home: home, now: { date }, sign: { Envelope(signing: $0.document, as: .head, with: [key]) })
}

private func open(_ home: String, entries: Int) async throws -> Ledger {
  let ledger = try open(home)
  for _ in 0..<entries { try await ledger.write { try $0.insert(transfer()) } }
  return ledger
}

private let signers = SignerPolicy([key.verifying])

private func transfer(_ state: TransferState = .claimed, _ direction: Direction = .out) -> Transfer {
  Transfer(
    direction: direction, sender: sender, id: TransferID(), peer: peer, agreement: "a", state: state, name: "n",
    createdAt: Date())
}

/// Runs tasks on one thread.
private final class OneThread: TaskExecutor {
  private let queue = DispatchQueue(label: "one")

  func enqueue(_ job: consuming ExecutorJob) {
    let job = UnownedJob(job)
    let executor = asUnownedTaskExecutor()
    queue.async { job.runSynchronously(on: executor) }
  }
}

private final class Counter: Sendable {
  private let count = Atomic(0)
  var value: Int { count.load(ordering: .relaxed) }
  func add() { count.add(1, ordering: .relaxed) }

  func reaches(_ number: Int) async -> Bool {
    for _ in 0..<1000 where value < number { try? await Task.sleep(for: .milliseconds(10)) }
    return value >= number
  }
}

@Suite struct LedgerTests {
  let scratch = try! Scratch()

  @Test func synchronousIsFullAndChecked() throws {
    let ledger = try open(scratch.path)
    let mode = try ledger.pool.writeWithoutTransaction { try Int.fetchOne($0, sql: "PRAGMA synchronous") }
    #expect(mode == 2)
    try ledger.pool.writeWithoutTransaction { try $0.execute(sql: "PRAGMA synchronous = NORMAL") }
    #expect(throws: LedgerError.self) { try Ledger.assertDurable(ledger.pool) }
    try ledger.close()
  }

  /// An outcome file is written from the row that the change returns.
  @Test func aChangedRowSaysWhenItChanged() async throws {
    let now = Date(timeIntervalSince1970: 1_800_000_000)
    let ledger = try open(scratch.path, at: now)
    let row = Transfer(
      direction: .out, sender: sender, id: TransferID(), peer: peer, agreement: "a", state: .claimed, name: "n",
      createdAt: now - 60)
    let (held, amended, stored) = try await ledger.write { tx in
      try tx.insert(row)
      let held = try tx.advance(row, to: .held) { $0.heldFrom = .claimed }
      return (held, try tx.amend(held) { $0.note = "x" }, try tx.reader.transfer(sender, row.id))
    }
    #expect(held.updatedAt == now && amended.updatedAt == now && stored?.updatedAt == now)
    try ledger.close()
  }

  @Test func whatAnAgreementHeldUpIsDueOnceItChanges() async throws {
    let now = Date()
    let ledger = try open(scratch.path, at: now)
    func row(_ agreement: String, _ code: String) -> Transfer {
      var row = Transfer(
        direction: .out, sender: sender, id: TransferID(), peer: peer, agreement: agreement, state: .claimed, name: "n",
        createdAt: now)
      (row.code, row.nextAt, row.attempts) = (code, now + 300, 9)
      return row
    }
    let rows = [row("a", "agreement.suspended"), row("a", "partner.unreachable"), row("b", "agreement.suspended")]
    try await ledger.write { tx in
      for row in rows { try tx.insert(row) }
      try tx.wake(agreement: "a")
    }
    let due = try await ledger.read { reader in
      try rows.map { try reader.transfer(sender, $0.id)!.nextAt! < now + 1 }
    }
    #expect(due == [true, false, false])
    try ledger.close()
  }

  /// A ledger of an earlier version knows from its entries what is still owed.
  @Test func acknowledgementsThatAreOwedAreFoundByTheMigration() throws {
    let database = try DatabaseQueue()
    try Schema.migrator.migrate(database, upTo: "5 hubs")
    try database.write { db in
      for (sequence, event) in [
        (1, "ConsentWithdrawn"), (3, "ConsentGiven"), (4, "ConsentWithdrawn"), (6, "ObjectionRegistered"),
      ] {
        try db.execute(
          sql: "INSERT INTO consent_events VALUES (?, 0, 'a', x'00', ?, 0, NULL, 's', ?, x'')",
          arguments: [sequence, event, "\(sequence)"])
      }
      try db.execute(sql: "INSERT INTO meta VALUES ('consent-settled', 2)")
      let entry = Data(#"{"detail":{"for":4},"kind":"consent.acknowledged"}"#.utf8)
      try db.execute(sql: "INSERT INTO audit VALUES (5, NULL, x'', ?)", arguments: [entry])
    }
    try Schema.migrator.migrate(database)
    #expect(try database.read { try Reader(db: $0).owedAcknowledgements() } == [6])
  }

  /// A ledger of an earlier version has manifests and keys in the rows that each step writes again.
  @Test func manifestsAndKeysMoveToATableOfTheirOwn() throws {
    let database = try DatabaseQueue()
    try Schema.migrator.migrate(database, upTo: "8 what is to be purged")
    let (sealed, claimed) = (TransferID(), TransferID())
    try database.write { db in
      let rows: [(TransferID, Data, Data?)] = [(sealed, Data([1, 2]), Data([3])), (claimed, Data(), nil)]
      for (id, manifest, key) in rows {
        try db.execute(
          sql: """
            INSERT INTO transfers (direction, sender, id, peer, agreement, state, name, payload_bytes, body_bytes, manifest,
              manifest_sha256, key, durable_bytes, created_at, attempts, code, note, sealed_to, inbox_name, updated_at)
            VALUES ('out', ?, ?, ?, 'a', 'queued', 'n', 0, 0, ?, '', ?, 0, 0, 0, '', '', '', '', 0)
            """, arguments: [sender.text, id.text, peer.text, manifest, key])
      }
    }
    try Schema.migrator.migrate(database)
    try database.read { db in
      let reader = Reader(db: db)
      let row = try #require(try reader.transfer(sender, sealed))
      #expect(row.manifest == [1, 2] && row.key == [3])
      let other = try #require(try reader.transfer(sender, claimed))
      #expect(other.manifest.isEmpty && other.key == nil)
      #expect(try Int.fetchOne(db, sql: "SELECT count(*) FROM parts") == 1)
    }
  }

  /// With thousands of rows in a state, whoever looks for those that are due reads those alone.
  @Test func whatIsDueIsFoundByAnIndexInItsOrder() throws {
    let database = try DatabaseQueue()
    try Schema.migrator.migrate(database)
    let asked = NIOLockedValueBox<[String]>([])
    try database.read { db in
      db.trace { event in
        guard case .statement(let statement) = event else { return }
        asked.withLockedValue { $0.append(statement.expandedSQL) }
      }
      _ = try Reader(db: db).due(.out, .claimed, at: Date(), limit: 10)
      _ = try Reader(db: db).due(.out, .claimed, peer: peer, at: Date(), limit: 10)
      db.trace()
    }
    let queries = asked.withLockedValue { $0.filter { $0.hasPrefix("SELECT") } }
    #expect(queries.count == 2)
    for (query, index) in zip(queries, ["transfers_next", "transfers_due"]) {
      let plan = try database.read { try Row.fetchAll($0, sql: "EXPLAIN QUERY PLAN \(query)").map(\.description) }
      #expect(plan.contains { $0.contains(index) } && !plan.contains { $0.contains("TEMP B-TREE") }, "\(plan)")
    }
  }

  @Test func aKeyStaysWhereAnOlderRowIsWritten() async throws {
    let ledger = try open(scratch.path)
    let row = transfer(.receiving, .in)
    try await ledger.write { try $0.insert(row) }
    let received = try await ledger.write { try $0.advance(row, to: .received) }
    _ = try await ledger.write { try $0.amend(received) { $0.key = [7] } }
    // Who read it before writes what it changes, and no more.
    _ = try await ledger.write { try $0.amend(received) { $0.attempts = 3 } }
    let now = try #require(try await ledger.read { try $0.transfer(sender, row.id) })
    #expect(now.key == [7] && now.attempts == 3)
    try ledger.close()
  }

  @Test func aRefusalMayLeaveAnEntryAndNothingElse() async throws {
    let ledger = try open(scratch.path)
    let row = transfer()
    for _ in 1...2 {
      await #expect(throws: LedgerError.notFound("why")) {
        try await ledger.write { tx in
          try tx.insert(row)
          throw RecordedRefusal(AuditEvent("refusal"), once: "why", LedgerError.notFound("why"))
        }
      }
    }
    #expect(try await ledger.read { try $0.transfer(sender, row.id) } == nil)
    let entries = try await ledger.read { try $0.audit(limit: 10) }
    #expect(entries.count == 1 && String(decoding: entries[0].bytes, as: UTF8.self).contains(#""kind":"refusal""#))
    #expect(try ledger.verify(signedBy: signers).faults.isEmpty)
    try ledger.close()
  }

  @Test func aLedgerOfALaterVersionIsRefused() throws {
    try open(scratch.path).close()
    let database = try DatabaseQueue(path: "\(scratch.path)/ledger.sqlite")
    try database.write { try $0.execute(sql: "INSERT INTO grdb_migrations VALUES ('99 what is not known yet')") }
    try database.close()
    #expect(throws: LedgerError.newer) { try open(scratch.path) }
  }

  @Test func aLedgerWhoseHeadsAreGoneIsRefused() async throws {
    let ledger = try open(scratch.path)
    try await ledger.write { _ = try $0.append(AuditEvent("one")) }
    try ledger.close()
    try Directory.remove("\(scratch.path)/heads.log")
    #expect(throws: LedgerError.rolledBack("heads.log is missing")) { try open(scratch.path) }
    #expect(!Directory.exists("\(scratch.path)/heads.log"))
  }

  /// A read that blocks its thread waits for a connection; giving one back must not need that thread.
  @Test func aBlockingReadMeetsReadsThatSuspend() async throws {
    let ledger = try open(scratch.path)
    let thread = OneThread()
    let readers = Ledger.readers
    let (reading, blocks, read) = (Counter(), Counter(), Counter())
    for _ in 0..<readers {
      Task(executorPreference: thread) {
        _ = try await ledger.read { _ in
          reading.add()
          while blocks.value == 0 { usleep(1000) }
        }
        read.add()
      }
    }
    #expect(await reading.reaches(readers))
    Task(executorPreference: thread) {
      blocks.add()
      _ = try ledger.readNow { try $0.partners() }
      read.add()
    }
    #expect(await read.reaches(readers + 1))
    try ledger.close()
  }

  @Test func anArrowIsOneChangeAndOneEntry() async throws {
    let ledger = try open(scratch.path)
    let row = transfer()
    try await ledger.write { try $0.insert(row) }
    let sealed = try await ledger.write { try $0.advance(row, to: .sealed) { $0.bodyBytes = 19 } }
    #expect(sealed.state == .sealed)
    #expect(try await ledger.read { try $0.transfer(sender, row.id)?.bodyBytes } == 19)
    #expect(try await ledger.read { try $0.audit(id: row.id, limit: 10).count } == 2)
    // The same arrow again: the row moved on.
    await #expect(throws: LedgerError.stale("transfer \(row.id)")) {
      try await ledger.write { try $0.advance(row, to: .sealed) }
    }
    // No arrow at all.
    await #expect(throws: LedgerError.self) { try await ledger.write { try $0.advance(sealed, to: .confirmed) } }
    #expect(try await ledger.read { try $0.auditSize() } == 2)
    try ledger.close()
  }

  @Test func aJobThatFailsTakesNothingWithIt() async throws {
    struct Refused: Error {}
    let ledger = try open(scratch.path)
    try await withThrowingTaskGroup { group in
      for index in 0..<200 {
        group.addTask {
          do {
            try await ledger.write { tx in
              try tx.insert(transfer())
              if index.isMultiple(of: 3) { throw Refused() }
            }
          } catch is Refused {}
        }
      }
      try await group.waitForAll()
    }
    #expect(try await ledger.read { try $0.counts().map(\.count) } == [133])
    let verified = try ledger.verify(signedBy: signers)
    #expect(verified.entries == 133 && verified.faults == [])
    try ledger.close()
  }

  @Test func everythingIsThereAfterReopening() async throws {
    let row = transfer()
    var ledger = try open(scratch.path)
    try await ledger.write { try $0.insert(row) }
    let head = ledger.head
    try ledger.close()
    ledger = try open(scratch.path)
    #expect(ledger.head == head)
    #expect(try await ledger.read { try $0.due(.out, .claimed, at: Date() + 1, limit: 10).map(\.id) } == [row.id])
    try ledger.close()
  }

  @Test func aLedgerBehindItsHeadsRefusesToStart() async throws {
    var ledger = try open(scratch.path)
    try await ledger.write { try $0.insert(transfer()) }
    try ledger.backup(to: "\(scratch.path)/old")
    try await ledger.write { try $0.insert(transfer()) }
    try ledger.close()
    for suffix in ["", "-wal", "-shm"] { unlink("\(scratch.path)/ledger.sqlite\(suffix)") }
    try FileManager.default.copyItem(atPath: "\(scratch.path)/old", toPath: "\(scratch.path)/ledger.sqlite")
    #expect(throws: LedgerError.self) { try open(scratch.path) }
    try Ledger.restore(
      "\(scratch.path)/old", of: AgencyID("tax.example.gov")!, to: "\(scratch.path)/ledger.sqlite",
      heads: "\(scratch.path)/heads.log", at: Date(), epoch: "next")
    ledger = try open(scratch.path)
    #expect(ledger.head.epoch == "next")
    #expect(try await ledger.read { try $0.restoredAt() } != nil)
    try ledger.close()
  }

  /// Another program that holds the database keeps a change from being made, and no later one.
  @Test func aLedgerThatIsHeldByAnotherGoesOnLater() async throws {
    let ledger = try open(scratch.path)
    try await ledger.pool.writeWithoutTransaction { try $0.execute(sql: "PRAGMA busy_timeout = 50") }
    var configuration = Configuration()
    configuration.allowsUnsafeTransactions = true
    let other = try DatabaseQueue(path: ledger.path, configuration: configuration)
    try await other.writeWithoutTransaction { try $0.execute(sql: "BEGIN IMMEDIATE") }
    await #expect { try await ledger.write { try $0.insert(transfer()) } } throws: { StoreFailure($0) == .busy }
    try await other.writeWithoutTransaction { try $0.execute(sql: "ROLLBACK") }
    try await ledger.write { try $0.insert(transfer()) }
    #expect(try await ledger.read { try $0.auditSize() } == 1)
    try ledger.close()
  }

  /// A hub's, for a recipient that never comes.
  @Test func parkedNoticesAreCountedByAgreementAndEnd() async throws {
    let ledger = try open(scratch.path)
    let now = Date()
    try await ledger.write { tx in
      for agreement in ["a", "a", "b"] {
        try tx.put(
          NoticeRow(
            id: TransferID(), direction: .hub, peer: peer, agreement: agreement, envelope: [], nextAt: now, actBy: now,
            sequence: 1))
      }
    }
    for (agreement, count) in [("a", 2), ("b", 1), ("c", 0)] {
      #expect(try await ledger.read { try $0.countParkedNotices(for: peer, under: agreement) } == count)
    }
    for (instant, isThere) in [(now - 1, false), (now + 1, true)] {
      #expect(try await ledger.read { try $0.hasParkedNotices(overdueAt: instant) } == isThere)
      try await ledger.write { try $0.removeParkedNotices(overdueAt: instant) }
    }
    #expect(try await ledger.read { try $0.notices(limit: 10) }.isEmpty)
    try ledger.close()
  }

  /// The key went, and nobody will say any more that it arrived.
  @Test func whatNobodyConfirmsIsPurgedLongAfterItsTime() async throws {
    let ledger = try open(scratch.path)
    let now = Date()
    let rows = [transfer(.unconfirmed), transfer(.delivered, .in)].map { row in
      var row = row
      row.expiresAt = now
      return row
    }
    try await ledger.write { tx in for row in rows { try tx.insert(row) } }
    for (later, count) in [(Reader.releasedSeconds - 60, 0), (Reader.releasedSeconds + 60, 2)] {
      let over = try await ledger.read { try $0.over(endedBefore: now + later, at: now + later, limit: 10) }
      #expect(over.count == count)
      for transfer in over { try await ledger.write { _ = try $0.advance(transfer, to: .purged) } }
    }
    try ledger.close()
  }

  @Test func aChangedOrMissingEntryIsNamed() async throws {
    try await open(scratch.path, entries: 10).close()
    let ledger = try open(scratch.path)
    let whole = try ledger.verify(signedBy: signers)
    #expect(whole.faults == [] && whole.heads == 2)
    try await ledger.pool.write {
      try $0.execute(
        sql: "UPDATE audit SET entry = replace(CAST(entry AS TEXT), 'claimed', 'sealed!') WHERE sequence = 4")
    }
    let differs = "the head over 10 entries that was signed earlier does not match"
    let edge = "the tree's stored edge does not match its entries"
    let other = "the first 10 entries are not those that this gateway committed"
    #expect(try ledger.verify(signedBy: signers).faults == ["entry 4 was changed", other, edge, differs])
    try await ledger.pool.write { try $0.execute(sql: "DELETE FROM audit WHERE sequence = 7") }
    let missing = ["this gateway committed 10 entries", "a head over 10 entries was signed"].map {
      "\($0), but they are not there"
    }
    #expect(
      try ledger.verify(signedBy: signers).faults == ["entry 4 was changed", "entry 7 is missing", edge] + missing)
    // At the end none is missing between two.
    try await ledger.pool.write { try $0.execute(sql: "DELETE FROM audit WHERE sequence > 4") }
    let short = try ledger.verify(signedBy: signers).faults
    #expect(short.count == 4 && short[1].contains("edge does not fit") && Array(short.suffix(2)) == missing)
    // Whose epoch the database says it is changes nothing.
    try await ledger.pool.write { try $0.execute(sql: "UPDATE meta SET value = 'other' WHERE name = 'epoch'") }
    #expect(try ledger.verify(signedBy: signers).faults == short)
    try ledger.close()
  }

  @Test func aHeadThatIsNotOursIsNamed() async throws {
    let ledger = try await open(scratch.path, entries: 3)
    let stranger = try SigningKey(generating: .ed25519)
    let forged = Envelope(signing: ledger.head.document, as: .head, with: [stranger])
    try append(forged.bytes + [10])
    let faults = ["heads.log has a head over 3 entries that this agency did not sign"]
    #expect(try ledger.verify(signedBy: signers).faults == faults)
    let both = SignerPolicy([key.verifying, stranger.verifying])
    #expect(try ledger.verify(signedBy: both).faults == [])
    try append([UInt8](repeating: 65, count: 3 * HeadsLog.lineBytesMax))
    let long = "heads.log has a line that is longer than any head"
    #expect(try ledger.verify(signedBy: signers).faults == faults + [long])
    try ledger.close()
  }

  @Test func headsAreReadLineByLine() async throws {
    let path = "\(scratch.path)/lines"
    let lines = (0..<3000).map { [UInt8](repeating: 65, count: $0 % 700) }
    try DurableFile.write(lines.flatMap { $0 + [10] } + [66], to: path)
    let reader = try HeadsReader(path)
    for line in lines { #expect(try reader.next() == line) }
    #expect(try reader.next() == nil)
    try DurableFile.write([UInt8](repeating: 65, count: 3 * HeadsLog.lineBytesMax), to: path)
    #expect(throws: DiskError.self) { try HeadsReader(path).next() }
  }

  /// From wherever the last look went by, the roots are the same.
  @Test func headsOfPartnersAreRootsOfTheTree() async throws {
    let spacing = Int64(TreeEdges.spacing)
    let ledger = try await open(scratch.path, entries: 1)
    try await ledger.write { tx in
      for number in 1..<(2 * spacing + 10) { try tx.append(AuditEvent("entry", ["number": .integer(number)])) }
    }
    let edges = TreeEdges()
    for size in [1, spacing - 1, 2 * spacing + 10, spacing, spacing + 1, 2 * spacing, 0] {
      let (fresh, resumed) = try ledger.readNow {
        (try AuditTree.root(at: size, $0.db, TreeEdges()), try AuditTree.root(at: size, $0.db, edges))
      }
      #expect(fresh == resumed, "\(size)")
    }
    #expect(try ledger.readNow { try AuditTree.root(at: 2 * spacing + 10, $0.db, edges) } == ledger.head.root)
    try await ledger.requireHead(ledger.head, thorough: true)
    let other = LedgerHead(epoch: ledger.head.epoch, size: 5, root: ledger.head.root)
    await #expect(throws: LedgerError.self) { try await ledger.requireHead(other, thorough: true) }
    try ledger.close()
  }

  @Test func aTornLastHeadIsPassedOver() async throws {
    var ledger = try open(scratch.path)
    try await ledger.write { try $0.insert(transfer()) }
    try ledger.close()
    try append(Array("{\"payload\":\"eyJlc".utf8))
    ledger = try open(scratch.path)
    try await ledger.write { try $0.insert(transfer()) }
    try ledger.close()
    let lines = try HeadsReader("\(scratch.path)/heads.log")
    var sizes: [Int64?] = []
    while let line = try lines.next() { sizes.append(HeadsLog.head(in: line)?.head.size) }
    #expect(sizes == [1, nil, 2])
  }

  private func append(_ bytes: [UInt8]) throws {
    let handle = try FileHandle(forWritingTo: URL(fileURLWithPath: "\(scratch.path)/heads.log"))
    try handle.seekToEnd()
    try handle.write(contentsOf: Data(bytes))
    try handle.close()
  }

  @Test func aHomeHasOneOwner() throws {
    let lock = try HomeLock(scratch.path)
    #expect(throws: LedgerError.locked(scratch.path)) { try HomeLock(scratch.path) }
    withExtendedLifetime(lock) {}
  }

  @Test func everyStateButTheEndsHasAWayOn() {
    for direction in Direction.allCases {
      for state in TransferState.allCases {
        for next in TransferState.allCases where state.mayBecome(next, direction) {
          // Nothing leaves an end but for purging, and nothing disclosed is ever cancelled or expires; a hub only stops keeping it.
          if state.isEnd { #expect(next == .purged) }
          if direction != .hub, [.releasing, .released, .unconfirmed, .confirmed].contains(state) {
            #expect(![.cancelled, .expired].contains(next))
          }
        }
      }
    }
  }

  @Test func duplicateTransfersAndReceiptsAreRefusedByTheTables() async throws {
    let ledger = try open(scratch.path)
    let row = transfer()
    try await ledger.write { try $0.insert(row) }
    await #expect(throws: (any Error).self) { try await ledger.write { try $0.insert(row) } }
    let receipt = Receipt(
      kind: .received, id: row.id, sender: sender, recipient: peer, manifest: Digest(of: []), code: "ok", at: Date(),
      previous: nil,
      head: ledger.head)
    let envelope = Envelope(signing: receipt.document, as: .receipt, with: [key])
    try await ledger.write { try $0.add(receipt: receipt, envelope: envelope) }
    await #expect(throws: (any Error).self) {
      try await ledger.write { try $0.add(receipt: receipt, envelope: envelope) }
    }
    #expect(try await ledger.read { try $0.receipts(about: sender, after: 0, limit: 10).count } == 1)
    try ledger.close()
  }
}

@Suite struct SpoolTests {
  let scratch = try! Scratch()

  @Test func aBodyAppearsWhenItIsFinished() throws {
    let spool = try Spool(home: scratch.path)
    let place = Spool.Place.incoming(sender, TransferID())
    do {
      let file = try spool.create(place, bytes: 3)
      try file.write([1, 2, 3], at: 0)
      #expect(!spool.has(place))
      try file.syncData()
    }
    try spool.finish(place)
    #expect(spool.has(place))
    #expect(try spool.inventory().map(\.isBody) == [true])
    try spool.remove(place)
    #expect(try spool.inventory().isEmpty)
    try spool.remove(place)  // again is no error
  }

  /// On a disk, and on tmpfs, which knows no RWF_DONTCACHE; what stays in the cache, and what does not.
  @Test(arguments: ["/dev/shm", nil], [0, Int64.max])
  func whatPassesTheCacheIsWrittenAndReadLikeAnything(_ folder: String?, keptBytes: Int64) throws {
    let path = "\(folder ?? scratch.path)/passing-\(TransferID().text)"
    defer { unlink(path) }
    let file = try File(path, O_RDWR | O_CREAT | O_EXCL, keptBytes: keptBytes)
    let count = 3 * FileAccess.passingBytesMin + 4097
    let bytes = (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 31 ^ ($0 >> 12)) }
    try file.write(bytes, at: 7)
    // Scattered, over the end, long and short.
    let read = UnsafeMutableRawBufferPointer.allocate(byteCount: count + 100, alignment: 16)
    defer { read.deallocate() }
    let cuts = [0, 0, 1, 65_537, count, count + 100]
    let parts = zip(cuts, cuts.dropFirst()).map { UnsafeMutableRawBufferPointer(rebasing: read[$0..<$1]) }
    #expect(try file.access.read(into: parts, at: 7) == count)
    #expect(read.prefix(count).elementsEqual(bytes))
    #expect(try file.bytes(at: 7 + 4096, count: 100) == Array(bytes[4096..<4196]))
    #expect(file.access.isPassing(0) == (keptBytes == 0))
    // As the page cache sees it.
    let plain = try File(path, O_RDONLY)
    #expect(try plain.bytes(at: 7, count: count) == bytes)
  }

  @Test func aBodyStaysInThePageCacheUpToItsShare() throws {
    let body = FileAccess(descriptor: -1, path: "", keptBytes: 1000)
    #expect(!body.isPassing(0) && !body.isPassing(999) && body.isPassing(1000))
    #expect(!FileAccess(descriptor: -1, path: "", keptBytes: nil).isPassing(.max))
    #expect(FileAccess.keptBytesMax > 1 << 20)
  }

  @Test func aDurableFileIsReplacedWhole() throws {
    let path = "\(scratch.path)/f"
    try DurableFile.write([1], to: path, mode: 0o640)
    try DurableFile.write([2, 2], to: path, mode: 0o640)
    #expect(try File.contents(path, bytesMax: 10) == [2, 2])
    #expect(throws: DiskError.self) { try File.contents(path, bytesMax: 1) }
    #expect(throws: DiskError.self) { try DurableFile.write([1], to: "/dev/full/x") }
    #expect(try Directory.names(scratch.path) == ["f"])
  }

  @Test func namesAreNeverReplacedOrFollowed() throws {
    try DurableFile.write([1], to: "\(scratch.path)/a")
    try DurableFile.write([2], to: "\(scratch.path)/b")
    #expect(throws: DiskError.self) { try Directory.renameExclusively("\(scratch.path)/a", "\(scratch.path)/b") }
    symlink("/etc/hostname", "\(scratch.path)/link")
    #expect(throws: DiskError.self) { _ = try File("\(scratch.path)/link", O_RDONLY) }
  }

  @Test func manyCallersShareFewSyncs() throws {
    let sync = DirectorySync(scratch.path)
    DispatchQueue.concurrentPerform(iterations: 100) { _ in
      #expect(throws: Never.self) { try sync.sync() }
    }
    let missing = DirectorySync("\(scratch.path)/missing")
    #expect(throws: DiskError.self) { try missing.sync() }
    // Its mount is back.
    try Directory.make("\(scratch.path)/missing")
    #expect(throws: Never.self) { try missing.sync() }
  }
}
