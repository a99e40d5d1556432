/* SPDX-License-Identifier: MIT */
/*
 * Throttling: buckets on a clock of the test's, groups whose turns are counted, and the driver.
 * Groups here are so slow that no real timer fires during a test unless it is said.
 */
#include "block/drivers.h"
#include "block/throttle.h"
#include "io-harness.h"
#include "util/error.h"
#include "util/size.h"

#include <string.h>

#define RW     (PERM_CONSISTENT_READ | PERM_WRITE)
#define SECOND INT64_C(1000000000)

static int64_t test_now;

static int64_t test_clock(void)
{
    return test_now;
}

/* --- buckets --- */

static ThrottleState state_of(ThrottleBucket bucket, ThrottleRate rate)
{
    ThrottleConfig config;
    ThrottleState state;

    throttle_config_init(&config);
    config.rates[bucket] = rate;
    throttle_state_init(&state, &config, 0);
    return state;
}

/* How many requests begin at that instant. */
static int begin_all(ThrottleState *state, ThrottleDirection direction, int64_t bytes, int64_t now)
{
    int n = 0;

    while (throttle_wait_ns(state, direction, now) == 0 && n < 100000) {
        throttle_account(state, direction, bytes);
        n++;
    }
    return n;
}

static void test_rate(void)
{
    ThrottleState state = state_of(THROTTLE_IOPS_TOTAL, (ThrottleRate){ 100, 0, 1 });
    int n = 0;

    for (int64_t ms = 0; ms < 10000; ms++) {
        n += begin_all(&state, THROTTLE_READ, 512, ms * 1000000);
    }
    g_assert_cmpint(n, >=, 1000);
    g_assert_cmpint(n, <=, 1011); /* a tenth of a second's worth at the start */
}

/* To wait as long as told is enough, and one nanosecond of rounding the most that it is too long.
 */
static void test_wait_is_exact(void)
{
    ThrottleState state = state_of(THROTTLE_BPS_WRITE, (ThrottleRate){ 1000, 0, 1 });
    int64_t wait;

    throttle_account(&state, THROTTLE_WRITE, 5100);
    wait = throttle_wait_ns(&state, THROTTLE_WRITE, 0);
    g_assert_cmpint(wait, >=, 5 * SECOND);
    g_assert_cmpint(wait, <=, 5 * SECOND + 1000);
    g_assert_cmpint(throttle_wait_ns(&state, THROTTLE_READ, 0), ==, 0);
    g_assert_cmpint(throttle_wait_ns(&state, THROTTLE_WRITE, wait - 10000), >, 0);
    g_assert_cmpint(throttle_wait_ns(&state, THROTTLE_WRITE, wait), ==, 0);
}

static void test_burst_at_once(void)
{
    ThrottleState state = state_of(THROTTLE_IOPS_WRITE, (ThrottleRate){ 10, 500, 1 });

    g_assert_cmpint(begin_all(&state, THROTTLE_WRITE, 1, 0), ==, 501);
    g_assert_cmpint(begin_all(&state, THROTTLE_WRITE, 1, SECOND), ==, 10);
    /* The allowance comes back at the long-run rate. */
    g_assert_cmpint(begin_all(&state, THROTTLE_WRITE, 1, 100 * SECOND), ==, 501);
}

/* 1000 a second for five seconds, then 10 a second. */
static void test_burst_with_length(void)
{
    ThrottleState state = state_of(THROTTLE_IOPS_READ, (ThrottleRate){ 10, 1000, 5 });
    int per_second[8] = { 0 };

    for (int64_t ms = 0; ms < 8000; ms++) {
        per_second[ms / 1000] += begin_all(&state, THROTTLE_READ, 1, ms * 1000000);
    }
    g_assert_cmpint(per_second[0], >=, 1000);
    g_assert_cmpint(per_second[0], <=, 1101);
    for (int i = 1; i < 4; i++) {
        g_assert_cmpint(per_second[i], >=, 999);
        g_assert_cmpint(per_second[i], <=, 1001);
    }
    g_assert_cmpint(per_second[6], <=, 11);
    g_assert_cmpint(per_second[7], >=, 9);
}

static void test_operation_size(void)
{
    ThrottleState state = state_of(THROTTLE_IOPS_TOTAL, (ThrottleRate){ 10, 20, 1 });

    state.config.operation_size = 4096;
    throttle_account(&state, THROTTLE_READ, 100);
    g_assert_true(state.level[THROTTLE_IOPS_TOTAL] == 1);
    throttle_account(&state, THROTTLE_READ, 10240);
    g_assert_true(state.level[THROTTLE_IOPS_TOTAL] == 3.5);
}

