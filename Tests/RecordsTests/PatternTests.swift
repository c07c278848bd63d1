import Foundation
import Testing

@testable import Records

@Suite struct PatternTests {
  @Test(arguments: [
    ("^a+$", "aaa", true), ("^a+$", "aab", false), ("b", "abc", true), ("^(a|bc){2,3}$", "abca", true),
    ("^(a|bc){2,3}$", "a", false), ("a{0}b", "b", true), ("^.$", "é", true), ("^.$", "\u{2028}", false),
    ("^[^a]$", "😀", true),
    ("\\bword\\b", "a word.", true), ("\\bword\\b", "swords", false), ("\\Bx", "ax", true), ("\\Bx", "x", false),
    ("^\\w+\\s\\d$", "ab\u{A0}7", true), ("^\\w$", "é", false), ("^\\p{Lu}\\p{L}*$", "Émile", true),
    ("^\\p{Nd}$", "٣", true),
    ("^\\u{1F600}$", "😀", true), ("^\\ud83d\\ude00$", "😀", true), ("^[à-ü]+$", "éè", true), ("^[à-ü]+$", "a", false),
    ("(^a)|(b$)", "cb", true), ("(^a)|(b$)", "bc", false), ("", "x", true), ("^$", "", true), ("^$", "x", false),
    ("^(?:a?){30}a{30}$", String(repeating: "a", count: 30), true),
    ("^(a+)+$", String(repeating: "a", count: 60) + "b", false),
    ("^[\\s\\S]*$", "a\nb", true), ("^a*?$", "aa", true), ("^\\x41\\t\\cJ$", "A\t\n", true), ("[]", "a", false),
    ("[^]", "a", true),
  ])
  func aPatternMatchesAsECMAScriptDoes(pattern: String, text: String, expected: Bool) throws {
    #expect(try Pattern(pattern).matches(text) == expected, "/\(pattern)/ on \(text)")
  }

  @Test(arguments: [
    "(?=a)", "(?!a)", "(?<=a)b", "(a)\\1", "\\k<x>", "a{2,1}", "a{1001}", "(", ")", "[z-a]", "\\", "*", "a**", "\\q",
    "\\p{Script=Greek}",
    "a{", "\\u12", String(repeating: "(", count: 60) + String(repeating: ")", count: 60),
    "((a{1000}){1000})", "^(a|b)*a(a|b){14}$", "(?:(?:(?:(?:){1000}){1000}){1000}){1000}",
  ])
  func whatCannotBeEnforcedIsRefused(pattern: String) {
    #expect(throws: PatternError.self) { try Pattern(pattern) }
  }
}

@Suite struct ExactNumberTests {
  private func number(_ text: String) -> ExactNumber { Array(text.utf8).withUnsafeBufferPointer { ExactNumber($0) } }

  @Test(arguments: [
    ("1", "1.0", 0), ("10", "1e1", 0), ("0", "-0.0e5", 0), ("-1", "1", -1), ("0.1", "0.10000000000000000001", -1),
    ("123456789012345678901", "123456789012345678902", -1), ("1e400", "1e399", 1), ("-1e400", "-1e399", -1),
    ("1e-400", "0", 1),
    ("9007199254740993", "9007199254740992", 1), ("100000000000000000000", "1e20", 0), ("1.5e3", "1500", 0),
    ("0.000000000000000000001", "1e-21", 0), ("999999999999999999", "1000000000000000000", -1),
  ])
  func numbersAreComparedExactly(a: String, b: String, expected: Int) {
    #expect(ExactNumber.compare(number(a), number(b)) == expected)
    #expect(ExactNumber.compare(number(b), number(a)) == -expected)
  }

  @Test(arguments: [
    ("1", "0.1", true), ("0.3", "0.1", true), ("4.35", "0.01", true), ("0.0075", "0.0001", true),
    ("0.00751", "0.0001", false),
    ("1e308", "0.123456789", false), ("9007199254740993", "3", true), ("123456789012345678901234567890", "10", true),
    ("7", "2", false),
    ("0", "5", true), ("-6", "3", true), ("1e1000", "7", false),
  ])
  func multiplesAreTestedExactly(value: String, divisor: String, expected: Bool) {
    #expect(number(value).isMultiple(of: number(divisor)) == expected)
  }

  @Test(arguments: [
    ("1.0", true), ("2e0", true), ("1.50e1", true), ("1.5", false), ("1e-1", false), ("0.0", true), ("-3", true),
  ])
  func wholeNumbersAreKnownHoweverTheyAreSpelled(text: String, expected: Bool) {
    #expect(number(text).isInteger == expected)
  }
}
