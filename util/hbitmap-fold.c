/* SPDX-License-Identifier: MIT */
/*
 * HBitmap: fold, which moves the bits of an epoch into other bitmaps while writers go on.
 *
 * It takes before it gives: marks from the top down, then words, by atomic
 * exchange; then it ORs what it took into each destination. A bit is thus at any time
 * in the epoch, in the fold's hands, or in all destinations (invariant 5 of hbitmap.c).
 * Tags and shared blocks of the epoch are taken whole, by compare-and-swap of
 * their entry; a shared block goes to the epoch's retired list and is read there.
 */
#include "hbitmap-internal.h"

#include <string.h>

typedef struct Fold {
    HBitmap *epoch;
    HBitmap *const *dst;
    const int *shift;
    size_t n;

    /* What was taken from one page; only the lines in `lines` are valid. */
    uint64_t lines;
    uint64_t taken[HB_PAGE_WORDS];
    HbPage *page;   /* of just that, which destinations share; or NULL */
    unsigned count; /* of its bits, if there is one */
} Fold;

static uint64_t take_marks(_Atomic uint64_t *summary)
{
    uint64_t marks = atomic_load(summary) ? atomic_exchange(summary, 0) : 0;
    hb_race_point();
    return marks;
}

/* ---- Giving ---- */

/* Whether all the words are set in `page` already. */
static bool page_has_words(HbPage *page, const uint64_t *words, uint64_t lines)
{
    for (; lines; lines &= lines - 1) {
        unsigned first = __builtin_ctzll(lines) * HB_LINE;
        for (unsigned w = first; w < first + HB_LINE; w++) {
            if (words[w] & ~atomic_load(&page->words[w])) {
                return false;
            }
        }
    }
    return true;
}

static void page_or_words(HBitmap *bm, HbPage *page, const uint64_t *words, uint64_t lines)
{
    unsigned added = 0;

    for (uint64_t left = lines; left; left &= left - 1) {
        unsigned first = __builtin_ctzll(left) * HB_LINE;
        for (unsigned w = first; w < first + HB_LINE; w++) {
            if (words[w] & ~atomic_load(&page->words[w])) {
                uint64_t before = atomic_fetch_or(&page->words[w], words[w]);
                added += __builtin_popcountll(words[w] & ~before);
            }
        }
    }
    if (added) {
        hb_note_count(bm, atomic_fetch_add(&page->count, added) + added);
    }
    hb_mark(&page->summary, lines);
}

static void give_words(HBitmap *dst, uint64_t p, const uint64_t *words, uint64_t lines)
{
    HbEntry e = hb_peek(dst, p);

    if (e != HB_ONES &&
        !(hb_is_block(e) && hb_is_shared(e) && page_has_words(hb_page(e), words, lines))) {
        HbPage *page = hb_reach(dst, p, HB_ONES);
        if (page) {
            page_or_words(dst, page, words, lines);
        }
    }
    hb_mark_up(dst, p);
}

/* The words taken from page `p`, to a bitmap of which one bit stands for 2^k of the epoch. */
static void give_shrunk(const Fold *f, HBitmap *dst, uint64_t p, int k)
{
    uint64_t page_bit = p << HB_PAGE_BITS_LOG2;
    uint64_t out[HB_PAGE_WORDS];
    uint64_t out_lines = 0;

    for (uint64_t left = f->lines; left; left &= left - 1) {
        unsigned first = __builtin_ctzll(left) * HB_LINE;
        for (unsigned w = first; w < first + HB_LINE; w++) {
            if (!f->taken[w]) {
                continue;
            }
            unsigned bit = ((page_bit + w * 64) >> k) % HB_PAGE_BITS;
            unsigned line = bit / HB_LINE_BITS;
            if (!(out_lines >> line & 1)) {
                memset(out + line * HB_LINE, 0, HB_LINE * sizeof(*out));
                out_lines |= UINT64_C(1) << line;
            }
            out[bit / 64] |= hb_word_shrink(f->taken[w], MIN(k, 6)) << (bit % 64);
        }
    }
    give_words(dst, page_bit >> k >> HB_PAGE_BITS_LOG2, out, out_lines);
}

