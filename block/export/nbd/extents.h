/* SPDX-License-Identifier: MIT */
/*
 * Lists of extents, as block status replies carry them.
 *
 * Extents follow one another without gaps from the start of the request; neighbours with the same
 * flags are joined. A list has a maximum number of extents and becomes `full` when one more would
 * be needed: what comes after that is not told, which the protocol allows at any point behind
 * the first extent. Lists know bytes and flags; nothing here yields, and the dirty-bitmap scan
 * costs in proportion to the extents found.
 */
#ifndef MERINO_NBD_EXTENTS_H
#define MERINO_NBD_EXTENTS_H

#include "block/dirty-bitmap.h"

typedef struct NbdExtent {
    uint64_t length; /* bytes, not 0 */
    uint64_t flags;
} NbdExtent;

typedef struct NbdExtents {
    NbdExtent *items;
    unsigned n;
    unsigned capacity;
    unsigned max;
    bool full;
} NbdExtents;

/* Room for the items of one list, kept for the next; all zero in the beginning. */
typedef struct NbdExtentsMemory {
    NbdExtent *items;
    unsigned capacity;
} NbdExtentsMemory;

/* `max` at least 1. */
void nbd_extents_init(NbdExtents *extents, unsigned max);

/* The same with memory that another list has left behind. */
void nbd_extents_init_reuse(NbdExtents *extents, unsigned max, NbdExtentsMemory *memory);
void nbd_extents_done(NbdExtents *extents);
void nbd_extents_done_keep(NbdExtents *extents, NbdExtentsMemory *memory);
void nbd_extents_memory_done(NbdExtentsMemory *memory);

/* Append `length` bytes (not 0). False when they did not fit: the list is full. */
bool nbd_extents_add(NbdExtents *extents, uint64_t length, uint64_t flags);

/* What `bitmap` says of [offset, offset + bytes), until the list is full. */
void nbd_extents_add_bitmap(NbdExtents *extents, DirtyBitmap *bitmap, int64_t offset,
                            int64_t bytes);

/* Encoded size, and the encoding itself into that many bytes. */
size_t nbd_extents_bytes(const NbdExtents *extents, bool extended);
void nbd_extents_encode(const NbdExtents *extents, bool extended, uint8_t *bytes);

#endif
