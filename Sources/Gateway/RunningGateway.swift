// A gateway that runs: which stages there are, in which order a transfer meets them, and how they start and stop.

import Foundation
import Logging
import NIOConcurrencyHelpers
import NIOCore
import Policies
import Sealing
import ServiceLifecycle
import Store
import Transport

/// The daemon. `run` returns after a graceful shutdown, and throws when it must stop by itself: the process ends then, with
/// its threads as they are. When what is under way does not end within `FatalStop.patienceSeconds`, it never returns: the process ends.
package struct RunningGateway: Service {
  package let context: GatewayContext
  private let client: RelayClient
  private let links: PartnerLinks
  private let onListening: @Sendable (Int) async -> Void

  /// - Parameter onListening: called with the real port once partners can connect.
  package init(context: GatewayContext, onListening: @escaping @Sendable (Int) async -> Void = { _ in }) {
    self.context = context
    client = RelayClient(identity: context.keys.tlsInUse)
    links = PartnerLinks(context: context, client: client)
    self.onListening = onListening
  }

  package func run() async throws {
    let fatal = FatalStop(logger: context.logger)
    defer { fatal.end() }
    let port = PartnerPort(
      context: context, receive: Receive(context: context),
      mailbox: Mailbox(context: context, onFatal: { fatal.raise($0) }), onFatal: { fatal.raise($0) })
    let context = context
    // The server reports every cancelled connection as an error; what matters is logged here.
    var serverLogger = context.logger
    serverLogger.logLevel = .critical
    let quiet = serverLogger
    let administration = Administration(context: context, links: links)
    try Directory.remove(context.home.adminSocket)
    let maintenance = Maintenance(context: context)
    try await maintenance.sweep()
    try await maintenance.restoreOutcomes()
    let consents = ConsentJourney(context: context)
    try await consents.settleAfterCrash()
    let services: [any Service] =
      [
        PartnerServer(
          host: context.configuration.host, port: context.configuration.port, identity: context.keys.tlsInUse,
          limits: context.configuration.serverLimits, partner: { context.partners.known(by: $0) },
          handler: { await port.answer($0) }, loops: .shared,
          logger: quiet, onListening: onListening),
        AdminServer(path: context.home.adminSocket, loops: .shared, logger: quiet) { method, target, body in
          await administration.answer(method, target, body)
        },
        fatal, maintenance, Intake(context: context), Loop { try await consents.settleLater() },
        Loop { try await Outcomes(context: context).writeOwed() },
      ] + stages + [Lanes(context: context, links: links, onFatal: { fatal.raise($0) })]
    let serviceGroup = ServiceGroup(
      configuration: .init(
        services: services.map {
          .init(
            service: Guarded(service: $0, fatal: fatal), successTerminationBehavior: .gracefullyShutdownGroup,
            failureTerminationBehavior: .cancelGroup)
        },
        logger: context.logger))
    try await serviceGroup.run()
    client.stop()
  }

  /// The stages that are not a partner's own.
  private var stages: [any Service] {
    let context = context
    let seal = Seal(context: context)
    let takeBack = TakeBackStage(context: context, links: links)
    return [
      Stage(context: context, direction: .out, state: .claimed, concurrency: 24, news: context.news.claimed) {
        try await seal.seal($0)
      },
      Stage(context: context, direction: .out, state: .sealed, concurrency: 4, news: context.news.claimed) {
        try await seal.queue($0)
      },
      Loop { try await takeBack.expire() },
    ] + OpenPackage(context: context).stages
  }
}

/// A service made of one function that runs until it is cancelled.
struct Loop: Service {
  let body: @Sendable () async throws -> Void

  func run() async throws { try await untilShutdown { try await body() } }
}

/// One lane per active partner: its own queue, its own limits, its own pauses. A dead partner holds up its lane alone.
private struct Lanes: Service {
  static let concurrency = 48

  let context: GatewayContext
  let links: PartnerLinks
  let onFatal: @Sendable (any Error) -> Void

