/* SPDX-License-Identifier: MIT */
/*
 * Internal snapshots: taken, returned to, deleted, listed.
 *
 * Each verb goes from one state of the file to the next by one write of the header, through the
 * snapshot table (create, delete) or the place of the L1 table (goto). Before that write everything
 * the new state refers to is there and counted; after it, what only the old state referred to is
 * freed. So a crash leaks clusters at most. While refcounts differ from the copied flags, the
 * flags are clear (Q5); that costs copies and not data, yet a check finds fault with it, so the
 * image is marked dirty until flags and refcounts agree again, where the version has such a mark.
 *
 * Going to a snapshot changes the disk, so bitmaps that record get what differs before it does
 * (snapshot-diff.c).
 *
 * The node is drained: nothing else changes tables meanwhile.
 */
#include "snapshot.h"
#include "bitmaps.h"
#include "header.h"
#include "options.h"
#include "runtime.h"
#include "snapshot-refs.h"
#include "util/error.h"
#include "util/size.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define NSEC_PER_SEC INT64_C(1000000000)

/* --- common steps --- */

/* Everything is in the file, refcounts too, and nothing in the caches. */
static int coroutine_fn settle(Qcow2 *q, GError **error)
{
    int ret = qcow2_write_all(q);

    if (ret == 0) {
        ret = qcow2_empty_caches(q);
    }
    return ret < 0 ? qcow2_snapshot_fail(error, ret, "Could not write the tables of the image") : 0;
}

/* The same, and a mark for the time until settle_flags(). */
static int coroutine_fn settle_and_announce(Qcow2 *q, GError **error)
{
    int ret = settle(q, error);

    if (ret == 0 && q->header.version >= 3) {
        ret = qcow2_set_features(q, q->header.incompatible | QCOW2_INCOMPAT_DIRTY,
                                 q->header.autoclear, error);
        q->flags_behind = ret == 0;
    }
    return ret;
}

/* What was freed becomes free, the flags follow, and the mark goes. */
static int coroutine_fn settle_flags(Qcow2 *q, GError **error)
{
    int ret = settle(q, error);

    if (ret == 0) {
        ret = qcow2_copied_flags_set(q, true, error);
    }
    if (ret == 0) {
        q->flags_behind = false;
        ret = qcow2_mark_clean(q);
        if (ret < 0) {
            qcow2_snapshot_fail(error, ret, "Could not write the tables of the image");
        }
    }
    qcow2_overlap_refresh(q);
    return ret;
}

/* An L1 table without flags in clusters of its own, durable with its refcounts. */
static int64_t coroutine_fn write_l1(Qcow2 *q, const uint64_t *l1, uint32_t entries, GError **error)
{
    int64_t bytes = (int64_t)entries * 8, host;
    g_autofree uint64_t *disk = g_new(uint64_t, MAX(entries, 1));
    int ret;

    if (entries == 0) {
        return 0;
    }
    co_mutex_lock(&q->lock);
    host = qcow2_alloc(q, bytes);
    co_mutex_unlock(&q->lock);
    if (host < 0) {
        return qcow2_snapshot_fail(error, (int)host, "Could not allocate clusters for an L1 table");
    }
    for (uint32_t i = 0; i < entries; i++) {
        disk[i] = GUINT64_TO_BE(l1[i] & ~QCOW2_COPIED);
    }
    ret = qcow2_meta_write(q, host, disk, bytes, 0);
    if (ret == 0) {
        ret = qcow2_sync(q);
    }
    if (ret == 0) {
        ret = qcow2_write_all(q);
    }
    if (ret < 0) {
        qcow2_snapshot_free(q, host, bytes);
        return qcow2_snapshot_fail(error, ret, "Could not write an L1 table");
    }
    return host;
}

static int find(const Qcow2 *q, const char *id, GError **error)
{
    for (uint32_t i = 0; i < q->n_snapshots; i++) {
        if (strcmp(q->snapshots[i].id, id) == 0) {
            return (int)i;
        }
    }
    merino_error(error, "Can't find the snapshot");
    return -ENOENT;
}

static uint64_t *copy_active_l1(Qcow2 *q)
{
    uint64_t *copy;

    g_mutex_lock(&q->table_lock);
    copy = g_memdup2(q->l1.entry, (size_t)q->l1.entries * 8);
    g_mutex_unlock(&q->table_lock);
    return copy;
}

