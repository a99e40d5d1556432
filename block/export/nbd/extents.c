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

/*
 * The bits are asked directly: the writes acknowledged so far are folded in once, not anew for each
 * extent. A bitmap of a smaller disk than the export's is clean beyond its end.
 */
void nbd_extents_add_bitmap(NbdExtents *extents, DirtyBitmap *bitmap, int64_t offset, int64_t bytes)
{
    const HBitmap *bits = bitmap_bits(bitmap);
    int shift = __builtin_ctzll((uint64_t)bitmap_granularity(bitmap));
    int64_t end = offset + bytes;
    int64_t known_end = MIN(end, bitmap_size(bitmap));
    uint64_t end_bit = ((uint64_t)known_end + (uint64_t)bitmap_granularity(bitmap) - 1) >> shift;
    uint64_t bit = (uint64_t)offset >> shift;
    uint64_t dirty, n;

    while (!extents->full && bit < end_bit &&
           hbitmap_next_dirty_area(bits, bit, end_bit, UINT64_MAX, &dirty, &n)) {
        int64_t dirty_start = MAX((int64_t)(dirty << shift), offset);
        int64_t dirty_end = dirty + n == end_bit ? known_end : (int64_t)((dirty + n) << shift);

        if (dirty_start > offset &&
            !nbd_extents_add(extents, (uint64_t)(dirty_start - offset), 0)) {
            return;
        }
        nbd_extents_add(extents, (uint64_t)(dirty_end - dirty_start), NBD_EXTENT_DIRTY);
        offset = dirty_end;
        bit = dirty + n;
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
