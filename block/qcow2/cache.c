/* SPDX-License-Identifier: MIT */
/*
 * Slices lie in an array, for the clock that finds a victim, and in a hash table by offset. Those
 * that are dirty are also in a list of their own, so that writeback need not look at the others.
 */
#include "cache.h"
#include "block/io.h"

#include <errno.h>
#include <malloc.h>
#include <string.h>

#define MIN_BUCKETS       64
#define WORTH_GIVING_BACK (1024 * 1024)

struct Qcow2Cache {
    Qcow2 *q;
    int64_t slice_bytes;
    unsigned slice_bits;
    guint max; /* slices that should be there at most */

    GPtrArray *slices;
    GPtrArray *dirty;
    Qcow2Slice **bucket;
    guint n_buckets; /* a power of two */
    guint hand;
    CoQueue loaded; /* those that wait for a slice which another reads in */
    atomic_uint n_dirty;
    atomic_uint n_max; /* `max`, for those without the lock */
};

static void set_max(Qcow2Cache *cache, int64_t bytes)
{
    cache->max = CLAMP(bytes >> cache->slice_bits, 2, G_MAXINT);
    atomic_store(&cache->n_max, cache->max);
}

Qcow2Cache *qcow2_cache_new(Qcow2 *q, int64_t bytes, int64_t slice_bytes)
{
    Qcow2Cache *cache = g_new0(Qcow2Cache, 1);

    cache->q = q;
    cache->slice_bytes = slice_bytes;
    cache->slice_bits = __builtin_ctzll(slice_bytes);
    cache->slices = g_ptr_array_new();
    cache->dirty = g_ptr_array_new();
    cache->n_buckets = MIN_BUCKETS;
    cache->bucket = g_new0(Qcow2Slice *, cache->n_buckets);
    co_queue_init(&cache->loaded);
    set_max(cache, bytes);
    return cache;
}

static void slice_free(Qcow2Slice *slice)
{
    buffer_free(slice->data);
    g_free(slice);
}

/* Memory of many small pieces stays with the process unless it is told to let go. */
void qcow2_cache_give_back(int64_t bytes)
{
    if (bytes >= WORTH_GIVING_BACK) {
        malloc_trim(0);
    }
}

void qcow2_cache_free(Qcow2Cache *cache)
{
    int64_t bytes;

    if (!cache) {
        return;
    }
    bytes = qcow2_cache_bytes(cache);
    for (guint i = 0; i < cache->slices->len; i++) {
        slice_free(g_ptr_array_index(cache->slices, i));
    }
    g_ptr_array_free(cache->slices, TRUE);
    g_ptr_array_free(cache->dirty, TRUE);
    g_free(cache->bucket);
    g_free(cache);
    qcow2_cache_give_back(bytes);
}

int64_t qcow2_cache_slice_bytes(const Qcow2Cache *cache)
{
    return cache->slice_bytes;
}

int64_t qcow2_cache_bytes(const Qcow2Cache *cache)
{
    return (int64_t)cache->slices->len << cache->slice_bits;
}

/* --- the hash table --- */

static Qcow2Slice **bucket_of(Qcow2Cache *cache, int64_t offset)
{
    uint64_t key = (uint64_t)offset >> cache->slice_bits;

    return &cache->bucket[(key * 0x9e3779b97f4a7c15ull >> 32) & (cache->n_buckets - 1)];
}

static void grow_buckets(Qcow2Cache *cache)
{
    if (cache->slices->len < cache->n_buckets) {
        return;
    }
    g_free(cache->bucket);
    cache->n_buckets *= 4;
    cache->bucket = g_new0(Qcow2Slice *, cache->n_buckets);
    for (guint i = 0; i < cache->slices->len; i++) {
        Qcow2Slice *slice = g_ptr_array_index(cache->slices, i);
        Qcow2Slice **bucket = bucket_of(cache, slice->offset);

        slice->next = *bucket;
        *bucket = slice;
    }
}

static Qcow2Slice *look_up(Qcow2Cache *cache, int64_t offset)
{
    Qcow2Slice *slice = *bucket_of(cache, offset);

    while (slice && slice->offset != offset) {
        slice = slice->next;
    }
    return slice;
}

