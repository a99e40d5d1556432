/* SPDX-License-Identifier: MIT */
/* Requests on a node: alignment, limits, flags, zeroes, discards, flushes and dirty bitmaps. */
#include "io-harness.h"
#include "util/size.h"

#include <errno.h>
#include <string.h>

#define DISK "{'driver':'null-co','node-name':'d','size':1048576,'discard':'unmap'}"
#define RW   (PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE)

typedef struct Fixture {
    BlockNode *node;
    MemoryDisk *disk;
    BlockBackend *user;
} Fixture;

static Fixture fixture_new(void)
{
    Fixture f = { .node = add_node(DISK) };

    f.disk = memory_disk(f.node);
    f.user = open_user(f.node, RW);
    return f;
}

static void fixture_done(Fixture *f)
{
    backend_free(f->user);
    delete_node("d");
}

/* --- ranges and permissions --- */

static void test_ranges_are_checked(void)
{
    Fixture f = fixture_new();
    char buf[512] = { 0 };

    g_assert_cmpint(do_read(f.user, MiB - 512, 512, buf), ==, 0);
    g_assert_cmpint(do_read(f.user, MiB - 511, 512, buf), ==, -EIO);
    g_assert_cmpint(do_read(f.user, MiB, 1, buf), ==, -EIO);
    g_assert_cmpint(do_read(f.user, -1, 1, buf), ==, -EIO);
    g_assert_cmpint(do_zero(f.user, 0, -1, 0), ==, -EIO);
    g_assert_cmpint(do_zero(f.user, INT64_MAX, INT64_MAX, 0), ==, -EIO);
    g_assert_cmpint(do_discard(f.user, 1, MiB), ==, -EIO);
    g_assert_cmpint(do_write(f.user, MiB - 1, 2, buf, 0), ==, -EIO);
    g_assert_cmpint(do_read(f.user, MiB, 0, NULL), ==, 0);
    g_assert_cmpint(do_zero(f.user, 0, 0, 0), ==, 0);
    g_assert_cmpint(atomic_load(&f.disk->writes) + atomic_load(&f.disk->zeroes), ==, 0);
    fixture_done(&f);
}

static void test_readers_do_not_write(void)
{
    Fixture f = fixture_new();
    BlockBackend *reader = open_user(f.node, PERM_CONSISTENT_READ);

    g_assert_cmpint(do_fill(reader, 0, 512, 1), ==, -EPERM);
    g_assert_cmpint(do_zero(reader, 0, 512, 0), ==, -EPERM);
    g_assert_cmpint(do_discard(reader, 0, 512), ==, -EPERM);
    g_assert_cmpint(do_flush(reader), ==, 0);
    assert_filled(reader, 0, 512, 0);
    backend_detach(reader);
    g_assert_cmpint(do_flush(reader), ==, -ENOMEDIUM);
    backend_free(reader);
    fixture_done(&f);
}

/* --- alignment --- */

static void test_aligned_nodes_see_whole_blocks(void)
{
    Fixture f = fixture_new();
    g_autofree uint8_t *twin = g_malloc0(MiB);
    g_autofree uint8_t *buf = g_malloc0(MiB);
    GRand *random = g_rand_new_with_seed(test_seed());

    f.node->limits.request_alignment = 4096;
    f.node->limits.memory_alignment = 512;
    f.node->limits.max_transfer = 65536;
    f.node->limits.max_zeroes = 32768;
    for (int i = 0; i < 500; i++) {
        int64_t offset = g_rand_int_range(random, 0, MiB);
        int64_t bytes = g_rand_int_range(random, 1, MIN(MiB - offset, 300000) + 1);
        int byte = g_rand_int_range(random, 0, 256);

        switch (g_rand_int_range(random, 0, 3)) {
        case 0:
            g_assert_cmpint(do_fill(f.user, offset, bytes, byte), ==, 0);
            memset(twin + offset, byte, bytes);
            break;
        case 1:
            atomic_store(&f.disk->refuse_zeroes, byte & 1);
            g_assert_cmpint(do_zero(f.user, offset, bytes, 0), ==, 0);
            memset(twin + offset, 0, bytes);
            break;
        default:
            g_assert_cmpint(do_read(f.user, offset, bytes, buf), ==, 0);
            g_assert_cmpmem(buf, bytes, twin + offset, bytes);
        }
    }
    g_assert_cmpmem(f.disk->data, MiB, twin, MiB);
    g_rand_free(random);
    fixture_done(&f);
}

