// Records about people, and an agreement under which they are asked.

import Foundation

extension TestAgencies.Options {
  /// Two fields go, one as a pseudonym; a name stays.
  public static func optIn(approval: String = "{ mode: automatic }", spooled: String = "reseal")
    -> TestAgencies.Options
  {
    var options = TestAgencies.Options()
    options.dataset = #", format: ndjson, schema: "schemas/test.schema", schemaSha256: "sha256:SHA256""#
    options.schema =
      #"{"type":"object","required":["person","claim"],"additionalProperties":false,"properties":{"person":{"type":"string"},"claim":{"type":"string"},"name":{"type":"string"}}}"#
    options.terms =
      #"fields: [ { name: person, category: "pd:OfficialID", action: pseudonymise, necessity: required }, { name: claim, category: "pd:OfficialID", action: pass }, { name: name, category: "pd:Name", action: drop } ]"#
    options.subjects =
      "{ classes: [patients], impetus: data-subject, frequency: ongoing, identifier: { field: person, type: health-number } }"
    options.consent =
      "{ model: opt-in, purposeRef: claims, noticeId: n1, maxValidity: P365D, maxStaleness: PT24H, onStale: hold, onMissing: withhold-record, withdrawalMethod: \"by phone\", representatives: [parent], onWithdrawal: { spooled: \(spooled), delivered: restrict, actWithin: P10D } }"
    options.approval = approval
    return options
  }
}

public enum TestRecords {
  /// One record for each person, with a value that must never arrive.
  public static func of(_ people: [String]) -> Data {
    Data(people.map { #"{"person":"\#($0)","claim":"C-\#($0)","name":"SECRET"}"# + "\n" }.joined().utf8)
  }

  /// The people whose records arrived.
  public static func claims(_ data: Data?) -> [String] {
    String(decoding: data ?? Data(), as: UTF8.self).split(separator: "\n").compactMap {
      $0.firstMatch(of: /"claim":"C-([^"]+)"/).map { String($0.1) }
    }
  }
}
