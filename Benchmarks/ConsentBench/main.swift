// Consent look-ups per second on one core, the digest of the subject included, in a table of N people. Used by bench.py.

import Policies
import Sealing

let people = CommandLine.arguments.dropFirst().first.flatMap { Int($0) } ?? 10_000_000
let key = SubjectKey(master: Secret(count: 32) { _ in }, .ledger, context: "bench")
let batch = 1024
let table = ConsentTable(expecting: people)

/// Ids as they stand in records, a batch of them from `first` on.
func ids(_ first: Int) -> (bytes: [UInt8], ends: [Int]) {
  var (bytes, ends): ([UInt8], [Int]) = ([], [])
  for number in first..<(first + batch) {
    bytes += Array("P\(1_000_000_000 + number)".utf8)
    ends.append(bytes.count)
  }
  return (bytes, ends)
}

for first in stride(from: 0, to: people, by: batch) {
  let (bytes, ends) = ids(first)
  for (place, subject) in key.references(bytes, ends: ends).enumerated() where first + place < people {
    table.set(subject, UInt64(first + place) << 3 | 1)
  }
}

// The same ids in a random order of batches, made before the clock runs.
let rounds = 2000
let asked = (0..<rounds).map { ids($0 * 7_368_787 % max(1, people - batch)) }
let clock = ContinuousClock()
var found = 0
let all = clock.measure {
  for (bytes, ends) in asked {
    found += table.words(key.references(bytes, ends: ends)).reduce(0) { $0 + ($1 == 0 ? 0 : 1) }
  }
}
precondition(found == rounds * batch)
let digests = clock.measure { for (bytes, ends) in asked { found += key.references(bytes, ends: ends).count } }
let seconds = { (duration: Duration) in duration / .seconds(1) }
print(
  "\(Int(Double(rounds * batch) / seconds(all))) look-ups a second with their digests, \(Int(Double(rounds * batch) / seconds(digests))) digests alone, \(table.bytes / people) bytes a person"
)
