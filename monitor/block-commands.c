/* SPDX-License-Identifier: MIT */
/*
 * QMP commands on nodes: looked up here, done in block/core.
 */
#include "block/node.h"
#include "qapi/qapi-commands.h"
#include "util/error.h"

bool qmp_blockdev_add(const BlockdevOptions *arg, GError **error)
{
    return node_add(arg, error);
}

bool qmp_blockdev_del(const char *node_name, GError **error)
{
    return node_delete(node_name, error);
}

bool qmp_blockdev_reopen(const BlockdevOptionsList *options, GError **error)
{
    return node_reopen(options, error);
}

bool qmp_blockdev_filter_insert(const BlockdevFilterInsert *arg, GError **error)
{
    return node_insert_filter(arg->options, NULL, error) != NULL;
}

bool qmp_blockdev_filter_remove(const BlockdevFilterRemove *arg, GError **error)
{
    return node_remove_filter(arg->node_name, NULL, error);
}

BlockDeviceInfoList *qmp_query_named_block_nodes(bool has_flat, bool flat, GError **error)
{
    g_autoptr(BlockDeviceInfoList) list = g_new0(BlockDeviceInfoList, 1);

    for (BlockNode *node = node_next(NULL); node; node = node_next(node)) {
        BlockDeviceInfo *info = node_info(node, has_flat && flat, error);

        if (!info) {
            return NULL;
        }
        block_device_info_list_append(list, info);
    }
    return g_steal_pointer(&list);
}

/* Lists the devices of a virtual machine; there is none beside this process's disks. */
BlockInfoList *qmp_query_block(GError **error)
{
    return g_new0(BlockInfoList, 1);
}

bool qmp_block_resize(const char *device, const char *node_name, int64_t size, GError **error)
{
    BlockNode *node = node_name ? node_find(node_name) : NULL;

    if (!node) {
        merino_error(error, "Cannot find device='%s' nor node-name='%s'", device ? device : "",
                     node_name ? node_name : "");
        return false;
    }
    return node_resize(node, size, error);
}
