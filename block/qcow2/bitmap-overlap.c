/* SPDX-License-Identifier: MIT */
/*
 * References of bitmaps to clusters that others use. One word a cluster is sorted: the cluster's
 * index, and who refers to it.
 */
#include "bitmap-directory.h"

#include <inttypes.h>
#include <stdlib.h>

#define OWNER_BITS 16 /* holds an index into the directory */

static void add_range(GArray *uses, unsigned cluster_bits, int64_t offset, int64_t bytes,
                      unsigned owner)
{
    int64_t first = offset >> cluster_bits;
    int64_t end = (offset + bytes + (INT64_C(1) << cluster_bits) - 1) >> cluster_bits;

    for (; first < end; first++) {
        uint64_t use = (uint64_t)first << OWNER_BITS | owner;

        g_array_append_val(uses, use);
    }
}

static void add_entry(GArray *uses, unsigned cluster_bits, const Qcow2BitmapEntry *entry,
                      unsigned owner)
{
    add_range(uses, cluster_bits, entry->table_offset, INT64_C(8) * entry->table_entries, owner);
    for (uint32_t i = 0; entry->table && i < entry->table_entries; i++) {
        int64_t offset = entry->table[i] & QCOW2_BITMAP_OFFSET_MASK;

        if (offset) {
            add_range(uses, cluster_bits, offset, 1, owner);
        }
    }
}

static gint compare_uses(gconstpointer a, gconstpointer b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static void blame(GPtrArray *entries, uint64_t use, unsigned cluster_bits)
{
    qcow2_bitmap_entry_fault(g_ptr_array_index(entries, use & ((1 << OWNER_BITS) - 1)),
                             "others refer to its cluster at 0x%" PRIx64,
                             use >> OWNER_BITS << cluster_bits);
}

/* All uses of one cluster. */
static void blame_users_of(GPtrArray *entries, const GArray *uses, int64_t host,
                           unsigned cluster_bits)
{
    uint64_t wanted = (uint64_t)host >> cluster_bits;
    guint low = 0, high = uses->len;

    while (low < high) {
        guint middle = low + (high - low) / 2;

        if (g_array_index(uses, uint64_t, middle) >> OWNER_BITS < wanted) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    for (; low < uses->len && g_array_index(uses, uint64_t, low) >> OWNER_BITS == wanted; low++) {
        blame(entries, g_array_index(uses, uint64_t, low), cluster_bits);
    }
}

void qcow2_bitmap_find_overlaps(GPtrArray *entries, unsigned cluster_bits, const int64_t taken[],
                                size_t n_taken)
{
    g_autoptr(GArray) uses = g_array_new(FALSE, FALSE, sizeof(uint64_t));

    for (guint i = 0; i < entries->len; i++) {
        Qcow2BitmapEntry *entry = g_ptr_array_index(entries, i);

        if (!entry->fault) {
            add_entry(uses, cluster_bits, entry, i);
        }
    }
    g_array_sort(uses, compare_uses);
    for (guint i = 1; i < uses->len; i++) {
        uint64_t before = g_array_index(uses, uint64_t, i - 1);
        uint64_t use = g_array_index(uses, uint64_t, i);

        if (before >> OWNER_BITS == use >> OWNER_BITS) {
            blame(entries, before, cluster_bits);
            blame(entries, use, cluster_bits);
        }
    }
    for (size_t i = 0; i < n_taken; i++) {
        blame_users_of(entries, uses, taken[i], cluster_bits);
    }
}
