/* SPDX-License-Identifier: MIT */
#include "util/event-loop.h"

#include "event-loop-int.h"
#include "util/error.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

/* How often one iteration looks again for what its callbacks and coroutines have made ready,
 * before it looks at the kernel. */
#define READY_ROUNDS 4

static __thread EventLoop *current_loop __attribute__((tls_model("initial-exec")));
static _Atomic(EventLoop *) main_loop;

/*
 * Closed loops, kept with their wake descriptors for the next. A thread whose push has already
 * been answered may still be on its way to look at `sleeping`, so neither may ever go away; at
 * worst that thread rouses a later loop for nothing.
 */
static GMutex idle_lock;
static EventLoop *idle_loops;

EventLoop *event_loop_current(void)
{
    return current_loop;
}

static _Atomic int64_t clock_ahead_ns;

int64_t event_loop_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec + atomic_load(&clock_ahead_ns);
}

void event_loop_advance_clock(int64_t ns)
{
    atomic_fetch_add(&clock_ahead_ns, ns);
}

int64_t event_loop_thread_id(const EventLoop *loop)
{
    return loop->thread_id;
}

bool event_loop_has_uring(const EventLoop *loop)
{
    return loop->backend == &uring_backend;
}

static bool backend_open(EventLoop *loop, GError **error)
{
    if (!getenv("MERINO_NO_IO_URING")) {
        loop->backend = &uring_backend;
        if (loop->backend->init(loop, NULL)) {
            return true;
        }
    }
    loop->backend = &epoll_backend;
    return loop->backend->init(loop, error);
}

static EventLoop *take_idle(void)
{
    EventLoop *loop;

    g_mutex_lock(&idle_lock);
    loop = idle_loops;
    if (loop) {
        idle_loops = loop->idle_next;
    }
    g_mutex_unlock(&idle_lock);
    return loop;
}

static void put_idle(EventLoop *loop)
{
    g_mutex_lock(&idle_lock);
    loop->idle_next = idle_loops;
    idle_loops = loop;
    g_mutex_unlock(&idle_lock);
}

static EventLoop *new_loop(GError **error)
{
    int wake_fd = eventfd(0, EFD_CLOEXEC);
    EventLoop *loop;

    if (wake_fd < 0) {
        merino_error_errno(error, errno, "Could not create an event descriptor");
        return NULL;
    }
    loop = g_new0(EventLoop, 1);
    loop->wake_fd = wake_fd;
    return loop;
}

EventLoop *loop_open(bool polled_outside, GError **error)
{
    EventLoop *loop = take_idle();

    g_assert(!current_loop);
    if (!loop) {
        loop = new_loop(error);
        if (!loop) {
            return NULL;
        }
    }
    loop->polled_outside = polled_outside;
    if (!backend_open(loop, error)) {
        put_idle(loop);
        return NULL;
    }
    loop->ready = (ReadyList){ .last = &loop->ready.first };
    loop->timers = g_ptr_array_new();
    loop->thread_id = gettid();
    loop->thread = NULL;
    loop->stopping = false;
    context_init_thread(&loop->thread_context);
    current_loop = loop;
    return loop;
}

void loop_close(EventLoop *loop)
{
    g_assert(loop == current_loop && !loop_has_work(loop) && loop->timers->len == 0);
    loop->backend->done(loop);
    g_ptr_array_free(loop->timers, TRUE);
    g_free(loop->traits);
    loop->traits = NULL;
    current_loop = NULL;
    put_idle(loop);
}

EventLoop *event_loop_main(void)
{
    EventLoop *loop = atomic_load(&main_loop);
    GError *error = NULL;

    if (!loop) {
        loop = loop_open(true, &error);
        if (!loop) {
            g_error("%s", error->message);
        }
        atomic_store(&main_loop, loop);
    }
    return loop;
}

