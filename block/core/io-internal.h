/* SPDX-License-Identifier: MIT */
/*
 * What io.c and io-align.c share: requests on a node below the bookkeeping of the edges.
 *
 * None of these marks bitmaps or counts writes; the callers in io.c do, once a request.
 */
#ifndef MERINO_CORE_IO_INTERNAL_H
#define MERINO_CORE_IO_INTERNAL_H

#include "block/driver.h"

/* No node is larger and no request ends beyond this, so that alignment cannot overflow. */
#define IO_MAX_END (INT64_MAX & ~((INT64_C(1) << 30) - 1))

static inline bool io_range_is_valid(int64_t offset, int64_t bytes)
{
    return offset >= 0 && bytes >= 0 && offset <= IO_MAX_END && bytes <= IO_MAX_END - offset;
}

/* Whether a transfer can go to the driver as it is. Nodes that want no alignment pay no more. */
static inline bool io_is_plain(const BlockNode *node, int64_t offset, int64_t bytes)
{
    uint64_t size = atomic_load_explicit(&node->size, memory_order_relaxed);
    uint64_t max = node->limits.max_transfer;

    return node->limits.request_alignment == 1 && (uint64_t)offset <= size &&
           (uint64_t)bytes <= size - offset && bytes > 0 && (max == 0 || (uint64_t)bytes <= max);
}

/* Whether a write through this edge may end at `end`, beyond the end of the node. */
bool io_may_grow(const BlockChild *child, int64_t end);
/* The driver has written up to `end`, beyond the end of the node. */
void io_grow(BlockNode *node, int64_t end);
/* A write beyond the end failed, and storage may be larger all the same: the node follows. */
void io_follow(BlockNode *node);

/* Any valid range, also beyond the end, which reads as zeroes. */
int coroutine_fn io_read_any(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                             unsigned flags);

/* Any range; `flags` are those that the driver does itself. */
int coroutine_fn io_write_any(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                              unsigned flags);

/* The same with zeroes for data. */
int coroutine_fn io_write_zeroes_as_data(BlockNode *node, int64_t offset, int64_t bytes,
                                         unsigned flags);

#endif
