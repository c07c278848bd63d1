// Intake: takes ready files out of the watched folders, durably, each exactly once.
//
//   lstat, judge  →  renameat2(outbox/A/NAME, outbox/A/.claimed/ID-NAME, NOREPLACE)  →  fsync both directories
//   →  COMMIT claimed  →  (Seal: body durable, COMMIT sealed)  →  unlink .claimed/ID-NAME
//
// A file in .claimed without a row was renamed before a crash and is claimed by the next scan; nothing was promised for it.

import Foundation
import Glibc
import Logging
import Policies
import Sealing
import ServiceLifecycle
import Store

/// Scans every folder that an agreement gives us, on news and at least every `scanSeconds`.
struct Intake: Service {
  /// Files claimed in one round of one folder, so that a full folder does not starve the others.
  static let claimsMax = 256
  /// How often all claims are compared with the ledger, and not only those that are new: what failed is tried again.
  static let recoverSeconds: TimeInterval = 60
  /// A claim of `send` that did not come to its end in this time was killed.
  static let sendSeconds: TimeInterval = 86400

  let context: GatewayContext
  private let outcomes: Outcomes

  init(context: GatewayContext) {
    self.context = context
    outcomes = Outcomes(context: context)
  }

  func run() async throws {
    let watch = FolderWatch(context.news.folders)
    defer { watch?.stop() }
    if watch == nil {
      context.logger.warning("no inotify: folders are scanned every \(context.configuration.scanSeconds) s")
    }
    try await untilShutdown {
      var memories: [String: StabilityMemory] = [:]
      var watched: Set<String> = []
      var down: [String: String] = [:]
      var known: [String: KnownClaims] = [:]
      var left: [String: Left] = [:]
      while !Task.isCancelled {
        let seen = context.news.folders.generation
        var isFull = false
        for folder in folders() {
          do {
            try await prepare(folder)
            if watched.insert(folder.path).inserted, let watch, !watch.add(folder.path) {
              context.logger.warning(
                "\(folder.path) cannot be watched; it is scanned every \(context.configuration.scanSeconds) s")
            }
            var memory = memories[folder.agreement] ?? StabilityMemory()
            var claims = known[folder.agreement] ?? KnownClaims(since: context.now())
            let found = try await scan(folder, &memory, &claims)
            isFull = found.claimed >= Self.claimsMax || isFull
            let before = left.updateValue(found.left, forKey: folder.agreement) ?? Left()
            if found.left.illegible != before.illegible, found.left.illegible > 0 {
              context.logger.warning("\(folder.path): \(Folder.illegible(found.left.illegible))")
            }
            for name in found.left.unreadable.subtracting(before.unreadable).sorted() {
              context.logger.warning("\(folder.path)/\(name.onOneLine): \(Folder.unreadable)")
            }
            memories[folder.agreement] = memory
            known[folder.agreement] = claims
            if down.removeValue(forKey: folder.agreement) != nil {
              context.logger.notice("folder \(folder.agreement) is back")
            }
          } catch {
            guard let trouble = try Disposition.survived(error) else { continue }
            watched.remove(folder.path)
            known[folder.agreement] = nil
            // Said when it comes, not with every scan.
            if down.updateValue(trouble.note, forKey: folder.agreement) != trouble.note {
              context.logger.error("folder \(folder.agreement) is down: \(trouble.note)")
            }
          }
        }
        if !isFull {
          let seconds = Double(context.configuration.scanSeconds) * Double.random(in: 0.75...1.25)
          await context.news.folders.wait(after: seen, for: .seconds(seconds))
        }
      }
    }
  }

  /// Folders of agreements under which this agency provides.
  func folders() -> [Folder] {
    var ids: Set<String> = []
    for agreement in context.policies.agreements where agreement.party(context.agency, as: .provider) != nil {
      ids.insert(agreement.id)
    }
    return ids.sorted().map {
      Folder(context.home, agreement: $0, contract: context.configuration.folders[$0] ?? .init())
    }
  }

  private func prepare(_ folder: Folder) async throws {
    let wasMade = try await context.ledger.read { try $0.flag("folder:\(folder.agreement)") }
    try await context.pool.run { try folder.make(wasMade: wasMade) }
    if !wasMade {
      try await context.ledger.write { tx in
        try tx.setFlag("folder:\(folder.agreement)")
        try tx.append(AuditEvent("folder-made", ["agreement": .string(folder.agreement)]))
      }
    }
  }

  /// What stays in a folder until somebody mends it.
  private struct Left: Sendable {
    var illegible = 0
    var unreadable: Set<String> = []
  }

