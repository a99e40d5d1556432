/* SPDX-License-Identifier: MIT */
#include "crash-disk.h"
#include "block/driver.h"
#include "util/size.h"

#include <errno.h>
#include <string.h>

/* The one disk; it outlives its node. */
static struct {
    GByteArray *content;
    GPtrArray *ops;
    GRand *random;
    uint64_t tick;
    int64_t fail_in;
    bool failed;
} disk;

uint64_t crash_tick(void)
{
    return ++disk.tick;
}

uint64_t crash_now(void)
{
    return disk.tick;
}

static void op_free(gpointer data)
{
    DiskOp *op = data;

    g_free(op->data);
    g_free(op);
}

void crash_disk_load(const GByteArray *content, uint32_t seed)
{
    g_clear_pointer(&disk.content, g_byte_array_unref);
    g_clear_pointer(&disk.ops, g_ptr_array_unref);
    g_clear_pointer(&disk.random, g_rand_free);
    disk.content = g_byte_array_sized_new(content->len);
    g_byte_array_append(disk.content, content->data, content->len);
    disk.ops = g_ptr_array_new_with_free_func(op_free);
    disk.random = g_rand_new_with_seed(seed);
    disk.tick = 0;
    disk.fail_in = -1;
    disk.failed = false;
}

GByteArray *crash_disk_content(void)
{
    GByteArray *copy = g_byte_array_sized_new(disk.content->len);

    return g_byte_array_append(copy, disk.content->data, disk.content->len);
}

const GPtrArray *crash_disk_ops(void)
{
    return disk.ops;
}

void crash_disk_fail(int64_t n)
{
    disk.fail_in = n;
}

bool crash_disk_has_failed(void)
{
    return disk.failed;
}

/* --- doing and remembering --- */

static void set_size(GByteArray *content, int64_t size)
{
    guint old = content->len;

    g_byte_array_set_size(content, (guint)size);
    if (size > old) {
        memset(content->data + old, 0, size - old);
    }
}

static void apply(GByteArray *content, const DiskOp *op)
{
    switch (op->kind) {
    case DISK_WRITE:
        if (op->offset + op->bytes > content->len) {
            set_size(content, op->offset + op->bytes);
        }
        if (op->data) {
            memcpy(content->data + op->offset, op->data, op->bytes);
        } else {
            memset(content->data + op->offset, 0, op->bytes);
        }
        break;
    case DISK_RESIZE:
        set_size(content, op->offset);
        break;
    case DISK_FLUSH:
        break;
    }
}

static void coroutine_fn take_some_time(void)
{
    for (int n = g_rand_int_range(disk.random, 0, 4); n; n--) {
        coroutine_pause();
    }
}

/* Takes over `data`. */
static int coroutine_fn perform(DiskOpKind kind, int64_t offset, int64_t bytes, uint8_t *data)
{
    DiskOp *op = g_new(DiskOp, 1);

    *op = (DiskOp){ kind, offset, bytes, data, crash_tick(), CRASH_NEVER, false };
    g_ptr_array_add(disk.ops, op);
    take_some_time();
    if (disk.fail_in == 0) {
        op->failed = disk.failed = true;
    }
    disk.fail_in -= disk.fail_in >= 0;
    if (!op->failed) {
        apply(disk.content, op);
    }
    op->end = crash_tick();
    return op->failed ? -EIO : 0;
}

static bool disk_open(BlockNode *node, const BlockdevOptions *options, GError **error)
{
    node->limits.zero_flags = REQ_MAY_UNMAP | REQ_NO_FALLBACK;
    node_set_size(node, disk.content->len);
    return true;
}

static int coroutine_fn disk_preadv(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                                    unsigned flags)
{
    int64_t there = CLAMP((int64_t)disk.content->len - offset, 0, bytes);

    take_some_time();
    iov_from_buf(vec, 0, disk.content->data + offset, there);
    iov_memset(vec, there, 0, bytes - there);
    return 0;
}

