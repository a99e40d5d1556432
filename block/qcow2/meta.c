/* SPDX-License-Identifier: MIT */
/*
 * Reads and writes of metadata in the image file, for the control plane, and syncs.
 */
#include "qcow2.h"

#include <errno.h>

int coroutine_fn qcow2_meta_read(Qcow2 *q, int64_t host, void *buf, int64_t bytes)
{
    if (host < 0 || bytes < 0 || host > INT64_MAX - bytes) {
        return -EIO;
    }
    return bytes ? child_co_pread(q->node->file, host, bytes, buf) : 0;
}

int coroutine_fn qcow2_meta_write(Qcow2 *q, int64_t host, const void *buf, int64_t bytes,
                                  unsigned ignore)
{
    int ret;

    if (host < 0 || bytes < 0 || host > INT64_MAX - bytes) {
        return -EIO;
    }
    ret = qcow2_check_overlap(q, ignore, host, bytes);
    if (ret < 0 || bytes == 0) {
        return ret;
    }
    return child_co_pwrite(q->node->file, host, bytes, buf, 0);
}

int coroutine_fn qcow2_sync(Qcow2 *q)
{
    return q->node->cache_no_flush ? 0 : child_co_flush(q->node->file);
}
