/* SPDX-License-Identifier: MIT */
/*
 * qcow2 images beside a naive twin: the disk's bytes in memory, and one bool for each grain of a
 * bitmap.
 *
 * Random requests, snapshots, resizes, reopens and bitmap verbs are done to both. Every read must
 * agree, and at intervals the image is closed and handed to qemu-img: its check finds nothing, not
 * even a leak, its compare finds the twin's bytes, its map says what our block status says.
 *
 * MERINO_TEST_SEED makes another run; MERINO_TWIN_STEPS (1000) says how long each is.
 */
#include "block/drivers.h"
#include "io-harness.h"
#include "util/size.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DISK    (6 * MiB)
#define GRANULARITY 4096
#define GRAINS      (MAX_DISK / GRANULARITY)
#define INTERVAL    150 /* steps between two looks by qemu-img */

/* One image of the matrix. */
typedef struct Shape {
    const char *name;
    const char *create; /* qemu-img's -o */
    int64_t cluster;
    bool compresses;
    bool snapshots;
    bool bitmaps;
    bool backing;
} Shape;

typedef struct TwinBitmap {
    char *name;
    bool enabled;
    bool dirty[GRAINS];
} TwinBitmap;

typedef struct TwinSnapshot {
    char *name;
    uint8_t *data;
    int64_t size;
} TwinSnapshot;

typedef struct Twin {
    const Shape *shape;
    GRand *random;
    char *path, *raw_path;
    BlockBackend *user;
    uint8_t *data; /* MAX_DISK bytes; zeroes beyond `size` */
    int64_t size;
    GPtrArray *bitmaps;   /* of TwinBitmap */
    GPtrArray *snapshots; /* of TwinSnapshot */
    int names;
} Twin;

static bool have_qemu(void)
{
    return system("qemu-img --version >/dev/null 2>&1") == 0;
}

static int64_t pick(Twin *twin, int64_t limit)
{
    return limit > 0 ? (int64_t)(g_rand_double(twin->random) * (double)limit) : 0;
}

static BlockNode *image(void)
{
    return node_find("image");
}

/* --- opening and closing --- */

static void open_image(Twin *twin)
{
    BlockNode *node = add_node("{'driver': 'qcow2', 'node-name': 'image', 'discard': 'unmap',"
                               " 'file': {'driver': 'file', 'filename': '%s'}}",
                               twin->path);

    twin->user = open_user(node, PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE);
}

static void close_image(Twin *twin)
{
    backend_free(twin->user);
    twin->user = NULL;
    delete_node("image");
}

/* --- requests --- */

static void twin_mark(Twin *twin, int64_t offset, int64_t bytes)
{
    for (guint i = 0; i < twin->bitmaps->len; i++) {
        TwinBitmap *bitmap = g_ptr_array_index(twin->bitmaps, i);

        for (int64_t at = offset / GRANULARITY;
             bitmap->enabled && at <= (offset + bytes - 1) / GRANULARITY; at++) {
            bitmap->dirty[at] = true;
        }
    }
}

static void pick_range(Twin *twin, int64_t alignment, int64_t *ret_offset, int64_t *ret_bytes)
{
    int64_t max = pick(twin, 4) ? 4 * KiB : MIN(4 * twin->shape->cluster + 64 * KiB, MiB);
    int64_t offset = align_down(pick(twin, twin->size), alignment);
    int64_t bytes = align_up(1 + pick(twin, max), alignment);

    *ret_offset = offset;
    *ret_bytes = MIN(bytes, twin->size - offset);
}

static void fill_random(Twin *twin, uint8_t *buf, int64_t bytes)
{
    uint32_t seed = g_rand_int(twin->random);
    bool simple = seed % 3 == 0; /* compresses well */

    for (int64_t i = 0; i < bytes; i++) {
        seed = simple ? seed : seed * 1664525 + 1013904223;
        buf[i] = (uint8_t)(seed >> 24);
    }
}

static void step_write(Twin *twin, unsigned flags)
{
    int64_t alignment = flags & REQ_WRITE_COMPRESSED ? twin->shape->cluster
                        : pick(twin, 2)              ? 512
                                                     : 1;
    int64_t offset, bytes;

    pick_range(twin, alignment, &offset, &bytes);
    fill_random(twin, twin->data + offset, bytes);
    g_assert_cmpint(do_write(twin->user, offset, bytes, twin->data + offset, flags), ==, 0);
    twin_mark(twin, offset, bytes);
}

