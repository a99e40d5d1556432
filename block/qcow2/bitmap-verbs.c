/* SPDX-License-Identifier: MIT */
/*
 * What the node's list and the driver ask of the bitmaps in an image: whether one can be stored,
 * its removal, storing at closing and at turning read-only, and reports.
 */
#include "bitmap-internal.h"
#include "util/error.h"

#include <errno.h>
#include <string.h>

/* --- can it be stored? (QEMU's words) --- */

/* How many are or will be stored, and how much of a directory they take. */
static void measure(const Qcow2 *q, size_t *ret_n, uint64_t *ret_bytes)
{
    DirtyBitmap *bitmap = NULL;

    *ret_n = 0;
    *ret_bytes = 0;
    while ((bitmap = bitmap_list_next(q->node->bitmaps, bitmap))) {
        if (bitmap_is_persistent(bitmap)) {
            *ret_n += 1;
            *ret_bytes +=
                (sizeof(Qcow2DiskBitmap) + strlen(bitmap_name(bitmap)) + 7) & ~UINT64_C(7);
        }
    }
}

static const char *why_not(const Qcow2 *q, const char *name, int64_t granularity)
{
    Qcow2BitmapGeometry geometry = qcow2_bitmap_geometry(q);
    uint64_t bytes, entry = (sizeof(Qcow2DiskBitmap) + strlen(name) + 7) & ~UINT64_C(7);
    size_t n;

    if (q->header.version < 3) {
        return "Cannot store dirty bitmaps in qcow2 v2 files";
    }
    if (strlen(name) > QCOW2_MAX_BITMAP_NAME) {
        return "Name length exceeds maximum (1023 characters)";
    }
    if (!qcow2_bitmap_fits(&geometry, __builtin_ctzll(granularity))) {
        return "Too much space will be occupied by the bitmap. Use larger granularity";
    }
    measure(q, &n, &bytes);
    if (n >= QCOW2_MAX_BITMAPS) {
        return "Maximum number of persistent bitmaps is already reached";
    }
    if (bytes + entry > QCOW2_MAX_BITMAP_DIR) {
        return "Not enough space in the bitmap directory";
    }
    return NULL;
}

static bool can_store(void *opaque, const char *name, int64_t granularity, GError **error)
{
    Qcow2 *q = opaque;
    const char *reason = why_not(q, name, granularity);

    if (reason) {
        merino_error(error, "Can't make bitmap '%s' persistent in '%s': %s", name,
                     q->node->node_name, reason);
    }
    return !reason;
}

/* --- remove --- */

typedef struct Removal {
    Qcow2 *q;
    char *name;
    GError **error;
    int ret;
} Removal;

static void coroutine_fn remove_entry(void *opaque)
{
    Removal *removal = opaque;
    Qcow2 *q = removal->q;
    Qcow2BitmapEntry *gone = g_hash_table_lookup(q->bitmaps->by_name, removal->name);
    g_autoptr(GPtrArray) entries = qcow2_bitmap_entries_new();
    Qcow2BitmapFrees frees;

    if (!gone) {
        return;
    }
    qcow2_bitmap_frees_init(&frees);
    for (guint i = 0; i < q->bitmaps->entries->len; i++) {
        Qcow2BitmapEntry *entry = g_ptr_array_index(q->bitmaps->entries, i);

        if (entry == gone) {
            qcow2_bitmap_frees_add_entry(q, &frees, entry);
        } else {
            g_ptr_array_add(entries, qcow2_bitmap_entry_ref(entry));
        }
    }
    removal->ret = qcow2_bitmaps_switch_directory(q, entries, &frees, removal->error);
    if (removal->ret >= 0) {
        qcow2_bitmap_frees_run(q, &frees); /* a failure leaks */
    } else {
        bitmap_list_forget_marks(q->node->bitmaps);
    }
    qcow2_bitmap_frees_done(&frees);
}

/* The bitmap is gone from the list, whatever happens. If the file cannot be written, its entry is
 * marked there, and the next store leaves it out. */
static void commit_removal(void *opaque)
{
    Removal *removal = opaque;
    g_autoptr(GError) error = NULL;

    removal->error = &error;
    coroutine_run(remove_entry, removal);
    if (removal->ret < 0) {
        g_warning("Bitmap '%s' stays in the image of '%s' until bitmaps are next stored: %s",
                  removal->name, removal->q->node->node_name, error->message);
    }
}

static void clean_removal(void *opaque)
{
    Removal *removal = opaque;

    g_free(removal->name);
    g_free(removal);
}

static bool remove_stored(void *opaque, const char *name, UndoStack *undo, GError **error)
{
    static const UndoOps ops = { .commit = commit_removal, .clean = clean_removal };
    Removal removal = { .q = opaque, .name = (char *)name, .error = error };

    if (undo) {
        Removal *later = g_new0(Removal, 1);

        later->q = opaque;
        later->name = g_strdup(name);
        undo_push(undo, &ops, later);
        return true;
    }
    coroutine_run(remove_entry, &removal);
    return removal.ret >= 0;
}

