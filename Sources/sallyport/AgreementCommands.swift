// agreements: what may go where, who signed it, and why.

import ArgumentParser
import Foundation
import Gateway
import Glibc
import Policies
import Sealing
import Store

struct AgreementsCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "agreements", abstract: "Data-sharing agreements: look at them, sign them, ask them.",
    subcommands: [
      List.self, Show.self, Lint.self, Diff.self, Sign.self, Accept.self, Take.self, Reload.self, Approve.self,
      Explain.self, Test.self, Ask.self, Simulate.self,
    ])

  struct List: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "list", abstract: "The routing table: which file goes where, under what, filtered how.")
    @OptionGroup var options: HomeOptions

    func run() async throws {
      let rows = try await Session(options).perform(.agreementsList)
      options.output.table(
        rows,
        [
          ("AGREEMENT", "id"), ("V", "version"), ("STATE", "state"), ("FROM", "from"), ("TO", "to"), ("FILES", "files"),
          ("CONSENT", "consent"), ("FIELDS", "fields"), ("PARTNER", "partner"),
        ])
      guard !options.json else { return }
      for row in rows where row.text("state") != "valid" {
        options.output.line("\(row.text("id")): \(row.text("detail"))")
      }
    }
  }

  struct Show: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "show", abstract: "One agreement in words, from its canonical form, which is what is signed.")
    @OptionGroup var options: HomeOptions
    @Argument(help: "The agreement's id, a file, or the SHA-256 of one that a partner offers.") var agreement: String

    func run() async throws {
      let found = try AgreementFile.find(agreement, options.home)
      options.output.row(
        ["sha256": .string(found.digest.hex), "agreement": found.document], human: AgreementText.page(found))
    }
  }

  struct Lint: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "lint", abstract: "Check agreement files; exit 65 when one cannot be used.",
      discussion:
        "Errors keep an agreement out. Warnings are what its parties should look at. A profile adds a law's check-list: \(LegalProfile.allCases.map(\.rawValue).joined(separator: ", "))."
    )
    @Argument(help: "Agreement files.", completion: .file()) var files: [String]
    @Option(help: "A law's check-list.") var profile: [LegalProfile] = []
    @Flag(help: "Print JSON Lines.") var json = false

    func run() async throws {
      let output = Output(asJSON: json)
      var faults = 0
      for file in files {
        do {
          let agreement = try PolicyFolder.agreement(file)
          try PolicyFolder.check(agreement, in: Directory.parent(of: file))
          let findings = AgreementLint.findings(agreement, profiles: profile, at: Date())
          output.row(
            [
              "file": .string(file), "ok": true, "id": .string(agreement.id), "sha256": .string(agreement.digest.hex),
              "warnings": .array(findings.map { ["key": .string($0.key), "text": .string($0.text)] }),
            ],
            human:
              "\(file): ok, \(agreement.id) version \(agreement.version), sha256 \(agreement.digest)"
              + findings.map { "\n  warning: \($0.key): \($0.text)" }.joined())
        } catch {
          faults += 1
          let what = (error as? ConfigurationError)?.detail ?? String(describing: error)
          output.row(["file": .string(file), "ok": false, "error": .string(what)], human: what)
        }
      }
      if faults > 0 { throw ExitCode(.badData) }
    }
  }

  struct Diff: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "diff",
      abstract: "What changes from one version to the other, in words: more, less, or incomparable.")
    @Argument(help: "The file of the old version.", completion: .file()) var old: String
    @Argument(help: "The file of the new version.", completion: .file()) var new: String
    @Flag(help: "Print JSON Lines.") var json = false

    func run() async throws {
      let changes = AgreementDiff.changes(from: try PolicyFolder.agreement(old), to: try PolicyFolder.agreement(new))
      let output = Output(asJSON: json)
      output.rows(changes.map { ["change": .string($0.text), "direction": .string($0.direction.rawValue)] }) {
        "\($0.text("direction")): \($0.text("change"))"
      }
      let verdict = AgreementDiff.verdict(changes)
      output.row(["verdict": .string(verdict)], human: "The new version is \(verdict).")
    }
  }

  struct Signing: ParsableArguments {
    @Option(help: "The role that you sign in, one of the agreement's signatories.") var role: String
    @Option(help: "Your name; the agency vouches for it with its key.") var signer: String
    @Option(help: "Why, where it is not obvious.") var reason: String?
    @Option(name: .customLong("for"), help: "A partner without a gateway that you sign for, with --evidence.")
    var absent: String?
    @Option(help: "The paper that shows it: where it is kept, its SHA-256.") var evidence: String?
  }

  struct Sign: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "sign",
      abstract: "Sign an act over an agreement: accept, reject, suspend, resume, revoke or register.",
      discussion:
        "To start it takes every party's signatures; to suspend or revoke it takes one. Partners learn of it by themselves."
    )
    @OptionGroup var options: HomeOptions
    @Argument(help: "The agreement's id, or its SHA-256.") var agreement: String
    @OptionGroup var signing: Signing
    @Option(help: "accept, reject, suspend, resume, revoke, register.") var act: AgreementAct.Kind = .accept

    func run() async throws { try await AgreementsCommand.sign(agreement, act, signing, options) }
  }

  struct Accept: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "accept",
      abstract: "Accept an agreement that a partner offers, by the SHA-256 that you compared with them.")
    @OptionGroup var options: HomeOptions
    @Argument(help: "The agreement's SHA-256, or its id when it is held already.") var agreement: String
    @OptionGroup var signing: Signing

    func run() async throws { try await AgreementsCommand.sign(agreement, .accept, signing, options) }
  }

  private static func sign(
    _ agreement: String, _ act: AgreementAct.Kind, _ signing: Signing, _ options: HomeOptions
  ) async throws {
    var arguments: [String: JSON] = [
      "agreement": .string(agreement), "act": .string(act.rawValue), "role": .string(signing.role),
      "signer": .string(signing.signer),
    ]
    arguments["reason"] = signing.reason.map { .string($0) }
    arguments["for"] = signing.absent.map { .string($0) }
    arguments["evidence"] = signing.evidence.map { .string($0) }
    showStanding(try await Session(options).perform(.agreementsAct, arguments), options)
  }

  private static func showStanding(_ rows: [JSON], _ options: HomeOptions) {
    options.output.rows(rows) { row in
      row.member("act") == nil
        ? "\(row.text("from")) → \(row.text("to")): \(row.text("state")), \(row.text("detail"))"
        : "\(row.text("agreement"))  signed, sha256 \(row.text("sha256"))"
          + (row.text("hint").isEmpty ? "" : "\n  \(row.text("hint"))")
    }
  }

  struct Take: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "take",
      abstract: "Take signed acts of a partner that came as files, from policies/ID.vN.sigs/ of their home.")
    @OptionGroup var options: HomeOptions
    @Argument(help: "The acts' files.", completion: .file()) var files: [String]

    func run() async throws {
      for file in files {
        let bytes = try File.contents(file, bytesMax: Envelope.bytesMax)
        AgreementsCommand.showStanding(
          try await Session(options).perform(
            .agreementsTake,
            ["envelope": .string(String(decoding: bytes.last == 10 ? bytes.dropLast() : bytes[...], as: UTF8.self))]),
          options)
      }
    }
  }

  struct Reload: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "reload",
      abstract: "Let the running gateway read policies/ again; a bad file keeps what is in force.")
    @OptionGroup var options: HomeOptions

    func run() async throws {
      options.output.rows(try await Session(options).perform(.reload)) { "\($0.text("agreements")) agreements" }
    }
  }

  struct Approve: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "approve", abstract: "Four eyes: approve a sealed package that waits for it.")
    @OptionGroup var options: HomeOptions
    @Argument(help: "The transfer's id.") var id: String
    @Option(help: "Your name.") var by: String

    func run() async throws {
      let rows = try await Session(options).perform(.agreementsApprove, ["id": .string(id), "by": .string(by)])
      options.output.rows(rows) { "\($0.text("id"))  \($0.text("state"))  \($0.text("note"))" }
    }
  }

  struct Explain: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "explain",
      abstract:
        "Would this file go, or why did this package? The decision, rule by rule, with counts and never a value.")
    @OptionGroup var options: HomeOptions
    @Argument(help: "A file, or a transfer's id.", completion: .file()) var subject: String
    @Option(help: "The agreement's id; for a file.") var agreement: String?

    func run() async throws {
      var arguments: [String: JSON] = [:]
      if TransferID(subject) != nil {
        arguments["id"] = .string(subject)
      } else {
        guard let agreement else { throw ValidationError("a file is explained under an --agreement") }
        arguments = ["file": .string(Home(subject).path), "agreement": .string(agreement)]
      }
      let rows = try await Session(options).perform(.agreementsExplain, arguments)
      guard let decision = rows.first else { return }
      options.output.row(decision, human: AgreementText.decision(decision))
      switch decision.text("outcome") {
      case "permit": return
      case "hold": throw ExitCode(.waiting)
      default: throw ExitCode(.refused)
      }
    }
  }

  struct Test: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "test",
      abstract: "Run the case files that stand beside agreements: policies/cases/*.yaml; exit 1 when one fails.")
    @Argument(help: "The folder with agreements, schemas/ and cases/.", completion: .directory) var folder = "policies"
    @Flag(help: "Print JSON Lines.") var json = false

    func run() async throws {
      let output = Output(asJSON: json)
      let results = try CaseFiles.run(folder)
      output.rows(results.map(\.document)) { row in
        "\(row.text("passed") == "yes" ? "ok  " : "FAIL")  \(row.text("suite")): \(row.text("name"))\(row.text("detail").isEmpty ? "" : "\n      \(row.text("detail"))")"
      }
      let failed = results.filter { !$0.passed }.count
      output.row(
        ["cases": .integer(Int64(results.count)), "failed": .integer(Int64(failed))],
        human: "\(results.count) cases, \(failed) failed")
      // A folder without cases proves nothing.
      guard failed == 0, !results.isEmpty else { throw ExitCode(.failed) }
    }
  }

  struct Ask: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "ask",
      abstract: "Can field X of agreement A reach agency B? Answered exactly, also through onward transfers.",
      discussion:
        "Exit code 0 when it can, 77 when it cannot. Without --agreement all of them are asked. It is about what agreements say; who has signed or suspended them: agreements list."
    )
    @Option(help: "The field's name, or its category such as pd:MedicalHealth.") var field: String
    @Option(help: "The agency.") var reach: String
    @Option(help: "Only from this agreement.") var agreement: String?
    @Option(help: "The folder with the agreements; policies otherwise.", completion: .directory) var folder: String?
    @Option(help: "The home whose policies/ it is.", completion: .directory) var home: String?
    @Flag(help: "Print JSON Lines.") var json = false

    func run() async throws {
      let set = try PolicyFolder.load(folder: folder ?? home.map { Home($0).policies } ?? "policies")
      guard agreement.map({ id in set.agreements.contains { $0.id == id } }) ?? true else {
        throw AdminError(.failed, "no agreement \(agreement ?? "") is there")
      }
      let routes = RouteQuestion.routes(of: field, to: reach, from: agreement, in: set)
      let output = Output(asJSON: json)
      output.rows(routes.map(\.document)) { "yes: \($0.text("text"))" }
      guard routes.isEmpty else { return }
      let isKnown = RouteQuestion.knows(field, reach, in: set)
      output.row(
        ["reaches": false, "known": .bool(isKnown)],
        human: "no: no agreement lets \(field) reach \(reach)"
          + (isKnown ? "" : ", and none here speaks of this field, or of this agency: are they spelled so?"))
      throw ExitCode(.refused)
    }
  }

  struct Simulate: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "simulate",
      abstract: "What would have happened to past packages under a changed agreement? Records are not read again.")
    @OptionGroup var options: HomeOptions
    @Argument(help: "The file of the changed agreement.", completion: .file()) var file: String

    func run() async throws {
      let rows = try await Session(options).perform(.agreementsSimulate, ["file": .string(Home(file).path)])
      options.output.rows(rows) { row in
        row.text("id").isEmpty
          ? "\(row.text("packages")) packages: \(row.text("same")) as before; of all, \(row.text("refused")) refused and \(row.text("held")) held; records are not read again: for what changes about them see agreements diff"
          : "\(row.text("id"))  \(row.text("before")) → \(row.text("after"))  \(row.text("codes"))"
      }
    }
  }
}

extension AgreementAct.Kind: ExpressibleByArgument {}
extension LegalProfile: ExpressibleByArgument {}

/// An agreement named on the command line.
enum AgreementFile {
  /// By file, else by id in the home's policies.
  static func find(_ name: String, _ home: Home) throws -> Agreement {
    if Directory.exists(name) { return try PolicyFolder.agreement(name) }
    if let digest = Digest(named: name), let offered = try PolicyFolder.offered(digest, home) { return offered }
    // Of all that lies there: beside a file that cannot be read, what is current is not known.
    guard let agreement = try PolicyFolder.load(home).current(name, at: Date()) else {
      throw AdminError(.failed, "no agreement \(name) in \(home.policies)")
    }
    return agreement
  }
}
