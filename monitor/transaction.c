/* SPDX-License-Identifier: MIT */
/*
 * transaction: several actions as one, in one instant.
 *
 * All nodes concerned are drained together before the first action is prepared, and until all
 * is committed or undone, so each write falls wholly before or wholly after the transaction.
 * Actions see what those before them did.
 */
#include "transaction.h"
#include "qapi/qapi-commands.h"
#include "util/error.h"

static bool prepare_abort(const TransactionAction *action, UndoStack *undo, GError **error)
{
    merino_error(error, "Transaction aborted using Abort action");
    return false;
}

static const TransactionActionOps abort_action = { .grouped = true, .prepare = prepare_abort };

static const TransactionActionOps *const actions_by_kind[TRANSACTION_ACTION_KIND__MAX] = {
    [TRANSACTION_ACTION_KIND_ABORT] = &abort_action,
    [TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_ADD] = &bitmap_add_action,
    [TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_REMOVE] = &bitmap_remove_action,
    [TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_CLEAR] = &bitmap_clear_action,
    [TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_ENABLE] = &bitmap_enable_action,
    [TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_DISABLE] = &bitmap_disable_action,
    [TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_MERGE] = &bitmap_merge_action,
    [TRANSACTION_ACTION_KIND_BLOCKDEV_FILTER_INSERT] = &filter_insert_action,
    [TRANSACTION_ACTION_KIND_BLOCKDEV_FILTER_REMOVE] = &filter_remove_action,
    [TRANSACTION_ACTION_KIND_BLOCKDEV_SNAPSHOT_INTERNAL_SYNC] = &snapshot_internal_action,
};

/* NULL when nothing needs to stand still. */
static DrainSection *drain_all_nodes(TransactionAction *const actions[], size_t n)
{
    g_autoptr(GPtrArray) nodes = g_ptr_array_new();

    for (size_t i = 0; i < n; i++) {
        const TransactionActionOps *ops = actions_by_kind[actions[i]->type];

        if (ops->nodes) {
            ops->nodes(actions[i], nodes);
        }
    }
    return nodes->len ? drain_begin((BlockNode *const *)nodes->pdata, nodes->len) : NULL;
}

static bool check_mode(const TransactionAction *action, ActionCompletionMode mode, GError **error)
{
    if (mode == ACTION_COMPLETION_MODE_GROUPED && !actions_by_kind[action->type]->grouped) {
        merino_error(error,
                     "Action '%s' does not support Transaction property completion-mode = %s",
                     TransactionActionKind_str(action->type), ActionCompletionMode_str(mode));
        return false;
    }
    return true;
}

static bool prepare_all(const TransactionActionList *actions, ActionCompletionMode mode,
                        UndoStack *undo, GError **error)
{
    for (size_t i = 0; i < actions->len; i++) {
        const TransactionAction *action = actions->items[i];

        if (!check_mode(action, mode, error) ||
            !actions_by_kind[action->type]->prepare(action, undo, error)) {
            return false;
        }
    }
    return true;
}

bool qmp_transaction(const TransactionActionList *actions, const TransactionProperties *properties,
                     GError **error)
{
    ActionCompletionMode mode = properties && properties->has_completion_mode
                                    ? properties->completion_mode
                                    : ACTION_COMPLETION_MODE_INDIVIDUAL;
    DrainSection *section = drain_all_nodes(actions->items, actions->len);
    UndoStack *undo = undo_stack_new();
    bool ok = undo_finish(undo, prepare_all(actions, mode, undo, error));

    if (section) {
        drain_end(section);
    }
    return ok;
}

bool transaction_run_one(const TransactionAction *action, GError **error)
{
    TransactionAction *actions[] = { (TransactionAction *)action };
    DrainSection *section = drain_all_nodes(actions, 1);
    bool ok = actions_by_kind[action->type]->prepare(action, NULL, error);

    if (section) {
        drain_end(section);
    }
    return ok;
}
