/* SPDX-License-Identifier: MIT */
/*
 * Event loops: calls, timers, waiting and being driven by GLib; no call is lost or out of order,
 * whichever thread makes it.
 */
#include "util/event-loop.h"

#include <stdlib.h>
#include <unistd.h>

#define N_CALLERS 4

static GRand *rnd;
static EventLoop *main_loop;

static void set_flag(void *opaque)
{
    atomic_store((atomic_bool *)opaque, true);
    event_loop_notify(main_loop);
}

static void main_loop_is_one(void)
{
    g_assert_true(event_loop_main() == main_loop);
    g_assert_true(event_loop_current() == main_loop);
    g_assert_cmpint(event_loop_thread_id(main_loop), ==, getpid());
    if (getenv("MERINO_NO_IO_URING")) {
        g_assert_false(event_loop_has_uring(main_loop));
    }
}

static gpointer current_of_thread(gpointer opaque)
{
    return event_loop_current();
}

static void plain_threads_have_no_loop(void)
{
    g_assert_null(g_thread_join(g_thread_new("plain", current_of_thread, NULL)));
}

/* Calls from several threads at once: each thread's come in its order, and all come. */
typedef struct Storm {
    EventLoop *loop;
    int next[N_CALLERS]; /* the loop's thread only */
    atomic_int left;
    atomic_bool done;
} Storm;

typedef struct StormCall {
    Storm *storm;
    int caller;
    int i;
} StormCall;

typedef struct StormCaller {
    Storm *storm;
    int caller;
    int n;
} StormCaller;

static void storm_call(void *opaque)
{
    StormCall *call = opaque;
    Storm *storm = call->storm;

    g_assert_true(event_loop_current() == storm->loop);
    g_assert_cmpint(storm->next[call->caller]++, ==, call->i);
    g_free(call);
    if (atomic_fetch_sub(&storm->left, 1) == 1) {
        set_flag(&storm->done);
    }
}

static gpointer storm_caller(gpointer opaque)
{
    StormCaller *caller = opaque;

    for (int i = 0; i < caller->n; i++) {
        StormCall *call = g_new(StormCall, 1);

        *call = (StormCall){ caller->storm, caller->caller, i };
        event_loop_call(caller->storm->loop, storm_call, call);
    }
    return NULL;
}

static void run_storm(EventLoop *loop, int n)
{
    Storm storm = { .loop = loop, .left = n * N_CALLERS };
    StormCaller callers[N_CALLERS];
    GThread *threads[N_CALLERS];

    for (int i = 0; i < N_CALLERS; i++) {
        callers[i] = (StormCaller){ &storm, i, n };
        threads[i] = g_thread_new("caller", storm_caller, &callers[i]);
    }
    event_loop_poll_until(main_loop, &storm.done);
    for (int i = 0; i < N_CALLERS; i++) {
        g_thread_join(threads[i]);
    }
}

static void calls_keep_their_order(void)
{
    EventLoop *loop = event_loop_new("storm", NULL);

    run_storm(loop, 20000);
    event_loop_free(loop);
    run_storm(main_loop, 20000);
}

/* A call that another thread made before is not overtaken by one of the loop's own. */
typedef struct Overtake {
    int n;
    int seen[2];
} Overtake;

static Overtake overtake;

static void see(void *opaque)
{
    overtake.seen[overtake.n++] = GPOINTER_TO_INT(opaque);
}

static gpointer call_first(gpointer opaque)
{
    event_loop_call(main_loop, see, GINT_TO_POINTER(1));
    return NULL;
}

static void own_calls_do_not_overtake(void)
{
    overtake.n = 0;
    g_thread_join(g_thread_new("first", call_first, NULL));
    event_loop_call(main_loop, see, GINT_TO_POINTER(2));
    while (overtake.n < 2) {
        event_loop_poll(main_loop, true);
    }
    g_assert_cmpint(overtake.seen[0], ==, 1);
    g_assert_cmpint(overtake.seen[1], ==, 2);
}

static void poll_tells_whether_something_ran(void)
{
    atomic_bool flag = false;

    while (event_loop_poll(main_loop, false)) {
    }
    event_loop_call(main_loop, set_flag, &flag);
    g_assert_false(atomic_load(&flag));
    g_assert_true(event_loop_poll(main_loop, true));
    g_assert_true(atomic_load(&flag));
    g_assert_false(event_loop_poll(main_loop, false));
}

