/* SPDX-License-Identifier: MIT */
/*
 * Making a file, and allocating what it is to hold.
 *
 * All of it blocks, for as long as storage takes to write the whole file, so it runs on a worker
 * thread.
 */
#include "file.h"
#include "util/error.h"
#include "util/event-loop.h"
#include "util/size.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define ZEROES_CHUNK        (64 * KiB)
#define EXTENT_SIZE_DEFAULT MiB
#define FIRST_BLOCK         4096

static int fail(GError **error, int err, const char *what)
{
    merino_error_errno(error, err, "%s", what);
    return -err;
}

/* --- size and preallocation --- */

static int allocate(int fd, int64_t offset, int64_t bytes, GError **error)
{
    int err = bytes > 0 ? posix_fallocate(fd, offset, bytes) : 0;

    return err ? fail(error, err, "Could not preallocate new data") : 0;
}

static int write_zeroes(int fd, int64_t offset, int64_t end, GError **error)
{
    g_autofree void *zeroes = g_malloc0(ZEROES_CHUNK);

    while (offset < end) {
        ssize_t n = pwrite(fd, zeroes, MIN(end - offset, ZEROES_CHUNK), offset);

        if (n < 0 && errno != EINTR) {
            return fail(error, errno, "Could not write zeros for preallocation");
        }
        offset += MAX(n, 0);
    }
    return fsync(fd) < 0 ? fail(error, errno, "Could not flush file to disk") : 0;
}

static int set_size(int fd, int64_t size, GError **error)
{
    return ftruncate(fd, size) < 0 ? fail(error, errno, "Could not resize file") : 0;
}

/* Whoever opens the file for direct I/O finds the alignment by reading, and holes tell nothing. A
 * file shorter than a sector becomes one. */
static int set_size_of_new(int fd, int64_t size, GError **error)
{
    static const char block[FIRST_BLOCK];
    int ret = set_size(fd, size, error);

    if (ret == 0 && size > 0 &&
        pwrite(fd, block, size < FIRST_BLOCK ? FILE_SECTOR : FIRST_BLOCK, 0) < 0) {
        return fail(error, errno, "Could not resize file");
    }
    return ret;
}

static int grow(int fd, int64_t old_size, int64_t size, PreallocMode mode, GError **error)
{
    int ret;

    switch (mode) {
    case PREALLOC_MODE_OFF:
        return old_size == 0 ? set_size_of_new(fd, size, error) : set_size(fd, size, error);
    case PREALLOC_MODE_FALLOC:
        return allocate(fd, old_size, size - old_size, error);
    case PREALLOC_MODE_FULL:
        ret = set_size(fd, size, error);
        return ret < 0 ? ret : write_zeroes(fd, old_size, size, error);
    default:
        merino_error(error, "Unsupported preallocation mode: %s", PreallocMode_str(mode));
        return -ENOTSUP;
    }
}

int file_resize(int fd, int64_t old_size, int64_t size, PreallocMode mode, GError **error)
{
    int flags = fcntl(fd, F_GETFL);
    bool direct = flags >= 0 && (flags & O_DIRECT);
    int ret;

    /* What is written here begins and ends anywhere. */
    if (direct) {
        fcntl(fd, F_SETFL, flags & ~O_DIRECT);
    }
    ret = grow(fd, old_size, size, mode, error);
    if (direct) {
        fcntl(fd, F_SETFL, flags);
    }
    if (ret < 0 && size > old_size) {
        /* What fails here as well leaves a file that is merely too long. */
        (void)!ftruncate(fd, old_size);
    }
    return ret;
}

/* --- creation --- */

typedef struct Create {
    const BlockdevCreateOptionsFile *options;
    GError **error;
} Create;

/* Both are wishes, which file systems may not know. */
static void set_no_cow(int fd)
{
    int flags;

    if (ioctl(fd, FS_IOC_GETFLAGS, &flags) == 0) {
        flags |= FS_NOCOW_FL;
        ioctl(fd, FS_IOC_SETFLAGS, &flags);
    }
}

static void set_extent_size(int fd, uint32_t bytes)
{
    struct fsxattr attributes;

    if (ioctl(fd, FS_IOC_FSGETXATTR, &attributes) == 0) {
        attributes.fsx_xflags |= FS_XFLAG_EXTSIZE;
        attributes.fsx_extsize = bytes;
        ioctl(fd, FS_IOC_FSSETXATTR, &attributes);
    }
}

/* Locked all the while, so that nobody else writes to it. */
static int fill_file(FileState *file, const BlockdevCreateOptionsFile *options,
                     uint32_t extent_size, GError **error)
{
    if (!file_lock_prepare(file, PERM_WRITE | PERM_RESIZE, PERM_RESIZE, error)) {
        return -EAGAIN;
    }
    if (ftruncate(file->fd, 0) < 0) {
        return fail(error, errno, "Could not resize file");
    }
    if (options->has_nocow && options->nocow) {
        set_no_cow(file->fd);
    }
    set_extent_size(file->fd, extent_size);
    return file_resize(file->fd, 0, (int64_t)options->size,
                       options->has_preallocation ? options->preallocation : PREALLOC_MODE_OFF,
                       error);
}

static int create_file(void *opaque)
{
    const Create *create = opaque;
    const BlockdevCreateOptionsFile *options = create->options;
    uint64_t extent_size =
        options->has_extent_size_hint ? options->extent_size_hint : EXTENT_SIZE_DEFAULT;
    FileState file = { .path = options->filename };
    int ret;

    if (extent_size > UINT32_MAX) {
        merino_error(create->error, "Extent size hint is too large");
        return -EINVAL;
    }
    file.fd = open(file.path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (file.fd < 0) {
        ret = -errno;
        merino_error_errno(create->error, -ret, "Could not create '%s'", file.path);
        return ret;
    }
    file.use_locks = file_locks_supported(file.fd);
    ret = fill_file(&file, options, (uint32_t)extent_size, create->error);
    if (close(file.fd) < 0 && ret == 0) {
        ret = fail(create->error, errno, "Could not close the new file");
    }
    return ret;
}

int coroutine_fn file_co_create(const BlockdevCreateOptions *options, GError **error)
{
    Create create = { &options->u.file, error };

    return co_run_in_worker(create_file, &create);
}
