/* SPDX-License-Identifier: MIT */
/* A bitmap's words, contents and undo. Digests and counts were taken from QEMU 7.2. */
#include "block/dirty-bitmap.h"
#include "util/error.h"

#include <string.h>

#define KIB INT64_C(1024)
#define MIB (KIB * 1024)
#define GIB (MIB * 1024)

static DirtyBitmap *try_add(BitmapList *list, const char *name, int64_t granularity, GError **error)
{
    BitmapAddOptions options = { .name = name,
                                 .granularity = granularity,
                                 .default_granularity = BITMAP_DEFAULT_GRANULARITY };

    return bitmap_add(list, &options, NULL, error);
}

static DirtyBitmap *add(BitmapList *list, const char *name, int64_t granularity)
{
    DirtyBitmap *bitmap = try_add(list, name, granularity, NULL);

    g_assert_nonnull(bitmap);
    return bitmap;
}

static void refused(BitmapList *list, const char *name, int64_t granularity, const char *words)
{
    g_autoptr(GError) error = NULL;

    g_assert_null(try_add(list, name, granularity, &error));
    g_assert_error(error, MERINO_ERROR, MERINO_ERROR_GENERIC);
    g_assert_cmpstr(error->message, ==, words);
}

/* --- add --- */

static void names(void)
{
    BitmapList *list = bitmap_list_new("disk0", MIB);
    g_autofree char *longest = g_strnfill(1023, 'x');
    g_autofree char *too_long = g_strnfill(1024, 'x');
    g_autofree char *words = g_strdup_printf("Bitmap name too long: %s", too_long);
    DirtyBitmap *b = add(list, "b", 0);

    refused(list, "b", 0, "Bitmap already exists: b");
    refused(list, "", 0, "Bitmap name cannot be empty");
    refused(list, "\xff", 0, "Bitmap name is not valid UTF-8");
    refused(list, too_long, 0, words);
    add(list, longest, 0);
    add(list, NULL, 0);
    add(list, NULL, 0);
    g_assert_true(bitmap_find(list, "b") == b);
    g_assert_true(bitmap_lookup(list, "b", NULL) == b);
    g_assert_cmpstr(bitmap_name(b), ==, "b");
    g_assert_true(bitmap_owner(b) == list);
    bitmap_list_free(list);
}

static void look_up_says_what_is_missing(void)
{
    BitmapList *list = bitmap_list_new("disk0", MIB);
    g_autoptr(GError) error = NULL;

    add(list, NULL, 0);
    g_assert_null(bitmap_find(list, "x"));
    g_assert_null(bitmap_lookup(list, "x", &error));
    g_assert_cmpstr(error->message, ==, "Dirty bitmap 'x' not found");
    bitmap_list_free(list);
}

static void granularities(void)
{
    static const char words[] = "Granularity must be power of 2 and at least 512";
    static const int64_t bad[] = { 1, 2, 256, 511, 513, 768, 65535, -1, INT64_MIN, (1 << 30) + 1 };
    BitmapList *list = bitmap_list_new("disk0", MIB);
    BitmapAddOptions nothing = { .name = "zero" };
    g_autoptr(GError) error = NULL;

    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        refused(list, "b", bad[i], words);
    }
    g_assert_null(bitmap_add(list, &nothing, NULL, &error));
    g_assert_cmpstr(error->message, ==, words);
    refused(list, "b", 4 * GIB, "Granularity must be at most 2147483648");
    g_assert_cmpint(bitmap_granularity(add(list, "default", 0)), ==, 65536);
    g_assert_cmpint(bitmap_granularity(add(list, "finest", 512)), ==, 512);
    g_assert_cmpint(bitmap_granularity(add(list, "coarsest", 2 * GIB)), ==, 2 * GIB);
    bitmap_list_free(list);
}

static void newest_comes_first(void)
{
    BitmapList *list = bitmap_list_new("disk0", MIB);
    DirtyBitmap *a = add(list, "a", 0), *b = add(list, NULL, 0), *c = add(list, "c", 0);

    g_assert_true(bitmap_list_next(list, NULL) == c);
    g_assert_true(bitmap_list_next(list, c) == b);
    g_assert_true(bitmap_list_next(list, b) == a);
    g_assert_null(bitmap_list_next(list, a));
    bitmap_list_free(list);
}

