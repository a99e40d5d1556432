/* SPDX-License-Identifier: MIT */
/*
 * HBitmap: loops over the 512 words of a page.
 *
 * They are written once, with the compiler's vectors, and compiled three times on
 * x86-64: for any machine, with AVX2, and with the three-operand logic of
 * AVX-512. (Vectors of 32 bytes serve all three best.) The choice is made at
 * each call by a plain test of what the machine has, so that sanitizers and static
 * linking need nothing special.
 *
 * Callers own the words: nobody else writes them meanwhile.
 */
#include "hbitmap-internal.h"

#include <string.h>

typedef uint64_t Vec __attribute__((vector_size(32), may_alias));

enum {
    VEC_WORDS = sizeof(Vec) / sizeof(uint64_t),
    PAGE_VECS = HB_PAGE_WORDS / VEC_WORDS,
    GROUP_WORDS = 32,
    GROUP_VECS = GROUP_WORDS / VEC_WORDS,
};

#define INLINE static inline __attribute__((always_inline))

#if defined(__x86_64__)
#define FOR_AVX2   __attribute__((target("avx2")))
#define FOR_AVX512 __attribute__((target("avx512f,avx512vl")))
/* Define `name` by `body`, a call of an always-inline function, for each kind of machine. */
#define KERNEL(type, name, params, args)                                                           \
    static FOR_AVX2 type name##_avx2 params                                                        \
    {                                                                                              \
        return name##_body args;                                                                   \
    }                                                                                              \
    static FOR_AVX512 type name##_avx512 params                                                    \
    {                                                                                              \
        return name##_body args;                                                                   \
    }                                                                                              \
    type name params                                                                               \
    {                                                                                              \
        if (__builtin_cpu_supports("avx512vl")) {                                                  \
            return name##_avx512 args;                                                             \
        }                                                                                          \
        if (__builtin_cpu_supports("avx2")) {                                                      \
            return name##_avx2 args;                                                               \
        }                                                                                          \
        return name##_body args;                                                                   \
    }
#else
#define KERNEL(type, name, params, args)                                                           \
    type name params                                                                               \
    {                                                                                              \
        return name##_body args;                                                                   \
    }
#endif

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

/* A full adder: *sum takes the sum of three bits, *carry the carry. */
INLINE void vec_add(Vec *carry, Vec *sum, const Vec *a, const Vec *b)
{
    Vec u = *a ^ *b;
    Vec c = (*a & *b) | (u & *sum);
    *sum ^= u;
    *carry = c;
}

INLINE void tally_add(Tally *t, const Vec v[8])
{
    Vec two_a, two_b, four_a, four_b, eight;

    vec_add(&two_a, &t->ones, &v[0], &v[1]);
    vec_add(&two_b, &t->ones, &v[2], &v[3]);
    vec_add(&four_a, &t->twos, &two_a, &two_b);
    vec_add(&two_a, &t->ones, &v[4], &v[5]);
    vec_add(&two_b, &t->ones, &v[6], &v[7]);
    vec_add(&four_b, &t->twos, &two_a, &two_b);
    vec_add(&eight, &t->fours, &four_a, &four_b);
    vec_popcount(&eight);
    t->eights += eight;
}

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
        tally_add(&t, in + i);
    }
    return tally_sum(&t);
}

KERNEL(unsigned, hb_words_count, (const uint64_t *words), (words))

INLINE unsigned hb_words_or_body(const uint64_t *a, const uint64_t *b, uint64_t *dst)
{
    const Vec *in_a = (const Vec *)a, *in_b = (const Vec *)b;
    Vec *out = (Vec *)dst;
    Tally t = { 0 };

    for (int i = 0; i < PAGE_VECS; i += 8) {
        Vec v[8];
        for (int j = 0; j < 8; j++) {
            v[j] = in_a[i + j] | in_b[i + j];
            out[i + j] = v[j];
        }
        tally_add(&t, v);
    }
    return tally_sum(&t);
}

KERNEL(unsigned, hb_words_or, (const uint64_t *a, const uint64_t *b, uint64_t *dst), (a, b, dst))

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
INLINE void shrink_words(const uint64_t *words, const int k, uint64_t *out)
{
    const Vec *in = (const Vec *)words;
    uint64_t part[GROUP_VECS * VEC_WORDS];

    for (int i = 0; i < PAGE_VECS; i += GROUP_VECS) {
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

INLINE void hb_words_shrink_body(const uint64_t *words, int k, uint64_t *out, unsigned out_bit)
{
    /* One case a value, so that each has its masks and shifts as constants. */
    switch (k) {
    case 1:
        shrink_words(words, 1, out + out_bit / 64);
        break;
    case 2:
        shrink_words(words, 2, out + out_bit / 64);
        break;
    case 3:
        shrink_words(words, 3, out + out_bit / 64);
        break;
    case 4:
        shrink_words(words, 4, out + out_bit / 64);
        break;
    case 5:
        shrink_words(words, 5, out + out_bit / 64);
        break;
    default:
        shrink_groups(words, k, out, out_bit);
        break;
    }
}

KERNEL(void, hb_words_shrink, (const uint64_t *words, int k, uint64_t *out, unsigned out_bit),
       (words, k, out, out_bit))

INLINE void spread_words(const uint64_t *words, const int k, uint64_t *out)
{
    const uint64_t mask = (UINT64_C(1) << (64 >> k)) - 1;
    Vec *vecs = (Vec *)out;

    for (int i = 0; i < PAGE_VECS; i += GROUP_VECS) {
        uint64_t part[GROUP_VECS * VEC_WORDS];
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

INLINE void hb_words_spread_body(const uint64_t *words, int k, uint64_t *out)
{
    switch (k) {
    case 1:
        spread_words(words, 1, out);
        break;
    case 2:
        spread_words(words, 2, out);
        break;
    case 3:
        spread_words(words, 3, out);
        break;
    case 4:
        spread_words(words, 4, out);
        break;
    case 5:
        spread_words(words, 5, out);
        break;
    default:
        spread_groups(words, k, out);
        break;
    }
}

KERNEL(void, hb_words_spread, (const uint64_t *words, int k, uint64_t *out), (words, k, out))
