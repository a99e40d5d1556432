/* SPDX-License-Identifier: MIT */
/*
 * Writing out: from the staging buffer to the target, in the background.
 *
 * The writers are coroutines of a thread that the copying has for itself, so that they take no time
 * from the guest's. The first one begins when something is staged, and waits a moment for more,
 * so that what is written is large; it calls others when there is more than it can write by itself.
 * All end when nothing is left.
 *
 * Parked, no writer begins another request, and the staging buffer is closed. Parking waits for
 * requests that are under way. So that this does not take long on a slow target, requests begin
 * small and one at a time; quick ones make the next ones larger and then more, slow ones smaller
 * and fewer.
 */
#include "copy-internal.h"

#include "util/size.h"

#include <errno.h>

#define MAX_WRITERS INT64_C(4)
#define FIRST_RUN   (256 * KiB)
#define MS          INT64_C(1000000)
#define LINGER_NS   (1 * MS)
#define QUICK_NS    (20 * MS)
#define SLOW_NS     (100 * MS)

static void coroutine_fn writer(void *opaque);

/* Under the lock. */
static void start_writer(CopyState *copy)
{
    copy->writers++;
    coroutine_start_on(copy->writer_loop, writer, copy);
}

void copy_wake_writer(CopyState *copy)
{
    bool failed;

    g_mutex_lock(&copy->lock);
    failed = copy->write_failed;
    if (!copy->writers && !copy->parked && !failed) {
        start_writer(copy);
    }
    g_mutex_unlock(&copy->lock);
    if (failed) {
        staging_drop_all(copy->staging);
    }
}

/* What to write next; false when this writer is not needed any more, and ends. */
static bool next_run(CopyState *copy, StagedRun *run)
{
    bool any = false, last = false;

    g_mutex_lock(&copy->lock);
    if (!copy->parked && !copy->write_failed && copy->writers <= copy->max_writers) {
        any = staging_send(copy->staging, copy->max_run, run);
    }
    if (any && copy->writers < copy->max_writers &&
        staging_count(copy->staging) > copy->writers * copy->max_run) {
        start_writer(copy);
    }
    if (!any) {
        last = --copy->writers == 0;
    }
    g_mutex_unlock(&copy->lock);
    if (last) {
        event_loop_notify(event_loop_main());
    }
    return any;
}

static int coroutine_fn write_run(CopyState *copy, const StagedRun *run)
{
    int64_t offset = run->first * copy->unit;
    int64_t bytes = MIN(run->n * copy->unit, copy->size - offset);
    IoVector vec;
    int ret;

    if (run->zero) {
        return copy_write_zeroes(copy, offset, bytes);
    }
    iov_init(&vec);
    staging_add_memory(copy->staging, run, &vec, 0, bytes);
    ret = child_co_pwritev(copy->target, offset, bytes, &vec, 0);
    iov_done(&vec);
    return ret;
}

/* By the time that a request took. */
static void adapt(CopyState *copy, int64_t took_ns)
{
    g_mutex_lock(&copy->lock);
    if (took_ns > SLOW_NS) {
        copy->max_writers = 1;
        copy->max_run = MAX(1, copy->max_run / 2);
    } else if (took_ns < QUICK_NS) {
        unsigned most = (unsigned)MAX(1, COPY_MAX_CHUNK / copy->unit);

        copy->max_writers = copy->max_run == most ? MAX_WRITERS : copy->max_writers;
        copy->max_run = MIN(2 * copy->max_run, most);
    }
    g_mutex_unlock(&copy->lock);
}

/* Readers learn that the view is lost before its bytes go. What is staged from then on nobody
 * writes out: whoever stages it drops it. */
static void give_up(CopyState *copy, int ret)
{
    copy->failed_fn(copy->failed_opaque, ret);
    g_mutex_lock(&copy->lock);
    copy->write_failed = true;
    g_mutex_unlock(&copy->lock);
    staging_drop_all(copy->staging);
}

