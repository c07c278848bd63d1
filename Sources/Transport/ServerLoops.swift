// The servers' threads.

import Dispatch
import NIOConcurrencyHelpers
import NIOCore
import NIOPosix

/// The event loops of the servers, with the turns that bodies take on them. Callable concurrently.
package struct ServerLoops: Sendable {
  package let group: MultiThreadedEventLoopGroup
  private let executors: [ObjectIdentifier: LoopTaskExecutor]
  private let turns: LoopTurns

  /// The process's own. Never shut down: what a closed connection lets go of may come to its loop late.
  package static let shared = ServerLoops(threads: 2)

  package init(threads: Int) {
    turns = LoopTurns()
    group = MultiThreadedEventLoopGroup(numberOfThreads: threads, metricsDelegate: turns)
    executors = Dictionary(
      uniqueKeysWithValues: group.makeIterator().map { (ObjectIdentifier($0), LoopTaskExecutor($0)) })
  }

  /// Runs a connection's tasks on the loop of its channel.
  func executor(of channel: any Channel) -> LoopTaskExecutor? { executors[ObjectIdentifier(channel.eventLoop)] }

  /// Larger pieces cost less: most of the price of a piece is its way between two threads (measured: half of that of 128 KiB).
  static let pieceBytesMax = 512 << 10
  static let pieceBytesMin = 64 << 10
  /// What the bodies of one loop have in memory together, each at least `pieceBytesMin`.
  static let bodiesBytes = 1 << 20
  /// How long a loop may go on before its bodies wait for their turn.
  static let tickTime = TimeAmount.microseconds(500)

  static func pieceBytes(of bodies: Int) -> Int {
    min(pieceBytesMax, max(pieceBytesMin, bodiesBytes / max(1, bodies)))
  }

  /// Counts the bodies that the channel's loop streams now.
  func bodies(_ change: Int, on channel: any Channel) { turns.bodies(change, on: ObjectIdentifier(channel.eventLoop)) }

  /// The bytes that the channel's body may send next; when the loop has not looked for what came in for long, it does so first.
  ///
  /// A tick of NIO's loop lasts as long as there are tasks, and bodies whose readers keep up always have the next one: without
  /// turns, new requests wait until those readers pause (measured: 1.4 s for a list beside 64 downloads).
  func turn(of channel: any Channel) async -> Int {
    // Elsewhere than on the loop there is no tick whose end would be told.
    guard channel.eventLoop.inEventLoop else { return Self.pieceBytesMin }
    return await turns.next(ObjectIdentifier(channel.eventLoop))
  }
}

private final class LoopTurns: NIOEventLoopMetricsDelegate {
  private struct Loop {
    var bodies = 0
    var waiting: [UnsafeContinuation<Int, Never>] = []
    var tickEnded = NIODeadline.now()
  }

  private let loops = NIOLockedValueBox<[ObjectIdentifier: Loop]>([:])
  private let queue = DispatchQueue(label: "turns")

  func bodies(_ change: Int, on loop: ObjectIdentifier) {
    loops.withLockedValue { $0[loop, default: Loop()].bodies += change }
  }

  func next(_ loop: ObjectIdentifier) async -> Int {
    await withUnsafeContinuation { turn in
      let now: Int? = loops.withLockedValue { loops in
        let known = loops[loop, default: Loop()]
        guard NIODeadline.now() - known.tickEnded > ServerLoops.tickTime else {
          return ServerLoops.pieceBytes(of: known.bodies)
        }
        loops[loop, default: Loop()].waiting.append(turn)
        return nil
      }
      if let now { turn.resume(returning: now) }
    }
  }

  func processedTick(info: NIOEventLoopTickInfo) {
    let (bodies, bytes) = loops.withLockedValue { loops in
      let loop = loops[info.eventLoopID, default: Loop()]
      loops[info.eventLoopID] = Loop(bodies: loop.bodies, tickEnded: info.endTime)
      return (loop.waiting, ServerLoops.pieceBytes(of: loop.bodies))
    }
    // What a loop gives itself after a tick does not wake it.
    if !bodies.isEmpty { queue.async { for body in bodies { body.resume(returning: bytes) } } }
  }
}

/// Runs tasks on one event loop, so that a connection's tasks share the loop of its channel.
final class LoopTaskExecutor: TaskExecutor {
  private let loop: any EventLoop

  init(_ loop: any EventLoop) { self.loop = loop }

  func enqueue(_ job: consuming ExecutorJob) {
    let job = UnownedJob(job)
    let executor = asUnownedTaskExecutor()
    loop.execute { job.runSynchronously(on: executor) }
  }
}
