/* SPDX-License-Identifier: MIT */
/*
 * Backends: their life, their node and their permissions. The door itself is in drain.c, requests
 * are in backend-io.c.
 *
 * A backend's `root` changes only while its door is closed and nobody is inside, so a request reads
 * it without a lock from entering to leaving.
 */
#include "core-internal.h"

static BlockBackend *newest;

BlockBackend *backend_new(const char *user, unsigned perm, unsigned shared)
{
    BlockBackend *backend = g_new0(BlockBackend, 1);

    backend->user = g_strdup(user);
    backend->perm = perm;
    backend->shared = shared;
    atomic_init(&backend->hinted, NOWHERE);
    g_mutex_init(&backend->lock);
    co_queue_init(&backend->waiting);
    backend->older = newest;
    if (newest) {
        newest->newer = backend;
    }
    newest = backend;
    return backend;
}

void backend_free(BlockBackend *backend)
{
    if (!backend) {
        return;
    }
    backend_detach(backend);
    door_close(backend);
    door_wait_idle(backend);
    drain_forget_backend(backend);
    g_assert(co_queue_is_empty(&backend->waiting));

    if (backend->newer) {
        backend->newer->older = backend->older;
    } else {
        newest = backend->older;
    }
    if (backend->older) {
        backend->older->newer = backend->newer;
    }
    g_mutex_clear(&backend->lock);
    g_free(backend->user);
    g_free(backend);
}

bool backend_attach(BlockBackend *backend, BlockNode *node, GError **error)
{
    DrainSection *section = drain_begin_below(&node, 1);
    bool ok;

    g_assert(!backend->root);
    door_close(backend);
    door_wait_idle(backend);
    backend->root = edge_new(NULL, backend, node, "root", CHILD_OTHER);
    backend->root->perm = backend->perm;
    backend->root->shared = backend->shared;
    ok = perm_refresh(&node, 1, NULL, error);
    if (!ok) {
        edge_free(g_steal_pointer(&backend->root));
    }
    door_open(backend);
    drain_end(section);
    if (ok) {
        backend_notify_change(backend);
    }
    return ok;
}

void backend_detach(BlockBackend *backend)
{
    DrainSection *section;
    BlockNode *node;

    if (!backend->root) {
        return;
    }
    node = backend->root->node;
    section = drain_begin_below(&node, 1);
    edge_free(g_steal_pointer(&backend->root));
    /* Asking for less cannot conflict; a lock that could not be given back stays. */
    perm_refresh(&node, 1, NULL, NULL);
    drain_end(section);
}

bool backend_set_perm(BlockBackend *backend, unsigned perm, unsigned shared, GError **error)
{
    unsigned old_perm = backend->perm, old_shared = backend->shared;
    DrainSection *section;
    BlockNode *node;
    bool ok = true;

    backend->perm = perm;
    backend->shared = shared;
    if (!backend->root) {
        return true;
    }
    node = backend->root->node;
    section = drain_begin_below(&node, 1);
    backend->root->perm = perm;
    backend->root->shared = shared;
    if (!perm_refresh(&node, 1, NULL, error)) {
        backend->root->perm = backend->perm = old_perm;
        backend->root->shared = backend->shared = old_shared;
        ok = false;
    }
    drain_end(section);
    return ok;
}

BlockNode *backend_node(const BlockBackend *backend)
{
    return backend->root ? backend->root->node : NULL;
}

BlockChild *backend_root(const BlockBackend *backend)
{
    return backend->root;
}

int64_t backend_size(const BlockBackend *backend)
{
    return backend->root ? node_size(backend->root->node) : 0;
}

void backend_set_change_handler(BlockBackend *backend, void (*fn)(void *opaque), void *opaque)
{
    backend->change_fn = fn;
    backend->change_opaque = opaque;
}

void backend_notify_change(BlockBackend *backend)
{
    if (backend->change_fn) {
        backend->change_fn(backend->change_opaque);
    }
}

BlockBackend *backend_next(BlockBackend *previous)
{
    return previous ? previous->older : newest;
}

const char *backend_user(const BlockBackend *backend)
{
    return backend->user;
}
