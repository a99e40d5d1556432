/* SPDX-License-Identifier: MIT */
#include "io-harness.h"
#include "block/drivers.h"
#include "qapi/codec.h"
#include "util/size.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static char *temp_folder;

/* --- the disk in memory --- */

MemoryDisk *memory_disk(BlockNode *node)
{
    g_assert_cmpstr(node->driver->name, ==, "null-co");
    return node->state;
}

static bool memory_open(BlockNode *node, const BlockdevOptions *options, GError **error)
{
    MemoryDisk *disk = node->state;
    int64_t size = options->u.null_co.has_size ? options->u.null_co.size : MiB;

    disk->data = g_malloc0(size);
    g_mutex_init(&disk->lock);
    co_queue_init(&disk->waiting);
    node->limits.zero_flags = REQ_MAY_UNMAP | REQ_NO_FALLBACK;
    node_set_size(node, size);
    return true;
}

static void memory_close(BlockNode *node)
{
    MemoryDisk *disk = node->state;

    g_assert_cmpint(disk->held, ==, 0);
    g_mutex_clear(&disk->lock);
    g_free(disk->data);
}

static bool memory_reopen(ReopenState *state, UndoStack *undo, GError **error)
{
    return true;
}

static void coroutine_fn pass_gate(MemoryDisk *disk, const bool *hold)
{
    g_mutex_lock(&disk->lock);
    disk->held++;
    while (*hold) {
        event_loop_notify(event_loop_main());
        co_queue_wait(&disk->waiting, &disk->lock);
    }
    disk->held--;
    g_mutex_unlock(&disk->lock);
}

void memory_disk_hold(MemoryDisk *disk, bool writes, bool reads)
{
    g_mutex_lock(&disk->lock);
    disk->hold_writes = writes;
    disk->hold_reads = reads;
    co_queue_wake_all(&disk->waiting);
    g_mutex_unlock(&disk->lock);
}

static int held_now(MemoryDisk *disk)
{
    int held;

    g_mutex_lock(&disk->lock);
    held = disk->held;
    g_mutex_unlock(&disk->lock);
    return held;
}

void memory_disk_wait_held(MemoryDisk *disk, int n)
{
    while (held_now(disk) < n) {
        event_loop_poll(event_loop_main(), true);
    }
}

static void check_promises(const BlockNode *node, int64_t offset, int64_t bytes, int64_t max)
{
    int64_t alignment = node->limits.request_alignment;

    g_assert_cmpint(bytes, >, 0);
    g_assert_true(is_aligned(offset | bytes, alignment));
    g_assert_cmpint(offset + bytes, <=, align_up(node_size(node), alignment));
    g_assert_true(max == 0 || bytes <= max);
}

static bool take_one(atomic_int *count)
{
    int now = atomic_load(count);

    while (now > 0 && !atomic_compare_exchange_weak(count, &now, now - 1)) {
    }
    return now > 0;
}

static int failure(atomic_int *error, atomic_int *after)
{
    return atomic_load(error) && !take_one(after) ? -atomic_load(error) : 0;
}

/* Bytes that are being written, unseen by ThreadSanitizer. */
__attribute__((no_sanitize("thread"))) static void
read_racing(const MemoryDisk *disk, int64_t offset, int64_t bytes, IoVector *vec)
{
    volatile uint8_t *copy = g_malloc(bytes);

    for (int64_t i = 0; i < bytes; i++) {
        copy[i] = disk->data[offset + i];
    }
    iov_from_buf(vec, 0, (void *)copy, bytes);
    g_free((void *)copy);
}

static int coroutine_fn memory_preadv(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                                      unsigned flags)
{
    MemoryDisk *disk = node->state;

    check_promises(node, offset, bytes, node->limits.max_transfer);
    if (flags & REQ_PREFETCH) {
        pass_gate(disk, &disk->hold_reads);
        return 0;
    }
    g_assert_cmpint(vec->size, ==, bytes);
    g_assert_true(iov_is_aligned(vec, node->limits.memory_alignment));
    atomic_fetch_add(&disk->reads, 1);
    atomic_store(&disk->last_bytes, bytes);
    pass_gate(disk, &disk->hold_reads);
    if (atomic_load(&disk->fail_reads)) {
        return -atomic_load(&disk->fail_reads);
    }
    if (disk->reads_may_race) {
        read_racing(disk, offset, bytes, vec);
    } else {
        iov_from_buf(vec, 0, disk->data + offset, bytes);
    }
    return 0;
}

