// swift-tools-version: 6.2
import PackageDescription

let strict: [SwiftSetting] = [
  .treatAllWarnings(as: .error),
  .enableUpcomingFeature("ExistentialAny"),
]

let package = Package(
  name: "sallyport",
  products: [
    .library(name: "Sealing", targets: ["Sealing"]),
    .executable(name: "sallyport", targets: ["sallyport"]),
  ],
  dependencies: [
    // The command line: parsing, help, completions.
    .package(url: "https://github.com/apple/swift-argument-parser", exact: "1.8.2"),
    // X-Wing, ML-DSA-65, P-256: what libsodium 1.0.18 lacks.
    .package(url: "https://github.com/apple/swift-crypto", exact: "4.5.2"),
    // Self-signed TLS certificates around our pinned keys.
    .package(url: "https://github.com/apple/swift-certificates", exact: "1.21.1"),
    .package(url: "https://github.com/apple/swift-asn1", exact: "1.7.4"),
    // The heap of the alarm clock; the packages below bring it anyway.
    .package(url: "https://github.com/apple/swift-collections", exact: "1.6.0"),
    .package(url: "https://github.com/apple/swift-log", exact: "1.16.2"),
    .package(url: "https://github.com/apple/swift-http-types", exact: "1.8.0"),
    // The HTTPS server. swift-nio has a floor of 2.100.0: CVE-2026-28980 and CVE-2026-28970.
    .package(url: "https://github.com/apple/swift-nio", exact: "2.101.2"),
    .package(url: "https://github.com/apple/swift-nio-extras", exact: "1.35.2"),
    .package(url: "https://github.com/apple/swift-nio-ssl", exact: "2.37.6"),
    .package(url: "https://github.com/hummingbird-project/hummingbird", exact: "2.28.1"),
    // Signals and the order of starting and stopping services.
    .package(url: "https://github.com/swift-server/swift-service-lifecycle", exact: "2.13.0"),
    // SQLite.
    .package(url: "https://github.com/groue/GRDB.swift", exact: "7.10.0"),
    // YAML, read as a node tree so that we can refuse what the strict subset leaves out.
    .package(url: "https://github.com/jpsim/Yams", exact: "6.2.2"),
  ],
  targets: [
    // Doors to C libraries: a module map and a header each.
    .systemLibrary(name: "CSodium", pkgConfig: "libsodium", providers: [.apt(["libsodium-dev"])]),
    .systemLibrary(name: "COpenSSL", pkgConfig: "libcrypto", providers: [.apt(["libssl-dev"])]),
    .systemLibrary(
      name: "CCurl", pkgConfig: "libcurl", providers: [.apt(["libcurl4-openssl-dev"])]),
    .systemLibrary(name: "CXML2", pkgConfig: "libxml-2.0", providers: [.apt(["libxml2-dev"])]),
    // Small C of our own.
    .target(name: "CLinux"),
    .target(name: "CKernels"),

    .target(
      name: "Sealing",
      dependencies: [
        "CSodium", "COpenSSL", "CKernels", .product(name: "Crypto", package: "swift-crypto"),
      ],
      swiftSettings: strict),
    // JSON's structure at memory speed, from Debian's libsimdjson: a C door, for its C++ interface does not import.
    .target(name: "CSimdjson", linkerSettings: [.linkedLibrary("simdjson")]),
    .target(
      name: "Records",
      dependencies: ["CKernels", "CSimdjson", "CXML2"],
      swiftSettings: strict),
    .target(
      name: "Policies",
      dependencies: ["CKernels", "Sealing", .product(name: "Yams", package: "Yams")],
      swiftSettings: strict),
    .target(
      name: "Store",
      dependencies: ["Sealing", "CLinux", .product(name: "GRDB", package: "GRDB.swift")],
      swiftSettings: strict),
    .target(
      name: "Transport",
      dependencies: [
        "CCurl", "Sealing",
        .product(name: "HummingbirdCore", package: "hummingbird"),
        .product(name: "HTTPTypes", package: "swift-http-types"),
        .product(name: "Logging", package: "swift-log"),
        .product(name: "NIOCore", package: "swift-nio"),
        .product(name: "NIOPosix", package: "swift-nio"),
        .product(name: "NIOConcurrencyHelpers", package: "swift-nio"),
        .product(name: "NIOTLS", package: "swift-nio"),
        .product(name: "NIOHTTPTypes", package: "swift-nio-extras"),
        .product(name: "ServiceLifecycle", package: "swift-service-lifecycle"),
        .product(name: "NIOSSL", package: "swift-nio-ssl"),
        .product(name: "X509", package: "swift-certificates"),
        .product(name: "SwiftASN1", package: "swift-asn1"),
        .product(name: "Crypto", package: "swift-crypto"),
      ],
      swiftSettings: strict),
    .target(
      name: "Gateway",
      dependencies: [
        "CLinux", "Policies", "Records", "Sealing", "Store", "Transport",
        .product(name: "HeapModule", package: "swift-collections"),
        .product(name: "NIOConcurrencyHelpers", package: "swift-nio"),
        .product(name: "NIOCore", package: "swift-nio"),
        .product(name: "NIOPosix", package: "swift-nio"),
        .product(name: "Logging", package: "swift-log"),
        .product(name: "ServiceLifecycle", package: "swift-service-lifecycle"),
      ],
      // The description of the partner API, served as it stands.
      resources: [.embedInCode("Inbound/openapi.json")],
      swiftSettings: strict),
    .executableTarget(
      name: "sallyport",
      dependencies: [
        "CLinux", "Gateway", "Policies", "Records", "Sealing", "Store", "Transport",
        .product(name: "ServiceLifecycle", package: "swift-service-lifecycle"),
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
        .product(name: "Logging", package: "swift-log"),
      ],
      swiftSettings: strict),

    .executableTarget(
      name: "ConsentBench", dependencies: ["Policies", "Sealing"], path: "Benchmarks/ConsentBench",
      swiftSettings: strict),

    .testTarget(
      name: "SealingTests",
      dependencies: ["Sealing", "CKernels", "TestSupport", .product(name: "Crypto", package: "swift-crypto")],
      exclude: ["Vectors"],
      swiftSettings: strict),
    .testTarget(
      name: "RecordsTests",
      dependencies: [
        "Records", "TestSupport", .product(name: "NIOConcurrencyHelpers", package: "swift-nio"),
      ],
      exclude: ["Cases"], swiftSettings: strict),
    .testTarget(name: "PoliciesTests", dependencies: ["Policies", "TestSupport"], swiftSettings: strict),
    .testTarget(
      name: "StoreTests",
      dependencies: ["Store", "TestSupport", .product(name: "NIOConcurrencyHelpers", package: "swift-nio")],
      swiftSettings: strict),
    .testTarget(
      name: "TransportTests",
      dependencies: [
        "Transport", "TestSupport", .product(name: "NIOPosix", package: "swift-nio"),
        .product(name: "NIOConcurrencyHelpers", package: "swift-nio"),
        .product(name: "ServiceLifecycle", package: "swift-service-lifecycle"),
      ],
      swiftSettings: strict),
    .testTarget(
      name: "GatewayTests",
      dependencies: [
        "Gateway", "Policies", "Records", "Sealing", "TestSupport",
        .product(name: "NIOConcurrencyHelpers", package: "swift-nio"),
      ],
      swiftSettings: strict),
    .testTarget(
      name: "ScriptTests", dependencies: ["sallyport", "TestSupport"], exclude: ["Hostile"], swiftSettings: strict),
    .testTarget(
      name: "FaultTests",
      dependencies: [
        "sallyport", "TestSupport", "Gateway", "Policies", "Sealing", "Transport", "Store",
        .product(name: "Logging", package: "swift-log"),
        .product(name: "NIOConcurrencyHelpers", package: "swift-nio"), .product(name: "NIOCore", package: "swift-nio"),
        .product(name: "NIOPosix", package: "swift-nio"),
        .product(name: "ServiceLifecycle", package: "swift-service-lifecycle"),
      ],
      exclude: ["Network", "Shim"], swiftSettings: strict),
    .target(
      name: "TestSupport", dependencies: ["Gateway", "Policies", "Sealing", "Store", "Transport"],
      path: "Tests/TestSupport",
      swiftSettings: strict),
  ],
  swiftLanguageModes: [.v6],
  cxxLanguageStandard: .cxx17
)

// The fuzzer has libFuzzer's main, so it is a part of the package only for scripts/fuzz.
if Context.environment["SALLYPORT_FUZZ"] != nil {
  package.targets.append(
    .executableTarget(
      name: "Fuzz", dependencies: ["Policies", "Sealing"], path: "Tests/Fuzz", exclude: ["Corpus"],
      swiftSettings: strict + [.unsafeFlags(["-parse-as-library"])]))
}

// Swift 6.3.1 crashes on SealingTests under the thread sanitizer ("Invalid bitcast"). Sealing has no threads of its own; those who
// drive it with several are tested.
if Context.environment["SALLYPORT_THREAD_SANITIZER"] != nil {
  package.targets.removeAll { $0.name == "SealingTests" }
}
