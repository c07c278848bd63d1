// partners, agreements, ledger: whom we exchange with, under what, and the proof of it.

import ArgumentParser
import Foundation
import Gateway
import Glibc
import Policies
import Sealing
import Store

struct PartnersCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "partners", abstract: "Add, approve, suspend and list partners.",
    subcommands: [List.self, Add.self, Show.self, Approve.self, Suspend.self, Resume.self, Remove.self])

  struct List: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "All partners.")
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
      abstract: "Take a partner's card. A new partner is pending until its fingerprint is approved.")
    @OptionGroup var options: HomeOptions
    @Argument(help: "The card's file.", completion: .file()) var card: String
    @Flag(help: "Allow the published demo keys.") var demo = false

    func run() async throws {
      var bytes = try File.contents(card, bytesMax: Envelope.bytesMax)
      if bytes.last == 10 { bytes.removeLast() }
      let signed = try SignedCard(selfSigned: bytes, at: Date())
      guard demo || !DemoKeys.areIn(signed.card) else {
        throw AdminError(.refused, "that is the card of a demo agency; anybody has its keys")
      }
      let rows = try await Session(options).perform(
        .partnersAdd, ["card": .string(String(decoding: bytes, as: UTF8.self))])
      options.output.rows(rows) { row in
        "\(row.text("agency"))  \(row.text("outcome"))\nfingerprint  \(row.text("fingerprint"))"
          + (row.text("outcome") == "accepted" || row.text("outcome") == "unchanged"
            ? "" : "\nCompare it by telephone, then: sallyport partners approve \(row.text("agency")) --fingerprint …")
      }
    }
  }

  struct Show: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "One partner, with its fingerprint.")
    @OptionGroup var options: HomeOptions
    @Argument(help: "The agency's id.") var agency: String

    func run() async throws {
      let rows = try await Session(options).perform(.partnersList).filter { $0.text("agency") == agency }
      guard !rows.isEmpty else { throw AdminError(.failed, "\(agency) is not known here") }
      options.output.rows(rows) { row in
        var text =
          "\(row.text("agency"))  \(row.text("state"))\nserial       \(row.text("serial"))\nendpoint     \(row.text("endpoint"))\nfingerprint  \(row.text("fingerprint"))"
        if !row.text("pendingFingerprint").isEmpty {
          text += "\nA new card waits: \(row.text("pendingReason"))\nits fingerprint  \(row.text("pendingFingerprint"))"
        }
        return text
      }
    }
  }

  struct Approve: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Activate a card whose fingerprint you compared with the partner.")
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
    static let configuration = CommandConfiguration(abstract: "Stop all exchange with a partner; what is queued waits.")
    @OptionGroup var options: HomeOptions
    @Argument(help: "The agency's id.") var agency: String
    func run() async throws { try await set(agency, "suspended", options) }
  }

  struct Resume: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Exchange with a suspended partner again.")
    @OptionGroup var options: HomeOptions
    @Argument(help: "The agency's id.") var agency: String
    func run() async throws { try await set(agency, "active", options) }
  }

  struct Remove: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Forget a partner's card.")
    @OptionGroup var options: HomeOptions
    @Argument(help: "The agency's id.") var agency: String
    func run() async throws { try await set(agency, "removed", options) }
  }

  private static func set(_ agency: String, _ state: String, _ options: HomeOptions) async throws {
    let rows = try await Session(options).perform(.partnersSet, ["agency": .string(agency), "state": .string(state)])
    options.output.rows(rows) { "\($0.text("agency"))  \($0.text("state"))" }
  }
}

