/* SPDX-License-Identifier: MIT */
/*
 * Zero-writes and discards: changes of L2 entries, without data.
 *
 * A zero-write keeps the place of its clusters unless it may unmap. Parts of subclusters are
 * written as data. A discard drops the place of whole clusters; they read as zeroes afterwards
 * where the format can say so.
 */
#include "in-flight.h"
#include "requests.h"
#include "util/size.h"

#include <errno.h>

#define ALL_ZERO (~UINT64_C(0) << 32)

typedef enum ZeroOp {
    OP_ZERO,
    OP_ZERO_UNMAP,
    OP_DISCARD,
    OP_FORGET, /* become unallocated */
} ZeroOp;

/* --- one entry --- */

static void zero_entry(const Qcow2 *q, const Qcow2Entry *old, bool unmap, uint64_t mask,
                       uint64_t *ret_value, uint64_t *ret_bitmap)
{
    bool place = qcow2_entry_has_place(q, old->entry);
    bool whole = q->subclusters == 1 || mask == UINT32_MAX;
    bool keep =
        place && (!whole || ((old->entry & QCOW2_COPIED) && (!unmap || data_file_is_raw(q))));

    *ret_value = keep ? old->entry : 0;
    if (q->subclusters == 1) {
        *ret_value |= QCOW2_L2_ZERO;
    } else if (whole) {
        *ret_bitmap = ALL_ZERO;
    } else {
        *ret_bitmap = (old->bitmap & ~mask) | mask << 32;
    }
}

static void discard_entry(const Qcow2 *q, const Qcow2Entry *old, uint64_t *ret_value,
                          uint64_t *ret_bitmap)
{
    bool allocated = qcow2_entry_has_place(q, old->entry) || (old->entry & QCOW2_L2_COMPRESSED);

    if (!allocated && !q->node->backing) {
        *ret_value = old->entry;
        *ret_bitmap = old->bitmap;
        return;
    }
    *ret_value = q->subclusters == 1 && q->header.version >= 3 ? QCOW2_L2_ZERO : 0;
    *ret_bitmap = q->subclusters == 1 ? 0 : ALL_ZERO;
}

/* Whether the entry could be changed; part of a compressed cluster cannot. */
static bool change_entry(Qcow2 *q, ZeroOp op, Qcow2Entry *entry, int64_t cluster, int64_t start,
                         int64_t stop)
{
    uint64_t mask = q->subclusters > 1 ? qcow2_subcluster_mask(q, cluster, start, stop) : 0;
    uint64_t value = 0, bitmap = 0;

    switch (op) {
    case OP_ZERO:
    case OP_ZERO_UNMAP:
        if (q->subclusters > 1 && mask != UINT32_MAX && (entry->entry & QCOW2_L2_COMPRESSED)) {
            return false;
        }
        zero_entry(q, entry, op == OP_ZERO_UNMAP, mask, &value, &bitmap);
        break;
    case OP_DISCARD:
        discard_entry(q, entry, &value, &bitmap);
        break;
    case OP_FORGET:
        break;
    }
    if (value != entry->entry || bitmap != entry->bitmap) {
        qcow2_entry_set(q, entry, value, bitmap, QCOW2_DISCARD_REQUEST);
    }
    return true;
}

/* --- ranges --- */

/* What one slice describes is changed at once. */
static int64_t end_of_slice(const Qcow2 *q, int64_t guest)
{
    int64_t clusters = qcow2_cache_slice_bytes(q->l2_cache) / q->l2_entry_size;

    return align_down(guest, clusters << q->header.cluster_bits) +
           (clusters << q->header.cluster_bits);
}

static bool has_table(Qcow2 *q, int64_t guest)
{
    int64_t index = guest >> q->header.cluster_bits >> q->l2_bits;

    return index < q->l1.entries &&
           (qcow2_table_get(q, &q->l1, (uint32_t)index) & QCOW2_L1_OFFSET_MASK);
}

/* Under `lock`. Returns how far it came, or -errno. */
static int64_t coroutine_fn change_slice(Qcow2 *q, ZeroOp op, int64_t start, int64_t stop)
{
    int64_t cluster = cluster_start(q, start);
    Qcow2Entry entry;
    int ret;

    if (!has_table(q, start) && (op == OP_FORGET || (op == OP_DISCARD && !q->node->backing))) {
        return stop;
    }
    ret = qcow2_l2_prepare(q, start);
    ret = ret ? ret : qcow2_entry_lock(q, start, &entry);
    if (ret < 0) {
        return ret;
    }
    for (;; cluster += q->cluster_size) {
        if (!change_entry(q, op, &entry, cluster, start, stop)) {
            break;
        }
        if (cluster + q->cluster_size >= stop) {
            cluster = stop;
            break;
        }
        qcow2_entry_next(q, &entry);
    }
    g_mutex_unlock(&q->table_lock);
    return MAX(cluster, start);
}

/* What is dropped of an external data file, while nobody else changes the range. */
static void coroutine_fn discard_data_file(Qcow2 *q, ZeroOp op, int64_t start, int64_t stop)
{
    if (op != OP_ZERO && q->options.pass_discard_request && !data_file_is_raw(q)) {
        child_co_pdiscard(q->data_file, start, MIN(stop, node_size(q->data_file->node)) - start);
    }
}

