/* SPDX-License-Identifier: MIT */
/* Bitmaps and their store: what is listed, when it is marked, what is known to be stored. */
#include "block/dirty-bitmap.h"
#include "util/error.h"
#include "util/event-loop.h"

#include <errno.h>

#define MIB (INT64_C(1) << 20)

typedef struct Store {
    GString *marks; /* names, as they were marked; "." ends each call */
    int loads;
    bool fail_loads;
    int fail_marks;
} Store;

static bool store_load(void *opaque, const DirtyBitmap *bitmap, HBitmap *bits, GError **error)
{
    Store *store = opaque;

    store->loads++;
    if (store->fail_loads) {
        merino_error(error, "Cannot load");
        return false;
    }
    hbitmap_set(bits, 1, 1);
    return true;
}

static bool store_remove(void *opaque, const char *name, UndoStack *undo, GError **error)
{
    return true;
}

static int coroutine_fn store_mark(void *opaque, DirtyBitmap *const bitmaps[], size_t n,
                                   GError **error)
{
    Store *store = opaque;

    coroutine_pause();
    if (store->fail_marks) {
        merino_error(error, "Cannot mark");
        return -store->fail_marks;
    }
    for (size_t i = 0; i < n; i++) {
        g_string_append(store->marks, bitmap_name(bitmaps[i]));
    }
    g_string_append_c(store->marks, '.');
    return 0;
}

static const BitmapStore store_ops = { .load = store_load,
                                       .remove = store_remove,
                                       .co_mark = store_mark };

/* Enabled `e`, disabled `d`, broken `b`; all of 64 KiB. */
static BitmapList *new_list(Store *store)
{
    static const BitmapStored stored[] = {
        { .name = "e", .granularity = 65536, .enabled = true },
        { .name = "d", .granularity = 65536 },
        { .name = "b", .granularity = 65536, .enabled = true, .inconsistent = "for the test" },
    };
    BitmapList *list = bitmap_list_new("disk0", MIB);

    *store = (Store){ .marks = g_string_new(NULL) };
    bitmap_list_set_store(list, &store_ops, store);
    g_assert_true(bitmap_list_add_stored(list, stored, 3, NULL));
    return list;
}

static void done(BitmapList *list, Store *store)
{
    bitmap_list_free(list);
    g_string_free(store->marks, TRUE);
}

static void write_entry(void *opaque)
{
    BitmapList *list = opaque;

    if (bitmap_list_co_before_write(list) == 0) {
        bitmap_list_mark(list, 0, 1);
    }
}

static void do_write(BitmapList *list)
{
    coroutine_run(write_entry, list);
}

static void what_is_stored_is_listed(void)
{
    Store store;
    BitmapList *list = new_list(&store);
    DirtyBitmap *b = bitmap_list_next(list, NULL), *d = bitmap_list_next(list, b);

    g_assert_cmpstr(bitmap_name(b), ==, "b");
    g_assert_cmpstr(bitmap_inconsistent_reason(b), ==, "for the test");
    g_assert_false(bitmap_is_enabled(b));
    g_assert_true(bitmap_find(list, "d") == d && !bitmap_is_enabled(d));
    g_assert_true(bitmap_is_enabled(bitmap_find(list, "e")));
    g_assert_true(bitmap_is_persistent(d) && bitmap_is_deferred(d));
    g_assert_cmpint(store.loads, ==, 0);
    g_assert_cmpint(bitmap_dirty_bytes(d), ==, 65536);
    g_assert_cmpint(store.loads, ==, 1);
    g_assert_cmpstr(store.marks->str, ==, "");
    done(list, &store);
}

static void counting_keeps_nothing(void)
{
    Store store;
    BitmapList *list = new_list(&store);
    DirtyBitmap *e = bitmap_find(list, "e");

    g_assert_cmpint(bitmap_dirty_bytes(e), ==, 65536);
    g_assert_cmpint(bitmap_dirty_bytes(e), ==, 65536);
    g_assert_true(bitmap_is_deferred(e));
    g_assert_cmpint(store.loads, ==, 1);
    do_write(list);
    g_assert_cmpint(bitmap_dirty_bytes(e), ==, 2 * 65536);
    g_assert_false(bitmap_is_deferred(e));
    done(list, &store);
}

static void the_first_write_marks_what_records(void)
{
    Store store;
    BitmapList *list = new_list(&store);
    DirtyBitmap *e = bitmap_find(list, "e");

    store.fail_marks = EIO;
    do_write(list);
    g_assert_true(bitmap_next_dirty(e, 0, MIB) == MIB && !bitmap_is_marked(e));
    store.fail_marks = 0;
    do_write(list);
    do_write(list);
    g_assert_cmpstr(store.marks->str, ==, "e.");
    g_assert_true(bitmap_is_marked(e));
    g_assert_false(bitmap_is_marked(bitmap_find(list, "d")));
    g_assert_cmpint(store.loads, ==, 0);
    g_assert_cmpint(bitmap_dirty_bytes(e), ==, 2 * 65536);
    done(list, &store);
}

static void a_store_may_ask_for_it(void)
{
    Store store;
    BitmapList *list = new_list(&store);

    g_assert_true(bitmap_disable(bitmap_find(list, "e"), NULL, NULL));
    g_assert_cmpstr(store.marks->str, ==, "e.");
    do_write(list);
    do_write(list);
    g_string_truncate(store.marks, 0);
    bitmap_list_expect_write(list);
    do_write(list);
    do_write(list);
    g_assert_cmpstr(store.marks->str, ==, ".");
    done(list, &store);
}

