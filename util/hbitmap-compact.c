/* SPDX-License-Identifier: MIT */
/*
 * HBitmap: giving memory back, and counting it. Quiescent.
 */
#include "hbitmap-internal.h"

#include <stdlib.h>

/* ---- Sole ownership again ---- */

static void settle_root(HBitmap *bm, uint64_t d)
{
    HbEntry e = atomic_load(&bm->roots[d]);

    if (hb_is_block(e) && hb_is_shared(e) && atomic_load(&hb_dir(e)->refs) == 1) {
        atomic_store(&bm->roots[d], e & ~HB_SHARED);
    }
}

void hbitmap_settle(HBitmap *bm)
{
    hb_release_retired(bm);
    for (uint64_t d = 0; (d = hb_next_root(bm, bm->present, d)) < bm->n_roots; d++) {
        settle_root(bm, d);
    }
}

/* ---- Normal form ---- */

/* What an entry should be: a tag when its page is empty or full. */
static HbEntry page_normal_form(HbEntry e)
{
    if (!hb_is_block(e)) {
        return e;
    }
    unsigned count = atomic_load(&hb_page(e)->count);
    return count == 0 ? HB_ABSENT : count == HB_PAGE_BITS ? HB_ONES : e;
}

/* The same for a root entry. */
static HbEntry dir_normal_form(HbEntry e)
{
    if (!hb_is_block(e)) {
        return e;
    }
    HbEntry first = page_normal_form(atomic_load(&hb_dir(e)->entries[0]));
    for (int i = 0; i < HB_DIR_ENTRIES; i++) {
        HbEntry normal = page_normal_form(atomic_load(&hb_dir(e)->entries[i]));
        if (hb_is_block(normal) || normal != first) {
            return e;
        }
    }
    return first;
}

/* Normalise the pages of a private directory and make its summary exact. */
static void compact_dir(HbDir *dir)
{
    atomic_store(&dir->summary, 0);
    for (int i = 0; i < HB_DIR_ENTRIES; i++) {
        HbEntry e = atomic_load(&dir->entries[i]);
        HbEntry normal = page_normal_form(e);
        HbPage *page = hb_is_block(normal) ? hb_page(normal) : NULL;
        if (page && atomic_load(&page->refs) == 1) {
            normal &= ~HB_SHARED;
            if (atomic_load(&page->loose)) {
                atomic_store(&page->summary, hb_words_summary(hb_words(page)));
                atomic_store(&page->loose, false);
            }
        }
        if (!page) {
            hb_drop_page(e);
        }
        atomic_store(&dir->entries[i], normal);
        if (normal != HB_ABSENT) {
            hb_mark(&dir->summary, hb_line_bit(i));
        }
    }
}

/* A directory that another bitmap holds too keeps its form, unless it is all empty or full. */
static void compact_root(HBitmap *bm, uint64_t d)
{
    settle_root(bm, d);
    HbEntry e = atomic_load(&bm->roots[d]);
    HbEntry normal = dir_normal_form(e);
    if (normal != e) {
        hb_put_root(bm, d, normal);
    } else if (hb_is_block(e) && !hb_is_shared(e)) {
        compact_dir(hb_dir(e));
    }
}

bool hbitmap_is_uneven(const HBitmap *bm)
{
    return atomic_load_explicit(&bm->uneven, memory_order_relaxed) ||
           atomic_load_explicit(&bm->retired, memory_order_relaxed);
}

void hbitmap_compact(HBitmap *bm)
{
    hb_release_retired(bm);
    atomic_store_explicit(&bm->uneven, false, memory_order_relaxed);
    for (uint64_t d = 0; (d = hb_next_root(bm, bm->present, d)) < bm->n_roots; d++) {
        compact_root(bm, d);
    }

    uint64_t n_lines = bm->present - bm->dirty;
    for (uint64_t i = 0; i < n_lines; i++) {
        uint64_t lines = 0;
        for (uint64_t left = atomic_load(&bm->present[i]); left; left &= left - 1) {
            uint64_t root = (i * 64 + __builtin_ctzll(left)) * HB_LINE;
            for (uint64_t end = MIN(root + HB_LINE, bm->n_roots); root < end; root++) {
                lines |= atomic_load(&bm->roots[root]) != HB_ABSENT ? hb_line_bit(root) : 0;
            }
        }
        atomic_store(&bm->dirty[i], lines);
        atomic_store(&bm->present[i], lines);
    }
}

/* ---- Memory ---- */

static double dir_memory(HbDir *dir)
{
    double bytes = sizeof(*dir);

    for (int i = 0; i < HB_DIR_ENTRIES; i++) {
        HbEntry e = atomic_load(&dir->entries[i]);
        if (hb_is_block(e)) {
            bytes += (double)sizeof(HbPage) / atomic_load(&hb_page(e)->refs);
        }
    }
    return bytes / atomic_load(&dir->refs);
}

size_t hbitmap_memory(const HBitmap *bm)
{
    uint64_t n_lines = bm->present - bm->dirty;
    double bytes = sizeof(*bm) + (bm->n_roots + 2 * n_lines) * sizeof(uint64_t);

    for (uint64_t d = 0; (d = hb_next_root(bm, bm->present, d)) < bm->n_roots; d++) {
        HbEntry e = atomic_load(&bm->roots[d]);
        if (hb_is_block(e)) {
            bytes += dir_memory(hb_dir(e));
        }
    }
    for (const HbRetired *r = atomic_load(&bm->retired); r; r = r->next) {
        bytes += sizeof(*r) + (r->dir ? dir_memory(r->dir)
                                      : (double)sizeof(HbPage) / atomic_load(&r->page->refs));
    }
    return (size_t)(bytes + 0.5);
}
