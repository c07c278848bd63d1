// Failures of the disk and the ledger. Expected refusals are values elsewhere; these are thrown.

import GRDB
import Glibc

/// A system call that failed, with what it was for.
package struct DiskError: Error, Equatable, Sendable, CustomStringConvertible {
  package let operation: String
  package let path: String
  package let errno: Int32

  package init(_ operation: String, _ path: String, errno: Int32 = Glibc.errno) {
    self.operation = operation
    self.path = path
    self.errno = errno
  }

  /// The data's fate is unknown: the process must stop, and never sync that file again (fsync after EIO lies).
  package var isFatal: Bool { errno == EIO }
  /// No room: nothing new is taken until there is.
  package var isFull: Bool { errno == ENOSPC || errno == EDQUOT || errno == EFBIG && !isTooLargeToRead }
  /// A file is larger than what it should hold may be.
  package var isTooLargeToRead: Bool { errno == EFBIG && operation == "read" }

  package var description: String { "\(operation) \(path): \(String(cString: strerror(errno)))" }
}

/// The ledger refuses. Each case is a sentence and what to do.
package enum LedgerError: Error, Equatable, Sendable, CustomStringConvertible {
  /// Another process holds this home.
  case locked(String)
  /// The state of a transfer was not the expected one: somebody else advanced it.
  case stale(String)
  case notFound(String)
  /// An arrow that the state machine does not have.
  case illegal(String)
  /// Not a ledger, or another agency's.
  case foreign(String)
  /// The ledger is older than a head that was signed from it.
  case rolledBack(String)
  /// PRAGMA synchronous or journal_mode is not what durability needs.
  case notDurable(String)
  case damaged(String)
  /// A later version has changed the ledger's tables.
  case newer

  package var description: String {
    switch self {
    case .locked(let home): "\(home) is in use by another process: wait for its end, or let the command talk to it"
    case .stale(let what): "\(what) changed meanwhile; look again: sallyport trace"
    case .notFound(let what): "\(what) is not known here"
    case .foreign(let what): what
    case .illegal(let what): "\(what) is not possible in its state"
    case .rolledBack(let what): "the ledger was rolled back: \(what). See docs/OPERATIONS.md, Restore"
    case .notDurable(let what): "the ledger would not be durable: \(what)"
    case .damaged(let what): "the ledger is damaged: \(what)"
    case .newer:
      "the ledger was opened by a later version of Sallyport; this one cannot read it. See docs/OPERATIONS.md, Upgrade"
    }
  }
}

/// A change that is refused, and leaves nothing behind but an entry in the audit log that it was.
package struct RecordedRefusal: Error {
  package let event: AuditEvent
  /// Refused again under this name, it leaves nothing: who is refused may try for ever.
  package let name: String
  /// What the caller of `write` is thrown.
  package let cause: any Error

  package init(_ event: AuditEvent, once name: String, _ cause: any Error) {
    self.event = event
    self.name = name
    self.cause = cause
  }
}

/// What a failure says about the disk, whichever layer reports it.
package enum StoreFailure: Sendable {
  /// No room; it may pass.
  case full
  /// Another program holds the database; nothing was written, and it may pass.
  case busy
  /// What is on disk is unknown: the process must stop.
  case unknown
  /// Not a failure of the disk or the ledger.
  case other

  package init(_ error: any Error) {
    switch error {
    case let error as DiskError: self = error.isFull ? .full : error.isFatal ? .unknown : .other
    case let error as DatabaseError:
      self =
        switch error.resultCode {
        case .SQLITE_FULL: .full
        case .SQLITE_BUSY: .busy
        default: error.isDiskFailure ? .unknown : .other
        }
    default: self = .other
    }
  }
}
