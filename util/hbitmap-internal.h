/* SPDX-License-Identifier: MIT */
/*
 * The inside of HBitmap: the tree and the steps that its verbs share.
 *
 * The rules that all of this keeps are the numbered invariants at the top of
 * hbitmap.c; comments here and in the other hbitmap files name them.
 *
 * The tree: roots[] -> HbDir -> HbPage. An entry (in roots[] or in a directory) is
 * HB_ABSENT, HB_ONES, or a block's address, with HB_SHARED added when this
 * bitmap may not write to the block. "Block" means a directory or a page.
 */
#ifndef MERINO_UTIL_HBITMAP_INTERNAL_H
#define MERINO_UTIL_HBITMAP_INTERNAL_H

#include "util/hbitmap.h"

#include <stdalign.h>
#include <stdatomic.h>

enum {
    HB_PAGE_BITS_LOG2 = 15,
    HB_PAGE_BITS = 1 << HB_PAGE_BITS_LOG2,
    HB_PAGE_WORDS = HB_PAGE_BITS / 64,
    HB_DIR_ENTRIES_LOG2 = 9,
    HB_DIR_ENTRIES = 1 << HB_DIR_ENTRIES_LOG2,
    HB_DIR_BITS_LOG2 = HB_PAGE_BITS_LOG2 + HB_DIR_ENTRIES_LOG2,
    HB_DIR_BITS = 1 << HB_DIR_BITS_LOG2,

    /* A summary bit stands for a line: eight words, or eight entries. */
    HB_LINE_LOG2 = 3,
    HB_LINE = 1 << HB_LINE_LOG2,
    HB_LINE_BITS = HB_LINE * 64,
    HB_PAGE_LINES = HB_PAGE_WORDS / HB_LINE,
};

/*
 * Called between steps that a race could come between. A test builds these files with
 * HB_RACE_POINTS and gives a function that now and then lets another thread go first.
 */
#ifdef HB_RACE_POINTS
void hb_race_point(void);
#else
static inline void hb_race_point(void)
{
}
#endif

typedef uintptr_t HbEntry;

#define HB_ABSENT ((HbEntry)0)
#define HB_ONES   ((HbEntry)1)
#define HB_SHARED ((HbEntry)2)

typedef struct HbPage {
    alignas(64) atomic_uint refs;
    atomic_uint count;        /* of set bits; see invariant 7 */
    _Atomic uint64_t summary; /* one bit a line: 0 means the line is all clear */
    atomic_bool loose;        /* bits were reset since the summary was exact */
    alignas(64) _Atomic uint64_t words[HB_PAGE_WORDS];
} HbPage;

typedef struct HbDir {
    alignas(64) atomic_uint refs;
    _Atomic uint64_t summary; /* one bit a line: 0 means that no bit below it is set */
    alignas(64) _Atomic HbEntry entries[HB_DIR_ENTRIES];
} HbDir;

/* A block that was taken out of the tree while others might be reading it. */
typedef struct HbRetired HbRetired;
struct HbRetired {
    HbRetired *next;
    HbDir *dir; /* one of the two */
    HbPage *page;
};

struct HBitmap {
    uint64_t size;
    uint64_t n_roots;
    _Atomic HbEntry *roots;
    _Atomic uint64_t *dirty;   /* summary of roots[]: 0 means that no bit below is set */
    _Atomic uint64_t *present; /* one bit a line of roots[]: 0 means that all are absent */
    _Atomic(HbRetired *) retired;
    atomic_bool uneven; /* a private page became empty or full since hbitmap_compact */
};

/* ---- Entries ---- */

static inline bool hb_is_block(HbEntry e)
{
    return e > HB_ONES;
}

static inline bool hb_is_shared(HbEntry e)
{
    return e & HB_SHARED;
}

/* A block that this bitmap may write to: no tag, no flag. */
static inline bool hb_is_private(HbEntry e)
{
    return e && !(e & (HB_ONES | HB_SHARED));
}

static inline HbDir *hb_dir(HbEntry e)
{
    return (HbDir *)(e & ~HB_SHARED);
}

static inline HbPage *hb_page(HbEntry e)
{
    return (HbPage *)(e & ~HB_SHARED);
}

/* The words of a page that nobody else is writing, for code that reads many at once. */
static inline uint64_t *hb_words(HbPage *page)
{
    return (uint64_t *)page->words;
}

