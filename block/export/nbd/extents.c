/* SPDX-License-Identifier: MIT */
#include "extents.h"

#include "protocol.h"

#define FIRST_CAPACITY 16

/* How many runs of a bitmap are looked up at once. */
#define AREAS 256

void nbd_extents_init(NbdExtents *extents, unsigned max)
{
    g_assert(max > 0);
    *extents = (NbdExtents){ .max = max };
}

void nbd_extents_init_reuse(NbdExtents *extents, unsigned max, NbdExtentsMemory *memory)
{
    nbd_extents_init(extents, max);
    extents->items = g_steal_pointer(&memory->items);
    extents->capacity = memory->capacity;
    memory->capacity = 0;
}

void nbd_extents_done(NbdExtents *extents)
{
    g_free(extents->items);
    *extents = (NbdExtents){ 0 };
}

void nbd_extents_done_keep(NbdExtents *extents, NbdExtentsMemory *memory)
{
    if (extents->capacity > memory->capacity) {
        g_free(memory->items);
        memory->items = g_steal_pointer(&extents->items);
        memory->capacity = extents->capacity;
    }
    nbd_extents_done(extents);
}

void nbd_extents_memory_done(NbdExtentsMemory *memory)
{
    g_free(memory->items);
    *memory = (NbdExtentsMemory){ 0 };
}

/* One that is not to be joined with the last. */
static inline bool append(NbdExtents *extents, uint64_t length, uint64_t flags)
{
    if (G_UNLIKELY(extents->n == extents->max)) {
        extents->full = true;
        return false;
    }
    if (G_UNLIKELY(extents->n >= extents->capacity)) {
        extents->capacity = MIN(MAX(extents->capacity * 2, FIRST_CAPACITY), extents->max);
        extents->items = g_renew(NbdExtent, extents->items, extents->capacity);
    }
    extents->items[extents->n++] = (NbdExtent){ .length = length, .flags = flags };
    return true;
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
    return append(extents, length, flags);
}

/*
 * Runs of bits as extents from `offset` on; clean and dirty ones take turns, so only the first of
 * each batch may have to be joined. Returns where they end.
 */
static int64_t add_areas(NbdExtents *extents, const HBitmapArea *areas, size_t n, int shift,
                         int64_t offset, int64_t end)
{
    for (size_t i = 0; i < n && !extents->full; i++) {
        int64_t dirty_start = MAX((int64_t)(areas[i].start << shift), offset);
        uint64_t last = (areas[i].start + areas[i].len) << shift; /* 2^63 at most */
        int64_t dirty_end = (int64_t)MIN(last, (uint64_t)end);
        int64_t clean = dirty_start - offset;

        if (i == 0 || clean == 0) {
            if (clean && !nbd_extents_add(extents, (uint64_t)clean, 0)) {
                return offset;
            }
            nbd_extents_add(extents, (uint64_t)(dirty_end - dirty_start), NBD_EXTENT_DIRTY);
        } else if (append(extents, (uint64_t)clean, 0)) {
            append(extents, (uint64_t)(dirty_end - dirty_start), NBD_EXTENT_DIRTY);
        }
        offset = dirty_end;
    }
    return offset;
}

/* What lies in the bitmap of [offset, end), with its bits locked. Returns where that ends. */
static int64_t add_known(NbdExtents *extents, const HBitmap *bits, int shift, int64_t offset,
                         int64_t end)
{
    uint64_t end_bit = ((uint64_t)(end - 1) >> shift) + 1;
    uint64_t bit = (uint64_t)offset >> shift;
    HBitmapArea areas[AREAS];
    size_t wanted, n;

    do {
        wanted = MIN(AREAS, (size_t)(extents->max - extents->n) / 2 + 1);
        n = bit < end_bit ? hbitmap_dirty_areas(bits, bit, end_bit, areas, wanted) : 0;
        offset = add_areas(extents, areas, n, shift, offset, end);
        if (n) {
            bit = areas[n - 1].start + areas[n - 1].len;
        }
    } while (!extents->full && n == wanted);
    return offset;
}

/*
 * The bits are asked directly: the writes acknowledged so far are folded in once, not anew for each
 * extent. The bitmap's disk may be another than the export's: a bitmap of a smaller one is clean
 * beyond its end, and none of those that grow does so meanwhile.
 */
void nbd_extents_add_bitmap(NbdExtents *extents, DirtyBitmap *bitmap, int64_t offset, int64_t bytes)
{
    const HBitmap *bits = bitmap_lock_bits(bitmap);
    int shift = __builtin_ctzll((uint64_t)bitmap_granularity(bitmap));
    int64_t end = offset + bytes;
    int64_t known_end = MIN(end, bitmap_size(bitmap));

    if (offset < known_end) {
        offset = add_known(extents, bits, shift, offset, known_end);
    }
    bitmap_unlock_bits(bitmap);
    if (offset < end && !extents->full) {
        nbd_extents_add(extents, (uint64_t)(end - offset), 0);
    }
}

size_t nbd_extents_bytes(const NbdExtents *extents, bool extended)
{
    return (size_t)extents->n * (extended ? NBD_EXTENT_EXT_BYTES : NBD_EXTENT_BYTES);
}

void nbd_extents_encode(const NbdExtents *extents, bool extended, uint8_t *bytes)
{
    const NbdExtent *items = extents->items;

    if (extended) {
        for (unsigned i = 0; i < extents->n; i++, bytes += NBD_EXTENT_EXT_BYTES) {
            nbd_put64(bytes, items[i].length);
            nbd_put64(bytes + 8, items[i].flags);
        }
        return;
    }
    for (unsigned i = 0; i < extents->n; i++, bytes += NBD_EXTENT_BYTES) {
        nbd_put32(bytes, (uint32_t)items[i].length);
        nbd_put32(bytes + 4, (uint32_t)items[i].flags);
    }
}
