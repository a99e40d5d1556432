/* SPDX-License-Identifier: MIT */
/*
 * New sizes of qcow2 images, and what the new part shows.
 */
#include "qcow2-harness.h"
#include "util/size.h"

#include <errno.h>
#include <string.h>

static char *resize_error(Qcow2Disk *disk, int64_t size)
{
    g_autoptr(GError) error = NULL;

    backend_free(g_steal_pointer(&disk->user));
    if (node_resize(disk->node, size, &error)) {
        disk->twin = g_realloc(disk->twin, size);
        if (size > disk->size) {
            memset(disk->twin + disk->size, 0, size - disk->size);
        }
        disk->size = size;
    }
    disk->user = open_user(disk->node, PERM_CONSISTENT_READ | PERM_WRITE);
    return error ? g_strdup(error->message) : NULL;
}

static void resize(Qcow2Disk *disk, int64_t size)
{
    assert_text(resize_error(disk, size), NULL);
    disk_assert(disk);
}

static void judge_and_reopen(Qcow2Disk *disk)
{
    qcow2_disk_close(disk);
    disk_judge(disk, 0);
    qcow2_disk_open(disk);
    disk_assert(disk);
}

static const char *const kinds[] = { "", "compat=0.10", "cluster_size=512", "extended_l2=on",
                                     "cluster_size=4096,refcount_bits=1" };

static void test_grow_and_shrink(gconstpointer options)
{
    Qcow2Disk disk;

    if (!qcow2_need_qemu()) {
        return;
    }
    qcow2_disk_create(&disk, "resized", MiB + 512, options, NULL);
    disk_fill(&disk, 0, disk.size, 1);
    resize(&disk, 8 * MiB); /* with clusters of 512 bytes, L1 moves */
    disk_fill(&disk, 5 * MiB + 3, 100000, 2);
    judge_and_reopen(&disk);
    resize(&disk, 3 * MiB);
    judge_and_reopen(&disk);
    resize(&disk, MiB - 512);
    resize(&disk, 6 * MiB); /* nothing of old comes back */
    disk_fill(&disk, 6 * MiB - 512, 512, 3);
    judge_and_reopen(&disk);
    resize(&disk, 0);
    judge_and_reopen(&disk);
    qcow2_disk_done(&disk);
}

static void test_refusals(void)
{
    Qcow2Disk disk;

    if (!qcow2_need_qemu()) {
        return;
    }
    qcow2_disk_create(&disk, "refusing", MiB, "cluster_size=512", NULL);
    assert_text(resize_error(&disk, MiB + 1), "The new size must be a multiple of 512");
    assert_text(resize_error(&disk, 1 * TiB), "Failed to grow the L1 table: File too large");
    judge_and_reopen(&disk);
    qcow2_disk_done(&disk);
}

/* What is written to preallocated clusters of a data file that has grown is not taken for nothing
 * when they are given up and used again. */
static void test_grown_data_file(void)
{
    g_autofree char *data = temp_path("grown.data");
    g_autofree char *create = g_strdup_printf("data_file=%s", data);
    g_autofree char *options = g_strdup_printf(
        ",'pass-discard-request':false,'data-file':{'driver':'file','filename':'%s'}", data);
    const int64_t cluster = 65536;
    Qcow2Disk disk;

    if (!qcow2_need_qemu()) {
        return;
    }
    qcow2_disk_create(&disk, "grown", MiB, create, options);
    backend_free(g_steal_pointer(&disk.user));
    g_assert_true(node_resize_preallocated(disk.node, 2 * MiB, PREALLOC_MODE_METADATA, NULL));
    disk.user = open_user(disk.node, PERM_CONSISTENT_READ | PERM_WRITE);
    disk.size = 2 * MiB;
    disk.twin = g_realloc(disk.twin, disk.size);
    memset(disk.twin, 0, disk.size);
    g_assert_cmpint(do_fill(disk.user, MiB, cluster, 5), ==, 0);
    g_assert_cmpint(do_discard(disk.user, MiB, cluster), ==, 0);
    disk_fill(&disk, MiB + 512, 512, 6);
    judge_and_reopen(&disk);
    qcow2_disk_done(&disk);
}

int main(int argc, char **argv)
{
    qcow2_harness_init(&argc, &argv);
    for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++) {
        g_autofree char *path = g_strdup_printf("/qcow2/resize/%s", *kinds[i] ? kinds[i] : "plain");

        g_test_add_data_func(path, kinds[i], test_grow_and_shrink);
    }
    g_test_add_func("/qcow2/resize/data-file", test_grown_data_file);
    g_test_add_func("/qcow2/resize/refusals", test_refusals);
    return io_harness_run();
}
