/* SPDX-License-Identifier: MIT */
/*
 * HBitmap: searching and comparing.
 *
 * A search goes down the tree for each step it takes, and leaves absent and
 * all-ones units, and lines whose summary bit is 0, in one step (invariant 6 of
 * hbitmap.c). Searches may run beside writers.
 */
#include "hbitmap-internal.h"

#include <string.h>

/*
 * The helpers below search [from, to) of a page or directory, from < to, and return `to`
 * or more when they find nothing: they look at no word that lies wholly beyond it.
 */

/* ---- The next set bit ---- */

static unsigned page_next_dirty(HbPage *page, unsigned from, unsigned to)
{
    unsigned w = from / 64, end = (to + 63) / 64;
    uint64_t value = atomic_load(&page->words[w]) & (~UINT64_C(0) << (from % 64));

    while (!value) {
        if (++w % HB_LINE == 0 && w < end) {
            uint64_t left = atomic_load(&page->summary) >> (w / HB_LINE);
            w = left ? w + __builtin_ctzll(left) * HB_LINE : end;
        }
        if (w >= end) {
            return to;
        }
        value = atomic_load(&page->words[w]);
    }
    return w * 64 + __builtin_ctzll(value);
}

static unsigned dir_next_dirty(HbDir *dir, unsigned from, unsigned to)
{
    unsigned slot = from >> HB_PAGE_BITS_LOG2, end = (to + HB_PAGE_BITS - 1) >> HB_PAGE_BITS_LOG2;

    while (slot < end) {
        HbEntry e = atomic_load(&dir->entries[slot]);
        unsigned base = slot << HB_PAGE_BITS_LOG2;
        if (e == HB_ONES) {
            return MAX(from, base);
        }
        if (hb_is_block(e)) {
            unsigned first = MAX(from, base) - base, last = MIN(to - base, HB_PAGE_BITS);
            unsigned bit = page_next_dirty(hb_page(e), first, last);
            if (bit < last) {
                return base + bit;
            }
        }
        if (++slot % HB_LINE == 0 && slot < end) {
            uint64_t left = atomic_load(&dir->summary) >> (slot / HB_LINE);
            slot = left ? slot + __builtin_ctzll(left) * HB_LINE : end;
        }
    }
    return to;
}

uint64_t hbitmap_next_dirty(const HBitmap *bm, uint64_t start, uint64_t end)
{
    g_assert(start <= end && end <= bm->size);

    while (start < end) {
        uint64_t d = start >> HB_DIR_BITS_LOG2, base = d << HB_DIR_BITS_LOG2;
        HbEntry e = atomic_load(&bm->roots[d]);
        if (e == HB_ONES) {
            return start;
        }
        if (hb_is_block(e)) {
            unsigned last = MIN(end - base, HB_DIR_BITS);
            unsigned bit = dir_next_dirty(hb_dir(e), start - base, last);
            if (bit < last) {
                return base + bit;
            }
        }
        start = hb_next_root(bm, bm->dirty, d + 1) << HB_DIR_BITS_LOG2;
    }
    return end;
}

bool hbitmap_is_empty(const HBitmap *bm)
{
    return hbitmap_next_dirty(bm, 0, bm->size) == bm->size;
}

/* ---- The next clear bit ---- */

static unsigned page_next_clear(HbPage *page, unsigned from, unsigned to)
{
    unsigned w = from / 64, end = (to + 63) / 64;
    uint64_t value = ~atomic_load(&page->words[w]) & (~UINT64_C(0) << (from % 64));

    while (!value) {
        if (++w == end) {
            return to;
        }
        value = ~atomic_load(&page->words[w]);
    }
    return w * 64 + __builtin_ctzll(value);
}

static unsigned dir_next_clear(HbDir *dir, unsigned from, unsigned to)
{
    while (from < to) {
        unsigned slot = from >> HB_PAGE_BITS_LOG2, base = slot << HB_PAGE_BITS_LOG2;
        HbEntry e = atomic_load(&dir->entries[slot]);
        if (e == HB_ABSENT) {
            return from;
        }
        if (hb_is_block(e)) {
            unsigned last = MIN(to - base, HB_PAGE_BITS);
            unsigned bit = page_next_clear(hb_page(e), from - base, last);
            if (bit < last) {
                return base + bit;
            }
        }
        from = base + HB_PAGE_BITS;
    }
    return to;
}

uint64_t hbitmap_next_clear(const HBitmap *bm, uint64_t start, uint64_t end)
{
    g_assert(start <= end && end <= bm->size);

    while (start < end) {
        uint64_t d = start >> HB_DIR_BITS_LOG2, base = d << HB_DIR_BITS_LOG2;
        HbEntry e = atomic_load(&bm->roots[d]);
        if (e == HB_ABSENT) {
            return start;
        }
        if (hb_is_block(e)) {
            unsigned last = MIN(end - base, HB_DIR_BITS);
            unsigned bit = dir_next_clear(hb_dir(e), start - base, last);
            if (bit < last) {
                return base + bit;
            }
        }
        start = base + HB_DIR_BITS;
    }
    return end;
}

