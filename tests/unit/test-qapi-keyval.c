/* SPDX-License-Identifier: MIT */
/* key=value options: what good ones turn into. tests/qapi/refusals.json has the bad ones. */
#include "qapi/json.h"
#include "qapi/keyval.h"
#include "qapi/qapi-types.h"

#include <string.h>

/* `expected` is JSON, its members in any order. */
static void check(const char *text, const char *implied_key, const char *expected)
{
    g_autoptr(GError) error = NULL;
    json_auto_t *value = keyval_parse(text, implied_key, NULL, &error);
    json_auto_t *wanted = json_loads(expected, 0, NULL);
    g_autofree char *printed = NULL;

    g_assert_no_error(error);
    printed = qapi_json_text(value, false);
    g_test_message("%s: %s", text, printed);
    g_assert_true(json_equal(value, wanted));
}

static void check_refused(const char *text, const char *expected)
{
    g_autoptr(GError) error = NULL;

    g_assert_null(keyval_parse(text, "driver", NULL, &error));
    g_assert_nonnull(error);
    g_assert_cmpstr(error->message, ==, expected);
}

static void test_pairs(void)
{
    check("", NULL, "{}");
    check("a=1", NULL, "{\"a\": \"1\"}");
    check("a=", NULL, "{\"a\": \"\"}");
    check("a=1,", NULL, "{\"a\": \"1\"}");
    check("a=1,b-c_D=2", NULL, "{\"b-c_D\": \"2\", \"a\": \"1\"}");
    check("a=1=2", NULL, "{\"a\": \"1=2\"}");
    check("__com.example_a=1", NULL, "{\"__com.example_a\": \"1\"}");
    check("a=caf\xc3\xa9", NULL, "{\"a\": \"caf\\u00E9\"}");
}

static void test_last_one_wins(void)
{
    check("a=1,a=2", NULL, "{\"a\": \"2\"}");
    check("a.b=1,a.b=2", NULL, "{\"a\": {\"b\": \"2\"}}");
}

static void test_commas(void)
{
    check("a=1,,b=2", NULL, "{\"a\": \"1,b=2\"}");
    check("a=,,,,", NULL, "{\"a\": \",,\"}");
    check("x,,y,a=1", "k", "{\"a\": \"1\", \"k\": \"x,y\"}");
}

static void test_implied_key(void)
{
    check("x", "k", "{\"k\": \"x\"}");
    check("x,a=1", "k", "{\"a\": \"1\", \"k\": \"x\"}");
    check("k=x", "k", "{\"k\": \"x\"}");
    check("x", "k.l", "{\"k\": {\"l\": \"x\"}}");
}

static void test_paths(void)
{
    check("a.b.c=1,a.d=2", NULL, "{\"a\": {\"b\": {\"c\": \"1\"}, \"d\": \"2\"}}");
}

static void test_lists(void)
{
    check("a.0=x", NULL, "{\"a\": [\"x\"]}");
    check("a.1=y,a.0=x", NULL, "{\"a\": [\"x\", \"y\"]}");
    check("a.00=x,a.01=y", NULL, "{\"a\": [\"x\", \"y\"]}");
    check("a.0.0=x,a.0.1=y,a.1.b=z", NULL, "{\"a\": [[\"x\", \"y\"], {\"b\": \"z\"}]}");
    check("a.0=0,a.10=10,a.9=9,a.1=1,a.2=2,a.3=3,a.4=4,a.5=5,a.6=6,a.7=7,a.8=8", NULL,
          "{\"a\": [\"0\", \"1\", \"2\", \"3\", \"4\", \"5\", \"6\", \"7\", \"8\", \"9\", "
          "\"10\"]}");
}

static void test_length_of_a_step(void)
{
    g_autofree char *longest = g_strnfill(KEYVAL_MAX_STEP, 'x');
    g_autofree char *fits = g_strdup_printf("a.%s=1", longest);
    g_autofree char *too_long = g_strdup_printf("%sx=1", longest);
    g_autofree char *part_too_long = g_strdup_printf("a.%sx=1", longest);
    g_autofree char *words = g_strdup_printf("Parameter '%sx' is too long", longest);
    g_autofree char *part_words = g_strdup_printf("Parameter fragment '%sx' is too long", longest);
    g_autoptr(GError) error = NULL;
    json_auto_t *value = keyval_parse(fits, NULL, NULL, &error);

    g_assert_no_error(error);
    check_refused(too_long, words);
    check_refused(part_too_long, part_words);
}

/* "a.a.a=1" with that many steps. Caller frees. */
static char *text_of_steps(unsigned n)
{
    GString *text = g_string_new("a");

    for (unsigned i = 1; i < n; i++) {
        g_string_append(text, ".a");
    }
    g_string_append(text, "=1");
    return g_string_free(text, false);
}

static void test_number_of_steps(void)
{
    g_autofree char *most = text_of_steps(KEYVAL_MAX_STEPS);
    g_autofree char *too_many = text_of_steps(KEYVAL_MAX_STEPS + 1);
    g_autofree char *words =
        g_strdup_printf("A parameter's name has more than %d steps", KEYVAL_MAX_STEPS);
    g_autoptr(GError) error = NULL;
    json_auto_t *value = keyval_parse(most, NULL, NULL, &error);

    g_assert_no_error(error);
    check_refused(too_many, words);
}

