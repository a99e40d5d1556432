/* SPDX-License-Identifier: MIT */
/*
 * Finding clusters and taking them; growing the refcount structures on the way. All under `lock`.
 *
 * Where no refcount block counts a cluster yet, blocks are placed right behind the clusters that
 * are being allocated, and count themselves or one another. Nothing of this is written here:
 * blocks, table and header reach the file with the next writeback, in that order (Q1, Q3).
 *
 * The refcount table grows in memory at once; its old place in the file is freed like any other
 * cluster.
 */
#include "runtime.h"
#include "util/size.h"

#include <errno.h>
#include <inttypes.h>

/* --- the refcount table --- */

static int64_t coroutine_fn take_run(Qcow2 *q, const char *what, int64_t min, int64_t max,
                                     int64_t *ret_n, bool *ret_fresh);

int coroutine_fn qcow2_move_reftable(Qcow2 *q, uint32_t entries)
{
    Qcow2Table *table = &q->reftable;
    int64_t clusters = size_to_clusters(q, (int64_t)entries * 8);
    uint32_t old_entries = table->entries;
    int64_t old_offset = table->offset;
    int64_t first, n;
    bool fresh;

    qcow2_table_grow(q, table, entries);
    first = take_run(q, "refcount table", clusters, clusters, &n, &fresh);
    if (first < 0) {
        qcow2_table_grow(q, table, old_entries);
        return (int)first;
    }
    g_mutex_lock(&q->table_lock);
    table->offset = first << q->header.cluster_bits;
    table->moved = table->any_dirty = true;
    g_mutex_unlock(&q->table_lock);
    qcow2_overlap_add(q, QCOW2_OVERLAP_REFCOUNT_TABLE, table->offset, (int64_t)entries * 8);
    qcow2_free(q, old_offset, MAX((int64_t)old_entries * 8, 1), QCOW2_DISCARD_OTHER);
    return 0;
}

uint32_t qcow2_reftable_room(const Qcow2 *q, int64_t need)
{
    int64_t entries = align_up(need + need / 8 + 8, q->cluster_size / 8);

    return (uint32_t)MIN(entries, QCOW2_MAX_REFTABLE_BYTES / 8);
}

static int coroutine_fn grow_reftable(Qcow2 *q, int64_t need)
{
    uint32_t entries =
        qcow2_reftable_room(q, MAX(q->reftable.entries + (int64_t)q->reftable.entries / 4, need));

    return need > entries ? -EFBIG : qcow2_move_reftable(q, entries);
}

/* --- refcount blocks --- */

static int coroutine_fn place_refblock(Qcow2 *q, int64_t index, int64_t cluster)
{
    int64_t host = cluster << q->header.cluster_bits;
    int64_t slice_bytes = qcow2_cache_slice_bytes(q->refcount_cache);
    int ret = 0;

    g_mutex_lock(&q->table_lock);
    for (int64_t at = host; at < host + q->cluster_size && ret == 0; at += slice_bytes) {
        if (!qcow2_cache_add_zero(q->refcount_cache, at)) {
            ret = -ENOMEM;
        }
    }
    if (ret == 0) {
        qcow2_table_set(&q->reftable, (uint32_t)index, (uint64_t)host);
    } else {
        qcow2_cache_drop(q->refcount_cache, host, q->cluster_size);
    }
    g_mutex_unlock(&q->table_lock);
    if (ret == 0) {
        qcow2_overlap_add(q, QCOW2_OVERLAP_REFCOUNT_BLOCK, host, q->cluster_size);
    }
    return ret;
}

/* How many blocks are missing to count [first, first + n); the first of them in `*ret_first`. */
static int64_t missing_blocks(Qcow2 *q, int64_t first, int64_t n, int64_t *ret_first)
{
    int64_t missing = 0;

    for (int64_t i = first >> q->refblock_bits; i <= (first + n - 1) >> q->refblock_bits; i++) {
        if (!qcow2_refblock_exists(q, i << q->refblock_bits)) {
            if (missing++ == 0) {
                *ret_first = i;
            }
        }
    }
    return missing;
}

/* Blocks that count the clusters [first, first + n), and themselves, placed right behind. */
static int64_t blocks_for(Qcow2 *q, int64_t first, int64_t n)
{
    int64_t blocks = 0, again, unused;

    while ((again = missing_blocks(q, first, n + blocks, &unused)) != blocks) {
        blocks = again;
    }
    return blocks;
}

/* Take blocks away again that were placed behind the clusters; nothing of them was written. */
static void unplace_refblocks(Qcow2 *q, int64_t first, int64_t n, int64_t blocks)
{
    int64_t host = (first + n) << q->header.cluster_bits;
    int64_t bytes = blocks << q->header.cluster_bits;

    g_mutex_lock(&q->table_lock);
    for (int64_t i = first >> q->refblock_bits; i < q->reftable.entries; i++) {
        int64_t block = (int64_t)(q->reftable.entry[i] & QCOW2_REFTABLE_OFFSET_MASK);

        if (block >= host && block < host + bytes) {
            qcow2_table_set(&q->reftable, (uint32_t)i, 0);
        }
    }
    qcow2_cache_drop(q->refcount_cache, host, bytes);
    g_mutex_unlock(&q->table_lock);
}

