/* SPDX-License-Identifier: MIT */
/*
 * What a block driver is: a table of functions over one node's state.
 *
 * Request functions are coroutines, may run on any event loop and on several at a time, and see a
 * frozen graph. They return 0 or -errno. They get ranges inside the node (writes beyond its end
 * too where it can grow), aligned to
 * limits.request_alignment (so the last block may end beyond a size that is not) and no longer than
 * limits.max_*; `vec` holds exactly `bytes`. A NULL function means what its comment says.
 *
 * Control functions run on the main thread while the node is drained (or not yet visible).
 */
#ifndef MERINO_BLOCK_DRIVER_H
#define MERINO_BLOCK_DRIVER_H

#include "block/image.h"
#include "block/io.h"
#include "block/node.h"

typedef struct ReopenState {
    BlockNode *node;
    const BlockdevOptions *options; /* borrowed, valid until commit or abort */
    bool read_only;
    bool auto_read_only; /* the new option's value */
    bool cache_direct;
    bool cache_no_flush;
    void *driver_data; /* the driver's, from prepare to commit or abort */
} ReopenState;

struct BlockDriver {
    const char *name; /* QMP's BlockdevDriver spelling */
    size_t state_size;
    bool is_filter;
    bool is_protocol; /* reaches storage by itself: has no file child */
    bool has_layers;  /* what it has not allocated is its backing file's; zeroes without one */
    bool reports_dirty_flag;           /* queries say whether the image is dirty */
    bool (*is_dirty)(BlockNode *node); /* what queries say; NULL: never */
    bool named_by_options; /* a filter that reports its options, not the name of what it is over */
    bool pins_children; /* means just the nodes it was opened on: filters are never put between */

    /* Options of its own, beyond the common ones and the children, that blockdev-reopen may
     * change; ends with NULL. NULL: none. */
    const char *const *reopen_options;
    /* Those of its own options that do not decide which bytes are seen: names made of options leave
     * them out. Ends with NULL. NULL: none. */
    const char *const *weak_options;

    /* Protocols: the options that a name "DRIVER:..." stands for. NULL: there are no such names. */
    BlockdevOptions *(*parse_name)(const char *name, GError **error);
    /* Formats: whether the beginning of an image looks like one of theirs. NULL: it never does. */
    bool (*probe)(const uint8_t *head, size_t bytes);

    /* Open with checked options. Sets size through node_set_size(), limits, filename. On failure
     * releases all of its own; children that were attached are detached by the caller. */
    bool (*open)(BlockNode *node, const BlockdevOptions *options, GError **error);
    void (*close)(BlockNode *node); /* everything beneath is drained as well */

    /* NULL: only the common options can be reopened. prepare checks and gets ready; then exactly
     * one of commit and abort. */
    bool (*reopen_prepare)(ReopenState *state, UndoStack *undo, GError **error);

    /* How permissions of the parents turn into those on `child`; also asked while opening, with
     * whatever the state is then. NULL: by role. */
    void (*child_perm)(BlockNode *node, BlockChild *child, unsigned perm, unsigned shared,
                       unsigned *ret_perm, unsigned *ret_shared);
    /* The sum of the parents' permissions changes: take locks in storage. Pushes its way back
     * on `undo`. NULL: nothing to do. */
    bool (*set_perm)(BlockNode *node, unsigned perm, unsigned shared, UndoStack *undo,
                     GError **error);

    int coroutine_fn (*co_preadv)(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                                  unsigned flags);
    int coroutine_fn (*co_pwritev)(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                                   unsigned flags);
    /* NULL or -ENOTSUP: zeroes are written. */
    int coroutine_fn (*co_pwrite_zeroes)(BlockNode *node, int64_t offset, int64_t bytes,
                                         unsigned flags);
    /* NULL or -ENOTSUP: nothing happens. */
    int coroutine_fn (*co_pdiscard)(BlockNode *node, int64_t offset, int64_t bytes);
    /* NULL: the `file` child is flushed. */
    int coroutine_fn (*co_flush)(BlockNode *node);
    /* NULL: data everywhere (protocols), or what the filtered child says (filters). Returns
     * BLOCK_STATUS_* and the length it holds for, at least one byte. */
    int coroutine_fn (*co_block_status)(BlockNode *node, int64_t offset, int64_t bytes,
                                        BlockStatus *ret_status);
    /* Grow or shrink, with what is new allocated as `prealloc` says: always off when shrinking; a
     * mode that it has not is refused in words. NULL: passed to the filtered child, else refused.
     * Ends with node_set_size(). */
    int coroutine_fn (*co_truncate)(BlockNode *node, int64_t size, PreallocMode prealloc,
                                    GError **error);

    /* The node's size as storage or its `file` child has it now, or -errno; a filter's is its
     * child's. NULL: it changes only by co_truncate. With a `file` child it is asked in requests
     * too. */
    int64_t (*current_size)(BlockNode *node);
    /* Whether writes and zero-writes may end beyond the end and make the node larger (core/grow.c):
     * they come through an edge with the resize permission, and what lies between the old end and
     * the range reads as zeroes then. NULL: filters as their child, others not. Any thread. */
    bool (*can_grow)(const BlockNode *node);
    /* Limits from the children's, after opening and when they change. NULL:
     * node_take_file_limits(), or what open set when there is no `file` child. */
    void (*refresh_limits)(BlockNode *node);

