/* SPDX-License-Identifier: MIT */
/*
 * The NBD server: its listening sockets and the connections that came through them.
 *
 * Everything here is on the main thread. Each socket has a coroutine on the main loop that accepts
 * clients; while there are as many as the limit allows it waits, and the kernel keeps further
 * clients waiting in turn. Then clients that have not chosen an export, of whom we know nothing
 * yet, are given less time, so that strangers cannot keep all places for long. A stop shuts
 * everything down and polls the main loop until all listeners and connections have ended. The
 * sockets that listen are not shut down: one that the program was given may be its parent's, too.
 */
#include "server.h"

#include "connection.h"
#include "net/authz.h"
#include "net/listen.h"
#include "util/error.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

/* Pause after the system has run out of descriptors or memory. */
#define ACCEPT_RETRY_NS (100 * 1000 * 1000)

#define MOST_REQUESTS        65536
#define LEAST_REQUEST_MEMORY (1 << 20)

#define COMPLAINT_INTERVAL_NS (1000 * 1000 * 1000)
#define COMPLAINT_MAX         2000 /* bytes, which a pipe that takes anything takes */

/* Of what clients say, other characters are not repeated to people. */
#define PRINTABLE                                                                                  \
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 "                              \
    "!\"#$%&'()*+,-./:;<=>?@[]^_{}~"

/* A socket that listens. */
typedef struct Door {
    int fd;      /* of the listener */
    int wait_fd; /* an epoll descriptor: readable when a client waits there, or the server stops */
} Door;

typedef struct NbdServer {
    NbdServerLimits limits;
    TlsCreds *tls_creds; /* NULL: no TLS */
    Authz *authz;        /* NULL: everybody is let in */
    NetListener *listener;
    GArray *doors;          /* Door, one for each socket of the listener */
    int stop_fd;            /* an eventfd: readable when the server stops */
    int64_t quiet_until_ns; /* complaints are counted only */
    unsigned unsaid;
    unsigned listeners; /* coroutines that have not ended */
    bool stopping;
    GPtrArray *waiting;     /* Coroutine *: listeners that wait for a client to go */
    GPtrArray *connections; /* NbdConnection *, borrowed */
} NbdServer;

static NbdServer *server; /* NULL: not running */

bool nbd_server_is_running(void)
{
    return server && !server->stopping;
}

const NbdServerLimits *nbd_server_limits(void)
{
    return &server->limits;
}

const TlsCreds *nbd_server_tls_creds(void)
{
    return server->tls_creds;
}

bool nbd_server_admits(const char *identity)
{
    return !server->authz || (identity && authz_allows(server->authz, identity));
}

/* Whether a complaint can be made without waiting for whoever should read standard error. */
static bool is_heard(void)
{
    struct pollfd pollfd = { .fd = STDERR_FILENO, .events = POLLOUT };

    return poll(&pollfd, 1, 0) == 1;
}

void nbd_server_complain(const char *format, ...)
{
    int64_t now = event_loop_now_ns();
    g_autofree char *text = NULL;
    va_list args;

    if (server->stopping) {
        return;
    }
    if (now < server->quiet_until_ns || !is_heard()) {
        server->unsaid++;
        return;
    }
    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    g_strcanon(text, PRINTABLE, '?');
    text[MIN(strlen(text), COMPLAINT_MAX)] = 0;
    if (server->unsaid) {
        g_message("NBD clients turned away without a word: %u", server->unsaid);
    }
    g_message("NBD client turned away: %s", text);
    server->quiet_until_ns = now + COMPLAINT_INTERVAL_NS;
    server->unsaid = 0;
}

static bool is_full(void)
{
    return server->limits.max_connections &&
           server->connections->len >= server->limits.max_connections;
}

static void wake_listeners(void)
{
    while (server->waiting->len) {
        coroutine_wake(g_ptr_array_steal_index(server->waiting, server->waiting->len - 1));
    }
}

static void press_handshakes(void)
{
    for (guint i = 0; i < server->connections->len; i++) {
        nbd_connection_press(g_ptr_array_index(server->connections, i));
    }
}

