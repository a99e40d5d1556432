/* SPDX-License-Identifier: MIT */
/*
 * Checking an image: what the files check*.c and repair.c share.
 *
 * A check counts the references to every cluster of the image file from what refers to clusters
 * (header, L1 and L2 tables of the disk and of its snapshots, refcount structures, bitmaps), and
 * compares the counts with the refcounts. It works on the file as it is, beside the caches, so they
 * are written back and emptied before, and the tables in memory are read anew after mending.
 *
 * Coroutines of the main loop; the node is drained.
 */
#ifndef MERINO_QCOW2_CHECK_H
#define MERINO_QCOW2_CHECK_H

#include "qcow2.h"
#include "snapshot.h"

#include <stdarg.h>

typedef struct RefCounts RefCounts;

typedef struct Qcow2Check {
    Qcow2 *q;
    BlockCheckResult *result;
    unsigned fix; /* BlockCheckFix bits */
    RefCounts *counts;
    int64_t file_clusters;        /* of the image file, rounded up */
    int64_t leaked_end;           /* the file's last leaked cluster ends here; 0: none */
    bool rebuild;                 /* the refcount structures are beyond mending in place */
    bool mends_flags;             /* copied flags (check-copied.c) */
    bool preparing;               /* only what is mended is told; broken bitmaps count nothing */
    Qcow2SnapshotTable snapshots; /* as it is in the file */
    int64_t snapshots_offset;
    bool hidden; /* some references are not known: what seems leaked may be used */
    bool unread; /* because a table could not be read, which may be sound */

    /* The refcount block that check_read_refcount() looked at last; 0: none. */
    int64_t block_host;
    uint8_t *block;
} Qcow2Check;

/* Tell the caller of the check: about a finding, and about what was done to it. */
void check_say(Qcow2Check *check, const char *format, ...) G_GNUC_PRINTF(2, 3);
void check_say_mended(Qcow2Check *check, const char *format, ...) G_GNUC_PRINTF(2, 3);
/* The same of a corruption, which is counted. */
void check_corruption(Qcow2Check *check, const char *format, ...) G_GNUC_PRINTF(2, 3);
void check_mended(Qcow2Check *check, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* --- check-counts.c: references counted, for each cluster of the file --- */

RefCounts *ref_counts_new(void);
void ref_counts_free(RefCounts *counts);
uint32_t ref_counts_get(RefCounts *counts, int64_t cluster);
/* Stays at its largest value rather than overflow. */
void ref_counts_add(RefCounts *counts, int64_t cluster, int64_t delta);
/* The first cluster at or after `cluster` with references; -1 when there is none. */
int64_t ref_counts_next(RefCounts *counts, int64_t cluster);

/* --- check-references.c --- */

/* Count all references but those of the refcount structures. 0, or -errno when memory or the file
 * fails; findings are in check->result. */
int coroutine_fn check_count_references(Qcow2Check *check);
/* One reference for each cluster that the range touches. */
void check_count_range(Qcow2Check *check, int64_t host, int64_t bytes);

/* All that an L1 table refers to, and the table; `active`: it is the disk's. */
int coroutine_fn check_count_l1(Qcow2Check *check, int64_t host, uint32_t entries, bool active);

/* --- check-snapshots.c --- */

/* Read the table into check->snapshots. -errno, and it is told why, where it is so damaged that the
 * check cannot go on without mending it. */
int coroutine_fn check_read_snapshots(Qcow2Check *check);
/* The references of the snapshots and of their table. */
int coroutine_fn check_count_snapshots(Qcow2Check *check);
/* Whether -r all has something to do; and doing it, when no refcount is too low. */
bool check_snapshots_need_mending(const Qcow2Check *check);
int coroutine_fn check_mend_snapshots(Qcow2Check *check);

/* --- check-refcounts.c --- */

/* Count the references that the refcount table and the blocks are. */
int coroutine_fn check_count_refcount_structures(Qcow2Check *check);
/* Compare and mend, cluster by cluster. */
int coroutine_fn check_compare_refcounts(Qcow2Check *check);
/* The refcount of a cluster as the file has it; 0 where there is none. */
int coroutine_fn check_read_refcount(Qcow2Check *check, int64_t cluster, uint64_t *ret);

/* --- check-copied.c: the copied flag of L1 and L2 entries (Q5) --- */

int coroutine_fn check_copied_flags(Qcow2Check *check);

/* --- repair.c --- */

/* Write refcount structures that say what check->counts does, which holds no references of the old
 * ones, and switch to them. */
int coroutine_fn repair_rebuild_refcounts(Qcow2Check *check);

/* --- check.c --- */

/* Check, and mend what `fix` allows, then take the tables over. Also clears the dirty and corrupt
 * flags when nothing is left. For the driver's hook and for opening a dirty image. */
int coroutine_fn qcow2_check(Qcow2 *q, BlockCheckResult *result, unsigned fix);
int coroutine_fn qcow2_co_check(BlockNode *node, BlockCheckResult *result, unsigned fix,
                                GError **error);

/* The image was not closed properly, so its refcounts may be wrong: mend it before it is written.
 * Nothing where it was. Outside of coroutines; tables and bitmaps are open. */
bool qcow2_repair_dirty(Qcow2 *q, GError **error);

#endif
