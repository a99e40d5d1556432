/* SPDX-License-Identifier: MIT */
/*
 * qcow2 images after a loss of power at every moment of a scripted workload, and after each of its
 * writes, resizes and flushes failed once.
 *
 * The script does each kind of thing once or twice. Then, for the beginning and the end of every
 * operation of the disks, these are brought to what a loss of power could have left: what was not
 * flushed is all there, or not at all, or in part, or torn at sectors. And the script is run again
 * for every operation, which fails, having done nothing or all of it; what is there in the end, and
 * what a loss of power after the failure leaves, must be good as well.
 *
 * For images with large clusters, which are slow to handle, one operation in some is tried.
 * MERINO_CRASH_SUBSETS (2) says how many random subsets of each kind are tried for a moment,
 * MERINO_CRASH_STRIDE (1) makes it so many times fewer operations for all images, 0 all of them for
 * all images, and MERINO_TEST_SEED changes the order in which parallel requests end, and the
 * subsets.
 */
#include "crash-judge.h"
#include "crash-shapes.h"
#include "util/event-loop.h"
#include "util/size.h"

#include <stdlib.h>

#define SECTOR CRASH_SECTOR
#define MANY   16 /* with one moment in so many, each kind of thing is met */

/* --- the script --- */

typedef struct Part {
    CrashRun *run;
    CrashRequest kind;
    int64_t offset, bytes;
    int *left;
} Part;

static void coroutine_fn part_entry(void *opaque)
{
    const Part *part = opaque;

    crash_co_request(part->run, part->kind, part->offset, part->bytes);
    --*part->left;
}

/* Requests at the same time. */
static void together(Part *parts, int n)
{
    int left = n;

    for (int i = 0; i < n; i++) {
        parts[i].left = &left;
        coroutine_start(part_entry, &parts[i]);
    }
    while (left) {
        event_loop_poll(event_loop_main(), true);
    }
}

static void flush(CrashRun *run)
{
    crash_request(run, CRASH_FLUSH, 0, 0);
}

static void compress(CrashRun *run, int64_t near)
{
    if (crash_compresses(run)) {
        crash_request(run, CRASH_COMPRESSED, align_down(near, run->shape->cluster),
                      run->shape->cluster);
    }
}

/* `u` is a 16th of the disk. */
static void play_requests(CrashRun *run, int64_t u)
{
    Part parts[] = { { run, CRASH_WRITE, 2 * u, SECTOR },
                     { run, CRASH_WRITE, 2 * u + SECTOR, SECTOR },
                     { run, CRASH_WRITE, 4 * u - SECTOR, 3 * SECTOR } };

    crash_request(run, CRASH_WRITE, 0, u + SECTOR);
    together(parts, G_N_ELEMENTS(parts));
    flush(run);
    crash_request(run, CRASH_FUA, u / 2, 2 * SECTOR);
    crash_request(run, CRASH_ZERO, 2 * u + SECTOR, u);
    crash_request(run, CRASH_DISCARD, 0, u / 2);
    compress(run, 6 * u);
    compress(run, 6 * u + run->shape->cluster);
    flush(run);
    crash_request(run, CRASH_WRITE, 6 * u + SECTOR, SECTOR);
    crash_request(run, CRASH_UNMAP, 5 * u, 2 * u);
    crash_request(run, CRASH_WRITE, u, 3 * u);
    flush(run);
}

static void play_snapshots(CrashRun *run, int64_t u)
{
    if (!crash_has_snapshots(run)) {
        return;
    }
    crash_snapshot_create(run, "one");
    crash_request(run, CRASH_WRITE, SECTOR, u);
    crash_request(run, CRASH_DISCARD, 4 * u, u);
    flush(run);
    compress(run, 8 * u);
    crash_snapshot_create(run, "two");
    crash_request(run, CRASH_WRITE, 2 * u, SECTOR);
    crash_snapshot_goto(run, "one");
    crash_request(run, CRASH_WRITE, 3 * SECTOR, SECTOR);
    flush(run);
    crash_snapshot_delete(run, "two");
    crash_request(run, CRASH_WRITE, 8 * u, SECTOR);
    crash_reopen(run);
}