static void test_clock_goes_back(void)
{
    ThrottleState state = state_of(THROTTLE_IOPS_TOTAL, (ThrottleRate){ 10, 0, 1 });
    int64_t wait;

    begin_all(&state, THROTTLE_READ, 1, 100 * SECOND);
    wait = throttle_wait_ns(&state, THROTTLE_READ, 100 * SECOND);
    g_assert_cmpint(throttle_wait_ns(&state, THROTTLE_READ, 0), ==, wait);
}

/* --- limits --- */

static char *check_error(ThrottleConfig config)
{
    GError *error = NULL;
    char *text;

    if (throttle_config_check(&config, &error)) {
        return NULL;
    }
    text = merino_error_text(error);
    g_error_free(error);
    return text;
}

static ThrottleConfig config_of(ThrottleBucket bucket, ThrottleRate rate)
{
    ThrottleConfig config;

    throttle_config_init(&config);
    config.rates[bucket] = rate;
    return config;
}

static void test_checks(void)
{
    ThrottleConfig config;

    g_assert_null(check_error(config_of(THROTTLE_IOPS_READ, (ThrottleRate){ 10, 10, 1 })));
    assert_text(check_error(config_of(THROTTLE_IOPS_READ, (ThrottleRate){ 10, 5, 1 })),
                "bps_max/iops_max cannot be lower than bps/iops");
    assert_text(check_error(config_of(THROTTLE_IOPS_READ, (ThrottleRate){ 0, 5, 1 })),
                "bps_max/iops_max require corresponding bps/iops values");
    assert_text(check_error(config_of(THROTTLE_IOPS_READ, (ThrottleRate){ 10, 0, 2 })),
                "burst length set without burst rate");
    assert_text(check_error(config_of(THROTTLE_IOPS_READ, (ThrottleRate){ 10, 20, 0 })),
                "the burst length cannot be 0");
    assert_text(check_error(config_of(THROTTLE_BPS_READ, (ThrottleRate){ -1, 0, 1 })),
                "bps/iops/max values must be within [0, 1000000000000000]");
    assert_text(check_error(config_of(THROTTLE_BPS_READ,
                                      (ThrottleRate){ 1, INT64_C(1000000000000000), 2 })),
                "burst length too high for this burst rate");
    config = config_of(THROTTLE_BPS_TOTAL, (ThrottleRate){ 1, 0, 1 });
    config.operation_size = 512;
    assert_text(check_error(config), "iops size requires an iops value to be set");
    config.rates[THROTTLE_BPS_WRITE].average = 1;
    assert_text(check_error(config), "bps/iops/max total values and read/write values cannot be "
                                     "used at the same time");
}

static void test_limits_win(void)
{
    ThrottleLimits limits = { .has_iops_total = true, .iops_total = 1 };
    ThrottleGroupProperties properties = { .limits = &limits,
                                           .has_x_iops_total = true,
                                           .x_iops_total = 2,
                                           .has_x_iops_size = true,
                                           .x_iops_size = 4096 };
    ThrottleConfig config;

    g_assert_true(throttle_config_parse(&properties, &config, NULL));
    g_assert_cmpint(config.rates[THROTTLE_IOPS_TOTAL].average, ==, 1);
    g_assert_cmpint(config.operation_size, ==, 4096);
    properties.x_iops_total = -1;
    g_assert_false(throttle_config_parse(&properties, &config, NULL));
}

/* A length that no burst can have, and that is taken for what it is, not for a very long one. */
static void test_negative_length(void)
{
    ThrottleLimits limits = { .has_iops_total = true,
                              .iops_total = 1,
                              .has_iops_total_max = true,
                              .iops_total_max = 2,
                              .has_iops_total_max_length = true,
                              .iops_total_max_length = -1 };
    ThrottleGroupProperties properties = { .limits = &limits };
    ThrottleConfig config;
    g_autoptr(GError) error = NULL;

    g_assert_false(throttle_config_parse(&properties, &config, &error));
    g_assert_cmpstr(error->message, ==, "burst length too high for this burst rate");
}

/* --- groups --- */

static ThrottleGroup *add_group(ThrottleBucket bucket, ThrottleRate rate, bool test_time)
{
    ThrottleConfig config = config_of(bucket, rate);

    throttle_set_clock(test_time ? test_clock : NULL);
    g_assert_true(throttle_group_add("g", &config, NULL));
    throttle_set_clock(NULL);
    return throttle_group_find("g", NULL);
}

