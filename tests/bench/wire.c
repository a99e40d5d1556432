/* SPDX-License-Identifier: MIT */
#include "wire.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

void wire_fail(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(1);
}

/* --- bytes --- */

void wire_send(Wire *wire, const void *data, size_t bytes)
{
    const char *next = data;

    while (bytes) {
        ssize_t ret = send(wire->fd, next, bytes, MSG_NOSIGNAL);

        if (ret < 0) {
            wire_fail("send: %s", g_strerror(errno));
        }
        next += ret;
        bytes -= (size_t)ret;
    }
}

static void receive(Wire *wire, void *to, size_t room, size_t *bytes)
{
    ssize_t ret = recv(wire->fd, to, room, 0);

    if (ret <= 0) {
        wire_fail("recv: %s", ret < 0 ? g_strerror(errno) : "the server has gone");
    }
    *bytes += (size_t)ret;
}

const uint8_t *wire_take(Wire *wire, size_t bytes)
{
    if (wire->in_begin == wire->in_end) {
        wire->in_begin = wire->in_end = 0;
    }
    if (WIRE_BUFFER - wire->in_begin < bytes) {
        memmove(wire->in, wire->in + wire->in_begin, wire->in_end - wire->in_begin);
        wire->in_end -= wire->in_begin;
        wire->in_begin = 0;
    }
    while (wire->in_end - wire->in_begin < bytes) {
        receive(wire, wire->in + wire->in_end, WIRE_BUFFER - wire->in_end, &wire->in_end);
    }
    wire->in_begin += bytes;
    return wire->in + wire->in_begin - bytes;
}

bool wire_has_more(const Wire *wire)
{
    return wire->in_begin < wire->in_end;
}

void wire_skip(Wire *wire, uint64_t bytes)
{
    while (bytes) {
        size_t part = MIN(bytes, WIRE_BUFFER);
        size_t there = wire->in_end - wire->in_begin;

        part = there ? MIN(part, there) : 1;
        wire_take(wire, part);
        bytes -= part;
    }
}

/* --- negotiation --- */

static void send_option(Wire *wire, uint32_t option, const uint8_t *data, uint32_t bytes)
{
    uint8_t head[NBD_OPTION_BYTES];

    nbd_put64(head, NBD_OPTION_MAGIC);
    nbd_put32(head + 8, option);
    nbd_put32(head + 12, bytes);
    wire_send(wire, head, sizeof(head));
    wire_send(wire, data, bytes);
}

/* Returns the type of the reply; its payload is in *data until the next call. */
static uint32_t option_reply(Wire *wire, const uint8_t **data, uint32_t *bytes)
{
    const uint8_t *head = wire_take(wire, NBD_OPTION_REPLY_BYTES);
    uint32_t type = nbd_get32(head + 12);

    if (nbd_get64(head) != NBD_OPTION_REPLY_MAGIC) {
        wire_fail("not a reply to an option");
    }
    *bytes = nbd_get32(head + 16);
    *data = wire_take(wire, *bytes);
    return type;
}

static bool simple_option(Wire *wire, uint32_t option)
{
    const uint8_t *data;
    uint32_t bytes;

    send_option(wire, option, NULL, 0);
    return option_reply(wire, &data, &bytes) == NBD_REP_ACK;
}

static void append_string(GByteArray *bytes, const char *string)
{
    uint8_t length[4];

    nbd_put32(length, (uint32_t)strlen(string));
    g_byte_array_append(bytes, length, sizeof(length));
    g_byte_array_append(bytes, (const uint8_t *)string, (guint)strlen(string));
}

static void select_context(Wire *wire, const char *export, const char *context)
{
    static const uint8_t one[4] = { 0, 0, 0, 1 };
    g_autoptr(GByteArray) option = g_byte_array_new();
    const uint8_t *data;
    uint32_t bytes, type;
    bool found = false;

    append_string(option, export);
    g_byte_array_append(option, one, sizeof(one));
    append_string(option, context);
    send_option(wire, NBD_OPT_SET_META_CONTEXT, option->data, option->len);
    while ((type = option_reply(wire, &data, &bytes)) == NBD_REP_META_CONTEXT) {
        wire->context = nbd_get32(data);
        found = true;
    }
    if (type != NBD_REP_ACK || !found) {
        wire_fail("no context '%s'", context);
    }
}