static void test_bad_utf8(void)
{
    check_refused("a=\xff", "Parameter 'a' is not valid UTF-8");
}

static void test_help(void)
{
    static const char *const asking[] = { "help", "?", "x,help", "x,a=1,?", "help,a=1" };
    static const char *const not_asking[] = { "x", "x,help=1", "driver=help", "x,a=help" };
    g_autoptr(GError) error = NULL;
    bool help;

    for (size_t i = 0; i < G_N_ELEMENTS(asking); i++) {
        help = false;
        json_decref(keyval_parse(asking[i], "driver", &help, &error));
        g_assert_no_error(error);
        g_assert_true(help);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(not_asking); i++) {
        help = false;
        json_decref(keyval_parse(not_asking[i], "driver", &help, &error));
        g_assert_no_error(error);
        g_assert_false(help);
    }
}

static BlockdevOptions *options(const char *text)
{
    g_autoptr(GError) error = NULL;
    BlockdevOptions *decoded = option_decode(&qapi_type_BlockdevOptions, text, "driver", &error);

    g_assert_no_error(error);
    return decoded;
}

static void test_decoded(void)
{
    g_autoptr(BlockdevOptions) o =
        options("copy-before-write,node-name=c,cache.direct=on,read-only=no,file=disk,"
                "target.driver=null-co,target.size=0x100,min-cluster-size=64k,cbw-timeout=7");
    const BlockdevOptionsCbw *cbw = &o->u.copy_before_write;

    g_assert_cmpint(o->driver, ==, BLOCKDEV_DRIVER_COPY_BEFORE_WRITE);
    g_assert_true(o->cache->has_direct && o->cache->direct);
    g_assert_true(o->has_read_only && !o->read_only);
    g_assert_false(o->has_auto_read_only);
    g_assert_cmpint(cbw->file->type, ==, BLOCKDEV_REF_TYPE_REFERENCE);
    g_assert_cmpstr(cbw->file->u.reference, ==, "disk");
    g_assert_cmpint(cbw->target->type, ==, BLOCKDEV_REF_TYPE_DEFINITION);
    g_assert_cmpint(cbw->target->u.definition->u.null_co.size, ==, 256);
    g_assert_cmpuint(cbw->min_cluster_size, ==, 65536);
    g_assert_cmpuint(cbw->cbw_timeout, ==, 7);
    g_assert_null(cbw->bitmap);
}

static void test_json_form(void)
{
    g_autoptr(BlockdevOptions) o = options("{'driver': 'null-co', 'size': 12}");
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(o->u.null_co.size, ==, 12);
    g_assert_null(option_decode(&qapi_type_BlockdevOptions, "{'driver':'null-co','size':'12'}",
                                "driver", &error));
    g_assert_cmpstr(error->message, ==, "Invalid parameter type for 'size', expected: integer");
}

/* Whatever the bytes, there is a value or an error. */
static void test_garbage(void)
{
    static const char alphabet[] = "aab01..==,,_-?help\xc3\xa9\xff";
    const char *given = g_getenv("MERINO_TEST_SEED");
    guint32 seed = given ? (guint32)g_ascii_strtoull(given, NULL, 0) : g_random_int();
    g_autoptr(GRand) random = g_rand_new_with_seed(seed);

    g_test_message("MERINO_TEST_SEED=%u", seed);
    for (int round = 0; round < 20000; round++) {
        char text[32] = "";
        size_t len = g_rand_int_range(random, 0, sizeof(text));
        g_autoptr(GError) error = NULL;
        json_t *value;

        for (size_t i = 0; i < len; i++) {
            text[i] = alphabet[g_rand_int_range(random, 0, sizeof(alphabet) - 1)];
        }
        value = keyval_parse(text, round % 2 ? "a" : NULL, NULL, &error);
        g_assert_true((value == NULL) == (error != NULL));
        json_decref(value);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/qapi/keyval/pairs", test_pairs);
    g_test_add_func("/qapi/keyval/last-one-wins", test_last_one_wins);
    g_test_add_func("/qapi/keyval/commas", test_commas);
    g_test_add_func("/qapi/keyval/implied-key", test_implied_key);
    g_test_add_func("/qapi/keyval/paths", test_paths);
    g_test_add_func("/qapi/keyval/lists", test_lists);
    g_test_add_func("/qapi/keyval/length-of-a-step", test_length_of_a_step);
    g_test_add_func("/qapi/keyval/number-of-steps", test_number_of_steps);
    g_test_add_func("/qapi/keyval/bad-utf8", test_bad_utf8);
    g_test_add_func("/qapi/keyval/help", test_help);
    g_test_add_func("/qapi/keyval/decoded", test_decoded);
    g_test_add_func("/qapi/keyval/json-form", test_json_form);
    g_test_add_func("/qapi/keyval/garbage", test_garbage);
    return g_test_run();
}