/* --- store --- */

typedef struct StoreCall {
    Qcow2 *q;
    GError **error;
    int ret;
} StoreCall;

static void coroutine_fn store_entry(void *opaque)
{
    StoreCall *call = opaque;

    call->ret = qcow2_bitmaps_co_store(call->q, call->error);
}

bool qcow2_bitmaps_store(Qcow2 *q, GError **error)
{
    StoreCall call = { q, error };

    coroutine_run(store_entry, &call);
    return call.ret >= 0;
}

static bool store_list(void *opaque, BitmapList *list, GError **error)
{
    return qcow2_bitmaps_store(opaque, error);
}

const BitmapStore qcow2_bitmap_store = {
    .can_store = can_store,
    .load = qcow2_bitmaps_load,
    .store = store_list,
    .remove = remove_stored,
    .co_mark = qcow2_bitmaps_co_mark,
};

void qcow2_bitmaps_close(Qcow2 *q)
{
    g_autoptr(GError) error = NULL;

    if (!q->bitmaps) {
        return;
    }
    if (!q->node->read_only && !atomic_load(&q->corrupt) && !qcow2_bitmaps_store(q, &error)) {
        g_warning("Lost persistent bitmaps during inactivation of node '%s': %s",
                  q->node->node_name, error->message);
    }
    bitmap_list_set_store(q->node->bitmaps, NULL, NULL);
    g_ptr_array_unref(q->bitmaps->entries);
    g_hash_table_unref(q->bitmaps->by_name);
    g_free(g_steal_pointer(&q->bitmaps));
}

/* --- read-only, and back --- */

static void set_read_only(Qcow2 *q, bool read_only)
{
    DirtyBitmap *bitmap = NULL;

    while ((bitmap = bitmap_list_next(q->node->bitmaps, bitmap))) {
        if (bitmap_is_persistent(bitmap)) {
            bitmap_set_read_only(bitmap, read_only);
        }
    }
}

static void undo_read_only(void *opaque)
{
    set_read_only(opaque, false);
}

bool qcow2_bitmaps_reopen_ro(Qcow2 *q, UndoStack *undo, GError **error)
{
    static const UndoOps ops = { .abort = undo_read_only };

    if (!qcow2_bitmaps_store(q, error)) {
        return false;
    }
    set_read_only(q, true);
    undo_push(undo, &ops, q);
    return true;
}

/* A bitmap that was enabled or disabled meanwhile differs from its entry. */
void qcow2_bitmaps_reopen_rw(Qcow2 *q)
{
    for (guint i = 0; i < q->bitmaps->entries->len; i++) {
        Qcow2BitmapEntry *entry = g_ptr_array_index(q->bitmaps->entries, i);
        DirtyBitmap *bitmap = bitmap_find(q->node->bitmaps, entry->name);

        if (bitmap && bitmap_is_enabled(bitmap) != !!(entry->flags & QCOW2_BITMAP_AUTO)) {
            entry->to_be_marked = true;
        }
        if (entry->to_be_marked) {
            bitmap_list_expect_write(q->node->bitmaps);
        }
    }
    set_read_only(q, false);
}

/* --- resizing --- */

void qcow2_bitmaps_resized(Qcow2 *q)
{
    for (guint i = 0; q->bitmaps && i < q->bitmaps->entries->len; i++) {
        Qcow2BitmapEntry *entry = g_ptr_array_index(q->bitmaps->entries, i);

        entry->stored_size = MIN(entry->stored_size, q->header.size);
    }
}

/* --- reports --- */

static Qcow2BitmapInfo *info_of(const Qcow2BitmapEntry *entry)
{
    Qcow2BitmapInfo *info = g_new0(Qcow2BitmapInfo, 1);

    info->name = g_strdup(entry->name);
    info->granularity = entry->granularity_bits < 32 ? UINT32_C(1) << entry->granularity_bits : 0;
    info->flags = g_new0(Qcow2BitmapInfoFlagsList, 1);
    if (entry->flags & QCOW2_BITMAP_IN_USE) {
        qcow2_bitmap_info_flags_list_append(info->flags, QCOW2_BITMAP_INFO_FLAGS_IN_USE);
    }
    if (entry->flags & QCOW2_BITMAP_AUTO) {
        qcow2_bitmap_info_flags_list_append(info->flags, QCOW2_BITMAP_INFO_FLAGS_AUTO);
    }
    return info;
}

Qcow2BitmapInfoList *qcow2_bitmaps_info(Qcow2 *q)
{
    Qcow2BitmapInfoList *list = NULL;

    for (guint i = 0; q->bitmaps && i < q->bitmaps->entries->len; i++) {
        list = list ? list : g_new0(Qcow2BitmapInfoList, 1);
        qcow2_bitmap_info_list_append(list, info_of(g_ptr_array_index(q->bitmaps->entries, i)));
    }
    return list;
}
