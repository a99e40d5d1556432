/* SPDX-License-Identifier: MIT */
/*
 * Storing: what changed since the last time goes to the file.
 *
 * A bitmap that is not marked is as it is stored. Of the others, bits that differ from what is
 * known to be stored are written (bitmap-bits.c): over the old ones, which is no harm while the
 * entry in the file is marked, or to new clusters. A bitmap whose bits were never loaded holds what
 * was added; what is stored of it is read and added to.
 *
 * The order (B2, B3, B4): bits are written and new clusters get their refcounts, which are synced;
 * tables are written and synced; then the flags change in place, or a new directory is switched to;
 * then what is no longer referred to is freed.
 */
#include "bitmap-internal.h"
#include "util/error.h"

#include <errno.h>
#include <string.h>

#define ALLOC_BYTES (INT64_C(8) << 20) /* in one piece, at most */

/* One bitmap to be stored. */
typedef struct Job {
    DirtyBitmap *bitmap;
    Qcow2BitmapEntry *old;   /* or NULL */
    Qcow2BitmapEntry *entry; /* as it will be, with its table */
    Qcow2Bits what;
    bool in_place; /* the table stays where it is */
    bool table_changed;
} Job;

typedef struct Store {
    Qcow2 *q;
    GPtrArray *jobs;    /* of Job */
    GPtrArray *entries; /* the directory as it will be */
    bool new_directory;
    Qcow2BitmapFrees frees; /* what the file refers to until the directory is written */
    Qcow2BitmapFrees fresh; /* what nothing in the file refers to yet */
    bool began;             /* bits or tables may have been written */
} Store;

static void job_free(gpointer opaque)
{
    Job *job = opaque;

    if (job->old) {
        qcow2_bitmap_entry_unref(job->old);
    }
    qcow2_bitmap_entry_unref(job->entry);
    g_array_unref(job->what.clusters);
    g_free(job);
}

static void store_init(Store *store, Qcow2 *q)
{
    *store = (Store){ .q = q };
    store->jobs = g_ptr_array_new_with_free_func(job_free);
    store->entries = qcow2_bitmap_entries_new();
    qcow2_bitmap_frees_init(&store->frees);
    qcow2_bitmap_frees_init(&store->fresh);
}

static void store_done(Store *store)
{
    g_ptr_array_unref(store->jobs);
    g_ptr_array_unref(store->entries);
    qcow2_bitmap_frees_done(&store->frees);
    qcow2_bitmap_frees_done(&store->fresh);
}

/* --- what is to be written of one bitmap --- */

static uint64_t bits_of_cluster(const Qcow2 *q)
{
    return (uint64_t)q->cluster_size * 8;
}

static bool coroutine_fn owns(Qcow2 *q, int64_t host)
{
    bool ret;

    co_mutex_lock(&q->lock);
    ret = qcow2_bitmaps_owns(q, host);
    co_mutex_unlock(&q->lock);
    return ret;
}

/* All-ones entries are for whole words: readers may set what lies beyond the last bit in its word.
 */
static HBitmapRangeState state_of(const HBitmap *bits, uint64_t start, uint64_t n)
{
    HBitmapRangeState state = hbitmap_range_state(bits, start, n);

    return state == HBITMAP_SET && n % 64 ? HBITMAP_MIXED : state;
}

/* Cluster `i` of bits is not, or not surely, what is stored. */
static void coroutine_fn plan_cluster(Store *store, Job *job, uint32_t i)
{
    uint64_t *table = job->entry->table;
    uint64_t start = i * bits_of_cluster(store->q);
    uint64_t n = MIN(bits_of_cluster(store->q), hbitmap_size(job->what.bits) - start);
    int64_t host = table[i] & QCOW2_BITMAP_OFFSET_MASK;
    HBitmapRangeState state = state_of(job->what.bits, start, n);
    Qcow2BitsCluster cluster = { .index = i, .source = job->what.adds ? host : 0 };

    if (job->what.adds && (state == HBITMAP_CLEAR || (table[i] & QCOW2_BITMAP_ALL_ONES))) {
        return;
    }
    if (state == HBITMAP_MIXED) {
        cluster.fresh = !host || !owns(store->q, host);
        g_array_append_val(job->what.clusters, cluster);
        job->table_changed |= cluster.fresh;
        return;
    }
    if (host) {
        qcow2_bitmap_frees_add(&store->frees, host, store->q->cluster_size);
    }
    table[i] = state == HBITMAP_SET ? QCOW2_BITMAP_ALL_ONES : 0;
    job->table_changed = true;
}

