/* SPDX-License-Identifier: MIT */
/*
 * Hurry: what block/core/hurry.c promises, by the numbers of its invariants, with the drivers in
 * which requests wait. Of the groups here a write of a block would have to wait for an hour.
 */
#include "block/blkdebug.h"
#include "block/drivers.h"
#include "block/throttle.h"
#include "io-harness.h"
#include "util/size.h"

#include <string.h>

#define RW    (PERM_CONSISTENT_READ | PERM_WRITE)
#define BLOCK 4096

#define DISK     "{'driver':'null-co','node-name':'%s','size':1048576}"
#define RAW      "{'driver':'raw','node-name':'%s','file':'%s'}"
#define THROTTLE "{'driver':'throttle','node-name':'%s','throttle-group':'%s','file':'%s'}"

/* Whose writes wait. */
static ThrottleGroup *add_group(const char *id)
{
    ThrottleConfig config;

    throttle_config_init(&config);
    config.rates[THROTTLE_BPS_WRITE].average = 1;
    g_assert_true(throttle_group_add(id, &config, NULL));
    return throttle_group_find(id, NULL);
}

/* The first write of a group would pass. */
static void fill_bucket(const char *node)
{
    BlockBackend *user = open_user(node_find(node), RW);
    HurrySection *section = hurry_begin_backend(user);

    g_assert_cmpint(do_fill(user, 0, BLOCK, 1), ==, 0);
    hurry_end(section);
    backend_free(user);
}

static void wait_waiting(ThrottleGroup *group, unsigned n)
{
    while (throttle_group_waiting(group) < n) {
        event_loop_poll(event_loop_main(), false);
        g_thread_yield();
    }
}

static void start_block(AsyncWrite *write, EventLoop *loop, BlockBackend *user)
{
    start_write(write, loop, user, 0, BLOCK, 7);
}

/* A disk, and raw over throttle over it. */
static BlockBackend *open_slow_disk(ThrottleGroup **ret_group)
{
    *ret_group = add_group("g");
    add_node(DISK, "d");
    add_node(THROTTLE, "t", "g", "d");
    fill_bucket("t");
    return open_user(add_node(RAW, "r", "t"), RW);
}

static void close_slow_disk(BlockBackend *user)
{
    backend_free(user);
    delete_node("r");
    delete_node("t");
    delete_node("d");
    g_assert_true(throttle_group_delete("g", NULL));
}

/* --- invariant 1: who is covered --- */

/* Two sections at a time, ended in either order: nobody waits until both are over. */
static void test_lasts_until_its_end(gconstpointer first_ends_first)
{
    EventLoop *loop = event_loop_new("a", NULL);
    ThrottleGroup *group;
    BlockBackend *user = open_slow_disk(&group);
    HurrySection *sections[2];
    AsyncWrite writes[4];

    for (int i = 0; i < 4; i++) {
        start_block(&writes[i], loop, user);
    }
    wait_waiting(group, 1); /* the others overlap it, or wait as well */
    sections[0] = hurry_begin_backend(user);
    sections[1] = hurry_begin_node(node_find("t"));
    for (int i = 0; i < 4; i++) {
        g_assert_cmpint(finish_write(&writes[i]), ==, 0);
    }
    g_assert_cmpint(do_fill(user, 0, BLOCK, 2), ==, 0);
    hurry_end(sections[!first_ends_first]);
    g_assert_cmpint(do_fill(user, 0, BLOCK, 3), ==, 0);
    hurry_end(sections[!!first_ends_first]);
    start_block(&writes[0], loop, user);
    wait_waiting(group, 1);
    drain_end(drain_begin_node(node_find("r")));
    g_assert_cmpint(finish_write(&writes[0]), ==, 0);
    close_slow_disk(user);
    event_loop_free(loop);
}

