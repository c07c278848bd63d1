// XML by XSD 1.0 through libxml2, streaming: a push parser with the validator plugged between it and our own handler.
//
// Closed against what XML can do to its reader: no DOCTYPE (so no entities), no network, bounded depth, attributes and start tags.

import CXML2
import Foundation

/// A compiled XSD. Immutable once compiled; validators of many threads share it.
package final class XMLSchema: @unchecked Sendable {
  // Proof for @unchecked: libxml2's schema is only read after it was parsed (xmlSchemaNewValidCtxt makes the mutable part).
  private let schema: xmlSchemaPtr
  /// Element and attribute names of the schema: only these may appear in a finding.
  private let knownNames: Set<String>
  private let namespaces: Set<[UInt8]>
  /// Names of elements and attributes that hold numbers.
  private let numbers: Set<String>
  /// Local names from the root to a record; empty: each child of the root is one.
  private let recordPath: [String]

  package static let schemaBytesMax = 4 << 20
  package static let occursMax = 20_000
  package static let depthMax = 100
  package static let attributesMax = 256
  package static let startTagBytesMax = 64 << 10

  /// - Parameters:
  ///   - documents: what `xs:import` and `xs:include` may name, by schemaLocation. Nothing else is loaded.
  ///   - recordPath: such as "/visits/visit"; local names.
  /// - Throws: why it cannot be enforced.
  package init(_ bytes: [UInt8], documents: [String: [UInt8]] = [:], recordPath: String = "") throws(SchemaError) {
    guard bytes.count <= Self.schemaBytesMax, documents.values.allSatisfy({ $0.count <= Self.schemaBytesMax }) else {
      throw SchemaError(location: "", reason: "over \(Self.schemaBytesMax) bytes")
    }
    self.recordPath = recordPath.split(separator: "/").map(String.init)
    var names = Set<String>()
    // Declared on every xsi:type and xsi:nil.
    var namespaces: Set<[UInt8]> = [XMLTag.instance]
    var types = XSDTypes()
    for text in [bytes] + documents.values {
      guard let tags = LibXML.attributes(text) else {
        throw SchemaError(location: "", reason: "not well-formed XML, or with a DOCTYPE")
      }
      names.formUnion(try Self.vet(tags))
      for (element, attribute, value) in tags {
        if attribute == "targetNamespace" { namespaces.insert(Array(value.utf8)) }
        types.take(element, attribute, value)
      }
    }
    knownNames = names
    self.namespaces = namespaces
    numbers = types.numbers
    schema = try LibXML.compile(bytes, documents)
  }

  deinit { xmlSchemaFree(schema) }

  /// The names that a schema document declares. Refuses what has no bound or no meaning while streaming.
  private static func vet(_ tags: [(String, String, String)]) throws(SchemaError) -> Set<String> {
    var known = Set<String>()
    for (element, attribute, value) in tags {
      switch (element, attribute) {
      case ("unique", _), ("key", _), ("keyref", _):
        throw SchemaError(location: "", reason: "xs:\(element) needs memory for every record: leave it out")
      case (_, "name"): known.insert(value)
      case (_, "maxOccurs") where value != "unbounded" && (Int(value) ?? .max) > occursMax:
        throw SchemaError(location: "", reason: "maxOccurs over \(occursMax): say unbounded")
      case ("pattern", "value"):
        if value.utf8.count > 1000 { throw SchemaError(location: "", reason: "a pattern of more than 1,000 bytes") }
        // libxml2 backtracks.
        guard !XSDPattern.mayExplode(value) else {
          throw SchemaError(
            location: "",
            reason:
              "the pattern \(value) repeats what repeats or has a choice in it, and a text can be read in many ways")
        }
      default: break
      }
    }
    return known
  }

  /// Reads and validates everything.
  func check(
    _ input: RecordInput, findingsMax: Int, _ filtering: Filtering?, onProgress: (@Sendable (Int64) -> Void)?
  ) throws -> RecordReport {
    let joiner = filtering.map {
      XMLJoiner(
        $0, recordPath: recordPath, namespaces: namespaces, numbers: numbers, validating: newRun(findingsMax: 1))
    }
    let run = newRun(findingsMax: findingsMax, joiner?.filter)
    let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 16, alignment: 16)
    defer {
      buffer.initializeMemory(as: UInt8.self, repeating: 0)
      buffer.deallocate()
    }
    while !run.isOver {
      let got = try input(buffer)
      run.feed(UnsafeRawBufferPointer(rebasing: buffer[..<got]))
      if got == 0 { break }
      try joiner?.handOn(run.report)
      onProgress?(run.report.bytes)
    }
    var report = run.report
    try joiner?.finish(&report, findingsMax: findingsMax)
    return report
  }

  private func newRun(findingsMax: Int, _ filter: XMLFilter? = nil) -> XMLRun {
    XMLRun(
      schema: schema, knownNames: knownNames, recordPath: recordPath, findingsMax: findingsMax, filter: filter)
  }
}