  /// One round; how many files were claimed, and what was left.
  private func scan(
    _ folder: Folder, _ memory: inout StabilityMemory, _ known: inout KnownClaims
  ) async throws -> (claimed: Int, left: Left) {
    guard try context.hasRoom() else {
      throw DiskError("stay above the low-water mark of", context.home.path, errno: ENOSPC)
    }
    try await recover(folder, &known)
    let now = context.now()
    let before = memory
    typealias Judged = (ready: [String], unfit: [(String, String)], left: Left, memory: StabilityMemory)
    let (ready, unfit, left, after) = try await context.pool.run { () -> Judged in
      var memory = before
      var ready: [String] = []
      var unfit: [(String, String)] = []
      var left = Left()
      let (names, illegible) = try Directory.list(folder.path)
      left.illegible = illegible
      for name in names {
        switch folder.judge(name, &memory, now: now) {
        case .ready: ready.append(name)
        case .unfit(let why): unfit.append((name, why))
        case .unreadable: left.unreadable.insert(name)
        case .waiting, .ignored: continue
        }
        if ready.count >= Self.claimsMax { break }
      }
      memory.keep(only: Set(names))
      return (ready, unfit, left, memory)
    }
    memory = after
    for (name, why) in unfit {
      do {
        try await giveBack(folder, name, why)
      } catch let error as DiskError where !error.isFatal {
        // It holds up nothing else.
        context.logger.warning("\(name) of \(folder.agreement) stays where it is: \(why); \(error)")
      }
    }
    let claimed = try await context.pool.run { try claim(ready, folder) }
    try await record(claimed, folder, &known)
    return (claimed.count, left)
  }

  private func claim(_ names: [String], _ folder: Folder) throws -> [Claim] {
    guard !names.isEmpty else { return [] }
    var claims: [Claim] = []
    var trouble: DiskError?
    for name in names {
      let claim = Claim(id: TransferID(), name: name)
      trouble =
        try passOver(name, of: folder) {
          do {
            try Directory.renameExclusively("\(folder.path)/\(name)", "\(folder.claims)/\(claim.fileName)")
            claims.append(claim)
            if folder.contract.readiness == .trigger {
              try Directory.remove("\(folder.path)/\(name)\(folder.contract.triggerSuffix)")
            }
          } catch let error as DiskError where error.errno == ENOENT {
            // The producer took it away between the look and the claim.
          } catch let error as DiskError where error.errno == ENAMETOOLONG {
            // Too long for the claim's name too; it can only go by its id.
            let short = Claim(id: claim.id, name: "")
            try Directory.renameExclusively("\(folder.path)/\(name)", "\(folder.claims)/\(short.fileName)")
            claims.append(short)
          }
        } ?? trouble
    }
    // Where nothing can be taken, it is the folder.
    if claims.isEmpty, let trouble { throw trouble }
    try Directory.sync(folder.claims)
    try Directory.sync(folder.path)
    return claims
  }

  /// One file that makes trouble keeps no other from being taken.
  ///
  /// - Returns: the trouble.
  @discardableResult
  private func passOver(_ name: String, of folder: Folder, _ work: () throws -> Void) throws -> DiskError? {
    do {
      try work()
      return nil
    } catch let error as DiskError where !error.isFatal && !error.isFull {
      context.logger.warning("\(name.onOneLine) of \(folder.agreement) makes trouble: \(error)")
      return error
    }
  }

  private func record(_ claims: [Claim], _ folder: Folder, _ known: inout KnownClaims) async throws {
    guard !claims.isEmpty, let agreement = context.current(folder.agreement, at: context.now()) else { return }
    guard let recipient = agreement.parties.first(where: { $0.role == .recipient && $0.id != context.agency })
    else { return }
    try await withThrowingTaskGroup { group in
      for claim in claims {
        let transfer = Transfer(
          direction: .out, sender: context.agency, id: claim.id, peer: recipient.id, agreement: folder.agreement,
          state: .claimed, name: claim.name.isEmpty ? claim.id.text : claim.name, createdAt: context.now())
        group.addTask {
          try await context.ledger.write { try $0.insert(transfer, ["agreement": .string(folder.agreement)]) }
        }
      }
      try await group.waitForAll()
    }
    for claim in claims { known.ids.insert(claim.id) }
    context.news.claimed.notify()
  }

