/* SPDX-License-Identifier: MIT */
/*
 * What refers to clusters of the image file, but for the refcount structures: the header, L1 and L2
 * tables of the disk and of its snapshots, the snapshot table, bitmaps.
 *
 * An entry that is wrong is told. Where it may be right but for its last bits, what it seems to
 * refer to is counted, lest that be freed as a leak; and nothing is, when that is a table.
 * An L2 entry is mended only where the guest reads the same afterwards.
 */
#include "bitmaps.h"
#include "check.h"

#include <errno.h>
#include <inttypes.h>

#define L1_RESERVED          0x7f000000000001ffull
#define L2_RESERVED          0x3f000000000001feull
#define L2_EXTENDED_RESERVED (L2_RESERVED | QCOW2_L2_ZERO)

/* One L2 table at work. */
typedef struct L2Walk {
    Qcow2Check *check;
    bool active;       /* of the disk itself: statistics are kept of it */
    int64_t host;      /* of the table */
    int64_t guest;     /* offset of the first cluster */
    uint8_t *table;    /* one cluster */
    int64_t *expected; /* where the next cluster lies if the disk is not fragmented; or 0 */
    bool changed;
} L2Walk;

void check_count_range(Qcow2Check *check, int64_t host, int64_t bytes)
{
    unsigned bits = check->q->header.cluster_bits;

    if (bytes == 0) {
        return;
    }
    if (host < 0 || bytes > INT64_MAX - host ||
        (host + bytes - 1) >> bits >= check->file_clusters) {
        check_corruption(
            check,
            "ERROR: counting reference for region exceeding the end of the file by one "
            "cluster or more: offset 0x%" PRIx64 " size 0x%" PRIx64,
            host, bytes);
        return;
    }
    for (int64_t cluster = host >> bits; cluster <= (host + bytes - 1) >> bits; cluster++) {
        ref_counts_add(check->counts, cluster, 1);
    }
}

/* --- L2 --- */

static uint64_t l2_entry(const L2Walk *walk, int64_t index)
{
    const uint8_t *at = walk->table + index * walk->check->q->l2_entry_size;
    uint64_t value;

    memcpy(&value, at, sizeof(value));
    return GUINT64_FROM_BE(value);
}

static uint64_t l2_subclusters(const L2Walk *walk, int64_t index)
{
    const uint8_t *at = walk->table + index * walk->check->q->l2_entry_size + 8;
    uint64_t value;

    memcpy(&value, at, sizeof(value));
    return GUINT64_FROM_BE(value);
}

static void set_l2_entry(L2Walk *walk, int64_t index, uint64_t value)
{
    value = GUINT64_TO_BE(value);
    memcpy(walk->table + index * walk->check->q->l2_entry_size, &value, sizeof(value));
    walk->changed = true;
}

/* One finding about an entry, which is mended by setting it to `mended` where that is allowed. What
 * a snapshot calls a table is not written to: a damaged snapshot may call anything so. */
static void G_GNUC_PRINTF(4, 5)
    l2_fault(L2Walk *walk, int64_t index, const uint64_t *mended, const char *format, ...)
{
    BlockCheckResult *result = walk->check->result;
    bool mend =
        mended && walk->active && (walk->check->fix & CHECK_FIX_ERRORS) && !walk->check->preparing;
    g_autofree char *text = NULL;
    va_list args;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    check_say(walk->check, "%s %s", mend ? "Repairing" : "ERROR", text);
    if (mend) {
        set_l2_entry(walk, index, *mended);
        result->corruptions_fixed++;
    } else {
        result->corruptions++;
    }
}

/* The statistics of the disk's own clusters; `next` is where the following one would lie. */
static void note_cluster(L2Walk *walk, int64_t host, int64_t next)
{
    BlockCheckResult *result = walk->check->result;

    if (!walk->active) {
        return;
    }
    result->allocated_clusters++;
    if (next < 0) {
        result->compressed_clusters++;
        result->fragmented_clusters++;
        return;
    }
    if (*walk->expected && host != *walk->expected) {
        result->fragmented_clusters++;
    }
    *walk->expected = next;
}

