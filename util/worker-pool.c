/* SPDX-License-Identifier: MIT */
#include "worker-pool.h"

#include <glib.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>

#define IDLE_SECONDS 10

static GMutex lock; /* guards what follows */
static GCond work_came;
static WorkItem *first;
static WorkItem **last = &first;
static unsigned n_queued;
static unsigned n_threads;
static unsigned n_idle; /* of them, those waiting for work_came */

/* With `lock` held. NULL when there was nothing to do for a long time. */
static WorkItem *next_item(void)
{
    gint64 until = g_get_monotonic_time() + IDLE_SECONDS * G_TIME_SPAN_SECOND;
    WorkItem *item;

    while (!first) {
        bool timely;

        n_idle++;
        timely = g_cond_wait_until(&work_came, &lock, until);
        n_idle--;
        if (!timely && !first) {
            return NULL;
        }
    }
    item = first;
    first = item->next;
    if (!first) {
        last = &first;
    }
    n_queued--;
    return item;
}

static gpointer worker_main(gpointer opaque)
{
    WorkItem *item;

    g_mutex_lock(&lock);
    while ((item = next_item())) {
        g_mutex_unlock(&lock);
        item->run(item);
        g_mutex_lock(&lock);
    }
    n_threads--;
    g_mutex_unlock(&lock);
    return NULL;
}

/* With `lock` held. Signals are for the main thread: a worker inherits a mask of all. */
static void add_thread(void)
{
    sigset_t all, previous;
    GThread *thread;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &previous);
    thread = g_thread_try_new("worker", worker_main, NULL, NULL);
    pthread_sigmask(SIG_SETMASK, &previous, NULL);
    if (thread) {
        n_threads++;
        g_thread_unref(thread);
    }
}

/* A machine that cannot make even one thread does the work here and now. */
void worker_pool_submit(WorkItem *item)
{
    g_mutex_lock(&lock);
    if (n_queued >= n_idle && n_threads < WORKER_MAX) {
        add_thread();
    }
    if (n_threads == 0) {
        g_mutex_unlock(&lock);
        item->run(item);
        return;
    }
    item->next = NULL;
    *last = item;
    last = &item->next;
    n_queued++;
    g_cond_signal(&work_came);
    g_mutex_unlock(&lock);
}
