/* SPDX-License-Identifier: MIT */
/*
 * Bitmaps and their stored copies: listing what is stored, loading it late, and marking it as out
 * of date before it is.
 *
 * `unmarked` is set whenever a bitmap that records, or another that the store asked for, is not
 * marked; it is set only while no write is in flight, so a write that finds it unset may go on. The
 * first one that finds it set marks all of them, and the others wait for it.
 */
#include "bitmap-internal.h"
#include "util/error.h"

#include <errno.h>

/* --- listing --- */

static DirtyBitmap *new_stored(BitmapList *list, const BitmapStored *stored, GError **error)
{
    DirtyBitmap *bitmap = bitmap_new(list, stored->name, stored->granularity, error);

    if (!bitmap) {
        return NULL;
    }
    bitmap->state.enabled = stored->enabled && !stored->inconsistent;
    bitmap->state.read_only = stored->read_only;
    bitmap->state.inconsistent = stored->inconsistent != NULL;
    bitmap->reason = g_strdup(stored->inconsistent);
    bitmap->persistent = true;
    bitmap->deferred = !stored->inconsistent;
    return bitmap;
}

static void take_out_newest(BitmapList *list, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        list_take_out(list->bitmaps.head->data);
    }
}

bool bitmap_list_add_stored(BitmapList *list, const BitmapStored *stored, size_t n, GError **error)
{
    for (size_t i = 0; i < n; i++) {
        DirtyBitmap *bitmap = new_stored(list, &stored[i], error);

        if (!bitmap) {
            take_out_newest(list, i);
            return false;
        }
        list_insert(list, bitmap);
    }
    if (!list_update_recording(list, NULL, error)) {
        take_out_newest(list, n);
        return false;
    }
    return true;
}

/* --- deferred loading --- */

void bitmap_set_deferred(DirtyBitmap *bitmap)
{
    bitmap->deferred = true;
}

bool bitmap_is_deferred(const DirtyBitmap *bitmap)
{
    return bitmap->deferred;
}

/* What is stored, or NULL: then the bitmap became inconsistent. */
static HBitmap *load_stored(DirtyBitmap *bitmap, GError **error)
{
    BitmapList *list = bitmap->list;
    g_autoptr(GError) failure = NULL;
    g_autoptr(HBitmap) stored = hbitmap_new(hbitmap_size(bitmap->bits), &failure);

    if (!stored || !list->store->load(list->store_opaque, bitmap, stored, &failure)) {
        bitmap_set_inconsistent(bitmap, failure->message);
        g_propagate_error(error, g_steal_pointer(&failure));
        return NULL;
    }
    return g_steal_pointer(&stored);
}

bool bitmap_load(DirtyBitmap *bitmap, GError **error)
{
    BitmapList *list = bitmap->list;
    HBitmap *stored;

    if (!bitmap->deferred) {
        return true;
    }
    stored = load_stored(bitmap, error);
    if (!stored) {
        return false;
    }
    bitmap->deferred = false;
    list_lock_folded(list);
    hbitmap_merge(bitmap->bits, stored);
    hbitmap_free(bitmap->stored);
    bitmap->stored = stored;
    list_unlock(list);
    return true;
}

bool bitmap_count_deferred(DirtyBitmap *bitmap, uint64_t *ret_count)
{
    if (!hbitmap_is_empty(bitmap_bits(bitmap))) { /* what was added may be there already */
        if (!bitmap_load(bitmap, NULL)) {
            return false;
        }
        *ret_count = hbitmap_count(bitmap_bits(bitmap));
        return true;
    }
    if (!bitmap->counted) {
        g_autoptr(HBitmap) stored = load_stored(bitmap, NULL);

        if (!stored) {
            return false;
        }
        bitmap->count = hbitmap_count(stored);
        bitmap->counted = true;
    }
    *ret_count = bitmap->count;
    return true;
}

/* --- what the store holds --- */

bool bitmap_is_marked(const DirtyBitmap *bitmap)
{
    return atomic_load(&bitmap->marked);
}

HBitmap *bitmap_stored_bits(DirtyBitmap *bitmap)
{
    return bitmap->stored;
}

void bitmap_set_stored(DirtyBitmap *bitmap)
{
    BitmapList *list = bitmap->list;

    list_lock_folded(list);
    if (bitmap->deferred) { /* the bits are what was added: they are stored beside the others */
        hbitmap_clear(bitmap->bits);
        bitmap->counted = false;
    } else {
        hbitmap_free(bitmap->stored);
        bitmap->stored = hbitmap_clone(bitmap->bits);
    }
    list_unlock(list);
    atomic_store(&bitmap->marked, false);
    if (list_should_record(bitmap)) {
        bitmap_list_expect_write(list);
    }
}

