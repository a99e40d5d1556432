/* SPDX-License-Identifier: MIT */
/*
 * A bitmap's contents by bytes: searching, counting, digesting, and changing single ranges.
 *
 * Searches fold first when the bitmap records, so they see every write that was acknowledged before
 * they began. The last bit ends where the disk ends.
 */
#include "bitmap-internal.h"

#include <string.h>

static int64_t bit_start(const DirtyBitmap *bitmap, uint64_t bit)
{
    return (int64_t)(bit << bitmap->shift);
}

static int64_t clip(const DirtyBitmap *bitmap, int64_t end)
{
    return MIN(end, bitmap->list->size);
}

bool bitmap_next_dirty_area(DirtyBitmap *bitmap, int64_t offset, int64_t end, int64_t max_bytes,
                            int64_t *ret_offset, int64_t *ret_bytes)
{
    int64_t limit = clip(bitmap, end);
    HBitmap *bits = bitmap_bits(bitmap);
    uint64_t start, len;
    int64_t area, area_end;

    if (offset >= limit || max_bytes <= 0) {
        return false;
    }
    /* Two bits more than fit, as the area may begin and end within a bit. */
    if (!hbitmap_next_dirty_area(bits, (uint64_t)offset >> bitmap->shift,
                                 bitmap_size_bits(limit, bitmap->shift),
                                 ((uint64_t)max_bytes >> bitmap->shift) + 2, &start, &len)) {
        return false;
    }
    area = MAX(offset, bit_start(bitmap, start));
    area_end = len >= bitmap_size_bits(limit, bitmap->shift) - start
                   ? limit
                   : bit_start(bitmap, start + len);
    *ret_offset = area;
    *ret_bytes = MIN(area_end - area, max_bytes);
    return true;
}

typedef uint64_t SearchFn(const HBitmap *bits, uint64_t start, uint64_t end);

static int64_t search(DirtyBitmap *bitmap, int64_t offset, int64_t end, SearchFn *find)
{
    int64_t limit = clip(bitmap, end);
    uint64_t end_bit = bitmap_size_bits(limit, bitmap->shift);
    HBitmap *bits = bitmap_bits(bitmap);
    uint64_t bit;

    if (offset >= limit) {
        return end;
    }
    bit = find(bits, (uint64_t)offset >> bitmap->shift, end_bit);
    return bit == end_bit ? end : MAX(offset, bit_start(bitmap, bit));
}

int64_t bitmap_next_dirty(DirtyBitmap *bitmap, int64_t offset, int64_t end)
{
    return search(bitmap, offset, end, hbitmap_next_dirty);
}

int64_t bitmap_next_clean(DirtyBitmap *bitmap, int64_t offset, int64_t end)
{
    return search(bitmap, offset, end, hbitmap_next_clear);
}

bool bitmap_get(DirtyBitmap *bitmap, int64_t offset)
{
    return hbitmap_get(bitmap_bits(bitmap), (uint64_t)offset >> bitmap->shift);
}

void bitmap_set_range(DirtyBitmap *bitmap, int64_t offset, int64_t bytes)
{
    uint64_t first = (uint64_t)offset >> bitmap->shift;
    int64_t end = clip(bitmap, offset + bytes);

    if (end > offset) {
        hbitmap_set(bitmap->bits, first, bitmap_size_bits(end, bitmap->shift) - first);
    }
}

void bitmap_reset_range(DirtyBitmap *bitmap, int64_t offset, int64_t bytes)
{
    int64_t end = offset + bytes;
    uint64_t first = bitmap_size_bits(offset, bitmap->shift);
    uint64_t last =
        end >= bitmap->list->size ? hbitmap_size(bitmap->bits) : (uint64_t)end >> bitmap->shift;

    if (first < last) {
        hbitmap_reset(bitmap_bits(bitmap), first, last - first);
    }
}

int64_t bitmap_dirty_bytes(DirtyBitmap *bitmap)
{
    uint64_t count = 0;

    if (bitmap->deferred && !bitmap_count_deferred(bitmap, &count)) {
        return 0;
    }
    if (!bitmap->deferred && !bitmap->state.inconsistent) {
        count = hbitmap_count(bitmap_bits(bitmap));
    }
    return bit_start(bitmap, count);
}

char *bitmap_sha256(DirtyBitmap *bitmap)
{
    enum {
        CHUNK_BITS = 1 << 18
    };
    g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA256);
    g_autofree uint8_t *buf = g_malloc(CHUNK_BITS / 8);
    HBitmap *bits;
    uint64_t size, start = 0;

    bitmap_load(bitmap, NULL);
    bits = bitmap_bits(bitmap);
    size = hbitmap_size(bits);
    do { /* whole 64-bit words, and at least one, even of an empty disk */
        uint64_t n = MIN(size - start, CHUNK_BITS);
        size_t len = MAX(1, (n + 63) / 64) * 8;

        memset(buf, 0, len);
        hbitmap_serialize(bits, start, n, buf);
        g_checksum_update(sum, buf, len);
        start += n;
    } while (start < size);
    return g_strdup(g_checksum_get_string(sum));
}
