/* SPDX-License-Identifier: MIT */
#include "meta-context.h"

#include <string.h>

#define BITMAP_PREFIX "qemu:dirty-bitmap:"

void nbd_contexts_init(NbdContexts *contexts, const NbdExport *exp)
{
    guint limit = nbd_context_limit(exp);

    contexts->export_serial = exp->serial;
    contexts->selected = g_byte_array_set_size(g_byte_array_sized_new(limit), limit);
    memset(contexts->selected->data, 0, limit);
    contexts->n = 0;
}

void nbd_contexts_done(NbdContexts *contexts)
{
    if (contexts->selected) {
        g_byte_array_free(contexts->selected, TRUE);
    }
    *contexts = (NbdContexts){ 0 };
}

uint32_t nbd_context_limit(const NbdExport *exp)
{
    return NBD_CONTEXT_FIRST_BITMAP + exp->bitmaps->len;
}

/* The part of the name behind the prefix that all contexts of its kind share. */
static const char *context_leaf(const NbdExport *exp, uint32_t id)
{
    if (id == NBD_CONTEXT_ALLOCATION) {
        return "base:allocation";
    }
    if (id == NBD_CONTEXT_DEPTH) {
        return "qemu:allocation-depth";
    }
    return bitmap_name(
        g_array_index(exp->bitmaps, NbdBitmap, id - NBD_CONTEXT_FIRST_BITMAP).bitmap);
}

static const char *context_prefix(uint32_t id)
{
    return id >= NBD_CONTEXT_FIRST_BITMAP ? BITMAP_PREFIX : "";
}

char *nbd_context_name(const NbdExport *exp, uint32_t id)
{
    return g_strconcat(context_prefix(id), context_leaf(exp, id), NULL);
}

static bool context_exists(const NbdExport *exp, uint32_t id)
{
    return id != NBD_CONTEXT_DEPTH || exp->allocation_depth;
}

static void select_id(NbdContexts *contexts, const NbdExport *exp, uint32_t id)
{
    uint8_t *selected = &contexts->selected->data[id];

    if (context_exists(exp, id) && !*selected) {
        *selected = 1;
        contexts->n++;
    }
}

void nbd_contexts_select_all(NbdContexts *contexts, const NbdExport *exp)
{
    for (uint32_t id = 0; id < nbd_context_limit(exp); id++) {
        select_id(contexts, exp, id);
    }
}

/* Queries are not terminated and may hold any bytes. */
static bool query_is(const char *query, size_t length, const char *prefix, const char *leaf)
{
    size_t prefix_length = strlen(prefix);

    return length == prefix_length + strlen(leaf) && memcmp(query, prefix, prefix_length) == 0 &&
           memcmp(query + prefix_length, leaf, length - prefix_length) == 0;
}

/* A wildcard: a namespace, with all that is in it. */
static bool select_namespace(NbdContexts *contexts, const NbdExport *exp, const char *query,
                             size_t length)
{
    static const struct {
        const char *query;
        uint32_t first;
        uint32_t last;
    } namespaces[] = {
        { "base:", NBD_CONTEXT_ALLOCATION, NBD_CONTEXT_ALLOCATION },
        { "qemu:", NBD_CONTEXT_DEPTH, UINT32_MAX },
        { BITMAP_PREFIX, NBD_CONTEXT_FIRST_BITMAP, UINT32_MAX },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(namespaces); i++) {
        if (query_is(query, length, namespaces[i].query, "")) {
            for (uint32_t id = namespaces[i].first;
                 id < nbd_context_limit(exp) && id <= namespaces[i].last; id++) {
                select_id(contexts, exp, id);
            }
            return true;
        }
    }
    return false;
}

void nbd_contexts_select(NbdContexts *contexts, const NbdExport *exp, const char *query,
                         size_t length, bool listing)
{
    if (listing && select_namespace(contexts, exp, query, length)) {
        return;
    }
    for (uint32_t id = 0; id < nbd_context_limit(exp); id++) {
        if (query_is(query, length, context_prefix(id), context_leaf(exp, id))) {
            select_id(contexts, exp, id);
            return;
        }
    }
}
