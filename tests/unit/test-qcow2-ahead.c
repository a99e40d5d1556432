/* SPDX-License-Identifier: MIT */
/*
 * Images on files with cache.direct are made longer ahead of what is allocated, and cut when they
 * are closed; what lies there reads as zeroes, and a file that was not cut is a good image.
 */
#include "block/image.h"
#include "block/qcow2/qcow2.h"
#include "qcow2-harness.h"
#include "util/size.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SIZE    (64 * MiB)
#define CLUSTER (64 * KiB)

static int64_t file_size(const char *path)
{
    struct stat st;

    g_assert_cmpint(stat(path, &st), ==, 0);
    return st.st_size;
}

static bool can_be_direct(const char *folder)
{
    g_autofree char *path = g_build_filename(folder, "probe", NULL);
    int fd = open(path, O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
    bool can = fd >= 0 && fallocate(fd, FALLOC_FL_ZERO_RANGE, 0, CLUSTER) == 0;

    if (fd >= 0) {
        close(fd);
        unlink(path);
    }
    return can;
}

/* False: skipped. */
static bool create(Qcow2Disk *disk, const char *name)
{
    g_autofree char *path = temp_path("x");
    g_autofree char *folder = g_path_get_dirname(path);

    if (!qcow2_need_qemu()) {
        return false;
    }
    if (!can_be_direct(folder)) {
        g_test_skip("the file system cannot do direct I/O, or zero a range");
        return false;
    }
    qcow2_disk_create(disk, name, SIZE, NULL, ",'cache':{'direct':true}");
    return true;
}

static int64_t used(const Qcow2Disk *disk)
{
    const Qcow2 *q = disk->node->state;

    return q->meta_end;
}

/* What a crash would leave. */
static void judge_a_copy(Qcow2Disk *disk)
{
    Qcow2Disk copy = *disk;

    disk_flush(disk);
    copy.path = temp_path("copy.qcow2");
    run_shell("cp %s %s", disk->path, copy.path);
    disk_judge(&copy, 0);
    g_free(copy.path);
}

static void the_file_grows_ahead_and_is_cut(void)
{
    GRand *random = g_rand_new_with_seed(1);
    int64_t end, ahead;
    Qcow2Disk disk;

    if (create(&disk, "grows")) {
        for (int64_t i = 0; i < 400; i++) {
            disk_noise(&disk, random, i * 7 % (SIZE / CLUSTER) * CLUSTER, CLUSTER, 0);
        }
        end = used(&disk);
        ahead = file_size(disk.path) - end;
        g_assert_cmpint(ahead, >, 0);
        g_assert_cmpint(ahead, <=, 16 * MiB);
        judge_a_copy(&disk);
        qcow2_disk_close(&disk);
        g_assert_cmpint(file_size(disk.path), ==, end);
        disk_judge(&disk, 0);
        qcow2_disk_done(&disk);
    }
    g_rand_free(random);
}

static void reading_alone_changes_nothing(void)
{
    Qcow2Disk disk;
    int64_t size;

    if (create(&disk, "reads")) {
        size = file_size(disk.path);
        disk_assert_range(&disk, 0, MiB);
        qcow2_disk_close(&disk);
        g_assert_cmpint(file_size(disk.path), ==, size);
        qcow2_disk_done(&disk);
    }
}

static void one_of_all_requests(Qcow2Disk *disk, GRand *random, int64_t size)
{
    int64_t offset = g_rand_int_range(random, 0, (int)(size / 512)) * INT64_C(512);
    int64_t most = g_rand_int_range(random, 1, 400) * INT64_C(512);
    int64_t bytes = MIN(size - offset, most);

    switch (g_rand_int_range(random, 0, 8)) {
    case 0:
        disk_zero(disk, offset, bytes, REQ_MAY_UNMAP);
        break;
    case 1:
        disk_flush(disk);
        break;
    default:
        disk_noise(disk, random, offset, bytes, 0);
        break;
    }
}

/* Small writes rely on what they do not write being zeroes; a smaller disk makes the file shorter,
 * and it grows again. */
static void places_ahead_read_as_zeroes(void)
{
    GRand *random = g_rand_new_with_seed(test_seed());
    Qcow2Disk disk;

    if (create(&disk, "zeroes")) {
        for (int round = 0; round < 4; round++) {
            int64_t size = round % 2 ? SIZE / 4 : SIZE;

            g_assert_true(node_resize(disk.node, size, NULL));
            memset(disk.twin + size, 0, SIZE - size);
            for (int i = 0; i < 150; i++) {
                one_of_all_requests(&disk, random, size);
            }
            disk_assert_range(&disk, 0, size);
        }
        g_assert_true(node_resize(disk.node, SIZE, NULL));
        judge_a_copy(&disk);
        qcow2_disk_close(&disk);
        disk_judge(&disk, 0);
        qcow2_disk_done(&disk);
    }
    g_rand_free(random);
}

/* A file may end before the clusters do that were allocated in advance. Writing to one far behind
 * makes the file longer than what was grown ahead, and is not cut off. */
static void nothing_in_use_is_cut(void)
{
    Qcow2Disk disk;

    if (!create(&disk, "in-use")) {
        return;
    }
    qcow2_disk_close(&disk);
    qemu_img_do("create -q -f qcow2 -o preallocation=metadata %s 64M", disk.path);
    g_assert_cmpint(truncate(disk.path, SIZE / 2), ==, 0);
    qcow2_disk_open(&disk);
    g_assert_cmpint(do_discard(disk.user, SIZE / 2 - MiB, 16 * MiB), ==, 0);
    disk_flush(&disk); /* now they are free */
    disk_fill(&disk, SIZE / 2, 2 * MiB, 1);
    g_assert_cmpint(file_size(disk.path), >, used(&disk));
    disk_fill(&disk, SIZE - CLUSTER, CLUSTER, 2);
    qcow2_disk_close(&disk);
    disk_judge(&disk, 0);
    qcow2_disk_done(&disk);
}

int main(int argc, char **argv)
{
    qcow2_harness_init(&argc, &argv);
    g_test_add_func("/qcow2-ahead/the-file-grows-ahead-and-is-cut",
                    the_file_grows_ahead_and_is_cut);
    g_test_add_func("/qcow2-ahead/nothing-in-use-is-cut", nothing_in_use_is_cut);
    g_test_add_func("/qcow2-ahead/reading-alone-changes-nothing", reading_alone_changes_nothing);
    g_test_add_func("/qcow2-ahead/places-ahead-read-as-zeroes", places_ahead_read_as_zeroes);
    return io_harness_run();
}
