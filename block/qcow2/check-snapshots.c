/* SPDX-License-Identifier: MIT */
/*
 * The table of internal snapshots: read from the file rather than from memory, which may hold
 * nothing, and mended.
 *
 * A snapshot whose L1 table cannot be found shows nothing any more, cannot be gone to and cannot be
 * deleted, so mending takes it out of the list. An L1 table that is said to be longer than it can
 * be gets the length that the snapshot's disk, and the state of the machine behind it, need.
 */
#include "check.h"
#include "header.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* --- entries --- */

static bool offset_is_sound(const Qcow2Check *check, const Qcow2Snapshot *s)
{
    return s->l1_offset > 0 && !cluster_offset(check->q, s->l1_offset);
}

static bool fits_in_file(const Qcow2Check *check, const Qcow2Snapshot *s, uint64_t entries)
{
    uint64_t end = (uint64_t)check->file_clusters << check->q->header.cluster_bits;

    return (uint64_t)s->l1_offset <= end && entries * 8 <= end - (uint64_t)s->l1_offset;
}

/* What is wrong with where the L1 table of an entry is, as a clause; NULL: nothing. */
static char *l1_fault(const Qcow2Check *check, const Qcow2Snapshot *s)
{
    if (s->l1_entries == 0 && s->l1_offset == 0) {
        return NULL; /* of a disk without size */
    }
    if (!offset_is_sound(check, s)) {
        return g_strdup_printf("l1_offset=0x%" PRIx64 ": L1 table %s", (uint64_t)s->l1_offset,
                               s->l1_offset ? "is not cluster aligned" : "lies in the header");
    }
    if (s->overlong || (int64_t)s->l1_entries * 8 > QCOW2_MAX_L1_BYTES) {
        return g_strdup_printf("l1_size=%#" PRIx32 ": L1 table is too large", s->l1_entries);
    }
    return NULL;
}

/* What the disk takes of the L1 table, and the state behind it; 0: nobody knows. */
static uint64_t entries_needed(const Qcow2Check *check, const Qcow2Snapshot *s)
{
    const Qcow2 *q = check->q;
    uint64_t bits = q->header.cluster_bits + q->l2_bits;
    uint64_t rest = s->vm_state_bytes & ((UINT64_C(1) << bits) - 1);

    if (s->disk_size < 0) {
        return 0;
    }
    return qcow2_l1_entries_for(&q->header, s->disk_size) + (s->vm_state_bytes >> bits) + !!rest;
}

/* Since version 3 each entry says at least how large the disk and the state of the machine are. */
static bool is_incomplete(const Qcow2Check *check, const Qcow2Snapshot *s)
{
    return check->q->header.version >= 3 &&
           s->extra_bytes < offsetof(Qcow2DiskSnapshotExtra, icount);
}

/* "1 (name)": what is wrong with an entry may be in these. */
static char *entry_name(const Qcow2Snapshot *s)
{
    g_autofree char *id = g_strescape(s->id, NULL), *name = g_strescape(s->name, NULL);

    return g_strdup_printf("%.20s (%.200s)", id, name);
}

/* --- reading --- */

static bool is_elsewhere(const Qcow2Check *check, int64_t host)
{
    return cluster_offset(check->q, host) ||
           host >> check->q->header.cluster_bits >= check->file_clusters;
}

static bool is_no_l2_entry(const Qcow2Check *check, uint64_t entry)
{
    return !(entry & QCOW2_L2_COMPRESSED) &&
           ((entry & ~(QCOW2_L2_OFFSET_MASK | QCOW2_COPIED | QCOW2_L2_ZERO)) != 0 ||
            (!has_data_file(check->q) &&
             is_elsewhere(check, (int64_t)(entry & QCOW2_L2_OFFSET_MASK))));
}

/* Whether an entry of an L1 table is none, or leads to something that is no L2 table. `buf` has a
 * cluster. */
