/* SPDX-License-Identifier: MIT */
/* The codec of NBD, and the memory that requests use. */
#include "block/export/nbd/buffers.h"
#include "block/export/nbd/protocol.h"

#include <errno.h>
#include <string.h>

/* A request as the protocol document writes it, byte by byte. */
static void test_compact_request(void)
{
    static const uint8_t bytes[NBD_REQUEST_BYTES] = {
        0x25, 0x60, 0x95, 0x13, 0x00, 0x01, 0x00, 0x06, 1, 2, 3, 4, 5,    6,
        7,    8,    0x00, 0x00, 0x00, 0x00, 0x80, 0x00, 0, 0, 0, 0, 0x10, 0,
    };
    NbdRequestHeader header;

    g_assert_true(nbd_decode_request(bytes, false, &header));
    g_assert_cmphex(header.flags, ==, NBD_CMD_FLAG_FUA);
    g_assert_cmpuint(header.command, ==, NBD_CMD_WRITE_ZEROES);
    g_assert_cmphex(header.cookie, ==, 0x0102030405060708);
    g_assert_cmphex(header.offset, ==, 0x80000000);
    g_assert_cmphex(header.length, ==, 0x1000);
    g_assert_false(nbd_decode_request(bytes, true, &header));
}

static void test_extended_request(void)
{
    static const uint8_t bytes[NBD_EXTENDED_REQUEST_BYTES] = {
        0x21, 0xe4, 0x1c, 0x71, 0x00, 0x20, 0x00, 0x07, 8, 7, 6, 5, 4, 3, 2, 1,
        0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0, 0, 0, 0, 0,
    };
    NbdRequestHeader header;

    g_assert_true(nbd_decode_request(bytes, true, &header));
    g_assert_cmphex(header.flags, ==, NBD_CMD_FLAG_PAYLOAD_LEN);
    g_assert_cmpuint(header.command, ==, NBD_CMD_BLOCK_STATUS);
    g_assert_cmphex(header.cookie, ==, 0x0807060504030201);
    g_assert_cmphex(header.offset, ==, INT64_MAX);
    g_assert_cmphex(header.length, ==, UINT64_C(1) << 40);
    g_assert_false(nbd_decode_request(bytes, false, &header));
}

static void test_replies(void)
{
    static const uint8_t simple[] = { 0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 0, 0, 0, 0, 0, 0, 0, 9 };
    static const uint8_t chunk[] = { 0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 2, 0, 0,
                                     0,    0,    0,    0,    0, 9, 0, 0, 0, 12 };
    static const uint8_t extended[] = {
        0x6e, 0x8a, 0x27, 0x8c, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 9,
        0,    0,    0,    0,    0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 12
    };
    const NbdRequestHeader request = { .cookie = 9, .offset = 512 };
    uint8_t bytes[NBD_EXTENDED_CHUNK_BYTES];

    g_assert_cmpmem(bytes, nbd_encode_simple_reply(bytes, NBD_ENOSPC, 9), simple, sizeof(simple));
    g_assert_cmpmem(bytes, nbd_encode_chunk(bytes, false, &request, 1, NBD_CHUNK_OFFSET_HOLE, 12),
                    chunk, sizeof(chunk));
    g_assert_cmpmem(bytes, nbd_encode_chunk(bytes, true, &request, 1, NBD_CHUNK_OFFSET_HOLE, 12),
                    extended, sizeof(extended));
}

static void test_options(void)
{
    static const uint8_t option[] = {
        'I', 'H', 'A', 'V', 'E', 'O', 'P', 'T', 0, 0, 0, 7, 0, 0, 1, 0
    };
    static const uint8_t reply[] = { 0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0,
                                     0, 7, 0x80, 0,    0, 6,    0,    0,    0, 5 };
    uint8_t bytes[NBD_OPTION_REPLY_BYTES];
    uint32_t number, length;

    g_assert_true(nbd_decode_option(option, &number, &length));
    g_assert_cmpuint(number, ==, NBD_OPT_GO);
    g_assert_cmpuint(length, ==, 256);
    g_assert_cmpmem(bytes, nbd_encode_option_reply(bytes, NBD_OPT_GO, NBD_REP_ERR_UNKNOWN, 5),
                    reply, sizeof(reply));
    for (unsigned i = 0; i < 8; i++) {
        uint8_t wrong[NBD_OPTION_BYTES];

        memcpy(wrong, option, sizeof(wrong));
        wrong[i] ^= 1;
        g_assert_false(nbd_decode_option(wrong, &number, &length));
    }
}

