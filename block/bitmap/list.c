/* SPDX-License-Identifier: MIT */
/*
 * The bitmaps of a disk, and how writes come into them.
 *
 * Invariants (a bitmap "records" when it is enabled and may change):
 *
 *  1. The epoch exists exactly when some bitmap records, and has the granularity of the finest that
 *     does. So a write costs one look and at most one OR, and nothing where nothing records. (It
 *     stays finer than that when there is no memory for another.)
 *  2. A write that was marked is in the epoch or in every recording bitmap. A fold moves it from
 *     one to the other; two folds never run at once.
 *  3. A bitmap that does not record gets nothing from the epoch: whoever changes the set of
 *     recording bitmaps folds first, while no write is in flight.
 */
#include "bitmap-internal.h"
#include "util/error.h"

#include <string.h>

uint64_t bitmap_size_bits(int64_t size, int shift)
{
    uint64_t bytes = size;

    return (bytes + (UINT64_C(1) << shift) - 1) >> shift;
}

BitmapList *bitmap_list_new(const char *owner, int64_t size)
{
    BitmapList *list = g_new0(BitmapList, 1);

    list->owner = g_strdup(owner);
    list->size = size;
    atomic_init(&list->beyond_begin, INT64_MAX);
    g_queue_init(&list->bitmaps);
    list->by_name = g_hash_table_new(g_str_hash, g_str_equal);
    g_mutex_init(&list->lock);
    co_mutex_init(&list->marking);
    return list;
}

void bitmap_list_free(BitmapList *list)
{
    if (!list) {
        return;
    }
    while (list->bitmaps.head) {
        list_take_out(list->bitmaps.head->data);
    }
    hbitmap_free(list->epoch);
    g_free(list->recorders);
    g_free(list->recording);
    g_free(list->fold_shift);
    co_mutex_done(&list->marking);
    g_mutex_clear(&list->lock);
    g_hash_table_unref(list->by_name);
    g_free(list->owner);
    g_free(list);
}

void bitmap_list_set_store(BitmapList *list, const BitmapStore *store, void *opaque)
{
    list->store = store;
    list->store_opaque = opaque;
}

const BitmapStore *bitmap_list_store(const BitmapList *list, void **ret_opaque)
{
    *ret_opaque = list->store_opaque;
    return list->store;
}

/* --- membership --- */

DirtyBitmap *bitmap_ref(DirtyBitmap *bitmap)
{
    bitmap->refs++;
    return bitmap;
}

void bitmap_unref(DirtyBitmap *bitmap)
{
    if (--bitmap->refs) {
        return;
    }
    hbitmap_free(bitmap->bits);
    hbitmap_free(bitmap->stored);
    g_free(bitmap->reason);
    g_free(bitmap->name);
    g_free(bitmap);
}

void list_insert(BitmapList *list, DirtyBitmap *bitmap)
{
    bitmap->list = list;
    bitmap->link.data = bitmap;
    g_queue_push_head_link(&list->bitmaps, &bitmap->link);
    if (bitmap->name) {
        g_hash_table_insert(list->by_name, bitmap->name, bitmap);
    }
}

void list_take_out(DirtyBitmap *bitmap)
{
    g_queue_unlink(&bitmap->list->bitmaps, &bitmap->link);
    if (bitmap->name) {
        g_hash_table_remove(bitmap->list->by_name, bitmap->name);
    }
    bitmap->list = NULL;
    bitmap->records = false;
    bitmap_unref(bitmap);
}

DirtyBitmap *bitmap_list_next(BitmapList *list, DirtyBitmap *previous)
{
    GList *link = previous ? previous->link.next : list->bitmaps.head;

    return link ? link->data : NULL;
}

DirtyBitmap *bitmap_find(BitmapList *list, const char *name)
{
    return g_hash_table_lookup(list->by_name, name);
}

DirtyBitmap *bitmap_lookup(BitmapList *list, const char *name, GError **error)
{
    DirtyBitmap *bitmap = bitmap_find(list, name);

    if (!bitmap) {
        merino_error(error, "Dirty bitmap '%s' not found", name);
    }
    return bitmap;
}

/* --- the epoch --- */

bool bitmap_list_records(const BitmapList *list)
{
    return list->epoch;
}