static void check_compressed(L2Walk *walk, int64_t index, uint64_t entry)
{
    const Qcow2 *q = walk->check->q;
    unsigned size_bits = q->header.cluster_bits - 8;
    unsigned shift = 62 - size_bits;
    int64_t host = (int64_t)(entry & ((1ull << shift) - 1));
    int64_t sectors = (int64_t)((entry >> shift) & ((1ull << size_bits) - 1)) + 1;
    int64_t bytes = sectors * 512 - (host & 511);

    if (has_data_file(q)) {
        l2_fault(walk, index, NULL, "compressed cluster %" PRId64 " in data file", index);
        return;
    }
    if (q->subclusters > 1 && l2_subclusters(walk, index)) {
        l2_fault(walk, index, NULL,
                 "compressed cluster %" PRId64 " with non-zero subcluster allocation bitmap "
                 "(entry=0x%" PRIx64 ")",
                 host >> q->header.cluster_bits, l2_subclusters(walk, index));
        return;
    }
    if (entry & QCOW2_COPIED) {
        uint64_t mended = entry & ~QCOW2_COPIED;

        l2_fault(walk, index, &mended,
                 "coffset=%" PRId64 ": copied flag must never be set for compressed clusters",
                 host >> q->header.cluster_bits);
    }
    check_count_range(walk->check, host, bytes);
    note_cluster(walk, host, -1);
}

/* Whether the guest reads only zeroes from the cluster, whatever its offset is. */
static bool is_all_zero(const L2Walk *walk, int64_t index, uint64_t entry)
{
    if (walk->check->q->subclusters > 1) {
        return (uint32_t)l2_subclusters(walk, index) == 0;
    }
    return walk->check->q->header.version >= 3 && (entry & QCOW2_L2_ZERO);
}

static void check_allocated(L2Walk *walk, int64_t index, uint64_t entry)
{
    const Qcow2 *q = walk->check->q;
    int64_t host = (int64_t)(entry & QCOW2_L2_OFFSET_MASK);
    int64_t guest = walk->guest + (index << q->header.cluster_bits);
    bool zero = is_all_zero(walk, index, entry);
    uint64_t plain_zero = q->subclusters > 1 ? 0 : QCOW2_L2_ZERO;

    if (q->subclusters > 1) {
        uint64_t bitmap = l2_subclusters(walk, index);

        if ((uint32_t)bitmap & (uint32_t)(bitmap >> 32)) {
            l2_fault(walk, index, NULL,
                     "offset=%" PRIx64 ": Allocated cluster with corrupted subcluster allocation "
                     "bitmap (entry=0x%" PRIx64 ")",
                     host, bitmap);
            return;
        }
    }
    if (cluster_offset(q, host)) {
        l2_fault(walk, index, zero ? &plain_zero : NULL,
                 "offset=%" PRIx64 ": %s cluster is not properly aligned; L2 entry corrupted.",
                 host, zero ? "Preallocated" : "Data");
        if (l2_entry(walk, index) != entry) {
            return;
        }
    }
    if (data_file_is_raw(q) && host != guest) {
        l2_fault(walk, index, NULL,
                 "offset=%" PRIx64 " is not the guest offset %" PRIx64 " in a raw data file", host,
                 guest);
        return;
    }
    if (!has_data_file(q)) {
        check_count_range(walk->check, host, q->cluster_size);
    }
    note_cluster(walk, host, host + q->cluster_size);
}

/* A data file has a cluster at offset 0, which only the copied flag tells from none. */
static bool is_allocated(const Qcow2 *q, uint64_t entry)
{
    return (entry & QCOW2_L2_OFFSET_MASK) || (has_data_file(q) && (entry & QCOW2_COPIED));
}

static void check_entry(L2Walk *walk, int64_t index)
{
    const Qcow2 *q = walk->check->q;
    uint64_t entry = l2_entry(walk, index);
    uint64_t reserved = q->subclusters > 1 ? L2_EXTENDED_RESERVED : L2_RESERVED;

    if (entry & QCOW2_L2_COMPRESSED) {
        check_compressed(walk, index, entry);
        return;
    }
    if (entry & reserved) {
        l2_fault(walk, index, NULL, "found l2 entry with reserved bits set: %" PRIx64, entry);
    }
    if (is_allocated(q, entry)) {
        check_allocated(walk, index, entry);
    } else if (q->subclusters > 1 && (uint32_t)l2_subclusters(walk, index)) {
        l2_fault(walk, index, NULL,
                 "Unallocated cluster with non-zero subcluster allocation map (entry=0x%" PRIx64
                 ")",
                 l2_subclusters(walk, index));
    }
}

