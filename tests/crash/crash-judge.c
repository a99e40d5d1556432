/* SPDX-License-Identifier: MIT */
#include "crash-judge.h"
#include "util/size.h"

#include <inttypes.h>
#include <limits.h>
#include <malloc.h>
#include <string.h>

#define DEFAULT_SEED 20261122

static CrashTally tally;
static int64_t ask_every = 1;

/* Faults are told as warnings; here they are planned. */
static void drop_message(const char *domain, GLogLevelFlags level, const char *words, void *opaque)
{
}

/* Images of some MiB are copied all the time: their memory is kept. */
static void keep_memory(void)
{
    mallopt(M_MMAP_THRESHOLD, INT_MAX);
    mallopt(M_TRIM_THRESHOLD, INT_MAX);
    mallopt(M_TOP_PAD, 32 * MiB);
}

void crash_judge_init(void)
{
    keep_memory();
    g_log_set_always_fatal(G_LOG_LEVEL_ERROR | G_LOG_LEVEL_CRITICAL);
    g_log_set_handler(NULL, G_LOG_LEVEL_WARNING, drop_message, NULL);
    crash_image_init();
}

int64_t crash_env_number(const char *name, int64_t otherwise)
{
    const char *text = g_getenv(name);

    return text ? g_ascii_strtoll(text, NULL, 10) : otherwise;
}

uint32_t crash_seed(void)
{
    uint32_t seed = (uint32_t)crash_env_number("MERINO_TEST_SEED", DEFAULT_SEED);

    g_test_message("MERINO_TEST_SEED=%u", seed);
    return seed;
}

void crash_judge_begin(int64_t every)
{
    tally = (CrashTally){ 0 };
    ask_every = MAX(every, 1);
}

const CrashTally *crash_judge_tally(void)
{
    return &tally;
}

void crash_judge_count(const GPtrArray *ops)
{
    for (guint i = 0; i < ops->len; i++) {
        const DiskOp *op = g_ptr_array_index(ops, i);

        *(op->kind == DISK_FLUSH ? &tally.flushes : &tally.writes) += 1;
    }
}

void crash_judge_report(void)
{
    g_test_message("%" PRId64 " writes and %" PRId64 " flushes, %" PRId64 " moments, %" PRId64
                   " failures; %" PRId64 " images judged, %" PRId64 " by qemu-img too; %" PRId64
                   " sound bitmaps, %" PRId64 " snapshots",
                   tally.writes, tally.flushes, tally.cuts, tally.failures, tally.states,
                   tally.by_qemu, tally.sound_bitmaps, tally.snapshots);
}

/* --- snapshots --- */

static bool is_listed(const SnapshotInfoList *list, const char *name)
{
    for (size_t i = 0; i < list->len; i++) {
        if (g_str_equal(list->items[i]->name, name)) {
            return true;
        }
    }
    return false;
}

static bool holds(BlockBackend *user, const CrashSnapshot *snapshot)
{
    g_autoptr(GError) error = NULL;
    g_autofree uint8_t *content = NULL;

    if (node_snapshot_goto(backend_node(user), snapshot->name, &error) < 0) {
        g_printerr("# %s\n", error->message);
        return false;
    }
    content = crash_image_read(user);
    tally.snapshots++;
    return content && backend_size(user) == snapshot->size &&
           memcmp(content, snapshot->content, snapshot->size) == 0;
}

static bool snapshot_is_good(const CrashSnapshot *snapshot, uint64_t cut, BlockBackend *user,
                             bool listed)
{
    bool may_be_there =
        snapshot->created.begin <= cut && !(snapshot->deleted.ok && snapshot->deleted.end <= cut);
    bool must_be_there =
        snapshot->created.ok && snapshot->created.end <= cut && snapshot->deleted.begin > cut;

    if (listed ? may_be_there && holds(user, snapshot) : !must_be_there) {
        return true;
    }
    g_printerr("# snapshot '%s' is %s\n", snapshot->name,
               !listed        ? "missing"
               : may_be_there ? "not what it was"
                              : "there");
    return false;
}

