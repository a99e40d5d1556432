/* SPDX-License-Identifier: MIT */
/*
 * Images over others: backing files that are shorter, longer or just there, external data files,
 * and damage that is met on the way.
 */
#include "block/image.h"
#include "block/qcow2/format.h"
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

/* What is over an image as if that were its file takes the whole chain for it. */
static void test_raw_over_an_overlay(void)
{
    BlockBackend *user;
    BlockStatus status;
    BlockNode *raw;
    Qcow2Disk disk;

    if (!qcow2_need_qemu()) {
        return;
    }
    overlay_create(&disk, MiB, MiB / 2, "cluster_size=16384,");
    raw = add_node("{'driver':'raw','node-name':'r','file':'%s','offset':65536}",
                   disk.node->node_name);
    user = open_user(raw, RW);
    g_assert_cmpint(node_cluster_size(raw), ==, 16384);
    g_assert_cmpint(do_status(user, 0, MiB / 2, &status), ==, 0);
    g_assert_true(status.flags & BLOCK_STATUS_DATA);
    g_assert_false(status.flags & BLOCK_STATUS_ZERO);
    g_assert_cmpint(status.bytes, ==, MiB / 2 - 65536);
    g_assert_cmpint(do_status(user, MiB / 2, 65536, &status), ==, 0);
    g_assert_true(status.flags & BLOCK_STATUS_ZERO);
    backend_free(user);
    delete_node("r");
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

/* A header whose length is not one that the specification allows is written so that it can be read.
 */
static void test_odd_header_length(void)
{
    static const char nothing[512];
    Qcow2Disk disk;
    int fd;

    if (!qcow2_need_qemu()) {
        return;
    }
    qcow2_disk_create(&disk, "odd", MiB, "", NULL);
    qcow2_disk_close(&disk);
    fd = open(disk.path, O_WRONLY);
    g_assert_cmpint(pwrite(fd, nothing, sizeof(nothing), 112), ==, sizeof(nothing));
    close(fd);
    poke(&disk, 96, UINT64_C(4) << 32 | 117);
    qcow2_disk_open(&disk);
    g_assert_cmpint(node_change_backing_file(disk.node, NULL, NULL, NULL), ==, 0);
    qcow2_disk_close(&disk);
    qcow2_disk_open(&disk);
    qcow2_disk_close(&disk);
    disk_judge(&disk, 0);
    qcow2_disk_done(&disk);
}

/* Storage of a fixed size, as a block device is. What does not fit is refused at once, so that
 * everything that was acknowledged can be flushed; and what was given up makes room. */
static void test_storage_is_full(void)
{
    g_autofree uint8_t *buf = g_malloc0(4 * MiB);
    Qcow2Disk disk;
    int64_t at = 0;
    int ret = 0;

    if (!qcow2_need_qemu()) {
        return;
    }
    qcow2_disk_create(&disk, "full", 4 * MiB, "cluster_size=4096", NULL);
    qcow2_disk_close(&disk);
    run_shell("truncate -s 1M %s", disk.path);
    disk.node = add_node("{'driver':'qcow2','node-name':'full','discard':'unmap','file':"
                         "{'driver':'raw','size':1048576,'file':"
                         "{'driver':'file','filename':'%s'}}}",
                         disk.path);
    disk.user = open_user(disk.node, PERM_CONSISTENT_READ | PERM_WRITE);
    g_assert_cmpint(do_fill(disk.user, 0, 2 * MiB, 1), ==, -ENOSPC);
    g_assert_cmpint(do_discard(disk.user, 0, 4 * MiB), ==, 0);
    memset(disk.twin, 0, disk.size);
    while (ret == 0) {
        memset(disk.twin + at, 2, 4096);
        ret = do_fill(disk.user, at, 4096, 2);
        at += 4096;
    }
    g_assert_cmpint(ret, ==, -ENOSPC);
    memset(disk.twin + at - 4096, 0, 4096);
    g_assert_cmpint(at, >, 900 * KiB);
    g_assert_cmpint(do_flush(disk.user), ==, 0);
    disk_zero(&disk, 0, 512 * KiB, REQ_MAY_UNMAP);
    disk_fill(&disk, 3 * MiB, 256 * KiB, 3);
    disk_flush(&disk);
    disk_assert(&disk);
    qcow2_disk_close(&disk);
    disk_judge(&disk, 0);
    qcow2_disk_done(&disk);
}

/* A cluster that has a place beyond the end of the file, which grows when it is written to. */
static void test_place_beyond_the_end(void)
{
    const int64_t last = 4 * MiB - 65536;
    Qcow2Disk disk;

    if (!qcow2_need_qemu()) {
        return;
    }
    qcow2_disk_create(&disk, "beyond", 4 * MiB, "preallocation=metadata",
                      ",'pass-discard-request':false");
    qcow2_disk_close(&disk);
    run_shell("truncate -s -2M %s", disk.path);
    qcow2_disk_open(&disk);
    g_assert_cmpint(do_fill(disk.user, last, 65536, 5), ==, 0);
    g_assert_cmpint(do_discard(disk.user, last, 65536), ==, 0);
    disk_flush(&disk);
    disk_fill(&disk, last + 512, 512, 6);
    disk_assert(&disk);
    qcow2_disk_done(&disk);
}

/* A snapshot whose tables are damaged cannot be gone to or deleted, and the image is as clean as it
 * was. */
static void test_snapshot_is_damaged(void)
{
    g_autoptr(GError) error = NULL;
    Qcow2Disk disk;
    int64_t table;

    if (!qcow2_need_qemu()) {
        return;
    }
    qcow2_disk_create(&disk, "damaged", MiB, "", NULL);
    disk_fill(&disk, 0, 131072, 1);
    qcow2_disk_close(&disk);
    qemu_img_do("snapshot -c s %s", disk.path);
    table = (int64_t)peek(&disk, 64);
    poke(&disk, table, peek(&disk, table) + 512);
    qcow2_disk_open(&disk);
    g_assert_cmpint(node_snapshot_delete(disk.node, "s", NULL), ==, -EIO);
    g_assert_cmpint(node_snapshot_goto(disk.node, "s", NULL), ==, -EIO);
    disk_fill(&disk, 65536, 512, 2);
    disk_assert(&disk);
    qcow2_disk_close(&disk);
    g_assert_cmphex(peek(&disk, 72), ==, 0);
    qcow2_disk_done(&disk);
}

/* Thousands of snapshots with long L1 tables that lie in one another. Opening takes no longer for
 * it.
 */
static void test_snapshots_share_tables(void)
{
    const uint32_t n = 30000;
    const int64_t table = 64 * MiB;
    g_autofree Qcow2DiskSnapshot *entries = g_malloc0_n(n, sizeof(*entries) + 24);
    g_autoptr(SnapshotInfoList) list = NULL;
    Qcow2Disk disk;
    int fd;

    if (!qcow2_need_qemu()) {
        return;
    }
    qcow2_disk_create(&disk, "shared", MiB, "cluster_size=512", NULL);
    qcow2_disk_close(&disk);
    for (uint32_t i = 0; i < n; i++) {
        uint8_t *at = (uint8_t *)entries + i * (sizeof(*entries) + 24);
        Qcow2DiskSnapshot entry = { .l1_offset = GUINT64_TO_BE(UINT64_C(512) * (n - i)),
                                    .l1_entries = GUINT32_TO_BE(QCOW2_MAX_L1_BYTES / 8),
                                    .id_bytes = GUINT16_TO_BE(5),
                                    .extra_bytes = GUINT32_TO_BE(16) };

        memcpy(at, &entry, sizeof(entry));
        g_snprintf((char *)at + sizeof(entry) + 16, 6, "%05x", i);
    }
    fd = open(disk.path, O_WRONLY);
    g_assert_cmpint(pwrite(fd, entries, n * (sizeof(*entries) + 24), table), >, 0);
    g_assert_cmpint(ftruncate(fd, 2 * table), ==, 0);
    close(fd);
    poke(&disk, 64, table);
    poke(&disk, 56, UINT64_C(1) << 32 | n);
    disk.node = add_node("{'driver':'qcow2','node-name':'shared','read-only':true,"
                         "'file':{'driver':'file','filename':'%s'}}",
                         disk.path);
    list = node_snapshot_list(disk.node);
    g_assert_cmpint(list->len, ==, n);
    delete_node("shared");
    qcow2_disk_done(&disk);
}

/* What the disk's user calls unchanged changes the file all the same. */
static void test_unchanged_writes_change_the_file(void)
{
    BitmapAddOptions options = { .name = "b", .granularity = 65536 };
    g_autofree uint8_t *zeroes = g_malloc0(65536);
    DirtyBitmap *bitmap;
    DrainSection *section;
    BlockStatus status;
    BlockNode *file;
    Qcow2Disk disk;

    if (!qcow2_need_qemu()) {
        return;
    }
    qcow2_disk_create(&disk, "unchanged", MiB, "", NULL);
    file = disk.node->file->node;
    section = drain_begin_node(file);
    bitmap = bitmap_add(file->bitmaps, &options, NULL, NULL);
    drain_end(section);
    g_assert_cmpint(do_write(disk.user, 0, 65536, zeroes, REQ_WRITE_UNCHANGED), ==, 0);
    g_assert_cmpint(do_status(disk.user, 0, 65536, &status), ==, 0);
    g_assert_true(status.flags & BLOCK_STATUS_OFFSET_VALID);
    drain_end(drain_begin_node(file));
    g_assert_true(bitmap_get(bitmap, status.map));
    qcow2_disk_done(&disk);
}

/* With lazy refcounts, too, the header never refers to a refcount table whose place is another's.
 */
static void test_lazy_refcount_table(void)
{
    const int64_t piece = 128 * KiB;
    uint64_t first_block;
    Qcow2Disk disk;

    if (!qcow2_need_qemu()) {
        return;
    }
    qcow2_disk_create(&disk, "lazy", 4 * MiB, "lazy_refcounts=on,cluster_size=512,refcount_bits=64",
                      ",'refcount-cache-size':4194304");
    first_block = peek(&disk, (int64_t)peek(&disk, 48));
    for (int64_t at = 0; at < disk.size; at += piece) {
        disk_fill(&disk, at, piece, 1);
        disk_flush(&disk);
        g_assert_cmphex(peek(&disk, (int64_t)peek(&disk, 48)), ==, first_block);
    }
    qcow2_disk_close(&disk);
    disk_judge(&disk, 0);
    qcow2_disk_done(&disk);
}

/* Refcounts that say that the header's cluster is free: it is not handed out, whether overlaps are
 * looked for or not. */
static void test_header_is_not_allocated(gconstpointer checks)
{
    static const char *const faults[] = {
        "*Preventing invalid write on metadata (overlaps with qcow2_header)*",
        "*Preventing invalid allocation of compressed cluster at offset 0*",
        "*Preventing invalid allocation of L2 table at offset 0*",
    };
    g_autofree char *node_options = g_strdup_printf(",'overlap-check':'%s'", (char *)checks);
    g_autofree uint8_t *buf = g_malloc0(65536);

    for (int i = 0; i < 3 && qcow2_need_qemu(); i++) {
        int64_t block;
        Qcow2Disk disk;

        qcow2_disk_create(&disk, "header", MiB, "", node_options);
        if (i < 2) {
            disk_fill(&disk, 0, 65536, 1);
        }
        qcow2_disk_close(&disk);
        block = (int64_t)peek(&disk, (int64_t)peek(&disk, 48));
        poke(&disk, block, peek(&disk, block) & UINT64_C(0x0000ffffffffffff));
        expect_warning(faults[i]);
        qcow2_disk_open(&disk);
        g_assert_cmpint(do_write(disk.user, 131072, 65536, buf, i == 1 ? REQ_WRITE_COMPRESSED : 0),
                        ==, -EIO);
        g_assert_true(is_marked_corrupt(&disk));
        g_assert_cmphex(peek(&disk, 0), ==, UINT64_C(0x514649fb00000003));
        damaged_done(&disk);
    }
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
    g_test_add_func("/qcow2/overlay/beneath-raw", test_raw_over_an_overlay);
    g_test_add_data_func("/qcow2/data-file", NULL, test_data_file);
    g_test_add_data_func("/qcow2/data-file-raw", "raw", test_data_file);
    g_test_add_func("/qcow2/lazy", test_lazy_refcount_table);
    g_test_add_func("/qcow2/overlay/unchanged", test_unchanged_writes_change_the_file);
    g_test_add_func("/qcow2/damage/header-length", test_odd_header_length);
    g_test_add_data_func("/qcow2/damage/header", "cached", test_header_is_not_allocated);
    g_test_add_data_func("/qcow2/damage/header-unchecked", "none", test_header_is_not_allocated);
    g_test_add_func("/qcow2/full", test_storage_is_full);
    g_test_add_func("/qcow2/damage/end", test_place_beyond_the_end);
    g_test_add_func("/qcow2/damage/snapshot", test_snapshot_is_damaged);
    g_test_add_func("/qcow2/damage/snapshots", test_snapshots_share_tables);
    g_test_add_func("/qcow2/damage/l2-entry", test_l2_entry_is_not_aligned);
    g_test_add_func("/qcow2/damage/overlap", test_data_is_not_written_over_metadata);
    g_test_add_func("/qcow2/damage/refcount", test_metadata_is_not_allocated_again);
    return io_harness_run();
}
