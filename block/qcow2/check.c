/* SPDX-License-Identifier: MIT */
/*
 * A check from beginning to end: see check.h.
 *
 * Mending in place writes one block or table after another, each of which makes things no worse:
 * refcounts rise to what refers to the cluster or fall to it, flags follow. A crash in the middle
 * leaves the rest to the next check.
 */
#include "check.h"
#include "bitmaps.h"
#include "util/error.h"

#include <errno.h>
#include <inttypes.h>

static void G_GNUC_PRINTF(2, 0) tell(Qcow2Check *check, const char *format, va_list args)
{
    g_autofree char *line = g_strdup_vprintf(format, args);

    if (check->result->message) {
        check->result->message(line, check->result->opaque);
    }
}

void check_say(Qcow2Check *check, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    if (!check->preparing) {
        tell(check, format, args);
    }
    va_end(args);
}

void check_say_mended(Qcow2Check *check, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    tell(check, format, args);
    va_end(args);
}

void check_corruption(Qcow2Check *check, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    if (!check->preparing) {
        tell(check, format, args);
    }
    va_end(args);
    check->result->corruptions++;
}

void check_mended(Qcow2Check *check, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    tell(check, format, args);
    va_end(args);
    check->result->corruptions_fixed++;
}

static void measure_file(Qcow2Check *check)
{
    check->file_clusters = size_to_clusters(check->q, node_size(check->q->node->file->node));
}

static int coroutine_fn reload_tables(Qcow2Check *check)
{
    g_autoptr(GError) error = NULL;

    if (!qcow2_tables_reload(check->q, &error)) {
        check_say(check, "ERROR: %s", error->message);
        return -EIO;
    }
    qcow2_overlap_refresh(check->q);
    return 0;
}

/* A second count without the structures that are to go, whose findings were told by the first. */
static int coroutine_fn rebuild(Qcow2Check *check, const BlockCheckResult *before)
{
    BlockCheckResult *result = check->result, unheard = { 0 };
    int ret;

    check_say_mended(check, "Rebuilding refcount structure");
    ref_counts_free(check->counts);
    check->counts = ref_counts_new();
    check->result = &unheard;
    ret = check_count_references(check);
    check->result = result;
    if (ret == 0 && check->unread) {
        ret = -EIO;
    }
    if (ret == 0) {
        ret = repair_rebuild_refcounts(check);
    }
    if (ret == 0) {
        result->corruptions_fixed += result->corruptions - before->corruptions;
        result->leaks_fixed += result->leaks - before->leaks;
        result->corruptions = before->corruptions;
        result->leaks = before->leaks;
        check->rebuild = false;
        measure_file(check);
        ret = reload_tables(check);
    }
    return ret;
}

static int64_t image_end(Qcow2Check *check)
{
    int64_t last = -1, cluster = ref_counts_next(check->counts, 0);

    for (; cluster >= 0; cluster = ref_counts_next(check->counts, cluster + 1)) {
        last = cluster;
    }
    return MAX(last + 1, check->leaked_end) << check->q->header.cluster_bits;
}

static int coroutine_fn check_refcounts(Qcow2Check *check)
{
    BlockCheckResult before;
    int ret = check_count_references(check);

    if (ret < 0) {
        return ret;
    }
    before = *check->result;
    ret = check_count_refcount_structures(check);
    if (ret == 0) {
        ret = check_compare_refcounts(check);
    }
    if (ret == 0 && check->rebuild && (check->fix & CHECK_FIX_ERRORS)) {
        ret = rebuild(check, &before);
    } else if (ret == 0 && check->rebuild) {
        check_say(check, "ERROR need to rebuild refcount structures");
    }
    return ret;
}

/* --- what needs clusters to be mended: the snapshot table, bitmaps --- */

/* Refcounts that are too low rise, so that nothing is allocated that is in use. What is found
 * beside that is left to the check proper. */
static int coroutine_fn prepare_to_allocate(Qcow2Check *check)
{
    BlockCheckResult before = *check->result;
    unsigned fix = check->fix;
    int ret;

    check->preparing = true;
    check->fix = CHECK_FIX_ERRORS;
    ret = check_refcounts(check);
    before.corruptions_fixed = check->result->corruptions_fixed;
    *check->result = before;
    check->fix = fix;
    check->preparing = false;
    ref_counts_free(check->counts);
    check->counts = ref_counts_new();
    ret = ret ? ret : qcow2_sync(check->q);
    return ret ? ret : reload_tables(check);
}

static void coroutine_fn say_bitmap_fault(const char *words, void *opaque)
{
    Qcow2Check *check = opaque;

    check_mended(check, "Repairing %s", words);
}

static bool is_shared(int64_t host, void *opaque)
{
    Qcow2Check *check = opaque;

    return ref_counts_get(check->counts, host >> check->q->header.cluster_bits) > 1;
}

/* Bitmaps that share clusters with anything else are broken, but only counting finds them. */
static int coroutine_fn blame_bitmaps(Qcow2Check *check)
{
    Qcow2BitmapCheck look = { .fault = say_bitmap_fault, .opaque = check };
    BlockCheckResult before = *check->result;
    unsigned fix = check->fix;
    int ret;

    check->preparing = true;
    check->fix = 0;
    ret = check_count_references(check);
    check->fix = fix;
    check->preparing = false;
    *check->result = before;
    if (ret == 0) {
        qcow2_bitmaps_blame_shared(check->q, is_shared, &look);
    }
    ref_counts_free(check->counts);
    check->counts = ref_counts_new();
    return ret;
}

