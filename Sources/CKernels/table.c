#include "table.h"

// The high word scaled to the capacity: any capacity will do, not only powers of two.
static inline size_t home(uint64_t high, size_t capacity) {
  return (size_t)(((unsigned __int128)high * capacity) >> 64);
}

size_t sp_table_slot(const sp_slot *slots, size_t capacity, uint64_t high, uint64_t low) {
  size_t at = home(high, capacity);
  while (slots[at].word && (slots[at].high != high || slots[at].low != low)) at = at + 1 == capacity ? 0 : at + 1;
  return at;
}

void sp_table_find(const sp_slot *slots, size_t capacity, const uint64_t *keys, size_t count, uint64_t *words) {
  enum { GROUP = 32 };
  for (size_t done = 0; done < count; done += GROUP) {
    size_t group = count - done < GROUP ? count - done : GROUP;
    for (size_t i = 0; i < group; i++) __builtin_prefetch(&slots[home(keys[2 * (done + i)], capacity)]);
    for (size_t i = 0; i < group; i++) {
      size_t at = sp_table_slot(slots, capacity, keys[2 * (done + i)], keys[2 * (done + i) + 1]);
      words[done + i] = slots[at].word;
    }
  }
}
