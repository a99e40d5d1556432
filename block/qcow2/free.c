/* SPDX-License-Identifier: MIT */
/*
 * Freed clusters: from qcow2_free() until they may be used again (Q4).
 *
 * A free goes through three places: `asked`, since the last writeback; `written`, the batch that
 * the running writeback makes durable; `waiting`, batches that are durable but may still be read or
 * written by a request that looked them up before they were freed.
 *
 * For the latter, requests count themselves in one of two counters, by the parity of the *epoch*.
 * The epoch goes from e to e + 1 only when no request of e - 1 is left; a request that begins in e
 * + 1 cannot have seen what was unlinked in e. So a batch whose frees were asked for up to epoch e
 * is ripe when the epoch is e + 1 and nobody of e is left, or when it is more.
 */
#include "runtime.h"

#include <errno.h>

/* Frees that are worth a writeback of their own, by number of ranges and by bytes. */
#define MANY_RANGES 4096
#define MANY_BYTES  (INT64_C(4) << 30)

typedef struct Freed {
    int64_t first; /* clusters */
    int64_t n;
    Qcow2DiscardType type;
} Freed;

typedef struct Batch {
    GArray *freed; /* of Freed */
    unsigned epoch;
    struct Batch *next;
} Batch;

struct Qcow2Freed {
    GArray *asked;   /* under q->lock, as the next two */
    GArray *written; /* NULL: no writeback is at work */
    Batch *waiting;
    _Atomic int64_t asked_bytes;
    atomic_uint asked_ranges;

    atomic_uint epoch;
    atomic_uint inside[2]; /* requests by the parity of their epoch */
};

Qcow2Freed *qcow2_freed_new(void)
{
    Qcow2Freed *freed = g_new0(Qcow2Freed, 1);

    freed->asked = g_array_new(FALSE, FALSE, sizeof(Freed));
    return freed;
}

void qcow2_freed_free(Qcow2Freed *freed)
{
    if (!freed) {
        return;
    }
    for (Batch *batch = freed->waiting, *next; batch; batch = next) {
        next = batch->next;
        g_array_free(batch->freed, TRUE);
        g_free(batch);
    }
    g_array_free(freed->asked, TRUE);
    if (freed->written) {
        g_array_free(freed->written, TRUE);
    }
    g_free(freed);
}

/* --- requests --- */

unsigned qcow2_request_begin(Qcow2 *q)
{
    Qcow2Freed *freed = q->freed;

    for (;;) {
        unsigned epoch = atomic_load(&freed->epoch);

        atomic_fetch_add(&freed->inside[epoch & 1], 1);
        if (G_LIKELY(atomic_load(&freed->epoch) == epoch)) {
            return epoch;
        }
        atomic_fetch_sub(&freed->inside[epoch & 1], 1);
    }
}

void qcow2_request_end(Qcow2 *q, unsigned epoch)
{
    atomic_fetch_sub(&q->freed->inside[epoch & 1], 1);
}

/* Under `lock`. */
static void advance(Qcow2Freed *freed)
{
    unsigned epoch = atomic_load(&freed->epoch);

    if (atomic_load(&freed->inside[(epoch + 1) & 1]) == 0) {
        atomic_store(&freed->epoch, epoch + 1);
    }
}

static bool is_ripe(Qcow2Freed *freed, const Batch *batch)
{
    unsigned passed = atomic_load(&freed->epoch) - batch->epoch;

    return passed > 1 || (passed == 1 && atomic_load(&freed->inside[batch->epoch & 1]) == 0);
}

/* --- frees --- */

void qcow2_free(Qcow2 *q, int64_t host, int64_t bytes, Qcow2DiscardType type)
{
    Qcow2Freed *freed = q->freed;
    int64_t first = host >> q->header.cluster_bits;
    int64_t n = ((host + bytes - 1) >> q->header.cluster_bits) - first + 1;
    Freed *last =
        freed->asked->len ? &g_array_index(freed->asked, Freed, freed->asked->len - 1) : NULL;

    if (last && last->type == type && last->first + last->n == first) {
        last->n += n;
    } else {
        Freed add = { first, n, type };

        g_array_append_val(freed->asked, add);
    }
    atomic_fetch_add(&freed->asked_bytes, n << q->header.cluster_bits);
    atomic_store(&freed->asked_ranges, freed->asked->len);
}

bool qcow2_frees_are_many(Qcow2 *q)
{
    return atomic_load(&q->freed->asked_ranges) > MANY_RANGES ||
           atomic_load(&q->freed->asked_bytes) > MANY_BYTES;
}

