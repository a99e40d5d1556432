/* SPDX-License-Identifier: MIT */
#include "crash-disk.h"
#include "block/driver.h"
#include "util/size.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define BASE          CRASH_DISKS /* the number of the disk that is not written to */
#define PRINTED_TICKS 40
#define FIRST         (UINT64_C(1) << 40) /* of the numbers on it */

/* The disks; they outlive their nodes. */
static struct {
    CrashContent *content;
    int64_t base_bytes;
    GPtrArray *ops;
    GRand *random;
    uint64_t tick;
    int64_t fail_in;
    bool fail_done;
    uint64_t failed_at; /* 0: nothing failed */
} disk;

uint64_t crash_tick(void)
{
    return ++disk.tick;
}

uint64_t crash_now(void)
{
    return disk.tick;
}

/* --- contents --- */

CrashContent *crash_content_new(void)
{
    CrashContent *content = g_new0(CrashContent, 1);

    for (int i = 0; i < CRASH_DISKS; i++) {
        content->disk[i] = g_byte_array_new();
    }
    return content;
}

CrashContent *crash_content_copy(const CrashContent *content)
{
    CrashContent *copy = g_new0(CrashContent, 1);

    for (int i = 0; i < CRASH_DISKS; i++) {
        copy->disk[i] = g_byte_array_sized_new(content->disk[i]->len);
        g_byte_array_append(copy->disk[i], content->disk[i]->data, content->disk[i]->len);
    }
    return copy;
}

void crash_content_free(CrashContent *content)
{
    for (int i = 0; content && i < CRASH_DISKS; i++) {
        g_byte_array_unref(content->disk[i]);
    }
    g_free(content);
}

uint64_t crash_content_digest(const CrashContent *content)
{
    uint64_t digest = 0;

    for (int i = 0; i < CRASH_DISKS; i++) {
        const GByteArray *bytes = content->disk[i];

        for (guint at = 0; at < bytes->len; at += sizeof(uint64_t)) {
            uint64_t word = 0;

            memcpy(&word, bytes->data + at, MIN(sizeof(word), bytes->len - at));
            digest = (digest ^ word ^ (digest >> 29)) * UINT64_C(0x9e3779b97f4a7c15);
        }
        digest ^= bytes->len;
    }
    return digest;
}

static void op_free(gpointer data)
{
    DiskOp *op = data;

    g_free(op->data);
    g_free(op);
}

void crash_disk_load(const CrashContent *content, uint32_t seed)
{
    g_clear_pointer(&disk.content, crash_content_free);
    g_clear_pointer(&disk.ops, g_ptr_array_unref);
    g_clear_pointer(&disk.random, g_rand_free);
    disk.content = crash_content_copy(content);
    disk.ops = g_ptr_array_new_with_free_func(op_free);
    disk.random = g_rand_new_with_seed(seed);
    disk.tick = 0;
    disk.fail_in = -1;
    disk.failed_at = 0;
}

CrashContent *crash_disk_content(void)
{
    return crash_content_copy(disk.content);
}

const GPtrArray *crash_disk_ops(void)
{
    return disk.ops;
}

void crash_disk_print(const GPtrArray *ops, uint64_t cut)
{
    static const char *const kinds[] = { "writes", "becomes", "flushes" };

    for (guint i = 0; i < ops->len; i++) {
        const DiskOp *op = g_ptr_array_index(ops, i);

        if (op->begin <= cut && op->begin + PRINTED_TICKS > cut) {
            g_printerr("# %" PRIu64 "-%" PRIu64 ": disk %d %s %" PRIx64 " +%" PRIx64 "%s%s\n",
                       op->begin, op->end, op->disk, kinds[op->kind], op->offset, op->bytes,
                       op->kind == DISK_WRITE && !op->data ? " zeroes" : "",
                       op->failed ? ", failed" : "");
        }
    }
}

void crash_disk_set_base(int64_t bytes)
{
    disk.base_bytes = bytes;
}

