/* SPDX-License-Identifier: MIT */
/*
 * Images over others: backing files that are shorter, longer or just there, external data files,
 * and damage that is met on the way.
 */
#include "qcow2-harness.h"
#include "util/size.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define RW (PERM_CONSISTENT_READ | PERM_WRITE)

/* An overlay on a raw backing file of noise; the twin begins as what shows through. */
static void overlay_create(Qcow2Disk *disk, int64_t size, int64_t backing_size, const char *options)
{
    g_autofree char *base = temp_file("base", backing_size);
    g_autofree uint8_t *noise = g_malloc(backing_size);
    g_autofree char *create = NULL;

    for (int64_t i = 0; i < backing_size; i++) {
        noise[i] = (uint8_t)(i / 512 * 7 + 1);
    }
    g_assert_true(g_file_set_contents(base, (char *)noise, backing_size, NULL));
    add_node("{'driver':'file','node-name':'base','filename':'%s','read-only':true}", base);
    create = g_strdup_printf("%sbacking_file=%s,backing_fmt=raw", options, base);
    qcow2_disk_create(disk, "overlay", size, create, ",'backing':'base'");
    memcpy(disk->twin, noise, MIN(size, backing_size));
}

static void overlay_done(Qcow2Disk *disk)
{
    qcow2_disk_close(disk);
    disk_judge(disk, 0);
    qcow2_disk_done(disk);
    delete_node("base");
}

static void any_requests(Qcow2Disk *disk, GRand *random, int64_t cluster, bool discards)
{
    for (int i = 0; i < 60; i++) {
        int64_t offset = g_rand_int_range(random, 0, (int)disk->size);
        int64_t bytes = g_rand_int_range(random, 1, (int)MIN(disk->size - offset, 3 * cluster) + 1);

        switch (g_rand_int_range(random, 0, 6)) {
        case 0:
            disk_zero(disk, offset, bytes, g_rand_boolean(random) ? REQ_MAY_UNMAP : 0);
            break;
        case 1:
            offset = align_up(offset, cluster);
            if (discards && offset + cluster <= disk->size) {
                g_assert_cmpint(do_discard(disk->user, offset, cluster), ==, 0);
                memset(disk->twin + offset, 0, cluster);
            }
            break;
        case 2:
            disk_assert_range(disk, offset, bytes);
            break;
        default:
            disk_noise(disk, random, offset, bytes, 0);
            break;
        }
    }
}

typedef struct Overlay {
    const char *name, *options;
    int64_t cluster, size, backing;
    bool v2;
} Overlay;

static const Overlay overlays[] = {
    { "same-size", "", 65536, 2 * MiB, 2 * MiB },
    { "shorter-backing", "", 65536, 2 * MiB, MiB + 5 * 512 },
    { "longer-backing", "", 65536, MiB + 512, 2 * MiB },
    { "v2", "compat=0.10,", 65536, 2 * MiB, MiB + 512, true },
    { "small-clusters", "cluster_size=512,", 512, MiB, MiB },
    { "extended-l2", "extended_l2=on,", 65536, 2 * MiB, 2 * MiB },
};

static void test_overlay(gconstpointer opaque)
{
    const Overlay *overlay = opaque;
    GRand *random;
    Qcow2Disk disk;

    if (!qcow2_need_qemu()) {
        return;
    }
    random = g_rand_new_with_seed(test_seed());
    overlay_create(&disk, overlay->size, overlay->backing, overlay->options);
    disk_assert(&disk);
    any_requests(&disk, random, overlay->cluster, !overlay->v2);
    disk_assert(&disk);
    overlay_done(&disk);
    g_rand_free(random);
}

static void test_copy_on_write_is_of_subclusters(void)
{
    g_autofree char *map = NULL;
    Qcow2Disk disk;

    if (!qcow2_need_qemu()) {
        return;
    }
    overlay_create(&disk, MiB, MiB, "extended_l2=on,");
    disk_fill(&disk, 65536 + 4096, 512, 1);
    qcow2_disk_close(&disk);
    map = disk_map(&disk);
    /* One subcluster of 2 KiB is the overlay's own, the others are not. */
    g_assert_nonnull(strstr(map, "\"start\": 69632, \"length\": 2048, \"depth\": 0"));
    g_assert_nonnull(strstr(map, "\"start\": 71680, \"length\": 976896, \"depth\": 1"));
    overlay_done(&disk);
}

