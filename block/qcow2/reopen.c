/* SPDX-License-Identifier: MIT */
/*
 * Reopening: from read-only to read-write and back, and with other options.
 *
 * What must be in the file before the change (stored bitmaps, clean refcounts, tables written back)
 * is written in prepare, while the node can still be written to; taking the change back needs
 * nothing then. What the file needs for being written to is written at commit.
 */
#include "bitmaps.h"
#include "options.h"
#include "util/error.h"

typedef struct Qcow2Reopen {
    Qcow2 *q;
    Qcow2Options options;
    bool discard_decides; /* pass-discard-request was not given */
    bool becomes_writable;
} Qcow2Reopen;

typedef struct MetadataCall {
    Qcow2 *q;
    int ret;
} MetadataCall;

static void coroutine_fn mark_clean_entry(void *opaque)
{
    MetadataCall *call = opaque;

    call->ret = qcow2_mark_clean(call->q);
}

static void coroutine_fn empty_caches_entry(void *opaque)
{
    MetadataCall *call = opaque;

    call->ret = qcow2_empty_caches(call->q);
}

static bool run(Qcow2 *q, CoroutineFn *fn, GError **error)
{
    MetadataCall call = { q, 0 };

    coroutine_run(fn, &call);
    if (call.ret < 0) {
        merino_error_errno(error, -call.ret, "Could not write the tables of node '%s'",
                           q->node->node_name);
    }
    return call.ret == 0;
}

static void commit_reopen(void *opaque)
{
    Qcow2Reopen *reopen = opaque;
    Qcow2 *q = reopen->q;
    g_autoptr(GError) error = NULL;

    if (reopen->discard_decides) {
        reopen->options.pass_discard_request = q->node->discard_unmap;
    }
    q->options = reopen->options;
    qcow2_tables_apply_options(q);
    if (!reopen->becomes_writable) {
        return;
    }
    if (!qcow2_clear_unknown_autoclear(q, &error)) {
        g_warning("qcow2: %s", error->message);
    }
    qcow2_bitmaps_reopen_rw(q);
}

/* A dirty image is mended when it is opened, not while it is in use. */
static bool check_reopen_writable(const Qcow2 *q, GError **error)
{
    if (q->header.incompatible & QCOW2_INCOMPAT_DIRTY) {
        merino_error(error, "qcow2: Image was not closed properly; it must be repaired before it "
                            "is opened read/write");
        return false;
    }
    return qcow2_check_writable(q, error);
}

static bool prepare_file(const ReopenState *state, Qcow2Reopen *reopen, UndoStack *undo,
                         GError **error)
{
    Qcow2 *q = reopen->q;

    if (!state->node->read_only && state->read_only) {
        return qcow2_bitmaps_reopen_ro(q, undo, error) && run(q, mark_clean_entry, error);
    }
    if (reopen->becomes_writable) {
        return check_reopen_writable(q, error);
    }
    if (q->options.lazy_refcounts && !reopen->options.lazy_refcounts && !state->read_only) {
        return run(q, mark_clean_entry, error);
    }
    return true;
}

bool qcow2_reopen_prepare(ReopenState *state, UndoStack *undo, GError **error)
{
    static const UndoOps ops = { .commit = commit_reopen, .clean = g_free };
    const BlockdevOptionsQcow2 *options = &state->options->u.qcow2;
    Qcow2 *q = state->node->state;
    Qcow2Reopen *reopen = g_new0(Qcow2Reopen, 1);

    reopen->q = q;
    reopen->discard_decides = !options->has_pass_discard_request;
    reopen->becomes_writable = state->node->read_only && !state->read_only;
    undo_push(undo, &ops, reopen);
    return qcow2_options_resolve(q, options, state->node->discard_unmap, &reopen->options, error) &&
           prepare_file(state, reopen, undo, error) && run(q, empty_caches_entry, error);
}
