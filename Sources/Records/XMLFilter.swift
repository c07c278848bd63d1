// A plan on XML records: each is written anew from the parser's events, in UTF-8, its comments and processing instructions left
// out. Elements match by local name, in the record's own namespace or none, attributes without a namespace; what else stands in a
// record does not go. Outside of records only the way to them goes, and what a field names from the document's root.

import CXML2
import Glibc

/// Takes the events of one document. One thread.
final class XMLFilter {
  /// Finished bytes, in order.
  private(set) var outcome = BatchOutcome()
  private let filter: CompiledFilter
  private let tree: FieldTree
  private var writer: BatchWriter
  /// What stands around records and is not handed over yet. It and `writer` never hold bytes at once.
  private var around = ByteBuffer(capacity: 1 << 12)
  private let put: (OutputPiece, [SubjectDigest]) -> Void
  private let recordPath: [String]
  /// Namespaces that the schema knows: a declaration of another could say anything.
  private let namespaces: Set<[UInt8]>
  /// Somebody's number is one however it is spelled.
  private let subjectIsNumber: Bool
  /// Open elements outside of records, and whether each goes with all that is in it.
  private var outer: [(path: String, isWhole: Bool, emits: Bool)] = []

  // The record that is open.
  private var mark: BatchWriter.Mark?
  private var namespace: [UInt8]?
  private var stack: [Place] = []
  private var values: [[[UInt8]]]
  private var failed = false

  private struct Place {
    /// nil: nothing within is named.
    var node: FieldTree.Node?
    /// Everything within goes.
    var isWhole: Bool
    /// Its tags go.
    var emits: Bool
    /// Text to be transformed or captured.
    var text: [UInt8] = []
    var wantsText: Bool
  }

  /// - Parameter put: finished bytes, with the subjects of the records in them.
  init(
    _ filter: CompiledFilter, recordPath: [String], namespaces: Set<[UInt8]>, numbers: Set<String>,
    put: @escaping (OutputPiece, [SubjectDigest]) -> Void
  ) {
    self.filter = filter
    self.recordPath = recordPath
    self.namespaces = namespaces
    let name = filter.filter.plan.subject?.split(whereSeparator: { $0 == "/" || $0 == "." || $0 == "@" }).last
    subjectIsNumber = name.map { numbers.contains(String($0)) } ?? false
    self.put = put
    tree = filter.filter.tree
    writer = BatchWriter(filter.gate)
    values = filter.filter.tree.captures.map { _ in [] }
    around.append(Array("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n".utf8))
  }

  // MARK: events

  func start(_ tag: XMLTag, isRecord: Bool) {
    if isRecord, mark == nil {
      flushAround()
      mark = writer.mark
      namespace = tag.namespace
      stack = []
      for index in values.indices { values[index].removeAll(keepingCapacity: true) }
      failed = false
      open(tag, Place(node: tree.root, isWhole: filter.keepsAll, emits: true, wantsText: false))
      return
    }
    guard mark != nil, let above = stack.last else {
      return startOutside(tag)
    }
    var node: FieldTree.Node?
    if tag.namespace == nil || tag.namespace == namespace { node = above.node?.child(named: tag.name) }
    let action = node?.action
    let isWhole = above.isWhole || action == .pass
    let emits = isWhole || (above.emits && node?.isKept == true)
    let isTransformed = !above.isWhole && action != nil && action != .pass && action != .drop
    open(
      tag,
      Place(
        node: node, isWhole: isWhole, emits: emits, wantsText: isTransformed || node?.capture != nil))
  }

  private func startOutside(_ tag: XMLTag) {
    let path = (outer.last?.path ?? "") + "/" + tag.name
    let isWhole = outer.last?.isWhole ?? false || tree.outside.contains(path) || filter.keepsAll
    // The way to the records: their ancestors, the root where no path is declared.
    let depth = outer.count
    let isOnWay =
      recordPath.isEmpty
      ? depth == 0 : depth < recordPath.count - 1 && path == "/" + recordPath[...depth].joined(separator: "/")
    let emits = isWhole || (isOnWay && outer.allSatisfy(\.emits))
    outer.append((path, isWhole, emits))
    guard emits else { return }
    flushRecords()
    tag.write(
      attributes: { isWhole || tree.outside.contains("\(path)/@\($0)") }, namespaces: namespaces, into: &around)
  }

