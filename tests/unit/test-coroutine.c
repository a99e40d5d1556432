/* SPDX-License-Identifier: MIT */
/*
 * Coroutines and their locks: who runs when, on which thread; no wake is lost, no lock is held by
 * two, however many threads take part.
 */
#include "util/coroutine.h"

#include "util/event-loop.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define N_LOOPS 4

static GString *trace;
static guint32 seed;

static void say(const char *word)
{
    g_string_append(trace, word);
}

static void poll_while(const int *n)
{
    while (*n) {
        event_loop_poll(event_loop_main(), true);
    }
}

static void say_two_words(void *opaque)
{
    say("in ");
    coroutine_pause();
    say("on ");
}

static void start_runs_until_the_first_yield(void)
{
    g_string_truncate(trace, 0);
    coroutine_start(say_two_words, NULL);
    say("back ");
    g_assert_null(coroutine_self());
    while (!strstr(trace->str, "on ")) {
        event_loop_poll(event_loop_main(), true);
    }
    g_assert_cmpstr(trace->str, ==, "in back on ");
}

static void start_another(void *opaque)
{
    Coroutine *self = coroutine_self();

    say("outer ");
    coroutine_start(say_two_words, NULL);
    g_assert_true(coroutine_self() == self);
    say("again ");
}

static void start_nests(void)
{
    g_string_truncate(trace, 0);
    coroutine_start(start_another, NULL);
    say("back ");
    while (!strstr(trace->str, "on ")) {
        event_loop_poll(event_loop_main(), true);
    }
    g_assert_cmpstr(trace->str, ==, "outer in again back on ");
}

static void wait_for_wake(void *opaque)
{
    *(Coroutine **)opaque = coroutine_self();
    coroutine_yield();
    *(Coroutine **)opaque = NULL;
}

static void wake_is_not_at_once(void)
{
    Coroutine *co = NULL;

    coroutine_start(wait_for_wake, &co);
    g_assert_nonnull(co);
    g_assert_false(event_loop_poll(event_loop_main(), false));
    coroutine_wake(co);
    g_assert_nonnull(co);
    while (co) {
        event_loop_poll(event_loop_main(), true);
    }
}

static gpointer wake_from_thread(gpointer opaque)
{
    coroutine_wake(opaque);
    return NULL;
}

/* The waker has come and gone before the yield. */
static void be_woken_early(void *opaque)
{
    g_thread_join(g_thread_new("waker", wake_from_thread, coroutine_self()));
    coroutine_yield();
    *(int *)opaque = 0;
}

static void wake_may_come_before_the_yield(void)
{
    int waiting = 1;

    coroutine_start(be_woken_early, &waiting);
    poll_while(&waiting);
}

static void nested_run(void *opaque)
{
    coroutine_run(say_two_words, NULL);
    coroutine_sleep_ns(1000);
    say("end ");
}

static void run_waits_for_the_end(void)
{
    g_string_truncate(trace, 0);
    coroutine_run(nested_run, NULL);
    g_assert_cmpstr(trace->str, ==, "in on end ");
}

typedef struct Sleeper {
    int64_t ns;
    int *n;
} Sleeper;

static void sleep_and_look(void *opaque)
{
    Sleeper *sleeper = opaque;
    int64_t start = event_loop_now_ns();

    coroutine_sleep_ns(sleeper->ns);
    g_assert_cmpint(event_loop_now_ns() - start, >=, sleeper->ns);
    (*sleeper->n)--;
}

static void coroutine_fn take_short_naps(void *opaque)
{
    for (int64_t ns = 0; ns < 20000; ns++) {
        coroutine_sleep_ns(ns % 4000);
    }
    *(int *)opaque = 0;
}

/* A deadline may pass between two looks at the clock. */
static void short_naps_end(void)
{
    int napping = 1;

    coroutine_start(take_short_naps, &napping);
    poll_while(&napping);
}

