/* SPDX-License-Identifier: MIT */
/*
 * The filter `copy-before-write`: a disk in use, and the frozen view of it at one instant.
 *
 * The view is frozen when the filter is put over the disk. A part of the view is in one of three
 * places: *pending*, as it was, still on the disk; *copied*, in the target, because the
 * guest was about to change it; or *out of reach*, because it was not asked for (`bitmap`) or
 * was discarded from the view. The guest passes through to the disk; before it changes what is
 * pending, that is copied. What is out of reach is so in whole clusters; what is pending is so in
 * the copying engine's units, so that a small write costs a small copy.
 *
 * Invariants, with the copying engine's (block/copy/copy-task.c):
 *
 *  1. A guest's write, zero-write or discard goes to the disk only when nothing that it touches is
 *     pending, or the view is broken and no reader is on the disk.
 *  2. A unit stops being pending only while its range is held exclusively, after its old bytes
 *     are in the target (or nobody may read them any more).
 *  3. A reader of the view holds its range shared from before it looks what is pending until it has
 *     read what it found on the disk. By 2 and 1 no write reaches that part of the disk meanwhile,
 *     and none has since the freeze.
 *  4. What a reader found copied stays so: it reads the target without holding anything.
 *  5. The view is broken before a write goes past a failed copy; and a write goes past one
 *     only after all readers that may not know have left the disk. A broken view gives no bytes,
 *     so a copy that is still at work then may well read what the guest is writing.
 *  6. A range discarded from the view is out of reach before it stops being pending.
 *
 * So a write over what is not pending takes no lock at all, which is every write but the first to
 * a place, and readers and writers of different ranges never wait for each other.
 */
#include "block/copy.h"
#include "block/driver.h"
#include "block/drivers.h"
#include "util/error.h"
#include "util/event-loop.h"
#include "util/size.h"

#include <errno.h>

/* The most that a reader holds of the view at a time. */
#define READ_HOLD_MAX (512 * KiB)

#define NANOSECONDS INT64_C(1000000000)

typedef struct CbwState {
    BlockChild *target;
    CopyState *copy;
    RangeLock *ranges;   /* of `copy` */
    int64_t size;        /* of the view */
    DirtyBitmap *access; /* clusters that the view may read */
    DirtyBitmap *done;   /* clusters that the guest may write, for queries */
    OnCbwError on_error;
    int64_t timeout_ns; /* 0: none */

    atomic_bool broken;       /* the view is lost */
    atomic_bool readers_gone; /* no reader that found it whole is on the disk */

    /* Copies that a guest's write has stopped waiting for, and whether none may be added. */
    atomic_int abandoned;
    atomic_bool quiet;
} CbwState;

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
    if ((own->bitmap && !restrict_to(cbw, own->bitmap, error)) || !add_bitmaps(node, error)) {
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
    const BlockLimits *file = &node->file->node->limits;

    node->limits = (BlockLimits){
        .request_alignment = 1,
        .memory_alignment = file->memory_alignment,
        .optimal_transfer = file->optimal_transfer,
        .read_flags = file->read_flags,
        .write_flags = REQ_FUA | REQ_WRITE_UNCHANGED,
        .zero_flags = REQ_FUA | REQ_WRITE_UNCHANGED | REQ_MAY_UNMAP | REQ_NO_FALLBACK,
    };
}

/* --- copying before a write --- */

/* A copy with a time limit. Everything happens on the loop of the guest's write. */
typedef struct TimedCopy {
    BlockNode *node;
    int64_t offset, bytes;
    Coroutine *waiter; /* NULL when nobody waits, or it has been woken */
    bool done;
    bool abandoned;
    int ret;
} TimedCopy;

static void wake_waiter(TimedCopy *timed)
{
    Coroutine *waiter = g_steal_pointer(&timed->waiter);

    if (waiter) {
        coroutine_wake(waiter);
    }
}

static void time_is_up(void *opaque)
{
    wake_waiter(opaque);
}

static void forget_abandoned(CbwState *cbw)
{
    atomic_fetch_sub(&cbw->abandoned, 1);
    event_loop_notify(event_loop_main());
}

static void coroutine_fn timed_copy_entry(void *opaque)
{
    TimedCopy *timed = opaque;
    CbwState *cbw = timed->node->state;

    timed->ret = copy_range(cbw->copy, timed->offset, timed->bytes);
    timed->done = true;
    if (timed->abandoned) {
        g_free(timed);
        forget_abandoned(cbw);
    } else {
        wake_waiter(timed);
    }
}

static void coroutine_fn wait_until_done(TimedCopy *timed)
{
    while (!timed->done) {
        timed->waiter = coroutine_self();
        coroutine_yield();
    }
}

/* The time is up: leave the copy alone, unless the node is being drained, which means that
 * whatever we began has to end within our request. */
