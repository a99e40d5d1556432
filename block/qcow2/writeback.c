/* SPDX-License-Identifier: MIT */
/*
 * Writeback: from changed tables in memory to the file, in the order of docs/devel/qcow2.md.
 *
 * A run copies what is dirty aside under `lock` and writes the copies without it. Slices that are
 * being written are held, so that nobody reads older bytes from the file meanwhile. One run at a
 * time. A caller that comes while one is at work needs the next one, as do all others that wait
 * then: they share it.
 */
#include "runtime.h"

#include <errno.h>
#include <string.h>

/* The header's fields of the refcount table: offset, then clusters. */
#define HEADER_REFTABLE_AT    48
#define HEADER_REFTABLE_BYTES 12

struct Qcow2Writer {
    GMutex lock; /* guards all of it */
    CoQueue waiters;
    bool running;
    uint64_t started;  /* number of the last run that began */
    uint64_t finished; /* ... that ended */
    uint64_t failed;   /* ... that failed */
    int error;         /* with this */
};

Qcow2Writer *qcow2_writer_new(void)
{
    Qcow2Writer *writer = g_new0(Qcow2Writer, 1);

    g_mutex_init(&writer->lock);
    co_queue_init(&writer->waiters);
    return writer;
}

void qcow2_writer_free(Qcow2Writer *writer)
{
    if (writer) {
        g_mutex_clear(&writer->lock);
        g_free(writer);
    }
}

/* --- what is to be written --- */

typedef struct Item {
    int64_t offset; /* in the file */
    uint8_t *data;  /* in the stage's buffer */
    uint32_t bytes;
    uint32_t at;       /* in the slice or the table, bytes */
    Qcow2Slice *slice; /* NULL: of a table */
} Item;

/* What one step writes: changed parts of one kind of table. */
typedef struct Stage {
    Qcow2Cache *cache; /* of slices; or NULL */
    Qcow2Table *table; /* or NULL */
    unsigned kind;     /* QCOW2_OVERLAP_* */
    BlkdebugEvent event;
    GArray *items; /* of Item */
    uint8_t *buffer;
    bool done; /* reached the file */
} Stage;

typedef struct Run {
    Stage refcounts, reftable, l2, l1;
    bool reftable_moved;
    int64_t reftable_offset;
    uint32_t reftable_entries;
} Run;

/* Whole blocks as the file wants them, inside of the slice. */
static void dirty_range(const Qcow2 *q, const Qcow2Slice *slice, int64_t slice_bytes,
                        uint32_t *ret_at, uint32_t *ret_bytes)
{
    int64_t block = CLAMP(q->node->file->node->limits.request_alignment, TABLE_PIECE, slice_bytes);

    *ret_at = (uint32_t)(slice->dirty_begin & ~(block - 1));
    *ret_bytes = (uint32_t)((slice->dirty_end + block - 1) & ~(block - 1)) - *ret_at;
}

static int take_buffer(Qcow2 *q, Stage *stage, size_t bytes)
{
    stage->buffer = bytes ? node_try_buffer(q->node->file->node, bytes) : NULL;
    return bytes && !stage->buffer ? -ENOMEM : 0;
}

/* All of these under lock and table_lock. */
static int collect_slices(Qcow2 *q, Stage *stage)
{
    GPtrArray *dirty = qcow2_cache_dirty(stage->cache);
    int64_t slice_bytes = qcow2_cache_slice_bytes(stage->cache);
    size_t used = 0;

    if (take_buffer(q, stage, (size_t)(dirty->len * slice_bytes)) < 0) {
        return -ENOMEM;
    }
    for (guint i = 0; i < dirty->len; i++) {
        Qcow2Slice *slice = g_ptr_array_index(dirty, i);
        Item item = { .slice = slice, .data = stage->buffer + used };

        dirty_range(q, slice, slice_bytes, &item.at, &item.bytes);
        item.offset = slice->offset + item.at;
        memcpy(item.data, slice->data + item.at, item.bytes);
        used += item.bytes;
        qcow2_slice_hold(slice);
        g_array_append_val(stage->items, item);
    }
    qcow2_cache_set_clean(stage->cache);
    return 0;
}

static void copy_piece(const Qcow2Table *table, uint32_t piece, uint8_t *to, uint32_t bytes)
{
    for (uint32_t i = 0; i < bytes / 8; i++) {
        uint64_t value = GUINT64_TO_BE(table->entry[piece * TABLE_PIECE_ENTRIES + i]);

        memcpy(to + (size_t)i * 8, &value, 8);
    }
}

