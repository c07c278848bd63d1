// send, queue, trace, why, hold, resume, retry, cancel: transfers one by one.

import ArgumentParser
import CLinux
import Foundation
import Gateway
import Glibc
import Policies
import Sealing
import Store

struct SendCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "send",
    abstract: "Hand one file to the gateway under an agreement, as if it were dropped in the outbox.")

  @OptionGroup var options: HomeOptions
  @Argument(help: "The file. It is copied; the original stays.", completion: .file())
  var file: String
  @Option(help: "The agreement's id.")
  var agreement: String
  @Flag(help: "Wait for the recipient's receipt.")
  var wait = false
  @Option(help: "With --wait: give up waiting after so many seconds (exit 75); the transfer goes on.")
  var seconds = 3600

  func run() async throws {
    let home = options.home
    let configuration = try Configuration.load(home)
    guard let found = try PolicyFolder.current(agreement, home, at: Date()),
      found.party(configuration.agency, as: .provider) != nil
    else {
      throw AdminError(
        .refused,
        "no agreement \(agreement) lets \(configuration.agency) send. Try: sallyport agreements list --home \(home.path)"
      )
    }
    guard try configuration.hasRoom(in: home, for: 0) else {
      throw AdminError(
        .waiting,
        "below the low-water mark (lowWaterBytes, lowWaterInodes) nothing new is taken: make room on the disk of \(home.path)"
      )
    }
    let session = Session(options)
    let isRunning = try await session.isRunning()
    guard isRunning || !wait else {
      throw AdminError(
        .waiting, "no gateway runs on \(home.path), so nobody would send it. Try: sallyport run --home \(home.path)")
    }
    var id = try Dropping.drop(file, into: home, agreement: agreement)
    if isRunning { _ = try await session.perform(.poke) }
    guard wait else {
      options.output.row(
        ["id": .string(id.text), "state": "claimed"],
        human: "\(id)  handed over\(isRunning ? "" : "; it goes when the gateway runs")")
      return
    }
    let end = ContinuousClock.now + .seconds(seconds)
    let progress = Progress(total: nil, quiet: false)
    while ContinuousClock.now < end {
      let row = try await row(session, id)
      progress.update(row?.text("state") ?? "waits to be taken")
      if let row, let state = TransferState(rawValue: row.text("state")), state.isEnd || state == .held {
        progress.finish()
        options.output.row(row, human: "\(id)  \(state.rawValue)" + TransferText.cause(row))
        if let next = TransferID(row.text("replacedBy")) {
          // The file goes on without some records: its end is that one's.
          id = next
          continue
        }
        switch state {
        case .confirmed, .purged: return
        case .refused: throw ExitCode(.refused)
        case .held: throw ExitCode(.waiting)
        default: throw ExitCode(.failed)
        }
      }
      try await Task.sleep(for: .milliseconds(50))
    }
    progress.finish()
    if let row = try await row(session, id) {
      options.output.row(row, human: "\(id)  \(row.text("state"))" + TransferText.cause(row))
    }
    Output.note("sallyport: no receipt within \(seconds) s; it goes on: sallyport trace \(id)")
    throw ExitCode(.waiting)
  }

  /// nil until the gateway has claimed it.
  private func row(_ session: Session, _ id: TransferID) async throws -> JSON? {
    do {
      return try await session.perform(.trace, ["id": .string(id.text)]).first
    } catch let error as AdminError where [.failed, .waiting].contains(error.exitCode) {
      return nil
    }
  }
}

struct QueueCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(commandName: "queue", abstract: "List transfers that have not ended.")

  @OptionGroup var options: HomeOptions
  @Option(help: "Only this state.") var state: String?
  @Option(help: "Only with this partner.") var partner: String?
  @Option(help: "Only under this agreement.") var agreement: String?
  @Option(help: "Only files of this name.") var name: String?
  @Flag(help: "Ended ones too.") var all = false
  @Option(help: "At most so many.") var limit = RowCount(1000)

  func run() async throws {
    var arguments: [String: JSON] = ["all": .bool(all), "limit": limit.argument]
    if let state {
      guard TransferState(rawValue: state) != nil else { throw ValidationError("--state: unknown state \(state)") }
      arguments["state"] = .string(state)
    }
    arguments["partner"] = partner.map { .string($0) }
    arguments["agreement"] = agreement.map { .string($0) }
    arguments["name"] = name.map { .string($0) }
    let rows = try await Session(options).perform(.queue, arguments)
    options.output.table(
      rows,
      [
        ("ID", "id"), ("DIR", "direction"), ("PARTNER", "peer"), ("AGREEMENT", "agreement"), ("STATE", "state"),
        ("BYTES", "bytes"), ("NAME", "name"), ("NEXT", "nextAt"), ("NOTE", "note"),
      ])
  }
}