/* --- create --- */

static char *next_id(const Qcow2 *q)
{
    unsigned long max = 0;

    for (uint32_t i = 0; i < q->n_snapshots; i++) {
        unsigned long id = strtoul(q->snapshots[i].id, NULL, 10);

        max = id != ULONG_MAX ? MAX(max, id) : max;
    }
    return g_strdup_printf("%lu", max + 1);
}

static void push(Qcow2 *q, const SnapshotInfo *info, int64_t l1_offset, uint32_t l1_entries)
{
    Qcow2Snapshot snapshot = {
        .l1_offset = l1_offset,
        .l1_entries = l1_entries,
        .id = next_id(q),
        .name = g_strdup(info->name),
        .date_sec = (uint32_t)info->date_sec,
        .date_nsec = (uint32_t)info->date_nsec,
        .vm_clock_nsec =
            (uint64_t)info->vm_clock_sec * NSEC_PER_SEC + (uint64_t)info->vm_clock_nsec,
        .vm_state_bytes = (uint64_t)info->vm_state_size,
        .disk_size = q->header.size,
        .icount = info->has_icount ? (uint64_t)info->icount : UINT64_MAX,
    };

    q->snapshots = g_renew(Qcow2Snapshot, q->snapshots, q->n_snapshots + 1);
    q->snapshots[q->n_snapshots++] = snapshot;
}

static void pop(Qcow2 *q)
{
    qcow2_snapshot_done(&q->snapshots[--q->n_snapshots]);
}

/* The refcounts are raised: list the snapshot, or let them fall again where it is sure that the
 * file does not list it. */
static int coroutine_fn list_new(Qcow2 *q, const SnapshotInfo *info, const uint64_t *l1,
                                 GError **error)
{
    uint32_t entries = q->l1.entries;
    int64_t host = write_l1(q, l1, entries, error);
    bool unsure = false;
    int ret = (int)MIN(host, 0);

    if (ret == 0) {
        push(q, info, host, entries);
        ret = qcow2_snapshots_write(q, &unsure, error);
        if (ret < 0) {
            pop(q);
        }
        if (ret < 0 && !unsure) {
            qcow2_snapshot_free(q, host, (int64_t)entries * 8);
        }
    }
    if (ret < 0 && !unsure) {
        qcow2_refs_free(q, l1, entries, NULL);
    }
    return ret;
}

static int check_create(const Qcow2 *q, const SnapshotInfo *info, GError **error)
{
    if (has_data_file(q)) {
        merino_error(error, "Images with an external data file have no internal snapshots");
        return -ENOTSUP;
    }
    if (q->n_snapshots >= QCOW2_MAX_SNAPSHOTS) {
        merino_error(error, "Too many snapshots");
        return -EFBIG;
    }
    if (strlen(info->name) > UINT16_MAX) {
        merino_error(error, "The name of the snapshot is too long");
        return -EINVAL;
    }
    return 0;
}

int coroutine_fn qcow2_co_snapshot_create(BlockNode *node, const SnapshotInfo *info, GError **error)
{
    Qcow2 *q = node->state;
    g_autofree uint64_t *l1 = NULL;
    int ret = check_create(q, info, error);

    ret = ret ? ret : settle_and_announce(q, error);
    if (ret < 0) {
        return ret;
    }
    l1 = copy_active_l1(q);
    ret = qcow2_refs_check(q, l1, q->l1.entries, error);
    ret = ret ? ret : qcow2_copied_flags_set(q, false, error);
    ret = ret ? ret : qcow2_refs_raise(q, l1, q->l1.entries, error);
    ret = ret ? ret : list_new(q, info, l1, error);
    if (ret < 0) {
        settle_flags(q, NULL);
        return ret;
    }
    return settle_flags(q, error);
}

/* --- goto --- */

