/* SPDX-License-Identifier: MIT */
/*
 * Dirty bitmaps of a disk: which bytes changed while a bitmap was enabled.
 *
 * A DirtyBitmap has a name (or none, when internal), a granularity in bytes (a power of two,
 * BITMAP_MIN_GRANULARITY to BITMAP_MAX_GRANULARITY) and a state. A BitmapList holds the bitmaps of
 * one disk. Both know bytes and names, never nodes.
 *
 * Calling context. bitmap_list_mark() is the write path and may run on any thread, without a lock.
 * Everything that changes a bitmap's existence, state or contents runs on the control plane, and
 * while no write is in flight ("drained") when an enabled bitmap is concerned. What is marked
 * "any thread" below may be called wherever the control plane keeps the bitmap held or otherwise
 * lets no verb run on it meanwhile.
 *
 * Writes do not mark every bitmap. They mark the list's one epoch bitmap, whose granularity is
 * that of the finest enabled bitmap; whoever looks at a bitmap's bits, or changes which bitmaps
 * are enabled, first folds the epoch into every enabled bitmap. So a write costs the same whatever
 * the number of bitmaps. bitmap_bits() and the verbs below do the folding.
 */
#ifndef MERINO_BLOCK_DIRTY_BITMAP_H
#define MERINO_BLOCK_DIRTY_BITMAP_H

#include "util/coroutine.h"
#include "util/hbitmap.h"
#include "util/undo.h"

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define BITMAP_MIN_GRANULARITY     512
#define BITMAP_MAX_GRANULARITY     (INT64_C(1) << 31)
#define BITMAP_DEFAULT_GRANULARITY 65536
#define BITMAP_MAX_NAME            1023 /* bytes */

typedef struct BitmapList BitmapList;
typedef struct DirtyBitmap DirtyBitmap;

/*
 * Where persistent bitmaps live; a format hands its table to the list of its disk. Control plane,
 * but for co_mark(). `opaque` is the format's.
 *
 * What is stored of a bitmap may be relied on until the bitmap is *marked*: marking makes durable
 * that the stored copy is out of date. It happens before the bitmap's bits or state first change
 * (bitmap_prepare_change(), bitmap_list_co_before_write()) and ends when store() has stored it anew
 * (bitmap_set_stored()). So a crash costs only bitmaps that changed.
 */
typedef struct BitmapStore {
    /* Whether a bitmap of this name and granularity could be stored; else an error that says why.
     */
    bool (*can_store)(void *opaque, const char *name, int64_t granularity, GError **error);
    /* Set in `bits` (all clear, the bitmap's granularity and size) what is stored of `bitmap`. */
    bool (*load)(void *opaque, const DirtyBitmap *bitmap, HBitmap *bits, GError **error);
    /* Write out all persistent bitmaps of the list; called by the format or the core at close. */
    bool (*store)(void *opaque, BitmapList *list, GError **error);
    /* Remove the stored copy of one bitmap, when `undo` (may be NULL) is committed; no error when
     * there is none. */
    bool (*remove)(void *opaque, const char *name, UndoStack *undo, GError **error);
    /* Mark these bitmaps, durably. Any thread, one call at a time for a list; also on behalf of a
     * write that waits for it. NULL: the store needs no marks. */
    int coroutine_fn (*co_mark)(void *opaque, DirtyBitmap *const bitmaps[], size_t n,
                                GError **error);
} BitmapStore;

/* `owner` is the word used for the disk in messages: the node's name. Copied. */
BitmapList *bitmap_list_new(const char *owner, int64_t size);
void bitmap_list_free(BitmapList *list);

/* NULL when the disk cannot keep bitmaps. */
void bitmap_list_set_store(BitmapList *list, const BitmapStore *store, void *opaque);
const BitmapStore *bitmap_list_store(const BitmapList *list, void **ret_opaque);

/*
 * Before the disk's contents change for the first time: bitmaps that record are marked in their
 * store. 0 or -errno; then nothing may be written. Costs a look when all is marked. Any thread.
 */
int coroutine_fn bitmap_list_co_before_write(BitmapList *list);
/* The same before the disk's size changes: all persistent bitmaps are marked. Drained. */
int coroutine_fn bitmap_list_co_before_resize(BitmapList *list);
/* The store wants co_mark() to be called before the next write in any case. Drained. */
void bitmap_list_expect_write(BitmapList *list);
/* Nobody knows any more which bitmaps are marked in the store, because storing or removing failed:
 * co_mark() is called before the next write, verb or resize, with the bitmaps concerned. Drained.
 */
void bitmap_list_forget_marks(BitmapList *list);

/*
 * The write path: bytes [offset, offset + bytes) were written, zeroed or discarded. Called after
 * the bytes are in place and before the write is acknowledged. What lies beyond the end is
 * remembered as one range, and marked when the list gets a size that holds it. Any thread.
 */
