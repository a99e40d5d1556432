/* SPDX-License-Identifier: MIT */
/*
 * HBitmap against a naive twin: an array of bytes, one a bit.
 *
 * A world holds a few bitmaps of one size and a few coarser ones, each with
 * its twin, and runs random verbs on both. Whatever a verb answers is compared at
 * once, the whole contents every few hundred steps. Sizes lie around words, lines,
 * pages and directories, and so do most of the positions. A world reports the first
 * difference; that it can is shown by worlds whose twin has a bit flipped on purpose.
 */
#include "sanitized.h"
#include "util/hbitmap.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define PAGE_BITS UINT64_C(32768)
#define DIR_BITS  (UINT64_C(512) * PAGE_BITS)

enum {
    N_FINE = 4,
    N_COARSE = 2,
    N_ALL = N_FINE + N_COARSE,
};

typedef struct Pair {
    HBitmap *bm;
    uint8_t *twin;
    uint64_t size;
} Pair;

typedef struct World {
    uint64_t rng;
    Pair pair[N_ALL]; /* the fine ones, then the coarse ones */
    int k;            /* 2^k fine bits fall into a coarse one */
    unsigned check_every;
    unsigned step;
    char *fault; /* the first difference seen */
} World;

static uint64_t base_seed;

/* ---- Randomness ---- */

static uint64_t rnd(World *w)
{
    w->rng ^= w->rng << 13;
    w->rng ^= w->rng >> 7;
    w->rng ^= w->rng << 17;
    return w->rng * UINT64_C(0x2545f4914f6cdd1d) >> 16;
}

static uint64_t below(World *w, uint64_t limit)
{
    return rnd(w) % limit;
}

/* A position from 0 to `limit`, mostly near a boundary of the structure or of the bitmap. */
static uint64_t pick_position(World *w, uint64_t limit)
{
    static const uint64_t units[] = { 64, 512, PAGE_BITS, DIR_BITS };
    uint64_t near = 0;

    switch (below(w, 4)) {
    case 0:
        return below(w, limit + 1);
    case 1:
        near = below(w, 2) ? limit : 0;
        break;
    default:
        near = units[below(w, G_N_ELEMENTS(units))];
        near *= below(w, limit / near + 2);
        break;
    }
    uint64_t off = below(w, 5) ? below(w, 4) : below(w, 200);
    uint64_t at = below(w, 2) ? near + off : near - MIN(near, off);
    return MIN(at, limit);
}

static void pick_range(World *w, uint64_t size, uint64_t *start, uint64_t *end)
{
    uint64_t a = pick_position(w, size);
    uint64_t b = below(w, 3) ? a + below(w, 100) : pick_position(w, size);

    b = MIN(b, size);

    *start = MIN(a, b);
    *end = MAX(a, b);
}

static Pair *pick_pair(World *w)
{
    return &w->pair[below(w, 3) ? below(w, N_FINE) : below(w, N_ALL)];
}

/* Two different bitmaps of one size. */
static void pick_two(World *w, Pair **a, Pair **b)
{
    bool coarse = below(w, 4) == 0;
    unsigned first = coarse ? N_FINE : 0, n = coarse ? N_COARSE : N_FINE;
    unsigned i = below(w, n), j = below(w, n - 1);

    *a = &w->pair[first + i];
    *b = &w->pair[first + (j >= i ? j + 1 : j)];
}

/* ---- The twin ---- */

static void G_GNUC_PRINTF(2, 3) differ(World *w, const char *format, ...)
{
    if (!w->fault) {
        va_list args;
        va_start(args, format);
        g_autofree char *text = g_strdup_vprintf(format, args);
        va_end(args);
        w->fault = g_strdup_printf("step %u: %s", w->step, text);
    }
}

static uint64_t twin_find(const Pair *p, int value, uint64_t start, uint64_t end)
{
    const uint8_t *found = start < end ? memchr(p->twin + start, value, end - start) : NULL;
    return found ? (uint64_t)(found - p->twin) : end;
}

static uint64_t twin_count(const Pair *p)
{
    uint64_t count = 0;
    for (uint64_t i = 0; i < p->size; i++) {
        count += p->twin[i];
    }
    return count;
}

static void twin_or(Pair *dst, const Pair *src)
{
    for (uint64_t i = 0; i < dst->size; i++) {
        dst->twin[i] |= src->twin[i];
    }
}

