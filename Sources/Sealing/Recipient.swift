// Who can open: age recipients (public) and identities (secret), and how each wraps a file key.
//
//   X25519          "age1…"      stanza  -> X25519 base64(ephemeral share, 32)         body 32
//   mlkem768x25519  "age1pq1…"   stanza  -> mlkem768x25519 base64(encapsulation, 1120)  body 32
//
// Sources: C2SP age.md, "The X25519 recipient type" and "The mlkem768x25519 recipient type"; RFC 7748; RFC 9180.

import CSodium
import Crypto
import Foundation

/// The two native key types of a gateway. Plug-ins, ssh and scrypt stanzas are not opened here.
public enum RecipientKind: String, Sendable, CaseIterable {
  case x25519
  case mlkem768x25519

  var stanzaType: String { self == .x25519 ? "X25519" : "mlkem768x25519" }
  var recipientPrefix: String { self == .x25519 ? "age" : "age1pq" }
  var identityPrefix: String { self == .x25519 ? "age-secret-key-" : "age-secret-key-pq-" }
  /// Bytes of the public key.
  var publicBytes: Int { self == .x25519 ? 32 : 1216 }
}

/// HPKE as age uses it; the suite's ready-made constants have another AEAD.
private let xWingSuite = HPKE.Ciphersuite(
  kem: .XWingMLKEM768X25519, kdf: .HKDF_SHA256, aead: .chaChaPoly)
private let xWingInfo = Data("age-encryption.org/mlkem768x25519".utf8)
private let x25519Info = "age-encryption.org/v1/X25519"

/// Bytes of the symmetric key that a header wraps.
public let fileKeyBytes = 16

/// A public key to seal to.
public struct Recipient: Hashable, Sendable, CustomStringConvertible {
  public let kind: RecipientKind
  let publicKey: [UInt8]

  init(kind: RecipientKind, publicKey: [UInt8]) {
    self.kind = kind
    self.publicKey = publicKey
  }

  /// Reads `age1…` or `age1pq1…`.
  ///
  /// - Throws: `key.invalid`.
  public init(_ text: String) throws(SealingError) {
    guard text.utf8.count <= 4096, text.utf8.allSatisfy({ !(65...90).contains($0) }),
      let (prefix, bytes) = Bech32.decode(Array(text.utf8)),
      let kind = RecipientKind.allCases.first(where: { $0.recipientPrefix == prefix }),
      bytes.count == kind.publicBytes
    else { throw SealingError(.keyInvalid, "not an age recipient (age1… or age1pq1…)") }
    self.init(kind: kind, publicKey: bytes)
  }

  public var description: String {
    publicKey.withUnsafeBytes {
      String(decoding: Bech32.encode(prefix: kind.recipientPrefix, $0), as: UTF8.self)
    }
  }

  /// Wraps a 16-byte file key. The hybrid encapsulation draws from swift-crypto's own generator, the rest from `random`.
  ///
  /// - Throws: `key.invalid` for a public key that no honest party has (low order, malformed).
  func wrap(_ fileKey: Secret, random: RandomSource) throws(SealingError) -> Stanza {
    switch kind {
    case .x25519:
      let ephemeral = Secret(random: 32, from: random)
      let share = X25519.publicKey(of: ephemeral)
      let key = try X25519.wrapKey(scalar: ephemeral, peer: publicKey, salt: share + publicKey)
      return Stanza(
        type: kind.stanzaType, arguments: [Self.text(Base64.encodeUnpadded(share))],
        body: SmallBox.seal(fileKey, key: key))
    case .mlkem768x25519:
      do {
        let key = try XWingMLKEM768X25519.PublicKey(rawRepresentation: publicKey)
        var sender = try HPKE.Sender(recipientKey: key, ciphersuite: xWingSuite, info: xWingInfo)
        let body = try fileKey.withData { try sender.seal($0) }
        return Stanza(
          type: kind.stanzaType,
          arguments: [Self.text(Base64.encodeUnpadded(sender.encapsulatedKey))], body: Array(body))
      } catch {
        throw SealingError(.keyInvalid, "the hybrid recipient cannot be used: \(error)")
      }
    }
  }

  private static func text(_ letters: [UInt8]) -> String { String(decoding: letters, as: UTF8.self) }
}

/// A secret key that opens what was sealed to its `recipient`.
public struct Identity: Sendable {
  public let recipient: Recipient
  /// The 32-byte secret, to be stored wrapped.
  package let seed: Secret

  /// A fresh identity.
  public init(generating kind: RecipientKind, random: RandomSource = systemRandom) throws(SealingError) {
    try self.init(kind: kind, seed: Secret(random: 32, from: random))
  }

  /// - Parameter seed: 32 bytes, an X25519 scalar or an X-Wing seed.
  package init(kind: RecipientKind, seed: Secret) throws(SealingError) {
    precondition(seed.count == 32)
    self.seed = seed
    switch kind {
    case .x25519: recipient = Recipient(kind: kind, publicKey: X25519.publicKey(of: seed))
    case .mlkem768x25519:
      do {
        let key = try Self.hybridKey(seed)
        recipient = Recipient(kind: kind, publicKey: Array(key.publicKey.rawRepresentation))
      } catch {
        throw SealingError(.keyInvalid, "the hybrid identity cannot be used")
      }
    }
  }

