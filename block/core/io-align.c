/* SPDX-License-Identifier: MIT */
/*
 * Transfers that the driver cannot take as they are: of parts of blocks, from memory that is not
 * aligned, longer than its limit, or beyond the end of the node.
 *
 * A write of parts of blocks reads the first and the last block, changes them and writes
 * whole blocks; core/tracked.c keeps other writes off them meanwhile.
 */
#include "io-internal.h"
#include "tracked.h"
#include "util/size.h"

#include <errno.h>
#include <string.h>

/* The most memory that one request takes for copies of its data. */
#define BOUNCE_MAX MiB

#define ZERO_BUFFER_SIZE (64 * KiB)

/* What zeroes are written from; never written to. */
static _Alignas(4096) char zero_buffer[ZERO_BUFFER_SIZE];

typedef int coroutine_fn TransferFn(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                                    unsigned flags);

/* Whole blocks from aligned memory, in pieces as long as the driver takes. */
static int coroutine_fn transfer(BlockNode *node, TransferFn *fn, int64_t offset, int64_t bytes,
                                 IoVector *vec, unsigned flags)
{
    int64_t max = align_down(node->limits.max_transfer, node->limits.request_alignment);
    int ret = 0;

    if (max == 0 || bytes <= max) {
        return fn(node, offset, bytes, vec, flags);
    }
    for (int64_t done = 0; done < bytes && ret == 0; done += max) {
        int64_t piece = MIN(max, bytes - done);
        IoVector slice;

        iov_init(&slice);
        iov_add_slice(&slice, vec, done, piece);
        ret = fn(node, offset + done, piece, &slice, flags);
        iov_done(&slice);
    }
    return ret;
}

static int coroutine_fn transfer_buf(BlockNode *node, TransferFn *fn, int64_t offset, int64_t bytes,
                                     void *buf, unsigned flags)
{
    IoVector vec;

    iov_init_buf(&vec, buf, bytes);
    return transfer(node, fn, offset, bytes, &vec, flags);
}

static bool needs_bounce(const BlockNode *node, int64_t offset, int64_t bytes, const IoVector *vec)
{
    int64_t alignment = node->limits.request_alignment;

    return alignment > 1 && (!is_aligned(offset | bytes, alignment) ||
                             !iov_is_aligned(vec, node->limits.memory_alignment));
}

/*
 * A walk over [offset, offset + bytes) in whole blocks, as many at a time as fit into the bounce
 * buffer. `begin` and `end` are whole blocks; `from` and `to` are the part of them that was asked
 * for.
 */
typedef struct BounceWalk {
    int64_t begin, end;
    int64_t from, to;
} BounceWalk;

static BounceWalk bounce_piece(const BlockNode *node, int64_t pos, int64_t end)
{
    int64_t alignment = node->limits.request_alignment;
    BounceWalk walk = { .begin = align_down(pos, alignment), .from = pos };

    walk.end = MIN(align_up(end, alignment), walk.begin + MAX(BOUNCE_MAX, alignment));
    walk.to = MIN(end, walk.end);
    return walk;
}

static void *bounce_buffer(BlockNode *node, int64_t offset, int64_t bytes)
{
    BounceWalk first = bounce_piece(node, offset, offset + bytes);

    return node_try_buffer(node, first.end - first.begin + node->limits.request_alignment);
}

static int coroutine_fn bounce_read(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                                    unsigned flags)
{
    int64_t end = offset + bytes;
    char *buf = bounce_buffer(node, offset, bytes);
    BounceWalk walk;
    int ret = buf ? 0 : -ENOMEM;

    for (int64_t pos = offset; pos < end && ret == 0; pos = walk.to) {
        walk = bounce_piece(node, pos, end);
        ret = transfer_buf(node, node->driver->co_preadv, walk.begin, walk.end - walk.begin, buf,
                           flags);
        if (ret == 0) {
            iov_from_buf(vec, pos - offset, buf + (pos - walk.begin), walk.to - pos);
        }
    }
    buffer_free(buf);
    return ret;
}

int coroutine_fn io_read_any(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                             unsigned flags)
{
    int64_t inside = CLAMP(node_size(node) - offset, 0, bytes);
    IoVector slice;
    int ret;

    if (inside < bytes) {
        iov_memset(vec, inside, 0, bytes - inside);
    }
    if (inside == 0) {
        return 0;
    }
    iov_init(&slice);
    iov_add_slice(&slice, vec, 0, inside);
    if (needs_bounce(node, offset, inside, &slice)) {
        ret = bounce_read(node, offset, inside, &slice, flags);
    } else {
        ret = transfer(node, node->driver->co_preadv, offset, inside, &slice, flags);
    }
    iov_done(&slice);
    return ret;
}

