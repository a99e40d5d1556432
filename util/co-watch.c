/* SPDX-License-Identifier: MIT */
/*
 * Watches of sockets: one poll that stays in the kernel and reports each change.
 *
 * What the kernel reports comes in the order in which it happened, and only while the loop waits.
 * So a receiver that found nothing after it had forgotten all earlier reports misses none.
 */
#include "event-loop-int.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>

struct SocketWatch {
    IoRequest req;
    bool armed;    /* the kernel has `req` */
    bool has_news; /* there is something to receive, or the watch has ended */
    int error;     /* -errno: there is no such poll here */
    Coroutine *waiter;
};

SocketWatch *socket_watch_new(int fd)
{
    SocketWatch *watch;

    if (!event_loop_has_uring(event_loop_current())) {
        return NULL;
    }
    watch = g_new0(SocketWatch, 1);
    watch->req = (IoRequest){ .kind = IO_WATCH, .fd = fd, .flags = POLLIN | POLLOUT };
    return watch;
}

void watch_report(IoRequest *req, int result, bool last)
{
    SocketWatch *watch = (SocketWatch *)req;

    if (result < 0 && result != -ECANCELED) {
        watch->error = result;
    }
    if (last) {
        watch->armed = false;
    }
    if (last || result & ~POLLOUT) {
        watch->has_news = true;
        if (watch->waiter) {
            coroutine_wake(g_steal_pointer(&watch->waiter));
        }
    }
}

static void coroutine_fn wait_for_news(SocketWatch *watch)
{
    while (!watch->has_news) {
        watch->waiter = coroutine_self();
        coroutine_yield();
    }
}

ssize_t coroutine_fn socket_watch_recv(SocketWatch *watch, const struct iovec *iov, int niov)
{
    struct msghdr message = { .msg_iov = (struct iovec *)iov, .msg_iovlen = (size_t)niov };
    EventLoop *loop = event_loop_current();

    for (;;) {
        ssize_t ret;

        watch->has_news = false;
        ret = recvmsg(watch->req.fd, &message, MSG_DONTWAIT);
        if (ret >= 0) {
            return ret;
        }
        if (errno == EINTR) {
            continue;
        }
        if (errno != EAGAIN) {
            return -errno;
        }
        if (watch->error) {
            return co_io_recv(watch->req.fd, iov, niov);
        }
        if (!watch->armed) {
            watch->armed = true;
            loop->backend->start(loop, &watch->req);
        }
        wait_for_news(watch);
    }
}

void coroutine_fn socket_watch_free(SocketWatch *watch)
{
    IoRequest unwatch = { .kind = IO_UNWATCH, .target = &watch->req };

    if (watch->armed) {
        watch->has_news = false;
        io_perform(&unwatch);
        while (watch->armed) {
            watch->has_news = false;
            wait_for_news(watch);
        }
    }
    g_free(watch);
}
