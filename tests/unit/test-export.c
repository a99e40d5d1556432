/* SPDX-License-Identifier: MIT */
/* The registry of exports: ids, references, deletion, events. */
#include "nbd-harness.h"

#include "block/blkdebug.h"
#include "block/drivers.h"
#include "block/iothread.h"
#include "block/throttle.h"

#define DISK "{'driver':'null-co','node-name':'%s'}"

static void test_refusals(void)
{
    add_node(DISK, "d");
    add_node("{'driver':'null-co','node-name':'ro','read-only':true}");
    assert_text(add_export_error("{'type':'nbd','id':'e','node-name':'d'}"),
                "NBD server not running");
    start_server(0, 0);
    assert_text(add_export_error("{'type':'nbd','id':'1e','node-name':'d'}"),
                "Invalid block export id");
    assert_text(add_export_error("{'type':'nbd','id':'','node-name':'d'}"),
                "Invalid block export id");
    assert_text(add_export_error("{'type':'nbd','id':'a b','node-name':'d'}"),
                "Invalid block export id");
    assert_text(add_export_error("{'type':'nbd','id':'e','node-name':'nope'}"),
                "Cannot find device='' nor node-name='nope'");
    assert_text(add_export_error("{'type':'nbd','id':'e','node-name':'ro','writable':true}"),
                "Cannot export read-only node as writable");
    assert_text(add_export_error("{'type':'nbd','id':'e','node-name':'d','iothread':'nope'}"),
                "iothread \"nope\" not found");
    add_export("{'type':'nbd','id':'e','node-name':'d'}");
    assert_text(add_export_error("{'type':'nbd','id':'e','node-name':'d','name':'x'}"),
                "Block export id 'e' is already in use");
    assert_text(add_export_error("{'type':'nbd','id':'f','node-name':'d'}"),
                "NBD server already has export named 'd'");
    assert_text(delete_export_error("nope", BLOCK_EXPORT_REMOVE_MODE_SAFE),
                "Export 'nope' is not found");
    g_assert_null(delete_export_error("e", BLOCK_EXPORT_REMOVE_MODE_SAFE));
    assert_text(take_events(), "BLOCK_EXPORT_DELETED e");
    stop_server();
    delete_node("d");
    delete_node("ro");
}

static void test_long_names(void)
{
    g_autofree char *longest = g_strnfill(NBD_MAX_STRING, 'x');
    g_autofree char *longer = g_strnfill(NBD_MAX_STRING + 1, 'x');
    g_autofree char *name_words = g_strdup_printf("export name '%s' too long", longer);
    g_autofree char *text_words = g_strdup_printf("description '%s' too long", longer);

    add_node(DISK, "d");
    start_server(0, 0);
    assert_text(add_export_error("{'type':'nbd','id':'e','node-name':'d','name':'%s'}", longer),
                name_words);
    assert_text(
        add_export_error("{'type':'nbd','id':'e','node-name':'d','description':'%s'}", longer),
        text_words);
    add_export("{'type':'nbd','id':'e','node-name':'d','name':'%s','description':'%s'}", longest,
               longest);
    stop_server();
    delete_node("d");
}

static void test_newest_first(void)
{
    g_autoptr(BlockExportInfoList) list = NULL;

    add_node(DISK, "d");
    start_server(0, 0);
    for (int i = 0; i < 3; i++) {
        add_export("{'type':'nbd','id':'e%d','node-name':'d','name':'n%d'}", i, i);
    }
    g_assert_null(delete_export_error("e1", BLOCK_EXPORT_REMOVE_MODE_HARD));
    list = export_query();
    g_assert_cmpuint(list->len, ==, 2);
    g_assert_cmpstr(list->items[0]->id, ==, "e2");
    g_assert_cmpstr(list->items[1]->id, ==, "e0");
    g_assert_cmpstr(list->items[0]->node_name, ==, "d");
    g_assert_false(list->items[0]->shutting_down);
    stop_server();
    delete_node("d");
}

