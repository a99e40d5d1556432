/* SPDX-License-Identifier: MIT */
/*
 * Another width of refcounts: a new table and new blocks are written behind everything else, then
 * the header names them in one write, then the old ones are freed.
 *
 * The new blocks count the old table and blocks as well, so a crash after the header's write leaks
 * those, and one before it leaks nothing that anybody counts.
 */
#include "amend.h"
#include "options.h"
#include "refcount-bits.h"
#include "runtime.h"
#include "util/error.h"
#include "util/size.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* The new structure. */
typedef struct Rebuild {
    Qcow2 *q;
    const BlockAmendOptions *options;
    unsigned order;
    int64_t per_block; /* clusters that one block counts */
    int64_t first;     /* cluster of the new table, which its blocks follow */
    int64_t n_table;   /* clusters */
    GArray *blocks;    /* of int64_t: which blocks there are, by what they count */
} Rebuild;

static bool is_new(const Rebuild *rebuild, int64_t cluster)
{
    return cluster >= rebuild->first &&
           cluster < rebuild->first + rebuild->n_table + rebuild->blocks->len;
}

/* --- what is to be counted --- */

static int64_t clusters_counted(const Qcow2 *q)
{
    return (int64_t)q->reftable.entries << q->refblock_bits;
}

static int check_width(const Rebuild *rebuild, int64_t cluster, uint64_t refcount, GError **error)
{
    unsigned bits = 1u << rebuild->order;

    if (bits == 64 || refcount < UINT64_C(1) << bits) {
        return 0;
    }
    merino_error(error,
                 "Cannot decrease refcount entry width to %u bits: Cluster at offset %#" PRIx64
                 " has a refcount of %" PRIu64,
                 bits, cluster << rebuild->q->header.cluster_bits, refcount);
    return -EINVAL;
}

static void add_block(Rebuild *rebuild, int64_t block)
{
    guint n = rebuild->blocks->len;

    if (n == 0 || g_array_index(rebuild->blocks, int64_t, n - 1) < block) {
        g_array_append_val(rebuild->blocks, block);
    }
}

static int coroutine_fn refcount_of(Qcow2 *q, int64_t cluster, uint64_t *ret_refcount)
{
    *ret_refcount = 0;
    if (cluster >= clusters_counted(q) || !qcow2_refblock_exists(q, cluster)) {
        return 0;
    }
    return qcow2_refcount_get(q, cluster, ret_refcount);
}

/* Which blocks are needed for what is counted now, and where that ends. */
static int coroutine_fn survey(Rebuild *rebuild, GError **error)
{
    Qcow2 *q = rebuild->q;
    int64_t end = 0;

    for (int64_t i = 0; i < clusters_counted(q);) {
        uint64_t refcount;
        int ret;

        if (!qcow2_refblock_exists(q, i)) {
            i = align_down(i, qcow2_refblock_clusters(q)) + qcow2_refblock_clusters(q);
            continue;
        }
        ret = qcow2_refcount_get(q, i, &refcount);
        if (ret < 0) {
            merino_error_errno(error, -ret, "Could not read the refcounts of the image");
            return ret;
        }
        ret = check_width(rebuild, i, refcount, error);
        if (ret < 0) {
            return ret;
        }
        if (refcount) {
            add_block(rebuild, i / rebuild->per_block);
            end = i + 1;
        }
        i++;
    }
    rebuild->first = MAX(end, size_to_clusters(q, node_size(q->node->file->node)));
    return 0;
}

/* The new clusters count one another. */
static void lay_out(Rebuild *rebuild)
{
    Qcow2 *q = rebuild->q;
    int64_t table_entries = q->cluster_size / 8;
    int64_t n_table;
    guint n;

    rebuild->n_table = 0;
    do {
        int64_t last;

        n = rebuild->blocks->len;
        n_table = rebuild->n_table;
        last = rebuild->first + rebuild->n_table + n;
        for (int64_t block = rebuild->first / rebuild->per_block;
             block <= last / rebuild->per_block; block++) {
            add_block(rebuild, block);
        }
        rebuild->n_table =
            g_array_index(rebuild->blocks, int64_t, rebuild->blocks->len - 1) / table_entries + 1;
    } while (rebuild->blocks->len != n || rebuild->n_table != n_table);
}

/* --- writing --- */

static int coroutine_fn write_block(const Rebuild *rebuild, guint index, uint8_t *buf)
{
    Qcow2 *q = rebuild->q;
    int64_t begin = g_array_index(rebuild->blocks, int64_t, index) * rebuild->per_block;
    int64_t host = (rebuild->first + rebuild->n_table + index) << q->header.cluster_bits;

    memset(buf, 0, (size_t)q->cluster_size);
    for (int64_t i = 0; i < rebuild->per_block; i++) {
        uint64_t refcount;
        int ret = refcount_of(q, begin + i, &refcount);

        if (ret < 0) {
            return ret;
        }
        if (is_new(rebuild, begin + i)) {
            refcount = 1;
        }
        if (refcount) {
            refcount_bits_set(buf, i, rebuild->order, refcount);
        }
    }
    return qcow2_meta_write(q, host, buf, q->cluster_size, 0);
}

