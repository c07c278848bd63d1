// The one pass: every worker claims a segment, reads it, seals or opens it in place, digests it and writes it.
//
// No queues and no hand-off between threads; a worker owns one buffer of 1 MiB. Memory is workers × 1 MiB, and 32 bytes
// a MiB for the segments' roots, whatever the size.

import Dispatch
import Foundation
import NIOConcurrencyHelpers
import Sealing

/// What a pass found out.
package struct PassResult: Sendable {
  package let plainBytes: Int64
  package let sealedBytes: Int64
  /// RFC 6962 roots over the sealed chunks of each segment.
  package let segmentRoots: [Digest]
  /// RFC 6962 root over the sealed chunks.
  package let treeRoot: Digest
  /// SHA-256 of each prefix that was asked for and the body after it.
  package let wholeSHA256: [Digest]
}

/// Seals or opens a body with several threads. Blocks the caller until it is over; nothing of it outlives the call.
package struct Pass: Sendable {
  package let engine: CipherEngine
  package let workers: Int
  /// Called with plain bytes done so far, from any worker.
  package let onProgress: (@Sendable (Int64) -> Void)?

  package init(engine: CipherEngine, workers: Int, onProgress: (@Sendable (Int64) -> Void)? = nil) {
    self.engine = engine
    self.workers = max(1, workers)
    self.onProgress = onProgress
  }

  /// Seals `source` (plain layout) into `sink`.
  ///
  /// - Parameter wholePrefixes: for each the result has the SHA-256 of these bytes and the body after them. It costs the
  ///   parallelism of hashing: one segment after the other.
  /// - Throws: DiskError of the source or the sink.
  package func seal(
    _ source: some SegmentSource, to sink: some SegmentSink, payloadKey: Secret, wholePrefixes: [[UInt8]] = []
  ) throws -> PassResult {
    let whole = wholePrefixes.isEmpty ? nil : WholeDigest(prefixes: wholePrefixes)
    return try run(source, sink, whole, payloadKey) { buffer, cipher in
      guard let segment = try source.next(into: buffer) else { return nil }
      let sealed = cipher.seal(buffer, segment: segment.index, plainBytes: segment.bytes, isLast: segment.isLast)
      let ranges = SegmentLayout.sealed.ranges(buffer, sealed.sealedBytes)
      try whole?.append(ranges, segment: segment.index)
      try sink.write(ranges, segment: segment.index, at: segment.index * Int64(BodyGeometry.sealedSegmentBytes))
      return Done(index: segment.index, plainBytes: segment.bytes, sealedBytes: sealed.sealedBytes, root: sealed.root)
    }
  }

  /// Opens `source` (sealed layout) into `sink`. Nothing of a chunk is written before it was authenticated; but earlier
  /// chunks are, so a failed pass leaves a partial output that the caller removes.
  ///
  /// - Throws: `body.chunk`; DiskError.
  package func open(
    _ source: some SegmentSource, to sink: some SegmentSink, payloadKey: Secret, wholePrefixes: [[UInt8]] = []
  ) throws -> PassResult {
    let whole = wholePrefixes.isEmpty ? nil : WholeDigest(prefixes: wholePrefixes)
    return try run(source, sink, whole, payloadKey) { buffer, cipher in
      guard let segment = try source.next(into: buffer) else { return nil }
      // An input that is cut to nothing still fails authentication: an empty body has one empty chunk.
      guard segment.bytes > 0 else { throw SealingError(.bodyLength, "the body is cut") }
      let root = SegmentDigest.root(buffer, sealedBytes: segment.bytes)
      try whole?.append(SegmentLayout.sealed.ranges(buffer, segment.bytes), segment: segment.index)
      let plainBytes = try cipher.open(
        buffer, segment: segment.index, sealedBytes: segment.bytes, isLast: segment.isLast)
      try sink.write(
        SegmentLayout.plain.ranges(buffer, plainBytes), segment: segment.index,
        at: segment.index * Int64(BodyGeometry.segmentBytes))
      return Done(index: segment.index, plainBytes: plainBytes, sealedBytes: segment.bytes, root: root)
    }
  }

  private struct Done {
    let index: Int64
    let plainBytes: Int
    let sealedBytes: Int
    let root: Digest
  }

  private func run(
    _ source: some SegmentSource, _ sink: some SegmentSink, _ whole: WholeDigest?, _ payloadKey: Secret,
    _ step: @escaping @Sendable (borrowing SegmentBuffer, borrowing SegmentCipher) throws -> Done?
  ) throws -> PassResult {
    let tally = NIOLockedValueBox(Tally())
    let work: @Sendable () -> Void = {
      let buffer = SegmentBuffer(sealedBytesMax: source.sealedSegmentBytesMax)
      let cipher = SegmentCipher(payloadKey: payloadKey, engine: engine)
      do {
        while !tally.withLockedValue({ $0.failure != nil }), let done = try step(buffer, cipher) {
          let plainBytes = tally.withLockedValue { $0.add(done.index, done.root, done.plainBytes, done.sealedBytes) }
          onProgress?(plainBytes)
        }
      } catch {
        tally.withLockedValue { $0.fail(error) }
        sink.abandon()
        whole?.abandon()
      }
    }
    // Threads of their own: those of the dispatch queues are what tasks run on, and a pass would keep them to its end.
    let others = DispatchGroup()
    for _ in 1..<workers {
      others.enter()
      Thread.detachNewThread {
        work()
        others.leave()
      }
    }
    work()
    others.wait()
    let end = tally.withLockedValue { $0 }
    if let failure = end.failure { throw failure }
    return PassResult(
      plainBytes: end.plainBytes, sealedBytes: end.sealedBytes, segmentRoots: end.roots,
      treeRoot: MerkleTree.root(end.roots), wholeSHA256: whole?.finish() ?? [])
  }

  private struct Tally {
    var roots: [Digest] = []
    var plainBytes: Int64 = 0
    var sealedBytes: Int64 = 0
    var failure: (any Error)?
    private static let unset = MerkleTree.emptyRoot

    mutating func add(_ index: Int64, _ root: Digest, _ plain: Int, _ sealed: Int) -> Int64 {
      while roots.count <= Int(index) { roots.append(Self.unset) }
      roots[Int(index)] = root
      plainBytes += Int64(plain)
      sealedBytes += Int64(sealed)
      return plainBytes
    }

    /// Keeps the first cause; workers that were only told to stop are not one.
    mutating func fail(_ error: any Error) {
      if failure == nil || failure is Turnstile.Abandoned { failure = error }
    }
  }
}

/// SHA-256 over each prefix and the segments in order.
private final class WholeDigest: @unchecked Sendable {
  // Proof for @unchecked: `hashes` is touched only inside the turnstile, and by init and finish when nobody else runs.
  private let order = Turnstile()
  private var hashes: [StreamingSHA256] = []

  init(prefixes: [[UInt8]]) {
    for prefix in prefixes {
      var hash = StreamingSHA256()
      prefix.withUnsafeBytes { hash.update($0) }
      hashes.append(hash)
    }
  }

  func append(_ ranges: [UnsafeMutableRawBufferPointer], segment index: Int64) throws {
    try order.pass(index) {
      for place in hashes.indices {
        for range in ranges { hashes[place].update(UnsafeRawBufferPointer(range)) }
      }
    }
  }

  func abandon() { order.abandon() }

  func finish() -> [Digest] { hashes.map { $0.finish() } }
}