static void test_node_is_in_use_and_keeps_its_size(void)
{
    g_autoptr(GError) error = NULL;
    BlockNode *disk = add_node(DISK, "d");

    start_server(0, 0);
    add_export("{'type':'nbd','id':'e','node-name':'d'}");
    g_assert_false(node_delete("d", &error));
    g_assert_cmpstr(error->message, ==, "Node d is in use");
    g_clear_error(&error);
    g_assert_false(node_resize(disk, 4096, &error));
    stop_server();
    delete_node("d");
}

/* "safe" waits for nobody; "hard" is over when the client has gone. */
static void test_safe_and_hard(void)
{
    Client client;
    BlockExport *exp;

    add_node(DISK, "d");
    start_server(0, 0);
    exp = add_export("{'type':'nbd','id':'e','node-name':'d'}");
    client_open(&client, false, false);
    client_go(&client, "d", NULL);
    assert_text(delete_export_error("e", BLOCK_EXPORT_REMOVE_MODE_SAFE), "export 'e' still in use");
    g_assert_true(exp->user_owned);
    g_assert_null(delete_export_error("e", BLOCK_EXPORT_REMOVE_MODE_HARD));
    assert_text(delete_export_error("e", BLOCK_EXPORT_REMOVE_MODE_HARD),
                "Export 'e' is already shutting down");
    assert_text(take_events(), "");
    g_assert_true(at_end(&client));
    run_main_until(!export_next(NULL));
    assert_text(take_events(), "BLOCK_EXPORT_DELETED e");
    client_close(&client);
    stop_server();
    delete_node("d");
}

/* An export that shuts down has given its NBD name away, but not its id. */
static void test_name_is_free_at_once(void)
{
    Client client;

    add_node(DISK, "d");
    start_server(0, 0);
    add_export("{'type':'nbd','id':'e','node-name':'d'}");
    client_open(&client, false, false);
    client_go(&client, "d", NULL);
    g_assert_null(delete_export_error("e", BLOCK_EXPORT_REMOVE_MODE_HARD));
    assert_text(add_export_error("{'type':'nbd','id':'e','node-name':'d'}"),
                "Block export id 'e' is already in use");
    add_export("{'type':'nbd','id':'f','node-name':'d'}");
    stop_server();
    client_close(&client);
    delete_node("d");
}

/* The last reference may go while control work polls the loop: nothing is deleted under it. */
static void test_no_deletion_inside_a_poll(void)
{
    BlockExport *exp;
    DrainSection *section;
    BlockNode *disk = add_node(DISK, "d");

    start_server(0, 0);
    exp = add_export("{'type':'nbd','id':'e','node-name':'d'}");
    export_ref(exp);
    g_assert_null(delete_export_error("e", BLOCK_EXPORT_REMOVE_MODE_HARD));
    section = drain_begin_node(disk);
    export_unref(exp);
    while (event_loop_poll(event_loop_main(), false)) {
    }
    g_assert_true(export_find("e") == exp);
    drain_end(section);
    run_main_until(!export_find("e"));
    assert_text(take_events(), "BLOCK_EXPORT_DELETED e");
    stop_server();
    delete_node("d");
}

static void unref_late(void *opaque)
{
    export_unref(opaque);
}

/* Closing waits for references that other threads hold. */
static void test_close_all_waits(void)
{
    EventLoop *loop = iothread_acquire("io", NULL);
    BlockExport *exp;

    add_node(DISK, "d");
    start_server(0, 0);
    exp = add_export("{'type':'nbd','id':'e','node-name':'d'}");
    export_ref(exp);
    event_loop_call(loop, unref_late, exp);
    export_close_all_type(BLOCK_EXPORT_TYPE__MAX);
    g_assert_null(export_next(NULL));
    assert_text(take_events(), "BLOCK_EXPORT_DELETED e");
    stop_server();
    iothread_release(loop);
    delete_node("d");
}

/* --- requests that would wait for hours --- */

#define REQUESTS 8
#define BLOCK    4096

static ThrottleGroup *slow;