static bool try_abandon(CbwState *cbw, TimedCopy *timed)
{
    atomic_fetch_add(&cbw->abandoned, 1);
    if (atomic_load(&cbw->quiet)) {
        forget_abandoned(cbw);
        return false;
    }
    timed->abandoned = true;
    return true;
}

static int coroutine_fn copy_with_timeout(BlockNode *node, int64_t offset, int64_t bytes)
{
    CbwState *cbw = node->state;
    TimedCopy *timed = g_new0(TimedCopy, 1);
    EventTimer *timer;
    int ret;

    *timed = (TimedCopy){ .node = node, .offset = offset, .bytes = bytes };
    coroutine_start(timed_copy_entry, timed);
    if (!timed->done) {
        timer = event_timer_new(event_loop_current(), time_is_up, timed);
        event_timer_set(timer, event_loop_now_ns() + cbw->timeout_ns);
        timed->waiter = coroutine_self();
        coroutine_yield();
        event_timer_free(timer);
    }
    ret = timed->done ? timed->ret : -ETIMEDOUT;
    if (!timed->done) {
        if (cbw->on_error == ON_CBW_ERROR_BREAK_SNAPSHOT) {
            copy_cancel(cbw->copy); /* what is left of it is of no use */
        }
        if (try_abandon(cbw, timed)) {
            return ret;
        }
        wait_until_done(timed);
    }
    g_free(timed);
    return ret;
}

/* The view is lost: from here on readers fail. Then wait until those that began before are gone. */
static void coroutine_fn break_view(CbwState *cbw)
{
    RangeHold hold;

    if (atomic_load(&cbw->readers_gone)) {
        return;
    }
    atomic_store(&cbw->broken, true);
    copy_cancel(cbw->copy);
    range_lock_exclusive(cbw->ranges, &hold, 0, INT64_MAX);
    range_unlock(cbw->ranges, &hold);
    atomic_store(&cbw->readers_gone, true);
}

static int coroutine_fn copy_old_bytes(BlockNode *node, int64_t offset, int64_t bytes)
{
    CbwState *cbw = node->state;

    return cbw->timeout_ns ? copy_with_timeout(node, offset, bytes)
                           : copy_range(cbw->copy, offset, bytes);
}

/* Returns 0 when the guest may write the range. */
static int coroutine_fn before_write(BlockNode *node, int64_t offset, int64_t bytes, unsigned flags)
{
    CbwState *cbw = node->state;
    int ret = 0;

    if (flags & REQ_WRITE_UNCHANGED) {
        return 0;
    }
    if (copy_is_pending(cbw->copy, offset, bytes)) {
        ret = atomic_load(&cbw->broken) ? -ECANCELED : copy_old_bytes(node, offset, bytes);
        if (ret < 0 && cbw->on_error == ON_CBW_ERROR_BREAK_SNAPSHOT) {
            break_view(cbw);
            return 0;
        }
    }
    if (ret == 0) {
        bitmap_set_range(cbw->done, offset, bytes);
    }
    return ret;
}

static void cbw_drain_begin(BlockNode *node)
{
    CbwState *cbw = node->state;

    atomic_store(&cbw->quiet, true);
    while (atomic_load(&cbw->abandoned)) {
        event_loop_poll(event_loop_main(), true);
    }
}

static void cbw_drain_end(BlockNode *node)
{
    CbwState *cbw = node->state;

    atomic_store(&cbw->quiet, false);
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
    int ret = before_write(node, offset, bytes, flags);

    return ret < 0 ? ret : child_co_pwritev(node->file, offset, bytes, vec, flags);
}

static int coroutine_fn cbw_co_pwrite_zeroes(BlockNode *node, int64_t offset, int64_t bytes,
                                             unsigned flags)
{
    int ret = before_write(node, offset, bytes, flags);

    return ret < 0 ? ret : child_co_pwrite_zeroes(node->file, offset, bytes, flags);
}

static int coroutine_fn cbw_co_pdiscard(BlockNode *node, int64_t offset, int64_t bytes)
{
    int ret = before_write(node, offset, bytes, 0);

    return ret < 0 ? ret : child_co_pdiscard(node->file, offset, bytes);
}

/* The disk may grow beyond the view. To shrink it would be a write that we cannot copy before. */
static int coroutine_fn cbw_co_truncate(BlockNode *node, int64_t size, GError **error)
{
    CbwState *cbw = node->state;
    int ret;

    if (size < cbw->size) {
        merino_error(error, "Node '%s' keeps a frozen view of the disk, which cannot be shrunk",
                     node->node_name);
        return -ENOTSUP;
    }
    ret = child_co_truncate(node->file, size, error);
    if (ret == 0) {
        node_set_size(node, node_size(node->file->node));
    }
    return ret;
}

/* --- the view --- */

/* A range of the view with its bytes in one place. While they are on the disk it is held, for as
 * long as a guest's write to the same place may have to wait: readers take short ones. */