static int check_goto(Qcow2 *q, const Qcow2Snapshot *snapshot, GError **error)
{
    uint64_t needed = qcow2_l1_entries_for(&q->header, snapshot->disk_size);

    if (has_data_file(q)) {
        merino_error(error, "Images with an external data file have no internal snapshots");
        return -ENOTSUP;
    }
    if (snapshot->disk_size < 0 || needed * 8 > QCOW2_MAX_L1_BYTES) {
        merino_error(error, "The disk size of snapshot '%s' is damaged", snapshot->id);
        return -EIO;
    }
    if (snapshot->disk_size != q->header.size &&
        !bitmap_list_check_resize(q->node->bitmaps, snapshot->disk_size, error)) {
        return -EINVAL;
    }
    return 0;
}

static void set_active_l1(Qcow2 *q, int64_t host, const uint64_t *l1, uint32_t entries)
{
    qcow2_table_grow(q, &q->l1, entries);
    g_mutex_lock(&q->table_lock);
    q->l1.offset = host;
    for (uint32_t i = 0; i < entries; i++) {
        q->l1.entry[i] = l1[i] & ~QCOW2_COPIED;
    }
    memset(q->l1.dirty, 0, entries / TABLE_PIECE_ENTRIES + 1);
    q->l1.any_dirty = false;
    g_mutex_unlock(&q->table_lock);
}

/* The header names the new L1 table and size, or everything is as before; but where that cannot be
 * known, `*ret_unsure`. */
static int coroutine_fn switch_l1(Qcow2 *q, int64_t host, const uint64_t *l1, uint32_t entries,
                                  int64_t size, bool *ret_unsure, GError **error)
{
    Qcow2Header before = q->header;
    int ret;

    q->header.l1_offset = host;
    q->header.l1_entries = entries;
    q->header.size = size;
    ret = qcow2_header_commit(q, error);
    if (ret < 0) {
        q->header.l1_offset = before.l1_offset;
        q->header.l1_entries = before.l1_entries;
        q->header.size = before.size;
        *ret_unsure = qcow2_header_commit(q, NULL) < 0;
        if (*ret_unsure) {
            atomic_store(&q->corrupt, true); /* what is written to one table, the other lacks */
        }
        return ret;
    }
    set_active_l1(q, host, l1, entries);
    node_set_size(q->node, size);
    qcow2_bitmaps_resized(q);
    return 0;
}

/* The references of `l1` are counted: make it the active one. */
static int coroutine_fn activate(Qcow2 *q, const uint64_t *l1, uint32_t entries, int64_t size,
                                 GError **error)
{
    int64_t old_host = q->header.l1_offset, old_bytes = (int64_t)q->header.l1_entries * 8;
    uint32_t old_entries = q->l1.entries;
    g_autofree uint64_t *old = copy_active_l1(q);
    int64_t host = write_l1(q, l1, entries, error);
    bool unsure = false;
    int ret = host < 0 ? (int)host : switch_l1(q, host, l1, entries, size, &unsure, error);

    if (ret < 0 && !unsure) {
        qcow2_snapshot_free(q, MAX(host, 0), host > 0 ? (int64_t)entries * 8 : 0);
        qcow2_refs_free(q, l1, entries, NULL);
    }
    if (ret < 0) {
        return ret;
    }
    qcow2_snapshot_free(q, old_host, old_bytes);
    return qcow2_refs_free(q, old, old_entries, error);
}

/* The snapshot's L1 table, as long as its disk needs. */
static uint64_t *coroutine_fn snapshot_l1(Qcow2 *q, const Qcow2Snapshot *snapshot,
                                          uint32_t *ret_entries, GError **error)
{
    uint32_t needed = (uint32_t)qcow2_l1_entries_for(&q->header, snapshot->disk_size);
    uint32_t entries = snapshot->l1_entries;
    uint64_t *l1 = qcow2_l1_read(q, snapshot->l1_offset, entries, error);

    if (l1 && needed > entries) {
        l1 = g_renew(uint64_t, l1, needed);
        memset(l1 + entries, 0, (size_t)(needed - entries) * 8);
        entries = needed;
    }
    *ret_entries = entries;
    return l1;
}

