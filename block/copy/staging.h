/* SPDX-License-Identifier: MIT */
/*
 * The staging buffer: old bytes that are safe in memory, on their way to the target.
 *
 * It has a fixed number of slots of one unit each. A unit is in it at most once, and once only: it
 * is *staged*, then *on its way* in a request to the target, then gone. While it is in the buffer
 * readers are served from there. Whoever stages reserves slots first; when none is free he waits
 * for one, in the order of arrival.
 *
 * Units are numbers here, not bytes. All functions but new and free may be called on any thread;
 * the inner lock is held for short, and nobody waits or copies memory under it.
 */
#ifndef MERINO_COPY_STAGING_H
#define MERINO_COPY_STAGING_H

#include "block/io.h"

typedef struct Staging Staging;

/* The most units in one run. */
#define STAGING_RUN_MAX 256

/* Neighbouring units in the buffer that are alike. The memory of a run of zeroes means nothing. */
typedef struct StagedRun {
    int64_t first;
    unsigned n;
    bool zero;
    uint32_t slots[STAGING_RUN_MAX];
} StagedRun;

/* For units 0 to `units` - 1. NULL with an error when `bytes` are too few for one, or more than
 * there is address space. */
Staging *staging_new(int64_t bytes, int64_t unit_bytes, int64_t units, GError **error);
void staging_free(Staging *staging); /* nobody is at work; NULL ok */

/* --- filling --- */

/* Take 1 to `n` slots (at most STAGING_RUN_MAX) for a run, as many as are free. Waits while there
 * is none; returns false when the buffer is closed. */
bool coroutine_fn staging_reserve(Staging *staging, int64_t first, unsigned n, StagedRun *ret);
/* Give back the slots beyond the first `n`. */
void staging_trim(Staging *staging, StagedRun *run, unsigned n);
/* The run's memory is filled (or `zero` is set): from here on it is in the buffer. */
void staging_publish(Staging *staging, const StagedRun *run);

/* While it is closed nobody waits for room. Closings are counted. */
void staging_close(Staging *staging);
void staging_open(Staging *staging);

/* --- reading --- */

/* The first unit in [first, end) that is in the buffer; `end` if none. */
int64_t staging_next(Staging *staging, int64_t first, int64_t end);
/* The run at the beginning of [first, end), to be read until staging_unpin(); n is 0 when `first`
 * is not in the buffer. */
void staging_pin(Staging *staging, int64_t first, int64_t end, StagedRun *ret);
void staging_unpin(Staging *staging, const StagedRun *run);

/* Append the memory of `bytes` of the run, from its byte `skip` on. */
void staging_add_memory(Staging *staging, const StagedRun *run, IoVector *vec, int64_t skip,
                        int64_t bytes);

/* --- emptying --- */

/* Send the oldest unit that is staged on its way, with its neighbours, up to `max` units. False
 * when there is none. */
bool staging_send(Staging *staging, unsigned max, StagedRun *ret);
/* It has arrived: the run leaves the buffer. */
void staging_arrived(Staging *staging, const StagedRun *run);
/* Drop what is staged in [first, end), and wait for what is on its way. */
void coroutine_fn staging_drop(Staging *staging, int64_t first, int64_t end);
/* Drop everything that is staged. */
void staging_drop_all(Staging *staging);

/* Units in the buffer. */
unsigned staging_count(Staging *staging);

#endif
