// Scans over text: bytes counted and found, the structure of CSV.
#pragma once
#include <stddef.h>
#include <stdint.h>

/// How often `byte` stands in bytes[0 ..< length].
size_t sp_count_byte(const uint8_t *bytes, size_t length, uint8_t byte);

/// Offset of the last `byte`, or -1.
long long sp_last_byte(const uint8_t *bytes, size_t length, uint8_t byte);

/// Stands in an offset of sp_csv_scan when a quote or a carriage return is in the field before it.
#define SP_CSV_NOT_PLAIN 0x80000000u

/// Offsets of `delimiter` and of line feeds that stand outside double quotes, ascending, into `offsets` (room for `length`, which is
/// below 2^31); how many. `in_quotes` (0 or 1) is the state at the start, and afterwards at the end.
size_t sp_csv_scan(const uint8_t *bytes, size_t length, uint8_t delimiter, int *in_quotes, uint32_t *offsets);

/// Offset of the last line feed outside double quotes, or -1; the state as in sp_csv_scan.
long long sp_csv_last_line(const uint8_t *bytes, size_t length, int *in_quotes);