static void twin_shrink(Pair *dst, const Pair *src, int k)
{
    for (uint64_t i = 0; i < src->size; i++) {
        dst->twin[i >> k] |= src->twin[i];
    }
}

static void twin_spread(Pair *dst, const Pair *src, int k)
{
    for (uint64_t i = 0; (i = twin_find(src, 1, i, src->size)) < src->size; i++) {
        uint64_t start = i << k;
        memset(dst->twin + start, 1, MIN(dst->size - start, UINT64_C(1) << k));
    }
}

static void twin_to_bytes(const Pair *p, uint64_t start, uint64_t nbits, uint8_t *buf)
{
    const uint8_t *t = p->twin + start;
    uint64_t i = 0;

    for (; i + 8 <= nbits; i += 8, t += 8) {
        *buf++ = t[0] | t[1] << 1 | t[2] << 2 | t[3] << 3 | t[4] << 4 | t[5] << 5 | t[6] << 6 |
                 t[7] << 7;
    }
    if (i < nbits) {
        *buf = 0;
        for (unsigned bit = 0; i + bit < nbits; bit++) {
            *buf |= t[bit] << bit;
        }
    }
}

static void check_pair(World *w, Pair *p)
{
    uint64_t n_bytes = (p->size + 7) / 8;
    g_autofree uint8_t *got = g_malloc(n_bytes + 1);
    g_autofree uint8_t *want = g_malloc(n_bytes + 1);

    hbitmap_serialize(p->bm, 0, p->size, got);
    twin_to_bytes(p, 0, p->size, want);
    for (uint64_t i = 0; i < n_bytes; i++) {
        if (got[i] != want[i]) {
            differ(w, "bitmap %d: byte %" PRIu64 " is %02x, not %02x", (int)(p - w->pair), i,
                   got[i], want[i]);
            return;
        }
    }
    uint64_t count = hbitmap_count(p->bm), twin = twin_count(p);
    if (count != twin) {
        differ(w, "bitmap %d: count %" PRIu64 ", not %" PRIu64, (int)(p - w->pair), count, twin);
    }
    if (hbitmap_is_empty(p->bm) != (twin == 0)) {
        differ(w, "bitmap %d: emptiness", (int)(p - w->pair));
    }
}

/* ---- Verbs ---- */

static void try_set(World *w)
{
    Pair *p = pick_pair(w);
    uint64_t start, end;
    pick_range(w, p->size, &start, &end);
    hbitmap_set(p->bm, start, end - start);
    memset(p->twin + start, 1, end - start);
}

/* A hint changes nothing, whatever its number. */
static void try_set_bit(World *w)
{
    Pair *p = pick_pair(w);
    uint64_t start, end;
    pick_range(w, p->size, &start, &end);
    hbitmap_prefetch(p->bm, end % 2 ? start : rnd(w));
    if (start < p->size) {
        hbitmap_set_bit(p->bm, start);
        p->twin[start] = 1;
    }
}

static void try_reset(World *w)
{
    Pair *p = pick_pair(w);
    uint64_t start, end;
    pick_range(w, p->size, &start, &end);
    hbitmap_reset(p->bm, start, end - start);
    memset(p->twin + start, 0, end - start);
}

static void try_get(World *w)
{
    Pair *p = pick_pair(w);
    for (int i = 0; i < 8 && p->size > 0; i++) {
        uint64_t bit = pick_position(w, p->size - 1);
        if (hbitmap_get(p->bm, bit) != p->twin[bit]) {
            differ(w, "get of %" PRIu64, bit);
        }
    }
}

static void try_search(World *w)
{
    Pair *p = pick_pair(w);
    uint64_t start, end;
    pick_range(w, p->size, &start, &end);
    uint64_t dirty = hbitmap_next_dirty(p->bm, start, end);
    uint64_t clear = hbitmap_next_clear(p->bm, start, end);
    uint64_t twin_dirty = twin_find(p, 1, start, end), twin_clear = twin_find(p, 0, start, end);
    if (dirty != twin_dirty || clear != twin_clear) {
        differ(w,
               "in [%" PRIu64 ", %" PRIu64 "): next dirty %" PRIu64 ", not %" PRIu64
               "; next clear %" PRIu64 ", not %" PRIu64,
               start, end, dirty, twin_dirty, clear, twin_clear);
    }
    HBitmapRangeState want = twin_dirty == end   ? HBITMAP_CLEAR
                             : twin_clear == end ? HBITMAP_SET
                                                 : HBITMAP_MIXED;
    if (hbitmap_range_state(p->bm, start, end - start) != want) {
        differ(w, "range state of [%" PRIu64 ", %" PRIu64 ")", start, end);
    }
}