static void step_zero(Twin *twin)
{
    int64_t offset, bytes;

    pick_range(twin, pick(twin, 2) ? twin->shape->cluster : 512, &offset, &bytes);
    memset(twin->data + offset, 0, bytes);
    g_assert_cmpint(do_zero(twin->user, offset, bytes, pick(twin, 2) ? REQ_MAY_UNMAP : 0), ==, 0);
    twin_mark(twin, offset, bytes);
}

/* What was discarded reads as before or as zeroes, sector by sector; the twin takes it over. */
static void step_discard(Twin *twin)
{
    g_autofree uint8_t *now = NULL;
    int64_t offset, bytes;

    pick_range(twin, pick(twin, 3) ? twin->shape->cluster : 512, &offset, &bytes);
    now = g_malloc(bytes);
    g_assert_cmpint(do_discard(twin->user, offset, bytes), ==, 0);
    g_assert_cmpint(do_read(twin->user, offset, bytes, now), ==, 0);
    for (int64_t i = 0; i < bytes; i += 512) {
        int64_t part = MIN(512, bytes - i);

        if (memcmp(now + i, twin->data + offset + i, part) != 0) {
            memset(twin->data + offset + i, 0, part);
            g_assert_true(memcmp(now + i, twin->data + offset + i, part) == 0 ||
                          twin->shape->backing);
            memcpy(twin->data + offset + i, now + i, part);
        }
    }
    twin_mark(twin, offset, bytes);
}

static void step_read(Twin *twin)
{
    g_autofree uint8_t *buf = NULL;
    int64_t offset, bytes;

    pick_range(twin, 1, &offset, &bytes);
    buf = g_malloc(MAX(bytes, 1));
    g_assert_cmpint(do_read(twin->user, offset, bytes, buf), ==, 0);
    g_assert_cmpmem(buf, bytes, twin->data + offset, bytes);
}

/* --- the image as a whole --- */

static void step_resize(Twin *twin)
{
    int64_t size = align_up(1 + pick(twin, MAX_DISK), 512);
    g_autoptr(GError) error = NULL;

    if (twin->snapshots->len && (size < twin->size || strstr(twin->shape->create, "compat=0.10"))) {
        return;
    }
    size = MIN(size, MAX_DISK);
    node_resize(image(), size, &error);
    g_assert_no_error(error);
    if (size < twin->size) {
        memset(twin->data + size, 0, twin->size - size);
    }
    for (guint i = 0; i < twin->bitmaps->len; i++) {
        TwinBitmap *bitmap = g_ptr_array_index(twin->bitmaps, i);

        for (int64_t at = (size + GRANULARITY - 1) / GRANULARITY; at < GRAINS; at++) {
            bitmap->dirty[at] = false;
        }
    }
    twin->size = size;
}

typedef struct Hook {
    Twin *twin;
    const SnapshotInfo *info;
    const char *id;
    int (*fn)(BlockNode *node, struct Hook *hook, GError **error);
    GError *error;
    int ret;
} Hook;

static void coroutine_fn run_hook(void *opaque)
{
    Hook *hook = opaque;

    hook->ret = hook->fn(image(), hook, &hook->error);
}

static void call_hook(Hook *hook)
{
    DrainSection *section = drain_begin_node(image());

    coroutine_run(run_hook, hook);
    drain_end(section);
    g_assert_no_error(hook->error);
    g_assert_cmpint(hook->ret, ==, 0);
}

static int coroutine_fn hook_create(BlockNode *node, Hook *hook, GError **error)
{
    return node->driver->co_snapshot_create(node, hook->info, error);
}

static int coroutine_fn hook_goto(BlockNode *node, Hook *hook, GError **error)
{
    return node->driver->co_snapshot_goto(node, hook->id, error);
}

static int coroutine_fn hook_delete(BlockNode *node, Hook *hook, GError **error)
{
    return node->driver->co_snapshot_delete(node, hook->id, error);
}

