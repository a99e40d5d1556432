/* SPDX-License-Identifier: MIT */
/*
 * Requests on the node beneath an edge: what is done around the driver's functions.
 *
 *  1. A node's bitmaps are marked after the driver has returned from the write, zero-write or
 *     discard, whether it failed or not, and before the caller learns of it. So a write that was
 *     acknowledged is dirty, and one that failed half-way is too.
 *  2. write_count grows after the driver has returned and before the caller learns of it;
 *     a flush reads it before it asks the driver. So flushed_count never covers a write that was
 *     acknowledged after the flush had begun, and a flush is left out only when every acknowledged
 *     write is covered.
 *  3. What is stored of the bitmaps is marked as out of date, durably, before the driver is asked
 *     to change anything; if that fails, the request fails.
 *
 * Requests that the driver can take as they are go straight to it; the rest is io-align.c's.
 */
#include "io-internal.h"
#include "tracked.h"
#include "util/error.h"
#include "util/size.h"

#include <errno.h>
#include <inttypes.h>

int coroutine_fn child_co_preadv(BlockChild *child, int64_t offset, int64_t bytes, IoVector *vec,
                                 unsigned flags)
{
    BlockNode *node = child->node;
    unsigned driver_flags = flags & node->limits.read_flags;

    if ((flags & REQ_PREFETCH) && !(driver_flags & REQ_PREFETCH)) {
        return 0;
    }
    if (io_is_plain(node, offset, bytes)) {
        return node->driver->co_preadv(node, offset, bytes, vec, driver_flags);
    }
    if (flags & REQ_PREFETCH) {
        return 0; /* not worth splitting */
    }
    if (!io_range_is_valid(offset, bytes)) {
        return -EIO;
    }
    return bytes ? io_read_any(node, offset, bytes, vec, driver_flags) : 0;
}

/* --- writes --- */

/* Whether the node takes a write of the range at all. */
static int check_write(const BlockChild *child, int64_t offset, int64_t bytes)
{
    const BlockNode *node = child->node;

    if (node->read_only) {
        return -EPERM;
    }
    if (!io_range_is_valid(offset, bytes) ||
        (offset + bytes > node_size(node) && !io_may_grow(child, offset + bytes))) {
        return -EIO;
    }
    return 0;
}

/* After the driver's part of a write. One that failed may have made the storage larger as well. */
static void check_growth(BlockNode *node, int64_t end, int ret)
{
    if (end <= node_size(node)) {
        return;
    }
    if (ret == 0) {
        io_grow(node, end);
    } else {
        io_follow(node);
    }
}

/* Before the driver's part of a write. */
static inline int coroutine_fn before_write(BlockNode *node, unsigned flags)
{
    return flags & REQ_WRITE_UNCHANGED ? 0 : bitmap_list_co_before_write(node->bitmaps);
}

static void count_write(BlockNode *node, int64_t offset, int64_t bytes, unsigned flags)
{
    if (!(flags & REQ_WRITE_UNCHANGED)) {
        bitmap_list_mark(node->bitmaps, offset, bytes);
    }
    atomic_fetch_add(&node->write_count, 1);
}

/* What follows every write: the books, then durability where the driver did not see to it. */
static inline int coroutine_fn finish_write(BlockChild *child, int64_t offset, int64_t bytes,
                                            unsigned flags, unsigned native_flags, int ret)
{
    count_write(child->node, offset, bytes, flags);
    if (ret == 0 && (flags & ~native_flags & REQ_FUA)) {
        ret = child_co_flush(child);
    }
    return ret;
}

/* With cache.no-flush nobody asks for durability. */
static unsigned effective_flags(const BlockNode *node, unsigned flags)
{
    return node->cache_no_flush ? flags & ~REQ_FUA : flags;
}

static __attribute__((noinline)) int coroutine_fn
write_any(BlockChild *child, int64_t offset, int64_t bytes, IoVector *vec, unsigned flags)
{
    BlockNode *node = child->node;
    unsigned native_flags = node->limits.write_flags;
    int ret = check_write(child, offset, bytes);

    if (ret < 0 || bytes == 0) {
        return ret;
    }
    if (!node->driver->co_pwritev) {
        return -ENOTSUP;
    }
    if (node->detect_zeroes != BLOCKDEV_DETECT_ZEROES_OPTIONS_OFF && iov_is_zero(vec, 0, bytes)) {
        if (node->detect_zeroes == BLOCKDEV_DETECT_ZEROES_OPTIONS_UNMAP) {
            flags |= REQ_MAY_UNMAP;
        }
        return child_co_pwrite_zeroes(child, offset, bytes, flags);
    }
    ret = before_write(node, flags);
    if (ret < 0) {
        return ret;
    }
    ret = io_write_any(node, offset, bytes, vec, flags & native_flags);
    check_growth(node, offset + bytes, ret);
    return finish_write(child, offset, bytes, flags, native_flags, ret);
}

