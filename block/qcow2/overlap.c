/* SPDX-License-Identifier: MIT */
/*
 * Keeping guest data and metadata apart.
 *
 * A hash table knows each cluster that holds metadata, and of which kinds. A cluster that has left
 * the metadata may stay in it: before anybody is stopped the real tables are looked at, and what
 * is not true is forgotten. What became metadata is added at once.
 */
#include "runtime.h"
#include "util/event-loop.h"

#include <errno.h>
#include <inttypes.h>

struct Qcow2Overlap {
    GHashTable *kinds; /* index of a cluster: QCOW2_OVERLAP_* bits; under table_lock */
};

Qcow2Overlap *qcow2_overlap_new(void)
{
    Qcow2Overlap *overlap = g_new0(Qcow2Overlap, 1);

    overlap->kinds = g_hash_table_new(NULL, NULL);
    return overlap;
}

void qcow2_overlap_free(Qcow2Overlap *overlap)
{
    if (overlap) {
        g_hash_table_destroy(overlap->kinds);
        g_free(overlap);
    }
}

static unsigned kinds_of(Qcow2 *q, int64_t cluster)
{
    return GPOINTER_TO_UINT(g_hash_table_lookup(q->overlap->kinds, (gpointer)cluster));
}

static void set_kinds(Qcow2 *q, int64_t cluster, unsigned kinds)
{
    if (kinds) {
        g_hash_table_insert(q->overlap->kinds, (gpointer)cluster, GUINT_TO_POINTER(kinds));
    } else {
        g_hash_table_remove(q->overlap->kinds, (gpointer)cluster);
    }
}

/* Places that no cluster can have are none. */
static void add_locked(Qcow2 *q, unsigned what, int64_t host, int64_t bytes)
{
    int64_t last;

    if (host < 0 || bytes <= 0 || host > QCOW2_HOST_END - bytes) {
        return;
    }
    last = (host + bytes - 1) >> q->header.cluster_bits;
    for (int64_t i = host >> q->header.cluster_bits; i <= last; i++) {
        set_kinds(q, i, kinds_of(q, i) | what);
    }
}

void qcow2_overlap_add(Qcow2 *q, unsigned what, int64_t host, int64_t bytes)
{
    g_mutex_lock(&q->table_lock);
    add_locked(q, what, host, bytes);
    g_mutex_unlock(&q->table_lock);
}

bool qcow2_overlap_is_data(Qcow2 *q, int64_t host, int64_t bytes)
{
    int64_t last = (host + bytes - 1) >> q->header.cluster_bits;

    if (has_data_file(q)) {
        return true;
    }
    for (int64_t i = host >> q->header.cluster_bits; i <= last; i++) {
        if (G_UNLIKELY(kinds_of(q, i) & q->options.overlap_check)) {
            return false;
        }
    }
    return true;
}

/* --- filling it --- */

static void add_entries(Qcow2 *q, unsigned what, const uint64_t *entry, uint32_t n, uint64_t mask)
{
    for (uint32_t i = 0; i < n; i++) {
        if (entry[i] & mask) {
            add_locked(q, what, (int64_t)(entry[i] & mask), q->cluster_size);
        }
    }
}

/* Entries of snapshots are not checked when the image is opened: what lies beyond the file, or is
 * another snapshot's already, is not looked at. */
static bool is_sane(Qcow2 *q, const Qcow2Snapshot *snapshot)
{
    int64_t first = snapshot->l1_offset >> q->header.cluster_bits;
    bool known;

    g_mutex_lock(&q->table_lock);
    known = kinds_of(q, first) & QCOW2_OVERLAP_INACTIVE_L1;
    g_mutex_unlock(&q->table_lock);
    return !known && snapshot->l1_offset >= 0 &&
           (int64_t)snapshot->l1_entries * 8 <= QCOW2_MAX_L1_BYTES;
}

/* The tables of a snapshot: its L1, and if that is wanted what it refers to. `left` is how many
 * clusters the file has for them: tables that share clusters are damage, and take no more time than
 * others. */
