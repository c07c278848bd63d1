#include "blake2b.h"

#include <string.h>

static const uint64_t iv[8] = {
    0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
    0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179,
};

static const uint8_t sigma[12][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
};

// Compresses one block in each lane: the same code for one lane and for eight.
#define COMPRESS(VECTOR, state, m, length, result)                                                   \
  VECTOR v[16];                                                                                      \
  for (int i = 0; i < 8; i++) v[i] = (VECTOR){0} + state[i], v[i + 8] = (VECTOR){0} + iv[i];         \
  v[12] ^= length;                                                                                   \
  v[14] = ~v[14];                                                                                    \
  for (int round = 0; round < 12; round++) {                                                         \
    const uint8_t *s = sigma[round];                                                                 \
    MIX(0, 4, 8, 12, 0) MIX(1, 5, 9, 13, 1) MIX(2, 6, 10, 14, 2) MIX(3, 7, 11, 15, 3)                \
    MIX(0, 5, 10, 15, 4) MIX(1, 6, 11, 12, 5) MIX(2, 7, 8, 13, 6) MIX(3, 4, 9, 14, 7)                \
  }                                                                                                  \
  result[0] = v[0] ^ v[8] ^ state[0];                                                                \
  result[1] = v[1] ^ v[9] ^ state[1];
#define ROTATE(x, n) ((x) >> (n) | (x) << (64 - (n)))
#define MIX(a, b, c, d, i)                                                                           \
  v[a] += v[b] + m[s[2 * i]], v[d] = ROTATE(v[d] ^ v[a], 32), v[c] += v[d], v[b] = ROTATE(v[b] ^ v[c], 24), \
  v[a] += v[b] + m[s[2 * i + 1]], v[d] = ROTATE(v[d] ^ v[a], 16), v[c] += v[d], v[b] = ROTATE(v[b] ^ v[c], 63);

typedef uint64_t lanes8 __attribute__((vector_size(64)));

void sp_blake2b128_key(const uint8_t key[32], uint64_t state[8]) {
  uint64_t m[16] = {0}, h[8], v[16];
  memcpy(m, key, 32);
  for (int i = 0; i < 8; i++) h[i] = iv[i];
  h[0] ^= 0x01010000 ^ (32 << 8) ^ 16;
  for (int i = 0; i < 8; i++) v[i] = h[i], v[i + 8] = iv[i];
  v[12] ^= 128;  // bytes so far; not the last block
  for (int round = 0; round < 12; round++) {
    const uint8_t *s = sigma[round];
    MIX(0, 4, 8, 12, 0) MIX(1, 5, 9, 13, 1) MIX(2, 6, 10, 14, 2) MIX(3, 7, 11, 15, 3)
    MIX(0, 5, 10, 15, 4) MIX(1, 6, 11, 12, 5) MIX(2, 7, 8, 13, 6) MIX(3, 4, 9, 14, 7)
  }
  for (int i = 0; i < 8; i++) state[i] = h[i] ^ v[i] ^ v[i + 8];
}

// Up to eight texts; the lanes that are left over compute nothing that anybody reads.
static inline __attribute__((always_inline)) void eight(const uint64_t *state, const uint8_t *bytes, long start,
                                                        const long *ends, size_t count, uint64_t *out) {
  uint64_t words[8][16];
  uint64_t lengths[8] = {0};
  memset(words, 0, sizeof words);
  for (size_t lane = 0; lane < count; lane++) {
    long length = ends[lane] - start;
    memcpy(words[lane], bytes + start, (size_t)length);
    lengths[lane] = 128 + (uint64_t)length;
    start = ends[lane];
  }
  lanes8 m[16], length, result[2];
  for (int word = 0; word < 16; word++)
    for (int lane = 0; lane < 8; lane++) m[word][lane] = words[lane][word];
  for (int lane = 0; lane < 8; lane++) length[lane] = lengths[lane];
  {
    COMPRESS(lanes8, state, m, length, result)
  }
  for (size_t lane = 0; lane < count; lane++) out[2 * lane] = result[0][lane], out[2 * lane + 1] = result[1][lane];
}

#define MANY                                                                                          \
  long start = 0;                                                                                     \
  for (size_t done = 0; done < count; done += 8) {                                                    \
    size_t group = count - done < 8 ? count - done : 8;                                               \
    eight(state, bytes, start, ends + done, group, out + 2 * done);                                   \
    start = ends[done + group - 1];                                                                   \
  }

static void many_portable(const uint64_t *state, const uint8_t *bytes, const long *ends, size_t count, uint64_t *out) {
  MANY
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void many_avx2(const uint64_t *state, const uint8_t *bytes, const long *ends,
                                                      size_t count, uint64_t *out) {
  MANY
}

__attribute__((target("avx512f,avx512vl"))) static void many_avx512(const uint64_t *state, const uint8_t *bytes,
                                                                    const long *ends, size_t count, uint64_t *out) {
  MANY
}
#endif

void sp_blake2b128_many(const uint64_t state[8], const uint8_t *bytes, const long *ends, size_t count, uint64_t *out) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512vl")) return many_avx512(state, bytes, ends, count, out);
  if (__builtin_cpu_supports("avx2")) return many_avx2(state, bytes, ends, count, out);
#endif
  many_portable(state, bytes, ends, count, out);
}
