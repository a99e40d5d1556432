/* SPDX-License-Identifier: MIT */
/*
 * The embedding API: include/merino/merino.h over the block layer and the QMP commands.
 *
 * Calling context: one thread, the control plane. A data call runs its request as a coroutine of
 * the main loop and polls that loop until it has ended.
 */
#include "merino/merino.h"

#include "block/backend.h"
#include "block/builtins.h"
#include "block/export.h"
#include "block/job.h"
#include "block/nbd.h"
#include "monitor/monitor.h"
#include "monitor/qmp-request.h"
#include "qapi/dispatch.h"
#include "qapi/event.h"
#include "qapi/json.h"
#include "util/error.h"
#include "util/event-loop.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

struct MerinoDisk {
    BlockBackend *backend;
};

static struct {
    GSource *source; /* the main loop in GLib's main context; NULL before merino_init() */
    MerinoEventFn *event_fn;
    void *event_opaque;
    QapiEventEmit *next_sink; /* the QMP sessions */
} library;

/* The command `quit` is for programs that are nothing but a daemon. */
static void ignore_quit(void)
{
}

static const MonitorProgram program = { .quit = ignore_quit };

/* Hand an error's message to the caller, as memory of the C library. */
static bool give_error(GError *error, char **ret_error)
{
    if (ret_error) {
        *ret_error = strdup(error->message);
    }
    g_error_free(error);
    return false;
}

static void emit_event(const char *name, json_t *message)
{
    if (library.event_fn) {
        g_autofree char *text = qapi_json_text(message, false);

        library.event_fn(text, library.event_opaque);
    }
    library.next_sink(name, message);
}

bool merino_init(char **ret_error)
{
    if (library.source) {
        if (ret_error) {
            *ret_error = strdup("libmerino is already in use");
        }
        return false;
    }
    library.source = event_loop_attach(event_loop_main());
    block_builtins_register();
    monitor_init(&program);
    library.next_sink = qapi_event_emit_fn;
    qapi_event_emit_fn = emit_event;
    return true;
}

void merino_done(void)
{
    export_close_all_type(BLOCK_EXPORT_TYPE__MAX);
    nbd_server_stop(NULL);
    job_cancel_all();
    node_close_all();
    monitor_close_all();
    qapi_event_emit_fn = NULL;
    g_source_destroy(library.source);
    g_source_unref(library.source);
    library.source = NULL;
}

const char *merino_version(void)
{
    return MERINO_VERSION;
}

void merino_set_event_handler(MerinoEventFn *fn, void *opaque)
{
    library.event_fn = fn;
    library.event_opaque = opaque;
}

void merino_poll(bool block)
{
    g_main_context_iteration(NULL, block);
}

void merino_free(void *memory)
{
    free(memory);
}

/* --- QMP --- */

static json_t *run_request(const char *text, GError **error)
{
    json_t *message = qapi_json_parse(text, strlen(text), error);
    QmpRequest request;
    json_t *ret = NULL;

    if (!message) {
        return NULL;
    }
    if (qmp_request_parse(message, &request, error)) {
        qapi_command_run(qapi_commands, request.command, request.arguments, &ret, error);
    }
    json_decref(message);
    return ret;
}

char *merino_qmp(const char *request)
{
    g_autofree char *text = NULL;
    GError *error = NULL;
    json_t *reply = json_object();
    json_t *ret = run_request(request, &error);

    if (ret) {
        json_object_set_new(reply, "return", ret);
    } else {
        json_object_set_new(reply, "error", qapi_error_encode(error));
        g_error_free(error);
    }
    text = qapi_json_text(reply, false);
    json_decref(reply);
    return strdup(text);
}

/* --- data --- */

MerinoDisk *merino_disk_open(const char *node_name, bool writable, char **ret_error)
{
    g_autofree char *user = g_strdup_printf("embedded disk '%s'", node_name);
    unsigned perm = PERM_CONSISTENT_READ | (writable ? PERM_WRITE : 0);
    GError *error = NULL;
    BlockNode *node = node_lookup(node_name, &error);
    MerinoDisk *disk;

    if (!node) {
        give_error(error, ret_error);
        return NULL;
    }
    disk = g_new0(MerinoDisk, 1);
    disk->backend = backend_new(user, perm, PERM_ALL);
    if (!backend_attach(disk->backend, node, &error)) {
        give_error(error, ret_error);
        merino_disk_close(disk);
        return NULL;
    }
    return disk;
}

