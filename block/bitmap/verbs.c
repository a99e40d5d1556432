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

/* What has become of a bitmap is final: let the epoch be as coarse as it may. */
static void step_trim(void *opaque)
{
    DirtyBitmap *bitmap = opaque;

    if (bitmap->list) {
        list_update_recording(bitmap->list, true, NULL);
    }
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

static DirtyBitmap *new_bitmap(BitmapList *list, const BitmapAddOptions *options,
                               int64_t granularity, GError **error)
{
    int shift = __builtin_ctzll(granularity);
    HBitmap *bits = hbitmap_new(bitmap_size_bits(list->size, shift), error);
    DirtyBitmap *bitmap;

    if (!bits) {
        return NULL;
    }
    bitmap = g_new0(DirtyBitmap, 1);
    bitmap->refs = 1;
    bitmap->name = g_strdup(options->name);
    bitmap->shift = shift;
    bitmap->state.enabled = !options->disabled;
    bitmap->persistent = options->persistent;
    bitmap->bits = bits;
    return bitmap;
}

/* Take a bitmap out of its list and of the recording ones. */
static void drop(DirtyBitmap *bitmap)
{
    BitmapList *list = bitmap->list;

    bitmap_ref(bitmap); /* a fold may still need its bits */
    list_take_out(bitmap);
    list_update_recording(list, true, NULL);
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
    bitmap = new_bitmap(list, options, granularity, error);
    if (!bitmap) {
        return NULL;
    }
    list_insert(list, bitmap);
    if (!options->disabled && !list_update_recording(list, true, error)) {
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

static bool remove_stored(DirtyBitmap *bitmap, UndoStack *undo, GError **error)
{
    BitmapList *list = bitmap->list;

    if (!bitmap->persistent || !list->store) {
        return true;
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

    if (!bitmap_transition(bitmap, BITMAP_VERB_CLEAR, error) || !bitmap_load(bitmap, error)) {
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

/* To the state before; cannot fail, as the epoch was not made coarser meanwhile. */
static void set_enabled_again(DirtyBitmap *bitmap, bool enabled)
{
    bitmap->state.enabled = enabled;
    if (!list_update_recording(bitmap->list, false, NULL)) {
        g_assert_not_reached();
    }
}

static void undo_enable(void *opaque)
{
    set_enabled_again(opaque, false);
}

static void undo_disable(void *opaque)
{
    set_enabled_again(opaque, true);
}

static const UndoOps enable_ops = { step_trim, undo_enable, step_unref };
static const UndoOps disable_ops = { step_trim, undo_disable, step_unref };

static bool set_enabled(DirtyBitmap *bitmap, bool enabled, UndoStack *undo, GError **error)
{
    BitmapVerb verb = enabled ? BITMAP_VERB_ENABLE : BITMAP_VERB_DISABLE;
    bool was = bitmap->state.enabled;

    if (!bitmap_transition(bitmap, verb, error)) {
        return false;
    }
    if (was == enabled) {
        return true;
    }
    if (!list_update_recording(bitmap->list, !undo, error)) {
        bitmap->state.enabled = was;
        return false;
    }
    if (undo) {
        undo_push(undo, enabled ? &enable_ops : &disable_ops, bitmap_ref(bitmap));
    }
    return true;
}

bool bitmap_enable(DirtyBitmap *bitmap, UndoStack *undo, GError **error)
{
    return set_enabled(bitmap, true, undo, error);
}

bool bitmap_disable(DirtyBitmap *bitmap, UndoStack *undo, GError **error)
{
    return set_enabled(bitmap, false, undo, error);
}