typedef struct Request {
    ThrottleMember *member;
    ThrottleDirection direction;
    char name;
    GString *log;
} Request;

static void coroutine_fn request_entry(void *opaque)
{
    Request *request = opaque;

    throttle_member_wait(request->member, request->direction, 512);
    g_string_append_c(request->log, request->name);
}

static void poll_until_length(const GString *log, gsize length)
{
    while (log->len < length) {
        event_loop_poll(event_loop_main(), true);
    }
    while (event_loop_poll(event_loop_main(), false)) {
    }
    g_assert_cmpint(log->len, ==, length);
}

/* Advance the clock by one request's time, `n` times. */
static void pass_time(ThrottleGroup *group, int n, int64_t ns, const GString *log)
{
    for (int i = 0; i < n; i++) {
        test_now += ns;
        throttle_group_run(group);
        poll_until_length(log, log->len + 1);
    }
}

/* Three members, one of which has all its requests there before the others: each gets its turn. */
static void test_members_take_turns(void)
{
    ThrottleGroup *group = add_group(THROTTLE_IOPS_TOTAL, (ThrottleRate){ 1, 1, 1 }, true);
    ThrottleMember members[3] = { 0 };
    GString *log = g_string_new(NULL);
    Request requests[12];

    for (int i = 0; i < 3; i++) {
        throttle_member_join(&members[i], group);
    }
    for (int i = 0; i < 12; i++) {
        requests[i] = (Request){ &members[i / 4], THROTTLE_READ, 'a' + i / 4, log };
        coroutine_start(request_entry, &requests[i]);
    }
    g_assert_cmpstr(log->str, ==, "aa"); /* the bucket takes one and a drop */
    g_assert_cmpuint(throttle_group_waiting(group), ==, 10);
    pass_time(group, 10, SECOND, log);
    g_assert_cmpstr(log->str, ==, "aaabcabcbcbc");
    for (int i = 0; i < 3; i++) {
        throttle_member_leave(&members[i]);
    }
    g_assert_true(throttle_group_delete("g", NULL));
    g_string_free(log, true);
}

static void test_directions_take_turns(void)
{
    ThrottleGroup *group = add_group(THROTTLE_IOPS_TOTAL, (ThrottleRate){ 1, 1, 1 }, true);
    ThrottleMember member = { 0 };
    GString *log = g_string_new(NULL);
    Request requests[10];

    throttle_member_join(&member, group);
    for (int i = 0; i < 10; i++) {
        bool write = i >= 6;

        requests[i] = (Request){ &member, write, write ? 'w' : 'r', log };
        coroutine_start(request_entry, &requests[i]);
    }
    g_assert_cmpstr(log->str, ==, "rr");
    pass_time(group, 8, SECOND, log);
    g_assert_cmpstr(log->str, ==, "rrwrwrwrwr");
    throttle_member_leave(&member);
    g_assert_true(throttle_group_delete("g", NULL));
    g_string_free(log, true);
}

/* Reads that have to wait do not hold up writes that need not. */
static void test_directions_are_separate(void)
{
    ThrottleGroup *group = add_group(THROTTLE_IOPS_READ, (ThrottleRate){ 1, 0, 1 }, true);
    ThrottleMember member = { 0 };
    GString *log = g_string_new(NULL);
    Request reads[2] = { { &member, THROTTLE_READ, 'r', log },
                         { &member, THROTTLE_READ, 'r', log } };
    Request write = { &member, THROTTLE_WRITE, 'w', log };

    throttle_member_join(&member, group);
    coroutine_start(request_entry, &reads[0]);
    coroutine_start(request_entry, &reads[1]);
    coroutine_start(request_entry, &write);
    g_assert_cmpstr(log->str, ==, "rw");
    throttle_member_open(&member);
    poll_until_length(log, 3);
    throttle_member_close(&member);
    throttle_member_leave(&member);
    g_assert_true(throttle_group_delete("g", NULL));
    g_string_free(log, true);
}

