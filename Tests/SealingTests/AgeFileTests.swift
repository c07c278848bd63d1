// The age v1 format, both directions, every refusal.

import Foundation
import TestSupport
import Testing

@testable import Sealing

@Suite struct AgeFileTests {
  static let sizes = [
    0, 1, 65535, 65536, 65537, 2 * 65536, BodyGeometry.segmentBytes - 1, BodyGeometry.segmentBytes,
    BodyGeometry.segmentBytes + 1, 3 * BodyGeometry.segmentBytes + 4097,
  ]

  @Test(arguments: sizes, RecipientKind.allCases)
  func whatIsSealedOpensToTheSameBytes(size: Int, kind: RecipientKind) throws {
    var random = SeededGenerator(seed: UInt64(size))
    let plain = random.bytes(size)
    let identity = try Identity(generating: kind)
    let sealed = try InMemory.seal(plain, to: [identity.recipient])
    #expect(try InMemory.open(key: sealed.key, body: sealed.body, with: [identity]) == plain)
  }

  @Test func bothCiphersSealTheSameBytes() throws {
    let key = Secret(random: 32)
    var bodies: [[UInt8]] = []
    for engine in CipherEngine.allCases {
      let cipher = SegmentCipher(payloadKey: key, engine: engine)
      let buffer = SegmentBuffer()
      buffer.bytes.initializeMemory(as: UInt8.self, repeating: 7)
      let sealed = cipher.seal(buffer, segment: 5, plainBytes: 200_000, isLast: true)
      bodies.append(Array(buffer.bytes[..<sealed.sealedBytes]))
    }
    #expect(bodies[0] == bodies[1])
    #expect(throws: Never.self) { try CipherEngine.selfTest() }
  }

  @Test func eachOfSeveralRecipientsOpens() throws {
    let identities = try (0..<3).map { _ in try Identity(generating: .x25519) }
    let sealed = try InMemory.seal([1, 2, 3], to: identities.map(\.recipient))
    for identity in identities {
      #expect(try InMemory.open(key: sealed.key, body: sealed.body, with: [identity]) == [1, 2, 3])
    }
  }

  @Test func classicalAndPostQuantumNeverMixInOneFile() throws {
    let recipients = try RecipientKind.allCases.map { try Identity(generating: $0).recipient }
    #expect(errorCode { try PackageKey.create(for: recipients) } == .keyInvalid)
  }

  /// C2SP age.md, "The MLKEM768-X25519 hybrid post-quantum recipient type": the example's recipient, by its SHA-256.
  @Test func theHybridRecipientOfTheSpecificationsExampleIsFound() throws {
    let text = "AGE-SECRET-KEY-PQ-1XX76JRALNLXDMEW0CRK45QMCCH4X06SE84UN3VPM33W6HWDX0H3SK3ZQFR"
    let recipient = try Identity(Array(text.utf8)).recipient.description
    #expect(recipient.hasPrefix("age1pq1x34nzsvr0rxjsgdn8zgyhfe8j7ceq5r9rdelkjuh3y235jzxshfg8"))
    #expect(Digest(of: Array(recipient.utf8)).hex == "a091dd7e0ee9d62b75173dcc98441a0424baa941e66a8776e570a4ae60ff61ea")
  }

  @Test func anotherIdentityFindsNoMatch() throws {
    for kind in RecipientKind.allCases {
      let sealed = try InMemory.seal([1], to: [Identity(generating: kind).recipient])
      let other = try Identity(generating: kind)
      #expect(errorCode { try sealed.key.open(with: [other]) } == .headerNoMatch)
    }
  }

