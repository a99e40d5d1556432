/* SPDX-License-Identifier: MIT */
/*
 * Slices of tables in memory: parts of L2 tables, or of refcount blocks, as they lie in the file.
 *
 * All slices of a cache have the same size and lie at multiples of it. A slice is thrown out only
 * while it is clean and nobody holds it. A cache may become larger than it should be when
 * everything in it is dirty; writeback brings it back.
 *
 * Everything here is under q->table_lock, which the caller holds, unless said otherwise. Pointers
 * to slices are good until the lock is dropped, those to held ones until qcow2_slice_release().
 */
#ifndef MERINO_QCOW2_CACHE_H
#define MERINO_QCOW2_CACHE_H

#include "qcow2.h"

typedef struct Qcow2Slice {
    int64_t offset;                  /* in the file */
    uint8_t *data;                   /* NULL while it is read in */
    uint32_t dirty_begin, dirty_end; /* bytes; equal: clean */
    unsigned holders;
    bool used;               /* since the clock's hand passed */
    bool idle;               /* not used since the last qcow2_cache_clean() */
    guint place;             /* in the cache's array */
    struct Qcow2Slice *next; /* of the same bucket */
} Qcow2Slice;

/* Anywhere before others know of it. */
Qcow2Cache *qcow2_cache_new(Qcow2 *q, int64_t bytes, int64_t slice_bytes);
void qcow2_cache_free(Qcow2Cache *cache); /* NULL ok; nothing is held */
void qcow2_cache_resize(Qcow2Cache *cache, int64_t bytes);
int64_t qcow2_cache_slice_bytes(const Qcow2Cache *cache); /* no lock needed */
int64_t qcow2_cache_bytes(const Qcow2Cache *cache);       /* of all slices that are there */

/* NULL: it is not in memory. */
Qcow2Slice *qcow2_cache_find(Qcow2Cache *cache, int64_t offset);

/* Called without the lock. Reads the slice in when it is not in memory. On success the lock is held
 * and the slice is returned; else -errno, and the lock is not held. */
int coroutine_fn qcow2_cache_lock(Qcow2Cache *cache, int64_t offset, Qcow2Slice **ret);

/* A slice of zeroes, wholly dirty, in place of whatever is there. NULL: no memory. */
Qcow2Slice *qcow2_cache_add_zero(Qcow2Cache *cache, int64_t offset);

void qcow2_slice_set_dirty(Qcow2Cache *cache, Qcow2Slice *slice, uint32_t begin, uint32_t end);
void qcow2_slice_hold(Qcow2Slice *slice);
void qcow2_slice_release(Qcow2Slice *slice);

/* The dirty slices, in no order. The array is the cache's. */
GPtrArray *qcow2_cache_dirty(Qcow2Cache *cache);
/* All of them are clean now; the caller has copied what was dirty and holds them. */
void qcow2_cache_set_clean(Qcow2Cache *cache);
/* More than half of what fits is dirty; everything is. Any thread, without the lock. */
bool qcow2_cache_is_half_dirty(Qcow2Cache *cache);
bool qcow2_cache_is_all_dirty(Qcow2Cache *cache);

/* Forget what is cached of the range, dirty or not: the clusters are no table any more. */
void qcow2_cache_drop(Qcow2Cache *cache, int64_t offset, int64_t bytes);
/* Forget all that is clean; all that was not used since the last call, which returns its bytes. */
void qcow2_cache_drop_clean(Qcow2Cache *cache);
int64_t qcow2_cache_drop_idle(Qcow2Cache *cache);
/* So much was dropped: return it to the system. Without the lock. */
void qcow2_cache_give_back(int64_t bytes);

#endif