/* Each worker owns one byte in sixteen of the same few blocks, and writes nothing else. */
#define SHARED_BYTES (4 * 512)

static BlockBackend *shared_user;
static bool written[SHARED_BYTES];

static void coroutine_fn write_own_bytes(int index, GRand *random)
{
    for (int i = 0; i < 300; i++) {
        int64_t offset = g_rand_int_range(random, 0, SHARED_BYTES / 16) * 16 + index;
        char byte = 'A' + index;
        IoVector vec;

        iov_init_buf(&vec, &byte, 1);
        g_assert_cmpint(backend_co_pwritev(shared_user, offset, 1, &vec, 0), ==, 0);
        written[offset] = true;
    }
}

/* Whole blocks of another region, which do not wait unless parts of blocks are written. */
static void coroutine_fn write_whole_blocks(int index, GRand *random)
{
    if (index < 8) {
        write_own_bytes(index, random);
        return;
    }
    for (int i = 0; i < 300; i++) {
        int64_t offset = 8192 + 512 * index;
        char *buf = node_try_buffer(backend_node(shared_user), 512);
        IoVector vec;

        memset(buf, index, 512);
        iov_init_buf(&vec, buf, 512);
        g_assert_cmpint(backend_co_pwritev(shared_user, offset, 512, &vec, 0), ==, 0);
        g_assert_cmpint(backend_co_pwrite_zeroes(shared_user, offset, 512, 0), ==, 0);
        buffer_free(buf);
    }
}

static void test_parts_of_blocks_written_at_once_are_not_lost(void)
{
    Fixture f = fixture_new();

    f.node->limits.request_alignment = 512;
    f.node->limits.memory_alignment = 512;
    shared_user = f.user;
    run_workers(16, 3, write_whole_blocks);
    for (int64_t i = 0; i < SHARED_BYTES; i++) {
        g_assert_cmpint(f.disk->data[i], ==, written[i] ? 'A' + i % 16 : 0);
    }
    g_assert_true(buffer_is_zero(f.disk->data + 8192, MiB - 8192));
    fixture_done(&f);
}

static void test_long_transfers_are_split(void)
{
    Fixture f = fixture_new();

    f.node->limits.max_transfer = 65536;
    g_assert_cmpint(do_fill(f.user, 10, 3 * 65536 + 1, 7), ==, 0);
    g_assert_cmpint(atomic_load(&f.disk->writes), ==, 4);
    assert_filled(f.user, 10, 3 * 65536 + 1, 7);
    assert_filled(f.user, 0, 10, 0);
    g_assert_cmpint(atomic_load(&f.disk->reads), ==, 5);
    fixture_done(&f);
}

/* --- durability --- */

static void test_fua_is_the_drivers_or_a_flush(void)
{
    Fixture f = fixture_new();
    char buf[512] = { 1 };

    g_assert_cmpint(do_write(f.user, 0, 512, buf, REQ_FUA), ==, 0);
    g_assert_cmpint(atomic_load(&f.disk->flushes), ==, 1);
    g_assert_cmpint(atomic_load(&f.disk->last_flags), ==, 0);
    f.node->limits.write_flags = REQ_FUA;
    g_assert_cmpint(do_write(f.user, 0, 512, buf, REQ_FUA), ==, 0);
    g_assert_cmpint(atomic_load(&f.disk->flushes), ==, 1);
    g_assert_cmpint(atomic_load(&f.disk->last_flags), ==, REQ_FUA);
    g_assert_cmpint(do_zero(f.user, 0, 512, REQ_FUA), ==, 0); /* zero-writes do not know it */
    g_assert_cmpint(atomic_load(&f.disk->flushes), ==, 2);
    fixture_done(&f);
}

