/* SPDX-License-Identifier: MIT */
/*
 * Reports: what query-named-block-nodes and query-block say of a node.
 *
 * Filters are shown as a layer over what they filter, as QEMU does: the filtered node is their
 * `backing-image`, and they count in `backing_file_depth`.
 */
#include "block/backing.h"
#include "core-internal.h"

/* The layer below in the sense of reports; NULL when there is none. */
static BlockNode *layer_below(const BlockNode *node)
{
    if (node->backing) {
        return node->backing->node;
    }
    return node_is_filter(node) && !node->driver->pins_children && node->file ? node->file->node
                                                                              : NULL;
}

static int64_t layers_below(const BlockNode *node)
{
    int64_t depth = 0;

    for (node = layer_below(node); node; node = layer_below(node)) {
        depth++;
    }
    return depth;
}

static bool has_dirty_flag(const BlockNode *node)
{
    if (node->driver->is_protocol || node->driver->pins_children) {
        return node->driver->reports_dirty_flag;
    }
    return node->driver->reports_dirty_flag || (node->file && has_dirty_flag(node->file->node));
}

static void describe_backing(const BlockNode *node, ImageInfo *info)
{
    info->backing_filename = g_strdup(node->backing_name);
    info->full_backing_filename = node_full_backing_name(node, NULL);
    info->backing_filename_format = g_strdup(node->backing_format);
}

/* Like QEMU, none is not worth an empty list. */
static void describe_snapshots(BlockNode *node, ImageInfo *info)
{
    if (node->driver->snapshot_list) {
        info->snapshots = node->driver->snapshot_list(node);
        if (info->snapshots->len == 0) {
            snapshot_info_list_free(info->snapshots);
            info->snapshots = NULL;
        }
    }
}

static ImageInfo *image_info(BlockNode *node, bool flat, GError **error)
{
    g_autoptr(ImageInfo) info = g_new0(ImageInfo, 1);
    BlockNode *below = layer_below(node);
    int64_t allocated = node_allocated_size(node);
    GError *local = NULL;

    info->filename = g_strdup(node->filename);
    info->format = g_strdup(node->driver->name);
    info->virtual_size = node_size(node);
    info->has_actual_size = allocated >= 0;
    info->actual_size = allocated;
    info->cluster_size = node_cluster_size(node);
    info->has_cluster_size = info->cluster_size != 0;
    info->has_dirty_flag = has_dirty_flag(node);
    info->dirty_flag = node->driver->is_dirty && node->driver->is_dirty(node);
    describe_backing(node, info);
    describe_snapshots(node, info);
    if (node->driver->specific_info) {
        info->format_specific = node->driver->specific_info(node, &local);
    }
    if (!local && below && !flat) {
        info->backing_image = image_info(below, false, &local);
    }
    if (local) {
        g_propagate_error(error, local);
        return NULL;
    }
    return g_steal_pointer(&info);
}

static BlockDirtyInfo *bitmap_info(DirtyBitmap *bitmap)
{
    BlockDirtyInfo *info = g_new0(BlockDirtyInfo, 1);

    info->name = g_strdup(bitmap_name(bitmap));
    info->count = bitmap_dirty_bytes(bitmap);
    info->granularity = bitmap_granularity(bitmap);
    info->recording = bitmap_is_enabled(bitmap);
    info->busy = bitmap_is_busy(bitmap);
    info->persistent = bitmap_is_persistent(bitmap);
    info->has_inconsistent = info->inconsistent = bitmap_is_inconsistent(bitmap);
    return info;
}

static BlockDirtyInfoList *bitmap_infos(BlockNode *node)
{
    DirtyBitmap *bitmap = bitmap_list_next(node->bitmaps, NULL);
    BlockDirtyInfoList *list;

    if (!bitmap) {
        return NULL;
    }
    list = g_new0(BlockDirtyInfoList, 1);
    for (; bitmap; bitmap = bitmap_list_next(node->bitmaps, bitmap)) {
        block_dirty_info_list_append(list, bitmap_info(bitmap));
    }
    return list;
}

BlockDeviceInfo *node_info(BlockNode *node, bool flat, GError **error)
{
    ImageInfo *image = image_info(node, flat, error);
    BlockDeviceInfo *info;

    if (!image) {
        return NULL;
    }
    node_settle(node);
    info = g_new0(BlockDeviceInfo, 1);
    info->image = image;
    info->file = g_strdup(node->filename);
    info->node_name = g_strdup(node->node_name);
    info->ro = node->read_only;
    info->drv = g_strdup(node->driver->name);
    info->backing_file = node->backing ? g_strdup(node->backing->node->filename) : NULL;
    info->backing_file_depth = flat ? 0 : layers_below(node);
    info->detect_zeroes = node->detect_zeroes;
    info->cache = g_new0(BlockdevCacheInfo, 1);
    info->cache->writeback = true;
    info->cache->direct = node->cache_direct;
    info->cache->no_flush = node->cache_no_flush;
    info->dirty_bitmaps = bitmap_infos(node);
    node_tidy_idle(node); /* to look at bitmaps is to empty the epoch */
    return info;
}
