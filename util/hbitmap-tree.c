/* SPDX-License-Identifier: MIT */
/*
 * HBitmap: blocks, references, and copy on write.
 *
 * The "claim" functions run beside other writers and keep invariants 2 to 4 of
 * hbitmap.c by compare-and-swap; the "own", "put" and "share" functions are for
 * quiescent verbs, where nobody else writes this bitmap's tree, though others may
 * be reading, copying or dropping blocks that it shares with them.
 */
#include "hbitmap-internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- Blocks ---- */

static HbPage *page_alloc(unsigned count, uint64_t summary)
{
    HbPage *page = hb_block_alloc();
    atomic_init(&page->refs, 1);
    atomic_init(&page->count, count);
    atomic_init(&page->summary, summary);
    atomic_init(&page->loose, false);
    return page;
}

HbPage *hb_page_new(HbEntry fill)
{
    bool ones = fill == HB_ONES;
    HbPage *page = page_alloc(ones ? HB_PAGE_BITS : 0, ones ? ~UINT64_C(0) : 0);
    memset(hb_words(page), ones ? 0xff : 0, sizeof(page->words));
    return page;
}

HbPage *hb_page_from_words(const uint64_t *a, const uint64_t *b, uint64_t summary,
                           const uint64_t *ahead_a, const uint64_t *ahead_b)
{
    HbPage *page = page_alloc(0, summary);
    atomic_init(&page->count, hb_words_or(a, b, hb_words(page), ahead_a, ahead_b));
    return page;
}

/*
 * A copy of a page that this bitmap may not write. Another thread may find that we are
 * its last holder and begin to write it (invariant 3), so the words are read as atomics;
 * the copy is then not used.
 */
static HbPage *page_copy(HbPage *from)
{
    HbPage *page = page_alloc(atomic_load(&from->count), atomic_load(&from->summary));
    uint64_t *words = hb_words(page);

    atomic_init(&page->loose, atomic_load(&from->loose));
    for (int i = 0; i < HB_PAGE_WORDS; i++) {
        words[i] = atomic_load_explicit(&from->words[i], memory_order_relaxed);
    }
    hb_race_point();
    return page;
}

HbDir *hb_dir_new(HbEntry fill)
{
    HbDir *dir = hb_block_alloc();

    atomic_init(&dir->refs, 1);
    atomic_init(&dir->summary, fill == HB_ONES ? ~UINT64_C(0) : 0);
    for (int i = 0; i < HB_DIR_ENTRIES; i++) {
        atomic_init(&dir->entries[i], fill);
    }
    return dir;
}

/* The head of a page that a walk comes to soon, where its references are counted. */
static void prefetch_page(HbDir *dir, unsigned slot)
{
    HbEntry e = atomic_load(&dir->entries[slot % HB_DIR_ENTRIES]);

    if (hb_is_block(e)) {
        __builtin_prefetch(hb_page(e), 1);
    }
}

/* A copy of a shared directory. Its pages become shared between both. */
static HbDir *dir_copy(HbDir *from)
{
    HbDir *dir = hb_block_alloc();

    atomic_init(&dir->refs, 1);
    atomic_init(&dir->summary, atomic_load(&from->summary));
    for (int i = 0; i < HB_DIR_ENTRIES; i++) {
        prefetch_page(from, i + HB_LINE);
        atomic_init(&dir->entries[i], hb_share_page(&from->entries[i]));
    }
    hb_race_point();
    return dir;
}

/* ---- References ---- */

void hb_page_unref(HbPage *page)
{
    if (atomic_fetch_sub(&page->refs, 1) == 1) {
        hb_block_free(page);
    }
}

void hb_dir_unref(HbDir *dir)
{
    if (atomic_fetch_sub(&dir->refs, 1) == 1) {
        for (int i = 0; i < HB_DIR_ENTRIES; i++) {
            hb_drop_page(atomic_load(&dir->entries[i]));
        }
        hb_block_free(dir);
    }
}

void hb_drop_page(HbEntry e)
{
    if (hb_is_block(e)) {
        hb_page_unref(hb_page(e));
    }
}

void hb_drop_dir(HbEntry e)
{
    if (hb_is_block(e)) {
        hb_dir_unref(hb_dir(e));
    }
}

HbEntry hb_share_page(_Atomic HbEntry *entry)
{
    HbEntry e = atomic_load(entry);

    if (hb_is_block(e)) {
        if (!hb_is_shared(e)) {
            e = atomic_fetch_or(entry, HB_SHARED) | HB_SHARED;
        }
        atomic_fetch_add(&hb_page(e)->refs, 1);
    }
    return e;
}

HbEntry hb_share_dir(_Atomic HbEntry *entry)
{
    HbEntry e = atomic_load(entry);

    if (hb_is_block(e)) {
        e |= HB_SHARED;
        atomic_store(entry, e);
        atomic_fetch_add(&hb_dir(e)->refs, 1);
    }
    return e;
}

/* ---- Beside other writers ---- */

