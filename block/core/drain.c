/* SPDX-License-Identifier: MIT */
/*
 * Drain: how the control plane gets a part of the graph for itself.
 *
 * Requests enter the graph only through the doors of BlockBackends. A drained section closes the
 * door of every backend from which one of its nodes can be reached, then polls the main loop until
 * nobody is inside. Several sections may be open at a time, nested or not; a door is open again
 * when the last section that closed it has ended.
 *
 * The door is one 64-bit atomic: the number of requests inside in the lower half, the number of
 * sections that keep it closed in the upper half.
 *
 * Invariants:
 *  1. A request is counted inside from before its first look at the graph until after its last.
 *  2. The count of requests inside grows only while the door is open: entering is one
 *     compare-and-swap of "open, n inside" to "open, n + 1 inside". So once a door is closed, the
 *     count only falls, and once it was seen at 0 it stays there until the door is opened.
 *  3. The request that leaves last through a closed door notifies the main loop. Leaving is one
 *     atomic subtraction, and its result alone says whether to notify; the backend is not
 *     touched afterwards, so whoever has seen 0 may free it.
 *  4. A section covers its nodes and all of their ancestors, and the doors of all backends above
 *     them are closed by it. When an edge is added below a covered node's user during the section,
 *     the user is covered from then on (drain_edge_added). Nothing leaves a section before its end,
 *     so a backend moved elsewhere meanwhile stays closed.
 *  5. All doors of a section are closed, and all are idle, before drain_begin() returns; none is
 *     opened before drain_end(). So of two writes through two doors, the one that comes before a
 *     change made inside the section comes before the whole of it.
 *
 * From 1, 2 and 4: between drain_begin() and drain_end() no request is anywhere in the covered
 * nodes, and what the main thread changes there is not seen half-done. The swap that lets a
 * request in reads what the opening wrote, which makes all earlier writes of the main thread
 * visible to the request; the subtraction that a request leaves with is what the main thread sees
 * as 0, which makes the request's writes visible to the main thread.
 *
 * Requests that nobody sent through a door (a driver's own, made in the background) end in the
 * driver's drain_begin(), which returns when they have. Drivers beneath the covered nodes are
 * called too, since requests of the covered ones may be on their way there.
 *
 * Requests of the covered nodes may also wait, there or beneath, for a throttle group's time or a
 * test's word, which may take for ever. So a section hurries (hurry.c) all that the covered nodes
 * reach, from before it first waits until it ends. What others send through a node beneath goes on
 * meanwhile, without such waits.
 */
#include "core-internal.h"
#include "util/event-loop.h"

struct DrainSection {
    GHashTable *nodes;    /* BlockNode *, a reference each */
    GHashTable *below;    /* what they reached when it was begun: BlockNode *, a reference each */
    GHashTable *backends; /* BlockBackend *, borrowed: drain_forget_backend() takes them out */
    HurrySection *hurry;  /* over the nodes and what they reach */
    DrainSection *outer;  /* the section that was begun before and is still open */
};

static DrainSection *sections; /* the one begun last */

/* --- doors --- */

void door_close(BlockBackend *backend)
{
    atomic_fetch_add(&backend->door, DOOR_CLOSED);
}

void door_open(BlockBackend *backend)
{
    g_mutex_lock(&backend->lock);
    if (atomic_fetch_sub(&backend->door, DOOR_CLOSED) / DOOR_CLOSED == 1) {
        co_queue_wake_all(&backend->waiting);
    }
    g_mutex_unlock(&backend->lock);
}

bool door_is_idle(BlockBackend *backend)
{
    return atomic_load(&backend->door) % DOOR_CLOSED == 0;
}

void door_wait_idle(BlockBackend *backend)
{
    while (!door_is_idle(backend)) {
        event_loop_poll(event_loop_main(), true);
    }
}

void coroutine_fn backend_co_enter(BlockBackend *backend)
{
    uint64_t door = atomic_load(&backend->door);

    for (;;) {
        if (door < DOOR_CLOSED) {
            if (atomic_compare_exchange_weak(&backend->door, &door, door + 1)) {
                return;
            }
            continue;
        }
        g_mutex_lock(&backend->lock);
        if (atomic_load(&backend->door) >= DOOR_CLOSED) {
            co_queue_wait(&backend->waiting, &backend->lock);
        }
        g_mutex_unlock(&backend->lock);
        door = atomic_load(&backend->door);
    }
}

