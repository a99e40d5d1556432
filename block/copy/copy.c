/* SPDX-License-Identifier: MIT */
/*
 * The copying engine: tasks over a bitmap of pending clusters.
 *
 * Invariants:
 *
 *  1. A pending cluster is copied by at most one task at a time: a task enters the list, under
 *     `lock`, only for clusters that no other task covers; whoever needs such a cluster waits for
 *     that task to leave and looks again.
 *  2. A task clears the bits of its clusters after their bytes are in the target, while it holds
 *     their range exclusively, and before it leaves the list. A task that fails clears nothing.
 *  3. So a cluster that is seen as not pending was never to be copied, is in the target, or was
 *     forgotten; and nobody who saw it as pending under a shared hold is still at work.
 *
 * While a task is at work its source bytes do not change: who would change them waits for it.
 */
#include "block/copy.h"
#include "util/error.h"
#include "util/size.h"

#include <errno.h>
#include <inttypes.h>

/* Buffers of one cluster that are kept for the next copies. */
#define SPARE_BUFFERS 16

typedef struct CopyTask {
    int64_t offset, end; /* whole clusters */
    CoQueue waiters;
    struct CopyTask *next, *previous;
} CopyTask;

struct CopyState {
    BlockChild *source, *target;
    int64_t cluster;
    int64_t size; /* of the source at the beginning */
    DirtyBitmap *pending;
    RangeLock *ranges;
    atomic_bool cancelled;
    _Atomic int64_t bytes_done;

    GMutex lock; /* guards the tasks and the spare buffers */
    CopyTask *tasks;
    void *spare[SPARE_BUFFERS];
    size_t n_spare;
};

/* --- making --- */

/* 0 with an error when there is no such cluster size. */
static int64_t choose_cluster(BlockChild *target, int64_t min_cluster, GError **error)
{
    int64_t cluster = MAX(node_cluster_size(target->node), COPY_DEFAULT_CLUSTER);

    if (min_cluster < 0 || (min_cluster && !is_power_of_2(min_cluster))) {
        merino_error(error, "min-cluster-size needs to be a power of 2");
        return 0;
    }
    cluster = MAX(cluster, min_cluster);
    if (cluster > COPY_MAX_CLUSTER) {
        merino_error(error, "min-cluster-size too large: %" PRId64 " > %" PRId64, cluster,
                     COPY_MAX_CLUSTER);
        return 0;
    }
    return cluster;
}

CopyState *copy_new(BlockChild *source, BlockChild *target, int64_t min_cluster, GError **error)
{
    BitmapAddOptions options = { .disabled = true };
    CopyState *copy;

    options.granularity = choose_cluster(target, min_cluster, error);
    if (!options.granularity) {
        return NULL;
    }
    copy = g_new0(CopyState, 1);
    copy->pending = bitmap_add(source->node->bitmaps, &options, NULL, error);
    if (!copy->pending) {
        g_free(copy);
        return NULL;
    }
    copy->source = source;
    copy->target = target;
    copy->cluster = options.granularity;
    copy->size = node_size(source->node);
    copy->ranges = range_lock_new();
    g_mutex_init(&copy->lock);
    bitmap_set_range(copy->pending, 0, copy->size);
    return copy;
}

void copy_free(CopyState *copy)
{
    if (!copy) {
        return;
    }
    g_assert(!copy->tasks);
    bitmap_remove(copy->pending, NULL, NULL);
    range_lock_free(copy->ranges);
    while (copy->n_spare) {
        buffer_free(copy->spare[--copy->n_spare]);
    }
    g_mutex_clear(&copy->lock);
    g_free(copy);
}

/* Bit by bit: also of a bitmap that others are reading. */
static void add_areas(DirtyBitmap *to, DirtyBitmap *from, int64_t size)
{
    int64_t offset = 0, bytes;

    while (bitmap_next_dirty_area(from, offset, size, size, &offset, &bytes)) {
        bitmap_set_range(to, offset, bytes);
        offset += bytes;
    }
}

