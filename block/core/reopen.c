/* SPDX-License-Identifier: MIT */
/*
 * blockdev-reopen: new options for nodes that are in use, all or nothing.
 *
 * The options given are the full set: what is left out goes back to its default, and what cannot be
 * changed must be given as before. Common options may change, children that are referenced by
 * name may be exchanged, and drivers say which of their own options may change.
 *
 * The steps, each on one undo stack, with all nodes and everything beneath drained:
 *   1. queue the nodes named, and the children they describe inline; flush them;
 *   2. for each, check what may not change, exchange children, apply common options, and let the
 *      driver prepare its own;
 *   3. compute permissions over all of it, which is where users that cannot bear the change refuse;
 *   4. on commit: drivers first, then what parents take over from their children.
 */
#include "core-internal.h"
#include "util/coroutine.h"
#include "util/error.h"

#include <jansson.h>

/* One node that is to be reopened. */
typedef struct Reopen {
    BlockNode *node;
    const BlockdevOptions *options; /* borrowed from the command or from the node itself */
    BlockdevOptions *new_options;   /* a copy for the node to keep */
    CommonOptions old, new;
    ReopenState state;
} Reopen;

typedef struct ReopenQueue {
    GPtrArray *entries; /* of Reopen *, parents before the children that they describe */
} ReopenQueue;

/* --- the queue --- */

static Reopen *queue_find(const ReopenQueue *queue, const BlockNode *node)
{
    for (guint i = 0; i < queue->entries->len; i++) {
        Reopen *reopen = g_ptr_array_index(queue->entries, i);

        if (reopen->node == node) {
            return reopen;
        }
    }
    return NULL;
}

static void queue_add(ReopenQueue *queue, BlockNode *node, const BlockdevOptions *options);

static bool ref_is(const BlockdevRef *ref, const BlockNode *node)
{
    return ref->type == BLOCKDEV_REF_TYPE_REFERENCE &&
           strcmp(ref->u.reference, node->node_name) == 0;
}

static bool drops_backing(const BlockdevOptions *options)
{
    const BlockdevRefOrNull *backing = options_backing(options);

    return backing && backing->type == BLOCKDEV_REF_OR_NULL_TYPE_NULL;
}

/* Children that are described inline follow their parent, with what is said of them now or, when
 * they are only mentioned by name, with what was said before. */
static void queue_inline_children(ReopenQueue *queue, BlockNode *node,
                                  const BlockdevOptions *options)
{
    for (guint i = 0; i < node->children->len; i++) {
        BlockChild *edge = g_ptr_array_index(node->children, i);
        const BlockdevRef *ref = options_child(options, edge->name);

        if (edge->node->inherits_from != node ||
            (edge == node->backing && drops_backing(options))) {
            continue;
        }
        if (ref && ref->type == BLOCKDEV_REF_TYPE_DEFINITION) {
            queue_add(queue, edge->node, ref->u.definition);
        } else if (!queue_find(queue, edge->node) && (!ref || ref_is(ref, edge->node))) {
            queue_add(queue, edge->node, edge->node->options);
        }
    }
}

/* What is said later about a node already queued replaces what was said before. */
static void queue_add(ReopenQueue *queue, BlockNode *node, const BlockdevOptions *options)
{
    Reopen *reopen = queue_find(queue, node);

    if (!reopen) {
        reopen = g_new0(Reopen, 1);
        reopen->node = node;
        g_ptr_array_add(queue->entries, reopen);
    }
    reopen->options = options;
    queue_inline_children(queue, node, options);
}

static bool queue_fill(ReopenQueue *queue, const BlockdevOptionsList *list, GError **error)
{
    for (size_t i = 0; i < list->len; i++) {
        const BlockdevOptions *options = list->items[i];
        BlockNode *node;

        if (!options->node_name) {
            merino_error(error, "node-name not specified");
            return false;
        }
        node = node_find(options->node_name);
        if (!node) {
            merino_error(error, "Failed to find node with node-name='%s'", options->node_name);
            return false;
        }
        queue_add(queue, node, options);
    }
    return true;
}

/* --- what may not change --- */

static bool is_reopen_option(const BlockDriver *driver, const char *name)
{
    return driver->reopen_options &&
           g_strv_contains((const gchar *const *)driver->reopen_options, name);
}

/* The driver's own options that are to stay, by their paths. */
static json_t *options_to_keep(const BlockDriver *driver, const BlockdevOptions *options)
{
    json_t *values = json_object();
    OptionIter iter;

    option_iter_init(&iter, options);
    while (option_iter_next(&iter)) {
        if (!iter.is_child && !is_reopen_option(driver, iter.member->name)) {
            option_add_flat(values, &iter);
        }
    }
    return values;
}

