/* SPDX-License-Identifier: MIT */
/*
 * Undo stack: prepare, then commit or abort.
 *
 * Whatever changes several things pushes, for each step that it has prepared, what makes it final
 * and what takes it back. Commit runs the `commit` functions in the order of the pushes; abort
 * runs the `abort` functions in reverse. Either way `clean` runs last for each step, in the same
 * order. Neither commit nor abort can fail. Any of the three may be NULL.
 */
#ifndef MERINO_UTIL_UNDO_H
#define MERINO_UTIL_UNDO_H

#include <glib.h>
#include <stdbool.h>

typedef struct UndoStack UndoStack;

typedef struct UndoOps {
    void (*commit)(void *opaque);
    void (*abort)(void *opaque);
    void (*clean)(void *opaque);
} UndoOps;

UndoStack *undo_stack_new(void);

/* `ops` is static; `opaque` belongs to the stack until `clean`. */
void undo_push(UndoStack *stack, const UndoOps *ops, void *opaque);

/* Both end the stack's life. */
void undo_commit(UndoStack *stack);
void undo_abort(UndoStack *stack);

/* Commit when `ok`, else abort; returns `ok`. */
bool undo_finish(UndoStack *stack, bool ok);

#endif
