/* SPDX-License-Identifier: MIT */
/*
 * The driver `throttle`: a filter whose requests go no faster than its throttle group allows.
 *
 * Reads are reads; writes, zero-writes and discards are writes. Flushes and block status do not
 * wait. While the node is hurried nobody waits: requests that did are let go, so that a drain, or
 * the end of an export, takes as long as the requests themselves.
 */
#include "block/throttle.h"
#include "block/driver.h"
#include "block/drivers.h"

static bool throttle_open(BlockNode *node, const BlockdevOptions *options, GError **error)
{
    const BlockdevOptionsThrottle *own = &options->u.throttle;
    BlockChild *file = node_open_child(node, own->file, "file", CHILD_FILTERED, error);
    ThrottleGroup *group = file ? throttle_group_find(own->throttle_group, error) : NULL;

    if (!group) {
        return false;
    }
    throttle_member_join(node->state, group);
    node_set_size(node, node_size(file->node));
    return true;
}

static void throttle_close(BlockNode *node)
{
    throttle_member_leave(node->state);
}

/* --- another group --- */

/* Nobody waits, since the node is drained; and it stays open in the new group. */
static void move_to(ThrottleMember *member, ThrottleGroup *group)
{
    throttle_member_leave(member);
    throttle_member_join(member, group);
}

typedef struct GroupChange {
    ThrottleMember *member;
    ThrottleGroup *old;
} GroupChange;

static void abort_change(void *opaque)
{
    GroupChange *change = opaque;

    move_to(change->member, change->old);
}

static bool throttle_reopen_prepare(ReopenState *state, UndoStack *undo, GError **error)
{
    static const UndoOps ops = { .abort = abort_change, .clean = g_free };
    ThrottleMember *member = state->node->state;
    ThrottleGroup *group = throttle_group_find(state->options->u.throttle.throttle_group, error);
    GroupChange *change;

    if (!group) {
        return false;
    }
    change = g_new(GroupChange, 1);
    *change = (GroupChange){ member, member->group };
    undo_push(undo, &ops, change);
    move_to(member, group);
    return true;
}

/* --- requests --- */

static int coroutine_fn throttle_co_preadv(BlockNode *node, int64_t offset, int64_t bytes,
                                           IoVector *vec, unsigned flags)
{
    throttle_member_wait(node->state, THROTTLE_READ, bytes);
    return child_co_preadv(node->file, offset, bytes, vec, flags);
}

static int coroutine_fn throttle_co_pwritev(BlockNode *node, int64_t offset, int64_t bytes,
                                            IoVector *vec, unsigned flags)
{
    throttle_member_wait(node->state, THROTTLE_WRITE, bytes);
    return child_co_pwritev(node->file, offset, bytes, vec, flags);
}

static int coroutine_fn throttle_co_pwrite_zeroes(BlockNode *node, int64_t offset, int64_t bytes,
                                                  unsigned flags)
{
    throttle_member_wait(node->state, THROTTLE_WRITE, bytes);
    return child_co_pwrite_zeroes(node->file, offset, bytes, flags);
}

static int coroutine_fn throttle_co_pdiscard(BlockNode *node, int64_t offset, int64_t bytes)
{
    throttle_member_wait(node->state, THROTTLE_WRITE, bytes);
    return child_co_pdiscard(node->file, offset, bytes);
}

static void throttle_hurry_begin(BlockNode *node)
{
    throttle_member_open(node->state);
}

static void throttle_hurry_end(BlockNode *node)
{
    throttle_member_close(node->state);
}

static const char *const reopen_options[] = { "throttle-group", NULL };

static const BlockDriver throttle_driver = {
    .name = "throttle",
    .state_size = sizeof(ThrottleMember),
    .is_filter = true,
    .named_by_options = true,
    .reopen_options = reopen_options,
    .open = throttle_open,
    .close = throttle_close,
    .reopen_prepare = throttle_reopen_prepare,
    .co_preadv = throttle_co_preadv,
    .co_pwritev = throttle_co_pwritev,
    .co_pwrite_zeroes = throttle_co_pwrite_zeroes,
    .co_pdiscard = throttle_co_pdiscard,
    .hurry_begin = throttle_hurry_begin,
    .hurry_end = throttle_hurry_end,
};

void throttle_driver_register(void)
{
    driver_register(&throttle_driver);
}
