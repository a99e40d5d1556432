/* SPDX-License-Identifier: MIT */
/*
 * The view against the bytes at its freeze, with writers and readers on several I/O threads.
 *
 * Writers run all the time; round after round the main thread puts the filter over the disk, keeps
 * a copy of the disk of that instant, lets readers compare the view with it, and takes the
 * filter away. Each byte of the disk has one writer, so that ThreadSanitizer sees every access that
 * the filter lets happen too early, and so that a twin can tell what the disk must hold at the end.
 * In the first half of the disk every cluster has all writers, in the second half every writer has
 * clusters of his own, which he writes across.
 */
#include "io-harness.h"
#include "util/size.h"

#include <errno.h>
#include <string.h>

#define WRITERS  6
#define READERS  4
#define THREADS  2
#define ROUNDS   8
#define CLUSTER  65536
#define SHARED   12 /* clusters of the first half */
#define OWN      4  /* clusters of each writer in the second half */
#define CLUSTERS (SHARED + WRITERS * OWN)
#define SLICE    (CLUSTER / 8) /* a writer's part of a shared cluster */
#define SIZE     ((int64_t)CLUSTERS * CLUSTER)
#define RW       (PERM_CONSISTENT_READ | PERM_WRITE)

static BlockBackend *guest, *view;
static MemoryDisk *disk, *target;
static uint8_t twin[SIZE];   /* what the guest wrote; each byte its writer's */
static uint8_t frozen[SIZE]; /* the disk at the freeze */
static atomic_bool stop;
static bool view_may_break; /* of this round */
static bool access_is_restricted;
static bool accessible[CLUSTERS];

/* --- writers --- */

static void choose_range(int index, GRand *random, int64_t *ret_offset, int64_t *ret_bytes)
{
    int64_t begin, length;

    if (g_rand_boolean(random)) {
        begin = (int64_t)g_rand_int_range(random, 0, SHARED) * CLUSTER + index * SLICE;
        length = SLICE;
    } else {
        begin = (int64_t)(SHARED + index * OWN) * CLUSTER;
        length = OWN * CLUSTER;
    }
    *ret_offset = begin + g_rand_int_range(random, 0, length);
    *ret_bytes = g_rand_int_range(random, 1, MIN(begin + length - *ret_offset, 100000) + 1);
}

static int coroutine_fn write_once(GRand *random, int64_t offset, int64_t bytes, uint8_t *buf)
{
    int byte = g_rand_int_range(random, 1, 256);
    IoVector vec;
    int ret;

    switch (g_rand_int_range(random, 0, 4)) {
    case 0:
        memset(buf, 0, bytes);
        return backend_co_pwrite_zeroes(guest, offset, bytes, 0);
    case 1:
        memset(buf, 0xdd, bytes);
        return backend_co_pdiscard(guest, offset, bytes);
    default:
        memset(buf, byte, bytes);
        iov_init_buf(&vec, buf, bytes);
        ret = backend_co_pwritev(guest, offset, bytes, &vec, 0);
        iov_done(&vec);
        return ret;
    }
}

static void coroutine_fn writer(int index, GRand *random)
{
    g_autofree uint8_t *buf = g_malloc(100000);

    while (!atomic_load(&stop)) {
        int64_t offset, bytes;
        int ret;

        choose_range(index, random, &offset, &bytes);
        ret = write_once(random, offset, bytes, buf);
        if (ret == 0) {
            memcpy(twin + offset, buf, bytes);
        } else {
            g_assert_cmpint(ret, ==, -ENOSPC); /* the filter let nothing through */
        }
        if (g_rand_int_range(random, 0, 4) == 0) {
            coroutine_pause();
        }
    }
}

/* --- readers --- */

static bool is_accessible(int64_t offset, int64_t bytes)
{
    for (int64_t c = offset / CLUSTER; c <= (offset + bytes - 1) / CLUSTER; c++) {
        if (access_is_restricted && !accessible[c]) {
            return false;
        }
    }
    return true;
}

