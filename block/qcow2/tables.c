/* SPDX-License-Identifier: MIT */
/*
 * The tables that are wholly in memory, L1 and the refcount table, and the life of everything that
 * a running image needs beside its header.
 */
#include "in-flight.h"
#include "runtime.h"
#include "util/error.h"
#include "util/event-loop.h"
#include "util/size.h"

#include <errno.h>
#include <string.h>

/* --- entries --- */

void qcow2_table_set(Qcow2Table *table, uint32_t index, uint64_t value)
{
    table->entry[index] = value;
    table->dirty[index / TABLE_PIECE_ENTRIES] = 1;
    table->any_dirty = true;
}

static size_t pieces(uint32_t entries)
{
    return entries / TABLE_PIECE_ENTRIES + 1;
}

void qcow2_table_grow(Qcow2 *q, Qcow2Table *table, uint32_t entries)
{
    uint32_t old = table->entries;

    g_mutex_lock(&q->table_lock);
    table->entry = g_renew(uint64_t, table->entry, entries);
    table->dirty = g_renew(uint8_t, table->dirty, pieces(entries));
    if (entries > old) {
        memset(table->entry + old, 0, (size_t)(entries - old) * 8);
        memset(table->dirty + pieces(old), 0, pieces(entries) - pieces(old));
    }
    table->entries = entries;
    g_mutex_unlock(&q->table_lock);
}

/* --- reading them --- */

typedef struct ReadTable {
    Qcow2 *q;
    Qcow2Table *table;
    int ret;
} ReadTable;

static void coroutine_fn read_entry(void *opaque)
{
    ReadTable *read = opaque;
    Qcow2Table *table = read->table;

    read->ret = child_co_pread(read->q->node->file, table->offset, (int64_t)table->entries * 8,
                               table->entry);
    for (uint32_t i = 0; i < table->entries && read->ret == 0; i++) {
        table->entry[i] = GUINT64_FROM_BE(table->entry[i]);
    }
}

static bool read_table(Qcow2 *q, Qcow2Table *table, int64_t offset, uint32_t entries,
                       const char *what, GError **error)
{
    ReadTable read = { q, table, 0 };

    *table = (Qcow2Table){ .offset = offset, .entries = entries };
    table->entry = g_try_new0(uint64_t, MAX(entries, 1));
    table->dirty = g_new0(uint8_t, pieces(entries));
    if (!table->entry) {
        merino_error(error, "Could not allocate %s", what);
        return false;
    }
    if (entries) {
        coroutine_run(read_entry, &read);
    }
    if (read.ret < 0) {
        merino_error_errno(error, -read.ret, "Could not read %s", what);
        return false;
    }
    return true;
}

static void table_done(Qcow2Table *table)
{
    g_free(table->entry);
    g_free(table->dirty);
    *table = (Qcow2Table){ 0 };
}

/* --- life --- */

static int64_t refcount_slice_bytes(const Qcow2 *q)
{
    return MIN(q->cluster_size, 65536);
}

static int64_t l2_slice_bytes(const Qcow2 *q)
{
    return CLAMP(q->options.l2_slice_size, 512, q->cluster_size);
}

static void set_ends(Qcow2 *q)
{
    q->meta_end = align_up(node_size(q->node->file->node), q->cluster_size);
    q->data_end = has_data_file(q) ? node_size(q->data_file->node) : 0;
}

/* --- slices that nobody uses --- */

static void arm_clean_timer(Qcow2 *q)
{
    int64_t seconds = MIN(q->options.cache_clean_interval, INT32_MAX);

    event_timer_set(q->clean_timer, event_loop_now_ns() + seconds * 1000000000);
}

static void clean_caches(void *opaque)
{
    Qcow2 *q = opaque;
    int64_t bytes;

    g_mutex_lock(&q->table_lock);
    bytes = qcow2_cache_drop_idle(q->l2_cache);
    bytes += qcow2_cache_drop_idle(q->refcount_cache);
    g_mutex_unlock(&q->table_lock);
    qcow2_cache_give_back(bytes);
    arm_clean_timer(q);
}

