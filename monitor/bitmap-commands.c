/* SPDX-License-Identifier: MIT */
/*
 * QMP commands on dirty bitmaps: each is the transaction action of its name, by itself.
 */
#include "bitmap-lookup.h"
#include "qapi/qapi-commands.h"
#include "transaction.h"
#include "util/error.h"

DirtyBitmap *bitmap_of_node(const BlockDirtyBitmap *which, GError **error)
{
    BlockNode *node = node_find(which->node);

    if (!node) {
        merino_error(error, "Node '%s' not found", which->node);
        return NULL;
    }
    node_settle(node);
    return bitmap_lookup(node->bitmaps, which->name, error);
}

bool qmp_block_dirty_bitmap_add(const BlockDirtyBitmapAdd *arg, GError **error)
{
    TransactionAction action = { .type = TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_ADD };

    action.u.block_dirty_bitmap_add.data = (BlockDirtyBitmapAdd *)arg;
    return transaction_run_one(&action, error);
}

bool qmp_block_dirty_bitmap_remove(const BlockDirtyBitmap *arg, GError **error)
{
    TransactionAction action = { .type = TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_REMOVE };

    action.u.block_dirty_bitmap_remove.data = (BlockDirtyBitmap *)arg;
    return transaction_run_one(&action, error);
}

bool qmp_block_dirty_bitmap_clear(const BlockDirtyBitmap *arg, GError **error)
{
    TransactionAction action = { .type = TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_CLEAR };

    action.u.block_dirty_bitmap_clear.data = (BlockDirtyBitmap *)arg;
    return transaction_run_one(&action, error);
}

bool qmp_block_dirty_bitmap_enable(const BlockDirtyBitmap *arg, GError **error)
{
    TransactionAction action = { .type = TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_ENABLE };

    action.u.block_dirty_bitmap_enable.data = (BlockDirtyBitmap *)arg;
    return transaction_run_one(&action, error);
}

bool qmp_block_dirty_bitmap_disable(const BlockDirtyBitmap *arg, GError **error)
{
    TransactionAction action = { .type = TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_DISABLE };

    action.u.block_dirty_bitmap_disable.data = (BlockDirtyBitmap *)arg;
    return transaction_run_one(&action, error);
}

bool qmp_block_dirty_bitmap_merge(const BlockDirtyBitmapMerge *arg, GError **error)
{
    TransactionAction action = { .type = TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_MERGE };

    action.u.block_dirty_bitmap_merge.data = (BlockDirtyBitmapMerge *)arg;
    return transaction_run_one(&action, error);
}

BlockDirtyBitmapSha256 *qmp_x_debug_block_dirty_bitmap_sha256(const BlockDirtyBitmap *arg,
                                                              GError **error)
{
    DirtyBitmap *bitmap = bitmap_of_node(arg, error);
    BlockDirtyBitmapSha256 *ret;

    if (!bitmap) {
        return NULL;
    }
    ret = g_new0(BlockDirtyBitmapSha256, 1);
    ret->sha256 = bitmap_sha256(bitmap);
    return ret;
}
