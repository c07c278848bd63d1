// Committed vectors: each a JSON file with an expected outcome. `VECTORS_WRITE=1 swift test --filter VectorTests` adds missing ones.

import Foundation
import Testing

@testable import Sealing

/// One vector. `expect` is "success" or the refusal's code; `payload` is the hexadecimal SHA-256 of what opens.
private struct Vector: Codable {
  var comment: String
  var expect: String
  var file: String
  var identity: String?
  var binding: String?
  var payload: String?
  /// Instead of an age file: a document's canonical text and its kind, or an envelope with its verifying key.
  var document: String?
  var signedBy: String?
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
        "document.json", "document.invalid", "document.signature",
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
    let bytes = Array(Data(base64Encoded: vector.file)!)
    if let kind = vector.document {
      if let signer = vector.signedBy {
        let key = try VerifyingKey(algorithm: .ed25519, bytes: Hex.decode(signer)!)
        _ = try Envelope(parsing: bytes, as: DocumentKind(rawValue: kind)!).verify(SignerPolicy([key]))
        return nil
      }
      let document = try JSON(canonical: bytes, bytesMax: 65536)
      switch kind {
      case "manifest": _ = try Manifest(document)
      case "card": _ = try Card(document)
      case "receipt": _ = try Receipt(document)
      default: break
      }
      return nil
    }
    let key = try PackageKey(parsing: bytes)
    let binding = vector.binding == nil ? nil : Sample.manifest().binding
    let identity = try Identity(Array(vector.identity!.utf8))
    let plain = try InMemory.open(
      key: key, body: Array(bytes.dropFirst(key.bytes.count)), with: [identity], binding: binding)
    return Digest(of: plain).hex
  }

  /// Makes the vectors that are missing; existing ones are never changed.
  private static func write() throws {
    func save(_ name: String, _ vector: Vector) throws {
      let target = folder.appendingPathComponent("\(name).json")
      guard !FileManager.default.fileExists(atPath: target.path) else { return }
      let encoder = JSONEncoder()
      encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
      try encoder.encode(vector).write(to: target)
    }
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
    }
    let key = try SigningKey(generating: .ed25519)
    let envelope = Envelope(signing: Sample.manifest().document, as: .manifest, with: [key])
    let signer = Hex.encode(key.verifying.bytes)
    func document(
      _ name: String, _ comment: String, _ expect: String, _ bytes: [UInt8], _ kind: String, signedBy: String? = nil
    ) throws {
      try save(
        "document-\(name)",
        Vector(
          comment: comment, expect: expect, file: Data(bytes).base64EncodedString(), document: kind, signedBy: signedBy)
      )
    }
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
    try document("envelope", "a signed manifest", "success", envelope.bytes, "manifest", signedBy: signer)
    try document(
      "envelope-stranger", "signed by another key", "document.signature", envelope.bytes, "manifest",
      signedBy: Hex.encode(try SigningKey(generating: .ed25519).verifying.bytes))
    try document(
      "envelope-kind", "another payload type", "document.invalid", envelope.bytes, "receipt", signedBy: signer)
  }
}