static void verbs_mark_before_they_change(void)
{
    Store store;
    BitmapList *list = new_list(&store);
    DirtyBitmap *d = bitmap_find(list, "d"), *e = bitmap_find(list, "e");
    g_autoptr(GError) error = NULL;
    UndoStack *undo;

    store.fail_marks = EIO;
    g_assert_false(bitmap_clear(d, NULL, &error));
    g_assert_cmpstr(error->message, ==, "Cannot mark");
    g_assert_false(bitmap_enable(d, NULL, NULL));
    g_assert_false(bitmap_disable(e, NULL, NULL));
    g_assert_true(bitmap_is_enabled(e) && !bitmap_is_enabled(d));
    g_assert_false(bitmap_merge(d, &e, 1, NULL, NULL));
    g_assert_false(bitmap_prepare_change(d, NULL));
    undo = undo_stack_new();
    g_assert_false(bitmap_remove(d, undo, NULL));
    undo_abort(undo);
    g_assert_cmpint(bitmap_dirty_bytes(d), ==, 65536);
    store.fail_marks = 0;
    g_assert_true(bitmap_merge(d, &e, 1, NULL, NULL));
    g_assert_true(bitmap_clear(d, NULL, NULL));
    g_assert_true(bitmap_enable(d, NULL, NULL));
    g_assert_cmpstr(store.marks->str, ==, "d.");
    done(list, &store);
}

/* What is remembered for undo are the bits with what is stored of them. */
static void undo_keeps_what_is_stored(void)
{
    Store store;
    BitmapList *list = new_list(&store);
    DirtyBitmap *d = bitmap_find(list, "d"), *e = bitmap_find(list, "e");
    UndoStack *undo = undo_stack_new();

    g_assert_true(bitmap_merge(d, NULL, 0, undo, NULL));
    g_assert_true(bitmap_clear(d, undo, NULL));
    g_assert_true(bitmap_enable(d, undo, NULL));
    undo_abort(undo);
    g_assert_cmpint(bitmap_next_dirty(d, 0, MIB), ==, 65536);
    g_assert_cmpint(bitmap_dirty_bytes(d), ==, 65536);

    undo = undo_stack_new();
    store.fail_loads = true;
    g_assert_true(bitmap_disable(e, undo, NULL));
    g_assert_false(bitmap_clear(e, undo, NULL));
    undo_abort(undo);
    g_assert_true(bitmap_is_inconsistent(e) && !bitmap_is_enabled(e));
    g_assert_cmpstr(bitmap_inconsistent_reason(e), ==, "Cannot load");
    done(list, &store);
}

static void nothing_is_marked_on_a_read_only_disk(void)
{
    Store store;
    BitmapList *list = new_list(&store);
    DirtyBitmap *e = bitmap_find(list, "e");

    bitmap_set_read_only(e, true);
    g_assert_true(bitmap_disable(e, NULL, NULL) && bitmap_enable(e, NULL, NULL));
    g_assert_cmpstr(store.marks->str, ==, "");
    bitmap_set_read_only(e, false);
    do_write(list);
    g_assert_cmpstr(store.marks->str, ==, "e.");
    done(list, &store);
}

static void resize_entry(void *opaque)
{
    g_assert_cmpint(bitmap_list_co_before_resize(opaque), ==, 0);
}

static void resizing_marks_all(void)
{
    Store store;
    BitmapList *list = new_list(&store);

    coroutine_run(resize_entry, list);
    g_assert_cmpstr(store.marks->str, ==, "bde.");
    done(list, &store);
}

static void what_was_stored_is_remembered(void)
{
    Store store;
    BitmapList *list = new_list(&store);
    DirtyBitmap *e = bitmap_find(list, "e");

    do_write(list);
    g_assert_null(bitmap_stored_bits(e));
    bitmap_set_stored(e); /* its own bit beside those that were never loaded */
    g_assert_false(bitmap_is_marked(e));
    g_assert_true(bitmap_load(e, NULL));
    g_assert_cmpuint(hbitmap_count(bitmap_stored_bits(e)), ==, 1);
    do_write(list);
    g_assert_cmpstr(store.marks->str, ==, "e.e.");
    g_assert_cmpuint(hbitmap_next_difference(bitmap_bits(e), bitmap_stored_bits(e), 0, 16), ==, 0);
    bitmap_set_stored(e);
    g_assert_true(hbitmap_equal(bitmap_bits(e), bitmap_stored_bits(e)));
    bitmap_list_resize(list, 2 * MIB);
    g_assert_cmpuint(hbitmap_size(bitmap_stored_bits(e)), ==, 32);
    done(list, &store);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    event_loop_main();
    g_test_add_func("/bitmap-stored/what-is-stored-is-listed", what_is_stored_is_listed);
    g_test_add_func("/bitmap-stored/counting-keeps-nothing", counting_keeps_nothing);
    g_test_add_func("/bitmap-stored/the-first-write-marks-what-records",
                    the_first_write_marks_what_records);
    g_test_add_func("/bitmap-stored/a-store-may-ask-for-it", a_store_may_ask_for_it);
    g_test_add_func("/bitmap-stored/verbs-mark-before-they-change", verbs_mark_before_they_change);
    g_test_add_func("/bitmap-stored/undo-keeps-what-is-stored", undo_keeps_what_is_stored);
    g_test_add_func("/bitmap-stored/nothing-is-marked-on-a-read-only-disk",
                    nothing_is_marked_on_a_read_only_disk);
    g_test_add_func("/bitmap-stored/resizing-marks-all", resizing_marks_all);
    g_test_add_func("/bitmap-stored/what-was-stored-is-remembered", what_was_stored_is_remembered);
    return g_test_run();
}
