/* SPDX-License-Identifier: MIT */
#include "util/size.h"

#include "util/error.h"

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

bool size_parse(const char *text, uint64_t *ret_size, GError **error)
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
        goto malformed;
    }
    if (*p == '.' && !hex) {
        p++;
        fraction = true;
        parse_fraction(&p, &numerator, &denominator);
    }
    shift = parse_suffix(p);
    if (shift < 0 || (shift == 0 && fraction)) {
        goto malformed;
    }
    size =
        ((unsigned __int128)whole << shift) + ((unsigned __int128)numerator << shift) / denominator;
    if (overflow || size > UINT64_MAX) {
        merino_error(error, "Size '%s' is too large", text);
        return false;
    }
    *ret_size = (uint64_t)size;
    return true;

malformed:
    merino_error(error, "'%s' is not a size: it takes a number that may end in k, M, G, T, P or E",
                 text);
    return false;
}

char *size_format(uint64_t bytes)
{
    static const char *const units[] = { "bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
    unsigned unit = 0;
    double value;
    int decimals;

    while (unit + 1 < G_N_ELEMENTS(units) && bytes >> (10 * unit) >= 1024) {
        unit++;
    }
    if (unit == 0) {
        return g_strdup_printf("%u %s", (unsigned)bytes, bytes == 1 ? "byte" : units[0]);
    }
    value = (double)bytes / (double)(UINT64_C(1) << (10 * unit));
    decimals = value >= 100 ? 0 : value >= 10 ? 1 : 2;
    g_autofree char *number = g_strdup_printf("%.*f", decimals, value);

    /* "64" rather than "64.0" */
    for (char *end = number + strlen(number) - 1; strchr(number, '.') && strchr("0.", *end);) {
        *end-- = '\0';
    }
    return g_strdup_printf("%s %s", number, units[unit]);
}
