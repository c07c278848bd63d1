// The pass: files and streams, every number of workers, order kept, failures clean. And keys, configuration, folders.

import Foundation
import Glibc
import NIOConcurrencyHelpers
import Records
import Sealing
import Store
import TestSupport
import Testing

@testable import Gateway

@Suite struct PipelineTests {
  let scratch = try! Scratch()

  func file(_ name: String, _ bytes: [UInt8] = []) throws -> OpenFile {
    let file = OpenFile(try File("\(scratch.path)/\(name)", O_RDWR | O_CREAT | O_TRUNC))
    try file.file.write(bytes, at: 0)
    return file
  }

  /// A sync may have failed before the restart: what the page cache still holds is no proof that the disk has it.
  @Test func whatIsFoundOfACollectedBodyIsWrittenAgain() throws {
    let spool = try Spool(home: scratch.path)
    let sealed = [UInt8](repeating: 7, count: BodyGeometry.sealedSegmentBytes + 100)
    let transfer = Transfer(
      direction: .in, sender: AgencyID("tax.example.gov")!, id: TransferID(), peer: AgencyID("tax.example.gov")!,
      agreement: "a", state: .receiving, name: "n", bodyBytes: Int64(sealed.count), createdAt: Date())
    let buffer = SegmentBuffer()
    let roots = [0, BodyGeometry.sealedSegmentBytes].map { start in
      let segment = sealed[start..<min(start + BodyGeometry.sealedSegmentBytes, sealed.count)]
      buffer.bytes.copyBytes(from: segment)
      return SegmentDigest.root(buffer, sealedBytes: segment.count)
    }
    let part = try spool.create(transfer.place, bytes: transfer.bodyBytes)
    try part.write(sealed, at: 0)
    try FileManager.default.setAttributes([.modificationDate: Date(timeIntervalSince1970: 0)], ofItemAtPath: part.path)
    let body = try CollectedBody(
      spool, transfer, roots: roots, create: { _ in throw TestFailure("the part is there") }, onProgress: { _ in })
    #expect(body.isComplete)
    #expect(try part.status().st_mtim.tv_sec > 0)
    #expect(try part.bytes(at: 0, count: sealed.count) == sealed)
  }

