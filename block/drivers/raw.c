/* SPDX-License-Identifier: MIT */
/*
 * The driver `raw`: the bytes of its file, or a window on them with `offset` and `size`.
 *
 * A disk's size is a multiple of RAW_SECTOR: without `size` the window ends at the end of the file,
 * rounded up, and what the file lacks there reads as zeroes.
 */
#include "block/driver.h"
#include "block/drivers.h"
#include "util/error.h"
#include "util/size.h"

#include <errno.h>
#include <inttypes.h>

#define RAW_SECTOR 512

typedef struct RawState {
    int64_t offset;
    int64_t size; /* of the window, as far as `has_size` */
    bool has_size;
} RawState;

/* --- the window --- */

static bool window_from_options(const BlockdevOptionsRaw *options, RawState *ret, GError **error)
{
    RawState window = {
        .offset = options->has_offset ? options->offset : 0,
        .size = options->has_size ? options->size : 0,
        .has_size = options->has_size,
    };

    if (window.offset < 0 || window.size < 0) {
        merino_error(error, "Parameter '%s' expects a non-negative number below 2^64",
                     window.offset < 0 ? "offset" : "size");
        return false;
    }
    *ret = window;
    return true;
}

static bool window_check(const RawState *window, int64_t real_size, GError **error)
{
    if (window->offset > real_size) {
        merino_error(error,
                     "Offset (%" PRId64 ") cannot be greater than size of the containing file "
                     "(%" PRId64 ")",
                     window->offset, real_size);
        return false;
    }
    if (window->has_size && real_size - window->offset < window->size) {
        merino_error(error,
                     "The sum of offset (%" PRId64 ") and size (%" PRId64
                     ") has to be smaller or equal to the  actual size of the containing file "
                     "(%" PRId64 ")",
                     window->offset, window->size, real_size);
        return false;
    }
    if (!is_aligned(window->size, RAW_SECTOR)) {
        merino_error(error, "Specified size is not multiple of %d", RAW_SECTOR);
        return false;
    }
    return true;
}

static int64_t window_size(const RawState *window, int64_t real_size)
{
    return window->has_size ? window->size
                            : align_up(MAX(real_size - window->offset, 0), RAW_SECTOR);
}

/* A whole file is passed on as it is; in a window the size of the file matters to us. */
static ChildRole window_role(const RawState *window)
{
    return window->offset || window->has_size ? CHILD_DATA : CHILD_FILTERED;
}

/* --- control --- */

static int64_t raw_current_size(BlockNode *node)
{
    return window_size(node->state, node_size(node->file->node));
}

static bool raw_open(BlockNode *node, const BlockdevOptions *options, GError **error)
{
    RawState *raw = node->state;
    BlockChild *file;

    if (!window_from_options(&options->u.raw, raw, error)) {
        return false;
    }
    file = node_open_child(node, options->u.raw.file, "file", window_role(raw), error);
    if (!file || !window_check(raw, node_size(file->node), error)) {
        return false;
    }
    node_set_size(node, raw_current_size(node));
    return true;
}

/* Users of a window never make the file larger, unless they resize the window themselves. */
static void raw_child_perm(BlockNode *node, BlockChild *child, unsigned perm, unsigned shared,
                           unsigned *ret_perm, unsigned *ret_shared)
{
    *ret_perm = perm;
    *ret_shared = child->role == CHILD_DATA ? shared & ~(unsigned)PERM_RESIZE : shared;
}

static bool raw_can_grow(const BlockNode *node)
{
    const RawState *raw = node->state;

    return !raw->has_size && node_can_grow(node->file->node);
}

typedef struct WindowChange {
    BlockNode *node;
    RawState old;
} WindowChange;

static void abort_window(void *opaque)
{
    WindowChange *change = opaque;

    *(RawState *)change->node->state = change->old;
    change->node->file->role = window_role(&change->old);
}

