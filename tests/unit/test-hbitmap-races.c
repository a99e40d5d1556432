/* SPDX-License-Identifier: MIT */
/*
 * HBitmap: the narrow races, made wide.
 *
 * The bitmap's sources are built into this program with their race points switched on: at
 * each step that matters the running thread may let others go first. The tests repeat short
 * encounters of a few threads, each aimed at an invariant of util/hbitmap.c, very often.
 */
#include "sanitized.h"
#include "util/hbitmap.h"

#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#define PAGE_BITS UINT64_C(32768)
#define DIR_BITS  (UINT64_C(512) * PAGE_BITS)

enum {
    N_THREADS = 4,
};

static uint64_t base_seed;
static _Thread_local uint64_t rng;

static uint64_t rnd(void)
{
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return rng * UINT64_C(0x2545f4914f6cdd1d) >> 16;
}

static void seed_thread(uint64_t i)
{
    rng = (base_seed + i) * UINT64_C(0x9e3779b97f4a7c15) + 1;
}

void hb_race_point(void);

/* Threads that were not seeded, like the main one between encounters, go straight on. */
void hb_race_point(void)
{
    if (rng && rnd() % 16 == 0) {
        sched_yield();
    }
}

/* ---- A set that found its bit already set (invariant 5) ---- */

/*
 * All threads set the same few bits and fold the epoch themselves. Folds are numbered. When
 * no fold was running as the bit was set, a later one must have delivered it.
 */
typedef struct Folders {
    HBitmap *epoch, *dst;
    uint64_t n_bits, step;
    unsigned turns;
    pthread_mutex_t lock;
    atomic_uint started, finished;
    unsigned delivered[8]; /* under `lock`: the last fold that delivered bit i */
} Folders;

static void fold_once(Folders *f)
{
    const int shift = 0;

    pthread_mutex_lock(&f->lock);
    unsigned number = atomic_fetch_add(&f->started, 1) + 1;
    hbitmap_fold(f->epoch, &f->dst, &shift, 1);
    for (uint64_t i = 0; i < f->n_bits; i++) {
        if (hbitmap_get(f->dst, i * f->step)) {
            f->delivered[i] = number;
        }
    }
    hbitmap_clear(f->dst);
    atomic_store(&f->finished, number);
    pthread_mutex_unlock(&f->lock);
}

static void *set_and_fold(void *opaque)
{
    Folders *f = opaque;

    seed_thread(atomic_load(&f->started) + (uintptr_t)&f);
    for (unsigned turn = 0; turn < f->turns; turn++) {
        uint64_t i = rnd() % f->n_bits;
        unsigned finished = atomic_load(&f->finished), started = atomic_load(&f->started);
        hbitmap_prefetch(f->epoch, rnd() % f->n_bits * f->step);
        hbitmap_set_bit(f->epoch, i * f->step);
        fold_once(f);
        pthread_mutex_lock(&f->lock);
        g_assert_cmpuint(f->delivered[i], >=, started + (started == finished));
        pthread_mutex_unlock(&f->lock);
    }
    return NULL;
}

static void run_folders(uint64_t size, uint64_t n_bits, uint64_t step)
{
    Folders f = { .epoch = hbitmap_new(size, NULL),
                  .dst = hbitmap_new(size, NULL),
                  .n_bits = n_bits,
                  .step = step,
                  .turns = SANITIZED ? 3000 : 5000,
                  .lock = PTHREAD_MUTEX_INITIALIZER };
    GThread *thread[N_THREADS];

    for (int t = 0; t < N_THREADS; t++) {
        thread[t] = g_thread_new("folder", set_and_fold, &f);
    }
    for (int t = 0; t < N_THREADS; t++) {
        g_thread_join(thread[t]);
    }
    hbitmap_fold(f.epoch, NULL, NULL, 0);
    g_assert_cmpuint(hbitmap_count(f.epoch), ==, 0);
    hbitmap_free(f.epoch);
    hbitmap_free(f.dst);
}

static void test_a_returned_set_is_folded(void)
{
    run_folders(100, 1, 1);
    run_folders(1000, 3, 1);
    run_folders(9 * PAGE_BITS, 8, PAGE_BITS);
    run_folders(4 * DIR_BITS, 4, DIR_BITS);
}

/* ---- Encounters: all threads start together, once for each ---- */

