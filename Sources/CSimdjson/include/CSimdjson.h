// simdjson's first stage behind four C functions: where the structure of a JSON text is, and that it is UTF-8.
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sp_json_scanner sp_json_scanner;

/// A scanner, not to be shared between threads; NULL when memory is short.
sp_json_scanner *sp_json_scanner_new(void);
void sp_json_scanner_free(sp_json_scanner *scanner);

/// Offsets of { } [ ] : , and of the first byte of every string and scalar in `bytes`, ascending. They live until the next scan.
/// 0; or 1: not UTF-8, 2: an unclosed string, 3: a control character in a string, 4: nothing but blanks, 5: anything else.
int sp_json_scan(sp_json_scanner *scanner, const uint8_t *bytes, size_t length, const uint32_t **offsets, size_t *count);

/// 1 when the bytes are UTF-8 (RFC 3629), else 0.
int sp_is_utf8(const uint8_t *bytes, size_t length);

#ifdef __cplusplus
}
#endif
