/* SPDX-License-Identifier: MIT */
/* Nodes that grow by being written: sizes, bytes, bitmaps, and several loops at once. */
#include "block/driver.h"
#include "block/drivers.h"
#include "io-harness.h"
#include "util/size.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#define RW     (PERM_CONSISTENT_READ | PERM_WRITE)
#define GROWER (RW | PERM_RESIZE)

/* --- requests as a format makes them on its file --- */

typedef enum Kind {
    READ,
    WRITE,
    ZERO,
    DISCARD,
} Kind;

typedef struct Request {
    Kind kind;
    BlockBackend *user;
    int64_t offset, bytes;
    void *buf;
    unsigned flags;
    int ret;
} Request;

static void coroutine_fn request_entry(void *opaque)
{
    Request *req = opaque;
    BlockChild *child;

    backend_co_enter(req->user);
    child = backend_root(req->user);
    switch (req->kind) {
    case READ:
        req->ret = child_co_pread(child, req->offset, req->bytes, req->buf);
        break;
    case WRITE:
        req->ret = child_co_pwrite(child, req->offset, req->bytes, req->buf, req->flags);
        break;
    case ZERO:
        req->ret = child_co_pwrite_zeroes(child, req->offset, req->bytes, req->flags);
        break;
    case DISCARD:
        req->ret = child_co_pdiscard(child, req->offset, req->bytes);
        break;
    }
    backend_leave(req->user);
}

static int request(Kind kind, BlockBackend *user, int64_t offset, int64_t bytes, int byte,
                   unsigned flags)
{
    g_autofree uint8_t *buf = g_malloc(bytes);
    Request req = { kind, user, offset, bytes, buf, flags, 0 };

    memset(buf, kind == READ ? byte ^ 0xff : byte, bytes);
    coroutine_run(request_entry, &req);
    for (int64_t i = 0; kind == READ && req.ret == 0 && i < bytes; i++) {
        g_assert_cmpint(buf[i], ==, byte);
    }
    return req.ret;
}

static int fill(BlockBackend *user, int64_t offset, int64_t bytes, int byte)
{
    return request(WRITE, user, offset, bytes, byte, 0);
}

static int zero(BlockBackend *user, int64_t offset, int64_t bytes, unsigned flags)
{
    return request(ZERO, user, offset, bytes, 0, flags);
}

static void assert_bytes(BlockBackend *user, int64_t offset, int64_t bytes, int byte)
{
    g_assert_cmpint(request(READ, user, offset, bytes, byte, 0), ==, 0);
}

/* --- fixture --- */

static BlockNode *add_file(const char *path, const char *options)
{
    return add_node("{'driver':'file','node-name':'f','filename':'%s','discard':'unmap'%s}", path,
                    options);
}

static int64_t file_size(const char *path)
{
    struct stat st;

    g_assert_cmpint(stat(path, &st), ==, 0);
    return st.st_size;
}

static int64_t dirty_bytes(DirtyBitmap *bitmap, BlockNode *node)
{
    node_settle(node);
    return bitmap_dirty_bytes(bitmap);
}

/* --- sizes --- */

static void test_a_file_grows_by_being_written(void)
{
    g_autofree char *path = temp_file("grows", 4096);
    BlockNode *node = add_file(path, "");
    BlockBackend *user = open_user(node, GROWER);

    g_assert_cmpint(fill(user, 4000, 200, 1), ==, 0); /* over the end */
    g_assert_cmpint(node_size(node), ==, 4608);
    g_assert_cmpint(file_size(path), ==, 4200);
    assert_bytes(user, 4000, 200, 1);
    assert_bytes(user, 4200, 100000, 0);              /* across the end and far beyond */
    g_assert_cmpint(fill(user, 100000, 1, 2), ==, 0); /* behind it */
    g_assert_cmpint(node_size(node), ==, align_up(100001, 512));
    g_assert_cmpint(file_size(path), ==, 100001);
    assert_bytes(user, 4200, 100000 - 4200, 0);
    assert_bytes(user, 100000, 1, 2);
    assert_bytes(user, 1000000, 4096, 0);
    backend_free(user);
    delete_node("f");
}

