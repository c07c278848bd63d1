// The key of a package: the age header and the 16-byte nonce after it. It alone opens the body, so it travels last.
//
//   key = header || nonce(16)          key || body = one age v1 file
//
// A gateway's header carries one stanza more, which stock age skips as it skips every unknown type:
//   -> sallyport/v1 base64(SHA-256(JCS{agreement, id, recipient, sender}))      body empty
// The header MAC covers it. It ties the key to one manifest, so that nobody can sign a manifest over another's body.

import Crypto
import Foundation

/// What a key is bound to.
public struct Binding: Equatable, Sendable {
  static let stanzaType = "sallyport/v1"

  public let agreement: String
  public let id: TransferID
  public let recipient: AgencyID
  public let sender: AgencyID

  /// `agreement` is the hexadecimal SHA-256 of the agreement's canonical form.
  public init(agreement: String, id: TransferID, recipient: AgencyID, sender: AgencyID) {
    self.agreement = agreement
    self.id = id
    self.recipient = recipient
    self.sender = sender
  }

  var stanza: Stanza {
    let document: JSON = [
      "agreement": .string(agreement), "id": .string(id.text), "recipient": .string(recipient.text),
      "sender": .string(sender.text),
    ]
    let digest = SHA256.hash(data: document.canonical)
    return Stanza(
      type: Self.stanzaType,
      arguments: [String(decoding: Base64.encodeUnpadded(digest), as: UTF8.self)])
  }
}

/// A header with its nonce, as bytes. Public in the sense of cryptography: only an identity makes use of it.
public struct PackageKey: Equatable, Sendable {
  public static let nonceBytes = 16
  public static let bytesMax = Header.bytesMax + nonceBytes

  public let header: Header
  public let nonce: [UInt8]

  public var bytes: [UInt8] { header.bytes + nonce }

  /// The key at the start of `input`, which may go on with the body.
  ///
  /// - Throws: `header.malformed`.
  public init(parsing input: some Collection<UInt8>) throws(SealingError) {
    header = try Header(parsing: input)
    let rest = input.dropFirst(header.bytes.count).prefix(Self.nonceBytes)
    guard rest.count == Self.nonceBytes else {
      throw SealingError(.headerMalformed, "age header: the nonce after it is cut")
    }
    nonce = Array(rest)
  }

  /// A fresh file key, wrapped for each recipient, and the payload key for the body.
  ///
  /// Recipients are all of one kind: a file that also opens classically has no post-quantum protection (C2SP age.md).
  /// - Throws: `key.invalid`.
  public static func create(
    for recipients: [Recipient], binding: Binding? = nil, random: RandomSource = systemRandom
  ) throws(SealingError) -> (key: PackageKey, payloadKey: Secret) {
    let made = try create(for: recipients, retainedBy: nil, binding: binding, random: random)
    return (made.key, made.payloadKey)
  }

  /// The same, with a second header over the same file key and nonce that only `retainer` opens: the sender's own way back to
  /// the payload, for a body that may have to be sealed again. nil without a retainer.
  package static func create(
    for recipients: [Recipient], retainedBy retainer: Recipient?, binding: Binding? = nil,
    random: RandomSource = systemRandom
  ) throws(SealingError) -> (key: PackageKey, payloadKey: Secret, retained: PackageKey?) {
    guard let first = recipients.first, recipients.count < Header.stanzasMax else {
      throw SealingError(.keyInvalid, "1 to \(Header.stanzasMax - 1) recipients are needed")
    }
    guard recipients.allSatisfy({ $0.kind == first.kind }) else {
      throw SealingError(.keyInvalid, "classical and post-quantum recipients never mix in one file")
    }
    let fileKey = Secret(random: fileKeyBytes, from: random)
    var stanzas: [Stanza] = []
    for recipient in recipients { stanzas.append(try recipient.wrap(fileKey, random: random)) }
    if let binding { stanzas.append(binding.stanza) }
    var nonce = [UInt8](repeating: 0, count: nonceBytes)
    nonce.withUnsafeMutableBytes { random($0) }
    var retained: PackageKey?
    if let retainer {
      let own = [try retainer.wrap(fileKey, random: random)] + (binding.map { [$0.stanza] } ?? [])
      retained = PackageKey(header: Header(stanzas: own, fileKey: fileKey), nonce: nonce)
    }
    return (
      PackageKey(header: Header(stanzas: stanzas, fileKey: fileKey), nonce: nonce),
      deriveKey(from: fileKey, salt: nonce, info: "payload"), retained
    )
  }

  private init(header: Header, nonce: [UInt8]) {
    self.header = header
    self.nonce = nonce
  }

  /// The payload key, once an identity opens a stanza and the MAC holds.
  ///
  /// With `binding` (every gateway gives one) exactly one binding stanza must be there, and match.
  /// - Throws: `header.no-match`, `header.mac`, `header.binding`, `header.malformed`.
  public func open(with identities: [Identity], binding: Binding? = nil) throws(SealingError) -> Secret {
    let fileKey = try fileKey(for: identities)
    try header.verify(fileKey: fileKey)
    if let binding {
      let found = header.stanzas.filter { $0.type == Binding.stanzaType }
      guard found == [binding.stanza] else {
        throw SealingError(.headerBinding, "the key is not bound to this manifest")
      }
    }
    return deriveKey(from: fileKey, salt: nonce, info: "payload")
  }

  private func fileKey(for identities: [Identity]) throws(SealingError) -> Secret {
    if header.stanzas.contains(where: { $0.type == "scrypt" }) {
      throw SealingError(.headerNoMatch, "a passphrase-sealed age file is not opened here")
    }
    for stanza in header.stanzas {
      for identity in identities {
        if let fileKey = try identity.unwrap(stanza) { return fileKey }
      }
    }
    throw SealingError(.headerNoMatch, "none of the identities at hand opens this key")
  }
}