static void make_page(Fold *f)
{
    HbPage *page = hb_page_new(HB_ABSENT);

    f->count = 0;
    for (uint64_t left = f->lines; left; left &= left - 1) {
        unsigned first = __builtin_ctzll(left) * HB_LINE;
        for (unsigned w = first; w < first + HB_LINE; w++) {
            atomic_init(&page->words[w], f->taken[w]);
            f->count += __builtin_popcountll(f->taken[w]);
        }
    }
    atomic_init(&page->count, f->count);
    atomic_init(&page->summary, f->lines);
    f->page = page;
}

/*
 * Where page `p` is absent, a destination gets one that others may have as well: many bitmaps
 * that record the same take the memory of one. While the fold holds it nobody else is its last
 * holder, so nobody writes it (invariant 3).
 */
static bool give_shared(Fold *f, HBitmap *dst, uint64_t p)
{
    uint64_t d = hb_page_dir(p);
    HbEntry e, absent = HB_ABSENT;
    HbDir *dir;

    if (hb_peek(dst, p) != HB_ABSENT) {
        return false;
    }
    while (e = atomic_load(&dst->roots[d]), e == HB_ABSENT || (hb_is_block(e) && hb_is_shared(e))) {
        hb_claim_dir(dst, d, e);
    }
    if (!hb_is_block(e)) {
        return false;
    }
    dir = hb_dir(e);
    if (!f->page) {
        make_page(f);
    }
    atomic_fetch_add(&f->page->refs, 1);
    hb_race_point();
    if (!atomic_compare_exchange_strong(&dir->entries[hb_page_slot(p)], &absent,
                                        (HbEntry)f->page | HB_SHARED)) {
        hb_page_unref(f->page);
        return false;
    }
    hb_note_count(dst, f->count);
    hb_mark_up(dst, p);
    return true;
}

static void give_taken(Fold *f, uint64_t p)
{
    for (size_t i = 0; f->lines && i < f->n; i++) {
        if (f->shift[i] != 0) {
            give_shrunk(f, f->dst[i], p, -f->shift[i]);
        } else if (f->n == 1 || !give_shared(f, f->dst[i], p)) {
            give_words(f->dst[i], p, f->taken, f->lines);
        }
    }
    if (f->page) {
        hb_page_unref(g_steal_pointer(&f->page));
    }
}

static void give_range(const Fold *f, uint64_t start, uint64_t nbits)
{
    for (size_t i = 0; i < f->n; i++) {
        int k = -f->shift[i];
        uint64_t first = start >> k, last = (start + nbits - 1) >> k;
        hbitmap_set(f->dst[i], first, last - first + 1);
    }
}

/* ---- Taking ---- */

/* The bits of a page that only the epoch holds, leaving it clear. */
static void take_page(Fold *f, HbPage *page)
{
    unsigned removed = 0;

    f->lines = 0;
    for (uint64_t left = take_marks(&page->summary); left; left &= left - 1) {
        unsigned first = __builtin_ctzll(left) * HB_LINE;
        uint64_t any = 0;
        for (unsigned w = first; w < first + HB_LINE; w++) {
            uint64_t value = atomic_load(&page->words[w]);
            hb_race_point();
            f->taken[w] = value ? atomic_exchange(&page->words[w], 0) : 0;
            removed += __builtin_popcountll(f->taken[w]);
            any |= f->taken[w];
        }
        f->lines |= any ? left & -left : 0;
    }
    if (removed) {
        hb_note_count(f->epoch, atomic_fetch_sub(&page->count, removed) - removed);
    }
}

