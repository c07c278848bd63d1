// A card: an agency's signed public description. Partners exchange cards; everything else is judged by them.
//
// Succession: a held card is replaced by one with a higher serial, signed by a key valid in the held card and by its own keys; `previous`
// names the card before it, which its holder may have missed. Dropping post-quantum protection, or replacing a revoked signing
// key, needs a person to approve the fingerprint again.

import Foundation

/// A key on a card, with its time.
public struct CardKey<Key: Hashable & Sendable>: Hashable, Sendable {
  public enum State: String, Sendable, CaseIterable {
    /// Used for producing.
    case active
    /// Still accepted; used for producing only until partners know its successor.
    case retiring
    /// Not accepted any more, whatever its dates say.
    case revoked
  }

  public let key: Key
  public let notBefore: Date
  public let notAfter: Date
  public var state: State

  public init(key: Key, notBefore: Date, notAfter: Date, state: State = .active) {
    self.key = key
    self.notBefore = notBefore
    self.notAfter = notAfter
    self.state = state
  }

  /// Whether the key may be used at `instant`, give or take the clocks' `skew`.
  public func isValid(at instant: Date, skew: TimeInterval = 300) -> Bool {
    state != .revoked && instant >= notBefore - skew && instant < notAfter + skew
  }
}

/// The content of a card. Limits: 16 keys of each use, 4 pins.
public struct Card: Equatable, Sendable {
  public static let keysMax = 16
  public static let pinsMax = 4
  public static let serialMax: Int64 = 1 << 31

  public let agency: AgencyID
  public let serial: Int64
  /// Payload digest of the card before this one; nil on the first.
  public let previous: Digest?
  public let issuedAt: Date
  public let signingKeys: [CardKey<VerifyingKey>]
  public let recipients: [CardKey<Recipient>]
  /// SHA-256 of the DER SubjectPublicKeyInfo (RFC 7469 §2.4) of each TLS key in use.
  public let tlsPins: [Digest]
  /// Where the gateway listens, `https://host:port`; nil for an agency that only calls out.
  public let endpoint: String?

  public init(
    agency: AgencyID, serial: Int64, previous: Digest?, issuedAt: Date,
    signingKeys: [CardKey<VerifyingKey>], recipients: [CardKey<Recipient>], tlsPins: [Digest],
    endpoint: String?
  ) {
    self.agency = agency
    self.serial = serial
    self.previous = previous
    self.issuedAt = issuedAt
    self.signingKeys = signingKeys
    self.recipients = recipients
    self.tlsPins = tlsPins
    self.endpoint = endpoint
  }

  /// Whether the agency signs for itself. One that does not has no gateway: it collects with stock tools, and what stands here is
  /// its partner's description of it.
  public var hasGateway: Bool { !signingKeys.isEmpty }

  /// Keys whose signatures count at `instant`.
  public func signers(at instant: Date) -> SignerPolicy {
    SignerPolicy(signingKeys.filter { $0.isValid(at: instant) }.map(\.key))
  }

  /// Who to seal to at `instant`: the active hybrid recipients alone where there are any, else the active classical ones.
  public func sealingRecipients(at instant: Date) -> [Recipient] {
    let active = recipients.filter { $0.state == .active && $0.isValid(at: instant) }.map(\.key)
    let hybrid = active.filter { $0.kind == .mlkem768x25519 }
    return hybrid.isEmpty ? active : hybrid
  }

  public var document: JSON {
    var members: [String: JSON] = [
      "version": 1,
      "agency": .string(agency.text),
      "serial": .integer(serial),
      "issuedAt": .string(Timestamp.format(issuedAt)),
      "signingKeys": .array(
        signingKeys.map { item in
          Self.document(
            item,
            [
              "algorithm": .string(item.key.algorithm.rawValue),
              "key": .string(Base64.encode(item.key.bytes)),
            ])
        }),
      "recipients": .array(
        recipients.map { Self.document($0, ["recipient": .string($0.key.description)]) }),
      "tlsPins": .array(tlsPins.map { .string($0.hex) }),
    ]
    members["previous"] = previous.map { .string($0.hex) }
    members["endpoint"] = endpoint.map { .string($0) }
    return .object(members)
  }

