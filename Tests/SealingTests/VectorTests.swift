// Committed vectors: each a JSON file with an expected outcome. `VECTORS_WRITE=1 swift test --filter VectorTests` adds missing
// ones. Those named "peer" were made by other implementations, which their comments name, and opened ours then.

import Foundation
import Testing

@testable import Sealing

/// One vector. `expect` is "success" or the refusal's code; `payload` is the hexadecimal SHA-256 of what opens.
private struct Vector: Codable {
  var comment: String
  var expect: String
  /// Base64; absent where `chunksOf` names the vector whose file it is, with the body's chunks in the order `chunks`.
  var file: String?
  var chunksOf: String?
  var chunks: [Int]?
  var identity: String?
  var binding: String?
  var payload: String?
  /// The tree root that the body must have.
  var root: String?
  /// Instead of an age file: a document's canonical text and its kind, or an envelope with its verifying keys.
  var document: String?
  /// An Ed25519 key, and an ML-DSA-65 key that must have signed too.
  var signedBy: String?
  var alsoSignedBy: String?
}

@Suite struct VectorTests {
  static let folder = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent("Vectors")
  static var names: [String] {
    let found = try? FileManager.default.contentsOfDirectory(atPath: folder.path)
    return (found ?? []).filter { $0.hasSuffix(".json") }.sorted()
  }

