// schemas check, schemas lint: a file against its schema before a batch job drops it.

import ArgumentParser
import Foundation
import Gateway
import Glibc
import Records
import Sealing
import Store

struct SchemasCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "schemas", abstract: "Check files against schemas, and schemas themselves.",
    subcommands: [Check.self, Lint.self])

  struct Reading: ParsableArguments {
    @Option(help: "ndjson, json, csv or xml; by the file's extension otherwise.")
    var format: PayloadFormat?
    @Option(
      help:
        "JSON: pointer to the array of records, such as /data/visits. Otherwise the top-level array, or the whole file."
    )
    var pointer = ""
    @Option(help: "XML: path of a record, such as /visits/visit. Otherwise each child of the root.")
    var records = ""
    @Option(help: "CSV: the delimiter, one character or \"tab\".")
    var delimiter = ","
    @Option(help: "CSV: utf-8, windows-1252, utf-16le or utf-16be.")
    var encoding: CSVDialect.Encoding = .utf8

    func options() throws -> PayloadOptions {
      var options = PayloadOptions()
      options.pointer = pointer
      options.recordPath = records
      let bytes = Array((delimiter == "tab" ? "\t" : delimiter).utf8)
      guard bytes.count == 1, bytes[0] < 128, ![34, 10, 13].contains(bytes[0]) else {
        throw ValidationError("--delimiter is one ASCII character, or tab")
      }
      guard pointer.isEmpty || pointer.hasPrefix("/") else { throw ValidationError("--pointer begins with /") }
      options.dialect = CSVDialect(delimiter: bytes[0], encoding: encoding)
      return options
    }

    func format(of file: String) throws -> PayloadFormat {
      guard let format = format ?? PayloadFormat(fileName: file) else {
        throw ValidationError("the format of \(file) is not known: give --format ndjson, json, csv or xml")
      }
      return format
    }
  }

  struct Check: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "check", abstract: "Check a file's records against a schema. Exit code 65 when some do not fit.",
      discussion:
        "Findings tell where and which rule, never a value. JSON Schema for ndjson and json, Table Schema for csv, XSD for xml. With an agreement the file is filtered too, as its gateway would but for consent; pseudonyms are then made with a key that means nothing."
    )
    @Argument(help: "The file; - for standard input.", completion: .file()) var file: String
    @Option(help: "The schema's file; what it refers to stands in the same folder.", completion: .file()) var schema:
      String?
    @Option(
      help: "An agreement's file: its schema, beside it in schemas/, and what would be left of the records.",
      completion: .file())
    var agreement: String?
    @Option(
      help: "With an agreement: where to write what is left of the records; - for standard output.", completion: .file()
    )
    var output: String?
    @OptionGroup var reading: Reading
    @Option(help: "How many findings are shown in full.") var limit = RecordLimits.findingsMax
    @Option(help: "Threads; all cores otherwise.") var workers: Int?
    @Flag(help: "Print JSON Lines: the findings, then the summary.") var json = false
    @Flag(help: "No progress bar.") var quiet = false

    func run() async throws {
      guard (schema == nil) != (agreement == nil), agreement != nil || output == nil else {
        throw ValidationError("give --schema, or --agreement with or without --output")
      }
      let preview = try agreement.map { try FilterPreview($0) }
      let format =
        try preview?.format ?? SchemaFolder(schema ?? "").compile(try reading.format(of: file), try reading.options())
      let descriptor = file == "-" ? dup(STDIN_FILENO) : Glibc.open(file, O_RDONLY | O_CLOEXEC)
      guard descriptor >= 0 else { throw DiskError("open", file) }
      let input = File(owning: descriptor, path: file)
      let info = try input.status()
      guard info.st_mode & S_IFMT != S_IFDIR else { throw DiskError("read", file, errno: EISDIR) }
      let progress = Progress(total: info.st_mode & S_IFMT == S_IFREG ? Int64(info.st_size) : nil, quiet: quiet)
      var check = RecordCheck(format, workers: min(64, max(1, workers ?? ProcessInfo.processInfo.activeProcessorCount)))
      check.findingsMax = max(0, limit)
      let name = file
      let bytes: RecordInput = { buffer in
        while true {
          let got = read(descriptor, buffer.baseAddress!, buffer.count)
          if got < 0, errno == EINTR { continue }
          guard got >= 0 else { throw DiskError("read", name) }
          return got
        }
      }
      let report =
        try preview.map { try $0.run(check, bytes, to: output) { progress.update($0) } }
        ?? check.run(bytes) { progress.update($0) }
      progress.finish()
      withExtendedLifetime(input) {}
      show(report)
      guard report.isValid else { throw ExitCode(.badData) }
    }

    private func show(_ report: RecordReport) {
      // Records go to standard output, the report beside them.
      let output = Output(asJSON: json, to: self.output == "-" ? STDERR_FILENO : STDOUT_FILENO)
      output.rows(report.findings.map(\.document)) { "\(file): \($0.text("error"))" }
      let more = report.findingCount - Int64(report.findings.count)
      output.row(report.summary, human: "\(file): \(report.sentence)\(more > 0 ? ", \(more) not shown" : "")")
      guard let filtered = report.filtered, report.isValid, !output.asJSON else { return }
      output.line("\(file): \(filtered.kept) would go, but for consent")
      for (code, count) in filtered.withheld.sorted(by: { $0.key < $1.key }) { output.line("  \(count) stay: \(code)") }
      if let rule = filtered.forbidden {
        output.line("  the file stays: forbidden by \(rule.isEmpty ? "a rule that cannot be decided" : rule)")
      }
    }
  }

  struct Lint: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "lint", abstract: "Say whether a schema can be enforced, and why not.")
    @Argument(help: "The schema's file.", completion: .file()) var schema: String
    @OptionGroup var reading: Reading
    @Flag(help: "Print JSON Lines.") var json = false

    func run() async throws {
      let format = try reading.format ?? guess()
      _ = try SchemaFolder(schema).compile(format, try reading.options())
      Output(asJSON: json).row(
        ["schema": .string(schema), "format": .string(format.rawValue), "valid": true],
        human: "\(schema): can be enforced on \(format.rawValue)")
    }

    /// An XSD by its extension; a Table Schema has fields.
    private func guess() throws -> PayloadFormat {
      if schema.lowercased().hasSuffix(".xsd") { return .xml }
      let bytes = try File.contents(schema, bytesMax: XMLSchema.schemaBytesMax)
      return TableSchema.isOne(bytes) ? .csv : .ndjson
    }
  }
}

extension PayloadFormat: ExpressibleByArgument {}
extension CSVDialect.Encoding: ExpressibleByArgument {}
