/* SPDX-License-Identifier: MIT */
/*
 * Going to an internal snapshot under bitmaps: each granule whose contents differ afterwards is
 * dirty in the bitmaps that record, whatever the disk was before; others stay as they were. What
 * both have in common is not marked.
 */
#include "block/image.h"
#include "qcow2-harness.h"
#include "util/size.h"

#include <stdlib.h>
#include <string.h>

#define SIZE         (8 * MiB)
#define GRANULE      (64 * KiB)
#define SIZE_MAX_MIB 17

static DirtyBitmap *add_bitmap(Qcow2Disk *disk, const char *name, bool persistent, bool disabled)
{
    g_autoptr(GError) error = NULL;
    BitmapAddOptions options = {
        .name = name, .granularity = GRANULE, .persistent = persistent, .disabled = disabled
    };
    DrainSection *section = drain_begin_node(disk->node);
    DirtyBitmap *bitmap = bitmap_add(disk->node->bitmaps, &options, NULL, &error);

    drain_end(section);
    g_assert_no_error(error);
    return bitmap;
}

static void snapshot(Qcow2Disk *disk, const char *name)
{
    SnapshotInfo info = { .id = (char *)"", .name = (char *)name };
    g_autoptr(GError) error = NULL;

    node_snapshot_create(disk->node, &info, &error);
    g_assert_no_error(error);
}

static void go_to(Qcow2Disk *disk, const char *name)
{
    g_autoptr(GError) error = NULL;

    node_snapshot_goto(disk->node, name, &error);
    g_assert_no_error(error);
}

static uint8_t *read_all(Qcow2Disk *disk)
{
    uint8_t *bytes = g_malloc0(SIZE_MAX_MIB * MiB);

    g_assert_cmpint(do_read(disk->user, 0, node_size(disk->node), bytes), ==, 0);
    return bytes;
}

static void resize(Qcow2Disk *disk, int64_t size)
{
    g_autoptr(GError) error = NULL;

    node_resize(disk->node, size, &error);
    g_assert_no_error(error);
}

/* Some writes of whole and of parts of clusters, zeroes and discards. */
static void change(Qcow2Disk *disk, GRand *random)
{
    int64_t size = node_size(disk->node);

    for (int i = 0; i < 6; i++) {
        int64_t offset = g_rand_int_range(random, 0, (gint32)(size / 512)) * INT64_C(512);
        int64_t bytes = g_rand_int_range(random, 1, 400) * INT64_C(512);

        bytes = MIN(bytes, size - offset);
        switch (g_rand_int_range(random, 0, 4)) {
        case 0:
            g_assert_cmpint(do_zero(disk->user, offset, bytes, 0), ==, 0);
            break;
        case 1:
            g_assert_cmpint(do_discard(disk->user, offset, bytes), ==, 0);
            break;
        default:
            g_assert_cmpint(do_fill(disk->user, offset, bytes, g_rand_int_range(random, 1, 256)),
                            ==, 0);
        }
    }
}

/* The granules of the present disk that differ from `before` (which goes on with zeroes) are dirty
 * in `bitmap`. Returns how many bytes those are. */
static int64_t assert_covered(Qcow2Disk *disk, DirtyBitmap *bitmap, const uint8_t *before)
{
    g_autofree uint8_t *now = read_all(disk);
    int64_t size = node_size(disk->node), differing = 0;

    g_assert_true(bitmap_load(bitmap, NULL));
    for (int64_t at = 0; at < size; at += GRANULE) {
        int64_t bytes = MIN(GRANULE, size - at);

        if (memcmp(now + at, before + at, bytes) != 0) {
            g_assert_true(bitmap_get(bitmap, at));
            differing += bytes;
        }
    }
    return differing;
}

/* --- tests --- */

