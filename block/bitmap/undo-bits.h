/* SPDX-License-Identifier: MIT */
/*
 * The undo step of whatever changes a bitmap's bits.
 */
#ifndef MERINO_BLOCK_BITMAP_UNDO_BITS_H
#define MERINO_BLOCK_BITMAP_UNDO_BITS_H

#include "bitmap-internal.h"

/* Remember the bits as they are now and push a step that brings them back. Costs one step for each
 * directory of the bitmap. Inside list_lock_folded(). */
void undo_push_bits(UndoStack *undo, DirtyBitmap *bitmap);

#endif