  /// Claims that `send` made, and what a crash or a failure left.
  private func recover(_ folder: Folder, _ known: inout KnownClaims) async throws {
    let now = context.now()
    if abs(now.timeIntervalSince(known.since)) >= Self.recoverSeconds { known = KnownClaims(since: now) }
    let ids = known.ids
    let claims = try await context.pool.run { () -> [(String, Claim)] in
      try Directory.names(folder.claims).compactMap { name in
        guard let claim = Claim(fileName: name) else {
          try removeKilled(name, of: folder, at: now)
          return nil
        }
        return ids.contains(claim.id) ? nil : (name, claim)
      }
    }
    guard !claims.isEmpty else { return }
    let rows = try await context.ledger.read { reader in
      try claims.map { try reader.transfer(context.agency, $0.1.id) }
    }
    var orphans: [Claim] = []
    for ((name, claim), row) in zip(claims, rows) {
      guard let row else {
        orphans.append(claim)
        continue
      }
      if row.state == .claimed || (row.state == .held && row.heldFrom == .claimed) {
        known.ids.insert(claim.id)
        continue
      }
      // Whoever moved the row may be about to do the rest.
      guard !context.claimsInUse.withLockedValue({ $0[claim.id] != nil }) else { continue }
      if row.manifest.isEmpty {
        // It ended before it was sealed, and a crash came before the original was given back.
        try await context.pool.run { _ = try passOver(name, of: folder) { try outcomes.giveBackClaim(of: row) } }
      } else {
        // The unlink after the commit of `sealed` was lost.
        try await context.pool.run {
          _ = try passOver(name, of: folder) { try Directory.remove("\(folder.claims)/\(name)") }
        }
      }
    }
    if folder.contract.readiness == .trigger {
      try await context.pool.run { [orphans] in
        for claim in orphans { try passOver(claim.fileName, of: folder) { try removeTrigger(of: claim, folder) } }
      }
    }
    try await record(orphans, folder, &known)
  }

  /// A copy that `send` was making when it was killed: nothing else in the claim directory has such a name.
  private func removeKilled(_ name: String, of folder: Folder, at instant: Date) throws {
    let path = "\(folder.claims)/\(name)"
    var info = stat()
    guard name.hasPrefix("."), TransferID(String(name.dropFirst())) != nil, lstat(path, &info) == 0,
      instant.timeIntervalSince1970 - Double(info.st_mtim.tv_sec) > Self.sendSeconds
    else { return }
    try Directory.remove(path)
  }

  /// The trigger that a crash left after its file was claimed. Where there is a file of that name, or the trigger came after the claim,
  /// it belongs to that one, or the next.
  private func removeTrigger(of claim: Claim, _ folder: Folder) throws {
    let trigger = "\(folder.path)/\(claim.name)\(folder.contract.triggerSuffix)"
    var (claimed, left) = (stat(), stat())
    guard !Directory.exists("\(folder.path)/\(claim.name)"),
      lstat("\(folder.claims)/\(claim.fileName)", &claimed) == 0, lstat(trigger, &left) == 0
    else { return }
    let (made, renamed) = (left.st_mtim, claimed.st_ctim)
    if (made.tv_sec, made.tv_nsec) <= (renamed.tv_sec, renamed.tv_nsec) { try Directory.remove(trigger) }
  }

  private func giveBack(_ folder: Folder, _ name: String, _ why: String) async throws {
    let id = TransferID()
    try await context.pool.run {
      try outcomes.giveBack(
        "\(folder.path)/\(name)", name: name, agreement: folder.agreement, id: id, code: "input.special-file",
        detail: why,
        next: "Drop a plain file with one name, under a name of its own.")
    }
    try await context.ledger.write { tx in
      _ = try tx.append(
        AuditEvent(
          "not-taken", sender: context.agency, id: id,
          ["code": "input.special-file", "agreement": .string(folder.agreement)]))
    }
    context.logger.notice("returned a file of \(folder.agreement): \(why)")
  }
}

/// Claims that have their row, so that a scan of a folder with thousands of them asks the ledger about the new ones alone.
private struct KnownClaims: Sendable {
  /// When all of them were last looked up.
  let since: Date
  var ids: Set<TransferID> = []
}

/// A claimed original: its id and name in one file name.
struct Claim: Sendable {
  let id: TransferID
  let name: String

  var fileName: String { "\(id)-\(name)" }

  init(id: TransferID, name: String) {
    self.id = id
    self.name = name
  }

  /// That of a transfer's original.
  init(of transfer: Transfer) {
    self.init(id: transfer.id, name: transfer.name == transfer.id.text ? "" : transfer.name)
  }

  init?(fileName: String) {
    // By its bytes: with an accent behind it, the dash is another Character.
    let bytes = fileName.utf8
    guard let dash = bytes.firstIndex(of: 45), let id = TransferID(String(fileName[..<dash])) else { return nil }
    self.id = id
    name = String(decoding: bytes[bytes.index(after: dash)...], as: UTF8.self)
  }
}