/* --- contents --- */

typedef struct Digest {
    int64_t size, granularity;
    int64_t writes[3][2]; /* offset, bytes */
    int64_t count;
    const char *sha256;
} Digest;

static const Digest digests[] = {
    { 0, 65536, { { 0 } }, 0, "af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc" },
    { 1, 512, { { 0 } }, 0, "af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc" },
    { 6 * GIB,
      2 * GIB,
      { { 0 } },
      0,
      "af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc" },
    { 33280,
      512,
      { { 0 } },
      0,
      "374708fff7719dd5979ec875d56cd2286f6d3cf7ec317a3b25632aab28ec37bb" },
    { 2097153,
      512,
      { { 0 } },
      0,
      "20aa497d9bd4c19e851e3df6e386700faada213db38acf7679f6365832830b3d" },
    { 1000000,
      512,
      { { 1000, 3000 }, { 512000, 70000 }, { 999999, 1 } },
      74240,
      "d9b8b082b04ded570a177a79ccca4f146775d536e9538c5cdb243a085b520660" },
    { 64 * MIB,
      65536,
      { { 0, 1 }, { 65535, 2 }, { 60 * MIB, 4 * MIB } },
      4325376,
      "8d158c84fc4ea2b5bdbdc87272c823b6b4995a8fae7ea586eed0e93c4ca5cb34" },
    { 3 * MIB + 512,
      4096,
      { { 0, 3 * MIB + 512 } },
      3149824,
      "c17a8a421f39e3700286952ec31bda9ad64cac06b049c13c7e7a8c9fe7c2ed28" },
    { 2 * GIB,
      MIB,
      { { 5 * MIB, 1 }, { 2 * GIB - 1, 1 } },
      2097152,
      "6c1e38651b29d2dc53c9cf931659b348d317e4387f93e80b133c1b1645ca9809" },
    { 16 * GIB,
      32768,
      { { 0, MIB }, { 8 * GIB, 16 * MIB }, { 16 * GIB - 4096, 4096 } },
      17858560,
      "9537289604ba653125531894d9490567743ba7db427a3c3c2f8fcbb6524a6972" },
};

static void digests_are_qemus(void)
{
    for (size_t i = 0; i < G_N_ELEMENTS(digests); i++) {
        const Digest *digest = &digests[i];
        BitmapList *list = bitmap_list_new("disk0", digest->size);
        DirtyBitmap *bitmap = add(list, "b", digest->granularity);
        g_autofree char *sha256 = NULL;

        for (int w = 0; w < 3; w++) {
            bitmap_list_mark(list, digest->writes[w][0], digest->writes[w][1]);
        }
        sha256 = bitmap_sha256(bitmap);
        g_assert_cmpstr(sha256, ==, digest->sha256);
        g_assert_cmpint(bitmap_dirty_bytes(bitmap), ==, digest->count);
        bitmap_list_free(list);
    }
}

static void assert_area(DirtyBitmap *bitmap, int64_t offset, int64_t end, int64_t max,
                        int64_t want_offset, int64_t want_bytes)
{
    int64_t area = -1, bytes = -1;

    g_assert_true(bitmap_next_dirty_area(bitmap, offset, end, max, &area, &bytes));
    g_assert_cmpint(area, ==, want_offset);
    g_assert_cmpint(bytes, ==, want_bytes);
}

static void areas_are_cut(void)
{
    BitmapList *list = bitmap_list_new("disk0", 100 * KIB + 100);
    DirtyBitmap *b = add(list, "b", 4096);
    int64_t size = 100 * KIB + 100, area, bytes;

    bitmap_list_mark(list, 8192, 8192);
    bitmap_list_mark(list, size - 1, 1);
    assert_area(b, 0, size, INT64_MAX, 8192, 8192);
    assert_area(b, 9000, size, INT64_MAX, 9000, 16384 - 9000);
    assert_area(b, 0, 9000, INT64_MAX, 8192, 9000 - 8192);
    assert_area(b, 9000, 9001, INT64_MAX, 9000, 1);
    assert_area(b, 9000, size, 5000, 9000, 5000);
    assert_area(b, 9000, size, 1, 9000, 1);
    assert_area(b, 16384, size, INT64_MAX, 100 * KIB, 100);
    assert_area(b, size - 1, INT64_MAX, INT64_MAX, size - 1, 1);
    g_assert_false(bitmap_next_dirty_area(b, 16384, 100 * KIB, INT64_MAX, &area, &bytes));
    g_assert_false(bitmap_next_dirty_area(b, 0, 8192, INT64_MAX, &area, &bytes));
    g_assert_false(bitmap_next_dirty_area(b, size, size + 1, INT64_MAX, &area, &bytes));
    g_assert_false(bitmap_next_dirty_area(b, 0, size, 0, &area, &bytes));
    bitmap_list_free(list);
}