/* The range [offset, end) grows into what is remembered. */
static void mark_beyond(BitmapList *list, int64_t offset, int64_t end)
{
    int64_t known = atomic_load(&list->beyond_begin);

    while (offset < known && !atomic_compare_exchange_weak(&list->beyond_begin, &known, offset)) {
    }
    known = atomic_load(&list->beyond_end);
    while (end > known && !atomic_compare_exchange_weak(&list->beyond_end, &known, end)) {
    }
}

/* A range of at least one byte, inside the size. */
static inline void mark_inside(BitmapList *list, int64_t offset, int64_t bytes)
{
    uint64_t first = (uint64_t)offset >> list->epoch_shift;
    uint64_t last = (uint64_t)(offset + bytes - 1) >> list->epoch_shift;

    if (G_LIKELY(first == last)) {
        hbitmap_set_bit(list->epoch, first);
    } else {
        hbitmap_set(list->epoch, first, last - first + 1);
    }
}

static __attribute__((noinline)) void mark_past_end(BitmapList *list, int64_t offset, int64_t bytes)
{
    mark_beyond(list, MAX(offset, list->size), MIN(bytes, INT64_MAX - offset) + offset);
    if (offset < list->size) {
        mark_inside(list, offset, list->size - offset);
    }
}

void bitmap_list_mark(BitmapList *list, int64_t offset, int64_t bytes)
{
    if (!list->epoch || bytes <= 0) {
        return;
    }
    if (G_UNLIKELY(bytes > list->size - offset)) {
        mark_past_end(list, offset, bytes);
        return;
    }
    mark_inside(list, offset, bytes);
}

void bitmap_list_prefetch(const BitmapList *list, uint64_t offset)
{
    if (list->epoch) {
        hbitmap_prefetch(list->epoch, offset >> list->epoch_shift);
    }
}

static void fold(BitmapList *list)
{
    if (list->epoch) {
        hbitmap_fold(list->epoch, list->recording, list->fold_shift, list->n_recording);
    }
}

void list_lock_folded(BitmapList *list)
{
    g_mutex_lock(&list->lock);
    fold(list);
}

void list_unlock(BitmapList *list)
{
    g_mutex_unlock(&list->lock);
}

static void tidy(HBitmap *bits)
{
    if (bits && hbitmap_is_uneven(bits)) {
        hbitmap_compact(bits);
    }
}

void bitmap_list_tidy(BitmapList *list)
{
    DirtyBitmap *bitmap = NULL;

    g_mutex_lock(&list->lock);
    tidy(list->epoch);
    while ((bitmap = bitmap_list_next(list, bitmap))) {
        if (bitmap->name && !bitmap->state.holders) {
            tidy(bitmap->bits);
        }
    }
    g_mutex_unlock(&list->lock);
}

bool bitmap_list_is_untidy(BitmapList *list)
{
    DirtyBitmap *bitmap = NULL;

    if (list->epoch && hbitmap_is_uneven(list->epoch)) {
        return true;
    }
    while ((bitmap = bitmap_list_next(list, bitmap))) {
        if (bitmap->name && !bitmap->state.holders && hbitmap_is_uneven(bitmap->bits)) {
            return true;
        }
    }
    return false;
}

size_t bitmap_list_memory(BitmapList *list)
{
    size_t bytes = list->epoch ? hbitmap_memory(list->epoch) : 0;
    DirtyBitmap *bitmap = NULL;

    while ((bitmap = bitmap_list_next(list, bitmap))) {
        bytes += hbitmap_memory(bitmap->bits);
    }
    return bytes;
}

HBitmap *bitmap_bits(DirtyBitmap *bitmap)
{
    if (atomic_load_explicit(&bitmap->records, memory_order_acquire)) {
        list_lock_folded(bitmap->list);
        list_unlock(bitmap->list);
    }
    return bitmap->bits;
}

HBitmap *bitmap_lock_bits(DirtyBitmap *bitmap)
{
    g_mutex_lock(&bitmap->list->lock);
    if (atomic_load_explicit(&bitmap->records, memory_order_acquire)) {
        fold(bitmap->list);
    }
    return bitmap->bits;
}

void bitmap_unlock_bits(DirtyBitmap *bitmap)
{
    list_unlock(bitmap->list);
}

bool list_should_record(const DirtyBitmap *bitmap)
{
    return bitmap->state.enabled && !bitmap->state.read_only && !bitmap->state.inconsistent;
}

