/* SPDX-License-Identifier: MIT */
/*
 * Looking up. The usual case, a slice that is in memory, takes table_lock once and never yields.
 */
#include "mapping.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* --- entries --- */

bool qcow2_entry_has_place(const Qcow2 *q, uint64_t entry)
{
    return !(entry & QCOW2_L2_COMPRESSED) &&
           ((entry & QCOW2_L2_OFFSET_MASK) || (has_data_file(q) && (entry & QCOW2_COPIED)));
}

void qcow2_compressed_range(const Qcow2 *q, uint64_t entry, int64_t *ret_host, int64_t *ret_bytes)
{
    unsigned bits = 62 - (q->header.cluster_bits - 8);
    int64_t host = (int64_t)(entry & ((UINT64_C(1) << bits) - 1));
    int64_t sectors = (int64_t)(entry >> bits & ((1u << (q->header.cluster_bits - 8)) - 1)) + 1;

    *ret_host = host;
    *ret_bytes = sectors * 512 - (host & 511);
}

uint64_t qcow2_subcluster_mask(const Qcow2 *q, int64_t cluster, int64_t start, int64_t stop)
{
    int64_t first = MAX(start - cluster, 0) / q->subcluster_size;
    int64_t end = MIN(stop - cluster, q->cluster_size) / q->subcluster_size;

    return ((UINT64_C(1) << end) - 1) & ~((UINT64_C(1) << first) - 1);
}

/* An entry's meaning for one subcluster (or the cluster, where there are none). False: it has none.
 */
static bool type_of(const Qcow2 *q, uint64_t entry, uint64_t bitmap, unsigned sub,
                    Qcow2MapType *ret)
{
    bool place = qcow2_entry_has_place(q, entry);

    if (entry & QCOW2_L2_COMPRESSED) {
        *ret = MAP_COMPRESSED;
        return !has_data_file(q);
    }
    if (q->subclusters == 1) {
        bool zero = entry & QCOW2_L2_ZERO;

        *ret = zero ? place ? MAP_ZERO_HOST : MAP_ZERO : place ? MAP_DATA : MAP_UNALLOCATED;
        return !zero || q->header.version >= 3;
    }
    if (bitmap & QCOW2_SUB_ZERO(sub)) {
        *ret = place ? MAP_ZERO_HOST : MAP_ZERO;
        return !(bitmap & QCOW2_SUB_ALLOCATED(sub));
    }
    if (bitmap & QCOW2_SUB_ALLOCATED(sub)) {
        *ret = MAP_DATA;
        return place;
    }
    *ret = place ? MAP_UNALLOCATED_HOST : MAP_UNALLOCATED;
    return true;
}

/* --- where the entry is --- */

typedef struct Where {
    int64_t slice; /* offset in the file; 0: there is no L2 table */
    uint32_t at;   /* of the entry in the slice, bytes */
    uint32_t n;    /* entries from it to the end of the slice, whether that is there or not */
    int64_t table;
    int64_t index; /* in the table */
} Where;

/* Under table_lock. False: the L1 entry is damaged. */
static bool find_entry(const Qcow2 *q, int64_t guest, Where *ret)
{
    int64_t cluster = guest >> q->header.cluster_bits;
    int64_t l1_index = cluster >> q->l2_bits;
    int64_t slice_entries = qcow2_cache_slice_bytes(q->l2_cache) / q->l2_entry_size;
    int64_t index = cluster & ((INT64_C(1) << q->l2_bits) - 1);
    int64_t in_slice = index & (slice_entries - 1);
    uint64_t l1 = l1_index < q->l1.entries ? q->l1.entry[l1_index] : 0;

    ret->index = index;
    ret->n = (uint32_t)(slice_entries - in_slice);
    ret->table = (int64_t)(l1 & QCOW2_L1_OFFSET_MASK);
    if (!ret->table) {
        ret->slice = 0;
        return true;
    }
    ret->slice = ret->table + (index - in_slice) * q->l2_entry_size;
    ret->at = (uint32_t)(in_slice * q->l2_entry_size);
    return cluster_offset(q, ret->table) == 0;
}