static int coroutine_fn memory_pwritev(BlockNode *node, int64_t offset, int64_t bytes,
                                       IoVector *vec, unsigned flags)
{
    MemoryDisk *disk = node->state;
    int ret;

    check_promises(node, offset, bytes, node->limits.max_transfer);
    g_assert_cmpint(vec->size, ==, bytes);
    g_assert_true(iov_is_aligned(vec, node->limits.memory_alignment));
    g_assert_cmpint(flags & ~node->limits.write_flags, ==, 0);
    atomic_fetch_add(&disk->writes, 1);
    atomic_store(&disk->last_flags, flags);
    atomic_store(&disk->last_bytes, bytes);
    pass_gate(disk, &disk->hold_writes);
    ret = failure(&disk->fail_writes, &disk->fail_after);
    if (ret == 0 && !take_one(&disk->lose_writes)) {
        iov_to_buf(vec, 0, disk->data + offset, bytes);
    }
    return ret;
}

static int coroutine_fn memory_pwrite_zeroes(BlockNode *node, int64_t offset, int64_t bytes,
                                             unsigned flags)
{
    MemoryDisk *disk = node->state;
    int ret;

    check_promises(node, offset, bytes, node->limits.max_zeroes);
    g_assert_cmpint(flags & ~node->limits.zero_flags, ==, 0);
    atomic_fetch_add(&disk->zeroes, 1);
    atomic_store(&disk->last_flags, flags);
    if (atomic_load(&disk->refuse_zeroes)) {
        return -ENOTSUP;
    }
    pass_gate(disk, &disk->hold_writes);
    ret = failure(&disk->fail_writes, &disk->fail_after);
    if (ret == 0) {
        memset(disk->data + offset, 0, bytes);
    }
    return ret;
}

/* What was discarded is garbage. */
static int coroutine_fn memory_pdiscard(BlockNode *node, int64_t offset, int64_t bytes)
{
    MemoryDisk *disk = node->state;

    check_promises(node, offset, bytes, node->limits.max_discard);
    atomic_fetch_add(&disk->discards, 1);
    pass_gate(disk, &disk->hold_writes);
    memset(disk->data + offset, 0xdd, bytes);
    return 0;
}

static int coroutine_fn memory_flush(BlockNode *node)
{
    MemoryDisk *disk = node->state;

    atomic_fetch_add(&disk->flushes, 1);
    return 0;
}

static bool block_is_zero(const BlockNode *node, int64_t offset)
{
    const MemoryDisk *disk = node->state;
    int64_t begin = align_down(offset, MEMORY_DISK_BLOCK);

    return buffer_is_zero(disk->data + begin, MIN(MEMORY_DISK_BLOCK, node_size(node) - begin));
}

static int coroutine_fn memory_block_status(BlockNode *node, int64_t offset, int64_t bytes,
                                            BlockStatus *ret_status)
{
    const MemoryDisk *disk = node->state;
    int64_t end = MIN(offset + bytes, node_size(node));
    int64_t pos = offset;
    bool zero = disk->tells_zeroes && block_is_zero(node, offset);

    while (pos < end && (disk->tells_zeroes && block_is_zero(node, pos)) == zero) {
        pos = align_down(pos, MEMORY_DISK_BLOCK) + MEMORY_DISK_BLOCK;
    }
    *ret_status = (BlockStatus){
        .flags = (zero ? BLOCK_STATUS_ZERO : BLOCK_STATUS_DATA) | BLOCK_STATUS_OFFSET_VALID,
        .bytes = MIN(pos, offset + bytes) - offset,
        .map = offset,
        .file = node,
    };
    return 0;
}

