/* SPDX-License-Identifier: MIT */
/*
 * Reads: each run of a mapping from where it lies, several at once where there are several. No lock
 * is held while data moves.
 */
#include "parts.h"
#include "requests.h"

#include <errno.h>

static int coroutine_fn read_child(BlockChild *child, int64_t offset, int64_t bytes, IoVector *vec,
                                   size_t at)
{
    IoVector slice;
    int ret;

    if (at == 0 && vec->size == (size_t)bytes) {
        return child_co_preadv(child, offset, bytes, vec, 0);
    }
    iov_init(&slice);
    iov_add_slice(&slice, vec, at, (size_t)bytes);
    ret = child_co_preadv(child, offset, bytes, &slice, 0);
    iov_done(&slice);
    return ret;
}

static int coroutine_fn read_packed(Qcow2 *q, int64_t guest, const Qcow2Mapping *map, IoVector *vec,
                                    size_t at)
{
    uint8_t *buf = g_try_malloc((gsize)q->cluster_size);
    int ret = buf ? qcow2_read_compressed(q, map->entry, buf) : -ENOMEM;

    if (ret == 0) {
        iov_from_buf(vec, at, buf + cluster_offset(q, guest), (size_t)map->bytes);
    }
    g_free(buf);
    return ret;
}

static int coroutine_fn read_run(Qcow2 *q, int64_t guest, const Qcow2Mapping *map, IoVector *vec,
                                 size_t at)
{
    BlockChild *backing = q->node->backing;

    switch (map->type) {
    case MAP_DATA:
        qcow2_event(q, BLKDEBUG_EVENT_READ_AIO);
        return read_child(q->data_file, map->host, map->bytes, vec, at);
    case MAP_COMPRESSED:
        return read_packed(q, guest, map, vec, at);
    case MAP_UNALLOCATED:
    case MAP_UNALLOCATED_HOST:
        if (backing && guest < node_size(backing->node)) {
            qcow2_event(q, BLKDEBUG_EVENT_READ_BACKING_AIO);
            return read_child(backing, guest, map->bytes, vec, at);
        }
        break;
    case MAP_ZERO:
    case MAP_ZERO_HOST:
        break;
    }
    iov_memset(vec, at, 0, (size_t)map->bytes);
    return 0;
}

/* --- several runs --- */

typedef struct ReadPart {
    Qcow2Parts *parts;
    int slot;
    Qcow2 *q;
    int64_t guest;
    Qcow2Mapping map;
    IoVector *vec;
    size_t at;
} ReadPart;

static void coroutine_fn read_part(void *opaque)
{
    ReadPart *part = opaque;
    int ret = read_run(part->q, part->guest, &part->map, part->vec, part->at);

    qcow2_parts_end(part->parts, part->slot, ret);
}

/* Whether a run is read from somewhere. */
static bool may_wait(const Qcow2 *q, int64_t guest, const Qcow2Mapping *map)
{
    const BlockChild *backing = q->node->backing;

    return map->type == MAP_DATA || map->type == MAP_COMPRESSED ||
           (map->type <= MAP_UNALLOCATED_HOST && backing && guest < node_size(backing->node));
}

/* The first run is known, and is not all. */
static int coroutine_fn read_runs(Qcow2 *q, int64_t guest, int64_t bytes, const Qcow2Mapping *first,
                                  IoVector *vec, size_t at)
{
    Qcow2Parts parts = { 0 };
    ReadPart slots[QCOW2_PARTS_MAX];
    Qcow2Mapping map = *first;
    int ret = 0;

    for (int64_t done = 0; done < bytes && ret == 0;) {
        int64_t here = guest + done;
        size_t to = at + (size_t)done;

        if (done > 0) {
            ret = qcow2_map(q, here, bytes - done, &map);
            if (ret < 0) {
                break;
            }
        }
        done += map.bytes;
        if (done == bytes || !may_wait(q, here, &map)) {
            ret = read_run(q, here, &map, vec, to);
        } else {
            int slot = qcow2_parts_take(&parts);

            if (slot < 0) {
                break;
            }
            slots[slot] = (ReadPart){ &parts, slot, q, here, map, vec, to };
            coroutine_start(read_part, &slots[slot]);
        }
    }
    return qcow2_parts_wait(&parts, ret);
}

int coroutine_fn qcow2_read(Qcow2 *q, int64_t guest, int64_t bytes, IoVector *vec, size_t at)
{
    int64_t inside = CLAMP(node_size(q->node) - guest, 0, bytes);
    int ret = 0;

    if (inside > 0) {
        Qcow2Mapping map;

        ret = qcow2_map(q, guest, inside, &map);
        if (ret == 0) {
            ret = map.bytes == inside ? read_run(q, guest, &map, vec, at)
                                      : read_runs(q, guest, inside, &map, vec, at);
        }
    }
    if (inside < bytes && ret == 0) {
        iov_memset(vec, at + (size_t)inside, 0, (size_t)(bytes - inside));
    }
    return ret;
}

int coroutine_fn qcow2_read_buf(Qcow2 *q, int64_t guest, int64_t bytes, void *buf)
{
    IoVector vec;

    iov_init_buf(&vec, buf, (size_t)bytes);
    return qcow2_read(q, guest, bytes, &vec, 0);
}

int coroutine_fn qcow2_co_preadv(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                                 unsigned flags)
{
    Qcow2 *q = node->state;
    unsigned epoch = qcow2_request_begin(q);
    int ret = qcow2_read(q, offset, bytes, vec, 0);

    qcow2_request_end(q, epoch);
    return ret;
}