static int coroutine_fn place_refblocks(Qcow2 *q, int64_t first, int64_t n, int64_t blocks)
{
    int64_t index = first >> q->refblock_bits;
    int64_t at = first + n;
    int ret = 0;

    for (int64_t i = index; at < first + n + blocks && ret == 0; i++) {
        if (!qcow2_refblock_exists(q, i << q->refblock_bits)) {
            ret = place_refblock(q, i, at++);
        }
    }
    if (ret == 0) {
        ret = qcow2_refcount_add(q, first + n, blocks, 1);
    }
    if (ret < 0) {
        unplace_refblocks(q, first, n, blocks);
    }
    return ret;
}

/* --- runs of clusters --- */

static void raise_meta_end(Qcow2 *q, int64_t end_cluster)
{
    q->meta_end = MAX(q->meta_end, end_cluster << q->header.cluster_bits);
}

/* Take clusters that are known to be free and to be counted. */
static int coroutine_fn take(Qcow2 *q, int64_t first, int64_t n, bool *ret_fresh)
{
    int64_t begin = first << q->header.cluster_bits, bytes = n << q->header.cluster_bits;
    int64_t size = node_size(q->node->file->node);
    int ret = qcow2_check_overlap(q, 0, begin, bytes);

    if (ret == 0) {
        ret = qcow2_refcount_add(q, first, n, 1);
    }
    if (ret < 0) {
        return ret;
    }
    *ret_fresh = begin >= q->meta_end && (begin >= size || qcow2_is_zero_ahead(q, begin, bytes));
    raise_meta_end(q, first + n);
    if (first <= q->free_hint) {
        q->free_hint = first + n;
    }
    return 0;
}

/* Take clusters behind which blocks were placed; which go again when that fails. */
static int coroutine_fn take_before(Qcow2 *q, int64_t first, int64_t n, int64_t blocks,
                                    bool *ret_fresh)
{
    int ret = take(q, first, n, ret_fresh);

    if (ret == 0) {
        raise_meta_end(q, first + n + blocks);
    } else if (blocks > 0) {
        qcow2_refcount_add(q, first + n, blocks, -1); /* dirty, so in memory */
        unplace_refblocks(q, first, n, blocks);
    }
    return ret;
}

/* How much of a free run of `n` clusters to take, where blocks may be missing. */
static int64_t fit_into_block(Qcow2 *q, int64_t first, int64_t min, int64_t n)
{
    int64_t missing = 0, left;

    if (missing_blocks(q, first, n, &missing) == 0) {
        return n;
    }
    left = (missing << q->refblock_bits) - first;
    if (left >= min && left > 0) {
        return left; /* up to where the blocks end */
    }
    left = qcow2_refblock_clusters(q) - (first & (qcow2_refblock_clusters(q) - 1)) - 1;
    return CLAMP(left, min, n); /* and the new block fits behind */
}

/* Clusters from here on are not there, nor will be: storage like a block device has a fixed size.
 */
static int64_t storage_end(const Qcow2 *q)
{
    BlockNode *file = q->node->file->node;

    return node_can_grow(file) ? INT64_MAX : node_size(file) >> q->header.cluster_bits;
}

/* Refcounts, or the lack of them, say that the header's cluster is free. */
static int coroutine_fn refuse_header(Qcow2 *q, const char *what)
{
    if (!qcow2_refblock_exists(q, 0)) {
        what = "refcount block";
    }
    if (what) {
        qcow2_mark_corrupt(q, true, -1, -1, "Preventing invalid allocation of %s at offset 0",
                           what);
    } else {
        qcow2_mark_corrupt(q, true, 0, q->cluster_size,
                           "Preventing invalid write on metadata (overlaps with qcow2_header)");
    }
    return -EIO;
}

/* The first cluster of a run of at least `min` and at most `max`, or -errno. `what` it is for, in
 * words; NULL: data. */
static int64_t coroutine_fn take_run(Qcow2 *q, const char *what, int64_t min, int64_t max,
                                     int64_t *ret_n, bool *ret_fresh)
{
    int64_t from = q->free_hint;

    qcow2_event(q, BLKDEBUG_EVENT_CLUSTER_ALLOC);
    for (;;) {
        int64_t first, n, blocks, unused, room;
        int ret = qcow2_find_free(q, from, max, &first, &n);

        if (ret < 0) {
            return ret;
        }
        if (G_UNLIKELY(first == 0)) {
            return refuse_header(q, what);
        }
        if (min == 1 || n < max) {
            q->free_hint = from == q->free_hint ? first : q->free_hint;
        }
        if (n < min) {
            from = first + n;
            continue;
        }
        n = fit_into_block(q, first, min, n);
        blocks = blocks_for(q, first, n);
        if (first + n + blocks > storage_end(q)) {
            max = storage_end(q) - first - blocks;
            if (max < min) {
                return -ENOSPC;
            }
            continue;
        }
        if (blocks > 0) {
            int64_t last = (first + n + blocks - 1) >> q->refblock_bits;

            ret = qcow2_find_free(q, first, n + blocks, &unused, &room);
            if (ret == 0 && room < n + blocks) {
                from = first + room;
                continue;
            }
            if (ret == 0 && last >= q->reftable.entries) {
                ret = grow_reftable(q, last + 1);
                if (ret < 0) {
                    return ret;
                }
                from = q->free_hint;
                continue;
            }
            ret = ret ? ret : place_refblocks(q, first, n, blocks);
        }
        ret = ret ? ret : take_before(q, first, n, blocks, ret_fresh);
        *ret_n = n;
        return ret < 0 ? ret : first;
    }
}