void backend_leave(BlockBackend *backend)
{
    uint64_t before = atomic_fetch_sub(&backend->door, 1);

    if (before > DOOR_CLOSED && before % DOOR_CLOSED == 1) {
        event_loop_notify(event_loop_main());
    }
}

/* --- sections --- */

static DrainSection *section_new(void)
{
    DrainSection *section = g_new0(DrainSection, 1);

    g_assert(coroutine_self() == NULL);
    section->nodes = g_hash_table_new(NULL, NULL);
    section->below = g_hash_table_new(NULL, NULL);
    section->backends = g_hash_table_new(NULL, NULL);
    section->hurry = hurry_begin();
    section->outer = sections;
    sections = section;
    return section;
}

static void section_unlink(DrainSection *section)
{
    DrainSection **at = &sections;

    while (*at != section) {
        at = &(*at)->outer;
    }
    *at = section->outer;
}

static void section_close_door(DrainSection *section, BlockBackend *backend)
{
    if (g_hash_table_add(section->backends, backend)) {
        door_close(backend);
    }
}

/* Collect the node and all of its ancestors, and close the doors above them. */
static void section_cover(DrainSection *section, BlockNode *node)
{
    if (!g_hash_table_add(section->nodes, node)) {
        return;
    }
    node_ref(node);
    node->drain_depth++;
    node->quiet_depth++;
    hurry_add(section->hurry, node);
    for (guint i = 0; i < node->parents->len; i++) {
        BlockChild *edge = g_ptr_array_index(node->parents, i);

        if (edge->backend) {
            section_close_door(section, edge->backend);
        } else {
            section_cover(section, edge->parent);
        }
    }
}

static bool section_is_idle(DrainSection *section)
{
    GHashTableIter iter;
    gpointer backend;

    g_hash_table_iter_init(&iter, section->backends);
    while (g_hash_table_iter_next(&iter, &backend, NULL)) {
        if (!door_is_idle(backend)) {
            return false;
        }
    }
    return true;
}

/* Have drivers end what they do by themselves. Works on a list, since callbacks may poll. */
static void quiet_drivers(GHashTable *nodes)
{
    g_autoptr(GList) list = g_hash_table_get_keys(nodes);

    for (GList *item = list; item; item = item->next) {
        BlockNode *node = item->data;

        if (node->open && !node->driver_quiet && node->driver->drain_begin) {
            node->driver_quiet = true;
            node->driver->drain_begin(node);
        }
    }
}

static void unquiet(BlockNode *node)
{
    node->quiet_depth--;
    if (node->quiet_depth == 0 && node->driver_quiet) {
        node->driver_quiet = false;
        if (node->open) {
            node->driver->drain_end(node);
        }
    }
}

static void uncover(BlockNode *node)
{
    node->drain_depth--;
    unquiet(node);
}

/* Note what lies beneath the covered nodes. */
static void section_reach(DrainSection *section)
{
    guint n;
    g_autofree gpointer *nodes = g_hash_table_get_keys_as_array(section->nodes, &n);
    g_autoptr(GPtrArray) reached = graph_descendants((BlockNode *const *)nodes, n);

    for (guint i = 0; i < reached->len; i++) {
        BlockNode *node = g_ptr_array_index(reached, i);

        if (!g_hash_table_contains(section->nodes, node) &&
            g_hash_table_add(section->below, node)) {
            node_ref(node);
            node->quiet_depth++;
        }
    }
}

/* What has grown in requests since it was drained last, and what bitmaps no longer need. */
static void section_settle(DrainSection *section)
{
    GHashTableIter iter;
    gpointer key;

    g_hash_table_iter_init(&iter, section->nodes);
    while (g_hash_table_iter_next(&iter, &key, NULL)) {
        BlockNode *node = key;

        if (node->drain_depth == 1) {
            node_settle_size(node);
            bitmap_list_tidy(node->bitmaps);
        }
    }
}

/* Callbacks that run while we poll may free backends and add edges; the section follows. */
static void section_wait(DrainSection *section)
{
    section_reach(section);
    quiet_drivers(section->nodes);
    quiet_drivers(section->below);
    while (!section_is_idle(section)) {
        event_loop_poll(event_loop_main(), true);
    }
    section_settle(section);
}

DrainSection *drain_begin(BlockNode *const nodes[], size_t n)
{
    DrainSection *section = section_new();

    for (size_t i = 0; i < n; i++) {
        section_cover(section, nodes[i]);
    }
    section_wait(section);
    return section;
}

