/* SPDX-License-Identifier: MIT */
/*
 * Edges: who uses whom, and how an edge is pointed elsewhere under a live disk.
 *
 * An edge holds a reference on its node and is listed in the parent's `children` (or is a backend's
 * `root`) and in the node's `parents`. Whoever adds, moves or frees an edge has drained both ends,
 * or one of them is not in use yet.
 */
#include "core-internal.h"
#include "util/error.h"

/* --- walks --- */

typedef struct Walk {
    bool up; /* to the parents; else to the children */
    GHashTable *seen;
    GPtrArray *found; /* each after everything that it leads to */
} Walk;

static void walk(Walk *self, BlockNode *node)
{
    GPtrArray *edges = self->up ? node->parents : node->children;

    if (!g_hash_table_add(self->seen, node)) {
        return;
    }
    for (guint i = 0; i < edges->len; i++) {
        BlockChild *edge = g_ptr_array_index(edges, i);
        BlockNode *next = self->up ? edge->parent : edge->node;

        if (next) {
            walk(self, next);
        }
    }
    g_ptr_array_add(self->found, node);
}

static GPtrArray *walk_all(bool up, BlockNode *const nodes[], size_t n)
{
    g_autoptr(GHashTable) seen = g_hash_table_new(NULL, NULL);
    Walk self = { up, seen, g_ptr_array_new() };

    for (size_t i = 0; i < n; i++) {
        walk(&self, nodes[i]);
    }
    for (guint low = 0, high = self.found->len; low + 1 < high; low++, high--) {
        gpointer swap = self.found->pdata[low];

        self.found->pdata[low] = self.found->pdata[high - 1];
        self.found->pdata[high - 1] = swap;
    }
    return self.found;
}

GPtrArray *graph_descendants(BlockNode *const nodes[], size_t n)
{
    return walk_all(false, nodes, n);
}

GPtrArray *graph_ancestors(BlockNode *const nodes[], size_t n)
{
    return walk_all(true, nodes, n);
}

bool node_reaches(const BlockNode *from, const BlockNode *to)
{
    BlockNode *start = (BlockNode *)from;
    g_autoptr(GPtrArray) below = graph_descendants(&start, 1);

    return g_ptr_array_find(below, to, NULL);
}

BlockChild *node_find_child(const BlockNode *node, const char *name)
{
    for (guint i = 0; i < node->children->len; i++) {
        BlockChild *edge = g_ptr_array_index(node->children, i);

        if (strcmp(edge->name, name) == 0) {
            return edge;
        }
    }
    return NULL;
}

/* --- making and freeing --- */

char *edge_user(const BlockChild *edge)
{
    return edge->backend ? g_strdup(edge->backend->user)
                         : g_strdup_printf("node '%s'", edge->parent->node_name);
}

bool edge_check_cycle(const BlockNode *parent, const BlockNode *node, const char *name,
                      GError **error)
{
    if (node_reaches(node, parent)) {
        merino_error(error, "Making '%s' a %s child of '%s' would create a cycle", node->node_name,
                     name, parent->node_name);
        return false;
    }
    return true;
}

static bool is_main_child(const BlockChild *edge)
{
    return edge->role == CHILD_FILTERED || strcmp(edge->name, "file") == 0;
}

static void edge_link(BlockChild *edge)
{
    BlockNode *parent = edge->parent;

    g_ptr_array_add(edge->node->parents, edge);
    if (parent) {
        g_ptr_array_add(parent->children, edge);
        if (is_main_child(edge)) {
            parent->file = edge;
        } else if (edge->role == CHILD_COW) {
            parent->backing = edge;
        }
    }
    hurry_edge_added(edge);
    drain_edge_added(edge);
}

BlockChild *edge_new(BlockNode *parent, BlockBackend *backend, BlockNode *node, const char *name,
                     ChildRole role)
{
    BlockChild *edge = g_new0(BlockChild, 1);

    edge->node = node_ref(node);
    edge->parent = parent;
    edge->backend = backend;
    edge->name = g_strdup(name);
    edge->role = role;
    edge->shared = PERM_ALL;
    edge_link(edge);
    return edge;
}