static void test_errors(void)
{
    g_assert_cmpuint(nbd_error_from_errno(0), ==, NBD_SUCCESS);
    g_assert_cmpuint(nbd_error_from_errno(EROFS), ==, NBD_EPERM);
    g_assert_cmpuint(nbd_error_from_errno(EACCES), ==, NBD_EPERM);
    g_assert_cmpuint(nbd_error_from_errno(EIO), ==, NBD_EIO);
    g_assert_cmpuint(nbd_error_from_errno(ENOMEM), ==, NBD_ENOMEM);
    g_assert_cmpuint(nbd_error_from_errno(EINVAL), ==, NBD_EINVAL);
    g_assert_cmpuint(nbd_error_from_errno(EFBIG), ==, NBD_ENOSPC);
    g_assert_cmpuint(nbd_error_from_errno(EDQUOT), ==, NBD_ENOSPC);
    g_assert_cmpuint(nbd_error_from_errno(ENOTSUP), ==, NBD_ENOTSUP);
    g_assert_cmpuint(nbd_error_from_errno(EOVERFLOW), ==, NBD_EOVERFLOW);
    g_assert_cmpuint(nbd_error_from_errno(ESHUTDOWN), ==, NBD_ESHUTDOWN);
    /* What the protocol has no number for. */
    g_assert_cmpuint(nbd_error_from_errno(ENOMEDIUM), ==, NBD_EIO);
    g_assert_cmpuint(nbd_error_from_errno(ETIMEDOUT), ==, NBD_EIO);
}

static void test_names(void)
{
    g_assert_cmpstr(nbd_option_name(NBD_OPT_SET_META_CONTEXT), ==, "set meta context");
    g_assert_cmpstr(nbd_option_name(4), ==, "<unknown>");
    g_assert_cmpstr(nbd_option_name(UINT32_MAX), ==, "<unknown>");
    g_assert_cmpstr(nbd_command_name(NBD_CMD_WRITE_ZEROES), ==, "write zeroes");
    g_assert_cmpstr(nbd_command_name(UINT16_MAX), ==, "<unknown>");
}

/* --- buffers --- */

static void test_buffers_are_used_again(void)
{
    NbdBufferPool pool;
    void *small, *large;

    nbd_pool_init(&pool);
    small = nbd_pool_get(&pool, 1);
    large = nbd_pool_get(&pool, 4097);
    g_assert_cmpuint((uintptr_t)small % 4096, ==, 0);
    g_assert_cmpuint((uintptr_t)large % 4096, ==, 0);
    nbd_pool_put(&pool, small, 1);
    nbd_pool_put(&pool, large, 4097);
    g_assert_true(nbd_pool_get(&pool, 4096) == small);
    g_assert_true(nbd_pool_get(&pool, 8192) == large);
    nbd_pool_put(&pool, small, 4096);
    nbd_pool_put(&pool, large, 8192);
    nbd_pool_done(&pool);
}

/* Every byte of a buffer of every size can be written, and little is kept. */
static void test_buffers_of_all_sizes(void)
{
    NbdBufferPool pool;

    nbd_pool_init(&pool);
    for (size_t bytes = 1; bytes <= NBD_MAX_PAYLOAD; bytes = bytes * 2 + (bytes & 1)) {
        size_t sizes[] = { bytes, MAX(bytes - 1, 1), MIN(bytes + 1, NBD_MAX_PAYLOAD) };

        for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
            char *buffer = nbd_pool_get(&pool, sizes[i]);

            buffer[0] = buffer[sizes[i] - 1] = 1;
            nbd_pool_put(&pool, buffer, sizes[i]);
            g_assert_cmpuint(pool.kept, <=, NBD_POOL_KEEP);
        }
    }
    nbd_pool_done(&pool);
    g_assert_cmpuint(pool.kept, ==, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/nbd-protocol/compact-request", test_compact_request);
    g_test_add_func("/nbd-protocol/extended-request", test_extended_request);
    g_test_add_func("/nbd-protocol/replies", test_replies);
    g_test_add_func("/nbd-protocol/options", test_options);
    g_test_add_func("/nbd-protocol/errors", test_errors);
    g_test_add_func("/nbd-protocol/names", test_names);
    g_test_add_func("/nbd-protocol/buffers-are-used-again", test_buffers_are_used_again);
    g_test_add_func("/nbd-protocol/buffers-of-all-sizes", test_buffers_of_all_sizes);
    return g_test_run();
}
