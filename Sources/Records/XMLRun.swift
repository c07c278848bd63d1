// One parse and validation of an XML document by libxml2, pushed in pieces: where it is, what was found, what is refused before
// libxml2 sees it.

import CXML2
import Foundation

/// Where a parse is: plain data behind a pointer, for libxml2 calls back with every tag.
private struct XMLTrace {
  /// Names of the open elements: pointers into the parser's dictionary. Room for `XMLSchema.depthMax`.
  let names: UnsafeMutablePointer<UnsafePointer<xmlChar>>
  private(set) var depth = 0
  /// The names on the way to a record, itself too; none when records are the root's children.
  private let recordNames: UnsafeMutablePointer<UnsafeMutablePointer<CChar>>
  private let recordDepth: Int
  /// How many of the open elements, from the outermost on, are on that way.
  private var matching = 0
  private(set) var records: Int64 = 0
  /// The last tag was a record's end.
  private(set) var recordHasEnded = false
  /// Bytes handed to the parser so far, and when the last record began.
  var bytes: Int64 = 0
  private(set) var recordStart: Int64 = 0
  let run: Unmanaged<XMLRun>

  init(recordPath: [String], run: XMLRun) {
    names = .allocate(capacity: XMLSchema.depthMax)
    recordDepth = recordPath.count
    recordNames = .allocate(capacity: recordDepth + 1)
    for (place, name) in recordPath.enumerated() { (recordNames + place).initialize(to: strdup(name)) }
    self.run = Unmanaged.passUnretained(run)
  }

  func deallocate() {
    names.deallocate()
    for place in 0..<recordDepth { free(recordNames[place]) }
    recordNames.deallocate()
  }

  /// The element just begun, or about to end, is a record.
  var isRecord: Bool { recordDepth == 0 ? depth == 2 : depth == recordDepth && matching == recordDepth }
  var isInRecord: Bool { recordDepth == 0 ? depth >= 2 : matching == recordDepth }

  /// False when it is too deep, or has too many attributes.
  @inline(__always)
  mutating func start(_ name: UnsafePointer<xmlChar>, _ attributes: Int32) -> Bool {
    guard depth < XMLSchema.depthMax, attributes <= XMLSchema.attributesMax else { return false }
    names[depth] = name
    if matching == depth, depth < recordDepth,
      strcmp(recordNames[depth], UnsafeRawPointer(name).assumingMemoryBound(to: CChar.self)) == 0
    {
      matching += 1
    }
    depth += 1
    recordHasEnded = false
    if isRecord {
      records += 1
      recordStart = bytes
    }
    return true
  }

  @inline(__always)
  mutating func end() {
    guard depth > 0 else { return }
    recordHasEnded = isRecord
    depth -= 1
    matching = min(matching, depth)
  }
}

/// One validation. Used by one thread.
final class XMLRun {
  private(set) var report = RecordReport()
  private(set) var isOver = false
  private let findingsMax: Int
  private let knownNames: Set<String>
  private var trace: UnsafeMutablePointer<XMLTrace>!
  private var parser: xmlParserCtxtPtr!
  private var validator: xmlSchemaValidCtxtPtr!
  private var plug: xmlSchemaSAXPlugPtr!
  private var handler = xmlSAXHandler()
  /// The first bytes, until there are enough of them to say how the rest is encoded; then nil.
  private var opening: [UInt8]? = []
  private var tags = StartTagScan()
  private var invalidRecordNumber: Int64 = 0
  private var last = (record: Int64(0), line: Int64(0), code: Int32(0), path: "")
  /// Sees the events after they were checked here.
  private let filter: XMLFilter?

  init(
    schema: xmlSchemaPtr, knownNames: Set<String>, recordPath: [String], findingsMax: Int, filter: XMLFilter? = nil
  ) {
    self.findingsMax = findingsMax
    self.knownNames = knownNames
    self.filter = filter
    LibXML.ready()
    sp_xml_handler(&handler)
    trace = .allocate(capacity: 1)
    trace.initialize(to: XMLTrace(recordPath: recordPath, run: self))
    // No object is touched for a tag unless there is something to say or to filter: counting them takes longer than the work.
    handler.startElementNs = { me, name, _, _, _, _, count, _, _ in
      if !XMLRun.trace(me).pointee.start(name!, count) { XMLRun.of(me).refuseTag(count) }
    }
    handler.endElementNs = { me, _, _, _ in XMLRun.trace(me).pointee.end() }
    if filter != nil { passEvents() }
    handler.internalSubset = { me, _, _, _ in XMLRun.of(me).refuseDoctype() }
    parser = xmlCreatePushParserCtxt(&handler, trace, nil, 0, nil)
    xmlCtxtUseOptions(parser, Int32(XML_PARSE_NONET.rawValue))
    validator = xmlSchemaNewValidCtxt(schema)
    xmlSchemaSetValidStructuredErrors(
      validator, { me, error in if let error { XMLRun.of(me).schemaError(error.pointee) } }, trace)
    xmlSchemaValidateSetLocator(validator, sp_xml_locate, parser)
    plug = xmlSchemaSAXPlug(validator, &parser.pointee.sax, &parser.pointee.userData)
  }

