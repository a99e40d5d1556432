/* SPDX-License-Identifier: MIT */
/*
 * qcow2 images after a loss of power at any moment, and after any one write or flush that failed.
 *
 * A guest with several requests at a time works on a small image with small clusters, so that
 * every table grows; between batches of requests come flushes, snapshots, bitmap verbs, and closing
 * and opening. Then, for moments all over the run, the disk is brought to what a loss of power
 * could have left (crash-disk.h). The image must open and be without corruption, hold what the
 * guest may expect (crash-model.h), and each bitmap that is not inconsistent must know of
 * everything that differs from when it began. The rules that are tried are Q1 to Q7 and B1 ... of
 * docs/devel/qcow2.md.
 *
 * MERINO_TEST_SEED makes another run; MERINO_CRASH_CUTS (60) says how many moments are tried in
 * each.
 */
#include "crash-disk.h"
#include "crash-image.h"
#include "crash-model.h"
#include "util/event-loop.h"
#include "util/size.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define DISK_SIZE   (1 * MiB)
#define SECTORS     (DISK_SIZE / CRASH_SECTOR)
#define MAX_BYTES   (24 * KiB) /* of one request */
#define GUESTS      4          /* requests at a time */
#define BATCHES     8
#define BATCH_SIZE  24
#define GRANULARITY 4096

#define DEFAULT_SEED 20261122

/* A bitmap, and what the guest's disk held when it began. */
typedef struct WatchedBitmap {
    char *name;
    uint64_t since; /* from this tick on it is in the image, if at all */
    uint8_t *base;
} WatchedBitmap;

typedef struct Run {
    const char *options;
    uint32_t seed;
    GRand *random;
    GByteArray *before;
    CrashModel *model;
    GPtrArray *bitmaps; /* of WatchedBitmap */
    BlockBackend *user;
    bool busy[SECTORS]; /* somebody writes there */
    uint64_t last_number;
    int guests;
    int left; /* requests in this batch */
} Run;

/* --- the guest --- */

static bool is_free(const Run *run, int64_t offset, int64_t bytes)
{
    for (int64_t i = offset / CRASH_SECTOR; i < (offset + bytes) / CRASH_SECTOR; i++) {
        if (run->busy[i]) {
            return false;
        }
    }
    return true;
}

static void set_busy(Run *run, int64_t offset, int64_t bytes, bool busy)
{
    memset(run->busy + offset / CRASH_SECTOR, busy, bytes / CRASH_SECTOR);
}

static int coroutine_fn request(Run *run, int kind, int64_t offset, int64_t bytes, uint64_t number)
{
    g_autofree uint8_t *data = NULL;
    IoVector vec;
    int ret;

    switch (kind) {
    case 0:
        return backend_co_pdiscard(run->user, offset, bytes);
    case 1:
        return backend_co_pwrite_zeroes(run->user, offset, bytes,
                                        g_rand_boolean(run->random) ? REQ_MAY_UNMAP : 0);
    default:
        data = g_malloc(bytes);
        crash_fill(data, bytes, number);
        iov_init_buf(&vec, data, bytes);
        ret = backend_co_pwritev(run->user, offset, bytes, &vec, kind == 2 ? REQ_FUA : 0);
        iov_done(&vec);
        return ret;
    }
}

static void coroutine_fn guest_write(Run *run)
{
    int kind = g_rand_int_range(run->random, 0, 20);
    int64_t bytes = g_rand_boolean(run->random) ? CRASH_SECTOR : MAX_BYTES;
    int64_t offset;
    uint64_t number = kind < 2 ? 0 : ++run->last_number;
    GuestWrite *write;
    int ret;

    bytes = g_rand_int_range(run->random, 1, (int)(bytes / CRASH_SECTOR) + 1) * CRASH_SECTOR;
    do {
        offset = g_rand_int_range(run->random, 0, (int)((DISK_SIZE - bytes) / CRASH_SECTOR)) *
                 CRASH_SECTOR;
    } while (!is_free(run, offset, bytes));
    set_busy(run, offset, bytes, true);
    write = crash_model_write(run->model, offset, bytes, number, kind == 0);
    ret = request(run, kind, offset, bytes, number);
    crash_model_written(run->model, write, ret == 0);
    write->durable = ret == 0 && kind == 2;
    set_busy(run, offset, bytes, false);
}

static void coroutine_fn guest_flush(Run *run)
{
    uint64_t begin = crash_tick();

    if (backend_co_flush(run->user) == 0) {
        crash_model_flushed(run->model, begin, crash_tick());
    }
}

static void coroutine_fn guest(void *opaque)
{
    Run *run = opaque;

    while (run->left > 0) {
        run->left--;
        if (g_rand_int_range(run->random, 0, 12) == 0) {
            guest_flush(run);
        } else {
            guest_write(run);
        }
    }
    run->guests--;
}

static void run_batch(Run *run)
{
    run->left = BATCH_SIZE;
    run->guests = GUESTS;
    for (int i = 0; i < GUESTS; i++) {
        coroutine_start(guest, run);
    }
    while (run->guests) {
        event_loop_poll(event_loop_main(), true);
    }
}

