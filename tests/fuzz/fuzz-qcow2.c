/* SPDX-License-Identifier: MIT */
/*
 * qcow2 images: the input is an image file. It is opened for writing or, where it refuses,
 * read-only; then read, written, reported, given a snapshot, brought back to one, and closed.
 * Whatever the input, each of these ends, with success or an error in words.
 */
#include "block/backend.h"
#include "block/driver.h"
#include "block/drivers.h"
#include "fuzz.h"
#include "util/event-loop.h"
#include "util/size.h"

#include <errno.h>
#include <string.h>

#define FILE_MAX (4 * MiB) /* how far an image may make its file grow */
#define PIECE    (64 * KiB)

/* --- the file: memory that grows --- */

static uint8_t *file_data;
static int64_t file_bytes;

static bool memory_open(BlockNode *node, const BlockdevOptions *options, GError **error)
{
    node_set_size(node, align_up(file_bytes, 512));
    return true;
}

static int coroutine_fn memory_preadv(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                                      unsigned flags)
{
    int64_t n = CLAMP(file_bytes - offset, 0, bytes);

    iov_from_buf(vec, 0, file_data + MIN(offset, file_bytes), n);
    iov_memset(vec, n, 0, bytes - n);
    return 0;
}

static int coroutine_fn memory_pwritev(BlockNode *node, int64_t offset, int64_t bytes,
                                       IoVector *vec, unsigned flags)
{
    if (offset + bytes > FILE_MAX) {
        return -ENOSPC;
    }
    file_bytes = MAX(file_bytes, offset + bytes);
    iov_to_buf(vec, 0, file_data + offset, bytes);
    return 0;
}

static int coroutine_fn memory_truncate(BlockNode *node, int64_t size, PreallocMode prealloc,
                                        GError **error)
{
    if (size > FILE_MAX) {
        return -ENOSPC;
    }
    if (size < file_bytes) {
        memset(file_data + size, 0, file_bytes - size);
    }
    file_bytes = size;
    node_set_size(node, size);
    return 0;
}

static int64_t memory_current_size(BlockNode *node)
{
    return align_up(file_bytes, 512);
}

static bool memory_can_grow(const BlockNode *node)
{
    return true;
}

static bool memory_reopen(ReopenState *state, UndoStack *undo, GError **error)
{
    return true;
}

static const BlockDriver memory_driver = {
    .name = "null-co",
    .is_protocol = true,
    .open = memory_open,
    .reopen_prepare = memory_reopen,
    .co_preadv = memory_preadv,
    .co_pwritev = memory_pwritev,
    .co_truncate = memory_truncate,
    .current_size = memory_current_size,
    .can_grow = memory_can_grow,
};

/* What closing an image says about it is no news here. */
static GLogWriterOutput drop_log(GLogLevelFlags level, const GLogField *fields, gsize n,
                                 gpointer opaque)
{
    return level & G_LOG_FLAG_FATAL ? g_log_writer_default(level, fields, n, opaque)
                                    : G_LOG_WRITER_HANDLED;
}

static void init(const uint8_t *data, size_t size)
{
    if (!file_data) {
        g_log_set_writer_func(drop_log, NULL, NULL);
        event_loop_main();
        driver_register(&memory_driver);
        qcow2_driver_register();
        file_data = g_malloc0(FILE_MAX);
    }
    memset(file_data, 0, file_bytes);
    file_bytes = (int64_t)MIN(size, FILE_MAX);
    memcpy(file_data, data, file_bytes);
}

/* --- opening --- */

typedef struct Way {
    bool read_only, without_backing, with_data_file;
} Way;