/// Which declared names have a type of numbers, by XSD 1.0 part 2 §3.2 and §3.3. Of names that are declared more than once, one is enough.
private struct XSDTypes {
  private static let numeric: Set<String> = [
    "decimal", "float", "double", "integer", "nonPositiveInteger", "negativeInteger", "long", "int", "short", "byte",
    "nonNegativeInteger", "unsignedLong", "unsignedInt", "unsignedShort", "unsignedByte", "positiveInteger", "gYear",
  ]
  private enum Open { case type(String), declared(String) }

  private var open: Open?
  private var types: [String: Set<String>] = [:]
  private var bases: [String: String] = [:]
  /// Of the tag that is read: its attributes stand in any order.
  private var declared: (name: String?, type: String?)

  /// Tags and their attributes as `LibXML.attributes` has them.
  mutating func take(_ element: String, _ attribute: String, _ value: String) {
    let local = value.split(separator: ":").last.map(String.init) ?? value
    switch (element, attribute) {
    case (_, ""): declared = (nil, nil)
    case ("element", "name"), ("attribute", "name"):
      declared.name = value
      open = .declared(value)
      if let type = declared.type { types[value, default: []].insert(type) }
    case ("element", "type"), ("attribute", "type"):
      declared.type = local
      if let name = declared.name { types[name, default: []].insert(local) }
    case ("simpleType", "name"), ("complexType", "name"): open = .type(value)
    case ("restriction", "base"), ("extension", "base"):
      switch open {
      case .type(let name): bases[name] = bases[name] ?? local
      case .declared(let name): types[name, default: []].insert(local)
      case nil: break
      }
    default: break
    }
  }

  var numbers: Set<String> {
    Set(
      types.filter { _, types in
        types.contains { type in
          var name = type
          for _ in 0..<20 {
            if Self.numeric.contains(name) { return true }
            guard let base = bases[name] else { return false }
            name = base
          }
          return false
        }
      }.keys)
  }
}

/// Takes what a filter writes through a validation of its own, and hands it on. One thread.
private final class XMLJoiner {
  private(set) var filter: XMLFilter!
  private let sink: RecordSink
  private let validation: XMLRun
  private var pieces: [(OutputPiece, [SubjectDigest])] = []

  init(
    _ filtering: Filtering, recordPath: [String], namespaces: Set<[UInt8]>, numbers: Set<String>, validating: XMLRun
  ) {
    sink = filtering.sink
    validation = validating
    filter = XMLFilter(filtering.filter, recordPath: recordPath, namespaces: namespaces, numbers: numbers) {
      [unowned self] piece, subjects in pieces.append((piece, subjects))
    }
  }

  func handOn(_ report: RecordReport) throws {
    let found = pieces
    pieces = []
    guard report.isValid, filter.outcome.forbidden == nil, validation.report.isValid else { return }
    for (piece, subjects) in found {
      validation.feed(piece.bytes)
      guard validation.report.isValid else { return }
      if !subjects.isEmpty { try sink.subjects(subjects) }
      try sink.write(piece)
    }
  }

  func finish(_ report: inout RecordReport, findingsMax: Int) throws {
    filter.finish()
    try handOn(report)
    var result = FilterReport()
    result.kept = filter.outcome.kept
    result.withheld = filter.outcome.withheld
    result.forbidden = filter.outcome.forbidden
    report.filtered = result
    guard report.isValid, result.forbidden == nil else { return }
    validation.feed(UnsafeRawBufferPointer(start: nil, count: 0))
    if let broken = validation.report.findings.first {
      // What is left does not keep the schema: something that it requires was left out.
      report.add(
        Finding(
          fault: "xml.filtered",
          expected: "records that keep the schema without the fields that were left out: \(broken.text)",
          record: 0, line: 1, byteOffset: report.bytes), findingsMax: findingsMax)
    }
  }
}

/// The process-wide part of libxml2: its entity loader is closed once, and opened only for the documents of one compilation.
enum LibXML {
  private static let lock = NSLock()
  nonisolated(unsafe) private static var documents: [String: [UInt8]] = [:]
  // Proof for nonisolated(unsafe): touched only under `lock`, which compile() holds while libxml2 calls back.