static void test_flushes_without_writes_are_left_out(void)
{
    Fixture f = fixture_new();

    g_assert_cmpint(do_flush(f.user), ==, 0);
    g_assert_cmpint(atomic_load(&f.disk->flushes), ==, 0);
    do_fill(f.user, 0, 512, 1);
    g_assert_cmpint(do_flush(f.user), ==, 0);
    g_assert_cmpint(do_flush(f.user), ==, 0);
    g_assert_cmpint(atomic_load(&f.disk->flushes), ==, 1);
    do_discard(f.user, 0, 512);
    g_assert_cmpint(do_flush(f.user), ==, 0);
    g_assert_cmpint(atomic_load(&f.disk->flushes), ==, 2);
    f.node->cache_no_flush = true;
    do_fill(f.user, 0, 512, 1);
    g_assert_cmpint(do_flush(f.user), ==, 0);
    g_assert_cmpint(atomic_load(&f.disk->flushes), ==, 2);
    fixture_done(&f);
}

/* --- zeroes and discards --- */

static void test_zeroes_fall_back_to_data(void)
{
    Fixture f = fixture_new();

    do_fill(f.user, 0, MiB, 5);
    g_assert_cmpint(do_zero(f.user, 1, 1000, REQ_MAY_UNMAP), ==, 0);
    g_assert_cmpint(atomic_load(&f.disk->zeroes), ==, 1);
    g_assert_cmpint(atomic_load(&f.disk->last_flags), ==, REQ_MAY_UNMAP);
    atomic_store(&f.disk->refuse_zeroes, 1);
    g_assert_cmpint(do_zero(f.user, 1001, 500000, REQ_NO_FALLBACK), ==, -ENOTSUP);
    assert_filled(f.user, 1001, 500000, 5);
    g_assert_cmpint(do_zero(f.user, 1001, 500000, 0), ==, 0);
    assert_filled(f.user, 1, 501000 - 1, 0);
    assert_filled(f.user, 501001, 1000, 5);
    f.node->limits.zero_flags = 0;
    g_assert_cmpint(do_zero(f.user, 0, 512, REQ_NO_FALLBACK), ==, -ENOTSUP);
    fixture_done(&f);
}

static void test_unmap_needs_the_nodes_consent(void)
{
    Fixture f = fixture_new();

    f.node->discard_unmap = false;
    g_assert_cmpint(do_zero(f.user, 0, 4096, REQ_MAY_UNMAP), ==, 0);
    g_assert_cmpint(atomic_load(&f.disk->last_flags), ==, 0);
    g_assert_cmpint(do_discard(f.user, 0, 4096), ==, 0);
    g_assert_cmpint(atomic_load(&f.disk->discards), ==, 0);
    fixture_done(&f);
}

static void test_zeroes_are_detected(void)
{
    Fixture f = fixture_new();

    f.node->detect_zeroes = BLOCKDEV_DETECT_ZEROES_OPTIONS_ON;
    do_fill(f.user, 0, 4096, 0);
    g_assert_cmpint(atomic_load(&f.disk->writes), ==, 0);
    g_assert_cmpint(atomic_load(&f.disk->last_flags), ==, 0);
    f.node->detect_zeroes = BLOCKDEV_DETECT_ZEROES_OPTIONS_UNMAP;
    do_fill(f.user, 0, 4096, 0);
    g_assert_cmpint(atomic_load(&f.disk->zeroes), ==, 2);
    g_assert_cmpint(atomic_load(&f.disk->last_flags), ==, REQ_MAY_UNMAP);
    do_fill(f.user, 0, 4096, 1);
    g_assert_cmpint(atomic_load(&f.disk->writes), ==, 1);
    fixture_done(&f);
}

static void test_discards_are_rounded_inwards(void)
{
    Fixture f = fixture_new();

    f.node->limits.discard_alignment = 4096;
    f.node->limits.max_discard = 8192;
    do_fill(f.user, 0, 65536, 1);
    g_assert_cmpint(do_discard(f.user, 100, 4096), ==, 0);
    g_assert_cmpint(atomic_load(&f.disk->discards), ==, 0);
    g_assert_cmpint(do_discard(f.user, 1, 5 * 4096), ==, 0);
    g_assert_cmpint(atomic_load(&f.disk->discards), ==, 2);
    assert_filled(f.user, 0, 4096, 1);
    assert_filled(f.user, 4096, 4 * 4096, 0xdd);
    assert_filled(f.user, 5 * 4096, 4096, 1);
    fixture_done(&f);
}

