/* SPDX-License-Identifier: MIT */
/*
 * `word` holds the number of counted writes in flight, and LOCKING in its highest bit while there
 * is any read-modify-write.
 *
 *  1. A write that has counted itself when LOCKING was clear may proceed without a range.
 *  2. A read-modify-write sets LOCKING, waits until the count is 0, then takes its range. So all
 *     writes that can overlap it have a range, or began after LOCKING was cleared again.
 *  3. LOCKING is cleared by the last read-modify-write, after it gave its range back. Writes that
 *     still hold ranges then are shared holders, which do not exclude counted writes.
 */
#include "tracked.h"

#define LOCKING (UINT64_C(1) << 63)

struct RequestTracker {
    _Atomic uint64_t word;
    RangeLock *ranges;

    GMutex lock;       /* guards what follows, and changes of LOCKING */
    unsigned modifies; /* read-modify-writes, waiting or at work */
    CoQueue drained;   /* those that wait for the count to become 0 */
};

RequestTracker *request_tracker_new(void)
{
    RequestTracker *tracker = g_new0(RequestTracker, 1);

    tracker->ranges = range_lock_new();
    g_mutex_init(&tracker->lock);
    co_queue_init(&tracker->drained);
    return tracker;
}

void request_tracker_free(RequestTracker *tracker)
{
    if (!tracker) {
        return;
    }
    g_assert(atomic_load(&tracker->word) == 0 && tracker->modifies == 0);
    range_lock_free(tracker->ranges);
    g_mutex_clear(&tracker->lock);
    g_free(tracker);
}

static void uncount(RequestTracker *tracker)
{
    if (atomic_fetch_sub(&tracker->word, 1) == (LOCKING | 1)) {
        g_mutex_lock(&tracker->lock);
        co_queue_wake_all(&tracker->drained);
        g_mutex_unlock(&tracker->lock);
    }
}

/* Count a write unless ranges are being locked. */
static bool try_count(RequestTracker *tracker)
{
    uint64_t word = atomic_load_explicit(&tracker->word, memory_order_relaxed);

    while (!(word & LOCKING)) {
        if (atomic_compare_exchange_weak(&tracker->word, &word, word + 1)) {
            return true;
        }
    }
    return false;
}

void coroutine_fn tracked_write_begin(RequestTracker *tracker, TrackedWrite *write, int64_t offset,
                                      int64_t bytes)
{
    write->counted = try_count(tracker);
    if (!write->counted) {
        range_lock_shared(tracker->ranges, &write->hold, offset, bytes);
    }
}

void tracked_write_end(RequestTracker *tracker, TrackedWrite *write)
{
    if (write->counted) {
        uncount(tracker);
    } else {
        range_unlock(tracker->ranges, &write->hold);
    }
}

void coroutine_fn tracked_modify_begin(RequestTracker *tracker, RangeHold *hold, int64_t offset,
                                       int64_t bytes)
{
    g_mutex_lock(&tracker->lock);
    if (tracker->modifies++ == 0) {
        atomic_fetch_or(&tracker->word, LOCKING);
    }
    while (atomic_load(&tracker->word) & ~LOCKING) {
        co_queue_wait(&tracker->drained, &tracker->lock);
    }
    g_mutex_unlock(&tracker->lock);
    range_lock_exclusive(tracker->ranges, hold, offset, bytes);
}

void tracked_modify_end(RequestTracker *tracker, RangeHold *hold)
{
    range_unlock(tracker->ranges, hold);
    g_mutex_lock(&tracker->lock);
    if (--tracker->modifies == 0) {
        atomic_fetch_and(&tracker->word, ~LOCKING);
    }
    g_mutex_unlock(&tracker->lock);
}
