/* SPDX-License-Identifier: MIT */
#include "export.h"

#include "connection.h"
#include "protocol.h"
#include "server.h"
#include "util/error.h"

#include <string.h>

static GPtrArray *listed; /* NbdExport *, borrowed, in the order of their making */

NbdExport *nbd_export_nth(guint position)
{
    return listed && position < listed->len ? g_ptr_array_index(listed, position) : NULL;
}

NbdExport *nbd_export_find(const char *name)
{
    NbdExport *exp;

    for (guint i = 0; (exp = nbd_export_nth(i)); i++) {
        if (strcmp(exp->name, name) == 0) {
            return exp;
        }
    }
    return NULL;
}

uint32_t nbd_export_min_block(const NbdExport *exp)
{
    const BlockNode *node = backend_node(exp->base->backend);

    return (uint32_t)MIN(node->limits.request_alignment, NBD_MAX_MIN_BLOCK);
}

/* --- bitmaps --- */

/* The bitmap of that name of `node`, or of the next node beneath it that has one. */
static bool find_in_chain(BlockNode *node, const char *name, NbdBitmap *ret_found, GError **error)
{
    while (node) {
        DirtyBitmap *bitmap = bitmap_find(node->bitmaps, name);
        const BlockChild *next = node_is_filter(node) ? node->file : node->backing;

        if (bitmap) {
            *ret_found = (NbdBitmap){ .bitmap = bitmap, .node = node };
            return true;
        }
        node = next ? next->node : NULL;
    }
    merino_error(error, "Bitmap '%s' is not found", name);
    return false;
}

static bool find_on_node(const BlockDirtyBitmap *reference, NbdBitmap *ret_found, GError **error)
{
    BlockNode *node = node_find(reference->node);
    DirtyBitmap *bitmap;

    if (!node) {
        merino_error(error, "Node '%s' not found", reference->node);
        return false;
    }
    bitmap = bitmap_lookup(node->bitmaps, reference->name, error);
    if (!bitmap) {
        return false;
    }
    *ret_found = (NbdBitmap){ .bitmap = bitmap, .node = node };
    return true;
}

static bool find_bitmap(NbdExport *exp, const BlockDirtyBitmapOrStr *reference,
                        NbdBitmap *ret_found, GError **error)
{
    NbdBitmap found;
    bool ok =
        reference->type == BLOCK_DIRTY_BITMAP_OR_STR_TYPE_LOCAL
            ? find_in_chain(backend_node(exp->base->backend), reference->u.local, &found, error)
            : find_on_node(reference->u.external, &found, error);

    if (!ok || !bitmap_check(found.bitmap, BITMAP_NEED_NOT_BUSY | BITMAP_NEED_CONSISTENT, error) ||
        !bitmap_load(found.bitmap, error)) {
        return false;
    }
    /* Who reads a frozen disk expects its bitmap to be frozen as well. */
    if (!exp->base->writable && !found.node->read_only && bitmap_is_enabled(found.bitmap)) {
        merino_error(error, "Enabled bitmap '%s' incompatible with readonly export",
                     bitmap_name(found.bitmap));
        return false;
    }
    *ret_found = found;
    return true;
}

/* All are found before any is held, so that the same one may be named twice. */
static bool hold_bitmaps(NbdExport *exp, const BlockDirtyBitmapOrStrList *references,
                         GError **error)
{
    exp->bitmaps = g_array_new(FALSE, FALSE, sizeof(NbdBitmap));
    for (size_t i = 0; references && i < references->len; i++) {
        NbdBitmap found;

        if (!find_bitmap(exp, references->items[i], &found, error)) {
            g_array_free(exp->bitmaps, TRUE);
            return false;
        }
        g_array_append_val(exp->bitmaps, found);
    }
    for (guint i = 0; i < exp->bitmaps->len; i++) {
        const NbdBitmap *held = &g_array_index(exp->bitmaps, NbdBitmap, i);

        node_ref(held->node);
        bitmap_hold(held->bitmap);
    }
    return true;
}

static void release_bitmaps(NbdExport *exp)
{
    for (guint i = 0; i < exp->bitmaps->len; i++) {
        const NbdBitmap *held = &g_array_index(exp->bitmaps, NbdBitmap, i);

        bitmap_release(held->bitmap);
        node_unref(held->node);
    }
    g_array_free(exp->bitmaps, TRUE);
}

/* --- the driver --- */

static bool check_name(const char *name, const char *description, GError **error)
{
    if (strlen(name) > NBD_MAX_STRING) {
        merino_error(error, "export name '%s' too long", name);
        return false;
    }
    if (description && strlen(description) > NBD_MAX_STRING) {
        merino_error(error, "description '%s' too long", description);
        return false;
    }
    if (nbd_export_find(name)) {
        merino_error(error, "NBD server already has export named '%s'", name);
        return false;
    }
    return true;
}

static uint16_t flags_of(const BlockExport *base)
{
    uint16_t flags =
        NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_CACHE;

    if (base->writable) {
        flags |= NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
    } else {
        flags |= NBD_FLAG_READ_ONLY;
    }
    /* All connections share one node, so a flush on any of them covers the writes of all. */
    if (nbd_server_limits()->max_connections != 1) {
        flags |= NBD_FLAG_CAN_MULTI_CONN;
    }
    return flags;
}

static bool nbd_export_create(BlockExport *base, const BlockExportOptions *options, GError **error)
{
    static uint64_t last_serial;
    const BlockExportOptionsNbd *nbd = &options->u.nbd;
    const char *name = nbd->name ? nbd->name : options->node_name;
    NbdExport *exp = base->state;

    exp->base = base;
    if (!nbd_server_is_running()) {
        merino_error(error, "NBD server not running");
        return false;
    }
    if (!check_name(name, nbd->description, error) || !hold_bitmaps(exp, nbd->bitmaps, error)) {
        return false;
    }
    exp->serial = ++last_serial;
    exp->name = g_strdup(name);
    exp->description = g_strdup(nbd->description);
    exp->size = backend_size(base->backend);
    exp->flags = flags_of(base);
    exp->allocation_depth = nbd->allocation_depth;
    exp->connections = g_ptr_array_new();
    exp->listed = true;
    if (!listed) {
        listed = g_ptr_array_new();
    }
    g_ptr_array_add(listed, exp);
    return true;
}

static void nbd_export_request_shutdown(BlockExport *base)
{
    NbdExport *exp = base->state;

    if (exp->listed) {
        g_ptr_array_remove(listed, exp);
        exp->listed = false;
    }
    for (guint i = 0; i < exp->connections->len; i++) {
        nbd_connection_shutdown(g_ptr_array_index(exp->connections, i));
    }
}

static void nbd_export_destroy(BlockExport *base)
{
    NbdExport *exp = base->state;

    g_assert(exp->connections->len == 0 && !exp->listed);
    g_ptr_array_free(exp->connections, TRUE);
    release_bitmaps(exp);
    g_free(exp->description);
    g_free(exp->name);
}

const BlockExportDriver nbd_export_driver = {
    .type = BLOCK_EXPORT_TYPE_NBD,
    .state_size = sizeof(NbdExport),
    .create = nbd_export_create,
    .request_shutdown = nbd_export_request_shutdown,
    .destroy = nbd_export_destroy,
};