static void sleepers_sleep_long_enough(void)
{
    int n = 4;
    Sleeper sleepers[] = { { 3000000, &n }, { 1000000, &n }, { 2000000, &n }, { -1, &n } };

    for (size_t i = 0; i < G_N_ELEMENTS(sleepers); i++) {
        coroutine_start(sleep_and_look, &sleepers[i]);
    }
    g_assert_cmpint(n, ==, 4);
    poll_while(&n);
}

/* Stack memory that the compiler cannot do without. */
static int use_stack(int depth)
{
    volatile char bytes[1024];

    memset((char *)bytes, depth, sizeof(bytes));
    return depth ? use_stack(depth - 1) + bytes[depth % 1024] : bytes[0];
}

static void go_deep(void *opaque)
{
    *(int *)opaque = use_stack(150);
}

static void stacks_are_deep_enough(void)
{
    int result = -1;

    coroutine_start(go_deep, &result);
    g_assert_cmpint(result, !=, -1);
}

static void overflow(void *opaque)
{
    use_stack(1000000);
}

static void overflow_hits_the_guard(void)
{
    if (g_test_subprocess()) {
        coroutine_start(overflow, NULL);
        return;
    }
    g_test_trap_subprocess(NULL, 0, G_TEST_SUBPROCESS_DEFAULT);
    g_test_trap_assert_failed();
}

static void double_wake(void)
{
    Coroutine *co;

    if (g_test_subprocess()) {
        coroutine_start(wait_for_wake, &co);
        coroutine_wake(co);
        coroutine_wake(co);
        return;
    }
    g_test_trap_subprocess(NULL, 0, G_TEST_SUBPROCESS_DEFAULT);
    g_test_trap_assert_failed();
    g_test_trap_assert_stderr("*woken twice*");
}

/* Coroutines that are all there at once. */
typedef struct Crowd {
    int here;
    int left;
    GMutex lock;
    CoQueue queue;
} Crowd;

static void join_crowd(void *opaque)
{
    Crowd *crowd = opaque;

    crowd->here++;
    g_mutex_lock(&crowd->lock);
    co_queue_wait(&crowd->queue, &crowd->lock);
    g_mutex_unlock(&crowd->lock);
    crowd->left--;
}

static void thousands_at_once(void)
{
    Crowd crowd = { .left = 3000 };

    g_mutex_init(&crowd.lock);
    co_queue_init(&crowd.queue);
    g_assert_true(co_queue_is_empty(&crowd.queue));
    for (int i = 0; i < 3000; i++) {
        coroutine_start(join_crowd, &crowd);
    }
    g_assert_cmpint(crowd.here, ==, 3000);
    g_mutex_lock(&crowd.lock);
    g_assert_true(co_queue_wake_all(&crowd.queue));
    g_assert_false(co_queue_wake_one(&crowd.queue));
    g_mutex_unlock(&crowd.lock);
    poll_while(&crowd.left);
    g_mutex_clear(&crowd.lock);
}

static int count_mappings(void)
{
    g_autofree char *maps = NULL;
    int n = 0;

    g_assert_true(g_file_get_contents("/proc/self/maps", &maps, NULL, NULL));
    for (const char *line = maps; (line = strchr(line, '\n')); line++) {
        n++;
    }
    return n;
}

static void count_down(void *opaque)
{
    atomic_fetch_sub((atomic_int *)opaque, 1);
}

static gpointer start_many_on(gpointer opaque)
{
    static atomic_int left;

    for (int round = 0; round < 100; round++) {
        atomic_store(&left, 100);
        for (int i = 0; i < 100; i++) {
            coroutine_start_on(opaque, count_down, &left);
        }
        while (atomic_load(&left)) {
            g_thread_yield();
        }
    }
    return NULL;
}

/* One thread takes all the stacks, another gives them all back. */
static void stacks_go_round_between_threads(void)
{
    EventLoop *loop = event_loop_new("stacks", NULL);
    int before;

    g_thread_join(g_thread_new("starter", start_many_on, loop));
    before = count_mappings();
    for (int i = 0; i < 5; i++) {
        g_thread_join(g_thread_new("starter", start_many_on, loop));
    }
    g_assert_cmpint(count_mappings() - before, <, 1000);
    event_loop_free(loop);
}

