/* SPDX-License-Identifier: MIT */
#include "undo-bits.h"

typedef struct BitsStep {
    DirtyBitmap *bitmap;
    HBitmap *before;
} BitsStep;

static void bits_abort(void *opaque)
{
    BitsStep *step = opaque;

    list_lock_folded(step->bitmap->list);
    hbitmap_swap(step->bitmap->bits, step->before);
    list_unlock(step->bitmap->list);
}

/* Pages shared with the clone become the bitmap's own again, so that writers need not copy them. */
static void bits_clean(void *opaque)
{
    BitsStep *step = opaque;
    BitmapList *list = step->bitmap->list;

    hbitmap_free(step->before);
    if (list) {
        list_lock_folded(list);
        hbitmap_settle(step->bitmap->bits);
        list_unlock(list);
    }
    bitmap_unref(step->bitmap);
    g_free(step);
}

static const UndoOps bits_ops = { .abort = bits_abort, .clean = bits_clean };

void undo_push_bits(UndoStack *undo, DirtyBitmap *bitmap)
{
    BitsStep *step = g_new(BitsStep, 1);

    step->bitmap = bitmap_ref(bitmap);
    step->before = hbitmap_clone(bitmap->bits);
    undo_push(undo, &bits_ops, step);
}