static void coroutine_fn check_read(int64_t offset, int64_t bytes, uint8_t *buf)
{
    IoVector vec;
    int ret;

    iov_init_buf(&vec, buf, bytes);
    ret = backend_co_preadv(view, offset, bytes, &vec, 0);
    if (!is_accessible(offset, bytes)) {
        g_assert_cmpint(ret, ==, -EACCES);
    } else if (ret < 0) {
        g_assert_cmpint(ret, ==, -EACCES);
        g_assert_true(view_may_break);
    } else {
        g_assert_true(memcmp(buf, frozen + offset, bytes) == 0);
    }
}

static void coroutine_fn check_status(int64_t offset, int64_t bytes)
{
    BlockStatus status;
    int ret = backend_co_block_status_above(view, offset, bytes, &status);

    if (ret < 0) {
        g_assert_cmpint(ret, ==, -EACCES);
        g_assert_true(view_may_break || !is_accessible(offset, 1));
        return;
    }
    g_assert_true(is_accessible(offset, status.bytes));
    if (status.flags & BLOCK_STATUS_ZERO) {
        g_assert_true(buffer_is_zero(frozen + offset, status.bytes));
    }
}

static void coroutine_fn reader(int index, GRand *random)
{
    g_autofree uint8_t *buf = g_malloc(4 * CLUSTER);

    for (int i = 0; i < 60; i++) {
        int64_t offset = g_rand_double_range(random, 0, SIZE - 1);
        int64_t bytes = g_rand_int_range(random, 1, MIN(SIZE - offset, 4 * CLUSTER) + 1);

        if (g_rand_int_range(random, 0, 4) == 0) {
            check_status(offset, bytes);
        } else {
            check_read(offset, bytes, buf);
        }
    }
}

/* --- rounds --- */

/* Bits for about half of the clusters, in a bitmap of the disk. */
static void restrict_access(GRand *random)
{
    BitmapAddOptions options = { .name = "b", .granularity = CLUSTER, .disabled = true };
    DirtyBitmap *bitmap = bitmap_add(node_find("disk")->bitmaps, &options, NULL, NULL);

    for (int c = 0; c < CLUSTERS; c++) {
        accessible[c] = g_rand_boolean(random);
        if (accessible[c]) {
            bitmap_set_range(bitmap, (int64_t)c * CLUSTER, CLUSTER);
        }
    }
}

/* The freeze: the filter goes over the disk in the instant in which the copy is taken. */
static void freeze(const char *options)
{
    BlockNode *node = node_find("disk");
    DrainSection *section = drain_begin_node(node);
    g_autofree char *text = g_strdup_printf(
        "{'driver':'copy-before-write','node-name':'cbw','file':'disk','target':'target',"
        "'discard':'unmap'%s%s}",
        options, access_is_restricted ? ",'bitmap':{'node':'disk','name':'b'}" : "");

    memcpy(frozen, disk->data, SIZE);
    insert_filter(text);
    drain_end(section);
    add_node("{'driver':'snapshot-access','node-name':'view','file':'cbw'}");
    view = open_user(node_find("view"), PERM_CONSISTENT_READ);
}

static void thaw(void)
{
    GError *error = NULL;
    DirtyBitmap *bitmap = bitmap_find(node_find("disk")->bitmaps, "b");

    backend_free(view);
    delete_node("view");
    g_assert_true(node_remove_filter("cbw", NULL, &error));
    g_assert_no_error(error);
    if (bitmap) {
        bitmap_remove(bitmap, NULL, NULL);
    }
}

static void set_up(void)
{
    static const char node[] =
        "{'driver':'null-co','node-name':'%s','size':%" G_GINT64_FORMAT ",'discard':'unmap'}";
    disk = memory_disk(add_node(node, "disk", SIZE));
    target = memory_disk(add_node(node, "target", SIZE));
    disk->tells_zeroes = false; /* it would look at bytes that others write */
    memset(twin, 0, SIZE);
    guest = open_user(node_find("disk"), RW);
    atomic_store(&stop, false);
}

static void tear_down(void)
{
    backend_free(guest);
    g_assert_true(memcmp(disk->data, twin, SIZE) == 0);
    delete_node("disk");
    delete_node("target");
}

#define WHOLE_CLUSTERS ",'min-cluster-size':65536"
#define STAGING        ",'staging-size':262144"
#define BREAK_SNAPSHOT ",'on-cbw-error':'break-snapshot'"

