// keys and card: the agency's own keys, and the card that tells partners about them.

import ArgumentParser
import Foundation
import Gateway
import Glibc
import Sealing
import Store

struct KeysCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "keys", abstract: "Generate, list, rotate, revoke, import and export keys.",
    subcommands: [Generate.self, List.self, Rotate.self, Revoke.self, Import.self, Export.self, Fingerprints.self])

  struct Generate: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "generate", abstract: "Write a new age identity file, as age-keygen does.")
    @Option(name: .shortAndLong, help: "The file to write, which must not exist.", completion: .file()) var output:
      String
    @Flag(help: "X25519 alone, for age before 1.3.") var classical = false
    @Flag(help: "Print JSON Lines.") var json = false

    func run() async throws {
      let identity = try Identity(generating: classical ? .x25519 : .mlkem768x25519)
      try IdentityWriter.write(identity, to: output)
      let recipient = identity.recipient.description
      Output(asJSON: json).row(["file": .string(output), "recipient": .string(recipient)], human: recipient)
    }
  }

  struct List: AsyncParsableCommand {
    static let configuration = CommandConfiguration(commandName: "list", abstract: "The keys on the agency's card.")
    @OptionGroup var options: HomeOptions

    func run() async throws {
      let card = try KeyRing.loadCard(options.home).card
      let instant = Date()
      func row(_ use: String, _ name: String, _ state: String, _ notAfter: Date?) -> JSON {
        var members: [String: JSON] = ["use": .string(use), "key": .string(name), "state": .string(state)]
        if let notAfter {
          members["notAfter"] = .string(Timestamp.format(notAfter))
          members["days"] = .integer(Int64(max(0, notAfter.timeIntervalSince(instant) / 86400)))
        }
        return .object(members)
      }
      let rows =
        card.signingKeys.map { row("sign", $0.key.id, $0.state.rawValue, $0.notAfter) }
        + card.recipients.map { row("seal", $0.key.description, $0.state.rawValue, $0.notAfter) }
        + card.tlsPins.enumerated().map { row("tls", $1.hex, $0 == 0 ? "active" : "announced", nil) }
      options.output.rows(rows) {
        "\($0.text("use"))  \($0.text("state"))  \($0.text("key").prefix(64))\($0.text("key").count > 64 ? "…" : "")"
          + ($0.text("days").isEmpty ? "" : "  \($0.text("days")) days left")
      }
    }
  }

  struct Rotate: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "rotate",
      abstract: "Put a fresh key in use; the old one stays accepted until it is revoked or expires.")
    @OptionGroup var options: HomeOptions
    @Option(help: "sign, seal or tls. A TLS key is announced first and used after the next rotation.") var use:
      KeyRing.Use
    @Flag(help: "With sign: an ML-DSA-65 key. With seal: a hybrid key.") var postQuantum = false

    func run() async throws {
      try await KeyChange.apply(options, "rotate \(use.rawValue)") { keys in
        try keys.rotate(
          use, kind: use == .seal && postQuantum ? .mlkem768x25519 : nil, postQuantum: postQuantum, at: Date())
      }
    }
  }

  struct Revoke: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "revoke", abstract: "Tell partners never to go by a key again.",
      discussion: """
        What a revoked signing key signed is accepted by nobody who has the new card, agreements too: accept them again (sallyport \
        agreements list). To a revoked recipient nobody seals any more; what a partner sealed to it before it had the new card is \
        still opened, with a warning in the log.
        """)
    @OptionGroup var options: HomeOptions
    @Argument(help: "The key's id or recipient, or its beginning.") var key: String

    func run() async throws {
      try await KeyChange.apply(options, "revoke \(key.prefix(80))") { try $0.revoke(key, at: Date()) }
    }
  }

  struct Import: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "import", abstract: "Use the identity of an age identity file for sealing to this agency.")
    @OptionGroup var options: HomeOptions
    @Argument(help: "The identity file.", completion: .file()) var file: String

    func run() async throws {
      let identities = try IdentityFile.read(file)
      try await KeyChange.apply(options, "import") { keys in
        let isDemo = DemoKeys.areIn(keys.card.card)
        for identity in identities {
          guard isDemo || !DemoKeys.are(identity.recipient) else { throw DemoKeys.refusal }
          try keys.add(identity, at: Date())
        }
      }
    }
  }

  struct Export: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "export",
      abstract:
        "Write the agency's identities as an age identity file. It opens everything sealed to this agency: keep it safe."
    )
    @OptionGroup var options: HomeOptions
    @Option(name: .shortAndLong, help: "The file to write, which must not exist.", completion: .file()) var output:
      String

    func run() async throws {
      let keys = try KeyRing(options.home, passphrase: try options.passphrase())
      for (index, identity) in keys.identities.enumerated() {
        try IdentityWriter.write(identity, to: output, appending: index > 0)
      }
      options.output.row(
        ["file": .string(output), "identities": .integer(Int64(keys.identities.count))],
        human: "\(keys.identities.count) identities are in \(output), unprotected")
    }
  }

  struct Fingerprints: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "fingerprint", abstract: "The fingerprint to read to a partner by telephone.")
    @OptionGroup var options: HomeOptions

    func run() async throws {
      let text = Fingerprint(try KeyRing.loadCard(options.home).card).description
      options.output.row(["fingerprint": .string(text)], human: text)
    }
  }
}

