/* SPDX-License-Identifier: MIT */
/*
 * Requests on one qcow2 image from several I/O threads at once.
 *
 * In the first half of the disk every cluster has all workers, each with a slice of it that nobody
 * else writes, so that allocations of the same cluster meet. In the second half each worker has
 * clusters of its own, which it also discards, zeroes and compresses, so that freed clusters change
 * hands. Each byte has one writer: a twin can tell what must be there at the end.
 */
#include "qcow2-harness.h"
#include "util/size.h"

#include <errno.h>
#include <string.h>

#define WORKERS 8
#define THREADS 3
#define SHARED  24 /* clusters */
#define OWN     4
#define ROUNDS  60

typedef struct Kind {
    const char *name;
    const char *options;
    const char *node_options;
    int64_t cluster;
} Kind;

static const Kind kinds[] = {
    { "plain", "", "", 65536 },
    { "small-cache", "cluster_size=4096", ",'l2-cache-size':4096", 4096 },
    { "tiny-clusters", "cluster_size=4096,refcount_bits=64", "", 4096 },
    { "extended-l2", "extended_l2=on,cluster_size=64k", "", 65536 },
};

static Qcow2Disk disk;
static const Kind *kind;

static void choose_range(int index, GRand *random, int64_t *ret_offset, int64_t *ret_bytes)
{
    int64_t slice = kind->cluster / WORKERS;
    int64_t begin, length;

    if (g_rand_boolean(random)) {
        begin = g_rand_int_range(random, 0, SHARED) * kind->cluster + index * slice;
        length = slice;
    } else {
        begin = (SHARED + index * OWN) * kind->cluster;
        length = OWN * kind->cluster;
    }
    *ret_offset = begin + g_rand_int_range(random, 0, (int)length);
    *ret_bytes = g_rand_int_range(random, 1, (int)(begin + length - *ret_offset) + 1);
}

static void coroutine_fn write_once(GRand *random, int64_t offset, int64_t bytes, unsigned flags)
{
    IoVector vec;

    memset(disk.twin + offset, g_rand_int_range(random, 0, 256), bytes);
    iov_init_buf(&vec, disk.twin + offset, bytes);
    g_assert_cmpint(backend_co_pwritev(disk.user, offset, bytes, &vec, flags), ==, 0);
}

static void coroutine_fn read_once(int64_t offset, int64_t bytes)
{
    g_autofree uint8_t *buf = g_malloc(bytes);
    IoVector vec;

    iov_init_buf(&vec, buf, bytes);
    g_assert_cmpint(backend_co_preadv(disk.user, offset, bytes, &vec, 0), ==, 0);
    g_assert_cmpint(memcmp(buf, disk.twin + offset, bytes), ==, 0);
}

static void coroutine_fn zero_once(int64_t offset, int64_t bytes, unsigned flags)
{
    g_assert_cmpint(backend_co_pwrite_zeroes(disk.user, offset, bytes, flags), ==, 0);
    memset(disk.twin + offset, 0, bytes);
}

/* One of the worker's own clusters as a whole. */
static void coroutine_fn change_own_cluster(int index, GRand *random)
{
    int64_t offset = (SHARED + index * OWN + g_rand_int_range(random, 0, OWN)) * kind->cluster;

    if (g_rand_boolean(random)) {
        g_assert_cmpint(backend_co_pdiscard(disk.user, offset, kind->cluster), ==, 0);
        memset(disk.twin + offset, 0, kind->cluster);
    } else {
        write_once(random, offset, kind->cluster, REQ_WRITE_COMPRESSED);
    }
}

static void coroutine_fn work(int index, GRand *random)
{
    for (int i = 0; i < ROUNDS; i++) {
        int64_t offset, bytes;

        choose_range(index, random, &offset, &bytes);
        switch (g_rand_int_range(random, 0, 10)) {
        case 0:
            zero_once(offset, bytes, REQ_MAY_UNMAP);
            break;
        case 1:
            zero_once(offset, bytes, 0);
            break;
        case 2:
            change_own_cluster(index, random);
            break;
        case 3:
            g_assert_cmpint(backend_co_flush(disk.user), ==, 0);
            break;
        case 4:
        case 5:
            read_once(offset, bytes);
            break;
        default:
            write_once(random, offset, bytes, 0);
            break;
        }
    }
}

static void test_kind(gconstpointer opaque)
{
    kind = opaque;
    if (!qcow2_need_qemu()) {
        return;
    }
    qcow2_disk_create(&disk, kind->name, (SHARED + WORKERS * OWN) * kind->cluster, kind->options,
                      kind->node_options);
    run_workers(WORKERS, THREADS, work);
    disk_assert(&disk);
    run_workers(WORKERS, THREADS, work);
    disk_assert(&disk);
    qcow2_disk_close(&disk);
    disk_judge(&disk, 0);
    qcow2_disk_done(&disk);
}

int main(int argc, char **argv)
{
    qcow2_harness_init(&argc, &argv);
    for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++) {
        g_autofree char *path = g_strconcat("/qcow2/threads/", kinds[i].name, NULL);

        g_test_add_data_func(path, &kinds[i], test_kind);
    }
    return io_harness_run();
}
