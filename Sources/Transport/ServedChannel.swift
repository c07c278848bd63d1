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

  /// Bytes of one read from a socket that is always full; others get less room. As many as NIO's four reads in a row, in one: what is read
  /// in a row is decrypted into one buffer, which must stay small enough for the allocator to keep its pages.
  static let receiveBytesMax = 256 << 10

  func setup(channel: any Channel, logger: Logger) -> EventLoopFuture<AcceptedConnection> {
    let buffers = AdaptiveRecvByteBufferAllocator(minimum: 1024, initial: 2048, maximum: Self.receiveBytesMax)
    return channel.setOption(.autoRead, value: false)
      .and(channel.setOption(.maxMessagesPerRead, value: 1))
      .and(channel.setOption(.recvAllocator, value: buffers))
      .map { _ in AcceptedConnection(channel) }
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
