/* SPDX-License-Identifier: MIT */
/*
 * The bitmaps of several disks against a naive twin: an array of bytes a bitmap, marked one by one.
 *
 * Random writes, verbs, resizes, and transactions that are undone or committed; after each
 * step the bitmaps say what the twin says. One test plants a fault and expects it to be found.
 */
#include "block/dirty-bitmap.h"

#include <stdio.h>
#include <string.h>

enum {
    DISKS = 3,
    MAX_BITMAPS = 6,
    STEPS = 20000
};

#define MAX_SIZE (INT64_C(24) << 20)

typedef struct Twin {
    char name[16];
    int64_t granularity;
    bool enabled, removed, busy;
    GByteArray *dirty; /* a byte for each bit */
} Twin;

typedef struct TwinDisk {
    int64_t size;
    Twin *twins[MAX_BITMAPS]; /* newest first; NULL behind the last */
} TwinDisk;

typedef struct World {
    GRand *rand;
    BitmapList *lists[DISKS];
    TwinDisk disks[DISKS];
    unsigned names;
} World;

/* --- the twin --- */

static Twin *twin_copy(const Twin *twin)
{
    Twin *copy = g_memdup2(twin, sizeof(*twin));

    copy->dirty = g_byte_array_new();
    g_byte_array_append(copy->dirty, twin->dirty->data, twin->dirty->len);
    return copy;
}

static void twin_free(Twin *twin)
{
    if (twin) {
        g_byte_array_free(twin->dirty, TRUE);
        g_free(twin);
    }
}

static void twin_resize(Twin *twin, int64_t size)
{
    guint old = twin->dirty->len;
    guint bits = (size + twin->granularity - 1) / twin->granularity;

    g_byte_array_set_size(twin->dirty, bits);
    if (bits > old) {
        memset(twin->dirty->data + old, 0, bits - old);
    }
}

static void twin_set(Twin *twin, int64_t offset, int64_t bytes)
{
    for (int64_t bit = offset / twin->granularity; bit * twin->granularity < offset + bytes;
         bit++) {
        twin->dirty->data[bit] = 1;
    }
}

static void twin_merge(Twin *target, const Twin *source, int64_t size)
{
    for (guint bit = 0; bit < source->dirty->len; bit++) {
        int64_t start = bit * source->granularity;

        if (source->dirty->data[bit]) {
            twin_set(target, start, MIN(source->granularity, size - start));
        }
    }
}

static void disk_push(TwinDisk *disk, Twin *twin)
{
    memmove(disk->twins + 1, disk->twins, (MAX_BITMAPS - 1) * sizeof(Twin *));
    disk->twins[0] = twin;
}

static void disk_drop(TwinDisk *disk, int i)
{
    twin_free(disk->twins[i]);
    memmove(disk->twins + i, disk->twins + i + 1, (MAX_BITMAPS - 1 - i) * sizeof(Twin *));
    disk->twins[MAX_BITMAPS - 1] = NULL;
}

static void disks_copy(TwinDisk *to, const TwinDisk *from)
{
    memcpy(to, from, DISKS * sizeof(TwinDisk));
    for (int d = 0; d < DISKS; d++) {
        for (int i = 0; i < MAX_BITMAPS && to[d].twins[i]; i++) {
            to[d].twins[i] = twin_copy(from[d].twins[i]);
        }
    }
}

static void disks_free(TwinDisk *disks)
{
    for (int d = 0; d < DISKS; d++) {
        for (int i = 0; i < MAX_BITMAPS; i++) {
            twin_free(disks[d].twins[i]);
        }
    }
}

static void disks_settle_removed(TwinDisk *disks)
{
    for (int d = 0; d < DISKS; d++) {
        for (int i = MAX_BITMAPS - 1; i >= 0; i--) {
            if (disks[d].twins[i] && disks[d].twins[i]->removed) {
                disk_drop(&disks[d], i);
            }
        }
    }
}

/* --- comparison --- */

