// The keys in keys-example/ are public: everybody has their secrets. They are known here and refused outside demo mode.

import Sealing

package enum DemoKeys {
  /// Ids of the demo agencies' signing keys.
  package static let ids: Set<String> = [
    "ed25519:127082857e4ea15dea93052c1e0245ea95b8d46111a533f66c4783f1ff416061",
    "ed25519:1d177a288a02ae78b35ed8a8c5fac61c919686038b82a82ef8e629547d96c8b3",
    "ed25519:a1d9bd3762097e698bd286cddf734e2a06a56d01920f3283879fcd26369e5b8f",
    "ed25519:e8ec908dc4e4e4194356b72b4c3b3369cc80a057194f47c71f5d8b32d28b4ba3",
  ]

  /// SHA-256 of their recipients' text.
  private static let recipients: Set<String> = [
    "da80e178877fec9c8826d4094ae37b8c92d2edf36e12bdb11f75ffdd59cb64e5",
    "c5bcfe9182bb3e61cc0b19bb818b72297c91067fa18a926888b7f4993248b80f",
    "7c8b1fadcd0fa57a35aa84ea8a90d1bac9c3b09412738ee928b53af7262ea56e",
    "2910801b6ab094821cc51a66c3f647a5c664e96ed5d851807ec6169bd6d28aef",
  ]

  package static func are(_ recipient: Recipient) -> Bool {
    recipients.contains(Digest(of: Array(recipient.description.utf8)).hex)
  }

  package static func areIn(_ card: Card) -> Bool {
    card.signingKeys.contains { ids.contains($0.key.id) } || card.recipients.contains { are($0.key) }
  }

  package static let refusal = AdminError(.refused, "these are the published demo keys; anybody has them")
}