/* The id that the image gave to the snapshot of this name. Caller frees. */
static char *snapshot_id(const char *name)
{
    g_autoptr(SnapshotInfoList) list = image()->driver->snapshot_list(image());

    for (size_t i = 0; i < list->len; i++) {
        if (g_str_equal(list->items[i]->name, name)) {
            return g_strdup(list->items[i]->id);
        }
    }
    g_assert_not_reached();
}

static void step_snapshot(Twin *twin)
{
    guint which = (guint)pick(twin, twin->snapshots->len);
    TwinSnapshot *snapshot;
    g_autofree char *id = NULL;

    if (twin->snapshots->len < 4 && pick(twin, 2)) {
        SnapshotInfo info = { .id = (char *)"" };

        snapshot = g_new0(TwinSnapshot, 1);
        snapshot->name = info.name = g_strdup_printf("s%d", twin->names++);
        snapshot->size = twin->size;
        snapshot->data = g_memdup2(twin->data, MAX_DISK);
        call_hook(&(Hook){ .twin = twin, .info = &info, .fn = hook_create });
        g_ptr_array_add(twin->snapshots, snapshot);
        return;
    }
    if (twin->snapshots->len == 0) {
        return;
    }
    snapshot = g_ptr_array_index(twin->snapshots, which);
    id = snapshot_id(snapshot->name);
    if (pick(twin, 2)) {
        call_hook(&(Hook){ .twin = twin, .id = id, .fn = hook_delete });
        g_ptr_array_remove_index(twin->snapshots, which);
    } else if (snapshot->size == twin->size && twin->bitmaps->len == 0) {
        call_hook(&(Hook){ .twin = twin, .id = id, .fn = hook_goto });
        memcpy(twin->data, snapshot->data, MAX_DISK);
    }
}

static void snapshot_free(gpointer data)
{
    TwinSnapshot *snapshot = data;

    g_free(snapshot->name);
    g_free(snapshot->data);
    g_free(snapshot);
}

/* --- bitmaps --- */

static void bitmap_free(gpointer data)
{
    TwinBitmap *bitmap = data;

    g_free(bitmap->name);
    g_free(bitmap);
}

static void step_bitmap(Twin *twin)
{
    guint which = (guint)pick(twin, twin->bitmaps->len);
    TwinBitmap *twin_bitmap;
    DirtyBitmap *bitmap;
    g_autoptr(GError) error = NULL;
    DrainSection *section = drain_begin_node(image());

    if (twin->bitmaps->len < 3 && pick(twin, 3) == 0) {
        BitmapAddOptions options = { .granularity = GRANULARITY, .persistent = true };

        twin_bitmap = g_new0(TwinBitmap, 1);
        options.name = twin_bitmap->name = g_strdup_printf("b%d", twin->names++);
        twin_bitmap->enabled = true;
        bitmap_add(image()->bitmaps, &options, NULL, &error);
        g_ptr_array_add(twin->bitmaps, twin_bitmap);
    } else if (twin->bitmaps->len) {
        twin_bitmap = g_ptr_array_index(twin->bitmaps, which);
        bitmap = bitmap_find(image()->bitmaps, twin_bitmap->name);
        g_assert_nonnull(bitmap);
        switch (pick(twin, 6)) {
        case 0:
            bitmap_remove(bitmap, NULL, &error);
            g_ptr_array_remove_index(twin->bitmaps, which);
            break;
        case 1:
            bitmap_clear(bitmap, NULL, &error);
            memset(twin_bitmap->dirty, 0, sizeof(twin_bitmap->dirty));
            break;
        case 2:
        case 3:
            bitmap_disable(bitmap, NULL, &error);
            twin_bitmap->enabled = false;
            break;
        default:
            bitmap_enable(bitmap, NULL, &error);
            twin_bitmap->enabled = true;
        }
    }
    drain_end(section);
    g_assert_no_error(error);
}

