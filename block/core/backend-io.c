/* SPDX-License-Identifier: MIT */
/*
 * Requests through a backend: checked at the door, then made on its root.
 */
#include "core-internal.h"
#include "io-internal.h"

#include <errno.h>

/* Inside the door: whether there is a node and the range lies in it. */
static inline int check_range(const BlockBackend *backend, int64_t offset, int64_t bytes)
{
    uint64_t size;

    if (G_UNLIKELY(!backend->root)) {
        return -ENOMEDIUM;
    }
    size = node_size(backend->root->node);
    if (G_UNLIKELY((uint64_t)offset > size || (uint64_t)bytes > size - offset)) {
        return -EIO;
    }
    return 0;
}

static inline int check_write(const BlockBackend *backend, int64_t offset, int64_t bytes)
{
    int ret = check_range(backend, offset, bytes);

    if (ret == 0 && !(backend->root->perm & PERM_WRITE)) {
        ret = -EPERM;
    }
    return ret;
}

int coroutine_fn backend_co_preadv(BlockBackend *backend, int64_t offset, int64_t bytes,
                                   IoVector *vec, unsigned flags)
{
    int ret;

    backend_co_enter(backend);
    ret = check_range(backend, offset, bytes);
    if (ret == 0) {
        ret = child_co_preadv(backend->root, offset, bytes, vec, flags);
    }
    backend_leave(backend);
    return ret;
}

void backend_hint_write(BlockBackend *backend, uint64_t offset)
{
    atomic_store_explicit(&backend->hinted, offset, memory_order_relaxed);
}

/* The hint is taken here, inside the door, because it leads to what is not to change meanwhile. */
static inline void take_hint(BlockBackend *backend)
{
    uint64_t offset = atomic_load_explicit(&backend->hinted, memory_order_relaxed);

    if (offset != NOWHERE) {
        atomic_store_explicit(&backend->hinted, NOWHERE, memory_order_relaxed);
        bitmap_list_prefetch(backend->root->node->bitmaps, offset);
    }
}

int coroutine_fn backend_co_pwritev(BlockBackend *backend, int64_t offset, int64_t bytes,
                                    IoVector *vec, unsigned flags)
{
    int ret;

    backend_co_enter(backend);
    ret = check_write(backend, offset, bytes);
    if (ret == 0) {
        take_hint(backend);
        ret = child_co_pwritev(backend->root, offset, bytes, vec, flags);
    }
    backend_leave(backend);
    return ret;
}

int coroutine_fn backend_co_pwrite_zeroes(BlockBackend *backend, int64_t offset, int64_t bytes,
                                          unsigned flags)
{
    int ret;

    backend_co_enter(backend);
    ret = check_write(backend, offset, bytes);
    if (ret == 0) {
        ret = child_co_pwrite_zeroes(backend->root, offset, bytes, flags);
    }
    backend_leave(backend);
    return ret;
}

int coroutine_fn backend_co_pdiscard(BlockBackend *backend, int64_t offset, int64_t bytes)
{
    int ret;

    backend_co_enter(backend);
    ret = check_write(backend, offset, bytes);
    if (ret == 0) {
        ret = child_co_pdiscard(backend->root, offset, bytes);
    }
    backend_leave(backend);
    return ret;
}

int coroutine_fn backend_co_flush(BlockBackend *backend)
{
    int ret;

    backend_co_enter(backend);
    ret = check_range(backend, 0, 0);
    if (ret == 0) {
        ret = child_co_flush(backend->root);
    }
    backend_leave(backend);
    return ret;
}

int coroutine_fn backend_co_block_status_above(BlockBackend *backend, int64_t offset, int64_t bytes,
                                               BlockStatus *ret_status)
{
    int ret;

    backend_co_enter(backend);
    ret = check_range(backend, offset, bytes);
    if (ret == 0) {
        ret = node_co_block_status_above(backend->root->node, NULL, offset, bytes, ret_status);
    }
    backend_leave(backend);
    return ret;
}