/* --- what others call --- */

int64_t coroutine_fn qcow2_alloc_fresh(Qcow2 *q, const char *what, int64_t bytes, bool *ret_fresh)
{
    int64_t clusters = size_to_clusters(q, bytes);
    int64_t n;
    int64_t first = take_run(q, what, clusters, clusters, &n, ret_fresh);

    return first < 0 ? first : first << q->header.cluster_bits;
}

int64_t coroutine_fn qcow2_alloc(Qcow2 *q, int64_t bytes)
{
    bool fresh;

    return qcow2_alloc_fresh(q, NULL, bytes, &fresh);
}

/* The clusters from `first` on that happen to be free and counted: how many were taken. */
static int64_t coroutine_fn take_at(Qcow2 *q, int64_t first, int64_t max, bool *ret_fresh)
{
    int64_t found, n, missing = 0;

    if (qcow2_find_free(q, first, max, &found, &n) < 0 || found != first) {
        return 0;
    }
    if (missing_blocks(q, first, n, &missing) > 0) {
        n = (missing << q->refblock_bits) - first;
    }
    n = MIN(n, storage_end(q) - first);
    return n > 0 && take(q, first, n, ret_fresh) == 0 ? n : 0;
}

int64_t coroutine_fn qcow2_alloc_data_fresh(Qcow2 *q, int64_t *host, int64_t max_clusters,
                                            bool *ret_fresh)
{
    int64_t first, n;

    if (*host) {
        n = take_at(q, *host >> q->header.cluster_bits, max_clusters, ret_fresh);
        if (n > 0) {
            return n;
        }
    }
    first = take_run(q, NULL, 1, max_clusters, &n, ret_fresh);
    if (first < 0) {
        return first;
    }
    *host = first << q->header.cluster_bits;
    return n;
}

int64_t coroutine_fn qcow2_alloc_data(Qcow2 *q, int64_t *host, int64_t max_clusters)
{
    bool fresh;

    return qcow2_alloc_data_fresh(q, host, max_clusters, &fresh);
}

void coroutine_fn qcow2_unalloc(Qcow2 *q, int64_t host, int64_t bytes)
{
    int64_t first = host >> q->header.cluster_bits;
    int64_t n = ((host + bytes - 1) >> q->header.cluster_bits) - first + 1;
    int ret = qcow2_refcount_add(q, first, n, -1);

    if (ret == 0) {
        qcow2_forget_compressed(q, first, n);
        q->free_hint = MIN(q->free_hint, first);
    } else if (ret != -EINVAL) {
        qcow2_free(q, host, bytes, QCOW2_DISCARD_NEVER); /* another time */
    }
}

/* --- compressed bytes --- */

void qcow2_forget_compressed(Qcow2 *q, int64_t first, int64_t n)
{
    int64_t cluster = q->compressed_hint >> q->header.cluster_bits;

    if (cluster >= first && cluster < first + n) {
        q->compressed_hint = 0;
    }
}

/* Put them behind the last ones, in a cluster that has room and may be shared once more. */
static int64_t coroutine_fn alloc_in_shared(Qcow2 *q, int64_t bytes)
{
    int64_t host = q->compressed_hint;
    int64_t room = q->cluster_size - cluster_offset(q, host);

    if (!host || !cluster_offset(q, host)) {
        return 0;
    }
    if (bytes > room) {
        bool fresh; /* the next cluster as well, if it is free */

        if (take_at(q, (host + room) >> q->header.cluster_bits, 1, &fresh) != 1) {
            return 0;
        }
    }
    if (qcow2_refcount_add(q, host >> q->header.cluster_bits, 1, 1) == 0) {
        return host;
    }
    if (bytes > room) {
        qcow2_unalloc(q, host + room, 1);
    }
    return 0;
}

int64_t coroutine_fn qcow2_alloc_compressed(Qcow2 *q, int64_t bytes)
{
    int64_t host = alloc_in_shared(q, bytes);

    if (host == 0) {
        bool fresh;

        host = qcow2_alloc_fresh(q, "compressed cluster", bytes, &fresh);
    }
    if (host > 0) {
        q->compressed_hint = host + bytes;
    }
    return host;
}
