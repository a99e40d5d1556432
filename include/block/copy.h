/* SPDX-License-Identifier: MIT */
/*
 * The copying engine: clusters that are to be copied once from a source to a target.
 *
 * A CopyState keeps, per cluster, whether it is still to be copied. Whoever needs a range copied
 * (a guest's write, a job) calls copy_range(); callers of the same clusters wait for one
 * another instead of copying twice, neighbours are copied in one request of up to
 * COPY_MAX_CHUNK, zero and unallocated ranges are written as zeroes.
 *
 * The order that keeps views true: a cluster's bit is cleared only while its range is held
 * exclusively in `ranges`, after its old bytes are in the target. Readers of the frozen view hold
 * the range shared from before they look at the bit until they have read.
 */
#ifndef MERINO_BLOCK_COPY_H
#define MERINO_BLOCK_COPY_H

#include "block/io.h"
#include "block/range-lock.h"

#define COPY_DEFAULT_CLUSTER 65536
#define COPY_MAX_CHUNK       (INT64_C(1) << 20)

typedef struct CopyState CopyState;

/* The edges belong to the caller and outlive the state. `min_cluster` 0: the default. The cluster
 * size is the largest of it, the target's cluster size and COPY_DEFAULT_CLUSTER's rule; fails in
 * words when it is not a power of two or too large. All clusters start as to be copied. */
CopyState *copy_new(BlockChild *source, BlockChild *target, int64_t min_cluster, GError **error);
void copy_free(CopyState *copy);

int64_t copy_cluster_size(const CopyState *copy);
RangeLock *copy_ranges(CopyState *copy);

/* Restrict to what is dirty in `bitmap` (cluster-wise, outward). Before any request. */
void copy_restrict(CopyState *copy, DirtyBitmap *bitmap);

/* Whether any cluster of the range is still to be copied. Any thread, no lock. */
bool copy_is_pending(CopyState *copy, int64_t offset, int64_t bytes);
/* First pending / not pending byte at or after `offset` and before `end`; `end` if none. */
int64_t copy_next_pending(CopyState *copy, int64_t offset, int64_t end);
int64_t copy_next_settled(CopyState *copy, int64_t offset, int64_t end);

/* Copy what is pending in the clusters that the range touches; returns when all of it is in the
 * target, also by others. -errno of the first failure; what failed stays pending. */
int coroutine_fn copy_range(CopyState *copy, int64_t offset, int64_t bytes);

/* Forget the whole clusters inside the range: nobody needs them any more. Holds them exclusively.
 */
void coroutine_fn copy_forget(CopyState *copy, int64_t offset, int64_t bytes);

/* Bytes copied since the beginning. */
int64_t copy_bytes_done(const CopyState *copy);

#endif
