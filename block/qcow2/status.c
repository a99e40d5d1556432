/* SPDX-License-Identifier: MIT */
/*
 * Block status: what the tables say of a range, as far as it is of one kind.
 *
 * Clusters that were given a place and never written are holes in the file, and read as zeroes. The
 * file is asked for these only when it is sparse: when it occupies noticeably less than the
 * clusters that are in use. That is found out once, by counting.
 */
#include "requests.h"
#include "util/size.h"

enum {
    NOT_KNOWN,
    NOT_SPARSE,
    SPARSE
};

static int flags_of(const Qcow2Mapping *map)
{
    switch (map->type) {
    case MAP_DATA:
        return BLOCK_STATUS_DATA | BLOCK_STATUS_OFFSET_VALID;
    case MAP_COMPRESSED:
        return BLOCK_STATUS_DATA;
    case MAP_ZERO_HOST:
        return BLOCK_STATUS_ZERO | BLOCK_STATUS_OFFSET_VALID;
    case MAP_ZERO:
        return BLOCK_STATUS_ZERO;
    case MAP_UNALLOCATED_HOST:
        return BLOCK_STATUS_OFFSET_VALID;
    case MAP_UNALLOCATED:
        break;
    }
    return 0;
}

/* Whether `next`, `bytes` further on, tells the same. */
static bool goes_on(const Qcow2Mapping *map, int64_t bytes, const Qcow2Mapping *next)
{
    int flags = flags_of(map);

    return flags_of(next) == flags &&
           (!(flags & BLOCK_STATUS_OFFSET_VALID) || next->host == map->host + bytes);
}

/* --- holes in the file --- */

/* Whether so many clusters of the file are in use. Under `lock`. */
static bool coroutine_fn has_clusters(Qcow2 *q, int64_t wanted)
{
    int64_t total = size_to_clusters(q, node_size(q->node->file->node));
    int64_t used = 0;

    for (int64_t at = 0; at < total && used < wanted && used + (total - at) >= wanted;) {
        int64_t first, n;

        if (qcow2_find_free(q, at, total - at, &first, &n) < 0) {
            return false;
        }
        used += MIN(first, total) - at;
        at = first + n;
    }
    return used >= wanted;
}

/* The measure is the one by which QEMU decides. */
static bool coroutine_fn is_sparse(Qcow2 *q)
{
    int sparse = atomic_load_explicit(&q->sparse, memory_order_relaxed);

    if (G_UNLIKELY(sparse == NOT_KNOWN)) {
        int64_t occupied = node_allocated_size(q->node->file->node) >> q->header.cluster_bits;
        bool found = false;

        if (occupied >= 0 && !has_data_file(q)) {
            co_mutex_lock(&q->lock);
            found = has_clusters(q, MAX(occupied * 10 / 9, occupied + 2));
            co_mutex_unlock(&q->lock);
        }
        sparse = found ? SPARSE : NOT_SPARSE;
        atomic_store(&q->sparse, sparse);
    }
    return sparse == SPARSE;
}

/* Zeroes where the file has a hole. Whoever cannot tell leaves it at data. */
static void coroutine_fn look_for_hole(Qcow2 *q, BlockStatus *status)
{
    int64_t alignment = q->node->limits.request_alignment;
    BlockStatus below;
    int64_t n;

    if (node_co_block_status(status->file, status->map, status->bytes, &below) < 0) {
        return;
    }
    n = below.bytes < status->bytes ? align_down(below.bytes, alignment) : status->bytes;
    if (n > 0) {
        status->bytes = n;
        status->flags |= below.flags & BLOCK_STATUS_ZERO;
    }
}

/* --- the driver's function --- */

int coroutine_fn qcow2_co_block_status(BlockNode *node, int64_t offset, int64_t bytes,
                                       BlockStatus *ret_status)
{
    Qcow2 *q = node->state;
    unsigned epoch = qcow2_request_begin(q);
    Qcow2Mapping map = { 0 };
    int ret = qcow2_map(q, offset, bytes, &map);
    int64_t n = map.bytes;

    while (ret == 0 && n < bytes) {
        Qcow2Mapping next;

        if (qcow2_map(q, offset + n, bytes - n, &next) < 0 || !goes_on(&map, n, &next)) {
            break;
        }
        n += next.bytes;
    }
    qcow2_request_end(q, epoch);
    if (ret < 0) {
        return ret;
    }
    *ret_status = (BlockStatus){ .flags = flags_of(&map), .bytes = n };
    if (ret_status->flags & BLOCK_STATUS_OFFSET_VALID) {
        ret_status->map = map.host;
        ret_status->file = q->data_file->node;
    }
    if (map.type == MAP_DATA && is_sparse(q)) {
        look_for_hole(q, ret_status);
    }
    return 0;
}
