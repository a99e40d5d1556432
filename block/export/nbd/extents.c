/* SPDX-License-Identifier: MIT */
#include "extents.h"

#include "protocol.h"

#define FIRST_CAPACITY 16

void nbd_extents_init(NbdExtents *extents, unsigned max)
{
    g_assert(max > 0);
    *extents = (NbdExtents){ .max = max };
}

void nbd_extents_done(NbdExtents *extents)
{
    g_free(extents->items);
    *extents = (NbdExtents){ 0 };
}

bool nbd_extents_add(NbdExtents *extents, uint64_t length, uint64_t flags)
{
    if (extents->full) {
        return false;
    }
    if (extents->n && extents->items[extents->n - 1].flags == flags) {
        extents->items[extents->n - 1].length += length;
        return true;
    }
    if (extents->n == extents->max) {
        extents->full = true;
        return false;
    }
    if (extents->n == extents->capacity) {
        extents->capacity = MIN(MAX(extents->capacity * 2, FIRST_CAPACITY), extents->max);
        extents->items = g_renew(NbdExtent, extents->items, extents->capacity);
    }
    extents->items[extents->n++] = (NbdExtent){ .length = length, .flags = flags };
    return true;
}

void nbd_extents_add_bitmap(NbdExtents *extents, DirtyBitmap *bitmap, int64_t offset, int64_t bytes)
{
    int64_t end = offset + bytes;
    int64_t dirty, dirty_bytes;

    while (!extents->full &&
           bitmap_next_dirty_area(bitmap, offset, end, INT64_MAX, &dirty, &dirty_bytes)) {
        if (dirty > offset && !nbd_extents_add(extents, (uint64_t)(dirty - offset), 0)) {
            return;
        }
        nbd_extents_add(extents, (uint64_t)dirty_bytes, NBD_EXTENT_DIRTY);
        offset = dirty + dirty_bytes;
    }
    if (offset < end) {
        nbd_extents_add(extents, (uint64_t)(end - offset), 0);
    }
}

size_t nbd_extents_bytes(const NbdExtents *extents, bool extended)
{
    return (size_t)extents->n * (extended ? NBD_EXTENT_EXT_BYTES : NBD_EXTENT_BYTES);
}

void nbd_extents_encode(const NbdExtents *extents, bool extended, uint8_t *bytes)
{
    for (unsigned i = 0; i < extents->n; i++) {
        bytes +=
            nbd_encode_extent(bytes, extended, extents->items[i].length, extents->items[i].flags);
    }
}
