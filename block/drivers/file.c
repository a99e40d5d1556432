/* SPDX-License-Identifier: MIT */
/*
 * The drivers `file` (regular files) and `host_device` (block and character devices).
 *
 * Both are one protocol over a file descriptor. A file's size is rounded up to FILE_SECTOR. I/O
 * goes through the loop of the coroutine that asks for it, so any number of loops may use a node at
 * once and the `aio` option is only checked, not needed.
 */
#include "file.h"
#include "block/drivers.h"
#include "util/error.h"
#include "util/event-loop.h"
#include "util/size.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

/* --- opening --- */

static bool is_device_mode(mode_t mode)
{
    return S_ISBLK(mode) || S_ISCHR(mode);
}

/* Whether the driver is for files of this kind; fails in words. Directories pass: open() has words
 * of its own for them. */
static bool check_kind(const FileState *file, const char *path, mode_t mode, GError **error)
{
    if (file->device && !is_device_mode(mode)) {
        merino_error(error,
                     "'host_device' driver requires '%s' to be either a character or block device",
                     path);
        return false;
    }
    if (!file->device && !S_ISREG(mode)) {
        merino_error(error, "'file' driver requires '%s' to be a regular file", path);
        return false;
    }
    return true;
}

static bool check_writable_device(int fd, GError **error)
{
    int read_only = 0;

    if (ioctl(fd, BLKROGET, &read_only) == 0 && read_only) {
        merino_error_errno(error, EACCES, "The device is not writable");
        return false;
    }
    return true;
}

static bool check_fd(const FileState *file, const char *path, int fd, FileMode mode, GError **error)
{
    struct stat st;

    if (fstat(fd, &st) < 0) {
        merino_error_errno(error, errno, "Could not stat '%s'", path);
        return false;
    }
    return check_kind(file, path, st.st_mode, error) &&
           (!mode.writable || !S_ISBLK(st.st_mode) || check_writable_device(fd, error));
}

int file_open_fd(const BlockNode *node, const char *path, FileMode mode, GError **error)
{
    const FileState *file = node->state;
    int flags = O_CLOEXEC | (mode.writable ? O_RDWR : O_RDONLY) | (mode.direct ? O_DIRECT : 0);
    struct stat st;
    int fd;

    /* Before opening: to open a pipe may mean to wait for ever. */
    if (stat(path, &st) == 0 && !S_ISDIR(st.st_mode) &&
        !check_kind(file, path, st.st_mode, error)) {
        return -1;
    }
    fd = open(path, flags);
    if (fd < 0 && errno == EINVAL && mode.direct) {
        merino_error(error, "Could not open '%s': filesystem does not support O_DIRECT", path);
        return -1;
    }
    if (fd < 0) {
        merino_error_errno(error, errno, "Could not open '%s'", path);
        return -1;
    }
    if (!check_fd(file, path, fd, mode, error)) {
        close(fd);
        return -1;
    }
    return fd;
}

int64_t file_storage_size(const FileState *file)
{
    struct stat st;
    uint64_t bytes;

    if (fstat(file->fd, &st) < 0) {
        return -errno;
    }
    if (S_ISREG(st.st_mode)) {
        return st.st_size;
    }
    if (S_ISCHR(st.st_mode)) {
        return MAX(lseek(file->fd, 0, SEEK_END), 0);
    }
    return ioctl(file->fd, BLKGETSIZE64, &bytes) < 0 ? -errno : (int64_t)bytes;
}

/* --- what direct I/O wants --- */

/* Ask the file system. */
static bool direct_alignment_told(int fd, int64_t *ret_request, int64_t *ret_memory)
{
#ifdef STATX_DIOALIGN
    struct statx stx;

    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 &&
        (stx.stx_mask & STATX_DIOALIGN) && is_power_of_2(stx.stx_dio_offset_align) &&
        is_power_of_2(stx.stx_dio_mem_align)) {
        *ret_request = stx.stx_dio_offset_align;
        *ret_memory = stx.stx_dio_mem_align;
        return true;
    }
