/* SPDX-License-Identifier: MIT */
/*
 * The options of an open image, and the parts of opening that other files use. Control plane.
 */
#ifndef MERINO_QCOW2_OPTIONS_H
#define MERINO_QCOW2_OPTIONS_H

#include "qcow2.h"

/* What options can be reopened with. */
extern const char *const qcow2_runtime_options[];

/* The options in force for an image with q's header. `discard_unmap`: the node passes discards on.
 * Writes nothing but `ret`, and that only on success. */
bool qcow2_options_resolve(const Qcow2 *q, const BlockdevOptionsQcow2 *options, bool discard_unmap,
                           Qcow2Options *ret, GError **error);

/* The same for an open image whose header has changed: what depends on the disk's size or on the
 * image's features, and was not given, follows. Drained, in or outside of coroutines. */
void qcow2_options_renew(Qcow2 *q);

/* --- open.c --- */

bool qcow2_open(BlockNode *node, const BlockdevOptions *options, GError **error);
void qcow2_close(BlockNode *node);
/* Make what must be true of an image that is written to: features that others must not keep are
 * cleared, damage refuses. */
bool qcow2_check_writable(const Qcow2 *q, GError **error);
bool qcow2_clear_unknown_autoclear(Qcow2 *q, GError **error);
/* Geometry and masks from q->header. */
void qcow2_set_geometry(Qcow2 *q);

/* --- reopen.c --- */

bool qcow2_reopen_prepare(ReopenState *state, UndoStack *undo, GError **error);

/* --- info.c --- */

ImageInfoSpecific *qcow2_specific_info(BlockNode *node, GError **error);
bool qcow2_is_dirty(BlockNode *node);

/* --- create.c --- */

int coroutine_fn qcow2_co_create(const BlockdevCreateOptions *options, GError **error);

#endif