static int coroutine_fn disk_pwritev(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                                     unsigned flags)
{
    uint8_t *data = g_malloc(bytes);

    iov_to_buf(vec, 0, data, bytes);
    return perform(DISK_WRITE, offset, bytes, data);
}

static int coroutine_fn disk_pwrite_zeroes(BlockNode *node, int64_t offset, int64_t bytes,
                                           unsigned flags)
{
    return perform(DISK_WRITE, offset, bytes, NULL);
}

static int coroutine_fn disk_pdiscard(BlockNode *node, int64_t offset, int64_t bytes)
{
    return perform(DISK_WRITE, offset, bytes, NULL);
}

static int coroutine_fn disk_flush(BlockNode *node)
{
    return perform(DISK_FLUSH, 0, 0, NULL);
}

static int coroutine_fn disk_truncate(BlockNode *node, int64_t size, PreallocMode prealloc,
                                      GError **error)
{
    int ret = perform(DISK_RESIZE, size, 0, NULL);

    if (ret == 0) {
        node_set_size(node, size);
    } else {
        g_set_error_literal(error, G_FILE_ERROR, G_FILE_ERROR_IO, "the disk failed");
    }
    return ret;
}

static bool disk_can_grow(const BlockNode *node)
{
    return true;
}

static bool disk_reopen(ReopenState *state, UndoStack *undo, GError **error)
{
    return true;
}

static const BlockDriver disk_driver = {
    .name = "null-co",
    .is_protocol = true,
    .open = disk_open,
    .reopen_prepare = disk_reopen,
    .can_grow = disk_can_grow,
    .co_preadv = disk_preadv,
    .co_pwritev = disk_pwritev,
    .co_pwrite_zeroes = disk_pwrite_zeroes,
    .co_pdiscard = disk_pdiscard,
    .co_flush = disk_flush,
    .co_truncate = disk_truncate,
};

void crash_disk_register(void)
{
    driver_register(&disk_driver);
}

/* --- after a loss of power --- */

/* When the last flush began that had ended by `cut`; 0: there was none. */
static uint64_t last_flush(const GPtrArray *ops, uint64_t cut)
{
    uint64_t begin = 0;

    for (guint i = 0; i < ops->len; i++) {
        const DiskOp *op = g_ptr_array_index(ops, i);

        if (op->kind == DISK_FLUSH && !op->failed && op->end <= cut) {
            begin = MAX(begin, op->begin);
        }
    }
    return begin;
}

static void apply_torn(GByteArray *content, const DiskOp *op, GRand *random)
{
    for (int64_t at = 0; at < op->bytes;) {
        int64_t bytes =
            MIN(align_down(op->offset + at, CRASH_SECTOR) + CRASH_SECTOR, op->offset + op->bytes) -
            (op->offset + at);
        DiskOp part = *op;

        part.offset += at;
        part.bytes = bytes;
        part.data = op->data ? op->data + at : NULL;
        if (g_rand_boolean(random)) {
            apply(content, &part);
        }
        at += bytes;
    }
}

static void apply_unsafe(GByteArray *content, const DiskOp *op, CrashMode mode, GRand *random)
{
    if (mode == CRASH_KEEP || (mode != CRASH_DROP && g_rand_boolean(random))) {
        apply(content, op);
    } else if (mode == CRASH_TORN && op->kind == DISK_WRITE) {
        apply_torn(content, op, random);
    }
}

GByteArray *crash_disk_after(const GByteArray *before, const GPtrArray *ops, uint64_t cut,
                             CrashMode mode, GRand *random)
{
    GByteArray *content = g_byte_array_sized_new(before->len);
    uint64_t flush = last_flush(ops, cut);

    g_byte_array_append(content, before->data, before->len);
    for (guint i = 0; i < ops->len; i++) {
        const DiskOp *op = g_ptr_array_index(ops, i);

        if (op->failed || op->begin > cut) {
            continue;
        }
        if (op->end < flush) {
            apply(content, op);
        } else {
            apply_unsafe(content, op, mode, random);
        }
    }
    return content;
}
