// A watched folder: what in it is ready, what is not and why. Looks only; Intake takes.

import CLinux
import Foundation
import Glibc
import Policies
import Sealing
import Store

/// What a name in a watched folder is, as far as pick-up goes. `why PATH` and the scanner share this judgement.
package enum FolderEntry: Equatable, Sendable {
  case ready
  /// Not yet, and why.
  case waiting(String)
  /// The gateway's user may not read it.
  case unreadable
  /// Never: ours, hidden, or a temporary name.
  case ignored(String)
  /// It will be moved to `returned/`, with this reason.
  case unfit(String)
}

/// One `outbox/<agreement>/`.
package struct Folder: Sendable {
  /// Names that programs use while they write.
  package static let temporarySuffixes = [
    "~", ".tmp", ".temp", ".part", ".partial", ".filepart", ".crdownload", ".swp",
  ]
  /// Marks the directory as ours: when it is missing, the mount is, and an empty directory is not an idle folder.
  package static let sentinel = ".sallyport-folder"

  package let path: String
  /// Where claimed files lie.
  let claims: String
  package let agreement: String
  package let contract: Configuration.Folder
  private let home: String

  package init(_ home: Home, agreement: String, contract: Configuration.Folder) {
    self.home = home.path
    path = home.outbox(agreement)
    claims = home.claims(agreement)
    self.agreement = agreement
    self.contract = contract
  }

  /// Makes the directory with its claim directory and sentinel, unless `wasMade` says that it existed before.
  ///
  /// - Throws: DiskError ENODEV for a missing mount; `ConfigurationError` where others could take what is the gateway's.
  func make(wasMade: Bool) throws {
    if wasMade {
      guard Directory.exists("\(path)/\(Self.sentinel)") else {
        throw DiskError("look for the mount of", path, errno: ENODEV)
      }
    } else {
      try Directory.make(claims)
      try DurableFile.write(Array("\(agreement)\n".utf8), to: "\(path)/\(Self.sentinel)")
    }
    try requireSafe()
  }

  /// The folder is this agreement's: mounted in each other's places, two folders would send to each other's recipients. And whoever else
  /// may write here cannot move `.claimed`: a link in its place would lead to another agreement's files.
  ///
  /// - Throws: `ConfigurationError`; DiskError.
  package func requireSafe() throws {
    let marked = String(decoding: try File.contents("\(path)/\(Self.sentinel)", bytesMax: 4096), as: UTF8.self)
    guard marked == "\(agreement)\n" else {
      throw ConfigurationError(
        "\(path) is marked as the folder of \(marked.prefix(80).split(separator: "\n").joined().onOneLine): is another file system mounted here?"
      )
    }
    // The folder itself may be a link of the administrator's.
    let (folder, claimed) = (try Directory.status("\(path)/."), try Directory.status(claims))
    let owner = try Directory.status("\(home)/.").st_uid
    func isSafe(_ info: stat) -> Bool { info.st_mode & 0o022 == 0 || info.st_mode & S_ISVTX != 0 }
    guard folder.st_uid == owner || (folder.st_uid == 0 && geteuid() == 0) else {
      throw ConfigurationError("\(path) is not a directory of the gateway's user", remedy: "chown \(owner) \(path)")
    }
    guard isSafe(folder) else {
      throw ConfigurationError("others may write in \(path), and move what is not theirs", remedy: "chmod +t \(path)")
    }
    guard claimed.st_mode & S_IFMT == S_IFDIR, [owner, 0].contains(claimed.st_uid), isSafe(claimed) else {
      throw ConfigurationError(
        "\(claims) is not the directory that the gateway made, or others may move what is in it",
        remedy: "ls -ld \(claims)")
    }
  }

  /// What is said of names that are not UTF-8.
  package static func illegible(_ count: Int) -> String {
    "names that are not UTF-8: \(count); those files stay there until they are renamed"
  }

  package static let unreadable = "the gateway's user may not read it: give it the right, and it is taken"

  /// Judges one name. `observations` remembers sizes and times for `stable`.
  package func judge(_ name: String, _ observations: inout StabilityMemory, now: Date) -> FolderEntry {
    if name.utf8.first == 46 { return .ignored("hidden names are left alone") }
    if let suffix = Self.temporarySuffixes.first(where: { name.hasSuffix($0) }) {
      return .ignored("names ending in \(suffix) are temporary; rename the file when it is complete")
    }
    if contract.readiness == .trigger, name.hasSuffix(contract.triggerSuffix) {
      return .ignored("a trigger; it goes with the file that it names")
    }
    var info = stat()
    guard lstat("\(path)/\(name)", &info) == 0 else { return .waiting("it is not there (any more)") }
    switch info.st_mode & S_IFMT {
    case S_IFREG: break
    case S_IFLNK: return .unfit("a symbolic link is never followed")
    case S_IFDIR: return .unfit("a directory is not a payload")
    default: return .unfit("a FIFO, socket or device is not a payload")
    }
    guard info.st_nlink == 1 else { return .unfit("the file has another name (hard link)") }
    guard faccessat(AT_FDCWD, "\(path)/\(name)", R_OK, AT_EACCESS) == 0 else {
      return .unreadable
    }
    switch contract.readiness {
    case .rename: return .ready
    case .trigger:
      var trigger = stat()
      let isThere = lstat("\(path)/\(name)\(contract.triggerSuffix)", &trigger) == 0
      return isThere && trigger.st_mode & S_IFMT == S_IFREG
        ? .ready : .waiting("its trigger \(name)\(contract.triggerSuffix) is not there")
    case .stable: return observations.observe(name, info, contract.stableSeconds, now: now)
    }
  }
}

/// Sizes and times of files that are settling. Forgets names that went.
package struct StabilityMemory: Sendable {
  package static let observationsMin = 3

  private struct Observation: Equatable {
    let size: Int
    /// Seconds and nanoseconds, each for itself: a file may be dated in a distant century.
    let modified: [Int]
    let changed: [Int]
    let inode: UInt
  }

  private var seen: [String: (observation: Observation, since: Date, count: Int)] = [:]

  package init() {}

  mutating func observe(_ name: String, _ info: stat, _ stableSeconds: Int64, now: Date) -> FolderEntry {
    let observation = Observation(
      size: info.st_size, modified: [info.st_mtim.tv_sec, info.st_mtim.tv_nsec],
      changed: [info.st_ctim.tv_sec, info.st_ctim.tv_nsec], inode: info.st_ino)
    var entry = seen[name] ?? (observation, now, 0)
    if entry.observation != observation { entry = (observation, now, 0) }
    entry.count += 1
    seen[name] = entry
    let left = Double(stableSeconds) - now.timeIntervalSince(entry.since)
    if entry.count >= Self.observationsMin, left <= 0 { return .ready }
    return .waiting("settling: seen the same \(entry.count) times, \(max(0, Int(left.rounded(.up)))) s left")
  }

  mutating func keep(only names: Set<String>) { seen = seen.filter { names.contains($0.key) } }
}
