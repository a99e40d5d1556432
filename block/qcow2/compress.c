/* SPDX-License-Identifier: MIT */
/*
 * Compressed clusters. Packing and unpacking are done in worker threads, but for unpacking clusters
 * so small that a worker would be asked for longer than it works.
 *
 * zlib clusters are raw deflate with a window of 4 KiB, as the format wants; zstd clusters are
 * frames. What an entry says of the length are whole sectors: the stream itself ends before.
 */
#include "in-flight.h"
#include "parts.h"
#include "requests.h"
#include "util/event-loop.h"
#include "util/size.h"

#include <errno.h>
#include <zlib.h>
#include <zstd.h>

#define DEFLATE_WINDOW_BITS 12
#define DEFLATE_MEMORY      9

#define UNPACK_HERE (4 * KiB) /* up to this size, requests unpack clusters themselves */

typedef struct Job {
    bool zstd;
    const uint8_t *in;
    size_t in_bytes;
    uint8_t *out;
    size_t out_bytes; /* room; when packing, what was used of it */
} Job;

/* --- mostly in a worker --- */

static int inflate_job(Job *job)
{
    z_stream stream = { .next_in = (Bytef *)job->in,
                        .avail_in = (uInt)job->in_bytes,
                        .next_out = job->out,
                        .avail_out = (uInt)job->out_bytes };
    int ret;

    if (inflateInit2(&stream, -DEFLATE_WINDOW_BITS) != Z_OK) {
        return -EIO;
    }
    ret = inflate(&stream, Z_FINISH);
    inflateEnd(&stream);
    return (ret == Z_STREAM_END || ret == Z_BUF_ERROR) && stream.avail_out == 0 ? 0 : -EIO;
}

static int unzstd_job(Job *job)
{
    ZSTD_DStream *stream = ZSTD_createDStream();
    ZSTD_inBuffer in = { job->in, job->in_bytes, 0 };
    ZSTD_outBuffer out = { job->out, job->out_bytes, 0 };
    int ret = stream ? 0 : -ENOMEM;

    while (ret == 0 && out.pos < out.size) {
        size_t in_before = in.pos, out_before = out.pos;
        size_t more = ZSTD_decompressStream(stream, &out, &in);

        if (ZSTD_isError(more) || (in.pos == in_before && out.pos == out_before)) {
            ret = -EIO;
        }
    }
    ZSTD_freeDStream(stream);
    return ret;
}

static int unpack(void *opaque)
{
    Job *job = opaque;

    return job->zstd ? unzstd_job(job) : inflate_job(job);
}

/* Packing: 0, or -ENOSPC when it does not fit, or -EIO. */
static int deflate_job(Job *job)
{
    z_stream stream = { .next_in = (Bytef *)job->in,
                        .avail_in = (uInt)job->in_bytes,
                        .next_out = job->out,
                        .avail_out = (uInt)job->out_bytes };
    int ret;

    if (deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -DEFLATE_WINDOW_BITS,
                     DEFLATE_MEMORY, Z_DEFAULT_STRATEGY) != Z_OK) {
        return -EIO;
    }
    ret = deflate(&stream, Z_FINISH);
    job->out_bytes -= stream.avail_out;
    deflateEnd(&stream);
    return ret == Z_STREAM_END ? 0 : -ENOSPC;
}

static int zstd_job(Job *job)
{
    size_t used =
        ZSTD_compress(job->out, job->out_bytes, job->in, job->in_bytes, ZSTD_CLEVEL_DEFAULT);

    if (ZSTD_isError(used)) {
        return -ENOSPC;
    }
    job->out_bytes = used;
    return 0;
}

static int pack(void *opaque)
{
    Job *job = opaque;

    return job->zstd ? zstd_job(job) : deflate_job(job);
}

/* --- reading --- */

static bool uses_zstd(const Qcow2 *q)
{
    return q->header.compression_type == QCOW2_COMPRESSION_TYPE_ZSTD;
}

int coroutine_fn qcow2_read_compressed(Qcow2 *q, uint64_t entry, void *buf)
{
    int64_t host, bytes;
    uint8_t *packed;
    Job job;
    int ret;

    qcow2_compressed_range(q, entry, &host, &bytes);
    packed = node_try_buffer(q->node->file->node, (size_t)bytes);
    if (!packed) {
        return -ENOMEM;
    }
    qcow2_event(q, BLKDEBUG_EVENT_READ_COMPRESSED);
    ret = child_co_pread(q->node->file, host, bytes, packed);
    if (ret == 0) {
        job = (Job){ uses_zstd(q), packed, (size_t)bytes, buf, (size_t)q->cluster_size };
        ret = q->cluster_size <= UNPACK_HERE ? unpack(&job) : co_run_in_worker(unpack, &job);
    }
    buffer_free(packed);
    return ret;
}

/* --- writing --- */

static unsigned offset_bits(const Qcow2 *q)
{
    return 62 - (q->header.cluster_bits - 8);
}

