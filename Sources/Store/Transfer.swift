// One row of the ledger's table of transfers, and the changes that an arrow may make to it.

import Foundation
import GRDB
import Sealing

/// A transfer as the ledger knows it.
package struct Transfer: Equatable, Sendable {
  package let direction: Direction
  package let sender: AgencyID
  package let id: TransferID
  package let peer: AgencyID
  package let agreement: String
  package var state: TransferState
  package var name: String
  package var payloadBytes: Int64
  package var bodyBytes: Int64
  /// DSSE envelope of the manifest; empty until sealed.
  package var manifest: [UInt8]
  /// Payload digest of the manifest, hexadecimal; empty until sealed.
  package var manifestDigest: String
  /// The package's key; on the recipient's side nil until it is released.
  package var key: [UInt8]?
  /// Recipient: body bytes known to be durable.
  package var durableBytes: Int64
  package var createdAt: Date
  package var expiresAt: Date?
  /// When the next step may be tried; nil while an operator holds it.
  package var nextAt: Date?
  package var attempts: Int
  /// A stable code for the state's cause: a reason code, or empty.
  package var code: String
  /// A sentence for people. Never personal data.
  package var note: String
  package var heldFrom: TransferState?
  /// Sender: digests of the recipients that the key was sealed to, hexadecimal, separated by commas.
  package var sealedTo: String
  /// Recipient: the name in the inbox.
  package var inboxName: String
  /// The recipient pulls it (delivery mode collect), from its sender or from a hub: who holds it for that leaves it alone.
  package var isCollected = false
  /// The hub between sender and recipient; at the hub, itself.
  package var via: AgencyID?
  /// Sender: the transfer that took its place when people were left out; this one is cancelled.
  package var replacedBy: TransferID?
  package var updatedAt: Date

  /// The manifest in its envelope: its signature was verified when the row was made.
  ///
  /// - Throws: `document.json`, `document.invalid` while there is none yet.
  package func readManifest() throws(SealingError) -> Manifest {
    try Manifest(Envelope(parsing: manifest, as: .manifest).unverified())
  }

  /// How much of its time is over, 0 to 1 and beyond; nil without an end.
  package func shareOfTime(at instant: Date) -> Double? {
    expiresAt.map { instant.timeIntervalSince(createdAt) / max(1, $0.timeIntervalSince(createdAt)) }
  }

  package var place: Spool.Place { direction == .out ? .out(id) : .incoming(sender, id) }

  /// Whom this gateway speaks with about it.
  package var link: AgencyID { direction == .hub ? peer : via ?? peer }
  /// Whether that is a hub, whose word moves nothing.
  package var isThroughHub: Bool { link != peer }

  package init(
    direction: Direction, sender: AgencyID, id: TransferID, peer: AgencyID, agreement: String,
    state: TransferState, name: String, payloadBytes: Int64 = 0, bodyBytes: Int64 = 0,
    manifest: [UInt8] = [], manifestDigest: String = "", createdAt: Date, expiresAt: Date? = nil
  ) {
    self.direction = direction
    self.sender = sender
    self.id = id
    self.peer = peer
    self.agreement = agreement
    self.state = state
    self.name = name
    self.payloadBytes = payloadBytes
    self.bodyBytes = bodyBytes
    self.manifest = manifest
    self.manifestDigest = manifestDigest
    key = nil
    durableBytes = 0
    self.createdAt = createdAt
    self.expiresAt = expiresAt
    nextAt = createdAt
    attempts = 0
    code = ""
    note = ""
    heldFrom = nil
    sealedTo = ""
    inboxName = ""
    updatedAt = createdAt
  }
}

extension Transfer {
  /// Those of the table `transfers`.
  static let ownColumns =
    "direction, sender, id, peer, agreement, state, name, payload_bytes, body_bytes, manifest_sha256, "
    + "durable_bytes, created_at, expires_at, next_at, attempts, code, note, held_from, sealed_to, inbox_name, collected, via, replaced_by, "
    + "updated_at"
  /// Those of the view `whole_transfers`, with what the table `parts` adds.
  static let columns = ownColumns + ", manifest, key"

  static func columns(of table: String) -> String {
    columns.split(separator: ",").map { "\(table).\($0.drop { $0 == " " })" }.joined(separator: ", ")
  }

  /// A row of `columns`, from the column `first` on. By place: GRDB looks names up letter by letter, whatever their case.
  init(_ row: Row, from first: Int = 0) throws {
    func at<Value: DatabaseValueConvertible>(_ place: Int) -> Value { row[first + place] }
    guard let direction = Direction(rawValue: at(0)), let sender = AgencyID(at(1)), let id = TransferID(at(2)),
      let peer = AgencyID(at(3)), let state = TransferState(rawValue: at(5))
    else { throw LedgerError.damaged("a row of transfers cannot be read") }
    self.init(
      direction: direction, sender: sender, id: id, peer: peer, agreement: at(4), state: state,
      name: at(6), payloadBytes: at(7), bodyBytes: at(8), manifest: Array(at(24) as Data), manifestDigest: at(9),
      createdAt: Self.date(at(11)), expiresAt: (at(12) as Int64?).map(Self.date))
    durableBytes = at(10)
    nextAt = (at(13) as Int64?).map(Self.date)
    attempts = at(14)
    code = at(15)
    note = at(16)
    heldFrom = (at(17) as String?).flatMap(TransferState.init)
    sealedTo = at(18)
    inboxName = at(19)
    isCollected = at(20)
    via = (at(21) as String?).flatMap { AgencyID($0) }
    replacedBy = (at(22) as String?).flatMap { TransferID($0) }
    updatedAt = Self.date(at(23))
    key = (at(25) as Data?).map { Array($0) }
  }

  /// Milliseconds since 1970, so that order survives a busy second.
  package static func milliseconds(_ date: Date) -> Int64 { Int64((date.timeIntervalSince1970 * 1000).rounded()) }
  static func date(_ milliseconds: Int64) -> Date { Date(timeIntervalSince1970: Double(milliseconds) / 1000) }

  var arguments: StatementArguments {
    [
      direction.rawValue, sender.text, id.text, peer.text, agreement, state.rawValue, name, payloadBytes,
      bodyBytes, manifestDigest, durableBytes, Self.milliseconds(createdAt),
      expiresAt.map(Self.milliseconds), nextAt.map(Self.milliseconds), attempts, code, note,
      heldFrom?.rawValue, sealedTo, inboxName, isCollected, via?.text, replacedBy?.text,
      Self.milliseconds(updatedAt),
    ]
  }
}
