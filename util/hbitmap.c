/* SPDX-License-Identifier: MIT */
/*
 * HBitmap: the structure, and the verbs that work on single bits and ranges.
 *
 * A "unit" is what one entry stands for: a directory's 2^24 bits, or a page's 2^15.
 *
 * Invariants
 *
 * 1. Bits beyond the size are clear. So only a unit that lies wholly inside
 *    the size may be HB_ONES.
 *
 * 2. A block is written only by a bitmap that reaches it through entries without
 *    HB_SHARED: such a block has exactly one holder, this tree. The flag decides,
 *    not the count of references: the count may fall to one at any moment,
 *    when another bitmap drops its reference, while a thread of ours is copying the
 *    block; a second thread of ours that took this as leave to write would
 *    write into what is about to be replaced by an older copy. HB_SHARED is set
 *    on every entry that holds a block before the block gets a second
 *    holder: for directories by quiescent verbs only; for pages by these, by
 *    the copying of a shared directory, which flags the entries of the original,
 *    since its other holder may become its only one, and by a fold, which puts a new
 *    page in the place of absent ones.
 *
 * 3. HB_SHARED goes away by compare-and-swap of the entry: to a private copy, or,
 *    for a page, to the very same address when this is its only holder. In the
 *    second case a thread that is still copying the page will fail to install its copy,
 *    because the entry has changed. For a directory the second way is open to
 *    quiescent verbs only, because copying one writes to it (flags).
 *    An entry cannot return to an earlier value behind a thread's back: only quiescent
 *    verbs, and a fold with an address that was in no tree, set HB_SHARED in a private
 *    directory, and by invariant 4 no address is used again while the thread is at work.
 *
 * 4. Beside other threads, a block that is taken out of the tree was HB_SHARED there, and
 *    goes to the list `retired`, keeping its reference until the next quiescent verb. So a
 *    block that a concurrent verb has reached stays readable. A private block stays in
 *    place, even when it becomes empty or full (hbitmap_compact takes it out): what a
 *    writer writes into it is in the tree at that moment, and no writer need look again.
 *
 * 5. Summaries ("marks": a bit of page->summary, dir->summary, bm->dirty) may claim
 *    too much, never too little: when hbitmap_set has returned, then as long as
 *    the bit is set all marks above it are set, except inside a fold.
 *    The setter makes sure of them from the bottom up, after the bit, and also when it
 *    found the bit already set: whoever set it may not have come to the marks yet. Only
 *    a fold and quiescent verbs clear marks. The fold clears them from the top down,
 *    each before it looks at what the mark stands for, and the bits last.
 *    All these accesses are sequentially consistent, so they have one order. Take a
 *    setter that saw its bit set at time t0, and the mark one level up set at t1 > t0. A
 *    fold that clears this mark does so before t1 or after it. After: then it
 *    looks at the bit after t0, and takes it. Before: then the mark was set again
 *    before t1, and the next fold finds it. The same holds one level up for the mark and
 *    the mark above it. So a fold that begins after the setter has returned takes
 *    the bit, if none did before: nothing is lost.
 *
 * 6. Concurrent readers use marks only to skip. A skipped bit was not set by a
 *    set that had returned; or it is being folded.
 *
 * 7. page->count moves by what each atomic operation really changed, after it
 *    has changed it. So it is exact when nothing runs, and modulo 2^32
 *    in between (a taker may subtract before the setter has added). Only
 *    quiescent verbs draw conclusions from it.
 *
 * Quiescent verbs are ordered with the others by their callers; they use the same
 * atomics where that costs nothing, and plain memory where they work on whole pages.
 * Reference counts order the accesses of different bitmaps to one block: a holder
 * reads before it drops, and who finds itself alone writes afterwards.
 */
#include "hbitmap-internal.h"

#include "util/error.h"

#include <inttypes.h>
#include <stdlib.h>

HBitmap *hbitmap_new(uint64_t size_bits, GError **error)
{
    if (size_bits > HBITMAP_MAX_BITS) {
        merino_error(error, "A bitmap of %" PRIu64 " bits is too large; the limit is %" PRIu64,
                     size_bits, HBITMAP_MAX_BITS);
        return NULL;
    }
    HBitmap *bm = g_new0(HBitmap, 1);
    if (!hb_roots_init(bm, size_bits)) {
        merino_error(error, "No memory for a bitmap of %" PRIu64 " bits", size_bits);
        g_free(bm);
        return NULL;
    }
    return bm;
}

void hbitmap_free(HBitmap *bm)
{
    if (bm) {
        hbitmap_clear(bm);
        free(bm->roots);
        g_free(bm);
    }
}

uint64_t hbitmap_size(const HBitmap *bm)
{
    return bm->size;
}

uint64_t hb_next_root(const HBitmap *bm, const _Atomic uint64_t *lines, uint64_t d)
{
    while (d < bm->n_roots) {
        uint64_t left = atomic_load(&lines[hb_root_line_word(d)]) >> (d / HB_LINE % 64);
        if (left & 1) {
            return d;
        }
        uint64_t line = d / HB_LINE;
        line = left ? line + __builtin_ctzll(left) : (line | 63) + 1;
        d = line * HB_LINE;
    }
    return bm->n_roots;
}