DrainSection *drain_begin_node(BlockNode *node)
{
    return drain_begin(&node, 1);
}

DrainSection *drain_begin_all(void)
{
    DrainSection *section = section_new();

    for (BlockNode *node = node_next(NULL); node; node = node_next(node)) {
        section_cover(section, node);
    }
    section_wait(section);
    return section;
}

DrainSection *drain_begin_below(BlockNode *const nodes[], size_t n)
{
    g_autoptr(GPtrArray) below = graph_descendants(nodes, n);

    return drain_begin((BlockNode *const *)below->pdata, below->len);
}

static void unref_all(GHashTable *nodes)
{
    GHashTableIter iter;
    gpointer node;

    g_hash_table_iter_init(&iter, nodes);
    while (g_hash_table_iter_next(&iter, &node, NULL)) {
        node_unref(node);
    }
    g_hash_table_unref(nodes);
}

void drain_end(DrainSection *section)
{
    GHashTableIter iter;
    gpointer key;

    section_unlink(section);
    section_settle(section);
    hurry_end(section->hurry);
    g_hash_table_iter_init(&iter, section->nodes);
    while (g_hash_table_iter_next(&iter, &key, NULL)) {
        uncover(key);
    }
    g_hash_table_iter_init(&iter, section->below);
    while (g_hash_table_iter_next(&iter, &key, NULL)) {
        unquiet(key);
    }
    g_hash_table_iter_init(&iter, section->backends);
    while (g_hash_table_iter_next(&iter, &key, NULL)) {
        door_open(key);
    }
    unref_all(section->nodes);
    unref_all(section->below);
    g_hash_table_unref(section->backends);
    g_free(section);
}

/* --- in passing --- */

/* Close the doors above a node, and list them. False when it may be in use, by somebody inside or
 * by a driver that makes requests of its own. */
static bool shut_out(BlockNode *node, GPtrArray *closed)
{
    if (node->driver->drain_begin) {
        return false;
    }
    for (guint i = 0; i < node->parents->len; i++) {
        BlockChild *edge = g_ptr_array_index(node->parents, i);

        if (!edge->backend) {
            if (!shut_out(edge->parent, closed)) {
                return false;
            }
            continue;
        }
        door_close(edge->backend);
        g_ptr_array_add(closed, edge->backend);
        if (!door_is_idle(edge->backend)) {
            return false;
        }
    }
    return true;
}

void node_tidy_idle(BlockNode *node)
{
    g_autoptr(GPtrArray) closed = g_ptr_array_new();

    if (sections || !bitmap_list_is_untidy(node->bitmaps)) {
        return; /* who has opened a section tidies at its end */
    }
    if (shut_out(node, closed)) {
        bitmap_list_tidy(node->bitmaps);
    }
    for (guint i = 0; i < closed->len; i++) {
        door_open(g_ptr_array_index(closed, i));
    }
}

void nodes_tidy_idle(void)
{
    for (BlockNode *node = node_next(NULL); node; node = node_next(node)) {
        node_tidy_idle(node);
    }
}

static void end_section(void *opaque)
{
    drain_end(opaque);
}

void drain_end_with(DrainSection *section, UndoStack *undo)
{
    static const UndoOps ops = { .clean = end_section };

    undo_push(undo, &ops, section);
}

/* --- the graph changes during a section --- */

void drain_edge_added(BlockChild *edge)
{
    for (DrainSection *section = sections; section; section = section->outer) {
        if (!g_hash_table_contains(section->nodes, edge->node)) {
            continue;
        }
        if (edge->backend) {
            section_close_door(section, edge->backend);
        } else {
            section_cover(section, edge->parent);
            quiet_drivers(section->nodes);
        }
    }
}

void drain_forget_backend(BlockBackend *backend)
{
    for (DrainSection *section = sections; section; section = section->outer) {
        g_hash_table_remove(section->backends, backend);
    }
}

void drain_forget_node(BlockNode *node)
{
    for (DrainSection *section = sections; section; section = section->outer) {
        if (g_hash_table_remove(section->nodes, node)) {
            node->drain_depth--;
            node->quiet_depth--;
            node->refs--;
        }
        if (g_hash_table_remove(section->below, node)) {
            node->quiet_depth--;
            node->refs--;
        }
    }
}
