/* SPDX-License-Identifier: MIT */
/*
 * Filters put over a live node, and taken away, in one instant.
 *
 * node_insert_filter() opens the filter and points all users of its `file` node at it, while all
 * of them are drained: a write goes wholly past the filter or wholly through it. With an undo
 * stack of the caller's the node stays drained until that stack ends, so that other changes
 * that are on it belong to the same instant.
 */
#include "core-internal.h"
#include "util/error.h"

BlockNode *node_filter_target(const BlockdevOptions *options, GError **error)
{
    const char *name = BlockdevDriver_str(options->driver);
    const BlockDriver *driver = driver_find(name);
    const BlockdevRef *ref = options_child(options, "file");

    if (!driver || !driver->is_filter || driver->pins_children || !ref) {
        merino_error(error, "Driver '%s' is not a filter that can be inserted", name);
        return NULL;
    }
    if (ref->type != BLOCKDEV_REF_TYPE_REFERENCE) {
        merino_error(error, "Parameter 'file' must be the node-name of the node to go over");
        return NULL;
    }
    return node_lookup(ref->u.reference, error);
}

/* --- insert --- */

static void abort_insert(void *opaque)
{
    BlockNode *filter = opaque;

    filter->monitor_owned = false;
    node_unref(filter);
}

static BlockNode *insert(const BlockdevOptions *options, BlockNode *target, UndoStack *undo,
                         GError **error)
{
    static const UndoOps ops = { .abort = abort_insert };
    BlockNode *filter;

    drain_end_with(drain_begin_below(&target, 1), undo);
    if (!node_add(options, error)) {
        return NULL;
    }
    filter = node_find(options->node_name);
    undo_push(undo, &ops, filter);
    return node_replace(target, filter, undo, error) ? filter : NULL;
}

BlockNode *node_insert_filter(const BlockdevOptions *options, UndoStack *undo, GError **error)
{
    BlockNode *target = node_filter_target(options, error);
    BlockNode *filter;
    UndoStack *own;

    if (!target) {
        return NULL;
    }
    if (undo) {
        return insert(options, target, undo, error);
    }
    own = undo_stack_new();
    filter = insert(options, target, own, error);
    undo_finish(own, filter != NULL);
    return filter;
}

/* --- remove --- */

/* The monitor's reference belongs to the undo step, and goes when nothing on the stack means the
 * filter or its edges any more. */
static void abort_remove(void *opaque)
{
    BlockNode *filter = node_ref(opaque);

    filter->monitor_owned = true;
}

static void clean_remove(void *opaque)
{
    node_unref(opaque);
}

static BlockNode *removable_filter(const char *node_name, GError **error)
{
    BlockNode *filter = node_find(node_name);

    if (!filter) {
        merino_error(error, "Failed to find node with node-name='%s'", node_name);
        return NULL;
    }
    if (!node_is_filter(filter) || filter->driver->pins_children || !filter->file) {
        merino_error(error, "Node '%s' is not a filter that can be removed", node_name);
        return NULL;
    }
    if (!filter->monitor_owned) {
        merino_error(error, "Node %s is not owned by the monitor", node_name);
        return NULL;
    }
    for (guint i = 0; i < filter->parents->len; i++) {
        BlockChild *edge = g_ptr_array_index(filter->parents, i);

        if (edge->parent && edge->parent->driver->pins_children) {
            merino_error(error, "Node '%s' is busy: node is used as '%s' of '%s'", node_name,
                         edge->name, edge->parent->node_name);
            return NULL;
        }
    }
    return filter;
}

static bool take_out(BlockNode *filter, UndoStack *undo, GError **error)
{
    static const UndoOps ops = { .abort = abort_remove, .clean = clean_remove };

    drain_end_with(drain_begin_below(&filter, 1), undo);
    if (!node_replace(filter, filter->file->node, undo, error)) {
        return false;
    }
    filter->monitor_owned = false;
    undo_push(undo, &ops, filter);
    return true;
}

bool node_remove_filter(const char *node_name, UndoStack *undo, GError **error)
{
    BlockNode *filter = removable_filter(node_name, error);
    UndoStack *own;

    if (!filter) {
        return false;
    }
    if (undo) {
        return take_out(filter, undo, error);
    }
    own = undo_stack_new();
    return undo_finish(own, take_out(filter, own, error));
}
