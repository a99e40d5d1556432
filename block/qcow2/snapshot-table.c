/* SPDX-License-Identifier: MIT */
/*
 * The table of internal snapshots: read, checked, written.
 *
 * The table is replaced as a whole: the new one goes to clusters of its own and is durable before
 * the header points to it (Q1, Q3), in one write (Q6); the old one is freed after that (Q4).
 */
#include "snapshot.h"
#include "util/error.h"
#include "util/size.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define READ_CHUNK (64 * KiB)
#define ENTRY_PAD  8

/* --- memory --- */

void qcow2_snapshot_done(Qcow2Snapshot *snapshot)
{
    g_free(snapshot->id);
    g_free(snapshot->name);
    g_free(snapshot->unknown_extra);
    *snapshot = (Qcow2Snapshot){ 0 };
}

void qcow2_snapshots_done(Qcow2 *q)
{
    for (uint32_t i = 0; i < q->n_snapshots; i++) {
        qcow2_snapshot_done(&q->snapshots[i]);
    }
    g_clear_pointer(&q->snapshots, g_free);
    q->n_snapshots = 0;
}

/* --- reading --- */

/* The table as a stream of bytes. */
typedef struct TableReader {
    Qcow2 *q;
    int64_t begin, at;
    int64_t chunk_offset; /* of `chunk`, which holds READ_CHUNK bytes; -1: none yet */
    uint8_t *chunk;
    int64_t tolerant_end; /* not 0: too much extra data is passed over, and when it would end beyond
                             this it is taken to be as much as usual */
} TableReader;

static int coroutine_fn take(TableReader *reader, void *out, int64_t bytes)
{
    uint8_t *to = out;

    while (bytes > 0) {
        int64_t chunk = align_down(reader->at, READ_CHUNK);
        int64_t n = MIN(bytes, chunk + READ_CHUNK - reader->at);

        if (chunk != reader->chunk_offset) {
            int ret = qcow2_meta_read(reader->q, chunk, reader->chunk, READ_CHUNK);

            reader->chunk_offset = ret < 0 ? -1 : chunk;
            if (ret < 0) {
                return ret;
            }
        }
        memcpy(to, reader->chunk + (reader->at - chunk), n);
        to += n;
        reader->at += n;
        bytes -= n;
    }
    return 0;
}

static int coroutine_fn take_text(TableReader *reader, size_t bytes, char **ret_text)
{
    g_autofree char *text = g_malloc(bytes + 1);
    int ret = take(reader, text, (int64_t)bytes);

    text[bytes] = '\0';
    *ret_text = ret < 0 ? NULL : g_steal_pointer(&text);
    return ret;
}

static int coroutine_fn take_extra(TableReader *reader, uint32_t bytes, Qcow2Snapshot *ret_snapshot)
{
    Qcow2DiskSnapshotExtra extra = { 0 };
    uint32_t known = MIN(bytes, sizeof(extra));
    int ret = take(reader, &extra, known);

    if (ret == 0 && bytes > QCOW2_MAX_SNAPSHOT_EXTRA) {
        reader->at += bytes - known;
    } else if (ret == 0 && bytes > known) {
        ret_snapshot->unknown_extra_bytes = bytes - known;
        ret_snapshot->unknown_extra = g_malloc(bytes - known);
        ret = take(reader, ret_snapshot->unknown_extra, bytes - known);
    }
    if (bytes >= offsetof(Qcow2DiskSnapshotExtra, disk_bytes)) {
        ret_snapshot->vm_state_bytes = GUINT64_FROM_BE(extra.vm_state_bytes);
    }
    if (bytes >= offsetof(Qcow2DiskSnapshotExtra, icount)) {
        ret_snapshot->disk_size = (int64_t)GUINT64_FROM_BE(extra.disk_bytes);
    }
    if (bytes >= sizeof(extra)) {
        ret_snapshot->icount = GUINT64_FROM_BE(extra.icount);
    }
    return ret;
}

/* Fails as a read does, or with -EFBIG for an entry that is too large. */
static int coroutine_fn take_entry(TableReader *reader, Qcow2Snapshot *ret_snapshot)
{
    Qcow2DiskSnapshot disk;
    int ret = take(reader, &disk, sizeof(disk));
    uint32_t extra_bytes;

    if (ret < 0) {
        return ret;
    }
    *ret_snapshot = (Qcow2Snapshot){
        .l1_offset = (int64_t)GUINT64_FROM_BE(disk.l1_offset),
        .l1_entries = GUINT32_FROM_BE(disk.l1_entries),
        .date_sec = GUINT32_FROM_BE(disk.date_sec),
        .date_nsec = GUINT32_FROM_BE(disk.date_nsec),
        .vm_clock_nsec = GUINT64_FROM_BE(disk.vm_clock_nsec),
        .vm_state_bytes = GUINT32_FROM_BE(disk.vm_state_bytes),
        .disk_size = reader->q->header.size,
        .icount = UINT64_MAX,
    };
    extra_bytes = GUINT32_FROM_BE(disk.extra_bytes);
    ret_snapshot->extra_bytes = extra_bytes;
    if (extra_bytes > QCOW2_MAX_SNAPSHOT_EXTRA && !reader->tolerant_end) {
        return -EFBIG;
    }
    if (extra_bytes > QCOW2_MAX_SNAPSHOT_EXTRA && reader->at + extra_bytes > reader->tolerant_end) {
        extra_bytes = sizeof(Qcow2DiskSnapshotExtra);
    }
    ret = take_extra(reader, extra_bytes, ret_snapshot);
    if (ret == 0) {
        ret = take_text(reader, GUINT16_FROM_BE(disk.id_bytes), &ret_snapshot->id);
    }
    if (ret == 0) {
        ret = take_text(reader, GUINT16_FROM_BE(disk.name_bytes), &ret_snapshot->name);
    }
    reader->at = reader->begin + align_up(reader->at - reader->begin, ENTRY_PAD);
    return ret;
}

