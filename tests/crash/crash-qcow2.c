/* SPDX-License-Identifier: MIT */
/*
 * qcow2 images after a loss of power at any moment of a random workload, and after any one write,
 * resize or flush that failed.
 *
 * A guest with several requests at a time works on a small image, so that every table grows;
 * between batches of requests come snapshots, bitmap verbs, resizes, amendments, and closing and
 * opening. Then, for moments all over the run, the disks are brought to what a loss of power could
 * have left, and judged (crash-judge.h). The rules that are tried are Q1 to Q7 and B1 ... of
 * docs/devel/qcow2.md.
 *
 * One in two operations of the disks fails once; fewer, where it takes long. MERINO_TEST_SEED makes
 * another run; MERINO_CRASH_CUTS (24) says how many moments are tried in each, and 0 that all are,
 * and that every operation fails once.
 */
#include "../unit/sanitized.h"
#include "crash-judge.h"
#include "crash-shapes.h"
#include "util/event-loop.h"
#include "util/size.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define LARGER        4          /* than the script's disks, these are */
#define MAX_BYTES     (24 * KiB) /* of one request */
#define GUESTS        4          /* requests at a time */
#define MAX_PACKED    6          /* clusters of one compressed write */
#define BATCHES       10
#define BATCH_SIZE    20
#define BATCHES_AFTER 3 /* a failure, counting its own */
#define MAX_BITMAPS   3

#define DEFAULT_SEED 20261122
#define DEFAULT_CUTS 24

#define FAILURES_STRIDE (SANITIZED ? 40 : 2) /* one in so many requests fails */

typedef struct Workload {
    CrashRun *run;
    GRand *random;
    bool *busy;         /* sectors where somebody writes */
    GPtrArray *bitmaps; /* names */
    GPtrArray *snapshots;
    int names;
    int guests;
    int left; /* requests in this batch */
} Workload;

/* --- the guest --- */

static bool is_free(const Workload *work, int64_t offset, int64_t bytes)
{
    return !memchr(work->busy + offset / CRASH_SECTOR, true, bytes / CRASH_SECTOR);
}

static void set_busy(Workload *work, int64_t offset, int64_t bytes, bool busy)
{
    memset(work->busy + offset / CRASH_SECTOR, busy, bytes / CRASH_SECTOR);
}

static int64_t pick(Workload *work, int64_t limit)
{
    return g_rand_int_range(work->random, 0, (int32_t)limit);
}

static CrashRequest pick_kind(Workload *work)
{
    static const CrashRequest rare[] = { CRASH_DISCARD, CRASH_ZERO, CRASH_UNMAP, CRASH_FUA,
                                         CRASH_FLUSH };
    int64_t n = pick(work, 20);

    return n < (int64_t)G_N_ELEMENTS(rare) ? rare[n] : CRASH_WRITE;
}

/* Whole units somewhere on the disk; false: there is no room. */
static bool pick_range(Workload *work, int64_t unit, int64_t max, int64_t *offset, int64_t *bytes)
{
    int64_t room = backend_size(work->run->user) / unit;
    int64_t wanted = 1 + pick(work, MAX(max / unit, 1));

    *bytes = MIN(wanted, room);
    if (*bytes) {
        *offset = pick(work, room - *bytes + 1) * unit;
        *bytes *= unit;
    }
    return *bytes && is_free(work, *offset, *bytes);
}

static void coroutine_fn guest_request(Workload *work)
{
    CrashRequest kind = pick_kind(work);
    int64_t max = pick(work, 2) ? CRASH_SECTOR : MAX_BYTES;
    int64_t offset, bytes;

    if (kind == CRASH_FLUSH) {
        crash_co_request(work->run, kind, 0, 0);
        return;
    }
    if (pick_range(work, CRASH_SECTOR, max, &offset, &bytes)) {
        set_busy(work, offset, bytes, true);
        crash_co_request(work->run, kind, offset, bytes);
        set_busy(work, offset, bytes, false);
    }
}

static void coroutine_fn guest(void *opaque)
{
    Workload *work = opaque;

    while (work->left > 0) {
        work->left--;
        guest_request(work);
    }
    work->guests--;
}

static void run_batch(Workload *work)
{
    work->left = BATCH_SIZE;
    work->guests = GUESTS;
    for (int i = 0; i < GUESTS; i++) {
        coroutine_start(guest, work);
    }
    while (work->guests) {
        event_loop_poll(event_loop_main(), true);
    }
}

/* --- between batches --- */

