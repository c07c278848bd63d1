// Multi-lane SHA-256. One message stream per lane; lanes never meet, so each digest equals FIPS 180-4 exactly.
// Bounds: block b of a message is read only when b*64-1+64 <= length (the prefix byte shifts the message by one);
// the at most two last blocks of each lane are built in a local 128-byte tail.
#include "CKernels.h"

#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

static const uint32_t K[64] __attribute__((aligned(64))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
static const uint32_t H0[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                               0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

/// The 1 or 2 final blocks of prefix || message: what remains, 0x80, zeros, the bit length. Returns how many.
static size_t make_tail(uint8_t tail[128], uint8_t prefix, const uint8_t *message, size_t length, size_t whole) {
  size_t total = length + 1, rest = total - whole * 64, blocks = rest < 56 ? 1 : 2;
  memset(tail, 0, 128);
  if (whole == 0) {
    tail[0] = prefix;
    memcpy(tail + 1, message, length);
  } else {
    memcpy(tail, message + whole * 64 - 1, rest);
  }
  tail[rest] = 0x80;
  uint64_t bits = (uint64_t)total * 8;
  for (int i = 0; i < 8; i++) tail[blocks * 64 - 1 - i] = (uint8_t)(bits >> (8 * i));
  return blocks;
}

static void store(uint8_t *out, const uint32_t *h) {
  for (int i = 0; i < 8; i++) {
    uint32_t be = __builtin_bswap32(h[i]);
    memcpy(out + 4 * i, &be, 4);
  }
}

// ---- portable ----
static inline uint32_t rotr(uint32_t x, int n) { return (x >> n) | (x << (32 - n)); }

static void compress_portable(uint32_t h[8], const uint8_t *p) {
  uint32_t w[64];
  for (int i = 0; i < 16; i++) {
    memcpy(&w[i], p + 4 * i, 4);
    w[i] = __builtin_bswap32(w[i]);
  }
  for (int i = 16; i < 64; i++) {
    uint32_t a = w[i - 15], b = w[i - 2];
    w[i] = w[i - 16] + (rotr(a, 7) ^ rotr(a, 18) ^ (a >> 3)) + w[i - 7] + (rotr(b, 17) ^ rotr(b, 19) ^ (b >> 10));
  }
  uint32_t s[8];
  memcpy(s, h, 32);
  for (int i = 0; i < 64; i++) {
    uint32_t t1 = s[7] + (rotr(s[4], 6) ^ rotr(s[4], 11) ^ rotr(s[4], 25)) + ((s[4] & s[5]) ^ (~s[4] & s[6])) + K[i] + w[i];
    uint32_t t2 = (rotr(s[0], 2) ^ rotr(s[0], 13) ^ rotr(s[0], 22)) + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
    s[7] = s[6]; s[6] = s[5]; s[5] = s[4]; s[4] = s[3] + t1;
    s[3] = s[2]; s[2] = s[1]; s[1] = s[0]; s[0] = t1 + t2;
  }
  for (int i = 0; i < 8; i++) h[i] += s[i];
}

static void hash_portable(uint8_t prefix, const uint8_t *m, size_t length, uint8_t *digest) {
  uint32_t h[8];
  uint8_t block[128];
  memcpy(h, H0, 32);
  size_t whole = (length + 1) / 64;
  if (whole) {
    block[0] = prefix;
    memcpy(block + 1, m, 63);
    compress_portable(h, block);
    for (size_t b = 1; b < whole; b++) compress_portable(h, m + b * 64 - 1);
  }
  size_t tail = make_tail(block, prefix, m, length, whole);
  for (size_t b = 0; b < tail; b++) compress_portable(h, block + 64 * b);
  store(digest, h);
}

#if defined(__x86_64__)
// ---- SHA-NI, two interleaved streams ----
#define NI __attribute__((target("sha,sse4.1,ssse3")))

typedef struct { __m128i abef, cdgh; } ni_state;

NI static inline ni_state ni_initial(void) {
  __m128i lo = _mm_loadu_si128((const __m128i *)H0), hi = _mm_loadu_si128((const __m128i *)(H0 + 4));
  lo = _mm_shuffle_epi32(lo, 0xB1);
  hi = _mm_shuffle_epi32(hi, 0x1B);
  ni_state s = {_mm_alignr_epi8(lo, hi, 8), _mm_blend_epi16(hi, lo, 0xF0)};
  return s;
}

NI static inline void ni_store(uint8_t *out, ni_state s) {
  uint32_t h[8];
  __m128i a = _mm_shuffle_epi32(s.abef, 0x1B), c = _mm_shuffle_epi32(s.cdgh, 0xB1);
  _mm_storeu_si128((__m128i *)h, _mm_blend_epi16(a, c, 0xF0));
  _mm_storeu_si128((__m128i *)(h + 4), _mm_alignr_epi8(c, a, 8));
  store(out, h);
}

NI static void ni_compress2(ni_state *s0, ni_state *s1, const uint8_t *p0, const uint8_t *p1) {
  const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bULL, 0x0405060700010203ULL);
  ni_state a = *s0, b = *s1;
  __m128i x[4], y[4];
  for (int i = 0; i < 4; i++) {
    x[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(p0 + 16 * i)), swap);
    y[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(p1 + 16 * i)), swap);
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < 16; i++) {
    __m128i k = _mm_load_si128((const __m128i *)(K + 4 * i));
    __m128i wx = _mm_add_epi32(x[i & 3], k), wy = _mm_add_epi32(y[i & 3], k);
    a.cdgh = _mm_sha256rnds2_epu32(a.cdgh, a.abef, wx);
    b.cdgh = _mm_sha256rnds2_epu32(b.cdgh, b.abef, wy);
    a.abef = _mm_sha256rnds2_epu32(a.abef, a.cdgh, _mm_shuffle_epi32(wx, 0x0E));
    b.abef = _mm_sha256rnds2_epu32(b.abef, b.cdgh, _mm_shuffle_epi32(wy, 0x0E));
    if (i < 12) {
      __m128i tx = _mm_sha256msg1_epu32(x[i & 3], x[(i + 1) & 3]), ty = _mm_sha256msg1_epu32(y[i & 3], y[(i + 1) & 3]);
      tx = _mm_add_epi32(tx, _mm_alignr_epi8(x[(i + 3) & 3], x[(i + 2) & 3], 4));
      ty = _mm_add_epi32(ty, _mm_alignr_epi8(y[(i + 3) & 3], y[(i + 2) & 3], 4));
      x[i & 3] = _mm_sha256msg2_epu32(tx, x[(i + 3) & 3]);
      y[i & 3] = _mm_sha256msg2_epu32(ty, y[(i + 3) & 3]);
    }
  }
  s0->abef = _mm_add_epi32(s0->abef, a.abef);
  s0->cdgh = _mm_add_epi32(s0->cdgh, a.cdgh);
  s1->abef = _mm_add_epi32(s1->abef, b.abef);
  s1->cdgh = _mm_add_epi32(s1->cdgh, b.cdgh);
}

