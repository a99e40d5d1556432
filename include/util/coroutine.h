/* SPDX-License-Identifier: MIT */
/*
 * Coroutines: requests that wait without holding a thread.
 *
 * A coroutine has a stack of its own (pooled, with a guard page) and a home: the event loop of
 * the thread that started it. It runs only on that thread, from its start to its end, so code
 * between two yields is never concurrent with other coroutines of the same loop.
 *
 * A coroutine that wants to wait hands coroutine_self() to whoever will wake it, then yields. The
 * waker may be any thread and may come before the yield has happened: coroutine_wake() queues
 * the coroutine on its home loop, which cannot run it before it has yielded. Each yield is
 * answered by exactly one wake.
 *
 * `coroutine_fn` marks a function that may yield; only coroutines may call it. Everything
 * without the mark never yields. No lock but a CoMutex is held over a yield.
 */
#ifndef MERINO_UTIL_COROUTINE_H
#define MERINO_UTIL_COROUTINE_H

#include <glib.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define coroutine_fn

typedef struct Coroutine Coroutine;
typedef struct EventLoop EventLoop;
typedef void CoroutineFn(void *opaque);

/*
 * Run `fn(opaque)` as a new coroutine of the current thread's loop, at once, until it ends or
 * first yields. Callable from inside a coroutine as well; the caller goes on afterwards.
 */
void coroutine_start(CoroutineFn *fn, void *opaque);

/* The same on another loop, soon. Any thread. */
void coroutine_start_on(EventLoop *loop, CoroutineFn *fn, void *opaque);

/* The running coroutine, or NULL outside of one. */
Coroutine *coroutine_self(void);

/* Wait until somebody wakes this coroutine. */
void coroutine_fn coroutine_yield(void);

/* Let `co` go on, from its home loop, soon. Any thread. */
void coroutine_wake(Coroutine *co);

/* Let other coroutines and callbacks of this loop run, then go on. */
void coroutine_fn coroutine_pause(void);

/* Sleep `ns` nanoseconds of CLOCK_MONOTONIC. */
void coroutine_fn coroutine_sleep_ns(int64_t ns);

/*
 * Run `fn(opaque)` as a coroutine of the current thread's loop and poll that loop until it has
 * ended. For control-plane code outside coroutines (open, close, embedding); in a coroutine it
 * just calls `fn`.
 */
void coroutine_run(CoroutineFn *fn, void *opaque);

/*
 * A queue of waiting coroutines, guarded by a GMutex of the caller's that lies beside it. The
 * GMutex is held for short, never over a yield.
 */
typedef struct CoQueue {
    struct CoWaiter *first;
    struct CoWaiter **last;
} CoQueue;

void co_queue_init(CoQueue *queue);
bool co_queue_is_empty(const CoQueue *queue);

/* Called with `lock` held: joins the queue, drops the lock, waits, takes the lock again. */
void coroutine_fn co_queue_wait(CoQueue *queue, GMutex *lock);

/* Called with the lock held. Return whether somebody was woken. First come, first woken. */
bool co_queue_wake_one(CoQueue *queue);
bool co_queue_wake_all(CoQueue *queue);

/* A lock that may be held over a yield, shared by coroutines of any loops. Fair. Not recursive. */
typedef struct CoMutex {
    GMutex lock;
    CoQueue waiters;
    bool held;
} CoMutex;

void co_mutex_init(CoMutex *mutex);
void co_mutex_done(CoMutex *mutex);
void coroutine_fn co_mutex_lock(CoMutex *mutex);
void coroutine_fn co_mutex_unlock(CoMutex *mutex);

#endif
