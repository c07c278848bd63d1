// How a gateway ends that must not go on: its services first, and the process in any case.

import Foundation
import Glibc
import Logging
import NIOConcurrencyHelpers
import ServiceLifecycle

/// Ends the service group when something meets a failure that must stop the process, and the process when the group does not end.
final class FatalStop: Service {
  /// Whoever waits on a disk that failed may wait for ever.
  static let patienceSeconds = 10.0

  private let failure = NIOLockedValueBox<(any Error)?>(nil)
  private let isLimited = NIOLockedValueBox(false)
  private let hasEnded = NIOLockedValueBox(false)
  private let news = Signal()
  private let logger: Logger

  init(logger: Logger) { self.logger = logger }

  func raise(_ error: any Error) {
    failure.withLockedValue { $0 = $0 ?? error }
    news.notify()
    limit(error)
  }

  /// Gives everything that runs `patienceSeconds` to end because of `error`.
  func limit(_ error: any Error) {
    guard
      isLimited.withLockedValue({ isLimited in
        defer { isLimited = true }
        return !isLimited
      })
    else { return }
    Thread.detachNewThread { [self] in
      Thread.sleep(forTimeInterval: Self.patienceSeconds)
      guard !hasEnded.withLockedValue({ $0 }) else { return }
      // On another thread: what is logged may go to the disk that hangs.
      Thread.detachNewThread { [logger] in
        logger.critical("\(error); what is under way does not end, so the process does")
      }
      Thread.sleep(forTimeInterval: 1)
      _exit(ExitStatus(error).rawValue)
    }
  }

  /// What it guards has ended, or is no more.
  func end() { hasEnded.withLockedValue { $0 = true } }

  func run() async throws {
    try await untilShutdown { [self] in
      while !Task.isCancelled {
        let seen = news.generation
        if let error = failure.withLockedValue({ $0 }) { throw error as? FatalFailure ?? FatalFailure(cause: error) }
        await news.wait(after: seen, for: .seconds(3600))
      }
    }
  }
}

/// A service whose failure ends the group; the process too, when the others do not end.
struct Guarded: Service {
  let service: any Service
  let fatal: FatalStop

  func run() async throws {
    do {
      try await service.run()
    } catch {
      if !(error is CancellationError) { fatal.limit(error) }
      throw error
    }
  }
}