/* One request waits in one node after the other, and is suspended in a third. */
static void test_all_beneath(void)
{
    EventLoop *loop = event_loop_new("a", NULL);
    ThrottleGroup *group, *other = add_group("h");
    BlockBackend *user = open_slow_disk(&group), *top;
    HurrySection *section;
    AsyncWrite write;

    add_node("{'driver':'blkdebug','node-name':'b','image':'r'}");
    add_node(RAW, "s", "b");
    add_node(THROTTLE, "u", "h", "s");
    fill_bucket("u");
    top = open_user(node_find("u"), RW);
    g_assert_cmpint(blkdebug_break(node_find("b"), "write_aio", "A"), ==, 0);
    start_block(&write, loop, top);
    wait_waiting(other, 1);
    section = hurry_begin_backend(top);
    g_assert_cmpint(finish_write(&write), ==, 0);
    hurry_end(section);
    g_assert_cmpint(blkdebug_remove_break(node_find("b"), "A"), ==, 0); /* nobody met it */
    backend_free(top);
    delete_node("u");
    delete_node("s");
    delete_node("b");
    close_slow_disk(user);
    g_assert_true(throttle_group_delete("h", NULL));
    event_loop_free(loop);
}

static void test_suspended(void)
{
    EventLoop *loop = event_loop_new("a", NULL);
    HurrySection *section;
    BlockBackend *user;
    AsyncWrite write;

    add_node(DISK, "d");
    add_node("{'driver':'blkdebug','node-name':'b','image':'d'}");
    user = open_user(add_node(RAW, "r", "b"), RW);
    g_assert_cmpint(blkdebug_break(node_find("b"), "write_aio", "A"), ==, 0);
    g_assert_cmpint(blkdebug_break(node_find("b"), "write_aio", "B"), ==, 0);
    start_block(&write, loop, user);
    while (!blkdebug_is_suspended(node_find("b"), "A") ||
           !blkdebug_is_suspended(node_find("b"), "B")) {
        g_thread_yield();
    }
    section = hurry_begin_backend(user);
    g_assert_cmpint(finish_write(&write), ==, 0);
    hurry_end(section);
    backend_free(user);
    delete_node("r");
    delete_node("b");
    delete_node("d");
    event_loop_free(loop);
}

/* The graph changes beneath a section: what is put in place there is covered at once, by way of a
 * parent or of the section's backend; what was taken away stays covered. */
static void test_follows_the_graph(void)
{
    char filter[] = "{'driver':'throttle','node-name':'u','throttle-group':'h','file':'r'}";
    ThrottleGroup *group;
    BlockBackend *user = open_slow_disk(&group), *old;
    HurrySection *section;

    add_group("h");
    add_node(DISK, "e");
    add_node(THROTTLE, "v", "h", "e");
    fill_bucket("v");
    section = hurry_begin_backend(user);
    assert_text(reopen_error("{'driver':'raw','node-name':'r','file':'v'}"), NULL);
    g_assert_cmpint(do_fill(user, 0, BLOCK, 2), ==, 0);
    insert_filter(filter);
    g_assert_true(backend_node(user) == node_find("u"));
    g_assert_cmpint(do_fill(user, 0, BLOCK, 3), ==, 0);
    old = open_user(node_find("t"), RW);
    g_assert_cmpint(do_fill(old, 0, BLOCK, 4), ==, 0);
    backend_free(old);
    hurry_end(section);
    g_assert_true(node_remove_filter("u", NULL, NULL));
    close_slow_disk(user);
    delete_node("v");
    delete_node("e");
    g_assert_true(throttle_group_delete("h", NULL));
}

/* Other nodes are not covered, be they above. */
static void test_not_the_others(void)
{
    EventLoop *loop = event_loop_new("a", NULL);
    ThrottleGroup *group;
    BlockBackend *user = open_slow_disk(&group);
    HurrySection *section = hurry_begin_node(node_find("d"));
    AsyncWrite write;

    start_block(&write, loop, user);
    wait_waiting(group, 1);
    g_assert_cmpuint(throttle_group_waiting(group), ==, 1);
    hurry_end(section);
    section = hurry_begin_all();
    g_assert_cmpint(finish_write(&write), ==, 0);
    hurry_end(section);
    close_slow_disk(user);
    event_loop_free(loop);
}

/* Nodes that are opened while everything is hurried. */
static void test_everything(void)
{
    HurrySection *section = hurry_begin_all();
    ThrottleGroup *group;
    BlockBackend *user = open_slow_disk(&group);

    for (int i = 0; i < 3; i++) {
        g_assert_cmpint(do_fill(user, 0, BLOCK, i), ==, 0);
    }
    hurry_end(section);
    close_slow_disk(user);
}

/* --- invariant 4 --- */

