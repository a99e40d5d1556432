/* SPDX-License-Identifier: MIT */
/*
 * The NBD server: where it listens, and its kind of export.
 *
 * There is one server at most. Control plane. Clients negotiate on the main loop; once a client has
 * chosen an export its connection lives on that export's loop.
 */
#ifndef MERINO_BLOCK_NBD_H
#define MERINO_BLOCK_NBD_H

#include "block/export.h"

#define NBD_DEFAULT_CONNECTIONS       100
#define NBD_DEFAULT_HANDSHAKE_SECONDS 10
#define NBD_DEFAULT_REQUESTS          128
#define NBD_DEFAULT_REQUEST_MEMORY    (64 << 20) /* bytes */

/* Listen as `options` say; what they leave out has its default. */
bool nbd_server_start(const NbdServerOptions *options, GError **error);

/* Stop listening, delete all NBD exports and turn all clients away; returns when they are gone.
 * False with QEMU's words when no server runs. */
bool nbd_server_stop(GError **error);

extern const BlockExportDriver nbd_export_driver;

#endif