struct TraceCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "trace", abstract: "Everything that happened to one transfer, with its receipts.")

  @OptionGroup var options: HomeOptions
  @Argument(help: "The transfer's id.") var id: String

  func run() async throws {
    let id = try TransferArgument.parse(id)
    let rows = try await Session(options).perform(.trace, ["id": .string(id.text)])
    options.output.rows(rows) { row in
      if let entry = row.member("entry") {
        let more = ["outcome", "code"].compactMap { name in entry.member("detail")?.text(name) }.filter { !$0.isEmpty }
        return "  \(entry.text("at"))  #\(entry.text("sequence"))  \(entry.text("kind"))"
          + (more.isEmpty ? "" : "  [\(more.joined(separator: ", "))]")
      }
      if let receipt = row.member("receipt") {
        return
          "  receipt  \(receipt.text("kind"))  by \(receipt.text("recipient")) at \(receipt.text("at"))  code \(receipt.text("code"))"
      }
      if let document = row.member("document") {
        return "  \(row.text("kind"))  signed at \(document.text("at"))"
          + (document.text("evidence").isEmpty ? "" : "  evidence \(document.text("evidence"))")
      }
      return "\(row.text("id"))  \(row.text("name"))  \(row.text("bytes")) bytes  \(row.text("state"))"
        + TransferText.cause(row)
    }
  }
}

/// How many rows are asked for.
struct RowCount: ExpressibleByArgument {
  let argument: JSON
  let defaultValueDescription: String

  init(_ count: Int64) {
    argument = .integer(count)
    defaultValueDescription = String(count)
  }

  init?(argument text: String) {
    guard let count = Int64(text), 1...Int64(Administration.rowsMax) ~= count else { return nil }
    self.init(count)
  }
}

enum TransferText {
  /// Why a transfer is where it is, and what to do about it; empty when there is nothing to say.
  static func cause(_ row: JSON) -> String {
    let (note, code, next) = (row.text("note"), row.text("code"), row.text("next"))
    return (note.isEmpty ? "" : "\n  \(note)\(code.isEmpty ? "" : " [\(code)]")")
      + (next.isEmpty ? "" : "\n  next: \(next)")
  }
}

enum TransferArgument {
  static func parse(_ text: String) throws -> TransferID {
    guard let id = TransferID(text) else {
      throw ValidationError("'\(text)' is not a transfer id (26 letters and digits)")
    }
    return id
  }
}