static void test_status_tells_the_layer(void)
{
    BlockStatus status;
    Qcow2Disk disk;

    if (!qcow2_need_qemu()) {
        return;
    }
    overlay_create(&disk, MiB, MiB, "");
    disk_fill(&disk, 65536, 131072, 1);
    disk_zero(&disk, 262144, 65536, REQ_MAY_UNMAP);
    g_assert_cmpint(do_status(disk.user, 0, MiB, &status), ==, 0);
    g_assert_cmpint(status.bytes, ==, 65536);
    g_assert_cmpint(status.depth, ==, 1);
    g_assert_cmpint(do_status(disk.user, 65536, MiB - 65536, &status), ==, 0);
    g_assert_cmpint(status.bytes, ==, 131072);
    g_assert_cmpint(status.depth, ==, 0);
    g_assert_true(status.flags & BLOCK_STATUS_DATA);
    g_assert_true(status.file == disk.node->file->node);
    g_assert_cmpint(do_status(disk.user, 262144, MiB - 262144, &status), ==, 0);
    g_assert_cmpint(status.bytes, ==, 65536);
    g_assert_true(status.flags & BLOCK_STATUS_ZERO);
    overlay_done(&disk);
}

/* --- snapshots inside of the image --- */

typedef struct Snapshotted {
    const char *name, *options;
    int64_t cluster;
} Snapshotted;

static const Snapshotted snapshotted[] = {
    { "plain", "", 65536 },
    { "small-clusters", "cluster_size=512", 512 },
    { "extended-l2", "extended_l2=on", 65536 },
    { "2-bit", "cluster_size=4096,refcount_bits=2", 4096 },
};

/* What a snapshot shares is copied before it is changed, and given back when it is gone. */
static void test_snapshot_stays(gconstpointer opaque)
{
    const Snapshotted *kind = opaque;
    g_autofree uint8_t *old = NULL;
    GRand *random;
    Qcow2Disk disk;

    if (!qcow2_need_qemu()) {
        return;
    }
    random = g_rand_new_with_seed(test_seed());
    qcow2_disk_create(&disk, "shot", 2 * MiB, kind->options, NULL);
    any_requests(&disk, random, kind->cluster, true);
    disk_noise(&disk, random, 0, kind->cluster, REQ_WRITE_COMPRESSED);
    qcow2_disk_close(&disk);
    old = g_memdup2(disk.twin, disk.size);
    qemu_img_do("snapshot -c s %s", disk.path);
    qcow2_disk_open(&disk);
    any_requests(&disk, random, kind->cluster, true);
    disk_assert(&disk);
    qcow2_disk_close(&disk);
    disk_judge(&disk, 0);
    qemu_img_do("snapshot -a s %s", disk.path);
    memcpy(disk.twin, old, disk.size);
    disk_judge(&disk, 0);
    qcow2_disk_open(&disk);
    disk_assert(&disk);
    any_requests(&disk, random, kind->cluster, true);
    qcow2_disk_close(&disk);
    qemu_img_do("snapshot -d s %s", disk.path);
    disk_judge(&disk, 0);
    qcow2_disk_done(&disk);
    g_rand_free(random);
}

/* --- external data files --- */

static void data_file_create(Qcow2Disk *disk, int64_t size, bool raw, const char *more)
{
    g_autofree char *data = temp_path("data");
    g_autofree char *create = NULL;
    static char node_options[512];

    create = g_strdup_printf("data_file=%s,data_file_raw=%s%s", data, raw ? "on" : "off", more);
    g_snprintf(node_options, sizeof(node_options),
               ",'data-file':{'driver':'file','discard':'unmap','filename':'%s'}", data);
    qcow2_disk_create(disk, "split", size, create, node_options);
}

static void assert_data_file(const Qcow2Disk *disk)
{
    g_autofree char *data = temp_path("data");
    g_autofree char *bytes = NULL;
    gsize n;

    g_assert_true(g_file_get_contents(data, &bytes, &n, NULL));
    g_assert_cmpint(n, >=, disk->size);
    g_assert_cmpint(memcmp(bytes, disk->twin, disk->size), ==, 0);
}

static void test_data_file(gconstpointer raw)
{
    GRand *random;
    Qcow2Disk disk;

    if (!qcow2_need_qemu()) {
        return;
    }
    random = g_rand_new_with_seed(test_seed());
    data_file_create(&disk, 2 * MiB, raw != NULL, "");
    for (int round = 0; round < 2; round++) {
        any_requests(&disk, random, 65536, true);
        disk_assert(&disk);
        qcow2_disk_close(&disk);
        disk_judge(&disk, 0);
        if (raw) {
            assert_data_file(&disk);
        }
        qcow2_disk_open(&disk);
        disk_assert(&disk);
    }
    qcow2_disk_done(&disk);
    g_rand_free(random);
}

/* --- damage --- */

static void poke(const Qcow2Disk *disk, int64_t offset, uint64_t value)
{
    uint64_t be = GUINT64_TO_BE(value);
    int fd = open(disk->path, O_WRONLY);

    g_assert_cmpint(pwrite(fd, &be, 8, offset), ==, 8);
    close(fd);
}

static uint64_t peek(const Qcow2Disk *disk, int64_t offset)
{
    uint64_t be;
    int fd = open(disk->path, O_RDONLY);

    g_assert_cmpint(pread(fd, &be, 8, offset), ==, 8);
    close(fd);
    return GUINT64_FROM_BE(be);
}

