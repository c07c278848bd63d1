// consent, report: what people choose, and what they may know.

import ArgumentParser
import Foundation
import Gateway
import Policies
import Sealing
import Store

struct ConsentCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "consent", abstract: "What people chose: import, grant, withdraw, look, prove.",
    subcommands: [
      Import.self, Heartbeat.self, Sources.self, Grant.self, Withdraw.self, Show.self, Audit.self, Notices.self,
      Answer.self,
    ])

  struct Import: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "import", abstract: "Take a registry's events, all or nothing; the same event twice is one.",
      discussion: "CSV and NDJSON with the columns of docs/CONSENT.md, or FHIR R4 Consent resources, one a line.")
    @OptionGroup var options: HomeOptions
    @Argument(help: "The file.", completion: .file()) var file: String
    @Option(help: "The agreement's id.") var agreement: String
    @Option(help: "The registry's name.") var source: String
    @Option(help: "csv, ndjson or fhir; by the file's extension otherwise.") var format: String?
    @Flag(help: "The file names everybody: who is not in it has withdrawn.") var snapshot = false
    @Option(help: "A snapshot that changes more than this share of the people known is refused, in percent.")
    var maxChange = 10
    @Option(help: "Two people who let a larger change through.") var confirmedBy: [String] = []

    func run() async throws {
      let kind = format ?? (file.hasSuffix(".csv") ? "csv" : "ndjson")
      let rows = try await Session(options).perform(
        .consentImport,
        [
          "file": .string(Home(file).path), "agreement": .string(agreement), "source": .string(source),
          "format": .string(kind), "snapshot": .bool(snapshot), "maxChange": .integer(Int64(max(0, maxChange))),
          "confirmedBy": .array(confirmedBy.map { .string($0) }),
        ])
      options.output.rows(rows) {
        "\($0.text("accepted")) of \($0.text("rows")) events taken, \($0.text("duplicates")) known already, \($0.text("absent")) absent; \($0.text("known")) people known"
          + ($0.member("acknowledgement").map { "\n" + ConsentCommand.told($0) } ?? "")
          + ConsentCommand.newSource($0, source)
      }
    }
  }

  struct Heartbeat: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "heartbeat", abstract: "Say that a registry is alive and has nothing new: silence is not consent.")
    @OptionGroup var options: HomeOptions
    @Option(help: "The agreement's id.") var agreement: String
    @Option(help: "The registry's name.") var source: String

    func run() async throws {
      let rows = try await Session(options).perform(
        .consentHeartbeat, ["agreement": .string(agreement), "source": .string(source)])
      options.output.rows(rows) {
        "\($0.text("agreement"))  \($0.text("source"))  \($0.text("heard"))" + ConsentCommand.newSource($0, source)
      }
    }
  }

  struct Sources: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "sources",
      abstract:
        "The registries that an agreement waits for, the quietest first. Exit code 75 when one is quiet too long.")
    @OptionGroup var options: HomeOptions
    @Option(help: "The agreement's id.") var agreement: String
    @Option(help: "A registry that is not waited for any more; what it said stands.") var retire: String?

    func run() async throws {
      var arguments: [String: JSON] = ["agreement": .string(agreement)]
      arguments["retire"] = retire.map { .string($0) }
      let rows = try await Session(options).perform(.consentSources, arguments)
      options.output.table(rows, [("SOURCE", "source"), ("HEARD", "heard"), ("QUIET", "quiet")])
      if rows.contains(where: { $0.text("quiet") == "yes" }) { throw ExitCode(.waiting) }
    }
  }

  /// An acknowledgement with everybody who had the records before.
  static func told(_ acknowledgement: JSON) -> String {
    var text = acknowledgement.text("plain")
    if case .array(let gone)? = acknowledgement.member("alreadyDisclosed") {
      for item in gone {
        text += "\n  disclosed \(item.text("disclosed")) to \(item.text("recipient"))  \(item.text("package"))"
      }
    }
    return text
  }

  /// A misspelled name would be waited for.
  static func newSource(_ row: JSON, _ name: String) -> String {
    row.text("newSource") == "yes"
      ? "\n\(name) is new here, and waited for from now on: sallyport consent sources" : ""
  }

  struct Choice: ParsableArguments {
    @OptionGroup var options: HomeOptions
    @Argument(help: "The person's id, as it stands in records.") var subject: String
    @Option(help: "The agreement's id.") var agreement: String
    @Option(help: "When the person acted, such as 2026-11-21T10:00:00Z; now otherwise.") var at: String?
    @Option(help: "How: a form, a portal, the telephone.") var method: String?
    @Option(help: "Who acted: the person's name, or a representative's, with --relation.") var indicatedBy: String?
    @Option(help: "What who acted is to the person: self, or a representative that the agreement names.")
    var relation: String?
    @Option(help: "The event's id at its source; the same one twice is refused.") var eventID: String?

    func arguments(_ event: ConsentEvent) -> [String: JSON] {
      var arguments: [String: JSON] = [
        "subject": .string(subject), "agreement": .string(agreement), "event": .string(event.rawValue),
      ]
      arguments["at"] = at.map { .string($0) }
      arguments["method"] = method.map { .string($0) }
      arguments["indicatedBy"] = indicatedBy.map { .string($0) }
      arguments["relation"] = relation.map { .string($0) }
      arguments["eventId"] = eventID.map { .string($0) }
      return arguments
    }
  }

  struct Grant: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "grant", abstract: "Record that a person agrees, or lifts an objection.")
    @OptionGroup var choice: Choice
    @Option(help: "Until when it holds; at most as long as the agreement says.") var until: String?
    @Flag(help: "Opt-out agreements: lift the objection.") var lift = false

    func run() async throws {
      var arguments = choice.arguments(lift ? .lifted : .given)
      arguments["until"] = until.map { .string($0) }
      let rows = try await Session(choice.options).perform(.consentRecord, arguments)
      choice.options.output.rows(rows) {
        "recorded as entry \($0.text("sequence"))\($0.text("effect") == "yes" ? "" : ", without effect: records stay. See: sallyport consent show")"
      }
    }
  }

  struct Withdraw: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "withdraw",
      abstract:
        "Record that a person withdraws or objects. Returns when nothing more will be sent, and says what had gone.",
      discussion:
        "After the acknowledgement no recipient that it does not list becomes able to read the person's record.")
    @OptionGroup var choice: Choice
    @Flag(help: "Opt-out agreements: an objection.") var object = false

    func run() async throws {
      let rows = try await Session(choice.options).perform(
        .consentRecord, choice.arguments(object ? .objected : .withdrawn))
      choice.options.output.rows(rows) { ConsentCommand.told($0) }
    }
  }

  struct Show: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "show", abstract: "What is known about one person's consent.")
    @OptionGroup var options: HomeOptions
    @Argument(help: "The person's id.") var subject: String
    @Option(help: "The agreement's id.") var agreement: String

    func run() async throws {
      let rows = try await Session(options).perform(
        .consentShow, ["subject": .string(subject), "agreement": .string(agreement)])
      options.output.rows(rows) { row in
        row.text("event").isEmpty
          ? "\(row.text("subject"))  \(row.text("state"))  \(row.text("goes") == "yes" ? "records go" : "records stay: \(row.text("code"))")"
            + (row.text("until").isEmpty ? "" : ", until \(row.text("until"))")
          : "  #\(row.text("sequence"))  \(row.text("at"))  \(row.text("event"))  \(row.text("source"))"
      }
    }
  }

  struct Audit: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "audit",
      abstract: "Replay the ledger and every release, and prove that no withdrawal was overlooked.")
    @OptionGroup var options: HomeOptions

    func run() async throws {
      let rows = try await Session(options).perform(.consentAudit)
      options.output.rows(rows) { row in
        if !row.text("overdue").isEmpty {
          return "overdue: the notice \(row.text("overdue")) to \(row.text("partner")): sallyport consent notices"
        }
        return row.text("fault").isEmpty
          ? "\(row.text("events")) events, \(row.text("releases")) releases with \(row.text("subjects")) records: \(row.text("faults") == "0" ? "the release rule held" : "\(row.text("faults")) faults")"
          : "FAULT: \(row.text("fault")) \(row.text("transfer"))\(row.text("notice")) \(row.text("code"))"
      }
      if rows.last?.text("faults") != "0" { throw ExitCode(.failed) }
    }
  }

  struct Notices: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "notices",
      abstract: "Withdrawal notices, sent and received, with their answers. Exit code 75 when one is overdue.")
    @OptionGroup var options: HomeOptions

    func run() async throws {
      let rows = try await Session(options).perform(.consentNotices)
      options.output.table(
        rows,
        [
          ("NOTICE", "notice"), ("", "direction"), ("PARTNER", "partner"), ("AGREEMENT", "agreement"),
          ("ASKED", "asked"),
          ("RECORDS", "records"), ("STATE", "state"), ("ACT BY", "actBy"), ("OVERDUE", "overdue"),
        ])
      if !options.json { for row in rows where ["unanswered", "received"].contains(row.text("state")) { show(row) } }
      if rows.contains(where: { $0.text("overdue") == "yes" }) { throw ExitCode(.waiting) }
    }

    /// Which records an open one is about.
    private func show(_ notice: JSON) {
      guard case .array(let items)? = notice.member("items") else { return }
      for item in items {
        options.output.line(
          "\(notice.text("notice")): records \(item.text("records").trimmingCharacters(in: ["[", "]"])) of package \(item.text("package")), from 0"
        )
      }
    }
  }

  struct Answer: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "answer", abstract: "Answer a notice that a partner sent, signed, once its records were dealt with.",
      discussion: "With --for and --evidence: note what a partner without a gateway answered to a notice of ours.")
    @OptionGroup var options: HomeOptions
    @Argument(help: "The notice's id.") var notice: String
    @Option(help: "actioned, partly or refused.") var state: NoticeAnswer.State
    @Option(help: "The law by which records are kept.") var because: String?
    @Option(name: .customLong("for"), help: "A partner without a gateway that answered on paper, with --evidence.")
    var absent: String?
    @Option(help: "The paper that shows it: where it is kept, its SHA-256.") var evidence: String?

    func run() async throws {
      var arguments: [String: JSON] = ["notice": .string(notice), "state": .string(state.rawValue)]
      arguments["because"] = because.map { .string($0) }
      arguments["for"] = absent.map { .string($0) }
      arguments["evidence"] = evidence.map { .string($0) }
      let rows = try await Session(options).perform(.consentAnswer, arguments)
      options.output.rows(rows) { "\($0.text("notice"))  \($0.text("state"))" }
    }
  }
}

