// sallyport.yaml: every key, its meaning, its default and its range. Unknown keys are refused (docs/CONFIGURATION.md).

import Foundation
import Policies
import Sealing
import Store
import Transport

/// The settings of one gateway.
package struct Configuration: Sendable {
  /// How a watched folder tells that a file is complete. There is no "none".
  package enum Readiness: String, Sendable, CaseIterable {
    /// Files are renamed into the folder, whole.
    case rename
    /// NAME is ready once NAME<triggerSuffix> is there.
    case trigger
    /// Size, times and inode stay the same over several observations. Best effort.
    case stable
  }

  package struct Folder: Equatable, Sendable {
    package var readiness = Readiness.rename
    package var triggerSuffix = ".done"
    package var stableSeconds: Int64 = 60

    package init() {}
  }

  package var agency: AgencyID
  package var host = "127.0.0.1"
  package var port = 8443
  package var folders: [String: Folder] = [:]
  /// Every folder is scanned at least so often; inotify only makes it sooner.
  package var scanSeconds: Int64 = 5
  /// Below this much free space nothing new is taken.
  package var lowWaterBytes: Int64 = 256 << 20
  package var lowWaterInodes: Int64 = 1024
  /// Packages of one partner under way at once.
  package var packagesPerPartner: Int64 = 64
  package var bytesPerPartnerMax: Int64 = 1 << 40
  /// Of the partner port, see `PartnerServerLimits`.
  package var connectionsMax: Int64 = 2048
  package var connectionsPerPartner: Int64 = 128
  package var requestsPerSecond: Int64 = 2000
  package var retrySecondsMax: Int64 = 300
  /// Released, and no receipt after so long: unconfirmed.
  package var receiptSeconds: Int64 = 86400
  /// Ended transfers keep their documents so long; a tombstone stays.
  package var retentionSeconds: Int64 = 30 * 86400
  /// For so long after a package was released, people can ask who got their data.
  package var reportSeconds: Int64 = 3650 * 86400
  /// Mode of delivered files, octal.
  package var inboxFileMode: UInt32 = 0o640
  package var logLevel = "info"

  package init(agency: AgencyID) { self.agency = agency }

  var serverLimits: PartnerServerLimits {
    var limits = PartnerServerLimits()
    limits.connections = Int(connectionsMax)
    limits.connectionsPerPartner = Int(connectionsPerPartner)
    limits.requestsPerSecond = Int(requestsPerSecond)
    return limits
  }

  /// Reads `sallyport.yaml`.
  ///
  /// - Throws: `ConfigurationError`.
  package init(yaml: String) throws {
    do {
      var reader = try DocumentReader(StrictYAML.parse(yaml), at: "sallyport.yaml")
      agency = try reader.agency("agency")
      if let listen = try reader.optional("listen", { (r, n) throws(SealingError) in try r.string(n) }) {
        guard let colon = listen.lastIndex(of: ":"), let port = Int(listen[listen.index(after: colon)...]),
          (0...65535).contains(port), colon != listen.startIndex
        else { throw reader.invalid("listen", "expected \"host:port\"") }
        host = String(listen[..<colon])
        self.port = port
      }
      if var folders = try reader.optional("folders", { (r, n) throws(SealingError) in try r.object(n) }) {
        for name in folders.names {
          guard Agreement.isID(name) else { throw folders.invalid(name, "not an agreement's id") }
          self.folders[name] = try Self.folder(&folders, name)
        }
        try folders.finish()
      }
      func set(_ name: String, _ target: inout Int64, _ range: ClosedRange<Int64>) throws(SealingError) {
        if let value = try reader.optional(name, { (r, n) throws(SealingError) in try r.integer(n, range) }) {
          target = value
        }
      }
      try set("scanSeconds", &scanSeconds, 1...3600)
      try set("lowWaterBytes", &lowWaterBytes, 0...(1 << 50))
      try set("lowWaterInodes", &lowWaterInodes, 0...(1 << 40))
      try set("packagesPerPartner", &packagesPerPartner, 1...1024)
      try set("bytesPerPartnerMax", &bytesPerPartnerMax, 1...(1 << 50))
      try set("connectionsMax", &connectionsMax, 16...65536)
      try set("connectionsPerPartner", &connectionsPerPartner, 8...4096)
      try set("requestsPerSecond", &requestsPerSecond, 10...1_000_000)
      try set("retrySecondsMax", &retrySecondsMax, 1...86400)
      try set("receiptSeconds", &receiptSeconds, 1...(366 * 86400))
      try set("retentionSeconds", &retentionSeconds, 0...(3660 * 86400))
      try set("reportSeconds", &reportSeconds, 0...(36600 * 86400))
      if let mode = try reader.optional("inboxFileMode", { (r, n) throws(SealingError) in try r.string(n) }) {
        guard let value = UInt32(mode, radix: 8), value & 0o400 != 0, value & ~0o666 == 0 else {
          throw reader.invalid("inboxFileMode", "expected an octal mode such as \"0640\", never executable")
        }
        inboxFileMode = value
      }
      if let level = try reader.optional("logLevel", { (r, n) throws(SealingError) in try r.string(n) }) {
        guard ["debug", "info", "notice", "warning", "error"].contains(level) else {
          throw reader.invalid("logLevel", "expected debug, info, notice, warning or error")
        }
        logLevel = level
      }
      try reader.finish()
    } catch let error as SealingError {
      throw ConfigurationError(error.detail)
    } catch let error as PolicyError {
      throw ConfigurationError("sallyport.yaml: \(error)")
    }
  }

  private static func folder(_ folders: inout DocumentReader, _ name: String) throws(SealingError) -> Folder {
    var reader = try folders.object(name)
    var folder = Folder()
    folder.readiness = try reader.choice("readiness")
    if let suffix = try reader.optional(
      "triggerSuffix", { (r, n) throws(SealingError) in try r.string(n, bytesMax: 32) })
    {
      guard folder.readiness == .trigger, !suffix.contains("/") else {
        throw reader.invalid("triggerSuffix", "only for readiness: trigger, and without a slash")
      }
      folder.triggerSuffix = suffix
    }
    if let seconds = try reader.optional(
      "stableSeconds", { (r, n) throws(SealingError) in try r.integer(n, 1...86400) })
    {
      guard folder.readiness == .stable else { throw reader.invalid("stableSeconds", "only for readiness: stable") }
      folder.stableSeconds = seconds
    }
    try reader.finish()
    return folder
  }

  /// Whether `bytes` more can be taken without going below the low-water mark.
  package func hasRoom(in home: Home, for bytes: Int64) throws -> Bool {
    let free = try Directory.free(home.path)
    return free.bytes - bytes >= lowWaterBytes && free.inodes >= lowWaterInodes
  }

  package static func load(_ home: Home) throws -> Configuration {
    let bytes: [UInt8]
    do {
      bytes = try File.contents(home.configuration, bytesMax: StrictYAML.bytesMax)
    } catch {
      throw ConfigurationError(
        "cannot read \(home.configuration): \(error)",
        remedy: error.errno == ENOENT ? "sallyport init --agency ID --home \(home.path)" : "")
    }
    guard let text = String(validating: bytes, as: UTF8.self) else {
      throw ConfigurationError("\(home.configuration) is not UTF-8")
    }
    return try Configuration(yaml: text)
  }
}
