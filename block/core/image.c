/* SPDX-License-Identifier: MIT */
/*
 * What is done to an image as a whole, for tools and commands: drain it, then have its driver do it
 * in a coroutine.
 */
#include "block/driver.h"
#include "util/error.h"

#include <errno.h>
#include <string.h>

typedef struct ImageCall ImageCall;
typedef int coroutine_fn ImageFn(ImageCall *call);

struct ImageCall {
    BlockNode *node;
    ImageFn *fn;
    GError **error;
    const char *name, *format;
    const SnapshotInfo *snapshot;
    const BlockAmendOptions *amend;
    BlockCheckResult *result;
    unsigned fix;
    int ret;
};

static void coroutine_fn call_entry(void *opaque)
{
    ImageCall *call = opaque;

    call->ret = call->fn(call);
}

static int run(ImageCall *call)
{
    DrainSection *section = drain_begin_node(call->node);

    coroutine_run(call_entry, call);
    drain_end(section);
    return call->ret;
}

static int not_supported(GError **error, const char *what)
{
    merino_error(error, "%s", what);
    return -ENOTSUP;
}

static int coroutine_fn do_check(ImageCall *call)
{
    return call->node->driver->co_check(call->node, call->result, call->fix, call->error);
}

int node_check(BlockNode *node, BlockCheckResult *result, unsigned fix, GError **error)
{
    ImageCall call = { node, do_check, error, .result = result, .fix = fix };

    if (!node->driver->co_check) {
        return not_supported(error, "This image format does not support checks");
    }
    return run(&call);
}

static int coroutine_fn do_snapshot_create(ImageCall *call)
{
    return call->node->driver->co_snapshot_create(call->node, call->snapshot, call->error);
}

int node_snapshot_create(BlockNode *node, const SnapshotInfo *info, GError **error)
{
    ImageCall call = { node, do_snapshot_create, error, .snapshot = info };

    if (!node->driver->co_snapshot_create) {
        return not_supported(error, "Operation not supported");
    }
    return run(&call);
}

static int coroutine_fn do_snapshot_goto(ImageCall *call)
{
    return call->node->driver->co_snapshot_goto(call->node, call->name, call->error);
}

static const SnapshotInfo *find_snapshot(const SnapshotInfoList *list, const char *text, bool by_id)
{
    for (size_t i = 0; i < list->len; i++) {
        if (strcmp(by_id ? list->items[i]->id : list->items[i]->name, text) == 0) {
            return list->items[i];
        }
    }
    return NULL;
}

int node_snapshot_goto(BlockNode *node, const char *id_or_name, GError **error)
{
    g_autoptr(SnapshotInfoList) list = node_snapshot_list(node);
    const SnapshotInfo *info = find_snapshot(list, id_or_name, true);
    ImageCall call = { node, do_snapshot_goto, error };

    if (!node->driver->co_snapshot_goto) {
        return not_supported(error, "Block driver does not support snapshots");
    }
    info = info ? info : find_snapshot(list, id_or_name, false);
    if (!info) {
        merino_error_errno(error, ENOENT, "Failed to load snapshot");
        return -ENOENT;
    }
    call.name = info->id;
    return run(&call);
}

static int coroutine_fn do_snapshot_delete(ImageCall *call)
{
    return call->node->driver->co_snapshot_delete(call->node, call->name, call->error);
}

int node_snapshot_delete(BlockNode *node, const char *name, GError **error)
{
    g_autoptr(SnapshotInfoList) list = node_snapshot_list(node);
    const SnapshotInfo *info = find_snapshot(list, name, false);
    ImageCall call = { node, do_snapshot_delete, error };

    if (!info) {
        merino_error(error, "snapshot not found");
        return -ENOENT;
    }
    call.name = info->id;
    return run(&call);
}

SnapshotInfoList *node_snapshot_list(BlockNode *node)
{
    return node->driver->snapshot_list ? node->driver->snapshot_list(node)
                                       : g_new0(SnapshotInfoList, 1);
}

static int coroutine_fn do_amend(ImageCall *call)
{
    return call->node->driver->co_amend(call->node, call->amend, call->error);
}

int node_amend(BlockNode *node, const BlockAmendOptions *options, GError **error)
{
    ImageCall call = { node, do_amend, error, .amend = options };

    if (!node->driver->co_amend) {
        merino_error(error, "Format driver '%s' does not support option amendment",
                     node->driver->name);
        return -ENOTSUP;
    }
    if (options->has_size && !node_check_size(options->size, error)) {
        return -EINVAL;
    }
    return run(&call);
}

static int coroutine_fn do_change_backing_file(ImageCall *call)
{
    return call->node->driver->co_change_backing_file(call->node, call->name, call->format,
                                                      call->error);
}

int node_change_backing_file(BlockNode *node, const char *name, const char *format, GError **error)
{
    ImageCall call = { node, do_change_backing_file, error, .name = name, .format = format };

    if (!node->driver->co_change_backing_file) {
        return not_supported(error, "Operation not supported");
    }
    return run(&call);
}
