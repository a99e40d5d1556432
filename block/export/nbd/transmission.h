/* SPDX-License-Identifier: MIT */
/*
 * Transmission: requests and replies of one connection, on its export's loop.
 *
 * One coroutine receives (transmission.c). It takes what the socket has in one piece, and starts a
 * coroutine for each request found in it (request.c); mostly these end without waiting. Finished
 * requests become replies (reply.c), which queue up and leave together (send.c): when the receiver
 * is about to wait or, if it waits already, once everything else that was ready has run; at the
 * latest when the first of them is NBD_REPLY_AGE_NS old and another one comes.
 *
 *   receiver --starts--> request ... request --reply--> queue --gathered--> socket
 *      ^                                                          |
 *      +----------- room again (in-flight requests, bytes) -------+
 *
 * Limits: a client has at most so many requests and so many bytes of data at work as the server's
 * limits say; a request counts until its reply has been sent. All clients together have at most
 * nbd_requests_of_all at work, beside one of each. At a limit nothing more is received.
 * After NBD_REQUESTS_A_TURN requests in a row, or requests of NBD_BYTES_A_TURN, the receiver lets
 * other coroutines of the loop run: what is done in place would else keep the loop.
 *
 * No lock and, in the steady state, no heap: requests and data buffers are kept and used again.
 */
#ifndef MERINO_NBD_TRANSMISSION_H
#define MERINO_NBD_TRANSMISSION_H

#include "buffers.h"
#include "connection.h"
#include "extents.h"
#include "protocol.h"
#include "server.h"

#define NBD_REQUESTS_A_TURN 64
#define NBD_BYTES_A_TURN    (1 << 20)
#define NBD_ALTERNATE_MAX   32         /* looks at the socket; half as many for a watch to begin */
#define NBD_RECV_BUFFER     (64 << 10) /* bytes */
#define NBD_SEND_PIECES     256        /* pieces of memory in one send */
#define NBD_REPLY_HEAD      64         /* bytes: the longest fixed part of a reply */
#define NBD_REPLY_AGE_NS    INT64_C(50000) /* so long a reply may wait for company */

/* Each request at work has a stack, which takes two of the 65530 mappings that the kernel lets a
 * process have. Constant but for tests. */
extern unsigned nbd_requests_of_all;

typedef struct NbdTransmission NbdTransmission;

/* One request, from its header until its reply is sent. */
typedef struct NbdRequest {
    NbdTransmission *tx;
    NbdRequestHeader header;
    size_t memory; /* what it counts for in tx->in_flight_bytes */
    void *buffer;  /* of the pool: what is read, written, or another payload; or NULL */
    size_t buffer_bytes;

    /* The reply: pieces of `head`, `extra` and `buffer`. */
    IoVector reply;
    size_t reply_sent; /* bytes of it that have left */
    uint8_t head[NBD_REPLY_HEAD];
    void *extra; /* heap: what does not fit into `head`; or NULL */

    struct NbdRequest *next; /* in the queue, or among the idle */
} NbdRequest;

struct NbdTransmission {
    NbdConnection *conn;
    const NbdExport *exp;
    BlockBackend *backend;
    const NbdServerLimits *limits;

    /* transmission.c */
    uint8_t *recv_buffer;
    size_t recv_begin, recv_end; /* what of it has not been looked at */
    NbdRequestHeader header;     /* of the request that is being received */
    bool looked_ahead;           /* or, at recv_begin still, of the one that is next */
    bool said_goodbye;           /* the client will send no more, but what it sent is to be done */
    bool gone;                   /* no more will come, and nobody waits for replies */
    unsigned in_flight;
    size_t in_flight_bytes;
    unsigned turn_requests; /* since others could run */
    size_t turn_bytes;
    unsigned taken;     /* requests since the receiver last looked at the socket */
    unsigned alternate; /* how much of late a request came for each reply: 0 to NBD_ALTERNATE_MAX */
    bool no_watch;      /* there is none for this channel */
    SocketWatch *watch; /* while request and reply alternate; else NULL */
    Coroutine *receiver; /* when it waits for requests to be done */
    NbdRequest *idle;
    NbdBufferPool pool;
    NbdExtentsMemory extents_memory; /* block-status.c */

    /* send.c */
    NbdRequest *queue;
    NbdRequest **queue_end;
    int64_t queued_ns;  /* when the first of them came */
    bool flush_follows; /* the receiver is running and will flush before it waits */
    bool sending;       /* the sender, a coroutine of its own, has not ended */
    bool blocked;       /* the socket is full: the sender waits for it */
    bool broken;        /* nothing can be sent any more: replies are dropped */
};

/* Serve conn->exp until the client goes or the channel is shut down, and all is over. */
void coroutine_fn nbd_transmission_run(NbdConnection *conn);

/* --- transmission.c --- */

/* Memory for the request's data, its own until it is done. NULL when there is none. */
void *nbd_request_buffer(NbdRequest *request, size_t bytes);

/* The reply has been sent or dropped. */
void nbd_request_done(NbdRequest *request);

/* Let the receiver look again, if it waits for requests to be done. */
void nbd_wake_receiver(NbdTransmission *tx);

/* --- request.c --- */

/* What is wrong with a request, seen from its header: an NBD error, with words for people that the
 * caller frees. 0 when nothing is. */
uint32_t nbd_request_check(const NbdTransmission *tx, const NbdRequestHeader *header,
                           char **ret_message);

/* The part of it that looks at a range. */
uint32_t nbd_range_check(const NbdTransmission *tx, uint16_t command, uint64_t offset,
                         uint64_t length, char **ret_message);

/* Bytes that follow the header in the stream. */
uint64_t nbd_request_payload(const NbdTransmission *tx, const NbdRequestHeader *header);

/* The coroutine of one request: carries it out and queues its reply. */
void coroutine_fn nbd_request_run(void *opaque);

/* --- block-status.c --- */

uint32_t nbd_block_status_check(const NbdTransmission *tx, const NbdRequestHeader *header,
                                char **ret_message);

/* Reply to the request; inside tx->backend. 0, or -errno when it has not replied. */
int coroutine_fn nbd_block_status(NbdRequest *request);

/* --- reply.c: each makes the reply and queues it --- */

void nbd_reply_success(NbdRequest *request);

/* A piece of what was read: data in the request's buffer, or zeroes. */
typedef struct NbdReadPiece {
    uint64_t offset; /* in the export */
    uint64_t length;
    bool hole;
} NbdReadPiece;

void nbd_reply_read(NbdRequest *request, const NbdReadPiece *pieces, unsigned n);

/* `error` is an NBD error; `message` is for people, and reaches clients with structured replies. */
void nbd_reply_error(NbdRequest *request, uint32_t error, const char *message);
/* The same, with the place where reading failed. */
void nbd_reply_error_at(NbdRequest *request, uint32_t error, uint64_t offset, const char *message);

/* One list of extents for each of the `n` contexts. */
typedef struct NbdContextExtents {
    uint32_t context;
    NbdExtents extents;
} NbdContextExtents;

void nbd_reply_extents(NbdRequest *request, const NbdContextExtents *contexts, unsigned n);

/* --- send.c --- */

void nbd_send_init(NbdTransmission *tx);

/* Queue a reply; it will be sent soon. It may have been when this returns, so the request is not
 * the caller's any more. */
void nbd_send_reply(NbdRequest *request);

/* Send what the socket takes now; what it does not take will be sent when it does. Never yields. */
void nbd_send_flush(NbdTransmission *tx);

#endif
