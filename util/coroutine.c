/* SPDX-License-Identifier: MIT */
#include "util/coroutine.h"

#include "coroutine-int.h"
#include "event-loop-int.h"
#include "util/event-loop.h"

static __thread Coroutine *current __attribute__((tls_model("initial-exec")));

/* What a coroutine runs on when nobody called it from another coroutine. */
static Context *caller_context(const Coroutine *co)
{
    return co->caller ? &co->caller->context : &co->home->thread_context;
}

/* The stack may have moved to another thread each time that context_switch() returns here. */
void coroutine_main(void *opaque)
{
    Coroutine *co = opaque;

    context_entered(&co->context);
    for (;;) {
        co->fn(co->opaque);
        co->fn = NULL;
        context_switch(&co->context, caller_context(co), true);
    }
}

static void run_ready_coroutine(ReadyNode *node)
{
    coroutine_enter((Coroutine *)((char *)node - offsetof(Coroutine, ready)));
}

Coroutine *coroutine_new(EventLoop *home, CoroutineFn *fn, void *opaque)
{
    Coroutine *co = coroutine_pool_get();

    co->ready.run = run_ready_coroutine;
    co->home = home;
    co->fn = fn;
    co->opaque = opaque;
    co->queued = false;
    return co;
}

void coroutine_enter(Coroutine *co)
{
    Coroutine *self = current;

    co->queued = false;
    co->caller = self;
    current = co;
    context_switch(caller_context(co), &co->context, false);
    current = self;
    if (!co->fn) {
        coroutine_pool_put(co);
    }
}

static EventLoop *home_of_this_thread(void)
{
    EventLoop *loop = event_loop_current();

    if (G_UNLIKELY(!loop)) {
        g_error("a coroutine was started on a thread that has no event loop");
    }
    return loop;
}

void coroutine_start(CoroutineFn *fn, void *opaque)
{
    coroutine_enter(coroutine_new(home_of_this_thread(), fn, opaque));
}

void coroutine_start_on(EventLoop *loop, CoroutineFn *fn, void *opaque)
{
    coroutine_wake(coroutine_new(loop, fn, opaque));
}

Coroutine *coroutine_self(void)
{
    return current;
}

void coroutine_fn coroutine_yield(void)
{
    Coroutine *self = current;

    g_assert(self);
    context_switch(&self->context, caller_context(self), false);
}

void coroutine_wake(Coroutine *co)
{
    if (G_UNLIKELY(co->queued)) {
        g_error("a coroutine was woken twice");
    }
    co->queued = true;
    loop_ready(co->home, &co->ready);
}

void coroutine_fn coroutine_pause(void)
{
    coroutine_wake(current);
    coroutine_yield();
}

static void wake_sleeper(void *opaque)
{
    coroutine_wake(opaque);
}

void coroutine_fn coroutine_sleep_ns(int64_t ns)
{
    int64_t now = event_loop_now_ns();
    EventTimer timer;

    timer_init(&timer, current->home, wake_sleeper, current);
    event_timer_set(&timer, ns > INT64_MAX - now ? INT64_MAX : now + MAX(ns, 0));
    coroutine_yield();
}

typedef struct CoroutineRun {
    CoroutineFn *fn;
    void *opaque;
    atomic_bool done;
} CoroutineRun;

static void coroutine_fn run_to_end(void *opaque)
{
    CoroutineRun *run = opaque;

    run->fn(run->opaque);
    atomic_store(&run->done, true);
}

void coroutine_run(CoroutineFn *fn, void *opaque)
{
    CoroutineRun run = { .fn = fn, .opaque = opaque };

    if (current) {
        fn(opaque);
        return;
    }
    coroutine_start(run_to_end, &run);
    event_loop_poll_until(event_loop_current(), &run.done);
}