/* Under bitmaps: disabled ones are not concerned. */
static void go_to_snapshot(CrashRun *run, const char *name)
{
    if (crash_has_snapshots(run)) {
        crash_snapshot_goto(run, name);
    }
}

static void play_bitmap_verbs(CrashRun *run, int64_t u)
{
    Part parts[] = { { run, CRASH_WRITE, 10 * u, u },
                     { run, CRASH_DISCARD, 2 * u, u },
                     { run, CRASH_ZERO, 12 * u, SECTOR } };

    crash_bitmap_add(run, "fine", 512, false);
    crash_bitmap_add(run, "off", 4096, true);
    crash_request(run, CRASH_WRITE, 9 * u, 2 * SECTOR);
    together(parts, G_N_ELEMENTS(parts));
    flush(run);
    crash_reopen(run);
    crash_request(run, CRASH_WRITE, 11 * u, SECTOR);
    crash_bitmap_do(run, BITMAP_DISABLE, "fine");
    crash_request(run, CRASH_WRITE, 12 * u, SECTOR);
    crash_bitmap_do(run, BITMAP_ENABLE, "off");
    crash_bitmap_merge(run, "off", "fine");
    crash_read_only(run);
    crash_bitmap_do(run, BITMAP_CLEAR, "fine");
    crash_bitmap_do(run, BITMAP_ENABLE, "fine");
    crash_request(run, CRASH_WRITE, u, SECTOR);
    crash_bitmap_add(run, "coarse", 64 * KiB, false);
    crash_reopen(run);
    crash_bitmap_do(run, BITMAP_DISABLE, "coarse");
    crash_reopen(run);
    crash_bitmap_do(run, BITMAP_REMOVE, "off");
    crash_request(run, CRASH_WRITE, 3 * u, SECTOR);
    go_to_snapshot(run, "one");
    crash_request(run, CRASH_WRITE, 4 * u, SECTOR);
}

static void play_resizes(CrashRun *run, int64_t u)
{
    if (run->version < 3 && crash_has_snapshots(run)) {
        crash_snapshot_delete(run, "one");
    }
    crash_resize(run, 26 * u + SECTOR);
    crash_request(run, CRASH_WRITE, 20 * u, 2 * SECTOR);
    flush(run);
    if (run->version >= 3 && crash_has_snapshots(run)) {
        crash_snapshot_goto(run, "one");
        crash_request(run, CRASH_WRITE, 15 * u, SECTOR);
        crash_snapshot_delete(run, "one");
    }
    crash_reopen(run);
    if (crash_has_bitmaps(run)) {
        crash_bitmap_add(run, "off", 1024, false);
    }
    crash_resize(run, 14 * u - SECTOR);
    crash_request(run, CRASH_WRITE, 13 * u, SECTOR);
    crash_reopen(run);
    crash_resize(run, 16 * u);
    flush(run);
}

static void remove_bitmaps(CrashRun *run)
{
    if (crash_has_bitmaps(run)) {
        crash_bitmap_do(run, BITMAP_REMOVE, "fine");
        crash_bitmap_do(run, BITMAP_REMOVE, "off");
        crash_reopen(run);
        crash_bitmap_do(run, BITMAP_REMOVE, "coarse");
    }
}

static void amend_refcounts(CrashRun *run, int64_t u)
{
    static const int widths[] = { 64, 16 };

    for (size_t i = 0; i < G_N_ELEMENTS(widths); i++) {
        crash_amend(run,
                    &(BlockAmendOptions){ .has_refcount_bits = true, .refcount_bits = widths[i] });
        crash_request(run, CRASH_WRITE, 5 * u, SECTOR);
    }
}

