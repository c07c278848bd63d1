// Canonical JSON, envelopes, cards, manifests, receipts, fingerprints and wrapped keys.

import Foundation
import Testing

@testable import Sealing

@Suite struct DocumentTests {
  static let accepted = [
    #"{}"#, #"[]"#, #"{"a":1,"b":[true,false,"x"]}"#, #""é€😀""#, #""\b\t\n\f\r\"\\\u0000\u001f""#,
    "0", "9007199254740991", "{\"\u{1f600}\":1,\"\u{fb33}\":2}",
  ]
  static let refused = [
    "", " {}", "{} ", #"{"b":1,"a":2}"#, #"{"a":1,"a":1}"#, #"{"a":1,}"#, "[1,]", "null", "-1", "1.5",
    "1e3", "01", "9007199254740992", #""\u0041""#, #""\/""#, #""\u001F""#, #""\ud83d\ude00""#, "\"\u{1}\"",
    #"{"a" :1}"#, "\u{feff}{}", #"["a""#, #"{"a"}"#, "tru", #""a"#, "{\"\u{fb33}\":2,\"\u{1f600}\":1}",
    String(repeating: "[", count: 9) + String(repeating: "]", count: 9),
  ]

  @Test(arguments: accepted) func canonicalTextIsAccepted(text: String) throws {
    #expect(try JSON(canonical: Array(text.utf8), bytesMax: 100).canonical == Array(text.utf8))
  }

  @Test(arguments: refused) func anyOtherTextIsRefused(text: String) {
    #expect(errorCode { try JSON(canonical: Array(text.utf8), bytesMax: 1000) } == .documentJSON)
  }

  @Test func invalidUTF8IsRefused() {
    #expect(errorCode { try JSON(canonical: [34, 0xff, 34], bytesMax: 10) } == .documentJSON)
    #expect(errorCode { try JSON(canonical: [34, 0xed, 0xa0, 0x80, 34], bytesMax: 10) } == .documentJSON)
  }

  @Test func theByteLimitHolds() throws {
    let text = Array("\"\(String(repeating: "a", count: 8))\"".utf8)
    #expect(try JSON(canonical: text, bytesMax: 10).canonical == text)
    #expect(errorCode { try JSON(canonical: text, bytesMax: 9) } == .documentJSON)
  }

  @Test func anEnvelopeNeedsEverySignatureThatTheCardAsksFor() throws {
    let classical = try SigningKey(generating: .ed25519)
    let postQuantum = try SigningKey(generating: .mlDSA65)
    let document = Sample.manifest().document
    let both = Envelope(signing: document, as: .manifest, with: [classical, postQuantum])
    let one = Envelope(signing: document, as: .manifest, with: [classical])
    let hybridPolicy = SignerPolicy([classical.verifying, postQuantum.verifying])
    let parsed = try Envelope(parsing: both.bytes, as: .manifest)
    #expect(try parsed.verify(hybridPolicy) == document)
    #expect(try one.verify(SignerPolicy([classical.verifying])) == document)
    #expect(errorCode { try one.verify(hybridPolicy) } == .documentSignature)
    #expect(errorCode { try both.verify(SignerPolicy([])) } == .documentSignature)
    let stranger = try SigningKey(generating: .ed25519).verifying
    #expect(errorCode { try both.verify(SignerPolicy([stranger])) } == .documentSignature)
  }

