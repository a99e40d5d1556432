/* SPDX-License-Identifier: MIT */
/*
 * I/O of coroutines, over either backend.
 */
#include "event-loop-int.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

static ssize_t block_once(const IoRequest *req)
{
    switch (req->kind) {
    case IO_READ:
        return preadv(req->fd, req->iov, req->niov, req->offset);
    case IO_WRITE:
        return req->flags ? pwritev2(req->fd, req->iov, req->niov, req->offset, req->flags)
                          : pwritev(req->fd, req->iov, req->niov, req->offset);
    case IO_FDATASYNC:
        return fdatasync(req->fd);
    case IO_FALLOCATE:
        return fallocate(req->fd, req->flags, req->offset, req->bytes);
    default:
        g_assert_not_reached();
    }
}

ssize_t io_request_block(const IoRequest *req)
{
    ssize_t ret;

    do {
        ret = block_once(req);
    } while (ret < 0 && errno == EINTR);
    return ret < 0 ? -errno : ret;
}

static int block_in_worker(void *opaque)
{
    IoRequest *req = opaque;

    req->result = io_request_block(req);
    return 0;
}

/* A file operation that the ring could not do without blocking, nor would block for, is done by a
 * worker, which will. */
static ssize_t coroutine_fn perform(IoRequest *req)
{
    EventLoop *loop = event_loop_current();

    do {
        req->co = coroutine_self();
        loop->backend->start(loop, req);
        coroutine_yield();
    } while (G_UNLIKELY(req->result == -EINTR));
    if (G_UNLIKELY(req->result == -EAGAIN && req->kind != IO_POLL)) {
        co_run_in_worker(block_in_worker, req);
    }
    return req->result;
}

ssize_t coroutine_fn co_io_preadv(int fd, const struct iovec *iov, int niov, int64_t offset)
{
    IoRequest req = {
        .kind = IO_READ, .fd = fd, .iov = iov, .niov = MIN(niov, IOV_MAX), .offset = offset
    };

    return perform(&req);
}

ssize_t coroutine_fn co_io_pwritev(int fd, const struct iovec *iov, int niov, int64_t offset,
                                   int rw_flags)
{
    IoRequest req = { .kind = IO_WRITE,
                      .fd = fd,
                      .iov = iov,
                      .niov = MIN(niov, IOV_MAX),
                      .offset = offset,
                      .flags = rw_flags };

    return perform(&req);
}

int coroutine_fn co_io_fdatasync(int fd)
{
    IoRequest req = { .kind = IO_FDATASYNC, .fd = fd };

    return (int)perform(&req);
}

int coroutine_fn co_io_fallocate(int fd, int mode, int64_t offset, int64_t bytes)
{
    IoRequest req = {
        .kind = IO_FALLOCATE, .fd = fd, .flags = mode, .offset = offset, .bytes = bytes
    };

    return (int)perform(&req);
}

int coroutine_fn co_io_poll(int fd, short events)
{
    IoRequest req = { .kind = IO_POLL, .fd = fd, .flags = events };

    return (int)perform(&req);
}

/* Try the call first: on a busy socket it mostly succeeds. Returns 1 when it should be tried
 * again, 0 when `ret` is the answer, or -errno. */
static int coroutine_fn wait_if_needed(ssize_t ret, int fd, short events)
{
    if (ret >= 0) {
        return 0;
    }
    if (errno == EINTR) {
        return 1;
    }
    if (errno != EAGAIN) {
        return -errno;
    }
    int revents = co_io_poll(fd, events);

    return revents < 0 ? revents : 1;
}

ssize_t coroutine_fn co_io_recv(int fd, const struct iovec *iov, int niov)
{
    struct msghdr message = { .msg_iov = (struct iovec *)iov, .msg_iovlen = MIN(niov, IOV_MAX) };
    ssize_t ret;
    int again;

    do {
        ret = recvmsg(fd, &message, MSG_DONTWAIT);
        again = wait_if_needed(ret, fd, POLLIN);
    } while (again > 0);
    return again < 0 ? again : ret;
}

/* Skip `bytes` in front of the vector. */
static void advance(struct iovec **iov, int *niov, size_t bytes)
{
    while (*niov && bytes >= (*iov)->iov_len) {
        bytes -= (*iov)->iov_len;
        (*iov)++;
        (*niov)--;
    }
    if (*niov) {
        (*iov)->iov_base = (char *)(*iov)->iov_base + bytes;
        (*iov)->iov_len -= bytes;
    }
}

int coroutine_fn co_io_send(int fd, struct iovec *iov, int niov)
{
    advance(&iov, &niov, 0);
    while (niov) {
        struct msghdr message = { .msg_iov = iov, .msg_iovlen = MIN(niov, IOV_MAX) };
        ssize_t ret = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        int again = wait_if_needed(ret, fd, POLLOUT);

        if (again < 0) {
            return again;
        }
        if (again == 0) {
            advance(&iov, &niov, (size_t)ret);
        }
    }
    return 0;
}

typedef struct WorkerCall {
    WorkItem work;
    WorkerFn *fn;
    void *opaque;
    int result;
    Coroutine *co;
} WorkerCall;

/* On a worker. After the wake the call may be gone. */
static void run_worker_call(WorkItem *work)
{
    WorkerCall *call = (WorkerCall *)work;

    call->result = call->fn(call->opaque);
    coroutine_wake(call->co);
}

int coroutine_fn co_run_in_worker(WorkerFn *fn, void *opaque)
{
    WorkerCall call = {
        .work.run = run_worker_call, .fn = fn, .opaque = opaque, .co = coroutine_self()
    };

    worker_pool_submit(&call.work);
    coroutine_yield();
    return call.result;
}
