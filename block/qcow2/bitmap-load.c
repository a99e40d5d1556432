/* SPDX-License-Identifier: MIT */
/*
 * From the image to the node's list: the directory, tables, and late, bits.
 *
 * Opening reads the directory in one go and the tables of bitmaps that can be used, up to
 * TABLES_AT_OPEN together; the rest is read when it is needed. Bits are read in runs of clusters
 * that follow one another, up to RUN_BYTES.
 */
#include "bitmap-internal.h"
#include "util/error.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define TABLES_AT_OPEN (INT64_C(16) << 20)
#define RUN_BYTES      (INT64_C(2) << 20)

Qcow2BitmapGeometry qcow2_bitmap_geometry(const Qcow2 *q)
{
    return (Qcow2BitmapGeometry){
        .cluster_bits = q->header.cluster_bits,
        .disk_size = q->header.size,
        .file_size = node_size(q->node->file->node),
    };
}

int coroutine_fn qcow2_bitmaps_read_bits(Qcow2 *q, int64_t host, void *buf, int64_t bytes)
{
    int64_t there = CLAMP(node_size(q->node->file->node) - host, 0, bytes);

    memset((uint8_t *)buf + there, 0, bytes - there);
    return there ? qcow2_meta_read(q, host, buf, there) : 0;
}

/* --- the directory --- */

/* How much to look at: the directory with the rest of its last cluster; if the header's length
 * cannot be, as much as its number of entries may take. */
static int64_t extent_of_directory(const Qcow2 *q, const Qcow2BitmapGeometry *geometry)
{
    int64_t most = MIN(geometry->file_size - q->header.bitmap_dir_offset, QCOW2_MAX_BITMAP_DIR);
    int64_t entry = sizeof(Qcow2DiskBitmap) + QCOW2_MAX_BITMAP_NAME + 1;
    int64_t n = CLAMP(q->header.n_bitmaps, 1, QCOW2_MAX_BITMAPS);

    if (q->header.bitmap_dir_bytes > 0 && q->header.bitmap_dir_bytes <= most) {
        return MIN(most, size_to_clusters(q, q->header.bitmap_dir_bytes) * q->cluster_size);
    }
    return MIN(most, n * entry);
}

bool coroutine_fn qcow2_bitmaps_read_directory(Qcow2 *q, Qcow2BitmapDirectory *ret)
{
    Qcow2BitmapGeometry geometry = qcow2_bitmap_geometry(q);
    int64_t offset = q->header.bitmap_dir_offset, extent;
    g_autofree uint8_t *buf = NULL;
    int err;

    if (!qcow2_bitmap_range_ok(&geometry, (uint64_t)offset, 1) || offset >= geometry.file_size) {
        g_ptr_array_add(ret->faults, g_strdup_printf("The bitmap directory lies at 0x%" PRIx64
                                                     ", which cannot be",
                                                     (uint64_t)offset));
        return false;
    }
    extent = extent_of_directory(q, &geometry);
    buf = g_try_malloc(extent);
    err = buf ? qcow2_meta_read(q, offset, buf, extent) : -ENOMEM;
    if (err < 0) {
        g_ptr_array_add(ret->faults, g_strdup_printf("The bitmap directory cannot be read: %s",
                                                     g_strerror(-err)));
        return false;
    }
    qcow2_bitmap_directory_parse(buf, extent, (uint64_t)q->header.bitmap_dir_bytes,
                                 q->header.n_bitmaps, &geometry, ret);
    if (ret->entries->len == 0 && ret->faults->len) {
        return false;
    }
    return true;
}

/* --- tables --- */

static bool check_table(Qcow2BitmapEntry *entry, const Qcow2BitmapGeometry *geometry)
{
    for (uint32_t i = 0; i < entry->table_entries; i++) {
        const char *fault = qcow2_bitmap_table_entry_fault(geometry, entry->table[i]);

        if (fault) {
            qcow2_bitmap_entry_fault(entry, "entry %" PRIu32 " of its table %s", i, fault);
            return false;
        }
    }
    return true;
}

