/* SPDX-License-Identifier: MIT */
/*
 * HBitmap: a hierarchical bitmap of up to 2^48 bits that costs what it holds.
 *
 * It knows bits only: positions and lengths are in bits, and what a bit stands
 * for is its user's business. Inside it is a tree: a root array, directories of
 * 512 entries, pages of 32768 bits. A part of the tree is absent (all clear),
 * one tag (all set), shared copy-on-write with other bitmaps, or private. So an
 * empty or a full bitmap costs next to nothing at any size, a clone costs one
 * step for each directory, and merge touches only pages that differ.
 *
 * Calling context. There are three kinds of verbs:
 *
 *  - Concurrent: any thread, at any time, lock-free, beside each other and
 *    beside a fold: hbitmap_set, _set_bit, _reset, _get, _prefetch, _count, _is_empty, _next_dirty,
 *    _next_clear, _next_dirty_area, _dirty_areas, _range_state, _size, _serialize. What a reader
 * answers while bits change is true of every bit that did not change meanwhile; hbitmap_count is
 * exact when nothing changes.
 *  - hbitmap_fold: concurrent with all of these, but one fold at a time for one
 *    epoch (the caller holds a mutex).
 *  - Quiescent: everything else. While such a verb runs, no other verb may run
 *    on the bitmaps it is given, and the caller orders it after them (the node
 *    is drained). Bitmaps that merely share pages with these may be in use
 *    in other threads.
 *
 * A range is given as (start, nbits) where it is changed and as [start, end)
 * where it is searched; both must lie inside the bitmap, which is asserted.
 * Verbs that take two bitmaps need them to be of corresponding sizes, also
 * asserted. Memory exhaustion aborts as everywhere in GLib, except in
 * hbitmap_new and hbitmap_truncate, which report it.
 */
#ifndef MERINO_UTIL_HBITMAP_H
#define MERINO_UTIL_HBITMAP_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The largest bitmap: 2^48 bits, 128 PiB of disk at the finest granularity. */
#define HBITMAP_MAX_BITS (UINT64_C(1) << 48)

/* `start` of hbitmap_serialize and hbitmap_deserialize is a multiple of this. */
#define HBITMAP_SERIALIZE_ALIGN_BITS 8

/* The largest granularity difference that hbitmap_merge_shift and hbitmap_fold accept. */
#define HBITMAP_MAX_SHIFT 32

typedef struct HBitmap HBitmap;

typedef enum HBitmapRangeState {
    HBITMAP_CLEAR,
    HBITMAP_SET,
    HBITMAP_MIXED,
} HBitmapRangeState;

/*
 * A bitmap of `size_bits` bits, all clear; 0 bits is a valid size. Fails when it
 * is larger than HBITMAP_MAX_BITS or its root array cannot be had.
 */
HBitmap *hbitmap_new(uint64_t size_bits, GError **error);

/* Quiescent. NULL is fine. */
void hbitmap_free(HBitmap *bm);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(HBitmap, hbitmap_free)

/* ---- Concurrent verbs ---- */

uint64_t hbitmap_size(const HBitmap *bm);

/* The number of set bits. */
uint64_t hbitmap_count(const HBitmap *bm);

bool hbitmap_is_empty(const HBitmap *bm);

bool hbitmap_get(const HBitmap *bm, uint64_t bit);

/*
 * Set or clear a range. Looks before it writes, so bits that are already as
 * wanted cost no write to shared memory. Clearing returns no memory: see
 * hbitmap_compact.
 */
void hbitmap_set(HBitmap *bm, uint64_t start, uint64_t nbits);
void hbitmap_reset(HBitmap *bm, uint64_t start, uint64_t nbits);

/* hbitmap_set() of one bit, for those who do it often. */
void hbitmap_set_bit(HBitmap *bm, uint64_t bit);

/* A hint: this bit (any number will do) is about to be set. What that will touch is fetched into
 * the processor's cache meanwhile, which takes much longer than setting it. */
void hbitmap_prefetch(const HBitmap *bm, uint64_t bit);

/* The first set (clear) bit in [start, end), or `end` when there is none. */
uint64_t hbitmap_next_dirty(const HBitmap *bm, uint64_t start, uint64_t end);
uint64_t hbitmap_next_clear(const HBitmap *bm, uint64_t start, uint64_t end);

/*
 * The first run of set bits in [start, end), cut to at most `max_bits` (which is
 * not 0) and to `end`. False, outputs untouched, when there is none.
 */
bool hbitmap_next_dirty_area(const HBitmap *bm, uint64_t start, uint64_t end, uint64_t max_bits,
                             uint64_t *ret_start, uint64_t *ret_len);

typedef struct HBitmapArea {
    uint64_t start, len;
} HBitmapArea;

