/* SPDX-License-Identifier: MIT */
/*
 * QMP commands on the NBD server and on exports.
 */
#include "block/nbd.h"
#include "monitor/events.h"
#include "monitor/objects.h"
#include "net/authz.h"
#include "net/tls-creds.h"
#include "qapi/qapi-commands.h"
#include "util/error.h"

/* The same address without the wrappers that the older form has. Borrows from `legacy`. */
static SocketAddress flatten_address(const SocketAddressLegacy *legacy)
{
    SocketAddress address = { .type = legacy->type };

    switch (legacy->type) {
    case SOCKET_ADDRESS_TYPE_INET:
        address.u.inet = *legacy->u.inet.data;
        break;
    case SOCKET_ADDRESS_TYPE_UNIX:
        address.u.q_unix = *legacy->u.q_unix.data;
        break;
    case SOCKET_ADDRESS_TYPE_VSOCK:
        address.u.vsock = *legacy->u.vsock.data;
        break;
    case SOCKET_ADDRESS_TYPE_FD:
        address.u.fd = *legacy->u.fd.data;
        break;
    default:
        g_assert_not_reached();
    }
    return address;
}

bool monitor_nbd_server_start(const NbdServerOptions *options, GError **error)
{
    const char *creds = options->tls_creds, *authz = options->tls_authz;

    if (creds && object_exists(creds) && !tls_creds_exists(creds)) {
        merino_error(error, "Object with id '%s' is not TLS credentials", creds);
        return false;
    }
    if (authz && object_exists(authz) && !authz_exists(authz)) {
        merino_error(error, "Object with id '%s' is not for authorization", authz);
        return false;
    }
    return nbd_server_start(options, error);
}

bool qmp_nbd_server_start(const NbdServerStartArgs *arg, GError **error)
{
    SocketAddress address = flatten_address(arg->addr);
    NbdServerOptions options = {
        .has_handshake_max_seconds = arg->has_handshake_max_seconds,
        .handshake_max_seconds = arg->handshake_max_seconds,
        .has_max_connections = arg->has_max_connections,
        .max_connections = arg->max_connections,
        .has_max_request_memory = arg->has_max_request_memory,
        .max_request_memory = arg->max_request_memory,
        .has_max_requests = arg->has_max_requests,
        .max_requests = arg->max_requests,
        .socket_mode = arg->socket_mode,
        .tls_creds = arg->tls_creds,
        .tls_authz = arg->tls_authz,
        .addr = &address,
    };

    return monitor_nbd_server_start(&options, error);
}

/* Clients of QMP know that the exports' events come before this command's reply. */
bool qmp_nbd_server_stop(GError **error)
{
    bool ok = nbd_server_stop(error);

    qmp_events_flush();
    return ok;
}

bool qmp_block_export_add(const BlockExportOptions *arg, GError **error)
{
    return export_add(arg, error) != NULL;
}

bool qmp_block_export_del(const char *id, bool has_mode, BlockExportRemoveMode mode, GError **error)
{
    return export_delete(id, has_mode ? mode : BLOCK_EXPORT_REMOVE_MODE_SAFE, error);
}

BlockExportInfoList *qmp_query_block_exports(GError **error)
{
    return export_query();
}

/* Unlike block-export-add this makes a read-only export of a node that cannot be written. */
bool qmp_nbd_server_add(const NbdServerAddOptions *arg, GError **error)
{
    BlockDirtyBitmapOrStr bitmap = { .type = BLOCK_DIRTY_BITMAP_OR_STR_TYPE_LOCAL,
                                     .u.local = arg->bitmap };
    BlockDirtyBitmapOrStr *bitmaps[] = { &bitmap };
    BlockDirtyBitmapOrStrList bitmap_list = { .len = 1, .items = bitmaps };
    BlockExportOptions options = { .type = BLOCK_EXPORT_TYPE_NBD };
    BlockNode *node = node_find(arg->device);

    if (!node) {
        merino_error(error, "Cannot find device='%s' nor node-name='%s'", arg->device, arg->device);
        return false;
    }
    options.id = arg->name ? arg->name : arg->device;
    options.node_name = node->node_name;
    options.has_writable = true;
    options.writable = arg->writable && !node->read_only;
    options.u.nbd.name = options.id;
    options.u.nbd.description = arg->description;
    options.u.nbd.bitmaps = arg->bitmap ? &bitmap_list : NULL;
    return export_add(&options, error) != NULL;
}

bool qmp_nbd_server_remove(const char *name, bool has_mode, BlockExportRemoveMode mode,
                           GError **error)
{
    const BlockExport *exp = export_find(name);

    if (exp && exp->driver->type != BLOCK_EXPORT_TYPE_NBD) {
        merino_error(error, "Block export '%s' is not an NBD export", name);
        return false;
    }
    return qmp_block_export_del(name, has_mode, mode, error);
}
