/* SPDX-License-Identifier: MIT */
/*
 * HBitmap under many threads: what its invariants 2 to 7 promise (see util/hbitmap.c).
 *
 * Each thread knows what it did itself; bits are dealt out so that threads share
 * words, pages and directories but never a bit, so the expected content is
 * exact. The folding tests log each bit after it was set and demand of every fold
 * what was logged before it began. Meant for the sanitizers as well.
 */
#include "sanitized.h"
#include "util/hbitmap.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define PAGE_BITS UINT64_C(32768)
#define DIR_BITS  (UINT64_C(512) * PAGE_BITS)

enum {
    N_THREADS = 4,
};

static uint64_t base_seed;

static uint64_t rnd(uint64_t *rng)
{
    *rng ^= *rng << 13;
    *rng ^= *rng >> 7;
    *rng ^= *rng << 17;
    return *rng * UINT64_C(0x2545f4914f6cdd1d) >> 16;
}

static uint64_t seed_for(uint64_t i)
{
    return (base_seed + i) * UINT64_C(0x9e3779b97f4a7c15) + 1;
}

/* ---- Setting and clearing, with shared pages underneath ---- */

/*
 * A window of bits in the middle of a large bitmap, over the end of a directory. Bit i
 * of the window belongs to thread i % N_THREADS.
 */
enum {
    WINDOW_PAGES = 6,
};

#define WINDOW_BITS  (WINDOW_PAGES * PAGE_BITS)
#define WINDOW_START (DIR_BITS - 3 * PAGE_BITS)
#define WINDOW_SIZE  (2 * DIR_BITS + 4711)

typedef struct Painter {
    HBitmap *bm;
    uint8_t *twin; /* of the window; each thread writes its own places */
    unsigned id;
    unsigned steps;
    uint64_t rng;
} Painter;

static void *paint(void *opaque)
{
    Painter *p = opaque;

    for (unsigned i = 0; i < p->steps; i++) {
        uint64_t bit = rnd(&p->rng) % (WINDOW_BITS / N_THREADS) * N_THREADS + p->id;
        bool set = rnd(&p->rng) & 1;
        if (set) {
            hbitmap_set(p->bm, WINDOW_START + bit, 1);
        } else {
            hbitmap_reset(p->bm, WINDOW_START + bit, 1);
        }
        p->twin[bit] = set;
        g_assert_true(hbitmap_get(p->bm, WINDOW_START + bit) == set);
    }
    return NULL;
}

static void check_window(HBitmap *bm, const uint8_t *twin, uint64_t outside)
{
    uint64_t count = 0;

    for (uint64_t i = 0; i < WINDOW_BITS; i++) {
        g_assert_cmpint(hbitmap_get(bm, WINDOW_START + i), ==, twin[i]);
        count += twin[i];
    }
    g_assert_cmpuint(hbitmap_count(bm), ==, count + outside);
}

/*
 * Two bitmaps that share everything are painted at the same time by threads of their
 * own; then they are shared anew in another way, and so on.
 */
static void test_writers_of_shared_pages(void)
{
    unsigned rounds = SANITIZED ? 12 : 60, steps = SANITIZED ? 3000 : 20000;
    HBitmap *bm[2] = { hbitmap_new(WINDOW_SIZE, NULL), hbitmap_new(WINDOW_SIZE, NULL) };
    uint8_t *twin[2] = { g_malloc0(WINDOW_BITS), g_malloc0(WINDOW_BITS) };
    uint64_t outside[2] = { 0, 0 };
    uint64_t rng = seed_for(0);

    for (unsigned round = 0; round < rounds; round++) {
        Painter painter[2][N_THREADS];
        GThread *thread[2][N_THREADS];
        for (int b = 0; b < 2; b++) {
            for (unsigned t = 0; t < N_THREADS; t++) {
                painter[b][t] = (Painter){ bm[b], twin[b], t, steps, seed_for(rnd(&rng)) };
                thread[b][t] = g_thread_new("paint", paint, &painter[b][t]);
            }
        }
        for (int b = 0; b < 2; b++) {
            for (unsigned t = 0; t < N_THREADS; t++) {
                g_thread_join(thread[b][t]);
            }
        }
        for (int b = 0; b < 2; b++) {
            check_window(bm[b], twin[b], outside[b]);
        }

        int from = round % 2, to = !from;
        switch (rnd(&rng) % 5) {
        case 0:
            hbitmap_fill(bm[from]);
            memset(twin[from], 1, WINDOW_BITS);
            outside[from] = WINDOW_SIZE - WINDOW_BITS;
            break;
        case 1:
            hbitmap_clear(bm[from]);
            memset(twin[from], 0, WINDOW_BITS);
            outside[from] = 0;
            break;
        case 2:
            hbitmap_compact(bm[from]);
            break;
        default:
            break;
        }
        if (rnd(&rng) % 3 == 0) {
            hbitmap_merge(bm[to], bm[from]);
            for (uint64_t i = 0; i < WINDOW_BITS; i++) {
                twin[to][i] |= twin[from][i];
            }
            outside[to] = MAX(outside[to], outside[from]);
        } else {
            hbitmap_copy_from(bm[to], bm[from]);
            memcpy(twin[to], twin[from], WINDOW_BITS);
            outside[to] = outside[from];
        }
        if (rnd(&rng) % 2) {
            hbitmap_free(hbitmap_clone(bm[to]));
        }
    }
    for (int b = 0; b < 2; b++) {
        hbitmap_free(bm[b]);
        g_free(twin[b]);
    }
}

