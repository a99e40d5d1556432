/* SPDX-License-Identifier: MIT */
/*
 * What queries tell of a qcow2 image.
 */
#include "bitmaps.h"
#include "options.h"

bool qcow2_is_dirty(BlockNode *node)
{
    const Qcow2 *q = node->state;

    return q->header.incompatible & QCOW2_INCOMPAT_DIRTY;
}

static void describe_version_3(const Qcow2 *q, ImageInfoSpecificQCow2 *info)
{
    info->has_lazy_refcounts = true;
    info->lazy_refcounts = q->header.compatible & QCOW2_COMPAT_LAZY_REFCOUNTS;
    info->has_corrupt = true;
    info->corrupt = q->header.incompatible & QCOW2_INCOMPAT_CORRUPT;
    info->has_extended_l2 = true;
    info->extended_l2 = has_extended_l2(q);
    info->has_data_file_raw = has_data_file(q);
    info->data_file_raw = data_file_is_raw(q);
    info->data_file = g_strdup(q->header.data_file_name);
}

ImageInfoSpecific *qcow2_specific_info(BlockNode *node, GError **error)
{
    Qcow2 *q = node->state;
    ImageInfoSpecific *info = g_new0(ImageInfoSpecific, 1);
    ImageInfoSpecificQCow2 *data = g_new0(ImageInfoSpecificQCow2, 1);

    info->type = IMAGE_INFO_SPECIFIC_KIND_QCOW2;
    info->u.qcow2.data = data;
    data->compat = g_strdup(q->header.version < 3 ? "0.10" : "1.1");
    data->refcount_bits = q->refcount_bits;
    data->compression_type = q->header.compression_type;
    if (q->header.version >= 3) {
        describe_version_3(q, data);
        data->bitmaps = qcow2_bitmaps_info(q);
    }
    return info;
}
