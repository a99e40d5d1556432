/* SPDX-License-Identifier: MIT */
/*
 * Nodes that grow by being written, as the file beneath an image format does.
 *
 * A write through an edge with the resize permission may end beyond the end of the node when the
 * driver says so (can_grow). It goes to the driver as it is; afterwards the node and what shows its
 * size above it (filters, raw) have a new size. Requests do that, on any loop, several at a time;
 * everything else about a new size is for the main thread:
 *
 *  1. A size that grows in a request only grows: it is set to the maximum of what all requests
 *     found, after the driver has succeeded and before the writer learns of it.
 *  2. A bitmap list cannot change its size while requests are in the node, so it remembers what was
 *     marked beyond its end. It takes on the node's size when the node is drained next
 *     (node_settle_size() in drain.c), which the first growth asks for when there are bitmaps.
 *     Whoever is about to look at a bitmap without draining calls node_settle() first.
 *  3. Backends are told of a new size on the main thread, soon.
 *
 * The parents of a node are frozen while a request is in it, so a request may walk them.
 */
#include "core-internal.h"
#include "io-internal.h"
#include "util/event-loop.h"
#include "util/size.h"

/* What sizes of disks are a multiple of. */
#define GROW_SECTOR 512

/* No further, so that a bitmap of the finest granularity can follow. */
#define GROW_MAX_END ((int64_t)HBITMAP_MAX_BITS * BITMAP_MIN_GRANULARITY)

bool node_can_grow(const BlockNode *node)
{
    if (node->driver->can_grow) {
        return node->driver->can_grow(node);
    }
    return node_is_filter(node) && !node->driver->pins_children && node->file &&
           node_can_grow(node->file->node);
}

bool node_follows_file(const BlockNode *node)
{
    return node->file && (node->driver->current_size || node_is_filter(node));
}

int64_t node_current_size(BlockNode *node)
{
    if (node->driver->current_size) {
        return node->driver->current_size(node);
    }
    return node_is_filter(node) && node->file ? node_size(node->file->node) : node_size(node);
}

bool io_may_grow(const BlockChild *child, int64_t end)
{
    return (child->perm & PERM_RESIZE) && end <= GROW_MAX_END && node_can_grow(child->node);
}

/* --- on the main thread, soon after --- */

static void notify_growth(BlockNode *node)
{
    for (guint i = 0; i < node->parents->len; i++) {
        BlockChild *edge = g_ptr_array_index(node->parents, i);

        if (edge->backend) {
            backend_notify_change(edge->backend);
        }
    }
}

static BlockNode *next_grown(void)
{
    BlockNode *node = node_next(NULL);

    while (node && !atomic_exchange(&node->has_grown, false)) {
        node = node_next(node);
    }
    return node;
}

/* Looks for each node anew, since nodes may come and go while one is being drained. */
static void follow_growth(void *opaque)
{
    for (BlockNode *node = next_grown(); node; node = next_grown()) {
        node_ref(node);
        node_settle(node);
        notify_growth(node);
        node_unref(node);
    }
}

/* Whether anybody is to hear of it who cannot look by himself. */
static bool growth_matters(const BlockNode *node)
{
    if (bitmap_list_records(node->bitmaps)) {
        return true;
    }
    for (guint i = 0; i < node->parents->len; i++) {
        const BlockChild *edge = g_ptr_array_index(node->parents, i);

        if (edge->backend) {
            return true;
        }
    }
    return false;
}

/* --- in requests --- */

static void grow_to(BlockNode *node, int64_t size)
{
    int64_t old = node_size(node);

    while (old < size && !atomic_compare_exchange_weak(&node->size, &old, size)) {
    }
    if (old >= size) {
        return;
    }
    if (growth_matters(node) && !atomic_exchange(&node->has_grown, true)) {
        event_loop_call(event_loop_main(), follow_growth, NULL);
    }
    for (guint i = 0; i < node->parents->len; i++) {
        BlockChild *edge = g_ptr_array_index(node->parents, i);
        BlockNode *parent = edge->parent;

        if (parent && edge == parent->file && node_follows_file(parent)) {
            grow_to(parent, node_current_size(parent));
        }
    }
}

void io_grow(BlockNode *node, int64_t end)
{
    if (node_follows_file(node)) {
        grow_to(node, node_current_size(node)); /* another request may be about to do it */
    } else {
        grow_to(node, align_up(end, MAX(node->limits.request_alignment, GROW_SECTOR)));
    }
}

void io_follow(BlockNode *node)
{
    if (node->driver->current_size) {
        grow_to(node, node_current_size(node));
    }
}

void node_settle_size(BlockNode *node)
{
    if (bitmap_list_size(node->bitmaps) != node_size(node)) {
        bitmap_list_resize(node->bitmaps, node_size(node));
    }
}

void node_settle(BlockNode *node)
{
    if (bitmap_list_size(node->bitmaps) != node_size(node)) {
        drain_end(drain_begin_node(node));
    }
}
