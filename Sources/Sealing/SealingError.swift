// The one error of this module: a stable code to branch on, a detail for people.

/// Why something was refused.
///
/// Tests and callers compare `code`; `detail` names the place and never repeats payload bytes or keys.
public struct SealingError: Error, Equatable, Sendable, CustomStringConvertible {
  /// Stable codes. A new refusal gets a new code; a code never changes its meaning.
  public enum Code: String, Sendable, CaseIterable {
    /// The age header does not follow the age v1 grammar, or is over a limit.
    case headerMalformed = "header.malformed"
    /// No identity at hand opens any recipient stanza.
    case headerNoMatch = "header.no-match"
    /// The header's MAC is wrong: it was changed after sealing.
    case headerMAC = "header.mac"
    /// The binding stanza is missing or belongs to another package.
    case headerBinding = "header.binding"
    /// A sealed chunk fails authentication: changed, reordered, duplicated or cut.
    case bodyChunk = "body.chunk"
    /// The body's size is impossible, or not the one that was signed.
    case bodyLength = "body.length"
    /// The body's tree root is not the one that was signed.
    case bodyRoot = "body.root"
    /// Bytes that are not canonical JSON as this project accepts it.
    case documentJSON = "document.json"
    /// Canonical JSON, but not a valid document of its kind.
    case documentInvalid = "document.invalid"
    /// A required signature is missing or wrong.
    case documentSignature = "document.signature"
    /// A card that does not follow the held one.
    case cardSuccession = "card.succession"
    /// A key, recipient or identity that cannot be read.
    case keyInvalid = "key.invalid"
    /// The passphrase does not open the wrapped key.
    case keyPassphrase = "key.passphrase"
    /// The two chunk ciphers disagree, or memory protection failed, on this machine.
    case selfTest = "self-test"
  }

  public let code: Code
  public let detail: String

  public init(_ code: Code, _ detail: String) {
    self.code = code
    self.detail = detail
  }

  public var description: String { "\(detail) [\(code.rawValue)]" }
}