static bool coroutine_fn is_garbage(const Qcow2Check *check, uint64_t entry, uint8_t *buf)
{
    Qcow2 *q = check->q;
    int64_t table = (int64_t)(entry & QCOW2_L1_OFFSET_MASK);
    uint64_t value;

    if ((entry & ~(QCOW2_L1_OFFSET_MASK | QCOW2_COPIED)) != 0 || is_elsewhere(check, table)) {
        return true;
    }
    if (table == 0 || qcow2_meta_read(q, table, buf, q->cluster_size) < 0) {
        return false;
    }
    for (int64_t at = 0; at < q->cluster_size; at += (int64_t)q->l2_entry_size) {
        memcpy(&value, buf + at, sizeof(value));
        if (is_no_l2_entry(check, GUINT64_FROM_BE(value))) {
            return true;
        }
    }
    return false;
}

/* Whether more entries are said to be there than are needed, and these are none. An L1 table that
 * was once longer has zeroes there. */
static int coroutine_fn find_garbage(Qcow2Check *check, Qcow2Snapshot *s)
{
    uint64_t needed = entries_needed(check, s);
    int64_t bytes = ((int64_t)s->l1_entries - (int64_t)needed) * 8;
    g_autofree char *fault = l1_fault(check, s);
    g_autofree uint64_t *rest = NULL;
    g_autofree uint8_t *table = NULL;
    int ret;

    if (fault || needed == 0 || needed >= s->l1_entries || !fits_in_file(check, s, s->l1_entries)) {
        return 0;
    }
    rest = g_try_malloc(bytes);
    table = g_try_malloc(check->q->cluster_size);
    if (!rest || !table) {
        return -ENOMEM;
    }
    ret = qcow2_meta_read(check->q, s->l1_offset + (int64_t)needed * 8, rest, bytes);
    for (int64_t i = 0; ret == 0 && i < bytes / 8 && !s->overlong; i++) {
        s->overlong = is_garbage(check, GUINT64_FROM_BE(rest[i]), table);
    }
    return 0; /* what cannot be read is told when it is counted */
}

static int coroutine_fn find_overlong(Qcow2Check *check)
{
    int ret = 0;

    for (uint32_t i = 0; i < check->snapshots.n && ret == 0; i++) {
        ret = find_garbage(check, &check->snapshots.snapshots[i]);
    }
    return ret;
}

/* Whether everything that an entry says can be. */
static bool is_sound(const Qcow2Check *check, const Qcow2Snapshot *s)
{
    return *s->id && s->extra_bytes <= QCOW2_MAX_SNAPSHOT_EXTRA && !is_incomplete(check, s) &&
           offset_is_sound(check, s) && fits_in_file(check, s, s->l1_entries);
}

static bool table_is_sound(const Qcow2Check *check, const Qcow2SnapshotTable *table, uint32_t n)
{
    for (uint32_t i = 0; i < table->n; i++) {
        if (!is_sound(check, &table->snapshots[i])) {
            return false;
        }
    }
    return table->n == n;
}

/* The header names a place that cannot be: perhaps the table is right there all the same, or at the
 * beginning of that cluster. `n` 0: do not look. */
static int coroutine_fn find_table(Qcow2Check *check, uint32_t n)
{
    Qcow2 *q = check->q;
    int64_t said = q->header.snapshots_offset;
    int64_t places[] = { said, cluster_start(q, said) };

    for (size_t i = 0; n > 0 && i < G_N_ELEMENTS(places) && said > q->cluster_size; i++) {
        int ret = qcow2_snapshots_scan(q, places[i], n, &check->snapshots);

        if (ret < 0 || table_is_sound(check, &check->snapshots, n)) {
            check->snapshots_offset = places[i];
            return ret ? ret : find_overlong(check);
        }
        qcow2_snapshot_table_done(&check->snapshots);
    }
    check_say(check, "ERROR snapshot table offset invalid");
    return -EINVAL;
}

/* What cannot be passed over unless it is mended. */
static int refuse(Qcow2Check *check)
{
    const Qcow2SnapshotTable *table = &check->snapshots;

    for (uint32_t i = 0; i < table->n; i++) {
        if (table->snapshots[i].extra_bytes > QCOW2_MAX_SNAPSHOT_EXTRA) {
            check_say(check,
                      "ERROR failed to read the snapshot table: Too much extra metadata in "
                      "snapshot table entry %" PRIu32,
                      i);
            check_say(check, "You can force-remove this extra metadata with %s check -r all",
                      g_get_prgname());
            return -EFBIG;
        }
    }
    return 0;
}

