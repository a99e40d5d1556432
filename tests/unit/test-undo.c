/* SPDX-License-Identifier: MIT */
/* The undo stack calls each step's functions in the promised order. */
#include "util/undo.h"

static GString *calls;

static void on_commit(void *opaque)
{
    g_string_append_printf(calls, "c%s ", (const char *)opaque);
}

static void on_abort(void *opaque)
{
    g_string_append_printf(calls, "a%s ", (const char *)opaque);
}

static void on_clean(void *opaque)
{
    g_string_append_printf(calls, "x%s ", (const char *)opaque);
}

static const UndoOps all_ops = { on_commit, on_abort, on_clean };
static const UndoOps abort_only = { .abort = on_abort };
static const UndoOps no_ops = { NULL };

static UndoStack *three_steps(void)
{
    UndoStack *stack = undo_stack_new();

    g_string_truncate(calls, 0);
    undo_push(stack, &all_ops, (void *)"1");
    undo_push(stack, &abort_only, (void *)"2");
    undo_push(stack, &no_ops, NULL);
    undo_push(stack, &all_ops, (void *)"3");
    return stack;
}

static void commit_goes_forward(void)
{
    undo_commit(three_steps());
    g_assert_cmpstr(calls->str, ==, "c1 c3 x1 x3 ");
}

static void abort_goes_backward(void)
{
    undo_abort(three_steps());
    g_assert_cmpstr(calls->str, ==, "a3 a2 a1 x3 x1 ");
}

static void finish_follows_ok(void)
{
    g_assert_true(undo_finish(three_steps(), true));
    g_assert_cmpstr(calls->str, ==, "c1 c3 x1 x3 ");
    g_assert_false(undo_finish(three_steps(), false));
    g_assert_cmpstr(calls->str, ==, "a3 a2 a1 x3 x1 ");
}

static void empty_stack(void)
{
    undo_commit(undo_stack_new());
    undo_abort(undo_stack_new());
}

int main(int argc, char **argv)
{
    int ret;

    g_test_init(&argc, &argv, NULL);
    calls = g_string_new(NULL);
    g_test_add_func("/undo/commit-goes-forward", commit_goes_forward);
    g_test_add_func("/undo/abort-goes-backward", abort_goes_backward);
    g_test_add_func("/undo/finish-follows-ok", finish_follows_ok);
    g_test_add_func("/undo/empty-stack", empty_stack);
    ret = g_test_run();
    g_string_free(calls, TRUE);
    return ret;
}
