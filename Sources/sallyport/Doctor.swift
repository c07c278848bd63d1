// What `doctor` looks at. Each finding: severity (ok, warning, fault), what, and the command that helps.

import CLinux
import Foundation
import Gateway
import Glibc
import Policies
import Sealing
import Store

struct Doctor {
  let options: HomeOptions

  func examine() async throws -> [JSON] {
    let home = options.home
    var findings: [JSON] = []
    func add(_ severity: String, _ what: String, _ remedy: String = "") {
      findings.append(["severity": .string(severity), "what": .string(what), "remedy": .string(remedy)])
    }
    func attempt(_ what: String, _ body: () throws -> Void) {
      do {
        try body()
        add("ok", what)
      } catch let error as ConfigurationError {
        add("fault", error.detail, error.remedy)
      } catch {
        add("fault", "\(what): \(error)")
      }
    }
    attempt("permissions of secrets and settings") { try home.requireTightPermissions() }
    attempt("sallyport.yaml") { _ = try Configuration.load(home) }
    var policies: PolicySet?
    attempt("policies") { policies = try PolicyFolder.load(home) }
    for agreement in policies?.agreements ?? [] where agreement.records != nil {
      attempt("the schema of \(agreement.id) version \(agreement.version)") {
        try PolicyFolder.check(agreement, in: home.policies)
      }
    }
    attempt("the two chunk ciphers and the SHA-256 kernels agree") { _ = try CipherEngine.selfTest() }
    if FileManager.default.fileExists(atPath: home.passphrase) {
      add(
        "warning", "the passphrase lies beside the keys that it protects",
        "move \(home.passphrase) to a credential store: docs/OPERATIONS.md, Unlock")
    }
    guard let configuration = try? Configuration.load(home) else { return findings }
    let free = try Directory.free(home.path)
    if free.bytes < configuration.lowWaterBytes * 2 {
      add(
        "warning", "\(free.bytes >> 20) MiB free; nothing new is taken below \(configuration.lowWaterBytes >> 20) MiB")
    } else {
      add("ok", "disk space")
    }
    try expiries(home, add)
    try folders(home, policies, configuration, add)
    let session = Session(options)
    guard try await session.isRunning() else {
      add("warning", "no gateway runs on this home", "sallyport run --home \(home.path)")
      return findings
    }
    let status = try await session.perform(.status)
    for row in status
    where row.text("kind") == "transfers" && ["held", "corrupt", "unconfirmed"].contains(row.text("state")) {
      add(
        "warning", "\(row.text("count")) packages are \(row.text("state")) and wait for a person",
        "sallyport queue --state \(row.text("state"))")
    }
    for row in status where row.text("kind") == "waiting" {
      add("warning", "\(row.text("count")) packages wait: \(row.text("code"))", row.text("next"))
    }
    for row in try await session.perform(.agreementsList) where ["proposed", "suspended"].contains(row.text("state")) {
      add(
        "warning",
        "the agreement \(row.text("id")) version \(row.text("version")) is \(row.text("state")): \(row.text("detail"))",
        "sallyport agreements list")
    }
    for row in status where row.text("kind") == "agreement-offered" {
      add(
        "warning",
        "the agreement \(row.text("agreement")) version \(row.text("version")) is offered and waits for people",
        "sallyport agreements show \(row.text("sha256"))")
    }
    for row in status where row.text("kind") == "notice-overdue" {
      add(
        "warning", "\(row.text("partner")) has not answered the withdrawal notice \(row.text("notice")) in time",
        "sallyport consent notices")
    }
    let own = configuration.agency.text
    for row in status where row.text("kind") == "key-expiry" && row.text("agency") != own {
      add("warning", row.text("text"), "ask the partner for a new card")
    }
    for row in status where row.text("kind") == "expires-uncollected" {
      add(
        "warning", "\(row.text("partner")) has not come for \(row.text("name")); it expires \(row.text("expiresAt"))",
        "sallyport trace \(row.text("id"))")
    }
    for row in status where row.text("kind") == "partner" {
      let agency = row.text("agency")
      if row.text("state") == "pending" || !row.text("pendingReason").isEmpty {
        add("warning", "a card of \(agency) waits for approval", "sallyport partners show \(agency)")
      }
      if !row.text("pausedUntil").isEmpty {
        add("warning", "\(agency) cannot be reached; next try \(row.text("pausedUntil"))")
      }
    }
    return findings
  }

  private func expiries(_ home: Home, _ add: (String, String, String) -> Void) throws {
    let card = try KeyRing.loadCard(home)
    let instant = Date()
    for expiry in KeyExpiry.due(card.card, at: instant) {
      add(
        expiry.daysLeft(at: instant) < 0 ? "fault" : "warning", expiry.sentence(at: instant),
        "sallyport keys rotate --use sign|seal")
    }
  }

  /// File systems on which inotify does not see what other machines do; scans do.
  private static let remote: [Int64: String] = [
    0x6969: "NFS", 0xff53_4d42: "CIFS", 0xfe53_4d42: "SMB2", 0x6573_5546: "FUSE",
  ]

  private func folders(
    _ home: Home, _ policies: PolicySet?, _ configuration: Configuration, _ add: (String, String, String) -> Void
  ) throws {
    for agreement in policies?.agreements ?? []
    where agreement.party(configuration.agency, as: .provider) != nil {
      let path = home.outbox(agreement.id)
      guard Directory.exists(path) else { continue }
      guard Directory.exists("\(path)/\(Folder.sentinel)") else {
        add(
          "fault", "\(path) is not the folder that was made: is its file system mounted?",
          "mount it; it is never taken for empty")
        continue
      }
      guard access(path, R_OK | W_OK | X_OK) == 0 else {
        add("fault", "\(path) cannot be read and written by this user", "chown \(geteuid()) \(path)")
        continue
      }
      do {
        try Folder(home, agreement: agreement.id, contract: .init()).requireSafe()
        let illegible = try Directory.list(path).illegible
        if illegible > 0 { add("warning", "\(path): \(Folder.illegible(illegible))", "ls -b \(path)") }
      } catch {
        add("fault", "\(error)", "")
      }
      let kind = Self.remote[Int64(sp_filesystem_type(path))]
      add("ok", "folder \(agreement.id): \(kind.map { "on \($0), found by scans" } ?? "watched and scanned")", "")
    }
  }
}
