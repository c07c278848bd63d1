// partners, ledger: whom we exchange with, and the proof of it.

import ArgumentParser
import Foundation
import Gateway
import Glibc
import Policies
import Sealing
import Store
import Transport

struct PartnersCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "partners", abstract: "Add, approve, suspend and list partners.",
    subcommands: [List.self, Add.self, Show.self, Approve.self, Suspend.self, Resume.self, Remove.self])

  struct List: AsyncParsableCommand {
    static let configuration = CommandConfiguration(commandName: "list", abstract: "All partners.")
    @OptionGroup var options: HomeOptions

    func run() async throws {
      options.output.table(
        try await Session(options).perform(.partnersList),
        [
          ("AGENCY", "agency"), ("STATE", "state"), ("SERIAL", "serial"), ("SEALING", "sealing"),
          ("ENDPOINT", "endpoint"), ("LAST SEEN", "lastSeen"),
        ])
    }
  }

  struct Add: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "add", abstract: "Take a partner's card, or describe a partner that has no gateway.",
      discussion: """
        A new partner is pending until its fingerprint is approved. A partner without a gateway collects with curl and opens with \
        age: sallyport partners add --agency ID --certificate CLIENT.pem --recipient age1…
        """)
    @OptionGroup var options: HomeOptions
    @Argument(help: "The card's file.", completion: .file()) var card: String?
    @Option(help: "The id of a partner without a gateway.") var agency: String?
    @Option(help: "The certificate of its TLS client; only its key counts.", completion: .file()) var certificate:
      String?
    @Option(help: "Its age recipient, age1… or age1pq1….") var recipient: String?
    @Flag(help: "Allow the published demo keys.") var demo = false

    func validate() throws {
      guard (card != nil) != (agency != nil && certificate != nil && recipient != nil) else {
        throw ValidationError(
          "give a card's file, or --agency, --certificate and --recipient of a partner without a gateway")
      }
    }

    func run() async throws {
      guard let card else { return try await describe() }
      var bytes = try File.contents(card, bytesMax: Envelope.bytesMax)
      if bytes.last == 10 { bytes.removeLast() }
      let signed = try SignedCard(selfSigned: bytes, at: Date())
      guard demo || !DemoKeys.areIn(signed.card) else { throw DemoKeys.refusal }
      let rows = try await Session(options).perform(
        .partnersAdd, ["card": .string(String(decoding: bytes, as: UTF8.self))])
      show(rows)
    }

    private func describe() async throws {
      guard let agency, let certificate, let recipient else { return }
      guard try demo || !DemoKeys.are(Recipient(recipient)) else { throw DemoKeys.refusal }
      let pin = try TLSIdentity.pin(ofPEM: File.contents(certificate, bytesMax: 1 << 20))
      show(
        try await Session(options).perform(
          .partnersDescribe,
          ["agency": .string(agency), "pin": .string(pin.hex), "recipient": .string(recipient)]))
    }

    private func show(_ rows: [JSON]) {
      options.output.rows(rows) { row in
        "\(row.text("agency"))  \(row.text("outcome"))\nfingerprint  \(row.text("fingerprint"))"
          + (row.text("outcome") == "accepted" || row.text("outcome") == "unchanged"
            ? "" : "\nCompare it by telephone, then: sallyport partners approve \(row.text("agency")) --fingerprint …")
      }
    }
  }

  struct Show: AsyncParsableCommand {
    static let configuration = CommandConfiguration(commandName: "show", abstract: "One partner, with its fingerprint.")
    @OptionGroup var options: HomeOptions
    @Argument(help: "The agency's id.") var agency: String

    func run() async throws {
      let rows = try await Session(options).perform(.partnersList).filter { $0.text("agency") == agency }
      guard !rows.isEmpty else { throw AdminError(.failed, "\(agency) is not known here") }
      options.output.rows(rows) { row in
        var text =
          "\(row.text("agency"))  \(row.text("state"))\nserial       \(row.text("serial"))\nendpoint     \(row.text("endpoint"))\nfingerprint  \(row.text("fingerprint"))\nits SHA-256  \(row.text("fingerprintSha256"))"
        if !row.text("pendingFingerprint").isEmpty {
          text += "\nA new card waits: \(row.text("pendingReason"))\nits fingerprint  \(row.text("pendingFingerprint"))"
        }
        return text
      }
    }
  }

  struct Approve: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "approve", abstract: "Activate a card whose fingerprint you compared with the partner.")
    @OptionGroup var options: HomeOptions
    @Argument(help: "The agency's id.") var agency: String
    @Option(help: "What the partner read to you, all eight groups.") var fingerprint: String

    func run() async throws {
      let rows = try await Session(options).perform(
        .partnersApprove, ["agency": .string(agency), "fingerprint": .string(fingerprint)])
      options.output.rows(rows) { "\($0.text("agency"))  \($0.text("state"))" }
    }
  }

  struct Suspend: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "suspend", abstract: "Stop all exchange with a partner; what is queued waits.")
    @OptionGroup var options: HomeOptions
    @Argument(help: "The agency's id.") var agency: String
    func run() async throws { try await set(agency, "suspended", options) }
  }

  struct Resume: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "resume", abstract: "Exchange with a suspended partner again.")
    @OptionGroup var options: HomeOptions
    @Argument(help: "The agency's id.") var agency: String
    func run() async throws { try await set(agency, "active", options) }
  }

  struct Remove: AsyncParsableCommand {
    static let configuration = CommandConfiguration(commandName: "remove", abstract: "Forget a partner's card.")
    @OptionGroup var options: HomeOptions
    @Argument(help: "The agency's id.") var agency: String
    func run() async throws { try await set(agency, "removed", options) }
  }

  private static func set(_ agency: String, _ state: String, _ options: HomeOptions) async throws {
    let rows = try await Session(options).perform(.partnersSet, ["agency": .string(agency), "state": .string(state)])
    options.output.rows(rows) { "\($0.text("agency"))  \($0.text("state"))" }
  }
}

