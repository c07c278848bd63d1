// The ledger: one SQLite database, one writer, group commit, an audit entry with every change.
//
//   WAL, synchronous=FULL read back at every start (GRDB sets NORMAL when it opens a WAL pool), foreign keys on.
//   Writers queue; whatever waits is committed together (at most 64), each job in a savepoint of its own, so one that
//   fails takes nothing with it. A caller returns after the commit that holds its change was synced to disk.

import Foundation
import GRDB
import Glibc
import Sealing

/// The database of one home. Callable concurrently.
package final class Ledger: Sendable {
  package static let groupMax = 64
  /// Reads at once; `readNow` has connections of its own.
  static let readers = 3

  package let path: String
  /// heads.log
  let heads: String
  let pool: DatabasePool
  let edges = TreeEdges()
  private let queue: CommitQueue
  private let readers: ReadQueue

  /// Opens, migrates and checks the ledger in `home`.
  ///
  /// - Parameters:
  ///   - now: the clock, for audit entries.
  ///   - sign: signs heads with this agency's keys.
  /// - Throws: `LedgerError.rolledBack` behind heads.log, `notDurable`, `damaged`; DatabaseError; DiskError.
  package init(home: String, now: @escaping @Sendable () -> Date, sign: @escaping HeadSigner) throws {
    path = "\(home)/ledger.sqlite"
    heads = "\(home)/heads.log"
    var configuration = Configuration()
    configuration.label = "ledger"
    configuration.busyMode = .timeout(10)
    configuration.maximumReaderCount = Self.readers + 4
    pool = try DatabasePool(path: path, configuration: configuration)
    guard try !pool.read(Schema.migrator.hasBeenSuperseded) else { throw LedgerError.newer }
    try Schema.migrator.migrate(pool)
    // Made with the ledger, and left by a restore: one that is gone says nothing of what was signed.
    let isFresh = try pool.read { try Int.fetchOne($0, sql: "SELECT 1 FROM audit LIMIT 1") == nil }
    guard isFresh || Directory.exists(heads) else { throw LedgerError.rolledBack("heads.log is missing") }
    // GRDB sets NORMAL in WAL mode after every hook that a configuration offers, so FULL is set here.
    try pool.writeWithoutTransaction { db in
      try db.execute(sql: "PRAGMA synchronous = FULL")
    }
    try Self.assertDurable(pool)
    queue = try CommitQueue(pool: pool, heads: HeadsLog(heads), now: now, sign: sign)
    readers = ReadQueue(pool)
  }

  /// The ledger is `agency`'s: the first time that says so, later that is how it is.
  ///
  /// - Throws: `LedgerError.foreign`.
  package func require(agency: AgencyID) throws {
    try pool.writeWithoutTransaction { db in
      if let owner = try Self.owner(db) {
        guard owner == agency.text else {
          throw LedgerError.foreign("\(path) is the ledger of \(owner), not of \(agency)")
        }
      } else {
        try db.execute(sql: "INSERT INTO meta (name, value) VALUES ('agency', ?)", arguments: [agency.text])
      }
    }
  }

  /// Whose ledger it is; nil in one that was never opened since that is written down.
  static func owner(_ db: Database) throws -> String? {
    try String.fetchOne(db, sql: "SELECT value FROM meta WHERE name = 'agency'")
  }

  /// Reads the settings back from the writing connection.
  static func assertDurable(_ pool: DatabasePool) throws {
    let (synchronous, journal) = try pool.writeWithoutTransaction { db in
      (try Int.fetchOne(db, sql: "PRAGMA synchronous") ?? 0, try String.fetchOne(db, sql: "PRAGMA journal_mode") ?? "")
    }
    guard synchronous >= 2 else { throw LedgerError.notDurable("PRAGMA synchronous is \(synchronous), not 2 (FULL)") }
    guard journal == "wal" else { throw LedgerError.notDurable("PRAGMA journal_mode is \(journal), not wal") }
  }

  /// Runs `body` in the next group commit; returns once that is on disk.
  ///
  /// `body` may run on any thread and must only use the transaction it is given. Cancelling the caller does not undo it.
  /// - Throws: what `body` throws, having changed nothing (of a `RecordedRefusal` its cause, with its entry committed); DatabaseError when
  ///   the commit fails.
  package func write<Value: Sendable>(_ body: @escaping @Sendable (Transaction) throws -> Value) async throws -> Value {
    try await withCheckedThrowingContinuation { continuation in
      queue.add(CommitJob(body, continuation))
    }
  }

  /// Reads a snapshot. Cancelling the caller does not end it.
  package func read<Value: Sendable>(_ body: @escaping @Sendable (Reader) throws -> Value) async throws -> Value {
    try await withCheckedThrowingContinuation { continuation in
      readers.add { db in continuation.resume(with: Result { try db.get().snapshot(body) }) }
    }
  }

  /// Reads a snapshot, blocking: for start-up and for commands.
  package func readNow<Value>(_ body: (Reader) throws -> Value) throws -> Value {
    try pool.read { try body(Reader(db: $0)) }
  }

  /// The newest committed head.
  package var head: LedgerHead { queue.head }

  /// Writes the last head durably and closes the database. No call may follow.
  package func close() throws {
    readers.stop()
    try queue.stop()
    try pool.close()
  }

  /// A consistent copy while the gateway runs (SQLite's online backup), synced, at `destination`, which must not exist.
  package func backup(to destination: String) throws {
    guard !Directory.exists(destination) else { throw DiskError("backup", destination, errno: EEXIST) }
    let copy = try DatabaseQueue(path: destination)
    try pool.backup(to: copy)
    try copy.close()
    try File(destination, O_RDWR).syncData()
    try Directory.sync(Directory.parent(of: destination))
  }
}

