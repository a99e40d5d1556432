/* SPDX-License-Identifier: MIT */
/* The drivers null-co and null-aio. */
#include "io-harness.h"
#include "util/size.h"

#include <errno.h>
#include <string.h>

#define RW (PERM_CONSISTENT_READ | PERM_WRITE)

static void test_sizes(void)
{
    g_assert_cmpint(node_size(add_node("{'driver':'null-co','node-name':'n'}")), ==, GiB);
    delete_node("n");
    g_assert_cmpint(node_size(add_node("{'driver':'null-aio','node-name':'n','size':1000}")), ==,
                    1024);
    delete_node("n");
    assert_text(add_node_error("{'driver':'null-co','node-name':'n','size':9223372036854775807}"),
                "Could not refresh total sector count: File too large");
    assert_text(add_node_error("{'driver':'null-co','node-name':'n','size':-1}"),
                "Parameter 'size' expects a non-negative number below 2^64");
    assert_text(add_node_error("{'driver':'null-co','node-name':'n','latency-ns':-1}"),
                "latency-ns is invalid");
}

static void test_requests(void)
{
    BlockBackend *user = open_user(add_node("{'driver':'null-co','node-name':'n'}"), RW);
    BlockStatus status;
    char buf[512] = { 1 };

    g_assert_cmpint(do_read(user, 0, 512, buf), ==, 0);
    g_assert_cmpint(buf[0], ==, 1); /* left as it was */
    g_assert_cmpint(do_write(user, 0, 512, buf, REQ_FUA), ==, 0);
    g_assert_cmpint(do_zero(user, 0, GiB, REQ_NO_FALLBACK), ==, 0);
    g_assert_cmpint(do_discard(user, 0, GiB), ==, 0);
    g_assert_cmpint(do_flush(user), ==, 0);
    g_assert_cmpint(do_read(user, GiB, 1, buf), ==, -EIO);
    g_assert_cmpint(do_status(user, 0, GiB, &status), ==, 0);
    g_assert_cmpint(status.flags & (BLOCK_STATUS_DATA | BLOCK_STATUS_ZERO), ==, 0);
    g_assert_cmpint(status.bytes, ==, GiB);
    backend_free(user);
    delete_node("n");
}

static void test_read_zeroes(void)
{
    BlockNode *node = add_node("{'driver':'null-aio','node-name':'n','read-zeroes':true}");
    BlockBackend *user = open_user(node, RW);
    BlockStatus status;

    assert_filled(user, 0, 65536, 0);
    g_assert_cmpint(do_status(user, 0, GiB, &status), ==, 0);
    g_assert_true(status.flags & BLOCK_STATUS_ZERO);
    backend_free(user);
    delete_node("n");
}

static void test_latency(void)
{
    BlockNode *node = add_node("{'driver':'null-co','node-name':'n','latency-ns':20000000}");
    BlockBackend *user = open_user(node, RW);
    int64_t begin = event_loop_now_ns();

    g_assert_cmpint(do_fill(user, 0, 512, 1), ==, 0);
    g_assert_cmpint(event_loop_now_ns() - begin, >=, 20000000);
    backend_free(user);
    delete_node("n");
}

static void test_names(void)
{
    g_assert_cmpstr(add_node("{'driver':'null-co','node-name':'n'}")->filename, ==, "null-co://");
    delete_node("n");
    g_assert_cmpstr(add_node("{'driver':'null-aio','node-name':'n'}")->filename, ==, "null-aio://");
    delete_node("n");
}

#define ADD(name) g_test_add_func("/null/" #name, test_##name)

int main(int argc, char **argv)
{
    io_harness_init(&argc, &argv, false);
    ADD(sizes);
    ADD(requests);
    ADD(read_zeroes);
    ADD(latency);
    ADD(names);
    return io_harness_run();
}
