/* SPDX-License-Identifier: MIT */
/*
 * HBitmap: limits, edges, sharing, and memory. Random behaviour is tried in
 * test-hbitmap-twin.c, threads in test-hbitmap-threads.c.
 */
#include "util/hbitmap.h"

#include <string.h>

#define PAGE_BITS UINT64_C(32768)
#define DIR_BITS  (UINT64_C(512) * PAGE_BITS)

/* One bit for 64 KiB of 1 TiB. */
#define TIB_BITS (UINT64_C(1) << 24)

#define KIB 1024

/* ---- Sizes ---- */

static void test_limit_of_size(void)
{
    GError *error = NULL;

    g_assert_null(hbitmap_new(HBITMAP_MAX_BITS + 1, &error));
    g_assert_nonnull(error);
    g_assert_cmpstr(error->message, ==,
                    "A bitmap of 281474976710657 bits is too large; the limit is 281474976710656");
    g_clear_error(&error);

    g_autoptr(HBitmap) bm = hbitmap_new(HBITMAP_MAX_BITS, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(hbitmap_size(bm), ==, HBITMAP_MAX_BITS);
    g_assert_true(hbitmap_is_empty(bm));
    hbitmap_set(bm, HBITMAP_MAX_BITS - 1, 1);
    hbitmap_set(bm, HBITMAP_MAX_BITS / 3, 1);
    g_assert_cmpuint(hbitmap_next_dirty(bm, 0, HBITMAP_MAX_BITS), ==, HBITMAP_MAX_BITS / 3);
    g_assert_cmpuint(hbitmap_next_dirty(bm, HBITMAP_MAX_BITS / 3 + 1, HBITMAP_MAX_BITS), ==,
                     HBITMAP_MAX_BITS - 1);
    g_assert_cmpuint(hbitmap_count(bm), ==, 2);
    g_assert_false(hbitmap_truncate(bm, HBITMAP_MAX_BITS + 1, &error));
    g_assert_nonnull(error);
    g_clear_error(&error);
    g_assert_cmpuint(hbitmap_count(bm), ==, 2);
    g_assert_true(hbitmap_truncate(bm, 5, &error));
    g_assert_true(hbitmap_is_empty(bm));
}

static void test_no_bits_at_all(void)
{
    g_autoptr(HBitmap) bm = hbitmap_new(0, NULL);
    g_autoptr(HBitmap) clone = hbitmap_clone(bm);
    uint64_t start, len;

    hbitmap_set(bm, 0, 0);
    hbitmap_reset(bm, 0, 0);
    hbitmap_fill(bm);
    hbitmap_clear(bm);
    hbitmap_merge(bm, clone);
    hbitmap_merge_shift(bm, clone, -4);
    hbitmap_merge_shift(bm, clone, 4);
    hbitmap_swap(bm, clone);
    hbitmap_copy_from(bm, clone);
    hbitmap_fold(bm, NULL, NULL, 0);
    hbitmap_compact(bm);
    g_assert_true(hbitmap_is_empty(bm));
    g_assert_true(hbitmap_equal(bm, clone));
    g_assert_cmpuint(hbitmap_count(bm), ==, 0);
    g_assert_cmpuint(hbitmap_next_dirty(bm, 0, 0), ==, 0);
    g_assert_cmpuint(hbitmap_next_clear(bm, 0, 0), ==, 0);
    g_assert_false(hbitmap_next_dirty_area(bm, 0, 0, 1, &start, &len));
    g_assert_cmpint(hbitmap_range_state(bm, 0, 0), ==, HBITMAP_CLEAR);
    g_assert_true(hbitmap_truncate(bm, 100, NULL));
    g_assert_cmpuint(hbitmap_next_clear(bm, 0, 100), ==, 0);
    hbitmap_free(NULL);
}

static void test_grown_bits_are_clear(void)
{
    static const uint64_t sizes[] = { 1,
                                      63,
                                      64,
                                      PAGE_BITS - 1,
                                      PAGE_BITS,
                                      DIR_BITS - 1,
                                      DIR_BITS,
                                      DIR_BITS + 1,
                                      2 * DIR_BITS,
                                      1,
                                      3 * DIR_BITS,
                                      PAGE_BITS + 7 };

    g_autoptr(HBitmap) bm = hbitmap_new(0, NULL);
    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        uint64_t old = hbitmap_size(bm), kept = MIN(old, sizes[i]);
        hbitmap_fill(bm);
        g_assert_true(hbitmap_truncate(bm, sizes[i], NULL));
        g_assert_cmpuint(hbitmap_count(bm), ==, kept);
        g_assert_cmpuint(hbitmap_next_clear(bm, 0, sizes[i]), ==, kept);
        g_assert_cmpuint(hbitmap_next_dirty(bm, kept, sizes[i]), ==, sizes[i]);
    }
}

