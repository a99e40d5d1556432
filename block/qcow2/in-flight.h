/* SPDX-License-Identifier: MIT */
/*
 * Ranges of the disk whose clusters are being changed by a request that does not hold `lock`: an
 * allocation whose data is being written. Whoever wants to change the same clusters waits.
 *
 * All under q->lock.
 */
#ifndef MERINO_QCOW2_IN_FLIGHT_H
#define MERINO_QCOW2_IN_FLIGHT_H

#include "qcow2.h"

/* Lies in the frame of the request. */
typedef struct Qcow2Pending {
    int64_t guest, bytes;
    CoQueue waiters;
    struct Qcow2Pending *next, *previous;
} Qcow2Pending;

Qcow2InFlight *qcow2_in_flight_new(void);
void qcow2_in_flight_free(Qcow2InFlight *in_flight); /* it is empty */

/* When the range overlaps one that is in flight: wait until that has ended and return true; `lock`
 * was dropped meanwhile, so that everything may be different now. */
bool coroutine_fn qcow2_in_flight_wait(Qcow2 *q, int64_t guest, int64_t bytes);
void qcow2_in_flight_add(Qcow2 *q, Qcow2Pending *pending, int64_t guest, int64_t bytes);
void qcow2_in_flight_remove(Qcow2 *q, Qcow2Pending *pending);

#endif
