// How `send` hands a file over: as a claim that the next scan finds, with an id that is known beforehand.

import Foundation
import Sealing
import Store

package enum Dropping {
  /// Copies `file` into the claim directory of an agreement's outbox. Durable when it returns.
  ///
  /// - Returns: the id that the transfer will have.
  /// - Throws: DiskError; `document.invalid` for a name that may not travel.
  package static func drop(_ file: String, into home: Home, agreement: String) throws -> TransferID {
    let name = URL(fileURLWithPath: file).lastPathComponent
    if let fault = FileName.fault(name) { throw SealingError(.documentInvalid, "\(file): \(fault)") }
    let id = TransferID()
    let claims = home.claims(agreement)
    let folder = Folder(home, agreement: agreement, contract: .init())
    // A folder that is there without its mark is the place where it is mounted, and not mounted.
    try folder.make(wasMade: Directory.exists(folder.path))
    let temporary = "\(claims)/.\(id)"
    do {
      try DurableFile.copy(file, to: temporary)
      try Directory.rename(temporary, "\(claims)/\(Claim(id: id, name: name).fileName)")
      try Directory.sync(claims)
    } catch {
      try Directory.remove(temporary)
      throw error
    }
    return id
  }

  /// The file that was handed over under `id`, while no gateway has taken it on; nil when there is none.
  static func waiting(_ id: TransferID, in home: Home) throws -> String? {
    for agreement in try Directory.names(home.outboxes) {
      let claims = home.claims(agreement)
      guard Directory.exists(claims) else { continue }
      let name = try Directory.names(claims).first { Claim(fileName: $0)?.id == id }
      if let name { return "\(claims)/\(name)" }
    }
    return nil
  }
}
