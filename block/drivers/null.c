/* SPDX-License-Identifier: MIT */
/*
 * The drivers `null-co` and `null-aio`: a disk that takes everything and keeps nothing.
 *
 * Reads leave the buffer as it is, or zero it with `read-zeroes`. `latency-ns` delays each request.
 * The two differ in nothing but their names.
 */
#include "block/driver.h"
#include "block/drivers.h"
#include "util/error.h"
#include "util/size.h"

#include <errno.h>

#define NULL_DEFAULT_SIZE GiB
#define NULL_SECTOR       512

typedef struct NullState {
    int64_t latency_ns;
    bool read_zeroes;
} NullState;

static bool open_null(BlockNode *node, const BlockdevOptionsNull *options, GError **error)
{
    NullState *null = node->state;
    int64_t size = options->has_size ? options->size : NULL_DEFAULT_SIZE;

    if (size < 0) {
        merino_error(error, "Parameter 'size' expects a non-negative number below 2^64");
        return false;
    }
    if (size > INT64_MAX - GiB) {
        merino_error_errno(error, EFBIG, "Could not refresh total sector count");
        return false;
    }
    if (options->has_latency_ns && options->latency_ns > INT64_MAX) {
        merino_error(error, "latency-ns is invalid");
        return false;
    }
    null->latency_ns = options->has_latency_ns ? (int64_t)options->latency_ns : 0;
    null->read_zeroes = options->has_read_zeroes && options->read_zeroes;
    if (!options->has_size && !options->has_latency_ns && !options->has_read_zeroes) {
        g_free(node->filename);
        node->filename = g_strconcat(node->driver->name, "://", NULL);
    }
    node->limits.write_flags = REQ_FUA;
    node->limits.zero_flags = REQ_FUA | REQ_MAY_UNMAP | REQ_NO_FALLBACK;
    node_set_size(node, align_up(size, NULL_SECTOR));
    return true;
}

static bool null_co_open(BlockNode *node, const BlockdevOptions *options, GError **error)
{
    return open_null(node, &options->u.null_co, error);
}

static bool null_aio_open(BlockNode *node, const BlockdevOptions *options, GError **error)
{
    return open_null(node, &options->u.null_aio, error);
}

static bool null_reopen_prepare(ReopenState *state, UndoStack *undo, GError **error)
{
    return true;
}

static int coroutine_fn take_time(BlockNode *node)
{
    const NullState *null = node->state;

    if (null->latency_ns) {
        coroutine_sleep_ns(null->latency_ns);
    }
    return 0;
}

static int coroutine_fn null_co_preadv(BlockNode *node, int64_t offset, int64_t bytes,
                                       IoVector *vec, unsigned flags)
{
    const NullState *null = node->state;

    if (null->read_zeroes) {
        iov_memset(vec, 0, 0, bytes);
    }
    return take_time(node);
}

static int coroutine_fn null_co_pwritev(BlockNode *node, int64_t offset, int64_t bytes,
                                        IoVector *vec, unsigned flags)
{
    return take_time(node);
}

static int coroutine_fn null_co_pwrite_zeroes(BlockNode *node, int64_t offset, int64_t bytes,
                                              unsigned flags)
{
    return take_time(node);
}

static int coroutine_fn null_co_pdiscard(BlockNode *node, int64_t offset, int64_t bytes)
{
    return take_time(node);
}

static int coroutine_fn null_co_flush(BlockNode *node)
{
    return take_time(node);
}

static int coroutine_fn null_co_block_status(BlockNode *node, int64_t offset, int64_t bytes,
                                             BlockStatus *ret_status)
{
    const NullState *null = node->state;

    *ret_status = (BlockStatus){
        .flags = BLOCK_STATUS_OFFSET_VALID | (null->read_zeroes ? BLOCK_STATUS_ZERO : 0),
        .bytes = bytes,
        .map = offset,
        .file = node,
    };
    return 0;
}

static int64_t null_allocated_size(BlockNode *node)
{
    return 0;
}

static BlockdevOptions *parse_name(BlockdevDriver driver, const char *name, GError **error)
{
    const char *driver_name = BlockdevDriver_str(driver);
    g_autofree char *only = g_strconcat(driver_name, "://", NULL);
    BlockdevOptions *options;

    if (strcmp(name, only) != 0) {
        merino_error(error, "The only allowed filename for this driver is '%s'", only);
        return NULL;
    }
    options = g_new0(BlockdevOptions, 1);
    options->driver = driver;
    return options;
}

static BlockdevOptions *null_co_parse_name(const char *name, GError **error)
{
    return parse_name(BLOCKDEV_DRIVER_NULL_CO, name, error);
}

static BlockdevOptions *null_aio_parse_name(const char *name, GError **error)
{
    return parse_name(BLOCKDEV_DRIVER_NULL_AIO, name, error);
}

static const BlockDriver null_co_driver = {
    .name = "null-co",
    .state_size = sizeof(NullState),
    .is_protocol = true,
    .parse_name = null_co_parse_name,
    .open = null_co_open,
    .reopen_prepare = null_reopen_prepare,
    .co_preadv = null_co_preadv,
    .co_pwritev = null_co_pwritev,
    .co_pwrite_zeroes = null_co_pwrite_zeroes,
    .co_pdiscard = null_co_pdiscard,
    .co_flush = null_co_flush,
    .co_block_status = null_co_block_status,
    .allocated_size = null_allocated_size,
};

static const BlockDriver null_aio_driver = {
    .name = "null-aio",
    .state_size = sizeof(NullState),
    .is_protocol = true,
    .parse_name = null_aio_parse_name,
    .open = null_aio_open,
    .reopen_prepare = null_reopen_prepare,
    .co_preadv = null_co_preadv,
    .co_pwritev = null_co_pwritev,
    .co_pwrite_zeroes = null_co_pwrite_zeroes,
    .co_pdiscard = null_co_pdiscard,
    .co_flush = null_co_flush,
    .co_block_status = null_co_block_status,
    .allocated_size = null_allocated_size,
};

void null_drivers_register(void)
{
    driver_register(&null_co_driver);
    driver_register(&null_aio_driver);
}