NI static void hash_shani(uint8_t prefix, const uint8_t *m0, const uint8_t *m1, size_t length, uint8_t *d0, uint8_t *d1) {
  ni_state s0 = ni_initial(), s1 = s0;
  uint8_t t0[128], t1[128];
  size_t whole = (length + 1) / 64;
  if (whole) {
    t0[0] = t1[0] = prefix;
    memcpy(t0 + 1, m0, 63);
    memcpy(t1 + 1, m1, 63);
    ni_compress2(&s0, &s1, t0, t1);
    for (size_t b = 1; b < whole; b++) ni_compress2(&s0, &s1, m0 + b * 64 - 1, m1 + b * 64 - 1);
  }
  size_t tail = make_tail(t0, prefix, m0, length, whole);
  make_tail(t1, prefix, m1, length, whole);
  for (size_t b = 0; b < tail; b++) ni_compress2(&s0, &s1, t0 + 64 * b, t1 + 64 * b);
  ni_store(d0, s0);
  ni_store(d1, s1);
}

// ---- AVX-512, sixteen streams, one per 32-bit lane ----
#define V5 __attribute__((target("avx512f,avx512bw,avx512vl")))

/// w[t] lane l = big-endian word t of lane l's 64-byte block: sixteen rows loaded, then a 16x16 transpose.
V5 static inline void load_transposed(__m512i w[16], const uint8_t *const p[16]) {
  const __m512i swap = _mm512_broadcast_i32x4(_mm_set_epi64x(0x0c0d0e0f08090a0bULL, 0x0405060700010203ULL));
  __m512i r[16], t[16];
#pragma clang loop unroll(full)
  for (int i = 0; i < 16; i++) r[i] = _mm512_shuffle_epi8(_mm512_loadu_si512(p[i]), swap);
#pragma clang loop unroll(full)
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < 4; i++) {
    __m512i a = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88), b = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xDD);
    __m512i c = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88), d = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xDD);
    w[i] = _mm512_shuffle_i32x4(a, c, 0x88);
    w[8 + i] = _mm512_shuffle_i32x4(a, c, 0xDD);
    w[4 + i] = _mm512_shuffle_i32x4(b, d, 0x88);
    w[12 + i] = _mm512_shuffle_i32x4(b, d, 0xDD);
  }
}

