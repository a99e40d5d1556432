/* SPDX-License-Identifier: MIT */
/*
 * The server's side of TLS over a connected, non-blocking socket.
 *
 * A session neither owns nor closes the socket. It has two buffers of encrypted bytes between
 * itself and the socket, so GnuTLS never sees the socket, and a handshake, which is costly, is
 * computed on a worker thread while the loop goes on.
 *
 * All calls on a session come from one thread at a time; it may move to another loop between them.
 * One coroutine may receive while another sends. Whoever shuts the socket down, on any thread, ends
 * the session; those who wait wake.
 *
 * The peer can do nothing that keeps a thread: what is received is at most one buffer ahead of what
 * is asked for, and a peer that wants to negotiate anew is refused.
 */
#ifndef MERINO_NET_TLS_SESSION_H
#define MERINO_NET_TLS_SESSION_H

#include "net/tls-creds.h"
#include "util/event-loop.h"

#include <sys/types.h>

typedef struct TlsSession TlsSession;

/* The credentials outlive the session. NULL and an error when GnuTLS will not. */
TlsSession *tls_session_new(const TlsCreds *creds, int fd, GError **error);
void tls_session_free(TlsSession *session); /* NULL is ignored */

/* Agree on keys, and verify the peer as the credentials say. False and the reason when the peer
 * goes away or is not to be trusted; it has been told as far as it listens. */
bool coroutine_fn tls_session_handshake(TlsSession *session, GError **error);

/* Whom the peer has proven to be: the distinguished name of its certificate, or the user whose
 * pre-shared key it has. NULL when it has not shown who it is. The caller frees. */
char *tls_session_identity(TlsSession *session);

/* At least one byte; 0 at the proper end of the stream; -errno. */
ssize_t coroutine_fn tls_session_recv(TlsSession *session, const struct iovec *iov, int niov);

/*
 * What the socket takes without waiting: at least one byte, or -EAGAIN, or another -errno.
 * After -EAGAIN some of the bytes may be on their way already: the next call begins with the same.
 */
ssize_t tls_session_try_send(TlsSession *session, const struct iovec *iov, int niov);

/* Say that nothing more will be sent, if the socket takes that now. */
void tls_session_say_goodbye(TlsSession *session);
/* Say that the peer is not let in. */
void tls_session_deny(TlsSession *session);

#endif
