/* SPDX-License-Identifier: MIT */
/*
 * HBitmap: verbs on whole bitmaps. All of them are quiescent.
 *
 * They work by units: what is equal or cannot change is skipped, what the destination
 * lacks is shared, all-ones stays a tag, and only pages that really differ are
 * ORed word by word. Their cost is that of the pages that differ, plus one step for
 * each directory entry beside them.
 */
#include "hbitmap-internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- Whole contents ---- */

static void clear_lines(HBitmap *bm)
{
    uint64_t n_lines = bm->present - bm->dirty;
    memset((void *)bm->dirty, 0, 2 * n_lines * sizeof(*bm->dirty));
}

void hbitmap_clear(HBitmap *bm)
{
    uint64_t d = 0;

    hb_release_retired(bm);
    while ((d = hb_next_root(bm, bm->present, d)) < bm->n_roots) {
        hb_put_root(bm, d++, HB_ABSENT);
    }
    clear_lines(bm);
}

void hbitmap_fill(HBitmap *bm)
{
    hbitmap_clear(bm);
    hbitmap_set(bm, 0, bm->size);
}

static void share_all(HBitmap *dst, HBitmap *src)
{
    uint64_t d = 0;

    hb_release_retired(src);
    while ((d = hb_next_root(src, src->present, d)) < src->n_roots) {
        hb_put_root(dst, d, hb_share_dir(&src->roots[d]));
        d++;
    }
}

HBitmap *hbitmap_clone(HBitmap *bm)
{
    HBitmap *clone = g_new0(HBitmap, 1);

    if (!hb_roots_init(clone, bm->size)) {
        g_error("out of memory for a bitmap");
    }
    share_all(clone, bm);
    return clone;
}

void hbitmap_copy_from(HBitmap *dst, HBitmap *src)
{
    g_assert(dst->size == src->size);
    if (dst != src) {
        hbitmap_clear(dst);
        share_all(dst, src);
    }
}

void hbitmap_swap(HBitmap *a, HBitmap *b)
{
    g_assert(a->size == b->size);
    HBitmap saved = *a;
    *a = *b;
    *b = saved;
}

/* ---- Truncate ---- */

/* Forget all bits from `end` on. */
static void drop_tail(HBitmap *bm, uint64_t end)
{
    uint64_t d = end >> HB_DIR_BITS_LOG2;

    if (end % HB_DIR_BITS && atomic_load(&bm->roots[d]) != HB_ABSENT) {
        HbDir *dir = hb_own_dir(bm, d);
        unsigned whole = (end % HB_DIR_BITS + HB_PAGE_BITS - 1) >> HB_PAGE_BITS_LOG2;
        for (unsigned slot = whole; slot < HB_DIR_ENTRIES; slot++) {
            hb_put_page(dir, slot, HB_ABSENT);
        }
        uint64_t page_end = (d << HB_DIR_BITS_LOG2) + ((uint64_t)whole << HB_PAGE_BITS_LOG2);
        hbitmap_reset(bm, end, MIN(page_end, bm->size) - end);
        d++;
    } else if (end % HB_DIR_BITS) {
        d++;
    }
    while ((d = hb_next_root(bm, bm->present, d)) < bm->n_roots) {
        hb_put_root(bm, d++, HB_ABSENT);
    }
}

bool hbitmap_truncate(HBitmap *bm, uint64_t new_size_bits, GError **error)
{
    HBitmap *resized = hbitmap_new(new_size_bits, error);

    if (!resized) {
        return false;
    }
    if (new_size_bits < bm->size) {
        drop_tail(bm, new_size_bits);
    }
    uint64_t d = 0;
    while ((d = hb_next_root(bm, bm->present, d)) < MIN(bm->n_roots, resized->n_roots)) {
        hb_put_root(resized, d, atomic_exchange(&bm->roots[d], HB_ABSENT));
        d++;
    }
    resized->uneven = atomic_load_explicit(&bm->uneven, memory_order_relaxed);
    hbitmap_clear(bm);
    free(bm->roots);
    *bm = *resized;
    g_free(resized);
    return true;
}

