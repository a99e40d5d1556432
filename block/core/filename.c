/* SPDX-License-Identifier: MIT */
/*
 * What a node is called in reports.
 *
 * A plain file name stands for a node when opening that name would give the same data: a protocol's
 * own name, or that of the file below a format without options. A filter or view shows the name of
 * what it is over. Everything else is written out as "json:{...}" with the options, and the
 * children's, that matter for the data.
 */
#include "core-internal.h"
#include "qapi/codec.h"
#include "qapi/json.h"

#include <jansson.h>

/* Options that do not decide which bytes are seen. */
static bool is_weak(const char *name)
{
    static const char *const weak[] = { "aio",         "aio-max-batch",         "drop-cache",
                                        "locking",     "x-check-cache-dropped", "pr-manager",
                                        "cbw-timeout", "on-cbw-error",          NULL };

    return g_strv_contains((const gchar *const *)weak, name);
}

static json_t *full_options(const BlockNode *node)
{
    json_t *given = qapi_encode(&qapi_type_BlockdevOptions, node->options);
    json_t *full = json_object();
    OptionIter iter;

    json_object_set(full, "driver", json_object_get(given, "driver"));
    option_iter_init(&iter, node->options);
    while (option_iter_next(&iter)) {
        const char *name = iter.member->name;
        const BlockChild *child = node_find_child(node, name);
        json_t *value = json_object_get(given, name);

        if (child) {
            json_object_set_new(full, name, full_options(child->node));
        } else if (value && !iter.is_child && !is_weak(name)) {
            json_object_set(full, name, value);
        }
    }
    json_decref(given);
    return full;
}

static bool has_own_options(const BlockNode *node)
{
    json_t *full = full_options(node);
    size_t n = json_object_size(full) - 1; /* "driver" */

    json_decref(full);
    return n > node->children->len;
}

static const char *plain_name(const BlockNode *node)
{
    if (node->driver->is_protocol) {
        return node->filename[0] && !g_str_has_prefix(node->filename, "json:") ? node->filename
                                                                               : NULL;
    }
    if (node_is_filter(node) || node->driver->pins_children || !node->file ||
        has_own_options(node)) {
        return NULL;
    }
    return plain_name(node->file->node);
}

static char *describe(const BlockNode *node)
{
    const char *plain = plain_name(node);
    g_autofree char *text = NULL;
    json_t *full;

    if (plain) {
        return g_strdup(plain);
    }
    if ((node_is_filter(node) || node->driver->pins_children) && node->file) {
        return g_strdup(node->file->node->filename);
    }
    full = full_options(node);
    text = qapi_json_text(full, false);
    json_decref(full);
    return g_strconcat("json:", text, NULL);
}

void node_refresh_filename(BlockNode *node)
{
    char *name = describe(node);

    g_free(node->filename);
    node->filename = name;
}