void bitmap_list_mark(BitmapList *list, int64_t offset, int64_t bytes);

/* A hint, for whoever is inside of a request: a write at this offset (any number will do) is about
 * to be marked, and what that takes can be fetched meanwhile. Any thread. */
void bitmap_list_prefetch(const BitmapList *list, uint64_t offset);

/* Whether any bitmap gets what is marked. Any thread. */
bool bitmap_list_records(const BitmapList *list);

int64_t bitmap_list_size(const BitmapList *list);

/* The disk has a new size. New bytes are clean, but for those that were marked beyond the end; bits
 * beyond the end are gone. Drained. Refused (before anything changes) by bitmap_list_check_resize()
 * when a bitmap is busy or cannot be changed. */
bool bitmap_list_check_resize(BitmapList *list, int64_t size, GError **error);
void bitmap_list_resize(BitmapList *list, int64_t size);

/* Give back what pages hold that writes have emptied or filled. Drained; costs a look at a flag for
 * each bitmap where there is nothing to give back. Bitmaps that are in use stay as they are, and so
 * do those without a name: who uses these may read them while the disk is drained. The second
 * function, on the control plane at any time: whether there is something. */
void bitmap_list_tidy(BitmapList *list);
bool bitmap_list_is_untidy(BitmapList *list);

/* Bytes that the bits of the disk's bitmaps take, with what writes mark. Drained. */
size_t bitmap_list_memory(BitmapList *list);

/* Newest first, as QMP lists them: bitmap_list_next(list, NULL) is the newest. Includes anonymous
 * bitmaps. */
DirtyBitmap *bitmap_list_next(BitmapList *list, DirtyBitmap *previous);

/* By name; NULL when there is none. */
DirtyBitmap *bitmap_find(BitmapList *list, const char *name);
/* The same with QEMU's words: Dirty bitmap 'x' not found. */
DirtyBitmap *bitmap_lookup(BitmapList *list, const char *name, GError **error);

/*
 * The verbs. Each checks its arguments and the bitmap's state against one table (state.c) and
 * fails in QEMU's words. With an `undo` stack the verb takes effect at once and can be
 * taken back exactly; NULL means that it is final. One exception, for QEMU's sake: until its
 * undo stack is committed a removed bitmap stays listed, refuses every verb as busy, and keeps
 * its name from being used again.
 *
 * granularity 0 means `default_granularity`, the disk's (its cluster size within 4 KiB and 64 KiB).
 */
typedef struct BitmapAddOptions {
    const char *name; /* NULL: anonymous */
    int64_t granularity;
    int64_t default_granularity;
    bool persistent;
    bool disabled;
} BitmapAddOptions;

DirtyBitmap *bitmap_add(BitmapList *list, const BitmapAddOptions *options, UndoStack *undo,
                        GError **error);
bool bitmap_remove(DirtyBitmap *bitmap, UndoStack *undo, GError **error);
bool bitmap_clear(DirtyBitmap *bitmap, UndoStack *undo, GError **error);
bool bitmap_enable(DirtyBitmap *bitmap, UndoStack *undo, GError **error);
bool bitmap_disable(DirtyBitmap *bitmap, UndoStack *undo, GError **error);

/* Add what is dirty in any of the `sources` to `target`, all or nothing. Granularities may differ;
 * sizes must be equal. Sources may be of other lists, drained too when the source is enabled. */
bool bitmap_merge(DirtyBitmap *target, DirtyBitmap *const sources[], size_t n_sources,
                  UndoStack *undo, GError **error);
/* Whether one source could be merged now. */
bool bitmap_check_merge(DirtyBitmap *target, DirtyBitmap *source, GError **error);

/* Properties. Sizes and counts in bytes. */
const char *bitmap_name(const DirtyBitmap *bitmap);
BitmapList *bitmap_owner(const DirtyBitmap *bitmap);
int64_t bitmap_granularity(const DirtyBitmap *bitmap);
int64_t bitmap_size(const DirtyBitmap *bitmap);
int64_t bitmap_dirty_bytes(DirtyBitmap *bitmap); /* dirty bits times granularity */
bool bitmap_is_enabled(const DirtyBitmap *bitmap);
bool bitmap_is_busy(const DirtyBitmap *bitmap);
bool bitmap_is_read_only(const DirtyBitmap *bitmap);
bool bitmap_is_persistent(const DirtyBitmap *bitmap);
bool bitmap_is_inconsistent(const DirtyBitmap *bitmap);
const char *bitmap_inconsistent_reason(const DirtyBitmap *bitmap); /* NULL when consistent */
char *bitmap_sha256(DirtyBitmap *bitmap); /* hex, of the bits as 64-bit little-endian words */

