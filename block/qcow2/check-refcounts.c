/* SPDX-License-Identifier: MIT */
/*
 * The refcounts in the file beside the references that were counted.
 *
 * A refcount that is too high is a leak, one that is too low an error; either is mended in its
 * block. Where there is no sound block for a cluster that is referred to, and where the refcount
 * structures themselves do not hold, everything is left to a rebuild (repair.c).
 */
#include "check.h"
#include "refcount-bits.h"

#include <errno.h>
#include <inttypes.h>

/* The refcount block that is being looked at. */
typedef struct BlockWalk {
    Qcow2Check *check;
    int64_t index; /* in the refcount table */
    int64_t host;  /* 0: there is no block */
    uint8_t *data;
    bool changed;
} BlockWalk;

static int64_t block_clusters(const Qcow2 *q)
{
    return INT64_C(1) << q->refblock_bits;
}

/* Where the table says the block lies; 0 when that cannot be. */
static int64_t sound_block(const Qcow2Check *check, int64_t index)
{
    const Qcow2 *q = check->q;
    int64_t host;

    if (index >= q->reftable.entries) {
        return 0;
    }
    host = (int64_t)(q->reftable.entry[index] & QCOW2_REFTABLE_OFFSET_MASK);
    if (host < 0 || cluster_offset(q, host) ||
        host >> q->header.cluster_bits >= check->file_clusters) {
        return 0;
    }
    return host;
}

int coroutine_fn check_read_refcount(Qcow2Check *check, int64_t cluster, uint64_t *ret)
{
    Qcow2 *q = check->q;
    int64_t host = sound_block(check, cluster >> q->refblock_bits);
    int r = 0;

    *ret = 0;
    if (host == 0) {
        return 0;
    }
    if (host != check->block_host) {
        if (!check->block) {
            check->block = g_malloc(q->cluster_size);
        }
        r = qcow2_meta_read(q, host, check->block, q->cluster_size);
        check->block_host = r == 0 ? host : 0;
    }
    if (r == 0) {
        *ret = refcount_bits_get(check->block, cluster & (block_clusters(q) - 1),
                                 q->header.refcount_order);
    }
    return r;
}

/* --- the structures themselves --- */

static void count_block(Qcow2Check *check, int64_t index)
{
    const Qcow2 *q = check->q;
    uint64_t entry = q->reftable.entry[index];
    int64_t host = (int64_t)(entry & QCOW2_REFTABLE_OFFSET_MASK);
    int64_t cluster = host >> q->header.cluster_bits;

    if (entry & ~QCOW2_REFTABLE_OFFSET_MASK) {
        check_corruption(check, "ERROR refcount table entry %" PRId64 " has reserved bits set",
                         index);
    }
    if (host == 0) {
        return;
    }
    if (host < 0 || cluster_offset(q, host)) {
        check_corruption(check,
                         "ERROR refcount block %" PRId64
                         " is not cluster aligned; refcount table entry "
                         "corrupted",
                         index);
    } else if (cluster >= check->file_clusters) {
        check_corruption(check, "ERROR refcount block %" PRId64 " is outside image", index);
    } else {
        check_count_range(check, host, q->cluster_size);
        if (ref_counts_get(check->counts, cluster) != 1) {
            check_corruption(check, "ERROR refcount block %" PRId64 " refcount=%" PRIu32, index,
                             ref_counts_get(check->counts, cluster));
        }
    }
}

int coroutine_fn check_count_refcount_structures(Qcow2Check *check)
{
    const Qcow2 *q = check->q;
    int64_t before;

    check_count_range(check, q->header.reftable_offset,
                      (int64_t)q->header.reftable_clusters << q->header.cluster_bits);
    before = check->result->corruptions;
    for (int64_t i = 0; i < q->reftable.entries; i++) {
        count_block(check, i);
    }
    check->rebuild = check->rebuild || check->result->corruptions > before;
    return 0;
}

/* --- comparing --- */

