/* SPDX-License-Identifier: MIT */
#include "channel.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

/* What the kernel may hold of replies to one client. Under its own default a long reply leaves in
 * pieces, each of which wakes the client and then us. TCP finds its size by itself. */
#define SEND_BUFFER (1 << 20)

static void enlarge_send_buffer(int fd)
{
    int bytes = SEND_BUFFER;

    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
}

static bool is_unix_socket(int fd)
{
    int domain = 0;
    socklen_t length = sizeof(domain);

    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) == 0 && domain == AF_UNIX;
}

void nbd_channel_init(NbdChannel *channel, int fd)
{
    int on = 1;

    channel->fd = fd;
    channel->tls = NULL;
    channel->is_local = is_unix_socket(fd);
    atomic_init(&channel->is_shut, false);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    /* Replies are gathered before they are sent; waiting for more would only delay them. Fails
     * on sockets that are not TCP, which have no such delay. */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    if (channel->is_local) {
        enlarge_send_buffer(fd);
    } else {
        /* A client whose machine is gone says nothing any more, not even that it goes. */
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    }
}

void nbd_channel_done(NbdChannel *channel)
{
    if (channel->tls && !atomic_load(&channel->is_shut)) {
        tls_session_say_goodbye(channel->tls);
    }
    tls_session_free(channel->tls);
    close(channel->fd);
    channel->fd = -1;
}

void nbd_channel_shutdown(NbdChannel *channel)
{
    atomic_store(&channel->is_shut, true);
    shutdown(channel->fd, SHUT_RDWR);
}

bool coroutine_fn nbd_channel_start_tls(NbdChannel *channel, const TlsCreds *creds, GError **error)
{
    g_assert(!channel->tls);
    channel->tls = tls_session_new(creds, channel->fd, error);
    if (!channel->tls) {
        return false;
    }
    if (!tls_session_handshake(channel->tls, error)) {
        nbd_channel_shutdown(channel);
        return false;
    }
    return true;
}

char *nbd_channel_peer(NbdChannel *channel)
{
    return channel->tls ? tls_session_identity(channel->tls) : NULL;
}

void nbd_channel_deny(NbdChannel *channel)
{
    tls_session_deny(channel->tls);
    nbd_channel_shutdown(channel);
}

ssize_t coroutine_fn nbd_channel_recv(NbdChannel *channel, const struct iovec *iov, int niov)
{
    if (channel->tls) {
        return tls_session_recv(channel->tls, iov, niov);
    }
    return co_io_recv(channel->fd, iov, niov);
}

SocketWatch *nbd_channel_watch(NbdChannel *channel)
{
    return channel->is_local && !channel->tls ? socket_watch_new(channel->fd) : NULL;
}

int coroutine_fn nbd_channel_recv_all(NbdChannel *channel, void *buf, size_t bytes)
{
    struct iovec iov = { .iov_base = buf, .iov_len = bytes };

    while (iov.iov_len) {
        ssize_t ret = nbd_channel_recv(channel, &iov, 1);

        if (ret <= 0) {
            return ret ? (int)ret : -ECONNRESET;
        }
        iov.iov_base = (char *)iov.iov_base + ret;
        iov.iov_len -= (size_t)ret;
    }
    return 0;
}

ssize_t nbd_channel_try_send(NbdChannel *channel, const struct iovec *iov, int niov)
{
    struct msghdr message = { .msg_iov = (struct iovec *)iov, .msg_iovlen = (size_t)niov };
    ssize_t ret;

    if (channel->tls) {
        return tls_session_try_send(channel->tls, iov, niov);
    }
    do {
        ret = sendmsg(channel->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (ret < 0 && errno == EINTR);
    return ret < 0 ? -errno : ret;
}

int coroutine_fn nbd_channel_wait_writable(NbdChannel *channel)
{
    int ret = co_io_poll(channel->fd, POLLOUT);

    return ret < 0 ? ret : 0;
}

int coroutine_fn nbd_channel_send_all(NbdChannel *channel, const void *buf, size_t bytes)
{
    struct iovec iov = { .iov_base = (void *)buf, .iov_len = bytes };

    while (iov.iov_len) {
        ssize_t ret = nbd_channel_try_send(channel, &iov, 1);

        if (ret == -EAGAIN) {
            ret = nbd_channel_wait_writable(channel);
        }
        if (ret < 0) {
            return (int)ret;
        }
        iov.iov_base = (char *)iov.iov_base + ret;
        iov.iov_len -= (size_t)ret;
    }
    return 0;
}
