/* SPDX-License-Identifier: MIT */
/*
 * Sizes as people write them: size_parse(), beside a twin that adds up digit by digit.
 */
#include "fuzz.h"
#include "text.h"
#include "util/size.h"

#include <errno.h>
#include <string.h>

/* Digits that fit 128 bits with any suffix. */
#define TWIN_DIGITS 20

/* What a decimal number with a suffix and without a fraction stands for. False for other texts. */
static bool twin_parse(const char *text, unsigned __int128 *ret_size)
{
    static const char suffixes[] = "BKMGTPE";
    size_t digits = strspn(text, G_CSET_DIGITS);
    const char *suffix = text + digits;
    unsigned __int128 size = 0;

    if (digits == 0 || digits > TWIN_DIGITS ||
        (text[0] == '0' && (*suffix == 'x' || *suffix == 'X'))) {
        return false;
    }
    for (size_t i = 0; i < digits; i++) {
        size = size * 10 + (unsigned)(text[i] - '0');
    }
    if (*suffix) {
        const char *found = strchr(suffixes, g_ascii_toupper(*suffix));

        if (!found || suffix[1]) {
            return false;
        }
        size <<= 10 * (found - suffixes);
    }
    *ret_size = size;
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autofree char *text = fuzz_text(data, size);
    unsigned __int128 expected;
    uint64_t bytes = 12345;
    int ret = size_parse(text, &bytes);
    bool ok = ret == 0;

    g_assert(ok || ret == -EINVAL || ret == -ERANGE);
    g_assert(ok || bytes == 12345);
    if (twin_parse(text, &expected)) {
        g_assert(ok == (expected <= UINT64_MAX) && (!ok || bytes == expected));
    }
    return 0;
}