static int collect_table(Qcow2 *q, Stage *stage)
{
    Qcow2Table *table = stage->table;
    uint32_t pieces = (table->entries + TABLE_PIECE_ENTRIES - 1) / TABLE_PIECE_ENTRIES;
    size_t used = 0;

    if (!table->any_dirty) {
        return 0;
    }
    if (take_buffer(q, stage, (size_t)pieces * TABLE_PIECE) < 0) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < pieces; i++) {
        uint32_t at = i * TABLE_PIECE;
        uint32_t bytes = MIN(TABLE_PIECE, table->entries * 8 - at);
        Item item = { table->offset + at, stage->buffer + used, bytes, at, NULL };

        if (table->dirty[i] || table->moved) {
            copy_piece(table, i, item.data, bytes);
            table->dirty[i] = 0;
            used += bytes;
            g_array_append_val(stage->items, item);
        }
    }
    table->any_dirty = false;
    return 0;
}

static void make_dirty_again(Stage *stage)
{
    if (stage->done) {
        return;
    }
    for (guint i = 0; i < stage->items->len; i++) {
        Item *item = &g_array_index(stage->items, Item, i);

        if (item->slice) {
            qcow2_slice_set_dirty(stage->cache, item->slice, item->at, item->at + item->bytes);
        } else {
            stage->table->dirty[item->at / TABLE_PIECE] = 1;
            stage->table->any_dirty = true;
        }
    }
}

static void release_slices(Stage *stage)
{
    for (guint i = 0; i < stage->items->len; i++) {
        Item *item = &g_array_index(stage->items, Item, i);

        if (item->slice) {
            qcow2_slice_release(item->slice);
        }
    }
}

/* --- writing --- */