int coroutine_fn child_co_pwritev(BlockChild *child, int64_t offset, int64_t bytes, IoVector *vec,
                                  unsigned flags)
{
    BlockNode *node = child->node;
    unsigned native_flags = node->limits.write_flags;
    int ret;

    flags = effective_flags(node, flags);
    if (!io_is_plain(node, offset, bytes) || node->read_only || !node->driver->co_pwritev ||
        node->detect_zeroes != BLOCKDEV_DETECT_ZEROES_OPTIONS_OFF) {
        return write_any(child, offset, bytes, vec, flags);
    }
    ret = before_write(node, flags);
    if (ret < 0) {
        return ret;
    }
    node_debug_event(node, BLKDEBUG_EVENT_PWRITEV);
    ret = node->driver->co_pwritev(node, offset, bytes, vec, flags & native_flags);
    node_debug_event(node, BLKDEBUG_EVENT_PWRITEV_DONE);
    return finish_write(child, offset, bytes, flags, native_flags, ret);
}

/* Whole blocks, by the driver's own means. */
static int coroutine_fn driver_zeroes(BlockNode *node, int64_t offset, int64_t bytes,
                                      unsigned flags)
{
    int64_t alignment = node->limits.request_alignment;
    int64_t max = align_down(node->limits.max_zeroes, alignment);
    int ret = -ENOTSUP;

    if (!node->driver->co_pwrite_zeroes) {
        return ret;
    }
    for (int64_t done = 0; done < bytes;) {
        int64_t piece = max ? MIN(max, bytes - done) : bytes;

        ret = node->driver->co_pwrite_zeroes(node, offset + done, piece, flags);
        if (ret < 0) {
            break;
        }
        done += piece;
    }
    return ret;
}

/* Whole blocks: the driver's means, or zeroes as data where it has none. */
static int coroutine_fn zero_blocks(BlockNode *node, int64_t offset, int64_t bytes, unsigned flags)
{
    unsigned driver_flags = flags & node->limits.zero_flags;
    TrackedWrite write;
    int ret;

    if ((flags & ~driver_flags) & REQ_NO_FALLBACK) {
        return -ENOTSUP;
    }
    if (node->limits.request_alignment > 1) {
        tracked_write_begin(node->tracker, &write, offset, bytes);
    }
    node_debug_event(node, BLKDEBUG_EVENT_PWRITEV_ZERO);
    ret = driver_zeroes(node, offset, bytes, driver_flags);
    node_debug_event(node, BLKDEBUG_EVENT_PWRITEV_DONE);
    if (node->limits.request_alignment > 1) {
        tracked_write_end(node->tracker, &write);
    }
    if (ret != -ENOTSUP || (flags & REQ_NO_FALLBACK)) {
        return ret;
    }
    if (!node->driver->co_pwritev) {
        return -ENOTSUP;
    }
    return io_write_zeroes_as_data(node, offset, bytes, flags & node->limits.write_flags);
}

/* Parts of blocks at either end are written as data, the blocks between them are zeroed. */
static int coroutine_fn zero_any(BlockNode *node, int64_t offset, int64_t bytes, unsigned flags)
{
    int64_t alignment = node->limits.request_alignment;
    int64_t end = offset + bytes;
    int64_t head = MIN(align_up(offset, alignment), end);
    int64_t tail = MAX(align_down(end, alignment), head);
    unsigned data_flags = flags & node->limits.write_flags;
    int ret = 0;

    if (tail > head) {
        ret = zero_blocks(node, head, tail - head, flags);
    }
    if (ret == 0 && head > offset) {
        ret = io_write_zeroes_as_data(node, offset, head - offset, data_flags);
    }
    if (ret == 0 && end > tail) {
        ret = io_write_zeroes_as_data(node, tail, end - tail, data_flags);
    }
    return ret;
}

int coroutine_fn child_co_pwrite_zeroes(BlockChild *child, int64_t offset, int64_t bytes,
                                        unsigned flags)
{
    BlockNode *node = child->node;
    int ret = check_write(child, offset, bytes);

    if (ret < 0 || bytes == 0) {
        return ret;
    }
    flags = effective_flags(node, flags);
    if (!node->discard_unmap) {
        flags &= ~REQ_MAY_UNMAP;
    }
    ret = before_write(node, flags);
    if (ret < 0) {
        return ret;
    }
    ret = zero_any(node, offset, bytes, flags);
    check_growth(node, offset + bytes, ret);
    return finish_write(child, offset, bytes, flags,
                        node->limits.zero_flags & node->limits.write_flags, ret);
}

/* --- discard, flush, size --- */