static void test_only_differences(void)
{
    DirtyBitmap *bitmap, *disabled;
    Qcow2Disk disk;

    if (!qcow2_need_qemu()) {
        return;
    }
    qcow2_disk_create(&disk, "differences", SIZE, "", "");
    disk_fill(&disk, 0, 4 * MiB, 1);
    snapshot(&disk, "one");
    disk_fill(&disk, MiB, GRANULE, 2);
    disk_zero(&disk, 2 * MiB, GRANULE, 0);
    disk_fill(&disk, 6 * MiB, 512, 3);
    bitmap = add_bitmap(&disk, "b", false, false);
    disabled = add_bitmap(&disk, "disabled", false, true);
    go_to(&disk, "one");
    g_assert_cmpint(bitmap_dirty_bytes(bitmap), ==, 3 * GRANULE);
    g_assert_true(bitmap_get(bitmap, MiB));
    g_assert_true(bitmap_get(bitmap, 2 * MiB));
    g_assert_true(bitmap_get(bitmap, 6 * MiB));
    g_assert_cmpint(bitmap_dirty_bytes(disabled), ==, 0);
    go_to(&disk, "one"); /* where it is */
    g_assert_cmpint(bitmap_dirty_bytes(bitmap), ==, 3 * GRANULE);
    qcow2_disk_done(&disk);
}

/* The bitmaps are in the image, and marked before the disk changes. */
static void test_persistent(void)
{
    g_autofree uint8_t *before = NULL;
    DirtyBitmap *bitmap;
    Qcow2Disk disk;

    if (!qcow2_need_qemu()) {
        return;
    }
    qcow2_disk_create(&disk, "persistent", SIZE, "cluster_size=4k", "");
    disk_fill(&disk, 0, MiB, 1);
    snapshot(&disk, "one");
    disk_fill(&disk, 5 * MiB, MiB, 2);
    before = read_all(&disk);
    add_bitmap(&disk, "b", true, false);
    qcow2_disk_close(&disk);
    qcow2_disk_open(&disk);
    go_to(&disk, "one");
    bitmap = bitmap_find(disk.node->bitmaps, "b");
    g_assert_true(bitmap_is_marked(bitmap));
    g_assert_cmpint(assert_covered(&disk, bitmap, before), ==, MiB);
    qcow2_disk_close(&disk);
    qcow2_disk_open(&disk);
    bitmap = bitmap_find(disk.node->bitmaps, "b");
    g_assert_false(bitmap_is_inconsistent(bitmap));
    g_assert_cmpint(assert_covered(&disk, bitmap, before), ==, MiB);
    g_assert_cmpint(bitmap_dirty_bytes(bitmap), ==, MiB);
    memset(disk.twin + 5 * MiB, 0, MiB);
    qcow2_disk_close(&disk);
    disk_judge(&disk, 0);
    qcow2_disk_done(&disk);
}

static void test_busy_and_resized(void)
{
    g_autoptr(GError) error = NULL;
    DirtyBitmap *bitmap;
    Qcow2Disk disk;

    if (!qcow2_need_qemu()) {
        return;
    }
    qcow2_disk_create(&disk, "busy", SIZE, "", "");
    snapshot(&disk, "one");
    bitmap = add_bitmap(&disk, "b", false, false);
    bitmap_hold(bitmap);
    disk_fill(&disk, 0, 512, 1);
    go_to(&disk, "one"); /* of the same size: like any write */
    g_assert_true(bitmap_get(bitmap, 0));
    bitmap_release(bitmap);
    resize(&disk, 2 * SIZE);
    bitmap_hold(bitmap);
    g_assert_cmpint(node_snapshot_goto(disk.node, "one", &error), <, 0);
    g_assert_nonnull(error);
    g_assert_cmpint(node_size(disk.node), ==, 2 * SIZE);
    bitmap_release(bitmap);
    go_to(&disk, "one");
    g_assert_cmpint(bitmap_size(bitmap), ==, SIZE);
    qcow2_disk_done(&disk);
}

