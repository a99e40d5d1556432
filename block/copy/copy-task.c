/* SPDX-License-Identifier: MIT */
/*
 * The copying engine: tasks over a bitmap of pending units.
 *
 * Invariants:
 *
 *  1. A pending unit is copied by at most one task at a time: a task enters the list, under
 *     `lock`, only for units that no other task covers; whoever needs such a unit waits for
 *     that task to leave and looks again.
 *  2. A task clears the bits of its units after their bytes are safe, while it holds their
 *     range exclusively, and before it leaves the list. What a task failed to copy stays pending.
 *  3. So a unit that is seen as not pending was never to be copied, is safe, or was forgotten; and
 *     nobody who saw it as pending under a shared hold is still at work.
 *  4. A task grows only while it waits for its turn, under `lock`, and only by pending units that
 *     no task covers.
 *
 * While a task is at work its source bytes do not change: who would change them waits for it.
 */
#include "copy-internal.h"
#include "util/size.h"

/* As many are at work at a time. More of them wait for their turn, and neighbours among those that
 * wait become one: a slow target gets fewer and larger requests. */
#define MAX_AT_WORK 16

/* The task that comes first among those that overlap the range. Under the lock. */
static CopyTask *first_task(const CopyState *copy, int64_t offset, int64_t end)
{
    CopyTask *first = NULL;

    for (CopyTask *task = copy->tasks; task; task = task->next) {
        if (task->offset < end && offset < task->end && (!first || task->offset < first->offset)) {
            first = task;
        }
    }
    return first;
}

/* Under the lock. */
static void enter_task(CopyState *copy, CopyTask *task)
{
    co_queue_init(&task->waiters);
    task->at_work = false;
    task->previous = NULL;
    task->next = copy->tasks;
    if (copy->tasks) {
        copy->tasks->previous = task;
    }
    copy->tasks = task;
}

/* Under the lock, which is dropped meanwhile. */
static void coroutine_fn await_turn(CopyState *copy, CopyTask *task)
{
    if (copy->at_work < MAX_AT_WORK) {
        copy->at_work++;
    } else {
        co_queue_wait(&copy->turns, &copy->lock); /* who leaves hands its place on */
    }
    task->at_work = true;
}

static void leave_task(CopyState *copy, CopyTask *task)
{
    g_mutex_lock(&copy->lock);
    if (task->previous) {
        task->previous->next = task->next;
    } else {
        copy->tasks = task->next;
    }
    if (task->next) {
        task->next->previous = task->previous;
    }
    if (!co_queue_wake_one(&copy->turns)) {
        copy->at_work--;
    }
    co_queue_wake_all(&task->waiters);
    g_mutex_unlock(&copy->lock);
}

/*
 * Where a task for [offset, limit) may go on to. A guest that writes on where others have written
 * before will want the rest of the cluster as well; one that writes here and there will not. Under
 * the lock.
 */
static int64_t read_on(const CopyState *copy, int64_t offset, int64_t limit)
{
    int64_t before = offset - copy->unit;
    int64_t further = MIN(align_up(limit, copy->cluster), align_up(copy->size, copy->unit));

    if (further <= limit || before < 0 ||
        (bitmap_get(copy->pending, before) && !first_task(copy, before, offset))) {
        return limit;
    }
    return further;
}

/* A task that waits for its turn and now has this range as well; NULL when none has room beside it.
 * Under the lock. */
static CopyTask *join_task(CopyState *copy, int64_t offset, int64_t end)
{
    for (CopyTask *task = copy->tasks; task; task = task->next) {
        if (task->at_work || end - offset + task->end - task->offset > COPY_MAX_CHUNK) {
            continue;
        }
        if (task->end == offset) {
            task->end = end;
            return task;
        }
        if (task->offset == end) {
            task->offset = offset;
            return task;
        }
    }
    return NULL;
}

/* Make a task of the first pending units of the range, waiting for others at work there. False
 * when nothing is pending any more. */
static bool coroutine_fn begin_task(CopyState *copy, int64_t offset, int64_t end, CopyTask *task)
{
    bool found = false;

    g_mutex_lock(&copy->lock);
    while (!found && (offset = copy_next_pending(copy, offset, end)) < end) {
        int64_t limit = MIN(end, offset + MAX(COPY_MAX_CHUNK, copy->unit));
        CopyTask *other;

        limit = read_on(copy, offset, limit);
        other = first_task(copy, offset, limit);
        if (!other || other->offset > offset) {
            task->offset = offset;
            task->end = copy_next_settled(copy, offset, other ? other->offset : limit);
            other = copy->at_work < MAX_AT_WORK ? NULL : join_task(copy, offset, task->end);
            found = !other;
        }
        if (other) {
            co_queue_wait(&other->waiters, &copy->lock);
        }
    }
    if (found) {
        enter_task(copy, task);
        await_turn(copy, task);
    }
    g_mutex_unlock(&copy->lock);
    return found;
}

/* The units that the range touches, as far as the source went at the beginning. */
static void touched_units(const CopyState *copy, int64_t *offset, int64_t *end)
{
    *end = align_up(MIN(*end, copy->size), copy->unit);
    *offset = align_down(*offset, copy->unit);
}

int coroutine_fn copy_range(CopyState *copy, int64_t offset, int64_t bytes)
{
    int64_t end = offset + bytes;
    CopyTask task;
    int ret = 0;

    touched_units(copy, &offset, &end);
    while (ret == 0 && begin_task(copy, offset, end, &task)) {
        ret = copy_task_bytes(copy, &task);
        leave_task(copy, &task);
    }
    return ret;
}

/* Nothing is pending in these whole units any more. The last one of a cluster to leave takes it out
 * of what is shown. */
static void coroutine_fn clear_pending(CopyState *copy, int64_t offset, int64_t end)
{
    RangeHold hold;

    range_lock_exclusive(copy->ranges, &hold, offset, end - offset);
    bitmap_reset_range(copy->pending, offset, end - offset);
    range_unlock(copy->ranges, &hold);
    for (int64_t begin = align_down(offset, copy->cluster); begin < end; begin += copy->cluster) {
        if (!copy_is_pending(copy, begin, copy->cluster)) {
            bitmap_reset_range(copy->shown, begin, copy->cluster);
        }
    }
}

void coroutine_fn copy_settle(CopyState *copy, int64_t offset, int64_t end)
{
    clear_pending(copy, offset, end);
    atomic_fetch_add(&copy->bytes_done, MIN(end, copy->size) - offset);
}

void coroutine_fn copy_forget(CopyState *copy, int64_t offset, int64_t bytes)
{
    int64_t end = offset + bytes >= copy->size ? align_up(copy->size, copy->unit)
                                               : align_down(offset + bytes, copy->unit);
    CopyTask *task;

    offset = align_up(offset, copy->unit);
    if (offset >= end) {
        return;
    }
    g_mutex_lock(&copy->lock);
    while ((task = first_task(copy, offset, end))) {
        co_queue_wait(&task->waiters, &copy->lock);
    }
    g_mutex_unlock(&copy->lock);
    clear_pending(copy, offset, end);
    if (copy->staging) {
        staging_drop(copy->staging, offset / copy->unit, end / copy->unit);
    }
}