  @Test func thereAreVectorsOfEveryOutcome() throws {
    if ProcessInfo.processInfo.environment["VECTORS_WRITE"] != nil { try Self.write() }
    let outcomes = try Set(Self.names.map { try Self.load($0).expect })
    #expect(
      outcomes.isSuperset(of: [
        "success", "header.malformed", "header.no-match", "header.mac", "header.binding", "body.chunk", "body.length",
        "body.root", "document.json", "document.invalid", "document.signature",
      ]))
  }

  @Test(arguments: names) func aVectorHasItsOutcome(name: String) throws {
    let vector = try Self.load(name)
    var outcome = "success"
    var payload: String?
    do {
      payload = try Self.evaluate(vector)
    } catch let error as SealingError {
      outcome = error.code.rawValue
    }
    #expect(outcome == vector.expect, "\(name): \(vector.comment)")
    #expect(payload == vector.payload, "\(name)")
  }

  private static func load(_ name: String) throws -> Vector {
    try JSONDecoder().decode(Vector.self, from: Data(contentsOf: folder.appendingPathComponent(name)))
  }

  private static func evaluate(_ vector: Vector) throws -> String? {
    let bytes = try file(of: vector)
    if let kind = vector.document {
      if let signer = vector.signedBy {
        var keys = [try VerifyingKey(algorithm: .ed25519, bytes: Hex.decode(signer)!)]
        if let other = vector.alsoSignedBy {
          keys.append(try VerifyingKey(algorithm: .mlDSA65, bytes: Hex.decode(other)!))
        }
        _ = try Envelope(parsing: bytes, as: DocumentKind(rawValue: kind)!).verify(SignerPolicy(keys))
        return nil
      }
      if kind == "signed-card" {
        _ = try SignedCard(selfSigned: bytes, at: Sample.instant)
        return nil
      }
      let document = try JSON(canonical: bytes, bytesMax: 65536)
      switch kind {
      case "manifest": _ = try Manifest(document)
      case "card": _ = try Card(document)
      case "receipt": _ = try Receipt(document)
      case "take-back": _ = try TakeBack(document)
      case "key-request": _ = try KeyRequest(document)
      default: preconditionFailure("a vector of an unknown kind: \(kind)")
      }
      return nil
    }
    let key = try PackageKey(parsing: bytes)
    let binding = vector.binding == nil ? nil : Sample.manifest().binding
    let identity = try Identity(Array(vector.identity!.utf8))
    let body = Array(bytes.dropFirst(key.bytes.count))
    if let root = vector.root, root != MerkleTree.root(InMemory.chunks(of: body).map(MerkleTree.leaf)).hex {
      throw SealingError(.bodyRoot, "another root")
    }
    let plain = try InMemory.open(key: key, body: body, with: [identity], binding: binding)
    return Digest(of: plain).hex
  }

  private static func file(of vector: Vector) throws -> [UInt8] {
    guard let base = vector.chunksOf else { return Array(Data(base64Encoded: vector.file!)!) }
    let whole = Array(Data(base64Encoded: try load("\(base).json").file!)!)
    let key = try PackageKey(parsing: whole).bytes
    let body = InMemory.chunks(of: Array(whole.dropFirst(key.count)))
    return vector.chunks!.reduce(into: key) { $0 += body[$1] }
  }

  /// Existing vectors are never changed.
  private static func save(_ name: String, _ vector: Vector) throws {
    let target = folder.appendingPathComponent("\(name).json")
    guard !FileManager.default.fileExists(atPath: target.path) else { return }
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
    try encoder.encode(vector).write(to: target)
  }

  /// Makes the vectors that are missing.
  private static func write() throws {
    for kind in RecipientKind.allCases {
      let identity = try Identity(generating: kind)
      let text = identity.secretText.withBytes { String(decoding: $0, as: UTF8.self) }
      func age(
        _ name: String, _ comment: String, _ expect: String, _ file: [UInt8], binding: String? = nil,
        payload: [UInt8]? = nil, identity other: String? = nil
      ) throws {
        try save(
          "\(kind.rawValue)-\(name)",
          Vector(
            comment: comment, expect: expect, file: Data(file).base64EncodedString(), identity: other ?? text,
            binding: binding, payload: payload.map { Digest(of: $0).hex }))
      }
      let plain = Array("Sallyport".utf8)
      let bound = try InMemory.seal(plain, to: [identity.recipient], binding: Sample.manifest().binding)
      let whole = bound.key.bytes + bound.body
      try age("bound", "a gateway's package", "success", whole, binding: "sample", payload: plain)
      try age(
        "bound-unasked", "the binding stanza is skipped when nobody asks for it", "success", whole, payload: plain)
      let unbound = try InMemory.seal(plain, to: [identity.recipient])
      try age(
        "unbound", "a stock age file has no binding", "header.binding", unbound.key.bytes + unbound.body,
        binding: "sample")
      let empty = try InMemory.seal([], to: [identity.recipient])
      try age("empty", "an empty payload is one empty chunk", "success", empty.key.bytes + empty.body, payload: [])
      let stranger = try Identity(generating: kind).secretText.withBytes { String(decoding: $0, as: UTF8.self) }
      try age("stranger", "another identity", "header.no-match", whole, identity: stranger)
      var changed = whole
      let macPlace = bound.key.header.bytes.count - 10
      changed[macPlace] = changed[macPlace] == 65 ? 66 : 65
      try age("mac", "a changed MAC", "header.mac", changed)
      changed = whole
      changed[whole.count - 1] ^= 1
      try age("tag", "a changed tag", "body.chunk", changed)
      try age("cut-body", "the body is cut", "body.chunk", Array(whole.dropLast()))
      try age("no-body", "the body is missing", "body.length", bound.key.bytes)
      try age("cut-header", "the header is cut", "header.malformed", Array(whole.prefix(100)))
      try age(
        "crlf", "CRLF line ends", "header.malformed",
        Array(String(decoding: bound.key.header.bytes, as: UTF8.self).replacing("\n", with: "\r\n").utf8))
      try save(
        "\(kind.rawValue)-root",
        Vector(
          comment: "another body than the one that was signed", expect: "body.root",
          file: Data(whole).base64EncodedString(), identity: text, root: Digest(of: plain).hex))
    }
    try writeChunks()
    try writeSigned()
    let key = try SigningKey(generating: .ed25519)
    let envelope = Envelope(signing: Sample.manifest().document, as: .manifest, with: [key])
    let text = String(decoding: Sample.manifest().document.canonical, as: UTF8.self)
    try document("manifest", "a manifest", "success", Array(text.utf8), "manifest")
    try document(
      "manifest-space", "white space is not canonical", "document.json", Array(text.replacing(":", with: ": ").utf8),
      "manifest")
    try document(
      "manifest-duplicate", "a name twice", "document.json",
      Array(text.replacing("{\"agreement\"", with: "{\"agreement\":1,\"agreement\"").utf8), "manifest")
    try document(
      "manifest-path", "a path for a name", "document.invalid",
      Array(text.replacing("deaths.csv", with: "../deaths.csv").utf8), "manifest")
    try document(
      "manifest-unknown", "an unknown member", "document.invalid",
      Array(text.replacing("\"version\":1}", with: "\"version\":1,\"x\":1}").utf8), "manifest")
    try document("envelope", "a signed manifest", "success", envelope.bytes, "manifest", by: [key])
    try document(
      "envelope-stranger", "signed by another key", "document.signature", envelope.bytes, "manifest",
      by: [SigningKey(generating: .ed25519)])
    try document(
      "envelope-kind", "another payload type", "document.invalid", envelope.bytes, "receipt", by: [key])
  }

  /// - Parameter keys: that must have signed it; without any, it is no envelope.
  private static func document(
    _ name: String, _ comment: String, _ expect: String, _ bytes: [UInt8], _ kind: String, by keys: [SigningKey] = []
  ) throws {
    func hex(_ algorithm: SigningAlgorithm) -> String? {
      keys.first { $0.verifying.algorithm == algorithm }.map { Hex.encode($0.verifying.bytes) }
    }
    try save(
      "document-\(name)",
      Vector(
        comment: comment, expect: expect, file: Data(bytes).base64EncodedString(), document: kind,
        signedBy: hex(.ed25519), alsoSignedBy: hex(.mlDSA65)))
  }

  /// Chunks of one body out of their order.
  private static func writeChunks() throws {
    let identity = try Identity(generating: .x25519)
    let text = identity.secretText.withBytes { String(decoding: $0, as: UTF8.self) }
    let plain = [UInt8](repeating: 0, count: 2 * 65536 + 1)
    let sealed = try InMemory.seal(plain, to: [identity.recipient])
    try save(
      "x25519-chunks",
      Vector(
        comment: "three chunks", expect: "success", file: Data(sealed.key.bytes + sealed.body).base64EncodedString(),
        identity: text, payload: Digest(of: plain).hex, root: sealed.root.hex))
    let whole = try load("x25519-chunks.json")
    for (name, comment, order) in [
      ("swapped", "two chunks in each other's place", [1, 0, 2]), ("repeated", "a chunk twice", [0, 0, 1, 2]),
      ("missing", "a chunk is missing", [0, 2]), ("unended", "the last chunk is missing", [0, 1]),
      ("extended", "the last chunk twice", [0, 1, 2, 2]),
    ] {
      try save(
        "x25519-chunks-\(name)",
        Vector(
          comment: comment, expect: "body.chunk", chunksOf: "x25519-chunks", chunks: order, identity: whole.identity))
    }
  }

  /// Signed documents of every kind that crosses the wire, and one signed in both algorithms.
  private static func writeSigned() throws {
    let classical = try SigningKey(generating: .ed25519)
    let postQuantum = try SigningKey(generating: .mlDSA65)
    let both = [classical, postQuantum]
    let manifest = Sample.manifest().document
    let signed = Envelope(signing: manifest, as: .manifest, with: both).bytes
    try document("hybrid", "signed in both algorithms", "success", signed, "manifest", by: both)
    try document(
      "hybrid-half", "the card has an ML-DSA-65 key that did not sign", "document.signature",
      Envelope(signing: manifest, as: .manifest, with: [classical]).bytes, "manifest", by: both)
    try document(
      "hybrid-stranger", "another ML-DSA-65 key signed", "document.signature",
      Envelope(signing: manifest, as: .manifest, with: [classical, SigningKey(generating: .mlDSA65)]).bytes,
      "manifest", by: both)

    let recipients = try RecipientKind.allCases.map { try Identity(generating: $0).recipient }
    let card = Sample.card(signing: both, recipients: recipients)
    try document(
      "card", "a card signed by its own keys", "success", SignedCard(signing: card, with: both).envelope.bytes,
      "signed-card")
    try document(
      "card-half", "a card that not all its algorithms signed", "document.signature",
      SignedCard(signing: card, with: [classical]).envelope.bytes, "signed-card")
    try document(
      "card-revoked", "a card whose key is revoked", "document.signature",
      SignedCard(
        signing: Sample.card(signing: [classical], recipients: recipients, state: .revoked), with: [classical]
      ).envelope.bytes, "signed-card")

    let receipt = Receipt(
      kind: .delivered, id: Sample.id, sender: Sample.sender, recipient: Sample.recipient, manifest: Digest(of: [1]),
      code: "ok", at: Sample.instant, previous: Digest(of: [2]),
      head: LedgerHead(epoch: "e1", size: 5, root: Digest(of: [5]))
    ).document
    let takeBack = TakeBack(
      id: Sample.id, sender: Sample.sender, recipient: Sample.recipient, manifest: Digest(of: [1]),
      reason: "cancelled", at: Sample.instant
    ).document
    let request = KeyRequest(
      id: Sample.id, sender: Sample.sender, recipient: Sample.recipient, manifest: Digest(of: [1]), at: Sample.instant
    ).document
    for (kind, body) in [(DocumentKind.receipt, receipt), (.takeBack, takeBack), (.keyRequest, request)] {
      let name = kind.rawValue
      try document(name, "its canonical text", "success", body.canonical, name)
      try document(
        "\(name)-envelope", "signed", "success", Envelope(signing: body, as: kind, with: [classical]).bytes, name,
        by: [classical])
      let text = String(decoding: body.canonical, as: UTF8.self)
      try document(
        "\(name)-unknown", "an unknown member", "document.invalid",
        Array((text.dropLast() + ",\"x\":1}").utf8), name)
    }
    let text = String(decoding: receipt.canonical, as: UTF8.self)
    try document(
      "receipt-kind", "a kind that does not exist", "document.invalid",
      Array(text.replacing("\"delivered\"", with: "\"lost\"").utf8), "receipt")
  }
}
