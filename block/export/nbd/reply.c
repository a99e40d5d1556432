/* SPDX-License-Identifier: MIT */
/*
 * Replies, in the form that was negotiated: simple, structured, or extended.
 *
 * A client with structured replies gets a simple one only where that is all there is to say:
 * success without data. With extended headers every reply is a chunk.
 */
#include "transmission.h"

#include <string.h>

G_STATIC_ASSERT(NBD_EXTENDED_CHUNK_BYTES + NBD_OFFSET_HOLE_BYTES <= NBD_REPLY_HEAD);
G_STATIC_ASSERT(NBD_EXTENDED_CHUNK_BYTES + NBD_ERROR_BYTES + 8 <= NBD_REPLY_HEAD);

/* A writer of headers: bytes that go into the reply piece by piece. */
typedef struct HeadWriter {
    NbdRequest *request;
    uint8_t *next;
} HeadWriter;

static bool is_extended(const NbdRequest *request)
{
    return request->tx->conn->extended;
}

static void write_chunk(HeadWriter *writer, uint16_t flags, uint16_t type, uint64_t length)
{
    writer->next += nbd_encode_chunk(writer->next, is_extended(writer->request),
                                     &writer->request->header, flags, type, length);
}

static void write16(HeadWriter *writer, uint16_t value)
{
    nbd_put16(writer->next, value);
    writer->next += sizeof(value);
}

static void write32(HeadWriter *writer, uint32_t value)
{
    nbd_put32(writer->next, value);
    writer->next += sizeof(value);
}

static void write64(HeadWriter *writer, uint64_t value)
{
    nbd_put64(writer->next, value);
    writer->next += sizeof(value);
}

static bool has_chunks(const NbdRequest *request)
{
    return request->tx->conn->structured;
}

void nbd_reply_success(NbdRequest *request)
{
    HeadWriter writer = { request, request->head };

    if (is_extended(request) || (has_chunks(request) && request->header.command == NBD_CMD_READ)) {
        write_chunk(&writer, NBD_CHUNK_FLAG_DONE, NBD_CHUNK_NONE, 0);
    } else {
        writer.next += nbd_encode_simple_reply(writer.next, NBD_SUCCESS, request->header.cookie);
    }
    iov_add(&request->reply, request->head, (size_t)(writer.next - request->head));
    nbd_send_reply(request);
}

/* --- reads --- */

static void reply_read_simple(NbdRequest *request)
{
    size_t n = nbd_encode_simple_reply(request->head, NBD_SUCCESS, request->header.cookie);

    iov_add(&request->reply, request->head, n);
    iov_add(&request->reply, request->buffer, request->header.length);
    nbd_send_reply(request);
}

static void add_read_piece(HeadWriter *writer, const NbdReadPiece *piece, bool last)
{
    NbdRequest *request = writer->request;
    uint8_t *start = writer->next;
    uint16_t flags = last ? NBD_CHUNK_FLAG_DONE : 0;

    if (piece->hole) {
        write_chunk(writer, flags, NBD_CHUNK_OFFSET_HOLE, NBD_OFFSET_HOLE_BYTES);
        write64(writer, piece->offset);
        write32(writer, (uint32_t)piece->length);
        iov_add(&request->reply, start, (size_t)(writer->next - start));
        return;
    }
    write_chunk(writer, flags, NBD_CHUNK_OFFSET_DATA, NBD_OFFSET_DATA_BYTES + piece->length);
    write64(writer, piece->offset);
    iov_add(&request->reply, start, (size_t)(writer->next - start));
    iov_add(&request->reply, (char *)request->buffer + (piece->offset - request->header.offset),
            piece->length);
}

