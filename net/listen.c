/* SPDX-License-Identifier: MIT */
/*
 * Listening: unix sockets, and inet addresses that a name stands for at one port.
 */
#include "net/listen.h"
#include "address.h"
#include "util/error.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define SOCKET_FLAGS (SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC)

/* --- unix --- */

/* Make room for a socket. A directory is left to unlink(2), which says what it is. */
static bool remove_old(const char *path, GError **error)
{
    struct stat status;

    if (lstat(path, &status) == 0 && !S_ISSOCK(status.st_mode) && !S_ISDIR(status.st_mode)) {
        merino_error(error, "Failed to unlink socket %s: It is a file of another kind", path);
        return false;
    }
    if (unlink(path) < 0 && errno != ENOENT) {
        merino_error_errno(error, errno, "Failed to unlink socket %s", path);
        return false;
    }
    return true;
}

/* The file gets the permissions that the socket has, as far as the umask lets it; so there is no
 * moment at which it has more than `mode`. */
static bool bind_with_mode(int fd, const struct sockaddr_un *un, socklen_t length, int mode,
                           const char *path, GError **error)
{
    if (mode >= 0 && fchmod(fd, (mode_t)mode) < 0) {
        merino_error_errno(error, errno, "Failed to set the mode of socket %s", path);
        return false;
    }
    if (bind(fd, (const struct sockaddr *)un, length) < 0) {
        merino_error_errno(error, errno, "Failed to bind socket to %s", path);
        return false;
    }
    if (mode >= 0 && chmod(path, (mode_t)mode) < 0) {
        merino_error_errno(error, errno, "Failed to set the mode of socket %s", path);
        return false;
    }
    return true;
}

static void remember_file(NetListener *listener, const char *path)
{
    struct stat status;

    if (lstat(path, &status) == 0) {
        listener->path = g_strdup(path);
        listener->device = status.st_dev;
        listener->inode = status.st_ino;
    }
}

static int listen_unix(NetListener *listener, const UnixSocketAddress *address, int mode,
                       GError **error)
{
    bool has_file = !net_is_abstract(address);
    struct sockaddr_un un;
    socklen_t length;
    int fd;

    if (!net_unix_address(address, &un, &length, error) ||
        (has_file && !remove_old(address->path, error))) {
        return -1;
    }
    fd = socket(AF_UNIX, SOCKET_FLAGS, 0);
    if (fd < 0) {
        merino_error_errno(error, errno, "Failed to create Unix socket");
        return -1;
    }
    if (bind_with_mode(fd, &un, length, has_file ? mode : NET_MODE_FROM_UMASK, address->path,
                       error)) {
        if (has_file) {
            remember_file(listener, address->path);
        }
        if (listen(fd, SOMAXCONN) == 0) {
            return fd;
        }
        merino_error_errno(error, errno, "Failed to listen on socket");
    }
    close(fd);
    return -1;
}

/* --- inet --- */

static in_port_t *port_of(struct sockaddr *address)
{
    return address->sa_family == AF_INET6 ? &((struct sockaddr_in6 *)address)->sin6_port
                                          : &((struct sockaddr_in *)address)->sin_port;
}

/* Whether "::" stands for IPv4, too: unless an option speaks against it, or a socket of its own is
 * for that. */
static bool is_for_both(const InetSocketAddress *address, const struct addrinfo *found)
{
    bool has_ipv4 = false;

    for (; found; found = found->ai_next) {
        has_ipv4 |= found->ai_family == AF_INET;
    }
    return !has_ipv4 && net_wants_both(address);
}

/* Where only IPv4's port is taken already, IPv6's will do. */
static bool bind_to(int fd, const struct sockaddr *to, socklen_t length, bool both)
{
    int only = !both;

    if (to->sa_family == AF_INET6) {
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &only, sizeof(only));
    }
    return bind(fd, to, length) == 0 || (to->sa_family == AF_INET6 && both && errno == EADDRINUSE &&
                                         bind_to(fd, to, length, false));
}

/* A socket for one resolved address; -errno. */
static int bind_inet(const struct addrinfo *info, const struct sockaddr *to, bool both)
{
    int fd = socket(info->ai_family, SOCKET_FLAGS, info->ai_protocol);
    int on = 1;
    int err;

    if (fd < 0) {
        return -errno;
    }
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind_to(fd, to, info->ai_addrlen, both) && listen(fd, SOMAXCONN) == 0) {
        return fd;
    }
    err = errno;
    close(fd);
    return -err;
}