static int coroutine_fn memory_truncate(BlockNode *node, int64_t size, PreallocMode prealloc,
                                        GError **error)
{
    MemoryDisk *disk = node->state;
    int64_t old = node_size(node);

    disk->data = g_realloc(disk->data, size);
    if (size > old) {
        memset(disk->data + old, 0, size - old);
    }
    node_set_size(node, size);
    return 0;
}

static const BlockDriver memory_driver = {
    .name = "null-co",
    .state_size = sizeof(MemoryDisk),
    .is_protocol = true,
    .open = memory_open,
    .close = memory_close,
    .reopen_prepare = memory_reopen,
    .co_preadv = memory_preadv,
    .co_pwritev = memory_pwritev,
    .co_pwrite_zeroes = memory_pwrite_zeroes,
    .co_pdiscard = memory_pdiscard,
    .co_flush = memory_flush,
    .co_block_status = memory_block_status,
    .co_truncate = memory_truncate,
};

/* --- the frame of a test program --- */

void io_harness_init(int *argc, char ***argv, bool memory_disks)
{
    GError *error = NULL;

    g_test_init(argc, argv, NULL);
    event_loop_main();
    if (memory_disks) {
        driver_register(&memory_driver);
    } else {
        null_drivers_register();
    }
    file_drivers_register();
    raw_driver_register();
    copy_before_write_driver_register();
    snapshot_access_driver_register();
    temp_folder = g_dir_make_tmp("merino-test-XXXXXX", &error);
    g_assert_no_error(error);
}

int io_harness_run(void)
{
    int ret = g_test_run();

    g_assert_null(node_next(NULL));
    run_shell("rm -rf '%s'", temp_folder);
    g_free(temp_folder);
    return ret;
}

void run_shell(const char *format, ...)
{
    g_autofree char *command = NULL;
    GError *error = NULL;
    int status = 0;
    va_list args;

    va_start(args, format);
    command = g_strdup_vprintf(format, args);
    va_end(args);
    const char *argv[] = { "/bin/sh", "-c", command, NULL };
    g_spawn_sync(NULL, (char **)argv, NULL, 0, NULL, NULL, NULL, NULL, &status, &error);
    g_assert_no_error(error);
    g_assert_cmpint(status, ==, 0);
}

char *temp_path(const char *name)
{
    return g_build_filename(temp_folder, name, NULL);
}

char *temp_file(const char *name, int64_t size)
{
    char *path = temp_path(name);

    run_shell("rm -f '%s' && truncate -s %" G_GINT64_FORMAT " '%s'", path, size, path);
    return path;
}

/* --- nodes --- */

static BlockdevOptions *parse_options(char *text)
{
    GError *error = NULL;
    json_error_t json_error;
    BlockdevOptions *options;
    json_t *json;

    json = json_loads(g_strdelimit(text, "'", '"'), 0, &json_error);
    g_assert_nonnull(json);
    options = qapi_decode(&qapi_type_BlockdevOptions, json, QAPI_DECODE_JSON, &error);
    g_assert_no_error(error);
    json_decref(json);
    return options;
}

static char *take_message(GError *error)
{
    char *message = error ? g_strdup(error->message) : NULL;

    g_clear_error(&error);
    return message;
}

BlockNode *add_node(const char *format, ...)
{
    g_autofree char *text = NULL;
    g_autoptr(BlockdevOptions) options = NULL;
    GError *error = NULL;
    va_list args;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    options = parse_options(text);
    node_add(options, &error);
    g_assert_no_error(error);
    return node_find(options->node_name);
}

char *add_node_error(const char *format, ...)
{
    g_autofree char *text = NULL;
    g_autoptr(BlockdevOptions) options = NULL;
    GError *error = NULL;
    va_list args;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    options = parse_options(text);
    g_assert_false(node_add(options, &error));
    return take_message(error);
}

char *reopen_error(const char *format, ...)
{
    g_autofree char *text = NULL;
    BlockdevOptions *options;
    BlockdevOptionsList list = { .len = 1, .items = &options };
    GError *error = NULL;
    va_list args;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    options = parse_options(text);
    node_reopen(&list, &error);
    blockdev_options_free(options);
    return take_message(error);
}