static void searches_end_where_asked(void)
{
    BitmapList *list = bitmap_list_new("disk0", 100 * KIB + 100);
    DirtyBitmap *b = add(list, "b", 4096);
    int64_t size = 100 * KIB + 100;

    bitmap_list_mark(list, 8192, 8192);
    g_assert_cmpint(bitmap_next_dirty(b, 0, size), ==, 8192);
    g_assert_cmpint(bitmap_next_dirty(b, 0, 8192), ==, 8192);
    g_assert_cmpint(bitmap_next_dirty(b, 0, 5000), ==, 5000);
    g_assert_cmpint(bitmap_next_dirty(b, 9000, size), ==, 9000);
    g_assert_cmpint(bitmap_next_dirty(b, 16384, size), ==, size);
    g_assert_cmpint(bitmap_next_clean(b, 0, size), ==, 0);
    g_assert_cmpint(bitmap_next_clean(b, 9000, size), ==, 16384);
    g_assert_cmpint(bitmap_next_clean(b, 9000, 10000), ==, 10000);
    bitmap_list_mark(list, 0, size);
    g_assert_cmpint(bitmap_next_clean(b, 1, size), ==, size);
    g_assert_true(bitmap_get(b, size - 1));
    bitmap_list_free(list);
}

/* Setting goes outward to whole bits, clearing inward; the last bit ends with the disk. */
static void single_ranges(void)
{
    BitmapList *list = bitmap_list_new("disk0", 100 * KIB + 100);
    BitmapAddOptions options = { .granularity = 4096, .disabled = true };
    DirtyBitmap *b = bitmap_add(list, &options, NULL, NULL);

    bitmap_set_range(b, 4095, 2);
    g_assert_cmpint(bitmap_dirty_bytes(b), ==, 8192);
    bitmap_set_range(b, 0, 0);
    bitmap_reset_range(b, 1, 8000);
    g_assert_cmpint(bitmap_dirty_bytes(b), ==, 8192);
    bitmap_reset_range(b, 1, 8191);
    g_assert_cmpint(bitmap_dirty_bytes(b), ==, 4096);
    g_assert_true(bitmap_get(b, 0));
    bitmap_set_range(b, 100 * KIB, 100);
    bitmap_reset_range(b, 100 * KIB, 99);
    g_assert_cmpint(bitmap_dirty_bytes(b), ==, 8192);
    bitmap_reset_range(b, 100 * KIB, 100);
    g_assert_cmpint(bitmap_dirty_bytes(b), ==, 4096);
    bitmap_list_free(list);
}

/* A range that is taken out of an enabled bitmap does not come back with the next look. */
static void cleared_ranges_stay_clear(void)
{
    BitmapList *list = bitmap_list_new("disk0", MIB);
    DirtyBitmap *b = add(list, "b", 4096), *other = add(list, "other", 512);

    bitmap_list_mark(list, 0, 8192);
    bitmap_reset_range(b, 0, 4096);
    g_assert_cmpint(bitmap_dirty_bytes(b), ==, 4096);
    g_assert_cmpint(bitmap_dirty_bytes(other), ==, 8192);
    bitmap_list_free(list);
}

