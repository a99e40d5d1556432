/* SPDX-License-Identifier: MIT */
/*
 * Writes.
 *
 * Where clusters have a place of their own, data goes there and nothing else happens. Elsewhere a
 * write goes through three steps: under `lock` it finds a place and notes itself in flight; without
 * it, it writes its data together with what else the clusters need ("fill"), in one write; under
 * `lock` it links the clusters. A write fails as a whole: clusters that were not linked are
 * given back.
 */
#include "in-flight.h"
#include "parts.h"
#include "requests.h"
#include "util/size.h"

#include <errno.h>

#define ZERO_BUFFER_BYTES (64 * KiB)

/* What fills are written from; never written to. */
static _Alignas(4096) char zero_buffer[ZERO_BUFFER_BYTES];

void qcow2_add_zeroes(IoVector *vec, int64_t bytes)
{
    for (int64_t done = 0; done < bytes; done += ZERO_BUFFER_BYTES) {
        iov_add(vec, zero_buffer, (size_t)MIN(bytes - done, ZERO_BUFFER_BYTES));
    }
}

/* --- in place --- */

static int coroutine_fn write_in_place(Qcow2 *q, int64_t host, int64_t bytes, IoVector *vec,
                                       size_t at, unsigned flags)
{
    IoVector slice;
    int ret;

    qcow2_event(q, BLKDEBUG_EVENT_WRITE_AIO);
    if (at == 0 && vec->size == (size_t)bytes) {
        return child_co_pwritev(q->data_file, host, bytes, vec, flags);
    }
    iov_init(&slice);
    iov_add_slice(&slice, vec, at, (size_t)bytes);
    ret = child_co_pwritev(q->data_file, host, bytes, &slice, flags);
    iov_done(&slice);
    return ret;
}

/* --- finding a place, under `lock` --- */

typedef struct Allocation {
    Qcow2Pending pending;
    int64_t guest, end;  /* what the guest writes */
    int64_t start, stop; /* whole subclusters around it, which are to be valid afterwards */
    int64_t host;        /* of `start` */
    bool new_place;      /* else the clusters had one already */
    bool fresh;          /* never written to, so it reads as zeroes */
} Allocation;

/* The clusters have a place: just their subclusters get valid. */
static int coroutine_fn use_place(Qcow2 *q, const Qcow2Mapping *map, Allocation *a)
{
    a->start = align_down(a->guest, q->subcluster_size);
    a->stop = align_up(a->end, q->subcluster_size);
    a->host = map->host - (a->guest - a->start);
    return has_data_file(q) ? 0 : qcow2_check_overlap(q, 0, a->host, a->stop - a->start);
}

/* Whether the cluster has data somewhere, which a new place must take over as a whole. */
static int coroutine_fn has_old_data(Qcow2 *q, int64_t cluster)
{
    Qcow2Mapping map;
    int ret = qcow2_map(q, cluster, 1, &map);

    return ret < 0 ? ret : mapping_has_host(&map) || map.type == MAP_COMPRESSED;
}

static int coroutine_fn set_bounds(Qcow2 *q, Allocation *a)
{
    int64_t unit = q->subcluster_size;
    int ret;

    a->start = align_down(a->guest, unit);
    a->stop = align_up(a->end, unit);
    if (q->subclusters == 1) {
        return 0;
    }
    ret = has_old_data(q, cluster_start(q, a->guest));
    if (ret > 0) {
        a->start = cluster_start(q, a->guest);
    }
    if (ret >= 0) {
        ret = has_old_data(q, cluster_start(q, a->end - 1));
    }
    if (ret > 0) {
        a->stop = align_up(a->end, q->cluster_size);
    }
    return MIN(ret, 0);
}

static int coroutine_fn find_place(Qcow2 *q, int64_t run, Allocation *a)
{
    int64_t first = cluster_start(q, a->guest);
    int64_t host = first;
    int64_t n;
    int ret = qcow2_l2_prepare(q, a->guest);

    if (ret < 0) {
        return ret;
    }
    if (has_data_file(q)) {
        a->fresh = first >= MAX(q->data_end, node_size(q->data_file->node));
        n = run;
        q->data_end = MAX(q->data_end, first + run);
    } else {
        host = 0;
        qcow2_grow_ahead(q, run);
        n = qcow2_alloc_data_fresh(q, &host, run >> q->header.cluster_bits, &a->fresh);
        if (n < 0) {
            return (int)n;
        }
        n <<= q->header.cluster_bits;
    }
    a->end = MIN(a->end, first + n);
    ret = set_bounds(q, a);
    if (ret < 0 && !has_data_file(q)) {
        qcow2_unalloc(q, host, n);
    }
    a->host = host + (a->start - first);
    return ret;
}