/* ---- Readers beside writers ---- */

typedef struct Flicker {
    HBitmap *bm;
    atomic_bool stop;
    uint64_t rng[N_THREADS];
    atomic_uint next_id;
} Flicker;

/* Every 1000th bit is always set and every 1000th + 500 always clear; others flicker. */
static void *flicker(void *opaque)
{
    Flicker *f = opaque;
    uint64_t *rng = &f->rng[atomic_fetch_add(&f->next_id, 1)];
    uint64_t n = hbitmap_size(f->bm) / 1000;

    while (!atomic_load(&f->stop)) {
        uint64_t base = rnd(rng) % n * 1000, from = 1 + rnd(rng) % 499;
        if (rnd(rng) & 1) {
            hbitmap_set(f->bm, base + from, 500 - from);
        } else {
            hbitmap_reset(f->bm, base + from, 500 - from);
        }
    }
    return NULL;
}

static void test_readers_see_what_stays(void)
{
    unsigned rounds = SANITIZED ? 20 : 200;
    uint64_t n = 3 * PAGE_BITS / 1000;
    Flicker f = { .bm = hbitmap_new(n * 1000, NULL) };
    g_autofree uint8_t *bytes = g_malloc(n * 1000 / 8 + 1);
    GThread *thread[N_THREADS];

    for (uint64_t i = 0; i < n; i++) {
        hbitmap_set(f.bm, i * 1000, 1);
    }
    HBitmap *shared = hbitmap_clone(f.bm);
    for (unsigned t = 0; t < N_THREADS; t++) {
        f.rng[t] = seed_for(100 + t);
        thread[t] = g_thread_new("flicker", flicker, &f);
    }
    for (unsigned round = 0; round < rounds; round++) {
        for (uint64_t base = 0; base < n * 1000; base += 1000) {
            g_assert_true(hbitmap_get(f.bm, base));
            g_assert_cmpuint(hbitmap_next_dirty(f.bm, base, base + 1), ==, base);
            g_assert_cmpuint(hbitmap_next_clear(f.bm, base, n * 1000), <=, base + 500);
            uint64_t end = MIN(base + 1001, n * 1000);
            g_assert_cmpuint(hbitmap_next_dirty(f.bm, base + 500, end), ==, base + 1000);
            uint64_t start, len;
            g_assert_true(hbitmap_next_dirty_area(f.bm, base, end, 2000, &start, &len));
            g_assert_cmpuint(start, ==, base);
            g_assert_cmpuint(len, <=, 500);
            g_assert_cmpint(hbitmap_range_state(f.bm, base, 1000), ==, HBITMAP_MIXED);
        }
        hbitmap_serialize(f.bm, 0, n * 1000, bytes);
        for (uint64_t bit = 0; bit < n * 1000; bit += 500) {
            g_assert_cmpint(bytes[bit / 8] >> (bit % 8) & 1, ==, bit % 1000 == 0);
        }
        g_assert_false(hbitmap_is_empty(f.bm));
    }
    atomic_store(&f.stop, true);
    for (unsigned t = 0; t < N_THREADS; t++) {
        g_thread_join(thread[t]);
    }
    g_assert_cmpuint(hbitmap_count(shared), ==, n);
    hbitmap_free(shared);
    hbitmap_free(f.bm);
}

/* ---- Folding beside writers ---- */

typedef struct Event {
    uint64_t start, nbits;
} Event;

/* A writer of the epoch and what it has completed: events[0 .. done - 1]. */
typedef struct Marker {
    HBitmap *epoch;
    Event *events;
    unsigned n_events;
    unsigned places; /* how many positions it uses; few means that bits are set again */
    uint64_t rng;
    atomic_uint done;
} Marker;