extension NoticeAnswer.State: ExpressibleByArgument {}

struct ReportCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "report",
    abstract: "Who got data about this person, when, why, and what they can do. The look-up is logged.")
  @OptionGroup var options: HomeOptions
  @Argument(help: "The person's id.") var subject: String

  func run() async throws {
    let rows = try await Session(options).perform(.report, ["subject": .string(subject)])
    options.output.rows(rows) { row in
      guard row.text("totalUsages").isEmpty else { return "\(row.text("totalUsages")) entries" }
      let choices = row.member("yourChoices")
      return "\(row.text("logtime"))  \(row.text("action"))"
        + (row.text("receiverName").isEmpty
          ? ""
          : """
          \n  to         \([row.text("receiverName"), row.text("receiverCode"), row.text("receiverSystem")].filter { !$0.isEmpty }.joined(separator: ", "))
            what       \(Self.list(row.member("data")))
            why        \(row.text("purpose"))
            basis      \(row.text("legalBasis"))
            under      \(row.text("agreement")), kept until \(row.text("keptUntil")), may be passed on to \(row.text("onward"))
            state      \(row.text("state"))
            proof      package \(row.member("proof")?.text("package") ?? ""), ledger entry \(row.member("proof")?.text("sequence") ?? "")
            withdraw   \(choices?.text("withdraw") ?? "")
            complain   \(choices?.text("complain") ?? "")
          """)
    }
  }

  private static func list(_ value: JSON?) -> String {
    guard case .array(let items)? = value else { return "" }
    return items.map { if case .string(let text) = $0 { text } else { "" } }.joined(separator: ", ")
  }
}