int coroutine_fn check_read_snapshots(Qcow2Check *check)
{
    const Qcow2Header *header = &check->q->header;
    uint32_t n = MIN(header->n_snapshots, QCOW2_MAX_SNAPSHOTS);
    bool mend = check->fix & CHECK_FIX_ERRORS;
    int ret;

    qcow2_snapshot_table_done(&check->snapshots);
    check->snapshots_offset = header->snapshots_offset;
    if (n == 0) {
        return 0;
    }
    if (!mend && n < header->n_snapshots) {
        check_say(check, "ERROR snapshot table too large");
        check_say(check,
                  "You can force-remove all %" PRIu32 " overhanging snapshots with %s check -r all",
                  header->n_snapshots - n, g_get_prgname());
        return -EFBIG;
    }
    if (!qcow2_table_range_ok(header, (uint64_t)header->snapshots_offset, 0)) {
        return find_table(check, mend ? n : 0);
    }
    ret = qcow2_snapshots_scan(check->q, header->snapshots_offset, n, &check->snapshots);
    if (ret < 0) {
        check_say(check, "ERROR failed to read the snapshot table: %s", g_strerror(-ret));
        return ret;
    }
    ret = mend ? 0 : refuse(check);
    return ret ? ret : find_overlong(check);
}

/* --- counting --- */

static int coroutine_fn count_entry(Qcow2Check *check, uint32_t index)
{
    const Qcow2Snapshot *s = &check->snapshots.snapshots[index];
    g_autofree char *fault = l1_fault(check, s), *name = entry_name(s);
    int64_t bytes = (int64_t)s->l1_entries * 8;

    if (is_incomplete(check, s)) {
        check_corruption(check, "ERROR snapshot table entry %" PRIu32 " is incomplete", index);
    }
    if (fault) {
        check_corruption(check, "ERROR snapshot %s %s; snapshot table entry corrupted", name,
                         fault);
        check->hidden = true;
        return s->overlong
                   ? check_count_l1(check, s->l1_offset, (uint32_t)entries_needed(check, s), false)
                   : 0;
    }
    if (!fits_in_file(check, s, s->l1_entries)) {
        check_count_range(check, s->l1_offset, bytes); /* which tells that it does not */
        check->hidden = true;
        return 0;
    }
    return check_count_l1(check, s->l1_offset, s->l1_entries, false);
}

/* What is told of a damaged entry hides what belongs to it, so leaks stay until it is mended. */
int coroutine_fn check_count_snapshots(Qcow2Check *check)
{
    uint32_t n = MIN(check->q->header.n_snapshots, QCOW2_MAX_SNAPSHOTS), there = check->snapshots.n;
    int ret = 0;

    for (uint32_t i = 0; i < there && ret == 0; i++) {
        ret = count_entry(check, i);
    }
    for (uint32_t i = there; i < n && ret == 0; i++) {
        check_corruption(check, "ERROR snapshot table entry %" PRIu32 " is incomplete", i);
        check->hidden = true;
    }
    check_count_range(check, check->snapshots_offset, check->snapshots.bytes);
    return ret;
}

/* --- mending --- */

/* Whether a table of so many entries is there, and was not freed as a leak. */
static bool coroutine_fn is_in_use(Qcow2Check *check, const Qcow2Snapshot *s, uint64_t entries)
{
    const Qcow2 *q = check->q;
    int64_t end = s->l1_offset + (int64_t)MAX(entries, 1) * 8;

    for (int64_t host = s->l1_offset; host < end; host += q->cluster_size) {
        uint64_t refcount;

        if (check_read_refcount(check, host >> q->header.cluster_bits, &refcount) < 0 ||
            refcount == 0) {
            return false;
        }
    }
    return true;
}