/* One member's drain lets its own requests go; the others' time goes on being kept. */
static void test_open_member(void)
{
    ThrottleGroup *group = add_group(THROTTLE_IOPS_TOTAL, (ThrottleRate){ 1, 1, 1 }, true);
    ThrottleMember members[2] = { 0 };
    GString *log = g_string_new(NULL);
    Request requests[6];

    throttle_member_join(&members[0], group);
    throttle_member_join(&members[1], group);
    for (int i = 0; i < 6; i++) {
        requests[i] = (Request){ &members[i / 4], THROTTLE_WRITE, 'a' + i / 4, log };
        coroutine_start(request_entry, &requests[i]);
    }
    g_assert_cmpstr(log->str, ==, "aa");
    throttle_member_open(&members[0]);
    poll_until_length(log, 4);
    g_assert_cmpstr(log->str, ==, "aaaa");
    coroutine_start(request_entry, &requests[0]);
    g_assert_cmpstr(log->str, ==, "aaaaa");
    throttle_member_close(&members[0]);
    g_assert_cmpuint(throttle_group_waiting(group), ==, 2);
    test_now += 4 * SECOND; /* what went through was accounted */
    throttle_group_run(group);
    poll_until_length(log, 6);
    pass_time(group, 1, SECOND, log);
    g_assert_cmpstr(log->str, ==, "aaaaabb");
    throttle_member_leave(&members[0]);
    throttle_member_leave(&members[1]);
    g_assert_true(throttle_group_delete("g", NULL));
    g_string_free(log, true);
}

/* --- the driver --- */

static void test_driver_names(void)
{
    GError *error = NULL;
    char *text;

    add_group(THROTTLE_IOPS_TOTAL, (ThrottleRate){ 1, 0, 1 }, false);
    assert_text(add_node_error("{'driver':'throttle','node-name':'t','throttle-group':'h',"
                               "'file':{'driver':'null-co'}}"),
                "Throttle group 'h' does not exist");
    add_node("{'driver':'throttle','node-name':'t','throttle-group':'g',"
             "'file':{'driver':'null-co','node-name':'n','size':1048576}}");
    g_assert_false(throttle_group_delete("g", &error));
    text = merino_error_text(error);
    g_assert_cmpstr(text, ==, "object 'g' is in use, can not be deleted");
    g_free(text);
    g_clear_error(&error);
    assert_text(reopen_error("{'driver':'throttle','node-name':'t','throttle-group':'h',"
                             "'file':'n'}"),
                "Throttle group 'h' does not exist");
    delete_node("t");
    g_assert_true(throttle_group_delete("g", NULL));
    g_assert_false(throttle_group_delete("g", &error));
    g_assert_cmpstr(error->message, ==, "object 'g' not found");
    g_clear_error(&error);
}

static void test_data_passes(void)
{
    BlockBackend *user;

    add_group(THROTTLE_IOPS_READ, (ThrottleRate){ 1000000, 0, 1 }, false);
    user = open_user(add_node("{'driver':'throttle','node-name':'t','throttle-group':'g',"
                              "'discard':'unmap','file':{'driver':'null-co','size':1048576}}"),
                     RW);
    g_assert_cmpint(do_fill(user, 1000, 5000, 7), ==, 0);
    assert_filled(user, 1000, 5000, 7);
    g_assert_cmpint(do_zero(user, 2000, 1000, 0), ==, 0);
    assert_filled(user, 2000, 1000, 0);
    g_assert_cmpint(do_discard(user, 0, 512), ==, 0);
    g_assert_cmpint(do_flush(user), ==, 0);
    backend_free(user);
    delete_node("t");
    g_assert_true(throttle_group_delete("g", NULL));
}

/* Requests from an I/O thread that would wait for hours are let go by a drain, of a node beneath
 * the throttle node or of one above it. */
static void test_drain(void)
{
    static const char *const drained[] = { "n", "t", "r" };
    ThrottleGroup *group = add_group(THROTTLE_BPS_WRITE, (ThrottleRate){ 1, 0, 1 }, false);
    BlockNode *node = add_node("{'driver':'throttle','node-name':'t','throttle-group':'g',"
                               "'file':{'driver':'null-co','node-name':'n','size':1048576}}");
    EventLoop *loops[2] = { event_loop_new("a", NULL), event_loop_new("b", NULL) };
    BlockBackend *user = open_user(add_node("{'driver':'raw','node-name':'r','file':'t'}"), RW);
    AsyncWrite writes[8];

    g_assert_nonnull(node);
    g_assert_cmpint(do_fill(user, 0, 65536, 1), ==, 0);
    for (size_t round = 0; round < G_N_ELEMENTS(drained); round++) {
        for (int i = 0; i < 8; i++) {
            start_write(&writes[i], loops[i % 2], user, i * 4096, 4096, i);
        }
        while (throttle_group_waiting(group) < 8) {
            g_thread_yield();
        }
        drain_end(drain_begin_node(node_find(drained[round])));
        for (int i = 0; i < 8; i++) {
            g_assert_cmpint(finish_write(&writes[i]), ==, 0);
        }
    }
    start_write(&writes[0], loops[0], user, 0, 4096, 9);
    while (throttle_group_waiting(group) < 1) {
        g_thread_yield();
    }
    assert_text(reopen_error("{'driver':'throttle','node-name':'t','throttle-group':'g',"
                             "'file':'n'}"),
                NULL);
    g_assert_cmpint(finish_write(&writes[0]), ==, 0);
    backend_free(user);
    event_loop_free(loops[0]);
    event_loop_free(loops[1]);
    delete_node("r");
    delete_node("t");
    g_assert_true(throttle_group_delete("g", NULL));
}

