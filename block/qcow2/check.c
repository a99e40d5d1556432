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

void check_say(Qcow2Check *check, const char *format, ...)
{
    g_autofree char *line = NULL;
    va_list args;

    if (!check->result->message) {
        return;
    }
    va_start(args, format);
    line = g_strdup_vprintf(format, args);
    va_end(args);
    check->result->message(line, check->result->opaque);
}

/* Bitmaps first: mending them gives them tables of their own, which are then counted. */
static int coroutine_fn mend_bitmaps(Qcow2Check *check)
{
    g_autoptr(GError) error = NULL;
    Qcow2BitmapCheck look = { NULL, NULL, NULL };
    int64_t faults;

    if (!(check->fix & CHECK_FIX_ERRORS)) {
        return 0;
    }
    faults = qcow2_bitmaps_check(check->q, &look);
    if (faults <= 0) {
        return 0;
    }
    if (!qcow2_bitmaps_repair(check->q, &error)) {
        check_say(check, "ERROR: %s", error->message);
        return 0;
    }
    check_say(check, "Repairing bitmaps: %" PRId64 " faults", faults);
    check->result->corruptions_fixed += faults;
    return qcow2_empty_caches(check->q);
}

static void measure_file(Qcow2Check *check)
{
    check->file_clusters = size_to_clusters(check->q, node_size(check->q->node->file->node));
}

static int coroutine_fn reload_tables(Qcow2Check *check)
{
    g_autoptr(GError) error = NULL;

    qcow2_tables_close(check->q);
    if (!qcow2_tables_open(check->q, &error)) {
        check_say(check, "ERROR: %s", error->message);
        return -EIO;
    }
    return 0;
}

/* A second count without the structures that are to go, whose findings were told by the first. */
static int coroutine_fn rebuild(Qcow2Check *check, const BlockCheckResult *before)
{
    BlockCheckResult *result = check->result, unheard = { 0 };
    int ret;

    check_say(check, "Rebuilding refcount structure");
    ref_counts_free(check->counts);
    check->counts = ref_counts_new();
    check->result = &unheard;
    ret = check_count_references(check);
    check->result = result;
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
    return (last + 1) << check->q->header.cluster_bits;
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

/* Nothing is wrong any more: the flags that say otherwise go. */
static int coroutine_fn clear_flags(Qcow2Check *check)
{
    Qcow2 *q = check->q;
    uint64_t flags = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT;
    g_autoptr(GError) error = NULL;
    int ret;

    if (check->fix != (CHECK_FIX_LEAKS | CHECK_FIX_ERRORS) || check->result->corruptions ||
        check->result->check_errors || !(q->header.incompatible & flags)) {
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
    int ret = qcow2_empty_caches(q);

    if (ret == 0) {
        ret = mend_bitmaps(check);
    }
    measure_file(check);
    if (ret == 0) {
        ret = check_refcounts(check);
    }
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
