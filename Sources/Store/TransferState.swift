// The durable states of a transfer, and every arrow between them. An arrow that is not here is refused.
//
// Sender      claimed → sealed → queued → sending → custody → releasing → released → confirmed → purged
//             sending → queued (a cut, to be tried again)          releasing → releasing (a new check, a new lease)
//             a receipt moves releasing, released and unconfirmed to confirmed or refused, whatever came between
//             released → unconfirmed → confirmed, or purged long after its time      held ⇄ claimed … custody
//             collected: queued → custody (its `received`); released, unconfirmed → releasing (it asks for the key again)
//             ends: refused, expired, cancelled, corrupt; expired and cancelled never after releasing
// Recipient   receiving → received → opened → delivering → delivered → acknowledged → purged
//             delivering → delivering (the name was taken)
//             aside: held, quarantined, corrupt; cancelled (taken back before the key came)
// Hub         receiving → queued (the whole body) → (sending →) custody (`received`) → released (the sender put the key) → confirmed
//             queued → receiving (its disk lost the body: the sender sends it again)
//             ends: refused, cancelled, expired, the last after released too: the recipient may never come; never corrupt

/// Which side of a transfer this gateway is.
package enum Direction: String, Sendable, CaseIterable {
  case out, `in`
  /// Between the two: it holds the body for its peer, the recipient, and can open none of it.
  case hub
}

package enum TransferState: String, Sendable, CaseIterable {
  // Sender.
  /// The file is ours: renamed into the claim directory.
  case claimed
  /// The body is durable in the spool, the manifest signed.
  case sealed
  case queued
  case sending
  /// The recipient signed `received`: it holds the whole body and cannot read it.
  case custody
  /// The release was recorded; the key may be on its way. Counts as disclosed.
  case releasing
  case released
  /// The recipient signed `delivered`.
  case confirmed
  /// Released, and no receipt in time.
  case unconfirmed
  // Recipient.
  case receiving
  case received
  /// The payload is in the gateway's own staging directory.
  case opened
  /// The rename into the inbox is due, or done.
  case delivering
  case delivered
  /// The sender has the delivered receipt.
  case acknowledged
  // Both.
  case held
  case purged
  case refused
  case expired
  case cancelled
  case quarantined
  case corrupt

  private static let outArrows: [TransferState: Set<TransferState>] = [
    .claimed: [.sealed, .refused, .held, .cancelled, .corrupt],
    .sealed: [.queued, .refused, .held, .cancelled, .expired, .corrupt],
    .queued: [.sending, .custody, .held, .cancelled, .expired, .refused, .corrupt],
    .sending: [.queued, .custody, .held, .cancelled, .expired, .refused, .corrupt],
    .custody: [.releasing, .held, .cancelled, .expired, .refused, .corrupt],
    .releasing: [.releasing, .released, .confirmed, .refused, .unconfirmed],
    .released: [.releasing, .confirmed, .unconfirmed, .refused],
    .unconfirmed: [.releasing, .confirmed, .refused, .purged],
    .held: [.claimed, .sealed, .queued, .custody, .cancelled, .expired, .refused],
    .confirmed: [.purged], .refused: [.purged], .expired: [.purged], .cancelled: [.purged],
  ]

  private static let inArrows: [TransferState: Set<TransferState>] = [
    .receiving: [.received, .held, .refused, .quarantined, .cancelled, .expired, .corrupt],
    .received: [.opened, .held, .refused, .quarantined, .cancelled, .expired, .corrupt],
    .opened: [.delivering, .held, .quarantined, .corrupt],
    .delivering: [.delivered, .delivering],
    .delivered: [.acknowledged, .purged],
    .held: [.receiving, .received, .opened, .quarantined, .cancelled, .expired],
    .acknowledged: [.purged], .refused: [.purged], .quarantined: [.purged], .cancelled: [.purged],
    .expired: [.purged],
  ]

  private static let hubArrows: [TransferState: Set<TransferState>] = [
    .receiving: [.queued, .held, .refused, .cancelled, .expired],
    .queued: [.sending, .custody, .receiving, .held, .refused, .cancelled, .expired],
    .sending: [.queued, .custody, .receiving, .held, .refused, .cancelled, .expired],
    .custody: [.released, .held, .refused, .cancelled, .expired],
    .released: [.confirmed, .refused, .expired],
    .held: [.receiving, .queued, .custody, .refused, .cancelled, .expired],
    .confirmed: [.purged], .refused: [.purged], .expired: [.purged], .cancelled: [.purged],
  ]

  package func mayBecome(_ next: TransferState, _ direction: Direction) -> Bool {
    let arrows =
      switch direction {
      case .out: Self.outArrows
      case .in: Self.inArrows
      case .hub: Self.hubArrows
      }
    return arrows[self]?.contains(next) ?? false
  }

  /// The journey is over; only purging remains.
  package var isEnd: Bool {
    switch self {
    case .confirmed, .acknowledged, .refused, .expired, .cancelled, .quarantined, .corrupt, .purged: true
    default: false
    }
  }

  /// A body must be in the spool.
  package func needsBody(_ direction: Direction) -> Bool {
    switch direction {
    case .out: [.sealed, .queued, .sending, .custody, .releasing, .released, .unconfirmed].contains(self)
    case .in: [.received, .opened, .delivering].contains(self)
    // Once the recipient has it, the sender's body is there for the rest.
    case .hub: [.queued, .sending].contains(self)
    }
  }
}
