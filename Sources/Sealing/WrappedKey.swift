// Secrets at rest: wrapped under a passphrase with Argon2id (RFC 9106) and XChaCha20-Poly1305, both from libsodium.
//
//   {"kdf":"argon2id","memoryBytes":…,"operations":…,"salt":base64(16),"nonce":base64(24),"sealed":base64,"use":…,"version":1}
//
// `use` is authenticated as associated data, so that one key file cannot stand in for another.

import CSodium

/// How hard a passphrase is to guess. The default is near RFC 9106 §4, second choice: less memory and more passes for it, so that
/// unlocking is not what decides how much memory a gateway needs.
public struct PassphraseCost: Sendable {
  public let operations: UInt64
  public let memoryBytes: Int

  public static let moderate = PassphraseCost(operations: 8, memoryBytes: 40 << 20)
  /// For tests and demonstrations only.
  public static let minimal = PassphraseCost(operations: 1, memoryBytes: 8192)
  static let memoryBytesMax = 1 << 30
  static let operationsMax: UInt64 = 16
}

/// Wraps and opens one secret.
public enum WrappedKey {
  public static let bytesMax = 65536

  /// The file's bytes.
  public static func wrap(
    _ secret: Secret, use: String, passphrase: Secret, cost: PassphraseCost = .moderate,
    random: RandomSource = systemRandom
  ) -> [UInt8] {
    var salt = [UInt8](repeating: 0, count: 16)
    var nonce = [UInt8](repeating: 0, count: 24)
    salt.withUnsafeMutableBytes { random($0) }
    nonce.withUnsafeMutableBytes { random($0) }
    guard let key = derive(passphrase, salt: salt, cost: cost) else {
      fatalError("out of memory for Argon2id")
    }
    var sealed = [UInt8](repeating: 0, count: secret.count + 16)
    let context = Array(use.utf8)
    key.withBytes { key in
      secret.withBytes { secret in
        _ = crypto_aead_xchacha20poly1305_ietf_encrypt(
          &sealed, nil, secret.bytePointer!, UInt64(secret.count), context, UInt64(context.count),
          nil, nonce, key.bytePointer!)
      }
    }
    let document: JSON = [
      "version": 1, "kdf": "argon2id", "operations": .integer(Int64(cost.operations)),
      "memoryBytes": .integer(Int64(cost.memoryBytes)), "salt": .string(Base64.encode(salt)),
      "nonce": .string(Base64.encode(nonce)), "sealed": .string(Base64.encode(sealed)),
      "use": .string(use),
    ]
    return document.canonical + [10]
  }

  /// - Throws: `key.passphrase` for a wrong passphrase or a changed file, `key.invalid`, `document.*`.
  public static func open(
    _ bytes: [UInt8], use: String, passphrase: Secret
  ) throws(SealingError) -> Secret {
    let text = bytes.last == 10 ? Array(bytes.dropLast()) : bytes
    var reader = try DocumentReader(JSON(canonical: text, bytesMax: bytesMax), at: "key file")
    try reader.version(1)
    guard try reader.string("kdf") == "argon2id" else { throw reader.invalid("kdf", "unknown") }
    guard try reader.string("use") == use else { throw reader.invalid("use", "expected \(use)") }
    let cost = PassphraseCost(
      operations: UInt64(try reader.integer("operations", 1...Int64(PassphraseCost.operationsMax))),
      memoryBytes: Int(
        try reader.integer("memoryBytes", 8192...Int64(PassphraseCost.memoryBytesMax))))
    guard let salt = Base64.decode(try reader.string("salt")), salt.count == 16,
      let nonce = Base64.decode(try reader.string("nonce")), nonce.count == 24,
      let sealed = Base64.decode(try reader.string("sealed", bytesMax: bytesMax)), sealed.count > 16
    else { throw SealingError(.keyInvalid, "the key file is damaged") }
    try reader.finish()
    guard let key = derive(passphrase, salt: salt, cost: cost) else {
      throw SealingError(.keyInvalid, "not enough memory to derive the key (\(cost.memoryBytes) bytes)")
    }
    let context = Array(use.utf8)
    return try Secret(count: sealed.count - 16) { (output) throws(SealingError) in
      let status = key.withBytes {
        crypto_aead_xchacha20poly1305_ietf_decrypt(
          output.bytePointer!, nil, nil, sealed, UInt64(sealed.count), context,
          UInt64(context.count), nonce, $0.bytePointer!)
      }
      guard status == 0 else {
        throw SealingError(.keyPassphrase, "the passphrase does not open this key file")
      }
    }
  }

  private static func derive(_ passphrase: Secret, salt: [UInt8], cost: PassphraseCost) -> Secret? {
    Sodium.ready()
    struct NoMemory: Error {}
    return try? Secret(count: 32) { output in
      let status = passphrase.withBytes { passphrase in
        crypto_pwhash(
          output.bytePointer!, 32, passphrase.baseAddress!.assumingMemoryBound(to: CChar.self),
          UInt64(passphrase.count), salt, cost.operations, cost.memoryBytes,
          crypto_pwhash_ALG_ARGON2ID13)
      }
      guard status == 0 else { throw NoMemory() }
    }
  }
}
