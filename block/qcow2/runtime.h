/* SPDX-License-Identifier: MIT */
/*
 * What the files of the driver's runtime share among themselves, beyond qcow2.h.
 */
#ifndef MERINO_QCOW2_RUNTIME_H
#define MERINO_QCOW2_RUNTIME_H

#include "cache.h"
#include "qcow2.h"

/* Tables mark what changes in pieces of this many bytes. */
#define TABLE_PIECE         512
#define TABLE_PIECE_ENTRIES (TABLE_PIECE / 8)

/* Host offsets of clusters end here: what an L2 entry can hold. */
#define QCOW2_HOST_END (INT64_C(1) << 56)

/* Tests may make requests fail or wait right here. Without locks but `lock`. */
static inline void coroutine_fn qcow2_event(Qcow2 *q, BlkdebugEvent event)
{
    node_debug_event(q->node->file->node, event);
}

/* --- tables.c --- */

/* Change an entry. Under lock and table_lock. */
void qcow2_table_set(Qcow2Table *table, uint32_t index, uint64_t value);
/* Change all sizes of `table` to `entries`, the new ones 0. Under lock; takes table_lock. */
void qcow2_table_grow(Qcow2 *q, Qcow2Table *table, uint32_t entries);
static inline uint64_t qcow2_table_get(Qcow2 *q, const Qcow2Table *table, uint32_t index)
{
    uint64_t value;

    g_mutex_lock(&q->table_lock);
    value = table->entry[index];
    g_mutex_unlock(&q->table_lock);
    return value;
}

/* --- alloc.c --- */

/* Like qcow2_alloc() and qcow2_alloc_data(); and tell whether the place was never written to.
 * `what` it is for, in words, for the case that the image is damaged; or NULL. */
int64_t coroutine_fn qcow2_alloc_fresh(Qcow2 *q, const char *what, int64_t bytes, bool *ret_fresh);
int64_t coroutine_fn qcow2_alloc_data_fresh(Qcow2 *q, int64_t *host, int64_t max_clusters,
                                            bool *ret_fresh);
/* How many entries a refcount table should have when at least `need` are used: in whole clusters,
 * with a reserve that also counts the table itself in a new place. */
uint32_t qcow2_reftable_room(const Qcow2 *q, int64_t need);
/* Let the refcount table have so many entries, which hold all that are not 0, in another place.
 * Under `lock`. */
int coroutine_fn qcow2_move_reftable(Qcow2 *q, uint32_t entries);
/* Give back what was allocated and never referred to. Under `lock`. */
void coroutine_fn qcow2_unalloc(Qcow2 *q, int64_t host, int64_t bytes);
/* No compressed bytes may join those in these clusters, which may be another's from now on. Under
 * `lock`. */
void qcow2_forget_compressed(Qcow2 *q, int64_t first, int64_t n);

/* --- ahead.c --- */

/* So much is about to be allocated: see that the file has room, if it is one that should be grown
 * ahead. Not to succeed is no failure. Under `lock`. */
void coroutine_fn qcow2_grow_ahead(Qcow2 *q, int64_t bytes);
/* Whether the range, which was never allocated, was grown ahead, so it reads as zeroes. Under
 * `lock`. */
bool qcow2_is_zero_ahead(const Qcow2 *q, int64_t host, int64_t bytes);
/* Give back what was not used. Drained. */
void coroutine_fn qcow2_cut_ahead(Qcow2 *q);

/* --- free.c --- */

Qcow2Freed *qcow2_freed_new(void);
void qcow2_freed_free(Qcow2Freed *freed);

/* Around every request that uses host offsets without holding `lock`. */
unsigned qcow2_request_begin(Qcow2 *q);
void qcow2_request_end(Qcow2 *q, unsigned epoch);

/* For the writeback, under `lock`: note what was freed up to now; it was written out; that
 * failed. */
void qcow2_frees_collect(Qcow2 *q);
void coroutine_fn qcow2_frees_apply(Qcow2 *q);
void qcow2_frees_restore(Qcow2 *q);
/* There was no space: whether something that was freed may have made room now. */
bool coroutine_fn qcow2_frees_make_room(Qcow2 *q);
/* So much was freed that a writeback is worth while. Any thread. */
bool qcow2_frees_are_many(Qcow2 *q);

/* --- refcount.c, under `lock` --- */

/* Whether a block counts the cluster. */
bool qcow2_refblock_exists(Qcow2 *q, int64_t cluster);
/* Clusters that one block counts. */
static inline int64_t qcow2_refblock_clusters(const Qcow2 *q)
{
    return INT64_C(1) << q->refblock_bits;
}

/* The first run of free clusters at or after `from`: its first cluster, and its length up to
 * `max`. What no block counts is free. */
int coroutine_fn qcow2_find_free(Qcow2 *q, int64_t from, int64_t max, int64_t *ret_first,
                                 int64_t *ret_n);

/* --- writeback.c --- */

Qcow2Writer *qcow2_writer_new(void);
void qcow2_writer_free(Qcow2Writer *writer);
/* After a request that changed metadata: write back when too much is dirty. */
int coroutine_fn qcow2_balance(Qcow2 *q);

/* --- overlap.c --- */

Qcow2Overlap *qcow2_overlap_new(void);
void qcow2_overlap_free(Qcow2Overlap *overlap);
/* Whether guest data may be written there, as far as one look can tell. Under table_lock. */
bool qcow2_overlap_is_data(Qcow2 *q, int64_t host, int64_t bytes);

#endif
