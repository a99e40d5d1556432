/* SPDX-License-Identifier: MIT */
/*
 * Backends for coroutines that open, resize and close nodes on their way. Each step is control
 * plane, so it is run there while the coroutine waits.
 */
#include "block/backend.h"
#include "util/event-loop.h"

typedef struct OpenCall {
    const BlockdevRef *ref;
    unsigned perm, shared;
    BlockBackend *backend; /* the result */
    GError **error;
} OpenCall;

static void open_on_control(void *opaque)
{
    OpenCall *call = opaque;
    BlockNode *node = node_open_ref(call->ref, call->error);

    if (!node) {
        return;
    }
    call->backend = backend_new("an unnamed block device", call->perm, call->shared);
    if (!backend_attach(call->backend, node, call->error)) {
        backend_free(g_steal_pointer(&call->backend));
    }
    node_unref(node);
}

BlockBackend *coroutine_fn backend_co_open(const BlockdevRef *ref, unsigned perm, unsigned shared,
                                           GError **error)
{
    OpenCall call = { ref, perm, shared, NULL, error };

    co_run_control(open_on_control, &call);
    return call.backend;
}

static void close_on_control(void *opaque)
{
    backend_free(opaque);
}

void coroutine_fn backend_co_close(BlockBackend *backend)
{
    if (backend) {
        co_run_control(close_on_control, backend);
    }
}

typedef struct ResizeCall {
    BlockBackend *backend;
    int64_t size;
    bool ok;
    GError **error;
} ResizeCall;

static void resize_on_control(void *opaque)
{
    ResizeCall *call = opaque;

    call->ok = node_resize(backend_node(call->backend), call->size, call->error);
}

bool coroutine_fn backend_co_resize(BlockBackend *backend, int64_t size, GError **error)
{
    ResizeCall call = { backend, size, false, error };

    co_run_control(resize_on_control, &call);
    return call.ok;
}