static void coroutine_fn tell_l1_fault(Qcow2 *q, int64_t guest, int64_t table)
{
    qcow2_mark_corrupt(q, true, -1, -1,
                       "L2 table offset %#" PRIx64 " unaligned (L1 index: %#" PRIx64 ")",
                       (uint64_t)table, (uint64_t)(guest >> q->header.cluster_bits >> q->l2_bits));
}

static inline uint64_t load_be64(const uint8_t *at)
{
    uint64_t value;

    memcpy(&value, at, 8);
    return GUINT64_FROM_BE(value);
}

static inline uint64_t entry_at(const uint8_t *data, uint32_t at)
{
    return load_be64(data + at);
}

static inline uint64_t bitmap_at(const Qcow2 *q, const uint8_t *data, uint32_t at)
{
    return q->subclusters > 1 ? load_be64(data + at + 8) : 0;
}

/* On success table_lock is held, and `slice` is NULL where there is no table. */
static int coroutine_fn lock_entry(Qcow2 *q, int64_t guest, Where *where, Qcow2Slice **ret)
{
    for (;;) {
        Where again;
        int error;

        g_mutex_lock(&q->table_lock);
        if (!find_entry(q, guest, where)) {
            g_mutex_unlock(&q->table_lock);
            tell_l1_fault(q, guest, where->table);
            return -EIO;
        }
        *ret = where->slice ? qcow2_cache_find(q->l2_cache, where->slice) : NULL;
        if (*ret || !where->slice) {
            return 0;
        }
        g_mutex_unlock(&q->table_lock);
        error = qcow2_cache_lock(q->l2_cache, where->slice, ret);
        if (error < 0) {
            return error;
        }
        if (find_entry(q, guest, &again) && again.slice == where->slice) {
            return 0;
        }
        g_mutex_unlock(&q->table_lock); /* the table has moved meanwhile */
    }
}

/* --- runs --- */

/* A fault in an L2 entry, to be told once table_lock is dropped. */
typedef struct Fault {
    bool any;
    uint64_t entry;
    int64_t index; /* in the table */
    int64_t guest; /* of its cluster */
} Fault;

static int64_t host_of(uint64_t entry)
{
    return (int64_t)(entry & QCOW2_L2_OFFSET_MASK);
}

static bool place_is_sound(const Qcow2 *q, uint64_t entry, int64_t guest)
{
    return !qcow2_entry_has_place(q, entry) ||
           (cluster_offset(q, host_of(entry)) == 0 &&
            (!has_data_file(q) || host_of(entry) == cluster_start(q, guest)));
}

/* Extend the run by what follows of the first cluster and by the clusters behind. Damage ends it;
 * the next look will find that. */
static void extend_run(const Qcow2 *q, const uint8_t *data, const Where *where, int64_t guest,
                       int64_t bytes, Qcow2Mapping *map)
{
    int64_t sub = q->subcluster_size;
    int64_t at = (guest & ~(sub - 1)) + sub; /* the first byte behind */
    int64_t first = cluster_start(q, guest);

    while (at < guest + bytes) {
        uint32_t i = (uint32_t)((at - first) >> q->header.cluster_bits);
        uint64_t entry, bitmap;
        Qcow2MapType type;

        if (i >= where->n) {
            break;
        }
        entry = entry_at(data, where->at + i * q->l2_entry_size);
        bitmap = bitmap_at(q, data, where->at + i * q->l2_entry_size);
        if (!type_of(q, entry, bitmap, (unsigned)(cluster_offset(q, at) / sub), &type) ||
            type != map->type || !place_is_sound(q, entry, at)) {
            break;
        }
        if (mapping_has_host(map) &&
            (host_of(entry) + cluster_offset(q, at) != map->host + (at - guest) ||
             map->copied != ((entry & QCOW2_COPIED) != 0))) {
            break;
        }
        at += sub;
    }
    map->bytes = MIN(at - guest, bytes);
}

