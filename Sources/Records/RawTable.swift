/// Plain data in a table of its own, for hot loops: no counting and no exclusivity checks on the way. Never written again; whoever
/// asked for it deallocates it.
func rawTable<Item: BitwiseCopyable>(_ items: [Item]) -> UnsafePointer<Item> {
  let room = UnsafeMutablePointer<Item>.allocate(capacity: items.count + 1)
  room.initialize(from: items, count: items.count)
  return UnsafePointer(room)
}