  func run() async throws {
    try await untilShutdown {
      try await withThrowingDiscardingTaskGroup { group in
        var running: Set<AgencyID> = []
        while !Task.isCancelled {
          let seen = context.news.partners.generation
          for partner in context.partners.all where partner.state == .active && running.insert(partner.agency).inserted
          {
            try await recover(partner.agency)
            add(partner.agency, to: &group)
          }
          await context.news.partners.wait(after: seen, for: .seconds(60))
        }
      }
    }
  }

  /// What was under way when the process ended begins again with the peer's word on what it holds.
  private func recover(_ partner: AgencyID) async throws {
    while !Task.isCancelled {
      do {
        for transfer in try await context.ledger.read({ try $0.sending(to: partner) }) {
          _ = try await context.ledger.write { try $0.advance(transfer, to: .queued) }
        }
        return
      } catch LedgerError.stale {
        continue
      } catch {
        guard let trouble = try Disposition.survived(error) else { return }
        context.logger.error("transfers to \(partner) wait: \(trouble.note) [\(trouble.code)]")
        await Signal().wait(after: 0, for: Stage.idle)
      }
    }
  }

  private func add(_ partner: AgencyID, to group: inout ThrowingDiscardingTaskGroup<any Error>) {
    let receipts = ReceiptBook(context: context)
    let relay = Relay(context: context, links: links, receipts: receipts)
    let takeBack = TakeBackStage(context: context, links: links)
    let (links, context, onFatal) = (links, context, onFatal)
    // A task that fails would end its group only when the loop above ends too: it says so instead.
    func run(_ work: @escaping @Sendable () async throws -> Void) {
      group.addTask {
        do {
          try await work()
        } catch is CancellationError {
        } catch {
          onFatal(error)
        }
      }
    }
    func stage(
      _ state: TransferState, _ concurrency: Int, _ news: Signal, direction: Direction = .out,
      _ work: @escaping @Sendable (Transfer) async throws -> Void
    ) {
      let stage = Stage(
        context: context, direction: direction, state: state, peer: partner, concurrency: concurrency, news: news,
        work: { transfer in try await links.step(transfer, work) },
        notBefore: { links.holdsBack(partner) })
      run {
        // Most partners are behind no hub of ours: their stages need not look.
        while direction == .hub, !context.isHub(before: partner) {
          let seen = news.generation
          try Task.checkCancellation()
          await news.wait(after: seen, for: Stage.idleOfLanes)
        }
        try await stage.loop()
      }
    }
    /// What goes to a partner by itself waits until its card says where.
    func reaching(_ work: @escaping @Sendable () async throws -> Void) {
      run {
        while true {
          let seen = context.news.partners.generation
          if links.canReach(partner) { break }
          try Task.checkCancellation()
          await context.news.partners.wait(after: seen, for: .seconds(60))
        }
        try await work()
      }
    }
    let lane = context.news.lane(of: partner)
    stage(.queued, Self.concurrency, lane.sealed) { try await relay.send($0) }
    stage(.custody, 4, lane.custody) { try await relay.release($0) }
    stage(.releasing, 4, lane.custody) { try await relay.release($0) }
    for state in TakeBackStage.reasonStates {
      stage(state, 2, lane.takeBacks) { try await takeBack.takeBack($0) }
    }
    stage(.released, 4, lane.custody) {
      try await Release(context: context).leave(
        $0, code: "receipt.late", note: "released, and no receipt in time; asking goes on")
    }
    stage(.queued, Self.concurrency, lane.sealed, direction: .hub) { try await relay.send($0) }
    stage(.released, 4, lane.custody, direction: .hub) { try await relay.passKey($0) }
    stage(.cancelled, 2, lane.takeBacks, direction: .hub) { try await takeBack.takeBack($0) }
    let collect = Collect(context: context, links: links)
    for stage in collect.stages(of: partner) { run { try await stage.loop() } }
    let cards = CardExchange(context: context, links: links)
    reaching { try await cards.run(partner) }
    run { try await Notices(context: context).run(partner, links) }
    reaching { try await AgreementExchange(context: context).run(partner, links) }
    let confirm = Confirm(context: context, links: links, receipts: receipts, collect: collect)
    reaching { try await confirm.run(partner) }
  }
}
