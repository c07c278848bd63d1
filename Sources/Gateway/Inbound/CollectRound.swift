// An administrator's `collect`: one look at each partner for what waits, and everything that follows, until it is here.

import Foundation
import Sealing
import Store
import Transport

/// Works beside a running gateway, which does the rest of the work, and on a stopped home, where it does all of it.
struct CollectRound: Sendable {
  let context: GatewayContext
  /// nil on a stopped home.
  let links: PartnerLinks?

  /// - Parameter partner: only this one; nil for all that we collect from.
  /// - Returns: a row for each package that came, or that could not: with what stands in its way.
  /// - Throws: AdminError when we collect from nobody, or from another.
  func run(_ partner: AgencyID?) async throws -> [JSON] {
    let partners = context.partners.all.filter {
      $0.state == .active && (partner == nil || $0.agency == partner) && !context.senders(waitingAt: $0.agency).isEmpty
        && $0.card?.card.endpoint != nil
    }.map(\.agency)
    guard !partners.isEmpty else {
      throw AdminError(.configuration, reason(partner))
    }
    if let links { return try await look(partners, links) }
    let client = RelayClient(identity: context.keys.tlsInUse)
    defer { client.stop() }
    let own = PartnerLinks(context: context, client: client)
    let collect = Collect(context: context, links: own)
    let senders = Set(partners.flatMap { context.senders(waitingAt: $0) })
    let stages = senders.flatMap { collect.stages(of: $0) } + OpenPackage(context: context).stages
    return try await withThrowingTaskGroup(of: [JSON]?.self) { group in
      for stage in stages {
        group.addTask {
          try await stage.loop()
          return nil
        }
      }
      group.addTask { try await look(partners, own) }
      defer { group.cancelAll() }
      while let rows = try await group.next() {
        if let rows { return rows }
      }
      return []
    }
  }

  /// Why there is nobody to collect from.
  private func reason(_ partner: AgencyID?) -> String {
    guard let partner else {
      return
        "nothing can wait for us anywhere: no agreement in force has delivery mode collect. sallyport agreements list"
    }
    guard let known = context.partners[partner] else {
      return "\(partner) is not known here: sallyport partners add CARD"
    }
    guard known.state == .active else {
      return
        "\(partner) is \(known.state.rawValue): sallyport partners \(known.state == .pending ? "approve" : "resume")"
    }
    guard !context.senders(waitingAt: partner).isEmpty else {
      return
        "no agreement in force with delivery mode collect lets packages wait for us at \(partner): sallyport agreements list"
    }
    return "the card of \(partner) does not say where it listens: ask for one that does"
  }

  private func look(_ partners: [AgencyID], _ links: PartnerLinks) async throws -> [JSON] {
    try await withThrowingTaskGroup(of: [JSON].self) { group in
      for partner in partners {
        group.addTask { try await look(partner, links) }
      }
      return try await group.reduce(into: []) { $0 += $1 }
    }
  }

  private func look(_ partner: AgencyID, _ links: PartnerLinks) async throws -> [JSON] {
    let start = context.now()
    let collect = Collect(context: context, links: links)
    let confirm = Confirm(
      context: context, links: links, receipts: ReceiptBook(context: context), collect: collect)
    do {
      // From the beginning of the list: what was passed over once may be taken now.
      var cursor: Int64 = -1
      var next: Int64 = 0
      var pause = Duration.milliseconds(50)
      while next > cursor {
        do {
          (cursor, next) = (next, try await confirm.poll(partner, after: next, waitSeconds: 0, checkHead: false))
          pause = .milliseconds(50)
        } catch let problem as Problem where problem.kind == .busy {
          // As soon as some of those under way are here there is room for the next.
          try await Task.sleep(for: pause)
          pause = min(pause * 2, .seconds(1))
        }
      }
    } catch let error as RelayError {
      return [["peer": .string(partner.text), "state": "unreachable", "note": .string(error.description)]]
    } catch let problem as Problem {
      return [["peer": .string(partner.text), "state": "waiting", "note": .string(problem.description)]]
    }
    while true {
      let rows = try await context.ledger.read { try $0.collecting(from: partner, since: start) }
      // What failed once is tried again by and by; nobody waits for that here.
      let isWorking = rows.contains { $0.nextAt != nil && $0.attempts == 0 && $0.state != .held }
      if !isWorking || links.pausedUntil(partner) != nil || Task.isCancelled { return rows.map(Administration.row) }
      try await Task.sleep(for: .milliseconds(20))
    }
  }
}
