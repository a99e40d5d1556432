/* SPDX-License-Identifier: MIT */
/*
 * Permissions: who reads, writes and resizes what, and who can bear it.
 *
 * Each edge carries what its user does with the node (`perm`) and what the user lets others do
 * (`shared`). A node's sums are all that its users do and all that every one of them shares. From
 * its sums a node derives what it asks of its children, so a change at the top runs down the graph.
 *
 * A refresh goes over the nodes from parents to children in two passes: first all edges are
 * computed and checked, then drivers are told the new sums (they take locks in storage).
 * Every step is on an undo stack: a refusal leaves things exactly as they were.
 *
 * Rules:
 *  1. An edge's `perm` is within the `shared` of every other edge of the same node.
 *  2. A read-only node's users do not write.
 *  3. Whoever writes to a node whose end is no multiple of its request alignment may resize it.
 *  4. A node asks of its children at least what its users ask of it, as far as the role needs it.
 */
#include "core-internal.h"
#include "util/error.h"
#include "util/size.h"

#define PERM_WRITES (PERM_WRITE | PERM_WRITE_UNCHANGED)

/* --- what a parent asks of its child, by role --- */

static void perm_of_cow(unsigned perm, unsigned shared, unsigned *ret_perm, unsigned *ret_shared)
{
    *ret_perm = perm & PERM_CONSISTENT_READ;
    *ret_shared = PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED;
    if (shared & PERM_WRITE) {
        *ret_shared |= PERM_WRITE | PERM_RESIZE;
    }
}

void node_perm_by_role(const BlockNode *node, ChildRole role, unsigned perm, unsigned shared,
                       unsigned *ret_perm, unsigned *ret_shared)
{
    switch (role) {
    case CHILD_COW:
        perm_of_cow(perm, shared, ret_perm, ret_shared);
        return;
    case CHILD_METADATA:
        perm |= PERM_CONSISTENT_READ | (node->read_only ? 0 : PERM_WRITE | PERM_RESIZE);
        shared &= ~(unsigned)(PERM_WRITE | PERM_RESIZE);
        break;
    case CHILD_DATA:
        if (perm & PERM_WRITES) {
            perm |= PERM_WRITE | PERM_RESIZE; /* what is not there yet is appended */
        }
        shared &= ~(unsigned)PERM_RESIZE;
        break;
    case CHILD_FILTERED:
    case CHILD_OTHER:
        break;
    }
    *ret_perm = perm;
    *ret_shared = shared;
}

static void child_perm(BlockNode *node, BlockChild *child, unsigned *ret_perm, unsigned *ret_shared)
{
    if (node->driver->child_perm) {
        node->driver->child_perm(node, child, node->perm, node->shared, ret_perm, ret_shared);
    } else {
        node_perm_by_role(node, child->role, node->perm, node->shared, ret_perm, ret_shared);
    }
    if (child->node->force_share) {
        *ret_shared = PERM_ALL;
    }
}

/* --- words --- */

static char *perm_names(unsigned perm)
{
    static const struct {
        unsigned perm;
        const char *name;
    } names[] = {
        { PERM_CONSISTENT_READ, "consistent read" },
        { PERM_WRITE, "write" },
        { PERM_WRITE_UNCHANGED, "write unchanged" },
        { PERM_RESIZE, "resize" },
    };
    GString *text = g_string_new(NULL);

    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        if (perm & names[i].perm) {
            g_string_append_printf(text, "%s%s", text->len ? ", " : "", names[i].name);
        }
    }
    return g_string_free(text, FALSE);
}

static void conflict_error(const BlockChild *needs, const BlockChild *refuses, GError **error)
{
    g_autofree char *what = perm_names(needs->perm & ~refuses->shared);
    g_autofree char *needs_user = edge_user(needs);
    g_autofree char *refuses_user = edge_user(refuses);
    const char *name = needs->node->node_name;

    merino_error(error,
                 "Permission conflict on node '%s': permissions '%s' are both required by %s (uses "
                 "node '%s' as '%s' child) and unshared by %s (uses node '%s' as '%s' child).",
                 name, what, needs_user, name, needs->name, refuses_user, name, refuses->name);
}

/* --- refreshing --- */

/* What one edge or node had before. */
typedef struct PermRecord {
    BlockChild *edge; /* or NULL */
    BlockNode *node;  /* or NULL */
    unsigned perm, shared;
} PermRecord;