static void test_zeroes_grow_and_discards_do_not(void)
{
    static const unsigned flags[] = { 0, REQ_MAY_UNMAP, REQ_MAY_UNMAP | REQ_NO_FALLBACK, REQ_FUA };

    for (size_t i = 0; i < G_N_ELEMENTS(flags); i++) {
        g_autofree char *path = temp_file("zeroes", 4096);
        BlockNode *node = add_file(path, "");
        BlockBackend *user = open_user(node, GROWER);

        g_assert_cmpint(fill(user, 0, 4096, 1), ==, 0);
        g_assert_cmpint(zero(user, 2048, 100000, flags[i]), ==, 0);
        g_assert_cmpint(node_size(node), ==, align_up(102048, 512));
        g_assert_cmpint(file_size(path), ==, 102048);
        assert_bytes(user, 0, 2048, 1);
        assert_bytes(user, 2048, 200000, 0);
        g_assert_cmpint(request(DISCARD, user, 4096, MiB, 0, 0), ==, 0);
        g_assert_cmpint(request(DISCARD, user, MiB, MiB, 0, 0), ==, 0);
        g_assert_cmpint(node_size(node), ==, align_up(102048, 512));
        backend_free(user);
        delete_node("f");
    }
}

static void test_growing_needs_permission_and_means(void)
{
    g_autofree char *path = temp_file("fixed", 4096);
    BlockNode *node = add_file(path, "");
    BlockBackend *user = open_user(node, RW);

    g_assert_cmpint(fill(user, 4096, 1, 1), ==, -EIO);
    g_assert_cmpint(zero(user, 4096, 1, 0), ==, -EIO);
    g_assert_cmpint(request(DISCARD, user, 4096, 1, 0, 0), ==, -EIO);
    backend_free(user);
    user = open_user(add_node("{'driver':'raw','node-name':'r','file':'f','size':4096}"), GROWER);
    g_assert_cmpint(fill(user, 4095, 2, 1), ==, -EIO);
    backend_free(user);
    user = open_user(add_node("{'driver':'null-co','node-name':'n','size':4096}"), GROWER);
    g_assert_cmpint(fill(user, 4095, 2, 1), ==, -EIO);
    backend_free(user);
    g_assert_cmpint(file_size(path), ==, 4096);
    g_assert_cmpint(node_size(node), ==, 4096);
    delete_node("n");
    delete_node("r");
    delete_node("f");
}

static void test_what_is_above_the_file_grows_with_it(void)
{
    g_autofree char *path = temp_file("above", 4096);
    BlockNode *file = add_file(path, "");
    BlockNode *debug = add_node("{'driver':'blkdebug','node-name':'d','image':'f'}");
    BlockNode *raw = add_node("{'driver':'raw','node-name':'r','file':'d','offset':1000}");
    BlockBackend *user = open_user(raw, GROWER);

    g_assert_cmpint(node_size(raw), ==, 3584);
    g_assert_cmpint(fill(user, 5000, 1000, 1), ==, 0);
    g_assert_cmpint(node_size(file), ==, 7168);
    g_assert_cmpint(node_size(debug), ==, 7168);
    g_assert_cmpint(node_size(raw), ==, align_up(7168 - 1000, 512));
    assert_bytes(user, 3096, 1904, 0);
    assert_bytes(user, 5000, 1000, 1);
    backend_free(user);
    delete_node("r");
    delete_node("d");
    delete_node("f");
}

