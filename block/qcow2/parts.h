/* SPDX-License-Identifier: MIT */
/*
 * Parts of one request that are under way at once, each in a coroutine of its own.
 *
 * A request over scattered clusters starts a few parts and then another one whenever one has ended.
 * It keeps what they need in its own frame, in as many slots, and does not end before them. Parts
 * run on its thread, so none of this needs a lock. After a failure no more parts begin, and the
 * first error is what the request returns.
 */
#ifndef MERINO_QCOW2_PARTS_H
#define MERINO_QCOW2_PARTS_H

#include "util/coroutine.h"

#define QCOW2_PARTS_MAX 8

typedef struct Qcow2Parts {
    unsigned busy; /* one bit a slot */
    int ret;       /* the first error, or 0 */
    Coroutine *waiter;
} Qcow2Parts;

/* A slot for the next part: waits until one is free. -1: a part has failed. */
int coroutine_fn qcow2_parts_take(Qcow2Parts *parts);
/* The part in the slot has ended; or never began. Its frame is not touched any more. */
void qcow2_parts_end(Qcow2Parts *parts, int slot, int ret);
/* Wait until all have ended. Returns the first error, `ret` among them. */
int coroutine_fn qcow2_parts_wait(Qcow2Parts *parts, int ret);

#endif