static Event pick_event(Marker *m, uint64_t size)
{
    uint64_t at = rnd(&m->rng) % m->places * (size / m->places);

    switch (rnd(&m->rng) % 1000) {
    case 0:
        at &= ~(DIR_BITS - 1);
        return (Event){ at, MIN(DIR_BITS, size - at) };
    case 1 ... 9:
        at &= ~(PAGE_BITS - 1);
        return (Event){ at, MIN(PAGE_BITS, size - at) };
    case 10 ... 29:
        return (Event){ at, MIN(500, size - at) };
    default:
        return (Event){ at, 1 };
    }
}

static void *mark(void *opaque)
{
    Marker *m = opaque;
    uint64_t size = hbitmap_size(m->epoch);

    for (unsigned i = 0; i < m->n_events; i++) {
        m->events[i] = pick_event(m, size);
        if (m->events[i].nbits == 1) {
            hbitmap_prefetch(m->epoch, i ? m->events[i - 1].start : UINT64_MAX);
            hbitmap_set_bit(m->epoch, m->events[i].start);
        } else {
            hbitmap_set(m->epoch, m->events[i].start, m->events[i].nbits);
        }
        atomic_store(&m->done, i + 1);
    }
    return NULL;
}

static bool all_set(HBitmap *bm, Event e, int shift)
{
    uint64_t first = e.start >> -shift, last = (e.start + e.nbits - 1) >> -shift;
    return hbitmap_range_state(bm, first, last - first + 1) == HBITMAP_SET;
}

static uint64_t shifted(uint64_t size, int shift)
{
    return (size + (UINT64_C(1) << -shift) - 1) >> -shift;
}

/*
 * `fresh`: the destinations are cleared before each fold, so that what one fold leaves
 * behind is not hidden by an earlier one. An event that completed before this fold and after
 * the start of the last one must then be in what either of the two delivered.
 */
static void run_folds(uint64_t size, unsigned places, bool fresh, bool share)
{
    static const int shifts[] = { 0, 0, -1, -4, -9, -17 };
    enum {
        N = G_N_ELEMENTS(shifts),
    };
    unsigned n_events = SANITIZED ? 10000 : 300000;
    HBitmap *epoch = hbitmap_new(size, NULL);
    HBitmap *dst[N], *last[N], *total[N], *shares = NULL;
    Marker marker[N_THREADS];
    GThread *thread[N_THREADS];
    unsigned seen[N_THREADS] = { 0 }, now[N_THREADS];
    bool running = true;

    for (int i = 0; i < N; i++) {
        dst[i] = hbitmap_new(shifted(size, shifts[i]), NULL);
        last[i] = hbitmap_new(shifted(size, shifts[i]), NULL);
        total[i] = hbitmap_new(shifted(size, shifts[i]), NULL);
    }
    if (share) {
        hbitmap_set(epoch, 5, 1);
        hbitmap_set(epoch, size - 9, 1);
        shares = hbitmap_clone(epoch);
    }
    for (unsigned t = 0; t < N_THREADS; t++) {
        marker[t] = (Marker){ .epoch = epoch,
                              .n_events = n_events,
                              .places = places,
                              .events = g_new(Event, n_events),
                              .rng = seed_for(200 + t) };
        thread[t] = g_thread_new("mark", mark, &marker[t]);
    }
    while (running) {
        running = false;
        for (unsigned t = 0; t < N_THREADS; t++) {
            now[t] = atomic_load(&marker[t].done);
            running |= now[t] < n_events;
        }
        for (int i = 0; i < N && fresh; i++) {
            hbitmap_swap(last[i], dst[i]);
            hbitmap_clear(dst[i]);
        }
        hbitmap_fold(epoch, dst, shifts, N);
        for (unsigned t = 0; t < N_THREADS; t++) {
            for (; seen[t] < now[t]; seen[t]++) {
                Event e = marker[t].events[seen[t]];
                for (int i = 0; i < N; i++) {
                    if (!all_set(dst[i], e, shifts[i])) {
                        /* Single bits only: a range may have been cut in two by the folds. */
                        g_assert_true(fresh);
                        g_assert_true(e.nbits > 1 || all_set(last[i], e, shifts[i]));
                    }
                }
            }
        }
        for (int i = 0; i < N; i++) {
            hbitmap_merge(total[i], dst[i]);
        }
    }
    for (unsigned t = 0; t < N_THREADS; t++) {
        g_thread_join(thread[t]);
    }

    /* All writers have finished, so this is exact: nothing lost, nothing made up. */
    hbitmap_fold(epoch, total, shifts, N);
    g_assert_true(hbitmap_is_empty(epoch));
    g_assert_cmpuint(hbitmap_count(epoch), ==, 0);
    HBitmap *model = hbitmap_new(size, NULL);
    for (unsigned t = 0; t < N_THREADS; t++) {
        for (unsigned i = 0; i < n_events; i++) {
            hbitmap_set(model, marker[t].events[i].start, marker[t].events[i].nbits);
        }
        g_free(marker[t].events);
    }
    if (share) {
        hbitmap_set(model, 5, 1);
        hbitmap_set(model, size - 9, 1);
        g_assert_cmpuint(hbitmap_count(shares), ==, 2);
    }
    for (int i = 0; i < N; i++) {
        HBitmap *want = hbitmap_new(shifted(size, shifts[i]), NULL);
        hbitmap_merge_shift(want, model, shifts[i]);
        g_assert_true(hbitmap_equal(total[i], want));
        g_assert_cmpuint(hbitmap_count(total[i]), ==, hbitmap_count(want));
        hbitmap_free(want);
        hbitmap_free(dst[i]);
        hbitmap_free(last[i]);
        hbitmap_free(total[i]);
    }
    hbitmap_free(model);
    hbitmap_free(shares);
    hbitmap_free(epoch);
}

