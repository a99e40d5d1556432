/* SPDX-License-Identifier: MIT */
/*
 * The frozen view that a copy-before-write node keeps: reading it, its block status, and discarding
 * what will not be read again.
 */
#include "cbw.h"
#include "util/size.h"

#include <errno.h>

/* The most that a reader holds of the view at a time. */
#define READ_HOLD_MAX (512 * KiB)

/* How far block status looks at once for what is staged. */
#define STATUS_MAX (64 * MiB)

/* A range of the view with its bytes in one place. While they are on the disk it is held, for as
 * long as a guest's write to the same place may have to wait: readers take short ones. */
typedef struct ViewPiece {
    int64_t bytes;
    bool on_disk; /* else staged, or in the target */
    RangeHold hold;
} ViewPiece;

int64_t cbw_snapshot_size(const BlockNode *node)
{
    const CbwState *cbw = node->state;

    return cbw->size;
}

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

/* Returns whether what was read meanwhile is the view's: when that was broken, staged bytes were
 * dropped, and then the target was not what it was taken for. */
static int view_end(CbwState *cbw, ViewPiece *piece)
{
    if (piece->on_disk) {
        range_unlock(cbw->ranges, &piece->hold);
        return 0;
    }
    return atomic_load(&cbw->broken) ? -EACCES : 0;
}

static int coroutine_fn read_from(BlockChild *place, int64_t offset, int64_t bytes, IoVector *vec,
                                  int64_t at)
{
    IoVector slice;
    int ret;

    iov_init(&slice);
    iov_add_slice(&slice, vec, at, bytes);
    ret = child_co_preadv(place, offset, bytes, &slice, 0);
    iov_done(&slice);
    return ret;
}

/* Staged parts from memory, the rest from the target. */
static int coroutine_fn read_copied(CbwState *cbw, int64_t offset, int64_t end, IoVector *vec,
                                    int64_t at)
{
    int ret = 0;

    while (ret == 0 && offset < end) {
        int64_t bytes = copy_read_staged(cbw->copy, offset, end, vec, at);

        if (!bytes) {
            bytes = copy_next_staged(cbw->copy, offset, end) - offset;
            ret = read_from(cbw->target, offset, bytes, vec, at);
        }
        offset += bytes;
        at += bytes;
    }
    return ret;
}

int coroutine_fn cbw_co_preadv_snapshot(BlockNode *node, int64_t offset, int64_t bytes,
                                        IoVector *vec)
{
    CbwState *cbw = node->state;
    ViewPiece piece;
    int ret = 0;

    if (bitmap_next_clean(cbw->access, offset, offset + bytes) < offset + bytes) {
        return -EACCES;
    }
    for (int64_t done = 0; done < bytes && ret == 0; done += piece.bytes) {
        int64_t at = offset + done;
        int lost;

        ret = view_begin(cbw, at, MIN(bytes - done, READ_HOLD_MAX), &piece);
        if (ret < 0) {
            return ret;
        }
        ret = piece.on_disk ? read_from(node->file, at, piece.bytes, vec, done)
                            : read_copied(cbw, at, at + piece.bytes, vec, done);
        lost = view_end(cbw, &piece);
        ret = lost < 0 ? lost : ret;
    }
    return ret;
}

static int coroutine_fn copied_status(CbwState *cbw, int64_t offset, int64_t bytes,
                                      BlockStatus *ret_status)
{
    int64_t end = offset + MIN(bytes, STATUS_MAX);
    bool zero;
    int64_t staged = copy_staged(cbw->copy, offset, end, &zero);

    if (staged) {
        *ret_status = (BlockStatus){
            .flags = zero ? BLOCK_STATUS_ZERO : BLOCK_STATUS_DATA,
            .bytes = staged,
        };
        return 0;
    }
    if (copy_staged_bytes(cbw->copy)) {
        bytes = copy_next_staged(cbw->copy, offset, end) - offset;
    }
    return node_co_block_status_above(cbw->target->node, NULL, offset, bytes, ret_status);
}

/* Nothing lies behind the view: what the disk's whole chain says of a range is what it is. */
int coroutine_fn cbw_co_snapshot_block_status(BlockNode *node, int64_t offset, int64_t bytes,
                                              BlockStatus *ret_status)
{
    CbwState *cbw = node->state;
    ViewPiece piece;
    int lost, ret = view_begin(cbw, offset, bytes, &piece);

    if (ret < 0) {
        return ret;
    }
    ret = piece.on_disk
              ? node_co_block_status_above(node->file->node, NULL, offset, piece.bytes, ret_status)
              : copied_status(cbw, offset, piece.bytes, ret_status);
    lost = view_end(cbw, &piece);
    if (ret == 0) {
        ret_status->flags |= BLOCK_STATUS_ALLOCATED;
    }
    return lost < 0 ? lost : ret;
}

int coroutine_fn cbw_co_pdiscard_snapshot(BlockNode *node, int64_t offset, int64_t bytes)
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