  @Test(arguments: [0, 1, 65536, BodyGeometry.segmentBytes, 5 * BodyGeometry.segmentBytes + 77], [1, 2, 7])
  func filesAndStreamsSealAlikeAndOpenAgain(bytes: Int, workers: Int) throws {
    let plain = (0..<bytes).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 >> 9) }
    let input = try file("plain", plain)
    let identity = try Identity(generating: .x25519)
    let (key, payloadKey) = try PackageKey.create(for: [identity.recipient])
    let pass = Pass(engine: .openssl, workers: workers)

    let sealed = try file("sealed")
    let first = try pass.seal(
      FileSource(input.file, bytes: Int64(bytes), layout: .plain), to: FileSink(sealed.file), payloadKey: payloadKey,
      wholePrefixes: [key.bytes, []])
    let streamed = try file("streamed")
    let descriptor = Glibc.open("\(scratch.path)/plain", O_RDONLY)
    defer { close(descriptor) }
    let second = try pass.seal(
      StreamSource(descriptor: descriptor, layout: .plain), to: StreamSink(descriptor: streamed.file.descriptor),
      payloadKey: payloadKey)
    let body = try File.contents("\(scratch.path)/sealed", bytesMax: 1 << 30)
    #expect(try File.contents("\(scratch.path)/streamed", bytesMax: 1 << 30) == body)
    #expect(
      first.treeRoot == second.treeRoot && first.plainBytes == Int64(bytes) && first.sealedBytes == Int64(body.count))
    #expect(first.wholeSHA256 == [Digest(of: key.bytes + body), Digest(of: body)])

    let opened = try file("opened")
    let result = try pass.open(
      FileSource(sealed.file, bytes: Int64(body.count), layout: .sealed), to: FileSink(opened.file),
      payloadKey: key.open(with: [identity]))
    #expect(result.treeRoot == first.treeRoot)
    #expect(try File.contents("\(scratch.path)/opened", bytesMax: 1 << 30) == plain)
  }

  @Test func aDamagedSegmentStopsEveryWorker() throws {
    let plain = [UInt8](repeating: 5, count: 6 * BodyGeometry.segmentBytes)
    let input = try file("plain", plain)
    let (_, payloadKey) = try PackageKey.create(for: [Identity(generating: .x25519).recipient])
    let sealed = try file("sealed")
    let pass = Pass(engine: .openssl, workers: 3)
    let result = try pass.seal(
      FileSource(input.file, bytes: Int64(plain.count), layout: .plain), to: FileSink(sealed.file),
      payloadKey: payloadKey)
    try sealed.file.write([9, 9, 9], at: 3_000_000)
    let streamed = try file("streamed")
    #expect {
      try pass.open(
        FileSource(sealed.file, bytes: result.sealedBytes, layout: .sealed),
        to: StreamSink(descriptor: streamed.file.descriptor), payloadKey: payloadKey)
    } throws: {
      ($0 as? SealingError)?.code == .bodyChunk
    }
  }

  /// A check reads along: all of it, or as much as it likes, or until the pass fails.
  @Test(arguments: [0, 1, BodyGeometry.segmentBytes, 9 * BodyGeometry.segmentBytes + 77], [1, 3])
  func aCheckReadsWhatIsOpenedInOrder(bytes: Int, workers: Int) throws {
    struct Enough: Error {}
    let plain = (0..<bytes).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 >> 9) }
    let input = try file("plain", plain)
    let (_, payloadKey) = try PackageKey.create(for: [Identity(generating: .x25519).recipient])
    let sealed = try file("sealed")
    let pass = Pass(engine: .openssl, workers: workers)
    let made = try pass.seal(
      FileSource(input.file, bytes: Int64(bytes), layout: .plain), to: FileSink(sealed.file), payloadKey: payloadKey)

    func opened(_ check: @escaping @Sendable (RecordInput) throws -> Void) throws -> RecordTap {
      let output = try file("opened")
      let tap = RecordTap(FileSink(output.file)) {
        try check($0)
        return RecordReport()
      }
      defer { tap.abandon() }
      _ = try pass.open(
        FileSource(sealed.file, bytes: made.sealedBytes, layout: .sealed), to: tap, payloadKey: payloadKey)
      _ = try tap.report()
      #expect(try File.contents("\(scratch.path)/opened", bytesMax: 1 << 30) == plain)
      return tap
    }
    let read = NIOLockedValueBox<[UInt8]>([])
    _ = try opened { input in
      var room = [UInt8](repeating: 0, count: 70_001)
      while true {
        let count = try room.withUnsafeMutableBytes { try input($0) }
        if count == 0 { return }
        read.withLockedValue { $0 += room[..<count] }
      }
    }
    #expect(read.withLockedValue { $0 } == plain)
    _ = try opened { _ in }
    #expect(throws: Enough.self) { try opened { _ in throw Enough() } }
    #expect(try File.contents("\(scratch.path)/opened", bytesMax: 1 << 30) == plain)

    guard bytes > 3_000_000 else { return }
    try sealed.file.write([9, 9, 9], at: 3_000_000)
    #expect {
      try opened { input in
        var room = [UInt8](repeating: 0, count: 1000)
        while try room.withUnsafeMutableBytes({ try input($0) }) > 0 {}
      }
    } throws: {
      ($0 as? SealingError)?.code == .bodyChunk
    }
  }

  @Test func aFileThatShrinksWhileItIsReadIsAFailure() throws {
    let input = try file("short", [1, 2, 3])
    let output = try file("out")
    #expect(throws: DiskError.self) {
      try Pass(engine: .sodium, workers: 1).seal(
        FileSource(input.file, bytes: 100, layout: .plain), to: FileSink(output.file), payloadKey: Secret(random: 32))
    }
  }
}