static int coroutine_fn read_entries(Qcow2 *q, TableReader *reader, GError **error)
{
    for (uint32_t i = 0; i < q->header.n_snapshots; i++) {
        int ret = take_entry(reader, &q->snapshots[i]);

        q->n_snapshots = i + 1;
        if (ret == -EFBIG) {
            merino_error(error, "Too much extra metadata in snapshot table entry %" PRIu32, i);
            merino_error_hint(error, "You can force-remove this extra metadata by repairing the "
                                     "image");
            return ret;
        }
        if (ret < 0) {
            merino_error_errno(error, -ret, "Could not read snapshots");
            return ret;
        }
        if (reader->at - reader->begin > QCOW2_MAX_SNAPSHOT_DIR) {
            merino_error(error, "Snapshot table too large");
            return -EFBIG;
        }
    }
    return 0;
}

int coroutine_fn qcow2_snapshots_read(Qcow2 *q, GError **error)
{
    TableReader reader = { .q = q,
                           .begin = q->header.snapshots_offset,
                           .at = q->header.snapshots_offset,
                           .chunk_offset = -1 };
    int ret;

    if (q->header.n_snapshots == 0) {
        return 0;
    }
    reader.chunk = g_malloc(READ_CHUNK);
    q->snapshots = g_new0(Qcow2Snapshot, q->header.n_snapshots);
    ret = read_entries(q, &reader, error);
    q->snapshot_table_bytes = reader.at - reader.begin;
    g_free(reader.chunk);
    if (ret < 0) {
        qcow2_snapshots_done(q);
    }
    return ret;
}

/* --- reading what may be damaged --- */

void qcow2_snapshot_table_done(Qcow2SnapshotTable *table)
{
    for (uint32_t i = 0; i < table->n; i++) {
        qcow2_snapshot_done(&table->snapshots[i]);
    }
    g_free(table->snapshots);
    *table = (Qcow2SnapshotTable){ 0 };
}

/* Where there are only zeroes, the table has ended: an entry has an identifier at least. */
static bool is_blank(const Qcow2Snapshot *snapshot)
{
    return snapshot->l1_offset == 0 && snapshot->l1_entries == 0 && !*snapshot->id &&
           !*snapshot->name && snapshot->extra_bytes == 0;
}

int coroutine_fn qcow2_snapshots_scan(Qcow2 *q, int64_t offset, uint32_t n, Qcow2SnapshotTable *ret)
{
    int64_t end = align_up(node_size(q->node->file->node), q->cluster_size);
    TableReader reader = {
        .q = q, .begin = offset, .at = offset, .chunk_offset = -1, .tolerant_end = end
    };
    int error = 0;

    *ret = (Qcow2SnapshotTable){ .snapshots = g_new0(Qcow2Snapshot, MAX(n, 1)) };
    reader.chunk = g_malloc(READ_CHUNK);
    while (ret->n < n && error == 0) {
        Qcow2Snapshot *snapshot = &ret->snapshots[ret->n];

        error = reader.at < end ? take_entry(&reader, snapshot) : -EFBIG;
        if (error == 0 && (reader.at > end || reader.at - offset > QCOW2_MAX_SNAPSHOT_DIR ||
                           is_blank(snapshot))) {
            error = -EFBIG;
        }
        if (error < 0) {
            qcow2_snapshot_done(snapshot);
            break;
        }
        ret->n++;
        ret->bytes = reader.at - offset;
    }
    g_free(reader.chunk);
    return error == -EFBIG ? 0 : error;
}

/* --- writing --- */

