// libFuzzer over the parsers that read what others wrote. scripts/fuzz builds and runs it; FUZZ_TARGET names the parser.
//
// A parser may refuse whatever it likes. What it accepts must say the same again: the second reading is the property.

import Foundation
import Policies
import Sealing

private let target = ProcessInfo.processInfo.environment["FUZZ_TARGET"] ?? "header"

@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzOne(_ start: UnsafePointer<UInt8>, _ count: Int) -> CInt {
  let bytes = Array(UnsafeBufferPointer(start: start, count: count))
  switch target {
  case "header": header(bytes)
  case "manifest": document(bytes, Manifest.init, \.document)
  case "card": document(bytes, Card.init, \.document)
  case "agreement": agreement(bytes)
  default: preconditionFailure("FUZZ_TARGET is header, manifest, card or agreement")
  }
  return 0
}

/// Runs a parser; nil when it refused with its own error. Any other end is a finding.
private func accepted<Value, Failure: Error>(_ parse: () throws(Failure) -> Value) -> Value? {
  do { return try parse() } catch { return nil }
}

private func header(_ bytes: [UInt8]) {
  guard let header = accepted({ () throws(SealingError) in try Header(parsing: bytes) }) else { return }
  precondition(bytes.starts(with: header.bytes), "the header is not what was read")
  let again = accepted { () throws(SealingError) in try Header(parsing: header.bytes) }
  precondition(again == header, "a header reads differently without what follows it")
  _ = accepted { () throws(SealingError) in try PackageKey(parsing: bytes) }
}

private func document<Value>(
  _ bytes: [UInt8], _ read: (JSON) throws(SealingError) -> Value, _ document: (Value) -> JSON
) {
  guard let json = accepted({ () throws(SealingError) in try JSON(canonical: bytes, bytesMax: 65536) }) else { return }
  precondition(json.canonical == bytes, "canonical text is not its own encoding")
  guard let value = accepted({ () throws(SealingError) in try read(json) }) else { return }
  precondition(document(value) == json, "a member was read and forgotten")
}

private func agreement(_ bytes: [UInt8]) {
  guard let text = String(validating: bytes, as: UTF8.self),
    let agreement = accepted({ () throws(PolicyError) in try Agreement(yaml: text) })
  else { return }
  let canonical = agreement.document.canonical
  let again = accepted { () throws(SealingError) in try JSON(canonical: canonical, bytesMax: 1 << 20) }
  precondition(again == agreement.document, "an agreement's identity is not that of its document")
}
