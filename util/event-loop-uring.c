/* SPDX-License-Identifier: MIT */
/*
 * The io_uring backend.
 *
 * Operations are queued as they come and go to the kernel once an iteration, in the same system
 * call that waits. A read of the wake descriptor is always in flight, so that the ring itself
 * becomes readable when another thread rouses the loop, and it alone needs to be polled.
 *
 * The ring is set up in the cheapest way that the kernel offers: its work deferred until this
 * thread asks for completions (6.1), else run on this thread's way out of the kernel (5.19), else
 * whenever it comes. The main loop's ring never defers: a thread that blocks in a poll of GLib's
 * would not learn of deferred work.
 */
#include "event-loop-int.h"
#include "util/error.h"

#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#define SQ_ENTRIES 256
#define CQ_ENTRIES 4096

/* So many operations that are for another thread do not wait for the end of the iteration. */
#define EARLY_SUBMIT 4

/* One operation moves at most what read(2) does. */
#define MAX_TRANSFER 0x7ffff000

struct UringState {
    struct io_uring ring;
    uint64_t wake_count; /* what the read of the wake descriptor reads into */
    bool wake_armed;
    IoRequest *backlog; /* operations that found the queue full, in order */
    IoRequest **backlog_last;
};

static const unsigned setups[] = {
    /* only for loops that nobody polls from outside */
    IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_TASKRUN_FLAG,
    IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_TASKRUN_FLAG,
    IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
    0,
};

/* A free entry; a full queue is submitted early. NULL when the kernel takes no more just now. */
static struct io_uring_sqe *get_sqe(UringState *state)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&state->ring);

    if (G_UNLIKELY(!sqe)) {
        io_uring_submit(&state->ring);
        sqe = io_uring_get_sqe(&state->ring);
    }
    return sqe;
}

static void arm_wake(EventLoop *loop)
{
    UringState *state = loop->uring;
    struct io_uring_sqe *sqe;

    if (G_LIKELY(state->wake_armed)) {
        return;
    }
    sqe = get_sqe(state);
    if (sqe) {
        io_uring_prep_read(sqe, loop->wake_fd, &state->wake_count, sizeof(state->wake_count), 0);
        io_uring_sqe_set_data(sqe, NULL);
        state->wake_armed = true;
    }
}

static void prepare(struct io_uring_sqe *sqe, const IoRequest *req)
{
    switch (req->kind) {
    case IO_READ:
        if (req->niov == 1) {
            io_uring_prep_read(sqe, req->fd, req->iov->iov_base,
                               MIN(req->iov->iov_len, MAX_TRANSFER), req->offset);
        } else {
            io_uring_prep_readv(sqe, req->fd, req->iov, req->niov, req->offset);
        }
        break;
    case IO_WRITE:
        if (req->niov == 1) {
            io_uring_prep_write(sqe, req->fd, req->iov->iov_base,
                                MIN(req->iov->iov_len, MAX_TRANSFER), req->offset);
        } else {
            io_uring_prep_writev(sqe, req->fd, req->iov, req->niov, req->offset);
        }
        sqe->rw_flags = req->flags;
        if (req->elsewhere) {
            sqe->flags |= IOSQE_ASYNC;
        }
        break;
    case IO_FDATASYNC:
        io_uring_prep_fsync(sqe, req->fd, IORING_FSYNC_DATASYNC);
        break;
    case IO_FALLOCATE:
        io_uring_prep_fallocate(sqe, req->fd, req->flags, req->offset, req->bytes);
        break;
    case IO_POLL:
        io_uring_prep_poll_add(sqe, req->fd, (unsigned)req->flags);
        break;
    case IO_WATCH:
        io_uring_prep_poll_multishot(sqe, req->fd, (unsigned)req->flags);
        break;
    case IO_UNWATCH:
        io_uring_prep_cancel64(sqe, (uintptr_t)req->target, 0);
        break;
    }
    io_uring_sqe_set_data(sqe, (void *)req);
}

static void uring_start(EventLoop *loop, IoRequest *req)
{
    UringState *state = loop->uring;
    struct io_uring_sqe *sqe = state->backlog ? NULL : get_sqe(state);

    if (G_LIKELY(sqe)) {
        prepare(sqe, req);
        if (req->elsewhere && io_uring_sq_ready(&state->ring) >= EARLY_SUBMIT) {
            io_uring_submit(&state->ring);
        }
        return;
    }
    req->next = NULL;
    *state->backlog_last = req;
    state->backlog_last = &req->next;
}

static void queue_backlog(UringState *state)
{
    while (G_UNLIKELY(state->backlog)) {
        struct io_uring_sqe *sqe = get_sqe(state);

        if (!sqe) {
            return;
        }
        prepare(sqe, state->backlog);
        state->backlog = state->backlog->next;
        if (!state->backlog) {
            state->backlog_last = &state->backlog;
        }
    }
}