#endif
    return false;
}

/* Try: the shortest read that succeeds. */
static int64_t direct_alignment_tried(int fd)
{
    int64_t alignment = FILE_SECTOR;
    void *buf;

    if (posix_memalign(&buf, FILE_DIRECT_MAX, FILE_DIRECT_MAX) != 0) {
        return FILE_DIRECT_MAX;
    }
    while (alignment < FILE_DIRECT_MAX && pread(fd, buf, alignment, 0) < 0) {
        alignment *= 2;
    }
    free(buf);
    return alignment;
}

void file_probe(BlockNode *node)
{
    FileState *file = node->state;
    BlockLimits *limits = &node->limits;
    int sector;

    file->sector = FILE_SECTOR;
    file->no_holes = file->device;
    if (file->device && ioctl(file->fd, BLKSSZGET, &sector) == 0 && is_power_of_2(sector)) {
        file->sector = sector;
    }
    *limits = (BlockLimits){
        .request_alignment = 1,
        .memory_alignment = 1,
        .discard_alignment = file->device ? file->sector : 1,
        .read_flags = REQ_PREFETCH,
        .write_flags = REQ_FUA,
        .zero_flags = REQ_MAY_UNMAP | REQ_NO_FALLBACK,
    };
    if (file->direct &&
        !direct_alignment_told(file->fd, &limits->request_alignment, &limits->memory_alignment)) {
        limits->request_alignment = file->device ? file->sector : direct_alignment_tried(file->fd);
        limits->memory_alignment = MAX(limits->request_alignment, FILE_DIRECT_MAX);
    }
}

/* --- driver functions --- */

static int64_t file_current_size(BlockNode *node)
{
    int64_t size = file_storage_size(node->state);

    return size < 0 || size > INT64_MAX - GiB ? size : align_up(size, FILE_SECTOR);
}

static bool update_size(BlockNode *node, GError **error)
{
    FileState *file = node->state;
    int64_t size = file_current_size(node);

    if (size < 0) {
        merino_error_errno(error, -size, "Could not get the size of '%s'", file->path);
        return false;
    }
    if (size > INT64_MAX - GiB) {
        merino_error_errno(error, EFBIG, "Could not refresh total sector count");
        return false;
    }
    node_set_size(node, size);
    return true;
}

static bool check_options(const BlockNode *node, const BlockdevOptionsFile *options, GError **error)
{
    if (options->filename[0] == '\0') {
        merino_error(error, "The '%s' block driver requires a file name", node->driver->name);
        return false;
    }
    if (options->has_aio && options->aio == BLOCKDEV_AIO_OPTIONS_NATIVE && !node->cache_direct) {
        merino_error(error, "aio=native was specified, but it requires cache.direct=on, which was "
                            "not specified.");
        return false;
    }
    return true;
}

static void file_close(BlockNode *node)
{
    FileState *file = node->state;

    close(file->fd);
    g_mutex_clear(&file->data.lock);
    g_free(file->path);
}

static bool open_path(BlockNode *node, const BlockdevOptionsFile *options, bool device,
                      GError **error)
{
    FileState *file = node->state;
    FileMode mode = file_mode(node->read_only, node->auto_read_only, node->cache_direct, 0);

    file->device = device;
    if (!check_options(node, options, error)) {
        return false;
    }
    file->fd = file_open_fd(node, options->filename, mode, error);
    if (file->fd < 0) {
        return false;
    }
    g_mutex_init(&file->data.lock);
    file->path = g_strdup(options->filename);
    file->writable = mode.writable;
    file->direct = mode.direct;
    file->use_locks = !(options->has_locking && options->locking == ON_OFF_AUTO_OFF) &&
                      file_locks_supported(file->fd);
    g_free(node->filename);
    node->filename = g_strdup(file->path);
    file_probe(node);
    if (!update_size(node, error)) {
        file_close(node);
        return false;
    }
    return true;
}

