/* SPDX-License-Identifier: MIT */
#include "net/tls-session.h"
#include "tls-creds-internal.h"
#include "util/error.h"

#include <errno.h>
#include <gnutls/x509.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

/* The buffer between the socket and GnuTLS. A few records a system call. */
#define IN_BYTES (64 << 10)

/* Bytes that are encrypted before they are sent. Larger ones gain little. */
#define BATCH_BYTES (128 << 10)

/* The most that one record holds. Smaller pieces are joined into one. */
#define RECORD_BYTES (16 << 10)

#define FILLS_A_TURN 4

struct TlsSession {
    int fd;
    const TlsCreds *creds;
    gnutls_session_t gnutls;
    char *refusal; /* why the peer's certificate is not accepted; or NULL */

    /* Encrypted bytes that have come: [in_begin, in_end). */
    uint8_t *in;
    size_t in_begin, in_end;
    bool in_ended; /* there will be no more */
    bool closed;   /* the peer has said that it sends no more */
    int failure;   /* -errno: nothing can be received any more; or 0 */

    /* Encrypted bytes that are to go: those from out_begin on. */
    GByteArray *out;
    size_t out_begin;
    size_t batch; /* plain bytes that they stand for, if anybody waits to hear so; else 0 */

    uint8_t *joined; /* RECORD_BYTES, once there was something to join; or NULL */
};

/* --- what GnuTLS has for a network --- */

static ssize_t pull(gnutls_transport_ptr_t opaque, void *to, size_t bytes)
{
    TlsSession *session = opaque;
    size_t n = MIN(bytes, session->in_end - session->in_begin);

    if (!n && !session->in_ended) {
        gnutls_transport_set_errno(session->gnutls, EAGAIN);
        return -1;
    }
    memcpy(to, session->in + session->in_begin, n);
    session->in_begin += n;
    return (ssize_t)n;
}

/* Whether there is something to pull: a question of the handshake's. */
static int pull_timeout(gnutls_transport_ptr_t opaque, unsigned milliseconds)
{
    const TlsSession *session = opaque;

    return session->in_end > session->in_begin || session->in_ended;
}

static ssize_t push(gnutls_transport_ptr_t opaque, const void *from, size_t bytes)
{
    TlsSession *session = opaque;

    g_byte_array_append(session->out, from, (guint)bytes);
    return (ssize_t)bytes;
}

/* Receive something into the buffer, which GnuTLS has emptied. 0 or -errno. */
static int coroutine_fn fill(TlsSession *session)
{
    struct iovec iov = { session->in, IN_BYTES };
    ssize_t ret;

    g_assert(session->in_begin == session->in_end);
    ret = co_io_recv(session->fd, &iov, 1);
    if (ret < 0) {
        return (int)ret;
    }
    session->in_begin = 0;
    session->in_end = (size_t)ret;
    session->in_ended = ret == 0;
    return 0;
}

/* Send of the buffer what the socket takes. 0 when it is empty, -EAGAIN, or another -errno. */
static int flush(TlsSession *session)
{
    while (session->out_begin < session->out->len) {
        ssize_t ret = send(session->fd, session->out->data + session->out_begin,
                           session->out->len - session->out_begin, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (ret < 0 && errno != EINTR) {
            return -errno;
        }
        session->out_begin += ret > 0 ? (size_t)ret : 0;
    }
    g_byte_array_set_size(session->out, 0);
    session->out_begin = 0;
    return 0;
}

/* --- a session --- */

/* The reasons, as text. */
static char *describe_status(unsigned status)
{
    gnutls_datum_t text;
    char *copy;

    if (gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &text, 0) < 0) {
        return g_strdup("The certificate is not trusted");
    }
    copy = g_strchomp(g_strndup((const char *)text.data, text.size));
    gnutls_free(text.data);
    return copy;
}

/* Called in the handshake, so that the peer is told. */
static int verify_peer(gnutls_session_t gnutls)
{
    TlsSession *session = gnutls_session_get_ptr(gnutls);
    unsigned status = 0;
    int ret = gnutls_certificate_verify_peers3(gnutls, NULL, &status);

    if (ret < 0) {
        session->refusal = g_strdup(gnutls_strerror(ret));
    } else if (status) {
        session->refusal = describe_status(status);
    }
    return session->refusal ? GNUTLS_E_CERTIFICATE_ERROR : 0;
}

static int set_credentials(TlsSession *session)
{
    const TlsCreds *creds = session->creds;

    if (creds->kind == TLS_CREDS_PSK) {
        return gnutls_credentials_set(session->gnutls, GNUTLS_CRD_PSK, creds->psk_server);
    }
    gnutls_certificate_server_set_request(session->gnutls, creds->verify_peer ? GNUTLS_CERT_REQUIRE
                                                                              : GNUTLS_CERT_IGNORE);
    if (creds->verify_peer) {
        gnutls_session_set_verify_function(session->gnutls, verify_peer);
    }
    return gnutls_credentials_set(session->gnutls, GNUTLS_CRD_CERTIFICATE, creds->x509);
}