  private static func document<Key>(_ item: CardKey<Key>, _ key: [String: JSON]) -> JSON {
    .object(
      key.merging([
        "notBefore": .string(Timestamp.format(item.notBefore)),
        "notAfter": .string(Timestamp.format(item.notAfter)),
        "state": .string(item.state.rawValue),
      ]) { first, _ in first })
  }

  /// - Throws: `document.invalid`.
  public init(_ document: JSON) throws(SealingError) {
    try self.init(document, signsItself: true)
  }

  private init(_ document: JSON, signsItself: Bool) throws(SealingError) {
    var reader = try DocumentReader(document, at: "card")
    try reader.version(1)
    agency = try reader.agency("agency")
    serial = try reader.integer("serial", 1...Self.serialMax)
    previous = try reader.optional("previous") { (r, n) throws(SealingError) in try r.digest(n) }
    issuedAt = try reader.date("issuedAt")
    var signingKeys: [CardKey<VerifyingKey>] = []
    for var item in try reader.objects("signingKeys", countMax: Self.keysMax) {
      let algorithm = try item.choice("algorithm", SigningAlgorithm.self)
      guard let bytes = Base64.decode(try item.string("key", bytesMax: 4096)) else {
        throw item.invalid("key", "not canonical base64")
      }
      signingKeys.append(try Self.cardKey(VerifyingKey(algorithm: algorithm, bytes: bytes), &item))
    }
    var recipients: [CardKey<Recipient>] = []
    for var item in try reader.objects("recipients", countMax: Self.keysMax) {
      let recipient = try Recipient(try item.string("recipient", bytesMax: 4096))
      recipients.append(try Self.cardKey(recipient, &item))
    }
    var pins: [Digest] = []
    for pin in try reader.strings("tlsPins", countMax: Self.pinsMax) {
      guard let digest = Digest(hex: pin) else { throw reader.invalid("tlsPins", "not a SHA-256") }
      pins.append(digest)
    }
    self.signingKeys = signingKeys
    self.recipients = recipients
    tlsPins = pins
    endpoint = try reader.optional("endpoint") { (r, n) throws(SealingError) in
      let text = try r.string(n)
      guard Self.isEndpoint(text) else { throw r.invalid(n, "expected https://host:port") }
      return text
    }
    try reader.finish()
    let signs = signsItself ? signingKeys.contains { $0.key.algorithm == .ed25519 } : signingKeys.isEmpty
    guard signs, !recipients.isEmpty, !pins.isEmpty else {
      throw reader.invalid("signingKeys", "a card has an Ed25519 key, a recipient and a pin")
    }
    guard Set(signingKeys.map(\.key)).count == signingKeys.count, Set(pins).count == pins.count,
      Set(recipients.map(\.key)).count == recipients.count
    else { throw reader.invalid("signingKeys", "a key stands twice on the card") }
  }

  /// A partner without a gateway, as its partner describes it.
  ///
  /// - Throws: `document.invalid`.
  static func described(_ document: JSON) throws(SealingError) -> Card { try Card(document, signsItself: false) }

  private static func cardKey<Key>(
    _ key: Key, _ reader: inout DocumentReader
  ) throws(SealingError) -> CardKey<Key> {
    let notBefore = try reader.date("notBefore")
    let notAfter = try reader.date("notAfter")
    guard notBefore < notAfter else { throw reader.invalid("notAfter", "not after notBefore") }
    let state = try reader.choice("state", CardKey<Key>.State.self)
    try reader.finish()
    return CardKey(key: key, notBefore: notBefore, notAfter: notAfter, state: state)
  }

