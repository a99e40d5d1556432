/* SPDX-License-Identifier: MIT */
/*
 * Going to a snapshot changes the disk as writes do: bitmaps that record get what differs.
 *
 * Two L1 tables of the same image show the same cluster where they lead to the same place: nothing
 * is written to a cluster in place while more than one table refers to it. So entries are compared,
 * and no data is read. Marks are set before the disk changes; if it does not, they are too many.
 */
#include "snapshot.h"
#include "util/error.h"
#include "util/size.h"

#include <string.h>

typedef struct Diff {
    Qcow2 *q;
    int64_t end;         /* of what both disks have */
    uint8_t *old, *new;  /* an L2 table each */
    int64_t from, bytes; /* the run that differs up to now */
} Diff;

static void end_run(Diff *diff)
{
    int64_t bytes = MIN(diff->bytes, diff->end - diff->from);

    if (bytes > 0) {
        bitmap_list_mark(diff->q->node->bitmaps, diff->from, bytes);
    }
    diff->bytes = 0;
}

static void add_cluster(Diff *diff, int64_t guest)
{
    if (diff->bytes && diff->from + diff->bytes != guest) {
        end_run(diff);
    }
    diff->from = diff->bytes ? diff->from : guest;
    diff->bytes += diff->q->cluster_size;
}

static int coroutine_fn read_l2(Qcow2 *q, uint64_t l1_entry, uint8_t *buf)
{
    int64_t table = (int64_t)(l1_entry & QCOW2_L1_OFFSET_MASK);

    if (table == 0) {
        memset(buf, 0, q->cluster_size);
        return 0;
    }
    return qcow2_meta_read(q, table, buf, q->cluster_size);
}

/* Whether the entries lead to different places, or say different things of subclusters. */
static bool entries_differ(const Diff *diff, int64_t index)
{
    size_t bytes = diff->q->l2_entry_size;
    const uint8_t *old = diff->old + index * bytes, *new = diff->new + index *bytes;
    uint64_t a, b;

    memcpy(&a, old, sizeof(a));
    memcpy(&b, new, sizeof(b));
    return ((GUINT64_FROM_BE(a) ^ GUINT64_FROM_BE(b)) & ~QCOW2_COPIED) != 0 ||
           memcmp(old + sizeof(a), new + sizeof(b), bytes - sizeof(a)) != 0;
}

static int coroutine_fn compare_tables(Diff *diff, int64_t guest, uint64_t old, uint64_t new)
{
    Qcow2 *q = diff->q;
    int ret;

    if (((old ^ new) & QCOW2_L1_OFFSET_MASK) == 0) {
        return 0;
    }
    ret = read_l2(q, old, diff->old);
    ret = ret ? ret : read_l2(q, new, diff->new);
    for (int64_t i = 0; i < INT64_C(1) << q->l2_bits && ret == 0; i++) {
        if (entries_differ(diff, i)) {
            add_cluster(diff, guest + (i << q->header.cluster_bits));
        }
    }
    return ret;
}

static int coroutine_fn mark_differences(Qcow2 *q, const uint64_t *l1, uint32_t entries,
                                         int64_t size)
{
    g_autofree uint8_t *old = g_malloc(q->cluster_size);
    g_autofree uint8_t *new = g_malloc(q->cluster_size);
    Diff diff = { .q = q, .end = MIN(q->header.size, size), .old = old, .new = new };
    unsigned bits = q->header.cluster_bits + q->l2_bits;
    int ret = 0;

    for (uint32_t i = 0; (int64_t)i << bits < diff.end && ret == 0; i++) {
        ret = compare_tables(&diff, (int64_t)i << bits, i < q->l1.entries ? q->l1.entry[i] : 0,
                             i < entries ? l1[i] : 0);
    }
    end_run(&diff);
    if (size > diff.end) {
        bitmap_list_mark(q->node->bitmaps, diff.end, size - diff.end);
    }
    return ret;
}

int coroutine_fn qcow2_snapshot_mark(Qcow2 *q, const uint64_t *l1, uint32_t entries, int64_t size,
                                     GError **error)
{
    BitmapList *bitmaps = q->node->bitmaps;
    int ret = bitmap_list_co_before_write(bitmaps);

    if (ret == 0 && size != q->header.size) {
        ret = bitmap_list_co_before_resize(bitmaps);
    }
    if (ret == 0 && bitmap_list_records(bitmaps)) {
        ret = mark_differences(q, l1, entries, size);
    }
    return ret < 0 ? qcow2_snapshot_fail(error, ret, "Could not mark the bitmaps of the disk") : 0;
}
