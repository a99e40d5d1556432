/* SPDX-License-Identifier: MIT */
/*
 * Refcounts: looking at them and changing them, in slices of refcount blocks. All under `lock`, so
 * what a function finds stays so until it returns.
 */
#include "refcount-bits.h"
#include "runtime.h"
#include "util/size.h"

#include <errno.h>
#include <inttypes.h>

/* Where a refcount lies. */
typedef struct Place {
    int64_t slice; /* the slice's offset; 0: no block counts the cluster */
    int64_t index; /* in the slice */
    int64_t n;     /* clusters from this one on that the same slice (or no block) counts */
} Place;

static int64_t slice_entries(const Qcow2 *q)
{
    return (qcow2_cache_slice_bytes(q->refcount_cache) * 8) >> q->header.refcount_order;
}

static uint64_t refblock_of(Qcow2 *q, int64_t cluster)
{
    int64_t index = cluster >> q->refblock_bits;

    return index < q->reftable.entries
               ? qcow2_table_get(q, &q->reftable, (uint32_t)index) & QCOW2_REFTABLE_OFFSET_MASK
               : 0;
}

bool qcow2_refblock_exists(Qcow2 *q, int64_t cluster)
{
    return refblock_of(q, cluster) != 0;
}

static int coroutine_fn find_place(Qcow2 *q, int64_t cluster, Place *ret)
{
    uint64_t block = refblock_of(q, cluster);
    int64_t in_block = cluster & (qcow2_refblock_clusters(q) - 1);

    if (!block) {
        *ret = (Place){ .n = qcow2_refblock_clusters(q) - in_block };
        return 0;
    }
    if (cluster_offset(q, (int64_t)block) || block >= (uint64_t)QCOW2_HOST_END) {
        qcow2_mark_corrupt(q, true, -1, -1,
                           "Refblock offset %#" PRIx64 " unaligned (reftable index: %#" PRIx64 ")",
                           block, (uint64_t)(cluster >> q->refblock_bits));
        return -EIO;
    }
    ret->index = in_block & (slice_entries(q) - 1);
    ret->slice =
        (int64_t)block + (in_block / slice_entries(q)) * qcow2_cache_slice_bytes(q->refcount_cache);
    ret->n = slice_entries(q) - ret->index;
    return 0;
}

int coroutine_fn qcow2_refcount_get(Qcow2 *q, int64_t cluster_index, uint64_t *ret)
{
    Qcow2Slice *slice;
    Place place;
    int error = find_place(q, cluster_index, &place);

    if (error < 0) {
        return error;
    }
    if (!place.slice) {
        *ret = 0;
        return 0;
    }
    error = qcow2_cache_lock(q->refcount_cache, place.slice, &slice);
    if (error < 0) {
        return error;
    }
    *ret = refcount_bits_get(slice->data, place.index, q->header.refcount_order);
    g_mutex_unlock(&q->table_lock);
    return 0;
}

/* --- changing --- */

static bool fits(const Qcow2 *q, uint64_t value, int delta)
{
    return delta < 0 ? value >= (uint64_t)-delta
                     : value <= q->refcount_max && q->refcount_max - value >= (uint64_t)delta;
}

/* Change `n` counts of one slice, all or none. */
static int coroutine_fn change_in_slice(Qcow2 *q, const Place *place, int64_t n, int delta,
                                        bool only_look)
{
    unsigned order = q->header.refcount_order;
    Qcow2Slice *slice;
    int ret;

    if (!place->slice) {
        return delta < 0 ? -EINVAL : -ERANGE;
    }
    ret = qcow2_cache_lock(q->refcount_cache, place->slice, &slice);
    if (ret < 0) {
        return ret;
    }
    for (int64_t i = place->index; i < place->index + n && ret == 0; i++) {
        if (!fits(q, refcount_bits_get(slice->data, i, order), delta)) {
            ret = delta < 0 ? -EINVAL : -ERANGE;
        }
    }
    if (ret == 0 && !only_look) {
        for (int64_t i = place->index; i < place->index + n; i++) {
            refcount_bits_set(slice->data, i, order,
                              refcount_bits_get(slice->data, i, order) + delta);
        }
        qcow2_slice_set_dirty(q->refcount_cache, slice, (uint32_t)((place->index << order) / 8),
                              (uint32_t)((((place->index + n) << order) + 7) / 8));
    }
    g_mutex_unlock(&q->table_lock);
    return ret;
}

