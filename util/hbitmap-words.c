/* SPDX-License-Identifier: MIT */
/*
 * HBitmap: loops over the 512 words of a page.
 *
 * They are written once, with the compiler's vectors, and compiled twice on x86-64: for any
 * machine and with AVX2. (The wider registers of AVX-512 were tried and gain nothing: memory is
 * the limit.) The choice is made at each call by a plain test of what the machine has, so that
 * sanitizers and static linking need nothing special.
 *
 * Callers own the words: nobody else writes them meanwhile.
 */
#include "hbitmap-internal.h"

#include <string.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

typedef uint64_t Vec __attribute__((vector_size(32), may_alias));

enum {
    VEC_WORDS = sizeof(Vec) / sizeof(uint64_t),
    PAGE_VECS = HB_PAGE_WORDS / VEC_WORDS,
    GROUP_WORDS = 32,
    GROUP_VECS = GROUP_WORDS / VEC_WORDS,
};

#define INLINE static inline __attribute__((always_inline))

#if defined(__x86_64__)
#define FOR_AVX2 __attribute__((target("avx2")))
/* Define `name` by `name`_body, an always-inline function, for each kind of machine. */
#define KERNEL(type, name, params, args)                                                           \
    static FOR_AVX2 type name##_avx2 params                                                        \
    {                                                                                              \
        return name##_body args;                                                                   \
    }                                                                                              \
    type name params                                                                               \
    {                                                                                              \
        return __builtin_cpu_supports("avx2") ? name##_avx2 args : name##_body args;               \
    }
#else
#define KERNEL(type, name, params, args)                                                           \
    type name params                                                                               \
    {                                                                                              \
        return name##_body args;                                                                   \
    }
#endif

/*
 * Ask for some lines of the page whose words will be wanted next. The pages of a
 * directory lie anywhere in memory, so the hardware does not foresee them; asked for line by
 * line during the work on this page, they come in its shadow. A prefetch of nothing is harmless.
 */
INLINE void prefetch_lines(const uint64_t *ahead, int first, int n)
{
    for (int i = first; i < first + n; i++) {
        __builtin_prefetch((const void *)((uintptr_t)ahead + i * HB_LINE * sizeof(*ahead)));
    }
}

/* ---- Counting ---- */

/*
 * Bits are counted in columns: full adders reduce eight vectors to one that weighs
 * 8, and what is left weighs 4, 2 and 1. Only one vector of eight is then
 * counted bit by bit.
 */
typedef struct Tally {
    Vec ones, twos, fours;
    Vec eights; /* the number of bits of weight 8, in each 64-bit column */
} Tally;

/* Per-column population count. */
INLINE void vec_popcount(Vec *v)
{
    Vec x = *v;
    x -= (x >> 1) & UINT64_C(0x5555555555555555);
    x = (x & UINT64_C(0x3333333333333333)) + ((x >> 2) & UINT64_C(0x3333333333333333));
    x = (x + (x >> 4)) & UINT64_C(0x0f0f0f0f0f0f0f0f);
    x += x >> 8;
    x += x >> 16;
    x += x >> 32;
    *v = x & 0xff;
}

/* A full adder: `sum` takes the sum of three bits, `carry` the carry. */
#define FULL_ADD(carry, sum, a, b)                                                                 \
    do {                                                                                           \
        Vec a_ = (a), b_ = (b), u_ = a_ ^ b_;                                                      \
        (carry) = (a_ & b_) | (u_ & (sum));                                                        \
        (sum) ^= u_;                                                                               \
    } while (0)

/* Add eight vectors. */
#define TALLY_ADD(t, v0, v1, v2, v3, v4, v5, v6, v7)                                               \
    do {                                                                                           \
        Vec two_a_, two_b_, four_a_, four_b_, eight_;                                              \
        FULL_ADD(two_a_, (t).ones, v0, v1);                                                        \
        FULL_ADD(two_b_, (t).ones, v2, v3);                                                        \
        FULL_ADD(four_a_, (t).twos, two_a_, two_b_);                                               \
        FULL_ADD(two_a_, (t).ones, v4, v5);                                                        \
        FULL_ADD(two_b_, (t).ones, v6, v7);                                                        \
        FULL_ADD(four_b_, (t).twos, two_a_, two_b_);                                               \
        FULL_ADD(eight_, (t).fours, four_a_, four_b_);                                             \
        vec_popcount(&eight_);                                                                     \
        (t).eights += eight_;                                                                      \
    } while (0)