void hb_retire(HBitmap *bm, HbDir *dir, HbPage *page)
{
    HbRetired *r = g_new(HbRetired, 1);

    r->dir = dir;
    r->page = page;
    r->next = atomic_load(&bm->retired);
    while (!atomic_compare_exchange_weak(&bm->retired, &r->next, r)) {
    }
}

void hb_claim_dir(HBitmap *bm, uint64_t d, HbEntry seen)
{
    HbDir *dir = hb_is_block(seen) ? dir_copy(hb_dir(seen)) : hb_dir_new(seen);

    hb_mark_present(bm, d);
    if (!atomic_compare_exchange_strong(&bm->roots[d], &seen, (HbEntry)dir)) {
        hb_dir_unref(dir);
    } else if (hb_is_block(seen)) {
        hb_retire(bm, hb_dir(seen), NULL);
    }
}

void hb_claim_page(HBitmap *bm, HbDir *dir, unsigned slot, HbEntry seen)
{
    if (hb_is_block(seen) && atomic_load(&hb_page(seen)->refs) == 1) {
        hb_race_point();
        atomic_compare_exchange_strong(&dir->entries[slot], &seen, seen & ~HB_SHARED);
        return;
    }
    HbPage *page = hb_is_block(seen) ? page_copy(hb_page(seen)) : hb_page_new(seen);
    HbEntry expected = seen;
    if (!atomic_compare_exchange_strong(&dir->entries[slot], &expected, (HbEntry)page)) {
        hb_page_unref(page);
    } else if (hb_is_block(seen)) {
        hb_retire(bm, NULL, hb_page(seen));
    }
}

HbPage *hb_reach(HBitmap *bm, uint64_t p, HbEntry done)
{
    unsigned slot = hb_page_slot(p);

    for (;;) {
        HbEntry e = atomic_load(&bm->roots[hb_page_dir(p)]);
        if (e == done) {
            return NULL;
        }
        if (!hb_is_block(e) || hb_is_shared(e)) {
            hb_claim_dir(bm, hb_page_dir(p), e);
            continue;
        }
        HbDir *dir = hb_dir(e);
        e = atomic_load(&dir->entries[slot]);
        if (e == done) {
            return NULL;
        }
        if (hb_is_block(e) && !hb_is_shared(e)) {
            return hb_page(e);
        }
        hb_claim_page(bm, dir, slot, e);
    }
}

/* ---- Quiescent ---- */

void hb_release_retired(HBitmap *bm)
{
    HbRetired *r = atomic_exchange(&bm->retired, NULL);

    while (r) {
        HbRetired *next = r->next;
        if (r->dir) {
            hb_dir_unref(r->dir);
        } else {
            hb_page_unref(r->page);
        }
        g_free(r);
        r = next;
    }
}

bool hb_roots_init(HBitmap *bm, uint64_t size_bits)
{
    uint64_t n_roots = (size_bits + HB_DIR_BITS - 1) >> HB_DIR_BITS_LOG2;
    uint64_t n_lines = (n_roots + HB_LINE * 64 - 1) / (HB_LINE * 64);

    /* calloc, so that the roots of a huge bitmap are address space until they are used. */
    uint64_t *block = calloc(n_roots + 2 * n_lines + 1, sizeof(*block));
    if (!block) {
        return false;
    }
    bm->size = size_bits;
    bm->n_roots = n_roots;
    bm->roots = (_Atomic HbEntry *)block;
    bm->dirty = (_Atomic uint64_t *)(block + n_roots);
    bm->present = bm->dirty + n_lines;
    return true;
}

void hb_put_root(HBitmap *bm, uint64_t d, HbEntry e)
{
    hb_drop_dir(atomic_load(&bm->roots[d]));
    atomic_store(&bm->roots[d], e);
    if (e != HB_ABSENT) {
        hb_mark_present(bm, d);
        hb_mark_root(bm, d);
    }
}

HbDir *hb_own_dir(HBitmap *bm, uint64_t d)
{
    HbEntry e = atomic_load(&bm->roots[d]);

    if (!hb_is_block(e)) {
        hb_put_root(bm, d, (HbEntry)hb_dir_new(e));
    } else if (hb_is_shared(e) && atomic_load(&hb_dir(e)->refs) == 1) {
        atomic_store(&bm->roots[d], e & ~HB_SHARED);
    } else if (hb_is_shared(e)) {
        hb_put_root(bm, d, (HbEntry)dir_copy(hb_dir(e)));
    }
    return hb_dir(atomic_load(&bm->roots[d]));
}

void hb_put_page(HbDir *dir, unsigned slot, HbEntry e)
{
    hb_drop_page(atomic_load(&dir->entries[slot]));
    atomic_store(&dir->entries[slot], e);
    if (e != HB_ABSENT) {
        hb_mark(&dir->summary, hb_line_bit(slot));
    }
}

void hb_collapse_dir(HBitmap *bm, uint64_t d)
{
    HbDir *dir = hb_dir(atomic_load(&bm->roots[d]));

    for (int i = 0; i < HB_DIR_ENTRIES; i++) {
        if (atomic_load(&dir->entries[i]) != HB_ONES) {
            return;
        }
    }
    hb_put_root(bm, d, HB_ONES);
}