static void amend_laziness(CrashRun *run, int64_t u)
{
    for (int lazy = 1; lazy >= 0; lazy--) {
        crash_amend(run,
                    &(BlockAmendOptions){ .has_lazy_refcounts = true, .lazy_refcounts = lazy });
        crash_request(run, CRASH_WRITE, (7 + lazy) * u, SECTOR);
        flush(run);
    }
}

static void amend_version(CrashRun *run, int64_t u)
{
    bool down = run->version >= 3;

    for (int i = 0; i < 2; i++) {
        crash_amend(run, &(BlockAmendOptions){ .has_version = true,
                                               .version = down ? BLOCKDEV_QCOW2_VERSION_V2
                                                               : BLOCKDEV_QCOW2_VERSION_V3 });
        crash_request(run, CRASH_UNMAP, (9 + i) * u, u);
        crash_request(run, CRASH_WRITE, (11 + i) * u, SECTOR);
        flush(run);
        down = !down;
    }
}

static void play(CrashRun *run)
{
    int64_t u = run->shape->size / 16;

    play_requests(run, u);
    play_snapshots(run, u);
    if (crash_has_bitmaps(run)) {
        play_bitmap_verbs(run, u);
    }
    play_resizes(run, u);
    remove_bitmaps(run);
    if (run->version >= 3) {
        amend_refcounts(run, u);
        amend_laziness(run, u);
    }
    if (!run->shape->data_file && !run->shape->extended_l2) {
        amend_version(run, u);
    }
    crash_run_end(run);
}

/* --- tests --- */

static int64_t stride_of(const CrashShape *shape)
{
    int64_t coarser = crash_env_number("MERINO_CRASH_STRIDE", 1);

    return coarser > 0 ? MAX(shape->stride, 1) * coarser : 1;
}

static void every_moment(gconstpointer opaque)
{
    const CrashShape *shape = opaque;
    g_autoptr(CrashRun) run = crash_run_new(shape, crash_seed(), -1, false);
    g_autoptr(GPtrArray) ops = g_ptr_array_ref((GPtrArray *)crash_disk_ops());

    play(run);
    crash_judge_begin(350);
    crash_judge_count(ops);
    crash_judge_all_cuts(run, ops, stride_of(shape),
                         (int)crash_env_number("MERINO_CRASH_SUBSETS", 2));
    crash_judge_report();
    if (crash_has_bitmaps(run) && stride_of(shape) <= MANY) {
        g_assert_cmpint(crash_judge_tally()->sound_bitmaps, >, 0);
    }
    if (crash_has_snapshots(run) && stride_of(shape) <= MANY) {
        g_assert_cmpint(crash_judge_tally()->snapshots, >, 0);
    }
}

static int64_t count_operations(const CrashShape *shape, uint32_t seed)
{
    g_autoptr(CrashRun) run = crash_run_new(shape, seed, -1, false);

    play(run);
    return crash_disk_ops()->len;
}

static void fail_once(const CrashShape *shape, uint32_t seed, int64_t n, bool done)
{
    g_autoptr(CrashRun) run = crash_run_new(shape, seed, n, done);

    play(run);
    crash_judge_fault(run, n, done);
}

static void every_failure(gconstpointer opaque)
{
    const CrashShape *shape = opaque;
    uint32_t seed = crash_seed();
    int64_t n = count_operations(shape, seed);

    crash_judge_begin(350);
    for (int64_t i = 0; i < n; i += stride_of(shape)) {
        fail_once(shape, seed, i, false);
        fail_once(shape, seed, i, true);
    }
    crash_judge_report();
}

int main(int argc, char *argv[])
{
    g_test_init(&argc, &argv, NULL);
    crash_judge_init();
    for (size_t i = 0; i < n_crash_shapes; i++) {
        const CrashShape *shape = &crash_shapes[i];
        g_autofree char *power = g_strdup_printf("/crash/script/power-lost/%s", shape->name);
        g_autofree char *fault = g_strdup_printf("/crash/script/one-fails/%s", shape->name);

        g_test_add_data_func(power, shape, every_moment);
        g_test_add_data_func(fault, shape, every_failure);
    }
    return g_test_run();
}