static bool is_marked_corrupt(const Qcow2Disk *disk)
{
    return peek(disk, 72) & 2;
}

/* An image with its first two clusters written, closed; its L1 table and first L2 table. */
static void damaged_create(Qcow2Disk *disk, int64_t *ret_l1, int64_t *ret_l2)
{
    qcow2_disk_create(disk, "damaged", MiB, "", NULL);
    disk_fill(disk, 0, 131072, 1);
    qcow2_disk_close(disk);
    *ret_l1 = (int64_t)peek(disk, 40);
    *ret_l2 = (int64_t)(peek(disk, *ret_l1) & 0x00fffffffffffe00ull);
}

static void expect_warning(const char *pattern)
{
    g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, pattern);
}

static void damaged_done(Qcow2Disk *disk)
{
    g_test_assert_expected_messages();
    qcow2_disk_done(disk);
}

static void test_l2_entry_is_not_aligned(void)
{
    int64_t l1, l2;
    Qcow2Disk disk;
    char byte;

    if (!qcow2_need_qemu()) {
        return;
    }
    damaged_create(&disk, &l1, &l2);
    poke(&disk, l2, peek(&disk, l2) + 512);
    expect_warning(
        "*Marking image as corrupt: Cluster allocation offset 0x*00 unaligned (L2 offset: "
        "0x*, L2 index: 0); further corruption events will be suppressed");
    qcow2_disk_open(&disk);
    g_assert_cmpint(do_read(disk.user, 0, 1, &byte), ==, -EIO);
    g_assert_cmpint(do_fill(disk.user, 65536, 512, 1), ==, -EIO);
    g_assert_true(is_marked_corrupt(&disk));
    damaged_done(&disk);
}

static void test_data_is_not_written_over_metadata(void)
{
    int64_t l1, l2;
    Qcow2Disk disk;

    if (!qcow2_need_qemu()) {
        return;
    }
    damaged_create(&disk, &l1, &l2);
    poke(&disk, l2, (uint64_t)l1 | 1ull << 63);
    expect_warning("*Marking image as corrupt: Preventing invalid write on metadata (overlaps with "
                   "active L1 table); further corruption events will be suppressed");
    qcow2_disk_open(&disk);
    g_assert_cmpint(do_fill(disk.user, 0, 512, 1), ==, -EIO);
    g_assert_cmpint(do_fill(disk.user, 131072, 512, 1), ==, -EIO);
    g_assert_cmpint(do_flush(disk.user), ==, -EIO);
    g_assert_true(is_marked_corrupt(&disk));
    g_assert_cmpint((int64_t)(peek(&disk, l1) & 0x00fffffffffffe00ull), ==, l2);
    damaged_done(&disk);
}

/* Refcounts that say that the L2 table is free: it must not be handed out. */
static void test_metadata_is_not_allocated_again(void)
{
    int64_t l1, l2, block;
    Qcow2Disk disk;

    if (!qcow2_need_qemu()) {
        return;
    }
    damaged_create(&disk, &l1, &l2);
    block = (int64_t)peek(&disk, (int64_t)peek(&disk, 48));
    poke(&disk, block + 8, 0); /* refcounts of the clusters 4 to 7 */
    expect_warning("*Preventing invalid write on metadata (overlaps with active L2 table)*");
    qcow2_disk_open(&disk);
    g_assert_cmpint(do_fill(disk.user, 131072, 65536, 1), ==, -EIO);
    g_assert_true(is_marked_corrupt(&disk));
    damaged_done(&disk);
}

int main(int argc, char **argv)
{
    qcow2_harness_init(&argc, &argv);
    for (size_t i = 0; i < G_N_ELEMENTS(overlays); i++) {
        g_autofree char *path = g_strconcat("/qcow2/overlay/", overlays[i].name, NULL);

        g_test_add_data_func(path, &overlays[i], test_overlay);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(snapshotted); i++) {
        g_autofree char *path = g_strconcat("/qcow2/snapshot/", snapshotted[i].name, NULL);

        g_test_add_data_func(path, &snapshotted[i], test_snapshot_stays);
    }
    g_test_add_func("/qcow2/overlay/copies-subclusters", test_copy_on_write_is_of_subclusters);
    g_test_add_func("/qcow2/overlay/status", test_status_tells_the_layer);
    g_test_add_data_func("/qcow2/data-file", NULL, test_data_file);
    g_test_add_data_func("/qcow2/data-file-raw", "raw", test_data_file);
    g_test_add_func("/qcow2/damage/l2-entry", test_l2_entry_is_not_aligned);
    g_test_add_func("/qcow2/damage/overlap", test_data_is_not_written_over_metadata);
    g_test_add_func("/qcow2/damage/refcount", test_metadata_is_not_allocated_again);
    return io_harness_run();
}