static void coroutine_fn add_snapshot(Qcow2 *q, const Qcow2Snapshot *snapshot, int64_t *left)
{
    int64_t bytes = (int64_t)snapshot->l1_entries * 8;
    int64_t in_file = node_size(q->node->file->node) - snapshot->l1_offset;
    g_autofree uint64_t *entry = NULL;

    if (!is_sane(q, snapshot) || size_to_clusters(q, bytes) > *left) {
        return;
    }
    *left -= size_to_clusters(q, bytes);
    qcow2_overlap_add(q, QCOW2_OVERLAP_INACTIVE_L1, snapshot->l1_offset, MIN(bytes, in_file));
    if (!(q->options.overlap_check & QCOW2_OVERLAP_INACTIVE_L2) || bytes == 0) {
        return;
    }
    entry = g_try_malloc(bytes);
    if (!entry || child_co_pread(q->node->file, snapshot->l1_offset, bytes, entry) < 0) {
        return;
    }
    for (uint32_t i = 0; i < snapshot->l1_entries; i++) {
        entry[i] = GUINT64_FROM_BE(entry[i]);
    }
    g_mutex_lock(&q->table_lock);
    add_entries(q, QCOW2_OVERLAP_INACTIVE_L2, entry, snapshot->l1_entries, QCOW2_L1_OFFSET_MASK);
    g_mutex_unlock(&q->table_lock);
}

static int64_t snapshot_table_bytes(const Qcow2 *q)
{
    int64_t bytes = 0;

    for (uint32_t i = 0; i < q->n_snapshots; i++) {
        const Qcow2Snapshot *snapshot = &q->snapshots[i];

        bytes += sizeof(Qcow2DiskSnapshot) + sizeof(Qcow2DiskSnapshotExtra) +
                 snapshot->unknown_extra_bytes + strlen(snapshot->id) + strlen(snapshot->name);
        bytes = (bytes + 7) & ~INT64_C(7);
    }
    return bytes;
}

/* The extension's numbers are as they were found. */
static bool has_directory(const Qcow2 *q)
{
    return q->header.has_bitmaps && q->header.bitmap_dir_offset > 0 &&
           q->header.bitmap_dir_offset < QCOW2_HOST_END && q->header.bitmap_dir_bytes > 0 &&
           q->header.bitmap_dir_bytes <= QCOW2_MAX_BITMAP_DIR;
}

void coroutine_fn qcow2_overlap_refresh(Qcow2 *q)
{
    int64_t left = size_to_clusters(q, node_size(q->node->file->node));

    g_mutex_lock(&q->table_lock);
    g_hash_table_remove_all(q->overlap->kinds);
    add_locked(q, QCOW2_OVERLAP_HEADER, 0, q->cluster_size);
    add_locked(q, QCOW2_OVERLAP_ACTIVE_L1, q->l1.offset, (int64_t)q->l1.entries * 8);
    add_locked(q, QCOW2_OVERLAP_REFCOUNT_TABLE, q->reftable.offset,
               (int64_t)q->reftable.entries * 8);
    add_entries(q, QCOW2_OVERLAP_ACTIVE_L2, q->l1.entry, q->l1.entries, QCOW2_L1_OFFSET_MASK);
    add_entries(q, QCOW2_OVERLAP_REFCOUNT_BLOCK, q->reftable.entry, q->reftable.entries,
                QCOW2_REFTABLE_OFFSET_MASK);
    add_locked(q, QCOW2_OVERLAP_SNAPSHOT_TABLE, q->header.snapshots_offset,
               snapshot_table_bytes(q));
    if (has_directory(q)) {
        add_locked(q, QCOW2_OVERLAP_BITMAP_DIRECTORY, q->header.bitmap_dir_offset,
                   q->header.bitmap_dir_bytes);
    }
    g_mutex_unlock(&q->table_lock);
    for (uint32_t i = 0; i < q->n_snapshots; i++) {
        add_snapshot(q, &q->snapshots[i], &left);
    }
}

/* --- looking closely, under table_lock --- */

static bool touches(const Qcow2 *q, int64_t cluster, int64_t host, int64_t bytes)
{
    return bytes > 0 && cluster >= host >> q->header.cluster_bits &&
           cluster <= (host + bytes - 1) >> q->header.cluster_bits;
}

