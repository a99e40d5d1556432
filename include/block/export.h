/* SPDX-License-Identifier: MIT */
/*
 * Exports: disks offered to clients, by id, whatever the protocol.
 *
 * The registry owns the exports. An export is referenced once for the user who made it and once
 * for each client; it is deleted when the last reference goes, and BLOCK_EXPORT_DELETED is sent.
 *
 * Control plane, except where said. Deleting changes the graph, so it happens in export_delete(),
 * in export_close_all_type(), or from GLib's main context: never in the middle of other control
 * work that polls the event loop.
 */
#ifndef MERINO_BLOCK_EXPORT_H
#define MERINO_BLOCK_EXPORT_H

#include "block/backend.h"

typedef struct BlockExport BlockExport;

typedef struct BlockExportDriver {
    BlockExportType type;
    size_t state_size;
    /* Start serving exp->backend, which is attached and has its permissions. */
    bool (*create)(BlockExport *exp, const BlockExportOptions *options, GError **error);
    /* Turn clients away so that references go, and take no new ones; any number of times. No
     * request begins afterwards, unless one was about to. */
    void (*request_shutdown)(BlockExport *exp);
    void (*destroy)(BlockExport *exp);
} BlockExportDriver;

struct BlockExport {
    BlockExport *older, *newer; /* of the registry */
    char *id;
    const BlockExportDriver *driver;
    void *state; /* the driver's, driver->state_size zeroed bytes */
    BlockBackend *backend;
    EventLoop *loop; /* where its requests run */
    char *node_name;
    bool on_iothread; /* `loop` is held from an iothread object */
    bool writable;
    bool writethrough;
    bool user_owned;     /* not yet deleted by a command */
    atomic_uint refs;    /* one for the user, one per client */
    GSource *deletion;   /* waits in the main context, once the last reference is gone */
    HurrySection *hurry; /* over what lies beneath, while it shuts down */
};

void export_driver_register(const BlockExportDriver *driver);

BlockExport *export_add(const BlockExportOptions *options, GError **error);
/* "safe" refuses while clients are connected; "hard" turns them away. */
bool export_delete(const char *id, BlockExportRemoveMode mode, GError **error);
BlockExport *export_find(const char *id);
/* Newest first: export_next(NULL) is the newest. */
BlockExport *export_next(BlockExport *previous);
BlockExportInfoList *export_query(void);

/* Any thread. */
void export_ref(BlockExport *exp);
void export_unref(BlockExport *exp);

/* Turn away all clients of exports of this type (or all: BLOCK_EXPORT_TYPE__MAX) and wait until
 * the exports are gone and their events sent. */
void export_close_all_type(int type);

#endif
