/* SPDX-License-Identifier: MIT */
/*
 * New sizes, and clusters made ready for them. The node is drained, so nobody else changes
 * anything.
 *
 * Growing: a larger L1 table is allocated, written and synced before the header refers to it; what
 * the new part must not show (a longer backing file, rests in the last cluster) becomes zeroes;
 * then the header tells the new size. Shrinking: what is beyond is dropped first, then the header
 * changes, then the file's end is cut off.
 */
#include "bitmaps.h"
#include "options.h"
#include "requests.h"
#include "util/error.h"
#include "util/size.h"

#include <errno.h>
#include <inttypes.h>

/* --- the L1 table --- */

static int64_t l1_entries_for(const Qcow2 *q, int64_t size)
{
    unsigned bits = q->l2_bits + q->header.cluster_bits;

    return (size >> bits) + ((size & ((INT64_C(1) << bits) - 1)) != 0);
}

/* Write the table at `offset` with so many entries. */
static int coroutine_fn write_l1(Qcow2 *q, int64_t offset, int64_t entries)
{
    g_autofree uint64_t *copy = g_try_new0(uint64_t, entries);
    int ret;

    if (!copy) {
        return -ENOMEM;
    }
    for (int64_t i = 0; i < q->l1.entries; i++) {
        copy[i] = GUINT64_TO_BE(q->l1.entry[i]);
    }
    ret = qcow2_meta_write(q, offset, copy, entries * 8, QCOW2_OVERLAP_ACTIVE_L1);
    return ret ? ret : qcow2_sync(q);
}

/* Make the header and memory refer to the table there, and drop the old place. */
static int coroutine_fn switch_l1(Qcow2 *q, int64_t offset, int64_t entries, GError **error)
{
    int64_t old_offset = q->header.l1_offset;
    uint32_t old_entries = q->header.l1_entries;
    int ret;

    q->header.l1_offset = offset;
    q->header.l1_entries = (uint32_t)entries;
    ret = qcow2_header_commit(q, error);
    if (ret < 0) {
        q->header.l1_offset = old_offset;
        q->header.l1_entries = old_entries;
        if (qcow2_header_commit(q, NULL) < 0) {
            atomic_store(&q->corrupt, true); /* which of the two the file names is not known */
        }
        return ret;
    }
    qcow2_table_grow(q, &q->l1, (uint32_t)entries);
    q->l1.offset = offset;
    qcow2_overlap_add(q, QCOW2_OVERLAP_ACTIVE_L1, offset, entries * 8);
    if (old_entries) {
        co_mutex_lock(&q->lock);
        qcow2_free(q, old_offset, (int64_t)old_entries * 8, QCOW2_DISCARD_OTHER);
        co_mutex_unlock(&q->lock);
    }
    return 0;
}

static int coroutine_fn grow_l1(Qcow2 *q, int64_t size, GError **error)
{
    int64_t entries = l1_entries_for(q, size);
    int64_t offset;
    int ret;

    if (entries <= q->l1.entries) {
        return 0;
    }
    if (entries * 8 > QCOW2_MAX_L1_BYTES) {
        merino_error_errno(error, EFBIG, "Failed to grow the L1 table");
        return -EFBIG;
    }
    co_mutex_lock(&q->lock);
    offset = qcow2_alloc(q, entries * 8);
    co_mutex_unlock(&q->lock);
    if (offset < 0) {
        merino_error_errno(error, (int)-offset, "Failed to grow the L1 table");
        return (int)offset;
    }
    ret = qcow2_writeback(q);
    ret = ret ? ret : write_l1(q, offset, entries);
    if (ret < 0) {
        merino_error_errno(error, -ret, "Failed to grow the L1 table");
    } else {
        ret = switch_l1(q, offset, entries, error);
    }
    if (ret < 0) {
        co_mutex_lock(&q->lock);
        qcow2_free(q, offset, entries * 8, QCOW2_DISCARD_OTHER);
        co_mutex_unlock(&q->lock);
    }
    return ret;
}

/* --- preallocation --- */

/* A run of clusters from `guest` on that have no place: gives them one, without linking. */
static int64_t coroutine_fn find_places(Qcow2 *q, int64_t guest, int64_t stop, int64_t *host,
                                        bool *ret_fresh)
{
    int64_t run = qcow2_run_without_place(q, guest, stop);
    int64_t n;
    int ret;

    if (run <= 0) {
        return run;
    }
    ret = qcow2_l2_prepare(q, guest);
    if (ret < 0) {
        return ret;
    }
    if (has_data_file(q)) {
        *host = guest;
        *ret_fresh = guest >= q->data_end;
        return run;
    }
    n = qcow2_alloc_data_fresh(q, host, run >> q->header.cluster_bits, ret_fresh);
    return n < 0 ? n : n << q->header.cluster_bits;
}