static bool is_entry(const Qcow2 *q, const Qcow2Table *table, uint64_t mask, int64_t cluster)
{
    for (uint32_t i = 0; i < table->entries; i++) {
        if ((table->entry[i] & mask) &&
            touches(q, cluster, (int64_t)(table->entry[i] & mask), q->cluster_size)) {
            return true;
        }
    }
    return false;
}

static bool is_inactive_l1(const Qcow2 *q, int64_t cluster)
{
    for (uint32_t i = 0; i < q->n_snapshots; i++) {
        if (touches(q, cluster, q->snapshots[i].l1_offset,
                    (int64_t)q->snapshots[i].l1_entries * 8)) {
            return true;
        }
    }
    return false;
}

static bool is_really(const Qcow2 *q, unsigned kind, int64_t cluster)
{
    switch (kind) {
    case QCOW2_OVERLAP_HEADER:
        return cluster == 0;
    case QCOW2_OVERLAP_ACTIVE_L1:
        return touches(q, cluster, q->l1.offset, (int64_t)q->l1.entries * 8);
    case QCOW2_OVERLAP_ACTIVE_L2:
        return is_entry(q, &q->l1, QCOW2_L1_OFFSET_MASK, cluster);
    case QCOW2_OVERLAP_REFCOUNT_BLOCK:
        return is_entry(q, &q->reftable, QCOW2_REFTABLE_OFFSET_MASK, cluster);
    case QCOW2_OVERLAP_REFCOUNT_TABLE:
        return touches(q, cluster, q->reftable.offset, (int64_t)q->reftable.entries * 8);
    case QCOW2_OVERLAP_SNAPSHOT_TABLE:
        return touches(q, cluster, q->header.snapshots_offset, snapshot_table_bytes(q));
    case QCOW2_OVERLAP_INACTIVE_L1:
        return is_inactive_l1(q, cluster);
    case QCOW2_OVERLAP_BITMAP_DIRECTORY:
        return has_directory(q) &&
               touches(q, cluster, q->header.bitmap_dir_offset, q->header.bitmap_dir_bytes);
    default:
        return true;
    }
}

/* The kinds of metadata that really are in the cluster; forgets the others. */
static unsigned real_kinds(Qcow2 *q, int64_t cluster)
{
    unsigned kinds = kinds_of(q, cluster);

    for (unsigned kind = 1; kind <= QCOW2_OVERLAP_BITMAP_DIRECTORY; kind <<= 1) {
        if ((kinds & kind) && !is_really(q, kind, cluster)) {
            kinds &= ~kind;
        }
    }
    set_kinds(q, cluster, kinds);
    return kinds;
}

static const char *kind_name(unsigned kinds)
{
    static const char *const names[] = {
        "qcow2_header",      "active L1 table",   "active L2 table",
        "refcount block",    "refcount table",    "snapshot table",
        "inactive L1 table", "inactive L2 table", "bitmap directory",
    };

    return names[__builtin_ctz(kinds)];
}

static unsigned overlapping_kinds(Qcow2 *q, unsigned wanted, int64_t host, int64_t bytes)
{
    int64_t last = (host + bytes - 1) >> q->header.cluster_bits;
    unsigned kinds = 0;

    g_mutex_lock(&q->table_lock);
    for (int64_t i = host >> q->header.cluster_bits; i <= last && !kinds; i++) {
        if (kinds_of(q, i) & wanted) {
            kinds = real_kinds(q, i) & wanted;
        }
    }
    g_mutex_unlock(&q->table_lock);
    return kinds;
}

int coroutine_fn qcow2_check_overlap(Qcow2 *q, unsigned ignore, int64_t host, int64_t bytes)
{
    unsigned wanted = q->options.overlap_check & ~ignore;
    unsigned kinds = wanted ? overlapping_kinds(q, wanted, host, bytes) : 0;

    if (!kinds) {
        return 0;
    }
    qcow2_mark_corrupt(q, true, host, bytes,
                       "Preventing invalid write on metadata (overlaps with %s)", kind_name(kinds));
    return -EIO;
}
