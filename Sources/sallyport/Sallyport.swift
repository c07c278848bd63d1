// The command: arguments, output, exit codes. Everything it does is done by Gateway.

import ArgumentParser
import CLinux
import Foundation
import Gateway
import Glibc
import Sealing

@main
struct Sallyport: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "sallyport",
    abstract: "A secure gateway for exchanging files between agencies.",
    discussion: """
      Exit codes: 0 done, 1 failed, 2 partly done, 64 usage, 65 bad data, 69 partner unreachable, 74 disk, \
      75 waiting or held, 76 protocol, 77 refused by policy, 78 configuration. Unknown means failed.
      """,
    version: "0.1.0",
    subcommands: [
      InitCommand.self, RunCommand.self, DemoCommand.self, SendCommand.self, CollectCommand.self, SealCommand.self,
      OpenCommand.self,
      StatusCommand.self, QueueCommand.self, TraceCommand.self, WhyCommand.self, HoldCommand.self, ResumeCommand.self,
      RetryCommand.self, CancelCommand.self, CheckCommand.self, DoctorCommand.self, KeysCommand.self, CardCommand.self,
      PartnersCommand.self, AgreementsCommand.self, ConsentCommand.self, ReportCommand.self, SchemasCommand.self,
      LedgerCommand.self,
    ])

  static func main() async {
    // Files are this user's alone unless something says otherwise; SQLite makes its own with the umask.
    umask(0o077)
    sp_ignore_signals()
    do {
      // Whatever unlocks keys or opens packages leaves nothing of them in a core file.
      guard sp_forbid_dumps() == 0 else { throw ConfigurationError("core dumps cannot be forbidden") }
      var command = try parseAsRoot()
      if var asynchronous = command as? any AsyncParsableCommand {
        try await asynchronous.run()
      } else {
        try command.run()
      }
    } catch let code as ExitCode {
      fflush(nil)
      Glibc.exit(code.rawValue)
    } catch let error where isOfParser(error) {
      if exitCode(for: error) == .validationFailure, isAskedForJSON {
        Output.failure(message(for: error), .usage, asJSON: true)
        Glibc.exit(ExitStatus.usage.rawValue)
      }
      exit(withError: error)
    } catch {
      Output.failure(error, asJSON: isAskedForJSON)
      fflush(nil)
      Glibc.exit(ExitStatus(error).rawValue)
    }
  }

  private static var isAskedForJSON: Bool { CommandLine.arguments.contains("--json") }

  /// Help, version and usage errors: the parser prints them and knows their exit code (0 or 64).
  private static func isOfParser(_ error: any Error) -> Bool {
    let code = exitCode(for: error)
    return code == .success || code == .validationFailure
  }
}

/// Options of every command that works on a home.
struct HomeOptions: ParsableArguments {
  @Option(name: .customLong("home"), help: "The gateway's home directory.", completion: .directory)
  var path = "/var/lib/sallyport"

  @Option(help: "A file with the passphrase of the keys, readable by you alone.", completion: .file())
  var passphraseFile: String?

  @Flag(help: "Print JSON Lines.")
  var json = false

  var home: Home { Home(path) }
  var output: Output { Output(asJSON: json) }

  /// The passphrase: from --passphrase-file, then $CREDENTIALS_DIRECTORY/sallyport.passphrase, then keys/passphrase.
  func passphrase() throws -> Secret { try Self.passphrase(home, file: passphraseFile) }

  static func passphrase(_ home: Home, file: String?) throws -> Secret {
    if let file { return try read(file) }
    if let directory = ProcessInfo.processInfo.environment["CREDENTIALS_DIRECTORY"] {
      let path = "\(directory)/sallyport.passphrase"
      if FileManager.default.fileExists(atPath: path) { return try read(path) }
    }
    if FileManager.default.fileExists(atPath: home.passphrase) { return try read(home.passphrase) }
    throw ConfigurationError(
      "no passphrase for the keys of \(home.path)", remedy: "sallyport … --passphrase-file FILE")
  }

  static func read(_ path: String) throws -> Secret { try PassphraseFile.read(path) }
}

/// `sallyport run`'s and everybody's way to name a failure or a waiting state without an error text.
extension ExitCode {
  init(_ status: ExitStatus) { self.init(status.rawValue) }
}
