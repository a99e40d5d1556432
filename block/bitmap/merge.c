/* SPDX-License-Identifier: MIT */
/*
 * merge: what is dirty in any of the sources becomes dirty in the target.
 *
 * All is checked before anything changes. Granularities may differ: a finer source dirties
 * the whole bit of a coarser target, a coarser one all the bits it covers.
 */
#include "bitmap-internal.h"
#include "undo-bits.h"
#include "util/error.h"

bool bitmap_check_merge(DirtyBitmap *target, DirtyBitmap *source, GError **error)
{
    int64_t target_size = bitmap_size(target);
    int64_t source_size = bitmap_size(source);

    if (!bitmap_may(target, BITMAP_VERB_MERGE_INTO, error) ||
        !bitmap_may(source, BITMAP_VERB_MERGE_FROM, error)) {
        return false;
    }
    if (target_size != source_size) {
        merino_error(error,
                     "Bitmaps are of different sizes (destination size is %" PRId64
                     ", source size is %" PRId64 ") and can't be merged",
                     target_size, source_size);
        return false;
    }
    return bitmap_load(target, error) && bitmap_load(source, error);
}

static void merge_one(DirtyBitmap *target, DirtyBitmap *source)
{
    bool foreign = source->list != target->list;

    if (source == target) {
        return;
    }
    if (foreign) {
        list_lock_folded(source->list);
    }
    hbitmap_merge_shift(target->bits, source->bits, source->shift - target->shift);
    if (foreign) {
        list_unlock(source->list);
    }
}

bool bitmap_merge(DirtyBitmap *target, DirtyBitmap *const sources[], size_t n_sources,
                  UndoStack *undo, GError **error)
{
    BitmapList *list = target->list;

    if (!bitmap_transition(target, BITMAP_VERB_MERGE_INTO, error)) {
        return false;
    }
    for (size_t i = 0; i < n_sources; i++) {
        if (!bitmap_check_merge(target, sources[i], error)) {
            return false;
        }
    }
    if (!bitmap_prepare_change(target, error)) {
        return false;
    }
    list_lock_folded(list);
    if (undo) {
        undo_push_bits(undo, target);
    }
    for (size_t i = 0; i < n_sources; i++) {
        merge_one(target, sources[i]);
    }
    list_unlock(list);
    return true;
}
