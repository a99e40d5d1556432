/* SPDX-License-Identifier: MIT */
/*
 * cache-clean-interval: tables that nobody used for that long leave the memory, and the process.
 * The clock is put forward, so nothing waits.
 */
#include "block/qcow2/cache.h"
#include "qcow2-harness.h"
#include "util/size.h"

#include <stdio.h>
#include <unistd.h>

#define SIZE     (64 * GiB)
#define INTERVAL 7
#define SLICE    (32 * MiB) /* of the disk, that a slice of an L2 table describes */
#define TABLES   (SIZE / (64 * KiB) * 8)

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MEMORY_IS_PLAIN false
#else
#define MEMORY_IS_PLAIN true
#endif

static char *make_image(void)
{
    char *path = temp_path("huge.qcow2");

    qemu_img_do("create -q -f qcow2 -o preallocation=metadata %s %" G_GINT64_FORMAT, path, SIZE);
    return path;
}

static BlockBackend *open_image(const char *path, int interval)
{
    BlockNode *node = add_node("{'driver':'qcow2','node-name':'huge','l2-cache-size':33554432,"
                               "'cache-clean-interval':%d,"
                               "'file':{'driver':'file','filename':'%s'}}",
                               interval, path);

    return open_user(node, PERM_CONSISTENT_READ | PERM_WRITE);
}

/* Look at the tables of a part of the disk. */
static void read_tables(BlockBackend *user, int64_t offset, int64_t bytes)
{
    for (int64_t end = offset + bytes; offset < end; offset += SLICE) {
        assert_filled(user, offset, 512, 0);
    }
}

static int64_t cached(BlockBackend *user)
{
    Qcow2 *q = backend_node(user)->state;

    return qcow2_cache_bytes(q->l2_cache) + qcow2_cache_bytes(q->refcount_cache);
}

static void pass_time(int64_t seconds)
{
    event_loop_advance_clock(seconds * 1000000000);
    event_loop_poll(event_loop_main(), false);
}

static int64_t resident_bytes(void)
{
    g_autofree char *text = NULL;
    long long total, resident;

    g_assert_true(g_file_get_contents("/proc/self/statm", &text, NULL, NULL));
    g_assert_cmpint(sscanf(text, "%lld %lld", &total, &resident), ==, 2);
    return resident * sysconf(_SC_PAGESIZE);
}

static void test_idle_tables_leave(void)
{
    g_autofree char *path = NULL;
    BlockBackend *user;
    int64_t full;

    if (!qcow2_need_qemu()) {
        return;
    }
    path = make_image();
    user = open_image(path, INTERVAL);
    read_tables(user, 0, SIZE);
    g_assert_cmpint(cached(user), >=, TABLES);
    full = resident_bytes();
    pass_time(INTERVAL - 1);
    g_assert_cmpint(cached(user), >=, TABLES);
    pass_time(1); /* they were used in this interval */
    g_assert_cmpint(cached(user), >=, TABLES);
    read_tables(user, 0, 4 * SLICE);
    pass_time(INTERVAL);
    g_assert_cmpint(cached(user), ==, 4 * 4096);
    g_test_message("resident: %" G_GINT64_FORMAT " KiB with tables, %" G_GINT64_FORMAT
                   " KiB without",
                   full / 1024, resident_bytes() / 1024);
    if (MEMORY_IS_PLAIN) {
        g_assert_cmpint(resident_bytes(), <, full - TABLES / 2);
    }
    pass_time(INTERVAL);
    pass_time(INTERVAL);
    g_assert_cmpint(cached(user), ==, 0);
    read_tables(user, 0, SIZE);
    g_assert_cmpint(cached(user), >=, TABLES);
    backend_free(user);
    delete_node("huge");
}

/* What is not written yet stays, however long nobody asks for it. */
static void test_dirty_tables_stay(void)
{
    g_autofree char *path = NULL;
    BlockBackend *user;

    if (!qcow2_need_qemu()) {
        return;
    }
    path = make_image();
    user = open_image(path, INTERVAL);
    g_assert_cmpint(do_zero(user, SIZE / 2, MiB, 0), ==, 0);
    read_tables(user, 0, 8 * SLICE);
    for (int i = 0; i < 3; i++) {
        pass_time(INTERVAL);
    }
    g_assert_cmpint(cached(user), >=, 4096);
    g_assert_cmpint(cached(user), <, 8 * 4096);
    g_assert_cmpint(do_flush(user), ==, 0);
    pass_time(INTERVAL);
    pass_time(INTERVAL);
    g_assert_cmpint(cached(user), ==, 0);
    backend_free(user);
    delete_node("huge");
    qemu_img_do("check -q %s", path);
}

static void test_intervals(void)
{
    g_autofree char *path = NULL;
    BlockBackend *user;

    if (!qcow2_need_qemu()) {
        return;
    }
    path = make_image();
    user = open_image(path, 0);
    read_tables(user, 0, 16 * SLICE);
    pass_time(INT64_C(1000000));
    pass_time(INT64_C(1000000));
    g_assert_cmpint(cached(user), ==, 16 * 4096);
    g_assert_null(reopen_error("{'driver':'qcow2','node-name':'huge','l2-cache-size':33554432,"
                               "'cache-clean-interval':2,'file':'%s'}",
                               backend_node(user)->file->node->node_name));
    read_tables(user, 0, 16 * SLICE);
    pass_time(2);
    g_assert_cmpint(cached(user), ==, 16 * 4096);
    pass_time(2);
    g_assert_cmpint(cached(user), ==, 0);
    backend_free(user);
    delete_node("huge");
}

int main(int argc, char **argv)
{
    qcow2_harness_init(&argc, &argv);
    g_test_add_func("/qcow2/cache-clean/idle", test_idle_tables_leave);
    g_test_add_func("/qcow2/cache-clean/dirty", test_dirty_tables_stay);
    g_test_add_func("/qcow2/cache-clean/intervals", test_intervals);
    return io_harness_run();
}
