// What the journeys share: the home, the ledger, the spool, keys, partners, policies, the clock. No journey owns it.

import Foundation
import Logging
import NIOConcurrencyHelpers
import Policies
import Records
import Sealing
import Store
import Transport

/// One open gateway. Callable concurrently.
package final class GatewayContext: Sendable {
  package static let skewSeconds: TimeInterval = 300
  package static let leaseSeconds: TimeInterval = 30

  package let home: Home
  package let configuration: Configuration
  package let ledger: Ledger
  package let spool: Spool
  package let pool: BlockingPool
  /// For what takes as long as a payload is large: short work never waits behind it.
  let passes = BlockingPool(threads: 8)
  /// Where policies and partners change, one after the other, from before they are read until the acts are judged: no change undoes
  /// another, and none waits behind a sealing.
  let changes = BlockingPool(threads: 1)
  package let engine: CipherEngine
  package let logger: Logger
  package let now: @Sendable () -> Date
  /// Cores that one large pass may use.
  package let workers: Int
  let stagingSync: DirectorySync
  /// Bodies that partners bring now.
  let sessions = Sessions()
  let rereads = Rereads()
  /// Transfers whose outcome files could not be written.
  let owedOutcomes = NIOLockedValueBox<[TransferID: Transfer]>([:])
  /// Packages that are refused on the record: each costs room for good.
  let refusals = PartnerBudget(perMinute: 60)
  /// Cards that are fetched because something does not verify by the one that is held.
  let cardLooks = PartnerBudget(perMinute: 1)
  let inboxSyncs = DirectorySyncs()
  let news = News()

  private let keyBox: NIOLockedValueBox<KeyRing>
  private let policyBox: NIOLockedValueBox<PolicyFolder.Enforceable>
  private let partnerBox = NIOLockedValueBox(PartnerDirectory())
  private let actBook = NIOLockedValueBox(ActBook())
  let consents = ConsentBook()
  /// Entries of consent events whose acknowledgement somebody prepares now.
  let settling = NIOLockedValueBox<Set<Int64>>([])
  let downloads = Downloads()
  /// Transfers whose claimed originals tasks are working on, and how many: they move them when they have moved the row.
  let claimsInUse = NIOLockedValueBox<[TransferID: Int]>([:])
  /// Held by whoever writes an outcome file.
  let outcomeLock = NIOLock()
  let arriving = Arriving()
  private let lock: HomeLock
  /// Fetches the passphrase again, for `reload`.
  private let passphrase: @Sendable () throws -> Secret

  /// Hints between the stages. Each means: look at the ledger again.
  struct News: Sendable {
    let folders = Signal()
    let claimed = Signal()
    let keys = Signal()
    let partners = Signal()
    let notices = Signal()
    let consents = Signal()
    private let lanes = NIOLockedValueBox<[AgencyID: Lane]>([:])

    /// What concerns one partner alone: with hundreds of them, news for one must not wake the stages of all.
    func lane(of partner: AgencyID) -> Lane {
      lanes.withLockedValue { all in
        if let lane = all[partner] { return lane }
        let lane = Lane()
        all[partner] = lane
        return lane
      }
    }

    /// For changes that may concern everybody.
    func notifyLanes() {
      for lane in all { lane.notify() }
    }

    /// A notice is to be sent, or come for.
    func notify(noticeTo partner: AgencyID) {
      notices.notify()
      lane(of: partner).mail.notify()
    }

    /// A party acted over an agreement.
    func notifyActs() {
      for lane in all {
        lane.agreements.notify()
        lane.mail.notify()
      }
    }

    private var all: [Lane] { lanes.withLockedValue { Array($0.values) } }
  }

  /// Hints about one partner's transfers.
  final class Lane: Sendable {
    let sealed = Signal()
    let custody = Signal()
    let takeBacks = Signal()
    let released = Signal()
    /// Something that we collect has to be fetched, or its sender to be told.
    let collected = Signal()
    /// Its list has something new.
    let mail = Signal()
    /// Agreements and acts are to be told, or asked for.
    let agreements = Signal()
    private let agreementsTag = NIOLockedValueBox<Digest?>(nil)

    /// What its list said last about the agreements and acts that it has for us; nil before it said anything.
    var listedAgreements: Digest? { agreementsTag.withLockedValue { $0 } }

    func sawAgreements(_ tag: Digest?) {
      let isNew = agreementsTag.withLockedValue { held in
        defer { held = tag }
        return held != tag
      }
      if isNew { agreements.notify() }
    }

    /// Something about the partner's rows changed outside of their usual course: all stages look.
    func notify() {
      for signal in [sealed, custody, takeBacks, released, collected] { signal.notify() }
    }
  }

  /// Opens a home for one process: takes its lock, opens the ledger, loads partners and policies.
  ///
  /// - Throws: `LedgerError.locked`, `rolledBack`, `notDurable`; `ConfigurationError`; DiskError.
  package init(
    home: Home, configuration: Configuration, keys: KeyRing, engine: CipherEngine, workers: Int, logger: Logger,
    now: @escaping @Sendable () -> Date, passphrase: @escaping @Sendable () throws -> Secret
  ) throws {
    self.passphrase = passphrase
    self.home = home
    self.configuration = configuration
    self.engine = engine
    self.workers = workers
    self.logger = logger
    self.now = now
    guard keys.card.card.agency == configuration.agency else {
      throw ConfigurationError(
        "the keys belong to \(keys.card.card.agency), the configuration to \(configuration.agency)")
    }
    let keyBox = NIOLockedValueBox(keys)
    self.keyBox = keyBox
    lock = try HomeLock(home.path)
    ledger = try Ledger(
      home: home.path, now: now,
      sign: { head in keyBox.withLockedValue { $0 }.sign(head.document, as: .head, at: now()) })
    try ledger.require(agency: configuration.agency)
    spool = try Spool(home: home.path)
    try Directory.make(home.staging)
    stagingSync = DirectorySync(home.staging)
    policyBox = NIOLockedValueBox(try PolicyFolder.enforceable(home))
    pool = BlockingPool(threads: 16)
    try loadPartners()
    try ledger.readNow { try consents.load($0, consentTables, logger) }
  }

  var consentTables: ConsentTableFile { ConsentTableFile(path: home.consentTables, master: keys.subjectMaster) }
  package var agency: AgencyID { configuration.agency }
  package var keys: KeyRing { keyBox.withLockedValue { $0 } }
  package var policies: PolicySet { policyBox.withLockedValue { $0.set } }
  /// How an agreement's records are checked and filtered; nil: they are opaque.
  ///
  /// - Throws: `Problem` unavailable when the agreement was taken away meanwhile: its records must not pass for opaque.
  func enforcement(of agreement: Agreement) throws -> Enforcement? {
    let held = policyBox.withLockedValue { $0.enforcements[agreement.digest] }
    guard held != nil || agreement.records == nil else {
      throw Problem(
        .unavailable, code: ReasonCode.agreementUnknown.rawValue,
        "the agreement \(agreement.id) is not in policies/ any more")
    }
    return held
  }
  /// The acts over an agreement as they are in `policies/`, verified or not.
  func envelopes(of agreement: Agreement) -> [Envelope] {
    policyBox.withLockedValue { $0.acts[agreement.digest] ?? [] }
  }
  /// Those that say that they are a party's.
  func envelopes(of agreement: Agreement, by party: AgencyID) -> [Envelope] {
    envelopes(of: agreement).filter { (try? AgreementAct($0.unverified()))?.party == party }
  }
  /// The version under which a package was sealed; nil when it is not held any more.
  func agreement(of package: PackageRow) -> Agreement? {
    Digest(hex: package.agreementDigest).flatMap { policies.agreement($0) }
  }
  /// The version of an agreement to go by: the highest that is in force for this agency, else the highest in its time.
  package func current(_ id: String, at instant: Date) -> Agreement? {
    let versions = policies.agreements.filter { $0.id == id }
    let book = acts
    let valid = versions.last { agreement in
      agreement.parties.contains {
        book.standing(of: agreement, between: agency, $0.id, at: instant).state == .valid && $0.id != agency
          && ($0.role == .provider || $0.role == .recipient)
      }
    }
    return valid ?? policies.current(id, at: instant)
  }
  /// Where an agreement stands between this agency and a peer.
  func standing(of agreement: Agreement, with peer: AgencyID, at instant: Date) -> AgreementStanding {
    actBook.withLockedValue { $0 }.standing(of: agreement, between: agency, peer, at: instant)
  }
  /// Whose packages may wait for us at `partner`, under agreements in force: its own, or others' where it is their hub.
  func senders(waitingAt partner: AgencyID) -> Set<AgencyID> {
    var senders: Set<AgencyID> = []
    for agreement in policies.agreements
    where agreement.delivery == .collect && agreement.party(agency, as: .recipient) != nil {
      for party in agreement.parties where party.role == .provider && (agreement.via ?? party.id) == partner {
        if standing(of: agreement, with: party.id, at: now()).state == .valid { senders.insert(party.id) }
      }
    }
    return senders
  }
  /// Whether something may wait for us at `partner`: packages, notices, or at a hub what recipients signed about ours.
  ///
  /// Signatures are among what waits, so the agreement need not be in force.
  func visits(_ partner: AgencyID) -> Bool {
    policies.agreements.contains { agreement in
      agreement.notAfter > now()
        && (agreement.via == partner
          || agreement.waitsAtSender && agreement.party(agency, as: .recipient) != nil
            && agreement.party(partner, as: .provider) != nil)
    }
  }
  /// Whether an agreement names us as the hub on the way to `partner`.
  func isHub(before partner: AgencyID) -> Bool {
    policies.agreements.contains { $0.via == agency && $0.party(partner, as: .recipient) != nil }
  }
  package var acts: ActBook { actBook.withLockedValue { $0 } }
  package var partners: PartnerDirectory { partnerBox.withLockedValue { $0 } }

  /// Loads again what commands change outside: `policies/`, partners, the keyring. A bad file keeps what is in force and says so.
  func reload() async throws {
    try await changes.run { [self] in
      try reloadKeys()
      try changePolicies { $0 = try PolicyFolder.enforceable(home) }
      try loadPartners()
    }
  }

  /// Unlocks the keyring again after `keys` changed it. The TLS key in use changes with the next start.
  private func reloadKeys() throws {
    let fresh = try KeyRing(home, passphrase: passphrase())
    keyBox.withLockedValue { $0 = fresh }
  }

  /// Takes up an act whose file is in `policies/` now; on `changes`. Whatever else lies there must not keep an agreement from being stopped.
  func take(_ act: Envelope, of agreement: Agreement) { changePolicies { $0.add(act, of: agreement) } }

  /// Takes up an agreement that `prepare` found sound; on `changes`. Its file is put in place by `store`, once it is known to fit.
  func take(_ agreement: PolicyFolder.Prepared, store: () throws -> Void) throws {
    try changePolicies {
      try $0.add(agreement)
      try store()
    }
  }

  private func changePolicies(_ change: (inout PolicyFolder.Enforceable) throws -> Void) rethrows {
    // On a copy: look-ups go on meanwhile, and what fails changes nothing.
    var next = policyBox.withLockedValue { $0 }
    try change(&next)
    policyBox.withLockedValue { [next] in $0 = next }
    verifyActs()
    news.folders.notify()
    news.claimed.notify()
    news.notifyLanes()
  }

  /// Signatures are judged when agreements or cards change, not for each package.
  private func verifyActs() {
    let acts = policyBox.withLockedValue { $0 }.acts
    let book = ActBook(policies, acts, cards: partners.cards, own: keys.card.card)
    actBook.withLockedValue { $0 = book }
  }

  func reloadPartners() async throws {
    try await changes.run { [self] in try loadPartners() }
  }

  private func loadPartners() throws {
    let fresh = PartnerDirectory(try ledger.readNow { try $0.partners() })
    partnerBox.withLockedValue { $0 = fresh }
    verifyActs()
    news.partners.notify()
    // What a card could not verify it may verify now.
    news.notifyActs()
  }

  /// What another agency signed, by the keys that its card has now.
  ///
  /// - Throws: `document.*`; `document.signature` too while no card of it is held.
  func verified(_ bytes: [UInt8], as kind: DocumentKind, by agency: AgencyID) throws(SealingError) -> (
    document: JSON, envelope: Envelope
  ) {
    guard let card = partners[agency]?.card?.card else {
      throw SealingError(.documentSignature, "no card of \(agency) is held")
    }
    let envelope = try Envelope(parsing: bytes, as: kind)
    return (try envelope.verify(card.signers(at: now())), envelope)
  }

  func sign(_ document: JSON, as kind: DocumentKind) -> Envelope { keys.sign(document, as: kind, at: now()) }

  /// A receipt of ours, signed.
  func receipt(
    _ kind: Receipt.Kind, for transfer: Transfer, code: String = "ok", previous: Envelope?
  ) -> (Receipt, Envelope) {
    let receipt = Receipt(
      kind: kind, id: transfer.id, sender: transfer.sender, recipient: agency,
      manifest: Digest(hex: transfer.manifestDigest)!, code: code, at: now(), previous: previous?.payloadDigest,
      head: ledger.head)
    return (receipt, sign(receipt.document, as: .receipt))
  }

  /// What a decision may know about a partner now.
  ///
  /// - Parameter counting: the packages that count, and on which day; nil for the agreement's of today.
  func circumstances(
    _ peer: AgencyID, _ agreement: Agreement?, counting: (agreement: String, day: Date)? = nil
  ) async throws -> Circumstances {
    let (instant, id) = (now(), agreement?.id ?? "")
    let (today, heard) = try await ledger.read {
      (
        try $0.packages(agreement: counting?.agreement ?? id, peer: peer, onDayOf: counting?.day ?? instant),
        try $0.consentHeard(id)
      )
    }
    return circumstances(peer, agreement, packagesToday: today, consentHeard: heard, at: instant)
  }

  /// The same for who is in a transaction already.
  func circumstances(
    _ peer: AgencyID, _ agreement: Agreement?, packagesToday: Int64, consentHeard: Date?, at instant: Date
  ) -> Circumstances {
    let partner = partners[peer]
    let hub = agreement?.via
    return Circumstances(
      instant: instant, partner: partner?.state ?? .unknown,
      recipientKinds: partner?.card.map { Set($0.card.sealingRecipients(at: instant).map(\.kind)) } ?? [],
      packagesToday: packagesToday, standing: agreement.map { standing(of: $0, with: peer, at: instant) },
      consentHeard: consentHeard, isReachable: (hub.map { partners[$0] } ?? partner)?.card?.card.endpoint != nil,
      hub: hub.map { partners[$0]?.state ?? .unknown }, hasGateway: partners.hasGateway(peer))
  }

  /// The body of a transfer whose state says that it is in the spool. Blocks.
  ///
  /// - Throws: `SpoolDamage` when it is not, or not in its size.
  func body(of transfer: Transfer) throws -> OpenFile {
    guard spool.has(transfer.place) else { throw SpoolDamage(detail: "the body is missing in the spool") }
    let file = OpenFile(try spool.open(transfer.place))
    let bytes = Int64(try file.file.status().st_size)
    guard bytes == transfer.bodyBytes else {
      throw SpoolDamage(detail: "the body in the spool has \(bytes) of \(transfer.bodyBytes) bytes")
    }
    return file
  }

  /// Commits what was sealed: what is not committed leaves nothing behind.
  ///
  /// - Parameter id: of a body in the spool that no row names yet; nil for none.
  func commitSealed<Value: Sendable>(
    _ id: TransferID?, _ commit: @escaping @Sendable (Transaction) throws -> Value
  ) async throws -> Value {
    do {
      return try await ledger.write(commit)
    } catch {
      // Of a disk whose state is unknown nobody knows whether it was committed.
      if let id, StoreFailure(error) != .unknown { try await pool.run { [spool] in try spool.discard(id) } }
      throw error
    }
  }

  /// Makes the whole part of a transfer its body, and commits what follows.
  ///
  /// - Throws: `LedgerError.stale` when the transfer has gone on meanwhile; of one that was ended nothing is left.
  func finishBody<Value: Sendable>(
    of transfer: Transfer, _ commit: @escaping @Sendable (Transaction) throws -> Value
  ) async throws -> Value {
    try await pool.run { [spool] in try spool.finish(transfer.place) }
    do {
      return try await ledger.write(commit)
    } catch LedgerError.stale(let what) {
      try await discardBodyIfEnded(of: transfer)
      throw LedgerError.stale(what)
    }
  }

  /// Whoever ended a transfer may have looked for what to remove before it was there.
  func discardBodyIfEnded(of transfer: Transfer) async throws {
    // In a task of its own: that of the request that brought it may have been stopped.
    try await Task { [ledger, pool, spool] in
      let row = try await ledger.read { try $0.transfer(transfer.sender, transfer.id) }
      guard let row, [.cancelled, .expired, .refused, .purged].contains(row.state) else { return }
      try await pool.run { try spool.remove(row.place) }
    }.value
  }

  /// Removes what came of a transfer that has ended, and ends the request that still brings it.
  func discardBody(of transfer: Transfer) async throws {
    sessions.end(transfer)
    try await pool.run { [spool] in try spool.remove(transfer.place) }
  }

  /// A transfer waits: says so once for each reason, in the log and in its outcome file.
  func tell(_ waiting: Transfer, waitedFor earlier: String) async throws {
    guard waiting.code != earlier else { return }
    logger.notice("transfer \(waiting.id) waits: \(waiting.note) [\(waiting.code)]")
    try await pool.run { try Outcomes(context: self).write(waiting) }
  }

  /// Where a pass over so many plain bytes runs: what is over within one segment is no longer than other work that blocks.
  func threads(for payloadBytes: Int64) -> BlockingPool {
    payloadBytes <= Int64(BodyGeometry.segmentBytes) ? pool : passes
  }

  /// Marks the claimed original of a transfer as one that a task is working on, or not any more.
  func useClaim(of transfer: Transfer, _ change: Int) {
    claimsInUse.withLockedValue { all in
      let users = all[transfer.id, default: 0] + change
      all[transfer.id] = users > 0 ? users : nil
    }
  }

  /// Whether there is room to take more. Below the low-water mark nothing new is taken; what is here still flows.
  func hasRoom(for bytes: Int64 = 0) throws -> Bool { try configuration.hasRoom(in: home, for: bytes) }

  /// A fresh part for the body of `transfer`. When that was admitted, the room of others was not reserved yet.
  ///
  /// - Throws: `Problem` full.
  func createPart(of transfer: Transfer) throws -> File {
    // What was reserved for it before is no one else's room.
    try spool.remove(transfer.place)
    guard try hasRoom(for: transfer.bodyBytes) else { throw Problem.noRoom }
    return try spool.create(transfer.place, bytes: transfer.bodyBytes)
  }

  /// Closes the ledger with a last head. No call may follow.
  package func close() async throws {
    try ledger.close()
    try await pool.shutDown()
    try await passes.shutDown()
    try await changes.shutDown()
  }
}