bool copy_restrict(CopyState *copy, DirtyBitmap *bitmap, GError **error)
{
    if (!bitmap_check(bitmap, BITMAP_NEED_CONSISTENT, error)) {
        return false;
    }
    if (bitmap_size(bitmap) != copy->size) {
        merino_error(error,
                     "Cannot create block-copy-state: Failed to merge bitmap '%s' to internal "
                     "copy-bitmap: Bitmaps are of different sizes (destination size is %" PRId64
                     ", source size is %" PRId64 ") and can't be merged",
                     bitmap_name(bitmap), copy->size, bitmap_size(bitmap));
        return false;
    }
    if (!bitmap_clear(copy->pending, NULL, error)) {
        return false;
    }
    if (bitmap_is_busy(bitmap)) {
        add_areas(copy->pending, bitmap, copy->size);
        return true;
    }
    return bitmap_merge(copy->pending, &bitmap, 1, NULL, error);
}

int64_t copy_cluster_size(const CopyState *copy)
{
    return copy->cluster;
}

RangeLock *copy_ranges(CopyState *copy)
{
    return copy->ranges;
}

DirtyBitmap *copy_pending_bitmap(CopyState *copy)
{
    return copy->pending;
}

/* --- looking --- */

int64_t copy_next_pending(CopyState *copy, int64_t offset, int64_t end)
{
    return bitmap_next_dirty(copy->pending, offset, end);
}

int64_t copy_next_settled(CopyState *copy, int64_t offset, int64_t end)
{
    return bitmap_next_clean(copy->pending, offset, end);
}

bool copy_is_pending(CopyState *copy, int64_t offset, int64_t bytes)
{
    int64_t end = offset + bytes;

    return copy_next_pending(copy, offset, end) < end;
}

int64_t copy_bytes_done(const CopyState *copy)
{
    return atomic_load(&copy->bytes_done);
}

void copy_cancel(CopyState *copy)
{
    atomic_store(&copy->cancelled, true);
}

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

/* --- copying --- */

/* The first whole clusters of the range that are alike, zeroes or not. What is mixed is data. */
static int64_t coroutine_fn alike(CopyState *copy, int64_t offset, int64_t bytes, bool *ret_zero)
{
    BlockStatus status;
    int ret = node_co_block_status_above(copy->source->node, NULL, offset, bytes, &status);
    int64_t whole;

    *ret_zero = ret == 0 && (status.flags & BLOCK_STATUS_ZERO);
    if (ret < 0 || status.bytes >= bytes) {
        return bytes;
    }
    whole = align_down(status.bytes, copy->cluster);
    if (whole == 0) {
        *ret_zero = false;
        whole = MIN(bytes, copy->cluster);
    }
    return whole;
}

/* Copy the first bytes of the range; sets how many. */
static int coroutine_fn copy_piece(CopyState *copy, int64_t offset, int64_t bytes, void *buffer,
                                   int64_t *ret_bytes)
{
    bool zero;
    int ret;

    *ret_bytes = bytes = alike(copy, offset, bytes, &zero);
    if (zero) {
        return child_co_pwrite_zeroes(copy->target, offset, bytes, REQ_MAY_UNMAP);
    }
    ret = child_co_pread(copy->source, offset, bytes, buffer);
    if (ret == 0) {
        ret = child_co_pwrite(copy->target, offset, bytes, buffer, 0);
    }
    return ret;
}

static int coroutine_fn copy_bytes(CopyState *copy, int64_t offset, int64_t end)
{
    int64_t chunk = MIN(end - offset, COPY_MAX_CHUNK);
    void *buffer = take_buffer(copy, chunk);
    int ret = buffer ? 0 : -ENOMEM;

    while (ret == 0 && offset < end) {
        int64_t done;

        if (atomic_load(&copy->cancelled)) {
            ret = -ECANCELED;
            break;
        }
        ret = copy_piece(copy, offset, MIN(end - offset, chunk), buffer, &done);
        offset += done;
    }
    give_buffer(copy, buffer, chunk);
    return ret;
}

