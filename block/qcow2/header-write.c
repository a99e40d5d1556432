/* SPDX-License-Identifier: MIT */
/*
 * Writing the header to the file. Invariants Q6 and Q7 (docs/devel/qcow2.md) are kept here.
 *
 * A header may be longer than a sector, and a loss of power may leave its sectors old and new. So
 * what follows the first one is not written while the header refers to it: when it changes, the new
 * header is first written in a single sector, without the names of features that make it long.
 */
#include "header.h"
#include "util/error.h"

#include <errno.h>
#include <string.h>

#define FEATURE_WORDS_OFFSET offsetof(Qcow2DiskHeader, incompatible)

static int coroutine_fn sync_in_words(Qcow2 *q, GError **error)
{
    int ret = qcow2_sync(q);

    if (ret < 0) {
        merino_error_errno(error, -ret, "Could not flush the image file");
    }
    return ret;
}

static int coroutine_fn write_part(Qcow2 *q, int64_t offset, const uint8_t *bytes, size_t size,
                                   GError **error)
{
    int ret = qcow2_meta_write(q, offset, bytes, (int64_t)size, QCOW2_OVERLAP_HEADER);

    if (ret < 0) {
        merino_error_errno(error, -ret, "Could not write qcow2 header");
        return ret;
    }
    return sync_in_words(q, error);
}

/* Whether the file holds this behind the first sector. */
static bool coroutine_fn rest_is_there(Qcow2 *q, const uint8_t *rest, size_t size)
{
    g_autofree uint8_t *old = g_malloc(size);

    return qcow2_meta_read(q, QCOW2_HEADER_SECTOR, old, (int64_t)size) >= 0 &&
           memcmp(old, rest, size) == 0;
}

/* Bring what follows the first sector into the file. The header is the new one then, or still the
 * old one when it does not fit into a sector; then there is no better way than one write. */
static int coroutine_fn write_rest(Qcow2 *q, const uint8_t *bytes, size_t size, GError **error)
{
    g_autofree uint8_t *plain = NULL;
    int ret;

    if (size <= QCOW2_HEADER_SECTOR ||
        rest_is_there(q, bytes + QCOW2_HEADER_SECTOR, size - QCOW2_HEADER_SECTOR)) {
        return 0;
    }
    plain = qcow2_header_encode_plain(&q->header);
    if (!plain) {
        return 0;
    }
    ret = write_part(q, 0, plain, QCOW2_HEADER_SECTOR, error);
    return ret ? ret
               : write_part(q, QCOW2_HEADER_SECTOR, bytes + QCOW2_HEADER_SECTOR,
                            size - QCOW2_HEADER_SECTOR, error);
}

int coroutine_fn qcow2_header_commit(Qcow2 *q, GError **error)
{
    g_autofree uint8_t *bytes = NULL;
    size_t size;
    int ret;

    bytes = qcow2_header_encode(&q->header, &size, error);
    if (!bytes) {
        return -ENOSPC;
    }
    ret = sync_in_words(q, error);
    if (ret < 0) {
        return ret;
    }
    q->header_unsure = true;
    ret = write_rest(q, bytes, size, error);
    ret = ret ? ret : write_part(q, 0, bytes, size, error);
    if (ret < 0) {
        return ret;
    }
    q->header_unsure = false;
    if (q->header.version >= 3) {
        q->header.header_bytes = QCOW2_OUR_HEADER_BYTES + (uint32_t)q->header.unknown_field_bytes;
    }
    return 0;
}

int coroutine_fn qcow2_header_settle(Qcow2 *q)
{
    return q->header_unsure ? qcow2_header_commit(q, NULL) : 0;
}

int coroutine_fn qcow2_set_features(Qcow2 *q, uint64_t incompatible, uint64_t autoclear,
                                    GError **error)
{
    bool clears = (q->header.incompatible & ~incompatible) || (q->header.autoclear & ~autoclear);
    uint64_t words[] = { GUINT64_TO_BE(incompatible), GUINT64_TO_BE(q->header.compatible),
                         GUINT64_TO_BE(autoclear) };
    bool unsure;
    int ret = 0;

    if (incompatible == q->header.incompatible && autoclear == q->header.autoclear) {
        return qcow2_header_settle(q);
    }
    if (q->header.version < 3) {
        merino_error(error, "Images of version 2 have no feature bits");
        return -ENOTSUP;
    }
    if (clears) {
        ret = sync_in_words(q, error);
    }
    if (ret < 0) {
        return ret;
    }
    unsure = q->header_unsure;
    q->header_unsure = true;
    ret = qcow2_meta_write(q, FEATURE_WORDS_OFFSET, words, sizeof(words), QCOW2_OVERLAP_HEADER);
    if (ret < 0) {
        merino_error_errno(error, -ret, "Could not write the feature bits of the qcow2 header");
        return ret;
    }
    q->header.incompatible = incompatible;
    q->header.autoclear = autoclear;
    ret = sync_in_words(q, error);
    q->header_unsure = ret < 0 || unsure;
    return ret;
}
