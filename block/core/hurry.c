/* SPDX-License-Identifier: MIT */
/*
 * Hurry: requests that wait for something other than requests are let go.
 *
 * In some nodes requests wait for hours, or for ever, although nothing is in their way: in a
 * `throttle` node for the time of its group, in a `blkdebug` node for a test's word. Who waits for
 * requests to end (a drained section, an export that shuts down, the end of jobs) cannot wait for
 * that; nor can the main thread when it reads something by itself and everybody waits for it. So
 * they begin a hurried section over the nodes in question: what waits there goes on at once, and
 * nobody comes to wait until the section ends. It lasts, because one request may wait many times:
 * in several nodes, or once for each of the parts it is made of.
 *
 * What is let go is carried out as it always would be, only sooner. Limits are exceeded meanwhile,
 * also by other users of the same nodes; groups account for it.
 *
 * Invariants:
 *  1. A section covers nodes and all that they reach. What comes to lie beneath them during the
 *     section, or is opened there, is covered from then on; nothing leaves a section before its
 *     end. A request waits only for what goes on in the node where it waits or beneath it. So
 *     whoever hurries all that a request may reach waits for real work alone.
 *  2. A driver's hurry_begin() is called when its open node comes to be covered, by whichever
 *     section is the first; hurry_end() when the last one has ended, if the node is still open.
 *  3. Nothing here polls, yields or waits, and neither do the drivers' functions: a section can be
 *     begun and ended in the middle of any control work.
 *  4. A section holds no references: nodes that are freed meanwhile leave it.
 */
#include "core-internal.h"
#include "util/event-loop.h"

struct HurrySection {
    GHashTable *nodes;     /* BlockNode *, borrowed: hurry_forget_node() takes them out */
    BlockBackend *backend; /* whose node is covered, whichever it is; or NULL */
    bool all;              /* and every node that is opened */
    HurrySection *outer;   /* begun before and still open */
};

static HurrySection *sections; /* the one begun last */

static void tell_driver(BlockNode *node)
{
    if (node->open && node->hurry_depth > 0 && !node->driver_hurried && node->driver->hurry_begin) {
        node->driver_hurried = true;
        node->driver->hurry_begin(node);
    }
}

static void uncover(BlockNode *node)
{
    node->hurry_depth--;
    if (node->hurry_depth == 0 && node->driver_hurried) {
        node->driver_hurried = false;
        if (node->open) {
            node->driver->hurry_end(node);
        }
    }
}

/* Children first: what one node lets go finds those beneath it hurried. */
void hurry_add(HurrySection *section, BlockNode *node)
{
    if (!g_hash_table_add(section->nodes, node)) {
        return;
    }
    for (guint i = 0; i < node->children->len; i++) {
        const BlockChild *edge = g_ptr_array_index(node->children, i);

        hurry_add(section, edge->node);
    }
    node->hurry_depth++;
    tell_driver(node);
}

/* --- sections --- */

HurrySection *hurry_begin(void)
{
    HurrySection *section = g_new0(HurrySection, 1);

    g_assert(event_loop_current() == event_loop_main());
    section->nodes = g_hash_table_new(NULL, NULL);
    section->outer = sections;
    sections = section;
    return section;
}

HurrySection *hurry_begin_node(BlockNode *node)
{
    HurrySection *section = hurry_begin();

    hurry_add(section, node);
    return section;
}

HurrySection *hurry_begin_backend(BlockBackend *backend)
{
    HurrySection *section = hurry_begin();

    section->backend = backend;
    if (backend->root) {
        hurry_add(section, backend->root->node);
    }
    return section;
}

HurrySection *hurry_begin_all(void)
{
    HurrySection *section = hurry_begin();

    section->all = true;
    for (BlockNode *node = node_next(NULL); node; node = node_next(node)) {
        hurry_add(section, node);
    }
    return section;
}

void hurry_end(HurrySection *section)
{
    HurrySection **at = &sections;
    GHashTableIter iter;
    gpointer node;

    while (*at != section) {
        at = &(*at)->outer;
    }
    *at = section->outer;
    g_hash_table_iter_init(&iter, section->nodes);
    while (g_hash_table_iter_next(&iter, &node, NULL)) {
        uncover(node);
    }
    g_hash_table_unref(section->nodes);
    g_free(section);
}

/* --- the graph changes during a section --- */

void hurry_edge_added(BlockChild *edge)
{
    for (HurrySection *section = sections; section; section = section->outer) {
        bool covered = edge->backend ? edge->backend == section->backend
                                     : g_hash_table_contains(section->nodes, edge->parent);

        if (covered) {
            hurry_add(section, edge->node);
        }
    }
}

void hurry_node_opened(BlockNode *node)
{
    for (HurrySection *section = sections; section; section = section->outer) {
        if (section->all) {
            hurry_add(section, node);
        }
    }
    tell_driver(node);
}

void hurry_forget_node(BlockNode *node)
{
    for (HurrySection *section = sections; section; section = section->outer) {
        if (g_hash_table_remove(section->nodes, node)) {
            node->hurry_depth--;
        }
    }
}
