// Slow, greedy and broken clients, strangers and partners: each is served or refused, and meanwhile others are served.

import Foundation
import TestSupport
import Testing

@Suite struct HostileClientScriptTests {
  /// A gateway with a partner that misbehaves and one that only wants its list.
  struct Scene {
    let hostile: CollectScriptTests.Partner
    let body: String
    let port: String

    init() throws {
      hostile = try CollectScriptTests.Partner(CollectScriptTests.options())
      try hostile.introduce()
      try hostile.drop("a.bin", CollectScriptTests.random(2 << 20))
      let own = try CollectScriptTests.Partner.blocks("")
      let administrator = try CollectScriptTests.Partner.blocks("administrator")
      let (keys, adding) = (
        own[0], administrator[0].components(separatedBy: "\n").first { $0.contains("partners add") }!
      )
      let result = try hostile.shell(
        """
        mkdir good && cd good
        \(keys)
        \(adding) >added
        sallyport partners approve good.example.gov --fingerprint "$(sed -n 's/^fingerprint *//p' added)"
        """, ["PARTNER": "good.example.gov"])
      #expect(result.status == 0, "\(result.text)\(result.errors)")
      port = String(hostile.environment["GATEWAY"]!.split(separator: ":").last!)
      let id = try #require(
        CollectScriptTests.id(
          try hostile.shell("curl -s --cert partner.pem --key partner.key -k --pinnedpubkey $PIN $GATEWAY/v1/transfers")
            .text))
      body = "/v1/transfers/\(id)/body"
    }

    /// Whether the other partner gets its list, after some tries where connections are refused.
    func othersAreServed() throws -> Bool {
      try hostile.shell(
        "cd good; curl -s -m 30 --retry 30 --retry-delay 1 --retry-all-errors --cert partner.pem --key partner.key -k --pinnedpubkey $PIN $GATEWAY/v1/transfers -o /dev/null -w '%{http_code}'"
      ).text == "200"
    }

    /// Runs `attack` and looks at the others meanwhile.
    func withstands(_ attack: String) throws -> String {
      let process = Process()
      process.executableURL = URL(fileURLWithPath: "/bin/bash")
      process.arguments = ["-c", "exec \(attack)"]
      process.currentDirectoryURL = URL(fileURLWithPath: hostile.folder)
      let log = "\(hostile.folder)/attack.log"
      _ = FileManager.default.createFile(atPath: log, contents: nil)
      process.standardOutput = try FileHandle(forWritingTo: URL(fileURLWithPath: log))
      process.standardError = FileHandle.nullDevice
      try process.run()
      for _ in 0..<3 {
        _ = eventually(1) { false }
        #expect(try othersAreServed(), "during \(attack)")
      }
      process.waitUntilExit(atMost: 120)
      #expect(process.terminationStatus == 0, "\(attack) ended with \(process.terminationStatus)")
      #expect(try othersAreServed(), "after \(attack)")
      return try String(contentsOfFile: log, encoding: .utf8)
    }

    static let clients = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
      .appendingPathComponent("Hostile/clients.py").path

    /// The gateway's memory in MiB, and its open files.
    func load() throws -> (memory: Int, files: Int) {
      let id = hostile.agencies.sender.process!.processIdentifier
      let status = try String(contentsOfFile: "/proc/\(id)/status", encoding: .utf8)
      let memory = status.firstMatch(of: /VmRSS:\s*([0-9]+) kB/).flatMap { Int($0.1) } ?? 0
      return (memory / 1024, try FileManager.default.contentsOfDirectory(atPath: "/proc/\(id)/fd").count)
    }

    /// It is as it was before: nothing is kept of who misbehaved, and it ends well.
    func end(_ before: (memory: Int, files: Int)) throws {
      #expect(try eventually(90) { try load().files <= before.files + 10 }, "\(before)")
      let after = try load()
      #expect(after.memory < 300, "\(before) \(after)")
      #expect(hostile.agencies.sender.stop() == 0, "\(hostile.agencies.sender.log)")
    }
  }

  static let slow = ["-H", "-B -t PUT", "-R", "-X -w 1 -y 64 -z 8 -n 2"]

  @Test(arguments: [false, true]) func slowhttptestHoldsNobodyUp(asPartner: Bool) throws {
    let scene = try Scene()
    let before = try scene.load()
    var target = "https://127.0.0.1:\(scene.port)"
    let tunnel = Process()
    if asPartner {
      let answers = Pipe()
      tunnel.executableURL = URL(fileURLWithPath: Command.find("python3")!)
      tunnel.arguments = [
        Scene.clients, "tunnel", scene.port, "\(scene.hostile.folder)/partner.pem",
        "\(scene.hostile.folder)/partner.key",
      ]
      tunnel.standardOutput = answers
      tunnel.standardError = FileHandle.nullDevice
      try tunnel.run()
      let own = String(decoding: answers.fileHandleForReading.availableData, as: UTF8.self)
      target = "http://127.0.0.1:\(own.trimmingCharacters(in: .whitespacesAndNewlines))"
    }
    for mode in Self.slow {
      _ = try scene.withstands(
        "slowhttptest \(mode) -c 500 -r 250 -i 2 -l 6 -p 3 -v 0 -u \(target)\(scene.body)")
    }
    if asPartner {
      kill(tunnel.processIdentifier, SIGKILL)
      tunnel.waitUntilExit()
    }
    try scene.end(before)
  }

  @Test func tenThousandConnectionsAndHalfClosedOnesHoldNobodyUp() throws {
    let scene = try Scene()
    let before = try scene.load()
    let opened = try scene.withstands("python3 \(Scene.clients) crowd \(scene.port) 10000 6")
    #expect(Int(opened.trimmingCharacters(in: .whitespacesAndNewlines)) ?? 0 >= 9000, "\(opened)")
    let answered = try scene.withstands("python3 \(Scene.clients) halfclosed \(scene.port) 300 partner.pem partner.key")
    // Each is answered or cut off: an end without TLS's own word races the answer.
    #expect(Int(answered.trimmingCharacters(in: .whitespacesAndNewlines)) != nil, "\(answered)")
    try scene.end(before)
  }

  /// TLS 1.3 knows no renegotiation, and nothing older is spoken. Its key updates are.
  @Test func renegotiationIsNotThereAndFewKeyUpdatesAreServed() throws {
    let scene = try Scene()
    let client = "openssl s_client -connect 127.0.0.1:\(scene.port) -cert partner.pem -key partner.key"
    let old = try scene.hostile.shell("echo | \(client) -tls1_2 2>&1 || true")
    #expect(old.text.contains("alert protocol version"), "\(old.text)")
    let asked = try scene.hostile.shell("(sleep 1; echo R; sleep 1) | \(client) -tls1_3 2>&1 || true")
    #expect(asked.text.contains("RENEGOTIATING") && asked.text.contains("wrong ssl version"), "\(asked.text)")
    // Some are served; a flood of them is cut off.
    for (count, isServed) in [(10, true), (100, false)] {
      let updated = try scene.hostile.shell(
        """
        (sleep 1; for i in $(seq \(count)); do echo K; sleep 0.02; done; printf 'GET /v1/card HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n'; sleep 2) \
        | \(client) -tls1_3 2>&1 || true
        """)
      #expect(updated.text.contains("HTTP/1.1 200") == isServed, "\(count): \(updated.text)")
    }
    #expect(try scene.othersAreServed())
    #expect(scene.hostile.agencies.sender.stop() == 0)
  }
}