/* 0: the range [guest, end) may be written; 1: no need, it has a place by now; or -errno. */
static int coroutine_fn begin_allocation(Qcow2 *q, Allocation *a)
{
    int64_t wanted = a->end;

    for (;;) {
        Qcow2Mapping map;
        int64_t run;
        int ret = qcow2_map(q, a->guest, wanted - a->guest, &map);

        if (ret < 0) {
            return ret;
        }
        if (map.type == MAP_DATA && map.copied) {
            return 1;
        }
        if (mapping_has_host(&map) && map.copied) {
            a->new_place = a->fresh = false;
            a->end = a->guest + map.bytes;
            ret = use_place(q, &map, a);
            if (ret == 0 && qcow2_in_flight_wait(q, a->start, a->stop - a->start)) {
                continue;
            }
            if (ret == 0) {
                qcow2_in_flight_add(q, &a->pending, a->start, a->stop - a->start);
            }
            return ret;
        }
        run = qcow2_run_without_place(q, a->guest, wanted);
        if (run <= 0) {
            return run < 0 ? (int)run : 1;
        }
        if (qcow2_in_flight_wait(q, cluster_start(q, a->guest), run)) {
            continue;
        }
        a->new_place = true;
        a->end = MIN(wanted, cluster_start(q, a->guest) + run);
        ret = find_place(q, run, a);
        if (ret == 0) {
            run = align_up(a->end, q->cluster_size) - cluster_start(q, a->guest);
            qcow2_in_flight_add(q, &a->pending, cluster_start(q, a->guest), run);
        }
        return ret;
    }
}

/* --- data and fill --- */

typedef struct Fill {
    int64_t head, tail; /* bytes before and behind the guest's that are written as well */
    bool zero_head, zero_tail;
    uint8_t *buf; /* old bytes: of the head, then of the tail */
} Fill;

static int coroutine_fn look_at_part(Qcow2 *q, const Allocation *a, int64_t guest, int64_t *bytes,
                                     bool *ret_zero)
{
    int ret = *bytes ? qcow2_range_is_zero(q, guest, *bytes) : 1;

    *ret_zero = ret > 0;
    if (*ret_zero && a->fresh) {
        *bytes = 0;
    }
    return MIN(ret, 0);
}

/* Old bytes that turn out to be zeroes need not be written to a place that reads as such. */
static void drop_zero_parts(const Allocation *a, Fill *fill)
{
    if (!a->fresh) {
        return;
    }
    if (!fill->zero_head && buffer_is_zero(fill->buf, (size_t)fill->head)) {
        fill->head = 0;
    }
    if (!fill->zero_tail && buffer_is_zero(fill->buf + (a->end - a->start), (size_t)fill->tail)) {
        fill->tail = 0;
    }
}

static int coroutine_fn read_fill(Qcow2 *q, const Allocation *a, Fill *fill)
{
    int64_t head = fill->zero_head ? 0 : fill->head;
    int64_t tail = fill->zero_tail ? 0 : fill->tail;
    int ret = 0;

    if (head + tail == 0) {
        return 0;
    }
    fill->buf = node_try_buffer(q->data_file->node, (size_t)(a->stop - a->start));
    if (!fill->buf) {
        return -ENOMEM;
    }
    qcow2_event(q, BLKDEBUG_EVENT_COW_READ);
    if (head && tail && a->end - a->guest <= head + tail) {
        ret = qcow2_read_buf(q, a->start, a->stop - a->start, fill->buf);
    } else {
        if (head) {
            ret = qcow2_read_buf(q, a->start, head, fill->buf);
        }
        if (tail && ret == 0) {
            ret = qcow2_read_buf(q, a->end, tail, fill->buf + (a->end - a->start));
        }
    }
    if (ret == 0) {
        drop_zero_parts(a, fill);
    }
    return ret;
}

static int coroutine_fn write_filled(Qcow2 *q, const Allocation *a, const Fill *fill, IoVector *vec,
                                     size_t at, unsigned flags)
{
    int64_t host = a->host + (a->guest - a->start) - fill->head;
    IoVector all;
    int ret;

    iov_init(&all);
    if (fill->zero_head) {
        qcow2_add_zeroes(&all, fill->head);
    } else if (fill->head) {
        iov_add(&all, fill->buf, (size_t)fill->head);
    }
    iov_add_slice(&all, vec, at, (size_t)(a->end - a->guest));
    if (fill->zero_tail) {
        qcow2_add_zeroes(&all, fill->tail);
    } else if (fill->tail) {
        iov_add(&all, fill->buf + (a->end - a->start), (size_t)fill->tail);
    }
    qcow2_event(q, fill->buf ? BLKDEBUG_EVENT_COW_WRITE : BLKDEBUG_EVENT_WRITE_AIO);
    ret = child_co_pwritev(q->data_file, host, (int64_t)all.size, &all, flags);
    iov_done(&all);
    return ret;
}

