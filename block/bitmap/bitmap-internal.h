/* SPDX-License-Identifier: MIT */
/*
 * The inside of a disk's dirty bitmaps: the structs, and the steps that the verbs share.
 *
 * Two kinds of fields. What writers read on any thread (`epoch`, `epoch_shift`, `size`,
 * `recorders`) changes only while no write is in flight. What a fold reads (which bitmaps record,
 * and their bits while it sets them) is under `lock`, because a fold may be started on any thread
 * by somebody who reads one bitmap while the control plane works on another. All else is the
 * control plane's.
 *
 * Only the control plane ever holds two lists' locks, and nobody waits for anything else
 * under one.
 */
#ifndef MERINO_BLOCK_BITMAP_INTERNAL_H
#define MERINO_BLOCK_BITMAP_INTERNAL_H

#include "block/dirty-bitmap.h"

#include <inttypes.h>
#include <stdatomic.h>

/* What is asked of a bitmap; the columns of the table in state.c. */
typedef enum BitmapVerb {
    BITMAP_VERB_REMOVE,
    BITMAP_VERB_CLEAR,
    BITMAP_VERB_ENABLE,
    BITMAP_VERB_DISABLE,
    BITMAP_VERB_MERGE_INTO,
    BITMAP_VERB_MERGE_FROM,
    BITMAP_VERB_RESIZE,
    BITMAP_VERBS,
} BitmapVerb;

/* The part of a bitmap that decides what may be done to it; see state.c. */
typedef struct BitmapState {
    bool enabled;
    bool read_only;
    bool inconsistent;
    bool removed;     /* to be gone when its undo stack is committed */
    unsigned holders; /* jobs and exports that use it */
} BitmapState;

struct DirtyBitmap {
    BitmapList *list; /* NULL when the list is gone and only an undo step remembers the bitmap */
    GList link;       /* in list->bitmaps; `data` is the bitmap */
    unsigned refs;    /* the list's one, and one for each step on an undo stack */
    char *name;
    int shift; /* log2 of the granularity */
    BitmapState state;
    char *reason; /* why it is inconsistent */
    bool persistent;
    bool deferred;      /* stored bits are yet to be loaded */
    HBitmap *stored;    /* the bits that the store holds, sharing pages; NULL: not known */
    bool counted;       /* of a deferred one: the next is known */
    uint64_t count;     /* of bits that the store holds */
    atomic_bool marked; /* what is stored, if anything, is known to be out of date */

    HBitmap *bits;
    atomic_bool records; /* writes go into `bits`: list_update_recording() says when */
};

struct BitmapList {
    char *owner;
    int64_t size;
    GQueue bitmaps;      /* of DirtyBitmap, newest first */
    GHashTable *by_name; /* of DirtyBitmap */
    const BitmapStore *store;
    void *store_opaque;

    HBitmap *epoch; /* what writers mark; NULL: no bitmap records */
    int epoch_shift;
    /* What was marked beyond `size` since it was set last: empty when begin >= end. */
    _Atomic int64_t beyond_begin, beyond_end;

    atomic_bool unmarked; /* a write has to mark bitmaps first */
    CoMutex marking;      /* held while that happens */

    GMutex lock; /* guards the bitmaps' bits against folds, and: */
    size_t n_recording;
    DirtyBitmap **recorders; /* changes only while no write is in flight */
    HBitmap **recording;     /* where the epoch is folded into, */
    int *fold_shift;         /* and by what shift */
};

/* --- state.c --- */

/* Whether the verb may be done to the bitmap now; makes the change of state when it may. */
bool bitmap_transition(DirtyBitmap *bitmap, BitmapVerb verb, GError **error);
/* The same without changing anything. */
bool bitmap_may(const DirtyBitmap *bitmap, BitmapVerb verb, GError **error);

/* --- stored.c --- */

/* How many bits a deferred bitmap has, without keeping them. Fails as bitmap_load() does. */
bool bitmap_count_deferred(DirtyBitmap *bitmap, uint64_t *ret_count);

/* Mark a persistent bitmap in its store, durably; nothing when it is already. */
bool bitmap_mark(DirtyBitmap *bitmap, GError **error);

/* --- list.c --- */

uint64_t bitmap_size_bits(int64_t size, int shift);

/* A clean bitmap for the list, in no list yet; `name` is copied. Fails when there is no memory. */
DirtyBitmap *bitmap_new(BitmapList *list, const char *name, int64_t granularity, GError **error);
DirtyBitmap *bitmap_ref(DirtyBitmap *bitmap);
void bitmap_unref(DirtyBitmap *bitmap);

/* Takes over the caller's reference. Does not make it record. */
void list_insert(BitmapList *list, DirtyBitmap *bitmap);
/* Drops the list's reference. */
void list_take_out(DirtyBitmap *bitmap);

/*
 * Fold, then make the set of recording bitmaps, and the epoch's granularity, what the states say.
 * Drained. Fails, with the old set still recording, when there is no memory for a finer epoch.
 * For undo, which must not fail: `spare` (or NULL) is an empty bitmap of the granularity of
 * the one that begins to record, and is taken if it is needed.
 */
bool list_update_recording(BitmapList *list, HBitmap **spare, GError **error);

/* Whether writes have to go into the bitmap. */
bool list_should_record(const DirtyBitmap *bitmap);

/* Between the two, no fold runs, and what was written before is in the bits. */
void list_lock_folded(BitmapList *list);
void list_unlock(BitmapList *list);

#endif