  @Test func everyFlippedBitOfASmallPackageIsRefused() throws {
    let identity = try Identity(generating: .x25519)
    let sealed = try InMemory.seal(Array("a record".utf8), to: [identity.recipient])
    let whole = sealed.key.bytes + sealed.body
    for bit in 0..<(whole.count * 8) {
      var changed = whole
      changed[bit / 8] ^= 1 << UInt8(bit % 8)
      #expect(throws: SealingError.self, "bit \(bit)") {
        let key = try PackageKey(parsing: changed)
        _ = try InMemory.open(
          key: key, body: Array(changed.dropFirst(key.bytes.count)), with: [identity])
      }
    }
  }

  @Test func everyTruncationIsRefused() throws {
    let identity = try Identity(generating: .x25519)
    let sealed = try InMemory.seal([UInt8](repeating: 1, count: 70000), to: [identity.recipient])
    let whole = sealed.key.bytes + sealed.body
    let border = sealed.key.bytes.count
    let cuts = Array(0..<(border + 40)) + [border + 65551, border + 65552, border + 65553, whole.count - 1]
    for cut in cuts {
      #expect(throws: SealingError.self, "cut at \(cut)") {
        let key = try PackageKey(parsing: whole[..<cut])
        _ = try InMemory.open(
          key: key, body: Array(whole[..<cut].dropFirst(key.bytes.count)), with: [identity])
      }
    }
  }

  @Test func reorderedDuplicatedAndExtendedBodiesAreRefused() throws {
    let identity = try Identity(generating: .x25519)
    var random = SeededGenerator(seed: 3)
    let sealed = try InMemory.seal(random.bytes(3 * 65536), to: [identity.recipient])
    let chunks = InMemory.chunks(of: sealed.body)
    let bad: [[[UInt8]]] = [
      [chunks[1], chunks[0], chunks[2]], [chunks[0], chunks[0], chunks[2]], [chunks[0], chunks[2]],
      [chunks[0], chunks[1]], chunks + [chunks[2]], chunks + [[0]],
      chunks + [[UInt8](repeating: 0, count: 16)],
    ]
    for body in bad {
      let code = errorCode {
        try InMemory.open(key: sealed.key, body: body.flatMap { $0 }, with: [identity])
      }
      #expect(code == .bodyChunk || code == .bodyLength)
    }
  }

  @Test(arguments: CipherEngine.allCases)
  func noPlaintextOfAnUnverifiedChunkStaysBehind(engine: CipherEngine) throws {
    let key = Secret(random: 32)
    let cipher = SegmentCipher(payloadKey: key, engine: engine)
    let buffer = SegmentBuffer()
    buffer.bytes.initializeMemory(as: UInt8.self, repeating: 0xaa)
    let sealed = cipher.seal(buffer, segment: 0, plainBytes: 150_000, isLast: true)
    buffer.bytes[sealed.sealedBytes - 1] ^= 1
    #expect(
      errorCode { try cipher.open(buffer, segment: 0, sealedBytes: sealed.sealedBytes, isLast: true) }
        == .bodyChunk)
    #expect(buffer.bytes.allSatisfy { $0 == 0 })
  }

  @Test func theBindingIsRequiredAndMustMatch() throws {
    let identity = try Identity(generating: .x25519)
    let binding = Sample.manifest().binding
    let bound = try InMemory.seal([1], to: [identity.recipient], binding: binding)
    let unbound = try InMemory.seal([1], to: [identity.recipient])
    let other = Sample.manifest(id: TransferID()).binding
    #expect(try InMemory.open(key: bound.key, body: bound.body, with: [identity], binding: binding) == [1])
    #expect(errorCode { try bound.key.open(with: [identity], binding: other) } == .headerBinding)
    #expect(errorCode { try unbound.key.open(with: [identity], binding: binding) } == .headerBinding)
  }

  @Test func aPassphraseStanzaIsNotOpened() throws {
    let identity = try Identity(generating: .x25519)
    let fileKey = Secret(random: 16)
    let header = Header(
      stanzas: [Stanza(type: "scrypt", arguments: ["c2FsdHNhbHRzYWx0c2Fs", "18"], body: [1])],
      fileKey: fileKey)
    let key = try PackageKey(parsing: header.bytes + [UInt8](repeating: 0, count: 16))
    #expect(errorCode { try key.open(with: [identity]) } == .headerNoMatch)
  }

  static let badHeaders: [(String, String)] = [
    ("empty", ""),
    ("another version", "age-encryption.org/v2\n-> a\n\n--- \(String(repeating: "A", count: 43))\n"),
    ("CRLF", "age-encryption.org/v1\r\n-> a\n\n--- \(String(repeating: "A", count: 43))\n"),
    ("no stanza", "age-encryption.org/v1\n--- \(String(repeating: "A", count: 43))\n"),
    ("empty argument", "age-encryption.org/v1\n->  a\n\n--- \(String(repeating: "A", count: 43))\n"),
    ("trailing space", "age-encryption.org/v1\n-> a \n\n--- \(String(repeating: "A", count: 43))\n"),
    (
      "no final short line",
      "age-encryption.org/v1\n-> a\n\(String(repeating: "A", count: 64))\n--- \(String(repeating: "A", count: 43))\n"
    ),
    (
      "a long line",
      "age-encryption.org/v1\n-> a\n\(String(repeating: "A", count: 65))\n\n--- \(String(repeating: "A", count: 43))\n"
    ),
    ("padding", "age-encryption.org/v1\n-> a\nAA==\n--- \(String(repeating: "A", count: 43))\n"),
    ("not canonical", "age-encryption.org/v1\n-> a\nAB\n--- \(String(repeating: "A", count: 43))\n"),
    ("MAC cut", "age-encryption.org/v1\n-> a\n\n--- \(String(repeating: "A", count: 42))\n"),
    ("MAC not canonical", "age-encryption.org/v1\n-> a\n\n--- \(String(repeating: "A", count: 42))B\n"),
    ("MAC without LF", "age-encryption.org/v1\n-> a\n\n--- \(String(repeating: "A", count: 43))"),
    ("NUL argument", "age-encryption.org/v1\n-> a\0b\n\n--- \(String(repeating: "A", count: 43))\n"),
  ]

  @Test(arguments: badHeaders)
  func aBadHeaderIsRefused(name: String, text: String) {
    #expect(errorCode { try Header(parsing: Array(text.utf8)) } == .headerMalformed, "\(name)")
  }

  @Test func headerLimitsHoldAtBelowAndAbove() throws {
    let fileKey = Secret(random: 16)
    for count in [1, Header.stanzasMax] {
      let header = Header(
        stanzas: (0..<count).map { Stanza(type: "t\($0)") }, fileKey: fileKey)
      #expect(try Header(parsing: header.bytes) == header)
    }
    let text = "age-encryption.org/v1\n" + String(repeating: "-> t\n\n", count: Header.stanzasMax + 1)
    #expect(
      errorCode { try Header(parsing: Array("\(text)--- \(String(repeating: "A", count: 43))\n".utf8)) }
        == .headerMalformed)
    func header(bodyBytes: Int) -> [UInt8] {
      Header(stanzas: [Stanza(type: "t", body: [UInt8](repeating: 0, count: bodyBytes))], fileKey: fileKey).bytes
    }
    var largest = 48000
    while header(bodyBytes: largest + 48).count <= Header.bytesMax { largest += 48 }
    #expect(try Header(parsing: header(bodyBytes: largest)).bytes.count <= Header.bytesMax)
    #expect(errorCode { try Header(parsing: header(bodyBytes: largest + 48)) } == .headerMalformed)
  }

  @Test func identitiesAndRecipientsKeepTheirText() throws {
    for kind in RecipientKind.allCases {
      let identity = try Identity(generating: kind)
      let text = identity.secretText.withBytes { Array($0) }
      #expect(try Identity(text).recipient == identity.recipient)
      #expect(try Recipient(identity.recipient.description) == identity.recipient)
    }
    for bad in ["", "age1", "age1qqqq", "AGE1QQ", "npub1xyz", String(repeating: "a", count: 5000)] {
      #expect(errorCode { try Recipient(bad) } == .keyInvalid)
    }
  }

  @Test func aLowOrderShareIsRefused() throws {
    let identity = try Identity(generating: .x25519)
    let zero = String(decoding: Base64.encodeUnpadded([UInt8](repeating: 0, count: 32)), as: UTF8.self)
    let header = Header(
      stanzas: [Stanza(type: "X25519", arguments: [zero], body: [UInt8](repeating: 0, count: 32))],
      fileKey: Secret(random: 16))
    let key = try PackageKey(parsing: header.bytes + [UInt8](repeating: 0, count: 16))
    #expect(errorCode { try key.open(with: [identity]) } == .headerMalformed)
  }
}