static void check_bitmaps(Twin *twin)
{
    for (guint i = 0; i < twin->bitmaps->len; i++) {
        TwinBitmap *twin_bitmap = g_ptr_array_index(twin->bitmaps, i);
        DirtyBitmap *bitmap = bitmap_find(image()->bitmaps, twin_bitmap->name);

        g_assert_nonnull(bitmap);
        g_assert_false(bitmap_is_inconsistent(bitmap));
        g_assert_true(bitmap_load(bitmap, NULL));
        g_assert_cmpint(bitmap_is_enabled(bitmap), ==, twin_bitmap->enabled);
        for (int64_t at = 0; at * GRANULARITY < twin->size; at++) {
            if (bitmap_get(bitmap, at * GRANULARITY) != twin_bitmap->dirty[at]) {
                g_error("bitmap '%s' at grain %" PRId64 ": the twin says %d", twin_bitmap->name, at,
                        twin_bitmap->dirty[at]);
            }
        }
    }
}

/* --- qemu-img's word --- */

static void check_content(Twin *twin)
{
    g_autofree uint8_t *buf = g_malloc(MAX(twin->size, 1));

    g_assert_cmpint(backend_size(twin->user), ==, twin->size);
    g_assert_cmpint(do_read(twin->user, 0, twin->size, buf), ==, 0);
    g_assert_cmpmem(buf, twin->size, twin->data, twin->size);
}

/* Each of qemu-img's ranges is one kind of data to our block status as well. It may know that data
 * are zeroes, from a hole in the file, where we do not look. */
static void check_map(Twin *twin)
{
    g_autofree char *map_path = temp_path("map.json");
    json_t *map, *range;
    json_error_t error;
    size_t i;

    run_shell("qemu-img map -U --output=json -f qcow2 '%s' >'%s'", twin->path, map_path);
    map = json_load_file(map_path, 0, &error);
    g_assert_nonnull(map);
    json_array_foreach(map, i, range)
    {
        int64_t at = json_integer_value(json_object_get(range, "start"));
        int64_t end = at + json_integer_value(json_object_get(range, "length"));
        bool zero = json_is_true(json_object_get(range, "zero"));
        bool data = json_is_true(json_object_get(range, "data"));

        while (at < end) {
            BlockStatus status;

            g_assert_cmpint(do_status(twin->user, at, end - at, &status), ==, 0);
            if (!!(status.flags & BLOCK_STATUS_DATA) != data ||
                (!!(status.flags & BLOCK_STATUS_ZERO) != zero && !(zero && data))) {
                g_error("at %" PRId64 " qemu-img says zero=%d data=%d, our flags are %x", at, zero,
                        data, status.flags);
            }
            at += status.bytes;
        }
    }
    json_decref(map);
}

static void look_from_outside(Twin *twin)
{
    close_image(twin);
    run_shell("qemu-img check -f qcow2 '%s' >'%s.check' 2>&1 || { cat '%s.check' >&2; exit 1; }",
              twin->path, twin->path, twin->path);
    g_assert_true(g_file_set_contents(twin->raw_path, (char *)twin->data, twin->size, NULL));
    run_shell("qemu-img compare -q -f qcow2 -F raw '%s' '%s'", twin->path, twin->raw_path);
    open_image(twin);
    check_content(twin);
    check_bitmaps(twin);
    check_map(twin);
}

/* --- a run --- */

static void step(Twin *twin)
{
    switch (pick(twin, 100)) {
    case 0 ... 39:
        step_write(twin, pick(twin, 10) ? 0 : REQ_FUA);
        break;
    case 40 ... 49:
        step_zero(twin);
        break;
    case 50 ... 57:
        step_discard(twin);
        break;
    case 58 ... 79:
        step_read(twin);
        break;
    case 80 ... 84:
        if (twin->shape->compresses) {
            step_write(twin, REQ_WRITE_COMPRESSED);
        }
        break;
    case 85 ... 88:
        if (twin->shape->snapshots) {
            step_snapshot(twin);
        }
        break;
    case 89 ... 94:
        if (twin->shape->bitmaps) {
            step_bitmap(twin);
        }
        break;
    case 95:
        step_resize(twin);
        break;
    case 96:
        close_image(twin);
        open_image(twin);
        break;
    default:
        g_assert_cmpint(do_flush(twin->user), ==, 0);
    }
}

