/* SPDX-License-Identifier: MIT */
/*
 * What a node is called in reports.
 *
 * A plain file name stands for a node when opening that name would give the same data: a protocol's
 * own name, or that of the protocol right below a format without options. A filter or view shows
 * the name of what it is over. Everything else is written out as "json:{...}" with the options, and
 * the children's, that matter for the data.
 */
#include "core-internal.h"
#include "qapi/json.h"

#include <jansson.h>

#define NAME_MAX_BYTES 4095 /* longer ones end in "..." */
#define NAME_NODES     200  /* enough to fill that */

static bool is_weak(const BlockDriver *driver, const char *name)
{
    return driver->weak_options &&
           g_strv_contains((const gchar *const *)driver->weak_options, name);
}

/* An image that is told to have no backing file, though its header names one. */
static void add_no_backing(json_t *full, const BlockNode *node)
{
    if (node_backing_is_overridden(node)) {
        json_object_set_new(full, "backing", json_null());
    }
}

/* `budget`: so many nodes are written out; children beyond that are named only. */
static json_t *full_options(const BlockNode *node, unsigned *budget)
{
    json_t *full = json_object();
    OptionIter iter;

    json_object_set_new(full, "driver", json_string(node->driver->name));
    option_iter_init(&iter, node->options);
    while (option_iter_next(&iter)) {
        const char *name = iter.member->name;
        const BlockChild *child = node_find_child(node, name);

        if (child && child == node->backing && !node_backing_is_overridden(node)) {
            continue;
        }
        if (child && *budget == 0) {
            json_object_set_new(full, name, json_string(child->node->node_name));
        } else if (child) {
            --*budget;
            json_object_set_new(full, name, full_options(child->node, budget));
        } else if (iter.member->type == &qapi_type_BlockdevRefOrNull) {
            add_no_backing(full, node);
        } else if (!iter.is_child && !is_weak(node->driver, name)) {
            option_add_flat(full, &iter);
        }
    }
    return full;
}

static bool has_own_options(const BlockNode *node)
{
    OptionIter iter;

    if (node_backing_is_overridden(node)) {
        return true;
    }
    option_iter_init(&iter, node->options);
    while (option_iter_next(&iter)) {
        bool weak = iter.is_child || is_weak(node->driver, iter.member->name);
        json_t *value = weak ? NULL : option_value(&iter);

        json_decref(value);
        if (value) {
            return true;
        }
    }
    return false;
}

static bool names_itself(const BlockNode *node)
{
    return node->driver->is_protocol || node->driver->describe;
}

static const char *plain_name(const BlockNode *node)
{
    if (names_itself(node)) {
        return node->filename[0] && !g_str_has_prefix(node->filename, "json:") ? node->filename
                                                                               : NULL;
    }
    if (node_is_filter(node) || node->driver->pins_children || !node->file ||
        !names_itself(node->file->node) || has_own_options(node)) {
        return NULL;
    }
    return plain_name(node->file->node);
}

static char *describe_options(const BlockNode *node)
{
    unsigned budget = NAME_NODES;
    json_t *full = full_options(node, &budget);
    g_autofree char *text = qapi_json_text(full, false);
    char *name = g_strconcat("json:", text, NULL);

    json_decref(full);
    if (strlen(name) > NAME_MAX_BYTES) {
        memcpy(name + NAME_MAX_BYTES - 3, "...", 4);
    }
    return name;
}

static char *describe(const BlockNode *node)
{
    char *own = node->driver->describe ? node->driver->describe(node) : NULL;
    const char *plain;

    if (own) {
        return own;
    }
    plain = node->driver->describe ? NULL : plain_name(node);
    if (plain) {
        return g_strdup(plain);
    }
    if ((node_is_filter(node) || node->driver->pins_children) && node->file &&
        !node->driver->named_by_options) {
        return g_strdup(node->file->node->filename);
    }
    return describe_options(node);
}

void node_refresh_filename(BlockNode *node)
{
    char *name = describe(node);

    g_free(node->filename);
    node->filename = name;
}