uint64_t crash_base_number(int64_t sector)
{
    return sector * CRASH_SECTOR < disk.base_bytes ? FIRST + (uint64_t)sector : 0;
}

void crash_disk_fail(int64_t n, bool done)
{
    disk.fail_in = n;
    disk.fail_done = done;
}

bool crash_disk_has_failed(void)
{
    return disk.failed_at > 0;
}

uint64_t crash_disk_failed_at(void)
{
    return disk.failed_at;
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

static void apply(CrashContent *contents, const DiskOp *op)
{
    GByteArray *content = contents->disk[op->disk];

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

static int which(const BlockNode *node)
{
    return *(const int *)node->state;
}

/* Takes over `data`. */
static int coroutine_fn perform(BlockNode *node, DiskOpKind kind, int64_t offset, int64_t bytes,
                                uint8_t *data)
{
    DiskOp *op = g_new(DiskOp, 1);
    bool fails;

    *op = (DiskOp){ kind, which(node), offset, bytes, data, crash_tick(), CRASH_NEVER, false };
    g_ptr_array_add(disk.ops, op);
    take_some_time();
    fails = disk.fail_in == 0;
    op->failed = fails && !disk.fail_done;
    disk.fail_in -= disk.fail_in >= 0;
    if (!op->failed) {
        apply(disk.content, op);
    }
    op->end = crash_tick();
    if (fails) {
        disk.failed_at = op->end;
    }
    return fails ? -EIO : 0;
}

static int64_t disk_current_size(BlockNode *node);

static bool disk_open(BlockNode *node, const BlockdevOptions *options, GError **error)
{
    int number = g_str_equal(node->node_name, "data")   ? 1
                 : g_str_equal(node->node_name, "base") ? BASE
                                                        : 0;

    *(int *)node->state = number;
    node->limits.zero_flags = REQ_MAY_UNMAP | REQ_NO_FALLBACK;
    node_set_size(node, disk_current_size(node));
    return true;
}

static void read_base(int64_t offset, int64_t bytes, IoVector *vec)
{
    for (int64_t at = 0; at < bytes; at += (int64_t)sizeof(uint64_t)) {
        uint64_t number = crash_base_number((offset + at) / CRASH_SECTOR);

        iov_from_buf(vec, at, &number, MIN(bytes - at, (int64_t)sizeof(number)));
    }
}

static int coroutine_fn disk_preadv(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                                    unsigned flags)
{
    const GByteArray *content;
    int64_t there;

    take_some_time();
    if (which(node) == BASE) {
        read_base(offset, bytes, vec);
        return 0;
    }
    content = disk.content->disk[which(node)];
    there = CLAMP((int64_t)content->len - offset, 0, bytes);
    iov_from_buf(vec, 0, content->data + offset, there);
    iov_memset(vec, there, 0, bytes - there);
    return 0;
}

static int coroutine_fn disk_pwritev(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                                     unsigned flags)
{
    uint8_t *data = g_malloc(bytes);

    iov_to_buf(vec, 0, data, bytes);
    return perform(node, DISK_WRITE, offset, bytes, data);
}

static int coroutine_fn disk_pwrite_zeroes(BlockNode *node, int64_t offset, int64_t bytes,
                                           unsigned flags)
{
    return perform(node, DISK_WRITE, offset, bytes, NULL);
}

static int coroutine_fn disk_pdiscard(BlockNode *node, int64_t offset, int64_t bytes)
{
    return perform(node, DISK_WRITE, offset, bytes, NULL);
}

static int coroutine_fn disk_flush(BlockNode *node)
{
    return which(node) == BASE ? 0 : perform(node, DISK_FLUSH, 0, 0, NULL);
}

static int coroutine_fn disk_truncate(BlockNode *node, int64_t size, PreallocMode prealloc,
                                      GError **error)
{
    int ret = perform(node, DISK_RESIZE, size, 0, NULL);

    if (ret == 0) {
        node_set_size(node, size);
    } else {
        g_set_error_literal(error, G_FILE_ERROR, G_FILE_ERROR_IO, "the disk failed");
    }
    return ret;
}

static int64_t disk_current_size(BlockNode *node)
{
    return which(node) == BASE ? disk.base_bytes : disk.content->disk[which(node)]->len;
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
    .state_size = sizeof(int),
    .is_protocol = true,
    .open = disk_open,
    .reopen_prepare = disk_reopen,
    .can_grow = disk_can_grow,
    .current_size = disk_current_size,
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

struct CrashTimeline {
    CrashContent *safe; /* what is there in any case, of the operations before `first` */
    const GPtrArray *ops;
    guint first; /* the first that is not in `safe` */
};

CrashTimeline *crash_timeline_new(const CrashContent *before, const GPtrArray *ops)
{
    CrashTimeline *timeline = g_new0(CrashTimeline, 1);

    timeline->safe = crash_content_copy(before);
    timeline->ops = ops;
    return timeline;
}

void crash_timeline_free(CrashTimeline *timeline)
{
    crash_content_free(timeline->safe);
    g_free(timeline);
}

/* When the last flush of each disk began that had ended by `cut`; 0: there was none. */
static void find_flushes(const GPtrArray *ops, uint64_t cut, uint64_t flushes[CRASH_DISKS])
{
    memset(flushes, 0, sizeof(uint64_t) * CRASH_DISKS);
    for (guint i = 0; i < ops->len; i++) {
        const DiskOp *op = g_ptr_array_index(ops, i);

        if (op->kind == DISK_FLUSH && !op->failed && op->end <= cut) {
            flushes[op->disk] = MAX(flushes[op->disk], op->begin);
        }
    }
}

static void apply_torn(CrashContent *content, const DiskOp *op, GRand *random)
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

static void apply_unsafe(CrashContent *content, const DiskOp *op, CrashMode mode, GRand *random)
{
    if (mode == CRASH_KEEP || (mode != CRASH_DROP && g_rand_boolean(random))) {
        apply(content, op);
    } else if (mode == CRASH_TORN && op->kind == DISK_WRITE) {
        apply_torn(content, op, random);
    }
}

/* Operations that are safe, or nothing, as are all before them, will be so at later cuts. */
static void advance(CrashTimeline *timeline, const uint64_t flushes[CRASH_DISKS])
{
    for (; timeline->first < timeline->ops->len; timeline->first++) {
        const DiskOp *op = g_ptr_array_index(timeline->ops, timeline->first);

        if (op->end >= flushes[op->disk] && !op->failed && op->kind != DISK_FLUSH) {
            break;
        }
        if (!op->failed) {
            apply(timeline->safe, op);
        }
    }
}

CrashContent *crash_timeline_cut(CrashTimeline *timeline, uint64_t cut, CrashMode mode,
                                 GRand *random)
{
    uint64_t flushes[CRASH_DISKS];
    CrashContent *content;

    find_flushes(timeline->ops, cut, flushes);
    advance(timeline, flushes);
    content = crash_content_copy(timeline->safe);
    for (guint i = timeline->first; i < timeline->ops->len; i++) {
        const DiskOp *op = g_ptr_array_index(timeline->ops, i);

        if (op->failed || op->begin > cut) {
            continue;
        }
        if (op->end < flushes[op->disk]) {
            apply(content, op);
        } else {
            apply_unsafe(content, op, mode, random);
        }
    }
    return content;
}

bool crash_timeline_is_open(CrashTimeline *timeline, uint64_t cut)
{
    uint64_t flushes[CRASH_DISKS];

    find_flushes(timeline->ops, cut, flushes);
    for (guint i = timeline->first; i < timeline->ops->len; i++) {
        const DiskOp *op = g_ptr_array_index(timeline->ops, i);

        if (!op->failed && op->kind != DISK_FLUSH && op->begin <= cut &&
            op->end >= flushes[op->disk]) {
            return true;
        }
    }
    return false;
}