static gpointer notify_main(gpointer opaque)
{
    set_flag(opaque);
    return NULL;
}

static void notify_ends_a_blocking_poll(void)
{
    for (int i = 0; i < 300; i++) {
        atomic_bool flag = false;
        GThread *thread = g_thread_new("notifier", notify_main, &flag);

        event_loop_poll_until(main_loop, &flag);
        g_thread_join(thread);
    }
    /* One that comes before the poll is not lost. */
    while (event_loop_poll(main_loop, false)) {
    }
    event_loop_notify(main_loop);
    event_loop_poll(main_loop, true);
}

static void add_one(void *opaque)
{
    atomic_fetch_add((atomic_int *)opaque, 1);
}

static void free_runs_what_was_called(void)
{
    for (int i = 0; i < 100; i++) {
        EventLoop *loop = event_loop_new("short", NULL);
        atomic_int n = 0;

        g_assert_true(loop != main_loop);
        g_assert_cmpint(event_loop_thread_id(loop), !=, getpid());
        for (int j = 0; j < i; j++) {
            event_loop_call(loop, add_one, &n);
        }
        event_loop_free(loop);
        g_assert_cmpint(atomic_load(&n), ==, i);
    }
    event_loop_free(NULL);
}

static int count_descriptors(void)
{
    g_autoptr(GDir) dir = g_dir_open("/proc/self/fd", 0, NULL);
    int n = 0;

    while (g_dir_read_name(dir)) {
        n++;
    }
    return n;
}

static void loops_come_and_go_without_a_trace(void)
{
    EventLoop *loops[8];
    int before = 0;

    for (int round = 0; round < 20; round++) {
        for (size_t i = 0; i < G_N_ELEMENTS(loops); i++) {
            loops[i] = event_loop_new("trace", NULL);
            g_assert_nonnull(loops[i]);
        }
        for (size_t i = 0; i < G_N_ELEMENTS(loops); i++) {
            event_loop_free(loops[i]);
        }
        if (round == 0) {
            before = count_descriptors();
        }
    }
    g_assert_cmpint(count_descriptors(), ==, before);
}

/* Timers against a sorted list. */
static int64_t last_deadline;
static int timers_fired;

typedef struct TestTimer {
    EventTimer *timer;
    int64_t deadline; /* 0: not armed */
} TestTimer;

static void timer_fired(void *opaque)
{
    TestTimer *timer = opaque;

    g_assert_cmpint(timer->deadline, >=, last_deadline);
    g_assert_cmpint(timer->deadline, <=, event_loop_now_ns());
    last_deadline = timer->deadline;
    timer->deadline = 0;
    timers_fired++;
}

static void timers_fire_in_order(void)
{
    TestTimer timers[100] = { { NULL } };
    int64_t base = event_loop_now_ns();
    int armed = 0;

    for (size_t i = 0; i < G_N_ELEMENTS(timers); i++) {
        timers[i].timer = event_timer_new(main_loop, timer_fired, &timers[i]);
    }
    for (int step = 0; step < 2000; step++) {
        TestTimer *timer = &timers[g_rand_int_range(rnd, 0, G_N_ELEMENTS(timers))];

        if (g_rand_int_range(rnd, 0, 3) == 0) {
            event_timer_cancel(timer->timer);
            timer->deadline = 0;
        } else {
            timer->deadline = base + g_rand_int_range(rnd, 0, 20000000);
            event_timer_set(timer->timer, timer->deadline);
        }
    }
    for (size_t i = 0; i < G_N_ELEMENTS(timers); i++) {
        armed += timers[i].deadline != 0;
    }
    last_deadline = 0;
    timers_fired = 0;
    while (timers_fired < armed) {
        event_loop_poll(main_loop, true);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(timers); i++) {
        g_assert_cmpint(timers[i].deadline, ==, 0);
        event_timer_free(timers[i].timer);
    }
    event_timer_free(NULL);
}

typedef struct Again {
    EventTimer *timer;
    int n;
} Again;

static void fire_again(void *opaque)
{
    Again *again = opaque;

    again->n++;
    event_timer_set(again->timer, 0);
}

