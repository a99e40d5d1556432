/* SPDX-License-Identifier: MIT */
/*
 * Two lists under one short mutex: who holds a range, and who waits, oldest first.
 *
 * A range is given when it conflicts neither with a holder nor with anybody who has waited longer;
 * two ranges conflict when they overlap and one of them is exclusive. So nobody is overtaken by
 * somebody he conflicts with, and nobody waits for somebody he does not conflict with. Both
 * lists are as long as there are requests in flight, which is short enough to walk.
 */
#include "block/range-lock.h"

struct RangeLock {
    GMutex lock; /* guards everything below, and the list members of every RangeHold */
    RangeHold *held;
    RangeHold *first_waiter, *last_waiter;
};

RangeLock *range_lock_new(void)
{
    RangeLock *lock = g_new0(RangeLock, 1);

    g_mutex_init(&lock->lock);
    return lock;
}

void range_lock_free(RangeLock *lock)
{
    if (!lock) {
        return;
    }
    g_assert(!lock->held && !lock->first_waiter);
    g_mutex_clear(&lock->lock);
    g_free(lock);
}

static bool conflicts(const RangeHold *a, const RangeHold *b)
{
    return (a->exclusive || b->exclusive) && a->offset < b->offset + b->bytes &&
           b->offset < a->offset + a->bytes;
}

/* Whether `hold` must wait for a holder, or for a waiter before `end` (NULL: any waiter). */
static bool must_wait(const RangeLock *lock, const RangeHold *hold, const RangeHold *end)
{
    for (const RangeHold *other = lock->held; other; other = other->next) {
        if (conflicts(hold, other)) {
            return true;
        }
    }
    for (const RangeHold *other = lock->first_waiter; other != end; other = other->next) {
        if (conflicts(hold, other)) {
            return true;
        }
    }
    return false;
}

static void add_holder(RangeLock *lock, RangeHold *hold)
{
    hold->waiting = false;
    hold->previous = NULL;
    hold->next = lock->held;
    if (lock->held) {
        lock->held->previous = hold;
    }
    lock->held = hold;
}

static void add_waiter(RangeLock *lock, RangeHold *hold)
{
    hold->waiting = true;
    hold->next = NULL;
    hold->previous = lock->last_waiter;
    if (lock->last_waiter) {
        lock->last_waiter->next = hold;
    } else {
        lock->first_waiter = hold;
    }
    lock->last_waiter = hold;
}

static void remove_from_list(RangeLock *lock, RangeHold *hold)
{
    if (hold->previous) {
        hold->previous->next = hold->next;
    } else if (hold->waiting) {
        lock->first_waiter = hold->next;
    } else {
        lock->held = hold->next;
    }
    if (hold->next) {
        hold->next->previous = hold->previous;
    } else if (hold->waiting) {
        lock->last_waiter = hold->previous;
    }
}

static void coroutine_fn acquire(RangeLock *lock, RangeHold *hold, int64_t offset, int64_t bytes,
                                 bool exclusive)
{
    g_assert(offset >= 0 && bytes > 0 && bytes <= INT64_MAX - offset);
    hold->offset = offset;
    hold->bytes = bytes;
    hold->exclusive = exclusive;
    hold->co = coroutine_self();

    g_mutex_lock(&lock->lock);
    if (!must_wait(lock, hold, NULL)) {
        add_holder(lock, hold);
        g_mutex_unlock(&lock->lock);
        return;
    }
    add_waiter(lock, hold);
    g_mutex_unlock(&lock->lock);
    coroutine_yield(); /* whoever wakes us has made us a holder */
}

void coroutine_fn range_lock_shared(RangeLock *lock, RangeHold *hold, int64_t offset, int64_t bytes)
{
    acquire(lock, hold, offset, bytes, false);
}

void coroutine_fn range_lock_exclusive(RangeLock *lock, RangeHold *hold, int64_t offset,
                                       int64_t bytes)
{
    acquire(lock, hold, offset, bytes, true);
}

void range_unlock(RangeLock *lock, RangeHold *hold)
{
    RangeHold *waiter;

    g_mutex_lock(&lock->lock);
    remove_from_list(lock, hold);
    for (waiter = lock->first_waiter; waiter;) {
        RangeHold *next = waiter->next;

        if (conflicts(waiter, hold) && !must_wait(lock, waiter, waiter)) {
            remove_from_list(lock, waiter);
            add_holder(lock, waiter);
            coroutine_wake(waiter->co);
        }
        waiter = next;
    }
    g_mutex_unlock(&lock->lock);
}
