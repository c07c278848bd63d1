// Payloads that nobody looks into are still what they say: their first bytes fit the media type, and a ZIP archive is one archive,
// with names that stay inside, and does not unpack to a thousand times its size.
//
// ZIP by PKWARE APPNOTE 6.3: end of central directory (§4.3.16), its ZIP64 form (§4.3.14-15), central headers (§4.3.12), local
// headers (§4.3.7). Nothing is unpacked.

import Foundation

/// Looks at an opaque payload at a few places. Bounded time and memory whatever its size.
package struct OpaqueCheck: Sendable {
  package static let zipEntriesMax = 65_536
  package static let zipDirectoryBytesMax = 64 << 20
  /// Unpacked bytes for each packed one, over the whole archive; small archives may have `zipFreeBytes` in any case.
  package static let zipRatioMax: UInt64 = 200
  package static let zipFreeBytes: UInt64 = 16 << 20
  /// How much of a text is looked at for NUL bytes and UTF-8.
  static let textBytes = 64 << 10

  /// Reads into the buffer from an offset; how many bytes came.
  package typealias Reader = @Sendable (UnsafeMutableRawBufferPointer, Int64) throws -> Int

  private let mediaType: String
  private let bytes: Int64
  private let read: Reader

  package init(mediaType: String, bytes: Int64, read: @escaping Reader) {
    self.mediaType = mediaType
    self.bytes = bytes
    self.read = read
  }

  /// What is wrong, as a finding about the file; nil when nothing is. Types that are not known are not checked.
  ///
  /// - Throws: what `read` throws.
  package func fault() throws -> Finding? {
    let head = try part(at: 0, count: Int(min(bytes, Int64(Self.textBytes))))
    let type = mediaType.split(separator: ";").first.map { String($0).lowercased() } ?? ""
    if type.hasPrefix("text/") || type == "application/json" || type == "application/xml" {
      return isText(head) ? nil : finding("opaque.media-type", "text in UTF-8, as \(type) is")
    }
    if let marks = Self.marks[type], !marks.contains(where: { head.starts(with: $0) }) {
      return finding("opaque.media-type", "the first bytes of \(type)")
    }
    return Self.isZip(type) || head.starts(with: Self.zipMark) ? try zipFault() : nil
  }

  private static let zipMark: [UInt8] = [0x50, 0x4B, 3, 4]
  private static let emptyZipMark: [UInt8] = [0x50, 0x4B, 5, 6]

  private static func isZip(_ type: String) -> Bool {
    type == "application/zip" || type.hasPrefix("application/vnd.openxmlformats-")
      || type.hasPrefix("application/vnd.oasis.")
      || type == "application/epub+zip"
  }

  private static let marks: [String: [[UInt8]]] = [
    "application/pdf": [Array("%PDF-".utf8)], "image/png": [[0x89, 0x50, 0x4E, 0x47, 13, 10, 26, 10]],
    "image/jpeg": [[0xFF, 0xD8, 0xFF]], "image/gif": [Array("GIF87a".utf8), Array("GIF89a".utf8)],
    "image/tiff": [[0x49, 0x49, 42, 0], [0x4D, 0x4D, 0, 42], [0x49, 0x49, 43, 0], [0x4D, 0x4D, 0, 43]],
    "application/gzip": [[0x1F, 0x8B]], "application/zstd": [[0x28, 0xB5, 0x2F, 0xFD]],
    "application/x-xz": [[0xFD, 0x37, 0x7A, 0x58, 0x5A, 0]],
    "application/x-7z-compressed": [[0x37, 0x7A, 0xBC, 0xAF, 0x27, 0x1C]],
    "application/vnd.sqlite3": [Array("SQLite format 3\0".utf8)],
    "application/vnd.apache.parquet": [Array("PAR1".utf8)],
    "application/zip": [zipMark, emptyZipMark],
  ]

  private func isText(_ head: [UInt8]) -> Bool {
    guard !head.contains(0) else { return false }
    // A scalar may be cut at the end of what was read.
    for cut in 0...min(3, head.count) where String(validating: head.dropLast(cut), as: UTF8.self) != nil {
      return cut == 0 || Int64(head.count) < bytes
    }
    return false
  }

  private func finding(_ code: String, _ expected: String, at offset: Int64 = 0) -> Finding {
    Finding(fault: code, expected: expected, record: 0, line: 1, byteOffset: offset)
  }

  private func part(at offset: Int64, count: Int) throws -> [UInt8] {
    try [UInt8](unsafeUninitializedCapacity: max(0, count)) { buffer, got in
      got = count > 0 ? try read(UnsafeMutableRawBufferPointer(buffer), offset) : 0
    }
  }

  // MARK: ZIP

  private static func number(_ bytes: ArraySlice<UInt8>, _ at: Int, _ count: Int) -> UInt64 {
    (0..<count).reduce(0) { $0 | UInt64(bytes[bytes.startIndex + at + $1]) << UInt64(8 * $1) }
  }

  private func zipFault() throws -> Finding? {
    let tailCount = Int(min(bytes, 65_557 + 76))
    let tail = try part(at: bytes - Int64(tailCount), count: tailCount)
    let broken = finding("zip.directory", "one central directory, at the end", at: bytes)
    // The comment behind it must end the file: what else stands there another reader may see.
    guard
      let place = tail.indices.reversed().first(where: { index in
        index + 22 <= tail.count && tail[index...].starts(with: Self.emptyZipMark)
          && index + 22 + Int(Self.number(tail[index...], 20, 2)) == tail.count
      })
    else { return broken }
    let end = tail[place...]
    var (entries, size, offset) = (Self.number(end, 10, 2), Self.number(end, 12, 4), Self.number(end, 16, 4))
    guard Self.number(end, 4, 4) == 0, Self.number(end, 8, 2) == entries else { return broken }
    var directoryEnd = UInt64(bytes) - UInt64(tail.count - place)
    if entries == 0xFFFF || size == 0xFFFF_FFFF || offset == 0xFFFF_FFFF {
      guard place >= 20, tail[(place - 20)...].starts(with: [0x50, 0x4B, 6, 7]) else { return broken }
      let at = Self.number(tail[(place - 20)...], 8, 8)
      guard at < UInt64(bytes), bytes >= 56 else { return broken }
      let wide = try part(at: Int64(at), count: 56)
      guard wide.count == 56, wide.starts(with: [0x50, 0x4B, 6, 6]) else { return broken }
      (entries, size, offset) = (
        Self.number(wide[...], 32, 8), Self.number(wide[...], 40, 8), Self.number(wide[...], 48, 8)
      )
      directoryEnd = at
    }
    guard entries <= UInt64(Self.zipEntriesMax), size <= UInt64(Self.zipDirectoryBytesMax) else {
      return finding("zip.limit", "at most \(Self.zipEntriesMax) entries")
    }
    guard size <= directoryEnd, offset == directoryEnd - size else { return broken }
    return try entryFault(part(at: Int64(offset), count: Int(size)), Int(entries), directoryStart: offset)
  }

  /// Central headers against their local ones: names, places, sizes.
  private func entryFault(_ directory: [UInt8], _ entries: Int, directoryStart: UInt64) throws -> Finding? {
    var at = 0
    var unpacked: UInt64 = 0
    var used: [(start: UInt64, end: UInt64)] = []
    var names: Set<[UInt8]> = []
    let broken = finding("zip.directory", "central headers that fit", at: Int64(directoryStart))
    for _ in 0..<entries {
      guard at + 46 <= directory.count, directory[at...].starts(with: [0x50, 0x4B, 1, 2]) else { return broken }
      let header = directory[at...]
      let (nameCount, extraCount, commentCount) = (
        Int(Self.number(header, 28, 2)), Int(Self.number(header, 30, 2)), Int(Self.number(header, 32, 2))
      )
      guard at + 46 + nameCount + extraCount + commentCount <= directory.count else { return broken }
      let name = Array(directory[(at + 46)..<(at + 46 + nameCount)])
      var (packed, plain, local) = (Self.number(header, 20, 4), Self.number(header, 24, 4), Self.number(header, 42, 4))
      let extra = directory[(at + 46 + nameCount)..<(at + 46 + nameCount + extraCount)]
      widen(extra, &plain, &packed, &local)
      guard Self.isSafe(name), !Self.renames(name, extra) else {
        return finding("zip.name", "names that stay inside the archive", at: Int64(directoryStart) + Int64(at))
      }
      guard names.insert(name.map { $0 &- 65 < 26 ? $0 + 32 : $0 }).inserted else {
        return finding("zip.name", "each name once", at: Int64(directoryStart) + Int64(at))
      }
      guard local < directoryStart, directoryStart - local >= 30, packed <= directoryStart else { return broken }
      let opening = try part(at: Int64(local), count: 30)
      guard opening.count == 30, opening.starts(with: Self.zipMark), Int(Self.number(opening[...], 26, 2)) == nameCount,
        try part(at: Int64(local) + 30, count: nameCount) == name, Self.agree(header, opening[...])
      else {
        return finding(
          "zip.entry", "a local header that says what the directory says", at: Int64(min(local, UInt64(bytes))))
      }
      let localExtra = Int(Self.number(opening[...], 28, 2))
      guard try !Self.renames(name, part(at: Int64(local) + 30 + Int64(nameCount), count: localExtra)[...]) else {
        return finding("zip.name", "names that stay inside the archive", at: Int64(local))
      }
      let end = local + 30 + UInt64(nameCount) + UInt64(localExtra) + packed
      guard end <= directoryStart else { return broken }
      used.append((local, end))
      let (sum, overflow) = unpacked.addingReportingOverflow(plain)
      unpacked = overflow ? .max : sum
      at += 46 + nameCount + extraCount + commentCount
    }
    guard at == directory.count else { return broken }
    used.sort { $0.start < $1.start }
    for (first, second) in zip(used, used.dropFirst()) where second.start < first.end {
      return finding("zip.entry", "entries that do not overlap", at: Int64(second.start))
    }
    guard
      unpacked <= max(Self.zipFreeBytes, UInt64(bytes).multipliedReportingOverflow(by: Self.zipRatioMax).partialValue)
    else {
      return finding("zip.ratio", "at most \(Self.zipRatioMax) times its size unpacked")
    }
    return nil
  }

  /// Flags and method, and what a local header says before the data and not behind it (APPNOTE.TXT §4.4.4, bit 3).
  private static func agree(_ header: ArraySlice<UInt8>, _ opening: ArraySlice<UInt8>) -> Bool {
    guard number(header, 8, 2) == number(opening, 6, 2), number(header, 10, 2) == number(opening, 8, 2) else {
      return false
    }
    if number(header, 8, 2) & 8 != 0 { return true }
    // Sizes of all ones stand in an extra field, in the one or the other.
    func same(_ a: Int, _ b: Int) -> Bool {
      let (central, local) = (number(header, a, 4), number(opening, b, 4))
      return central == local || central == 0xFFFF_FFFF || local == 0xFFFF_FFFF
    }
    return number(header, 16, 4) == number(opening, 14, 4) && same(20, 18) && same(24, 22)
  }

  /// Whether some readers take another name than the header's: Info-ZIP's Unicode Path (§4.6.9).
  private static func renames(_ name: [UInt8], _ extra: ArraySlice<UInt8>) -> Bool {
    var at = extra.startIndex
    while at + 4 <= extra.endIndex {
      let end = at + 4 + Int(number(extra[at...], 2, 2))
      // A version and the checksum of the header's name stand before it.
      if number(extra[at...], 0, 2) == 0x7075,
        end > extra.endIndex || end < at + 9 || !extra[(at + 9)..<end].elementsEqual(name)
      {
        return true
      }
      at = end
    }
    return false
  }

  /// The ZIP64 extra field (§4.5.3): what is all ones in the header stands there, in this order.
  private func widen(_ extra: ArraySlice<UInt8>, _ plain: inout UInt64, _ packed: inout UInt64, _ local: inout UInt64) {
    var at = extra.startIndex
    while at + 4 <= extra.endIndex {
      let count = Int(Self.number(extra[at...], 2, 2))
      guard at + 4 + count <= extra.endIndex else { return }
      if Self.number(extra[at...], 0, 2) == 1 {
        var field = extra[(at + 4)..<(at + 4 + count)]
        func take(_ value: inout UInt64) {
          guard value == 0xFFFF_FFFF, field.count >= 8 else { return }
          value = Self.number(field, 0, 8)
          field = field.dropFirst(8)
        }
        take(&plain)
        take(&packed)
        take(&local)
      }
      at += 4 + count
    }
  }

  /// Relative, without `..`, backslashes, NUL or a drive.
  private static func isSafe(_ name: [UInt8]) -> Bool {
    guard !name.isEmpty, name.first != 47, !name.contains(0), !name.contains(92), !name.contains(58) else {
      return false
    }
    return !name.split(separator: 47, omittingEmptySubsequences: false).contains { $0.elementsEqual("..".utf8) }
  }
}