/* All addresses at one port. False, with nothing left open, and the reason in `ret_err`. */
static bool bind_all(const struct addrinfo *found, bool both, uint16_t port, GArray *fds,
                     int *ret_err)
{
    for (const struct addrinfo *info = found; info; info = info->ai_next) {
        struct sockaddr_storage to = { 0 };
        socklen_t length = sizeof(to);
        int fd;

        memcpy(&to, info->ai_addr, info->ai_addrlen);
        *port_of((struct sockaddr *)&to) = htons(port);
        fd = bind_inet(info, (struct sockaddr *)&to, both);
        if ((fd == -EAFNOSUPPORT || fd == -EADDRNOTAVAIL) && (info->ai_next || fds->len)) {
            continue;
        }
        if (fd < 0) {
            *ret_err = -fd;
            for (guint i = 0; i < fds->len; i++) {
                close(g_array_index(fds, int, i));
            }
            g_array_set_size(fds, 0);
            return false;
        }
        g_array_append_val(fds, fd);
        /* The system chose a port for the first: the others take the same. */
        if (port == 0 && getsockname(fd, (struct sockaddr *)&to, &length) == 0) {
            port = ntohs(*port_of((struct sockaddr *)&to));
        }
    }
    return true;
}

static bool listen_inet(const InetSocketAddress *address, GArray *fds, GError **error)
{
    struct addrinfo *found = net_resolve(address, AI_PASSIVE, error);
    uint16_t first, last;
    bool ok = false;
    int err = 0;

    if (!found) {
        return false;
    }
    first = ntohs(*port_of(found->ai_addr));
    last = address->has_to ? MAX(address->to, first) : first;
    for (unsigned port = first; !ok && port <= last; port++) {
        ok = bind_all(found, is_for_both(address, found), (uint16_t)port, fds, &err);
        if (!ok && err != EADDRINUSE) {
            break;
        }
    }
    freeaddrinfo(found);
    if (!ok && err == EADDRINUSE) {
        merino_error_errno(error, err, "Failed to find an available port");
    } else if (!ok) {
        merino_error_errno(error, err, "Failed to bind socket");
    } else if (address->has_keep_alive && address->keep_alive) {
        for (guint i = 0; i < fds->len; i++) {
            int on = 1;

            /* Inherited by the sockets that are accepted. */
            setsockopt(g_array_index(fds, int, i), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
        }
    }
    return ok;
}

/* --- a descriptor that this process was started with --- */

static int listen_fd(const FdSocketAddress *address, GError **error)
{
    int listening = 0;
    socklen_t length = sizeof(listening);
    char *end;
    long fd = strtol(address->str, &end, 10);

    if (end == address->str || *end || fd < 0 || fd > INT_MAX) {
        merino_error(error, "Unable to parse FD number %s", address->str);
        return -1;
    }
    if (getsockopt((int)fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) < 0 || !listening) {
        merino_error(error, "File descriptor '%s' is not a listening socket", address->str);
        return -1;
    }
    fcntl((int)fd, F_SETFL, fcntl((int)fd, F_GETFL) | O_NONBLOCK);
    fcntl((int)fd, F_SETFD, FD_CLOEXEC);
    return (int)fd;
}

G_DEFINE_AUTOPTR_CLEANUP_FUNC(NetListener, net_listener_free)

NetListener *net_listen(const SocketAddress *address, int mode, GError **error)
{
    g_autoptr(NetListener) listener = g_new0(NetListener, 1);
    int fd = -1;

    listener->fds = g_array_new(FALSE, FALSE, sizeof(int));
    switch (address->type) {
    case SOCKET_ADDRESS_TYPE_UNIX:
        fd = listen_unix(listener, &address->u.q_unix, mode, error);
        break;
    case SOCKET_ADDRESS_TYPE_INET:
        return listen_inet(&address->u.inet, listener->fds, error) ? g_steal_pointer(&listener)
                                                                   : NULL;
    case SOCKET_ADDRESS_TYPE_FD:
        fd = listen_fd(&address->u.fd, error);
        break;
    default:
        merino_error(error, "The NBD server listens on addresses of type 'inet', 'unix' and 'fd'");
        break;
    }
    if (fd < 0) {
        return NULL;
    }
    g_array_append_val(listener->fds, fd);
    return g_steal_pointer(&listener);
}

void net_listener_free(NetListener *listener)
{
    struct stat status;

    if (!listener) {
        return;
    }
    for (guint i = 0; i < listener->fds->len; i++) {
        close(g_array_index(listener->fds, int, i));
    }
    g_array_free(listener->fds, TRUE);
    if (listener->path && lstat(listener->path, &status) == 0 &&
        status.st_dev == listener->device && status.st_ino == listener->inode) {
        unlink(listener->path);
    }
    g_free(listener->path);
    g_free(listener);
}