static void compare(DirtyBitmap *bitmap, const Twin *twin, int64_t size)
{
    int64_t pos = 0, area, bytes, count = 0;

    g_assert_cmpstr(bitmap_name(bitmap), ==, twin->name);
    g_assert_cmpint(bitmap_granularity(bitmap), ==, twin->granularity);
    g_assert_cmpint(bitmap_is_enabled(bitmap), ==, twin->enabled);
    g_assert_cmpint(bitmap_is_busy(bitmap), ==, twin->busy);
    while (bitmap_next_dirty_area(bitmap, pos, size, INT64_MAX, &area, &bytes)) {
        g_assert_cmpint(area % twin->granularity, ==, 0);
        for (; pos < area; pos += twin->granularity) {
            g_assert_cmpint(twin->dirty->data[pos / twin->granularity], ==, 0);
        }
        for (; pos < area + bytes; pos += twin->granularity) {
            g_assert_cmpint(twin->dirty->data[pos / twin->granularity], ==, 1);
            count += twin->granularity;
        }
        if (pos >= size) {
            break;
        }
    }
    for (; pos < size; pos += twin->granularity) {
        g_assert_cmpint(twin->dirty->data[pos / twin->granularity], ==, 0);
    }
    g_assert_cmpint(bitmap_dirty_bytes(bitmap), ==, count);
}

static void compare_all(World *world)
{
    for (int d = 0; d < DISKS; d++) {
        DirtyBitmap *bitmap = NULL;
        TwinDisk *disk = &world->disks[d];

        for (int i = 0; i < MAX_BITMAPS && disk->twins[i]; i++) {
            bitmap = bitmap_list_next(world->lists[d], bitmap);
            g_assert_nonnull(bitmap);
            compare(bitmap, disk->twins[i], disk->size);
        }
        g_assert_null(bitmap ? bitmap_list_next(world->lists[d], bitmap)
                             : bitmap_list_next(world->lists[d], NULL));
    }
}

/* --- steps --- */

static int random_below(World *world, int n)
{
    return g_rand_int_range(world->rand, 0, n);
}

static int64_t random_size(World *world)
{
    static const int64_t sizes[] = { 0, 1, 512, 65536, 1 << 20, 16 << 20, MAX_SIZE };
    int64_t size = sizes[random_below(world, G_N_ELEMENTS(sizes))];

    size += random_below(world, 3) * 511 - 511;
    return CLAMP(size, 0, MAX_SIZE);
}

/* A bitmap of a disk, or -1 when there is none. */
static int random_bitmap(World *world, int d)
{
    int n = 0;

    while (n < MAX_BITMAPS && world->disks[d].twins[n]) {
        n++;
    }
    return n ? random_below(world, n) : -1;
}

static DirtyBitmap *real(World *world, int d, int i)
{
    DirtyBitmap *bitmap = bitmap_list_next(world->lists[d], NULL);

    while (i--) {
        bitmap = bitmap_list_next(world->lists[d], bitmap);
    }
    return bitmap;
}

static void step_write(World *world)
{
    int d = random_below(world, DISKS);
    TwinDisk *disk = &world->disks[d];
    int64_t offset, bytes;

    if (!disk->size) {
        return;
    }
    offset = random_below(world, disk->size);
    bytes = random_below(world, 8) ? 1 + random_below(world, 100000) : disk->size;
    bytes = MIN(bytes, disk->size - offset);
    bitmap_list_mark(world->lists[d], offset, bytes);
    for (int i = 0; i < MAX_BITMAPS && disk->twins[i]; i++) {
        if (disk->twins[i]->enabled) {
            twin_set(disk->twins[i], offset, bytes);
        }
    }
}

static void step_add(World *world, UndoStack *undo)
{
    int d = random_below(world, DISKS);
    TwinDisk *disk = &world->disks[d];
    Twin *twin;

    if (disk->twins[MAX_BITMAPS - 1]) {
        return;
    }
    twin = g_new0(Twin, 1);
    g_snprintf(twin->name, sizeof(twin->name), "b%u", world->names++);
    twin->granularity = INT64_C(512) << random_below(world, 12);
    twin->enabled = random_below(world, 2);
    twin->dirty = g_byte_array_new();
    twin_resize(twin, disk->size);
    disk_push(disk, twin);
    g_assert_nonnull(bitmap_add(world->lists[d],
                                &(BitmapAddOptions){ .name = twin->name,
                                                     .granularity = twin->granularity,
                                                     .disabled = !twin->enabled },
                                undo, NULL));
}

static void step_remove(World *world, UndoStack *undo)
{
    int d = random_below(world, DISKS), i = random_bitmap(world, d);
    TwinDisk *disk = &world->disks[d];

    if (i < 0 || random_below(world, 2)) {
        return;
    }
    g_assert_cmpint(bitmap_remove(real(world, d, i), undo, NULL), ==, !disk->twins[i]->busy);
    if (disk->twins[i]->busy) {
        return;
    }
    disk->twins[i]->removed = disk->twins[i]->busy = true;
    if (!undo) {
        disk_drop(disk, i);
    }
}

