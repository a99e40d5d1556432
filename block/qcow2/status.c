/* SPDX-License-Identifier: MIT */
/*
 * Block status: what the tables say of a range, as far as it is of one kind.
 */
#include "requests.h"

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
    case MAP_UNALLOCATED:
    case MAP_UNALLOCATED_HOST:
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
    return 0;
}
