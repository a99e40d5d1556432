/* SPDX-License-Identifier: MIT */
/*
 * What the bitmap commands do, as actions of transactions.
 *
 * A node needs to stand still only where a bitmap is enabled now or will be: the others see no
 * writes. A bitmap that an earlier action of the same transaction enables is covered by that one.
 * Taking a stored bitmap out of its image changes what requests share, so that wants it, too.
 */
#include "bitmap-lookup.h"
#include "transaction.h"
#include "util/error.h"

/* --- which nodes stand still --- */

static void add_node(const char *node_name, GPtrArray *nodes)
{
    BlockNode *node = node_find(node_name);

    if (node) {
        g_ptr_array_add(nodes, node);
    }
}

static void add_if_enabled(const char *node_name, const char *name, GPtrArray *nodes)
{
    BlockNode *node = node_find(node_name);
    DirtyBitmap *bitmap = node ? bitmap_find(node->bitmaps, name) : NULL;

    if (bitmap && bitmap_is_enabled(bitmap)) {
        g_ptr_array_add(nodes, node);
    }
}

/* --- add --- */

static void nodes_of_add(const TransactionAction *action, GPtrArray *nodes)
{
    const BlockDirtyBitmapAdd *arg = action->u.block_dirty_bitmap_add.data;

    if (!arg->disabled) {
        add_node(arg->node, nodes);
    }
}

/* The cluster size, where it is neither wastefully fine nor uselessly coarse. */
static int64_t default_granularity(BlockNode *node)
{
    int64_t cluster_size = node_cluster_size(node);

    return cluster_size ? CLAMP(cluster_size, 4096, BITMAP_DEFAULT_GRANULARITY)
                        : BITMAP_DEFAULT_GRANULARITY;
}

static bool prepare_add(const TransactionAction *action, UndoStack *undo, GError **error)
{
    const BlockDirtyBitmapAdd *arg = action->u.block_dirty_bitmap_add.data;
    BlockNode *node = node_find(arg->node);
    BitmapAddOptions options = {
        .name = arg->name,
        .persistent = arg->persistent,
        .disabled = arg->disabled,
    };

    if (!node) {
        merino_error(error, "Cannot find device='%s' nor node-name='%s'", arg->node, arg->node);
        return false;
    }
    /* One that is given is no default, not even 0. */
    options.default_granularity =
        arg->has_granularity ? arg->granularity : default_granularity(node);
    return bitmap_add(node->bitmaps, &options, undo, error) != NULL;
}

const TransactionActionOps bitmap_add_action = { .nodes = nodes_of_add, .prepare = prepare_add };

/* --- those that concern one bitmap --- */

static void nodes_of_remove(const TransactionAction *action, GPtrArray *nodes)
{
    const BlockDirtyBitmap *arg = action->u.block_dirty_bitmap_remove.data;
    BlockNode *node = node_find(arg->node);
    DirtyBitmap *bitmap = node ? bitmap_find(node->bitmaps, arg->name) : NULL;

    if (bitmap && (bitmap_is_enabled(bitmap) || bitmap_is_persistent(bitmap))) {
        g_ptr_array_add(nodes, node);
    }
}

static bool prepare_remove(const TransactionAction *action, UndoStack *undo, GError **error)
{
    DirtyBitmap *bitmap = bitmap_of_node(action->u.block_dirty_bitmap_remove.data, error);

    return bitmap && bitmap_remove(bitmap, undo, error);
}

const TransactionActionOps bitmap_remove_action = { .nodes = nodes_of_remove,
                                                    .prepare = prepare_remove };

static void nodes_of_clear(const TransactionAction *action, GPtrArray *nodes)
{
    const BlockDirtyBitmap *arg = action->u.block_dirty_bitmap_clear.data;

    add_if_enabled(arg->node, arg->name, nodes);
}

static bool prepare_clear(const TransactionAction *action, UndoStack *undo, GError **error)
{
    DirtyBitmap *bitmap = bitmap_of_node(action->u.block_dirty_bitmap_clear.data, error);

    return bitmap && bitmap_clear(bitmap, undo, error);
}

const TransactionActionOps bitmap_clear_action = { .nodes = nodes_of_clear,
                                                   .prepare = prepare_clear };

static void nodes_of_enable(const TransactionAction *action, GPtrArray *nodes)
{
    add_node(action->u.block_dirty_bitmap_enable.data->node, nodes);
}

static bool prepare_enable(const TransactionAction *action, UndoStack *undo, GError **error)
{
    DirtyBitmap *bitmap = bitmap_of_node(action->u.block_dirty_bitmap_enable.data, error);

    return bitmap && bitmap_enable(bitmap, undo, error);
}

const TransactionActionOps bitmap_enable_action = { .nodes = nodes_of_enable,
                                                    .prepare = prepare_enable };

static void nodes_of_disable(const TransactionAction *action, GPtrArray *nodes)
{
    const BlockDirtyBitmap *arg = action->u.block_dirty_bitmap_disable.data;

    add_if_enabled(arg->node, arg->name, nodes);
}

static bool prepare_disable(const TransactionAction *action, UndoStack *undo, GError **error)
{
    DirtyBitmap *bitmap = bitmap_of_node(action->u.block_dirty_bitmap_disable.data, error);

    return bitmap && bitmap_disable(bitmap, undo, error);
}

const TransactionActionOps bitmap_disable_action = { .nodes = nodes_of_disable,
                                                     .prepare = prepare_disable };

/* --- merge --- */

/* A source given by its name alone is the target's neighbour. */
static BlockDirtyBitmap source_of_merge(const BlockDirtyBitmapMerge *arg, size_t i)
{
    const BlockDirtyBitmapOrStr *source = arg->bitmaps->items[i];

    if (source->type == BLOCK_DIRTY_BITMAP_OR_STR_TYPE_EXTERNAL) {
        return *source->u.external;
    }
    return (BlockDirtyBitmap){ .node = arg->node, .name = source->u.local };
}

static void nodes_of_merge(const TransactionAction *action, GPtrArray *nodes)
{
    const BlockDirtyBitmapMerge *arg = action->u.block_dirty_bitmap_merge.data;

    add_if_enabled(arg->node, arg->target, nodes);
    for (size_t i = 0; i < arg->bitmaps->len; i++) {
        BlockDirtyBitmap source = source_of_merge(arg, i);

        add_if_enabled(source.node, source.name, nodes);
    }
}

static bool prepare_merge(const TransactionAction *action, UndoStack *undo, GError **error)
{
    const BlockDirtyBitmapMerge *arg = action->u.block_dirty_bitmap_merge.data;
    BlockDirtyBitmap target_name = { .node = arg->node, .name = arg->target };
    DirtyBitmap *target = bitmap_of_node(&target_name, error);
    g_autofree DirtyBitmap **sources = g_new(DirtyBitmap *, arg->bitmaps->len);

    if (!target) {
        return false;
    }
    for (size_t i = 0; i < arg->bitmaps->len; i++) {
        BlockDirtyBitmap source = source_of_merge(arg, i);

        sources[i] = bitmap_of_node(&source, error);
        if (!sources[i] || !bitmap_check_merge(target, sources[i], error)) {
            return false;
        }
    }
    return bitmap_merge(target, sources, arg->bitmaps->len, undo, error);
}

const TransactionActionOps bitmap_merge_action = { .nodes = nodes_of_merge,
                                                   .prepare = prepare_merge };