/* Under table_lock. */
static void decode(const Qcow2 *q, const uint8_t *data, const Where *where, int64_t guest,
                   int64_t bytes, Qcow2Mapping *map, Fault *fault)
{
    uint64_t entry = entry_at(data, where->at);
    uint64_t bitmap = bitmap_at(q, data, where->at);
    unsigned sub = (unsigned)(cluster_offset(q, guest) / q->subcluster_size);

    if (!type_of(q, entry, bitmap, sub, &map->type) ||
        (!(entry & QCOW2_L2_COMPRESSED) && !place_is_sound(q, entry, guest))) {
        *fault = (Fault){ true, entry, where->index, cluster_start(q, guest) };
        return;
    }
    if (map->type == MAP_COMPRESSED) {
        map->entry = entry;
        map->bytes = MIN(bytes, q->cluster_size - cluster_offset(q, guest));
        return;
    }
    map->copied = (entry & QCOW2_COPIED) != 0;
    map->host = host_of(entry) + cluster_offset(q, guest);
    extend_run(q, data, where, guest, bytes, map);
}

/* Damaged entries, in the order in which the kinds of damage are looked for. */
static void coroutine_fn tell_l2_fault(Qcow2 *q, const Fault *fault, int64_t table)
{
    uint64_t host = (uint64_t)host_of(fault->entry);
    const char *words;

    if (fault->entry & QCOW2_L2_COMPRESSED) {
        words = "Compressed cluster entry found in image with external data file";
    } else if (q->subclusters == 1 && (fault->entry & QCOW2_L2_ZERO) && q->header.version < 3) {
        words = "Zero cluster entry found in pre-v3 image";
    } else if (cluster_offset(q, (int64_t)host)) {
        qcow2_mark_corrupt(
            q, true, -1, -1,
            "%s offset %#" PRIx64 " unaligned (L2 offset: %#" PRIx64 ", L2 index: %#" PRIx64 ")",
            q->subclusters == 1 && (fault->entry & QCOW2_L2_ZERO) ? "Preallocated zero cluster"
                                                                  : "Cluster allocation",
            host, (uint64_t)table, (uint64_t)fault->index);
        return;
    } else if (has_data_file(q) && qcow2_entry_has_place(q, fault->entry) &&
               (int64_t)host != fault->guest) {
        qcow2_mark_corrupt(q, true, -1, -1,
                           "External data file host cluster offset %#" PRIx64
                           " does not match guest cluster offset: %#" PRIx64 ", L2 index: %#" PRIx64
                           ")",
                           host, (uint64_t)fault->guest, (uint64_t)fault->index);
        return;
    } else {
        words = "Invalid cluster entry found";
    }
    qcow2_mark_corrupt(q, true, -1, -1, "%s (L2 offset: %#" PRIx64 ", L2 index: %#" PRIx64 ")",
                       words, (uint64_t)table, (uint64_t)fault->index);
}

int coroutine_fn qcow2_map(Qcow2 *q, int64_t guest, int64_t bytes, Qcow2Mapping *ret)
{
    Qcow2Slice *slice;
    Fault fault = { 0 };
    Where where;
    int error = lock_entry(q, guest, &where, &slice);

    if (error < 0) {
        return error;
    }
    *ret = (Qcow2Mapping){ .type = MAP_UNALLOCATED };
    if (slice) {
        decode(q, slice->data, &where, guest, bytes, ret, &fault);
        ret->suspect = ret->type == MAP_DATA && ret->copied &&
                       !qcow2_overlap_is_data(q, ret->host, MAX(ret->bytes, 1));
    } else {
        int64_t clusters = (INT64_C(1) << q->l2_bits) - where.index; /* of the table that is not */

        ret->bytes = MIN(bytes, (clusters << q->header.cluster_bits) - cluster_offset(q, guest));
    }
    g_mutex_unlock(&q->table_lock);
    if (fault.any) {
        tell_l2_fault(q, &fault, where.table);
        return -EIO;
    }
    return 0;
}

