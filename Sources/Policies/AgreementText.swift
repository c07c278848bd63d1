// An agreement on one page, from the canonical form: what a data officer reads before signing. Never the YAML.

import Foundation
import Sealing

package enum AgreementText {
  package static func page(_ a: Agreement) -> String {
    var lines = [
      a.title, "", "  \(a.id), version \(a.version)", "  sha256 \(a.digest)", "", "Who",
    ]
    lines += a.parties.map {
      "  \($0.role.rawValue): \($0.name) (\($0.id)); \($0.acceptancesRequired) of \($0.roles.joined(separator: ", ")) must sign"
    }
    lines += ["", "Why", "  \(a.purpose.text)"]
    if let function = a.purpose.publicFunction { lines.append("  function: \(function)") }
    if !a.purpose.notFor.isEmpty { lines.append("  never for: \(a.purpose.notFor.joined(separator: "; "))") }
    lines += ["  legal basis: \(a.legalBasis.kind.rawValue)"] + a.legalBasis.citations.map { "    \($0)" }
    lines += ["", "About whom", "  \(a.subjects.classes.joined(separator: "; "))"]
    switch a.consent.model {
    case .none: lines.append("  nobody is asked")
    case .optIn: lines.append("  only people who agreed; silence is no")
    case .optOut: lines.append("  everybody who did not object; silence is yes")
    }
    if let notice = a.consent.noticeID { lines.append("  they were told by the notice \(notice)") }
    if let span = a.consent.validityMax { lines.append("  a consent holds for \(span) at most") }
    if let span = a.consent.stalenessMax {
      lines.append(
        "  without word from the consent registry for \(span) \(a.consent.onStale == .hold ? "everything waits" : "nothing goes")"
      )
    }
    if a.consent.model == .optIn {
      lines.append(
        "  \(a.consent.onMissing == .withhold ? "a record without consent stays" : "one record without consent keeps the whole file back")"
      )
    }
    if !a.consent.representatives.isEmpty {
      lines.append("  a \(a.consent.representatives.joined(separator: ", ")) may consent for a person")
    }
    if let method = a.consent.withdrawalMethod { lines.append("  to withdraw: \(method)") }
    if a.consent.model != .none {
      lines.append(
        "  after a withdrawal: packages not handed over are \(a.consent.onWithdrawal == .reseal && a.aggregate == nil ? "sealed again without the person" : "cancelled"); the recipient is asked to \(a.consent.asked.rawValue)\(a.consent.actWithin.map { " within \($0)" } ?? "")"
      )
    }
    lines += ["", "What"]
    if let records = a.records {
      lines.append(
        "  \(a.namePattern), \(records.format.rawValue) by \(records.schema)\(records.unit.map { "; one record is \($0)" } ?? "")"
      )
      lines += a.include.map { "  only records where \($0.text)" } + a.exclude.map { "  no records where \($0.text)" }
      lines += a.forbid.map { "  no file at all with a record where \($0.predicate.text): \($0.because)" }
      if let aggregate = a.aggregate {
        lines.append(
          "  only added up: \(aggregate.function.rawValue) of \(aggregate.measure) by \(aggregate.by.joined(separator: ", ")), never of fewer than \(aggregate.groupSizeMin) \(aggregate.distinct)"
        )
      }
      lines += a.fields.map { field in
        "  \(field.title.map { "\($0) (\(field.name))" } ?? field.name): \(field.treatment)\(field.isSpecial ? "  [special category]" : "")"
      }
      lines.append("  everything else: not at all")
    } else {
      lines.append("  \(a.namePattern), as it is (\(a.mediaType)): nobody looks inside")
    }
    lines += [
      "", "How",
      "  \(a.delivery.rawValue)\(a.via.map { " through the hub \($0), which can open nothing" } ?? ""), at most \(a.bytesMax) bytes\(a.recordsMax == JSON.integerMax ? "" : " and \(a.recordsMax) records") a file, \(a.packagesPerDayMax) files a day, within \(a.timeToLive.components.seconds / 3600) hours",
      "  sealed to \(a.recipientKinds.map(\.rawValue).joined(separator: " or "))",
    ]
    switch a.approval.mode {
    case .automatic: lines.append("  nobody approves a single file")
    case .first: lines.append("  the first file waits for \(approvers(a))")
    case .every: lines.append("  each file waits for \(approvers(a))")
    case .overThreshold: lines.append("  a file of over \(a.approval.threshold) records waits for \(approvers(a))")
    }
    if let labels = a.labels {
      lines.append(
        "  labelled \(labels.scheme) \(labels.package), at most \(labels.ceiling)\(labels.caveats.map { ", \($0)" }.joined())"
      )
    }
    if !a.windows.isEmpty {
      lines.append("  only \(a.windows.map(\.description).joined(separator: ", ")) \(a.timeZone)")
    }
    lines += [
      "", "Afterwards",
      "  the recipient deletes it after \(a.retention.recipientDeleteAfter)\(a.retention.confirmsDeletion ? ", and confirms that" : "")",
      a.onward.isAllowed
        ? "  it may pass it on to \(a.onward.to.joined(separator: ", ")) under \(a.onward.underAgreements.joined(separator: ", "))"
        : "  it passes nothing on",
      "  people read: \"\(a.transparency.action)\"; they complain to \(a.transparency.complaintTo)",
      "", "In force",
      "  \(Timestamp.format(a.notBefore)) until \(Timestamp.format(a.notAfter)); to be reviewed by \(Timestamp.format(a.reviewBy).prefix(10))",
    ]
    // The words above are a reading; this is what is signed.
    lines += ["", "Every key, as it is signed"]
    lines += AgreementDiff.members(a.document).map { "  \($0.joined(separator: ".")): \($1)" }.sorted()
    return lines.joined(separator: "\n")
  }

  private static func approvers(_ a: Agreement) -> String {
    "\(a.approval.approvers == 1 ? "one person" : "\(a.approval.approvers) people") to approve it\(a.approval.expiresAfter.map { ", for \($0) at most" } ?? "")"
  }

  /// A decision's document in words.
  package static func decision(_ document: JSON) -> String {
    guard case .object(let members) = document else { return "" }
    func text(_ value: JSON?) -> String {
      switch value {
      case .string(let text)?: text
      case .integer(let number)?: "\(number)"
      case .bool(let flag)?: flag ? "yes" : "no"
      case let value?: String(decoding: value.canonical, as: UTF8.self)
      case nil: ""
      }
    }
    var lines = [text(members["sentence"])]
    if case .array(let trace)? = members["trace"] {
      for case .object(let step) in trace {
        lines.append(
          "  \(step["passed"] == .bool(true) ? "ok  " : "NO  ") \(text(step["rule"]))  \(text(step["detail"]))")
      }
    }
    if case .object(let records)? = members["records"] {
      lines.append("  records: \(text(records["read"])) read, \(text(records["kept"])) go")
      if case .object(let withheld)? = records["withheld"] {
        lines += withheld.sorted { $0.key < $1.key }.map { "    \(text($0.value)) stay: \($0.key)" }
      }
    }
    if case .array(let codes)? = members["codes"] {
      for case .string(let code) in codes {
        if let reason = ReasonCode(rawValue: code) { lines.append("  next: \(reason.nextStep)") }
      }
    }
    if let near = members["nearest"] { lines.append("  nearest: \(text(near))") }
    return lines.joined(separator: "\n")
  }
}