Qcow2Slice *qcow2_cache_find(Qcow2Cache *cache, int64_t offset)
{
    Qcow2Slice *slice = look_up(cache, offset);

    if (!slice || !slice->data) {
        return NULL;
    }
    slice->used = true;
    slice->idle = false;
    return slice;
}

static bool is_dirty(const Qcow2Slice *slice)
{
    return slice->dirty_end > slice->dirty_begin;
}

static bool is_in_use(const Qcow2Slice *slice)
{
    return slice->holders || !slice->data || is_dirty(slice);
}

static void remove_slice(Qcow2Cache *cache, Qcow2Slice *slice)
{
    Qcow2Slice **link = bucket_of(cache, slice->offset);
    Qcow2Slice *last = g_ptr_array_index(cache->slices, cache->slices->len - 1);

    while (*link != slice) {
        link = &(*link)->next;
    }
    *link = slice->next;
    last->place = slice->place;
    g_ptr_array_index(cache->slices, slice->place) = last;
    g_ptr_array_set_size(cache->slices, cache->slices->len - 1);
    slice_free(slice);
}

/* Make room for one more; nothing happens when all are in use. */
static void evict(Qcow2Cache *cache)
{
    for (guint n = cache->slices->len * 2; n > 0 && cache->slices->len >= cache->max; n--) {
        Qcow2Slice *slice;

        cache->hand = cache->hand + 1 < cache->slices->len ? cache->hand + 1 : 0;
        slice = g_ptr_array_index(cache->slices, cache->hand);
        if (is_in_use(slice)) {
            continue;
        }
        if (slice->used) {
            slice->used = false;
            continue;
        }
        remove_slice(cache, slice);
    }
}

static Qcow2Slice *add_slice(Qcow2Cache *cache, int64_t offset, uint8_t *data)
{
    Qcow2Slice *slice = g_new0(Qcow2Slice, 1);
    Qcow2Slice **bucket;

    if (cache->slices->len >= cache->max && atomic_load(&cache->n_dirty) < cache->slices->len) {
        evict(cache);
    }
    grow_buckets(cache);
    bucket = bucket_of(cache, offset);
    slice->offset = offset;
    slice->data = data;
    slice->used = true;
    slice->place = cache->slices->len;
    slice->next = *bucket;
    *bucket = slice;
    g_ptr_array_add(cache->slices, slice);
    return slice;
}

void qcow2_cache_resize(Qcow2Cache *cache, int64_t bytes)
{
    set_max(cache, bytes);
    evict(cache);
}

/* --- reading in --- */

/* Called with the lock held, returns without it. Whoever else wants the slice waits meanwhile. */
static int coroutine_fn load(Qcow2Cache *cache, int64_t offset)
{
    Qcow2 *q = cache->q;
    uint8_t *data = node_try_buffer(q->node->file->node, cache->slice_bytes);
    Qcow2Slice *slice;
    int ret;

    add_slice(cache, offset, NULL);
    g_mutex_unlock(&q->table_lock);
    node_debug_event(q->node->file->node,
                     cache == q->l2_cache ? BLKDEBUG_EVENT_L2_LOAD : BLKDEBUG_EVENT_REFBLOCK_LOAD);
    ret = data ? child_co_pread(q->node->file, offset, cache->slice_bytes, data) : -ENOMEM;
    g_mutex_lock(&q->table_lock);
    slice = look_up(cache, offset);
    if (slice && !slice->data && ret == 0) {
        slice->data = data;
        data = NULL;
    } else if (slice && !slice->data) {
        remove_slice(cache, slice);
    }
    co_queue_wake_all(&cache->loaded);
    g_mutex_unlock(&q->table_lock);
    buffer_free(data);
    return ret;
}

int coroutine_fn qcow2_cache_lock(Qcow2Cache *cache, int64_t offset, Qcow2Slice **ret)
{
    GMutex *lock = &cache->q->table_lock;
    int error;

    g_mutex_lock(lock);
    for (;;) {
        Qcow2Slice *slice = qcow2_cache_find(cache, offset);

        if (slice) {
            *ret = slice;
            return 0;
        }
        if (look_up(cache, offset)) {
            co_queue_wait(&cache->loaded, lock);
            continue;
        }
        error = load(cache, offset);
        if (error < 0) {
            return error;
        }
        g_mutex_lock(lock);
    }
}