void delete_node(const char *node_name)
{
    GError *error = NULL;

    node_delete(node_name, &error);
    g_assert_no_error(error);
}

void insert_filter(char *text)
{
    g_autoptr(BlockdevOptions) options = parse_options(text);
    GError *error = NULL;

    node_insert_filter(options, NULL, &error);
    g_assert_no_error(error);
}

/* --- requests --- */

BlockBackend *open_user(BlockNode *node, unsigned perm)
{
    BlockBackend *user = backend_new("a test", perm, PERM_ALL);
    GError *error = NULL;

    backend_attach(user, node, &error);
    g_assert_no_error(error);
    return user;
}

typedef enum RequestKind {
    DO_READ,
    DO_WRITE,
    DO_ZERO,
    DO_DISCARD,
    DO_FLUSH,
    DO_STATUS,
} RequestKind;

typedef struct Request {
    RequestKind kind;
    BlockBackend *user;
    int64_t offset, bytes;
    void *buf;
    unsigned flags;
    BlockStatus *status;
    int ret;
} Request;

static void coroutine_fn request_entry(void *opaque)
{
    Request *req = opaque;
    IoVector vec;

    iov_init(&vec);
    if (req->buf) {
        iov_add(&vec, req->buf, req->bytes);
    }
    switch (req->kind) {
    case DO_READ:
        req->ret = backend_co_preadv(req->user, req->offset, req->bytes, &vec, req->flags);
        break;
    case DO_WRITE:
        req->ret = backend_co_pwritev(req->user, req->offset, req->bytes, &vec, req->flags);
        break;
    case DO_ZERO:
        req->ret = backend_co_pwrite_zeroes(req->user, req->offset, req->bytes, req->flags);
        break;
    case DO_DISCARD:
        req->ret = backend_co_pdiscard(req->user, req->offset, req->bytes);
        break;
    case DO_FLUSH:
        req->ret = backend_co_flush(req->user);
        break;
    case DO_STATUS:
        req->ret = backend_co_block_status_above(req->user, req->offset, req->bytes, req->status);
        break;
    }
    iov_done(&vec);
}

static int run_request(Request req)
{
    coroutine_run(request_entry, &req);
    return req.ret;
}

int do_read(BlockBackend *user, int64_t offset, int64_t bytes, void *buf)
{
    return run_request((Request){ DO_READ, user, offset, bytes, buf, 0, NULL, 0 });
}

void assert_numbers(BlockBackend *user, int64_t offset, int64_t bytes, int64_t cluster)
{
    g_autofree uint8_t *buf = g_malloc(bytes);

    g_assert_cmpint(do_read(user, offset, bytes, buf), ==, 0);
    for (int64_t i = 0; i < bytes; i++) {
        if (buf[i] != (offset + i) / cluster + 1) {
            g_error("byte %" G_GINT64_FORMAT " is 0x%02x", offset + i, buf[i]);
        }
    }
}

int do_write(BlockBackend *user, int64_t offset, int64_t bytes, const void *buf, unsigned flags)
{
    return run_request((Request){ DO_WRITE, user, offset, bytes, (void *)buf, flags, NULL, 0 });
}

int do_fill(BlockBackend *user, int64_t offset, int64_t bytes, int byte)
{
    g_autofree char *buf = g_malloc(bytes);

    memset(buf, byte, bytes);
    return do_write(user, offset, bytes, buf, 0);
}

int do_zero(BlockBackend *user, int64_t offset, int64_t bytes, unsigned flags)
{
    return run_request((Request){ DO_ZERO, user, offset, bytes, NULL, flags, NULL, 0 });
}

int do_discard(BlockBackend *user, int64_t offset, int64_t bytes)
{
    return run_request((Request){ DO_DISCARD, user, offset, bytes, NULL, 0, NULL, 0 });
}

int do_flush(BlockBackend *user)
{
    return run_request((Request){ DO_FLUSH, user, 0, 0, NULL, 0, NULL, 0 });
}