static void coroutine_fn plan_changes(Store *store, Job *job)
{
    const Qcow2Bits *what = &job->what;
    uint64_t size = hbitmap_size(what->bits), cluster = bits_of_cluster(store->q), pos = 0;

    for (uint32_t next = 0; next < job->entry->table_entries; next++) {
        if (what->adds) {
            pos = hbitmap_next_dirty(what->bits, next * cluster, size);
        } else if (what->known) {
            pos = hbitmap_next_difference(what->bits, what->known, next * cluster, size);
        } else {
            pos = next * cluster;
        }
        if (pos >= size) {
            break;
        }
        next = (uint32_t)(pos / cluster);
        plan_cluster(store, job, next);
    }
}

/* An entry for the directory with a table in memory: the old one's, or one of nothing. An image
 * with a bitmap of no bits is opened by QEMU only if that is in use. */
static Qcow2BitmapEntry *new_entry(const Qcow2 *q, const Job *job)
{
    DirtyBitmap *bitmap = job->bitmap;
    Qcow2BitmapGeometry geometry = qcow2_bitmap_geometry(q);
    Qcow2BitmapEntry *entry =
        qcow2_bitmap_entry_new(bitmap_name(bitmap), bitmap_granularity(bitmap));

    entry->table_entries = (uint32_t)qcow2_bitmap_table_entries(&geometry, entry->granularity_bits);
    entry->table = g_new0(uint64_t, entry->table_entries + 1);
    entry->stored_size = q->header.size;
    entry->flags = bitmap_is_enabled(bitmap) ? QCOW2_BITMAP_AUTO : 0;
    entry->flags |= q->header.size == 0 ? QCOW2_BITMAP_IN_USE : 0;
    if (job->old && job->old->extra_bytes) {
        entry->extra_bytes = job->old->extra_bytes;
        entry->extra = g_memdup2(job->old->extra, entry->extra_bytes);
        entry->flags |= job->old->flags & QCOW2_BITMAP_EXTRA_COMPATIBLE;
    }
    return entry;
}

static void coroutine_fn plan_table(Store *store, Job *job)
{
    Qcow2BitmapEntry *entry = job->entry, *old = job->old;

    job->in_place = old && qcow2_bitmaps_need_table(store->q, old) &&
                    old->table_entries == entry->table_entries &&
                    old->granularity_bits == entry->granularity_bits;
    if (job->in_place) {
        entry->table_offset = old->table_offset;
        memcpy(entry->table, old->table, sizeof(uint64_t) * entry->table_entries);
    } else {
        job->table_changed = store->new_directory = true;
    }
}

/* When the disk has been resized, the file holds bits beyond its end, or all-ones entries that
 * reach further now: the whole bitmap is stored. False when it cannot be stored after all and its
 * entry stays as it is. */
static bool coroutine_fn plan_bitmap(Store *store, DirtyBitmap *bitmap, Qcow2BitmapEntry *old)
{
    Job *job = g_new0(Job, 1);
    bool same_size;

    job->bitmap = bitmap;
    job->old = old ? qcow2_bitmap_entry_ref(old) : NULL;
    job->what.clusters = g_array_new(FALSE, FALSE, sizeof(Qcow2BitsCluster));
    job->entry = new_entry(store->q, job);
    plan_table(store, job);
    same_size = job->in_place && old->stored_size == store->q->header.size;
    if (!same_size && !bitmap_load(bitmap, NULL)) {
        job_free(job);
        return false;
    }
    if (old && !job->in_place) {
        qcow2_bitmap_frees_add_entry(store->q, &store->frees, old);
    }
    job->what.bits = bitmap_bits(bitmap);
    job->what.known = same_size ? bitmap_stored_bits(bitmap) : NULL;
    job->what.adds = bitmap_is_deferred(bitmap);
    job->what.table = job->entry->table;
    plan_changes(store, job);
    g_ptr_array_add(store->jobs, job);
    g_ptr_array_add(store->entries, qcow2_bitmap_entry_ref(job->entry));
    return true;
}

