// JSON files: the elements of one array are the records. What stands around it, the envelope, is kept and parsed as a whole with
// the array left empty, so the file is well-formed when the envelope and every element are. A file that is no array, where no
// pointer is given, is one record.

import Foundation

struct ArrayCutter: BatchCutter {
  private var remainder: Remainder
  private let path: [String]
  private let wholeIsRecord: Bool
  private var state = State.before
  private var envelope: [UInt8] = []

  // While looking for the array: the containers that are open, and how far they follow the path.
  private var open: [(isObject: Bool, count: Int, matches: Bool)] = []
  private var key: [UInt8]?
  private var token: [UInt8] = []
  private var scan = StringScan()
  private var expectsValue = true
  private var commaSeen = false
  private var isElementMissing = false

  private enum State { case before, inside, after, whole, over }

  /// - Parameters:
  ///   - pointer: to the array (RFC 6901); "" when the file is the array.
  ///   - wholeIsRecord: with "", a file that is no array is one record.
  init(_ input: @escaping RecordInput, pointer: String, wholeIsRecord: Bool = true) {
    remainder = Remainder(input)
    self.wholeIsRecord = wholeIsRecord
    path = JSONPointer.parse(pointer) ?? []
  }

  mutating func next(_ batch: inout RecordBatch) throws -> Bool {
    guard state != .over else { return false }
    remainder.begin(&batch)
    // Scanning goes on where it stopped: the bytes kept from the last batch are the start of one element.
    var at = 0
    var elementStart: Int?
    var depth = 0
    var element = StringScan()
    var end = 0
    while true {
      let got = try remainder.fill(&batch)
      if got == 0, at == batch.count {
        if state == .inside {
          // Cut inside the array: what is there is one broken record.
          fault(&batch, "json.syntax", "the end of the array", at: elementStart ?? at)
        } else if state == .whole {
          batch.spans.append(RecordSpan(start: 0, end: batch.count))
        } else if state == .before {
          fault(
            &batch, path.isEmpty ? "json.syntax" : "json.no-array",
            "an array of records at \(path.isEmpty ? "the top" : "/" + path.joined(separator: "/"))", at: at)
        } else {
          checkEnvelope(&batch)
        }
        state = .over
        return true
      }
      if state == .whole { at = batch.count }
      while at < batch.count, state != .inside, state != .whole {
        let byte = batch.bytes[at]
        at += 1
        if state == .before, wholeIsRecord, path.isEmpty, open.isEmpty, byte != 91, byte != 32, byte != 10, byte != 13,
          byte != 9
        {
          (state, at) = (.whole, batch.count)
          break
        }
        if state == .before, follow(byte) { state = .inside }
        envelope.append(byte)
        guard envelope.count <= RecordLimits.envelopeBytesMax else {
          fault(
            &batch, "json.envelope", "at most \(RecordLimits.envelopeBytesMax) bytes around the array of records",
            at: at)
          state = .over
          return true
        }
      }
      if state == .inside {
        while at < batch.count {
          let byte = batch.bytes[at]
          if element.isInside {
            element.step(byte)
            at += 1
            continue
          }
          if depth == 0, byte == 44 || byte == 93 {
            let isBlank = elementStart == nil
            if let start = elementStart { batch.spans.append(RecordSpan(start: start, end: at)) }
            // "[]" is an empty array; "[1,]" and "[,1]" are not arrays.
            if isBlank, byte == 44 || commaSeen, !isElementMissing {
              // Once is enough: each place is counted from the start of the batch.
              isElementMissing = true
              fault(&batch, "json.syntax", "an element between commas", at: at)
            }
            commaSeen = byte == 44
            elementStart = nil
            at += 1
            end = at
            if byte == 93 {
              envelope.append(93)
              state = .after
              break
            }
            continue
          }
          switch byte {
          case 34: element.isInside = true
          case 123, 91: depth += 1
          case 125, 93: depth -= 1
          default: break
          }
          if elementStart == nil, byte != 32, byte != 10, byte != 13, byte != 9 { elementStart = at }
          at += 1
        }
      }
      if state == .after, at < batch.count { continue }
      if end > 0, state == .inside {
        remainder.keep(&batch, from: end)
        return true
      }
      if state == .after, !batch.spans.isEmpty {
        return true
      }
      guard batch.count <= RecordLimits.recordBytesMax else {
        fault(&batch, "record.size", "a record of at most \(RecordLimits.recordBytesMax) bytes", at: elementStart ?? 0)
        state = .over
        return true
      }
    }
  }

  private func fault(_ batch: inout RecordBatch, _ code: String, _ expected: String, at offset: Int) {
    batch.faults.append(
      Finding(
        fault: code, expected: expected, record: 0, line: batch.line(of: min(offset, batch.count)),
        byteOffset: Int64(offset)))
  }

  /// One byte of the envelope before the array; true when it opens the array.
  private mutating func follow(_ byte: UInt8) -> Bool {
    if scan.isInside {
      scan.step(byte)
      if scan.isInside { token.append(byte) } else if !expectsValue { key = token }
      return false
    }
    switch byte {
    case 34:
      scan.isInside = true
      token = []
    case 58: expectsValue = true
    case 44:
      if let last = open.indices.last {
        open[last].count += 1
        expectsValue = !open[last].isObject
      }
    case 91:
      let matches = isOnPath
      if matches, open.count == path.count { return true }
      open.append((false, 0, matches))
      expectsValue = true
    case 123:
      open.append((true, 0, isOnPath))
      expectsValue = false
    case 93, 125: _ = open.popLast()
    default: break
    }
    return false
  }

  /// Whether the container that opens here lies on the path.
  private var isOnPath: Bool { open.isEmpty || (open.allSatisfy(\.matches) && stepMatches()) }

  /// Whether the value that begins here is the path's next step.
  private func stepMatches() -> Bool {
    guard open.count <= path.count, let top = open.last else { return false }
    let step = path[open.count - 1]
    if !top.isObject { return step == "\(top.count)" }
    guard let key else { return false }
    // An escape that is malformed fails with the envelope; here it just does not match.
    return (try? JSONDocument([34] + key + [34]).root.stringBytes) == Array(step.utf8)
  }

  private func checkEnvelope(_ batch: inout RecordBatch) {
    do throws(JSONFault) {
      batch.envelope = try JSONDocument(envelope)
    } catch {
      fault(&batch, error.code.rawValue, error.code.expectation + " around the array of records", at: batch.count)
    }
  }
}

/// Whether a byte is inside a JSON string; set when its opening quote is seen.
private struct StringScan {
  var isInside = false
  private var isEscaped = false

  mutating func step(_ byte: UInt8) {
    if isEscaped {
      isEscaped = false
    } else if byte == 92 {
      isEscaped = true
    } else if byte == 34 {
      isInside = false
    }
  }
}
