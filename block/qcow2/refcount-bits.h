/* SPDX-License-Identifier: MIT */
/*
 * Refcounts as they lie in a refcount block: 1 << order bits each, big-endian; those narrower than
 * a byte are filled into bytes from the lowest bit on.
 */
#ifndef MERINO_QCOW2_REFCOUNT_BITS_H
#define MERINO_QCOW2_REFCOUNT_BITS_H

#include <glib.h>
#include <stdint.h>

static inline uint64_t refcount_bits_get(const uint8_t *block, int64_t index, unsigned order)
{
    const uint8_t *at = block + (index << order) / 8;
    uint64_t value = 0;

    if (order < 3) {
        unsigned shift = (unsigned)(index << order) % 8;

        return (*at >> shift) & ((1u << (1u << order)) - 1);
    }
    for (unsigned i = 0; i < (1u << order) / 8; i++) {
        value = value << 8 | at[i];
    }
    return value;
}

/* `value` fits the width. */
static inline void refcount_bits_set(uint8_t *block, int64_t index, unsigned order, uint64_t value)
{
    uint8_t *at = block + (index << order) / 8;

    if (order < 3) {
        unsigned shift = (unsigned)(index << order) % 8;
        unsigned mask = ((1u << (1u << order)) - 1) << shift;

        *at = (uint8_t)((*at & ~mask) | (unsigned)value << shift);
        return;
    }
    for (unsigned i = (1u << order) / 8; i-- > 0; value >>= 8) {
        at[i] = (uint8_t)value;
    }
}

#endif
