/* SPDX-License-Identifier: MIT */
/*
 * Refcount structures made anew from counted references.
 *
 * They are written behind the end of the file, where nothing can be lost, then switched to by one
 * write of the header (Q3, Q6). The clusters of the old ones have no references left, so they are
 * free in the new ones.
 */
#include "check.h"
#include "refcount-bits.h"
#include "util/error.h"

#include <errno.h>
#include <inttypes.h>

/* Where the new structures will lie. */
typedef struct Layout {
    int64_t table_cluster;
    int64_t table_clusters;
    int64_t first_block; /* cluster of the first block; blocks follow one another */
    int64_t n_blocks;
    GArray *blocks; /* int64_t: which table entry each of the blocks is for, ascending */
} Layout;

static void layout_add(Layout *layout, int64_t index)
{
    if (layout->blocks->len == 0 ||
        g_array_index(layout->blocks, int64_t, layout->blocks->len - 1) < index) {
        g_array_append_val(layout->blocks, index);
    }
}

/* The blocks that are needed when the structures take the clusters up to `end`. */
static void find_blocks(Qcow2Check *check, Layout *layout, int64_t end)
{
    unsigned bits = check->q->refblock_bits;
    int64_t cluster = ref_counts_next(check->counts, 0);

    g_array_set_size(layout->blocks, 0);
    while (cluster >= 0) {
        int64_t index = cluster >> bits;

        layout_add(layout, index);
        cluster = ref_counts_next(check->counts, (index + 1) << bits);
    }
    for (int64_t index = layout->table_cluster >> bits; index <= (end - 1) >> bits; index++) {
        layout_add(layout, index);
    }
}

/* More blocks may need more blocks to count them: repeat until the plan counts itself. */
static bool plan(Qcow2Check *check, Layout *layout)
{
    const Qcow2 *q = check->q;
    int64_t end;

    layout->table_cluster = check->file_clusters;
    layout->table_clusters = 1;
    layout->n_blocks = 1;
    for (;;) {
        int64_t entries, table_clusters;

        end = layout->table_cluster + layout->table_clusters + layout->n_blocks;
        find_blocks(check, layout, end);
        entries = g_array_index(layout->blocks, int64_t, layout->blocks->len - 1) + 1;
        table_clusters = size_to_clusters(q, entries * 8);
        if (table_clusters << q->header.cluster_bits > QCOW2_MAX_REFTABLE_BYTES) {
            return false;
        }
        if (table_clusters <= layout->table_clusters && layout->blocks->len <= layout->n_blocks) {
            break;
        }
        layout->table_clusters = MAX(table_clusters, layout->table_clusters);
        layout->n_blocks = MAX((int64_t)layout->blocks->len, layout->n_blocks);
    }
    layout->n_blocks = layout->blocks->len;
    layout->first_block = layout->table_cluster + layout->table_clusters;
    return true;
}

static int coroutine_fn write_block(Qcow2Check *check, const Layout *layout, int64_t i,
                                    uint8_t *data)
{
    Qcow2 *q = check->q;
    int64_t first = g_array_index(layout->blocks, int64_t, i) << q->refblock_bits;
    int64_t end = first + (INT64_C(1) << q->refblock_bits);
    int64_t cluster = ref_counts_next(check->counts, first);

    memset(data, 0, q->cluster_size);
    for (; cluster >= 0 && cluster < end; cluster = ref_counts_next(check->counts, cluster + 1)) {
        uint64_t references = ref_counts_get(check->counts, cluster);

        refcount_bits_set(data, cluster - first, q->header.refcount_order,
                          MIN(references, q->refcount_max));
    }
    return child_co_pwrite(q->node->file, (layout->first_block + i) << q->header.cluster_bits,
                           q->cluster_size, data, 0);
}

static int coroutine_fn write_structures(Qcow2Check *check, const Layout *layout)
{
    Qcow2 *q = check->q;
    int64_t table_bytes = layout->table_clusters << q->header.cluster_bits;
    g_autofree uint64_t *table = g_try_malloc0(table_bytes);
    g_autofree uint8_t *data = g_try_malloc(q->cluster_size);
    int ret = 0;

    if (!table || !data) {
        return -ENOMEM;
    }
    for (int64_t i = 0; i < layout->n_blocks && ret == 0; i++) {
        int64_t host = (layout->first_block + i) << q->header.cluster_bits;

        table[g_array_index(layout->blocks, int64_t, i)] = GUINT64_TO_BE((uint64_t)host);
        ret = write_block(check, layout, i, data);
    }
    if (ret == 0) {
        ret = child_co_pwrite(q->node->file, layout->table_cluster << q->header.cluster_bits,
                              table_bytes, table, 0);
    }
    return ret;
}

static int coroutine_fn switch_to(Qcow2Check *check, const Layout *layout)
{
    Qcow2 *q = check->q;
    int64_t old_offset = q->header.reftable_offset;
    uint32_t old_clusters = q->header.reftable_clusters;
    g_autoptr(GError) error = NULL;
    int ret;

    q->header.reftable_offset = layout->table_cluster << q->header.cluster_bits;
    q->header.reftable_clusters = (uint32_t)layout->table_clusters;
    ret = qcow2_header_commit(q, &error);
    if (ret < 0) {
        q->header.reftable_offset = old_offset;
        q->header.reftable_clusters = old_clusters;
        check_say(check, "ERROR: %s", error->message);
    }
    return ret;
}

int coroutine_fn repair_rebuild_refcounts(Qcow2Check *check)
{
    Layout layout = { .blocks = g_array_new(FALSE, FALSE, sizeof(int64_t)) };
    int ret = -EFBIG;

    if (plan(check, &layout)) {
        for (int64_t i = layout.table_cluster; i < layout.first_block + layout.n_blocks; i++) {
            ref_counts_add(check->counts, i, 1);
        }
        ret = write_structures(check, &layout);
    }
    if (ret == 0) {
        ret = switch_to(check, &layout);
    }
    g_array_free(layout.blocks, TRUE);
    return ret;
}
