// Threads for work that blocks: fsync, sealing, directory scans. The default pool has one thread a core and no more,
// so one slow disk or partner would stop the server.

import NIOPosix

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

  package func shutDown() async throws { try await threads.shutdownGracefully() }
}