/* ---- Looking ---- */

static uint64_t dir_count(HbDir *dir)
{
    int64_t count = 0;

    for (int i = 0; i < HB_DIR_ENTRIES; i++) {
        HbEntry e = atomic_load(&dir->entries[i]);
        if (e == HB_ONES) {
            count += HB_PAGE_BITS;
        } else if (hb_is_block(e)) {
            count += (int32_t)atomic_load(&hb_page(e)->count);
        }
    }
    return MAX(count, 0);
}

uint64_t hbitmap_count(const HBitmap *bm)
{
    uint64_t count = 0;
    uint64_t d = 0;

    while ((d = hb_next_root(bm, bm->dirty, d)) < bm->n_roots) {
        HbEntry e = atomic_load(&bm->roots[d++]);
        if (e == HB_ONES) {
            count += HB_DIR_BITS;
        } else if (hb_is_block(e)) {
            count += dir_count(hb_dir(e));
        }
    }
    return count;
}

bool hbitmap_get(const HBitmap *bm, uint64_t bit)
{
    hb_assert_range(bm, bit, 1);
    HbEntry e = hb_peek(bm, bit >> HB_PAGE_BITS_LOG2);
    if (hb_is_block(e)) {
        return atomic_load(&hb_page(e)->words[bit / 64 % HB_PAGE_WORDS]) >> (bit % 64) & 1;
    }
    return e == HB_ONES;
}

void hbitmap_prefetch(const HBitmap *bm, uint64_t bit)
{
    if (bit >= bm->size) {
        return;
    }
    HbEntry e = atomic_load(&bm->roots[bit >> HB_DIR_BITS_LOG2]);
    if (!hb_is_private(e)) {
        return;
    }
    e = atomic_load(&hb_dir(e)->entries[hb_page_slot(bit >> HB_PAGE_BITS_LOG2)]);
    if (hb_is_private(e)) {
        __builtin_prefetch((const void *)&hb_page(e)->summary, 1);
        __builtin_prefetch((const void *)&hb_page(e)->words[bit / 64 % HB_PAGE_WORDS], 1);
    }
}

/* ---- Changing a part of one page ---- */

/* Bits first..last of a page. */
typedef struct Span {
    unsigned first, last;
} Span;

static inline uint64_t span_mask(Span s, unsigned word)
{
    return hb_word_mask(word == s.first / 64 ? s.first % 64 : 0,
                        word == s.last / 64 ? s.last % 64 : 63);
}

/* Whether all bits of the span have the value `set`. */
static bool page_holds(HbPage *page, Span s, bool set)
{
    for (unsigned w = s.first / 64; w <= s.last / 64; w++) {
        uint64_t value = atomic_load(&page->words[w]);
        if ((set ? ~value : value) & span_mask(s, w)) {
            return false;
        }
    }
    return true;
}

static void page_change(HBitmap *bm, HbPage *page, Span s, bool set)
{
    unsigned changed = 0;

    for (unsigned w = s.first / 64; w <= s.last / 64; w++) {
        uint64_t mask = span_mask(s, w);
        uint64_t value = atomic_load(&page->words[w]);
        if (set && (value & mask) != mask) {
            value = atomic_fetch_or(&page->words[w], mask);
            changed += __builtin_popcountll(~value & mask);
        } else if (!set && (value & mask)) {
            value = atomic_fetch_and(&page->words[w], ~mask);
            changed -= __builtin_popcountll(value & mask);
        }
    }
    if (changed) {
        hb_note_count(bm, atomic_fetch_add(&page->count, changed) + changed);
    }
    if (changed && !set && !atomic_load(&page->loose)) {
        atomic_store(&page->loose, true);
    }
}

static void page_mark(HbPage *page, Span s)
{
    unsigned first = s.first / HB_LINE_BITS, last = s.last / HB_LINE_BITS;
    hb_mark(&page->summary, hb_word_mask(first, last));
}

/* Give a span of page `p` the value `set`. */
static void change_span(HBitmap *bm, uint64_t p, Span s, bool set)
{
    const HbEntry done = set ? HB_ONES : HB_ABSENT;
    HbEntry e = hb_peek(bm, p);

    if (e != done && !(hb_is_block(e) && hb_is_shared(e) && page_holds(hb_page(e), s, set))) {
        HbPage *page = hb_reach(bm, p, done);
        hb_race_point();
        if (page) {
            page_change(bm, page, s, set);
        }
        if (page && set) {
            page_mark(page, s);
        }
    }
    if (set) {
        hb_mark_up(bm, p);
    }
}

/* ---- Changing whole units ---- */

