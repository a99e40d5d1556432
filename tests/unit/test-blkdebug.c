/* SPDX-License-Identifier: MIT */
/* blkdebug: its rules, breakpoints, limits and permissions, over a disk in memory. */
#include "block/blkdebug.h"
#include "block/drivers.h"
#include "io-harness.h"
#include "util/size.h"

#include <errno.h>
#include <string.h>

#define RW (PERM_CONSISTENT_READ | PERM_WRITE)

/* A disk of 1 MiB in memory, `b` over it with these options, and raw over that, which tells b of
 * reads and writes. */
static BlockBackend *open_disk(const char *options)
{
    add_node("{'driver':'null-co','node-name':'n','size':1048576,'discard':'unmap'}");
    add_node("{'driver':'blkdebug','node-name':'b','image':'n','discard':'unmap'%s%s}",
             options[0] ? "," : "", options);
    return open_user(add_node("{'driver':'raw','node-name':'r','file':'b','discard':'unmap'}"), RW);
}

static void close_disk(BlockBackend *user)
{
    backend_free(user);
    delete_node("r");
    delete_node("b");
    delete_node("n");
}

static int read_at(BlockBackend *user, int64_t offset, int64_t bytes)
{
    g_autofree char *buf = g_malloc(bytes);

    return do_read(user, offset, bytes, buf);
}

/* --- errors --- */

/* In force from its event on, for every request. */
static void test_stays_in_force(void)
{
    BlockBackend *user = open_disk("'inject-error':[{'event':'write_aio'}]");

    g_assert_cmpint(read_at(user, 0, 512), ==, 0);
    g_assert_cmpint(do_flush(user), ==, 0);
    g_assert_cmpint(do_fill(user, 0, 512, 1), ==, -EIO);
    g_assert_cmpint(read_at(user, 0, 512), ==, -EIO);
    g_assert_cmpint(do_zero(user, 0, 512, 0), ==, -EIO);
    g_assert_cmpint(do_discard(user, 0, 4096), ==, -EIO);
    g_assert_cmpint(do_flush(user), ==, -EIO);
    close_disk(user);
}

static void test_once(void)
{
    BlockBackend *user = open_disk("'inject-error':[{'event':'read_aio','once':true,'errno':28,"
                                   "'immediately':true}]");

    g_assert_cmpint(read_at(user, 0, 512), ==, -ENOSPC);
    g_assert_cmpint(read_at(user, 0, 512), ==, 0);
    close_disk(user);
}

static void test_none(void)
{
    BlockBackend *user = open_disk("'inject-error':[{'event':'none','iotype':'discard'},"
                                   "{'event':'none','iotype':'block-status','errno':1}]");
    BlockStatus status;

    g_assert_cmpint(read_at(user, 0, 512), ==, 0);
    g_assert_cmpint(do_fill(user, 0, 512, 1), ==, 0);
    g_assert_cmpint(do_discard(user, 0, 4096), ==, -EIO);
    g_assert_cmpint(do_status(user, 0, 4096, &status), ==, -EPERM);
    close_disk(user);
}

static void test_sector(void)
{
    BlockBackend *user = open_disk("'inject-error':[{'event':'read_aio','sector':3}]");

    g_assert_cmpint(read_at(user, 0, 1536), ==, 0);
    g_assert_cmpint(read_at(user, 2048, 512), ==, 0);
    g_assert_cmpint(read_at(user, 1024, 1024), ==, -EIO);
    g_assert_cmpint(read_at(user, 1536, 1), ==, -EIO);
    g_assert_cmpint(read_at(user, 1537, 100), ==, 0);
    close_disk(user);
}

/* An event's errors take the place of another's; of two that fit, the first one made is returned.
 */
static void test_replaced(void)
{
    BlockBackend *user = open_disk("'inject-error':[{'event':'read_aio','errno':2},"
                                   "{'event':'read_aio','errno':3},"
                                   "{'event':'write_aio','errno':4,'iotype':'write'}]");

    g_assert_cmpint(read_at(user, 0, 512), ==, -2);
    g_assert_cmpint(do_fill(user, 0, 512, 1), ==, -4);
    g_assert_cmpint(do_flush(user), ==, 0);
    close_disk(user);
}

