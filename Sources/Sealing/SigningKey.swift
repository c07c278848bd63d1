// Signing keys: Ed25519 (RFC 8032, libsodium) always, ML-DSA-65 (FIPS 204, swift-crypto) beside it where a card has one.

import CSodium
import Crypto
import Foundation

/// Signature algorithms, by the names that key ids and cards use.
public enum SigningAlgorithm: String, Sendable, CaseIterable {
  case ed25519
  case mlDSA65 = "ml-dsa-65"

  var publicBytes: Int { self == .ed25519 ? 32 : 1952 }
  var signatureBytes: Int { self == .ed25519 ? 64 : 3309 }
}

/// A public signing key.
public struct VerifyingKey: Hashable, Sendable {
  public let algorithm: SigningAlgorithm
  public let bytes: [UInt8]

  /// - Throws: `key.invalid` when the size is not the algorithm's.
  public init(algorithm: SigningAlgorithm, bytes: [UInt8]) throws(SealingError) {
    guard bytes.count == algorithm.publicBytes else {
      throw SealingError(.keyInvalid, "a \(algorithm.rawValue) key has \(algorithm.publicBytes) bytes")
    }
    self.algorithm = algorithm
    self.bytes = bytes
  }

  /// Algorithm and hex SHA-256 of the raw key. A hint that tells a verifier where to look, never proof.
  public var id: String { "\(algorithm.rawValue):\(Digest(of: bytes).hex)" }

  /// SubjectPublicKeyInfo in PEM, as openssl reads it (RFC 8410 §4); nil for ML-DSA, which openssl 3.0 does not know.
  public var pem: String? {
    guard algorithm == .ed25519 else { return nil }
    let prefix: [UInt8] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00]
    return "-----BEGIN PUBLIC KEY-----\n\(Base64.encode(prefix + bytes))\n-----END PUBLIC KEY-----"
  }

  /// Whether `signature` is this key's over `message`.
  public func verifies(_ signature: [UInt8], of message: [UInt8]) -> Bool {
    guard signature.count == algorithm.signatureBytes else { return false }
    switch algorithm {
    case .ed25519:
      Sodium.ready()
      return crypto_sign_verify_detached(signature, message, UInt64(message.count), bytes) == 0
    case .mlDSA65:
      guard let key = try? MLDSA65.PublicKey(rawRepresentation: bytes) else { return false }
      return key.isValidSignature(signature, for: message)
    }
  }
}

/// A secret signing key, kept as its 32-byte seed.
public struct SigningKey: Sendable {
  public let verifying: VerifyingKey
  /// The 32-byte seed (RFC 8032 §5.1.5; FIPS 204 algorithm 6), to be stored wrapped.
  public let seed: Secret
  private let expanded: Secret?

  public init(generating algorithm: SigningAlgorithm, random: RandomSource = systemRandom) throws(SealingError) {
    try self.init(algorithm: algorithm, seed: Secret(random: 32, from: random))
  }

  /// - Throws: `key.invalid`.
  public init(algorithm: SigningAlgorithm, seed: Secret) throws(SealingError) {
    guard seed.count == 32 else { throw SealingError(.keyInvalid, "a signing seed has 32 bytes") }
    self.seed = seed
    switch algorithm {
    case .ed25519:
      Sodium.ready()
      var bytes = [UInt8](repeating: 0, count: 32)
      expanded = Secret(count: 64) { output in
        seed.withBytes {
          _ = crypto_sign_seed_keypair(&bytes, output.bytePointer!, $0.bytePointer!)
        }
      }
      verifying = try VerifyingKey(algorithm: algorithm, bytes: bytes)
    case .mlDSA65:
      expanded = nil
      guard let key = try? Self.mlDSA(seed) else {
        throw SealingError(.keyInvalid, "the ML-DSA-65 seed cannot be used")
      }
      verifying = try VerifyingKey(
        algorithm: algorithm, bytes: Array(key.publicKey.rawRepresentation))
    }
  }

  private static func mlDSA(_ seed: Secret) throws -> MLDSA65.PrivateKey {
    try seed.withData { try MLDSA65.PrivateKey(seedRepresentation: $0, publicKey: nil) }
  }

  /// The signature over `message`. About 15 µs (Ed25519) or 1 ms (ML-DSA-65, which expands its seed each time).
  public func sign(_ message: [UInt8]) -> [UInt8] {
    switch verifying.algorithm {
    case .ed25519:
      var signature = [UInt8](repeating: 0, count: 64)
      expanded!.withBytes {
        _ = crypto_sign_detached(&signature, nil, message, UInt64(message.count), $0.bytePointer!)
      }
      return signature
    case .mlDSA65:
      do {
        return Array(try Self.mlDSA(seed).signature(for: message))
      } catch {
        preconditionFailure("a seed that made a key signs: \(error)")
      }
    }
  }
}