  private static let once: Void = {
    xmlInitParser()
    xmlSetExternalEntityLoader { url, _, parser in
      guard let url, let bytes = LibXML.documents[String(cString: url)] else { return nil }
      let input = bytes.withUnsafeBytes {
        xmlParserInputBufferCreateMem(
          $0.baseAddress?.assumingMemoryBound(to: CChar.self), Int32($0.count), XML_CHAR_ENCODING_NONE)
      }
      return xmlNewIOInputStream(parser, input, XML_CHAR_ENCODING_NONE)
    }
  }()

  /// On every thread that calls libxml2: what it would print goes nowhere, its errors are asked for.
  static func ready() {
    _ = once
    xmlSetStructuredErrorFunc(nil) { _, _ in }
  }

  /// - Throws: what libxml2 says first against it.
  static func compile(_ bytes: [UInt8], _ offered: [String: [UInt8]]) throws(SchemaError) -> xmlSchemaPtr {
    final class Complaint {
      var text = ""
    }
    ready()
    lock.lock()
    defer {
      documents = [:]
      lock.unlock()
    }
    documents = offered
    let complaint = Complaint()
    let compiled = bytes.withUnsafeBytes { buffer in
      let context = xmlSchemaNewMemParserCtxt(
        buffer.baseAddress?.assumingMemoryBound(to: CChar.self), Int32(buffer.count))
      defer { xmlSchemaFreeParserCtxt(context) }
      xmlSchemaSetParserStructuredErrors(
        context,
        { me, error in
          let complaint = Unmanaged<Complaint>.fromOpaque(me!).takeUnretainedValue()
          guard complaint.text.isEmpty, let error, let message = error.pointee.message else { return }
          complaint.text =
            "line \(error.pointee.line): " + String(cString: message).trimmingCharacters(in: .whitespacesAndNewlines)
        }, Unmanaged.passUnretained(complaint).toOpaque())
      return withExtendedLifetime(complaint) { xmlSchemaParse(context) }
    }
    guard let compiled else {
      throw SchemaError(location: "", reason: "not an XSD that libxml2 compiles: \(complaint.text)")
    }
    return compiled
  }

  /// All tags of a document as (element, "", "") and, after each, its attributes as (element, attribute, value); nil when it is not well-formed or has a DOCTYPE.
  static func attributes(_ bytes: [UInt8]) -> [(String, String, String)]? {
    ready()
    final class Found {
      var items: [(String, String, String)] = []
      var hasDoctype = false
    }
    let found = Found()
    var handler = xmlSAXHandler()
    sp_xml_handler(&handler)
    handler.internalSubset = { me, _, _, _ in Unmanaged<Found>.fromOpaque(me!).takeUnretainedValue().hasDoctype = true }
    handler.startElementNs = { me, name, _, _, _, _, count, _, values in
      let found = Unmanaged<Found>.fromOpaque(me!).takeUnretainedValue()
      let element = String(cString: name!)
      found.items.append((element, "", ""))
      for place in 0..<Int(count) {
        let attribute = String(cString: values![place * 5]!)
        let start = values![place * 5 + 3]!
        let length = values![place * 5 + 4]! - start
        found.items.append(
          (element, attribute, String(decoding: UnsafeBufferPointer(start: start, count: length), as: UTF8.self)))
      }
    }
    handler.serror = { _, _ in }
    let context = xmlCreatePushParserCtxt(&handler, Unmanaged.passUnretained(found).toOpaque(), nil, 0, nil)
    defer { xmlFreeParserCtxt(context) }
    xmlCtxtUseOptions(context, Int32(XML_PARSE_NONET.rawValue))
    let status = bytes.withUnsafeBytes {
      xmlParseChunk(context, $0.baseAddress?.assumingMemoryBound(to: CChar.self), Int32($0.count), 1)
    }
    return withExtendedLifetime(found) { status == 0 && !found.hasDoctype ? found.items : nil }
  }

  /// The clause of XSD 1.0 part 1 or 2, or libxml2's number.
  static func name(_ error: xmlError) -> String {
    names[error.code] ?? "xml.\(error.code)"
  }

  private static let names: [Int32: String] = [
    1824: "cvc-datatype-valid", 1830: "length", 1831: "minLength", 1832: "maxLength", 1833: "minInclusive",
    1834: "maxInclusive",
    1835: "minExclusive", 1836: "maxExclusive", 1837: "totalDigits", 1838: "fractionDigits", 1839: "pattern",
    1840: "enumeration",
    1841: "cvc-complex-type.2.1", 1842: "cvc-complex-type.2.2", 1843: "cvc-complex-type.2.3",
    1844: "cvc-complex-type.2.4",
    1845: "cvc-elt.1", 1866: "cvc-complex-type.3.2.1", 1867: "cvc-complex-type.3.2.2", 1868: "cvc-complex-type.4",
    1871: "cvc-complex-type.2.4", 1873: "cvc-type.3.1.1", 1874: "cvc-attribute.3",
  ]
}
