/* SPDX-License-Identifier: MIT */
/*
 * HBitmap: merging across granularities.
 *
 * Below, `k` is the number of bits by which positions shift: 2^k fine bits fall into
 * one coarse bit.
 */
#include "hbitmap-internal.h"

#include <string.h>

enum {
    /* The largest k at which one page of fine bits still takes whole words of coarse ones. */
    HB_SCATTER_MAX = 9,
};

/* ceil(size / 2^k) */
uint64_t hb_coarse_size(uint64_t size, int k)
{
    return (size >> k) + ((size & ((UINT64_C(1) << k) - 1)) != 0);
}

/* ---- Fine into coarse ---- */

/* What was read of the fine bitmap and not yet written to the coarse one. */
typedef struct Gather {
    HBitmap *dst;
    int k;
    bool used;     /* whether a page is being put together: */
    uint64_t page; /* its number, and its content so far */
    alignas(64) uint64_t words[HB_PAGE_WORDS];
    uint64_t run_start, run_end; /* all-ones units one after the other, in fine bits */
} Gather;

static void gather_flush_page(Gather *g)
{
    if (g->used) {
        hb_merge_words(g->dst, g->page, g->words, hb_words_summary(g->words));
        g->used = false;
    }
}

static void gather_flush_run(Gather *g)
{
    if (g->run_start < g->run_end) {
        uint64_t first = g->run_start >> g->k, last = (g->run_end - 1) >> g->k;
        hb_merge_ones(g->dst, first, last - first + 1);
    }
}

/* Add the page `p` of the fine bitmap. Pages come in ascending order. */
static void gather_page(Gather *g, uint64_t p, HbPage *page, const uint64_t *ahead)
{
    uint64_t coarse_bit = (p << HB_PAGE_BITS_LOG2) >> g->k;
    uint64_t coarse_page = coarse_bit >> HB_PAGE_BITS_LOG2;
    unsigned bit = coarse_bit % HB_PAGE_BITS;

    if (atomic_load(&page->count) == 0) {
        return;
    }
    if (g->used && g->page != coarse_page) {
        gather_flush_page(g);
    }
    if (!g->used) {
        memset(g->words, 0, sizeof(g->words));
        g->page = coarse_page;
        g->used = true;
    }
    if (g->k > HB_PAGE_BITS_LOG2) {
        g->words[bit / 64] |= UINT64_C(1) << (bit % 64);
    } else {
        hb_words_shrink(hb_words(page), g->k, g->words, bit, ahead);
    }
}

static void gather_ones(Gather *g, uint64_t start, uint64_t nbits)
{
    if (start != g->run_end) {
        gather_flush_run(g);
        g->run_start = start;
    }
    g->run_end = start + nbits;
}

static void gather_dir(Gather *g, uint64_t d, HbDir *dir)
{
    for (uint64_t left = atomic_load(&dir->summary); left; left &= left - 1) {
        unsigned first = __builtin_ctzll(left) * HB_LINE;
        for (unsigned slot = first; slot < first + HB_LINE; slot++) {
            uint64_t p = (d << HB_DIR_ENTRIES_LOG2) + slot;
            HbEntry e = atomic_load(&dir->entries[slot]);
            if (e == HB_ONES) {
                gather_ones(g, p << HB_PAGE_BITS_LOG2, HB_PAGE_BITS);
            } else if (hb_is_block(e)) {
                gather_page(g, p, hb_page(e), hb_words_ahead(dir, slot));
            }
        }
    }
}

static void merge_coarser(HBitmap *dst, HBitmap *src, int k)
{
    Gather g = { .dst = dst, .k = k };
    uint64_t d = 0;

    g_assert(dst->size == hb_coarse_size(src->size, k));
    for (; (d = hb_next_root(src, src->dirty, d)) < src->n_roots; d++) {
        HbEntry e = atomic_load(&src->roots[d]);
        if (e == HB_ONES) {
            gather_ones(&g, d << HB_DIR_BITS_LOG2, HB_DIR_BITS);
        } else if (hb_is_block(e)) {
            gather_dir(&g, d, hb_dir(e));
        }
    }
    gather_flush_page(&g);
    gather_flush_run(&g);
}