static void reset_asked(Qcow2Freed *freed, GArray *asked)
{
    freed->asked = asked;
    atomic_store(&freed->asked_bytes, 0);
    atomic_store(&freed->asked_ranges, 0);
}

void qcow2_frees_collect(Qcow2 *q)
{
    Qcow2Freed *freed = q->freed;

    g_assert(!freed->written);
    freed->written = freed->asked;
    reset_asked(freed, g_array_new(FALSE, FALSE, sizeof(Freed)));
}

void qcow2_frees_restore(Qcow2 *q)
{
    Qcow2Freed *freed = q->freed;
    GArray *later = freed->asked;

    reset_asked(freed, g_steal_pointer(&freed->written));
    g_array_append_vals(freed->asked, later->data, later->len);
    g_array_free(later, TRUE);
    atomic_store(&freed->asked_ranges, freed->asked->len);
}

bool coroutine_fn qcow2_frees_make_room(Qcow2 *q)
{
    bool pending;

    co_mutex_lock(&q->lock);
    pending = q->freed->asked->len || q->freed->written || q->freed->waiting;
    co_mutex_unlock(&q->lock);
    return pending && qcow2_writeback(q) == 0;
}

/* --- taking effect --- */

static bool passes_discard(const Qcow2 *q, Qcow2DiscardType type)
{
    switch (type) {
    case QCOW2_DISCARD_NEVER:
        return false;
    case QCOW2_DISCARD_REQUEST:
        return q->options.pass_discard_request;
    case QCOW2_DISCARD_SNAPSHOT:
        return q->options.pass_discard_snapshot;
    case QCOW2_DISCARD_OTHER:
        return q->options.pass_discard_other;
    case QCOW2_DISCARD_ALWAYS:
        return true;
    }
    return false;
}

/* Clusters that nobody refers to any more. */
static void coroutine_fn now_free(Qcow2 *q, int64_t first, int64_t n, Qcow2DiscardType type)
{
    int64_t host = first << q->header.cluster_bits;
    int64_t bytes = n << q->header.cluster_bits;

    qcow2_forget_compressed(q, first, n);
    g_mutex_lock(&q->table_lock);
    qcow2_cache_drop(q->l2_cache, host, bytes);
    qcow2_cache_drop(q->refcount_cache, host, bytes);
    g_mutex_unlock(&q->table_lock);
    if (passes_discard(q, type)) {
        child_co_pdiscard(q->node->file, host, bytes);
    }
    q->free_hint = MIN(q->free_hint, first);
}

static void coroutine_fn drop_reference(Qcow2 *q, const Freed *freed)
{
    int64_t free_first = 0, n_free = 0;
    int ret = qcow2_refcount_add(q, freed->first, freed->n, -1);

    if (ret < 0) {
        if (ret != -EINVAL) { /* that could not be read; else the counts are wrong already */
            qcow2_free(q, freed->first << q->header.cluster_bits,
                       freed->n << q->header.cluster_bits, freed->type);
        }
        return;
    }
    for (int64_t i = freed->first; i < freed->first + freed->n; i++) {
        uint64_t refcount;

        if (qcow2_refcount_get(q, i, &refcount) < 0 || refcount > 0) {
            continue;
        }
        if (n_free > 0 && free_first + n_free != i) {
            now_free(q, free_first, n_free, freed->type);
            n_free = 0;
        }
        free_first = n_free ? free_first : i;
        n_free++;
    }
    if (n_free > 0) {
        now_free(q, free_first, n_free, freed->type);
    }
}

static void coroutine_fn apply_batch(Qcow2 *q, GArray *batch)
{
    for (guint i = 0; i < batch->len; i++) {
        drop_reference(q, &g_array_index(batch, Freed, i));
    }
    g_array_free(batch, TRUE);
}

static void add_batch(Qcow2Freed *freed)
{
    Batch *batch = g_new0(Batch, 1);
    Batch **last = &freed->waiting;

    batch->freed = g_steal_pointer(&freed->written);
    batch->epoch = atomic_load(&freed->epoch);
    while (*last) {
        last = &(*last)->next;
    }
    *last = batch;
}

void coroutine_fn qcow2_frees_apply(Qcow2 *q)
{
    Qcow2Freed *freed = q->freed;

    if (freed->written->len) {
        add_batch(freed);
    } else {
        g_clear_pointer(&freed->written, g_array_unref);
    }
    if (!freed->waiting) {
        return;
    }
    advance(freed);
    advance(freed);
    while (freed->waiting && is_ripe(freed, freed->waiting)) {
        Batch *batch = freed->waiting;

        freed->waiting = batch->next;
        apply_batch(q, batch->freed);
        g_free(batch);
    }
}
