/* SPDX-License-Identifier: MIT */
/*
 * Block status: what a range is, without reading it.
 *
 * A driver describes its own layer. Filters say what the node beneath them says. The walk of
 * node_co_block_status_above() goes down the backing chain to the first layer that decides.
 */
#include "io-internal.h"
#include "util/size.h"

#include <errno.h>

/* A protocol that cannot tell: data, where it lies. */
static void all_data(BlockNode *node, int64_t offset, int64_t bytes, BlockStatus *ret_status)
{
    *ret_status = (BlockStatus){
        .flags = BLOCK_STATUS_DATA | BLOCK_STATUS_OFFSET_VALID | BLOCK_STATUS_ALLOCATED,
        .bytes = bytes,
        .map = offset,
        .file = node,
    };
}

/* Nothing is beyond the end, and it is this layer that says so. */
static void beyond_end(int64_t bytes, BlockStatus *ret_status)
{
    *ret_status = (BlockStatus){
        .flags = BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED | BLOCK_STATUS_EOF,
        .bytes = bytes,
    };
}

/* Ask the driver in whole blocks and cut its answer to what was asked. A block may be of several
 * parts, where what is beneath has smaller ones. */
static int coroutine_fn ask_driver(BlockNode *node, int64_t offset, int64_t bytes,
                                   BlockStatus *ret_status)
{
    int64_t alignment = node->limits.request_alignment;
    int64_t begin = align_down(offset, alignment);
    int64_t end = align_up(offset + bytes, alignment);
    BlockStatus status;

    for (;;) {
        int ret = node->driver->co_block_status(node, begin, end - begin, &status);

        if (ret < 0) {
            return ret;
        }
        g_assert(status.bytes > 0);
        if (status.bytes > offset - begin) {
            break;
        }
        begin += status.bytes;
    }
    status.bytes = MIN(status.bytes - (offset - begin), bytes);
    status.map += offset - begin;
    *ret_status = status;
    return 0;
}

/* The flags that follow from others. */
static void complete_flags(const BlockNode *node, int64_t end, BlockStatus *status)
{
    if (status->flags & (BLOCK_STATUS_DATA | BLOCK_STATUS_ZERO)) {
        status->flags |= BLOCK_STATUS_ALLOCATED;
    }
    if (!(status->flags & BLOCK_STATUS_ALLOCATED) && !node->backing && node->driver->has_layers) {
        status->flags |= BLOCK_STATUS_ZERO;
    }
    if (end == node_size(node)) {
        status->flags |= BLOCK_STATUS_EOF;
    } else {
        status->flags &= ~BLOCK_STATUS_EOF;
    }
}

int coroutine_fn node_co_block_status(BlockNode *node, int64_t offset, int64_t bytes,
                                      BlockStatus *ret_status)
{
    int64_t size = node_size(node);
    BlockStatus status;
    int ret = 0;

    if (!io_range_is_valid(offset, bytes) || bytes == 0) {
        return -EIO;
    }
    if (offset >= size) {
        beyond_end(bytes, ret_status);
        return 0;
    }
    bytes = MIN(bytes, size - offset);
    if (node->driver->co_block_status) {
        ret = ask_driver(node, offset, bytes, &status);
    } else if (node->file) {
        ret = node_co_block_status(node->file->node, offset, bytes, &status);
    } else {
        all_data(node, offset, bytes, &status);
    }
    if (ret < 0) {
        return ret;
    }
    complete_flags(node, offset + status.bytes, &status);
    status.depth = 0;
    *ret_status = status;
    return 0;
}

int coroutine_fn node_co_block_status_above(BlockNode *node, BlockNode *base, int64_t offset,
                                            int64_t bytes, BlockStatus *ret_status)
{
    int64_t size = node_size(node);
    BlockStatus status;
    int depth = 0;

    for (;;) {
        int ret = node_co_block_status(node, offset, bytes, &status);

        if (ret < 0) {
            return ret;
        }
        if (status.flags & BLOCK_STATUS_ALLOCATED) {
            break;
        }
        depth++;
        bytes = status.bytes;
        node = node_skip_filters(node);
        if (!node->backing || node->backing->node == base ||
            node_skip_filters(node->backing->node) == base) {
            break;
        }
        node = node->backing->node;
    }
    if (offset + status.bytes != size) {
        status.flags &= ~BLOCK_STATUS_EOF; /* that of a shorter layer */
    }
    status.depth = depth;
    *ret_status = status;
    return 0;
}
