/* SPDX-License-Identifier: MIT */
/* The copying engine by itself: which clusters, in how many requests, and callers at once. */
#include "block/copy.h"
#include "io-harness.h"
#include "util/size.h"

#include <errno.h>
#include <string.h>

#define CLUSTER COPY_DEFAULT_CLUSTER
#define SIZE    (32 * CLUSTER + 1024)
#define NODES   "{'driver':'null-co','node-name':'%s','size':2098176}" /* SIZE */

/* The engine wants edges, so both disks hang under a filter that does nothing with them. */
typedef struct Fixture {
    BlockBackend *user;
    BlockNode *holder;
    MemoryDisk *source, *target;
    CopyState *copy;
} Fixture;

static Fixture fixture_new(int64_t min_cluster)
{
    Fixture f;
    GError *error = NULL;

    f.source = memory_disk(add_node(NODES, "source"));
    f.target = memory_disk(add_node(NODES, "target"));
    f.holder = add_node("{'driver':'copy-before-write','node-name':'holder','file':'source',"
                        "'target':'target'}");
    f.user = open_user(f.holder, PERM_CONSISTENT_READ);
    for (int64_t i = 0; i < SIZE; i++) {
        f.source->data[i] = i / 512 % 251 + 1;
    }
    f.copy =
        copy_new(f.holder->file, g_ptr_array_index(f.holder->children, 1), min_cluster, &error);
    g_assert_no_error(error);
    return f;
}

static void fixture_done(Fixture *f)
{
    copy_free(f->copy);
    backend_free(f->user);
    delete_node("holder");
    delete_node("source");
    delete_node("target");
}

typedef struct CopyCall {
    Fixture *f;
    int64_t offset, bytes;
    bool forget;
    int ret;
    bool done;
} CopyCall;

static void coroutine_fn copy_entry(void *opaque)
{
    CopyCall *call = opaque;

    if (call->forget) {
        copy_forget(call->f->copy, call->offset, call->bytes);
        call->ret = 0;
    } else {
        call->ret = copy_range(call->f->copy, call->offset, call->bytes);
    }
    call->done = true;
}

static int do_copy(Fixture *f, int64_t offset, int64_t bytes)
{
    CopyCall call = { .f = f, .offset = offset, .bytes = bytes };

    coroutine_run(copy_entry, &call);
    return call.ret;
}

static void assert_copied(Fixture *f, int64_t offset, int64_t bytes)
{
    g_assert_cmpmem(f->target->data + offset, bytes, f->source->data + offset, bytes);
    g_assert_false(copy_is_pending(f->copy, offset, bytes));
}

static void test_clusters_are_copied_once(void)
{
    Fixture f = fixture_new(CLUSTER);

    g_assert_cmpint(copy_cluster_size(f.copy), ==, CLUSTER);
    g_assert_true(copy_is_pending(f.copy, 0, 1));
    g_assert_cmpint(do_copy(&f, CLUSTER + 1, 1), ==, 0);
    assert_copied(&f, CLUSTER, CLUSTER);
    g_assert_true(copy_is_pending(f.copy, CLUSTER - 1, 1));
    g_assert_true(copy_is_pending(f.copy, CLUSTER, CLUSTER + 1));
    g_assert_cmpint(copy_next_pending(f.copy, CLUSTER, SIZE), ==, 2 * CLUSTER);
    g_assert_cmpint(copy_next_settled(f.copy, 0, SIZE), ==, CLUSTER);
    g_assert_cmpint(do_copy(&f, CLUSTER, CLUSTER), ==, 0);
    g_assert_cmpint(atomic_load(&f.target->writes), ==, 1);
    g_assert_cmpint(copy_bytes_done(f.copy), ==, CLUSTER);
    fixture_done(&f);
}

static void test_neighbours_are_copied_together(void)
{
    Fixture f = fixture_new(CLUSTER);

    g_assert_cmpint(do_copy(&f, 0, 3 * CLUSTER), ==, 0);
    g_assert_cmpint(atomic_load(&f.target->writes), ==, 1);
    g_assert_cmpint(do_copy(&f, 0, INT64_MAX / 2), ==, 0); /* all of it; the end is cut */
    assert_copied(&f, 0, SIZE);
    g_assert_cmpint(copy_bytes_done(f.copy), ==, SIZE);
    g_assert_cmpint(atomic_load(&f.target->writes), ==, 1 + 2); /* by COPY_MAX_CHUNK */
    fixture_done(&f);
}

