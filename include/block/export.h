/* SPDX-License-Identifier: MIT */
/*
 * Exports: disks offered to clients, by id, whatever the protocol.
 *
 * The registry owns the exports. Control plane, except where said. An export lives until
 * somebody deletes it and its last client is gone; then BLOCK_EXPORT_DELETED is sent.
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
    /* Turn clients away so that references go; any number of times. */
    void (*request_shutdown)(BlockExport *exp);
    void (*destroy)(BlockExport *exp);
} BlockExportDriver;

struct BlockExport {
    char *id;
    const BlockExportDriver *driver;
    void *state;
    BlockBackend *backend;
    EventLoop *loop; /* where its requests run */
    char *node_name;
    bool writable;
    bool writethrough;
    bool user_owned;  /* not yet deleted by a command */
    atomic_uint refs; /* one for the user, one per client */
};

void export_driver_register(const BlockExportDriver *driver);

BlockExport *export_add(const BlockExportOptions *options, GError **error);
/* "safe" refuses while clients are connected; "hard" turns them away. */
bool export_delete(const char *id, BlockExportRemoveMode mode, GError **error);
BlockExport *export_find(const char *id);
BlockExport *export_next(BlockExport *previous);
BlockExportInfoList *export_query(void);

/* Any thread. The last unref deletes the export on the main thread and sends the event. */
void export_ref(BlockExport *exp);
void export_unref(BlockExport *exp);

/* Turn away all clients of exports of this type (or all: BLOCK_EXPORT_TYPE__MAX) and wait until
 * the exports are gone. */
void export_close_all_type(int type);

#endif
