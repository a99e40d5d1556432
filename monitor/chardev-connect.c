/* SPDX-License-Identifier: MIT */
#include "chardev-connect.h"

#include "util/error.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
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
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    size_t skip = to->abstract ? 1 : 0;
    size_t length = strlen(to->path);
    socklen_t address_length = sizeof(address);
    int fd;

    if (length + 1 > sizeof(address.sun_path)) {
        merino_error(error, "UNIX socket path '%s' is too long", to->path);
        merino_error_hint(error, "Path must be less than %zu bytes", sizeof(address.sun_path));
        return -1;
    }
    memcpy(address.sun_path + skip, to->path, length);
    if (to->abstract && (!to->has_tight || to->tight)) {
        address_length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + skip + length);
    }
    fd = connect_to(AF_UNIX, (struct sockaddr *)&address, address_length);
    if (fd < 0) {
        merino_error_errno(error, -fd, "Failed to connect to '%s'", to->path);
        return -1;
    }
    return fd;
}

static int family_of(const InetSocketAddress *to)
{
    if (to->has_ipv6 && to->ipv6 && !(to->has_ipv4 && to->ipv4)) {
        return AF_INET6;
    }
    if (to->has_ipv4 && to->ipv4 && !(to->has_ipv6 && to->ipv6)) {
        return AF_INET;
    }
    return AF_UNSPEC;
}

static int connect_inet(const InetSocketAddress *to, GError **error)
{
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_family = family_of(to) };
    struct addrinfo *found = NULL;
    int ret = getaddrinfo(*to->host ? to->host : NULL, to->port, &hints, &found);
    int fd = -ECONNREFUSED;

    if (ret) {
        merino_error(error, "address resolution failed for %s:%s: %s", to->host, to->port,
                     gai_strerror(ret));
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

int chardev_connect(const SocketAddress *address, GError **error)
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