/* Clusters that count as free, or as used twice, are not the bitmap's. */
static bool coroutine_fn check_owned(Qcow2 *q, Qcow2BitmapEntry *entry, int64_t host, int64_t bytes)
{
    for (int64_t end = host + bytes; host < end; host += q->cluster_size) {
        uint64_t refcount;

        if (qcow2_refcount_get(q, host >> q->header.cluster_bits, &refcount) >= 0 &&
            refcount != 1) {
            qcow2_bitmap_entry_fault(
                entry, "the refcount of its cluster at 0x%" PRIx64 " is %" PRIu64, host, refcount);
            return false;
        }
    }
    return true;
}

static bool coroutine_fn check_refcounts(Qcow2 *q, Qcow2BitmapEntry *entry)
{
    uint64_t unreliable = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT;
    bool ok;

    if (q->repairing || (q->header.incompatible & unreliable)) {
        return true;
    }
    co_mutex_lock(&q->lock);
    ok = check_owned(q, entry, entry->table_offset, INT64_C(8) * entry->table_entries);
    for (uint32_t i = 0; ok && i < entry->table_entries; i++) {
        int64_t host = entry->table[i] & QCOW2_BITMAP_OFFSET_MASK;

        ok = !host || check_owned(q, entry, host, 1);
    }
    co_mutex_unlock(&q->lock);
    return ok;
}

bool coroutine_fn qcow2_bitmaps_need_table(Qcow2 *q, Qcow2BitmapEntry *entry)
{
    Qcow2BitmapGeometry geometry = qcow2_bitmap_geometry(q);
    size_t bytes = sizeof(uint64_t) * entry->table_entries;
    g_autofree uint64_t *table = NULL;
    int err;

    if (entry->table || entry->fault) {
        return entry->table && !entry->fault;
    }
    table = g_try_malloc(MAX(bytes, 1));
    err = table ? qcow2_bitmaps_read_bits(q, entry->table_offset, table, bytes) : -ENOMEM;
    if (err < 0) {
        qcow2_bitmap_entry_fault(entry, "its table cannot be read: %s", g_strerror(-err));
        return false;
    }
    for (uint32_t i = 0; i < entry->table_entries; i++) {
        table[i] = GUINT64_FROM_BE(table[i]);
    }
    entry->table = g_steal_pointer(&table);
    return check_table(entry, &geometry) && check_refcounts(q, entry);
}

/* --- opening --- */

static void take(GArray *taken, const Qcow2 *q, int64_t host, int64_t bytes)
{
    for (int64_t end = host + bytes; host < end; host += q->cluster_size) {
        g_array_append_val(taken, host);
    }
}

/* The clusters of other metadata, as far as it is in memory. No guest data. */
static GArray *taken_clusters(Qcow2 *q)
{
    GArray *taken = g_array_new(FALSE, FALSE, sizeof(int64_t));

    take(taken, q, 0, 1);
    take(taken, q, q->header.bitmap_dir_offset,
         CLAMP(q->header.bitmap_dir_bytes, 1, QCOW2_MAX_BITMAP_DIR));
    take(taken, q, q->header.snapshots_offset, q->header.n_snapshots != 0);
    take(taken, q, q->l1.offset, INT64_C(8) * q->l1.entries);
    take(taken, q, q->reftable.offset, INT64_C(8) * q->reftable.entries);
    g_mutex_lock(&q->table_lock);
    for (uint32_t i = 0; i < q->l1.entries; i++) {
        int64_t host = q->l1.entry[i] & QCOW2_L1_OFFSET_MASK;

        take(taken, q, host, host != 0);
    }
    for (uint32_t i = 0; i < q->reftable.entries; i++) {
        int64_t host = q->reftable.entry[i] & QCOW2_REFTABLE_OFFSET_MASK;

        take(taken, q, host, host != 0);
    }
    g_mutex_unlock(&q->table_lock);
    return taken;
}

void coroutine_fn qcow2_bitmaps_read_tables(Qcow2 *q, GPtrArray *entries, bool in_use)
{
    g_autoptr(GArray) taken = taken_clusters(q);
    int64_t left = TABLES_AT_OPEN;

    for (guint i = 0; i < entries->len; i++) {
        Qcow2BitmapEntry *entry = g_ptr_array_index(entries, i);
        int64_t bytes = INT64_C(8) * entry->table_entries;

        if (!entry->fault && (in_use || !(entry->flags & QCOW2_BITMAP_IN_USE)) && bytes <= left) {
            qcow2_bitmaps_need_table(q, entry);
            left -= bytes;
        }
    }
    qcow2_bitmap_find_overlaps(entries, q->header.cluster_bits, (const int64_t *)taken->data,
                               taken->len);
}

