// Our TLS key and the certificate around it. Partners pin the key; names, dates and authorities in certificates say nothing.

import Crypto
import Foundation
import NIOSSL
import Sealing
import SwiftASN1
import X509

/// A P-256 key with a self-signed certificate that wraps it for TLS.
package struct TLSIdentity: Sendable {
  /// SHA-256 of the DER SubjectPublicKeyInfo (RFC 7469 §2.4).
  package let pin: Sealing.Digest
  /// The certificate, PEM.
  package let certificatePEM: String
  /// The private key, PKCS#8 or SEC 1 DER, in guarded memory.
  let keyDER: Secret
  private let certificateDER: [UInt8]

  /// A fresh raw P-256 scalar, 32 bytes, to be stored wrapped.
  package static func generateKey() -> Secret {
    var raw = [UInt8](P256.Signing.PrivateKey().rawRepresentation)
    return Secret(wiping: &raw)
  }

  /// - Parameters:
  ///   - key: a raw P-256 scalar, 32 bytes.
  ///   - name: goes into the certificate for people who look at it.
  /// - Throws: a crypto error for a scalar outside the curve's order.
  package init(key: Secret, name: String) throws {
    let signing = try key.withBytes { try P256.Signing.PrivateKey(rawRepresentation: $0) }
    let subject = try DistinguishedName { CommonName(name) }
    let certificate = try Certificate(
      version: .v3, serialNumber: Certificate.SerialNumber(), publicKey: .init(signing.publicKey),
      notValidBefore: Date(timeIntervalSince1970: 0),
      // RFC 5280 §4.1.2.5: the value for "no well-defined expiration date". The card carries the key's real dates.
      notValidAfter: Date(timeIntervalSince1970: 253_402_300_799),
      issuer: subject, subject: subject, signatureAlgorithm: .ecdsaWithSHA256,
      extensions: try Certificate.Extensions {
        SubjectAlternativeNames([.dnsName(name)])
      },
      issuerPrivateKey: .init(signing))
    var serializer = DER.Serializer()
    try certificate.serialize(into: &serializer)
    certificateDER = serializer.serializedBytes
    certificatePEM = try certificate.serializeAsPEM().pemString
    var der = [UInt8](signing.derRepresentation)
    keyDER = Secret(wiping: &der)
    pin = Sealing.Digest(of: [UInt8](signing.publicKey.derRepresentation))
  }

  /// TLS 1.3 alone, a client certificate required, its chain judged by our own callback.
  func serverContext() throws -> NIOSSLContext {
    let key = try keyDER.withBytes { try NIOSSLPrivateKey(bytes: Array($0), format: .der) }
    var configuration = TLSConfiguration.makeServerConfiguration(
      certificateChain: [.certificate(try NIOSSLCertificate(bytes: certificateDER, format: .der))],
      privateKey: .privateKey(key))
    configuration.minimumTLSVersion = .tlsv13
    configuration.certificateVerification = .noHostnameVerification
    configuration.applicationProtocols = ["http/1.1"]
    return try NIOSSLContext(configuration: configuration)
  }

  /// The pin of the first certificate in a PEM file.
  ///
  /// - Throws: `PEMError` when there is none, or its key is of no kind that TLS 1.3 takes here.
  package static func pin(ofPEM bytes: [UInt8]) throws(PEMError) -> Sealing.Digest {
    do {
      guard let certificate = try NIOSSLCertificate.fromPEMBytes(bytes).first else { throw PEMError() }
      return try pin(of: certificate)
    } catch {
      throw PEMError()
    }
  }

  package struct PEMError: Error, CustomStringConvertible {
    package var description: String { "not a certificate in PEM (-----BEGIN CERTIFICATE-----)" }
  }

  /// The pin of a peer's certificate.
  static func pin(of certificate: NIOSSLCertificate) throws -> Sealing.Digest {
    Sealing.Digest(of: try certificate.extractPublicKey().toSPKIBytes())
  }
}