/// One caller's change, type-erased so that the queue can hold it.
private struct CommitJob: Sendable {
  /// Runs the change; returns how to answer once it is committed. Throws having answered nothing.
  let run: @Sendable (Transaction) throws -> (@Sendable () -> Void)
  let fail: @Sendable (any Error) -> Void

  init<Value: Sendable>(
    _ body: @escaping @Sendable (Transaction) throws -> Value, _ continuation: CheckedContinuation<Value, any Error>
  ) {
    run = { transaction in
      let value = try body(transaction)
      return { continuation.resume(returning: value) }
    }
    fail = { continuation.resume(throwing: $0) }
  }
}

/// Threads that read, each with its connection for as long as the ledger is open.
///
/// Not GRDB's own asynchronous reads: each prepares three statements anew and changes threads twice, and its `async` form gives
/// the connection back on the caller's executor: when all of that executor's threads wait for one in `readNow`, never.
private final class ReadQueue: @unchecked Sendable {
  // Proof for @unchecked: everything is touched only under `condition`.
  typealias Job = @Sendable (Result<Database, any Error>) -> Void

  private let condition = NSCondition()
  private var jobs: [Job] = []
  private var isStopping = false
  private var running = Ledger.readers

  init(_ pool: DatabasePool) {
    for _ in 0..<Ledger.readers {
      Thread.detachNewThread { [self] in
        do {
          try pool.unsafeRead { db in
            while let job = next() { job(.success(db)) }
          }
        } catch {
          // No connection: whoever asks is told why.
          while let job = next() { job(.failure(error)) }
        }
        condition.withLock {
          running -= 1
          condition.broadcast()
        }
      }
    }
  }

  func add(_ job: @escaping Job) {
    let isLate = condition.withLock {
      guard !isStopping else { return true }
      jobs.append(job)
      condition.signal()
      return false
    }
    if isLate { job(.failure(CancellationError())) }
  }

  /// Returns when all that was asked has been answered.
  func stop() {
    condition.withLock {
      isStopping = true
      condition.broadcast()
      while running > 0 { condition.wait() }
    }
  }

  /// The oldest job, once there is one; nil when there will be none.
  private func next() -> Job? {
    condition.withLock {
      while jobs.isEmpty, !isStopping { condition.wait() }
      return jobs.isEmpty ? nil : jobs.removeFirst()
    }
  }
}

extension Database {
  /// Runs `body` in a transaction that reads, with statements that are prepared once.
  fileprivate func snapshot<Value>(_ body: (Reader) throws -> Value) throws -> Value {
    try cachedStatement(sql: "BEGIN").execute()
    let value = Result { try body(Reader(db: self)) }
    // A disk that fails may have ended it: what the body threw is the cause then.
    if isInsideTransaction { try cachedStatement(sql: "COMMIT").execute() }
    return try value.get()
  }

  /// Runs `body` in a savepoint: when it throws, nothing of what it did is left. GRDB's own would be prepared anew each time.
  fileprivate func isolated<Value>(_ body: () throws -> Value) throws -> Value {
    try cachedStatement(sql: "SAVEPOINT job").execute()
    do {
      let value = try body()
      try cachedStatement(sql: "RELEASE job").execute()
      return value
    } catch {
      // A disk that fails may have rolled back the whole transaction.
      if isInsideTransaction {
        try cachedStatement(sql: "ROLLBACK TO job").execute()
        try cachedStatement(sql: "RELEASE job").execute()
      }
      throw error
    }
  }
}

/// The writer thread, the audit tree's edge, and heads.log.
private final class CommitQueue: @unchecked Sendable {
  // Proof for @unchecked: `jobs`, `isStopping`, `hasStopped` and `committedHead` are touched only under `condition`;
  // `frontier` and `heads` only by the writer thread, and by init before it starts.
  private let condition = NSCondition()
  private var jobs: [CommitJob] = []
  private var isStopping = false
  private var hasStopped = false
  private var failure: (any Error)?
  private var committedHead: LedgerHead

