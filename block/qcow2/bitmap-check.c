/* SPDX-License-Identifier: MIT */
/*
 * Checking what the file says of bitmaps, and mending it.
 */
#include "bitmap-internal.h"
#include "util/error.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* --- check --- */

static void say_used(const Qcow2BitmapCheck *check, int64_t host, int64_t bytes, const char *what)
{
    if (check->used) {
        check->used(host, bytes, what, check->opaque);
    }
}

static void say_fault(const Qcow2BitmapCheck *check, const char *words)
{
    if (check->fault) {
        check->fault(words, check->opaque);
    }
}

/* What an entry refers to, as far as it can be: also if it has a fault, so that nothing is taken
 * from it before it is mended. */
static void use_entry(const Qcow2 *q, const Qcow2BitmapCheck *check, const Qcow2BitmapEntry *entry)
{
    Qcow2BitmapGeometry geometry = qcow2_bitmap_geometry(q);
    g_autofree char *of_table = g_strdup_printf("table of bitmap '%s'", entry->name);
    g_autofree char *of_bits = g_strdup_printf("bits of bitmap '%s'", entry->name);
    int64_t bytes = MAX(INT64_C(8) * entry->table_entries, 1);

    if (entry->table_entries <= QCOW2_MAX_BITMAP_TABLE / 8 &&
        qcow2_bitmap_range_ok(&geometry, (uint64_t)entry->table_offset, (uint64_t)bytes)) {
        say_used(check, entry->table_offset, bytes, of_table);
    }
    for (uint32_t i = 0; entry->table && i < entry->table_entries; i++) {
        int64_t host = entry->table[i] & QCOW2_BITMAP_OFFSET_MASK;

        if (host && !qcow2_bitmap_table_entry_fault(&geometry, entry->table[i])) {
            say_used(check, host, q->cluster_size, of_bits);
        }
    }
}

static int64_t coroutine_fn check_entry(Qcow2 *q, const Qcow2BitmapCheck *check,
                                        Qcow2BitmapEntry *entry)
{
    bool was_there = entry->table != NULL;
    bool ok = qcow2_bitmaps_need_table(q, entry);

    if (!ok) {
        g_autofree char *words = g_strdup_printf("Bitmap '%s': %s", entry->name, entry->fault);

        say_fault(check, words);
    }
    if (ok || !check->only_sound) {
        use_entry(q, check, entry);
    }
    if (!was_there) {
        g_clear_pointer(&entry->table, g_free);
    }
    return !ok;
}

static int64_t check_directory(Qcow2 *q, const Qcow2BitmapCheck *check,
                               const Qcow2BitmapDirectory *directory)
{
    Qcow2BitmapGeometry geometry = qcow2_bitmap_geometry(q);
    int64_t bytes = q->header.bitmap_dir_bytes;

    for (guint i = 0; i < directory->faults->len; i++) {
        say_fault(check, g_ptr_array_index(directory->faults, i));
    }
    if (bytes > 0 && bytes <= QCOW2_MAX_BITMAP_DIR &&
        qcow2_bitmap_range_ok(&geometry, (uint64_t)q->header.bitmap_dir_offset, (uint64_t)bytes)) {
        say_used(check, q->header.bitmap_dir_offset, bytes, "bitmap directory");
    }
    return directory->faults->len;
}

int64_t coroutine_fn qcow2_bitmaps_check(Qcow2 *q, const Qcow2BitmapCheck *check)
{
    Qcow2BitmapDirectory directory;
    int64_t faults = 0;

    if (q->header.bitmaps_fault) {
        say_fault(check, q->header.bitmaps_fault);
        faults++;
    }
    if (!q->header.has_bitmaps || !(q->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS)) {
        return faults;
    }
    qcow2_bitmap_directory_init(&directory);
    qcow2_bitmaps_read_directory(q, &directory);
    faults += check_directory(q, check, &directory);
    qcow2_bitmaps_read_tables(q, directory.entries, true);
    for (guint i = 0; i < directory.entries->len; i++) {
        faults += check_entry(q, check, g_ptr_array_index(directory.entries, i));
    }
    qcow2_bitmap_directory_done(&directory);
    return faults;
}

/* The first cluster of an entry that others use; or -1. */
static int64_t find_shared(const Qcow2 *q, const Qcow2BitmapEntry *entry,
                           bool (*shared)(int64_t host, void *opaque), void *opaque)
{
    int64_t end = entry->table_offset + INT64_C(8) * entry->table_entries;

    for (int64_t host = entry->table_offset; host < end; host += q->cluster_size) {
        if (shared(host, opaque)) {
            return host;
        }
    }
    for (uint32_t i = 0; i < entry->table_entries; i++) {
        int64_t host = entry->table[i] & QCOW2_BITMAP_OFFSET_MASK;

        if (host && shared(host, opaque)) {
            return host;
        }
    }
    return -1;
}