/* Out of the lists of both ends. */
static void edge_unlink(BlockChild *edge)
{
    BlockNode *parent = edge->parent;

    g_ptr_array_remove(edge->node->parents, edge);
    if (parent) {
        g_ptr_array_remove(parent->children, edge);
        if (parent->file == edge) {
            parent->file = NULL;
        }
        if (parent->backing == edge) {
            parent->backing = NULL;
        }
    }
}

static void edge_drop(BlockChild *edge)
{
    if (edge->parent && edge->node->inherits_from == edge->parent) {
        edge->node->inherits_from = NULL;
    }
    node_unref(edge->node);
    g_free(edge->name);
    g_free(edge);
}

void edge_free(BlockChild *edge)
{
    edge_unlink(edge);
    edge_drop(edge);
}

BlockChild *node_attach_child(BlockNode *parent, BlockNode *node, const char *name, ChildRole role,
                              GError **error)
{
    DrainSection *section;
    BlockChild *edge = NULL;

    if (!edge_check_cycle(parent, node, name, error)) {
        return NULL;
    }
    section = drain_begin_below(&node, 1);
    edge = edge_new(parent, NULL, node, name, role);
    if (!perm_refresh(&parent, 1, NULL, error)) {
        edge_free(g_steal_pointer(&edge));
    } else if (parent->open) {
        node_refresh(&parent, 1);
    }
    drain_end(section);
    return edge;
}

void node_detach_child(BlockChild *child)
{
    BlockNode *node = child->node;
    DrainSection *section = drain_begin_below(&node, 1);

    edge_free(child);
    perm_refresh(&node, 1, NULL, NULL); /* asking for less cannot conflict */
    drain_end(section);
}

/* --- pointing elsewhere --- */

typedef struct EdgeMove {
    BlockChild *edge;
    BlockNode *old; /* with the reference that the edge had */
} EdgeMove;

static void edge_point(BlockChild *edge, BlockNode *node)
{
    g_ptr_array_remove(edge->node->parents, edge);
    edge->node = node;
    g_ptr_array_add(node->parents, edge);
    hurry_edge_added(edge);
    drain_edge_added(edge);
}

static void commit_move(void *opaque)
{
    EdgeMove *move = opaque;

    if (move->edge->backend) {
        backend_notify_change(move->edge->backend);
    } else if (move->old->inherits_from == move->edge->parent) {
        move->old->inherits_from = NULL;
    }
}

static void abort_move(void *opaque)
{
    EdgeMove *move = opaque;
    BlockNode *tried = move->edge->node;

    edge_point(move->edge, move->old);
    move->old = tried;
}

static void clean_move(void *opaque)
{
    EdgeMove *move = opaque;

    node_unref(move->old);
    g_free(move);
}

void edge_move(BlockChild *edge, BlockNode *node, UndoStack *undo)
{
    static const UndoOps ops = { commit_move, abort_move, clean_move };
    EdgeMove *move = g_new(EdgeMove, 1);

    move->edge = edge;
    move->old = edge->node;
    edge_point(edge, node_ref(node));
    undo_push(undo, &ops, move);
}

static void abort_attach(void *opaque)
{
    edge_free(opaque);
}

void edge_attach(BlockNode *parent, BlockNode *node, const char *name, ChildRole role,
                 UndoStack *undo)
{
    static const UndoOps ops = { .abort = abort_attach };

    undo_push(undo, &ops, edge_new(parent, NULL, node, name, role));
}

static void commit_detach(void *opaque)
{
    BlockChild *edge = opaque;

    if (edge->node->inherits_from == edge->parent) {
        edge->node->inherits_from = NULL;
    }
}

static void abort_detach(void *opaque)
{
    edge_link(opaque);
}

/* Whether it was put back, the lists tell. */
static void clean_detach(void *opaque)
{
    BlockChild *edge = opaque;

    if (!g_ptr_array_find(edge->parent->children, edge, NULL)) {
        edge_drop(edge);
    }
}

void edge_detach(BlockChild *edge, UndoStack *undo)
{
    static const UndoOps ops = { commit_detach, abort_detach, clean_detach };

    edge_unlink(edge);
    undo_push(undo, &ops, edge);
}