  private let pool: DatabasePool
  private let epoch: String
  private let now: @Sendable () -> Date
  private let sign: HeadSigner
  private var frontier: MerkleFrontier
  private var heads: HeadsLog

  init(pool: DatabasePool, heads: consuming HeadsLog, now: @escaping @Sendable () -> Date, sign: @escaping HeadSigner)
    throws
  {
    self.pool = pool
    self.now = now
    self.sign = sign
    self.heads = heads
    (epoch, frontier) = try AuditTree.load(pool)
    committedHead = LedgerHead(epoch: epoch, size: Int64(frontier.size), root: frontier.root)
    if let last = self.heads.lastWritten { try AuditTree.require(last, in: pool, epoch: epoch, frontier: frontier) }
    Thread.detachNewThread { [self] in serve() }
  }

  var head: LedgerHead { condition.withLock { committedHead } }

  func add(_ job: CommitJob) {
    condition.lock()
    defer { condition.unlock() }
    if let failure {
      job.fail(failure)
    } else if isStopping {
      job.fail(CancellationError())
    } else {
      jobs.append(job)
      condition.signal()
    }
  }

  func stop() throws {
    condition.lock()
    isStopping = true
    condition.signal()
    while !hasStopped { condition.wait() }
    defer { condition.unlock() }
    if let failure { throw failure }
  }

  private func serve() {
    while true {
      condition.lock()
      while jobs.isEmpty, !isStopping { condition.wait() }
      let group = Array(jobs.prefix(Ledger.groupMax))
      jobs.removeFirst(group.count)
      let failure = failure
      condition.unlock()
      if group.isEmpty { break }
      if let failure {
        for job in group { job.fail(failure) }
      } else {
        commit(group)
      }
    }
    do {
      try heads.write(committedHead, at: now(), always: true, sign: sign)
    } catch {
      condition.withLock { failure = failure ?? error }
    }
    condition.lock()
    hasStopped = true
    condition.broadcast()
    condition.unlock()
  }

  /// One transaction for the whole group. A job that fails is rolled back alone; a disk that fails takes the group.
  private func commit(_ group: [CommitJob]) {
    var waiting = group[...]
    var accepted: [(job: CommitJob, answer: @Sendable () -> Void)] = []
    var edge = frontier
    let instant = now()
    do {
      try pool.writeWithoutTransaction { db in
        var hasRoom = false
        defer {
          if hasRoom {
            try? db.execute(sql: "PRAGMA cache_size = -\(Transaction.cacheKiB); PRAGMA shrink_memory")
          }
        }
        try db.inTransaction(.immediate) {
          while let job = waiting.first {
            let transaction = Transaction(db: db, frontier: edge, at: instant, head: committedHead)
            defer { hasRoom = hasRoom || transaction.hasRoom }
            do {
              let answer = try db.isolated { try job.run(transaction) }
              edge = transaction.frontier
              accepted.append((job, answer))
            } catch let error as DatabaseError where error.isDiskFailure || !db.isInsideTransaction {
              throw error
            } catch let refusal as RecordedRefusal {
              let record = Transaction(db: db, frontier: edge, at: instant, head: committedHead)
              if try !record.reader.flag(refusal.name) {
                try record.setFlag(refusal.name)
                try record.append(refusal.event)
              }
              edge = record.frontier
              accepted.append((job, { job.fail(refusal.cause) }))
            } catch {
              job.fail(error)
            }
            waiting.removeFirst()
          }
          if edge != frontier { try AuditTree.save(edge, db) }
          return .commit
        }
      }
      let head = LedgerHead(epoch: epoch, size: Int64(edge.size), root: edge.root)
      frontier = edge
      condition.withLock { committedHead = head }
      for (_, answer) in accepted { answer() }
      accepted = []
      // What is committed is, whatever becomes of its head's line.
      try heads.write(head, at: instant, always: false, sign: sign)
    } catch {
      // After any failure that does not pass by itself what is on disk is unknown: nothing more is written.
      if ![.full, .busy].contains(StoreFailure(error)) { condition.withLock { failure = error } }
      for (job, _) in accepted { job.fail(error) }
      for job in waiting { job.fail(error) }
    }
  }
}

extension DatabaseError {
  /// The disk, not the statement, is at fault.
  var isDiskFailure: Bool {
    [.SQLITE_FULL, .SQLITE_IOERR, .SQLITE_CORRUPT, .SQLITE_NOTADB, .SQLITE_NOMEM, .SQLITE_READONLY].contains(resultCode)
  }
}