static int coroutine_fn write_zeroes_out(Qcow2 *q, int64_t host, int64_t bytes)
{
    int ret = 0;

    for (int64_t done = 0; done < bytes && ret == 0; done += MiB) {
        int64_t piece = MIN(bytes - done, MiB);
        IoVector vec;

        iov_init(&vec);
        qcow2_add_zeroes(&vec, piece);
        ret = child_co_pwritev(q->data_file, host + done, piece, &vec, 0);
        iov_done(&vec);
    }
    return ret;
}

/* Make the places read as zeroes, and occupy them as far as `mode` says. */
static int coroutine_fn fill_places(Qcow2 *q, int64_t host, int64_t bytes, bool fresh,
                                    PreallocMode mode)
{
    if (has_data_file(q) && !fresh) {
        return 0; /* what is in it is what is read */
    }
    switch (mode) {
    case PREALLOC_MODE_FULL:
        return write_zeroes_out(q, host, bytes);
    case PREALLOC_MODE_FALLOC:
        return child_co_pwrite_zeroes(q->data_file, host, bytes, 0);
    default:
        return fresh ? 0 : child_co_pwrite_zeroes(q->data_file, host, bytes, REQ_MAY_UNMAP);
    }
}

/* What the entry says once it has a place. Subclusters that nobody wrote to stay unallocated, and
 * zeroes stay zeroes where nothing but the tables is asked for. */
static void set_place(Qcow2 *q, Qcow2Entry *entry, int64_t host, PreallocMode mode)
{
    uint64_t value = (uint64_t)host | QCOW2_COPIED;
    uint64_t bitmap = entry->bitmap;

    if (mode != PREALLOC_MODE_METADATA) {
        bitmap >>= 32; /* from zeroes to data */
    } else if (q->subclusters == 1) {
        value |= entry->entry & QCOW2_L2_ZERO;
    }
    qcow2_entry_set(q, entry, value, bitmap, QCOW2_DISCARD_NEVER);
}

static int coroutine_fn link_places(Qcow2 *q, int64_t guest, int64_t host, int64_t bytes,
                                    PreallocMode mode)
{
    Qcow2Entry entry;
    int ret = qcow2_entry_lock(q, guest, &entry);

    if (ret < 0) {
        return ret;
    }
    for (int64_t at = 0; at < bytes; at += q->cluster_size) {
        if (at > 0) {
            qcow2_entry_next(q, &entry);
        }
        set_place(q, &entry, host + at, mode);
    }
    g_mutex_unlock(&q->table_lock);
    return 0;
}

/* Returns how many bytes from `guest` on are settled, or -errno. */
static int64_t coroutine_fn preallocate_run(Qcow2 *q, int64_t guest, int64_t stop, int64_t *hint,
                                            PreallocMode mode)
{
    int64_t host = *hint;
    bool fresh = false;
    int64_t n;
    int ret;

    co_mutex_lock(&q->lock);
    n = find_places(q, guest, stop, &host, &fresh);
    co_mutex_unlock(&q->lock);
    if (n <= 0) {
        return n < 0 ? n : q->cluster_size; /* it has a place */
    }
    ret = fill_places(q, host, n, fresh, mode);
    co_mutex_lock(&q->lock);
    ret = ret ? ret : link_places(q, guest, host, n, mode);
    if (ret < 0 && !has_data_file(q)) {
        qcow2_unalloc(q, host, n);
    }
    co_mutex_unlock(&q->lock);
    *hint = host + n;
    return ret ? ret : n;
}

/* The file ends not before what is allocated in it. */
static int coroutine_fn extend_file(Qcow2 *q, int64_t guest_end)
{
    int64_t end = has_data_file(q) ? guest_end : q->meta_end;

    if (node_size(q->data_file->node) >= end) {
        return 0;
    }
    return child_co_truncate(q->data_file, end, PREALLOC_MODE_OFF, NULL);
}

