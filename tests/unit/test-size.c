/* SPDX-License-Identifier: MIT */
/* Sizes are parsed to the byte, or refused. */
#include "util/size.h"

#include <errno.h>

static void check_parse(const char *text, uint64_t expected)
{
    uint64_t size = 0;

    g_assert_cmpint(size_parse(text, &size), ==, 0);
    g_assert_cmpuint(size, ==, expected);
}

static void check_refused(const char *text, int why)
{
    uint64_t size = 42;

    g_assert_cmpint(size_parse(text, &size), ==, why);
    g_assert_cmpuint(size, ==, 42);
}

static void plain_numbers(void)
{
    check_parse("0", 0);
    check_parse("512", 512);
    check_parse(" 512", 512);
    check_parse("+512", 512);
    check_parse("512b", 512);
    check_parse("0x10000", 65536);
    check_parse("0X1b", 27);
    check_parse("0x10k", 16 * KiB);
    check_parse("18446744073709551615", UINT64_MAX);
    check_parse("0xffffffffffffffff", UINT64_MAX);
}

static void suffixes_of_any_case(void)
{
    check_parse("64k", 64 * KiB);
    check_parse("64K", 64 * KiB);
    check_parse("3m", 3 * MiB);
    check_parse("3M", 3 * MiB);
    check_parse("2G", 2 * GiB);
    check_parse("1t", 1 * TiB);
    check_parse("1P", 1024 * TiB);
    check_parse("15E", UINT64_C(15) << 60);
}

static void fractions_are_exact(void)
{
    check_parse("1.5G", 3 * GiB / 2);
    check_parse("0.1k", 102);
    check_parse("5.k", 5 * KiB);
    check_parse("0.5E", UINT64_C(1) << 59);
    check_parse("0.00000000000000000000000001E", 0);
    check_parse("15.999999999999999999E", UINT64_MAX - 1);
}

static void malformed_text_is_refused(void)
{
    static const char *const texts[] = { "",    "k",   "-1",   "-0",     "1kk",   "1k ",
                                         "1.5", ".5k", "1.5b", "1.5.2k", "1KiB",  "0x",
                                         "1e2", "x10", "++1",  "1,5k",   "0x1.8k" };

    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
        check_refused(texts[i], -EINVAL);
    }
}

static void too_large_is_refused(void)
{
    check_refused("16E", -ERANGE);
    check_refused("18446744073709551616", -ERANGE);
    check_refused("99999999999999999999999999999999", -ERANGE);
    check_refused("0x10000000000000000", -ERANGE);
    check_refused("18446744073709551615k", -ERANGE);
}

static void alignment_arithmetic(void)
{
    g_assert_true(is_power_of_2(1));
    g_assert_true(is_power_of_2(UINT64_C(1) << 63));
    g_assert_false(is_power_of_2(0));
    g_assert_false(is_power_of_2(6));
    g_assert_cmpint(align_down(4097, 4096), ==, 4096);
    g_assert_cmpint(align_up(4097, 4096), ==, 8192);
    g_assert_cmpint(align_up(8192, 4096), ==, 8192);
    g_assert_cmpint(align_up(INT64_MAX - 4095, 4096), ==, INT64_MAX - 4095);
    g_assert_true(is_aligned(8192, 4096));
    g_assert_false(is_aligned(8193, 4096));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/size/plain-numbers", plain_numbers);
    g_test_add_func("/size/suffixes-of-any-case", suffixes_of_any_case);
    g_test_add_func("/size/fractions-are-exact", fractions_are_exact);
    g_test_add_func("/size/malformed-text-is-refused", malformed_text_is_refused);
    g_test_add_func("/size/too-large-is-refused", too_large_is_refused);
    g_test_add_func("/size/alignment-arithmetic", alignment_arithmetic);
    return g_test_run();
}