struct AgreementsCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "agreements", abstract: "The data-sharing agreements in policies/.",
    subcommands: [List.self, Show.self, Lint.self, Explain.self])

  struct List: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Which file goes where, under what.")
    @OptionGroup var options: HomeOptions

    func run() async throws {
      let now = Date()
      let rows: [JSON] = try PolicyFolder.load(options.home).agreements.map { agreement in
        let state = now < agreement.notBefore ? "not yet" : now < agreement.notAfter ? "in force" : "ended"
        func names(_ role: Agreement.Role) -> String {
          agreement.parties.filter { $0.role == role }.map(\.id.text).joined(separator: ", ")
        }
        return [
          "id": .string(agreement.id), "version": .integer(agreement.version), "state": .string(state),
          "from": .string(names(.provider)), "to": .string(names(.recipient)), "files": .string(agreement.namePattern),
          "delivery": .string(agreement.delivery.rawValue), "sha256": .string(agreement.digest.hex),
        ]
      }
      options.output.table(
        rows,
        [
          ("AGREEMENT", "id"), ("V", "version"), ("STATE", "state"), ("FROM", "from"), ("TO", "to"), ("FILES", "files"),
          ("SHA-256", "sha256"),
        ])
    }
  }

  struct Show: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "One agreement in its canonical form, which is what both sides hold.")
    @OptionGroup var options: HomeOptions
    @Argument(help: "The agreement's id.") var id: String

    func run() async throws {
      guard let agreement = try PolicyFolder.load(options.home).current(id, at: Date()) else {
        throw AdminError(.failed, "no agreement \(id) in \(options.home.policies)")
      }
      options.output.row(
        ["sha256": .string(agreement.digest.hex), "agreement": agreement.document],
        human: """
          \(agreement.title)
          id        \(agreement.id), version \(agreement.version)
          sha256    \(agreement.digest)
          purpose   \(agreement.purpose)
          in force  \(Timestamp.format(agreement.notBefore)) until \(Timestamp.format(agreement.notAfter))
          parties   \(agreement.parties.map { "\($0.role.rawValue) \($0.id)" }.joined(separator: ", "))
          files     \(agreement.namePattern), \(agreement.mediaType), at most \(agreement.bytesMax) bytes and \(agreement.packagesPerDayMax) a day
          """)
    }
  }

  struct Lint: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Check agreement files; exit 65 when one cannot be used.")
    @Argument(help: "Agreement files.", completion: .file()) var files: [String]
    @Flag(help: "Print JSON Lines.") var json = false

    func run() async throws {
      let output = Output(asJSON: json)
      var faults = 0
      for file in files {
        do {
          let agreement = try PolicyFolder.agreement(file)
          _ = try PolicyFolder.format(of: agreement, in: Directory.parent(of: file))
          output.row(
            ["file": .string(file), "ok": true, "id": .string(agreement.id), "sha256": .string(agreement.digest.hex)],
            human: "\(file): ok, \(agreement.id) version \(agreement.version), sha256 \(agreement.digest)")
        } catch {
          faults += 1
          let what = (error as? ConfigurationError)?.detail ?? String(describing: error)
          output.row(["file": .string(file), "ok": false, "error": .string(what)], human: what)
        }
      }
      if faults > 0 { throw ExitCode(.badData) }
    }
  }

  struct Explain: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Would this file go? The decision, rule by rule.")
    @OptionGroup var options: HomeOptions
    @Argument(help: "The file.", completion: .file()) var file: String
    @Option(help: "The agreement's id.") var agreement: String

    func run() async throws {
      let decision = try await Explanation.decide(file, agreement, options)
      options.output.row(
        decision.document,
        human: decision.sentence + "\n"
          + decision.trace.map { "  \($0.passed ? "ok  " : "NO  ") \($0.rule)  \($0.detail)" }.joined(separator: "\n"))
      switch decision.outcome {
      case .permit: return
      case .hold: throw ExitCode(.waiting)
      case .refuse: throw ExitCode(.refused)
      }
    }
  }
}

/// The decision about a file that is not in an outbox yet.
private enum Explanation {
  static func decide(_ file: String, _ id: String, _ options: HomeOptions) async throws -> Decision {
    let configuration = try Configuration.load(options.home)
    let agreement = try PolicyFolder.load(options.home).current(id, at: Date())
    let recipient = agreement?.parties.first { $0.role == .recipient }?.id ?? configuration.agency
    let handle = try File(file, O_RDONLY)
    let bytes = Int64(try handle.status().st_size)
    let partner = try await Session(options).perform(.partnersList).first { $0.text("agency") == recipient.text }
    let state = Circumstances.PartnerState(rawValue: partner?.text("state") ?? "unknown") ?? .unknown
    let kind = RecipientKind(rawValue: partner?.text("sealing") ?? "")
    return Evaluation.outbound(
      Draft(
        sender: configuration.agency, recipient: recipient, name: URL(fileURLWithPath: file).lastPathComponent,
        mediaType: agreement?.mediaType ?? "application/octet-stream", payloadBytes: bytes),
      under: agreement,
      Circumstances(instant: Date(), partner: state, recipientKinds: kind.map { [$0] } ?? [], packagesToday: 0))
  }
}

struct LedgerCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "ledger", abstract: "The audit log that cannot be rewritten unnoticed.",
    subcommands: [Show.self, Verify.self, Backup.self, Restore.self])

  struct Show: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Print audit entries.")
    @OptionGroup var options: HomeOptions
    @Option(help: "Begin after this entry.") var after = 0
    @Option(help: "At most so many.") var limit = 100

    func run() async throws {
      let rows = try await Session(options).perform(
        .ledgerShow, ["after": .integer(Int64(max(0, after))), "limit": .integer(Int64(max(1, limit)))])
      options.output.rows(rows) { "\($0.text("sequence"))  \($0.text("at"))  \($0.text("kind"))  \($0.text("id"))" }
    }
  }

  struct Verify: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Recompute the tree and compare it with every head that was signed.")
    @OptionGroup var options: HomeOptions

    func run() async throws {
      let rows = try await Session(options).perform(.ledgerVerify)
      let isSound = rows.first?.member("faults") == .array([])
      options.output.rows(rows) {
        isSound ? "ok: \($0.text("entries")) entries, root \($0.text("root"))" : "DOES NOT HOLD: \($0.text("faults"))"
      }
      if !isSound { throw ExitCode(.failed) }
    }
  }

  struct Backup: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Copy the ledger consistently, while the gateway runs.")
    @OptionGroup var options: HomeOptions
    @Argument(help: "The file to write, which must not exist.", completion: .file()) var file: String

    func run() async throws {
      let rows = try await Session(options).perform(.ledgerBackup, ["path": .string(Home(file).path)])
      options.output.rows(rows) { "\($0.text("backup")): \($0.member("head")?.text("size") ?? "") entries" }
    }
  }

  struct Restore: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Put a backup in place of the ledger of a stopped home.",
      discussion:
        "A new epoch begins, and packages that were made before the restore are not taken again, so that none is delivered twice."
    )
    @OptionGroup var options: HomeOptions
    @Argument(help: "The backup.", completion: .file()) var file: String

    func run() async throws {
      let result = try LedgerRestore.run(options.home, backup: Home(file).path, at: Date())
      options.output.row(
        ["epoch": .string(result), "kept": .string("\(options.home.ledger).before-restore")],
        human: "restored; the ledger that was there is \(options.home.ledger).before-restore. Next: sallyport check")
    }
  }
}