static void try_area(World *w)
{
    Pair *p = pick_pair(w);
    uint64_t start, end, area = 77, len = 78;
    pick_range(w, p->size, &start, &end);
    uint64_t max = below(w, 2) ? UINT64_MAX : 1 + below(w, 300);
    bool found = hbitmap_next_dirty_area(p->bm, start, end, max, &area, &len);
    uint64_t first = twin_find(p, 1, start, end);
    uint64_t want_area = 77, want_len = 78;
    if (first < end) {
        want_area = first;
        want_len = twin_find(p, 0, first, end) - first;
        want_len = MIN(want_len, max);
    }
    if (found != (first < end) || area != want_area || len != want_len) {
        differ(w, "area in [%" PRIu64 ", %" PRIu64 ")", start, end);
    }
}

static void try_areas(World *w)
{
    Pair *p = pick_pair(w);
    HBitmapArea areas[40];
    uint64_t start, end;
    pick_range(w, p->size, &start, &end);
    size_t max = below(w, 4) ? 1 + below(w, G_N_ELEMENTS(areas)) : G_N_ELEMENTS(areas);
    size_t n = hbitmap_dirty_areas(p->bm, start, end, areas, max);
    uint64_t at = start;
    for (size_t i = 0; i < max; i++) {
        uint64_t first = twin_find(p, 1, at, end);
        uint64_t last = first < end ? twin_find(p, 0, first, end) : end;
        if ((first < end) != (i < n) ||
            (i < n && (areas[i].start != first || areas[i].len != last - first))) {
            differ(w, "area %zu of %zu in [%" PRIu64 ", %" PRIu64 ")", i, n, start, end);
        }
        if (first == end) {
            break;
        }
        at = last;
    }
}

static void try_clone(World *w)
{
    Pair *from, *to;
    pick_two(w, &from, &to);
    hbitmap_free(to->bm);
    to->bm = hbitmap_clone(from->bm);
    memcpy(to->twin, from->twin, to->size);
}

static void try_copy_from(World *w)
{
    Pair *from, *to;
    pick_two(w, &from, &to);
    hbitmap_copy_from(to->bm, from->bm);
    memcpy(to->twin, from->twin, to->size);
}

static void try_swap(World *w)
{
    Pair *a, *b;
    pick_two(w, &a, &b);
    hbitmap_swap(a->bm, b->bm);
    uint8_t *twin = a->twin;
    a->twin = b->twin;
    b->twin = twin;
}

static void try_clear(World *w)
{
    Pair *p = pick_pair(w);
    hbitmap_clear(p->bm);
    memset(p->twin, 0, p->size);
}

static void try_fill(World *w)
{
    Pair *p = pick_pair(w);
    hbitmap_fill(p->bm);
    memset(p->twin, 1, p->size);
}

static void try_merge(World *w)
{
    Pair *from, *to;
    pick_two(w, &from, &to);
    hbitmap_merge(to->bm, from->bm);
    twin_or(to, from);
}

static void try_merge_shift(World *w)
{
    Pair *fine = &w->pair[below(w, N_FINE)];
    Pair *coarse = &w->pair[N_FINE + below(w, N_COARSE)];
    if (below(w, 2)) {
        hbitmap_merge_shift(coarse->bm, fine->bm, -w->k);
        twin_shrink(coarse, fine, w->k);
    } else {
        hbitmap_merge_shift(fine->bm, coarse->bm, w->k);
        twin_spread(fine, coarse, w->k);
    }
}

static void try_fold(World *w)
{
    Pair *epoch = &w->pair[below(w, N_FINE)];
    HBitmap *dst[N_ALL];
    int shift[N_ALL];
    size_t n = 0;
    for (int i = 0; i < N_ALL; i++) {
        Pair *p = &w->pair[i];
        if (p != epoch && below(w, 2)) {
            bool fine = i < N_FINE;
            dst[n] = p->bm;
            shift[n++] = fine ? 0 : -w->k;
            twin_shrink(p, epoch, fine ? 0 : w->k);
        }
    }
    hbitmap_fold(epoch->bm, dst, shift, n);
    memset(epoch->twin, 0, epoch->size);
    if (!hbitmap_is_empty(epoch->bm) || hbitmap_count(epoch->bm) != 0) {
        differ(w, "the epoch is not empty after a fold");
    }
}