/// The partners in memory: who they are and by which TLS keys they are known.
package struct PartnerDirectory: Sendable {
  package struct Partner: Sendable {
    package let agency: AgencyID
    package let state: Circumstances.PartnerState
    /// The held card; nil for one that cannot be read any more.
    package let card: SignedCard?
  }

  private var partners: [AgencyID: Partner] = [:]
  private var pins: [Digest: AgencyID] = [:]

  init() {}

  init(_ records: [PartnerRecord]) {
    for record in records {
      let card = try? SignedCard(own: record.card)
      let state: Circumstances.PartnerState =
        switch record.state {
        case .pending: .pending
        case .active: .active
        case .suspended: .suspended
        }
      partners[record.agency] = Partner(agency: record.agency, state: state, card: card)
      guard state == .active, let card else { continue }
      for pin in card.card.tlsPins { pins[pin] = record.agency }
    }
  }

  package subscript(_ agency: AgencyID) -> Partner? { partners[agency] }
  /// False only for one that is described, and signs nothing.
  func hasGateway(_ agency: AgencyID) -> Bool { partners[agency]?.card?.card.hasGateway ?? true }
  /// Cards of those whose fingerprint was approved.
  var cards: [Card] { partners.values.filter { $0.state != .pending }.compactMap { $0.card?.card } }
  package var all: [Partner] { partners.values.sorted { $0.agency < $1.agency } }
  /// The active partner whose card has this TLS pin.
  package func known(by pin: Digest) -> AgencyID? { pins[pin] }
}
