/* SPDX-License-Identifier: MIT */
/*
 * Range locks: which byte ranges of a disk somebody is at work on.
 *
 * Shared holders of overlapping ranges go together; an exclusive holder overlaps nobody. Waiters
 * are served so that an exclusive waiter is not overtaken for ever by shared ones. Coroutines
 * of any loop; the inner lock is held for short. A RangeHold lies in the caller's frame while the
 * range is held.
 */
#ifndef MERINO_BLOCK_RANGE_LOCK_H
#define MERINO_BLOCK_RANGE_LOCK_H

#include "util/coroutine.h"

typedef struct RangeLock RangeLock;

typedef struct RangeHold {
    int64_t offset;
    int64_t bytes;
    bool exclusive;
    bool waiting;
    Coroutine *co;
    struct RangeHold *next, *previous;
} RangeHold;

RangeLock *range_lock_new(void);
void range_lock_free(RangeLock *lock); /* nobody holds or waits; NULL ok */

void coroutine_fn range_lock_shared(RangeLock *lock, RangeHold *hold, int64_t offset,
                                    int64_t bytes);
void coroutine_fn range_lock_exclusive(RangeLock *lock, RangeHold *hold, int64_t offset,
                                       int64_t bytes);
void range_unlock(RangeLock *lock, RangeHold *hold);

#endif
