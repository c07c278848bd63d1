// The spool: durable bodies, ciphertext only.
//
//   HOME/spool/out/ID.body        HOME/spool/in/SENDER/ID.body        ….part while it is being written
//   HOME/spool/…/ID.tree          of a body that its recipient collects: a digest that names the body (its SHA-256; at a hub its
//                                 tree root), then the root of each segment
//
// A body becomes durable so:
//   open(ID.part, O_CREAT|O_EXCL|O_NOFOLLOW, 0600)  pwrite…  fdatasync  close  rename(ID.part, ID.body)  fsync(directory)
// and only then may a ledger row name it. A file without a row is garbage; a row without its file is damage.

import Foundation
import Glibc
import Sealing

/// Where bodies are kept. Callable concurrently for different transfers; blocks.
package final class Spool: Sendable {
  package let path: String
  private let out: DirectorySync
  private let incoming: DirectorySyncs

  package init(home: String) throws(DiskError) {
    path = "\(home)/spool"
    try Directory.make("\(path)/out")
    try Directory.make("\(path)/in")
    out = DirectorySync("\(path)/out")
    incoming = DirectorySyncs()
  }

  package enum Place: Hashable, Sendable {
    case out(TransferID)
    case incoming(AgencyID, TransferID)
  }

  private func directory(_ place: Place) -> String {
    switch place {
    case .out: "\(path)/out"
    case .incoming(let sender, _): "\(path)/in/\(sender.text)"
    }
  }

  private func base(_ place: Place) -> String {
    switch place {
    case .out(let id), .incoming(_, let id): "\(directory(place))/\(id.text)"
    }
  }

  package func body(_ place: Place) -> String { "\(base(place)).body" }
  package func part(_ place: Place) -> String { "\(base(place)).part" }
  package func tree(_ place: Place) -> String { "\(base(place)).tree" }

  /// Writes the side file of a body, before its row says that it is there. Durable when it returns.
  package func putTree(_ place: Place, digest: Digest, roots: [Digest]) throws(DiskError) {
    var bytes = digest.bytes
    bytes.reserveCapacity(32 * (roots.count + 1))
    for root in roots { bytes += root.bytes }
    try DurableFile.write(bytes, to: tree(place))
  }

  /// The digest that names the body, from its side file; nil when there is none.
  package func bodyDigest(_ place: Place, segments: Int64) throws(DiskError) -> Digest? {
    try treeBytes(place, segments: segments, at: 0, count: 32).map { Digest($0) }
  }

  /// The roots of the body's segments, from its side file; nil when there is none.
  package func segmentRoots(_ place: Place, segments: Int64) throws(DiskError) -> [UInt8]? {
    try treeBytes(place, segments: segments, at: 32, count: Int(32 * segments))
  }

  private func treeBytes(_ place: Place, segments: Int64, at offset: Int64, count: Int) throws(DiskError) -> [UInt8]? {
    guard Directory.exists(tree(place)) else { return nil }
    let file = try File(tree(place), O_RDONLY)
    guard Int64(try file.status().st_size) == 32 * (segments + 1) else {
      throw DiskError("read", tree(place), errno: ENODATA)
    }
    return try file.bytes(at: offset, count: count)
  }

  /// A fresh, empty part, with room for `bytes` reserved.
  package func create(_ place: Place, bytes: Int64) throws(DiskError) -> File {
    if case .incoming = place { try Directory.make(directory(place)) }
    try Directory.remove(part(place))
    let file = try File(part(place), O_RDWR | O_CREAT | O_EXCL, keptBytes: FileAccess.keptBytesMax)
    do {
      try file.reserve(bytes)
    } catch {
      // What was reserved before the disk was full stays allocated otherwise.
      try Directory.remove(part(place))
      throw error
    }
    return file
  }

  /// An existing part, to be continued; nil when there is none.
  package func reopen(_ place: Place) throws(DiskError) -> File? {
    do throws(DiskError) {
      return try File(part(place), O_RDWR, keptBytes: FileAccess.keptBytesMax)
    } catch  where error.errno == ENOENT {
      return nil
    }
  }

  /// Makes a finished part the body. `file` was synced by the caller. Durable when it returns.
  package func finish(_ place: Place) throws(DiskError) {
    try Directory.rename(part(place), body(place))
    switch place {
    case .out: try out.sync()
    case .incoming: try incoming[directory(place)].sync()
    }
  }

  package func open(_ place: Place) throws(DiskError) -> File {
    try File(body(place), O_RDONLY, keptBytes: FileAccess.keptBytesMax)
  }

  /// Removes body, part and side file. Called only after the commit of a state that needs none of them.
  package func remove(_ place: Place) throws(DiskError) {
    // First, so that a side file is never alone.
    try Directory.remove(tree(place))
    try Directory.remove(body(place))
    try Directory.remove(part(place))
  }

  /// Removes what was written of a package of ours that does not go: body and index of subjects.
  package func discard(_ id: TransferID) throws {
    try remove(.out(id))
    try removeSubjects(id)
  }

  package func has(_ place: Place) -> Bool { Directory.exists(body(place)) }
  package func hasPart(_ place: Place) -> Bool { Directory.exists(part(place)) }

  /// Every body and part in the spool, with whether it is a finished body. Removes what a crash left of files being replaced: call it
  /// before anything is written.
  package func inventory() throws(DiskError) -> [(place: Place, isBody: Bool)] {
    var found: [(Place, Bool)] = []
    func scan(_ directory: String, _ make: (TransferID) -> Place) throws(DiskError) {
      for name in try Directory.names(directory) {
        if name.hasPrefix("."), name.contains(".tmp-") { try Directory.remove("\(directory)/\(name)") }
        let parts = name.split(separator: ".")
        guard parts.count == 2, parts[1] == "body" || parts[1] == "part", let id = TransferID(String(parts[0])) else {
          continue
        }
        found.append((make(id), parts[1] == "body"))
      }
    }
    try scan("\(path)/out") { .out($0) }
    for name in try Directory.names("\(path)/in") {
      guard let sender = AgencyID(name) else { continue }
      try scan("\(path)/in/\(name)") { .incoming(sender, $0) }
    }
    return found
  }
}

/// One DirectorySync per directory, made on first use.
package final class DirectorySyncs: @unchecked Sendable {
  // Proof for @unchecked: `syncs` is touched only under `lock`.
  private let lock = NSLock()
  private var syncs: [String: DirectorySync] = [:]

  package init() {}

  package subscript(_ path: String) -> DirectorySync {
    lock.withLock {
      if let sync = syncs[path] { return sync }
      let sync = DirectorySync(path)
      syncs[path] = sync
      return sync
    }
  }
}