INLINE unsigned tally_sum(Tally *t)
{
    vec_popcount(&t->ones);
    vec_popcount(&t->twos);
    vec_popcount(&t->fours);
    Vec sum = t->eights * 8 + t->fours * 4 + t->twos * 2 + t->ones;
    uint64_t total = 0;
    for (int i = 0; i < VEC_WORDS; i++) {
        total += sum[i];
    }
    return total;
}

INLINE unsigned hb_words_count_body(const uint64_t *words)
{
    const Vec *in = (const Vec *)words;
    Tally t = { 0 };

    for (int i = 0; i < PAGE_VECS; i += 8) {
        const Vec *v = in + i;
        TALLY_ADD(t, v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]);
    }
    return tally_sum(&t);
}

KERNEL(unsigned, hb_words_count, (const uint64_t *words), (words))

INLINE unsigned hb_words_or_body(const uint64_t *a, const uint64_t *b, uint64_t *dst,
                                 const uint64_t *ahead_a, const uint64_t *ahead_b)
{
    const Vec *in_a = (const Vec *)a, *in_b = (const Vec *)b;
    Vec *out = (Vec *)dst;
    Tally t = { 0 };

    for (int i = 0; i < PAGE_VECS; i += 8) {
        prefetch_lines(ahead_a, i * VEC_WORDS / HB_LINE, 8 * VEC_WORDS / HB_LINE);
        prefetch_lines(ahead_b, i * VEC_WORDS / HB_LINE, 8 * VEC_WORDS / HB_LINE);
#define OR(j) (out[i + j] = in_a[i + j] | in_b[i + j])
        TALLY_ADD(t, OR(0), OR(1), OR(2), OR(3), OR(4), OR(5), OR(6), OR(7));
#undef OR
    }
    return tally_sum(&t);
}

KERNEL(unsigned, hb_words_or,
       (const uint64_t *a, const uint64_t *b, uint64_t *dst, const uint64_t *ahead_a,
        const uint64_t *ahead_b),
       (a, b, dst, ahead_a, ahead_b))

/* ---- Comparing ---- */

INLINE bool vec_is_zero(const Vec *v)
{
    uint64_t any = 0;
    for (int i = 0; i < VEC_WORDS; i++) {
        any |= (*v)[i];
    }
    return any == 0;
}

INLINE bool hb_words_subset_body(const uint64_t *a, const uint64_t *b)
{
    const Vec *in_a = (const Vec *)a, *in_b = (const Vec *)b;

    for (int i = 0; i < PAGE_VECS; i++) {
        Vec left = in_a[i] & ~in_b[i];
        if (!vec_is_zero(&left)) {
            return false;
        }
    }
    return true;
}

KERNEL(bool, hb_words_subset, (const uint64_t *a, const uint64_t *b), (a, b))

INLINE uint64_t hb_words_summary_body(const uint64_t *words)
{
    const Vec *in = (const Vec *)words;
    uint64_t summary = 0;

    for (int i = 0; i < PAGE_VECS; i++) {
        summary |= (uint64_t)!vec_is_zero(&in[i]) << (i * VEC_WORDS / HB_LINE);
    }
    return summary;
}

KERNEL(uint64_t, hb_words_summary, (const uint64_t *words), (words))

/* ---- Between granularities ---- */

/* The lowest bit of each lane of 2^i bits, and the lowest 2^n bits of each; i is at most 5. */
#define LANES(i)        (~UINT64_C(0) / ((UINT64_C(1) << (1 << (i))) - 1))
#define LANE_MASK(i, n) (LANES(i) * ((UINT64_C(1) << (1 << (n))) - 1))

/*
 * Shrinking OR-s all bits of a lane of 2^k into its lowest bit. Then it joins lanes
 * by twos, moving the bits of the upper one down beside those of the lower one, until
 * one lane of 64 bits is left. The macros serve words and vectors; k is a
 * constant from 1 to 5 wherever speed counts, so that only its own steps remain.
 */