static int coroutine_fn write_data(Qcow2 *q, const Allocation *a, IoVector *vec, size_t at,
                                   unsigned flags)
{
    Fill fill = { .head = a->guest - a->start, .tail = a->stop - a->end };
    int ret = look_at_part(q, a, a->start, &fill.head, &fill.zero_head);

    if (ret == 0) {
        ret = look_at_part(q, a, a->end, &fill.tail, &fill.zero_tail);
    }
    if (ret == 0 && fill.head + fill.tail == 0) {
        return write_in_place(q, a->host + (a->guest - a->start), a->end - a->guest, vec, at,
                              flags);
    }
    if (ret == 0) {
        ret = read_fill(q, a, &fill);
    }
    if (ret == 0) {
        ret = write_filled(q, a, &fill, vec, at, flags);
    }
    buffer_free(fill.buf);
    return ret;
}

/* --- linking, under `lock` --- */

static int coroutine_fn link_clusters(Qcow2 *q, const Allocation *a)
{
    int64_t cluster = cluster_start(q, a->start);
    int64_t host = a->host - (a->start - cluster);
    Qcow2Entry entry;
    int ret = qcow2_entry_lock(q, cluster, &entry);

    if (ret < 0) {
        return ret;
    }
    for (;; cluster += q->cluster_size, host += q->cluster_size) {
        uint64_t mask = 0;

        if (q->subclusters > 1) {
            mask = qcow2_subcluster_mask(q, cluster, a->start, a->stop);
        }
        if (a->new_place) {
            entry.bitmap &= ~(uint64_t)UINT32_MAX;
        }
        qcow2_entry_set(q, &entry, (uint64_t)host | QCOW2_COPIED,
                        (entry.bitmap & ~(mask << 32)) | mask, QCOW2_DISCARD_NEVER);
        if (cluster + q->cluster_size >= a->stop) {
            break;
        }
        qcow2_entry_next(q, &entry);
    }
    g_mutex_unlock(&q->table_lock);
    return 0;
}

static int coroutine_fn end_allocation(Qcow2 *q, Allocation *a, int ret)
{
    int64_t first = cluster_start(q, a->start);

    if (ret == 0 && atomic_load(&q->corrupt)) {
        ret = -EIO;
    }
    if (ret == 0) {
        ret = link_clusters(q, a);
    }
    if (ret < 0 && a->new_place && !has_data_file(q)) {
        qcow2_unalloc(q, a->host - (a->start - first), align_up(a->stop, q->cluster_size) - first);
    }
    qcow2_in_flight_remove(q, &a->pending);
    return ret;
}

/* --- requests --- */

/* A piece of the range that is written as one: its clusters are in flight when they are new. */
typedef struct WriteStep {
    Qcow2 *q;
    int64_t guest, bytes;
    IoVector *vec;
    size_t at;
    unsigned flags;
    bool allocating;
    Allocation a; /* if so; else: */
    int64_t host;
} WriteStep;

/* Find out where the first piece of the range goes; ends with step->bytes. */
static int coroutine_fn begin_step(WriteStep *step)
{
    Qcow2 *q = step->q;

    for (;;) {
        Qcow2Mapping map;
        int ret = qcow2_map(q, step->guest, step->bytes, &map);

        if (ret < 0) {
            return ret;
        }
        if (map.type == MAP_DATA && map.copied) {
            step->allocating = false;
            step->host = map.host;
            step->bytes = map.bytes;
            return G_UNLIKELY(map.suspect) ? qcow2_check_overlap(q, 0, map.host, map.bytes) : 0;
        }
        step->allocating = true;
        step->a = (Allocation){ .guest = step->guest, .end = step->guest + step->bytes };
        co_mutex_lock(&q->lock);
        ret = begin_allocation(q, &step->a);
        co_mutex_unlock(&q->lock);
        if (ret <= 0) {
            step->bytes = step->a.end - step->guest;
            return ret;
        }
    }
}

static int coroutine_fn finish_step(WriteStep *step)
{
    Qcow2 *q = step->q;
    int ret;

    if (!step->allocating) {
        return write_in_place(q, step->host, step->bytes, step->vec, step->at, step->flags);
    }
    ret = write_data(q, &step->a, step->vec, step->at, step->flags);
    co_mutex_lock(&q->lock);
    ret = end_allocation(q, &step->a, ret);
    co_mutex_unlock(&q->lock);
    return ret;
}