typedef struct Encounter Encounter;
struct Encounter {
    HBitmap *bm, *other, *third;
    unsigned rounds;
    pthread_barrier_t barrier;
    atomic_uint next_id;
    void (*prepare)(Encounter *e);          /* by one thread, the others wait */
    void (*act)(Encounter *e, unsigned id); /* by all at once */
    void (*check)(Encounter *e);            /* by one thread, the others wait */
};

static void *meet(void *opaque)
{
    Encounter *e = opaque;
    unsigned id = atomic_fetch_add(&e->next_id, 1);

    for (unsigned round = 0; round < e->rounds; round++) {
        if (id == 0) {
            rng = 0;
            e->prepare(e);
        }
        pthread_barrier_wait(&e->barrier);
        seed_thread(round * N_THREADS + id);
        e->act(e, id);
        pthread_barrier_wait(&e->barrier);
        if (id == 0) {
            rng = 0;
            e->check(e);
        }
    }
    return NULL;
}

static void run_encounters(uint64_t size, void (*prepare)(Encounter *e),
                           void (*act)(Encounter *e, unsigned id), void (*check)(Encounter *e))
{
    Encounter e = { .bm = hbitmap_new(size, NULL),
                    .prepare = prepare,
                    .act = act,
                    .check = check,
                    .rounds = SANITIZED ? 3000 : 5000 };
    GThread *thread[N_THREADS];

    pthread_barrier_init(&e.barrier, NULL, N_THREADS);
    for (int t = 0; t < N_THREADS; t++) {
        thread[t] = g_thread_new("meet", meet, &e);
    }
    for (int t = 0; t < N_THREADS; t++) {
        g_thread_join(thread[t]);
    }
    pthread_barrier_destroy(&e.barrier);
    hbitmap_free(e.bm);
}

/* Two bits that lie in the first page are set before; each thread adds one. */
static void prepare_clone(Encounter *e)
{
    hbitmap_clear(e->bm);
    hbitmap_set(e->bm, 0, 1);
    hbitmap_set(e->bm, PAGE_BITS - 1, 1);
    e->other = hbitmap_clone(e->bm);
}

/* The same, but only the page is shared, not its directory. */
static void prepare_shared_page(Encounter *e)
{
    prepare_clone(e);
    hbitmap_set(e->bm, PAGE_BITS, 1);
    hbitmap_settle(e->bm);
    hbitmap_reset(e->bm, PAGE_BITS, 1);
}

static uint64_t bit_of(unsigned id)
{
    return id % 2 ? 64 + id : PAGE_BITS / 2 + id;
}

/* Thread 0 drops the clone while the others write what was shared with it. */
static void act_drop_and_write(Encounter *e, unsigned id)
{
    if (id == 0) {
        hbitmap_free(e->other);
    } else {
        hbitmap_set_bit(e->bm, bit_of(id));
    }
}

static void check_writes(Encounter *e)
{
    for (unsigned id = 1; id < N_THREADS; id++) {
        g_assert_true(hbitmap_get(e->bm, bit_of(id)));
    }
    g_assert_cmpuint(hbitmap_count(e->bm), ==, 2 + N_THREADS - 1);
}

static void test_the_other_holder_drops_meanwhile(void)
{
    run_encounters(2 * PAGE_BITS, prepare_clone, act_drop_and_write, check_writes);
    run_encounters(2 * PAGE_BITS, prepare_shared_page, act_drop_and_write, check_writes);
}

/* Both holders write at once, two threads each. */
static void act_write_both(Encounter *e, unsigned id)
{
    hbitmap_prefetch(e->bm, bit_of(id));
    hbitmap_set_bit(id < 2 ? e->bm : e->other, bit_of(id));
}

static void check_both(Encounter *e)
{
    for (unsigned id = 0; id < N_THREADS; id++) {
        g_assert_cmpint(hbitmap_get(e->bm, bit_of(id)), ==, id < 2);
        g_assert_cmpint(hbitmap_get(e->other, bit_of(id)), ==, id >= 2);
    }
    g_assert_cmpuint(hbitmap_count(e->bm), ==, 4);
    g_assert_cmpuint(hbitmap_count(e->other), ==, 4);
    hbitmap_free(e->other);
}

static void test_both_holders_write(void)
{
    run_encounters(2 * PAGE_BITS, prepare_clone, act_write_both, check_both);
    run_encounters(2 * PAGE_BITS, prepare_shared_page, act_write_both, check_both);
}

