/* SPDX-License-Identifier: MIT */
/*
 * What the verbs of HBitmap cost, in process.
 *
 * Each line is measured many times on content made anew and read once, interleaved with
 * one pass of OR over two warm arrays of the size of a random 1 TiB / 64 KiB bitmap (2 MiB):
 * the yardstick. Printed are the median and the fastest and slowest tenth, in
 * microseconds, and the median in passes.
 */
#include "util/hbitmap.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define TIB_BITS   (UINT64_C(1) << 24) /* 1 TiB at 64 KiB */
#define FINE_BITS  (UINT64_C(1) << 28) /* 1 TiB at 4 KiB */
#define TIB16_BITS (UINT64_C(1) << 32) /* 16 TiB at 4 KiB */

enum {
    PASS_WORDS = TIB_BITS / 64,
};

/* Two bitmaps, what is put into them before each run, and what is timed. */
typedef struct Bench {
    const char *name;
    uint64_t dst_bits, src_bits;
    void (*fill_dst)(HBitmap *bm);
    void (*fill_src)(HBitmap *bm);
    void (*run)(HBitmap *dst, HBitmap *src);
} Bench;

static uint64_t rng = UINT64_C(0x123456789abcdef);

static uint64_t rnd(void)
{
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return rng;
}

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

/* ---- Contents ---- */

static void fill_empty(HBitmap *bm)
{
    hbitmap_clear(bm);
}

static void fill_full(HBitmap *bm)
{
    hbitmap_fill(bm);
}

static void fill_half(HBitmap *bm)
{
    uint64_t page[512];

    for (uint64_t bit = 0; bit < hbitmap_size(bm); bit += sizeof(page) * 8) {
        for (size_t i = 0; i < G_N_ELEMENTS(page); i++) {
            page[i] = rnd();
        }
        hbitmap_deserialize(bm, bit, sizeof(page) * 8, (uint8_t *)page);
    }
}

static void fill_percent(HBitmap *bm)
{
    hbitmap_clear(bm);
    for (uint64_t i = 0; i < hbitmap_size(bm) / 100; i++) {
        hbitmap_set(bm, rnd() % hbitmap_size(bm), 1);
    }
}

/* 1 % of the bits in runs of 4096: what sequential writers leave. */
static void fill_clustered(HBitmap *bm)
{
    hbitmap_clear(bm);
    for (uint64_t i = 0; i < hbitmap_size(bm) / 100 / 4096; i++) {
        hbitmap_set(bm, rnd() % (hbitmap_size(bm) - 4096), 4096);
    }
}

/* ---- What is timed ---- */

static void run_merge(HBitmap *dst, HBitmap *src)
{
    hbitmap_merge(dst, src);
}

static void run_merge_with_undo(HBitmap *dst, HBitmap *src)
{
    HBitmap *saved = hbitmap_clone(dst);
    hbitmap_merge(dst, src);
    hbitmap_free(saved);
    hbitmap_settle(dst);
}

static void run_merge_coarser(HBitmap *dst, HBitmap *src)
{
    hbitmap_merge_shift(dst, src, -4);
}

static void run_merge_finer(HBitmap *dst, HBitmap *src)
{
    hbitmap_merge_shift(dst, src, 4);
}

static void run_clear_and_undo(HBitmap *dst, HBitmap *src)
{
    HBitmap *cleared = hbitmap_new(hbitmap_size(dst), NULL);
    hbitmap_swap(dst, cleared);
    hbitmap_swap(dst, cleared);
    hbitmap_free(cleared);
}

static void run_clone(HBitmap *dst, HBitmap *src)
{
    hbitmap_free(hbitmap_clone(dst));
}

static void run_count(HBitmap *dst, HBitmap *src)
{
    if (hbitmap_count(dst) == 1) {
        abort();
    }
}

static void run_compact(HBitmap *dst, HBitmap *src)
{
    hbitmap_compact(dst);
}

static void run_areas(HBitmap *dst, HBitmap *src)
{
    uint64_t start = 0, len = 0;
    while (hbitmap_next_dirty_area(dst, start + len, hbitmap_size(dst), UINT64_MAX, &start, &len)) {
    }
}

static void run_fold(HBitmap *dst, HBitmap *src)
{
    const int shift = 0;
    hbitmap_fold(src, &dst, &shift, 1);
}

/* 100000 bits of a cluster each, as a guest would mark them. */
static void run_mark(HBitmap *dst, HBitmap *src)
{
    for (int i = 0; i < 100000; i++) {
        hbitmap_set_bit(dst, rnd() % hbitmap_size(dst));
    }
}

/* The same with a hint, as a client's writes are marked that has many in flight. */
static void run_mark_hinted(HBitmap *dst, HBitmap *src)
{
    uint64_t next = rnd() % hbitmap_size(dst);

    for (int i = 0; i < 100000; i++) {
        uint64_t bit = next;
        next = rnd() % hbitmap_size(dst);
        hbitmap_prefetch(dst, next);
        hbitmap_set_bit(dst, bit);
    }
}

