/* SPDX-License-Identifier: MIT */
/*
 * Negotiation: what passes between client and server before requests.
 *
 * It runs on the main loop as a coroutine, because it looks at exports. Between two yields it sees
 * them unchanged; so each option is received whole, answered into memory in one go, and the answer
 * is sent afterwards.
 */
#ifndef MERINO_NBD_NEGOTIATE_H
#define MERINO_NBD_NEGOTIATE_H

#include "connection.h"

/* True when the client has chosen an export (conn->exp) and has been told so; false when the
 * connection is to be closed. */
bool coroutine_fn nbd_negotiate(NbdConnection *conn);

/* --- between negotiate.c, which moves bytes, and options.c, which answers --- */

/* What the connection does when an option has been answered. */
typedef enum NbdNext {
    NBD_NEXT_OPTION,
    NBD_NEXT_TLS,
    NBD_NEXT_TRANSMISSION,
    NBD_NEXT_CLOSE,
} NbdNext;

/* One option, received whole. */
typedef struct NbdOptionCall {
    NbdConnection *conn;
    uint32_t option;
    const uint8_t *data;
    size_t left;     /* bytes of `data` that have not been taken */
    GByteArray *out; /* the answer */
} NbdOptionCall;

/* Answer one option. Never yields. */
NbdNext nbd_option_answer(NbdOptionCall *call);

/* The server asks for TLS, and the client has not begun it. */
bool nbd_tls_is_missing(const NbdConnection *conn);

/* Append a reply, or one of the error replies with a message for people. */
void nbd_option_reply(NbdOptionCall *call, uint32_t type, const void *data, size_t length);
void nbd_option_error(NbdOptionCall *call, uint32_t type, const char *format, ...)
    G_GNUC_PRINTF(3, 4);

#endif