/* --- between batches --- */

static void begin_bitmap(Run *run)
{
    WatchedBitmap *watched = g_new(WatchedBitmap, 1);
    BitmapAddOptions options = { .granularity = GRANULARITY, .persistent = true };

    *watched = (WatchedBitmap){ .name = g_strdup_printf("b%u", run->bitmaps->len),
                                .since = crash_tick(),
                                .base = crash_image_read(run->user) };
    options.name = watched->name;
    if (watched->base && bitmap_add(backend_node(run->user)->bitmaps, &options, NULL, NULL)) {
        g_ptr_array_add(run->bitmaps, watched);
        return;
    }
    g_free(watched->name);
    g_free(watched->base);
    g_free(watched);
}

static bool open_again(Run *run)
{
    g_autoptr(GError) error = NULL;
    bool had_failed = crash_disk_has_failed();

    crash_image_close(run->user);
    if (!had_failed && crash_disk_has_failed()) {
        crash_model_forgets(run->model);
    }
    run->user = crash_image_open(&error);
    if (!run->user) {
        g_assert_true(crash_disk_has_failed());
    }
    return run->user != NULL;
}

/* Without it, copied flags that a snapshot's making left out count as errors for a check. */
static bool has_dirty_mark(const Run *run)
{
    return !strstr(run->options, "'v2'");
}

/* False: the image could not be opened again, because of the fault that was planted. */
static bool between_batches(Run *run)
{
    switch (g_rand_int_range(run->random, 0, 6)) {
    case 0:
        begin_bitmap(run);
        break;
    case 1:
        if (has_dirty_mark(run)) {
            crash_image_snapshot(run->user, "s");
        }
        break;
    case 2:
        crash_image_delete_snapshots(run->user);
        break;
    case 3:
    case 4:
        return open_again(run);
    }
    return true;
}

static void free_bitmap(gpointer data)
{
    WatchedBitmap *watched = data;

    g_free(watched->name);
    g_free(watched->base);
    g_free(watched);
}

/* The whole workload; with `fail` >= 0 that write or flush fails. */
static Run *run_guest(const char *options, uint32_t seed, int64_t fail)
{
    Run *run = g_new0(Run, 1);
    bool open;

    run->options = options;
    run->seed = seed;
    run->random = g_rand_new_with_seed(seed);
    run->before = crash_image_create(options);
    run->model = crash_model_new(DISK_SIZE);
    run->bitmaps = g_ptr_array_new_with_free_func(free_bitmap);
    crash_disk_load(run->before, seed);
    run->user = crash_image_open(NULL);
    g_assert_nonnull(run->user);
    begin_bitmap(run);
    crash_disk_fail(fail);
    open = true;
    for (int i = 0; i < BATCHES && open; i++) {
        run_batch(run);
        open = between_batches(run);
    }
    if (open) {
        crash_image_close(run->user);
    }
    return run;
}

static void run_free(Run *run)
{
    g_rand_free(run->random);
    g_byte_array_unref(run->before);
    crash_model_free(run->model);
    g_ptr_array_unref(run->bitmaps);
    g_free(run);
}

/* --- what is left --- */

/* Bits for everything that is not as it was when the bitmap began. */
static bool bitmap_knows(DirtyBitmap *bitmap, const uint8_t *base, const uint8_t *content)
{
    for (int64_t i = 0; i < SECTORS; i++) {
        int64_t offset = i * CRASH_SECTOR;

        if (memcmp(base + offset, content + offset, CRASH_SECTOR) != 0 &&
            !bitmap_get(bitmap, offset)) {
            g_printerr("# bitmap '%s' misses a write to sector %" PRId64 "\n", bitmap_name(bitmap),
                       i);
            return false;
        }
    }
    return true;
}

static bool bitmaps_know(const Run *run, uint64_t cut, BlockNode *node, const uint8_t *content)
{
    for (guint i = 0; i < run->bitmaps->len; i++) {
        const WatchedBitmap *watched = g_ptr_array_index(run->bitmaps, i);
        DirtyBitmap *bitmap =
            watched->since <= cut ? bitmap_find(node->bitmaps, watched->name) : NULL;

        if (bitmap && bitmap_load(bitmap, NULL) && !bitmap_is_inconsistent(bitmap) &&
            !bitmap_knows(bitmap, watched->base, content)) {
            return false;
        }
    }
    return true;
}

/* Whether the image that is on the disk is what a guest and its bitmaps may expect. */
static bool image_is_good(const Run *run, uint64_t cut)
{
    g_autoptr(GError) error = NULL;
    g_autofree uint8_t *content = NULL;
    BlockBackend *user = crash_image_open(&error);
    bool good;

    if (!user) {
        g_printerr("# %s\n", error->message);
        return false;
    }
    good = crash_image_check(user, 0) == 0;
    content = crash_image_read(user);
    good = good && content && crash_model_allows(run->model, cut, content) &&
           bitmaps_know(run, cut, backend_node(user), content);
    crash_image_close(user);
    return good;
}

