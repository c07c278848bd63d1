// The passphrase of the keys, from a file: never from an argument or the environment.

import Foundation
import Glibc
import Sealing
import Store

package enum PassphraseFile {
  static let bytesMax = 4096

  /// Reads a passphrase; one newline at the end does not count.
  ///
  /// - Throws: `ConfigurationError` when others may read the file, or it is empty.
  package static func read(_ path: String) throws -> Secret {
    try Home.requireMode(path, forbidding: 0o077)
    var bytes: [UInt8]
    do {
      bytes = try File.contents(path, bytesMax: bytesMax)
    } catch {
      throw ConfigurationError("cannot read the passphrase: \(error)")
    }
    if bytes.last == 10 { bytes.removeLast() }
    guard !bytes.isEmpty else { throw ConfigurationError("\(path) holds no passphrase") }
    return Secret(wiping: &bytes)
  }

  /// Writes a random passphrase of 256 bits.
  package static func create(_ path: String) throws -> Secret {
    var random = [UInt8](repeating: 0, count: 32)
    random.withUnsafeMutableBytes { systemRandom($0) }
    let secret = Secret(wiping: &random)
    var text = secret.withBytes { Hex.letters($0) }
    text.append(10)
    try DurableFile.write(text, to: path)
    text.removeLast()
    return Secret(wiping: &text)
  }
}