/* An export of raw over blkdebug over throttle over a disk in memory. */
static void set_up_slow(gconstpointer iothread, unsigned max_requests)
{
    NbdServerOptions options = { .has_max_requests = true, .max_requests = max_requests };
    ThrottleConfig config;

    throttle_config_init(&config);
    config.rates[THROTTLE_BPS_WRITE].average = 1;
    g_assert_true(throttle_group_add("g", &config, NULL));
    slow = throttle_group_find("g", NULL);
    add_node("{'driver':'null-co','node-name':'d','size':1048576}");
    add_node("{'driver':'throttle','node-name':'t','throttle-group':'g','file':'d'}");
    add_node("{'driver':'blkdebug','node-name':'b','image':'t'}");
    add_node("{'driver':'raw','node-name':'r','file':'b'}");
    start_server_with(&options);
    add_export("{'type':'nbd','id':'e','node-name':'r','writable':true%s}",
               iothread ? ",'iothread':'io'" : "");
}

static void tear_down_slow(const char *events)
{
    assert_text(take_events(), events);
    delete_node("r");
    delete_node("b");
    delete_node("t");
    delete_node("d");
    g_assert_true(throttle_group_delete("g", NULL));
}

static void send_writes(Client *client, unsigned n)
{
    static const char payload[BLOCK] = { 1 };

    for (unsigned i = 0; i < n; i++) {
        client_request(client, NBD_CMD_WRITE, 0, i, i * BLOCK, BLOCK);
        client_send(client, payload, BLOCK);
    }
}

static void connect_and_write(Client *client)
{
    client_open(client, false, false);
    client_go(client, "r", NULL);
    send_writes(client, REQUESTS);
    /* The first one passes. */
    run_main_until(throttle_group_waiting(slow) == REQUESTS - 1);
}

static void assert_all_written(void)
{
    for (unsigned i = 0; i < REQUESTS; i++) {
        g_assert_cmpint(memory_disk(node_find("d"))->data[i * BLOCK], ==, 1);
    }
}

/* What had begun is done, and the limits hold again. */
static void test_hard_hurries(gconstpointer iothread)
{
    Client client, other;

    set_up_slow(iothread, 128);
    add_export("{'type':'nbd','id':'f','node-name':'t','name':'f','writable':true}");
    connect_and_write(&client);
    g_assert_null(delete_export_error("e", BLOCK_EXPORT_REMOVE_MODE_HARD));
    run_main_until(!export_find("e"));
    assert_all_written();
    g_assert_cmpuint(node_find("t")->hurry_depth, ==, 0);
    client_open(&other, false, false);
    client_go(&other, "f", NULL);
    send_writes(&other, 1);
    run_main_until(throttle_group_waiting(slow) == 1);
    assert_text(delete_export_error("f", BLOCK_EXPORT_REMOVE_MODE_SAFE), "export 'f' still in use");
    g_assert_null(delete_export_error("f", BLOCK_EXPORT_REMOVE_MODE_HARD));
    run_main_until(!export_find("f"));
    g_assert_true(nbd_server_stop(NULL));
    client_close(&client);
    client_close(&other);
    tear_down_slow("BLOCK_EXPORT_DELETED e BLOCK_EXPORT_DELETED f");
}

static void test_stop_hurries(gconstpointer iothread)
{
    Client client;

    set_up_slow(iothread, 128);
    connect_and_write(&client);
    g_assert_true(nbd_server_stop(NULL));
    assert_all_written();
    client_close(&client);
    tear_down_slow("BLOCK_EXPORT_DELETED e");
}

static void test_close_all_hurries(gconstpointer iothread)
{
    Client client;

    set_up_slow(iothread, 128);
    connect_and_write(&client);
    export_close_all_type(BLOCK_EXPORT_TYPE__MAX);
    assert_all_written();
    g_assert_true(nbd_server_stop(NULL));
    client_close(&client);
    tear_down_slow("BLOCK_EXPORT_DELETED e");
}

/* A client that has left by itself is no reason to exceed limits, until the export is to go. */
static void test_gone_client_does_not_hurry(gconstpointer iothread)
{
    Client client;

    set_up_slow(iothread, 128);
    connect_and_write(&client);
    client_close(&client);
    for (int i = 0; i < 100; i++) {
        run_main_once();
    }
    g_assert_cmpuint(throttle_group_waiting(slow), ==, REQUESTS - 1);
    assert_text(delete_export_error("e", BLOCK_EXPORT_REMOVE_MODE_SAFE), "export 'e' still in use");
    g_assert_true(nbd_server_stop(NULL));
    assert_all_written();
    tear_down_slow("BLOCK_EXPORT_DELETED e");
}

