// Threads for work that blocks: fsync, sealing, directory scans. The default pool has one thread a core and no more,
// so one slow disk or partner would stop the server.

import NIOCore
import NIOPosix
import Transport

/// A bounded pool of threads. Callable concurrently.
package final class BlockingPool: Sendable {
  private let threads: NIOThreadPool

  /// `count` threads, started at once. `shutDown` ends them.
  package init(threads count: Int) {
    threads = NIOThreadPool(numberOfThreads: count)
    threads.start()
  }

  /// Runs `body` on one of the threads, after what came before it.
  ///
  /// - Throws: what `body` throws; CancellationError when cancelled before it began.
  package func run<Value: Sendable>(_ body: @escaping @Sendable () throws -> Value) async throws -> Value {
    try await threads.runIfActive(body)
  }

  /// As `run`, for work that goes on beside its caller. What ends it comes to the caller's own loop when it has one: a task would go
  /// through two more threads.
  package func start<Value: Sendable>(_ body: @escaping @Sendable () throws -> Value) -> EventLoopFuture<Value> {
    threads.runIfActive(eventLoop: ServerLoops.shared.group.any(), body)
      .flatMapErrorThrowing { throw $0 is NIOThreadPoolError.ThreadPoolInactive ? CancellationError() : $0 }
  }

  package func shutDown() async throws { try await threads.shutdownGracefully() }
}