  /// `https://host:port`, with nothing after the port: an endpoint is dialled, never interpreted.
  static func isEndpoint(_ text: String) -> Bool {
    guard let url = URLComponents(string: text), url.scheme == "https", let host = url.host,
      !host.isEmpty, let port = url.port, (1...65535).contains(port)
    else { return false }
    return text == "https://\(host):\(port)"
  }
}

/// A card with the envelope that proves it. Only verification makes one.
public struct SignedCard: Equatable, Sendable {
  public let card: Card
  public let envelope: Envelope
  /// The card's identity.
  public var digest: Digest { envelope.payloadDigest }

  /// Signs a card with all of its own keys at hand.
  public init(signing card: Card, with keys: [SigningKey]) {
    self.card = card
    envelope = Envelope(signing: card.document, as: .card, with: keys)
  }

  /// Signs what is known of a partner without a gateway, with keys of one's own.
  ///
  /// - Throws: `document.invalid` for a card with signing keys of its own.
  public init(describing card: Card, with keys: [SigningKey]) throws(SealingError) {
    self.card = try Card.described(card.document)
    envelope = Envelope(signing: card.document, as: .description, with: keys)
  }

  /// A card as it comes from outside, signed by its own keys: who it is from is for a person to compare.
  ///
  /// - Throws: `document.json`, `document.invalid`, `document.signature`.
  public init(selfSigned bytes: [UInt8], at instant: Date) throws(SealingError) {
    let envelope = try Envelope(parsing: bytes, as: .card)
    let card = try Card(try envelope.unverified())
    _ = try envelope.verify(card.signers(at: instant))
    self.card = card
    self.envelope = envelope
  }

  /// A card or description that we stored ourselves, whose keys may have expired by now.
  ///
  /// - Throws: `document.json`, `document.invalid`.
  package init(own bytes: [UInt8]) throws(SealingError) {
    if let description = try? Envelope(parsing: bytes, as: .description) {
      envelope = description
      card = try Card.described(try description.unverified())
    } else {
      envelope = try Envelope(parsing: bytes, as: .card)
      card = try Card(try envelope.unverified())
    }
  }

  /// What follows from offering `successor` for this held card.
  public enum Succession: Equatable, Sendable {
    /// The held card itself.
    case same
    case accepted
    /// Accepted only once its fingerprint is approved again.
    case needsApproval(reason: String)
  }

  /// Judges a successor.
  ///
  /// - Throws: `card.succession`: another agency, a lower or equal serial, or not signed by the held card.
  public func succession(of successor: SignedCard, at instant: Date) throws(SealingError) -> Succession {
    if successor.digest == digest { return .same }
    func refused(_ why: String) -> SealingError { SealingError(.cardSuccession, "card of \(card.agency): \(why)") }
    guard successor.card.agency == card.agency else { throw refused("the new card is of another agency") }
    guard successor.card.serial > card.serial else {
      throw refused("serial \(successor.card.serial) is not above the held \(card.serial)")
    }
    let revoked = Set(successor.card.signingKeys.filter { $0.state == .revoked }.map(\.key))
    let heldKeys = card.signingKeys.filter { $0.isValid(at: instant) }.map(\.key)
    if heldKeys.contains(where: revoked.contains) {
      return .needsApproval(reason: "a signing key of the held card is revoked")
    }
    // Cards between the two may have been missed: what counts is a key that the held one has.
    do {
      _ = try successor.envelope.verify(SignerPolicy(heldKeys))
    } catch {
      throw refused("it is not signed by the held card's keys")
    }
    func postQuantum(_ card: Card) -> (signing: Bool, sealing: Bool) {
      (
        !card.signers(at: instant).mlDSA65.isEmpty,
        card.sealingRecipients(at: instant).contains { $0.kind == .mlkem768x25519 }
      )
    }
    let (before, after) = (postQuantum(card), postQuantum(successor.card))
    if before.signing && !after.signing || before.sealing && !after.sealing {
      return .needsApproval(reason: "post-quantum protection is dropped")
    }
    return .accepted
  }
}
