// Names of people who sign, approve and confirm, as they type them.

import Foundation

package enum PersonName {
  /// What two spellings of one name have in common: letters' case, accents' composition and blanks do not make another person.
  package static func key(_ name: String) -> String {
    name.precomposedStringWithCompatibilityMapping.lowercased()
      .split {
        $0.isWhitespace
          || $0.unicodeScalars.allSatisfy { !$0.properties.isAlphabetic && $0.properties.numericType == nil }
      }
      .joined(separator: " ")
  }
}
