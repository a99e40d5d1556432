/* SPDX-License-Identifier: MIT */
/*
 * Requests on files and devices, on the calling coroutine's loop.
 */
#include "file.h"
#include "util/event-loop.h"
#include "util/size.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* What is left of a transfer after `done` bytes. */
static ssize_t coroutine_fn transfer_rest(FileState *file, bool write, int64_t offset,
                                          IoVector *vec, size_t done, int rw_flags)
{
    IoVector rest;
    ssize_t ret;

    iov_init(&rest);
    iov_add_slice(&rest, vec, done, vec->size - done);
    if (write) {
        ret = co_io_pwritev(file->fd, rest.iov, rest.n, offset + done, rw_flags);
    } else {
        ret = co_io_preadv(file->fd, rest.iov, rest.n, offset + done);
    }
    iov_done(&rest);
    return ret;
}

typedef struct Advice {
    int fd;
    int64_t offset, bytes;
} Advice;

static int advise_willneed(void *opaque)
{
    const Advice *advice = opaque;

    posix_fadvise(advice->fd, advice->offset, advice->bytes, POSIX_FADV_WILLNEED);
    return 0;
}

static int coroutine_fn prefetch(FileState *file, int64_t offset, int64_t bytes)
{
    Advice advice = { file->fd, offset, bytes };

    return file->direct ? 0 : co_run_in_worker(advise_willneed, &advice);
}

int coroutine_fn file_co_preadv(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                                unsigned flags)
{
    FileState *file = node->state;
    ssize_t ret;

    if (flags & REQ_PREFETCH) {
        return prefetch(file, offset, bytes);
    }
    ret = co_io_preadv(file->fd, vec->iov, vec->n, offset);
    for (int64_t done = ret; done < bytes && ret >= 0; done += ret) {
        /* The end of the file: direct I/O stops within a block only there, and some file systems
         * refuse to go on from such a place. */
        if (ret == 0 || !is_aligned(done, node->limits.request_alignment)) {
            iov_memset(vec, done, 0, bytes - done);
            return 0;
        }
        ret = transfer_rest(file, false, offset, vec, done, 0);
    }
    return ret < 0 ? (int)ret : 0;
}

int coroutine_fn file_co_pwritev(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                                 unsigned flags)
{
    FileState *file = node->state;
    int rw_flags = flags & REQ_FUA ? RWF_DSYNC : 0;
    ssize_t ret = co_io_pwritev(file->fd, vec->iov, vec->n, offset, rw_flags);

    for (int64_t done = ret; done < bytes && ret >= 0; done += ret) {
        if (ret == 0) {
            return -EIO;
        }
        ret = transfer_rest(file, true, offset, vec, done, rw_flags);
    }
    return ret < 0 ? (int)ret : 0;
}

/* fallocate(), which is not asked again for what storage once said it cannot do. It never makes a
 * file shorter. */
static int coroutine_fn allocate(FileState *file, int mode, atomic_bool *refused, int64_t offset,
                                 int64_t bytes)
{
    int ret;

    if (atomic_load_explicit(refused, memory_order_relaxed)) {
        return -ENOTSUP;
    }
    ret = co_io_fallocate(file->fd, mode, offset, bytes);
    if (ret == -EOPNOTSUPP || ret == -ENOSYS || ret == -ENODEV || ret == -EINVAL) {
        atomic_store(refused, true);
        return -ENOTSUP;
    }
    return ret;
}

/* Make the file reach as far as a hole that was punched up to `end`, by its last block, since two
 * requests that set the size could make the file shorter than one of them wanted. */
static int coroutine_fn extend(BlockNode *node, int64_t end)
{
    const FileState *file = node->state;
    int64_t bytes = node->limits.request_alignment;
    struct iovec iov = { node_try_buffer(node, bytes), bytes };
    ssize_t ret;

    if (!iov.iov_base) {
        return -ENOMEM;
    }
    memset(iov.iov_base, 0, bytes);
    ret = co_io_pwritev(file->fd, &iov, 1, end - bytes, 0);
    buffer_free(iov.iov_base);
    if (ret >= 0 && ret < bytes) {
        return -EIO;
    }
    return ret < 0 ? (int)ret : 0;
}

int coroutine_fn file_co_pwrite_zeroes(BlockNode *node, int64_t offset, int64_t bytes,
                                       unsigned flags)
{
    FileState *file = node->state;
    bool beyond = offset + bytes > node_size(node);
    int ret = -ENOTSUP;

    if (file->device && !is_aligned(offset | bytes, file->sector)) {
        return -ENOTSUP;
    }
    if (flags & REQ_MAY_UNMAP) {
        ret = allocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, &file->no_punch_hole,
                       offset, bytes);
        if (ret == 0 && beyond) {
            ret = extend(node, offset + bytes);
        }
    }
    /* A device may well write zeroes one by one when it must not unmap. */
    if (ret == -ENOTSUP && !(file->device && (flags & REQ_NO_FALLBACK))) {
        int keep = beyond ? 0 : FALLOC_FL_KEEP_SIZE;

        ret = allocate(file, FALLOC_FL_ZERO_RANGE | keep, &file->no_zero_range, offset, bytes);
    }
    file_forget_data(file);
    return ret;
}

typedef struct DeviceRange {
    int fd;
    uint64_t range[2]; /* offset, bytes */
} DeviceRange;

static int discard_device(void *opaque)
{
    DeviceRange *discard = opaque;

    return ioctl(discard->fd, BLKDISCARD, discard->range) < 0 ? -errno : 0;
}

int coroutine_fn file_co_pdiscard(BlockNode *node, int64_t offset, int64_t bytes)
{
    FileState *file = node->state;
    int ret;

    if (file->device) {
        DeviceRange discard = { file->fd, { offset, bytes } };

        ret = co_run_in_worker(discard_device, &discard);
        return ret == -EOPNOTSUPP || ret == -ENOTTY ? -ENOTSUP : ret;
    }
    ret = allocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, &file->no_punch_hole, offset,
                   bytes);
    file_forget_data(file);
    return ret;
}

/* When writing back fails, the kernel may drop the page and report no more errors: from then on
 * nobody can say that what was acknowledged is durable. */
int coroutine_fn file_co_flush(BlockNode *node)
{
    FileState *file = node->state;
    int ret;

    if (atomic_load(&file->flush_failed)) {
        return -EIO;
    }
    ret = co_io_fdatasync(file->fd);
    if (ret < 0 && !file->direct) {
        atomic_store(&file->flush_failed, true);
    }
    return ret;
}
