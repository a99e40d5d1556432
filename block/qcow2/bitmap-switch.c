/* SPDX-License-Identifier: MIT */
/*
 * From one bitmap directory to the next, by one write of the header (B3), and giving back what the
 * last one referred to (B4).
 */
#include "bitmap-internal.h"
#include "util/error.h"

#include <errno.h>

/* --- what becomes free --- */

typedef struct Range {
    int64_t host, bytes;
} Range;

void qcow2_bitmap_frees_init(Qcow2BitmapFrees *frees)
{
    frees->ranges = g_array_new(FALSE, FALSE, sizeof(Range));
}

void qcow2_bitmap_frees_done(Qcow2BitmapFrees *frees)
{
    g_array_unref(frees->ranges);
}

void qcow2_bitmap_frees_add(Qcow2BitmapFrees *frees, int64_t host, int64_t bytes)
{
    Range range = { host, bytes };

    g_array_append_val(frees->ranges, range);
}

void coroutine_fn qcow2_bitmap_frees_add_entry(Qcow2 *q, Qcow2BitmapFrees *frees,
                                               Qcow2BitmapEntry *entry)
{
    if (!qcow2_bitmaps_need_table(q, entry)) {
        return;
    }
    for (uint32_t i = 0; i < entry->table_entries; i++) {
        int64_t host = entry->table[i] & QCOW2_BITMAP_OFFSET_MASK;

        if (host) {
            qcow2_bitmap_frees_add(frees, host, q->cluster_size);
        }
    }
    qcow2_bitmap_frees_add(frees, entry->table_offset,
                           MAX(INT64_C(8) * entry->table_entries, q->cluster_size));
}

bool coroutine_fn qcow2_bitmaps_owns(Qcow2 *q, int64_t host)
{
    uint64_t refcount;

    return qcow2_refcount_get(q, host >> q->header.cluster_bits, &refcount) >= 0 && refcount == 1;
}

int coroutine_fn qcow2_bitmap_frees_run(Qcow2 *q, Qcow2BitmapFrees *frees)
{
    co_mutex_lock(&q->lock);
    for (guint i = 0; i < frees->ranges->len; i++) {
        Range range = g_array_index(frees->ranges, Range, i);
        int64_t end = range.host + range.bytes;

        for (int64_t host = range.host; host < end; host += q->cluster_size) {
            if (qcow2_bitmaps_owns(q, host)) {
                qcow2_free(q, host, q->cluster_size, QCOW2_DISCARD_OTHER);
            }
        }
    }
    co_mutex_unlock(&q->lock);
    return frees->ranges->len ? qcow2_writeback(q) : 0;
}

/* --- the switch --- */

/* The part of the header that tells of bitmaps. */
typedef struct Place {
    bool has_bitmaps;
    uint32_t n_bitmaps;
    int64_t offset, bytes;
    uint64_t autoclear;
} Place;

static Place get_place(const Qcow2 *q)
{
    return (Place){ q->header.has_bitmaps, q->header.n_bitmaps, q->header.bitmap_dir_offset,
                    q->header.bitmap_dir_bytes, q->header.autoclear };
}

static void set_place(Qcow2 *q, const Place *place)
{
    q->header.has_bitmaps = place->has_bitmaps;
    q->header.n_bitmaps = place->n_bitmaps;
    q->header.bitmap_dir_offset = place->offset;
    q->header.bitmap_dir_bytes = place->bytes;
    q->header.autoclear = place->autoclear;
}

/* An extension that was none is replaced by the new one. */
static void drop_broken_extension(Qcow2 *q)
{
    for (guint i = q->header.extensions->len; i-- > 0;) {
        if (g_array_index(q->header.extensions, Qcow2Extension, i).type == QCOW2_EXT_BITMAPS) {
            g_array_remove_index(q->header.extensions, i);
        }
    }
    g_clear_pointer(&q->header.bitmaps_fault, g_free);
}

/* New clusters with the directory in them, whole and with its refcounts durable. */
static int64_t coroutine_fn write_directory(Qcow2 *q, const GByteArray *bytes)
{
    int64_t room = size_to_clusters(q, bytes->len) * q->cluster_size;
    g_autofree uint8_t *padded = g_malloc0(room);
    int64_t host;
    int ret;

    co_mutex_lock(&q->lock);
    host = qcow2_alloc(q, room);
    co_mutex_unlock(&q->lock);
    if (host < 0) {
        return host;
    }
    memcpy(padded, bytes->data, bytes->len);
    ret = qcow2_writeback(q);
    if (ret >= 0) {
        ret = qcow2_meta_write(q, host, padded, room, QCOW2_OVERLAP_BITMAP_DIRECTORY);
    }
    if (ret < 0) {
        co_mutex_lock(&q->lock);
        qcow2_free(q, host, room, QCOW2_DISCARD_OTHER);
        co_mutex_unlock(&q->lock);
    }
    return ret < 0 ? ret : host;
}

void qcow2_bitmaps_adopt(Qcow2Bitmaps *b, GPtrArray *entries)
{
    b->damaged = b->unreadable = false;
    if (entries == b->entries) { /* which others may be looking at */
        return;
    }
    g_hash_table_remove_all(b->by_name);
    for (guint i = 0; i < entries->len; i++) {
        Qcow2BitmapEntry *entry = g_ptr_array_index(entries, i);

        g_hash_table_insert(b->by_name, entry->name, entry);
    }
    g_ptr_array_ref(entries);
    g_ptr_array_unref(b->entries);
    b->entries = entries;
}

int coroutine_fn qcow2_bitmaps_switch_directory(Qcow2 *q, GPtrArray *entries,
                                                Qcow2BitmapFrees *frees, GError **error)
{
    Place before = get_place(q), after = before;
    g_autoptr(GByteArray) bytes = qcow2_bitmap_directory_encode(entries);
    int64_t host = 0;
    int ret;

    if (entries->len) {
        host = write_directory(q, bytes);
        if (host < 0) {
            merino_error_errno(error, (int)-host, "Cannot write the bitmap directory");
            return (int)host;
        }
    }
    after.has_bitmaps = entries->len > 0;
    after.n_bitmaps = entries->len;
    after.offset = host;
    after.bytes = bytes->len;
    after.autoclear = entries->len ? before.autoclear | QCOW2_AUTOCLEAR_BITMAPS
                                   : before.autoclear & ~(uint64_t)QCOW2_AUTOCLEAR_BITMAPS;
    co_mutex_lock(&q->lock);
    set_place(q, &after);
    drop_broken_extension(q);
    ret = qcow2_header_commit(q, error);
    if (ret < 0) {
        set_place(q, &before);
    }
    co_mutex_unlock(&q->lock);
    if (ret < 0) {
        qcow2_bitmaps_be_unsure(q); /* the header was perhaps written, perhaps not */
        return ret;
    }
    if (before.has_bitmaps && !q->bitmaps->damaged && !q->bitmaps->unreadable) {
        qcow2_bitmap_frees_add(frees, before.offset, before.bytes);
    }
    qcow2_bitmaps_adopt(q->bitmaps, entries);
    return 0;
}
