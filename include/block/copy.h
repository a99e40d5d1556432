/* SPDX-License-Identifier: MIT */
/*
 * The copying engine: what is to be copied once from a source to a target.
 *
 * A CopyState keeps, per *unit*, whether it is still to be copied. Whoever needs a range copied
 * (a guest's write, a job) calls copy_range(); callers of the same units wait for one another
 * instead of copying twice, neighbours are copied in one request of up to COPY_MAX_CHUNK, zero
 * and unallocated ranges are written as zeroes, or not at all where the target reads so already and
 * stands over no backing file.
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

/* The edges belong to the caller and outlive the state. In the list of the disk below the source's
 * filters, which may come and go, what is to be copied shows as a bitmap without a name; the disk
 * is held for as long. The cluster size is the largest
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

/* The clusters that have something to be copied, for a copy of it. Before any request. */
DirtyBitmap *copy_pending_bitmap(CopyState *copy);

/* Whether any unit that the range touches is still to be copied. Any thread, no lock. */
bool copy_is_pending(CopyState *copy, int64_t offset, int64_t bytes);
/* First pending / not pending byte at or after `offset` and before `end`; `end` if none. */
int64_t copy_next_pending(CopyState *copy, int64_t offset, int64_t end);
int64_t copy_next_settled(CopyState *copy, int64_t offset, int64_t end);

/* Copy what is pending in the units that the range touches; returns when all of it is safe, also
 * by others. -errno of the first failure; what failed stays pending. */
int coroutine_fn copy_range(CopyState *copy, int64_t offset, int64_t bytes);

/* Nobody needs the copies any more: calls of copy_range() return -ECANCELED as soon as they can.
 * Any thread. */
void copy_cancel(CopyState *copy);

/* Forget the whole units inside the range: nobody needs them any more. Waits for those that are
 * being copied, or written from the staging buffer. */
void coroutine_fn copy_forget(CopyState *copy, int64_t offset, int64_t bytes);

/*
 * Staging: from now on what is copied is safe when it is in a buffer of `bytes` in memory; from
 * there it goes to the target in the background, on a thread of its own. When the buffer is full,
 * copy_range() waits for room. When writing to the target fails, `fn` is called, on any thread; it
 * calls copy_cancel(), and sees that nobody uses what was copied any more, for what was staged is
 * dropped. Before any request; fails in words when there is no room for a unit.
 */
typedef void CopyFailedFn(void *opaque, int ret);
bool copy_stage(CopyState *copy, int64_t bytes, CopyFailedFn *fn, void *opaque, GError **error);

/* Wait until nothing is being written in the background; until copy_unpark() nothing will be, and
 * copy_range() copies to the target by itself instead of waiting for room. Nests. Main thread. */
void copy_park(CopyState *copy);
void copy_unpark(CopyState *copy);

/* What is copied is staged or in the target. The first staged byte in [offset, end); `end` if none.
 * What was seen as copied and not staged is in the target. */
int64_t copy_next_staged(CopyState *copy, int64_t offset, int64_t end);
/* How many bytes from `offset` on are staged, and alike: all known to be zero or not. */
int64_t copy_staged(CopyState *copy, int64_t offset, int64_t end, bool *ret_zero);
/* Read as many to vec[at...]; returns how many, 0 when `offset` is not staged. */
int64_t copy_read_staged(CopyState *copy, int64_t offset, int64_t end, IoVector *vec, int64_t at);
int64_t copy_staged_bytes(CopyState *copy);

/* Bytes still to be copied. Control plane. */
int64_t copy_pending_bytes(CopyState *copy);

/* Bytes copied since the beginning. */
int64_t copy_bytes_done(const CopyState *copy);

#endif
