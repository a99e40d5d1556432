/* SPDX-License-Identifier: MIT */
/* Lists of extents, and what they say of dirty bitmaps, beside a naive twin. */
#include "block/export/nbd/extents.h"
#include "block/export/nbd/protocol.h"

#include <stdlib.h>
#include <string.h>

#define GRANULARITY 4096
#define BLOCKS      3000

static void test_neighbours_are_joined(void)
{
    NbdExtents extents;

    nbd_extents_init(&extents, 10);
    g_assert_true(nbd_extents_add(&extents, 5, 0));
    g_assert_true(nbd_extents_add(&extents, 6, 0));
    g_assert_true(nbd_extents_add(&extents, 7, 3));
    g_assert_true(nbd_extents_add(&extents, 8, 0));
    g_assert_cmpuint(extents.n, ==, 3);
    g_assert_cmpuint(extents.items[0].length, ==, 11);
    g_assert_cmpuint(extents.items[1].flags, ==, 3);
    nbd_extents_done(&extents);
}

/* The last extent still grows when the list is as long as it may be; then it is full for good. */
static void test_full(void)
{
    NbdExtents extents;

    nbd_extents_init(&extents, 1);
    g_assert_true(nbd_extents_add(&extents, 5, 1));
    g_assert_true(nbd_extents_add(&extents, 5, 1));
    g_assert_false(nbd_extents_add(&extents, 5, 0));
    g_assert_true(extents.full);
    g_assert_false(nbd_extents_add(&extents, 5, 1));
    g_assert_cmpuint(extents.items[0].length, ==, 10);
    nbd_extents_done(&extents);
}

static void test_encoding(void)
{
    static const uint8_t compact[] = { 0, 0, 0, 16, 0, 0, 0, 3, 0, 0, 1, 0, 0, 0, 0, 0 };
    static const uint8_t extended[] = { 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 3,
                                        0, 0, 0, 0, 0, 0, 1, 0,  0, 0, 0, 0, 0, 0, 0, 0 };
    NbdExtents extents;
    uint8_t bytes[32];

    nbd_extents_init(&extents, 2);
    nbd_extents_add(&extents, 16, 3);
    nbd_extents_add(&extents, 256, 0);
    nbd_extents_encode(&extents, false, bytes);
    g_assert_cmpmem(bytes, nbd_extents_bytes(&extents, false), compact, sizeof(compact));
    nbd_extents_encode(&extents, true, bytes);
    g_assert_cmpmem(bytes, nbd_extents_bytes(&extents, true), extended, sizeof(extended));
    nbd_extents_done(&extents);
}

/* --- the twin --- */

static uint32_t seed;

typedef struct Twin {
    BitmapList *list;
    DirtyBitmap *bitmap;
    bool dirty[BLOCKS];
    int64_t size; /* bytes; the last block may be short */
} Twin;

static void twin_init(Twin *twin, GRand *random)
{
    BitmapAddOptions options = { .name = "b", .granularity = GRANULARITY };
    int runs = g_rand_int_range(random, 0, 200);

    *twin = (Twin){ .size = BLOCKS * GRANULARITY - g_rand_int_range(random, 0, GRANULARITY) };
    twin->list = bitmap_list_new("d", twin->size);
    twin->bitmap = bitmap_add(twin->list, &options, NULL, NULL);
    for (int i = 0; i < runs; i++) {
        int first = g_rand_int_range(random, 0, BLOCKS);
        int n = g_rand_int_range(random, 1, MIN(BLOCKS - first, 60) + 1);
        int64_t offset = (int64_t)first * GRANULARITY;

        bitmap_list_mark(twin->list, offset, MIN((int64_t)n * GRANULARITY, twin->size - offset));
        memset(&twin->dirty[first], true, (size_t)n);
    }
}

/* Whether the extents say of [offset, offset + bytes) what the twin knows, and no more than it;
 * all of it unless the list is full. */
static bool twin_agrees(const Twin *twin, const NbdExtents *extents, int64_t offset, int64_t bytes)
{
    int64_t at = offset;

    for (unsigned i = 0; i < extents->n; i++) {
        int64_t end = at + (int64_t)extents->items[i].length;

        if (end > offset + bytes || (i && extents->items[i].flags == extents->items[i - 1].flags)) {
            return false;
        }
        for (; at < end; at = MIN(end, (at / GRANULARITY + 1) * GRANULARITY)) {
            if (twin->dirty[at / GRANULARITY] != (extents->items[i].flags == NBD_EXTENT_DIRTY)) {
                return false;
            }
        }
    }
    return extents->full ? at > offset : at == offset + bytes;
}

static void test_bitmaps_beside_a_twin(void)
{
    GRand *random = g_rand_new_with_seed(seed);

    for (int round = 0; round < 300; round++) {
        Twin twin;

        twin_init(&twin, random);
        for (int i = 0; i < 20; i++) {
            int64_t offset = g_rand_int_range(random, 0, (gint32)twin.size);
            int64_t bytes = g_rand_int_range(random, 1, (gint32)(twin.size - offset) + 1);
            unsigned max = i % 4 ? (unsigned)g_rand_int_range(random, 1, 50) : 100000;
            NbdExtents extents;

            nbd_extents_init(&extents, max);
            nbd_extents_add_bitmap(&extents, twin.bitmap, offset, bytes);
            g_assert_cmpuint(extents.n, <=, max);
            g_assert_true(twin_agrees(&twin, &extents, offset, bytes));
            nbd_extents_done(&extents);
        }
        bitmap_remove(twin.bitmap, NULL, NULL);
        bitmap_list_free(twin.list);
    }
    g_rand_free(random);
}