/* One by one: how long a worker thread takes must not decide what else happens. */
static void compress(Workload *work)
{
    int64_t cluster = work->run->shape->cluster;

    for (int i = 0; i < 3 && crash_compresses(work->run); i++) {
        int64_t offset, bytes;

        if (pick_range(work, cluster, MIN(MAX_BYTES, MAX_PACKED * cluster), &offset, &bytes)) {
            crash_request(work->run, CRASH_COMPRESSED, offset, bytes);
        }
    }
}

static char *new_name(Workload *work, GPtrArray *names)
{
    char *name = g_strdup_printf("n%d", work->names++);

    g_ptr_array_add(names, name);
    return name;
}

static void begin_bitmap(Workload *work)
{
    static const int64_t granularities[] = { 512, 4096, 65536 };

    crash_bitmap_add(work->run, new_name(work, work->bitmaps), granularities[pick(work, 3)],
                     pick(work, 4) == 0);
}

static void bitmap_verb(Workload *work)
{
    static const BitmapStep steps[] = { BITMAP_ENABLE, BITMAP_DISABLE, BITMAP_CLEAR,
                                        BITMAP_REMOVE };
    guint which = (guint)pick(work, work->bitmaps->len);
    const char *name = g_ptr_array_index(work->bitmaps, which);
    const char *other = g_ptr_array_index(work->bitmaps, pick(work, work->bitmaps->len));
    int64_t n = pick(work, G_N_ELEMENTS(steps) + 1);

    if (n == G_N_ELEMENTS(steps)) {
        crash_bitmap_merge(work->run, name, other);
        return;
    }
    crash_bitmap_do(work->run, steps[n], name);
    if (steps[n] == BITMAP_REMOVE) {
        g_ptr_array_remove_index(work->bitmaps, which);
    }
}

static void change_bitmaps(Workload *work)
{
    if (!crash_has_bitmaps(work->run)) {
        return;
    }
    if (work->bitmaps->len == 0 || (work->bitmaps->len < MAX_BITMAPS && pick(work, 3) == 0)) {
        begin_bitmap(work);
    } else {
        bitmap_verb(work);
    }
}

static void change_snapshots(Workload *work)
{
    guint which;
    const char *name;

    if (!crash_has_snapshots(work->run)) {
        change_bitmaps(work);
        return;
    }
    if (work->snapshots->len == 0 || pick(work, 3) == 0) {
        crash_snapshot_create(work->run, new_name(work, work->snapshots));
        return;
    }
    which = (guint)pick(work, work->snapshots->len);
    name = g_ptr_array_index(work->snapshots, which);
    if (pick(work, 2)) {
        crash_snapshot_goto(work->run, name);
    } else {
        crash_snapshot_delete(work->run, name);
        g_ptr_array_remove_index(work->snapshots, which);
    }
}

/* Version 2 cannot with snapshots. */
static void resize(Workload *work)
{
    int64_t max = CRASH_MAX_SIZE(work->run->shape) / CRASH_SECTOR;

    if (work->run->version >= 3 || work->snapshots->len == 0) {
        crash_resize(work->run, (1 + pick(work, max)) * CRASH_SECTOR);
    }
}

static void amend_version(Workload *work)
{
    const CrashShape *shape = work->run->shape;
    bool up = work->run->version < 3;
    bool may_go_down = !work->snapshots->len && !work->bitmaps->len && !shape->data_file &&
                       !shape->extended_l2 && !shape->refcount_bits;

    if (up || may_go_down) {
        crash_amend(work->run, &(BlockAmendOptions){ .has_version = true,
                                                     .version = up ? BLOCKDEV_QCOW2_VERSION_V3
                                                                   : BLOCKDEV_QCOW2_VERSION_V2 });
    }
}

static void amend(Workload *work)
{
    bool lazy = pick(work, 2);

    if (work->run->version < 3 || pick(work, 2)) {
        amend_version(work);
    } else if (work->run->shape->refcount_bits > 1 && pick(work, 2)) {
        crash_amend(work->run, &(BlockAmendOptions){ .has_refcount_bits = true,
                                                     .refcount_bits = 8 << pick(work, 4) });
    } else {
        crash_amend(work->run,
                    &(BlockAmendOptions){ .has_lazy_refcounts = true, .lazy_refcounts = lazy });
    }
}

