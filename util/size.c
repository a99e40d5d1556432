/* SPDX-License-Identifier: MIT */
#include "util/size.h"

#include <errno.h>
#include <string.h>

static const char suffixes[] = "bkmgtpe";

/* Digits of the fraction beyond these cannot change a whole byte count. */
#define MAX_FRACTION_DIGITS 18

/* Unsigned decimal or 0x-hexadecimal digits. False without any digit; on overflow *ret_value is
 * UINT64_MAX and *ret_overflow is set. */
static bool parse_digits(const char **text, uint64_t *ret_value, bool *ret_overflow, bool *ret_hex)
{
    const char *p = *text;
    uint64_t value = 0;
    bool hex = p[0] == '0' && (p[1] == 'x' || p[1] == 'X') && g_ascii_isxdigit(p[2]);
    unsigned base = hex ? 16 : 10;

    if (hex) {
        p += 2;
    } else if (!g_ascii_isdigit(*p)) {
        return false;
    }
    for (; hex ? g_ascii_isxdigit(*p) : g_ascii_isdigit(*p); p++) {
        if (__builtin_mul_overflow(value, base, &value) ||
            __builtin_add_overflow(value, g_ascii_xdigit_value(*p), &value)) {
            *ret_overflow = true;
        }
    }
    *text = p;
    *ret_value = value;
    *ret_hex = hex;
    return true;
}

/* The digits after a decimal point as numerator / denominator. */
static void parse_fraction(const char **text, uint64_t *ret_numerator, uint64_t *ret_denominator)
{
    const char *p = *text;

    *ret_numerator = 0;
    *ret_denominator = 1;
    for (int n = 0; g_ascii_isdigit(*p); p++, n++) {
        if (n < MAX_FRACTION_DIGITS) {
            *ret_numerator = *ret_numerator * 10 + (*p - '0');
            *ret_denominator *= 10;
        }
    }
    *text = p;
}

/* The power of two that a suffix stands for; 0 (bytes) when there is none; -1 for other text. */
static int parse_suffix(const char *text)
{
    const char *suffix;

    if (!*text) {
        return 0;
    }
    suffix = strchr(suffixes, g_ascii_tolower(*text));
    return suffix && !text[1] ? 10 * (int)(suffix - suffixes) : -1;
}

int size_parse(const char *text, uint64_t *ret_size)
{
    const char *p = text;
    uint64_t whole, numerator = 0, denominator = 1;
    bool overflow = false, hex = false, fraction = false;
    unsigned __int128 size;
    int shift;

    while (g_ascii_isspace(*p)) {
        p++;
    }
    if (*p == '+') {
        p++;
    }
    if (!parse_digits(&p, &whole, &overflow, &hex)) {
        return -EINVAL;
    }
    if (*p == '.' && !hex) {
        p++;
        fraction = true;
        parse_fraction(&p, &numerator, &denominator);
    }
    shift = parse_suffix(p);
    if (shift < 0 || (shift == 0 && fraction)) {
        return -EINVAL;
    }
    size =
        ((unsigned __int128)whole << shift) + ((unsigned __int128)numerator << shift) / denominator;
    if (overflow || size > UINT64_MAX) {
        return -ERANGE;
    }
    *ret_size = (uint64_t)size;
    return 0;
}