struct LedgerCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "ledger", abstract: "The audit log that cannot be rewritten unnoticed.",
    subcommands: [Show.self, Verify.self, Backup.self, Restore.self])

  struct Show: AsyncParsableCommand {
    static let configuration = CommandConfiguration(commandName: "show", abstract: "Print audit entries.")
    @OptionGroup var options: HomeOptions
    @Option(help: "Begin after this entry.") var after = 0
    @Option(help: "At most so many.") var limit = RowCount(100)

    func run() async throws {
      let rows = try await Session(options).perform(
        .ledgerShow, ["after": .integer(Int64(max(0, after))), "limit": limit.argument])
      options.output.rows(rows) { "\($0.text("sequence"))  \($0.text("at"))  \($0.text("kind"))  \($0.text("id"))" }
    }
  }

  struct Verify: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "verify", abstract: "Recompute the tree and compare it with every head that was signed.")
    @OptionGroup var options: HomeOptions

    func run() async throws {
      let rows = try await Session(options).perform(.ledgerVerify)
      let isSound = rows.first?.member("faults") == .array([])
      options.output.rows(rows) {
        isSound
          ? "ok: \($0.text("entries")) entries, root \($0.text("root")), \($0.text("heads")) signed heads"
          : "DOES NOT HOLD: \($0.text("faults"))"
      }
      if !isSound { throw ExitCode(.failed) }
    }
  }

  struct Backup: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "backup", abstract: "Copy the ledger consistently, while the gateway runs.")
    @OptionGroup var options: HomeOptions
    @Argument(help: "The file to write, which must not exist.", completion: .file()) var file: String

    func run() async throws {
      let rows = try await Session(options).perform(.ledgerBackup, ["path": .string(Home(file).path)])
      options.output.rows(rows) { "\($0.text("backup")): \($0.member("head")?.text("size") ?? "") entries" }
    }
  }

  struct Restore: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "restore", abstract: "Put a backup in place of the ledger of a stopped home.",
      discussion:
        "A new epoch begins, and packages that were made before the restore are not taken again, so that none is delivered twice."
    )
    @OptionGroup var options: HomeOptions
    @Argument(help: "The backup.", completion: .file()) var file: String

    func run() async throws {
      let result = try LedgerRestore.run(options.home, backup: Home(file).path, at: Date())
      let kept = Ledger.kept(options.home.ledger, result)
      options.output.row(
        ["epoch": .string(result), "kept": .string(kept)],
        human: "restored; the ledger that was there is \(kept). Next: sallyport check")
    }
  }
}