static bool is_as_stored(const DirtyBitmap *bitmap, const Qcow2BitmapEntry *entry)
{
    return !bitmap_is_marked(bitmap) && !(entry->flags & QCOW2_BITMAP_IN_USE) &&
           bitmap_is_enabled(bitmap) == !!(entry->flags & QCOW2_BITMAP_AUTO);
}

static void coroutine_fn plan_entry(Store *store, Qcow2BitmapEntry *entry)
{
    DirtyBitmap *bitmap = bitmap_find(store->q->node->bitmaps, entry->name);

    if (!bitmap || !bitmap_is_persistent(bitmap)) {
        qcow2_bitmap_frees_add_entry(store->q, &store->frees, entry);
        store->new_directory = true;
    } else if (bitmap_is_inconsistent(bitmap) || is_as_stored(bitmap, entry) ||
               !plan_bitmap(store, bitmap, entry)) {
        g_ptr_array_add(store->entries, qcow2_bitmap_entry_ref(entry));
    }
}

static void coroutine_fn plan(Store *store)
{
    Qcow2Bitmaps *b = store->q->bitmaps;
    DirtyBitmap *bitmap = NULL;

    for (guint i = 0; i < b->entries->len; i++) {
        plan_entry(store, g_ptr_array_index(b->entries, i));
    }
    while ((bitmap = bitmap_list_next(store->q->node->bitmaps, bitmap))) {
        if (bitmap_is_persistent(bitmap) && !bitmap_is_inconsistent(bitmap) &&
            !g_hash_table_contains(b->by_name, bitmap_name(bitmap))) {
            plan_bitmap(store, bitmap, NULL);
        }
    }
    store->new_directory |= store->jobs->len > 0 && b->damaged;
}

/* --- clusters --- */

static int64_t coroutine_fn alloc(Store *store, int64_t bytes)
{
    int64_t host;

    co_mutex_lock(&store->q->lock);
    host = qcow2_alloc(store->q, bytes);
    co_mutex_unlock(&store->q->lock);
    if (host >= 0) {
        qcow2_bitmap_frees_add(&store->fresh, host, bytes);
    }
    return host;
}

static int64_t count_fresh(const Store *store)
{
    int64_t n = 0;

    for (guint j = 0; j < store->jobs->len; j++) {
        const Job *job = g_ptr_array_index(store->jobs, j);

        for (guint i = 0; i < job->what.clusters->len; i++) {
            n += g_array_index(job->what.clusters, Qcow2BitsCluster, i).fresh;
        }
    }
    return n;
}

static int coroutine_fn alloc_bits(Store *store)
{
    int64_t cluster = store->q->cluster_size, left = count_fresh(store), host = 0, room = 0;

    for (guint j = 0; j < store->jobs->len; j++) {
        Job *job = g_ptr_array_index(store->jobs, j);

        for (guint i = 0; i < job->what.clusters->len; i++) {
            const Qcow2BitsCluster *bits = &g_array_index(job->what.clusters, Qcow2BitsCluster, i);

            if (!bits->fresh) {
                continue;
            }
            if (!room) {
                room = MIN(left, MAX(ALLOC_BYTES / cluster, 1));
                left -= room;
                host = alloc(store, room * cluster);
            }
            if (host < 0) {
                return (int)host;
            }
            job->entry->table[bits->index] = (uint64_t)host;
            host += cluster;
            room--;
        }
    }
    return 0;
}

static int coroutine_fn alloc_tables(Store *store)
{
    for (guint j = 0; j < store->jobs->len; j++) {
        Job *job = g_ptr_array_index(store->jobs, j);
        int64_t bytes = MAX(INT64_C(8) * job->entry->table_entries, 1);

        if (!job->in_place) {
            int64_t host = alloc(store, size_to_clusters(store->q, bytes) * store->q->cluster_size);

            if (host < 0) {
                return (int)host;
            }
            job->entry->table_offset = host;
        }
    }
    return 0;
}

/* --- writing --- */

static int coroutine_fn write_bits(Store *store)
{
    Qcow2BitsWriter writer = { .q = store->q };

    for (guint j = 0; j < store->jobs->len; j++) {
        qcow2_bits_write(&writer, &((Job *)g_ptr_array_index(store->jobs, j))->what);
    }
    return qcow2_bits_end(&writer);
}

