// The chunk cipher: ChaCha20-Poly1305 (RFC 8439) in place, by libsodium or by OpenSSL, byte for byte the same.
//
// The nonce of chunk n is n as 11 big-endian bytes, then 1 for the last chunk, else 0 (C2SP age.md, STREAM).

import CKernels
import COpenSSL
import CSodium

/// The two implementations. OpenSSL's is about three times as fast where the processor has AVX-512.
public enum CipherEngine: String, Sendable, CaseIterable {
  case openssl
  case sodium
}

/// Seals and opens single chunks with one key. One per thread: not Sendable, owns its C context.
struct ChunkCipher: ~Copyable {
  private let engine: CipherEngine
  private let key: Secret
  private let encrypting: OpaquePointer?
  private let decrypting: OpaquePointer?

  init(key: Secret, engine: CipherEngine) {
    Sodium.ready()
    precondition(key.count == 32)
    self.key = key
    self.engine = engine
    switch engine {
    case .sodium: (encrypting, decrypting) = (nil, nil)
    case .openssl:
      encrypting = EVP_CIPHER_CTX_new()
      decrypting = EVP_CIPHER_CTX_new()
      let ready = key.withBytes { key in
        EVP_EncryptInit_ex(encrypting, EVP_chacha20_poly1305(), nil, key.bytePointer, nil) == 1
          && EVP_DecryptInit_ex(decrypting, EVP_chacha20_poly1305(), nil, key.bytePointer, nil) == 1
      }
      precondition(ready, "OpenSSL has no ChaCha20-Poly1305")
    }
  }

  deinit {
    // OpenSSL wipes the key schedule when it frees a context.
    EVP_CIPHER_CTX_free(encrypting)
    EVP_CIPHER_CTX_free(decrypting)
  }

  /// Seals `plainBytes` at `chunk` in place and writes the 16-byte tag after them.
  func seal(_ chunk: UnsafeMutableRawPointer, plainBytes: Int, index: Int64, isLast: Bool) {
    let bytes = chunk.assumingMemoryBound(to: UInt8.self)
    withNonce(index, isLast) { nonce in
      switch engine {
      case .sodium:
        key.withBytes {
          _ = crypto_aead_chacha20poly1305_ietf_encrypt(
            bytes, nil, bytes, UInt64(plainBytes), nil, 0, nil, nonce, $0.bytePointer!)
        }
      case .openssl:
        var written: Int32 = 0
        let done =
          EVP_EncryptInit_ex(encrypting, nil, nil, nil, nonce) == 1
          && EVP_EncryptUpdate(encrypting, bytes, &written, bytes, Int32(plainBytes)) == 1
          && EVP_EncryptFinal_ex(encrypting, bytes + plainBytes, &written) == 1
          && EVP_CIPHER_CTX_ctrl(encrypting, EVP_CTRL_AEAD_GET_TAG, 16, bytes + plainBytes) == 1
        sp_leave_vectors()
        precondition(done, "OpenSSL failed to seal a chunk")
      }
    }
  }

  /// Opens a chunk in place; false, with the plain bytes wiped, when it does not authenticate.
  func open(_ chunk: UnsafeMutableRawPointer, plainBytes: Int, index: Int64, isLast: Bool) -> Bool {
    let bytes = chunk.assumingMemoryBound(to: UInt8.self)
    let authentic = withNonce(index, isLast) { nonce in
      switch engine {
      case .sodium:
        key.withBytes {
          crypto_aead_chacha20poly1305_ietf_decrypt(
            bytes, nil, nil, bytes, UInt64(plainBytes + BodyGeometry.tagBytes), nil, 0, nonce,
            $0.bytePointer!) == 0
        }
      case .openssl:
        openOpenSSL(bytes, plainBytes, nonce)
      }
    }
    // OpenSSL decrypts before it checks the tag: nothing unverified stays behind.
    if !authentic { sodium_memzero(bytes, plainBytes) }
    return authentic
  }

  private func openOpenSSL(
    _ bytes: UnsafeMutablePointer<UInt8>, _ plainBytes: Int, _ nonce: UnsafePointer<UInt8>
  ) -> Bool {
    defer { sp_leave_vectors() }
    var written: Int32 = 0
    return EVP_DecryptInit_ex(decrypting, nil, nil, nil, nonce) == 1
      && EVP_CIPHER_CTX_ctrl(decrypting, EVP_CTRL_AEAD_SET_TAG, 16, bytes + plainBytes) == 1
      && EVP_DecryptUpdate(decrypting, bytes, &written, bytes, Int32(plainBytes)) == 1
      && EVP_DecryptFinal_ex(decrypting, bytes + plainBytes, &written) == 1
  }

  private func withNonce<Result>(
    _ index: Int64, _ isLast: Bool, _ body: (UnsafePointer<UInt8>) -> Result
  ) -> Result {
    withUnsafeTemporaryAllocation(of: UInt8.self, capacity: 12) { nonce in
      nonce.initialize(repeating: 0)
      for place in 0..<8 { nonce[10 - place] = UInt8(truncatingIfNeeded: index >> Int64(8 * place)) }
      nonce[11] = isLast ? 1 : 0
      return body(UnsafePointer(nonce.baseAddress!))
    }
  }
}
