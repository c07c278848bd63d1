// Schema files and what stands beside them: references go to neighbours in the same folder, never to the network.

import Foundation
import Policies
import Records
import Store

/// How a payload's records are written; with a schema, what they are checked against.
package typealias PayloadFormat = Agreement.Records.Format

extension PayloadFormat {
  /// By a file's extension; nil when it says nothing.
  package init?(fileName: String) {
    switch URL(fileURLWithPath: fileName).pathExtension.lowercased() {
    case "ndjson", "jsonl": self = .ndjson
    case "json": self = .json
    case "csv": self = .csv
    case "xml": self = .xml
    default: return nil
    }
  }
}

/// What else must be known to read a payload's records.
package struct PayloadOptions: Sendable {
  /// To the array of records in a JSON file.
  package var pointer = ""
  /// To a record in an XML file.
  package var recordPath = ""
  package var dialect = CSVDialect()

  package init() {}

  init(_ records: Agreement.Records) {
    if records.format == .json { pointer = records.at } else { recordPath = records.at }
    dialect = CSVDialect(delimiter: records.delimiter, encoding: .init(rawValue: records.encoding) ?? .utf8)
  }
}

/// Loads schemas with their neighbours.
package struct SchemaFolder: Sendable {
  package static let filesMax = 1000
  private let path: String
  private let name: String

  /// - Parameter file: the schema itself.
  package init(_ file: String) {
    let url = URL(fileURLWithPath: file)
    path = url.deletingLastPathComponent().path
    name = url.lastPathComponent
  }

  /// Compiles the schema for a format.
  ///
  /// - Throws: DiskError; SchemaError with the place at fault.
  package func compile(_ format: PayloadFormat, _ options: PayloadOptions) throws -> RecordFormat {
    try compile(try contents(), format, options)
  }

  /// The schema's own bytes.
  func contents() throws -> [UInt8] { try File.contents("\(path)/\(name)", bytesMax: XMLSchema.schemaBytesMax) }

  /// Compiles what `contents` gave, once its digest was compared.
  func compile(_ bytes: [UInt8], _ format: PayloadFormat, _ options: PayloadOptions) throws -> RecordFormat {
    switch format {
    case .ndjson: return .ndjson(try jsonSchema(bytes))
    case .json: return .json(try jsonSchema(bytes), pointer: options.pointer)
    case .csv:
      return .csv(
        try TableSchema(bytes, uri: name, tables: try neighbours("csv", keepsExtension: false)), options.dialect)
    case .xml:
      return .xml(try XMLSchema(bytes, documents: try neighbours("xsd"), recordPath: options.recordPath))
    }
  }

  private func jsonSchema(_ bytes: [UInt8]) throws -> SchemaProgram {
    var bundle = SchemaBundle()
    for (name, text) in try neighbours("json") where name != self.name {
      // A neighbour that is no JSON only matters to who refers to it.
      do throws(SchemaError) { try bundle.add(text, uri: Self.uri(name)) } catch { continue }
    }
    return try SchemaProgram.compile(bytes, uri: Self.uri(name), bundle: bundle)
  }

  private static func uri(_ name: String) -> String { "file:///\(name)" }

  /// Files with an extension in the folder, by name.
  private func neighbours(_ wanted: String, keepsExtension: Bool = true) throws -> [String: [UInt8]] {
    var files: [String: [UInt8]] = [:]
    for name in try Directory.names(path, countMax: Self.filesMax) {
      let url = URL(fileURLWithPath: name)
      guard url.pathExtension.lowercased() == wanted else { continue }
      do throws(DiskError) {
        files[keepsExtension ? name : url.deletingPathExtension().lastPathComponent] =
          try File.contents("\(path)/\(name)", bytesMax: XMLSchema.schemaBytesMax)
      } catch {
        guard [EINVAL, EFBIG, ELOOP, EACCES].contains(error.errno) else { throw error }
      }
    }
    return files
  }
}