static void step_clear(World *world, UndoStack *undo)
{
    int d = random_below(world, DISKS), i = random_bitmap(world, d);
    Twin *twin = i < 0 ? NULL : world->disks[d].twins[i];

    if (twin) {
        g_assert_cmpint(bitmap_clear(real(world, d, i), undo, NULL), ==, !twin->busy);
        if (!twin->busy && twin->dirty->len) {
            memset(twin->dirty->data, 0, twin->dirty->len);
        }
    }
}

static void step_switch(World *world, UndoStack *undo)
{
    int d = random_below(world, DISKS), i = random_bitmap(world, d);
    bool on = random_below(world, 2);
    Twin *twin = i < 0 ? NULL : world->disks[d].twins[i];

    if (twin) {
        bool ok = (on ? bitmap_enable : bitmap_disable)(real(world, d, i), undo, NULL);

        g_assert_cmpint(ok, ==, !twin->busy);
        if (ok) {
            twin->enabled = on;
        }
    }
}

static void step_merge(World *world, UndoStack *undo)
{
    int d = random_below(world, DISKS), i = random_bitmap(world, d);
    DirtyBitmap *sources[3];
    Twin *twins[3];
    bool ok = true;
    size_t n = 0;

    for (int k = random_below(world, 4); k > 0 && i >= 0; k--) {
        int from = random_below(world, DISKS), j = random_bitmap(world, from);

        if (j >= 0) {
            sources[n] = real(world, from, j);
            twins[n++] = world->disks[from].twins[j];
            ok = ok && world->disks[from].size == world->disks[d].size && !twins[n - 1]->busy;
        }
    }
    if (i >= 0) {
        Twin *target = world->disks[d].twins[i];

        ok = ok && !target->busy;
        g_assert_cmpint(bitmap_merge(real(world, d, i), sources, n, undo, NULL), ==, ok);
        while (ok && n--) {
            twin_merge(target, twins[n], world->disks[d].size);
        }
    }
}

static void step_resize(World *world)
{
    int d = random_below(world, DISKS);
    int64_t size = random_below(world, 2) ? world->disks[(d + 1) % DISKS].size : random_size(world);
    bool ok = true;

    for (int i = 0; i < MAX_BITMAPS && world->disks[d].twins[i]; i++) {
        ok = ok && !world->disks[d].twins[i]->busy;
    }
    g_assert_cmpint(bitmap_list_check_resize(world->lists[d], size, NULL), ==, ok);
    if (ok) {
        bitmap_list_resize(world->lists[d], size);
        world->disks[d].size = size;
        for (int i = 0; i < MAX_BITMAPS && world->disks[d].twins[i]; i++) {
            twin_resize(world->disks[d].twins[i], size);
        }
    }
}

static void step_hold(World *world)
{
    int d = random_below(world, DISKS), i = random_bitmap(world, d);
    Twin *twin = i < 0 ? NULL : world->disks[d].twins[i];

    if (twin && twin->busy) {
        bitmap_release(real(world, d, i));
        twin->busy = false;
    } else if (twin && !random_below(world, 3)) {
        bitmap_hold(real(world, d, i));
        twin->busy = true;
    }
}

static void step_verb(World *world, UndoStack *undo)
{
    switch (random_below(world, 7)) {
    case 0:
        step_add(world, undo);
        break;
    case 1:
        step_remove(world, undo);
        break;
    case 2:
        step_clear(world, undo);
        break;
    case 3:
    case 4:
        step_switch(world, undo);
        break;
    default:
        step_merge(world, undo);
        break;
    }
}

/* Several verbs as one, undone or committed. */
static void step_transaction(World *world)
{
    UndoStack *undo = undo_stack_new();
    TwinDisk before[DISKS];

    disks_copy(before, world->disks);
    for (int n = random_below(world, 8); n > 0; n--) {
        step_verb(world, undo);
    }
    if (undo_finish(undo, random_below(world, 2))) {
        disks_free(before);
        disks_settle_removed(world->disks);
    } else {
        disks_free(world->disks);
        memcpy(world->disks, before, sizeof(before));
    }
}

static void step(World *world)
{
    switch (random_below(world, 10)) {
    case 0:
        step_verb(world, NULL);
        break;
    case 1:
        step_transaction(world);
        break;
    case 2:
        step_hold(world);
        break;
    case 3:
        if (!random_below(world, 4)) {
            step_resize(world);
        }
        break;
    default:
        step_write(world);
        break;
    }
}

