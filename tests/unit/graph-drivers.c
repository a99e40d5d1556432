/* SPDX-License-Identifier: MIT */
#include "graph-drivers.h"
#include "qapi/codec.h"
#include "qapi/json.h"
#include "util/error.h"
#include "util/event-loop.h"
#include "util/size.h"

#include <errno.h>
#include <jansson.h>

/* --- null-co --- */

MemoryDisk *memory_disk(BlockNode *node)
{
    g_assert_cmpstr(node->driver->name, ==, "null-co");
    return node->state;
}

static bool memory_open(BlockNode *node, const BlockdevOptions *options, GError **error)
{
    MemoryDisk *disk = node->state;
    int64_t size = options->u.null_co.has_size ? options->u.null_co.size : MiB;

    disk->data = g_malloc0(size);
    node_set_size(node, size);
    return true;
}

static void memory_close(BlockNode *node)
{
    MemoryDisk *disk = node->state;

    g_assert_cmpint(atomic_load(&disk->inside), ==, 0);
    g_free(disk->data);
}

static void coroutine_fn memory_enter(MemoryDisk *disk)
{
    int generation = disk->generation;

    atomic_fetch_add(&disk->inside, 1);
    atomic_fetch_add(&disk->requests, 1);
    coroutine_pause();
    while (atomic_load(&disk->hold)) {
        coroutine_pause();
    }
    if (atomic_load(&disk->frozen)) {
        atomic_fetch_add(&disk->trespasses, 1);
    }
    g_assert_cmpint(disk->generation, ==, generation);
}

static void memory_leave(MemoryDisk *disk)
{
    if (atomic_load(&disk->frozen)) {
        atomic_fetch_add(&disk->trespasses, 1);
    }
    atomic_fetch_sub(&disk->inside, 1);
}

static int coroutine_fn memory_preadv(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                                      unsigned flags)
{
    MemoryDisk *disk = node->state;

    memory_enter(disk);
    iov_from_buf(vec, 0, disk->data + offset, bytes);
    memory_leave(disk);
    return 0;
}

static int coroutine_fn memory_pwritev(BlockNode *node, int64_t offset, int64_t bytes,
                                       IoVector *vec, unsigned flags)
{
    MemoryDisk *disk = node->state;

    memory_enter(disk);
    iov_to_buf(vec, 0, disk->data + offset, bytes);
    memory_leave(disk);
    return 0;
}

static int coroutine_fn memory_flush(BlockNode *node)
{
    MemoryDisk *disk = node->state;

    coroutine_pause();
    disk->flushes++;
    return disk->refuse_flush ? -ENOSPC : 0;
}

static int coroutine_fn memory_truncate(BlockNode *node, int64_t size, PreallocMode prealloc,
                                        GError **error)
{
    MemoryDisk *disk = node->state;

    coroutine_pause();
    disk->data = g_realloc(disk->data, size);
    if (size > node_size(node)) {
        memset(disk->data + node_size(node), 0, size - node_size(node));
    }
    node_set_size(node, size);
    return 0;
}

typedef struct MemoryPerm {
    MemoryDisk *disk;
    unsigned perm, shared;
} MemoryPerm;

static void abort_memory_perm(void *opaque)
{
    MemoryPerm *before = opaque;

    before->disk->perm = before->perm;
    before->disk->shared = before->shared;
}

static bool memory_set_perm(BlockNode *node, unsigned perm, unsigned shared, UndoStack *undo,
                            GError **error)
{
    static const UndoOps ops = { .abort = abort_memory_perm, .clean = g_free };
    MemoryDisk *disk = node->state;
    MemoryPerm *before;

    g_assert_cmpint(atomic_load(&disk->inside), ==, 0);
    disk->set_perm_calls++;
    if (disk->refuse_perm) {
        merino_error(error, "Failed to get \"write\" lock");
        return false;
    }
    before = g_new(MemoryPerm, 1);
    *before = (MemoryPerm){ disk, disk->perm, disk->shared };
    undo_push(undo, &ops, before);
    disk->perm = perm;
    disk->shared = shared;
    return true;
}

static void commit_memory_reopen(void *opaque)
{
    ReopenState *state = opaque;

    memory_disk(state->node)->reopened_read_only = state->read_only;
}

