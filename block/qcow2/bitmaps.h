/* SPDX-License-Identifier: MIT */
/*
 * Dirty bitmaps that live in a qcow2 image: what the rest of the driver calls.
 *
 * What is on disk: the header extension says where the *directory* lies; its entries name the
 * bitmaps and their *tables*; a table has one entry for each cluster of bits, which is all zeros,
 * all ones, or the place of a cluster. In memory a bitmap is a DirtyBitmap of the node's list; its
 * bits are read when they are first needed, so opening reads the directory and the tables.
 *
 * Nothing that the file says about bitmaps keeps a disk from opening. What is damaged is listed as
 * inconsistent with the reason, and can be removed. qcow2_header_read() leaves it to these
 * functions to judge the extension's numbers.
 *
 * An entry is marked *in use* in the file, durably, before the bits or the state of its bitmap
 * first differ from what is stored: before the first guest write that an enabled one records, and
 * before a verb changes one. Storing takes the mark away. docs/devel/qcow2.md numbers the rules (B1
 * ...).
 *
 * Calling context: control plane, in or outside coroutines, while the node is drained or not yet
 * visible. Functions without coroutine_fn poll the main loop when called outside a coroutine.
 */
#ifndef MERINO_QCOW2_BITMAPS_H
#define MERINO_QCOW2_BITMAPS_H

#include "qcow2.h"
#include "util/undo.h"

/*
 * The last step of opening: header, tables and the node's size are there. Lists what is stored in
 * node->bitmaps and becomes their store. Writes nothing. When the autoclear bit is not set, what
 * the extension says is forgotten (q->header.has_bitmaps becomes false), with a warning.
 */
void qcow2_bitmaps_open(Qcow2 *q);

/* The first step of closing, while metadata can still be written: store what changed unless the
 * node is read-only, and let go. What cannot be stored is told in a warning and stays marked. */
void qcow2_bitmaps_close(Qcow2 *q);

/* Write out what changed and take away the marks of what was stored. Afterwards the file is as if
 * it had been closed; the disk may go on. */
bool qcow2_bitmaps_store(Qcow2 *q, GError **error);

/* reopen_prepare of a node that becomes read-only: store, and make the stored bitmaps read-only,
 * until `undo` says otherwise. */
bool qcow2_bitmaps_reopen_ro(Qcow2 *q, UndoStack *undo, GError **error);
/* The commit of a node that becomes writable. */
void qcow2_bitmaps_reopen_rw(Qcow2 *q);

/* The disk has another size, for which all stored bitmaps are marked. */
void qcow2_bitmaps_resized(Qcow2 *q);

/* For ImageInfoSpecificQCow2: what the file says now. NULL: there is none. Caller frees. */
Qcow2BitmapInfoList *qcow2_bitmaps_info(Qcow2 *q);

/*
 * For the image's check: every cluster that the bitmaps refer to, and every fault. `used` is called
 * with what belongs to whom ("bitmap directory", "table of bitmap 'x'", ...), once for each
 * reference; `fault` with a sentence about something that is wrong. Ranges that cannot be (not
 * aligned, beyond the file) are faults and are not `used`. Reads the file again; what cannot be
 * read is a fault. Returns the number of faults.
 */
typedef struct Qcow2BitmapCheck {
    void (*used)(int64_t host, int64_t bytes, const char *what, void *opaque); /* or NULL */
    void (*fault)(const char *words, void *opaque);                            /* or NULL */
    void *opaque;
    bool only_sound; /* what entries with faults refer to is not `used` */
} Qcow2BitmapCheck;
int64_t coroutine_fn qcow2_bitmaps_check(Qcow2 *q, const Qcow2BitmapCheck *check);

/*
 * Bitmaps that refer to clusters which others refer to as well, as `shared` tells of a host offset:
 * their entries have a fault from then on, which is told to `check`. Returns how many.
 */
int64_t coroutine_fn qcow2_bitmaps_blame_shared(Qcow2 *q,
                                                bool (*shared)(int64_t host, void *opaque),
                                                const Qcow2BitmapCheck *check);

/*
 * Mend what qcow2_bitmaps_check() found: bitmaps with faults keep their names, marked in use, with
 * an empty table of their own; what they referred to is not freed, as it may be another's.
 * Afterwards the check finds no fault, and leaks at most. Does nothing when there is no fault.
 */
bool coroutine_fn qcow2_bitmaps_repair(Qcow2 *q, GError **error);

#endif