int coroutine_fn qcow2_co_snapshot_goto(BlockNode *node, const char *id, GError **error)
{
    Qcow2 *q = node->state;
    int index = find(q, id, error);
    g_autofree uint64_t *l1 = NULL;
    const Qcow2Snapshot *snapshot;
    uint32_t entries;
    int ret;

    if (index < 0) {
        return index;
    }
    snapshot = &q->snapshots[index];
    ret = check_goto(q, snapshot, error);
    ret = ret ? ret : settle_and_announce(q, error);
    if (ret < 0) {
        return ret;
    }
    l1 = snapshot_l1(q, snapshot, &entries, error);
    ret = l1 ? qcow2_refs_check(q, l1, entries, error) : -EIO;
    ret = ret ? ret : qcow2_copied_flags_set(q, false, error);
    ret = ret ? ret : qcow2_refs_raise(q, l1, entries, error);
    ret = ret ? ret : qcow2_snapshot_mark(q, l1, entries, snapshot->disk_size, error);
    ret = ret ? ret : activate(q, l1, entries, snapshot->disk_size, error);
    if (ret < 0) {
        settle_flags(q, NULL);
        return ret;
    }
    ret = settle_flags(q, error);
    qcow2_options_renew(q);
    return ret;
}

/* --- delete --- */

static void remove_at(Qcow2 *q, uint32_t index)
{
    memmove(&q->snapshots[index], &q->snapshots[index + 1],
            sizeof(Qcow2Snapshot) * (q->n_snapshots - index - 1));
    q->n_snapshots--;
}

static void insert_at(Qcow2 *q, uint32_t index, const Qcow2Snapshot *snapshot)
{
    memmove(&q->snapshots[index + 1], &q->snapshots[index],
            sizeof(Qcow2Snapshot) * (q->n_snapshots - index));
    q->snapshots[index] = *snapshot;
    q->n_snapshots++;
}

/* Take it out of the list, in memory and in the file. */
static int coroutine_fn unlist(Qcow2 *q, uint32_t index, GError **error)
{
    Qcow2Snapshot gone = q->snapshots[index];
    bool unsure;
    int ret;

    remove_at(q, index);
    ret = qcow2_snapshots_write(q, &unsure, error);
    if (ret < 0) {
        insert_at(q, index, &gone);
    }
    return ret;
}

int coroutine_fn qcow2_co_snapshot_delete(BlockNode *node, const char *id, GError **error)
{
    Qcow2 *q = node->state;
    int index = find(q, id, error);
    int ret = index < 0 ? index : settle_and_announce(q, error);
    g_autofree uint64_t *l1 = NULL;
    Qcow2Snapshot gone;

    if (ret < 0) {
        return ret;
    }
    gone = q->snapshots[index];
    l1 = qcow2_l1_read(q, gone.l1_offset, gone.l1_entries, error);
    ret = l1 ? qcow2_refs_check(q, l1, gone.l1_entries, error) : -EIO;
    ret = ret ? ret : unlist(q, (uint32_t)index, error);
    if (ret == 0) {
        ret = qcow2_refs_free(q, l1, gone.l1_entries, error);
        qcow2_snapshot_free(q, gone.l1_offset, (int64_t)gone.l1_entries * 8);
        qcow2_snapshot_done(&gone);
    }
    if (ret < 0) {
        settle_flags(q, NULL);
        return ret;
    }
    return settle_flags(q, error);
}

/* --- list --- */

static SnapshotInfo *describe(const Qcow2Snapshot *snapshot)
{
    SnapshotInfo *info = g_new0(SnapshotInfo, 1);

    info->id = g_utf8_make_valid(snapshot->id, -1);
    info->name = g_utf8_make_valid(snapshot->name, -1);
    info->vm_state_size = (int64_t)snapshot->vm_state_bytes;
    info->date_sec = snapshot->date_sec;
    info->date_nsec = snapshot->date_nsec;
    info->vm_clock_sec = (int64_t)(snapshot->vm_clock_nsec / NSEC_PER_SEC);
    info->vm_clock_nsec = (int64_t)(snapshot->vm_clock_nsec % NSEC_PER_SEC);
    info->has_icount = snapshot->icount != UINT64_MAX;
    info->icount = (int64_t)snapshot->icount;
    return info;
}

SnapshotInfoList *qcow2_snapshot_list(BlockNode *node)
{
    const Qcow2 *q = node->state;
    SnapshotInfoList *list = g_new0(SnapshotInfoList, 1);

    for (uint32_t i = 0; i < q->n_snapshots; i++) {
        snapshot_info_list_append(list, describe(&q->snapshots[i]));
    }
    return list;
}