/* ---- Sharing ---- */

static void test_a_clone_keeps_what_it_was(void)
{
    g_autoptr(HBitmap) bm = hbitmap_new(2 * DIR_BITS + 5, NULL);

    hbitmap_set(bm, 10, 1);
    hbitmap_set(bm, DIR_BITS - 10, 20);
    g_autoptr(HBitmap) clone = hbitmap_clone(bm);
    g_autoptr(HBitmap) second = hbitmap_clone(clone);
    hbitmap_reset(bm, 0, hbitmap_size(bm));
    hbitmap_set(second, 10, 2 * PAGE_BITS);
    g_assert_cmpuint(hbitmap_count(bm), ==, 0);
    g_assert_cmpuint(hbitmap_count(clone), ==, 21);
    g_assert_cmpuint(hbitmap_count(second), ==, 2 * PAGE_BITS + 20);
    hbitmap_swap(bm, clone);
    g_assert_cmpuint(hbitmap_count(bm), ==, 21);
    hbitmap_merge(bm, second);
    g_assert_true(hbitmap_equal(bm, second));
    g_assert_false(hbitmap_equal(bm, clone));
}

/* A page that was shared by merging into an absent one, behind a directory shared with a third. */
static void test_sharing_through_a_shared_directory(void)
{
    g_autoptr(HBitmap) src = hbitmap_new(DIR_BITS, NULL);
    g_autoptr(HBitmap) dst = hbitmap_new(DIR_BITS, NULL);

    hbitmap_set(src, 3, 1);
    hbitmap_set(dst, DIR_BITS - 1, 1);
    HBitmap *third = hbitmap_clone(src);
    hbitmap_merge(dst, src);
    hbitmap_free(third);
    hbitmap_settle(src);
    hbitmap_set(src, 4, 1);
    g_assert_false(hbitmap_get(dst, 4));
    hbitmap_set(dst, 5, 1);
    g_assert_false(hbitmap_get(src, 5));
    g_assert_cmpuint(hbitmap_count(src), ==, 2);
    g_assert_cmpuint(hbitmap_count(dst), ==, 3);
}

/* The same after a writer copied the shared directory. */
static void test_sharing_through_a_copied_directory(void)
{
    g_autoptr(HBitmap) bm = hbitmap_new(DIR_BITS, NULL);

    hbitmap_set(bm, 3, 1);
    hbitmap_set(bm, PAGE_BITS, 1);
    g_autoptr(HBitmap) clone = hbitmap_clone(bm);
    hbitmap_set(bm, PAGE_BITS + 1, 1);
    hbitmap_settle(bm);
    hbitmap_settle(clone);
    hbitmap_set(clone, 4, 1);
    g_assert_false(hbitmap_get(bm, 4));
    hbitmap_set(bm, 5, 1);
    g_assert_false(hbitmap_get(clone, 5));
}

static void test_merge_of_far_granularities(void)
{
    const uint64_t fine_bits = (UINT64_C(1) << 40) + 12345;
    g_autoptr(HBitmap) fine = hbitmap_new(fine_bits, NULL);

    for (int k = 1; k <= 22; k++) {
        g_autoptr(HBitmap) coarse = hbitmap_new((fine_bits >> k) + 1, NULL);
        hbitmap_clear(fine);
        hbitmap_set(fine, 0, 1);
        hbitmap_set(fine, DIR_BITS * 7 - 1, 1);
        hbitmap_set(fine, DIR_BITS * 9, DIR_BITS);
        hbitmap_set(fine, fine_bits - 1, 1);
        hbitmap_merge_shift(coarse, fine, -k);
        g_assert_cmpuint(hbitmap_count(coarse), ==, 3 + (DIR_BITS >> k));
        g_assert_true(hbitmap_get(coarse, fine_bits >> k));
        g_assert_true(hbitmap_get(coarse, (DIR_BITS * 7 - 1) >> k));

        hbitmap_clear(fine);
        hbitmap_merge_shift(fine, coarse, k);
        uint64_t tail = fine_bits - (fine_bits >> k << k);
        g_assert_cmpuint(hbitmap_count(fine), ==, ((hbitmap_count(coarse) - 1) << k) + tail);
        g_assert_cmpuint(hbitmap_next_clear(fine, 0, fine_bits), ==, UINT64_C(1) << k);
    }
}

/* ---- Memory ---- */

static void assert_small(HBitmap *bm)
{
    g_assert_cmpuint(hbitmap_memory(bm), <=, 16 * KIB);
}

/* Bits all over the place, so that every page exists. */
static void scatter(HBitmap *bm)
{
    for (uint64_t bit = 0; bit < hbitmap_size(bm); bit += 999) {
        hbitmap_set(bm, bit, 1);
    }
}

