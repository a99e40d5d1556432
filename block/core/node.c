/* SPDX-License-Identifier: MIT */
/*
 * Nodes: names, the registry, references, and the verbs of blockdev-add and blockdev-del.
 *
 * A node is listed while it is open; open.c says from when on exactly. It is closed when its last
 * reference goes. Its name is checked before it is opened, so that a wrong command touches no
 * storage, and again when it is listed, because an inline child may have taken it.
 */
#include "core-internal.h"
#include "tracked.h"
#include "util/error.h"

#define NODE_NAME_MAX 31 /* bytes */

static BlockNode *newest;
static GHashTable *by_name; /* char * of the node -> BlockNode * */

/* --- names --- */

static bool is_identifier(const char *name)
{
    if (!g_ascii_isalpha(name[0])) {
        return false;
    }
    for (const char *at = name; *at; at++) {
        if (!g_ascii_isalnum(*at) && !strchr("-._", *at)) {
            return false;
        }
    }
    return true;
}

bool node_check_name(const char *node_name, GError **error)
{
    if (!is_identifier(node_name)) {
        merino_error(error, "Invalid node-name: '%s'", node_name);
        return false;
    }
    if (node_find(node_name)) {
        merino_error(error, "Duplicate nodes with node-name='%s'", node_name);
        return false;
    }
    if (strlen(node_name) > NODE_NAME_MAX) {
        merino_error(error, "Node name too long");
        return false;
    }
    return true;
}

/* Names of inline nodes cannot be given by users, and cannot be guessed, so that nobody relies
 * on them. */
static char *automatic_name(void)
{
    static uint64_t count;

    return g_strdup_printf("#block%" G_GUINT64_FORMAT "%02d", count++, g_random_int_range(0, 100));
}

/* --- the registry --- */

BlockNode *node_find(const char *node_name)
{
    return by_name ? g_hash_table_lookup(by_name, node_name) : NULL;
}

BlockNode *node_lookup(const char *node_name, GError **error)
{
    BlockNode *node = node_find(node_name);

    if (!node) {
        merino_error(error, "Cannot find device='' nor node-name='%s'", node_name);
    }
    return node;
}

BlockNode *node_next(BlockNode *previous)
{
    return previous ? previous->older : newest;
}

bool node_register(BlockNode *node, GError **error)
{
    if (node_find(node->node_name)) {
        merino_error(error, "Duplicate nodes with node-name='%s'", node->node_name);
        return false;
    }
    if (!by_name) {
        by_name = g_hash_table_new(g_str_hash, g_str_equal);
    }
    g_hash_table_insert(by_name, node->node_name, node);
    node->older = newest;
    if (newest) {
        newest->newer = node;
    }
    newest = node;
    return true;
}

bool node_is_listed(const BlockNode *node)
{
    return node_find(node->node_name) == node;
}

static void unregister(BlockNode *node)
{
    if (!node_is_listed(node)) {
        return;
    }
    g_hash_table_remove(by_name, node->node_name);
    if (node->newer) {
        node->newer->older = node->older;
    } else {
        newest = node->older;
    }
    if (node->older) {
        node->older->newer = node->newer;
    }
}

/* --- life --- */

BlockNode *node_new(const BlockDriver *driver, const char *node_name)
{
    BlockNode *node = g_new0(BlockNode, 1);

    node->node_name = node_name ? g_strdup(node_name) : automatic_name();
    node->driver = driver;
    node->state = g_malloc0(driver->state_size);
    node->limits.request_alignment = 1;
    node->limits.memory_alignment = 1;
    node->filename = g_strdup("");
    node->bitmaps = bitmap_list_new(node->node_name, 0);
    node->children = g_ptr_array_new();
    node->parents = g_ptr_array_new();
    node->refs = 1;
    node->shared = PERM_ALL;
    node->tracker = request_tracker_new();
    return node;
}

void node_destroy(BlockNode *node)
{
    DrainSection *section;

    drain_forget_node(node);
    hurry_forget_node(node);
    g_assert(node->parents->len == 0 && node->drain_depth == 0);
    node->refs = 1; /* drained sections come and go meanwhile */
    section = drain_begin_below(&node, 1);
    if (node->open) {
        node->open = false;
        if (node->driver->close) {
            node->driver->close(node);
        }
    }
    while (node->children->len) {
        node_detach_child(g_ptr_array_index(node->children, node->children->len - 1));
    }
    drain_end(section);
    unregister(node);
    request_tracker_free(node->tracker);
    bitmap_list_free(node->bitmaps);
    blockdev_options_free(node->options);
    g_ptr_array_free(node->children, TRUE);
    g_ptr_array_free(node->parents, TRUE);
    g_free(node->filename);
    g_free(node->backing_name);
    g_free(node->backing_format);
    g_free(node->named_backing);
    g_free(node->state);
    g_free(node->node_name);
    g_free(node);
}

BlockNode *node_ref(BlockNode *node)
{
    node->refs++;
    return node;
}

void node_unref(BlockNode *node)
{
    if (node && --node->refs == 0) {
        node_destroy(node);
    }
}

bool node_add(const BlockdevOptions *options, GError **error)
{
    BlockNode *node;

    if (!options->node_name) {
        merino_error(error, "'node-name' must be specified for the root node");
        return false;
    }
    node = node_open(options, error);
    if (!node) {
        return false;
    }
    node->monitor_owned = true;
    return true;
}

static bool has_backend(const BlockNode *node)
{
    for (guint i = 0; i < node->parents->len; i++) {
        const BlockChild *edge = g_ptr_array_index(node->parents, i);

        if (edge->backend) {
            return true;
        }
    }
    return false;
}

bool node_delete(const char *node_name, GError **error)
{
    BlockNode *node = node_find(node_name);

    if (!node) {
        merino_error(error, "Failed to find node with node-name='%s'", node_name);
        return false;
    }
    if (has_backend(node)) {
        merino_error(error, "Node %s is in use", node_name);
        return false;
    }
    if (!node->monitor_owned) {
        merino_error(error, "Node %s is not owned by the monitor", node_name);
        return false;
    }
    if (node->refs > 1) {
        merino_error(error, "Block device %s is in use", node_name);
        return false;
    }
    node->monitor_owned = false;
    node_unref(node);
    return true;
}

void node_close_all(void)
{
    BlockNode *node = newest;

    while (node) {
        if (node->monitor_owned) {
            node->monitor_owned = false;
            node_unref(node);
            node = newest; /* children may have gone with it */
        } else {
            node = node->older;
        }
    }
}

/* --- properties --- */

int64_t node_size(const BlockNode *node)
{
    return atomic_load_explicit(&node->size, memory_order_acquire);
}

bool node_is_filter(const BlockNode *node)
{
    return node->driver->is_filter;
}

BlockNode *node_skip_filters(BlockNode *node)
{
    while (node_is_filter(node) && node->file) {
        node = node->file->node;
    }
    return node;
}

int64_t node_allocated_size(BlockNode *node)
{
    if (node->driver->allocated_size) {
        return node->driver->allocated_size(node);
    }
    return node->file ? node_allocated_size(node->file->node) : -ENOTSUP;
}

int64_t node_cluster_size(BlockNode *node)
{
    if (node->driver->cluster_size) {
        return node->driver->cluster_size(node);
    }
    return node_is_filter(node) && node->file ? node_cluster_size(node->file->node) : 0;
}
