/* SPDX-License-Identifier: MIT */
#include "transmission.h"

#include <string.h>

unsigned nbd_requests_of_all = 16384;

/* Requests at work, but for one of each connection. */
static atomic_uint shared_at_work;

void nbd_wake_receiver(NbdTransmission *tx)
{
    if (tx->receiver) {
        coroutine_wake(g_steal_pointer(&tx->receiver));
    }
}

/* --- requests and their memory --- */

static NbdRequest *request_new(NbdTransmission *tx, const NbdRequestHeader *header, size_t memory)
{
    NbdRequest *request = tx->idle;

    if (request) {
        tx->idle = request->next;
    } else {
        request = g_new(NbdRequest, 1);
    }
    request->tx = tx;
    request->header = *header;
    request->memory = memory;
    request->buffer = NULL;
    request->reply_sent = 0;
    request->extra = NULL;
    iov_init(&request->reply);
    if (tx->in_flight++) {
        atomic_fetch_add_explicit(&shared_at_work, 1, memory_order_relaxed);
    }
    tx->in_flight_bytes += memory;
    return request;
}

void *nbd_request_buffer(NbdRequest *request, size_t bytes)
{
    request->buffer = nbd_pool_get(&request->tx->pool, bytes);
    request->buffer_bytes = bytes;
    return request->buffer;
}

void nbd_request_done(NbdRequest *request)
{
    NbdTransmission *tx = request->tx;

    iov_done(&request->reply);
    g_free(request->extra);
    if (request->buffer) {
        nbd_pool_put(&tx->pool, request->buffer, request->buffer_bytes);
    }
    request->next = tx->idle;
    tx->idle = request;
    if (--tx->in_flight) {
        atomic_fetch_sub_explicit(&shared_at_work, 1, memory_order_relaxed);
    }
    tx->in_flight_bytes -= request->memory;
    nbd_wake_receiver(tx);
}

/* --- waiting: what is queued leaves before --- */

static void begin_wait(NbdTransmission *tx)
{
    nbd_send_flush(tx);
    tx->flush_follows = false;
}

static void end_wait(NbdTransmission *tx)
{
    tx->flush_follows = true;
}

static void coroutine_fn wait_for_progress(NbdTransmission *tx)
{
    tx->receiver = coroutine_self();
    coroutine_yield();
}

/* Who has no request at work may always begin one. So whoever waits has one, whose end wakes him,
 * and need not be told when others make room. */
static bool has_room(const NbdTransmission *tx, size_t memory)
{
    return tx->in_flight == 0 ||
           (tx->in_flight < tx->limits->requests &&
            tx->in_flight_bytes + memory <= tx->limits->request_bytes &&
            atomic_load_explicit(&shared_at_work, memory_order_relaxed) < nbd_requests_of_all);
}

static void coroutine_fn wait_for_room(NbdTransmission *tx, size_t memory)
{
    if (G_LIKELY(has_room(tx, memory))) {
        return;
    }
    begin_wait(tx);
    while (!has_room(tx, memory)) {
        wait_for_progress(tx);
    }
    end_wait(tx);
}

/* --- receiving --- */

/* A client that sends one request at a time is watched (SocketWatch says why) until it does no
 * more. A look with several requests at once weighs more than one with a lone request. */
static void coroutine_fn watch_if_alternate(NbdTransmission *tx)
{
    if (tx->taken == 1 && tx->in_flight == 0) {
        tx->alternate += tx->alternate < NBD_ALTERNATE_MAX;
    } else {
        tx->alternate -= MIN(tx->alternate, NBD_ALTERNATE_MAX / 8);
    }
    tx->taken = 0;
    if (G_UNLIKELY(!tx->watch && !tx->no_watch && tx->alternate >= NBD_ALTERNATE_MAX / 2)) {
        tx->watch = nbd_channel_watch(&tx->conn->channel);
        tx->no_watch = !tx->watch;
    } else if (G_UNLIKELY(tx->watch && tx->alternate == 0)) {
        socket_watch_free(g_steal_pointer(&tx->watch));
    }
}

