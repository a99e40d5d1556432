/* SPDX-License-Identifier: MIT */
/*
 * What the files of the filter `copy-before-write` share. The invariants are in
 * copy-before-write.c.
 */
#ifndef MERINO_FILTERS_CBW_H
#define MERINO_FILTERS_CBW_H

#include "block/copy.h"
#include "block/driver.h"

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
    _Atomic(char *) why;      /* in words; set once, soon after `broken` */

    /* Copies that a guest's write has stopped waiting for, and whether none may be added. */
    atomic_int abandoned;
    atomic_bool quiet;
} CbwState;

/* --- before a write (cbw-write.c) --- */

/* Returns 0 when the guest may write the range. */
int coroutine_fn cbw_before_write(BlockNode *node, int64_t offset, int64_t bytes, unsigned flags);

/* The copying engine could not write what it had staged. */
void cbw_staging_failed(void *opaque, int ret);

void cbw_drain_begin(BlockNode *node);
void cbw_drain_end(BlockNode *node);

/* The driver's report. */
ImageInfoSpecific *cbw_specific_info(BlockNode *node, GError **error);

/* --- the view (cbw-view.c): functions of the driver's table --- */

int64_t cbw_snapshot_size(const BlockNode *node);
int coroutine_fn cbw_co_preadv_snapshot(BlockNode *node, int64_t offset, int64_t bytes,
                                        IoVector *vec);
int coroutine_fn cbw_co_snapshot_block_status(BlockNode *node, int64_t offset, int64_t bytes,
                                              BlockStatus *ret_status);
int coroutine_fn cbw_co_pdiscard_snapshot(BlockNode *node, int64_t offset, int64_t bytes);

#endif
