// The release rule as a model, through every interleaving: two people, one package, a crash and a retry at any place. No disclosure
// after an acknowledgement, and everything disclosed before is on its list. Acknowledging before the drain is found to break it.

import Testing

/// What the ledger and the recipient know at one moment. A value: the search copies it.
private struct World: Hashable {
  var withdrawn: Set<Int> = []
  /// Who was in the package as it was sealed; taken out by a re-seal.
  var inside: Set<Int> = [0, 1]
  /// Whose records the key opens that is being handed over.
  var handing: Set<Int> = []
  var isReleased = false
  var isLeaseOpen = false
  var isReadable = false
  var isStopped = false
  /// For each acknowledged withdrawal whether it lists the package as disclosed.
  var acknowledged: [Int: Bool] = [:]
  var crashes = 0
  var release = 0
  /// Of each withdrawal: 0 not begun, 1 recorded, 2 acknowledged.
  var withdrawal: [Int] = [0, 0]

  /// Broken: an acknowledgement that does not list the package, and the record became readable all the same.
  func violates(_ everReadable: Set<Int>) -> Bool {
    acknowledged.contains { !$0.value && everReadable.contains($0.key) }
  }
}

private enum Protocol { case drain, acknowledgeBeforeDrain, checkBeforeSend }

private struct Node: Hashable {
  var world: World
  /// People whose record the recipient can read.
  var readable: Set<Int> = []
}

private func steps(_ node: Node, _ rule: Protocol) -> [Node] {
  var next: [Node] = []
  func add(_ change: (inout Node) -> Void) {
    var copy = node
    change(&copy)
    next.append(copy)
  }
  let world = node.world
  // The sender: release, hand over, close; each is a step that others may come between.
  if !world.isStopped {
    switch world.release {
    case 0:
      // One transaction: everybody in it is looked up, the release is recorded, the lease opens.
      if world.inside.isDisjoint(with: world.withdrawn) {
        add {
          $0.world.release = 1
          $0.world.handing = $0.world.inside
          if rule != .checkBeforeSend {
            $0.world.isReleased = true
            $0.world.isLeaseOpen = true
          }
        }
      }
    case 1:
      add {
        $0.world.release = 2
        $0.world.isReleased = true
        $0.world.isReadable = true
        $0.readable.formUnion($0.world.handing)
      }
      // The key got lost on the way, and the lease ran out: it counts as disclosed.
      add {
        $0.world.release = 3
        $0.world.isLeaseOpen = false
      }
    case 2:
      add {
        $0.world.release = 3
        $0.world.isLeaseOpen = false
      }
    default:
      // A retry is a new release, with a new check.
      if !world.isReadable, world.crashes < 2, world.inside.isDisjoint(with: world.withdrawn) {
        add {
          $0.world.release = 1
          $0.world.handing = $0.world.inside
          $0.world.isLeaseOpen = rule != .checkBeforeSend
          $0.world.crashes += 1
        }
      }
    }
    // A crash closes the lease; the ledger keeps what was recorded.
    if world.crashes < 2, world.release == 1 || world.release == 2 {
      add {
        $0.world.crashes += 1
        $0.world.release = 3
        $0.world.isLeaseOpen = false
      }
    }
  }
  for person in 0..<2 {
    switch world.withdrawal[person] {
    case 0:
      add {
        $0.world.withdrawal[person] = 1
        $0.world.withdrawn.insert(person)
      }
    case 1:
      let mustWait = rule == .drain && world.isLeaseOpen && world.inside.contains(person)
      guard !mustWait else { continue }
      if !world.isReleased, world.inside.contains(person), !world.isStopped {
        // Stopped: sealed again without the person, or cancelled when nobody is left.
        add {
          $0.world.inside.remove(person)
          $0.world.isStopped = $0.world.inside.isEmpty
          $0.world.withdrawal[person] = 2
          $0.world.acknowledged[person] = false
        }
      } else {
        // What the acknowledgement lists is what the ledger says; an early one only lists what has arrived.
        add {
          $0.world.withdrawal[person] = 2
          $0.world.acknowledged[person] =
            world.inside.contains(person) && (rule == .drain ? world.isReleased : world.isReadable)
        }
      }
    default: break
    }
  }
  return next
}

/// Whether any interleaving breaks the promise; and how many worlds there are.
private func search(_ rule: Protocol) -> (isBroken: Bool, worlds: Int) {
  var seen: Set<Node> = []
  var waiting = [Node(world: World())]
  while let node = waiting.popLast() {
    guard seen.insert(node).inserted else { continue }
    if node.world.violates(node.readable) { return (true, seen.count) }
    waiting += steps(node, rule)
  }
  return (false, seen.count)
}

@Suite struct ReleaseModelTests {
  @Test func noInterleavingDisclosesAfterAnAcknowledgementThatDoesNotSaySo() {
    let (isBroken, worlds) = search(.drain)
    #expect(!isBroken && worlds > 100, "\(worlds) worlds")
  }

  @Test func acknowledgingBeforeTheDrainIsFound() {
    #expect(search(.acknowledgeBeforeDrain).isBroken)
  }

  @Test func aCheckJustBeforeSendingIsFound() {
    #expect(search(.checkBeforeSend).isBroken)
  }
}
