/* SPDX-License-Identifier: MIT */
/*
 * Parsing is jansson's. Before it, one pass over the text turns what QMP allows beyond plain JSON
 * into plain JSON: quotes, and integers too long to be one.
 */
#include "qapi/json.h"

#include "json-words.h"
#include "util/error.h"

#include <errno.h>
#include <string.h>

/* Copy the string that begins with the quote at `at`; returns what follows it, or `end`. */
static const char *copy_string(GString *out, const char *at, const char *end)
{
    char quote = *at++;

    g_string_append_c(out, '"');
    while (at < end && *at != quote) {
        if (*at == '\\' && at + 1 < end) {
            if (at[1] != '\'') {
                g_string_append_c(out, '\\');
            }
            g_string_append_c(out, at[1]);
            at += 2;
            continue;
        }
        if (*at == '"') {
            g_string_append_c(out, '\\');
        }
        g_string_append_c(out, *at++);
    }
    if (at < end) {
        g_string_append_c(out, '"');
        at++;
    }
    return at;
}

static bool fits_int64(const char *digits)
{
    errno = 0;
    (void)g_ascii_strtoll(digits, NULL, 10);
    return errno == 0;
}

/* Copy a number; an integer out of range gets a fraction, which makes it a real. */
static const char *copy_number(GString *out, const char *at, const char *end)
{
    size_t start = out->len;
    bool integer = true;

    while (at < end && (g_ascii_isdigit(*at) || strchr("+-.eE", *at)) && *at) {
        integer = integer && !strchr(".eE", *at);
        g_string_append_c(out, *at++);
    }
    if (integer && out->len - start >= strlen("9223372036854775807") &&
        !fits_int64(out->str + start)) {
        g_string_append(out, ".0");
    }
    return at;
}

static GString *plain_json(const char *text, size_t len)
{
    GString *out = g_string_sized_new(len + 1);
    const char *end = text + len;

    for (const char *at = text; at < end;) {
        if (*at == '"' || *at == '\'') {
            at = copy_string(out, at, end);
        } else if (g_ascii_isdigit(*at) || *at == '-') {
            at = copy_number(out, at, end);
        } else {
            g_string_append_c(out, *at++);
        }
    }
    return out;
}

json_t *qapi_json_parse(const char *text, size_t len, GError **error)
{
    GString *plain = plain_json(text, len);
    json_error_t problem;
    json_t *value;

    value = json_loadb(plain->str, plain->len, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &problem);
    if (!value && json_error_code(&problem) == json_error_end_of_input_expected) {
        merino_error(error, "Expecting at most one JSON value");
    } else if (!value) {
        g_autofree char *words = json_problem_words(&problem, plain->str);

        merino_error(error, "JSON parse error, %s", words);
    }
    g_string_free(plain, true);
    return value;
}
