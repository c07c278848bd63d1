// Threads for work that blocks: fsync, sealing, directory scans. The default pool has one thread a core and no more,
// so one slow disk or partner would stop the server.

import NIOCore
import NIOPosix
import Transport

/// A bounded pool of threads. Callable concurrently.
///
/// A task that prefers it as its executor blocks its threads without a change of thread: each change wakes one, and of a small package's
/// time most would be spent so.
package final class BlockingPool: TaskExecutor {
  private let threads: NIOThreadPool
  /// On the threads of a pool, that pool.
  private static let current = ThreadSpecificVariable<BlockingPool>()

  /// `count` threads, started at once. `shutDown` ends them.
  package init(threads count: Int) {
    threads = NIOThreadPool(numberOfThreads: count)
    threads.start()
  }

  /// Runs `body` on one of the threads: this one, when it is one of them.
  ///
  /// - Throws: what `body` throws; CancellationError when cancelled before it began.
  package func run<Value: Sendable>(_ body: @escaping @Sendable () throws -> Value) async throws -> Value {
    if isCurrent {
      try Task.checkCancellation()
      return try body()
    }
    return try await threads.runIfActive(body)
  }

  private var isCurrent: Bool { Self.current.currentValue === self }

  package func enqueue(_ job: consuming ExecutorJob) {
    let job = UnownedJob(job)
    // What is left of a task when the pool has shut down runs too.
    threads.submit { [self] _ in
      Self.current.currentValue = self
      job.runSynchronously(on: asUnownedTaskExecutor())
    }
  }

  /// As `run`, for work that goes on beside its caller. What ends it comes to the caller's own loop when it has one: a task would go
  /// through two more threads.
  package func start<Value: Sendable>(_ body: @escaping @Sendable () throws -> Value) -> EventLoopFuture<Value> {
    threads.runIfActive(eventLoop: ServerLoops.shared.group.any(), body)
      .flatMapErrorThrowing { throw $0 is NIOThreadPoolError.ThreadPoolInactive ? CancellationError() : $0 }
  }

  package func shutDown() async throws { try await threads.shutdownGracefully() }
}
