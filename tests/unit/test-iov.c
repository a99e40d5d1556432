/* SPDX-License-Identifier: MIT */
/* IoVectors against a naive twin: the same bytes in one plain buffer. */
#include "util/iov.h"

#include <stdlib.h>
#include <string.h>

static GRand *rnd;

/* A vector over scattered pieces of `memory`, and a plain buffer of the same content. */
typedef struct Twin {
    IoVector vec;
    char *memory;
    char *plain;
} Twin;

static void twin_init(Twin *twin, int pieces)
{
    size_t used = 0;

    iov_init(&twin->vec);
    twin->memory = g_malloc0(pieces * 128 + 1);
    twin->plain = g_malloc0(pieces * 128 + 1);
    for (int i = 0; i < pieces; i++) {
        size_t gap = g_rand_int_range(rnd, 0, 4), size = g_rand_int_range(rnd, 0, 100);

        iov_add(&twin->vec, twin->memory + used + gap, size);
        used += gap + size;
    }
}

static void twin_done(Twin *twin)
{
    iov_done(&twin->vec);
    g_free(twin->memory);
    g_free(twin->plain);
}

static void twin_check(const Twin *twin)
{
    g_autofree char *bytes = g_malloc(twin->vec.size + 1);
    size_t sum = 0;

    iov_to_buf(&twin->vec, 0, bytes, twin->vec.size);
    g_assert_cmpmem(bytes, twin->vec.size, twin->plain, twin->vec.size);
    for (int i = 0; i < twin->vec.n; i++) {
        sum += twin->vec.iov[i].iov_len;
    }
    g_assert_cmpuint(sum, ==, twin->vec.size);
}

static void random_range(const Twin *twin, size_t *offset, size_t *size)
{
    *offset = g_rand_int_range(rnd, 0, twin->vec.size + 1);
    *size = g_rand_int_range(rnd, 0, twin->vec.size - *offset + 1);
}

static void random_step(Twin *twin)
{
    size_t offset, size;
    char buf[4096];

    random_range(twin, &offset, &size);
    switch (g_rand_int_range(rnd, 0, 4)) {
    case 0:
        size = MIN(size, sizeof(buf));
        for (size_t i = 0; i < size; i++) {
            buf[i] = g_rand_int(rnd);
        }
        iov_from_buf(&twin->vec, offset, buf, size);
        memcpy(twin->plain + offset, buf, size);
        break;
    case 1: {
        int byte = g_rand_boolean(rnd) ? 0 : 0x5a;

        iov_memset(&twin->vec, offset, byte, size);
        memset(twin->plain + offset, byte, size);
        break;
    }
    case 2: {
        g_auto(IoVector) slice = { 0 };
        g_autofree char *bytes = g_malloc(size + 1);

        iov_init(&slice);
        iov_add_slice(&slice, &twin->vec, offset, size);
        g_assert_cmpuint(slice.size, ==, size);
        iov_to_buf(&slice, 0, bytes, size);
        g_assert_cmpmem(bytes, size, twin->plain + offset, size);
        break;
    }
    default: {
        bool zero = true;

        for (size_t i = 0; i < size; i++) {
            zero = zero && twin->plain[offset + i] == 0;
        }
        g_assert_true(iov_is_zero(&twin->vec, offset, size) == zero);
        break;
    }
    }
}

static void random_against_plain_buffer(void)
{
    for (int round = 0; round < 200; round++) {
        Twin twin;

        twin_init(&twin, g_rand_int_range(rnd, 0, 20));
        for (int step = 0; step < 100; step++) {
            random_step(&twin);
            twin_check(&twin);
        }
        twin_done(&twin);
    }
}

static void small_vectors_need_no_heap(void)
{
    char bytes[64];
    IoVector vec;

    iov_init_buf(&vec, bytes, 10);
    for (int i = 1; i < IOV_INLINE; i++) {
        iov_add(&vec, bytes + 10 * i, 10);
    }
    g_assert_true(vec.iov == vec.inline_iov);
    iov_add(&vec, bytes, 1);
    g_assert_false(vec.iov == vec.inline_iov);
    g_assert_cmpint(vec.n, ==, IOV_INLINE + 1);
    g_assert_true(vec.iov[0].iov_base == bytes);
    iov_done(&vec);
    g_assert_cmpuint(vec.size, ==, 0);
    iov_done(&vec);
}

static void empty_pieces_are_dropped(void)
{
    g_auto(IoVector) vec = { 0 };

    iov_init_buf(&vec, NULL, 0);
    g_assert_cmpint(vec.n, ==, 0);
    g_assert_true(iov_is_zero(&vec, 0, 0));
    iov_to_buf(&vec, 0, NULL, 0);
}

static void one_set_byte_is_seen_anywhere(void)
{
    char bytes[300] = { 0 };

    for (size_t size = 0; size < sizeof(bytes); size++) {
        g_assert_true(buffer_is_zero(bytes, size));
        for (size_t i = 0; i < size; i++) {
            bytes[i] = 1;
            g_assert_false(buffer_is_zero(bytes, size));
            bytes[i] = 0;
        }
        bytes[size] = 1;
        g_assert_true(buffer_is_zero(bytes, size));
        bytes[size] = 0;
    }
}

static void alignment_of_each_piece(void)
{
    _Alignas(512) static char bytes[2048];
    g_auto(IoVector) vec = { 0 };

    iov_init_buf(&vec, bytes, 1024);
    g_assert_true(iov_is_aligned(&vec, 512));
    g_assert_false(iov_is_aligned(&vec, 2048));
    iov_add(&vec, bytes + 1024, 100);
    g_assert_false(iov_is_aligned(&vec, 512));
    g_assert_true(iov_is_aligned(&vec, 4));
}

int main(int argc, char **argv)
{
    const char *given = getenv("MERINO_TEST_SEED");
    guint32 seed = given ? strtoul(given, NULL, 0) : g_random_int();
    int ret;

    g_test_init(&argc, &argv, NULL);
    g_test_message("MERINO_TEST_SEED=%u", seed);
    rnd = g_rand_new_with_seed(seed);
    g_test_add_func("/iov/random-against-plain-buffer", random_against_plain_buffer);
    g_test_add_func("/iov/small-vectors-need-no-heap", small_vectors_need_no_heap);
    g_test_add_func("/iov/empty-pieces-are-dropped", empty_pieces_are_dropped);
    g_test_add_func("/iov/one-set-byte-is-seen-anywhere", one_set_byte_is_seen_anywhere);
    g_test_add_func("/iov/alignment-of-each-piece", alignment_of_each_piece);
    ret = g_test_run();
    g_rand_free(rnd);
    return ret;
}