#define XOR3(a, b, c) _mm512_ternarylogic_epi32(a, b, c, 0x96)
#define S(x, n) _mm512_ror_epi32(x, n)

// One round; the names of the working variables rotate instead of their contents. What is known last is added last: rounds wait for
// each other through e (AMD Zen 5: 5.4 against 4.7 GB/s).
#define ROUND(i, a, b, c, d, e, f, g, h)                                                                        \
  {                                                                                                             \
    __m512i t = _mm512_add_epi32(_mm512_add_epi32(h, w[i]), _mm512_set1_epi32((int)k[i]));                      \
    t = _mm512_add_epi32(t, _mm512_ternarylogic_epi32(e, f, g, 0xCA));                                          \
    t = _mm512_add_epi32(t, XOR3(S(e, 6), S(e, 11), S(e, 25)));                                                 \
    d = _mm512_add_epi32(d, t);                                                                                 \
    h = _mm512_add_epi32(t, _mm512_add_epi32(XOR3(S(a, 2), S(a, 13), S(a, 22)),                                 \
                                             _mm512_ternarylogic_epi32(a, b, c, 0xE8)));                        \
  }

// Word i of the next sixteen, in place (FIPS 180-4 §6.2.2 step 1).
#define SCHEDULE(i)                                                                                             \
  {                                                                                                             \
    __m512i x = w[(i + 1) & 15], y = w[(i + 14) & 15];                                                          \
    w[i] = _mm512_add_epi32(_mm512_add_epi32(w[i], w[(i + 9) & 15]),                                            \
                            _mm512_add_epi32(XOR3(S(x, 7), S(x, 18), _mm512_srli_epi32(x, 3)),                  \
                                             XOR3(S(y, 17), S(y, 19), _mm512_srli_epi32(y, 10))));              \
  }

#define EIGHT(i, STEP)                                    \
  STEP(i) ROUND(i, a, b, c, d, e, f, g, h)                \
  STEP(i + 1) ROUND(i + 1, h, a, b, c, d, e, f, g)        \
  STEP(i + 2) ROUND(i + 2, g, h, a, b, c, d, e, f)        \
  STEP(i + 3) ROUND(i + 3, f, g, h, a, b, c, d, e)        \
  STEP(i + 4) ROUND(i + 4, e, f, g, h, a, b, c, d)        \
  STEP(i + 5) ROUND(i + 5, d, e, f, g, h, a, b, c)        \
  STEP(i + 6) ROUND(i + 6, c, d, e, f, g, h, a, b)        \
  STEP(i + 7) ROUND(i + 7, b, c, d, e, f, g, h, a)

#define NOTHING(i)