/* What was given before and is not given now would go back to its default. */
static bool check_resets(const Reopen *reopen, GError **error)
{
    const BlockdevOptions *before = reopen->node->options, *after = reopen->options;
    const BlockDriver *driver = reopen->node->driver;
    const char *reset = before->has_force_share && !after->has_force_share ? "force-share" : NULL;
    json_t *old_values = options_to_keep(driver, before);
    json_t *new_values = options_to_keep(driver, after);
    const char *path;
    json_t *value;

    json_object_foreach(old_values, path, value)
    {
        if (!reset && !json_object_get(new_values, path)) {
            reset = path;
        }
    }
    if (reset) {
        merino_error(error, "Option '%s' cannot be reset to its default value", reset);
    }
    json_decref(old_values);
    json_decref(new_values);
    return !reset;
}

static const char *changed_common_option(const Reopen *reopen)
{
    const BlockdevOptions *before = reopen->node->options, *after = reopen->options;

    if (after->node_name && strcmp(after->node_name, reopen->node->node_name) != 0) {
        return "node-name";
    }
    if (before->driver != after->driver) {
        return "driver";
    }
    if (after->has_force_share &&
        (!before->has_force_share || before->force_share != after->force_share)) {
        return "force-share";
    }
    return NULL;
}

static bool check_unchanged(const Reopen *reopen, GError **error)
{
    const BlockDriver *driver = reopen->node->driver;
    const char *changed = changed_common_option(reopen);
    json_t *old_values = options_to_keep(driver, reopen->node->options);
    json_t *new_values = options_to_keep(driver, reopen->options);
    const char *path;
    json_t *value;

    json_object_foreach(new_values, path, value)
    {
        json_t *old_value = json_object_get(old_values, path);

        if (!changed && !(old_value && json_equal(old_value, value))) {
            changed = path;
        }
    }
    if (changed) {
        merino_error(error, "Cannot change the option '%s'", changed);
    }
    json_decref(old_values);
    json_decref(new_values);
    return !changed;
}

/* --- children --- */

static bool exchange_child(BlockNode *node, const char *name, const char *new_name, UndoStack *undo,
                           GError **error)
{
    BlockChild *child = node_find_child(node, name);
    BlockNode *new_node = node_lookup(new_name, error);
    int64_t size;

    if (!new_node || !edge_check_cycle(node, new_node, name, error)) {
        return false;
    }
    if (!child) {
        merino_error(error, "Cannot set %s child to format node without %s child", name, name);
        return false;
    }
    size = node_size(new_node);
    if (size != node_size(child->node) && child == node->file &&
        !bitmap_list_check_resize(node->bitmaps, size, error)) {
        return false;
    }
    drain_end_with(drain_begin_below(&new_node, 1), undo);
    edge_move(child, new_node, undo);
    return true;
}

static bool reopen_child(BlockNode *node, const char *name, const BlockdevRef *ref, UndoStack *undo,
                         GError **error)
{
    BlockChild *child = node_find_child(node, name);

    if (!ref && child) {
        merino_error(error, "Option '%s' cannot be reset to its default value", name);
        return false;
    }
    if (!ref || (child && ref_is(ref, child->node))) {
        return true;
    }
    if (ref->type == BLOCKDEV_REF_TYPE_DEFINITION) {
        if (!child || child->node->inherits_from != node) {
            merino_error(error, "Cannot change the option '%s.driver'", name);
            return false;
        }
        return true; /* it is in the queue */
    }
    return exchange_child(node, name, ref->u.reference, undo, error);
}

static bool reopen_children(const Reopen *reopen, UndoStack *undo, GError **error)
{
    OptionIter iter;

    if (reopen->options == reopen->node->options) {
        return true; /* it only follows its parent */
    }
    option_iter_init(&iter, reopen->options);
    while (option_iter_next(&iter)) {
        if (iter.member->type == &qapi_type_BlockdevRefOrNull) {
            continue; /* backing files have rules of their own */
        }
        if (iter.is_child &&
            !reopen_child(reopen->node, iter.member->name, iter.child, undo, error)) {
            return false;
        }
    }
    return !options_have_backing(reopen->options) ||
           backing_reopen(reopen->node, options_backing(reopen->options), undo, error);
}

/* --- common options --- */

static void commit_options(void *opaque)
{
    Reopen *reopen = opaque;

    reopen->node->was_writable = false;
    blockdev_options_free(reopen->node->options);
    reopen->node->options = g_steal_pointer(&reopen->new_options);
}

static void abort_options(void *opaque)
{
    Reopen *reopen = opaque;

    reopen->node->was_writable = false;
    common_options_apply(reopen->node, &reopen->old);
}

static void apply_options(Reopen *reopen, UndoStack *undo)
{
    static const UndoOps ops = { .commit = commit_options, .abort = abort_options };

    reopen->new_options = options_keep(reopen->options);
    common_options_of(reopen->node, &reopen->old);
    common_options_apply(reopen->node, &reopen->new);
    reopen->node->was_writable = !reopen->old.read_only;
    undo_push(undo, &ops, reopen);
}