/* The bits of a page that nobody writes any more. */
static void read_page(Fold *f, HbPage *page)
{
    f->lines = atomic_load(&page->summary);
    for (uint64_t left = f->lines; left; left &= left - 1) {
        unsigned first = __builtin_ctzll(left) * HB_LINE;
        for (unsigned w = first; w < first + HB_LINE; w++) {
            f->taken[w] = atomic_load(&page->words[w]);
        }
    }
}

/* Page `p`, by its entry in a directory of the epoch. */
static void fold_entry(Fold *f, uint64_t p, _Atomic HbEntry *entry)
{
    HbEntry e = atomic_load(entry);

    while (e != HB_ABSENT && (e == HB_ONES || hb_is_shared(e))) {
        if (!atomic_compare_exchange_strong(entry, &e, HB_ABSENT)) {
            continue;
        }
        if (e == HB_ONES) {
            give_range(f, p << HB_PAGE_BITS_LOG2, HB_PAGE_BITS);
        } else {
            hb_retire(f->epoch, NULL, hb_page(e));
            read_page(f, hb_page(e));
            give_taken(f, p);
        }
        return;
    }
    if (e != HB_ABSENT) {
        take_page(f, hb_page(e));
        give_taken(f, p);
    }
}

static void fold_dir(Fold *f, uint64_t d, HbDir *dir)
{
    for (uint64_t left = take_marks(&dir->summary); left; left &= left - 1) {
        unsigned first = __builtin_ctzll(left) * HB_LINE;
        for (unsigned slot = first; slot < first + HB_LINE; slot++) {
            fold_entry(f, (d << HB_DIR_ENTRIES_LOG2) + slot, &dir->entries[slot]);
        }
    }
}

/* A shared directory that was taken out of the epoch: read it, change nothing. */
static void fold_shared_dir(Fold *f, uint64_t d, HbDir *dir)
{
    for (uint64_t slot = 0; slot < HB_DIR_ENTRIES; slot++) {
        uint64_t p = (d << HB_DIR_ENTRIES_LOG2) + slot;
        HbEntry e = atomic_load(&dir->entries[slot]);
        if (e == HB_ONES) {
            give_range(f, p << HB_PAGE_BITS_LOG2, HB_PAGE_BITS);
        } else if (hb_is_block(e)) {
            read_page(f, hb_page(e));
            give_taken(f, p);
        }
    }
}

static void fold_root(Fold *f, uint64_t d)
{
    _Atomic HbEntry *entry = &f->epoch->roots[d];
    HbEntry e = atomic_load(entry);

    while (e != HB_ABSENT && (e == HB_ONES || hb_is_shared(e))) {
        if (!atomic_compare_exchange_strong(entry, &e, HB_ABSENT)) {
            continue;
        }
        if (e == HB_ONES) {
            give_range(f, d << HB_DIR_BITS_LOG2, HB_DIR_BITS);
        } else {
            hb_retire(f->epoch, hb_dir(e), NULL);
            fold_shared_dir(f, d, hb_dir(e));
        }
        return;
    }
    if (e != HB_ABSENT) {
        fold_dir(f, d, hb_dir(e));
    }
}

void hbitmap_fold(HBitmap *epoch, HBitmap *const dst[], const int shift[], size_t n)
{
    Fold f = { .epoch = epoch, .dst = dst, .shift = shift, .n = n };
    uint64_t n_lines = (epoch->n_roots + HB_LINE - 1) / HB_LINE;

    for (size_t i = 0; i < n; i++) {
        g_assert(shift[i] <= 0 && shift[i] >= -HBITMAP_MAX_SHIFT);
        g_assert(dst[i] != epoch && dst[i]->size == hb_coarse_size(epoch->size, -shift[i]));
    }
    for (uint64_t word = 0; word < (n_lines + 63) / 64; word++) {
        for (uint64_t left = take_marks(&epoch->dirty[word]); left; left &= left - 1) {
            uint64_t d = (word * 64 + __builtin_ctzll(left)) * HB_LINE;
            for (uint64_t end = MIN(d + HB_LINE, epoch->n_roots); d < end; d++) {
                fold_root(&f, d);
            }
        }
    }
}