static const char *why_inconsistent(const Qcow2BitmapEntry *entry, char **ret_text)
{
    if (entry->fault) {
        *ret_text = g_strdup_printf("it is damaged in the image: %s", entry->fault);
    } else if (entry->flags & QCOW2_BITMAP_IN_USE) {
        *ret_text = g_strdup("it was in use when the image was last open, and not stored since");
    }
    return *ret_text;
}

int64_t qcow2_bitmaps_listed_granularity(const Qcow2 *q, const Qcow2BitmapEntry *entry)
{
    unsigned bits = entry->granularity_bits;

    if (bits < QCOW2_MIN_BITMAP_BITS || bits > QCOW2_MAX_BITMAP_BITS) {
        bits = 16;
    }
    return INT64_C(1) << (qcow2_bitmap_data_bytes(q->header.size, bits) > QCOW2_MAX_BITMAP_DATA
                              ? QCOW2_MAX_BITMAP_BITS
                              : bits);
}

static void list_bitmaps(Qcow2 *q, GPtrArray *entries)
{
    g_autofree BitmapStored *stored = g_new0(BitmapStored, entries->len);
    g_autoptr(GPtrArray) reasons = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GError) error = NULL;

    for (guint i = 0; i < entries->len; i++) {
        Qcow2BitmapEntry *entry = g_ptr_array_index(entries, i);
        char *reason = NULL;

        stored[i] = (BitmapStored){
            .name = entry->name,
            .granularity = qcow2_bitmaps_listed_granularity(q, entry),
            .enabled = entry->flags & QCOW2_BITMAP_AUTO,
            .read_only = q->node->read_only,
            .inconsistent = why_inconsistent(entry, &reason),
        };
        g_ptr_array_add(reasons, reason);
    }
    if (!bitmap_list_add_stored(q->node->bitmaps, stored, entries->len, &error)) {
        g_error("%s", error->message); /* out of memory: as everywhere, the end */
    }
}

static bool needs_marks(GPtrArray *entries)
{
    for (guint i = 0; i < entries->len; i++) {
        Qcow2BitmapEntry *entry = g_ptr_array_index(entries, i);

        if (entry->to_be_marked && !(entry->flags & QCOW2_BITMAP_IN_USE)) {
            return true;
        }
    }
    return false;
}

static void warn_of_faults(const Qcow2 *q, const Qcow2BitmapDirectory *directory)
{
    for (guint i = 0; i < directory->faults->len; i++) {
        g_warning("%s: %s", q->node->node_name, (const char *)directory->faults->pdata[i]);
    }
}

static void coroutine_fn open_directory(void *opaque)
{
    Qcow2 *q = opaque;
    Qcow2Bitmaps *b = q->bitmaps;
    Qcow2BitmapDirectory directory;

    qcow2_bitmap_directory_init(&directory);
    b->unreadable = !qcow2_bitmaps_read_directory(q, &directory);
    b->damaged = directory.faults->len > 0;
    warn_of_faults(q, &directory);
    qcow2_bitmaps_read_tables(q, directory.entries, false);
    g_ptr_array_unref(b->entries);
    b->entries = g_ptr_array_ref(directory.entries);
    for (guint i = 0; i < b->entries->len; i++) {
        Qcow2BitmapEntry *entry = g_ptr_array_index(b->entries, i);

        g_hash_table_insert(b->by_name, entry->name, entry);
    }
    list_bitmaps(q, b->entries);
    if (b->damaged || needs_marks(b->entries)) {
        bitmap_list_expect_write(q->node->bitmaps);
    }
    qcow2_bitmap_directory_done(&directory);
}