/* A filter put over a node and taken away, which drains the file of a node that is being opened. */
static void test_insert(void)
{
    add_group(THROTTLE_BPS_WRITE, (ThrottleRate){ 1, 0, 1 }, false);
    add_node("{'driver':'null-co','node-name':'n','size':1048576}");
    for (int i = 0; i < 2; i++) {
        char text[] = "{'driver':'throttle','node-name':'t','throttle-group':'g','file':'n'}";

        insert_filter(text);
        g_assert_true(node_remove_filter("t", NULL, NULL));
    }
    delete_node("n");
    g_assert_true(throttle_group_delete("g", NULL));
}

/* --- many threads --- */

#define WORKERS  16
#define REQUESTS 50

static BlockBackend *users[2];

static void coroutine_fn hammer(int index, GRand *random)
{
    for (int i = 0; i < REQUESTS; i++) {
        BlockBackend *user = users[index % 2];
        char buf[512] = { 0 };
        IoVector vec;

        iov_init_buf(&vec, buf, sizeof(buf));
        if (g_rand_boolean(random)) {
            backend_co_preadv(user, index * 512, 512, &vec, 0);
        } else {
            backend_co_pwritev(user, index * 512, 512, &vec, 0);
        }
    }
}

/* Two members on four threads, with real timers, while the nodes are drained again and again. */
static void test_threads(void)
{
    ThrottleGroup *group = add_group(THROTTLE_IOPS_TOTAL, (ThrottleRate){ 20000, 0, 1 }, false);
    WorkerGroup *workers;

    users[0] = open_user(add_node("{'driver':'throttle','node-name':'t0','throttle-group':'g',"
                                  "'file':{'driver':'null-co','size':1048576}}"),
                         RW);
    users[1] = open_user(add_node("{'driver':'throttle','node-name':'t1','throttle-group':'g',"
                                  "'file':{'driver':'null-co','size':1048576}}"),
                         RW);
    workers = start_workers(WORKERS, 4, hammer);
    for (int i = 0; i < 50; i++) {
        drain_end(drain_begin_node(node_find(i % 2 ? "t0" : "t1")));
        event_loop_poll(event_loop_main(), false);
    }
    finish_workers(workers);
    g_assert_cmpuint(throttle_group_waiting(group), ==, 0);
    backend_free(users[0]);
    backend_free(users[1]);
    delete_node("t0");
    delete_node("t1");
    g_assert_true(throttle_group_delete("g", NULL));
}

int main(int argc, char **argv)
{
    io_harness_init(&argc, &argv, true);
    throttle_driver_register();
    g_test_add_func("/throttle/rate", test_rate);
    g_test_add_func("/throttle/wait-is-exact", test_wait_is_exact);
    g_test_add_func("/throttle/negative-length", test_negative_length);
    g_test_add_func("/throttle/burst-at-once", test_burst_at_once);
    g_test_add_func("/throttle/burst-with-length", test_burst_with_length);
    g_test_add_func("/throttle/operation-size", test_operation_size);
    g_test_add_func("/throttle/clock-goes-back", test_clock_goes_back);
    g_test_add_func("/throttle/checks", test_checks);
    g_test_add_func("/throttle/limits-win", test_limits_win);
    g_test_add_func("/throttle/members-take-turns", test_members_take_turns);
    g_test_add_func("/throttle/directions-take-turns", test_directions_take_turns);
    g_test_add_func("/throttle/directions-are-separate", test_directions_are_separate);
    g_test_add_func("/throttle/open-member", test_open_member);
    g_test_add_func("/throttle/driver-names", test_driver_names);
    g_test_add_func("/throttle/data-passes", test_data_passes);
    g_test_add_func("/throttle/drain", test_drain);
    g_test_add_func("/throttle/insert", test_insert);
    g_test_add_func("/throttle/threads", test_threads);
    return io_harness_run();
}