  private func open(_ tag: XMLTag, _ place: Place) {
    stack.append(place)
    for attribute in tag.attributes where attribute.isLocal {
      guard let child = place.node?.child(named: "@" + attribute.name), let capture = child.capture else { continue }
      values[capture].append(Self.trimmed(attribute.value))
    }
    guard place.emits else { return }
    let node = place.node
    tag.write(
      attributes: { name in place.isWhole || node?.child(named: "@" + name)?.action == .pass },
      namespaces: namespaces, into: &writer.buffer)
  }

  func text(_ bytes: UnsafeBufferPointer<UInt8>) {
    guard mark != nil, let last = stack.indices.last else {
      // Blanks between records would pile up where some are left out.
      guard outer.last?.isWhole ?? false, !bytes.allSatisfy({ $0 == 32 || $0 == 9 || $0 == 10 || $0 == 13 }) else {
        return
      }
      flushRecords()
      XMLTag.escape(bytes, into: &around)
      return
    }
    if stack[last].wantsText { stack[last].text.append(contentsOf: bytes) }
    if stack[last].isWhole { XMLTag.escape(bytes, into: &writer.buffer) }
  }

  func end(_ name: [UInt8]) {
    guard mark != nil, let place = stack.popLast() else {
      guard outer.popLast()?.emits ?? false else { return }
      flushRecords()
      around.append(Array("</".utf8) + name + [62, 10])
      return
    }
    if let capture = place.node?.capture, place.wantsText { values[capture].append(Self.trimmed(place.text)) }
    if !place.isWhole, place.emits, let action = place.node?.action { transform(place.text, action) }
    if place.emits { writer.buffer.append(Array("</".utf8) + name + [62]) }
    if stack.isEmpty { endRecord() }
  }

  /// What is left to be handed over.
  func finish() {
    flushRecords()
    flushAround()
  }

  // MARK: records

  private func transform(_ text: [UInt8], _ action: RecordPlan.Action) {
    let trimmed = Self.trimmed(text)
    guard !trimmed.isEmpty else { return }
    switch action {
    case .pass, .drop: break
    case .mask: writer.buffer.append(Transform.mask)
    case .constant(let constant):
      Array(constant.utf8).withUnsafeBufferPointer { XMLTag.escape($0, into: &writer.buffer) }
    case .pseudonymise: trimmed.withUnsafeBufferPointer { writer.pseudonym(of: $0) }
    case .generalise(let granularity):
      var coarse: [UInt8] = []
      if trimmed.withUnsafeBufferPointer({ Transform.generalise($0, to: granularity, into: &coarse) }) {
        coarse.withUnsafeBufferPointer { XMLTag.escape($0, into: &writer.buffer) }
      } else {
        failed = true
      }
    }
  }

  private func endRecord() {
    guard let mark else { return }
    self.mark = nil
    writer.buffer.append(10)
    let values = values
    var fate = filter.decide { slot, visit in
      for value in values[Int(slot)] where !value.isEmpty {
        if !value.withUnsafeBufferPointer({ visit(.spaced($0)) }) { return }
      }
    }
    if case .goes = fate, failed { fate = .withheld(WithheldCode.error) }
    var id: [UInt8] = []
    if case .goes = fate, let subject = filter.subject {
      let found = values[Int(subject)]
      // Blanks within may count or not, as the schema's type has it.
      if found.count != 1 || Spaces.collapsed(found[0]) != nil
        || !found[0].withUnsafeBufferPointer({ SubjectID.canonical($0, isNumber: subjectIsNumber, into: &id) })
      {
        fate = .withheld(WithheldCode.error)
      }
    }
    switch fate {
    case .goes: writer.end(from: mark, id: filter.subject == nil ? nil : id)
    case .withheld(let code):
      writer.drop(to: mark)
      outcome.withheld[code, default: 0] += 1
    case .forbidden(let rule):
      writer.drop(to: mark)
      outcome.forbidden = rule
      outcome.isFatal = true
    }
    if writer.buffer.count >= RecordLimits.batchBytes / 2 { flushRecords() }
  }

  private func flushRecords() {
    guard writer.buffer.count > 0 else { return }
    writer.finish(into: &outcome)
    if let output = outcome.output { put(output, outcome.subjects) }
    outcome.output = nil
    outcome.subjects = []
  }

  private func flushAround() {
    guard around.count > 0 else { return }
    var full = ByteBuffer(capacity: 1 << 12)
    swap(&full, &around)
    put(OutputPiece(full), [])
  }

  private static func trimmed(_ text: [UInt8]) -> [UInt8] {
    let isBlank: (UInt8) -> Bool = { $0 == 32 || $0 == 9 || $0 == 10 || $0 == 13 }
    guard let start = text.firstIndex(where: { !isBlank($0) }), let end = text.lastIndex(where: { !isBlank($0) }) else {
      return []
    }
    return Array(text[start...end])
  }
}

