/* SPDX-License-Identifier: MIT */
/*
 * What the commands that put filters over live nodes do, as actions of transactions.
 */
#include "transaction.h"

static void nodes_of_insert(const TransactionAction *action, GPtrArray *nodes)
{
    BlockNode *node = node_filter_target(action->u.blockdev_filter_insert.data->options, NULL);

    if (node) {
        g_ptr_array_add(nodes, node);
    }
}

static bool prepare_insert(const TransactionAction *action, UndoStack *undo, GError **error)
{
    return node_insert_filter(action->u.blockdev_filter_insert.data->options, undo, error) != NULL;
}

const TransactionActionOps filter_insert_action = { .nodes = nodes_of_insert,
                                                    .prepare = prepare_insert };

static void nodes_of_remove(const TransactionAction *action, GPtrArray *nodes)
{
    BlockNode *node = node_find(action->u.blockdev_filter_remove.data->node_name);

    if (node) {
        g_ptr_array_add(nodes, node);
    }
}

static bool prepare_remove(const TransactionAction *action, UndoStack *undo, GError **error)
{
    return node_remove_filter(action->u.blockdev_filter_remove.data->node_name, undo, error);
}

const TransactionActionOps filter_remove_action = { .nodes = nodes_of_remove,
                                                    .prepare = prepare_remove };
