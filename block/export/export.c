/* SPDX-License-Identifier: MIT */
/*
 * The registry of exports.
 *
 * The life of an export: made by export_add() with one reference for the user; export_delete()
 * turns clients away and drops the user's reference; whoever drops the last one lets the export be
 * deleted. In between, while the last requests of clients end, all beneath the export is hurried
 * (block/core/hurry.c), so that this takes as long as the requests themselves. References are
 * dropped on any thread and at any time, also while control-plane work polls the event loop in its
 * middle, so the last unref only leaves a source in GLib's main context, which such a poll does not
 * run.
 */
#include "block/export.h"
#include "block/iothread.h"
#include "qapi/qapi-events.h"
#include "util/error.h"
#include "util/identifier.h"

#include <string.h>

static const BlockExportDriver *drivers[BLOCK_EXPORT_TYPE__MAX];
static BlockExport *newest;

void export_driver_register(const BlockExportDriver *driver)
{
    drivers[driver->type] = driver;
}

/* --- deletion --- */

static void export_free(BlockExport *exp)
{
    if (exp->deletion) {
        g_source_destroy(exp->deletion);
        g_source_unref(exp->deletion);
    }
    if (exp->hurry) {
        hurry_end(exp->hurry);
    }
    backend_free(exp->backend);
    if (exp->on_iothread) {
        iothread_release(exp->loop);
    }
    g_free(exp->state);
    g_free(exp->node_name);
    g_free(exp->id);
    g_free(exp);
}

static void unlink_export(BlockExport *exp)
{
    if (exp->newer) {
        exp->newer->older = exp->older;
    } else {
        newest = exp->older;
    }
    if (exp->older) {
        exp->older->newer = exp->newer;
    }
}

/* The last reference is gone. */
static void delete_export(BlockExport *exp)
{
    g_autofree char *id = g_strdup(exp->id);

    unlink_export(exp);
    exp->driver->destroy(exp);
    export_free(exp);
    qapi_event_send_block_export_deleted(id);
}

static gboolean delete_idle(void *opaque)
{
    delete_export(opaque);
    return G_SOURCE_REMOVE;
}

static void schedule_deletion(void *opaque)
{
    BlockExport *exp = opaque;

    exp->deletion = g_idle_source_new();
    g_source_set_priority(exp->deletion, G_PRIORITY_DEFAULT);
    g_source_set_callback(exp->deletion, delete_idle, exp, NULL);
    g_source_attach(exp->deletion, NULL);
}

void export_ref(BlockExport *exp)
{
    atomic_fetch_add(&exp->refs, 1);
}

void export_unref(BlockExport *exp)
{
    if (atomic_fetch_sub(&exp->refs, 1) == 1) {
        event_loop_call(event_loop_main(), schedule_deletion, exp);
    }
}

/* Turn clients away and take the export from its user. Requests that have begun are carried out,
 * without waiting for anything but their work. */
static void shut_down(BlockExport *exp)
{
    exp->driver->request_shutdown(exp);
    exp->hurry = hurry_begin_backend(exp->backend);
    exp->user_owned = false;
    if (atomic_fetch_sub(&exp->refs, 1) == 1) {
        delete_export(exp);
    }
}

bool export_delete(const char *id, BlockExportRemoveMode mode, GError **error)
{
    BlockExport *exp = export_find(id);

    if (!exp) {
        merino_error(error, "Export '%s' is not found", id);
        return false;
    }
    if (!exp->user_owned) {
        merino_error(error, "Export '%s' is already shutting down", id);
        return false;
    }
    if (mode == BLOCK_EXPORT_REMOVE_MODE_SAFE && atomic_load(&exp->refs) > 1) {
        merino_error(error, "export '%s' still in use", id);
        merino_error_hint(error, "Use mode='hard' to force client disconnect");
        return false;
    }
    shut_down(exp);
    return true;
}

static bool is_of_type(const BlockExport *exp, int type)
{
    return type == BLOCK_EXPORT_TYPE__MAX || exp->driver->type == (BlockExportType)type;
}

void export_close_all_type(int type)
{
    BlockExport *exp = newest;

    while (exp) {
        BlockExport *older = exp->older;

        if (is_of_type(exp, type) && exp->user_owned) {
            shut_down(exp);
        }
        exp = older;
    }
    /* What is left waits for clients, each of which wakes the main loop when it goes. */
    exp = newest;
    while (exp) {
        BlockExport *older = exp->older;

        if (!is_of_type(exp, type)) {
            exp = older;
        } else if (exp->deletion) {
            delete_export(exp);
            exp = older;
        } else {
            event_loop_poll(event_loop_main(), true);
        }
    }
}

/* --- creation --- */

static bool check_options(const BlockExportOptions *options, GError **error)
{
    if (!identifier_is_valid(options->id)) {
        merino_error(error, "Invalid block export id");
        return false;
    }
    if (export_find(options->id)) {
        merino_error(error, "Block export id '%s' is already in use", options->id);
        return false;
    }
    if (!drivers[options->type]) {
        merino_error(error, "No driver found for the requested export type");
        return false;
    }
    return true;
}

/* The loop, the backend and the edge to the node. */
static bool attach(BlockExport *exp, BlockNode *node, const char *iothread, GError **error)
{
    unsigned perm = PERM_CONSISTENT_READ | (exp->writable ? PERM_WRITE : 0);

    exp->loop = iothread ? iothread_acquire(iothread, error) : event_loop_main();
    if (!exp->loop) {
        return false;
    }
    exp->on_iothread = iothread != NULL;
    /* Clients have been told the size. */
    exp->backend = backend_new("an unnamed block device", perm, PERM_ALL & ~PERM_RESIZE);
    return backend_attach(exp->backend, node, error);
}

BlockExport *export_add(const BlockExportOptions *options, GError **error)
{
    BlockExport *exp;
    BlockNode *node;

    if (!check_options(options, error)) {
        return NULL;
    }
    node = node_lookup(options->node_name, error);
    if (!node) {
        return NULL;
    }
    if (options->writable && node->read_only) {
        merino_error(error, "Cannot export read-only node as writable");
        return NULL;
    }

    exp = g_new0(BlockExport, 1);
    exp->id = g_strdup(options->id);
    exp->node_name = g_strdup(node->node_name);
    exp->driver = drivers[options->type];
    exp->state = g_malloc0(exp->driver->state_size);
    exp->writable = options->writable;
    exp->writethrough = options->writethrough;
    exp->user_owned = true;
    exp->refs = 1;
    if (!attach(exp, node, options->iothread, error) || !exp->driver->create(exp, options, error)) {
        export_free(exp);
        return NULL;
    }
    exp->older = newest;
    if (newest) {
        newest->newer = exp;
    }
    newest = exp;
    return exp;
}

/* --- look-up --- */

BlockExport *export_next(BlockExport *previous)
{
    return previous ? previous->older : newest;
}

BlockExport *export_find(const char *id)
{
    for (BlockExport *exp = export_next(NULL); exp; exp = export_next(exp)) {
        if (strcmp(exp->id, id) == 0) {
            return exp;
        }
    }
    return NULL;
}

BlockExportInfoList *export_query(void)
{
    BlockExportInfoList *list = g_new0(BlockExportInfoList, 1);

    for (BlockExport *exp = export_next(NULL); exp; exp = export_next(exp)) {
        BlockExportInfo *info = g_new0(BlockExportInfo, 1);

        info->id = g_strdup(exp->id);
        info->type = exp->driver->type;
        info->node_name = g_strdup(exp->node_name);
        info->shutting_down = !exp->user_owned;
        block_export_info_list_append(list, info);
    }
    return list;
}