static int coroutine_fn driver_discard(BlockNode *node, int64_t offset, int64_t bytes)
{
    int64_t alignment = MAX(node->limits.discard_alignment, node->limits.request_alignment);
    int64_t max = align_down(node->limits.max_discard, alignment);
    int64_t begin = align_up(offset, alignment);
    int64_t end = align_down(offset + bytes, alignment);
    int ret = 0;

    while (begin < end && ret == 0) {
        int64_t piece = max ? MIN(max, end - begin) : end - begin;

        ret = node->driver->co_pdiscard(node, begin, piece);
        begin += piece;
    }
    return ret == -ENOTSUP ? 0 : ret;
}

int coroutine_fn child_co_pdiscard(BlockChild *child, int64_t offset, int64_t bytes)
{
    BlockNode *node = child->node;
    TrackedWrite write;
    int ret = check_write(child, offset, bytes);

    if (ret < 0 || !node->discard_unmap || !node->driver->co_pdiscard) {
        return ret;
    }
    bytes = MIN(bytes, node_size(node) - offset); /* there is nothing to discard beyond the end */
    if (bytes <= 0) {
        return 0;
    }
    ret = before_write(node, 0);
    if (ret < 0) {
        return ret;
    }
    if (node->limits.request_alignment > 1) {
        tracked_write_begin(node->tracker, &write, offset, bytes);
    }
    ret = driver_discard(node, offset, bytes);
    if (node->limits.request_alignment > 1) {
        tracked_write_end(node->tracker, &write);
    }
    count_write(node, offset, bytes, 0);
    return ret;
}

/* Remember that all writes up to number `written` are durable. */
static void set_flushed(BlockNode *node, uint64_t written)
{
    uint64_t flushed = atomic_load(&node->flushed_count);

    while (flushed < written &&
           !atomic_compare_exchange_weak(&node->flushed_count, &flushed, written)) {
    }
}

/* What the node beneath is told of a flush of this one. */
static void coroutine_fn flush_events(BlockNode *node, bool flushed)
{
    BlockNode *file = node->file->node;

    node_debug_event(file, BLKDEBUG_EVENT_FLUSH_TO_OS);
    if (!flushed && !node->cache_no_flush) {
        node_debug_event(file, BLKDEBUG_EVENT_FLUSH_TO_DISK);
    }
}

int coroutine_fn child_co_flush(BlockChild *child)
{
    BlockNode *node = child->node;
    uint64_t written = atomic_load(&node->write_count);
    bool flushed = atomic_load(&node->flushed_count) >= written;
    int ret;

    if (node->file) {
        flush_events(node, flushed);
    }
    if (!node->driver->co_flush) {
        ret = node->file ? child_co_flush(node->file) : 0;
    } else if (flushed || (node->cache_no_flush && node->driver->is_protocol)) {
        return 0;
    } else {
        ret = node->driver->co_flush(node);
    }
    if (ret == 0) {
        set_flushed(node, written);
    }
    return ret;
}

int coroutine_fn child_co_truncate(BlockChild *child, int64_t size, PreallocMode prealloc,
                                   GError **error)
{
    BlockNode *node = child->node;
    int ret;

    if (node->read_only) {
        merino_error(error, "Image is read-only");
        return -EACCES;
    }
    if (size < 0 || size > IO_MAX_END) {
        merino_error(error, "size(%" PRId64 ") exceeds maximum(%" PRId64 ")", size, IO_MAX_END);
        return -EINVAL;
    }
    ret = bitmap_list_co_before_resize(node->bitmaps);
    if (ret < 0) {
        merino_error_errno(error, -ret, "Cannot mark the stored bitmaps of '%s'", node->node_name);
        return ret;
    }
    if (node->driver->co_truncate) {
        ret = node->driver->co_truncate(node, size, prealloc, error);
    } else if (node->driver->is_filter && node->file) {
        ret = child_co_truncate(node->file, size, prealloc, error);
        if (ret == 0) {
            node_set_size(node, node_size(node->file->node));
        }
    } else {
        merino_error(error, "Image format driver does not support resize");
        return -ENOTSUP;
    }
    atomic_fetch_add(&node->write_count, 1);
    return ret;
}

/* --- plain buffers --- */

int coroutine_fn child_co_pread(BlockChild *child, int64_t offset, int64_t bytes, void *buf)
{
    IoVector vec;

    iov_init_buf(&vec, buf, bytes);
    return child_co_preadv(child, offset, bytes, &vec, 0);
}

int coroutine_fn child_co_pwrite(BlockChild *child, int64_t offset, int64_t bytes, const void *buf,
                                 unsigned flags)
{
    IoVector vec;

    iov_init_buf(&vec, (void *)buf, bytes);
    return child_co_pwritev(child, offset, bytes, &vec, flags);
}
