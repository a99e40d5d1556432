/* SPDX-License-Identifier: MIT */
/*
 * What happens before the guest changes something: copying with and without a time limit, breaking
 * the view where it cannot be kept, and drain.
 */
#include "cbw.h"
#include "qapi/qapi-events.h"
#include "util/event-loop.h"

#include <errno.h>
#include <inttypes.h>

/* --- breaking the view --- */

typedef struct BrokenEvent {
    char *node_name;
    char *reason;
} BrokenEvent;

static void send_event(void *opaque)
{
    BrokenEvent *event = opaque;

    qapi_event_send_block_view_broken(event->node_name, event->reason);
    g_free(event->node_name);
    g_free(event->reason);
    g_free(event);
}

/* The view is lost: from here on readers fail, and copies end. Any thread. */
static void mark_broken(BlockNode *node, const char *what, int ret)
{
    CbwState *cbw = node->state;
    BrokenEvent *event;
    char *why;

    if (atomic_exchange(&cbw->broken, true)) {
        return;
    }
    copy_cancel(cbw->copy);
    why = ret == -ETIMEDOUT ? g_strdup_printf("%s took longer than %" PRId64 " s", what,
                                              cbw->timeout_ns / NANOSECONDS)
                            : g_strdup_printf("%s failed: %s", what, g_strerror(-ret));
    atomic_store(&cbw->why, why);
    event = g_new(BrokenEvent, 1);
    *event = (BrokenEvent){ g_strdup(node->node_name), g_strdup(why) };
    event_loop_call(event_loop_main(), send_event, event);
}

/* The writes that these bytes were saved for were acknowledged long ago. */
void cbw_staging_failed(void *opaque, int ret)
{
    mark_broken(opaque, "Writing staged bytes", ret);
}

ImageInfoSpecific *cbw_specific_info(BlockNode *node, GError **error)
{
    CbwState *cbw = node->state;
    ImageInfoSpecific *info = g_new0(ImageInfoSpecific, 1);
    ImageInfoSpecificCbw *data = g_new0(ImageInfoSpecificCbw, 1);
    const char *why = atomic_load(&cbw->why);

    data->copied_bytes = copy_bytes_done(cbw->copy);
    data->pending_bytes = copy_pending_bytes(cbw->copy);
    data->staged_bytes = copy_staged_bytes(cbw->copy);
    data->broken = why != NULL;
    data->reason = g_strdup(why);
    info->type = IMAGE_INFO_SPECIFIC_KIND_COPY_BEFORE_WRITE;
    info->u.copy_before_write.data = data;
    return info;
}

/* Break the view unless it is, and wait until readers that may not know are off the disk. */
static void coroutine_fn break_view(BlockNode *node, int ret)
{
    CbwState *cbw = node->state;
    RangeHold hold;

    if (atomic_load(&cbw->readers_gone)) {
        return;
    }
    mark_broken(node, "Copying old bytes", ret);
    range_lock_exclusive(cbw->ranges, &hold, 0, INT64_MAX);
    range_unlock(cbw->ranges, &hold);
    atomic_store(&cbw->readers_gone, true);
}

/* --- copying with a time limit --- */

/* A copy with a time limit. Everything happens on the loop of the guest's write. */
typedef struct TimedCopy {
    BlockNode *node;
    int64_t offset, bytes;
    Coroutine *waiter; /* NULL when nobody waits, or it has been woken */
    bool done;
    bool abandoned;
    int ret;
} TimedCopy;

static void wake_waiter(TimedCopy *timed)
{
    Coroutine *waiter = g_steal_pointer(&timed->waiter);

    if (waiter) {
        coroutine_wake(waiter);
    }
}

static void time_is_up(void *opaque)
{
    wake_waiter(opaque);
}

static void forget_abandoned(CbwState *cbw)
{
    atomic_fetch_sub(&cbw->abandoned, 1);
    event_loop_notify(event_loop_main());
}

static void coroutine_fn timed_copy_entry(void *opaque)
{
    TimedCopy *timed = opaque;
    CbwState *cbw = timed->node->state;

    timed->ret = copy_range(cbw->copy, timed->offset, timed->bytes);
    timed->done = true;
    if (timed->abandoned) {
        g_free(timed);
        forget_abandoned(cbw);
    } else {
        wake_waiter(timed);
    }
}

static void coroutine_fn wait_until_done(TimedCopy *timed)
{
    while (!timed->done) {
        timed->waiter = coroutine_self();
        coroutine_yield();
    }
}

/* The time is up: leave the copy alone, unless the node is being drained, which means that
 * whatever we began has to end within our request. */
static bool try_abandon(CbwState *cbw, TimedCopy *timed)
{
    atomic_fetch_add(&cbw->abandoned, 1);
    if (atomic_load(&cbw->quiet)) {
        forget_abandoned(cbw);
        return false;
    }
    timed->abandoned = true;
    return true;
}

static int coroutine_fn copy_with_timeout(BlockNode *node, int64_t offset, int64_t bytes)
{
    CbwState *cbw = node->state;
    TimedCopy *timed = g_new0(TimedCopy, 1);
    EventTimer *timer;
    int ret;

    *timed = (TimedCopy){ .node = node, .offset = offset, .bytes = bytes };
    coroutine_start(timed_copy_entry, timed);
    if (!timed->done) {
        timer = event_timer_new(event_loop_current(), time_is_up, timed);
        event_timer_set(timer, event_loop_now_ns() + cbw->timeout_ns);
        timed->waiter = coroutine_self();
        coroutine_yield();
        event_timer_free(timer);
    }
    ret = timed->done ? timed->ret : -ETIMEDOUT;
    if (!timed->done) {
        if (cbw->on_error == ON_CBW_ERROR_BREAK_SNAPSHOT) {
            mark_broken(node, "Copying old bytes", ret); /* which ends what is left of it */
        }
        if (try_abandon(cbw, timed)) {
            return ret;
        }
        wait_until_done(timed);
    }
    g_free(timed);
    return ret;
}

static int coroutine_fn copy_old_bytes(BlockNode *node, int64_t offset, int64_t bytes)
{
    CbwState *cbw = node->state;

    return cbw->timeout_ns ? copy_with_timeout(node, offset, bytes)
                           : copy_range(cbw->copy, offset, bytes);
}

/* --- the guest's write --- */

int coroutine_fn cbw_before_write(BlockNode *node, int64_t offset, int64_t bytes, unsigned flags)
{
    CbwState *cbw = node->state;
    int ret = 0;

    if (flags & REQ_WRITE_UNCHANGED) {
        return 0;
    }
    if (copy_is_pending(cbw->copy, offset, bytes)) {
        ret = atomic_load(&cbw->broken) ? -ECANCELED : copy_old_bytes(node, offset, bytes);
        if (ret < 0 &&
            (cbw->on_error == ON_CBW_ERROR_BREAK_SNAPSHOT || atomic_load(&cbw->broken))) {
            break_view(node, ret);
            return 0;
        }
    }
    if (ret == 0) {
        bitmap_set_range(cbw->done, offset, bytes);
    }
    return ret;
}

/* --- drain --- */

void cbw_drain_begin(BlockNode *node)
{
    CbwState *cbw = node->state;

    atomic_store(&cbw->quiet, true);
    copy_park(cbw->copy);
    while (atomic_load(&cbw->abandoned)) {
        event_loop_poll(event_loop_main(), true);
    }
}

void cbw_drain_end(BlockNode *node)
{
    CbwState *cbw = node->state;

    copy_unpark(cbw->copy);
    atomic_store(&cbw->quiet, false);
}