Qcow2Slice *qcow2_cache_add_zero(Qcow2Cache *cache, int64_t offset)
{
    Qcow2Slice *slice = look_up(cache, offset);
    uint8_t *data = NULL;

    if (!slice || !slice->data) {
        data = node_try_buffer(cache->q->node->file->node, cache->slice_bytes);
        if (!data) {
            return NULL;
        }
    }
    if (!slice) {
        slice = add_slice(cache, offset, data);
    } else if (!slice->data) {
        slice->data = data; /* what is being read is too old */
    }
    memset(slice->data, 0, cache->slice_bytes);
    slice->used = true;
    qcow2_slice_set_dirty(cache, slice, 0, cache->slice_bytes);
    return slice;
}

/* --- what is to be written --- */

void qcow2_slice_set_dirty(Qcow2Cache *cache, Qcow2Slice *slice, uint32_t begin, uint32_t end)
{
    if (is_dirty(slice)) {
        slice->dirty_begin = MIN(slice->dirty_begin, begin);
        slice->dirty_end = MAX(slice->dirty_end, end);
        return;
    }
    slice->dirty_begin = begin;
    slice->dirty_end = end;
    g_ptr_array_add(cache->dirty, slice);
    atomic_store(&cache->n_dirty, cache->dirty->len);
}

void qcow2_slice_hold(Qcow2Slice *slice)
{
    slice->holders++;
}

void qcow2_slice_release(Qcow2Slice *slice)
{
    g_assert(slice->holders > 0);
    slice->holders--;
}

GPtrArray *qcow2_cache_dirty(Qcow2Cache *cache)
{
    return cache->dirty;
}

void qcow2_cache_set_clean(Qcow2Cache *cache)
{
    for (guint i = 0; i < cache->dirty->len; i++) {
        Qcow2Slice *slice = g_ptr_array_index(cache->dirty, i);

        slice->dirty_begin = slice->dirty_end = 0;
    }
    g_ptr_array_set_size(cache->dirty, 0);
    atomic_store(&cache->n_dirty, 0);
}

bool qcow2_cache_is_half_dirty(Qcow2Cache *cache)
{
    return atomic_load(&cache->n_dirty) > atomic_load(&cache->n_max) / 2;
}

bool qcow2_cache_is_all_dirty(Qcow2Cache *cache)
{
    return atomic_load(&cache->n_dirty) >= atomic_load(&cache->n_max);
}

/* --- forgetting --- */

static void drop(Qcow2Cache *cache, Qcow2Slice *slice)
{
    g_assert(slice->holders == 0);
    if (is_dirty(slice)) {
        g_ptr_array_remove_fast(cache->dirty, slice);
        atomic_store(&cache->n_dirty, cache->dirty->len);
    }
    remove_slice(cache, slice);
}

void qcow2_cache_drop(Qcow2Cache *cache, int64_t offset, int64_t bytes)
{
    if (bytes >> cache->slice_bits > cache->slices->len) {
        for (guint i = cache->slices->len; i-- > 0;) {
            Qcow2Slice *slice = g_ptr_array_index(cache->slices, i);

            if (slice->data && slice->offset >= offset && slice->offset < offset + bytes) {
                drop(cache, slice);
            }
        }
        return;
    }
    for (int64_t at = offset; at < offset + bytes; at += cache->slice_bytes) {
        Qcow2Slice *slice = look_up(cache, at);

        if (slice && slice->data) {
            drop(cache, slice);
        }
    }
}

void qcow2_cache_drop_clean(Qcow2Cache *cache)
{
    for (guint i = cache->slices->len; i-- > 0;) {
        Qcow2Slice *slice = g_ptr_array_index(cache->slices, i);

        if (!is_in_use(slice)) {
            remove_slice(cache, slice);
        }
    }
}

int64_t qcow2_cache_drop_idle(Qcow2Cache *cache)
{
    guint before = cache->slices->len;

    for (guint i = cache->slices->len; i-- > 0;) {
        Qcow2Slice *slice = g_ptr_array_index(cache->slices, i);

        if (slice->idle && !is_in_use(slice)) {
            remove_slice(cache, slice);
        } else {
            slice->idle = true;
        }
    }
    return (int64_t)(before - cache->slices->len) << cache->slice_bits;
}
