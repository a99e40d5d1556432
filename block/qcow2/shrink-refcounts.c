/* SPDX-License-Identifier: MIT */
/*
 * Refcount blocks that count nothing any more are given back when the disk shrinks, and a refcount
 * table that is longer than it needs to be moves: else they would stay where they were put, behind
 * clusters that are gone, and keep the file from becoming shorter.
 *
 * A block goes in two steps, each durable: its entry in the refcount table is cleared, then its
 * cluster is freed (Q4). Most blocks count themselves; the count goes with the block. A block that
 * counts only another one, which goes, is for the next round. What fails leaves a block where it
 * is.
 */
#include "requests.h"

#include <errno.h>

#define ROUNDS_MAX      16
#define TABLE_MOVES_MAX 4

typedef struct Block {
    uint32_t index; /* in the refcount table */
    int64_t host;
} Block;

/* Whether no cluster of the range has references. Under `lock`. */
static bool coroutine_fn all_free(Qcow2 *q, int64_t first, int64_t n)
{
    int64_t found, free;

    return n == 0 ||
           (qcow2_find_free(q, first, n, &found, &free) == 0 && found == first && free == n);
}

static bool counts_itself(const Qcow2 *q, const Block *block)
{
    return block->host >> q->header.cluster_bits >> q->refblock_bits == block->index;
}

/* Whether it counts nothing but perhaps itself. */
static bool coroutine_fn is_idle(Qcow2 *q, const Block *block)
{
    int64_t first = (int64_t)block->index << q->refblock_bits;
    int64_t n = qcow2_refblock_clusters(q);
    int64_t own = (block->host >> q->header.cluster_bits) - first;

    if (!counts_itself(q, block)) {
        return all_free(q, first, n);
    }
    return all_free(q, first, own) && all_free(q, first + own + 1, n - own - 1);
}

static GArray *coroutine_fn find_idle(Qcow2 *q)
{
    GArray *idle = g_array_new(FALSE, FALSE, sizeof(Block));

    for (uint32_t i = 0; i < q->reftable.entries; i++) {
        uint64_t entry = qcow2_table_get(q, &q->reftable, i);
        Block block = { i, (int64_t)(entry & QCOW2_REFTABLE_OFFSET_MASK) };

        if (block.host && is_idle(q, &block)) {
            g_array_append_val(idle, block);
        }
    }
    return idle;
}

/* Clear the entries, or bring them back. */
static void set_entries(Qcow2 *q, const GArray *blocks, bool there)
{
    g_mutex_lock(&q->table_lock);
    for (guint i = 0; i < blocks->len; i++) {
        const Block *block = &g_array_index(blocks, Block, i);

        qcow2_table_set(&q->reftable, block->index, there ? (uint64_t)block->host : 0);
    }
    g_mutex_unlock(&q->table_lock);
}

/* The file does not refer to them any more. */
static void let_go(Qcow2 *q, const GArray *blocks)
{
    for (guint i = 0; i < blocks->len; i++) {
        const Block *block = &g_array_index(blocks, Block, i);

        g_mutex_lock(&q->table_lock);
        qcow2_cache_drop(q->refcount_cache, block->host, q->cluster_size);
        g_mutex_unlock(&q->table_lock);
        if (!counts_itself(q, block)) {
            qcow2_free(q, block->host, q->cluster_size, QCOW2_DISCARD_ALWAYS);
        }
        q->free_hint = MIN(q->free_hint, block->host >> q->header.cluster_bits);
    }
}

/* Everything is written back, and what is dirty would be lost. Whether another round may help. */
static bool coroutine_fn drop_round(Qcow2 *q)
{
    g_autoptr(GArray) blocks = NULL;
    bool some;
    int ret;

    co_mutex_lock(&q->lock);
    blocks = find_idle(q);
    some = blocks->len > 0;
    set_entries(q, blocks, false);
    co_mutex_unlock(&q->lock);
    if (!some) {
        return false;
    }
    ret = qcow2_write_all(q);
    co_mutex_lock(&q->lock);
    if (ret < 0) {
        set_entries(q, blocks, true);
    } else {
        let_go(q, blocks);
    }
    co_mutex_unlock(&q->lock);
    return ret == 0 && qcow2_write_all(q) == 0;
}

static void coroutine_fn drop_blocks(Qcow2 *q)
{
    bool more = qcow2_write_all(q) == 0;

    for (int round = 0; more && round < ROUNDS_MAX; round++) {
        more = drop_round(q);
    }
}

static uint32_t entries_in_use(Qcow2 *q)
{
    uint32_t n = q->reftable.entries;

    while (n > 0 && qcow2_table_get(q, &q->reftable, n - 1) == 0) {
        n--;
    }
    return n;
}

/* The table takes the first clusters that are free, which are before most of what is left. Whether
 * it moved. */
static bool coroutine_fn shrink_table(Qcow2 *q)
{
    uint32_t entries;
    int ret = -EAGAIN;

    co_mutex_lock(&q->lock);
    entries = qcow2_reftable_room(q, entries_in_use(q));
    if (entries < q->reftable.entries) {
        ret = qcow2_move_reftable(q, entries);
    }
    co_mutex_unlock(&q->lock);
    return ret == 0 && qcow2_write_all(q) == 0;
}

/* What counts the table's old place may be idle when it has moved, and then the table is shorter
 * still. */
void coroutine_fn qcow2_shrink_refcounts(Qcow2 *q)
{
    drop_blocks(q);
    for (int i = 0; i < TABLE_MOVES_MAX && shrink_table(q); i++) {
        drop_blocks(q);
    }
    qcow2_overlap_refresh(q);
}