static BlockNode *open_one(const Way *way)
{
    BlockdevOptions memory = { .driver = BLOCKDEV_DRIVER_NULL_CO };
    BlockdevRef file = { .type = BLOCKDEV_REF_TYPE_DEFINITION, .u.definition = &memory };
    BlockdevRefOrNull none = { .type = BLOCKDEV_REF_OR_NULL_TYPE_NULL };
    BlockdevOptions options = { .driver = BLOCKDEV_DRIVER_QCOW2,
                                .has_read_only = true,
                                .read_only = way->read_only };
    GError *error = NULL;
    BlockNode *node;

    options.u.qcow2.file = &file;
    options.u.qcow2.backing = way->without_backing ? &none : NULL;
    options.u.qcow2.data_file = way->with_data_file ? &file : NULL;
    /* So small that requests cross the ends of slices, and slices are thrown out. */
    options.u.qcow2.has_l2_cache_entry_size = true;
    options.u.qcow2.l2_cache_entry_size = 512;
    options.u.qcow2.has_l2_cache_size = true;
    options.u.qcow2.l2_cache_size = 1024;
    node = node_open(&options, &error);
    if (!node == !error || (error && !*error->message)) {
        fuzz_fail("an image that is opened and an error, or neither");
    }
    g_clear_error(&error);
    return node;
}

static BlockNode *open_image(void)
{
    static const Way ways[] = {
        { false, false, false }, { false, true, false }, { true, true, false },
        { false, true, true },   { true, true, true },
    };
    BlockNode *node = NULL;

    for (size_t i = 0; i < G_N_ELEMENTS(ways) && !node; i++) {
        node = open_one(&ways[i]);
    }
    return node;
}

/* --- using --- */

typedef struct Use {
    BlockNode *node;
    BlockBackend *user;
} Use;

static void coroutine_fn touch(Use *use, int64_t offset)
{
    g_autofree uint8_t *buf = g_malloc0(PIECE);
    int64_t bytes = MIN(PIECE, node_size(use->node) - offset);
    g_auto(IoVector) vec = { 0 };
    BlockStatus status;

    if (offset < 0 || bytes <= 0) {
        return;
    }
    iov_init_buf(&vec, buf, bytes);
    backend_co_preadv(use->user, offset, bytes, &vec, 0);
    backend_co_block_status_above(use->user, offset, bytes, &status);
    if (!use->node->read_only) {
        backend_co_pwritev(use->user, offset, bytes, &vec, 0);
        backend_co_pwrite_zeroes(use->user, offset, MIN(bytes, 4096), REQ_MAY_UNMAP);
        backend_co_pdiscard(use->user, offset, MIN(bytes, 1024));
        backend_co_pwritev(use->user, offset, bytes, &vec, REQ_WRITE_COMPRESSED);
    }
}

static void coroutine_fn use_snapshots(Use *use)
{
    const BlockDriver *driver = use->node->driver;
    SnapshotInfo info = { .name = (char *)"fuzz" };
    g_autoptr(SnapshotInfoList) list = driver->snapshot_list(use->node);

    if (use->node->read_only) {
        return;
    }
    driver->co_snapshot_create(use->node, &info, NULL);
    if (list->len) {
        driver->co_snapshot_goto(use->node, list->items[0]->id, NULL);
        driver->co_snapshot_delete(use->node, list->items[0]->id, NULL);
    }
}

static void coroutine_fn use_entry(void *opaque)
{
    Use *use = opaque;

    touch(use, 0);
    touch(use, node_size(use->node) / 2);
    touch(use, node_size(use->node) - 1000);
    backend_co_flush(use->user);
    use_snapshots(use);
    touch(use, 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    BlockDeviceInfo *info;
    Use use;

    init(data, size);
    use.node = open_image();
    if (!use.node) {
        return 0;
    }
    info = node_info(use.node, false, NULL);
    block_device_info_free(info);
    use.user = backend_new("fuzz", PERM_CONSISTENT_READ | (use.node->read_only ? 0 : PERM_WRITE),
                           PERM_ALL);
    if (backend_attach(use.user, use.node, NULL)) {
        coroutine_run(use_entry, &use);
    }
    backend_free(use.user);
    node_unref(use.node);
    return 0;
}