void merino_disk_close(MerinoDisk *disk)
{
    if (disk) {
        backend_free(disk->backend);
        g_free(disk);
    }
}

int64_t merino_disk_size(const MerinoDisk *disk)
{
    return backend_size(disk->backend);
}

typedef enum RequestKind {
    REQUEST_READ,
    REQUEST_WRITE,
    REQUEST_WRITE_ZEROES,
    REQUEST_DISCARD,
    REQUEST_FLUSH,
} RequestKind;

typedef struct Request {
    RequestKind kind;
    BlockBackend *backend;
    int64_t offset;
    int64_t bytes;
    IoVector vec;
    int rc;
} Request;

static void coroutine_fn run_disk_request(void *opaque)
{
    Request *r = opaque;

    switch (r->kind) {
    case REQUEST_READ:
        r->rc = backend_co_preadv(r->backend, r->offset, r->bytes, &r->vec, 0);
        break;
    case REQUEST_WRITE:
        r->rc = backend_co_pwritev(r->backend, r->offset, r->bytes, &r->vec, 0);
        break;
    case REQUEST_WRITE_ZEROES:
        r->rc = backend_co_pwrite_zeroes(r->backend, r->offset, r->bytes, 0);
        break;
    case REQUEST_DISCARD:
        r->rc = backend_co_pdiscard(r->backend, r->offset, r->bytes);
        break;
    case REQUEST_FLUSH:
        r->rc = backend_co_flush(r->backend);
        break;
    }
}

static int disk_request(MerinoDisk *disk, RequestKind kind, int64_t offset, int64_t bytes,
                        void *buffer)
{
    Request r = { .kind = kind, .backend = disk->backend, .offset = offset, .bytes = bytes };

    if (bytes < 0) {
        return -EINVAL;
    }
    iov_init_buf(&r.vec, buffer, buffer ? bytes : 0);
    coroutine_run(run_disk_request, &r);
    iov_done(&r.vec);
    return r.rc;
}

int merino_disk_read(MerinoDisk *disk, int64_t offset, void *buffer, size_t bytes)
{
    return disk_request(disk, REQUEST_READ, offset, bytes, buffer);
}

int merino_disk_write(MerinoDisk *disk, int64_t offset, const void *buffer, size_t bytes)
{
    return disk_request(disk, REQUEST_WRITE, offset, bytes, (void *)buffer);
}

int merino_disk_write_zeroes(MerinoDisk *disk, int64_t offset, int64_t bytes)
{
    return disk_request(disk, REQUEST_WRITE_ZEROES, offset, bytes, NULL);
}

int merino_disk_discard(MerinoDisk *disk, int64_t offset, int64_t bytes)
{
    return disk_request(disk, REQUEST_DISCARD, offset, bytes, NULL);
}

int merino_disk_flush(MerinoDisk *disk)
{
    return disk_request(disk, REQUEST_FLUSH, 0, 0, NULL);
}

/* With all that was written and all that was stored of it; NULL with an error. */
static DirtyBitmap *find_bitmap(BlockNode *node, const char *name, GError **error)
{
    DirtyBitmap *bitmap = bitmap_lookup(node->bitmaps, name, error);

    if (!bitmap || !bitmap_check(bitmap, BITMAP_NEED_CONSISTENT, error) ||
        !bitmap_load(bitmap, error)) {
        return NULL;
    }
    node_settle(node);
    return bitmap;
}

bool merino_disk_next_dirty(MerinoDisk *disk, const char *bitmap, int64_t offset,
                            int64_t *ret_offset, int64_t *ret_bytes, char **ret_error)
{
    GError *error = NULL;
    DirtyBitmap *found = find_bitmap(backend_node(disk->backend), bitmap, &error);
    int64_t size = backend_size(disk->backend);

    if (!found) {
        return give_error(error, ret_error);
    }
    return offset >= 0 && offset < size &&
           bitmap_next_dirty_area(found, offset, size, size - offset, ret_offset, ret_bytes);
}