static int coroutine_fn write_table(const Rebuild *rebuild)
{
    Qcow2 *q = rebuild->q;
    int64_t bytes = rebuild->n_table << q->header.cluster_bits;
    g_autofree uint64_t *table = g_malloc0((size_t)bytes);

    for (guint i = 0; i < rebuild->blocks->len; i++) {
        int64_t host = (rebuild->first + rebuild->n_table + i) << q->header.cluster_bits;

        table[g_array_index(rebuild->blocks, int64_t, i)] = GUINT64_TO_BE((uint64_t)host);
    }
    return qcow2_meta_write(q, rebuild->first << q->header.cluster_bits, table, bytes, 0);
}

static int coroutine_fn write_all(const Rebuild *rebuild, GError **error)
{
    Qcow2 *q = rebuild->q;
    g_autofree uint8_t *buf = g_malloc((size_t)q->cluster_size);
    int ret = 0;

    for (guint i = 0; i < rebuild->blocks->len && ret == 0; i++) {
        ret = write_block(rebuild, i, buf);
        if (rebuild->options->progress) {
            rebuild->options->progress(i, rebuild->blocks->len, rebuild->options->progress_opaque);
        }
    }
    ret = ret ? ret : write_table(rebuild);
    if (ret < 0) {
        merino_error_errno(error, -ret, "Could not write the new refcounts of the image");
    }
    return ret;
}

/* --- switching --- */

/* The old structure, to be freed: runs of clusters. */
static GArray *old_clusters(Qcow2 *q)
{
    GArray *old = g_array_new(FALSE, FALSE, sizeof(int64_t));

    for (int64_t i = 0; i < q->header.reftable_clusters; i++) {
        int64_t host = q->header.reftable_offset + i * q->cluster_size;

        g_array_append_val(old, host);
    }
    for (uint32_t i = 0; i < q->reftable.entries; i++) {
        int64_t host = (int64_t)(qcow2_table_get(q, &q->reftable, i) & QCOW2_REFTABLE_OFFSET_MASK);

        if (host) {
            g_array_append_val(old, host);
        }
    }
    return old;
}

static int coroutine_fn switch_header(const Rebuild *rebuild, GError **error)
{
    Qcow2Header *header = &rebuild->q->header;
    int64_t offset = header->reftable_offset;
    uint32_t clusters = header->reftable_clusters;
    unsigned order = header->refcount_order;
    int ret;

    header->reftable_offset = rebuild->first << header->cluster_bits;
    header->reftable_clusters = (uint32_t)rebuild->n_table;
    header->refcount_order = rebuild->order;
    ret = qcow2_header_commit(rebuild->q, error);
    if (ret < 0) {
        header->reftable_offset = offset;
        header->reftable_clusters = clusters;
        header->refcount_order = order;
    }
    return ret;
}

/* The tables in memory are those of the new header; what was the old structure is free. */
static int coroutine_fn go_over(Qcow2 *q, GArray *old, GError **error)
{
    int ret;

    qcow2_set_geometry(q);
    if (!qcow2_tables_reload(q, error)) {
        return -EIO;
    }
    qcow2_overlap_refresh(q);
    co_mutex_lock(&q->lock);
    for (guint i = 0; i < old->len; i++) {
        qcow2_free(q, g_array_index(old, int64_t, i), q->cluster_size, QCOW2_DISCARD_OTHER);
    }
    co_mutex_unlock(&q->lock);
    ret = qcow2_mark_clean(q);
    if (ret < 0) {
        merino_error_errno(error, -ret, "Could not free the old refcounts of the image");
    }
    return ret;
}

int coroutine_fn qcow2_amend_refcounts(Qcow2 *q, unsigned order, const BlockAmendOptions *options,
                                       GError **error)
{
    Rebuild rebuild = {
        .q = q,
        .options = options,
        .order = order,
        .per_block = INT64_C(1) << (q->header.cluster_bits + 3 - order),
        .blocks = g_array_new(FALSE, FALSE, sizeof(int64_t)),
    };
    g_autoptr(GArray) old = NULL;
    int ret = qcow2_mark_clean(q);

    if (ret < 0) {
        merino_error_errno(error, -ret, "Could not write the tables of the image");
    }
    co_mutex_lock(&q->lock);
    ret = ret ? ret : survey(&rebuild, error);
    if (ret == 0) {
        lay_out(&rebuild);
        if (rebuild.n_table << q->header.cluster_bits > QCOW2_MAX_REFTABLE_BYTES) {
            merino_error(error, "The refcount table would become too large");
            ret = -EFBIG;
        }
    }
    ret = ret ? ret : write_all(&rebuild, error);
    old = old_clusters(q);
    ret = ret ? ret : switch_header(&rebuild, error);
    co_mutex_unlock(&q->lock);
    g_array_unref(rebuild.blocks);
    return ret ? ret : go_over(q, old, error);
}