int64_t coroutine_fn qcow2_bitmaps_blame_shared(Qcow2 *q,
                                                bool (*shared)(int64_t host, void *opaque),
                                                const Qcow2BitmapCheck *check)
{
    int64_t n = 0;

    for (guint i = 0; i < q->bitmaps->entries->len; i++) {
        Qcow2BitmapEntry *entry = g_ptr_array_index(q->bitmaps->entries, i);
        int64_t host =
            qcow2_bitmaps_need_table(q, entry) ? find_shared(q, entry, shared, check->opaque) : -1;

        if (host >= 0) {
            g_autofree char *words = g_strdup_printf(
                "Bitmap '%s': others refer to its cluster at 0x%" PRIx64, entry->name, host);

            qcow2_bitmap_entry_fault(entry, "others refer to its cluster at 0x%" PRIx64, host);
            say_fault(check, words);
            n++;
        }
    }
    return n;
}

/* --- repair --- */

/* The same bitmap by name, in use, with nothing in it. */
static Qcow2BitmapEntry *empty_entry(const Qcow2 *q, const Qcow2BitmapEntry *broken)
{
    Qcow2BitmapGeometry geometry = qcow2_bitmap_geometry(q);
    Qcow2BitmapEntry *entry =
        qcow2_bitmap_entry_new(broken->name, qcow2_bitmaps_listed_granularity(q, broken));

    if (entry->raw_name_bytes > QCOW2_MAX_BITMAP_NAME) { /* cut between two characters */
        const char *end = entry->name + QCOW2_MAX_BITMAP_NAME + 1;

        entry->raw_name_bytes = (size_t)(g_utf8_find_prev_char(entry->name, end) - entry->name);
    }
    entry->flags = QCOW2_BITMAP_IN_USE | (broken->flags & QCOW2_BITMAP_AUTO);
    entry->table_entries = (uint32_t)qcow2_bitmap_table_entries(&geometry, entry->granularity_bits);
    entry->table = g_new0(uint64_t, entry->table_entries + 1);
    entry->stored_size = q->header.size;
    return entry;
}

static int coroutine_fn write_empty_table(Qcow2 *q, Qcow2BitmapEntry *entry, GError **error)
{
    int64_t bytes =
        size_to_clusters(q, MAX(INT64_C(8) * entry->table_entries, 1)) * q->cluster_size;
    g_autofree uint8_t *zeroes = g_malloc0(bytes);
    int64_t ret;

    co_mutex_lock(&q->lock);
    ret = qcow2_alloc(q, bytes);
    co_mutex_unlock(&q->lock);
    if (ret >= 0) {
        entry->table_offset = ret;
        ret = qcow2_writeback(q);
    }
    if (ret >= 0) {
        ret = qcow2_meta_write(q, entry->table_offset, zeroes, bytes, 0);
    }
    if (ret < 0) {
        merino_error_errno(error, (int)-ret, "Cannot write the table of bitmap '%s'", entry->name);
    }
    return ret < 0 ? (int)ret : 0;
}

/* Replace entries with faults in `entries`, a copy of those in force. Returns how many. */
static int coroutine_fn mend_entries(Qcow2 *q, GPtrArray *entries, GError **error)
{
    int mended = 0;

    for (guint i = 0; i < entries->len; i++) {
        Qcow2BitmapEntry *entry = g_ptr_array_index(entries, i);
        DirtyBitmap *bitmap = bitmap_find(q->node->bitmaps, entry->name);
        int ret;

        if (qcow2_bitmaps_need_table(q, entry)) {
            continue;
        }
        if (bitmap && !bitmap_is_inconsistent(bitmap)) {
            bitmap_set_inconsistent(bitmap, entry->fault);
        }
        entries->pdata[i] = empty_entry(q, entry);
        qcow2_bitmap_entry_unref(entry);
        ret = write_empty_table(q, entries->pdata[i], error);
        if (ret < 0) {
            return ret;
        }
        mended++;
    }
    return mended;
}

bool coroutine_fn qcow2_bitmaps_repair(Qcow2 *q, GError **error)
{
    Qcow2Bitmaps *b = q->bitmaps;
    g_autoptr(GPtrArray) entries = qcow2_bitmap_entries_new();
    Qcow2BitmapFrees frees;
    int ret;

    for (guint i = 0; i < b->entries->len; i++) {
        g_ptr_array_add(entries, qcow2_bitmap_entry_ref(g_ptr_array_index(b->entries, i)));
    }
    qcow2_bitmaps_read_tables(q, entries, true);
    ret = mend_entries(q, entries, error);
    if (ret > 0 || (ret == 0 && (b->damaged || b->unreadable))) {
        qcow2_bitmap_frees_init(&frees);
        ret = qcow2_bitmaps_switch_directory(q, entries, &frees, error);
        if (ret >= 0) {
            qcow2_bitmap_frees_run(q, &frees);
        }
        qcow2_bitmap_frees_done(&frees);
    }
    return ret >= 0;
}
