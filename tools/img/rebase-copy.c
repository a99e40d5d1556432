/* SPDX-License-Identifier: MIT */
/*
 * Only what the image does not hold itself is looked at. It is read through the image, which shows
 * the old backing file there, and compared with the new one; units that differ, whole clusters
 * where the image has some, are written to the image.
 */
#include "rebase-copy.h"

#include "tool.h"
#include "util/size.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK    (2 * MiB)
#define STEP_MAX GiB
#define UNIT_MIN 512
#define UNIT_MAX (64 * KiB)

typedef struct Copy {
    BlockBackend *image, *target;
    BlockNode *base; /* of the image's chain, which is the new backing file as well; or NULL */
    int64_t size, target_size;
    int64_t unit; /* what is compared and copied as one */
    uint8_t *old, *new;
    bool progress;
    const char *failed; /* what was being done */
    int ret;
} Copy;

/* What is read from one of the two. */
typedef struct Piece {
    int64_t bytes;
    bool zero;
} Piece;

/* --- looking --- */

/* Whether the layers above `base` hold nothing of the range, whose length may become less. */
static int coroutine_fn shows_base(Copy *copy, BlockNode *base, int64_t offset, int64_t *bytes,
                                   bool *ret_yes)
{
    BlockNode *node = node_skip_filters(backend_node(copy->image));
    BlockStatus status = { 0 };
    int ret;

    backend_co_enter(copy->image);
    ret = base ? node_co_block_status_above(node, base, offset, *bytes, &status)
               : node_co_block_status(node, offset, *bytes, &status);
    backend_leave(copy->image);
    *bytes = ret < 0 ? *bytes : MIN(*bytes, status.bytes);
    *ret_yes = !(status.flags & BLOCK_STATUS_ALLOCATED);
    return ret;
}

static int coroutine_fn look(BlockBackend *backend, int64_t offset, int64_t bytes, Piece *ret)
{
    BlockStatus status;
    int ret_status = backend_co_block_status_above(backend, offset, bytes, &status);

    if (ret_status < 0) {
        return ret_status;
    }
    ret->bytes = MIN(bytes, status.bytes);
    ret->zero = (status.flags & BLOCK_STATUS_ZERO) || !(status.flags & BLOCK_STATUS_ALLOCATED);
    return 0;
}

/* The same of the new backing file, behind whose end there are zeroes. */
static int coroutine_fn look_at_target(Copy *copy, int64_t offset, int64_t bytes, Piece *ret)
{
    if (offset >= copy->target_size) {
        *ret = (Piece){ bytes, true };
        return 0;
    }
    return look(copy->target, offset, MIN(bytes, copy->target_size - offset), ret);
}

static int coroutine_fn read_piece(BlockBackend *backend, int64_t offset, int64_t bytes, bool zero,
                                   uint8_t *buf)
{
    IoVector vec;
    int ret;

    if (zero) {
        memset(buf, 0, bytes);
        return 0;
    }
    iov_init_buf(&vec, buf, bytes);
    ret = backend_co_preadv(backend, offset, bytes, &vec, 0);
    iov_done(&vec);
    return ret;
}

/* --- copying --- */

static bool is_zero(const uint8_t *buf, int64_t bytes)
{
    return buf[0] == 0 && memcmp(buf, buf + 1, bytes - 1) == 0;
}

static int coroutine_fn write_data(Copy *copy, int64_t offset, int64_t at, int64_t bytes)
{
    IoVector vec;
    int ret;

    iov_init_buf(&vec, copy->old + at, bytes);
    ret = backend_co_pwritev(copy->image, offset + at, bytes, &vec, REQ_WRITE_UNCHANGED);
    iov_done(&vec);
    return ret;
}

/* A format need not keep zeroes where it shows them anyhow, but over the new backing file it would
 * not: there they are written. */
static int coroutine_fn write_zeroes(Copy *copy, int64_t offset, int64_t at, int64_t bytes)
{
    int ret = backend_co_pwrite_zeroes(copy->image, offset + at, bytes, REQ_WRITE_UNCHANGED);

    for (int64_t end = at + bytes, n; at < end && ret == 0; at += n) {
        bool missing = false;

        n = end - at;
        ret = shows_base(copy, NULL, offset + at, &n, &missing);
        if (ret == 0 && missing) {
            ret = write_data(copy, offset, at, n);
        }
    }
    return ret;
}

/* The end of the unit that `at` lies in. */
static int64_t unit_end(const Copy *copy, int64_t offset, int64_t at, int64_t bytes)
{
    return MIN(align_down(offset + at, copy->unit) + copy->unit - offset, bytes);
}