/*
 * The same for many at once: the first runs of set bits in [start, end), at most `max`. Returns how
 * many there are; fewer than `max` only when there are no more.
 */
size_t hbitmap_dirty_areas(const HBitmap *bm, uint64_t start, uint64_t end, HBitmapArea *ret_areas,
                           size_t max);

/* Whether a range is all clear, all set, or neither. An empty range is clear. */
HBitmapRangeState hbitmap_range_state(const HBitmap *bm, uint64_t start, uint64_t nbits);

/*
 * Write a range to `buf` as bits in bytes, lowest bit first: (nbits + 7) / 8
 * bytes, unused high bits of the last one zero. `start` is a multiple of
 * HBITMAP_SERIALIZE_ALIGN_BITS.
 */
void hbitmap_serialize(const HBitmap *bm, uint64_t start, uint64_t nbits, uint8_t *buf);

/* ---- Fold ---- */

/*
 * Take every set bit out of `epoch` and set it in each of the `n` bitmaps of
 * `dst`, while other threads go on setting bits in `epoch` and in `dst`. A bit
 * whose hbitmap_set returned before the fold began is in every dst when
 * the fold returns; one set meanwhile is in every dst or still in the epoch.
 * `shift[i]` is 0 when dst[i] has the granularity of the epoch, and -k when 2^k
 * epoch bits fall into one bit of it; its size is the epoch's, shifted, rounded
 * up. With n = 0 the bits are dropped. The cost is in proportion to what is set in
 * the epoch, times n.
 */
void hbitmap_fold(HBitmap *epoch, HBitmap *const dst[], const int shift[], size_t n);

/* ---- Quiescent verbs ---- */

/* A copy that shares all pages until one side writes them. */
HBitmap *hbitmap_clone(HBitmap *bm);

/* Make `dst` hold what `src`, of the same size, holds; pages are shared. */
void hbitmap_copy_from(HBitmap *dst, HBitmap *src);

/* Exchange the contents of two bitmaps of the same size. Costs nothing. */
void hbitmap_swap(HBitmap *a, HBitmap *b);

/* Clear (set) all bits. What was there is given back. */
void hbitmap_clear(HBitmap *bm);
void hbitmap_fill(HBitmap *bm);

/*
 * Set in `dst` what is set in `src`, of the same size. `src` keeps its bits (it is
 * not const because its pages may become shared). dst == src is fine.
 */
void hbitmap_merge(HBitmap *dst, HBitmap *src);

/*
 * The same across granularities. With shift > 0 a bit of `src` covers 2^shift
 * bits of `dst`, and hbitmap_size(src) is that of dst divided by 2^shift, rounded
 * up. With shift < 0 it is the other way round: a bit of `dst` becomes set when any of
 * the 2^-shift bits of `src` in it is. 0 is hbitmap_merge.
 */
void hbitmap_merge_shift(HBitmap *dst, HBitmap *src, int shift);

/*
 * Change the size. Bits beyond the new end are gone, new bits are clear. On
 * failure (too large, or no memory for the root) nothing has changed.
 */
bool hbitmap_truncate(HBitmap *bm, uint64_t new_size_bits, GError **error);

/* True when sizes and bits are the same, however they are stored. */
bool hbitmap_equal(const HBitmap *a, const HBitmap *b);

/*
 * The first bit at or after `start` and before `end` that is set in only one of two bitmaps of the
 * same size, or `end`. Steps over what they share.
 */
uint64_t hbitmap_next_difference(const HBitmap *a, const HBitmap *b, uint64_t start, uint64_t end);

/*
 * Take back sole ownership of what no other bitmap shares any more and release
 * what concurrent writers left behind. One step for each directory: cheap enough to
 * follow each clone that was freed, and it spares later writers a copy.
 */
void hbitmap_settle(HBitmap *bm);

/*
 * hbitmap_settle, and bring the tree into normal form: pages that became empty
 * or full by single writes give their memory back, and searches skip again what
 * was reset. One step for each page.
 */
void hbitmap_compact(HBitmap *bm);

/* Concurrent. Whether hbitmap_compact would give memory back, as far as is known: single writes
 * have emptied or filled a page, or left something behind. */
bool hbitmap_is_uneven(const HBitmap *bm);

/*
 * The inverse of hbitmap_serialize: the range takes the values in `buf`; unused high bits of the
 * last byte are ignored. All-zero and all-one pages are recognised and cost nothing.
 */
void hbitmap_deserialize(HBitmap *bm, uint64_t start, uint64_t nbits, const uint8_t *buf);

/*
 * The bytes of memory that this bitmap accounts for; a part that n bitmaps share
 * counts for one n-th in each.
 */
size_t hbitmap_memory(const HBitmap *bm);

#endif