/* --- the tests --- */

static guint32 seed_of_run(void)
{
    const char *given = g_getenv("MERINO_TEST_SEED");
    guint32 seed = given ? g_ascii_strtoull(given, NULL, 0) : g_random_int();

    g_test_message("MERINO_TEST_SEED=%u", seed);
    return seed;
}

static void world_init(World *world, guint32 seed)
{
    memset(world, 0, sizeof(*world));
    world->rand = g_rand_new_with_seed(seed);
    for (int d = 0; d < DISKS; d++) {
        world->disks[d].size = random_size(world);
        world->lists[d] = bitmap_list_new("disk", world->disks[d].size);
    }
}

static void world_done(World *world)
{
    for (int d = 0; d < DISKS; d++) {
        bitmap_list_free(world->lists[d]);
    }
    disks_free(world->disks);
    g_rand_free(world->rand);
}

static void as_the_twin_says(void)
{
    World world;

    world_init(&world, seed_of_run());
    for (int n = 0; n < STEPS; n++) {
        step(&world);
        if (n % 16 == 0) {
            compare_all(&world);
        }
    }
    compare_all(&world);
    world_done(&world);
}

/* One bit less than there should be, as if a fold had lost a write. */
static void with_a_fault(void)
{
    DirtyBitmap *bitmap;
    World world;

    world_init(&world, 1);
    do {
        step(&world);
        bitmap = bitmap_list_next(world.lists[0], NULL);
    } while (!bitmap || !bitmap_dirty_bytes(bitmap));
    compare_all(&world);
    bitmap_reset_range(bitmap, bitmap_next_dirty(bitmap, 0, MAX_SIZE), bitmap_granularity(bitmap));
    fputs("planted\n", stderr);
    compare_all(&world);
}

static void a_fault_is_found(void)
{
    if (g_test_subprocess()) {
        with_a_fault();
        return;
    }
    g_test_trap_subprocess(NULL, 0, 0);
    g_test_trap_assert_failed();
    g_test_trap_assert_stderr("planted*compare: assertion failed*");
}

/* --- memory --- */

#define BIG_SIZE       (INT64_C(64) << 30)
#define BIG_CLUSTER    65536
#define SMALL_BYTES    16384 /* of a bitmap that is empty or full, whatever it was before */
#define BITMAPS_IN_BIG 3

static void assert_small(BitmapList *list)
{
    bitmap_list_tidy(list);
    g_assert_cmpuint(bitmap_list_memory(list), <=, BITMAPS_IN_BIG * SMALL_BYTES);
}

static void mark_each(BitmapList *list, int64_t step)
{
    for (int64_t offset = 0; offset < BIG_SIZE; offset += step) {
        bitmap_list_mark(list, offset, 512);
    }
}

static void empty_and_full_bitmaps_are_small(void)
{
    BitmapAddOptions options = { .granularity = BIG_CLUSTER };
    BitmapList *list = bitmap_list_new("big", BIG_SIZE);
    DirtyBitmap *bitmaps[BITMAPS_IN_BIG];

    for (int i = 0; i < BITMAPS_IN_BIG; i++) {
        options.name = (const char *const[]){ "a", "b", "c" }[i];
        bitmaps[i] = bitmap_add(list, &options, NULL, NULL);
    }
    assert_small(list);
    mark_each(list, 2 * BIG_CLUSTER);
    g_assert_cmpint(bitmap_dirty_bytes(bitmaps[0]), ==, BIG_SIZE / 2);
    g_assert_cmpuint(bitmap_list_memory(list), >, 2 * BITMAPS_IN_BIG * SMALL_BYTES);
    for (int i = 0; i < BITMAPS_IN_BIG; i++) {
        g_assert_true(bitmap_clear(bitmaps[i], NULL, NULL));
    }
    assert_small(list);
    mark_each(list, BIG_CLUSTER);
    g_assert_cmpint(bitmap_dirty_bytes(bitmaps[0]), ==, BIG_SIZE);
    assert_small(list);
    g_assert_cmpint(bitmap_dirty_bytes(bitmaps[2]), ==, BIG_SIZE);
    bitmap_list_free(list);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/bitmap-list/as-the-twin-says", as_the_twin_says);
    g_test_add_func("/bitmap-list/a-fault-is-found", a_fault_is_found);
    g_test_add_func("/bitmap-list/empty-and-full-are-small", empty_and_full_bitmaps_are_small);
    return g_test_run();
}
