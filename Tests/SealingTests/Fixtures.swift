// Shared by the tests of Sealing: deterministic randomness, whole-file sealing in memory, fixed parties.

import Foundation
import TestSupport

@testable import Sealing

enum InMemory {
  /// key || body of `plain`.
  static func seal(
    _ plain: [UInt8], to recipients: [Recipient], binding: Binding? = nil,
    engine: CipherEngine = .openssl
  ) throws -> (key: PackageKey, body: [UInt8], root: Digest) {
    let (key, payloadKey) = try PackageKey.create(for: recipients, binding: binding)
    let geometry = try BodyGeometry(plainBytes: Int64(plain.count))
    let cipher = SegmentCipher(payloadKey: payloadKey, engine: engine)
    let buffer = SegmentBuffer()
    var body: [UInt8] = []
    var roots: [Digest] = []
    for index in 0..<geometry.segments {
      let count = geometry.plainBytes(ofSegment: index)
      var offset = Int(index) * BodyGeometry.segmentBytes
      for range in buffer.plainRanges(count) {
        range.copyBytes(from: plain[offset..<(offset + range.count)])
        offset += range.count
      }
      let sealed = cipher.seal(
        buffer, segment: index, plainBytes: count, isLast: geometry.isLast(segment: index))
      roots.append(sealed.root)
      body += buffer.bytes[..<sealed.sealedBytes]
    }
    return (key, body, MerkleTree.root(roots))
  }

  /// The sealed chunks of a body, 65,552 bytes each but the last.
  static func chunks(of body: [UInt8]) -> [[UInt8]] {
    stride(from: 0, to: body.count, by: 65552).map { Array(body[$0..<min($0 + 65552, body.count)]) }
  }

  static func open(
    key: PackageKey, body: [UInt8], with identities: [Identity], binding: Binding? = nil,
    engine: CipherEngine = .openssl
  ) throws -> [UInt8] {
    let cipher = SegmentCipher(
      payloadKey: try key.open(with: identities, binding: binding), engine: engine)
    let geometry = try BodyGeometry(sealedBytes: Int64(body.count))
    let buffer = SegmentBuffer()
    var plain: [UInt8] = []
    for index in 0..<geometry.segments {
      let start = Int(index) * BodyGeometry.sealedSegmentBytes
      let count = geometry.sealedBytes(ofSegment: index)
      buffer.bytes.copyBytes(from: body[start..<(start + count)])
      let opened = try cipher.open(
        buffer, segment: index, sealedBytes: count, isLast: geometry.isLast(segment: index))
      for range in buffer.plainRanges(opened) { plain += range }
    }
    return plain
  }
}

enum Sample {
  static let instant = Timestamp.parse("2026-11-21T10:00:00Z")!
  static let sender = AgencyID("tax.example.gov")!
  static let recipient = AgencyID("pensions.example.gov")!
  static let id = TransferID("aaaaaaaaaaaaaaaaaaaaaaaaaa")!

  static func manifest(id: TransferID = id, name: String = "deaths.csv") -> Manifest {
    Manifest(
      id: id, sender: sender, recipient: recipient,
      agreement: NamedDigest(id: "deaths-to-benefits", sha256: Digest(of: [1])),
      agreementVersion: 3, name: name, mediaType: "text/csv", payloadBytes: 3, bodyBytes: 19,
      bodyTreeRoot: Digest(of: [2]), keySHA256: Digest(of: [3]), createdAt: instant,
      expiresAt: instant + 86400, decision: Digest(of: [4]))
  }

  static func card(
    serial: Int64 = 1, previous: Digest? = nil, signing: [SigningKey],
    recipients: [Recipient], state: CardKey<VerifyingKey>.State = .active
  ) -> Card {
    Card(
      agency: sender, serial: serial, previous: previous, issuedAt: instant,
      signingKeys: signing.map {
        CardKey(key: $0.verifying, notBefore: instant - 60, notAfter: instant + 86400 * 365, state: state)
      },
      recipients: recipients.map {
        CardKey(key: $0, notBefore: instant - 60, notAfter: instant + 86400 * 365)
      },
      tlsPins: [Digest(of: [9])], endpoint: "https://127.0.0.1:8443")
  }
}

func errorCode(_ body: () throws -> some Any) -> SealingError.Code? {
  do {
    _ = try body()
    return nil
  } catch let error as SealingError {
    return error.code
  } catch {
    return nil
  }
}