/* ---- Runs and ranges ---- */

/*
 * The answer for a run that begins and ends within the word of `start`: one way down the tree
 * instead of two, for those who walk through scattered bits.
 */
static bool word_next_area(const HBitmap *bm, uint64_t start, uint64_t end, uint64_t max_bits,
                           uint64_t *ret_start, uint64_t *ret_len)
{
    HbEntry e = hb_peek(bm, start >> HB_PAGE_BITS_LOG2);
    if (!hb_is_block(e)) {
        return false;
    }
    uint64_t value = atomic_load(&hb_page(e)->words[start / 64 % HB_PAGE_WORDS]) >> (start % 64);
    if (!value) {
        return false;
    }
    unsigned skip = __builtin_ctzll(value);
    unsigned len = ~(value >> skip) ? __builtin_ctzll(~(value >> skip)) : 64;
    uint64_t first = start + skip;
    if (first % 64 + len >= 64 || first >= end) {
        return false;
    }
    *ret_start = first;
    *ret_len = MIN(MIN(len, max_bits), end - first);
    return true;
}

bool hbitmap_next_dirty_area(const HBitmap *bm, uint64_t start, uint64_t end, uint64_t max_bits,
                             uint64_t *ret_start, uint64_t *ret_len)
{
    g_assert(max_bits > 0 && start <= end && end <= bm->size);
    if (start < end && word_next_area(bm, start, end, max_bits, ret_start, ret_len)) {
        return true;
    }
    uint64_t first = hbitmap_next_dirty(bm, start, end);
    if (first == end) {
        return false;
    }
    /* The first bit belongs to the run even if another thread clears it meanwhile. */
    uint64_t limit = end - first > max_bits ? first + max_bits : end;
    *ret_start = first;
    *ret_len = hbitmap_next_clear(bm, first + 1, limit) - first;
    return true;
}

/*
 * Runs that end within the page, or at `to`, which is the page's end or the search's. Returns where
 * to go on: the beginning of a run that may go on in the next page, or `to`.
 */
static unsigned page_areas(HbPage *page, unsigned from, unsigned to, uint64_t base,
                           HBitmapArea *areas, size_t max, size_t *n)
{
    while ((from = page_next_dirty(page, from, to)) < to) {
        unsigned w = from / 64;
        uint64_t value = atomic_load(&page->words[w]) & (~UINT64_C(0) << (from % 64));

        if (to - w * 64 < 64) {
            value &= (UINT64_C(1) << (to % 64)) - 1;
        }
        while (value) {
            unsigned skip = __builtin_ctzll(value);
            uint64_t next = value + (value & -value); /* the run becomes the bit behind it */

            from = w * 64 + skip;
            if (*n == max) {
                return from;
            }
            if (!next) {
                break; /* to the end of the word */
            }
            areas[(*n)++] = (HBitmapArea){ base + from, (unsigned)__builtin_ctzll(next) - skip };
            value &= next;
        }
        if (value) {
            unsigned last = (w + 1) * 64 < to ? page_next_clear(page, (w + 1) * 64, to) : to;

            if (last >= to) {
                return from;
            }
            areas[(*n)++] = (HBitmapArea){ base + from, last - from };
            from = last;
        } else {
            from = (w + 1) * 64;
        }
        if (from >= to) {
            return to;
        }
    }
    return to;
}

size_t hbitmap_dirty_areas(const HBitmap *bm, uint64_t start, uint64_t end, HBitmapArea *ret_areas,
                           size_t max)
{
    size_t n = 0;

    while (n < max && start < end) {
        HbEntry e = hb_peek(bm, start >> HB_PAGE_BITS_LOG2);
        uint64_t base = start & ~(uint64_t)(HB_PAGE_BITS - 1);

        if (hb_is_block(e)) {
            unsigned to = MIN(end - base, HB_PAGE_BITS);

            start = base + page_areas(hb_page(e), start - base, to, base, ret_areas, max, &n);
        }
        if (n == max || start == end ||
            !hbitmap_next_dirty_area(bm, start, end, UINT64_MAX, &ret_areas[n].start,
                                     &ret_areas[n].len)) {
            break;
        }
        start = ret_areas[n].start + ret_areas[n].len;
        n++;
    }
    return n;
}