/* A timer that is always due leaves room for others. */
static void past_timers_do_not_starve(void)
{
    Again again = { .n = 0 };
    atomic_bool flag = false;

    again.timer = event_timer_new(main_loop, fire_again, &again);
    event_timer_set(again.timer, 0);
    event_loop_call(main_loop, set_flag, &flag);
    event_loop_poll_until(main_loop, &flag);
    event_loop_poll(main_loop, true);
    g_assert_cmpint(again.n, >=, 2);
    event_timer_free(again.timer);
}

static void free_while_armed_is_quiet(void)
{
    Again again = { .n = 0 };

    again.timer = event_timer_new(main_loop, fire_again, &again);
    event_timer_set(again.timer, 0);
    event_timer_free(again.timer);
    event_loop_poll(main_loop, false);
    g_assert_cmpint(again.n, ==, 0);
}

/* Under GLib. */
typedef struct UnderGlib {
    GMainLoop *glib_loop;
    EventTimer *timer;
    int64_t deadline;
    bool inside;
    int left;
} UnderGlib;

static void quit_glib(void *opaque)
{
    UnderGlib *under = opaque;

    g_main_loop_quit(under->glib_loop);
}

static void check_deadline_and_quit(void *opaque)
{
    UnderGlib *under = opaque;

    g_assert_cmpint(event_loop_now_ns(), >=, under->deadline);
    g_main_loop_quit(under->glib_loop);
}

static gpointer call_quit(gpointer opaque)
{
    event_loop_call(main_loop, quit_glib, opaque);
    return NULL;
}

static void glib_drives_calls_and_timers(void)
{
    UnderGlib under = { .glib_loop = g_main_loop_new(NULL, FALSE) };
    GSource *source = event_loop_attach(main_loop);

    for (int i = 0; i < 300; i++) {
        GThread *thread = g_thread_new("caller", call_quit, &under);

        g_main_loop_run(under.glib_loop);
        g_thread_join(thread);
    }
    under.timer = event_timer_new(main_loop, check_deadline_and_quit, &under);
    for (int i = 0; i < 10; i++) {
        under.deadline = event_loop_now_ns() + 1000000;
        event_timer_set(under.timer, under.deadline);
        g_main_loop_run(under.glib_loop);
    }
    event_timer_free(under.timer);
    g_source_destroy(source);
    g_source_unref(source);
    g_main_loop_unref(under.glib_loop);
}

/* A source that polls the loop from its dispatch, and must not be dispatched within. */
static gboolean poll_from_dispatch(gpointer opaque)
{
    UnderGlib *under = opaque;
    atomic_bool flag = false;
    GThread *thread;

    g_assert_false(under->inside);
    under->inside = true;
    thread = g_thread_new("notifier", notify_main, &flag);
    event_loop_poll_until(main_loop, &flag);
    g_thread_join(thread);
    under->inside = false;
    if (--under->left == 0) {
        g_main_loop_quit(under->glib_loop);
        return G_SOURCE_REMOVE;
    }
    return G_SOURCE_CONTINUE;
}

static void pause_until_zero(void *opaque)
{
    while (*(int *)opaque) {
        coroutine_pause();
    }
    *(int *)opaque = -1;
}

static void nested_polls_run_no_glib_source(void)
{
    UnderGlib under = { .glib_loop = g_main_loop_new(NULL, FALSE), .left = 100 };
    GSource *source = event_loop_attach(main_loop);

    coroutine_start(pause_until_zero, &under.left);
    g_idle_add(poll_from_dispatch, &under);
    g_idle_add_full(G_PRIORITY_HIGH, poll_from_dispatch, &under, NULL);
    g_main_loop_run(under.glib_loop);
    while (g_source_remove_by_user_data(&under)) {
    }
    while (under.left != -1) {
        event_loop_poll(main_loop, true);
    }
    g_source_destroy(source);
    g_source_unref(source);
    g_main_loop_unref(under.glib_loop);
}

/* A callback of the loop that polls the loop. */
typedef struct Nest {
    int depth;
    int ran;
} Nest;

static void poll_deeper(void *opaque)
{
    Nest *nest = opaque;

    nest->ran++;
    if (nest->depth-- > 0) {
        event_loop_call(main_loop, poll_deeper, nest);
        event_loop_poll(main_loop, true);
    }
}

