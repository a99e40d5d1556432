/* SPDX-License-Identifier: MIT */
/*
 * What an L1 table refers to: L2 tables and guest data, counted once for each reference.
 *
 * The node is drained, everything was written back and the caches are empty: tables are read from
 * the file.
 */
#ifndef MERINO_QCOW2_SNAPSHOT_REFS_H
#define MERINO_QCOW2_SNAPSHOT_REFS_H

#include "qcow2.h"

/* Read an L1 table of the file, in host order. Caller frees. NULL with an error. */
uint64_t *coroutine_fn qcow2_l1_read(Qcow2 *q, int64_t offset, uint32_t entries, GError **error);

/* Whether every reference is one to clusters that can be. -EIO with an error if not. */
int coroutine_fn qcow2_refs_check(Qcow2 *q, const uint64_t *l1, uint32_t entries, GError **error);
/* Add one to the refcount of everything, in memory; all or nothing. */
int coroutine_fn qcow2_refs_raise(Qcow2 *q, const uint64_t *l1, uint32_t entries, GError **error);
/* qcow2_free() everything once. */
int coroutine_fn qcow2_refs_free(Qcow2 *q, const uint64_t *l1, uint32_t entries, GError **error);

/* Set the copied flags of the active tables as refcounts say, or clear them all; durable. */
int coroutine_fn qcow2_copied_flags_set(Qcow2 *q, bool by_refcount, GError **error);

#endif