@Suite struct KeyRingTests {
  let scratch = try! Scratch()
  let agency = AgencyID("tax.example.gov")!

  @Test func keysSurviveTheirFileAndOnlyTheirPassphrase() throws {
    let home = Home("\(scratch.path)/h")
    try home.make()
    var options = KeyRing.Options()
    options.postQuantumSigning = true
    let ring = try KeyRing(agency: agency, options: options, at: Date())
    let passphrase = Secret(random: 16)
    try ring.save(home, passphrase: passphrase, cost: .minimal)
    let loaded = try KeyRing(home, passphrase: passphrase)
    #expect(loaded.card == ring.card)
    #expect(loaded.identities.map(\.recipient) == ring.identities.map(\.recipient))
    #expect(loaded.signing.map(\.verifying) == ring.signing.map(\.verifying))
    #expect(loaded.tlsInUse.pin == ring.tlsInUse.pin)
    #expect(throws: SealingError.self) { try KeyRing(home, passphrase: Secret(random: 16)) }
    chmod(home.keyring, 0o640)
    #expect(throws: ConfigurationError.self) { try KeyRing(home, passphrase: passphrase) }
  }

  @Test func rotationOverlapsAndRevocationEnds() throws {
    var ring = try KeyRing(agency: agency, options: .init(), at: Date())
    let held = ring.card
    let oldPin = ring.tlsInUse.pin
    try ring.rotate(.sign, at: Date())
    try ring.rotate(.seal, at: Date())
    try ring.rotate(.tls, at: Date())
    #expect(ring.card.card.serial == 4)
    #expect(ring.signing.count == 2 && ring.identities.count == 2)
    // For a day the key that partners know signs on; then the new one does. One that is revoked does not.
    #expect(ring.signers(at: Date()).map(\.verifying) == [ring.signing[0].verifying])
    let later = Date() + KeyRing.overlapSeconds + 1
    #expect(ring.signers(at: later).map(\.verifying) == [ring.signing[1].verifying])
    // Nor does a second rotation within the day put one before it that nobody has.
    var again = ring
    try again.rotate(.sign, at: Date())
    #expect(again.signers(at: Date()).map(\.verifying) == [ring.signing[0].verifying])
    var revoked = ring
    try revoked.revoke(String(ring.signing[0].verifying.id), at: Date())
    #expect(revoked.signers(at: Date()).map(\.verifying) == [ring.signing[1].verifying])
    #expect(ring.tlsInUse.pin == oldPin && ring.card.card.tlsPins.count == 2)
    try ring.rotate(.tls, at: Date())
    #expect(ring.tlsInUse.pin != oldPin)
    // Each card follows the one before it.
    var step = try KeyRing(agency: agency, options: .init(), at: Date())
    let before = step.card
    try step.rotate(.sign, at: Date())
    #expect(try before.succession(of: step.card, at: Date()) == .accepted)
    #expect(throws: SealingError.self) { try held.succession(of: step.card, at: Date()) }
    // The only active key cannot be revoked; a retired one can.
    let active = ring.card.card.signingKeys.last!.key.id
    #expect(throws: SealingError.self) { try ring.revoke(active, at: Date()) }
    try ring.revoke(ring.card.card.signingKeys[0].key.id, at: Date())
    #expect(ring.card.card.signingKeys[0].state == .revoked)
    #expect(throws: SealingError.self) { try ring.revoke("nothing-like-this", at: Date()) }
  }