static int set_up(TlsSession *session)
{
    int ret = gnutls_init(&session->gnutls,
                          GNUTLS_SERVER | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL | GNUTLS_NO_TICKETS);

    if (ret < 0) {
        session->gnutls = NULL;
        return ret;
    }
    gnutls_session_set_ptr(session->gnutls, session);
    gnutls_transport_set_ptr(session->gnutls, session);
    gnutls_transport_set_pull_function(session->gnutls, pull);
    gnutls_transport_set_pull_timeout_function(session->gnutls, pull_timeout);
    gnutls_transport_set_push_function(session->gnutls, push);
    /* Whoever made the connection has a limit of its own on the time that this takes. */
    gnutls_handshake_set_timeout(session->gnutls, GNUTLS_INDEFINITE_TIMEOUT);
    ret = gnutls_priority_set(session->gnutls, session->creds->priority);
    return ret < 0 ? ret : set_credentials(session);
}

TlsSession *tls_session_new(const TlsCreds *creds, int fd, GError **error)
{
    TlsSession *session = g_new0(TlsSession, 1);
    int ret;

    session->fd = fd;
    session->creds = creds;
    session->in = g_malloc(IN_BYTES);
    session->out = g_byte_array_new();
    ret = set_up(session);
    if (ret < 0) {
        merino_error(error, "Cannot start a TLS session: %s", gnutls_strerror(ret));
        tls_session_free(session);
        return NULL;
    }
    return session;
}

void tls_session_free(TlsSession *session)
{
    if (!session) {
        return;
    }
    if (session->gnutls) {
        gnutls_deinit(session->gnutls);
    }
    g_byte_array_free(session->out, TRUE);
    g_free(session->joined);
    g_free(session->in);
    g_free(session->refusal);
    g_free(session);
}

/* --- handshake --- */

/* On a worker: as far as it goes with what has been received. */
static int handshake_step(void *opaque)
{
    const TlsSession *session = opaque;
    int ret;

    do {
        ret = gnutls_handshake(session->gnutls);
    } while (ret < 0 && !gnutls_error_is_fatal(ret) &&
             (ret != GNUTLS_E_AGAIN || session->in_begin < session->in_end));
    return ret;
}

static int coroutine_fn flush_all(TlsSession *session)
{
    int ret;

    while ((ret = flush(session)) == -EAGAIN) {
        ret = co_io_poll(session->fd, POLLOUT);
        if (ret < 0) {
            break;
        }
    }
    return ret;
}

/* What failed on our side of the socket, or what GnuTLS says of the other. */
static void set_handshake_error(const TlsSession *session, int ret, GError **error)
{
    if (session->refusal) {
        merino_error(error, "TLS handshake failed: %s", session->refusal);
    } else if (ret == GNUTLS_E_FATAL_ALERT_RECEIVED) {
        const char *name = gnutls_alert_get_name(gnutls_alert_get(session->gnutls));

        merino_error(error, "TLS handshake failed: the client says: %s", name ? name : "no");
    } else {
        merino_error(error, "TLS handshake failed: %s", gnutls_strerror(ret));
    }
}

bool coroutine_fn tls_session_handshake(TlsSession *session, GError **error)
{
    for (;;) {
        int ret = co_run_in_worker(handshake_step, session);
        int io;

        if (ret < 0 && ret != GNUTLS_E_AGAIN) {
            gnutls_alert_send_appropriate(session->gnutls, ret);
            flush(session);
            set_handshake_error(session, ret, error);
            return false;
        }
        io = flush_all(session);
        if (io == 0 && ret == 0) {
            return true;
        }
        if (io == 0) {
            io = fill(session);
        }
        if (io < 0) {
            merino_error_errno(error, -io, "TLS handshake failed");
            return false;
        }
    }
}

static char *certificate_name(gnutls_session_t gnutls)
{
    unsigned n = 0;
    const gnutls_datum_t *certificates = gnutls_certificate_get_peers(gnutls, &n);
    gnutls_datum_t name = { 0 };
    gnutls_x509_crt_t certificate;
    char *copy = NULL;

    if (!certificates || !n || gnutls_x509_crt_init(&certificate) < 0) {
        return NULL;
    }
    if (gnutls_x509_crt_import(certificate, &certificates[0], GNUTLS_X509_FMT_DER) >= 0 &&
        gnutls_x509_crt_get_dn2(certificate, &name) >= 0) {
        copy = g_strndup((const char *)name.data, name.size);
        gnutls_free(name.data);
    }
    gnutls_x509_crt_deinit(certificate);
    return copy;
}

