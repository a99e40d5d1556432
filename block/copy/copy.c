/* SPDX-License-Identifier: MIT */
/*
 * The copying engine: its state, and looking at what is pending.
 */
#include "copy-internal.h"
#include "util/error.h"
#include "util/size.h"

#include <inttypes.h>

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
static int64_t choose_unit(BlockChild *target, int64_t cluster, int64_t min_cluster)
{
    if (min_cluster || node_cluster_size(target->node)) {
        return cluster;
    }
    return CLAMP(target->node->limits.request_alignment, COPY_MIN_UNIT, cluster);
}

CopyState *copy_new(BlockChild *source, BlockChild *target, int64_t min_cluster, GError **error)
{
    BitmapAddOptions options = { .disabled = true };
    int64_t cluster = choose_cluster(target, min_cluster, error);
    CopyState *copy;

    if (!cluster) {
        return NULL;
    }
    copy = g_new0(CopyState, 1);
    copy->cluster = cluster;
    copy->unit = options.granularity = choose_unit(target, cluster, min_cluster);
    copy->pending = bitmap_add(source->node->bitmaps, &options, NULL, error);
    if (!copy->pending) {
        g_free(copy);
        return NULL;
    }
    copy->source = source;
    copy->target = target;
    copy->size = node_size(source->node);
    copy->ranges = range_lock_new();
    g_mutex_init(&copy->lock);
    co_queue_init(&copy->turns);
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

/* What is dirty in `bitmap`, in whole clusters. */
static bool add_clusters(CopyState *copy, DirtyBitmap *bitmap, GError **error)
{
    BitmapAddOptions options = { .granularity = copy->cluster, .disabled = true };
    DirtyBitmap *clusters = bitmap_add(copy->source->node->bitmaps, &options, NULL, error);
    bool ok = clusters != NULL;

    if (ok && bitmap_is_busy(bitmap)) {
        add_areas(clusters, bitmap, copy->size);
    } else {
        ok = ok && bitmap_merge(clusters, &bitmap, 1, NULL, error);
    }
    ok = ok && bitmap_merge(copy->pending, &clusters, 1, NULL, error);
    if (clusters) {
        bitmap_remove(clusters, NULL, NULL);
    }
    return ok;
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
    return bitmap_clear(copy->pending, NULL, error) && add_clusters(copy, bitmap, error);
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