static void between_batches(Workload *work)
{
    switch (pick(work, 12)) {
    case 0 ... 2:
        change_bitmaps(work);
        break;
    case 3 ... 4:
        change_snapshots(work);
        break;
    case 5:
        resize(work);
        break;
    case 6:
        amend(work);
        break;
    case 7:
        crash_read_only(work->run);
        break;
    case 8 ... 9:
        compress(work);
        break;
    default:
        crash_reopen(work->run);
    }
}

/* The whole workload; with `fail` >= 0 that operation of the disks fails, and the end is near. */
static CrashRun *run_workload(const CrashShape *shape, uint32_t seed, int64_t fail, bool done)
{
    CrashRun *run = crash_run_new(shape, seed, fail, done);
    Workload work = { .run = run };
    int after = 0;

    work.random = g_rand_new_with_seed(seed);
    work.busy = g_new0(bool, CRASH_MAX_SIZE(shape) / CRASH_SECTOR);
    work.bitmaps = g_ptr_array_new_with_free_func(g_free);
    work.snapshots = g_ptr_array_new_with_free_func(g_free);
    change_bitmaps(&work);
    for (int i = 0; i < BATCHES && run->user && after < BATCHES_AFTER; i++) {
        run_batch(&work);
        for (int n = 0; n < 2 && run->user; n++) {
            between_batches(&work);
        }
        after += crash_disk_has_failed();
    }
    crash_run_end(run);
    g_rand_free(work.random);
    g_free(work.busy);
    g_ptr_array_unref(work.bitmaps);
    g_ptr_array_unref(work.snapshots);
    return run;
}

/* --- tests --- */

static void power_is_lost(gconstpointer opaque)
{
    const CrashShape *shape = opaque;
    g_autoptr(CrashRun) run = run_workload(shape, crash_seed(), -1, false);
    g_autoptr(GPtrArray) ops = g_ptr_array_ref((GPtrArray *)crash_disk_ops());
    int64_t cuts = crash_env_number("MERINO_CRASH_CUTS", DEFAULT_CUTS);

    crash_judge_begin(15);
    crash_judge_count(ops);
    if (cuts) {
        crash_judge_some_cuts(run, ops, crash_now(), cuts);
    } else {
        crash_judge_all_cuts(run, ops, MAX(shape->stride, 1), 2);
    }
    crash_judge_report();
}

/* Everything after the failure goes on as well as it can; in the end nothing is corrupt. */
static void one_request_fails(gconstpointer opaque)
{
    const CrashShape *shape = opaque;
    uint32_t seed = crash_seed();
    g_autoptr(CrashRun) first = run_workload(shape, seed, -1, false);
    int64_t n = crash_disk_ops()->len;
    bool all = crash_env_number("MERINO_CRASH_CUTS", DEFAULT_CUTS) == 0;
    int64_t tries = n / (MAX(shape->stride, 1) * (all ? 1 : FAILURES_STRIDE));

    crash_judge_begin(60);
    for (int64_t i = 0; i < tries; i++) {
        bool done = (i & 1) != 0;
        g_autoptr(CrashRun) run = run_workload(shape, seed, n * i / tries, done);

        crash_judge_fault(run, n * i / tries, done);
    }
    crash_judge_report();
}

/* The test itself: data that are not where they must be are found out. */
static void lost_data_is_found(void)
{
    g_autoptr(CrashRun) run = run_workload(&crash_shapes[0], 1, -1, false);
    g_autoptr(CrashContent) content = crash_disk_content();
    GuestWrite *write = crash_model_write(run->model, 0, CRASH_SECTOR, 12345678, false);

    crash_model_written(run->model, write, true);
    crash_model_flushed(run->model, crash_tick(), crash_tick());
    g_assert_false(crash_judge(run, CRASH_NEVER - 1, content));
}

int main(int argc, char *argv[])
{
    g_autofree CrashShape *shapes = g_memdup2(crash_shapes, sizeof(CrashShape) * n_crash_shapes);

    g_test_init(&argc, &argv, NULL);
    crash_judge_init();
    g_test_add_func("/crash/qcow2/planted-fault", lost_data_is_found);
    for (size_t i = 0; i < n_crash_shapes; i++) {
        CrashShape *shape = &shapes[i];
        g_autofree char *power = g_strdup_printf("/crash/qcow2/power-lost/%s", shape->name);
        g_autofree char *fault = g_strdup_printf("/crash/qcow2/one-fails/%s", shape->name);

        if (shape->size < MiB) {
            shape->size *= LARGER;
            shape->base *= LARGER;
        }
        g_test_add_data_func(power, shape, power_is_lost);
        g_test_add_data_func(fault, shape, one_request_fails);
    }
    return g_test_run();
}