struct WhyCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "why", abstract: "Why a file in an outbox has not been taken, or what became of it.")

  @OptionGroup var options: HomeOptions
  @Argument(help: "The file's path.", completion: .file()) var path: String

  func run() async throws {
    let home = options.home
    let configuration = try Configuration.load(home)
    let full = Home(path).path
    let parts = full.split(separator: "/").map(String.init)
    guard full.hasPrefix(home.outboxes + "/"), parts.count >= 2, let name = parts.last else {
      throw AdminError(.failed, "\(path) is not in an outbox of \(home.path) (\(home.outboxes)/AGREEMENT/NAME)")
    }
    let agreement = parts[parts.count - 2]
    func answer(_ waiting: Bool, _ text: String) throws {
      options.output.row(
        ["path": .string(full), "agreement": .string(agreement), "answer": .string(text), "waiting": .bool(waiting)],
        human: text)
      if waiting { throw ExitCode(.waiting) }
    }
    // Where the folder itself is away, nobody knows what is in it.
    guard Directory.exists(full) || !Directory.exists("\(home.outbox(agreement))/\(Folder.sentinel)") else {
      return try answer(false, try await taken(name, agreement, home))
    }
    guard let found = try PolicyFolder.current(agreement, home, at: Date()) else {
      return try answer(
        true, "no agreement called \(agreement) is in \(home.policies): nothing in this folder is taken")
    }
    guard found.party(configuration.agency, as: .provider) != nil else {
      return try answer(true, "\(configuration.agency) is no provider under \(agreement)")
    }
    guard try await Session(options).isRunning() else {
      return try answer(true, "no gateway runs on this home: sallyport run --home \(home.path)")
    }
    let folder = Folder(home, agreement: agreement, contract: configuration.folders[agreement] ?? .init())
    var memory = StabilityMemory()
    switch folder.judge(name, &memory, now: Date()) {
    case .ready:
      let hasRoom = try Directory.free(home.path).bytes >= configuration.lowWaterBytes
      try answer(
        true,
        hasRoom
          ? "it is ready, and taken with the next scan (every \(configuration.scanSeconds) s at least)"
          : "the disk is below its low-water mark: nothing new is taken")
    case .waiting(let why): try answer(true, why)
    case .ignored(let why): try answer(true, why)
    case .unreadable: try answer(true, Folder.unreadable)
    case .unfit(let why): try answer(true, "\(why); it will be moved to \(home.returned(agreement))")
    }
  }

  /// What became of a file that is not in its outbox.
  private func taken(_ name: String, _ agreement: String, _ home: Home) async throws -> String {
    let session = Session(options)
    var arguments: [String: JSON] = [
      "name": .string(name), "agreement": .string(agreement), "all": true,
      "limit": .integer(Int64(Administration.rowsMax)),
    ]
    var rows = try await session.perform(.queue, arguments)
    // Of what is purged the queue tells only whoever asks for it.
    arguments["state"] = .string(TransferState.purged.rawValue)
    if rows.isEmpty { rows = try await session.perform(.queue, arguments) }
    if let row = rows.last(where: { $0.text("direction") == Direction.out.rawValue }) {
      return "it was taken as \(row.text("id")), which is \(row.text("state"))\(TransferText.cause(row))"
    }
    let reason = "\(home.returned(agreement))/\(name).reason.txt"
    guard Directory.exists(reason) else {
      throw AdminError(.failed, "\(path) is not there, and no file of this name was taken under \(agreement)")
    }
    return "it was given back, see \(reason)"
  }
}

struct HoldCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "hold", abstract: "Stop a transfer where it is, until resume.")
  @OptionGroup var options: HomeOptions
  @Argument(help: "Transfer ids.") var ids: [String]
  func run() async throws { try await Orders.give(.hold, ids, options) }
}

struct ResumeCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(commandName: "resume", abstract: "Let a held transfer go on.")
  @OptionGroup var options: HomeOptions
  @Argument(help: "Transfer ids.") var ids: [String]
  func run() async throws { try await Orders.give(.resume, ids, options) }
}

struct RetryCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(commandName: "retry", abstract: "Try again now instead of later.")
  @OptionGroup var options: HomeOptions
  @Argument(help: "Transfer ids.") var ids: [String]
  func run() async throws { try await Orders.give(.retry, ids, options) }
}

struct CancelCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "cancel", abstract: "End a transfer whose key was not handed over.")
  @OptionGroup var options: HomeOptions
  @Argument(help: "Transfer ids.") var ids: [String]
  func run() async throws { try await Orders.give(.cancel, ids, options) }
}

/// Orders about several transfers: each is tried; some failing is "partly done".
enum Orders {
  static func give(_ verb: Administration.Verb, _ ids: [String], _ options: HomeOptions) async throws {
    let parsed = try ids.map(TransferArgument.parse)
    let session = Session(options)
    var failures: [any Error] = []
    for id in parsed {
      do {
        let rows = try await session.perform(verb, ["id": .string(id.text)])
        options.output.rows(rows) { "\($0.text("id"))  \($0.text("state"))" }
      } catch {
        failures.append(error)
        Output.failure(error, asJSON: options.json)
      }
    }
    guard let first = failures.first else { return }
    throw ExitCode(failures.count < parsed.count ? .partlyDone : ExitStatus(first))
  }
}
