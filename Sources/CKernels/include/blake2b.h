// Keyed BLAKE2b-128 (RFC 7693) of many short texts: several lanes at once, the key's block absorbed beforehand.
#pragma once
#include <stddef.h>
#include <stdint.h>

enum { SP_BLAKE2B_TEXT_MAX = 128 };

/// The state after the block of a key of 32 bytes, for digests of 16 bytes.
void sp_blake2b128_key(const uint8_t key[32], uint64_t state[8]);

/// out[2i], out[2i+1] = the digest's two little-endian words of text i, which is bytes[ends[i-1] ..< ends[i]] (from 0 for the
/// first) and has at most SP_BLAKE2B_TEXT_MAX bytes, at least 1.
void sp_blake2b128_many(const uint64_t state[8], const uint8_t *bytes, const long *ends, size_t count, uint64_t *out);