static void test_states(void)
{
    BlockBackend *user = open_disk("'inject-error':[{'event':'read_aio','state':3,'once':true}],"
                                   "'set-state':[{'event':'flush_to_disk','state':1,'new_state':2},"
                                   "{'event':'read_aio','state':2,'new_state':3}]");

    g_assert_cmpint(read_at(user, 0, 512), ==, 0);
    g_assert_cmpint(do_fill(user, 0, 512, 1), ==, 0);
    g_assert_cmpint(do_flush(user), ==, 0);
    g_assert_cmpint(read_at(user, 0, 512), ==, 0); /* to state 3; the rule saw 2 */
    g_assert_cmpint(read_at(user, 0, 512), ==, -EIO);
    g_assert_cmpint(read_at(user, 0, 512), ==, 0);
    close_disk(user);
}

/* Which events come, told by one-time errors for writes. */
static int write_meets(const char *event, int64_t offset, int64_t bytes)
{
    g_autofree char *options =
        g_strdup_printf("'align':512,'inject-error':[{'event':'%s','once':true}]", event);
    BlockBackend *user = open_disk(options);
    int ret = do_fill(user, offset, bytes, 1);

    close_disk(user);
    return ret;
}

static void test_events_of_writes(void)
{
    g_assert_cmpint(write_meets("pwritev", 0, 512), ==, -EIO);
    g_assert_cmpint(write_meets("pwritev_rmw_head", 0, 512), ==, 0);
    g_assert_cmpint(write_meets("pwritev_rmw_head", 3, 4), ==, -EIO);
    g_assert_cmpint(write_meets("pwritev_rmw_head", 0, 4), ==, 0);
    g_assert_cmpint(write_meets("pwritev_rmw_after_head", 3, 1000), ==, -EIO);
    g_assert_cmpint(write_meets("pwritev_rmw_tail", 0, 4), ==, -EIO);
    g_assert_cmpint(write_meets("pwritev_rmw_tail", 3, 509), ==, 0);
    g_assert_cmpint(write_meets("pwritev_rmw_after_tail", 3, 1000), ==, -EIO);
    g_assert_cmpint(write_meets("pwritev_done", 0, 512), ==, 0);
}

static void test_flush_events(void)
{
    BlockBackend *user = open_disk("'inject-error':[{'event':'flush_to_disk'}]");

    g_assert_cmpint(do_flush(user), ==, 0); /* nothing to flush */
    g_assert_cmpint(do_fill(user, 0, 512, 1), ==, 0);
    g_assert_cmpint(do_flush(user), ==, -EIO);
    g_assert_cmpint(do_flush(user), ==, -EIO);
    close_disk(user);
}

/* A durable write is a write and a flush, which has its events. */
static void test_durable_write(void)
{
    BlockBackend *user = open_disk("'inject-error':[{'event':'flush_to_disk','once':true}]");
    char buf[512] = { 0 };

    g_assert_cmpint(do_write(user, 0, 512, buf, REQ_FUA), ==, -EIO);
    g_assert_cmpint(do_write(user, 0, 512, buf, REQ_FUA), ==, 0);
    close_disk(user);
}

/* --- breakpoints --- */

static void wait_suspended(BlockNode *node, const char *tag)
{
    while (!blkdebug_is_suspended(node, tag)) {
        event_loop_poll(event_loop_main(), false);
        g_thread_yield();
    }
}

static void test_break(void)
{
    BlockBackend *user = open_disk("");
    BlockNode *node = node_find("r");
    AsyncWrite write;

    g_assert_cmpint(blkdebug_break(node_find("n"), "write_aio", "A"), ==, -ENOTSUP);
    g_assert_cmpint(blkdebug_break(node, "nope", "A"), ==, -ENOENT);
    g_assert_cmpint(blkdebug_resume(node, "A"), ==, -ENOENT);
    g_assert_cmpint(blkdebug_remove_break(node, "A"), ==, -ENOENT);
    g_assert_cmpint(blkdebug_break(node, "write_aio", "A"), ==, 0);
    g_assert_cmpint(blkdebug_break(node, "write_aio", "B"), ==, 0);
    start_write(&write, event_loop_main(), user, 0, 512, 7);
    wait_suspended(node, "A");
    g_assert_true(blkdebug_is_suspended(node, "B"));
    assert_filled(user, 0, 512, 0);
    g_assert_cmpint(do_fill(user, 512, 512, 1), ==, 0); /* both were used up */
    g_assert_cmpint(blkdebug_resume(node, "A"), ==, 0);
    while (event_loop_poll(event_loop_main(), false)) {
    }
    g_assert_false(atomic_load(&write.done));
    g_assert_cmpint(blkdebug_resume(node, "B"), ==, 0);
    g_assert_cmpint(finish_write(&write), ==, 0);
    assert_filled(user, 0, 512, 7);
    close_disk(user);
}