/* The shift of the finest bitmap that should record, and how many there are. */
static int finest_shift(BitmapList *list, size_t *ret_n)
{
    DirtyBitmap *bitmap = NULL;
    int shift = INT_MAX;
    size_t n = 0;

    while ((bitmap = bitmap_list_next(list, bitmap))) {
        if (list_should_record(bitmap)) {
            shift = MIN(shift, bitmap->shift);
            n++;
        }
    }
    *ret_n = n;
    return shift;
}

/*
 * Put one of the finest recording granularity in the place of the epoch, which was just folded. No
 * memory for a coarser one is no failure.
 */
static bool replace_epoch(BitmapList *list, size_t n, int shift, HBitmap **spare, GError **error)
{
    bool too_coarse = n && (!list->epoch || list->epoch_shift > shift);
    HBitmap *epoch = NULL;

    if (n && list->epoch && list->epoch_shift == shift) {
        return true;
    }
    if (n && spare && *spare && too_coarse) {
        epoch = g_steal_pointer(spare);
    } else if (n) {
        epoch = hbitmap_new(bitmap_size_bits(list->size, shift), too_coarse ? error : NULL);
        if (!epoch) {
            return !too_coarse;
        }
    }
    hbitmap_free(list->epoch);
    list->epoch = epoch;
    list->epoch_shift = shift;
    return true;
}

static void collect_recording(BitmapList *list, size_t n)
{
    DirtyBitmap *bitmap = NULL;
    size_t i = 0;

    list->recorders = g_renew(DirtyBitmap *, list->recorders, n);
    list->recording = g_renew(HBitmap *, list->recording, n);
    list->fold_shift = g_renew(int, list->fold_shift, n);
    list->n_recording = n;
    while ((bitmap = bitmap_list_next(list, bitmap))) {
        bool records = list_should_record(bitmap);

        atomic_store_explicit(&bitmap->records, records, memory_order_release);
        if (records) {
            if (!atomic_load(&bitmap->marked)) {
                atomic_store(&list->unmarked, true);
            }
            list->recorders[i] = bitmap;
            list->recording[i] = bitmap->bits;
            list->fold_shift[i] = list->epoch_shift - bitmap->shift;
            i++;
        }
    }
}

bool list_update_recording(BitmapList *list, HBitmap **spare, GError **error)
{
    size_t n;
    int shift = finest_shift(list, &n);
    bool ok;

    list_lock_folded(list);
    ok = replace_epoch(list, n, shift, spare, error);
    if (ok) {
        collect_recording(list, n);
    }
    list_unlock(list);
    return ok;
}

/* --- size --- */

bool bitmap_list_check_resize(BitmapList *list, int64_t size, GError **error)
{
    for (GList *link = list->bitmaps.tail; link; link = link->prev) {
        DirtyBitmap *bitmap = link->data;

        if (!bitmap_may(bitmap, BITMAP_VERB_RESIZE, error) || !bitmap_load(bitmap, error)) {
            return false;
        }
        if (bitmap_size_bits(size, bitmap->shift) > HBITMAP_MAX_BITS) {
            merino_error(error, "Bitmap '%s' cannot be grown to %" PRId64 " bytes",
                         bitmap->name ? bitmap->name : "", size);
            return false;
        }
    }
    return true;
}

static void resize_bits(HBitmap *bits, int64_t size, int shift)
{
    g_autoptr(GError) error = NULL;

    if (!hbitmap_truncate(bits, bitmap_size_bits(size, shift), &error)) {
        g_error("%s", error->message); /* out of memory: as everywhere, the end */
    }
}

int64_t bitmap_list_size(const BitmapList *list)
{
    return list->size;
}

/* What was remembered of writes beyond the old end. */
static void mark_remembered(BitmapList *list)
{
    int64_t begin = atomic_exchange(&list->beyond_begin, INT64_MAX);
    int64_t end = atomic_exchange(&list->beyond_end, 0);

    end = MIN(end, list->size);
    if (begin < end) {
        bitmap_list_mark(list, begin, end - begin);
    }
}

void bitmap_list_resize(BitmapList *list, int64_t size)
{
    DirtyBitmap *bitmap = NULL;

    list_lock_folded(list);
    list->size = size;
    if (list->epoch) {
        resize_bits(list->epoch, size, list->epoch_shift);
        mark_remembered(list);
    }
    while ((bitmap = bitmap_list_next(list, bitmap))) {
        resize_bits(bitmap->bits, size, bitmap->shift);
        bitmap->counted = false;
        if (bitmap->stored) {
            resize_bits(bitmap->stored, size, bitmap->shift);
        }
    }
    list_unlock(list);
}
