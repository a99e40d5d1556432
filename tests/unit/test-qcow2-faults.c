/* SPDX-License-Identifier: MIT */
/*
 * Storage that fails once: every write, zero-write, read and flush beneath a qcow2 image, one run
 * each (of an image with small clusters, which takes many, some that the seed chooses). The request
 * that meets the fault fails or does not; done again it succeeds; in the end the image is whole,
 * nothing is leaked and everything that was written is there.
 *
 * A filter between the image and its file counts and fails. It goes by the name of `throttle`.
 */
#include "block/image.h"
#include "qcow2-harness.h"
#include "util/size.h"

#include <errno.h>
#include <string.h>

static int calls;   /* that may fail, so far */
static int fail_at; /* number of the one that does; 0: none */

static bool fails(void)
{
    return ++calls == fail_at;
}

static bool faulty_open(BlockNode *node, const BlockdevOptions *options, GError **error)
{
    if (!node_open_child(node, options->u.throttle.file, "file", CHILD_FILTERED, error)) {
        return false;
    }
    node_set_size(node, node_size(node->file->node));
    return true;
}

static int coroutine_fn faulty_preadv(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                                      unsigned flags)
{
    return fails() ? -EIO : child_co_preadv(node->file, offset, bytes, vec, flags);
}

static int coroutine_fn faulty_pwritev(BlockNode *node, int64_t offset, int64_t bytes,
                                       IoVector *vec, unsigned flags)
{
    return fails() ? -EIO : child_co_pwritev(node->file, offset, bytes, vec, flags);
}

static int coroutine_fn faulty_zeroes(BlockNode *node, int64_t offset, int64_t bytes,
                                      unsigned flags)
{
    return fails() ? -EIO : child_co_pwrite_zeroes(node->file, offset, bytes, flags);
}

static int coroutine_fn faulty_flush(BlockNode *node)
{
    return fails() ? -EIO : child_co_flush(node->file);
}

static const BlockDriver faulty_driver = {
    .name = "throttle",
    .is_filter = true,
    .open = faulty_open,
    .co_preadv = faulty_preadv,
    .co_pwritev = faulty_pwritev,
    .co_pwrite_zeroes = faulty_zeroes,
    .co_flush = faulty_flush,
};

/* --- the workload --- */

#define CLUSTER 4096
#define SIZE    (6 * MiB)

static void again(int ret, int *failed)
{
    if (ret < 0) {
        g_assert_cmpint(ret, ==, -EIO);
        ++*failed;
    }
}

static void put(Qcow2Disk *disk, int64_t offset, int64_t bytes, int byte, unsigned flags,
                int *failed)
{
    int before = *failed;

    memset(disk->twin + offset, byte, bytes);
    again(do_write(disk->user, offset, bytes, disk->twin + offset, flags), failed);
    if (*failed > before) {
        g_assert_cmpint(do_write(disk->user, offset, bytes, disk->twin + offset, flags), ==, 0);
    }
}

static void flush(Qcow2Disk *disk, int *failed)
{
    int before = *failed;

    again(do_flush(disk->user), failed);
    if (*failed > before) {
        g_assert_cmpint(do_flush(disk->user), ==, 0);
    }
}

static void drop(Qcow2Disk *disk, int64_t offset, int64_t bytes, int *failed)
{
    int before = *failed;

    again(do_discard(disk->user, offset, bytes), failed);
    if (*failed > before) {
        g_assert_cmpint(do_discard(disk->user, offset, bytes), ==, 0);
    }
    memset(disk->twin + offset, 0, bytes);
}

static int run_workload(Qcow2Disk *disk)
{
    int failed = 0;

    put(disk, 0, 10000, 1, 0, &failed);
    put(disk, 40000, 512, 2, 0, &failed);
    flush(disk, &failed);
    put(disk, SIZE - CLUSTER, CLUSTER, 3, REQ_WRITE_COMPRESSED, &failed);
    put(disk, 100 * CLUSTER, CLUSTER, 4, REQ_WRITE_COMPRESSED, &failed);
    flush(disk, &failed);
    drop(disk, 0, 2 * CLUSTER, &failed);
    put(disk, 100 * CLUSTER + 512, 512, 5, 0, &failed);
    flush(disk, &failed);
    put(disk, 200 * CLUSTER, 200 * CLUSTER, 6, 0, &failed);
    put(disk, CLUSTER / 2, CLUSTER, 7, 0, &failed);
    flush(disk, &failed);
    drop(disk, 250 * CLUSTER, 100 * CLUSTER, &failed);
    flush(disk, &failed);
    put(disk, 300 * CLUSTER + 100, 50 * CLUSTER, 8, 0, &failed);
    flush(disk, &failed);
    put(disk, 2 * MiB, 3 * MiB, 9, 0, &failed); /* small clusters: the refcount table grows */
    flush(disk, &failed);
    return failed;
}

