/* SPDX-License-Identifier: MIT */
/*
 * A connection: one client, from its acceptance to its end.
 *
 *   state         where     what
 *   GREETING      main      hello and flags are exchanged
 *   OPTIONS       main      the client asks, and chooses an export
 *   TRANSMISSION  export's  requests are received and answered
 *   DRAINING      export's  no more are received; those in flight end
 *   CLOSED        main      about to be freed
 *
 * The connection moves from the main loop to its export's loop when the client has chosen
 * (nbd_transmission_run() takes over there) and comes back only to be freed. Whoever wants it to
 * end shuts its channel down, on the main thread, in any state; the rest follows.
 */
#ifndef MERINO_NBD_CONNECTION_H
#define MERINO_NBD_CONNECTION_H

#include "channel.h"
#include "export.h"
#include "meta-context.h"

typedef enum NbdState {
    NBD_STATE_GREETING,
    NBD_STATE_OPTIONS,
    NBD_STATE_TRANSMISSION,
    NBD_STATE_DRAINING,
    NBD_STATE_CLOSED,
    NBD_STATE__MAX,
} NbdState;

struct NbdConnection {
    NbdChannel channel;
    NbdState state;
    int64_t handshake_begin_ns, handshake_end_ns;
    EventTimer *handshake_timer; /* NULL without a limit, and once negotiation is over */

    /* What was negotiated. Constant during transmission. */
    bool fixed_newstyle;
    bool no_zeroes;
    bool structured; /* structured replies; extended headers imply them */
    bool extended;
    NbdContexts contexts;
    NbdExport *exp; /* NULL until chosen; then a reference to it is held */
};

/* Serve a client on the connected socket `fd`, which becomes the connection's. A client that takes
 * longer than `handshake_seconds` (0: no limit) to choose an export is turned away. */
NbdConnection *nbd_connection_start(int fd, uint32_t handshake_seconds);

/* Others wait for the place of somebody who has not chosen an export: the client has only a quarter
 * of the time that it was given. Main thread; any number of times. */
void nbd_connection_press(NbdConnection *conn);

/* Main thread; any number of times. */
void nbd_connection_shutdown(NbdConnection *conn);

/* The one way from state to state; only the table's steps are possible. */
void nbd_connection_enter(NbdConnection *conn, NbdState state);

/* Bind the connection to the export that its client has chosen. Main thread. */
void nbd_connection_choose(NbdConnection *conn, NbdExport *exp);

#endif