static void test_direct_io_grows_by_whole_blocks(void)
{
    g_autofree char *path = temp_file("direct", 4096);
    BlockNode *node = add_file(path, ",'cache':{'direct':true}");
    BlockBackend *user = open_user(node, GROWER);
    int64_t block = node->limits.request_alignment;
    int64_t end = align_up(10007, block);

    g_assert_cmpint(fill(user, 10000, 7, 1), ==, 0);
    g_assert_cmpint(node_size(node), ==, end);
    g_assert_cmpint(file_size(path), ==, end);
    assert_bytes(user, 4096, 10000 - 4096, 0);
    assert_bytes(user, 10000, 7, 1);
    assert_bytes(user, 10007, 10000, 0);
    g_assert_cmpint(zero(user, 10003, 100001 - 10003, REQ_MAY_UNMAP), ==, 0);
    end = align_up(100001, block);
    g_assert_cmpint(node_size(node), ==, end);
    g_assert_cmpint(file_size(path), ==, end);
    assert_bytes(user, 10000, 3, 1);
    assert_bytes(user, 10003, 200000, 0);
    backend_free(user);
    delete_node("f");
}

static void test_failed_writes_do_not_grow(void)
{
    g_autofree char *path = temp_file("failed", 4096);
    BlockNode *file = add_file(path, "");
    BlockNode *debug = add_node("{'driver':'blkdebug','node-name':'d','image':'f',"
                                "'inject-error':[{'event':'none','iotype':'write','once':true}]}");
    BlockBackend *user = open_user(debug, GROWER);

    g_assert_cmpint(fill(user, 4096, 512, 1), ==, -EIO);
    g_assert_cmpint(node_size(debug), ==, 4096);
    g_assert_cmpint(node_size(file), ==, 4096);
    g_assert_cmpint(fill(user, 4096, 512, 1), ==, 0);
    g_assert_cmpint(node_size(debug), ==, 4608);
    backend_free(user);
    delete_node("d");
    delete_node("f");
}

/* --- who hears of it --- */

static DirtyBitmap *add_bitmap(BlockNode *node, const char *name, int64_t granularity)
{
    BitmapAddOptions options = { .name = name, .granularity = granularity };

    return bitmap_add(node->bitmaps, &options, NULL, NULL);
}

static void test_bitmaps_have_what_was_written_beyond_their_end(void)
{
    g_autofree char *path = temp_file("marked", 4096);
    BlockNode *file = add_file(path, "");
    BlockNode *raw = add_node("{'driver':'raw','node-name':'r','file':'f'}");
    DirtyBitmap *low = add_bitmap(file, "low", 512), *high = add_bitmap(raw, "high", 4096);
    BlockBackend *user = open_user(raw, GROWER);

    g_assert_cmpint(fill(user, 8192, 1024, 1), ==, 0);
    g_assert_cmpint(dirty_bytes(low, file), ==, 1024);
    g_assert_cmpint(dirty_bytes(high, raw), ==, 4096);
    g_assert_cmpint(bitmap_size(low), ==, 9216);
    g_assert_cmpint(bitmap_next_dirty(low, 0, 9216), ==, 8192);
    g_assert_cmpint(zero(user, 65536, 4096, 0), ==, 0);
    g_assert_cmpint(dirty_bytes(low, file), ==, 1024 + 4096);
    /* Draining makes a look by itself unneeded. */
    g_assert_cmpint(fill(user, MiB, 4096, 1), ==, 0);
    drain_end(drain_begin_node(file));
    g_assert_cmpint(bitmap_size(high), ==, MiB + 4096);
    g_assert_cmpint(bitmap_dirty_bytes(high), ==, 3 * 4096);
    backend_free(user);
    delete_node("r");
    delete_node("f");
}

static void count_change(void *opaque)
{
    ++*(int *)opaque;
}

static void test_users_hear_of_the_new_size(void)
{
    g_autofree char *path = temp_file("heard", 4096);
    BlockNode *file = add_file(path, "");
    BlockBackend *user = open_user(file, GROWER);
    int changes = 0;

    backend_set_change_handler(user, count_change, &changes);
    g_assert_cmpint(fill(user, 0, 4096, 1), ==, 0);
    while (event_loop_poll(event_loop_main(), false)) {
    }
    g_assert_cmpint(changes, ==, 0);
    g_assert_cmpint(fill(user, 4096, 1, 1), ==, 0);
    while (changes == 0) {
        event_loop_poll(event_loop_main(), true);
    }
    backend_free(user);
    delete_node("f");
}

