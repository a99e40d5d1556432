/* SPDX-License-Identifier: MIT */
/*
 * QMP framing: where messages end, what becomes an error, and that neither depends on the pieces in
 * which the bytes arrive. Expected words are those of qemu-storage-daemon 7.2.
 */
#include "qapi/json.h"
#include "qmp-framing.h"

#include <string.h>

/* What comes out of `input`: each message as text and each error's words, one a line. */
static char *frame(const char *input, size_t len, size_t piece)
{
    g_autoptr(QmpFraming) framing = qmp_framing_new();
    GString *out = g_string_new(NULL);

    for (size_t at = 0; at < len; at += piece) {
        QmpFramingResult result;

        qmp_framing_push(framing, input + at, MIN(piece, len - at));
        do {
            json_t *message = NULL;
            g_autoptr(GError) error = NULL;

            result = qmp_framing_next(framing, &message, &error);
            if (result == QMP_FRAMING_MESSAGE) {
                g_autofree char *text = qapi_json_text(message, false);

                g_string_append_printf(out, "%s\n", text);
                json_decref(message);
            } else if (result == QMP_FRAMING_ERROR) {
                g_string_append_printf(out, "! %s\n", error->message);
            }
        } while (result != QMP_FRAMING_MORE);
        g_assert_false(qmp_framing_has_input(framing));
    }
    return g_string_free(out, false);
}

static void check_bytes(const char *input, size_t len, const char *expected)
{
    static const size_t pieces[] = { 1, 2, 3, 7, 4096 };

    for (size_t i = 0; i < G_N_ELEMENTS(pieces); i++) {
        g_autofree char *got = frame(input, len, pieces[i]);

        g_assert_cmpstr(got, ==, expected);
    }
}

static void check(const char *input, const char *expected)
{
    check_bytes(input, strlen(input), expected);
}

static void test_messages(void)
{
    check("", "");
    check("{\"execute\":\"a\"}", "{\"execute\": \"a\"}\n");
    check("{}{}\r\n[1]{} ", "{}\n{}\n[1]\n{}\n");
    check("{'execute':'a\"b','x':\"c'd\"}", "{\"x\": \"c'd\", \"execute\": \"a\\\"b\"}\n");
    check("{\"a\\\"}\":[{},\"]\"]}", "{\"a\\\"}\": [{}, \"]\"]}\n");
    check(" \t\n{ \"a\" :\n\t[ 1 ,  2 ] } \n", "{\"a\": [1, 2]}\n");
    check("{\"a\":[", "");
}

static void test_scalars(void)
{
    check("\"x\"", "\"x\"\n");
    check("1 2 -3 0 1.5 1e3\n", "1\n2\n-3\n0\n1.5\n1000\n");
    check("true null\"a\"false ", "true\nnull\n\"a\"\nfalse\n");
    check("true1\n", "true\n1\n");
    check("12", "");
}

static void test_stray(void)
{
    check(";", "! JSON parse error, stray ';'\n");
    check(";;;\n;", "! JSON parse error, stray ';'\n! JSON parse error, stray ';'\n");
    check(";\t;\r;", "! JSON parse error, stray ';'\n! JSON parse error, stray ';'\n");
    check("; abc 12 \"x\"\n{}", "! JSON parse error, stray ';'\n{}\n");
    check("{\"a\":\"b\x01"
          "c",
          "! JSON parse error, stray '\"b\x01'\n");
    check("{\"a\":\"b\nc\"\n{}", "! JSON parse error, stray '\"b\n'\n{}\n");
    check("01\n", "! JSON parse error, stray '01'\n");
    check("-a\n--\n", "! JSON parse error, stray '-a'\n! JSON parse error, stray '--'\n");
    check("1.}\n1e}", "! JSON parse error, stray '1.}'\n! JSON parse error, stray '1e}'\n");
    check("1e+\n", "! JSON parse error, stray '1e+\n'\n");
    check("%", "! JSON parse error, stray '%'\n");
    check_bytes("\0{}", 3, "! JSON parse error, stray ''\n{}\n");
}

