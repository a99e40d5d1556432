/* SPDX-License-Identifier: MIT */
/*
 * The NBD server: its listening sockets and the connections that came through them.
 *
 * Everything here is on the main thread. Each socket has a coroutine on the main loop that accepts
 * clients; while there are as many as the limit allows it waits, and the kernel keeps further
 * clients waiting in turn. A stop shuts everything down and polls the main loop until all
 * listeners and connections have ended.
 */
#include "server.h"

#include "connection.h"
#include "net/listen.h"
#include "util/error.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>

/* Pause after the system has run out of descriptors or memory. */
#define ACCEPT_RETRY_NS (100 * 1000 * 1000)

typedef struct NbdServer {
    SocketAddress *address;
    NbdServerLimits limits;
    TlsCreds *tls_creds; /* NULL: no TLS */
    GArray *fds;
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

uint32_t nbd_server_max_connections(void)
{
    return server->limits.max_connections;
}

const TlsCreds *nbd_server_tls_creds(void)
{
    return server->tls_creds;
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

static void coroutine_fn wait_for_room(void)
{
    g_ptr_array_add(server->waiting, coroutine_self());
    coroutine_yield();
}

/* Accept one client, or wait. False when the socket is of no more use. */
static bool coroutine_fn accept_one(int fd)
{
    int client = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

    if (client >= 0) {
        g_ptr_array_add(server->connections,
                        nbd_connection_start(client, server->limits.handshake_seconds));
        coroutine_pause();
        return true;
    }
    switch (errno) {
    case EAGAIN:
        return co_io_poll(fd, POLLIN) >= 0;
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
    int fd = GPOINTER_TO_INT(opaque);
    bool usable = true;

    while (usable && !server->stopping) {
        if (is_full()) {
            wait_for_room();
        } else {
            usable = accept_one(fd);
        }
    }
    server->listeners--;
    event_loop_notify(event_loop_main());
}

void nbd_server_connection_gone(NbdConnection *conn)
{
    g_ptr_array_remove_fast(server->connections, conn);
    wake_listeners();
}

static NbdServerLimits limits_from(const NbdServerOptions *options)
{
    NbdServerLimits limits = { NBD_DEFAULT_CONNECTIONS, NBD_DEFAULT_HANDSHAKE_SECONDS };

    if (options->has_max_connections) {
        limits.max_connections = options->max_connections;
    }
    if (options->has_handshake_max_seconds) {
        limits.handshake_seconds = options->handshake_max_seconds;
    }
    return limits;
}

bool nbd_server_start(const NbdServerOptions *options, GError **error)
{
    TlsCreds *tls_creds = NULL;
    GArray *fds;

    if (server) {
        merino_error(error, "NBD server already running");
        return false;
    }
    if (options->tls_creds) {
        tls_creds = tls_creds_acquire_server(options->tls_creds, error);
        if (!tls_creds) {
            return false;
        }
    }
    fds = net_listen(options->addr, error);
    if (!fds) {
        tls_creds_release(tls_creds);
        return false;
    }
    server = g_new0(NbdServer, 1);
    server->address = socket_address_clone(options->addr);
    server->limits = limits_from(options);
    server->tls_creds = tls_creds;
    server->fds = fds;
    server->waiting = g_ptr_array_new();
    server->connections = g_ptr_array_new();
    for (guint i = 0; i < fds->len; i++) {
        server->listeners++;
        coroutine_start_on(event_loop_main(), listener_main,
                           GINT_TO_POINTER(g_array_index(fds, int, i)));
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
    for (guint i = 0; i < server->fds->len; i++) {
        shutdown(g_array_index(server->fds, int, i), SHUT_RDWR);
    }
    wake_listeners();
    for (guint i = 0; i < server->connections->len; i++) {
        nbd_connection_shutdown(g_ptr_array_index(server->connections, i));
    }
    export_close_all_type(BLOCK_EXPORT_TYPE_NBD);
    while (server->listeners || server->connections->len) {
        event_loop_poll(event_loop_main(), true);
    }
    net_listen_close(server->fds, server->address);
    g_ptr_array_free(server->waiting, TRUE);
    g_ptr_array_free(server->connections, TRUE);
    socket_address_free(server->address);
    tls_creds_release(server->tls_creds);
    g_clear_pointer(&server, g_free);
    return true;
}