typedef struct OnLoop {
    EventLoop *loop;
    atomic_bool done;
} OnLoop;

static void check_home(void *opaque)
{
    OnLoop *on = opaque;

    for (int i = 0; i < 3; i++) {
        g_assert_true(event_loop_current() == on->loop);
        g_assert_cmpint(event_loop_thread_id(on->loop), ==, gettid());
        coroutine_pause();
    }
    atomic_store(&on->done, true);
    event_loop_notify(event_loop_main());
}

static void start_on_runs_there(void)
{
    OnLoop on = { .loop = event_loop_new("there", NULL) };

    coroutine_start_on(on.loop, check_home, &on);
    event_loop_poll_until(event_loop_main(), &on.done);
    event_loop_free(on.loop);

    on = (OnLoop){ .loop = event_loop_main() };
    coroutine_start_on(on.loop, check_home, &on);
    event_loop_poll_until(event_loop_main(), &on.done);
}

typedef struct MutexOrder {
    CoMutex mutex;
    int left;
} MutexOrder;

typedef struct MutexUser {
    MutexOrder *order;
    const char *word;
} MutexUser;

static void lock_and_say(void *opaque)
{
    MutexUser *user = opaque;

    co_mutex_lock(&user->order->mutex);
    say(user->word);
    coroutine_pause();
    co_mutex_unlock(&user->order->mutex);
    user->order->left--;
}

static void mutex_is_fair(void)
{
    MutexOrder order = { .left = 3 };
    MutexUser users[] = { { &order, "1 " }, { &order, "2 " }, { &order, "3 " } };

    g_string_truncate(trace, 0);
    co_mutex_init(&order.mutex);
    for (size_t i = 0; i < G_N_ELEMENTS(users); i++) {
        coroutine_start(lock_and_say, &users[i]);
    }
    poll_while(&order.left);
    g_assert_cmpstr(trace->str, ==, "1 2 3 ");
    co_mutex_done(&order.mutex);
}

/*
 * Many coroutines on several loops share counters under a CoMutex and tokens in a CoQueue. Each
 * loop's own random numbers decide what a step does.
 */
typedef struct Hammer {
    EventLoop *loops[N_LOOPS];
    CoMutex mutex;
    int64_t locked_count; /* guarded by mutex */
    bool inside;          /* guarded by mutex */
    GMutex lock;
    CoQueue queue; /* guarded by lock */
    int tokens;    /* guarded by lock */
    int64_t taken; /* guarded by lock */
    int steps;
    atomic_int running;
    atomic_bool done;
} Hammer;

static __thread unsigned random_state;

static unsigned random_below(unsigned n)
{
    if (!random_state) {
        random_state = (seed ^ (unsigned)gettid()) | 1;
    }
    random_state = random_state * 1664525 + 1013904223;
    return (random_state >> 8) % n;
}

static void lock_step(Hammer *hammer)
{
    co_mutex_lock(&hammer->mutex);
    g_assert_false(hammer->inside);
    hammer->inside = true;
    hammer->locked_count++;
    if (random_below(4) == 0) {
        coroutine_pause();
    }
    hammer->inside = false;
    co_mutex_unlock(&hammer->mutex);
}

/* Puts one token in and takes one out, so that all can end. */
static void token_step(Hammer *hammer)
{
    g_mutex_lock(&hammer->lock);
    hammer->tokens++;
    co_queue_wake_one(&hammer->queue);
    g_mutex_unlock(&hammer->lock);
    if (random_below(8) == 0) {
        coroutine_pause();
    }
    g_mutex_lock(&hammer->lock);
    while (hammer->tokens == 0) {
        co_queue_wait(&hammer->queue, &hammer->lock);
    }
    hammer->tokens--;
    hammer->taken++;
    g_mutex_unlock(&hammer->lock);
}

