/* SPDX-License-Identifier: MIT */
/*
 * Requests on qcow2 images of all kinds, one after another: what is read is what was written, and
 * qemu-img agrees afterwards.
 */
#include "qcow2-harness.h"
#include "util/size.h"

#include <errno.h>
#include <string.h>

typedef struct Kind {
    const char *name;
    const char *options;
    int64_t cluster;
    int64_t size;
    const char *node; /* options */
} Kind;

/* Small slices in small caches, so that requests cross their ends and writeback has to make room.
 */
#define SMALL_CACHES ",'l2-cache-entry-size':512,'l2-cache-size':1024,'refcount-cache-size':1024"

static const Kind kinds[] = {
    { "plain", "", 65536, 8 * MiB },
    { "v2", "compat=0.10", 65536, 4 * MiB },
    { "odd-size", "cluster_size=4096", 4096, MiB + 1536 },
    { "tiny-clusters", "cluster_size=512", 512, 2 * MiB },
    { "tiny-clusters-1-bit", "cluster_size=512,refcount_bits=1", 512, MiB },
    { "tiny-clusters-64-bit", "cluster_size=512,refcount_bits=64", 512, 2 * MiB },
    { "width-1", "refcount_bits=1,cluster_size=4096", 4096, 2 * MiB },
    { "width-2", "refcount_bits=2,cluster_size=4096", 4096, 2 * MiB },
    { "width-4", "refcount_bits=4,cluster_size=4096", 4096, 2 * MiB },
    { "width-8", "refcount_bits=8,cluster_size=4096", 4096, 2 * MiB },
    { "width-32", "refcount_bits=32,cluster_size=4096", 4096, 2 * MiB },
    { "width-64", "refcount_bits=64,cluster_size=1024", 1024, 2 * MiB },
    { "large-clusters", "cluster_size=2M", 2 * MiB, 16 * MiB },
    { "zstd", "compression_type=zstd,cluster_size=16k", 16384, 4 * MiB },
    { "extended-l2", "extended_l2=on,cluster_size=64k", 65536, 8 * MiB },
    { "extended-l2-16k", "extended_l2=on,cluster_size=16k", 16384, 4 * MiB },
    { "lazy", "lazy_refcounts=on,cluster_size=4096", 4096, 2 * MiB },
    { "preallocated", "preallocation=metadata", 65536, 4 * MiB },
    { "small-caches", "cluster_size=4096", 4096, 8 * MiB, SMALL_CACHES },
    { "small-caches-extended-l2", "extended_l2=on,cluster_size=16k", 16384, 8 * MiB, SMALL_CACHES },
    { "small-caches-64k", "", 65536, 16 * MiB, SMALL_CACHES },
};

static void choose_range(const Kind *kind, GRand *random, int64_t *ret_offset, int64_t *ret_bytes)
{
    int64_t sector = g_rand_boolean(random) ? 512 : kind->cluster;
    int64_t max = g_rand_int_range(random, 0, 4) == 0 ? kind->size / 4 : kind->cluster * 2;

    *ret_offset = align_down(g_rand_int_range(random, 0, (int)kind->size), sector);
    *ret_bytes = align_up(g_rand_int_range(random, 1, (int)max + 1), sector);
    *ret_bytes = MIN(*ret_bytes, kind->size - *ret_offset);
}

/* Whole clusters read as zeroes after a discard. */
static void discard(Qcow2Disk *disk, const Kind *kind, int64_t offset, int64_t bytes)
{
    int64_t begin = align_up(offset, kind->cluster);
    int64_t end = align_down(offset + bytes, kind->cluster);

    if (begin < end) {
        g_assert_cmpint(do_discard(disk->user, begin, end - begin), ==, 0);
        memset(disk->twin + begin, 0, end - begin);
    }
}

static void compressed(Qcow2Disk *disk, const Kind *kind, GRand *random, int64_t offset)
{
    int64_t begin = align_down(offset, kind->cluster);

    disk_noise(disk, random, begin, MIN(kind->cluster, kind->size - begin), REQ_WRITE_COMPRESSED);
}

static void any_request(Qcow2Disk *disk, const Kind *kind, GRand *random)
{
    int64_t offset, bytes;

    choose_range(kind, random, &offset, &bytes);
    switch (g_rand_int_range(random, 0, 12)) {
    case 0:
        disk_zero(disk, offset, bytes, 0);
        break;
    case 1:
        disk_zero(disk, offset, bytes, REQ_MAY_UNMAP);
        break;
    case 2:
        discard(disk, kind, offset, bytes);
        break;
    case 3:
        compressed(disk, kind, random, offset);
        break;
    case 4:
        disk_flush(disk);
        break;
    case 5:
        disk_assert_range(disk, offset, bytes);
        break;
    default:
        disk_noise(disk, random, offset, bytes, 0);
        break;
    }
}

static void test_kind(gconstpointer opaque)
{
    const Kind *kind = opaque;
    GRand *random = g_rand_new_with_seed(test_seed());
    Qcow2Disk disk;

    if (!qcow2_need_qemu()) {
        g_rand_free(random);
        return;
    }
    qcow2_disk_create(&disk, kind->name, kind->size, kind->options, kind->node);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 60; i++) {
            any_request(&disk, kind, random);
        }
        disk_assert(&disk);
        qcow2_disk_close(&disk);
        disk_judge(&disk, 0);
        qcow2_disk_open(&disk);
        disk_assert(&disk);
    }
    qcow2_disk_done(&disk);
    g_rand_free(random);
}

/* A write to clusters that no L2 table describes yet, across the end of a slice. */
static void test_across_slices(void)
{
    const int64_t slice = 4 * MiB; /* of the disk */
    Qcow2Disk disk;

    if (!qcow2_need_qemu()) {
        return;
    }
    qcow2_disk_create(&disk, "slices", 8 * MiB, "", ",'l2-cache-entry-size':512");
    disk_fill(&disk, slice - 65536, 2 * 65536, 7);
    disk_assert(&disk);
    qcow2_disk_close(&disk);
    disk_judge(&disk, 0);
    qcow2_disk_done(&disk);
}

int main(int argc, char **argv)
{
    qcow2_harness_init(&argc, &argv);
    g_test_add_func("/qcow2/requests/across-slices", test_across_slices);
    for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++) {
        g_autofree char *path = g_strconcat("/qcow2/requests/", kinds[i].name, NULL);

        g_test_add_data_func(path, &kinds[i], test_kind);
    }
    return io_harness_run();
}