static uint64_t make_entry(const Qcow2 *q, int64_t host, int64_t bytes)
{
    uint64_t more_sectors = (uint64_t)((host + bytes - 1) / 512 - host / 512);

    return QCOW2_L2_COMPRESSED | more_sectors << offset_bits(q) | (uint64_t)host;
}

/* Under `lock`, like the next. A place for the bytes, or -errno. */
static int64_t coroutine_fn begin_packed(Qcow2 *q, int64_t guest, int64_t bytes,
                                         Qcow2Pending *pending)
{
    int64_t host;
    int ret;

    while (qcow2_in_flight_wait(q, guest, q->cluster_size)) {
    }
    ret = qcow2_l2_prepare(q, guest);
    host = ret ? ret : qcow2_alloc_compressed(q, bytes);
    if (host > 0 && host + bytes > INT64_C(1) << offset_bits(q)) {
        qcow2_unalloc(q, host, bytes);
        return -ENOSPC;
    }
    if (host > 0) {
        qcow2_in_flight_add(q, pending, guest, q->cluster_size);
    }
    return host;
}

static int coroutine_fn end_packed(Qcow2 *q, int64_t guest, int64_t host, int64_t bytes, int ret,
                                   Qcow2Pending *pending)
{
    Qcow2Entry entry;

    if (ret == 0 && atomic_load(&q->corrupt)) {
        ret = -EIO;
    }
    ret = ret ? ret : qcow2_entry_lock(q, guest, &entry);
    if (ret == 0) {
        qcow2_entry_set(q, &entry, make_entry(q, host, bytes), 0, QCOW2_DISCARD_NEVER);
        g_mutex_unlock(&q->table_lock);
    } else {
        qcow2_unalloc(q, host, bytes);
    }
    qcow2_in_flight_remove(q, pending);
    return ret;
}

static int coroutine_fn store_packed(Qcow2 *q, int64_t guest, const uint8_t *packed, int64_t bytes,
                                     unsigned flags)
{
    Qcow2Pending pending;
    int64_t host;
    int ret;

    co_mutex_lock(&q->lock);
    host = begin_packed(q, guest, bytes, &pending);
    co_mutex_unlock(&q->lock);
    if (host < 0) {
        return (int)host;
    }
    qcow2_event(q, BLKDEBUG_EVENT_WRITE_COMPRESSED);
    ret = child_co_pwrite(q->node->file, host, bytes, packed, flags);
    co_mutex_lock(&q->lock);
    ret = end_packed(q, guest, host, bytes, ret, &pending);
    co_mutex_unlock(&q->lock);
    return ret;
}

/* One cluster; what the guest did not give of the last one is zeroes. -ENOSPC: it does not shrink.
 */
static int coroutine_fn write_packed(Qcow2 *q, int64_t guest, int64_t bytes, IoVector *vec,
                                     size_t at, uint8_t *plain, unsigned flags)
{
    uint8_t *packed = plain + q->cluster_size;
    Job job = { uses_zstd(q), plain, (size_t)q->cluster_size, packed, (size_t)q->cluster_size - 1 };
    int ret;

    iov_to_buf(vec, at, plain, (size_t)bytes);
    memset(plain + bytes, 0, (size_t)(q->cluster_size - bytes));
    ret = co_run_in_worker(pack, &job);
    return ret ? ret : store_packed(q, guest, packed, (int64_t)job.out_bytes, flags);
}

typedef struct PackPart {
    Qcow2Parts *parts;
    int slot;
    Qcow2 *q;
    int64_t guest, bytes;
    IoVector *vec;
    size_t at;
    unsigned flags;
} PackPart;

static void coroutine_fn pack_part(void *opaque)
{
    PackPart *part = opaque;
    Qcow2 *q = part->q;
    uint8_t *buf = node_try_buffer(q->node->file->node, (size_t)q->cluster_size * 2);
    int ret = -ENOMEM;

    if (buf) {
        ret = write_packed(q, part->guest, part->bytes, part->vec, part->at, buf, part->flags);
    }
    buffer_free(buf);
    if (ret == -ENOSPC) {
        ret = qcow2_write(q, part->guest, part->bytes, part->vec, part->at, part->flags);
    }
    qcow2_parts_end(part->parts, part->slot, ret);
}

int coroutine_fn qcow2_write_compressed(Qcow2 *q, int64_t guest, int64_t bytes, IoVector *vec,
                                        unsigned flags)
{
    Qcow2Parts parts = { 0 };
    PackPart slots[QCOW2_PARTS_MAX];

    if (has_data_file(q)) {
        return -ENOTSUP;
    }
    if (cluster_offset(q, guest) ||
        (cluster_offset(q, bytes) && guest + bytes != node_size(q->node))) {
        return -EINVAL;
    }
    for (int64_t done = 0; done < bytes; done += q->cluster_size) {
        int64_t piece = MIN(bytes - done, q->cluster_size);
        int slot = qcow2_parts_take(&parts);

        if (slot < 0) {
            break;
        }
        slots[slot] = (PackPart){ &parts, slot, q, guest + done, piece, vec, (size_t)done, flags };
        coroutine_start(pack_part, &slots[slot]);
    }
    return qcow2_parts_wait(&parts, 0);
}