/// A start tag as the parser gives it. Copies: the parser's memory goes with the event.
struct XMLTag {
  let name: String
  let qualified: [UInt8]
  let namespace: [UInt8]?
  /// `isLocal`: in no namespace. `judges`: what a schema judges a value by, `xsi:type` and `xsi:nil` whatever their prefix.
  let attributes: [(name: String, qualified: [UInt8], value: [UInt8], isLocal: Bool, judges: Bool)]
  /// Declarations: prefix, empty for the default, and URI.
  let declarations: [(prefix: [UInt8], uri: [UInt8])]

  typealias Text = UnsafePointer<xmlChar>

  static let instance = Array("http://www.w3.org/2001/XMLSchema-instance".utf8)

  init(
    _ name: Text, prefix: Text?, uri: Text?, namespaces: UnsafeMutablePointer<Text?>?, namespaceCount: Int,
    attributes: UnsafeMutablePointer<Text?>?, attributeCount: Int
  ) {
    self.name = String(cString: name)
    qualified = Self.qualified(prefix, name)
    namespace = uri.map { Self.bytes($0) }
    declarations = (0..<namespaceCount).map { place in
      (namespaces![place * 2].map { Self.bytes($0) } ?? [], namespaces![place * 2 + 1].map { Self.bytes($0) } ?? [])
    }
    self.attributes = (0..<attributeCount).map { place in
      let (start, end) = (attributes![place * 5 + 3]!, attributes![place * 5 + 4]!)
      let name = String(cString: attributes![place * 5]!)
      // Nothing else of that namespace: `xsi:schemaLocation` could say anything.
      let judges =
        attributes![place * 5 + 2].map { Self.bytes($0) == Self.instance } ?? false && ["type", "nil"].contains(name)
      return (
        name, Self.qualified(attributes![place * 5 + 1], attributes![place * 5]!),
        Self.value(UnsafeBufferPointer(start: start, count: end - start)), attributes![place * 5 + 1] == nil, judges
      )
    }
  }

  static func qualified(_ prefix: Text?, _ name: Text) -> [UInt8] {
    (prefix.map { bytes($0) + [58] } ?? []) + bytes(name)
  }

  private static func bytes(_ text: Text) -> [UInt8] {
    Array(UnsafeBufferPointer(start: text, count: strlen(UnsafeRawPointer(text).assumingMemoryBound(to: CChar.self))))
  }

  /// libxml2 leaves an ampersand in an attribute as `&#38;`, and only that.
  private static func value(_ text: UnsafeBufferPointer<UInt8>) -> [UInt8] {
    guard text.contains(38) else { return Array(text) }
    let mark = Array("&#38;".utf8)
    var output: [UInt8] = []
    var index = 0
    while index < text.count {
      output.append(text[index])
      index += text[index] == 38 && text[index...].starts(with: mark) ? mark.count : 1
    }
    return output
  }

  func write(attributes wanted: (String) -> Bool, namespaces: Set<[UInt8]>, into output: inout ByteBuffer) {
    output.append(60)
    output.append(qualified)
    for declaration in declarations where namespaces.contains(declaration.uri) {
      output.append(Array((declaration.prefix.isEmpty ? " xmlns" : " xmlns:").utf8) + declaration.prefix + [61, 34])
      declaration.uri.withUnsafeBufferPointer { Self.escape($0, into: &output, inAttribute: true) }
      output.append(34)
    }
    for attribute in attributes
    where attribute.isLocal ? wanted(attribute.name) : attribute.judges {
      output.append([32] + attribute.qualified + [61, 34])
      attribute.value.withUnsafeBufferPointer { Self.escape($0, into: &output, inAttribute: true) }
      output.append(34)
    }
    output.append(62)
  }

  /// XML 1.0 §2.4 and §3.3.3: what a reader would change is written as a reference.
  static func escape(_ text: UnsafeBufferPointer<UInt8>, into output: inout ByteBuffer, inAttribute: Bool = false) {
    for byte in text {
      switch byte {
      case 38: output.append(Array("&amp;".utf8))
      case 60: output.append(Array("&lt;".utf8))
      case 62: output.append(Array("&gt;".utf8))
      case 34 where inAttribute: output.append(Array("&quot;".utf8))
      case 9 where inAttribute, 10 where inAttribute, 13: output.append(Array("&#\(byte);".utf8))
      default: output.append(byte)
      }
    }
  }
}