bool child_set_node(BlockChild *child, BlockNode *node, UndoStack *undo, GError **error)
{
    BlockNode *old = child->node;

    if (child->parent && !edge_check_cycle(child->parent, node, child->name, error)) {
        return false;
    }
    drain_end_with(drain_begin_below((BlockNode *[]){ node, old }, 2), undo);
    edge_move(child, node, undo);
    if (child->parent) {
        node_refresh_with(&child->parent, 1, undo);
        return perm_refresh((BlockNode *[]){ child->parent, old }, 2, undo, error);
    }
    return perm_refresh((BlockNode *[]){ node, old }, 2, undo, error);
}

static bool may_move(const BlockChild *edge, const BlockNode *to)
{
    return edge->backend ||
           !(edge->parent->driver->pins_children || node_reaches(to, edge->parent));
}

bool node_replace(BlockNode *from, BlockNode *to, UndoStack *undo, GError **error)
{
    g_autoptr(GPtrArray) users = g_ptr_array_new();
    g_autoptr(GPtrArray) parents = g_ptr_array_new();
    BlockNode *ends[] = { from, to };

    drain_end_with(drain_begin_below(ends, G_N_ELEMENTS(ends)), undo);
    for (guint i = 0; i < from->parents->len; i++) {
        BlockChild *edge = g_ptr_array_index(from->parents, i);

        if (may_move(edge, to)) {
            g_ptr_array_add(users, edge);
        }
    }
    for (guint i = 0; i < users->len; i++) {
        BlockChild *edge = g_ptr_array_index(users, i);

        edge_move(edge, to, undo);
        if (edge->parent) {
            g_ptr_array_add(parents, edge->parent);
        }
    }
    node_refresh_with((BlockNode *const *)parents->pdata, parents->len, undo);
    return perm_refresh(ends, G_N_ELEMENTS(ends), undo, error);
}

/* --- what parents take over from their children --- */

void node_take_file_limits(BlockNode *node)
{
    const BlockLimits *file = &node->file->node->limits;

    node->limits = (BlockLimits){
        .request_alignment = 1,
        .memory_alignment = file->memory_alignment,
        .optimal_transfer = file->optimal_transfer,
        .read_flags = file->read_flags,
        .write_flags = REQ_WRITE_UNCHANGED | (file->write_flags & REQ_FUA),
        .zero_flags =
            REQ_WRITE_UNCHANGED | REQ_MAY_UNMAP | REQ_NO_FALLBACK | (file->zero_flags & REQ_FUA),
    };
}

static void refresh_limits(BlockNode *node)
{
    if (node->driver->refresh_limits) {
        node->driver->refresh_limits(node);
    } else if (node->file) {
        node_take_file_limits(node);
    }
}

static void refresh_size(BlockNode *node)
{
    int64_t size = node_current_size(node);

    if (size >= 0) {
        node_set_size(node, size);
    }
}

void node_refresh(BlockNode *const nodes[], size_t n)
{
    g_autoptr(GPtrArray) above = graph_ancestors(nodes, n);

    for (guint i = 0; i < above->len; i++) {
        BlockNode *node = g_ptr_array_index(above, i);

        refresh_limits(node);
        refresh_size(node);
        node_refresh_filename(node);
    }
}

static void commit_refresh(void *opaque)
{
    GPtrArray *nodes = opaque;

    node_refresh((BlockNode *const *)nodes->pdata, nodes->len);
}

static void clean_refresh(void *opaque)
{
    g_ptr_array_unref(opaque);
}

void node_refresh_with(BlockNode *const nodes[], size_t n, UndoStack *undo)
{
    static const UndoOps ops = { .commit = commit_refresh, .clean = clean_refresh };
    GPtrArray *kept = g_ptr_array_new();

    for (size_t i = 0; i < n; i++) {
        g_ptr_array_add(kept, nodes[i]);
    }
    undo_push(undo, &ops, kept);
}

void node_set_size(BlockNode *node, int64_t size)
{
    if (size == node_size(node)) {
        node_settle_size(node);
        return;
    }
    atomic_store_explicit(&node->size, size, memory_order_release);
    node_settle_size(node);
    for (guint i = 0; i < node->parents->len; i++) {
        BlockChild *edge = g_ptr_array_index(node->parents, i);

        if (edge->backend) {
            backend_notify_change(edge->backend);
        } else if (edge == edge->parent->file) {
            refresh_size(edge->parent);
        }
    }
}
