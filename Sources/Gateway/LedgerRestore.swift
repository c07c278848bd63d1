// `ledger restore`: under the home's lock.

import Foundation
import Sealing
import Store

package enum LedgerRestore {
  /// - Returns: the new epoch.
  package static func run(_ home: Home, backup: String, at instant: Date) throws -> String {
    let agency = try Configuration.load(home).agency
    let lock = try HomeLock(home.path)
    let epoch = TransferID().text
    try Ledger.restore(backup, of: agency, to: home.ledger, heads: home.heads, at: instant, epoch: epoch)
    withExtendedLifetime(lock) {}
    return epoch
  }
}
