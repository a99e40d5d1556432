/* SPDX-License-Identifier: MIT */
/*
 * The backend for kernels without io_uring: epoll for readiness, worker threads for file I/O.
 *
 * A descriptor that somebody waits for has an FdWatch with its waiters; epoll gets the union of
 * their events, armed for one event at a time. So a descriptor without waiters costs nothing but
 * a disarmed entry in the kernel, which goes away when the descriptor is closed.
 */
#include "event-loop-int.h"
#include "util/error.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <unistd.h>

#define EVENTS_PER_WAIT 64

struct EpollState {
    int fd;
    GHashTable *watches; /* descriptor -> FdWatch */
};

typedef struct FdWatch {
    int fd;
    IoRequest *waiters; /* the first is the oldest */
} FdWatch;

static bool epoll_init(EventLoop *loop, GError **error)
{
    struct epoll_event event = { .events = EPOLLIN, .data.ptr = NULL };
    int fd = epoll_create1(EPOLL_CLOEXEC);

    if (fd < 0 || epoll_ctl(fd, EPOLL_CTL_ADD, loop->wake_fd, &event) < 0) {
        merino_error_errno(error, errno, "Could not create an epoll descriptor");
        if (fd >= 0) {
            close(fd);
        }
        return false;
    }
    loop->epoll = g_new(EpollState, 1);
    loop->epoll->fd = fd;
    loop->epoll->watches = g_hash_table_new(NULL, NULL);
    loop->poll_fd = fd;
    return true;
}

static void epoll_done(EventLoop *loop)
{
    EpollState *state = loop->epoll;

    g_assert(g_hash_table_size(state->watches) == 0);
    g_hash_table_unref(state->watches);
    close(state->fd);
    g_free(state);
}

/* Tell the kernel what the waiters wait for. Returns 0 or -errno. */
static int arm(EpollState *state, FdWatch *watch)
{
    struct epoll_event event = { .events = EPOLLONESHOT, .data.ptr = watch };

    for (IoRequest *req = watch->waiters; req; req = req->next) {
        event.events |= (uint32_t)req->flags;
    }
    if (epoll_ctl(state->fd, EPOLL_CTL_MOD, watch->fd, &event) == 0) {
        return 0;
    }
    if (errno == ENOENT && epoll_ctl(state->fd, EPOLL_CTL_ADD, watch->fd, &event) == 0) {
        return 0;
    }
    return -errno;
}

/* End the waits that `revents` answers; all of them when `error` (negative) is given. */
static void answer(EventLoop *loop, FdWatch *watch, uint32_t revents, int error)
{
    IoRequest **link = &watch->waiters;

    while (*link) {
        IoRequest *req = *link;
        uint32_t wanted = (uint32_t)req->flags | EPOLLERR | EPOLLHUP;

        if (error || (revents & wanted)) {
            *link = req->next;
            loop_complete(loop, req, error ? error : (ssize_t)(revents & wanted));
        } else {
            link = &req->next;
        }
    }
}

/* Arm what is still waited for, or forget the descriptor. */
static void settle(EventLoop *loop, FdWatch *watch)
{
    int ret = watch->waiters ? arm(loop->epoll, watch) : 0;

    if (ret == -EPERM) {
        /* A regular file: always ready, as poll(2) has it. */
        answer(loop, watch, POLLIN | POLLOUT, 0);
        answer(loop, watch, 0, -EINVAL);
    } else if (ret < 0) {
        answer(loop, watch, 0, ret);
    }
    if (!watch->waiters) {
        g_hash_table_remove(loop->epoll->watches, GINT_TO_POINTER(watch->fd));
        g_free(watch);
    }
}

static void start_poll(EventLoop *loop, IoRequest *req)
{
    GHashTable *watches = loop->epoll->watches;
    FdWatch *watch = g_hash_table_lookup(watches, GINT_TO_POINTER(req->fd));
    IoRequest **link;

    if (!watch) {
        watch = g_new0(FdWatch, 1);
        watch->fd = req->fd;
        g_hash_table_insert(watches, GINT_TO_POINTER(req->fd), watch);
    }
    for (link = &watch->waiters; *link; link = &(*link)->next) {
    }
    req->next = NULL;
    *link = req;
    settle(loop, watch);
}

/* On a worker. After the wake `req` may be gone. */
static void run_blocking(WorkItem *work)
{
    IoRequest *req = (IoRequest *)((char *)work - offsetof(IoRequest, work));

    req->result = io_request_block(req);
    coroutine_wake(req->co);
}

static void epoll_start(EventLoop *loop, IoRequest *req)
{
    if (req->kind == IO_POLL) {
        start_poll(loop, req);
        return;
    }
    req->work.run = run_blocking;
    worker_pool_submit(&req->work);
}

static bool epoll_submit(EventLoop *loop)
{
    return true;
}

/* epoll_wait() counts in milliseconds, ppoll() in nanoseconds. */
static void wait_finely(EpollState *state, int64_t timeout_ns)
{
    struct pollfd pollfd = { .fd = state->fd, .events = POLLIN };
    struct timespec timeout = { .tv_sec = timeout_ns / 1000000000,
                                .tv_nsec = timeout_ns % 1000000000 };

    ppoll(&pollfd, 1, &timeout, NULL);
}

static void epoll_take(EventLoop *loop, int64_t timeout_ns)
{
    struct epoll_event events[EVENTS_PER_WAIT];
    uint64_t count;
    int n;

    if (timeout_ns > 0) {
        wait_finely(loop->epoll, timeout_ns);
        timeout_ns = 0;
    }
    n = epoll_wait(loop->epoll->fd, events, EVENTS_PER_WAIT, (int)timeout_ns);
    for (int i = 0; i < n; i++) {
        FdWatch *watch = events[i].data.ptr;

        if (watch) {
            answer(loop, watch, events[i].events, 0);
            settle(loop, watch);
        } else if (read(loop->wake_fd, &count, sizeof(count)) < 0) {
            g_assert(errno == EINTR || errno == EAGAIN);
        }
    }
}

static bool epoll_has_completion(EventLoop *loop)
{
    return false;
}

const LoopBackend epoll_backend = {
    .name = "epoll",
    .init = epoll_init,
    .done = epoll_done,
    .start = epoll_start,
    .submit = epoll_submit,
    .wait = epoll_take,
    .has_completion = epoll_has_completion,
};
