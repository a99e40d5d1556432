/* SPDX-License-Identifier: MIT */
/*
 * Block status: what the selected contexts say of a range.
 *
 * All contexts are asked behind one door, so they belong to the same instant of the graph. A reply
 * covers at least one byte of the request and never more than it; a context with more extents
 * than fit, or that takes more looks at the disk than one request may cost, tells the first ones.
 *
 * With extended headers a request may narrow the contexts down for itself: its payload is then the
 * length of the range, 64 bits, and 32 bits for each context that it wants.
 */
#include "transmission.h"

#define PAYLOAD_LENGTH_BYTES 8
#define PAYLOAD_ID_BYTES     4

/* A disk in small pieces that all have the same flags is one extent, and many looks. */
#define MOST_LOOKS   16384 /* of one context at one request */
#define LOOKS_A_TURN 256   /* then other coroutines of the loop run */

static bool has_filter(const NbdRequestHeader *header)
{
    return header->flags & NBD_CMD_FLAG_PAYLOAD_LEN;
}

static uint32_t check_range(const NbdTransmission *tx, const NbdRequestHeader *header,
                            uint64_t length, char **ret_message)
{
    if (length == 0) {
        *ret_message = g_strdup("need non-zero length");
        return NBD_EINVAL;
    }
    return nbd_range_check(tx, header->command, header->offset, length, ret_message);
}

uint32_t nbd_block_status_check(const NbdTransmission *tx, const NbdRequestHeader *header,
                                char **ret_message)
{
    uint32_t error = has_filter(header) ? 0 : check_range(tx, header, header->length, ret_message);

    if (error) {
        return error;
    }
    if (!tx->conn->contexts.n) {
        *ret_message = g_strdup("CMD_BLOCK_STATUS not negotiated");
        return NBD_EINVAL;
    }
    if (has_filter(header) &&
        (header->length < PAYLOAD_LENGTH_BYTES + PAYLOAD_ID_BYTES ||
         (header->length - PAYLOAD_LENGTH_BYTES) % PAYLOAD_ID_BYTES != 0 ||
         (header->length - PAYLOAD_LENGTH_BYTES) / PAYLOAD_ID_BYTES > tx->conn->contexts.n)) {
        *ret_message = g_strdup("payload of block status has a wrong length");
        return NBD_EINVAL;
    }
    return 0;
}

/* The contexts to be asked, in the order of their ids; the caller frees. */
static uint32_t *list_selected(const NbdContexts *contexts)
{
    uint32_t *ids = g_new(uint32_t, contexts->n);
    unsigned n = 0;

    for (uint32_t id = 0; id < contexts->selected->len; id++) {
        if (nbd_contexts_has(contexts, id)) {
            ids[n++] = id;
        }
    }
    return ids;
}

/* The payload's list; NULL when it names a context that was not negotiated, or names one twice. */
static uint32_t *list_wanted(const NbdRequest *request, unsigned n)
{
    const NbdContexts *contexts = &request->tx->conn->contexts;
    g_autofree uint8_t *seen = g_malloc0(contexts->selected->len);
    g_autofree uint32_t *ids = g_new(uint32_t, n);
    const uint8_t *next = (uint8_t *)request->buffer + PAYLOAD_LENGTH_BYTES;

    for (unsigned i = 0; i < n; i++, next += PAYLOAD_ID_BYTES) {
        ids[i] = nbd_get32(next);
        if (!nbd_contexts_has(contexts, ids[i]) || seen[ids[i]]) {
            return NULL;
        }
        seen[ids[i]] = 1;
    }
    return g_steal_pointer(&ids);
}

/* --- the contexts --- */

typedef uint64_t StatusToFlags(const BlockStatus *status);

static uint64_t allocation_flags(const BlockStatus *status)
{
    return (status->flags & BLOCK_STATUS_DATA ? 0 : NBD_EXTENT_HOLE) |
           (status->flags & BLOCK_STATUS_ZERO ? NBD_EXTENT_ZERO : 0);
}