static bool differs(const Copy *copy, int64_t at, int64_t end)
{
    return memcmp(copy->old + at, copy->new + at, end - at) != 0;
}

/* Runs of units that differ, and are zeroes or are not, are written in one. */
static int coroutine_fn write_differences(Copy *copy, int64_t offset, int64_t bytes)
{
    int ret = 0;

    for (int64_t at = 0; at < bytes && ret == 0;) {
        int64_t end = unit_end(copy, offset, at, bytes);
        bool zero;

        if (!differs(copy, at, end)) {
            at = end;
            continue;
        }
        zero = is_zero(copy->old + at, end - at);
        while (end < bytes) {
            int64_t next = unit_end(copy, offset, end, bytes);

            if (!differs(copy, end, next) || is_zero(copy->old + end, next - end) != zero) {
                break;
            }
            end = next;
        }
        copy->failed = "Error while writing to COW image";
        ret = (zero ? write_zeroes : write_data)(copy, offset, at, end - at);
        at = end;
    }
    return ret;
}

/* One step from `offset` on; `bytes` becomes how far it went. */
static int coroutine_fn copy_range(Copy *copy, int64_t offset, int64_t *bytes)
{
    Piece old, new;
    bool yes;
    int ret;

    copy->failed = "error while reading image metadata";
    ret = shows_base(copy, NULL, offset, bytes, &yes);
    if (ret < 0 || !yes) {
        return ret;
    }
    if (copy->base) {
        ret = shows_base(copy, copy->base, offset, bytes, &yes);
        if (ret < 0 || yes) {
            return ret;
        }
    }
    ret = look(copy->image, offset, *bytes, &old);
    ret = ret ? ret : look_at_target(copy, offset, old.bytes, &new);
    if (ret < 0 || (old.zero && new.zero)) {
        *bytes = ret < 0 ? *bytes : new.bytes;
        return ret;
    }
    *bytes = MIN(new.bytes, CHUNK - offset % CHUNK);
    copy->failed = "error while reading from old backing file";
    ret = read_piece(copy->image, offset, *bytes, old.zero, copy->old);
    if (ret == 0) {
        copy->failed = "error while reading from new backing file";
        ret = read_piece(copy->target, offset, *bytes, new.zero, copy->new);
    }
    return ret ? ret : write_differences(copy, offset, *bytes);
}

static void coroutine_fn copy_entry(void *opaque)
{
    Copy *copy = opaque;

    for (int64_t offset = 0; offset < copy->size && copy->ret == 0;) {
        int64_t bytes = MIN(copy->size - offset, STEP_MAX);

        copy->ret = copy_range(copy, offset, &bytes);
        offset += bytes;
        if (copy->progress && copy->ret == 0) {
            tool_progress((double)offset / (double)copy->size);
        }
    }
    if (copy->ret == 0) {
        copy->failed = "Error while writing to COW image";
        copy->ret = backend_co_flush(copy->image);
    }
}

/* --- the whole --- */

static const char *file_name(BlockNode *node)
{
    while (node->file) {
        node = node->file->node;
    }
    return node->filename;
}

/* The backing file of the image, of that one, ..., that is the same file as `target`. */
static BlockNode *find_in_chain(BlockNode *image, BlockNode *target)
{
    g_autofree char *wanted = realpath(file_name(target), NULL);
    BlockNode *node = node_skip_filters(image);

    while (wanted && node->backing) {
        g_autofree char *name = NULL;

        node = node_skip_filters(node->backing->node);
        name = realpath(file_name(node), NULL);
        if (name && strcmp(name, wanted) == 0 && node->driver == target->driver) {
            return node;
        }
    }
    return NULL;
}

int rebase_copy(BlockBackend *image, BlockBackend *target, bool progress)
{
    int64_t cluster = node_cluster_size(backend_node(image));
    Copy copy = {
        .image = image,
        .target = target,
        .base = target ? find_in_chain(backend_node(image), backend_node(target)) : NULL,
        .size = backend_size(image),
        .target_size = target ? backend_size(target) : 0,
        .unit = CLAMP(cluster, UNIT_MIN, UNIT_MAX),
        .old = node_try_buffer(backend_node(image), CHUNK),
        .new = node_try_buffer(backend_node(image), CHUNK),
        .progress = progress,
        .failed = "could not allocate buffers",
    };

    if (copy.old && copy.new) {
        coroutine_run(copy_entry, &copy);
    } else {
        copy.ret = -ENOMEM;
    }
    buffer_free(copy.old);
    buffer_free(copy.new);
    if (copy.ret < 0) {
        tool_error("%s: %s", copy.failed, g_strerror(-copy.ret));
    }
    return copy.ret;
}
