/* SPDX-License-Identifier: MIT */
/*
 * Sizes as people write them: "512", "64k", "1.5G", "0x10000". Suffixes b k M G T P E, any case,
 * powers of 1024. Also the arithmetic of alignments (powers of two unless said otherwise).
 */
#ifndef MERINO_UTIL_SIZE_H
#define MERINO_UTIL_SIZE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define KiB (INT64_C(1) << 10)
#define MiB (INT64_C(1) << 20)
#define GiB (INT64_C(1) << 30)
#define TiB (INT64_C(1) << 40)

/* Parse the whole of `text`: 0, -ERANGE above UINT64_MAX, or -EINVAL for anything else, also for
 * what is negative. `*ret_size` is written only on success. */
int size_parse(const char *text, uint64_t *ret_size);

static inline bool is_power_of_2(uint64_t value)
{
    return value && !(value & (value - 1));
}

static inline int64_t align_down(int64_t value, int64_t alignment)
{
    return value & ~(alignment - 1);
}

/* `value` must be at most INT64_MAX - alignment + 1. */
static inline int64_t align_up(int64_t value, int64_t alignment)
{
    return (value + (alignment - 1)) & ~(alignment - 1);
}

static inline bool is_aligned(int64_t value, int64_t alignment)
{
    return !(value & (alignment - 1));
}

#endif