static void test_remove_break(void)
{
    BlockBackend *user = open_disk("");
    BlockNode *node = node_find("b");
    EventLoop *loop = event_loop_new("a", NULL);
    AsyncWrite writes[2];

    g_assert_cmpint(blkdebug_break(node, "write_aio", "A"), ==, 0);
    g_assert_cmpint(blkdebug_remove_break(node, "A"), ==, 0);
    g_assert_cmpint(do_fill(user, 0, 512, 1), ==, 0);
    for (int i = 0; i < 2; i++) {
        g_assert_cmpint(blkdebug_break(node, "pwritev", i ? "B" : "A"), ==, 0);
        start_write(&writes[i], loop, user, i * 512, 512, 7);
        wait_suspended(node, i ? "B" : "A");
    }
    g_assert_cmpint(blkdebug_remove_break(node, "B"), ==, 0);
    g_assert_cmpint(finish_write(&writes[1]), ==, 0);
    g_assert_true(blkdebug_is_suspended(node, "A"));
    g_assert_cmpint(blkdebug_remove_break(node, "A"), ==, 0);
    g_assert_cmpint(finish_write(&writes[0]), ==, 0);
    event_loop_free(loop);
    close_disk(user);
}

/* A drain lets go what is suspended; a breakpoint that nobody met stays. */
static void test_drain(void)
{
    BlockBackend *user = open_disk("");
    BlockNode *node = node_find("b");
    EventLoop *loop = event_loop_new("a", NULL);
    AsyncWrite write;

    for (int i = 0; i < 2; i++) {
        g_assert_cmpint(blkdebug_break(node, "write_aio", "A"), ==, 0);
        start_write(&write, loop, user, 0, 512, 7);
        wait_suspended(node, "A");
        if (i == 0) {
            g_assert_cmpint(blkdebug_break(node, "read_aio", "B"), ==, 0);
        }
        drain_end(drain_begin_node(node_find("n")));
        g_assert_cmpint(finish_write(&write), ==, 0);
    }
    g_assert_cmpint(blkdebug_remove_break(node, "B"), ==, 0);
    event_loop_free(loop);
    close_disk(user);
}

/* --- limits --- */

static void test_limits(void)
{
    BlockBackend *user = open_disk("'align':512,'max-transfer':4096,'opt-write-zero':1024,"
                                   "'max-write-zero':2048,'opt-discard':1024,'max-discard':2048");
    MemoryDisk *disk = memory_disk(node_find("n"));

    g_assert_cmpint(do_fill(user, 0, 16384, 5), ==, 0);
    g_assert_cmpint(disk->writes, ==, 4);
    g_assert_cmpint(do_zero(user, 1024, 4096, 0), ==, 0);
    g_assert_cmpint(disk->zeroes, ==, 2);
    g_assert_cmpint(do_zero(user, 512, 1024, 0), ==, 0); /* not aligned: written */
    g_assert_cmpint(disk->zeroes, ==, 2);
    assert_filled(user, 0, 512, 5);
    assert_filled(user, 512, 4608, 0);
    assert_filled(user, 5120, 11264, 5);
    g_assert_cmpint(do_discard(user, 512, 4096), ==, 0);
    g_assert_cmpint(disk->discards, ==, 2);
    close_disk(user);
}

