/* SPDX-License-Identifier: MIT */
/*
 * The filter `copy-before-write`: a disk in use, and the frozen view of it at one instant.
 *
 * The view is frozen when the filter is put over the disk. A part of the view is in one of three
 * places: *pending*, as it was, still on the disk; *copied*, because the guest was about to change
 * it; or *out of reach*, because it was not asked for (`bitmap`) or was discarded from the view.
 * The guest passes through to the disk; before it changes what is pending, that is copied. What is
 * out of reach is so in whole clusters; what is pending is so in the copying engine's units, so
 * that a small write costs a small copy.
 *
 * What is copied is in the target, or, with `staging-size`, on its way there in a buffer in
 * memory: either way it is *safe*, and the guest goes on.
 *
 * Invariants, with the copying engine's (block/copy/copy-task.c):
 *
 *  1. A guest's write, zero-write or discard goes to the disk only when nothing that it touches is
 *     pending, or the view is broken and no reader is on the disk.
 *  2. A unit stops being pending only while its range is held exclusively, after its old bytes
 *     are safe (or nobody may read them any more).
 *  3. A reader of the view holds its range shared from before it looks what is pending until it has
 *     read what it found on the disk. By 2 and 1 no write reaches that part of the disk meanwhile,
 *     and none has since the freeze.
 *  4. What a reader found copied stays so: it reads memory or the target without holding anything.
 *     A staged unit leaves the buffer only when the target has it, so what is copied and not in
 *     the buffer is in the target; and its memory is used anew only when nobody reads it.
 *  5. The view is broken before a write goes past a failed copy; and a write goes past one
 *     only after all readers that may not know have left the disk. A broken view gives no bytes,
 *     so a copy that is still at work then may well read what the guest is writing.
 *  6. A range discarded from the view is out of reach before it stops being pending; what is staged
 *     of it is dropped.
 *  7. The view is broken before staged bytes are dropped that it may still need, and a reader of
 *     what is copied looks whether the view is whole after it has read.
 *  8. While the node is drained nothing is on its way to the target, and no request waits for room
 *     in the buffer: it copies to the target by itself.
 *
 * When the target fails, `on-cbw-error` decides about the guest's write that waits for the copy.
 * Where the bytes were staged no write waits any more: it was acknowledged. Then the view breaks,
 * whatever `on-cbw-error` says. When the filter goes, what is still staged goes with it, since
 * the view that could read it is gone as well.
 *
 * So a write over what is not pending takes no lock at all, which is every write but the first to
 * a place, and readers and writers of different ranges never wait for each other.
 */
#include "block/drivers.h"
#include "cbw.h"
#include "util/error.h"

#include <errno.h>

/* --- opening --- */

static DirtyBitmap *find_bitmap(const BlockDirtyBitmap *ref, BlockNode **ret_node, GError **error)
{
    BlockNode *node = node_find(ref->node);

    if (!node) {
        merino_error(error, "Node '%s' not found", ref->node);
        return NULL;
    }
    *ret_node = node;
    return bitmap_lookup(node->bitmaps, ref->name, error);
}

static bool restrict_to(CbwState *cbw, const BlockDirtyBitmap *ref, GError **error)
{
    BlockNode *node;
    DirtyBitmap *bitmap = find_bitmap(ref, &node, error);
    DrainSection *section;
    bool ok;

    if (!bitmap) {
        return false;
    }
    section = drain_begin_node(node);
    ok = copy_restrict(cbw->copy, bitmap, error);
    drain_end(section);
    return ok;
}

static DirtyBitmap *add_bitmap(BlockNode *node, int64_t granularity, GError **error)
{
    BitmapAddOptions options = { .granularity = granularity, .disabled = true };

    return bitmap_add(node->bitmaps, &options, NULL, error);
}

static bool add_bitmaps(BlockNode *node, GError **error)
{
    CbwState *cbw = node->state;
    int64_t cluster = copy_cluster_size(cbw->copy);
    DirtyBitmap *pending = copy_pending_bitmap(cbw->copy);

    cbw->done = add_bitmap(node, cluster, error);
    cbw->access = cbw->done ? add_bitmap(node, cluster, error) : NULL;
    if (!cbw->access) {
        return false;
    }
    return bitmap_merge(cbw->access, &pending, 1, NULL, error);
}

static void cbw_close(BlockNode *node)
{
    CbwState *cbw = node->state;

    if (cbw->access) {
        bitmap_remove(cbw->access, NULL, NULL);
    }
    if (cbw->done) {
        bitmap_remove(cbw->done, NULL, NULL);
    }
    copy_free(cbw->copy);
    g_free(atomic_load(&cbw->why));
}