static int coroutine_fn write_table(Store *store, Job *job)
{
    const Qcow2BitmapEntry *entry = job->entry;
    int64_t bytes = INT64_C(8) * entry->table_entries;
    int64_t room =
        job->in_place ? bytes : size_to_clusters(store->q, MAX(bytes, 1)) * store->q->cluster_size;
    g_autofree uint64_t *disk = g_malloc0(MAX(room, 1));

    for (uint32_t i = 0; i < entry->table_entries; i++) {
        disk[i] = GUINT64_TO_BE(entry->table[i]);
    }
    return qcow2_meta_write(store->q, entry->table_offset, disk, room, 0);
}

static int coroutine_fn write_tables(Store *store)
{
    int ret = 0;

    for (guint j = 0; j < store->jobs->len && ret >= 0; j++) {
        Job *job = g_ptr_array_index(store->jobs, j);

        if (job->table_changed) {
            ret = write_table(store, job);
        }
    }
    return ret;
}

/* The flags of what was stored, in the directory that is there. */
static int coroutine_fn change_flags(Store *store)
{
    guint first = store->entries->len, end = 0;
    int ret;

    for (guint i = 0; i < store->entries->len; i++) {
        if (g_ptr_array_index(store->entries, i) !=
            g_ptr_array_index(store->q->bitmaps->entries, i)) {
            first = MIN(first, i);
            end = i + 1;
        }
    }
    if (first >= end) {
        return 0;
    }
    ret = qcow2_bitmaps_write_flags(store->q, store->entries, first, end);
    if (ret < 0) {
        qcow2_bitmaps_be_unsure(store->q);
        return ret;
    }
    qcow2_bitmaps_adopt(store->q->bitmaps, store->entries);
    return 0;
}

/* --- the whole --- */

/* A table that stays in its place must not refer to a cluster before that is there: a cluster
 * beyond the file's end would be a fault (B2). */
static int coroutine_fn write_all(Store *store)
{
    int ret = alloc_bits(store);

    if (ret >= 0) {
        ret = alloc_tables(store);
    }
    if (ret < 0) {
        return ret;
    }
    store->began = true;
    ret = write_bits(store);
    if (ret >= 0 && store->fresh.ranges->len) {
        ret = qcow2_writeback(store->q); /* syncs the bits, too */
    }
    if (ret >= 0) {
        ret = write_tables(store);
    }
    return ret < 0 ? ret : qcow2_sync(store->q);
}

/* What was allocated is free again if no table refers to it; else it leaks. What is in the
 * clusters that were written over is not known. */
static void coroutine_fn give_up(Store *store)
{
    if (!store->began) {
        qcow2_bitmap_frees_run(store->q, &store->fresh);
        return;
    }
    store->q->bitmaps->bits_unsure = true;
    for (guint j = 0; j < store->jobs->len; j++) {
        Job *job = g_ptr_array_index(store->jobs, j);

        bitmap_forget_stored(job->bitmap);
        if (job->old) {
            g_clear_pointer(&job->old->table, g_free);
        }
    }
}

static int coroutine_fn store_planned(Store *store, GError **error)
{
    int ret = write_all(store);

    if (ret < 0) {
        merino_error_errno(error, -ret, "Cannot write the bitmaps of '%s'",
                           store->q->node->node_name);
    } else if (store->new_directory) {
        ret = qcow2_bitmaps_switch_directory(store->q, store->entries, &store->frees, error);
    } else {
        ret = change_flags(store);
        if (ret < 0) {
            merino_error_errno(error, -ret, "Cannot write the bitmap directory");
        }
    }
    if (ret < 0) {
        bitmap_list_forget_marks(store->q->node->bitmaps);
        give_up(store);
        return ret;
    }
    for (guint j = 0; j < store->jobs->len; j++) {
        bitmap_set_stored(((Job *)g_ptr_array_index(store->jobs, j))->bitmap);
    }
    qcow2_bitmap_frees_run(store->q, &store->frees); /* a failure leaks */
    return 0;
}

int coroutine_fn qcow2_bitmaps_co_store(Qcow2 *q, GError **error)
{
    Store store;
    int ret = 0;

    store_init(&store, q);
    plan(&store);
    if (store.jobs->len || store.new_directory) {
        ret = store_planned(&store, error);
    }
    store_done(&store);
    return ret;
}
