/* SPDX-License-Identifier: MIT */
/* The staging buffer against a naive twin: what is in it, in which state, and with which bytes. */
#include "block/copy/staging.h"
#include "io-harness.h"

#include <string.h>

#define UNIT  512
#define UNITS 200
#define SLOTS 40
#define STEPS 20000
#define RUNS  4

typedef enum Place {
    OUTSIDE,
    STAGED,
    ON_ITS_WAY,
} Place;

typedef struct World {
    Staging *staging;
    GRand *random;
    Place place[UNITS];
    bool zero[UNITS];
    uint8_t byte[UNITS];
    unsigned next_byte;
    StagedRun sent[RUNS];
    unsigned n_sent;
    StagedRun pinned[RUNS];
    uint8_t pinned_bytes[RUNS][UNITS];
    unsigned n_pinned;
} World;

static unsigned count_inside(const World *w)
{
    unsigned n = 0;

    for (int i = 0; i < UNITS; i++) {
        n += w->place[i] != OUTSIDE;
    }
    return n;
}

/* At most so many slots are in use: those that are read may have left the buffer. */
static unsigned count_used(const World *w)
{
    unsigned n = count_inside(w);

    for (unsigned i = 0; i < w->n_pinned; i++) {
        n += w->pinned[i].n;
    }
    return n;
}

static void check_memory(World *w, const StagedRun *run, const uint8_t *bytes)
{
    IoVector vec;
    uint8_t buf[UNITS * UNIT];

    if (run->zero) {
        return;
    }
    iov_init(&vec);
    staging_add_memory(w->staging, run, &vec, 0, run->n * UNIT);
    g_assert_cmpint(vec.size, ==, run->n * UNIT);
    iov_to_buf(&vec, 0, buf, vec.size);
    for (unsigned i = 0; i < run->n * UNIT; i++) {
        g_assert_cmpint(buf[i], ==, bytes[i / UNIT]);
    }
    iov_done(&vec);
}

static void fill(World *w, const StagedRun *run)
{
    IoVector vec;

    iov_init(&vec);
    for (unsigned i = 0; i < run->n; i++) {
        staging_add_memory(w->staging, run, &vec, i * UNIT, UNIT);
        w->byte[run->first + i] = (uint8_t)w->next_byte++;
        iov_memset(&vec, i * UNIT, w->byte[run->first + i], UNIT);
    }
    iov_done(&vec);
}

static void coroutine_fn try_stage(World *w)
{
    int64_t first = g_rand_int_range(w->random, 0, UNITS);
    unsigned most = g_rand_int_range(w->random, 1, 12), keep;
    StagedRun run;

    for (unsigned i = 0; i < most; i++) {
        if (first + i >= UNITS || w->place[first + i] != OUTSIDE) {
            most = i;
        }
    }
    if (most == 0 || count_used(w) >= SLOTS) {
        return; /* it might wait for ever */
    }
    g_assert_true(staging_reserve(w->staging, first, most, &run));
    g_assert_cmpint(run.n, <=, most);
    keep = g_rand_int_range(w->random, 0, run.n + 1);
    staging_trim(w->staging, &run, keep);
    run.zero = g_rand_boolean(w->random);
    fill(w, &run);
    if (keep == 0) {
        return;
    }
    staging_publish(w->staging, &run);
    for (unsigned i = 0; i < keep; i++) {
        w->place[first + i] = STAGED;
        w->zero[first + i] = run.zero;
    }
}

static void try_send(World *w)
{
    StagedRun *run = &w->sent[w->n_sent];
    bool any = false;

    for (int i = 0; i < UNITS; i++) {
        any = any || w->place[i] == STAGED;
    }
    if (w->n_sent == RUNS) {
        return;
    }
    g_assert_cmpint(staging_send(w->staging, g_rand_int_range(w->random, 1, 20), run), ==, any);
    if (!any) {
        return;
    }
    w->n_sent++;
    for (unsigned i = 0; i < run->n; i++) {
        g_assert_cmpint(w->place[run->first + i], ==, STAGED);
        g_assert_cmpint(w->zero[run->first + i], ==, run->zero);
        w->place[run->first + i] = ON_ITS_WAY;
    }
    check_memory(w, run, w->byte + run->first);
}

static void try_arrive(World *w)
{
    StagedRun *run;

    if (w->n_sent == 0) {
        return;
    }
    run = &w->sent[g_rand_int_range(w->random, 0, w->n_sent)];
    check_memory(w, run, w->byte + run->first);
    staging_arrived(w->staging, run);
    for (unsigned i = 0; i < run->n; i++) {
        w->place[run->first + i] = OUTSIDE;
    }
    *run = w->sent[--w->n_sent];
}