/* --- several loops at once --- */

#define WORKERS 16
#define ROUNDS  60
#define PIECE   3000 /* no multiple of anything */

static BlockBackend *shared_user;

/* Each appends its own pieces, with whatever is between them left to the others. */
static void coroutine_fn append(int index, GRand *random)
{
    uint8_t buf[PIECE];

    for (int round = 0; round < ROUNDS; round++) {
        int64_t offset = (round * WORKERS + index) * PIECE;
        BlockChild *child;

        memset(buf, 1 + index, PIECE);
        backend_co_enter(shared_user);
        child = backend_root(shared_user);
        if (g_rand_boolean(random)) {
            g_assert_cmpint(child_co_pwrite(child, offset, PIECE, buf, 0), ==, 0);
        } else {
            g_assert_cmpint(child_co_pwrite_zeroes(child, offset, PIECE, REQ_MAY_UNMAP), ==, 0);
            g_assert_cmpint(child_co_pwrite(child, offset, PIECE, buf, 0), ==, 0);
        }
        g_assert_cmpint(node_size(child->node), >=, offset + PIECE);
        memset(buf, 0, PIECE);
        g_assert_cmpint(child_co_pread(child, offset, PIECE, buf), ==, 0);
        g_assert_true(buf[0] == 1 + index && buf[PIECE - 1] == 1 + index);
        backend_leave(shared_user);
    }
}

static void grow_from_everywhere(const char *options)
{
    const int64_t end = (int64_t)WORKERS * ROUNDS * PIECE;
    g_autofree char *path = temp_file("everywhere", 0);
    BlockNode *file = add_file(path, options);
    BlockNode *raw = add_node("{'driver':'raw','node-name':'r','file':'f'}");
    DirtyBitmap *low = add_bitmap(file, "low", 512), *high = add_bitmap(raw, "high", 65536);
    WorkerGroup *group;

    shared_user = open_user(raw, GROWER);
    group = start_workers(WORKERS, 3, append);
    for (int i = 0; i < 50; i++) {
        BlockNode *node = i % 2 ? raw : file;
        DrainSection *section = drain_begin_node(node);

        g_assert_cmpint(bitmap_list_size(node->bitmaps), ==, node_size(node));
        drain_end(section);
        event_loop_poll(event_loop_main(), false);
    }
    finish_workers(group);
    g_assert_cmpint(node_size(raw), ==, node_size(file));
    g_assert_cmpint(node_size(file), >=, end);
    g_assert_cmpint(node_size(file) - end, <, MAX(512, file->limits.request_alignment));
    for (int64_t at = 0; at < end; at += PIECE) {
        assert_bytes(shared_user, at, PIECE, 1 + at / PIECE % WORKERS);
    }
    g_assert_cmpint(dirty_bytes(low, file), ==, node_size(file));
    g_assert_cmpint(dirty_bytes(high, raw), ==, align_up(node_size(raw), 65536));
    backend_free(shared_user);
    delete_node("r");
    delete_node("f");
}

static void test_several_loops_grow_a_file_at_once(void)
{
    grow_from_everywhere("");
}

static void test_several_loops_grow_a_direct_file_at_once(void)
{
    grow_from_everywhere(",'cache':{'direct':true}");
}

int main(int argc, char **argv)
{
    io_harness_init(&argc, &argv, false);
    blkdebug_driver_register();
#define ADD(name) g_test_add_func("/grow/" #name, test_##name)
    ADD(a_file_grows_by_being_written);
    ADD(zeroes_grow_and_discards_do_not);
    ADD(growing_needs_permission_and_means);
    ADD(what_is_above_the_file_grows_with_it);
    ADD(direct_io_grows_by_whole_blocks);
    ADD(failed_writes_do_not_grow);
    ADD(bitmaps_have_what_was_written_beyond_their_end);
    ADD(users_hear_of_the_new_size);
    ADD(several_loops_grow_a_file_at_once);
    ADD(several_loops_grow_a_direct_file_at_once);
    return io_harness_run();
}