/* The disk becomes smaller and larger again: what a bitmap that does not record had of the part
 * between is gone, in the image as well. */
static void test_there_and_back(void)
{
    DirtyBitmap *bitmap;
    Qcow2Disk disk;

    if (!qcow2_need_qemu()) {
        return;
    }
    qcow2_disk_create(&disk, "back", SIZE, "", "");
    snapshot(&disk, "small");
    resize(&disk, 2 * SIZE);
    snapshot(&disk, "large");
    add_bitmap(&disk, "b", true, false);
    g_assert_cmpint(do_fill(disk.user, SIZE + MiB, MiB, 1), ==, 0);
    g_assert_true(bitmap_disable(bitmap_find(disk.node->bitmaps, "b"), NULL, NULL));
    qcow2_disk_close(&disk);
    qcow2_disk_open(&disk);
    go_to(&disk, "small");
    go_to(&disk, "large");
    bitmap = bitmap_find(disk.node->bitmaps, "b");
    g_assert_true(bitmap_load(bitmap, NULL));
    g_assert_cmpint(bitmap_dirty_bytes(bitmap), ==, 0);
    qcow2_disk_close(&disk);
    qcow2_disk_open(&disk);
    bitmap = bitmap_find(disk.node->bitmaps, "b");
    g_assert_true(bitmap_load(bitmap, NULL));
    g_assert_cmpint(bitmap_dirty_bytes(bitmap), ==, 0);
    qcow2_disk_done(&disk);
}

/* Random changes, sizes and snapshots, with bitmaps of both kinds. */
static void test_random(gconstpointer options)
{
    g_autoptr(GRand) random = g_rand_new_with_seed(test_seed());
    Qcow2Disk disk;

    if (!qcow2_need_qemu()) {
        return;
    }
    qcow2_disk_create(&disk, "random", SIZE, options, "");
    for (int i = 0; i < 3; i++) {
        g_autofree char *name = g_strdup_printf("s%d", i);

        change(&disk, random);
        snapshot(&disk, name);
    }
    for (int i = 0; i < 12; i++) {
        g_autofree char *name = g_strdup_printf("s%d", g_rand_int_range(random, 0, 3));
        g_autofree uint8_t *before = NULL;
        DirtyBitmap *fresh, *stored;

        change(&disk, random);
        if (g_rand_boolean(random)) {
            resize(&disk, g_rand_int_range(random, 1, 16 * 16) * GRANULE + 512);
        }
        before = read_all(&disk);
        fresh = add_bitmap(&disk, "fresh", false, false);
        stored = add_bitmap(&disk, "stored", true, false);
        go_to(&disk, name);
        assert_covered(&disk, fresh, before);
        assert_covered(&disk, stored, before);
        qcow2_disk_close(&disk);
        qemu_img_do("check -q %s", disk.path);
        qcow2_disk_open(&disk);
        stored = bitmap_find(disk.node->bitmaps, "stored");
        assert_covered(&disk, stored, before);
        g_assert_true(bitmap_remove(stored, NULL, NULL));
    }
    qcow2_disk_done(&disk);
}

int main(int argc, char **argv)
{
    static const char *const kinds[] = { "cluster_size=64k", "cluster_size=4k", "cluster_size=512",
                                         "extended_l2=on" };

    qcow2_harness_init(&argc, &argv);
    g_test_add_func("/qcow2/snapshot-bitmaps/only-differences", test_only_differences);
    g_test_add_func("/qcow2/snapshot-bitmaps/persistent", test_persistent);
    g_test_add_func("/qcow2/snapshot-bitmaps/there-and-back", test_there_and_back);
    g_test_add_func("/qcow2/snapshot-bitmaps/busy", test_busy_and_resized);
    for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++) {
        g_autofree char *path = g_strdup_printf("/qcow2/snapshot-bitmaps/random/%s", kinds[i]);

        g_test_add_data_func(path, kinds[i], test_random);
    }
    return io_harness_run();
}
