/* SPDX-License-Identifier: MIT */
/*
 * The inside of an event loop, shared by the event-loop-*.c files.
 *
 * One iteration: the backend submits what was queued, waits if nothing is ready, and turns what
 * has completed into ready nodes; then due timers and ready nodes run.
 *
 * `ready` is a plain list that only the home thread touches. Other threads push on `remote`, a
 * stack that the home thread takes whole. They write to the wake descriptor only when `sleeping`
 * is set: the loop sets it before it looks at `remote` for the last time and blocks, a pusher
 * looks at it after its push, and both in the one order that all threads see. So either the loop
 * finds the push or the pusher finds the loop asleep.
 */
#ifndef MERINO_EVENT_LOOP_INT_H
#define MERINO_EVENT_LOOP_INT_H

#include "coroutine-int.h"
#include "util/event-loop.h"
#include "worker-pool.h"

/* One operation of a waiting coroutine, on its stack. */
typedef enum IoKind {
    IO_READ,
    IO_WRITE,
    IO_FDATASYNC,
    IO_FALLOCATE,
    IO_POLL,
    IO_WATCH,  /* co-watch.c; only a ring can do this */
    IO_UNWATCH /* and this: end `target` */
} IoKind;

typedef struct IoRequest {
    IoKind kind;
    int fd;
    const struct iovec *iov; /* read, write */
    int niov;
    int flags; /* write: RWF_*; fallocate: mode; poll: events */
    int64_t offset;
    int64_t bytes;            /* fallocate */
    bool elsewhere;           /* write: on another thread, soon: it takes a while */
    struct IoRequest *target; /* unwatch */
    Coroutine *co;
    ssize_t result;
    struct IoRequest *next; /* of the backend */
    WorkItem work;          /* of the fallback backend */
} IoRequest;

typedef struct LoopBackend {
    const char *name;
    bool (*init)(EventLoop *loop, GError **error);
    void (*done)(EventLoop *loop);

    /* Begin `req`; later, in `wait`, set its result and wake its coroutine. */
    void (*start)(EventLoop *loop, IoRequest *req);

    /* Hand what was started to the kernel. False when it did not take all: to be tried again. */
    bool (*submit)(EventLoop *loop);

    /* Submit, then wait at most `timeout_ns` (0: not at all, -1: for ever) for the first
     * completion, and take those that are there. */
    void (*wait)(EventLoop *loop, int64_t timeout_ns);

    /* Whether `wait` would find a completion now. Without a system call. */
    bool (*has_completion)(EventLoop *loop);
} LoopBackend;

extern const LoopBackend uring_backend;
extern const LoopBackend epoll_backend;

typedef struct UringState UringState;
typedef struct EpollState EpollState;
typedef struct FileTrait FileTrait;

struct EventTimer {
    EventLoop *loop;
    EventLoopFn *fn;
    void *opaque;
    int64_t deadline_ns;
    int heap_index; /* -1: not armed */
};

typedef struct ReadyList {
    ReadyNode *first;
    ReadyNode **last;
    unsigned n;
} ReadyList;

struct EventLoop {
    /* Any thread. */
    _Atomic(ReadyNode *) remote;
    atomic_bool sleeping;
    atomic_bool notified;

    char other_cache_line[64];

    /* The rest is the home thread's, but for what is constant after the start. */
    ReadyList ready;
    Context thread_context;
    const LoopBackend *backend;
    union {
        UringState *uring;
        EpollState *epoll;
    };
    int wake_fd;             /* eventfd */
    int poll_fd;             /* of the backend: readable when `wait` has something to take */
    GPtrArray *timers;       /* binary heap of EventTimer, the earliest first */
    FileTrait *traits;       /* co-file.c: what is known of descriptors */
    int64_t bytes_in_place;  /* co-file.c: in this iteration */
    unsigned reads_in_place; /* co-file.c: in this iteration */
    unsigned writes_away;    /* co-file.c: costly ones under way on another thread */
    int64_t thread_id;
    GThread *thread; /* NULL: the main loop */
    bool stopping;
    bool polled_outside;  /* another loop may poll `poll_fd` */
    EventLoop *idle_next; /* event-loop.c: in the list of closed loops */
};

/* Queue `node` on `loop`. Any thread. */
void loop_ready(EventLoop *loop, ReadyNode *node);

/* The same, by the home thread. */
static inline void loop_ready_here(EventLoop *loop, ReadyNode *node)
{
    node->next = NULL;
    *loop->ready.last = node;
    loop->ready.last = &node->next;
    loop->ready.n++;
}

/* Have the backend do `req` and wait for it. Returns its result. */
ssize_t coroutine_fn io_perform(IoRequest *req);

/* Do a file operation here, blocking. Any thread. */
ssize_t io_request_block(const IoRequest *req);

/* What the kernel reports of an IO_WATCH; after the last report it has forgotten it. */
void watch_report(IoRequest *req, int result, bool last);

/* Finish `req` from the home thread, inside `wait`. */
void loop_complete(EventLoop *loop, IoRequest *req, ssize_t result);

/* A new loop of the calling thread; and its end. */
EventLoop *loop_open(bool polled_outside, GError **error);
void loop_close(EventLoop *loop);

/* Announce that the home thread is about to block; false (and nothing announced) when there is
 * something to do first. Each true is answered by one loop_wake_up(). */
bool loop_fall_asleep(EventLoop *loop);
void loop_wake_up(EventLoop *loop);

/* Whether event_loop_poll() would run something without waiting. */
bool loop_has_work(EventLoop *loop);

/* event-loop-timer.c */
void timer_init(EventTimer *timer, EventLoop *loop, EventLoopFn *fn, void *opaque);
bool timers_run(EventLoop *loop);
int64_t timers_wait_ns(EventLoop *loop); /* until the first; 0: due; -1: none */

#endif
