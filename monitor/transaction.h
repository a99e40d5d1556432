/* SPDX-License-Identifier: MIT */
/*
 * The actions of transactions.
 *
 * An action is a row of functions. `nodes` says which nodes must stand still while it is prepared:
 * those where it changes what a write does. `prepare` does it, with its undo pushed on the
 * stack. transaction.c runs them; a new action is a struct in its file and a line in the table
 * there.
 *
 * All on the control plane.
 */
#ifndef MERINO_MONITOR_TRANSACTION_H
#define MERINO_MONITOR_TRANSACTION_H

#include "block/node.h"
#include "util/undo.h"

typedef struct TransactionActionOps {
    bool grouped; /* allowed with completion-mode=grouped */
    /* Add the nodes to be drained (BlockNode *, borrowed) before any action is prepared. What is
     * wrong with the action is said by `prepare`. NULL: none. */
    void (*nodes)(const TransactionAction *action, GPtrArray *nodes);
    /* Takes effect at once. `undo` NULL: the action is a command by itself, and final. */
    bool (*prepare)(const TransactionAction *action, UndoStack *undo, GError **error);
} TransactionActionOps;

/* Do one action as a command by itself. */
bool transaction_run_one(const TransactionAction *action, GError **error);

/* bitmap-actions.c */
extern const TransactionActionOps bitmap_add_action;
extern const TransactionActionOps bitmap_remove_action;
extern const TransactionActionOps bitmap_clear_action;
extern const TransactionActionOps bitmap_enable_action;
extern const TransactionActionOps bitmap_disable_action;
extern const TransactionActionOps bitmap_merge_action;

/* graph-actions.c */
extern const TransactionActionOps filter_insert_action;
extern const TransactionActionOps filter_remove_action;

/* snapshot-actions.c */
extern const TransactionActionOps snapshot_internal_action;

#endif
