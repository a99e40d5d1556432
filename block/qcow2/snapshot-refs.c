/* SPDX-License-Identifier: MIT */
/*
 * Walks over all that an L1 table refers to.
 */
#include "snapshot-refs.h"
#include "mapping.h"
#include "snapshot.h"
#include "util/error.h"
#include "util/size.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* --- the walk --- */

/* Called with runs of clusters; a negative result ends the walk. */
typedef int coroutine_fn RefFn(Qcow2 *q, int64_t host, int64_t bytes, void *opaque);

typedef struct Walk {
    Qcow2 *q;
    RefFn *fn;
    void *opaque;
    int64_t host, bytes; /* the run up to now; bytes 0: none */
} Walk;

static int coroutine_fn end_run(Walk *walk)
{
    int64_t bytes = walk->bytes;

    walk->bytes = 0;
    return bytes ? walk->fn(walk->q, walk->host, bytes, walk->opaque) : 0;
}

static int coroutine_fn add_run(Walk *walk, int64_t host, int64_t bytes)
{
    int ret = 0;

    if (walk->bytes && host == walk->host + walk->bytes) {
        walk->bytes += bytes;
        return 0;
    }
    ret = end_run(walk);
    walk->host = host;
    walk->bytes = bytes;
    return ret;
}

static uint64_t entry_at(const uint8_t *table, const Qcow2 *q, int64_t index)
{
    uint64_t entry;

    memcpy(&entry, table + index * q->l2_entry_size, sizeof(entry));
    return GUINT64_FROM_BE(entry);
}

static int coroutine_fn walk_entry(Walk *walk, uint64_t entry)
{
    Qcow2 *q = walk->q;
    int64_t host, bytes;

    if (entry & QCOW2_L2_COMPRESSED) {
        qcow2_compressed_range(q, entry, &host, &bytes);
        bytes = align_up(host + bytes, q->cluster_size) - cluster_start(q, host);
        return add_run(walk, cluster_start(q, host), bytes);
    }
    host = (int64_t)(entry & QCOW2_L2_OFFSET_MASK);
    if (host == 0) {
        return 0;
    }
    return cluster_offset(q, host) ? -EIO : add_run(walk, host, q->cluster_size);
}

static int coroutine_fn walk_table(Walk *walk, int64_t table, uint8_t *buf)
{
    Qcow2 *q = walk->q;
    int ret = cluster_offset(q, table) ? -EIO : qcow2_meta_read(q, table, buf, q->cluster_size);

    for (int64_t i = 0; i < INT64_C(1) << q->l2_bits && ret == 0; i++) {
        ret = walk_entry(walk, entry_at(buf, q, i));
    }
    if (ret == 0) {
        ret = add_run(walk, table, q->cluster_size);
    }
    return ret;
}

static int coroutine_fn walk_refs(Qcow2 *q, const uint64_t *l1, uint32_t entries, RefFn *fn,
                                  void *opaque)
{
    Walk walk = { q, fn, opaque };
    g_autofree uint8_t *buf = g_malloc(q->cluster_size);
    int ret = 0;

    for (uint32_t i = 0; i < entries && ret == 0; i++) {
        int64_t table = (int64_t)(l1[i] & QCOW2_L1_OFFSET_MASK);

        if (table) {
            ret = walk_table(&walk, table, buf);
        }
    }
    return ret < 0 ? ret : end_run(&walk);
}

/* --- what walks are for --- */

uint64_t *coroutine_fn qcow2_l1_read(Qcow2 *q, int64_t offset, uint32_t entries, GError **error)
{
    int64_t bytes = (int64_t)entries * 8;
    g_autofree uint64_t *l1 = NULL;
    int ret;

    if (bytes > QCOW2_MAX_L1_BYTES) {
        merino_error(error, "Snapshot L1 table too large");
        return NULL;
    }
    if (offset < 0 || cluster_offset(q, offset)) {
        merino_error(error, "Snapshot L1 table offset invalid");
        return NULL;
    }
    l1 = g_new0(uint64_t, MAX(entries, 1));
    ret = qcow2_meta_read(q, offset, l1, bytes);
    if (ret < 0) {
        merino_error_errno(error, -ret, "Could not read the L1 table of the snapshot");
        return NULL;
    }
    for (uint32_t i = 0; i < entries; i++) {
        l1[i] = GUINT64_FROM_BE(l1[i]);
    }
    return g_steal_pointer(&l1);
}

static int coroutine_fn check_ref(Qcow2 *q, int64_t host, int64_t bytes, void *opaque)
{
    for (int64_t at = host; at < host + bytes; at += q->cluster_size) {
        uint64_t refcount;
        int ret = qcow2_refcount_get(q, at >> q->header.cluster_bits, &refcount);

        if (ret < 0 || refcount == 0) {
            return ret < 0 ? ret : -EIO;
        }
    }
    return 0;
}

int coroutine_fn qcow2_refs_check(Qcow2 *q, const uint64_t *l1, uint32_t entries, GError **error)
{
    int ret;

    co_mutex_lock(&q->lock);
    ret = walk_refs(q, l1, entries, check_ref, NULL);
    co_mutex_unlock(&q->lock);
    return ret < 0 ? qcow2_snapshot_fail(error, ret, "The tables of the image are damaged") : 0;
}

/* How many runs were counted; or are to be. */
typedef struct Count {
    uint64_t n, limit;
    int delta;
} Count;