static void resolve_options(const ReopenQueue *queue, Reopen *reopen)
{
    BlockNode *parent = reopen->node->inherits_from;
    Reopen *parent_reopen = parent ? queue_find(queue, parent) : NULL;
    CommonOptions inherited;
    ChildRole role = CHILD_OTHER;

    if (parent) {
        common_options_of(parent, &inherited);
        if (parent_reopen) {
            inherited = parent_reopen->new;
        }
        for (guint i = 0; i < parent->children->len; i++) {
            BlockChild *edge = g_ptr_array_index(parent->children, i);

            role = edge->node == reopen->node ? edge->role : role;
        }
    }
    common_options_resolve(reopen->options, parent ? &inherited : NULL, role, &reopen->new);
}

/* --- one node, and all of them --- */

static bool prepare(const ReopenQueue *queue, Reopen *reopen, UndoStack *undo, GError **error)
{
    BlockNode *node = reopen->node;

    resolve_options(queue, reopen);
    if (!common_options_check_zeroes(&reopen->new, error)) {
        return false;
    }
    if (!node->driver->reopen_prepare) {
        merino_error(error, "Block format '%s' used by node '%s' does not support reopening files",
                     node->driver->name, node->node_name);
        return false;
    }
    if (!check_resets(reopen, error) || !reopen_children(reopen, undo, error) ||
        !check_unchanged(reopen, error) || !common_options_check(&reopen->new, error)) {
        return false;
    }
    reopen->state = (ReopenState){
        .node = node,
        .options = reopen->options,
        .read_only = reopen->new.read_only,
        .auto_read_only = reopen->new.auto_read_only,
        .cache_direct = reopen->new.cache_direct,
        .cache_no_flush = reopen->new.cache_no_flush,
    };
    if (!node->driver->reopen_prepare(&reopen->state, undo, error)) {
        return false;
    }
    apply_options(reopen, undo);
    return true;
}

static GPtrArray *queue_nodes(const ReopenQueue *queue)
{
    GPtrArray *nodes = g_ptr_array_new();

    for (guint i = 0; i < queue->entries->len; i++) {
        Reopen *reopen = g_ptr_array_index(queue->entries, i);

        g_ptr_array_add(nodes, reopen->node);
    }
    return nodes;
}

static bool prepare_all(const ReopenQueue *queue, GPtrArray *nodes, GPtrArray *below,
                        UndoStack *undo, GError **error)
{
    g_autoptr(GPtrArray) roots = NULL;

    for (guint i = 0; i < queue->entries->len; i++) {
        if (!prepare(queue, g_ptr_array_index(queue->entries, i), undo, error)) {
            return false;
        }
    }
    node_refresh_with((BlockNode *const *)nodes->pdata, nodes->len, undo);
    /* Also children that were left behind have other users now. What is named later is looked at
     * first, as QEMU does it: where several refuse, that decides about the words. */
    roots = g_ptr_array_copy(nodes, NULL, NULL);
    g_ptr_array_extend(roots, below, NULL, NULL);
    return perm_refresh((BlockNode *const *)roots->pdata, roots->len, undo, error);
}

/* --- what was written under the old options is on storage before they go --- */

typedef struct Flush {
    BlockNode *node;
    int ret;
} Flush;

static void coroutine_fn flush_entry(void *opaque)
{
    Flush *flush = opaque;
    BlockChild edge = { .node = flush->node }; /* for this call only */

    flush->ret = child_co_flush(&edge);
}

static bool flush_all(GPtrArray *nodes, GError **error)
{
    for (guint i = 0; i < nodes->len; i++) {
        Flush flush = { .node = g_ptr_array_index(nodes, i) };

        coroutine_run(flush_entry, &flush);
        if (flush.ret < 0) {
            merino_error_errno(error, -flush.ret, "Error flushing node '%s'",
                               flush.node->node_name);
            return false;
        }
    }
    return true;
}

static void reopen_free(void *opaque)
{
    Reopen *reopen = opaque;

    blockdev_options_free(reopen->new_options);
    g_free(reopen);
}

static bool reopen_drained(const ReopenQueue *queue, GError **error)
{
    g_autoptr(GPtrArray) nodes = queue_nodes(queue);
    BlockNode *const *items = (BlockNode *const *)nodes->pdata;
    g_autoptr(GPtrArray) below = graph_descendants(items, nodes->len);
    UndoStack *undo = undo_stack_new();

    drain_end_with(drain_begin_below(items, nodes->len), undo);
    return undo_finish(undo,
                       flush_all(nodes, error) && prepare_all(queue, nodes, below, undo, error));
}

bool node_reopen(const BlockdevOptionsList *options, GError **error)
{
    ReopenQueue queue = { g_ptr_array_new_with_free_func(reopen_free) };
    bool ok = queue_fill(&queue, options, error) && reopen_drained(&queue, error);

    g_ptr_array_unref(queue.entries);
    return ok;
}
