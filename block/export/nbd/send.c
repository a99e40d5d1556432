/* SPDX-License-Identifier: MIT */
/*
 * Sending: the queue of replies and the moments at which it is emptied.
 *
 * nbd_send_flush() takes from the head of the queue what the socket accepts and never yields, so
 * whoever calls it sends whole replies in their order, or the part of one that will go on from
 * where it stopped. The sender is a coroutine that exists only while there is something that nobody
 * else will flush: replies that were queued while the receiver waits, or a socket that is full. A
 * client that takes everything at once is treated like one, so that it does not keep the loop.
 */
#include "transmission.h"

#include "util/event-loop.h"

#include <errno.h>

/* Nothing can be sent any more. The receiver sees the end of the stream. */
static void give_up(NbdTransmission *tx)
{
    tx->broken = true;
    nbd_channel_shutdown(&tx->conn->channel);
    while (tx->queue) {
        NbdRequest *request = tx->queue;

        tx->queue = request->next;
        nbd_request_done(request);
    }
    tx->queue_end = &tx->queue;
}

static void coroutine_fn sender_main(void *opaque)
{
    NbdTransmission *tx = opaque;

    do {
        if (!tx->blocked) {
            coroutine_pause();
        } else if (nbd_channel_wait_writable(&tx->conn->channel) < 0) {
            give_up(tx);
        }
        tx->blocked = false;
        nbd_send_flush(tx);
    } while (tx->queue);
    tx->sending = false;
    nbd_wake_receiver(tx);
}

static void start_sender(NbdTransmission *tx)
{
    if (!tx->sending) {
        tx->sending = true;
        coroutine_start(sender_main, tx);
    }
}

void nbd_send_init(NbdTransmission *tx)
{
    tx->queue_end = &tx->queue;
}

void nbd_send_reply(NbdRequest *request)
{
    NbdTransmission *tx = request->tx;
    int64_t now = event_loop_now_ns();
    bool first = !tx->queue;

    if (tx->broken) {
        nbd_request_done(request);
        return;
    }
    request->next = NULL;
    *tx->queue_end = request;
    tx->queue_end = &request->next;
    if (first) {
        tx->queued_ns = now;
    } else if (now - tx->queued_ns >= NBD_REPLY_AGE_NS) {
        nbd_send_flush(tx);
    }
    if (tx->queue && !tx->flush_follows) {
        start_sender(tx);
    }
}

/* List what is to be sent next, up to `bytes` of it, as far as it fits into `iov`. */
static int gather(const NbdTransmission *tx, size_t bytes, struct iovec *iov)
{
    int n = 0;

    for (const NbdRequest *request = tx->queue; request; request = request->next) {
        size_t skip = request->reply_sent;

        for (int i = 0; i < request->reply.n; i++) {
            const struct iovec *piece = &request->reply.iov[i];

            if (skip >= piece->iov_len) {
                skip -= piece->iov_len;
                continue;
            }
            if (n == NBD_SEND_PIECES || bytes == 0) {
                return n;
            }
            iov[n] = (struct iovec){ .iov_base = (char *)piece->iov_base + skip,
                                     .iov_len = MIN(piece->iov_len - skip, bytes) };
            bytes -= iov[n++].iov_len;
            skip = 0;
        }
    }
    return n;
}

/* `bytes` have left. */
static void account(NbdTransmission *tx, size_t bytes)
{
    while (bytes) {
        NbdRequest *request = tx->queue;
        size_t left = request->reply.size - request->reply_sent;

        if (bytes < left) {
            request->reply_sent += bytes;
            return;
        }
        bytes -= left;
        tx->queue = request->next;
        if (!tx->queue) {
            tx->queue_end = &tx->queue;
        }
        nbd_request_done(request);
    }
}

void nbd_send_flush(NbdTransmission *tx)
{
    struct iovec iov[NBD_SEND_PIECES];
    size_t left = NBD_BYTES_A_TURN;

    while (tx->queue && !tx->blocked) {
        ssize_t ret = -EAGAIN;

        if (left) {
            ret = nbd_channel_try_send(&tx->conn->channel, iov, gather(tx, left, iov));
        }
        if (ret >= 0) {
            account(tx, (size_t)ret);
            left -= MIN(left, (size_t)ret);
        } else if (ret == -EAGAIN) {
            tx->blocked = true;
            start_sender(tx);
        } else {
            give_up(tx);
        }
    }
}
