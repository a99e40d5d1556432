/* SPDX-License-Identifier: MIT */
/*
 * Backends: the doors through which requests enter the graph.
 *
 * Whoever does I/O from outside (an export, a job, an embedding program, a virtual machine) owns
 * a BlockBackend on the top node it uses. A request is counted at the door from beginning to end;
 * draining closes the doors above a node and waits until nobody is inside. A request that
 * finds its door closed waits in the order of arrival.
 *
 * Made, changed and freed on the control plane; request functions are coroutines on any loop.
 */
#ifndef MERINO_BLOCK_BACKEND_H
#define MERINO_BLOCK_BACKEND_H

#include "block/io.h"
#include "block/node.h"
#include "util/event-loop.h"

/* `user` says in messages who it is: "block device 'x'", or QEMU's words for exports and the like:
 * "an unnamed block device". Copied. */
BlockBackend *backend_new(const char *user, unsigned perm, unsigned shared);
/* Drains. The owner has seen to it that no further request begins. NULL ok. */
void backend_free(BlockBackend *backend);

/* These three drain the node and everything beneath it, since drivers may take other locks. */
bool backend_attach(BlockBackend *backend, BlockNode *node, GError **error);
void backend_detach(BlockBackend *backend);
bool backend_set_perm(BlockBackend *backend, unsigned perm, unsigned shared, GError **error);

/* Main thread, or inside a request of this backend. */
BlockNode *backend_node(const BlockBackend *backend); /* NULL when detached */
BlockChild *backend_root(const BlockBackend *backend);
int64_t backend_size(const BlockBackend *backend);

/* Called on the main thread when the node's size has changed or another node was put in place. */
void backend_set_change_handler(BlockBackend *backend, void (*fn)(void *opaque), void *opaque);

/* Requests. -EIO for ranges outside of the node, -EPERM for writes without permission. */
int coroutine_fn backend_co_preadv(BlockBackend *backend, int64_t offset, int64_t bytes,
                                   IoVector *vec, unsigned flags);
int coroutine_fn backend_co_pwritev(BlockBackend *backend, int64_t offset, int64_t bytes,
                                    IoVector *vec, unsigned flags);
/* A write at `offset` (any number will do) is likely to follow the next one. So what marking it in
 * bitmaps touches can be fetched meanwhile. Any thread. */
void backend_hint_write(BlockBackend *backend, uint64_t offset);
int coroutine_fn backend_co_pwrite_zeroes(BlockBackend *backend, int64_t offset, int64_t bytes,
                                          unsigned flags);
int coroutine_fn backend_co_pdiscard(BlockBackend *backend, int64_t offset, int64_t bytes);
int coroutine_fn backend_co_flush(BlockBackend *backend);
int coroutine_fn backend_co_block_status_above(BlockBackend *backend, int64_t offset, int64_t bytes,
                                               BlockStatus *ret_status);

/* For coroutines that open nodes on their way, as the making of images does: see co_run_control().
 * A backend on the node that `ref` names or describes; what it describes is closed with it. */
BlockBackend *coroutine_fn backend_co_open(const BlockdevRef *ref, unsigned perm, unsigned shared,
                                           GError **error);
void coroutine_fn backend_co_close(BlockBackend *backend); /* NULL ok */
/* Resizes the node as block_resize does: `shared` must contain PERM_RESIZE. */
bool coroutine_fn backend_co_resize(BlockBackend *backend, int64_t size, GError **error);

/* For users that do several steps as one request, e.g. a look at bitmaps and status: enter waits
 * while drained. Requests made inside use block/io.h on backend_root(). */
void coroutine_fn backend_co_enter(BlockBackend *backend);
void backend_leave(BlockBackend *backend);

/* A hurried section (node.h) for the backend's requests: over its node, whichever it is until the
 * end, and all beneath it. Ends before the backend is freed. */
HurrySection *hurry_begin_backend(BlockBackend *backend);

/* All backends: backend_next(NULL) first. Main thread. */
BlockBackend *backend_next(BlockBackend *previous);
const char *backend_user(const BlockBackend *backend);

#endif