static bool uring_submit(EventLoop *loop)
{
    UringState *state = loop->uring;

    queue_backlog(state);
    arm_wake(loop);
    io_uring_submit(&state->ring);
    return !state->backlog && state->wake_armed && !io_uring_sq_ready(&state->ring);
}

static void take_completions(EventLoop *loop)
{
    UringState *state = loop->uring;
    struct io_uring_cqe *cqe;
    unsigned head, n = 0;

    io_uring_for_each_cqe(&state->ring, head, cqe)
    {
        IoRequest *req = io_uring_cqe_get_data(cqe);

        n++;
        if (req && req->kind == IO_WATCH) {
            watch_report(req, cqe->res, !(cqe->flags & IORING_CQE_F_MORE));
        } else if (req) {
            loop_complete(loop, req, cqe->res);
        } else {
            state->wake_armed = false;
        }
    }
    io_uring_cq_advance(&state->ring, n);
}

/* Errors of the calls (a signal, a kernel short of memory, completions that overflowed) need no
 * answer but another iteration. */
static void uring_wait(EventLoop *loop, int64_t timeout_ns)
{
    UringState *state = loop->uring;
    struct io_uring_cqe *cqe;
    struct __kernel_timespec timeout;

    queue_backlog(state);
    arm_wake(loop);
    if (timeout_ns != 0 && (state->backlog || !state->wake_armed)) {
        timeout_ns = 0;
    }
    if (timeout_ns == 0) {
        io_uring_submit(&state->ring);
    } else if (timeout_ns < 0) {
        io_uring_submit_and_wait(&state->ring, 1);
    } else {
        timeout.tv_sec = timeout_ns / 1000000000;
        timeout.tv_nsec = timeout_ns % 1000000000;
        io_uring_submit_and_wait_timeout(&state->ring, &cqe, 1, &timeout, NULL);
    }
    take_completions(loop);
}

/* IORING_SQ_TASKRUN is not looked at: the kernel may leave it set when there is no such work any
 * more, and whoever believed it would never rest. Work that is there is done on the way into the
 * next wait, also GLib's. */
static bool uring_has_completion(EventLoop *loop)
{
    struct io_uring *ring = &loop->uring->ring;
    unsigned flags = IO_URING_READ_ONCE(*ring->sq.kflags);

    return io_uring_cq_ready(ring) || (flags & IORING_SQ_CQ_OVERFLOW);
}

static void write_wake(EventLoop *loop)
{
    static const uint64_t one = 1;

    while (write(loop->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR) {
    }
}

/* Wait until the read of the wake descriptor has ended; nothing else is in flight. */
static void await_wake(EventLoop *loop)
{
    while (loop->uring->wake_armed) {
        io_uring_submit_and_wait(&loop->uring->ring, 1);
        take_completions(loop);
    }
}

/* Whether a write to the wake descriptor arrives in the ring. */
static bool try_wake(EventLoop *loop)
{
    struct pollfd pollfd = { .fd = loop->uring->ring.ring_fd, .events = POLLIN };
    bool readable;

    arm_wake(loop);
    if (!loop->uring->wake_armed || io_uring_submit(&loop->uring->ring) != 1) {
        return false;
    }
    write_wake(loop);
    readable = poll(&pollfd, 1, 0) == 1;
    await_wake(loop);
    return readable;
}

static bool open_ring(EventLoop *loop, unsigned setup)
{
    UringState *state = loop->uring;
    struct io_uring_params params = { .flags = setup | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP,
                                      .cq_entries = CQ_ENTRIES };

    if (io_uring_queue_init_params(SQ_ENTRIES, &state->ring, &params) < 0) {
        return false;
    }
    if ((params.features & IORING_FEAT_EXT_ARG) && (params.features & IORING_FEAT_NODROP) &&
        try_wake(loop)) {
        return true;
    }
    io_uring_queue_exit(&state->ring);
    state->wake_armed = false;
    return false;
}

static bool uring_init(EventLoop *loop, GError **error)
{
    UringState *state = loop->uring = g_new0(UringState, 1);

    state->backlog_last = &state->backlog;
    for (size_t i = loop->polled_outside ? 1 : 0; i < G_N_ELEMENTS(setups); i++) {
        if (open_ring(loop, setups[i])) {
            io_uring_register_ring_fd(&state->ring);
            loop->poll_fd = state->ring.ring_fd;
            return true;
        }
    }
    g_free(state);
    loop->uring = NULL;
    merino_error(error, "The kernel offers no usable io_uring");
    return false;
}

/* The read in flight ends first: the kernel may look at its buffer until then. */
static void uring_done(EventLoop *loop)
{
    write_wake(loop);
    await_wake(loop);
    io_uring_queue_exit(&loop->uring->ring);
    g_free(loop->uring);
}

const LoopBackend uring_backend = {
    .name = "io_uring",
    .init = uring_init,
    .done = uring_done,
    .start = uring_start,
    .submit = uring_submit,
    .wait = uring_wait,
    .has_completion = uring_has_completion,
};