typedef struct ViewPiece {
    int64_t bytes;
    bool on_disk;
    RangeHold hold;
} ViewPiece;

static int coroutine_fn view_begin(CbwState *cbw, int64_t offset, int64_t bytes, ViewPiece *ret)
{
    int64_t end = offset + bytes;

    range_lock_shared(cbw->ranges, &ret->hold, offset, end - offset);
    if (atomic_load(&cbw->broken) || bitmap_next_clean(cbw->access, offset, end) == offset) {
        range_unlock(cbw->ranges, &ret->hold);
        return -EACCES;
    }
    end = bitmap_next_clean(cbw->access, offset, end);
    ret->on_disk = copy_next_pending(cbw->copy, offset, end) == offset;
    if (ret->on_disk) {
        ret->bytes = copy_next_settled(cbw->copy, offset, end) - offset;
    } else {
        ret->bytes = copy_next_pending(cbw->copy, offset, end) - offset;
        range_unlock(cbw->ranges, &ret->hold);
    }
    return 0;
}

static void view_end(CbwState *cbw, ViewPiece *piece)
{
    if (piece->on_disk) {
        range_unlock(cbw->ranges, &piece->hold);
    }
}

static int coroutine_fn view_read_piece(BlockNode *node, int64_t offset, ViewPiece *piece,
                                        IoVector *vec, int64_t done)
{
    CbwState *cbw = node->state;
    BlockChild *place = piece->on_disk ? node->file : cbw->target;
    IoVector slice;
    int ret;

    iov_init(&slice);
    iov_add_slice(&slice, vec, done, piece->bytes);
    ret = child_co_preadv(place, offset + done, piece->bytes, &slice, 0);
    view_end(cbw, piece);
    iov_done(&slice);
    return ret;
}

static int coroutine_fn cbw_co_preadv_snapshot(BlockNode *node, int64_t offset, int64_t bytes,
                                               IoVector *vec)
{
    CbwState *cbw = node->state;
    ViewPiece piece;
    int ret = 0;

    if (bitmap_next_clean(cbw->access, offset, offset + bytes) < offset + bytes) {
        return -EACCES;
    }
    for (int64_t done = 0; done < bytes && ret == 0; done += piece.bytes) {
        ret = view_begin(cbw, offset + done, MIN(bytes - done, READ_HOLD_MAX), &piece);
        if (ret < 0) {
            return ret;
        }
        ret = view_read_piece(node, offset, &piece, vec, done);
    }
    return ret;
}

/* Nothing lies behind the view: what the disk's whole chain says of a range is what it is. */
static int coroutine_fn cbw_co_snapshot_block_status(BlockNode *node, int64_t offset, int64_t bytes,
                                                     BlockStatus *ret_status)
{
    CbwState *cbw = node->state;
    BlockNode *place;
    ViewPiece piece;
    int ret = view_begin(cbw, offset, bytes, &piece);

    if (ret < 0) {
        return ret;
    }
    place = piece.on_disk ? node->file->node : cbw->target->node;
    ret = node_co_block_status_above(place, NULL, offset, piece.bytes, ret_status);
    view_end(cbw, &piece);
    if (ret == 0) {
        ret_status->flags |= BLOCK_STATUS_ALLOCATED;
    }
    return ret;
}

static int coroutine_fn cbw_co_pdiscard_snapshot(BlockNode *node, int64_t offset, int64_t bytes)
{
    CbwState *cbw = node->state;
    int64_t cluster = copy_cluster_size(cbw->copy);
    int64_t end = offset + bytes >= cbw->size ? cbw->size : align_down(offset + bytes, cluster);

    offset = align_up(offset, cluster);
    if (offset >= end) {
        return 0;
    }
    bitmap_reset_range(cbw->access, offset, end - offset);
    copy_forget(cbw->copy, offset, end - offset);
    return child_co_pdiscard(cbw->target, offset, end - offset);
}

static const BlockDriver copy_before_write_driver = {
    .name = "copy-before-write",
    .state_size = sizeof(CbwState),
    .is_filter = true,
    .open = cbw_open,
    .close = cbw_close,
    .child_perm = cbw_child_perm,
    .refresh_limits = cbw_refresh_limits,
    .co_preadv = cbw_co_preadv,
    .co_pwritev = cbw_co_pwritev,
    .co_pwrite_zeroes = cbw_co_pwrite_zeroes,
    .co_pdiscard = cbw_co_pdiscard,
    .co_truncate = cbw_co_truncate,
    .co_preadv_snapshot = cbw_co_preadv_snapshot,
    .co_snapshot_block_status = cbw_co_snapshot_block_status,
    .co_pdiscard_snapshot = cbw_co_pdiscard_snapshot,
    .drain_begin = cbw_drain_begin,
    .drain_end = cbw_drain_end,
};

void copy_before_write_driver_register(void)
{
    driver_register(&copy_before_write_driver);
}