static void run_rounds(const char *options, bool target_fails, bool restricted)
{
    GRand *random = g_rand_new_with_seed(test_seed());
    WorkerGroup *writers, *readers;

    set_up();
    view_may_break =
        target_fails && (strstr(options, "break-snapshot") || strstr(options, "staging"));
    access_is_restricted = restricted;
    disk->reads_may_race =
        view_may_break; /* a copy for a view that is lost, never given to anybody */
    writers = start_workers(WRITERS, THREADS, writer);
    for (int round = 0; round < ROUNDS; round++) {
        if (restricted) {
            restrict_access(random);
        }
        freeze(options);
        if (target_fails) {
            atomic_store(&target->fail_after, g_rand_int_range(random, 0, 20));
            atomic_store(&target->fail_writes, ENOSPC);
        }
        readers = start_workers(READERS, THREADS, reader);
        for (int i = 0; i < 4; i++) {
            drain_end(drain_begin_node(node_find(i % 2 ? "target" : "disk")));
        }
        finish_workers(readers);
        if (target_fails && !view_may_break) {
            atomic_store(&target->fail_writes, 0);
            run_workers(READERS, THREADS, reader);
        }
        thaw();
        atomic_store(&target->fail_writes, 0);
    }
    atomic_store(&stop, true);
    finish_workers(writers);
    tear_down();
    g_rand_free(random);
}

static void test_views_are_true(void)
{
    run_rounds("", false, false);
}

static void test_staged_views_are_true(void)
{
    run_rounds(STAGING, false, false);
}

static void test_staged_views_of_clusters_are_true(void)
{
    run_rounds(WHOLE_CLUSTERS STAGING, false, true);
}

static void test_failed_staging_breaks_the_view(void)
{
    run_rounds(STAGING, true, false);
}

static void test_views_of_clusters_are_true(void)
{
    run_rounds(WHOLE_CLUSTERS, false, false);
}

static void test_restricted_views_are_true(void)
{
    run_rounds("", false, true);
}

static void test_failed_copies_fail_the_guests_write(void)
{
    run_rounds(WHOLE_CLUSTERS, true, false);
}

static void test_failed_copies_break_the_view(void)
{
    run_rounds(BREAK_SNAPSHOT, true, false);
}

/* The planted fault: a copy that is lost must be noticed by the comparison. */
static void test_a_lost_copy_is_noticed(void)
{
    g_autofree uint8_t *buf = g_malloc(CLUSTER);

    set_up();
    access_is_restricted = false;
    g_assert_cmpint(do_fill(guest, 0, CLUSTER, 1), ==, 0);
    g_assert_cmpint(do_fill(guest, CLUSTER, CLUSTER, 1), ==, 0);
    freeze(WHOLE_CLUSTERS);
    atomic_store(&target->lose_writes, 1);
    g_assert_cmpint(do_fill(guest, 0, 1, 2), ==, 0);
    g_assert_cmpint(do_fill(guest, CLUSTER, 1, 2), ==, 0);
    g_assert_cmpint(do_read(view, 0, CLUSTER, buf), ==, 0);
    g_assert_true(memcmp(buf, frozen, CLUSTER) != 0);
    g_assert_cmpint(do_read(view, CLUSTER, CLUSTER, buf), ==, 0);
    g_assert_true(memcmp(buf, frozen + CLUSTER, CLUSTER) == 0);
    thaw();
    memcpy(twin, disk->data, SIZE);
    tear_down();
}

int main(int argc, char **argv)
{
    io_harness_init(&argc, &argv, true);
    g_test_add_func("/views/are-true", test_views_are_true);
    g_test_add_func("/views/of-clusters-are-true", test_views_of_clusters_are_true);
    g_test_add_func("/views/restricted-ones-are-true", test_restricted_views_are_true);
    g_test_add_func("/views/failed-copies-fail-the-write",
                    test_failed_copies_fail_the_guests_write);
    g_test_add_func("/views/failed-copies-break-the-view", test_failed_copies_break_the_view);
    g_test_add_func("/views/staged-ones-are-true", test_staged_views_are_true);
    g_test_add_func("/views/staged-ones-of-clusters-are-true",
                    test_staged_views_of_clusters_are_true);
    g_test_add_func("/views/failed-staging-breaks-the-view", test_failed_staging_breaks_the_view);
    g_test_add_func("/views/a-lost-copy-is-noticed", test_a_lost_copy_is_noticed);
    return io_harness_run();
}