static bool memory_reopen_prepare(ReopenState *state, UndoStack *undo, GError **error)
{
    static const UndoOps ops = { .commit = commit_memory_reopen };

    g_assert_cmpuint(state->node->drain_depth, >, 0);
    if (memory_disk(state->node)->refuse_reopen) {
        merino_error(error, "The disk does not want to");
        return false;
    }
    undo_push(undo, &ops, state);
    return true;
}

static void memory_drain_begin(BlockNode *node)
{
    memory_disk(node)->quiet_begins++;
}

static void memory_drain_end(BlockNode *node)
{
    memory_disk(node)->quiet_ends++;
}

static void memory_hurry_begin(BlockNode *node)
{
    memory_disk(node)->hurry_begins++;
}

static void memory_hurry_end(BlockNode *node)
{
    memory_disk(node)->hurry_ends++;
}

static int64_t memory_allocated(BlockNode *node)
{
    return 0;
}

static const BlockDriver memory_driver = {
    .name = "null-co",
    .state_size = sizeof(MemoryDisk),
    .is_protocol = true,
    .open = memory_open,
    .close = memory_close,
    .set_perm = memory_set_perm,
    .reopen_prepare = memory_reopen_prepare,
    .co_preadv = memory_preadv,
    .co_pwritev = memory_pwritev,
    .co_flush = memory_flush,
    .co_truncate = memory_truncate,
    .hurry_begin = memory_hurry_begin,
    .hurry_end = memory_hurry_end,
    .drain_begin = memory_drain_begin,
    .drain_end = memory_drain_end,
    .allocated_size = memory_allocated,
};

/* --- raw --- */

typedef struct RawState {
    int64_t offset;
    int64_t size; /* -1: what is left of the file */
} RawState;

static int64_t raw_current_size(BlockNode *node)
{
    RawState *raw = node->state;

    return raw->size < 0 ? MAX(node_size(node->file->node) - raw->offset, 0) : raw->size;
}

static void raw_take_options(BlockNode *node, const BlockdevOptions *options)
{
    RawState *raw = node->state;

    raw->offset = options->u.raw.has_offset ? options->u.raw.offset : 0;
    raw->size = options->u.raw.has_size ? options->u.raw.size : -1;
}

static bool raw_open(BlockNode *node, const BlockdevOptions *options, GError **error)
{
    bool window = options->u.raw.has_offset || options->u.raw.has_size;

    raw_take_options(node, options);
    if (!node_open_child(node, options->u.raw.file, "file", window ? CHILD_DATA : CHILD_FILTERED,
                         error)) {
        return false;
    }
    node_set_size(node, raw_current_size(node));
    return true;
}

static void commit_raw(void *opaque)
{
    ReopenState *state = opaque;

    raw_take_options(state->node, state->options);
}

static bool raw_reopen_prepare(ReopenState *state, UndoStack *undo, GError **error)
{
    static const UndoOps ops = { .commit = commit_raw };

    undo_push(undo, &ops, state);
    return true;
}

static void raw_child_perm(BlockNode *node, BlockChild *child, unsigned perm, unsigned shared,
                           unsigned *ret_perm, unsigned *ret_shared)
{
    node_perm_by_role(node, child->role, perm, shared, ret_perm, ret_shared);
    if (child->role == CHILD_DATA) { /* a window never grows */
        *ret_perm = perm;
    }
}

static int coroutine_fn raw_preadv(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                                   unsigned flags)
{
    RawState *raw = node->state;

    return child_co_preadv(node->file, raw->offset + offset, bytes, vec, flags);
}

static int coroutine_fn raw_pwritev(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                                    unsigned flags)
{
    RawState *raw = node->state;

    return child_co_pwritev(node->file, raw->offset + offset, bytes, vec, flags);
}

static int coroutine_fn raw_truncate(BlockNode *node, int64_t size, PreallocMode prealloc,
                                     GError **error)
{
    return child_co_truncate(node->file, size, prealloc, error);
}

static const char *const raw_options[] = { "offset", "size", NULL };

static const BlockDriver raw_driver = {
    .name = "raw",
    .state_size = sizeof(RawState),
    .open = raw_open,
    .reopen_prepare = raw_reopen_prepare,
    .reopen_options = raw_options,
    .child_perm = raw_child_perm,
    .current_size = raw_current_size,
    .co_preadv = raw_preadv,
    .co_pwritev = raw_pwritev,
    .co_truncate = raw_truncate,
};