/* ---- Coarse into fine ---- */

/* Bits of the coarse bitmap, all set, into the fine one. */
static void scatter_ones(HBitmap *dst, uint64_t start, uint64_t nbits, int k)
{
    uint64_t first = start << k;
    hb_merge_ones(dst, first, MIN(nbits << k, dst->size - first));
}

/* The part of a page's words beyond the size is cleared (invariant 1 of hbitmap.c). */
static void trim_words(const HBitmap *bm, uint64_t p, uint64_t *words)
{
    unsigned valid = bm->size - (p << HB_PAGE_BITS_LOG2);

    if (valid % 64) {
        words[valid / 64] &= hb_word_mask(0, valid % 64 - 1);
    }
    for (unsigned w = (valid + 63) / 64; w < HB_PAGE_WORDS; w++) {
        words[w] = 0;
    }
}

/* A page of the coarse bitmap becomes 2^k pages, each from `part` words of it (k up to 9). */
static void scatter_page(HBitmap *dst, uint64_t p, const uint64_t *words, int k)
{
    const unsigned part = HB_PAGE_WORDS >> k;
    alignas(64) uint64_t out[HB_PAGE_WORDS];

    for (unsigned i = 0; i < HB_PAGE_WORDS / part; i++) {
        uint64_t fine_page = (p << k) + i;
        uint64_t any = 0, all = ~UINT64_C(0);
        for (unsigned w = i * part; w < (i + 1) * part; w++) {
            any |= words[w];
            all &= words[w];
        }
        if (!any) {
            continue;
        }
        if (~all == 0) {
            uint64_t start = fine_page << HB_PAGE_BITS_LOG2;
            hb_merge_ones(dst, start, MIN(HB_PAGE_BITS, dst->size - start));
            continue;
        }
        HbEntry e = hb_peek(dst, fine_page);
        hb_words_spread(words + i * part, k, out, hb_is_block(e) ? hb_words(hb_page(e)) : NULL);
        if (!hb_page_is_whole(dst, fine_page)) {
            trim_words(dst, fine_page, out);
        }
        hb_merge_words(dst, fine_page, out, hb_words_summary(out));
    }
}

static void merge_finer(HBitmap *dst, HBitmap *src, int k)
{
    uint64_t bit = 0, n = 0;

    g_assert(src->size == hb_coarse_size(dst->size, k));
    while (hbitmap_next_dirty_area(src, bit, src->size, UINT64_MAX, &bit, &n)) {
        uint64_t p = bit >> HB_PAGE_BITS_LOG2;
        HbEntry e = hb_peek(src, p);

        /* Where a bit becomes many words, runs are set as ranges. */
        if (!hb_is_block(e) || k > HB_SCATTER_MAX) {
            scatter_ones(dst, bit, n, k);
            bit += n;
        } else {
            scatter_page(dst, p, hb_words(hb_page(e)), k);
            bit = MIN((p + 1) << HB_PAGE_BITS_LOG2, src->size);
        }
    }
}

/* Directories that became all ones turn into the tag. */
static void collapse_all(HBitmap *bm)
{
    for (uint64_t d = 0; (d = hb_next_root(bm, bm->dirty, d)) < bm->n_roots; d++) {
        if (hb_is_block(atomic_load(&bm->roots[d]))) {
            hb_collapse_dir(bm, d);
        }
    }
}

void hbitmap_merge_shift(HBitmap *dst, HBitmap *src, int shift)
{
    g_assert(ABS(shift) <= HBITMAP_MAX_SHIFT);
    if (shift == 0) {
        hbitmap_merge(dst, src);
        return;
    }
    g_assert(dst != src);
    hb_release_retired(dst);
    hb_release_retired(src);
    if (shift < 0) {
        merge_coarser(dst, src, -shift);
    } else {
        merge_finer(dst, src, shift);
    }
    hb_release_retired(dst);
    collapse_all(dst);
}
