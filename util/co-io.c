/* SPDX-License-Identifier: MIT */
/*
 * How a coroutine waits for the kernel, over either backend, and for a worker.
 */
#include "event-loop-int.h"

#include <errno.h>
#include <fcntl.h>
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

/* An operation that the kernel will not do without blocking, nor block for, is done by a worker,
 * which will. */
ssize_t coroutine_fn io_perform(IoRequest *req)
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

int coroutine_fn co_io_poll(int fd, short events)
{
    IoRequest req = { .kind = IO_POLL, .fd = fd, .flags = events };

    return (int)io_perform(&req);
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