/* What is beneath may know smaller parts than the blocks that requests have here. */
static void test_block_status_within_blocks(void)
{
    BlockBackend *user = open_disk("'align':65536");
    MemoryDisk *disk = memory_disk(node_find("n"));
    BlockStatus status;

    disk->tells_zeroes = true;
    disk->data[2 * MEMORY_DISK_BLOCK] = 1;
    g_assert_cmpint(do_status(user, 0, MiB, &status), ==, 0);
    g_assert_true(status.flags & BLOCK_STATUS_ZERO);
    g_assert_cmpint(status.bytes, ==, 2 * MEMORY_DISK_BLOCK);
    for (int64_t at = 2 * MEMORY_DISK_BLOCK; at < 3 * MEMORY_DISK_BLOCK; at += 1000) {
        g_assert_cmpint(do_status(user, at, MiB - at, &status), ==, 0);
        g_assert_true(status.flags & BLOCK_STATUS_DATA);
        g_assert_cmpint(status.bytes, ==, 3 * MEMORY_DISK_BLOCK - at);
        g_assert_cmpint(status.map, ==, at);
    }
    g_assert_cmpint(do_status(user, MiB - 1, 1, &status), ==, 0);
    g_assert_true(status.flags & BLOCK_STATUS_ZERO);
    close_disk(user);
}

static char *error_with(const char *options)
{
    return add_node_error("{'driver':'blkdebug','node-name':'b','image':{'driver':'null-co',"
                          "'size':1048576},%s}",
                          options);
}

static void test_bad_limits(void)
{
    assert_text(error_with("'align':3"), "Cannot meet constraints with align 3");
    assert_text(error_with("'align':2147483648"), "Cannot meet constraints with align 2147483648");
    assert_text(error_with("'align':-1"),
                "Parameter 'align' expects a non-negative number below 2^64");
    assert_text(error_with("'align':4096,'max-transfer':6144"),
                "Cannot meet constraints with max-transfer 6144");
    assert_text(error_with("'opt-write-zero':4096,'max-write-zero':512"),
                "Cannot meet constraints with max-write-zero 512");
    assert_text(error_with("'align':4096,'opt-discard':512"),
                "Cannot meet constraints with opt-discard 512");
}

/* --- the file --- */

static char *config_error(const char *text)
{
    g_autofree char *path = temp_path("rules");
    g_autofree char *options = g_strdup_printf("'config':'%s'", path);

    g_assert_true(g_file_set_contents(path, text, -1, NULL));
    return error_with(options);
}

static void test_config(void)
{
    g_autofree char *path = temp_path("rules");
    g_autofree char *options = g_strdup_printf("'config':'%s','inject-error':[{'event':'read_aio',"
                                               "'errno':3}]",
                                               path);
    const char *text = "# one\n\n[inject-error]\nevent = \"read_aio\"\nerrno = \"7\"\n"
                       "once = \"on\"\nimmediately = \"off\"\nsector = \"2\"\niotype = \"read\"\n"
                       "[set-state \"name\"]\nevent = \"write_aio\"\nstate = \"1\"\n"
                       "new_state = \"2\"\n";
    BlockBackend *user;

    g_assert_true(g_file_set_contents(path, text, -1, NULL));
    user = open_disk(options);
    g_assert_cmpint(read_at(user, 1024, 512), ==, -7);
    g_assert_cmpint(read_at(user, 1024, 512), ==, -3);
    close_disk(user);
}

static void test_bad_config(void)
{
    assert_text(error_with("'config':'/nonexistent'"),
                "Could not read blkdebug config file: No such file or directory");
    assert_text(config_error("[foo]\n"), "There is no option group 'foo'");
    assert_text(config_error("event = \"read_aio\"\n"), "no group defined");
    assert_text(config_error("[set-state]\nstate = \"1\"\n"), "Missing event name for rule");
    assert_text(config_error("[set-state]\nonce = \"on\"\n"), "Invalid parameter 'once'");
    assert_text(config_error("[inject-error]\nevent = \"nope\"\n"),
                "invalid parameter value: nope");
    assert_text(config_error("[inject-error]\nerrno = \"x\"\n"),
                "Parameter 'errno' expects a number");
    assert_text(config_error("[inject-error]\nonce = \"x\"\n"),
                "Parameter 'once' expects 'on' or 'off'");
    assert_text(config_error("[inject-error]\n  \n"), "parse error");
}

/* --- permissions, names, reopening --- */

