/* SPDX-License-Identifier: MIT */
/* Range locks: who goes together, who waits, in which order, on one loop and on several. */
#include "block/range-lock.h"
#include "io-harness.h"

static RangeLock *ranges;

/* A coroutine that takes a range and keeps it until it is told to go on. */
typedef struct Holder {
    int64_t offset, bytes;
    bool exclusive;
    bool held, ended;
    Coroutine *co;
    RangeHold hold;
} Holder;

static void coroutine_fn holder_entry(void *opaque)
{
    Holder *holder = opaque;

    holder->co = coroutine_self();
    if (holder->exclusive) {
        range_lock_exclusive(ranges, &holder->hold, holder->offset, holder->bytes);
    } else {
        range_lock_shared(ranges, &holder->hold, holder->offset, holder->bytes);
    }
    holder->held = true;
    coroutine_yield();
    range_unlock(ranges, &holder->hold);
    holder->ended = true;
}

static void start(Holder *holder, int64_t offset, int64_t bytes, bool exclusive)
{
    *holder = (Holder){ .offset = offset, .bytes = bytes, .exclusive = exclusive };
    coroutine_start(holder_entry, holder);
}

static void finish(Holder *holder)
{
    g_assert_true(holder->held);
    coroutine_wake(holder->co);
    while (!holder->ended) {
        event_loop_poll(event_loop_main(), true);
    }
    while (event_loop_poll(event_loop_main(), false)) {
    }
}

static void test_shared_holders_go_together(void)
{
    Holder a, b, c;

    ranges = range_lock_new();
    start(&a, 0, 100, false);
    start(&b, 50, 100, false);
    start(&c, 200, 10, true);
    g_assert_true(a.held && b.held && c.held);
    finish(&a);
    finish(&b);
    finish(&c);
    range_lock_free(ranges);
}

static void test_an_exclusive_holder_overlaps_nobody(void)
{
    Holder a, b, c, beside;

    ranges = range_lock_new();
    start(&a, 100, 100, true);
    start(&b, 199, 1, false);
    start(&c, 0, 101, true);
    start(&beside, 200, 100, true);
    g_assert_true(a.held && beside.held);
    g_assert_false(b.held || c.held);
    finish(&a);
    g_assert_true(b.held && c.held); /* they do not overlap */
    finish(&b);
    finish(&c);
    finish(&beside);
    range_lock_free(ranges);
}

static void test_an_exclusive_waiter_is_not_overtaken(void)
{
    Holder first, waiter, late, elsewhere;

    ranges = range_lock_new();
    start(&first, 0, 100, false);
    start(&waiter, 50, 100, true);
    start(&late, 120, 10, false);
    start(&elsewhere, 0, 50, false);
    g_assert_false(waiter.held || late.held);
    g_assert_true(elsewhere.held);
    finish(&first);
    g_assert_true(waiter.held);
    g_assert_false(late.held);
    finish(&waiter);
    g_assert_true(late.held);
    finish(&late);
    finish(&elsewhere);
    range_lock_free(ranges);
}

static void test_the_whole_range_waits_for_everybody(void)
{
    Holder a, b, whole;

    ranges = range_lock_new();
    start(&a, 0, 1, false);
    start(&b, INT64_MAX - 10, 10, false);
    start(&whole, 0, INT64_MAX, true);
    finish(&a);
    g_assert_false(whole.held);
    finish(&b);
    g_assert_true(whole.held);
    finish(&whole);
    range_lock_free(ranges);
}

/* --- several loops --- */

#define CELLS 16

static int cells[CELLS]; /* plain: the lock alone orders those who touch them */

static void coroutine_fn hammer(int index, GRand *random)
{
    for (int i = 0; i < 400; i++) {
        int first = g_rand_int_range(random, 0, CELLS);
        int n = g_rand_int_range(random, 1, MIN(4, CELLS - first) + 1);
        RangeHold hold;

        if (g_rand_boolean(random)) {
            range_lock_exclusive(ranges, &hold, first, n);
            for (int c = first; c < first + n; c++) {
                g_assert_cmpint(cells[c], ==, 0);
                cells[c] = 1 + index;
            }
            coroutine_pause();
            for (int c = first; c < first + n; c++) {
                g_assert_cmpint(cells[c], ==, 1 + index);
                cells[c] = 0;
            }
        } else {
            range_lock_shared(ranges, &hold, first, n);
            for (int c = first; c < first + n; c++) {
                g_assert_cmpint(cells[c], ==, 0);
            }
            coroutine_pause();
        }
        range_unlock(ranges, &hold);
    }
}

static void test_threads(void)
{
    ranges = range_lock_new();
    run_workers(16, 3, hammer);
    range_lock_free(ranges);
}

int main(int argc, char **argv)
{
    io_harness_init(&argc, &argv, true);
    g_test_add_func("/range-lock/shared-holders-go-together", test_shared_holders_go_together);
    g_test_add_func("/range-lock/exclusive-overlaps-nobody",
                    test_an_exclusive_holder_overlaps_nobody);
    g_test_add_func("/range-lock/exclusive-waiter-is-not-overtaken",
                    test_an_exclusive_waiter_is_not_overtaken);
    g_test_add_func("/range-lock/whole-range", test_the_whole_range_waits_for_everybody);
    g_test_add_func("/range-lock/threads", test_threads);
    return io_harness_run();
}