/* What could not be read refers to nobody knows what. */
static void read_failed(Qcow2Check *check, const char *words)
{
    check_say(check, "ERROR: %s", words);
    check->result->check_errors++;
    check->hidden = check->unread = true;
}

static int coroutine_fn check_l2(L2Walk *walk)
{
    Qcow2 *q = walk->check->q;
    int ret = qcow2_meta_read(q, walk->host, walk->table, q->cluster_size);

    *walk->expected = 0;
    if (ret < 0) {
        read_failed(walk->check, "I/O error in check_refcounts_l2");
        return 0;
    }
    for (int64_t i = 0; i < INT64_C(1) << q->l2_bits; i++) {
        check_entry(walk, i);
    }
    if (walk->changed) {
        walk->changed = false;
        ret = child_co_pwrite(q->node->file, walk->host, q->cluster_size, walk->table, 0);
    }
    return ret;
}

/* --- L1 --- */

static int coroutine_fn check_l1_entry(L2Walk *walk, uint64_t entry, int64_t index)
{
    Qcow2Check *check = walk->check;
    const Qcow2 *q = check->q;

    if (entry & L1_RESERVED) {
        check_corruption(check, "ERROR found L1 entry with reserved bits set: %" PRIx64, entry);
    }
    walk->host = (int64_t)(entry & QCOW2_L1_OFFSET_MASK);
    if (walk->host == 0) {
        return 0;
    }
    if (cluster_offset(q, walk->host)) {
        check_corruption(
            check, "ERROR l2_offset=%" PRIx64 ": Table is not cluster aligned; L1 entry corrupted",
            walk->host);
        check->hidden = true;
    }
    check_count_range(check, walk->host, q->cluster_size);
    if (cluster_offset(q, walk->host)) {
        return 0;
    }
    if (walk->host >> q->header.cluster_bits >= check->file_clusters) {
        return 0;
    }
    walk->guest = index << (q->header.cluster_bits + q->l2_bits);
    return check_l2(walk);
}

int coroutine_fn check_count_l1(Qcow2Check *check, int64_t host, uint32_t entries, bool active)
{
    Qcow2 *q = check->q;
    int64_t bytes = (int64_t)entries * 8, expected = 0;
    g_autofree uint64_t *table = g_try_malloc(MAX(bytes, 1));
    g_autofree uint8_t *l2 = g_try_malloc(q->cluster_size);
    L2Walk walk = { .check = check, .active = active, .table = l2, .expected = &expected };
    int ret = 0;

    if (!table || !l2) {
        return -ENOMEM;
    }
    check_count_range(check, host, bytes);
    if (qcow2_meta_read(q, host, table, bytes) < 0) {
        read_failed(check, "I/O error in check_refcounts_l1");
        return 0;
    }
    for (uint32_t i = 0; i < entries && ret == 0; i++) {
        ret = check_l1_entry(&walk, GUINT64_FROM_BE(table[i]), i);
    }
    return ret;
}

/* --- bitmaps --- */

static void count_bitmap_range(int64_t host, int64_t bytes, const char *what, void *opaque)
{
    check_count_range(opaque, host, bytes);
}

/* What a broken bitmap refers to is not all known. */
static void say_bitmap_fault(const char *words, void *opaque)
{
    Qcow2Check *check = opaque;

    check_corruption(check, "ERROR %s", words);
    check->hidden = check->hidden || !check->preparing;
}

/* Faults of bitmaps are mended before anything is counted, so those that are left count as found.
 */
static void coroutine_fn check_bitmaps(Qcow2Check *check)
{
    Qcow2BitmapCheck walk = { count_bitmap_range, say_bitmap_fault, check, check->preparing };

    qcow2_bitmaps_check(check->q, &walk);
}

int coroutine_fn check_count_references(Qcow2Check *check)
{
    Qcow2 *q = check->q;
    int ret;

    check->hidden = check->unread = false;
    check_count_range(check, 0, q->cluster_size);
    ret = check_count_l1(check, q->header.l1_offset, q->header.l1_entries, true);
    if (ret == 0) {
        ret = check_count_snapshots(check);
    }
    if (ret == 0) {
        check_bitmaps(check);
    }
    return ret;
}
