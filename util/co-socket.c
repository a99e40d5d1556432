/* SPDX-License-Identifier: MIT */
/*
 * Streams over sockets.
 */
#include "util/event-loop.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <sys/socket.h>

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