static void callbacks_may_poll(void)
{
    Nest nest = { .depth = 20 };

    for (int i = 0; i < 5; i++) {
        event_loop_call(main_loop, poll_deeper, &nest);
    }
    while (event_loop_poll(main_loop, false)) {
    }
    g_assert_cmpint(nest.ran, ==, 25);
}

/* Coroutines of two loops that wake each other, while callbacks come in from threads. */
typedef struct Relay {
    Coroutine *co[2];
    EventLoop *loop[2];
    int rounds;
    atomic_int left;
    atomic_bool done;
} Relay;

typedef struct RelayPlayer {
    Relay *relay;
    int me;
} RelayPlayer;

static void play(RelayPlayer *player)
{
    Relay *relay = player->relay;

    for (int i = 0; i < relay->rounds; i++) {
        coroutine_wake(relay->co[!player->me]);
        if (player->me == 0 || i + 1 < relay->rounds) {
            coroutine_yield();
        }
    }
    if (atomic_fetch_sub(&relay->left, 1) == 1) {
        set_flag(&relay->done);
    }
}

typedef struct Register {
    RelayPlayer *player;
    atomic_bool done;
} Register;

static void register_and_play(void *opaque)
{
    Register *reg = opaque;
    RelayPlayer *player = reg->player;

    player->relay->co[player->me] = coroutine_self();
    set_flag(&reg->done);
    coroutine_yield();
    play(player);
}

static void loops_wake_each_other(void)
{
    Relay relay = { .rounds = 3000, .left = 2 };
    RelayPlayer players[2] = { { &relay, 0 }, { &relay, 1 } };

    relay.loop[0] = main_loop;
    relay.loop[1] = event_loop_new("relay", NULL);
    for (int i = 0; i < 2; i++) {
        Register reg = { .player = &players[i] };

        coroutine_start_on(relay.loop[i], register_and_play, &reg);
        event_loop_poll_until(main_loop, &reg.done);
    }
    coroutine_wake(relay.co[0]);
    event_loop_poll_until(main_loop, &relay.done);
    event_loop_free(relay.loop[1]);
}

int main(int argc, char **argv)
{
    const char *given = getenv("MERINO_TEST_SEED");
    guint32 seed = given ? strtoul(given, NULL, 0) : g_random_int();
    int ret;

    g_test_init(&argc, &argv, NULL);
    g_test_message("MERINO_TEST_SEED=%u", seed);
    rnd = g_rand_new_with_seed(seed);
    main_loop = event_loop_main();
    g_test_add_func("/event-loop/main-loop-is-one", main_loop_is_one);
    g_test_add_func("/event-loop/plain-threads-have-no-loop", plain_threads_have_no_loop);
    g_test_add_func("/event-loop/calls-keep-their-order", calls_keep_their_order);
    g_test_add_func("/event-loop/own-calls-do-not-overtake", own_calls_do_not_overtake);
    g_test_add_func("/event-loop/poll-tells-whether-something-ran",
                    poll_tells_whether_something_ran);
    g_test_add_func("/event-loop/notify-ends-a-blocking-poll", notify_ends_a_blocking_poll);
    g_test_add_func("/event-loop/free-runs-what-was-called", free_runs_what_was_called);
    g_test_add_func("/event-loop/loops-come-and-go-without-a-trace",
                    loops_come_and_go_without_a_trace);
    g_test_add_func("/event-loop/callbacks-may-poll", callbacks_may_poll);
    g_test_add_func("/event-loop/loops-wake-each-other", loops_wake_each_other);
    g_test_add_func("/event-loop/timer/fire-in-order", timers_fire_in_order);
    g_test_add_func("/event-loop/timer/past-ones-do-not-starve", past_timers_do_not_starve);
    g_test_add_func("/event-loop/timer/free-while-armed-is-quiet", free_while_armed_is_quiet);
    g_test_add_func("/event-loop/glib/drives-calls-and-timers", glib_drives_calls_and_timers);
    g_test_add_func("/event-loop/glib/nested-polls-run-no-source", nested_polls_run_no_glib_source);
    ret = g_test_run();
    g_rand_free(rnd);
    return ret;
}