static void put_entry(GByteArray *out, const Qcow2Snapshot *snapshot)
{
    static const uint8_t zeroes[ENTRY_PAD];
    size_t id_bytes = strlen(snapshot->id), name_bytes = strlen(snapshot->name);
    Qcow2DiskSnapshotExtra extra = {
        .vm_state_bytes = GUINT64_TO_BE(snapshot->vm_state_bytes),
        .disk_bytes = GUINT64_TO_BE((uint64_t)snapshot->disk_size),
        .icount = GUINT64_TO_BE(snapshot->icount),
    };
    Qcow2DiskSnapshot disk = {
        .l1_offset = GUINT64_TO_BE((uint64_t)snapshot->l1_offset),
        .l1_entries = GUINT32_TO_BE(snapshot->l1_entries),
        .id_bytes = GUINT16_TO_BE((uint16_t)id_bytes),
        .name_bytes = GUINT16_TO_BE((uint16_t)name_bytes),
        .date_sec = GUINT32_TO_BE(snapshot->date_sec),
        .date_nsec = GUINT32_TO_BE(snapshot->date_nsec),
        .vm_clock_nsec = GUINT64_TO_BE(snapshot->vm_clock_nsec),
        .vm_state_bytes = snapshot->vm_state_bytes > UINT32_MAX
                              ? 0
                              : GUINT32_TO_BE((uint32_t)snapshot->vm_state_bytes),
        .extra_bytes = GUINT32_TO_BE((uint32_t)sizeof(extra) + snapshot->unknown_extra_bytes),
    };

    g_byte_array_append(out, (const uint8_t *)&disk, sizeof(disk));
    g_byte_array_append(out, (const uint8_t *)&extra, sizeof(extra));
    if (snapshot->unknown_extra_bytes) {
        g_byte_array_append(out, snapshot->unknown_extra, snapshot->unknown_extra_bytes);
    }
    g_byte_array_append(out, (const uint8_t *)snapshot->id, (guint)id_bytes);
    g_byte_array_append(out, (const uint8_t *)snapshot->name, (guint)name_bytes);
    g_byte_array_append(out, zeroes, -out->len & (ENTRY_PAD - 1));
}

static int64_t table_bytes(const Qcow2 *q)
{
    int64_t bytes = 0;

    for (uint32_t i = 0; i < q->n_snapshots; i++) {
        const Qcow2Snapshot *s = &q->snapshots[i];

        bytes += align_up((int64_t)(sizeof(Qcow2DiskSnapshot) + sizeof(Qcow2DiskSnapshotExtra) +
                                    s->unknown_extra_bytes + strlen(s->id) + strlen(s->name)),
                          ENTRY_PAD);
    }
    return bytes;
}

int qcow2_snapshot_fail(GError **error, int ret, const char *what)
{
    merino_error_errno(error, -ret, "%s", what);
    return ret;
}

void coroutine_fn qcow2_snapshot_free(Qcow2 *q, int64_t host, int64_t bytes)
{
    if (bytes) {
        co_mutex_lock(&q->lock);
        qcow2_free(q, host, bytes, QCOW2_DISCARD_SNAPSHOT);
        co_mutex_unlock(&q->lock);
    }
}

/* Clusters with the table, durable together with their refcounts. Returns the offset or -errno. */
static int64_t coroutine_fn write_aside(Qcow2 *q, int64_t bytes, GError **error)
{
    GByteArray *out;
    int64_t host;
    int ret;

    co_mutex_lock(&q->lock);
    host = qcow2_alloc(q, bytes);
    co_mutex_unlock(&q->lock);
    if (host < 0) {
        return qcow2_snapshot_fail(error, (int)host,
                                   "Could not allocate clusters for the snapshot table");
    }
    out = g_byte_array_sized_new((guint)bytes);
    for (uint32_t i = 0; i < q->n_snapshots; i++) {
        put_entry(out, &q->snapshots[i]);
    }
    ret = qcow2_meta_write(q, host, out->data, out->len, 0);
    g_byte_array_unref(out);
    if (ret == 0) {
        ret = qcow2_write_all(q);
    }
    if (ret < 0) {
        qcow2_snapshot_free(q, host, bytes);
        return qcow2_snapshot_fail(error, ret, "Could not write the snapshot table");
    }
    return host;
}

int coroutine_fn qcow2_snapshots_write(Qcow2 *q, bool *ret_unsure, GError **error)
{
    int64_t old_offset = q->header.snapshots_offset, host = 0;
    uint32_t old_n = q->header.n_snapshots;
    int64_t bytes = table_bytes(q);
    int64_t old_bytes = q->snapshot_table_bytes;
    int ret;

    *ret_unsure = false;
    if (q->n_snapshots > QCOW2_MAX_SNAPSHOTS || bytes > QCOW2_MAX_SNAPSHOT_DIR) {
        merino_error(error, "Too many snapshots");
        return -EFBIG;
    }
    if (bytes) {
        host = write_aside(q, bytes, error);
        if (host < 0) {
            return (int)host;
        }
    }
    q->header.snapshots_offset = host;
    q->header.n_snapshots = q->n_snapshots;
    ret = qcow2_header_commit(q, error);
    if (ret < 0) {
        q->header.snapshots_offset = old_offset;
        q->header.n_snapshots = old_n;
        *ret_unsure = qcow2_header_commit(q, NULL) < 0;
        if (!*ret_unsure) {
            qcow2_snapshot_free(q, host, bytes);
        }
        return ret;
    }
    q->snapshot_table_bytes = bytes;
    qcow2_snapshot_free(q, old_offset, old_bytes);
    return 0;
}
