/* SPDX-License-Identifier: MIT */
/*
 * The main loop as a GLib source.
 *
 * GLib polls one descriptor, the backend's, and asks for the first deadline. While GLib is in its
 * poll the loop counts as asleep, so that other threads wake it.
 */
#include "event-loop-int.h"

/* Iterations of the loop a dispatch, while they find work: what a busy loop does between two
 * looks of GLib at its other sources. */
#define ROUNDS_PER_DISPATCH 16

typedef struct LoopSource {
    GSource source;
    EventLoop *loop;
    gpointer poll_tag;
} LoopSource;

static gboolean source_prepare(GSource *source, gint *timeout)
{
    EventLoop *loop = ((LoopSource *)source)->loop;
    int64_t wait_ns;

    if (!loop->backend->submit(loop) || loop_has_work(loop) || !loop_fall_asleep(loop)) {
        *timeout = 0;
        return TRUE;
    }
    wait_ns = timers_wait_ns(loop);
    *timeout = wait_ns < 0 ? -1 : (gint)MIN((wait_ns + 999999) / 1000000, G_MAXINT);
    return FALSE;
}

/* GLib does not promise to come here after each prepare; event_loop_poll() ends the sleep too,
 * and meanwhile a sleep that lasts too long costs other threads one write. */
static gboolean source_check(GSource *source)
{
    LoopSource *self = (LoopSource *)source;

    loop_wake_up(self->loop);
    return g_source_query_unix_fd(source, self->poll_tag) || loop_has_work(self->loop);
}

static gboolean source_dispatch(GSource *source, GSourceFunc callback, gpointer opaque)
{
    EventLoop *loop = ((LoopSource *)source)->loop;

    for (int i = 0; i < ROUNDS_PER_DISPATCH && event_loop_poll(loop, false); i++) {
    }
    return G_SOURCE_CONTINUE;
}

static GSourceFuncs source_funcs = {
    .prepare = source_prepare,
    .check = source_check,
    .dispatch = source_dispatch,
};

GSource *event_loop_attach(EventLoop *loop)
{
    GSource *source = g_source_new(&source_funcs, sizeof(LoopSource));

    g_assert(loop == event_loop_current() && loop->polled_outside);
    ((LoopSource *)source)->loop = loop;
    ((LoopSource *)source)->poll_tag = g_source_add_unix_fd(source, loop->poll_fd, G_IO_IN);
    g_source_set_name(source, "merino event loop");
    /* Nothing dispatches GLib's sources inside this one. Where GLib cannot know that, it takes the
     * descriptor out of its poll and puts it back for each dispatch, with two writes to its own
     * eventfd and a read. */
    g_source_set_can_recurse(source, TRUE);
    g_source_attach(source, NULL);
    return source;
}

typedef struct ControlCall {
    EventLoopFn *fn;
    void *opaque;
    Coroutine *co;
} ControlCall;

static gboolean run_control_call(void *opaque)
{
    ControlCall *call = opaque;

    call->fn(call->opaque);
    coroutine_wake(call->co);
    return G_SOURCE_REMOVE;
}

void coroutine_fn co_run_control(EventLoopFn *fn, void *opaque)
{
    ControlCall call = { fn, opaque, coroutine_self() };
    GSource *source = g_idle_source_new();

    g_assert(event_loop_current()->polled_outside);
    g_source_set_priority(source, G_PRIORITY_DEFAULT);
    g_source_set_callback(source, run_control_call, &call, NULL);
    g_source_attach(source, NULL);
    g_source_unref(source);
    coroutine_yield();
}
