/* SPDX-License-Identifier: MIT */
/*
 * HBitmap: to bytes and back. Writing bytes is concurrent, reading them is quiescent.
 *
 * The bytes are the bits in ascending order, lowest bit of a byte first, on every
 * machine. Work goes page by page; tags never become pages on the way out, and
 * uniform pages become tags on the way in.
 */
#include "hbitmap-internal.h"

#include <string.h>

enum {
    HB_PAGE_BYTES = HB_PAGE_BITS / 8,
};

/*
 * `n` bytes of a page from byte `first` on, between words and stream order. Others may be writing
 * the page, so the words are read one by one.
 */
static void page_to_bytes(uint8_t *buf, HbPage *page, unsigned first, unsigned n)
{
    uint64_t words[HB_PAGE_WORDS];

    for (unsigned w = first / 8; w <= (first + n - 1) / 8; w++) {
        words[w] = atomic_load_explicit(&page->words[w], memory_order_relaxed);
    }
    if (G_BYTE_ORDER == G_LITTLE_ENDIAN) {
        memcpy(buf, (const uint8_t *)words + first, n);
        return;
    }
    for (unsigned i = 0; i < n; i++) {
        unsigned byte = first + i;
        buf[i] = words[byte / 8] >> (byte % 8 * 8);
    }
}

static void words_from_bytes(uint64_t *words, const uint8_t *buf, unsigned first, unsigned n)
{
    if (G_BYTE_ORDER == G_LITTLE_ENDIAN) {
        memcpy((uint8_t *)words + first, buf, n);
        return;
    }
    for (unsigned i = 0; i < n; i++) {
        unsigned byte = first + i, shift = byte % 8 * 8;
        words[byte / 8] = (words[byte / 8] & ~(UINT64_C(0xff) << shift)) | (uint64_t)buf[i]
                                                                               << shift;
    }
}

/* The part of [start, start + nbits) that lies in the page of `start`. */
static unsigned page_part(uint64_t start, uint64_t nbits)
{
    return MIN(nbits, HB_PAGE_BITS - start % HB_PAGE_BITS);
}

void hbitmap_serialize(const HBitmap *bm, uint64_t start, uint64_t nbits, uint8_t *buf)
{
    hb_assert_range(bm, start, nbits);
    g_assert(start % HBITMAP_SERIALIZE_ALIGN_BITS == 0);

    while (nbits > 0) {
        unsigned n = page_part(start, nbits);
        unsigned n_bytes = (n + 7) / 8;
        HbEntry e = hb_peek(bm, start >> HB_PAGE_BITS_LOG2);
        if (hb_is_block(e)) {
            page_to_bytes(buf, hb_page(e), start % HB_PAGE_BITS / 8, n_bytes);
        } else {
            memset(buf, e == HB_ONES ? 0xff : 0, n_bytes);
        }
        if (n % 8) {
            buf[n_bytes - 1] &= (1 << n % 8) - 1;
        }
        buf += n_bytes;
        start += n;
        nbits -= n;
    }
}

/* The words of page `p`, whatever its entry. */
static void read_words(const HBitmap *bm, uint64_t p, uint64_t *words)
{
    HbEntry e = hb_peek(bm, p);

    if (hb_is_block(e)) {
        memcpy(words, hb_words(hb_page(e)), HB_PAGE_BYTES);
    } else {
        memset(words, e == HB_ONES ? 0xff : 0, HB_PAGE_BYTES);
    }
}

/* Replace the content of page `p`. */
static void put_words(HBitmap *bm, uint64_t p, const uint64_t *words)
{
    unsigned count = hb_words_count(words);
    HbEntry e;

    if (count == 0 || count == HB_PAGE_BITS) {
        e = count ? HB_ONES : HB_ABSENT;
        if (hb_peek(bm, p) == e) {
            return;
        }
    } else {
        e = (HbEntry)hb_page_from_words(words, words, hb_words_summary(words), NULL, NULL);
    }
    hb_put_page(hb_own_dir(bm, hb_page_dir(p)), hb_page_slot(p), e);
    hb_mark_root(bm, hb_page_dir(p));
}

void hbitmap_deserialize(HBitmap *bm, uint64_t start, uint64_t nbits, const uint8_t *buf)
{
    alignas(64) uint64_t words[HB_PAGE_WORDS];
    uint64_t d = start >> HB_DIR_BITS_LOG2;

    hb_assert_range(bm, start, nbits);
    g_assert(start % HBITMAP_SERIALIZE_ALIGN_BITS == 0);
    hb_release_retired(bm);
    while (nbits > 0) {
        uint64_t p = start >> HB_PAGE_BITS_LOG2;
        unsigned first = start % HB_PAGE_BITS;
        unsigned n = page_part(start, nbits);
        read_words(bm, p, words);
        uint64_t last_word = words[(first + n - 1) / 64];
        words_from_bytes(words, buf, first / 8, (n + 7) / 8);
        if (n % 8) {
            /* The bits of the last byte beyond the range keep their values. */
            uint64_t mask = hb_word_mask(0, (first + n - 1) % 64);
            uint64_t *word = &words[(first + n - 1) / 64];
            *word = (*word & mask) | (last_word & ~mask);
        }
        put_words(bm, p, words);
        buf += (n + 7) / 8;
        start += n;
        nbits -= n;
    }
    for (; d << HB_DIR_BITS_LOG2 < start; d++) {
        if (hb_is_block(atomic_load(&bm->roots[d]))) {
            hb_collapse_dir(bm, d);
        }
    }
}
