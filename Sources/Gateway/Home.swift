// The home of a gateway: where everything is, and who may look at it.
//
//   HOME/ sallyport.yaml  keys/  policies/  outbox/<agreement>/  inbox/<sender>/<agreement>/  returned/<agreement>/
//         spool/  staging/  ledger.sqlite  heads.log  consents.table  admin.sock  lock

import Foundation
import Glibc
import Sealing
import Store

/// Paths of one home. A value; makes nothing by itself.
package struct Home: Sendable {
  package let path: String

  package init(_ path: String) {
    let absolute = path.hasPrefix("/") ? path : FileManager.default.currentDirectoryPath + "/" + path
    self.path = URL(fileURLWithPath: absolute).standardizedFileURL.path
  }

  package var configuration: String { "\(path)/sallyport.yaml" }
  package var keys: String { "\(path)/keys" }
  package var keyring: String { "\(keys)/keyring" }
  package var card: String { "\(keys)/card.json" }
  /// Written by `init` where no passphrase was given; to be moved to a credential store.
  package var passphrase: String { "\(keys)/passphrase" }
  package var policies: String { "\(path)/policies" }
  /// What partners offer, in force for nobody.
  package var offered: String { "\(policies)/offered" }
  package func offered(by partner: AgencyID) -> String { "\(offered)/\(partner)" }
  package var ledger: String { "\(path)/ledger.sqlite" }
  package var heads: String { "\(path)/heads.log" }
  /// A copy of what the ledger says about consent, for a fast start; may be removed.
  package var consentTables: String { "\(path)/consents.table" }
  package var adminSocket: String { "\(path)/admin.sock" }
  package var staging: String { "\(path)/staging" }
  package var outboxes: String { "\(path)/outbox" }
  package var inboxes: String { "\(path)/inbox" }
  package func outbox(_ agreement: String) -> String { "\(outboxes)/\(agreement)" }
  package func claims(_ agreement: String) -> String { "\(outbox(agreement))/.claimed" }
  package func returned(_ agreement: String) -> String { "\(path)/returned/\(agreement)" }
  package func inbox(_ sender: AgencyID, _ agreement: String) -> String { "\(inboxes)/\(sender.text)/\(agreement)" }

  /// Makes the directories of a new home, 0700; those that batch jobs use are widened by the administrator.
  package func make() throws(DiskError) {
    for directory in [path, keys, policies, staging, "\(path)/outbox", "\(path)/inbox", "\(path)/returned"] {
      try Directory.make(directory)
    }
  }

  /// Refuses secrets that others may read or change.
  ///
  /// - Throws: `ConfigurationError` with the command that mends it.
  package func requireTightPermissions() throws {
    for (file, mask) in [
      (path, mode_t(0o022)), (keys, 0o077), (keyring, 0o077), (passphrase, 0o077), (card, 0o022),
      (configuration, 0o022), (policies, 0o022), (outboxes, 0o022), (inboxes, 0o022), ("\(path)/returned", 0o022),
      (staging, 0o022), ("\(path)/spool", 0o022), (ledger, 0o022), (heads, 0o022), (consentTables, 0o022),
    ] {
      try Self.requireMode(file, forbidding: mask)
    }
  }

  /// - Throws: `ConfigurationError` when `file` exists and has one of the mode bits in `mask`, or another owner.
  package static func requireMode(_ file: String, forbidding mask: mode_t) throws {
    var info = stat()
    guard stat(file, &info) == 0 else { return }
    guard info.st_mode & mask == 0 else {
      throw ConfigurationError(
        "\(file) has mode \(String(info.st_mode & 0o7777, radix: 8)), which lets others \(mask & 0o044 != 0 ? "read" : "change") it",
        remedy: "chmod go-\(mask & 0o044 != 0 ? "rwx" : "w") \(file)")
    }
    guard info.st_uid == geteuid() || info.st_uid == 0 else {
      throw ConfigurationError(
        "\(file) belongs to another user (uid \(info.st_uid)), and this is uid \(geteuid())",
        remedy: "sudo -u '#\(info.st_uid)' sallyport …")
    }
  }
}

/// The set-up is wrong; nothing was started. Exit code 78.
package struct ConfigurationError: Error, Equatable, Sendable, CustomStringConvertible {
  package let detail: String
  package let remedy: String

  package init(_ detail: String, remedy: String = "") {
    self.detail = detail
    self.remedy = remedy
  }

  package var description: String { remedy.isEmpty ? detail : "\(detail). Try: \(remedy)" }
}
