/* SPDX-License-Identifier: MIT */
/*
 * The driver `qcow2`: its table, and what is too small for a file of its own.
 */
#include "amend.h"
#include "block/backing.h"
#include "block/drivers.h"
#include "check.h"
#include "options.h"
#include "snapshot.h"
#include "util/error.h"

#include <errno.h>
#include <string.h>

static bool qcow2_probe(const uint8_t *head, size_t bytes)
{
    uint32_t words[2];

    if (bytes < sizeof(words)) {
        return false;
    }
    memcpy(words, head, sizeof(words));
    return GUINT32_FROM_BE(words[0]) == QCOW2_MAGIC && GUINT32_FROM_BE(words[1]) >= 2;
}

/* Requests of any length and place are taken; what they make of the file is aligned beneath. Writes
 * that leave the disk unchanged change the file, so the driver is not told which are. */
static void qcow2_refresh_limits(BlockNode *node)
{
    const Qcow2 *q = node->state;

    node->limits = (BlockLimits){
        .request_alignment = 1,
        .memory_alignment = q->data_file->node->limits.memory_alignment,
        .discard_alignment = 1,
        .write_flags = REQ_WRITE_COMPRESSED,
        .zero_flags = q->header.version >= 3 ? REQ_MAY_UNMAP | REQ_NO_FALLBACK : 0,
    };
}

static int64_t qcow2_cluster_size(BlockNode *node)
{
    const Qcow2 *q = node->state;

    return q->cluster_size;
}

static int64_t qcow2_allocated_size(BlockNode *node)
{
    const Qcow2 *q = node->state;
    int64_t file = node_allocated_size(node->file->node);
    int64_t data = has_data_file(q) ? node_allocated_size(q->data_file->node) : 0;

    return file < 0 ? file : data < 0 ? data : file + data;
}

/* The header is the same again when the change cannot be written. */
static int coroutine_fn qcow2_co_change_backing_file(BlockNode *node, const char *name,
                                                     const char *format, GError **error)
{
    Qcow2 *q = node->state;
    char *old_name = q->header.backing_name, *old_format = q->header.backing_format;
    int ret;

    if (name && data_file_is_raw(q)) {
        merino_error(error, "A qcow2 image whose external data file is raw has no backing file");
        return -EINVAL;
    }
    q->header.backing_name = name && *name ? g_strdup(name) : NULL;
    q->header.backing_format = format && *format ? g_strdup(format) : NULL;
    ret = qcow2_header_commit(q, error);
    if (ret < 0) {
        g_free(q->header.backing_name);
        g_free(q->header.backing_format);
        q->header.backing_name = old_name;
        q->header.backing_format = old_format;
        return ret;
    }
    g_free(old_name);
    g_free(old_format);
    node_set_backing_name(node, q->header.backing_name, q->header.backing_format);
    return 0;
}

static const BlockDriver qcow2_driver = {
    .name = "qcow2",
    .has_layers = true,
    .state_size = sizeof(Qcow2),
    .reports_dirty_flag = true,
    .is_dirty = qcow2_is_dirty,
    .reopen_options = qcow2_runtime_options,
    .weak_options = qcow2_runtime_options,
    .probe = qcow2_probe,
    .open = qcow2_open,
    .close = qcow2_close,
    .reopen_prepare = qcow2_reopen_prepare,
    .co_preadv = qcow2_co_preadv,
    .co_pwritev = qcow2_co_pwritev,
    .co_pwrite_zeroes = qcow2_co_pwrite_zeroes,
    .co_pdiscard = qcow2_co_pdiscard,
    .co_flush = qcow2_co_flush,
    .co_block_status = qcow2_co_block_status,
    .co_truncate = qcow2_co_truncate,
    .refresh_limits = qcow2_refresh_limits,
    .allocated_size = qcow2_allocated_size,
    .cluster_size = qcow2_cluster_size,
    .specific_info = qcow2_specific_info,
    .co_create = qcow2_co_create,
    .co_check = qcow2_co_check,
    .co_snapshot_create = qcow2_co_snapshot_create,
    .co_snapshot_goto = qcow2_co_snapshot_goto,
    .co_snapshot_delete = qcow2_co_snapshot_delete,
    .snapshot_list = qcow2_snapshot_list,
    .co_amend = qcow2_co_amend,
    .co_change_backing_file = qcow2_co_change_backing_file,
};

void qcow2_driver_register(void)
{
    driver_register(&qcow2_driver);
}
