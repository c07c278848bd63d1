// A TCP port on loopback that nobody else gets.

import Glibc

/// A port of 127.0.0.1, kept from everybody but a server that asks for it by number, until this value goes.
///
/// The socket stays bound and never listens. With SO_REUSEADDR on both sides a server may bind the same port and listen
/// (socket(7)); the system gives it to no other socket, neither for `bind` to port 0 nor for an outgoing connection.
package final class ReservedPort: Sendable {
  package let number: Int
  private let descriptor: Int32

  /// - Throws: `PortError` when the system has none.
  package init() throws(PortError) {
    descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
    guard descriptor >= 0 else { throw PortError(number: errno) }
    var reuse: Int32 = 1
    setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &reuse, socklen_t(MemoryLayout<Int32>.size))
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    var size = socklen_t(MemoryLayout<sockaddr_in>.size)
    let descriptor = descriptor
    let isBound = withUnsafeMutablePointer(to: &address) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        bind(descriptor, $0, size) == 0 && getsockname(descriptor, $0, &size) == 0
      }
    }
    guard isBound else {
      let failure = errno
      close(descriptor)
      throw PortError(number: failure)
    }
    number = Int(UInt16(bigEndian: address.sin_port))
  }

  deinit { close(descriptor) }
}

/// No port could be reserved.
package struct PortError: Error, CustomStringConvertible {
  package let number: Int32
  package var description: String { "no free port on 127.0.0.1: \(String(cString: strerror(number)))" }
}