static gint compare_items(gconstpointer a, gconstpointer b)
{
    const Item *x = a, *y = b;

    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Items that lie side by side in the file go in one write. */
static int coroutine_fn write_neighbours(Qcow2 *q, const Stage *stage, guint first, guint *ret_end)
{
    const Item *item = &g_array_index(stage->items, Item, first);
    int64_t offset = item->offset;
    IoVector vec;
    int ret;

    iov_init(&vec);
    do {
        iov_add(&vec, item->data, item->bytes);
        first++;
        item = &g_array_index(stage->items, Item, first);
    } while (first < stage->items->len && item->offset == offset + (int64_t)vec.size &&
             vec.n < 512);
    *ret_end = first;
    ret = qcow2_check_overlap(q, stage->kind, offset, (int64_t)vec.size);
    if (ret == 0) {
        qcow2_event(q, stage->event);
        ret = child_co_pwritev(q->node->file, offset, (int64_t)vec.size, &vec, 0);
    }
    iov_done(&vec);
    return ret;
}

static int coroutine_fn write_stage(Qcow2 *q, Stage *stage)
{
    int ret = 0;

    g_array_sort(stage->items, compare_items);
    for (guint i = 0; i < stage->items->len && ret == 0;) {
        ret = write_neighbours(q, stage, i, &i);
    }
    return ret;
}

static int coroutine_fn sync_all(Qcow2 *q)
{
    int ret = 0;

    if (q->data_file != q->node->file && !q->node->cache_no_flush) {
        ret = child_co_flush(q->data_file);
    }
    return ret ? ret : qcow2_sync(q);
}

/* The header's reference to the refcount table, after the table itself is durable. Under `lock`, as
 * every write of the header beside requests. */
static int coroutine_fn write_reftable_place(Qcow2 *q, const Run *run)
{
    uint64_t offset = GUINT64_TO_BE((uint64_t)run->reftable_offset);
    uint32_t clusters = (uint32_t)size_to_clusters(q, (int64_t)run->reftable_entries * 8);
    uint32_t clusters_be = GUINT32_TO_BE(clusters);
    uint8_t bytes[HEADER_REFTABLE_BYTES];
    int ret;

    memcpy(bytes, &offset, 8);
    memcpy(bytes + 8, &clusters_be, 4);
    co_mutex_lock(&q->lock);
    ret = qcow2_meta_write(q, HEADER_REFTABLE_AT, bytes, sizeof(bytes), QCOW2_OVERLAP_HEADER);
    if (ret == 0) {
        ret = qcow2_sync(q);
    }
    if (ret == 0) {
        q->header.reftable_offset = run->reftable_offset;
        q->header.reftable_clusters = clusters;
    }
    co_mutex_unlock(&q->lock);
    return ret;
}

static int coroutine_fn write_refcounts(Qcow2 *q, Run *run)
{
    int ret = write_stage(q, &run->refcounts);

    ret = ret ? ret : sync_all(q);
    if (ret < 0) {
        return ret;
    }
    run->refcounts.done = true;
    if (run->reftable.items->len) {
        ret = write_stage(q, &run->reftable);
        ret = ret ? ret : qcow2_sync(q);
        if (ret == 0 && run->reftable_moved) {
            ret = write_reftable_place(q, run);
        }
        run->reftable.done = ret == 0;
    }
    return ret;
}

static int coroutine_fn write_mappings(Qcow2 *q, Run *run)
{
    int ret = write_stage(q, &run->l2);

    if (ret == 0 && run->l2.items->len + run->l1.items->len == 0) {
        return 0;
    }
    ret = ret ? ret : qcow2_sync(q);
    if (ret < 0) {
        return ret;
    }
    run->l2.done = true;
    if (run->l1.items->len) {
        ret = write_stage(q, &run->l1);
        ret = ret ? ret : qcow2_sync(q);
        run->l1.done = ret == 0;
    }
    return ret;
}

/* --- a run --- */

/* Refcounts stay behind as long as the dirty flag says so; but not when the refcount table has
 * moved: the header must name its new place before the old one is free. Under `lock`. */
static bool is_lazy(const Qcow2 *q)
{
    return q->options.lazy_refcounts && !q->reftable.moved &&
           !qcow2_cache_is_half_dirty(q->refcount_cache);
}

static int collect(Qcow2 *q, Run *run, bool lazy)
{
    int ret = 0;

    g_mutex_lock(&q->table_lock);
    if (!lazy) {
        ret = collect_slices(q, &run->refcounts);
        ret = ret ? ret : collect_table(q, &run->reftable);
        run->reftable_moved = q->reftable.moved;
        run->reftable_offset = q->reftable.offset;
        run->reftable_entries = q->reftable.entries;
    }
    ret = ret ? ret : collect_slices(q, &run->l2);
    ret = ret ? ret : collect_table(q, &run->l1);
    g_mutex_unlock(&q->table_lock);
    qcow2_frees_collect(q);
    return ret;
}

static int coroutine_fn announce_lazy(Qcow2 *q)
{
    bool change;

    if (q->header.incompatible & QCOW2_INCOMPAT_DIRTY) {
        return 0;
    }
    g_mutex_lock(&q->table_lock);
    change = qcow2_cache_dirty(q->refcount_cache)->len > 0;
    g_mutex_unlock(&q->table_lock);
    return change ? qcow2_set_features(q, q->header.incompatible | QCOW2_INCOMPAT_DIRTY,
                                       q->header.autoclear, NULL)
                  : 0;
}

static void coroutine_fn settle(Qcow2 *q, Run *run, int ret)
{
    Stage *stages[] = { &run->refcounts, &run->reftable, &run->l2, &run->l1 };

    co_mutex_lock(&q->lock);
    g_mutex_lock(&q->table_lock);
    for (size_t i = 0; i < G_N_ELEMENTS(stages); i++) {
        if (ret < 0) {
            make_dirty_again(stages[i]);
        }
        release_slices(stages[i]);
    }
    if (run->reftable.done && run->reftable_offset == q->reftable.offset) {
        q->reftable.moved = false;
    }
    g_mutex_unlock(&q->table_lock);
    if (ret < 0) {
        qcow2_frees_restore(q);
    } else {
        qcow2_frees_apply(q);
    }
    co_mutex_unlock(&q->lock);
}

static int coroutine_fn run_once(Qcow2 *q, bool may_be_lazy)
{
    Run run = { .refcounts = { .cache = q->refcount_cache,
                               .kind = QCOW2_OVERLAP_REFCOUNT_BLOCK,
                               .event = BLKDEBUG_EVENT_REFBLOCK_UPDATE },
                .reftable = { .table = &q->reftable,
                              .kind = QCOW2_OVERLAP_REFCOUNT_TABLE,
                              .event = BLKDEBUG_EVENT_REFTABLE_UPDATE },
                .l2 = { .cache = q->l2_cache,
                        .kind = QCOW2_OVERLAP_ACTIVE_L2,
                        .event = BLKDEBUG_EVENT_L2_UPDATE },
                .l1 = { .table = &q->l1,
                        .kind = QCOW2_OVERLAP_ACTIVE_L1,
                        .event = BLKDEBUG_EVENT_L1_UPDATE } };
    Stage *stages[] = { &run.refcounts, &run.reftable, &run.l2, &run.l1 };
    bool lazy;
    int ret;

    for (size_t i = 0; i < G_N_ELEMENTS(stages); i++) {
        stages[i]->items = g_array_new(FALSE, FALSE, sizeof(Item));
    }
    co_mutex_lock(&q->lock);
    lazy = may_be_lazy && is_lazy(q);
    ret = qcow2_header_settle(q);
    ret = ret ? ret : lazy ? announce_lazy(q) : 0;
    if (ret == 0) {
        ret = collect(q, &run, lazy);
    } else {
        qcow2_frees_collect(q);
    }
    co_mutex_unlock(&q->lock);
    ret = ret ? ret : write_refcounts(q, &run);
    ret = ret ? ret : write_mappings(q, &run);
    settle(q, &run, ret);
    for (size_t i = 0; i < G_N_ELEMENTS(stages); i++) {
        g_array_free(stages[i]->items, TRUE);
        buffer_free(stages[i]->buffer);
    }
    return ret;
}

/* --- callers --- */

int coroutine_fn qcow2_writeback(Qcow2 *q)
{
    Qcow2Writer *writer = q->writer;
    uint64_t need;
    int ret = 0;

    if (atomic_load(&q->corrupt)) {
        return -EIO;
    }
    g_mutex_lock(&writer->lock);
    need = writer->started + 1;
    while (writer->finished < need) {
        if (writer->running) {
            co_queue_wait(&writer->waiters, &writer->lock);
            continue;
        }
        writer->running = true;
        writer->started++;
        g_mutex_unlock(&writer->lock);
        ret = run_once(q, true);
        g_mutex_lock(&writer->lock);
        writer->running = false;
        writer->finished = writer->started;
        if (ret < 0) {
            writer->failed = writer->finished;
            writer->error = ret;
        }
        co_queue_wake_all(&writer->waiters);
    }
    ret = writer->failed >= need ? writer->error : 0;
    g_mutex_unlock(&writer->lock);
    return ret;
}

static bool is_running(Qcow2Writer *writer)
{
    bool running;

    g_mutex_lock(&writer->lock);
    running = writer->running;
    g_mutex_unlock(&writer->lock);
    return running;
}

/* A cache that has room for all L2 tables of the disk never needs to throw out any. */
static bool l2_cache_is_enough(const Qcow2 *q)
{
    return q->options.l2_cache_size >= size_to_clusters(q, q->header.size) * q->l2_entry_size;
}

int coroutine_fn qcow2_balance(Qcow2 *q)
{
    bool enough = l2_cache_is_enough(q);
    bool half = (!enough && qcow2_cache_is_half_dirty(q->l2_cache)) ||
                qcow2_cache_is_half_dirty(q->refcount_cache) || qcow2_frees_are_many(q);
    bool all = !enough && qcow2_cache_is_all_dirty(q->l2_cache);

    if (G_LIKELY(!half) || (!all && is_running(q->writer))) {
        return 0;
    }
    return qcow2_writeback(q);
}

int coroutine_fn qcow2_empty_caches(Qcow2 *q)
{
    int ret = qcow2_writeback(q);

    ret = ret ? ret : qcow2_writeback(q); /* what became free by the first */
    if (ret == 0) {
        g_mutex_lock(&q->table_lock);
        qcow2_cache_drop_clean(q->l2_cache);
        qcow2_cache_drop_clean(q->refcount_cache);
        g_mutex_unlock(&q->table_lock);
    }
    return ret;
}

int coroutine_fn qcow2_write_all(Qcow2 *q)
{
    int ret = atomic_load(&q->corrupt) ? -EIO : run_once(q, false);

    return ret == 0 ? run_once(q, false) : ret; /* what became free by the first */
}

int coroutine_fn qcow2_mark_clean(Qcow2 *q)
{
    int ret = qcow2_write_all(q);

    if (atomic_load(&q->corrupt)) {
        return 0; /* nothing is written any more, and everybody was told */
    }
    if (ret == 0 && !q->flags_behind && (q->header.incompatible & QCOW2_INCOMPAT_DIRTY)) {
        ret = qcow2_set_features(q, q->header.incompatible & ~(uint64_t)QCOW2_INCOMPAT_DIRTY,
                                 q->header.autoclear, NULL);
    }
    if (ret == 0) {
        qcow2_cut_ahead(q);
    }
    return ret;
}

int coroutine_fn qcow2_co_flush(BlockNode *node)
{
    return qcow2_writeback(node->state);
}
