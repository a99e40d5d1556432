/* SPDX-License-Identifier: MIT */
/*
 * Snapshots inside of images: the commands, and the action of transactions.
 *
 * An image knows its snapshots by id; names are matched here. The disk stands still while one is
 * taken or deleted.
 */
#include "block/driver.h"
#include "qapi/qapi-commands.h"
#include "transaction.h"
#include "util/coroutine.h"
#include "util/error.h"

#include <errno.h>
#include <string.h>

/* --- looking up --- */

static BlockNode *find_device(const char *device, GError **error)
{
    BlockNode *node = node_find(device);

    if (!node) {
        merino_error(error, "Cannot find device='%s' nor node-name='%s'", device, device);
        return NULL;
    }
    for (guint i = 0; i < node->parents->len; i++) {
        BlockChild *edge = g_ptr_array_index(node->parents, i);

        if (edge->parent) {
            merino_error(error, "Need a root block node");
            return NULL;
        }
    }
    return node;
}

/* The image below what only passes things on; NULL: there is none that has snapshots. */
static BlockNode *image_of(BlockNode *node)
{
    while (!node->driver->co_snapshot_create && node->file && node->file->role == CHILD_FILTERED) {
        node = node->file->node;
    }
    return node->driver->co_snapshot_create ? node : NULL;
}

/* NULL matches anything. */
static SnapshotInfo *find_snapshot(BlockNode *image, const char *id, const char *name)
{
    g_autoptr(SnapshotInfoList) list = image->driver->snapshot_list(image);

    for (size_t i = 0; i < list->len; i++) {
        const SnapshotInfo *info = list->items[i];

        if ((!id || strcmp(info->id, id) == 0) && (!name || strcmp(info->name, name) == 0)) {
            return snapshot_info_clone(info);
        }
    }
    return NULL;
}

/* --- doing --- */

typedef struct SnapshotCall {
    BlockNode *image;
    const SnapshotInfo *info;
    int ret;
    GError *error;
} SnapshotCall;

static void coroutine_fn create_entry(void *opaque)
{
    SnapshotCall *call = opaque;

    call->ret = call->image->driver->co_snapshot_create(call->image, call->info, &call->error);
}

static void coroutine_fn delete_entry(void *opaque)
{
    SnapshotCall *call = opaque;

    call->ret = call->image->driver->co_snapshot_delete(call->image, call->info->id, &call->error);
}

static bool run(BlockNode *image, const SnapshotInfo *info, CoroutineFn *entry, GError **error)
{
    DrainSection *section = drain_begin_node(image);
    SnapshotCall call = { image, info };

    coroutine_run(entry, &call);
    drain_end(section);
    if (call.error) {
        g_propagate_error(error, call.error);
    }
    return call.ret == 0;
}

/* --- the action --- */

/* What was taken, to be taken back. */
typedef struct Taken {
    BlockNode *image;
    SnapshotInfo *info;
} Taken;

static void abort_take(void *opaque)
{
    Taken *taken = opaque;
    g_autoptr(GError) error = NULL;

    if (!run(taken->image, taken->info, delete_entry, &error)) {
        g_warning("Failed to delete snapshot with id '%s' and name '%s' on device '%s' in abort: "
                  "%s",
                  taken->info->id, taken->info->name, taken->image->node_name, error->message);
    }
}

static void clean_take(void *opaque)
{
    Taken *taken = opaque;

    snapshot_info_free(taken->info);
    node_unref(taken->image);
    g_free(taken);
}

static void nodes_of_take(const TransactionAction *action, GPtrArray *nodes)
{
    BlockNode *node = node_find(action->u.blockdev_snapshot_internal_sync.data->device);
    BlockNode *image = node ? image_of(node) : NULL;

    if (image) {
        g_ptr_array_add(nodes, image);
    }
}

static bool check_take(BlockNode *node, BlockNode *image, const char *name, GError **error)
{
    const char *device = node->node_name;
    g_autoptr(SnapshotInfo) same = NULL;

    if (node->read_only || (image && image->read_only)) {
        merino_error(error, "Device '%s' is read only", device);
        return false;
    }
    if (!image) {
        merino_error(error,
                     "Block format '%s' used by device '%s' does not support internal snapshots",
                     node->driver->name, device);
        return false;
    }
    if (!*name) {
        merino_error(error, "Name is empty");
        return false;
    }
    same = find_snapshot(image, NULL, name);
    if (same) {
        merino_error(error, "Snapshot with name '%s' already exists on device '%s'", name, device);
    }
    return !same;
}

static bool prepare_take(const TransactionAction *action, UndoStack *undo, GError **error)
{
    static const UndoOps ops = { .abort = abort_take, .clean = clean_take };
    const BlockdevSnapshotInternal *arg = action->u.blockdev_snapshot_internal_sync.data;
    BlockNode *node = find_device(arg->device, error);
    BlockNode *image = node ? image_of(node) : NULL;
    int64_t now_us = g_get_real_time();
    SnapshotInfo info = { .name = arg->name,
                          .date_sec = now_us / G_USEC_PER_SEC,
                          .date_nsec = now_us % G_USEC_PER_SEC * 1000 };
    Taken *taken;

    if (!node || !check_take(node, image, arg->name, error) ||
        !run(image, &info, create_entry, error)) {
        return false;
    }
    if (undo) {
        taken = g_new(Taken, 1);
        *taken = (Taken){ node_ref(image), find_snapshot(image, NULL, arg->name) };
        undo_push(undo, &ops, taken);
    }
    return true;
}

const TransactionActionOps snapshot_internal_action = { .nodes = nodes_of_take,
                                                        .prepare = prepare_take };

/* --- the commands --- */

bool qmp_blockdev_snapshot_internal_sync(const BlockdevSnapshotInternal *arg, GError **error)
{
    BlockdevSnapshotInternalWrapper data = { (BlockdevSnapshotInternal *)arg };
    TransactionAction action = { .type = TRANSACTION_ACTION_KIND_BLOCKDEV_SNAPSHOT_INTERNAL_SYNC };

    action.u.blockdev_snapshot_internal_sync = data;
    return transaction_run_one(&action, error);
}

SnapshotInfo *qmp_blockdev_snapshot_delete_internal_sync(const char *device, const char *id,
                                                         const char *name, GError **error)
{
    BlockNode *node = find_device(device, error);
    BlockNode *image = node ? image_of(node) : NULL;
    g_autoptr(SnapshotInfo) info = NULL;

    if (!node) {
        return NULL;
    }
    if (!id && !name) {
        merino_error(error, "Name or id must be provided");
        return NULL;
    }
    if (!image) {
        merino_error_errno(error, ENOTSUP, "Failed to get a snapshot list");
        return NULL;
    }
    info = find_snapshot(image, id, name);
    if (!info) {
        merino_error(error, "Snapshot with id '%s' and name '%s' does not exist on device '%s'",
                     id ? id : "null", name ? name : "null", device);
        return NULL;
    }
    if (image->read_only) {
        merino_error(error, "Device '%s' is read only", device);
        return NULL;
    }
    return run(image, info, delete_entry, error) ? g_steal_pointer(&info) : NULL;
}
