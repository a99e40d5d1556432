/* SPDX-License-Identifier: MIT */
/*
 * Timers: a binary heap by deadline; each timer knows its place in it.
 */
#include "event-loop-int.h"

static EventTimer *timer_at(const EventLoop *loop, guint i)
{
    return g_ptr_array_index(loop->timers, i);
}

static void place(EventLoop *loop, guint i, EventTimer *timer)
{
    g_ptr_array_index(loop->timers, i) = timer;
    timer->heap_index = (int)i;
}

/* Put `timer` where it belongs on the way from slot `i` to the root. */
static void sift_up(EventLoop *loop, guint i, EventTimer *timer)
{
    while (i > 0 && timer_at(loop, (i - 1) / 2)->deadline_ns > timer->deadline_ns) {
        place(loop, i, timer_at(loop, (i - 1) / 2));
        i = (i - 1) / 2;
    }
    place(loop, i, timer);
}

/* Put `timer` where it belongs below slot `i`. */
static void sift_down(EventLoop *loop, guint i, EventTimer *timer)
{
    guint n = loop->timers->len;

    for (;;) {
        guint child = 2 * i + 1;

        if (child >= n) {
            break;
        }
        if (child + 1 < n &&
            timer_at(loop, child + 1)->deadline_ns < timer_at(loop, child)->deadline_ns) {
            child++;
        }
        if (timer_at(loop, child)->deadline_ns >= timer->deadline_ns) {
            break;
        }
        place(loop, i, timer_at(loop, child));
        i = child;
    }
    place(loop, i, timer);
}

void timer_init(EventTimer *timer, EventLoop *loop, EventLoopFn *fn, void *opaque)
{
    *timer = (EventTimer){ .loop = loop, .fn = fn, .opaque = opaque, .heap_index = -1 };
}

EventTimer *event_timer_new(EventLoop *loop, EventLoopFn *fn, void *opaque)
{
    EventTimer *timer = g_new(EventTimer, 1);

    timer_init(timer, loop, fn, opaque);
    return timer;
}

void event_timer_free(EventTimer *timer)
{
    if (timer) {
        event_timer_cancel(timer);
        g_free(timer);
    }
}

void event_timer_cancel(EventTimer *timer)
{
    EventLoop *loop = timer->loop;
    guint i = (guint)timer->heap_index;
    EventTimer *moved;

    g_assert(loop == event_loop_current());
    if (timer->heap_index < 0) {
        return;
    }
    timer->heap_index = -1;
    moved = timer_at(loop, loop->timers->len - 1);
    g_ptr_array_set_size(loop->timers, (int)loop->timers->len - 1);
    if (moved == timer) {
        return;
    }
    if (i > 0 && timer_at(loop, (i - 1) / 2)->deadline_ns > moved->deadline_ns) {
        sift_up(loop, i, moved);
    } else {
        sift_down(loop, i, moved);
    }
}

void event_timer_set(EventTimer *timer, int64_t deadline_ns)
{
    event_timer_cancel(timer);
    timer->deadline_ns = deadline_ns;
    g_ptr_array_add(timer->loop->timers, timer);
    sift_up(timer->loop, timer->loop->timers->len - 1, timer);
}

int64_t timers_wait_ns(EventLoop *loop)
{
    int64_t wait_ns;

    if (loop->timers->len == 0) {
        return -1;
    }
    wait_ns = timer_at(loop, 0)->deadline_ns - event_loop_now_ns();
    return MAX(wait_ns, 0);
}

/* At most as many as were armed at the start, so that one that sets itself anew to a time that
 * has passed leaves room for others. */
bool timers_run(EventLoop *loop)
{
    guint left = loop->timers->len;
    bool any = false;
    int64_t now;

    if (left == 0) {
        return false;
    }
    now = event_loop_now_ns();
    for (; left && loop->timers->len && timer_at(loop, 0)->deadline_ns <= now; left--) {
        EventTimer *timer = timer_at(loop, 0);

        event_timer_cancel(timer);
        timer->fn(timer->opaque);
        any = true;
    }
    return any;
}
