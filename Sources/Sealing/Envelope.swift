// DSSE 1.0 envelopes (secure-systems-lab/dsse): signatures over the pre-authentication encoding of type and payload.
//
//   {"payload":base64,"payloadType":"application/vnd.sallyport.KIND+json","signatures":[{"keyid":…,"sig":base64}]}
//   signed bytes: "DSSEv1" SP len(type) SP type SP len(payload) SP payload
//
// The verified payload bytes are handed on; nothing is parsed twice.

/// The kinds of signed document.
public enum DocumentKind: String, Sendable, CaseIterable {
  case manifest, card, receipt, head
  /// What an agency says of a partner that has no gateway, in place of a card.
  case description
  /// What a sender says of a package that such a partner collected: never called a receipt.
  case collected
  case takeBack = "take-back"
  case nonDelivery = "non-delivery"
  case acknowledgement
  /// The recipient of a package that waits at a hub asks its sender for the key.
  case keyRequest = "key-request"
  /// A party accepts, rejects, suspends, resumes or revokes an agreement.
  case agreementAct = "agreement-act"
  /// Asks a recipient to act on a withdrawal of consent, and its answer.
  case notice
  case noticeReceipt = "notice-receipt"

  public var payloadType: String { "application/vnd.sallyport.\(rawValue)+json" }
}

/// Keys that must have signed, at one instant, for one party.
public struct SignerPolicy: Sendable {
  let ed25519: [VerifyingKey]
  let mlDSA65: [VerifyingKey]

  /// Any one of the Ed25519 keys must have signed; and, when there are ML-DSA-65 keys, any one of those too.
  public init(_ keys: [VerifyingKey]) {
    ed25519 = keys.filter { $0.algorithm == .ed25519 }
    mlDSA65 = keys.filter { $0.algorithm == .mlDSA65 }
  }
}

/// A signed document as it is stored and sent. Its payload is not trusted before `verify`.
public struct Envelope: Equatable, Sendable {
  /// A manifest's 64 KiB in base64 and room for signatures.
  public static let bytesMax = 131_072
  public static let payloadBytesMax = 65536
  public static let signaturesMax = 8
  /// ML-DSA-65's 3309 bytes in base64.
  static let signatureBytesMax = 4412

  public let kind: DocumentKind
  public let bytes: [UInt8]
  private let payload: [UInt8]
  private let signatures: [(keyID: String, signature: [UInt8])]

  public static func == (a: Envelope, b: Envelope) -> Bool { a.bytes == b.bytes }

  /// Signs the canonical form of `document` with each key.
  public init(signing document: JSON, as kind: DocumentKind, with keys: [SigningKey]) {
    self.kind = kind
    payload = document.canonical
    precondition(payload.count <= Self.payloadBytesMax && (1...Self.signaturesMax).contains(keys.count))
    let message = Self.preAuthenticationEncoding(kind, payload)
    signatures = keys.map { ($0.verifying.id, $0.sign(message)) }
    bytes =
      JSON.object([
        "payload": .string(Base64.encode(payload)),
        "payloadType": .string(kind.payloadType),
        "signatures": .array(
          signatures.map {
            ["keyid": .string($0.keyID), "sig": .string(Base64.encode($0.signature))]
          }),
      ]).canonical
  }

  /// Parses an envelope of the expected kind.
  ///
  /// - Throws: `document.json`, `document.invalid`.
  public init(parsing bytes: [UInt8], as kind: DocumentKind) throws(SealingError) {
    var reader = try DocumentReader(
      JSON(canonical: bytes, bytesMax: Self.bytesMax), at: "envelope")
    guard try reader.string("payloadType") == kind.payloadType else {
      throw reader.invalid("payloadType", "expected \(kind.payloadType)")
    }
    guard let payload = Base64.decode(try reader.string("payload", bytesMax: Self.bytesMax)) else {
      throw reader.invalid("payload", "not canonical base64")
    }
    var signatures: [(String, [UInt8])] = []
    for var item in try reader.objects("signatures", countMax: Self.signaturesMax) {
      guard let signature = Base64.decode(try item.string("sig", bytesMax: Self.signatureBytesMax)) else {
        throw item.invalid("sig", "not canonical base64")
      }
      signatures.append((try item.string("keyid"), signature))
      try item.finish()
    }
    try reader.finish()
    self.kind = kind
    self.bytes = bytes
    self.payload = payload
    self.signatures = signatures
  }

  /// SHA-256 of the payload bytes: the document's identity, whoever signed it.
  public var payloadDigest: Digest { Digest(of: payload) }

  /// The document, once `policy`'s keys are seen to have signed it.
  ///
  /// - Throws: `document.signature`, one text for every cause; `document.json` when the signed payload is not canonical.
  public func verify(_ policy: SignerPolicy) throws(SealingError) -> JSON {
    let message = Self.preAuthenticationEncoding(kind, payload)
    func signed(by keys: [VerifyingKey]) -> Bool {
      keys.contains { key in
        signatures.contains { $0.keyID == key.id && key.verifies($0.signature, of: message) }
      }
    }
    guard signed(by: policy.ed25519), policy.mlDSA65.isEmpty || signed(by: policy.mlDSA65) else {
      throw SealingError(.documentSignature, "a required signature of this \(kind.rawValue) is missing or wrong")
    }
    return try unverified()
  }

  /// The document before any signature was checked, for reading who claims to have signed it.
  public func unverified() throws(SealingError) -> JSON {
    try JSON(canonical: payload, bytesMax: Self.payloadBytesMax)
  }

  private static func preAuthenticationEncoding(_ kind: DocumentKind, _ payload: [UInt8]) -> [UInt8] {
    let type = kind.payloadType
    return Array("DSSEv1 \(type.utf8.count) \(type) \(payload.count) ".utf8) + payload
  }
}
