/* SPDX-License-Identifier: MIT */
/*
 * The NBD protocol on the wire: numbers, layouts, limits, and the codec between bytes and values.
 *
 * Everything foreign about NBD is in this header and protocol.c. All numbers on the wire are
 * big-endian and lie at odd addresses; the functions here take plain byte pointers and never
 * yield or allocate.
 *
 * Requests and replies come in two widths. The compact form is the protocol's first one (32-bit
 * lengths); the extended form, which a client may negotiate, has 64-bit lengths. Both decode to and
 * are encoded from the same values.
 */
#ifndef MERINO_NBD_PROTOCOL_H
#define MERINO_NBD_PROTOCOL_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* --- limits of ours --- */

#define NBD_MAX_STRING      4096       /* bytes of an export name, a description, a query */
#define NBD_MAX_PAYLOAD     (32 << 20) /* bytes that one read or write moves */
#define NBD_MAX_OPTION      (1 << 20)  /* bytes of an option that are looked at */
#define NBD_MAX_OPTION_SKIP (32 << 20) /* bytes of an option that are skipped; more: good bye */
#define NBD_MAX_QUERIES     8192       /* of one metadata context option */
#define NBD_PREFERRED_BLOCK 4096
#define NBD_MAX_MIN_BLOCK   65536     /* what the protocol allows as the smallest block */
#define NBD_MAX_ERROR_TEXT  512       /* bytes of a message in a reply, without the end mark */
#define NBD_EXTENTS_BYTES   (1 << 20) /* at most, of one context in one block status reply */

/* --- negotiation --- */

#define NBD_MAGIC              UINT64_C(0x4e42444d41474943) /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC       UINT64_C(0x49484156454f5054) /* "IHAVEOPT" */
#define NBD_OPTION_REPLY_MAGIC UINT64_C(0x0003e889045565a9)

enum {
    NBD_GREETING_BYTES = 18, /* magic, option magic, flags */
    NBD_CLIENT_FLAGS_BYTES = 4,
    NBD_OPTION_BYTES = 16,       /* magic, option, length */
    NBD_OPTION_REPLY_BYTES = 20, /* magic, option, type, length */
    NBD_EXPORT_NAME_BYTES = 10,  /* size, flags: the answer to EXPORT_NAME */
    NBD_EXPORT_NAME_ZEROES = 124,
};

/* Flags of the greeting; the client answers with the same bits. */
enum {
    NBD_FLAG_FIXED_NEWSTYLE = 1 << 0,
    NBD_FLAG_NO_ZEROES = 1 << 1,
};

typedef enum NbdOption {
    NBD_OPT_EXPORT_NAME = 1,
    NBD_OPT_ABORT = 2,
    NBD_OPT_LIST = 3,
    NBD_OPT_STARTTLS = 5,
    NBD_OPT_INFO = 6,
    NBD_OPT_GO = 7,
    NBD_OPT_STRUCTURED_REPLY = 8,
    NBD_OPT_LIST_META_CONTEXT = 9,
    NBD_OPT_SET_META_CONTEXT = 10,
    NBD_OPT_EXTENDED_HEADERS = 11,
} NbdOption;

#define NBD_REP_FLAG_ERROR (UINT32_C(1) << 31)

enum {
    NBD_REP_ACK = 1,
    NBD_REP_SERVER = 2,
    NBD_REP_INFO = 3,
    NBD_REP_META_CONTEXT = 4,
};

#define NBD_REP_ERR_UNSUP           (NBD_REP_FLAG_ERROR | 1)
#define NBD_REP_ERR_POLICY          (NBD_REP_FLAG_ERROR | 2)
#define NBD_REP_ERR_INVALID         (NBD_REP_FLAG_ERROR | 3)
#define NBD_REP_ERR_TLS_REQD        (NBD_REP_FLAG_ERROR | 5)
#define NBD_REP_ERR_UNKNOWN         (NBD_REP_FLAG_ERROR | 6)
#define NBD_REP_ERR_TOO_BIG         (NBD_REP_FLAG_ERROR | 9)
#define NBD_REP_ERR_EXT_HEADER_REQD (NBD_REP_FLAG_ERROR | 10)

