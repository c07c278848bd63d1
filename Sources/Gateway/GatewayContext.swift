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
  package let engine: CipherEngine
  package let logger: Logger
  package let now: @Sendable () -> Date
  /// Cores that one large pass may use.
  package let workers: Int
  let stagingSync: DirectorySync
  let inboxSyncs = DirectorySyncs()
  let news = News()

  private let keyBox: NIOLockedValueBox<KeyRing>
  private let policyBox: NIOLockedValueBox<PolicyFolder.Enforceable>
  private let partnerBox = NIOLockedValueBox(PartnerDirectory())
  private let lock: HomeLock
  /// Fetches the passphrase again, for `reload`.
  private let passphrase: @Sendable () throws -> Secret

  /// Hints between the stages. Each means: look at the ledger again.
  struct News: Sendable {
    let folders = Signal()
    let claimed = Signal()
    let sealed = Signal()
    let custody = Signal()
    let takeBacks = Signal()
    let keys = Signal()
    let receipts = Signal()
    let released = Signal()
    let partners = Signal()
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
    lock = try HomeLock(home: home.path)
    ledger = try Ledger(
      home: home.path, now: now,
      sign: { head in keyBox.withLockedValue { $0 }.sign(head.document, as: .head, at: now()) })
    spool = try Spool(home: home.path)
    try Directory.make(home.staging)
    stagingSync = DirectorySync(home.staging)
    policyBox = NIOLockedValueBox(try PolicyFolder.enforceable(home))
    pool = BlockingPool(threads: 8)
    try reloadPartners()
  }

  package var agency: AgencyID { configuration.agency }
  package var keys: KeyRing { keyBox.withLockedValue { $0 } }
  package var policies: PolicySet { policyBox.withLockedValue { $0.set } }
  /// What an agreement's records are checked against; nil: they are opaque.
  func recordFormat(of agreement: Agreement) -> RecordFormat? {
    policyBox.withLockedValue { $0.formats[agreement.digest] }
  }
  package var partners: PartnerDirectory { partnerBox.withLockedValue { $0 } }

  /// Unlocks the keyring again after `keys` changed it. The TLS key in use changes with the next start.
  package func reloadKeys() throws {
    let fresh = try KeyRing(home, passphrase: passphrase())
    keyBox.withLockedValue { $0 = fresh }
  }

  /// Loads `policies/` again; a bad file keeps what is in force and says so.
  package func reloadPolicies() throws {
    let fresh = try PolicyFolder.enforceable(home)
    policyBox.withLockedValue { $0 = fresh }
    news.folders.notify()
  }

  package func reloadPartners() throws {
    let fresh = PartnerDirectory(try ledger.readNow { try $0.partners() })
    partnerBox.withLockedValue { $0 = fresh }
    news.partners.notify()
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
  func circumstances(_ peer: AgencyID, agreement: String) async throws -> Circumstances {
    let instant = now()
    let partner = partners[peer]
    let today = try await ledger.read { try $0.packagesToday(agreement: agreement, peer: peer, at: instant) }
    let kinds = partner?.card.map { Set($0.card.sealingRecipients(at: instant).map(\.kind)) } ?? []
    return Circumstances(
      instant: instant, partner: partner?.state ?? .unknown, recipientKinds: kinds, packagesToday: today)
  }

  /// Whether there is room to take more. Below the low-water mark nothing new is taken; what is here still flows.
  func hasRoom(for bytes: Int64 = 0) throws -> Bool {
    let free = try Directory.free(home.path)
    return free.bytes - bytes >= configuration.lowWaterBytes && free.inodes >= configuration.lowWaterInodes
  }

  /// Closes the ledger with a last head. No call may follow.
  package func close() async throws {
    try ledger.close()
    try await pool.shutDown()
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
  package var all: [Partner] { partners.values.sorted { $0.agency < $1.agency } }
  /// The active partner whose card has this TLS pin.
  package func known(by pin: Digest) -> AgencyID? { pins[pin] }
}

/// `policies/`: every `*.yaml` file directly in it is an agreement.
package enum PolicyFolder {
  package static let agreementsMax = 1000

  /// - Throws: `ConfigurationError` naming the file.
  package static func load(_ home: Home) throws -> PolicySet {
    var agreements: [Agreement] = []
    for name in try Directory.names(home.policies).sorted() where name.hasSuffix(".yaml") && !name.hasPrefix(".") {
      agreements.append(try agreement("\(home.policies)/\(name)"))
    }
    guard agreements.count <= agreementsMax else {
      throw ConfigurationError("\(home.policies) holds over \(agreementsMax) agreements")
    }
    do {
      return try PolicySet(agreements)
    } catch {
      throw ConfigurationError("\(home.policies): \(error)")
    }
  }

  /// Agreements with their schemas compiled, by the agreement's digest.
  struct Enforceable: Sendable {
    let set: PolicySet
    let formats: [Digest: RecordFormat]
  }

  /// - Throws: `ConfigurationError` naming the agreement whose schema cannot be used.
  static func enforceable(_ home: Home) throws -> Enforceable {
    let set = try load(home)
    var formats: [Digest: RecordFormat] = [:]
    for agreement in set.agreements { formats[agreement.digest] = try format(of: agreement, in: home.policies) }
    return Enforceable(set: set, formats: formats)
  }

  /// Compiles the schema that an agreement in `folder` names; nil when its payload is opaque.
  ///
  /// - Throws: `ConfigurationError`.
  package static func format(of agreement: Agreement, in folder: String) throws -> RecordFormat? {
    guard let records = agreement.records else { return nil }
    let path = "\(folder)/schemas/\(records.schema)"
    do {
      let folder = SchemaFolder(path)
      let bytes = try folder.contents()
      guard Digest(of: bytes) == records.sha256 else {
        throw ConfigurationError(
          "\(path) is not the schema of \(agreement.id): its SHA-256 is sha256:\(Digest(of: bytes).hex)")
      }
      return try folder.compile(bytes, records.format, PayloadOptions(records))
    } catch let error as SchemaError {
      throw ConfigurationError("\(path) cannot be enforced: \(error)", remedy: "sallyport schemas lint \(path)")
    }
  }

  package static func agreement(_ path: String) throws -> Agreement {
    let bytes = try File.contents(path, bytesMax: StrictYAML.bytesMax)
    guard let text = String(validating: bytes, as: UTF8.self) else { throw ConfigurationError("\(path) is not UTF-8") }
    do {
      return try Agreement(yaml: text)
    } catch {
      throw ConfigurationError("\(path): \(error)", remedy: "sallyport agreements lint \(path)")
    }
  }
}
