/* SPDX-License-Identifier: MIT */
/*
 * A small NBD client for measurements: one connection, blocking calls, as little work of its own
 * as there can be. It asks for extended headers, and makes do with structured replies where the
 * server has no more. Whatever is not as it should be ends the program with words.
 */
#ifndef MERINO_BENCH_WIRE_H
#define MERINO_BENCH_WIRE_H

#include "block/export/nbd/protocol.h"

typedef struct Wire {
    int fd;
    uint64_t size;
    bool extended;
    uint32_t context; /* the id of the metadata context, if one was asked for */
    uint8_t *in;      /* received, not yet taken */
    size_t in_begin, in_end;
} Wire;

/* Connect to a unix socket and choose an export. `context` is a metadata context or NULL. With
 * `wants_extended` unset the connection is as most clients of today have it. */
void wire_open(Wire *wire, const char *path, const char *export, const char *context,
               bool wants_extended);
void wire_close(Wire *wire);

/* Encode a request. Returns the number of bytes written, NBD_EXTENDED_REQUEST_BYTES at most. */
size_t wire_request(const Wire *wire, uint8_t *to, uint16_t command, uint64_t cookie,
                    uint64_t offset, uint64_t length);

void wire_send(Wire *wire, const void *data, size_t bytes);

/* The next `bytes` of the stream, which is at most WIRE_BUFFER; valid until the next call. */
#define WIRE_BUFFER (1 << 20)
const uint8_t *wire_take(Wire *wire, size_t bytes);

/* Whether another message has begun to arrive. */
bool wire_has_more(const Wire *wire);

/* Let `bytes` go by. */
void wire_skip(Wire *wire, uint64_t bytes);

typedef struct WireReply {
    uint16_t type; /* NBD_CHUNK_*; a simple reply is NBD_CHUNK_NONE */
    bool done;
    uint64_t cookie;
    uint64_t length; /* of the payload, which comes next */
} WireReply;

/* The header of the next reply or chunk; errors end the program. */
WireReply wire_reply(Wire *wire);

void wire_fail(const char *format, ...) G_GNUC_PRINTF(1, 2) G_GNUC_NORETURN;

#endif
