/* SPDX-License-Identifier: MIT */
/*
 * What a file is open for: permissions of the parents, and blockdev-reopen.
 *
 * Each step takes effect at once and is taken back by the undo stack; the node is drained. While a
 * change is pending, the image is locked for the old permissions and the new ones; a descriptor
 * that replaces another is locked like it before the other is unlocked. So at no moment is the
 * image less protected than it was before or will be afterwards.
 */
#include "file.h"

#include <unistd.h>

#define PERM_ANY_WRITE (PERM_WRITE | PERM_WRITE_UNCHANGED | PERM_RESIZE)

/* With auto-read-only a file is open for writing only while somebody may write. */
FileMode file_mode(bool read_only, bool auto_read_only, bool direct, unsigned perm)
{
    return (FileMode){
        .writable = !read_only && (!auto_read_only || (perm & PERM_ANY_WRITE)),
        .direct = direct,
    };
}

/* --- another descriptor in place of the present one --- */

typedef struct FdSwap {
    BlockNode *node;
    int old_fd;
    bool old_writable, old_direct;
    BlockLimits old_limits;
} FdSwap;

static void swap_commit(void *opaque)
{
    FdSwap *swap = opaque;

    close(swap->old_fd);
}

static void swap_abort(void *opaque)
{
    FdSwap *swap = opaque;
    FileState *file = swap->node->state;

    /* Locks that are shared by all who take them cannot be refused. */
    file_lock_same(file, swap->old_fd, NULL);
    close(file->fd);
    file->fd = swap->old_fd;
    file->writable = swap->old_writable;
    file->direct = swap->old_direct;
    swap->node->limits = swap->old_limits;
}

static bool change_mode(BlockNode *node, FileMode mode, UndoStack *undo, GError **error)
{
    static const UndoOps ops = { swap_commit, swap_abort, g_free };
    FileState *file = node->state;
    FdSwap *swap;
    int fd;

    if (file->writable == mode.writable && file->direct == mode.direct) {
        return true;
    }
    fd = file_open_fd(node, file->path, mode, error);
    if (fd < 0) {
        return false;
    }
    if (!file_lock_same(file, fd, error)) {
        close(fd);
        return false;
    }
    file_lock_none(file, file->fd); /* else its locks would count as another's */
    swap = g_new(FdSwap, 1);
    *swap = (FdSwap){ node, file->fd, file->writable, file->direct, node->limits };
    undo_push(undo, &ops, swap);
    file->fd = fd;
    file->writable = mode.writable;
    file->direct = mode.direct;
    file_probe(node);
    return true;
}

/* --- permissions --- */

typedef struct PermChange {
    FileState *file;
    unsigned old_perm, old_unshared;
    unsigned old_locked_perm, old_locked_unshared;
} PermChange;

static void perm_commit(void *opaque)
{
    PermChange *change = opaque;

    file_lock_keep(change->file, change->file->perm, change->file->unshared);
}

static void perm_abort(void *opaque)
{
    PermChange *change = opaque;

    change->file->perm = change->old_perm;
    change->file->unshared = change->old_unshared;
    file_lock_keep(change->file, change->old_locked_perm, change->old_locked_unshared);
}

bool file_set_perm(BlockNode *node, unsigned perm, unsigned shared, UndoStack *undo, GError **error)
{
    static const UndoOps ops = { perm_commit, perm_abort, g_free };
    FileState *file = node->state;
    PermChange *change;

    change = g_new(PermChange, 1);
    *change =
        (PermChange){ file, file->perm, file->unshared, file->locked_perm, file->locked_unshared };
    if (!file_lock_prepare(file, perm, ~shared & PERM_ALL, error)) {
        g_free(change);
        return false;
    }
    file->perm = perm;
    file->unshared = ~shared & PERM_ALL;
    undo_push(undo, &ops, change);
    return change_mode(node, file_mode(node->read_only, node->auto_read_only, file->direct, perm),
                       undo, error);
}

bool file_reopen_prepare(ReopenState *state, UndoStack *undo, GError **error)
{
    FileState *file = state->node->state;
    FileMode mode =
        file_mode(state->read_only, state->auto_read_only, state->cache_direct, file->perm);

    return change_mode(state->node, mode, undo, error);
}