static void test_resync(void)
{
    check("\xff", "! JSON parse error, stray '\xef\xbf\xbd'\n");
    check("{\"a\":[{\"b\xff{}", "! JSON parse error, stray '\"b\xef\xbf\xbd'\n{}\n");
    check("{\"a\":[{\xfe{}", "! JSON parse error, stray '\xef\xbf\xbd'\n{}\n");
    check("\"a\xfe\n{}", "! JSON parse error, stray '\"a\xef\xbf\xbd'\n{}\n");
    check("\xff\xff", "! JSON parse error, stray '\xef\xbf\xbd'\n"
                      "! JSON parse error, stray '\xef\xbf\xbd'\n");
}

static void test_brackets(void)
{
    check("}", "! JSON parse error, expecting value\n");
    check("{]}", "! JSON parse error, expecting value\n! JSON parse error, expecting value\n");
    check("[{]}", "! JSON parse error, expecting value\n");
    check("{[}]", "! JSON parse error, key is not a string in object\n");
    check(",:", "! JSON parse error, expecting value\n! JSON parse error, expecting value\n");
}

static void test_grammar(void)
{
    check("{\"execute\" \"x\"}", "! JSON parse error, missing : in object pair\n");
    check("{\"a\"}", "! JSON parse error, missing : in object pair\n");
    check("{\"a\":1,\"b\"}", "! JSON parse error, missing : in object pair\n");
    check("{\"a\":}", "! JSON parse error, expecting value\n");
    check("{\"a\":1,}", "! JSON parse error, expecting value\n");
    check("{\"a\":1,,\"b\":2}", "! JSON parse error, expecting value\n");
    check("{,}", "! JSON parse error, expecting value\n");
    check("[1,]", "! JSON parse error, expecting value\n");
    check("[1,2,,3]", "! JSON parse error, expecting value\n");
    check("[1 2]", "! JSON parse error, expected separator in list\n");
    check("[1}", "! JSON parse error, expected separator in list\n");
    check("{\"a\":1 \"b\":2}", "! JSON parse error, expected separator in dict\n");
    check("{\"a\":1]", "! JSON parse error, expected separator in dict\n");
    check("{1:2}", "! JSON parse error, key is not a string in object\n");
    check("{null:1}", "! JSON parse error, key is not a string in object\n");
    check("{{}}", "! JSON parse error, key is not a string in object\n");
    check("[true,tru]", "! JSON parse error, invalid keyword 'tru'\n");
    check("nul\n", "! JSON parse error, invalid keyword 'nul'\n");
    check("{\"a\":1,\"a\":2}", "! JSON parse error, duplicate key\n");
}

static void test_strings(void)
{
    check("\"\\u20ac \\ud83d\\ude00 \\/\\b\"", "\"\\u20AC \\uD83D\\uDE00 /\\b\"\n");
    check("\"\xc3\xa9\x7f\"", "\"\\u00E9\\u007F\"\n");
    check("\"a\\'b\"'a\\'b'", "\"a'b\"\n\"a'b\"\n");
    check("\"\\q\"", "! JSON parse error, invalid escape sequence in string\n");
    check("\"\xed\xa0\x80\"", "! JSON parse error, invalid UTF-8 sequence in string\n");
    check("[\"\xc3\"]", "! JSON parse error, invalid UTF-8 sequence in string\n");
    check("\"\\u12\"", "! JSON parse error, \\u12\" is not a valid Unicode character\n");
    check("\"\\ud800b\"", "! JSON parse error, \\ud800 is not a valid Unicode character\n");
    check("\"\\ude00\"", "! JSON parse error, \\ude00 is not a valid Unicode character\n");
}

/* `n` times `part`. */
static void repeat(GString *out, const char *part, unsigned n)
{
    while (n--) {
        g_string_append(out, part);
    }
}

static unsigned count_lines(const char *text, const char *line)
{
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    unsigned count = 0;

    for (char **at = lines; *at; at++) {
        count += g_str_equal(*at, line);
    }
    return count;
}