static void test_what_failed_stays_pending(void)
{
    Fixture f = fixture_new(CLUSTER);

    atomic_store(&f.target->fail_after, 1);
    atomic_store(&f.target->fail_writes, ENOSPC);
    g_assert_cmpint(do_copy(&f, 0, SIZE), ==, -ENOSPC);
    assert_copied(&f, 0, COPY_MAX_CHUNK);
    g_assert_cmpint(copy_next_settled(f.copy, COPY_MAX_CHUNK, SIZE), ==, SIZE);
    atomic_store(&f.target->fail_writes, 0);
    g_assert_cmpint(do_copy(&f, 0, SIZE), ==, 0);
    assert_copied(&f, 0, SIZE);
    fixture_done(&f);
}

static void test_what_is_forgotten_is_not_copied(void)
{
    Fixture f = fixture_new(CLUSTER);
    CopyCall forget = { .f = &f, .offset = 1, .bytes = 3 * CLUSTER, .forget = true };

    coroutine_run(copy_entry, &forget);
    g_assert_true(copy_is_pending(f.copy, 0, CLUSTER)); /* not wholly inside */
    g_assert_false(copy_is_pending(f.copy, CLUSTER, 2 * CLUSTER));
    g_assert_true(copy_is_pending(f.copy, 3 * CLUSTER, 1));
    g_assert_cmpint(do_copy(&f, 0, 4 * CLUSTER), ==, 0);
    g_assert_cmpint(atomic_load(&f.target->writes), ==, 2);
    g_assert_cmpint(f.target->data[CLUSTER], ==, 0);
    fixture_done(&f);
}

static void test_forgetting_waits_for_a_copy_at_work(void)
{
    Fixture f = fixture_new(CLUSTER);
    CopyCall copy = { .f = &f, .offset = 0, .bytes = CLUSTER };
    CopyCall forget = { .f = &f, .offset = 0, .bytes = 2 * CLUSTER, .forget = true };

    memory_disk_hold(f.target, true, false);
    coroutine_start(copy_entry, &copy);
    memory_disk_wait_held(f.target, 1);
    coroutine_start(copy_entry, &forget);
    g_assert_false(forget.done);
    memory_disk_hold(f.target, false, false);
    while (!copy.done || !forget.done) {
        event_loop_poll(event_loop_main(), true);
    }
    g_assert_cmpint(copy.ret, ==, 0);
    g_assert_cmpint(copy_next_pending(f.copy, 0, SIZE), ==, 2 * CLUSTER);
    fixture_done(&f);
}

static void test_cancelled_copies_end(void)
{
    Fixture f = fixture_new(CLUSTER);

    copy_cancel(f.copy);
    g_assert_cmpint(do_copy(&f, 0, SIZE), ==, -ECANCELED);
    g_assert_true(copy_is_pending(f.copy, 0, 1));
    fixture_done(&f);
}

static void test_the_target_decides_about_clusters(void)
{
    GError *error = NULL;
    Fixture f = fixture_new(1 << 20);
    BlockChild *target = g_ptr_array_index(f.holder->children, 1);

    g_assert_cmpint(copy_cluster_size(f.copy), ==, MiB);
    g_assert_null(copy_new(f.holder->file, target, 3 << 20, &error));
    g_assert_cmpstr(error->message, ==, "min-cluster-size needs to be a power of 2");
    g_clear_error(&error);
    g_assert_cmpint(do_copy(&f, 0, 1), ==, 0);
    assert_copied(&f, 0, MiB);
    fixture_done(&f);
}

/* --- neighbours at the same time --- */

#define AT_WORK 16

