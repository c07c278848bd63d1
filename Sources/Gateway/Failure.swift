// Every failure is sorted once, here: try again later, refuse, set aside, or stop the gateway.

import Foundation
import Sealing
import Store
import Transport

/// What follows from a failure of one transfer's step.
enum Disposition {
  /// Nothing is wrong with the transfer: somebody else moved it, or the gateway is stopping.
  case ignore
  /// The same step again after a while.
  case retry(code: String, note: String)
  /// This transfer cannot go on by itself; it is kept for a person to look at.
  case halt(code: String, note: String)
  /// The disk's state is unknown: the process must stop (exit code 74).
  case stop

  /// What went wrong with something that is looked at again in any case; nil when nothing did, or when the process must stop.
  var trouble: (code: String, note: String)? {
    switch self {
    case .retry(let code, let note), .halt(let code, let note): (code, note)
    case .ignore, .stop: nil
    }
  }

  /// The same for a loop that goes on whatever it meets, but for a disk whose state is unknown.
  ///
  /// - Throws: `FatalFailure`.
  static func survived(_ error: any Error) throws -> (code: String, note: String)? {
    let disposition = Disposition(error)
    if case .stop = disposition { throw FatalFailure(cause: error) }
    return disposition.trouble
  }

  init(_ error: any Error) {
    switch error {
    case is CancellationError: self = .ignore
    case LedgerError.stale: self = .ignore
    case let error as SpoolDamage: self = .halt(code: "spool.damaged", note: error.detail)
    case let error where StoreFailure(error) == .unknown: self = .stop
    case let error where StoreFailure(error) == .full: self = .retry(code: "disk.full", note: "\(error)")
    case let error where StoreFailure(error) == .busy: self = .retry(code: "ledger.busy", note: "\(error)")
    case let error as DiskError: self = .retry(code: "disk.error", note: error.description)
    case let error as RelayError: self = .retry(code: "partner.unreachable", note: error.description)
    case let error as Problem where [.busy, .full, .unavailable, .offset, .superseded].contains(error.kind):
      self = .retry(code: error.code.isEmpty ? "partner.\(error.kind.rawValue)" : error.code, note: error.detail)
    case let error as Problem:
      self = .halt(code: error.code.isEmpty ? "partner.\(error.kind.rawValue)" : error.code, note: error.detail)
    case let error as SealingError: self = .halt(code: error.code.rawValue, note: error.detail)
    case LedgerError.illegal, LedgerError.notFound: self = .halt(code: "internal", note: "\(error)")
    case is LedgerError: self = .stop
    default: self = .halt(code: "internal", note: String(describing: error))
    }
  }
}

/// The spool does not hold what the ledger says. Nothing can mend that by trying again: the transfer becomes `corrupt`, and what is
/// there stays as evidence.
struct SpoolDamage: Error, CustomStringConvertible {
  let detail: String
  var description: String { detail }
}

/// Thrown to end the process: nothing may be written any more.
package struct FatalFailure: Error, CustomStringConvertible {
  package let cause: any Error
  package var description: String { "stopping: \(cause). Check the disk, then: sallyport check" }
}

/// Waiting times between tries: doubled each time, with jitter, never over a limit.
enum Backoff {
  /// Seconds before try number `attempts` (1, 2, …), between half and all of 2^attempts.
  static func seconds(_ attempts: Int, max limit: Int64) -> TimeInterval {
    let full = min(Double(limit), pow(2, Double(min(attempts, 20))))
    return full * Double.random(in: 0.5...1)
  }
}