  @Test func anEnvelopeOfAnotherKindOrWithAChangedByteIsRefused() throws {
    let key = try SigningKey(generating: .ed25519)
    let envelope = Envelope(signing: Sample.manifest().document, as: .manifest, with: [key])
    #expect(errorCode { try Envelope(parsing: envelope.bytes, as: .receipt) } == .documentInvalid)
    for place in stride(from: 0, to: envelope.bytes.count, by: 7) {
      var bytes = envelope.bytes
      bytes[place] ^= 1
      #expect(throws: SealingError.self, "byte \(place)") {
        try Envelope(parsing: bytes, as: .manifest).verify(SignerPolicy([key.verifying]))
      }
    }
  }

  @Test func aManifestKeepsItsMembersAndRefusesOthers() throws {
    let manifest = Sample.manifest()
    #expect(try Manifest(manifest.document) == manifest)
    guard case .object(let members) = manifest.document else { return }
    for name in members.keys {
      var cut = members
      cut[name] = nil
      #expect(errorCode { try Manifest(.object(cut)) } == .documentInvalid, "\(name)")
    }
    var more = members
    more["extra"] = 1
    #expect(errorCode { try Manifest(.object(more)) } == .documentInvalid)
  }

  @Test(arguments: [
    "../x", "a/b", ".hidden", "-rf", "", "a\u{202e}b", "a\nb", "a\u{0}b", "~x", "e\u{301}", #"a\b"#,
    ".\u{301}x", "-\u{20dd}x", "~\u{301}",
    String(repeating: "n", count: 201),
  ])
  func anUnsafeNameIsRefused(name: String) {
    #expect(FileName.fault(name) != nil)
    #expect(errorCode { try Manifest(Sample.manifest(name: name).document) } == .documentInvalid)
  }

  @Test(arguments: ["a", "deaths 2026-11.csv", "år.xml", "日本.csv", String(repeating: "n", count: 200)])
  func aSafeNameIsAccepted(name: String) { #expect(FileName.fault(name) == nil) }

  /// They are printed to administrators' terminals.
  @Test func textInAManifestIsOneLine() throws {
    guard case .object(let members) = Sample.manifest().document else { return }
    for (name, value) in [
      ("agreement", ["id": "a\u{1b}]0;x", "version": 1, "sha256": .string(Digest(of: []).hex)]),
      ("schema", ["id": "a\nb", "sha256": .string(Digest(of: []).hex)]), ("mediaType", "text/\u{7}csv"),
      ("labels", ["a\u{1b}[2J"]),
    ] as [(String, JSON)] {
      var changed = members
      changed[name] = value
      #expect(errorCode { try Manifest(.object(changed)) } == .documentInvalid, "\(name)")
    }
  }

  @Test func aSizeThatDoesNotSealToTheBodyIsRefused() throws {
    guard case .object(var members) = Sample.manifest().document else { return }
    members["payloadBytes"] = 4
    #expect(errorCode { try Manifest(.object(members)) } == .documentInvalid)
  }

  @Test func receiptsTakeBacksAndAnswersKeepTheirMembers() throws {
    let head = LedgerHead(epoch: "e1", size: 5, root: Digest(of: [5]))
    let receipt = Receipt(
      kind: .refused, id: Sample.id, sender: Sample.sender, recipient: Sample.recipient,
      manifest: Digest(of: [1]), code: "body.chunk", at: Sample.instant, previous: Digest(of: [2]),
      head: head)
    #expect(try Receipt(receipt.document) == receipt)
    let takeBack = TakeBack(
      id: Sample.id, sender: Sample.sender, recipient: Sample.recipient, manifest: Digest(of: [1]),
      reason: "cancelled", at: Sample.instant)
    #expect(try TakeBack(takeBack.document) == takeBack)
    let request = KeyRequest(
      id: Sample.id, sender: Sample.sender, recipient: Sample.recipient, manifest: Digest(of: [1]), at: Sample.instant)
    #expect(try KeyRequest(request.document) == request)
    #expect(errorCode { try KeyRequest(takeBack.document) } == .documentInvalid)
    let answer = TakeBackAnswer(takeBack: Digest(of: [1]), outcome: .hadKey, at: Sample.instant)
    #expect(try TakeBackAnswer(answer.document) == answer)
    #expect(try LedgerHead(head.document) == head)
  }

  @Test func timesHaveOneSpelling() {
    for text in ["1970-01-01T00:00:00Z", "2024-02-29T23:59:59Z", "2026-11-21T10:00:00Z", "9999-12-31T23:59:59Z"] {
      #expect(Timestamp.parse(text).map(Timestamp.format) == text)
    }
    for text in [
      "2026-02-29T00:00:00Z", "2026-11-21T24:00:00Z", "2026-11-21T10:00:60Z", "2026-11-21 10:00:00Z",
      "2026-11-21T10:00:00", "1969-12-31T23:59:59Z",
    ] {
      #expect(Timestamp.parse(text) == nil, "\(text)")
    }
  }

  @Test func agencyIDsAreDomainsAndTransferIDsHaveOneSpelling() {
    for good in ["a.b", "tax.example.gov", "x-1.y"] { #expect(AgencyID(good) != nil) }
    for bad in [
      "", "a", "a.", ".a", "A.b", "a..b", "-a.b", "a-.b", "a/b.c", "a.b\n", "..",
      String(repeating: "a", count: 64) + ".b",
    ] {
      #expect(AgencyID(bad) == nil, "\(bad)")
    }
    let id = TransferID()
    #expect(TransferID(id.text) == id)
    #expect(TransferID(String(repeating: "7", count: 26)) == nil)  // unused bits set
    #expect(TransferID(id.text.uppercased()) == nil)
  }

  @Test func aFingerprintFindsEverySingleWrongLetter() throws {
    let fingerprint = Fingerprint(Digest(of: [1]))
    let text = fingerprint.description
    #expect(text.split(separator: "-").map(\.count) == Array(repeating: 7, count: 8))
    #expect(try Fingerprint(text.uppercased().replacing("-", with: " ")) == fingerprint)
    #expect(try Fingerprint(Digest(of: [1]).hex) == fingerprint)
    for place in text.indices where text[place] != "-" {
      var wrong = text
      wrong.replaceSubrange(place...place, with: text[place] == "a" ? "b" : "a")
      #expect(errorCode { try Fingerprint(wrong) } == .keyInvalid)
    }
  }

  @Test func aWrappedKeyOpensWithItsPassphraseAndUseAlone() throws {
    let secret = Secret(random: 32)
    let passphrase = Secret(random: 12)
    let file = WrappedKey.wrap(secret, use: "sign", passphrase: passphrase, cost: .minimal)
    #expect(try WrappedKey.open(file, use: "sign", passphrase: passphrase).equals(secret))
    #expect(errorCode { try WrappedKey.open(file, use: "sign", passphrase: Secret(random: 12)) } == .keyPassphrase)
    #expect(errorCode { try WrappedKey.open(file, use: "seal", passphrase: passphrase) } == .documentInvalid)
    let text = String(decoding: file, as: UTF8.self)
    let lied = text.replacing("\"use\":\"sign\"", with: "\"use\":\"seal\"")
    #expect(errorCode { try WrappedKey.open(Array(lied.utf8), use: "seal", passphrase: passphrase) } == .keyPassphrase)
    let greedy = text.replacing("\"memoryBytes\":8192", with: "\"memoryBytes\":1073741825")
    #expect(
      errorCode { try WrappedKey.open(Array(greedy.utf8), use: "sign", passphrase: passphrase) } == .documentInvalid)
  }
}