  private func passEvents() {
    handler.startElementNs = { me, name, prefix, uri, namespaceCount, namespaces, count, _, attributes in
      let run = XMLRun.of(me)
      if !run.trace.pointee.start(name!, count) { run.refuseTag(count) }
      guard let filter = run.filter, !run.isOver else { return }
      filter.start(
        XMLTag(
          name!, prefix: prefix, uri: uri, namespaces: namespaces, namespaceCount: Int(namespaceCount),
          attributes: attributes, attributeCount: Int(count)), isRecord: run.trace.pointee.isRecord)
    }
    handler.endElementNs = { me, name, prefix, _ in
      let run = XMLRun.of(me)
      run.trace.pointee.end()
      run.filter?.end(XMLTag.qualified(prefix, name!))
      if run.filter?.outcome.forbidden != nil { run.cut() }
    }
    handler.characters = { me, text, count in
      XMLRun.of(me).filter?.text(UnsafeBufferPointer(start: text, count: Int(count)))
    }
    handler.cdataBlock = handler.characters
  }

  deinit {
    xmlSchemaSAXUnplug(plug)
    xmlSchemaFreeValidCtxt(validator)
    // The parser's own handler copy goes with it.
    xmlFreeParserCtxt(parser)
    trace.pointee.deallocate()
    trace.deallocate()
  }

  /// In which a declaration must end.
  static let openingBytes = 1024

  /// Only encodings whose markup is ASCII, for start tags are measured in bytes. A mark or a declaration says which.
  private static func isReadable(_ bytes: [UInt8]) -> Bool {
    let hasMark = bytes.starts(with: [0xEF, 0xBB, 0xBF])
    let text = hasMark ? bytes.dropFirst(3) : bytes[...]
    // A NUL is of an encoding in wider units, which libxml2 would recognise.
    guard !text.prefix(4).contains(0) else { return false }
    guard text.starts(with: "<?xml".utf8) else { return text.first.map { $0 == 60 || $0 <= 32 } ?? true }
    guard let end = text.prefix(openingBytes).firstIndex(of: 62) else { return false }
    let declaration = String(decoding: text[..<end], as: UTF8.self)
    guard let name = declaration.firstMatch(of: /encoding\s*=\s*["']([^"']*)["']/) else { return true }
    return (hasMark ? ["utf-8"] : ["utf-8", "us-ascii", "iso-8859-1"]).contains(name.1.lowercased())
  }

  private static func trace(_ pointer: UnsafeMutableRawPointer?) -> UnsafeMutablePointer<XMLTrace> {
    pointer!.assumingMemoryBound(to: XMLTrace.self)
  }

  private static func of(_ pointer: UnsafeMutableRawPointer?) -> XMLRun {
    trace(pointer).pointee.run.takeUnretainedValue()
  }

  private var line: Int64 { Int64(parser.pointee.input?.pointee.line ?? 0) }

  /// - Parameter bytes: empty at the end.
  func feed(_ bytes: UnsafeRawBufferPointer) {
    guard var first = opening else { return parse(bytes) }
    first += bytes
    guard first.count >= Self.openingBytes || bytes.isEmpty else { return opening = first }
    opening = nil
    if !Self.isReadable(first) {
      report.bytes = Int64(first.count)
      stop("xml.encoding", "UTF-8, US-ASCII or ISO-8859-1")
      return xmlStopParser(parser)
    }
    if !first.isEmpty { first.withUnsafeBytes { parse($0) } }
    if bytes.isEmpty { parse(bytes) }
  }