  /// Sixteen hybrid recipients and twelve ML-DSA-65 keys have more than 64 KiB.
  @Test func aCardOfLongKeysLetsGoOfTheOldest() throws {
    var options = KeyRing.Options()
    options.postQuantumSigning = true
    var ring = try KeyRing(agency: agency, options: options, at: Date())
    for _ in 0..<16 { try ring.rotate(.seal, at: Date()) }
    for _ in 0..<16 {
      let held = ring.card
      try ring.rotate(.sign, postQuantum: true, at: Date())
      #expect(try held.succession(of: ring.card, at: Date()) == .accepted)
    }
    #expect(ring.card.card.recipients.contains { $0.state == .active })
    #expect(ring.card.card.signingKeys.count { $0.key.algorithm == .mlDSA65 } > 1)
  }

  @Test func aKeyringWithoutAKeyOfItsCardIsRefused() throws {
    let home = Home("\(scratch.path)/h")
    try home.make()
    let passphrase = Secret(random: 16)
    var ring = try KeyRing(agency: agency, options: .init(), at: Date())
    try ring.save(home, passphrase: passphrase, cost: .minimal)
    let before = try File.contents(home.keyring, bytesMax: 1 << 20)
    try ring.rotate(.seal, at: Date())
    try ring.save(home, passphrase: passphrase, cost: .minimal)
    try DurableFile.write(before, to: home.keyring)
    #expect(throws: SealingError.self) { try KeyRing(home, passphrase: passphrase) }
  }

  @Test func expiryIsAnnounced() throws {
    var options = KeyRing.Options()
    options.validDays = 20
    let ring = try KeyRing(agency: agency, options: options, at: Date())
    #expect(KeyExpiry.due(ring.card.card, at: Date()).count == 2)
    #expect(KeyExpiry.due(try KeyRing(agency: agency, options: .init(), at: Date()).card.card, at: Date()).isEmpty)
  }
}

@Suite struct ConfigurationTests {
  static let refused = [
    "listen: x", "agency: a.b\nlisten: \"nowhere\"", "agency: a.b\nlisten: \"h:70000\"", "agency: a.b\nscanSeconds: 0",
    "agency: a.b\nunknown: 1", "agency: a.b\nfolders: { x: { readiness: none } }",
    "agency: a.b\nfolders: { ../x: { readiness: rename } }",
    "agency: a.b\nfolders: { x: { readiness: rename, triggerSuffix: .ok } }", "agency: a.b\ninboxFileMode: \"0777\"",
    "agency: a.b\ninboxFileMode: \"0040\"", "agency: a.b\nlogLevel: loud", "agency: A", "",
  ]

  @Test(arguments: refused) func aWrongSettingIsRefused(text: String) {
    #expect(throws: ConfigurationError.self, "\(text)") { try Configuration(yaml: text) }
  }

  @Test func everySettingIsRead() throws {
    let text = """
      agency: tax.example.gov
      listen: "0.0.0.0:9443"
      folders: { a: { readiness: trigger, triggerSuffix: ".ok" }, b: { readiness: stable, stableSeconds: 5 } }
      scanSeconds: 2
      lowWaterBytes: 3
      lowWaterInodes: 4
      packagesPerPartner: 5
      bytesPerPartnerMax: 6
      retrySecondsMax: 7
      receiptSeconds: 8
      retentionSeconds: 9
      reportSeconds: 10
      inboxFileMode: "0640"
      logLevel: debug
      """
    let configuration = try Configuration(yaml: text)
    #expect(configuration.host == "0.0.0.0" && configuration.port == 9443 && configuration.folders.count == 2)
    #expect(configuration.folders["a"]?.triggerSuffix == ".ok" && configuration.folders["b"]?.stableSeconds == 5)
    #expect(configuration.retentionSeconds == 9 && configuration.reportSeconds == 10)
    #expect(configuration.inboxFileMode == 0o640)
  }
}

@Suite struct SignalTests {
  @Test func newsGivenBeforeTheWaitIsNotLost() async {
    let signal = Signal()
    let seen = signal.generation
    signal.notify()
    let start = ContinuousClock.now
    await signal.wait(after: seen, for: .seconds(20))
    #expect(ContinuousClock.now - start < .seconds(10))
    await signal.wait(after: signal.generation, for: .milliseconds(10))
  }
}
