/* SPDX-License-Identifier: MIT */
/*
 * Disks, exports and an NBD server for targets that need them.
 *
 * Only drivers that keep everything in memory are known here, so no input reaches a file; and the
 * server listens on an abstract address, made of the process's id, that is reached by
 * disks_connect().
 */
#ifndef MERINO_FUZZ_DISKS_H
#define MERINO_FUZZ_DISKS_H

#include <glib.h>

/* Once before all else; more calls do nothing. */
void disks_init(void);
/* The same, but the server asks for TLS. */
void disks_init_tls(void);

/* Each takes the arguments of the QMP command of that name, and does not fail. */
void disks_blockdev_add(const char *json);
void disks_bitmap_add(const char *json);
void disks_export_add(const char *json);

/* Mark bytes of a node as written, in its enabled bitmaps. */
void disks_mark(const char *node, gint64 offset, gint64 bytes);

/* Remove all exports, nodes and I/O threads, so that the next input finds what the first one did.
 */
void disks_clear(void);

/* A client's end of a new connection to the server; not blocking. */
int disks_connect(void);

#endif