static ssize_t coroutine_fn receive(NbdTransmission *tx, const struct iovec *iov, int niov)
{
    watch_if_alternate(tx);
    return tx->watch ? socket_watch_recv(tx->watch, iov, niov)
                     : nbd_channel_recv(&tx->conn->channel, iov, niov);
}

/* Receive what there is into `iov`. False at the end of the stream. */
static bool coroutine_fn receive_some(NbdTransmission *tx, const struct iovec *iov, int niov,
                                      size_t *ret_bytes)
{
    ssize_t ret;

    begin_wait(tx);
    ret = tx->broken ? 0 : receive(tx, iov, niov);
    end_wait(tx);
    if (ret <= 0) {
        return false;
    }
    *ret_bytes = (size_t)ret;
    return true;
}

/* Have at least `bytes` in the receive buffer. */
static bool coroutine_fn fill(NbdTransmission *tx, size_t bytes)
{
    while (tx->recv_end - tx->recv_begin < bytes) {
        struct iovec iov;
        size_t received;

        if (tx->recv_begin) {
            memmove(tx->recv_buffer, tx->recv_buffer + tx->recv_begin,
                    tx->recv_end - tx->recv_begin);
            tx->recv_end -= tx->recv_begin;
            tx->recv_begin = 0;
        }
        iov = (struct iovec){ tx->recv_buffer + tx->recv_end, NBD_RECV_BUFFER - tx->recv_end };
        if (!receive_some(tx, &iov, 1, &received)) {
            return false;
        }
        tx->recv_end += received;
    }
    return true;
}

/* Take up to `bytes` that are in the receive buffer; `to` may be NULL. */
static size_t take_buffered(NbdTransmission *tx, void *to, size_t bytes)
{
    size_t n = MIN(bytes, tx->recv_end - tx->recv_begin);

    if (to) {
        memcpy(to, tx->recv_buffer + tx->recv_begin, n);
    }
    tx->recv_begin += n;
    return n;
}

/* A payload goes straight to where it belongs, and what follows it into the receive buffer. */
static bool coroutine_fn receive_payload(NbdTransmission *tx, uint8_t *to, size_t bytes)
{
    size_t done = take_buffered(tx, to, bytes);

    while (done < bytes) {
        struct iovec iov[2] = { { to + done, bytes - done }, { tx->recv_buffer, NBD_RECV_BUFFER } };
        size_t received;

        if (!receive_some(tx, iov, 2, &received)) {
            return false;
        }
        tx->recv_begin = 0;
        tx->recv_end = received > bytes - done ? received - (bytes - done) : 0;
        done += received - tx->recv_end;
    }
    return true;
}

static bool coroutine_fn skip_payload(NbdTransmission *tx, size_t bytes)
{
    bytes -= take_buffered(tx, NULL, bytes);
    while (bytes) {
        if (!fill(tx, 1)) {
            return false;
        }
        bytes -= take_buffered(tx, NULL, bytes);
    }
    return true;
}

/* Answer a request that is not carried out, once its payload has gone by. False when there is so
 * much of it that the client had better come again. */
static bool coroutine_fn refuse(NbdRequest *request, uint64_t payload, uint32_t error,
                                const char *message)
{
    bool ok = payload <= NBD_MAX_PAYLOAD && skip_payload(request->tx, payload);

    nbd_reply_error(request, error, message);
    return ok;
}

/* What a request will hold until its reply is sent, be it of the host's cache; of extents, what
 * they may come to. */
static size_t memory_of(const NbdTransmission *tx, const NbdRequestHeader *header, uint64_t payload,
                        uint32_t error)
{
    if (error) {
        return 0;
    }
    if (header->command == NBD_CMD_BLOCK_STATUS && !(header->flags & NBD_CMD_FLAG_REQ_ONE)) {
        return MIN(tx->conn->contexts.n * (size_t)NBD_EXTENTS_BYTES, tx->limits->request_bytes);
    }
    return header->command == NBD_CMD_READ || header->command == NBD_CMD_CACHE ? header->length
                                                                               : payload;
}

/* Whether the client was turned away: what it sent and is not begun never will be. */
static bool is_turned_away(const NbdTransmission *tx)
{
    return atomic_load(&tx->conn->channel.is_shut);
}

