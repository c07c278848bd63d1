// The manifest: what a sender signs about one package. The recipient judges the package by it and by nothing else.

import Foundation

/// A document named with its digest.
public struct NamedDigest: Hashable, Sendable {
  public let id: String
  public let sha256: Digest

  public init(id: String, sha256: Digest) {
    self.id = id
    self.sha256 = sha256
  }
}

/// The members of a manifest, version 1. At most 64 KiB as canonical JSON.
public struct Manifest: Equatable, Sendable {
  public let id: TransferID
  public let sender: AgencyID
  public let recipient: AgencyID
  public let agreement: NamedDigest
  public let agreementVersion: Int64
  public let schema: NamedDigest?
  /// The payload's name: data, never a path.
  public let name: String
  public let mediaType: String
  public let records: Int64?
  public let labels: [String]?
  public let payloadBytes: Int64
  public let bodyBytes: Int64
  public let bodyTreeRoot: Digest
  /// SHA-256 of the key's bytes (header and nonce).
  public let keySHA256: Digest
  /// SHA-256 of key || body, where the agreement asks for it.
  public let wholeFileSHA256: Digest?
  public let createdAt: Date
  public let expiresAt: Date
  public let replaces: TransferID?
  /// Salted digest of the sender's decision.
  public let decision: Digest

  public init(
    id: TransferID, sender: AgencyID, recipient: AgencyID, agreement: NamedDigest,
    agreementVersion: Int64, schema: NamedDigest? = nil, name: String, mediaType: String,
    records: Int64? = nil, labels: [String]? = nil, payloadBytes: Int64, bodyBytes: Int64,
    bodyTreeRoot: Digest, keySHA256: Digest, wholeFileSHA256: Digest? = nil, createdAt: Date,
    expiresAt: Date, replaces: TransferID? = nil, decision: Digest
  ) {
    self.id = id
    self.sender = sender
    self.recipient = recipient
    self.agreement = agreement
    self.agreementVersion = agreementVersion
    self.schema = schema
    self.name = name
    self.mediaType = mediaType
    self.records = records
    self.labels = labels
    self.payloadBytes = payloadBytes
    self.bodyBytes = bodyBytes
    self.bodyTreeRoot = bodyTreeRoot
    self.keySHA256 = keySHA256
    self.wholeFileSHA256 = wholeFileSHA256
    self.createdAt = createdAt
    self.expiresAt = expiresAt
    self.replaces = replaces
    self.decision = decision
  }

  /// What the package's key must be bound to.
  public var binding: Binding {
    Binding(agreement: agreement.sha256.hex, id: id, recipient: recipient, sender: sender)
  }

  public var document: JSON {
    var members: [String: JSON] = [
      "version": 1,
      "id": .string(id.text),
      "sender": .string(sender.text),
      "recipient": .string(recipient.text),
      "agreement": [
        "id": .string(agreement.id), "version": .integer(agreementVersion),
        "sha256": .string(agreement.sha256.hex),
      ],
      "name": .string(name),
      "mediaType": .string(mediaType),
      "payloadBytes": .integer(payloadBytes),
      "body": ["bytes": .integer(bodyBytes), "treeRoot": .string(bodyTreeRoot.hex)],
      "key": ["sha256": .string(keySHA256.hex)],
      "createdAt": .string(Timestamp.format(createdAt)),
      "expiresAt": .string(Timestamp.format(expiresAt)),
      "decision": .string(decision.hex),
    ]
    members["schema"] = schema.map { ["id": .string($0.id), "sha256": .string($0.sha256.hex)] }
    members["records"] = records.map { .integer($0) }
    members["labels"] = labels.map { .array($0.map { .string($0) }) }
    members["wholeFileSha256"] = wholeFileSHA256.map { .string($0.hex) }
    members["replaces"] = replaces.map { .string($0.text) }
    return .object(members)
  }

  /// - Throws: `document.invalid` with the member at fault.
  public init(_ document: JSON) throws(SealingError) {
    var reader = try DocumentReader(document, at: "manifest")
    try reader.version(1)
    id = try reader.transfer("id")
    sender = try reader.agency("sender")
    recipient = try reader.agency("recipient")
    var agreement = try reader.object("agreement")
    self.agreement = NamedDigest(id: try agreement.line("id"), sha256: try agreement.digest("sha256"))
    agreementVersion = try agreement.integer("version", 1...1_000_000)
    try agreement.finish()
    schema = try reader.optional("schema") { (r, n) throws(SealingError) in
      var schema = try r.object(n)
      let named = NamedDigest(id: try schema.line("id"), sha256: try schema.digest("sha256"))
      try schema.finish()
      return named
    }
    name = try reader.string("name")
    if let fault = FileName.fault(name) { throw reader.invalid("name", fault) }
    mediaType = try reader.line("mediaType", bytesMax: 128)
    records = try reader.optional("records") { (r, n) throws(SealingError) in
      try r.integer(n, 0...JSON.integerMax)
    }
    labels = try reader.optional("labels") { (r, n) throws(SealingError) in
      try r.strings(n, countMax: 32)
    }
    payloadBytes = try reader.integer("payloadBytes", 0...BodyGeometry.plainBytesMax)
    var body = try reader.object("body")
    bodyBytes = try body.integer("bytes", 16...(BodyGeometry.plainBytesMax * 2))
    bodyTreeRoot = try body.digest("treeRoot")
    try body.finish()
    guard try BodyGeometry(plainBytes: payloadBytes).sealedBytes == bodyBytes else {
      throw reader.invalid("body", "\(bodyBytes) bytes are not what \(payloadBytes) seal to")
    }
    var key = try reader.object("key")
    keySHA256 = try key.digest("sha256")
    try key.finish()
    wholeFileSHA256 = try reader.optional("wholeFileSha256") { (r, n) throws(SealingError) in
      try r.digest(n)
    }
    createdAt = try reader.date("createdAt")
    expiresAt = try reader.date("expiresAt")
    guard createdAt < expiresAt else { throw reader.invalid("expiresAt", "not after createdAt") }
    replaces = try reader.optional("replaces") { (r, n) throws(SealingError) in try r.transfer(n) }
    decision = try reader.digest("decision")
    try reader.finish()
  }
}
