/* SPDX-License-Identifier: MIT */
/*
 * What the files of the copying engine share. The invariants are in copy-task.c.
 */
#ifndef MERINO_COPY_INTERNAL_H
#define MERINO_COPY_INTERNAL_H

#include "block/copy.h"
#include "staging.h"
#include "util/event-loop.h"

/* Buffers of one unit that are kept for the next copies. */
#define SPARE_BUFFERS 16

typedef struct CopyTask {
    int64_t offset, end; /* whole units, all pending */
    bool at_work;        /* else it waits for its turn, and may still grow */
    CoQueue waiters;
    struct CopyTask *next, *previous;
} CopyTask;

struct CopyState {
    BlockChild *source, *target;
    BlockNode *disk; /* whose list has `shown`; the source, or beneath filters */
    int64_t cluster;
    int64_t unit;     /* bytes of a bit of `pending` */
    int64_t size;     /* of the source at the beginning */
    BitmapList *list; /* of `pending` alone */
    DirtyBitmap *pending;
    DirtyBitmap *shown; /* of the source: clusters with something pending, for queries */
    RangeLock *ranges;
    atomic_bool cancelled;
    _Atomic int64_t bytes_done;

    Staging *staging; /* or NULL; then what belongs to it is not used */
    EventLoop *writer_loop;
    CopyFailedFn *failed_fn;
    void *failed_opaque;

    GMutex lock; /* guards what follows */
    CopyTask *tasks;
    unsigned at_work; /* tasks */
    CoQueue turns;    /* tasks that wait for others to end */
    void *spare[SPARE_BUFFERS];
    size_t n_spare;
    unsigned writers, max_writers; /* of staged bytes */
    unsigned max_run;              /* units that one of them writes at a time */
    unsigned parked;
    bool write_failed;
};

/* Copy the task's bytes and settle them, as far as it goes. */
int coroutine_fn copy_task_bytes(CopyState *copy, const CopyTask *task);

/* These units are safe: nobody needs to copy them any more. */
void coroutine_fn copy_settle(CopyState *copy, int64_t offset, int64_t end);

/* Write zeroes to the target unless they are there. */
int coroutine_fn copy_write_zeroes(CopyState *copy, int64_t offset, int64_t bytes);

/* Something was staged: see that it is written, or dropped when writing has failed. */
void copy_wake_writer(CopyState *copy);

#endif
