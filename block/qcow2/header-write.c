/* SPDX-License-Identifier: MIT */
/*
 * Writing the header to the file. Invariants Q6 and Q7 (docs/devel/qcow2.md) are kept here.
 */
#include "header.h"
#include "util/error.h"

#include <errno.h>

#define FEATURE_WORDS_OFFSET offsetof(Qcow2DiskHeader, incompatible)

int coroutine_fn qcow2_header_write(Qcow2 *q, GError **error)
{
    g_autofree uint8_t *bytes = NULL;
    size_t size;
    int ret;

    bytes = qcow2_header_encode(&q->header, &size, error);
    if (!bytes) {
        return -ENOSPC;
    }
    ret = qcow2_meta_write(q, 0, bytes, (int64_t)size, QCOW2_OVERLAP_HEADER);
    if (ret < 0) {
        merino_error_errno(error, -ret, "Could not write qcow2 header");
        return ret;
    }
    if (q->header.version >= 3) {
        q->header.header_bytes = QCOW2_OUR_HEADER_BYTES + (uint32_t)q->header.unknown_field_bytes;
    }
    return 0;
}

static int coroutine_fn sync_in_words(Qcow2 *q, GError **error)
{
    int ret = qcow2_sync(q);

    if (ret < 0) {
        merino_error_errno(error, -ret, "Could not flush the image file");
    }
    return ret;
}

int coroutine_fn qcow2_header_commit(Qcow2 *q, GError **error)
{
    int ret = sync_in_words(q, error);

    if (ret == 0) {
        ret = qcow2_header_write(q, error);
    }
    return ret < 0 ? ret : sync_in_words(q, error);
}

int coroutine_fn qcow2_set_features(Qcow2 *q, uint64_t incompatible, uint64_t autoclear,
                                    GError **error)
{
    bool clears = (q->header.incompatible & ~incompatible) || (q->header.autoclear & ~autoclear);
    uint64_t words[] = { GUINT64_TO_BE(incompatible), GUINT64_TO_BE(q->header.compatible),
                         GUINT64_TO_BE(autoclear) };
    int ret = 0;

    if (incompatible == q->header.incompatible && autoclear == q->header.autoclear) {
        return 0;
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
    ret = qcow2_meta_write(q, FEATURE_WORDS_OFFSET, words, sizeof(words), QCOW2_OVERLAP_HEADER);
    if (ret < 0) {
        merino_error_errno(error, -ret, "Could not write the feature bits of the qcow2 header");
        return ret;
    }
    q->header.incompatible = incompatible;
    q->header.autoclear = autoclear;
    return sync_in_words(q, error);
}