enum {
    NBD_INFO_EXPORT = 0,
    NBD_INFO_NAME = 1,
    NBD_INFO_DESCRIPTION = 2,
    NBD_INFO_BLOCK_SIZE = 3,
};

/* What an export can do. */
enum {
    NBD_FLAG_HAS_FLAGS = 1 << 0,
    NBD_FLAG_READ_ONLY = 1 << 1,
    NBD_FLAG_SEND_FLUSH = 1 << 2,
    NBD_FLAG_SEND_FUA = 1 << 3,
    NBD_FLAG_SEND_TRIM = 1 << 5,
    NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6,
    NBD_FLAG_SEND_DF = 1 << 7,
    NBD_FLAG_CAN_MULTI_CONN = 1 << 8,
    NBD_FLAG_SEND_CACHE = 1 << 10,
    NBD_FLAG_SEND_FAST_ZERO = 1 << 11,
    NBD_FLAG_BLOCK_STATUS_PAYLOAD = 1 << 12,
};

/* --- transmission --- */

#define NBD_REQUEST_MAGIC          UINT32_C(0x25609513)
#define NBD_EXTENDED_REQUEST_MAGIC UINT32_C(0x21e41c71)
#define NBD_SIMPLE_REPLY_MAGIC     UINT32_C(0x67446698)
#define NBD_CHUNK_MAGIC            UINT32_C(0x668e33ef)
#define NBD_EXTENDED_CHUNK_MAGIC   UINT32_C(0x6e8a278c)

enum {
    NBD_REQUEST_BYTES = 28,
    NBD_EXTENDED_REQUEST_BYTES = 32,
    NBD_SIMPLE_REPLY_BYTES = 16,
    NBD_CHUNK_BYTES = 20,
    NBD_EXTENDED_CHUNK_BYTES = 32,
};

typedef enum NbdCommand {
    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISC = 2,
    NBD_CMD_FLUSH = 3,
    NBD_CMD_TRIM = 4,
    NBD_CMD_CACHE = 5,
    NBD_CMD_WRITE_ZEROES = 6,
    NBD_CMD_BLOCK_STATUS = 7,
    NBD_CMD__MAX,
} NbdCommand;

enum {
    NBD_CMD_FLAG_FUA = 1 << 0,
    NBD_CMD_FLAG_NO_HOLE = 1 << 1,
    NBD_CMD_FLAG_DF = 1 << 2,
    NBD_CMD_FLAG_REQ_ONE = 1 << 3,
    NBD_CMD_FLAG_FAST_ZERO = 1 << 4,
    NBD_CMD_FLAG_PAYLOAD_LEN = 1 << 5,
};

#define NBD_CHUNK_FLAG_DONE 1

enum {
    NBD_CHUNK_NONE = 0,
    NBD_CHUNK_OFFSET_DATA = 1,
    NBD_CHUNK_OFFSET_HOLE = 2,
    NBD_CHUNK_BLOCK_STATUS = 5,
    NBD_CHUNK_BLOCK_STATUS_EXT = 6,
    NBD_CHUNK_ERROR = (1 << 15) + 1,
    NBD_CHUNK_ERROR_OFFSET = (1 << 15) + 2,
};

enum {
    NBD_OFFSET_DATA_BYTES = 8,      /* offset, before the data */
    NBD_OFFSET_HOLE_BYTES = 12,     /* offset, length */
    NBD_ERROR_BYTES = 6,            /* error, length of the message, before it */
    NBD_BLOCK_STATUS_BYTES = 4,     /* context, before the extents */
    NBD_BLOCK_STATUS_EXT_BYTES = 8, /* context, number of extents, before them */
    NBD_EXTENT_BYTES = 8,           /* length, flags */
    NBD_EXTENT_EXT_BYTES = 16,
};

