/* SPDX-License-Identifier: MIT */
/*
 * jansson tells by an error code which kind of problem it has; for problems of syntax only its
 * sentence tells more. A sentence that is not known here is passed on as it is.
 */
#include "json-words.h"

#include <stdbool.h>
#include <string.h>

/* The token at which jansson stopped, as quoted at the end of its sentence; "" when it does not
 * tell. Caller frees. */
static char *near_token(const char *sentence)
{
    const char *near = strstr(sentence, "near '");
    const char *end = strrchr(sentence, '\'');

    if (!near || end < near + strlen("near '")) {
        return g_strdup("");
    }
    near += strlen("near '");
    return g_strndup(near, end - near);
}

static bool is_keyword(const char *token)
{
    static const char *const keywords[] = { "true", "false", "null", NULL };

    return g_strv_contains(keywords, token);
}

/* There is no value, or no name of a member, where one must be. */
static char *unexpected_words(const char *sentence, bool wants_name)
{
    g_autofree char *token = near_token(sentence);

    if (g_ascii_isalpha(token[0]) && !is_keyword(token)) {
        return g_strdup_printf("invalid keyword '%s'", token);
    }
    if (wants_name && token[0] && !strchr("]},:", token[0])) {
        return g_strdup("key is not a string in object");
    }
    return g_strdup("expecting value");
}

static char *escape_words(const json_error_t *problem, const char *text)
{
    const char *end = text + problem->position;
    const char *at = g_strrstr_len(text, problem->position, "\\");

    if (at && at + 1 < end && at[1] == 'u') {
        return g_strdup_printf("%.*s is not a valid Unicode character", (int)(end - at), at);
    }
    return g_strdup("invalid escape sequence in string");
}

/* The sentence has the escape in capitals; it is shown as it was written. */
static char *unicode_words(const char *sentence, const char *text)
{
    const char *at = strchr(sentence, '\\');
    g_autofree char *escape = g_strndup(at ? at : "", strlen("\\uXXXX"));
    const char *written = strcasestr(text, escape);

    return g_strdup_printf("%.*s is not a valid Unicode character", (int)strlen(escape),
                           written ? written : escape);
}

static char *syntax_words(const json_error_t *problem, const char *text)
{
    static const struct {
        const char *begins;
        const char *words;
    } known[] = {
        { "':' expected", "missing : in object pair" },
        { "'}' expected", "expected separator in dict" },
        { "']' expected", "expected separator in list" },
    };
    const char *sentence = problem->text;

    for (size_t i = 0; i < G_N_ELEMENTS(known); i++) {
        if (g_str_has_prefix(sentence, known[i].begins)) {
            return g_strdup(known[i].words);
        }
    }
    if (g_str_has_prefix(sentence, "string or '}' expected")) {
        return unexpected_words(sentence, true);
    }
    if (g_str_has_prefix(sentence, "unexpected token") ||
        g_str_has_prefix(sentence, "invalid token")) {
        return unexpected_words(sentence, false);
    }
    if (g_str_has_prefix(sentence, "invalid escape")) {
        return escape_words(problem, text);
    }
    if (g_str_has_prefix(sentence, "invalid Unicode")) {
        return unicode_words(sentence, text);
    }
    return g_strdup(sentence);
}

char *json_problem_words(const json_error_t *problem, const char *text)
{
    switch (json_error_code(problem)) {
    case json_error_duplicate_key:
        return g_strdup("duplicate key");
    case json_error_premature_end_of_input:
        return g_strdup("premature EOI");
    case json_error_invalid_utf8:
        return g_strdup("invalid UTF-8 sequence in string");
    case json_error_null_character:
    case json_error_null_byte_in_key:
        return g_strdup("\\u0000 is not a valid Unicode character");
    case json_error_numeric_overflow:
        return g_strdup("number is too large");
    case json_error_invalid_syntax:
        return syntax_words(problem, text);
    default:
        return g_strdup(problem->text);
    }
}
