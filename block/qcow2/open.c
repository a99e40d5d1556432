/* SPDX-License-Identifier: MIT */
/*
 * Opening and closing.
 *
 * Opening goes from the header outwards: what the image is, where its data lies, tables, snapshots,
 * the backing file, bitmaps. Nothing is written before all of it is there; then an image that is
 * open for writing loses the autoclear features that we do not know.
 */
#include "bitmaps.h"
#include "block/backing.h"
#include "check.h"
#include "header.h"
#include "options.h"
#include "snapshot.h"
#include "util/error.h"

#include <string.h>

/* --- what the image is --- */

void qcow2_set_geometry(Qcow2 *q)
{
    const Qcow2Header *header = &q->header;

    q->cluster_size = INT64_C(1) << header->cluster_bits;
    q->l2_entry_size = has_extended_l2(q) ? 16 : 8;
    q->l2_bits = header->cluster_bits - (has_extended_l2(q) ? 4 : 3);
    q->subclusters = has_extended_l2(q) ? QCOW2_SUBCLUSTERS : 1;
    q->subcluster_size = q->cluster_size / q->subclusters;
    q->refcount_bits = 1u << header->refcount_order;
    q->refblock_bits = header->cluster_bits + 3 - header->refcount_order;
    q->refcount_max = q->refcount_bits == 64 ? INT64_MAX : (UINT64_C(1) << q->refcount_bits) - 1;
}

bool qcow2_check_writable(const Qcow2 *q, GError **error)
{
    if (q->repairing) {
        return true;
    }
    if (q->header.incompatible & QCOW2_INCOMPAT_CORRUPT) {
        merino_error(error, "qcow2: Image is corrupt; cannot be opened read/write");
        return false;
    }
    return true;
}

typedef struct ControlCall {
    Qcow2 *q;
    int ret;
    GError **error;
} ControlCall;

static void coroutine_fn clear_autoclear_entry(void *opaque)
{
    ControlCall *call = opaque;
    const Qcow2Header *header = &call->q->header;

    call->ret = qcow2_set_features(call->q, header->incompatible,
                                   header->autoclear & QCOW2_AUTOCLEAR_KNOWN, call->error);
}

bool qcow2_clear_unknown_autoclear(Qcow2 *q, GError **error)
{
    ControlCall call = { q, 0, error };

    coroutine_run(clear_autoclear_entry, &call);
    return call.ret == 0;
}

/* --- where its data lies --- */

/* The name in the header is looked up from where the program runs, as QEMU does. */
static BlockChild *open_named_data_file(BlockNode *node, const char *name, GError **error)
{
    g_autoptr(BlockdevOptions) options = image_file_options(name, error);
    BlockdevRef ref = { .type = BLOCKDEV_REF_TYPE_DEFINITION, .u.definition = options };

    return options ? node_open_child(node, &ref, "data-file", CHILD_DATA, error) : NULL;
}

static bool open_data_file(Qcow2 *q, const BlockdevOptionsQcow2 *options, GError **error)
{
    BlockNode *node = q->node;
    BlockChild *child = NULL;

    if (options->data_file) {
        child = node_open_child(node, options->data_file, "data-file", CHILD_DATA, error);
        if (!child) {
            return false;
        }
        if (!has_data_file(q)) {
            merino_error(error,
                         "'data-file' can only be set for images with an external data file");
            return false;
        }
    } else if (has_data_file(q) && q->header.data_file_name) {
        child = open_named_data_file(node, q->header.data_file_name, error);
    } else if (has_data_file(q)) {
        merino_error(error, "'data-file' is required for this image");
    } else {
        child = node->file;
    }
    q->data_file = child;
    return child;
}

static bool open_backing(Qcow2 *q, const BlockdevOptionsQcow2 *options, GError **error)
{
    return node_open_backing(q->node, options->backing, q->header.backing_name,
                             q->header.backing_format, error);
}

/* --- opening --- */

static bool open_image(Qcow2 *q, const BlockdevOptionsQcow2 *options, GError **error)
{
    BlockNode *node = q->node;

    if (!qcow2_header_read(node->file, &q->header, error)) {
        return false;
    }
    qcow2_set_geometry(q);
    return (q->repairing || qcow2_header_check_snapshots(&q->header, error)) &&
           (node->read_only || qcow2_check_writable(q, error)) &&
           open_data_file(q, options, error) &&
           qcow2_options_resolve(q, options, node->discard_unmap, &q->options, error);
}

static void coroutine_fn read_snapshots_entry(void *opaque)
{
    ControlCall *call = opaque;

    call->ret = qcow2_snapshots_read(call->q, call->error);
}

static bool open_contents(Qcow2 *q, const BlockdevOptionsQcow2 *options, GError **error)
{
    ControlCall call = { q, 0, error };

    if (!qcow2_tables_open(q, error)) {
        return false;
    }
    if (!q->repairing) { /* else the check reads them */
        coroutine_run(read_snapshots_entry, &call);
    }
    return call.ret == 0 && open_backing(q, options, error);
}

static void coroutine_fn refresh_overlap_entry(void *opaque)
{
    qcow2_overlap_refresh(opaque);
}

static void release(Qcow2 *q)
{
    qcow2_tables_close(q);
    qcow2_snapshots_done(q);
    qcow2_header_done(&q->header);
}

bool qcow2_open(BlockNode *node, const BlockdevOptions *options, GError **error)
{
    const BlockdevOptionsQcow2 *own = &options->u.qcow2;
    Qcow2 *q = node->state;

    q->node = node;
    q->repairing = node->for_check;
    if (!node_open_child(node, own->file, "file", CHILD_METADATA, error)) {
        return false;
    }
    if (!open_image(q, own, error) || !open_contents(q, own, error)) {
        release(q);
        return false;
    }
    node_set_size(node, q->header.size);
    q->flags_behind = q->repairing; /* what says dirty is for the check to clear */
    qcow2_bitmaps_open(q);
    coroutine_run(refresh_overlap_entry, q);
    if (!node->read_only &&
        (!qcow2_repair_dirty(q, error) || !qcow2_clear_unknown_autoclear(q, error))) {
        qcow2_bitmaps_close(q);
        release(q);
        return false;
    }
    return true;
}

/* --- closing --- */

static void coroutine_fn mark_clean_entry(void *opaque)
{
    ControlCall *call = opaque;

    call->ret = qcow2_mark_clean(call->q);
}

void qcow2_close(BlockNode *node)
{
    Qcow2 *q = node->state;
    ControlCall call = { q };

    qcow2_bitmaps_close(q);
    if (!node->read_only) {
        coroutine_run(mark_clean_entry, &call);
        if (call.ret < 0) {
            g_warning("qcow2: the tables of node '%s' could not be written at close: %s",
                      node->node_name, g_strerror(-call.ret));
        }
    }
    release(q);
}