void nbd_reply_read(NbdRequest *request, const NbdReadPiece *pieces, unsigned n)
{
    HeadWriter writer = { request, request->head };

    if (!has_chunks(request)) {
        reply_read_simple(request);
        return;
    }
    if (n > 1) {
        request->extra = g_malloc(n * (size_t)NBD_REPLY_HEAD);
        writer.next = request->extra;
    }
    for (unsigned i = 0; i < n; i++) {
        add_read_piece(&writer, &pieces[i], i == n - 1);
    }
    nbd_send_reply(request);
}

/* --- errors --- */

static void reply_error_chunk(NbdRequest *request, uint32_t error, const uint64_t *offset,
                              const char *message)
{
    size_t length = MIN(strlen(message), NBD_MAX_ERROR_TEXT);
    HeadWriter writer;

    request->extra = g_malloc(NBD_REPLY_HEAD + length);
    writer = (HeadWriter){ request, request->extra };
    write_chunk(&writer, NBD_CHUNK_FLAG_DONE, offset ? NBD_CHUNK_ERROR_OFFSET : NBD_CHUNK_ERROR,
                NBD_ERROR_BYTES + length + (offset ? sizeof(*offset) : 0));
    write32(&writer, error);
    write16(&writer, (uint16_t)length);
    memcpy(writer.next, message, length);
    writer.next += length;
    if (offset) {
        write64(&writer, *offset);
    }
    iov_add(&request->reply, request->extra, (size_t)(writer.next - (uint8_t *)request->extra));
    nbd_send_reply(request);
}

static void reply_error(NbdRequest *request, uint32_t error, const uint64_t *offset,
                        const char *message)
{
    if (has_chunks(request)) {
        reply_error_chunk(request, error, offset, message);
        return;
    }
    iov_add(&request->reply, request->head,
            nbd_encode_simple_reply(request->head, error, request->header.cookie));
    nbd_send_reply(request);
}

void nbd_reply_error(NbdRequest *request, uint32_t error, const char *message)
{
    reply_error(request, error, NULL, message);
}

void nbd_reply_error_at(NbdRequest *request, uint32_t error, uint64_t offset, const char *message)
{
    reply_error(request, error, &offset, message);
}

/* --- block status --- */

static size_t extents_prefix_bytes(bool extended)
{
    return extended ? NBD_BLOCK_STATUS_EXT_BYTES : NBD_BLOCK_STATUS_BYTES;
}

/* Of the pool where it can be: fresh memory costs more than what is written into it. */
static uint8_t *memory_for_extents(NbdRequest *request, size_t bytes)
{
    uint8_t *memory = NULL;

    if (!request->buffer && bytes <= NBD_MAX_PAYLOAD) {
        memory = nbd_request_buffer(request, bytes);
    }
    return memory ? memory : (request->extra = g_malloc(bytes));
}

void nbd_reply_extents(NbdRequest *request, const NbdContextExtents *contexts, unsigned n)
{
    bool extended = is_extended(request);
    size_t bytes = 0;
    HeadWriter writer;
    uint8_t *start;

    for (unsigned i = 0; i < n; i++) {
        bytes += nbd_chunk_bytes(extended) + extents_prefix_bytes(extended) +
                 nbd_extents_bytes(&contexts[i].extents, extended);
    }
    start = memory_for_extents(request, bytes);
    writer = (HeadWriter){ request, start };
    for (unsigned i = 0; i < n; i++) {
        size_t length = nbd_extents_bytes(&contexts[i].extents, extended);

        write_chunk(&writer, i == n - 1 ? NBD_CHUNK_FLAG_DONE : 0,
                    extended ? NBD_CHUNK_BLOCK_STATUS_EXT : NBD_CHUNK_BLOCK_STATUS,
                    extents_prefix_bytes(extended) + length);
        write32(&writer, contexts[i].context);
        if (extended) {
            write32(&writer, contexts[i].extents.n);
        }
        nbd_extents_encode(&contexts[i].extents, extended, writer.next);
        writer.next += length;
    }
    iov_add(&request->reply, start, bytes);
    nbd_send_reply(request);
}
