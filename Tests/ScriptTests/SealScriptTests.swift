// seal and open on the built binary, beside the stock age.

import Foundation
import Sealing
import TestSupport
import Testing

@Suite struct SealScriptTests {
  let scratch = try! Scratch()

  func identity(classical: Bool = true) throws -> (file: String, recipient: String) {
    let file = "\(scratch.path)/id-\(UUID().uuidString)"
    let made = try Command.sallyport(["keys", "generate", "-o", file] + (classical ? ["--classical"] : []))
    return (file, made.lines[0])
  }

  func random(_ bytes: Int) throws -> String {
    var data = Data(count: bytes)
    data.withUnsafeMutableBytes { buffer in for index in buffer.indices { buffer[index] = UInt8.random(in: 0...255) } }
    return try scratch.file("plain-\(UUID().uuidString)", data)
  }

  func same(_ a: String, _ b: String) -> Bool { FileManager.default.contentsEqual(atPath: a, andPath: b) }

  @Test(arguments: [0, 1, 65535, 65536, 65537, 1_048_576, 3_000_000])
  func stockAgeOpensWhatWeSealAndWeOpenWhatItSeals(bytes: Int) throws {
    let age = try #require(Command.find("age"), "apt-get install age")
    let plain = try random(bytes)
    let (file, recipient) = try identity()
    let ours = "\(scratch.path)/ours.age"
    #expect(try Command.sallyport(["seal", plain, "-r", recipient, "-o", ours]).status == 0)
    #expect(try Command.run(age, ["-d", "-i", file, "-o", "\(scratch.path)/a", ours]).status == 0)
    // age makes no output file at all for an empty payload.
    #expect(bytes == 0 || same(plain, "\(scratch.path)/a"))
    #expect(try Command.run(age, ["-r", recipient, "-o", "\(scratch.path)/theirs.age", plain]).status == 0)
    #expect(
      try Command.sallyport(["open", "\(scratch.path)/theirs.age", "-i", file, "-o", "\(scratch.path)/b"]).status == 0)
    #expect(same(plain, "\(scratch.path)/b"))
  }

  @Test(arguments: [0, 1, 65536, 1_048_576, 1_048_577, 5_000_000])
  func streamsGoThroughStandardInputAndOutput(bytes: Int) throws {
    let plain = try Data(contentsOf: URL(fileURLWithPath: random(bytes)))
    let (file, recipient) = try identity(classical: false)
    let sealed = try Command.sallyport(["seal", "-", "-r", recipient, "-o", "-"], input: plain)
    #expect(sealed.status == 0, "\(sealed.errors)")
    let opened = try Command.sallyport(["open", "-", "-i", file, "-o", "-"], input: sealed.output)
    #expect(opened.status == 0, "\(opened.errors)")
    #expect(opened.output == plain)
  }

  /// A line about what was written; beside the data where that goes to standard output.
  @Test func scriptsAreToldWhatWasWritten() throws {
    func object(_ line: String) throws -> [String: Any] {
      try #require(try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any])
    }
    let file = "\(scratch.path)/id"
    let made = try Command.sallyport(["keys", "generate", "-o", file, "--json"])
    let recipient = try #require(object(made.text)["recipient"] as? String)
    let plain = try random(100_000)
    let sealed = "\(scratch.path)/sealed"
    let told = try object(Command.sallyport(["seal", plain, "-r", recipient, "-o", sealed, "--json"]).text)
    let bytes = try #require(FileManager.default.attributesOfItem(atPath: sealed)[.size] as? Int)
    #expect(told["file"] as? String == sealed && told["fileBytes"] as? Int == bytes)
    #expect(told["payloadBytes"] as? Int == 100_000)
    let opened = try Command.sallyport(["open", sealed, "-i", file, "-o", "-", "--json"])
    #expect(opened.output.count == 100_000)
    #expect(try object(opened.errors)["treeRoot"] as? String == told["treeRoot"] as? String)
  }

  @Test(arguments: ["openssl", "sodium"])
  func eitherCipherCanBeForced(cipher: String) throws {
    let plain = try random(200_000)
    let (file, recipient) = try identity()
    let sealed = "\(scratch.path)/sealed"
    #expect(
      try Command.sallyport(["seal", plain, "-r", recipient, "-o", sealed, "--cipher", cipher, "--sync"]).status == 0)
    #expect(try Command.sallyport(["open", sealed, "-i", file, "-o", "\(scratch.path)/o"]).status == 0)
    #expect(same(plain, "\(scratch.path)/o"))
  }

  @Test func whatIsOpenedIsItsOwnersAloneAndSoMustIdentitiesBe() throws {
    let plain = try random(1000)
    let (file, recipient) = try identity()
    let (sealed, opened) = ("\(scratch.path)/sealed", "\(scratch.path)/opened")
    func mode(_ path: String) throws -> Int {
      try #require(FileManager.default.attributesOfItem(atPath: path)[.posixPermissions] as? Int)
    }
    #expect(try Command.sallyport(["seal", plain, "-r", recipient, "-o", sealed]).status == 0)
    #expect(try Command.sallyport(["open", sealed, "-i", file, "-o", opened]).status == 0)
    #expect(try mode(sealed) == 0o644 && mode(opened) == 0o600)
    // Who could read what stood there may read what takes its place.
    chmod(opened, 0o640)
    #expect(try Command.sallyport(["open", sealed, "-i", file, "-o", opened]).status == 0)
    #expect(try mode(opened) == 0o640)
    chmod(file, 0o644)
    let refused = try Command.sallyport(["open", sealed, "-i", file, "-o", opened])
    #expect(refused.status == 78 && refused.errors.contains("chmod"), "\(refused.errors)")
  }

  @Test func whatIsKilledLeavesNothingOfItsOutput() throws {
    let (_, recipient) = try identity()
    let folder = "\(scratch.path)/empty"
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: false)
    let seal = Process()
    seal.executableURL = URL(fileURLWithPath: Command.sallyport)
    seal.arguments = ["seal", "-", "-r", recipient, "-o", "\(folder)/out"]
    let input = Pipe()
    seal.standardInput = input
    try seal.run()
    // More than a pipe holds: when it is taken, the output is open.
    try input.fileHandleForWriting.write(contentsOf: Data(count: 4 << 20))
    kill(seal.processIdentifier, SIGKILL)
    seal.waitUntilExit()
    #expect(try FileManager.default.contentsOfDirectory(atPath: folder) == [])
  }

  @Test func aFailedOpenLeavesNoOutputFile() throws {
    let plain = try random(3_000_000)
    let (file, recipient) = try identity()
    let sealed = "\(scratch.path)/sealed"
    try Command.sallyport(["seal", plain, "-r", recipient, "-o", sealed])
    let handle = try FileHandle(forUpdating: URL(fileURLWithPath: sealed))
    try handle.seek(toOffset: 2_500_000)
    try handle.write(contentsOf: Data([1, 2, 3]))
    try handle.close()
    let result = try Command.sallyport(["open", sealed, "-i", file, "-o", "\(scratch.path)/out"])
    #expect(result.status == 65)
    #expect(result.errors.contains("chunk"))
    #expect(try FileManager.default.contentsOfDirectory(atPath: scratch.path).filter { $0.contains("out") }.isEmpty)
  }

  /// Bad input of every kind: arguments, expected exit code, a word of the message.
  static let refusals: [(name: String, arguments: [String], status: Int32, word: String)] = [
    ("no recipient", ["seal", "/etc/hostname", "-o", "OUT"], 64, "recipient"),
    ("a bad recipient", ["seal", "/etc/hostname", "-r", "age1xyz", "-o", "OUT"], 65, "recipient"),
    ("a missing file", ["seal", "/nonexistent", "-r", "RECIPIENT", "-o", "OUT"], 1, "No such file"),
    ("a directory", ["seal", "/etc", "-r", "RECIPIENT", "-o", "OUT"], 1, "directory"),
    (
      "a missing output folder", ["seal", "/etc/hostname", "-r", "RECIPIENT", "-o", "/nonexistent/x"], 1, "No such file"
    ),
    ("a full disk", ["seal", "/etc/hostname", "-r", "RECIPIENT", "-o", "/dev/full"], 74, "No space"),
    ("not an age file", ["open", "/etc/passwd", "-i", "IDENTITY", "-o", "OUT"], 65, "age header"),
    ("an empty age file", ["open", "/dev/null", "-i", "IDENTITY", "-o", "OUT"], 65, "age header"),
    ("no identity file", ["open", "/etc/passwd", "-i", "/nonexistent", "-o", "OUT"], 1, "No such file"),
    ("an identity file without identities", ["open", "/etc/passwd", "-i", "/dev/null", "-o", "OUT"], 1, "Invalid"),
    ("an unknown option", ["status", "--frobnicate"], 64, "frobnicate"),
    ("no rows", ["queue", "--limit", "0"], 64, "--limit"),
    ("an unknown command", ["frobnicate"], 64, "frobnicate"),
    ("an unknown cipher", ["seal", "/etc/hostname", "-r", "RECIPIENT", "-o", "OUT", "--cipher", "rot13"], 64, "rot13"),
    ("no home", ["status", "--home", "/nonexistent"], 78, "init"),
    ("a bad agency", ["init", "--agency", "Nope", "--home", "HOME"], 64, "tax.example.gov"),
    ("a bad transfer id", ["trace", "xyz", "--home", "/nonexistent"], 64, "transfer id"),
    ("a missing agreement file", ["agreements", "lint", "/nonexistent"], 65, "No such file"),
  ]

  @Test(arguments: refusals)
  func badInputIsRefusedWithItsExitCode(name: String, arguments: [String], status: Int32, word: String) throws {
    let (file, recipient) = try identity()
    let places = [
      "OUT": "\(scratch.path)/out", "RECIPIENT": recipient, "IDENTITY": file, "HOME": "\(scratch.path)/home",
    ]
    let result = try Command.sallyport(arguments.map { places[$0] ?? $0 })
    #expect(result.status == status, "\(name): \(result.errors)")
    #expect((result.errors + result.text).contains(word), "\(name): \(result.errors)")
    #expect(!FileManager.default.fileExists(atPath: "\(scratch.path)/out"), "\(name)")
  }

  /// What is no file has no places to write at, only an order.
  @Test func pipesAreWrittenInOrder() throws {
    let (file, recipient) = try identity()
    let payload = Data((0..<3_000_000).map { UInt8(truncatingIfNeeded: $0 &* 31) })
    let plain = try scratch.file("plain", payload)
    let out = "\(scratch.path)/opened"
    let result = try Command.run(
      "/bin/bash",
      [
        "-ceuo", "pipefail",
        "'\(Command.sallyport)' seal '\(plain)' -r \(recipient) -o /dev/stdout | '\(Command.sallyport)' open - -i '\(file)' -o >(cat >'\(out)')",
      ])
    #expect(result.status == 0, "\(result.errors)")
    #expect(eventually(5) { FileManager.default.contents(atPath: out) == payload })
  }

  @Test func aUsageErrorIsJSONToo() throws {
    let result = try Command.sallyport(["hold", "bad", "--json", "--home", "/nonexistent"])
    #expect(result.status == 64)
    let line = Array(result.errors.utf8.dropLast())
    guard case .object(let members) = try JSON(canonical: line, bytesMax: 65536) else {
      throw TestFailure(result.errors)
    }
    #expect(members["exit"] == 64)
  }

  @Test func aClosedPipeIsAnExitCodeAndNotACrash() throws {
    let result = try Command.run(
      "/bin/bash",
      [
        "-c",
        "'\(Command.sallyport)' --help >/dev/full; '\(Command.sallyport)' keys generate -o '\(scratch.path)/k' >/dev/full; echo $?",
      ])
    #expect(result.lines.last == "74", "\(result.text)\(result.errors)")
  }

  @Test(arguments: ["bash", "zsh", "fish"])
  func completionsAreGenerated(shell: String) throws {
    let result = try Command.sallyport(["--generate-completion-script", shell])
    #expect(result.status == 0)
    #expect(result.text.contains("agreements"))
  }
}
