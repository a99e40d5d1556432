/* SPDX-License-Identifier: MIT */
/*
 * Backing files: opening what an image's header names, and exchanging it under a live disk.
 */
#include "block/backing.h"
#include "core-internal.h"
#include "image-name.h"
#include "util/error.h"

/* A longer chain is taken for one without end. */
#define CHAIN_MAX 400

/* --- names --- */

/* The folder of the file that holds the image, with a slash at its end ("": the current one); NULL
 * when it lies in none. Caller frees. */
static char *image_folder(const BlockNode *node)
{
    const char *slash;

    while (node->file) {
        node = node->file->node;
    }
    if (!node->driver->is_protocol || !node->filename[0] ||
        image_name_has_protocol(node->filename)) {
        return NULL;
    }
    slash = strrchr(node->filename, '/');
    return slash ? g_strndup(node->filename, slash + 1 - node->filename) : g_strdup("");
}

char *node_backing_name_from(const BlockNode *node, const char *name, GError **error)
{
    g_autofree char *folder = NULL;

    if (g_path_is_absolute(name) || image_name_has_protocol(name)) {
        return g_strdup(name);
    }
    folder = image_folder(node);
    if (!folder) {
        merino_error(error, "Cannot generate a base directory for the backing file '%s' of '%s'",
                     name, node->file ? node->file->node->filename : node->node_name);
        return NULL;
    }
    return g_strconcat(folder, name, NULL);
}

char *node_full_backing_name(const BlockNode *node, GError **error)
{
    return node->backing_name ? node_backing_name_from(node, node->backing_name, error) : NULL;
}

void node_set_backing_name(BlockNode *node, const char *name, const char *format)
{
    g_free(node->backing_name);
    g_free(node->backing_format);
    g_free(node->named_backing);
    node->backing_name = g_strdup(name);
    node->backing_format = g_strdup(format);
    node->named_backing = node_full_backing_name(node, NULL);
    if (name && !node->named_backing) {
        node->named_backing = g_strdup(name);
    }
}

bool node_backing_is_overridden(const BlockNode *node)
{
    const BlockNode *backing = node->backing ? node->backing->node : NULL;

    if (!options_have_backing(node->options)) {
        return false;
    }
    return g_strcmp0(backing ? backing->filename : NULL, node->named_backing) != 0;
}

/* --- opening --- */

static const char *file_name(const BlockNode *node)
{
    while (node->file) {
        node = node->file->node;
    }
    return node->filename;
}

/* Images that are opened for one another end somewhere. */
static bool check_chain(const BlockNode *node, GError **error)
{
    const char *name = file_name(node);
    unsigned length = 0;

    for (const BlockNode *above = node->inherits_from; above; above = above->inherits_from) {
        bool same = name[0] && node->driver == above->driver && above->file &&
                    strcmp(name, file_name(above)) == 0;

        if (same || ++length > CHAIN_MAX) {
            merino_error(error, "Backing file '%s' creates an infinite loop.", name);
            return false;
        }
    }
    return true;
}

/* What the header names, opened as the options say that are made from its name. */
static BlockNode *open_named(BlockNode *node, GError **error)
{
    g_autofree char *full = node_full_backing_name(node, error);
    BlockdevRef ref = { .type = BLOCKDEV_REF_TYPE_DEFINITION };
    BlockNode *backing;

    if (!full || !check_chain(node, error)) {
        return NULL;
    }
    ref.u.definition = image_options(full, node->backing_format, node, error);
    if (!ref.u.definition) {
        return NULL;
    }
    backing = node_open_for(node, &ref, CHILD_COW, error);
    blockdev_options_free(ref.u.definition);
    if (backing) {
        g_free(node->named_backing);
        node->named_backing = g_strdup(backing->filename);
    }
    return backing;
}

/* QEMU takes an empty reference for null. */
static bool is_none(const BlockdevRefOrNull *given)
{
    return given->type == BLOCKDEV_REF_OR_NULL_TYPE_NULL ||
           (given->type == BLOCKDEV_REF_OR_NULL_TYPE_REFERENCE && !given->u.reference[0]);
}

bool node_open_backing(BlockNode *node, const BlockdevRefOrNull *given, const char *name,
                       const char *format, GError **error)
{
    GError *local = NULL;
    BlockChild *child;
    BlockNode *backing;

    node_set_backing_name(node, name, format);
    if (given ? is_none(given) : !name) {
        return true;
    }
    backing = given ? node_open_for(node, (const BlockdevRef *)given, CHILD_COW, &local)
                    : open_named(node, &local);
    if (!backing) {
        g_propagate_prefixed_error(error, local, "Could not open backing file: ");
        return false;
    }
    child = node_attach_child(node, backing, "backing", CHILD_COW, error);
    node_unref(backing);
    return child;
}

/* --- exchanging --- */

static bool set_backing(BlockNode *node, BlockNode *backing, UndoStack *undo, GError **error)
{
    if (!edge_check_cycle(node, backing, "backing", error)) {
        return false;
    }
    drain_end_with(drain_begin_below(&backing, 1), undo);
    if (node->backing) {
        edge_move(node->backing, backing, undo);
    } else {
        edge_attach(node, backing, "backing", CHILD_COW, undo);
    }
    return true;
}

bool backing_reopen(BlockNode *node, const BlockdevRefOrNull *given, UndoStack *undo,
                    GError **error)
{
    BlockNode *backing;

    if (!given) {
        if (node->backing || node->backing_name) {
            merino_error(error, "backing is missing for '%s'", node->node_name);
            return false;
        }
        return true;
    }
    if (given->type == BLOCKDEV_REF_OR_NULL_TYPE_NULL) {
        if (node->backing) {
            edge_detach(node->backing, undo);
        }
        return true;
    }
    if (given->type == BLOCKDEV_REF_OR_NULL_TYPE_DEFINITION) {
        if (!node->backing || node->backing->node->inherits_from != node) {
            merino_error(error, "Cannot change the option 'backing.driver'");
            return false;
        }
        return true; /* the child is reopened itself */
    }
    backing = node_lookup(given->u.reference, error);
    if (!backing) {
        return false;
    }
    return (node->backing && node->backing->node == backing) ||
           set_backing(node, backing, undo, error);
}