/* Also until the server stops. False when the socket is of no more use. */
static bool coroutine_fn wait_for_client(const Door *door)
{
    return co_io_poll(door->wait_fd, POLLIN) >= 0;
}

/* The server is full. False when the socket is of no more use. */
static bool coroutine_fn wait_for_room(const Door *door)
{
    bool usable = wait_for_client(door);

    if (usable && is_full() && !server->stopping) {
        press_handshakes();
        g_ptr_array_add(server->waiting, coroutine_self());
        coroutine_yield();
    }
    return usable;
}

/* Accept one client, or wait. False when the socket is of no more use. */
static bool coroutine_fn accept_one(const Door *door)
{
    int client = accept4(door->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

    if (client >= 0) {
        g_ptr_array_add(server->connections,
                        nbd_connection_start(client, server->limits.handshake_seconds));
        coroutine_pause();
        return true;
    }
    switch (errno) {
    case EAGAIN:
        return wait_for_client(door);
    case EMFILE:
    case ENFILE:
    case ENOBUFS:
    case ENOMEM:
        coroutine_sleep_ns(ACCEPT_RETRY_NS);
        return true;
    case EBADF:
    case EINVAL: /* shut down */
    case ENOTSOCK:
    case EOPNOTSUPP:
        return false;
    default: /* trouble of one client */
        return true;
    }
}

static void coroutine_fn listener_main(void *opaque)
{
    const Door *door = opaque;
    bool usable = true;

    while (usable && !server->stopping) {
        usable = is_full() ? wait_for_room(door) : accept_one(door);
    }
    server->listeners--;
    event_loop_notify(event_loop_main());
}

void nbd_server_connection_gone(NbdConnection *conn)
{
    g_ptr_array_remove_fast(server->connections, conn);
    wake_listeners();
}

static bool set_limits(NbdServerLimits *limits, const NbdServerOptions *options, GError **error)
{
    *limits = (NbdServerLimits){
        options->has_max_connections ? options->max_connections : NBD_DEFAULT_CONNECTIONS,
        options->has_handshake_max_seconds ? options->handshake_max_seconds
                                           : NBD_DEFAULT_HANDSHAKE_SECONDS,
        options->has_max_requests ? options->max_requests : NBD_DEFAULT_REQUESTS,
        options->has_max_request_memory ? options->max_request_memory : NBD_DEFAULT_REQUEST_MEMORY,
    };
    if (limits->requests < 1 || limits->requests > MOST_REQUESTS) {
        merino_error(error, "Parameter 'max-requests' expects a value from 1 to %d", MOST_REQUESTS);
        return false;
    }
    if (limits->request_bytes < LEAST_REQUEST_MEMORY) {
        merino_error(error, "Parameter 'max-request-memory' expects a value of at least %d",
                     LEAST_REQUEST_MEMORY);
        return false;
    }
    return true;
}

static bool parse_mode(const NbdServerOptions *options, int *ret_mode, GError **error)
{
    const UnixSocketAddress *address = &options->addr->u.q_unix;
    guint64 mode;

    if (!options->socket_mode) {
        *ret_mode = NET_MODE_FROM_UMASK;
        return true;
    }
    if (options->addr->type != SOCKET_ADDRESS_TYPE_UNIX ||
        (address->has_abstract && address->abstract)) {
        merino_error(error, "'socket-mode' is for unix sockets that have a file");
        return false;
    }
    if (!g_ascii_string_to_unsigned(options->socket_mode, 8, 0, 0777, &mode, NULL)) {
        merino_error(error, "Parameter 'socket-mode' expects octal digits up to 0777");
        return false;
    }
    *ret_mode = (int)mode;
    return true;
}

static void close_doors(NbdServer *gone)
{
    for (guint i = 0; i < gone->doors->len; i++) {
        close(g_array_index(gone->doors, Door, i).wait_fd);
    }
    g_array_set_size(gone->doors, 0);
    net_listener_free(g_steal_pointer(&gone->listener));
}

static void server_free(NbdServer *gone)
{
    close_doors(gone);
    g_array_free(gone->doors, TRUE);
    if (gone->stop_fd >= 0) {
        close(gone->stop_fd);
    }
    g_ptr_array_free(gone->waiting, TRUE);
    g_ptr_array_free(gone->connections, TRUE);
    tls_creds_release(gone->tls_creds);
    authz_release(gone->authz);
    g_free(gone);
}

G_DEFINE_AUTOPTR_CLEANUP_FUNC(NbdServer, server_free)

/* Hold the objects that the options name. */
static bool acquire_objects(NbdServer *made, const NbdServerOptions *options, GError **error)
{
    if (options->tls_authz && !options->tls_creds) {
        merino_error(error, "'tls-authz' needs 'tls-creds'");
        return false;
    }
    if (options->tls_creds) {
        made->tls_creds = tls_creds_acquire_server(options->tls_creds, error);
        if (!made->tls_creds) {
            return false;
        }
    }
    if (options->tls_authz) {
        made->authz = authz_acquire(options->tls_authz, error);
        if (!made->authz) {
            return false;
        }
    }
    return true;
}

static bool add_to_wait(int wait_fd, int fd)
{
    struct epoll_event event = { .events = EPOLLIN };

    return epoll_ctl(wait_fd, EPOLL_CTL_ADD, fd, &event) == 0;
}

static bool open_door(NbdServer *made, int fd)
{
    Door door = { fd, epoll_create1(EPOLL_CLOEXEC) };

    if (door.wait_fd < 0) {
        return false;
    }
    g_array_append_val(made->doors, door);
    return add_to_wait(door.wait_fd, fd) && add_to_wait(door.wait_fd, made->stop_fd);
}

static bool open_doors(NbdServer *made, GError **error)
{
    bool ok;

    made->stop_fd = eventfd(0, EFD_CLOEXEC);
    ok = made->stop_fd >= 0;
    for (guint i = 0; ok && i < made->listener->fds->len; i++) {
        ok = open_door(made, g_array_index(made->listener->fds, int, i));
    }
    if (!ok) {
        merino_error_errno(error, errno, "Failed to watch the NBD server's socket");
    }
    return ok;
}

bool nbd_server_start(const NbdServerOptions *options, GError **error)
{
    g_autoptr(NbdServer) made = NULL;
    int mode;

    if (server) {
        merino_error(error, "NBD server already running");
        return false;
    }
    made = g_new0(NbdServer, 1);
    made->waiting = g_ptr_array_new();
    made->connections = g_ptr_array_new();
    made->doors = g_array_new(FALSE, FALSE, sizeof(Door));
    made->stop_fd = -1;
    if (!set_limits(&made->limits, options, error) || !parse_mode(options, &mode, error) ||
        !acquire_objects(made, options, error)) {
        return false;
    }
    made->listener = net_listen(options->addr, mode, error);
    if (!made->listener || !open_doors(made, error)) {
        return false;
    }
    server = g_steal_pointer(&made);
    for (guint i = 0; i < server->doors->len; i++) {
        server->listeners++;
        coroutine_start_on(event_loop_main(), listener_main,
                           &g_array_index(server->doors, Door, i));
    }
    return true;
}

bool nbd_server_stop(GError **error)
{
    if (!nbd_server_is_running()) {
        merino_error(error, "NBD server not running");
        return false;
    }
    server->stopping = true;
    eventfd_write(server->stop_fd, 1);
    wake_listeners();
    while (server->listeners) {
        event_loop_poll(event_loop_main(), true);
    }
    close_doors(server);
    for (guint i = 0; i < server->connections->len; i++) {
        nbd_connection_shutdown(g_ptr_array_index(server->connections, i));
    }
    export_close_all_type(BLOCK_EXPORT_TYPE_NBD);
    while (server->connections->len) {
        event_loop_poll(event_loop_main(), true);
    }
    g_clear_pointer(&server, server_free);
    return true;
}