char *tls_session_identity(TlsSession *session)
{
    return session->creds->kind == TLS_CREDS_PSK
               ? g_strdup(gnutls_psk_server_get_username(session->gnutls))
               : certificate_name(session->gnutls);
}

/* --- data --- */

/* Decrypt into `to` as much as has come. Bytes, 0 at the end, -EAGAIN, or another -errno. What
 * the peer has no reason to send, such as a wish to negotiate anew, is an error for good. */
static ssize_t decrypt(TlsSession *session, void *to, size_t bytes)
{
    ssize_t ret;

    if (session->closed || session->failure) {
        return session->failure;
    }
    do {
        ret = gnutls_record_recv(session->gnutls, to, bytes);
        /* Records may hold no data. */
    } while (ret == GNUTLS_E_AGAIN && session->in_begin < session->in_end);
    if (ret == GNUTLS_E_AGAIN) {
        return -EAGAIN;
    }
    if (ret < 0) {
        session->failure = ret == GNUTLS_E_PREMATURE_TERMINATION ? -ECONNRESET : -EPROTO;
        return session->failure;
    }
    session->closed = ret == 0;
    return ret;
}

/* Fill the vector from what has come. Bytes, or the reason why there are none. */
static ssize_t decrypt_vector(TlsSession *session, const struct iovec *iov, int niov)
{
    ssize_t total = 0;

    for (int i = 0; i < niov; i++) {
        for (size_t done = 0; done < iov[i].iov_len;) {
            ssize_t ret = decrypt(session, (char *)iov[i].iov_base + done, iov[i].iov_len - done);

            if (ret <= 0) {
                /* An end or an error is told when nothing is in front of it. */
                return total ? total : ret;
            }
            done += (size_t)ret;
            total += ret;
        }
    }
    return total;
}

ssize_t coroutine_fn tls_session_recv(TlsSession *session, const struct iovec *iov, int niov)
{
    ssize_t ret;
    unsigned fills = 0;

    while ((ret = decrypt_vector(session, iov, niov)) == -EAGAIN) {
        int io = fill(session);

        if (io < 0) {
            return io;
        }
        /* A peer whose records never hold data does not keep the loop. */
        if (++fills % FILLS_A_TURN == 0) {
            coroutine_pause();
        }
    }
    return ret;
}

/* Encrypt one piece. It never has to wait, because push() does not. */
static int encrypt(TlsSession *session, const void *from, size_t bytes)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t ret = gnutls_record_send(session->gnutls, (const char *)from + done, bytes - done);

        if (ret < 0) {
            return -EPIPE;
        }
        done += (size_t)ret;
    }
    return 0;
}

/* Copy into one record what lies in pieces smaller than that. */
static size_t join(TlsSession *session, const struct iovec *iov, int niov, size_t skip)
{
    size_t n = 0;

    if (!session->joined) {
        session->joined = g_malloc(RECORD_BYTES);
    }
    for (int i = 0; i < niov && n < RECORD_BYTES; i++) {
        size_t piece = MIN(iov[i].iov_len - skip, RECORD_BYTES - n);

        memcpy(session->joined + n, (const char *)iov[i].iov_base + skip, piece);
        n += piece;
        skip = 0;
    }
    return n;
}

/* Encrypt a batch from the front of the vector, and keep count of it. 0 or -errno. */
static int encrypt_batch(TlsSession *session, const struct iovec *iov, int niov)
{
    size_t skip = 0; /* of the first piece */

    while (niov && session->batch < BATCH_BYTES) {
        size_t piece = iov->iov_len - skip;
        size_t n = MIN(piece, RECORD_BYTES);
        const void *from = (const char *)iov->iov_base + skip;
        int ret;

        if (piece < RECORD_BYTES && niov > 1) {
            n = join(session, iov, niov, skip);
            from = session->joined;
        }
        ret = encrypt(session, from, n);
        if (ret < 0) {
            return ret;
        }
        session->batch += n;
        for (skip += n; niov && skip >= iov->iov_len; niov--) {
            skip -= iov->iov_len;
            iov++;
        }
    }
    return 0;
}

ssize_t tls_session_try_send(TlsSession *session, const struct iovec *iov, int niov)
{
    size_t sent;
    int ret = session->batch ? 0 : encrypt_batch(session, iov, niov);

    if (ret == 0) {
        ret = flush(session);
    }
    if (ret < 0) {
        return ret;
    }
    sent = session->batch;
    session->batch = 0;
    return (ssize_t)sent;
}

void tls_session_say_goodbye(TlsSession *session)
{
    /* Behind half a batch it would be no proper end. */
    if (!session->batch) {
        gnutls_bye(session->gnutls, GNUTLS_SHUT_WR);
        flush(session);
    }
}

void tls_session_deny(TlsSession *session)
{
    gnutls_alert_send(session->gnutls, GNUTLS_AL_FATAL, GNUTLS_A_ACCESS_DENIED);
    flush(session);
}