/* ---- Parts of merge that other files use ---- */

/* A page that became full turns into HB_ONES. */
static void normalise_page(HBitmap *bm, uint64_t p)
{
    HbEntry e = hb_peek(bm, p);

    if (hb_is_block(e) && atomic_load(&hb_page(e)->count) == HB_PAGE_BITS) {
        hb_put_page(hb_own_dir(bm, hb_page_dir(p)), hb_page_slot(p), HB_ONES);
    }
}

void hb_merge_ones(HBitmap *bm, uint64_t start, uint64_t nbits)
{
    uint64_t end = start + nbits;

    while (start < end) {
        uint64_t p = start >> HB_PAGE_BITS_LOG2;
        uint64_t d = hb_page_dir(p);
        uint64_t n = MIN(end - start, HB_PAGE_BITS - start % HB_PAGE_BITS);
        if (atomic_load(&bm->roots[d]) == HB_ONES) {
            n = MIN(end - start, HB_DIR_BITS - start % HB_DIR_BITS);
        } else if (start % HB_DIR_BITS == 0 && end - start >= HB_DIR_BITS) {
            hb_put_root(bm, d, HB_ONES);
            n = HB_DIR_BITS;
        } else if (n == HB_PAGE_BITS) {
            hb_put_page(hb_own_dir(bm, d), hb_page_slot(p), HB_ONES);
            hb_mark_root(bm, d);
        } else {
            hbitmap_set(bm, start, n);
            normalise_page(bm, p);
        }
        start += n;
    }
}

/* OR the lines of `summary` into a private page. */
static void page_merge_lines(HbPage *page, const uint64_t *words, uint64_t summary)
{
    uint64_t *dst = hb_words(page);
    unsigned added = 0;

    for (uint64_t left = summary; left; left &= left - 1) {
        unsigned first = __builtin_ctzll(left) * HB_LINE;
        for (unsigned w = first; w < first + HB_LINE; w++) {
            added += __builtin_popcountll(words[w] & ~dst[w]);
            dst[w] |= words[w];
        }
    }
    atomic_store(&page->count, atomic_load(&page->count) + added);
}

/* With fewer lines than this it pays to look at these lines only. */
enum {
    HB_FEW_LINES = 8,
};

/*
 * OR words into the page at `slot` of an owned directory; `ahead` are those for the next slot. A
 * page that becomes full turns into HB_ONES: a page that reaches beyond the size cannot (invariant
 * 1 of hbitmap.c).
 */
static void slot_merge(HbDir *dir, unsigned slot, const uint64_t *words, uint64_t summary,
                       const uint64_t *ahead)
{
    HbEntry e = atomic_load(&dir->entries[slot]);

    if (e == HB_ONES || (e == HB_ABSENT && !summary)) {
        return;
    }
    HbPage *page = hb_is_block(e) ? hb_page(e) : NULL;
    if (!page) {
        page = hb_page_from_words(words, words, summary, NULL, NULL);
        hb_put_page(dir, slot, (HbEntry)page);
    } else if (hb_is_shared(e) && atomic_load(&page->refs) > 1) {
        page = hb_page_from_words(hb_words(page), words, atomic_load(&page->summary) | summary,
                                  hb_words_ahead(dir, slot), ahead);
        hb_put_page(dir, slot, (HbEntry)page);
    } else {
        atomic_store(&dir->entries[slot], (HbEntry)page);
        if (__builtin_popcountll(summary) < HB_FEW_LINES) {
            page_merge_lines(page, words, summary);
        } else {
            atomic_store(&page->count, hb_words_or(hb_words(page), words, hb_words(page),
                                                   hb_words_ahead(dir, slot), ahead));
        }
        atomic_store(&page->summary, atomic_load(&page->summary) | summary);
        hb_mark(&dir->summary, hb_line_bit(slot));
    }
    unsigned count = atomic_load(&page->count);
    if (count == 0 || count == HB_PAGE_BITS) {
        hb_put_page(dir, slot, count ? HB_ONES : HB_ABSENT);
    }
}