/* Page `p` lies wholly inside the size. A private page is changed in place (invariant 4). */
static void change_page(HBitmap *bm, uint64_t p, bool set)
{
    const HbEntry done = set ? HB_ONES : HB_ABSENT;
    HbEntry e;

    while ((e = hb_peek(bm, p)) != done) {
        HbEntry de = atomic_load(&bm->roots[hb_page_dir(p)]);
        if (!hb_is_block(de) || hb_is_shared(de)) {
            hb_claim_dir(bm, hb_page_dir(p), de);
            continue;
        }
        HbDir *dir = hb_dir(de);
        e = atomic_load(&dir->entries[hb_page_slot(p)]);
        if (hb_is_block(e) && !hb_is_shared(e)) {
            change_span(bm, p, (Span){ 0, HB_PAGE_BITS - 1 }, set);
            return;
        }
        hb_race_point();
        if (atomic_compare_exchange_strong(&dir->entries[hb_page_slot(p)], &e, done)) {
            if (hb_is_block(e)) {
                hb_retire(bm, NULL, hb_page(e));
            }
            break;
        }
    }
    if (set) {
        hb_mark_up(bm, p);
    }
}

/* Directory `d` lies wholly inside the size. */
static void change_dir(HBitmap *bm, uint64_t d, bool set)
{
    const HbEntry done = set ? HB_ONES : HB_ABSENT;
    HbEntry de = atomic_load(&bm->roots[d]);

    while (de != done) {
        if (hb_is_block(de) && !hb_is_shared(de)) {
            for (uint64_t i = 0; i < HB_DIR_ENTRIES; i++) {
                change_page(bm, (d << HB_DIR_ENTRIES_LOG2) + i, set);
            }
            break;
        }
        if (set) {
            hb_mark_present(bm, d);
        }
        hb_race_point();
        if (atomic_compare_exchange_strong(&bm->roots[d], &de, done)) {
            if (hb_is_block(de)) {
                hb_retire(bm, hb_dir(de), NULL);
            }
            break;
        }
    }
    if (set) {
        hb_mark_root(bm, d);
    }
}

static void change(HBitmap *bm, uint64_t start, uint64_t nbits, bool set)
{
    hb_assert_range(bm, start, nbits);
    uint64_t end = start + nbits;

    while (start < end) {
        uint64_t p = start >> HB_PAGE_BITS_LOG2;
        unsigned first = start % HB_PAGE_BITS;

        if (start % HB_DIR_BITS == 0 && end - start >= HB_DIR_BITS) {
            change_dir(bm, start >> HB_DIR_BITS_LOG2, set);
            start += HB_DIR_BITS;
        } else if (first == 0 && end - start >= HB_PAGE_BITS) {
            change_page(bm, p, set);
            start += HB_PAGE_BITS;
        } else {
            unsigned n = MIN(end - start, HB_PAGE_BITS - first);
            change_span(bm, p, (Span){ first, first + n - 1 }, set);
            start += n;
        }
    }
}

/*
 * What all writers pay for: bits of one word of a private page. False, nothing or only a part of it
 * done, when it is another case, or when a mark is missing. `nbits` is a constant where it can be.
 */
static inline __attribute__((always_inline)) bool set_in_word(HBitmap *bm, uint64_t start,
                                                              const uint64_t nbits)
{
    uint64_t line = start / HB_LINE_BITS, d = start >> HB_DIR_BITS_LOG2;

    HbEntry e = atomic_load(&bm->roots[d]);
    if (!hb_is_private(e)) {
        return false;
    }
    HbDir *dir = (HbDir *)e;
    e = atomic_load(&dir->entries[hb_page_slot(start >> HB_PAGE_BITS_LOG2)]);
    if (!hb_is_private(e)) {
        return false;
    }
    HbPage *page = (HbPage *)e;
    _Atomic uint64_t *word = &page->words[start / 64 % HB_PAGE_WORDS];
    uint64_t mask = ~UINT64_C(0) >> (64 - nbits) << (start % 64);
    hb_race_point();
    if ((atomic_load(word) & mask) != mask) {
        uint64_t before = atomic_fetch_or(word, mask) & mask;
        if (nbits == 1 ? !before : before != mask) {
            unsigned n = nbits == 1 ? 1 : __builtin_popcountll(mask & ~before);
            hb_note_count(bm, atomic_fetch_add(&page->count, n) + n);
        }
    }
    return hb_is_marked(&page->summary, line) &&
           hb_is_marked(&dir->summary, start >> (HB_PAGE_BITS_LOG2 + HB_LINE_LOG2)) &&
           hb_is_marked(&bm->dirty[hb_root_line_word(d)], d >> HB_LINE_LOG2);
}

void hbitmap_set_bit(HBitmap *bm, uint64_t bit)
{
    if (G_UNLIKELY(bit >= bm->size || !set_in_word(bm, bit, 1))) {
        change(bm, bit, 1, true);
    }
}

void hbitmap_set(HBitmap *bm, uint64_t start, uint64_t nbits)
{
    hb_assert_range(bm, start, nbits);
    if (nbits == 0 || nbits > 64 - start % 64 || !set_in_word(bm, start, nbits)) {
        change(bm, start, nbits, true);
    }
}

void hbitmap_reset(HBitmap *bm, uint64_t start, uint64_t nbits)
{
    change(bm, start, nbits, false);
}
