// Exit codes of the command, frozen: scripts branch on them. Unknown means failed.

import Foundation
import Policies
import Records
import Sealing
import Store
import Transport

package enum ExitStatus: Int32, Sendable, CaseIterable {
  case done = 0
  case failed = 1
  case partlyDone = 2
  case usage = 64
  case badData = 65
  case unreachable = 69
  case disk = 74
  case waiting = 75
  case protocolError = 76
  case refused = 77
  case configuration = 78

  /// The code for a failure, in one place for every command.
  package init(_ error: any Error) {
    switch error {
    case let error as AdminError: self = error.exitCode
    case let error as SealingError:
      switch error.code {
      case .cardSuccession: self = .refused
      case .keyPassphrase, .selfTest: self = .configuration
      default: self = .badData
      }
    case is CancellationError: self = .waiting
    case is ConfigurationError, is ListenError: self = .configuration
    case is TLSIdentity.PEMError: self = .badData
    case is PolicyError, is SchemaError: self = .badData
    case is RelayError: self = .unreachable
    case is Problem: self = .protocolError
    case let error as LedgerError:
      switch error {
      case .locked: self = .waiting
      case .stale: self = .waiting
      case .notFound, .illegal: self = .failed
      case .foreign: self = .badData
      case .rolledBack, .notDurable, .damaged: self = .disk
      case .newer: self = .configuration
      }
    case let error as FatalFailure: self = ExitStatus(error.cause)
    case let error as DiskError where error.isTooLargeToRead: self = .badData
    case let error as DiskError:
      self =
        [ENOENT, EEXIST, EACCES, EPERM, EISDIR, ENOTDIR, EINVAL, ELOOP, ENAMETOOLONG, EPIPE, ENXIO].contains(
          error.errno)
        ? .failed : .disk
    default:
      self =
        switch StoreFailure(error) {
        case .other: .failed
        case .busy: .waiting
        case .full, .unknown: .disk
        }
    }
  }
}

/// A failure that a running gateway reported to a command.
package struct AdminError: Error, Equatable, Sendable, CustomStringConvertible {
  package let exitCode: ExitStatus
  package let description: String

  package init(_ exitCode: ExitStatus, _ description: String) {
    self.exitCode = exitCode
    self.description = description
  }

  static func signsForItself(_ partner: AgencyID) -> AdminError {
    AdminError(.refused, "\(partner) signs for itself: only a partner without a gateway is signed for")
  }

  static let forAndEvidence = AdminError(.usage, "--for PARTNER and --evidence PAPER belong together")
}
