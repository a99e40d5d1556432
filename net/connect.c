/* SPDX-License-Identifier: MIT */
/*
 * Connecting, blocking, to a unix or inet address; or taking over a descriptor.
 */
#include "net/connect.h"
#include "address.h"
#include "util/error.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static int connect_to(int family, const struct sockaddr *address, socklen_t length)
{
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int err;

    if (fd >= 0 && connect(fd, address, length) == 0) {
        return fd;
    }
    err = errno;
    if (fd >= 0) {
        close(fd);
    }
    return -err;
}

static int connect_unix(const UnixSocketAddress *to, GError **error)
{
    struct sockaddr_un address;
    socklen_t length;
    int fd;

    if (!net_unix_address(to, &address, &length, error)) {
        return -1;
    }
    fd = connect_to(AF_UNIX, (struct sockaddr *)&address, length);
    if (fd < 0) {
        merino_error_errno(error, -fd, "Failed to connect to '%s'", to->path);
        return -1;
    }
    return fd;
}

static int connect_inet(const InetSocketAddress *to, GError **error)
{
    struct addrinfo *found = net_resolve(to, 0, error);
    int fd = -ECONNREFUSED;

    if (!found) {
        return -1;
    }
    for (struct addrinfo *at = found; at && fd < 0; at = at->ai_next) {
        fd = connect_to(at->ai_family, at->ai_addr, at->ai_addrlen);
    }
    freeaddrinfo(found);
    if (fd < 0) {
        merino_error_errno(error, -fd, "Failed to connect to '%s:%s'", to->host, to->port);
        return -1;
    }
    return fd;
}

static int take_fd(const FdSocketAddress *from, GError **error)
{
    struct stat status;
    guint64 fd;

    if (!g_ascii_string_to_unsigned(from->str, 10, 0, G_MAXINT, &fd, NULL)) {
        merino_error(error, "Unable to parse FD number %s", from->str);
        return -1;
    }
    if (fstat((int)fd, &status) < 0 || !S_ISSOCK(status.st_mode)) {
        merino_error(error, "File descriptor '%s' is not a socket", from->str);
        return -1;
    }
    fcntl((int)fd, F_SETFD, FD_CLOEXEC);
    return (int)fd;
}

int net_connect(const SocketAddress *address, GError **error)
{
    switch (address->type) {
    case SOCKET_ADDRESS_TYPE_UNIX:
        return connect_unix(&address->u.q_unix, error);
    case SOCKET_ADDRESS_TYPE_INET:
        return connect_inet(&address->u.inet, error);
    case SOCKET_ADDRESS_TYPE_FD:
        return take_fd(&address->u.fd, error);
    default:
        g_assert_not_reached();
    }
}
