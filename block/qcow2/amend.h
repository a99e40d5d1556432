/* SPDX-License-Identifier: MIT */
/*
 * Changing the format of an image that is there. The node is drained and open for writing.
 */
#ifndef MERINO_QCOW2_AMEND_H
#define MERINO_QCOW2_AMEND_H

#include "qcow2.h"

/* The driver's function: all checks come before the first change. */
int coroutine_fn qcow2_co_amend(BlockNode *node, const BlockAmendOptions *options, GError **error);

/* amend-refcount.c: count clusters in 1 << order bits. */
int coroutine_fn qcow2_amend_refcounts(Qcow2 *q, unsigned order, const BlockAmendOptions *options,
                                       GError **error);

#endif