extension KeyRing.Use: ExpressibleByArgument {}

/// Changes the keyring on disk, records it, and lets a running gateway load it.
enum KeyChange {
  static func apply(_ options: HomeOptions, _ what: String, _ change: (inout KeyRing) throws -> Void) async throws {
    let passphrase = try options.passphrase()
    let session = Session(options)
    let isRunning = try await session.isRunning()
    // Who has the home can be told of the change; somebody else's process could not.
    if !isRunning { withExtendedLifetime(try HomeLock(options.home.path)) {} }
    // Two changes at once would each undo the other's.
    let lock = try HomeLock(options.home.keys)
    defer { withExtendedLifetime(lock) {} }
    var keys = try KeyRing(options.home, passphrase: passphrase)
    try change(&keys)
    try keys.save(options.home, passphrase: passphrase)
    let serial = keys.card.card.serial
    var isRecorded = true
    do {
      _ = try await session.perform(
        .record, ["kind": "keys-changed", "detail": .string("\(what), card serial \(serial)")])
    } catch {
      // A ledger that does not open is no reason to keep a stolen key.
      isRecorded = false
      Output.note("sallyport: the keys are changed, and the ledger does not say so: \(error)")
    }
    if isRunning { _ = try await session.perform(.reload) }
    options.output.row(
      ["serial": .integer(serial), "card": .string(options.home.card), "change": .string(what)],
      human:
        "done; card serial \(serial). Partners' gateways fetch it within the hour, or send them \(options.home.card)"
    )
    if !isRecorded { throw ExitCode(.partlyDone) }
  }
}

enum IdentityWriter {
  static func write(_ identity: Identity, to path: String, appending: Bool = false) throws {
    let flags = appending ? O_WRONLY | O_APPEND : O_WRONLY | O_CREAT | O_EXCL
    let file = try File(path, flags, mode: 0o600)
    let head = Array("# created: \(Timestamp.format(Date()))\n# public key: \(identity.recipient)\n".utf8)
    let offset = Int64(try file.status().st_size)
    try file.write(head, at: offset)
    let secret = identity.secretText
    var failure: DiskError?
    secret.withBytes { bytes in
      do throws(DiskError) { try file.write(bytes, at: offset + Int64(head.count)) } catch { failure = error }
    }
    if let failure { throw failure }
    try file.write([10], at: offset + Int64(head.count + secret.count))
    try file.syncData()
  }
}

struct CardCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "card", abstract: "The agency's signed public description.",
    subcommands: [Show.self, SigningKey.self, Endpoint.self])

  struct Show: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "show", abstract: "Print the card, to be given to partners.")
    @OptionGroup var options: HomeOptions

    func run() async throws {
      let card = try KeyRing.loadCard(options.home)
      if options.json {
        options.output.line(String(decoding: card.envelope.bytes, as: UTF8.self))
      } else {
        options.output.line(
          """
          agency       \(card.card.agency)
          serial       \(card.card.serial)
          endpoint     \(card.card.endpoint ?? "none")
          fingerprint  \(Fingerprint(card.card))
          tls pin      \(card.card.tlsPins.map { "sha256//\(Base64.encode($0.bytes))" }.joined(separator: ";"))
          file         \(options.home.card)
          """)
      }
    }
  }

  struct SigningKey: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "signing-key", abstract: "Print the key that signs manifests, for openssl.",
      discussion: "Ed25519 as SubjectPublicKeyInfo in PEM (RFC 8410). How a partner uses it: docs/COLLECT.md.")
    @OptionGroup var options: HomeOptions

    func run() async throws {
      let card = try KeyRing.loadCard(options.home).card
      let keys = card.signingKeys.filter { $0.state == .active }.compactMap(\.key.pem)
      options.output.rows(keys.map { ["pem": .string($0)] }) { $0.text("pem") }
    }
  }

  struct Endpoint: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "endpoint", abstract: "Change where partners reach the gateway.")
    @OptionGroup var options: HomeOptions
    @Argument(help: "https://HOST:PORT, or none.") var endpoint: String

    func run() async throws {
      try await KeyChange.apply(options, "endpoint") {
        try $0.setEndpoint(endpoint == "none" ? nil : endpoint, at: Date())
      }
    }
  }
}