static void abort_perms(void *opaque)
{
    GArray *records = opaque;

    for (guint i = records->len; i > 0; i--) {
        PermRecord *record = &g_array_index(records, PermRecord, i - 1);

        if (record->edge) {
            record->edge->perm = record->perm;
            record->edge->shared = record->shared;
        } else {
            record->node->perm = record->perm;
            record->node->shared = record->shared;
        }
    }
}

static void clean_perms(void *opaque)
{
    g_array_unref(opaque);
}

/* Where several conflict, QEMU names the newest that refuses, and the newest that it refuses. */
static bool check_users(const BlockNode *node, GError **error)
{
    for (guint i = node->parents->len; i > 0; i--) {
        BlockChild *refuses = g_ptr_array_index(node->parents, i - 1);

        for (guint j = node->parents->len; j > 0; j--) {
            BlockChild *needs = g_ptr_array_index(node->parents, j - 1);

            if (needs != refuses && (needs->perm & ~refuses->shared)) {
                conflict_error(needs, refuses, error);
                return false;
            }
        }
    }
    return true;
}

static bool sum_users(BlockNode *node, GArray *records, GError **error)
{
    PermRecord before = { .node = node, .perm = node->perm, .shared = node->shared };
    unsigned perm = 0, shared = PERM_ALL;

    if (!check_users(node, error)) {
        return false;
    }
    for (guint i = 0; i < node->parents->len; i++) {
        BlockChild *edge = g_ptr_array_index(node->parents, i);

        perm |= edge->perm;
        shared &= edge->shared;
    }
    if ((perm & PERM_WRITES) && node->read_only) {
        if (node->was_writable) { /* it is being made read-only */
            merino_error(error, "Read-only block node '%s' cannot support read-write users",
                         node->node_name);
        } else {
            merino_error(error, "Block node is read-only");
        }
        return false;
    }
    if ((perm & PERM_WRITES) && !(perm & PERM_RESIZE) &&
        !is_aligned(node_size(node), node->limits.request_alignment)) {
        merino_error(error, "Cannot get 'write' permission without 'resize': Image size is not a "
                            "multiple of request alignment");
        return false;
    }
    if (perm != before.perm || shared != before.shared) {
        g_array_append_val(records, before);
        node->perm = perm;
        node->shared = shared;
    }
    return true;
}

static void compute_children(BlockNode *node, GArray *records)
{
    for (guint i = 0; i < node->children->len; i++) {
        BlockChild *edge = g_ptr_array_index(node->children, i);
        PermRecord before = { .edge = edge, .perm = edge->perm, .shared = edge->shared };
        unsigned perm, shared;

        child_perm(node, edge, &perm, &shared);
        if (perm != before.perm || shared != before.shared) {
            g_array_append_val(records, before);
            edge->perm = perm;
            edge->shared = shared;
        }
    }
}

static bool compute_all(GPtrArray *order, GArray *records, GError **error)
{
    for (guint i = 0; i < order->len; i++) {
        BlockNode *node = g_ptr_array_index(order, i);

        if (!sum_users(node, records, error)) {
            return false;
        }
        compute_children(node, records);
    }
    return true;
}

static bool tell_drivers(GArray *records, UndoStack *undo, GError **error)
{
    for (guint i = 0; i < records->len; i++) {
        BlockNode *node = g_array_index(records, PermRecord, i).node;

        if (!node || !node->driver->set_perm) {
            continue;
        }
        g_assert(node->drain_depth > 0);
        if (!node->driver->set_perm(node, node->perm, node->shared, undo, error)) {
            return false;
        }
    }
    return true;
}

static bool refresh(BlockNode *const nodes[], size_t n, UndoStack *undo, GError **error)
{
    static const UndoOps ops = { .abort = abort_perms, .clean = clean_perms };
    g_autoptr(GPtrArray) order = graph_descendants(nodes, n);
    GArray *records = g_array_new(FALSE, FALSE, sizeof(PermRecord));

    undo_push(undo, &ops, records);
    return compute_all(order, records, error) && tell_drivers(records, undo, error);
}

bool perm_refresh(BlockNode *const nodes[], size_t n, UndoStack *undo, GError **error)
{
    UndoStack *own;

    if (undo) {
        return refresh(nodes, n, undo, error);
    }
    own = undo_stack_new();
    return undo_finish(own, refresh(nodes, n, own, error));
}

bool node_refresh_perms(BlockNode *node, UndoStack *undo, GError **error)
{
    DrainSection *section = drain_begin_below(&node, 1);
    bool ok;

    if (undo) {
        drain_end_with(section, undo);
        return perm_refresh(&node, 1, undo, error);
    }
    ok = perm_refresh(&node, 1, NULL, error);
    drain_end(section);
    return ok;
}