/* Fill what the piece has of blocks that are not written wholly with what they hold. */
static int coroutine_fn read_edges(BlockNode *node, const BounceWalk *walk, char *buf)
{
    int64_t alignment = node->limits.request_alignment;
    int64_t last = walk->end - alignment;
    bool head = walk->from != walk->begin;
    bool tail = walk->to != walk->end;
    int ret = 0;

    if (head) {
        node_debug_event(node, BLKDEBUG_EVENT_PWRITEV_RMW_HEAD);
    }
    if (tail && last == walk->begin) {
        node_debug_event(node, BLKDEBUG_EVENT_PWRITEV_RMW_TAIL);
    }
    if (head || (tail && last == walk->begin)) {
        ret = transfer_buf(node, node->driver->co_preadv, walk->begin, alignment, buf, 0);
    }
    if (ret == 0 && head) {
        node_debug_event(node, BLKDEBUG_EVENT_PWRITEV_RMW_AFTER_HEAD);
    }
    if (ret == 0 && tail && last != walk->begin) {
        node_debug_event(node, BLKDEBUG_EVENT_PWRITEV_RMW_TAIL);
        ret = transfer_buf(node, node->driver->co_preadv, last, alignment,
                           buf + (last - walk->begin), 0);
    }
    if (ret == 0 && tail) {
        node_debug_event(node, BLKDEBUG_EVENT_PWRITEV_RMW_AFTER_TAIL);
    }
    return ret;
}

static int coroutine_fn write_blocks(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                                     unsigned flags)
{
    int ret;

    node_debug_event(node, BLKDEBUG_EVENT_PWRITEV);
    ret = transfer(node, node->driver->co_pwritev, offset, bytes, vec, flags);
    node_debug_event(node, BLKDEBUG_EVENT_PWRITEV_DONE);
    return ret;
}

static int coroutine_fn bounce_write(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                                     unsigned flags)
{
    int64_t end = offset + bytes;
    char *buf = bounce_buffer(node, offset, bytes);
    BounceWalk walk;
    int ret = buf ? 0 : -ENOMEM;

    for (int64_t pos = offset; pos < end && ret == 0; pos = walk.to) {
        walk = bounce_piece(node, pos, end);
        ret = read_edges(node, &walk, buf);
        if (ret == 0) {
            IoVector blocks;

            iov_to_buf(vec, pos - offset, buf + (pos - walk.begin), walk.to - pos);
            iov_init_buf(&blocks, buf, walk.end - walk.begin);
            ret = write_blocks(node, walk.begin, walk.end - walk.begin, &blocks, flags);
        }
    }
    buffer_free(buf);
    return ret;
}

int coroutine_fn io_write_any(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                              unsigned flags)
{
    int64_t alignment = node->limits.request_alignment;
    bool bounce = needs_bounce(node, offset, bytes, vec);
    TrackedWrite write;
    RangeHold hold;
    int ret;

    if (alignment == 1) {
        return write_blocks(node, offset, bytes, vec, flags);
    }
    if (!is_aligned(offset | bytes, alignment)) {
        int64_t begin = align_down(offset, alignment);

        tracked_modify_begin(node->tracker, &hold, begin,
                             align_up(offset + bytes, alignment) - begin);
        ret = bounce_write(node, offset, bytes, vec, flags);
        tracked_modify_end(node->tracker, &hold);
        return ret;
    }
    tracked_write_begin(node->tracker, &write, offset, bytes);
    if (bounce) {
        ret = bounce_write(node, offset, bytes, vec, flags);
    } else {
        ret = write_blocks(node, offset, bytes, vec, flags);
    }
    tracked_write_end(node->tracker, &write);
    return ret;
}

int coroutine_fn io_write_zeroes_as_data(BlockNode *node, int64_t offset, int64_t bytes,
                                         unsigned flags)
{
    int ret = 0;

    for (int64_t done = 0; done < bytes && ret == 0;) {
        int64_t piece = MIN(bytes - done, MiB);
        IoVector vec;

        iov_init(&vec);
        for (int64_t n = 0; n < piece; n += ZERO_BUFFER_SIZE) {
            iov_add(&vec, zero_buffer, MIN(piece - n, ZERO_BUFFER_SIZE));
        }
        ret = io_write_any(node, offset + done, piece, &vec, flags);
        iov_done(&vec);
        done += piece;
    }
    return ret;
}