static void test_empty_and_full_are_small(void)
{
    static const uint64_t sizes[] = { TIB_BITS, TIB_BITS - 1, TIB_BITS + 1 };

    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        g_autoptr(HBitmap) bm = hbitmap_new(sizes[i], NULL);
        assert_small(bm);
        hbitmap_fill(bm);
        assert_small(bm);
        hbitmap_clear(bm);
        assert_small(bm);

        scatter(bm);
        g_assert_cmpuint(hbitmap_memory(bm), >, 2048 * KIB);
        g_autoptr(HBitmap) clone = hbitmap_clone(bm);
        hbitmap_fill(bm);
        assert_small(bm);
        hbitmap_merge(clone, bm);
        assert_small(clone);
        g_assert_true(hbitmap_equal(clone, bm));

        hbitmap_clear(bm);
        scatter(bm);
        hbitmap_clear(bm);
        assert_small(bm);
    }
}

/* Cutting a page short may leave nothing in it; and what was known to be uneven stays so. */
static void test_truncate_knows_what_it_leaves(void)
{
    g_autoptr(HBitmap) bm = hbitmap_new(TIB_BITS, NULL);

    hbitmap_set(bm, 100, 1);
    g_assert_true(hbitmap_truncate(bm, 50, NULL));
    g_assert_true(hbitmap_is_uneven(bm));
    g_assert_true(hbitmap_truncate(bm, TIB_BITS, NULL));
    g_assert_true(hbitmap_is_uneven(bm));
    hbitmap_compact(bm);
    g_assert_false(hbitmap_is_uneven(bm));
    assert_small(bm);
}

static void test_compact_gives_back_what_single_writes_left(void)
{
    g_autoptr(HBitmap) bm = hbitmap_new(TIB_BITS + 100, NULL);

    scatter(bm);
    g_assert_false(hbitmap_is_uneven(bm));
    hbitmap_reset(bm, 0, hbitmap_size(bm));
    g_assert_true(hbitmap_is_uneven(bm));
    hbitmap_compact(bm);
    g_assert_false(hbitmap_is_uneven(bm));
    assert_small(bm);

    for (uint64_t bit = 0; bit < hbitmap_size(bm); bit += 4) {
        hbitmap_set(bm, bit, 4);
    }
    g_assert_true(hbitmap_is_uneven(bm));
    hbitmap_compact(bm);
    assert_small(bm);
    g_assert_cmpuint(hbitmap_count(bm), ==, TIB_BITS + 100);

    /* The same behind a directory that a clone shares. */
    hbitmap_clear(bm);
    scatter(bm);
    hbitmap_reset(bm, 0, hbitmap_size(bm));
    g_autoptr(HBitmap) clone = hbitmap_clone(bm);
    hbitmap_compact(bm);
    hbitmap_compact(clone);
    assert_small(bm);
    assert_small(clone);
}

static void test_an_epoch_of_full_pages_folds_to_tags(void)
{
    g_autoptr(HBitmap) epoch = hbitmap_new(TIB_BITS * 16, NULL);
    HBitmap *dst[] = { hbitmap_new(TIB_BITS * 16, NULL), hbitmap_new(TIB_BITS, NULL) };
    const int shift[] = { 0, -4 };

    hbitmap_fill(epoch);
    hbitmap_fold(epoch, dst, shift, 2);
    g_assert_true(hbitmap_is_empty(epoch));
    for (int i = 0; i < 2; i++) {
        g_assert_cmpuint(hbitmap_count(dst[i]), ==, hbitmap_size(dst[i]));
        hbitmap_compact(dst[i]);
        assert_small(dst[i]);
        hbitmap_free(dst[i]);
    }
}

static void test_merge_shift_of_full_is_small(void)
{
    g_autoptr(HBitmap) fine = hbitmap_new(TIB_BITS * 16, NULL);

    for (int k = 1; k < 14; k++) {
        g_autoptr(HBitmap) coarse = hbitmap_new((TIB_BITS * 16) >> k, NULL);
        hbitmap_fill(fine);
        hbitmap_merge_shift(coarse, fine, -k);
        g_assert_cmpuint(hbitmap_count(coarse), ==, hbitmap_size(coarse));
        assert_small(coarse);
        hbitmap_clear(fine);
        hbitmap_merge_shift(fine, coarse, k);
        g_assert_cmpuint(hbitmap_count(fine), ==, hbitmap_size(fine));
        assert_small(fine);
    }
}