static int coroutine_fn count_ref(Qcow2 *q, int64_t host, int64_t bytes, void *opaque)
{
    Count *count = opaque;
    int ret;

    if (count->n == count->limit) {
        return -ECANCELED;
    }
    ret = qcow2_refcount_add(q, host >> q->header.cluster_bits, size_to_clusters(q, bytes),
                             count->delta);
    count->n += ret == 0;
    return ret;
}

int coroutine_fn qcow2_refs_raise(Qcow2 *q, const uint64_t *l1, uint32_t entries, GError **error)
{
    Count up = { 0, UINT64_MAX, 1 };
    int ret;

    co_mutex_lock(&q->lock);
    ret = walk_refs(q, l1, entries, count_ref, &up);
    if (ret < 0) {
        Count down = { 0, up.n, -1 };

        walk_refs(q, l1, entries, count_ref, &down);
    }
    co_mutex_unlock(&q->lock);
    if (ret == -ERANGE) {
        merino_error(error, "Refcounts of %u bits are too narrow for another snapshot",
                     q->refcount_bits);
        return -EINVAL;
    }
    return ret < 0 ? qcow2_snapshot_fail(error, ret, "Could not raise the refcounts of the image")
                   : 0;
}

static int coroutine_fn free_ref(Qcow2 *q, int64_t host, int64_t bytes, void *opaque)
{
    qcow2_free(q, host, bytes, QCOW2_DISCARD_SNAPSHOT);
    return 0;
}

int coroutine_fn qcow2_refs_free(Qcow2 *q, const uint64_t *l1, uint32_t entries, GError **error)
{
    int ret;

    co_mutex_lock(&q->lock);
    ret = walk_refs(q, l1, entries, free_ref, NULL);
    co_mutex_unlock(&q->lock);
    return ret < 0 ? qcow2_snapshot_fail(error, ret, "Could not free what the snapshot refers to")
                   : 0;
}

/* --- the copied flags --- */

static int coroutine_fn wants_flag(Qcow2 *q, bool by_refcount, int64_t host, bool *ret_flag)
{
    uint64_t refcount = 0;
    int ret = by_refcount ? qcow2_refcount_get(q, host >> q->header.cluster_bits, &refcount) : 0;

    *ret_flag = refcount == 1;
    return ret;
}

static int coroutine_fn flag_table(Qcow2 *q, bool by_refcount, int64_t table, uint8_t *buf)
{
    int64_t begin = -1, end = 0;
    int ret = cluster_offset(q, table) ? -EIO : qcow2_meta_read(q, table, buf, q->cluster_size);

    for (int64_t i = 0; i < INT64_C(1) << q->l2_bits && ret == 0; i++) {
        uint64_t entry = entry_at(buf, q, i), changed;
        int64_t host = (int64_t)(entry & QCOW2_L2_OFFSET_MASK);
        bool flag;

        if ((entry & QCOW2_L2_COMPRESSED) || host == 0) {
            continue;
        }
        ret = wants_flag(q, by_refcount, host, &flag);
        changed = (entry & ~QCOW2_COPIED) | (flag ? QCOW2_COPIED : 0);
        if (ret == 0 && changed != entry) {
            int64_t at = i * q->l2_entry_size;

            changed = GUINT64_TO_BE(changed);
            memcpy(buf + at, &changed, sizeof(changed));
            begin = begin < 0 ? at : begin;
            end = at + (int64_t)sizeof(changed);
        }
    }
    if (ret == 0 && begin >= 0) {
        ret = qcow2_meta_write(q, table + begin, buf + begin, end - begin,
                               QCOW2_OVERLAP_ACTIVE_L2 | QCOW2_OVERLAP_INACTIVE_L2);
    }
    return ret;
}

static int coroutine_fn flag_l1(Qcow2 *q, bool by_refcount, uint32_t index, uint8_t *buf)
{
    uint64_t entry = qcow2_table_get(q, &q->l1, index), changed;
    int64_t table = (int64_t)(entry & QCOW2_L1_OFFSET_MASK);
    bool flag;
    int ret;

    if (table == 0) {
        return 0;
    }
    ret = wants_flag(q, by_refcount, table, &flag);
    changed = (entry & ~QCOW2_COPIED) | (flag ? QCOW2_COPIED : 0);
    if (ret == 0 && changed != entry) {
        g_mutex_lock(&q->table_lock);
        qcow2_table_set(&q->l1, index, changed);
        g_mutex_unlock(&q->table_lock);
    }
    return ret < 0 ? ret : flag_table(q, by_refcount, table, buf);
}

int coroutine_fn qcow2_copied_flags_set(Qcow2 *q, bool by_refcount, GError **error)
{
    g_autofree uint8_t *buf = g_malloc(q->cluster_size);
    int ret = 0;

    co_mutex_lock(&q->lock);
    for (uint32_t i = 0; i < q->l1.entries && ret == 0; i++) {
        ret = flag_l1(q, by_refcount, i, buf);
    }
    co_mutex_unlock(&q->lock);
    if (ret == 0) {
        ret = qcow2_sync(q);
    }
    if (ret == 0) {
        ret = qcow2_write_all(q);
    }
    return ret < 0
               ? qcow2_snapshot_fail(error, ret, "Could not update the copied flags of the image")
               : 0;
}