static void open_faulty(Qcow2Disk *disk)
{
    fail_at = 0;
    disk->node = add_node("{'driver':'qcow2','node-name':'faulty','discard':'unmap','file':"
                          "{'driver':'throttle','throttle-group':'none','discard':'unmap','file':"
                          "{'driver':'file','filename':'%s'}}%s}",
                          disk->path, disk->node_options);
    disk->user = open_user(disk->node, PERM_CONSISTENT_READ | PERM_WRITE);
}

/* One run with a fresh image; whether there was a call to fail. */
static bool run_failing(Qcow2Disk *disk, int n)
{
    memset(disk->twin, 0, disk->size);
    open_faulty(disk);
    calls = 0;
    fail_at = n;
    run_workload(disk);
    fail_at = 0;
    disk_assert(disk);
    qcow2_disk_close(disk);
    return calls >= n;
}

typedef struct Kind {
    const char *options;
    int stride; /* every so many calls one is made to fail */
} Kind;

static const Kind plain = { "cluster_size=4096", 1 };
static const Kind small_clusters = { "cluster_size=512,refcount_bits=64", 25 };

static void test_calls_fail_once(gconstpointer opaque)
{
    const Kind *kind = opaque;
    g_autofree char *empty = NULL;
    Qcow2Disk disk;
    gsize bytes;
    bool more = true;

    if (!qcow2_need_qemu()) {
        return;
    }
    qcow2_disk_create(&disk, "faulty", SIZE, kind->options, NULL);
    qcow2_disk_close(&disk);
    g_assert_true(g_file_get_contents(disk.path, &empty, &bytes, NULL));
    for (int n = 1 + (int)(test_seed() % kind->stride); more; n += kind->stride) {
        g_assert_true(g_file_set_contents(disk.path, empty, bytes, NULL));
        more = run_failing(&disk, n);
        if (kind->stride > 1 || n % 3 == 0 || !more) {
            disk_judge(&disk, 0);
        }
    }
    qcow2_disk_done(&disk);
}

/* The header's own words: the run above did go through a new refcount table. */
static void test_refcount_table_grows(void)
{
    g_autofree char *bytes = NULL;
    uint32_t clusters;
    Qcow2Disk disk;

    if (!qcow2_need_qemu()) {
        return;
    }
    qcow2_disk_create(&disk, "faulty", SIZE, "cluster_size=512,refcount_bits=64", NULL);
    qcow2_disk_close(&disk);
    g_assert_true(run_failing(&disk, 0));
    disk_judge(&disk, 0);
    g_assert_true(g_file_get_contents(disk.path, &bytes, NULL, NULL));
    memcpy(&clusters, bytes + 56, 4);
    g_assert_cmpint(GUINT32_FROM_BE(clusters), >, 1);
    qcow2_disk_done(&disk);
}

/* The place of a compressed write that failed is free: others may have it, and have it alone. */
static void test_compressed_place_is_free(void)
{
    int none = 0;
    Qcow2Disk disk;

    if (!qcow2_need_qemu()) {
        return;
    }
    qcow2_disk_create(&disk, "faulty", SIZE, "cluster_size=4096", NULL);
    qcow2_disk_close(&disk);
    open_faulty(&disk);
    put(&disk, 0, CLUSTER, 1, 0, &none); /* tables are in memory: the next call is the write */
    calls = 0;
    fail_at = 1;
    memset(disk.twin + CLUSTER, 2, CLUSTER);
    g_assert_cmpint(
        do_write(disk.user, CLUSTER, CLUSTER, disk.twin + CLUSTER, REQ_WRITE_COMPRESSED), ==, -EIO);
    memset(disk.twin + CLUSTER, 0, CLUSTER);
    put(&disk, 2 * CLUSTER, CLUSTER, 3, 0, &none);
    put(&disk, 3 * CLUSTER, CLUSTER, 4, REQ_WRITE_COMPRESSED, &none);
    disk_assert(&disk);
    qcow2_disk_close(&disk);
    disk_judge(&disk, 0);
    qcow2_disk_done(&disk);
}

/* --- shrinking: refcount blocks and the end of their table go as well --- */

#define SMALL (MiB / 2)

/* The resize that meets the fault fails or does not; done again it succeeds. Then the disk is used.
 */
static bool shrink_failing(Qcow2Disk *disk, int n)
{
    int64_t size = disk->size;
    int ignored = 0;

    open_faulty(disk);
    calls = 0;
    fail_at = n;
    node_resize(disk->node, SMALL, NULL);
    fail_at = 0;
    g_assert_true(node_resize(disk->node, SMALL, NULL));
    disk->size = SMALL;
    disk_assert(disk);
    put(disk, 100000, 200000, n & 0xff, 0, &ignored);
    drop(disk, 0, 8 * CLUSTER, &ignored);
    put(disk, CLUSTER, 10000, 77, 0, &ignored);
    disk_assert(disk);
    qcow2_disk_close(disk);
    disk_judge(disk, 0);
    disk->size = size;
    return calls >= n;
}