typedef struct WritePart {
    Qcow2Parts *parts;
    int slot;
    WriteStep step;
} WritePart;

static void coroutine_fn write_part(void *opaque)
{
    WritePart *part = opaque;
    int ret = finish_step(&part->step);

    qcow2_parts_end(part->parts, part->slot, ret);
}

/* The range behind the first step, which was begun. */
static int coroutine_fn write_steps(WritePart *first, int64_t bytes)
{
    Qcow2Parts *parts = first->parts;
    const WriteStep *begun = &first->step;
    WritePart slots[QCOW2_PARTS_MAX];
    int64_t guest = begun->guest;
    int64_t done = begun->bytes;
    size_t at = begun->at;
    int ret = 0;

    first->slot = qcow2_parts_take(parts);
    coroutine_start(write_part, first);
    while (done < bytes && ret == 0) {
        int slot = qcow2_parts_take(parts);
        WritePart *part = &slots[MAX(slot, 0)];

        if (slot < 0) {
            break;
        }
        *part = (WritePart){ parts,
                             slot,
                             { .q = begun->q,
                               .guest = guest + done,
                               .bytes = bytes - done,
                               .vec = begun->vec,
                               .at = at + (size_t)done,
                               .flags = begun->flags } };
        ret = begin_step(&part->step);
        if (ret < 0) {
            qcow2_parts_end(parts, slot, ret);
            break;
        }
        done += part->step.bytes;
        if (done == bytes) {
            write_part(part);
        } else {
            coroutine_start(write_part, part);
        }
    }
    return qcow2_parts_wait(parts, ret);
}

/* Steps, of which most often there is one. */
static int coroutine_fn write_stepwise(Qcow2 *q, int64_t guest, int64_t bytes, IoVector *vec,
                                       size_t at, unsigned flags)
{
    Qcow2Parts parts = { 0 };
    WritePart first = {
        &parts, 0, { .q = q, .guest = guest, .bytes = bytes, .vec = vec, .at = at, .flags = flags }
    };
    int ret = begin_step(&first.step);

    if (ret < 0) {
        return ret;
    }
    return first.step.bytes == bytes ? finish_step(&first.step) : write_steps(&first, bytes);
}

int coroutine_fn qcow2_write(Qcow2 *q, int64_t guest, int64_t bytes, IoVector *vec, size_t at,
                             unsigned flags)
{
    Qcow2Mapping map;
    int ret = bytes ? qcow2_map(q, guest, bytes, &map) : 0;

    if (ret < 0 || bytes == 0) {
        return ret;
    }
    if (map.bytes == bytes && map.type == MAP_DATA && map.copied && !map.suspect) {
        return write_in_place(q, map.host, bytes, vec, at, flags);
    }
    return write_stepwise(q, guest, bytes, vec, at, flags);
}

int coroutine_fn qcow2_write_zero_data(Qcow2 *q, int64_t guest, int64_t bytes, unsigned flags)
{
    int ret = 0;

    for (int64_t done = 0; done < bytes && ret == 0; done += MiB) {
        int64_t piece = MIN(bytes - done, MiB);
        IoVector vec;

        iov_init(&vec);
        qcow2_add_zeroes(&vec, piece);
        ret = qcow2_write(q, guest + done, piece, &vec, 0, flags);
        iov_done(&vec);
    }
    return ret;
}

static int coroutine_fn write_request(Qcow2 *q, int64_t offset, int64_t bytes, IoVector *vec,
                                      unsigned flags)
{
    unsigned epoch = qcow2_request_begin(q);
    int ret;

    if (flags & REQ_WRITE_COMPRESSED) {
        ret = qcow2_write_compressed(q, offset, bytes, vec, flags & ~REQ_WRITE_COMPRESSED);
    } else {
        ret = qcow2_write(q, offset, bytes, vec, 0, flags);
    }
    qcow2_request_end(q, epoch);
    return ret;
}

int coroutine_fn qcow2_co_pwritev(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                                  unsigned flags)
{
    Qcow2 *q = node->state;
    int ret;

    if (G_UNLIKELY(atomic_load_explicit(&q->corrupt, memory_order_relaxed))) {
        return -EIO;
    }
    ret = write_request(q, offset, bytes, vec, flags);
    if (G_UNLIKELY(ret == -ENOSPC) && qcow2_frees_make_room(q)) {
        ret = write_request(q, offset, bytes, vec, flags);
    }
    return ret ? ret : qcow2_balance(q);
}