/* Sixteen copies here and there are at work; what is asked for meanwhile becomes few. */
static void test_neighbours_that_wait_become_one(void)
{
    Fixture f = fixture_new(0);
    CopyCall calls[2 * AT_WORK];
    int unit = COPY_MIN_UNIT;

    g_assert_cmpint(copy_unit(f.copy), ==, unit);
    memory_disk_hold(f.target, true, false);
    for (int i = 0; i < 2 * AT_WORK; i++) {
        int64_t offset = i < AT_WORK ? (int64_t)i * CLUSTER : 20 * CLUSTER + (i - AT_WORK) * unit;

        calls[i] = (CopyCall){ .f = &f, .offset = offset, .bytes = 1 };
        coroutine_start(copy_entry, &calls[i]);
    }
    memory_disk_wait_held(f.target, AT_WORK);
    g_assert_cmpint(f.target->held, ==, AT_WORK);
    memory_disk_hold(f.target, false, false);
    for (int i = 0; i < 2 * AT_WORK; i++) {
        while (!calls[i].done) {
            event_loop_poll(event_loop_main(), true);
        }
        g_assert_cmpint(calls[i].ret, ==, 0);
        assert_copied(&f, calls[i].offset, unit);
    }
    g_assert_cmpint(atomic_load(&f.target->writes), ==, AT_WORK + 1);
    g_assert_cmpint(atomic_load(&f.target->last_bytes), ==, CLUSTER);
    fixture_done(&f);
}

static void test_a_joined_copy_that_fails_fails_for_each(void)
{
    Fixture f = fixture_new(0);
    CopyCall calls[AT_WORK + 2];

    memory_disk_hold(f.target, true, false);
    for (int i = 0; i < AT_WORK + 2; i++) {
        int64_t offset = i < AT_WORK ? (int64_t)i * CLUSTER : 20 * CLUSTER + (AT_WORK - i) * 4096;

        calls[i] = (CopyCall){ .f = &f, .offset = offset, .bytes = 1 };
        coroutine_start(copy_entry, &calls[i]);
    }
    memory_disk_wait_held(f.target, AT_WORK);
    atomic_store(&f.target->fail_writes, ENOSPC);
    memory_disk_hold(f.target, false, false);
    for (int i = 0; i < AT_WORK + 2; i++) {
        while (!calls[i].done) {
            event_loop_poll(event_loop_main(), true);
        }
        g_assert_cmpint(calls[i].ret, ==, -ENOSPC);
        g_assert_true(copy_is_pending(f.copy, calls[i].offset, 1));
    }
    fixture_done(&f);
}

/* --- many callers --- */

static Fixture *shared;

static void coroutine_fn copy_here_and_there(int index, GRand *random)
{
    for (int i = 0; i < 40; i++) {
        int64_t offset = g_rand_int_range(random, 0, SIZE);
        int64_t bytes = g_rand_int_range(random, 1, 6 * CLUSTER);

        g_assert_cmpint(copy_range(shared->copy, offset, bytes), ==, 0);
        g_assert_false(copy_is_pending(shared->copy, offset, bytes));
    }
}

static void copy_at_once(int64_t min_cluster)
{
    Fixture f = fixture_new(min_cluster);

    shared = &f;
    run_workers(12, 3, copy_here_and_there);
    g_assert_cmpint(do_copy(&f, 0, SIZE), ==, 0);
    assert_copied(&f, 0, SIZE);
    g_assert_cmpint(copy_bytes_done(f.copy), ==, SIZE);
    fixture_done(&f);
}

static void test_callers_at_once_copy_each_unit_once(void)
{
    copy_at_once(0);
    copy_at_once(CLUSTER);
}

#define ADD(name) g_test_add_func("/copy/" #name, test_##name)

int main(int argc, char **argv)
{
    io_harness_init(&argc, &argv, true);
    ADD(clusters_are_copied_once);
    ADD(neighbours_are_copied_together);
    ADD(what_failed_stays_pending);
    ADD(what_is_forgotten_is_not_copied);
    ADD(forgetting_waits_for_a_copy_at_work);
    ADD(cancelled_copies_end);
    ADD(the_target_decides_about_clusters);
    ADD(neighbours_that_wait_become_one);
    ADD(a_joined_copy_that_fails_fails_for_each);
    ADD(callers_at_once_copy_each_unit_once);
    return io_harness_run();
}