int coroutine_fn qcow2_range_is_zero(Qcow2 *q, int64_t guest, int64_t bytes)
{
    int64_t backing = q->node->backing ? node_size(q->node->backing->node) : 0;

    bytes = MIN(bytes, node_size(q->node) - guest); /* beyond the end there is nothing */
    for (int64_t done = 0; done < bytes;) {
        Qcow2Mapping map;
        int ret = qcow2_map(q, guest + done, bytes - done, &map);

        if (ret < 0) {
            return ret;
        }
        if (map.type == MAP_DATA || map.type == MAP_COMPRESSED ||
            (map.type <= MAP_UNALLOCATED_HOST && guest + done < backing)) {
            return 0;
        }
        done += map.bytes;
    }
    return 1;
}

int64_t coroutine_fn qcow2_run_without_place(Qcow2 *q, int64_t guest, int64_t end)
{
    int64_t start = cluster_start(q, guest);
    int64_t clusters = size_to_clusters(q, end - start);
    Qcow2Slice *slice;
    int64_t n = 0;
    Where where;
    int error = lock_entry(q, guest, &where, &slice);

    if (error < 0) {
        return error;
    }
    clusters = MIN(clusters, (int64_t)where.n);
    while (slice && n < clusters) {
        uint64_t entry = entry_at(slice->data, where.at + (uint32_t)n * q->l2_entry_size);

        if (qcow2_entry_has_place(q, entry) && (entry & QCOW2_COPIED)) {
            break;
        }
        n++;
    }
    g_mutex_unlock(&q->table_lock);
    return (slice ? n : clusters) << q->header.cluster_bits;
}

/* --- changing --- */

int coroutine_fn qcow2_entry_lock(Qcow2 *q, int64_t guest, Qcow2Entry *ret)
{
    Where where;
    int error = lock_entry(q, guest, &where, &ret->slice);

    if (error < 0) {
        return error;
    }
    if (!ret->slice) {
        g_mutex_unlock(&q->table_lock);
        return -EIO; /* nobody prepared it */
    }
    ret->at = where.at;
    ret->n_more = where.n - 1;
    ret->entry = entry_at(ret->slice->data, ret->at);
    ret->bitmap = bitmap_at(q, ret->slice->data, ret->at);
    return 0;
}

void qcow2_entry_next(Qcow2 *q, Qcow2Entry *entry)
{
    entry->at += q->l2_entry_size;
    entry->n_more--;
    entry->entry = entry_at(entry->slice->data, entry->at);
    entry->bitmap = bitmap_at(q, entry->slice->data, entry->at);
}

static void free_old(Qcow2 *q, uint64_t old, uint64_t value, Qcow2DiscardType type)
{
    int64_t host, bytes;

    if (old & QCOW2_L2_COMPRESSED) {
        qcow2_compressed_range(q, old, &host, &bytes);
        if (host > 0) {
            qcow2_free(q, host, bytes, type);
        }
    } else if (host_of(old) && host_of(old) != host_of(value) && !has_data_file(q)) {
        qcow2_free(q, host_of(old), q->cluster_size, type);
    }
}

void qcow2_entry_set(Qcow2 *q, Qcow2Entry *entry, uint64_t value, uint64_t bitmap,
                     Qcow2DiscardType type)
{
    uint64_t be = GUINT64_TO_BE(value);

    memcpy(entry->slice->data + entry->at, &be, 8);
    if (q->subclusters > 1) {
        be = GUINT64_TO_BE(bitmap);
        memcpy(entry->slice->data + entry->at + 8, &be, 8);
    }
    qcow2_slice_set_dirty(q->l2_cache, entry->slice, entry->at, entry->at + q->l2_entry_size);
    free_old(q, entry->entry, value, type);
    entry->entry = value;
    entry->bitmap = bitmap;
}
