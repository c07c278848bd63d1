// A gateway inside the test's own process, whose answers a test can change on their way out.

import Foundation
import Logging
import NIOPosix
import Sealing
import ServiceLifecycle
import TestSupport
import Transport

@testable import Gateway

/// The gateway of a home in this process, to answer with.
struct OwnGateway {
  let context: GatewayContext
  let port: PartnerPort
  let keys: KeyRing

  init(of agency: TestAgency) throws {
    let home = Home(agency.home)
    let unlock: @Sendable () throws -> Secret = { try PassphraseFile.read(home.passphrase) }
    keys = try KeyRing(home, passphrase: unlock())
    context = try GatewayContext(
      home: home, configuration: .load(home), keys: keys, engine: .openssl, workers: 1,
      logger: Logger(label: "hub") { _ in SwiftLogNoOpLogHandler() }, now: { Date() }, passphrase: unlock)
    port = PartnerPort(
      context: context, receive: Receive(context: context),
      mailbox: Mailbox(context: context, onFatal: { _ in }), onFatal: { _ in })
  }
}

/// Answers in an agency's place, with its TLS key and at its port, while `body` runs.
func serving(
  as agency: TestAgency, to partners: [TestAgency], handler: @escaping PartnerServer.Handler, body: () throws -> Void
) async throws {
  let home = Home(agency.home)
  let keys = try KeyRing(home, passphrase: PassphraseFile.read(home.passphrase))
  let cards = try partners.map { try KeyRing.loadCard(Home($0.home)).card }
  let quiet = Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }
  let server = PartnerServer(
    host: "127.0.0.1", port: Int(keys.card.card.endpoint!.split(separator: ":").last!)!, identity: keys.tlsInUse,
    partner: { pin in cards.first { $0.tlsPins.contains(pin) }?.agency }, handler: handler, loops: .shared,
    logger: quiet, onListening: { _ in })
  let services = ServiceGroup(services: [server], logger: quiet)
  let task = Task { try await services.run() }
  let result = Result { try body() }
  await services.triggerGracefulShutdown()
  _ = await task.result
  try result.get()
}
