/* SPDX-License-Identifier: MIT */
/*
 * The byte stream under a connection.
 *
 * A channel is a connected, non-blocking socket that it owns. What lies between the socket and the
 * protocol (plain bytes, or records of a TLS session) is known here and nowhere else.
 *
 * Receiving and sending belong to one event loop at a time. nbd_channel_shutdown() may be called on
 * the main thread while another thread's loop uses the channel: both directions end, waiters wake.
 * The channel is freed on the main thread, when no loop uses it any more, so the descriptor's
 * number cannot pass to something else in between.
 */
#ifndef MERINO_NBD_CHANNEL_H
#define MERINO_NBD_CHANNEL_H

#include "net/tls-session.h"

typedef struct NbdChannel {
    int fd;
    TlsSession *tls;     /* NULL: bytes are plain */
    bool is_local;       /* a unix socket */
    atomic_bool is_shut; /* nobody will read what is sent any more */
} NbdChannel;

/* Takes over `fd`, which is made non-blocking. */
void nbd_channel_init(NbdChannel *channel, int fd);
void nbd_channel_done(NbdChannel *channel);

void nbd_channel_shutdown(NbdChannel *channel);

/* From here on everything is encrypted. Nobody else receives or sends meanwhile. False and the
 * reason when the peer is not to be talked to. */
bool coroutine_fn nbd_channel_start_tls(NbdChannel *channel, const TlsCreds *creds, GError **error);

/* Whom the peer has proven to be; NULL when it has not. The caller frees. */
char *nbd_channel_peer(NbdChannel *channel);
/* Tell the peer that it is not let in. */
void nbd_channel_deny(NbdChannel *channel);

/* At least one byte; 0 at the end of the stream; -errno. */
ssize_t coroutine_fn nbd_channel_recv(NbdChannel *channel, const struct iovec *iov, int niov);

/* A watch through which to receive what nbd_channel_recv() would; NULL where it is of no use. */
SocketWatch *nbd_channel_watch(NbdChannel *channel);

/* Exactly `bytes`. 0, or -errno; the end of the stream is -ECONNRESET. */
int coroutine_fn nbd_channel_recv_all(NbdChannel *channel, void *buf, size_t bytes);

/* What the stream takes without waiting: at least one byte, or -EAGAIN, or another -errno. After
 * -EAGAIN the next call begins with the same bytes. */
ssize_t nbd_channel_try_send(NbdChannel *channel, const struct iovec *iov, int niov);
/* Wait until the stream takes more. */
int coroutine_fn nbd_channel_wait_writable(NbdChannel *channel);

/* All of it. 0 or -errno. */
int coroutine_fn nbd_channel_send_all(NbdChannel *channel, const void *buf, size_t bytes);

#endif