static void try_truncate(World *w)
{
    uint64_t old = w->pair[0].size, size = pick_position(w, old + old / 4);
    size = MAX(size, MAX(1, old / 2));
    for (int i = 0; i < N_ALL; i++) {
        Pair *p = &w->pair[i];
        uint64_t coarse = (size >> w->k) + ((size & ((UINT64_C(1) << w->k) - 1)) != 0);
        uint64_t n = i < N_FINE ? size : coarse;
        g_assert_true(hbitmap_truncate(p->bm, n, NULL));
        p->twin = g_realloc(p->twin, n + 1);
        if (n > p->size) {
            memset(p->twin + p->size, 0, n - p->size);
        }
        p->size = n;
    }
}

static void try_equal(World *w)
{
    Pair *a, *b;
    pick_two(w, &a, &b);
    if (hbitmap_equal(a->bm, b->bm) != (memcmp(a->twin, b->twin, a->size) == 0)) {
        differ(w, "equality");
    }
}

static void try_difference(World *w)
{
    Pair *a, *b;
    uint64_t start, end, i;

    pick_two(w, &a, &b);
    pick_range(w, a->size, &start, &end);
    for (i = start; i < end && a->twin[i] == b->twin[i]; i++) {
    }
    if (hbitmap_next_difference(a->bm, b->bm, start, end) != i) {
        differ(w, "next difference");
    }
}

static void try_settle(World *w)
{
    hbitmap_settle(pick_pair(w)->bm);
}

static void try_compact(World *w)
{
    hbitmap_compact(pick_pair(w)->bm);
}

static void try_serialize(World *w)
{
    Pair *from, *to;
    uint64_t start, end;
    pick_two(w, &from, &to);
    pick_range(w, from->size, &start, &end);
    start &= ~UINT64_C(7);
    uint64_t n = end - start, n_bytes = (n + 7) / 8;
    g_autofree uint8_t *got = g_malloc(n_bytes + 2);
    g_autofree uint8_t *want = g_malloc(n_bytes + 1);
    got[n_bytes] = 0xa5;
    hbitmap_serialize(from->bm, start, n, got);
    twin_to_bytes(from, start, n, want);
    if (memcmp(got, want, n_bytes) != 0 || got[n_bytes] != 0xa5) {
        differ(w, "serialize of [%" PRIu64 ", %" PRIu64 ")", start, end);
    }
    if (n % 8) {
        got[n_bytes - 1] |= 0xff << n % 8;
    }
    hbitmap_deserialize(to->bm, start, n, got);
    memcpy(to->twin + start, from->twin + start, n);
}

/* How often each verb comes up. */
static const struct {
    void (*run)(World *w);
    unsigned weight;
} verbs[] = {
    { try_set, 24 },      { try_set_bit, 6 },     { try_reset, 18 }, { try_get, 10 },
    { try_search, 15 },   { try_area, 10 },       { try_areas, 10 }, { try_clone, 2 },
    { try_copy_from, 2 }, { try_swap, 1 },        { try_clear, 1 },  { try_fill, 1 },
    { try_merge, 4 },     { try_merge_shift, 3 }, { try_fold, 4 },   { try_truncate, 1 },
    { try_equal, 2 },     { try_difference, 2 },  { try_settle, 2 }, { try_compact, 2 },
    { try_serialize, 3 },
};

static void (*pick_verb(World *w))(World *)
{
    unsigned total = 0;
    for (size_t i = 0; i < G_N_ELEMENTS(verbs); i++) {
        total += verbs[i].weight;
    }
    unsigned at = below(w, total);
    size_t i = 0;
    while (at >= verbs[i].weight) {
        at -= verbs[i++].weight;
    }
    return verbs[i].run;
}

/* ---- Worlds ---- */

/*
 * Run `steps` verbs; returns the first difference in words, or NULL. With `planted` a
 * bit of a twin is flipped after that many checks of all contents.
 */