static void stop_clean_timer(Qcow2 *q)
{
    if (q->clean_timer) {
        event_timer_cancel(q->clean_timer);
        event_timer_free(g_steal_pointer(&q->clean_timer));
    }
}

static void start_clean_timer(Qcow2 *q)
{
    stop_clean_timer(q);
    if (q->options.cache_clean_interval > 0) {
        q->clean_timer = event_timer_new(event_loop_main(), clean_caches, q);
        arm_clean_timer(q);
    }
}

/* --- all of it --- */

static bool read_tables(Qcow2 *q, Qcow2Table *l1, Qcow2Table *reftable, GError **error)
{
    const Qcow2Header *header = &q->header;
    uint32_t entries = (uint32_t)(((int64_t)header->reftable_clusters << header->cluster_bits) / 8);
    bool ok;

    *reftable = (Qcow2Table){ 0 };
    ok = read_table(q, l1, header->l1_offset, header->l1_entries, "L1 table", error) &&
         read_table(q, reftable, header->reftable_offset, entries, "refcount table", error);
    if (!ok) {
        table_done(l1);
        table_done(reftable);
    }
    return ok;
}

/* Everything but the tables. */
static void begin(Qcow2 *q)
{
    co_mutex_init(&q->lock);
    g_mutex_init(&q->table_lock);
    q->freed = qcow2_freed_new();
    q->in_flight = qcow2_in_flight_new();
    q->overlap = qcow2_overlap_new();
    q->writer = qcow2_writer_new();
    q->l2_cache = qcow2_cache_new(q, q->options.l2_cache_size, l2_slice_bytes(q));
    q->refcount_cache = qcow2_cache_new(q, q->options.refcount_cache_size, refcount_slice_bytes(q));
    q->free_hint = 0;
    q->compressed_hint = 0;
    set_ends(q);
    start_clean_timer(q);
}

bool qcow2_tables_open(Qcow2 *q, GError **error)
{
    if (!read_tables(q, &q->l1, &q->reftable, error)) {
        return false;
    }
    begin(q);
    return true;
}

bool qcow2_tables_reload(Qcow2 *q, GError **error)
{
    Qcow2Table l1, reftable;

    if (!read_tables(q, &l1, &reftable, error)) {
        atomic_store(&q->corrupt, true);
        return false;
    }
    qcow2_tables_close(q);
    q->l1 = l1;
    q->reftable = reftable;
    begin(q);
    return true;
}

void qcow2_tables_close(Qcow2 *q)
{
    if (!q->l2_cache) {
        return;
    }
    stop_clean_timer(q);
    table_done(&q->l1);
    table_done(&q->reftable);
    g_clear_pointer(&q->l2_cache, qcow2_cache_free);
    g_clear_pointer(&q->refcount_cache, qcow2_cache_free);
    g_clear_pointer(&q->writer, qcow2_writer_free);
    g_clear_pointer(&q->overlap, qcow2_overlap_free);
    g_clear_pointer(&q->in_flight, qcow2_in_flight_free);
    g_clear_pointer(&q->freed, qcow2_freed_free);
    g_mutex_clear(&q->table_lock);
    co_mutex_done(&q->lock);
}

static void coroutine_fn refresh_overlap(void *opaque)
{
    qcow2_overlap_refresh(opaque);
}

void qcow2_tables_apply_options(Qcow2 *q)
{
    coroutine_run(refresh_overlap, q);
    start_clean_timer(q);
    if (qcow2_cache_slice_bytes(q->l2_cache) != l2_slice_bytes(q)) {
        qcow2_cache_free(q->l2_cache);
        q->l2_cache = qcow2_cache_new(q, q->options.l2_cache_size, l2_slice_bytes(q));
    }
    g_mutex_lock(&q->table_lock);
    qcow2_cache_resize(q->l2_cache, q->options.l2_cache_size);
    qcow2_cache_resize(q->refcount_cache, q->options.refcount_cache_size);
    g_mutex_unlock(&q->table_lock);
}
