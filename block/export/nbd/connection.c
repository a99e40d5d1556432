/* SPDX-License-Identifier: MIT */
#include "connection.h"

#include "negotiate.h"
#include "server.h"
#include "transmission.h"

/* What part of the time for its handshake a client has while others wait for its place. */
#define PRESSED_PART 4

static const bool may_follow[NBD_STATE__MAX][NBD_STATE__MAX] = {
    [NBD_STATE_GREETING] = { [NBD_STATE_OPTIONS] = true, [NBD_STATE_CLOSED] = true },
    [NBD_STATE_OPTIONS] = { [NBD_STATE_TRANSMISSION] = true, [NBD_STATE_CLOSED] = true },
    [NBD_STATE_TRANSMISSION] = { [NBD_STATE_DRAINING] = true },
    [NBD_STATE_DRAINING] = { [NBD_STATE_CLOSED] = true },
};

void nbd_connection_enter(NbdConnection *conn, NbdState state)
{
    g_assert(may_follow[conn->state][state]);
    conn->state = state;
}

void nbd_connection_shutdown(NbdConnection *conn)
{
    nbd_channel_shutdown(&conn->channel);
}

void nbd_connection_choose(NbdConnection *conn, NbdExport *exp)
{
    conn->exp = exp;
    export_ref(exp->base);
    g_ptr_array_add(exp->connections, conn);
    if (conn->contexts.export_serial != exp->serial) {
        nbd_contexts_done(&conn->contexts);
    }
}

static void end_handshake(NbdConnection *conn)
{
    event_timer_free(conn->handshake_timer);
    conn->handshake_timer = NULL;
}

static void handshake_took_too_long(void *opaque)
{
    nbd_connection_shutdown(opaque);
}

static void begin_handshake(NbdConnection *conn, uint32_t seconds)
{
    conn->handshake_timer = event_timer_new(event_loop_main(), handshake_took_too_long, conn);
    conn->handshake_begin_ns = event_loop_now_ns();
    conn->handshake_end_ns = conn->handshake_begin_ns + seconds * (int64_t)1000000000;
    event_timer_set(conn->handshake_timer, conn->handshake_end_ns);
}

void nbd_connection_press(NbdConnection *conn)
{
    int64_t given = conn->handshake_end_ns - conn->handshake_begin_ns;

    if (conn->handshake_timer) {
        event_timer_set(conn->handshake_timer, conn->handshake_begin_ns + given / PRESSED_PART);
    }
}

static void connection_free(NbdConnection *conn)
{
    NbdExport *exp = conn->exp;

    nbd_connection_enter(conn, NBD_STATE_CLOSED);
    end_handshake(conn);
    nbd_server_connection_gone(conn);
    if (exp) {
        g_ptr_array_remove_fast(exp->connections, conn);
    }
    nbd_contexts_done(&conn->contexts);
    nbd_channel_done(&conn->channel);
    g_free(conn);
    if (exp) {
        export_unref(exp->base);
    }
}

static void transmission_ended(void *opaque)
{
    connection_free(opaque);
    nodes_tidy_idle();
}

/* On the export's loop. */
static void coroutine_fn connection_transmit(void *opaque)
{
    NbdConnection *conn = opaque;

    nbd_connection_enter(conn, NBD_STATE_TRANSMISSION);
    nbd_transmission_run(conn);
    event_loop_call(event_loop_main(), transmission_ended, conn);
}

/* On the main loop. */
static void coroutine_fn connection_negotiate(void *opaque)
{
    NbdConnection *conn = opaque;
    bool ok = nbd_negotiate(conn);

    if (ok) {
        end_handshake(conn);
        coroutine_start_on(conn->exp->base->loop, connection_transmit, conn);
    } else {
        connection_free(conn);
    }
}

NbdConnection *nbd_connection_start(int fd, uint32_t handshake_seconds)
{
    NbdConnection *conn = g_new0(NbdConnection, 1);

    nbd_channel_init(&conn->channel, fd);
    if (handshake_seconds) {
        begin_handshake(conn, handshake_seconds);
    }
    coroutine_start_on(event_loop_main(), connection_negotiate, conn);
    return conn;
}
