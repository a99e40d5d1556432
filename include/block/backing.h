/* SPDX-License-Identifier: MIT */
/*
 * Backing files: what a format's image stands over, and how it is found and opened.
 *
 * Calling context: control plane.
 */
#ifndef MERINO_BLOCK_BACKING_H
#define MERINO_BLOCK_BACKING_H

#include "block/node.h"

/*
 * For a format's open function, when its `file` child is there and its header is read: attach the
 * `backing` child. `name` and `format` are what the image's header says of its backing file; NULL:
 * it names none. `given` is the option `backing`: NULL opens what the header names, null nothing.
 * The errors of opening begin with "Could not open backing file: ". The caller does not detach the
 * child when it fails later.
 *
 * A node that is opened this way is read-only unless it is told otherwise, takes over its parent's
 * other options, and goes with its parent.
 */
bool node_open_backing(BlockNode *node, const BlockdevRefOrNull *given, const char *name,
                       const char *format, GError **error);

/* The header names another backing file now; NULLs: none. */
void node_set_backing_name(BlockNode *node, const char *name, const char *format);

/* What the header names, as a name that opens it from here: relative names begin at the folder of
 * the image. Caller frees. NULL without error when it names none. */
char *node_full_backing_name(const BlockNode *node, GError **error);
/* The same of any name that its header might have. */
char *node_backing_name_from(const BlockNode *node, const char *name, GError **error);

/*
 * The options of a node for the image that is called `filename`: a path, a path behind "file:", or
 * "json:{...}" with options, whose keys may be paths ("file.filename"). `format` is the driver's
 * name; NULL: a format that recognises the image, else raw. Errors are in QEMU's words. Looking at
 * the image takes the common options of an inline child of `parent` (may be NULL).
 */
BlockdevOptions *image_options(const char *filename, const char *format, BlockNode *parent,
                               GError **error);
/* Of the file alone, without a format over it; no "json:". */
BlockdevOptions *image_file_options(const char *filename, GError **error);

#endif