    /* The frozen view that a copy-before-write node keeps; only such nodes have these. */
    int64_t (*snapshot_size)(const BlockNode *node);
    int coroutine_fn (*co_preadv_snapshot)(BlockNode *node, int64_t offset, int64_t bytes,
                                           IoVector *vec);
    int coroutine_fn (*co_snapshot_block_status)(BlockNode *node, int64_t offset, int64_t bytes,
                                                 BlockStatus *ret_status);
    int coroutine_fn (*co_pdiscard_snapshot)(BlockNode *node, int64_t offset, int64_t bytes);

    /* For tests: somebody is about to do `event` on the node, or did; see node_debug_event(). May
     * yield. NULL: nobody listens. */
    void coroutine_fn (*co_debug_event)(BlockNode *node, BlkdebugEvent event);

    /* Requests may wait in the driver for something other than requests: time, somebody's word.
     * From hurry_begin to hurry_end none does: those that wait go on at once, and no other begins
     * to. Somebody waits for them to end. Neither function polls or waits; both are for the main
     * thread, with requests in flight (core/hurry.c). NULL: nobody waits so. */
    void (*hurry_begin)(BlockNode *node);
    void (*hurry_end)(BlockNode *node);

    /* Requests of the driver's own making: drain_begin returns when all have ended (polling the
     * main loop) and lets no more begin, also on behalf of requests that are still inside, until
     * drain_end. NULL: there are none. */
    void (*drain_begin)(BlockNode *node);
    void (*drain_end)(BlockNode *node);

    int64_t (*allocated_size)(BlockNode *node); /* bytes or -errno; NULL: the `file` child's */
    int64_t (*cluster_size)(BlockNode *node);   /* NULL: none (filters: the child's) */
    /* A short name that opens the same data, for reports; NULL, or returning NULL: by the rules of
     * core/filename.c. Caller frees. */
    char *(*describe)(const BlockNode *node);
    /* Format-specific reports; NULL: none. */
    ImageInfoSpecific *(*specific_info)(BlockNode *node, GError **error);

    /* Make an image; there is no node yet. Runs in a coroutine of the main loop that nobody polls
     * for, so it may do control-plane work by co_run_control(). Returns 0, or -errno with an error
     * in words. NULL: the driver makes none. */
    int coroutine_fn (*co_create)(const BlockdevCreateOptions *options, GError **error);

    /* What is done to an image as a whole. The node is drained, and open for writing unless only
     * something is looked at. They return 0, or -errno with an error in words. NULL: the format
     * cannot. */

    /* Look for what is wrong and mend what `fix` (BlockCheckFix bits) allows. Findings are no
     * failure: 0 is returned and `result` tells. */
    int coroutine_fn (*co_check)(BlockNode *node, BlockCheckResult *result, unsigned fix,
                                 GError **error);
    /* A snapshot inside of the image, of its present content. `info` has the name, the date and the
     * state's size and clocks; the driver gives it an id. */
    int coroutine_fn (*co_snapshot_create)(BlockNode *node, const SnapshotInfo *info,
                                           GError **error);
    /* Make its content the present one. `id` is exactly one that snapshot_list tells; so it is
     * in delete. */
    int coroutine_fn (*co_snapshot_goto)(BlockNode *node, const char *id, GError **error);
    int coroutine_fn (*co_snapshot_delete)(BlockNode *node, const char *id, GError **error);
    /* In the order in which they stand in the image; not NULL. */
    SnapshotInfoList *(*snapshot_list)(BlockNode *node);
    int coroutine_fn (*co_amend)(BlockNode *node, const BlockAmendOptions *options, GError **error);
    /* Write another backing file's name and format into the image; both NULL: none. */
    int coroutine_fn (*co_change_backing_file)(BlockNode *node, const char *name,
                                               const char *format, GError **error);
};

/* What parents' permissions turn into on a child in `role`, for a child_perm that says more. */
void node_perm_by_role(const BlockNode *node, ChildRole role, unsigned perm, unsigned shared,
                       unsigned *ret_perm, unsigned *ret_shared);

/* Hand a driver in (block/builtins.c). Tables are static. */
void driver_register(const BlockDriver *driver);
const BlockDriver *driver_find(const char *name);

/* Tell a node what is done on it, so that tests can make it fail or wait right there. Costs a look
 * where nobody listens. */
static inline void coroutine_fn node_debug_event(BlockNode *node, BlkdebugEvent event)
{
    if (G_UNLIKELY(node->driver->co_debug_event)) {
        node->driver->co_debug_event(node, event);
    }
}

/* For drivers that pass requests on: the limits of a node whose `file` child splits and aligns. */
void node_take_file_limits(BlockNode *node);

/* For drivers: set the size in bytes, also of the node's bitmaps. Drained or while opening. */
void node_set_size(BlockNode *node, int64_t size);

#endif