static void try_pin(World *w)
{
    int64_t first = g_rand_int_range(w->random, 0, UNITS), end = first, next = first;
    StagedRun *run = &w->pinned[w->n_pinned];

    while (next < UNITS && w->place[next] == OUTSIDE) {
        next++;
    }
    g_assert_cmpint(staging_next(w->staging, first, UNITS), ==, next);
    while (end < UNITS && w->place[end] != OUTSIDE && w->zero[end] == w->zero[first]) {
        end++;
    }
    if (w->n_pinned == RUNS) {
        return;
    }
    staging_pin(w->staging, first, UNITS, run);
    g_assert_cmpint(run->n, ==, end - first);
    if (run->n == 0) {
        return;
    }
    memcpy(w->pinned_bytes[w->n_pinned], w->byte + first, run->n);
    w->n_pinned++;
}

static void try_unpin(World *w)
{
    unsigned i;

    if (w->n_pinned == 0) {
        return;
    }
    i = g_rand_int_range(w->random, 0, w->n_pinned);
    check_memory(w, &w->pinned[i], w->pinned_bytes[i]);
    staging_unpin(w->staging, &w->pinned[i]);
    w->n_pinned--;
    w->pinned[i] = w->pinned[w->n_pinned];
    memcpy(w->pinned_bytes[i], w->pinned_bytes[w->n_pinned], UNITS);
}

static void coroutine_fn try_drop(World *w)
{
    int64_t first = g_rand_int_range(w->random, 0, UNITS), end = first;
    int64_t limit = g_rand_int_range(w->random, (int)first, UNITS + 1);

    while (end < limit && w->place[end] != ON_ITS_WAY) {
        end++; /* it would wait for those */
    }
    staging_drop(w->staging, first, end);
    for (; first < end; first++) {
        w->place[first] = OUTSIDE;
    }
}

static void drop_all(World *w)
{
    staging_drop_all(w->staging);
    for (int i = 0; i < UNITS; i++) {
        w->place[i] = w->place[i] == ON_ITS_WAY ? ON_ITS_WAY : OUTSIDE;
    }
}

static void coroutine_fn walk(void *opaque)
{
    World *w = opaque;

    for (int i = 0; i < STEPS; i++) {
        switch (g_rand_int_range(w->random, 0, 12)) {
        case 0:
            try_drop(w);
            break;
        case 1:
        case 2:
            try_send(w);
            break;
        case 3:
        case 4:
            try_arrive(w);
            break;
        case 5:
            try_pin(w);
            break;
        case 6:
        case 7:
            try_unpin(w);
            break;
        default:
            try_stage(w);
        }
        if (i % 1000 == 999) {
            drop_all(w);
        }
        g_assert_cmpint(staging_count(w->staging), ==, count_inside(w));
    }
    while (w->n_sent) {
        try_arrive(w);
    }
    while (w->n_pinned) {
        try_unpin(w);
    }
}

static void test_is_what_its_twin_is(void)
{
    World *w = g_new0(World, 1);

    w->random = g_rand_new_with_seed(test_seed());
    w->staging = staging_new(SLOTS * UNIT, UNIT, UNITS, NULL);
    coroutine_run(walk, w);
    staging_free(w->staging);
    g_rand_free(w->random);
    g_free(w);
}

typedef struct Reservation {
    Staging *staging;
    StagedRun run;
    bool ret, done;
} Reservation;

static void coroutine_fn reserve_entry(void *opaque)
{
    Reservation *r = opaque;

    r->ret = staging_reserve(r->staging, 0, 2, &r->run);
    r->done = true;
}

static void run_main_loop(void)
{
    while (event_loop_poll(event_loop_main(), false)) {
    }
}

static void test_room_is_given_in_turn(void)
{
    Reservation r[4];

    for (int i = 0; i < 4; i++) {
        r[i] = (Reservation){ .staging = i ? r[0].staging : staging_new(2 * UNIT, UNIT, 9, NULL) };
        coroutine_start(reserve_entry, &r[i]);
    }
    g_assert_true(r[0].done && r[0].ret && r[0].run.n == 2);
    g_assert_false(r[1].done);
    staging_trim(r[0].staging, &r[0].run, 1);
    run_main_loop();
    g_assert_true(r[1].done && r[1].ret && r[1].run.n == 1); /* what there is */
    g_assert_false(r[2].done);
    staging_close(r[0].staging);
    run_main_loop();
    g_assert_true(r[2].done && !r[2].ret && r[3].done && !r[3].ret);
    staging_open(r[0].staging);
    staging_trim(r[0].staging, &r[0].run, 0);
    staging_trim(r[0].staging, &r[1].run, 0);
    staging_free(r[0].staging);
}

int main(int argc, char **argv)
{
    io_harness_init(&argc, &argv, true);
    g_test_add_func("/staging/is-what-its-twin-is", test_is_what_its_twin_is);
    g_test_add_func("/staging/room-is-given-in-turn", test_room_is_given_in_turn);
    return io_harness_run();
}
