/* SPDX-License-Identifier: MIT */
/*
 * JSON as text. The lines that are expected of printing were printed by QEMU 7.2.
 */
#include "qapi/json.h"
#include "util/error.h"

#include <string.h>

static json_t *parse(const char *text)
{
    g_autoptr(GError) error = NULL;
    json_t *value = qapi_json_parse(text, strlen(text), &error);

    g_assert_no_error(error);
    return value;
}

static void check_printed(const char *text, const char *expected)
{
    json_auto_t *value = parse(text);
    g_autofree char *printed = qapi_json_text(value, false);

    g_assert_cmpstr(printed, ==, expected);
}

static void check_refused(const char *text, const char *expected)
{
    g_autoptr(GError) error = NULL;

    g_assert_null(qapi_json_parse(text, strlen(text), &error));
    g_assert_error(error, MERINO_ERROR, MERINO_ERROR_GENERIC);
    g_assert_cmpstr(error->message, ==, expected);
}

static void test_member_order(void)
{
    check_printed("{'b':1,'a':2,'c':{'z':1,'y':2,'id':3,'error':1,'desc':2}}",
                  "{\"a\": 2, \"b\": 1, \"c\": {\"y\": 2, \"z\": 1, \"desc\": 2, \"id\": 3, "
                  "\"error\": 1}}");
    check_printed("{'event':'E','data':{},'timestamp':{'microseconds':1,'seconds':2}}",
                  "{\"timestamp\": {\"seconds\": 2, \"microseconds\": 1}, \"event\": \"E\", "
                  "\"data\": {}}");
    check_printed("{'id':'j','status':'created'}", "{\"status\": \"created\", \"id\": \"j\"}");
    check_printed("{'type':'t','speed':0,'offset':1,'len':2,'device':'d'}",
                  "{\"device\": \"d\", \"len\": 2, \"offset\": 1, \"speed\": 0, \"type\": \"t\"}");
    check_printed("{'reason':'r','guest':false}", "{\"guest\": false, \"reason\": \"r\"}");
    check_printed("{'desc':'d','class':'c'}", "{\"class\": \"c\", \"desc\": \"d\"}");
    check_printed("{'error':{},'id':1}", "{\"id\": 1, \"error\": {}}");
}

/* Of two names in one bucket the one that was put in last is printed first. The third letter of a
 * short name only reaches bits of the hash that do not choose the bucket. */
static void test_order_within_a_bucket(void)
{
    check_printed("[{'aaa':1,'aab':2},{'aab':2,'aaa':1}]",
                  "[{\"aab\": 2, \"aaa\": 1}, {\"aaa\": 1, \"aab\": 2}]");
}

static void test_strings(void)
{
    check_printed("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u007f\\u20ac\\ud83d\\ude00/\"",
                  "\"\\\"\\\\/\\b\\f\\n\\r\\t\\u007F\\u20AC\\uD83D\\uDE00/\"");
    check_printed("\"\\u0001\\u001f\xc3\xa9\"", "\"\\u0001\\u001F\\u00E9\"");
}

static void test_quotes(void)
{
    check_printed("{'id': 'a\"b\\'c'}", "{\"id\": \"a\\\"b'c\"}");
    check_printed("\"it's, it\\'s\"", "\"it's, it's\"");
    check_printed("''", "\"\"");
}

static void test_numbers(void)
{
    check_printed("[1.0,1e3,1e100,0.1,-0.0,123456789012345678,1.5e-7]",
                  "[1, 1000, 1e+100, 0.10000000000000001, -0, 123456789012345678, "
                  "1.4999999999999999e-07]");
    check_printed("[9223372036854775807,-9223372036854775808]",
                  "[9223372036854775807, -9223372036854775808]");
}

/* Integers that jansson cannot hold become reals, and nothing in strings is touched. */
static void test_long_integers(void)
{
    json_auto_t *value = parse("[9223372036854775808, -9223372036854775809, 1e5, "
                               "\"99999999999999999999\"]");

    g_assert_true(json_is_real(json_array_get(value, 0)));
    g_assert_true(json_is_real(json_array_get(value, 1)));
    g_assert_cmpfloat(json_real_value(json_array_get(value, 0)), ==, 9223372036854775808.0);
    g_assert_cmpstr(json_string_value(json_array_get(value, 3)), ==, "99999999999999999999");
}

static void test_pretty(void)
{
    json_auto_t *value = parse("{'a':[1,{},[]],'b':{}}");
    g_autofree char *text = qapi_json_text(value, true);

    g_assert_cmpstr(text, ==,
                    "{\n    \"a\": [\n        1,\n        {\n        },\n        [\n        ]\n"
                    "    ],\n"
                    "    \"b\": {\n    }\n}");
}

static void test_refused(void)
{
    check_refused("{'a':1,}", "JSON parse error, expecting value");
    check_refused("{\"a\" 1}", "JSON parse error, missing : in object pair");
    check_refused("{\"a\":tru}", "JSON parse error, invalid keyword 'tru'");
    check_refused("{\"a\":1", "JSON parse error, premature EOI");
    check_refused("{\"a\":\"\\q\"}", "JSON parse error, invalid escape sequence in string");
    check_refused("{\"a\":[1 2]}", "JSON parse error, expected separator in list");
    check_refused("{\"a\":1 \"b\":2}", "JSON parse error, expected separator in dict");
    check_refused("{1:2}", "JSON parse error, key is not a string in object");
    check_refused("{'a':1,'a':2}", "JSON parse error, duplicate key");
    check_refused("{} {}", "Expecting at most one JSON value");
}

/* Whatever the bytes, there is a value or an error. */
static void test_garbage(void)
{
    static const char alphabet[] = "{}[]:,'\"\\/u0019-.eE tfn\n\xc3\xa9\xff\x01";
    const char *given = g_getenv("MERINO_TEST_SEED");
    guint32 seed = given ? (guint32)g_ascii_strtoull(given, NULL, 0) : g_random_int();
    g_autoptr(GRand) random = g_rand_new_with_seed(seed);

    g_test_message("MERINO_TEST_SEED=%u", seed);
    for (int round = 0; round < 20000; round++) {
        size_t len = g_rand_int_range(random, 0, 24);
        g_autofree char *text = g_malloc(len);
        g_autoptr(GError) error = NULL;
        json_t *value;

        for (size_t i = 0; i < len; i++) {
            text[i] = alphabet[g_rand_int_range(random, 0, sizeof(alphabet) - 1)];
        }
        value = qapi_json_parse(text, len, &error);
        g_assert_true((value == NULL) == (error != NULL));
        json_decref(value);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/qapi/json/member-order", test_member_order);
    g_test_add_func("/qapi/json/order-within-a-bucket", test_order_within_a_bucket);
    g_test_add_func("/qapi/json/strings", test_strings);
    g_test_add_func("/qapi/json/quotes", test_quotes);
    g_test_add_func("/qapi/json/numbers", test_numbers);
    g_test_add_func("/qapi/json/long-integers", test_long_integers);
    g_test_add_func("/qapi/json/pretty", test_pretty);
    g_test_add_func("/qapi/json/refused", test_refused);
    g_test_add_func("/qapi/json/garbage", test_garbage);
    return g_test_run();
}