static void test_perms(void)
{
    BlockNode *node = add_node("{'driver':'null-co','node-name':'n','size':1048576}");

    add_node("{'driver':'blkdebug','node-name':'b','image':'n','take-child-perms':['write'],"
             "'unshare-child-perms':['resize']}");
    g_assert_cmpuint(node->perm, ==, PERM_WRITE);
    g_assert_cmpuint(node->shared, ==, PERM_ALL & ~PERM_RESIZE);
    assert_text(add_node_error("{'driver':'blkdebug','node-name':'c','image':'n',"
                               "'unshare-child-perms':['write']}"),
                "Permission conflict on node 'n': permissions 'write' are both required by node "
                "'b' (uses node 'n' as 'image' child) and unshared by node 'c' (uses node 'n' as "
                "'image' child).");
    delete_node("b");
    delete_node("n");
}

static void test_reopen(void)
{
    close_disk(open_disk("'align':512"));
    add_node("{'driver':'blkdebug','node-name':'b','inject-error':[{'event':'read_aio'}],"
             "'image':{'driver':'null-co','node-name':'n','size':1048576}}");
    assert_text(reopen_error("{'driver':'blkdebug','node-name':'b','image':'n'}"),
                "Option 'inject-error.0.event' cannot be reset to its default value");
    assert_text(reopen_error("{'driver':'blkdebug','node-name':'b','image':'n',"
                             "'inject-error':[{'event':'read_aio'}],'align':512}"),
                "Cannot change the option 'align'");
    assert_text(reopen_error("{'driver':'blkdebug','node-name':'b','image':'n',"
                             "'inject-error':[{'event':'read_aio'}],'read-only':true}"),
                NULL);
    delete_node("b");
}

/* --- many threads --- */

static BlockBackend *shared_user;
static atomic_int failures;

static void coroutine_fn hammer(int index, GRand *random)
{
    for (int i = 0; i < 200; i++) {
        char buf[512] = { 0 };
        IoVector vec;

        iov_init_buf(&vec, buf, sizeof(buf));
        if (backend_co_pwritev(shared_user, index * 512, 512, &vec, 0) < 0) {
            atomic_fetch_add(&failures, 1);
        }
    }
}

/* Each one-time error fails one request. */
static void test_threads(void)
{
    GString *options = g_string_new("'inject-error':[");

    for (int i = 0; i < 50; i++) {
        g_string_append_printf(options, "%s{'event':'none','once':true}", i ? "," : "");
    }
    g_string_append(options, "]");
    shared_user = open_disk(options->str);
    run_workers(8, 4, hammer);
    g_assert_cmpint(failures, ==, 50);
    close_disk(shared_user);
    g_string_free(options, true);
}

int main(int argc, char **argv)
{
    io_harness_init(&argc, &argv, true);
    blkdebug_driver_register();
    g_test_add_func("/blkdebug/stays-in-force", test_stays_in_force);
    g_test_add_func("/blkdebug/once", test_once);
    g_test_add_func("/blkdebug/none", test_none);
    g_test_add_func("/blkdebug/sector", test_sector);
    g_test_add_func("/blkdebug/replaced", test_replaced);
    g_test_add_func("/blkdebug/states", test_states);
    g_test_add_func("/blkdebug/events-of-writes", test_events_of_writes);
    g_test_add_func("/blkdebug/flush-events", test_flush_events);
    g_test_add_func("/blkdebug/durable-write", test_durable_write);
    g_test_add_func("/blkdebug/break", test_break);
    g_test_add_func("/blkdebug/remove-break", test_remove_break);
    g_test_add_func("/blkdebug/drain", test_drain);
    g_test_add_func("/blkdebug/limits", test_limits);
    g_test_add_func("/blkdebug/block-status-within-blocks", test_block_status_within_blocks);
    g_test_add_func("/blkdebug/bad-limits", test_bad_limits);
    g_test_add_func("/blkdebug/config", test_config);
    g_test_add_func("/blkdebug/bad-config", test_bad_config);
    g_test_add_func("/blkdebug/perms", test_perms);
    g_test_add_func("/blkdebug/reopen", test_reopen);
    g_test_add_func("/blkdebug/threads", test_threads);
    return io_harness_run();
}