/// 16 words and 8 working variables fill 24 of the 32 registers. The loop over the rounds is kept, so that the compiler
/// does not compute the whole schedule ahead and spill it (measured: 2.8 against 3.4 GB/s).
V5 static void compress16(__m512i state[8], const uint8_t *const p[16]) {
  __m512i w[16];
  load_transposed(w, p);
  __m512i a = state[0], b = state[1], c = state[2], d = state[3];
  __m512i e = state[4], f = state[5], g = state[6], h = state[7];
  const uint32_t *k = K;
  EIGHT(0, NOTHING)
  EIGHT(8, NOTHING)
#pragma clang loop unroll(disable)
  for (int round = 16; round < 64; round += 16) {
    k += 16;
    EIGHT(0, SCHEDULE)
    EIGHT(8, SCHEDULE)
  }
  state[0] = _mm512_add_epi32(state[0], a);
  state[1] = _mm512_add_epi32(state[1], b);
  state[2] = _mm512_add_epi32(state[2], c);
  state[3] = _mm512_add_epi32(state[3], d);
  state[4] = _mm512_add_epi32(state[4], e);
  state[5] = _mm512_add_epi32(state[5], f);
  state[6] = _mm512_add_epi32(state[6], g);
  state[7] = _mm512_add_epi32(state[7], h);
}

V5 static void hash_avx512(uint8_t prefix, const uint8_t *const *m, size_t count, size_t length, uint8_t *digests) {
  __m512i h[8];
  uint8_t tails[16][128];
  const uint8_t *p[16];
  for (int i = 0; i < 8; i++) h[i] = _mm512_set1_epi32((int)H0[i]);
  size_t whole = (length + 1) / 64, tail = 0;
  // Lanes beyond count repeat lane 0; their digests are not stored.
  if (whole) {
    for (size_t l = 0; l < 16; l++) {
      tails[l][0] = prefix;
      memcpy(tails[l] + 1, m[l < count ? l : 0], 63);
      p[l] = tails[l];
    }
    compress16(h, p);
    for (size_t l = 0; l < 16; l++) p[l] = m[l < count ? l : 0] + 63;
    for (size_t b = 1; b < whole; b++) {
      compress16(h, p);
      for (size_t l = 0; l < 16; l++) p[l] += 64;
    }
  }
  for (size_t l = 0; l < 16; l++) tail = make_tail(tails[l], prefix, m[l < count ? l : 0], length, whole);
  for (size_t b = 0; b < tail; b++) {
    for (size_t l = 0; l < 16; l++) p[l] = tails[l] + 64 * b;
    compress16(h, p);
  }
  uint32_t lanes[8][16];
  for (int i = 0; i < 8; i++) _mm512_storeu_si512(lanes[i], h[i]);
  for (size_t l = 0; l < count; l++) {
    uint32_t one[8];
    for (int i = 0; i < 8; i++) one[i] = lanes[i][l];
    store(digests + 32 * l, one);
  }
}
#endif

#if defined(__x86_64__)
static int has_shani(void) {
  uint32_t a, b = 0, c, d;
  __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
  return (b >> 29 & 1) && __builtin_cpu_supports("sse4.1") && __builtin_cpu_supports("ssse3");
}
#endif

int sp_sha256_kernel(void) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  // The sixteen lanes count on SHA-NI for what does not fill them; every AVX-512 processor since 2019 has it.
  if (!has_shani()) return SP_SHA256_PORTABLE;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    return SP_SHA256_AVX512;
  return SP_SHA256_SHANI;
#endif
  return SP_SHA256_PORTABLE;
}

void sp_sha256_prefixed(int kernel, uint8_t prefix, const uint8_t *const *messages, size_t count, size_t length,
                        uint8_t *digests) {
#if defined(__x86_64__)
  // Below nine messages SHA-NI beats sixteen lanes that are half idle (measured: 2.7 GB/s from two messages on).
  if (kernel >= SP_SHA256_AVX512 && count > 8) {
    hash_avx512(prefix, messages, count, length, digests);
    return;
  }
  if (kernel >= SP_SHA256_SHANI) {
    for (size_t i = 0; i < count; i += 2) {
      uint8_t spare[32];
      int pair = i + 1 < count;
      hash_shani(prefix, messages[i], messages[pair ? i + 1 : i], length, digests + 32 * i, pair ? digests + 32 * (i + 1) : spare);
    }
    return;
  }
#endif
  for (size_t i = 0; i < count; i++) hash_portable(prefix, messages[i], length, digests + 32 * i);
}

#if defined(__x86_64__)
__attribute__((target("avx"))) static void zero_upper(void) { _mm256_zeroupper(); }
#endif

void sp_leave_vectors(void) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx")) zero_upper();
#endif
}