void qcow2_bitmaps_open(Qcow2 *q)
{
    Qcow2Bitmaps *b = g_new0(Qcow2Bitmaps, 1);

    b->entries = qcow2_bitmap_entries_new();
    b->by_name = g_hash_table_new(g_str_hash, g_str_equal);
    q->bitmaps = b;
    bitmap_list_set_store(q->node->bitmaps, &qcow2_bitmap_store, q);
    if (q->header.has_bitmaps && !(q->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS)) {
        g_warning("a program lacking bitmap support modified this file, so all bitmaps are now "
                  "considered inconsistent");
        q->header.has_bitmaps = false;
    }
    if (q->header.has_bitmaps) {
        coroutine_run(open_directory, q);
    } else if (q->header.bitmaps_fault) {
        g_warning("%s: %s", q->node->node_name, q->header.bitmaps_fault);
        b->damaged = b->unreadable = true;
        bitmap_list_expect_write(q->node->bitmaps);
    }
}

/* --- bits --- */

typedef struct Load {
    Qcow2 *q;
    Qcow2BitmapEntry *entry;
    HBitmap *bits;
    uint64_t n_bits; /* of what is stored and wanted */
    int ret;
} Load;

static uint64_t bits_of_cluster(const Qcow2 *q)
{
    return (uint64_t)q->cluster_size * 8;
}

/* How many table entries from `i` on lie one behind the other in the file, within RUN_BYTES. */
static uint32_t run_at(const Load *load, uint32_t i)
{
    const uint64_t *table = load->entry->table;
    uint64_t cluster = load->q->cluster_size;
    uint64_t most = MAX(RUN_BYTES / (int64_t)cluster, 1);
    uint32_t n = 1;

    while (n < most && i + n < load->entry->table_entries &&
           table[i + n] == table[i] + n * cluster) {
        n++;
    }
    return n;
}

static int coroutine_fn load_run(Load *load, uint32_t i, uint32_t n, uint8_t *buf)
{
    uint64_t start = i * bits_of_cluster(load->q);
    uint64_t n_bits = MIN(n * bits_of_cluster(load->q), load->n_bits - start);
    int ret =
        qcow2_bitmaps_read_bits(load->q, load->entry->table[i], buf, (int64_t)((n_bits + 7) / 8));

    if (ret >= 0) {
        hbitmap_deserialize(load->bits, start, n_bits, buf);
    }
    return ret;
}

static void coroutine_fn load_entry(void *opaque)
{
    Load *load = opaque;
    Qcow2BitmapEntry *entry = load->entry;
    g_autofree uint8_t *buf = NULL;

    if (!qcow2_bitmaps_need_table(load->q, entry)) {
        load->ret = -EINVAL;
        return;
    }
    for (uint32_t i = 0; i < entry->table_entries && load->ret >= 0;) {
        uint64_t start = i * bits_of_cluster(load->q);
        uint32_t n = 1;

        if (start >= load->n_bits) {
            break;
        }
        if (entry->table[i] & QCOW2_BITMAP_ALL_ONES) {
            hbitmap_set(load->bits, start, MIN(bits_of_cluster(load->q), load->n_bits - start));
        } else if (entry->table[i]) {
            buf = buf ? buf : g_malloc(MAX(RUN_BYTES, load->q->cluster_size));
            n = run_at(load, i);
            load->ret = load_run(load, i, n, buf);
        }
        i += n;
    }
    if (load->ret < 0) {
        qcow2_bitmap_entry_fault(entry, "its bits cannot be read: %s", g_strerror(-load->ret));
    }
}

bool qcow2_bitmaps_load(void *opaque, const DirtyBitmap *bitmap, HBitmap *bits, GError **error)
{
    Qcow2 *q = opaque;
    Qcow2BitmapEntry *entry = g_hash_table_lookup(q->bitmaps->by_name, bitmap_name(bitmap));
    Load load = { q, entry, bits };
    HurrySection *hurry;

    if (!entry) {
        return true;
    }
    load.n_bits =
        MIN(hbitmap_size(bits), qcow2_bitmap_bits(entry->stored_size, entry->granularity_bits));
    hurry = hurry_begin_node(q->node); /* the main thread waits, whoever asks */
    coroutine_run(load_entry, &load);
    hurry_end(hurry);
    if (load.ret < 0) {
        g_autofree char *reason = NULL;

        merino_error(error, "Bitmap '%s' cannot be loaded: %s", entry->name,
                     why_inconsistent(entry, &reason));
    }
    return load.ret >= 0;
}
