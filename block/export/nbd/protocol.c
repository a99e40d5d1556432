/* SPDX-License-Identifier: MIT */
#include "protocol.h"

#include <errno.h>

/* Where the fields of each message lie. The assertions below tie offsets to the sizes. */
enum {
    REQUEST_FLAGS = 4,
    REQUEST_COMMAND = 6,
    REQUEST_COOKIE = 8,
    REQUEST_OFFSET = 16,
    REQUEST_LENGTH = 24,

    SIMPLE_ERROR = 4,
    SIMPLE_COOKIE = 8,

    CHUNK_FLAGS = 4,
    CHUNK_TYPE = 6,
    CHUNK_COOKIE = 8,
    CHUNK_LENGTH = 16,
    CHUNK_EXTENDED_OFFSET = 16,
    CHUNK_EXTENDED_LENGTH = 24,

    OPTION_NUMBER = 8,
    OPTION_LENGTH = 12,

    OPTION_REPLY_NUMBER = 8,
    OPTION_REPLY_TYPE = 12,
    OPTION_REPLY_LENGTH = 16,
};

G_STATIC_ASSERT(REQUEST_LENGTH + sizeof(uint32_t) == NBD_REQUEST_BYTES);
G_STATIC_ASSERT(REQUEST_LENGTH + sizeof(uint64_t) == NBD_EXTENDED_REQUEST_BYTES);
G_STATIC_ASSERT(SIMPLE_COOKIE + sizeof(uint64_t) == NBD_SIMPLE_REPLY_BYTES);
G_STATIC_ASSERT(CHUNK_LENGTH + sizeof(uint32_t) == NBD_CHUNK_BYTES);
G_STATIC_ASSERT(CHUNK_EXTENDED_LENGTH + sizeof(uint64_t) == NBD_EXTENDED_CHUNK_BYTES);
G_STATIC_ASSERT(OPTION_LENGTH + sizeof(uint32_t) == NBD_OPTION_BYTES);
G_STATIC_ASSERT(OPTION_REPLY_LENGTH + sizeof(uint32_t) == NBD_OPTION_REPLY_BYTES);

bool nbd_decode_request(const uint8_t *bytes, bool extended, NbdRequestHeader *ret_request)
{
    if (nbd_get32(bytes) != (extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC)) {
        return false;
    }
    ret_request->flags = nbd_get16(bytes + REQUEST_FLAGS);
    ret_request->command = nbd_get16(bytes + REQUEST_COMMAND);
    ret_request->cookie = nbd_get64(bytes + REQUEST_COOKIE);
    ret_request->offset = nbd_get64(bytes + REQUEST_OFFSET);
    ret_request->length =
        extended ? nbd_get64(bytes + REQUEST_LENGTH) : nbd_get32(bytes + REQUEST_LENGTH);
    return true;
}

size_t nbd_encode_simple_reply(uint8_t *bytes, uint32_t error, uint64_t cookie)
{
    nbd_put32(bytes, NBD_SIMPLE_REPLY_MAGIC);
    nbd_put32(bytes + SIMPLE_ERROR, error);
    nbd_put64(bytes + SIMPLE_COOKIE, cookie);
    return NBD_SIMPLE_REPLY_BYTES;
}

size_t nbd_encode_chunk(uint8_t *bytes, bool extended, const NbdRequestHeader *request,
                        uint16_t flags, uint16_t type, uint64_t length)
{
    nbd_put32(bytes, extended ? NBD_EXTENDED_CHUNK_MAGIC : NBD_CHUNK_MAGIC);
    nbd_put16(bytes + CHUNK_FLAGS, flags);
    nbd_put16(bytes + CHUNK_TYPE, type);
    nbd_put64(bytes + CHUNK_COOKIE, request->cookie);
    if (extended) {
        nbd_put64(bytes + CHUNK_EXTENDED_OFFSET, request->offset);
        nbd_put64(bytes + CHUNK_EXTENDED_LENGTH, length);
        return NBD_EXTENDED_CHUNK_BYTES;
    }
    nbd_put32(bytes + CHUNK_LENGTH, (uint32_t)length);
    return NBD_CHUNK_BYTES;
}

size_t nbd_encode_extent(uint8_t *bytes, bool extended, uint64_t length, uint64_t flags)
{
    if (extended) {
        nbd_put64(bytes, length);
        nbd_put64(bytes + 8, flags);
        return NBD_EXTENT_EXT_BYTES;
    }
    nbd_put32(bytes, (uint32_t)length);
    nbd_put32(bytes + 4, (uint32_t)flags);
    return NBD_EXTENT_BYTES;
}

bool nbd_decode_option(const uint8_t bytes[NBD_OPTION_BYTES], uint32_t *ret_option,
                       uint32_t *ret_length)
{
    if (nbd_get64(bytes) != NBD_OPTION_MAGIC) {
        return false;
    }
    *ret_option = nbd_get32(bytes + OPTION_NUMBER);
    *ret_length = nbd_get32(bytes + OPTION_LENGTH);
    return true;
}

size_t nbd_encode_option_reply(uint8_t *bytes, uint32_t option, uint32_t type, uint32_t length)
{
    nbd_put64(bytes, NBD_OPTION_REPLY_MAGIC);
    nbd_put32(bytes + OPTION_REPLY_NUMBER, option);
    nbd_put32(bytes + OPTION_REPLY_TYPE, type);
    nbd_put32(bytes + OPTION_REPLY_LENGTH, length);
    return NBD_OPTION_REPLY_BYTES;
}

uint32_t nbd_error_from_errno(int err)
{
    switch (err) {
    case 0:
        return NBD_SUCCESS;
    case EPERM:
    case EACCES:
    case EROFS:
        return NBD_EPERM;
    case ENOMEM:
        return NBD_ENOMEM;
    case EINVAL:
        return NBD_EINVAL;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return NBD_ENOSPC;
    case EOVERFLOW:
        return NBD_EOVERFLOW;
    case ENOTSUP:
        return NBD_ENOTSUP;
    case ESHUTDOWN:
        return NBD_ESHUTDOWN;
    default:
        return NBD_EIO;
    }
}

const char *nbd_option_name(uint32_t option)
{
    static const char *const names[] = {
        [NBD_OPT_EXPORT_NAME] = "export name",
        [NBD_OPT_ABORT] = "abort",
        [NBD_OPT_LIST] = "list",
        [NBD_OPT_STARTTLS] = "starttls",
        [NBD_OPT_INFO] = "info",
        [NBD_OPT_GO] = "go",
        [NBD_OPT_STRUCTURED_REPLY] = "structured reply",
        [NBD_OPT_LIST_META_CONTEXT] = "list meta context",
        [NBD_OPT_SET_META_CONTEXT] = "set meta context",
        [NBD_OPT_EXTENDED_HEADERS] = "extended headers",
    };

    return option < G_N_ELEMENTS(names) && names[option] ? names[option] : "<unknown>";
}

const char *nbd_command_name(uint16_t command)
{
    static const char *const names[NBD_CMD__MAX] = {
        [NBD_CMD_READ] = "read",
        [NBD_CMD_WRITE] = "write",
        [NBD_CMD_DISC] = "disconnect",
        [NBD_CMD_FLUSH] = "flush",
        [NBD_CMD_TRIM] = "trim",
        [NBD_CMD_CACHE] = "cache",
        [NBD_CMD_WRITE_ZEROES] = "write zeroes",
        [NBD_CMD_BLOCK_STATUS] = "block status",
    };

    return command < NBD_CMD__MAX ? names[command] : "<unknown>";
}