  private func parse(_ bytes: UnsafeRawBufferPointer) {
    guard !isOver else { return }
    report.bytes += Int64(bytes.count)
    trace.pointee.bytes = report.bytes
    defer { report.records = trace.pointee.records }
    // Text of one element is gathered whole by libxml2.
    guard !trace.pointee.isInRecord || report.bytes - trace.pointee.recordStart <= Int64(RecordLimits.recordBytesMax)
    else {
      return stop("record.size", "a record of at most \(RecordLimits.recordBytesMax) bytes")
    }
    guard tags.scan(bytes) else {
      stop("xml.start-tag", "start tags of at most \(XMLSchema.startTagBytesMax) bytes")
      return
    }
    let status = xmlParseChunk(
      parser, bytes.baseAddress?.assumingMemoryBound(to: CChar.self), Int32(bytes.count), bytes.isEmpty ? 1 : 0)
    // The plug keeps the parser's errors to itself: they are asked for.
    if status != 0, !isOver, let error = xmlCtxtGetLastError(parser) { parserError(error.pointee) }
    if bytes.isEmpty { isOver = true }
    if isOver { xmlStopParser(parser) }
  }

  private func stop(_ code: String, _ expected: String) {
    guard !isOver else { return }
    report.add(
      Finding(fault: code, expected: expected, record: 0, line: max(1, line), byteOffset: report.bytes),
      findingsMax: findingsMax)
    cut()
  }

  /// Reads no further. The parser itself is stopped when it has returned: it would free its input, and the validator, which sees each
  /// tag after our handlers, still has pointers into that.
  private func cut() {
    isOver = true
    parser.pointee.disableSAX = 1
  }

  private func refuseDoctype() { stop("xml.doctype", "no DOCTYPE") }

  /// Of a tag that is too deep, or has too many attributes.
  private func refuseTag(_ attributes: Int32) {
    if attributes > XMLSchema.attributesMax {
      stop("xml.attributes", "at most \(XMLSchema.attributesMax) attributes")
    } else {
      stop("xml.depth", "at most \(XMLSchema.depthMax) levels")
    }
  }

  /// Bytes that the parser has taken.
  private var offset: Int64 {
    let consumed = Int64(xmlByteConsumed(parser))
    return consumed < 0 ? report.bytes : consumed
  }

  private var path: [String] { (0..<trace.pointee.depth).map { String(cString: trace.pointee.names[$0]) } }

  private var place: String { "/" + path.map { knownNames.contains($0) ? $0 : "#" }.joined(separator: "/") }

  /// Only the first fault of the text: what comes after it means nothing.
  private func parserError(_ error: xmlError) {
    isOver = true
    report.add(
      Finding(
        fault: "xml.syntax", expected: "well-formed XML (libxml2 \(error.code))",
        record: trace.pointee.isInRecord ? trace.pointee.records : 0,
        line: Int64(error.line),
        byteOffset: offset),
      findingsMax: findingsMax)
  }

  private func schemaError(_ error: xmlError) {
    guard !isOver else { return }
    let line = Int64(error.line)
    // Our own handler runs before the validator: at an end tag the path has lost the element it is about.
    let message = error.message.map { String(cString: $0) } ?? ""
    var path = place
    let (element, attribute) = Self.subject(message)
    if let element, self.path.last != element {
      path = (path == "/" ? "" : path) + "/" + (knownNames.contains(element) ? element : "#")
    }
    if let attribute { path += "/@" + (knownNames.contains(attribute) ? attribute : "#") }
    let record = trace.pointee.isInRecord || trace.pointee.recordHasEnded ? trace.pointee.records : 0
    guard (record, line, error.code, path) != last else { return }
    last = (record, line, error.code, path)
    if record > 0, record != invalidRecordNumber {
      invalidRecordNumber = record
      report.invalidRecords += 1
    }
    report.add(
      Finding(
        record: record, line: max(1, line), byteOffset: offset, at: path, keyword: LibXML.name(error),
        keywordLocation: "",
        absolute: "", expected: Self.expectation(message, error.code), actual: ""),
      findingsMax: findingsMax)
  }

  /// The local names at the start of a message: "Element '{namespace}name', attribute 'name': …". What follows them may
  /// repeat values.
  private static func subject(_ message: String) -> (element: String?, attribute: String?) {
    func name(_ text: inout Substring, after mark: String) -> String? {
      guard text.hasPrefix(mark), let end = text.dropFirst(mark.count).firstIndex(of: "'") else { return nil }
      defer { text = text[text.index(after: end)...] }
      return text[text.index(text.startIndex, offsetBy: mark.count)..<end].split(separator: "}").last.map(String.init)
    }
    var text = message[...]
    let element = name(&text, after: "Element '")
    return (element, element == nil ? nil : name(&text, after: ", attribute '"))
  }