/* Bitmaps that are inconsistent keep the disk's size as it is; this is the last thing that is
 * looked at. */
static bool snapshots_are_good(const CrashRun *run, uint64_t cut, BlockBackend *user)
{
    BlockNode *node = backend_node(user);
    SnapshotInfoList *list = node_snapshot_list(node);
    DirtyBitmap *bitmap;
    bool good = true;

    while (list->len && good && (bitmap = bitmap_list_next(node->bitmaps, NULL))) {
        good = bitmap_remove(bitmap, NULL, NULL);
    }
    for (guint i = 0; i < run->snapshots->len && good; i++) {
        const CrashSnapshot *snapshot = g_ptr_array_index(run->snapshots, i);

        good = snapshot_is_good(snapshot, cut, user, is_listed(list, snapshot->name));
    }
    if (list->len && good) {
        good = crash_image_check(run->shape, user) == 0;
    }
    snapshot_info_list_free(list);
    return good;
}

/* --- the image --- */

/* Says which part it was that was found wrong. */
static bool part(bool good, const char *what)
{
    if (!good) {
        g_printerr("# %s not good\n", what);
    }
    return good;
}

static bool opened_is_good(const CrashRun *run, uint64_t cut, BlockBackend *user)
{
    int64_t size = backend_size(user);
    g_autofree uint8_t *content = NULL;
    int sound = 0;
    bool good = part(crash_image_check(run->shape, user) == 0, "the image is");

    if (!run->shape->bits_only) {
        content = crash_image_read(user);
        good = good && part(content && crash_model_allows(run->model, cut, content, size),
                            "the guest's data are");
    }
    good = good && part(crash_bitmaps_allow(run->bitmaps, cut, backend_node(user)->bitmaps, &sound),
                        "the bitmaps are");
    good = good && part(snapshots_are_good(run, cut, user), "the snapshots are");
    tally.sound_bitmaps += sound;
    return good;
}

bool crash_judge(const CrashRun *run, uint64_t cut, const CrashContent *content)
{
    g_autoptr(GError) error = NULL;
    bool good = true;
    BlockBackend *user;

    tally.states++;
    if (tally.states % ask_every == 0) {
        tally.by_qemu++;
        good = crash_image_check_by_qemu(run->shape, content) == 0;
    }
    crash_disk_load(content, run->seed);
    user = crash_image_open(run->shape, &error);
    if (!user) {
        g_printerr("# %s\n", error->message);
        return false;
    }
    good = opened_is_good(run, cut, user) && good;
    crash_image_close(user);
    if (!good) {
        crash_image_check_by_qemu(run->shape, content); /* for what it says */
    }
    return good;
}

/* --- losses of power --- */

static const char *const mode_names[] = { "kept", "dropped", "kept in part", "torn" };

/* One run's losses of power. What was found good needs no second look as long as no more can be
 * expected of it. */
typedef struct Losses {
    const CrashRun *run;
    const GPtrArray *ops;
    CrashTimeline *timeline;
    GHashTable *good; /* of int64_t */
    int subsets;
} Losses;

static void try_mode(Losses *losses, uint64_t cut, CrashMode mode, GRand *random)
{
    const CrashRun *run = losses->run;
    g_autoptr(CrashContent) content = crash_timeline_cut(losses->timeline, cut, mode, random);
    int64_t key =
        (int64_t)(crash_content_digest(content) ^ crash_model_demands(run->model, cut) * 1000003 ^
                  crash_bitmaps_demands(run->bitmaps, cut) * UINT64_C(10000000019));

    if (g_hash_table_contains(losses->good, &key)) {
        return;
    }
    if (!crash_judge(run, cut, content)) {
        crash_disk_print(losses->ops, cut);
        g_error("%s: power lost at tick %" PRIu64 ", what was not flushed is %s; "
                "MERINO_TEST_SEED=%u",
                run->shape->name, cut, mode_names[mode], run->seed);
    }
    g_hash_table_add(losses->good, g_memdup2(&key, sizeof(key)));
}

