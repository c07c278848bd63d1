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

static inline uint64_t quoted_mask(const uint8_t *block, uint64_t *state) {
  uint64_t quoted = prefix_xor(equal_mask(block, '"')) ^ *state;
  *state = (uint64_t)((int64_t)quoted >> 63);
  return quoted;
}

static inline size_t emit(uint64_t mask, uint32_t base, uint32_t *offsets, size_t count) {
  while (mask) {
    offsets[count++] = base + (uint32_t)__builtin_ctzll(mask);
    mask &= mask - 1;
  }
  return count;
}

size_t sp_csv_scan(const uint8_t *bytes, size_t length, uint8_t delimiter, int *in_quotes, uint32_t *offsets) {
  uint64_t state = *in_quotes ? ~0ULL : 0;
  size_t count = 0, at = 0;
  for (; at + 64 <= length; at += 64) {
    uint64_t quoted = quoted_mask(bytes + at, &state);
    uint64_t found = (equal_mask(bytes + at, delimiter) | equal_mask(bytes + at, '\n')) & ~quoted;
    count = emit(found, (uint32_t)at, offsets, count);
  }
  if (at < length) {
    uint8_t block[64] = {0};
    memcpy(block, bytes + at, length - at);
    uint64_t quoted = quoted_mask(block, &state);
    uint64_t found = (equal_mask(block, delimiter) | equal_mask(block, '\n')) & ~quoted;
    // Zeros behind the end are no structure, whatever the delimiter is.
    found &= (1ULL << (length - at)) - 1;
    count = emit(found, (uint32_t)at, offsets, count);
  }
  *in_quotes = state != 0;
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
    uint64_t lines = equal_mask(part, '\n') & ~quoted_mask(part, &state);
    if (lines) last = (long long)at + 63 - __builtin_clzll(lines);
  }
  *in_quotes = state != 0;
  return last;
}