static void writes_beyond_the_end_wait_for_it(void)
{
    BitmapList *list = bitmap_list_new("disk0", 10000);
    DirtyBitmap *b = add(list, "b", 4096);

    bitmap_list_mark(list, 20000, 1);
    bitmap_list_mark(list, 0, 0);
    g_assert_cmpint(bitmap_dirty_bytes(b), ==, 0);
    bitmap_list_mark(list, 9999, 2);
    g_assert_cmpint(bitmap_dirty_bytes(b), ==, 4096);
    bitmap_list_resize(list, 20001); /* one range from 10000 to 20001 */
    g_assert_cmpint(bitmap_dirty_bytes(b), ==, 3 * 4096);
    bitmap_list_mark(list, 20001, INT64_MAX - 20001);
    bitmap_list_resize(list, 20000);
    bitmap_list_resize(list, 30000); /* remembered once */
    g_assert_cmpint(bitmap_dirty_bytes(b), ==, 3 * 4096);
    bitmap_list_mark(list, 29999, INT64_MAX - 29999);
    g_assert_cmpint(bitmap_dirty_bytes(b), ==, 4 * 4096);
    bitmap_list_free(list);
}

/* --- size --- */

static void resize_keeps_what_remains(void)
{
    BitmapList *list = bitmap_list_new("disk0", MIB);
    DirtyBitmap *fine = add(list, "fine", 512), *coarse = add(list, "coarse", 65536);

    bitmap_list_mark(list, MIB - 1, 1);
    bitmap_list_mark(list, 0, 1);
    bitmap_list_mark(list, 100000, 1);
    g_assert_true(bitmap_list_check_resize(list, 100000, NULL));
    bitmap_list_resize(list, 100000);
    g_assert_cmpint(bitmap_dirty_bytes(fine), ==, 1024); /* its last bit ends behind the disk */
    g_assert_cmpint(bitmap_dirty_bytes(coarse), ==, 65536 * 2);
    bitmap_list_resize(list, 2 * MIB);
    g_assert_cmpint(bitmap_dirty_bytes(fine), ==, 1024);
    g_assert_cmpint(bitmap_dirty_bytes(coarse), ==, 65536 * 2);
    bitmap_list_mark(list, 2 * MIB - 1, 1);
    g_assert_cmpint(bitmap_dirty_bytes(fine), ==, 1536);
    g_assert_cmpint(bitmap_size(coarse), ==, 2 * MIB);
    bitmap_list_free(list);
}

static void resize_to_what_no_bitmap_can_hold(void)
{
    BitmapList *list = bitmap_list_new("disk0", MIB);
    DirtyBitmap *fine = add(list, "fine", 512);
    g_autoptr(GError) error = NULL;

    g_assert_false(bitmap_list_check_resize(list, INT64_MAX, &error));
    g_assert_cmpstr(error->message, ==,
                    "Bitmap 'fine' cannot be grown to 9223372036854775807 bytes");
    bitmap_remove(fine, NULL, NULL);
    g_assert_true(bitmap_list_check_resize(list, INT64_MAX, NULL));
    bitmap_list_free(list);
}

/* --- merge --- */

static void merge_across_disks_and_granularities(void)
{
    BitmapList *one = bitmap_list_new("one", MIB), *two = bitmap_list_new("two", MIB);
    DirtyBitmap *fine = add(one, "fine", 512), *coarse = add(two, "coarse", 65536);
    DirtyBitmap *target = add(one, "target", 4096);
    DirtyBitmap *sources[] = { fine, coarse, target, fine };

    bitmap_disable(target, NULL, NULL);
    bitmap_list_mark(one, 5000, 1);
    bitmap_list_mark(two, 100000, 1);
    g_assert_true(bitmap_merge(target, sources, 4, NULL, NULL));
    g_assert_cmpint(bitmap_dirty_bytes(target), ==, 4096 + 65536);
    g_assert_true(bitmap_get(target, 4096));
    g_assert_true(bitmap_get(target, 65536));
    g_assert_cmpint(bitmap_dirty_bytes(fine), ==, 512);
    g_assert_true(bitmap_merge(coarse, &fine, 1, NULL, NULL));
    g_assert_cmpint(bitmap_dirty_bytes(coarse), ==, 131072);
    g_assert_true(bitmap_merge(coarse, NULL, 0, NULL, NULL));
    bitmap_list_free(one);
    bitmap_list_free(two);
}

