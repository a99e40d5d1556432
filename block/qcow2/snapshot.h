/* SPDX-License-Identifier: MIT */
/*
 * Internal snapshots: copies of the L1 table, kept in the image under a name.
 *
 * Calling context: the node is drained, or not open yet.
 */
#ifndef MERINO_QCOW2_SNAPSHOT_H
#define MERINO_QCOW2_SNAPSHOT_H

#include "qcow2.h"

/* --- snapshot-table.c --- */

/* Read the table that the header names into q->snapshots. What its entries point to is looked at
 * only when it is used. */
int coroutine_fn qcow2_snapshots_read(Qcow2 *q, GError **error);
/* Forget it. */
void qcow2_snapshots_done(Qcow2 *q);

/* A table as it lies in the file, whatever is wrong with it. */
typedef struct Qcow2SnapshotTable {
    Qcow2Snapshot *snapshots;
    uint32_t n;    /* entries up to where the table, or the file, ends */
    int64_t bytes; /* that they take */
} Qcow2SnapshotTable;

/* Read up to `n` entries (at most QCOW2_MAX_SNAPSHOTS) from `offset` on. Fails only as a read does.
 */
int coroutine_fn qcow2_snapshots_scan(Qcow2 *q, int64_t offset, uint32_t n,
                                      Qcow2SnapshotTable *ret);
void qcow2_snapshot_table_done(Qcow2SnapshotTable *table);

/* Write q->snapshots to clusters of their own and make the header point there, durably; the old
 * table's clusters are freed. On failure the file refers to the old table; when even that is not
 * known,
 * `*ret_unsure`, and nothing of either state may be freed. */
int coroutine_fn qcow2_snapshots_write(Qcow2 *q, bool *ret_unsure, GError **error);
/* What the verbs share: say what failed and return `ret`; qcow2_free() under the lock, nothing for
 * no bytes. */
int qcow2_snapshot_fail(GError **error, int ret, const char *what);
void coroutine_fn qcow2_snapshot_free(Qcow2 *q, int64_t host, int64_t bytes);
void qcow2_snapshot_done(Qcow2Snapshot *snapshot);

/* --- snapshot-diff.c --- */

/* Before the disk becomes one of `size` bytes with that L1 table, in host order: what its bitmaps
 * need to know of it. */
int coroutine_fn qcow2_snapshot_mark(Qcow2 *q, const uint64_t *l1, uint32_t entries, int64_t size,
                                     GError **error);

/* --- snapshot.c: the driver's functions --- */

int coroutine_fn qcow2_co_snapshot_create(BlockNode *node, const SnapshotInfo *info,
                                          GError **error);
int coroutine_fn qcow2_co_snapshot_goto(BlockNode *node, const char *id, GError **error);
int coroutine_fn qcow2_co_snapshot_delete(BlockNode *node, const char *id, GError **error);
SnapshotInfoList *qcow2_snapshot_list(BlockNode *node);

#endif
