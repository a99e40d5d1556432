/* SPDX-License-Identifier: MIT */
/*
 * Writes of a node whose storage wants whole blocks (request_alignment above 1).
 *
 * A write of a part of a block reads the block, changes the part and writes the block back. No
 * other write of that block may fall in between. So while such a write is at work the ranges
 * of all writes are locked: its own exclusively, those of whole blocks shared. As long as there is
 * none, which is nearly always, writes of whole blocks only count themselves in one
 * atomic word.
 *
 * Nodes with an alignment of 1 do without. A tracker is made with its node and freed with it.
 */
#ifndef MERINO_CORE_TRACKED_H
#define MERINO_CORE_TRACKED_H

#include "block/range-lock.h"

typedef struct RequestTracker RequestTracker;

/* Lies in the frame of the request. */
typedef struct TrackedWrite {
    bool counted; /* in the atomic word; else by `hold` */
    RangeHold hold;
} TrackedWrite;

RequestTracker *request_tracker_new(void);
void request_tracker_free(RequestTracker *tracker); /* no write is in flight; NULL ok */

/* A write, zero-write or discard of whole blocks. */
void coroutine_fn tracked_write_begin(RequestTracker *tracker, TrackedWrite *write, int64_t offset,
                                      int64_t bytes);
void tracked_write_end(RequestTracker *tracker, TrackedWrite *write);

/* A read-modify-write of the whole blocks that the range is rounded outwards to. */
void coroutine_fn tracked_modify_begin(RequestTracker *tracker, RangeHold *hold, int64_t offset,
                                       int64_t bytes);
void tracked_modify_end(RequestTracker *tracker, RangeHold *hold);

#endif