int do_status(BlockBackend *user, int64_t offset, int64_t bytes, BlockStatus *ret)
{
    return run_request((Request){ DO_STATUS, user, offset, bytes, NULL, 0, ret, 0 });
}

void assert_filled(BlockBackend *user, int64_t offset, int64_t bytes, int byte)
{
    g_autofree uint8_t *buf = g_malloc(bytes);

    memset(buf, ~byte, bytes);
    g_assert_cmpint(do_read(user, offset, bytes, buf), ==, 0);
    for (int64_t i = 0; i < bytes; i++) {
        if (buf[i] != byte) {
            g_error("byte %" G_GINT64_FORMAT " is 0x%02x, not 0x%02x", offset + i, buf[i], byte);
        }
    }
}

static void coroutine_fn async_write_entry(void *opaque)
{
    AsyncWrite *write = opaque;
    char *buf = g_malloc(write->bytes);
    IoVector vec;

    memset(buf, write->byte, write->bytes);
    iov_init_buf(&vec, buf, write->bytes);
    write->ret = backend_co_pwritev(write->user, write->offset, write->bytes, &vec, 0);
    g_free(buf);
    atomic_store(&write->done, true);
    event_loop_notify(event_loop_main());
}

void start_write(AsyncWrite *write, EventLoop *loop, BlockBackend *user, int64_t offset,
                 int64_t bytes, int byte)
{
    write->user = user;
    write->offset = offset;
    write->bytes = bytes;
    write->byte = byte;
    atomic_init(&write->done, false);
    coroutine_start_on(loop, async_write_entry, write);
}

int finish_write(AsyncWrite *write)
{
    event_loop_poll_until(event_loop_main(), &write->done);
    return write->ret;
}

/* --- many at once --- */

uint32_t test_seed(void)
{
    static uint32_t seed;
    const char *text = g_getenv("MERINO_TEST_SEED");

    if (!seed) {
        seed = text ? strtoul(text, NULL, 0) : g_random_int();
        g_test_message("MERINO_TEST_SEED=%u", seed);
    }
    return seed;
}

typedef struct Worker {
    WorkerGroup *group;
    int index;
    uint32_t seed;
} Worker;

struct WorkerGroup {
    WorkFn *fn;
    Worker *workers;
    EventLoop **loops;
    int n_threads;
    atomic_int running;
    atomic_bool done;
};

static void coroutine_fn worker_entry(void *opaque)
{
    Worker *worker = opaque;
    WorkerGroup *group = worker->group;
    GRand *random = g_rand_new_with_seed(worker->seed);

    group->fn(worker->index, random);
    g_rand_free(random);
    if (atomic_fetch_sub(&group->running, 1) == 1) {
        atomic_store(&group->done, true);
        event_loop_notify(event_loop_main());
    }
}

WorkerGroup *start_workers(int n, int n_threads, WorkFn *fn)
{
    WorkerGroup *group = g_new0(WorkerGroup, 1);
    static GRand *seeds;

    if (!seeds) {
        seeds = g_rand_new_with_seed(test_seed());
    }
    group->fn = fn;
    group->workers = g_new(Worker, n);
    group->loops = g_new(EventLoop *, n_threads);
    group->n_threads = n_threads;
    atomic_init(&group->running, n);
    atomic_init(&group->done, false);
    for (int i = 0; i < n_threads; i++) {
        group->loops[i] = event_loop_new("test", NULL);
    }
    for (int i = 0; i < n; i++) {
        group->workers[i] = (Worker){ group, i, g_rand_int(seeds) };
        coroutine_start_on(group->loops[i % n_threads], worker_entry, &group->workers[i]);
    }
    return group;
}

void finish_workers(WorkerGroup *group)
{
    event_loop_poll_until(event_loop_main(), &group->done);
    for (int i = 0; i < group->n_threads; i++) {
        event_loop_free(group->loops[i]);
    }
    g_free(group->loops);
    g_free(group->workers);
    g_free(group);
}

void run_workers(int n, int n_threads, WorkFn *fn)
{
    finish_workers(start_workers(n, n_threads, fn));
}