/* Nodes may go while they are covered, and others come in their place. */
static void test_nodes_come_and_go(void)
{
    HurrySection *sections[2];
    ThrottleGroup *group;
    BlockBackend *user = open_slow_disk(&group);

    sections[0] = hurry_begin_all();
    sections[1] = hurry_begin_node(node_find("r"));
    close_slow_disk(user);
    user = open_slow_disk(&group);
    g_assert_cmpint(do_fill(user, 0, BLOCK, 1), ==, 0);
    hurry_end(sections[0]);
    hurry_end(sections[1]);
    close_slow_disk(user);
}

/* --- drain --- */

/* copy-before-write cannot be quiet before what it has staged gets through the throttle group of
 * its target; whichever of the two is told first. */
static void test_drain_of_what_waits_for_a_group(void)
{
    EventLoop *loop = event_loop_new("a", NULL);
    ThrottleGroup *group = add_group("g");
    BlockBackend *user;
    AsyncWrite write;

    for (int i = 0; i < 20; i++) {
        add_node(DISK, "d");
        add_node(DISK, "copy");
        add_node(THROTTLE, "t", "g", "copy");
        fill_bucket("t");
        add_node("{'driver':'copy-before-write','node-name':'c','file':'d','target':'t'%s}",
                 i % 2 ? ",'staging-size':1048576" : "");
        user = open_user(add_node(RAW, "r", "c"), RW);
        start_block(&write, loop, user);
        wait_waiting(group, 1);
        drain_end(drain_begin_node(node_find(i % 4 < 2 ? "d" : "r")));
        g_assert_cmpint(finish_write(&write), ==, 0);
        backend_free(user);
        delete_node("r");
        delete_node("c");
        delete_node("t");
        delete_node("copy");
        delete_node("d");
    }
    g_assert_true(throttle_group_delete("g", NULL));
    event_loop_free(loop);
}

/* --- many threads --- */

#define WORKERS  8
#define REQUESTS 40

static BlockBackend *shared_user;
static atomic_int at_work;

static void coroutine_fn write_blocks(int index, GRand *random)
{
    for (int i = 0; i < REQUESTS; i++) {
        char buf[BLOCK] = { 0 };
        IoVector vec;

        iov_init_buf(&vec, buf, sizeof(buf));
        g_assert_cmpint(backend_co_pwritev(shared_user, index * BLOCK, BLOCK, &vec, 0), ==, 0);
    }
    atomic_fetch_sub(&at_work, 1);
}

/* Sections begin and end while requests come, wait and go on other threads (for TSan). All would
 * take days. */
static void test_threads(void)
{
    WorkerGroup *workers;
    ThrottleGroup *group;

    shared_user = open_slow_disk(&group);
    add_node("{'driver':'blkdebug','node-name':'b','image':'d'}");
    atomic_store(&at_work, WORKERS);
    workers = start_workers(WORKERS, 4, write_blocks);
    while (atomic_load(&at_work)) {
        HurrySection *outer = hurry_begin_all();
        HurrySection *section = hurry_begin_backend(shared_user);

        hurry_end(outer);
        event_loop_poll(event_loop_main(), false);
        hurry_end(section);
        g_thread_yield();
    }
    finish_workers(workers);
    delete_node("b");
    close_slow_disk(shared_user);
}

int main(int argc, char **argv)
{
    io_harness_init(&argc, &argv, true);
    throttle_driver_register();
    blkdebug_driver_register();
    g_test_add_data_func("/hurry/lasts-until-its-end/stacked", NULL, test_lasts_until_its_end);
    g_test_add_data_func("/hurry/lasts-until-its-end/crossed", "", test_lasts_until_its_end);
    g_test_add_func("/hurry/all-beneath", test_all_beneath);
    g_test_add_func("/hurry/suspended", test_suspended);
    g_test_add_func("/hurry/follows-the-graph", test_follows_the_graph);
    g_test_add_func("/hurry/not-the-others", test_not_the_others);
    g_test_add_func("/hurry/everything", test_everything);
    g_test_add_func("/hurry/nodes-come-and-go", test_nodes_come_and_go);
    g_test_add_func("/hurry/drain", test_drain_of_what_waits_for_a_group);
    g_test_add_func("/hurry/threads", test_threads);
    return io_harness_run();
}