static void twin_init(Twin *twin, const Shape *shape, uint32_t seed)
{
    *twin = (Twin){ .shape = shape, .random = g_rand_new_with_seed(seed), .size = 4 * MiB };
    twin->path = temp_path("twin.qcow2");
    twin->raw_path = temp_path("twin.raw");
    twin->data = g_malloc0(MAX_DISK);
    twin->bitmaps = g_ptr_array_new_with_free_func(bitmap_free);
    twin->snapshots = g_ptr_array_new_with_free_func(snapshot_free);
    if (shape->backing) {
        g_autofree char *base = temp_path("base.raw");

        fill_random(twin, twin->data, 3 * MiB);
        g_assert_true(g_file_set_contents(base, (char *)twin->data, 3 * MiB, NULL));
        run_shell("qemu-img create -q -f qcow2 -o %s -b '%s' -F raw '%s' 4M", shape->create, base,
                  twin->path);
        return;
    }
    if (strstr(shape->create, "data_file_raw")) {
        g_autofree char *data = temp_path("twin.data");

        run_shell("rm -f '%s'; qemu-img create -q -f qcow2 -o %s,data_file='%s' '%s' 4M", data,
                  shape->create, data, twin->path);
        return;
    }
    run_shell("qemu-img create -q -f qcow2 -o %s '%s' 4M", shape->create, twin->path);
}

static void twin_done(Twin *twin)
{
    g_rand_free(twin->random);
    g_ptr_array_unref(twin->bitmaps);
    g_ptr_array_unref(twin->snapshots);
    g_free(twin->data);
    g_free(twin->path);
    g_free(twin->raw_path);
}

static void agrees_with_twin(gconstpointer opaque)
{
    const char *env = g_getenv("MERINO_TWIN_STEPS");
    int64_t steps = env ? g_ascii_strtoll(env, NULL, 10) : 1000;
    Twin twin;

    if (!have_qemu()) {
        g_test_skip("qemu-img is not installed");
        return;
    }
    twin_init(&twin, opaque, test_seed());
    open_image(&twin);
    for (int64_t i = 1; i <= steps; i++) {
        step(&twin);
        if (i % INTERVAL == 0) {
            look_from_outside(&twin);
        }
    }
    close_image(&twin);
    twin_done(&twin);
}

static const Shape shapes[] = {
    { "default", "compat=1.1", 65536, true, true, true, false },
    { "v2", "compat=0.10,cluster_size=4k", 4096, true, true, false, false },
    { "512", "cluster_size=512", 512, true, true, true, false },
    { "2M", "cluster_size=2M", 2 * MiB, true, true, true, false },
    { "refcount-1", "refcount_bits=1,cluster_size=4k", 4096, false, false, true, false },
    { "refcount-2", "refcount_bits=2,cluster_size=8k", 8192, false, false, true, false },
    { "refcount-4", "refcount_bits=4,cluster_size=1k", 1024, false, true, true, false },
    { "refcount-8", "refcount_bits=8,cluster_size=512", 512, false, true, true, false },
    { "refcount-32", "refcount_bits=32,cluster_size=16k", 16384, true, true, true, false },
    { "refcount-64", "refcount_bits=64,cluster_size=1k", 1024, true, true, true, false },
    { "zstd", "compression_type=zstd,cluster_size=32k", 32768, true, true, true, false },
    { "extended-l2", "extended_l2=on,cluster_size=64k", 65536, true, true, true, false },
    { "extended-l2-16k", "extended_l2=on,cluster_size=16k", 16384, true, true, true, false },
    { "lazy-refcounts", "lazy_refcounts=on,cluster_size=4k", 4096, true, true, true, false },
    { "data-file", "data_file_raw=on,cluster_size=16k", 16384, false, false, true, false },
    { "backing", "cluster_size=4k", 4096, true, true, true, true },
    { "backing-extended-l2", "extended_l2=on", 65536, true, true, true, true },
};

int main(int argc, char *argv[])
{
    g_setenv("MERINO_TEST_SEED", "20261122", FALSE);
    io_harness_init(&argc, &argv, false);
    qcow2_driver_register();
    for (size_t i = 0; i < G_N_ELEMENTS(shapes); i++) {
        g_autofree char *path = g_strconcat("/qcow2/twin/", shapes[i].name, NULL);

        g_test_add_data_func(path, &shapes[i], agrees_with_twin);
    }
    return io_harness_run();
}
