/* SPDX-License-Identifier: MIT */
#include "util/undo.h"

typedef struct UndoStep {
    const UndoOps *ops;
    void *opaque;
} UndoStep;

struct UndoStack {
    GArray *steps; /* of UndoStep, in the order of the pushes */
};

UndoStack *undo_stack_new(void)
{
    UndoStack *stack = g_new(UndoStack, 1);

    stack->steps = g_array_new(FALSE, FALSE, sizeof(UndoStep));
    return stack;
}

void undo_push(UndoStack *stack, const UndoOps *ops, void *opaque)
{
    UndoStep step = { ops, opaque };

    g_array_append_val(stack->steps, step);
}

static UndoStep step_at(const UndoStack *stack, guint i)
{
    return g_array_index(stack->steps, UndoStep, i);
}

static void clean_and_free(UndoStack *stack, bool forward)
{
    guint n = stack->steps->len;

    for (guint i = 0; i < n; i++) {
        UndoStep step = step_at(stack, forward ? i : n - 1 - i);

        if (step.ops->clean) {
            step.ops->clean(step.opaque);
        }
    }
    g_array_free(stack->steps, TRUE);
    g_free(stack);
}

void undo_commit(UndoStack *stack)
{
    for (guint i = 0; i < stack->steps->len; i++) {
        UndoStep step = step_at(stack, i);

        if (step.ops->commit) {
            step.ops->commit(step.opaque);
        }
    }
    clean_and_free(stack, true);
}

void undo_abort(UndoStack *stack)
{
    for (guint i = stack->steps->len; i > 0; i--) {
        UndoStep step = step_at(stack, i - 1);

        if (step.ops->abort) {
            step.ops->abort(step.opaque);
        }
    }
    clean_and_free(stack, false);
}

bool undo_finish(UndoStack *stack, bool ok)
{
    if (ok) {
        undo_commit(stack);
    } else {
        undo_abort(stack);
    }
    return ok;
}