/* The twin notices one bit too many, and one too few. */
static void test_twin_finds_a_planted_fault(void)
{
    GRand *random = g_rand_new_with_seed(seed);
    int found = 0;

    for (int round = 0; round < 40; round++) {
        int fault = g_rand_int_range(random, 0, BLOCKS);
        NbdExtents extents;
        Twin twin;

        twin_init(&twin, random);
        twin.dirty[fault] = !twin.dirty[fault];
        nbd_extents_init(&extents, 100000);
        nbd_extents_add_bitmap(&extents, twin.bitmap, 0, twin.size);
        found += !twin_agrees(&twin, &extents, 0, twin.size);
        nbd_extents_done(&extents);
        bitmap_remove(twin.bitmap, NULL, NULL);
        bitmap_list_free(twin.list);
    }
    g_assert_cmpint(found, ==, 40);
    g_rand_free(random);
}

/* The work is in proportion to the extents, whatever the size of the disk. */
static void test_huge_and_empty(void)
{
    const int64_t size = INT64_C(1) << 50;
    BitmapAddOptions options = { .name = "b", .granularity = 1 << 16 };
    BitmapList *list = bitmap_list_new("d", size);
    DirtyBitmap *bitmap = bitmap_add(list, &options, NULL, NULL);
    NbdExtents extents;

    bitmap_list_mark(list, size - 1, 1);
    nbd_extents_init(&extents, 10);
    nbd_extents_add_bitmap(&extents, bitmap, 0, size);
    g_assert_cmpuint(extents.n, ==, 2);
    g_assert_cmpuint(extents.items[0].length, ==, size - 65536);
    g_assert_cmpuint(extents.items[1].length, ==, 65536);
    nbd_extents_done(&extents);
    bitmap_remove(bitmap, NULL, NULL);
    bitmap_list_free(list);
}

/* The largest disk there may be, to its last byte. */
static void test_largest_disk(void)
{
    const int64_t size = INT64_MAX - 511;
    static const uint32_t granularities[] = { 1 << 16, 1 << 20, 1u << 31 };

    for (size_t i = 0; i < G_N_ELEMENTS(granularities); i++) {
        BitmapAddOptions options = { .name = "b", .granularity = granularities[i] };
        int64_t last = (size - 1) & ~((int64_t)granularities[i] - 1);
        BitmapList *list = bitmap_list_new("d", size);
        DirtyBitmap *bitmap = bitmap_add(list, &options, NULL, NULL);
        NbdExtents extents;

        g_assert_nonnull(bitmap);
        bitmap_list_mark(list, size - 1, 1);
        nbd_extents_init(&extents, 10);
        nbd_extents_add_bitmap(&extents, bitmap, 0, size);
        g_assert_cmpuint(extents.n, ==, 2);
        g_assert_cmpuint(extents.items[0].length, ==, last);
        g_assert_cmpuint(extents.items[1].length, ==, size - last);
        nbd_extents_done(&extents);
        bitmap_remove(bitmap, NULL, NULL);
        bitmap_list_free(list);
    }
}

static void assert_clean(DirtyBitmap *bitmap, int64_t offset, int64_t bytes)
{
    NbdExtents extents;

    nbd_extents_init(&extents, 10);
    nbd_extents_add_bitmap(&extents, bitmap, offset, bytes);
    g_assert_cmpuint(extents.n, ==, 1);
    g_assert_cmpuint(extents.items[0].length, ==, bytes);
    g_assert_cmpuint(extents.items[0].flags, ==, 0);
    nbd_extents_done(&extents);
}

/* An export may show the bitmap of a smaller disk. */
static void test_beyond_the_bitmap(void)
{
    BitmapAddOptions options = { .name = "b", .granularity = 4096 };
    BitmapList *list = bitmap_list_new("d", 6000);
    DirtyBitmap *bitmap = bitmap_add(list, &options, NULL, NULL);
    NbdExtents extents;

    bitmap_list_mark(list, 5000, 1000);
    nbd_extents_init(&extents, 10);
    nbd_extents_add_bitmap(&extents, bitmap, 0, 100000);
    g_assert_cmpuint(extents.n, ==, 3);
    g_assert_cmpuint(extents.items[0].length, ==, 4096);
    g_assert_cmpuint(extents.items[1].length, ==, 6000 - 4096);
    g_assert_cmpuint(extents.items[2].length, ==, 100000 - 6000);
    nbd_extents_done(&extents);
    assert_clean(bitmap, 50000, 10);
    assert_clean(bitmap, 6000, 1);
    assert_clean(bitmap, 7000,
                 100000); /* a dirty bit stands for this, too, but for nothing there */
    bitmap_remove(bitmap, NULL, NULL);
    bitmap_list_free(list);
}

int main(int argc, char **argv)
{
    const char *given = getenv("MERINO_TEST_SEED");

    g_test_init(&argc, &argv, NULL);
    seed = given ? (uint32_t)strtoul(given, NULL, 0) : g_random_int();
    g_test_message("MERINO_TEST_SEED=%u", seed);
    g_test_add_func("/nbd-extents/neighbours-are-joined", test_neighbours_are_joined);
    g_test_add_func("/nbd-extents/full", test_full);
    g_test_add_func("/nbd-extents/encoding", test_encoding);
    g_test_add_func("/nbd-extents/bitmaps-beside-a-twin", test_bitmaps_beside_a_twin);
    g_test_add_func("/nbd-extents/planted-fault", test_twin_finds_a_planted_fault);
    g_test_add_func("/nbd-extents/huge-and-empty", test_huge_and_empty);
    g_test_add_func("/nbd-extents/largest-disk", test_largest_disk);
    g_test_add_func("/nbd-extents/beyond-the-bitmap", test_beyond_the_bitmap);
    return g_test_run();
}