/* Whether there are bitmaps to be mended, which is told. */
static int coroutine_fn find_bitmap_faults(Qcow2Check *check, bool *ret_any)
{
    Qcow2BitmapCheck look = { .fault = say_bitmap_fault, .opaque = check };
    int64_t before = check->result->corruptions_fixed;
    int ret = 0;

    qcow2_bitmaps_check(check->q, &look);
    if (check->q->header.has_bitmaps) {
        ret = blame_bitmaps(check);
    }
    *ret_any = check->result->corruptions_fixed > before;
    return ret;
}

static int coroutine_fn mend_bitmaps(Qcow2Check *check, int64_t faults)
{
    g_autoptr(GError) error = NULL;

    if (!qcow2_bitmaps_repair(check->q, &error)) {
        check_say(check, "ERROR: %s", error->message);
        check->result->corruptions_fixed -= faults;
    }
    return 0;
}

static int coroutine_fn mend_extras(Qcow2Check *check)
{
    bool snapshots = check_snapshots_need_mending(check), bitmaps = false;
    int64_t before = check->result->corruptions_fixed, faults;
    int ret;

    if (!(check->fix & CHECK_FIX_ERRORS)) {
        return 0;
    }
    ret = find_bitmap_faults(check, &bitmaps);
    if (ret < 0 || (!snapshots && !bitmaps)) {
        return ret;
    }
    faults = check->result->corruptions_fixed - before;
    ret = prepare_to_allocate(check);
    if (ret == 0 && snapshots) {
        ret = check_mend_snapshots(check);
    }
    if (ret == 0 && bitmaps) {
        ret = mend_bitmaps(check, faults);
    }
    ret = ret ? ret : qcow2_write_all(check->q);
    ret = ret ? ret : qcow2_empty_caches(check->q);
    measure_file(check);
    return ret;
}

/* --- the whole --- */

/* Nothing is wrong any more: the flags that say otherwise go. */
static int coroutine_fn clear_flags(Qcow2Check *check)
{
    Qcow2 *q = check->q;
    uint64_t flags = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT;
    g_autoptr(GError) error = NULL;
    int ret;

    if (!check->fix || check->result->corruptions || check->result->check_errors ||
        !(q->header.incompatible & flags)) {
        return 0;
    }
    ret = qcow2_sync(q);
    if (ret == 0) {
        ret = qcow2_set_features(q, q->header.incompatible & ~flags, q->header.autoclear, &error);
    }
    if (ret == 0) {
        q->flags_behind = false;
        atomic_store(&q->corrupt, false);
    }
    return ret;
}

static int coroutine_fn run_check(Qcow2Check *check)
{
    Qcow2 *q = check->q;
    int ret = check->fix ? qcow2_write_all(q) : 0;

    ret = ret ? ret : qcow2_empty_caches(q);
    measure_file(check);
    ret = ret ? ret : check_read_snapshots(check);
    ret = ret ? ret : mend_extras(check);
    ret = ret ? ret : check_refcounts(check);
    if (ret == 0) {
        ret = check_copied_flags(check);
    }
    if (ret == 0 && check->fix) {
        ret = qcow2_sync(q);
    }
    if (ret == 0 && check->fix) {
        ret = reload_tables(check);
    }
    if (ret == 0) {
        ret = clear_flags(check);
    }
    return ret;
}

int coroutine_fn qcow2_check(Qcow2 *q, BlockCheckResult *result, unsigned fix)
{
    Qcow2Check check = { .q = q, .result = result, .fix = fix, .counts = ref_counts_new() };
    int ret;

    result->total_clusters = size_to_clusters(q, q->header.size);
    ret = run_check(&check);
    result->image_end_offset = image_end(&check);
    ref_counts_free(check.counts);
    qcow2_snapshot_table_done(&check.snapshots);
    g_free(check.block);
    return ret;
}

int coroutine_fn qcow2_co_check(BlockNode *node, BlockCheckResult *result, unsigned fix,
                                GError **error)
{
    int ret = qcow2_check(node->state, result, fix);

    if (ret < 0) {
        merino_error_errno(error, -ret, "Check failed");
    }
    return ret;
}

/* --- opening a dirty image --- */

typedef struct DirtyRepair {
    Qcow2 *q;
    BlockCheckResult result;
    int ret;
} DirtyRepair;

static void coroutine_fn repair_entry(void *opaque)
{
    DirtyRepair *repair = opaque;

    repair->ret = qcow2_check(repair->q, &repair->result, CHECK_FIX_LEAKS | CHECK_FIX_ERRORS);
}

bool qcow2_repair_dirty(Qcow2 *q, GError **error)
{
    DirtyRepair repair = { .q = q };

    if (q->repairing || !(q->header.incompatible & QCOW2_INCOMPAT_DIRTY)) {
        return true;
    }
    coroutine_run(repair_entry, &repair);
    if (repair.ret < 0) {
        merino_error_errno(error, -repair.ret, "Could not repair dirty image");
        return false;
    }
    if (repair.result.corruptions || repair.result.check_errors) {
        merino_error(error,
                     "Could not repair dirty image: %" PRId64 " errors were found that remain",
                     repair.result.corruptions + repair.result.check_errors);
        return false;
    }
    return true;
}
