/* SPDX-License-Identifier: MIT */
/*
 * L2 tables that are this image's alone: made, or copied from one that a snapshot uses as well.
 * Under `lock`.
 */
#include "mapping.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* Slices of zeroes in memory. A table in a place that was never written to needs just the slice
 * that will be changed: the rest reads as zeroes from the file. */
static int zero_slices(Qcow2 *q, int64_t table, int64_t first, int64_t bytes)
{
    int64_t slice_bytes = qcow2_cache_slice_bytes(q->l2_cache);
    int ret = 0;

    g_mutex_lock(&q->table_lock);
    for (int64_t at = first; at < first + bytes && ret == 0; at += slice_bytes) {
        if (!qcow2_cache_add_zero(q->l2_cache, table + at)) {
            ret = -ENOMEM;
        }
    }
    g_mutex_unlock(&q->table_lock);
    return ret;
}

/* The old table's bytes into the new one's slices, which are in memory. */
static int coroutine_fn copy_slices(Qcow2 *q, int64_t from, int64_t to)
{
    int64_t slice_bytes = qcow2_cache_slice_bytes(q->l2_cache);

    for (int64_t at = 0; at < q->cluster_size; at += slice_bytes) {
        Qcow2Slice *old, *new;
        int ret = qcow2_cache_lock(q->l2_cache, from + at, &old);

        if (ret < 0) {
            return ret;
        }
        new = qcow2_cache_find(q->l2_cache, to + at); /* dirty, so it is there */
        memcpy(new->data, old->data, slice_bytes);
        g_mutex_unlock(&q->table_lock);
    }
    return 0;
}

static int coroutine_fn fill_table(Qcow2 *q, int64_t table, int64_t old, int64_t guest, bool fresh)
{
    int64_t slice_bytes = qcow2_cache_slice_bytes(q->l2_cache);
    int64_t index = (guest >> q->header.cluster_bits) & ((INT64_C(1) << q->l2_bits) - 1);
    int ret;

    if (!old && fresh) {
        return zero_slices(q, table, index * q->l2_entry_size & ~(slice_bytes - 1), slice_bytes);
    }
    ret = zero_slices(q, table, 0, q->cluster_size);
    return ret == 0 && old ? copy_slices(q, old, table) : ret;
}

static int coroutine_fn replace_table(Qcow2 *q, int64_t guest, uint32_t l1_index, int64_t old)
{
    bool fresh = false;
    int64_t table = qcow2_alloc_fresh(q, "L2 table", q->cluster_size, &fresh);
    int ret;

    if (table < 0) {
        return (int)table;
    }
    ret = fill_table(q, table, old, guest, fresh);
    g_mutex_lock(&q->table_lock);
    if (ret == 0) {
        qcow2_table_set(&q->l1, l1_index, (uint64_t)table | QCOW2_COPIED);
    } else {
        qcow2_cache_drop(q->l2_cache, table, q->cluster_size);
    }
    g_mutex_unlock(&q->table_lock);
    if (ret < 0) {
        qcow2_unalloc(q, table, q->cluster_size);
        return ret;
    }
    qcow2_overlap_add(q, QCOW2_OVERLAP_ACTIVE_L2, table, q->cluster_size);
    if (old) {
        qcow2_free(q, old, q->cluster_size, QCOW2_DISCARD_OTHER);
    }
    return 0;
}

int coroutine_fn qcow2_l2_prepare(Qcow2 *q, int64_t guest)
{
    int64_t index = guest >> q->header.cluster_bits >> q->l2_bits;
    uint64_t l1;
    int64_t old;

    if (index >= q->l1.entries) {
        return -EFBIG;
    }
    l1 = qcow2_table_get(q, &q->l1, (uint32_t)index);
    old = (int64_t)(l1 & QCOW2_L1_OFFSET_MASK);
    if (cluster_offset(q, old)) {
        qcow2_mark_corrupt(q, true, -1, -1,
                           "L2 table offset %#" PRIx64 " unaligned (L1 index: %#" PRIx64 ")",
                           (uint64_t)old, (uint64_t)index);
        return -EIO;
    }
    return old && (l1 & QCOW2_COPIED) ? 0 : replace_table(q, guest, (uint32_t)index, old);
}
