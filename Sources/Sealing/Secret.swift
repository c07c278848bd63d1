// Secret bytes in guarded memory: locked where the system allows, outside core dumps, wiped when the last owner lets go.
//
// sodium_malloc costs 26-32 µs a call (mmap, mprotect, mlock), so small secrets share regions of 64-byte slots.

import CSodium
import Foundation

/// A source of randomness: fills the buffer with unpredictable bytes. Callable concurrently.
public typealias RandomSource = @Sendable (UnsafeMutableRawBufferPointer) -> Void

/// The system's generator (libsodium randombytes_buf, getrandom(2)).
public let systemRandom: RandomSource = { buffer in
  Sodium.ready()
  if let base = buffer.baseAddress { randombytes_buf(base, buffer.count) }
}

enum Sodium {
  private static let state: Int32 = sodium_init()

  /// Starts libsodium once. A failure to start leaves no safe way on.
  static func ready() { precondition(state >= 0, "libsodium could not start") }
}

/// Immutable secret bytes. Never copied into a Swift String or array by this module.
///
/// The memory is zeroed when the object goes. Sendable: nothing changes it after `init`.
public final class Secret: @unchecked Sendable {
  // Proof for @unchecked: `bytes` is written only inside init and deinit, when no other reference exists.
  private let bytes: UnsafeMutableRawBufferPointer
  private let pooled: Bool

  /// `count` bytes (1 ... 64 KiB), filled by `fill`.
  public init<Failure>(
    count: Int, fill: (UnsafeMutableRawBufferPointer) throws(Failure) -> Void
  ) throws(Failure) {
    precondition(count >= 1 && count <= 65536)
    pooled = count <= GuardedPool.slotBytes
    if pooled {
      bytes = .init(start: GuardedPool.shared.take(), count: count)
    } else {
      Sodium.ready()
      guard let base = sodium_malloc(count) else { fatalError("out of guarded memory") }
      bytes = .init(start: base, count: count)
    }
    try fill(bytes)
  }

  public convenience init(random count: Int, from random: RandomSource = systemRandom) {
    self.init(count: count) { random($0) }
  }

  public convenience init(copying source: UnsafeRawBufferPointer) {
    self.init(count: source.count) { $0.copyMemory(from: source) }
  }

  /// Takes over `source` and wipes it.
  public convenience init(wiping source: inout [UInt8]) {
    self.init(count: source.count) { target in
      source.withUnsafeBytes { target.copyMemory(from: $0) }
    }
    source.wipe()
  }

  deinit {
    if pooled {
      GuardedPool.shared.giveBack(bytes.baseAddress!)
    } else {
      sodium_free(bytes.baseAddress)
    }
  }

  public var count: Int { bytes.count }

  /// Lends the bytes for the call. Do not let the pointer out.
  public func withBytes<Result, Failure>(
    _ body: (UnsafeRawBufferPointer) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    try body(UnsafeRawBufferPointer(bytes))
  }

  /// Lends the bytes as Data without a copy, for APIs that take Data.
  func withData<Result>(_ body: (Data) throws -> Result) rethrows -> Result {
    try body(Data(bytesNoCopy: bytes.baseAddress!, count: bytes.count, deallocator: .none))
  }

  /// Constant-time comparison (sodium_memcmp).
  public func equals(_ other: Secret) -> Bool {
    count == other.count && sodium_memcmp(bytes.baseAddress!, other.bytes.baseAddress!, count) == 0
  }
}

extension [UInt8] {
  /// Zeroes the bytes where they are, and forgets them (libsodium sodium_memzero).
  mutating func wipe() {
    withUnsafeMutableBytes { if let base = $0.baseAddress { sodium_memzero(base, $0.count) } }
    removeAll()
  }
}

/// Regions of guarded memory cut into 64-byte slots; a free slot holds zeros.
private final class GuardedPool: @unchecked Sendable {
  static let slotBytes = 64
  private static let slotsPerRegion = 256
  static let shared = GuardedPool()

  // Proof for @unchecked: `free` is touched only under `lock`. Regions live as long as the process.
  private let lock = NSLock()
  private var free: [UnsafeMutableRawPointer] = []

  func take() -> UnsafeMutableRawPointer {
    lock.withLock {
      if free.isEmpty {
        Sodium.ready()
        guard let region = sodium_malloc(Self.slotBytes * Self.slotsPerRegion) else {
          fatalError("out of guarded memory")
        }
        sodium_memzero(region, Self.slotBytes * Self.slotsPerRegion)
        free = (0..<Self.slotsPerRegion).map { region + $0 * Self.slotBytes }
      }
      return free.removeLast()
    }
  }

  func giveBack(_ slot: UnsafeMutableRawPointer) {
    sodium_memzero(slot, Self.slotBytes)
    lock.withLock { free.append(slot) }
  }
}
