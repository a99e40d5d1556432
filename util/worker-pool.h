/* SPDX-License-Identifier: MIT */
/*
 * The process's pool of worker threads, for system calls that block and have no other way.
 *
 * Threads are made when work comes and none is idle, up to WORKER_MAX, and end after being idle
 * for a while. Items run in the order of their submission, several at a time.
 */
#ifndef MERINO_WORKER_POOL_H
#define MERINO_WORKER_POOL_H

#define WORKER_MAX 64

typedef struct WorkItem {
    struct WorkItem *next;
    void (*run)(struct WorkItem *item);
} WorkItem;

/* Run `item` on a worker, soon. `item` must live until its `run` is called, which may free it.
 * Any thread. */
void worker_pool_submit(WorkItem *item);

#endif
