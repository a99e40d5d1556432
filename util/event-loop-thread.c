/* SPDX-License-Identifier: MIT */
/*
 * I/O threads: a thread that does nothing but run its loop.
 */
#include "event-loop-int.h"

#include <pthread.h>
#include <signal.h>

typedef struct Startup {
    GMutex lock;
    GCond cond;
    bool done;
    EventLoop *loop;
    GError *error;
} Startup;

/* The loop is opened by its own thread, since the kernel ties an io_uring to who made it. */
static EventLoop *open_and_report(Startup *startup)
{
    GError *error = NULL;
    EventLoop *loop = loop_open(false, &error);

    g_mutex_lock(&startup->lock);
    startup->loop = loop;
    startup->error = error;
    startup->done = true;
    g_cond_signal(&startup->cond);
    g_mutex_unlock(&startup->lock);
    return loop;
}

static gpointer run_thread(gpointer opaque)
{
    EventLoop *loop = open_and_report(opaque);

    if (!loop) {
        return NULL;
    }
    while (!loop->stopping) {
        event_loop_poll(loop, true);
    }
    while (loop_has_work(loop)) {
        event_loop_poll(loop, false);
    }
    loop_close(loop);
    return NULL;
}

/* Signals are the main thread's: threads inherit a mask that blocks them all. */
static GThread *start_thread(const char *name, Startup *startup, GError **error)
{
    sigset_t all, previous;
    GThread *thread;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &previous);
    thread = g_thread_try_new(name, run_thread, startup, error);
    pthread_sigmask(SIG_SETMASK, &previous, NULL);
    return thread;
}

EventLoop *event_loop_new(const char *name, GError **error)
{
    Startup startup = { .done = false };
    GThread *thread;

    g_mutex_init(&startup.lock);
    g_cond_init(&startup.cond);
    thread = start_thread(name, &startup, error);
    if (thread) {
        g_mutex_lock(&startup.lock);
        while (!startup.done) {
            g_cond_wait(&startup.cond, &startup.lock);
        }
        g_mutex_unlock(&startup.lock);
        if (startup.loop) {
            startup.loop->thread = thread;
        } else {
            g_thread_join(thread);
            g_propagate_error(error, startup.error);
        }
    }
    g_cond_clear(&startup.cond);
    g_mutex_clear(&startup.lock);
    return startup.loop;
}

static void stop(void *opaque)
{
    EventLoop *loop = opaque;

    loop->stopping = true;
}

void event_loop_free(EventLoop *loop)
{
    GThread *thread;

    if (!loop) {
        return;
    }
    thread = loop->thread;
    g_assert(thread && loop != event_loop_current());
    event_loop_call(loop, stop, loop);
    g_thread_join(thread);
}