static void compare_cluster(BlockWalk *walk, int64_t cluster)
{
    Qcow2Check *check = walk->check;
    const Qcow2 *q = check->q;
    int64_t index = cluster & (block_clusters(q) - 1);
    uint64_t references = ref_counts_get(check->counts, cluster);
    uint64_t refcount =
        walk->host ? refcount_bits_get(walk->data, index, q->header.refcount_order) : 0;
    bool leak = refcount > references;
    g_autofree char *text = NULL;
    bool mend;

    if (refcount == references) {
        return;
    }
    mend = (check->fix & (leak ? CHECK_FIX_LEAKS : CHECK_FIX_ERRORS)) && !(leak && check->hidden) &&
           !check->rebuild && walk->host && references <= q->refcount_max;
    text = g_strdup_printf("cluster %" PRId64 " refcount=%" PRIu64 " reference=%" PRIu64, cluster,
                           refcount, references);
    if (mend) {
        check_say_mended(check, "Repairing %s", text);
        refcount_bits_set(walk->data, index, q->header.refcount_order, references);
        walk->changed = true;
        *(leak ? &check->result->leaks_fixed : &check->result->corruptions_fixed) += 1;
        return;
    }
    if (leak && cluster < check->file_clusters) {
        check->leaked_end = MAX(check->leaked_end, cluster + 1);
    }
    check_say(check, "%s %s", leak ? "Leaked" : "ERROR", text);
    *(leak ? &check->result->leaks : &check->result->corruptions) += 1;
    if (!leak && !walk->host) {
        check->rebuild = true;
    }
}

static int coroutine_fn load_block(BlockWalk *walk, int64_t index)
{
    Qcow2 *q = walk->check->q;
    int ret;

    walk->index = index;
    walk->host = sound_block(walk->check, index);
    if (walk->host == 0) {
        return 0;
    }
    ret = qcow2_meta_read(q, walk->host, walk->data, q->cluster_size);
    if (ret < 0) {
        check_say(walk->check, "ERROR: refcount block %" PRId64 " could not be read", index);
        walk->check->result->check_errors++;
        walk->host = 0;
    }
    return 0;
}

static int coroutine_fn store_block(BlockWalk *walk)
{
    Qcow2 *q = walk->check->q;

    if (!walk->changed) {
        return 0;
    }
    walk->changed = false;
    return child_co_pwrite(q->node->file, walk->host, q->cluster_size, walk->data, 0);
}

/* Everything that one block stands for; where there is none, what is referred to there. */
static int coroutine_fn compare_block(BlockWalk *walk, int64_t index)
{
    Qcow2Check *check = walk->check;
    int64_t first = index << check->q->refblock_bits;
    int64_t end = first + block_clusters(check->q);
    int ret = load_block(walk, index);

    if (ret < 0) {
        return ret;
    }
    if (walk->host) {
        for (int64_t cluster = first; cluster < end; cluster++) {
            compare_cluster(walk, cluster);
        }
        return store_block(walk);
    }
    for (int64_t cluster = ref_counts_next(check->counts, first); cluster >= 0 && cluster < end;
         cluster = ref_counts_next(check->counts, cluster + 1)) {
        compare_cluster(walk, cluster);
    }
    return 0;
}

/* The next block to look at: one that the table has, or that would count something referred to. */
static int64_t next_block(const Qcow2Check *check, int64_t index)
{
    const Qcow2 *q = check->q;
    int64_t referred = ref_counts_next(check->counts, index << q->refblock_bits);

    referred = referred < 0 ? INT64_MAX : referred >> q->refblock_bits;
    for (; index < MIN(referred, (int64_t)q->reftable.entries); index++) {
        if (q->reftable.entry[index]) {
            return index;
        }
    }
    return referred;
}

static int coroutine_fn compare_all(Qcow2Check *check)
{
    g_autofree uint8_t *data = g_try_malloc(check->q->cluster_size);
    BlockWalk walk = { .check = check, .data = data };
    int ret = 0;

    if (!data) {
        return -ENOMEM;
    }
    check->leaked_end = 0;
    for (int64_t index = next_block(check, 0); index < INT64_MAX && ret == 0;
         index = next_block(check, index + 1)) {
        ret = compare_block(&walk, index);
    }
    return ret;
}

/* What is mended is told twice: as it was found, and that it is mended. */
int coroutine_fn check_compare_refcounts(Qcow2Check *check)
{
    BlockCheckResult before = *check->result, *result = check->result;
    unsigned fix = check->fix;
    int ret;

    check->fix = 0;
    ret = compare_all(check);
    check->fix = fix;
    if (ret < 0 || !fix || check->rebuild ||
        (result->leaks == before.leaks && result->corruptions == before.corruptions)) {
        return ret;
    }
    *result = before;
    return compare_all(check);
}
