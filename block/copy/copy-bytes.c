/* SPDX-License-Identifier: MIT */
/*
 * Copying the bytes of a task: in pieces, each settled as soon as it is safe: in the target, or in
 * the staging buffer if there is one. While that is closed pieces go to the target at once, so that
 * a request never waits for room that nobody is going to make.
 */
#include "copy-internal.h"
#include "util/size.h"

#include <errno.h>

/* --- buffers --- */

static void *take_buffer(CopyState *copy, int64_t bytes)
{
    void *buffer = NULL;

    if (bytes <= copy->cluster) {
        g_mutex_lock(&copy->lock);
        if (copy->n_spare) {
            buffer = copy->spare[--copy->n_spare];
        }
        g_mutex_unlock(&copy->lock);
        bytes = MIN(copy->cluster, COPY_MAX_CHUNK);
    }
    if (!buffer) {
        BlockNode *source = copy->source->node;
        BlockNode *target = copy->target->node;
        bool by_target = target->limits.memory_alignment > source->limits.memory_alignment;

        buffer = node_try_buffer(by_target ? target : source, bytes);
    }
    return buffer;
}

static void give_buffer(CopyState *copy, void *buffer, int64_t bytes)
{
    if (buffer && bytes <= copy->cluster) {
        g_mutex_lock(&copy->lock);
        if (copy->n_spare < SPARE_BUFFERS) {
            copy->spare[copy->n_spare++] = buffer;
            buffer = NULL;
        }
        g_mutex_unlock(&copy->lock);
    }
    buffer_free(buffer);
}

/* --- pieces --- */

/* Whether there is a backing file somewhere beneath. */
static bool has_backing(const BlockNode *node)
{
    while (!node->backing && node->file) {
        node = node->file->node;
    }
    return node->backing;
}

/* Whether the range of the target reads as zeroes, for good. What a backing file has there counts
 * for nothing: it may be the very disk whose bytes are about to change. */
static bool coroutine_fn target_is_zero(CopyState *copy, int64_t offset, int64_t bytes)
{
    BlockStatus status;

    return !has_backing(copy->target->node) &&
           node_co_block_status(copy->target->node, offset, bytes, &status) == 0 &&
           (status.flags & BLOCK_STATUS_ZERO) && status.bytes == bytes;
}

/* The first whole units of the range that are alike, zeroes or not. What is mixed is data. */
static int64_t coroutine_fn alike(CopyState *copy, int64_t offset, int64_t bytes, bool *ret_zero)
{
    BlockStatus status;
    int ret = node_co_block_status_above(copy->source->node, NULL, offset, bytes, &status);
    int64_t whole;

    *ret_zero = ret == 0 && (status.flags & BLOCK_STATUS_ZERO);
    if (ret < 0 || status.bytes >= bytes) {
        return bytes;
    }
    whole = align_down(status.bytes, copy->unit);
    if (whole == 0) {
        *ret_zero = false;
        whole = MIN(bytes, copy->unit);
    }
    return whole;
}

int coroutine_fn copy_write_zeroes(CopyState *copy, int64_t offset, int64_t bytes)
{
    return target_is_zero(copy, offset, bytes)
               ? 0
               : child_co_pwrite_zeroes(copy->target, offset, bytes, REQ_MAY_UNMAP);
}

/* Copy the first bytes of the range, in the caller's buffer; sets how many. */
static int coroutine_fn copy_piece(CopyState *copy, int64_t offset, int64_t bytes, void *buffer,
                                   int64_t *ret_bytes)
{
    bool zero;
    int ret;

    *ret_bytes = bytes = alike(copy, offset, bytes, &zero);
    if (zero) {
        return copy_write_zeroes(copy, offset, bytes);
    }
    ret = child_co_pread(copy->source, offset, bytes, buffer);
    if (ret == 0) {
        ret = child_co_pwrite(copy->target, offset, bytes, buffer, 0);
    }
    return ret;
}

/* Read the first units of the range into the staging buffer. -EAGAIN when it is closed. */
static int coroutine_fn stage_piece(CopyState *copy, int64_t offset, int64_t bytes,
                                    int64_t *ret_bytes)
{
    int64_t unit = copy->unit;
    StagedRun run;
    IoVector vec;
    int ret = 0;

    if (!staging_reserve(copy->staging, offset / unit,
                         (unsigned)MIN(align_up(bytes, unit) / unit, STAGING_RUN_MAX), &run)) {
        return -EAGAIN;
    }
    *ret_bytes = bytes = alike(copy, offset, MIN(bytes, run.n * unit), &run.zero);
    staging_trim(copy->staging, &run, (unsigned)(align_up(bytes, unit) / unit));
    if (!run.zero) {
        iov_init(&vec);
        staging_add_memory(copy->staging, &run, &vec, 0, bytes);
        ret = child_co_preadv(copy->source, offset, bytes, &vec, 0);
        iov_done(&vec);
    }
    if (ret < 0) {
        staging_trim(copy->staging, &run, 0);
        return ret;
    }
    staging_publish(copy->staging, &run);
    copy_wake_writer(copy);
    return 0;
}

/* Make the first bytes of [offset, end) safe. `*buffer` is made when it is needed. */
static int coroutine_fn save_piece(CopyState *copy, int64_t offset, int64_t end, int64_t chunk,
                                   void **buffer, int64_t *ret_bytes)
{
    if (copy->staging && is_aligned(offset, copy->unit)) {
        int64_t most = MAX(COPY_MAX_CHUNK, copy->unit);
        int ret = stage_piece(copy, offset, MIN(end - offset, most), ret_bytes);

        if (ret != -EAGAIN) {
            return ret;
        }
        if (atomic_load(&copy->cancelled)) {
            return -ECANCELED;
        }
    }
    if (!*buffer) {
        *buffer = take_buffer(copy, chunk);
    }
    return *buffer ? copy_piece(copy, offset, MIN(end - offset, chunk), *buffer, ret_bytes)
                   : -ENOMEM;
}

int coroutine_fn copy_task_bytes(CopyState *copy, const CopyTask *task)
{
    int64_t offset = task->offset, settled = offset;
    int64_t end = MIN(task->end, copy->size);
    int64_t chunk = MIN(end - offset, COPY_MAX_CHUNK);
    void *buffer = NULL;
    int ret = 0;

    while (ret == 0 && offset < end) {
        int64_t done, whole;

        if (atomic_load(&copy->cancelled)) {
            ret = -ECANCELED;
            break;
        }
        ret = save_piece(copy, offset, end, chunk, &buffer, &done);
        if (ret == 0) {
            offset += done;
            whole = offset == end ? task->end : align_down(offset, copy->unit);
            if (whole > settled) {
                copy_settle(copy, settled, whole);
                settled = whole;
            }
        }
    }
    give_buffer(copy, buffer, chunk);
    return ret;
}