/* The words of the page behind the entry after `slot`, or NULL: what a walk reads next. */
static inline const uint64_t *hb_words_ahead(HbDir *dir, unsigned slot)
{
    HbEntry e = atomic_load(&dir->entries[(slot + 1) % HB_DIR_ENTRIES]);
    return hb_is_block(e) ? hb_words(hb_page(e)) : NULL;
}

/* A private page holds `count` bits now. A wrong look of a moment (invariant 7) costs a compaction.
 */
static inline void hb_note_count(HBitmap *bm, unsigned count)
{
    if ((count == 0 || count == HB_PAGE_BITS) &&
        !atomic_load_explicit(&bm->uneven, memory_order_relaxed)) {
        atomic_store_explicit(&bm->uneven, true, memory_order_relaxed);
    }
}

/* ---- Places ---- */

static inline uint64_t hb_line_bit(uint64_t index)
{
    return UINT64_C(1) << ((index >> HB_LINE_LOG2) & 63);
}

static inline uint64_t hb_root_line_word(uint64_t d)
{
    return d >> (HB_LINE_LOG2 + 6);
}

static inline uint64_t hb_page_dir(uint64_t page)
{
    return page >> HB_DIR_ENTRIES_LOG2;
}

static inline unsigned hb_page_slot(uint64_t page)
{
    return page & (HB_DIR_ENTRIES - 1);
}

/* Whether a page lies wholly inside the size, and so may be HB_ONES. */
static inline bool hb_page_is_whole(const HBitmap *bm, uint64_t page)
{
    return (page + 1) << HB_PAGE_BITS_LOG2 <= bm->size;
}

/* The bits first..last (0 to 63) of a word. */
static inline uint64_t hb_word_mask(unsigned first, unsigned last)
{
    return (~UINT64_C(0) << first) & (~UINT64_C(0) >> (63 - last));
}

static inline void hb_assert_range(const HBitmap *bm, uint64_t start, uint64_t nbits)
{
    g_assert(start <= bm->size && nbits <= bm->size - start);
}

/* ---- Marks (invariant 5): look first, then OR ---- */

static inline void hb_mark(_Atomic uint64_t *summary, uint64_t bits)
{
    hb_race_point();
    if ((atomic_load(summary) & bits) != bits) {
        hb_race_point();
        atomic_fetch_or(summary, bits);
    }
}

/* The look alone, for a setter that does the rest elsewhere: bit `n` modulo 64. */
static inline bool hb_is_marked(const _Atomic uint64_t *summary, uint64_t n)
{
    hb_race_point();
    return atomic_load(summary) >> (n & 63) & 1;
}

static inline void hb_mark_root(HBitmap *bm, uint64_t d)
{
    hb_mark(&bm->dirty[hb_root_line_word(d)], hb_line_bit(d));
}

/* Before an absent root entry gets a value. */
static inline void hb_mark_present(HBitmap *bm, uint64_t d)
{
    hb_mark(&bm->present[hb_root_line_word(d)], hb_line_bit(d));
}

/* All marks above page `p`. A shared directory's own are complete already. */
static inline void hb_mark_up(HBitmap *bm, uint64_t p)
{
    HbEntry e = atomic_load(&bm->roots[hb_page_dir(p)]);

    if (hb_is_block(e) && !hb_is_shared(e)) {
        hb_mark(&hb_dir(e)->summary, hb_line_bit(hb_page_slot(p)));
    }
    hb_mark_root(bm, hb_page_dir(p));
}

/* The entry of page `p`, for reading: shared when either level is. */
static inline HbEntry hb_peek(const HBitmap *bm, uint64_t p)
{
    HbEntry e = atomic_load(&bm->roots[hb_page_dir(p)]);

    if (hb_is_block(e)) {
        HbEntry shared = e & HB_SHARED;
        e = atomic_load(&hb_dir(e)->entries[hb_page_slot(p)]);
        e |= hb_is_block(e) ? shared : 0;
    }
    return e;
}

/* The first root entry at or after `d` whose line is in `lines` (dirty or present), or n_roots. */
uint64_t hb_next_root(const HBitmap *bm, const _Atomic uint64_t *lines, uint64_t d);

/* ---- hbitmap-alloc.c ---- */

/* Memory for a directory or a page, with any content. Aborts when there is none. */
void *hb_block_alloc(void);
void hb_block_free(void *block);

/* ---- hbitmap-tree.c: blocks, references, copy on write ---- */

