// HKDF-SHA-256 (RFC 5869) on libsodium's HMAC; libsodium has no HKDF before 1.0.19.

import CSodium

enum HMAC {
  /// HMAC-SHA-256 of the concatenated parts, 32 bytes written to `output`.
  static func authenticate(
    key: UnsafeRawBufferPointer, _ parts: [UnsafeRawBufferPointer], into output: UnsafeMutableRawPointer
  ) {
    var state = crypto_auth_hmacsha256_state()
    crypto_auth_hmacsha256_init(&state, key.bytePointer!, key.count)
    for part in parts where part.count > 0 {
      crypto_auth_hmacsha256_update(&state, part.bytePointer!, UInt64(part.count))
    }
    crypto_auth_hmacsha256_final(&state, output.assumingMemoryBound(to: UInt8.self))
    sodium_memzero(&state, MemoryLayout.size(ofValue: state))
  }
}

/// HKDF-SHA-256 with a 32-byte output: extract, then one round of expand.
func deriveKey(from input: Secret, salt: [UInt8], info: String) -> Secret {
  Sodium.ready()
  // RFC 5869 §2.2: no salt means one of zeros.
  let salt = salt.isEmpty ? [UInt8](repeating: 0, count: 32) : salt
  let pseudorandom = Secret(count: 32) { output in
    salt.withUnsafeBytes { salt in
      input.withBytes { HMAC.authenticate(key: salt, [$0], into: output.baseAddress!) }
    }
  }
  let expand = Array(info.utf8) + [1]
  return Secret(count: 32) { output in
    expand.withUnsafeBytes { expand in
      pseudorandom.withBytes { HMAC.authenticate(key: $0, [expand], into: output.baseAddress!) }
    }
  }
}

/// HMAC-SHA-256 (RFC 2104) of a digest, under a key that is derived from `master` for one use alone.
package func authenticationCode(of digest: Digest, master: Secret, use: String) -> Digest {
  let code = Secret(count: Digest.byteCount) { output in
    digest.bytes.withUnsafeBytes { digest in
      deriveKey(from: master, salt: [], info: use).withBytes {
        HMAC.authenticate(key: $0, [digest], into: output.baseAddress!)
      }
    }
  }
  return code.withBytes { Digest(Array($0)) }
}

extension UnsafeRawBufferPointer {
  var bytePointer: UnsafePointer<UInt8>? { baseAddress?.assumingMemoryBound(to: UInt8.self) }
}

extension UnsafeMutableRawBufferPointer {
  var bytePointer: UnsafeMutablePointer<UInt8>? { baseAddress?.assumingMemoryBound(to: UInt8.self) }
}
