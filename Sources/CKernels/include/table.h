// A hash table of 16-byte keys whose bits are as good as random, each with one word: open addressing, linear probing.
#pragma once
#include <stddef.h>
#include <stdint.h>

/// A slot is empty when its word is 0.
typedef struct {
  uint64_t high, low, word;
} sp_slot;

/// words[i] = the word of keys[2i], keys[2i+1] (high, low), 0 when it is not there. Misses of the cache overlap.
void sp_table_find(const sp_slot *slots, size_t capacity, const uint64_t *keys, size_t count, uint64_t *words);

/// The slot of a key, or the empty one where it belongs. The table must have one.
size_t sp_table_slot(const sp_slot *slots, size_t capacity, uint64_t high, uint64_t low);