static void try_cut(Losses *losses, uint64_t cut)
{
    g_autoptr(GRand) random = g_rand_new_with_seed(losses->run->seed ^ (uint32_t)cut);

    tally.cuts++;
    for (CrashMode mode = 0; mode < CRASH_MODES; mode++) {
        int times = mode == CRASH_SOME || mode == CRASH_TORN ? losses->subsets : 1;

        while (times-- > 0) {
            try_mode(losses, cut, mode, random);
        }
    }
}

static void begin(Losses *losses, const CrashRun *run, const GPtrArray *ops, int subsets)
{
    losses->run = run;
    losses->ops = ops;
    losses->timeline = crash_timeline_new(run->before, ops);
    losses->good = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
    losses->subsets = subsets;
}

static void finish(Losses *losses)
{
    crash_timeline_free(losses->timeline);
    g_hash_table_unref(losses->good);
}

static int compare_cuts(gconstpointer a, gconstpointer b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

void crash_judge_all_cuts(const CrashRun *run, const GPtrArray *ops, int64_t stride, int subsets)
{
    g_autoptr(GArray) cuts = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    Losses losses;

    for (guint i = 0; i < ops->len; i += (guint)stride) {
        const DiskOp *op = g_ptr_array_index(ops, i);

        g_array_append_val(cuts, op->begin);
        g_array_append_val(cuts, op->end);
    }
    g_array_sort(cuts, compare_cuts);
    begin(&losses, run, ops, subsets);
    for (guint i = 0; i < cuts->len; i++) {
        try_cut(&losses, g_array_index(cuts, uint64_t, i));
    }
    finish(&losses);
}

static void judge_after_fault(const CrashRun *run, const GPtrArray *ops, uint64_t failed_at,
                              const char *what, GRand *random)
{
    g_autoptr(CrashTimeline) timeline = crash_timeline_new(run->before, ops);
    const DiskOp *last = g_ptr_array_index(ops, ops->len - 1);
    uint64_t later = last->end - failed_at;
    uint64_t cut = failed_at + (uint64_t)(g_rand_double(random) * (double)later);
    CrashMode mode = g_rand_int_range(random, 0, CRASH_MODES);
    g_autoptr(CrashContent) content = crash_timeline_cut(timeline, cut, mode, random);

    if (!crash_judge(run, cut, content)) {
        crash_disk_print(ops, cut);
        g_error("%s: %s, power lost at tick %" PRIu64 ", what was not flushed is %s; "
                "MERINO_TEST_SEED=%u",
                run->shape->name, what, cut, mode_names[mode], run->seed);
    }
}

void crash_judge_fault(const CrashRun *run, int64_t n, bool done)
{
    g_autoptr(GRand) random = g_rand_new_with_seed(run->seed ^ (uint32_t)(2 * n + done));
    g_autoptr(GPtrArray) ops = g_ptr_array_ref((GPtrArray *)crash_disk_ops());
    g_autoptr(CrashContent) content = crash_disk_content();
    uint64_t failed_at = crash_disk_failed_at(), end = crash_now();
    g_autofree char *what = g_strdup_printf("operation %" PRId64 " failed%s at tick %" PRIu64, n,
                                            done ? " and was done" : "", failed_at);

    tally.failures++;
    if (!crash_judge(run, end, content)) {
        crash_disk_print(ops, failed_at);
        g_error("%s: %s; MERINO_TEST_SEED=%u", run->shape->name, what, run->seed);
    }
    judge_after_fault(run, ops, failed_at, what, random);
}

void crash_judge_some_cuts(const CrashRun *run, const GPtrArray *ops, uint64_t last, int64_t cuts)
{
    Losses losses;

    begin(&losses, run, ops, 1);
    for (int64_t i = 0; i <= cuts; i++) {
        try_cut(&losses, last * (uint64_t)i / (uint64_t)cuts);
    }
    finish(&losses);
}