static int64_t file_size(const char *path)
{
    g_autofree char *bytes = NULL;
    gsize size;

    g_assert_true(g_file_get_contents(path, &bytes, &size, NULL));
    return (int64_t)size;
}

static void test_shrinking_fails_once(void)
{
    g_autofree char *full = NULL;
    const int stride = 40;
    Qcow2Disk disk;
    gsize bytes;
    bool more = true;

    if (!qcow2_need_qemu()) {
        return;
    }
    qcow2_disk_create(&disk, "faulty", SIZE, "cluster_size=512,refcount_bits=64", NULL);
    disk_fill(&disk, 0, SIZE, 3);
    qcow2_disk_close(&disk);
    g_assert_true(g_file_get_contents(disk.path, &full, &bytes, NULL));
    g_assert_false(shrink_failing(&disk, G_MAXINT));
    g_assert_cmpint(file_size(disk.path), <, SMALL + SMALL / 4);
    for (int n = 1 + (int)(test_seed() % stride); more; n += stride) {
        g_assert_true(g_file_set_contents(disk.path, full, (gssize)bytes, NULL));
        memset(disk.twin, 3, disk.size);
        more = shrink_failing(&disk, n);
    }
    qcow2_disk_done(&disk);
}

/* --- what is done to an image as a whole --- */

static void amend_width(Qcow2Disk *disk)
{
    BlockAmendOptions options = { .has_refcount_bits = true, .refcount_bits = 32 };

    node_amend(disk->node, &options, NULL);
}

static void take_snapshot(Qcow2Disk *disk)
{
    SnapshotInfo info = { .id = (char *)"", .name = (char *)"s" };

    node_snapshot_create(disk->node, &info, NULL);
}

static void go_to_snapshot(Qcow2Disk *disk)
{
    node_snapshot_goto(disk->node, "old", NULL);
}

static void delete_snapshot(Qcow2Disk *disk)
{
    node_snapshot_delete(disk->node, "old", NULL);
}

static void grow(Qcow2Disk *disk)
{
    node_resize_preallocated(disk->node, 3 * SIZE, PREALLOC_MODE_METADATA, NULL);
}

static void check_image(Qcow2Disk *disk)
{
    BlockCheckResult result = { 0 };

    node_check(disk->node, &result, CHECK_FIX_LEAKS | CHECK_FIX_ERRORS, NULL);
}

typedef struct Verb {
    const char *name;
    void (*run)(Qcow2Disk *disk);
} Verb;

static const Verb verbs[] = {
    { "amend", amend_width },   { "snapshot", take_snapshot },
    { "goto", go_to_snapshot }, { "delete", delete_snapshot },
    { "grow", grow },           { "check", check_image },
};

/* Whatever becomes of the verb, what the disk reads stays the same (the snapshot is as the disk),
 * and no damage is done. */
static bool run_verb(Qcow2Disk *disk, const Verb *verb, int n)
{
    open_faulty(disk);
    calls = 0;
    fail_at = n;
    verb->run(disk);
    fail_at = 0;
    disk_assert(disk);
    do_fill(disk->user, 0, 3 * CLUSTER, 4); /* -EIO where nobody knows what the file holds */
    qcow2_disk_close(disk);
    return calls >= n;
}

static void test_verb_fails(gconstpointer opaque)
{
    const Verb *verb = opaque;
    g_autofree char *full = NULL;
    Qcow2Disk disk;
    gsize bytes;
    bool more = true;

    if (!qcow2_need_qemu()) {
        return;
    }
    qcow2_disk_create(&disk, "faulty", SIZE, "cluster_size=4096", NULL);
    disk_fill(&disk, 0, 100 * CLUSTER, 3);
    qcow2_disk_close(&disk);
    qemu_img_do("snapshot -c old %s", disk.path);
    g_assert_true(g_file_get_contents(disk.path, &full, &bytes, NULL));
    for (int n = 1; more; n++) {
        g_assert_true(g_file_set_contents(disk.path, full, (gssize)bytes, NULL));
        more = run_verb(&disk, verb, n);
        qemu_img_do("check -q -r leaks %s", disk.path);
    }
    qcow2_disk_done(&disk);
}

int main(int argc, char **argv)
{
    qcow2_harness_init(&argc, &argv);
    driver_register(&faulty_driver);
    g_test_add_data_func("/qcow2/faults/plain", &plain, test_calls_fail_once);
    g_test_add_data_func("/qcow2/faults/small-clusters", &small_clusters, test_calls_fail_once);
    g_test_add_func("/qcow2/faults/none", test_refcount_table_grows);
    g_test_add_func("/qcow2/faults/compressed-place", test_compressed_place_is_free);
    for (size_t i = 0; i < G_N_ELEMENTS(verbs); i++) {
        g_autofree char *path = g_strconcat("/qcow2/faults/verb/", verbs[i].name, NULL);

        g_test_add_data_func(path, &verbs[i], test_verb_fails);
    }
    g_test_add_func("/qcow2/faults/shrink", test_shrinking_fails_once);
    return io_harness_run();
}
