// SHA-256 of many equally long messages at once (FIPS 180-4), for RFC 6962 leaves.
// Lanes by processor: AVX-512 (16), SHA-NI (2), or portable C. The caller asks once and passes the answer in.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "blake2b.h"
#include "table.h"
#include "text.h"

enum { SP_SHA256_PORTABLE = 1, SP_SHA256_SHANI = 2, SP_SHA256_AVX512 = 16 };

/// The widest kernel that this processor runs.
int sp_sha256_kernel(void);

/// digests[32*i] = SHA-256(prefix byte || messages[i][0 ..< length]) for i in 0 ..< count.
/// `kernel` is one of the values above, at most sp_sha256_kernel(). count 1 ... 16; messages do not overlap digests.
void sp_sha256_prefixed(int kernel, uint8_t prefix, const uint8_t *const *messages, size_t count, size_t length,
                        uint8_t *digests);

/// Ends the use of the wide vector registers (VZEROUPPER). To be called after code that leaves them in use, as OpenSSL 3.0 does with
/// AVX-512: until then the processor merges every SSE result with what is left (SHA-NI at half its speed, AMD Zen 5).
void sp_leave_vectors(void);