  /// What libxml2 says the schema wants. A message repeats the value before that, so the mark is looked for from the end.
  private static func expectation(_ message: String, _ code: Int32) -> String {
    func tail(_ mark: String) -> String? {
      message.range(of: mark, options: .backwards).map { String(message[$0.upperBound...]) }
    }
    let text: String? =
      switch code {
      case 1824, 1825, 1826: tail("is not a valid value of the ")
      case 1839: tail("is not accepted by the pattern ")
      case 1840: tail("is not an element of the set ").map { "one of \($0)" }
      case 1844, 1871: tail("Expected is ")
      default: nil
      }
    return JSONDescriber.cut((text ?? "").trimmingCharacters(in: CharacterSet(charactersIn: " .\n")))
  }
}

/// Measures start tags before libxml2 sees them: it handles attributes in quadratic time, before any callback.
private struct StartTagScan {
  private enum Mode { case text, opened, tag, quoted(UInt8), declaration, comment, section, instruction }
  private var mode = Mode.text
  private var length = 0
  private var previous: (UInt8, UInt8) = (0, 0)
  private var prefix: [UInt8] = []

  /// False when a start tag is too long.
  mutating func scan(_ bytes: UnsafeRawBufferPointer) -> Bool {
    guard let base = bytes.baseAddress else { return true }
    var index = 0
    func find(_ byte: UInt8) -> Int? {
      memchr(base + index, Int32(byte), bytes.count - index).map { UnsafeRawPointer($0) - base }
    }
    while index < bytes.count {
      switch mode {
      case .text:
        guard let next = find(60) else { return true }
        index = next + 1
        // Most tags are whole, without a quote: they are passed in one step.
        var end = index
        if end < bytes.count, bytes[end] != 33, bytes[end] != 63 {
          while end < bytes.count, bytes[end] != 62, bytes[end] != 34, bytes[end] != 39 { end += 1 }
        }
        if end < bytes.count, bytes[end] == 62, end - index < XMLSchema.startTagBytesMax {
          index = end + 1
        } else {
          mode = .opened
        }
      case .opened:
        switch bytes[index] {
        case 33: (mode, prefix) = (.declaration, [])
        case 63: (mode, previous) = (.instruction, (0, 63))
        default: (mode, length) = (.tag, 0)
        }
        // A tag may end with its first byte.
        if case .tag = mode { break }
        index += 1
      case .tag:
        let start = index
        while index < bytes.count, bytes[index] != 62, bytes[index] != 34, bytes[index] != 39 { index += 1 }
        length += index - start
        if index < bytes.count {
          mode = bytes[index] == 62 ? .text : .quoted(bytes[index])
          index += 1
          length += 1
        }
        if length > XMLSchema.startTagBytesMax { return false }
      case .quoted(let quote):
        let end = find(quote)
        length += (end.map { $0 + 1 } ?? bytes.count) - index
        index = end.map { $0 + 1 } ?? bytes.count
        if end != nil { mode = .tag }
        if length > XMLSchema.startTagBytesMax { return false }
      case .declaration:
        prefix.append(bytes[index])
        if prefix == [45, 45] {
          (mode, previous) = (.comment, (0, 0))
        } else if prefix.starts(with: "[CDATA[".utf8) {
          (mode, previous) = (.section, (0, 0))
        } else if bytes[index] == 62 || prefix.count > 16 {
          mode = .text
        }
        index += 1
      case .comment: close(bytes, &index) { $0 == (45, 45) }
      case .section: close(bytes, &index) { $0 == (93, 93) }
      case .instruction: close(bytes, &index) { $0.1 == 63 }
      }
    }
    return true
  }

  /// Goes on to the first > that `isEnd` says is one by the two bytes before it.
  private mutating func close(
    _ bytes: UnsafeRawBufferPointer, _ index: inout Int, _ isEnd: ((UInt8, UInt8)) -> Bool
  ) {
    while index < bytes.count {
      let byte = bytes[index]
      index += 1
      if byte == 62, isEnd(previous) {
        mode = .text
        return
      }
      previous = (previous.1, byte)
    }
  }
}
