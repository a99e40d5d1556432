/* SPDX-License-Identifier: MIT */
#include "disks.h"

#include "block/drivers.h"
#include "block/iothread.h"
#include "block/job.h"
#include "block/nbd.h"
#include "net/tls-creds.h"
#include "qapi/codec.h"
#include "qapi/json.h"
#include "qapi/qapi-commands.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static char server_name[64];

static char *keys_folder;

static void remove_keys(void)
{
    g_autofree char *keys = g_build_filename(keys_folder, "keys.psk", NULL);

    unlink(keys);
    rmdir(keys_folder);
}

/* The object `tls`: credentials with a key that nobody guesses. */
static void make_credentials(void)
{
    GError *error = NULL;
    g_autofree char *keys = NULL;
    TlsCredsPskProperties properties = { .has_endpoint = true,
                                         .endpoint = Q_CRYPTO_TLS_CREDS_ENDPOINT_SERVER };

    keys_folder = g_dir_make_tmp(NULL, &error);
    g_assert_no_error(error);
    atexit(remove_keys);
    keys = g_build_filename(keys_folder, "keys.psk", NULL);
    g_file_set_contents(keys, "user:d543770c15ad93d76443fb56f501a31969235f47\n", -1, &error);
    g_assert_no_error(error);
    properties.dir = keys_folder;
    tls_creds_add_psk("tls", &properties, &error);
    g_assert_no_error(error);
}

static void init(bool tls)
{
    SocketAddress address = { .type = SOCKET_ADDRESS_TYPE_UNIX };
    NbdServerOptions options = { .has_max_connections = true,
                                 .has_handshake_max_seconds = true,
                                 .addr = &address };
    GError *error = NULL;

    if (*server_name) {
        return;
    }
    if (tls) {
        make_credentials();
        options.tls_creds = (char *)"tls";
    }
    event_loop_main();
    null_drivers_register();
    raw_driver_register();
    copy_before_write_driver_register();
    snapshot_access_driver_register();
    export_driver_register(&nbd_export_driver);

    snprintf(server_name, sizeof(server_name), "merino-fuzz-%ld", (long)getpid());
    address.u.q_unix.path = server_name;
    address.u.q_unix.has_abstract = true;
    address.u.q_unix.abstract = true;
    nbd_server_start(&options, &error);
    g_assert_no_error(error);
}

void disks_init(void)
{
    init(false);
}

void disks_init_tls(void)
{
    init(true);
}

/* --- commands --- */

static void *arguments(const QapiType *type, const char *text)
{
    GError *error = NULL;
    json_auto_t *json = qapi_json_parse(text, strlen(text), &error);
    void *value = json ? qapi_decode(type, json, QAPI_DECODE_JSON, &error) : NULL;

    g_assert_no_error(error);
    return value;
}

void disks_blockdev_add(const char *json)
{
    g_autoptr(BlockdevOptions) options = arguments(&qapi_type_BlockdevOptions, json);
    GError *error = NULL;

    qmp_blockdev_add(options, &error);
    g_assert_no_error(error);
}

void disks_bitmap_add(const char *json)
{
    g_autoptr(BlockDirtyBitmapAdd) options = arguments(&qapi_type_BlockDirtyBitmapAdd, json);
    GError *error = NULL;

    qmp_block_dirty_bitmap_add(options, &error);
    g_assert_no_error(error);
}

void disks_export_add(const char *json)
{
    g_autoptr(BlockExportOptions) options = arguments(&qapi_type_BlockExportOptions, json);
    GError *error = NULL;

    export_add(options, &error);
    g_assert_no_error(error);
}

void disks_mark(const char *node, gint64 offset, gint64 bytes)
{
    bitmap_list_mark(node_find(node)->bitmaps, offset, bytes);
}

static void delete_iothreads(void)
{
    g_autoptr(IOThreadInfoList) threads = iothread_query();

    for (size_t i = 0; i < threads->len; i++) {
        GError *error = NULL;

        iothread_delete(threads->items[i]->id, &error);
        g_assert_no_error(error);
    }
}

void disks_clear(void)
{
    export_close_all_type(BLOCK_EXPORT_TYPE__MAX);
    job_cancel_all();
    node_close_all();
    delete_iothreads();
    g_assert(!export_next(NULL) && !node_next(NULL));
}

/* --- clients --- */

int disks_connect(void)
{
    struct sockaddr_un un = { .sun_family = AF_UNIX };
    size_t length = strlen(server_name);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    memcpy(un.sun_path + 1, server_name, length);
    if (fd < 0 || connect(fd, (struct sockaddr *)&un,
                          (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length)) < 0) {
        g_error("cannot connect to the NBD server: %m");
    }
    return fd;
}