static void go(Wire *wire, const char *export)
{
    g_autoptr(GByteArray) option = g_byte_array_new();
    const uint8_t *data;
    uint32_t bytes, type;

    append_string(option, export);
    g_byte_array_append(option, (const uint8_t *)"\0\0", 2);
    send_option(wire, NBD_OPT_GO, option->data, option->len);
    while ((type = option_reply(wire, &data, &bytes)) == NBD_REP_INFO) {
        if (nbd_get16(data) == NBD_INFO_EXPORT) {
            wire->size = nbd_get64(data + 2);
        }
    }
    if (type != NBD_REP_ACK) {
        wire_fail("no export '%s'", export);
    }
}

void wire_open(Wire *wire, const char *path, const char *export, const char *context,
               bool wants_extended)
{
    static const uint8_t flags[4] = { 0, 0, 0, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES };
    struct sockaddr_un address = { .sun_family = AF_UNIX };

    *wire =
        (Wire){ .fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), .in = g_malloc(WIRE_BUFFER) };
    g_strlcpy(address.sun_path, path, sizeof(address.sun_path));
    if (connect(wire->fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        wire_fail("%s: %s", path, g_strerror(errno));
    }
    wire_take(wire, NBD_GREETING_BYTES);
    wire_send(wire, flags, sizeof(flags));
    wire->extended = wants_extended && simple_option(wire, NBD_OPT_EXTENDED_HEADERS);
    if (!wire->extended && !simple_option(wire, NBD_OPT_STRUCTURED_REPLY)) {
        wire_fail("no structured replies");
    }
    if (context) {
        select_context(wire, export, context);
    }
    go(wire, export);
}

void wire_close(Wire *wire)
{
    uint8_t bye[NBD_EXTENDED_REQUEST_BYTES];

    wire_send(wire, bye, wire_request(wire, bye, NBD_CMD_DISC, 0, 0, 0));
    close(wire->fd);
    g_free(wire->in);
}

/* --- transmission --- */

size_t wire_request(const Wire *wire, uint8_t *to, uint16_t command, uint64_t cookie,
                    uint64_t offset, uint64_t length)
{
    bool has_payload = wire->extended && command == NBD_CMD_WRITE;

    nbd_put32(to, wire->extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC);
    nbd_put16(to + 4, has_payload ? NBD_CMD_FLAG_PAYLOAD_LEN : 0);
    nbd_put16(to + 6, command);
    nbd_put64(to + 8, cookie);
    nbd_put64(to + 16, offset);
    if (wire->extended) {
        nbd_put64(to + 24, length);
    } else {
        nbd_put32(to + 24, (uint32_t)length);
    }
    return nbd_request_bytes(wire->extended);
}

static void check_type(Wire *wire, const WireReply *reply)
{
    if (reply->type & (1 << 15)) {
        wire_fail("request failed: error %" PRIu32, nbd_get32(wire_take(wire, sizeof(uint32_t))));
    }
}

WireReply wire_reply(Wire *wire)
{
    const uint8_t *head = wire_take(wire, NBD_SIMPLE_REPLY_BYTES);
    uint32_t magic = nbd_get32(head);
    WireReply reply = { .done = true, .cookie = nbd_get64(head + 8) };

    switch (magic) {
    case NBD_SIMPLE_REPLY_MAGIC:
        if (nbd_get32(head + 4)) {
            wire_fail("request failed: error %" PRIu32, nbd_get32(head + 4));
        }
        return reply;
    case NBD_CHUNK_MAGIC:
    case NBD_EXTENDED_CHUNK_MAGIC:
        reply.done = nbd_get16(head + 4) & NBD_CHUNK_FLAG_DONE;
        reply.type = nbd_get16(head + 6);
        break;
    default:
        wire_fail("not a reply: %" PRIx32, magic);
    }
    if (magic == NBD_CHUNK_MAGIC) {
        reply.length = nbd_get32(wire_take(wire, NBD_CHUNK_BYTES - NBD_SIMPLE_REPLY_BYTES));
    } else {
        reply.length =
            nbd_get64(wire_take(wire, NBD_EXTENDED_CHUNK_BYTES - NBD_SIMPLE_REPLY_BYTES) + 8);
    }
    check_type(wire, &reply);
    return reply;
}