static void merge_is_all_or_nothing(void)
{
    BitmapList *one = bitmap_list_new("one", MIB), *two = bitmap_list_new("two", 2 * MIB);
    DirtyBitmap *target = add(one, "target", 4096), *good = add(one, "good", 512);
    DirtyBitmap *sources[] = { good, add(two, "bad", 512) };
    g_autoptr(GError) error = NULL;

    bitmap_list_mark(one, 0, 1);
    bitmap_clear(target, NULL, NULL);
    g_assert_false(bitmap_merge(target, sources, 2, NULL, &error));
    g_assert_cmpstr(error->message, ==,
                    "Bitmaps are of different sizes (destination size is 1048576, source size is "
                    "2097152) and can't be merged");
    g_assert_cmpint(bitmap_dirty_bytes(target), ==, 0);
    bitmap_list_free(one);
    bitmap_list_free(two);
}

/* --- undo --- */

/* Cleared, merged into, enabled and removed, in every order: undo restores bits and states. */
static void undo_in_every_order(void)
{
    static const char *const orders[] = {
        "cmer", "cemr", "mcer", "mecr", "ecmr", "emcr", "cmre", "cmed", "dcem", "edcm", "rcme",
    };

    for (size_t i = 0; i < G_N_ELEMENTS(orders) * 2; i++) {
        BitmapList *list = bitmap_list_new("disk0", MIB);
        DirtyBitmap *b = add(list, "b", 4096), *source = add(list, "source", 65536);
        const char *order = orders[i / 2];
        UndoStack *undo = undo_stack_new();
        g_autofree char *before = NULL, *after = NULL;

        bitmap_list_mark(list, 10000, 1);
        g_assert_true(bitmap_disable(b, NULL, NULL));
        bitmap_list_mark(list, 500000, 1);
        if (i % 2) {
            g_assert_true(bitmap_enable(b, NULL, NULL));
        }
        before = bitmap_sha256(b);
        for (const char *c = order; *c; c++) {
            bool gone = strchr(order, 'r') && strchr(order, 'r') < c;
            bool ok = *c == 'c'   ? bitmap_clear(b, undo, NULL)
                      : *c == 'm' ? bitmap_merge(b, &source, 1, undo, NULL)
                      : *c == 'e' ? bitmap_enable(b, undo, NULL)
                      : *c == 'd' ? bitmap_disable(b, undo, NULL)
                                  : bitmap_remove(b, undo, NULL);

            g_assert_cmpint(ok, ==, !gone);
        }
        undo_abort(undo);
        after = bitmap_sha256(b);
        g_assert_cmpstr(before, ==, after);
        g_assert_cmpint(bitmap_is_enabled(b), ==, i % 2);
        g_assert_false(bitmap_is_busy(b));
        bitmap_list_mark(list, MIB - 1, 1);
        g_assert_cmpint(bitmap_get(b, MIB - 1), ==, i % 2);
        g_assert_true(bitmap_get(source, MIB - 1));
        bitmap_list_free(list);
    }
}

static void undo_of_add(void)
{
    BitmapList *list = bitmap_list_new("disk0", MIB);
    BitmapAddOptions options = { .name = "new", .granularity = 512 };
    DirtyBitmap *old = add(list, "old", 65536), *new;
    UndoStack *undo = undo_stack_new();

    bitmap_list_mark(list, 0, 1);
    new = bitmap_add(list, &options, undo, NULL);
    g_assert_true(bitmap_merge(new, &old, 1, undo, NULL));
    g_assert_true(bitmap_disable(new, undo, NULL));
    g_assert_true(bitmap_clear(new, undo, NULL));
    undo_abort(undo);
    g_assert_null(bitmap_find(list, "new"));
    bitmap_list_mark(list, MIB - 1, 1);
    g_assert_cmpint(bitmap_dirty_bytes(old), ==, 131072);
    bitmap_list_free(list);
}

static void commit_makes_final(void)
{
    BitmapList *list = bitmap_list_new("disk0", MIB);
    BitmapAddOptions options = { .name = "new", .granularity = 512 };
    DirtyBitmap *old = add(list, "old", 65536), *new;
    UndoStack *undo = undo_stack_new();
    g_autoptr(GError) error = NULL;

    bitmap_list_mark(list, 0, 1);
    new = bitmap_add(list, &options, undo, NULL);
    g_assert_true(bitmap_merge(new, &old, 1, undo, NULL));
    g_assert_true(bitmap_clear(old, undo, NULL));
    g_assert_true(bitmap_remove(old, undo, NULL));
    g_assert_null(try_add(list, "old", 0, &error));
    g_assert_cmpstr(error->message, ==, "Bitmap already exists: old");
    undo_commit(undo);
    g_assert_null(bitmap_find(list, "old"));
    g_assert_cmpint(bitmap_dirty_bytes(new), ==, 65536);
    add(list, "old", 0);
    bitmap_list_free(list);
}