#define SHRINK_JOIN(w, k, i)                                                                       \
    if ((k) <= (i)) {                                                                              \
        (w) |= (w) >> ((1 << (i)) - (1 << ((i) - (k))));                                           \
        (w) &= LANE_MASK((i) + 1, (i) + 1 - (k));                                                  \
    }

#define SHRINK(w, k)                                                                               \
    do {                                                                                           \
        (w) |= (w) >> 1;                                                                           \
        (w) |= (k) > 1 ? (w) >> 2 : (w);                                                           \
        (w) |= (k) > 2 ? (w) >> 4 : (w);                                                           \
        (w) |= (k) > 3 ? (w) >> 8 : (w);                                                           \
        (w) |= (k) > 4 ? (w) >> 16 : (w);                                                          \
        (w) &= LANES(k);                                                                           \
        SHRINK_JOIN(w, k, 1)                                                                       \
        SHRINK_JOIN(w, k, 2)                                                                       \
        SHRINK_JOIN(w, k, 3)                                                                       \
        SHRINK_JOIN(w, k, 4)                                                                       \
        (w) |= (w) >> (32 - (1 << (5 - (k))));                                                     \
        (w) &= (UINT64_C(1) << (64 >> (k))) - 1;                                                   \
    } while (0)

/* Spreading is the same walk backwards; at the end each lowest bit fills its lane. */
#define SPREAD_PART(w, k, i)                                                                       \
    if ((k) <= (i)) {                                                                              \
        (w) |= (w) << ((1 << (i)) - (1 << ((i) - (k))));                                           \
        (w) &= LANE_MASK(i, (i) - (k));                                                            \
    }

#define SPREAD(w, k)                                                                               \
    do {                                                                                           \
        SPREAD_PART(w, k, 5)                                                                       \
        SPREAD_PART(w, k, 4)                                                                       \
        SPREAD_PART(w, k, 3)                                                                       \
        SPREAD_PART(w, k, 2)                                                                       \
        SPREAD_PART(w, k, 1)                                                                       \
        (w) = ((w) << (1 << (k))) - (w);                                                           \
    } while (0)

uint64_t hb_word_shrink(uint64_t w, int k)
{
    if (k == 6) {
        return w != 0;
    }
    if (k > 0) {
        SHRINK(w, k);
    }
    return w;
}

/* 2^k words of input make one of output; 32 words at a time suit every k up to 5. */
INLINE void shrink_any_words(const uint64_t *words, const int k, uint64_t *out,
                             const uint64_t *ahead)
{
    const Vec *in = (const Vec *)words;
    uint64_t part[GROUP_VECS * VEC_WORDS];

    for (int i = 0; i < PAGE_VECS; i += GROUP_VECS) {
        prefetch_lines(ahead, i * VEC_WORDS / HB_LINE, GROUP_WORDS / HB_LINE);
        for (int j = 0; j < GROUP_VECS; j++) {
            Vec v = in[i + j];
            SHRINK(v, k);
            memcpy(part + j * VEC_WORDS, &v, sizeof(v));
        }
        for (int o = 0; o < GROUP_WORDS >> k; o++) {
            uint64_t acc = 0;
            for (int j = 0; j < 1 << k; j++) {
                acc |= part[(o << k) + j] << (j * (64 >> k));
            }
            *out++ |= acc;
        }
    }
}

#if defined(__SSE2__)
/* 16 lanes of 2^k bits (k from 3 to 5): a bit is 1 where the lane is zero. */
INLINE unsigned zero_lanes(const __m128i *in, const int k)
{
    const __m128i zero = _mm_setzero_si128();

    if (k == 3) {
        return _mm_movemask_epi8(_mm_cmpeq_epi8(in[0], zero));
    }
    if (k == 4) {
        return _mm_movemask_epi8(
            _mm_packs_epi16(_mm_cmpeq_epi16(in[0], zero), _mm_cmpeq_epi16(in[1], zero)));
    }
    __m128i low = _mm_packs_epi32(_mm_cmpeq_epi32(in[0], zero), _mm_cmpeq_epi32(in[1], zero));
    __m128i high = _mm_packs_epi32(_mm_cmpeq_epi32(in[2], zero), _mm_cmpeq_epi32(in[3], zero));
    return _mm_movemask_epi8(_mm_packs_epi16(low, high));
}

