/* SPDX-License-Identifier: MIT */
/* The `iothread` objects by id. */
#include "block/iothread.h"
#include "util/error.h"

static void assert_generic(GError **error, const char *message)
{
    g_assert_error(*error, MERINO_ERROR, MERINO_ERROR_GENERIC);
    g_assert_cmpstr((*error)->message, ==, message);
    g_clear_error(error);
}

static void test_life(void)
{
    GError *error = NULL;
    EventLoop *loop;

    g_assert_true(iothread_add("a", &error));
    g_assert_true(iothread_exists("a"));
    g_assert_false(iothread_add("a", &error));
    assert_generic(&error, "attempt to add duplicate property 'a' to object (type 'container')");
    g_assert_null(iothread_acquire("b", &error));
    assert_generic(&error, "iothread \"b\" not found");
    g_assert_false(iothread_delete("b", &error));
    assert_generic(&error, "object 'b' not found");

    loop = iothread_acquire("a", &error);
    g_assert_true(iothread_acquire("a", &error) == loop);
    iothread_release(loop);
    g_assert_false(iothread_delete("a", &error));
    assert_generic(&error, "object 'a' is in use, can not be deleted");
    iothread_release(loop);
    g_assert_true(iothread_delete("a", &error));
    g_assert_false(iothread_exists("a"));
}

static void test_query(void)
{
    IOThreadInfoList *list;

    g_assert_true(iothread_add("first", NULL) && iothread_add("second", NULL));
    list = iothread_query();
    g_assert_cmpuint(list->len, ==, 2);
    g_assert_cmpstr(list->items[0]->id, ==, "first");
    g_assert_cmpstr(list->items[1]->id, ==, "second");
    g_assert_cmpint(list->items[0]->thread_id, >, 0);
    g_assert_cmpint(list->items[0]->thread_id, !=, list->items[1]->thread_id);
    io_thread_info_list_free(list);
    g_assert_true(iothread_delete("first", NULL) && iothread_delete("second", NULL));
    list = iothread_query();
    g_assert_cmpuint(list->len, ==, 0);
    io_thread_info_list_free(list);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    event_loop_main();
    g_test_add_func("/iothread/life", test_life);
    g_test_add_func("/iothread/query", test_query);
    return g_test_run();
}
