/* SPDX-License-Identifier: MIT */
/*
 * From the names in a command to a bitmap.
 */
#ifndef MERINO_MONITOR_BITMAP_LOOKUP_H
#define MERINO_MONITOR_BITMAP_LOOKUP_H

#include "block/node.h"

/* In QEMU's words: Node 'x' not found, Dirty bitmap 'x' not found. */
DirtyBitmap *bitmap_of_node(const BlockDirtyBitmap *which, GError **error);

#endif