/* --- copy-before-write and snapshot-access --- */

static bool filter_open(BlockNode *node, const BlockdevOptions *options, GError **error)
{
    if (!node_open_child(node, options->u.copy_before_write.file, "file", CHILD_FILTERED, error) ||
        !node_open_child(node, options->u.copy_before_write.target, "target", CHILD_OTHER, error)) {
        return false;
    }
    node_set_size(node, node_size(node->file->node));
    return true;
}

static void filter_child_perm(BlockNode *node, BlockChild *child, unsigned perm, unsigned shared,
                              unsigned *ret_perm, unsigned *ret_shared)
{
    bool used = node->parents->len > 0;

    if (child->role == CHILD_FILTERED) {
        *ret_perm = perm;
        *ret_shared = shared & ~(used ? PERM_WRITE | PERM_RESIZE : 0u);
    } else {
        *ret_perm = PERM_WRITE;
        *ret_shared = PERM_ALL & ~(PERM_WRITE | PERM_RESIZE);
    }
}

static int coroutine_fn filter_preadv(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                                      unsigned flags)
{
    return child_co_preadv(node->file, offset, bytes, vec, flags);
}

static int coroutine_fn filter_pwritev(BlockNode *node, int64_t offset, int64_t bytes,
                                       IoVector *vec, unsigned flags)
{
    int ret = child_co_pwritev(g_ptr_array_index(node->children, 1), offset, bytes, vec, flags);

    return ret ? ret : child_co_pwritev(node->file, offset, bytes, vec, flags);
}

static const BlockDriver filter_driver = {
    .name = "copy-before-write",
    .is_filter = true,
    .open = filter_open,
    .child_perm = filter_child_perm,
    .co_preadv = filter_preadv,
    .co_pwritev = filter_pwritev,
};

static bool view_open(BlockNode *node, const BlockdevOptions *options, GError **error)
{
    if (!node_open_child(node, options->u.snapshot_access.file, "file", CHILD_FILTERED, error)) {
        return false;
    }
    node_set_size(node, node_size(node->file->node));
    return true;
}

static const BlockDriver view_driver = {
    .name = "snapshot-access",
    .pins_children = true,
    .open = view_open,
    .co_preadv = filter_preadv,
};

void graph_drivers_register(void)
{
    event_loop_main();
    driver_register(&memory_driver);
    driver_register(&raw_driver);
    driver_register(&filter_driver);
    driver_register(&view_driver);
}

/* --- commands as text --- */

static void *parse(const QapiType *type, const char *text)
{
    GError *error = NULL;
    json_t *json = qapi_json_parse(text, strlen(text), &error);
    void *value;

    g_assert_no_error(error);
    value = qapi_decode(type, json, QAPI_DECODE_JSON, &error);
    g_assert_no_error(error);
    json_decref(json);
    return value;
}

BlockdevOptions *parse_options(const char *text)
{
    return parse(&qapi_type_BlockdevOptions, text);
}

static bool add_text(const char *text, GError **error)
{
    g_autoptr(BlockdevOptions) options = parse_options(text);

    return node_add(options, error);
}

BlockNode *add_node(const char *format, ...)
{
    g_autofree char *text = NULL;
    GError *error = NULL;
    va_list args;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    add_text(text, &error);
    g_assert_no_error(error);
    return node_next(NULL); /* the newest */
}

char *add_node_error(const char *format, ...)
{
    g_autofree char *text = NULL;
    GError *error = NULL;
    char *message;
    va_list args;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    g_assert_false(add_text(text, &error));
    message = g_strdup(error->message);
    g_error_free(error);
    return message;
}

bool reopen(GError **error, const char *format, ...)
{
    g_autoptr(BlockdevOptionsList) list = NULL;
    g_autofree char *text = NULL;
    va_list args;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    list = parse(&qapi_type_BlockdevOptionsList, text);
    return node_reopen(list, error);
}

void delete_node(const char *node_name)
{
    GError *error = NULL;

    node_delete(node_name, &error);
    g_assert_no_error(error);
}

void delete_all(void)
{
    node_close_all();
    g_assert_null(node_next(NULL));
    g_assert_null(backend_next(NULL));
}
