// Bounds: blocks of 64 bytes are read only when they are whole; the last, partial one is copied into a local block first.
#define _GNU_SOURCE
#include "text.h"

#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

long long sp_last_byte(const uint8_t *bytes, size_t length, uint8_t byte) {
  const uint8_t *found = memrchr(bytes, byte, length);
  return found ? found - bytes : -1;
}

/// Bit i: block[i] == byte.
static inline uint64_t equal_mask(const uint8_t *block, uint8_t byte) {
#if defined(__x86_64__)
  const __m128i wanted = _mm_set1_epi8((char)byte);
  uint64_t mask = 0;
  for (int i = 0; i < 4; i++) {
    __m128i part = _mm_loadu_si128((const __m128i *)(block + 16 * i));
    mask |= (uint64_t)(uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(part, wanted)) << (16 * i);
  }
  return mask;
#else
  uint64_t mask = 0;
  for (int i = 0; i < 64; i++) mask |= (uint64_t)(block[i] == byte) << i;
  return mask;
#endif
}

size_t sp_count_byte(const uint8_t *bytes, size_t length, uint8_t byte) {
  size_t count = 0, at = 0;
  for (; at + 64 <= length; at += 64) count += (size_t)__builtin_popcountll(equal_mask(bytes + at, byte));
  for (; at < length; at++) count += bytes[at] == byte;
  return count;
}

/// Bit i: an odd number of set bits in 0 ... i. A doubled quote opens and closes again, which leaves the state as it was.
static inline uint64_t prefix_xor(uint64_t x) {
  x ^= x << 1;
  x ^= x << 2;
  x ^= x << 4;
  x ^= x << 8;
  x ^= x << 16;
  x ^= x << 32;
  return x;
}

static inline uint64_t quoted_mask(uint64_t quotes, uint64_t *state) {
  uint64_t quoted = prefix_xor(quotes) ^ *state;
  *state = (uint64_t)((int64_t)quoted >> 63);
  return quoted;
}

struct csv_state {
  uint64_t quoted;
  /// Whether the field that goes on in the next block has a quote or a carriage return already.
  int is_not_plain;
};

/// One block of which the first bytes, those of `valid`, count.
static inline size_t scan_block(const uint8_t *block, uint64_t valid, uint8_t delimiter, uint32_t base, struct csv_state *state,
                                uint32_t *offsets, size_t count) {
  uint64_t quotes = equal_mask(block, '"');
  uint64_t found = (equal_mask(block, delimiter) | equal_mask(block, '\n')) & ~quoted_mask(quotes, &state->quoted) & valid;
  uint64_t others = quotes | equal_mask(block, '\r');
  int is_not_plain = state->is_not_plain;
  while (found) {
    uint64_t field = found ^ (found - 1);
    is_not_plain |= (others & field) != 0;
    offsets[count++] = (base + (uint32_t)__builtin_ctzll(found)) | (is_not_plain ? SP_CSV_NOT_PLAIN : 0);
    others &= ~field;
    is_not_plain = 0;
    found &= found - 1;
  }
  state->is_not_plain = is_not_plain | (others != 0);
  return count;
}

size_t sp_csv_scan(const uint8_t *bytes, size_t length, uint8_t delimiter, int *in_quotes, uint32_t *offsets) {
  struct csv_state state = {*in_quotes ? ~0ULL : 0, 0};
  size_t count = 0, at = 0;
  for (; at + 64 <= length; at += 64) count = scan_block(bytes + at, ~0ULL, delimiter, (uint32_t)at, &state, offsets, count);
  if (at < length) {
    uint8_t block[64] = {0};
    memcpy(block, bytes + at, length - at);
    // Zeros behind the end are no structure, whatever the delimiter is.
    count = scan_block(block, (1ULL << (length - at)) - 1, delimiter, (uint32_t)at, &state, offsets, count);
  }
  *in_quotes = state.quoted != 0;
  return count;
}

long long sp_csv_last_line(const uint8_t *bytes, size_t length, int *in_quotes) {
  uint64_t state = *in_quotes ? ~0ULL : 0;
  long long last = -1;
  for (size_t at = 0; at < length; at += 64) {
    uint8_t block[64] = {0};
    const uint8_t *part = bytes + at;
    if (at + 64 > length) {
      memcpy(block, part, length - at);
      part = block;
    }
    uint64_t lines = equal_mask(part, '\n') & ~quoted_mask(equal_mask(part, '"'), &state);
    if (lines) last = (long long)at + 63 - __builtin_clzll(lines);
  }
  *in_quotes = state != 0;
  return last;
}
