// The agency's own keys: secrets in one wrapped file, their public side, dates and states on the card beside it.
//
//   keys/keyring    WrappedKey over records of 33 bytes: kind (1 ed25519, 2 ml-dsa-65, 3 x25519, 4 mlkem768x25519, 5 tls) || seed
//   keys/card.json  the newest card's envelope
//
// Rotation overlaps: the new key becomes active, the old one retiring (still accepted) until it is revoked or expires. For a day the
// retiring signing key goes on signing.

import Foundation
import Sealing
import Store
import Transport

/// The unlocked keys of one home. A value; changing functions return nothing durable until `save`.
package struct KeyRing: Sendable {
  package static let use = "keyring"
  package static let validityDays = 730

  package private(set) var signing: [SigningKey]
  package private(set) var identities: [Identity]
  /// Raw P-256 scalars with their certificates; the first whose pin the card lists first is the one in use.
  package private(set) var tls: [(scalar: Secret, identity: TLSIdentity)]
  package private(set) var card: SignedCard

  /// What `init` generates.
  package struct Options: Sendable {
    /// Seal to us with X-Wing (ML-KEM-768 with X25519); partners without a gateway then need age 1.3.
    package var postQuantumSealing = true
    package var postQuantumSigning = false
    package var endpoint: String?
    package var validDays = KeyRing.validityDays

    package init() {}
  }

  /// Fresh keys and the first card.
  package init(agency: AgencyID, options: Options, at instant: Date) throws {
    var signing = [try SigningKey(generating: .ed25519)]
    if options.postQuantumSigning { signing.append(try SigningKey(generating: .mlDSA65)) }
    let identity = try Identity(generating: options.postQuantumSealing ? .mlkem768x25519 : .x25519)
    let scalar = TLSIdentity.generateKey()
    let tls = try TLSIdentity(key: scalar, name: agency.text)
    self.signing = signing
    identities = [identity]
    self.tls = [(scalar, tls)]
    let card = Card(
      agency: agency, serial: 1, previous: nil, issuedAt: Timestamp.parse(Timestamp.format(instant))!,
      signingKeys: signing.map { Self.fresh($0.verifying, at: instant, days: options.validDays) },
      recipients: [Self.fresh(identity.recipient, at: instant, days: options.validDays)], tlsPins: [tls.pin],
      endpoint: options.endpoint)
    self.card = SignedCard(signing: card, with: signing)
  }

  private static func fresh<Key>(_ key: Key, at instant: Date, days: Int = validityDays) -> CardKey<Key> {
    // Whole seconds, as they are written.
    let start = Timestamp.parse(Timestamp.format(instant))!
    return CardKey(key: key, notBefore: start, notAfter: start + Double(days) * 86400)
  }

  // MARK: at rest

  private enum Kind: UInt8 { case ed25519 = 1, mlDSA65, x25519, hybrid, tls }
  private static let recordBytes = 33

  private var records: Secret {
    var all: [(Kind, Secret)] = signing.map { ($0.verifying.algorithm == .ed25519 ? .ed25519 : .mlDSA65, $0.seed) }
    all += identities.map { ($0.recipient.kind == .x25519 ? .x25519 : .hybrid, $0.seed) }
    all += tls.map { (.tls, $0.scalar) }
    return Secret(count: all.count * Self.recordBytes) { output in
      for (index, (kind, seed)) in all.enumerated() {
        output[index * Self.recordBytes] = kind.rawValue
        seed.withBytes {
          UnsafeMutableRawBufferPointer(rebasing: output[(index * Self.recordBytes + 1)...]).copyMemory(from: $0)
        }
      }
    }
  }

  /// Writes keyring and card. A crash between the two leaves secrets that no card names yet, which harms nothing; of a new home, a card
  /// without a keyring, which `init` writes anew.
  package func save(_ home: Home, passphrase: Secret, cost: PassphraseCost = .moderate) throws {
    let keyring = WrappedKey.wrap(records, use: Self.use, passphrase: passphrase, cost: cost)
    let isFirst = card.card.serial == 1
    if !isFirst { try DurableFile.write(keyring, to: home.keyring) }
    try DurableFile.write(card.envelope.bytes + [10], to: home.card, mode: 0o644)
    if isFirst { try DurableFile.write(keyring, to: home.keyring) }
  }

  /// Unlocks the keys of `home`.
  ///
  /// - Throws: `ConfigurationError` for loose permissions; `key.passphrase`; DiskError.
  package init(_ home: Home, passphrase: Secret) throws {
    try home.requireTightPermissions()
    card = try Self.loadCard(home)
    let records = try WrappedKey.open(
      File.contents(home.keyring, bytesMax: WrappedKey.bytesMax), use: Self.use, passphrase: passphrase)
    signing = []
    identities = []
    tls = []
    guard records.count.isMultiple(of: Self.recordBytes) else {
      throw SealingError(.keyInvalid, "the keyring is damaged")
    }
    for index in 0..<(records.count / Self.recordBytes) {
      let (kind, seed) = records.withBytes { bytes in
        let record = UnsafeRawBufferPointer(
          rebasing: bytes[(index * Self.recordBytes)..<((index + 1) * Self.recordBytes)])
        return (record[0], Secret(copying: UnsafeRawBufferPointer(rebasing: record[1...])))
      }
      switch Kind(rawValue: kind) {
      case .ed25519: signing.append(try SigningKey(algorithm: .ed25519, seed: seed))
      case .mlDSA65: signing.append(try SigningKey(algorithm: .mlDSA65, seed: seed))
      case .x25519: identities.append(try Identity(kind: .x25519, seed: seed))
      case .hybrid: identities.append(try Identity(kind: .mlkem768x25519, seed: seed))
      case .tls: tls.append((seed, try TLSIdentity(key: seed, name: card.card.agency.text)))
      case nil: throw SealingError(.keyInvalid, "the keyring has a key of an unknown kind")
      }
    }
    guard card.card.tlsPins.contains(where: { pin in tls.contains { $0.identity.pin == pin } }) else {
      throw Self.lacking("the TLS key")
    }
    for named in card.card.signingKeys where !signing.contains(where: { $0.verifying == named.key }) {
      throw Self.lacking("the signing key \(named.key.id)")
    }
    for named in card.card.recipients where !identities.contains(where: { $0.recipient == named.key }) {
      throw Self.lacking("the identity of \(named.key)")
    }
  }

  /// What is sealed or signed for by such a card would be lost.
  private static func lacking(_ what: String) -> SealingError {
    SealingError(.keyInvalid, "the keyring lacks \(what) that the card names: restore both from one backup")
  }

  /// The card alone, which needs no passphrase.
  package static func loadCard(_ home: Home) throws -> SignedCard {
    let bytes: [UInt8]
    do {
      bytes = try File.contents(home.card, bytesMax: Envelope.bytesMax)
    } catch {
      throw ConfigurationError(
        "cannot read \(home.card): \(error)",
        remedy: error.errno == ENOENT ? "sallyport init --agency ID --home \(home.path)" : "")
    }
    return try SignedCard(own: bytes.last == 10 ? Array(bytes.dropLast()) : bytes)
  }

  // MARK: in use

  /// How long a retiring key signs on in place of a newer one: partners learn a new card within the hour, and what they receive until then
  /// is signed by a key that either card has.
  package static let overlapSeconds: TimeInterval = 86400

  /// The keys that sign documents now, one of each algorithm: the newest that partners have had a day to learn of, or the oldest of
  /// those since. Nothing older than a key that was revoked signs again.
  package func signers(at instant: Date) -> [SigningKey] {
    let chosen = SigningAlgorithm.allCases.compactMap { algorithm -> VerifyingKey? in
      let all = card.card.signingKeys.filter { $0.key.algorithm == algorithm }
      let since = (all.lastIndex { $0.state == .revoked } ?? -1) + 1
      let keys = all[since...].filter { $0.isValid(at: instant) }
      return (keys.last { $0.notBefore + Self.overlapSeconds <= instant } ?? keys.first)?.key
        ?? all.last { $0.state == .active && $0.isValid(at: instant) }?.key
    }
    return signing.filter { chosen.contains($0.verifying) }
  }

  /// The identities to open with, and those that nobody who has the card would seal to: revoked, or let go of.
  var identitiesByTrust: (inUse: [Identity], former: [Identity]) {
    let named = Set(card.card.recipients.filter { $0.state != .revoked }.map(\.key))
    return (identities.filter { named.contains($0.recipient) }, identities.filter { !named.contains($0.recipient) })
  }

  package func sign(_ document: JSON, as kind: DocumentKind, at instant: Date) -> Envelope {
    let keys = signers(at: instant)
    // An expired key still signs rather than nothing at all: partners judge by their copy of the card.
    return Envelope(signing: document, as: kind, with: keys.isEmpty ? Array(signing.suffix(1)) : keys)
  }

  /// Whose signature is this agency's, whenever it was made: its keys stay in the keyring for good. Those of an algorithm that came
  /// later are not asked for.
  package var everSigned: SignerPolicy { SignerPolicy(signing.map(\.verifying).filter { $0.algorithm == .ed25519 }) }

  /// What people's pseudonyms come from: the first signing key that this agency ever had. It stays in the keyring for good, so
  /// that what the ledger knows about people does not fall apart when signing keys rotate.
  var subjectMaster: Secret { signing[0].seed }

  /// The TLS key in use: that of the card's first pin.
  package var tlsInUse: TLSIdentity {
    for pin in card.card.tlsPins {
      if let found = tls.first(where: { $0.identity.pin == pin }) { return found.identity }
    }
    return tls[0].identity
  }

  // MARK: life-cycle

  /// What can be rotated.
  package enum Use: String, Sendable, CaseIterable { case sign, seal, tls }

  /// Adds a fresh key for `use` and lets the present one retire.
  package mutating func rotate(_ use: Use, kind: RecipientKind? = nil, postQuantum: Bool = false, at instant: Date)
    throws
  {
    var signingKeys = card.card.signingKeys
    var recipients = card.card.recipients
    var pins = card.card.tlsPins
    switch use {
    case .sign:
      let algorithm = postQuantum ? SigningAlgorithm.mlDSA65 : .ed25519
      let key = try SigningKey(generating: algorithm)
      signingKeys = Self.withRoom(signingKeys, at: instant)
      for index in signingKeys.indices
      where signingKeys[index].key.algorithm == algorithm && signingKeys[index].state == .active {
        signingKeys[index].state = .retiring
      }
      signing.append(key)
      signingKeys.append(Self.fresh(key.verifying, at: instant))
    case .seal:
      let present = recipients.last { $0.state == .active }?.key.kind ?? .mlkem768x25519
      try addRecipient(Identity(generating: kind ?? present), to: &recipients, at: instant)
    case .tls:
      let scalar = TLSIdentity.generateKey()
      let identity = try TLSIdentity(key: scalar, name: card.card.agency.text)
      tls.append((scalar, identity))
      // The old pin stays in use until `rotate` is called again: partners learn the new one meanwhile.
      pins = pins.count > 1 ? [pins[1], identity.pin] : [pins[0], identity.pin]
    }
    try reissue(signingKeys, recipients, pins, card.card.endpoint, at: instant)
  }

  /// Puts an imported age identity in use, beside the present ones.
  package mutating func add(_ identity: Identity, at instant: Date) throws {
    var recipients = card.card.recipients
    guard !identities.contains(where: { $0.recipient == identity.recipient }) else {
      throw SealingError(.keyInvalid, "this identity is in the keyring already")
    }
    try addRecipient(identity, to: &recipients, at: instant)
    try reissue(card.card.signingKeys, recipients, card.card.tlsPins, card.card.endpoint, at: instant)
  }

  private mutating func addRecipient(
    _ identity: Identity, to recipients: inout [CardKey<Recipient>], at instant: Date
  ) throws {
    recipients = Self.withRoom(recipients, at: instant)
    for index in recipients.indices
    where recipients[index].state == .active && recipients[index].key.kind == identity.recipient.kind {
      recipients[index].state = .retiring
    }
    identities.append(identity)
    recipients.append(Self.fresh(identity.recipient, at: instant))
  }

  /// Revokes the signing key or recipient whose id or text begins with `name` (at least eight letters).
  package mutating func revoke(_ name: String, at instant: Date) throws {
    var signingKeys = card.card.signingKeys
    var recipients = card.card.recipients
    var found = 0
    for index in signingKeys.indices where signingKeys[index].key.id.hasPrefix(name) {
      signingKeys[index].state = .revoked
      found += 1
    }
    for index in recipients.indices where recipients[index].key.description.hasPrefix(name) {
      recipients[index].state = .revoked
      found += 1
    }
    guard found == 1, name.count >= 8 else {
      throw SealingError(.keyInvalid, found == 0 ? "no key is called \(name)" : "give more of the key's name")
    }
    guard signingKeys.contains(where: { $0.state == .active && $0.key.algorithm == .ed25519 }) else {
      throw SealingError(.keyInvalid, "that is the only active signing key: rotate first")
    }
    guard recipients.contains(where: { $0.state == .active }) else {
      throw SealingError(.keyInvalid, "that is the only active recipient: rotate first")
    }
    try reissue(signingKeys, recipients, card.card.tlsPins, card.card.endpoint, at: instant)
  }

  package mutating func setEndpoint(_ endpoint: String?, at instant: Date) throws {
    try reissue(card.card.signingKeys, card.card.recipients, card.card.tlsPins, endpoint, at: instant)
  }

  /// A card's keys with room for one more.
  private static func withRoom<Key>(_ keys: [CardKey<Key>], at instant: Date) -> [CardKey<Key>] {
    var keys = keys
    if keys.count >= Card.keysMax, let (place, _) = dispensable(keys, of: keys, at: instant) { keys.remove(at: place) }
    return keys
  }

  /// The key that a full card lets go of: one that has expired, else one that is revoked on the card `held` too, else the one that retired
  /// first; and how gladly.
  private static func dispensable<Key>(
    _ keys: [CardKey<Key>], of held: [CardKey<Key>], at instant: Date
  ) -> (place: Int, rank: Int)? {
    let tests: [(CardKey<Key>) -> Bool] = [
      { $0.notAfter < instant }, { $0.state == .revoked && held.contains($0) }, { $0.state == .retiring },
    ]
    return tests.enumerated().lazy.compactMap { rank, test in keys.firstIndex(where: test).map { ($0, rank) } }.first
  }

  /// The next card, signed by the newest keys that may, of each algorithm: the new one and those that the held card knows.
  private mutating func reissue(
    _ signingKeys: [CardKey<VerifyingKey>], _ recipients: [CardKey<Recipient>], _ pins: [Digest], _ endpoint: String?,
    at instant: Date
  ) throws {
    var (signingKeys, recipients) = (signingKeys, recipients)
    func following() -> Card {
      Card(
        agency: card.card.agency, serial: card.card.serial + 1, previous: card.digest,
        issuedAt: Timestamp.parse(Timestamp.format(instant))!, signingKeys: signingKeys, recipients: recipients,
        tlsPins: pins, endpoint: endpoint)
    }
    // Post-quantum keys are long: a card may be full before it has the most keys that it may have.
    while following().document.canonical.count > Envelope.payloadBytesMax {
      let (signing, sealing) = (
        Self.dispensable(signingKeys, of: card.card.signingKeys, at: instant),
        Self.dispensable(recipients, of: card.card.recipients, at: instant)
      )
      if let sealing, sealing.rank <= signing?.rank ?? .max {
        recipients.remove(at: sealing.place)
      } else if let signing {
        signingKeys.remove(at: signing.place)
      } else {
        throw SealingError(.keyInvalid, "the card has no room for another key: revoke one that is not needed")
      }
    }
    let next = following()
    let valid = signingKeys.filter { $0.isValid(at: instant) }.map(\.key)
    let newest = SigningAlgorithm.allCases.flatMap { algorithm in
      valid.filter { $0.algorithm == algorithm }.suffix(Envelope.signaturesMax / 2)
    }
    card = SignedCard(signing: next, with: signing.filter { newest.contains($0.verifying) })
    // What is written must be readable by everybody else.
    _ = try SignedCard(selfSigned: card.envelope.bytes, at: instant)
  }
}

/// A key that will expire, for warnings.
package struct KeyExpiry: Equatable, Sendable {
  package static let warningDays = [60, 30, 14, 7, 1]

  package let agency: AgencyID
  package let key: String
  package let notAfter: Date

  package func daysLeft(at instant: Date) -> Int { Int((notAfter.timeIntervalSince(instant) / 86400).rounded(.down)) }

  /// What people are told.
  package func sentence(at instant: Date) -> String {
    let days = daysLeft(at: instant)
    return "key \(key) of \(agency) \(days < 0 ? "has expired" : "expires in \(days) days")"
  }

  /// Active keys of `card` that expire within the first warning.
  package static func due(_ card: Card, at instant: Date) -> [KeyExpiry] {
    let horizon = instant + Double(warningDays[0]) * 86400
    let signing = card.signingKeys.filter { $0.state == .active && $0.notAfter < horizon }
      .map { KeyExpiry(agency: card.agency, key: $0.key.id, notAfter: $0.notAfter) }
    let sealing = card.recipients.filter { $0.state == .active && $0.notAfter < horizon }
      .map { KeyExpiry(agency: card.agency, key: String($0.key.description.prefix(24)), notAfter: $0.notAfter) }
    return signing + sealing
  }
}