INLINE void shrink_words(const uint64_t *words, const int k, uint64_t *out, const uint64_t *ahead)
{
    const __m128i *in = (const __m128i *)words;

    if (k < 3) {
        shrink_any_words(words, k, out, ahead);
        return;
    }
    for (int i = 0; i < HB_PAGE_WORDS >> k; i++) {
        uint64_t acc = 0;
        prefetch_lines(ahead, i << (k - 3), 1 << (k - 3));
        for (int j = 0; j < 64; j += 16, in += 1 << (k - 3)) {
            acc |= (uint64_t)zero_lanes(in, k) << j;
        }
        *out++ |= ~acc;
    }
}
#else
#define shrink_words shrink_any_words
#endif

/* For 2^k of a word or more: one bit for each group of words. */
INLINE void shrink_groups(const uint64_t *words, int k, uint64_t *out, unsigned out_bit)
{
    const int group = 1 << (k - 6);

    for (int i = 0; i < HB_PAGE_WORDS; i += group, out_bit++) {
        uint64_t any = 0;
        for (int j = 0; j < group && !any; j++) {
            any = words[i + j];
        }
        out[out_bit / 64] |= (uint64_t)(any != 0) << (out_bit % 64);
    }
}

INLINE void hb_words_shrink_body(const uint64_t *words, int k, uint64_t *out, unsigned out_bit,
                                 const uint64_t *ahead)
{
    /* One case a value, so that each has its masks and shifts as constants. */
    switch (k) {
    case 1:
        shrink_words(words, 1, out + out_bit / 64, ahead);
        break;
    case 2:
        shrink_words(words, 2, out + out_bit / 64, ahead);
        break;
    case 3:
        shrink_words(words, 3, out + out_bit / 64, ahead);
        break;
    case 4:
        shrink_words(words, 4, out + out_bit / 64, ahead);
        break;
    case 5:
        shrink_words(words, 5, out + out_bit / 64, ahead);
        break;
    default:
        shrink_groups(words, k, out, out_bit);
        break;
    }
}

KERNEL(void, hb_words_shrink,
       (const uint64_t *words, int k, uint64_t *out, unsigned out_bit, const uint64_t *ahead),
       (words, k, out, out_bit, ahead))

INLINE void spread_words(const uint64_t *words, const int k, uint64_t *out, const uint64_t *ahead)
{
    const uint64_t mask = (UINT64_C(1) << (64 >> k)) - 1;
    Vec *vecs = (Vec *)out;

    for (int i = 0; i < PAGE_VECS; i += GROUP_VECS) {
        uint64_t part[GROUP_VECS * VEC_WORDS];
        prefetch_lines(ahead, i * VEC_WORDS / HB_LINE, GROUP_WORDS / HB_LINE);
        for (int o = 0; o < GROUP_WORDS >> k; o++) {
            uint64_t w = *words++;
            for (int j = 0; j < 1 << k; j++) {
                part[(o << k) + j] = w >> (j * (64 >> k)) & mask;
            }
        }
        for (int j = 0; j < GROUP_VECS; j++) {
            Vec v;
            memcpy(&v, part + j * VEC_WORDS, sizeof(v));
            SPREAD(v, k);
            vecs[i + j] = v;
        }
    }
}

INLINE void spread_groups(const uint64_t *words, int k, uint64_t *out)
{
    const int group = 1 << (k - 6);

    for (int i = 0, bit = 0; i < HB_PAGE_WORDS; i += group, bit++) {
        uint64_t fill = -(words[bit / 64] >> (bit % 64) & 1);
        for (int j = 0; j < group; j++) {
            out[i + j] = fill;
        }
    }
}

INLINE void hb_words_spread_body(const uint64_t *words, int k, uint64_t *out, const uint64_t *ahead)
{
    switch (k) {
    case 1:
        spread_words(words, 1, out, ahead);
        break;
    case 2:
        spread_words(words, 2, out, ahead);
        break;
    case 3:
        spread_words(words, 3, out, ahead);
        break;
    case 4:
        spread_words(words, 4, out, ahead);
        break;
    case 5:
        spread_words(words, 5, out, ahead);
        break;
    default:
        spread_groups(words, k, out);
        break;
    }
}

KERNEL(void, hb_words_spread, (const uint64_t *words, int k, uint64_t *out, const uint64_t *ahead),
       (words, k, out, ahead))