static char *run_world(uint64_t seed, uint64_t size, int k, unsigned steps, unsigned check_every,
                       unsigned planted)
{
    World w = { .rng = seed * UINT64_C(0x9e3779b97f4a7c15) + 1, .k = k };

    for (int i = 0; i < N_ALL; i++) {
        Pair *p = &w.pair[i];
        p->size = i < N_FINE ? size : (size >> k) + ((size & ((UINT64_C(1) << k) - 1)) != 0);
        p->bm = hbitmap_new(p->size, NULL);
        p->twin = g_malloc0(p->size + 1);
    }
    unsigned checks = 0;
    for (w.step = 0; w.step < steps && !w.fault; w.step++) {
        pick_verb (&w)(&w);
        if ((w.step + 1) % check_every == 0 || w.step + 1 == steps) {
            if (++checks == planted) {
                Pair *p = pick_pair(&w);
                p->twin[below(&w, p->size)] ^= 1;
            }
            for (int i = 0; i < N_ALL; i++) {
                check_pair(&w, &w.pair[i]);
            }
        }
    }
    for (int i = 0; i < N_ALL; i++) {
        hbitmap_free(w.pair[i].bm);
        g_free(w.pair[i].twin);
    }
    return w.fault;
}

static void expect_true_world(uint64_t seed, uint64_t size, int k, unsigned steps,
                              unsigned check_every)
{
    g_autofree char *fault = run_world(seed, size, k, steps, check_every, 0);
    if (fault) {
        g_error("MERINO_TEST_SEED=%" PRIu64 ", world seed %" PRIu64 ", size %" PRIu64 ", k %d: %s",
                base_seed, seed, size, k, fault);
    }
}

static void run_sizes(const uint64_t *sizes, size_t n, unsigned rounds, unsigned steps,
                      unsigned check_every, int max_k)
{
    for (unsigned round = 0; round < rounds; round++) {
        for (size_t i = 0; i < n; i++) {
            uint64_t seed = base_seed + round * 1000 + i;
            expect_true_world(seed, sizes[i], 1 + seed % max_k, steps, check_every);
        }
    }
}

static void test_around_words(void)
{
    static const uint64_t sizes[] = { 1,   7,   8,   63,  64,   65,   100,  127, 128,
                                      511, 512, 513, 777, 1023, 4095, 4097, 9999 };
    run_sizes(sizes, G_N_ELEMENTS(sizes), SANITIZED ? 2 : 8, SANITIZED ? 2000 : 15000, 300, 10);
}

static void test_around_pages(void)
{
    static const uint64_t sizes[] = { PAGE_BITS - 1,     PAGE_BITS,         PAGE_BITS + 1,
                                      2 * PAGE_BITS - 9, 2 * PAGE_BITS,     2 * PAGE_BITS + 65,
                                      3 * PAGE_BITS + 1, 8 * PAGE_BITS - 1, 9 * PAGE_BITS + 511 };
    run_sizes(sizes, G_N_ELEMENTS(sizes), SANITIZED ? 1 : 5, SANITIZED ? 2000 : 12000, 1000, 17);
}

static void test_around_directories(void)
{
    static const uint64_t sizes[] = { DIR_BITS + 1, DIR_BITS - 1, DIR_BITS, 2 * DIR_BITS - 70,
                                      2 * DIR_BITS + PAGE_BITS };
    run_sizes(sizes, SANITIZED ? 2 : G_N_ELEMENTS(sizes), 1, SANITIZED ? 15 : 250, 60, 20);
}

static void test_planted_fault_is_found(void)
{
    for (unsigned i = 0; i < (SANITIZED ? 6 : 20); i++) {
        uint64_t size = i % 2 ? 777 : 2 * PAGE_BITS + 65;
        g_autofree char *fault = run_world(base_seed + i, size, 3, 1000, 100, 1 + i % 10);
        g_assert_nonnull(fault);
        g_autofree char *none = run_world(base_seed + i, size, 3, 1000, 100, 0);
        g_assert_null(none);
    }
}

int main(int argc, char **argv)
{
    const char *given = getenv("MERINO_TEST_SEED");

    g_test_init(&argc, &argv, NULL);
    base_seed = given ? strtoull(given, NULL, 10) : (uint64_t)g_get_real_time() % 1000000000;
    g_test_message("MERINO_TEST_SEED=%" PRIu64, base_seed);

    g_test_add_func("/hbitmap/twin/planted-fault-is-found", test_planted_fault_is_found);
    g_test_add_func("/hbitmap/twin/around-words", test_around_words);
    g_test_add_func("/hbitmap/twin/around-pages", test_around_pages);
    g_test_add_func("/hbitmap/twin/around-directories", test_around_directories);
    return g_test_run();
}