static void coroutine_fn writer(void *opaque)
{
    CopyState *copy = opaque;
    StagedRun run;

    coroutine_sleep_ns(LINGER_NS);
    while (next_run(copy, &run)) {
        int64_t start = event_loop_now_ns();
        int ret = write_run(copy, &run);

        adapt(copy, event_loop_now_ns() - start);
        if (ret < 0) {
            give_up(copy, ret);
        }
        staging_arrived(copy->staging, &run);
    }
}

/* --- control --- */

bool copy_stage(CopyState *copy, int64_t bytes, CopyFailedFn *fn, void *opaque, GError **error)
{
    int64_t units = align_up(copy->size, copy->unit) / copy->unit;
    Staging *staging = staging_new(bytes, copy->unit, units, error);

    if (!staging) {
        return false;
    }
    copy->writer_loop = event_loop_new("merino-staging", error);
    if (!copy->writer_loop) {
        staging_free(staging);
        return false;
    }
    copy->staging = staging;
    copy->failed_fn = fn;
    copy->failed_opaque = opaque;
    copy->max_writers = 1;
    copy->max_run = (unsigned)MAX(1, FIRST_RUN / copy->unit);
    return true;
}

static bool is_writing(CopyState *copy)
{
    bool writing;

    g_mutex_lock(&copy->lock);
    writing = copy->writers != 0;
    g_mutex_unlock(&copy->lock);
    return writing;
}

void copy_park(CopyState *copy)
{
    if (!copy->staging) {
        return;
    }
    staging_close(copy->staging);
    g_mutex_lock(&copy->lock);
    copy->parked++;
    g_mutex_unlock(&copy->lock);
    while (is_writing(copy)) {
        event_loop_poll(event_loop_main(), true);
    }
}

void copy_unpark(CopyState *copy)
{
    if (!copy->staging) {
        return;
    }
    g_mutex_lock(&copy->lock);
    copy->parked--;
    g_mutex_unlock(&copy->lock);
    staging_open(copy->staging);
    if (staging_count(copy->staging)) {
        copy_wake_writer(copy);
    }
}

/* --- looking --- */

int64_t copy_staged_bytes(CopyState *copy)
{
    return copy->staging ? staging_count(copy->staging) * copy->unit : 0;
}

int64_t copy_next_staged(CopyState *copy, int64_t offset, int64_t end)
{
    int64_t unit;

    if (!copy->staging) {
        return end;
    }
    unit = staging_next(copy->staging, offset / copy->unit, align_up(end, copy->unit) / copy->unit);
    return CLAMP(unit * copy->unit, offset, end);
}

/* Pin the run that `offset` is in. Returns how many bytes of [offset, end) it has. */
static int64_t pin_run(CopyState *copy, int64_t offset, int64_t end, StagedRun *run)
{
    int64_t first = offset / copy->unit;

    if (!copy->staging) {
        return 0;
    }
    staging_pin(copy->staging, first, align_up(end, copy->unit) / copy->unit, run);
    return run->n ? MIN(end, (first + run->n) * copy->unit) - offset : 0;
}

int64_t copy_staged(CopyState *copy, int64_t offset, int64_t end, bool *ret_zero)
{
    StagedRun run;
    int64_t bytes = pin_run(copy, offset, end, &run);

    if (bytes) {
        *ret_zero = run.zero;
        staging_unpin(copy->staging, &run);
    }
    return bytes;
}

int64_t copy_read_staged(CopyState *copy, int64_t offset, int64_t end, IoVector *vec, int64_t at)
{
    StagedRun run;
    int64_t bytes = pin_run(copy, offset, end, &run);
    IoVector memory;

    if (!bytes) {
        return 0;
    }
    if (run.zero) {
        iov_memset(vec, (size_t)at, 0, (size_t)bytes);
    } else {
        iov_init(&memory);
        staging_add_memory(copy->staging, &run, &memory, offset % copy->unit, bytes);
        for (int i = 0; i < memory.n; i++) {
            iov_from_buf(vec, (size_t)at, memory.iov[i].iov_base, memory.iov[i].iov_len);
            at += (int64_t)memory.iov[i].iov_len;
        }
        iov_done(&memory);
    }
    staging_unpin(copy->staging, &run);
    return bytes;
}