void bitmap_forget_stored(DirtyBitmap *bitmap)
{
    hbitmap_free(g_steal_pointer(&bitmap->stored));
}

void bitmap_list_forget_marks(BitmapList *list)
{
    DirtyBitmap *bitmap = NULL;

    while ((bitmap = bitmap_list_next(list, bitmap))) {
        if (bitmap->persistent) {
            atomic_store(&bitmap->marked, false);
        }
    }
    bitmap_list_expect_write(list);
}

/* --- marking --- */

void bitmap_list_expect_write(BitmapList *list)
{
    atomic_store(&list->unmarked, true);
}

static int coroutine_fn mark_in_store(BitmapList *list, GPtrArray *bitmaps, GError **error)
{
    const BitmapStore *store = list->store;
    int ret = 0;

    if (store && store->co_mark) {
        ret = store->co_mark(list->store_opaque, (DirtyBitmap *const *)bitmaps->pdata, bitmaps->len,
                             error);
    }
    for (guint i = 0; ret >= 0 && i < bitmaps->len; i++) {
        DirtyBitmap *bitmap = g_ptr_array_index(bitmaps, i);

        atomic_store(&bitmap->marked, true);
    }
    return ret;
}

static GPtrArray *unmarked_recorders(BitmapList *list)
{
    GPtrArray *bitmaps = g_ptr_array_new();

    for (size_t i = 0; i < list->n_recording; i++) {
        if (!atomic_load(&list->recorders[i]->marked)) {
            g_ptr_array_add(bitmaps, list->recorders[i]);
        }
    }
    return bitmaps;
}

static __attribute__((noinline)) int coroutine_fn mark_recorders(BitmapList *list)
{
    int ret = 0;

    co_mutex_lock(&list->marking);
    if (atomic_load(&list->unmarked)) {
        g_autoptr(GPtrArray) bitmaps = unmarked_recorders(list);

        ret = mark_in_store(list, bitmaps, NULL);
        if (ret >= 0) {
            atomic_store(&list->unmarked, false);
        }
    }
    co_mutex_unlock(&list->marking);
    return ret < 0 ? ret : 0;
}

int coroutine_fn bitmap_list_co_before_write(BitmapList *list)
{
    if (G_LIKELY(!atomic_load_explicit(&list->unmarked, memory_order_acquire))) {
        return 0;
    }
    return mark_recorders(list);
}

/* Those that are stored and not marked. */
static GPtrArray *unmarked_bitmaps(BitmapList *list)
{
    GPtrArray *bitmaps = g_ptr_array_new();
    DirtyBitmap *bitmap = NULL;

    while ((bitmap = bitmap_list_next(list, bitmap))) {
        if (bitmap->persistent && !atomic_load(&bitmap->marked)) {
            g_ptr_array_add(bitmaps, bitmap);
        }
    }
    return bitmaps;
}

int coroutine_fn bitmap_list_co_before_resize(BitmapList *list)
{
    g_autoptr(GPtrArray) bitmaps = unmarked_bitmaps(list);
    int ret = 0;

    if (bitmaps->len) {
        co_mutex_lock(&list->marking);
        ret = mark_in_store(list, bitmaps, NULL);
        co_mutex_unlock(&list->marking);
    }
    return ret < 0 ? ret : 0;
}

typedef struct Marking {
    DirtyBitmap *bitmap;
    GError **error;
    int ret;
} Marking;

static void coroutine_fn mark_entry(void *opaque)
{
    Marking *marking = opaque;
    BitmapList *list = marking->bitmap->list;
    g_autoptr(GPtrArray) bitmaps = g_ptr_array_new();

    co_mutex_lock(&list->marking);
    if (!atomic_load(&marking->bitmap->marked)) { /* a write may have come first */
        g_ptr_array_add(bitmaps, marking->bitmap);
        marking->ret = mark_in_store(list, bitmaps, marking->error);
    }
    co_mutex_unlock(&list->marking);
}

bool bitmap_mark(DirtyBitmap *bitmap, GError **error)
{
    Marking marking = { bitmap, error, 0 };

    if (bitmap->persistent && !bitmap->state.read_only && !atomic_load(&bitmap->marked)) {
        coroutine_run(mark_entry, &marking);
    }
    return marking.ret >= 0;
}

bool bitmap_prepare_change(DirtyBitmap *bitmap, GError **error)
{
    return bitmap_load(bitmap, error) && bitmap_mark(bitmap, error);
}