static void coroutine_fn settle(CopyState *copy, const CopyTask *task)
{
    int64_t bytes = task->end - task->offset;
    RangeHold hold;

    range_lock_exclusive(copy->ranges, &hold, task->offset, bytes);
    bitmap_reset_range(copy->pending, task->offset, bytes);
    range_unlock(copy->ranges, &hold);
    atomic_fetch_add(&copy->bytes_done, MIN(bytes, copy->size - task->offset));
}

/* --- tasks --- */

/* The task that comes first among those that overlap the range. Under the lock. */
static CopyTask *first_task(const CopyState *copy, int64_t offset, int64_t end)
{
    CopyTask *first = NULL;

    for (CopyTask *task = copy->tasks; task; task = task->next) {
        if (task->offset < end && offset < task->end && (!first || task->offset < first->offset)) {
            first = task;
        }
    }
    return first;
}

/* Under the lock. */
static void enter_task(CopyState *copy, CopyTask *task)
{
    co_queue_init(&task->waiters);
    task->previous = NULL;
    task->next = copy->tasks;
    if (copy->tasks) {
        copy->tasks->previous = task;
    }
    copy->tasks = task;
}

static void leave_task(CopyState *copy, CopyTask *task)
{
    g_mutex_lock(&copy->lock);
    if (task->previous) {
        task->previous->next = task->next;
    } else {
        copy->tasks = task->next;
    }
    if (task->next) {
        task->next->previous = task->previous;
    }
    co_queue_wake_all(&task->waiters);
    g_mutex_unlock(&copy->lock);
}

/* Make a task of the first pending clusters of the range, waiting for others at work there. False
 * when nothing is pending any more. */
static bool coroutine_fn begin_task(CopyState *copy, int64_t offset, int64_t end, CopyTask *task)
{
    bool found = false;

    g_mutex_lock(&copy->lock);
    while ((offset = copy_next_pending(copy, offset, end)) < end) {
        int64_t limit = MIN(end, offset + MAX(COPY_MAX_CHUNK, copy->cluster));
        CopyTask *other = first_task(copy, offset, limit);

        if (other && other->offset <= offset) {
            co_queue_wait(&other->waiters, &copy->lock);
            continue;
        }
        task->offset = offset;
        task->end = copy_next_settled(copy, offset, other ? other->offset : limit);
        enter_task(copy, task);
        found = true;
        break;
    }
    g_mutex_unlock(&copy->lock);
    return found;
}

/* The clusters that the range touches, as far as the source went at the beginning. */
static void touched_clusters(const CopyState *copy, int64_t *offset, int64_t *end)
{
    *end = align_up(MIN(*end, copy->size), copy->cluster);
    *offset = align_down(*offset, copy->cluster);
}

int coroutine_fn copy_range(CopyState *copy, int64_t offset, int64_t bytes)
{
    int64_t end = offset + bytes;
    CopyTask task;
    int ret = 0;

    touched_clusters(copy, &offset, &end);
    while (ret == 0 && begin_task(copy, offset, end, &task)) {
        ret = copy_bytes(copy, task.offset, MIN(task.end, copy->size));
        if (ret == 0) {
            settle(copy, &task);
        }
        leave_task(copy, &task);
    }
    return ret;
}

void coroutine_fn copy_forget(CopyState *copy, int64_t offset, int64_t bytes)
{
    int64_t end = offset + bytes >= copy->size ? align_up(copy->size, copy->cluster)
                                               : align_down(offset + bytes, copy->cluster);
    CopyTask *task;
    RangeHold hold;

    offset = align_up(offset, copy->cluster);
    if (offset >= end) {
        return;
    }
    g_mutex_lock(&copy->lock);
    while ((task = first_task(copy, offset, end))) {
        co_queue_wait(&task->waiters, &copy->lock);
    }
    g_mutex_unlock(&copy->lock);
    range_lock_exclusive(copy->ranges, &hold, offset, end - offset);
    bitmap_reset_range(copy->pending, offset, end - offset);
    range_unlock(copy->ranges, &hold);
}
