/* SPDX-License-Identifier: MIT */
/* The driver raw: windows on a file, their words, resizing and reopening. */
#include "io-harness.h"
#include "util/size.h"

#include <errno.h>
#include <string.h>

#define DISK "{'driver':'null-co','node-name':'d','size':1048576,'discard':'unmap'}"
#define RW   (PERM_CONSISTENT_READ | PERM_WRITE)

static char *open_error(const char *options)
{
    return add_node_error("{'driver':'raw','node-name':'r','file':'d'%s}", options);
}

static BlockNode *open_raw(const char *options)
{
    return add_node("{'driver':'raw','node-name':'r','file':'d','discard':'unmap'%s}", options);
}

static void test_windows_are_checked(void)
{
    add_node(DISK);
    assert_text(open_error(",'offset':2000000"),
                "Offset (2000000) cannot be greater than size of the containing file (1048576)");
    assert_text(open_error(",'offset':1000,'size':1048000"),
                "The sum of offset (1000) and size (1048000) has to be smaller or equal to the  "
                "actual size of the containing file (1048576)");
    assert_text(open_error(",'size':1000"), "Specified size is not multiple of 512");
    assert_text(open_error(",'offset':-1"),
                "Parameter 'offset' expects a non-negative number below 2^64");
    assert_text(open_error(",'size':-512"),
                "Parameter 'size' expects a non-negative number below 2^64");
    delete_node("d");
}

static void test_sizes_of_windows(void)
{
    static const struct {
        const char *options;
        int64_t size;
    } cases[] = {
        { "", MiB },
        { ",'offset':512", MiB - 512 },
        { ",'offset':1000", 1048064 }, /* rounded up */
        { ",'offset':1048576", 0 },
        { ",'offset':1000,'size':1024", 1024 },
        { ",'size':0", 0 },
    };

    add_node(DISK);
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_assert_cmpint(node_size(open_raw(cases[i].options)), ==, cases[i].size);
        delete_node("r");
    }
    delete_node("d");
}

static void test_requests_are_moved(void)
{
    MemoryDisk *disk = memory_disk(add_node(DISK));
    BlockBackend *user;

    memset(disk->data, 1, MiB);
    user = open_user(open_raw(",'offset':1000,'size':65536"), RW);
    g_assert_cmpint(do_fill(user, 0, 512, 2), ==, 0);
    g_assert_cmpint(do_zero(user, 512, 512, 0), ==, 0);
    g_assert_cmpint(do_discard(user, 1024, 512), ==, 0);
    g_assert_cmpint(do_fill(user, 65535, 2, 3), ==, -EIO);
    g_assert_cmpint(disk->data[999], ==, 1);
    g_assert_cmpint(disk->data[1000], ==, 2);
    g_assert_cmpint(disk->data[1512], ==, 0);
    g_assert_cmpint(disk->data[2024], ==, 0xdd);
    g_assert_cmpint(disk->data[2536], ==, 1);
    assert_filled(user, 0, 512, 2);
    backend_free(user);
    delete_node("r");
    delete_node("d");
}

static void test_what_the_file_lacks_reads_as_zeroes(void)
{
    MemoryDisk *disk = memory_disk(add_node(DISK));
    BlockStatus status;
    BlockBackend *user;

    memset(disk->data, 1, MiB);
    user = open_user(open_raw(",'offset':1000"), RW);
    assert_filled(user, MiB - 1000, 488, 0);
    assert_filled(user, 0, MiB - 1000, 1);
    g_assert_cmpint(do_status(user, MiB - 1000, 488, &status), ==, 0);
    g_assert_true(status.flags & BLOCK_STATUS_ZERO);
    g_assert_cmpint(do_fill(user, MiB - 1000, 1, 1), ==, -EIO);
    backend_free(user);
    delete_node("r");
    delete_node("d");
}

static void test_flags_reach_the_file(void)
{
    MemoryDisk *disk = memory_disk(add_node(DISK));
    BlockNode *file = node_find("d");
    BitmapAddOptions options = { .name = "b", .granularity = 512 };
    DirtyBitmap *bitmap = bitmap_add(file->bitmaps, &options, NULL, NULL);
    BlockBackend *user;
    char buf[512] = { 0 };

    file->limits.write_flags = REQ_FUA;
    user = open_user(open_raw(""), RW);
    g_assert_cmpint(do_write(user, 0, 512, buf, REQ_FUA), ==, 0);
    g_assert_cmpint(atomic_load(&disk->last_flags), ==, REQ_FUA);
    g_assert_cmpint(atomic_load(&disk->flushes), ==, 0);
    g_assert_cmpint(bitmap_dirty_bytes(bitmap), ==, 512);
    g_assert_cmpint(do_write(user, 512, 512, buf, REQ_WRITE_UNCHANGED), ==, 0);
    g_assert_cmpint(bitmap_dirty_bytes(bitmap), ==, 512);
    atomic_store(&disk->refuse_zeroes, 1);
    g_assert_cmpint(do_zero(user, 0, 512, REQ_NO_FALLBACK), ==, -ENOTSUP);
    g_assert_cmpint(do_flush(user), ==, 0);
    g_assert_cmpint(atomic_load(&disk->flushes), ==, 1);
    backend_free(user);
    delete_node("r");
    delete_node("d");
}

static char *resize_error(BlockNode *node, int64_t size)
{
    GError *error = NULL;
    char *message = NULL;

    if (!node_resize(node, size, &error)) {
        message = g_strdup(error->message);
        g_error_free(error);
    }
    return message;
}

static void test_resizing(void)
{
    BlockNode *disk = add_node(DISK);
    BlockNode *raw = open_raw(",'offset':65536");

    assert_text(resize_error(raw, 2 * MiB), NULL);
    g_assert_cmpint(node_size(raw), ==, 2 * MiB);
    g_assert_cmpint(node_size(disk), ==, 2 * MiB + 65536);
    delete_node("r");
    raw = open_raw(",'size':65536");
    assert_text(resize_error(raw, 131072), "Cannot resize fixed-size raw disks");
    delete_node("r");
    delete_node("d");
}

static void test_reopening_moves_the_window(void)
{
    MemoryDisk *disk = memory_disk(add_node(DISK));
    BlockNode *raw = open_raw("");
    BlockBackend *user = open_user(raw, RW);

    disk->data[1000] = 9;
    assert_text(reopen_error("{'driver':'raw','node-name':'r','file':'d','offset':1000,"
                             "'size':1024}"),
                NULL);
    g_assert_cmpint(backend_size(user), ==, 1024);
    assert_filled(user, 0, 1, 9);
    assert_text(reopen_error("{'driver':'raw','node-name':'r','file':'d','offset':99999999}"),
                "Offset (99999999) cannot be greater than size of the containing file (1048576)");
    g_assert_cmpint(backend_size(user), ==, 1024);
    assert_filled(user, 0, 1, 9);
    assert_text(reopen_error("{'driver':'raw','node-name':'r','file':'d'}"), NULL);
    g_assert_cmpint(backend_size(user), ==, MiB);
    assert_filled(user, 1000, 1, 9);
    backend_free(user);
    delete_node("r");
    delete_node("d");
}

#define ADD(name) g_test_add_func("/raw/" #name, test_##name)

int main(int argc, char **argv)
{
    io_harness_init(&argc, &argv, true);
    ADD(windows_are_checked);
    ADD(sizes_of_windows);
    ADD(requests_are_moved);
    ADD(what_the_file_lacks_reads_as_zeroes);
    ADD(flags_reach_the_file);
    ADD(resizing);
    ADD(reopening_moves_the_window);
    return io_harness_run();
}
