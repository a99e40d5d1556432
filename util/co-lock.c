/* SPDX-License-Identifier: MIT */
/*
 * CoQueue and CoMutex.
 *
 * A waiter lies on the stack of the coroutine that waits. Whoever takes it off the list reads all
 * it needs before the wake, since after that the stack may be gone on.
 */
#include "util/coroutine.h"

typedef struct CoWaiter {
    struct CoWaiter *next;
    Coroutine *co;
} CoWaiter;

void co_queue_init(CoQueue *queue)
{
    queue->first = NULL;
    queue->last = &queue->first;
}

bool co_queue_is_empty(const CoQueue *queue)
{
    return !queue->first;
}

static void join(CoQueue *queue, CoWaiter *waiter)
{
    waiter->next = NULL;
    waiter->co = coroutine_self();
    *queue->last = waiter;
    queue->last = &waiter->next;
}

static Coroutine *take_first(CoQueue *queue)
{
    CoWaiter *waiter = queue->first;

    if (!waiter) {
        return NULL;
    }
    queue->first = waiter->next;
    if (!queue->first) {
        queue->last = &queue->first;
    }
    return waiter->co;
}

void coroutine_fn co_queue_wait(CoQueue *queue, GMutex *lock)
{
    CoWaiter waiter;

    join(queue, &waiter);
    g_mutex_unlock(lock);
    coroutine_yield();
    g_mutex_lock(lock);
}

bool co_queue_wake_one(CoQueue *queue)
{
    Coroutine *co = take_first(queue);

    if (co) {
        coroutine_wake(co);
    }
    return co != NULL;
}

bool co_queue_wake_all(CoQueue *queue)
{
    bool any = false;

    while (co_queue_wake_one(queue)) {
        any = true;
    }
    return any;
}

void co_mutex_init(CoMutex *mutex)
{
    g_mutex_init(&mutex->lock);
    co_queue_init(&mutex->waiters);
    mutex->held = false;
}

void co_mutex_done(CoMutex *mutex)
{
    g_assert(!mutex->held);
    g_mutex_clear(&mutex->lock);
}

void coroutine_fn co_mutex_lock(CoMutex *mutex)
{
    CoWaiter waiter;

    g_mutex_lock(&mutex->lock);
    if (!mutex->held) {
        mutex->held = true;
        g_mutex_unlock(&mutex->lock);
        return;
    }
    join(&mutex->waiters, &waiter);
    g_mutex_unlock(&mutex->lock);
    coroutine_yield();
}

/* The mutex passes to the first waiter without ever being free, so that nobody overtakes it. */
void coroutine_fn co_mutex_unlock(CoMutex *mutex)
{
    Coroutine *next;

    g_mutex_lock(&mutex->lock);
    g_assert(mutex->held);
    next = take_first(&mutex->waiters);
    mutex->held = next != NULL;
    g_mutex_unlock(&mutex->lock);
    if (next) {
        coroutine_wake(next);
    }
}