static void test_fold_loses_nothing(void)
{
    run_folds(3 * DIR_BITS + 12345, 100000, false, false);
}

static void test_fold_of_hot_bits(void)
{
    run_folds(2 * PAGE_BITS + 77, 5, true, false);
    run_folds(2 * DIR_BITS, 40, true, false);
}

static void test_fold_of_a_shared_epoch(void)
{
    run_folds(DIR_BITS + PAGE_BITS + 100, 3000, true, true);
}

/* ---- Folding into bitmaps that others write, too ---- */

static void test_fold_beside_writers_of_the_destination(void)
{
    unsigned rounds = SANITIZED ? 5 : 30, steps = SANITIZED ? 2000 : 20000;
    HBitmap *epoch = hbitmap_new(WINDOW_SIZE, NULL), *dst = hbitmap_new(WINDOW_SIZE, NULL);
    uint8_t *twin = g_malloc0(WINDOW_BITS);

    for (unsigned round = 0; round < rounds; round++) {
        Painter painter[N_THREADS - 1];
        GThread *thread[N_THREADS - 1];
        HBitmap *before = hbitmap_clone(dst);
        for (unsigned t = 0; t < N_THREADS - 1; t++) {
            painter[t] = (Painter){ dst, twin, t, steps, seed_for(300 + round * 10 + t) };
            thread[t] = g_thread_new("paint", paint, &painter[t]);
        }
        /* The last thread's share of the bits comes by way of the epoch. */
        const int shift = 0;
        uint64_t rng = seed_for(400 + round);
        for (unsigned i = 0; i < 20; i++) {
            for (unsigned j = 0; j < 50; j++) {
                uint64_t bit = rnd(&rng) % (WINDOW_BITS / N_THREADS) * N_THREADS + N_THREADS - 1;
                hbitmap_set(epoch, WINDOW_START + bit, 1);
                twin[bit] = 1;
            }
            hbitmap_fold(epoch, &dst, &shift, 1);
        }
        for (unsigned t = 0; t < N_THREADS - 1; t++) {
            g_thread_join(thread[t]);
        }
        check_window(dst, twin, 0);
        hbitmap_free(before);
    }
    g_free(twin);
    hbitmap_free(epoch);
    hbitmap_free(dst);
}

int main(int argc, char **argv)
{
    const char *given = getenv("MERINO_TEST_SEED");

    g_test_init(&argc, &argv, NULL);
    base_seed = given ? strtoull(given, NULL, 10) : (uint64_t)g_get_real_time() % 1000000000;
    g_test_message("MERINO_TEST_SEED=%" PRIu64, base_seed);

    g_test_add_func("/hbitmap/threads/writers-of-shared-pages", test_writers_of_shared_pages);
    g_test_add_func("/hbitmap/threads/readers-see-what-stays", test_readers_see_what_stays);
    g_test_add_func("/hbitmap/threads/fold-loses-nothing", test_fold_loses_nothing);
    g_test_add_func("/hbitmap/threads/fold-of-hot-bits", test_fold_of_hot_bits);
    g_test_add_func("/hbitmap/threads/fold-of-a-shared-epoch", test_fold_of_a_shared_epoch);
    g_test_add_func("/hbitmap/threads/fold-beside-writers-of-the-destination",
                    test_fold_beside_writers_of_the_destination);
    return g_test_run();
}