@Suite struct CardTests {
  let first = try! SigningKey(generating: .ed25519)
  let second = try! SigningKey(generating: .ed25519)
  let postQuantum = try! SigningKey(generating: .mlDSA65)
  let classical = try! Identity(generating: .x25519).recipient
  let hybrid = try! Identity(generating: .mlkem768x25519).recipient

  func signed(_ card: Card, _ keys: [SigningKey]) throws -> SignedCard {
    try SignedCard(selfSigned: SignedCard(signing: card, with: keys).envelope.bytes, at: Sample.instant)
  }

  @Test func aCardIsSignedByItsOwnKeys() throws {
    let card = Sample.card(signing: [first, postQuantum], recipients: [classical, hybrid])
    #expect(try signed(card, [first, postQuantum]).card == card)
    #expect(errorCode { try signed(card, [first]) } == .documentSignature)
    #expect(errorCode { try signed(card, [second, postQuantum]) } == .documentSignature)
    #expect(card.sealingRecipients(at: Sample.instant) == [hybrid])
  }

  @Test func aSuccessorFollowsOnlyWithTheHeldKeysSignature() throws {
    let held = try signed(Sample.card(signing: [first], recipients: [classical]), [first])
    let next = try signed(
      Sample.card(serial: 2, previous: held.digest, signing: [first, second], recipients: [classical]),
      [first, second])
    #expect(try held.succession(of: next, at: Sample.instant) == .accepted)
    #expect(try held.succession(of: held, at: Sample.instant) == .same)
    let foreign = try signed(
      Sample.card(serial: 2, previous: held.digest, signing: [second], recipients: [classical]), [second])
    #expect(errorCode { try held.succession(of: foreign, at: Sample.instant) } == .cardSuccession)
    #expect(errorCode { try next.succession(of: held, at: Sample.instant) } == .cardSuccession)
    // The cards between were missed: a partner was down.
    let later = try signed(
      Sample.card(serial: 3, previous: Digest(of: [0]), signing: [first, second], recipients: [classical]),
      [first, second])
    #expect(try held.succession(of: later, at: Sample.instant) == .accepted)
    #expect(errorCode { try later.succession(of: next, at: Sample.instant) } == .cardSuccession)
  }