int coroutine_fn qcow2_preallocate(Qcow2 *q, int64_t offset, int64_t bytes, PreallocMode prealloc,
                                   GError **error)
{
    int64_t at = cluster_start(q, offset);
    int64_t stop = align_up(offset + bytes, q->cluster_size);
    int64_t hint = 0;
    int ret = 0;

    if (prealloc == PREALLOC_MODE_OFF || bytes == 0) {
        return 0;
    }
    while (at < stop && ret == 0) {
        int64_t n = preallocate_run(q, at, stop, &hint, prealloc);

        ret = n < 0 ? (int)n : qcow2_balance(q);
        at += n;
    }
    ret = ret ? ret : extend_file(q, offset + bytes);
    ret = ret ? ret : qcow2_writeback(q);
    if (ret < 0) {
        merino_error_errno(error, -ret, "Could not preallocate clusters");
    }
    return ret;
}

/* --- growing --- */

/* The rest of the last cluster, run by run: its subclusters may differ. */
static int coroutine_fn hide_rest(Qcow2 *q, int64_t start, int64_t end, int64_t backing)
{
    int ret = 0;

    while (start < end && ret == 0) {
        Qcow2Mapping map = { .bytes = 0 };

        ret = qcow2_map(q, start, end - start, &map);
        if (ret == 0 && (map.type == MAP_DATA || map.type == MAP_COMPRESSED || backing > start)) {
            ret = qcow2_write_zero_data(q, start, map.bytes, 0);
        }
        start += map.bytes;
    }
    return ret;
}

/* What the new part would show: the rest of the last cluster, and a longer backing file. */
static int coroutine_fn hide_old(Qcow2 *q, int64_t old_size, int64_t size)
{
    int64_t backing = q->node->backing ? node_size(q->node->backing->node) : 0;
    int64_t end = MIN(size, align_up(old_size, q->cluster_size));
    int ret = hide_rest(q, old_size, end, backing);

    if (ret == 0 && MIN(backing, size) > end) {
        ret = qcow2_zero_clusters(q, end, align_up(MIN(backing, size), q->cluster_size) - end);
    }
    return ret;
}

static int coroutine_fn set_header_size(Qcow2 *q, int64_t size, GError **error)
{
    int64_t old = q->header.size;
    int ret;

    q->header.size = size;
    ret = qcow2_header_commit(q, error);
    if (ret < 0) {
        q->header.size = old;
    }
    return ret;
}

/* An external data file is as long as the disk; one that was longer from the beginning stays so, if
 * it is not raw. Then what lies there is nobody's, and must not show in clusters that are
 * allocated without being written. */
static int coroutine_fn grow_data_file(Qcow2 *q, int64_t old_size, int64_t size,
                                       PreallocMode prealloc, GError **error)
{
    int64_t now = node_size(q->data_file->node);
    int ret = 0;

    if (!has_data_file(q)) {
        return 0;
    }
    if (data_file_is_raw(q)) {
        return child_co_truncate(q->data_file, size, PREALLOC_MODE_OFF, error);
    }
    if (prealloc != PREALLOC_MODE_OFF && now > old_size) {
        ret = child_co_pwrite_zeroes(q->data_file, old_size, MIN(size, now) - old_size,
                                     REQ_MAY_UNMAP);
        if (ret < 0) {
            merino_error_errno(error, -ret, "Failed to zero out the new area");
            return ret;
        }
    }
    return now < size ? child_co_truncate(q->data_file, size, PREALLOC_MODE_OFF, error) : 0;
}

/* Where preallocation begins, or -errno. The last cluster belongs to it as well: it keeps what it
 * holds, and gets a place now where it has none. */
static int64_t coroutine_fn preallocate_from(Qcow2 *q, int64_t old_size, int64_t size)
{
    int64_t start = cluster_start(q, old_size);
    int64_t end = MIN(size, start + q->cluster_size);
    int64_t without_place = qcow2_run_without_place(q, start, start + 1);
    int ret;

    if (without_place <= 0) {
        return without_place < 0 ? without_place : end;
    }
    ret = qcow2_range_is_zero(q, start, old_size - start);
    if (ret == 0) {
        ret = qcow2_write_zero_data(q, old_size, end - old_size, 0);
        start = end;
    }
    return ret < 0 ? ret : start;
}

static int coroutine_fn preallocate_new(Qcow2 *q, int64_t old_size, int64_t size,
                                        PreallocMode prealloc, GError **error)
{
    int64_t start;

    if (prealloc == PREALLOC_MODE_OFF) {
        return 0;
    }
    start = preallocate_from(q, old_size, size);
    if (start < 0) {
        merino_error_errno(error, (int)-start, "Could not preallocate clusters");
        return (int)start;
    }
    return qcow2_preallocate(q, start, size - start, prealloc, error);
}