/* Write to the loop's descriptor if it sleeps; one of several callers does. */
static void rouse(EventLoop *loop)
{
    static const uint64_t one = 1;

    if (atomic_load(&loop->sleeping) && atomic_exchange(&loop->sleeping, false)) {
        while (write(loop->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR) {
        }
    }
}

void loop_ready(EventLoop *loop, ReadyNode *node)
{
    ReadyNode *head;

    if (loop == current_loop) {
        loop_ready_here(loop, node);
        return;
    }
    head = atomic_load_explicit(&loop->remote, memory_order_relaxed);
    do {
        node->next = head;
    } while (!atomic_compare_exchange_weak(&loop->remote, &head, node));
    rouse(loop);
}

/* Take what other threads have pushed, oldest first. */
static void take_remote(EventLoop *loop)
{
    ReadyNode *node, *oldest = NULL;

    if (!atomic_load_explicit(&loop->remote, memory_order_relaxed)) {
        return;
    }
    node = atomic_exchange(&loop->remote, NULL);
    while (node) {
        ReadyNode *next = node->next;

        node->next = oldest;
        oldest = node;
        node = next;
    }
    while (oldest) {
        node = oldest;
        oldest = node->next;
        loop_ready_here(loop, node);
    }
}

static ReadyNode *pop_ready(EventLoop *loop)
{
    ReadyNode *node = loop->ready.first;

    loop->ready.first = node->next;
    if (!loop->ready.first) {
        loop->ready.last = &loop->ready.first;
    }
    loop->ready.n--;
    return node;
}

/* A node's run may itself poll this loop, so nothing but the list itself tells what is left. */
static bool run_ready(EventLoop *loop)
{
    bool any = false;

    for (int round = 0; round < READY_ROUNDS; round++) {
        unsigned left;

        take_remote(loop);
        left = loop->ready.n;
        if (left == 0) {
            break;
        }
        any = true;
        for (; left && loop->ready.n; left--) {
            ReadyNode *node = pop_ready(loop);

            node->run(node);
        }
    }
    return any;
}

void loop_complete(EventLoop *loop, IoRequest *req, ssize_t result)
{
    req->result = result;
    coroutine_wake(req->co);
}

bool loop_has_work(EventLoop *loop)
{
    return loop->ready.n || atomic_load_explicit(&loop->remote, memory_order_relaxed) ||
           loop->backend->has_completion(loop) || (loop->timers->len && timers_wait_ns(loop) == 0);
}

bool loop_fall_asleep(EventLoop *loop)
{
    if (loop->ready.n) {
        return false;
    }
    atomic_store(&loop->sleeping, true);
    if (atomic_load(&loop->remote) ||
        (atomic_load(&loop->notified) && atomic_exchange(&loop->notified, false))) {
        loop_wake_up(loop);
        return false;
    }
    return true;
}

void loop_wake_up(EventLoop *loop)
{
    atomic_store_explicit(&loop->sleeping, false, memory_order_relaxed);
}

bool event_loop_poll(EventLoop *loop, bool block)
{
    int64_t timeout_ns = block ? timers_wait_ns(loop) : 0;
    bool asleep;
    bool any;

    g_assert(loop == current_loop && !coroutine_self());
    asleep = timeout_ns != 0 && loop_fall_asleep(loop);
    loop->backend->wait(loop, asleep ? timeout_ns : 0);
    loop_wake_up(loop);
    loop->reads_in_place = 0;
    loop->bytes_in_place = 0;
    any = timers_run(loop);
    return run_ready(loop) || any;
}

void event_loop_poll_until(EventLoop *loop, const atomic_bool *done)
{
    while (!atomic_load(done)) {
        event_loop_poll(loop, true);
    }
}

void event_loop_notify(EventLoop *loop)
{
    atomic_store(&loop->notified, true);
    rouse(loop);
}

typedef struct Call {
    ReadyNode node;
    EventLoopFn *fn;
    void *opaque;
} Call;

static void run_call(ReadyNode *node)
{
    Call *call = (Call *)node;
    EventLoopFn *fn = call->fn;
    void *opaque = call->opaque;

    g_free(call);
    fn(opaque);
}

/* The home thread first takes what others have pushed, so that a call of its own does not
 * overtake one that came before. */
void event_loop_call(EventLoop *loop, EventLoopFn *fn, void *opaque)
{
    Call *call = g_new(Call, 1);

    *call = (Call){ .node.run = run_call, .fn = fn, .opaque = opaque };
    if (loop == current_loop) {
        take_remote(loop);
    }
    loop_ready(loop, &call->node);
}