static void test_suspended_requests_go_on(gconstpointer iothread)
{
    BlockNode *debug;
    Client client;

    set_up_slow(iothread, 128);
    debug = node_find("b");
    g_assert_cmpint(blkdebug_break(debug, "write_aio", "A"), ==, 0);
    g_assert_cmpint(blkdebug_break(debug, "write_aio", "B"), ==, 0);
    client_open(&client, false, false);
    client_go(&client, "r", NULL);
    send_writes(&client, REQUESTS);
    run_main_until(throttle_group_waiting(slow) == REQUESTS - 2);
    g_assert_true(blkdebug_is_suspended(debug, "A") && blkdebug_is_suspended(debug, "B"));
    g_assert_null(delete_export_error("e", BLOCK_EXPORT_REMOVE_MODE_HARD));
    run_main_until(!export_find("e"));
    assert_all_written();
    g_assert_true(nbd_server_stop(NULL));
    client_close(&client);
    tear_down_slow("BLOCK_EXPORT_DELETED e");
}

/* What was received and not begun, be it for want of room, never is. */
static void test_nothing_begins_after_shutdown(gconstpointer iothread)
{
    MemoryDisk *memory;
    Client client;

    set_up_slow(iothread, 2);
    memory = memory_disk(node_find("d"));
    memory_disk_hold(memory, true, false);
    client_open(&client, false, false);
    client_go(&client, "r", NULL);
    send_writes(&client, REQUESTS);
    run_main_until(throttle_group_waiting(slow) == 1 && atomic_load(&memory->writes) == 1);
    g_assert_null(delete_export_error("e", BLOCK_EXPORT_REMOVE_MODE_HARD));
    run_main_until(atomic_load(&memory->writes) == 2);
    memory_disk_hold(memory, false, false);
    run_main_until(!export_find("e"));
    g_assert_cmpint(atomic_load(&memory->writes), ==, 2);
    g_assert_true(nbd_server_stop(NULL));
    client_close(&client);
    tear_down_slow("BLOCK_EXPORT_DELETED e");
}

static void test_iothread_is_held(void)
{
    g_autoptr(GError) error = NULL;

    add_node(DISK, "d");
    start_server(0, 0);
    add_export("{'type':'nbd','id':'e','node-name':'d','iothread':'io','fixed-iothread':true}");
    g_assert_false(iothread_delete("io", &error));
    stop_server();
    delete_node("d");
}

static void add_on_both_loops(const char *name, GTestDataFunc fn)
{
    g_autofree char *on_main = g_strdup_printf("/export/%s/main", name);
    g_autofree char *on_thread = g_strdup_printf("/export/%s/iothread", name);

    g_test_add_data_func(on_main, NULL, fn);
    g_test_add_data_func(on_thread, "", fn);
}

int main(int argc, char **argv)
{
    nbd_harness_init(&argc, &argv);
    throttle_driver_register();
    blkdebug_driver_register();
    g_test_add_func("/export/refusals", test_refusals);
    g_test_add_func("/export/long-names", test_long_names);
    g_test_add_func("/export/newest-first", test_newest_first);
    g_test_add_func("/export/node-in-use", test_node_is_in_use_and_keeps_its_size);
    g_test_add_func("/export/safe-and-hard", test_safe_and_hard);
    g_test_add_func("/export/name-is-free-at-once", test_name_is_free_at_once);
    g_test_add_func("/export/no-deletion-inside-a-poll", test_no_deletion_inside_a_poll);
    g_test_add_func("/export/close-all-waits", test_close_all_waits);
    g_test_add_func("/export/iothread-is-held", test_iothread_is_held);
    add_on_both_loops("hurry/hard", test_hard_hurries);
    add_on_both_loops("hurry/server-stop", test_stop_hurries);
    add_on_both_loops("hurry/close-all", test_close_all_hurries);
    add_on_both_loops("hurry/not-for-a-gone-client", test_gone_client_does_not_hurry);
    add_on_both_loops("hurry/suspended", test_suspended_requests_go_on);
    add_on_both_loops("nothing-begins-after-shutdown", test_nothing_begins_after_shutdown);
    return nbd_harness_run();
}
