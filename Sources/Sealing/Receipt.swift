// What a recipient, or a sender that gives up, signs about a transfer.
//
//   receipts  received → delivered | refused(code); each kind at most once, each naming the receipt before it
//   key-request the recipient's: it has the body from a hub and asks for the key
//   take-back the sender's: what is not released yet shall never be
//   non-delivery the sender's own record that a transfer ended unreleased
//   collected the sender's own record that a partner without a gateway has a package

import Foundation

/// A signed ledger head: the audit tree's size and root in one epoch of one gateway.
public struct LedgerHead: Equatable, Sendable {
  /// Changes when a ledger is begun anew; heads of one epoch form one line of prefixes.
  public let epoch: String
  public let size: Int64
  public let root: Digest

  public init(epoch: String, size: Int64, root: Digest) {
    self.epoch = epoch
    self.size = size
    self.root = root
  }

  public var document: JSON {
    ["epoch": .string(epoch), "size": .integer(size), "root": .string(root.hex)]
  }

  package init(fields reader: inout DocumentReader) throws(SealingError) {
    epoch = try reader.string("epoch", bytesMax: 64)
    size = try reader.integer("size", 0...JSON.integerMax)
    root = try reader.digest("root")
    try reader.finish()
  }

  /// - Throws: `document.invalid`.
  public init(_ document: JSON) throws(SealingError) {
    var reader = try DocumentReader(document, at: "head")
    try self.init(fields: &reader)
  }
}

/// The recipient's signed statement about one transfer.
public struct Receipt: Equatable, Sendable {
  public enum Kind: String, Sendable, CaseIterable {
    /// The whole body is durable here and has the signed root. It cannot be read yet.
    case received
    /// The payload is in the inbox.
    case delivered
    /// It will not be delivered; `code` says why.
    case refused
  }

  public let kind: Kind
  public let id: TransferID
  public let sender: AgencyID
  public let recipient: AgencyID
  public let manifest: Digest
  /// A stable reason code of a refusal; "ok" otherwise.
  public let code: String
  public let at: Date
  /// Payload digest of the receipt before this one.
  public let previous: Digest?
  public let head: LedgerHead

  public init(
    kind: Kind, id: TransferID, sender: AgencyID, recipient: AgencyID, manifest: Digest,
    code: String, at: Date, previous: Digest?, head: LedgerHead
  ) {
    self.kind = kind
    self.id = id
    self.sender = sender
    self.recipient = recipient
    self.manifest = manifest
    self.code = code
    self.at = at
    self.previous = previous
    self.head = head
  }

  public var document: JSON {
    var members: [String: JSON] = [
      "version": 1, "kind": .string(kind.rawValue), "id": .string(id.text),
      "sender": .string(sender.text), "recipient": .string(recipient.text),
      "manifest": .string(manifest.hex), "code": .string(code),
      "at": .string(Timestamp.format(at)), "head": head.document,
    ]
    members["previous"] = previous.map { .string($0.hex) }
    return .object(members)
  }

  /// - Throws: `document.invalid`.
  public init(_ document: JSON) throws(SealingError) {
    var reader = try DocumentReader(document, at: "receipt")
    try reader.version(1)
    kind = try reader.choice("kind")
    id = try reader.transfer("id")
    sender = try reader.agency("sender")
    recipient = try reader.agency("recipient")
    manifest = try reader.digest("manifest")
    code = try reader.line("code", bytesMax: 64)
    at = try reader.date("at")
    previous = try reader.optional("previous") { (r, n) throws(SealingError) in try r.digest(n) }
    var head = try reader.object("head")
    self.head = try LedgerHead(fields: &head)
    try reader.finish()
  }
}

/// The recipient's signed wish for the key of a package that came through a hub: the body is here, verified, and so is somebody to
/// take the key.
public struct KeyRequest: Equatable, Sendable {
  public let id: TransferID
  public let sender: AgencyID
  public let recipient: AgencyID
  public let manifest: Digest
  public let at: Date

  public init(id: TransferID, sender: AgencyID, recipient: AgencyID, manifest: Digest, at: Date) {
    self.id = id
    self.sender = sender
    self.recipient = recipient
    self.manifest = manifest
    self.at = at
  }

  public var document: JSON {
    [
      "version": 1, "id": .string(id.text), "sender": .string(sender.text), "recipient": .string(recipient.text),
      "manifest": .string(manifest.hex), "at": .string(Timestamp.format(at)),
    ]
  }

