// How a command reaches a home: through admin.sock while a gateway runs on it, else by opening it itself.

import Foundation
import Gateway
import Glibc
import Logging
import Sealing
import Store
import Transport

struct Session: Sendable {
  let home: Home
  let options: HomeOptions

  init(_ options: HomeOptions) {
    home = options.home
    self.options = options
  }

  /// Performs one verb wherever the home's owner is.
  func perform(_ verb: Administration.Verb, _ arguments: [String: JSON] = [:]) async throws -> [JSON] {
    try await Progress.during(verb.rawValue) {
      if let rows = try await overSocket(verb, arguments) { return rows }
      return try await holding { try await $0(verb, arguments) }
    }
  }

  typealias Perform = @Sendable (_ verb: Administration.Verb, _ arguments: [String: JSON]) async throws -> [JSON]

  /// Several verbs over one opening of the home, side by side.
  func holding<Value>(_ body: (@escaping Perform) async throws -> Value) async throws -> Value {
    if try await isRunning() {
      return try await body { [self] verb, arguments in
        guard let rows = try await overSocket(verb, arguments) else {
          throw AdminError(.failed, "the gateway of \(home.path) has ended")
        }
        return rows
      }
    }
    let context = try open()
    do {
      let value = try await body { verb, arguments in
        try await Administration(context: context).perform(
          verb, DocumentReader(.object(arguments), at: verb.rawValue))
      }
      try await context.close()
      return value
    } catch {
      try await context.close()
      throw error
    }
  }

  /// Whether a gateway runs on this home.
  func isRunning() async throws -> Bool { try await overSocket(.poke, [:]) != nil }

  /// Opens a stopped home. Holds its lock until `close`.
  func open() throws -> GatewayContext {
    let configuration = try Configuration.load(home)
    let (home, file) = (home, options.passphraseFile)
    let unlock: @Sendable () throws -> Secret = { try HomeOptions.passphrase(home, file: file) }
    var logger = Logger(label: "sallyport") { StreamLogHandler.standardError(label: $0) }
    logger.logLevel = .error
    return try GatewayContext(
      home: home, configuration: configuration, keys: KeyRing(home, passphrase: unlock()), engine: .openssl,
      workers: 1, logger: logger, now: { Date() }, passphrase: unlock)
  }

  /// nil when nobody listens.
  private func overSocket(_ verb: Administration.Verb, _ arguments: [String: JSON]) async throws -> [JSON]? {
    for case (let name, .integer(let number)) in arguments where !(0...JSON.integerMax).contains(number) {
      throw AdminError(.usage, "\(name): expected a number from 0 to \(JSON.integerMax), not \(number)")
    }
    guard Directory.exists(home.adminSocket) else { return nil }
    guard home.adminSocket.utf8.count < 108 else {
      throw ConfigurationError("the path of \(home.adminSocket) is too long for a Unix socket (107 bytes)")
    }
    let client = RelayClient(identity: nil)
    defer { client.stop() }
    var request = RelayRequest(
      "POST", "http://localhost/v1/\(verb.rawValue)", body: .bytes(JSON.object(arguments).canonical), pins: [])
    request.socket = home.adminSocket
    request.replyBytesMax = 1 << 28
    request.stallSeconds = 3600
    let reply: HTTPReply
    do {
      reply = try await client.send(request)
    } catch let error as RelayError where error.code == 7 {
      return nil  // a socket file that a dead gateway left
    } catch let error as RelayError where verb != .poke {
      throw AdminError(
        .failed,
        "the gateway ended before it answered (\(error)): what was asked may have been done; look, or ask again")
    }
    if reply.status == 200 {
      return try reply.body.split(separator: 10).map { try JSON(canonical: Array($0), bytesMax: 1 << 24) }
    }
    let document = try JSON(canonical: reply.body, bytesMax: 1 << 20)
    guard case .integer(let code)? = document.member("exit") else {
      throw AdminError(.failed, "the gateway answers \(reply.status)")
    }
    throw AdminError(ExitStatus(rawValue: Int32(code)) ?? .failed, document.text("error"))
  }
}