static const char *const mode_names[] = { "kept", "dropped", "kept in part", "torn" };

static void try_cut(const Run *run, const GPtrArray *ops, uint64_t cut, bool ask_qemu)
{
    g_autoptr(GRand) random = g_rand_new_with_seed(run->seed ^ (uint32_t)cut);

    for (CrashMode mode = 0; mode < CRASH_MODES; mode++) {
        g_autoptr(GByteArray) content = crash_disk_after(run->before, ops, cut, mode, random);

        crash_disk_load(content, run->seed);
        if ((ask_qemu && crash_image_check_by_qemu(content)) || !image_is_good(run, cut)) {
            g_error("%s: power lost at tick %" PRIu64 ", what was not flushed is %s; "
                    "MERINO_TEST_SEED=%u",
                    run->options, cut, mode_names[mode], run->seed);
        }
    }
}

static int64_t env_number(const char *name, int64_t otherwise)
{
    const char *text = g_getenv(name);

    return text ? g_ascii_strtoll(text, NULL, 10) : otherwise;
}

static uint32_t seed_of_run(void)
{
    uint32_t seed = (uint32_t)env_number("MERINO_TEST_SEED", DEFAULT_SEED);

    g_test_message("MERINO_TEST_SEED=%u", seed);
    return seed;
}

static void power_is_lost(gconstpointer options)
{
    Run *run = run_guest(options, seed_of_run(), -1);
    int64_t cuts = env_number("MERINO_CRASH_CUTS", 60);
    uint64_t end = crash_now();
    g_autoptr(GPtrArray) ops = g_ptr_array_ref((GPtrArray *)crash_disk_ops());

    for (int64_t i = 0; i <= cuts; i++) {
        try_cut(run, ops, end * (uint64_t)i / (uint64_t)cuts, i % 8 == 0);
    }
    run_free(run);
}

/* Everything after the failure goes on as well as it can; in the end nothing is corrupt. */
static void one_request_fails(gconstpointer options)
{
    uint32_t seed = seed_of_run();
    Run *run = run_guest(options, seed, -1);
    int64_t n = crash_disk_ops()->len, tries = MAX(env_number("MERINO_CRASH_CUTS", 60) / 2, 1);

    run_free(run);
    for (int64_t i = 0; i < tries; i++) {
        g_autoptr(GByteArray) content = NULL;
        int64_t fail = n * i / tries;

        run = run_guest(options, seed, fail);
        content = crash_disk_content();
        crash_disk_load(content, seed);
        if ((i % 8 == 0 && crash_image_check_by_qemu(content)) ||
            !image_is_good(run, CRASH_NEVER - 1)) {
            g_error("%s: write or flush %" PRId64 " failed; MERINO_TEST_SEED=%u",
                    (const char *)options, fail, seed);
        }
        run_free(run);
    }
}

/* The test itself: an image whose L2 tables come before their data must be found out. */
static void lost_data_is_found(void)
{
    Run *run = run_guest("'size': 1048576, 'cluster-size': 512", 1, -1);
    g_autoptr(GByteArray) content = crash_disk_content();
    GuestWrite *write = crash_model_write(run->model, 0, CRASH_SECTOR, 12345678, false);

    crash_model_written(run->model, write, true);
    crash_model_flushed(run->model, crash_tick(), crash_tick());
    crash_disk_load(content, 1);
    g_assert_false(image_is_good(run, CRASH_NEVER - 1));
    run_free(run);
}

static const char *const images[][2] = {
    { "small-clusters", "'size': 1048576, 'cluster-size': 512" },
    { "wide-refcounts", "'size': 1048576, 'cluster-size': 1024, 'refcount-bits': 64" },
    { "narrow-refcounts", "'size': 1048576, 'cluster-size': 2048, 'refcount-bits': 4" },
    { "version-2", "'size': 1048576, 'cluster-size': 512, 'version': 'v2'" },
    { "lazy-refcounts", "'size': 1048576, 'cluster-size': 1024, 'lazy-refcounts': true" },
    { "subclusters", "'size': 1048576, 'cluster-size': 16384, 'extended-l2': true" },
    { "ordinary", "'size': 1048576" },
};

int main(int argc, char *argv[])
{
    g_test_init(&argc, &argv, NULL);
    g_log_set_always_fatal(G_LOG_LEVEL_ERROR |
                           G_LOG_LEVEL_CRITICAL); /* faults are told as warnings */
    crash_image_init();
    g_test_add_func("/crash/qcow2/planted-fault", lost_data_is_found);
    for (size_t i = 0; i < G_N_ELEMENTS(images); i++) {
        g_autofree char *power = g_strdup_printf("/crash/qcow2/power-lost/%s", images[i][0]);
        g_autofree char *fault = g_strdup_printf("/crash/qcow2/one-fails/%s", images[i][0]);

        g_test_add_data_func(power, images[i][1], power_is_lost);
        g_test_add_data_func(fault, images[i][1], one_request_fails);
    }
    return g_test_run();
}