/* Whether the entry stays. */
static bool coroutine_fn mend_entry(Qcow2Check *check, uint32_t index)
{
    Qcow2Snapshot *s = &check->snapshots.snapshots[index];
    uint64_t needed = entries_needed(check, s);
    g_autofree char *fault = l1_fault(check, s), *name = entry_name(s);

    if (s->extra_bytes > QCOW2_MAX_SNAPSHOT_EXTRA) {
        check_mended(check,
                     "Discarding too much extra metadata in snapshot table entry %" PRIu32
                     " (%" PRIu32 " > %d)",
                     index, s->extra_bytes, QCOW2_MAX_SNAPSHOT_EXTRA);
    }
    if (is_incomplete(check, s)) {
        check_mended(check, "Repairing snapshot table entry %" PRIu32 " is incomplete", index);
    }
    if (!*s->id) {
        check_mended(
            check, "Repairing snapshot table entry %" PRIu32 " has no identifier; snapshot removed",
            index);
        return false;
    }
    if (!fault && fits_in_file(check, s, s->l1_entries)) {
        return true;
    }
    if (offset_is_sound(check, s) && s->l1_entries > needed && needed * 8 <= QCOW2_MAX_L1_BYTES &&
        fits_in_file(check, s, MAX(needed, 1)) && is_in_use(check, s, needed)) {
        check_mended(check, "Repairing snapshot %s l1_size=%#" PRIx32 ": the disk needs %" PRIu64,
                     name, s->l1_entries, needed);
        s->l1_entries = (uint32_t)needed;
        s->overlong = false;
        return true;
    }
    check_mended(check, "Repairing snapshot %s %s; snapshot removed", name,
                 fault ? fault : "has its L1 table beyond the end of the file");
    return false;
}

/* The entries that stay move together. */
static void coroutine_fn mend_entries(Qcow2Check *check)
{
    Qcow2SnapshotTable *table = &check->snapshots;
    uint32_t n = 0;

    for (uint32_t i = 0; i < table->n; i++) {
        if (mend_entry(check, i)) {
            table->snapshots[n++] = table->snapshots[i];
        } else {
            qcow2_snapshot_done(&table->snapshots[i]);
        }
    }
    table->n = n;
}

static bool needs_mending(const Qcow2Check *check)
{
    const Qcow2Header *header = &check->q->header;

    return check->snapshots.n != header->n_snapshots ||
           check->snapshots_offset != header->snapshots_offset;
}

static bool entry_needs_mending(const Qcow2Check *check, const Qcow2Snapshot *s)
{
    g_autofree char *fault = l1_fault(check, s);

    return fault || !*s->id || s->extra_bytes > QCOW2_MAX_SNAPSHOT_EXTRA ||
           is_incomplete(check, s) || !fits_in_file(check, s, s->l1_entries);
}

bool check_snapshots_need_mending(const Qcow2Check *check)
{
    bool needs = needs_mending(check);

    for (uint32_t i = 0; i < check->snapshots.n && !needs; i++) {
        needs = entry_needs_mending(check, &check->snapshots.snapshots[i]);
    }
    return needs;
}

/* The old table is not freed here: it may lie where it cannot be. What it occupied leaks. */
static int coroutine_fn write_table(Qcow2Check *check)
{
    Qcow2 *q = check->q;
    g_autoptr(GError) error = NULL;
    bool unsure;
    int ret;

    qcow2_snapshots_done(q);
    q->snapshots = g_steal_pointer(&check->snapshots.snapshots);
    q->n_snapshots = check->snapshots.n;
    q->snapshot_table_bytes = 0;
    check->snapshots.n = 0;
    ret = qcow2_snapshots_write(q, &unsure, &error);
    if (ret < 0) {
        check_say(check, "ERROR failed to update snapshot table: %s", error->message);
    }
    return ret;
}

int coroutine_fn check_mend_snapshots(Qcow2Check *check)
{
    uint32_t said = check->q->header.n_snapshots, there = check->snapshots.n;
    int64_t fixed = check->result->corruptions_fixed;
    int ret;

    if (check->snapshots_offset != check->q->header.snapshots_offset) {
        check_mended(check,
                     "Repairing snapshot table offset: %#" PRIx64 " becomes that of a new table",
                     (uint64_t)check->q->header.snapshots_offset);
    }
    if (there < said) {
        check_mended(check, "Discarding %" PRIu32 " overhanging snapshots", said - there);
    }
    mend_entries(check);
    ret = write_table(check);
    if (ret < 0) {
        check->result->corruptions_fixed = fixed;
        return ret;
    }
    return check_read_snapshots(check);
}
