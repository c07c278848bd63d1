// Range requests over bodies that never change (RFC 9110 §14): one range a request, strong ETags, If-Range.

import Sealing

/// Which bytes of a representation a request asks for.
package enum ByteRange: Equatable, Sendable {
  case whole
  case part(Range<Int64>)

  /// - Parameters:
  ///   - header: `Range`; nil when it is absent.
  ///   - condition: `If-Range`. Another ETag, or a date, makes the answer the whole (RFC 9110 §13.1.5).
  ///   - etag: of the representation, with its quotes.
  ///   - bytes: of the representation.
  /// - Throws: `Problem` range for one that cannot be satisfied, and for several at once, which RFC 9110 §14.2 lets a server
  ///   refuse. Without Content-Range (§15.5.17 says SHOULD): with it curl 7.88 fails when it resumes what is whole already; without
  ///   it is content. A unit other than bytes, or what cannot be read, is ignored, as §14.2 says.
  package init(_ header: String?, ifRange condition: String?, etag: String, bytes: Int64) throws(Problem) {
    guard let header, header.lowercased().hasPrefix("bytes="), condition == nil || condition == etag else {
      self = .whole
      return
    }
    let specifications = header.dropFirst(6).split(separator: ",", omittingEmptySubsequences: false)
    let sides = specifications[0].split(separator: "-", omittingEmptySubsequences: false)
      .map { $0.drop { $0 == " " || $0 == "\t" } }
    guard specifications.count == 1 else { throw Problem(.range, "one range a request; ask for several side by side") }
    guard sides.count == 2, let first = Self.number(sides[0]), let last = Self.number(sides[1]) else {
      self = .whole
      return
    }
    switch (first, last) {
    case (let first?, let last?) where first <= last && first < bytes:
      self = .part(first..<min(last, bytes - 1) + 1)
    case (let first?, nil) where first < bytes: self = .part(first..<bytes)
    case (nil, let last?) where last > 0 && bytes > 0: self = .part(max(0, bytes - last)..<bytes)
    case (nil, nil): self = .whole
    case (let first?, let last?) where first > last: self = .whole
    default: throw Problem(.range, "the body has \(bytes) bytes")
    }
  }

  /// Digits, or nothing at all (inner nil); outer nil for anything else.
  private static func number(_ text: Substring) -> Int64?? {
    if text.isEmpty { return .some(nil) }
    guard text.allSatisfy({ $0.isASCII && $0.isNumber }) else { return nil }
    // A number beyond every size is one all the same.
    return .some(Int64(text) ?? Int64.max - 1)
  }
}