/* A whole page is set, parts of it are cleared, and an epoch is folded, all at once. */
static void prepare_nothing(Encounter *e)
{
    hbitmap_clear(e->bm);
    e->other = hbitmap_new(hbitmap_size(e->bm), NULL);
    if (rnd() % 2) {
        hbitmap_set(e->bm, 5, 1);
        hbitmap_free(hbitmap_clone(e->bm));
    }
}

static void act_fill_and_fold(Encounter *e, unsigned id)
{
    const int shift = 0;

    switch (id) {
    case 0:
        hbitmap_set(e->bm, 0, DIR_BITS);
        break;
    case 1:
        hbitmap_fold(e->bm, &e->other, &shift, 1);
        break;
    case 2:
        hbitmap_set(e->bm, PAGE_BITS, PAGE_BITS);
        hbitmap_set_bit(e->bm, DIR_BITS + 77);
        break;
    default:
        hbitmap_set(e->bm, PAGE_BITS - 10, 20);
        break;
    }
}

static void check_fill_and_fold(Encounter *e)
{
    hbitmap_merge(e->other, e->bm);
    g_assert_cmpuint(hbitmap_next_clear(e->other, 0, DIR_BITS), ==, DIR_BITS);
    g_assert_cmpuint(hbitmap_count(e->other), ==, DIR_BITS + 1);
    hbitmap_free(e->other);
}

static void test_units_are_folded_whole(void)
{
    run_encounters(DIR_BITS + 100, prepare_nothing, act_fill_and_fold, check_fill_and_fold);
}

/* An epoch is folded into two bitmaps, which share what was absent in both, while each is written.
 */
static void prepare_epoch(Encounter *e)
{
    hbitmap_clear(e->bm);
    hbitmap_set(e->bm, 0, 1);
    hbitmap_set(e->bm, PAGE_BITS - 1, 1);
    e->other = hbitmap_new(hbitmap_size(e->bm), NULL);
    e->third = hbitmap_new(hbitmap_size(e->bm), NULL);
}

static void fold_into_both(Encounter *e)
{
    HBitmap *const dst[] = { e->other, e->third };
    const int shifts[] = { 0, 0 };

    hbitmap_fold(e->bm, dst, shifts, 2);
}

static void act_fold_and_write(Encounter *e, unsigned id)
{
    switch (id) {
    case 0:
        fold_into_both(e);
        break;
    case 1:
        hbitmap_set(e->other, bit_of(1), 1);
        break;
    case 2:
        hbitmap_set(e->third, bit_of(2), 1);
        hbitmap_reset(e->third, bit_of(2), 1);
        hbitmap_set(e->third, bit_of(0), 1);
        break;
    default:
        hbitmap_set(e->bm, bit_of(id), 1);
        break;
    }
}

static void check_destination(const HBitmap *dst, unsigned own)
{
    const uint64_t bits[] = { 0, PAGE_BITS - 1, bit_of(own), bit_of(3) };

    for (size_t i = 0; i < G_N_ELEMENTS(bits); i++) {
        g_assert_true(hbitmap_get(dst, bits[i]));
    }
    g_assert_cmpuint(hbitmap_count(dst), ==, G_N_ELEMENTS(bits));
}

static void check_fold_and_write(Encounter *e)
{
    fold_into_both(e);
    check_destination(e->other, 1);
    check_destination(e->third, 0);
    hbitmap_free(e->other);
    hbitmap_free(e->third);
}

static void test_destinations_share_what_is_folded(void)
{
    run_encounters(2 * PAGE_BITS, prepare_epoch, act_fold_and_write, check_fold_and_write);
}

int main(int argc, char **argv)
{
    const char *given = getenv("MERINO_TEST_SEED");

    g_test_init(&argc, &argv, NULL);
    base_seed = given ? strtoull(given, NULL, 10) : (uint64_t)g_get_real_time() % 1000000000;
    g_test_message("MERINO_TEST_SEED=%" PRIu64, base_seed);

    g_test_add_func("/hbitmap/races/a-returned-set-is-folded", test_a_returned_set_is_folded);
    g_test_add_func("/hbitmap/races/the-other-holder-drops-meanwhile",
                    test_the_other_holder_drops_meanwhile);
    g_test_add_func("/hbitmap/races/both-holders-write", test_both_holders_write);
    g_test_add_func("/hbitmap/races/units-are-folded-whole", test_units_are_folded_whole);
    g_test_add_func("/hbitmap/races/destinations-share-what-is-folded",
                    test_destinations_share_what_is_folded);
    return g_test_run();
}