/* A node that a transaction made may go, with its list, before the steps are cleaned up. */
static void steps_outlive_their_list(void)
{
    BitmapList *list = bitmap_list_new("disk0", MIB);
    DirtyBitmap *b = add(list, "b", 512), *c = add(list, "c", 512);
    UndoStack *undo = undo_stack_new();

    g_assert_true(bitmap_clear(b, undo, NULL));
    g_assert_true(bitmap_merge(b, &c, 1, undo, NULL));
    g_assert_true(bitmap_disable(b, undo, NULL));
    g_assert_true(bitmap_remove(c, undo, NULL));
    bitmap_list_free(list);
    undo_commit(undo);
}

/* --- stores --- */

typedef struct Store {
    bool refuses, fails;
    int loads;
    GString *removed;
} Store;

static bool store_can(void *opaque, const char *name, int64_t granularity, GError **error)
{
    Store *store = opaque;

    if (store->refuses) {
        merino_error(error, "No room for '%s' of %" G_GINT64_FORMAT, name, granularity);
    }
    return !store->refuses;
}

static bool store_load(void *opaque, const DirtyBitmap *bitmap, HBitmap *bits, GError **error)
{
    Store *store = opaque;

    store->loads++;
    if (store->fails) {
        merino_error(error, "Damaged");
        return false;
    }
    hbitmap_set(bits, 3, 2);
    return true;
}

static void put_back(void *opaque)
{
    g_string_append(((Store *)opaque)->removed, " and put back");
}

static const UndoOps put_back_ops = { .abort = put_back };

static bool store_remove(void *opaque, const char *name, UndoStack *undo, GError **error)
{
    Store *store = opaque;

    if (store->fails) {
        merino_error(error, "Cannot remove '%s'", name);
        return false;
    }
    g_string_append(store->removed, name);
    if (undo) {
        undo_push(undo, &put_back_ops, store);
    }
    return true;
}

static const BitmapStore store_ops = { store_can, store_load, NULL, store_remove };

static DirtyBitmap *add_persistent(BitmapList *list, UndoStack *undo, GError **error)
{
    BitmapAddOptions options = { .name = "p", .granularity = 4096, .persistent = true };

    return bitmap_add(list, &options, undo, error);
}

static void persistent_needs_a_store(void)
{
    BitmapList *list = bitmap_list_new("disk0", MIB);
    Store store = { .refuses = true };
    g_autoptr(GError) none = NULL, no_room = NULL;
    void *opaque;

    g_assert_null(add_persistent(list, NULL, &none));
    g_assert_cmpstr(none->message, ==,
                    "Can't store persistent bitmaps to disk0: Operation not supported");
    bitmap_list_set_store(list, &store_ops, &store);
    g_assert_true(bitmap_list_store(list, &opaque) == &store_ops && opaque == &store);
    g_assert_null(add_persistent(list, NULL, &no_room));
    g_assert_cmpstr(no_room->message, ==, "No room for 'p' of 4096");
    store.refuses = false;
    g_assert_true(bitmap_is_persistent(add_persistent(list, NULL, NULL)));
    bitmap_list_free(list);
}

static void remove_reaches_the_store(void)
{
    BitmapList *list = bitmap_list_new("disk0", MIB);
    Store store = { .fails = true, .removed = g_string_new(NULL) };
    g_autoptr(GError) error = NULL;
    UndoStack *undo = undo_stack_new();
    DirtyBitmap *p;

    bitmap_list_set_store(list, &store_ops, &store);
    p = add_persistent(list, NULL, NULL);
    g_assert_false(bitmap_remove(p, undo, &error));
    g_assert_cmpstr(error->message, ==, "Cannot remove 'p'");
    g_assert_false(bitmap_is_busy(p));
    store.fails = false;
    g_assert_true(bitmap_remove(p, undo, NULL));
    undo_abort(undo);
    g_assert_cmpstr(store.removed->str, ==, "p and put back");
    g_assert_true(bitmap_is_persistent(p));
    g_assert_true(bitmap_remove(p, NULL, NULL));
    g_assert_cmpstr(store.removed->str, ==, "p and put backp");
    g_string_free(store.removed, TRUE);
    bitmap_list_free(list);
}