/* -ENOTSUP: nothing was done from *ret_done on, as the cluster there is compressed. */
static int coroutine_fn change_range(Qcow2 *q, ZeroOp op, int64_t start, int64_t stop,
                                     int64_t *ret_done)
{
    int64_t at = start;
    int ret = 0;

    while (at < stop && ret == 0) {
        int64_t end = MIN(stop, end_of_slice(q, at));
        int64_t first = cluster_start(q, at);
        Qcow2Pending pending;
        int64_t done;

        co_mutex_lock(&q->lock);
        while (qcow2_in_flight_wait(q, first, align_up(end, q->cluster_size) - first)) {
        }
        done = atomic_load(&q->corrupt) ? -EIO : change_slice(q, op, at, end);
        if (has_data_file(q) && done > at) {
            qcow2_in_flight_add(q, &pending, first, align_up(end, q->cluster_size) - first);
            co_mutex_unlock(&q->lock);
            discard_data_file(q, op, at, done);
            co_mutex_lock(&q->lock);
            qcow2_in_flight_remove(q, &pending);
        }
        co_mutex_unlock(&q->lock);
        ret = done < 0 ? (int)done : done < end ? -ENOTSUP : 0;
        at = done < 0 ? at : done;
    }
    *ret_done = at - start;
    return ret;
}

int coroutine_fn qcow2_forget_clusters(Qcow2 *q, int64_t guest, int64_t bytes)
{
    int64_t done;

    return change_range(q, OP_FORGET, guest, guest + bytes, &done);
}

/* --- zero-writes --- */

/* Whole subclusters. */
static int coroutine_fn zero_units(Qcow2 *q, int64_t start, int64_t stop, unsigned flags)
{
    ZeroOp op = flags & REQ_MAY_UNMAP ? OP_ZERO_UNMAP : OP_ZERO;
    int ret = 0;

    while (start < stop && ret == 0) {
        int64_t done, end;

        ret = change_range(q, op, start, stop, &done);
        start += done;
        if (ret != -ENOTSUP) {
            continue;
        }
        end = MIN(stop, cluster_start(q, start) + q->cluster_size);
        ret = qcow2_write_zero_data(q, start, end - start, 0);
        start = end;
    }
    return ret;
}

/* Less than a subcluster. */
static int coroutine_fn zero_part(Qcow2 *q, int64_t offset, int64_t bytes, unsigned flags)
{
    int ret = bytes ? qcow2_range_is_zero(q, offset, bytes) : 1;

    if (ret != 0) {
        return MIN(ret, 0);
    }
    return flags & REQ_NO_FALLBACK ? -ENOTSUP : qcow2_write_zero_data(q, offset, bytes, 0);
}

static int coroutine_fn zero_range(Qcow2 *q, int64_t offset, int64_t bytes, unsigned flags)
{
    int64_t unit = q->subcluster_size;
    int64_t end = offset + bytes;
    int64_t head, tail;
    int ret = 0;

    if (end == node_size(q->node)) {
        end = align_up(end, unit);
    }
    head = MIN(align_up(offset, unit), end);
    tail = MAX(align_down(end, unit), head);
    if (data_file_is_raw(q)) {
        ret = child_co_pwrite_zeroes(q->data_file, offset, bytes, flags);
    }
    ret = ret ? ret : zero_part(q, offset, head - offset, flags);
    ret = ret ? ret : zero_part(q, tail, end - tail, flags);
    return ret ? ret : zero_units(q, head, tail, flags);
}

int coroutine_fn qcow2_zero_clusters(Qcow2 *q, int64_t guest, int64_t bytes)
{
    return q->header.version < 3 ? qcow2_write_zero_data(q, guest, bytes, 0)
                                 : zero_units(q, guest, guest + bytes, REQ_MAY_UNMAP);
}

static int coroutine_fn discard_range(Qcow2 *q, int64_t offset, int64_t bytes)
{
    int64_t start = align_up(offset, q->cluster_size);
    int64_t stop = offset + bytes;
    int64_t done;

    stop = stop == node_size(q->node) ? align_up(stop, q->cluster_size)
                                      : align_down(stop, q->cluster_size);
    if (start >= stop || (q->header.version < 3 && q->node->backing)) {
        return -ENOTSUP;
    }
    if (data_file_is_raw(q)) {
        return zero_range(q, start, MIN(stop, node_size(q->node)) - start, REQ_MAY_UNMAP);
    }
    return change_range(q, OP_DISCARD, start, stop, &done);
}

/* Without a flag for zeroes: whole clusters are dropped where nothing is behind them. */
static int coroutine_fn zero_v2(Qcow2 *q, int64_t offset, int64_t bytes)
{
    int64_t end = offset + bytes;

    if (q->node->backing || cluster_offset(q, offset) ||
        (cluster_offset(q, end) && end != node_size(q->node))) {
        return -ENOTSUP;
    }
    return discard_range(q, offset, bytes);
}

/* --- requests --- */

int coroutine_fn qcow2_co_pwrite_zeroes(BlockNode *node, int64_t offset, int64_t bytes,
                                        unsigned flags)
{
    Qcow2 *q = node->state;
    unsigned epoch;
    int ret;

    if (atomic_load(&q->corrupt)) {
        return -EIO;
    }
    epoch = qcow2_request_begin(q);
    ret = q->header.version < 3 ? zero_v2(q, offset, bytes) : zero_range(q, offset, bytes, flags);
    qcow2_request_end(q, epoch);
    return ret ? ret : qcow2_balance(q);
}

int coroutine_fn qcow2_co_pdiscard(BlockNode *node, int64_t offset, int64_t bytes)
{
    Qcow2 *q = node->state;
    unsigned epoch;
    int ret;

    if (atomic_load(&q->corrupt)) {
        return -EIO;
    }
    epoch = qcow2_request_begin(q);
    ret = discard_range(q, offset, bytes);
    qcow2_request_end(q, epoch);
    return ret ? ret : qcow2_balance(q);
}