/* 0: in no layer; else 1 for the top layer, and so on downwards. */
static uint64_t depth_flags(const BlockStatus *status)
{
    return status->flags & BLOCK_STATUS_ALLOCATED ? (uint64_t)status->depth + 1 : 0;
}

static int coroutine_fn add_status(NbdExtents *extents, BlockNode *node, int64_t offset,
                                   int64_t bytes, StatusToFlags *to_flags)
{
    for (unsigned looks = 0; bytes && looks < MOST_LOOKS; looks++) {
        BlockStatus status;
        int ret;

        if (looks % LOOKS_A_TURN == LOOKS_A_TURN - 1) {
            coroutine_pause();
        }
        ret = node_co_block_status_above(node, NULL, offset, bytes, &status);
        if (ret < 0) {
            return ret;
        }
        if (!nbd_extents_add(extents, (uint64_t)status.bytes, to_flags(&status))) {
            break;
        }
        offset += status.bytes;
        bytes -= status.bytes;
    }
    return 0;
}

static int coroutine_fn add_context(const NbdTransmission *tx, NbdContextExtents *context,
                                    int64_t offset, int64_t bytes)
{
    BlockNode *node = backend_node(tx->backend);

    switch (context->context) {
    case NBD_CONTEXT_ALLOCATION:
        return add_status(&context->extents, node, offset, bytes, allocation_flags);
    case NBD_CONTEXT_DEPTH:
        return add_status(&context->extents, node, offset, bytes, depth_flags);
    default:
        nbd_extents_add_bitmap(
            &context->extents,
            g_array_index(tx->exp->bitmaps, NbdBitmap, context->context - NBD_CONTEXT_FIRST_BITMAP)
                .bitmap,
            offset, bytes);
        return 0;
    }
}

/* The most extents of each of `n` contexts: what the client may hold is for all of them. */
static unsigned max_extents(const NbdRequest *request, unsigned n)
{
    const NbdTransmission *tx = request->tx;
    size_t bytes = MIN((size_t)NBD_EXTENTS_BYTES, tx->limits->request_bytes / n);

    if (request->header.flags & NBD_CMD_FLAG_REQ_ONE) {
        return 1;
    }
    return MAX(1, (unsigned)bytes / (tx->conn->extended ? NBD_EXTENT_EXT_BYTES : NBD_EXTENT_BYTES));
}

static int coroutine_fn answer(NbdRequest *request, const uint32_t *ids, unsigned n, int64_t bytes)
{
    NbdTransmission *tx = request->tx;
    unsigned max = max_extents(request, n);
    g_autofree NbdContextExtents *contexts = g_new(NbdContextExtents, n);
    int ret = 0;

    for (unsigned i = 0; i < n; i++) {
        contexts[i].context = ids[i];
        nbd_extents_init_reuse(&contexts[i].extents, max, &tx->extents_memory);
        if (ret == 0) {
            ret = add_context(tx, &contexts[i], (int64_t)request->header.offset, bytes);
        }
    }
    if (ret == 0) {
        nbd_reply_extents(request, contexts, n);
    }
    for (unsigned i = 0; i < n; i++) {
        nbd_extents_done_keep(&contexts[i].extents, &tx->extents_memory);
    }
    return ret;
}

int coroutine_fn nbd_block_status(NbdRequest *request)
{
    const NbdTransmission *tx = request->tx;
    const NbdRequestHeader *header = &request->header;
    g_autofree uint32_t *ids = NULL;
    g_autofree char *message = NULL;
    uint64_t bytes = header->length;
    unsigned n = tx->conn->contexts.n;
    uint32_t error = 0;

    if (has_filter(header)) {
        bytes = nbd_get64(request->buffer);
        n = (unsigned)(header->length - PAYLOAD_LENGTH_BYTES) / PAYLOAD_ID_BYTES;
        ids = list_wanted(request, n);
        error = check_range(tx, header, bytes, &message);
        if (!error && !ids) {
            message = g_strdup("context was not negotiated");
            error = NBD_EINVAL;
        }
    } else {
        ids = list_selected(&tx->conn->contexts);
    }
    if (error) {
        nbd_reply_error(request, error, message);
        return 0;
    }
    return answer(request, ids, n, (int64_t)bytes);
}