  /// Reads `AGE-SECRET-KEY-1…` or `AGE-SECRET-KEY-PQ-1…`. The caller wipes `text`.
  ///
  /// - Throws: `key.invalid`.
  public init(_ text: some Collection<UInt8>) throws(SealingError) {
    guard text.count <= 256, text.allSatisfy({ !(97...122).contains($0) }),
      var decoded = Bech32.decode(text),
      let kind = RecipientKind.allCases.first(where: { $0.identityPrefix == decoded.prefix }),
      decoded.bytes.count == 32
    else { throw SealingError(.keyInvalid, "not an age identity (AGE-SECRET-KEY-…)") }
    try self.init(kind: kind, seed: Secret(wiping: &decoded.bytes))
  }

  /// The identity as age writes it, upper case, in guarded memory.
  public var secretText: Secret {
    var letters = seed.withBytes { Bech32.encode(prefix: recipient.kind.identityPrefix, $0) }
    for index in letters.indices where (97...122).contains(letters[index]) { letters[index] -= 32 }
    return Secret(wiping: &letters)
  }

  private static func hybridKey(_ seed: Secret) throws -> XWingMLKEM768X25519.PrivateKey {
    try seed.withData {
      try XWingMLKEM768X25519.PrivateKey(seedRepresentation: $0, publicKey: nil)
    }
  }

  /// The file key of a stanza, or nil when the stanza is of another type or for another key.
  ///
  /// - Throws: `header.malformed` for a stanza of our type that breaks its grammar.
  func unwrap(_ stanza: Stanza) throws(SealingError) -> Secret? {
    let kind = recipient.kind
    guard stanza.type == kind.stanzaType else { return nil }
    let shareBytes = kind == .x25519 ? 32 : 1120
    guard stanza.arguments.count == 1, stanza.body.count == fileKeyBytes + 16,
      let share = Base64.decodeUnpadded(Array(stanza.arguments[0].utf8)), share.count == shareBytes
    else { throw SealingError(.headerMalformed, "age header: a broken \(stanza.type) stanza") }
    switch kind {
    case .x25519:
      let key: Secret
      do {
        key = try X25519.wrapKey(scalar: seed, peer: share, salt: share + recipient.publicKey)
      } catch {
        throw SealingError(.headerMalformed, "age header: a low-order X25519 share")
      }
      return SmallBox.open(stanza.body, key: key)
    case .mlkem768x25519:
      guard
        var opener = try? HPKE.Recipient(
          privateKey: Self.hybridKey(seed), ciphersuite: xWingSuite, info: xWingInfo,
          encapsulatedKey: Data(share))
      else { throw SealingError(.headerMalformed, "age header: a broken encapsulation") }
      guard var opened = try? opener.open(Data(stanza.body)), opened.count == fileKeyBytes else {
        return nil  // another key's stanza: authentication says so, and nothing more can be known
      }
      defer { opened.resetBytes(in: opened.startIndex..<opened.endIndex) }
      return opened.withUnsafeBytes { Secret(copying: $0) }
    }
  }
}

/// X25519 (RFC 7748) through libsodium.
private enum X25519 {
  static func publicKey(of scalar: Secret) -> [UInt8] {
    Sodium.ready()
    var output = [UInt8](repeating: 0, count: 32)
    scalar.withBytes { _ = crypto_scalarmult_base(&output, $0.bytePointer!) }
    return output
  }

  static func wrapKey(scalar: Secret, peer: [UInt8], salt: [UInt8]) throws(SealingError) -> Secret {
    Sodium.ready()
    let shared = try Secret(count: 32) { (output) throws(SealingError) in
      let status = scalar.withBytes {
        crypto_scalarmult(output.bytePointer!, $0.bytePointer!, peer)
      }
      guard status == 0 else { throw SealingError(.keyInvalid, "a low-order X25519 point") }
    }
    return deriveKey(from: shared, salt: salt, info: x25519Info)
  }
}

/// ChaCha20-Poly1305 (RFC 8439) over one file key under a key used once, so the nonce is zero.
private enum SmallBox {
  private static let nonce = [UInt8](repeating: 0, count: 12)

  static func seal(_ fileKey: Secret, key: Secret) -> [UInt8] {
    var output = [UInt8](repeating: 0, count: fileKey.count + 16)
    key.withBytes { key in
      fileKey.withBytes {
        _ = crypto_aead_chacha20poly1305_ietf_encrypt(
          &output, nil, $0.bytePointer!, UInt64($0.count), nil, 0, nil, nonce, key.bytePointer!)
      }
    }
    return output
  }

  static func open(_ sealed: [UInt8], key: Secret) -> Secret? {
    struct Refused: Error {}
    return try? Secret(count: sealed.count - 16) { output in
      let status = key.withBytes {
        crypto_aead_chacha20poly1305_ietf_decrypt(
          output.bytePointer!, nil, nil, sealed, UInt64(sealed.count), nil, 0, nonce,
          $0.bytePointer!)
      }
      guard status == 0 else { throw Refused() }
    }
  }
}
