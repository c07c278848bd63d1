// Connections get their pipeline when they are served.
//
// A server whose task is cancelled drops what it accepts at that moment. NIO traps when such a connection holds a
// NIOAsyncChannel already (swift-nio 2, NIOAsyncWriter), so that it must not before it is handled.

import HummingbirdCore
import Logging
import NIOCore

/// A connection that was accepted and from which nothing has been read. Closed when it is let go of.
final class AcceptedConnection: ServerChildChannelValue {
  let channel: any Channel

  init(_ channel: any Channel) { self.channel = channel }

  deinit { channel.close(promise: nil) }
}

/// Gives each accepted connection to `serve`, which makes its pipeline and lets it read by `HTTP1Channel.serve`.
struct ServedChannel: ServerChildChannel {
  let serve: @Sendable (any Channel, Logger) async -> Void

  func setup(channel: any Channel, logger: Logger) -> EventLoopFuture<AcceptedConnection> {
    channel.setOption(.autoRead, value: false).map { AcceptedConnection(channel) }
  }

  func handle(value accepted: AcceptedConnection, logger: Logger) async {
    await serve(accepted.channel, logger)
    withExtendedLifetime(accepted) {}
  }
}

extension HTTP1Channel {
  /// Speaks HTTP on an accepted connection until it closes.
  func serve(_ channel: any Channel, logger: Logger) async {
    let setup = channel.eventLoop.flatSubmit { self.setup(channel: channel, logger: logger) }
    guard let connection = try? await setup.get() else { return }
    channel.setOption(.autoRead, value: true).whenFailure { _ in channel.close(promise: nil) }
    await handle(value: connection, logger: logger)
  }
}
