/* SPDX-License-Identifier: MIT */
#include "negotiate.h"

#include "protocol.h"
#include "server.h"

#include <string.h>

#define SKIP_PIECE 65536

void nbd_option_reply(NbdOptionCall *call, uint32_t type, const void *data, size_t length)
{
    uint8_t header[NBD_OPTION_REPLY_BYTES];

    nbd_encode_option_reply(header, call->option, type, (uint32_t)length);
    g_byte_array_append(call->out, header, sizeof(header));
    if (length) {
        g_byte_array_append(call->out, data, (guint)length);
    }
}

void nbd_option_error(NbdOptionCall *call, uint32_t type, const char *format, ...)
{
    g_autofree char *message = NULL;
    va_list args;

    va_start(args, format);
    message = g_strdup_vprintf(format, args);
    va_end(args);
    nbd_option_reply(call, type, message, strlen(message));
}

bool nbd_tls_is_missing(const NbdConnection *conn)
{
    return nbd_server_tls_creds() && !conn->channel.tls;
}

static bool coroutine_fn receive(NbdConnection *conn, void *buf, size_t bytes)
{
    return nbd_channel_recv_all(&conn->channel, buf, bytes) == 0;
}

static bool coroutine_fn skip(NbdConnection *conn, size_t bytes)
{
    g_autofree uint8_t *scratch = g_malloc(SKIP_PIECE);

    while (bytes) {
        size_t piece = MIN(bytes, SKIP_PIECE);

        if (!receive(conn, scratch, piece)) {
            return false;
        }
        bytes -= piece;
    }
    return true;
}

static bool coroutine_fn greet(NbdConnection *conn)
{
    uint8_t greeting[NBD_GREETING_BYTES];
    uint8_t answer[NBD_CLIENT_FLAGS_BYTES];
    uint32_t flags;

    nbd_put64(greeting, NBD_MAGIC);
    nbd_put64(greeting + 8, NBD_OPTION_MAGIC);
    nbd_put16(greeting + 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    if (nbd_channel_send_all(&conn->channel, greeting, sizeof(greeting)) < 0 ||
        !receive(conn, answer, sizeof(answer))) {
        return false;
    }
    flags = nbd_get32(answer);
    conn->fixed_newstyle = flags & NBD_FLAG_FIXED_NEWSTYLE;
    conn->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
    return !(flags & ~(uint32_t)(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES));
}

/* Receive the option's data, or refuse it for its size. */
static NbdNext coroutine_fn receive_and_answer(NbdOptionCall *call, uint32_t length)
{
    g_autofree uint8_t *data = NULL;

    if (length > NBD_MAX_OPTION) {
        /* EXPORT_NAME has no answer that says no. */
        if (call->option == NBD_OPT_EXPORT_NAME || length > NBD_MAX_OPTION_SKIP ||
            !skip(call->conn, length)) {
            return NBD_NEXT_CLOSE;
        }
        nbd_option_error(call, NBD_REP_ERR_TOO_BIG, "option '%s' is too long",
                         nbd_option_name(call->option));
        return NBD_NEXT_OPTION;
    }
    data = g_malloc(MAX(length, 1));
    if (!receive(call->conn, data, length)) {
        return NBD_NEXT_CLOSE;
    }
    call->data = data;
    call->left = length;
    return nbd_option_answer(call);
}

static NbdNext coroutine_fn start_tls(NbdConnection *conn)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *peer = NULL;

    if (!nbd_channel_start_tls(&conn->channel, nbd_server_tls_creds(), &error)) {
        nbd_server_complain("%s", error->message);
        return NBD_NEXT_CLOSE;
    }
    peer = nbd_channel_peer(&conn->channel);
    if (!nbd_server_admits(peer)) {
        nbd_server_complain("TLS authorization of '%s' is denied", peer ? peer : "");
        nbd_channel_deny(&conn->channel);
        return NBD_NEXT_CLOSE;
    }
    return NBD_NEXT_OPTION;
}

static NbdNext coroutine_fn handle_option(NbdConnection *conn)
{
    g_autoptr(GByteArray) out = g_byte_array_new();
    NbdOptionCall call = { .conn = conn, .out = out };
    uint8_t header[NBD_OPTION_BYTES];
    uint32_t length;
    NbdNext next;

    if (!receive(conn, header, sizeof(header)) ||
        !nbd_decode_option(header, &call.option, &length)) {
        return NBD_NEXT_CLOSE;
    }
    /* A client of the first newstyle knows one option and no refusals. */
    if (!conn->fixed_newstyle && call.option != NBD_OPT_EXPORT_NAME) {
        return NBD_NEXT_CLOSE;
    }
    next = receive_and_answer(&call, length);
    if (nbd_channel_send_all(&conn->channel, out->data, out->len) < 0) {
        return NBD_NEXT_CLOSE;
    }
    return next == NBD_NEXT_TLS ? start_tls(conn) : next;
}

bool coroutine_fn nbd_negotiate(NbdConnection *conn)
{
    NbdNext next;

    if (!greet(conn)) {
        return false;
    }
    nbd_connection_enter(conn, NBD_STATE_OPTIONS);
    while ((next = handle_option(conn)) == NBD_NEXT_OPTION) {
        /* A client that sends option after option does not keep the loop, nor its own timer. */
        coroutine_pause();
    }
    return next == NBD_NEXT_TRANSMISSION;
}
