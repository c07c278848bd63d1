// The page at `/` of the partner port: for people at a partner without a gateway. Behind the same mutual TLS as everything else;
// no script, nothing from elsewhere, and nothing on it that the list does not say too.

import Foundation
import Policies
import Sealing
import Store
import Transport

struct PartnerPage: Sendable {
  static let rowsMax = 500
  /// Of each notice; `GET /v1/notices/ID` has all of it.
  static let ordinalsMax = 100

  let context: GatewayContext

  func answer(_ partner: AgencyID) async throws -> HTTPReply {
    let waiting = try await context.ledger.read {
      try $0.offers(to: partner, after: 0, waitingOnly: true, limit: Self.rowsMax)
    }.map(\.transfer)
    let notices = try await context.ledger.read { try $0.openNotices(to: partner, limit: Self.rowsMax) }
    let html = page(partner, waiting, try notices.map(notice).joined(separator: "\n"))
    return HTTPReply(
      200,
      headers: [
        "content-type": "text/html; charset=utf-8", "x-content-type-options": "nosniff",
        "content-security-policy":
          "default-src 'none'; style-src 'sha256-\(Base64.encode(Digest(of: Array(Self.style.utf8)).bytes))'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "referrer-policy": "no-referrer",
      ], body: Array(html.utf8))
  }

  private static let style = """
    body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}
    table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.4rem .6rem;border-bottom:1px solid #ccc;vertical-align:top}
    code,pre{font:14px/1.5 ui-monospace,monospace}pre{background:#f4f4f4;padding:1rem;overflow-x:auto}
    """

  private func notice(_ row: NoticeRow) throws -> String {
    let notice = try WithdrawalNotice(Envelope(parsing: row.envelope, as: .notice).unverified())
    var left = Self.ordinalsMax
    var items: [String] = []
    for item in notice.items where left > 0 {
      let shown = item.ordinals.prefix(left)
      left -= shown.count
      items.append("<code>\(item.package)</code>: \(shown.map { "\($0)" }.joined(separator: ", "))")
    }
    let total = notice.items.reduce(0) { $0 + $1.ordinals.count }
    if total > Self.ordinalsMax {
      items.append("… \(total) in all: <a href=\"/v1/notices/\(row.id)\">the notice</a> has them")
    }
    return """
      <tr><td><code>\(row.id)</code></td><td>\(Self.escape(row.agreement))</td><td>\(notice.asked.rawValue)</td>\
      <td>\(items.joined(separator: "<br>"))</td>\
      <td><time datetime="\(Self.time(row.actBy))">\(Self.time(row.actBy))</time></td></tr>
      """
  }

  private func page(_ partner: AgencyID, _ waiting: [Transfer], _ notices: String) -> String {
    let own = Fingerprint(context.keys.card.card).description
    let theirs = context.partners[partner]?.card.map { Fingerprint($0.card).description } ?? ""
    let rows = waiting.map { transfer in
      let path = Mailbox.path(transfer.id)
      return """
        <tr><td>\(Self.escape(transfer.name))<br><code>\(transfer.id)</code></td><td>\(Self.escape(transfer.agreement))</td>\
        <td>\(transfer.bodyBytes)</td><td><time datetime="\(Self.time(transfer.expiresAt))">\(Self.time(transfer.expiresAt))</time></td>\
        <td><a href="\(path)/manifest">manifest</a> <a href="\(path)/body">body</a></td></tr>
        """
    }
    let table =
      rows.isEmpty
      ? "<p>Nothing waits for you.</p>"
      : """
      <table><thead><tr><th scope="col">Package</th><th scope="col">Agreement</th><th scope="col">Bytes</th>\
      <th scope="col">Until (UTC)</th><th scope="col">Get</th></tr></thead><tbody>
      \(rows.joined(separator: "\n"))
      </tbody></table>
      """
    let withdrawals =
      notices.isEmpty
      ? ""
      : """
      <h2>People who have withdrawn</h2>
      <p>Records that you have and are asked about: in each package by their places, from 0.</p>
      <table><thead><tr><th scope="col">Notice</th><th scope="col">Agreement</th><th scope="col">Asked to</th>\
      <th scope="col">Records</th><th scope="col">By (UTC)</th></tr></thead><tbody>
      \(notices)
      </tbody></table>
      <p>When it is done (<code>actioned</code>; or <code>partly</code>, <code>refused</code>), with <code>$GET</code> of below:</p>
      <pre>$GET/v1/notices/$NOTICE/receipt -X PUT -d '{"state":"actioned"}'</pre>
      """
    return """
      <!doctype html>
      <html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
      <title>Packages for \(Self.escape(partner.text))</title><style>\(Self.style)</style></head><body>
      <main><h1>Packages for \(Self.escape(partner.text))</h1>
      <p>From \(Self.escape(context.agency.text)), at \(Self.time(context.now())).</p>
      \(table)
      \(withdrawals)
      <h2>How to open one</h2>
      <p>With the key and certificate by which you are known here, and your age identity. The key is given once you have said that
      you hold the body.</p>
      <pre>GET="curl --fail --cert partner.pem --key partner.key --pinnedpubkey sha256//… -k \(Self.escape(endpoint))"
      ID=the package's id
      $GET/v1/transfers/$ID/body -o body
      $GET/v1/transfers/$ID/receipts -X PUT -d '{"statement":"received"}'
      $GET/v1/transfers/$ID/key -X POST -o key
      cat key body | age -d -i identity.txt -o payload
      $GET/v1/transfers/$ID/receipts -X PUT -d '{"statement":"delivered"}'</pre>
      <h2>Fingerprints</h2>
      <p>Compare them by telephone. Ours: <code>\(own)</code><br>Yours, as we know you: <code>\(theirs)</code></p>
      </main></body></html>

      """
  }

  private var endpoint: String { context.keys.card.card.endpoint ?? "https://…" }

  private static func time(_ date: Date?) -> String { date.map(Timestamp.format) ?? "" }

  private static func escape(_ text: String) -> String {
    var escaped = ""
    // Scalar by scalar: a character may hide a letter of HTML behind one that joins it.
    for scalar in text.unicodeScalars {
      switch scalar {
      case "&": escaped += "&amp;"
      case "<": escaped += "&lt;"
      case ">": escaped += "&gt;"
      case "\"": escaped += "&quot;"
      case "'": escaped += "&#39;"
      default: escaped.unicodeScalars.append(scalar)
      }
    }
    return escaped
  }
}