static const Bench benches[] = {
    { "merge 1 TiB/64 KiB, full + full", TIB_BITS, TIB_BITS, fill_full, fill_full, run_merge },
    { "merge, empty + full", TIB_BITS, TIB_BITS, fill_empty, fill_full, run_merge },
    { "merge, random 50 %", TIB_BITS, TIB_BITS, fill_half, fill_half, run_merge },
    { "merge, random 1 %", TIB_BITS, TIB_BITS, fill_percent, fill_percent, run_merge },
    { "merge, clustered 1 %", TIB_BITS, TIB_BITS, fill_clustered, fill_clustered, run_merge },
    { "merge, empty + random 50 %", TIB_BITS, TIB_BITS, fill_empty, fill_half, run_merge },
    { "merge, empty + empty", TIB_BITS, TIB_BITS, fill_empty, fill_empty, run_merge },
    { "merge 16 TiB/4 KiB, empty + empty", TIB16_BITS, TIB16_BITS, fill_empty, fill_empty,
      run_merge },
    { "merge with undo, random 50 %", TIB_BITS, TIB_BITS, fill_half, fill_half,
      run_merge_with_undo },
    { "merge with undo, random 1 %", TIB_BITS, TIB_BITS, fill_percent, fill_percent,
      run_merge_with_undo },
    { "4 KiB into 64 KiB, random 1 %", TIB_BITS, FINE_BITS, fill_empty, fill_percent,
      run_merge_coarser },
    { "4 KiB into 64 KiB, full", TIB_BITS, FINE_BITS, fill_empty, fill_full, run_merge_coarser },
    { "64 KiB into 4 KiB, 1 %, into empty", FINE_BITS, TIB_BITS, fill_empty, fill_percent,
      run_merge_finer },
    { "64 KiB into 4 KiB, 1 %, into 1 %", FINE_BITS, TIB_BITS, fill_percent, fill_percent,
      run_merge_finer },
    { "clear + undo, random 50 %", TIB_BITS, TIB_BITS, fill_half, fill_empty, run_clear_and_undo },
    { "clone + free, random 50 %", TIB_BITS, TIB_BITS, fill_half, fill_empty, run_clone },
    { "count, random 50 %", TIB_BITS, TIB_BITS, fill_half, fill_empty, run_count },
    { "compact, random 50 %", TIB_BITS, TIB_BITS, fill_half, fill_empty, run_compact },
    { "all areas, random 1 %", TIB_BITS, TIB_BITS, fill_percent, fill_empty, run_areas },
    { "all areas, random 50 %", TIB_BITS, TIB_BITS, fill_half, fill_empty, run_areas },
    { "fold of an empty epoch", TIB_BITS, TIB_BITS, fill_half, fill_empty, run_fold },
    { "fold of 1 % random", TIB_BITS, TIB_BITS, fill_half, fill_percent, run_fold },
    { "100000 marks, clear bits", TIB_BITS, TIB_BITS, fill_empty, fill_empty, run_mark },
    { "100000 marks, set bits", TIB_BITS, TIB_BITS, fill_half, fill_empty, run_mark },
    { "100000 marks, set bits, hinted", TIB_BITS, TIB_BITS, fill_half, fill_empty,
      run_mark_hinted },
};

/* ---- Measuring ---- */

/* Read a bitmap once, so that what is timed is not the memory system catching up with writes. */
static void read_once(HBitmap *bm)
{
    uint8_t buf[4096];

    for (uint64_t bit = 0; bit < MIN(hbitmap_size(bm), FINE_BITS); bit += sizeof(buf) * 8) {
        hbitmap_serialize(bm, bit, sizeof(buf) * 8, buf);
    }
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double one_pass(void)
{
    static uint64_t *words;

    if (!words) {
        words = aligned_alloc(64, 2 * PASS_WORDS * 8);
        memset(words, 1, 2 * PASS_WORDS * 8);
    }
    uint64_t *a = words, *b = words + PASS_WORDS;
    double best = 1e12;
    for (int turn = 0; turn < 4; turn++) {
        double start = now_us();
        for (size_t i = 0; i < PASS_WORDS; i++) {
            a[i] |= b[i];
        }
        /* Not to be optimised away. */
        __asm__ volatile("" : : "r"(a) : "memory");
        best = MIN(best, now_us() - start);
    }
    return best;
}

static void measure(const Bench *bench, int turns)
{
    double *us = g_new(double, turns), *pass = g_new(double, turns);

    for (int turn = 0; turn < turns; turn++) {
        HBitmap *dst = hbitmap_new(bench->dst_bits, NULL);
        HBitmap *src = hbitmap_new(bench->src_bits, NULL);
        bench->fill_dst(dst);
        bench->fill_src(src);
        pass[turn] = one_pass();
        read_once(dst);
        read_once(src);
        double start = now_us();
        bench->run(dst, src);
        us[turn] = now_us() - start;
        hbitmap_free(dst);
        hbitmap_free(src);
    }
    qsort(us, turns, sizeof(*us), compare_doubles);
    qsort(pass, turns, sizeof(*pass), compare_doubles);
    double median = us[turns / 2], yardstick = pass[turns / 2];
    printf("%-36s %10.1f %10.1f %10.1f %9.2f   (pass %.1f)\n", bench->name, median, us[turns / 10],
           us[turns - 1 - turns / 10], median / yardstick, yardstick);
    g_free(us);
    g_free(pass);
}

int main(int argc, char **argv)
{
    int turns = argc > 1 ? atoi(argv[1]) : 11;

    if (turns < 1) {
        fprintf(stderr, "usage: %s [TURNS]\n", argv[0]);
        return 1;
    }
    printf("%-36s %10s %10s %10s %9s\n", "microseconds", "median", "fast 1/10", "slow 1/10",
           "passes");
    for (size_t i = 0; i < G_N_ELEMENTS(benches); i++) {
        measure(&benches[i], turns);
    }
    return 0;
}
