// Bodies that are always ready, and what else comes to their loop.

import NIOConcurrencyHelpers
import NIOCore
import NIOPosix
import Testing

@testable import Transport

@Suite struct ServerLoopsTests {
  /// Without turns the loop would see the connection only after the last round.
  @Test func bodiesLetTheLoopSeeWhatComesIn() async throws {
    let loops = ServerLoops(threads: 1)
    let rounds = NIOLockedValueBox(0)
    let accepted = NIOLockedValueBox<Int?>(nil)
    let most = 20_000
    let server = try await ServerBootstrap(group: loops.group)
      .childChannelInitializer { channel in
        channel.eventLoop.makeCompletedFuture { accepted.withLockedValue { $0 = rounds.withLockedValue { $0 } } }
      }.bind(host: "127.0.0.1", port: 0).get()
    let address = try #require(server.localAddress)
    try await withThrowingTaskGroup { tasks in
      for _ in 0..<8 {
        tasks.addTask(executorPreference: loops.executor(of: server)) {
          loops.bodies(+1, on: server)
          defer { loops.bodies(-1, on: server) }
          while rounds.withLockedValue({ $0 }) < most, accepted.withLockedValue({ $0 }) == nil {
            #expect(await loops.turn(of: server) >= ServerLoops.pieceBytes(of: 8))
            usleep(200)
            rounds.withLockedValue { $0 += 1 }
          }
        }
      }
      while rounds.withLockedValue({ $0 }) == 0 { try await Task.sleep(for: .milliseconds(1)) }
      let client = try await ClientBootstrap(group: .singletonMultiThreadedEventLoopGroup).connect(to: address).get()
      try await tasks.waitForAll()
      try await client.close()
    }
    #expect(try #require(accepted.withLockedValue { $0 }) < most)
    try await server.close()
    try await loops.group.shutdownGracefully()
  }

  @Test func bodiesShareTheMemory() {
    #expect(ServerLoops.pieceBytes(of: 1) == 512 << 10)
    #expect(ServerLoops.pieceBytes(of: 4) == 256 << 10)
    #expect(ServerLoops.pieceBytes(of: 1000) == 64 << 10)
  }
}