static bool raw_reopen_prepare(ReopenState *state, UndoStack *undo, GError **error)
{
    static const UndoOps ops = { .abort = abort_window, .clean = g_free };
    BlockNode *node = state->node;
    RawState *raw = node->state;
    int64_t real_size = node_size(node->file->node);
    WindowChange *change;
    RawState window;

    if (!window_from_options(&state->options->u.raw, &window, error) ||
        !window_check(&window, real_size, error)) {
        return false;
    }
    if (window_size(&window, real_size) != node_size(node) &&
        !bitmap_list_check_resize(node->bitmaps, window_size(&window, real_size), error)) {
        return false;
    }
    change = g_new(WindowChange, 1);
    *change = (WindowChange){ node, *raw };
    undo_push(undo, &ops, change);
    *raw = window;
    node->file->role = window_role(raw);
    return true;
}

static int coroutine_fn raw_co_truncate(BlockNode *node, int64_t size, PreallocMode prealloc,
                                        GError **error)
{
    const RawState *raw = node->state;
    int ret;

    if (raw->has_size) {
        merino_error(error, "Cannot resize fixed-size raw disks");
        return -ENOTSUP;
    }
    if (size > INT64_MAX - raw->offset) {
        merino_error(error, "Disk size too large for the chosen offset");
        return -EINVAL;
    }
    ret = child_co_truncate(node->file, raw->offset + size, prealloc, error);
    if (ret == 0) {
        node_set_size(node, raw_current_size(node));
    }
    return ret;
}

/* --- requests --- */

static int64_t moved(const BlockNode *node, int64_t offset)
{
    const RawState *raw = node->state;

    return raw->offset + offset;
}

static int coroutine_fn raw_co_preadv(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                                      unsigned flags)
{
    node_debug_event(node->file->node, BLKDEBUG_EVENT_READ_AIO);
    return child_co_preadv(node->file, moved(node, offset), bytes, vec, flags);
}

static int coroutine_fn raw_co_pwritev(BlockNode *node, int64_t offset, int64_t bytes,
                                       IoVector *vec, unsigned flags)
{
    node_debug_event(node->file->node, BLKDEBUG_EVENT_WRITE_AIO);
    return child_co_pwritev(node->file, moved(node, offset), bytes, vec, flags);
}

static int coroutine_fn raw_co_pwrite_zeroes(BlockNode *node, int64_t offset, int64_t bytes,
                                             unsigned flags)
{
    return child_co_pwrite_zeroes(node->file, moved(node, offset), bytes, flags);
}

static int coroutine_fn raw_co_pdiscard(BlockNode *node, int64_t offset, int64_t bytes)
{
    return child_co_pdiscard(node->file, moved(node, offset), bytes);
}

/* Nobody looks at backing files below a raw disk but here. */
static int coroutine_fn raw_co_block_status(BlockNode *node, int64_t offset, int64_t bytes,
                                            BlockStatus *ret_status)
{
    return node_co_block_status_above(node->file->node, NULL, moved(node, offset), bytes,
                                      ret_status);
}

static int64_t raw_cluster_size(BlockNode *node)
{
    return node_cluster_size(node->file->node);
}

static const char *const reopen_options[] = { "offset", "size", NULL };

static const BlockDriver raw_driver = {
    .name = "raw",
    .state_size = sizeof(RawState),
    .reopen_options = reopen_options,
    .open = raw_open,
    .reopen_prepare = raw_reopen_prepare,
    .child_perm = raw_child_perm,
    .co_preadv = raw_co_preadv,
    .co_pwritev = raw_co_pwritev,
    .co_pwrite_zeroes = raw_co_pwrite_zeroes,
    .co_pdiscard = raw_co_pdiscard,
    .co_block_status = raw_co_block_status,
    .co_truncate = raw_co_truncate,
    .current_size = raw_current_size,
    .can_grow = raw_can_grow,
    .cluster_size = raw_cluster_size,
};

void raw_driver_register(void)
{
    driver_register(&raw_driver);
}