static bool file_open(BlockNode *node, const BlockdevOptions *options, GError **error)
{
    return open_path(node, &options->u.file, false, error);
}

static bool device_open(BlockNode *node, const BlockdevOptions *options, GError **error)
{
    return open_path(node, &options->u.host_device, true, error);
}

typedef struct Truncate {
    FileState *file;
    int64_t size;
    PreallocMode prealloc;
    GError **error;
} Truncate;

static int truncate_file(void *opaque)
{
    const Truncate *truncate = opaque;
    int64_t now = file_storage_size(truncate->file);

    if (now < 0) {
        merino_error_errno(truncate->error, -now, "Could not get the size of '%s'",
                           truncate->file->path);
        return now;
    }
    return file_resize(truncate->file->fd, now, truncate->size, truncate->prealloc,
                       truncate->error);
}

static int coroutine_fn file_co_truncate(BlockNode *node, int64_t size, PreallocMode prealloc,
                                         GError **error)
{
    FileState *file = node->state;
    Truncate truncate = { file, size, prealloc, error };
    int ret = co_run_in_worker(truncate_file, &truncate);

    file_forget_data(file);
    if (ret < 0) {
        return ret;
    }
    return update_size(node, error) ? 0 : -EIO;
}

/* A device has the size it has; a smaller disk may be put on it. */
static int coroutine_fn device_co_truncate(BlockNode *node, int64_t size, PreallocMode prealloc,
                                           GError **error)
{
    int64_t now = file_storage_size(node->state);

    if (now < 0) {
        merino_error_errno(error, -now, "Failed to get the size of the device");
        return now;
    }
    if (prealloc != PREALLOC_MODE_OFF) {
        merino_error(error, "Preallocation mode '%s' unsupported for this non-regular file",
                     PreallocMode_str(prealloc));
        return -ENOTSUP;
    }
    if (size > now) {
        merino_error(error, "Cannot grow device files");
        return -EINVAL;
    }
    return update_size(node, error) ? 0 : -EIO;
}

static bool file_can_grow(const BlockNode *node)
{
    return true;
}

static int64_t file_allocated_size(BlockNode *node)
{
    FileState *file = node->state;
    struct stat st;

    return fstat(file->fd, &st) < 0 ? -errno : (int64_t)st.st_blocks * 512;
}

static const char *const weak_options[] = { "aio", "locking", NULL };

static const BlockDriver file_driver = {
    .name = "file",
    .state_size = sizeof(FileState),
    .is_protocol = true,
    .weak_options = weak_options,
    .reports_dirty_flag = true,
    .open = file_open,
    .close = file_close,
    .reopen_prepare = file_reopen_prepare,
    .set_perm = file_set_perm,
    .co_preadv = file_co_preadv,
    .co_pwritev = file_co_pwritev,
    .co_pwrite_zeroes = file_co_pwrite_zeroes,
    .co_pdiscard = file_co_pdiscard,
    .co_flush = file_co_flush,
    .co_block_status = file_co_block_status,
    .co_truncate = file_co_truncate,
    .current_size = file_current_size,
    .can_grow = file_can_grow,
    .allocated_size = file_allocated_size,
    .co_create = file_co_create,
};

static const BlockDriver host_device_driver = {
    .name = "host_device",
    .state_size = sizeof(FileState),
    .is_protocol = true,
    .weak_options = weak_options,
    .reports_dirty_flag = true,
    .open = device_open,
    .close = file_close,
    .reopen_prepare = file_reopen_prepare,
    .set_perm = file_set_perm,
    .co_preadv = file_co_preadv,
    .co_pwritev = file_co_pwritev,
    .co_pwrite_zeroes = file_co_pwrite_zeroes,
    .co_pdiscard = file_co_pdiscard,
    .co_flush = file_co_flush,
    .co_block_status = file_co_block_status,
    .co_truncate = device_co_truncate,
    .current_size = file_current_size,
    .allocated_size = file_allocated_size,
};

void file_drivers_register(void)
{
    driver_register(&file_driver);
    driver_register(&host_device_driver);
}