  /// - Throws: `document.invalid`.
  public init(_ document: JSON) throws(SealingError) {
    var reader = try DocumentReader(document, at: "key-request")
    try reader.version(1)
    id = try reader.transfer("id")
    sender = try reader.agency("sender")
    recipient = try reader.agency("recipient")
    manifest = try reader.digest("manifest")
    at = try reader.date("at")
    try reader.finish()
  }
}

/// The sender's signed order that a transfer which was not released shall not go on.
public struct TakeBack: Equatable, Sendable {
  public let id: TransferID
  public let sender: AgencyID
  public let recipient: AgencyID
  public let manifest: Digest
  public let reason: String
  public let at: Date

  public init(
    id: TransferID, sender: AgencyID, recipient: AgencyID, manifest: Digest, reason: String, at: Date
  ) {
    self.id = id
    self.sender = sender
    self.recipient = recipient
    self.manifest = manifest
    self.reason = reason
    self.at = at
  }

  public var document: JSON {
    [
      "version": 1, "id": .string(id.text), "sender": .string(sender.text),
      "recipient": .string(recipient.text), "manifest": .string(manifest.hex),
      "reason": .string(reason), "at": .string(Timestamp.format(at)),
    ]
  }

  /// - Throws: `document.invalid`.
  public init(_ document: JSON) throws(SealingError) {
    var reader = try DocumentReader(document, at: "take-back")
    try reader.version(1)
    id = try reader.transfer("id")
    sender = try reader.agency("sender")
    recipient = try reader.agency("recipient")
    manifest = try reader.digest("manifest")
    reason = try reader.line("reason", bytesMax: 64)
    at = try reader.date("at")
    try reader.finish()
  }
}

/// The recipient's signed answer to a take-back.
public struct TakeBackAnswer: Equatable, Sendable {
  public enum Outcome: String, Sendable, CaseIterable {
    case neverHadKey = "never-had-key"
    case hadKey = "had-key"
  }

  public let takeBack: Digest
  public let outcome: Outcome
  public let at: Date

  public init(takeBack: Digest, outcome: Outcome, at: Date) {
    self.takeBack = takeBack
    self.outcome = outcome
    self.at = at
  }

  public var document: JSON {
    [
      "version": 1, "takeBack": .string(takeBack.hex), "outcome": .string(outcome.rawValue),
      "at": .string(Timestamp.format(at)),
    ]
  }

  /// - Throws: `document.invalid`.
  public init(_ document: JSON) throws(SealingError) {
    var reader = try DocumentReader(document, at: "acknowledgement")
    try reader.version(1)
    takeBack = try reader.digest("takeBack")
    outcome = try reader.choice("outcome")
    at = try reader.date("at")
    try reader.finish()
  }
}

/// The sender's record that a partner without a gateway has a package: what was seen on its connection, or what it said there.
public struct Collected: Equatable, Sendable {
  public enum Evidence: String, Sendable, CaseIterable {
    /// Every byte of body and key went out on connections of the partner.
    case download
    /// The partner said so.
    case statement
  }

  public let id: TransferID
  public let sender: AgencyID
  public let recipient: AgencyID
  public let manifest: Digest
  public let evidence: Evidence
  public let at: Date
  public let head: LedgerHead

  public init(
    id: TransferID, sender: AgencyID, recipient: AgencyID, manifest: Digest, evidence: Evidence, at: Date,
    head: LedgerHead
  ) {
    self.id = id
    self.sender = sender
    self.recipient = recipient
    self.manifest = manifest
    self.evidence = evidence
    self.at = at
    self.head = head
  }

  public var document: JSON {
    [
      "version": 1, "id": .string(id.text), "sender": .string(sender.text), "recipient": .string(recipient.text),
      "manifest": .string(manifest.hex), "evidence": .string(evidence.rawValue), "at": .string(Timestamp.format(at)),
      "head": head.document,
    ]
  }

  /// - Throws: `document.invalid`.
  public init(_ document: JSON) throws(SealingError) {
    var reader = try DocumentReader(document, at: "collected")
    try reader.version(1)
    id = try reader.transfer("id")
    sender = try reader.agency("sender")
    recipient = try reader.agency("recipient")
    manifest = try reader.digest("manifest")
    evidence = try reader.choice("evidence")
    at = try reader.date("at")
    var head = try reader.object("head")
    self.head = try LedgerHead(fields: &head)
    try reader.finish()
  }
}