/* --- bitmaps (io.c, invariant 1) --- */

static void assert_dirty(DirtyBitmap *bitmap, int64_t offset, int64_t bytes)
{
    int64_t area = -1, length = 0;
    bool found = bitmap_next_dirty_area(bitmap, 0, MiB, MiB, &area, &length);

    g_assert_cmpint(found, ==, bytes > 0);
    if (found) {
        g_assert_cmpint(area, ==, offset);
        g_assert_cmpint(length, ==, bytes);
    }
    bitmap_clear(bitmap, NULL, NULL);
}

static void test_writes_are_marked(void)
{
    BitmapAddOptions options = { .name = "b", .granularity = 512 };
    Fixture f = fixture_new();
    DirtyBitmap *bitmap = bitmap_add(f.node->bitmaps, &options, NULL, NULL);
    char buf[512] = { 0 };

    do_fill(f.user, 512, 513, 1);
    assert_dirty(bitmap, 512, 1024);
    do_zero(f.user, 4096, 4096, 0);
    assert_dirty(bitmap, 4096, 4096);
    do_discard(f.user, 8192, 512);
    assert_dirty(bitmap, 8192, 512);
    do_write(f.user, 0, 512, buf, REQ_WRITE_UNCHANGED);
    assert_dirty(bitmap, 0, 0);
    atomic_store(&f.disk->fail_writes, EIO);
    g_assert_cmpint(do_fill(f.user, 1024, 512, 1), ==, -EIO);
    assert_dirty(bitmap, 1024, 512);
    g_assert_cmpint(do_zero(f.user, 2048, 512, 0), ==, -EIO);
    assert_dirty(bitmap, 2048, 512);
    f.node->discard_unmap = false;
    do_discard(f.user, 8192, 512);
    assert_dirty(bitmap, 0, 0);
    fixture_done(&f);
}

static void test_a_write_is_marked_before_it_is_acknowledged(void)
{
    BitmapAddOptions options = { .name = "b", .granularity = 512 };
    Fixture f = fixture_new();
    DirtyBitmap *bitmap = bitmap_add(f.node->bitmaps, &options, NULL, NULL);
    AsyncWrite write;

    memory_disk_hold(f.disk, true, false);
    start_write(&write, event_loop_main(), f.user, 512, 512, 1);
    memory_disk_wait_held(f.disk, 1);
    g_assert_cmpint(bitmap_dirty_bytes(bitmap), ==, 0);
    memory_disk_hold(f.disk, false, false);
    g_assert_cmpint(finish_write(&write), ==, 0);
    assert_dirty(bitmap, 512, 512);
    fixture_done(&f);
}

int main(int argc, char **argv)
{
    io_harness_init(&argc, &argv, true);
    g_test_add_func("/io/ranges-are-checked", test_ranges_are_checked);
    g_test_add_func("/io/readers-do-not-write", test_readers_do_not_write);
    g_test_add_func("/io/aligned-nodes-see-whole-blocks", test_aligned_nodes_see_whole_blocks);
    g_test_add_func("/io/parts-of-blocks-at-once",
                    test_parts_of_blocks_written_at_once_are_not_lost);
    g_test_add_func("/io/long-transfers-are-split", test_long_transfers_are_split);
    g_test_add_func("/io/fua", test_fua_is_the_drivers_or_a_flush);
    g_test_add_func("/io/flushes-without-writes", test_flushes_without_writes_are_left_out);
    g_test_add_func("/io/zeroes-fall-back-to-data", test_zeroes_fall_back_to_data);
    g_test_add_func("/io/unmap-needs-consent", test_unmap_needs_the_nodes_consent);
    g_test_add_func("/io/zeroes-are-detected", test_zeroes_are_detected);
    g_test_add_func("/io/discards-are-rounded-inwards", test_discards_are_rounded_inwards);
    g_test_add_func("/io/writes-are-marked", test_writes_are_marked);
    g_test_add_func("/io/marked-before-acknowledged",
                    test_a_write_is_marked_before_it_is_acknowledged);
    return io_harness_run();
}