static int coroutine_fn change_run(Qcow2 *q, int64_t first, int64_t n, int delta, bool only_look,
                                   int64_t *ret_done)
{
    int ret = 0;

    for (*ret_done = 0; *ret_done < n && ret == 0;) {
        Place place;
        int64_t piece;

        ret = find_place(q, first + *ret_done, &place);
        piece = ret == 0 ? MIN(place.n, n - *ret_done) : 0;
        if (ret == 0) {
            ret = change_in_slice(q, &place, piece, delta, only_look);
        }
        if (ret == 0) {
            *ret_done += piece;
        }
    }
    return ret;
}

int coroutine_fn qcow2_refcount_add(Qcow2 *q, int64_t first_cluster, int64_t n, int delta)
{
    int64_t done;
    Place place;
    int ret = find_place(q, first_cluster, &place);

    if (ret == 0 && n > place.n) {
        ret = change_run(q, first_cluster, n, delta, true, &done);
    }
    if (ret == 0) {
        ret = change_run(q, first_cluster, n, delta, false, &done);
        if (ret < 0) {
            change_run(q, first_cluster, done, -delta, false, &done); /* dirty, so in memory */
        }
    }
    if (ret == -EINVAL) {
        qcow2_mark_corrupt(q, false, -1, -1,
                           "Refcount of a cluster would fall below zero (clusters %#" PRIx64
                           " to %#" PRIx64 ")",
                           (uint64_t)first_cluster, (uint64_t)(first_cluster + n - 1));
    }
    return ret;
}

/* --- looking for free clusters --- */

/* The first index at or after `index` whose count is (not) zero, below `end`; else `end`. */
static int64_t scan(const uint8_t *data, int64_t index, int64_t end, unsigned order, bool zero)
{
    while (index < end && (refcount_bits_get(data, index, order) == 0) != zero) {
        index++;
    }
    return index;
}

/* The same for counts of whole bytes, eight bytes at a look. */
static int64_t skip_words(const uint8_t *data, int64_t index, int64_t end, unsigned order)
{
    int64_t per_word = 64 >> order;

    while (index + per_word <= end && (index & (per_word - 1)) == 0) {
        uint64_t word;

        memcpy(&word, data + (index << order) / 8, 8);
        if (word != 0) {
            break;
        }
        index += per_word;
    }
    return index;
}

static int64_t end_of_free(const uint8_t *data, int64_t index, int64_t end, unsigned order)
{
    int64_t aligned = MIN(align_up(index, 64 >> order), end);

    index = scan(data, index, aligned, order, false);
    if (index < aligned) {
        return index;
    }
    return scan(data, skip_words(data, index, end, order), end, order, false);
}

int coroutine_fn qcow2_find_free(Qcow2 *q, int64_t from, int64_t max, int64_t *ret_first,
                                 int64_t *ret_n)
{
    int64_t at = from, n = 0, first = from;
    unsigned order = q->header.refcount_order;

    while (n < max && at < QCOW2_HOST_END >> q->header.cluster_bits) {
        int64_t begin, end;
        Qcow2Slice *slice;
        Place place;
        int ret = find_place(q, at, &place);

        if (ret < 0) {
            return ret;
        }
        begin = place.index;
        end = place.index + place.n;
        if (place.slice) {
            ret = qcow2_cache_lock(q->refcount_cache, place.slice, &slice);
            if (ret < 0) {
                return ret;
            }
            if (n == 0) {
                begin = scan(slice->data, place.index, end, order, true);
            }
            end = end_of_free(slice->data, begin, MIN(end, begin + (max - n)), order);
            g_mutex_unlock(&q->table_lock);
        }
        if (n == 0) {
            first = at + (begin - place.index);
        }
        n = MIN(n + (end - begin), max);
        if (n > 0 && end < place.index + place.n) {
            break;
        }
        at += place.n;
    }
    *ret_first = first;
    *ret_n = n;
    return n > 0 ? 0 : -EFBIG;
}
