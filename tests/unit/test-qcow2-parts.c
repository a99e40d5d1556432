/* SPDX-License-Identifier: MIT */
/*
 * Parts of one request: how many are under way, and what becomes of errors.
 */
#include "block/qcow2/parts.h"
#include "util/event-loop.h"

#include <errno.h>

typedef struct Request Request;

typedef struct Part {
    Request *request;
    int slot;
    int number;
} Part;

struct Request {
    Qcow2Parts parts;
    Part slots[QCOW2_PARTS_MAX];
    int total;
    int failing;  /* the part that fails, or -1 */
    bool waiting; /* parts yield before they end */
    int begun, under_way, most;
    int ret;
};

static void coroutine_fn part_entry(void *opaque)
{
    Part *part = opaque;
    Request *request = part->request;

    request->under_way++;
    request->most = MAX(request->most, request->under_way);
    for (int i = 0; request->waiting && i < part->number % 3 + 1; i++) {
        coroutine_pause();
    }
    request->under_way--;
    qcow2_parts_end(&request->parts, part->slot, part->number == request->failing ? -EIO : 0);
}

static void coroutine_fn request_entry(void *opaque)
{
    Request *request = opaque;

    while (request->begun < request->total) {
        int slot = qcow2_parts_take(&request->parts);

        if (slot < 0) {
            break;
        }
        request->slots[slot] = (Part){ request, slot, request->begun++ };
        coroutine_start(part_entry, &request->slots[slot]);
    }
    request->ret = qcow2_parts_wait(&request->parts, 0);
}

static Request run(int total, int failing, bool waiting)
{
    Request request = { .total = total, .failing = failing, .waiting = waiting };

    coroutine_run(request_entry, &request);
    g_assert_cmpint(request.under_way, ==, 0);
    return request;
}

static void test_several_at_once(void)
{
    Request request = run(100, -1, true);

    g_assert_cmpint(request.ret, ==, 0);
    g_assert_cmpint(request.begun, ==, 100);
    g_assert_cmpint(request.most, ==, QCOW2_PARTS_MAX);
}

static void test_one_after_another_when_nothing_waits(void)
{
    Request request = run(100, -1, false);

    g_assert_cmpint(request.ret, ==, 0);
    g_assert_cmpint(request.begun, ==, 100);
    g_assert_cmpint(request.most, ==, 1);
}

static void test_no_more_begin_after_a_failure(void)
{
    for (int failing = 0; failing < 12; failing++) {
        Request request = run(100, failing, true);

        g_assert_cmpint(request.ret, ==, -EIO);
        g_assert_cmpint(request.begun, >, failing);
        g_assert_cmpint(request.begun, <=, failing + 1 + 3 * QCOW2_PARTS_MAX);
        request = run(100, failing, false);
        g_assert_cmpint(request.ret, ==, -EIO);
        g_assert_cmpint(request.begun, ==, failing + 1);
    }
}

static void coroutine_fn fail_twice(void *opaque)
{
    Qcow2Parts parts = { 0 };
    int first = qcow2_parts_take(&parts);
    int second = qcow2_parts_take(&parts);

    g_assert_cmpint(first, !=, second);
    qcow2_parts_end(&parts, second, -ENOSPC);
    qcow2_parts_end(&parts, first, -EIO);
    g_assert_cmpint(qcow2_parts_take(&parts), ==, -1);
    *(int *)opaque = qcow2_parts_wait(&parts, -ENOMEM);
}

static void test_first_error_stays(void)
{
    int ret = 0;

    coroutine_run(fail_twice, &ret);
    g_assert_cmpint(ret, ==, -ENOSPC);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    event_loop_main();
    g_test_add_func("/qcow2/parts/several-at-once", test_several_at_once);
    g_test_add_func("/qcow2/parts/nothing-waits", test_one_after_another_when_nothing_waits);
    g_test_add_func("/qcow2/parts/failure", test_no_more_begin_after_a_failure);
    g_test_add_func("/qcow2/parts/first-error", test_first_error_stays);
    return g_test_run();
}
