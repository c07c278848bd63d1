// Runs programs: the built binary, and the stock tools beside it.

import Foundation

/// What a program said and how it ended.
public struct CommandResult: Sendable {
  public let status: Int32
  public let output: Data
  public let errors: String

  public var text: String { String(decoding: output, as: UTF8.self) }
  public var lines: [String] { text.split(separator: "\n").map(String.init) }
}

public enum Command {
  /// The folder of the built products: that of the test runner.
  public static let products: URL = {
    let runner = try! FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")
    return URL(fileURLWithPath: runner).deletingLastPathComponent()
  }()

  public static var sallyport: String { products.appendingPathComponent("sallyport").path }

  /// The package's root, found from this file.
  public static let root = URL(fileURLWithPath: #filePath)
    .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()

  /// Where a program is; nil when it is not installed.
  public static func find(_ name: String) -> String? {
    ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/bin"].map { "\($0)/\(name)" }
      .first { FileManager.default.isExecutableFile(atPath: $0) }
  }

  /// Runs a program to its end. Blocks.
  @discardableResult
  public static func run(
    _ program: String, _ arguments: [String], input: Data? = nil, environment: [String: String] = [:],
    directory: String? = nil
  ) throws -> CommandResult {
    try RunningCommand(program, arguments, input: input, environment: environment, directory: directory).wait()
  }

  @discardableResult
  public static func sallyport(_ arguments: [String], input: Data? = nil) throws -> CommandResult {
    try run(sallyport, arguments, input: input)
  }

  /// Starts the command; the caller waits for it.
  public static func start(_ arguments: [String]) throws -> RunningCommand { try RunningCommand(sallyport, arguments) }
}

/// A program on its way.
public final class RunningCommand {
  private let process = Process()
  // Files instead of pipes: nothing blocks, whatever the size.
  private let folder = FileManager.default.temporaryDirectory.appendingPathComponent("command-\(UUID().uuidString)")

  init(
    _ program: String, _ arguments: [String], input: Data? = nil, environment: [String: String] = [:],
    directory: String? = nil
  ) throws {
    process.executableURL = URL(fileURLWithPath: program)
    process.arguments = arguments
    process.environment = ProcessInfo.processInfo.environment.merging(environment) { _, new in new }
    if let directory { process.currentDirectoryURL = URL(fileURLWithPath: directory) }
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    for name in ["in", "out", "err"] {
      _ = FileManager.default.createFile(
        atPath: folder.appendingPathComponent(name).path, contents: name == "in" ? input ?? Data() : nil)
    }
    process.standardInput = try FileHandle(forReadingFrom: folder.appendingPathComponent("in"))
    process.standardOutput = try FileHandle(forWritingTo: folder.appendingPathComponent("out"))
    process.standardError = try FileHandle(forWritingTo: folder.appendingPathComponent("err"))
    try process.run()
  }

  deinit { try? FileManager.default.removeItem(at: folder) }

  /// Until its end. Blocks.
  public func wait() -> CommandResult {
    process.waitUntilExit(atMost: 600)
    func said(_ name: String) -> Data {
      FileManager.default.contents(atPath: folder.appendingPathComponent(name).path) ?? Data()
    }
    return CommandResult(
      status: process.terminationReason == .exit ? process.terminationStatus : 128 + process.terminationStatus,
      output: said("out"), errors: String(decoding: said("err"), as: UTF8.self))
  }
}

extension Process {
  /// Waits for the end. What hangs is killed: its test fails, and the others run.
  public func waitUntilExit(atMost seconds: Double) {
    let pid = processIdentifier
    let watchdog = DispatchWorkItem { kill(pid, SIGKILL) }
    DispatchQueue.global().asyncAfter(deadline: .now() + seconds, execute: watchdog)
    waitUntilExit()
    watchdog.cancel()
  }
}

/// A directory that goes with the test.
public final class Scratch: Sendable {
  public let path: String

  public init() throws {
    // Short, because Unix sockets have at most 107 bytes of path.
    path = "/tmp/sp-\(UUID().uuidString.prefix(8))"
    try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
  }

  deinit {
    Children.end(below: path)
    try? FileManager.default.removeItem(atPath: path)
  }

  public func file(_ name: String, _ bytes: Data) throws -> String {
    let full = "\(path)/\(name)"
    try bytes.write(to: URL(fileURLWithPath: full))
    return full
  }
}

/// What several tests share and no test owns: gone when the runner ends.
public enum Shared {
  private static let lock = NSLock()
  nonisolated(unsafe) private static var paths: [String] = []

  public static func removeAtExit(_ path: String) {
    lock.withLock {
      if paths.isEmpty { atexit { for path in Shared.paths { try? FileManager.default.removeItem(atPath: path) } } }
      paths.append(path)
    }
  }
}

/// Waits for a condition that another process brings about: looks often, fails after `seconds`.
public func eventually(_ seconds: Double = 30, _ condition: () throws -> Bool) rethrows -> Bool {
  let end = ContinuousClock.now + .seconds(seconds)
  while ContinuousClock.now < end {
    if try condition() { return true }
    usleep(10_000)
  }
  return try condition()
}

/// Gateways that run, by process id: whatever a test leaves behind ends with its scratch directory.
enum Children {
  private static let lock = NSLock()
  nonisolated(unsafe) private static var homes: [pid_t: String] = [:]

  static func add(_ pid: pid_t, _ home: String) { lock.withLock { homes[pid] = home } }
  static func remove(_ pid: pid_t) { lock.withLock { homes[pid] = nil } }

  static func end(below path: String) {
    let left = lock.withLock { homes.filter { $0.value.hasPrefix("\(path)/") }.map(\.key) }
    for pid in left {
      kill(pid, SIGKILL)
      remove(pid)
    }
  }
}