HBitmapRangeState hbitmap_range_state(const HBitmap *bm, uint64_t start, uint64_t nbits)
{
    hb_assert_range(bm, start, nbits);
    uint64_t end = start + nbits;
    uint64_t dirty = hbitmap_next_dirty(bm, start, end);
    if (dirty == end) {
        return HBITMAP_CLEAR;
    }
    if (dirty == start && hbitmap_next_clear(bm, start, end) == end) {
        return HBITMAP_SET;
    }
    return HBITMAP_MIXED;
}

/* ---- Comparing (quiescent, so counts are exact) ---- */

static unsigned page_entry_count(HbEntry e)
{
    if (hb_is_block(e)) {
        return atomic_load(&hb_page(e)->count);
    }
    return e == HB_ONES ? HB_PAGE_BITS : 0;
}

static bool page_entries_equal(HbEntry a, HbEntry b)
{
    unsigned count = page_entry_count(a);

    if (count != page_entry_count(b)) {
        return false;
    }
    if (count == 0 || count == HB_PAGE_BITS || hb_page(a) == hb_page(b)) {
        return true;
    }
    return memcmp(hb_words(hb_page(a)), hb_words(hb_page(b)), sizeof(hb_page(a)->words)) == 0;
}

static bool dir_entries_equal(HbEntry a, HbEntry b)
{
    if (a == b || (hb_is_block(a) && hb_dir(a) == hb_dir(b))) {
        return true;
    }
    for (int i = 0; i < HB_DIR_ENTRIES; i++) {
        HbEntry page_a = hb_is_block(a) ? atomic_load(&hb_dir(a)->entries[i]) : a;
        HbEntry page_b = hb_is_block(b) ? atomic_load(&hb_dir(b)->entries[i]) : b;
        if (!page_entries_equal(page_a, page_b)) {
            return false;
        }
    }
    return true;
}

bool hbitmap_equal(const HBitmap *a, const HBitmap *b)
{
    if (a->size != b->size) {
        return false;
    }
    uint64_t d = 0;
    for (;;) {
        uint64_t next_a = hb_next_root(a, a->dirty, d), next_b = hb_next_root(b, b->dirty, d);
        d = MIN(next_a, next_b);
        if (d == a->n_roots) {
            return true;
        }
        if (!dir_entries_equal(atomic_load(&a->roots[d]), atomic_load(&b->roots[d]))) {
            return false;
        }
        d++;
    }
}

static uint64_t entry_word(HbEntry e, unsigned word)
{
    if (hb_is_block(e)) {
        return hb_words(hb_page(e))[word];
    }
    return e == HB_ONES ? ~UINT64_C(0) : 0;
}

/* [from, to) of two pages whose entries differ. */
static unsigned page_next_difference(HbEntry a, HbEntry b, unsigned from, unsigned to)
{
    uint64_t mask = ~UINT64_C(0) << (from % 64);

    for (unsigned word = from / 64; word * 64 < to; word++) {
        uint64_t different = (entry_word(a, word) ^ entry_word(b, word)) & mask;

        if (different) {
            return word * 64 + __builtin_ctzll(different);
        }
        mask = ~UINT64_C(0);
    }
    return to;
}

static HbEntry page_entry(HbEntry dir, unsigned slot)
{
    return hb_is_block(dir) ? atomic_load(&hb_dir(dir)->entries[slot]) : dir;
}

/* [from, to) of two directories whose entries differ. */
static unsigned dir_next_difference(HbEntry a, HbEntry b, unsigned from, unsigned to)
{
    for (unsigned slot = from >> HB_PAGE_BITS_LOG2; slot << HB_PAGE_BITS_LOG2 < to; slot++) {
        HbEntry page_a = page_entry(a, slot) & ~HB_SHARED,
                page_b = page_entry(b, slot) & ~HB_SHARED;
        unsigned base = slot << HB_PAGE_BITS_LOG2;

        if (page_a != page_b) {
            unsigned last = MIN(to - base, HB_PAGE_BITS);
            unsigned bit = page_next_difference(page_a, page_b, MAX(from, base) - base, last);

            if (bit < last) {
                return base + bit;
            }
        }
    }
    return to;
}

uint64_t hbitmap_next_difference(const HBitmap *a, const HBitmap *b, uint64_t start, uint64_t end)
{
    g_assert(a->size == b->size && end <= a->size);
    for (uint64_t d = start >> HB_DIR_BITS_LOG2; start < end; d++) {
        uint64_t base = d << HB_DIR_BITS_LOG2, last = MIN(end - base, HB_DIR_BITS);
        HbEntry dir_a = atomic_load(&a->roots[d]) & ~HB_SHARED;
        HbEntry dir_b = atomic_load(&b->roots[d]) & ~HB_SHARED;

        if (dir_a != dir_b) {
            uint64_t bit = base + dir_next_difference(dir_a, dir_b, start - base, last);

            if (bit < base + last) {
                return bit;
            }
        }
        start = base + last;
    }
    return end;
}