static void test_a_clone_costs_next_to_nothing(void)
{
    g_autoptr(HBitmap) bm = hbitmap_new(TIB_BITS, NULL);

    scatter(bm);
    size_t alone = hbitmap_memory(bm);
    HBitmap *clone = hbitmap_clone(bm);
    g_assert_cmpuint(hbitmap_memory(bm) + hbitmap_memory(clone), <, alone + KIB);
    hbitmap_free(clone);
    g_assert_cmpuint(hbitmap_memory(bm), ==, alone);

    /* After settling, a writer needs no copy. */
    hbitmap_settle(bm);
    for (uint64_t bit = 1; bit < TIB_BITS; bit += PAGE_BITS) {
        hbitmap_set(bm, bit, 1);
    }
    g_assert_cmpuint(hbitmap_memory(bm), ==, alone);
}

/* ---- Bytes ---- */

static void test_bytes_are_in_order(void)
{
    g_autoptr(HBitmap) bm = hbitmap_new(PAGE_BITS + 20, NULL);
    uint8_t buf[4];

    hbitmap_set(bm, 0, 1);
    hbitmap_set(bm, 9, 2);
    hbitmap_set(bm, PAGE_BITS + 19, 1);
    hbitmap_serialize(bm, 0, 16, buf);
    g_assert_cmpmem(buf, 2, "\x01\x06", 2);
    hbitmap_serialize(bm, PAGE_BITS - 8, 28, buf);
    g_assert_cmpmem(buf, 4, "\x00\x00\x00\x08", 4);

    hbitmap_deserialize(bm, 8, 12, (const uint8_t *)"\xff\xff");
    g_assert_cmpuint(hbitmap_count(bm), ==, 14);
    g_assert_cmpuint(hbitmap_next_clear(bm, 8, PAGE_BITS), ==, 20);
}

/* Many that record the same take the memory of one, until one of them is written by itself. */
static void test_destinations_of_a_fold_share(void)
{
    enum {
        N = 16,
        PAGES = 64
    };
    HBitmap *epoch = hbitmap_new(PAGES * PAGE_BITS, NULL), *dst[N];
    int shifts[N] = { 0 };
    size_t memory = 0;

    for (int i = 0; i < N; i++) {
        dst[i] = hbitmap_new(PAGES * PAGE_BITS, NULL);
    }
    for (uint64_t bit = 77; bit < PAGES * PAGE_BITS; bit += PAGE_BITS) {
        hbitmap_set(epoch, bit, 3);
    }
    hbitmap_fold(epoch, dst, shifts, N);
    hbitmap_set(dst[1], 5, 1);
    hbitmap_reset(dst[2], 78, 1);
    for (int i = 0; i < N; i++) {
        g_assert_cmpuint(hbitmap_count(dst[i]), ==, 3 * PAGES + (i == 1) - (i == 2));
        g_assert_cmpint(hbitmap_get(dst[i], 5), ==, i == 1);
        g_assert_cmpint(hbitmap_get(dst[i], 78), ==, i != 2);
        memory += hbitmap_memory(dst[i]);
    }
    /* A directory for each; pages once, and two copies. */
    g_assert_cmpuint(memory, <, (N + PAGES + 8) * 5 * KIB);
    for (int i = 0; i < N; i++) {
        hbitmap_free(dst[i]);
    }
    hbitmap_free(epoch);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/hbitmap/limit-of-size", test_limit_of_size);
    g_test_add_func("/hbitmap/no-bits-at-all", test_no_bits_at_all);
    g_test_add_func("/hbitmap/grown-bits-are-clear", test_grown_bits_are_clear);
    g_test_add_func("/hbitmap/a-clone-keeps-what-it-was", test_a_clone_keeps_what_it_was);
    g_test_add_func("/hbitmap/sharing-through-a-shared-directory",
                    test_sharing_through_a_shared_directory);
    g_test_add_func("/hbitmap/sharing-through-a-copied-directory",
                    test_sharing_through_a_copied_directory);
    g_test_add_func("/hbitmap/merge-of-far-granularities", test_merge_of_far_granularities);
    g_test_add_func("/hbitmap/memory/empty-and-full-are-small", test_empty_and_full_are_small);
    g_test_add_func("/hbitmap/memory/truncate", test_truncate_knows_what_it_leaves);
    g_test_add_func("/hbitmap/memory/compact", test_compact_gives_back_what_single_writes_left);
    g_test_add_func("/hbitmap/memory/destinations-of-a-fold-share",
                    test_destinations_of_a_fold_share);
    g_test_add_func("/hbitmap/memory/epoch-of-full-pages",
                    test_an_epoch_of_full_pages_folds_to_tags);
    g_test_add_func("/hbitmap/memory/merge-shift-of-full", test_merge_shift_of_full_is_small);
    g_test_add_func("/hbitmap/memory/clone", test_a_clone_costs_next_to_nothing);
    g_test_add_func("/hbitmap/bytes-are-in-order", test_bytes_are_in_order);
    return g_test_run();
}
