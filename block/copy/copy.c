/* SPDX-License-Identifier: MIT */
/*
 * The copying engine: its state, and looking at what is pending.
 */
#include "copy-internal.h"
#include "util/error.h"
#include "util/size.h"

#include <inttypes.h>

/* Larger disks are copied in clusters, to keep the bitmap of units small. */
#define SMALL_UNITS_MAX (16 * TiB)

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

/*
 * What is copied at once at least. Where nothing asks for more than a write touches, a small write
 * costs a small copy: neither the target has clusters, nor the user has said how much.
 */
static int64_t choose_unit(const CopyState *copy, BlockChild *target, int64_t min_cluster)
{
    int64_t cluster = copy->cluster;

    if (min_cluster || node_cluster_size(target->node) || copy->size > SMALL_UNITS_MAX) {
        return cluster;
    }
    return CLAMP(target->node->limits.request_alignment, COPY_MIN_UNIT, cluster);
}

CopyState *copy_new(BlockChild *source, BlockChild *target, int64_t min_cluster, GError **error)
{
    BitmapAddOptions shown = { .disabled = true }, pending = { .disabled = true };
    CopyState *copy;

    shown.granularity = choose_cluster(target, min_cluster, error);
    if (!shown.granularity) {
        return NULL;
    }
    copy = g_new0(CopyState, 1);
    copy->disk = node_skip_filters(source->node);
    copy->shown = bitmap_add(copy->disk->bitmaps, &shown, NULL, error);
    if (!copy->shown) {
        g_free(copy);
        return NULL;
    }
    node_ref(copy->disk);
    copy->source = source;
    copy->target = target;
    copy->size = node_size(source->node);
    copy->cluster = shown.granularity;
    copy->unit = pending.granularity = choose_unit(copy, target, min_cluster);
    copy->list = bitmap_list_new(source->node->node_name, copy->size);
    copy->pending = bitmap_add(copy->list, &pending, NULL, error);
    copy->ranges = range_lock_new();
    g_mutex_init(&copy->lock);
    co_queue_init(&copy->turns);
    if (!copy->pending) {
        copy_free(copy);
        return NULL;
    }
    bitmap_set_range(copy->shown, 0, copy->size);
    bitmap_set_range(copy->pending, 0, copy->size);
    return copy;
}

void copy_free(CopyState *copy)
{
    if (!copy) {
        return;
    }
    g_assert(!copy->tasks);
    copy_park(copy); /* what is staged is of no use any more */
    event_loop_free(copy->writer_loop);
    staging_free(copy->staging);
    bitmap_remove(copy->shown, NULL, NULL);
    node_unref(copy->disk);
    bitmap_list_free(copy->list);
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
    if (!bitmap_clear(copy->shown, NULL, error) || !bitmap_clear(copy->pending, NULL, error)) {
        return false;
    }
    if (bitmap_is_busy(bitmap)) {
        add_areas(copy->shown, bitmap, copy->size);
    } else if (!bitmap_merge(copy->shown, &bitmap, 1, NULL, error)) {
        return false;
    }
    return bitmap_merge(copy->pending, &copy->shown, 1, NULL, error);
}

int64_t copy_cluster_size(const CopyState *copy)
{
    return copy->cluster;
}

int64_t copy_unit(const CopyState *copy)
{
    return copy->unit;
}

RangeLock *copy_ranges(CopyState *copy)
{
    return copy->ranges;
}

DirtyBitmap *copy_pending_bitmap(CopyState *copy)
{
    return copy->shown;
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

int64_t copy_pending_bytes(CopyState *copy)
{
    int64_t bytes = bitmap_dirty_bytes(copy->pending);
    int64_t beyond = align_up(copy->size, copy->unit) - copy->size;

    return beyond && bitmap_get(copy->pending, copy->size - 1) ? bytes - beyond : bytes;
}

int64_t copy_bytes_done(const CopyState *copy)
{
    return atomic_load(&copy->bytes_done);
}

void copy_cancel(CopyState *copy)
{
    if (!atomic_exchange(&copy->cancelled, true) && copy->staging) {
        staging_close(copy->staging); /* for good */
    }
}
