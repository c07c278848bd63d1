// seal and open: stock age files, outside any agreement. `-` is standard input or output.

import ArgumentParser
import CLinux
import Foundation
import Gateway
import Glibc
import Sealing
import Store

struct StreamOptions: ParsableArguments {
  @Option(
    name: .shortAndLong, help: "Where to write; - for standard output. A file appears only when it is whole.",
    completion: .file())
  var output: String
  @Option(help: "Force one chunk cipher: openssl or sodium.")
  var cipher: CipherEngine?
  @Option(help: "Threads; all cores otherwise.")
  var workers: Int?
  @Flag(help: "Return only when the output is on disk (fdatasync).")
  var sync = false
  @Flag(help: "No progress bar.")
  var quiet = false
  @Flag(help: "Print JSON Lines about the output; on standard error where that is standard output.")
  var json = false

  var count: Int { min(64, max(1, workers ?? ProcessInfo.processInfo.activeProcessorCount)) }

  /// For scripts; people see that it went well.
  func tell(_ result: PassResult, fileBytes: Int64) {
    guard json else { return }
    Output(asJSON: true, to: output == "-" ? STDERR_FILENO : STDOUT_FILENO).row(
      [
        "file": .string(output), "fileBytes": .integer(fileBytes), "payloadBytes": .integer(result.plainBytes),
        "treeRoot": .string(result.treeRoot.hex),
      ], human: "")
  }

  func engine() throws -> CipherEngine {
    let fastest = try CipherEngine.selfTest()
    return cipher ?? fastest
  }
}

struct SealCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "seal", abstract: "Seal a file to age recipients; stock age opens it.")

  @Argument(help: "The file to seal; - for standard input.", completion: .file())
  var file: String
  @Option(name: .shortAndLong, help: "A recipient: age1… or age1pq1…. May be given several times.")
  var recipient: [String] = []
  @Option(name: .customShort("R"), help: "A file of recipients, one a line.", completion: .file())
  var recipientsFile: [String] = []
  @OptionGroup var stream: StreamOptions

  func run() async throws {
    var recipients = try recipient.map { try Recipient($0) }
    for path in recipientsFile {
      let text = String(decoding: try File.contents(path, bytesMax: 1 << 20), as: UTF8.self)
      for line in text.split(whereSeparator: \.isNewline) where !line.hasPrefix("#") {
        recipients.append(try Recipient(line.trimmingCharacters(in: .whitespaces)))
      }
    }
    guard !recipients.isEmpty else { throw ValidationError("give at least one recipient: -r age1…") }
    let (key, payloadKey) = try PackageKey.create(for: recipients)
    let input = try Input(file)
    let progress = Progress(total: input.size, quiet: stream.quiet)
    let pass = Pass(engine: try stream.engine(), workers: stream.count) { progress.update($0) }
    let sealedBytes = try input.size.map { Int64(key.bytes.count) + (try BodyGeometry(plainBytes: $0)).sealedBytes }
    let result = try Destination.write(
      to: stream.output, bytes: sealedBytes, mode: 0o644, sync: stream.sync
    ) { destination in
      try destination.put(key.bytes)
      return try pass.seal(
        input.source(layout: .plain), to: destination.sink(after: key.bytes.count), payloadKey: payloadKey)
    }
    progress.finish()
    stream.tell(result, fileBytes: Int64(key.bytes.count) + result.sealedBytes)
  }
}

struct OpenCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(commandName: "open", abstract: "Open an age file with identities.")

  @Argument(help: "The sealed file; - for standard input.", completion: .file())
  var file: String
  @Option(
    name: .shortAndLong, help: "A file with age identities (AGE-SECRET-KEY-…). May be given several times.",
    completion: .file())
  var identity: [String]
  @OptionGroup var stream: StreamOptions

  func run() async throws {
    var identities: [Identity] = []
    for path in identity { identities += try IdentityFile.read(path) }
    let input = try Input(file)
    let start = try input.prefix(PackageKey.bytesMax)
    if start.starts(with: "-----BEGIN AGE".utf8) {
      throw SealingError(
        .headerMalformed, "\(file) is armored; remove the armor first: age-keygen and age write binary without -a")
    }
    let key = try PackageKey(parsing: start)
    let payloadKey = try key.open(with: identities)
    let offset = key.bytes.count
    let progress = Progress(total: input.size, quiet: stream.quiet)
    let pass = Pass(engine: try stream.engine(), workers: stream.count) { progress.update($0) }
    let plainBytes = try input.size.map { try BodyGeometry(sealedBytes: $0 - Int64(offset)).plainBytes }
    let result = try Destination.write(
      to: stream.output, bytes: plainBytes, mode: 0o600, sync: stream.sync
    ) { destination in
      try pass.open(
        input.source(layout: .sealed, after: offset, of: start), to: destination.sink(), payloadKey: payloadKey)
    }
    progress.finish()
    stream.tell(result, fileBytes: result.plainBytes)
  }
}

/// Standard input, or an open file.
private final class Input {
  private let file: File
  private let isStream: Bool
  /// Bytes, where they are known.
  let size: Int64?

  init(_ path: String) throws {
    let file = path == "-" ? File(owning: dup(STDIN_FILENO), path: "standard input") : try Input.open(path)
    let info = try file.status()
    guard info.st_mode & S_IFMT != S_IFDIR else { throw DiskError("read", path, errno: EISDIR) }
    // A regular file on standard input is read as a stream too: its offset is its owner's.
    isStream = path == "-" || info.st_mode & S_IFMT != S_IFREG
    size = isStream ? nil : Int64(info.st_size)
    self.file = file
  }