static void hammer_worker(void *opaque)
{
    Hammer *hammer = opaque;

    for (int i = 0; i < hammer->steps; i++) {
        lock_step(hammer);
        token_step(hammer);
    }
    if (atomic_fetch_sub(&hammer->running, 1) == 1) {
        atomic_store(&hammer->done, true);
        event_loop_notify(event_loop_main());
    }
}

static void hammer(int per_loop, int steps)
{
    Hammer state = { .steps = steps, .running = per_loop * N_LOOPS };
    int64_t total = (int64_t)per_loop * N_LOOPS * steps;

    co_mutex_init(&state.mutex);
    co_queue_init(&state.queue);
    g_mutex_init(&state.lock);
    for (int i = 0; i < N_LOOPS; i++) {
        state.loops[i] = i == 0 ? event_loop_main() : event_loop_new("hammer", NULL);
    }
    for (int i = 0; i < per_loop * N_LOOPS; i++) {
        coroutine_start_on(state.loops[i % N_LOOPS], hammer_worker, &state);
    }
    event_loop_poll_until(event_loop_main(), &state.done);
    for (int i = 1; i < N_LOOPS; i++) {
        event_loop_free(state.loops[i]);
    }
    g_assert_cmpint(state.locked_count, ==, total);
    g_assert_cmpint(state.taken, ==, total);
    g_assert_cmpint(state.tokens, ==, 0);
    g_assert_true(co_queue_is_empty(&state.queue));
    g_mutex_clear(&state.lock);
    co_mutex_done(&state.mutex);
}

static void hammered_by_few_for_long(void)
{
    hammer(4, 2000);
}

static void hammered_by_thousands(void)
{
    hammer(500, 10);
}

static void sleep_for_ever(void *opaque)
{
    coroutine_sleep_ns(INT64_MAX);
    *(bool *)opaque = true;
}

/* It sleeps on when the test is over. */
static void the_longest_sleep_does_not_end(void)
{
    static bool ended;

    coroutine_start(sleep_for_ever, &ended);
    for (int i = 0; i < 10; i++) {
        event_loop_poll(event_loop_main(), false);
    }
    g_assert_false(ended);
}

int main(int argc, char **argv)
{
    const char *given = getenv("MERINO_TEST_SEED");
    int ret;

    g_test_init(&argc, &argv, NULL);
    seed = given ? strtoul(given, NULL, 0) : g_random_int();
    g_test_message("MERINO_TEST_SEED=%u", seed);
    trace = g_string_new(NULL);
    event_loop_main();
    g_test_add_func("/coroutine/start-runs-until-the-first-yield",
                    start_runs_until_the_first_yield);
    g_test_add_func("/coroutine/start-nests", start_nests);
    g_test_add_func("/coroutine/wake-is-not-at-once", wake_is_not_at_once);
    g_test_add_func("/coroutine/wake-may-come-before-the-yield", wake_may_come_before_the_yield);
    g_test_add_func("/coroutine/run-waits-for-the-end", run_waits_for_the_end);
    g_test_add_func("/coroutine/sleepers-sleep-long-enough", sleepers_sleep_long_enough);
    g_test_add_func("/coroutine/short-naps-end", short_naps_end);
    g_test_add_func("/coroutine/stacks-are-deep-enough", stacks_are_deep_enough);
    g_test_add_func("/coroutine/overflow-hits-the-guard", overflow_hits_the_guard);
    g_test_add_func("/coroutine/double-wake", double_wake);
    g_test_add_func("/coroutine/thousands-at-once", thousands_at_once);
    g_test_add_func("/coroutine/stacks-go-round-between-threads", stacks_go_round_between_threads);
    g_test_add_func("/coroutine/start-on-runs-there", start_on_runs_there);
    g_test_add_func("/co-lock/mutex-is-fair", mutex_is_fair);
    g_test_add_func("/co-lock/hammered-by-few-for-long", hammered_by_few_for_long);
    g_test_add_func("/co-lock/hammered-by-thousands", hammered_by_thousands);
    g_test_add_func("/coroutine/the-longest-sleep-does-not-end", the_longest_sleep_does_not_end);
    ret = g_test_run();
    g_string_free(trace, TRUE);
    return ret;
}
