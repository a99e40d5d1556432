/* SPDX-License-Identifier: MIT */
/*
 * The NBD side of an export: its name, what it can do, its bitmaps and its connections.
 *
 * Everything is set when the export is made and read by connections on any loop afterwards, but
 * for `connections` and the list of exports by name, which belong to the main thread.
 */
#ifndef MERINO_NBD_EXPORT_H
#define MERINO_NBD_EXPORT_H

#include "block/nbd.h"

typedef struct NbdConnection NbdConnection;

/* A bitmap that clients may read. It is held busy, and its node with it. */
typedef struct NbdBitmap {
    DirtyBitmap *bitmap;
    BlockNode *node;
} NbdBitmap;

typedef struct NbdExport {
    BlockExport *base;
    uint64_t serial; /* no other export ever has it; not 0 */
    char *name;
    char *description; /* or NULL */
    int64_t size;
    uint16_t flags; /* NBD_FLAG_*, but for those that depend on what the client negotiated */
    bool allocation_depth;
    GArray *bitmaps; /* NbdBitmap; context ids follow their order */

    bool listed;            /* clients can find it */
    GPtrArray *connections; /* NbdConnection *, borrowed */
} NbdExport;

/* NULL when there is none. */
NbdExport *nbd_export_find(const char *name);

/* In the order of their making: nbd_export_nth(0) first, NULL at the end. */
NbdExport *nbd_export_nth(guint position);

/* The smallest block that clients are advised to use. */
uint32_t nbd_export_min_block(const NbdExport *exp);

#endif