void hb_merge_words(HBitmap *bm, uint64_t p, const uint64_t *words, uint64_t summary)
{
    uint64_t d = hb_page_dir(p);

    if (summary && atomic_load(&bm->roots[d]) != HB_ONES) {
        slot_merge(hb_own_dir(bm, d), hb_page_slot(p), words, summary, NULL);
        hb_mark_root(bm, d);
    }
}

/* ---- Merge ---- */

/* Whether merging page entry `s` into page entry `t` changes nothing, as far as is told at once. */
static bool nothing_to_merge(HbEntry t, HbEntry s)
{
    return s == HB_ABSENT || t == HB_ONES ||
           (hb_is_block(s) && (hb_page(s) == hb_page(t) || atomic_load(&hb_page(s)->count) == 0));
}

/* The same, told by their words: worth the look where a change costs a copy. */
static bool page_is_covered(HbEntry t, HbEntry s)
{
    return hb_is_block(t) && hb_is_block(s) &&
           atomic_load(&hb_page(s)->count) <= atomic_load(&hb_page(t)->count) &&
           hb_words_subset(hb_words(hb_page(s)), hb_words(hb_page(t)));
}

/* Merge one page of `src_dir` into an owned directory. */
static void merge_page(HbDir *dir, HbDir *src_dir, unsigned slot)
{
    HbEntry s = atomic_load(&src_dir->entries[slot]);
    HbPage *page = hb_is_block(s) ? hb_page(s) : NULL;

    if (!page || atomic_load(&page->count) == HB_PAGE_BITS) {
        hb_put_page(dir, slot, HB_ONES);
    } else if (atomic_load(&dir->entries[slot]) == HB_ABSENT) {
        hb_put_page(dir, slot, hb_share_page(&src_dir->entries[slot]));
    } else {
        slot_merge(dir, slot, hb_words(page), atomic_load(&page->summary),
                   hb_words_ahead(src_dir, slot));
    }
}

/* Both root entries are directories. The destination's stays shared until it must change. */
static void merge_dir(HBitmap *dst, uint64_t d, HbDir *src_dir)
{
    HbEntry e = atomic_load(&dst->roots[d]);
    HbDir *dir = hb_dir(e);
    bool owned = false, ones = false;

    for (uint64_t left = atomic_load(&src_dir->summary); left; left &= left - 1) {
        unsigned first = __builtin_ctzll(left) * HB_LINE;
        for (unsigned slot = first; slot < first + HB_LINE; slot++) {
            HbEntry s = atomic_load(&src_dir->entries[slot]);
            HbEntry t = atomic_load(&dir->entries[slot]);
            bool shared = hb_is_shared(e) || hb_is_shared(t);
            if (nothing_to_merge(t, s) || (shared && page_is_covered(t, s))) {
                continue;
            }
            if (!owned) {
                dir = hb_own_dir(dst, d);
                e = atomic_load(&dst->roots[d]);
                owned = true;
            }
            merge_page(dir, src_dir, slot);
            ones |= atomic_load(&dir->entries[slot]) == HB_ONES;
        }
    }
    if (owned) {
        hb_mark_root(dst, d);
    }
    if (ones) {
        hb_collapse_dir(dst, d);
    }
}

void hbitmap_merge(HBitmap *dst, HBitmap *src)
{
    g_assert(dst->size == src->size);
    if (dst == src) {
        return;
    }
    hb_release_retired(dst);
    hb_release_retired(src);
    uint64_t d = 0;
    for (; (d = hb_next_root(src, src->dirty, d)) < src->n_roots; d++) {
        HbEntry s = atomic_load(&src->roots[d]);
        HbEntry t = atomic_load(&dst->roots[d]);
        if (s == HB_ABSENT || t == HB_ONES ||
            (hb_is_block(s) && hb_is_block(t) && hb_dir(s) == hb_dir(t))) {
            continue;
        }
        if (s == HB_ONES) {
            hb_put_root(dst, d, HB_ONES);
        } else if (t == HB_ABSENT) {
            hb_put_root(dst, d, hb_share_dir(&src->roots[d]));
        } else {
            merge_dir(dst, d, hb_dir(s));
        }
    }
}