static void deferred_bits_come_when_needed(void)
{
    BitmapList *list = bitmap_list_new("disk0", MIB);
    Store store = { .loads = 0 };
    DirtyBitmap *p;

    bitmap_list_set_store(list, &store_ops, &store);
    p = add_persistent(list, NULL, NULL);
    bitmap_set_deferred(p);
    bitmap_list_mark(list, 0, 1);
    g_assert_cmpint(store.loads, ==, 0);
    g_assert_cmpint(bitmap_dirty_bytes(p), ==, 3 * 4096);
    g_assert_true(bitmap_get(p, 3 * 4096));
    g_assert_true(bitmap_load(p, NULL));
    g_assert_cmpint(store.loads, ==, 1);
    bitmap_list_free(list);
}

static void damage_makes_inconsistent(void)
{
    BitmapList *list = bitmap_list_new("disk0", MIB);
    Store store = { .fails = true };
    DirtyBitmap *p, *other = add(list, "other", 512);
    g_autoptr(GError) error = NULL;

    bitmap_list_set_store(list, &store_ops, &store);
    p = add_persistent(list, NULL, NULL);
    bitmap_set_deferred(p);
    g_assert_false(bitmap_merge(other, &p, 1, NULL, &error));
    g_assert_cmpstr(error->message, ==, "Damaged");
    g_assert_true(bitmap_is_inconsistent(p));
    g_assert_cmpstr(bitmap_inconsistent_reason(p), ==, "Damaged");
    bitmap_list_mark(list, 0, 1);
    g_assert_cmpint(bitmap_dirty_bytes(p), ==, 0);
    g_assert_cmpint(bitmap_dirty_bytes(other), ==, 512);
    g_assert_cmpint(store.loads, ==, 1);
    bitmap_list_free(list);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/dirty-bitmap/names", names);
    g_test_add_func("/dirty-bitmap/look-up-says-what-is-missing", look_up_says_what_is_missing);
    g_test_add_func("/dirty-bitmap/granularities", granularities);
    g_test_add_func("/dirty-bitmap/newest-comes-first", newest_comes_first);
    g_test_add_func("/dirty-bitmap/digests-are-qemus", digests_are_qemus);
    g_test_add_func("/dirty-bitmap/areas-are-cut", areas_are_cut);
    g_test_add_func("/dirty-bitmap/searches-end-where-asked", searches_end_where_asked);
    g_test_add_func("/dirty-bitmap/single-ranges", single_ranges);
    g_test_add_func("/dirty-bitmap/cleared-ranges-stay-clear", cleared_ranges_stay_clear);
    g_test_add_func("/dirty-bitmap/writes-beyond-the-end-wait-for-it",
                    writes_beyond_the_end_wait_for_it);
    g_test_add_func("/dirty-bitmap/resize-keeps-what-remains", resize_keeps_what_remains);
    g_test_add_func("/dirty-bitmap/resize-to-what-no-bitmap-can-hold",
                    resize_to_what_no_bitmap_can_hold);
    g_test_add_func("/dirty-bitmap/merge-across-disks-and-granularities",
                    merge_across_disks_and_granularities);
    g_test_add_func("/dirty-bitmap/merge-is-all-or-nothing", merge_is_all_or_nothing);
    g_test_add_func("/dirty-bitmap/undo-in-every-order", undo_in_every_order);
    g_test_add_func("/dirty-bitmap/undo-of-add", undo_of_add);
    g_test_add_func("/dirty-bitmap/commit-makes-final", commit_makes_final);
    g_test_add_func("/dirty-bitmap/steps-outlive-their-list", steps_outlive_their_list);
    g_test_add_func("/dirty-bitmap/persistent-needs-a-store", persistent_needs_a_store);
    g_test_add_func("/dirty-bitmap/remove-reaches-the-store", remove_reaches_the_store);
    g_test_add_func("/dirty-bitmap/deferred-bits-come-when-needed", deferred_bits_come_when_needed);
    g_test_add_func("/dirty-bitmap/damage-makes-inconsistent", damage_makes_inconsistent);
    return g_test_run();
}