static bool cbw_open(BlockNode *node, const BlockdevOptions *options, GError **error)
{
    const BlockdevOptionsCbw *own = &options->u.copy_before_write;
    CbwState *cbw = node->state;
    BlockChild *file = node_open_child(node, own->file, "file", CHILD_FILTERED, error);

    if (!file) {
        return false;
    }
    cbw->target = node_open_child(node, own->target, "target", CHILD_OTHER, error);
    if (!cbw->target) {
        return false;
    }
    cbw->size = node_size(file->node);
    cbw->on_error = own->has_on_cbw_error ? own->on_cbw_error : ON_CBW_ERROR_BREAK_GUEST_WRITE;
    cbw->timeout_ns = own->has_cbw_timeout ? own->cbw_timeout * NANOSECONDS : 0;
    node_set_size(node, cbw->size);
    cbw->copy =
        copy_new(file, cbw->target, own->has_min_cluster_size ? own->min_cluster_size : 0, error);
    if (!cbw->copy) {
        return false;
    }
    cbw->ranges = copy_ranges(cbw->copy);
    if ((own->bitmap && !restrict_to(cbw, own->bitmap, error)) || !add_bitmaps(node, error) ||
        (own->has_staging_size && own->staging_size &&
         !copy_stage(cbw->copy, (int64_t)MIN(own->staging_size, INT64_MAX), cbw_staging_failed,
                     node, error))) {
        cbw_close(node);
        return false;
    }
    return true;
}

/* Once the filter has users the disk is written only through it. Until then it may be put in place
 * under writers. */
static void cbw_child_perm(BlockNode *node, BlockChild *child, unsigned perm, unsigned shared,
                           unsigned *ret_perm, unsigned *ret_shared)
{
    if (child == node->file) {
        *ret_perm = perm | (perm & PERM_WRITE ? PERM_CONSISTENT_READ : 0);
        *ret_shared = shared;
        if (node->parents->len) {
            *ret_shared &= ~(unsigned)(PERM_WRITE | PERM_RESIZE);
        }
    } else {
        *ret_perm = PERM_WRITE;
        *ret_shared = PERM_ALL & ~PERM_RESIZE;
    }
}

static void cbw_refresh_limits(BlockNode *node)
{
    node_take_file_limits(node);
    node->limits.write_flags |= REQ_FUA;
    node->limits.zero_flags |= REQ_FUA;
}

/* --- the guest --- */

static int coroutine_fn cbw_co_preadv(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                                      unsigned flags)
{
    return child_co_preadv(node->file, offset, bytes, vec, flags);
}

static int coroutine_fn cbw_co_pwritev(BlockNode *node, int64_t offset, int64_t bytes,
                                       IoVector *vec, unsigned flags)
{
    int ret = cbw_before_write(node, offset, bytes, flags);

    return ret < 0 ? ret : child_co_pwritev(node->file, offset, bytes, vec, flags);
}

static int coroutine_fn cbw_co_pwrite_zeroes(BlockNode *node, int64_t offset, int64_t bytes,
                                             unsigned flags)
{
    int ret = cbw_before_write(node, offset, bytes, flags);

    return ret < 0 ? ret : child_co_pwrite_zeroes(node->file, offset, bytes, flags);
}

static int coroutine_fn cbw_co_pdiscard(BlockNode *node, int64_t offset, int64_t bytes)
{
    int ret = cbw_before_write(node, offset, bytes, 0);

    return ret < 0 ? ret : child_co_pdiscard(node->file, offset, bytes);
}

/* The disk may grow beyond the view. To shrink it would be a write that we cannot copy before. */
static int coroutine_fn cbw_co_truncate(BlockNode *node, int64_t size, PreallocMode prealloc,
                                        GError **error)
{
    CbwState *cbw = node->state;
    int ret;

    if (size < cbw->size) {
        merino_error(error, "Node '%s' keeps a frozen view of the disk, which cannot be shrunk",
                     node->node_name);
        return -ENOTSUP;
    }
    ret = child_co_truncate(node->file, size, prealloc, error);
    if (ret == 0) {
        node_set_size(node, node_size(node->file->node));
    }
    return ret;
}

static const char *const weak_options[] = { "cbw-timeout", "on-cbw-error", NULL };

static const BlockDriver copy_before_write_driver = {
    .name = "copy-before-write",
    .state_size = sizeof(CbwState),
    .is_filter = true,
    .weak_options = weak_options,
    .open = cbw_open,
    .close = cbw_close,
    .child_perm = cbw_child_perm,
    .refresh_limits = cbw_refresh_limits,
    .co_preadv = cbw_co_preadv,
    .co_pwritev = cbw_co_pwritev,
    .co_pwrite_zeroes = cbw_co_pwrite_zeroes,
    .co_pdiscard = cbw_co_pdiscard,
    .co_truncate = cbw_co_truncate,
    .snapshot_size = cbw_snapshot_size,
    .co_preadv_snapshot = cbw_co_preadv_snapshot,
    .co_snapshot_block_status = cbw_co_snapshot_block_status,
    .co_pdiscard_snapshot = cbw_co_pdiscard_snapshot,
    .drain_begin = cbw_drain_begin,
    .drain_end = cbw_drain_end,
    .specific_info = cbw_specific_info,
};

void copy_before_write_driver_register(void)
{
    driver_register(&copy_before_write_driver);
}