static bool decode_header(NbdTransmission *tx)
{
    return nbd_decode_request(tx->recv_buffer + tx->recv_begin, tx->conn->extended, &tx->header);
}

/* Receive the header of a request into tx->header. False when there will be no more. */
static bool coroutine_fn receive_header(NbdTransmission *tx)
{
    size_t bytes = nbd_request_bytes(tx->conn->extended);

    if (!tx->looked_ahead && (!fill(tx, bytes) || !decode_header(tx))) {
        return false;
    }
    if (is_turned_away(tx)) {
        return false;
    }
    tx->said_goodbye = tx->header.command == NBD_CMD_DISC;
    tx->looked_ahead = false;
    tx->recv_begin += bytes;
    return !tx->said_goodbye;
}

/* During a write, the header behind it, if it has arrived. */
static void look_ahead(NbdTransmission *tx)
{
    tx->looked_ahead =
        tx->recv_end - tx->recv_begin >= nbd_request_bytes(tx->conn->extended) && decode_header(tx);
    if (tx->looked_ahead && tx->header.command == NBD_CMD_WRITE) {
        backend_hint_write(tx->backend, tx->header.offset);
    }
}

/* Receive one request and start it. False when there will be no more. */
static bool coroutine_fn receive_request(NbdTransmission *tx)
{
    g_autofree char *message = NULL;
    NbdRequest *request;
    uint64_t payload;
    uint32_t error;
    size_t memory;

    if (!receive_header(tx)) {
        return false;
    }
    payload = nbd_request_payload(tx, &tx->header);
    error = nbd_request_check(tx, &tx->header, &message);
    memory = memory_of(tx, &tx->header, payload, error);
    wait_for_room(tx, memory);
    request = request_new(tx, &tx->header, memory);
    tx->taken++;
    tx->turn_requests++;
    tx->turn_bytes += memory;
    if (G_UNLIKELY(error)) {
        return refuse(request, payload, error, message);
    }
    if (payload) {
        if (!nbd_request_buffer(request, payload)) {
            return refuse(request, payload, NBD_ENOMEM, "No memory");
        }
        if (!receive_payload(tx, request->buffer, payload)) {
            nbd_request_done(request);
            return false;
        }
        look_ahead(tx);
    }
    if (is_turned_away(tx)) {
        nbd_request_done(request);
        return false;
    }
    coroutine_start(nbd_request_run, request);
    return !tx->broken;
}

static void coroutine_fn receive_all(NbdTransmission *tx)
{
    while (receive_request(tx)) {
        if (tx->turn_requests >= NBD_REQUESTS_A_TURN || tx->turn_bytes >= NBD_BYTES_A_TURN) {
            begin_wait(tx);
            coroutine_pause();
            end_wait(tx);
            tx->turn_requests = 0;
            tx->turn_bytes = 0;
        }
    }
    tx->gone = !tx->said_goodbye;
}

static void coroutine_fn wait_until_idle(NbdTransmission *tx)
{
    begin_wait(tx);
    while (tx->in_flight || tx->sending) {
        wait_for_progress(tx);
    }
}

void coroutine_fn nbd_transmission_run(NbdConnection *conn)
{
    NbdTransmission tx = { .conn = conn,
                           .exp = conn->exp,
                           .backend = conn->exp->base->backend,
                           .limits = nbd_server_limits(),
                           .recv_buffer = g_malloc(NBD_RECV_BUFFER) };

    nbd_pool_init(&tx.pool);
    nbd_send_init(&tx);
    end_wait(&tx);
    receive_all(&tx);
    if (tx.watch) {
        begin_wait(&tx);
        socket_watch_free(tx.watch);
    }
    nbd_connection_enter(conn, NBD_STATE_DRAINING);
    wait_until_idle(&tx);
    while (tx.idle) {
        NbdRequest *request = tx.idle;

        tx.idle = request->next;
        g_free(request);
    }
    nbd_pool_done(&tx.pool);
    nbd_extents_memory_done(&tx.extents_memory);
    g_free(tx.recv_buffer);
}