  @Test func droppingPostQuantumKeysNeedsApproval() throws {
    let held = try signed(Sample.card(signing: [first, postQuantum], recipients: [hybrid]), [first, postQuantum])
    let noSigning = try signed(
      Sample.card(serial: 2, previous: held.digest, signing: [first], recipients: [hybrid]), [first])
    // Not even signed as the held card demands.
    #expect(errorCode { try held.succession(of: noSigning, at: Sample.instant) } == .cardSuccession)
    let signedByBoth = SignedCard(
      signing: Sample.card(serial: 2, previous: held.digest, signing: [first], recipients: [hybrid]),
      with: [first, postQuantum])
    #expect(
      try held.succession(of: signedByBoth, at: Sample.instant)
        == .needsApproval(reason: "post-quantum protection is dropped"))
    let classicalSeal = try signed(
      Sample.card(serial: 2, previous: held.digest, signing: [first, postQuantum], recipients: [classical]),
      [first, postQuantum])
    #expect(
      try held.succession(of: classicalSeal, at: Sample.instant)
        == .needsApproval(reason: "post-quantum protection is dropped"))
  }

  @Test func revokingTheHeldSigningKeyNeedsApproval() throws {
    let held = try signed(Sample.card(signing: [first], recipients: [classical]), [first])
    var card = Sample.card(serial: 2, previous: held.digest, signing: [second], recipients: [classical])
    let revoked = CardKey(
      key: first.verifying, notBefore: Sample.instant - 60, notAfter: Sample.instant + 60,
      state: CardKey<VerifyingKey>.State.revoked)
    card = Card(
      agency: card.agency, serial: 2, previous: held.digest, issuedAt: card.issuedAt,
      signingKeys: card.signingKeys + [revoked], recipients: card.recipients, tlsPins: card.tlsPins,
      endpoint: card.endpoint)
    let next = try signed(card, [second])
    #expect(
      try held.succession(of: next, at: Sample.instant)
        == .needsApproval(reason: "a signing key of the held card is revoked"))
  }

  @Test func expiredAndRevokedKeysDoNotCount() throws {
    let card = Sample.card(signing: [first], recipients: [classical])
    let envelope = SignedCard(signing: card, with: [first]).envelope
    let late = Sample.instant + 86400 * 366
    #expect(errorCode { try SignedCard(selfSigned: envelope.bytes, at: late) } == .documentSignature)
    let revoked = Sample.card(signing: [first], recipients: [classical], state: .revoked)
    #expect(errorCode { try signed(revoked, [first]) } == .documentSignature)
    #expect(card.sealingRecipients(at: late).isEmpty)
  }

  @Test(arguments: [
    "http://a.b:1", "https://a.b", "https://a.b:1/", "https://a.b:1/x", "https://u@a.b:1", "https://a.b:0",
    "https://a.b:70000", "file:///etc",
  ])
  func anEndpointIsOnlyHostAndPort(text: String) { #expect(!Card.isEndpoint(text)) }
}

@Suite struct SubjectKeyTests {
  /// Vectors from Python's hashlib.blake2b(text, digest_size=16, key=bytes(range(32))).
  @Test func referencesAreKeyedBLAKE2bWhateverTheNumberOfLanes() {
    let key = SubjectKey(key: Secret(count: 32) { for index in 0..<32 { $0[index] = UInt8(index) } })
    let vectors = [
      ("1", "9537f3329a1d23874fe9b30424e18e94"),
      ("a", "8800395157229c3a2fde3ffca44c4643"),
      ("AB123456", "c88a710c39b3b19dd1c4bbc24038b008"),
      (
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "96484291f0eedb979581df7bcef49669"
      ),
      (
        "yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy",
        "fc8f4eb6205cc3f37f69000302e32a36"
      ),
      ("0", "19cd4dbec06e15bc29b152d12aa516a5"),
      ("é", "e4987d92d70fe3d6ac8911cda5e42f79"),
      ("QQ 12 34 56 C", "a0c2273d1f4f6f843ec217c3cdce7534"),
      ("zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz", "1feb8e3cf1449ad66313f29685bf3c58"),
      ("kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk", "8df10fd6b67689e9771f569423bedaa5"),
      ("last", "7548cae9209dab7a60fde84df82a725a"),
    ]
    for count in [1, 7, 8, 9, vectors.count] {
      var (bytes, ends): ([UInt8], [Int]) = ([], [])
      for (text, _) in vectors.prefix(count) {
        bytes += Array(text.utf8)
        ends.append(bytes.count)
      }
      let found = key.references(bytes, ends: ends).map {
        $0.bytes.map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined()
      }
      #expect(found == vectors.prefix(count).map(\.1))
    }
    let reference = key.reference(Array("a".utf8))
    #expect(
      SubjectReference(reference.description) == reference && SubjectReference(bytes: reference.bytes) == reference)
    #expect(key.references([1], ends: [0, 1]).count == 2)
    #expect(key.reference([UInt8](repeating: 65, count: 200)) != key.reference([UInt8](repeating: 65, count: 201)))
  }
}