HbPage *hb_page_new(HbEntry fill);
/* A page that holds a | b; `summary` covers both. `ahead_a` and `ahead_b` as in hb_words_or(). */
HbPage *hb_page_from_words(const uint64_t *a, const uint64_t *b, uint64_t summary,
                           const uint64_t *ahead_a, const uint64_t *ahead_b);
HbDir *hb_dir_new(HbEntry fill);
void hb_page_unref(HbPage *page);
void hb_dir_unref(HbDir *dir);

/* Drop the reference that an entry holds, if it is a block. */
void hb_drop_page(HbEntry e);
void hb_drop_dir(HbEntry e);

/* Give `bm` a size and new roots, all absent; false, nothing changed, when there is no memory. */
bool hb_roots_init(HBitmap *bm, uint64_t size_bits);

/*
 * Concurrent. Replace an entry that may not be written, as it was seen, by a private
 * block of the same content. The caller looks again afterwards: another thread may
 * have come first.
 */
void hb_claim_dir(HBitmap *bm, uint64_t d, HbEntry seen);
void hb_claim_page(HBitmap *bm, HbDir *dir, unsigned slot, HbEntry seen);

/*
 * Concurrent. The page `p`, claimed at both levels so that it may be written; NULL
 * when it is `done`, a tag.
 */
HbPage *hb_reach(HBitmap *bm, uint64_t p, HbEntry done);

/* Concurrent. Keep a block that was taken out of the tree until nobody can be reading it. */
void hb_retire(HBitmap *bm, HbDir *dir, HbPage *page);

/* Quiescent. Release what was retired. */
void hb_release_retired(HBitmap *bm);

/* Quiescent. Replace a root entry and mark it; drops what was there. */
void hb_put_root(HBitmap *bm, uint64_t d, HbEntry e);

/* Quiescent. The directory at `d`, private, of the content the entry had. */
HbDir *hb_own_dir(HBitmap *bm, uint64_t d);

/* Quiescent. Replace an entry of an owned directory and mark it; drops what was there. */
void hb_put_page(HbDir *dir, unsigned slot, HbEntry e);

/* Quiescent. A reference to what an entry holds, with both sides flagged as shared. */
HbEntry hb_share_dir(_Atomic HbEntry *entry);
HbEntry hb_share_page(_Atomic HbEntry *entry);

/* Quiescent. Turn a directory of nothing but HB_ONES into HB_ONES. */
void hb_collapse_dir(HBitmap *bm, uint64_t d);

/* ---- hbitmap-merge.c ---- */

/* Quiescent. OR the words of a whole page, with a summary that covers them, into page `page`. */
void hb_merge_words(HBitmap *bm, uint64_t page, const uint64_t *words, uint64_t summary);

/* Quiescent. Set a range, whole pages as HB_ONES whatever they were. */
void hb_merge_ones(HBitmap *bm, uint64_t start, uint64_t nbits);

/* ---- hbitmap-shift.c ---- */

/* The size that corresponds to `size` when 2^k bits fall into one: rounded up. */
uint64_t hb_coarse_size(uint64_t size, int k);

/* ---- hbitmap-words.c: loops over the 512 words of a page, which lie on a 64-byte boundary ---- */

/*
 * dst = a | b; dst may be a. Returns the number of bits set in dst. `ahead_a` and
 * `ahead_b` are the words that will be a and b in the next call, or NULL.
 */
unsigned hb_words_or(const uint64_t *a, const uint64_t *b, uint64_t *dst, const uint64_t *ahead_a,
                     const uint64_t *ahead_b);
unsigned hb_words_count(const uint64_t *words);

/* Whether every bit of `a` is set in `b`. */
bool hb_words_subset(const uint64_t *a, const uint64_t *b);
uint64_t hb_words_summary(const uint64_t *words);

/*
 * Every 2^k bits of a page (k from 1 to 15) become one, set when any of them is:
 * 32768 >> k bits, ORed into `out` from bit `out_bit` on, a multiple of that number.
 * `ahead` are the words of the next call, or NULL.
 */
void hb_words_shrink(const uint64_t *words, int k, uint64_t *out, unsigned out_bit,
                     const uint64_t *ahead);

/*
 * The inverse: the first 32768 >> k bits of `words` become 2^k bits each, a page (k 1 to 15).
 * `ahead` are words that are wanted afterwards, or NULL.
 */
void hb_words_spread(const uint64_t *words, int k, uint64_t *out, const uint64_t *ahead);

/* The same for one word: the 64 >> k bits (k from 0 to 6) that stand for 2^k bits of `w` each. */
uint64_t hb_word_shrink(uint64_t w, int k);

#endif