/* What a user of a bitmap asks of it before using it. Fails in QEMU's words. */
typedef enum BitmapNeed {
    BITMAP_NEED_NOT_BUSY = 1 << 0,
    BITMAP_NEED_WRITABLE = 1 << 1,
    BITMAP_NEED_CONSISTENT = 1 << 2,
    BITMAP_NEED_ALL = 7,
} BitmapNeed;

bool bitmap_check(const DirtyBitmap *bitmap, unsigned needs, GError **error);

/* In use by a job or an export: counted, so that users who know of each other may share it.
 * A held bitmap refuses every verb. Control plane. */
void bitmap_hold(DirtyBitmap *bitmap);
void bitmap_release(DirtyBitmap *bitmap);

/* State set by formats when they load and close. Control plane; bitmap_set_read_only() drained. A
 * read-only bitmap keeps its bits, whether enabled or not. An inconsistent one counts as clean
 * and disabled, and can only be removed; `reason` (copied) is for people. */
void bitmap_set_read_only(DirtyBitmap *bitmap, bool read_only);
void bitmap_set_persistent(DirtyBitmap *bitmap, bool persistent);
void bitmap_set_inconsistent(DirtyBitmap *bitmap, const char *reason);

/* List bitmaps that the store holds, the last one as the newest. They are not marked; their bits
 * are loaded when they are first needed. Names must differ from one another and from those in
 * the list. Fails, without any effect, when there is no memory for so large ones. Drained. */
typedef struct BitmapStored {
    const char *name;
    int64_t granularity;
    bool enabled;
    bool read_only;
    const char *inconsistent; /* the reason; NULL: it is sound */
} BitmapStored;

bool bitmap_list_add_stored(BitmapList *list, const BitmapStored *stored, size_t n, GError **error);

/*
 * Deferred loading: the stored bits are brought in by the store's load() when somebody first needs
 * them; what is written meanwhile is added. bitmap_load() does it now, and nothing when it
 * is done. A bitmap that cannot be loaded becomes inconsistent. Verbs and digests call it
 * by themselves, counts as long as they must; whoever holds a bitmap calls it before. Control
 * plane.
 */
void bitmap_set_deferred(DirtyBitmap *bitmap);
bool bitmap_is_deferred(const DirtyBitmap *bitmap);
bool bitmap_load(DirtyBitmap *bitmap, GError **error);

/* Before a bitmap's bits or state are changed other than by a verb or a write (by
 * bitmap_set_range() for a job, say): load it, and mark it. Control plane. */
bool bitmap_prepare_change(DirtyBitmap *bitmap, GError **error);

/* For stores: whether the stored copy is known to be out of date; the bits that it holds (of the
 * bitmap's size), or NULL when they are not known or there is none; that it holds the
 * present bits and state now, of which the bitmap keeps a copy that shares pages; and that
 * nobody knows any more what it holds, because storing failed. Drained. */
bool bitmap_is_marked(const DirtyBitmap *bitmap);
HBitmap *bitmap_stored_bits(DirtyBitmap *bitmap);
void bitmap_set_stored(DirtyBitmap *bitmap);
void bitmap_forget_stored(DirtyBitmap *bitmap);

/*
 * Dirty ranges, in bytes: the first dirty area at or after `offset` and before `end`, cut at `end`
 * and at `max_bytes`. False when there is none. Any thread, while writes go on.
 */
bool bitmap_next_dirty_area(DirtyBitmap *bitmap, int64_t offset, int64_t end, int64_t max_bytes,
                            int64_t *ret_offset, int64_t *ret_bytes);
/* Offset of the first dirty / clean byte in [offset, end), or `end`. */
int64_t bitmap_next_dirty(DirtyBitmap *bitmap, int64_t offset, int64_t end);
int64_t bitmap_next_clean(DirtyBitmap *bitmap, int64_t offset, int64_t end);
bool bitmap_get(DirtyBitmap *bitmap, int64_t offset);

/* For jobs and formats, by bytes: set the bits that the range touches; clear those that lie wholly
 * in it (the last bit ends where the disk ends). Any thread. */
void bitmap_set_range(DirtyBitmap *bitmap, int64_t offset, int64_t bytes);
void bitmap_reset_range(DirtyBitmap *bitmap, int64_t offset, int64_t bytes);

/* The bits, with every write acknowledged so far folded in. Valid until a verb runs. Any thread. */
HBitmap *bitmap_bits(DirtyBitmap *bitmap);

/* The same for who is not behind a door of the disk, which so may grow meanwhile: it keeps its size
 * until the unlock. Not over a yield. */
HBitmap *bitmap_lock_bits(DirtyBitmap *bitmap);
void bitmap_unlock_bits(DirtyBitmap *bitmap);

#endif