/* Extents of base:allocation and of qemu:dirty-bitmap. */
enum {
    NBD_EXTENT_HOLE = 1 << 0,
    NBD_EXTENT_ZERO = 1 << 1,
    NBD_EXTENT_DIRTY = 1 << 0,
};

/* Errors of requests, the protocol's own numbering. */
enum {
    NBD_SUCCESS = 0,
    NBD_EPERM = 1,
    NBD_EIO = 5,
    NBD_ENOMEM = 12,
    NBD_EINVAL = 22,
    NBD_ENOSPC = 28,
    NBD_EOVERFLOW = 75,
    NBD_ENOTSUP = 95,
    NBD_ESHUTDOWN = 108,
};

/* --- the codec --- */

static inline void nbd_put16(uint8_t *p, uint16_t value)
{
    value = GUINT16_TO_BE(value);
    __builtin_memcpy(p, &value, sizeof(value));
}

static inline void nbd_put32(uint8_t *p, uint32_t value)
{
    value = GUINT32_TO_BE(value);
    __builtin_memcpy(p, &value, sizeof(value));
}

static inline void nbd_put64(uint8_t *p, uint64_t value)
{
    value = GUINT64_TO_BE(value);
    __builtin_memcpy(p, &value, sizeof(value));
}

static inline uint16_t nbd_get16(const uint8_t *p)
{
    uint16_t value;

    __builtin_memcpy(&value, p, sizeof(value));
    return GUINT16_FROM_BE(value);
}

static inline uint32_t nbd_get32(const uint8_t *p)
{
    uint32_t value;

    __builtin_memcpy(&value, p, sizeof(value));
    return GUINT32_FROM_BE(value);
}

static inline uint64_t nbd_get64(const uint8_t *p)
{
    uint64_t value;

    __builtin_memcpy(&value, p, sizeof(value));
    return GUINT64_FROM_BE(value);
}

/* A request as it arrived. `length` is the effect of the command, or of its payload. */
typedef struct NbdRequestHeader {
    uint16_t flags;
    uint16_t command;
    uint64_t cookie; /* the client's, opaque: in the byte order of the wire's number */
    uint64_t offset;
    uint64_t length;
} NbdRequestHeader;

static inline size_t nbd_request_bytes(bool extended)
{
    return extended ? NBD_EXTENDED_REQUEST_BYTES : NBD_REQUEST_BYTES;
}

static inline size_t nbd_chunk_bytes(bool extended)
{
    return extended ? NBD_EXTENDED_CHUNK_BYTES : NBD_CHUNK_BYTES;
}

/* From nbd_request_bytes() bytes. False when the magic is wrong: the stream is lost. */
bool nbd_decode_request(const uint8_t *bytes, bool extended, NbdRequestHeader *ret_request);

/* All return the number of bytes written. `length` counts the payload that follows. */
size_t nbd_encode_simple_reply(uint8_t *bytes, uint32_t error, uint64_t cookie);
size_t nbd_encode_chunk(uint8_t *bytes, bool extended, const NbdRequestHeader *request,
                        uint16_t flags, uint16_t type, uint64_t length);
size_t nbd_encode_extent(uint8_t *bytes, bool extended, uint64_t length, uint64_t flags);

/* An option's header. False when the magic is wrong. */
bool nbd_decode_option(const uint8_t bytes[NBD_OPTION_BYTES], uint32_t *ret_option,
                       uint32_t *ret_length);
size_t nbd_encode_option_reply(uint8_t *bytes, uint32_t option, uint32_t type, uint32_t length);

/* The one place where errno becomes an NBD error; `err` is positive or 0. */
uint32_t nbd_error_from_errno(int err);

/* Names for messages: "list", "read"; "<unknown>". */
const char *nbd_option_name(uint32_t option);
const char *nbd_command_name(uint16_t command);

#endif
