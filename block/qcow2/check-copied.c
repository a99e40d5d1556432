/* SPDX-License-Identifier: MIT */
/*
 * The copied flag of L1 and L2 entries says that the refcount is exactly one (Q5): where it lies, a
 * write would change what a snapshot sees; where it is missing, a write copies without need.
 *
 * A leak that was mended may have left a cluster with one reference and without the flag, so flags
 * are also mended together with leaks, if nothing else is wrong.
 */
#include "check.h"

#include <errno.h>
#include <inttypes.h>

/* Whether the entry is to be changed; counts the finding either way. */
static bool copied_fault(Qcow2Check *check, const char *what, int64_t l1_index, uint64_t entry,
                         uint64_t refcount)
{
    bool mend = check->mends_flags;
    const char *word = mend ? "Repairing" : "ERROR";

    if (l1_index >= 0) {
        check_say(check,
                  "%s OFLAG_COPIED %s cluster: l1_index=%" PRId64 " l1_entry=%" PRIx64
                  " refcount=%" PRIu64,
                  word, what, l1_index, entry, refcount);
    } else {
        check_say(check, "%s OFLAG_COPIED %s cluster: l2_entry=%" PRIx64 " refcount=%" PRIu64, word,
                  what, entry, refcount);
    }
    *(mend ? &check->result->corruptions_fixed : &check->result->corruptions) += 1;
    return mend;
}

/* Whether an entry with this offset has the wrong flag; its refcount is told. */
static int coroutine_fn is_wrong(Qcow2Check *check, uint64_t entry, bool *ret_wrong,
                                 uint64_t *ret_refcount)
{
    int64_t host = (int64_t)(entry & QCOW2_L2_OFFSET_MASK);
    int ret = check_read_refcount(check, host >> check->q->header.cluster_bits, ret_refcount);

    *ret_wrong = ret == 0 && (*ret_refcount == 1) != !!(entry & QCOW2_COPIED);
    return ret;
}

/* Entries without a cluster in the image file have no refcount that the flag could tell of. */
static bool has_refcount(const Qcow2Check *check, uint64_t entry)
{
    const Qcow2 *q = check->q;
    int64_t host = (int64_t)(entry & QCOW2_L2_OFFSET_MASK);

    return !(entry & QCOW2_L2_COMPRESSED) && host && !cluster_offset(q, host) &&
           host >> q->header.cluster_bits < check->file_clusters;
}

static int coroutine_fn check_l2_flags(Qcow2Check *check, int64_t host, uint8_t *table)
{
    Qcow2 *q = check->q;
    bool changed = false;
    int ret = qcow2_meta_read(q, host, table, q->cluster_size);

    for (int64_t i = 0; i < INT64_C(1) << q->l2_bits && ret == 0; i++) {
        uint64_t *at = (uint64_t *)(table + i * q->l2_entry_size);
        uint64_t entry = GUINT64_FROM_BE(*at), refcount;
        bool wrong;

        if (!has_refcount(check, entry)) {
            continue;
        }
        ret = is_wrong(check, entry, &wrong, &refcount);
        if (wrong && copied_fault(check, "data", -1, entry, refcount)) {
            *at = GUINT64_TO_BE(entry ^ QCOW2_COPIED);
            changed = true;
        }
    }
    if (ret == 0 && changed) {
        ret = child_co_pwrite(q->node->file, host, q->cluster_size, table, 0);
    }
    return ret;
}

int coroutine_fn check_copied_flags(Qcow2Check *check)
{
    Qcow2 *q = check->q;
    g_autofree uint8_t *table = g_try_malloc(q->cluster_size);
    int64_t bytes = (int64_t)q->header.l1_entries * 8;
    g_autofree uint64_t *l1 = g_try_malloc(MAX(bytes, 1));
    const BlockCheckResult *result = check->result;
    bool nothing_else = !result->corruptions && !result->leaks && !result->check_errors;
    bool changed = false;
    int ret;

    check->mends_flags =
        !check->hidden && ((check->fix & CHECK_FIX_ERRORS) || (check->fix && nothing_else));
    if (!table || !l1) {
        return -ENOMEM;
    }
    ret = qcow2_meta_read(q, q->header.l1_offset, l1, bytes);
    for (int64_t i = 0; i < q->header.l1_entries && ret == 0; i++) {
        uint64_t entry = GUINT64_FROM_BE(l1[i]), refcount;
        bool wrong;

        if (!has_refcount(check, entry & ~QCOW2_L2_COMPRESSED)) {
            continue;
        }
        ret = is_wrong(check, entry, &wrong, &refcount);
        if (wrong && copied_fault(check, "L2", i, entry, refcount)) {
            l1[i] = GUINT64_TO_BE(entry ^ QCOW2_COPIED);
            changed = true;
        }
        if (ret == 0 && !has_data_file(q)) {
            ret = check_l2_flags(check, (int64_t)(entry & QCOW2_L1_OFFSET_MASK), table);
        }
    }
    if (ret == 0 && changed) {
        ret = child_co_pwrite(q->node->file, q->header.l1_offset, bytes, l1, 0);
    }
    return ret;
}