static int coroutine_fn grow(Qcow2 *q, int64_t old_size, int64_t size, PreallocMode prealloc,
                             GError **error)
{
    int ret = grow_l1(q, size, error);

    if (ret < 0) {
        return ret;
    }
    ret = hide_old(q, old_size, size);
    ret = ret ? ret : qcow2_writeback(q);
    if (ret < 0) {
        merino_error_errno(error, -ret, "Failed to zero out the new area");
        return ret;
    }
    ret = grow_data_file(q, old_size, size, prealloc, error);
    ret = ret ? ret : preallocate_new(q, old_size, size, prealloc, error);
    return ret ? ret : set_header_size(q, size, error);
}

/* --- shrinking --- */

/* L2 tables that describe only what is gone. */
static void coroutine_fn drop_tables(Qcow2 *q, int64_t size)
{
    co_mutex_lock(&q->lock);
    for (int64_t i = l1_entries_for(q, size); i < q->l1.entries; i++) {
        int64_t table = (int64_t)(q->l1.entry[i] & QCOW2_L1_OFFSET_MASK);

        if (table) {
            g_mutex_lock(&q->table_lock);
            qcow2_table_set(&q->l1, (uint32_t)i, 0);
            g_mutex_unlock(&q->table_lock);
            qcow2_free(q, table, q->cluster_size, QCOW2_DISCARD_ALWAYS);
        }
    }
    co_mutex_unlock(&q->lock);
}

/* Give back the end of an external data file. The disk is shorter already, and what was cut off was
 * cleared: not to succeed is no failure. */
static void coroutine_fn cut_data_file(Qcow2 *q, int64_t size)
{
    if (has_data_file(q)) {
        child_co_truncate(q->data_file, size, PREALLOC_MODE_OFF, NULL);
    }
}

/* The same of the image file, as far as nothing is in use there. */
static void coroutine_fn cut_file(Qcow2 *q)
{
    int64_t clusters = size_to_clusters(q, node_size(q->node->file->node));
    uint64_t refcount = 0;

    co_mutex_lock(&q->lock);
    while (clusters > 0 && qcow2_refcount_get(q, clusters - 1, &refcount) == 0 && refcount == 0) {
        clusters--;
    }
    co_mutex_unlock(&q->lock);
    if (clusters == 0 || child_co_truncate(q->node->file, clusters << q->header.cluster_bits,
                                           PREALLOC_MODE_OFF, NULL) < 0) {
        return;
    }
    q->meta_end = clusters << q->header.cluster_bits;
}

static int coroutine_fn shrink(Qcow2 *q, int64_t old_size, int64_t size, GError **error)
{
    int64_t first = align_up(size, q->cluster_size);
    int64_t end = align_up(old_size, q->cluster_size);
    int ret = first < end ? qcow2_forget_clusters(q, first, end - first) : 0;

    if (ret == 0) {
        drop_tables(q, size);
        ret = qcow2_writeback(q);
    }
    if (ret < 0) {
        merino_error_errno(error, -ret, "Failed to discard cropped clusters");
        return ret;
    }
    ret = set_header_size(q, size, error);
    if (ret == 0) {
        cut_data_file(q, size);
    }
    if (ret == 0 && qcow2_writeback(q) == 0) {
        qcow2_shrink_refcounts(q);
        cut_file(q);
    }
    return ret;
}

/* --- both --- */

int coroutine_fn qcow2_resize(Qcow2 *q, int64_t size, PreallocMode prealloc, GError **error)
{
    int64_t old_size = q->header.size;
    int ret;

    if (!is_aligned(size, 512)) {
        merino_error(error, "The new size must be a multiple of 512");
        return -EINVAL;
    }
    if (q->n_snapshots && q->header.version < 3) {
        merino_error(error, "Can't resize a v2 image which has snapshots");
        return -ENOTSUP;
    }
    if (size < old_size && prealloc != PREALLOC_MODE_OFF) {
        merino_error(error, "Preallocation can't be used for shrinking an image");
        return -EINVAL;
    }
    if (data_file_is_raw(q) && prealloc == PREALLOC_MODE_OFF && size > old_size) {
        prealloc = PREALLOC_MODE_METADATA; /* so that the file reads the same by itself */
    }
    ret = size < old_size ? shrink(q, old_size, size, error)
                          : grow(q, old_size, size, prealloc, error);
    if (ret == 0) {
        node_set_size(q->node, size);
        qcow2_options_renew(q);
        atomic_store(&q->sparse, 0);
        qcow2_bitmaps_resized(q);
    }
    return ret;
}

int coroutine_fn qcow2_co_truncate(BlockNode *node, int64_t size, PreallocMode prealloc,
                                   GError **error)
{
    return qcow2_resize(node->state, size, prealloc, error);
}
