import Foundation
import Testing

@testable import Records

@Suite struct OpaqueCheckTests {
  private func fault(_ type: String, _ bytes: [UInt8]) throws -> String? {
    try OpaqueCheck(mediaType: type, bytes: Int64(bytes.count)) { room, offset in
      let count = max(0, min(room.count, bytes.count - Int(offset)))
      room.copyBytes(from: bytes[Int(offset)..<(Int(offset) + count)])
      return count
    }.fault()?.keyword
  }

  @Test(arguments: [
    ("application/pdf", "%PDF-1.7\n…", nil), ("application/pdf", "MZ\u{90}", "opaque.media-type"),
    ("application/pdf", "", "opaque.media-type"),
    ("text/plain; charset=utf-8", "süß\n", nil), ("text/plain", "a\0b", "opaque.media-type"),
    ("application/json", "{}", nil),
    ("application/octet-stream", "anything", nil), ("application/zip", "PK", "opaque.media-type"),
    ("image/png", "\u{89}PNG", "opaque.media-type"),
  ])
  func theFirstBytesFitTheMediaType(type: String, text: String, code: String?) throws {
    #expect(try fault(type, Array(text.utf8)) == code)
  }

  @Test func aTextMayBeCutInAScalarOnlyWhereTheLookEnds() throws {
    #expect(try fault("text/plain", [0xC3]) == "opaque.media-type")
    let long = [UInt8](repeating: 97, count: OpaqueCheck.textBytes - 1) + Array("ß".utf8) + [97]
    #expect(try fault("text/plain", long) == nil)
  }

  /// A stored archive by PKWARE APPNOTE 6.3; `plain` may lie about the size.
  private func zip(
    _ entries: [(name: String, bytes: [UInt8], plain: Int)], local: String? = nil, shift: Int = 0, comment: String = ""
  ) -> [UInt8] {
    func le(_ value: Int, _ count: Int) -> [UInt8] { (0..<count).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) } }
    var (file, directory): ([UInt8], [UInt8]) = ([], [])
    for entry in entries {
      let (name, inner) = (Array(entry.name.utf8), Array((local ?? entry.name).utf8))
      let head = le(20, 2) + le(0, 2) + le(0, 2) + le(0, 4) + le(0, 4)
      directory +=
        [0x50, 0x4B, 1, 2] + le(20, 2) + head + le(entry.bytes.count, 4) + le(entry.plain, 4) + le(name.count, 2)
      directory +=
        le(0, 2) + le(0, 2) + le(0, 2) + le(0, 2) + le(0, 4) + le(max(0, file.count - (file.isEmpty ? 0 : shift)), 4)
        + name
      file +=
        [0x50, 0x4B, 3, 4] + head + le(entry.bytes.count, 4) + le(entry.plain, 4) + le(inner.count, 2) + le(0, 2)
        + inner + entry.bytes
    }
    let end =
      [0x50, 0x4B, 5, 6] + le(0, 4) + le(entries.count, 2) + le(entries.count, 2) + le(directory.count, 4)
      + le(file.count, 4)
    return file + directory + end + le(comment.utf8.count, 2) + Array(comment.utf8)
  }

  @Test func anArchiveIsOneArchiveWithNamesThatStayInside() throws {
    let good = zip([("a.txt", [1, 2, 3], 3), ("d/b.txt", [], 0)], comment: "hello")
    #expect(try fault("application/zip", good) == nil && fault("application/octet-stream", good) == nil)
    #expect(try fault("application/zip", zip([])) == nil)
    for name in ["../x", "/x", "a/../../x", "C:x", "a\\b", ""] {
      #expect(try fault("application/zip", zip([(name, [], 0)])) == "zip.name", "\(name)")
    }
    #expect(try fault("application/zip", zip([("a", [], 0), ("A", [], 0)])) == "zip.name")
    #expect(try fault("application/zip", zip([("a", [], 0)], local: "b")) == "zip.entry")
    #expect(try fault("application/zip", zip([("a", [1, 2, 3, 4], 4), ("b", [5], 1)], shift: 1)) == "zip.entry")
    #expect(try fault("application/zip", good + [0]) == "zip.directory")
    #expect(try fault("application/zip", Array(good.dropLast(1))) == "zip.directory")
    #expect(try fault("application/zip", Array(good.prefix(40))) == "zip.directory")
  }

  @Test func aBombIsSeenWithoutUnpackingIt() throws {
    let room = Int(OpaqueCheck.zipFreeBytes)
    #expect(try fault("application/zip", zip([("a", [0], room)])) == nil)
    #expect(try fault("application/zip", zip([("a", [0], room), ("b", [0], 1)])) == "zip.ratio")
    #expect(try fault("application/zip", zip([("a", [0], 0xFFFF_FFFE), ("b", [0], 0xFFFF_FFFE)])) == "zip.ratio")
  }

  @Test func whatTheStockToolMakesIsTaken() throws {
    let python = "/usr/bin/python3"
    guard FileManager.default.isExecutableFile(atPath: python) else { return }
    let path = "\(NSTemporaryDirectory())opaque-\(UUID().uuidString).zip"
    defer { try? FileManager.default.removeItem(atPath: path) }
    let process = Process()
    process.executableURL = URL(fileURLWithPath: python)
    process.arguments = [
      "-c",
      "import sys,zipfile\nwith zipfile.ZipFile(sys.argv[1],'w',zipfile.ZIP_DEFLATED) as z:\n  z.writestr('a/b.txt','x'*100000)\n  z.writestr('c','y')\n  with z.open(zipfile.ZipInfo('d'),'w',force_zip64=True) as f: f.write(b'z'*10)",
      path,
    ]
    try process.run()
    process.waitUntilExit()
    #expect(process.terminationStatus == 0)
    let bytes = Array(try Data(contentsOf: URL(fileURLWithPath: path)))
    #expect(try fault("application/zip", bytes) == nil)
    // Whatever byte is changed, nothing crashes.
    for index in bytes.indices {
      var broken = bytes
      broken[index] ^= 0xFF
      _ = try fault("application/zip", broken)
      _ = try fault("application/zip", Array(bytes[..<index]))
    }
  }
}
