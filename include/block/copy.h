/* SPDX-License-Identifier: MIT */
/*
 * The copying engine: what is to be copied once from a source to a target.
 *
 * A CopyState keeps, per *unit*, whether it is still to be copied. Whoever needs a range copied
 * (a guest's write, a job) calls copy_range(); callers of the same units wait for one another
 * instead of copying twice, neighbours are copied in one request of up to COPY_MAX_CHUNK, zero
 * and unallocated ranges are written as zeroes, or not at all where the target reads so already.
 *
 * A unit is a cluster of the target, or `min_cluster` bytes; where neither is said it is
 * COPY_MIN_UNIT bytes, and then a caller that goes on where others have copied gets the rest of
 * its *cluster* as well. Clusters are at least COPY_DEFAULT_CLUSTER bytes, and are what a view is
 * made of.
 *
 * The order that keeps views true: a unit's bit is cleared only while its range is held
 * exclusively in `ranges`, after its old bytes are safe. Readers of the frozen view hold
 * the range shared from before they look at the bit until they have read. The range is held
 * exclusively only for the moment of clearing, not while the bytes are copied: reading the source
 * and copying it do not disturb each other.
 */
#ifndef MERINO_BLOCK_COPY_H
#define MERINO_BLOCK_COPY_H

#include "block/io.h"
#include "block/range-lock.h"

#define COPY_DEFAULT_CLUSTER 65536
#define COPY_MIN_UNIT        4096
#define COPY_MAX_CLUSTER     (INT64_C(64) << 20)
#define COPY_MAX_CHUNK       (INT64_C(1) << 20)

typedef struct CopyState CopyState;

/* The edges belong to the caller and outlive the state, and so does the source's list of bitmaps,
 * in which what is to be copied shows as a bitmap without a name. The cluster size is the largest
 * of `min_cluster`, the target's cluster size and COPY_DEFAULT_CLUSTER; fails in words when it
 * is not a power of two or too large. Everything starts as to be copied. Bytes beyond the size
 * that the source has now are never copied. */
CopyState *copy_new(BlockChild *source, BlockChild *target, int64_t min_cluster, GError **error);
void copy_free(CopyState *copy); /* no request is in flight; NULL ok */

int64_t copy_cluster_size(const CopyState *copy);
int64_t copy_unit(const CopyState *copy);
RangeLock *copy_ranges(CopyState *copy);

/* Restrict to what is dirty in `bitmap` now (cluster-wise, outward). Before any request, on the
 * control plane. */
bool copy_restrict(CopyState *copy, DirtyBitmap *bitmap, GError **error);

/* What is to be copied now, for a copy of it. Before any request. */
DirtyBitmap *copy_pending_bitmap(CopyState *copy);

/* Whether any unit that the range touches is still to be copied. Any thread, no lock. */
bool copy_is_pending(CopyState *copy, int64_t offset, int64_t bytes);
/* First pending / not pending byte at or after `offset` and before `end`; `end` if none. */
int64_t copy_next_pending(CopyState *copy, int64_t offset, int64_t end);
int64_t copy_next_settled(CopyState *copy, int64_t offset, int64_t end);

/* Copy what is pending in the units that the range touches; returns when all of it is in the
 * target, also by others. -errno of the first failure; what failed stays pending. */
int coroutine_fn copy_range(CopyState *copy, int64_t offset, int64_t bytes);

/* Nobody needs the copies any more: calls of copy_range() return -ECANCELED as soon as they can.
 * Any thread. */
void copy_cancel(CopyState *copy);

/* Forget the whole units inside the range: nobody needs them any more. Waits for those that are
 * being copied. */
void coroutine_fn copy_forget(CopyState *copy, int64_t offset, int64_t bytes);

/* Bytes copied since the beginning. */
int64_t copy_bytes_done(const CopyState *copy);

#endif
