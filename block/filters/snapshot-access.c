/* SPDX-License-Identifier: MIT */
/*
 * The driver `snapshot-access`: the frozen view that its file, a copy-before-write node, keeps.
 *
 * It asks for no permission on that node: whatever others do there, the view stays as it is.
 * Writing is not supported; a discard says that the range will not be read again. The node has
 * the view's size, however large the disk has become since.
 */
#include "block/driver.h"
#include "block/drivers.h"

#include <errno.h>

/* What keeps no view has a size all the same, as in QEMU. */
static int64_t view_size(const BlockNode *file)
{
    return file->driver->snapshot_size ? file->driver->snapshot_size(file) : node_size(file);
}

static bool snapshot_open(BlockNode *node, const BlockdevOptions *options, GError **error)
{
    BlockChild *file =
        node_open_child(node, options->u.snapshot_access.file, "file", CHILD_OTHER, error);

    if (!file) {
        return false;
    }
    node_set_size(node, view_size(file->node));
    return true;
}

static void snapshot_child_perm(BlockNode *node, BlockChild *child, unsigned perm, unsigned shared,
                                unsigned *ret_perm, unsigned *ret_shared)
{
    *ret_perm = 0;
    *ret_shared = PERM_ALL;
}

static void snapshot_refresh_limits(BlockNode *node)
{
    node->limits = (BlockLimits){
        .request_alignment = 1,
        .memory_alignment = node->file->node->limits.memory_alignment,
    };
}

static int coroutine_fn snapshot_co_preadv(BlockNode *node, int64_t offset, int64_t bytes,
                                           IoVector *vec, unsigned flags)
{
    BlockNode *file = node->file->node;

    if (!file->driver->co_preadv_snapshot) {
        return -ENOTSUP;
    }
    return file->driver->co_preadv_snapshot(file, offset, bytes, vec);
}

static int coroutine_fn snapshot_co_block_status(BlockNode *node, int64_t offset, int64_t bytes,
                                                 BlockStatus *ret_status)
{
    BlockNode *file = node->file->node;

    if (!file->driver->co_snapshot_block_status) {
        return -ENOTSUP;
    }
    return file->driver->co_snapshot_block_status(file, offset, bytes, ret_status);
}

static int coroutine_fn snapshot_co_pdiscard(BlockNode *node, int64_t offset, int64_t bytes)
{
    BlockNode *file = node->file->node;

    if (!file->driver->co_pdiscard_snapshot) {
        return -ENOTSUP;
    }
    return file->driver->co_pdiscard_snapshot(file, offset, bytes);
}

/* Nothing is written here. */
static int coroutine_fn snapshot_co_flush(BlockNode *node)
{
    return 0;
}

static const BlockDriver snapshot_access_driver = {
    .name = "snapshot-access",
    .pins_children = true,
    .open = snapshot_open,
    .child_perm = snapshot_child_perm,
    .refresh_limits = snapshot_refresh_limits,
    .co_preadv = snapshot_co_preadv,
    .co_pdiscard = snapshot_co_pdiscard,
    .co_flush = snapshot_co_flush,
    .co_block_status = snapshot_co_block_status,
};

void snapshot_access_driver_register(void)
{
    driver_register(&snapshot_access_driver);
}