/* A message beyond a limit makes one error, and the one after it is read. */
static void check_limit(GString *input, const char *error)
{
    g_autofree char *got = NULL;

    g_string_append(input, "{\"after\": 1}");
    got = frame(input->str, input->len, 65536);
    g_assert_cmpuint(count_lines(got, error), ==, 1);
    g_assert_cmpuint(count_lines(got, "{\"after\": 1}"), ==, 1);
    g_assert_cmpuint(strlen(got), ==, strlen(error) + strlen("{\"after\": 1}") + 2);
    g_string_free(input, true);
}

static void test_nesting(void)
{
    GString *deep = g_string_new(NULL);
    g_autofree char *got = NULL;

    repeat(deep, "[", QMP_MAX_NESTING);
    repeat(deep, "]", QMP_MAX_NESTING);
    got = frame(deep->str, deep->len, 100);
    g_assert_cmpuint(strlen(got), ==, deep->len + 1);
    g_assert_cmpint(got[0], ==, '[');

    g_string_truncate(deep, 0);
    repeat(deep, "[", QMP_MAX_NESTING + 5);
    g_string_append(deep, "{\"a\": \"]]]\", \"b\": '}'}");
    repeat(deep, "]", QMP_MAX_NESTING + 5);
    check_limit(deep, "! JSON nesting depth limit exceeded");
}

static void test_tokens(void)
{
    GString *many = g_string_new("[1");

    repeat(many, ",1", QMP_MAX_MESSAGE_TOKENS / 2 + 10);
    g_string_append_c(many, ']');
    check_limit(many, "! JSON token count limit exceeded");
}

static void test_size(void)
{
    GString *large = g_string_new("{\"a\": \"");

    repeat(large, "{\\\"{{{{{{{", QMP_MAX_MESSAGE_BYTES / 10 + 10);
    g_string_append(large, "\"}");
    check_limit(large, "! JSON token size limit exceeded");
}

/* Bytes at random: every one is looked at, and a resynchronisation always helps. */
static void test_random(void)
{
    static const char alphabet[] = "{}[]:,\"'\\ \n\t-0123.eE+truefalsn;\x01\x80\xc3\xff";
    const char *text = g_getenv("MERINO_TEST_SEED");
    guint32 seed = text ? (guint32)g_ascii_strtoull(text, NULL, 0) : g_random_int();
    g_autoptr(GRand) rand = g_rand_new_with_seed(seed);

    g_test_message("MERINO_TEST_SEED=%u", seed);
    for (int round = 0; round < 20000; round++) {
        char input[64];
        size_t len = g_rand_int_range(rand, 1, sizeof(input) - 16);
        g_autofree char *whole = NULL;
        g_autofree char *pieces = NULL;

        for (size_t i = 0; i < len; i++) {
            input[i] = alphabet[g_rand_int_range(rand, 0, sizeof(alphabet) - 1)];
        }
        memcpy(input + len, "\n\xff{\"a\":1}", 9);
        whole = frame(input, len + 9, sizeof(input));
        pieces = frame(input, len + 9, 1);
        g_assert_cmpstr(whole, ==, pieces);
        g_assert_true(g_str_has_suffix(whole, "{\"a\": 1}\n"));
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/qmp/framing/messages-in-any-pieces", test_messages);
    g_test_add_func("/qmp/framing/scalars-are-messages", test_scalars);
    g_test_add_func("/qmp/framing/stray-bytes", test_stray);
    g_test_add_func("/qmp/framing/resynchronisation", test_resync);
    g_test_add_func("/qmp/framing/unmatched-brackets", test_brackets);
    g_test_add_func("/qmp/framing/words-for-wrong-grammar", test_grammar);
    g_test_add_func("/qmp/framing/strings", test_strings);
    g_test_add_func("/qmp/framing/limit-of-nesting", test_nesting);
    g_test_add_func("/qmp/framing/limit-of-tokens", test_tokens);
    g_test_add_func("/qmp/framing/limit-of-size", test_size);
    g_test_add_func("/qmp/framing/random-bytes", test_random);
    return g_test_run();
}
