/* SPDX-License-Identifier: MIT */
/*
 * Bitmaps of several pages, of which some change, are stored over what is there: power is lost at
 * every moment of a script, and each write, resize and flush fails once (B1, B2 of
 * docs/devel/qcow2.md).
 *
 * The disk is large, so that its bitmaps are, and the guest only discards, which leaves the image
 * small; what the guest would read is not looked at. Bitmaps are stored that were loaded and that
 * were not, with pages that change, that do not, and that are neighbours; and again after
 * storing failed.
 *
 * MERINO_CRASH_STRIDE and MERINO_TEST_SEED are as in crash-script.c.
 */
#include "crash-judge.h"
#include "util/size.h"

#define SECTOR CRASH_SECTOR
#define PAGE   (4 * KiB * 8 * SECTOR) /* of the disk, in a page of bits */

/* Eight pages in two clusters at the finest granularity. */
static const CrashShape shape = {
    .name = "pages",
    .create = "'cluster-size': 16384",
    .size = 8 * PAGE,
    .cluster = 16384,
    .bits_only = true,
};

/* One sector in each of the pages that the word names by their numbers. */
static void change(CrashRun *run, const char *pages, int64_t sector)
{
    for (const char *page = pages; *page; page++) {
        crash_request(run, CRASH_DISCARD, (*page - '0') * PAGE + sector * SECTOR, SECTOR);
    }
}

/* What is stored was never read. */
static void play_unloaded(CrashRun *run)
{
    change(run, "0347", 9);
    crash_reopen(run);
    change(run, "3", 9); /* no change */
    crash_reopen(run);
    change(run, "12", 20000);
    change(run, "7", 9);
    crash_read_only(run);
    change(run, "036", 30000);
    crash_read_only(run);
    crash_read_only(run);
    change(run, "6", 30000);
    crash_reopen(run);
}

static void play_loaded(CrashRun *run)
{
    crash_bitmap_do(run, BITMAP_DISABLE, "fine");
    crash_bitmap_do(run, BITMAP_ENABLE, "fine");
    change(run, "25", 100);
    crash_read_only(run);
    change(run, "0457", 101);
    crash_read_only(run);
    crash_bitmap_merge(run, "half", "fine");
    change(run, "1", 102);
    crash_reopen(run);
}

static void play(CrashRun *run)
{
    crash_bitmap_add(run, "fine", SECTOR, false);
    crash_bitmap_add(run, "half", 2 * SECTOR, false);
    change(run, "015", 1);
    crash_reopen(run);
    play_unloaded(run);
    play_loaded(run);
    crash_bitmap_do(run, BITMAP_CLEAR, "fine");
    change(run, "6", 5);
    crash_reopen(run);
    change(run, "67", 7);
    crash_run_end(run);
}

/* --- how much is written --- */

typedef struct Written {
    int64_t writes, bytes, largest;
} Written;

static Written written_since(guint first)
{
    const GPtrArray *ops = crash_disk_ops();
    Written sum = { 0 };

    for (guint i = first; i < ops->len; i++) {
        const DiskOp *op = g_ptr_array_index(ops, i);

        if (op->kind == DISK_WRITE) {
            sum.writes++;
            sum.bytes += op->bytes;
            sum.largest = MAX(sum.largest, op->bytes);
        }
    }
    return sum;
}

/* Marks are some 100 bytes; a table would be written with new clusters only. */
static void only_changed_pages_are_written(void)
{
    g_autoptr(CrashRun) run = crash_run_new(&shape, crash_seed(), -1, false);
    Written sum;
    guint first;

    crash_bitmap_add(run, "fine", SECTOR, false);
    change(run, "0356", 1);
    crash_reopen(run);
    first = crash_disk_ops()->len;
    change(run, "03", 1);
    crash_reopen(run);
    sum = written_since(first);
    g_assert_cmpint(sum.writes, ==, 2); /* the mark, and its end */
    g_assert_cmpint(sum.bytes, <=, 256);

    first = crash_disk_ops()->len;
    change(run, "047", 2);
    crash_reopen(run);
    sum = written_since(first);
    g_assert_cmpint(sum.writes, ==, 5);
    g_assert_cmpint(sum.bytes, <=, 3 * 4096 + 256);

    crash_bitmap_do(run, BITMAP_DISABLE, "fine"); /* loads it */
    crash_bitmap_do(run, BITMAP_ENABLE, "fine");
    first = crash_disk_ops()->len;
    change(run, "0", 3);
    change(run, "45", 1); /* 5 is so already */
    crash_reopen(run);
    sum = written_since(first);
    g_assert_cmpint(sum.writes, ==, 3); /* marked it was before */
    g_assert_cmpint(sum.bytes, <=, 2 * 4096 + 256);

    crash_run_end(run);
}

/* When a flush has failed, what is read may be in a cache and never get to the disk. */
static void what_failed_is_written_again(void)
{
    g_autoptr(CrashRun) run = crash_run_new(&shape, crash_seed(), -1, false);
    guint first;

    crash_bitmap_add(run, "fine", SECTOR, false);
    change(run, "0356", 1);
    crash_reopen(run);
    change(run, "35", 2);
    crash_disk_fail(2, false); /* two pages, and the flush */
    crash_read_only(run);
    g_assert_true(crash_disk_has_failed());
    first = crash_disk_ops()->len;
    crash_read_only(run);
    g_assert_cmpint(written_since(first).bytes, >=, 2 * 4096);
    crash_run_end(run);
}

/* --- every moment, every failure --- */

static int64_t stride(void)
{
    return MAX(crash_env_number("MERINO_CRASH_STRIDE", 1), 1);
}

static void every_moment(void)
{
    g_autoptr(CrashRun) run = crash_run_new(&shape, crash_seed(), -1, false);
    g_autoptr(GPtrArray) ops = g_ptr_array_ref((GPtrArray *)crash_disk_ops());

    play(run);
    crash_judge_begin(100);
    crash_judge_count(ops);
    crash_judge_all_cuts(run, ops, stride(), (int)crash_env_number("MERINO_CRASH_SUBSETS", 2));
    crash_judge_report();
    g_assert_cmpint(crash_judge_tally()->sound_bitmaps, >, 0);
}

static int64_t count_operations(uint32_t seed)
{
    g_autoptr(CrashRun) run = crash_run_new(&shape, seed, -1, false);

    play(run);
    return crash_disk_ops()->len;
}

static void every_failure(void)
{
    uint32_t seed = crash_seed();
    int64_t n = count_operations(seed);

    crash_judge_begin(100);
    for (int64_t i = 0; i < n; i += stride()) {
        for (int done = 0; done < 2; done++) {
            g_autoptr(CrashRun) run = crash_run_new(&shape, seed, i, done);

            play(run);
            crash_judge_fault(run, i, done);
        }
    }
    crash_judge_report();
}

int main(int argc, char *argv[])
{
    g_test_init(&argc, &argv, NULL);
    crash_judge_init();
    g_test_add_func("/crash/pages/only-changed-pages-are-written", only_changed_pages_are_written);
    g_test_add_func("/crash/pages/what-failed-is-written-again", what_failed_is_written_again);
    g_test_add_func("/crash/pages/power-lost", every_moment);
    g_test_add_func("/crash/pages/one-fails", every_failure);
    return g_test_run();
}