  /// Unlike a gateway's own files, what a person names may be a link.
  private static func open(_ path: String) throws -> File {
    let descriptor = Glibc.open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { throw DiskError("open", path) }
    return File(owning: descriptor, path: path)
  }

  /// The first bytes, at most `count`.
  func prefix(_ count: Int) throws -> [UInt8] {
    let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: count, alignment: 16)
    defer { buffer.deallocate() }
    guard isStream else { return Array(buffer[..<(try file.read(into: buffer, at: 0))]) }
    var done = 0
    while done < count {
      let got = read(file.descriptor, buffer.baseAddress! + done, count - done)
      if got < 0, errno == EINTR { continue }
      guard got >= 0 else { throw DiskError("read", file.path) }
      if got == 0 { break }
      done += got
    }
    return Array(buffer[..<done])
  }

  /// What follows the first `offset` bytes, of which a stream's reader has `taken` already.
  func source(layout: SegmentLayout, after offset: Int = 0, of taken: [UInt8] = []) throws -> any SegmentSource {
    guard let size else {
      return StreamSource(descriptor: file.descriptor, prefix: Array(taken.dropFirst(offset)), layout: layout)
    }
    return try FileSource(file, offset: Int64(offset), bytes: size - Int64(offset), layout: layout)
  }
}

/// A new file that appears only when it is whole, or standard output, or what stands at a path and is no file.
private struct Destination {
  private final class Box {
    let file: File
    init(_ file: consuming File) { self.file = file }
  }

  /// nil: standard output.
  private let box: Box?
  /// A pipe or a terminal: it has no places, only an order.
  private let isStream: Bool

  private init(_ box: Box?) {
    self.box = box
    isStream = box.map { lseek($0.file.descriptor, 0, SEEK_CUR) < 0 } ?? true
  }

  private var descriptor: CInt { box?.file.descriptor ?? STDOUT_FILENO }

  func sink(after offset: Int = 0) -> any SegmentSink {
    if let box, !isStream { FileSink(box.file, offset: Int64(offset)) } else { StreamSink(descriptor: descriptor) }
  }

  func put(_ bytes: [UInt8]) throws {
    if let box, !isStream {
      try box.file.write(bytes, at: 0)
    } else {
      try bytes.withUnsafeBytes { try StreamSink.writeAll(descriptor, $0) }
    }
  }

  /// Runs `body`; on failure nothing is left at `path`. /dev/null and other special files are written to as they are. What takes the
  /// place of a file may be read by whom that could be read by; a new file by `mode`.
  ///
  /// - Parameter bytes: how many will be written, where that is known; they are reserved first.
  static func write<Value>(
    to path: String, bytes: Int64?, mode: mode_t, sync: Bool, _ body: (Destination) throws -> Value
  ) throws -> Value {
    guard path != "-" else { return try body(Destination(nil)) }
    var info = stat()
    let isThere = stat(path, &info) == 0
    if isThere, info.st_mode & S_IFMT != S_IFREG {
      guard info.st_mode & S_IFMT != S_IFDIR else { throw DiskError("write", path, errno: EISDIR) }
      let descriptor = Glibc.open(path, O_WRONLY | O_CLOEXEC)
      guard descriptor >= 0 else { throw DiskError("open", path) }
      return try body(Destination(Box(File(owning: descriptor, path: path))))
    }
    let url = URL(fileURLWithPath: path)
    let directory = url.deletingLastPathComponent().path
    let temporary = "\(directory)/.\(url.lastPathComponent).tmp-\(getpid())"
    let mode = isThere ? info.st_mode & 0o777 : mode
    // Without a name it goes with the process, however that ends: half a file, perhaps opened, is not left by Ctrl-C.
    let unnamed = sp_open_unnamed(directory, mode)
    do {
      let box =
        if unnamed >= 0 { Box(File(owning: unnamed, path: path)) } else {
          Box(try File(temporary, O_RDWR | O_CREAT | O_EXCL, mode: mode))
        }
      if let bytes { try box.file.reserve(bytes) }
      let value = try body(Destination(box))
      if sync { try box.file.syncData() }
      if unnamed >= 0, sp_name_file(unnamed, temporary) != 0 { throw DiskError("link", temporary) }
      try Directory.rename(temporary, path)
      if sync { try Directory.sync(directory) }
      return value
    } catch {
      unlink(temporary)
      throw error
    }
  }
}

/// Files as age-keygen writes them.
enum IdentityFile {
  static func read(_ path: String) throws -> [Identity] {
    var bytes = try File.contents(path, bytesMax: 65536)
    guard !bytes.isEmpty else { throw SealingError(.keyInvalid, "\(path) holds no identity") }
    let text = Secret(wiping: &bytes)
    try Home.requireMode(URL(fileURLWithPath: path).resolvingSymlinksInPath().path, forbidding: 0o077)
    var identities: [Identity] = []
    try text.withBytes { text in
      for line in text.split(separator: 10) {
        let line = line.drop { $0 == 32 }.prefix { $0 != 13 && $0 != 32 }
        if line.isEmpty || line.first == 35 { continue }
        identities.append(try Identity(line))
      }
    }
    guard !identities.isEmpty else { throw SealingError(.keyInvalid, "\(path) holds no identity") }
    return identities
  }
}
