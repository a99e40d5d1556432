/* SPDX-License-Identifier: MIT */
/*
 * Marking: entries of the directory say "in use" before their bitmaps, or the disk, change (B1).
 *
 * The flags of an entry are four bytes that never straddle a sector, so they are changed in place:
 * whatever becomes of the write, each is the old or the new. If the directory is damaged as such,
 * it is first written anew, which marks as well.
 */
#include "bitmap-internal.h"
#include "util/error.h"

#include <errno.h>

static Qcow2BitmapEntry *entry_at(const Qcow2 *q, guint i)
{
    return g_ptr_array_index(q->bitmaps->entries, i);
}

int coroutine_fn qcow2_bitmaps_write_flags(Qcow2 *q, GPtrArray *entries, guint first, guint end)
{
    g_autoptr(GByteArray) bytes = qcow2_bitmap_directory_encode(entries);
    Qcow2BitmapEntry *a = g_ptr_array_index(entries, first);
    Qcow2BitmapEntry *z = g_ptr_array_index(entries, end - 1);
    int64_t from = a->position, to = z->position + (int64_t)sizeof(Qcow2DiskBitmap);
    int ret = qcow2_meta_write(q, q->header.bitmap_dir_offset + from, bytes->data + from, to - from,
                               QCOW2_OVERLAP_BITMAP_DIRECTORY);

    return ret < 0 ? ret : qcow2_sync(q);
}

static void set_in_use(Qcow2BitmapEntry *entry, GHashTable *changed)
{
    if (entry && !(entry->flags & QCOW2_BITMAP_IN_USE)) {
        entry->flags |= QCOW2_BITMAP_IN_USE;
        g_hash_table_add(changed, entry);
    }
}

/* Set the flag in memory of the bitmaps', and of those for which it is due. Returns the entries
 * that did not have it. */
static GHashTable *set_all_in_use(Qcow2 *q, DirtyBitmap *const bitmaps[], size_t n)
{
    GHashTable *changed = g_hash_table_new(NULL, NULL);

    for (size_t i = 0; i < n; i++) {
        set_in_use(g_hash_table_lookup(q->bitmaps->by_name, bitmap_name(bitmaps[i])), changed);
    }
    for (guint i = 0; i < q->bitmaps->entries->len; i++) {
        if (entry_at(q, i)->to_be_marked) {
            set_in_use(entry_at(q, i), changed);
        }
    }
    return changed;
}

void qcow2_bitmaps_be_unsure(Qcow2 *q)
{
    q->bitmaps->damaged = true;
    bitmap_list_expect_write(q->node->bitmaps);
}

/* What is in the file of which nothing could be read is disowned. */
static int coroutine_fn disown(Qcow2 *q, GError **error)
{
    int ret;

    co_mutex_lock(&q->lock);
    ret = qcow2_set_features(q, q->header.incompatible,
                             q->header.autoclear & ~(uint64_t)QCOW2_AUTOCLEAR_BITMAPS, error);
    co_mutex_unlock(&q->lock);
    return ret;
}

static int coroutine_fn write_anew(Qcow2 *q, GError **error)
{
    g_autoptr(GPtrArray) same = g_ptr_array_ref(q->bitmaps->entries);
    Qcow2BitmapFrees frees;
    int ret;

    qcow2_bitmap_frees_init(&frees);
    ret = qcow2_bitmaps_switch_directory(q, same, &frees, error);
    qcow2_bitmap_frees_done(&frees);
    return ret;
}

static int coroutine_fn write_changed(Qcow2 *q, GHashTable *changed, GError **error)
{
    guint first = q->bitmaps->entries->len, end = 0;
    int ret = 0;

    for (guint i = 0; i < q->bitmaps->entries->len; i++) {
        if (g_hash_table_contains(changed, entry_at(q, i))) {
            first = MIN(first, i);
            end = i + 1;
        }
    }
    if (first < end) {
        ret = qcow2_bitmaps_write_flags(q, q->bitmaps->entries, first, end);
    }
    if (ret < 0) {
        merino_error_errno(error, -ret, "Cannot mark the stored bitmaps of '%s'",
                           q->node->node_name);
    }
    return ret;
}

int coroutine_fn qcow2_bitmaps_co_mark(void *opaque, DirtyBitmap *const bitmaps[], size_t n,
                                       GError **error)
{
    Qcow2 *q = opaque;
    g_autoptr(GHashTable) changed = set_all_in_use(q, bitmaps, n);
    GHashTableIter iter;
    gpointer entry;
    int ret;

    if (q->bitmaps->unreadable) {
        ret = disown(q, error);
    } else if (q->bitmaps->damaged) {
        ret = write_anew(q, error);
    } else {
        ret = write_changed(q, changed, error);
    }
    g_hash_table_iter_init(&iter, changed);
    while (ret < 0 && g_hash_table_iter_next(&iter, &entry, NULL)) {
        ((Qcow2BitmapEntry *)entry)->flags &= ~(uint32_t)QCOW2_BITMAP_IN_USE;
    }
    return ret;
}
