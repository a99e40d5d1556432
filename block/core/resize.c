/* SPDX-License-Identifier: MIT */
/*
 * block_resize: a new size for a node, its bitmaps and whatever shows its size above it.
 *
 * The command asks for the resize permission like any other user, so whoever cannot bear a size
 * that changes refuses it. Everything is checked before storage is touched.
 */
#include "core-internal.h"
#include "util/coroutine.h"
#include "util/error.h"
#include "util/size.h"

#include <inttypes.h>

/* Sizes stay this far below 2^63, so that rounding up to any alignment cannot overflow. */
#define SIZE_MAX_BYTES align_down(INT64_MAX, GiB)

/* The bitmaps of `node` and of what follows it above, when it gets `change` bytes more. */
static bool check_above(BlockNode *node, int64_t change, GError **error)
{
    if (!bitmap_list_check_resize(node->bitmaps, MAX(node_size(node) + change, 0), error)) {
        return false;
    }
    for (guint i = 0; i < node->parents->len; i++) {
        BlockChild *edge = g_ptr_array_index(node->parents, i);

        if (edge->parent && edge == edge->parent->file && node_follows_file(edge->parent) &&
            !check_above(edge->parent, change, error)) {
            return false;
        }
    }
    return true;
}

/* A node that follows its file is resized by way of the file, whose other users follow too. */
static bool check_bitmaps(BlockNode *node, int64_t size, GError **error)
{
    int64_t change = size - node_size(node);

    while (node_follows_file(node)) {
        node = node->file->node;
    }
    return check_above(node, change, error);
}

typedef struct Truncate {
    BlockChild *child;
    int64_t size;
    PreallocMode prealloc;
    bool ok;
    GError **error;
} Truncate;

static void coroutine_fn truncate_entry(void *opaque)
{
    Truncate *truncate = opaque;

    truncate->ok = child_co_truncate(truncate->child, truncate->size, truncate->prealloc,
                                     truncate->error) == 0;
}

static bool truncate_drained(BlockBackend *backend, int64_t size, PreallocMode prealloc,
                             GError **error)
{
    Truncate truncate = { backend->root, size, prealloc, false, error };
    BlockNode *node = backend->root->node;

    if (!node->read_only && !check_bitmaps(node, size, error)) {
        return false;
    }
    coroutine_run(truncate_entry, &truncate);
    return truncate.ok;
}

bool node_check_size(int64_t size, GError **error)
{
    if (size < 0) {
        merino_error(error, "Image size cannot be negative");
        return false;
    }
    if (size > SIZE_MAX_BYTES) {
        merino_error(error, "offset(%" PRId64 ") exceeds maximum(%" PRId64 ")", size,
                     SIZE_MAX_BYTES);
        return false;
    }
    return true;
}

bool node_resize_preallocated(BlockNode *node, int64_t size, PreallocMode prealloc, GError **error)
{
    BlockBackend *backend;
    bool ok = false;

    if (size < 0) {
        merino_error(error, "Parameter 'size' expects a >0 size");
        return false;
    }
    if (!node_check_size(size, error)) {
        return false;
    }
    backend = backend_new("an unnamed block device", PERM_RESIZE, PERM_ALL);
    if (backend_attach(backend, node, error)) {
        DrainSection *section = drain_begin_below(&node, 1);

        ok = truncate_drained(backend, size, prealloc, error);
        drain_end(section);
    }
    backend_free(backend);
    return ok;
}

bool node_resize(BlockNode *node, int64_t size, GError **error)
{
    return node_resize_preallocated(node, size, PREALLOC_MODE_OFF, error);
}
