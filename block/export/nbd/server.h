/* SPDX-License-Identifier: MIT */
/*
 * What connections and exports know of the server. Main thread.
 */
#ifndef MERINO_NBD_SERVER_H
#define MERINO_NBD_SERVER_H

#include "export.h"
#include "net/tls-creds.h"

/* What the server allows. It does not change while it runs. */
typedef struct NbdServerLimits {
    uint32_t max_connections; /* clients at a time; further ones wait to be accepted. 0: no limit */
    uint32_t handshake_seconds; /* a client that has not chosen an export by then is turned away;
                                   0: no limit */
    uint32_t requests;          /* of one client at work, until their reply is sent */
    uint64_t request_bytes;     /* and the memory these hold */
} NbdServerLimits;

bool nbd_server_is_running(void);
const NbdServerLimits *nbd_server_limits(void); /* any thread, for as long as there are clients */

/* What its clients must begin TLS with; NULL: they cannot. */
const TlsCreds *nbd_server_tls_creds(void);

/* Whether it lets a client in that has proven to be `identity`; NULL: it has not. */
bool nbd_server_admits(const char *identity);

/* Tell people why a client has been turned away. Clients cannot make it say much: at most one
 * complaint a second is printed. */
void nbd_server_complain(const char *format, ...) G_GNUC_PRINTF(1, 2);

/* A connection that the server started is about to be freed. */
void nbd_server_connection_gone(NbdConnection *conn);

#endif
