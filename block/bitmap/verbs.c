/* SPDX-License-Identifier: MIT */
/*
 * add, remove, clear, enable and disable, each with an exact undo.
 *
 * A verb checks, changes, and pushes one step. Steps hold a reference, because the list of a node
 * that a transaction made or removed may be gone when the step is cleaned up. As nothing is
 * written while a transaction is undecided, undo restores states by taking flags back, and
 * bits by a clone made before, which shares pages.
 */
#include "bitmap-internal.h"
#include "undo-bits.h"
#include "util/error.h"

#include <string.h>

static void step_unref(void *opaque)
{
    bitmap_unref(opaque);
}

/* --- add --- */

static bool check_granularity(int64_t granularity, GError **error)
{
    if (granularity < BITMAP_MIN_GRANULARITY || (granularity & (granularity - 1))) {
        merino_error(error, "Granularity must be power of 2 and at least %d",
                     BITMAP_MIN_GRANULARITY);
        return false;
    }
    if (granularity > BITMAP_MAX_GRANULARITY) {
        merino_error(error, "Granularity must be at most %" PRId64, BITMAP_MAX_GRANULARITY);
        return false;
    }
    return true;
}

static bool check_store(BitmapList *list, const char *name, int64_t granularity, GError **error)
{
    if (!list->store) {
        merino_error(error, "Can't store persistent bitmaps to %s: Operation not supported",
                     list->owner);
        return false;
    }
    return list->store->can_store(list->store_opaque, name, granularity, error);
}

static bool check_name(BitmapList *list, const char *name, GError **error)
{
    if (bitmap_find(list, name)) {
        merino_error(error, "Bitmap already exists: %s", name);
        return false;
    }
    if (strlen(name) > BITMAP_MAX_NAME) {
        merino_error(error, "Bitmap name too long: %s", name);
        return false;
    }
    return true;
}

static bool check_add(BitmapList *list, const BitmapAddOptions *options, int64_t granularity,
                      GError **error)
{
    const char *name = options->name;

    if (name && !*name) {
        merino_error(error, "Bitmap name cannot be empty");
        return false;
    }
    if (name && !g_utf8_validate(name, -1, NULL)) {
        merino_error(error, "Bitmap name is not valid UTF-8");
        return false;
    }
    if (!check_granularity(granularity, error)) {
        return false;
    }
    if (!name) {
        return true;
    }
    if (options->persistent && !check_store(list, name, granularity, error)) {
        return false;
    }
    return check_name(list, name, error);
}

DirtyBitmap *bitmap_new(BitmapList *list, const char *name, int64_t granularity, GError **error)
{
    int shift = __builtin_ctzll(granularity);
    HBitmap *bits = hbitmap_new(bitmap_size_bits(list->size, shift), error);
    DirtyBitmap *bitmap;

    if (!bits) {
        return NULL;
    }
    bitmap = g_new0(DirtyBitmap, 1);
    bitmap->refs = 1;
    bitmap->name = g_strdup(name);
    bitmap->shift = shift;
    bitmap->bits = bits;
    return bitmap;
}

static DirtyBitmap *new_from_options(BitmapList *list, const BitmapAddOptions *options,
                                     int64_t granularity, GError **error)
{
    DirtyBitmap *bitmap = bitmap_new(list, options->name, granularity, error);

    if (!bitmap) {
        return NULL;
    }
    bitmap->state.enabled = !options->disabled;
    bitmap->persistent = options->persistent;
    atomic_init(&bitmap->marked, true); /* nothing is stored of it */
    return bitmap;
}

/* Take a bitmap out of its list, and out of the recording ones if it is one of them: only then do
 * writes stand still, and only then may the epoch change. */
static void drop(DirtyBitmap *bitmap)
{
    BitmapList *list = bitmap->list;
    bool records = atomic_load_explicit(&bitmap->records, memory_order_acquire);

    bitmap_ref(bitmap); /* a fold may still need its bits */
    list_take_out(bitmap);
    if (records) {
        list_update_recording(list, NULL, NULL);
    }
    bitmap_unref(bitmap);
}

static void add_abort(void *opaque)
{
    drop(opaque);
}

static const UndoOps add_ops = { .abort = add_abort, .clean = step_unref };

DirtyBitmap *bitmap_add(BitmapList *list, const BitmapAddOptions *options, UndoStack *undo,
                        GError **error)
{
    int64_t granularity =
        options->granularity ? options->granularity : options->default_granularity;
    DirtyBitmap *bitmap;

    if (!check_add(list, options, granularity, error)) {
        return NULL;
    }
    bitmap = new_from_options(list, options, granularity, error);
    if (!bitmap) {
        return NULL;
    }
    list_insert(list, bitmap);
    if (!options->disabled && !list_update_recording(list, NULL, error)) {
        list_take_out(bitmap);
        return NULL;
    }
    if (undo) {
        undo_push(undo, &add_ops, bitmap_ref(bitmap));
    }
    return bitmap;
}

