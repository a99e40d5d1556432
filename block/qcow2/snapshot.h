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

/* --- snapshot.c: the driver's functions --- */

int coroutine_fn qcow2_co_snapshot_create(BlockNode *node, const SnapshotInfo *info,
                                          GError **error);
int coroutine_fn qcow2_co_snapshot_goto(BlockNode *node, const char *id, GError **error);
int coroutine_fn qcow2_co_snapshot_delete(BlockNode *node, const char *id, GError **error);
SnapshotInfoList *qcow2_snapshot_list(BlockNode *node);

#endif