/* --- remove --- */

static void remove_commit(void *opaque)
{
    DirtyBitmap *bitmap = opaque;

    if (bitmap->list) {
        drop(bitmap);
    }
}

static void remove_abort(void *opaque)
{
    DirtyBitmap *bitmap = opaque;

    bitmap->state.removed = false;
}

static const UndoOps remove_ops = { remove_commit, remove_abort, step_unref };

/* The stored copy goes at once, or when the stack is committed; until then it is marked, because
 * the bitmap records no more from the commit on, whatever becomes of storage. */
static bool remove_stored(DirtyBitmap *bitmap, UndoStack *undo, GError **error)
{
    BitmapList *list = bitmap->list;

    if (!bitmap->persistent || !list->store) {
        return true;
    }
    if (undo && !bitmap_mark(bitmap, error)) {
        return false;
    }
    return list->store->remove(list->store_opaque, bitmap->name, undo, error);
}

bool bitmap_remove(DirtyBitmap *bitmap, UndoStack *undo, GError **error)
{
    if (!bitmap_may(bitmap, BITMAP_VERB_REMOVE, error) || !remove_stored(bitmap, undo, error)) {
        return false;
    }
    bitmap_transition(bitmap, BITMAP_VERB_REMOVE, NULL);
    if (undo) {
        undo_push(undo, &remove_ops, bitmap_ref(bitmap));
    } else {
        drop(bitmap);
    }
    return true;
}

/* --- clear --- */

bool bitmap_clear(DirtyBitmap *bitmap, UndoStack *undo, GError **error)
{
    BitmapList *list = bitmap->list;

    if (!bitmap_transition(bitmap, BITMAP_VERB_CLEAR, error) ||
        !bitmap_prepare_change(bitmap, error)) {
        return false;
    }
    list_lock_folded(list);
    if (undo) {
        undo_push_bits(undo, bitmap);
    }
    hbitmap_clear(bitmap->bits);
    list_unlock(list);
    return true;
}

/* --- enable and disable --- */

/* For undoing a disable, an epoch in store: no memory must be needed then. */
typedef struct SwitchStep {
    DirtyBitmap *bitmap;
    bool was;
    HBitmap *spare;
} SwitchStep;

static void switch_abort(void *opaque)
{
    SwitchStep *step = opaque;

    step->bitmap->state.enabled = step->was && !step->bitmap->state.inconsistent;
    if (!list_update_recording(step->bitmap->list, &step->spare, NULL)) {
        g_assert_not_reached();
    }
}

static void switch_clean(void *opaque)
{
    SwitchStep *step = opaque;

    hbitmap_free(step->spare);
    bitmap_unref(step->bitmap);
    g_free(step);
}

static const UndoOps switch_ops = { .abort = switch_abort, .clean = switch_clean };

static bool update_with_undo(DirtyBitmap *bitmap, bool was, UndoStack *undo, GError **error)
{
    HBitmap *spare = NULL;
    SwitchStep *step;

    if (was) {
        spare = hbitmap_new(hbitmap_size(bitmap->bits), error);
        if (!spare) {
            return false;
        }
    }
    if (!list_update_recording(bitmap->list, NULL, error)) {
        hbitmap_free(spare);
        return false;
    }
    step = g_new(SwitchStep, 1);
    *step = (SwitchStep){ bitmap_ref(bitmap), was, spare };
    undo_push(undo, &switch_ops, step);
    return true;
}

static bool set_enabled(DirtyBitmap *bitmap, BitmapVerb verb, UndoStack *undo, GError **error)
{
    bool was = bitmap->state.enabled;
    bool ok;

    if (!bitmap_transition(bitmap, verb, error)) {
        return false;
    }
    if (bitmap->state.enabled == was) {
        return true;
    }
    ok = bitmap_mark(bitmap, error) && (undo ? update_with_undo(bitmap, was, undo, error)
                                             : list_update_recording(bitmap->list, NULL, error));
    if (!ok) {
        bitmap->state.enabled = was;
    }
    return ok;
}

bool bitmap_enable(DirtyBitmap *bitmap, UndoStack *undo, GError **error)
{
    return set_enabled(bitmap, BITMAP_VERB_ENABLE, undo, error);
}

bool bitmap_disable(DirtyBitmap *bitmap, UndoStack *undo, GError **error)
{
    return set_enabled(bitmap, BITMAP_VERB_DISABLE, undo, error);
}
